//! The status file, queue/lock/gatestatus, and how the gate writes it. The crate qpatch-gate-status reads it.
//!
//! The file is text: one item a line, with fields separated by tabs. The first line has a generation, and so has the
//! last. A reader that finds two different ones, or no last line, has read while the gate wrote, and reads again. The
//! file is overwritten in place (the spawner may not create files in queue/lock) and cut to length afterwards; what
//! follows the last line is left over from before and means nothing.
//!
//! ```text
//! qpatch-gate  1  GENERATION
//! written  SECONDS-SINCE-1970
//! pid  PID  START-TICKS  PROGRAM  NAMESPACE
//! state  limits | stock | failed
//! slots  CONF-SPAWN  CONCURRENCYREMOTE  IN-USE  HELD
//! total  ASKED  BUSY  HELD  EXPIRED  DONE  REFUSED  SUSPENDED
//! table  DOMAINS  ROUTES  LOADED-SECONDS-SINCE-1970  file | kept | part | none
//! sites  MAPPED  SEEN
//! lease  SEQ  none | valid | settling | over  HOSTS
//! problem  TEXT
//! key  KIND  NAME  LIMIT  RUNNING  HELD  BUSY  DONE  PEAK  AWAY  RATE  MEAN-MS  EFFECTIVE  OBJECTED  SUSPENDED  ERROR  named | -  HELD-EVER  RATES  NEXT-MS  HOUR-LEFT  DAY-LEFT  SHARE
//! unlisted  KEYS
//! end  GENERATION
//! ```
//!
//! A limit is a number or `-` for unlimited. EFFECTIVE is lower than LIMIT while the server takes no more. OBJECTED is
//! when the server last said so, SUSPENDED is until when nothing starts; both are seconds since 1970, or 0. RATE is
//! deliveries a second over about ten seconds. RATES are those of the table, as in `20/s,600/m`, or `-`. NEXT-MS is the
//! time until they allow the next start, in milliseconds from WRITTEN on; 0: now. HOUR-LEFT and DAY-LEFT are how many
//! starts the rates of an hour and of a day allow now, or `-`. SHARE is how many of the limit this host may run, or `-` if
//! the limit is not shared with other hosts. `named`: the key is a group, a relay, or a domain with a
//! line of its own. Bytes of names and texts that are not printable ASCII are written as `%` and two hexadecimal
//! digits, and so is `%`.
//!
//! START-TICKS, PROGRAM and NAMESPACE identify the process on Linux ([`crate::host::process`]); elsewhere they are 0
//! and empty. The last field of `table` says which limits are in force. `file`: those of control/concurrencydomains as
//! it is now. `kept`: those of an earlier file, because that file cannot be used. `part`: its good lines, and 20 for
//! all other domains, because no earlier file is known. `none`: no limits.
//!
//! `lease` has the SEQ of the queue/lock/gatelease that is in force ([`crate::host::lease`]), 0 for none, and how far the
//! lease is.
//!
//! # Versions
//! A later version adds fields at the end of a line, or lines of a new kind. A reader ignores additional fields, lines
//! whose first word it does not know, and keys of a kind that it does not know. A word that it does not know in the
//! place of `kept` means that no limit is in force. Fields that an earlier gate did not write are not known: these are
//! all after PID, LOADED and ERROR in the lines above. A change that cannot be made in this way gets another number in
//! the first line, and a reader refuses a number that is not its own.
//!
//! # Several spawners
//! A tree with several remote channels has a qmail-rspawn for each. Each writes a file of its own: gatestatus,
//! gatestatus.1, gatestatus.2 and so on. An empty file has never been written.

#![forbid(unsafe_code)]

use std::fmt::{self, Write as _};

use crate::control::table::Limit;
use crate::core::gate::{Gate, Key, Totals};
use crate::core::host_share::{LeasePhase, NO_SHARE};
use crate::core::start_log::key_id;
use crate::host::process::Identity;
use crate::util::escape::Escaped;
use crate::util::memory::{OutOfMemory, Text};

/// The most keys that are listed. If there are more, the busiest ones are listed.
pub const KEYS_MAX: usize = 1000;

/// What the gate as a whole does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Limits are in force.
    Limits,
    /// There is no control/concurrencydomains: every delivery starts.
    Stock,
    /// An internal error: every delivery starts.
    Failed,
}

impl State {
    /// Its name in the file.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Limits => "limits",
            Self::Stock => "stock",
            Self::Failed => "failed",
        }
    }
}

/// Which limits are in force.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InForce {
    /// Those of control/concurrencydomains as it is now.
    File,
    /// Those of an earlier file, because the file as it is now cannot be used.
    Kept,
    /// The good lines of the file as it is now, and 20 for all other domains: it has errors, and no earlier file is
    /// known.
    Part,
    /// None.
    None,
}

impl InForce {
    /// Its name in the file.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::File => "file",
            Self::Kept => "kept",
            Self::Part => "part",
            Self::None => "none",
        }
    }
}

/// What the status needs besides the gate itself.
#[derive(Clone, Copy, Debug)]
pub struct Frame {
    /// Counts the writes.
    pub generation: u64,
    /// Now, in seconds since 1970.
    pub written_secs: u64,
    /// The spawner's process.
    pub pid: u32,
    /// What distinguishes it from another process with this number.
    pub identity: Identity,
    /// What the gate does.
    pub state: State,
    /// Which limits are in force.
    pub in_force: InForce,
    /// conf-spawn.
    pub slots: u32,
    /// qmail-send's.
    pub concurrency_remote: u32,
    /// When the table was loaded, in seconds since 1970; 0 if never.
    pub loaded_secs: u64,
    /// Which version of the lease is in force; 0: none.
    pub lease_seq: u64,
    /// Now, on the gate's clock.
    pub now_us: u64,
}

/// Writes the whole file into `out`, which is emptied first. `problems` writes the problem lines' texts.
///
/// # Errors
/// No memory.
pub fn write(
    out: &mut Text,
    frame: &Frame,
    gate: &Gate,
    problems: &[Option<crate::control::problem::Problem>],
) -> Result<(), OutOfMemory> {
    out.bytes.clear();
    render(out, frame, gate, problems).map_err(|_| OutOfMemory)
}

fn render(
    out: &mut Text,
    frame: &Frame,
    gate: &Gate,
    problems: &[Option<crate::control::problem::Problem>],
) -> fmt::Result {
    let Frame { generation, written_secs, pid, slots, concurrency_remote, loaded_secs, .. } =
        *frame;
    let Identity { start_ticks, namespace, .. } = frame.identity;
    writeln!(
        out,
        "qpatch-gate\t1\t{generation}\nwritten\t{written_secs}\n\
         pid\t{pid}\t{start_ticks}\t{}\t{namespace}\nstate\t{}",
        Escaped(frame.identity.name()),
        frame.state.name()
    )?;
    writeln!(out, "slots\t{slots}\t{concurrency_remote}\t{}\t{}", gate.in_use(), gate.held())?;
    let Totals { asked, busy, held, expired, done, refused, suspended } = gate.totals();
    writeln!(out, "total\t{asked}\t{busy}\t{held}\t{expired}\t{done}\t{refused}\t{suspended}")?;
    let rules = gate.rules();
    let domains = rules.table.as_ref().map_or(0, crate::control::table::Table::len);
    let in_force = frame.in_force.name();
    writeln!(out, "table\t{domains}\t{}\t{loaded_secs}\t{in_force}", rules.routes.len())?;
    writeln!(out, "sites\t{}\t{}", rules.sites.map.len(), rules.sites.seen.len())?;
    let shares = gate.host_shares();
    let (seq, phase) = (frame.lease_seq, shares.phase().name());
    if shares.phase() != LeasePhase::None {
        writeln!(out, "lease\t{seq}\t{phase}\t{}", shares.hosts())?;
    }
    for problem in problems.iter().flatten() {
        writeln!(out, "problem\t{problem}")?;
    }
    let mut listed: Vec<&Key> = Vec::new();
    listed.try_reserve(gate.keys().count()).map_err(|_| fmt::Error)?;
    listed.extend(gate.keys());
    let mut unlisted = 0;
    if listed.len() > KEYS_MAX {
        unlisted = listed.len() - KEYS_MAX;
        let activity = |key: &&Key| std::cmp::Reverse((key.running + key.held, key.busy, key.done));
        listed.select_nth_unstable_by_key(KEYS_MAX, activity);
        listed.truncate(KEYS_MAX);
    }
    for key in listed {
        let named = rules.has_named(key.kind, &key.name);
        write_key(out, key, frame, gate, named)?;
    }
    writeln!(out, "unlisted\t{unlisted}\nend\t{generation}")
}

fn write_limit(out: &mut Text, limit: Limit) -> fmt::Result {
    match limit {
        Limit::AtMost(limit) => write!(out, "{limit}"),
        Limit::Unlimited => out.write_char('-'),
    }
}

fn write_key(out: &mut Text, key: &Key, frame: &Frame, gate: &Gate, named: bool) -> fmt::Result {
    let now_us = frame.now_us;
    // Such a time may be before or after now.
    let secs = |at_us: Option<u64>| {
        at_us.map_or(0, |at_us| {
            let written_secs = frame.written_secs.saturating_sub(now_us / 1_000_000);
            written_secs.saturating_add(at_us.div_ceil(1_000_000))
        })
    };
    write!(out, "key\t{}\t{}\t", key.kind.name(), Escaped(&key.name))?;
    write_limit(out, key.cap.limit)?;
    let mean_ms =
        if key.pace.is_known() { (key.pace.mean_secs() * 1000.0).round() as u64 } else { 0 };
    // Not as a float: formatting floats takes 20 KB of code in qmail-rspawn.
    let tenths = (key.pace.recent_rate(now_us) * 10.0).round() as u64;
    write!(
        out,
        "\t{}\t{}\t{}\t{}\t{}\t{}\t{}.{}\t{mean_ms}\t",
        key.running,
        key.held,
        key.busy,
        key.done,
        key.peak,
        key.recall.away().saturating_add(key.away_by_domain),
        tenths / 10,
        tenths % 10,
    )?;
    match key.limit() {
        Limit::AtMost(limit) => write!(out, "{}", limit.min(key.share))?,
        Limit::Unlimited => out.write_char('-')?,
    }
    write!(
        out,
        "\t{}\t{}\t{}\t{}\t{}",
        secs(key.objected_us()),
        secs(key.suspended_until(now_us)),
        Escaped(&key.error),
        if named { NAMED } else { "-" },
        key.held_ever
    )?;
    write_rates(out, key, now_us, gate)?;
    match key.share {
        NO_SHARE => out.write_str("\t-\n"),
        share => writeln!(out, "\t{share}"),
    }
}

fn write_rates(out: &mut Text, key: &Key, now_us: u64, gate: &Gate) -> fmt::Result {
    if key.cap.rates.is_none() {
        return out.write_str("\t-\t0\t-\t-");
    }
    let next_ms = key.start_rate.due_us().saturating_sub(now_us).div_ceil(1000);
    write!(out, "\t{}\t{next_ms}", key.cap.rates)?;
    let left =
        gate.start_log().map(|log| log.left(key_id(key.kind, &key.name), &key.cap.rates, now_us));
    for left in left.unwrap_or_default() {
        match left {
            Some(left) => write!(out, "\t{left}")?,
            None => out.write_str("\t-")?,
        }
    }
    Ok(())
}

/// What a line of a key says if the operator has named it.
pub const NAMED: &str = "named";
