//! What tree, gate, doctor and verify all know of qmail.

#![forbid(unsafe_code)]

pub(crate) mod conf_line;
pub(crate) mod control;
pub(crate) mod home;
pub mod log;
pub(crate) mod relay_files;
pub mod remote_status;
