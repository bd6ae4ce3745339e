//! `qpatch completions`: a completion script for a shell.

#![forbid(unsafe_code)]

use clap::Command;
use clap_complete::Shell;

use crate::output::{CommandResult, print};

/// Prints the script.
///
/// # Errors
/// If standard output cannot be written.
pub fn run(shell: Shell, command: &mut Command) -> CommandResult {
    let mut script = Vec::new();
    clap_complete::generate(shell, command, "qpatch", &mut script);
    print(|out| out.write_all(&script))
}
