//! `qpatch gate library`: gate.a, for trees that are patched with `qpatch diff`.

use std::io::{self, IsTerminal};

use crate::error::Error;
use crate::output::{CommandResult, print};
use crate::patches;

/// Writes the library.
///
/// # Errors
/// Standard output is a terminal, or cannot be written.
pub fn run() -> CommandResult {
    if io::stdout().is_terminal() {
        return Err(Error::new(
            "standard output",
            "is a terminal, and a static library is binary",
            "write it into a file: qpatch gate library > TREE/gate.a",
        )
        .into());
    }
    print(|out| out.write_all(patches::gate_library()))
}
