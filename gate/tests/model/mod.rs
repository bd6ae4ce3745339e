//! A discrete-event model of qmail-send and qmail-rspawn around the real core.
//!
//! qmail-send is [`QmailSend`]. A recipient that it hands out takes PASS_US; one that it only reads takes READ_US. A
//! call takes CALL_US to get to qmail-send and be read there; more with [`Setup::stall`]. A message may have many
//! recipients, each of which is a mail here.
//!
//! qmail-rspawn: asks the gate, and starts what the gate says, at once. A delivery takes a log-normal time. All domains
//! are behind one server; beyond [`Setup::sessions`] it answers 421 after REFUSE_US. What comes back from that as an
//! ordinary deferral is tried again after DEFERRED_US.

#![allow(dead_code, unreachable_pub, reason = "each test uses its part of the model")]

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use qpatch_gate::command::Parts;
use qpatch_gate::gate::{Answer, Busy, BusyReason, DeliveryEnd, Gate, NextAction};
use qpatch_gate::random::Random;
use qpatch_gate::table::Table;
use qpatch_gate_model::retry::ReportedResult;
use qpatch_gate_model::send::{
    FileRecipient, HandedOut, LeftJob, MessageFiles, PASS_US, Pass, QmailSend,
};

pub const SEC: u64 = 1_000_000;
const READ_US: u64 = 1;
const CALL_US: u64 = 1000;
const REFUSE_US: u64 = 2000;
const DEFERRED_US: u64 = 400 * SEC;
const ACCEPTED: &[u8] = b"r\0K192.0.2.7 accepted message.\nRemote host said: 250 ok\n\0";
const REFUSED: &[u8] =
    b"ZConnected to 192.0.2.7 but greeting failed.\nRemote host said: 421 4.7.0 too many connections\n\0";

fn secs(us: u64) -> i64 {
    (us / SEC) as i64
}

/// A message. Its recipients are mails with consecutive numbers; the positions in its file are their indices.
#[derive(Clone, Copy, Debug)]
struct Message {
    first: u32,
    recipients: u32,
    born_us: u64,
}

/// The messages as qmail-send reads them.
struct Files<'a> {
    messages: &'a [Message],
    mails: &'a [Mail],
    names: &'a [String],
}

impl MessageFiles for Files<'_> {
    fn recipient(&self, message: u32, position: u64) -> FileRecipient<'_> {
        let Message { first, recipients, .. } = self.messages[message as usize];
        if position >= recipients.into() {
            return FileRecipient::EndOfFile;
        }
        let mail = &self.mails[(first + position as u32) as usize];
        if mail.ended_us > 0 {
            return FileRecipient::Done;
        }
        FileRecipient::ToDo(self.names[mail.domain as usize].trim_end_matches('\0').as_bytes())
    }
}

const CUT_OFF: &[u8] = b"ZConnected to 192.0.2.7 but connection died. (#4.4.2)\n\0";
const NOT_CONNECTED: &[u8] = b"ZSorry, I wasn't able to establish an SMTP connection. (#4.4.1)\n\0";
const BY_MILTER: &[u8] = b"s192.0.2.7 does not like recipient.\nRemote host said: 451 4.7.1 Service unavailable - try again later\n\0DGiving up on 192.0.2.7.\n\0";

/// What the server does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Beyond its sessions it answers 421.
    Answers421,
    /// Beyond its sessions it closes the connection without a word.
    CutsOff,
    /// When the last session is taken it closes its socket, until this many seconds after one has ended.
    Closes(u64),
    /// It takes all mail but that whose number is a multiple of this; it always refuses those recipients.
    Milter(u32),
}

/// Service time as a factor of the mean, by the time of the start.
pub type Speed = fn(u64) -> f64;

/// Whether qmail-send does nothing at this time.
pub type Stall = fn(u64) -> bool;

#[derive(Clone, Copy)]
pub struct Setup {
    pub table: &'static str,
    pub concurrency_remote: u32,
    pub conf_spawn: u32,
    pub mean_service_secs: f64,
    pub speed: Speed,
    pub stall: Stall,
    /// The most sessions that the server takes at once.
    pub sessions: u32,
    pub kind: Kind,
    /// The simulation ends at this time, even if mail is left.
    pub until_us: u64,
    pub seed: u64,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            table: ":20\n",
            concurrency_remote: 1000,
            conf_spawn: 1000,
            mean_service_secs: 0.2,
            speed: |_| 1.0,
            stall: |_| false,
            sessions: u32::MAX,
            kind: Kind::Answers421,
            until_us: u64::MAX,
            seed: 1,
        }
    }
}

#[derive(Clone, Debug)]
pub struct Mail {
    pub domain: u32,
    pub born_us: u64,
    pub busy: u32,
    pub started_us: u64,
    pub ended_us: u64,
}

/// The figures of a domain.
#[derive(Clone, Copy, Debug, Default)]
pub struct Seen {
    pub running: u32,
    pub peak: u32,
    pub mails: u32,
    pub busy: u64,
    pub busy_max: u32,
    pub first_us: u64,
    pub last_start_us: u64,
    pub last_end_us: u64,
    work_us: u64,
    pub waited_us: u64,
    pub waited_max_us: u64,
    /// Deliveries that the server refused, and the number of them that became a deferral.
    pub refused: u32,
    pub deferred: u32,
}

impl Seen {
    /// The mean number of deliveries at once, from the beginning to the last start.
    pub fn mean_running(&self) -> f64 {
        self.work_us as f64 / (self.last_start_us - self.first_us) as f64
    }

    pub fn makespan_secs(&self) -> f64 {
        (self.last_end_us - self.first_us) as f64 / 1e6
    }

    pub fn busy_per_mail(&self) -> f64 {
        self.busy as f64 / f64::from(self.mails)
    }

    pub fn mean_wait_secs(&self) -> f64 {
        self.waited_us as f64 / 1e6 / f64::from(self.mails)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    /// A delivery ends: slot, mail, how.
    End(u32, u32, How),
    /// A message comes to pqchan; the time, in seconds, since which it is due.
    Arrive(u32, i64),
    Pass,
    /// qmail-send reads a call.
    Call(u32, u32),
    Timer,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum How {
    Accepted,
    Refused,
}

pub struct Outcome {
    pub mails: Vec<Mail>,
    pub domains: Vec<Seen>,
    pub passes: u64,
    /// Recipients that were read, handed out or not, and jobs of qmail-send.
    pub reads: u64,
    pub jobs: u64,
    pub calls: u64,
    pub expired: u64,
    pub held_peak: u32,
    /// The fewest slots that were neither running nor held.
    pub free_least: u32,
    pub sessions_peak: u32,
}

pub struct Model {
    setup: Setup,
    gate: Gate,
    random: Random,
    events: BinaryHeap<Reverse<(u64, u64, Event)>>,
    sequence: u64,
    send: QmailSend,
    mails: Vec<Mail>,
    names: Vec<String>,
    seen: Vec<Seen>,
    /// The mail in each slot, and its job.
    slot_mail: Vec<(u32, usize)>,
    messages: Vec<Message>,
    step_us: u64,
    pass_pending: bool,
    passes: u64,
    pub calls: u64,
    held_peak: u32,
    free_least: u32,
    limits: Vec<Option<u32>>,
    left: usize,
    timer_us: Option<u64>,
    sessions: u32,
    sessions_peak: u32,
    /// When the server's socket opens again; 0: it is open.
    closed_until_us: u64,
}

impl Model {
    pub fn new(setup: Setup) -> Self {
        let mut gate = Gate::new(setup.conf_spawn, setup.concurrency_remote, setup.seed).unwrap();
        let (table, problems) = Table::parse(setup.table.as_bytes(), gate.hasher()).unwrap();
        assert!(problems.is_empty());
        gate.set_table(Some(table), 0).unwrap();
        let slots = setup.conf_spawn.min(setup.concurrency_remote);
        let mut send = QmailSend::default();
        send.grow(slots);
        Self {
            random: Random::new(setup.seed ^ 0xabcd),
            setup,
            gate,
            events: BinaryHeap::new(),
            sequence: 0,
            send,
            mails: Vec::new(),
            names: Vec::new(),
            seen: Vec::new(),
            slot_mail: vec![(u32::MAX, 0); slots as usize],
            messages: Vec::new(),
            step_us: PASS_US,
            pass_pending: false,
            passes: 0,
            calls: 0,
            held_peak: 0,
            free_least: slots,
            limits: Vec::new(),
            left: 0,
            timer_us: None,
            sessions: 0,
            sessions_peak: 0,
            closed_until_us: 0,
        }
    }

    /// Makes the servers of all domains known to the gate beforehand.
    pub fn has_seen(&mut self) {
        let hasher = self.gate.hasher();
        for name in &self.names {
            let domain = name.trim_start_matches("user@").trim_end_matches('\0');
            let seen = self.gate.seen_mut();
            seen.restore(hasher, domain.as_bytes(), "192.0.2.7".parse().unwrap()).unwrap();
        }
    }

    pub fn domain(&mut self, name: &str) -> u32 {
        self.names.push(format!("user@{name}\0"));
        self.seen.push(Seen { first_us: u64::MAX, ..Seen::default() });
        let limit = match self.gate.rules().resolve(name.as_bytes()).cap.limit {
            qpatch_gate::table::Limit::AtMost(limit) => Some(limit),
            qpatch_gate::table::Limit::Unlimited => None,
        };
        self.limits.push(limit);
        self.names.len() as u32 - 1
    }

    pub fn mail(&mut self, domain: u32, born_us: u64) {
        self.list(&[domain], born_us);
    }

    /// One message with a recipient at each of these domains.
    pub fn list(&mut self, domains: &[u32], born_us: u64) {
        let first = self.mails.len() as u32;
        for &domain in domains {
            self.mails.push(Mail { domain, born_us, busy: 0, started_us: 0, ended_us: 0 });
            let seen = &mut self.seen[domain as usize];
            seen.first_us = seen.first_us.min(born_us);
            seen.mails += 1;
        }
        self.left += domains.len();
        let recipients = domains.len() as u32;
        self.messages.push(Message { first, recipients, born_us });
        self.at(born_us, Event::Arrive(self.messages.len() as u32 - 1, secs(born_us)));
    }

    fn at(&mut self, when_us: u64, event: Event) {
        self.sequence += 1;
        self.events.push(Reverse((when_us, self.sequence, event)));
    }

    pub fn run(mut self) -> Outcome {
        // A spawner that wakes up again and again without work would use all of a processor.
        let (mut idle_us, mut idle) = (0, 0);
        while let Some(Reverse((now_us, _, event))) = self.events.pop() {
            if event == Event::Timer && self.timer_us != Some(now_us) {
                // An earlier timer has replaced this one.
                continue;
            }
            idle = if event == Event::Timer && now_us == idle_us { idle + 1 } else { 0 };
            idle_us = now_us;
            assert!(idle < 10, "at {now_us} us it wakes up without end");
            if now_us > self.setup.until_us {
                break;
            }
            match event {
                Event::Arrive(message, due_secs) => self.send.queue(message, due_secs),
                Event::End(slot, mail, how) => self.end(now_us, slot, mail, how),
                Event::Pass => {
                    self.pass_pending = false;
                    self.pass(now_us);
                }
                Event::Call(..) if (self.setup.stall)(now_us) => {
                    self.at(now_us + CALL_US, event);
                }
                Event::Call(number, most) => self.send.call(number, most),
                Event::Timer => {}
            }
            self.send.queue_due(secs(now_us));
            self.start_held(now_us);
            self.free_least = self.free_least.min(self.send.free_slots());
            self.plan_pass(now_us);
            self.plan_timer(now_us);
            if self.left == 0 {
                break;
            }
        }
        assert!(self.left == 0 || self.setup.until_us < u64::MAX, "mail is lost");
        let (jobs, reads) = self.send.work();
        Outcome {
            mails: self.mails,
            domains: self.seen,
            passes: self.passes,
            reads,
            jobs,
            calls: self.calls,
            expired: self.gate.totals().expired,
            held_peak: self.held_peak,
            free_least: self.free_least,
            sessions_peak: self.sessions_peak,
        }
    }

    /// Sets the timer to the next time at which the gate or the queues have work.
    fn plan_timer(&mut self, now_us: u64) {
        let gate_us = self.gate.timeout_us(now_us).map(|us| now_us + us);
        let retry_us = self.send.next_due().map(|at_secs| at_secs.max(0) as u64 * SEC);
        if let Some(at_us) = gate_us.into_iter().chain(retry_us).min()
            && self.timer_us.is_none_or(|timer_us| timer_us <= now_us || at_us < timer_us)
        {
            self.timer_us = Some(at_us);
            self.at(at_us, Event::Timer);
        }
    }

    fn plan_pass(&mut self, now_us: u64) {
        if !self.pass_pending
            && let Some(due_secs) = self.send.next_pass()
        {
            self.pass_pending = true;
            let due_us = due_secs.max(0) as u64 * SEC;
            self.at((now_us + self.step_us).max(due_us), Event::Pass);
        }
    }

    /// qmail-send's pass, up to the next recipient that is handed out.
    fn pass(&mut self, now_us: u64) {
        if (self.setup.stall)(now_us) || self.send.free_slots() == 0 {
            self.step_us = PASS_US;
            return;
        }
        let (_, before) = self.send.work();
        let files = Files { messages: &self.messages, mails: &self.mails, names: &self.names };
        let pass = self.send.pass(secs(now_us), &files);
        if pass == Pass::Idle {
            return;
        }
        let (_, reads) = self.send.work();
        self.step_us = (reads - before) * READ_US;
        match pass {
            Pass::HandedOut(handed_out) => self.hand_out(now_us, handed_out),
            Pass::Ended(job) => self.leave(now_us, job),
            Pass::Idle => {}
        }
        self.ask_together(now_us);
    }

    fn ask_together(&mut self, now_us: u64) {
        let gate = &mut self.gate;
        self.send.ask_together(secs(now_us), |number, recipient| {
            let busy = gate.ask_together(now_us, number, recipient);
            busy.map_or(ReportedResult::Deferred, |busy| ReportedResult::Busy {
                secs: busy.secs.into(),
                queue: gate.key(busy.key).number,
            })
        });
    }

    fn hand_out(&mut self, now_us: u64, HandedOut { job, message, position, slot }: HandedOut) {
        self.step_us += PASS_US;
        self.passes += 1;
        let mail = self.messages[message as usize].first + position as u32;
        self.slot_mail[slot as usize] = (mail, job);
        let recipient = &self.names[self.mails[mail as usize].domain as usize];
        let message = format!("{message}/1\0");
        let parts = Parts::new(&[message.as_bytes(), b"sender\0", recipient.as_bytes()]).unwrap();
        match self.gate.ask(now_us, slot, &parts) {
            Answer::Go => self.start(now_us, slot, mail),
            Answer::Hold => {
                self.held_peak = self.held_peak.max(self.gate.held());
            }
            Answer::Busy(busy) => self.busy(now_us, slot, mail, busy),
            Answer::InUse => panic!("slot {slot} is in use"),
        }
    }

    fn leave(&mut self, now_us: u64, job: usize) {
        match self.send.leave(job, secs(now_us + DEFERRED_US), secs(now_us)) {
            LeftJob::Open | LeftJob::Waits => {}
            LeftJob::Finished(message) => {
                let Message { first, recipients, .. } = self.messages[message as usize];
                let mails = &self.mails[first as usize..(first + recipients) as usize];
                assert!(mails.iter().all(|mail| mail.ended_us > 0), "its file goes too soon");
            }
            LeftJob::Due(message, at_secs) => {
                let at_us = at_secs.max(0) as u64 * SEC;
                self.at(now_us.max(at_us), Event::Arrive(message, at_secs));
            }
        }
    }

    /// qmail-send hears of the delivery in this slot, which is free then.
    fn hear(&mut self, now_us: u64, slot: u32, told: ReportedResult) {
        let (mail, job) = self.slot_mail[slot as usize];
        self.send.free_slot(slot);
        let position = mail - self.messages[self.send.message(job) as usize].first;
        let name = &self.names[self.mails[mail as usize].domain as usize];
        let recipient = name.trim_end_matches('\0').as_bytes();
        let times = (secs(now_us + DEFERRED_US), secs(now_us));
        self.send.report(job, (position.into(), recipient), told, times);
        self.leave(now_us, job);
    }

    fn start_held(&mut self, now_us: u64) {
        loop {
            match self.gate.next(now_us) {
                NextAction::None => break,
                NextAction::Go { slot, .. } => {
                    self.start(now_us, slot, self.slot_mail[slot as usize].0);
                }
                NextAction::Busy { slot, busy, .. } => {
                    let (mail, _) = self.slot_mail[slot as usize];
                    self.busy(now_us, slot, mail, busy);
                }
                NextAction::Call(call) => {
                    self.calls += 1;
                    self.at(now_us + CALL_US, Event::Call(call.number, call.most));
                }
            }
        }
    }

    fn busy(&mut self, now_us: u64, slot: u32, mail: u32, busy: Busy) {
        let entry = &mut self.mails[mail as usize];
        if matches!(busy.why, BusyReason::Suspended(_)) {
            // A deferral like any other: qmail-send's own time counts.
            self.seen[entry.domain as usize].deferred += 1;
            self.hear(now_us, slot, ReportedResult::Deferred);
            return;
        }
        entry.busy += 1;
        let seen = &mut self.seen[entry.domain as usize];
        seen.busy += 1;
        seen.busy_max = seen.busy_max.max(entry.busy);
        let number = self.gate.key(busy.key).number;
        self.hear(now_us, slot, ReportedResult::Busy { secs: busy.secs.into(), queue: number });
    }

    fn start(&mut self, now_us: u64, slot: u32, mail: u32) {
        let is_refused = match self.setup.kind {
            Kind::Answers421 | Kind::CutsOff => self.sessions >= self.setup.sessions,
            Kind::Closes(_) => now_us < self.closed_until_us,
            Kind::Milter(part) => mail.is_multiple_of(part),
        };
        let (service_us, how) = if !is_refused {
            if self.sessions + 1 >= self.setup.sessions {
                self.closed_until_us = u64::MAX;
            }
            self.sessions += 1;
            self.sessions_peak = self.sessions_peak.max(self.sessions);
            (self.service_us(now_us), How::Accepted)
        } else {
            (REFUSE_US, How::Refused)
        };
        let entry = &mut self.mails[mail as usize];
        entry.started_us = now_us;
        let seen = &mut self.seen[entry.domain as usize];
        seen.running += 1;
        seen.peak = seen.peak.max(seen.running);
        if let Some(limit) = self.limits[entry.domain as usize] {
            assert!(seen.running <= limit, "over the limit");
        }
        seen.last_start_us = now_us;
        let waited_us = now_us - entry.born_us;
        seen.waited_us += waited_us;
        seen.waited_max_us = seen.waited_max_us.max(waited_us);
        self.at(now_us + service_us, Event::End(slot, mail, how));
    }

    fn end(&mut self, now_us: u64, slot: u32, mail: u32, how: How) {
        let report = match (how, self.setup.kind) {
            (How::Accepted, _) => ACCEPTED,
            (_, Kind::Answers421) => REFUSED,
            (_, Kind::CutsOff) => CUT_OFF,
            (_, Kind::Closes(_)) => NOT_CONNECTED,
            (_, Kind::Milter(_)) => BY_MILTER,
        };
        let busy = self.gate.done(now_us, slot, DeliveryEnd::Reported(report));
        let entry = &mut self.mails[mail as usize];
        let seen = &mut self.seen[entry.domain as usize];
        seen.running -= 1;
        if how == How::Refused {
            seen.refused += 1;
            match busy {
                Some(busy) => self.busy(now_us, slot, mail, busy),
                None => {
                    seen.deferred += 1;
                    self.hear(now_us, slot, ReportedResult::Deferred);
                }
            }
            return;
        }
        self.sessions -= 1;
        if let Kind::Closes(secs) = self.setup.kind
            && self.closed_until_us == u64::MAX
        {
            self.closed_until_us = now_us + secs * SEC;
        }
        entry.ended_us = now_us;
        seen.last_end_us = now_us;
        seen.work_us += now_us - entry.started_us;
        self.left -= 1;
        self.hear(now_us, slot, ReportedResult::Done);
    }

    /// Log-normal with sigma 0.5 (Box-Muller).
    fn service_us(&mut self, now_us: u64) -> u64 {
        const SIGMA: f64 = 0.5;
        let radius = (-2.0 * (1.0 - self.random.fraction()).ln()).sqrt();
        let normal = radius * (std::f64::consts::TAU * self.random.fraction()).cos();
        let mean = self.setup.mean_service_secs * (self.setup.speed)(now_us);
        (mean * (SIGMA * normal - SIGMA * SIGMA / 2.0).exp() * 1e6) as u64
    }
}
