//! Allocations that may fail. In the mail server no allocation may abort the process, so the gate allocates only with
//! `try_reserve`, and returns [`OutOfMemory`] when that fails.

#![forbid(unsafe_code)]

use std::collections::TryReserveError;
use std::fmt;

/// There is not enough memory.
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

/// A text that grows. Writing to it fails when there is no memory.
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
