//! A key: the deliveries that count together, their limit, figures and pauses.

#![forbid(unsafe_code)]

use crate::control::limit::{Cap, Learning, Limit};
use crate::control::route::without_credentials;
use crate::core::answer::{PauseCause, SLOTS_MAX};
use crate::core::host_share::NO_SHARE;
use crate::core::learn::{Admission, Learned};
use crate::core::other_spawners::PlaceTurn;
use crate::core::pace::{AWAY_MAX_SECS, Pace, REACH_SECS, SPARE_SECS};
use crate::core::rate::StartRate;
use crate::core::recall::Recall;
use crate::core::rules::KeyKind;
use crate::util::list::{EMPTY, List};

/// The first pause of [`RatePauses`], in microseconds.
pub(super) const RATE_PAUSE_MIN_US: u64 = 1_000_000;
/// The longest pause of [`RatePauses`], in microseconds: shorter than a hold, so that no mail ages meanwhile.
pub(super) const RATE_PAUSE_MAX_US: u64 = 32_000_000;
/// After this time without a reply about the rate, the next pause is a first one again. In microseconds.
pub(super) const RATE_CALM_US: u64 = 60_000_000;

/// Mail that is not allowed to start within this time is not held, in microseconds.
const RATE_REACH_US: u64 = (REACH_SECS * 1e6) as u64;
/// The gate holds what is allowed to start within this time, in microseconds, but at least one.
const RATE_SPARE_US: u64 = (SPARE_SECS * 1e6) as u64;
/// Mail that waits for a rate comes back by itself this much later than expected, in seconds.
const RATE_LATE_SECS: u64 = 60;

/// The longest text of a key's last error, in bytes.
pub(super) const ERROR_BYTES: usize = 120;

/// A pause that control/concurrencyreplies asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ReplyPause {
    pub(super) until_us: u64,
    pub(super) line: u32,
}

/// The pauses of a key whose server says that mail comes too fast. If a delivery that started after a pause is too fast
/// again, the next pause is twice as long. The limit does not change.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct RatePauses {
    /// The length of the last pause.
    pub(super) pause_us: u64,
    /// The end of the last pause.
    pub(super) until_us: u64,
}

impl RatePauses {
    /// A delivery that started at `started_us` was too fast. Returns the end of the pause. A delivery that started
    /// before the last pause ended says nothing new.
    pub(super) fn slow_down(&mut self, started_us: u64, now_us: u64) -> u64 {
        if started_us >= self.until_us {
            let is_calm = now_us.saturating_sub(self.until_us) > RATE_CALM_US;
            self.pause_us = match self.pause_us {
                0 => RATE_PAUSE_MIN_US,
                _ if is_calm => RATE_PAUSE_MIN_US,
                last_us => (2 * last_us).min(RATE_PAUSE_MAX_US),
            };
            self.until_us = now_us.saturating_add(self.pause_us);
        }
        self.until_us
    }
}

/// Deliveries that count together: their limit, their figures, and what was learned of their server.
#[derive(Debug)]
pub struct Key {
    /// The kind of its name.
    pub kind: KeyKind,
    /// Its name in lower case.
    pub name: Vec<u8>,
    /// The limit of the table.
    pub cap: Cap,
    /// How many of them this host may run, if several hosts share the limit; else [`NO_SHARE`].
    pub share: u32,
    /// What the gate has learned about its server.
    pub learned: Learned,
    /// Deliveries that run.
    pub running: u32,
    /// Deliveries that are held.
    pub held: u32,
    /// Busy answers so far.
    pub busy: u64,
    /// Deliveries that ran and ended.
    pub done: u64,
    /// Deliveries that were held for some time.
    pub held_ever: u64,
    /// The most that ran at the same time.
    pub peak: u32,
    /// The output of its last failed delivery, shortened.
    pub error: Vec<u8>,
    /// Its pace.
    pub pace: Pace,
    /// Its rates, and when the next delivery may start.
    pub start_rate: StartRate,
    /// Its mail away.
    pub recall: Recall,
    /// The key's number for qmail-send, from 1 on. Numbers are not used again before 2^32 keys.
    pub number: u32,
    /// Mail of its domains that is away under the domains' own numbers, as of the last `Gate::count_away_by_domain`.
    pub away_by_domain: u32,
    /// Calls for that mail that are not answered yet.
    pub called_by_domain: u32,
    /// Its time in `Gate::pause_queue`, in microseconds; u64::MAX: it is not there. Entries there with another time are
    /// stale.
    pub(super) queued_us: u64,
    /// It is in `Gate::waiting_candidates`.
    pub(super) in_waiting_candidates: bool,
    /// It is in `Gate::poll_queue`.
    pub(super) in_poll_queue: bool,
    /// It waits for other spawners: they have the places that it could take, or it is their turn.
    pub(super) blocked: bool,
    /// The other spawners know that it has deliveries or wants more.
    pub(super) announced: bool,
    /// How many deliveries the other spawners had at the last check.
    pub(super) running_elsewhere: u32,
    pub(super) place_turn: PlaceTurn,
    /// The last pause by control/concurrencyreplies; it may be over.
    pub(super) pause: Option<ReplyPause>,
    pub(super) rate_pauses: RatePauses,
    /// It is in `Gate::ready_keys`.
    pub(super) in_ready_keys: bool,
    /// Its held slots, the oldest hold first.
    pub(super) held_slots: List,
}

impl Key {
    /// Makes a key that is in no list yet.
    pub(crate) fn new(kind: KeyKind, name: Vec<u8>, cap: Cap) -> Self {
        Self {
            kind,
            name,
            cap,
            share: NO_SHARE,
            learned: Learned::NEW,
            running: 0,
            held: 0,
            busy: 0,
            done: 0,
            held_ever: 0,
            peak: 0,
            error: Vec::new(),
            pace: Pace::new(0, None),
            start_rate: StartRate::new(&cap.rates, 0),
            recall: Recall::default(),
            number: 0,
            away_by_domain: 0,
            called_by_domain: 0,
            queued_us: u64::MAX,
            in_waiting_candidates: false,
            in_poll_queue: false,
            blocked: false,
            announced: false,
            running_elsewhere: 0,
            place_turn: PlaceTurn::default(),
            pause: None,
            rate_pauses: RatePauses::default(),
            in_ready_keys: false,
            held_slots: EMPTY,
        }
    }

    /// How many may run now. A share of 0 counts as 1 here: mail waits for a larger share as it waits for a place, and
    /// not as at a limit of 0.
    #[must_use]
    pub fn limit(&self) -> Limit {
        match self.limit_without_share() {
            Limit::AtMost(limit) if limit > 0 => Limit::AtMost(limit.min(self.share.max(1))),
            limit => limit,
        }
    }

    /// Returns whether its share of the limit, and neither the limit nor its server, is what mail of the key waits for.
    pub(crate) fn waits_for_share(&self) -> bool {
        self.share != NO_SHARE && self.share < most(self.limit_without_share())
    }

    /// The limit of the table, or this host's share of it.
    fn own_limit(&self) -> u32 {
        most(self.cap.limit).min(self.share)
    }

    fn limit_without_share(&self) -> Limit {
        match self.cap.limit {
            limit @ Limit::AtMost(0) => limit,
            Limit::AtMost(limit) => Limit::AtMost(self.learned.effective(limit, self.cap.learning)),
            Limit::Unlimited => match self.learned.effective(SLOTS_MAX, self.cap.learning) {
                SLOTS_MAX => Limit::Unlimited,
                limit => Limit::AtMost(limit),
            },
        }
    }

    /// Returns the end of a pause or suspension, in microseconds, if there is one.
    #[must_use]
    pub fn suspended_until(&self, now_us: u64) -> Option<u64> {
        self.suspension(now_us).map(|(until_us, _)| until_us)
    }

    /// The same, with the cause.
    #[inline]
    pub(super) fn suspension(&self, now_us: u64) -> Option<(u64, PauseCause)> {
        let learned = self.learned.suspended_until(now_us);
        match (learned, self.pause_at(now_us)) {
            (learned, Some(pause)) if learned.is_none_or(|until_us| until_us < pause.until_us) => {
                Some((pause.until_us, PauseCause::Rule(pause.line)))
            }
            (learned, _) => learned.map(|until_us| (until_us, PauseCause::NoConnection)),
        }
    }

    /// Starts a pause. Another pause can make it longer, never shorter.
    pub(super) fn pause(&mut self, pause: ReplyPause) {
        if self.pause.is_none_or(|known| known.until_us < pause.until_us) {
            self.pause = Some(pause);
        }
    }

    #[inline]
    pub(super) fn pause_at(&self, now_us: u64) -> Option<ReplyPause> {
        self.pause.filter(|pause| pause.until_us > now_us)
    }

    /// Returns when its server last objected; None if it never did or it no longer matters.
    #[must_use]
    pub fn objected_us(&self) -> Option<u64> {
        match self.cap.learning {
            Learning::On => self.learned.objected_us(),
            Learning::Fixed => None,
        }
    }

    /// Returns when it may start a delivery again, if only time decides.
    pub(super) fn starts_from(&self, now_us: u64) -> Option<u64> {
        let due_us = self.start_rate.due_us();
        self.suspended_until(now_us).or_else(|| match self.may_start(now_us) {
            Admission::Later(until_us) => Some(until_us.max(due_us)),
            Admission::Start if due_us > now_us => Some(due_us),
            Admission::Start | Admission::Wait | Admission::Suspended(_) => None,
        })
    }

    /// Returns whether a rate, and not its limit, is what mail of the key waits for.
    pub(super) fn waits_for_rate(&self, now_us: u64) -> bool {
        !self.start_rate.is_due(now_us) && self.may_start(now_us) == Admission::Start
    }

    /// Returns how many of `idle` deliveries its rates allow now, and how many of `spare` may be held beside them so
    /// that they start in time.
    pub(super) fn rate_room(&self, now_us: u64, idle: u32, spare: u32) -> (u32, u32) {
        if !self.start_rate.is_some() {
            return (idle, spare);
        }
        let within = |span_us| self.start_rate.starts_within(now_us, span_us);
        let idle = idle.min(within(0));
        let soon = within(RATE_SPARE_US).saturating_sub(idle).max(1);
        (idle, spare.min(soon).min(within(RATE_REACH_US) - idle))
    }

    /// Returns how many may be held so that its rates allow all to start before their hold ends.
    pub(super) fn rate_reach(&self, now_us: u64) -> u32 {
        self.start_rate.starts_within(now_us, RATE_REACH_US)
    }

    /// Returns from when on one delivery may be held, if its rates do not allow that now.
    pub(super) fn rate_holds_from(&self, now_us: u64) -> Option<u64> {
        let from_us = self.start_rate.due_us().saturating_sub(RATE_REACH_US);
        (from_us > now_us).then_some(from_us)
    }

    /// Returns the seconds after which mail that waits for a rate comes back by itself, with this many before it.
    pub(super) fn rate_latest_secs(&self, now_us: u64, before: u32) -> u32 {
        let backlog_secs = self.start_rate.us_for(before, now_us) / 1_000_000;
        let latest_secs = (backlog_secs + backlog_secs / 2).saturating_add(RATE_LATE_SECS);
        latest_secs.min(u64::from(AWAY_MAX_SECS)) as u32
    }

    pub(super) fn may_start(&self, now_us: u64) -> Admission {
        self.learned.may_start(now_us, self.running, self.own_limit(), self.cap.learning)
    }

    /// Returns how many deliveries may run now; this may be less than [`Key::limit`] for a while.
    pub(super) fn most(&self, now_us: u64) -> u32 {
        self.learned.most(now_us, self.own_limit(), self.cap.learning)
    }

    /// Returns whether none may start for a while, or fewer may run than the limit allows, because of what the server
    /// answered.
    #[must_use]
    pub fn is_held_down(&self, now_us: u64) -> bool {
        self.suspended_until(now_us).is_some() || self.most(now_us) < self.own_limit()
    }

    pub(super) fn admits(&self, now_us: u64) -> bool {
        match self.cap.limit {
            Limit::AtMost(0) => false,
            _ if self.pause_at(now_us).is_some() => false,
            _ if !self.start_rate.is_due(now_us) => false,
            _ => self.may_start(now_us) == Admission::Start,
        }
    }

    /// The limit that all spawners of the queue share; None: it has no limit, or a limit of 0. A learned limit is not
    /// shared: each spawner learns for itself.
    pub(super) fn common_limit(&self) -> Option<u32> {
        match self.cap.limit {
            Limit::AtMost(limit) if limit > 0 => Some(limit.min(self.share)),
            _ => None,
        }
    }

    /// Returns whether its limit is fixed: then only failed connections matter.
    pub(super) fn is_fixed(&self) -> bool {
        self.cap.learning == Learning::Fixed && matches!(self.cap.limit, Limit::AtMost(1..))
    }

    /// Returns whether it was ever at its limit, or its server has objected.
    pub(super) fn is_contended(&self) -> bool {
        self.held_ever > 0
            || self.busy > 0
            || self.learned.objected_us().is_some()
            || self.pause.is_some()
    }
}

/// Returns a limit as a number.
pub(super) fn most(limit: Limit) -> u32 {
    match limit {
        Limit::AtMost(limit) => limit,
        Limit::Unlimited => SLOTS_MAX,
    }
}

/// Keeps the text of a failed delivery. qmail-remote prints a line per recipient (r, h, s) and one for the message
/// (K, Z, D), each ended by a zero byte.
pub(super) fn note_error(error: &mut Vec<u8>, report: &[u8]) {
    if let [b'r', .., 0] = report
        && report.windows(2).any(|pair| pair == b"\0K")
    {
        return;
    }
    let lines = || report.split(|&byte| byte == 0);
    let failed = lines().find(|line| matches!(line.first(), Some(b'Z' | b'D')) && line.len() > 1);
    let Some(text) =
        failed.or_else(|| lines().find(|line| matches!(line.first(), Some(b'h' | b's'))))
    else {
        return;
    };
    let text = without_credentials(&text[1..]);
    let text = &text[..text.len().min(ERROR_BYTES)];
    error.clear();
    if error.try_reserve(text.len()).is_ok() {
        error.extend_from_slice(text);
    }
}
