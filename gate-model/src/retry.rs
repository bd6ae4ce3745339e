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

/// What a pass is over.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Pass {
    /// Everybody.
    #[default]
    All,
    /// The busy ones that were called.
    Called,
    /// The deferred ones whose time has come.
    Deferred,
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
    /// No busy one is before this. None: there is none.
    from: Option<u64>,
    /// Where the pass begins.
    start: u64,
    queue: u32,
    busy: u32,
    called: u32,
    /// How many recipients may still be tried in a pass over called ones.
    allowed: u32,
    /// How many of `busy` this pass is not to see.
    left: u32,
    is_full: bool,
    pass: Pass,
    is_stopped: bool,
}

/// What the next pass over a message is to be.
#[derive(Clone, Copy, Debug)]
struct Plan {
    pass: Pass,
    allowed: u32,
    left: u32,
    queue: u32,
    from: u64,
    back: Option<i64>,
    deferred: Option<i64>,
}

/// What is remembered of a message.
#[derive(Debug, Default)]
struct Message {
    /// When to try the recipients that their own server deferred, by position in the channel's file.
    deferred: BTreeMap<u64, i64>,
    plan: Option<Plan>,
}

/// When a job was due, and in which order those of one second came.
type Turn = (i64, u64);

#[derive(Clone, Copy, Debug)]
struct Waits {
    id: u64,
    latest: i64,
    due: i64,
    back: i64,
    deferred: Option<i64>,
    from: u64,
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
    messages: HashMap<Job, Message>,
    messages_room: usize,
    /// How many recipients are remembered, and for how many there is memory.
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

impl Running {
    /// A busy recipient is here.
    fn begins(&mut self, position: u64) {
        self.from = Some(self.from.map_or(position, |from| from.min(position)));
    }
}

impl<M: Memory> Retry<M> {
    /// With so much memory.
    pub fn new(memory: M) -> Self {
        Self {
            memory,
            running: Vec::new(),
            messages: HashMap::new(),
            messages_room: 0,
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

    /// What is remembered of a message, from now on. False: no memory.
    fn message(&mut self, job: Job) -> bool {
        if !self.messages.contains_key(&job) {
            if self.messages.len() == self.messages_room {
                if !self.memory.is_there() {
                    return false;
                }
                self.messages_room += self.messages_room / 2 + 64;
            }
            self.messages.insert(job, Message::default());
        }
        true
    }

    /// Forgets the message if nothing is remembered of it.
    fn tidy(&mut self, job: Job) {
        if self
            .messages
            .get(&job)
            .is_some_and(|message| message.deferred.is_empty() && message.plan.is_none())
        {
            self.forget(job);
        }
    }

    fn forget(&mut self, job: Job) {
        if let Some(message) = self.messages.remove(&job) {
            self.less(message.deferred.len());
            if self.messages.is_empty() {
                self.messages_room = 0;
            }
        }
    }

    fn less(&mut self, number: usize) {
        self.remembered -= number;
        if self.remembered == 0 {
            self.remembered_room = 0;
        }
    }

    /// False: no memory, or there are too many.
    fn defer(&mut self, job: Job, position: u64, retry: i64) -> bool {
        if !self.message(job) {
            return false;
        }
        if !self.messages[&job].deferred.contains_key(&position) {
            if self.remembered == self.remembered_room {
                let room = if self.remembered_room == 0 { 64 } else { self.remembered_room * 2 };
                if room > REMEMBERED_MAX || !self.memory.is_there() {
                    self.tidy(job);
                    return false;
                }
                self.remembered_room = room;
            }
            self.remembered += 1;
        }
        self.messages.entry(job).or_default().deferred.insert(position, retry);
        true
    }

    /// Without memory the pass is over everybody.
    fn plan(&mut self, channel: usize, waits: &Waits, pass: Pass, allowed: u32) {
        let job = Job { channel, id: waits.id };
        if self.message(job) {
            let Waits { back, deferred, from, queue, busy, .. } = *waits;
            self.messages.entry(job).or_default().plan = Some(Plan {
                pass,
                allowed,
                left: busy - allowed,
                queue,
                from,
                back: Some(back),
                deferred,
            });
        }
    }

    /// Job `j` begins, which was due at `due`.
    pub fn open(&mut self, j: usize, job: Job, due: i64) {
        if self.running(j).is_none() {
            return;
        }
        let mut running = Running { channel: job.channel, due, ..Running::default() };
        if let Some(plan) = self.messages.get_mut(&job).and_then(|message| message.plan.take()) {
            (running.pass, running.back, running.queue) = (plan.pass, plan.back, plan.queue);
            if plan.pass == Pass::Called {
                (running.allowed, running.start) = (plan.allowed, plan.from);
                (running.busy, running.left) = (plan.left, plan.left);
                running.deferred = plan.deferred;
            }
            self.tidy(job);
        }
        self.running[j] = running;
    }

    /// Where a pass over called recipients begins. None: it is another one, from the beginning.
    pub fn from(&mut self, j: usize) -> Option<u64> {
        self.running(j).filter(|running| running.pass == Pass::Called).map(|running| running.start)
    }

    /// Whether the pass ends before the recipient at this position.
    pub fn stop(&mut self, j: usize, position: u64) -> bool {
        let Some(running) = self.running(j) else { return false };
        if running.pass != Pass::Called || running.allowed > 0 {
            return false;
        }
        running.is_stopped = true;
        running.begins(position);
        true
    }

    /// Whether the recipient at this position is to be passed over.
    pub fn skip(&mut self, j: usize, job: Job, position: u64, now: i64) -> bool {
        let is_there = self.running(j).is_some();
        let retry = self.messages.get(&job).and_then(|of| of.deferred.get(&position).copied());
        if let Some(retry) = retry {
            if is_there && retry > now {
                sooner(&mut self.running[j].deferred, retry);
                return true;
            }
            self.messages.entry(job).or_default().deferred.remove(&position);
            self.less(1);
            self.tidy(job);
        }
        if !is_there {
            return false;
        }
        let running = &mut self.running[j];
        match running.pass {
            Pass::Called if running.allowed == 0 => true,
            Pass::Called => {
                running.allowed -= 1;
                false
            }
            Pass::Deferred if retry.is_none() => {
                running.begins(position);
                running.busy += 1;
                true
            }
            Pass::All | Pass::Deferred => false,
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
        let Some(running) = self.running(j) else { return };
        match told {
            Told::Done => {}
            Told::Busy { secs, queue } => {
                let back = now + secs;
                if running.back.is_none_or(|before| back <= before) {
                    running.queue = queue;
                }
                sooner(&mut running.back, back);
                running.begins(position);
                running.busy += 1;
            }
            Told::Deferred => {
                let is_known = self.defer(job, position, natural);
                let running = &mut self.running[j];
                sooner(&mut running.deferred, natural);
                running.is_full |= !is_known;
            }
        }
    }

    /// The last delivery of job `j` is done, and the job is not: it would come back at `natural`.
    pub fn close(&mut self, j: usize, job: Job, natural: i64, now: i64) -> Closed {
        let Some(running) = self.running(j) else {
            self.forget(job);
            return Closed::Due(natural);
        };
        let (mut busy, called) = (running.busy, running.called);
        // It came to the end of the file before it had seen as many as there should have been.
        if running.pass == Pass::Called && !running.is_stopped && !running.is_full {
            busy -= running.left.min(busy);
        }
        (running.busy, running.called) = (0, 0);
        if running.is_full {
            self.forget(job);
            return Closed::Due(natural);
        }
        if busy == 0 {
            running.back = None;
        }
        let Running { back, deferred, due, queue, from, pass, .. } = *running;
        if let Some(back) = back {
            let latest = deferred.map_or(back, |deferred| deferred.min(back));
            let from = from.unwrap_or(0);
            let waits = Waits { id: job.id, latest, due, back, deferred, from, queue, busy };
            return match self.enqueue(job.channel, waits) {
                Some(serial) => {
                    if called.min(busy) > 0 {
                        self.call_one(job.channel, serial, called.min(busy));
                    }
                    Closed::Waits
                }
                None => Closed::Due(latest),
            };
        }
        match deferred {
            Some(deferred) if deferred < natural => Closed::Due(deferred),
            _ => {
                self.forget(job);
                // Whether it is done only a pass from the beginning sees.
                let is_part = pass == Pass::Called && deferred.is_none();
                Closed::Due(if is_part { now } else { natural })
            }
        }
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
        if waits.busy > most || waits.from > 0 {
            self.plan(channel, &waits, Pass::Called, most);
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
                let waits = of.take(serial)?;
                // The busy ones have not been called, nor is their time over.
                if waits.back > now && waits.deferred.is_some_and(|deferred| deferred <= now) {
                    self.plan(channel, &waits, Pass::Deferred, 0);
                }
                waits
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

    /// SIGALRM: the messages with deferred recipients, which all are to be tried now.
    pub fn alarm(&mut self, channel: usize, now: i64) -> Vec<(u64, i64)> {
        let mut out = Vec::new();
        if let Some(of) = self.channels.get(channel) {
            let with_deferred = of.waits.iter().filter(|(_, waits)| waits.deferred.is_some());
            let mut serials: Vec<_> = with_deferred.map(|(&serial, _)| serial).collect();
            serials.sort_unstable();
            for serial in serials {
                if let Some(waits) = self.channels[channel].take(serial) {
                    self.plan(channel, &waits, Pass::Deferred, 0);
                    out.push(self.gone(waits, now));
                }
            }
        }
        for message in self.messages.values_mut() {
            message.deferred.values_mut().for_each(|retry| *retry = 0);
        }
        out
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
                self.messages.clear();
                (self.messages_room, self.remembered, self.remembered_room) = (0, 0, 0);
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
