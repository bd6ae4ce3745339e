//! Mail that is sent away, and how much of it is called back.

#![forbid(unsafe_code)]

use super::holding::ALPHA;
use super::{CHECK_KEYS_AWAY_US, Gate, HOLD_MAX_US};
use crate::control::limit::Limit;
use crate::core::answer::{Busy, BusyReason, Call, PauseCause, SLOTS_MAX, SUSPENDED_MAX_SECS};
use crate::core::key::most;
use crate::core::keys::Entry;
use crate::util::memory;

impl Gate {
    /// Notes a command for a domain that counts under the key `at`. Returns whether it is taken for called mail.
    pub(super) fn note_arrival(&mut self, domain: u32, at: u32, now_us: u64) -> bool {
        if domain != at && self.keys.all[domain as usize].key.recall.arrived(now_us) {
            self.called -= 1;
            self.keys.all[at as usize].key.called_by_domain -= 1;
            return true;
        }
        let was_called = self.keys.all[at as usize].key.recall.arrived(now_us);
        self.called -= u32::from(was_called);
        was_called
    }

    /// The next call, if a key has room for mail that is away.
    pub(super) fn next_call(&mut self, now_us: u64) -> Option<Call> {
        if let Some(number) = self.removed_numbers.pop() {
            return Some(Call { number, most: u32::MAX });
        }
        if now_us.saturating_sub(self.keys_away_checked_us) >= CHECK_KEYS_AWAY_US {
            self.check_keys_away(now_us);
        }
        while let Some(at) = self.room_queue.pop() {
            self.keys.all[at as usize].in_room_queue = false;
            let most = self.room(at, now_us);
            let admits = self.admits(at, now_us);
            let key = &self.keys.all[at as usize].key;
            // Each call is a report to qmail-send. So small portions wait, unless a place is idle.
            let is_little = most < (key.held + key.recall.called()) / 8;
            if is_little && !admits {
                continue;
            }
            if most == 0
                && key.start_rate.is_some()
                && let Some(from_us) = key.rate_holds_from(now_us)
            {
                // Nothing is held, so nothing else leads back here in time. Without memory the next check does.
                self.queue_until(at, from_us);
            }
            let Entry { domain, key, .. } = &mut self.keys.all[at as usize];
            let (number, of) = (key.number, domain.key);
            let most = key.recall.call(most, now_us);
            if most > 0 {
                self.called += most;
                if of != at {
                    self.keys.all[of as usize].key.called_by_domain += most;
                }
                return Some(Call { number, most });
            }
        }
        None
    }

    /// Ends calls that were not answered in time, and queues the keys with mail away again: slots may be free now.
    pub(super) fn check_keys_away(&mut self, now_us: u64) {
        self.keys_away_checked_us = now_us;
        let mut index = 0;
        while let Some(&at) = self.keys_away.get(index) {
            let Entry { domain, key, .. } = &mut self.keys.all[at as usize];
            let called = key.recall.called();
            let of = domain.key;
            if key.recall.expire(now_us, &self.command_times) {
                self.called -= called;
                if of != at {
                    self.keys.all[of as usize].key.called_by_domain -= called;
                }
            }
            let entry = &mut self.keys.all[at as usize];
            if entry.key.recall.away() == 0 {
                entry.in_away_list = false;
                self.announce(at);
                self.keys_away.swap_remove(index);
                self.queue_candidates_for_room(at);
                self.make_idle_if_unused(at, now_us);
            } else {
                index += 1;
                self.queue_for_room(at);
            }
        }
    }

    /// qmail-send sends commands again after a silence: calls have time to be answered from now on.
    pub(super) fn restart_deadlines(&mut self, now_us: u64) {
        for &at in &self.keys_away {
            self.keys.all[at as usize].key.recall.restart_deadlines(now_us);
        }
    }

    /// Queues a key for [`Gate::next_call`]. Call it when there may be room for mail of the key that is away.
    pub(super) fn queue_for_room(&mut self, at: u32) {
        let entry = &mut self.keys.all[at as usize];
        if entry.in_away_list
            && !entry.in_room_queue
            && memory::push(&mut self.room_queue, at).is_ok()
        {
            entry.in_room_queue = true;
        }
    }

    /// How much mail of this key to call: as much as starts at once in its idle places, and as much as may be held. The
    /// thresholds are exactly those of [`Gate::may_hold`]: if one mail too many were called, it would be sent away and
    /// called again without end.
    pub(super) fn room(&mut self, at: u32, now_us: u64) -> u32 {
        if self.shortage.paused_until(now_us).is_some() {
            return 0;
        }
        let Entry { domain, key, .. } = &self.keys.all[at as usize];
        if domain.standing.is_some() {
            let (of, taken) = (domain.key, domain.slots + key.recall.called());
            // A domain of a site may have its share, as far as the site has room.
            if self.domain_waits(at, now_us).is_some() {
                return 0;
            }
            let room = self.room(of, now_us);
            return self.domain_share(at).saturating_sub(taken).min(room);
        }
        let others = self.held() + self.called;
        let slots = self.slots_not_running();
        let most_beside_partner = self.most_beside_partner(at);
        let key = &mut self.keys.all[at as usize].key;
        let here = key.held + key.recall.called() + key.called_by_domain;
        let others = others - here;
        let (idle, spare) = match key.limit() {
            _ if key.suspended_until(now_us).is_some() => (0, 0),
            Limit::AtMost(0) => (0, 0),
            Limit::AtMost(limit) => {
                key.pace.run(now_us, key.running);
                let here = limit.saturating_sub(key.running_elsewhere).max(1);
                let limit = limit.min(most_beside_partner).min(key.most(now_us));
                let idle = limit.saturating_sub(key.running.saturating_add(key.running_elsewhere));
                (idle, key.pace.spare(here.min(limit)))
            }
            Limit::Unlimited if key.start_rate.is_some() => (SLOTS_MAX, SLOTS_MAX),
            Limit::Unlimited => (SLOTS_MAX, 0),
        };
        let (idle, spare) = key.rate_room(now_us, idle, spare);
        let idle = idle.min(slots.saturating_sub(others));
        // The most that `may_hold` allows beside the others: held <= ALPHA / 2 * (slots - 2 * (others + held)).
        let left = (slots - idle).saturating_sub(2 * others);
        let held = spare.min(ALPHA * left / (2 + 2 * ALPHA));
        (idle + held).saturating_sub(here)
    }

    /// The busy answer for `number` commands that are neither started nor held.
    pub(super) fn answer_busy(&mut self, at: u32, now_us: u64, number: u32) -> Busy {
        let key = &self.keys.all[at as usize].key;
        let suspension = match key.cap.limit {
            Limit::AtMost(0) => None,
            _ => key.suspension(now_us),
        };
        match suspension {
            None if self.shortage.paused_until(now_us).is_some() => {
                self.send_away(at, now_us, BusyReason::Paused(PauseCause::NoConnection), number)
            }
            None if key.waits_for_rate(now_us) => {
                self.send_away(at, now_us, BusyReason::AtRate, number)
            }
            None => self.send_away(at, now_us, BusyReason::AtLimit, number),
            Some((until_us, cause)) if until_us - now_us < HOLD_MAX_US => {
                self.send_away(at, now_us, BusyReason::Paused(cause), number)
            }
            Some((until_us, cause)) => {
                self.totals.suspended += 1;
                let secs = (until_us - now_us).div_ceil(1_000_000);
                let secs = secs.clamp(1, u64::from(SUSPENDED_MAX_SECS)) as u32;
                Busy { key: at, secs, why: BusyReason::Suspended(cause) }
            }
        }
    }

    /// Counts `number` mails as away, and makes their busy answer.
    pub(super) fn send_away(&mut self, at: u32, now_us: u64, why: BusyReason, number: u32) -> Busy {
        fault!();
        let Entry { key, in_away_list, .. } = &mut self.keys.all[at as usize];
        key.pace.run(now_us, key.running);
        let limit = most(key.limit());
        let before = key.held.saturating_add(key.recall.away()).saturating_add(number - 1);
        let mut secs = key.pace.latest_secs(limit, before, &mut self.random);
        if key.start_rate.is_some() {
            secs = secs.max(key.rate_latest_secs(now_us, before));
        }
        let called = key.recall.called();
        key.recall.sent_away(now_us, secs, number);
        self.called -= called - key.recall.called();
        // With limit 0 no room is expected. Without memory for the list, the mail comes back by the clock.
        if limit > 0 && !*in_away_list && memory::push(&mut self.keys_away, at).is_ok() {
            *in_away_list = true;
        }
        key.busy += u64::from(number);
        self.totals.busy += u64::from(number);
        fault!();
        self.queue_for_room(at);
        Busy { key: at, secs, why }
    }

    /// Counts for each key the mail that is away under the numbers of its domains.
    pub fn count_away_by_domain(&mut self) {
        for entry in &mut self.keys.all {
            entry.key.away_by_domain = 0;
        }
        for &at in &self.keys_away {
            let Entry { domain, key, .. } = &self.keys.all[at as usize];
            let (of, away) = (domain.key, key.recall.away());
            if of != at {
                self.keys.all[of as usize].key.away_by_domain += away;
            }
        }
    }
}
