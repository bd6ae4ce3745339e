//! gate_retry.c in Rust. gate_retry.h explains each call. The calls here are the same and have the same names, with the
//! time as an argument instead of the clock, and with the report already read ([`ReportedResult::read`]).
//!
//! Read it beside the C: it has the same state, in sorted maps instead of chains and heaps. [`MemorySupply`] is asked
//! wherever the C asks for memory, so that tests can let each request fail.
//!
//! The file has more than 700 lines because it is one machine, in the order of the C file beside which it is read.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};

use crate::hash::{KEY, half_sip};

/// The most recipients that are remembered; GATE_RETRY_MAX of the C.
pub const REMEMBERED_MAX: u32 = 4_194_304;
/// The longest wait that a busy report may ask for, in seconds.
pub const SECONDS_MAX: i64 = 3600;
/// The longest time until a retry, in seconds. qmail's own retry time is shorter until a message is 50 days old.
const RETRY_MAX: i64 = 86400;
/// The delivery number of a report that is a call.
pub const CALL_DELNUM: u64 = 65535;
/// How many recipients a pass may hand out after one was busy, before other messages go first.
pub const TURN: u32 = 256;
const DOMAIN_MAX: usize = 255;
const DOMAINS: u32 = 16384;

/// Says whether there is memory, so that a test can let requests fail.
pub trait MemorySupply {
    /// Called where the C calls malloc or realloc. False: that fails.
    fn is_there(&mut self) -> bool;
}

/// There is always memory.
#[derive(Clone, Copy, Debug, Default)]
pub struct UnlimitedMemory;

impl MemorySupply for UnlimitedMemory {
    fn is_there(&mut self) -> bool {
        true
    }
}

/// A message on a channel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Job {
    /// The channel.
    pub channel: usize,
    /// The message.
    pub id: u64,
}

/// What a report says of a delivery.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReportedResult {
    /// It is done, or has failed permanently.
    Done,
    /// Its domain is at its limit: the recipient waits in a queue, for `secs` seconds at most.
    Busy {
        /// 1..=[`SECONDS_MAX`].
        secs: i64,
        /// The number of the key in the gate, 1 or more.
        queue: u32,
    },
    /// Anything else: its server has deferred it.
    Deferred,
}

impl ReportedResult {
    /// Reads a report. A busy report becomes a deferral in place: `B` becomes `Z`, and its numbers are removed.
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

/// Reads a number from 1 to `most` that ends with the byte `end`; also returns the rest of the text.
fn number(text: &[u8], end: u8, most: u64) -> Option<(u64, &[u8])> {
    let digits = text.iter().take_while(|byte| byte.is_ascii_digit()).count();
    let number = std::str::from_utf8(&text[..digits]).ok()?.parse::<u64>().ok()?;
    let rest = text[digits..].strip_prefix(&[end])?;
    (1..=most).contains(&number).then_some((number, rest))
}

/// What happens to the message of a job that is closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClosedJob {
    /// It waits: [`Retry::due`] returns it later.
    Waits,
    /// It goes to qmail-send's pqchan, due at this time.
    Due(i64),
}

/// The next step of a pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PassStep {
    /// Read on.
    Here,
    /// Read on at this position.
    At(u64),
    /// The pass ends before the end of its file.
    End,
}

/// How far the pass of a job got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PassEnd {
    /// To the end of the file.
    EndOfFile,
    /// Not to the end: there was nothing more to do, or the file could not be read.
    Before,
}

/// What stands in the file where a recipient should begin.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FileState {
    /// A recipient.
    #[default]
    Same,
    /// Something else: another message has the number now.
    Other,
    /// Nothing: the file cannot be read.
    Unreadable,
}

/// Which recipients a pass is over.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum PassScope {
    /// None.
    #[default]
    NoRecipients,
    /// All, from the beginning.
    All,
    /// Those of the list.
    List,
    /// All from a position on.
    Rest,
}

/// What a part of a message waits for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum PartState {
    /// A call or the clock.
    Busy,
    /// Only the clock.
    Later,
    /// An answer of the gate to the question for them together.
    Asked,
    /// A pass.
    #[default]
    Called,
    /// A pass from a position on to the end of the file.
    Rest,
}

/// A pool of the C: an array that grows, and is freed when no element is in use.
#[derive(Debug, Default)]
struct Pool {
    room: u32,
    used: u32,
}

impl Pool {
    fn take(&mut self, most: u32, memory: &mut impl MemorySupply) -> bool {
        if self.used == self.room {
            let more = self.room / 2 + 64;
            let room = if most - self.room < more { most } else { self.room + more };
            if room == self.room || !memory.is_there() {
                return false;
            }
            self.room = room;
        }
        self.used += 1;
        true
    }

    fn give(&mut self, number: usize) {
        self.used -= number as u32;
        if self.used == 0 {
            self.room = 0;
        }
    }
}

type Chain = VecDeque<u64>;
type PartId = u64;

#[derive(Debug, Default)]
struct Message {
    parts: Vec<PartId>,
    plan: VecDeque<PartId>,
    later: usize,
    /// The last part that began to wait only for the clock, if it still waits.
    last_later: Option<PartId>,
    open: u32,
    due: i64,
    lost: Option<i64>,
}

#[derive(Debug, Default)]
struct Part {
    queue: u32,
    /// The part that collects recipients for the next question to the gate.
    asks: Option<PartId>,
    state: PartState,
    chain: Chain,
    goes_behind: bool,
    serial: u64,
    /// The last pass in which one of its recipients was busy.
    pass: u64,
    from: u64,
    due: i64,
    when: i64,
    domain: Vec<u8>,
}

/// The order in queues: by time, then by serial number.
type QueueOrder = (i64, u64, PartId);

#[derive(Debug, Default)]
struct Channel {
    clock: BTreeSet<QueueOrder>,
    queues: BTreeMap<u32, BTreeSet<QueueOrder>>,
    called: VecDeque<PartId>,
    asked: VecDeque<PartId>,
    asking: Option<PartId>,
}

/// A job that runs: jo[j] in qmail-send.
#[derive(Clone, Debug, Default)]
struct RunningJob {
    list: Chain,
    deferred: Chain,
    due: i64,
    natural: Option<i64>,
    lost: Option<i64>,
    /// Where the pass goes on, if it must seek.
    at: Option<u64>,
    serial: u64,
    message: Option<Job>,
    handed: u32,
    /// How many recipients were handed out and have no report yet.
    out: u32,
    pass: PassScope,
    was_busy: bool,
}

/// qmail-send's half of the gate. See the module.
#[derive(Debug, Default)]
pub struct Retry<M: MemorySupply = UnlimitedMemory> {
    memory: M,
    running: Vec<RunningJob>,
    places: Pool,
    messages_pool: Pool,
    messages: HashMap<Job, Message>,
    parts_pool: Pool,
    parts: HashMap<PartId, (Job, Part)>,
    last_part: PartId,
    /// The parts that are [`PartState::Busy`], by message, queue and when they were due.
    busy: HashMap<(Job, u32, i64), PartId>,
    channels: Vec<Channel>,
    /// By hash of the domain: the queue in which its mail has waited. None: there was no memory yet.
    domains: Option<HashMap<u32, (u32, u32)>>,
    serial: u64,
    passes: u64,
}

fn sooner(when: &mut Option<i64>, other: i64) {
    *when = Some(when.map_or(other, |when| when.min(other)));
}

/// The domain of an address, and its hash.
fn domain_of(recipient: &[u8]) -> Option<(&[u8], u32)> {
    let at = recipient.iter().rposition(|&byte| byte == b'@')?;
    let domain = &recipient[at + 1..];
    if domain.len() > DOMAIN_MAX {
        return None;
    }
    Some((domain, half_sip(KEY, domain.iter().map(u8::to_ascii_lowercase))))
}

impl<M: MemorySupply> Retry<M> {
    /// With this supply of memory.
    pub fn new(memory: M) -> Self
    where
        M: Default,
    {
        Self { memory, ..Self::default() }
    }

    /// The supply of memory.
    pub fn memory(&mut self) -> &mut M {
        &mut self.memory
    }

    fn running(&mut self, j: usize) -> Option<&mut RunningJob> {
        if j >= self.running.len() {
            if !self.memory.is_there() {
                return None;
            }
            self.running.resize_with(j + j / 2 + 32, RunningJob::default);
        }
        self.running.get_mut(j)
    }

    /// Takes room for one more recipient, which is at this position. False if there is none.
    fn place(&mut self, position: u64) -> bool {
        u32::try_from(position).is_ok() && self.places.take(REMEMBERED_MAX, &mut self.memory)
    }

    fn message_make(&mut self, job: Job, due: i64) -> bool {
        if !self.messages.contains_key(&job) {
            if !self.messages_pool.take(u32::MAX, &mut self.memory) {
                return false;
            }
            self.messages.insert(job, Message { due, ..Message::default() });
        }
        true
    }

    fn message_drop(&mut self, job: Job) {
        self.messages.remove(&job);
        self.messages_pool.give(1);
    }

    fn message(&mut self, job: Job) -> &mut Message {
        self.messages.entry(job).or_default()
    }

    fn part(&mut self, id: PartId) -> &mut Part {
        &mut self.parts.entry(id).or_default().1
    }

    fn part_make(&mut self, job: Job, due: i64) -> Option<PartId> {
        if !self.parts_pool.take(u32::MAX, &mut self.memory) {
            return None;
        }
        self.last_part += 1;
        self.parts.insert(self.last_part, (job, Part { due, ..Part::default() }));
        let id = self.last_part;
        self.message(job).parts.push(id);
        Some(id)
    }

    /// Drops a part that is in no queue.
    fn part_drop(&mut self, id: PartId) -> Part {
        let (job, part) = self.parts.remove(&id).unwrap_or_default();
        self.message(job).parts.retain(|&other| other != id);
        self.parts_pool.give(1);
        part
    }

    fn job_of(&self, id: PartId) -> Job {
        self.parts.get(&id).map_or(Job::default(), |&(job, _)| job)
    }

    fn wait_later(&mut self, id: PartId, when: i64) {
        self.serial += 1;
        let (job, serial) = (self.job_of(id), self.serial);
        let part = self.part(id);
        (part.state, part.when, part.serial) = (PartState::Later, when, serial);
        self.channels[job.channel].clock.insert((when, serial, id));
        self.message(job).later += 1;
    }

    fn wait_called(&mut self, id: PartId, queue: u32, when: i64) -> bool {
        let job = self.job_of(id);
        if !self.channels[job.channel].queues.contains_key(&queue) && !self.memory.is_there() {
            return false;
        }
        self.serial += 1;
        let serial = self.serial;
        let part = self.part(id);
        (part.state, part.queue, part.when, part.serial) = (PartState::Busy, queue, when, serial);
        let due = part.due;
        self.busy.insert((job, queue, due), id);
        let channel = &mut self.channels[job.channel];
        channel.clock.insert((when, serial, id));
        channel.queues.entry(queue).or_default().insert((due, serial, id));
        true
    }

    fn wait_longer(&mut self, id: PartId, when: i64) {
        let job = self.job_of(id);
        let part = self.part(id);
        if when <= part.when {
            return;
        }
        let before = (part.when, part.serial, id);
        part.when = when;
        let after = (when, part.serial, id);
        let clock = &mut self.channels[job.channel].clock;
        clock.remove(&before);
        clock.insert(after);
    }

    fn unwait(&mut self, id: PartId) {
        let job = self.job_of(id);
        let part = self.part(id);
        let (state, queue, due) = (part.state, part.queue, part.due);
        let (when, serial) = (part.when, part.serial);
        part.state = PartState::Called;
        let channel = &mut self.channels[job.channel];
        channel.clock.remove(&(when, serial, id));
        if state == PartState::Later {
            let message = self.message(job);
            message.later -= 1;
            message.last_later.take_if(|last| *last == id);
            return;
        }
        if let Some(turns) = channel.queues.get_mut(&queue) {
            turns.remove(&(due, serial, id));
            if turns.is_empty() {
                channel.queues.remove(&queue);
            }
        }
        self.busy.remove(&(job, queue, due));
    }

    fn call_part(&mut self, id: PartId) {
        let job = self.job_of(id);
        self.part(id).state = PartState::Called;
        self.channels[job.channel].called.push_back(id);
    }

    /// Job `j` begins; it was due at `due`. True: its pass is over a part of the recipients only.
    pub fn open(&mut self, j: usize, job: Job, due: i64) -> bool {
        if self.running(j).is_none() {
            return !self.messages.is_empty();
        }
        self.passes += 1;
        let old = std::mem::take(&mut self.running[j]);
        self.give_places(old.list.len() + old.deferred.len());
        let mut running =
            RunningJob { due, serial: self.passes, pass: PassScope::All, ..RunningJob::default() };
        let mut is_part = false;
        if let Some(message) = self.messages.get_mut(&job) {
            is_part = true;
            message.open += 1;
            running.message = Some(job);
            running.pass = PassScope::NoRecipients;
            if let Some(id) = message.plan.pop_front() {
                let part = self.part_drop(id);
                running.due = part.due;
                if part.state == PartState::Rest {
                    (running.pass, running.at) = (PassScope::Rest, Some(part.from));
                } else {
                    (running.pass, running.list) = (PassScope::List, part.chain);
                }
            }
        }
        self.running[j] = running;
        is_part
    }

    fn give_places(&mut self, number: usize) {
        if number > 0 {
            self.places.give(number);
        }
    }

    fn let_others_first(&mut self, j: usize, position: u64) -> bool {
        let RunningJob { message, due, .. } = self.running[j];
        let Some(id) = message.and_then(|job| self.part_make(job, due)) else { return false };
        self.call_part(id);
        let list = std::mem::take(&mut self.running[j].list);
        let is_list = self.running[j].pass == PassScope::List;
        let part = self.part(id);
        part.goes_behind = true;
        if is_list {
            part.chain = list;
        } else {
            (part.state, part.from) = (PartState::Rest, position);
        }
        self.running[j].pass = PassScope::NoRecipients;
        true
    }

    /// Call it before the recipient at this position is read.
    pub fn next(&mut self, j: usize, position: u64) -> PassStep {
        self.next_in(FileState::Same, j, position)
    }

    /// The same, if the file may be another one or unreadable.
    pub fn next_in(&mut self, file: FileState, j: usize, position: u64) -> PassStep {
        let is_none = self.messages.is_empty();
        let Some(running) = self.running(j) else {
            return if is_none { PassStep::Here } else { PassStep::End };
        };
        match running.pass {
            PassScope::NoRecipients => return PassStep::End,
            PassScope::Rest => {
                if let Some(at) = running.at {
                    if !self.seek(file, j, at) {
                        return PassStep::End;
                    }
                    self.running[j].at = None;
                    return PassStep::At(at);
                }
            }
            PassScope::List if running.at == Some(position) => return PassStep::Here,
            PassScope::List => {
                if running.at.take().is_some() && running.list.pop_front().is_some() {
                    self.give_places(1);
                }
                if self.running[j].list.is_empty() {
                    return PassStep::End;
                }
            }
            PassScope::All => {}
        }
        let running = &mut self.running[j];
        if running.handed >= TURN {
            if self.let_others_first(j, position) {
                return PassStep::End;
            }
            self.running[j].handed = 0;
        }
        let running = &mut self.running[j];
        if running.pass != PassScope::List {
            return PassStep::Here;
        }
        let Some(&at) = running.list.front() else { return PassStep::Here };
        running.at = Some(at);
        if at == position {
            return PassStep::Here;
        }
        if self.seek(file, j, at) { PassStep::At(at) } else { PassStep::End }
    }

    /// Whether a recipient begins at this position. At 0 one always does.
    fn seek(&mut self, file: FileState, j: usize, position: u64) -> bool {
        match file {
            _ if position == 0 => return true,
            FileState::Same => return true,
            FileState::Unreadable => {}
            FileState::Other => {
                let list = std::mem::take(&mut self.running[j].list);
                self.give_places(list.len());
                self.running[j].pass = PassScope::All;
            }
        }
        false
    }

    fn park(&mut self, job: Job, busy: PartId, position: u64, domain: &[u8]) -> bool {
        if let Some(id) = self.part(busy).asks {
            let is_there = self.place(position);
            if is_there {
                self.part(id).chain.push_back(position);
            }
            return is_there;
        }
        let &mut Part { queue, due, .. } = self.part(busy);
        let Some(id) = self.part_make(job, due) else { return false };
        if !self.memory.is_there() || !self.place(position) {
            self.part_drop(id);
            return false;
        }
        self.part(busy).asks = Some(id);
        let part = self.part(id);
        (part.state, part.queue, part.domain) = (PartState::Asked, queue, domain.to_vec());
        part.chain.push_back(position);
        self.channels[job.channel].asked.push_back(id);
        true
    }

    /// Whether the recipient at this position waits, and is not handed out now.
    pub fn skip(&mut self, j: usize, position: u64, recipient: &[u8]) -> bool {
        let Some(running) = self.running(j) else { return false };
        let &mut RunningJob { was_busy, message, serial, due, .. } = running;
        let Some(job) = message.filter(|_| was_busy) else {
            running.out += 1;
            return false;
        };
        if let Some((domain, hash)) = domain_of(recipient)
            && let Some(&(known, queue)) =
                self.domains.as_ref().and_then(|domains| domains.get(&(hash % DOMAINS)))
            && known == hash
            && let Some(&busy) = self.busy.get(&(job, queue, due))
            && self.part(busy).pass == serial
            && self.park(job, busy, position, domain)
        {
            return true;
        }
        self.running[j].handed += 1;
        self.running[j].out += 1;
        false
    }

    /// The next question to the gate for several recipients together: the message, how many recipients, and their
    /// domain. The answer goes to [`Retry::answer`].
    pub fn ask(&mut self, channel: usize) -> Option<(u64, u32, Vec<u8>)> {
        let of = self.channels.get_mut(channel)?;
        if of.asking.is_some() {
            return None;
        }
        let id = of.asked.pop_front()?;
        of.asking = Some(id);
        let job = self.job_of(id);
        let &mut Part { queue, due, .. } = self.part(id);
        if let Some(&busy) = self.busy.get(&(job, queue, due))
            && self.part(busy).asks == Some(id)
        {
            self.part(busy).asks = None;
        }
        let part = self.part(id);
        Some((job.id, part.chain.len() as u32, part.domain.clone()))
    }

    /// Takes the gate's answer to [`Retry::ask`]. If it is not busy, the recipients are handed out one by one.
    pub fn answer(&mut self, channel: usize, told: ReportedResult, now: i64) {
        let Some(id) = self.channels.get_mut(channel).and_then(|of| of.asking.take()) else {
            return;
        };
        let ReportedResult::Busy { secs, queue } = told else {
            self.call_part(id);
            return;
        };
        let job = self.job_of(id);
        let due = self.part(id).due;
        if let Some(&known) = self.busy.get(&(job, queue, due)) {
            let part = self.part_drop(id);
            self.part(known).chain.extend(part.chain);
            self.wait_longer(known, now + secs);
        } else if !self.wait_called(id, queue, now + secs) {
            self.wait_later(id, now + secs);
        }
    }

    fn busy(&mut self, j: usize, job: Job, position: u64, queue: u32, back: i64) -> bool {
        let &RunningJob { message, due, serial, .. } = &self.running[j];
        let job = match message {
            Some(job) => job,
            None => {
                if !self.channel_make(job.channel) || !self.message_make(job, due) {
                    return false;
                }
                self.message(job).open += 1;
                self.running[j].message = Some(job);
                job
            }
        };
        let id = if let Some(&id) = self.busy.get(&(job, queue, due)) {
            if !self.place(position) {
                return false;
            }
            self.part(id).chain.push_back(position);
            self.wait_longer(id, back);
            id
        } else {
            let Some(id) = self.part_make(job, due) else { return false };
            if !self.place(position) {
                self.part_drop(id);
                return false;
            }
            self.part(id).chain.push_back(position);
            if !self.wait_called(id, queue, back) {
                self.give_places(1);
                self.part_drop(id);
                return false;
            }
            id
        };
        self.part(id).pass = serial;
        true
    }

    fn channel_make(&mut self, channel: usize) -> bool {
        if channel >= self.channels.len() {
            if !self.memory.is_there() {
                return false;
            }
            self.channels.resize_with(channel + 1, Channel::default);
        }
        true
    }

    fn learn(&mut self, recipient: &[u8], queue: u32) {
        let Some((_, hash)) = domain_of(recipient) else { return };
        if self.domains.is_none() {
            if !self.memory.is_there() {
                return;
            }
            self.domains = Some(HashMap::new());
        }
        if let Some(domains) = &mut self.domains {
            domains.insert(hash % DOMAINS, (hash, queue));
        }
    }

    /// Takes the report of a delivery to `recipient`; `natural` is when qmail-send would try its message again.
    #[expect(clippy::too_many_arguments, reason = "as many as the C has")]
    pub fn report(
        &mut self,
        j: usize,
        job: Job,
        position: u64,
        natural: i64,
        recipient: &[u8],
        told: ReportedResult,
        now: i64,
    ) {
        let Some(running) = self.running(j) else { return };
        running.out = running.out.saturating_sub(1);
        match told {
            ReportedResult::Done => {}
            ReportedResult::Busy { secs, queue } => {
                let back = now + secs;
                if self.busy(j, job, position, queue, back) {
                    self.running[j].was_busy = true;
                    self.learn(recipient, queue);
                } else {
                    sooner(&mut self.running[j].lost, back);
                }
            }
            ReportedResult::Deferred => {
                let is_there = self.place(position);
                let running = &mut self.running[j];
                if is_there {
                    running.deferred.push_back(position);
                    sooner(&mut running.natural, natural);
                } else {
                    sooner(&mut running.lost, natural);
                }
            }
        }
    }

    /// The last delivery of job `j` is done, but not its message; qmail-send would try it again at `natural`.
    pub fn close(&mut self, j: usize, end: PassEnd, natural: i64, now: i64) -> ClosedJob {
        let Some(running) = self.running(j) else { return ClosedJob::Due(natural) };
        let mut lost = running.lost.take();
        let Some(job) = running.message.take() else {
            let deferred = std::mem::take(&mut running.deferred);
            self.give_places(deferred.len());
            return ClosedJob::Due(lost.map_or(natural, |lost| lost.min(natural)));
        };
        let mut void = 0;
        if end == PassEnd::EndOfFile && !running.list.is_empty() {
            // The file is another one now.
            void = std::mem::take(&mut running.list).len();
            sooner(&mut lost, natural);
        }
        let ends_early = match running.pass {
            PassScope::All | PassScope::Rest => true,
            // The job began without memory.
            PassScope::NoRecipients | PassScope::List => running.serial == 0,
        };
        if running.out > 0 || end == PassEnd::Before && ends_early {
            sooner(&mut lost, natural);
        }
        if !running.list.is_empty() {
            // The file could not be read.
            sooner(&mut running.natural, natural);
            let mut list = std::mem::take(&mut running.list);
            running.deferred.append(&mut list);
        }
        let mut deferred = std::mem::take(&mut running.deferred);
        let own = running.natural.unwrap_or(natural).min(now + RETRY_MAX);
        self.give_places(void);
        if !deferred.is_empty() {
            let last = self.message(job).last_later;
            if let Some(id) = last.filter(|&id| self.part(id).when == own) {
                self.part(id).chain.append(&mut deferred);
            } else if let Some(id) = self.part_make(job, own) {
                self.part(id).chain = deferred;
                self.wait_later(id, own);
                self.message(job).last_later = Some(id);
            } else {
                sooner(&mut lost, own);
                self.give_places(deferred.len());
            }
        }
        let message = self.message(job);
        if let Some(lost) = lost {
            sooner(&mut message.lost, lost);
        }
        message.open -= 1;
        let numparts = message.parts.len();
        if message.open > 0 || numparts > message.later || (numparts > 0 && message.lost.is_none())
        {
            return ClosedJob::Waits;
        }
        let lost = message.lost;
        self.drop_parts(job);
        self.message_drop(job);
        ClosedJob::Due(lost.unwrap_or(now))
    }

    fn drop_parts(&mut self, job: Job) {
        for id in self.message(job).parts.clone() {
            if matches!(self.part(id).state, PartState::Busy | PartState::Later) {
                self.unwait(id);
            }
            let part = self.part_drop(id);
            self.give_places(part.chain.len());
        }
    }

    /// The gate calls up to `most` recipients of a queue.
    pub fn call(&mut self, channel: usize, queue: u32, mut most: u32) {
        while most > 0
            && let Some(&(.., id)) =
                self.channels.get(channel).and_then(|of| of.queues.get(&queue)?.first())
        {
            let number = self.part(id).chain.len() as u32;
            let job = self.job_of(id);
            let due = self.part(id).due;
            if number > most
                && let Some(cut) = self.part_make(job, due)
            {
                let chain = self.part(id).chain.drain(..most as usize).collect();
                self.part(cut).chain = chain;
                self.call_part(cut);
                break;
            }
            most -= number.min(most);
            self.unwait(id);
            self.call_part(id);
        }
    }

    /// Reads a report that may be a call, or an answer to a question. False if it is neither.
    pub fn call_report(&mut self, channel: usize, delivery: u64, report: &[u8], now: i64) -> bool {
        if delivery != CALL_DELNUM {
            return false;
        }
        let all = u64::from(u32::MAX);
        let call = report
            .strip_prefix(b"R")
            .and_then(|numbers| number(numbers, b' ', all))
            .and_then(|(queue, rest)| Some((queue, number(rest, b'\n', all)?.0)));
        if let Some((queue, most)) = call {
            self.call(channel, queue as u32, most as u32);
            return true;
        }
        let is_asked = self.channels.get(channel).is_some_and(|of| of.asking.is_some());
        if is_asked {
            let told = match ReportedResult::read(&mut report.to_vec()) {
                busy @ ReportedResult::Busy { .. } => busy,
                _ => ReportedResult::Deferred,
            };
            self.answer(channel, told, now);
        }
        is_asked
    }

    /// Puts a part with the last one of its message that waits for its pass, if both would be in pqchan for the same
    /// time. True if it did.
    fn join(&mut self, id: PartId) -> bool {
        let job = self.job_of(id);
        let Some(&last) = self.message(job).plan.back() else { return false };
        let alike = |part: &Part| (part.state, part.due, part.goes_behind);
        let here = alike(self.part(id));
        if here.0 != PartState::Called || here != alike(self.part(last)) {
            return false;
        }
        let part = self.part_drop(id);
        self.part(last).chain.extend(part.chain);
        true
    }

    /// The next message for pqchan, and since when it is due.
    pub fn due(&mut self, channel: usize, now: i64) -> Option<(u64, i64)> {
        loop {
            if self.parts.is_empty() {
                return None;
            }
            let of = self.channels.get_mut(channel)?;
            let id = match of.called.pop_front() {
                Some(id) => id,
                None => {
                    let &(when, _, id) = of.clock.first()?;
                    let is_later = self.part(id).state == PartState::Later;
                    // A time further ahead than any wait means that the clock was set back.
                    let longest = if is_later { RETRY_MAX } else { SECONDS_MAX };
                    if when > now && when <= now + longest {
                        return None;
                    }
                    self.unwait(id);
                    id
                }
            };
            if self.join(id) {
                continue;
            }
            let job = self.job_of(id);
            let &mut Part { goes_behind, due, .. } = self.part(id);
            self.message(job).plan.push_back(id);
            return Some((job.id, if goes_behind { now } else { due.min(now) }));
        }
    }

    /// When [`Retry::due`] has a message, unless one is called before; `wakeup` if that is sooner.
    #[must_use]
    pub fn wakeup(&self, wakeup: i64) -> i64 {
        let first = |channel: &Channel| channel.clock.first().map(|&(latest, ..)| latest);
        self.channels.iter().filter_map(first).fold(wakeup, i64::min)
    }

    /// When [`Retry::due`] has a message; the lowest time if one is called already, None if no message waits.
    #[must_use]
    pub fn next_due(&self) -> Option<i64> {
        if self.channels.iter().any(|channel| !channel.called.is_empty()) {
            return Some(i64::MIN);
        }
        self.channels.iter().filter_map(|channel| channel.clock.first()).map(|&(at, ..)| at).min()
    }

    /// SIGALRM: all deferred recipients are tried now; returns their messages.
    pub fn alarm(&mut self, channel: usize, now: i64) -> Vec<(u64, i64)> {
        let of_channel = |(id, (job, part)): (&PartId, &(Job, Part))| {
            (job.channel == channel && part.state == PartState::Later).then_some(*id)
        };
        let mut ids: Vec<_> = self.parts.iter().filter_map(of_channel).collect();
        // Of a message the newest first, as in the C.
        ids.sort_unstable_by(|a, b| b.cmp(a));
        let number = ids.len();
        for id in ids {
            self.unwait(id);
            self.call_part(id);
        }
        (0..number).filter_map(|_| self.due(channel, now)).collect()
    }

    /// Takes out a message that waits, when qmail-send ends; None: no message waits any more.
    pub fn flush(&mut self, channel: usize, now: i64) -> Option<(u64, i64)> {
        let of = self.channels.get_mut(channel)?;
        of.called.clear();
        of.asked.clear();
        of.asking = None;
        let waits = |(job, message): &(&Job, &Message)| {
            job.channel == channel && message.plan.is_empty() && !message.parts.is_empty()
        };
        let job = self.messages.iter().filter(waits).map(|(&job, _)| job).min()?;
        let message = &self.messages[&job];
        let (open, is_later) = (message.open, message.parts.len() == message.later);
        let own = message.due.min(now);
        let times = message.parts.iter().map(|id| &self.parts[id].1);
        let later = times.filter(|part| part.state == PartState::Later).map(|part| part.when).min();
        let dt = match later {
            Some(later) if open == 0 && is_later => later,
            Some(later) => later.min(own),
            None => own,
        };
        self.drop_parts(job);
        if open == 0 {
            self.message_drop(job);
        }
        Some((job.id, dt))
    }

    /// How many parts of messages wait.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.parts.len()
    }
}
