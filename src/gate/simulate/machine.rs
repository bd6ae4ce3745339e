//! qmail-send and qmail-rspawn around the gate, on the log's time.
//!
//! What is not in the log is modelled. Mail that is away waits until the gate calls it, and qmail-send makes at most
//! 3000 passes a second over mail that is due. [`qpatch_gate_model::retry`], the Rust twin of qmail-send's half,
//! decides what qmail-send does with such mail. A message consists here of the recipients of one pass: those that the
//! log starts one after the other. Mail whose key is suspended is tried again at the time of nextretry().

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use qpatch_gate::command::Parts;
use qpatch_gate::gate::{Answer, Busy, BusyReason, DeliveryEnd, Gate, NextAction, SLOTS_MAX};
use qpatch_gate::learn::Learning;
use qpatch_gate::report::{DeliveryReport, DeliveryVerdict};
use qpatch_gate::table::Limit;
use qpatch_gate_model::retry::{ClosedJob, Job, PassEnd, PassStep, ReportedResult, Retry};

use super::keys::{KeyIndex, SimulatedKey};
use super::log_report;

/// qmail-send's passes over mail that is due; as in the gate's tests.
const PASS_US: u64 = 1_000_000 / 3000;
/// The most deliveries that may wait at once; more are left out.
pub(super) const WAITING_MAX: usize = 1_000_000;

/// The report of a delivery whose end is not in the log.
pub(super) const SILENT: DeliveryReport =
    DeliveryReport { seen: DeliveryVerdict::Nothing, peer: None, rule: None };
/// qmail-send's channel of mail that goes to qmail-rspawn.
const REMOTE: usize = 1;
/// qmail-send's chanskip of that channel.
const SKIP_SECS: i64 = 20;
/// A pass reads its next recipient in less time than this. If none comes, the last one was the last of the pass.
const READ_US: u64 = 10_000;

const NONE: u32 = u32::MAX;

/// A delivery that waits or runs.
#[derive(Clone, Copy, Debug)]
struct SimulatedDelivery {
    key: u32,
    slot: u32,
    /// When it was handed out first.
    asked_us: u64,
    /// When it was handed out last.
    tried_us: u64,
    /// How long it runs.
    service_us: u64,
    /// Its message here, and which of its recipients it is.
    job: u32,
    position: u32,
    /// The job of qmail-send in which it is tried.
    run: u32,
    /// What the log says of its end.
    said: DeliveryReport,
    #[cfg(test)]
    told: ReportedResult,
    round: Round,
}

/// Which try of a delivery it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Round {
    /// The one in the log.
    First,
    /// The delivery was refused and went back as busy. What the server would say now is not known.
    Again,
}

/// A message's recipients of one pass.
#[derive(Debug, Default)]
struct PassRecipients {
    /// Its message's number in the queue.
    message: u64,
    born_us: u64,
    /// Their deliveries, in the order of the message's file; [`NONE`] for those that are done.
    deliveries: Vec<u32>,
    /// How many are not done.
    left: u32,
}

/// qmail-send's struct job.
#[derive(Clone, Copy, Debug)]
struct PassJob {
    /// Its message.
    job: u32,
    /// The pass, and those of its recipients that are in slots.
    refs: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum MachineEvent {
    /// A delivery ends.
    End(u32),
    /// The pass of the log has seen the last recipient of this job, unless it has more of them now.
    Read(u32, u32),
    /// The retry time of a job has come without a call.
    Job(u32),
    /// qmail-send turns to mail that is due.
    Pass,
}

/// qmail-send and qmail-rspawn around the gate.
#[derive(Debug)]
pub(super) struct MailSystem {
    gate: Gate,
    pub(super) keys: Vec<SimulatedKey>,
    pub(super) key_index: KeyIndex,
    deliveries: Vec<SimulatedDelivery>,
    free: Vec<u32>,
    events: BinaryHeap<Reverse<(u64, u64, MachineEvent)>>,
    sequence: u64,
    /// The deliveries in the slots.
    pub(super) slots: Vec<u32>,
    free_slots: Vec<u32>,
    /// Mail that was sent away.
    retry: Retry,
    jobs: Vec<PassRecipients>,
    free_jobs: Vec<u32>,
    runs: Vec<PassJob>,
    free_runs: Vec<u32>,
    /// The pass that the log is in: its message and its job.
    reads: Option<(u32, u32)>,
    /// The job of the pass over what waited, and its next recipient.
    passes: Option<(u32, u32)>,
    /// Jobs that are due, and wait for a pass: that which was due first, in seconds, in front.
    queue: BinaryHeap<Reverse<(i64, u64, u32)>>,
    pass_at_us: u64,
    pass_is_due: bool,
    pub(super) now_us: u64,
    tidied_us: u64,
    pub(super) last_end_us: u64,
    pub(super) in_use_peak: u32,
    pub(super) held_peak: u32,
    /// What qmail-send would log.
    #[cfg(test)]
    pub(super) log: super::written::WrittenLog,
}

impl MailSystem {
    pub(super) fn new(gate: Gate) -> Self {
        Self {
            gate,
            keys: Vec::new(),
            key_index: KeyIndex::new(),
            deliveries: Vec::new(),
            free: Vec::new(),
            events: BinaryHeap::new(),
            sequence: 0,
            slots: Vec::new(),
            free_slots: Vec::new(),
            retry: Retry::default(),
            jobs: Vec::new(),
            free_jobs: Vec::new(),
            runs: Vec::new(),
            free_runs: Vec::new(),
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
            #[cfg(test)]
            log: super::written::WrittenLog::default(),
        }
    }

    /// Raises the number of slots to `slots`, if it is lower.
    pub(super) fn grow(&mut self, slots: u32) {
        for slot in self.slots.len() as u32..slots.min(SLOTS_MAX) {
            self.slots.push(NONE);
            self.free_slots.push(slot);
        }
    }

    /// Runs everything that is due up to `to_us`.
    pub(super) fn advance(&mut self, to_us: u64) {
        loop {
            let event_us = self.events.peek().map(|&Reverse((at_us, ..))| at_us);
            let hold_us = self.gate.timeout_us(self.now_us).map(|us| self.now_us + us);
            let back_us = self.retry.next_due().map(|at_secs| at_secs.max(0) as u64 * 1_000_000);
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
                    MachineEvent::End(delivery) => self.end(delivery),
                    MachineEvent::Read(job, recipients) => {
                        if let Some((reads, run)) = self.reads
                            && reads == job
                            && self.jobs[job as usize].deliveries.len() == recipients as usize
                        {
                            self.reads = None;
                            self.leave(run);
                        }
                    }
                    MachineEvent::Job(job) => self.queue(job, self.now_secs()),
                    MachineEvent::Pass => {
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
                NextAction::None => break,
                NextAction::Go { slot, .. } => self.start(self.slots[slot as usize]),
                NextAction::Busy { slot, busy, .. } => {
                    self.send_away(self.slots[slot as usize], busy);
                }
                NextAction::Call(call) => self.retry.call(REMOTE, call.number, call.most),
            }
        }
        self.ask_together();
        while let Some((job, due_secs)) = self.retry.due(REMOTE, self.now_secs()) {
            self.queue(job as u32, due_secs);
        }
        let has_work = self.passes.is_some() || !self.queue.is_empty();
        if !self.pass_is_due && has_work && !self.free_slots.is_empty() {
            self.pass_is_due = true;
            self.at(self.now_us.max(self.pass_at_us), MachineEvent::Pass);
        }
        if self.now_us >= self.tidied_us + 1_000_000 {
            self.tidied_us = self.now_us;
            // Giving memory back may itself need memory. If there is none, it is tried again a second later.
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
            self.jobs.push(PassRecipients::default());
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

    /// A pass over a message begins, in a job of its own.
    fn open(&mut self, job: u32, due_secs: i64) -> u32 {
        let run = self.free_runs.pop().unwrap_or_else(|| {
            self.runs.push(PassJob { job, refs: 0 });
            self.runs.len() as u32 - 1
        });
        self.runs[run as usize] = PassJob { job, refs: 1 };
        self.retry.open(run as usize, name_of(job), due_secs);
        run
    }

    /// qmail-send's pass_dochan, for all passes but the log's own: goes on to the next recipient that can be tried.
    fn pass(&mut self) {
        while !self.free_slots.is_empty() {
            let (run, mut position) = match self.passes {
                Some(passes) => passes,
                None => {
                    let Some(Reverse((due_secs, _, job))) = self.queue.pop() else { return };
                    (self.open(job, due_secs), 0)
                }
            };
            let job = self.runs[run as usize].job;
            loop {
                // Positions are indices here, which are few enough for this.
                match self.retry.next(run as usize, position.into()) {
                    PassStep::Here => {}
                    PassStep::At(at) => position = at as u32,
                    PassStep::End => break,
                }
                let deliveries = &self.jobs[job as usize].deliveries;
                let Some(&delivery) = deliveries.get(position as usize) else { break };
                position += 1;
                if delivery != NONE
                    && !self.waits(run, position - 1, delivery)
                    && let Some(slot) = self.free_slots.pop()
                {
                    self.passes = Some((run, position));
                    self.ask(delivery, run, slot);
                    return;
                }
            }
            self.passes = None;
            self.leave(run);
        }
    }

    /// Whether a recipient of the pass has to wait because others of its domain wait.
    fn waits(&mut self, run: u32, position: u32, delivery: u32) -> bool {
        let key = self.deliveries[delivery as usize].key;
        let recipient = &self.keys[key as usize].recipient;
        self.retry.skip(run as usize, position.into(), recipient)
    }

    /// Asks the gate once for the recipients that wait together.
    fn ask_together(&mut self) {
        while let Some((_, number, domain)) = self.retry.ask(REMOTE) {
            let recipient = [b"@", &domain[..]].concat();
            let told = match self.gate.ask_together(self.now_us, number, &recipient) {
                Some(busy) => {
                    let key = self.key(&recipient);
                    self.keys[key as usize].busy += u64::from(number);
                    let queue = self.gate.key(busy.key).number;
                    ReportedResult::Busy { secs: busy.secs.into(), queue }
                }
                None => ReportedResult::Deferred,
            };
            self.retry.answer(REMOTE, told, self.now_secs());
        }
    }

    /// qmail-send's job_close.
    fn leave(&mut self, at: u32) {
        let run = &mut self.runs[at as usize];
        run.refs -= 1;
        if run.refs > 0 {
            return;
        }
        let job = run.job;
        self.free_runs.push(at);
        let (natural, now_secs) = (self.natural_secs(job), self.now_secs());
        if let ClosedJob::Due(at_secs) =
            self.retry.close(at as usize, PassEnd::EndOfFile, natural, now_secs)
        {
            // Nothing of it waits.
            let recipients = &mut self.jobs[job as usize];
            if recipients.left == 0 {
                *recipients = PassRecipients::default();
                self.free_jobs.push(job);
                return;
            }
            let due_us = at_secs.max(0) as u64 * 1_000_000;
            self.at(due_us.max(self.now_us), MachineEvent::Job(job));
        }
    }

    /// When qmail-send would try the job again: its nextretry(). That function starts from the time when the job began.
    /// A job of the log has no such time, so the end of one of its deliveries is used.
    fn natural_secs(&self, job: u32) -> i64 {
        let born_secs = (self.jobs[job as usize].born_us / 1_000_000) as i64;
        let tries = (self.now_secs() - born_secs).isqrt() + SKIP_SECS;
        born_secs + tries * tries
    }

    /// Reports the end of a delivery to qmail-send.
    fn report(&mut self, at: u32, told: ReportedResult) {
        let SimulatedDelivery { job, position, run, key, .. } = self.deliveries[at as usize];
        let (natural, now_secs) = (self.natural_secs(job), self.now_secs());
        self.retry.report(
            run as usize,
            name_of(job),
            position.into(),
            natural,
            &self.keys[key as usize].recipient,
            told,
            now_secs,
        );
    }

    /// Ends a delivery for good.
    fn finish(&mut self, at: u32) {
        self.report(at, ReportedResult::Done);
        let SimulatedDelivery { key, job, position, run, .. } = self.deliveries[at as usize];
        self.keys[key as usize].live -= 1;
        let recipients = &mut self.jobs[job as usize];
        recipients.deliveries[position as usize] = NONE;
        recipients.left -= 1;
        self.leave(run);
    }

    fn at(&mut self, at_us: u64, due: MachineEvent) {
        self.sequence += 1;
        self.events.push(Reverse((at_us, self.sequence, due)));
    }

    /// The number of the key of a recipient.
    pub(super) fn key(&mut self, recipient: &[u8]) -> u32 {
        self.key_index.key(&mut self.keys, self.gate.rules(), recipient)
    }

    /// Hands a delivery out now. It runs for `service_us` and ends with this report. False if too many wait already.
    pub(super) fn arrive(
        &mut self,
        key: u32,
        message: u64,
        service_us: u64,
        (said, told): (DeliveryReport, ReportedResult),
    ) -> bool {
        // What its own server has deferred is tried again as a delivery of its own in the log.
        #[cfg(not(test))]
        let _ = told;
        let delivery = SimulatedDelivery {
            key,
            slot: NONE,
            asked_us: self.now_us,
            tried_us: self.now_us,
            service_us,
            job: NONE,
            position: NONE,
            run: NONE,
            said,
            #[cfg(test)]
            told,
            round: Round::First,
        };
        let at = match self.free.pop() {
            Some(at) => {
                self.deliveries[at as usize] = delivery;
                at
            }
            None if self.deliveries.len() >= WAITING_MAX => return false,
            None => {
                self.deliveries.push(delivery);
                self.deliveries.len() as u32 - 1
            }
        };
        self.keys[key as usize].live += 1;
        match self.free_slots.pop() {
            // It does not wait behind mail that is due: in the log, this was the pass that started it.
            Some(slot) => {
                let (job, run) = self.reads(message);
                self.add(job, at);
                let recipients = self.jobs[job as usize].deliveries.len() as u32;
                self.at(self.now_us + READ_US, MachineEvent::Read(job, recipients));
                if self.waits(run, recipients - 1, at) {
                    self.free_slots.push(slot);
                } else {
                    self.ask(at, run, slot);
                }
            }
            None => {
                let job = self.job(message);
                self.add(job, at);
                self.queue(job, self.now_secs());
            }
        }
        self.settle();
        true
    }

    /// The log's pass over this message: the number of the message here, and its job.
    fn reads(&mut self, message: u64) -> (u32, u32) {
        if let Some((job, run)) = self.reads {
            if self.jobs[job as usize].message == message {
                return (job, run);
            }
            self.leave(run);
        }
        let job = self.job(message);
        let run = self.open(job, self.now_secs());
        self.reads = Some((job, run));
        (job, run)
    }

    fn ask(&mut self, at: u32, run: u32, slot: u32) {
        self.pass_at_us = self.now_us + PASS_US;
        let SimulatedDelivery { key, job, .. } = self.deliveries[at as usize];
        self.runs[run as usize].refs += 1;
        let message = self.jobs[job as usize].message;
        #[cfg(test)]
        self.log.start(self.now_us, at, message, &self.keys[key as usize].recipient);
        let delivery = &mut self.deliveries[at as usize];
        (delivery.slot, delivery.run, delivery.tried_us) = (slot, run, self.now_us);
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
        let SimulatedDelivery { key, asked_us, service_us, round, .. } =
            self.deliveries[at as usize];
        if round == Round::Again {
            self.at(self.now_us, MachineEvent::End(at));
            return;
        }
        let key = &mut self.keys[key as usize];
        key.running += 1;
        key.peak = key.peak.max(key.running);
        let waited_us = self.now_us - asked_us;
        if waited_us > 0 {
            key.waited += 1;
            key.waited_us += waited_us;
            key.waited_max_us = key.waited_max_us.max(waited_us);
        }
        self.at(self.now_us.saturating_add(service_us), MachineEvent::End(at));
    }

    fn end(&mut self, at: u32) {
        let delivery = self.deliveries[at as usize];
        #[cfg(test)]
        let SimulatedDelivery { service_us, tried_us, told, .. } = delivery;
        let SimulatedDelivery { key, slot, said, round, .. } = delivery;
        self.free_slots.push(slot);
        let key = &mut self.keys[key as usize];
        if round == Round::Again {
            self.gate.done(self.now_us, slot, DeliveryEnd::NeverStarted);
            self.finish(at);
            self.free.push(at);
            return;
        }
        let back =
            self.gate.done(self.now_us, slot, DeliveryEnd::Reported(&log_report::report(&said)));
        #[cfg(test)]
        self.log.end(self.now_us, at, told, (service_us, tried_us), back.is_some());
        key.running -= 1;
        self.last_end_us = self.last_end_us.max(self.now_us);
        if log_report::is_objection(said.seen) {
            key.objections += 1;
            if key.cap.learning == Learning::On
                && let Some(of_gate) = self.gate.find_key(key.kind, &key.name)
            {
                key.lowest = key.lowest.min(of_gate.limit());
            }
        }
        match back {
            None => {
                // What its own server has deferred is tried again as a delivery of its own in the log.
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
        let SimulatedDelivery { key, slot, .. } = self.deliveries[at as usize];
        self.free_slots.push(slot);
        #[cfg(test)]
        self.log.busy(self.now_us, at, matches!(busy.why, BusyReason::Suspended(_)));
        let key = &mut self.keys[key as usize];
        match busy.why {
            BusyReason::Suspended(_) => key.suspended += 1,
            BusyReason::AtLimit
            | BusyReason::Refused
            | BusyReason::Paused(_)
            | BusyReason::AtDomainShare(_) => key.busy += 1,
        }
        if key.cap.limit == Limit::AtMost(0) {
            // It would only come back again.
            key.never += 1;
            self.finish(at);
            self.free.push(at);
            return;
        }
        self.away(at, busy);
    }

    /// The delivery waits in qmail-send until it is called, or until the time in the busy answer.
    fn away(&mut self, at: u32, busy: Busy) {
        let told = match busy.why {
            BusyReason::Suspended(_) => ReportedResult::Deferred,
            BusyReason::AtLimit
            | BusyReason::Refused
            | BusyReason::Paused(_)
            | BusyReason::AtDomainShare(_) => ReportedResult::Busy {
                secs: busy.secs.into(),
                queue: self.gate.key(busy.key).number,
            },
        };
        self.report(at, told);
        self.leave(self.deliveries[at as usize].run);
    }
    /// Nothing runs or waits, and every delivery, slot and job can be used again.
    #[cfg(test)]
    pub(super) fn assert_over(&self) {
        assert_eq!(self.free.len(), self.deliveries.len(), "every delivery ended");
        assert_eq!(self.free_slots.len(), self.slots.len(), "every slot is free");
        assert_eq!(self.free_jobs.len(), self.jobs.len(), "every job is done");
        for key in &self.keys {
            assert_eq!((key.live, key.running), (0, 0));
        }
    }
}

/// The job's name in the model of qmail-send.
fn name_of(job: u32) -> Job {
    Job { channel: REMOTE, id: job.into() }
}
