//! What a command does, one module for each.

#![forbid(unsafe_code)]

pub mod man;
pub mod rule;
