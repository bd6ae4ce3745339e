//! What a tree has to show: that it builds, and how its programs behave.

pub mod fdset;
pub mod fork_server;
pub mod gate;
pub mod mail;
pub mod spawner_trials;
