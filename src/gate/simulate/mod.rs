//! `qpatch gate simulate`: what limits would have done to the deliveries in a log.
//!
//! The gate's own core runs on the log's clock. A delivery asks when the log says that it was handed to qmail-rspawn, and
//! runs for as long as it did then. That time is known when the log comes to its end, which is never too late: with limits
//! a delivery starts no sooner than without, so it ends no sooner. So one pass over the log is enough, and what is kept is
//! what runs or waits.
//!
//! How a delivery ended is in the log, too: the text of its report. The gate hears it, so limits that learn do, and mail finds
//! its site by the address that took it. But what a server would have said had there been fewer is not known: whom it
//! refused then, it refuses here. So limits fall lower and rise later than they would. And a delivery that would have gone
//! back as busy, because it was refused beside others, takes its place for no time when it comes again: what became of
//! its next try is in the log, as a delivery of its own.
//!
//! [`machine`] is qmail-send and qmail-rspawn around the gate, [`replay`] takes a log through it, [`clock`] is the log's
//! time, and [`outcome`] is what comes out.

mod clock;
mod machine;
mod outcome;
mod replay;

use std::io::{self, Read};
use std::path::PathBuf;

use clap::Args;
use qpatch_gate::gate::{CONCURRENCY_REMOTE, Gate, SLOTS_MAX};
use qpatch_gate::table::{Limit, Table};

use super::check::{Source, load};
use super::log::{self, Event};
use super::text::count;
use super::{Done, Format, print};
use crate::error::Error;
use outcome::Outcome;
use replay::{Lines, Run, Slots};

/// Arguments of `qpatch gate simulate`.
#[derive(Debug, Args)]
pub struct Simulate {
    /// A file with lines domain:limit[:group[:learn|fixed]], or a folder where qmail is installed,
    /// whose smtproutes, concurrencysites and known sites then count, too
    #[arg(value_name = "FILE|QMAILHOME")]
    file: PathBuf,
    /// qmail-send's log, - for standard input; may be repeated: they are read one after the other.
    /// Its lines begin with a time: as multilog (@40000000...), tai64nlocal, splogger or syslog write
    /// it, in ISO 8601, or in seconds since 1970
    #[arg(long, value_name = "LOG", required = true)]
    log: Vec<PathBuf>,
    /// Further logs: what a shell makes of `--log /var/log/qmail/@*`
    #[arg(value_name = "LOG")]
    more: Vec<PathBuf>,
    /// So many deliveries at once, instead of what the log says
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=65000))]
    concurrencyremote: Option<u32>,
    /// How to print it
    #[arg(long, value_enum, default_value_t = Format::Table)]
    format: Format,
}

/// So much of the log is looked through for the first status line.
const AHEAD_BYTES: u64 = 1 << 20;

/// Runs it.
///
/// # Errors
/// A file cannot be read, has errors, or has no deliveries.
pub fn run(args: &Simulate) -> Done {
    let outcome = simulate(args).map_err(|error| vec![error])?;
    print(|out| match args.format {
        Format::Table => outcome.table(out),
        Format::Json => {
            serde_json::to_writer_pretty(&mut *out, &outcome)?;
            writeln!(out)
        }
    })
}

fn simulate(args: &Simulate) -> Result<Outcome, Error> {
    let logs = [&args.log[..], &args.more].concat();
    let mut input = log::open(&logs)?;
    let name = logs.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(" ");
    let unread = |error: io::Error| Error::new(&name, format!("cannot be read: {error}"), "");

    let mut ahead = Vec::new();
    if args.concurrencyremote.is_none() {
        (&mut input).take(AHEAD_BYTES).read_to_end(&mut ahead).map_err(unread)?;
    }
    let status = ahead.split(|&byte| byte == b'\n').find_map(|line| match log::parse(line) {
        Ok((_, Event::Status { concurrency_remote })) => Some(concurrency_remote),
        _ => None,
    });
    let (slots, concurrency_remote) = match (args.concurrencyremote, status) {
        (Some(given), _) => (Slots::Given, given),
        (None, Some(status)) => (Slots::Status, status),
        (None, None) => (Slots::Used, CONCURRENCY_REMOTE),
    };

    let source = Source::of(&args.file)?;
    let no_memory = |_| Error::new(source.domains.display(), "out of memory", "");
    let mut gate = Gate::new(SLOTS_MAX, concurrency_remote, 1).map_err(no_memory)?;
    let rules = load(&source, gate.hasher())?.into_rules(&args.file)?;
    let Some(domains) = rules.table else {
        let help = format!("qpatch gate init {} writes one to start from", args.file.display());
        return Err(Error::new(source.domains.display(), "no such file", help));
    };
    let (lines, default) = (domains.len() as u64, default_of(&domains));
    gate.set_table(Some(domains), 0).map_err(no_memory)?;
    gate.set_routes(rules.routes, 0).map_err(no_memory)?;
    *gate.seen_mut() = rules.sites.seen;
    gate.set_map(rules.sites.map, 0).map_err(no_memory)?;

    let mut run = Run::new(gate, slots);
    run.machine.grow(concurrency_remote);
    let mut input = (&ahead[..]).chain(input);
    let mut line = Vec::new();
    while log::next_line(&mut input, &mut line).map_err(unread)? {
        run.line(&line);
    }
    run.finish();
    if run.deliveries == 0 {
        return Err(no_delivery(&name, &run.lines));
    }
    Ok(Outcome::new(&source.domains, lines, default, &run))
}

fn no_delivery(name: &str, lines: &Lines) -> Error {
    let mut what = format!("no delivery to a remote recipient in {}", count(lines.read, "line"));
    if lines.no_stamp > 0 {
        let which = match lines.no_stamp {
            all if all == lines.read => "all".to_string(),
            some => some.to_string(),
        };
        what.push_str(&format!(
            ", {which} of which were passed over because they begin with no time"
        ));
    }
    let expected =
        "@40000000499602dc075bca00 starting delivery 1: msg 2 to remote user@example.com";
    what.push_str(&format!(": expected lines such as `{expected}`"));
    let help = match lines.no_stamp {
        0 => "name the log of qmail-send",
        _ => {
            "name the log of qmail-send; times are read as multilog, tai64nlocal, splogger and syslog \
             write them, in ISO 8601, and in seconds since 1970"
        }
    };
    Error::new(name, what, help)
}

fn default_of(table: &Table) -> Limit {
    table.find(b"").map_or(Limit::Unlimited, |line| line.cap.limit)
}
