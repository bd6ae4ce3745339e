//! The command line as clap reads it. Each command's own arguments are in its file, beside what it does with them.

#![forbid(unsafe_code)]

use std::path::PathBuf;

use clap::error::ErrorKind;
use clap::{CommandFactory, Parser, Subcommand};

use crate::commands::apply::Apply;
use crate::commands::choice::PatchChoice;
use crate::commands::doctor::Doctor;
use crate::commands::revert::Revert;
use crate::commands::rule::RuleCommand;
use crate::commands::status::StatusArgs;
use crate::commands::verify::Verify;
use crate::gate::Gate;

/// Make a qmail source tree run thousands of simultaneous deliveries
///
/// Unpack any qmail (qmail-1.03, netqmail, notqmail, a fork), run `qpatch apply TREE --spawn 1000`,
/// then `make setup check` as usual.
#[derive(Debug, Parser)]
#[command(name = "qpatch", version, max_term_width = 100)]
pub(super) struct Cli {
    #[command(subcommand)]
    pub(super) command: QpatchCommand,
}

#[derive(Debug, Subcommand)]
pub(super) enum QpatchCommand {
    /// Apply what is missing, repair what is known to be wrong, leave the rest alone
    ///
    /// If a rule does not fit, nothing is changed. A second apply changes nothing. The original
    /// files are kept in TREE/.qpatch, for `qpatch revert`.
    Apply(Apply),
    /// Print what apply would change, as a unified diff for patch -p1, git apply and quilt
    Diff(PatchChoice),
    /// Restore every file as it was before the first apply
    Revert(Revert),
    /// Show for each patch whether it is in the tree
    Status(StatusArgs),
    /// Prove a tree: build a copy and run it with conf-spawn deliveries at once
    ///
    /// Works on any qmail tree, without root and without qmail's users. Exits with 0 only if every
    /// step holds.
    Verify(Verify),
    /// Check, write, watch and try out the limits per destination domain
    Gate(Gate),
    /// Show which limits of this machine the deliveries would hit
    Doctor(Doctor),
    /// Print the rules of a patch, or try one on a file
    Rule {
        #[command(subcommand)]
        command: RuleCommand,
    },
    /// Apply and verify on a built-in tree, to see what qpatch does without a tree of your own
    ///
    /// Ends with a chart of what ran at once to a domain with a limit, and to others meanwhile.
    Demo {
        /// How many deliveries at once
        #[arg(long, value_name = "N", default_value_t = 1000,
            value_parser = clap::value_parser!(u32).range(1..=65000))]
        spawn: u32,
    },
    /// Print a completion script for a shell
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
    /// Write the manual pages into a folder: one for each command, concurrencydomains(5) and
    /// concurrencyreplies(5)
    Man {
        /// The folder, which must exist
        #[arg(required_unless_present = "install")]
        dir: Option<PathBuf>,
        /// Install the pages below this folder, in share/man/man1 and share/man/man5; for example
        /// /usr/local
        #[arg(long, value_name = "PREFIX", conflicts_with = "dir")]
        install: Option<PathBuf>,
    },
}

impl Cli {
    /// Refuses wrong usage that clap cannot express.
    pub(super) fn checked(self) -> Result<Self, clap::Error> {
        let (name, choice) = match &self.command {
            QpatchCommand::Apply(args) => ("apply", &args.choice),
            QpatchCommand::Diff(choice) => ("diff", choice),
            _ => return Ok(self),
        };
        let Some(what) = choice.conflict() else { return Ok(self) };
        let mut command = Cli::command();
        command.build();
        Err(match command.find_subcommand_mut(name) {
            Some(command) => command.error(ErrorKind::ArgumentConflict, what),
            None => command.error(ErrorKind::ArgumentConflict, what),
        })
    }
}
