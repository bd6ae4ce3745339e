//! `qpatch verify`: runs a proof, and prints each step.

#![forbid(unsafe_code)]

use std::io::{self, IsTerminal};
use std::path::{Path, PathBuf};

use clap::Args;
use clap::builder::{PossibleValue, PossibleValuesParser};

use crate::error::Error;
use crate::output::{CommandResult, Failures, Format, print};
use crate::verify::sandbox::scratch::Keep;
use crate::verify::{self, ProofOutcome, Silent, Transient, Written};

/// Arguments of `qpatch verify`.
#[derive(Debug, Args)]
pub struct Verify {
    /// The folder with qmail's Makefile and spawn.c
    tree: PathBuf,
    /// Use this conf-spawn instead of the tree's own, 1 to 65000
    #[arg(long, value_name = "N", allow_hyphen_values = true,
        value_parser = clap::value_parser!(u32).range(1..=65000))]
    spawn: Option<u32>,
    /// Use this compiler instead of the one in conf-cc
    #[arg(long, value_name = "CC")]
    cc: Option<String>,
    /// Run only these steps, and what they need: build, chkspawn, fd_set, machine, qmail-rspawn, qmail-lspawn,
    /// qmail-send-numbers, mail, restart, gate, fork-server, fortify-build, fortify-qmail-rspawn,
    /// fortify-qmail-lspawn, fortify-mail; fortify for the last four
    #[arg(long, value_name = "STEP,...", value_delimiter = ',', value_parser = steps(),
        hide_possible_values = true)]
    only: Vec<String>,
    /// Copy the files of this folder into the copy's control folder, for spawners that need files of
    /// their own (LDAP). Files that decide where mail goes, and how much at once, are left out
    #[arg(long, value_name = "DIR")]
    control: Option<PathBuf>,
    /// Keep the copy, to look inside
    #[arg(long)]
    keep: bool,
    /// Repeat the random choices of an earlier run, which printed its seed
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// The output format
    #[arg(long, value_enum, default_value_t = Format::Table)]
    format: Format,
}

/// Returns the names that --only takes.
fn steps() -> PossibleValuesParser {
    PossibleValuesParser::new(
        verify::Part::ALL
            .map(verify::Part::name)
            .into_iter()
            .chain([verify::FORTIFY])
            .map(PossibleValue::new),
    )
}

/// Proves a tree and prints each step.
///
/// # Errors
/// If a step fails or could not be tried.
pub fn run(args: &Verify) -> CommandResult {
    let options = verify::Options {
        spawn: args.spawn,
        cc: args.cc.clone(),
        keep: if args.keep { Keep::Yes } else { Keep::No },
        seed: args.seed,
        only: args.only.iter().flat_map(|name| verify::Part::named(name)).collect(),
        control: args.control.clone(),
        ..verify::Options::default()
    };
    prove(&args.tree, &options, args.format).map(drop)
}

/// Proves a tree and prints each step. Returns an error if a step fails.
pub(super) fn prove(
    tree: &Path,
    options: &verify::Options,
    format: Format,
) -> Result<ProofOutcome, Failures> {
    let outcome = match format {
        Format::Table => {
            let transient = match io::stdout().is_terminal() {
                true => Transient::Shown,
                false => Transient::Hidden,
            };
            verify::run(tree, options, &mut Written::new(io::stdout(), transient))
        }
        Format::Json => verify::run(tree, options, &mut Silent),
    };
    let outcome = match outcome {
        Ok(outcome) => outcome,
        Err(verify::Error::Interrupted(signal)) => {
            verify::die_of(signal);
            return Err(Failures::printed());
        }
        Err(verify::Error::Tree(error)) => return Err(error.into()),
        Err(error) => return Err(Error::new("", error.to_string(), "").into()),
    };
    print(|out| match format {
        Format::Table => {
            writeln!(out, "{}", outcome.summary())?;
            match &outcome.kept {
                Some(kept) => writeln!(out, "kept: {}", kept.display()),
                None => Ok(()),
            }
        }
        Format::Json => writeln!(out, "{}", outcome.to_json()),
    })?;
    // What failed has been printed.
    if outcome.ok() { Ok(outcome) } else { Err(Failures::printed()) }
}
