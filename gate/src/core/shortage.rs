//! A shortage of this machine: no ports left, no route, no memory for sockets. Then connections to all servers fail at
//! once, and the servers are not the cause.
//!
//! **Signs.** A shortage is assumed if three things come together. Within [`WINDOW_US`], at least [`WITNESSES`] keys
//! fail to connect whose servers took mail within [`WITNESS_US`]. There are at least as many failures as deliveries
//! that were started within the same time and have no result yet. And hardly any delivery that was started since the
//! first failure has connected.
//!
//! **Consequences.** The limits of these keys go back to what they were, nothing starts for 2 s, and deliveries that
//! could not connect do not count as attempts. If the failures go on after that, the pause becomes 8, 16, and then 30
//! s.
//!
//! **Witnesses** are only keys that took mail recently, so a list of a thousand dead domains has none. An attacker who
//! lets many live domains die together would need half of all deliveries here, and would gain pauses of some seconds. A
//! hosting company with fifty domains that is down is not half of the deliveries if there is other mail; if there is
//! none, a pause of 2 s does no harm.
//!
//! A dead resolver says nothing of servers: see [`crate::report`].

#![forbid(unsafe_code)]

use crate::core::learn::Learned;

/// Failures within this time belong together, in microseconds.
pub const WINDOW_US: u64 = 2_000_000;
/// How many such keys must fail to connect.
pub const WITNESSES: usize = 5;
/// The most keys whose earlier limits are remembered.
const WITNESSES_MAX: usize = 128;
/// A key is a witness if its server took mail within this time, in microseconds.
pub const WITNESS_US: u64 = 600_000_000;
/// How long nothing starts, in microseconds: the first time, the second, and so on. Each is shorter than a hold. The
/// first three together last 26 s: if the shortage is over by then, no mail has used up its returns.
pub const PAUSES_US: [u64; 4] = [2_000_000, 8_000_000, 16_000_000, 30_000_000];

/// A key whose deliveries failed to connect.
#[derive(Clone, Copy, Debug)]
pub struct Witness {
    /// Its index among the keys.
    pub at: u32,
    /// Its number, by which the gate knows whether the index is still that of this key.
    pub number: u32,
    /// What was known of its server before.
    pub learned: Learned,
}

/// Detects a shortage. See the module.
#[derive(Clone, Debug)]
pub struct Shortage {
    witnesses: [Option<Witness>; WITNESSES_MAX],
    seen: usize,
    /// When the first failure of the window was seen.
    since_us: u64,
    failures: u32,
    connected: u32,
    /// The number of failures at which deliveries without a result are counted. Rarely, because that reads each slot.
    count_at: u32,
    /// Nothing starts before this time; 0: no pause since the last connection.
    until_us: u64,
    pauses: usize,
}

impl Default for Shortage {
    fn default() -> Self {
        Self {
            witnesses: [None; WITNESSES_MAX],
            seen: 0,
            since_us: 0,
            count_at: 0,
            failures: 0,
            connected: 0,
            until_us: 0,
            pauses: 0,
        }
    }
}

impl Shortage {
    /// The end of the pause, if there is one now.
    #[inline]
    #[must_use]
    pub fn paused_until(&self, now_us: u64) -> Option<u64> {
        (self.until_us > now_us).then_some(self.until_us)
    }

    /// Whether a delivery that fails to connect now is taken for a part of the shortage.
    #[must_use]
    pub fn is_on(&self, now_us: u64) -> bool {
        self.pauses > 0 && now_us < self.until_us.saturating_add(WINDOW_US)
    }

    /// Whether no connection failed recently: then [`Shortage::connected`] has nothing to do.
    #[inline]
    #[must_use]
    pub fn is_quiet(&self, now_us: u64) -> bool {
        let is_old = now_us.saturating_sub(self.since_us) > WINDOW_US;
        self.pauses == 0 && (self.failures == 0 || is_old)
    }

    /// Notes that a delivery that started at this time has connected.
    #[inline]
    pub fn connected(&mut self, started_us: u64) {
        if self.pauses > 0 && started_us >= self.until_us {
            *self = Self::default();
        } else if self.failures > 0 && started_us >= self.since_us {
            self.connected = self.connected.saturating_add(1);
        }
    }

    /// Notes that a delivery could not connect. `pending` returns how many running deliveries were started since a
    /// time. True: a pause begins, and [`Shortage::take`] returns the keys.
    pub fn failed(
        &mut self,
        now_us: u64,
        witness: Option<Witness>,
        pending: impl FnOnce(u64) -> u32,
    ) -> bool {
        if now_us < self.until_us {
            return false;
        }
        if self.pauses > 0 && !self.is_on(now_us) {
            *self = Self::default();
        }
        if self.failures == 0 || now_us.saturating_sub(self.since_us) > WINDOW_US {
            self.witnesses[..self.seen].fill(None);
            (self.seen, self.failures, self.connected) = (0, 0, 0);
            (self.since_us, self.count_at) = (now_us, WITNESSES as u32);
        }
        self.failures = self.failures.saturating_add(1);
        if let Some(witness) = witness
            && self.seen < WITNESSES_MAX
            && !self.witnesses.iter().flatten().any(|other| other.number == witness.number)
        {
            self.witnesses[self.seen] = Some(witness);
            self.seen += 1;
        }
        if self.seen < WITNESSES
            || self.failures < self.count_at
            || self.failures < self.connected.saturating_mul(4)
        {
            return false;
        }
        self.count_at = self.failures.saturating_add(self.failures / 4 + 1);
        if self.failures < pending(now_us.saturating_sub(WINDOW_US)) {
            return false;
        }
        self.until_us = now_us.saturating_add(PAUSES_US[self.pauses.min(PAUSES_US.len() - 1)]);
        self.pauses += 1;
        self.failures = 0;
        true
    }

    /// Takes out the witnesses, one with each call.
    pub fn take(&mut self) -> Option<Witness> {
        self.seen = self.seen.checked_sub(1)?;
        self.witnesses[self.seen].take()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn witness(number: u32) -> Option<Witness> {
        Some(Witness { at: number, number, learned: Learned::NEW })
    }

    #[test]
    fn many_keys_at_once() {
        let mut shortage = Shortage::default();
        for number in 0..4 {
            assert!(!shortage.failed(1000, witness(number), |_| 0));
            // The same key once more.
            assert!(!shortage.failed(1000, witness(number), |_| 0));
        }
        assert_eq!(shortage.paused_until(1000), None);
        assert!(shortage.failed(1000, witness(4), |_| 9));
        assert_eq!(shortage.paused_until(1000), Some(1000 + PAUSES_US[0]));
        assert_eq!(std::iter::from_fn(|| shortage.take()).count(), WITNESSES);
        // It goes on.
        let again_us = 1000 + PAUSES_US[0];
        assert!(shortage.is_on(again_us));
        for number in 0..4 {
            assert!(!shortage.failed(again_us, witness(number), |_| 0));
        }
        assert!(shortage.failed(again_us, witness(4), |_| 0));
        assert_eq!(shortage.paused_until(again_us), Some(again_us + PAUSES_US[1]));
        // It is over.
        shortage.connected(again_us + PAUSES_US[1]);
        assert!(!shortage.is_on(again_us + PAUSES_US[1]));
    }

    #[test]
    fn few_keys_or_few_failures_or_slowly() {
        // Never accepted.
        let mut shortage = Shortage::default();
        assert!((0..1000).all(|_| !shortage.failed(1000, None, |_| 0)));
        // Most of what was started has not failed.
        assert!((0..20).all(|i| !shortage.failed(1000, witness(i), |_| 2000)));
        // It connects elsewhere.
        let mut shortage = Shortage::default();
        assert!((0..20).all(|i| {
            let fails = shortage.failed(1000, witness(i), |_| 0);
            shortage.connected(1000);
            !fails
        }));
        // One after the other.
        let mut shortage = Shortage::default();
        assert!((0..20).all(|i| !shortage.failed(
            u64::from(i) * (WINDOW_US + 1),
            witness(i),
            |_| 0
        )));
    }
}
