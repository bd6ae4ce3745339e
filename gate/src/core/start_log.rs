//! What was started within the last hour and day by keys with such rates, also before a restart.
//!
//! An entry has the starts of one key in two windows ([`crate::core::window`]). It outlives the key, because the gate
//! forgets keys that do nothing. A site's members and its candidates have one entry. A key is known by a hash of its
//! name that is the same in every process. There are [`ENTRIES_MAX`] entries at most, 4 KB each; when all have starts
//! of the last day, further keys share entries, and so start less than they might.
//!
//! **After a restart** the counts must not be lower than what was started. The spawner writes the log to a file
//! ([`StartLog::write`]) about once a second while something starts, and at once when a key has started more than a
//! part of its rate since ([`StartLog::must_write`]): a sixteenth, or one. A log that was written while starts might
//! follow is *open*. If an open log is read at the start, each key is taken to have started that part at that moment.
//! Before the first start after ten quiet seconds the log is written as open again. So a spawner that is killed counts
//! too much, by a sixteenth, and never too little.
//!
//! The log has a clock of its own, which goes on over a restart by the time that has passed at least: of the time of
//! day and the time since the machine was started the one that has gone on less. If the machine was restarted as well,
//! only the time of day is known, and one that was set forward meanwhile opens the gate.

#![forbid(unsafe_code)]

use std::fmt::Write as _;

use crate::control::rates::Rates;
use crate::core::rate::{RateKind, StartRate};
use crate::core::rules::KeyKind;
use crate::core::window::{CELLS, DAY_US, HOUR_US, Window};
use crate::util::fnv;
use crate::util::index::Index;
use crate::util::memory::{OutOfMemory, Text};

/// The most entries.
pub const ENTRIES_MAX: usize = 2048;
/// The largest file, in bytes: all entries with starts in every cell, each of which takes up to 24 bytes.
pub const FILE_MAX: u64 = (ENTRIES_MAX * 2 * CELLS * 24) as u64;
/// A log that nothing was started in for this time is written as closed, in microseconds.
pub const QUIET_US: u64 = 10_000_000;
/// The file is written again after this time, so that it has the time of day as it is: somebody may set that forward,
/// and then restart the machine. In microseconds.
const REWRITE_US: u64 = 60_000_000;
/// The part of a rate that a key may start before the log is written: one of this many parts, but at least one start.
const UNWRITTEN_PARTS: u32 = 16;
/// The beginning of the file.
const HEAD: &str = "qpatch-rates\t1";

/// The starts of a key.
#[derive(Debug)]
struct Entry {
    id: u64,
    hour: Window,
    day: Window,
    /// Starts since the log was written.
    unwritten: u32,
    /// How often a log that was read may lack starts of this key, which have not been added yet.
    owes: u32,
}

/// How much time has passed since the log was written, and where the clock of this process stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    /// Seconds since 1970.
    pub wall_secs: u64,
    /// Microseconds since the machine was started; 0: not known.
    pub boot_us: u64,
    /// Which start of the machine that is; 0: not known.
    pub boot: u64,
}

/// What the file says of the starts that follow it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogState {
    /// None have followed.
    Closed,
    /// Some may have.
    Open,
}

/// The starts of all keys with rates for an hour or a day. See the module.
#[derive(Debug)]
pub struct StartLog {
    /// The clock of the log less that of the gate.
    ahead_us: u64,
    entries: Vec<Entry>,
    index: Index,
    /// What was written last.
    written: LogState,
    /// Something was started since.
    is_changed: bool,
    must_write: bool,
    last_start_us: u64,
    /// When the file was written last, on the gate's clock.
    written_us: u64,
    /// When an open log was read last, on the clock of the log; 0: never.
    crashed_us: u64,
    /// How often that has happened within the last day.
    crashes: u32,
}

impl Default for StartLog {
    fn default() -> Self {
        Self {
            // A start before the origin of the gate's clock has a time, too.
            ahead_us: 2 * DAY_US,
            entries: Vec::new(),
            index: Index::default(),
            written: LogState::Closed,
            is_changed: false,
            must_write: false,
            last_start_us: 0,
            written_us: 0,
            crashed_us: 0,
            crashes: 0,
        }
    }
}

/// The hash of a key: 64-bit FNV-1a of its kind and its name in lower case. Never 0.
#[must_use]
pub fn key_id(kind: KeyKind, name: &[u8]) -> u64 {
    let kind = match kind {
        KeyKind::Candidates => KeyKind::Group,
        kind => kind,
    };
    let name = name.iter().map(u8::to_ascii_lowercase);
    fnv::add(fnv::BASIS, std::iter::once(kind as u8).chain(name)).max(1)
}

/// How much a key may start before the log is written.
fn unwritten_max(rates: &Rates) -> u32 {
    let lowest = rates.hour.into_iter().chain(rates.day).min().unwrap_or(0);
    (lowest / UNWRITTEN_PARTS).max(1)
}

impl StartLog {
    /// Says when a key may start the next delivery, as far as its rates for an hour and a day decide. Call it for each
    /// new key, and after a change of its rates. Without memory such rates do not count.
    pub fn attach(&mut self, rate: &mut StartRate, id: u64, rates: &Rates, now_us: u64) {
        if !rates.has_long() {
            return;
        }
        let log_us = now_us.saturating_add(self.ahead_us);
        let Ok(at) = self.entry(id, log_us) else { return };
        let crashed_us = self.crashed_us;
        let entry = &mut self.entries[at];
        entry.hour.advance(log_us);
        entry.day.advance(log_us);
        let owes = std::mem::take(&mut entry.owes);
        if owes > 0 {
            // The last start before a write is in what is written.
            let starts = owes.saturating_mul(unwritten_max(rates) - 1);
            entry.hour.started(crashed_us, starts);
            entry.day.started(crashed_us, starts);
        }
        self.set_due(rate, (id, at), rates, now_us);
    }

    /// Counts a start.
    pub fn started(&mut self, rate: &mut StartRate, id: u64, rates: &Rates, now_us: u64) {
        if !rates.has_long() {
            return;
        }
        let log_us = now_us.saturating_add(self.ahead_us);
        let Ok(at) = self.entry(id, log_us) else { return };
        let entry = &mut self.entries[at];
        entry.hour.started(log_us, 1);
        entry.day.started(log_us, 1);
        entry.unwritten = entry.unwritten.saturating_add(1);
        self.must_write |=
            self.written == LogState::Closed || entry.unwritten >= unwritten_max(rates);
        self.is_changed = true;
        self.last_start_us = now_us;
        self.set_due(rate, (id, at), rates, now_us);
    }

    /// How many starts an hour and a day are left; None: there is no such rate.
    #[must_use]
    pub fn left(&self, id: u64, rates: &Rates, now_us: u64) -> [Option<u32>; 2] {
        let log_us = now_us.saturating_add(self.ahead_us);
        let entry = self.find(id).map(|at| &self.entries[at]);
        let left = |allowed: Option<u32>, window: Option<&Window>| {
            allowed.map(|allowed| {
                allowed.saturating_sub(window.map_or(0, |window| window.counted(log_us)))
            })
        };
        [
            left(rates.hour, entry.map(|entry| &entry.hour)),
            left(rates.day, entry.map(|entry| &entry.day)),
        ]
    }

    /// The windows have been advanced to now.
    fn set_due(&self, rate: &mut StartRate, (id, at): (u64, usize), rates: &Rates, now_us: u64) {
        let log_us = now_us.saturating_add(self.ahead_us);
        let Entry { hour, day, .. } = &self.entries[at];
        let windows = [(RateKind::Hour, rates.hour, hour), (RateKind::Day, rates.day, day)];
        for (kind, allowed, window) in windows {
            let Some(allowed) = allowed else { continue };
            let left = allowed.saturating_sub(window.total());
            let due_us = match left {
                0 => window.due_us(log_us, allowed).unwrap_or(u64::MAX),
                // A window that is not full has no time of its own.
                _ => 0,
            };
            rate.limit_by_window(id, kind, due_us.saturating_sub(self.ahead_us), left);
        }
    }

    fn find(&self, id: u64) -> Option<usize> {
        let found = self.index.find(id, |at| self.entries[at as usize].id == id);
        found.map(|at| at as usize).or_else(|| {
            // When all entries are in use, a key shares one.
            (self.entries.len() >= ENTRIES_MAX).then_some(id as usize % ENTRIES_MAX)
        })
    }

    /// The entry of a key; a new one if it has none.
    fn entry(&mut self, id: u64, log_us: u64) -> Result<usize, OutOfMemory> {
        if let Some(at) = self.index.find(id, |at| self.entries[at as usize].id == id) {
            return Ok(at as usize);
        }
        let is_late = log_us.saturating_sub(self.crashed_us) > DAY_US;
        let owes = if is_late { 0 } else { self.crashes };
        if self.entries.len() >= ENTRIES_MAX {
            let is_over = |entry: &Entry| entry.day.counted(log_us) == 0 && entry.unwritten == 0;
            let Some(at) = self.entries.iter().position(is_over) else {
                return Ok(id as usize % ENTRIES_MAX);
            };
            self.index.remove(self.entries[at].id, at as u32);
            // There is room: one was removed just now.
            self.index.insert(id, at as u32)?;
            let entry = &mut self.entries[at];
            (entry.id, entry.owes) = (id, owes);
            return Ok(at);
        }
        self.entries.try_reserve(1)?;
        let at = self.entries.len();
        self.index.insert(id, at as u32)?;
        self.entries.push(Entry {
            id,
            hour: Window::new(HOUR_US),
            day: Window::new(DAY_US),
            unwritten: 0,
            owes,
        });
        Ok(at)
    }

    /// Whether the file must be written before the next delivery starts.
    #[inline]
    #[must_use]
    pub fn must_write(&self) -> bool {
        self.must_write
    }

    /// Whether the file says all, and that nothing may follow.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.written == LogState::Closed && !self.is_changed
    }

    /// Whether the file should be written, and as what. None: it says all.
    #[must_use]
    pub fn due(&self, now_us: u64) -> Option<LogState> {
        let is_quiet = now_us.saturating_sub(self.last_start_us) >= QUIET_US;
        let is_old = now_us.saturating_sub(self.written_us) >= REWRITE_US;
        match self.written {
            _ if self.is_changed && !is_quiet => Some(LogState::Open),
            LogState::Closed if !self.is_changed => {
                (is_old && !self.entries.is_empty()).then_some(LogState::Closed)
            }
            _ if is_quiet => Some(LogState::Closed),
            _ => None,
        }
    }

    /// The file was written, or cannot be written: it is tried again when something has changed.
    pub fn note_written(&mut self, state: LogState, now_us: u64) {
        (self.written, self.written_us) = (state, now_us);
        (self.is_changed, self.must_write) = (false, false);
        for entry in &mut self.entries {
            entry.unwritten = 0;
        }
    }

    /// Writes the log into `out`, which is emptied first.
    ///
    /// # Errors
    /// No memory.
    pub fn write(
        &self,
        out: &mut Text,
        state: LogState,
        stamp: &Stamp,
        now_us: u64,
    ) -> Result<(), OutOfMemory> {
        out.bytes.clear();
        self.render(out, state, stamp, now_us).map_err(|_| OutOfMemory)
    }

    fn render(
        &self,
        out: &mut Text,
        state: LogState,
        stamp: &Stamp,
        now_us: u64,
    ) -> std::fmt::Result {
        let log_us = now_us.saturating_add(self.ahead_us);
        let Stamp { wall_secs, boot_us, boot } = *stamp;
        let Self { crashed_us, crashes, .. } = *self;
        let state = match state {
            LogState::Open => "open",
            LogState::Closed => "closed",
        };
        writeln!(
            out,
            "{HEAD}\t{wall_secs}\t{boot_us}\t{boot:016x}\t{log_us}\t{crashed_us}\t{crashes}\t{state}"
        )?;
        for entry in &self.entries {
            if entry.day.counted(log_us) == 0 && entry.owes == 0 {
                continue;
            }
            for (letter, window) in [('h', &entry.hour), ('d', &entry.day)] {
                write!(out, "{letter}\t{:016x}\t{}", entry.id, entry.owes)?;
                for (cell, count) in window.cells(log_us).filter(|&(_, count)| count > 0) {
                    write!(out, "\t{cell}:{count}")?;
                }
                out.write_char('\n')?;
            }
        }
        out.write_str("end\n")
    }

    /// Restores what an earlier process has written. Call it before the first delivery. A text that is not understood
    /// is as one that has no starts.
    ///
    /// # Errors
    /// No memory, or not understood.
    pub fn restore(&mut self, text: &[u8], stamp: &Stamp, now_us: u64) -> Result<(), LogError> {
        let mut read = Self::default();
        let done = read.read(text, stamp, now_us);
        if done.is_ok() {
            *self = read;
        }
        done
    }

    fn read(&mut self, text: &[u8], stamp: &Stamp, now_us: u64) -> Result<(), LogError> {
        let text = std::str::from_utf8(text).map_err(|_| LogError::Foreign)?;
        let mut lines = text.lines();
        let head =
            lines.next().and_then(|line| line.strip_prefix(HEAD)).ok_or(LogError::Foreign)?;
        let mut fields = head.split('\t').skip(1);
        let mut number = |radix| {
            let number = fields.next().and_then(|field| u64::from_str_radix(field, radix).ok());
            number.ok_or(LogError::Foreign)
        };
        let [wall_secs, boot_us, boot, log_us, crashed_us, crashes] =
            [number(10)?, number(10)?, number(16)?, number(10)?, number(10)?, number(10)?];
        let is_open = fields.next() != Some("closed");
        // A second less: the time of day was cut to seconds. If it has gone back, no time has passed.
        let by_wall_us =
            stamp.wall_secs.saturating_sub(wall_secs.saturating_add(1)).saturating_mul(1_000_000);
        let passed_us = match boot != 0 && boot == stamp.boot {
            // Nobody can put this clock forward.
            true => by_wall_us.min(stamp.boot_us.saturating_sub(boot_us)),
            false => by_wall_us,
        };
        // A clock beyond any real one would leave no room.
        let log_us = log_us.saturating_add(passed_us).min(u64::MAX / 2);
        self.ahead_us = log_us.saturating_sub(now_us).max(2 * DAY_US);
        let log_us = now_us.saturating_add(self.ahead_us);
        let is_late = log_us.saturating_sub(crashed_us) > DAY_US;
        let crashes = if is_late { 0 } else { u32::try_from(crashes).unwrap_or(u32::MAX) };
        (self.crashed_us, self.crashes) = match is_open {
            true => (log_us, crashes.saturating_add(1)),
            false => (crashed_us, crashes),
        };
        let mut is_whole = false;
        for line in lines {
            if line == "end" {
                is_whole = true;
                break;
            }
            let mut fields = line.split('\t');
            let letter = fields.next();
            let id = fields.next().and_then(|field| u64::from_str_radix(field, 16).ok());
            let owes = fields.next().and_then(|field| field.parse::<u32>().ok());
            let (Some(letter @ ("h" | "d")), Some(id), Some(owes)) = (letter, id, owes) else {
                return Err(LogError::Foreign);
            };
            let at = self.entry(id.max(1), log_us).map_err(|_| LogError::OutOfMemory)?;
            let entry = &mut self.entries[at];
            entry.owes = owes.saturating_add(is_open.into());
            let window = if letter == "h" { &mut entry.hour } else { &mut entry.day };
            for field in fields {
                let (cell, count) = field.split_once(':').ok_or(LogError::Foreign)?;
                let (Ok(cell), Ok(count)) = (cell.parse(), count.parse()) else {
                    return Err(LogError::Foreign);
                };
                window.restore(cell, count, log_us);
            }
        }
        if is_whole { Ok(()) } else { Err(LogError::Foreign) }
    }

    /// How much memory it occupies, in bytes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.entries.capacity() * size_of::<Entry>() + self.index.bytes()
    }
}

/// Why a log cannot be restored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogError {
    /// It is not of this version, or it is not whole.
    Foreign,
    /// There is no memory for it.
    OutOfMemory,
}
