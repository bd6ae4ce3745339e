//! The gate itself: a state machine with no I/O and no clock of its own. Time comes in as microseconds from any origin;
//! it may stand still or jump forwards, and is taken as standing still when it goes backwards.
//!
//! A slot is a delivery number of qmail-send. A slot in use belongs to the entry of its domain, and that to the key under
//! which the domain counts: mostly itself, else the entry of a relay or a group. The step between is there for reloads:
//! when groups or routes change, every domain finds its new key, and no running delivery gets out of the count.
//!
//! **How much is held.** All keys together hold at most half of the slots that run nothing, so that as many stay free for
//! mail that need not wait. Of this half, one key may hold up to [`ALPHA`] times what the others leave of it: the dynamic
//! threshold of shared-buffer switches (Choudhury and Hahne, "Dynamic Queue Length Thresholds for Shared-Memory Packet
//! Switches", IEEE/ACM Transactions on Networking 6(2), 1998). One busy key takes four fifths of the half, ten share it,
//! and there is always something left for the next. The threshold without the half was there before: 600 keys with a limit
//! of 1 then held 399 of the 400 other slots. A fixed share was the other alternative; it starves its own places.
//! Nothing is held that could not start in time: the hold ends after 60 seconds.
//!
//! **What is not held** goes back to qmail-send, which keeps it until the gate calls it: see [`crate::core::recall`]. While mail
//! of a key is away, no more of it is held than is needed to keep its places busy, and what comes later goes behind it.
//!
//! **What the server says** lowers a key's limit if the table lets it: see [`crate::core::learn`]. A delivery that was refused only
//! because too many were running goes back to qmail-send as busy in place of its report, and is away like the others. While a
//! key is suspended, what the gate cannot hold is deferred, as by qmail-remote's own table of time-outs, so that it ages.
//! Where a limit is fixed, only one thing is read in its reports: whether the server lets anybody in. And when hardly any server
//! can, it is this machine: see [`crate::core::shortage`].
//!
//! **Where a queue has several spawners**, a place is also one of them all: see [`crate::core::share`].
//!
//! **Sites.** The members of a site that was found by addresses count under one key, its candidates under another
//! ([`crate::control::site`]). What is beyond one member's part is away under the member's own number, so that it is called when the
//! member has room, and stands in nobody's way.
//!
//! **How many slots there are.** The spawner knows conf-spawn, qmail-send starts no more than concurrencyremote. The
//! lower of both counts, until more have been seen in use at once.

#![forbid(unsafe_code)]

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};

use crate::control::limit::{Learning, Limit, PAUSE_MAX_SECS};
use crate::control::name::{NAME_MAX, domain_of, has_upper, without_root};
use crate::control::route::{Routes, without_credentials};
use crate::control::sender::{Reads, Senders};
use crate::control::site::{Because, Evidence, Map, Seen, Standing};
use crate::control::table::Table;
use crate::core::command::{Commands, Parts};
use crate::core::learn::{Began, Counted, Ended, Learned, May, RECENT_US, Returns, Try};
use crate::core::pace::{Pace, Rate};
use crate::core::recall::{Heard, Recall};
use crate::core::rules::{Cap, KeyKind, Rules};
use crate::core::share::{Looked, Others, Spawners, Take, Tells, Turn, Wants};
use crate::core::shortage::{Shortage, WITNESS_US, Witness};
use crate::report::echo::{Envelope, Own};
use crate::report::replies::{Meaning, Replies, Verdict};
use crate::report::{self, Reader, Report};
use crate::util::index::Index;
use crate::util::list::{EMPTY, Link, List, NONE, UNLINKED, append, unlink};
use crate::util::memory::{self, OutOfMemory};
use crate::util::random::Random;

/// The longest time that a command is held, in microseconds: at its shutdown qmail-send waits for all that it has handed out.
pub const HOLD_MAX_US: u64 = 60_000_000;

/// A key may hold this many times what is left of what all keys may hold.
const ALPHA: u32 = 4;

/// How often keys with mail that is away are looked at, in microseconds, whatever else happens.
const LOOK_US: u64 = 500_000;

/// A place that another spawner gives back is noticed within this time, in microseconds; half of it on average. With no time
/// between, two that stand in each other's way would do so again. It costs 50 wake-ups a second while mail waits for what others have:
/// 0.9 us each with one such key, 23 us with as many as are looked at in one go (4 spawners), a thousandth of a processor.
const POLL_US: std::ops::RangeInclusive<u64> = 10_000..=30_000;
/// The most columns of other spawners that are read each time: 3 of 42 keys, 21 of 6. The other keys have their turn at the next
/// times.
const POLL_READS: u32 = 128;

/// Domains that have been seen at another site come under its key so soon, in microseconds for each key. Not at once: all
/// keys are made anew for that, which takes less than a fiftieth of this (benches/gate.rs).
const RESITE_US: u64 = 20;
/// And for so many slots as much as for one key.
const RESITE_SLOTS: usize = 8;

/// The highest number of slots.
pub const SLOTS_MAX: u32 = 65534;
/// The slot of calls, and of what is asked for together.
pub const CALL_SLOT: u32 = SLOTS_MAX + 1;

/// qmail-send's default for concurrencyremote.
pub const CONCURRENCY_REMOTE: u32 = 20;

/// Keys without deliveries that never reached their limit: so many are remembered, for their figures.
const RECENT_KEYS: usize = 256;
/// Keys without deliveries that did: so many are remembered, for their pace, and for so long.
const KNOWN_KEYS: usize = 4096;
const KNOWN_US: u64 = 3600 * 1_000_000;

/// How many keys an empty list of keys keeps room for.
const KEPT_ENTRIES: usize = 64;

/// The length in bytes to which the last error of a key is cut.
const ERROR_BYTES: usize = 120;

/// How much one delivery counts in the guess for a new key's service time.
const TYPICAL_WEIGHT: f64 = 1.0 / 64.0;

/// The longest that a key is suspended, in seconds.
pub const SUSPENDED_MAX_SECS: u32 = PAUSE_MAX_SECS as u32;

/// The answer to a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Start it.
    Go,
    /// It is kept.
    Hold,
    /// Not now.
    Busy(Busy),
    /// The slot is held already: the caller is confused.
    InUse,
}

/// Not now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Busy {
    /// The index of the key, for [`Gate::key`]; valid until the next call. What qmail-send is told is [`Key::number`].
    pub key: u32,
    /// Seconds: until it should come again, if it is not called before, 1..=3600; of a key that is suspended, until that ends,
    /// 1..=[`SUSPENDED_MAX_SECS`].
    pub secs: u32,
    /// Why.
    pub why: Why,
}

/// Why a delivery is not made now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// The key is at its limit. It is away until it is called.
    AtLimit,
    /// The server has refused it, and not for its own sake. It is away until it is called.
    Refused,
    /// Nothing is to be tried for some seconds. It is away until it is called.
    Paused(Cause),
    /// Nor for longer than a command is held: a deferral like any other, which ages.
    Suspended(Cause),
    /// The domain has as many of its site's places as one domain may have. It is away until it is called.
    AtPart(u32),
}

/// Why nothing is to be tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// Nothing gets through to the server.
    NoConnection,
    /// This line of control/concurrencyreplies.
    Rule(u32),
}

/// What to do about a held command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Nothing.
    None,
    /// Start it: a place is taken.
    Go {
        /// Its slot.
        slot: u32,
        /// Its handle for [`Gate::command`], valid until the next call.
        command: u32,
    },
    /// It was held for too long.
    Busy {
        /// Its slot, which is free now.
        slot: u32,
        /// Its handle.
        command: u32,
        /// When it should come again.
        busy: Busy,
    },
    /// qmail-send should give mail that was sent away.
    Call(Call),
}

/// How much mail qmail-send should give.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Call {
    /// [`Key::number`] of the key under which it was sent away.
    pub number: u32,
    /// So many, 1 or more.
    pub most: u32,
}

/// How a delivery ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ran<'a> {
    /// It ran, and printed this.
    Yes(&'a [u8]),
    /// It never started.
    No,
}

/// How long a delivery took, in milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Times {
    /// Its command was held for so long, 1 or more.
    pub held_ms: u32,
    /// It has run for so long since.
    pub ran_ms: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Free,
    Running,
    Held,
}

/// A link in two lists of held slots: that of its key, and that of all, oldest first.
#[derive(Clone, Copy, Debug)]
struct Slot {
    state: State,
    domain: u32,
    command: u32,
    /// How many others of its key were running when it was started.
    beside: u32,
    /// How long its command was held, in milliseconds, 1 or more; 0: not at all.
    held_ms: u32,
    began: Began,
    since_us: u64,
    /// What [`Returns`] knows the mail by: a hash of its queue number and its recipient. Only where that may be asked.
    mail: u64,
    /// By this it is known what the server repeats of the delivery. Only where the report is read.
    envelope: Envelope,
    of_key: Link,
    of_all: Link,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// It has slots, or domains that count under it.
    Active,
    /// In [`Keys::recent`].
    Recent,
    /// In [`Keys::known`].
    Known,
    /// The entry is free.
    Nowhere,
}

/// A pause that control/concurrencyreplies asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Pause {
    until_us: u64,
    line: u32,
}

/// The pauses of a key whose server says that it is too fast. The first one lasts [`SLOW_MIN_US`]. When a delivery that started after
/// a pause is too fast again, the next pause is twice as long, up to [`SLOW_MAX_US`]: shorter than a hold, so that no mail ages
/// meanwhile. The limit stays as it is. After [`SLOW_CALM_US`] without such a reply the next pause is a first one again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Slow {
    /// The last pause, and when it ends.
    pause_us: u64,
    until_us: u64,
}

const SLOW_MIN_US: u64 = 1_000_000;
const SLOW_MAX_US: u64 = 32_000_000;
const SLOW_CALM_US: u64 = 60_000_000;

impl Slow {
    /// A delivery that started then was too fast. Until when nothing starts; what started before the last pause ended says nothing
    /// new.
    fn slow_down(&mut self, started_us: u64, now_us: u64) -> u64 {
        if started_us >= self.until_us {
            let is_calm = now_us.saturating_sub(self.until_us) > SLOW_CALM_US;
            self.pause_us = match self.pause_us {
                0 => SLOW_MIN_US,
                _ if is_calm => SLOW_MIN_US,
                last_us => (2 * last_us).min(SLOW_MAX_US),
            };
            self.until_us = now_us.saturating_add(self.pause_us);
        }
        self.until_us
    }
}

/// What is counted together. (Or a domain that counts under such a key; those are not shown.)
#[derive(Debug)]
pub struct Key {
    /// What its name is.
    pub kind: KeyKind,
    /// Its name in lower case.
    pub name: Vec<u8>,
    /// How many may run, by the table.
    pub cap: Cap,
    /// What is known of its server.
    pub learned: Learned,
    /// How many run.
    pub running: u32,
    /// How many are held.
    pub held: u32,
    /// How many were sent away.
    pub busy: u64,
    /// How many ran and ended.
    pub done: u64,
    /// How many were held for some time.
    pub held_ever: u64,
    /// The most that ran at once.
    pub peak: u32,
    /// What its last delivery that failed printed; shortened.
    pub error: Vec<u8>,
    /// How fast it is served.
    pub pace: Pace,
    /// What is away.
    pub recall: Recall,
    /// The key's number for qmail-send, from 1 on. No key has had it before, for as long as there are fewer than 2^32.
    pub number: u32,
    /// Mail of its domains that is away under their own numbers; see [`Gate::count_parted`].
    pub parted: u32,
    /// How much of that has been called and has not come yet.
    pub parted_called: u32,
    /// It is in [`Gate::lacking`].
    lacks: bool,
    /// It is in [`Gate::absent`].
    listed: bool,
    /// It is in [`Gate::paused`].
    paused: bool,
    /// It is in [`Gate::behind`].
    behind: bool,
    /// It is in [`Gate::polled`].
    polled: bool,
    /// Other spawners have the places that it could take, or it is their turn.
    blocked: bool,
    /// The others have been told that it runs or wants something.
    told: bool,
    /// How many deliveries they had at the last look.
    elsewhere: u32,
    turn: Turn,
    /// The last pause that control/concurrencyreplies asked for. It may be over.
    pause: Option<Pause>,
    slow: Slow,
    hash: u64,
    /// The key that its deliveries count under: itself, unless it is a domain in a group or behind a relay.
    of: u32,
    /// What it is to a site, if it counts there by an address. Then it has a part of the site's places at most, and what is
    /// beyond that is away under its own number; and failures that carry no address are its own.
    standing: Option<Standing>,
    /// Slots in use by deliveries to this very domain.
    slots: u32,
    /// Other entries that count under it.
    members: u32,
    place: Place,
    ready: bool,
    waiting: List,
    idle_since_us: u64,
}

impl Key {
    /// A key that is not yet among the others.
    pub(crate) fn new(kind: KeyKind, name: Vec<u8>, cap: Cap) -> Self {
        Self {
            kind,
            name,
            cap,
            learned: Learned::NEW,
            running: 0,
            held: 0,
            busy: 0,
            done: 0,
            held_ever: 0,
            peak: 0,
            error: Vec::new(),
            pace: Pace::new(0, None),
            recall: Recall::default(),
            number: 0,
            parted: 0,
            parted_called: 0,
            lacks: false,
            listed: false,
            paused: false,
            behind: false,
            polled: false,
            blocked: false,
            told: false,
            elsewhere: 0,
            turn: Turn::default(),
            pause: None,
            slow: Slow::default(),
            hash: 0,
            of: NONE,
            standing: None,
            slots: 0,
            members: 0,
            place: Place::Nowhere,
            ready: false,
            waiting: EMPTY,
            idle_since_us: 0,
        }
    }

    /// How many may run now.
    #[must_use]
    pub fn limit(&self) -> Limit {
        match self.cap.limit {
            limit @ Limit::AtMost(0) => limit,
            Limit::AtMost(limit) => Limit::AtMost(self.learned.effective(limit, self.cap.learning)),
            Limit::Unlimited => match self.learned.effective(SLOTS_MAX, self.cap.learning) {
                SLOTS_MAX => Limit::Unlimited,
                limit => Limit::AtMost(limit),
            },
        }
    }

    /// Until when nothing starts, in microseconds, if that is so.
    #[must_use]
    pub fn suspended_until(&self, now_us: u64) -> Option<u64> {
        self.suspension(now_us).map(|(until_us, _)| until_us)
    }

    /// The same, and why.
    #[inline]
    fn suspension(&self, now_us: u64) -> Option<(u64, Cause)> {
        let learned = self.learned.suspended_until(now_us);
        match (learned, self.pause_at(now_us)) {
            (learned, Some(pause)) if learned.is_none_or(|until_us| until_us < pause.until_us) => {
                Some((pause.until_us, Cause::Rule(pause.line)))
            }
            (learned, _) => learned.map(|until_us| (until_us, Cause::NoConnection)),
        }
    }

    /// A pause is prolonged by another one, and never shortened.
    fn pause(&mut self, pause: Pause) {
        if self.pause.is_none_or(|known| known.until_us < pause.until_us) {
            self.pause = Some(pause);
        }
    }

    #[inline]
    fn pause_at(&self, now_us: u64) -> Option<Pause> {
        self.pause.filter(|pause| pause.until_us > now_us)
    }

    /// When its server objected the last time; None: never, or it does not matter any more.
    #[must_use]
    pub fn objected_us(&self) -> Option<u64> {
        match self.cap.learning {
            Learning::On => self.learned.objected_us(),
            Learning::Fixed => None,
        }
    }

    /// When it may start something again, if that is a matter of time.
    fn starts_from(&self, now_us: u64) -> Option<u64> {
        self.suspended_until(now_us).or_else(|| match self.may_start(now_us) {
            May::Later(until_us) => Some(until_us),
            May::Start | May::Wait | May::Suspended(_) => None,
        })
    }

    fn may_start(&self, now_us: u64) -> May {
        self.learned.may_start(now_us, self.running, most(self.cap.limit), self.cap.learning)
    }

    /// How many may run now; that may be less than [`Key::limit`] for a while.
    fn most(&self, now_us: u64) -> u32 {
        self.learned.most(now_us, most(self.cap.limit), self.cap.learning)
    }

    fn admits(&self, now_us: u64) -> bool {
        match self.cap.limit {
            Limit::AtMost(0) => false,
            _ if self.pause_at(now_us).is_some() => false,
            _ => self.may_start(now_us) == May::Start,
        }
    }

    /// The limit that holds over all spawners. Others have none, or nothing runs anyway; what a server was seen to take is known
    /// to this spawner alone.
    fn common_limit(&self) -> Option<u32> {
        match self.cap.limit {
            Limit::AtMost(limit) if limit > 0 => Some(limit),
            _ => None,
        }
    }

    /// Whether it has a limit that stays what it is: then it matters only whether its server lets anybody in.
    fn is_fixed(&self) -> bool {
        self.cap.learning == Learning::Fixed && matches!(self.cap.limit, Limit::AtMost(1..))
    }

    fn is_idle(&self) -> bool {
        self.slots == 0 && self.members == 0 && !self.listed
    }

    /// Whether it has ever been at its limit, or its server has objected.
    fn is_contended(&self) -> bool {
        self.held_ever > 0
            || self.busy > 0
            || self.learned.objected_us().is_some()
            || self.pause.is_some()
    }
}

/// A limit as a number.
fn most(limit: Limit) -> u32 {
    match limit {
        Limit::AtMost(limit) => limit,
        Limit::Unlimited => SLOTS_MAX,
    }
}

#[derive(Debug)]
struct Keys {
    all: Vec<Key>,
    /// Of each entry: among the idle ones of its place, or among the ready ones (which are active). Apart, because a
    /// change of the list touches the neighbours, too.
    links: Vec<Link>,
    free: Vec<u32>,
    index: Index,
    recent: List,
    recent_len: usize,
    known: List,
    known_len: usize,
    last_number: u32,
}

impl Keys {
    fn new(last_number: u32) -> Self {
        Self {
            last_number,
            all: Vec::new(),
            links: Vec::new(),
            free: Vec::new(),
            index: Index::default(),
            recent: EMPTY,
            recent_len: 0,
            known: EMPTY,
            known_len: 0,
        }
    }

    fn hash(kind: KeyKind, name_hash: u64) -> u64 {
        name_hash.wrapping_add(Self::of_kind(kind))
    }

    fn of_kind(kind: KeyKind) -> u64 {
        (kind as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15)
    }

    /// The hash of another kind with the same name.
    fn same_name(key: &Key, kind: KeyKind) -> u64 {
        Self::hash(kind, key.hash.wrapping_sub(Self::of_kind(key.kind)))
    }

    /// As in a [`crate::control::name::NameMap`], two names with the same 64 bits of hash are taken for the same.
    #[inline]
    fn find(&self, hash: u64) -> Option<u32> {
        self.index.find(hash, |at| self.all[at as usize].hash == hash)
    }

    /// An active entry, new or out of the idle ones.
    fn activate(
        &mut self,
        kind: KeyKind,
        name_hash: u64,
        name: &[u8],
        cap: Cap,
        now_us: u64,
        guess_secs: Option<f64>,
    ) -> Result<u32, OutOfMemory> {
        let hash = Self::hash(kind, name_hash);
        if let Some(at) = self.find(hash) {
            self.wake(at);
            return Ok(at);
        }
        self.add(kind, hash, name, cap, now_us, guess_secs)
    }

    /// A new entry, active, which counts under itself. There is none with this hash.
    fn add(
        &mut self,
        kind: KeyKind,
        hash: u64,
        name: &[u8],
        cap: Cap,
        now_us: u64,
        guess_secs: Option<f64>,
    ) -> Result<u32, OutOfMemory> {
        debug_assert!(self.find(hash).is_none());
        // One comes, so one may go: what is too much besides goes in its own time, in [`Keys::forget_old`].
        if self.recent_len > RECENT_KEYS {
            self.forget(self.recent.first);
        }
        if self.known_len > KNOWN_KEYS {
            self.forget(self.known.first);
        }
        let at = match self.free.last() {
            Some(&at) => at,
            None => {
                self.free.try_reserve(self.all.len() + 1)?;
                self.links.try_reserve(1)?;
                memory::push(&mut self.all, Key::new(kind, Vec::new(), cap))?;
                self.links.push(UNLINKED);
                let at = self.all.len() as u32 - 1;
                self.free.push(at);
                at
            }
        };
        let key = &mut self.all[at as usize];
        key.name.clear();
        key.name.try_reserve(name.len())?;
        self.index.insert(hash, at)?;
        key.name.extend_from_slice(name);
        if has_upper(name) {
            key.name.make_ascii_lowercase();
        }
        key.kind = kind;
        key.cap = cap;
        key.standing = None;
        key.parted = 0;
        key.parted_called = 0;
        key.learned = Learned::NEW;
        key.hash = hash;
        key.of = at;
        key.place = Place::Active;
        key.pace = Pace::new(now_us, guess_secs);
        key.recall = Recall::default();
        // What is still in [`Gate::paused`] or [`Gate::polled`] is of whoever was here before.
        key.paused = false;
        key.behind = false;
        key.polled = false;
        key.blocked = false;
        key.told = false;
        key.elsewhere = 0;
        key.turn = Turn::default();
        key.pause = None;
        key.slow = Slow::default();
        self.last_number = self.last_number.checked_add(1).unwrap_or(1);
        key.number = self.last_number;
        self.free.pop();
        Ok(at)
    }

    fn wake(&mut self, at: u32) {
        match self.all[at as usize].place {
            Place::Recent => {
                unlink(&mut self.recent, at, &mut self.links, |link| link);
                self.recent_len -= 1;
            }
            Place::Known => {
                unlink(&mut self.known, at, &mut self.links, |link| link);
                self.known_len -= 1;
            }
            Place::Active | Place::Nowhere => {}
        }
        self.all[at as usize].place = Place::Active;
    }

    /// Puts an entry that is idle to the others that are; it may be forgotten as soon as a new entry is made.
    fn rest(&mut self, at: u32, now_us: u64) {
        let key = &mut self.all[at as usize];
        key.idle_since_us = now_us;
        if key.is_contended() {
            key.place = Place::Known;
            append(&mut self.known, at, &mut self.links, |link| link);
            self.known_len += 1;
        } else {
            key.place = Place::Recent;
            append(&mut self.recent, at, &mut self.links, |link| link);
            self.recent_len += 1;
        }
    }

    /// Forgets an idle entry. The key that it counted under may become idle by that.
    fn forget(&mut self, at: u32) {
        self.wake(at);
        let key = &mut self.all[at as usize];
        key.place = Place::Nowhere;
        let of = key.of;
        key.busy = 0;
        key.done = 0;
        key.held_ever = 0;
        key.peak = 0;
        key.recall = Recall::default();
        if key.error.capacity() > 0 {
            key.error = Vec::new();
        }
        let hash = key.hash;
        self.index.remove(hash, at);
        self.free.push(at);
        if of != at {
            let idle_since_us = self.all[at as usize].idle_since_us;
            let of_key = &mut self.all[of as usize];
            of_key.members -= 1;
            if of_key.is_idle() {
                self.rest(of, idle_since_us);
            }
        }
    }

    /// Forgets what is idle: what there is too much of, and what is too old.
    fn forget_old(&mut self, now_us: u64) {
        while self.recent_len > RECENT_KEYS {
            self.forget(self.recent.first);
        }
        while self.known_len > KNOWN_KEYS {
            self.forget(self.known.first);
        }
        let old = |keys: &Self, at: u32| {
            at != NONE && now_us.saturating_sub(keys.all[at as usize].idle_since_us) > KNOWN_US
        };
        while old(self, self.known.first) {
            let at = self.known.first;
            if self.all[at as usize].pause_at(now_us).is_some() {
                // A pause may be longer.
                self.wake(at);
                self.rest(at, now_us);
            } else {
                self.forget(at);
            }
        }
        while old(self, self.recent.first) {
            self.forget(self.recent.first);
        }
    }

    fn idle(&self, list: List) -> impl Iterator<Item = u32> {
        let mut at = list.first;
        std::iter::from_fn(move || {
            let this = at;
            if this == NONE {
                return None;
            }
            at = self.links[this as usize].next;
            Some(this)
        })
    }
}

/// Sums over all keys, those that are forgotten included.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Commands that were asked for.
    pub asked: u64,
    /// Commands that were sent away.
    pub busy: u64,
    /// Commands that were held for some time.
    pub held: u64,
    /// Commands whose hold was too long; they are in `busy`, too.
    pub expired: u64,
    /// Deliveries that ran and ended.
    pub done: u64,
    /// Deliveries that were refused, and sent away because they were not really tried; they are in `busy`, too.
    pub refused: u64,
    /// Commands that were deferred because their key is suspended.
    pub suspended: u64,
}

/// The gate.
#[derive(Debug)]
pub struct Gate {
    rules: Rules,
    slots: Vec<Slot>,
    keys: Keys,
    commands: Commands,
    /// Held slots, the one that is held longest first.
    waiting: List,
    /// Keys that have a held command and a free place, in the order in which it is their turn.
    ready: List,
    in_use: u32,
    capacity: u32,
    /// Deliveries done a second.
    rate: Rate,
    /// The mean service time of the last deliveries, whatever their key: the guess for a new one. 0 before the first.
    typical_us: f64,
    random: Random,
    now_us: u64,
    totals: Totals,
    /// Keys that may have room for mail that is away.
    lacking: Vec<u32>,
    /// Keys with mail that is away, but for those that are closed.
    absent: Vec<u32>,
    looked_us: u64,
    /// How much has been called and has not come yet, of all keys.
    called: u32,
    /// Numbers of keys that are no more, whose mail is to be called.
    gone: Vec<u32>,
    /// When commands came.
    heard: Heard,
    /// Keys that are suspended and have held commands: until when, and their index, which may be another key's by then.
    paused: BinaryHeap<Reverse<(u64, u32)>>,
    /// Keys of candidates with held commands whose places a site's members have.
    behind: Vec<u32>,
    /// The slot and the handle of the command that [`Gate::next`] is about to give. It is in none of the lists any more, and what
    /// goes wrong before the caller has it must not lose it: see [`Gate::rescue_handing`].
    handing: Option<(u32, u32)>,
    /// What went back as busy after it was refused.
    returns: Returns,
    /// Whether it is this machine that cannot connect.
    shortage: Shortage,
    /// The other spawners of the queue, where there are any.
    spawners: Option<Box<dyn Spawners>>,
    /// Keys that wait for what other spawners have, or have waited: the next to be looked at first.
    polled: VecDeque<u32>,
    polled_us: u64,
    poll_us: u64,
    /// Whether a domain belongs to another site than its key says.
    sites: Order,
    resited_us: u64,
}

/// Which site a domain that a report came from belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Site {
    /// None that matters.
    Other,
    /// One under which it counts, but the delivery was at an address that is not of it.
    Elsewhere,
    /// One under which it counts, but the delivery was at no address: it says something of the domain alone.
    Alone,
    /// One under which it counts.
    Own,
    /// One that learns, and under which it counts as soon as the keys are made anew.
    New,
}

/// Whether the keys are as the rules say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Order {
    Kept,
    Changed,
}

impl Gate {
    /// A gate without rules, where everything goes.
    ///
    /// slots: conf-spawn, 1..=[`SLOTS_MAX`]. concurrency_remote: as qmail-send has it.
    ///
    /// # Errors
    /// No memory, or slots out of range.
    pub fn new(slots: u32, concurrency_remote: u32, seed: u64) -> Result<Self, OutOfMemory> {
        if slots == 0 || slots > SLOTS_MAX {
            return Err(OutOfMemory);
        }
        let mut random = Random::new(seed);
        let free = Slot {
            state: State::Free,
            domain: NONE,
            command: NONE,
            beside: 0,
            held_ms: 0,
            began: Began::Freely,
            since_us: 0,
            mail: 0,
            envelope: Envelope::NONE,
            of_key: UNLINKED,
            of_all: UNLINKED,
        };
        Ok(Self {
            rules: Rules::stock(crate::control::name::Hasher::new(random.next())),
            slots: memory::filled(free, slots as usize)?,
            keys: Keys::new(0),
            commands: Commands::default(),
            waiting: EMPTY,
            ready: EMPTY,
            in_use: 0,
            capacity: slots.min(concurrency_remote),
            rate: Rate::new(0),
            typical_us: 0.0,
            random,
            now_us: 0,
            totals: Totals::default(),
            lacking: Vec::new(),
            absent: Vec::new(),
            looked_us: 0,
            called: 0,
            gone: Vec::new(),
            heard: Heard::default(),
            paused: BinaryHeap::new(),
            behind: Vec::new(),
            handing: None,
            returns: Returns::default(),
            shortage: Shortage::default(),
            spawners: None,
            polled: VecDeque::new(),
            polled_us: 0,
            poll_us: 0,
            sites: Order::Kept,
            resited_us: 0,
        })
    }

    /// A command has been read.
    pub fn ask(&mut self, now_us: u64, slot: u32, parts: &Parts<'_>) -> Answer {
        let now_us = self.clock(now_us);
        self.handing = None;
        match self.slots.get(slot as usize).map(|slot| slot.state) {
            None | Some(State::Running) => return Answer::Go,
            Some(State::Held) => return Answer::InUse,
            Some(State::Free) => {}
        }
        self.totals.asked += 1;
        if self.heard.command(now_us) {
            self.look_again(now_us);
        }
        let Some(domain) =
            domain_of(parts.recipient()).and_then(|domain| self.entry(domain, parts, now_us).ok())
        else {
            self.occupy(slot, NONE, State::Running, now_us);
            return Answer::Go;
        };
        let at = self.keys.all[domain as usize].of;
        let was_called = self.arrived(domain, at, now_us);
        let entry = &mut self.slots[slot as usize];
        entry.envelope = Envelope::NONE;
        let is_read = self.rules.reads_reports(self.keys.all[at as usize].cap);
        if is_read {
            let hasher = self.rules.hasher;
            let message = hasher.hash(parts.as_slice()[0]).rotate_left(32);
            entry.mail = message ^ hasher.hash(parts.recipient());
            entry.envelope = Envelope::new(&hasher, parts.sender(), parts.recipient());
            if self.keys.all[domain as usize].kind != KeyKind::Domain {
                entry.envelope = entry.envelope.with_domain(&hasher, parts.recipient());
            }
        } else if self.keys.all[at as usize].is_fixed() {
            // Where it is asked for most, no hash: the recipients of one message at one domain have their returns together, and so
            // have messages whose numbers end alike.
            let number = parts.as_slice()[0];
            let number = match number.last_chunk() {
                Some(end) => u64::from_le_bytes(*end),
                None => number.iter().fold(0, |number, &byte| number << 8 | u64::from(byte)),
            };
            let number = number.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(32);
            entry.mail = number ^ self.keys.all[domain as usize].hash;
        }
        if let Some(why) = self.waits_alone(domain, now_us) {
            let busy = match why {
                May::Suspended(_) => self.not_now(domain, now_us, 1),
                _ => self.send_away(domain, now_us, Why::AtPart(self.part(domain)), 1),
            };
            self.rest_if_idle(domain, now_us);
            return Answer::Busy(busy);
        }
        let startable = self.admits(at, now_us) && self.shortage.paused_until(now_us).is_none();
        let suspended_until = self.keys.all[at as usize].suspended_until(now_us);
        // Behind the held ones, so that they stay in order; but a free place is never left idle for that. What starts anyway
        // is not asked for, because three divisions are in the answer.
        let starts_at_once =
            startable && self.keys.all[at as usize].held == 0 && self.takes_place(at, now_us);
        let may_hold = !starts_at_once
            && suspended_until.is_none_or(|until_us| until_us - now_us < HOLD_MAX_US)
            && self.may_hold(at, was_called, now_us);
        if starts_at_once || (startable && !may_hold && self.takes_place(at, now_us)) {
            self.start(slot, domain, now_us);
            self.look_for_room(at);
            return Answer::Go;
        }
        if may_hold {
            return match self.hold(slot, domain, parts, now_us) {
                Ok(()) => Answer::Hold,
                Err(OutOfMemory) => {
                    self.start(slot, domain, now_us);
                    Answer::Go
                }
            };
        }
        let busy = self.not_now(at, now_us, 1);
        self.rest_if_idle(domain, now_us);
        Answer::Busy(busy)
    }

    /// Asks for `number` (1..) recipients of one message at one domain; `recipient` is any address there. qmail-send has been told
    /// that one of them is to wait. With an answer all of them are away. None: they are to be asked for one by one. Their key has
    /// no limit, or is suspended so that they age, or depends on the sender, which this question does not name.
    pub fn ask_together(&mut self, now_us: u64, number: u32, recipient: &[u8]) -> Option<Busy> {
        let now_us = self.clock(now_us);
        self.handing = None;
        if self.rules.sender_matters() {
            return None;
        }
        if self.heard.command(now_us) {
            self.look_again(now_us);
        }
        let domain = self.domain(domain_of(recipient)?, now_us).ok()?;
        let at = self.keys.all[domain as usize].of;
        let busy = match self.waits_alone(domain, now_us) {
            Some(May::Suspended(_)) => None,
            Some(_) => {
                let why = Why::AtPart(self.part(domain));
                Some(self.send_away(domain, now_us, why, number))
            }
            None => {
                let key = &self.keys.all[at as usize];
                let ages = key.cap.limit != Limit::AtMost(0)
                    && key
                        .suspended_until(now_us)
                        .is_some_and(|until_us| until_us - now_us >= HOLD_MAX_US);
                let is_free = key.limit() == Limit::Unlimited && self.admits(at, now_us);
                (!ages && !is_free).then(|| self.not_now(at, now_us, number))
            }
        };
        self.rest_if_idle(domain, now_us);
        busy
    }

    /// A command for a domain, which counts under the key `at`, has come. True if it is taken for one that was called.
    fn arrived(&mut self, domain: u32, at: u32, now_us: u64) -> bool {
        if domain != at && self.keys.all[domain as usize].recall.arrived(now_us) {
            self.called -= 1;
            self.keys.all[at as usize].parted_called -= 1;
            return true;
        }
        let was_called = self.keys.all[at as usize].recall.arrived(now_us);
        self.called -= u32::from(was_called);
        was_called
    }

    /// How many slots, running and held, a domain may have that counts under a site by its address. A member has three
    /// quarters of the members' places, so that one domain whose server hangs leaves some to the others (a line of its own
    /// takes the domain out of this). A candidate has one, until the site has taken its mail. Other domains have all.
    fn part(&self, domain: u32) -> u32 {
        let entry = &self.keys.all[domain as usize];
        let whole = self.keys.all[entry.of as usize].limit();
        match (entry.standing, whole) {
            (None, _) | (_, Limit::AtMost(0)) => u32::MAX,
            (Some(Standing::Candidate), _) => 1,
            (Some(Standing::Member), Limit::Unlimited) => u32::MAX,
            (Some(Standing::Member), Limit::AtMost(limit)) => (limit - limit / 4).max(1),
        }
    }

    /// Why no more of a site's domain may start though the site has room: the domain has its part, or it is suspended because
    /// no connection to it succeeds. None: it may.
    fn waits_alone(&self, domain: u32, now_us: u64) -> Option<May> {
        let entry = &self.keys.all[domain as usize];
        entry.standing?;
        if let Some(until_us) = entry.suspended_until(now_us) {
            return Some(May::Suspended(until_us));
        }
        (entry.slots >= self.part(domain)).then_some(May::Wait)
    }

    /// Whether one more of this key may start.
    fn admits(&self, at: u32, now_us: u64) -> bool {
        let key = &self.keys.all[at as usize];
        key.admits(now_us) && key.running < self.beside_partner(at)
    }

    fn is_startable(&self, at: u32) -> bool {
        self.keys.all[at as usize].held > 0 && self.admits(at, self.now_us)
    }

    /// The other key of a site: of its members that of its candidates, and the other way round; if it has deliveries or is
    /// remembered.
    fn partner(&self, at: u32) -> Option<u32> {
        let key = self.key(at);
        let kind = match key.kind {
            KeyKind::Candidates => KeyKind::Group,
            KeyKind::Group if self.rules.looks_at_addresses() => KeyKind::Candidates,
            _ => return None,
        };
        self.keys.find(Keys::same_name(key, kind))
    }

    /// How many of this key may run beside the other key of its site. There is no such limit for a key without another one,
    /// nor for a site's members: candidates take none of their places. Candidates have the places that the members leave
    /// while no member waits. They always have a quarter as many as the site has, or one, so that they become members
    /// however busy it is.
    fn beside_partner(&self, at: u32) -> u32 {
        if self.key(at).kind != KeyKind::Candidates {
            return u32::MAX;
        }
        let Some(members) = self.partner(at) else { return u32::MAX };
        let members = self.key(members);
        let limit = most(members.limit());
        let least = (limit / 4).max(1);
        if members.held > 0 || members.recall.away() > 0 {
            return least;
        }
        limit.saturating_sub(members.running).max(least)
    }

    /// A site's member has ended: its candidates may have room.
    fn look_at_candidates(&mut self, at: u32) {
        if self.key(at).kind == KeyKind::Group
            && let Some(candidates) = self.partner(at)
        {
            self.look_for_room(candidates);
        }
    }

    /// What to do about the held commands; to be called until it says [`Next::None`].
    pub fn next(&mut self, now_us: u64) -> Next {
        let now_us = self.clock(now_us);
        self.handing = None;
        if self.sites == Order::Changed && self.resite_us(now_us) == 0 {
            self.resited_us = now_us;
            // Without memory they stay where they are until the next time.
            let _ = self.rebuild(now_us);
        }
        while let Some(&Reverse((until_us, at))) = self.paused.peek()
            && until_us <= now_us
        {
            self.paused.pop();
            self.keys.all[at as usize].paused = false;
            self.make_ready(at);
        }
        if !self.polled.is_empty() && now_us.saturating_sub(self.polled_us) >= self.poll_us {
            self.poll(now_us);
        }
        self.look_behind();
        let blocked_until = self.shortage.paused_until(now_us);
        while self.ready.first != NONE && blocked_until.is_none() {
            let at = self.ready.first;
            unlink(&mut self.ready, at, &mut self.keys.links, |link| link);
            self.keys.all[at as usize].ready = false;
            // If not, it has been suspended meanwhile, or its limit has gone down, or others have its places.
            if !self.is_startable(at) || !self.takes_place(at, now_us) {
                self.make_ready(at);
                continue;
            }
            let slot = self.keys.all[at as usize].waiting.first;
            let domain = self.slots[slot as usize].domain;
            self.handing = Some((slot, self.slots[slot as usize].command));
            let held_us = now_us.saturating_sub(self.slots[slot as usize].since_us);
            let command = self.unhold(slot, at);
            self.start(slot, domain, now_us);
            let held_ms = u32::try_from(held_us / 1000).unwrap_or(u32::MAX);
            self.slots[slot as usize].held_ms = held_ms.max(1);
            // Its turn is over: the others come first.
            self.make_ready(at);
            fault!();
            return Next::Go { slot, command };
        }
        let slot = self.waiting.first;
        if slot != NONE && now_us.saturating_sub(self.slots[slot as usize].since_us) >= HOLD_MAX_US
        {
            let domain = self.slots[slot as usize].domain;
            let at = self.keys.all[domain as usize].of;
            self.handing = Some((slot, self.slots[slot as usize].command));
            let command = self.unhold(slot, at);
            let busy = self.not_now(at, now_us, 1);
            self.totals.expired += 1;
            self.rest_if_idle(domain, now_us);
            return Next::Busy { slot, command, busy };
        }
        self.next_call(now_us).map_or(Next::None, Next::Call)
    }

    /// Microseconds until the keys may be made anew for sites.
    fn resite_us(&self, now_us: u64) -> u64 {
        let keys = self.keys.all.len() + self.slots.len() / RESITE_SLOTS;
        let since_us = now_us.max(self.now_us).saturating_sub(self.resited_us);
        (keys as u64 * RESITE_US).saturating_sub(since_us)
    }

    fn next_call(&mut self, now_us: u64) -> Option<Call> {
        if let Some(number) = self.gone.pop() {
            return Some(Call { number, most: u32::MAX });
        }
        if now_us.saturating_sub(self.looked_us) >= LOOK_US {
            self.look_at_absent(now_us);
        }
        while let Some(at) = self.lacking.pop() {
            self.keys.all[at as usize].lacks = false;
            let most = self.room(at, now_us);
            let admits = self.admits(at, now_us);
            let key = &mut self.keys.all[at as usize];
            // In portions, unless a place is idle: each is a report to qmail-send.
            let is_little = most < (key.held + key.recall.called()) / 8;
            if is_little && !admits {
                continue;
            }
            let (number, of) = (key.number, key.of);
            let most = key.recall.call(most, now_us);
            if most > 0 {
                self.called += most;
                if of != at {
                    self.keys.all[of as usize].parted_called += most;
                }
                return Some(Call { number, most });
            }
        }
        None
    }

    /// Calls that are in vain come to their end, and keys that lacked mail when there were no slots have another look.
    fn look_at_absent(&mut self, now_us: u64) {
        self.looked_us = now_us;
        let mut index = 0;
        while let Some(&at) = self.absent.get(index) {
            let key = &mut self.keys.all[at as usize];
            let called = key.recall.called();
            let of = key.of;
            if key.recall.expire(now_us, &self.heard) {
                self.called -= called;
                if of != at {
                    self.keys.all[of as usize].parted_called -= called;
                }
            }
            let key = &mut self.keys.all[at as usize];
            if key.recall.away() == 0 {
                key.listed = false;
                self.tell(at);
                self.absent.swap_remove(index);
                self.look_at_candidates(at);
                self.rest_if_idle(at, now_us);
            } else {
                index += 1;
                self.look_for_room(at);
            }
        }
    }

    /// qmail-send speaks after a silence.
    fn look_again(&mut self, now_us: u64) {
        for &at in &self.absent {
            self.keys.all[at as usize].recall.look_again(now_us);
        }
    }

    /// To be called when there may be room for mail of this key that is away.
    fn look_for_room(&mut self, at: u32) {
        let key = &mut self.keys.all[at as usize];
        if key.listed && !key.lacks && memory::push(&mut self.lacking, at).is_ok() {
            key.lacks = true;
        }
    }

    /// How much mail of this key that is away has room here: for its idle places, where it starts at once, and to be held. What
    /// is held keeps to the thresholds exactly as in [`Gate::may_hold`]: one too many would be sent away and called again
    /// without end.
    fn room(&mut self, at: u32, now_us: u64) -> u32 {
        if self.shortage.paused_until(now_us).is_some() {
            return 0;
        }
        let Key { of, slots, standing, recall, .. } = self.keys.all[at as usize];
        if standing.is_some() {
            // Of a site's domain, what it may have, as far as the site has room.
            if self.waits_alone(at, now_us).is_some() {
                return 0;
            }
            let room = self.room(of, now_us);
            return self.part(at).saturating_sub(slots + recall.called()).min(room);
        }
        let others = self.held() + self.called;
        let slots = self.not_running();
        let beside_partner = self.beside_partner(at);
        let key = &mut self.keys.all[at as usize];
        let here = key.held + key.recall.called() + key.parted_called;
        let others = others - here;
        let (idle, spare) = match key.limit() {
            _ if key.suspended_until(now_us).is_some() => (0, 0),
            Limit::AtMost(0) => (0, 0),
            Limit::AtMost(limit) => {
                key.pace.run(now_us, key.running);
                let here = limit.saturating_sub(key.elsewhere).max(1);
                let limit = limit.min(beside_partner).min(key.most(now_us));
                let idle = limit.saturating_sub(key.running.saturating_add(key.elsewhere));
                (idle, key.pace.spare(here.min(limit)))
            }
            Limit::Unlimited => (SLOTS_MAX, 0),
        };
        let idle = idle.min(slots.saturating_sub(others));
        // The most that `may_hold` allows beside the others: held <= ALPHA / 2 * (slots - 2 * (others + held)).
        let left = (slots - idle).saturating_sub(2 * others);
        let held = spare.min(ALPHA * left / (2 + 2 * ALPHA));
        (idle + held).saturating_sub(here)
    }

    /// The slots that run nothing.
    fn not_running(&self) -> u32 {
        (self.capacity + self.held()).saturating_sub(self.in_use)
    }

    /// How long the delivery in this slot was held, and how long it has run, if it runs and was held.
    #[must_use]
    pub fn times(&self, now_us: u64, slot: u32) -> Option<Times> {
        let &Slot { state, held_ms, since_us, .. } = self.slots.get(slot as usize)?;
        let was_held = state == State::Running && held_ms > 0;
        was_held.then(|| Times {
            held_ms,
            ran_ms: now_us.max(self.now_us).saturating_sub(since_us) / 1000,
        })
    }

    /// The delivery in this slot has ended. If it was not really tried: what qmail-send is told in place of its report.
    pub fn done(&mut self, now_us: u64, slot: u32, ran: Ran<'_>) -> Option<Busy> {
        let now_us = self.clock(now_us);
        self.handing = None;
        let &Slot { state, domain, .. } = self.slots.get(slot as usize)?;
        match state {
            State::Free => {}
            State::Held => {
                let at = self.keys.all[domain as usize].of;
                self.unhold(slot, at);
                self.tell(at);
                self.rest_if_idle(domain, now_us);
            }
            State::Running if domain == NONE => self.vacate(slot),
            State::Running => {
                let at = self.keys.all[domain as usize].of;
                fault!();
                let key = &mut self.keys.all[at as usize];
                key.pace.run(now_us, key.running);
                key.running -= 1;
                fault!();
                let tried = match ran {
                    Ran::Yes(report) => self.ended(at, slot, report, now_us),
                    Ran::No => Try::Real,
                };
                self.vacate(slot);
                // Its own place is free: whose turn it is can be said at once.
                self.keys.all[at as usize].blocked = false;
                self.make_ready(at);
                let busy = (tried != Try::Real).then(|| {
                    self.totals.refused += 1;
                    self.send_away(at, now_us, Why::Refused, 1)
                });
                self.tell(at);
                self.look_for_room(at);
                if domain != at {
                    self.look_for_room(domain);
                    self.look_at_candidates(at);
                }
                self.rest_if_idle(domain, now_us);
                return busy;
            }
        }
        None
    }

    /// What a report says of the key, whose delivery does not run any more.
    fn ended(&mut self, at: u32, slot: u32, report: &[u8], now_us: u64) -> Try {
        let Slot { since_us, mail, envelope, domain, .. } = self.slots[slot as usize];
        let looks_at_addresses = self.rules.looks_at_addresses();
        let key = &mut self.keys.all[at as usize];
        note_error(&mut key.error, report);
        if self.rules.reads_reports(key.cap) {
            let own = Own {
                hasher: self.rules.hasher,
                envelope,
                names: [&self.keys.all[domain as usize].name, &self.rules.helo],
            };
            let reader = Reader { own, replies: &self.rules.replies };
            let said = reader.classify(report);
            let site = if looks_at_addresses { self.note_site(domain, &said) } else { Site::Other };
            // Too fast is not too many: no level is to be learned from it.
            let is_too_fast = matches!(said.rule, Some(Verdict { meaning: Meaning::Rate, .. }))
                && matches!(said.seen, report::Seen::TooMany(_));
            let of_server = if is_too_fast { report::Seen::Deferred } else { said.seen };
            let seen = match site {
                Site::Elsewhere | Site::Alone => report::Seen::Nothing,
                // As ever, unless the operator says something else.
                _ if self.key(at).is_fixed() && said.rule.is_none() => report::at_the_door(report),
                _ => of_server,
            };
            let counted = if site == Site::Own { Counted::Known } else { Counted::All };
            let ended = self.what_ended(at, slot, seen, counted, now_us);
            let is_candidate = self.key(at).kind == KeyKind::Candidates;
            let mut tried = self.learn(at, &ended);
            match site {
                Site::Alone => {
                    tried = self.ended_alone(domain, Ended { seen: of_server, ..ended });
                }
                // What was refused at an address of the site is the site's matter.
                Site::Own if !matches!(said.seen, report::Seen::TooMany(_)) => {
                    self.ended_alone(domain, ended);
                }
                _ => {}
            }
            let paused = match site {
                Site::Elsewhere => None,
                Site::Alone => Some(domain),
                _ => Some(at),
            };
            if let (Some(Verdict { line, meaning }), Some(paused)) = (said.rule, paused) {
                let key = &mut self.keys.all[paused as usize];
                let until_us = match meaning {
                    Meaning::Pause(secs) => {
                        Some(now_us.saturating_add(u64::from(secs) * 1_000_000))
                    }
                    Meaning::Rate if is_too_fast => Some(key.slow.slow_down(since_us, now_us)),
                    Meaning::Rate | Meaning::Limit | Meaning::Nothing => None,
                };
                // As after any refusal that is not about the mail: with others there, or accepted within a minute, it was no try.
                let beside = key.running > 0 || key.learned.has_accepted(now_us, RECENT_US);
                if is_too_fast && said.seen.is_too_many_early() && beside {
                    tried = Try::NotReally;
                }
                if let Some(until_us) = until_us {
                    let pause = Pause { until_us, line };
                    key.pause(pause);
                    // The other half of a site is at the same servers.
                    if paused == at
                        && let Some(partner) = self.partner(at)
                    {
                        self.keys.all[partner as usize].pause(pause);
                    }
                }
            }
            match said.seen {
                // It came alone, as far as is counted; but only now is it known beside how many others of its site.
                seen if seen.is_too_many_early() && site == Site::New => tried = Try::NotReally,
                report::Seen::Accepted if site == Site::New || is_candidate => {
                    self.accepted_at_site(domain, ended);
                }
                _ => {}
            }
            if self.goes_back(mail, tried) {
                return tried;
            }
        } else if key.is_fixed() && !self.is_as_ever(at, report, now_us) {
            let seen = report::at_the_door(report);
            let ended = self.what_ended(at, slot, seen, Counted::All, now_us);
            let tried = self.learn(at, &ended);
            if self.goes_back(mail, tried) {
                return tried;
            }
        }
        let key = &mut self.keys.all[at as usize];
        key.done += 1;
        key.pace.complete(now_us);
        self.rate.count(now_us);
        let service_us = now_us.saturating_sub(since_us) as f64;
        self.typical_us += (service_us - self.typical_us) * TYPICAL_WEIGHT;
        self.totals.done += 1;
        Try::Real
    }

    /// The delivery in this slot, whose key does not count it any more.
    fn what_ended(
        &self,
        at: u32,
        slot: u32,
        seen: report::Seen,
        counted: Counted,
        now_us: u64,
    ) -> Ended {
        let Slot { since_us, beside, began, .. } = self.slots[slot as usize];
        let key = self.key(at);
        Ended {
            now_us,
            started_us: since_us,
            running: key.running,
            beside,
            limit: most(key.cap.limit),
            learning: key.cap.learning,
            seen,
            counted,
            began,
        }
    }

    /// What a key's delivery says of its server, unless it is this machine that cannot connect.
    fn learn(&mut self, at: u32, ended: &Ended) -> Try {
        let key = &mut self.keys.all[at as usize];
        match ended.seen {
            report::Seen::ConnectFailed => {}
            report::Seen::Nothing => return key.learned.end(ended, &mut self.random),
            _ => {
                self.shortage.connected(ended.started_us);
                return key.learned.end(ended, &mut self.random);
            }
        }
        let before = Witness { at, number: key.number, learned: key.learned };
        let took = key.learned.has_accepted(ended.now_us, WITNESS_US);
        let slots = &self.slots;
        let pending = |since_us: u64| {
            let is_new = |slot: &&Slot| slot.state == State::Running && slot.since_us >= since_us;
            // This one is among them until its slot is free.
            (slots.iter().filter(is_new).count() as u32).saturating_sub(1)
        };
        if self.shortage.failed(ended.now_us, took.then_some(before), pending) {
            while let Some(Witness { at, number, learned }) = self.shortage.take() {
                if let Some(key) = self.keys.all.get_mut(at as usize)
                    && key.number == number
                {
                    key.learned = learned;
                    self.make_ready(at);
                }
            }
        }
        if self.shortage.is_on(ended.now_us) {
            return Try::NotReally;
        }
        self.keys.all[at as usize].learned.end(ended, &mut self.random)
    }

    /// Whether a delivery of a key with a fixed limit was accepted, and nothing was amiss before: nearly all of them.
    #[inline]
    fn is_as_ever(&mut self, at: u32, report: &[u8], now_us: u64) -> bool {
        matches!(report, [b'r', 0, b'K', ..])
            && self.shortage.is_quiet(now_us)
            && self.keys.all[at as usize].learned.accepted_as_ever(now_us)
    }

    /// Whether a mail goes back as busy after its delivery.
    fn goes_back(&mut self, mail: u64, tried: Try) -> bool {
        let returns = match tried {
            Try::Real => false,
            Try::NotReally => self.returns.may_return(mail),
            Try::TooSoon => true,
        };
        if !returns {
            self.returns.tried(mail);
        }
        returns
    }

    /// The address that a delivery was connected to may say to which site its next hop belongs.
    fn note_site(&mut self, domain: u32, said: &Report) -> Site {
        let evidence = match said.seen {
            report::Seen::Accepted => Evidence::Took,
            _ => Evidence::Answered,
        };
        let Key { kind, ref name, .. } = self.keys.all[domain as usize];
        // Without memory it is not known.
        if let Some(peer) = said.peer
            && self.rules.note(kind, name, peer, evidence) == Ok(true)
        {
            self.sites = Order::Changed;
        }
        let entry = self.key(domain);
        if entry.standing.is_some() {
            let key = self.key(entry.of);
            return match said.peer {
                Some(peer) if self.rules.group_at(peer) == Some(&key.name) => Site::Own,
                Some(_) => Site::Elsewhere,
                None => match said.seen {
                    report::Seen::TooMany(_)
                    | report::Seen::ConnectFailed
                    | report::Seen::Died(_) => Site::Alone,
                    _ => Site::Own,
                },
            };
        }
        if self.sites == Order::Kept && !said.seen.is_too_many_early() {
            return Site::Other;
        }
        let hash = self.rules.hasher.hash(&entry.name);
        let now = self.rules.resolve_entry(entry.kind, hash, &entry.name);
        let by_address = matches!(now.site, Some(Because::Address(..) | Because::Refused(..)));
        if by_address && now.cap.learning == Learning::On { Site::New } else { Site::Other }
    }

    /// What a domain of a site has met for itself: failures that carry no address, and whatever ends them.
    fn ended_alone(&mut self, domain: u32, ended: Ended) -> Try {
        let entry = &mut self.keys.all[domain as usize];
        // Its slot is not free yet.
        let running = entry.slots.saturating_sub(1);
        entry.learned.end(
            &Ended { running, beside: running, counted: Counted::All, ..ended },
            &mut self.random,
        )
    }

    /// What the server took from a domain that does not count under its site yet says of the site, and of its candidates, that it
    /// takes mail.
    fn accepted_at_site(&mut self, domain: u32, ended: Ended) {
        let Key { kind, ref name, .. } = self.keys.all[domain as usize];
        let site = self.rules.resolve_entry(kind, self.rules.hasher.hash(name), name);
        let name_hash = self.rules.hasher.hash(site.name);
        let of = self.keys.all[domain as usize].of;
        for kind in [KeyKind::Group, KeyKind::Candidates] {
            let Some(at) = self.keys.find(Keys::hash(kind, name_hash)).filter(|&at| at != of)
            else {
                continue;
            };
            let key = &mut self.keys.all[at as usize];
            let (running, limit) = (key.running, most(key.cap.limit));
            let ended = Ended { running, limit, learning: key.cap.learning, ..ended };
            key.learned.end(&ended, &mut self.random);
            self.make_ready(at);
            self.look_for_room(at);
        }
    }

    /// Forgets all held commands, and what is away.
    pub fn drop_held(&mut self) {
        while self.waiting.first != NONE {
            let slot = self.waiting.first;
            self.done(self.now_us, slot, Ran::No);
        }
        self.gone.clear();
        self.called = 0;
        for key in &mut self.keys.all {
            key.recall = Recall::default();
            key.parted_called = 0;
        }
        self.look_at_absent(self.now_us);
        self.tell_all();
    }

    /// Microseconds until [`Gate::next`] has something to do; None if nothing is held or away.
    #[must_use]
    pub fn timeout_us(&self, now_us: u64) -> Option<u64> {
        let blocked_us = self.shortage.paused_until(now_us.max(self.now_us));
        let blocked_us = blocked_us.map(|until_us| until_us - now_us.max(self.now_us));
        let is_ready = self.ready.first != NONE;
        if (is_ready && blocked_us.is_none()) || !self.lacking.is_empty() || !self.gone.is_empty() {
            return Some(0);
        }
        let ready_us = blocked_us.filter(|_| is_ready);
        let until = |since_us: u64, us: u64| {
            us.saturating_sub(now_us.max(self.now_us).saturating_sub(since_us))
        };
        let held = self.slots.get(self.waiting.first as usize);
        let held_us = held.map(|slot| until(slot.since_us, HOLD_MAX_US));
        let look_us = (!self.absent.is_empty()).then(|| until(self.looked_us, LOOK_US));
        let paused = self.paused.peek();
        let paused_us =
            paused.map(|&Reverse((until_us, _))| until_us.saturating_sub(now_us.max(self.now_us)));
        // Where nothing is held or away, the next call is soon enough.
        let is_waiting = held_us.is_some() || look_us.is_some();
        let resite_us =
            (self.sites == Order::Changed && is_waiting).then(|| self.resite_us(now_us));
        let poll_us = (!self.polled.is_empty()).then(|| until(self.polled_us, self.poll_us));
        [ready_us, held_us, look_us, paused_us, resite_us, poll_us].into_iter().flatten().min()
    }

    /// The parts of a command whose handle [`Gate::next`] gave.
    #[must_use]
    pub fn command(&self, command: u32) -> Parts<'_> {
        self.commands.parts(command)
    }

    /// A key by its number.
    #[must_use]
    pub fn key(&self, at: u32) -> &Key {
        &self.keys.all[at as usize]
    }

    /// The key of this kind and name, if it has deliveries or is remembered.
    #[must_use]
    pub fn find_key(&self, kind: KeyKind, name: &[u8]) -> Option<&Key> {
        let at = self.keys.find(Keys::hash(kind, self.rules.hasher.hash(name)))?;
        let key = self.key(at);
        (key.of == at).then_some(key)
    }

    /// Counts, for each key, what is away under the numbers of its domains.
    pub fn count_parted(&mut self) {
        for key in &mut self.keys.all {
            key.parted = 0;
        }
        for &at in &self.absent {
            let Key { of, recall, .. } = self.keys.all[at as usize];
            if of != at {
                self.keys.all[of as usize].parted += recall.away();
            }
        }
    }

    /// All keys that have deliveries or are remembered.
    pub fn keys(&self) -> impl Iterator<Item = &Key> {
        (0u32..)
            .zip(&self.keys.all)
            .filter(|&(at, key)| key.place != Place::Nowhere && key.of == at)
            .map(|(_, key)| key)
    }

    /// How many commands are held.
    #[must_use]
    pub fn held(&self) -> u32 {
        self.commands.used() as u32
    }

    /// How much mail that is away has been called and has not come yet.
    #[must_use]
    pub fn called(&self) -> u32 {
        self.called
    }

    /// How many slots are running or held.
    #[must_use]
    pub fn in_use(&self) -> u32 {
        self.in_use
    }

    /// How many slots there are, as far as is known.
    #[must_use]
    pub fn capacity(&self) -> u32 {
        self.capacity
    }

    /// Sums over everything.
    #[must_use]
    pub fn totals(&self) -> Totals {
        self.totals
    }

    /// The rules that count.
    #[must_use]
    pub fn rules(&self) -> &Rules {
        &self.rules
    }

    /// The bytes that its variable parts occupy, without the rules.
    #[must_use]
    pub fn bytes(&self) -> usize {
        let keys: usize =
            self.keys.all.iter().map(|key| key.name.capacity() + key.error.capacity()).sum();
        keys + self.keys.all.capacity() * (size_of::<Key>() + size_of::<Link>())
            + [&self.keys.free, &self.lacking, &self.absent, &self.gone]
                .map(|list| list.capacity() * 4)
                .iter()
                .sum::<usize>()
            + self.keys.index.bytes()
            + self.commands.bytes()
    }

    /// Gives memory back and forgets old keys. To be called about once a second.
    ///
    /// # Errors
    /// No memory to give memory back; nothing has changed.
    pub fn tidy(&mut self, now_us: u64) -> Result<(), OutOfMemory> {
        let now_us = self.clock(now_us);
        self.commands.trim();
        self.tell_all();
        self.keys.forget_old(now_us);
        for list in [&mut self.lacking, &mut self.absent, &mut self.gone] {
            if list.is_empty() && list.capacity() > KEPT_ENTRIES {
                *list = Vec::new();
            }
        }
        if self.keys.all.len() > 128 && self.keys.index.len() * 4 < self.keys.all.len() {
            self.rebuild(now_us)?;
        }
        if self.keys.index.is_empty() {
            // Nothing was delivered for an hour.
            self.keys = Keys::new(self.keys.last_number);
            self.lacking.clear();
            self.absent.clear();
            self.paused.clear();
            self.behind.clear();
            self.polled.clear();
        }
        Ok(())
    }

    /// Another table counts from now on, made with [`Gate::hasher`]; None for no limits at all. What runs goes on running
    /// and is counted under its new keys; what is held stays held, and starts as soon as its new key has a place.
    ///
    /// # Errors
    /// No memory: the old table stays.
    pub fn set_table(&mut self, table: Option<Table>, now_us: u64) -> Result<(), OutOfMemory> {
        let now_us = self.clock(now_us);
        let old = std::mem::replace(&mut self.rules.table, table);
        self.rebuild(now_us).inspect_err(|_| self.rules.table = old)
    }

    /// Other routes count from now on, made with [`Gate::hasher`].
    ///
    /// # Errors
    /// No memory: the old routes stay.
    pub fn set_routes(&mut self, routes: Routes, now_us: u64) -> Result<(), OutOfMemory> {
        let now_us = self.clock(now_us);
        let old = std::mem::replace(&mut self.rules.routes, routes);
        self.rebuild(now_us).inspect_err(|_| self.rules.routes = old)
    }

    /// Other senders count from now on, made with [`Gate::hasher`]. What runs and is held stays with the relay that it had: its
    /// qmail-remote has looked there already, or it is one delivery more or less.
    pub fn set_senders(&mut self, senders: Senders) {
        self.rules.senders = senders;
    }

    /// What the tree's qmail-remote reads; before the first delivery.
    pub fn set_reads(&mut self, reads: Reads) {
        self.rules.reads = reads;
    }

    /// Another map of sites counts from now on, made with [`Gate::hasher`].
    ///
    /// # Errors
    /// No memory: the old map stays.
    pub fn set_map(&mut self, map: Map, now_us: u64) -> Result<(), OutOfMemory> {
        let now_us = self.clock(now_us);
        let old = std::mem::replace(&mut self.rules.sites.map, map);
        self.rebuild(now_us).inspect_err(|_| self.rules.sites.map = old)
    }

    /// Other words count from now on. The pauses that the old ones wanted are over: whoever changes the file may have been
    /// mistaken before.
    pub fn set_replies(&mut self, replies: Replies, now_us: u64) {
        self.clock(now_us);
        self.rules.replies = replies;
        self.paused.clear();
        for at in 0..self.keys.all.len() as u32 {
            let key = &mut self.keys.all[at as usize];
            (key.pause, key.slow) = (None, Slow::default());
            key.paused = false;
            if key.place == Place::Active {
                self.make_ready(at);
                self.look_for_room(at);
            }
        }
    }

    /// The name that qmail-remote gives with HELO, which servers repeat. Nothing is done without memory for it.
    pub fn set_helo(&mut self, name: &[u8]) {
        let helo = &mut self.rules.helo;
        helo.clear();
        if helo.try_reserve_exact(name.len()).is_ok() {
            helo.extend_from_slice(name);
        }
    }

    /// What was seen before a restart, to be put back before the first delivery.
    pub fn seen_mut(&mut self) -> &mut Seen {
        &mut self.rules.sites.seen
    }

    /// The hasher that tables and routes must be made with.
    #[must_use]
    pub fn hasher(&self) -> crate::control::name::Hasher {
        self.rules.hasher
    }

    /// For the time after a panic, when the gate may be broken: the slot and the command that were about to be given.
    pub fn rescue_handing(&mut self) -> Option<(u32, u32)> {
        let (slot, command) = self.handing.take()?;
        self.abandon(slot);
        Some((slot, command))
    }

    /// For the same: the next slot from `from` on that is held, which is free then, and the handle of its command. Nothing else is
    /// touched.
    pub fn rescue(&mut self, from: u32) -> Option<(u32, u32)> {
        let slot = (from..self.slots.len() as u32)
            .find(|&slot| self.slots[slot as usize].state == State::Held)?;
        self.abandon(slot);
        Some((slot, self.slots[slot as usize].command))
    }

    /// For the same: the caller has the command of this slot, so it is not to be rescued.
    pub fn abandon(&mut self, slot: u32) {
        if let Some(entry) = self.slots.get_mut(slot as usize) {
            entry.state = State::Free;
        }
    }

    /// And a key whose mail is away: its number.
    pub fn rescue_call(&mut self) -> Option<u32> {
        self.absent.pop().map(|at| self.keys.all[at as usize].number)
    }

    /// How many [`Gate::rescue`] would still find.
    #[must_use]
    pub fn to_rescue(&self, from: u32) -> u32 {
        self.slots.iter().skip(from as usize).filter(|slot| slot.state == State::Held).count()
            as u32
    }

    /// Makes the keys anew: for other rules, or to give memory back.
    fn rebuild(&mut self, now_us: u64) -> Result<(), OutOfMemory> {
        let rules = &self.rules;
        let mut keys = Keys::new(self.keys.last_number);
        let mut moved: Vec<u32> = memory::filled(NONE, self.keys.all.len())?;
        // The idle ones first, the oldest first, so that they come to rest in the same order; then those with slots. Keys
        // of relays and groups come with the first domain that counts under them.
        let idle = self.keys.idle(self.keys.recent).chain(self.keys.idle(self.keys.known));
        let in_use = (0u32..)
            .zip(&self.keys.all)
            .filter(|(_, key)| key.slots > 0 || key.listed)
            .map(|(at, _)| at);
        for old in idle.chain(in_use) {
            let key = &self.keys.all[old as usize];
            let hash = rules.hasher.hash(&key.name);
            // A relay that senders have is like a domain; others come with their domains, or only have a past.
            let has_own = key.slots > 0 || key.of != old;
            moved[old as usize] =
                if key.kind == KeyKind::Domain || (key.kind == KeyKind::Relay && has_own) {
                    add_entry(&mut keys, rules, (key.kind, hash, &key.name), now_us, None)?
                } else if let Some(cap) = rules.cap_of(key.kind, &key.name) {
                    keys.activate(key.kind, hash, &key.name, cap, now_us, None)?
                } else {
                    NONE
                };
        }
        for (old, key) in (0u32..).zip(&self.keys.all) {
            if key.place == Place::Active && moved[old as usize] == NONE {
                let hash = Keys::hash(key.kind, rules.hasher.hash(&key.name));
                moved[old as usize] = keys.find(hash).unwrap_or(NONE);
            }
        }

        // A domain of a site keeps what is away under its own number.
        let keeps = |key: &Key, at: u32| key.of == at || key.standing.is_some();
        let is_gone = |old: &Key, at: u32, keys: &Keys| {
            old.recall.away() > 0 && keys.all.get(at as usize).is_none_or(|key| !keeps(key, at))
        };
        let away = self.keys.all.iter().filter(|key| key.recall.away() > 0).count();
        self.gone.try_reserve(away)?;
        self.absent.try_reserve(away)?;

        // Nothing fails from here on.
        for (old, &at) in self.keys.all.iter().zip(&moved) {
            if is_gone(old, at, &keys) {
                self.gone.push(old.number);
            }
        }
        self.absent.clear();
        self.lacking.clear();
        self.called = 0;
        for (old, &at) in self.keys.all.iter_mut().zip(&moved) {
            let Some(key) = keys.all.get_mut(at as usize) else { continue };
            key.idle_since_us = old.idle_since_us;
            if keeps(key, at) {
                old.pace.run(now_us, old.running);
                std::mem::swap(&mut key.pace, &mut old.pace);
                key.error = std::mem::take(&mut old.error);
                (key.busy, key.done, key.held_ever, key.peak) =
                    (old.busy, old.done, old.held_ever, old.peak);
                (key.recall, key.number) = (old.recall, old.number);
                (key.pause, key.slow) = (old.pause, old.slow);
                // Nothing that was learned goes on where the limit stays what it is from now on.
                if (key.cap.learning == Learning::On || old.cap.learning == Learning::Fixed)
                    && key.standing.is_some() == old.standing.is_some()
                {
                    key.learned = old.learned;
                }
                if key.cap.limit == Limit::AtMost(0) {
                    key.recall.cancel();
                } else if key.recall.away() > 0 {
                    key.listed = true;
                    self.absent.push(at);
                }
                let (of, called) = (key.of, key.recall.called());
                self.called += called;
                if of != at {
                    keys.all[of as usize].parted_called += called;
                }
            }
        }
        for slot in &mut self.slots {
            if slot.state == State::Free || slot.domain == NONE {
                continue;
            }
            slot.domain = moved[slot.domain as usize];
            let domain = &mut keys.all[slot.domain as usize];
            domain.slots += 1;
            let of = domain.of;
            if slot.state == State::Running {
                keys.all[of as usize].running += 1;
            }
        }
        let mut at = self.waiting.first;
        while at != NONE {
            let Slot { domain, of_all, .. } = self.slots[at as usize];
            let of = keys.all[domain as usize].of;
            let key = &mut keys.all[of as usize];
            key.held += 1;
            key.held_ever = key.held_ever.max(1);
            append(&mut key.waiting, at, &mut self.slots, |slot| &mut slot.of_key);
            at = of_all.next;
        }
        let old = std::mem::replace(&mut self.keys, keys);
        self.sites = Order::Kept;
        self.ready = EMPTY;
        self.paused.clear();
        self.behind.clear();
        self.polled.clear();
        self.retell(&old);
        for at in 0..self.keys.all.len() as u32 {
            let key = &self.keys.all[at as usize];
            let idle_since_us = key.idle_since_us;
            if key.place == Place::Active && key.is_idle() {
                self.keys.rest(at, idle_since_us);
            } else {
                self.make_ready(at);
                self.look_for_room(at);
            }
        }
        Ok(())
    }

    /// From now on its places are those of all spawners of the queue together.
    pub fn share(&mut self, spawners: Box<dyn Spawners>) {
        self.spawners = Some(spawners);
        self.tell_all();
    }

    /// The other spawners, if the queue may have any.
    #[must_use]
    pub fn spawners(&self) -> Option<&dyn Spawners> {
        self.spawners.as_deref()
    }

    /// Looks who they are. To be called about once a second.
    pub fn look_at_spawners(&mut self) {
        let Some(spawners) = &mut self.spawners else { return };
        if spawners.look() == Looked::Anew {
            for at in 0..self.keys.all.len() as u32 {
                self.tell(at);
            }
        }
    }

    /// For when the gate itself may be broken: it counts for nobody any more.
    pub fn leave_spawners(&mut self) {
        if let Some(mut spawners) = self.spawners.take() {
            spawners.leave();
        }
        self.polled.clear();
    }

    /// What the others are to know of a key that has so many running.
    fn own(&self, at: u32, running: u32) -> Tells {
        let key = self.key(at);
        let has_more = key.held > 0 || (key.recall.away() > 0 && self.in_use < self.capacity);
        let wants = match has_more && self.admits(at, self.now_us) {
            true => Wants::More,
            false => Wants::Nothing,
        };
        Tells { running, wants }
    }

    /// Tells the other spawners what this one has of a key.
    #[inline]
    fn tell(&mut self, at: u32) {
        if self.spawners.is_some() {
            self.tell_of(at, self.keys.all[at as usize].running);
        }
    }

    fn tell_of(&mut self, at: u32, running: u32) {
        let key = &self.keys.all[at as usize];
        let own = match key.common_limit() {
            Some(_) if key.of == at && key.place != Place::Nowhere => self.own(at, running),
            _ => Tells::default(),
        };
        let key = &mut self.keys.all[at as usize];
        let is_something = own != Tells::default();
        if is_something || key.told {
            key.told = is_something;
            if let Some(spawners) = &mut self.spawners {
                spawners.tell(key.kind, &key.name, own);
            }
        }
    }

    /// Tells them again of what they have been told: whether it wants more may have changed by other things than its own deliveries.
    fn tell_all(&mut self) {
        if self.spawners.is_none() {
            return;
        }
        for at in 0..self.keys.all.len() as u32 {
            if self.keys.all[at as usize].told {
                self.tell(at);
            }
        }
    }

    /// The keys have been made anew: first what there is now, so that nothing is missing meanwhile.
    fn retell(&mut self, old: &Keys) {
        if self.spawners.is_none() {
            return;
        }
        for at in 0..self.keys.all.len() as u32 {
            self.tell(at);
        }
        for key in old.all.iter().filter(|key| key.told) {
            let hash = Keys::hash(key.kind, self.rules.hasher.hash(&key.name));
            let now = self.keys.find(hash).map(|at| &self.keys.all[at as usize]);
            if now.is_none_or(|now| !now.told)
                && let Some(spawners) = &mut self.spawners
            {
                spawners.tell(key.kind, &key.name, Tells::default());
            }
        }
    }

    /// Whether a key that has a free place of its own may take one of all spawners' places. Then they know.
    #[inline]
    fn takes_place(&mut self, at: u32, now_us: u64) -> bool {
        self.spawners.is_none() || self.takes_common_place(at, now_us)
    }

    fn takes_common_place(&mut self, at: u32, now_us: u64) -> bool {
        let key = &self.keys.all[at as usize];
        let Some(limit) = key.common_limit() else { return true };
        if key.blocked {
            return false;
        }
        self.tell_of(at, key.running + 1);
        if self.turn(at, limit, now_us) == Take::Yes {
            return true;
        }
        self.tell(at);
        self.block(at);
        false
    }

    /// What the others have of a key now, and whose turn it is.
    fn turn(&mut self, at: u32, limit: u32, now_us: u64) -> Take {
        let key = &mut self.keys.all[at as usize];
        let others = match &mut self.spawners {
            Some(spawners) => spawners.others(key.kind, &key.name),
            None => Others::default(),
        };
        key.elsewhere = others.running;
        key.turn.take(now_us, limit, key.running, &others)
    }

    /// It waits for what others have. Without memory to look for that: until its next own delivery ends or the hold does.
    fn block(&mut self, at: u32) {
        let key = &mut self.keys.all[at as usize];
        key.blocked = true;
        if !key.polled && self.polled.try_reserve(1).is_ok() {
            key.polled = true;
            if self.polled.is_empty() {
                self.poll_next(self.now_us);
            }
            self.polled.push_back(at);
        }
    }

    fn poll_next(&mut self, now_us: u64) {
        self.polled_us = now_us;
        let span_us = POLL_US.end() - POLL_US.start();
        self.poll_us = POLL_US.start() + self.random.next() % (span_us + 1);
    }

    /// Looks whether there is a place for keys that wait for one.
    fn poll(&mut self, now_us: u64) {
        self.poll_next(now_us);
        let others = self.spawners.as_ref().map_or(0, |spawners| spawners.alive());
        let most = (POLL_READS / others.max(1)).max(1) as usize;
        for _ in 0..most.min(self.polled.len()) {
            let Some(at) = self.polled.pop_front() else { return };
            let key = &self.keys.all[at as usize];
            // Another key may have this entry by now.
            if !key.polled {
                continue;
            }
            let waits = key.blocked && (key.held > 0 || key.recall.away() > 0);
            let limit = key.common_limit().filter(|_| waits && self.admits(at, now_us));
            if let Some(limit) = limit
                && self.turn(at, limit, now_us) != Take::Yes
            {
                self.tell(at);
                self.polled.push_back(at);
                continue;
            }
            let key = &mut self.keys.all[at as usize];
            (key.polled, key.blocked) = (false, false);
            self.make_ready(at);
            self.look_for_room(at);
        }
    }

    fn clock(&mut self, now_us: u64) -> u64 {
        self.now_us = self.now_us.max(now_us);
        self.now_us
    }

    /// The entry that a delivery belongs to: that of its domain, or of the relay that its sender has.
    #[inline]
    fn entry(&mut self, domain: &[u8], parts: &Parts<'_>, now_us: u64) -> Result<u32, OutOfMemory> {
        if self.rules.reads.any()
            && let Some(at) = self.relay_of_sender(domain, parts.sender(), now_us)?
        {
            return Ok(at);
        }
        self.domain(domain, now_us)
    }

    fn relay_of_sender(
        &mut self,
        domain: &[u8],
        sender: &[u8],
        now_us: u64,
    ) -> Result<Option<u32>, OutOfMemory> {
        let end = sender.iter().rposition(|&byte| byte != 0).map_or(0, |last| last + 1);
        let Some(relay) = self.rules.by_sender(&sender[..end]) else { return Ok(None) };
        let domain = known_part(domain);
        let hasher = self.rules.hasher;
        if !self.rules.sender_decides(hasher.hash(domain), domain) {
            return Ok(None);
        }
        let hash = hasher.hash(relay.name);
        let guess = (self.typical_us > 0.0).then_some(self.typical_us * 1e-6);
        let kind = KeyKind::Relay;
        add_entry(&mut self.keys, &self.rules, (kind, hash, relay.name), now_us, guess).map(Some)
    }

    /// The entry of a domain, which may have no slot yet. A domain that is longer than [`NAME_MAX`] is known by its end: no
    /// name server has it, so qmail-remote connects to nobody unless a route's suffix matches.
    fn domain(&mut self, domain: &[u8], now_us: u64) -> Result<u32, OutOfMemory> {
        let domain = known_part(domain);
        let hash = self.rules.hasher.hash(domain);
        if let Some(table) = &self.rules.table {
            table.prefetch(hash);
        }
        if let Some(at) = self.keys.find(Keys::hash(KeyKind::Domain, hash)) {
            self.keys.wake(at);
            return Ok(at);
        }
        let guess = (self.typical_us > 0.0).then_some(self.typical_us * 1e-6);
        add_new(&mut self.keys, &self.rules, (KeyKind::Domain, hash, domain), now_us, guess)
    }

    fn rest_if_idle(&mut self, at: u32, now_us: u64) {
        if self.keys.all[at as usize].is_idle() {
            self.keys.rest(at, now_us);
        }
    }

    fn occupy(&mut self, slot: u32, domain: u32, state: State, now_us: u64) {
        fault!();
        let entry = &mut self.slots[slot as usize];
        entry.state = state;
        entry.domain = domain;
        entry.since_us = now_us;
        entry.held_ms = 0;
        self.in_use += 1;
        self.capacity = self.capacity.max(self.in_use);
        if domain != NONE {
            self.keys.all[domain as usize].slots += 1;
        }
    }

    /// The opposite of [`Gate::occupy`]. The domain may be idle then; it is not put to rest yet.
    fn vacate(&mut self, slot: u32) {
        fault!();
        let entry = &mut self.slots[slot as usize];
        entry.state = State::Free;
        entry.command = NONE;
        let domain = std::mem::replace(&mut entry.domain, NONE);
        self.in_use -= 1;
        if domain != NONE {
            self.keys.all[domain as usize].slots -= 1;
        }
    }

    /// A place of the domain's key is taken by a free slot.
    fn start(&mut self, slot: u32, domain: u32, now_us: u64) {
        self.occupy(slot, domain, State::Running, now_us);
        fault!();
        let of = self.keys.all[domain as usize].of;
        let key = &mut self.keys.all[of as usize];
        key.pace.run(now_us, key.running);
        let entry = &mut self.slots[slot as usize];
        (entry.beside, entry.began) = (key.running, key.learned.began(now_us));
        key.running += 1;
        key.peak = key.peak.max(key.running);
        self.tell(of);
    }

    /// With this one held, its key and all keys keep to the thresholds. What was not called may only be held if there is room
    /// for all that is away, too: else it would overtake it.
    fn may_hold(&mut self, at: u32, was_called: bool, now_us: u64) -> bool {
        let key = &self.keys.all[at as usize];
        let left = self.not_running().saturating_sub(2 * (self.held() + 1));
        if 2 * (key.held + 1) > ALPHA * left {
            return false;
        }
        if key.recall.away() > 0 && !was_called {
            let uncalled = key.recall.away() - key.recall.called();
            return self.room(at, now_us) > uncalled;
        }
        match key.limit() {
            Limit::AtMost(limit) if limit > 0 => key.held < key.pace.reach(limit).max(limit),
            // Closed for nobody knows how long.
            _ => true,
        }
    }

    fn hold(
        &mut self,
        slot: u32,
        domain: u32,
        parts: &Parts<'_>,
        now_us: u64,
    ) -> Result<(), OutOfMemory> {
        let command = self.commands.store(parts)?;
        self.occupy(slot, domain, State::Held, now_us);
        fault!();
        self.slots[slot as usize].command = command;
        append(&mut self.waiting, slot, &mut self.slots, |slot| &mut slot.of_all);
        let at = self.keys.all[domain as usize].of;
        let key = &mut self.keys.all[at as usize];
        append(&mut key.waiting, slot, &mut self.slots, |slot| &mut slot.of_key);
        key.held += 1;
        key.held_ever += 1;
        self.totals.held += 1;
        fault!();
        self.make_ready(at);
        self.look_for_room(at);
        Ok(())
    }

    /// Frees a held slot. Its command is released, and can be read until the next `store`.
    fn unhold(&mut self, slot: u32, at: u32) -> u32 {
        fault!();
        unlink(&mut self.waiting, slot, &mut self.slots, |slot| &mut slot.of_all);
        fault!();
        let key = &mut self.keys.all[at as usize];
        unlink(&mut key.waiting, slot, &mut self.slots, |slot| &mut slot.of_key);
        key.held -= 1;
        // A key that is ready has held commands, and is active by that: it is in no other list.
        if key.held == 0 && std::mem::take(&mut key.ready) {
            unlink(&mut self.ready, at, &mut self.keys.links, |link| link);
        }
        let command = self.slots[slot as usize].command;
        self.commands.release(command);
        fault!();
        self.vacate(slot);
        fault!();
        command
    }

    fn make_ready(&mut self, at: u32) {
        let key = &self.keys.all[at as usize];
        if key.ready || key.held == 0 || key.blocked {
            return;
        }
        let is_startable = self.is_startable(at);
        let key = &mut self.keys.all[at as usize];
        if is_startable {
            key.ready = true;
            append(&mut self.ready, at, &mut self.keys.links, |link| link);
        } else if let Some(until_us) = key.starts_from(self.now_us)
            && !key.paused
            && self.paused.try_reserve(1).is_ok()
        {
            // Without memory they wait until their hold ends.
            key.paused = true;
            self.paused.push(Reverse((until_us, at)));
        } else if key.kind == KeyKind::Candidates
            && !key.behind
            && key.admits(self.now_us)
            && self.behind.try_reserve(1).is_ok()
        {
            key.behind = true;
            self.behind.push(at);
        }
    }

    /// Candidates for whom their site's members have left a place: since one of them ended, or none of them waits any more.
    fn look_behind(&mut self) {
        let mut index = 0;
        while let Some(&at) = self.behind.get(index) {
            let key = &self.keys.all[at as usize];
            // Another key may have this entry by now.
            if key.behind && key.held > 0 && !self.is_startable(at) {
                index += 1;
                continue;
            }
            self.behind.swap_remove(index);
            if std::mem::take(&mut self.keys.all[at as usize].behind) {
                self.make_ready(at);
            }
        }
    }

    /// So many that are neither started nor held.
    fn not_now(&mut self, at: u32, now_us: u64, number: u32) -> Busy {
        let key = &self.keys.all[at as usize];
        let suspension = match key.cap.limit {
            Limit::AtMost(0) => None,
            _ => key.suspension(now_us),
        };
        match suspension {
            None if self.shortage.paused_until(now_us).is_some() => {
                self.send_away(at, now_us, Why::Paused(Cause::NoConnection), number)
            }
            None => self.send_away(at, now_us, Why::AtLimit, number),
            Some((until_us, cause)) if until_us - now_us < HOLD_MAX_US => {
                self.send_away(at, now_us, Why::Paused(cause), number)
            }
            Some((until_us, cause)) => {
                self.totals.suspended += 1;
                let secs = (until_us - now_us).div_ceil(1_000_000);
                let secs = secs.clamp(1, u64::from(SUSPENDED_MAX_SECS)) as u32;
                Busy { key: at, secs, why: Why::Suspended(cause) }
            }
        }
    }

    fn send_away(&mut self, at: u32, now_us: u64, why: Why, number: u32) -> Busy {
        fault!();
        let key = &mut self.keys.all[at as usize];
        key.pace.run(now_us, key.running);
        let limit = most(key.limit());
        let before = key.held.saturating_add(key.recall.away()).saturating_add(number - 1);
        let secs = key.pace.latest_secs(limit, before, &mut self.random);
        let called = key.recall.called();
        key.recall.sent_away(now_us, secs, number);
        self.called -= called - key.recall.called();
        // While it is closed there is nothing to look for. Without memory to list it, it comes back by the clock.
        if limit > 0 && !key.listed && memory::push(&mut self.absent, at).is_ok() {
            key.listed = true;
        }
        key.busy += u64::from(number);
        self.totals.busy += u64::from(number);
        fault!();
        self.look_for_room(at);
        Busy { key: at, secs, why }
    }
}

/// What of a domain is looked up.
fn known_part(domain: &[u8]) -> &[u8] {
    let domain = without_root(domain);
    &domain[domain.len().saturating_sub(NAME_MAX)..]
}

/// The entry for a domain, or for a relay that a sender has: kind, hash of the name, name.
fn add_entry(
    keys: &mut Keys,
    rules: &Rules,
    entry: (KeyKind, u64, &[u8]),
    now_us: u64,
    guess_secs: Option<f64>,
) -> Result<u32, OutOfMemory> {
    if let Some(at) = keys.find(Keys::hash(entry.0, entry.1)) {
        keys.wake(at);
        return Ok(at);
    }
    add_new(keys, rules, entry, now_us, guess_secs)
}

/// A new entry where there is none, and one for the key that it counts under, if that is another.
fn add_new(
    keys: &mut Keys,
    rules: &Rules,
    (kind, hash, name): (KeyKind, u64, &[u8]),
    now_us: u64,
    guess_secs: Option<f64>,
) -> Result<u32, OutOfMemory> {
    // The entry first: what the rules need comes into the cache meanwhile.
    let at = keys.add(kind, Keys::hash(kind, hash), name, Cap::NONE, now_us, guess_secs)?;
    let found = rules.resolve_entry(kind, hash, name);
    keys.all[at as usize].cap = found.cap;
    keys.all[at as usize].standing = match found.site {
        Some(Because::Address(..)) => Some(Standing::Member),
        Some(Because::Refused(..)) => Some(Standing::Candidate),
        Some(Because::Map(_) | Because::Literal(..)) | None => None,
    };
    if found.kind == kind {
        return Ok(at);
    }
    let of = keys.activate(
        found.kind,
        rules.hasher.hash(found.name),
        found.name,
        found.cap,
        now_us,
        guess_secs,
    );
    match of {
        Ok(of) => {
            keys.all[of as usize].members += 1;
            keys.all[at as usize].of = of;
            Ok(at)
        }
        Err(OutOfMemory) => {
            keys.forget(at);
            Err(OutOfMemory)
        }
    }
}

/// Keeps the text of a failed delivery. qmail-remote prints a line per recipient (r, h, s) and one for the message
/// (K, Z, D), each ended by a zero byte.
fn note_error(error: &mut Vec<u8>, report: &[u8]) {
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
