//! How fast a key is served.
//!
//! **The rate** is limit / mean service time. The rate of completions would be wrong: it falls when nothing is held any
//! more, and then keeps itself low.
//!
//! **The mean** is work / completions. The work includes the time of the deliveries that still run, and each of these
//! counts as half a completion: a delivery that has run for some time is expected to run as long again. So a server
//! that hangs is known to be slow before its first delivery has ended.

#![forbid(unsafe_code)]

use crate::util::random::Random;

/// The longest time that mail is sent away, in seconds; qmail-send accepts no more.
pub const AWAY_MAX_SECS: u32 = 3600;

/// With limit 0 nothing is called back; such mail is tried again after half of this to all of it, in seconds.
const CLOSED_SECS: u32 = 600;
/// Mail that is not called back comes back by itself after this many times the expected time, plus [`LATE_SECS`]. That
/// is late enough that a call comes first, unless calls are lost or the rate has fallen.
const LATE_FACTOR: f64 = 1.5;
/// See [`LATE_FACTOR`]. In seconds.
const LATE_SECS: f64 = 60.0;
/// The gate holds what the server takes in this time, in seconds: qmail-send may be busy with its disk for as long.
pub(crate) const SPARE_SECS: f64 = 2.0;
/// Mail that cannot start within this time, in seconds, is not held. Less than the longest hold (60 s), because the
/// rate may fall.
pub(crate) const REACH_SECS: f64 = 45.0;
// The next six figures are assumptions: no measurement gave them. Each says what follows from it.

/// The mean is of at least this many completions. The error of such a mean is an eighth of the spread of the service
/// times.
const REMEMBERED_COMPLETIONS: f64 = 64.0;
/// If more complete, the mean is of about this many last seconds: it follows a change of the server in that time.
const REMEMBERED_SECS: f64 = 5.0;
/// The service time that a key begins with if there is no better guess, in seconds.
const SERVICE_SECS: f64 = 1.0;
/// The first guess counts as a quarter of a completion. So one real delivery outweighs it four to one.
const GUESS_WEIGHT: f64 = 0.25;
/// From this many completions on, the guess included, the mean is more than a guess: that is four deliveries, and the
/// guess is a seventeenth of them.
const KNOWN_COMPLETIONS: f64 = 4.0;
/// The rate that the status shows is of about this many last seconds.
const RATE_SECS: f64 = 10.0;

/// If more time than this passes between two events, the clock has jumped. In microseconds.
const STEP_MAX_US: u64 = 3600 * 1_000_000;

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
    /// Only a guess of the mean service time is known, in seconds.
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

    /// Counts the work up to now. Call it before the number of running deliveries changes.
    #[inline]
    pub fn run(&mut self, now_us: u64, running: u32) {
        let elapsed_us = now_us.saturating_sub(self.last_us).min(STEP_MAX_US);
        self.work_us += f64::from(running) * elapsed_us as f64;
        self.last_us = now_us;
        self.running = running;
    }

    /// Counts a delivery that ran and is done. Call [`Pace::run`] first.
    #[inline]
    pub fn complete(&mut self, now_us: u64) {
        self.completions += 1.0;
        self.running = self.running.saturating_sub(1);
        if let Some(elapsed_secs) = self.rate.count(now_us) {
            self.forget(elapsed_secs);
        }
    }

    /// Called once a second at most. Completions older than [`REMEMBERED_SECS`] count less and less, as long as
    /// [`REMEMBERED_COMPLETIONS`] are left.
    fn forget(&mut self, elapsed_secs: u64) {
        let keep = (REMEMBERED_SECS / (REMEMBERED_SECS + elapsed_secs as f64))
            .max(REMEMBERED_COMPLETIONS / self.completions);
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
        self.completions >= KNOWN_COMPLETIONS
    }

    /// Deliveries done a second, over about the last ten seconds.
    #[must_use]
    pub fn recent_rate(&self, now_us: u64) -> f64 {
        self.rate.at(now_us)
    }

    fn served_within(&self, secs: f64, limit: u32) -> f64 {
        f64::from(limit) / self.mean_secs() * secs
    }

    /// The most that may be held at this limit so that all start within [`REACH_SECS`].
    #[must_use]
    pub fn reach(&self, limit: u32) -> u32 {
        if self.is_known() { self.served_within(REACH_SECS, limit) as u32 } else { u32::MAX }
    }

    /// How many to hold at this limit, so that no place is idle until more mail has come: what the server takes within
    /// [`SPARE_SECS`], but at least one for each place, in case all end at once; and at most [`Pace::reach`].
    #[must_use]
    pub fn spare(&self, limit: u32) -> u32 {
        let spare = if self.is_known() { self.served_within(SPARE_SECS, limit) as u32 } else { 0 };
        spare.max(limit).min(self.reach(limit))
    }

    /// Seconds after which mail comes back by itself, 1..=[`AWAY_MAX_SECS`], if `before` mails are before it.
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

/// A random number of seconds in the upper half of 1..=most.
fn between(most: u32, random: &mut Random) -> u32 {
    most - (random.fraction() * f64::from(most / 2)) as u32
}

/// Events a second, over about [`RATE_SECS`] seconds.
#[derive(Clone, Copy, Debug)]
pub struct Rate {
    second: u64,
    in_second: u32,
    mean: f64,
}

impl Rate {
    /// No events yet.
    #[must_use]
    pub fn new(now_us: u64) -> Self {
        Self { second: now_us / 1_000_000, in_second: 0, mean: 0.0 }
    }

    /// Counts an event. If a new second has begun: how many seconds since that of the last event.
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

    /// The rate now, without the second that has not ended.
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
        // A server that hangs counts as slow before anything has ended.
        pace.run(now + 30 * SEC, 20);
        assert!(pace.mean_secs() > 1.0);
    }

    /// A known pace: a mean of 0.2 s.
    fn steady() -> Pace {
        let mut pace = Pace::new(0, Some(0.2));
        pace.work_us = 100.0 * 0.2e6;
        pace.completions = 100.0;
        pace
    }

    #[test]
    fn the_gate_holds_what_the_server_takes_in_two_seconds() {
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
