//! The scenarios S1 to S6, S8 and S9: the mail, the figures, and the bars that the gate has to reach.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use serde::Serialize;

use crate::measure;
use crate::plan::{Domain, KnownSites, LaterMail, Mail, Plan, Random, Route, address, domain_name};
use crate::run::Run;
use crate::sink::{Behaviour, Greylist, Server, Service};
use crate::tls::StartTls;

/// The big domain's mail.
pub const BIG: usize = 0;
/// That of the others.
pub const OTHERS: usize = 1;
/// Mail of the others that arrives while qmail-send still reads the queue for the first time.
pub const EARLY: usize = 2;

/// The limit of each destination in the scenarios.
pub const CAP: u32 = 20;
/// How many sessions the servers of S3 and S5 take; further ones are answered with 421.
pub const SERVER_CAP: u32 = 10;

/// Starts at the big domain within any [`RATE_WINDOW`] of S9.
const RATE: u32 = 600;
const RATE_WINDOW: Duration = Duration::from_secs(60);

const HOLD: Duration = Duration::from_millis(200);
const OTHER_DOMAINS: usize = 50;
/// Mail to them beside a list, for as long as that takes.
const OTHERS_A_SECOND: f64 = 5.0;
const SHARED_DOMAINS: usize = 100;
/// The subject of a line of control/concurrencydomains for the servers' addresses.
const ADDRESSES: &str = "127.1.0.0/16";
/// The subject of a line for the servers' names, as mail exchangers.
const EXCHANGERS: &str = "mx:.bench.example";

/// A scenario.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Scenario {
    /// A busy domain among others.
    S1,
    /// Many domains, no delay.
    S2,
    /// A server that answers 421.
    S3,
    /// A long queue.
    S4,
    /// Many domains behind one address that answers 421.
    S5,
    /// A domain that does not work.
    S6,
    /// One message with many recipients.
    S8,
    /// A domain with a rate.
    S9,
}

/// Whether the table says that limits learn.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Learn {
    /// `learn`.
    On,
    /// `fixed`.
    Off,
}

/// What can be chosen on the command line.
#[derive(Debug, Clone)]
pub struct ScenarioOptions {
    /// The order of the mail.
    pub seed: u64,
    /// The part of the mail that is sent: 1 is all of it.
    pub scale: f64,
    /// control/concurrencydomains, in place of `:20` and, in S5, a line for the site.
    pub table: Option<String>,
    /// A fourth field for those lines.
    pub learn: Option<Learn>,
    /// conf-spawn and concurrencyremote.
    pub concurrency: u32,
    /// Whether the servers offer STARTTLS.
    pub starttls: StartTls,
    /// Whether there is a name server, and S5 can go by MX records.
    pub has_dns: bool,
}

impl ScenarioOptions {
    fn count(&self, all: usize) -> usize {
        ((all as f64 * self.scale).round() as usize).max(1)
    }

    /// control/concurrencydomains, with a line for a site where there is one.
    fn table(&self, site: Option<&str>) -> String {
        let site = || site.map(|site| self.line(site, "shared")).unwrap_or_default();
        self.table.clone().unwrap_or_else(|| self.line("", "") + &site())
    }

    /// The same, with a line for the big domain's rate: that of its relay.
    fn rated_table(&self) -> String {
        let rate = format!("{}:{CAP}::{RATE}/m\n", address(0));
        self.table.clone().unwrap_or_else(|| self.line("", "") + &rate)
    }

    fn line(&self, of: &str, group: &str) -> String {
        let rest = match self.learn {
            None if group.is_empty() => String::new(),
            None => format!(":{group}"),
            Some(Learn::On) => format!(":{group}:learn"),
            Some(Learn::Off) => format!(":{group}:fixed"),
        };
        format!("{of}:{CAP}{rest}\n")
    }

    fn plan(&self) -> Plan {
        Plan {
            domains: Vec::new(),
            servers: Vec::new(),
            route: Route::Table,
            known: KnownSites::Nothing,
            mails: Vec::new(),
            classes: 3,
            before: Vec::new(),
            lists: Vec::new(),
            arrivals: Vec::new(),
            later: Vec::new(),
            wanted: vec![BIG, OTHERS],
            most: Duration::from_secs(90),
            table: self.table(None),
            cap: CAP,
            concurrency: self.concurrency,
            patience: Duration::from_secs(60),
            starttls: self.starttls,
        }
    }

    fn shuffled(&self, mut mails: Vec<u32>) -> Vec<u32> {
        Random::new(self.seed).shuffle(&mut mails);
        mails
    }

    /// Domain 0 has `big` mails, the others `others` between them.
    fn big_and_others(&self, big: usize, others: usize, of_big: Behaviour) -> Plan {
        let mut plan = self.plan();
        for number in 0..=OTHER_DOMAINS {
            plan.domains.push(Domain { name: domain_name(number), server: number });
            let of_other = Behaviour::Serve(Service::holding(HOLD));
            let behaviour = if number == 0 { of_big } else { of_other };
            plan.servers.push(Server { address: address(number), behaviour });
        }
        plan.mails.extend((0..big).map(|_| Mail { domain: 0, class: BIG }));
        add_others(&mut plan, others, OTHERS);
        plan
    }
}

fn add_others(plan: &mut Plan, count: usize, class: usize) -> Vec<u32> {
    let first = plan.mails.len();
    plan.mails.extend((0..count).map(|number| Mail { domain: 1 + number % OTHER_DOMAINS, class }));
    (first as u32..plan.mails.len() as u32).collect()
}

fn numbers(plan: &Plan) -> Vec<u32> {
    (0..plan.mails.len() as u32).collect()
}

impl Scenario {
    /// All, in order.
    pub const ALL: [Scenario; 8] = [
        Scenario::S1,
        Scenario::S2,
        Scenario::S3,
        Scenario::S4,
        Scenario::S5,
        Scenario::S6,
        Scenario::S8,
        Scenario::S9,
    ];

    /// The one of this name.
    pub fn parse(name: &str) -> Option<Scenario> {
        Scenario::ALL.into_iter().find(|scenario| scenario.to_string().eq_ignore_ascii_case(name))
    }

    /// What it is, in one line.
    pub fn title(self) -> &'static str {
        match self {
            Scenario::S1 => {
                "2700 messages to one domain capped at 20, 0.2 s each, shuffled with 300 to fifty others"
            }
            Scenario::S2 => "5000 messages to fifty domains, no delay",
            Scenario::S3 => {
                "500 messages to a domain that answers 421 beyond 10 sessions, 0.2 s each, cap 20"
            }
            Scenario::S4 => {
                "50,000 messages to the big domain queued before, 300 to fifty others during the first pass and \
                 after it"
            }
            Scenario::S5 => {
                "500 messages to 100 domains behind one address that answers 421 beyond 10 sessions, 0.2 s each, cap 20"
            }
            Scenario::S6 => {
                "2700 messages to a domain that hangs or refuses connections, and 300 to fifty others over 30 s"
            }
            Scenario::S8 => {
                "one message with 3250 recipients at one domain capped at 20, 0.2 s each, and others that \
                 arrive meanwhile"
            }
            Scenario::S9 => {
                "2000 messages to one domain with 600/m and 20 places, 0.2 s each, and others that arrive meanwhile"
            }
        }
    }

    /// The plans that each mail server runs, by name.
    pub fn plans(self, options: &ScenarioOptions) -> Vec<(&'static str, Plan)> {
        let serves = Behaviour::Serve(Service::holding(HOLD));
        match self {
            Scenario::S1 => {
                let mut burst =
                    options.big_and_others(options.count(2700), options.count(300), serves);
                burst.before = options.shuffled(numbers(&burst));
                let mut paced = burst.clone();
                paced.arrivals = paced_over(std::mem::take(&mut paced.before), 20.0);
                paced.wanted = vec![OTHERS];
                vec![
                    ("burst", burst.clone()),
                    ("burst alone", burst.without(BIG)),
                    ("paced", paced.clone()),
                    ("paced alone", paced.without(BIG)),
                ]
            }
            Scenario::S2 => {
                let mut plan = options.big_and_others(0, options.count(5000), serves);
                for server in &mut plan.servers {
                    server.behaviour = Behaviour::Serve(Service::holding(Duration::ZERO));
                }
                plan.wanted = vec![OTHERS];
                plan.before = options.shuffled(numbers(&plan));
                vec![("all", plan)]
            }
            Scenario::S3 => {
                let mut plan = options.plan();
                plan.domains.push(Domain { name: domain_name(0), server: 0 });
                plan.servers.push(Server { address: address(0), behaviour: strict() });
                plan.mails = vec![Mail { domain: 0, class: BIG }; options.count(500)];
                plan.wanted = vec![BIG];
                plan.before = numbers(&plan);
                vec![("all", plan)]
            }
            Scenario::S4 => {
                let mut plan = options.big_and_others(options.count(50_000), 300, serves);
                let early = add_others(&mut plan, 300, EARLY);
                let of = |class| {
                    let all = numbers(&plan).into_iter();
                    all.filter(|mail| plan.mails[*mail as usize].class == class).collect::<Vec<_>>()
                };
                let (big, others) = (of(BIG), options.shuffled(of(OTHERS)));
                plan.before = big;
                plan.later = vec![
                    LaterMail { passed: 0.25, done: Vec::new(), mails: options.shuffled(early) },
                    // The deliveries of the early mail start when the pass ends. The other mail must not arrive among
                    // them.
                    LaterMail { passed: 1.0, done: vec![EARLY], mails: others },
                ];
                plan.wanted = vec![BIG, OTHERS, EARLY];
                plan.most = Duration::from_secs_f64(60.0 + 600.0 * options.scale * 1.2);
                let mut alone = plan.without(BIG).without(EARLY);
                alone.later.retain(|later| !later.mails.is_empty());
                vec![("queue", plan), ("alone", alone)]
            }
            Scenario::S5 => {
                let mut relay = options.plan();
                relay.domains = (0..SHARED_DOMAINS)
                    .map(|number| Domain { name: domain_name(number), server: 0 })
                    .collect();
                relay.servers.push(Server { address: address(0), behaviour: strict() });
                relay.mails = (0..options.count(500))
                    .map(|number| Mail { domain: number % SHARED_DOMAINS, class: BIG })
                    .collect();
                relay.wanted = vec![BIG];
                relay.before = options.shuffled(numbers(&relay));
                let by_mx = |known, site| Plan {
                    route: Route::Mx,
                    known,
                    table: options.table(Some(site)),
                    ..relay.clone()
                };
                let mut plans = Vec::new();
                if options.has_dns {
                    plans.push(("mx", by_mx(KnownSites::Nothing, ADDRESSES)));
                    plans.push(("mx seen", by_mx(KnownSites::Seen, ADDRESSES)));
                    plans.push(("mx asked", by_mx(KnownSites::Asked, EXCHANGERS)));
                }
                plans.push(("relay", relay));
                plans
            }
            Scenario::S6 => {
                let plan = |behaviour| {
                    let (big, others) = (options.count(2700), options.count(300));
                    let mut plan = options.big_and_others(big, others, behaviour);
                    let of = |class| {
                        let all = numbers(&plan).into_iter();
                        all.filter(|mail| plan.mails[*mail as usize].class == class)
                            .collect::<Vec<_>>()
                    };
                    let (big, others) = (of(BIG), options.shuffled(of(OTHERS)));
                    plan.before = big;
                    plan.arrivals = paced_over(others, 30.0);
                    plan.wanted = vec![OTHERS];
                    plan.patience = Duration::from_secs(5);
                    plan.most = Duration::from_secs(60);
                    plan
                };
                let hang = plan(Behaviour::Hang);
                vec![
                    ("hang", hang.clone()),
                    ("refuse", plan(Behaviour::Refuse)),
                    ("alone", hang.without(BIG)),
                ]
            }
            Scenario::S8 => {
                let recipients = options.count(3250);
                // At the pace of the limit.
                let secs = recipients as f64 * HOLD.as_secs_f64() / f64::from(CAP);
                let others = (secs * OTHERS_A_SECOND) as usize + 1;
                let mut plan = options.big_and_others(recipients, others, serves);
                let of = |class| {
                    let all = numbers(&plan).into_iter();
                    all.filter(|mail| plan.mails[*mail as usize].class == class).collect::<Vec<_>>()
                };
                let (list, others) = (of(BIG), options.shuffled(of(OTHERS)));
                plan.lists = vec![list];
                plan.arrivals = paced_over(others, secs);
                plan.most = Duration::from_secs_f64(60.0 + 2.0 * secs);
                // No more than the limit at once, of all mail: what a list at this pace costs.
                let mut slow = plan.without(OTHERS);
                slow.concurrency = CAP;
                slow.table = format!(":{}\n", options.concurrency);
                vec![("list", plan.clone()), ("alone", plan.without(BIG)), ("twenty at once", slow)]
            }
            Scenario::S9 => {
                let big = options.count(2000);
                let secs = big as f64 * RATE_WINDOW.as_secs_f64() / f64::from(RATE);
                let others = (secs * OTHERS_A_SECOND) as usize + 1;
                let mut plan = options.big_and_others(big, others, serves);
                let of = |class| {
                    let all = numbers(&plan).into_iter();
                    all.filter(|mail| plan.mails[*mail as usize].class == class).collect::<Vec<_>>()
                };
                let (big, others) = (of(BIG), options.shuffled(of(OTHERS)));
                plan.before = big;
                plan.arrivals = paced_over(others, secs);
                plan.table = options.rated_table();
                plan.most = Duration::from_secs_f64(60.0 + 1.5 * secs);
                vec![("rate", plan.clone()), ("alone", plan.without(BIG))]
            }
        }
    }

    /// The runs that are drawn: each with a level to mark, and the level's name.
    pub fn pictures(self) -> &'static [(&'static str, u32, &'static str)] {
        match self {
            Scenario::S1 => &[("burst", CAP, "limit 20")],
            Scenario::S2 => &[("all", CAP, "limit 20")],
            Scenario::S3 => &[("all", SERVER_CAP, "421 beyond 10")],
            Scenario::S4 => &[("queue", CAP, "limit 20")],
            Scenario::S5 => {
                &[("mx", SERVER_CAP, "421 beyond 10"), ("relay", SERVER_CAP, "421 beyond 10")]
            }
            Scenario::S6 => &[("hang", CAP, "limit 20")],
            Scenario::S8 => &[("list", CAP, "limit 20")],
            Scenario::S9 => &[("rate", CAP, "limit 20")],
        }
    }

    /// The figures of the runs, in the same order for every mail server.
    pub fn measures(self, runs: &BTreeMap<&'static str, (Plan, Run)>) -> Vec<Measure> {
        let mut measures = Measures { runs, all: Vec::new() };
        match self {
            Scenario::S1 => measures.s1(),
            Scenario::S2 => measures.s2(),
            Scenario::S3 => measures.refusals("all", ""),
            Scenario::S4 => measures.s4(),
            Scenario::S5 => {
                measures.refusals("mx", "MX: ");
                measures.refusals("mx seen", "MX, seen before: ");
                measures.refusals("mx asked", "MX, gate sites: ");
                measures.refusals("relay", "relay: ");
            }
            Scenario::S6 => measures.s6(),
            Scenario::S8 => measures.s8(),
            Scenario::S9 => measures.s9(),
        }
        measures.twice();
        measures.all
    }
}

impl fmt::Display for Scenario {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

fn strict() -> Behaviour {
    let most = Some(SERVER_CAP);
    Behaviour::Serve(Service { hold: HOLD, sessions: most, greylist: Greylist::Off })
}

/// Spreads the mail evenly over `secs` seconds.
fn paced_over(mails: Vec<u32>, secs: f64) -> Vec<(Duration, u32)> {
    let distance = secs / mails.len().max(1) as f64;
    let at = |index: usize| Duration::from_secs_f64(index as f64 * distance);
    mails.into_iter().enumerate().map(|(index, mail)| (at(index), mail)).collect()
}

/// The value that the gate has to reach.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Bar {
    /// At most this value.
    AtMost(f64),
    /// At least this value.
    AtLeast(f64),
    /// At least this many times the value of the same tree without the gate.
    AtLeastOfNoGate(f64),
    /// At most this many times the value of the same tree without the gate in the row below.
    AtMostOfNoGateBelow(f64),
}

impl fmt::Display for Bar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Bar::AtMost(value) => write!(f, "<= {value}"),
            Bar::AtLeast(value) => write!(f, ">= {value}"),
            Bar::AtLeastOfNoGate(share) => write!(f, ">= {share} of no gate"),
            Bar::AtMostOfNoGateBelow(times) => write!(f, "<= {times} of no gate below"),
        }
    }
}

/// A figure.
#[derive(Debug, Clone, PartialEq)]
pub struct Measure {
    /// What it is, with its unit.
    pub name: String,
    /// None: it could not be measured, because the mail was not delivered in time, or the mail server does not report
    /// it.
    pub value: Option<f64>,
    /// The value that the gate has to reach.
    pub bar: Option<Bar>,
}

struct Measures<'r> {
    runs: &'r BTreeMap<&'static str, (Plan, Run)>,
    all: Vec<Measure>,
}

impl Measures<'_> {
    fn add(&mut self, name: impl Into<String>, value: Option<f64>, bar: Option<Bar>) {
        self.all.push(Measure { name: name.into(), value, bar });
    }

    fn of<T>(&self, run: &str, what: impl Fn(&Plan, &Run) -> Option<T>) -> Option<T> {
        self.runs.get(run).and_then(|(plan, run)| what(plan, run))
    }

    fn cpu(&mut self, run: &'static str) {
        let value = self.of(run, |_, run| {
            (!run.record.accepted.is_empty()).then(|| run.cpu_ms / run.record.accepted.len() as f64)
        });
        self.add("CPU ms a message", value, None);
    }

    /// Adds the figures of one run for a server with a limit.
    fn capped(&mut self, run: &'static str, at_least: f64) {
        let peak = self.of(run, |_, run| Some(measure::peak(&run.record.servers[0].steps)));
        self.add(
            "sessions at the big domain, most",
            peak.map(f64::from),
            Some(Bar::AtMost(f64::from(CAP))),
        );
        let above =
            self.of(run, |_, run| Some(measure::above(&run.record.servers[0].steps, CAP).1));
        self.add("longest time above 20 sessions, ms", above, None);
        let mean = self.of(run, |_, run| measure::busy_mean(&run.record.servers[0].steps, CAP));
        self.add("mean sessions while it is busy", mean, Some(Bar::AtLeast(at_least)));
        let lull = self.of(run, |_, run| measure::longest_lull(&run.record.servers[0].steps, CAP));
        self.add("longest time below 10 while it is busy, ms", lull, None);
    }

    fn s1(&mut self) {
        // 98.7 % of 20.
        self.capped("burst", 19.74);
        let until = |plan: &Plan, run: &Run, class| {
            measure::until_last(plan, run, class, measure::first_session(run)?)
        };
        let done = self.of("burst", |plan, run| until(plan, run, BIG));
        self.add("big domain done, s", done, None);
        let with = self.of("burst", |plan, run| until(plan, run, OTHERS));
        let alone = self.of("burst alone", |plan, run| until(plan, run, OTHERS));
        self.add("others done, all queued before, s", with, None);
        self.add("others done alone, s", alone, None);
        let todo = self.of("burst", |_, run| run.self_report.todo_secs);
        self.add("qmail-send reads queue/todo, s", todo, None);
        self.add("others, times as long as alone", ratio(with, alone), Some(Bar::AtMost(1.05)));
        // One of the others is among the last mails that are read, and then takes its time at the server.
        let least = self.of("burst", |_, run| {
            let first_secs = measure::first_session(run)?.saturating_sub(run.start_us) as f64 / 1e6;
            Some(run.self_report.todo_secs? - first_secs + HOLD.as_secs_f64())
        });
        self.add("others, times as long at the very least", ratio(least, alone), None);
        let with = self.of("paced", |plan, run| measure::sojourn(plan, run, OTHERS));
        let alone = self.of("paced alone", |plan, run| measure::sojourn(plan, run, OTHERS));
        self.add("others arriving over 20 s, mean time, s", with.map(|(mean, _)| mean), None);
        self.add("others arriving alone, mean time, s", alone.map(|(mean, _)| mean), None);
        let ratio_of = |pick: fn((f64, f64)) -> f64| ratio(with.map(pick), alone.map(pick));
        self.add(
            "others arriving, times as long as alone",
            ratio_of(|(mean, _)| mean),
            Some(Bar::AtMost(1.05)),
        );
        self.add("others arriving, 95 %, times", ratio_of(|(_, most)| most), None);
        self.cpu("burst");
        self.busy_answers("burst", None);
    }

    fn s2(&mut self) {
        let rate = self.of("all", |plan, run| {
            let secs = measure::until_last(plan, run, OTHERS, measure::first_session(run)?)?;
            Some(plan.count(OTHERS) as f64 / secs)
        });
        self.add("messages a second", rate, Some(Bar::AtLeastOfNoGate(0.98)));
        let peak = self.of("all", |_, run| {
            run.record.servers.iter().map(|server| measure::peak(&server.steps)).max()
        });
        self.add(
            "sessions at one domain, most",
            peak.map(f64::from),
            Some(Bar::AtMost(f64::from(CAP))),
        );
        self.cpu("all");
        let sink = self
            .of("all", |_, run| Some(run.record.cpu_ms / run.record.accepted.len().max(1) as f64));
        self.add("the sink's CPU ms a message", sink, None);
    }

    fn refusals(&mut self, run: &'static str, prefix: &str) {
        if !self.runs.contains_key(run) {
            return;
        }
        let refused = self.of(run, |_, run| Some(f64::from(run.record.servers[0].refused)));
        self.add(format!("{prefix}refused with 421"), refused, Some(Bar::AtMost(20.0)));
        let done = self
            .of(run, |plan, run| measure::until_last(plan, run, BIG, measure::first_session(run)?));
        self.add(format!("{prefix}done, s"), done, Some(Bar::AtMost(13.0)));
        let accepted = self.of(run, |_, run| Some(run.record.accepted.len() as f64));
        self.add(format!("{prefix}accepted within 90 s"), accepted, None);
        let mean =
            self.of(run, |_, run| measure::busy_mean(&run.record.servers[0].steps, SERVER_CAP));
        self.add(format!("{prefix}mean sessions of 10"), mean, None);
    }

    fn s4(&mut self) {
        self.capped("queue", 19.7);
        let done = self.of("queue", |plan, run| {
            measure::until_last(plan, run, BIG, measure::first_session(run)?)
        });
        self.add("big domain done, s", done, None);
        self.busy_answers("queue", Some(Bar::AtMost(3.0)));
        let passed = self.of("queue", |_, run| run.self_report.passed_secs);
        self.add("first pass over the queue, s", passed, None);
        let since_arrival = |plan: &Plan, run: &Run, class| {
            measure::until_last(plan, run, class, measure::first_arrival(plan, run, class)?)
        };
        let alone = self.of("alone", |plan, run| since_arrival(plan, run, OTHERS));
        self.add("300 others alone, s", alone, None);
        let after = self.of("queue", |plan, run| since_arrival(plan, run, OTHERS));
        self.add("300 others after the first pass, s", after, None);
        self.add("the same, times as long as alone", ratio(after, alone), Some(Bar::AtMost(1.2)));
        let during = self.of("queue", |plan, run| since_arrival(plan, run, EARLY));
        self.add("300 others during the first pass, s", during, None);
        self.cpu("queue");
        let queued = self.of("queue", |_, run| Some(run.queued_secs));
        self.add("queueing by the bench, s", queued, None);
    }

    fn s6(&mut self) {
        let alone = self.of("alone", |plan, run| measure::sojourn(plan, run, OTHERS));
        self.add("others alone, mean time, s", alone.map(|(mean, _)| mean), None);
        for run in ["hang", "refuse"] {
            let with = self.of(run, |plan, run| measure::sojourn(plan, run, OTHERS));
            self.add(format!("{run}: others, mean time, s"), with.map(|(mean, _)| mean), None);
            let times = ratio(with.map(|(mean, _)| mean), alone.map(|(mean, _)| mean));
            self.add(
                format!("{run}: others, times as long as alone"),
                times,
                Some(Bar::AtMost(1.05)),
            );
            let accepted = self.of(run, |_, run| Some(run.record.accepted.len() as f64));
            self.add(format!("{run}: others done within 60 s"), accepted, None);
            // Postfix defers a destination's whole queue at once: how often it has tried is not in its log.
            let tried = self.of(run, |_, run| {
                let tried = run.self_report.deferred + run.self_report.returned;
                (run.self_report.started > 0).then_some(tried as f64)
            });
            self.add(format!("{run}: deliveries tried in vain"), tried, None);
        }
        let lost = self.of("hang", |_, run| {
            let half = u64::midpoint(run.start_us, run.end_us);
            Some(measure::mean(&run.record.servers[0].steps, half, run.end_us))
        });
        self.add("hang: mean places lost, second half", lost, Some(Bar::AtMost(3.0)));
        let peak = self.of("hang", |_, run| Some(measure::peak(&run.record.servers[0].steps)));
        self.add("hang: places lost, most", peak.map(f64::from), None);
    }

    fn s8(&mut self) {
        // 98.5 % of 20.
        self.capped("list", 19.7);
        let done = self.of("list", |plan, run| {
            measure::until_last(plan, run, BIG, measure::first_session(run)?)
        });
        self.add("list done, s", done, None);
        let most = |plan: &Plan, run: &Run| {
            measure::sojourns(plan, run, OTHERS)?.last().map(|secs| secs - HOLD.as_secs_f64())
        };
        let alone = self.of("alone", most);
        self.add("others alone, the latest, s after its arrival", alone, None);
        let latest = self.of("list", most);
        self.add("others, the latest, s after its arrival", latest, Some(Bar::AtMost(1.0)));
        let cpu = |plan: &Plan, run: &Run| {
            let all_ms = run.self_report.cpu_ms_of.get("qmail-send")?;
            Some(all_ms * 1000.0 / plan.count(BIG).max(1) as f64)
        };
        let others =
            self.of("alone", |_, run| run.self_report.cpu_ms_of.get("qmail-send").copied());
        let with = self.of("list", |plan, run| {
            let all_ms = run.self_report.cpu_ms_of.get("qmail-send")? - others?;
            Some(all_ms * 1000.0 / plan.count(BIG).max(1) as f64)
        });
        // A list without any limit is no measure: hundreds of its deliveries share what one wake-up costs. See
        // README.md.
        let bar = Bar::AtMostOfNoGateBelow(1.3);
        self.add("qmail-send's CPU us a recipient, without the others", with, Some(bar));
        let same_pace = self.of("twenty at once", cpu);
        self.add("the same, the list alone and concurrencyremote 20", same_pace, None);
        self.cpu("list");
        self.busy_answers("list", None);
    }

    fn s9(&mut self) {
        let starts = |pick: fn(Option<(u32, u32)>) -> Option<u32>| {
            move |_: &Plan, run: &Run| {
                let steps = &run.record.servers[0].steps;
                pick(measure::starts_within(steps, RATE_WINDOW)).map(f64::from)
            }
        };
        let most = self.of("rate", starts(|range| Some(range?.1)));
        self.add("sessions begun in any 60 s, most", most, Some(Bar::AtMost(f64::from(RATE))));
        let least = self.of("rate", starts(|range| Some(range?.0)));
        // 99 % of the rate.
        let bar = Bar::AtLeast(f64::from(RATE) * 0.99);
        self.add("the same while mail waits, least", least, Some(bar));
        let peak = self.of("rate", |_, run| Some(measure::peak(&run.record.servers[0].steps)));
        self.add(
            "sessions at the big domain, most",
            peak.map(f64::from),
            Some(Bar::AtMost(f64::from(CAP))),
        );
        let done = self.of("rate", |plan, run| {
            measure::until_last(plan, run, BIG, measure::first_session(run)?)
        });
        self.add("big domain done, s", done, None);
        let most = |plan: &Plan, run: &Run| {
            measure::sojourns(plan, run, OTHERS)?.last().map(|secs| secs - HOLD.as_secs_f64())
        };
        let alone = self.of("alone", most);
        self.add("others alone, the latest, s after its arrival", alone, None);
        let latest = self.of("rate", most);
        self.add("others, the latest, s after its arrival", latest, Some(Bar::AtMost(1.0)));
        self.cpu("rate");
        self.busy_answers("rate", None);
    }

    fn busy_answers(&mut self, run: &'static str, bar: Option<Bar>) {
        let value = self.of(run, |plan, run| {
            // Postfix does not log how many deliveries it has started.
            (run.self_report.started > 0).then(|| {
                (run.self_report.busy + run.self_report.returned) as f64
                    / plan.count(BIG).max(1) as f64
            })
        });
        self.add("busy answers a mail of the big domain", value, bar);
    }

    /// Over all runs of the scenario.
    fn twice(&mut self) {
        let (mut twice, mut lost) = (0, 0);
        for (plan, run) in self.runs.values() {
            let (more, none) = measure::twice_and_lost(plan, run);
            twice += more;
            if run.complete && plan.wanted.len() == plan.classes_used() {
                lost += none;
            }
        }
        self.add("accepted twice", Some(twice as f64), Some(Bar::AtMost(0.0)));
        self.add("lost", Some(lost as f64), Some(Bar::AtMost(0.0)));
    }
}

fn ratio(of: Option<f64>, to: Option<f64>) -> Option<f64> {
    of.zip(to).filter(|(_, to)| *to > 0.0).map(|(of, to)| of / to)
}
