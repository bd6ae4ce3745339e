//! `qpatch gate library`: gate.a, for trees that are patched with `qpatch diff`.

use std::io::{self, IsTerminal};

use super::{Done, print};
use crate::error::Error;
use crate::patches;

/// Writes the library.
///
/// # Errors
/// Standard output is a terminal, or cannot be written.
pub fn run() -> Done {
    if io::stdout().is_terminal() {
        return Err(vec![Error::new(
            "standard output",
            "a static library is nothing for a terminal",
            "write it into a file: qpatch gate library > TREE/gate.a",
        )]);
    }
    print(|out| out.write_all(patches::gate_library()))
}
