//! The error type of the library: the place, what is wrong, and what to do next.

#![forbid(unsafe_code)]

use std::fmt;

/// Something that could not be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error {
    /// Where: a file, `file:line`, or a folder. May be empty.
    pub place: String,
    /// What was expected and what was found.
    pub what: String,
    /// What the reader can do. May be empty.
    pub help: String,
}

/// The result of most functions of the library.
pub type Result<T> = std::result::Result<T, Error>;

/// The help for an error of the system that a missing permission explains.
pub(crate) const NOT_PERMITTED: &str =
    "run qpatch as the owner of it, or ask the owner for permission";

impl Error {
    /// An error about `place`, with `help` for what to do next.
    pub fn new(
        place: impl fmt::Display,
        what: impl Into<String>,
        help: impl Into<String>,
    ) -> Error {
        Error { place: place.to_string(), what: what.into(), help: help.into() }
    }

    /// The system refused to `action` the file `path`.
    pub fn io(path: &std::path::Path, action: &str, error: &std::io::Error) -> Error {
        let help = match error.kind() {
            std::io::ErrorKind::PermissionDenied => NOT_PERMITTED,
            std::io::ErrorKind::StorageFull => "make room on this file system, then run it again",
            std::io::ErrorKind::ReadOnlyFilesystem => {
                "copy the tree to a place that can be written"
            }
            _ => "",
        };
        Error::new(path.display(), format!("cannot {action}: {error}"), help)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.place.is_empty() {
            write!(f, "{}: ", self.place)?;
        }
        write!(f, "{}", self.what.replace('\n', "\n  "))?;
        if !self.help.is_empty() {
            write!(f, "\n  {}", self.help.replace('\n', "\n  "))?;
        }
        Ok(())
    }
}

impl std::error::Error for Error {}
