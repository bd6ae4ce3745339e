//! Several spawners of one queue share the places of a key: one limit holds over all of them.
//!
//! Trees with supplemental channels start a qmail-rspawn for each channel, and each has its own gate. The deliveries of
//! a group, a relay, a suffix or a site are spread over them, and the limit must hold over all. [`OtherSpawners`] is
//! what a gate knows of the others; [`crate::host::spawner_columns`] keeps it in a file.
//!
//! **To take a place**, a gate announces that it runs one more. Then it reads what all others have announced, and
//! withdraws its announcement if the sum is too high. If two gates do this at the same moment, at least one sees the
//! other, so the sum is never too high, whatever the order. (Both may withdraw. Each polls again a few milliseconds
//! later, at a random time.)
//!
//! **Turns.** A gate notices at once when it gives a place back itself, but only when it polls that others did. Without
//! a rule it would keep its places for ever. So:
//!
//! - While a gate has less than an equal share, it takes what is free. The equal share is the limit, less the
//!   deliveries of gates that want no more, divided by the number of gates that want more. All such shares together fit
//!   the limit.
//! - Beyond its share, a gate does not get ahead of another that wants more. The exception is the remainder of the
//!   division: the gates take these places in turns of half a second. (With a limit of 1, that is the only place.)
//! - If a gate leaves a place to the others and they do not take it, it takes the place after a tenth of a second, and
//!   leaves nothing to them for the next second: a gate that wants a place and does not take it may be stopped, or wait
//!   for its disk.
//!
//! The alternative was a fixed share of the limit for each running spawner. It needs no count. But a limit below the
//! number of spawners cannot be divided, and if one channel is busy, the shares of all others would be idle.

#![forbid(unsafe_code)]

use std::fmt;

use crate::control::problem::Problem;
use crate::core::rules::KeyKind;

/// How long one gate may keep the places of the remainder, in microseconds.
const TURN_US: u64 = 500_000;
/// How long a free place is left to the others, in microseconds.
const LEAVE_US: u64 = 100_000;
/// How long nothing is left to the others after they did not take a place, in microseconds.
const ALONE_US: u64 = 1_000_000;

/// What a spawner announces of a key.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Announcement {
    /// Deliveries that run, and one that is about to.
    pub running: u32,
    /// Whether more would start if there were places.
    pub demand: Demand,
}

/// Whether more deliveries of a key would start if there were places.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Demand {
    /// No.
    #[default]
    Nothing,
    /// Yes.
    More,
}

/// The sum of what all other spawners have announced of a key.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PeerTotals {
    /// Deliveries that run.
    pub running: u32,
    /// How many of these belong to spawners that want no more.
    pub resting: u32,
    /// How many spawners want more.
    pub wanting: u32,
    /// The fewest deliveries that a spawner has which wants more; 0 if there is none.
    pub least: u32,
}

impl PeerTotals {
    /// Adds the announcement of one spawner.
    pub fn add(&mut self, other: Announcement) {
        self.running = self.running.saturating_add(other.running);
        match other.demand {
            Demand::Nothing => self.resting = self.resting.saturating_add(other.running),
            Demand::More => {
                let least = if self.wanting == 0 { u32::MAX } else { self.least };
                self.least = least.min(other.running);
                self.wanting += 1;
            }
        }
    }
}

/// The result of a check of the other spawners.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PeerCheck {
    /// They have what was announced.
    Unchanged,
    /// Everything must be announced again.
    AnnounceAgain,
}

/// The other spawners of the queue.
pub trait OtherSpawners: fmt::Debug + Send {
    /// Announces a key.
    fn announce(&mut self, kind: KeyKind, name: &[u8], own: Announcement);

    /// The sum of what they have announced of a key.
    fn totals(&mut self, kind: KeyKind, name: &[u8]) -> PeerTotals;

    /// Checks which spawners have come and gone. Call it about once a second.
    fn check(&mut self) -> PeerCheck;

    /// The number of this spawner, from 0.
    fn index(&self) -> u32;

    /// Why limits may be exceeded, if they may.
    fn problem(&self) -> Option<Problem>;

    /// How many others there were at the last check.
    fn alive_count(&self) -> u32;

    /// Withdraws all announcements of this spawner.
    fn leave(&mut self);
}

/// What to do about a free place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PlaceDecision {
    /// Take it.
    Take,
    /// There is no free place.
    Full,
    /// Leave it to the others.
    LeaveToOthers,
}

/// Whose turn it is to take the places of one key. See the module.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PlaceTurn {
    /// Since when this gate has places of the remainder.
    ahead_us: Option<u64>,
    /// Since when it leaves a place to the others.
    left_us: Option<u64>,
    /// Until when it leaves none to them.
    alone_until_us: u64,
}

impl PlaceTurn {
    /// Decides whether to take one more place, beside `running` of its own.
    pub fn take(
        &mut self,
        now_us: u64,
        limit: u32,
        running: u32,
        others: &PeerTotals,
    ) -> PlaceDecision {
        if running.saturating_add(others.running) >= limit {
            if self.left_us.take().is_some() {
                self.ahead_us = None;
            }
            return PlaceDecision::Full;
        }
        let share = limit.saturating_sub(others.resting) / (others.wanting + 1);
        if others.wanting == 0 || running < share || running < others.least {
            (self.left_us, self.ahead_us) = (None, None);
            return PlaceDecision::Take;
        }
        if now_us < self.alone_until_us {
            return PlaceDecision::Take;
        }
        match self.left_us {
            None => {
                let since_us = *self.ahead_us.get_or_insert(now_us);
                let in_turn = now_us.saturating_sub(since_us) < TURN_US;
                if running == others.least && in_turn {
                    return PlaceDecision::Take;
                }
                self.left_us = Some(now_us);
                PlaceDecision::LeaveToOthers
            }
            Some(since_us) if now_us.saturating_sub(since_us) < LEAVE_US => {
                PlaceDecision::LeaveToOthers
            }
            Some(_) => {
                (self.left_us, self.ahead_us) = (None, None);
                self.alone_until_us = now_us.saturating_add(ALONE_US);
                PlaceDecision::Take
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn totals(of: &[(u32, Demand)]) -> PeerTotals {
        let mut sum = PeerTotals::default();
        for &(running, demand) in of {
            sum.add(Announcement { running, demand });
        }
        sum
    }

    #[test]
    fn the_sum_of_the_others() {
        let sum = totals(&[(3, Demand::More), (1, Demand::Nothing), (2, Demand::More)]);
        assert_eq!(sum, PeerTotals { running: 6, resting: 1, wanting: 2, least: 2 });
        assert_eq!(totals(&[(4, Demand::Nothing)]).least, 0);
    }

    #[test]
    fn an_equal_share_is_taken_at_once_and_no_more_than_the_limit() {
        let mut turn = PlaceTurn::default();
        // 20 for three, one of which has 2 and wants no more: nine each.
        let sum = totals(&[(0, Demand::More), (2, Demand::Nothing)]);
        for running in 0..9 {
            assert_eq!(turn.take(0, 20, running, &sum), PlaceDecision::Take);
        }
        assert_eq!(turn.take(0, 20, 9, &sum), PlaceDecision::LeaveToOthers);
        assert_eq!(
            turn.take(0, 20, 9, &totals(&[(9, Demand::More), (2, Demand::Nothing)])),
            PlaceDecision::Full
        );
        // Nothing is left to a spawner that wants no more.
        assert_eq!(turn.take(0, 20, 17, &totals(&[(2, Demand::Nothing)])), PlaceDecision::Take);
    }

    #[test]
    fn the_place_of_the_remainder_goes_round() {
        let mut turn = PlaceTurn::default();
        let waits = totals(&[(0, Demand::More)]);
        // First its own turn, whatever the others want; then it leaves the place.
        assert_eq!(turn.take(0, 1, 0, &waits), PlaceDecision::Take);
        assert_eq!(turn.take(TURN_US - 1, 1, 0, &waits), PlaceDecision::Take);
        assert_eq!(turn.take(TURN_US, 1, 0, &waits), PlaceDecision::LeaveToOthers);
        assert_eq!(
            turn.take(TURN_US + 1, 1, 0, &totals(&[(1, Demand::More)])),
            PlaceDecision::Full
        );
        // The other has had the place: a new turn begins.
        assert_eq!(turn.take(2 * TURN_US, 1, 0, &waits), PlaceDecision::Take);
        assert_eq!(turn.take(3 * TURN_US - 1, 1, 0, &waits), PlaceDecision::Take);
    }

    #[test]
    fn a_place_that_the_others_do_not_take_is_not_left_for_long() {
        let mut turn = PlaceTurn::default();
        let stopped = totals(&[(0, Demand::More)]);
        assert_eq!(turn.take(0, 4, 2, &stopped), PlaceDecision::LeaveToOthers);
        assert_eq!(turn.take(LEAVE_US - 1, 4, 2, &stopped), PlaceDecision::LeaveToOthers);
        assert_eq!(turn.take(LEAVE_US, 4, 2, &stopped), PlaceDecision::Take);
        assert_eq!(turn.take(LEAVE_US + ALONE_US - 1, 4, 3, &stopped), PlaceDecision::Take);
        assert_eq!(turn.take(LEAVE_US + ALONE_US, 4, 3, &stopped), PlaceDecision::LeaveToOthers);
    }

    #[test]
    fn a_spawner_with_all_places_gives_back_until_the_shares_are_equal() {
        let mut turn = PlaceTurn::default();
        assert_eq!(
            turn.take(0, 20, 19, &totals(&[(0, Demand::More)])),
            PlaceDecision::LeaveToOthers
        );
        assert_eq!(
            turn.take(1, 20, 12, &totals(&[(7, Demand::More)])),
            PlaceDecision::LeaveToOthers
        );
        assert_eq!(turn.take(2, 20, 9, &totals(&[(10, Demand::More)])), PlaceDecision::Take);
    }
}
