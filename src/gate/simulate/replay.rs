//! A log, line by line, through the machine.

use std::collections::BTreeMap;

use qpatch_gate::gate::{Gate, SLOTS_MAX};
use qpatch_gate::report::Report;
use qpatch_gate_model::retry::Told;
use serde::Serialize;

use super::clock::Clock;
use super::machine::{Machine, SILENT};
use crate::gate::log::{self, Event, Precision, Unusable};
use crate::gate::said;

/// So many deliveries may be open in the log: as many as there are slots, in both spawners.
const OPEN_MAX: usize = 2 * SLOTS_MAX as usize;

/// A delivery that the log has begun and not ended.
#[derive(Clone, Copy, Debug)]
enum Open {
    Local,
    Remote {
        key: u32,
        /// None if it was left out.
        delivery: Option<u32>,
    },
}

/// What the log was like.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub(super) struct Lines {
    pub(super) read: u64,
    /// No time stamp.
    pub(super) no_stamp: u64,
    /// Not qmail-send's.
    pub(super) foreign: u64,
    /// The first of both, from 1; 0 if there is none.
    pub(super) first_unusable: u64,
    /// Ends of deliveries whose beginnings are not in the log.
    pub(super) ends_only: u64,
    /// Beginnings whose ends are not in the log.
    pub(super) starts_only: u64,
    /// Busy answers that the log has already.
    pub(super) busy_already: u64,
    /// Deliveries that were left out because too many waited.
    pub(super) left_out: u64,
    /// The clock was set back.
    pub(super) set_back: u64,
    /// More than a day without a line; each is taken as a day.
    pub(super) gaps: u64,
    /// The numbers of deliveries began anew.
    pub(super) restarts: u64,
    /// Stamps have no fractions of seconds.
    pub(super) whole_seconds: bool,
}

/// A log, line by line, through the machine.
#[derive(Debug)]
pub(super) struct Run {
    pub(super) machine: Machine,
    pub(super) clock: Clock,
    open: BTreeMap<u64, Open>,
    open_remote: u32,
    pub(super) open_remote_peak: u32,
    last_number: u64,
    pub(super) last_end_us: u64,
    pub(super) deliveries: u64,
    pub(super) lines: Lines,
    pub(super) slots: Slots,
}

/// Who says how many slots there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Slots {
    /// The operator.
    Given,
    /// A status line of the log.
    Status,
    /// Nobody: as many as were used, and the default at least.
    Used,
}

impl Run {
    pub(super) fn new(gate: Gate, slots: Slots) -> Self {
        Self {
            machine: Machine::new(gate),
            clock: Clock::default(),
            open: BTreeMap::new(),
            open_remote: 0,
            open_remote_peak: 0,
            last_number: 0,
            last_end_us: 0,
            deliveries: 0,
            lines: Lines::default(),
            slots,
        }
    }

    pub(super) fn line(&mut self, line: &[u8]) {
        self.lines.read += 1;
        let (stamp_us, precision, event) = match log::parse(line) {
            Ok(((stamp_us, precision), event)) => (stamp_us, precision, event),
            Err(_) if line.trim_ascii().is_empty() => return,
            Err(unusable) => {
                match unusable {
                    Unusable::NoStamp => self.lines.no_stamp += 1,
                    Unusable::Foreign => self.lines.foreign += 1,
                }
                if self.lines.first_unusable == 0 {
                    self.lines.first_unusable = self.lines.read;
                }
                return;
            }
        };
        let now_us = self.clock.at(stamp_us);
        self.lines.whole_seconds |= precision == Precision::Seconds;
        if !matches!(event, Event::Status { .. } | Event::Other) {
            self.machine.advance(now_us);
        }
        match event {
            Event::Start { number, message, recipient } => {
                self.number(number);
                self.open_remote += 1;
                self.open_remote_peak = self.open_remote_peak.max(self.open_remote);
                if self.slots == Slots::Used {
                    self.machine.grow(self.open_remote);
                }
                let at = self.machine.key(recipient);
                let key = &mut self.machine.keys[at as usize];
                key.deliveries += 1;
                key.open += 1;
                key.open_peak = key.open_peak.max(key.open);
                self.deliveries += 1;
                let delivery = self.machine.arrive(at, message);
                self.lines.left_out += u64::from(delivery.is_none());
                self.open.insert(number, Open::Remote { key: at, delivery });
            }
            Event::StartLocal { number } => {
                self.number(number);
                self.open.insert(number, Open::Local);
            }
            Event::End { number, end, text } => match self.open.remove(&number) {
                None => self.lines.ends_only += 1,
                Some(open) => {
                    self.lines.busy_already += u64::from(end == log::End::Busy);
                    let told = match end {
                        log::End::Success | log::End::Failure => Told::Done,
                        log::End::Deferral
                        | log::End::Mangled
                        | log::End::Busy
                        | log::End::Refused => Told::Deferred,
                    };
                    self.end(open, said::of_log(end, text), told);
                }
            },
            Event::Status { concurrency_remote } => {
                if self.slots == Slots::Status {
                    self.machine.grow(concurrency_remote);
                }
            }
            Event::Other => {}
        }
    }

    /// A new delivery has this number.
    fn number(&mut self, number: u64) {
        if number <= self.last_number {
            self.lines.restarts += 1;
            self.cut_off(0);
        }
        self.last_number = number;
        self.cut_off(OPEN_MAX - 1);
    }

    fn end(&mut self, open: Open, said: Report, told: Told) {
        let Open::Remote { key, delivery } = open else { return };
        self.open_remote -= 1;
        self.machine.keys[key as usize].open -= 1;
        self.last_end_us = self.machine.now_us;
        if let Some(delivery) = delivery {
            self.machine.tell_end(delivery, said, told);
        }
    }

    /// The oldest deliveries are not told to end any more: now, then.
    fn cut_off(&mut self, left: usize) {
        while self.open.len() > left
            && let Some((_, open)) = self.open.pop_first()
        {
            self.lines.starts_only += u64::from(matches!(open, Open::Remote { .. }));
            self.end(open, SILENT, Told::Done);
        }
    }
    /// The log is over: what runs or waits comes to its end.
    pub(super) fn finish(&mut self) {
        self.cut_off(0);
        self.machine.advance(u64::MAX - 1);
        (self.lines.set_back, self.lines.gaps) = (self.clock.set_back, self.clock.gaps);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gate::simulate::machine::KEYS_MAX;
    use qpatch_gate::route::Routes;
    use qpatch_gate::rules::KeyKind;
    use qpatch_gate::table::{Limit, Table};

    fn run(rules: &str, concurrency_remote: u32, log: &str) -> Run {
        let mut gate = Gate::new(SLOTS_MAX, concurrency_remote, 1).unwrap();
        let (table, _) = Table::parse(rules.as_bytes(), gate.hasher()).unwrap();
        gate.set_table(Some(table), 0).unwrap();
        gate.set_routes(Routes::new(gate.hasher()), 0).unwrap();
        let mut run = Run::new(gate, Slots::Given);
        run.machine.grow(concurrency_remote);
        for line in log.lines() {
            run.line(line.as_bytes());
        }
        run.finish();
        run
    }

    /// Deliveries to one domain, one every `every_ms`, that take `service_ms` each.
    fn steady(count: u64, every_ms: u64, service_ms: u64) -> String {
        let mut lines = Vec::new();
        for n in 1..=count {
            let start_ms = 1_000_000 + n * every_ms;
            let stamp = |ms: u64| format!("{}.{:03}", ms / 1000, ms % 1000);
            let start =
                format!("{} starting delivery {n}: msg 1 to remote u@a.example", stamp(start_ms));
            lines.push((start_ms, start));
            let end_ms = start_ms + service_ms;
            lines.push((end_ms, format!("{} delivery {n}: success: ok/", stamp(end_ms))));
        }
        lines.sort();
        lines.into_iter().map(|(_, line)| line + "\n").collect()
    }

    #[test]
    fn nothing_is_lost_and_memory_comes_back() {
        // Twice as much as the limit can take: half of it is away or held at the end of the log.
        for limit in [1, 5, 20] {
            let log = steady(4000, 100, 200 * limit);
            let run = run(&format!(":{limit}\n"), 1000, &log);
            let machine = &run.machine;
            assert!(machine.keys[0].peak <= limit as u32);
            machine.assert_over();
            assert!(machine.keys[0].waited >= 3900);
            // 400 s of work more than there was time for.
            let later_secs = (machine.last_end_us - run.last_end_us) as f64 / 1e6;
            assert!((395.0..420.0).contains(&later_secs), "{later_secs}");
        }
    }

    /// One message with these recipients, begun 1 ms after each other: for each its domain and how long it takes in ms.
    fn message(recipients: &[(&str, u64)]) -> String {
        let mut lines = Vec::new();
        let stamp = |ms: u64| format!("{}.{:03}", ms / 1000, ms % 1000);
        for (number, (domain, ms)) in (1..).zip(recipients) {
            let at_ms = 1_000_000 + number;
            let start = format!("starting delivery {number}: msg 7 to remote u@{domain}.example");
            lines.push((at_ms, format!("{} {start}\n", stamp(at_ms))));
            let end_ms = at_ms + ms;
            lines.push((end_ms, format!("{} delivery {number}: success: ok/\n", stamp(end_ms))));
        }
        lines.sort();
        lines.into_iter().map(|(_, line)| line).collect()
    }

    #[test]
    fn the_recipients_of_a_message_come_as_they_are_called() {
        let recipients = vec![("a", 1000); 400];
        let run = run("a.example:10\n", 1000, &message(&recipients));
        let machine = &run.machine;
        let key = &machine.keys[0];
        assert_eq!(key.peak, 10);
        // Each call brings one more than were called: the one that is not remembered.
        assert!(key.busy <= 400 + 400 / 10, "{}", key.busy);
        let secs = machine.last_end_us as f64 / 1e6;
        assert!((40.0..46.0).contains(&secs), "{secs}");
        machine.assert_over();
    }

    #[test]
    fn a_job_comes_back_when_all_its_deliveries_have_ended() {
        // There are too few slots to hold any, so one of the second domain goes back as busy, and its place is free after a second.
        let run = run("a.example:1\n", 3, &message(&[("b", 60_000), ("a", 1000), ("a", 1000)]));
        let machine = &run.machine;
        let key = machine.keys.iter().find(|key| key.name == b"a.example").unwrap();
        assert_eq!(key.busy, 1);
        assert!(key.waited_max_us >= 59_000_000, "{}", key.waited_max_us);
        machine.assert_over();
    }

    #[test]
    fn within_the_limits_nothing_waits() {
        let run = run(":20\n", 100, &steady(2000, 10, 200));
        let key = &run.machine.keys[0];
        assert_eq!((key.open_peak, key.peak, key.waited, key.busy), (20, 20, 0, 0));
        assert_eq!(run.machine.last_end_us, run.last_end_us);
    }

    #[test]
    fn what_the_log_says_of_a_server_is_learned_from() {
        // A server with ten places: of twenty that come at once, ten are refused at once. Then what fits.
        let stamp = |ms: u64| format!("{}.{:03}", ms / 1000, ms % 1000);
        let mut lines = Vec::new();
        let mut add = |number: u64, at_ms: u64, ms: u64, end: &str| {
            let start = format!("starting delivery {number}: msg {number} to remote u@a.example");
            lines.push((at_ms, format!("{} {start}\n", stamp(at_ms))));
            lines.push((at_ms + ms, format!("{} delivery {number}: {end}\n", stamp(at_ms + ms))));
        };
        for number in 1..=20 {
            let refused = "deferral: Connected_to_192.0.2.1_but_greeting_failed./Remote_host_said:_421_too_many/";
            match number {
                ..=10 => {
                    add(number, 1_000_000 + number, 2000, "success: 192.0.2.1_accepted_message./");
                }
                _ => add(number, 1_000_000 + number, 50, refused),
            }
        }
        for number in 21..=400 {
            add(number, 1_000_000 + number * 200, 2000, "success: 192.0.2.1_accepted_message./");
        }
        lines.sort();
        let log: String = lines.into_iter().map(|(_, line)| line).collect();
        for (rules, lowest, refused) in
            [(":20::learn\n", 10, 10), (":20\n", 20, 0), (":20::fixed\n", 20, 0)]
        {
            let run = run(rules, 100, &log);
            let machine = &run.machine;
            let key = &machine.keys[0];
            assert_eq!((key.objections, key.refused), (10, refused), "{rules}");
            assert_eq!(key.lowest, Limit::AtMost(lowest), "{rules}");
            assert_eq!(key.suspended, 0, "{rules}");
            machine.assert_over();
        }
    }

    #[test]
    fn a_server_that_is_not_there_suspends_its_key() {
        let log = steady(600, 100, 50).replace(
            "success: ok/",
            "deferral: Sorry,_I_wasn't_able_to_establish_an_SMTP_connection._(#4.4.1)/",
        );
        let run = run(":20::learn\n", 100, &log);
        let key = &run.machine.keys[0];
        assert_eq!(key.objections, 600);
        assert!(key.suspended > 0);
        run.machine.assert_over();
    }

    #[test]
    fn addresses_in_the_log_lead_to_sites() {
        let mut log = String::new();
        for number in 1..=40 {
            let at = 1000 + number;
            let domain = if number % 2 == 0 { "a" } else { "b" };
            log.push_str(&format!(
                "{at}.0 starting delivery {number}: msg 1 to remote u@{domain}.example\n"
            ));
            log.push_str(&format!(
                "{at}.9 delivery {number}: success: 192.0.2.7_accepted_message./\n"
            ));
        }
        let run = run("192.0.2.0/24:1:farm\n:20\n", 100, &log);
        let farm = run.machine.keys.iter().find(|key| key.kind == KeyKind::Group).unwrap();
        assert_eq!(farm.name, b"farm");
        assert!(farm.deliveries >= 37, "all but the first ones: {}", farm.deliveries);
    }

    #[test]
    fn closed_domains_do_not_run_on_for_ever() {
        let run = run("a.example:0\n", 10, &steady(100, 100, 1000));
        let machine = &run.machine;
        assert_eq!(machine.keys[0].never, 100);
        machine.assert_over();
    }

    #[test]
    fn keys_that_do_nothing_are_summed_up() {
        let mut log = String::new();
        for n in 1..=2 * KEYS_MAX as u64 + 10 {
            log.push_str(&format!("{n} starting delivery {n}: msg 1 to remote u@d{n}.example\n"));
            log.push_str(&format!("{n} delivery {n}: success: ok/\n"));
        }
        let run = run(":1\n", 10, &log);
        assert!(run.machine.keys.len() <= KEYS_MAX);
        let listed: u64 = run.machine.keys.iter().map(|key| key.deliveries).sum();
        assert_eq!(listed + run.machine.others.deliveries, run.deliveries);
        assert_eq!(run.machine.others.peak_before, 1);
    }

    #[test]
    fn starts_without_ends_are_bounded() {
        let mut log = String::new();
        for n in 1..=OPEN_MAX as u64 + 100 {
            log.push_str(&format!("1.0 starting delivery {n}: msg 1 to local u\n"));
        }
        let mut run = run(":1\n", 10, &log);
        assert_eq!(run.open.len(), 0);
        for n in 1..=OPEN_MAX as u64 + 100 {
            run.number(n);
            run.open.insert(n, Open::Local);
        }
        assert_eq!(run.open.len(), OPEN_MAX);
    }
}
