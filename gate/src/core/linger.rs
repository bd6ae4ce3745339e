//! Places that a server gives back late.
//!
//! A server that forks for each session counts the child until it has waited for it: 2 to 10 ms after the session for
//! Exim and sendmail on a machine with a load of 7 (docs/measurements.md). A connection that comes sooner, in place of
//! a session that has ended, is one too many. The server refuses it, or closes its socket for 15 s. So the gate goes on
//! counting a session for some time after its end. How long that must be is not known. The gate begins with a guess
//! and doubles it whenever it was too short.
//!
//! That time has two halves. The sessions that ended in one half are forgotten all at once, so a place waits for a half
//! to one and a half of the time. Places of sessions that end together, with none before and after, wait for exactly
//! that time.

#![forbid(unsafe_code)]

/// The first guess, in microseconds.
pub const LINGER_MIN_US: u32 = 20_000;
/// The longest time where a refusal costs one delivery, in microseconds: four doublings of the first guess.
pub const LINGER_MAX_US: u32 = 320_000;
/// The longest time where a refusal costs 15 s in which no connection succeeds, in microseconds.
pub const LINGER_MAX_CLOSED_US: u32 = 1_600_000;

/// With each cohort that is accepted, the time becomes shorter by this part: in 256 cohorts to about a third. What was
/// needed once may not be needed any more.
pub const COHORTS_TO_FADE: u32 = 256;

/// The sessions that have ended recently.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Linger {
    /// When the younger half began.
    since_us: u64,
    /// When the time was last made longer.
    longer_us: u64,
    /// How long a session counts after its end; 0: not at all.
    us: u32,
    /// Sessions that ended in the younger half.
    young: u16,
    /// Sessions that ended in the older half.
    old: u16,
}

impl Linger {
    /// Places are free at once.
    pub const NONE: Self = Self { since_us: 0, longer_us: 0, us: 0, young: 0, old: 0 };

    /// Whether places are free at once.
    #[inline]
    #[must_use]
    pub fn is_none(&self) -> bool {
        self.us == 0
    }

    /// Sets the time. A clock that goes back blocks no place for long.
    #[inline]
    pub fn clock(&mut self, now_us: u64) {
        self.since_us = self.since_us.min(now_us);
    }

    /// A session has ended.
    pub fn ended(&mut self, now_us: u64) {
        if self.us == 0 {
            return;
        }
        let half_us = self.half_us();
        match now_us.saturating_sub(self.since_us) {
            ago_us if ago_us < half_us => {}
            ago_us if ago_us < 2 * half_us => {
                (self.since_us, self.old, self.young) = (now_us, self.young, 0);
            }
            _ => (self.since_us, self.old, self.young) = (now_us, 0, 0),
        }
        self.young = self.young.saturating_add(1);
    }

    /// How many places the server may still count as taken.
    #[inline]
    #[must_use]
    pub fn places(&self, now_us: u64) -> u32 {
        if self.us == 0 {
            return 0;
        }
        let ago_us = now_us.saturating_sub(self.since_us);
        match self.half_us() {
            half_us if ago_us < half_us => u32::from(self.young) + u32::from(self.old),
            half_us if ago_us < 2 * half_us => u32::from(self.young),
            _ => 0,
        }
    }

    /// When [`Linger::places`] becomes less; None: it is 0.
    #[must_use]
    pub fn until(&self, now_us: u64) -> Option<u64> {
        if self.places(now_us) == 0 {
            return None;
        }
        let half_us = self.half_us();
        let is_soon = self.old > 0 && now_us.saturating_sub(self.since_us) < half_us;
        Some(self.since_us.saturating_add(if is_soon { half_us } else { 2 * half_us }))
    }

    /// A delivery that started at `started_us` was refused: the time was too short. It is doubled, unless that has
    /// happened since the delivery started. False if it cannot become longer.
    pub fn too_short(&mut self, now_us: u64, started_us: u64, most_us: u32) -> bool {
        if self.us > 0 && started_us <= self.longer_us {
            // The time has become longer since then.
            return true;
        }
        self.double(now_us, most_us)
    }

    /// Doubles the time. False if that would be more than `most_us`; then nothing changes.
    pub fn double(&mut self, now_us: u64, most_us: u32) -> bool {
        let doubled_us = self.us.saturating_mul(2).max(LINGER_MIN_US);
        if doubled_us > most_us {
            return false;
        }
        (self.us, self.longer_us) = (doubled_us, now_us);
        true
    }

    /// Makes the time at least this long, in microseconds.
    pub fn at_least(&mut self, us: u32) {
        self.us = self.us.max(us);
    }

    /// Makes the time shorter by one of `parts` parts.
    pub fn fade(&mut self, parts: u32) {
        self.us -= self.us.div_ceil(parts.max(1));
        if self.us < LINGER_MIN_US / 2 {
            *self = Self::NONE;
        }
    }

    fn half_us(&self) -> u64 {
        u64::from(self.us.div_ceil(2))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_ended_is_counted_for_a_while() {
        let mut linger = Linger::NONE;
        linger.ended(5);
        assert_eq!((linger.places(5), linger.until(5)), (0, None));
        assert!(linger.too_short(9, 5, LINGER_MAX_US));
        assert!(linger.too_short(9, 9, LINGER_MAX_US), "it is longer since");
        assert_eq!(linger.us, LINGER_MIN_US);
        for now_us in [1000, 1000, 2000, 17_000] {
            linger.ended(now_us);
        }
        assert_eq!((linger.places(17_000), linger.until(17_000)), (4, Some(27_000)));
        // Three of them are of the older half, which goes as soon as the younger one is over.
        assert_eq!((linger.places(26_999), linger.until(26_999)), (4, Some(27_000)));
        assert_eq!((linger.places(27_000), linger.until(27_000)), (1, Some(37_000)));
        assert_eq!((linger.places(37_000), linger.until(37_000)), (0, None));
        // A clock that goes back blocks nothing for long.
        linger.ended(50_000);
        linger.clock(1);
        linger.ended(1);
        assert_eq!((linger.places(1), linger.until(1)), (2, Some(20_001)));
    }

    #[test]
    fn it_doubles_and_fades() {
        let mut linger = Linger::NONE;
        let doubled = std::iter::from_fn(|| linger.double(1, LINGER_MAX_US).then_some(())).count();
        assert_eq!((doubled, linger.us), (5, LINGER_MAX_US));
        linger.at_least(LINGER_MAX_US + 1);
        assert!(!linger.double(1, LINGER_MAX_US) && linger.double(1, LINGER_MAX_CLOSED_US));
        let faded = std::iter::from_fn(|| {
            linger.fade(64);
            (!linger.is_none()).then_some(())
        });
        // A limit of 0 has no parts.
        let mut none = Linger::NONE;
        none.double(1, LINGER_MAX_US);
        none.fade(0);
        assert!(none.is_none());
        assert!((200..400).contains(&faded.count()));
    }
}
