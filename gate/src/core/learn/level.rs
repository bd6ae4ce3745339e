//! How the learned limit goes down after an objection, and up again.
//!
//! **Down.** After an objection the limit becomes the number of deliveries that still run. Example: a server has ten
//! places, and twenty deliveries are started. It refuses ten. As their reports come in, each takes one place away and
//! none is filled again, so the limit becomes the number that the server accepted. Deliveries that were started before
//! the first of these reports belong to the same objection: each takes away its own place, no more. Nothing is halved.
//!
//! **Up.** By one, after a cohort: as many acceptances as the limit. Only those count that ended while all places were
//! taken (as in RFC 7661 for TCP). A server that was not asked for more has not shown that it would take more.
//!
//! **The wall** is the level that was refused, remembered as TCP CUBIC (RFC 9438) remembers its last maximum. Below it
//! the limit grows as usual. The wall itself is tried only after 4 cohorts, then 8, 16, 32 and 64 if the server
//! refuses again, or after five minutes and one cohort. That is for refusals that come as soon as a level has been
//! reached. A later one is rather chance, or a server with other troubles: the limit is one lower until the next
//! cohort.
//!
//! **A handover** is a delivery in the place of one that has just ended. A server that counts a session for some time
//! after its end refuses the next one, although no more run than it takes. So if such a delivery is refused at a level
//! that the server has accepted, places wait from then on ([`crate::core::linger`]), for less than one place is worth,
//! and the level is tried again after one cohort.

#![forbid(unsafe_code)]

use super::{
    CLOSING_PROBES, CLOSING_PROBES_MAX, EndedDelivery, Learned, Learning, LevelAge, NO_LEVEL,
    PROBE_COHORTS, PROBE_COHORTS_MAX, PROBE_US, StartedIn,
};
use crate::core::linger::{COHORTS_TO_FADE, LINGER_MAX_US, Linger};
use crate::report::DeliveryVerdict;

impl Learned {
    pub(super) fn note_acceptance(&mut self, ended: &EndedDelivery) {
        if self.failures > 0 && self.counts_taken && ended.started_us < self.failures_since_us {
            self.taken_at_closing = self.taken_at_closing.saturating_add(1);
        }
        let was_closed =
            self.pauses > 0 && self.level == 1 && self.closed_at > 0 && self.wall == self.closed_at;
        self.note_answer(ended);
        self.accepted_us = ended.now_us.saturating_add(1);
        let took_us = ended.now_us.saturating_sub(ended.started_us).min(u64::from(u32::MAX)) as u32;
        self.mean_accepted_us = if self.mean_accepted_us == 0 {
            took_us
        } else {
            self.mean_accepted_us - self.mean_accepted_us / 8 + took_us / 8
        };
        if was_closed {
            self.resume_after_closing(ended);
            return;
        }
        let level = self.effective(ended.limit, Learning::On);
        // An acceptance while places are free says nothing about one more (RFC 7661 says so of TCP). The server still
        // counts the deliveries that have just ended, this one among them.
        let taken = ended.running.saturating_add(self.linger.places(ended.now_us).max(1));
        if taken < level {
            return;
        }
        self.accepted = self.accepted.saturating_add(1);
        if u32::from(self.accepted) > level / 4 {
            self.level_age = LevelAge::Known;
        }
        if u32::from(self.accepted) < level {
            return;
        }
        self.accepted = 0;
        self.cohorts = self.cohorts.saturating_add(1);
        let level_now = level.min(u32::from(NO_LEVEL)) as u16;
        if level_now > self.proven_level {
            self.proven_level = level_now;
            self.proven_us = ended.now_us;
        }
        if self.closed_at == 0 {
            self.linger.fade(COHORTS_TO_FADE);
        }
        if self.level == NO_LEVEL || self.waits_below_wall(ended.now_us) {
            return;
        }
        if self.wall > 0 && self.level > self.wall.saturating_add(1) {
            // The server has become more generous.
            self.wall = 0;
            self.cohorts_to_wait = PROBE_COHORTS;
            self.closings = 0;
            self.forget_handovers();
        }
        self.level = self.level.saturating_add(1);
        self.level_age = LevelAge::New;
        self.cohorts = 0;
        if u32::from(self.level) >= ended.limit {
            // A ceiling that was refused is tried no more often than any other level.
            if self.wall == 0 {
                self.level = NO_LEVEL;
                self.forget_handovers();
            }
        }
        if self.level >= self.level_before_cut {
            self.first_cut_us = 0;
        }
    }

    pub(super) fn forget_handovers(&mut self) {
        (self.closed_at, self.handover_closings, self.handover_level) = (0, 0, 0);
        self.linger = Linger::NONE;
    }

    /// Whether the next level is the wall, and it is not yet time to try it.
    pub(super) fn waits_below_wall(&self, now_us: u64) -> bool {
        if self.level.saturating_add(1) != self.wall {
            return false;
        }
        let since_us = now_us.saturating_sub(self.cut_us);
        if self.closings > 0 {
            // It would cost some seconds in which no connection succeeds.
            let times = CLOSING_PROBES << (self.closings - 1).min(16);
            return since_us < PROBE_US * times.min(CLOSING_PROBES_MAX);
        }
        self.cohorts < self.cohorts_to_wait && since_us < PROBE_US
    }

    /// Whether an objection may be about the place of a delivery that has just ended. Then places wait longer from now
    /// on. `known`: the level up to which the server has accepted all.
    pub(super) fn is_handover_refusal(&mut self, ended: &EndedDelivery, known: u16) -> bool {
        let is_level_known = match self.level_age {
            LevelAge::Known => self.level <= known && ended.running < u32::from(self.level),
            // At a new level the cause is unknown, unless there were such objections before.
            LevelAge::New => self.level <= self.handover_level,
        };
        let is_early = match ended.seen {
            // Of several in a row, all but the first mean that the socket is closed.
            DeliveryVerdict::ConnectFailed => self.failures <= 1,
            _ => self.is_early(ended),
        };
        // A refusal that takes longer is not about the delivery that ended just before.
        let took_us = ended.now_us.saturating_sub(ended.started_us);
        let is_quick = took_us <= u64::from(self.mean_accepted_us) / 2;
        if !(is_level_known
            && self.doubts == 0
            && is_early
            && is_quick
            && ended.running > 0
            && ended.started_in == StartedIn::JustFreedPlace)
        {
            return false;
        }
        // The wait must cost less than one place.
        let most_us = (self.mean_accepted_us / u32::from(self.level).max(1)).min(LINGER_MAX_US);
        let is_longer = self.linger.too_short(ended.now_us, ended.started_us, most_us);
        if !is_longer && self.closed_at == 0 {
            // That was not the cause.
            (self.linger, self.handover_level) = (Linger::NONE, 0);
        }
        if is_longer {
            self.handover_level = self.handover_level.max(self.level);
        }
        is_longer
    }

    pub(super) fn lower_level(&mut self, ended: &EndedDelivery) {
        let level = self.effective(ended.limit, Learning::On).min(u32::from(NO_LEVEL - 1)) as u16;
        let running = ended.running.min(u32::from(NO_LEVEL - 1)) as u16;
        if self.level != NO_LEVEL && running >= level {
            // The limit is lower already than when this delivery started, and no place is filled above it.
            return;
        }
        if self.level == NO_LEVEL || ended.started_us > self.cut_us {
            // A new objection. The deliveries that still run were accepted, or will be refused and come here as well.
            let begins = self.first_cut_us == 0;
            if begins {
                self.first_cut_us = ended.now_us;
                self.level_before_cut = level;
                self.refused_below = 0.0;
                self.accepted_below = 0.0;
            }
            let accepted = self.accepted_beside(ended);
            self.level = accepted.min(level.saturating_sub(1)).max(1);
            if begins {
                self.level_after_cut = self.level;
            }
            let refused = accepted.saturating_add(1);
            if refused > self.proven_level || self.level_age == LevelAge::New {
                let near = self.wall > 0 && refused.abs_diff(self.wall) <= 1 + self.wall / 16;
                self.cohorts_to_wait = match self.level_age {
                    LevelAge::New if near => {
                        (self.cohorts_to_wait * 2).clamp(PROBE_COHORTS, PROBE_COHORTS_MAX)
                    }
                    LevelAge::New => PROBE_COHORTS,
                    // The server was slow to refuse, or it refuses at random.
                    LevelAge::Known => 1,
                };
                self.wall = refused;
                self.cohorts = 0;
            } else {
                // The server has accepted as many before. Either it refuses at random, or it has become less generous:
                // then it will refuse again before a cohort is complete.
                self.proven_level = self.level;
            }
            self.cut_us = ended.now_us;
        } else {
            // The same objection: it takes away each place that was refused, and none that was accepted.
            self.level = (level - 1).max(1);
            if self.cut_us == self.first_cut_us {
                self.level_after_cut = self.level;
            }
            self.wall = self.wall.min(level);
            self.proven_level = self.proven_level.min(self.level);
        }
        if self.doubts > 0 && self.cut_us == self.first_cut_us {
            // At that level more were refused than the background explained.
            self.level_before_cut = self.level_after_cut;
        }
        self.level_age = LevelAge::Known;
        self.accepted = 0;
    }
}
