//! Commands that are held, and which key may start one when a place is free.

#![forbid(unsafe_code)]

use std::cmp::Reverse;

use super::Gate;
use crate::control::limit::Limit;
use crate::core::command::Parts;
use crate::core::rules::KeyKind;
use crate::core::slots::SlotState;
use crate::util::list::{NONE, append, unlink};
use crate::util::memory::OutOfMemory;

impl Gate {
    /// Whether one more delivery of this key may start.
    pub(super) fn admits(&self, at: u32, now_us: u64) -> bool {
        let key = &self.keys.all[at as usize].key;
        key.admits(now_us) && key.running < self.most_beside_partner(at)
    }

    pub(super) fn is_startable(&self, at: u32) -> bool {
        self.keys.all[at as usize].key.held > 0 && self.admits(at, self.now_us)
    }

    /// Puts a free slot to use, for a domain or for [`NONE`].
    pub(super) fn occupy(&mut self, slot: u32, domain: u32, state: SlotState, now_us: u64) {
        fault!();
        let entry = &mut self.slots[slot as usize];
        entry.state = state;
        entry.domain = domain;
        entry.since_us = now_us;
        entry.held_ms = 0;
        self.in_use += 1;
        self.capacity = self.capacity.max(self.in_use);
        if domain != NONE {
            self.keys.all[domain as usize].domain.slots += 1;
        }
    }

    /// The opposite of [`Gate::occupy`]. Afterwards the domain may be unused; the caller makes it idle.
    pub(super) fn vacate(&mut self, slot: u32) {
        fault!();
        let entry = &mut self.slots[slot as usize];
        entry.state = SlotState::Free;
        entry.command = NONE;
        let domain = std::mem::replace(&mut entry.domain, NONE);
        self.in_use -= 1;
        if domain != NONE {
            self.keys.all[domain as usize].domain.slots -= 1;
        }
    }

    /// Starts a delivery in a free slot; it takes a place of the domain's key.
    pub(super) fn start(&mut self, slot: u32, domain: u32, now_us: u64) {
        self.occupy(slot, domain, SlotState::Running, now_us);
        fault!();
        let of = self.keys.all[domain as usize].domain.key;
        let key = &mut self.keys.all[of as usize].key;
        key.pace.run(now_us, key.running);
        let entry = &mut self.slots[slot as usize];
        (entry.beside, entry.started_in) = (key.running, key.learned.started_in(now_us));
        key.running += 1;
        key.peak = key.peak.max(key.running);
        if key.start_rate.is_some() {
            self.note_start(of, now_us);
        }
        self.announce(of);
    }

    /// Counts a start of a key with rates. A site's members and its candidates have their starts in common.
    fn note_start(&mut self, at: u32, now_us: u64) {
        let key = &mut self.keys.all[at as usize].key;
        key.start_rate.started(now_us);
        let id = key.start_rate.id();
        if id != 0
            && let Some(log) = &mut self.keys.start_log
        {
            log.started(&mut key.start_rate, id, &key.cap.rates, now_us);
        }
        let start_rate = key.start_rate;
        if let Some(partner) = self.partner(at) {
            self.keys.all[partner as usize].key.start_rate = start_rate;
        }
    }

    /// Whether the thresholds allow one more held command of this key. A command that was not called may be held only
    /// if there is room for all mail of the key that is away as well; otherwise it would overtake that mail.
    pub(super) fn may_hold(&mut self, at: u32, was_called: bool, now_us: u64) -> bool {
        let key = &self.keys.all[at as usize].key;
        let left = self.slots_not_running().saturating_sub(2 * (self.held() + 1));
        if 2 * (key.held + 1) > ALPHA * left {
            return false;
        }
        if key.recall.away() > 0 && !was_called {
            let uncalled = key.recall.away() - key.recall.called();
            return self.room(at, now_us) > uncalled;
        }
        if key.held >= key.rate_reach(now_us) {
            return false;
        }
        match key.limit() {
            Limit::AtMost(limit) if limit > 0 => key.held < key.pace.reach(limit).max(limit),
            // Limit 0: closed for an unknown time.
            _ => true,
        }
    }

    /// Holds a command.
    ///
    /// # Errors
    /// No memory: nothing has changed.
    pub(super) fn hold(
        &mut self,
        slot: u32,
        domain: u32,
        parts: &Parts<'_>,
        now_us: u64,
    ) -> Result<(), OutOfMemory> {
        let command = self.commands.store(parts)?;
        self.occupy(slot, domain, SlotState::Held, now_us);
        fault!();
        self.slots[slot as usize].command = command;
        append(&mut self.held_slots, slot, &mut self.slots, |slot| &mut slot.of_all);
        let at = self.keys.all[domain as usize].domain.key;
        let key = &mut self.keys.all[at as usize].key;
        append(&mut key.held_slots, slot, &mut self.slots, |slot| &mut slot.of_key);
        key.held += 1;
        key.held_ever += 1;
        self.totals.held += 1;
        fault!();
        self.make_ready(at);
        self.queue_for_room(at);
        Ok(())
    }

    /// Frees a held slot. Its command is released; it can be read until the next `store`.
    pub(super) fn release_held(&mut self, slot: u32, at: u32) -> u32 {
        fault!();
        unlink(&mut self.held_slots, slot, &mut self.slots, |slot| &mut slot.of_all);
        fault!();
        let key = &mut self.keys.all[at as usize].key;
        unlink(&mut key.held_slots, slot, &mut self.slots, |slot| &mut slot.of_key);
        key.held -= 1;
        // A ready key has held commands, so it is active: its link is in no other list.
        if key.held == 0 && std::mem::take(&mut key.in_ready_keys) {
            unlink(&mut self.ready_keys, at, &mut self.keys.links, |link| link);
        }
        let command = self.slots[slot as usize].command;
        self.commands.release(command);
        fault!();
        self.vacate(slot);
        fault!();
        command
    }

    /// Puts a key with held commands where it belongs: among the ready keys, or where it waits.
    pub(super) fn make_ready(&mut self, at: u32) {
        let key = &self.keys.all[at as usize].key;
        if key.in_ready_keys || key.held == 0 || key.blocked {
            return;
        }
        let is_startable = self.is_startable(at);
        let key = &mut self.keys.all[at as usize].key;
        if is_startable {
            key.in_ready_keys = true;
            append(&mut self.ready_keys, at, &mut self.keys.links, |link| link);
        } else if let Some(until_us) = key.starts_from(self.now_us) {
            // Without memory the commands wait until their hold ends.
            self.queue_until(at, until_us);
        } else if key.kind == KeyKind::Candidates
            && !key.in_waiting_candidates
            && key.admits(self.now_us)
            && self.waiting_candidates.try_reserve(1).is_ok()
        {
            key.in_waiting_candidates = true;
            self.waiting_candidates.push(at);
        }
    }

    /// Looks at a key again at this time, or earlier if it is in the queue for an earlier time. Without memory it is
    /// not queued.
    pub(super) fn queue_until(&mut self, at: u32, until_us: u64) {
        if until_us >= self.keys.all[at as usize].key.queued_us {
            return;
        }
        if self.pause_queue.len() > 2 * self.keys.all.len() {
            self.drop_stale_pauses();
        }
        if self.pause_queue.try_reserve(1).is_ok() {
            self.keys.all[at as usize].key.queued_us = until_us;
            self.pause_queue.push(Reverse((until_us, at)));
        }
    }

    /// Leaves one entry of each queued key in the queue. It allocates nothing. Afterwards at least as many entries can
    /// come as there are keys before it is necessary again.
    fn drop_stale_pauses(&mut self) {
        let mut entries = std::mem::take(&mut self.pause_queue).into_vec();
        let keys = &self.keys.all;
        entries.retain(|&Reverse((until_us, at))| keys[at as usize].key.queued_us == until_us);
        entries.sort_unstable();
        entries.dedup();
        self.pause_queue = entries.into();
    }

    /// The next key whose time in the queue has come.
    pub(super) fn next_queued(&mut self, now_us: u64) -> Option<u32> {
        while let Some(&Reverse((until_us, at))) = self.pause_queue.peek()
            && until_us <= now_us
        {
            self.pause_queue.pop();
            let key = &mut self.keys.all[at as usize].key;
            if key.queued_us == until_us {
                key.queued_us = u64::MAX;
                return Some(at);
            }
        }
        None
    }

    /// Makes candidates ready for which the members of their site have left a place, because a member's delivery ended
    /// or no member waits any more.
    pub(super) fn check_waiting_candidates(&mut self) {
        let mut index = 0;
        while let Some(&at) = self.waiting_candidates.get(index) {
            let key = &self.keys.all[at as usize].key;
            // This entry may belong to another key now.
            if key.in_waiting_candidates && key.held > 0 && !self.is_startable(at) {
                index += 1;
                continue;
            }
            self.waiting_candidates.swap_remove(index);
            if std::mem::take(&mut self.keys.all[at as usize].key.in_waiting_candidates) {
                self.make_ready(at);
            }
        }
    }

    /// The number of slots that run nothing.
    pub(super) fn slots_not_running(&self) -> u32 {
        (self.capacity + self.held()).saturating_sub(self.in_use)
    }
}

/// A key may hold this many times what the others leave of what all keys may hold.
pub(super) const ALPHA: u32 = 4;
