//! Reads the status file of a gate, queue/lock/gatestatus. The head of gate/src/host/status.rs, which writes it, has
//! the format.
//!
//! Reader and writer may be of different versions. What a later gate adds is passed over; what an earlier one did not
//! write is taken as not known. Nothing that the file says is trusted: each name and text comes out as printable ASCII.
//! A file that was read while the gate wrote it is [`StatusError::Torn`]; the caller reads it again.
//!
//! The mail server does not read its own status, so this is a crate of its own.

#![forbid(unsafe_code)]

use std::fmt;

use qpatch_gate::escape::{Escaped, unescaped_bytes};
use qpatch_gate::gate::Totals;
use qpatch_gate::host_share::LeasePhase;
use qpatch_gate::name::host_part;
use qpatch_gate::route::without_credentials;
use qpatch_gate::rules::KeyKind;
use qpatch_gate::status::{InForce, NAMED, State};
use qpatch_gate::table::Limit;

/// The largest file that a reader accepts, in bytes. A thousand keys with the longest names and errors, all escaped,
/// are less.
pub const FILE_MAX: usize = 4 << 20;

fn parse_limit(text: &str) -> Option<Limit> {
    match text {
        "-" => Some(Limit::Unlimited),
        number => number.parse().ok().map(Limit::AtMost),
    }
}

/// How many starts are left; `-` and a missing field mean that there is no such rate.
fn parse_left(field: Option<&&str>) -> Option<Option<u32>> {
    match field {
        None | Some(&"-") => Some(None),
        Some(number) => number.parse().ok().map(Some),
    }
}

/// A name or text of the file, escaped again: the file may have been written by another program.
fn escaped(text: &str) -> String {
    Escaped(&unescaped_bytes(text.as_bytes()).unwrap_or_default()).to_string()
}

/// A line of the file, with all bytes escaped that are neither printable ASCII nor tabs.
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
    /// How many busy answers there were since the spawner started.
    pub busy: u64,
    /// How many ran and ended since the spawner started.
    pub done: u64,
    /// The most that ran at once.
    pub peak: u32,
    /// How many are away now.
    pub away: u32,
    /// Deliveries a second.
    pub rate: f64,
    /// The mean service time in milliseconds; 0 when it is not known.
    pub mean_ms: u64,
    /// How many may run now; lower than the limit while its server takes no more.
    pub effective: Limit,
    /// When its server last objected, in seconds since 1970; 0: never, or so long ago that it does not matter.
    pub objected_secs: u64,
    /// Until when nothing starts, in seconds since 1970; 0: it is not suspended.
    pub suspended_secs: u64,
    /// What the last failed delivery printed, escaped.
    pub error: String,
    /// Whether the operator has named it: a group, a relay, or a domain with a line of its own.
    pub named: bool,
    /// How many were held for some time since the spawner started.
    pub held_ever: u64,
    /// Its rates as the table has them, in printable ASCII; empty: none.
    pub rates: String,
    /// The time from the writing of the file until its rates allow the next start, in milliseconds; 0: they allow it.
    pub next_start_ms: u64,
    /// How many starts its rate for an hour has left; None: it has no such rate.
    pub hour_left: Option<u32>,
    /// The same for a day.
    pub day_left: Option<u32>,
    /// How many of the limit this host may run; None: it is not shared with other hosts.
    pub share: Option<u32>,
}

/// The shares of this host that are in force.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LeaseStatus {
    /// Which version of queue/lock/gatelease; 0: none.
    pub seq: u64,
    /// How far the lease is.
    pub phase: LeasePhase,
    /// How many hosts share the limits.
    pub hosts: u32,
}

/// The whole file.
#[derive(Clone, Debug, PartialEq)]
pub struct Status {
    /// Counts the writes.
    pub generation: u64,
    /// When it was written, in seconds since 1970. A gate writes once a minute even if nothing changed.
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
    /// Next hops that are known by an address of a site.
    pub seen: u64,
    /// When the table was loaded, in seconds since 1970; 0 if never.
    pub loaded_secs: u64,
    /// The shares of this host; None: limits are not shared with other hosts.
    pub lease: Option<LeaseStatus>,
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
    /// A line that cannot be understood; its number, from 1.
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
    /// How many deliveries run.
    #[must_use]
    pub fn running(&self) -> u32 {
        self.in_use.saturating_sub(self.held)
    }

    /// Parses a file. It ignores what a later version may have added (see the module).
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
            lease: None,
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
                // The file may be torn; only its end shows that.
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
                    // An earlier gate did not say which limits are in force.
                    None if self.state == State::Limits => InForce::File,
                    None => InForce::None,
                };
            }
            ["sites", mapped, seen, ..] => {
                self.mapped = mapped.parse().ok()?;
                self.seen = seen.parse().ok()?;
            }
            ["lease", seq, phase, hosts, ..] => {
                // A phase of a later version is taken as one in which shares count.
                let phase = LeasePhase::parse(phase).unwrap_or(LeasePhase::Over);
                let (seq, hosts) = (seq.parse().ok()?, hosts.parse().ok()?);
                self.lease = Some(LeaseStatus { seq, phase, hosts });
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
                // Of a later version.
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
                    rates: match added.get(2) {
                        None | Some(&"-") => String::new(),
                        Some(rates) => escaped(rates),
                    },
                    next_start_ms: added.get(3).map_or(Some(0), |number| number.parse().ok())?,
                    hour_left: parse_left(added.get(4))?,
                    day_left: parse_left(added.get(5))?,
                    share: parse_left(added.get(6))?,
                });
            }
            ["unlisted", count, ..] => self.unlisted = count.parse().ok()?,
            // One of these with too few fields.
            [
                "written" | "pid" | "state" | "slots" | "total" | "table" | "sites" | "lease"
                | "problem" | "key" | "unlisted",
                ..,
            ] => return None,
            // Of a later version.
            _ => {}
        }
        Some(())
    }
}
