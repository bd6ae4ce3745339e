//! The bench's errors.

use std::fmt;

/// What went wrong, where, and what to do about it.
#[derive(Debug)]
pub struct Error {
    what: String,
    next: String,
    /// The signal that stopped the bench, if that is why.
    pub signal: Option<i32>,
}

/// The result of functions of this crate.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// An error, and what to do next; `help` may be empty.
    pub fn new(what: impl Into<String>, next: impl Into<String>) -> Error {
        Error { what: what.into(), next: next.into(), signal: None }
    }

    /// Puts `doing` in front of the system's message.
    pub fn doing<E: fmt::Display>(doing: impl fmt::Display) -> impl FnOnce(E) -> Error {
        move |error| Error::new(format!("cannot {doing}: {error}"), "")
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)?;
        if self.next.is_empty() { Ok(()) } else { write!(f, "; {}", self.next) }
    }
}

impl std::error::Error for Error {}

impl From<qpatch::verify::Error> for Error {
    fn from(error: qpatch::verify::Error) -> Error {
        let signal = match error {
            qpatch::verify::Error::Interrupted(signal) => Some(signal),
            _ => None,
        };
        Error { what: error.to_string(), next: String::new(), signal }
    }
}

impl From<qpatch::error::Error> for Error {
    fn from(error: qpatch::error::Error) -> Error {
        Error::new(error.to_string(), "")
    }
}

/// Fails if a signal has asked the bench to stop.
pub fn check_signals() -> Result<()> {
    match qpatch::verify::stopped_by() {
        Some(signal) => Err(qpatch::verify::Error::Interrupted(signal).into()),
        None => Ok(()),
    }
}
