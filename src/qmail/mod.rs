//! What tree, gate, doctor and verify all know of qmail.

#![forbid(unsafe_code)]

pub mod log;
pub(crate) mod relay_files;
