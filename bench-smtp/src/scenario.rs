//! The scenarios S1 to S6 and S8 to S11: the mail.

use std::fmt;
use std::time::Duration;

use serde::Serialize;

use crate::plan::{Domain, KnownSites, LaterMail, Mail, Plan, Random, Route, address, domain_name};
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
pub(crate) const RATE: u32 = 600;
pub(crate) const RATE_WINDOW: Duration = Duration::from_secs(60);

/// How long a server takes to accept a mail.
pub(crate) const HOLD: Duration = Duration::from_millis(200);
/// Mail that comes in while S10 delivers.
pub(crate) const INJECTED_A_SECOND: u32 = 2000;

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
    /// Mail that comes in by the front door while it is delivered, with the queue on a disk.
    S10,
    /// As many sessions as possible at a server that never answers.
    S11,
}

/// What the queue of a scenario is kept on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QueueKind {
    /// In memory if that is possible, and fsync does nothing in qmail's programs.
    Fast,
    /// On a disk, with fsync.
    Disk,
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
            injected: Vec::new(),
            later: Vec::new(),
            wanted: vec![BIG, OTHERS],
            held: None,
            most: Duration::from_secs(90),
            ending: Duration::from_secs(3),
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
    pub const ALL: [Scenario; 10] = [
        Scenario::S1,
        Scenario::S2,
        Scenario::S3,
        Scenario::S4,
        Scenario::S5,
        Scenario::S6,
        Scenario::S8,
        Scenario::S9,
        Scenario::S10,
        Scenario::S11,
    ];

    /// What its queue is kept on.
    pub fn queue(self) -> QueueKind {
        if self == Scenario::S10 { QueueKind::Disk } else { QueueKind::Fast }
    }

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
            Scenario::S10 => {
                "10,000 messages to fifty domains, which come in at 2000 a second while they are delivered; the queue \
                 is on a disk"
            }
            Scenario::S11 => "as many messages as concurrencyremote to a domain that never answers",
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
            Scenario::S10 => {
                let mut plan = options.big_and_others(0, options.count(10_000), serves);
                for server in &mut plan.servers {
                    server.behaviour = Behaviour::Serve(Service::holding(Duration::ZERO));
                }
                let mails = options.shuffled(numbers(&plan));
                let secs = mails.len() as f64 / f64::from(INJECTED_A_SECOND);
                plan.injected = paced_over(mails, secs);
                plan.wanted = vec![OTHERS];
                plan.most = Duration::from_secs_f64(60.0 + 40.0 * secs);
                vec![("all", plan)]
            }
            Scenario::S11 => {
                let count = options.concurrency;
                let mut plan = options.big_and_others(count as usize, 0, Behaviour::Hang);
                plan.before = numbers(&plan);
                plan.held = Some(count);
                plan.table = format!(":{count}\n");
                plan.cap = count;
                plan.wanted = Vec::new();
                // Enough to open all sessions, at 100 a second, and to look at their processes.
                let secs = 60 + u64::from(count) / 100;
                plan.patience = Duration::from_secs(secs);
                plan.most = Duration::from_secs(secs);
                plan.ending = Duration::from_secs(2 * secs + 60);
                vec![("all", plan)]
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
            Scenario::S10 => &[("all", CAP, "limit 20")],
            Scenario::S11 => &[],
        }
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
