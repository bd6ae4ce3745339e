//! What a key with a fixed limit does when its server refuses deliveries.
//!
//! The limit stays what it is. But a delivery that was refused at the door while others ran, or soon after one was
//! accepted, does not count as an attempt. It waits for a place. A closed socket causes the same pauses as with a limit
//! that learns ([`super::suspension`]), and places wait after a refusal at a handover ([`super::level`]). After any
//! other refusal beside others, no more are started than ran beside the refused one, for 4 s, then 8, up to 64.

#![forbid(unsafe_code)]

use super::{
    Attempt, EndedDelivery, FAILURES, Learned, NO_LEVEL, PROBE_COHORTS, PROBE_COHORTS_MAX,
    RECENT_US, StartedIn,
};
use crate::core::linger::{COHORTS_TO_FADE, LINGER_MAX_US};
use crate::report::DeliveryVerdict;
use crate::util::random::Random;

impl Learned {
    /// Does what [`Learned::delivery_ended`] does, for a fixed limit.
    pub(super) fn delivery_ended_fixed(
        &mut self,
        ended: &EndedDelivery,
        random: &mut Random,
    ) -> Attempt {
        if self.first_cut_us > 0 || self.proven_level > 0 || self.wall > 0 {
            // The limit has learned until now.
            *self = Self { accepted_us: self.accepted_us, ..Self::NEW };
        }
        let others = ended.running > 0;
        if !self.is_early(ended) {
            if matches!(
                ended.seen,
                DeliveryVerdict::Accepted | DeliveryVerdict::Deferred | DeliveryVerdict::Failed
            ) {
                self.accepted_us = ended.now_us.saturating_add(1);
                self.note_answer_fixed(ended);
            }
            return Attempt::Counts;
        }
        if !others && !self.has_accepted_recently(ended.now_us) {
            return Attempt::Counts;
        }
        let cannot_connect = ended.seen == DeliveryVerdict::ConnectFailed;
        if cannot_connect || !others {
            self.count_failure(ended);
            if self.failures >= FAILURES {
                self.pause_starts(ended, random);
                // Until the server answers, or for as long as its last answer counts as recent.
                (self.level, self.cut_us) = (
                    self.accepted_beside(ended).max(1),
                    self.suspended_us.saturating_add(RECENT_US),
                );
            }
        }
        // With more running than the server is known to take, the delivery was one too many.
        let is_handover = others
            && ended.started_in == StartedIn::JustFreedPlace
            && (self.level == NO_LEVEL || self.accepted_beside(ended) < self.level);
        if is_handover && self.linger.too_short(ended.now_us, ended.started_us, LINGER_MAX_US) {
            // The server still counts the delivery whose place this one had.
            self.linger.ended(ended.now_us);
        } else if !cannot_connect {
            self.hold_down(ended);
        }
        Attempt::DoesNotCount
    }

    /// A server behind a fixed limit has answered.
    pub(super) fn note_answer_fixed(&mut self, ended: &EndedDelivery) {
        self.linger.fade(COHORTS_TO_FADE.saturating_mul(ended.limit));
        if self.failures > 0 && ended.started_us >= self.failures_since_us {
            if self.pauses > 0 {
                (self.level, self.cut_us) = (NO_LEVEL, 0);
            }
            self.failures = 0;
            self.pauses = 0;
            self.suspended_us = 0;
        }
        if self.level == NO_LEVEL || ended.now_us < self.cut_us {
            return;
        }
        if ended.beside >= u32::from(self.level) && ended.started_us >= self.cut_us {
            // The server takes more again.
            (self.level, self.cut_us, self.cohorts_to_wait) = (NO_LEVEL, 0, PROBE_COHORTS);
        }
    }

    /// For some seconds no more run than ran beside the delivery that was refused; for twice as long if a higher number
    /// has been tried again since.
    pub(super) fn hold_down(&mut self, ended: &EndedDelivery) {
        let ran = self.accepted_beside(ended).max(1);
        if ended.now_us < self.cut_us {
            self.level = self.level.min(ran);
            return;
        }
        self.cohorts_to_wait = match self.level {
            NO_LEVEL => PROBE_COHORTS,
            _ => (self.cohorts_to_wait * 2).min(PROBE_COHORTS_MAX),
        };
        self.level = ran;
        self.cut_us = ended.now_us.saturating_add(u64::from(self.cohorts_to_wait) * 1_000_000);
    }
}
