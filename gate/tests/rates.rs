//! Rates: in no interval of a rate's length, wherever it begins, do more deliveries start than it allows, whatever the
//! schedule is; and while mail is there, 99 % of the rate is used.

mod model;

use model::{Model, Outcome, SEC, Setup};
use proptest::collection::vec;
use proptest::prelude::*;
use qpatch_gate::command::Parts;
use qpatch_gate::gate::{Answer, Busy, BusyReason, DeliveryEnd, Gate, NextAction};
use qpatch_gate::memory::Text;
use qpatch_gate::rate::StartRate;
use qpatch_gate::rates::{PacedRate, Rates};
use qpatch_gate::rules::KeyKind;
use qpatch_gate::start_log::{LogState, Stamp};
use qpatch_gate::table::Table;

/// The most starts in any closed interval of this length.
fn most_within(starts: &[u64], us: u64) -> usize {
    let mut first = 0;
    let mut most = 0;
    for (last, &at_us) in starts.iter().enumerate() {
        while at_us - starts[first] > us {
            first += 1;
        }
        most = most.max(last + 1 - first);
    }
    most
}

fn paced(rates: &Rates) -> impl Iterator<Item = PacedRate> {
    [rates.seconds, rates.minutes].into_iter().flatten()
}

fn hold(starts: &[u64], rates: &Rates) {
    for (allowed, secs) in [(rates.hour, 3600), (rates.day, 86_400)] {
        let Some(allowed) = allowed else { continue };
        let most = most_within(starts, secs * SEC);
        assert!(most <= allowed as usize, "{most} starts in {secs} s, {rates}");
    }
    for PacedRate { starts: allowed, secs } in paced(rates) {
        let most = most_within(starts, u64::from(secs) * SEC);
        assert!(most <= allowed as usize, "{most} starts in {secs} s, {rates}");
    }
}

fn rates() -> impl Strategy<Value = Rates> {
    let seconds = (1u32..500, prop_oneof![Just(1), 1u32..60]);
    let minutes = (1u32..3000, prop_oneof![Just(1), 1u32..60]);
    prop_oneof![
        seconds.clone().prop_map(|one| (Some(one), None)),
        minutes.clone().prop_map(|one| (None, Some(one))),
        (seconds, minutes).prop_map(|(one, other)| (Some(one), Some(other))),
    ]
    .prop_map(|(seconds, minutes)| Rates {
        seconds: seconds.map(|(starts, secs)| PacedRate { starts, secs }),
        minutes: minutes.map(|(starts, minutes)| PacedRate { starts, secs: minutes * 60 }),
        ..Rates::NONE
    })
}

#[derive(Clone, Debug)]
enum Step {
    /// Mail is there for so many starts. The clock goes on by this much before each attempt, at random.
    Attempts { number: u32, step_us: u64 },
    /// As a spawner does it: it sleeps until the next start is due, and wakes up late by up to this much.
    Sleeps { number: u32, late_us: u64 },
    /// The clock jumps forwards.
    Jump { us: u64 },
    /// The table changes.
    Reload { rates: Rates },
    /// The spawner starts again and knows nothing.
    Restart,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (1u32..200, prop_oneof![Just(0u64), 1..100u64, 1..100_000u64, 1..10_000_000u64])
            .prop_map(|(number, step_us)| Step::Attempts { number, step_us }),
        6 => (1u32..200, prop_oneof![Just(0u64), 1..10_000u64, 1..200_000u64])
            .prop_map(|(number, late_us)| Step::Sleeps { number, late_us }),
        2 => prop_oneof![1..1_000_000u64, 1..7_200_000_000u64].prop_map(|us| Step::Jump { us }),
        1 => rates().prop_map(|rates| Step::Reload { rates }),
        1 => Just(Step::Restart),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn never_more_than_the_rate_whatever_the_schedule(
        first in rates(), steps in vec(step(), 1..30), seed in any::<u64>()
    ) {
        let mut random = qpatch_gate::random::Random::new(seed);
        let mut now_us = 1u64 << 40;
        let mut in_force = first;
        let mut rate = StartRate::new(&in_force, now_us);
        // The starts under the rates in force, and the last one before.
        let mut starts: Vec<u64> = Vec::new();
        for step in steps {
            match step {
                Step::Attempts { number, step_us } => {
                    for _ in 0..number {
                        now_us += if step_us == 0 { 0 } else { random.next() % step_us };
                        if rate.is_due(now_us) {
                            rate.started(now_us);
                            starts.push(now_us);
                        }
                    }
                }
                Step::Sleeps { number, late_us } => {
                    for _ in 0..number {
                        let late_us = if late_us == 0 { 0 } else { random.next() % late_us };
                        now_us = now_us.max(rate.due_us() + late_us);
                        prop_assert!(rate.is_due(now_us));
                        prop_assert_eq!(rate.starts_within(now_us, 0), 1);
                        rate.started(now_us);
                        starts.push(now_us);
                    }
                }
                Step::Jump { us } => now_us += us,
                Step::Reload { rates } => {
                    hold(&starts, &in_force);
                    starts.drain(..starts.len().saturating_sub(1));
                    in_force = rates;
                    rate = rate.with(&in_force, now_us);
                }
                Step::Restart => rate = StartRate::new(&in_force, now_us),
            }
        }
        hold(&starts, &in_force);
    }

    #[test]
    fn nearly_all_of_the_rate_is_used(rates in rates(), late_us in 0u64..4_000, seed in any::<u64>()) {
        let mut random = qpatch_gate::random::Random::new(seed);
        let mut rate = StartRate::new(&rates, 0);
        let first_us = rate.due_us();
        let mut now_us = first_us;
        let mut starts = 0u64;
        while starts < 2000 {
            // The time-out of a spawner is late by up to 4 ms.
            now_us = now_us.max(rate.due_us() + if late_us == 0 { 0 } else { random.next() % late_us });
            rate.started(now_us);
            starts += 1;
        }
        let slowest = rates.slowest().unwrap();
        let allowed = (now_us - first_us) as f64 / 1e6 * f64::from(slowest.starts) / f64::from(slowest.secs);
        let share = starts as f64 / allowed;
        prop_assert!(share > 0.99, "{share:.4} of {rates}");
    }
}

fn backlog(table: &'static str, mails: u32, mean_service_secs: f64) -> Outcome {
    let mut model = Model::new(Setup { table, mean_service_secs, ..Setup::default() });
    let busy = model.domain("busy.example");
    let other = model.domain("other.example");
    for at in 0..mails {
        model.mail(busy, 0);
        if at % 10 == 0 {
            model.mail(other, 0);
        }
    }
    model.run()
}

/// With a backlog, a model of qmail-send and deliveries of random length: the rate is never exceeded and nearly used
/// up, no mail is sent away again and again, other mail does not wait, and no hold ends because it was too long.
#[test]
fn a_backlog_goes_at_the_rate() {
    for (table, mails, service_secs, allowed, secs) in [
        ("busy.example:20::20/s\n", 4000, 0.2, 20, 1),
        ("busy.example:20::600/m\n", 4000, 0.2, 600, 60),
        ("busy.example:20::learn,600/m\n", 2000, 0.2, 600, 60),
        ("busy.example:::50/s\n", 5000, 0.2, 50, 1),
        ("busy.example:20:google:3/10s,600/m\n", 300, 2.0, 3, 10),
        ("busy.example:1::1/10s\n", 100, 0.2, 1, 10),
        ("busy.example:5::2/5m\n", 30, 0.2, 2, 300),
        ("busy.example:5::10/60m\n", 12, 0.2, 10, 3600),
        ("busy.example:20::300/h\n", 650, 0.2, 300, 3600),
        ("busy.example:20:google:10/s,1000/d\n", 1100, 0.2, 1000, 86_400),
    ] {
        let outcome = backlog(table, mails, service_secs);
        let mut starts: Vec<u64> = outcome
            .mails
            .iter()
            .filter(|mail| mail.domain == 0)
            .map(|mail| mail.started_us)
            .collect();
        starts.sort_unstable();
        let most = most_within(&starts, secs * SEC);
        assert!(most <= allowed, "{most} starts in {secs} s: {table}");
        let (first, last) = (starts[0], starts[starts.len() - 1]);
        let share = (starts.len() - 1) as f64
            / ((last - first) as f64 / 1e6 * allowed as f64 / secs as f64);
        let seen = outcome.domains[0];
        println!(
            "{:40} {most} of {allowed} in {secs} s, {:.2} % used, {:.2} busy answers a mail (at most {}), {} expired, \
             {:.1} calls/s, {} held",
            table.trim_end(),
            share * 100.0,
            seen.busy_per_mail(),
            seen.busy_max,
            outcome.expired,
            outcome.calls as f64 / seen.makespan_secs(),
            outcome.held_peak,
        );
        assert!(share > 0.99, "{share:.4} of the rate: {table}");
        assert_eq!(outcome.expired, 0, "{table}");
        assert!(outcome.domains[1].waited_max_us < 10 * SEC, "{table}");
    }
}

/// A gate with one domain, asked directly.
struct Direct {
    gate: Gate,
    slot: u32,
}

impl Direct {
    fn new(table: &str, now_us: u64) -> Self {
        let mut this = Self { gate: Gate::new(1000, 1000, 1).unwrap(), slot: 0 };
        this.table(table, now_us);
        this
    }

    fn table(&mut self, table: &str, now_us: u64) {
        let (table, problems) = Table::parse(table.as_bytes(), self.gate.hasher()).unwrap();
        assert!(problems.is_empty());
        self.gate.set_table(Some(table), now_us).unwrap();
    }

    fn ask(&mut self, now_us: u64, domain: &str) -> Answer {
        self.slot += 1;
        let recipient = format!("user@{domain}\0");
        let parts = Parts::new(&[b"1/1\0", b"s@x.example\0", recipient.as_bytes()]).unwrap();
        self.gate.ask(now_us, self.slot, &parts)
    }

    fn done(&mut self, now_us: u64, slot: u32) {
        let report = b"r\0K192.0.2.7 accepted message.\n\0";
        assert_eq!(self.gate.done(now_us, slot, DeliveryEnd::Reported(report)), None);
    }
}

#[test]
fn a_held_delivery_starts_when_it_is_due() {
    let mut direct = Direct::new("a.example:20::600/m\n", 0);
    assert_eq!(direct.ask(200_000, "a.example"), Answer::Go);
    assert_eq!(direct.ask(200_000, "a.example"), Answer::Hold);
    assert_eq!(direct.ask(200_000, "b.example"), Answer::Go, "another domain");
    // An interval of 60.3 s / 600, less the tolerance of an even one.
    let wait_us = direct.gate.timeout_us(200_000).unwrap();
    assert!((500..1_200).contains(&wait_us), "{wait_us}");
    assert_eq!(direct.gate.next(200_000 + wait_us - 1), NextAction::None);
    assert!(matches!(direct.gate.next(200_000 + wait_us), NextAction::Go { slot: 2, .. }));
    assert_eq!(direct.gate.timeout_us(400_000), None, "nothing waits");
}

#[test]
fn the_answer_names_the_rate() {
    let mut direct = Direct::new("a.example:20::1/10m\n", 0);
    let Answer::Busy(Busy { why, secs, .. }) = direct.ask(0, "a.example") else { panic!() };
    assert_eq!(why, BusyReason::AtRate);
    assert!((660..3600).contains(&secs), "{secs}");
    // When the rate allows a start, it is not what mail waits for.
    let busy = direct.gate.ask_together(700 * SEC, 2, b"user@a.example").unwrap();
    assert_eq!(busy.why, BusyReason::AtLimit);
    // At the limit of concurrency, that is named.
    direct.table("a.example:0::1/10m\n", 700 * SEC);
    let busy = direct.gate.ask_together(700 * SEC, 2, b"user@a.example").unwrap();
    assert_eq!(busy.why, BusyReason::AtLimit);
    assert_eq!(
        direct.gate.find_key(KeyKind::Domain, b"a.example").unwrap().cap.rates.to_string(),
        "1/10m"
    );
}

#[test]
fn a_reload_keeps_what_was_counted() {
    let mut direct = Direct::new("a.example:20::60/m\n", 0);
    let mut now_us = 10 * SEC;
    assert_eq!(direct.ask(now_us, "a.example"), Answer::Go);
    direct.done(now_us, 1);
    // The same rate, and another line.
    direct.table("a.example:20::60/m\nb.example:1\n", now_us);
    assert_eq!(direct.ask(now_us, "a.example"), Answer::Hold);
    // A higher rate counts at once, from the last start on.
    now_us += 200_000;
    direct.table("a.example:20::600/m\n", now_us);
    assert!(matches!(direct.gate.next(now_us), NextAction::Go { .. }));
    // A lower one, too.
    direct.table("a.example:20::1/10s\n", now_us);
    assert_eq!(direct.ask(now_us, "a.example"), Answer::Hold);
    let wait_us = direct.gate.timeout_us(now_us).unwrap();
    assert!((9_900_000..10_200_000).contains(&wait_us), "{wait_us}");
    // No rate any more.
    direct.table("a.example:20\n", now_us);
    assert!(matches!(direct.gate.next(now_us), NextAction::Go { .. }));
    // A rate where there was none: what started before is not known.
    direct.table("a.example:20::1/10s\n", now_us);
    assert_eq!(direct.ask(now_us, "a.example"), Answer::Hold);
    assert_eq!(direct.gate.next(now_us + 9 * SEC), NextAction::None);
}

/// A key that was forgotten does not start again too soon.
#[test]
fn a_key_that_is_forgotten_keeps_its_rate() {
    let mut direct = Direct::new("a.example:20::1/30m\n", 0);
    let now_us = 2000 * SEC;
    assert_eq!(direct.ask(now_us, "a.example"), Answer::Go);
    direct.done(now_us, 1);
    for other in 0..1000u64 {
        let at_us = now_us + other * 1000;
        assert_eq!(direct.ask(at_us, &format!("{other}.example")), Answer::Go);
        direct.done(at_us, direct.slot);
        direct.slot = 1;
    }
    let domain = KeyKind::Domain;
    assert!(direct.gate.find_key(domain, b"a.example").is_none());
    assert!(matches!(direct.ask(now_us + 1700 * SEC, "a.example"), Answer::Busy(_)));
    assert_eq!(direct.ask(now_us + 1850 * SEC, "a.example"), Answer::Go);
}

/// An answer ends a suspension early: held mail then waits for the rate alone.
#[test]
fn held_mail_waits_no_longer_than_the_rate() {
    const REFUSED: &[u8] =
        b"r\0ZSorry, I wasn't able to establish an SMTP connection. (#4.4.1)\n\0";
    const ACCEPTED: &[u8] = b"r\0K192.0.2.7 accepted message.\n\0";
    const MS: u64 = 1000;
    let mut direct = Direct::new("a.example:9::1/s\n", 0);
    let done = |direct: &mut Direct, at_ms: u64, slot: u32, report: &[u8]| {
        direct.gate.done(at_ms * MS, slot, DeliveryEnd::Reported(report));
        // Mail whose refusal does not count as an attempt is called while the key is not suspended.
        while let NextAction::Call(_) = direct.gate.next(at_ms * MS) {}
    };
    assert_eq!(direct.ask(1500 * MS, "a.example"), Answer::Go);
    done(&mut direct, 1600, 1, ACCEPTED);
    for slot in 2..=4 {
        assert_eq!(direct.ask(slot * 2000 * MS, "a.example"), Answer::Go);
    }
    done(&mut direct, 8500, 2, REFUSED);
    assert_eq!(direct.ask(10_000 * MS, "a.example"), Answer::Go);
    done(&mut direct, 10_100, 3, REFUSED);
    done(&mut direct, 10_200, 4, REFUSED);
    let now_us = 10_300 * MS;
    assert_eq!(direct.ask(now_us, "a.example"), Answer::Hold);
    let suspended_until = |gate: &Gate, now_us| {
        gate.find_key(KeyKind::Domain, b"a.example").unwrap().suspended_until(now_us)
    };
    assert!(suspended_until(&direct.gate, now_us) > Some(11_200 * MS));
    done(&mut direct, 10_400, 5, ACCEPTED);
    let mut now_us = 10_400 * MS;
    assert_eq!(suspended_until(&direct.gate, now_us), None);
    loop {
        match direct.gate.next(now_us) {
            NextAction::None => now_us += direct.gate.timeout_us(now_us).unwrap(),
            NextAction::Call(_) => {}
            next => break assert!(matches!(next, NextAction::Go { slot: 6, .. }), "{next:?}"),
        }
    }
    assert!((10_900 * MS..11_050 * MS).contains(&now_us), "{now_us}");
}

/// The members of a site that are not in memory count for the rate of its candidates.
#[test]
fn candidates_count_the_starts_of_forgotten_members() {
    let mut direct = Direct::new("192.0.2.0/24:20:site:1/30m\n", 0);
    let at_site = b"r\0K192.0.2.7 accepted message.\nRemote host said: 250 ok\n\0";
    let refused =
        b"r\0ZConnected to 192.0.2.7 but sender was rejected.\nRemote host said: 451 later\n\0";
    let elsewhere = b"r\0K198.51.100.7 accepted message.\nRemote host said: 250 ok\n\0";
    assert_eq!(direct.ask(0, "member.example"), Answer::Go);
    direct.gate.done(0, 1, DeliveryEnd::Reported(at_site));
    assert_eq!(direct.ask(0, "candidate.example"), Answer::Go);
    direct.gate.done(0, 2, DeliveryEnd::Reported(refused));
    assert_eq!(direct.gate.next(60 * SEC), NextAction::None);
    let mut others = 0..;
    let mut forget = |direct: &mut Direct, now_us: u64| {
        for other in others.by_ref().take(1000) {
            let name = format!("{other}.example");
            assert_eq!(direct.ask(now_us, &name), Answer::Go);
            direct.gate.done(now_us, direct.slot, DeliveryEnd::Reported(elsewhere));
            direct.slot = 2;
        }
        direct.gate.tidy(now_us).unwrap();
        assert!(direct.gate.keys().all(|key| key.name != b"site"), "forgotten");
    };
    let now_us = 2000 * SEC;
    forget(&mut direct, now_us);
    assert_eq!(direct.ask(now_us, "member.example"), Answer::Go);
    direct.gate.done(now_us, direct.slot, DeliveryEnd::Reported(at_site));
    forget(&mut direct, now_us);
    let answer = direct.ask(now_us + 1700 * SEC, "candidate.example");
    assert!(matches!(answer, Answer::Busy(Busy { why: BusyReason::AtRate, .. })), "{answer:?}");
    let kinds: Vec<_> = direct.gate.keys().map(|key| key.kind.name()).collect();
    assert!(kinds.contains(&"candidates"), "{kinds:?}");
    assert_eq!(direct.ask(now_us + 1850 * SEC, "candidate.example"), Answer::Go);
}

/// A site's members and its candidates share one rate.
#[test]
fn candidates_count_for_the_rate_of_their_site() {
    let mut direct = Direct::new("192.0.2.0/24:20:site:6/m\n", 0);
    let at_site = b"r\0K192.0.2.7 accepted message.\nRemote host said: 250 ok\n\0";
    let refused =
        b"r\0ZConnected to 192.0.2.7 but sender was rejected.\nRemote host said: 451 later\n\0";
    assert_eq!(direct.ask(0, "member.example"), Answer::Go);
    direct.gate.done(0, 1, DeliveryEnd::Reported(at_site));
    assert_eq!(direct.ask(0, "candidate.example"), Answer::Go);
    direct.gate.done(0, 2, DeliveryEnd::Reported(refused));
    let now_us = 60 * SEC;
    assert_eq!(direct.gate.next(now_us), NextAction::None);
    assert_eq!(direct.ask(now_us, "member.example"), Answer::Go);
    assert_eq!(direct.ask(now_us, "candidate.example"), Answer::Hold);
    let kinds: Vec<_> =
        direct.gate.keys().map(|key| (key.kind.name(), key.running, key.held)).collect();
    assert!(kinds.contains(&("candidates", 0, 1)), "{kinds:?}");
    let wait_us = direct.gate.timeout_us(now_us).unwrap();
    assert!((9 * SEC..11 * SEC).contains(&wait_us), "{wait_us}");
    assert!(matches!(direct.gate.next(now_us + wait_us), NextAction::Go { slot: 4, .. }));
    assert_eq!(direct.ask(now_us + wait_us, "member.example"), Answer::Hold);
}

/// The domains of the random schedules, and the key that each counts under.
const DOMAINS: [(&str, usize); 4] =
    [("a.example", 0), ("b.example", 0), ("c.example", 1), ("free.example", 2)];

const TABLES: [&str; 8] = [
    ":20\na.example:5:g:20/s,30/h\nb.example:5:g:40/d\nc.example:1::3/h\n",
    ":20\na.example:5:g:50/h\nb.example:5:g:30/d\nc.example:::2/d,1/s\n",
    ":20\na.example:5:g:20/s\nb.example:5:g\nc.example:1::1/10s\n",
    ":20\na.example:5:g:learn,3/2s\nb.example:5:g:60/m\nc.example:::100/s\n",
    ":20\na.example::g:600/m\nb.example::g\nc.example:3::2/5m\n",
    ":20\na.example:2:g:5/s\nb.example:2:g\nc.example:0::7/s\n",
    ":20\na.example:5:g\nb.example:5:g\nc.example:5\n",
    ":5::2/s\na.example:5:g:2/s\nb.example:5:g\n",
];

#[derive(Clone, Debug)]
enum GateStep {
    /// Commands for a domain.
    Ask {
        domain: usize,
        number: u32,
    },
    /// A delivery ends.
    Done {
        which: usize,
    },
    /// Time goes by, and the spawner wakes up each time the gate wants it.
    Wait {
        us: u64,
    },
    /// Time goes by, and the spawner is stopped meanwhile; or the clock jumps.
    Jump {
        us: u64,
    },
    Table {
        which: usize,
    },
    Restart,
    Tidy,
}

fn gate_step() -> impl Strategy<Value = GateStep> {
    prop_oneof![
        12 => (0..DOMAINS.len(), 1u32..20)
            .prop_map(|(domain, number)| GateStep::Ask { domain, number }),
        12 => any::<usize>().prop_map(|which| GateStep::Done { which }),
        8 => (0u64..2_000_000).prop_map(|us| GateStep::Wait { us }),
        1 => (0u64..200_000_000).prop_map(|us| GateStep::Wait { us }),
        2 => (0u64..7_200_000_000).prop_map(|us| GateStep::Jump { us }),
        1 => (0..TABLES.len()).prop_map(|which| GateStep::Table { which }),
        1 => Just(GateStep::Restart),
        1 => Just(GateStep::Tidy),
    ]
}

struct Checked {
    gate: Gate,
    table: usize,
    now_us: u64,
    /// The domain in each slot, and whether it runs.
    slots: Vec<Option<(usize, bool)>>,
    /// The starts of each key while its rates have been in force.
    starts: [Vec<u64>; 3],
}

impl Checked {
    const SLOTS: u32 = 60;

    fn new() -> Self {
        let mut this = Self {
            gate: Gate::new(Self::SLOTS, Self::SLOTS, 1).unwrap(),
            table: 0,
            now_us: 1 << 40,
            slots: vec![None; Self::SLOTS as usize],
            starts: Default::default(),
        };
        this.set_table();
        this
    }

    fn set_table(&mut self) {
        let text = TABLES[self.table].as_bytes();
        let (table, problems) = Table::parse(text, self.gate.hasher()).unwrap();
        assert_eq!(problems.errors(), 0);
        self.gate.set_table(Some(table), self.now_us).unwrap();
    }

    fn rates(&self, domain: usize) -> Rates {
        self.gate.rules().resolve(DOMAINS[domain].0.as_bytes()).cap.rates
    }

    fn check(&self) {
        for (domain, &(_, key)) in DOMAINS.iter().enumerate() {
            hold(&self.starts[key], &self.rates(domain));
        }
    }

    fn start(&mut self, slot: u32) {
        let entry = self.slots[slot as usize].as_mut().unwrap();
        entry.1 = true;
        let key = DOMAINS[entry.0].1;
        self.starts[key].push(self.now_us);
    }

    fn ask(&mut self, domain: usize) {
        let Some(slot) = self.slots.iter().position(Option::is_none) else { return };
        let recipient = format!("user@{}\0", DOMAINS[domain].0);
        let parts = Parts::new(&[b"1/1\0", b"s@x.example\0", recipient.as_bytes()]).unwrap();
        match self.gate.ask(self.now_us, slot as u32, &parts) {
            Answer::Go => {
                self.slots[slot] = Some((domain, false));
                self.start(slot as u32);
            }
            Answer::Hold => self.slots[slot] = Some((domain, false)),
            Answer::Busy(busy) => assert!((1..=3600).contains(&busy.secs)),
            Answer::InUse => panic!("slot {slot} is in use"),
        }
        assert!(
            self.rates(domain).is_none() || self.gate.keys().all(|key| key.held <= 30),
            "something is held without end"
        );
    }

    fn serve(&mut self) {
        loop {
            match self.gate.next(self.now_us) {
                NextAction::None => return,
                NextAction::Go { slot, .. } => self.start(slot),
                NextAction::Busy { slot, .. } => self.slots[slot as usize] = None,
                NextAction::Call(_) => {}
            }
        }
    }

    fn wait(&mut self, us: u64) {
        let until_us = self.now_us + us;
        for wakes in 0.. {
            self.serve();
            let Some(wait_us) = self.gate.timeout_us(self.now_us) else { break };
            // Nothing polls: two wake-ups a second look for mail that is away, and each start takes one or two.
            assert!(wakes < 100 + us / 2_000, "it wakes up without end");
            if self.now_us + wait_us > until_us {
                break;
            }
            self.now_us += wait_us;
        }
        self.now_us = until_us;
    }

    fn step(&mut self, step: GateStep) {
        match step {
            GateStep::Ask { domain, number } => (0..number).for_each(|_| self.ask(domain)),
            GateStep::Done { which } => {
                let running =
                    |slot: &(usize, &Option<(usize, bool)>)| matches!(slot.1, Some((_, true)));
                let all: Vec<usize> =
                    self.slots.iter().enumerate().filter(running).map(|(slot, _)| slot).collect();
                if let Some(&slot) = all.get(which % all.len().max(1)) {
                    self.slots[slot] = None;
                    let report = b"r\0K192.0.2.7 accepted message.\n\0";
                    self.gate.done(self.now_us, slot as u32, DeliveryEnd::Reported(report));
                }
            }
            GateStep::Wait { us } => self.wait(us),
            GateStep::Jump { us } => self.now_us += us,
            GateStep::Table { which } => {
                self.check();
                let before: Vec<_> = (0..DOMAINS.len()).map(|domain| self.rates(domain)).collect();
                self.table = which;
                self.set_table();
                for (domain, before) in before.into_iter().enumerate() {
                    let starts = &mut self.starts[DOMAINS[domain].1];
                    let now = self.gate.rules().resolve(DOMAINS[domain].0.as_bytes()).cap.rates;
                    // What started before there was such a rate is not known.
                    let is_new = (before.hour.is_none() && now.hour.is_some())
                        || (before.day.is_none() && now.day.is_some());
                    if before.is_none() || is_new {
                        starts.clear();
                    } else if before != now {
                        starts.drain(..starts.len().saturating_sub(1));
                    }
                }
            }
            GateStep::Restart => {
                // With the file of the last moment.
                let stamp = Stamp { wall_secs: self.now_us / SEC, boot_us: self.now_us, boot: 1 };
                let mut text = Text::default();
                let log = self.gate.start_log().unwrap();
                log.write(&mut text, LogState::Closed, &stamp, self.now_us).unwrap();
                self.gate = Gate::new(Self::SLOTS, Self::SLOTS, 1).unwrap();
                let log = self.gate.start_log_mut().unwrap();
                log.restore(&text.bytes, &stamp, self.now_us).unwrap();
                self.slots.fill(None);
                self.set_table();
            }
            GateStep::Tidy => self.gate.tidy(self.now_us).unwrap(),
        }
        self.serve();
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn a_gate_never_starts_more_than_its_rates(steps in vec(gate_step(), 1..150)) {
        let mut checked = Checked::new();
        for step in steps {
            checked.step(step);
        }
        checked.check();
    }
}
