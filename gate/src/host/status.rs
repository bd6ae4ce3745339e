//! The status file, queue/lock/gatestatus: what the gate writes and qpatch reads.
//!
//! Text, one item a line, fields separated by tabs. The first line has a generation, and so has the last: a reader that
//! finds two different ones, or no last line, has looked while it was written, and looks again. The file is overwritten
//! in place (the spawner may not create files in queue/lock) and cut to length afterwards; what follows the last line
//! is left over from before and means nothing.
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
//! problem  TEXT
//! key  KIND  NAME  LIMIT  RUNNING  HELD  BUSY  DONE  PEAK  AWAY  RATE  MEAN-MS  EFFECTIVE  OBJECTED  SUSPENDED  ERROR  named | -  HELD-EVER
//! unlisted  KEYS
//! end  GENERATION
//! ```
//!
//! A limit is a number or `-` for unlimited; the effective one is lower while the server takes no more. OBJECTED is
//! when it said so the last time, SUSPENDED until when nothing starts, both in seconds since 1970, or 0. RATE is
//! deliveries a second over about ten seconds. `named`: the key is a group, a relay, or a domain with a line of its
//! own. Bytes of names and texts that are not printable ASCII are written as `%` and two hexadecimal digits, and so is
//! `%`.
//!
//! START-TICKS, PROGRAM and NAMESPACE are the process's as Linux tells them ([`crate::host::process`]); 0 and nothing
//! where it does not. `file`: the limits of control/concurrencydomains as it is now are in force; `kept`: that file
//! cannot be used, and those of an earlier one are; `part`: no earlier one is known, and its good lines are, with 20
//! for all other domains; `none`: no limit is.
//!
//! # Versions
//! What a later version adds stands at the end of a line, or in a line of a new kind. A reader passes over fields that
//! are more than it knows, lines whose first word it does not know, and keys of such a kind; a word that it does not
//! know in the place of `kept` means that no limit is in force. What a later version added and an earlier gate did not
//! write is taken for not known: that is all after PID, LOADED and ERROR in the lines above. A change that cannot be
//! made in this way gets another number in the first line, and a reader refuses a number that is not its own.
//!
//! # Several spawners
//! A tree with several remote channels has a qmail-rspawn for each. Each writes a file of its own: gatestatus,
//! gatestatus.1, gatestatus.2 and so on. An empty one has never been written.

#![forbid(unsafe_code)]

use std::fmt::{self, Write as _};

use crate::control::name::host_part;
use crate::control::route::without_credentials;
use crate::control::table::Limit;
use crate::core::gate::{Gate, Key, Totals};
use crate::core::rules::KeyKind;
use crate::host::process::Identity;
pub use crate::util::escape::{Escaped, unescaped_bytes};
use crate::util::memory::{OutOfMemory, Text};

/// So many keys are listed; the busiest ones.
pub const KEYS_MAX: usize = 1000;

/// The largest file that a reader accepts, in bytes: a thousand keys with the longest names and errors, all escaped,
/// are less.
pub const FILE_MAX: usize = 4 << 20;

/// What the gate as a whole does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Limits count.
    Limits,
    /// There is no control/concurrencydomains: everything goes.
    Stock,
    /// An internal error: everything goes.
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
    /// Those of control/concurrencydomains as it is.
    File,
    /// Those of an earlier one, because the file as it is cannot be used.
    Kept,
    /// The good lines of the file as it is, and 20 for all other domains: it cannot be used, and no earlier one is
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

/// What the host adds to what the gate knows.
#[derive(Clone, Copy, Debug)]
pub struct Frame {
    /// Counts the writes.
    pub generation: u64,
    /// Now, in seconds since 1970.
    pub written_secs: u64,
    /// The spawner's process.
    pub pid: u32,
    /// What tells it from another one with this number.
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
        write_key(out, key, frame, named)?;
    }
    writeln!(out, "unlisted\t{unlisted}\nend\t{generation}")
}

fn write_limit(out: &mut Text, limit: Limit) -> fmt::Result {
    match limit {
        Limit::AtMost(limit) => write!(out, "{limit}"),
        Limit::Unlimited => out.write_char('-'),
    }
}

fn write_key(out: &mut Text, key: &Key, frame: &Frame, named: bool) -> fmt::Result {
    let now_us = frame.now_us;
    // Both may be on either side of now.
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
    // Not as a float: formatting those is 20 KB of code in qmail-rspawn.
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
    write_limit(out, key.limit())?;
    writeln!(
        out,
        "\t{}\t{}\t{}\t{}\t{}",
        secs(key.objected_us()),
        secs(key.suspended_until(now_us)),
        Escaped(&key.error),
        if named { NAMED } else { "-" },
        key.held_ever
    )
}

const NAMED: &str = "named";

fn parse_limit(text: &str) -> Option<Limit> {
    match text {
        "-" => Some(Limit::Unlimited),
        number => number.parse().ok().map(Limit::AtMost),
    }
}

/// A name or text of the file, as [`Escaped`] writes it, whoever wrote the file.
fn escaped(text: &str) -> String {
    Escaped(&unescaped_bytes(text.as_bytes()).unwrap_or_default()).to_string()
}

/// A line of the file, in which everything that is not printable ASCII, but for the tabs, is escaped.
fn printable(line: &[u8]) -> String {
    let mut text = String::with_capacity(line.len());
    for &byte in line {
        match byte {
            b'\t' | b'%' => text.push(char::from(byte)),
            byte => text.push_str(&Escaped(&[byte]).to_string()),
        }
    }
    text
}

/// A key as the file has it.
#[derive(Clone, Debug, PartialEq)]
pub struct KeyStatus {
    /// What its name is.
    pub kind: KeyKind,
    /// Its name, escaped: printable ASCII, and no two names are the same. [`unescaped_bytes`] gives the name.
    pub name: String,
    /// How many may run.
    pub limit: Limit,
    /// How many run.
    pub running: u32,
    /// How many are held.
    pub held: u32,
    /// How many were sent away, ever.
    pub busy: u64,
    /// How many ran and ended, ever.
    pub done: u64,
    /// The most that ran at once.
    pub peak: u32,
    /// How many are away now, to come back.
    pub away: u32,
    /// Deliveries a second.
    pub rate: f64,
    /// The mean service time in milliseconds; 0 when it is not known.
    pub mean_ms: u64,
    /// How many may run now; lower than the limit while its server takes no more.
    pub effective: Limit,
    /// When its server objected the last time, in seconds since 1970; 0: never, or it does not matter any more.
    pub objected_secs: u64,
    /// Until when nothing starts, in seconds since 1970; 0: it is not suspended.
    pub suspended_secs: u64,
    /// What the last failed delivery printed, escaped.
    pub error: String,
    /// Whether the operator has named it: a group, a relay, or a domain with a line of its own.
    pub named: bool,
    /// How many were held for some time, ever.
    pub held_ever: u64,
}

/// The whole file.
#[derive(Clone, Debug, PartialEq)]
pub struct Status {
    /// Counts the writes.
    pub generation: u64,
    /// When it was written, in seconds since 1970. A gate that has nothing to say writes once a minute.
    pub written_secs: u64,
    /// The spawner's process.
    pub pid: u32,
    /// When that started, in clock ticks since the machine did; 0: not known.
    pub start_ticks: u64,
    /// The name of its program, escaped; empty: not known.
    pub program: String,
    /// The number of its namespace of process numbers; 0: not known.
    pub namespace: u64,
    /// What the gate does.
    pub state: State,
    /// Which limits are in force.
    pub in_force: InForce,
    /// conf-spawn.
    pub slots: u32,
    /// qmail-send's.
    pub concurrency_remote: u32,
    /// Slots that are running or held.
    pub in_use: u32,
    /// Slots that are held.
    pub held: u32,
    /// Sums over all keys since the spawner started.
    pub totals: Totals,
    /// Domains in the table.
    pub domains: u64,
    /// Routes in smtproutes.
    pub routes: u64,
    /// Domains in concurrencysites.
    pub mapped: u64,
    /// Next hops that were seen at an address of a site.
    pub seen: u64,
    /// When the table was loaded, in seconds since 1970; 0 if never.
    pub loaded_secs: u64,
    /// What is wrong with the files, in printable ASCII.
    pub problems: Vec<String>,
    /// The keys.
    pub keys: Vec<KeyStatus>,
    /// How many more keys there are.
    pub unlisted: u64,
}

/// Why a status file cannot be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StatusError {
    /// It is empty: no gate has written yet.
    Empty,
    /// The generations differ, or the end is missing: read it again.
    Torn,
    /// It is of another version, or no status file.
    Foreign,
    /// A line that should not be; its number from 1.
    Line(usize),
}

impl fmt::Display for StatusError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty => f.write_str("empty: no gate has written it yet"),
            Self::Torn => f.write_str("read while it was being written"),
            Self::Foreign => f.write_str("not a status file of this version"),
            Self::Line(line) => write!(f, "line {line} is not understood"),
        }
    }
}

impl std::error::Error for StatusError {}

impl Status {
    /// Parses a file. What a later version may have added is passed over (see the module).
    ///
    /// # Errors
    /// See [`StatusError`].
    pub fn parse(bytes: &[u8]) -> Result<Self, StatusError> {
        if bytes.iter().all(|&byte| byte == 0) {
            return Err(StatusError::Empty);
        }
        let mut lines = bytes.split(|&byte| byte == b'\n').map(printable);
        let head = lines.next().unwrap_or_default();
        let head: Vec<&str> = head.split('\t').collect();
        let ["qpatch-gate", "1", generation, ..] = head[..] else {
            return Err(StatusError::Foreign);
        };
        let generation = generation.parse().map_err(|_| StatusError::Torn)?;
        let mut status = Self {
            generation,
            written_secs: 0,
            pid: 0,
            start_ticks: 0,
            program: String::new(),
            namespace: 0,
            state: State::Stock,
            in_force: InForce::None,
            slots: 0,
            concurrency_remote: 0,
            in_use: 0,
            held: 0,
            totals: Totals::default(),
            domains: 0,
            routes: 0,
            mapped: 0,
            seen: 0,
            loaded_secs: 0,
            problems: Vec::new(),
            keys: Vec::new(),
            unlisted: 0,
        };
        let mut bad = None;
        for (number, line) in (2..).zip(lines) {
            let fields: Vec<&str> = line.split('\t').collect();
            if fields[0] == "end" {
                let same = fields.get(1).is_some_and(|field| field.parse() == Ok(generation));
                return match bad {
                    _ if !same => Err(StatusError::Torn),
                    Some(line) => Err(StatusError::Line(line)),
                    None => Ok(status),
                };
            }
            if status.line(&fields).is_none() {
                // It may be torn: that is known at the end only.
                bad.get_or_insert(number);
            }
        }
        Err(StatusError::Torn)
    }

    fn line(&mut self, fields: &[&str]) -> Option<()> {
        match *fields {
            ["written", secs, ..] => self.written_secs = secs.parse().ok()?,
            ["pid", pid, ref added @ ..] => {
                self.pid = pid.parse().ok()?;
                if let [start_ticks, program, namespace, ..] = *added {
                    self.start_ticks = start_ticks.parse().ok()?;
                    self.program = escaped(program);
                    self.namespace = namespace.parse().ok()?;
                }
            }
            ["state", state, ..] => {
                let states = [State::Limits, State::Stock, State::Failed];
                self.state = states.into_iter().find(|known| known.name() == state)?;
            }
            ["slots", slots, concurrency_remote, in_use, held, ..] => {
                self.slots = slots.parse().ok()?;
                self.concurrency_remote = concurrency_remote.parse().ok()?;
                self.in_use = in_use.parse().ok()?;
                self.held = held.parse().ok()?;
            }
            ["total", asked, busy, held, expired, done, refused, suspended, ..] => {
                self.totals = Totals {
                    asked: asked.parse().ok()?,
                    busy: busy.parse().ok()?,
                    held: held.parse().ok()?,
                    expired: expired.parse().ok()?,
                    done: done.parse().ok()?,
                    refused: refused.parse().ok()?,
                    suspended: suspended.parse().ok()?,
                };
            }
            ["table", domains, routes, loaded, ref added @ ..] => {
                self.domains = domains.parse().ok()?;
                self.routes = routes.parse().ok()?;
                self.loaded_secs = loaded.parse().ok()?;
                let words = [InForce::File, InForce::Kept, InForce::Part, InForce::None];
                self.in_force = match added.first() {
                    Some(word) => words
                        .into_iter()
                        .find(|known| known.name() == *word)
                        .unwrap_or(InForce::None),
                    // An earlier gate said no more than that it has a table.
                    None if self.state == State::Limits => InForce::File,
                    None => InForce::None,
                };
            }
            ["sites", mapped, seen, ..] => {
                self.mapped = mapped.parse().ok()?;
                self.seen = seen.parse().ok()?;
            }
            ["problem", text, ..] => self.problems.push(text.to_string()),
            [
                "key",
                kind,
                name,
                limit,
                running,
                held,
                busy,
                done,
                peak,
                away,
                rate,
                mean_ms,
                effective,
                objected,
                suspended,
                error,
                ref added @ ..,
            ] => {
                // A later version's.
                let Some(kind) = KeyKind::parse(kind) else { return Some(()) };
                let name = unescaped_bytes(name.as_bytes())?;
                self.keys.push(KeyStatus {
                    kind,
                    name: match kind {
                        // An earlier build, which may run still, took the password of a relay for a part of its name.
                        KeyKind::Relay => Escaped(host_part(&name)).to_string(),
                        KeyKind::Domain | KeyKind::Group | KeyKind::Candidates => {
                            Escaped(&name).to_string()
                        }
                    },
                    limit: parse_limit(limit)?,
                    running: running.parse().ok()?,
                    held: held.parse().ok()?,
                    busy: busy.parse().ok()?,
                    done: done.parse().ok()?,
                    peak: peak.parse().ok()?,
                    away: away.parse().ok()?,
                    rate: rate.parse().ok().filter(|rate: &f64| rate.is_finite())?,
                    mean_ms: mean_ms.parse().ok()?,
                    effective: parse_limit(effective)?,
                    objected_secs: objected.parse().ok()?,
                    suspended_secs: suspended.parse().ok()?,
                    error: Escaped(without_credentials(&unescaped_bytes(error.as_bytes())?))
                        .to_string(),
                    named: added.first() == Some(&NAMED),
                    held_ever: added.get(1).map_or(Some(0), |number| number.parse().ok())?,
                });
            }
            ["unlisted", count, ..] => self.unlisted = count.parse().ok()?,
            // One of these with too few fields.
            [
                "written" | "pid" | "state" | "slots" | "total" | "table" | "sites" | "problem"
                | "key" | "unlisted",
                ..,
            ] => return None,
            // A later version's.
            _ => {}
        }
        Some(())
    }
}
