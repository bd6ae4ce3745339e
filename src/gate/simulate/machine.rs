//! qmail-send and qmail-rspawn around the gate, on the log's time.
//!
//! What is not in the log is modelled. [`QmailSend`], which the gate's own tests drive as well, decides what qmail-send
//! does with mail that is away or due. Here the log says when mail comes and how long a delivery runs; passes take
//! [`PASS_US`], reading and calls take no time. A message consists of the recipients of one pass: those that the log
//! starts one after the other. Mail whose key is suspended is tried again at the time of nextretry().

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use qpatch_gate::command::Parts;
use qpatch_gate::gate::{Answer, Busy, BusyReason, DeliveryEnd, Gate, NextAction, SLOTS_MAX};
use qpatch_gate::learn::Learning;
use qpatch_gate::report::{DeliveryReport, DeliveryVerdict};
use qpatch_gate::table::Limit;
use qpatch_gate_model::retry::ReportedResult;
use qpatch_gate_model::send::{FileRecipient, LeftJob, MessageFiles, PASS_US, Pass, QmailSend};

use super::curves::KeyCurves;
use super::keys::{KeyIndex, SimulatedKey};
use super::log_report;

/// The most deliveries that may wait at once; more are left out.
pub(super) const WAITING_MAX: usize = 1_000_000;

/// The report of a delivery whose end is not in the log.
pub(super) const SILENT: DeliveryReport =
    DeliveryReport { seen: DeliveryVerdict::Nothing, peer: None, rule: None };
/// qmail-send's chanskip of that channel.
const SKIP_SECS: i64 = 20;
/// In a log, a pass starts its next recipient in less time than this. If none comes, the last one was the last of the
/// pass.
const LOG_PASS_GAP_US: u64 = 10_000;

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
    message: u32,
    position: u32,
    /// The job of qmail-send in which it is tried.
    job: usize,
    /// What the log says of its end.
    said: DeliveryReport,
    #[cfg(test)]
    told: ReportedResult,
    round: Round,
    /// It waits although fewer run than the limit: the gate pauses after a refusal.
    waits_after_refusal: bool,
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

/// The messages as qmail-send reads them.
struct Files<'a> {
    messages: &'a [PassRecipients],
    deliveries: &'a [SimulatedDelivery],
    keys: &'a [SimulatedKey],
}

impl MessageFiles for Files<'_> {
    fn recipient(&self, message: u32, position: u64) -> FileRecipient<'_> {
        match self.messages[message as usize].deliveries.get(position as usize) {
            None => FileRecipient::EndOfFile,
            Some(&NONE) => FileRecipient::Done,
            Some(&at) => {
                let key = self.deliveries[at as usize].key;
                FileRecipient::ToDo(&self.keys[key as usize].recipient)
            }
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum MachineEvent {
    /// A delivery ends.
    End(u32),
    /// The pass of the log has seen the last recipient of this message, unless it has more of them now.
    Read(u32, u32),
    /// A message is due without a call.
    Due(u32),
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
    send: QmailSend,
    messages: Vec<PassRecipients>,
    free_messages: Vec<u32>,
    /// The pass that the log is in: its message and its job.
    log_pass: Option<(u32, usize)>,
    pass_at_us: u64,
    pass_is_due: bool,
    pub(super) now_us: u64,
    tidied_us: u64,
    pub(super) last_end_us: u64,
    pub(super) in_use_peak: u32,
    pub(super) held_peak: u32,
    /// Of all keys together: waiting or running, and running.
    live: u32,
    running: u32,
    /// For a picture; None: there will be none.
    pub(super) curves: Option<Box<KeyCurves>>,
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
            send: QmailSend::default(),
            messages: Vec::new(),
            free_messages: Vec::new(),
            log_pass: None,
            pass_at_us: 0,
            pass_is_due: false,
            now_us: 0,
            tidied_us: 0,
            last_end_us: 0,
            in_use_peak: 0,
            held_peak: 0,
            live: 0,
            running: 0,
            curves: None,
            #[cfg(test)]
            log: super::written::WrittenLog::default(),
        }
    }

    /// Raises the number of slots to `slots`, if it is lower.
    pub(super) fn grow(&mut self, slots: u32) {
        let slots = slots.min(SLOTS_MAX);
        self.slots.resize(self.slots.len().max(slots as usize), NONE);
        self.send.grow(slots);
    }

    /// Runs everything that is due up to `to_us`.
    pub(super) fn advance(&mut self, to_us: u64) {
        loop {
            let event_us = self.events.peek().map(|&Reverse((at_us, ..))| at_us);
            let hold_us = self.gate.timeout_us(self.now_us).map(|us| self.now_us + us);
            let back_us = self.send.next_due().map(|at_secs| at_secs.max(0) as u64 * 1_000_000);
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
                    MachineEvent::Read(message, recipients) => {
                        if let Some((of, _)) = self.log_pass
                            && of == message
                            && self.messages[message as usize].deliveries.len()
                                == recipients as usize
                        {
                            self.end_log_pass();
                        }
                    }
                    MachineEvent::Due(message) => self.send.queue(message, self.now_secs()),
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
                NextAction::Call(call) => self.send.call(call.number, call.most),
            }
        }
        self.ask_together();
        self.send.queue_due(self.now_secs());
        if !self.pass_is_due && self.send.next_pass().is_some() {
            self.pass_is_due = true;
            self.at(self.now_us.max(self.pass_at_us), MachineEvent::Pass);
        }
        if self.now_us >= self.tidied_us + 1_000_000 {
            self.tidied_us = self.now_us;
            // Giving memory back may itself need memory. If there is none, it is tried again a second later.
            let _ = self.gate.tidy(self.now_us);
        }
    }

    /// Remembers from now on what a picture shows.
    pub(super) fn record(&mut self) {
        self.curves = Some(Box::default());
        self.key_index.records = true;
    }

    /// Writes down how many of a key, and of all, run and wait now.
    fn draw(&mut self, key: u32) {
        self.keys[key as usize].draw(self.now_us);
        if let Some(curves) = &mut self.curves {
            curves.running.set(self.now_us, self.running);
            curves.waiting.set(self.now_us, self.live - self.running);
        }
    }

    fn now_secs(&self) -> i64 {
        (self.now_us / 1_000_000) as i64
    }

    /// A message without recipients.
    fn message(&mut self, number: u64) -> u32 {
        let at = self.free_messages.pop().unwrap_or_else(|| {
            self.messages.push(PassRecipients::default());
            self.messages.len() as u32 - 1
        });
        let message = &mut self.messages[at as usize];
        (message.message, message.born_us) = (number, self.now_us);
        at
    }

    fn add(&mut self, message: u32, at: u32) {
        let recipients = &mut self.messages[message as usize];
        recipients.left += 1;
        recipients.deliveries.push(at);
        let position = recipients.deliveries.len() as u32 - 1;
        let delivery = &mut self.deliveries[at as usize];
        (delivery.message, delivery.position) = (message, position);
    }

    /// All passes but the log's own: goes on to the next recipient that can be tried.
    fn pass(&mut self) {
        loop {
            let files =
                Files { messages: &self.messages, deliveries: &self.deliveries, keys: &self.keys };
            match self.send.pass((self.now_us / 1_000_000) as i64, &files) {
                Pass::HandedOut(out) => {
                    let recipients = &self.messages[out.message as usize].deliveries;
                    let delivery = recipients[out.position as usize];
                    return self.ask(delivery, out.job, out.slot);
                }
                Pass::Ended(job) => self.leave(job),
                Pass::Idle => return,
            }
        }
    }

    /// Asks the gate once for the recipients that wait together.
    fn ask_together(&mut self) {
        let (now_us, now_secs) = (self.now_us, self.now_secs());
        let Self { gate, keys, key_index, send, .. } = self;
        send.ask_together(now_secs, |number, recipient| {
            let Some(busy) = gate.ask_together(now_us, number, recipient) else {
                return ReportedResult::Deferred;
            };
            let key = key_index.key(keys, gate.rules(), recipient);
            keys[key as usize].busy += u64::from(number);
            let queue = gate.key(busy.key).number;
            ReportedResult::Busy { secs: busy.secs.into(), queue }
        });
    }

    /// A job loses its pass, or a delivery.
    fn leave(&mut self, job: usize) {
        let natural = self.natural_secs(self.send.message(job));
        match self.send.leave(job, natural, self.now_secs()) {
            LeftJob::Open | LeftJob::Waits => {}
            LeftJob::Due(message, at_secs) if self.messages[message as usize].left > 0 => {
                let due_us = at_secs.max(0) as u64 * 1_000_000;
                self.at(due_us.max(self.now_us), MachineEvent::Due(message));
            }
            LeftJob::Finished(message) | LeftJob::Due(message, _) => {
                // Nothing of it waits.
                self.messages[message as usize] = PassRecipients::default();
                self.free_messages.push(message);
            }
        }
    }

    /// When qmail-send would try the message again: its nextretry(). That function starts from the time when the job
    /// began. A job of the log has no such time, so the end of one of its deliveries is used.
    fn natural_secs(&self, message: u32) -> i64 {
        let born_secs = (self.messages[message as usize].born_us / 1_000_000) as i64;
        let tries = (self.now_secs() - born_secs).isqrt() + SKIP_SECS;
        born_secs + tries * tries
    }

    /// Reports the end of a delivery to qmail-send.
    fn report(&mut self, at: u32, told: ReportedResult) {
        let SimulatedDelivery { message, position, job, key, .. } = self.deliveries[at as usize];
        let times = (self.natural_secs(message), self.now_secs());
        let recipient = &self.keys[key as usize].recipient;
        self.send.report(job, (position.into(), recipient), told, times);
    }

    /// Ends a delivery for good.
    fn finish(&mut self, at: u32) {
        self.report(at, ReportedResult::Done);
        let SimulatedDelivery { key, message, position, job, .. } = self.deliveries[at as usize];
        self.keys[key as usize].live -= 1;
        self.live -= 1;
        self.draw(key);
        let recipients = &mut self.messages[message as usize];
        recipients.deliveries[position as usize] = NONE;
        recipients.left -= 1;
        self.leave(job);
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
            message: NONE,
            position: NONE,
            job: usize::MAX,
            said,
            #[cfg(test)]
            told,
            round: Round::First,
            waits_after_refusal: false,
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
        self.live += 1;
        match self.send.take_slot() {
            // It does not wait behind mail that is due: in the log, this was the pass that started it.
            Some(slot) => {
                let (here, job) = self.log_pass(message);
                self.add(here, at);
                let recipients = self.messages[here as usize].deliveries.len() as u32;
                self.at(self.now_us + LOG_PASS_GAP_US, MachineEvent::Read(here, recipients));
                let recipient = &self.keys[key as usize].recipient;
                if self.send.waits(job, u64::from(recipients) - 1, recipient) {
                    self.send.free_slot(slot);
                } else {
                    self.send.hand_out(job);
                    self.ask(at, job, slot);
                }
            }
            None => {
                let here = self.message(message);
                self.add(here, at);
                self.send.queue(here, self.now_secs());
            }
        }
        self.draw(key);
        self.settle();
        true
    }

    /// The log's pass over the message with this number: the message here, and its job.
    fn log_pass(&mut self, number: u64) -> (u32, usize) {
        if let Some((message, job)) = self.log_pass {
            if self.messages[message as usize].message == number {
                return (message, job);
            }
            self.end_log_pass();
        }
        let message = self.message(number);
        let job = self.send.open(message, self.now_secs());
        self.log_pass = Some((message, job));
        (message, job)
    }

    fn end_log_pass(&mut self) {
        if let Some((_, job)) = self.log_pass.take() {
            self.send.end_of_file(job);
            self.leave(job);
        }
    }

    fn ask(&mut self, at: u32, job: usize, slot: u32) {
        self.pass_at_us = self.now_us + PASS_US;
        let SimulatedDelivery { key, message, .. } = self.deliveries[at as usize];
        let message = self.messages[message as usize].message;
        #[cfg(test)]
        self.log.start(self.now_us, at, message, &self.keys[key as usize].recipient);
        let delivery = &mut self.deliveries[at as usize];
        (delivery.slot, delivery.job, delivery.tried_us) = (slot, job, self.now_us);
        self.slots[slot as usize] = at;
        let recipient = &self.keys[key as usize].recipient;
        let message = message.to_string();
        let answer = match Parts::new(&[message.as_bytes(), b"", recipient]) {
            Some(parts) => self.gate.ask(self.now_us, slot, &parts),
            None => Answer::Go,
        };
        if answer != Answer::Go
            && self.deliveries[at as usize].asked_us == self.now_us
            && self.pauses_after_refusal(key)
        {
            self.deliveries[at as usize].waits_after_refusal = true;
        }
        match answer {
            Answer::Go | Answer::InUse => self.start(at),
            Answer::Hold => {}
            Answer::Busy(busy) => self.send_away(at, busy),
        }
        self.in_use_peak = self.in_use_peak.max(self.gate.in_use());
        self.held_peak = self.held_peak.max(self.gate.held());
    }

    /// Whether the gate starts fewer deliveries of a key than its fixed limit, or none, because of a refusal.
    fn pauses_after_refusal(&self, key: u32) -> bool {
        let SimulatedKey { kind, name, cap, running, objections, .. } = &self.keys[key as usize];
        if *objections == 0
            || cap.learning == Learning::On
            || !matches!(cap.limit, Limit::AtMost(limit) if limit > *running)
        {
            return false;
        }
        self.gate.find_key(*kind, name).is_some_and(|key| key.is_held_down(self.now_us))
    }

    fn start(&mut self, at: u32) {
        let SimulatedDelivery { key, asked_us, service_us, round, waits_after_refusal, .. } =
            self.deliveries[at as usize];
        if round == Round::Again {
            self.at(self.now_us, MachineEvent::End(at));
            return;
        }
        self.running += 1;
        let number = key;
        let key = &mut self.keys[key as usize];
        key.running += 1;
        key.peak = key.peak.max(key.running);
        let waited_us = self.now_us - asked_us;
        if waited_us > 0 {
            if let Some(curves) = &mut key.curves {
                curves.waited(waited_us);
            }
            key.waited += 1;
            key.waited_after_refusal += u64::from(waits_after_refusal);
            key.waited_us += waited_us;
            key.waited_max_us = key.waited_max_us.max(waited_us);
        }
        self.draw(number);
        self.at(self.now_us.saturating_add(service_us), MachineEvent::End(at));
    }

    fn end(&mut self, at: u32) {
        let delivery = self.deliveries[at as usize];
        #[cfg(test)]
        let SimulatedDelivery { service_us, tried_us, told, .. } = delivery;
        let SimulatedDelivery { key: number, slot, said, round, .. } = delivery;
        self.send.free_slot(slot);
        let key = &mut self.keys[number as usize];
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
        key.last_end_us = key.last_end_us.max(self.now_us);
        self.last_end_us = self.last_end_us.max(self.now_us);
        if log_report::is_objection(said.seen) {
            key.objections += 1;
            if key.cap.learning == Learning::On
                && let Some(of_gate) = self.gate.find_key(key.kind, &key.name)
            {
                key.lowest = key.lowest.min(of_gate.limit());
            }
        }
        self.running -= 1;
        match back {
            None => {
                // What its own server has deferred is tried again as a delivery of its own in the log.
                self.finish(at);
                self.free.push(at);
            }
            Some(busy) => {
                key.refused += 1;
                self.draw(number);
                self.deliveries[at as usize].round = Round::Again;
                self.away(at, busy);
            }
        }
    }

    fn send_away(&mut self, at: u32, busy: Busy) {
        let SimulatedDelivery { key, slot, .. } = self.deliveries[at as usize];
        self.send.free_slot(slot);
        #[cfg(test)]
        self.log.busy(self.now_us, at, matches!(busy.why, BusyReason::Suspended(_)));
        let key = &mut self.keys[key as usize];
        match busy.why {
            BusyReason::Suspended(_) => key.suspended += 1,
            BusyReason::AtLimit
            | BusyReason::AtRate
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
            | BusyReason::AtRate
            | BusyReason::Refused
            | BusyReason::Paused(_)
            | BusyReason::AtDomainShare(_) => ReportedResult::Busy {
                secs: busy.secs.into(),
                queue: self.gate.key(busy.key).number,
            },
        };
        self.report(at, told);
        self.leave(self.deliveries[at as usize].job);
    }

    /// Nothing runs or waits, and every delivery, slot and job can be used again.
    #[cfg(test)]
    pub(super) fn assert_over(&self) {
        assert_eq!(self.free.len(), self.deliveries.len(), "every delivery ended");
        assert_eq!(self.send.free_slots() as usize, self.slots.len(), "every slot is free");
        assert_eq!(self.free_messages.len(), self.messages.len(), "every message is done");
        for key in &self.keys {
            assert_eq!((key.live, key.running), (0, 0));
        }
    }
}
