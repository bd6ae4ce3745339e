//! The status file, queue/lock/gatestatus: what the gate writes and qpatch reads.
//!
//! Text, one item a line, fields separated by tabs. The first line has a generation, and so has the last: a reader that
//! finds two different ones, or no last line, has looked while it was written, and looks again. The file is overwritten
//! in place (the spawner may not create files in queue/lock) and cut to length afterwards; what follows the last line is
//! left over from before and means nothing.
//!
//! ```text
//! qpatch-gate  1  GENERATION
//! written  SECONDS-SINCE-1970
//! pid  PID
//! state  limits | stock | failed
//! slots  CONF-SPAWN  CONCURRENCYREMOTE  IN-USE  HELD
//! total  ASKED  BUSY  HELD  EXPIRED  DONE  REFUSED  SUSPENDED
//! table  DOMAINS  ROUTES  LOADED-SECONDS-SINCE-1970
//! sites  MAPPED  SEEN
//! problem  TEXT
//! key  KIND  NAME  LIMIT  RUNNING  HELD  BUSY  DONE  PEAK  AWAY  RATE  MEAN-MS  EFFECTIVE  OBJECTED  SUSPENDED  ERROR
//! unlisted  KEYS
//! end  GENERATION
//! ```
//!
//! A limit is a number or `-` for unlimited; the effective one is lower while the server takes no more. OBJECTED is when it
//! said so the last time, SUSPENDED until when nothing starts, both in seconds since 1970, or 0. RATE is deliveries a second
//! over about ten seconds. Bytes of names and texts
//! that are not printable ASCII are written as `%` and two hexadecimal digits, and so is `%`.

#![forbid(unsafe_code)]

use std::fmt::{self, Write as _};

use crate::gate::{Gate, Key, Totals};
use crate::memory::{OutOfMemory, Text};
use crate::name::host_part;
use crate::route::without_credentials;
use crate::rules::KeyKind;
use crate::table::Limit;

/// So many keys are listed; the busiest ones.
pub const KEYS_MAX: usize = 1000;

/// The largest file that a reader accepts, in bytes: a thousand keys with the longest names and errors, all escaped, are
/// less.
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

/// What the host adds to what the gate knows.
#[derive(Clone, Copy, Debug)]
pub struct Frame {
    /// Counts the writes.
    pub generation: u64,
    /// Now, in seconds since 1970.
    pub written_secs: u64,
    /// The spawner's process.
    pub pid: u32,
    /// What the gate does.
    pub state: State,
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
    problems: &[Option<crate::problem::Problem>],
) -> Result<(), OutOfMemory> {
    out.bytes.clear();
    render(out, frame, gate, problems).map_err(|_| OutOfMemory)
}

fn render(
    out: &mut Text,
    frame: &Frame,
    gate: &Gate,
    problems: &[Option<crate::problem::Problem>],
) -> fmt::Result {
    let Frame { generation, written_secs, pid, slots, concurrency_remote, loaded_secs, .. } =
        *frame;
    writeln!(
        out,
        "qpatch-gate\t1\t{generation}\nwritten\t{written_secs}\npid\t{pid}\nstate\t{}",
        frame.state.name()
    )?;
    writeln!(out, "slots\t{slots}\t{concurrency_remote}\t{}\t{}", gate.in_use(), gate.held())?;
    let Totals { asked, busy, held, expired, done, refused, suspended } = gate.totals();
    writeln!(out, "total\t{asked}\t{busy}\t{held}\t{expired}\t{done}\t{refused}\t{suspended}")?;
    let rules = gate.rules();
    let domains = rules.table.as_ref().map_or(0, crate::table::Table::len);
    writeln!(out, "table\t{domains}\t{}\t{loaded_secs}", rules.routes.len())?;
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
        write_key(out, key, frame)?;
    }
    writeln!(out, "unlisted\t{unlisted}\nend\t{generation}")
}

fn write_limit(out: &mut Text, limit: Limit) -> fmt::Result {
    match limit {
        Limit::AtMost(limit) => write!(out, "{limit}"),
        Limit::Unlimited => out.write_char('-'),
    }
}

fn write_key(out: &mut Text, key: &Key, frame: &Frame) -> fmt::Result {
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
        key.recall.away(),
        tenths / 10,
        tenths % 10,
    )?;
    write_limit(out, key.limit())?;
    writeln!(
        out,
        "\t{}\t{}\t{}",
        secs(key.objected_us()),
        secs(key.suspended_until(now_us)),
        Escaped(&key.error)
    )
}

/// Bytes as printable ASCII without tabs.
pub(crate) struct Escaped<'a>(pub(crate) &'a [u8]);

impl fmt::Display for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for &byte in self.0 {
            if (b' '..=b'~').contains(&byte) && byte != b'%' {
                f.write_char(char::from(byte))?;
            } else {
                write!(f, "%{byte:02x}")?;
            }
        }
        Ok(())
    }
}

fn limit_value(limit: Limit) -> Option<f64> {
    match limit {
        Limit::AtMost(limit) => Some(f64::from(limit)),
        Limit::Unlimited => None,
    }
}

fn unescaped(text: &str) -> String {
    lossy(&unescaped_bytes(text.as_bytes()).unwrap_or_default())
}

fn lossy(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// The bytes that [`Escaped`] wrote; a `%` without two digits stands for itself. None: no memory.
pub(crate) fn unescaped_bytes(mut rest: &[u8]) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    bytes.try_reserve_exact(rest.len()).ok()?;
    while let [first, tail @ ..] = rest {
        let code = (*first == b'%').then(|| text_byte(tail)).flatten();
        bytes.push(code.unwrap_or(*first));
        rest = if code.is_some() { &tail[2..] } else { tail };
    }
    Some(bytes)
}

fn parse_limit(text: &str) -> Option<Limit> {
    match text {
        "-" => Some(Limit::Unlimited),
        number => number.parse().ok().map(Limit::AtMost),
    }
}

fn text_byte(digits: &[u8]) -> Option<u8> {
    u8::from_str_radix(std::str::from_utf8(digits.get(..2)?).ok()?, 16).ok()
}

/// A key as the file has it.
#[derive(Clone, Debug, PartialEq)]
pub struct KeyStatus {
    /// What its name is.
    pub kind: KeyKind,
    /// Its name.
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
    /// What the last failed delivery printed.
    pub error: String,
}

/// The whole file.
#[derive(Clone, Debug, PartialEq)]
pub struct Status {
    /// Counts the writes.
    pub generation: u64,
    /// When it was written, in seconds since 1970. An idle gate does not write.
    pub written_secs: u64,
    /// The spawner's process.
    pub pid: u32,
    /// What the gate does.
    pub state: State,
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
    /// What is wrong with the files.
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
    /// Parses a file.
    ///
    /// # Errors
    /// See [`StatusError`].
    pub fn parse(bytes: &[u8]) -> Result<Self, StatusError> {
        if bytes.iter().all(|&byte| byte == 0) {
            return Err(StatusError::Empty);
        }
        let text = String::from_utf8_lossy(bytes);
        let mut lines = text.split('\n');
        let head: Vec<&str> = lines.next().unwrap_or_default().split('\t').collect();
        let ["qpatch-gate", "1", generation] = head[..] else { return Err(StatusError::Foreign) };
        let generation = generation.parse().map_err(|_| StatusError::Torn)?;
        let mut status = Self {
            generation,
            written_secs: 0,
            pid: 0,
            state: State::Stock,
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
                let same = fields.len() == 2 && fields[1].parse() == Ok(generation);
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
            ["written", secs] => self.written_secs = secs.parse().ok()?,
            ["pid", pid] => self.pid = pid.parse().ok()?,
            ["state", state] => {
                let states = [State::Limits, State::Stock, State::Failed];
                self.state = states.into_iter().find(|known| known.name() == state)?;
            }
            ["slots", slots, concurrency_remote, in_use, held] => {
                self.slots = slots.parse().ok()?;
                self.concurrency_remote = concurrency_remote.parse().ok()?;
                self.in_use = in_use.parse().ok()?;
                self.held = held.parse().ok()?;
            }
            ["total", asked, busy, held, expired, done, refused, suspended] => {
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
            ["table", domains, routes, loaded] => {
                self.domains = domains.parse().ok()?;
                self.routes = routes.parse().ok()?;
                self.loaded_secs = loaded.parse().ok()?;
            }
            ["sites", mapped, seen] => {
                self.mapped = mapped.parse().ok()?;
                self.seen = seen.parse().ok()?;
            }
            ["problem", text] => self.problems.push(text.to_string()),
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
            ] => {
                let kind = KeyKind::parse(kind)?;
                self.keys.push(KeyStatus {
                    kind,
                    name: match kind {
                        // An earlier build, which may run still, took the password of a relay for a part of its name.
                        KeyKind::Relay => lossy(host_part(&unescaped_bytes(name.as_bytes())?)),
                        KeyKind::Domain | KeyKind::Group => unescaped(name),
                    },
                    limit: parse_limit(limit)?,
                    running: running.parse().ok()?,
                    held: held.parse().ok()?,
                    busy: busy.parse().ok()?,
                    done: done.parse().ok()?,
                    peak: peak.parse().ok()?,
                    away: away.parse().ok()?,
                    rate: rate.parse().ok()?,
                    mean_ms: mean_ms.parse().ok()?,
                    effective: parse_limit(effective)?,
                    objected_secs: objected.parse().ok()?,
                    suspended_secs: suspended.parse().ok()?,
                    error: lossy(without_credentials(&unescaped_bytes(error.as_bytes())?)),
                });
            }
            ["unlisted", count] => self.unlisted = count.parse().ok()?,
            _ => return None,
        }
        Some(())
    }

    /// The status in Prometheus' text format.
    #[must_use]
    pub fn prometheus(&self) -> String {
        let mut out = String::new();
        let metric = |out: &mut String, name: &str, kind: &str, help: &str| {
            out.push_str(&format!(
                "# HELP qmail_gate_{name} {help}\n# TYPE qmail_gate_{name} {kind}\n"
            ));
        };
        let up = u8::from(self.state != State::Failed);
        metric(&mut out, "up", "gauge", "0 after an internal error: everything goes.");
        out.push_str(&format!("qmail_gate_up {up}\n"));
        let single: [(&str, &str, &str, u64); 14] = [
            (
                "written_timestamp_seconds",
                "gauge",
                "When the status was written.",
                self.written_secs,
            ),
            ("slots", "gauge", "Delivery slots: conf-spawn.", self.slots.into()),
            (
                "slots_in_use",
                "gauge",
                "Delivery slots that are running or held.",
                self.in_use.into(),
            ),
            ("slots_held", "gauge", "Delivery slots that are held.", self.held.into()),
            ("asked_total", "counter", "Deliveries that were asked for.", self.totals.asked),
            (
                "busy_total",
                "counter",
                "Deliveries that were sent away, to come back.",
                self.totals.busy,
            ),
            ("held_total", "counter", "Deliveries that were held for some time.", self.totals.held),
            (
                "expired_total",
                "counter",
                "Deliveries that were held for too long, then sent away.",
                self.totals.expired,
            ),
            ("done_total", "counter", "Deliveries that ran and ended.", self.totals.done),
            (
                "refused_total",
                "counter",
                "Deliveries that the server refused beside others, sent away, too.",
                self.totals.refused,
            ),
            (
                "suspended_total",
                "counter",
                "Deliveries that were deferred because no connection succeeds.",
                self.totals.suspended,
            ),
            ("mapped_domains", "gauge", "Domains in concurrencysites.", self.mapped),
            (
                "seen_next_hops",
                "gauge",
                "Next hops that were seen at an address of a site.",
                self.seen,
            ),
            ("problems", "gauge", "Problems with the control files.", self.problems.len() as u64),
        ];
        for (name, kind, help, value) in single {
            metric(&mut out, name, kind, help);
            out.push_str(&format!("qmail_gate_{name} {value}\n"));
        }
        type Get = fn(&KeyStatus) -> Option<f64>;
        let per_key: [(&str, &str, &str, Get); 11] = [
            (
                "key_limit",
                "gauge",
                "Deliveries that may run at once; absent when unlimited.",
                |key| limit_value(key.limit),
            ),
            (
                "key_effective_limit",
                "gauge",
                "The same, lower while the server takes no more.",
                |key| limit_value(key.effective),
            ),
            (
                "key_objected_timestamp_seconds",
                "gauge",
                "When the server objected the last time; absent when it does not matter any more.",
                |key| (key.objected_secs > 0).then_some(key.objected_secs as f64),
            ),
            (
                "key_suspended_until_timestamp_seconds",
                "gauge",
                "Until when nothing starts; absent when it is not suspended.",
                |key| (key.suspended_secs > 0).then_some(key.suspended_secs as f64),
            ),
            ("key_running", "gauge", "Deliveries that run.", |key| Some(f64::from(key.running))),
            ("key_held", "gauge", "Deliveries that are held.", |key| Some(f64::from(key.held))),
            ("key_away", "gauge", "Deliveries that were sent away and are to come back.", |key| {
                Some(f64::from(key.away))
            }),
            ("key_busy_total", "counter", "Deliveries that were sent away.", |key| {
                Some(key.busy as f64)
            }),
            ("key_done_total", "counter", "Deliveries that ran and ended.", |key| {
                Some(key.done as f64)
            }),
            ("key_rate", "gauge", "Deliveries a second, over about ten seconds.", |key| {
                Some(key.rate)
            }),
            ("key_service_seconds", "gauge", "Mean time of a delivery.", |key| {
                Some(key.mean_ms as f64 / 1000.0)
            }),
        ];
        for (name, kind, help, get) in per_key {
            metric(&mut out, name, kind, help);
            for key in &self.keys {
                if let Some(value) = get(key) {
                    let label =
                        key.name.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
                    let kind = key.kind.name();
                    out.push_str(&format!(
                        "qmail_gate_{name}{{kind=\"{kind}\",key=\"{label}\"}} {value}\n"
                    ));
                }
            }
        }
        out
    }
}
