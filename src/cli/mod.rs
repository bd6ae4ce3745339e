//! Runs the command that the command line names, and returns its exit code.

#![forbid(unsafe_code)]

mod args;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::{CommandFactory, Parser};

use crate::commands::{apply, completions, demo, diff, doctor, man, revert, rule, status, verify};
use crate::gate;
use args::{Cli, QpatchCommand};

/// Runs the command line `args`. The exit code is 0 if the command did its work, 1 if it could not, 2 for wrong usage.
pub fn run(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let cli = match Cli::try_parse_from(args).and_then(Cli::checked) {
        Ok(cli) => cli,
        Err(error) => {
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { 2 } else { 0 });
        }
    };
    let done = match cli.command {
        QpatchCommand::Apply(args) => apply::run(&args),
        QpatchCommand::Diff(choice) => diff::run(&choice),
        QpatchCommand::Revert(args) => revert::run(&args),
        QpatchCommand::Status(args) => status::run(&args),
        QpatchCommand::Verify(args) => verify::run(&args),
        QpatchCommand::Gate(args) => gate::run(&args),
        QpatchCommand::Doctor(args) => doctor::run(&args),
        QpatchCommand::Rule { command } => rule::run(&command),
        QpatchCommand::Demo { spawn } => demo::run(spawn),
        QpatchCommand::Completions { shell } => completions::run(shell, &mut Cli::command()),
        QpatchCommand::Man { dir, install } => {
            man::run(dir.as_deref(), install.as_deref(), Cli::command())
        }
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(failures) => {
            failures.print();
            ExitCode::FAILURE
        }
    }
}
