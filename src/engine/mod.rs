//! The patch engine: bytes in, edits out. It knows nothing of qmail or of files.
//!
//! [`lex`] turns a source into tokens. [`makefile`], [`include`] and [`function`] find the rules of
//! a makefile, and the `#include` lines and functions of a C source. [`rule`] reads what a patch
//! wants, [`matcher`] finds where a rule matches, and [`edit`] makes the smallest edit.

#![forbid(unsafe_code)]

pub mod edit;
pub mod function;
pub mod include;
pub mod lex;
pub mod makefile;
pub mod matcher;
pub mod rule;
