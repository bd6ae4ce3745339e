//! The command `qpatch`.

use std::process::ExitCode;

fn main() -> ExitCode {
    qpatch::cli::run(std::env::args_os())
}
