//! For tests: the log that qmail-send would write for a simulation, with the lines of its gate.

use std::collections::HashMap;

use qpatch_gate_model::retry::ReportedResult;

/// A log.
#[derive(Debug, Default)]
pub(super) struct WrittenLog {
    lines: Vec<String>,
    started: u64,
    /// By delivery: its number in the log.
    numbers: HashMap<u32, u64>,
    /// The text after each address and report, as a log of several queues has it: a space and the queue's name.
    pub(super) queue: &'static str,
}

impl WrittenLog {
    fn line(&mut self, now_us: u64, text: &str) {
        let us = 1_700_000_000_000_000 + now_us;
        let queue = self.queue;
        self.lines.push(format!("{}.{:06} {text}{queue}\n", us / 1_000_000, us % 1_000_000));
    }

    pub(super) fn start(&mut self, now_us: u64, at: u32, message: u64, recipient: &[u8]) {
        self.started += 1;
        self.numbers.insert(at, self.started);
        let recipient = String::from_utf8_lossy(recipient);
        // Each has an address of its own, by which its tries belong together.
        let text =
            format!("starting delivery {}: msg {message} to remote u{at}{recipient}", self.started);
        self.line(now_us, &text);
    }

    pub(super) fn end(
        &mut self,
        now_us: u64,
        at: u32,
        told: ReportedResult,
        (service_us, tried_us): (u64, u64),
        is_refused: bool,
    ) {
        let Some(number) = self.numbers.remove(&at) else { return };
        let held_ms = (now_us - tried_us).saturating_sub(service_us) / 1000;
        let mut text = match (told, is_refused) {
            (ReportedResult::Done, false) => "success: 192.0.2.1_accepted_message./".to_string(),
            (_, true) => "deferral: x_refused_this_one;_to_be_tried_again:_Connected_to_192.0.2.1_but_greeting_failed./\
                          Remote_host_said:_421_too_many/_(#4.4.5)/"
                .to_string(),
            _ => "deferral: Connected_to_192.0.2.1_but_greeting_failed./Remote_host_said:_421_too_many/".to_string(),
        };
        if held_ms > 0 {
            let secs = |ms: u64| format!("{}.{:03}", ms / 1000, ms % 1000);
            text.push_str(&format!(
                "Held_{}_s,_ran_{}_s./",
                secs(held_ms),
                secs(service_us / 1000)
            ));
        }
        self.line(now_us, &format!("delivery {number}: {text}"));
    }

    pub(super) fn busy(&mut self, now_us: u64, at: u32, is_suspended: bool) {
        let Some(number) = self.numbers.remove(&at) else { return };
        let why = if is_suspended { "none_is_tried_for_61_s" } else { "is_at_its_limit" };
        self.line(now_us, &format!("delivery {number}: deferral: x_{why};_not_tried._(#4.4.5)/"));
    }

    pub(super) fn text(&self) -> String {
        self.lines.concat()
    }
}
