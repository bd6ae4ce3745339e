//! Whether a refusal is an objection to the number of deliveries.
//!
//! The first refusal at a level that is not known to work is an objection.
//!
//! **Chance.** At a level that has been accepted, a single refusal changes nothing. Refusals are added up, and each
//! other answer takes away twice what chance would add. A sum of four is an objection. (This is the CUSUM test of
//! E. S. Page, "Continuous Inspection Schemes", Biometrika 41, 1954.) A server that has become less generous refuses
//! four in a row at once. For a server that refuses slowly, a level counts as accepted only after four times as long
//! as a refusal takes.
//!
//! **The background.** Some servers refuse a share of the deliveries however few there are: a milter that is down,
//! greylisting in words that are listed for a limit, one bad machine of several. A refusal says nothing of the level if
//! the server refuses at least half of the same share further below. So below the level that was left after the first
//! objection, the refusals and acceptances of the deliveries that started since are counted. After three refusals, with
//! two acceptances among them, the limit goes back to where it was. From then on refusals are compared with that share
//! as before with chance, and the share follows what the server refuses. If many more are refused after all, the limit
//! falls as at first, and the next time it takes twice the evidence. A server that refuses everything is another case:
//! nothing is accepted among the refusals.

#![forbid(unsafe_code)]

use super::{
    BACKGROUND_ANSWERS_MIN, EndedDelivery, Learned, Learning, LevelAge, NO_LEVEL, PROBE_COHORTS,
    RefusalMeaning,
};

// The figures below are assumptions, but for those with a reason. gate/tests/servers.rs has the servers with which
// their effect is tested, docs/measurements.md what came of them.

/// This many refusals more than expected, at a level that has been accepted, are an objection. Fewer, and chance alone
/// would lower limits; more, and a server that takes less now would refuse more mail first.
const OBJECTION_SCORE: f32 = 4.0;
/// But not at a level that was accepted less than this many times as long ago as the refusal took.
const SLOW_REFUSAL_FACTOR: u64 = 4;
/// The share of refusals that is taken for chance before anything is known.
const CHANCE_SHARE: f32 = 0.02;
/// An answer takes away this many times what the expected share of refusals adds. More than 1, so that the sum falls
/// while the server refuses what is expected.
const ANSWER_WEIGHT: f32 = 2.0;
/// This many refusals below a level that was refused say that the level does not matter,
const BELOW_REFUSED_MIN: f32 = 3.0;
/// if at least this many were accepted among them,
const BELOW_ACCEPTED_MIN: f32 = 2.0;
/// and if their share is at least this part of the share that was refused at first.
const BELOW_SHARE_MIN: f32 = 0.5;
/// These counts are of about this many last deliveries.
const BELOW_DELIVERIES: f32 = 64.0;
/// The background is the mean of about this many last deliveries.
const BACKGROUND_DELIVERIES: f32 = 128.0;
/// A smaller share is no background: it is what is taken for chance.
const BACKGROUND_MIN: f32 = CHANCE_SHARE;
/// The highest share, less than 1 so that the expected number of refusals for each answer is finite.
const BACKGROUND_MAX: f32 = 0.9;
/// How often the required evidence for a background is doubled when it has been wrong.
const DOUBTS_MAX: u8 = 3;

impl Learned {
    /// Notes an answer other than a refusal.
    pub(super) fn note_answer(&mut self, ended: &EndedDelivery) {
        self.has_answered = true;
        self.suspended_us = 0;
        self.pauses = 0;
        if ended.started_us >= self.failures_since_us {
            self.failures = 0;
        }
        let background = if self.background > 0.0 { self.background } else { CHANCE_SHARE };
        self.score = (self.score - ANSWER_WEIGHT * background / (1.0 - background)).max(0.0);
        self.answers_with_background =
            self.answers_with_background.saturating_add(1).min(BACKGROUND_ANSWERS_MIN);
        if self.background > 0.0 {
            self.background -= self.background / BACKGROUND_DELIVERIES;
            if self.background < BACKGROUND_MIN {
                self.background = 0.0;
            }
        }
        if self.first_cut_us > 0 && ended.started_us > self.first_cut_us {
            self.refused_below -= self.refused_below / BELOW_DELIVERIES;
            self.accepted_below += 1.0 - self.accepted_below / BELOW_DELIVERIES;
        }
    }

    /// Decides whether a refusal is about the number of deliveries that run.
    pub(super) fn weigh_refusal(&mut self, ended: &EndedDelivery) -> RefusalMeaning {
        let level = self.effective(ended.limit, Learning::On).min(u32::from(NO_LEVEL - 1));
        let beside = u32::from(self.accepted_beside(ended)).max(ended.beside);
        let refused = beside.saturating_add(1);
        if self.background > 0.0 {
            let part = self.background;
            self.score += 1.0;
            // While the places fill up, refusals come at once and acceptances later.
            let odds = part / (1.0 - part);
            let enough = OBJECTION_SCORE / (1.0 - part) + ANSWER_WEIGHT * odds * level as f32;
            if self.score < enough / 2.0 {
                // Refusals that may be about a limit are not part of the background.
                self.background = (part + (1.0 - part) / BACKGROUND_DELIVERIES).min(BACKGROUND_MAX);
            }
            if self.score < enough {
                return RefusalMeaning::Background;
            }
            self.score = 0.0;
            self.background = 0.0;
            self.first_cut_us = 0;
            self.doubts = (self.doubts + 1).min(DOUBTS_MAX);
            return RefusalMeaning::Objection;
        }
        if self.first_cut_us > 0
            && ended.started_us > self.first_cut_us
            && refused < u32::from(self.level_after_cut)
        {
            self.refused_below += 1.0;
            let part = self.refused_below / (self.refused_below + self.accepted_below);
            let part_above =
                1.0 - f32::from(self.level_after_cut) / f32::from(self.level_before_cut);
            if self.refused_below >= BELOW_REFUSED_MIN * f32::from(1u16 << self.doubts)
                && self.accepted_below >= BELOW_ACCEPTED_MIN
                && part >= part_above * BELOW_SHARE_MIN
            {
                self.believe_background(ended);
                return RefusalMeaning::Background;
            }
        }
        // A server that refuses slowly may still refuse what started when the level was new.
        let took_us = ended.now_us.saturating_sub(ended.started_us);
        let proved_us = self.proven_us.saturating_add(took_us.saturating_mul(SLOW_REFUSAL_FACTOR));
        if refused <= u32::from(self.proven_level)
            && self.level_age == LevelAge::Known
            && ended.started_us > proved_us
        {
            self.score += 1.0;
            if self.score < OBJECTION_SCORE {
                return RefusalMeaning::Chance;
            }
            self.score = 0.0;
            // The server has become less generous, and may become so again: from now on the first refusal counts.
            self.proven_level = 0;
        }
        RefusalMeaning::Objection
    }

    /// The server refuses as many when fewer run: the limit goes back to where it was.
    pub(super) fn believe_background(&mut self, ended: &EndedDelivery) {
        // The deliveries that still run were not refused either.
        let accepted = self.accepted_below + ended.running as f32;
        let part = self.refused_below / (self.refused_below + accepted);
        self.background = part.clamp(BACKGROUND_MIN, BACKGROUND_MAX);
        self.level = if u32::from(self.level_before_cut) >= ended.limit {
            NO_LEVEL
        } else {
            self.level_before_cut
        };
        self.proven_level = self.level_before_cut;
        self.wall = if self.level == NO_LEVEL { 0 } else { self.level + 1 };
        self.cohorts_to_wait = PROBE_COHORTS;
        self.answers_with_background = 0;
        self.level_age = LevelAge::Known;
        self.accepted = 0;
        self.cohorts = 0;
        self.score = 0.0;
        self.failures = 0;
        self.first_cut_us = 0;
        self.forget_handovers();
    }
}
