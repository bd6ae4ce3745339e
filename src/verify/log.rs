//! qmail-send's log, read line by line. Pure: text in, an account of deliveries out. The format is described in the
//! manual page qmail-log(5).

use std::collections::{BTreeMap, HashMap};

/// A delivery that qmail-send has started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Started {
    /// The message's number.
    pub message: u64,
    /// `local` or `remote`, or the name of a further channel.
    pub channel: String,
    /// The recipient, with characters that are not safe in a log replaced by `_`.
    pub recipient: String,
    /// How it ended, once it has.
    pub outcome: Option<Outcome>,
}

/// How qmail-send took a report.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// `K`, `Z` or `D`; `?` for a report that it could not read.
    pub letter: u8,
    /// The report's text, with characters that are not safe in a log replaced by `_`.
    pub text: String,
}

/// The account of one run of qmail-send.
#[derive(Debug, Default)]
pub struct Log {
    /// Deliveries by their number in the log (not the delivery number of the pipes).
    pub deliveries: BTreeMap<u64, Started>,
    /// How many deliveries have an outcome.
    pub ended: usize,
    /// Their numbers, in the order of the outcomes.
    pub order: Vec<u64>,
    /// Messages that qmail-send has found in queue/todo.
    pub new_messages: usize,
    /// Messages that are done with, all recipients either delivered to or bounced.
    pub ended_messages: usize,
    /// Bounces that it has queued.
    pub bounces: usize,
    /// Lines that begin with "warning:" or "alert:", and others that say something is wrong.
    pub complaints: Vec<String>,
    /// The last line that is none of those that qmail-send writes in the ordinary way.
    pub last: String,
    /// By channel: the most deliveries at the same time, and the limit that a status line told.
    pub peaks: HashMap<String, (u32, u32)>,
    /// By channel: deliveries without an outcome. qmail-1.01 has no status lines.
    running: HashMap<String, u32>,
    /// It has said that it exits.
    pub exiting: bool,
    partial: Vec<u8>,
}

impl Log {
    /// Takes what was read; the end of the last line may come later.
    pub fn take(&mut self, bytes: &[u8]) {
        self.partial.extend_from_slice(bytes);
        let Some(end) = self.partial.iter().rposition(|byte| *byte == b'\n') else { return };
        let lines = String::from_utf8_lossy(&self.partial[..end]).into_owned();
        self.partial.drain(..=end);
        for line in lines.lines() {
            self.line(line);
        }
    }

    fn line(&mut self, line: &str) {
        if let Some(rest) = line.strip_prefix("starting delivery ") {
            self.start(rest);
        } else if let Some(rest) = line.strip_prefix("delivery ") {
            self.end(rest, line);
        } else if line.starts_with("new msg ") {
            self.new_messages += 1;
        } else if line.starts_with("end msg ") {
            self.ended_messages += 1;
        } else if line.starts_with("bounce msg ") {
            self.bounces += 1;
        } else if let Some(rest) = line.strip_prefix("status:") {
            self.status(rest);
        } else if line == "exiting" {
            // qmail-1.01; later ones make a status line of it.
            self.exiting = true;
        } else if line.starts_with("warning:") || line.starts_with("alert:") {
            self.complain(line);
            line.clone_into(&mut self.last);
        } else if !line.starts_with("info msg ") && !line.is_empty() {
            line.clone_into(&mut self.last);
        }
    }

    fn complain(&mut self, line: &str) {
        // A daemon that complains without end must not fill the memory.
        if self.complaints.len() < 1000 {
            self.complaints.push(line.to_owned());
        }
    }

    // "17: msg 4711 to remote r@host"
    fn start(&mut self, rest: &str) {
        let parsed = rest.split_once(": msg ").and_then(|(id, rest)| {
            let (message, rest) = rest.split_once(" to ")?;
            let (channel, recipient) = rest.split_once(' ')?;
            Some((
                id.parse().ok()?,
                message.parse().ok()?,
                channel.to_owned(),
                recipient.to_owned(),
            ))
        });
        if let Some((id, message, channel, recipient)) = parsed {
            let running = self.running.entry(channel.clone()).or_default();
            *running += 1;
            let peak = self.peaks.entry(channel.clone()).or_default();
            peak.0 = peak.0.max(*running);
            self.deliveries.insert(id, Started { message, channel, recipient, outcome: None });
        }
    }

    // "17: success: text" and so on; "17: report mangled, will defer"
    fn end(&mut self, rest: &str, line: &str) {
        let Some((id, rest)) = rest.split_once(": ") else { return };
        let Ok(id) = id.parse::<u64>() else { return };
        let (word, text) = rest.split_once(": ").unwrap_or((rest, ""));
        let letter = match word {
            "success" => b'K',
            "deferral" => b'Z',
            "failure" => b'D',
            _ => {
                self.complain(line);
                b'?'
            }
        };
        match self.deliveries.get_mut(&id) {
            Some(delivery) if delivery.outcome.is_none() => {
                delivery.outcome = Some(Outcome { letter, text: text.to_owned() });
                self.order.push(id);
                if let Some(running) = self.running.get_mut(&delivery.channel) {
                    *running = running.saturating_sub(1);
                }
                self.ended += 1;
            }
            _ => self.complain(&format!("unexpected: {line}")),
        }
    }

    // " local 0/10 remote 3/20 exitasap"
    fn status(&mut self, rest: &str) {
        if rest.trim() == "exiting" {
            self.exiting = true;
            return;
        }
        let words: Vec<&str> = rest.split_whitespace().collect();
        for pair in words.windows(2) {
            let [channel, figures] = pair else { continue };
            let parsed = figures
                .split_once('/')
                .and_then(|(used, limit)| Some((used.parse().ok()?, limit.parse().ok()?)));
            let Some((used, limit)) = parsed else { continue };
            let peak = self.peaks.entry((*channel).to_owned()).or_default();
            *peak = (peak.0.max(used), limit);
        }
    }

    /// The most deliveries at the same time on `channel`, by qmail-send's own account.
    pub fn peak(&self, channel: &str) -> u32 {
        self.peaks.get(channel).map_or(0, |(peak, _)| *peak)
    }

    /// The concurrency limit of `channel`, as qmail-send tells it.
    pub fn limit(&self, channel: &str) -> u32 {
        self.peaks.get(channel).map_or(0, |(_, limit)| *limit)
    }
}

/// `text` as qmail-send's log shows it.
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
        assert_eq!(delivery.outcome, Some(Outcome { letter: b'K', text: "fine/".to_owned() }));
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
