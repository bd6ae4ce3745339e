//! Make any qmail source tree run thousands of simultaneous deliveries.
//!
//! The engine ([`lex`], [`rule`], [`matcher`], [`edit`]) turns bytes into edits and knows nothing
//! of qmail or of files. [`tree`] reads and writes a source tree. [`verify`] proves one, [`cli`]
//! is what the operator sees.

#![deny(unsafe_code)]

pub mod cli;
mod date;
pub mod diff;
pub mod doctor;
pub mod edit;
pub mod error;
pub mod fixture;
pub mod gate;
pub mod lex;
pub mod log;
pub mod man;
pub mod matcher;
pub mod patches;
pub mod rule;
pub mod tree;
pub mod verify;
