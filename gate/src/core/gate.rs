//! The gate's state machine: it decides for each delivery whether it starts, is held, or goes back to qmail-send.
//!
//! It does no I/O and has no clock: the caller passes the time in microseconds from any origin. Time may stand still or
//! jump forwards; a step backwards counts as standing still. A delivery for which there is no memory starts.
//!
//! A slot is a delivery number of qmail-send. A slot in use belongs to the entry of its domain. The entry belongs to
//! the key under which the domain counts: usually its own, else that of a relay or a group. When groups or routes
//! change, each domain finds its new key, and every running delivery stays in the count.
//!
//! **Held.** All keys together hold at most half of the slots that run nothing. The other half stays free for mail that
//! need not wait. One key may hold up to four times (`ALPHA`) what the others leave of that half. This is the
//! dynamic threshold of shared-buffer switches (Choudhury and Hahne, "Dynamic Queue Length Thresholds for Shared-Memory
//! Packet Switches", IEEE/ACM Transactions on Networking 6(2), 1998). So one busy key takes four fifths of the half,
//! ten keys share it, and something is left for the next. Without that half, 600 keys with a limit of 1 held 399 of 400
//! slots. The alternative, a fixed share, starves a key's own places. A hold ends after 60 seconds.
//!
//! **Away.** The rest goes back to qmail-send until the gate calls it: see [`crate::core::recall`]. While mail of a key
//! is away, the gate holds only as much as keeps the key's places busy, and later mail queues behind it.
//!
//! **Replies** lower a key's limit if the table says `learn`: see [`crate::core::learn`]. A delivery that was refused
//! only because too many ran goes back as busy, and qmail-send does not see its report. While a key is suspended, the
//! gate defers the mail that it cannot hold, so that it ages. With a fixed limit the gate reads only whether the server
//! takes connections. If hardly any server does, the fault is in this machine: see [`crate::core::shortage`].
//!
//! **Rates.** A key whose line has rates starts a delivery when the next one is due: see [`crate::core::rate`]. Until
//! then it is as if no place were free. What is held is what may start soon; the rest is away.
//!
//! **Several spawners** of one queue share the places of a key: see [`crate::core::other_spawners`]. **Several hosts**
//! may, too: see [`crate::core::host_share`].
//!
//! **Sites.** The members of a site that was found by addresses count under one key, its candidates under another
//! ([`crate::control::site`]). Mail beyond one member's share is away under the member's own number. The gate calls it
//! when that member has room, and it does not delay other members.
//!
//! **Slots.** The number of slots is the lower of conf-spawn and concurrencyremote, until more have been in use at
//! once.

#![forbid(unsafe_code)]

mod holding;
mod recalling;
mod reload;
mod reports;
mod rescue;
mod sites;
mod spawner_turns;

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};

use crate::control::limit::Limit;
use crate::control::name::domain_of;
use crate::control::site::Seen;
pub use crate::core::answer::{
    Answer, Busy, BusyReason, CALL_SLOT, Call, DeliveryEnd, DeliveryTimes, NextAction, PauseCause,
    SLOTS_MAX, SUSPENDED_MAX_SECS, Totals,
};
use crate::core::command::{Commands, Parts};
use crate::core::host_share::HostShares;
pub use crate::core::key::Key;
use crate::core::keys::{Entry, EntryState, Keys, add_entry, add_new, known_part};
use crate::core::learn::{Admission, Attempt, StartedIn};
use crate::core::other_spawners::OtherSpawners;
use crate::core::pace::Rate;
use crate::core::recall::{CommandTimes, Recall};
use crate::core::returns::Returns;
use crate::core::rules::{KeyKind, Rules};
use crate::core::shortage::Shortage;
use crate::core::slots::{Slot, SlotState};
use crate::core::start_log::StartLog;
use crate::report::echo::Envelope;
use crate::util::list::{EMPTY, Link, List, NONE, UNLINKED, unlink};
use crate::util::memory::{self, OutOfMemory};
use crate::util::random::Random;

/// The longest hold, in microseconds. qmail-send waits for held commands when it shuts down.
pub const HOLD_MAX_US: u64 = 60_000_000;

/// Time between two checks of the keys with mail away, in microseconds.
const CHECK_KEYS_AWAY_US: u64 = 500_000;

/// qmail-send's default for concurrencyremote.
pub const CONCURRENCY_REMOTE: u32 = 20;

/// The gate.
#[derive(Debug)]
pub struct Gate {
    rules: Rules,
    slots: Vec<Slot>,
    keys: Keys,
    commands: Commands,
    /// Held slots, the oldest hold first.
    held_slots: List,
    /// Keys with a held command and a free place, the one whose turn is next first.
    ready_keys: List,
    in_use: u32,
    capacity: u32,
    /// Deliveries done a second.
    rate: Rate,
    /// The mean service time of recent deliveries to all keys, which is the first guess for a new key. 0
    /// before the first delivery.
    typical_us: f64,
    random: Random,
    now_us: u64,
    totals: Totals,
    /// Keys that may have room for their mail that is away. [`Gate::next`] checks them.
    room_queue: Vec<u32>,
    /// Keys with mail away, except closed ones.
    keys_away: Vec<u32>,
    keys_away_checked_us: u64,
    /// Calls that are not answered yet, of all keys.
    called: u32,
    /// Numbers of keys that were removed; their mail must still be called.
    removed_numbers: Vec<u32>,
    /// The times at which commands arrived.
    command_times: CommandTimes,
    /// Keys whose held or called commands wait for a time: the end of a suspension, or the start that a rate allows
    /// next; and the index. An entry is stale if its time is not [`Key::queued_us`]: the key was queued for an earlier
    /// time since, or another key has the index now. There are at most twice as many entries as keys, and one.
    pause_queue: BinaryHeap<Reverse<(u64, u32)>>,
    /// Keys of candidates with held commands that wait while the members have all places of their site.
    waiting_candidates: Vec<u32>,
    /// The slot and the handle of the command that [`Gate::next`] is handing out. It is in no list; if something fails
    /// before the caller has it, [`Gate::rescue_handing_out`] recovers it.
    handing_out: Option<(u32, u32)>,
    /// Deliveries that went back as busy after a refusal.
    returns: Returns,
    /// Detects that the fault is in this machine, and not in a server.
    shortage: Shortage,
    /// The other spawners of the queue, if any.
    other_spawners: Option<Box<dyn OtherSpawners>>,
    /// Keys that wait or waited for places of other spawners. The one to check next is first.
    poll_queue: VecDeque<u32>,
    polled_us: u64,
    poll_us: u64,
    /// Stale when a domain belongs to another site than its key does.
    keys_state: KeysState,
    sites_applied_us: u64,
}

/// Whether the keys are as the rules and the sites want them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum KeysState {
    Current,
    Stale,
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
            state: SlotState::Free,
            domain: NONE,
            command: NONE,
            beside: 0,
            held_ms: 0,
            started_in: StartedIn::FreePlace,
            since_us: 0,
            mail: 0,
            envelope: Envelope::NONE,
            of_key: UNLINKED,
            of_all: UNLINKED,
        };
        Ok(Self {
            rules: Rules::stock(crate::control::name::Hasher::new(random.next())),
            slots: memory::filled(free, slots as usize)?,
            keys: Keys { start_log: Some(StartLog::default()), ..Keys::new(0) },
            commands: Commands::default(),
            held_slots: EMPTY,
            ready_keys: EMPTY,
            in_use: 0,
            capacity: slots.min(concurrency_remote),
            rate: Rate::new(0),
            typical_us: 0.0,
            random,
            now_us: 0,
            totals: Totals::default(),
            room_queue: Vec::new(),
            keys_away: Vec::new(),
            keys_away_checked_us: 0,
            called: 0,
            removed_numbers: Vec::new(),
            command_times: CommandTimes::default(),
            pause_queue: BinaryHeap::new(),
            waiting_candidates: Vec::new(),
            handing_out: None,
            returns: Returns::default(),
            shortage: Shortage::default(),
            other_spawners: None,
            poll_queue: VecDeque::new(),
            polled_us: 0,
            poll_us: 0,
            keys_state: KeysState::Current,
            sites_applied_us: 0,
        })
    }

    /// Decides about a command that was read: go, hold or busy.
    pub fn ask(&mut self, now_us: u64, slot: u32, parts: &Parts<'_>) -> Answer {
        let now_us = self.clock(now_us);
        self.handing_out = None;
        match self.slots.get(slot as usize).map(|slot| slot.state) {
            None | Some(SlotState::Running) => return Answer::Go,
            Some(SlotState::Held) => return Answer::InUse,
            Some(SlotState::Free) => {}
        }
        self.totals.asked += 1;
        if self.command_times.note(now_us) {
            self.restart_deadlines(now_us);
        }
        let Some(domain) =
            domain_of(parts.recipient()).and_then(|domain| self.entry(domain, parts, now_us).ok())
        else {
            self.occupy(slot, NONE, SlotState::Running, now_us);
            return Answer::Go;
        };
        let at = self.keys.all[domain as usize].domain.key;
        let was_called = self.note_arrival(domain, at, now_us);
        let entry = &mut self.slots[slot as usize];
        entry.envelope = Envelope::NONE;
        let is_read = self.rules.reads_reports(self.keys.all[at as usize].key.cap);
        if is_read {
            let hasher = self.rules.hasher;
            let message = hasher.hash(parts.as_slice()[0]).rotate_left(32);
            entry.mail = message ^ hasher.hash(parts.recipient());
            entry.envelope = Envelope::new(&hasher, parts.sender(), parts.recipient());
            if self.keys.all[domain as usize].key.kind != KeyKind::Domain {
                entry.envelope = entry.envelope.with_domain(&hasher, parts.recipient());
            }
        } else if self.keys.all[at as usize].key.is_fixed() {
            // This is the path of most deliveries, so nothing is hashed here: the recipients of one message at one
            // domain share their returns, and so do messages whose numbers end alike.
            let number = parts.as_slice()[0];
            let number = match number.last_chunk() {
                Some(end) => u64::from_le_bytes(*end),
                None => number.iter().fold(0, |number, &byte| number << 8 | u64::from(byte)),
            };
            let number = number.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(32);
            entry.mail = number ^ self.keys.all[domain as usize].hash;
        }
        if let Some(why) = self.domain_waits(domain, now_us) {
            let busy = match why {
                Admission::Suspended(_) => self.answer_busy(domain, now_us, 1),
                _ => self.send_away(
                    domain,
                    now_us,
                    BusyReason::AtDomainShare(self.domain_share(domain)),
                    1,
                ),
            };
            self.make_idle_if_unused(domain, now_us);
            return Answer::Busy(busy);
        }
        let startable = self.admits(at, now_us) && self.shortage.paused_until(now_us).is_none();
        let suspended_until = self.keys.all[at as usize].key.suspended_until(now_us);
        // A new command queues behind the held ones, so that they stay in order; but no place stays idle for that.
        // `may_hold` is not called for a command that starts anyway, because it makes three divisions.
        let starts_at_once = startable
            && self.keys.all[at as usize].key.held == 0
            && self.takes_shared_place(at, now_us);
        let may_hold = !starts_at_once
            && suspended_until.is_none_or(|until_us| until_us - now_us < HOLD_MAX_US)
            && self.may_hold(at, was_called, now_us);
        if starts_at_once || (startable && !may_hold && self.takes_shared_place(at, now_us)) {
            self.start(slot, domain, now_us);
            self.queue_for_room(at);
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
        let busy = self.answer_busy(at, now_us, 1);
        self.make_idle_if_unused(domain, now_us);
        Answer::Busy(busy)
    }

    /// Asks for `number` (1..) recipients of one message at one domain together; `recipient` is any address there. One
    /// of them got a busy answer before. If there is an answer, all of them are away. None: the caller must ask for
    /// each on its own, because their key has no limit, or is suspended so that they age, or depends on the sender,
    /// which this question does not name.
    pub fn ask_together(&mut self, now_us: u64, number: u32, recipient: &[u8]) -> Option<Busy> {
        let now_us = self.clock(now_us);
        self.handing_out = None;
        if self.rules.sender_matters() {
            return None;
        }
        if self.command_times.note(now_us) {
            self.restart_deadlines(now_us);
        }
        let domain = self.domain(domain_of(recipient)?, now_us).ok()?;
        let at = self.keys.all[domain as usize].domain.key;
        let busy = match self.domain_waits(domain, now_us) {
            Some(Admission::Suspended(_)) => None,
            Some(_) => {
                let why = BusyReason::AtDomainShare(self.domain_share(domain));
                Some(self.send_away(domain, now_us, why, number))
            }
            None => {
                let key = &self.keys.all[at as usize].key;
                let ages = key.cap.limit != Limit::AtMost(0)
                    && key
                        .suspended_until(now_us)
                        .is_some_and(|until_us| until_us - now_us >= HOLD_MAX_US);
                let is_free = key.limit() == Limit::Unlimited && self.admits(at, now_us);
                (!ages && !is_free).then(|| self.answer_busy(at, now_us, number))
            }
        };
        self.make_idle_if_unused(domain, now_us);
        busy
    }

    /// Returns the next action for a held command or a call. Call it until it returns [`NextAction::None`].
    pub fn next(&mut self, now_us: u64) -> NextAction {
        let now_us = self.clock(now_us);
        self.handing_out = None;
        if self.keys_state == KeysState::Stale && self.us_until_sites_apply(now_us) == 0 {
            self.sites_applied_us = now_us;
            // Without memory the keys stay as they are until the next time.
            let _ = self.rebuild(now_us);
        }
        while let Some(at) = self.next_queued(now_us) {
            self.make_ready(at);
            if self.keys.all[at as usize].key.start_rate.is_some() {
                self.queue_for_room(at);
            }
        }
        if !self.poll_queue.is_empty() && now_us.saturating_sub(self.polled_us) >= self.poll_us {
            self.poll_waiting_keys(now_us);
        }
        self.check_waiting_candidates();
        let blocked_until = self.shortage.paused_until(now_us);
        while self.ready_keys.first != NONE && blocked_until.is_none() {
            let at = self.ready_keys.first;
            unlink(&mut self.ready_keys, at, &mut self.keys.links, |link| link);
            self.keys.all[at as usize].key.in_ready_keys = false;
            // Otherwise the key was suspended in the meantime, or its limit went down, or other spawners have its
            // places.
            if !self.is_startable(at) || !self.takes_shared_place(at, now_us) {
                self.make_ready(at);
                continue;
            }
            let slot = self.keys.all[at as usize].key.held_slots.first;
            let domain = self.slots[slot as usize].domain;
            self.handing_out = Some((slot, self.slots[slot as usize].command));
            let held_us = now_us.saturating_sub(self.slots[slot as usize].since_us);
            let command = self.release_held(slot, at);
            self.start(slot, domain, now_us);
            let held_ms = u32::try_from(held_us / 1000).unwrap_or(u32::MAX);
            self.slots[slot as usize].held_ms = held_ms.max(1);
            // The turn of this key is over; the other keys come first.
            self.make_ready(at);
            if self.keys.all[at as usize].key.start_rate.is_some() {
                // With rates as many are held as may start soon, however many places there are.
                self.queue_for_room(at);
            }
            fault!();
            return NextAction::Go { slot, command };
        }
        let slot = self.held_slots.first;
        if slot != NONE && now_us.saturating_sub(self.slots[slot as usize].since_us) >= HOLD_MAX_US
        {
            let domain = self.slots[slot as usize].domain;
            let at = self.keys.all[domain as usize].domain.key;
            self.handing_out = Some((slot, self.slots[slot as usize].command));
            let command = self.release_held(slot, at);
            let busy = self.answer_busy(at, now_us, 1);
            self.totals.expired += 1;
            self.make_idle_if_unused(domain, now_us);
            return NextAction::Busy { slot, command, busy };
        }
        self.next_call(now_us).map_or(NextAction::None, NextAction::Call)
    }

    /// Returns how long the delivery in this slot was held and how long it has run; None if it does not run or was not
    /// held.
    #[must_use]
    pub fn times(&self, now_us: u64, slot: u32) -> Option<DeliveryTimes> {
        let &Slot { state, held_ms, since_us, .. } = self.slots.get(slot as usize)?;
        let was_held = state == SlotState::Running && held_ms > 0;
        was_held.then(|| DeliveryTimes {
            held_ms,
            ran_ms: now_us.max(self.now_us).saturating_sub(since_us) / 1000,
        })
    }

    /// Ends the delivery in this slot. If it does not count as an attempt, returns what replaces its report.
    pub fn done(&mut self, now_us: u64, slot: u32, ran: DeliveryEnd<'_>) -> Option<Busy> {
        let now_us = self.clock(now_us);
        self.handing_out = None;
        let &Slot { state, domain, .. } = self.slots.get(slot as usize)?;
        match state {
            SlotState::Free => {}
            SlotState::Held => {
                let at = self.keys.all[domain as usize].domain.key;
                self.release_held(slot, at);
                self.announce(at);
                self.make_idle_if_unused(domain, now_us);
            }
            SlotState::Running if domain == NONE => self.vacate(slot),
            SlotState::Running => {
                let at = self.keys.all[domain as usize].domain.key;
                fault!();
                let key = &mut self.keys.all[at as usize].key;
                key.pace.run(now_us, key.running);
                key.running -= 1;
                fault!();
                let tried = match ran {
                    DeliveryEnd::Reported(report) => self.read_report(at, slot, report, now_us),
                    DeliveryEnd::NeverStarted => Attempt::Counts,
                };
                self.vacate(slot);
                // A place of its own is free, so it need not wait for the others.
                self.keys.all[at as usize].key.blocked = false;
                self.make_ready(at);
                let busy = (tried != Attempt::Counts).then(|| {
                    self.totals.refused += 1;
                    self.send_away(at, now_us, BusyReason::Refused, 1)
                });
                self.announce(at);
                self.queue_for_room(at);
                if domain != at {
                    self.queue_for_room(domain);
                    self.queue_candidates_for_room(at);
                }
                self.make_idle_if_unused(domain, now_us);
                return busy;
            }
        }
        None
    }

    /// Forgets all held commands and all mail away.
    pub fn drop_held(&mut self) {
        while self.held_slots.first != NONE {
            let slot = self.held_slots.first;
            self.done(self.now_us, slot, DeliveryEnd::NeverStarted);
        }
        self.removed_numbers.clear();
        self.called = 0;
        for entry in &mut self.keys.all {
            entry.key.recall = Recall::default();
            entry.key.called_by_domain = 0;
        }
        self.check_keys_away(self.now_us);
        self.announce_changes();
    }

    /// Returns the microseconds until [`Gate::next`] has work; None if nothing is held or away.
    #[must_use]
    pub fn timeout_us(&self, now_us: u64) -> Option<u64> {
        let blocked_us = self.shortage.paused_until(now_us.max(self.now_us));
        let blocked_us = blocked_us.map(|until_us| until_us - now_us.max(self.now_us));
        let is_ready = self.ready_keys.first != NONE;
        if (is_ready && blocked_us.is_none())
            || !self.room_queue.is_empty()
            || !self.removed_numbers.is_empty()
        {
            return Some(0);
        }
        let ready_us = blocked_us.filter(|_| is_ready);
        let until = |since_us: u64, us: u64| {
            us.saturating_sub(now_us.max(self.now_us).saturating_sub(since_us))
        };
        let held = self.slots.get(self.held_slots.first as usize);
        let held_us = held.map(|slot| until(slot.since_us, HOLD_MAX_US));
        let look_us = (!self.keys_away.is_empty())
            .then(|| until(self.keys_away_checked_us, CHECK_KEYS_AWAY_US));
        let paused = self.pause_queue.peek();
        let paused_us =
            paused.map(|&Reverse((until_us, _))| until_us.saturating_sub(now_us.max(self.now_us)));
        // Where nothing is held or away, the next call is soon enough.
        let is_waiting = held_us.is_some() || look_us.is_some();
        let us_until_sites_apply = (self.keys_state == KeysState::Stale && is_waiting)
            .then(|| self.us_until_sites_apply(now_us));
        let poll_us = (!self.poll_queue.is_empty()).then(|| until(self.polled_us, self.poll_us));
        [ready_us, held_us, look_us, paused_us, us_until_sites_apply, poll_us]
            .into_iter()
            .flatten()
            .min()
    }

    /// Returns the parts of a command by the handle from [`Gate::next`].
    #[must_use]
    pub fn command(&self, command: u32) -> Parts<'_> {
        self.commands.parts(command)
    }

    /// Returns the key with this number.
    #[must_use]
    pub fn key(&self, at: u32) -> &Key {
        &self.keys.all[at as usize].key
    }

    /// Returns the key of this kind and name, if it has deliveries or is remembered.
    #[must_use]
    pub fn find_key(&self, kind: KeyKind, name: &[u8]) -> Option<&Key> {
        let at = self.keys.find(Keys::hash(kind, self.rules.hasher.hash(name)))?;
        let entry = &self.keys.all[at as usize];
        (entry.domain.key == at).then_some(&entry.key)
    }

    /// Iterates over all keys that have deliveries or are remembered.
    pub fn keys(&self) -> impl Iterator<Item = &Key> {
        (0u32..)
            .zip(&self.keys.all)
            .filter(|&(at, entry)| entry.state != EntryState::Free && entry.domain.key == at)
            .map(|(_, entry)| &entry.key)
    }

    /// Returns the number of held commands.
    #[must_use]
    pub fn held(&self) -> u32 {
        self.commands.used() as u32
    }

    /// Returns the number of calls that are not answered yet.
    #[must_use]
    pub fn called(&self) -> u32 {
        self.called
    }

    /// Returns the number of slots that run or hold a delivery.
    #[must_use]
    pub fn in_use(&self) -> u32 {
        self.in_use
    }

    /// Returns the number of slots, as far as it is known.
    #[must_use]
    pub fn capacity(&self) -> u32 {
        self.capacity
    }

    /// Returns the sums over all keys.
    #[must_use]
    pub fn totals(&self) -> Totals {
        self.totals
    }

    /// Returns the rules in force.
    #[must_use]
    pub fn rules(&self) -> &Rules {
        &self.rules
    }

    /// Returns the bytes that the variable parts occupy, without the rules.
    #[must_use]
    pub fn bytes(&self) -> usize {
        let keys: usize = self
            .keys
            .all
            .iter()
            .map(|entry| entry.key.name.capacity() + entry.key.error.capacity())
            .sum();
        keys + self.keys.all.capacity() * (size_of::<Entry>() + size_of::<Link>())
            + [&self.keys.free, &self.room_queue, &self.keys_away, &self.removed_numbers]
                .map(|list| list.capacity() * 4)
                .iter()
                .sum::<usize>()
            + self.keys.index.bytes()
            + self.keys.start_log.as_ref().map_or(0, StartLog::bytes)
            + self.commands.bytes()
    }

    /// Restores the sites that were seen before a restart. Call it before the first delivery.
    pub fn seen_mut(&mut self) -> &mut Seen {
        &mut self.rules.sites.seen
    }

    /// Returns the starts within the last hour and day; None only while the keys are rebuilt.
    #[must_use]
    pub fn start_log(&self) -> Option<&StartLog> {
        self.keys.start_log.as_ref()
    }

    /// The same, to restore what was started before a restart, and to note that it was written.
    pub fn start_log_mut(&mut self) -> Option<&mut StartLog> {
        self.keys.start_log.as_mut()
    }

    /// Returns the shares of this host.
    #[must_use]
    pub fn host_shares(&self) -> &HostShares {
        &self.keys.shares
    }

    /// The same, to change them; then call [`Gate::apply_host_shares`].
    pub fn host_shares_mut(&mut self) -> &mut HostShares {
        &mut self.keys.shares
    }

    /// Adds a key to them. There must be room ([`HostShares::start`]).
    pub fn list_host_share(&mut self, kind: KeyKind, name: &[u8], share: u32) {
        let hash = Keys::hash(kind, self.rules.hasher.hash(name));
        self.keys.shares.list(hash, share);
    }

    /// Returns the hasher that tables and routes must use.
    #[must_use]
    pub fn hasher(&self) -> crate::control::name::Hasher {
        self.rules.hasher
    }

    fn clock(&mut self, now_us: u64) -> u64 {
        self.now_us = self.now_us.max(now_us);
        self.now_us
    }

    /// Returns the entry of a delivery: that of its domain, or of its sender's relay.
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

    /// Returns the entry of a domain, which may have no slot yet. A domain longer than [`NAME_MAX`] is known by its
    /// end: no name server has it, so qmail-remote connects only if a route's suffix matches.
    fn domain(&mut self, domain: &[u8], now_us: u64) -> Result<u32, OutOfMemory> {
        let domain = known_part(domain);
        let hash = self.rules.hasher.hash(domain);
        if let Some(table) = &self.rules.table {
            table.prefetch(hash);
        }
        if let Some(at) = self.keys.find(Keys::hash(KeyKind::Domain, hash)) {
            self.keys.make_active(at);
            return Ok(at);
        }
        let guess = (self.typical_us > 0.0).then_some(self.typical_us * 1e-6);
        add_new(&mut self.keys, &self.rules, (KeyKind::Domain, hash, domain), now_us, guess)
    }

    fn make_idle_if_unused(&mut self, at: u32, now_us: u64) {
        if self.keys.all[at as usize].is_idle() {
            self.keys.make_idle(at, now_us);
        }
    }
}
