//! `qpatch doctor`: prints what on this machine is in the way of many deliveries.

#![forbid(unsafe_code)]

use std::path::PathBuf;

use clap::Args;

use crate::doctor;
use crate::output::{CommandResult, Failures, Format, print};

/// Arguments of `qpatch doctor`.
#[derive(Debug, Args)]
pub struct Doctor {
    /// The folder where qmail is installed [default: /var/qmail]
    #[arg(value_name = "QMAILHOME")]
    home: Option<PathBuf>,
    /// The number of remote deliveries at once, instead of the one in control/concurrencyremote
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=65000))]
    concurrency: Option<u32>,
    /// The compiler that builds the tree
    #[arg(long, value_name = "CC", default_value = "cc")]
    cc: String,
    /// The output format
    #[arg(long, value_enum, default_value_t = Format::Table)]
    format: Format,
}

/// Looks at the machine, and prints the findings.
///
/// # Errors
/// If a finding asks for a change.
pub fn run(args: &Doctor) -> CommandResult {
    let home = match &args.home {
        Some(home) => doctor::installed(home)?,
        // Before an install, where doctor is most useful, the folder does not exist yet.
        None => doctor::Options::default().home,
    };
    let options = doctor::Options { home, concurrency: args.concurrency, cc: args.cc.clone() };
    let report = doctor::examine(&options);
    print(|out| match args.format {
        Format::Table => {
            for finding in &report.findings {
                writeln!(out, "{finding}")?;
            }
            writeln!(out, "{}", report.summary())
        }
        Format::Json => writeln!(out, "{}", report.to_json()),
    })?;
    if report.ok() { Ok(()) } else { Err(Failures::printed()) }
}
