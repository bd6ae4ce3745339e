//! The decision: no I/O and no clock.

pub mod command;
pub mod gate;
pub mod learn;
pub mod linger;
pub mod pace;
pub mod recall;
pub mod rules;
pub mod share;
pub mod shortage;
