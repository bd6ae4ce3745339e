//! Make any qmail source tree run thousands of simultaneous deliveries.
//!
//! The [`engine`] turns bytes into edits and knows nothing of qmail or of files. [`qmail`] knows an installed qmail.
//! [`tree`] reads and writes a source tree, and [`verify`] proves one. [`cli`] is the command line.

#![deny(unsafe_code)]

pub mod cli;
pub mod commands;
mod date;
pub mod doctor;
pub mod engine;
pub mod error;
pub mod fixture;
pub mod gate;
pub mod output;
pub mod patches;
pub mod qmail;
#[allow(unsafe_code)]
pub(crate) mod sys;
pub mod tree;
pub mod verify;
