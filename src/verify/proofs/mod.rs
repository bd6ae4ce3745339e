//! What a tree must prove: the size of its fd_set, and how its programs behave. (`verify::build` builds it.)

pub mod fdset;
pub mod fork_server;
pub mod gate;
pub mod mail;
pub mod spawner_trials;
