//! The commands: the arguments and the policy of each, one module a command. `qpatch gate` has its own folder,
//! src/gate/.

#![forbid(unsafe_code)]

pub mod apply;
pub mod choice;
pub mod completions;
pub mod demo;
pub mod diff;
pub mod doctor;
pub mod man;
mod patch_table;
pub mod revert;
pub mod rule;
pub mod status;
pub mod verify;
