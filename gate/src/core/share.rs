//! Several spawners at one queue: one count for a key over all of them, and whose turn a free place is.
//!
//! Trees with supplemental channels start a qmail-rspawn for each, and each has a gate of its own. What belongs
//! together by a group, a relay, a suffix or a site is spread over them, and its limit has to hold over all.
//! [`OtherSpawners`] is what a gate knows of the others; [`crate::host::shared`] keeps it in a file.
//!
//! **To take a place** a gate announces that it runs one more, then looks at what all others have announced, and takes
//! the announcement back if that is too much. Of two gates at the same moment each sees the other or is seen by it:
//! there are never too many, whatever the order. (Both may take it back, and look again a few milliseconds later, each
//! at a time of its own.)
//!
//! **Whose turn it is.** A gate notices at once that it has given a place back itself, and what others give back only
//! when it looks. Without a rule it would keep its places for ever. So:
//!
//! - As long as a gate has less than an equal share it takes what is free. The equal share is what those that want no
//!   more leave of the limit, divided by the number of those that do. All such shares fit under the limit at once.
//! - Beyond that it does not get ahead of another that wants more, but for the places that do not divide: the gates
//!   take these in turns of half a second. (With a limit of 1, that is the only place.)
//! - A place that is left to the others and is not taken by them is taken after a tenth of a second all the same, and
//!   nothing is left to them for the second that follows: a gate that wants and does not take may be stopped, or wait
//!   for its own disk.
//!
//! The alternative was a fixed share of the limit for each spawner that is alive. It needs no count, but a limit below
//! the number of spawners cannot be divided, and with one busy channel all other shares would be idle.

#![forbid(unsafe_code)]

use std::fmt;

use crate::control::problem::Problem;
use crate::core::rules::KeyKind;

/// How long one gate has the places that do not divide, in microseconds.
const TURN_US: u64 = 500_000;
/// How long a free place is left to the others.
const LEAVE_US: u64 = 100_000;
/// How long nothing is left to them when they did not take it.
const ALONE_US: u64 = 1_000_000;

/// What this spawner tells the others of a key.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Announcement {
    /// Deliveries that run, and one that is about to.
    pub running: u32,
    /// Whether more would start if there were room.
    pub demand: Demand,
}

/// Whether more of a key would start if there were room.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Demand {
    /// No.
    #[default]
    Nothing,
    /// Yes.
    More,
}

/// What all the others together have told of a key.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PeerTotals {
    /// Deliveries that run.
    pub running: u32,
    /// Those of them that belong to spawners that want no more.
    pub resting: u32,
    /// How many spawners want more.
    pub wanting: u32,
    /// The fewest deliveries that one of these has; 0 if there is none.
    pub least: u32,
}

impl PeerTotals {
    /// Adds one.
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

/// What became of a look at the other spawners as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PeerCheck {
    /// They know what they were told.
    Unchanged,
    /// Everything has to be told anew.
    AnnounceAgain,
}

/// The other spawners of the queue.
pub trait OtherSpawners: fmt::Debug + Send {
    /// Tells them of a key.
    fn announce(&mut self, kind: KeyKind, name: &[u8], own: Announcement);

    /// What they have told.
    fn totals(&mut self, kind: KeyKind, name: &[u8]) -> PeerTotals;

    /// To be called about once a second: who has come, who has gone.
    fn check(&mut self) -> PeerCheck;

    /// Which one this is, from 0 on.
    fn index(&self) -> u32;

    /// Why there may be too many of a key, if that is so.
    fn problem(&self) -> Option<Problem>;

    /// How many others were there at the last look.
    fn alive_count(&self) -> u32;

    /// Tells them that there is nothing here any more.
    fn leave(&mut self);
}

/// What to do about a free place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PlaceDecision {
    /// Take it.
    Take,
    /// There is none.
    Full,
    /// It is left to others.
    LeaveToOthers,
}

/// Whose turn it is at one key. See the module.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PlaceTurn {
    /// Since when this gate has places that do not divide.
    ahead_us: Option<u64>,
    /// Since when it leaves one.
    left_us: Option<u64>,
    /// Until when it leaves none.
    alone_until_us: u64,
}

impl PlaceTurn {
    /// Whether one more may be taken, beside `running` of its own.
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
        let part = limit.saturating_sub(others.resting) / (others.wanting + 1);
        if others.wanting == 0 || running < part || running < others.least {
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
    fn an_equal_part_is_taken_at_once_and_no_more_than_the_limit() {
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
        // Who wants nothing is waited for by nobody.
        assert_eq!(turn.take(0, 20, 17, &totals(&[(2, Demand::Nothing)])), PlaceDecision::Take);
    }

    #[test]
    fn the_place_that_does_not_divide_goes_round() {
        let mut turn = PlaceTurn::default();
        let waits = totals(&[(0, Demand::More)]);
        // Its own turn, whatever others want; then it is left.
        assert_eq!(turn.take(0, 1, 0, &waits), PlaceDecision::Take);
        assert_eq!(turn.take(TURN_US - 1, 1, 0, &waits), PlaceDecision::Take);
        assert_eq!(turn.take(TURN_US, 1, 0, &waits), PlaceDecision::LeaveToOthers);
        assert_eq!(
            turn.take(TURN_US + 1, 1, 0, &totals(&[(1, Demand::More)])),
            PlaceDecision::Full
        );
        // The other has had it: a new turn.
        assert_eq!(turn.take(2 * TURN_US, 1, 0, &waits), PlaceDecision::Take);
        assert_eq!(turn.take(3 * TURN_US - 1, 1, 0, &waits), PlaceDecision::Take);
    }

    #[test]
    fn a_place_that_nobody_takes_is_not_left_for_long() {
        let mut turn = PlaceTurn::default();
        let stopped = totals(&[(0, Demand::More)]);
        assert_eq!(turn.take(0, 4, 2, &stopped), PlaceDecision::LeaveToOthers);
        assert_eq!(turn.take(LEAVE_US - 1, 4, 2, &stopped), PlaceDecision::LeaveToOthers);
        assert_eq!(turn.take(LEAVE_US, 4, 2, &stopped), PlaceDecision::Take);
        assert_eq!(turn.take(LEAVE_US + ALONE_US - 1, 4, 3, &stopped), PlaceDecision::Take);
        assert_eq!(turn.take(LEAVE_US + ALONE_US, 4, 3, &stopped), PlaceDecision::LeaveToOthers);
    }

    #[test]
    fn who_has_all_gives_back_until_the_parts_are_equal() {
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
