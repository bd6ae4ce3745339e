//! How fast a key is served.
//!
//! **The rate** is limit / mean service time. Not the rate of completions: that falls when the hold runs empty, and
//! then keeps itself low. The mean is work / completions. Work counts the time of the deliveries that still run, too,
//! and each of them is half a completion: what has run for some time will run as long again. So a server that hangs is
//! seen as slow before its first delivery has ended, and a new one as quick as it may still prove to be.

#![forbid(unsafe_code)]

use crate::util::random::Random;

/// The longest time that mail is sent away, in seconds; qmail-send accepts no more.
pub const AWAY_MAX_SECS: u32 = 3600;

/// For limit 0 nothing has a rate: mail that is not called back comes to see after this time at the latest.
const CLOSED_SECS: u32 = 600;
/// Mail that is not called back comes after this many times what it should have taken, and so much more.
const LATE_FACTOR: f64 = 1.5;
const LATE_SECS: f64 = 60.0;
/// So much of what can be served is held: qmail-send may be busy with its disk for as long.
const SPARE_SECS: f64 = 2.0;
/// What cannot be started within this time is not held. Less than the hold, because the rate may fall.
const REACH_SECS: f64 = 45.0;
/// Completions that are remembered at least, and seconds that are remembered when there are more.
const REMEMBERED: f64 = 64.0;
const REMEMBERED_SECS: f64 = 5.0;
/// Before anything is known.
const SERVICE_SECS: f64 = 1.0;
const GUESS_WEIGHT: f64 = 0.25;
const KNOWN: f64 = 4.0;
/// A time between two events that is longer than this is a clock that jumped.
const STEP_MAX_US: u64 = 3600 * 1_000_000;
const RATE_SECS: f64 = 10.0;

/// The pace of one key.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    work_us: f64,
    completions: f64,
    running: u32,
    last_us: u64,
    rate: Rate,
}

impl Pace {
    /// Nothing known, but for a guess of the mean service time in seconds.
    #[must_use]
    pub fn new(now_us: u64, guess_secs: Option<f64>) -> Self {
        let guess = guess_secs.unwrap_or(SERVICE_SECS);
        Self {
            work_us: guess * 1e6 * GUESS_WEIGHT,
            completions: GUESS_WEIGHT,
            running: 0,
            last_us: now_us,
            rate: Rate::new(now_us),
        }
    }

    /// To be called before the number of running deliveries changes.
    #[inline]
    pub fn run(&mut self, now_us: u64, running: u32) {
        let elapsed_us = now_us.saturating_sub(self.last_us).min(STEP_MAX_US);
        self.work_us += f64::from(running) * elapsed_us as f64;
        self.last_us = now_us;
        self.running = running;
    }

    /// A delivery that ran is done; [`Pace::run`] has been called.
    #[inline]
    pub fn complete(&mut self, now_us: u64) {
        self.completions += 1.0;
        self.running = self.running.saturating_sub(1);
        if let Some(elapsed_secs) = self.rate.count(now_us) {
            self.forget(elapsed_secs);
        }
    }

    /// Once a second at most: what is older than REMEMBERED_SECS counts less and less, as long as enough is left.
    fn forget(&mut self, elapsed_secs: u64) {
        let keep = (REMEMBERED_SECS / (REMEMBERED_SECS + elapsed_secs as f64))
            .max(REMEMBERED / self.completions);
        if keep < 1.0 {
            self.work_us *= keep;
            self.completions *= keep;
        }
    }

    /// The mean service time of a delivery, in seconds.
    #[must_use]
    pub fn mean_secs(&self) -> f64 {
        (self.work_us / (self.completions + f64::from(self.running) / 2.0) * 1e-6).max(1e-6)
    }

    /// Whether the mean is more than a guess.
    #[must_use]
    pub fn is_known(&self) -> bool {
        self.completions >= KNOWN
    }

    /// Deliveries done a second, over about the last ten seconds.
    #[must_use]
    pub fn recent_rate(&self, now_us: u64) -> f64 {
        self.rate.at(now_us)
    }

    fn served_within(&self, secs: f64, limit: u32) -> f64 {
        f64::from(limit) / self.mean_secs() * secs
    }

    /// How many may be held at this limit, so that all of them start in time.
    #[must_use]
    pub fn reach(&self, limit: u32) -> u32 {
        if self.is_known() { self.served_within(REACH_SECS, limit) as u32 } else { u32::MAX }
    }

    /// How many should be held at this limit, so that no place is idle until more is there: what is served within
    /// SPARE_SECS, and one for each place, should all end at once; but no more than [`Pace::reach`].
    #[must_use]
    pub fn spare(&self, limit: u32) -> u32 {
        let spare = if self.is_known() { self.served_within(SPARE_SECS, limit) as u32 } else { 0 };
        spare.max(limit).min(self.reach(limit))
    }

    /// Seconds after which mail comes back at the latest, 1..=[`AWAY_MAX_SECS`], when so much is before it.
    #[must_use]
    pub fn latest_secs(&self, limit: u32, before: u32, random: &mut Random) -> u32 {
        if limit == 0 {
            return between(CLOSED_SECS, random);
        }
        let backlog_secs = f64::from(before) * self.mean_secs() / f64::from(limit);
        let latest_secs =
            (backlog_secs * LATE_FACTOR + LATE_SECS) * (1.0 + random.fraction() / 4.0);
        (latest_secs as u32).clamp(1, AWAY_MAX_SECS)
    }
}

/// A number of seconds in the upper half of 1..=most.
fn between(most: u32, random: &mut Random) -> u32 {
    most - (random.fraction() * f64::from(most / 2)) as u32
}

/// Events a second, over about RATE_SECS seconds.
#[derive(Clone, Copy, Debug)]
pub struct Rate {
    second: u64,
    in_second: u32,
    mean: f64,
}

impl Rate {
    /// None yet.
    #[must_use]
    pub fn new(now_us: u64) -> Self {
        Self { second: now_us / 1_000_000, in_second: 0, mean: 0.0 }
    }

    /// Counts an event. In a new second: how many have passed since the last event.
    #[inline]
    pub fn count(&mut self, now_us: u64) -> Option<u64> {
        let elapsed = (now_us / 1_000_000).saturating_sub(self.second);
        if elapsed > 0 {
            self.mean = self.at(now_us);
            self.second += elapsed;
            self.in_second = 0;
        }
        self.in_second += 1;
        (elapsed > 0).then_some(elapsed)
    }

    /// The rate now; the second that has not ended counts as the one before.
    #[must_use]
    pub fn at(&self, now_us: u64) -> f64 {
        let elapsed = (now_us / 1_000_000).saturating_sub(self.second);
        if elapsed == 0 {
            return self.mean;
        }
        let keep = 1.0 - 1.0 / RATE_SECS;
        let with_last = self.mean * keep + f64::from(self.in_second) / RATE_SECS;
        with_last * keep.powi(i32::try_from(elapsed - 1).unwrap_or(i32::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SEC: u64 = 1_000_000;

    #[test]
    fn the_mean_follows_the_service_time() {
        let mut pace = Pace::new(0, None);
        let mut now = 0;
        for _ in 0..500 {
            now += 200_000 / 20;
            pace.run(now, 20);
            pace.complete(now);
        }
        assert!((pace.mean_secs() - 0.2).abs() < 0.01, "{}", pace.mean_secs());
        assert!((30.0..100.0).contains(&pace.recent_rate(now)), "{}", pace.recent_rate(now));
        // A server that hangs is slow before anything has ended.
        pace.run(now + 30 * SEC, 20);
        assert!(pace.mean_secs() > 1.0);
    }

    /// Known, with a mean of 0.2 s at 20 places.
    fn steady() -> Pace {
        let mut pace = Pace::new(0, Some(0.2));
        pace.work_us = 100.0 * 0.2e6;
        pace.completions = 100.0;
        pace
    }

    #[test]
    fn the_hold_is_what_two_seconds_serve() {
        assert_eq!(steady().spare(20), 200);
        assert_eq!(steady().reach(20), 4500);
        // Slow servers: one for each place, and no more than can start within the hold.
        let slow = Pace { work_us: 100.0 * 60e6, ..steady() };
        assert_eq!((slow.spare(20), slow.reach(20)), (15, 15));
        let hangs = Pace { work_us: 100.0 * 1200e6, ..steady() };
        assert_eq!(hangs.spare(20), 0);
        assert_eq!(Pace::new(0, None).spare(20), 20);
        assert_eq!(steady().spare(0), 0);
    }

    #[test]
    fn mail_that_is_not_called_comes_back_late() {
        let mut random = Random::new(1);
        let mut waits = |limit, before| {
            (0..1000).map(|_| steady().latest_secs(limit, before, &mut random)).collect::<Vec<_>>()
        };
        // 500 s of backlog.
        assert!(waits(20, 50_000).iter().all(|wait| (810..=1013).contains(wait)));
        assert!(waits(20, 0).iter().all(|wait| (60..=75).contains(wait)));
        assert!(waits(1, 1_000_000).iter().all(|&wait| wait == AWAY_MAX_SECS));
        let closed = waits(0, 50);
        assert!(closed.iter().all(|wait| (300..=600).contains(wait)));
        assert!(closed.iter().any(|&wait| wait < 350) && closed.iter().any(|&wait| wait > 550));
    }

    #[test]
    fn clocks_that_jump_do_no_harm() {
        let mut pace = Pace::new(1 << 50, None);
        pace.run(5, 20);
        pace.complete(4);
        pace.run(u64::MAX, 20);
        pace.complete(u64::MAX);
        let mut random = Random::new(1);
        for now in [0, u64::MAX, 1 << 40, 3] {
            pace.run(now, 20);
            let secs = pace.latest_secs(20, 100, &mut random);
            assert!((1..=AWAY_MAX_SECS).contains(&secs));
        }
    }
}
