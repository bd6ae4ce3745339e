//! Words of a command after its variables have got their values.
#![forbid(unsafe_code)]

/// A value of a variable, and where it was set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Variable {
    /// The value; `None`: only the running script knows it.
    pub value: Option<String>,
    /// The file of the line that sets it.
    pub file: String,
    /// The line; 0: not from a line.
    pub line: usize,
}

/// A word after its variables have got their values.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Field {
    /// The text, with what could not be known as it is written.
    pub text: String,
    /// Whether all of it is known.
    pub known: bool,
    /// The file of the line that it comes from.
    pub file: String,
    /// The line.
    pub line: usize,
    /// Where in the line it starts.
    pub column: usize,
}
