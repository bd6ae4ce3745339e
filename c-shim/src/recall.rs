//! Mail of one key that qmail-send keeps because the gate sent it away, and how the gate calls it back.
//!
//! qmail-send keeps such mail in a queue of its own per key, the mail that was due first in front (gate_retry.c), and gives
//! so many of them as the gate calls. The gate calls when what it holds for the key runs low. So mail comes back when
//! there is room for it, however fast the server has become meanwhile; none is sent away twice, and none is overtaken by
//! what came later. The seconds in a busy answer are for the case that no call comes: they end the wait at the latest.
//!
//! The alternative was mail that comes back by the clock alone, paced by limit / mean service time. That needed 2.8 busy
//! answers a mail for a backlog of 500 s and 5.9 for one of an hour, left up to a fifth of the places idle when a server
//! became faster late in a backlog, and under a steady overload some mail was sent away again and again.
//!
//! **What the gate knows** is only how much it has sent away. That may be too much (mail came back by the clock, or one
//! message waits for two keys). A command that comes while called ones are missing is taken for one of them; if it was
//! another, the missing one is taken for new when it comes, and the count is right again. If some are still missing two
//! seconds after the last has come, the count was wrong or qmail-send is slow. From then on one is called, and twice as
//! many each time when all have come; three calls in a row in vain, after 2, 4 and 8 seconds, and nothing is away.

#![forbid(unsafe_code)]

/// Who is called and does not come within this time does not come. The second time in a row: twice, then four times that.
pub const ANSWER_US: u64 = 2_000_000;
const VAIN_MAX: u8 = 3;
/// So many came when called: the count is right.
const TRUSTED: u32 = 1024;

/// See the module.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Recall {
    away: u32,
    called: u32,
    /// The count is in doubt: so many are called next. 0: it is not.
    probe: u32,
    /// Calls in vain, in a row: below [`VAIN_MAX`].
    vain: u8,
    deadline_us: u64,
}

impl Recall {
    /// How much is away, about; what has been called and has not come yet is still away.
    #[must_use]
    pub fn away(&self) -> u32 {
        self.away
    }

    /// How much has been called and has not come yet.
    #[must_use]
    pub fn called(&self) -> u32 {
        self.called
    }

    /// A mail was sent away.
    pub fn sent_away(&mut self) {
        self.away = self.away.saturating_add(1);
        if std::mem::take(&mut self.vain) > 0 {
            // The call that is out was for what is not there; this mail is.
            self.called = 0;
        }
    }

    /// A command has come. True if it is taken for one that was called.
    pub fn arrived(&mut self, now_us: u64) -> bool {
        let Some(called) = self.called.checked_sub(1) else { return false };
        self.called = called;
        self.vain = 0;
        self.away -= 1;
        self.deadline_us = now_us.saturating_add(ANSWER_US);
        if self.probe > 0 {
            // In doubt there is one more, until a call is in vain.
            self.away = self.away.max(called + 1);
            if called == 0 {
                self.probe *= 2;
                if self.probe >= TRUSTED {
                    self.probe = 0;
                }
            }
        }
        true
    }

    /// Calls at most so many. How many are to be called.
    pub fn call(&mut self, most: u32, now_us: u64) -> u32 {
        let number = match self.probe {
            0 => (self.away - self.called).min(most),
            probe if self.called == 0 && self.away > 0 => probe.min(most),
            _ => 0,
        };
        if number > 0 {
            self.called += number;
            self.away = self.away.max(self.called);
            self.deadline_us = now_us.saturating_add(ANSWER_US << self.vain);
        }
        number
    }

    /// What has been called is not waited for any more: when it comes, it is new.
    pub fn cancel(&mut self) {
        self.called = 0;
    }

    /// What has been called and should have come by now does not come. True if that was so; how much it was is in `called`
    /// before.
    pub fn expire(&mut self, now_us: u64) -> bool {
        if self.called == 0 || now_us < self.deadline_us {
            return false;
        }
        self.called = 0;
        self.probe = 1;
        self.vain += 1;
        if self.vain == VAIN_MAX {
            *self = Self::default();
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn away(number: u32) -> Recall {
        let mut recall = Recall::default();
        (0..number).for_each(|_| recall.sent_away());
        recall
    }

    /// qmail-send has this many; all that are called come at once. How many calls and how many seconds it takes.
    fn drain(recall: &mut Recall, mut there: u32, most: u32) -> (u32, u64) {
        let (mut calls, mut now_us) = (0, 0);
        while recall.away() > 0 {
            let called = recall.call(most, now_us);
            calls += u32::from(called > 0);
            for _ in 0..called.min(there) {
                assert!(recall.arrived(now_us));
                there -= 1;
            }
            if recall.called() > 0 {
                now_us = recall.deadline_us;
                assert!(!recall.expire(now_us - 1));
                assert!(recall.expire(now_us));
            }
        }
        assert_eq!(there, 0, "left behind");
        assert_eq!((recall.called(), recall.arrived(now_us)), (0, false));
        (calls, now_us / 1_000_000)
    }

    #[test]
    fn what_was_sent_away_is_called_and_no_more() {
        assert_eq!(drain(&mut away(100), 100, 30), (4, 0));
        assert_eq!(away(100).call(0, 0), 0);
        assert_eq!(Recall::default().call(30, 0), 0);
    }

    #[test]
    fn a_count_that_is_too_high_ends_after_three_calls_in_vain() {
        assert_eq!(drain(&mut away(100), 0, 30), (3, 2 + 4 + 8));
        let (calls, secs) = drain(&mut away(100), 35, 30);
        // 30, 5 of 30 after 2 s, then 1 and 1 in vain.
        assert_eq!((calls, secs), (4, 2 + 4 + 8));
    }

    #[test]
    fn who_is_slow_is_called_again() {
        let mut recall = away(5000);
        assert_eq!(recall.call(200, 0), 200);
        assert!(recall.expire(ANSWER_US));
        // The 200 come all the same, and are new to it. Then one, two, four at a time, until the count is trusted.
        assert!(!recall.arrived(ANSWER_US + 1));
        assert_eq!(drain(&mut recall, 5000, 2000).1, 0);
    }

    #[test]
    fn mail_that_is_sent_away_meanwhile_does_not_wait_for_a_call_in_vain() {
        let mut recall = away(1);
        recall.call(10, 0);
        recall.expire(ANSWER_US);
        assert_eq!(recall.call(10, ANSWER_US), 1);
        recall.sent_away();
        assert_eq!(recall.call(10, ANSWER_US), 1);
    }

    #[test]
    fn others_that_come_meanwhile_do_no_harm() {
        let mut recall = away(50);
        assert_eq!(recall.call(20, 0), 20);
        // Twenty others, and then the twenty.
        assert_eq!((0..20).filter(|_| recall.arrived(1)).count(), 20);
        assert_eq!((0..20).filter(|_| recall.arrived(1)).count(), 0);
        assert_eq!((recall.away(), recall.called()), (30, 0));
    }
}
