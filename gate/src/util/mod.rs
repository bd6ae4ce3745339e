//! What the rest stands on: allocations that may fail, lists, an index, a hash, random numbers, regular expressions.

pub mod escape;
pub(crate) mod fnv;
pub mod index;
pub(crate) mod list;
pub mod memory;
pub(crate) mod prefetch;
pub mod random;
pub mod regex;
