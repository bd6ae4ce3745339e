//! The share of each limit that this host may use, where several hosts share the limits through `qpatch gate share`.
//!
//! The agent gives the gate a list of keys and shares, with the end of the lease. [`crate::host::lease`] reads it, and
//! this module says what it means for a key:
//!
//! - **While the lease runs**, a listed key has its share. A key that is not listed has the start-up share: one
//!   delivery, or none if the limit is below the number of hosts. The store counts this one for each host that has
//!   listed nothing, so the shares of all hosts fit the limit.
//! - **Settling**: for as long as the file says after the end of the lease, a key has what it had, but not more than
//!   the fall-back share: the limit divided by the number of hosts. The others learn meanwhile that this host is lost.
//! - **Over**: each key has the fall-back share. It is at least one, unless the operator says 0.
//!
//! Limits of 0 and keys without a limit have no shares. A share never raises a limit.

#![forbid(unsafe_code)]

use crate::control::limit::Limit;
use crate::util::memory::OutOfMemory;

/// No share: the limit counts alone.
pub const NO_SHARE: u32 = u32::MAX;

/// How far the lease is, in the order of time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum LeasePhase {
    /// Nothing is shared.
    #[default]
    None,
    /// The lease runs.
    Valid,
    /// It is over, and the other hosts may not know that yet.
    Settling,
    /// It is over, and the others know that.
    Over,
}

impl LeasePhase {
    /// All, with their names in the status file.
    const NAMES: [(Self, &'static str); 4] = [
        (Self::None, "none"),
        (Self::Valid, "valid"),
        (Self::Settling, "settling"),
        (Self::Over, "over"),
    ];

    /// Its name in the status file.
    #[must_use]
    pub fn name(self) -> &'static str {
        Self::NAMES.iter().find(|(phase, _)| *phase == self).map_or("none", |(_, name)| name)
    }

    /// The phase with this name in the status file.
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        Self::NAMES.iter().find(|(_, known)| *known == name).map(|&(phase, _)| phase)
    }
}

/// The start-up share: what a host may use of a limit before it has asked for more.
#[must_use]
pub fn start_share(limit: u32, hosts: u32) -> u32 {
    u32::from(limit >= hosts)
}

/// The fall-back share: what a host may use of a limit without contact to the others.
#[must_use]
pub fn fall_back_share(limit: u32, hosts: u32, least: u32) -> u32 {
    (limit / hosts.max(1)).max(least).min(limit)
}

/// What the agent gave the gate.
#[derive(Debug, Default)]
pub struct HostShares {
    /// The hash of a key, and its share; in the order of the hashes.
    listed: Vec<(u64, u32)>,
    pub(crate) phase: LeasePhase,
    /// The number of hosts for [`start_share`].
    pub(crate) start_hosts: u32,
    /// The number of hosts for [`fall_back_share`].
    pub(crate) hosts: u32,
    /// The least fall-back share: 0 or 1.
    pub(crate) least: u32,
}

impl HostShares {
    /// Forgets the list. Its memory stays for the next one.
    pub(crate) fn clear(&mut self) {
        self.listed.clear();
    }

    /// Begins a list of at most this many keys.
    ///
    /// # Errors
    /// No memory: the list is as before.
    pub(crate) fn start(&mut self, keys_max: usize) -> Result<(), OutOfMemory> {
        self.listed.try_reserve(keys_max.saturating_sub(self.listed.len()))?;
        self.listed.clear();
        Ok(())
    }

    /// Adds a key, if there is room for it.
    pub(crate) fn list(&mut self, hash: u64, share: u32) {
        if self.listed.len() < self.listed.capacity() {
            self.listed.push((hash, share));
        }
    }

    /// The list is complete.
    pub(crate) fn sort(&mut self) {
        self.listed.sort_unstable();
    }

    /// How many keys are listed.
    #[must_use]
    pub fn len(&self) -> usize {
        self.listed.len()
    }

    /// Whether none is.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.listed.is_empty()
    }

    /// How far the lease is.
    #[must_use]
    pub fn phase(&self) -> LeasePhase {
        self.phase
    }

    /// The number of hosts that share the limits.
    #[must_use]
    pub fn hosts(&self) -> u32 {
        self.hosts
    }

    /// The share of a key with this hash and limit.
    pub(super) fn of(&self, hash: u64, limit: Limit) -> u32 {
        let limit = match limit {
            Limit::AtMost(limit @ 1..) if self.phase != LeasePhase::None => limit,
            Limit::AtMost(_) | Limit::Unlimited => return NO_SHARE,
        };
        let fall_back = fall_back_share(limit, self.hosts, self.least);
        match self.phase {
            LeasePhase::None | LeasePhase::Valid => self.leased(hash, limit),
            LeasePhase::Settling => self.leased(hash, limit).min(fall_back),
            LeasePhase::Over => fall_back,
        }
    }

    fn leased(&self, hash: u64, limit: u32) -> u32 {
        let listed = self.listed.binary_search_by_key(&hash, |&(hash, _)| hash);
        listed.map_or(start_share(limit, self.start_hosts), |at| self.listed[at].1).min(limit)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_key_may_use_in_each_phase() {
        let mut shares = HostShares { start_hosts: 8, hosts: 8, least: 1, ..HostShares::default() };
        shares.start(2).unwrap();
        shares.list(7, 12);
        shares.list(3, 0);
        shares.sort();
        let cases = [
            (LeasePhase::None, [NO_SHARE, NO_SHARE, NO_SHARE, NO_SHARE]),
            (LeasePhase::Valid, [12, 0, 1, 0]),
            (LeasePhase::Settling, [2, 0, 1, 0]),
            (LeasePhase::Over, [2, 2, 2, 1]),
        ];
        for (phase, expected) in cases {
            shares.phase = phase;
            let limits = [(7, 20), (3, 20), (5, 20), (5, 7)];
            assert_eq!(
                limits.map(|(hash, limit)| shares.of(hash, Limit::AtMost(limit))),
                expected,
                "{phase:?}"
            );
            assert_eq!(shares.of(7, Limit::Unlimited), NO_SHARE);
            assert_eq!(shares.of(7, Limit::AtMost(0)), NO_SHARE);
            assert_eq!(LeasePhase::parse(phase.name()), Some(phase));
        }
        // A share above the limit, which was lowered, does not count.
        shares.phase = LeasePhase::Valid;
        assert_eq!(shares.of(7, Limit::AtMost(5)), 5);
        (shares.phase, shares.least) = (LeasePhase::Over, 0);
        assert_eq!(shares.of(7, Limit::AtMost(7)), 0);
    }
}
