//! The patch engine: bytes in, edits out. It knows nothing of qmail or of files.
//!
//! [`lex`] turns a source into tokens, [`rule`] reads what a patch wants, [`matcher`] finds where a rule matches, and
//! [`edit`] makes the smallest edit.

#![forbid(unsafe_code)]

pub mod edit;
pub mod lex;
pub mod matcher;
pub mod rule;
