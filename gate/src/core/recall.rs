//! The mail of one key that is away, and when the gate calls it back.
//!
//! qmail-send keeps such mail in a queue for each key, the mail that was due first in front (gate_retry.c), and hands
//! out as many as the gate calls. The gate calls when it holds little mail of the key. So mail comes back when there is
//! room for it, however fast the server is by then. No mail is sent away twice, and none is overtaken by later mail. If
//! no call comes, the seconds in the busy answer end the wait.
//!
//! The alternative was mail that comes back by the clock alone, paced by limit / mean service time. That needed 2.8
//! busy answers a mail for a backlog of 500 s and 5.9 for one of an hour. It left up to a fifth of the places idle when
//! a server became faster late in a backlog, and under a steady overload some mail was sent away again and again.
//!
//! **The count.** The gate knows only how much it has sent away. That may be too much: mail came back by the clock, or
//! one message waits for two keys. A command that comes while called mail is missing is taken for it. If it was other
//! mail, the missing one counts as new when it comes, and the count is right again. If mail is still missing two
//! seconds after the last arrival, while qmail-send goes on with other mail, then the count was wrong or qmail-send is
//! slow. From then on the gate calls one mail, and twice as many each time when all have come. After each unanswered
//! call it waits twice as long, up to [`PAUSE_MAX_US`]. Mail away is forgotten when the time of the last busy answer is
//! over, and not before: until then qmail-send has it, unless the gate has miscounted.
//!
//! **Silence** means nothing. A qmail-send that is stopped, or waits for its disk or its log, sends no commands at all,
//! and a call in the pipe is not lost. So a call counts as unanswered only if qmail-send has sent another command after
//! the time to answer. When qmail-send sends again after a silence, each key with an uncertain count gets a new
//! deadline. (Earlier, three unanswered calls were the end. After a stall of 20 s the gate had forgotten 5217 mails,
//! which then came by the clock: 5836 of 6000 after 180 s, where the limit allows all in 26 s.)

#![forbid(unsafe_code)]

/// Called mail should arrive within this time. After each unanswered call the time doubles.
pub const ANSWER_US: u64 = 2_000_000;
/// The longest such time.
pub const PAUSE_MAX_US: u64 = ANSWER_US << UNANSWERED_MAX;
/// The most doublings of that time.
const UNANSWERED_MAX: u8 = 8;
/// After this many answered calls the count is trusted again.
const TRUSTED: u32 = 1024;

/// The mail of one key that is away. See the module.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Recall {
    away: u32,
    called: u32,
    /// Calls to make next while the count is in doubt. 0: it is not in doubt.
    probe: u32,
    /// Unanswered calls in a row, up to [`UNANSWERED_MAX`].
    unanswered: u8,
    /// The time by which called mail should have arrived.
    deadline_us: u64,
    /// The end of the last busy answer's time. No mail of this key waits after it.
    until_us: u64,
}

/// The times at which commands arrived from qmail-send.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CommandTimes {
    /// The last one.
    pub last_us: u64,
    /// The first one after a silence of [`ANSWER_US`] or more.
    pub after_silence_us: u64,
}

impl CommandTimes {
    /// Notes a command. Returns whether it is the first after a silence.
    pub fn note(&mut self, now_us: u64) -> bool {
        let after_silence = now_us.saturating_sub(self.last_us) >= ANSWER_US;
        if after_silence {
            self.after_silence_us = now_us;
        }
        self.last_us = now_us;
        after_silence
    }
}

impl Recall {
    /// Returns roughly how much mail is away, including mail that is called and has not arrived.
    #[must_use]
    pub fn away(&self) -> u32 {
        self.away
    }

    /// Returns the number of calls that are not answered yet.
    #[must_use]
    pub fn called(&self) -> u32 {
        self.called
    }

    /// Notes mail that was sent away, and the seconds after which it returns by itself.
    pub fn sent_away(&mut self, now_us: u64, secs: u32, number: u32) {
        self.away = self.away.saturating_add(number);
        self.until_us = self.until_us.max(now_us.saturating_add(u64::from(secs) * 1_000_000));
        if std::mem::take(&mut self.unanswered) > 0 {
            // The open call was for mail that is not there; the new mail is.
            self.called = 0;
        }
    }

    /// Notes a command. Returns whether it is taken for called mail.
    pub fn arrived(&mut self, now_us: u64) -> bool {
        let Some(called) = self.called.checked_sub(1) else { return false };
        self.called = called;
        self.unanswered = 0;
        self.away -= 1;
        self.deadline_us = now_us.saturating_add(ANSWER_US);
        if self.probe > 0 {
            // While the count is uncertain, assume that one more waits until a call goes unanswered.
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

    /// Calls up to `most` mails back; returns how many.
    pub fn call(&mut self, most: u32, now_us: u64) -> u32 {
        let number = match self.probe {
            0 => (self.away - self.called).min(most),
            probe if self.called == 0 && self.away > 0 => probe.min(most),
            _ => 0,
        };
        if number > 0 {
            self.called += number;
            self.away = self.away.max(self.called);
            self.deadline_us = now_us.saturating_add(ANSWER_US << self.unanswered);
        }
        number
    }

    /// Stops waiting for called mail. If it arrives later, it counts as new.
    pub fn cancel(&mut self) {
        self.called = 0;
    }

    /// Handles the end of a silence of qmail-send: a call that seemed unanswered may still be answered.
    pub fn restart_deadlines(&mut self, now_us: u64) {
        if self.unanswered > 0 {
            self.unanswered = 0;
            self.deadline_us = now_us.saturating_add(ANSWER_US);
        }
    }

    /// Ends calls whose deadline is over, and forgets the mail if its time is over. True if calls ended; read
    /// [`Recall::called`] before to know how many.
    pub fn expire(&mut self, now_us: u64, command_times: &CommandTimes) -> bool {
        if self.away > 0 && now_us >= self.until_us.saturating_add(ANSWER_US) {
            *self = Self::default();
            return true;
        }
        let deadline_us =
            self.deadline_us.max(command_times.after_silence_us.saturating_add(ANSWER_US));
        if self.called == 0 || command_times.last_us < deadline_us {
            return false;
        }
        self.called = 0;
        self.probe = 1;
        self.unanswered = (self.unanswered + 1).min(UNANSWERED_MAX);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SEC: u64 = 1_000_000;
    const LATEST_SECS: u32 = 600;

    fn away(number: u32) -> Recall {
        let mut recall = Recall::default();
        (0..number).for_each(|_| recall.sent_away(0, LATEST_SECS, 1));
        recall
    }

    /// qmail-send sends other mail.
    fn talking(now_us: u64) -> CommandTimes {
        CommandTimes { last_us: now_us, after_silence_us: 0 }
    }

    /// qmail-send has `there` mails; all that are called come at once. Returns the number of calls, and the seconds
    /// until qmail-send has none.
    fn drain(recall: &mut Recall, mut there: u32, most: u32) -> (u32, u64) {
        let (mut calls, mut now_us, mut done_us) = (0, 0, 0);
        while recall.away() > 0 {
            let called = recall.call(most, now_us);
            calls += u32::from(called > 0);
            for _ in 0..called.min(there) {
                assert!(recall.arrived(now_us));
                there -= 1;
                done_us = now_us;
            }
            if recall.called() > 0 {
                let end_us = u64::from(LATEST_SECS) * SEC + ANSWER_US;
                now_us = recall.deadline_us.min(end_us);
                assert!(!recall.expire(now_us - 1, &talking(now_us - 1)));
                assert!(recall.expire(now_us, &talking(now_us)));
            }
        }
        assert_eq!(there, 0, "left behind");
        assert_eq!((recall.called(), recall.arrived(now_us)), (0, false));
        (calls, done_us / SEC)
    }

    #[test]
    fn what_was_sent_away_is_called_and_no_more() {
        assert_eq!(drain(&mut away(100), 100, 30), (4, 0));
        assert_eq!(away(100).call(0, 0), 0);
        assert_eq!(Recall::default().call(30, 0), 0);
    }

    #[test]
    fn a_count_that_is_too_high_is_believed_until_the_busy_answers_end() {
        // After 0, 2, 6, 14, ... 510 s.
        assert_eq!(drain(&mut away(100), 0, 30), (9, 0));
        // 30, 5 of 30, then one at a time without an answer.
        assert_eq!(drain(&mut away(100), 35, 30), (10, 0));
        let mut recall = away(100);
        recall.call(30, 0);
        let end_us = u64::from(LATEST_SECS) * SEC + ANSWER_US;
        assert!(!recall.expire(end_us - 1, &CommandTimes::default()));
        assert!(recall.expire(end_us, &CommandTimes::default()));
        assert_eq!(recall, Recall::default());
    }

    #[test]
    fn a_silence_does_not_end_calls() {
        let mut command_times = CommandTimes::default();
        let mut recall = away(100);
        command_times.note(5 * SEC);
        assert_eq!(recall.call(30, 5 * SEC), 30);
        assert!(!command_times.note(6 * SEC));
        for now_us in (6..300).map(|secs| secs * SEC) {
            assert!(!recall.expire(now_us, &command_times));
        }
        // qmail-send sends again: the called mail has time to come from now on.
        assert!(command_times.note(300 * SEC));
        assert!(!recall.expire(300 * SEC, &command_times));
        assert!(!command_times.note(301 * SEC));
        assert!(!recall.expire(301 * SEC, &command_times));
        assert!(recall.arrived(301 * SEC));
        assert_eq!(recall.called(), 29);
        assert!(!command_times.note(303 * SEC - 1));
        assert!(!recall.expire(303 * SEC, &command_times));
        assert!(!command_times.note(303 * SEC));
        assert!(recall.expire(303 * SEC, &command_times));
    }

    #[test]
    fn a_long_pause_ends_when_qmail_send_sends_again() {
        let mut recall = away(100);
        let mut now_us = 0;
        for _ in 0..6 {
            assert_eq!(recall.call(1, now_us), 1);
            now_us = recall.deadline_us;
            assert!(recall.expire(now_us, &talking(now_us)));
        }
        assert_eq!(recall.call(1, now_us), 1);
        let mut command_times = talking(now_us);
        assert!(command_times.note(now_us + 3 * SEC));
        recall.restart_deadlines(now_us + 3 * SEC);
        assert!(!command_times.note(now_us + 4 * SEC));
        assert!(!command_times.note(now_us + 5 * SEC));
        assert!(recall.expire(now_us + 5 * SEC, &command_times));
    }

    #[test]
    fn mail_of_a_slow_qmail_send_is_called_again() {
        let mut recall = away(5000);
        assert_eq!(recall.call(200, 0), 200);
        assert!(recall.expire(ANSWER_US, &talking(ANSWER_US)));
        // The 200 come late and count as new. Then the gate calls one, two, four at a time until it trusts the count.
        assert!(!recall.arrived(ANSWER_US + 1));
        assert_eq!(drain(&mut recall, 5000, 2000).1, 0);
    }

    #[test]
    fn mail_that_is_sent_away_meanwhile_does_not_wait_for_an_unanswered_call() {
        let mut recall = away(1);
        recall.call(10, 0);
        recall.expire(ANSWER_US, &talking(ANSWER_US));
        assert_eq!(recall.call(10, ANSWER_US), 1);
        recall.sent_away(ANSWER_US, LATEST_SECS, 1);
        assert_eq!(recall.call(10, ANSWER_US), 1);
    }

    #[test]
    fn other_mail_that_comes_meanwhile_does_no_harm() {
        let mut recall = away(50);
        assert_eq!(recall.call(20, 0), 20);
        // Twenty other mails, and then the twenty that were called.
        assert_eq!((0..20).filter(|_| recall.arrived(1)).count(), 20);
        assert_eq!((0..20).filter(|_| recall.arrived(1)).count(), 0);
        assert_eq!((recall.away(), recall.called()), (30, 0));
    }
}
