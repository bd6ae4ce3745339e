//! A private copy of the tree, as whom its programs run, and within which limits.

pub mod identity;
pub mod limits;
pub mod process;
pub mod scratch;
pub mod target;
