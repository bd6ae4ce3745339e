//! Makes whole deliveries of the lines of a log: each from the time when it was first handed out to its report.
//!
//! [`LogAccount::next_delivery`] gives them in the order in which they were handed out, each when its end is known.
//!
//! If the server has a gate already, its log has more than one start for a delivery that got a busy answer. These are
//! one delivery, which begins with the first start. Such a gate logs how long it held a delivery
//! ([`crate::qmail::log::event::held`]), so how long it ran is known; the time between start and end also has the wait.
//! A delivery that fails for good has no such line, because its text goes to the sender. But deliveries to one domain
//! start in order, so it did not start before those that were handed out earlier.

use std::collections::{BTreeMap, HashMap, VecDeque};

use qpatch_gate::gate::SLOTS_MAX;
use qpatch_gate::name::domain_of;
use qpatch_gate::replies::Replies;
use qpatch_gate::report::DeliveryReport;
use qpatch_gate_model::retry::ReportedResult;
use serde::Serialize;

use super::clock::LogClock;
use super::curves::WORDS_MAX;
use super::machine::SILENT;
use crate::gate::simulate::log_report;
use crate::gate::text::escaped;
use crate::qmail::log::event::{self, End, Event};
use crate::qmail::log::line::{Foreign, Line};
use crate::qmail::log::stamp::Precision;
use crate::qmail::log::{Entry, Log};

/// The most deliveries of one qmail-send that may be open in the log: the slots of both spawners.
const OPEN_MAX: usize = 2 * SLOTS_MAX as usize;
/// The most deliveries that may wait for an earlier one that has not ended.
const DELIVERIES_MAX: usize = 1_000_000;
/// The most queues, hosts and programs that are told apart.
const ORIGINS_MAX: usize = 4096;
/// The most programs that are known by name.
const TAGS_MAX: usize = 64;
/// The most domains for which deliveries that were held are remembered,
const DOMAINS_MAX: usize = 100_000;
/// and how many deliveries for each of them.
const RECENT_MAX: usize = 16;
/// How many bytes of a line are printed in a message.
const EXCERPT_MAX: usize = 80;

/// A delivery of the log, with all its tries that got a busy answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct LoggedDelivery {
    /// When it was handed out first.
    pub(super) asked_us: u64,
    /// When it started.
    pub(super) started_us: u64,
    /// When it ended.
    pub(super) ended_us: u64,
    /// The lines of the log for these three times: events of the same time happen in this order.
    pub(super) lines: [u64; 3],
    /// The number of its message, made different for each queue.
    pub(super) message: u64,
    /// The address.
    pub(super) recipient: Box<[u8]>,
    /// What the log says of its end.
    pub(super) said: DeliveryReport,
    /// What that means to qmail-send.
    pub(super) told: ReportedResult,
    /// Of a refusal: the server's words, if they are kept.
    pub(super) words: Option<Box<[u8]>>,
    /// The log's own gate held it, or gave it a busy answer before.
    pub(super) was_held: bool,
    state: DeliveryState,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum DeliveryState {
    /// Begun, and not ended.
    Open,
    /// It got a busy answer.
    Away,
    /// Ended.
    Over,
    /// It did not run.
    Gone,
}

/// How many lines of each sort the log has, and what was wrong with it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub(super) struct LineCounts {
    pub(super) read: u64,
    /// No time stamp.
    pub(super) no_stamp: u64,
    /// Lines of unknown origin: not qmail-send's, and without the name of another program.
    pub(super) foreign: u64,
    /// Of other programs.
    pub(super) others: u64,
    /// The names of some of them.
    pub(super) other_programs: Vec<String>,
    /// The first line without a time or of unknown origin: file:line, and its text. Empty if there is none.
    pub(super) first_unusable: String,
    /// Ends of deliveries whose starts are not in the log.
    pub(super) ends_only: u64,
    /// Starts whose ends are not in the log.
    pub(super) starts_only: u64,
    /// Busy answers that the log has already.
    pub(super) busy_already: u64,
    /// Deliveries that were away at the end of the log, after a busy answer of its own gate.
    pub(super) still_away: u64,
    /// Answers of the log's own gate that a key is suspended.
    pub(super) suspended_already: u64,
    /// Deliveries that the log's own gate says it held.
    pub(super) held_already: u64,
    /// Deliveries that were left out because too many waited.
    pub(super) left_out: u64,
    /// The clock was set back.
    pub(super) set_back: u64,
    /// Daylight saving time began or ended.
    pub(super) clock_changes: u64,
    /// How often no line came for more than a day; each gap is taken as one day.
    pub(super) gaps: u64,
    /// How often the numbers of deliveries started over.
    pub(super) restarts: u64,
    /// How many queues, or hosts and programs, have numbers of their own.
    pub(super) queues: u64,
    /// Stamps have no fractions of seconds.
    pub(super) whole_seconds: bool,
    /// Files that end too early, and why.
    pub(super) cut: Vec<String>,
    /// The files were not named in the order of their times.
    pub(super) reordered: bool,
    /// Files that were named before, and are not read again; each with the other name.
    pub(super) repeated: Vec<String>,
    /// Files whose lines are in another file, too; each with that one. What they have counts twice.
    pub(super) copies: Vec<String>,
}

/// One qmail-send.
#[derive(Debug, Default)]
struct Origin {
    last_number: u64,
    /// By number; None: a local delivery.
    open: BTreeMap<u64, Option<u64>>,
    /// concurrencyremote and that of further channels, as status lines have it.
    limit: u32,
}

/// Lines of one program that are not qmail-send's.
#[derive(Debug)]
struct ForeignLines {
    lines: u64,
    /// The first, as [`LineCounts::first_unusable`].
    first: String,
    first_read: u64,
}

/// The account of a log.
#[derive(Debug, Default)]
pub(super) struct LogAccount {
    /// What the operator says of replies.
    pub(super) replies: Replies,
    pub(super) clock: LogClock,
    pub(super) lines: LineCounts,
    /// The most deliveries open at once.
    pub(super) open_peak: u32,
    open: u32,
    origins: HashMap<u64, Origin>,
    /// In the order in which they were handed out; the first one is number `first`.
    deliveries: VecDeque<LoggedDelivery>,
    first: u64,
    /// The deliveries that are away, by queue, message and recipient.
    away: HashMap<u64, u64>,
    /// By domain: when deliveries that were held were handed out, and when they started.
    held: HashMap<u64, VecDeque<(u64, u64)>>,
    /// By program.
    foreign_lines: BTreeMap<Vec<u8>, ForeignLines>,
    tags: Vec<Vec<u8>>,
    /// Whether the words of refusals are kept.
    pub(super) keeps_words: bool,
}

impl LogAccount {
    pub(super) fn new(replies: Replies) -> Self {
        Self { replies, ..Self::default() }
    }

    /// Takes a line.
    pub(super) fn entry(&mut self, entry: &Entry<'_>) {
        self.lines.read += 1;
        match &entry.line {
            Ok(line) => {
                if line.stamp.is_none() {
                    self.lines.no_stamp += 1;
                    self.unusable(entry);
                }
                self.line(line);
            }
            Err(foreign) => self.foreign(foreign, entry),
        }
    }

    fn unusable(&mut self, entry: &Entry<'_>) {
        if self.lines.first_unusable.is_empty() {
            self.lines.first_unusable = excerpt(entry);
        }
    }

    fn foreign(&mut self, foreign: &Foreign<'_>, entry: &Entry<'_>) {
        if foreign.stamp.is_none() {
            self.lines.no_stamp += 1;
            self.unusable(entry);
            return;
        }
        // A line about a delivery that cannot be read is qmail-send's, whatever name the program has.
        let tag = if foreign.is_broken { b"" } else { foreign.tag };
        let is_known = self.foreign_lines.contains_key(tag) || self.foreign_lines.len() < TAGS_MAX;
        let tag = if is_known { tag } else { b"" };
        let read = self.lines.read;
        let foreign_lines = self
            .foreign_lines
            .entry(tag.to_vec())
            .or_insert_with(|| ForeignLines { lines: 0, first: excerpt(entry), first_read: read });
        foreign_lines.lines += 1;
    }

    fn line(&mut self, line: &Line<'_>) {
        let Some(stamp) = line.stamp else { return };
        self.lines.whole_seconds |= stamp.precision == Precision::Seconds;
        if self.tags.len() < TAGS_MAX && !self.tags.iter().any(|tag| tag == line.tag) {
            self.tags.push(line.tag.to_vec());
        }
        let is_known = self.origins.contains_key(&line.origin) || self.origins.len() < ORIGINS_MAX;
        let origin = if is_known { line.origin } else { 0 };
        let now_us = self.clock.at(origin, stamp);
        match line.event {
            Event::Start { number, channel: b"local", .. } => {
                self.number(origin, number, now_us);
                self.origin(origin).open.insert(number, None);
            }
            Event::Start { number, message, recipient, .. } => {
                self.number(origin, number, now_us);
                self.start(origin, number, (message, recipient), now_us);
            }
            Event::End { number, end, text } => match self.origin(origin).open.remove(&number) {
                None => self.lines.ends_only += 1,
                Some(None) => {}
                Some(Some(at)) => self.end(at, (end, text), now_us),
            },
            Event::Status(status) => {
                let limits = status.channels().filter(|&(channel, ..)| channel != b"local");
                let limit = limits.fold(0u32, |sum, (.., limit)| sum.saturating_add(limit));
                let origin = self.origin(origin);
                origin.limit = origin.limit.max(limit);
            }
            _ => {}
        }
    }

    fn origin(&mut self, origin: u64) -> &mut Origin {
        self.origins.entry(origin).or_default()
    }

    /// A new delivery starts with this number. A number that is not above the last one means that qmail-send restarted.
    fn number(&mut self, origin: u64, number: u64, now_us: u64) {
        let known = self.origin(origin);
        let is_new_life = number <= known.last_number;
        known.last_number = number;
        if is_new_life {
            self.lines.restarts += 1;
            self.cut_off(origin, 0, now_us);
        }
        self.cut_off(origin, OPEN_MAX - 1, now_us);
    }

    fn start(&mut self, origin: u64, number: u64, (message, recipient): (u64, &[u8]), now_us: u64) {
        self.open += 1;
        self.open_peak = self.open_peak.max(self.open);
        let message = if origin == 0 { message } else { mixed(origin, message) };
        let line = self.lines.read;
        let known = self.away.remove(&hash(message, recipient));
        if let Some(at) = known
            && let Some(delivery) = self.get(at)
        {
            delivery.state = DeliveryState::Open;
            (delivery.started_us, delivery.lines[1]) = (now_us, line);
            self.origin(origin).open.insert(number, Some(at));
            return;
        }
        if self.deliveries.len() >= DELIVERIES_MAX
            && let Some(first) = self.deliveries.front_mut()
        {
            // It is left out: nothing more is learned about its end.
            first.state = DeliveryState::Gone;
            self.lines.left_out += 1;
        }
        self.deliveries.push_back(LoggedDelivery {
            asked_us: now_us,
            started_us: now_us,
            ended_us: now_us,
            lines: [line; 3],
            message,
            recipient: recipient.into(),
            said: SILENT,
            told: ReportedResult::Done,
            words: None,
            was_held: false,
            state: DeliveryState::Open,
        });
        let at = self.first + self.deliveries.len() as u64 - 1;
        self.origin(origin).open.insert(number, Some(at));
    }

    fn get(&mut self, at: u64) -> Option<&mut LoggedDelivery> {
        let at = usize::try_from(at.checked_sub(self.first)?).ok()?;
        self.deliveries.get_mut(at)
    }

    fn end(&mut self, at: u64, (end, text): (End, &[u8]), now_us: u64) {
        self.open = self.open.saturating_sub(1);
        let line = self.lines.read;
        match end {
            End::Busy => {
                self.lines.busy_already += 1;
                if let Some(delivery) = self.get(at) {
                    (delivery.state, delivery.was_held) = (DeliveryState::Away, true);
                    let hash = hash(delivery.message, &delivery.recipient);
                    self.away.insert(hash, at);
                }
                return;
            }
            End::Suspended => {
                self.lines.suspended_already += 1;
                if let Some(delivery) = self.get(at) {
                    delivery.state = DeliveryState::Gone;
                }
                return;
            }
            End::Success | End::Failure | End::Deferral | End::Mangled | End::Refused => {}
        }
        let told = match end {
            End::Success | End::Failure => ReportedResult::Done,
            _ => ReportedResult::Deferred,
        };
        let held = event::held(text);
        self.lines.held_already += u64::from(held.is_some());
        let said = log_report::of_log(end, text, &self.replies);
        let words = (self.keeps_words && log_report::is_objection(said.seen)).then(|| {
            let text = event::without_times(text);
            Box::from(&text[..text.len().min(WORDS_MAX)])
        });
        let Some(delivery) = self.get(at) else { return };
        (delivery.state, delivery.said, delivery.told) = (DeliveryState::Over, said, told);
        (delivery.ended_us, delivery.lines[2]) = (now_us, line);
        delivery.words = words;
        let LoggedDelivery { asked_us, started_us, recipient, .. } = delivery.clone();
        let domain = domain_hash(&recipient);
        let started_us = match held {
            Some(held) => {
                let started_us = now_us.saturating_sub(held.ran_us).max(started_us);
                if self.held.len() >= DOMAINS_MAX {
                    self.held.clear();
                }
                let recent = self.held.entry(domain).or_default();
                if recent.len() >= RECENT_MAX {
                    recent.pop_front();
                }
                recent.push_back((asked_us, started_us));
                started_us
            }
            // The gate logs no times for a delivery that bounces, or that could not be run.
            None if end == End::Failure || text.starts_with(b"qmail-remote_") => {
                let recent = self.held.get(&domain).into_iter().flatten();
                let before = recent.filter(|&&(asked, _)| asked <= asked_us);
                let after_us = before.map(|&(_, started)| started).max();
                after_us.map_or(started_us, |after_us| after_us.max(started_us).min(now_us))
            }
            None => started_us,
        };
        if let Some(delivery) = self.get(at) {
            delivery.was_held |= started_us > delivery.started_us;
            delivery.started_us = started_us;
        }
    }

    /// Ends the oldest open deliveries of a qmail-send now, until `left` are open: their ends are not in the log.
    fn cut_off(&mut self, origin: u64, left: usize, now_us: u64) {
        while let known = self.origin(origin)
            && known.open.len() > left
            && let Some((_, open)) = known.open.pop_first()
        {
            let Some(at) = open else { continue };
            self.lines.starts_only += 1;
            self.open = self.open.saturating_sub(1);
            let line = self.lines.read;
            if let Some(delivery) = self.get(at) {
                delivery.state = DeliveryState::Over;
                (delivery.ended_us, delivery.lines[2]) = (now_us, line);
            }
        }
    }

    /// The next delivery, if its end is known.
    pub(super) fn next_delivery(&mut self) -> Option<LoggedDelivery> {
        loop {
            match self.deliveries.front()?.state {
                DeliveryState::Open | DeliveryState::Away => return None,
                DeliveryState::Over | DeliveryState::Gone => {}
            }
            let delivery = self.deliveries.pop_front()?;
            self.first += 1;
            if delivery.state == DeliveryState::Over {
                return Some(delivery);
            }
        }
    }

    /// The log has ended. Deliveries that are open end now; those that are away never ran.
    pub(super) fn finish(&mut self, log: &Log) {
        let now_us = self.clock.now_us;
        let mut origins: Vec<u64> = self.origins.keys().copied().collect();
        origins.sort_unstable();
        for origin in origins {
            self.cut_off(origin, 0, now_us);
        }
        for delivery in &mut self.deliveries {
            if delivery.state == DeliveryState::Away {
                delivery.state = DeliveryState::Gone;
                self.lines.still_away += 1;
            }
        }
        let lines = &mut self.lines;
        (lines.set_back, lines.gaps) = (self.clock.set_back, self.clock.gaps);
        lines.clock_changes = self.clock.changed;
        lines.queues = self.origins.values().filter(|origin| origin.last_number > 0).count() as u64;
        (lines.cut, lines.reordered) = (log.cut().to_vec(), log.is_reordered());
        (lines.repeated, lines.copies) = (log.repeated().to_vec(), log.copies().to_vec());
        let mut first_foreign: Option<&ForeignLines> = None;
        for (tag, foreign_lines) in &self.foreign_lines {
            // If no line with this program's name is qmail-send's, the program is another one.
            if !tag.is_empty() && !self.tags.contains(tag) {
                lines.others += foreign_lines.lines;
                if lines.other_programs.len() < 5 {
                    lines.other_programs.push(escaped(tag));
                }
                continue;
            }
            lines.foreign += foreign_lines.lines;
            if first_foreign.is_none_or(|first| foreign_lines.first_read < first.first_read) {
                first_foreign = Some(foreign_lines);
            }
        }
        if let Some(foreign_lines) = first_foreign
            && lines.first_unusable.is_empty()
        {
            lines.first_unusable.clone_from(&foreign_lines.first);
        }
    }

    /// The limit of remote deliveries in the status lines, added up over all queues; None without a status line.
    pub(super) fn concurrency_remote(&self) -> Option<u32> {
        let limits = self.origins.values().map(|origin| origin.limit);
        Some(limits.fold(0, u32::saturating_add)).filter(|&limit| limit > 0)
    }

    /// The first line that is not qmail-send's, of any program.
    pub(super) fn first_foreign_line(&self) -> Option<&str> {
        let first =
            self.foreign_lines.values().min_by_key(|foreign_lines| foreign_lines.first_read);
        first.map(|foreign_lines| foreign_lines.first.as_str())
    }
}

/// `file:7: text`
fn excerpt(entry: &Entry<'_>) -> String {
    let text = escaped(&entry.text[..entry.text.len().min(EXCERPT_MAX)]);
    let dots = if entry.text.len() > EXCERPT_MAX { "..." } else { "" };
    format!("{}:{}: {text}{dots}", entry.file, entry.number)
}

/// A hash that is the same in each run, unlike [`std::hash`]'s, so that a simulation can be repeated.
fn mixed(one: u64, other: u64) -> u64 {
    let sum = (one ^ other.rotate_left(32)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (sum ^ (sum >> 29)).wrapping_mul(0xbf58_476d_1ce4_e5b9)
}

fn hash(message: u64, recipient: &[u8]) -> u64 {
    recipient
        .iter()
        .fold(mixed(message, recipient.len() as u64), |hash, &byte| mixed(hash, byte.into()))
}

fn domain_hash(recipient: &[u8]) -> u64 {
    hash(0, &domain_of(recipient).unwrap_or_default().to_ascii_lowercase())
}
