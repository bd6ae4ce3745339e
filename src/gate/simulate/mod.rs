//! `qpatch gate simulate`: what limits would have done to the deliveries in a log.
//!
//! **Time.** The gate's own core runs on the log's clock. A delivery asks for a place at the time when the log says
//! that it was first handed to qmail-rspawn, and runs for as long as it did in the log. It enters the machine when its
//! end has been read, in the order in which the deliveries were handed out. So the machine's clock is behind the log by
//! the longest delivery at most. Memory holds what is between the two, and what runs or waits.
//!
//! **Reports.** The gate gets the text of each report from the log, so limits that learn move, and mail finds its site
//! by the address that took it. How a server would have replied to fewer deliveries at once is not known: a delivery
//! that was refused in the log is refused here. So limits fall lower, and rise later, than they would. A delivery that
//! would have gone back as busy, because it was refused while others ran, takes a place for no time when it comes
//! again: its next try is in the log as a delivery of its own.
//!
//! `--try` runs several gates beside each other, and `--html` draws what the machine remembers ([`curves`]).
//!
//! [`account`] makes whole deliveries of a log's lines, [`clock`] is the log's time, [`machine`] is qmail-send and
//! qmail-rspawn around the gate, [`replay`] takes the deliveries through it, and [`outcome`] prints the result.

mod account;
mod clock;
mod curves;
mod keys;
mod log_report;
mod machine;
mod outcome;
mod page;
mod replay;
mod tried;
#[cfg(test)]
mod written;

use std::fs;
use std::path::PathBuf;

use clap::Args;
use qpatch_gate::gate::{CONCURRENCY_REMOTE, Gate, SLOTS_MAX};
use qpatch_gate::name::Hasher;
use qpatch_gate::replies::Replies;
use qpatch_gate::rules::Rules;
use qpatch_gate::table::{Limit, Table};

use super::source::{Source, load};
use super::text::printable;
use crate::error::Error;
use crate::output::{CommandResult, Format, count, print};
use crate::qmail::log::Log;
use account::LogAccount;
use outcome::{SimulationOutcome, TableFigures};
use replay::{Replay, SlotSource};
use tried::{TriedKey, TriedLimits, TriesOutcome};

/// Arguments of `qpatch gate simulate`.
#[derive(Debug, Args)]
pub struct Simulate {
    /// A file with lines domain:limit[:group[:words]], or a folder where qmail is installed;
    /// then its smtproutes, concurrencyreplies, concurrencysites and known sites count, too
    #[arg(value_name = "FILE|QMAILHOME")]
    file: PathBuf,
    /// qmail-send's log, - for standard input; may be repeated. Files are read in the order of their
    /// first times, and each one once; a note names copies. Times are as multilog, svlogd, s6-log,
    /// tai64nlocal, splogger, syslog daemons, journalctl, docker and kubectl write them; gzip, xz, zstd and bzip2 are unpacked
    #[arg(long, value_name = "LOG", required = true)]
    log: Vec<PathBuf>,
    /// More logs, as from a shell that expands `--log /var/log/qmail/@*`
    #[arg(value_name = "LOG")]
    more: Vec<PathBuf>,
    /// The most deliveries at once, instead of the figure in the log's status lines
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=65000))]
    concurrencyremote: Option<u32>,
    /// Also print what other limits of one domain, relay or group would have done; may be up to 12
    #[arg(long = "try", value_name = "KEY:N,N...", value_parser = TriedLimits::parse)]
    tried: Option<TriedLimits>,
    /// Also write a page with pictures into this file: deliveries at once over time with and without
    /// the limits, who waits how long, and what servers said
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// The output format
    #[arg(long, value_enum, default_value_t = Format::Table)]
    format: Format,
}

/// How many lines are searched for status lines before the first delivery.
const AHEAD_LINES: u64 = 20_000;

/// Runs it.
///
/// # Errors
/// A file cannot be read, has errors, or has no deliveries.
pub fn run(args: &Simulate) -> CommandResult {
    let outcome = simulate(args)?;
    print(|out| match args.format {
        Format::Table => outcome.table(out),
        Format::Json => {
            serde_json::to_writer_pretty(&mut *out, &outcome)?;
            writeln!(out)
        }
    })
}

fn simulate(args: &Simulate) -> Result<SimulationOutcome, Error> {
    let logs = [&args.log[..], &args.more].concat();
    let mut log = Log::open(&logs)?;
    let name = logs.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(" ");

    let source = Source::of(&args.file)?;
    // The gate's hasher is known later, and the log's first lines are read before.
    let rules = load(&source, Hasher::new(1)).and_then(|loaded| loaded.into_rules(&args.file));
    let replies = rules.map_err(|error| table_first(args, error))?.replies;
    let mut account = LogAccount::new(replies);
    account.keeps_words = args.html.is_some();
    while args.concurrencyremote.is_none()
        && account.lines.read < AHEAD_LINES
        && let Some(entry) = log.next_entry()?
    {
        account.entry(&entry);
    }
    let (slots, concurrency_remote) = match (args.concurrencyremote, account.concurrency_remote()) {
        (Some(given), _) => (SlotSource::Given, given),
        (None, Some(status)) => (SlotSource::Status, status),
        (None, None) => (SlotSource::Used, CONCURRENCY_REMOTE),
    };

    let no_memory = |_| Error::new(source.domains.display(), "out of memory", "");
    let new_run = |gate: Gate| Replay::new(gate, slots, concurrency_remote);
    let (gate, table) =
        gate_of(args, &source, concurrency_remote, &account.replies, |_, _| Ok(()))?;
    let mut runs = vec![new_run(gate)];
    let mut tried_key = None;
    let tried_limits = args.tried.as_ref().map_or(&[][..], |tried| &tried.limits);
    for &limit in tried_limits {
        let name = args.tried.as_ref().map_or("", |tried| &tried.key);
        let (gate, _) =
            gate_of(args, &source, concurrency_remote, &account.replies, |rules, text| {
                let key = match &tried_key {
                    Some(key) => key,
                    None => {
                        let key = TriedKey::find(name, rules);
                        if !key.takes_limit(name, text, rules).map_err(no_memory)? {
                            return Err(no_key(name));
                        }
                        tried_key.insert(key)
                    }
                };
                let (table, problems) =
                    Table::parse(&key.with_limit(text, limit), rules.hasher).map_err(no_memory)?;
                if problems.errors() > 0 {
                    return Err(no_key(name));
                }
                rules.table = Some(table);
                Ok(())
            })?;
        runs.push(new_run(gate));
    }
    if args.html.is_some() {
        runs[0].machine.record();
    }
    loop {
        Replay::take(&mut runs, &mut account);
        let Some(entry) = log.next_entry()? else { break };
        account.entry(&entry);
    }
    account.finish(&log);
    Replay::take(&mut runs, &mut account);
    runs.iter_mut().for_each(Replay::finish);
    let run = &runs[0];
    account.lines.left_out += run.left_out;
    if run.deliveries == 0 {
        return Err(no_delivery(&name, &account));
    }
    let mut outcome = SimulationOutcome::new(&source.domains, table, run, &account);
    if let Some(key) = tried_key {
        let tries = TriesOutcome::new(&key, tried_limits, &runs);
        let none = || {
            let what = format!("no delivery of the log counts under {}", key.text());
            Error::new(
                "--try",
                what,
                "the column KEY has the names of those that do; without --try it is printed",
            )
        };
        outcome.tries = Some(tries.ok_or_else(none)?);
    }
    if let Some(path) = &args.html {
        let html = page::page(&outcome, run, outcome.tries.as_ref());
        fs::write(path, html).map_err(|error| Error::io(path, "write", &error))?;
    }
    Ok(outcome)
}

/// A shell that expands `--log *` gives --log one name. The next one then is taken for the table.
fn table_first(args: &Simulate, error: Error) -> Error {
    let Some(last) = args.more.last() else { return error };
    let help = format!(
        "{} is taken for the table, because it is the first name without --log; is it {}? Then write:\n  \
         qpatch gate simulate {} --log LOG...",
        args.file.display(),
        last.display(),
        last.display()
    );
    Error { help, ..error }
}

fn no_key(name: &str) -> Error {
    let what = format!("expected a domain, a relay or a group, found {}", printable(name));
    Error::new("--try", what, "the column KEY has the names of groups and relays")
}

/// A gate with the rules of the files, and what its table is. `change` may put another table into the rules; it also
/// gets the text of concurrencydomains.
fn gate_of(
    args: &Simulate,
    source: &Source,
    concurrency_remote: u32,
    replies: &Replies,
    mut change: impl FnMut(&mut Rules, &[u8]) -> Result<(), Error>,
) -> Result<(Gate, TableFigures), Error> {
    let no_memory = |_| Error::new(source.domains.display(), "out of memory", "");
    let mut gate = Gate::new(SLOTS_MAX, concurrency_remote, 1).map_err(no_memory)?;
    let mut loaded = load(source, gate.hasher())?;
    let text = loaded.domains.take().map(|(_, text)| text).unwrap_or_default();
    let mut rules = loaded.into_rules(&args.file)?;
    change(&mut rules, &text)?;
    let Some(domains) = rules.table else {
        let help = format!("qpatch gate init {} writes one to start from", args.file.display());
        return Err(Error::new(source.domains.display(), "no such file", help));
    };
    let figures = TableFigures { lines: domains.len() as u64, default: default_of(&domains) };
    gate.set_table(Some(domains), 0).map_err(no_memory)?;
    gate.set_routes(rules.routes, 0).map_err(no_memory)?;
    *gate.seen_mut() = rules.sites.seen;
    gate.set_map(rules.sites.map, 0).map_err(no_memory)?;
    gate.set_replies(log_report::short(replies).map_err(no_memory)?, 0);
    Ok((gate, figures))
}

/// The error for a log without a usable delivery: why, and the first line that could not be used.
fn no_delivery(name: &str, account: &LogAccount) -> Error {
    let lines = &account.lines;
    let mut what = format!("no delivery to a remote recipient in {}", count(lines.read, "line"));
    if lines.no_stamp > 0 {
        let which = match lines.no_stamp {
            all if all == lines.read => "all".to_string(),
            some => some.to_string(),
        };
        what.push_str(&format!(", {which} of which have no time in a known format"));
    }
    let first = match &lines.first_unusable {
        none if none.is_empty() => account.first_foreign_line().unwrap_or_default(),
        first => first,
    };
    if !first.is_empty() {
        what.push_str(&format!("; the first line that cannot be used is {first}"));
    }
    for cut in &lines.cut {
        what.push_str(&format!("; ends too early: {cut}"));
    }
    let expected =
        "@40000000499602dc075bca00 starting delivery 1: msg 2 to remote user@example.com";
    what.push_str(&format!(": expected lines such as `{expected}`"));
    let help = match lines.no_stamp {
        0 => "name the log of qmail-send",
        _ => {
            "name the log of qmail-send, with the times that its logger writes: \
             man qpatch-gate-simulate lists them. journalctl -o cat and docker logs without -t leave them out"
        }
    };
    Error::new(name, what, help)
}

fn default_of(table: &Table) -> Limit {
    table.find(b"").map_or(Limit::Unlimited, |line| line.cap.limit)
}
