//! The contents of `.qpatch/journal.json`.

#![forbid(unsafe_code)]

use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// The version of the journal's format.
pub(super) const VERSION: u32 = 1;

/// The contents of `.qpatch/journal.json`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Journal {
    pub(super) version: u32,
    pub(super) state: JournalState,
    /// When the last apply was committed, in nanoseconds since 1970.
    pub(super) applied_at: u128,
    pub(super) files: Vec<JournalEntry>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum JournalState {
    Applying,
    Applied,
    Reverting,
}

/// A file that qpatch changed or created.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct JournalEntry {
    pub(super) name: String,
    /// The file before qpatch; `None` for a file that qpatch created.
    pub(super) original: Option<Original>,
    /// Digest before the current apply.
    pub(super) before: Option<String>,
    /// Digest after the apply.
    pub(super) after: String,
    /// Whether someone changed the file between two applies.
    #[serde(default)]
    pub(super) edited: bool,
}

impl JournalEntry {
    /// Returns the object that make builds from a source that qpatch created. A revert removes it
    /// with the source, because the tree's own `make clean` does not know it.
    pub(super) fn made_object(&self) -> Option<String> {
        let stem = self.name.strip_suffix(".c").filter(|_| self.original.is_none())?;
        Some(format!("{stem}.o"))
    }
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Original {
    pub(super) digest: String,
    pub(super) mode: u32,
    pub(super) mtime_ns: i128,
}

/// Returns whether `name` is a file name directly in the tree's folder.
pub(super) fn is_plain_name(name: &str) -> bool {
    let mut components = Path::new(name).components();
    matches!(
        (components.next(), components.next()),
        (Some(std::path::Component::Normal(only)), None) if only == name
    )
}

pub(super) fn digest(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect()
}

pub(super) fn nanos(time: SystemTime) -> u128 {
    time.duration_since(UNIX_EPOCH).map_or(0, |d| d.as_nanos())
}

pub(super) fn from_nanos(ns: i128) -> SystemTime {
    let magnitude = Duration::from_nanos(u64::try_from(ns.unsigned_abs()).unwrap_or(u64::MAX));
    if ns < 0 { UNIX_EPOCH - magnitude } else { UNIX_EPOCH + magnitude }
}
