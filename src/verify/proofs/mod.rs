//! What a tree has to show: that it builds, and how its programs behave.

pub mod build;
pub mod fdset;
pub mod gate;
pub mod mail;
pub mod trials;
