//! New rules, and giving memory back: the keys are rebuilt.

#![forbid(unsafe_code)]

use super::{Gate, KeysState};
use crate::control::limit::{Learning, Limit};
use crate::control::route::Routes;
use crate::control::sender::{Reads, Senders};
use crate::control::site::Map;
use crate::control::table::Table;
use crate::core::key::{Key, RatePauses};
use crate::core::keys::{Domain, Entry, EntryState, Keys, add_entry};
use crate::core::rules::KeyKind;
use crate::core::slots::{Slot, SlotState};
use crate::report::replies::Replies;
use crate::util::list::{EMPTY, NONE, append};
use crate::util::memory::{self, OutOfMemory};

/// An empty list with room for more keys than this gives its memory back.
const KEPT_ENTRIES: usize = 64;

impl Gate {
    /// Gives memory back and forgets old keys. Call it about once a second.
    ///
    /// # Errors
    /// No memory to give memory back; nothing has changed.
    pub fn tidy(&mut self, now_us: u64) -> Result<(), OutOfMemory> {
        let now_us = self.clock(now_us);
        self.commands.trim();
        self.announce_changes();
        self.keys.forget_old(now_us);
        for list in [&mut self.room_queue, &mut self.keys_away, &mut self.removed_numbers] {
            if list.is_empty() && list.capacity() > KEPT_ENTRIES {
                *list = Vec::new();
            }
        }
        if self.keys.all.len() > 128 && self.keys.index.len() * 4 < self.keys.all.len() {
            self.rebuild(now_us)?;
        }
        if self.keys.index.is_empty() {
            // No key is left: there was no delivery for an hour.
            let forgotten = std::mem::take(&mut self.keys.forgotten);
            let start_log = self.keys.start_log.take();
            let shares = std::mem::take(&mut self.keys.shares);
            self.keys = Keys { forgotten, start_log, shares, ..Keys::new(self.keys.last_number) };
            self.room_queue.clear();
            self.keys_away.clear();
            self.pause_queue.clear();
            self.waiting_candidates.clear();
            self.poll_queue.clear();
        }
        Ok(())
    }

    /// Puts another table into force, made with [`Gate::hasher`]; None: no limits at all. Deliveries that run go on and
    /// count under their new keys. Held commands stay held, and start as soon as their new key has a place.
    ///
    /// # Errors
    /// No memory: the old table stays.
    pub fn set_table(&mut self, table: Option<Table>, now_us: u64) -> Result<(), OutOfMemory> {
        let now_us = self.clock(now_us);
        if table.as_ref().is_some_and(Table::has_rates) {
            self.keys.forgotten.prepare()?;
        }
        // The starts of keys that had no rates are not known.
        self.keys.forgotten.nothing_known_before(now_us);
        let old = std::mem::replace(&mut self.rules.table, table);
        self.rebuild(now_us).inspect_err(|_| self.rules.table = old)
    }

    /// Puts other routes into force, made with [`Gate::hasher`].
    ///
    /// # Errors
    /// No memory: the old routes stay.
    pub fn set_routes(&mut self, routes: Routes, now_us: u64) -> Result<(), OutOfMemory> {
        let now_us = self.clock(now_us);
        let old = std::mem::replace(&mut self.rules.routes, routes);
        self.rebuild(now_us).inspect_err(|_| self.rules.routes = old)
    }

    /// Puts other senders into force, made with [`Gate::hasher`]. Deliveries that run or are held stay with the relay
    /// that they had: a qmail-remote that runs has read the file already, and a held delivery is one more or less.
    pub fn set_senders(&mut self, senders: Senders) {
        self.rules.senders = senders;
    }

    /// Sets which files the tree's qmail-remote reads. Call it before the first delivery.
    pub fn set_reads(&mut self, reads: Reads) {
        self.rules.reads = reads;
    }

    /// Puts another map of sites into force, made with [`Gate::hasher`].
    ///
    /// # Errors
    /// No memory: the old map stays.
    pub fn set_map(&mut self, map: Map, now_us: u64) -> Result<(), OutOfMemory> {
        let now_us = self.clock(now_us);
        let old = std::mem::replace(&mut self.rules.sites.map, map);
        self.rebuild(now_us).inspect_err(|_| self.rules.sites.map = old)
    }

    /// Puts other lines of control/concurrencyreplies into force. The pauses of the old ones end: the operator may have
    /// changed the file because a line was wrong.
    pub fn set_replies(&mut self, replies: Replies, now_us: u64) {
        self.clock(now_us);
        self.rules.replies = replies;
        self.pause_queue.clear();
        for at in 0..self.keys.all.len() as u32 {
            let Entry { key, state, .. } = &mut self.keys.all[at as usize];
            (key.pause, key.rate_pauses) = (None, RatePauses::default());
            key.queued_us = u64::MAX;
            if *state == EntryState::Active {
                self.make_ready(at);
                self.queue_for_room(at);
            }
        }
    }

    /// Puts the shares of this host into force.
    pub fn apply_host_shares(&mut self, now_us: u64) {
        self.clock(now_us);
        self.keys.apply_shares();
        for at in 0..self.keys.all.len() as u32 {
            if self.keys.all[at as usize].state == EntryState::Active {
                self.make_ready(at);
                self.queue_for_room(at);
            }
        }
    }

    /// Sets the name that qmail-remote gives with HELO, which servers repeat. Without memory it is empty.
    pub fn set_helo(&mut self, name: &[u8]) {
        let helo = &mut self.rules.helo;
        helo.clear();
        if helo.try_reserve_exact(name.len()).is_ok() {
            helo.extend_from_slice(name);
        }
    }

    /// Rebuilds the keys: for other rules, or to give memory back.
    ///
    /// # Errors
    /// No memory: nothing has changed.
    pub(super) fn rebuild(&mut self, now_us: u64) -> Result<(), OutOfMemory> {
        let rules = &self.rules;
        let mut keys = Keys::new(self.keys.last_number);
        let mut moved: Vec<u32> = memory::filled(NONE, self.keys.all.len())?;
        // Idle entries first, the oldest first, so that they keep their order; then those with slots. Keys of relays
        // and groups come with the first domain that counts under them.
        let idle = self.keys.idle(self.keys.recent).chain(self.keys.idle(self.keys.contended));
        let in_use = (0u32..)
            .zip(&self.keys.all)
            .filter(|(_, entry)| entry.domain.slots > 0 || entry.in_away_list)
            .map(|(at, _)| at);
        for old in idle.chain(in_use) {
            let Entry { domain, key, .. } = &self.keys.all[old as usize];
            let hash = rules.hasher.hash(&key.name);
            // A relay of senders is like a domain. Other keys come with their domains, or are only remembered.
            let has_own = domain.slots > 0 || domain.key != old;
            moved[old as usize] =
                if key.kind == KeyKind::Domain || (key.kind == KeyKind::Relay && has_own) {
                    add_entry(&mut keys, rules, (key.kind, hash, &key.name), now_us, None)?
                } else if let Some(cap) = rules.cap_of(key.kind, &key.name) {
                    keys.activate(key.kind, hash, &key.name, cap, now_us, None)?
                } else {
                    NONE
                };
        }
        for (old, Entry { key, state, .. }) in (0u32..).zip(&self.keys.all) {
            if *state == EntryState::Active && moved[old as usize] == NONE {
                let hash = Keys::hash(key.kind, rules.hasher.hash(&key.name));
                moved[old as usize] = keys.find(hash).unwrap_or(NONE);
            }
        }

        // A domain of a site keeps its mail away under its own number.
        let keeps = |domain: &Domain, at: u32| domain.key == at || domain.standing.is_some();
        let is_gone = |old: &Key, at: u32, keys: &Keys| {
            let now = keys.all.get(at as usize);
            old.recall.away() > 0 && now.is_none_or(|now| !keeps(&now.domain, at))
        };
        let away = self.keys.all.iter().filter(|entry| entry.key.recall.away() > 0).count();
        self.removed_numbers.try_reserve(away)?;
        self.keys_away.try_reserve(away)?;

        // Nothing fails from here on.
        for (old, &at) in self.keys.all.iter().zip(&moved) {
            if is_gone(&old.key, at, &keys) {
                self.removed_numbers.push(old.key.number);
            }
        }
        keys.forgotten = std::mem::take(&mut self.keys.forgotten);
        keys.start_log = self.keys.start_log.take();
        keys.shares = std::mem::take(&mut self.keys.shares);
        keys.apply_shares();
        for old in &self.keys.all {
            keys.forgotten.forget(old.hash, &old.key.start_rate);
        }
        keys.forget_starts();
        self.keys_away.clear();
        self.room_queue.clear();
        self.called = 0;
        for (old, &at) in self.keys.all.iter_mut().zip(&moved) {
            let Some(entry) = keys.all.get_mut(at as usize) else { continue };
            entry.idle_since_us = old.idle_since_us;
            if keeps(&entry.domain, at) {
                let was_of_site = old.domain.standing.is_some();
                let Entry { domain, key, in_away_list, .. } = entry;
                let old = &mut old.key;
                old.pace.run(now_us, old.running);
                std::mem::swap(&mut key.pace, &mut old.pace);
                key.error = std::mem::take(&mut old.error);
                (key.busy, key.done, key.held_ever, key.peak) =
                    (old.busy, old.done, old.held_ever, old.peak);
                (key.recall, key.number) = (old.recall, old.number);
                (key.pause, key.rate_pauses) = (old.pause, old.rate_pauses);
                // The deliveries of a site's domain start at the rate of the site.
                if domain.key == at {
                    key.start_rate = old.start_rate.with(&key.cap.rates, now_us);
                }
                // A key that no longer learns forgets what it has learned.
                if (key.cap.learning == Learning::On || old.cap.learning == Learning::Fixed)
                    && domain.standing.is_some() == was_of_site
                {
                    key.learned = old.learned;
                }
                if key.cap.limit == Limit::AtMost(0) {
                    key.recall.cancel();
                } else if key.recall.away() > 0 {
                    *in_away_list = true;
                    self.keys_away.push(at);
                }
                let (of, called) = (domain.key, key.recall.called());
                self.called += called;
                if of != at {
                    keys.all[of as usize].key.called_by_domain += called;
                }
            }
        }
        keys.join_starts();
        keys.attach_starts(now_us);
        for slot in &mut self.slots {
            if slot.state == SlotState::Free || slot.domain == NONE {
                continue;
            }
            slot.domain = moved[slot.domain as usize];
            let domain = &mut keys.all[slot.domain as usize].domain;
            domain.slots += 1;
            let of = domain.key;
            if slot.state == SlotState::Running {
                keys.all[of as usize].key.running += 1;
            }
        }
        let mut at = self.held_slots.first;
        while at != NONE {
            let Slot { domain, of_all, .. } = self.slots[at as usize];
            let of = keys.all[domain as usize].domain.key;
            let key = &mut keys.all[of as usize].key;
            key.held += 1;
            key.held_ever = key.held_ever.max(1);
            append(&mut key.held_slots, at, &mut self.slots, |slot| &mut slot.of_key);
            at = of_all.next;
        }
        let old = std::mem::replace(&mut self.keys, keys);
        self.keys_state = KeysState::Current;
        self.ready_keys = EMPTY;
        self.pause_queue.clear();
        self.waiting_candidates.clear();
        self.poll_queue.clear();
        self.announce_rebuilt(&old);
        for at in 0..self.keys.all.len() as u32 {
            let entry = &self.keys.all[at as usize];
            let idle_since_us = entry.idle_since_us;
            if entry.state == EntryState::Active && entry.is_idle() {
                self.keys.make_idle(at, idle_since_us);
            } else {
                self.make_ready(at);
                self.queue_for_room(at);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::answer::{Answer, DeliveryEnd};
    use crate::core::command::Parts;

    #[test]
    fn a_domain_of_a_site_has_no_rate_of_its_own_after_a_reload() {
        for text in [&b"192.0.2.0/24:20:site:6/m\n"[..], b"192.0.2.0/24:20:site:100/h\n"] {
            let mut gate = Gate::new(10, 10, 1).unwrap();
            let table = |gate: &Gate| Some(Table::parse(text, gate.hasher()).unwrap().0);
            gate.set_table(table(&gate), 0).unwrap();
            let parts = Parts::new(&[b"1/1\0", b"s@x.example\0", b"u@member.example\0"]).unwrap();
            assert_eq!(gate.ask(0, 1, &parts), Answer::Go);
            let report = b"r\0K192.0.2.7 accepted message.\nRemote host said: 250 ok\n\0";
            gate.done(0, 1, DeliveryEnd::Reported(report));
            let now_us = 60_000_000;
            let _ = gate.next(now_us);
            for _ in 0..2 {
                let rates = |kind| {
                    let has_kind = move |entry: &&Entry| entry.key.kind == kind;
                    let mut entries = gate.keys.all.iter().filter(has_kind);
                    entries.next().map(|entry| entry.key.start_rate.is_some())
                };
                assert_eq!(rates(KeyKind::Group), Some(true));
                assert_eq!(rates(KeyKind::Domain), Some(false));
                gate.set_table(table(&gate), now_us).unwrap();
            }
        }
    }
}
