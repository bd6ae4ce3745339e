//! What doctor examines.
#![forbid(unsafe_code)]

use std::path::PathBuf;

use crate::qmail::home::QMAIL_HOME;

/// What to examine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// qmail's home, as in conf-qmail: absolute, since programs and start scripts are looked for below it.
    pub home: PathBuf,
    /// The number of remote deliveries to plan for; `None`: control/concurrencyremote.
    pub concurrency: Option<u32>,
    /// The compiler that the tree is built with.
    pub cc: String,
}

impl Default for Options {
    fn default() -> Options {
        Options { home: PathBuf::from(QMAIL_HOME), concurrency: None, cc: "cc".to_owned() }
    }
}
