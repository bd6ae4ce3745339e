//! qmail-send's remote channel: slots, jobs, and passes over messages, with the gate's half of qmail-send in them.
//!
//! `qpatch gate simulate` and the gate's tests both drive this model. It decides which recipient is handed out next, in
//! which job and slot, and what becomes of a message when its job is closed. It follows qmail-send.c with the hooks of
//! the domain-gate patch: pass_dochan, del_start, job_close.
//!
//! It has no clock, knows no gate and starts no delivery. The caller gives the time in whole seconds, as qmail-send
//! counts it, decides what a pass costs (at best [`PASS_US`]), and says what the gate and the servers answer.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use crate::retry::{ClosedJob, Job, PassEnd, PassStep, ReportedResult, Retry};

/// The time between two recipients that qmail-send hands out, in microseconds: it makes at most 3000 passes a second.
pub const PASS_US: u64 = 1_000_000 / 3000;

/// qmail-send's channel of mail that goes to qmail-rspawn.
const REMOTE: usize = 1;

/// What stands in a message's file at a position.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileRecipient<'a> {
    /// A recipient to try, with its domain behind an `@`.
    ToDo(&'a [u8]),
    /// A recipient that is done.
    Done,
    /// The end of the file.
    EndOfFile,
}

/// The files of the messages.
pub trait MessageFiles {
    /// What stands in the file of `message` at `position`. Recipients have the positions 0, 1, 2 and so on.
    fn recipient(&self, message: u32, position: u64) -> FileRecipient<'_>;
}

/// A recipient that a pass hands out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HandedOut {
    /// The job of the pass.
    pub job: usize,
    /// The message of the job.
    pub message: u32,
    /// The recipient's position in the file.
    pub position: u64,
    /// The slot of the delivery.
    pub slot: u32,
}

/// How a pass goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pass {
    /// It hands this recipient out. The next call goes on behind it.
    HandedOut(HandedOut),
    /// It has ended. The caller calls [`QmailSend::leave`] for this job.
    Ended(usize),
    /// No message is due, or no slot is free.
    Idle,
}

/// What becomes of a message when its job loses a delivery or its pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LeftJob {
    /// The job has deliveries, or its pass goes on.
    Open,
    /// All recipients are done: qmail-send removes the file.
    Finished(u32),
    /// Its recipients wait, and [`QmailSend::queue_due`] queues them.
    Waits,
    /// The caller queues this message at this time, in seconds.
    Due(u32, i64),
}

/// qmail-send's struct job.
#[derive(Clone, Copy, Debug)]
struct SendJob {
    message: u32,
    /// The pass, and the deliveries.
    refs: u32,
    /// Recipients that were read and are not done; one more if the pass is over a part of the message.
    todo: u32,
    end: PassEnd,
}

/// qmail-send with one channel. See the module.
#[derive(Debug, Default)]
pub struct QmailSend {
    retry: Retry,
    /// pqchan: what is due since when, in seconds. What was due first comes first.
    queue: BinaryHeap<Reverse<(i64, u64, u32)>>,
    queued: u64,
    jobs: Vec<SendJob>,
    free_jobs: Vec<usize>,
    free_slots: BinaryHeap<Reverse<u32>>,
    slots: u32,
    /// The job of the pass, and its next position.
    pass: Option<(usize, u64)>,
    /// Jobs that were opened, and recipients that passes read.
    opened: u64,
    reads: u64,
}

impl QmailSend {
    /// Raises the number of slots (concurrencyremote) to `slots`, if it is lower.
    pub fn grow(&mut self, slots: u32) {
        self.free_slots.extend((self.slots..slots).map(Reverse));
        self.slots = self.slots.max(slots);
    }

    /// How many slots are free.
    #[must_use]
    pub fn free_slots(&self) -> u32 {
        self.free_slots.len() as u32
    }

    /// Takes the lowest free slot.
    pub fn take_slot(&mut self) -> Option<u32> {
        self.free_slots.pop().map(|Reverse(slot)| slot)
    }

    /// Frees a slot that a delivery has left.
    pub fn free_slot(&mut self, slot: u32) {
        self.free_slots.push(Reverse(slot));
    }

    /// Queues a message that is due since `due_secs`.
    pub fn queue(&mut self, message: u32, due_secs: i64) {
        self.queued += 1;
        self.queue.push(Reverse((due_secs, self.queued, message)));
    }

    /// Queues the messages that the gate has called, and those whose time has come.
    pub fn queue_due(&mut self, now_secs: i64) {
        while let Some((message, due_secs)) = self.retry.due(REMOTE, now_secs) {
            self.queue(message as u32, due_secs);
        }
    }

    /// When [`QmailSend::queue_due`] has something to queue, in seconds; `None` if nothing waits.
    #[must_use]
    pub fn next_due(&self) -> Option<i64> {
        self.retry.next_due()
    }

    /// When the next pass can begin, in seconds: at once (the lowest time) while one goes on, else when the first
    /// message of the queue is due. `None` if there is none, or no slot is free.
    #[must_use]
    pub fn next_pass(&self) -> Option<i64> {
        if self.free_slots.is_empty() {
            return None;
        }
        let due_secs = || self.queue.peek().map(|&Reverse((due_secs, ..))| due_secs);
        self.pass.map(|_| i64::MIN).or_else(due_secs)
    }

    /// How many jobs were opened so far, and how many recipients were read.
    #[must_use]
    pub fn work(&self) -> (u64, u64) {
        (self.opened, self.reads)
    }

    /// Opens a job for a pass over a message that is due since `due_secs`. [`QmailSend::pass`] does this for what it
    /// takes from the queue.
    pub fn open(&mut self, message: u32, due_secs: i64) -> usize {
        let at = self.free_jobs.pop().unwrap_or(self.jobs.len());
        let is_part = self.retry.open(at, name_of(message), due_secs);
        let job = SendJob { message, refs: 1, todo: u32::from(is_part), end: PassEnd::Before };
        match self.jobs.get_mut(at) {
            Some(free) => *free = job,
            None => self.jobs.push(job),
        }
        self.opened += 1;
        at
    }

    /// The message of a job.
    #[must_use]
    pub fn message(&self, job: usize) -> u32 {
        self.jobs[job].message
    }

    /// Goes on with the pass, or begins with the first message that is due, up to the next recipient that is handed out
    /// or to the end of the pass.
    pub fn pass(&mut self, now_secs: i64, files: &impl MessageFiles) -> Pass {
        if self.free_slots.is_empty() {
            return Pass::Idle;
        }
        let (job, mut position) = match self.pass.take() {
            Some(pass) => pass,
            None => match self.queue.peek() {
                Some(&Reverse((due_secs, _, message))) if due_secs <= now_secs => {
                    self.queue.pop();
                    (self.open(message, due_secs), 0)
                }
                _ => return Pass::Idle,
            },
        };
        let message = self.message(job);
        loop {
            self.reads += 1;
            match self.retry.next(job, position) {
                PassStep::Here => {}
                PassStep::At(at) => position = at,
                PassStep::End => return Pass::Ended(job),
            }
            let recipient = match files.recipient(message, position) {
                FileRecipient::ToDo(recipient) => Some(recipient),
                FileRecipient::Done => None,
                FileRecipient::EndOfFile => {
                    self.end_of_file(job);
                    return Pass::Ended(job);
                }
            };
            if let Some(recipient) = recipient
                && !self.waits(job, position, recipient)
                && let Some(slot) = self.take_slot()
            {
                self.pass = Some((job, position + 1));
                self.hand_out(job);
                return Pass::HandedOut(HandedOut { job, message, position, slot });
            }
            position += 1;
        }
    }

    /// The pass of a job has read its file to the end.
    pub fn end_of_file(&mut self, job: usize) {
        self.jobs[job].end = PassEnd::EndOfFile;
    }

    /// A pass has read a recipient that is not done. Returns whether it has to wait because others of its domain wait.
    pub fn waits(&mut self, job: usize, position: u64, recipient: &[u8]) -> bool {
        self.jobs[job].todo += 1;
        self.retry.skip(job, position, recipient)
    }

    /// Counts a delivery that the caller hands out by itself. [`QmailSend::pass`] does this for what it hands out.
    pub fn hand_out(&mut self, job: usize) {
        self.jobs[job].refs += 1;
    }

    /// Asks the gate about recipients that wait together: `answer` gets their number and their domain behind an `@`.
    pub fn ask_together(
        &mut self,
        now_secs: i64,
        mut answer: impl FnMut(u32, &[u8]) -> ReportedResult,
    ) {
        while let Some((_, number, domain)) = self.retry.ask(REMOTE) {
            let result = answer(number, &[b"@", &domain[..]].concat());
            self.retry.answer(REMOTE, result, now_secs);
        }
    }

    /// The gate calls up to `most` recipients of a queue.
    pub fn call(&mut self, queue: u32, most: u32) {
        self.retry.call(REMOTE, queue, most);
    }

    /// Takes the report of a delivery of a job. If it is a deferral, qmail-send would try the recipient again at
    /// `natural_secs`, its nextretry().
    pub fn report(
        &mut self,
        job: usize,
        (position, recipient): (u64, &[u8]),
        result: ReportedResult,
        (natural_secs, now_secs): (i64, i64),
    ) {
        let name = name_of(self.message(job));
        self.retry.report(job, name, position, natural_secs, recipient, result, now_secs);
        if result == ReportedResult::Done {
            self.jobs[job].todo -= 1;
        }
    }

    /// The pass of a job has ended, or one of its deliveries after its report. With the last of them the job is closed.
    pub fn leave(&mut self, job: usize, natural_secs: i64, now_secs: i64) -> LeftJob {
        let left = &mut self.jobs[job];
        left.refs -= 1;
        if left.refs > 0 {
            return LeftJob::Open;
        }
        let SendJob { message, todo, end, .. } = *left;
        self.free_jobs.push(job);
        if end == PassEnd::EndOfFile && todo == 0 {
            return LeftJob::Finished(message);
        }
        match self.retry.close(job, end, natural_secs, now_secs) {
            ClosedJob::Waits => LeftJob::Waits,
            ClosedJob::Due(at_secs) => LeftJob::Due(message, at_secs),
        }
    }
}

fn name_of(message: u32) -> Job {
    Job { channel: REMOTE, id: message.into() }
}
