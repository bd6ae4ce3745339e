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
//! What is not in the log is modelled: mail that was sent away waits until the gate calls it, and qmail-send makes at most
//! 3000 passes a second over mail that waits for it. What qmail-send does with such mail says the twin of its code
//! ([`qpatch_gate_model::retry`]). It keeps not recipients but jobs: one message's recipients of one pass, which are those that the
//! log begins one after the other. A job comes back when all its deliveries have ended, not before, and then tries
//! as many of its busy recipients as were called. One that its own server has deferred, or whose key is suspended,
//! waits for its own time, which is nextretry()'s.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, HashMap};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use clap::Args;
use qpatch_gate::command::Parts;
use qpatch_gate::gate::{Answer, Busy, CONCURRENCY_REMOTE, Gate, Next, Ran, SLOTS_MAX, Why};
use qpatch_gate::learn::Learning;
use qpatch_gate::name::{NAME_MAX, domain_of, without_root};
use qpatch_gate::report::{Report, Seen};
use qpatch_gate::rules::KeyKind;
use qpatch_gate::table::{Cap, Limit, Table};
use qpatch_gate_model::retry::{Closed, Job, Retry, Told};
use serde::Serialize;

use super::check::{Source, load};
use super::log::{self, Event, Precision, Unusable};
use super::said;
use super::text::{Side, count, escaped, key_name, limit_text, limit_value, table};
use super::{Done, Format, print};
use crate::error::Error;

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

/// qmail-send's passes over mail that is due; as in the gate's tests.
const PASS_US: u64 = 1_000_000 / 3000;
/// So many deliveries may wait at once; more are left out.
const WAITING_MAX: usize = 1_000_000;
/// So many deliveries may be open in the log: as many as there are slots, in both spawners.
const OPEN_MAX: usize = 2 * SLOTS_MAX as usize;
/// When there are more keys, those that were never limited are summed up.
const KEYS_MAX: usize = 100_000;
/// So much of the log is looked through for the first status line.
const AHEAD_BYTES: u64 = 1 << 20;
/// A clock that goes back by no more than this was read by two writers in turn.
const JITTER_US: i64 = 5_000_000;
/// Without a line for longer than this, part of the log is missing, or the clock was wrong. No delivery takes so long.
const GAP_MAX_US: i64 = DAY_US;
const DAY_US: i64 = 86_400_000_000;
const YEAR_US: i64 = 365 * DAY_US;
/// So many keys are printed for people.
const ROWS: usize = 40;

/// What a delivery said whose end the log does not tell.
const SILENT: Report = Report { seen: Seen::Nothing, peer: None, rule: None };
/// qmail-send's channel of mail that goes to qmail-rspawn.
const REMOTE: usize = 1;
/// qmail-send's chanskip of that channel.
const SKIP_SECS: i64 = 20;
/// A pass that nothing stops has its next recipient sooner. If none comes, it has seen the last one.
const READ_US: u64 = 10_000;

const UNKNOWN: u64 = u64::MAX;
/// As the time of a start: it would never be.
const PARKED: u64 = u64::MAX - 1;
const NONE: u32 = u32::MAX;

/// The log's clock: from 0 on, never back.
#[derive(Debug, Default)]
struct Clock {
    now_us: u64,
    offset_us: Option<i64>,
    set_back: u64,
    gaps: u64,
}

impl Clock {
    fn at(&mut self, stamp_us: i64) -> u64 {
        let mut offset_us = *self.offset_us.get_or_insert(stamp_us);
        let mut since_us = stamp_us.saturating_sub(offset_us);
        let mut behind_us = (self.now_us as i64).saturating_sub(since_us);
        if behind_us > YEAR_US - 30 * DAY_US && (0..YEAR_US + DAY_US).contains(&stamp_us) {
            // Syslog's new year.
            offset_us -= YEAR_US;
            since_us += YEAR_US;
            behind_us -= YEAR_US;
            self.offset_us = Some(offset_us);
        }
        if behind_us > JITTER_US {
            // Whatever clock it is now, it goes on from here.
            self.set_back += 1;
            self.offset_us = Some(offset_us.saturating_sub(behind_us));
        } else if behind_us < -GAP_MAX_US {
            self.gaps += 1;
            let since_us = self.now_us as i64 + GAP_MAX_US;
            self.offset_us = Some(stamp_us.saturating_sub(since_us));
            self.now_us = since_us as u64;
            return self.now_us;
        }
        self.now_us = self.now_us.max(u64::try_from(since_us).unwrap_or(0));
        self.now_us
    }
}

/// What counts together, in the log and with limits.
#[derive(Debug)]
struct Key {
    kind: KeyKind,
    name: Vec<u8>,
    /// An address that counts here.
    recipient: Vec<u8>,
    cap: Cap,
    /// Open in the log.
    open: u32,
    open_peak: u32,
    running: u32,
    peak: u32,
    /// Waiting or running.
    live: u32,
    deliveries: u64,
    waited: u64,
    waited_us: u64,
    waited_max_us: u64,
    busy: u64,
    /// Limit 0: would not have started.
    never: u64,
    /// Refused because of too many, or connected to nobody.
    objections: u64,
    /// Of these, those that would have gone back as busy.
    refused: u64,
    /// Deferred because no connection succeeded.
    suspended: u64,
    /// The lowest limit that was learned.
    lowest: Limit,
}

impl Key {
    fn is_forgettable(&self) -> bool {
        let did_nothing = self.waited == 0 && self.busy == 0 && self.never == 0;
        self.open == 0 && self.live == 0 && did_nothing && self.objections == 0
    }
}

/// Keys that are not kept apart.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
struct Others {
    keys: u64,
    deliveries: u64,
    peak_before: u32,
}

/// A delivery that waits or runs.
#[derive(Clone, Copy, Debug)]
struct Delivery {
    key: u32,
    slot: u32,
    asked_us: u64,
    /// [`UNKNOWN`] before it has started.
    started_us: u64,
    /// [`UNKNOWN`] before the log has told.
    service_us: u64,
    /// Its job, and which of its recipients it is.
    job: u32,
    position: u32,
    /// What the log says of its end.
    said: Report,
    /// What that means to qmail-send.
    told: Told,
    round: Round,
}

/// Which try of a delivery it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Round {
    /// The one in the log.
    First,
    /// It has been refused and went back; what it would say now is not known.
    Again,
}

/// A message's recipients of one pass.
#[derive(Debug, Default)]
struct Recipients {
    /// Its message's number in the queue.
    message: u64,
    born_us: u64,
    /// Their deliveries, in the order of the message's file; [`NONE`] for those that are done.
    deliveries: Vec<u32>,
    /// How many are not done.
    left: u32,
    /// The pass over them, and those that are in slots: as in qmail-send's struct job.
    refs: u32,
    /// Those whose next try is in the log as a delivery of its own.
    deferred: Vec<u32>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Due {
    /// A delivery ends.
    End(u32),
    /// The pass of the log has seen the last recipient of this job, unless it has more of them now.
    Read(u32, u32),
    /// The time of a job has come that nobody has called.
    Job(u32),
    /// qmail-send turns to mail that is due.
    Pass,
}

/// qmail-send and qmail-rspawn around the gate.
#[derive(Debug)]
struct Machine {
    gate: Gate,
    keys: Vec<Key>,
    /// By kind and name.
    index: HashMap<Vec<u8>, u32>,
    free_keys: Vec<u32>,
    name: Vec<u8>,
    sweep_at: usize,
    others: Others,
    deliveries: Vec<Delivery>,
    free: Vec<u32>,
    events: BinaryHeap<Reverse<(u64, u64, Due)>>,
    sequence: u64,
    /// The deliveries in the slots.
    slots: Vec<u32>,
    free_slots: Vec<u32>,
    /// Mail that was sent away.
    retry: Retry,
    jobs: Vec<Recipients>,
    free_jobs: Vec<u32>,
    /// The job of the log's pass.
    reads: Option<u32>,
    /// The job of the pass over what waited, and its next recipient.
    passes: Option<(u32, u32)>,
    /// Jobs that are due, and wait for a pass: that which was due first, in seconds, in front.
    queue: BinaryHeap<Reverse<(i64, u64, u32)>>,
    pass_at_us: u64,
    pass_is_due: bool,
    now_us: u64,
    tidied_us: u64,
    last_end_us: u64,
    in_use_peak: u32,
    held_peak: u32,
}

impl Machine {
    fn new(gate: Gate) -> Self {
        Self {
            gate,
            keys: Vec::new(),
            index: HashMap::new(),
            free_keys: Vec::new(),
            name: Vec::new(),
            sweep_at: KEYS_MAX,
            others: Others::default(),
            deliveries: Vec::new(),
            free: Vec::new(),
            events: BinaryHeap::new(),
            sequence: 0,
            slots: Vec::new(),
            free_slots: Vec::new(),
            retry: Retry::default(),
            jobs: Vec::new(),
            free_jobs: Vec::new(),
            reads: None,
            passes: None,
            queue: BinaryHeap::new(),
            pass_at_us: 0,
            pass_is_due: false,
            now_us: 0,
            tidied_us: 0,
            last_end_us: 0,
            in_use_peak: 0,
            held_peak: 0,
        }
    }

    /// There are at least so many slots from now on.
    fn grow(&mut self, slots: u32) {
        for slot in self.slots.len() as u32..slots.min(SLOTS_MAX) {
            self.slots.push(NONE);
            self.free_slots.push(slot);
        }
    }

    /// Lets everything happen that is due until then.
    fn advance(&mut self, to_us: u64) {
        loop {
            let event_us = self.events.peek().map(|&Reverse((at_us, ..))| at_us);
            let hold_us = self.gate.timeout_us(self.now_us).map(|us| self.now_us + us);
            let back_us = self.retry.next().map(|at_secs| at_secs.max(0) as u64 * 1_000_000);
            let Some(at_us) = event_us.into_iter().chain(hold_us).chain(back_us).min() else {
                break;
            };
            if at_us > to_us {
                break;
            }
            self.now_us = self.now_us.max(at_us);
            if event_us == Some(at_us)
                && let Some(Reverse((_, _, due))) = self.events.pop()
            {
                match due {
                    Due::End(delivery) => self.end(delivery),
                    Due::Read(job, recipients) => {
                        if self.reads == Some(job)
                            && self.jobs[job as usize].deliveries.len() == recipients as usize
                        {
                            self.reads = None;
                            self.leave(job);
                        }
                    }
                    Due::Job(job) => self.queue(job, self.now_secs()),
                    Due::Pass => {
                        self.pass_is_due = false;
                        self.pass();
                    }
                }
            }
            self.settle();
        }
        self.now_us = self.now_us.max(to_us);
    }

    /// After each step: held deliveries start, and the next pass is planned.
    fn settle(&mut self) {
        loop {
            match self.gate.next(self.now_us) {
                Next::None => break,
                Next::Go { slot, .. } => self.start(self.slots[slot as usize]),
                Next::Busy { slot, busy, .. } => self.send_away(self.slots[slot as usize], busy),
                Next::Call(call) => self.retry.call(REMOTE, call.number, call.most),
            }
        }
        while let Some((job, due_secs)) = self.retry.due(REMOTE, self.now_secs()) {
            self.queue(job as u32, due_secs);
        }
        let has_work = self.passes.is_some() || !self.queue.is_empty();
        if !self.pass_is_due && has_work && !self.free_slots.is_empty() {
            self.pass_is_due = true;
            self.at(self.now_us.max(self.pass_at_us), Due::Pass);
        }
        if self.now_us >= self.tidied_us + 1_000_000 {
            self.tidied_us = self.now_us;
            // Without memory to give memory back there is nothing to be done.
            let _ = self.gate.tidy(self.now_us);
        }
    }

    fn now_secs(&self) -> i64 {
        (self.now_us / 1_000_000) as i64
    }

    fn queue(&mut self, job: u32, due_secs: i64) {
        self.sequence += 1;
        self.queue.push(Reverse((due_secs, self.sequence, job)));
    }

    /// A job without recipients.
    fn job(&mut self, message: u64) -> u32 {
        let at = self.free_jobs.pop().unwrap_or_else(|| {
            self.jobs.push(Recipients::default());
            self.jobs.len() as u32 - 1
        });
        let job = &mut self.jobs[at as usize];
        (job.message, job.born_us) = (message, self.now_us);
        at
    }

    fn add(&mut self, job: u32, at: u32) {
        let recipients = &mut self.jobs[job as usize];
        recipients.left += 1;
        recipients.deliveries.push(at);
        let position = recipients.deliveries.len() as u32 - 1;
        let delivery = &mut self.deliveries[at as usize];
        (delivery.job, delivery.position) = (job, position);
    }

    /// A pass over a job begins.
    fn open(&mut self, job: u32, due_secs: i64) {
        self.jobs[job as usize].refs += 1;
        self.retry.open(job as usize, name_of(job), due_secs);
    }

    /// qmail-send's pass_dochan, but for the log's own pass: up to the next recipient that is to be tried.
    fn pass(&mut self) {
        while !self.free_slots.is_empty() {
            let (job, mut position) = match self.passes {
                Some(passes) => passes,
                None => {
                    let Some(Reverse((due_secs, _, job))) = self.queue.pop() else { return };
                    self.open(job, due_secs);
                    // Positions are indices here, which are few enough for this.
                    (job, self.retry.from(job as usize).unwrap_or(0) as u32)
                }
            };
            let now_secs = self.now_secs();
            let deliveries = &self.jobs[job as usize].deliveries;
            while let Some(&delivery) = deliveries.get(position as usize)
                && !self.retry.stop(job as usize, position.into())
            {
                position += 1;
                if delivery != NONE
                    && !self.retry.skip(
                        job as usize,
                        name_of(job),
                        u64::from(position - 1),
                        now_secs,
                    )
                    && let Some(slot) = self.free_slots.pop()
                {
                    self.passes = Some((job, position));
                    self.ask(delivery, slot);
                    return;
                }
            }
            self.passes = None;
            self.leave(job);
        }
    }

    /// qmail-send's job_close.
    fn leave(&mut self, at: u32) {
        let job = &mut self.jobs[at as usize];
        job.refs -= 1;
        if job.refs > 0 {
            return;
        }
        if job.left == 0 {
            // Nothing of it waits here, so nothing is remembered.
            for position in std::mem::take(&mut job.deferred) {
                self.retry.skip(at as usize, name_of(at), position.into(), i64::MAX);
            }
            *job = Recipients::default();
            self.free_jobs.push(at);
            return;
        }
        let (natural, now_secs) = (self.natural_secs(at), self.now_secs());
        let closed = self.retry.close(at as usize, name_of(at), natural, now_secs);
        if let Closed::Due(at_secs) = closed {
            let due_us = at_secs.max(0) as u64 * 1_000_000;
            self.at(due_us.max(self.now_us), Due::Job(at));
        }
    }

    /// When qmail-send would try it again: its nextretry(). It takes the time at which a job begins; this is the time at which one
    /// of its deliveries ends, for a job of the log has no other.
    fn natural_secs(&self, job: u32) -> i64 {
        let born_secs = (self.jobs[job as usize].born_us / 1_000_000) as i64;
        let tries = (self.now_secs() - born_secs).isqrt() + SKIP_SECS;
        born_secs + tries * tries
    }

    /// qmail-send hears of a delivery.
    fn tell(&mut self, at: u32, told: Told) {
        let Delivery { job, position, .. } = self.deliveries[at as usize];
        let (natural, now_secs) = (self.natural_secs(job), self.now_secs());
        self.retry.report(job as usize, name_of(job), position.into(), natural, told, now_secs);
    }

    /// This delivery comes no more.
    fn finish(&mut self, at: u32) {
        let Delivery { key, job, position, .. } = self.deliveries[at as usize];
        self.keys[key as usize].live -= 1;
        let recipients = &mut self.jobs[job as usize];
        recipients.deliveries[position as usize] = NONE;
        recipients.left -= 1;
        self.leave(job);
    }

    fn at(&mut self, at_us: u64, due: Due) {
        self.sequence += 1;
        self.events.push(Reverse((at_us, self.sequence, due)));
    }

    /// The key of a recipient, and its number.
    fn key(&mut self, recipient: &[u8]) -> u32 {
        let domain = domain_of(recipient);
        let (kind, cap) = match domain {
            // Without an @ there is no domain, and the gate lets it pass.
            None => {
                self.name.clear();
                self.name.extend_from_slice(b"(no @)");
                (KeyKind::Domain, Cap::NONE)
            }
            Some(domain) => {
                let domain = without_root(domain);
                let domain = &domain[domain.len().saturating_sub(NAME_MAX)..];
                let found = self.gate.rules().resolve(domain);
                self.name.clear();
                self.name.extend_from_slice(found.name);
                self.name.make_ascii_lowercase();
                (found.kind, found.cap)
            }
        };
        self.name.push(kind as u8);
        if let Some(&at) = self.index.get(&self.name) {
            return at;
        }
        if self.index.len() >= self.sweep_at {
            self.sweep();
        }
        let address = domain.map_or(b"x".to_vec(), |domain| {
            let domain = &domain[domain.len().saturating_sub(NAME_MAX + 1)..];
            [b"@", domain].concat()
        });
        let key = Key {
            kind,
            name: self.name[..self.name.len() - 1].to_vec(),
            recipient: address,
            cap,
            open: 0,
            open_peak: 0,
            running: 0,
            peak: 0,
            live: 0,
            deliveries: 0,
            waited: 0,
            waited_us: 0,
            waited_max_us: 0,
            busy: 0,
            never: 0,
            objections: 0,
            refused: 0,
            suspended: 0,
            lowest: cap.limit,
        };
        let at = match self.free_keys.pop() {
            Some(at) => {
                self.keys[at as usize] = key;
                at
            }
            None => {
                self.keys.push(key);
                self.keys.len() as u32 - 1
            }
        };
        self.index.insert(self.name.clone(), at);
        at
    }

    /// Sums up keys that nothing has happened to.
    fn sweep(&mut self) {
        let Self { keys, index, free_keys, others, .. } = self;
        index.retain(|_, &mut at| {
            let key = &mut keys[at as usize];
            let forget = key.is_forgettable();
            if forget {
                others.keys += 1;
                others.deliveries += key.deliveries;
                others.peak_before = others.peak_before.max(key.open_peak);
                key.deliveries = 0;
                free_keys.push(at);
            }
            !forget
        });
        self.sweep_at = KEYS_MAX.max(2 * self.index.len());
    }

    /// A delivery has been handed out now. None if too many wait already.
    fn arrive(&mut self, key: u32, message: u64) -> Option<u32> {
        let delivery = Delivery {
            key,
            slot: NONE,
            asked_us: self.now_us,
            started_us: UNKNOWN,
            service_us: UNKNOWN,
            job: NONE,
            position: NONE,
            said: SILENT,
            told: Told::Done,
            round: Round::First,
        };
        let at = match self.free.pop() {
            Some(at) => {
                self.deliveries[at as usize] = delivery;
                at
            }
            None if self.deliveries.len() >= WAITING_MAX => return None,
            None => {
                self.deliveries.push(delivery);
                self.deliveries.len() as u32 - 1
            }
        };
        self.keys[key as usize].live += 1;
        match self.free_slots.pop() {
            // It does not queue up behind mail that is due: the log says that this was its pass.
            Some(slot) => {
                let job = self.reads(message);
                self.add(job, at);
                let recipients = self.jobs[job as usize].deliveries.len() as u32;
                self.at(self.now_us + READ_US, Due::Read(job, recipients));
                self.ask(at, slot);
            }
            None => {
                let job = self.job(message);
                self.add(job, at);
                self.queue(job, self.now_secs());
            }
        }
        self.settle();
        Some(at)
    }

    /// The job that the log's pass has begun with this message.
    fn reads(&mut self, message: u64) -> u32 {
        if let Some(job) = self.reads {
            if self.jobs[job as usize].message == message {
                return job;
            }
            self.leave(job);
        }
        let job = self.job(message);
        self.open(job, self.now_secs());
        self.reads = Some(job);
        job
    }

    /// The log tells that a delivery ended now, and how.
    fn tell_end(&mut self, at: u32, said: Report, told: Told) {
        let now_us = self.now_us;
        let delivery = &mut self.deliveries[at as usize];
        (delivery.said, delivery.told) = (said, told);
        delivery.service_us = now_us - delivery.asked_us;
        match delivery.started_us {
            UNKNOWN => {}
            PARKED => self.free.push(at),
            started_us => {
                let end_us = started_us + delivery.service_us;
                self.at(end_us, Due::End(at));
            }
        }
    }

    fn ask(&mut self, at: u32, slot: u32) {
        self.pass_at_us = self.now_us + PASS_US;
        let Delivery { key, job, .. } = self.deliveries[at as usize];
        let job = &mut self.jobs[job as usize];
        job.refs += 1;
        let message = job.message;
        self.deliveries[at as usize].slot = slot;
        self.slots[slot as usize] = at;
        let recipient = &self.keys[key as usize].recipient;
        let message = message.to_string();
        let answer = match Parts::new(&[message.as_bytes(), b"", recipient]) {
            Some(parts) => self.gate.ask(self.now_us, slot, &parts),
            None => Answer::Go,
        };
        match answer {
            Answer::Go | Answer::InUse => self.start(at),
            Answer::Hold => {}
            Answer::Busy(busy) => self.send_away(at, busy),
        }
        self.in_use_peak = self.in_use_peak.max(self.gate.in_use());
        self.held_peak = self.held_peak.max(self.gate.held());
    }

    fn start(&mut self, at: u32) {
        let delivery = &mut self.deliveries[at as usize];
        delivery.started_us = self.now_us;
        let Delivery { key, asked_us, started_us, service_us, round, .. } = *delivery;
        if round == Round::Again {
            self.at(started_us, Due::End(at));
            return;
        }
        let key = &mut self.keys[key as usize];
        key.running += 1;
        key.peak = key.peak.max(key.running);
        let waited_us = started_us - asked_us;
        if waited_us > 0 {
            key.waited += 1;
            key.waited_us += waited_us;
            key.waited_max_us = key.waited_max_us.max(waited_us);
        }
        if service_us != UNKNOWN {
            self.at(started_us + service_us, Due::End(at));
        }
    }

    fn end(&mut self, at: u32) {
        let Delivery { key, slot, said, told, round, job, position, .. } =
            self.deliveries[at as usize];
        self.free_slots.push(slot);
        let key = &mut self.keys[key as usize];
        if round == Round::Again {
            self.gate.done(self.now_us, slot, Ran::No);
            self.finish(at);
            self.free.push(at);
            return;
        }
        let back = self.gate.done(self.now_us, slot, Ran::Yes(&said::report(&said)));
        key.running -= 1;
        self.last_end_us = self.last_end_us.max(self.now_us);
        if said::is_objection(said.seen) {
            key.objections += 1;
            if key.cap.learning == Learning::On
                && let Some(of_gate) = self.gate.find_key(key.kind, &key.name)
            {
                key.lowest = key.lowest.min(of_gate.limit());
            }
        }
        match back {
            None => {
                self.tell(at, told);
                if told != Told::Done {
                    self.jobs[job as usize].deferred.push(position);
                }
                self.finish(at);
                self.free.push(at);
            }
            Some(busy) => {
                key.refused += 1;
                self.deliveries[at as usize].round = Round::Again;
                self.away(at, busy);
            }
        }
    }

    fn send_away(&mut self, at: u32, busy: Busy) {
        let Delivery { key, slot, service_us, .. } = self.deliveries[at as usize];
        self.free_slots.push(slot);
        let key = &mut self.keys[key as usize];
        match busy.why {
            Why::Suspended(_) => key.suspended += 1,
            Why::AtLimit | Why::Refused | Why::Paused(_) | Why::AtPart(_) => key.busy += 1,
        }
        if key.cap.limit == Limit::AtMost(0) {
            // It would come back again and again.
            key.never += 1;
            self.finish(at);
            self.deliveries[at as usize].started_us = PARKED;
            if service_us != UNKNOWN {
                self.free.push(at);
            }
            return;
        }
        self.away(at, busy);
    }

    /// It waits until it is called, or until the time that the gate has told.
    fn away(&mut self, at: u32, busy: Busy) {
        let told = match busy.why {
            Why::Suspended(_) => Told::Deferred,
            Why::AtLimit | Why::Refused | Why::Paused(_) | Why::AtPart(_) => {
                Told::Busy { secs: busy.secs.into(), queue: self.gate.key(busy.key).number }
            }
        };
        self.tell(at, told);
        self.leave(self.deliveries[at as usize].job);
    }
}

/// As qmail-send's half knows it.
fn name_of(job: u32) -> Job {
    Job { channel: REMOTE, id: job.into() }
}

/// A delivery that the log has begun and not ended.
#[derive(Clone, Copy, Debug)]
enum Open {
    Local,
    Remote {
        key: u32,
        /// None if it was left out.
        delivery: Option<u32>,
    },
}

/// What the log was like.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
struct Lines {
    read: u64,
    /// No time stamp.
    no_stamp: u64,
    /// Not qmail-send's.
    foreign: u64,
    /// The first of both, from 1; 0 if there is none.
    first_unusable: u64,
    /// Ends of deliveries whose beginnings are not in the log.
    ends_only: u64,
    /// Beginnings whose ends are not in the log.
    starts_only: u64,
    /// Busy answers that the log has already.
    busy_already: u64,
    /// Deliveries that were left out because too many waited.
    left_out: u64,
    /// The clock was set back.
    set_back: u64,
    /// More than a day without a line; each is taken as a day.
    gaps: u64,
    /// The numbers of deliveries began anew.
    restarts: u64,
    /// Stamps have no fractions of seconds.
    whole_seconds: bool,
}

/// A log, line by line, through the machine.
#[derive(Debug)]
struct Run {
    machine: Machine,
    clock: Clock,
    open: BTreeMap<u64, Open>,
    open_remote: u32,
    open_remote_peak: u32,
    last_number: u64,
    last_end_us: u64,
    deliveries: u64,
    lines: Lines,
    slots: Slots,
}

/// Who says how many slots there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Slots {
    /// The operator.
    Given,
    /// A status line of the log.
    Status,
    /// Nobody: as many as were used, and the default at least.
    Used,
}

impl Run {
    fn line(&mut self, line: &[u8]) {
        self.lines.read += 1;
        let (stamp_us, precision, event) = match log::parse(line) {
            Ok(((stamp_us, precision), event)) => (stamp_us, precision, event),
            Err(_) if line.trim_ascii().is_empty() => return,
            Err(unusable) => {
                match unusable {
                    Unusable::NoStamp => self.lines.no_stamp += 1,
                    Unusable::Foreign => self.lines.foreign += 1,
                }
                if self.lines.first_unusable == 0 {
                    self.lines.first_unusable = self.lines.read;
                }
                return;
            }
        };
        let now_us = self.clock.at(stamp_us);
        self.lines.whole_seconds |= precision == Precision::Seconds;
        if !matches!(event, Event::Status { .. } | Event::Other) {
            self.machine.advance(now_us);
        }
        match event {
            Event::Start { number, message, recipient } => {
                self.number(number);
                self.open_remote += 1;
                self.open_remote_peak = self.open_remote_peak.max(self.open_remote);
                if self.slots == Slots::Used {
                    self.machine.grow(self.open_remote);
                }
                let at = self.machine.key(recipient);
                let key = &mut self.machine.keys[at as usize];
                key.deliveries += 1;
                key.open += 1;
                key.open_peak = key.open_peak.max(key.open);
                self.deliveries += 1;
                let delivery = self.machine.arrive(at, message);
                self.lines.left_out += u64::from(delivery.is_none());
                self.open.insert(number, Open::Remote { key: at, delivery });
            }
            Event::StartLocal { number } => {
                self.number(number);
                self.open.insert(number, Open::Local);
            }
            Event::End { number, end, text } => match self.open.remove(&number) {
                None => self.lines.ends_only += 1,
                Some(open) => {
                    self.lines.busy_already += u64::from(end == log::End::Busy);
                    let told = match end {
                        log::End::Success | log::End::Failure => Told::Done,
                        log::End::Deferral
                        | log::End::Mangled
                        | log::End::Busy
                        | log::End::Refused => Told::Deferred,
                    };
                    self.end(open, said::of_log(end, text), told);
                }
            },
            Event::Status { concurrency_remote } => {
                if self.slots == Slots::Status {
                    self.machine.grow(concurrency_remote);
                }
            }
            Event::Other => {}
        }
    }

    /// A new delivery has this number.
    fn number(&mut self, number: u64) {
        if number <= self.last_number {
            self.lines.restarts += 1;
            self.cut_off(0);
        }
        self.last_number = number;
        self.cut_off(OPEN_MAX - 1);
    }

    fn end(&mut self, open: Open, said: Report, told: Told) {
        let Open::Remote { key, delivery } = open else { return };
        self.open_remote -= 1;
        self.machine.keys[key as usize].open -= 1;
        self.last_end_us = self.machine.now_us;
        if let Some(delivery) = delivery {
            self.machine.tell_end(delivery, said, told);
        }
    }

    /// The oldest deliveries are not told to end any more: now, then.
    fn cut_off(&mut self, left: usize) {
        while self.open.len() > left
            && let Some((_, open)) = self.open.pop_first()
        {
            self.lines.starts_only += u64::from(matches!(open, Open::Remote { .. }));
            self.end(open, SILENT, Told::Done);
        }
    }
}

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

    let mut run = Run {
        machine: Machine::new(gate),
        clock: Clock::default(),
        open: BTreeMap::new(),
        open_remote: 0,
        open_remote_peak: 0,
        last_number: 0,
        last_end_us: 0,
        deliveries: 0,
        lines: Lines::default(),
        slots,
    };
    run.machine.grow(concurrency_remote);
    let mut input = (&ahead[..]).chain(input);
    let mut line = Vec::new();
    while log::next_line(&mut input, &mut line).map_err(unread)? {
        run.line(&line);
    }
    run.cut_off(0);
    run.machine.advance(u64::MAX - 1);
    (run.lines.set_back, run.lines.gaps) = (run.clock.set_back, run.clock.gaps);
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

/// What came out. Times are in seconds.
#[derive(Debug, Serialize)]
struct Outcome {
    file: String,
    #[serde(skip)]
    rules: u64,
    #[serde(skip)]
    default: Limit,
    concurrencyremote: u32,
    #[serde(skip)]
    slots: Slots,
    lines: Lines,
    deliveries: u64,
    seconds: f64,
    /// The most at once, of all domains.
    peak_before: u32,
    /// The most that ran or were held at once, with limits.
    slots_with_limits: u32,
    held_peak: u32,
    waited: u64,
    mean_wait: f64,
    max_wait: f64,
    /// Over all deliveries.
    added_delay: f64,
    busy_answers: u64,
    never_started: u64,
    /// Deliveries that were refused because of too many, or connected to nobody.
    objections: u64,
    /// How much later the last one ends.
    last_end_later: f64,
    keys: Vec<Row>,
    others: Others,
}

#[derive(Debug, Serialize)]
struct Row {
    #[serde(skip)]
    key_kind: KeyKind,
    kind: &'static str,
    key: String,
    #[serde(skip)]
    at_most: Limit,
    /// null is unlimited.
    limit: Option<u32>,
    deliveries: u64,
    peak_before: u32,
    peak_with_limits: u32,
    waited: u64,
    mean_wait: f64,
    max_wait: f64,
    added_delay: f64,
    busy_answers: u64,
    never_started: u64,
    learns: bool,
    objections: u64,
    /// Of the objections, those that would have gone back as busy.
    refused: u64,
    /// Deferred because no connection succeeded.
    suspended: u64,
    #[serde(skip)]
    lowest: Limit,
    /// null is unlimited.
    lowest_limit: Option<u32>,
}

fn secs(us: u64) -> f64 {
    us as f64 / 1e6
}

fn mean(us: u64, of: u64) -> f64 {
    if of == 0 { 0.0 } else { secs(us) / of as f64 }
}

impl Outcome {
    fn new(path: &Path, rules: u64, default: Limit, run: &Run) -> Self {
        let machine = &run.machine;
        let mut keys: Vec<&Key> = machine.keys.iter().filter(|key| key.deliveries > 0).collect();
        keys.sort_by(|a, b| {
            let rank = |key: &Key| (key.never, key.waited_us, key.open_peak, key.deliveries);
            rank(b)
                .cmp(&rank(a))
                .then_with(|| (a.kind.name(), &a.name).cmp(&(b.kind.name(), &b.name)))
        });
        let sum = |get: fn(&Key) -> u64| keys.iter().map(|key| get(key)).sum::<u64>();
        let waited_us = sum(|key| key.waited_us);
        let row = |key: &&Key| Row {
            key_kind: key.kind,
            kind: key.kind.name(),
            key: escaped(&key.name),
            at_most: key.cap.limit,
            limit: limit_value(key.cap.limit),
            deliveries: key.deliveries,
            peak_before: key.open_peak,
            peak_with_limits: key.peak,
            waited: key.waited,
            mean_wait: mean(key.waited_us, key.waited),
            max_wait: secs(key.waited_max_us),
            added_delay: mean(key.waited_us, key.deliveries - key.never),
            busy_answers: key.busy,
            never_started: key.never,
            learns: key.cap.learning == Learning::On,
            objections: key.objections,
            refused: key.refused,
            suspended: key.suspended,
            lowest: key.lowest,
            lowest_limit: limit_value(key.lowest),
        };
        let waited = sum(|key| key.waited);
        let never = sum(|key| key.never);
        Self {
            file: path.display().to_string(),
            rules,
            default,
            concurrencyremote: machine.slots.len() as u32,
            slots: run.slots,
            lines: run.lines,
            deliveries: run.deliveries,
            seconds: secs(run.clock.now_us),
            peak_before: run.open_remote_peak,
            slots_with_limits: machine.in_use_peak,
            held_peak: machine.held_peak,
            waited,
            mean_wait: mean(waited_us, waited),
            max_wait: secs(keys.iter().map(|key| key.waited_max_us).max().unwrap_or(0)),
            added_delay: mean(waited_us, run.deliveries - never),
            busy_answers: sum(|key| key.busy),
            never_started: never,
            objections: sum(|key| key.objections),
            last_end_later: secs(machine.last_end_us.saturating_sub(run.last_end_us)),
            keys: keys.iter().map(row).collect(),
            others: machine.others,
        }
    }

    fn table(&self, out: &mut dyn Write) -> io::Result<()> {
        let from = match self.slots {
            Slots::Given => "",
            Slots::Status => " (as the log says)",
            Slots::Used => " (the log has no status lines)",
        };
        writeln!(
            out,
            "limits: {}: {}, default {}; concurrencyremote {}{from}",
            self.file,
            count(self.rules, "line"),
            limit_text(self.default),
            self.concurrencyremote
        )?;
        let deliveries = deliveries(self.deliveries);
        writeln!(
            out,
            "log:    {deliveries} to remote recipients in {}, {} at once at most",
            time(self.seconds),
            self.peak_before
        )?;
        writeln!(
            out,
            "result: {} would have waited, {} in the mean and {} at most; {}; the last one ends {} later",
            self.waited,
            time(self.mean_wait),
            time(self.max_wait),
            count(self.busy_answers, "busy answer"),
            time(self.last_end_later)
        )?;
        for note in self.notes() {
            writeln!(out, "note:   {note}")?;
        }
        writeln!(out)?;
        let columns = [
            ("KEY", Side::Left),
            ("LIMIT", Side::Right),
            ("DELIVERIES", Side::Right),
            ("PEAK", Side::Right),
            ("WITH LIMIT", Side::Right),
            ("WAITED", Side::Right),
            ("MEAN WAIT", Side::Right),
            ("MAX WAIT", Side::Right),
            ("ADDED DELAY", Side::Right),
            ("BUSY", Side::Right),
        ];
        let row = |row: &Row| {
            [
                key_name(row.key_kind, &row.key),
                limit_text(row.at_most),
                row.deliveries.to_string(),
                row.peak_before.to_string(),
                row.peak_with_limits.to_string(),
                row.waited.to_string(),
                time(row.mean_wait),
                time(row.max_wait),
                time(row.added_delay),
                row.busy_answers.to_string(),
            ]
        };
        let mut rows: Vec<_> = self.keys.iter().take(ROWS).map(row).collect();
        rows.push([
            "all".to_string(),
            String::new(),
            self.deliveries.to_string(),
            self.peak_before.to_string(),
            String::new(),
            self.waited.to_string(),
            time(self.mean_wait),
            time(self.max_wait),
            time(self.added_delay),
            self.busy_answers.to_string(),
        ]);
        table(out, columns, &rows)?;
        let more = self.keys.len().saturating_sub(ROWS) as u64 + self.others.keys;
        if more > 0 {
            writeln!(
                out,
                "{} of less interest left out; --format json has more",
                count(more, "key")
            )?;
        }
        self.learned(out)
    }

    /// The keys that learn and were objected to.
    fn learned(&self, out: &mut dyn Write) -> io::Result<()> {
        let columns = [
            ("LEARNS", Side::Left),
            ("LIMIT", Side::Right),
            ("LOWEST", Side::Right),
            ("OBJECTIONS", Side::Right),
            ("BACK AS BUSY", Side::Right),
            ("SUSPENDED", Side::Right),
        ];
        let rows: Vec<_> = self
            .learning()
            .take(ROWS)
            .map(|row| {
                [
                    key_name(row.key_kind, &row.key),
                    limit_text(row.at_most),
                    limit_text(row.lowest),
                    row.objections.to_string(),
                    row.refused.to_string(),
                    row.suspended.to_string(),
                ]
            })
            .collect();
        if rows.is_empty() {
            return Ok(());
        }
        writeln!(out)?;
        table(out, columns, &rows)
    }

    fn learning(&self) -> impl Iterator<Item = &Row> {
        self.keys.iter().filter(|row| row.learns && row.objections > 0)
    }

    /// What to know about these figures.
    fn notes(&self) -> Vec<String> {
        let lines = &self.lines;
        let mut notes = Vec::new();
        let mut note = |number: u64, text: String| {
            if number > 0 {
                notes.push(text);
            }
        };
        let unusable = lines.no_stamp + lines.foreign;
        note(
            unusable,
            format!(
                "{} of {} not used: {} without a time stamp, {} not of qmail-send; the first is line {}",
                unusable,
                count(lines.read, "line"),
                lines.no_stamp,
                lines.foreign,
                lines.first_unusable
            ),
        );
        note(
            lines.ends_only,
            format!("{} that began before the log", count(lines.ends_only, "end")),
        );
        note(
            lines.starts_only,
            format!(
                "{} whose end is not in the log, taken as ended with it or at a restart",
                count(lines.starts_only, "beginning")
            ),
        );
        note(
            lines.restarts,
            format!("the numbers of deliveries began anew {}", times(lines.restarts)),
        );
        note(lines.set_back, format!("the clock was set back {}", times(lines.set_back)));
        note(
            lines.gaps,
            format!("nothing for more than a day {}, taken as a day each", times(lines.gaps)),
        );
        note(
            lines.whole_seconds.into(),
            "the time stamps have whole seconds, so times and peaks are that exact".to_string(),
        );
        let learned = self.learning().count() as u64;
        let back: u64 = self.keys.iter().map(|row| row.refused).sum();
        note(
            learned,
            "whom a server refused in the log it refuses here, with however few beside; what it had taken with fewer \
             is not known, so limits fall lower and rise later than they would"
                .to_string(),
        );
        note(
            back,
            format!(
                "gone back as busy: {back}; not tried once more here, because their next tries are in the log"
            ),
        );
        note(
            u64::from(learned == 0) * self.objections,
            format!(
                "{} refused because of too many, or connected to nobody; no line for them learns",
                deliveries(self.objections)
            ),
        );
        note(
            lines.busy_already,
            format!(
                "{} in the log already: this server had a gate, and what it held counts as running",
                count(lines.busy_already, "busy answer")
            ),
        );
        note(
            lines.left_out,
            format!(
                "{} left out because {WAITING_MAX} waited: the limits are far below what was sent",
                lines.left_out
            ),
        );
        note(
            self.never_started,
            format!("{} would not have started: their limit is 0", self.never_started),
        );
        notes
    }
}

fn deliveries(number: u64) -> String {
    if number == 1 { "1 delivery".to_string() } else { format!("{number} deliveries") }
}

fn times(number: u64) -> String {
    if number == 1 { "once".to_string() } else { format!("{number} times") }
}

fn time(seconds: f64) -> String {
    format!("{seconds:.1} s")
}

#[cfg(test)]
mod tests {
    use super::*;
    use qpatch_gate::route::Routes;

    fn run(rules: &str, concurrency_remote: u32, log: &str) -> Run {
        let mut gate = Gate::new(SLOTS_MAX, concurrency_remote, 1).unwrap();
        let (table, _) = Table::parse(rules.as_bytes(), gate.hasher()).unwrap();
        gate.set_table(Some(table), 0).unwrap();
        gate.set_routes(Routes::new(gate.hasher()), 0).unwrap();
        let mut run = Run {
            machine: Machine::new(gate),
            clock: Clock::default(),
            open: BTreeMap::new(),
            open_remote: 0,
            open_remote_peak: 0,
            last_number: 0,
            last_end_us: 0,
            deliveries: 0,
            lines: Lines::default(),
            slots: Slots::Given,
        };
        run.machine.grow(concurrency_remote);
        for line in log.lines() {
            run.line(line.as_bytes());
        }
        run.cut_off(0);
        run.machine.advance(u64::MAX - 1);
        run
    }

    /// Deliveries to one domain, one every `every_ms`, that take `service_ms` each.
    fn steady(count: u64, every_ms: u64, service_ms: u64) -> String {
        let mut lines = Vec::new();
        for n in 1..=count {
            let start_ms = 1_000_000 + n * every_ms;
            let stamp = |ms: u64| format!("{}.{:03}", ms / 1000, ms % 1000);
            let start =
                format!("{} starting delivery {n}: msg 1 to remote u@a.example", stamp(start_ms));
            lines.push((start_ms, start));
            let end_ms = start_ms + service_ms;
            lines.push((end_ms, format!("{} delivery {n}: success: ok/", stamp(end_ms))));
        }
        lines.sort();
        lines.into_iter().map(|(_, line)| line + "\n").collect()
    }

    #[test]
    fn nothing_is_lost_and_memory_comes_back() {
        // Twice as much as the limit can take: half of it is away or held at the end of the log.
        for limit in [1, 5, 20] {
            let log = steady(4000, 100, 200 * limit);
            let run = run(&format!(":{limit}\n"), 1000, &log);
            let machine = &run.machine;
            assert!(machine.keys[0].peak <= limit as u32);
            assert_eq!((machine.keys[0].live, machine.keys[0].running), (0, 0));
            assert_eq!(machine.free.len(), machine.deliveries.len(), "every delivery ended");
            assert_eq!(machine.free_slots.len(), machine.slots.len());
            assert!(machine.keys[0].waited >= 3900);
            // 400 s of work more than there was time for.
            let later_secs = secs(machine.last_end_us - run.last_end_us);
            assert!((395.0..420.0).contains(&later_secs), "{later_secs}");
        }
    }

    /// One message with these recipients, begun 1 ms after each other: for each its domain and how long it takes in ms.
    fn message(recipients: &[(&str, u64)]) -> String {
        let mut lines = Vec::new();
        let stamp = |ms: u64| format!("{}.{:03}", ms / 1000, ms % 1000);
        for (number, (domain, ms)) in (1..).zip(recipients) {
            let at_ms = 1_000_000 + number;
            let start = format!("starting delivery {number}: msg 7 to remote u@{domain}.example");
            lines.push((at_ms, format!("{} {start}\n", stamp(at_ms))));
            let end_ms = at_ms + ms;
            lines.push((end_ms, format!("{} delivery {number}: success: ok/\n", stamp(end_ms))));
        }
        lines.sort();
        lines.into_iter().map(|(_, line)| line).collect()
    }

    #[test]
    fn the_recipients_of_a_message_come_as_they_are_called() {
        let recipients = vec![("a", 1000); 400];
        let run = run("a.example:10\n", 1000, &message(&recipients));
        let machine = &run.machine;
        let key = &machine.keys[0];
        assert_eq!((key.peak, key.live, key.running), (10, 0, 0));
        // Each call brings one more than were called: the one that is not remembered.
        assert!(key.busy <= 400 + 400 / 10, "{}", key.busy);
        let secs = secs(machine.last_end_us);
        assert!((40.0..46.0).contains(&secs), "{secs}");
        assert_eq!(machine.free.len(), machine.deliveries.len(), "every delivery ended");
        assert_eq!(machine.free_slots.len(), machine.slots.len());
        assert_eq!(machine.free_jobs.len(), machine.jobs.len(), "and every job");
    }

    #[test]
    fn a_job_comes_back_when_all_its_deliveries_have_ended() {
        // There are too few slots to hold any, so one of the second domain goes back as busy, and its place is free after a second.
        let run = run("a.example:1\n", 3, &message(&[("b", 60_000), ("a", 1000), ("a", 1000)]));
        let machine = &run.machine;
        let key = machine.keys.iter().find(|key| key.name == b"a.example").unwrap();
        assert_eq!(key.busy, 1);
        assert!(key.waited_max_us >= 59_000_000, "{}", key.waited_max_us);
        assert_eq!(machine.free_jobs.len(), machine.jobs.len());
    }

    #[test]
    fn within_the_limits_nothing_waits() {
        let run = run(":20\n", 100, &steady(2000, 10, 200));
        let key = &run.machine.keys[0];
        assert_eq!((key.open_peak, key.peak, key.waited, key.busy), (20, 20, 0, 0));
        assert_eq!(run.machine.last_end_us, run.last_end_us);
    }

    #[test]
    fn what_the_log_says_of_a_server_is_learned_from() {
        // A server with ten places: of twenty that come at once, ten are refused at once. Then what fits.
        let stamp = |ms: u64| format!("{}.{:03}", ms / 1000, ms % 1000);
        let mut lines = Vec::new();
        let mut add = |number: u64, at_ms: u64, ms: u64, end: &str| {
            let start = format!("starting delivery {number}: msg {number} to remote u@a.example");
            lines.push((at_ms, format!("{} {start}\n", stamp(at_ms))));
            lines.push((at_ms + ms, format!("{} delivery {number}: {end}\n", stamp(at_ms + ms))));
        };
        for number in 1..=20 {
            let refused = "deferral: Connected_to_192.0.2.1_but_greeting_failed./Remote_host_said:_421_too_many/";
            match number {
                ..=10 => {
                    add(number, 1_000_000 + number, 2000, "success: 192.0.2.1_accepted_message./");
                }
                _ => add(number, 1_000_000 + number, 50, refused),
            }
        }
        for number in 21..=400 {
            add(number, 1_000_000 + number * 200, 2000, "success: 192.0.2.1_accepted_message./");
        }
        lines.sort();
        let log: String = lines.into_iter().map(|(_, line)| line).collect();
        for (rules, lowest, refused) in
            [(":20::learn\n", 10, 10), (":20\n", 20, 0), (":20::fixed\n", 20, 0)]
        {
            let run = run(rules, 100, &log);
            let machine = &run.machine;
            let key = &machine.keys[0];
            assert_eq!((key.objections, key.refused), (10, refused), "{rules}");
            assert_eq!(key.lowest, Limit::AtMost(lowest), "{rules}");
            assert_eq!((key.live, key.running, key.suspended), (0, 0, 0), "{rules}");
            assert_eq!(machine.free.len(), machine.deliveries.len(), "every delivery ended");
            assert_eq!(machine.free_slots.len(), machine.slots.len());
        }
    }

    #[test]
    fn a_server_that_is_not_there_suspends_its_key() {
        let log = steady(600, 100, 50).replace(
            "success: ok/",
            "deferral: Sorry,_I_wasn't_able_to_establish_an_SMTP_connection._(#4.4.1)/",
        );
        let run = run(":20::learn\n", 100, &log);
        let key = &run.machine.keys[0];
        assert_eq!(key.objections, 600);
        assert!(key.suspended > 0);
        assert_eq!((key.live, key.running), (0, 0));
        assert_eq!(run.machine.free.len(), run.machine.deliveries.len());
    }

    #[test]
    fn addresses_in_the_log_lead_to_sites() {
        let mut log = String::new();
        for number in 1..=40 {
            let at = 1000 + number;
            let domain = if number % 2 == 0 { "a" } else { "b" };
            log.push_str(&format!(
                "{at}.0 starting delivery {number}: msg 1 to remote u@{domain}.example\n"
            ));
            log.push_str(&format!(
                "{at}.9 delivery {number}: success: 192.0.2.7_accepted_message./\n"
            ));
        }
        let run = run("192.0.2.0/24:1:farm\n:20\n", 100, &log);
        let farm = run.machine.keys.iter().find(|key| key.kind == KeyKind::Group).unwrap();
        assert_eq!(farm.name, b"farm");
        assert!(farm.deliveries >= 37, "all but the first ones: {}", farm.deliveries);
    }

    #[test]
    fn closed_domains_do_not_run_on_for_ever() {
        let run = run("a.example:0\n", 10, &steady(100, 100, 1000));
        let machine = &run.machine;
        assert_eq!(machine.keys[0].never, 100);
        assert_eq!(machine.free.len(), machine.deliveries.len());
        assert_eq!(machine.free_slots.len(), machine.slots.len());
    }

    #[test]
    fn clocks_that_are_set_back_go_on() {
        let mut clock = Clock::default();
        let secs = [100, 110, 109, 112, 50, 51, 112, 3000];
        let seen = secs.map(|secs| clock.at(secs * 1_000_000) / 1_000_000);
        assert_eq!(seen, [0, 10, 10, 12, 12, 13, 74, 2962]);
        assert_eq!((clock.set_back, clock.gaps), (1, 0));
        assert_eq!(clock.at(i64::MAX), clock_secs(2962 + 86_400));
        assert_eq!(clock.at(i64::MAX - 10), clock_secs(2962 + 86_400));
        assert_eq!(clock.at(5_000_000), clock_secs(2962 + 86_400));
        assert_eq!(clock.at(7_000_000), clock_secs(2964 + 86_400));
        assert_eq!((clock.set_back, clock.gaps), (2, 1));
    }

    fn clock_secs(secs: u64) -> u64 {
        secs * 1_000_000
    }

    #[test]
    fn a_year_that_nobody_knows_ends() {
        let mut clock = Clock::default();
        let seen = [364 * DAY_US, YEAR_US - 1_000_000, 0, 5_000_000].map(|stamp| clock.at(stamp));
        assert_eq!(seen.map(|us| us / 1_000_000), [0, 86_399, 86_400, 86_405]);
        assert_eq!((clock.set_back, clock.gaps), (0, 0));
    }

    #[test]
    fn keys_that_do_nothing_are_summed_up() {
        let mut log = String::new();
        for n in 1..=2 * KEYS_MAX as u64 + 10 {
            log.push_str(&format!("{n} starting delivery {n}: msg 1 to remote u@d{n}.example\n"));
            log.push_str(&format!("{n} delivery {n}: success: ok/\n"));
        }
        let run = run(":1\n", 10, &log);
        assert!(run.machine.index.len() <= KEYS_MAX);
        assert!(run.machine.keys.len() <= KEYS_MAX);
        let listed: u64 = run.machine.keys.iter().map(|key| key.deliveries).sum();
        assert_eq!(listed + run.machine.others.deliveries, run.deliveries);
        assert_eq!(run.machine.others.peak_before, 1);
    }

    #[test]
    fn starts_without_ends_are_bounded() {
        let mut log = String::new();
        for n in 1..=OPEN_MAX as u64 + 100 {
            log.push_str(&format!("1.0 starting delivery {n}: msg 1 to local u\n"));
        }
        let mut run = run(":1\n", 10, &log);
        assert_eq!(run.open.len(), 0);
        for n in 1..=OPEN_MAX as u64 + 100 {
            run.number(n);
            run.open.insert(n, Open::Local);
        }
        assert_eq!(run.open.len(), OPEN_MAX);
    }
}
