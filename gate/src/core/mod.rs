//! The decision: no I/O and no clock.

pub(crate) mod answer;
pub mod command;
pub mod gate;
pub(crate) mod key;
pub(crate) mod keys;
pub mod learn;
pub mod linger;
pub mod pace;
pub mod recall;
pub mod rules;
pub mod share;
pub mod shortage;
pub(crate) mod slots;
