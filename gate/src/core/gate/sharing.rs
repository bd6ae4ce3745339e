//! Places that are shared with the other spawners of the queue.

#![forbid(unsafe_code)]

use super::Gate;
use crate::core::keys::{Entry, Keys, Place};
use crate::core::share::{Looked, Others, Spawners, Take, Tells, Wants};

/// A place that another spawner gives back is noticed within this time, in microseconds; half of it on average. With no
/// time between, two that stand in each other's way would do so again. It costs 50 wake-ups a second while mail waits
/// for what others have: 0.9 us each with one such key, 23 us with as many as are looked at in one go (4 spawners), a
/// thousandth of a processor.
const POLL_US: std::ops::RangeInclusive<u64> = 10_000..=30_000;

/// The most columns of other spawners that are read each time: 3 of 42 keys, 21 of 6. The other keys have their turn at
/// the next times.
const POLL_READS: u32 = 128;

impl Gate {
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
    pub(super) fn own(&self, at: u32, running: u32) -> Tells {
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
    pub(super) fn tell(&mut self, at: u32) {
        if self.spawners.is_some() {
            self.tell_of(at, self.keys.all[at as usize].key.running);
        }
    }

    pub(super) fn tell_of(&mut self, at: u32, running: u32) {
        let Entry { domain, key, place, .. } = &self.keys.all[at as usize];
        let own = match key.common_limit() {
            Some(_) if domain.key == at && *place != Place::Nowhere => self.own(at, running),
            _ => Tells::default(),
        };
        let key = &mut self.keys.all[at as usize].key;
        let is_something = own != Tells::default();
        if is_something || key.told {
            key.told = is_something;
            if let Some(spawners) = &mut self.spawners {
                spawners.tell(key.kind, &key.name, own);
            }
        }
    }

    /// Tells them again of what they have been told: whether it wants more may have changed by other things than its
    /// own deliveries.
    pub(super) fn tell_all(&mut self) {
        if self.spawners.is_none() {
            return;
        }
        for at in 0..self.keys.all.len() as u32 {
            if self.keys.all[at as usize].key.told {
                self.tell(at);
            }
        }
    }

    /// The keys have been made anew: first what there is now, so that nothing is missing meanwhile.
    pub(super) fn retell(&mut self, old: &Keys) {
        if self.spawners.is_none() {
            return;
        }
        for at in 0..self.keys.all.len() as u32 {
            self.tell(at);
        }
        for key in old.all.iter().map(|entry| &entry.key).filter(|key| key.told) {
            let hash = Keys::hash(key.kind, self.rules.hasher.hash(&key.name));
            let now = self.keys.find(hash).map(|at| self.key(at));
            if now.is_none_or(|now| !now.told)
                && let Some(spawners) = &mut self.spawners
            {
                spawners.tell(key.kind, &key.name, Tells::default());
            }
        }
    }

    /// Whether a key that has a free place of its own may take one of all spawners' places. Then they know.
    #[inline]
    pub(super) fn takes_place(&mut self, at: u32, now_us: u64) -> bool {
        self.spawners.is_none() || self.takes_common_place(at, now_us)
    }

    pub(super) fn takes_common_place(&mut self, at: u32, now_us: u64) -> bool {
        let key = &self.keys.all[at as usize].key;
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
    pub(super) fn turn(&mut self, at: u32, limit: u32, now_us: u64) -> Take {
        let key = &mut self.keys.all[at as usize].key;
        let others = match &mut self.spawners {
            Some(spawners) => spawners.others(key.kind, &key.name),
            None => Others::default(),
        };
        key.elsewhere = others.running;
        key.turn.take(now_us, limit, key.running, &others)
    }

    /// It waits for what others have. Without memory to look for that: until its next own delivery ends or the hold
    /// does.
    pub(super) fn block(&mut self, at: u32) {
        let key = &mut self.keys.all[at as usize].key;
        key.blocked = true;
        if !key.polled && self.polled.try_reserve(1).is_ok() {
            key.polled = true;
            if self.polled.is_empty() {
                self.poll_next(self.now_us);
            }
            self.polled.push_back(at);
        }
    }

    pub(super) fn poll_next(&mut self, now_us: u64) {
        self.polled_us = now_us;
        let span_us = POLL_US.end() - POLL_US.start();
        self.poll_us = POLL_US.start() + self.random.next() % (span_us + 1);
    }

    /// Looks whether there is a place for keys that wait for one.
    pub(super) fn poll(&mut self, now_us: u64) {
        self.poll_next(now_us);
        let others = self.spawners.as_ref().map_or(0, |spawners| spawners.alive());
        let most = (POLL_READS / others.max(1)).max(1) as usize;
        for _ in 0..most.min(self.polled.len()) {
            let Some(at) = self.polled.pop_front() else { return };
            let key = &self.keys.all[at as usize].key;
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
            let key = &mut self.keys.all[at as usize].key;
            (key.polled, key.blocked) = (false, false);
            self.make_ready(at);
            self.look_for_room(at);
        }
    }
}
