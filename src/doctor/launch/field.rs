//! The words of a command, after variables have got their values.
#![forbid(unsafe_code)]

/// The value of a variable, and where it is set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Variable {
    /// The value; `None` if only the running script knows it.
    pub value: Option<String>,
    /// The file of the line that sets it.
    pub file: String,
    /// The line, from 1; 0 if no line sets it.
    pub line: usize,
}

/// A word, after variables have got their values.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Field {
    /// The text. Parts that are not known are as they are written.
    pub text: String,
    /// Whether all parts are known.
    pub known: bool,
    /// The file of the line that it comes from.
    pub file: String,
    /// The line.
    pub line: usize,
    /// The byte in the line at which it starts.
    pub column: usize,
}
