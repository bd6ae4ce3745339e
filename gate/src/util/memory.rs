//! Memory that may be missing. In the mail server no allocation may abort the process, so whatever the gate allocates
//! on its way goes through `try_reserve`, and [`OutOfMemory`] is an answer like any other.

#![forbid(unsafe_code)]

use std::collections::TryReserveError;
use std::fmt;

/// There is no memory for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutOfMemory;

impl fmt::Display for OutOfMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("out of memory")
    }
}

impl std::error::Error for OutOfMemory {}

impl From<TryReserveError> for OutOfMemory {
    fn from(_: TryReserveError) -> Self {
        Self
    }
}

/// `push` that may fail.
///
/// # Errors
/// No memory: the vector is as before.
pub fn push<T>(vector: &mut Vec<T>, value: T) -> Result<(), OutOfMemory> {
    vector.try_reserve(1)?;
    vector.push(value);
    Ok(())
}

/// A vector of `len` equal elements.
///
/// # Errors
/// No memory.
pub fn filled<T: Clone>(value: T, len: usize) -> Result<Vec<T>, OutOfMemory> {
    let mut vector = Vec::new();
    vector.try_reserve_exact(len)?;
    vector.resize(len, value);
    Ok(vector)
}

/// Text in memory that is asked for, not taken; writing to it fails when there is none.
#[derive(Debug, Default)]
pub struct Text {
    /// What was written so far.
    pub bytes: Vec<u8>,
}

impl Text {
    /// Appends bytes.
    ///
    /// # Errors
    /// No memory: the text is as before.
    pub fn push(&mut self, bytes: &[u8]) -> Result<(), OutOfMemory> {
        self.bytes.try_reserve(bytes.len())?;
        self.bytes.extend_from_slice(bytes);
        Ok(())
    }
}

impl fmt::Write for Text {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.push(text.as_bytes()).map_err(|_| fmt::Error)
    }
}
