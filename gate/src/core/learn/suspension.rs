//! Pauses, when nothing gets through to the server.
//!
//! **Suspended.** An objection to a delivery that was alone is a failure. After three failures in a row, with no other
//! answer between, nothing starts for 1 to 2 s. Then one delivery starts at a time, and each failure doubles the pause,
//! up to 150 to 300 s. The length is drawn at random from the upper half, so that keys that fail together do not come
//! back together. Any answer ends the suspension, also greylisting and a permanent refusal; the limit begins at one.
//!
//! A refusal at the sender or the recipient may be about that mail alone, and the next mail be accepted. So after a
//! pause not one such delivery is tried, but four, then 16 and 64.
//!
//! **A closed socket.** sendmail with MaxDaemonChildren closes its listening socket when its last place is taken, until
//! 15 s after places are free again; xinetd does so for 10 s. No connection succeeds then, though mail was accepted
//! just before. The pauses are 3 and 14.5 s in this case, long enough that no mail uses up its three returns. The
//! number of deliveries that ran when it began and were accepted is the wall, and it survives the suspension. When the
//! socket is open again, the limit is one below the wall at once, and each place waits for a sixteenth of a delivery's
//! length. The wall is tried again after ten minutes, then 20, 40 and 80, because each attempt costs all places for
//! 20 s. If the socket closes below that level, the cause was a handover: places wait for twice as long, and the limit
//! is halved for a while.

#![forbid(unsafe_code)]

use super::{
    CLOSED_PAUSES_US, ENVELOPES, ENVELOPES_MAX, EndedDelivery, HANDOVER_US, Learned, Learning,
    LevelAge, NO_LEVEL, PAUSE_MAX_US, PAUSE_MIN_US, PROBE_COHORTS, StartedIn,
};
use crate::core::linger::{LINGER_MAX_CLOSED_US, LINGER_MIN_US};
use crate::report::{DeliveryVerdict, Sent};
use crate::util::random::Random;

/// At a server that closes its socket, a place that has become free waits for this part of a delivery's length, but for
/// [`LINGER_MIN_US`] at least and [`HANDOVER_US`] at most: a place that is asked for too soon would cost 15 s.
const CLOSED_LINGER_DIVISOR: u64 = 16;
/// [`CLOSED_PAUSES_US`] are shorter by this part at most.
const CLOSED_PAUSES_SPREAD_DIVISOR: u64 = 16;
/// This many times a closed socket is taken for a handover, and the limit halved for a while. After four the limit is
/// a sixteenth.
const HANDOVER_CLOSINGS_MAX: u8 = 4;

impl Learned {
    /// Counts one more refusal, with no answer between of a delivery that started after the first one.
    pub(super) fn count_failure(&mut self, ended: &EndedDelivery) {
        if self.failures == 0 {
            let level = self.effective(ended.limit, ended.learning);
            self.failures_since_us = ended.now_us;
            let is_at_wall = self.wall > 0 && level >= u32::from(self.wall);
            self.counts_taken = !is_at_wall && level > u32::from(self.proven_level);
            self.taken_at_closing = match self.counts_taken {
                // The delivery that had just ended.
                true => u16::from(ended.started_in == StartedIn::JustFreedPlace),
                false if is_at_wall => self.wall,
                false => level.min(u32::from(NO_LEVEL)) as u16,
            };
            self.was_new_level = level > u32::from(self.proven_level)
                || self.level_age == LevelAge::New
                || self.cohorts <= 1;
        }
        self.failures = self.failures.saturating_add(1);
    }

    /// Suspends the key after `most` failures.
    pub(super) fn note_failure(&mut self, ended: &EndedDelivery, most: u8, random: &mut Random) {
        if self.failures < most && self.suspended_us == 0 {
            return;
        }
        if ended.seen == DeliveryVerdict::TooMany(Sent::Envelope) && self.pauses > 0 {
            let tries = ENVELOPES
                .checked_pow(u32::from(self.pauses))
                .map_or(ENVELOPES_MAX, |tries| tries.min(ENVELOPES_MAX));
            self.envelopes += 1;
            if self.envelopes < tries {
                return;
            }
        }
        self.envelopes = 0;
        let is_first = self.pauses == 0;
        if !self.pause_starts(ended, random) {
            return;
        }
        self.level = 1;
        self.proven_level = 0;
        self.accepted = 0;
        self.cohorts = 0;
        self.level_age = LevelAge::Known;
        self.score = 0.0;
        self.background = 0.0;
        self.first_cut_us = 0;
        if !is_first {
            return;
        }
        self.cohorts_to_wait = PROBE_COHORTS;
        self.wall = 0;
        if ended.seen == DeliveryVerdict::ConnectFailed
            && self.has_accepted_recently(ended.now_us)
            && self.taken_at_closing > 0
        {
            self.note_closed_socket(ended.now_us);
        }
    }

    /// No connection succeeds since a number of deliveries ran: the server has closed its socket, or it is down. If it
    /// is down, the wall is tried again soon.
    pub(super) fn note_closed_socket(&mut self, now_us: u64) {
        let ran = self.taken_at_closing.max(2);
        if ran >= self.closed_at || self.handover_closings >= HANDOVER_CLOSINGS_MAX {
            self.closed_at = ran;
            self.handover_closings = 0;
            self.closings = if self.was_new_level { (self.closings + 1).min(16) } else { 0 };
        } else {
            // The number was not too high; one delivery came in the place of another that had just ended.
            self.handover_closings += 1;
            self.closings = self.closings.max(1);
            self.linger.double(now_us, LINGER_MAX_CLOSED_US);
        }
        self.wall = self.closed_at;
    }

    /// The socket is open again: the server takes what it took before, but for the last place. Fewer if it closed at a
    /// handover.
    pub(super) fn resume_after_closing(&mut self, ended: &EndedDelivery) {
        let part_us = ended.now_us.saturating_sub(ended.started_us) / CLOSED_LINGER_DIVISOR;
        let least_us = part_us.clamp(u64::from(LINGER_MIN_US), HANDOVER_US);
        self.linger.at_least(least_us as u32);
        self.linger.ended(ended.now_us);
        self.level = (self.wall.saturating_sub(1) >> self.handover_closings).max(1);
        self.proven_level = self.level;
        self.proven_us = ended.now_us;
    }

    /// Begins a pause. False if the delivery was under way when the last pause began.
    pub(super) fn pause_starts(&mut self, ended: &EndedDelivery, random: &mut Random) -> bool {
        if ended.started_us < self.suspended_us {
            return false;
        }
        let closed = CLOSED_PAUSES_US.get(usize::from(self.pauses)).filter(|_| {
            ended.seen == DeliveryVerdict::ConnectFailed && self.has_accepted_recently(ended.now_us)
        });
        let doublings = match ended.learning {
            Learning::On => 32,
            // Mail that waits is always held or comes back: none is deferred.
            Learning::Fixed => 4,
        };
        let longest = PAUSE_MIN_US
            .checked_shl(u32::from(self.pauses.min(doublings)))
            .map_or(PAUSE_MAX_US, |us| us.min(PAUSE_MAX_US));
        let (longest, spread) =
            closed.map_or((longest, longest / 2), |&us| (us, us / CLOSED_PAUSES_SPREAD_DIVISOR));
        let pause = longest - (random.fraction() * spread as f64) as u64;
        self.pauses = self.pauses.saturating_add(1);
        self.suspended_us = ended.now_us.saturating_add(pause);
        true
    }
}
