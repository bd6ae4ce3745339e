//! Places that the spawners of a queue share. [`crate::core::other_spawners`] has the rules.

#![forbid(unsafe_code)]

use super::Gate;
use crate::core::keys::{Entry, EntryState, Keys};
use crate::core::other_spawners::{
    Announcement, Demand, OtherSpawners, PeerCheck, PeerTotals, PlaceDecision,
};

/// The time between two polls for places that other spawners gave back, in microseconds. It is random, so that two
/// spawners that took a place at the same moment do not do so again. While mail waits for such places, polling costs 50
/// wake-ups a second: 0.9 us each with one such key, 23 us with as many as one poll checks (4 spawners). That is a
/// thousandth of a processor.
const POLL_US: std::ops::RangeInclusive<u64> = 10_000..=30_000;

/// The most columns that one poll reads: those of 42 keys with 3 other spawners, of 6 keys with 21. The other keys
/// follow at the next polls.
const POLL_READS: u32 = 128;

impl Gate {
    /// From now on the spawners of the queue share the places of each key.
    pub fn share(&mut self, spawners: Box<dyn OtherSpawners>) {
        self.other_spawners = Some(spawners);
        self.announce_changes();
    }

    /// The other spawners, if the queue may have any.
    #[must_use]
    pub fn other_spawners(&self) -> Option<&dyn OtherSpawners> {
        self.other_spawners.as_deref()
    }

    /// Checks which other spawners there are. Call it about once a second.
    pub fn check_spawners(&mut self) {
        let Some(spawners) = &mut self.other_spawners else { return };
        if spawners.check() == PeerCheck::AnnounceAgain {
            for at in 0..self.keys.all.len() as u32 {
                self.announce(at);
            }
        }
    }

    /// Withdraws all announcements, for when the gate itself may be broken.
    pub fn leave_spawners(&mut self) {
        if let Some(mut spawners) = self.other_spawners.take() {
            spawners.leave();
        }
        self.poll_queue.clear();
    }

    /// What this spawner announces of a key with this many running.
    pub(super) fn own_announcement(&self, at: u32, running: u32) -> Announcement {
        let key = self.key(at);
        let has_more = key.held > 0 || (key.recall.away() > 0 && self.in_use < self.capacity);
        let demand = match has_more && self.admits(at, self.now_us) {
            true => Demand::More,
            false => Demand::Nothing,
        };
        Announcement { running, demand }
    }

    /// Announces to the other spawners what this one has of a key.
    #[inline]
    pub(super) fn announce(&mut self, at: u32) {
        if self.other_spawners.is_some() {
            self.announce_running(at, self.keys.all[at as usize].key.running);
        }
    }

    /// The same, with another number of running deliveries.
    pub(super) fn announce_running(&mut self, at: u32, running: u32) {
        let Entry { domain, key, state, .. } = &self.keys.all[at as usize];
        let own = match key.common_limit() {
            Some(_) if domain.key == at && *state != EntryState::Free => {
                self.own_announcement(at, running)
            }
            _ => Announcement::default(),
        };
        let key = &mut self.keys.all[at as usize].key;
        let is_something = own != Announcement::default();
        if is_something || key.announced {
            key.announced = is_something;
            if let Some(spawners) = &mut self.other_spawners {
                spawners.announce(key.kind, &key.name, own);
            }
        }
    }

    /// Announces again what was announced: whether a key wants more may have changed by other events than its own
    /// deliveries.
    pub(super) fn announce_changes(&mut self) {
        if self.other_spawners.is_none() {
            return;
        }
        for at in 0..self.keys.all.len() as u32 {
            if self.keys.all[at as usize].key.announced {
                self.announce(at);
            }
        }
    }

    /// Announces the keys after a rebuild, and then withdraws those that are gone. In this order nothing is missing in
    /// between.
    pub(super) fn announce_rebuilt(&mut self, old: &Keys) {
        if self.other_spawners.is_none() {
            return;
        }
        for at in 0..self.keys.all.len() as u32 {
            self.announce(at);
        }
        for key in old.all.iter().map(|entry| &entry.key).filter(|key| key.announced) {
            let hash = Keys::hash(key.kind, self.rules.hasher.hash(&key.name));
            let now = self.keys.find(hash).map(|at| self.key(at));
            if now.is_none_or(|now| !now.announced)
                && let Some(spawners) = &mut self.other_spawners
            {
                spawners.announce(key.kind, &key.name, Announcement::default());
            }
        }
    }

    /// Whether a key with a free place of its own may take one of the shared places. If so, the others know it.
    #[inline]
    pub(super) fn takes_shared_place(&mut self, at: u32, now_us: u64) -> bool {
        self.other_spawners.is_none() || self.takes_place_of_all(at, now_us)
    }

    /// The same, where there may be other spawners.
    pub(super) fn takes_place_of_all(&mut self, at: u32, now_us: u64) -> bool {
        let key = &self.keys.all[at as usize].key;
        let Some(limit) = key.common_limit() else { return true };
        if key.blocked {
            return false;
        }
        self.announce_running(at, key.running + 1);
        if self.decide_place(at, limit, now_us) == PlaceDecision::Take {
            return true;
        }
        self.announce(at);
        self.wait_for_other_spawners(at);
        false
    }

    /// Reads what the others have of a key now, and decides about a free place.
    pub(super) fn decide_place(&mut self, at: u32, limit: u32, now_us: u64) -> PlaceDecision {
        let key = &mut self.keys.all[at as usize].key;
        let others = match &mut self.other_spawners {
            Some(spawners) => spawners.totals(key.kind, &key.name),
            None => PeerTotals::default(),
        };
        key.running_elsewhere = others.running;
        key.place_turn.take(now_us, limit, key.running, &others)
    }

    /// The key waits for places of other spawners. Without memory for the poll it waits until one of its own deliveries
    /// or the hold ends.
    pub(super) fn wait_for_other_spawners(&mut self, at: u32) {
        let key = &mut self.keys.all[at as usize].key;
        key.blocked = true;
        if !key.in_poll_queue && self.poll_queue.try_reserve(1).is_ok() {
            key.in_poll_queue = true;
            if self.poll_queue.is_empty() {
                self.plan_poll(self.now_us);
            }
            self.poll_queue.push_back(at);
        }
    }

    /// Draws the time of the next poll.
    pub(super) fn plan_poll(&mut self, now_us: u64) {
        self.polled_us = now_us;
        let span_us = POLL_US.end() - POLL_US.start();
        self.poll_us = POLL_US.start() + self.random.next() % (span_us + 1);
    }

    /// Checks whether there are places now for the keys that wait for other spawners.
    pub(super) fn poll_waiting_keys(&mut self, now_us: u64) {
        self.plan_poll(now_us);
        let others = self.other_spawners.as_ref().map_or(0, |spawners| spawners.alive_count());
        let most = (POLL_READS / others.max(1)).max(1) as usize;
        for _ in 0..most.min(self.poll_queue.len()) {
            let Some(at) = self.poll_queue.pop_front() else { return };
            let key = &self.keys.all[at as usize].key;
            // This entry may belong to another key now.
            if !key.in_poll_queue {
                continue;
            }
            let waits = key.blocked && (key.held > 0 || key.recall.away() > 0);
            let limit = key.common_limit().filter(|_| waits && self.admits(at, now_us));
            if let Some(limit) = limit
                && self.decide_place(at, limit, now_us) != PlaceDecision::Take
            {
                self.announce(at);
                self.poll_queue.push_back(at);
                continue;
            }
            let key = &mut self.keys.all[at as usize].key;
            (key.in_poll_queue, key.blocked) = (false, false);
            self.make_ready(at);
            self.queue_for_room(at);
        }
    }
}
