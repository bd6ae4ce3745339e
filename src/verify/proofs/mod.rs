//! What a tree has to show: that it builds, and how its programs behave.

pub mod fdset;
pub mod gate;
pub mod mail;
pub mod trials;
