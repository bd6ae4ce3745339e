//! `qpatch gate check`: what is wrong with the control files, and what is legal but surely not meant.
//!
//! The gate's own parser decides what is an error. This module adds the warnings that need more than one line or file.

mod domain_keys;
mod not_meant;
mod print;
mod replies;
mod running;

use std::path::PathBuf;

use clap::Args;
use qpatch_gate::name::Hasher;
use qpatch_gate::replies::Replies;

use super::finding::FileFinding;
use super::source::{Source, load};
use super::text::domain_argument;
use crate::output::{CommandResult, Failures, Format};
use crate::qmail::home::QMAIL_HOME;
use domain_keys::domain_keys;
use not_meant::not_meant;
use print::{Requested, print_json, print_table};
use replies::reply_argument;
use running::{check_permissions, check_relay_files, check_status, concurrency_remote};

/// Arguments of `qpatch gate check`.
#[derive(Debug, Args)]
pub struct Check {
    /// The folder where qmail is installed, or one file with lines domain:limit[:group[:words]]
    #[arg(value_name = "QMAILHOME|FILE", default_value = QMAIL_HOME)]
    path: PathBuf,
    /// Also print under which key this domain counts, and its limit; may be repeated
    #[arg(long = "domain", value_name = "D", value_parser = domain_argument)]
    domains: Vec<String>,
    /// With --domain: for mail of this sender, where qmail-remote chooses relays by senders (control/authsenders)
    ///
    /// The default is a sender that has no line of its own. An empty sender is that of bounces.
    #[arg(long, value_name = "ADDRESS", requires = "domains")]
    sender: Option<String>,
    /// Also print how the gate would take this reply of a server; may be repeated
    ///
    /// TEXT is the reply itself, as in "421 4.7.0 Too many connections", or a line of qmail-send's
    /// log that has one. Lines of control/concurrencyreplies come before the gate's own reading.
    #[arg(long = "reply", value_name = "TEXT", value_parser = reply_argument)]
    replies: Vec<String>,
    /// The output format
    #[arg(long, value_enum, default_value_t = Format::Table)]
    format: Format,
}

/// Runs it.
///
/// # Errors
/// A file cannot be read, or has errors. The errors have been printed.
pub fn run(args: &Check) -> CommandResult {
    let source = Source::of(&args.path)?;
    let mut loaded = load(&source, Hasher::new(1))?;
    let remote = concurrency_remote(&source, &mut loaded);
    for warnings in not_meant(&source, &loaded, remote) {
        loaded.warn(warnings);
    }
    if let Some(home) = &source.home {
        check_relay_files(home, &mut loaded);
        check_permissions(home, &source, &mut loaded);
        check_status(home, &mut loaded);
    }
    let of_file = |finding: &FileFinding| {
        [Some(&source.domains), source.routes.as_ref(), source.replies.as_ref()]
            .iter()
            .position(|path| path.is_some_and(|path| *path.display().to_string() == finding.file))
            .unwrap_or(3)
    };
    loaded.findings.sort_by_key(|finding| (of_file(finding), finding.line, finding.column));
    let domain_keys = domain_keys(&loaded, &args.domains, args.sender.as_deref());
    let none = Replies::default();
    let readings =
        replies::read_replies(loaded.rules.as_ref().map_or(&none, |r| &r.replies), &args.replies);
    let asked = Requested { domains: !args.domains.is_empty(), replies: !args.replies.is_empty() };
    match args.format {
        Format::Table => print_table(&source, &loaded, remote, &domain_keys, &readings, asked)?,
        Format::Json => print_json(&loaded, remote, &domain_keys, &readings)?,
    }
    let failed = loaded.findings.iter().any(FileFinding::is_error);
    if failed { Err(Failures::printed()) } else { Ok(()) }
}
