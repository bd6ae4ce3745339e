//! How fast a key is served, how much of its mail is away, and for how long the next one is sent away.
//!
//! **The rate** is limit / mean service time. Not the rate of completions: that falls when the hold runs empty, and then
//! keeps itself low. The mean is work / completions. Work counts the time of the deliveries that still run, too, and each
//! of them is half a completion: what has run for some time will run as long again. So a server that hangs is seen as
//! slow before its first delivery has ended, and a new one as quick as it may still prove to be.
//!
//! **The wait** of a mail ends in the first second for which less mail is due back than there should be. How much should
//! be is the rate, times a factor:
//!
//! - 1.05 is exact while nothing changes: each mail comes back once, in its turn, and the hold absorbs the excess. But
//!   mail that is away cannot be called back. If the server becomes five times as fast, its places stay idle until the
//!   mail comes; and what was sent away while it was slow stays away when it recovers.
//! - 5 makes up for a server that becomes five times as fast, or recovers from being five times as slow, at once. But
//!   of five mails that come back, four are sent away again.
//!
//! So the factor is 5 while the rate is new, and as it lasts comes down to what costs no more than a fixed time: with a
//! backlog of B seconds it is B / (B / 5 + delay). Such a backlog is gone after B / 5 + delay, instead of B / 5, should the
//! rate become five times as high; and the longer the backlog, the less the delay matters.
//!
//! Measured with the model in tests/ (50,000 mails, 20 places, 500 s): 2.9 busy answers a mail, and every place busy
//! to the end; what else was tried, and the figures of all scenarios, are in tests/simulation.rs.

#![forbid(unsafe_code)]

use crate::memory::{self, OutOfMemory};
use crate::random::Random;

/// The longest time that mail is sent away, in seconds; qmail-send accepts no more.
pub const AWAY_MAX_SECS: u32 = 3600;

/// For limit 0 nothing has a rate. Opening such a key takes effect within this time.
const CLOSED_SECS: u32 = 600;
const FACTOR_MIN: f64 = 1.05;
const FACTOR_MAX: f64 = 5.0;
/// The delay that is accepted when the rate becomes FACTOR_MAX times as high: while the rate is new, and later.
const DELAY_NEW_SECS: f64 = 3.0;
const DELAY_SECS: f64 = 100.0;
/// A rate is new for so long, and becomes an old one in as much time again.
const NEW_SECS: f64 = 80.0;
/// All keys together bring no more mail back a second: qmail-send has to pass and to log each of them. A third or half
/// of what it can do; it is shared in proportion to what is delivered.
const PASSES_A_SECOND: f64 = 1500.0;
/// Mail is due back when so much is still held: an empty hold would be an idle place.
const SPARE_SECS: f64 = 2.0;
/// A mean that is wrong by no more than this factor is still the same rate.
const STEADY_FACTOR: f64 = 1.6;
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

/// Where a key stands when mail is sent away.
#[derive(Clone, Copy, Debug)]
pub struct Standing {
    /// How many may run.
    pub limit: u32,
    /// How many are held.
    pub held: u32,
    /// How many may be held.
    pub room: u32,
    /// Deliveries of all keys done a second.
    pub overall_rate: f64,
}

/// The pace of one key.
#[derive(Clone, Debug)]
pub struct Pace {
    work_us: f64,
    completions: f64,
    running: u32,
    last_us: u64,
    steady_mean_secs: f64,
    steady_since_us: u64,
    rate: Rate,
    away: Away,
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
            steady_mean_secs: guess,
            steady_since_us: now_us,
            rate: Rate::new(now_us),
            away: Away::default(),
        }
    }

    /// Makes it as new; its memory for what is away is used again.
    pub fn reset(&mut self, now_us: u64, guess_secs: Option<f64>) {
        let mut away = std::mem::take(&mut self.away);
        if away.total > 0 {
            away.counts.fill(0);
            away.total = 0;
        }
        *self = Self { away, ..Self::new(now_us, guess_secs) };
    }

    /// The bytes that it occupies besides itself.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.away.counts.capacity() * 4
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
            self.watch(now_us);
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

    fn watch(&mut self, now_us: u64) {
        let mean = self.mean_secs();
        if mean > self.steady_mean_secs * STEADY_FACTOR
            || mean * STEADY_FACTOR < self.steady_mean_secs
        {
            self.steady_mean_secs = mean;
            self.steady_since_us = now_us;
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

    /// How many can be started within so many seconds, at this limit.
    #[must_use]
    pub fn served_within(&self, secs: f64, limit: u32) -> f64 {
        f64::from(limit) / self.mean_secs() * secs
    }

    /// How much mail of this key is away, about: as of its last event.
    #[must_use]
    pub fn away_at(&self, now_us: u64) -> u32 {
        let mut away = self.away.total;
        let behind = (now_us / 1_000_000).saturating_sub(self.away.now_secs).min(NEAR_SECS);
        if away > 0 {
            for second in 1..=behind {
                away = away.saturating_sub(
                    self.away.counts[((self.away.now_secs + second) % NEAR_SECS) as usize],
                );
            }
        }
        away
    }

    /// How much mail of this key is away now.
    pub fn away(&mut self, now_us: u64) -> u32 {
        self.away.advance(now_us / 1_000_000);
        self.away.total
    }

    /// Sends a mail away: for how many seconds, 1..=[`AWAY_MAX_SECS`]. [`Pace::run`] has been called.
    pub fn send_away(&mut self, now_us: u64, at: &Standing, random: &mut Random) -> u32 {
        let away = self.away(now_us);
        if away == 0 {
            self.steady_since_us = now_us;
        }
        self.watch(now_us);
        let secs = if at.limit == 0 {
            between(CLOSED_SECS, random)
        } else {
            let rate = f64::from(at.limit) / self.mean_secs();
            let backlog_secs = f64::from(away + at.held) / rate;
            let factor = self.factor(now_us, backlog_secs, at.overall_rate);
            let fill = rate * factor;
            let spare = f64::from(at.room / 2).min(rate * SPARE_SECS);
            // A guess of the rate must not leave the places idle for as long as the hold would last by it.
            let drain = if self.is_known() { rate } else { fill };
            let first = ((f64::from(at.held) - spare) / drain).max(0.0);
            self.away
                .first_gap(first, fill, f64::from(at.room), random)
                .unwrap_or_else(|| between(AWAY_MAX_SECS, random))
        };
        self.away.add(now_us / 1_000_000 + u64::from(secs));
        secs
    }

    fn factor(&self, now_us: u64, backlog_secs: f64, overall_rate: f64) -> f64 {
        let steady_secs = seconds_between(self.steady_since_us, now_us);
        let age = ((steady_secs - NEW_SECS) / NEW_SECS).clamp(0.0, 1.0);
        let delay_secs = (age * DELAY_SECS).max(DELAY_NEW_SECS);
        let factor = backlog_secs / (backlog_secs / FACTOR_MAX + delay_secs);
        factor.min(PASSES_A_SECOND / overall_rate.max(1.0)).max(FACTOR_MIN)
    }

    /// Whether forgetting it loses nothing.
    pub fn is_idle(&mut self, now_us: u64) -> bool {
        self.away(now_us) == 0
    }
}

/// A number of seconds in the upper half of 1..=most.
fn between(most: u32, random: &mut Random) -> u32 {
    most - (random.fraction() * f64::from(most / 2)) as u32
}

fn seconds_between(from_us: u64, to_us: u64) -> f64 {
    to_us.saturating_sub(from_us).min(STEP_MAX_US) as f64 * 1e-6
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

const NEAR_SECS: u64 = 256;
const BLOCK_SECS: u64 = 64;
const BLOCKS: u64 = 64;
const LATEST_SECS: u64 = BLOCK_SECS * (BLOCKS - 1);

/// How many mails come back in each second: a timing wheel of counters. The next 256 seconds have one each; later ones
/// share one for 64 seconds, which is spread evenly when it comes near. 1280 bytes, and none before the first use.
#[derive(Clone, Debug, Default)]
struct Away {
    counts: Vec<u32>,
    now_secs: u64,
    total: u32,
}

impl Away {
    /// Without memory the mail is simply not counted.
    fn add(&mut self, at_secs: u64) {
        if self.allocate().is_err() {
            return;
        }
        let at_secs = at_secs.clamp(self.now_secs + 1, self.now_secs + LATEST_SECS);
        if at_secs < self.now_secs + NEAR_SECS {
            self.counts[(at_secs % NEAR_SECS) as usize] += 1;
        } else {
            self.counts[Self::block_index(at_secs / BLOCK_SECS)] += 1;
        }
        self.total = self.total.saturating_add(1);
    }

    /// The first second from now on, not before `first`, in which less than `fill` comes back; counting what comes back
    /// before and does not fit, but no more of it than there is `room` for. None within the reach of the wheel.
    fn first_gap(&self, first: f64, fill: f64, room: f64, random: &mut Random) -> Option<u32> {
        let count = |index: usize| f64::from(self.counts.get(index).copied().unwrap_or(0));
        let start = first as u64 + 1;
        let mut level = 0.0f64;
        for second in self.now_secs + start..self.now_secs + NEAR_SECS {
            level = (level + count((second % NEAR_SECS) as usize) - fill).min(room);
            if level < 0.0 {
                return Some((second - self.now_secs) as u32);
            }
        }
        let blocks = (self.now_secs + NEAR_SECS).div_ceil(BLOCK_SECS)
            ..(self.now_secs + u64::from(AWAY_MAX_SECS)) / BLOCK_SECS;
        for block in blocks {
            level = (level + count(Self::block_index(block)) - fill * BLOCK_SECS as f64).min(room);
            if level < 0.0 {
                let from = block * BLOCK_SECS - self.now_secs;
                return Some((from + random.next() % BLOCK_SECS) as u32);
            }
        }
        None
    }

    fn allocate(&mut self) -> Result<(), OutOfMemory> {
        if self.counts.is_empty() {
            self.counts = memory::filled(0, (NEAR_SECS + BLOCKS) as usize)?;
        }
        Ok(())
    }

    fn block_index(block: u64) -> usize {
        (NEAR_SECS + block % BLOCKS) as usize
    }

    fn advance(&mut self, now_secs: u64) {
        if self.total == 0 || now_secs > self.now_secs + LATEST_SECS + NEAR_SECS {
            if self.total > 0 {
                self.counts.fill(0);
                self.total = 0;
            }
            self.now_secs = self.now_secs.max(now_secs);
            return;
        }
        while self.now_secs < now_secs {
            self.now_secs += 1;
            let due = std::mem::take(&mut self.counts[(self.now_secs % NEAR_SECS) as usize]);
            self.total = self.total.saturating_sub(due);
            if self.now_secs.is_multiple_of(BLOCK_SECS) {
                self.spread((self.now_secs + NEAR_SECS - BLOCK_SECS) / BLOCK_SECS);
            }
        }
    }

    /// The block lies wholly within the next 256 seconds from now on.
    fn spread(&mut self, block: u64) {
        let count = std::mem::take(&mut self.counts[Self::block_index(block)]);
        let (each, more) = (count / BLOCK_SECS as u32, u64::from(count) % BLOCK_SECS);
        for second in 0..BLOCK_SECS {
            // The remainder evenly, too: second s gets one when s * more / 64 steps.
            let extra = ((second + 1) * more / BLOCK_SECS - second * more / BLOCK_SECS) as u32;
            self.counts[((block * BLOCK_SECS + second) % NEAR_SECS) as usize] += each + extra;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SEC: u64 = 1_000_000;

    #[test]
    fn what_is_away_comes_back() {
        let mut away = Away::default();
        away.advance(1000);
        for secs in [1, 5, 255, 256, 300, 1000, 3600, 4000] {
            away.add(1000 + secs);
        }
        assert_eq!(away.total, 8);
        let after = |away: &mut Away, secs: u64| {
            away.advance(1000 + secs);
            away.total
        };
        assert_eq!(after(&mut away, 0), 8);
        assert_eq!(after(&mut away, 1), 7);
        assert_eq!(after(&mut away, 5), 6);
        assert_eq!(after(&mut away, 5), 6);
        assert_eq!(after(&mut away, 600), 3);
        assert_eq!(after(&mut away, 1100), 2);
        assert_eq!(after(&mut away, 4100), 0);
        away.add(6000);
        assert_eq!(after(&mut away, 100_000), 0);
    }

    #[test]
    fn many_away_are_never_lost() {
        let mut away = Away::default();
        let mut random = Random::new(1);
        let mut now = 5;
        for _ in 0..20_000 {
            now += random.next() % 3;
            away.advance(now);
            away.add(now + 1 + random.next() % 3600);
            let sum: u64 = away.counts.iter().map(|&count| u64::from(count)).sum();
            assert_eq!(sum, u64::from(away.total));
        }
        away.advance(now + 4200);
        assert_eq!(away.total, 0);
    }

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

    fn standing(held: u32) -> Standing {
        Standing { limit: 20, held, room: 490, overall_rate: 100.0 }
    }

    #[test]
    fn what_is_away_comes_back_five_times_as_fast_while_the_rate_is_new() {
        let mut pace = Pace::new(0, Some(0.2));
        let mut random = Random::new(1);
        let waits: Vec<u32> =
            (0..40_000).map(|_| pace.send_away(0, &standing(0), &mut random)).collect();
        assert_eq!(waits[0], 1);
        assert_eq!(pace.away_at(0), 40_000);
        // 400 s of backlog: B / (B / 5 + 3) is 4.8.
        assert!((79..95).contains(&waits[39_999]), "{}", waits[39_999]);
    }

    #[test]
    fn what_is_away_comes_back_in_its_turn_when_the_backlog_is_short() {
        let mut pace = Pace::new(0, Some(0.2));
        let mut random = Random::new(1);
        let waits: Vec<u32> =
            (0..100).map(|_| pace.send_away(0, &standing(400), &mut random)).collect();
        assert!(waits.iter().all(|wait| (1..=8).contains(wait)), "{waits:?}");
    }

    #[test]
    fn closed_keys_send_away_for_minutes() {
        let mut pace = Pace::new(0, None);
        let mut random = Random::new(1);
        let closed = Standing { limit: 0, ..standing(0) };
        let waits: Vec<u32> = (0..1000).map(|_| pace.send_away(0, &closed, &mut random)).collect();
        assert!(waits.iter().all(|wait| (300..=600).contains(wait)));
        assert!(waits.iter().any(|&wait| wait < 350) && waits.iter().any(|&wait| wait > 550));
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
            let secs = pace.send_away(now, &standing(100), &mut random);
            assert!((1..=AWAY_MAX_SECS).contains(&secs));
        }
    }
}
