//! What happened in one run of qmail-send, as its log says: text in, an account of the deliveries out, no I/O.
//! qmail-log(5) describes the format; [`crate::qmail::log::event`] reads it.

use std::collections::{BTreeMap, HashMap};

use crate::qmail::log::event::{self, End, Event};

/// A delivery that qmail-send has started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoggedDelivery {
    /// The message's number.
    pub message: u64,
    /// `local` or `remote`, or the name of a further channel.
    pub channel: String,
    /// The recipient. `_` replaces characters that are not safe in a log.
    pub recipient: String,
    /// How it ended; `None` while it runs.
    pub outcome: Option<LoggedReport>,
}

/// How qmail-send understood a report.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoggedReport {
    /// `K`, `Z` or `D`; `?` if it could not read the report.
    pub letter: u8,
    /// The report's text. `_` replaces characters that are not safe in a log.
    pub text: String,
}

/// The account of one run of qmail-send.
#[derive(Debug, Default)]
pub struct Log {
    /// Deliveries by their number in the log (not the delivery number of the pipes).
    pub deliveries: BTreeMap<u64, LoggedDelivery>,
    /// How many deliveries have an outcome.
    pub ended: usize,
    /// Their numbers, in the order of the outcomes.
    pub order: Vec<u64>,
    /// Messages that qmail-send found in queue/todo.
    pub new_messages: usize,
    /// Messages that are done: each recipient was delivered to or bounced.
    pub ended_messages: usize,
    /// Bounces that it queued.
    pub bounces: usize,
    /// Lines that say that something is wrong, such as those that begin with "warning:" or "alert:".
    pub complaints: Vec<String>,
    /// The last line that qmail-send does not write in normal operation.
    pub last: String,
    /// By channel: the most deliveries at the same time, and the limit in the last status line.
    pub peaks: HashMap<String, (u32, u32)>,
    /// By channel: deliveries that run. qmail-1.01 has no status lines, so they are counted here.
    running: HashMap<String, u32>,
    /// qmail-send has logged that it exits.
    pub exiting: bool,
    partial: Vec<u8>,
}

impl Log {
    /// Reads more of the log. The end of the last line may come later.
    pub fn take(&mut self, bytes: &[u8]) {
        self.partial.extend_from_slice(bytes);
        let Some(end) = self.partial.iter().rposition(|byte| *byte == b'\n') else { return };
        let lines: Vec<u8> = self.partial.drain(..=end).collect();
        for line in lines.split(|byte| *byte == b'\n') {
            self.line(line);
        }
    }

    fn line(&mut self, line: &[u8]) {
        let complaint = || String::from_utf8_lossy(line).into_owned();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        match event::parse(line).map(|said| said.event) {
            Some(Event::Start { number, message, channel, recipient }) => {
                self.start(number, message, text(channel), text(recipient));
            }
            Some(Event::End { number, end, text: report }) => {
                let letter = match end {
                    End::Success => b'K',
                    End::Failure => b'D',
                    End::Deferral | End::Busy | End::Suspended | End::Refused => b'Z',
                    End::Mangled => {
                        self.complain(complaint());
                        b'?'
                    }
                };
                self.end(number, LoggedReport { letter, text: text(report) }, complaint);
            }
            Some(Event::Status(status)) => {
                for (channel, used, limit) in status.channels() {
                    let peak = self.peaks.entry(text(channel)).or_default();
                    *peak = (peak.0.max(used), limit);
                }
            }
            Some(Event::NewMessage { .. }) => self.new_messages += 1,
            Some(Event::EndMessage { .. }) => self.ended_messages += 1,
            Some(Event::Bounce) => self.bounces += 1,
            Some(Event::Complaint) => {
                self.complain(complaint());
                self.last = complaint();
            }
            Some(Event::Exiting) => self.exiting = true,
            Some(Event::Other) if line.starts_with(b"info msg ") => {}
            // Without this line, the account would be wrong.
            None if event::is_meant_as_delivery(line) => self.complain(complaint()),
            None if line.is_empty() => {}
            Some(Event::Other) | None => self.last = complaint(),
        }
    }

    fn complain(&mut self, line: String) {
        // A program that complains for ever must not fill the memory.
        if self.complaints.len() < 1000 {
            self.complaints.push(line);
        }
    }

    fn start(&mut self, number: u64, message: u64, channel: String, recipient: String) {
        let running = self.running.entry(channel.clone()).or_default();
        *running += 1;
        let peak = self.peaks.entry(channel.clone()).or_default();
        peak.0 = peak.0.max(*running);
        self.deliveries
            .insert(number, LoggedDelivery { message, channel, recipient, outcome: None });
    }

    fn end(&mut self, number: u64, outcome: LoggedReport, line: impl FnOnce() -> String) {
        match self.deliveries.get_mut(&number) {
            Some(delivery) if delivery.outcome.is_none() => {
                delivery.outcome = Some(outcome);
                self.order.push(number);
                if let Some(running) = self.running.get_mut(&delivery.channel) {
                    *running = running.saturating_sub(1);
                }
                self.ended += 1;
            }
            _ => self.complain(format!("unexpected: {}", line())),
        }
    }

    /// Returns the most deliveries at the same time on `channel`, as the log says.
    pub fn peak(&self, channel: &str) -> u32 {
        self.peaks.get(channel).map_or(0, |(peak, _)| *peak)
    }

    /// Returns the concurrency limit of `channel`, as the log says.
    pub fn limit(&self, channel: &str) -> u32 {
        self.peaks.get(channel).map_or(0, |(_, limit)| *limit)
    }
}

/// Returns `text` as qmail-send's log shows it.
pub fn logged(text: &str) -> String {
    text.bytes()
        .map(|byte| match byte {
            b'\n' => '/',
            b'%' => '_',
            33..=126 => char::from(byte),
            _ => '_',
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_account_is_kept() {
        let mut log = Log::default();
        log.take(b"status: local 0/10 remote 0/20\nnew msg 7\ninfo msg 7: bytes 1 from <s@x> qp 1 uid 1\nstarting del");
        log.take(b"ivery 1: msg 7 to remote k-1@x\nstatus: local 0/10 remote 1/20\ndelivery 1: success: fine/\n");
        log.take(b"status: local 0/10 remote 0/20\nend msg 7\nwarning: odd\nstatus: exiting\n");
        assert_eq!((log.new_messages, log.ended_messages, log.ended), (1, 1, 1));
        let delivery = &log.deliveries[&1];
        assert_eq!(
            (delivery.message, delivery.channel.as_str(), delivery.recipient.as_str()),
            (7, "remote", "k-1@x")
        );
        assert_eq!(delivery.outcome, Some(LoggedReport { letter: b'K', text: "fine/".to_owned() }));
        assert_eq!((log.peak("remote"), log.limit("remote")), (1, 20));
        assert_eq!(log.complaints, ["warning: odd"]);
        assert_eq!(log.order, [1]);
        assert!(log.exiting);
    }

    #[test]
    fn a_log_without_status_lines() {
        let mut log = Log::default();
        log.take(b"running\nstarting delivery 1: msg 7 to remote a@x\n");
        log.take(b"starting delivery 2: msg 7 to remote b@x\ndelivery 1: success: fine/\n");
        log.take(b"starting delivery 3: msg 7 to remote c@x\nexiting\n");
        assert_eq!((log.peak("remote"), log.peak("local")), (2, 0));
        assert!(log.exiting);
    }

    #[test]
    fn a_second_outcome_and_a_mangled_report_are_complaints() {
        let mut log = Log::default();
        log.take(
            b"starting delivery 1: msg 7 to local r@x\ndelivery 1: report mangled, will defer\n",
        );
        log.take(b"delivery 1: success: fine/\ndelivery 2: success: fine/\n");
        assert_eq!(log.deliveries[&1].outcome.as_ref().map(|outcome| outcome.letter), Some(b'?'));
        assert_eq!(log.complaints.len(), 3);
    }

    #[test]
    fn logged_text_is_qmails() {
        assert_eq!(logged("a b%c\n"), "a_b_c/");
    }
}
