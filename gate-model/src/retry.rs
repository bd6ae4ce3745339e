//! gate_retry.c in Rust. gate_retry.h tells what each call means; here are the same calls, with the time as an argument
//! instead of the clock, and with the report already read ([`Told::read`] reads it).
//!
//! It is meant to be read beside the C: the same state, kept in sorted maps instead of chains and heaps. Memory is short
//! where [`Memory`] says so, which is asked wherever the C asks for memory.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};

/// So many recipients are remembered at most; GATE_RETRY_MAX.
pub const REMEMBERED_MAX: usize = 65536;
/// The longest wait that a busy report may ask for.
pub const SECONDS_MAX: i64 = 3600;
/// A call comes as the report of this delivery.
pub const CALL_DELNUM: u64 = 65535;

/// Whether there is memory.
pub trait Memory {
    /// The C asks malloc or realloc for some now.
    fn is_there(&mut self) -> bool;
}

/// There is always memory.
#[derive(Clone, Copy, Debug, Default)]
pub struct Plenty;

impl Memory for Plenty {
    fn is_there(&mut self) -> bool {
        true
    }
}

/// A message on a channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Job {
    /// The channel.
    pub channel: usize,
    /// The message.
    pub id: u64,
}

/// What a report tells of a delivery.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Told {
    /// It is done, or has failed for good.
    Done,
    /// Its domain is at its limit: it is to wait in a queue, for so many seconds at the longest.
    Busy {
        /// Up to [`SECONDS_MAX`].
        secs: i64,
        /// Not 0.
        queue: u32,
    },
    /// Anything else: its own server has deferred it.
    Deferred,
}

impl Told {
    /// Reads a report, and makes a deferral of a busy one: its letter and numbers go.
    pub fn read(report: &mut Vec<u8>) -> Self {
        match report.first() {
            Some(b'K' | b'D') => Self::Done,
            Some(b'B') => {
                report[0] = b'Z';
                let numbers =
                    number(&report[1..], b' ', SECONDS_MAX as u64).and_then(|(secs, rest)| {
                        let (queue, rest) = number(rest, b' ', u64::from(u32::MAX))?;
                        Some((secs as i64, queue as u32, report.len() - rest.len()))
                    });
                match numbers {
                    Some((secs, queue, text)) => {
                        report.drain(1..text);
                        Self::Busy { secs, queue }
                    }
                    None => Self::Deferred,
                }
            }
            _ => Self::Deferred,
        }
    }
}

/// A number from 1 to `most` that ends with the byte `end`, and what is behind that.
fn number(text: &[u8], end: u8, most: u64) -> Option<(u64, &[u8])> {
    let digits = text.iter().take_while(|byte| byte.is_ascii_digit()).count();
    let number = std::str::from_utf8(&text[..digits]).ok()?.parse::<u64>().ok()?;
    let rest = text[digits..].strip_prefix(&[end])?;
    (1..=most).contains(&number).then_some((number, rest))
}

/// What becomes of a job that is closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Closed {
    /// It waits: [`Retry::due`] gives it back.
    Waits,
    /// It goes to pqchan, due at this time.
    Due(i64),
}

/// A job that runs: jo[j] in qmail-send.
#[derive(Clone, Copy, Debug, Default)]
struct Running {
    channel: usize,
    due: i64,
    /// When a busy recipient wants it back at the latest.
    back: Option<i64>,
    /// The first retry time of those that their own server deferred.
    deferred: Option<i64>,
    queue: u32,
    busy: u32,
    called: u32,
    /// How many of the busy ones that are remembered may be tried. None: all.
    allowed: Option<u32>,
    is_full: bool,
}

/// A recipient that is not to be tried yet.
#[derive(Clone, Copy, Debug)]
struct Remembered {
    retry: i64,
    /// Where it waits. None: its own server deferred it.
    queue: Option<u32>,
}

/// What is remembered of a job's recipients.
#[derive(Debug, Default)]
struct Recipients {
    /// By position in the channel's file.
    at: BTreeMap<u64, Remembered>,
    /// How many busy ones were called.
    allowance: Option<u32>,
}

/// When a job was due, and in which order those of one second came.
type Turn = (i64, u64);

#[derive(Clone, Copy, Debug)]
struct Waits {
    id: u64,
    latest: i64,
    due: i64,
    queue: u32,
    busy: u32,
}

#[derive(Debug, Default)]
struct Channel {
    /// The jobs that wait, by their serial number.
    waits: HashMap<u64, Waits>,
    clock: BTreeSet<Turn>,
    queues: BTreeMap<u32, BTreeSet<Turn>>,
    called: VecDeque<Waits>,
}

impl Channel {
    fn take(&mut self, serial: u64) -> Option<Waits> {
        let waits = self.waits.remove(&serial)?;
        self.clock.remove(&(waits.latest, serial));
        if let Some(queue) = self.queues.get_mut(&waits.queue) {
            queue.remove(&(waits.due, serial));
            if queue.is_empty() {
                self.queues.remove(&waits.queue);
            }
        }
        Some(waits)
    }
}

/// See the module.
#[derive(Debug, Default)]
pub struct Retry<M: Memory = Plenty> {
    memory: M,
    running: Vec<Running>,
    recipients: HashMap<Job, Recipients>,
    /// How many are remembered, allowances among them, and for how many there is memory.
    remembered: usize,
    remembered_room: usize,
    channels: Vec<Channel>,
    waiting: usize,
    waiting_room: usize,
    serial: u64,
}

fn sooner(when: &mut Option<i64>, other: i64) {
    *when = Some(when.map_or(other, |when| when.min(other)));
}

impl<M: Memory> Retry<M> {
    /// With so much memory.
    pub fn new(memory: M) -> Self {
        Self {
            memory,
            running: Vec::new(),
            recipients: HashMap::new(),
            remembered: 0,
            remembered_room: 0,
            channels: Vec::new(),
            waiting: 0,
            waiting_room: 0,
            serial: 0,
        }
    }

    /// The memory.
    pub fn memory(&mut self) -> &mut M {
        &mut self.memory
    }

    fn running(&mut self, j: usize) -> Option<&mut Running> {
        if j >= self.running.len() {
            if !self.memory.is_there() {
                return None;
            }
            self.running.resize(j + j / 2 + 32, Running::default());
        }
        self.running.get_mut(j)
    }

    fn remember(&mut self, job: Job, position: u64, what: Remembered) -> bool {
        let is_new =
            self.recipients.get(&job).is_none_or(|known| !known.at.contains_key(&position));
        if is_new && !self.one_more() {
            return false;
        }
        self.recipients.entry(job).or_default().at.insert(position, what);
        true
    }

    fn allow(&mut self, job: Job, most: u32) {
        let is_new = self.recipients.get(&job).is_none_or(|known| known.allowance.is_none());
        if !is_new || self.one_more() {
            self.recipients.entry(job).or_default().allowance = Some(most);
        }
    }

    /// Room for one more that is remembered.
    fn one_more(&mut self) -> bool {
        if self.remembered == self.remembered_room {
            let room = if self.remembered_room == 0 { 64 } else { self.remembered_room * 2 };
            if room > REMEMBERED_MAX || !self.memory.is_there() {
                return false;
            }
            self.remembered_room = room;
        }
        self.remembered += 1;
        true
    }

    fn less(&mut self, number: usize) {
        self.remembered -= number;
        if self.remembered == 0 {
            self.remembered_room = 0;
        }
    }

    fn forget(&mut self, job: Job, position: u64) {
        let Some(known) = self.recipients.get_mut(&job) else { return };
        let number = usize::from(known.at.remove(&position).is_some());
        if known.at.is_empty() && known.allowance.is_none() {
            self.recipients.remove(&job);
        }
        self.less(number);
    }

    fn forget_job(&mut self, job: Job) {
        if let Some(known) = self.recipients.remove(&job) {
            self.less(known.at.len() + usize::from(known.allowance.is_some()));
        }
    }

    /// Job `j` begins, which was due at `due`.
    pub fn open(&mut self, j: usize, job: Job, due: i64) {
        if self.running(j).is_none() {
            return;
        }
        let mut allowed = None;
        if let Some(known) = self.recipients.get_mut(&job)
            && known.allowance.is_some()
        {
            allowed = known.allowance.take();
            if known.at.is_empty() {
                self.recipients.remove(&job);
            }
            self.less(1);
        }
        self.running[j] = Running { channel: job.channel, due, allowed, ..Running::default() };
    }

    /// Whether the recipient at this position is to be passed over.
    pub fn skip(&mut self, j: usize, job: Job, position: u64, now: i64) -> bool {
        let Some(&what) = self.recipients.get(&job).and_then(|known| known.at.get(&position))
        else {
            return false;
        };
        let Some(running) = self.running(j).filter(|_| what.retry > now) else {
            self.forget(job, position);
            return false;
        };
        match what.queue {
            None => {
                sooner(&mut running.deferred, what.retry);
                true
            }
            Some(_) if running.allowed != Some(0) => {
                running.allowed = running.allowed.map(|allowed| allowed - 1);
                self.forget(job, position);
                false
            }
            Some(queue) => {
                sooner(&mut running.back, what.retry);
                running.queue = queue;
                running.busy += 1;
                true
            }
        }
    }

    /// A delivery was reported; `natural` is when its job would be tried again.
    pub fn report(
        &mut self,
        j: usize,
        job: Job,
        position: u64,
        natural: i64,
        told: Told,
        now: i64,
    ) {
        if told == Told::Done {
            return;
        }
        let Some(&mut running) = self.running(j) else { return };
        match told {
            Told::Done => {}
            Told::Busy { secs, queue } => {
                let back = now + secs;
                // The first one is tried whenever the job is.
                if running.busy > 0 {
                    self.remember(job, position, Remembered { retry: back, queue: Some(queue) });
                }
                let running = &mut self.running[j];
                if running.back.is_none_or(|before| back <= before) {
                    running.queue = queue;
                }
                sooner(&mut running.back, back);
                running.busy += 1;
            }
            Told::Deferred => {
                let is_known =
                    self.remember(job, position, Remembered { retry: natural, queue: None });
                let running = &mut self.running[j];
                sooner(&mut running.deferred, natural);
                running.is_full |= !is_known;
            }
        }
    }

    /// The last delivery of job `j` is done, and the job is not: it would come back at `natural`.
    pub fn close(&mut self, j: usize, job: Job, natural: i64) -> Closed {
        let Some(running) = self.running(j) else {
            self.forget_job(job);
            return Closed::Due(natural);
        };
        let Running { back, deferred, is_full, due, queue, busy, called, .. } = *running;
        (running.busy, running.called) = (0, 0);
        let wants = match (back, deferred) {
            _ if is_full => None,
            (None, Some(deferred)) if deferred >= natural => None,
            (None, deferred) => deferred,
            (Some(back), None) => Some(back),
            (Some(back), Some(deferred)) => Some(back.min(deferred)),
        };
        let Some(latest) = wants else {
            self.forget_job(job);
            return Closed::Due(natural);
        };
        if back.is_none() {
            return Closed::Due(latest);
        }
        let Some(serial) =
            self.enqueue(job.channel, Waits { id: job.id, latest, due, queue, busy })
        else {
            return Closed::Due(latest);
        };
        if called > 0 {
            self.call_one(job.channel, serial, called);
        }
        Closed::Waits
    }

    fn enqueue(&mut self, channel: usize, waits: Waits) -> Option<u64> {
        if channel >= self.channels.len() {
            if !self.memory.is_there() {
                return None;
            }
            self.channels.resize_with(channel + 1, Channel::default);
        }
        if self.waiting == self.waiting_room {
            if !self.memory.is_there() {
                return None;
            }
            self.waiting_room += self.waiting_room / 2 + 64;
        }
        let channel = &mut self.channels[channel];
        if !channel.queues.contains_key(&waits.queue) && !self.memory.is_there() {
            return None;
        }
        self.waiting += 1;
        self.serial += 1;
        channel.clock.insert((waits.latest, self.serial));
        channel.queues.entry(waits.queue).or_default().insert((waits.due, self.serial));
        channel.waits.insert(self.serial, waits);
        Some(self.serial)
    }

    /// So many recipients of a job are called, 1 or more.
    fn call_one(&mut self, channel: usize, serial: u64, most: u32) {
        let Some(waits) = self.channels[channel].take(serial) else { return };
        if waits.busy > most {
            self.allow(Job { channel, id: waits.id }, most);
        }
        self.channels[channel].called.push_back(waits);
    }

    /// The gate calls so many recipients of a queue.
    pub fn call(&mut self, channel: usize, queue: u32, mut most: u32) {
        while most > 0
            && let Some(&(_, serial)) =
                self.channels.get(channel).and_then(|of| of.queues.get(&queue)?.first())
        {
            let called = self.channels[channel].waits[&serial].busy.min(most);
            self.call_one(channel, serial, called);
            most -= called;
        }
        // Those whose job is still open.
        for running in &mut self.running {
            if running.busy > 0 && running.channel == channel && running.queue == queue {
                let called = (running.busy - running.called).min(most);
                running.called += called;
                most -= called;
            }
        }
    }

    /// A report that is no delivery's. False if it is no call either.
    pub fn call_report(&mut self, channel: usize, delivery: u64, report: &[u8]) -> bool {
        let all = u64::from(u32::MAX);
        let call = report
            .strip_prefix(b"R")
            .filter(|_| delivery == CALL_DELNUM)
            .and_then(|numbers| number(numbers, b' ', all))
            .and_then(|(queue, rest)| Some((queue, number(rest, b'\n', all)?.0)));
        if let Some((queue, most)) = call {
            self.call(channel, queue as u32, most as u32);
        }
        call.is_some()
    }

    /// A message that is to go to pqchan now, and since when it is due.
    pub fn due(&mut self, channel: usize, now: i64) -> Option<(u64, i64)> {
        let of = self.channels.get_mut(channel)?;
        let waits = match of.called.pop_front() {
            Some(waits) => waits,
            None => {
                let &(latest, serial) = of.clock.first()?;
                // Further ahead than anything can be: the clock was set back.
                if latest > now && latest <= now + SECONDS_MAX {
                    return None;
                }
                of.take(serial)?
            }
        };
        Some(self.gone(waits, now))
    }

    fn gone(&mut self, waits: Waits, now: i64) -> (u64, i64) {
        self.waiting -= 1;
        if self.waiting == 0 {
            self.waiting_room = 0;
        }
        (waits.id, waits.due.min(now))
    }

    /// When [`Retry::due`] has something, if nothing is called before; `wakeup` if that is sooner.
    #[must_use]
    pub fn wakeup(&self, wakeup: i64) -> i64 {
        let first = |channel: &Channel| channel.clock.first().map(|&(latest, _)| latest);
        self.channels.iter().filter_map(first).fold(wakeup, i64::min)
    }

    /// The same as [`Retry::wakeup`] with no end, and at once if something is called.
    #[must_use]
    pub fn next(&self) -> Option<i64> {
        if self.channels.iter().any(|channel| !channel.called.is_empty()) {
            return Some(i64::MIN);
        }
        self.channels.iter().filter_map(|channel| channel.clock.first()).map(|&(at, _)| at).min()
    }

    /// A message that waits no more. With the last one, all that is remembered is forgotten.
    pub fn flush(&mut self, channel: usize, now: i64) -> Option<(u64, i64)> {
        let of = self.channels.get_mut(channel);
        let waits = of.and_then(|of| {
            of.called.pop_front().or_else(|| {
                let &(_, serial) = of.clock.first()?;
                of.take(serial)
            })
        });
        match waits {
            Some(waits) => Some(self.gone(waits, now)),
            None => {
                self.recipients.clear();
                (self.remembered, self.remembered_room) = (0, 0);
                None
            }
        }
    }

    /// How many jobs wait.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.waiting
    }
}
