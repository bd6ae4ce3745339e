//! A file of another mail server, as it was read.

/// A file that has been read.
#[derive(Clone, Debug)]
pub struct ForeignFile {
    /// As messages name it.
    pub name: String,
    /// What is in it.
    pub text: Vec<u8>,
}
