//! Takes the deliveries of a log through the machine, one after the other, and counts what ran in the log itself.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use qpatch_gate::gate::Gate;

use super::account::{LogAccount, LoggedDelivery};
use super::machine::MailSystem;

/// In the log of a gate, a delivery that took another one's place starts a little before the other one's end is logged,
/// because the report needs time to reach qmail-send. Up to this time, the two do not count as running at once.
const REPORT_US: u64 = 50_000;

/// A delivery of the log starts or ends: the time, the line of the log, which of both, and the key.
type LogChange = Reverse<(u64, u64, RunState, u32)>;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum RunState {
    Over,
    Running,
}

/// The machine, and the figures of the log beside it.
#[derive(Debug)]
pub(super) struct Replay {
    pub(super) machine: MailSystem,
    pub(super) deliveries: u64,
    pub(super) slots: SlotSource,
    /// What ran in the log, and when.
    changes: BinaryHeap<LogChange>,
    running: u32,
    /// The most that ran at once in the log.
    pub(super) running_peak: u32,
    /// When the last one ended in the log.
    pub(super) last_end_us: u64,
    /// Deliveries that were left out because too many waited.
    pub(super) left_out: u64,
}

/// Where the number of slots comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SlotSource {
    /// The operator.
    Given,
    /// A status line of the log.
    Status,
    /// As many as the log uses, and at least the default.
    Used,
}

impl Replay {
    pub(super) fn new(gate: Gate, slots: SlotSource, concurrency_remote: u32) -> Self {
        let mut machine = MailSystem::new(gate);
        machine.grow(concurrency_remote);
        Self {
            machine,
            deliveries: 0,
            slots,
            changes: BinaryHeap::new(),
            running: 0,
            running_peak: 0,
            last_end_us: 0,
            left_out: 0,
        }
    }

    /// All runs take all deliveries whose ends are known.
    pub(super) fn take(runs: &mut [Self], account: &mut LogAccount) {
        for run in &mut *runs {
            match run.slots {
                SlotSource::Given => {}
                SlotSource::Status => run.machine.grow(account.concurrency_remote().unwrap_or(0)),
                SlotSource::Used => run.machine.grow(account.open_peak),
            }
        }
        while let Some(delivery) = account.next_delivery() {
            runs.iter_mut().for_each(|run| run.deliver(&delivery));
        }
    }

    fn deliver(&mut self, delivery: &LoggedDelivery) {
        let LoggedDelivery { asked_us, started_us, ended_us, lines, message, was_held, .. } =
            *delivery;
        self.until(asked_us, lines[0]);
        self.machine.advance(asked_us);
        let at = self.machine.key(&delivery.recipient);
        let key = &mut self.machine.keys[at as usize];
        key.deliveries += 1;
        key.open += 1;
        key.log_end_us = key.log_end_us.max(ended_us);
        if let (Some(curves), Some(words)) = (&mut key.curves, &delivery.words) {
            curves.said(words);
        }
        self.deliveries += 1;
        let ran_us = ended_us.saturating_sub(started_us);
        let (from_us, line) = if was_held {
            (started_us + REPORT_US.min(ran_us / 4), u64::MAX)
        } else {
            (started_us, lines[1])
        };
        self.changes.push(Reverse((from_us, line, RunState::Running, at)));
        self.changes.push(Reverse((ended_us, lines[2].max(lines[1] + 1), RunState::Over, at)));
        self.last_end_us = self.last_end_us.max(ended_us);
        if !self.machine.arrive(at, message, ran_us, (delivery.said, delivery.told)) {
            self.left_out += 1;
        }
    }

    /// Counts what ran in the log up to this time and line.
    fn until(&mut self, us: u64, by_line: u64) {
        while let Some(&Reverse((at_us, line, is, key))) = self.changes.peek()
            && (at_us, line) < (us, by_line)
        {
            self.changes.pop();
            let key = &mut self.machine.keys[key as usize];
            match is {
                RunState::Running => {
                    key.open_now += 1;
                    key.open_peak = key.open_peak.max(key.open_now);
                    self.running += 1;
                    self.running_peak = self.running_peak.max(self.running);
                }
                RunState::Over => {
                    key.open_now -= 1;
                    key.open -= 1;
                    self.running -= 1;
                }
            }
            if let Some(curves) = &mut key.curves {
                curves.before.set(at_us, key.open_now);
            }
            if let Some(curves) = &mut self.machine.curves {
                curves.before.set(at_us, self.running);
            }
        }
    }

    /// The log has ended: runs the machine until nothing runs or waits.
    pub(super) fn finish(&mut self) {
        self.until(u64::MAX, u64::MAX);
        self.machine.advance(u64::MAX - 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gate::simulate::keys::KEYS_MAX;
    use crate::qmail::log::{Entry, Log};
    use qpatch_gate::gate::SLOTS_MAX;
    use qpatch_gate::route::Routes;
    use qpatch_gate::rules::KeyKind;
    use qpatch_gate::table::{Limit, Table};

    fn run(rules: &str, concurrency_remote: u32, log: &str) -> Replay {
        run_and_account(rules, concurrency_remote, log).0
    }

    fn run_and_account(rules: &str, concurrency_remote: u32, log: &str) -> (Replay, LogAccount) {
        let mut gate = Gate::new(SLOTS_MAX, concurrency_remote, 1).unwrap();
        let (table, _) = Table::parse(rules.as_bytes(), gate.hasher()).unwrap();
        gate.set_table(Some(table), 0).unwrap();
        gate.set_routes(Routes::new(gate.hasher()), 0).unwrap();
        let mut run = Replay::new(gate, SlotSource::Given, concurrency_remote);
        let mut account = LogAccount::default();
        for (line, number) in log.lines().zip(1..) {
            let text = line.as_bytes();
            let line = crate::qmail::log::line::read(text, None, 0);
            account.entry(&Entry { file: "log", number, text, line });
            Replay::take(std::slice::from_mut(&mut run), &mut account);
        }
        account.finish(&Log::open(&[]).unwrap());
        Replay::take(std::slice::from_mut(&mut run), &mut account);
        run.finish();
        account.lines.left_out += run.left_out;
        (run, account)
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
    fn a_recipient_comes_back_while_others_of_its_message_are_under_way() {
        // There are too few slots to hold any, so one of the second domain goes back as busy, and its place is free
        // after a second. The first domain's takes a minute.
        let run = run("a.example:1\n", 3, &message(&[("b", 60_000), ("a", 1000), ("a", 1000)]));
        let machine = &run.machine;
        let key = machine.keys.iter().find(|key| key.name == b"a.example").unwrap();
        assert_eq!(key.busy, 1);
        assert!((900_000..1_100_000).contains(&key.waited_max_us), "{}", key.waited_max_us);
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
    fn limits_learn_from_the_reports_in_the_log() {
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
        // A fixed limit stays, but what was refused at the greeting beside others that ran was no try either.
        for (rules, lowest) in [(":20::learn\n", 10), (":20\n", 20), (":20::fixed\n", 20)] {
            let run = run(rules, 100, &log);
            let machine = &run.machine;
            let key = &machine.keys[0];
            assert_eq!((key.objections, key.refused), (10, 10), "{rules}");
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
    fn mail_of_a_domain_with_limit_0_ends() {
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
        assert_eq!(listed + run.machine.key_index.forgotten.deliveries, run.deliveries);
        assert_eq!(run.machine.key_index.forgotten.peak_before, 1);
    }

    /// The figures that must be the same when a log is replayed with the limits that it was made with.
    #[derive(Debug)]
    struct ReplayFigures {
        deliveries: u64,
        /// From the first line to the last end.
        whole_secs: f64,
        /// From being handed out first to the start, of all.
        waited_secs: f64,
        peaks: Vec<(Vec<u8>, u32)>,
    }

    fn figures(run: &Replay) -> ReplayFigures {
        let keys = run.machine.keys.iter().filter(|key| key.deliveries > 0);
        let mut peaks: Vec<_> = keys.clone().map(|key| (key.name.clone(), key.peak)).collect();
        peaks.sort();
        ReplayFigures {
            deliveries: run.deliveries,
            whole_secs: run.machine.last_end_us as f64 / 1e6,
            waited_secs: keys.map(|key| key.waited_us).sum::<u64>() as f64 / 1e6,
            peaks,
        }
    }

    /// Deliveries of messages: when each is handed out, in ms, its message, its domain, and how long it takes.
    fn log_of(deliveries: &[(u64, u64, &str, u64)]) -> String {
        let mut lines = Vec::new();
        let stamp = |ms: u64| format!("{}.{:03}", ms / 1000, ms % 1000);
        for (number, (at_ms, message, domain, ms)) in (1..).zip(deliveries) {
            let start =
                format!("starting delivery {number}: msg {message} to remote u{number}@{domain}");
            lines.push((*at_ms, format!("{} {start}\n", stamp(*at_ms))));
            let end_ms = at_ms + ms;
            lines.push((end_ms, format!("{} delivery {number}: success: ok/\n", stamp(end_ms))));
        }
        lines.sort_by_key(|&(ms, _)| ms);
        lines.into_iter().map(|(_, line)| line).collect()
    }

    /// A log without a gate, made a log with one by these limits: replayed with them, it has its own times again.
    #[track_caller]
    fn comes_back(
        what: &str,
        rules: &str,
        slots: u32,
        log: &str,
    ) -> (ReplayFigures, Replay, LogAccount) {
        let made = run(rules, slots, log);
        made.machine.assert_over();
        let own = figures(&made);
        let (again, account) = run_and_account(rules, slots, &made.machine.log.text());
        again.machine.assert_over();
        let found = figures(&again);
        let near = |own: f64, found: f64| (own - found).abs() <= 0.05 * own + 0.05;
        assert_eq!((own.deliveries, &own.peaks), (found.deliveries, &found.peaks), "{what}");
        assert!(near(own.whole_secs, found.whole_secs), "{what}: {own:?} {found:?}");
        // Recipients for whom the gate was asked together are not in the log before they are called: their waits are
        // not known.
        let is_list = what.starts_with("mixed");
        assert!(
            near(own.waited_secs, found.waited_secs)
                || is_list && found.waited_secs < own.waited_secs,
            "{what}: {own:?} {found:?}"
        );
        // And what the log itself says of what ran.
        for key in again.machine.keys.iter().filter(|key| key.deliveries > 0) {
            assert_eq!(key.open_peak, key.peak, "{what}: {}", key.name.escape_ascii());
        }
        assert!(near(own.whole_secs, again.last_end_us as f64 / 1e6), "{what}");
        eprintln!("{what}: {own:?} {found:?}");
        (own, again, account)
    }

    #[test]
    fn a_log_of_a_server_with_a_gate_gives_back_its_own_times() {
        // The operator's first question: 60 mails at once, 2 s each, 5 at once.
        let burst = |count: u64, every_ms: u64, ms: u64| -> Vec<(u64, u64, &str, u64)> {
            (1..=count).map(|n| (1_000_000 + n * every_ms, n, "a.example", ms)).collect()
        };
        let (own, _, account) = comes_back("60 at once", ":5\n", 255, &log_of(&burst(60, 1, 2000)));
        assert!((24.0..25.2).contains(&own.whole_secs), "{own:?}");
        assert_eq!((account.lines.held_already, account.lines.busy_already), (55, 0));
        // With few slots most go back as busy, and come again.
        let (_, _, account) = comes_back("busy", ":5\n", 20, &log_of(&burst(200, 1, 2000)));
        assert!(account.lines.busy_already > 100, "{:?}", account.lines);
        // More than the limit takes, for as long as it lasts.
        comes_back("steady", ":10\n", 100, &log_of(&burst(1500, 150, 2000)));
        comes_back("below", ":10\n", 100, &log_of(&burst(1500, 250, 2000)));
        comes_back("one at a time", ":1\n", 40, &log_of(&burst(100, 300, 500)));
        // Several domains and a group, and messages with many recipients, of different lengths.
        let mut random = 7u64;
        let mut next = |below: u64| {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (random >> 33) % below
        };
        let domains = ["a.example", "b.example", "c.example", "d.example", "e.example"];
        let mut mixed = Vec::new();
        let mut at_ms = 1_000_000;
        for message in 1..=300 {
            at_ms += next(1500);
            for _ in 0..=next(8) {
                at_ms += 1;
                mixed.push((at_ms, message, domains[next(5) as usize], 100 + next(4000)));
            }
        }
        comes_back("mixed", "a.example:3\nb.example:4:g\nc.example:4:g\n:6\n", 60, &log_of(&mixed));
        comes_back("mixed, wide", "a.example:3\n:20\n", 1000, &log_of(&mixed));
    }

    #[test]
    fn a_higher_limit_is_simulated_from_a_log_with_a_lower_one() {
        let burst: Vec<_> = (1..=60).map(|n| (1_000_000 + n, n, "a.example", 2000)).collect();
        let log = log_of(&burst);
        let held = run(":5\n", 255, &log);
        let text = held.machine.log.text();
        for (rules, secs) in [(":10\n", 12.0), (":20\n", 6.0), (":\n", 2.0), (":4\n", 30.0)] {
            let (again, _) = run_and_account(rules, 255, &text);
            let found = again.machine.last_end_us as f64 / 1e6;
            assert!((secs..secs * 1.05 + 0.2).contains(&found), "{rules}: {found}");
        }
        // The same when the slots are few, and most of it came back as busy.
        let text = run(":5\n", 20, &log).machine.log.text();
        let (again, account) = run_and_account(":10\n", 255, &text);
        assert!(account.lines.busy_already > 20);
        let found = again.machine.last_end_us as f64 / 1e6;
        assert!((12.0..12.8).contains(&found), "{found}");
    }

    #[test]
    fn a_delivery_that_bounces_starts_in_its_turn() {
        // The gate has no line for it; it started after those that were handed out before.
        let burst: Vec<_> = (1..=60).map(|n| (1_000_000 + n, n, "a.example", 2000)).collect();
        let text = run(":5\n", 255, &log_of(&burst)).machine.log.text();
        let mut bounced = 0;
        let text: String = text
            .lines()
            .map(|line| match line.split_once(" success: ") {
                Some((before, _)) if before.ends_with("7:") && line.contains("Held_") => {
                    bounced += 1;
                    format!("{before} failure: no_such_user/\n")
                }
                _ => format!("{line}\n"),
            })
            .collect();
        assert_eq!(bounced, 6);
        let (again, _) = run_and_account(":5\n", 255, &text);
        let secs = again.machine.last_end_us as f64 / 1e6;
        assert!((24.0..25.2).contains(&secs), "{secs}");
        let key = &again.machine.keys[0];
        assert!(key.open_peak <= 6, "{}", key.open_peak);
    }

    #[test]
    fn several_queues_in_one_log() {
        let burst = |from: u64| -> Vec<_> {
            (0..20).map(|n| (from + n * 5, n + 1, "a.example", 2000)).collect()
        };
        // The same numbers of messages and deliveries in each.
        let mut lines = Vec::new();
        for (queue, from) in
            [(" queue1", 1_000_000), (" queue2", 1_000_001), (" queue3", 1_000_002)]
        {
            lines.extend(log_of(&burst(from)).lines().map(|line| format!("{line}{queue}\n")));
        }
        lines.sort_by_key(|line| line.split(' ').next().unwrap().parse::<f64>().unwrap().to_bits());
        let (run, account) = run_and_account(":60\n", 255, &lines.concat());
        assert_eq!(run.machine.keys.len(), 1);
        assert_eq!((run.deliveries, run.running_peak), (60, 60));
        assert_eq!((account.lines.queues, account.lines.restarts), (3, 0));
        assert_eq!((account.lines.ends_only, account.lines.starts_only), (0, 0));
    }

    #[test]
    fn starts_without_ends_are_bounded() {
        let mut log = String::new();
        let most = 2 * u64::from(SLOTS_MAX) + 100;
        for n in 1..=most {
            log.push_str(&format!("1.0 starting delivery {n}: msg 1 to remote u@a.example\n"));
        }
        let (run, account) = run_and_account(":\n", 10, &log);
        assert_eq!((run.deliveries, account.lines.starts_only), (most, most));
        assert_eq!(account.open_peak, 2 * SLOTS_MAX);
        run.machine.assert_over();
    }
}
