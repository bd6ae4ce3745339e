//! The command line: which command is meant, and its exit code.

#![forbid(unsafe_code)]

mod args;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::{CommandFactory, Parser};

use crate::commands::{apply, completions, demo, diff, doctor, man, revert, rule, status, verify};
use crate::gate;
use args::{Cli, Command};

/// Run the command line `args`: 0 done, 1 could not, 2 wrong usage.
pub fn run(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let cli = match Cli::try_parse_from(args).and_then(Cli::checked) {
        Ok(cli) => cli,
        Err(error) => {
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { 2 } else { 0 });
        }
    };
    let done = match cli.command {
        Command::Apply(args) => apply::run(&args),
        Command::Diff(choice) => diff::run(&choice),
        Command::Revert(args) => revert::run(&args),
        Command::Status(args) => status::run(&args),
        Command::Verify(args) => verify::run(&args),
        Command::Gate(args) => gate::run(&args),
        Command::Doctor(args) => doctor::run(&args),
        Command::Rule { command } => rule::run(&command),
        Command::Demo { spawn } => demo::run(spawn),
        Command::Completions { shell } => completions::run(shell, &mut Cli::command()),
        Command::Man { dir } => man::run(&dir, Cli::command()),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(failures) => {
            failures.print();
            ExitCode::FAILURE
        }
    }
}
