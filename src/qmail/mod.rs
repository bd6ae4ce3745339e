//! What the rest of the tool knows of qmail: its home, its control files, the first line of conf-cc, its log, files
//! that name relays, and the status of the fork server. Everything here only reads.

#![forbid(unsafe_code)]

pub(crate) mod conf_line;
pub(crate) mod control;
pub(crate) mod home;
pub mod log;
pub(crate) mod relay_files;
pub mod remote_status;
