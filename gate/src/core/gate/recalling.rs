//! Mail that is sent away, and how much of it has room here again.

#![forbid(unsafe_code)]

use super::holding::ALPHA;
use super::{Gate, HOLD_MAX_US, LOOK_US};
use crate::control::limit::Limit;
use crate::core::answer::{Busy, Call, Cause, SLOTS_MAX, SUSPENDED_MAX_SECS, Why};
use crate::core::key::most;
use crate::core::keys::Entry;
use crate::util::memory;

impl Gate {
    /// A command for a domain, which counts under the key `at`, has come. True if it is taken for one that was called.
    pub(super) fn arrived(&mut self, domain: u32, at: u32, now_us: u64) -> bool {
        if domain != at && self.keys.all[domain as usize].key.recall.arrived(now_us) {
            self.called -= 1;
            self.keys.all[at as usize].key.parted_called -= 1;
            return true;
        }
        let was_called = self.keys.all[at as usize].key.recall.arrived(now_us);
        self.called -= u32::from(was_called);
        was_called
    }

    pub(super) fn next_call(&mut self, now_us: u64) -> Option<Call> {
        if let Some(number) = self.gone.pop() {
            return Some(Call { number, most: u32::MAX });
        }
        if now_us.saturating_sub(self.looked_us) >= LOOK_US {
            self.look_at_absent(now_us);
        }
        while let Some(at) = self.lacking.pop() {
            self.keys.all[at as usize].in_room_queue = false;
            let most = self.room(at, now_us);
            let admits = self.admits(at, now_us);
            let Entry { domain, key, .. } = &mut self.keys.all[at as usize];
            // In portions, unless a place is idle: each is a report to qmail-send.
            let is_little = most < (key.held + key.recall.called()) / 8;
            if is_little && !admits {
                continue;
            }
            let (number, of) = (key.number, domain.key);
            let most = key.recall.call(most, now_us);
            if most > 0 {
                self.called += most;
                if of != at {
                    self.keys.all[of as usize].key.parted_called += most;
                }
                return Some(Call { number, most });
            }
        }
        None
    }

    /// Calls that are in vain come to their end, and keys that lacked mail when there were no slots have another look.
    pub(super) fn look_at_absent(&mut self, now_us: u64) {
        self.looked_us = now_us;
        let mut index = 0;
        while let Some(&at) = self.absent.get(index) {
            let Entry { domain, key, .. } = &mut self.keys.all[at as usize];
            let called = key.recall.called();
            let of = domain.key;
            if key.recall.expire(now_us, &self.heard) {
                self.called -= called;
                if of != at {
                    self.keys.all[of as usize].key.parted_called -= called;
                }
            }
            let entry = &mut self.keys.all[at as usize];
            if entry.key.recall.away() == 0 {
                entry.in_away_list = false;
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
    pub(super) fn look_again(&mut self, now_us: u64) {
        for &at in &self.absent {
            self.keys.all[at as usize].key.recall.look_again(now_us);
        }
    }

    /// To be called when there may be room for mail of this key that is away.
    pub(super) fn look_for_room(&mut self, at: u32) {
        let entry = &mut self.keys.all[at as usize];
        if entry.in_away_list && !entry.in_room_queue && memory::push(&mut self.lacking, at).is_ok()
        {
            entry.in_room_queue = true;
        }
    }

    /// How much mail of this key that is away has room here: for its idle places, where it starts at once, and to be
    /// held. What is held keeps to the thresholds exactly as in [`Gate::may_hold`]: one too many would be sent away and
    /// called again without end.
    pub(super) fn room(&mut self, at: u32, now_us: u64) -> u32 {
        if self.shortage.paused_until(now_us).is_some() {
            return 0;
        }
        let Entry { domain, key, .. } = &self.keys.all[at as usize];
        if domain.standing.is_some() {
            let (of, taken) = (domain.key, domain.slots + key.recall.called());
            // Of a site's domain, what it may have, as far as the site has room.
            if self.waits_alone(at, now_us).is_some() {
                return 0;
            }
            let room = self.room(of, now_us);
            return self.part(at).saturating_sub(taken).min(room);
        }
        let others = self.held() + self.called;
        let slots = self.not_running();
        let beside_partner = self.beside_partner(at);
        let key = &mut self.keys.all[at as usize].key;
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

    /// So many that are neither started nor held.
    pub(super) fn not_now(&mut self, at: u32, now_us: u64, number: u32) -> Busy {
        let key = &self.keys.all[at as usize].key;
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

    pub(super) fn send_away(&mut self, at: u32, now_us: u64, why: Why, number: u32) -> Busy {
        fault!();
        let Entry { key, in_away_list, .. } = &mut self.keys.all[at as usize];
        key.pace.run(now_us, key.running);
        let limit = most(key.limit());
        let before = key.held.saturating_add(key.recall.away()).saturating_add(number - 1);
        let secs = key.pace.latest_secs(limit, before, &mut self.random);
        let called = key.recall.called();
        key.recall.sent_away(now_us, secs, number);
        self.called -= called - key.recall.called();
        // While it is closed there is nothing to look for. Without memory to list it, it comes back by the clock.
        if limit > 0 && !*in_away_list && memory::push(&mut self.absent, at).is_ok() {
            *in_away_list = true;
        }
        key.busy += u64::from(number);
        self.totals.busy += u64::from(number);
        fault!();
        self.look_for_room(at);
        Busy { key: at, secs, why }
    }

    /// Counts, for each key, what is away under the numbers of its domains.
    pub fn count_parted(&mut self) {
        for entry in &mut self.keys.all {
            entry.key.parted = 0;
        }
        for &at in &self.absent {
            let Entry { domain, key, .. } = &self.keys.all[at as usize];
            let (of, away) = (domain.key, key.recall.away());
            if of != at {
                self.keys.all[of as usize].key.parted += away;
            }
        }
    }
}
