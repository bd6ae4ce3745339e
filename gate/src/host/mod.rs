//! The gate in a spawner: it knows the time, reads the control files when they change, and writes the status file.
//!
//! A file that cannot be used does not change what is in force. At the start nothing is in force yet, and the copy of
//! the last good file counts ([`crate::host::kept`]). Without a copy the good lines of concurrencydomains count, and a
//! limit of 20 for all other domains. There are no limits only if there is no such file.
//!
//! Paths are relative to the working directory of the spawner, queue/mess. Checking the files costs six `stat` calls a
//! second, or seven if qmail-remote reads authsenders. The status costs one `write` a second when something changed,
//! else one a minute; the addresses of sites cost one in ten seconds. Where several hosts share the limits, the status
//! costs four to ten a second, by its length, and a look at [`lease`] a `stat` and a read of /proc/uptime, twenty times
//! a second. All descriptors are closed at once, but for that of [`crate::host::spawner_columns`], which only a queue
//! with several spawners has.
//!
//! The file has a few lines more than 700: it is one type, whose steps use each other.

#![forbid(unsafe_code)]

mod busy_text;
pub mod clock;
mod control_file;
mod domains_file;
pub mod kept;
pub mod lease;
mod load;
mod notices;
pub mod process;
mod side_files;
pub mod spawner_columns;
mod spawners;
mod start_log_file;
pub mod status;
mod watched;

use std::ffi::{OsStr, OsString};
use std::fmt::Write as _;
use std::time::{Duration, UNIX_EPOCH};

use self::busy_text::write_busy;
use self::clock::{Clock, SystemClock};
use self::control_file::{ContentsSource, Control, QUIET, RESTLESS_CHECKS_MAX};
use self::lease::LeaseFile;
use self::load::follow;
use self::spawners::{concurrency_remote, concurrency_supplemental, numbered, status_files};
use self::status::{Frame, InForce, State};
use self::watched::{Watched, copy, directory_of, join, overwrite};
use crate::control::problem::{self, Problem};
use crate::control::route::Routes;
use crate::control::sender::{Asked, Reads, Senders};
use crate::control::site::Map;
use crate::core::command::Parts;
use crate::core::gate::{
    Answer, Busy, CALL_SLOT, Call, DeliveryEnd, DeliveryTimes, Gate, NextAction,
};
use crate::core::other_spawners::OtherSpawners;
use crate::host::process::Identity;
use crate::host::spawner_columns::Shared;
use crate::report;
use crate::report::replies::Replies;
use crate::util::memory::{OutOfMemory, Text};

/// The file with what was started, in queue/lock.
const RATES_FILE: &str = "gatekept.rates";
const LOOK_US: u64 = 1_000_000;
const WRITE_US: u64 = 1_000_000;
/// The same while an agent reads the status to divide the limits, in microseconds: for a short one, and for one with
/// the thousand keys that it lists at most. Between them it is two microseconds for each byte: reading it is most of
/// what the agent costs.
const WRITE_SHARED_US: u64 = 100_000;
const WRITE_SHARED_MAX_US: u64 = 250_000;
/// A gate writes the status even if nothing changed, so that the age of the status shows whether the spawner runs.
const HEARTBEAT_US: u64 = 60_000_000;
/// How long after it was found changing a file is checked again.
const LOOK_AGAIN_US: u64 = 250_000;
/// How long the start waits for a file that is changing; qmail-send waits meanwhile.
const START_WAIT: Duration = Duration::from_secs(1);
/// The addresses of sites change with nearly every new domain, and matter only at the next start: so they are written
/// less often.
const WRITE_SITES_US: u64 = 10_000_000;
/// The time-out is a little longer than necessary, so that one that ends early still finds something to do.
const SLACK_MS: u64 = 2;

/// What the spawner has to do next. A report is in [`Host::text`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Due {
    /// Nothing.
    Nothing,
    /// Start it.
    Go {
        /// Its slot.
        slot: u32,
        /// For [`Host::command`].
        command: u32,
    },
    /// Report [`Host::text`].
    Report {
        /// Its slot.
        slot: u32,
        /// For [`Host::command`].
        command: u32,
    },
    /// Report [`Host::text`], for no slot: it calls mail that is away, or is a line for qmail-send's log.
    Call,
}

/// What the spawner has to do with a command that it has read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ask {
    /// Start it.
    Go,
    /// Nothing: the gate keeps it.
    Hold,
    /// Report [`Host::text`].
    Report,
}

/// What the spawner has to do with the report of a delivery that has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Done {
    /// Pass it on to qmail-send.
    AsItIs,
    /// Pass it on with [`Host::text`] as its last line: how long the delivery was held, and how long it ran.
    WithLine,
    /// Pass on [`Host::text`] instead: the delivery was not really tried.
    Instead,
}

/// The gate, its files and its clock.
#[derive(Debug)]
pub struct Host<C = SystemClock> {
    gate: Gate,
    clock: C,
    slots: u32,
    concurrency_remote: u32,
    concurrency_problem: Option<Problem>,
    domains: Control,
    routes: Control,
    sites: Control,
    /// Only if qmail-remote reads it.
    senders: Option<Control>,
    replies: Control,
    /// The files with the name for HELO; the first one that exists counts.
    helo: [Watched; 2],
    /// The names of the status file and of the file with the addresses of sites, for a spawner that is alone or the
    /// first.
    status_base: OsString,
    seen_base: OsString,
    status_path: OsString,
    status_problem: Option<Problem>,
    seen_path: OsString,
    seen_problem: Option<Problem>,
    /// The file with what was started, for rates of an hour and a day.
    rates_path: OsString,
    rates_problem: Option<Problem>,
    /// The shares of this host, if several share the limits.
    lease: LeaseFile,
    /// Which start of the machine this is; 0: not known.
    boot: u64,
    /// Up to which change the addresses of sites have been written, and when.
    seen_written: u64,
    seen_written_us: u64,
    status_text: Text,
    generation: u64,
    /// How long the last status was.
    written_bytes: u64,
    identity: Identity,
    loaded_secs: u64,
    looked_us: u64,
    written_us: u64,
    dirty: bool,
    failed: bool,
    /// The slot whose command the gate is asked about, until it answers.
    asking: Option<u32>,
    /// Whether a control file has to be reported in qmail-send's log, and when that was done last.
    unlogged: bool,
    logged_us: Option<u64>,
    /// After a failure: the slot where the search for held commands goes on.
    rescue_from: u32,
    text: Text,
}

impl Host {
    /// Opens the gate: reads the control files and writes the status. That also replaces at once what an earlier
    /// spawner wrote, which no longer counts and may say more than it should.
    ///
    /// # Errors
    /// No memory, or slots out of range.
    pub fn open(
        slots: u32,
        control: &OsStr,
        status: &OsStr,
        seed: u64,
    ) -> Result<Self, OutOfMemory> {
        Self::open_beside(slots, control, status, Reads::default(), seed)
    }

    /// The same with a qmail-remote that reads more than smtproutes.
    ///
    /// # Errors
    /// As those of [`Host::open`].
    pub fn open_beside(
        slots: u32,
        control: &OsStr,
        status: &OsStr,
        reads: Reads,
        seed: u64,
    ) -> Result<Self, OutOfMemory> {
        Self::open_with(SystemClock::start(), slots, control, status, reads, seed)
    }
}

impl<C: Clock> Host<C> {
    /// The same with a clock of the caller's.
    ///
    /// # Errors
    /// As those of [`Host::open`].
    pub fn open_with(
        clock: C,
        slots: u32,
        control: &OsStr,
        status: &OsStr,
        reads: Reads,
        seed: u64,
    ) -> Result<Self, OutOfMemory> {
        let (concurrency_remote, concurrency_problem) =
            concurrency_remote(&join(control, "concurrencyremote")?);
        let expected = status_files(status)?;
        // The spawner does not know which channel it has, so it assumes the smallest. Too low a number grows with the
        // slots that are in use; with too high a one, held mail could fill all slots of the channel.
        let mut capacity = concurrency_remote;
        for number in 1..expected {
            capacity = capacity.min(concurrency_supplemental(control, number - 1)?);
        }
        let mut text = Text::default();
        text.bytes.try_reserve(576)?;
        let lock = directory_of(status);
        let mut host = Self {
            gate: Gate::new(slots, capacity, seed)?,
            clock,
            slots,
            concurrency_remote,
            concurrency_problem,
            domains: Control::new(
                control,
                problem::File::Domains,
                lock,
                problem::File::KeptDomains,
            )?,
            routes: Control::new(control, problem::File::Routes, lock, problem::File::KeptRoutes)?,
            sites: Control::new(control, problem::File::Sites, lock, problem::File::KeptSites)?,
            senders: match reads.senders {
                Asked::No => None,
                Asked::Yes => Some(Control::new(
                    control,
                    problem::File::Senders,
                    lock,
                    problem::File::KeptSenders,
                )?),
            },
            replies: Control::new(
                control,
                problem::File::Replies,
                lock,
                problem::File::KeptReplies,
            )?,
            helo: [Watched::new(control, "helohost")?, Watched::new(control, "me")?],
            status_base: copy(status)?,
            seen_base: join(directory_of(status), "gatesites")?,
            status_path: copy(status)?,
            status_problem: None,
            seen_path: join(lock, "gatesites")?,
            seen_problem: None,
            rates_path: join(lock, RATES_FILE)?,
            rates_problem: None,
            lease: LeaseFile::new(lock)?,
            boot: process::boot(),
            seen_written: 0,
            seen_written_us: 0,
            written_bytes: 0,
            status_text: Text::default(),
            generation: 0,
            identity: Identity::of_self(),
            loaded_secs: 0,
            looked_us: 0,
            written_us: 0,
            dirty: false,
            failed: false,
            asking: None,
            unlogged: false,
            logged_us: None,
            rescue_from: 0,
            text,
        };
        host.gate.set_reads(reads);
        host.restore_seen(expected)?;
        let shared = join(directory_of(status), "gateshared")?;
        if let Some(shared) =
            Shared::open(&shared, slots, expected, seed ^ u64::from(std::process::id()))?
        {
            host.dirty |= shared.problem().is_some();
            host.gate.share(Box::new(shared));
            host.name_files()?;
        }
        host.restore_start_log();
        host.come_to_rest();
        host.look(0);
        host.look_at_lease(0);
        host.write_status(0);
        Ok(host)
    }

    /// A command has been read.
    pub fn ask(&mut self, slot: u32, parts: &Parts<'_>) -> Ask {
        if self.failed {
            return Ask::Go;
        }
        if slot == CALL_SLOT {
            return self.ask_together(parts.recipient());
        }
        self.asking = Some(slot);
        let now_us = self.now_us();
        self.tick(now_us);
        let answer = match self.gate.ask(now_us, slot, parts) {
            Answer::Go => {
                self.touch();
                self.write_start_log_first(now_us);
                Ask::Go
            }
            Answer::Hold => {
                self.touch();
                Ask::Hold
            }
            Answer::Busy(busy) => {
                self.touch();
                self.busy_text(busy);
                Ask::Report
            }
            Answer::InUse => {
                self.plain_text("ZInternal error: delnum in use. (#4.3.5)\n");
                Ask::Report
            }
        };
        self.asking = None;
        answer
    }

    /// `recipient` is a number, an @ and a domain: that many recipients of this domain, see [`Gate::ask_together`].
    fn ask_together(&mut self, recipient: &[u8]) -> Ask {
        let digits = recipient.split(|&byte| byte == b'@').next().unwrap_or_default();
        let number = std::str::from_utf8(digits).ok().and_then(|digits| digits.parse().ok());
        let Some(number @ 1..) = number else { return Ask::Go };
        let now_us = self.now_us();
        self.tick(now_us);
        let Some(busy) = self.gate.ask_together(now_us, number, recipient) else { return Ask::Go };
        self.touch();
        self.busy_text(busy);
        Ask::Report
    }

    /// What the spawner has to do next. Call it until it returns [`Due::Nothing`].
    pub fn due(&mut self) -> Due {
        if self.failed {
            return self.rescue();
        }
        let now_us = self.now_us();
        self.tick(now_us);
        if self.unlogged && self.notice_text(now_us) {
            return Due::Call;
        }
        match self.gate.next(now_us) {
            NextAction::None => Due::Nothing,
            NextAction::Go { slot, command } => {
                self.touch();
                self.write_start_log_first(now_us);
                Due::Go { slot, command }
            }
            NextAction::Busy { slot, command, busy } => {
                self.touch();
                self.busy_text(busy);
                Due::Report { slot, command }
            }
            NextAction::Call(call) => {
                self.call_text(call);
                Due::Call
            }
        }
    }

    /// The delivery in this slot has ended. Returns what to do with its report.
    pub fn done(&mut self, slot: u32, ran: DeliveryEnd<'_>) -> Done {
        if self.failed {
            return Done::AsItIs;
        }
        let now_us = self.now_us();
        let times = self.gate.times(now_us, slot);
        let busy = self.gate.done(now_us, slot, ran);
        self.touch();
        match (busy, times, ran) {
            (None, Some(times), DeliveryEnd::Reported(report)) if report::takes_a_line(report) => {
                self.text.bytes.clear();
                self.times_text(times);
                Done::WithLine
            }
            (None, ..) => Done::AsItIs,
            (Some(busy), times, _) => {
                self.busy_text(busy);
                if let Some(times) = times {
                    self.text.bytes.pop();
                    self.times_text(times);
                }
                Done::Instead
            }
        }
    }

    /// Milliseconds until [`Host::due`] must be called; None: not before a report or a command.
    pub fn timeout_ms(&mut self) -> Option<u64> {
        if self.failed {
            return (self.rescue_from < self.slots).then_some(0);
        }
        let now_us = self.now_us();
        let mut wait_us = self.wait_us(now_us)?;
        if wait_us == 0 {
            // Checks files and writes the status if it is time. A held command is left to the caller.
            self.tick(now_us);
            wait_us = self.wait_us(now_us)?;
        }
        Some(if wait_us == 0 { 0 } else { wait_us.div_ceil(1000) + SLACK_MS })
    }

    fn wait_us(&self, now_us: u64) -> Option<u64> {
        let held_us = self.gate.timeout_us(now_us);
        let until =
            |last_us: u64, every_us: u64| every_us.saturating_sub(now_us.saturating_sub(last_us));
        let look_us = held_us.map(|_| until(self.looked_us, LOOK_US));
        let write_us = self.write_every_us().map(|every_us| until(self.written_us, every_us));
        let lease_us = self.lease.is_shared().then(|| until(self.lease.looked_us, lease::LOOK_US));
        [held_us, look_us, lease_us, write_us, self.notice_wait_us(now_us)]
            .into_iter()
            .flatten()
            .min()
    }

    /// How long after the last status the next one is due. A gate that has not written one yet waits for a change.
    fn write_every_us(&self) -> Option<u64> {
        match self.dirty {
            // The agent waits for what is in force, and divides by what is wanted.
            true if self.lease.is_unconfirmed => Some(lease::LOOK_US),
            true if self.lease.is_shared() => {
                Some((WRITE_SHARED_US + 2 * self.written_bytes).min(WRITE_SHARED_MAX_US))
            }
            true => Some(WRITE_US),
            false => (self.generation > 0).then_some(HEARTBEAT_US),
        }
    }

    /// How many commands are held.
    #[must_use]
    pub fn held(&self) -> u32 {
        if self.failed { self.gate.to_rescue(self.rescue_from) } else { self.gate.held() }
    }

    /// Forgets the held commands. When nothing runs any more, the status is written for the last time.
    pub fn drop_held(&mut self) {
        if self.failed {
            self.rescue_from = self.slots;
            let _ = self.gate.rescue_handing_out();
            return;
        }
        if self.gate.held() > 0 {
            self.touch();
        }
        self.gate.drop_held();
        // The spawner calls this until its last delivery ends, and then ends itself.
        if self.gate.in_use() == 0 {
            let now_us = self.now_us();
            if self.dirty {
                self.write_status(now_us);
            }
            self.write_seen(now_us);
            self.close_start_log(now_us);
        }
    }

    /// The parts of a command that [`Host::due`] gave.
    #[must_use]
    pub fn command(&self, command: u32) -> Parts<'_> {
        self.gate.command(command)
    }

    /// The report of the last answer, ended by a zero byte.
    #[must_use]
    pub fn text(&self) -> &[u8] {
        &self.text.bytes
    }

    /// An internal error: from now on every delivery starts, and held commands are given back.
    pub fn fail(&mut self) {
        if !self.failed {
            self.failed = true;
            if let Some(slot) = self.asking {
                // The answer is that this one starts, so it must not be given back as well.
                self.gate.abandon(slot);
            }
            self.gate.leave_spawners();
            let now_us = self.now_us();
            self.write_status(now_us);
        }
    }

    fn rescue(&mut self) -> Due {
        if let Some((slot, command)) = self.gate.rescue_handing_out() {
            return Due::Go { slot, command };
        }
        let Some((slot, command)) = self.gate.rescue(self.rescue_from) else {
            self.rescue_from = self.slots;
            return match self.gate.rescue_call() {
                Some(number) => {
                    self.call_text(Call { number, most: u32::MAX });
                    Due::Call
                }
                None => Due::Nothing,
            };
        };
        self.rescue_from = slot + 1;
        Due::Go { slot, command }
    }

    fn now_us(&self) -> u64 {
        self.clock.now_us()
    }

    fn unix_secs(&self) -> u64 {
        self.clock.wall().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
    }

    /// The status has to be written. That is so without limits, too: running deliveries are counted all the same.
    fn touch(&mut self) {
        self.dirty = true;
    }

    /// Waits, for a second at most, until no control file changes any more. A file that still changes then does not
    /// count: see [`Control::look`].
    fn come_to_rest(&mut self) {
        let until_us = START_WAIT.as_micros() as u64;
        let clock = &self.clock;
        let all = [&mut self.domains, &mut self.routes, &mut self.sites, &mut self.replies];
        for file in all.into_iter().chain(&mut self.senders) {
            // A problem with it is reported when the copy is needed.
            let _ = file.kept.read();
            while file.is_restless(clock) && clock.now_us() < until_us {
                clock.pause(QUIET / 10);
            }
        }
    }

    /// What has to be done once a second.
    #[inline]
    fn tick(&mut self, now_us: u64) {
        if now_us.saturating_sub(self.looked_us) >= LOOK_US {
            self.look(now_us);
            // Giving memory back may itself lack memory: then it stays.
            let _ = self.gate.tidy(now_us);
        }
        if now_us.saturating_sub(self.lease.looked_us) >= lease::LOOK_US
            && (self.lease.is_shared() || self.looked_us == now_us)
        {
            self.look_at_lease(now_us);
        }
        let unwritten_us = now_us.saturating_sub(self.written_us);
        if unwritten_us >= lease::LOOK_US
            && self.write_every_us().is_some_and(|every_us| unwritten_us >= every_us)
        {
            self.write_start_log_if_due(now_us);
            self.write_status(now_us);
        }
        if now_us.saturating_sub(self.seen_written_us) >= WRITE_SITES_US {
            self.write_seen(now_us);
        }
    }

    fn look(&mut self, now_us: u64) {
        self.looked_us = now_us;
        self.look_at_domains(now_us);
        let routes = follow::<Routes>(&mut self.routes, &mut self.gate, &self.clock, now_us);
        let sites = follow::<Map>(&mut self.sites, &mut self.gate, &self.clock, now_us);
        let replies = follow::<Replies>(&mut self.replies, &mut self.gate, &self.clock, now_us);
        let senders = match &mut self.senders {
            Some(senders) => follow::<Senders>(senders, &mut self.gate, &self.clock, now_us),
            None => false,
        };
        if routes || sites || replies || senders {
            self.touch();
        }
        self.look_for_notices();
        self.look_at_helo();
        self.check_spawners();
        if self.controls().any(|file| (1..RESTLESS_CHECKS_MAX).contains(&file.restless_checks)) {
            self.looked_us = now_us.saturating_sub(LOOK_US - LOOK_AGAIN_US);
        }
    }

    fn look_at_lease(&mut self, now_us: u64) {
        if self.lease.look(&mut self.gate, self.boot, &self.clock, now_us) {
            self.touch();
        }
    }

    /// Checks which other spawners serve the queue.
    fn check_spawners(&mut self) {
        let known = |gate: &Gate| gate.other_spawners().map(|all| (all.index(), all.problem()));
        let before = known(&self.gate);
        if before.is_none() {
            return;
        }
        self.gate.check_spawners();
        let now = known(&self.gate);
        if now == before {
            return;
        }
        self.touch();
        if now.map(|now| now.0) != before.map(|before| before.0) {
            // The file with the old name must not be read any more: it names a process that is alive.
            let _ = overwrite(&self.status_path, b"");
            // Without memory the old name stays until the next change.
            let _ = self.name_files();
        }
    }

    /// Sets the names of the files that only this one of several spawners writes.
    fn name_files(&mut self) -> Result<(), OutOfMemory> {
        let index = self.gate.other_spawners().map_or(0, |spawners| spawners.index());
        let status = numbered(&self.status_base, index)?;
        self.seen_path = numbered(&self.seen_base, index)?;
        self.rates_path = numbered(&join(directory_of(&self.status_base), RATES_FILE)?, index)?;
        self.status_path = status;
        (self.status_problem, self.seen_problem) = (None, None);
        Ok(())
    }

    fn busy_text(&mut self, busy: Busy) {
        let key = self.gate.key(busy.key);
        self.text.bytes.clear();
        // It fits into the memory that is reserved; otherwise the text would only end early.
        let _ = write_busy(&mut self.text, key, busy);
        let _ = self.text.push(b"\0");
    }

    /// Adds a line to the log that says how long a delivery was held. It is only for reports that nothing but
    /// qmail-send's log shows: a bounce goes to the sender, whom this does not concern.
    fn times_text(&mut self, DeliveryTimes { held_ms, ran_ms }: DeliveryTimes) {
        let secs = |ms: u64| (ms / 1000, ms % 1000);
        let ((held, held_part), (ran, ran_part)) = (secs(held_ms.into()), secs(ran_ms));
        // As in busy_text.
        let _ = write!(self.text, "Held {held}.{held_part:03} s, ran {ran}.{ran_part:03} s.\n\0");
    }

    fn call_text(&mut self, Call { number, most }: Call) {
        self.text.bytes.clear();
        // As in busy_text.
        let _ = write!(self.text, "R{number} {most}\n\0");
    }

    fn plain_text(&mut self, text: &str) {
        self.text.bytes.clear();
        let _ = self.text.push(text.as_bytes());
        let _ = self.text.push(b"\0");
    }

    fn write_status(&mut self, now_us: u64) {
        self.written_us = now_us;
        self.dirty = false;
        self.lease.is_unconfirmed = false;
        self.generation += 1;
        self.gate.count_away_by_domain();
        let state = match self.gate.rules().table {
            _ if self.failed => State::Failed,
            Some(_) => State::Limits,
            None => State::Stock,
        };
        let in_force = match state {
            State::Stock | State::Failed => InForce::None,
            State::Limits => match self.domains.source {
                ContentsSource::File | ContentsSource::Nothing => InForce::File,
                ContentsSource::Earlier => InForce::Kept,
                ContentsSource::Part => InForce::Part,
            },
        };
        let frame = Frame {
            generation: self.generation,
            written_secs: self.unix_secs(),
            pid: std::process::id(),
            identity: self.identity,
            state,
            in_force,
            slots: self.slots,
            concurrency_remote: self.concurrency_remote,
            loaded_secs: self.loaded_secs,
            lease_seq: self.lease.seq(),
            now_us,
        };
        let mut problems = [[None; 3]; 7];
        for (to, control) in problems.iter_mut().zip(self.controls()) {
            *to = control.problems();
        }
        let shared = self.gate.other_spawners().and_then(OtherSpawners::problem);
        problems[5] = [self.concurrency_problem, self.status_problem, self.seen_problem];
        problems[6] = [shared, self.rates_problem, self.lease.problem];
        if status::write(&mut self.status_text, &frame, &self.gate, problems.as_flattened())
            .is_err()
        {
            return;
        }
        let written = overwrite(&self.status_path, &self.status_text.bytes);
        self.status_problem =
            written.err().map(|kind| Problem::of_file(problem::File::Status, kind));
        self.written_bytes = self.status_text.bytes.len() as u64;
        if self.status_text.bytes.capacity() > 64 << 10 {
            self.status_text = Text::default();
        }
    }

    /// The gate, for tests and simulations.
    #[must_use]
    pub fn gate(&self) -> &Gate {
        &self.gate
    }
}
