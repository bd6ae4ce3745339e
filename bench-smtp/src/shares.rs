//! S12: eight qmails that share a limit through `qpatch gate share`; and beside it what an operator has without it, an
//! eighth of the limit for each.
//!
//! Each host is a copy of the tree with a home, a queue, a qmail-send, spawners and an agent of its own. The mail
//! wanders: every thirty seconds one to four hosts have all of it, as much as they can deliver. After a third of the
//! time two hosts die: kill -9 of their agents, and of all processes of their qmails. After two thirds the store dies,
//! and a second later its replica takes over, at the address that the agents have. The sink counts the sessions of all
//! hosts together, and those of each.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use qpatch::gate::share::{self, Share};
use qpatch::verify::sandbox::scratch::Scratch;
use qpatch_gate::host_share::LeasePhase;
use qpatch_gate::random::Random;
use qpatch_test_support::proxy::Proxy;
use qpatch_test_support::redis::Redis;
use serde::Serialize;

use crate::error::{Error, Result, check_signals};
use crate::measure;
use crate::plan::{Domain, KnownSites, Mail, Plan, Route, address, domain_name};
use crate::plot::{self, Panel, Series};
use crate::qmail::{Flavour, Qmail, patched};
use crate::run::Subject as _;
use crate::sink::{Behaviour, Record, Server, Service, Sink, Step};
use crate::tls::StartTls;
use crate::usage;

/// The first argument of this program when it is the agent of a host. The second one is the home.
pub const AGENT: &str = "qpatch-bench-agent";
/// How long each of the two ways takes.
pub const LENGTH: Duration = Duration::from_secs(240);

const HOSTS: usize = 8;
/// Of all hosts together.
const LIMIT: u32 = 80;
/// How long mail stays on the same hosts.
const SPELL: Duration = Duration::from_secs(30);
/// How many mails of a host with mail run or wait.
const UNDER_WAY: u32 = LIMIT + 10;
/// How many mails a host can have: more than it can deliver within the length.
const MAILS_OF_A_HOST: u32 = 120_000;
/// The part of the limit that hosts with mail use when it has moved there.
const ENOUGH: f64 = 0.97;
/// How long the store is away.
const FAILOVER: Duration = Duration::from_secs(1);
/// How long the agents may take to begin.
const PATIENCE: Duration = Duration::from_secs(60);

/// What can be chosen.
#[derive(Debug)]
pub struct ShareSettings<'s> {
    /// A qmail source tree.
    pub tree: &'s Path,
    /// The port of the sink.
    pub port: u16,
    /// conf-spawn and concurrencyremote of each host.
    pub concurrency: u32,
    /// Where the mail goes.
    pub seed: u64,
    /// How long each way takes.
    pub length: Duration,
}

/// A move of the mail to other hosts.
#[derive(Debug, Clone, Serialize)]
pub struct Move {
    /// When it began, in seconds from the start.
    pub at_secs: f64,
    /// The hosts that have mail since then.
    pub hosts: Vec<usize>,
    /// Until these used 97 % of the limit, from the start of the last mail of the others on; None: never.
    pub secs: Option<f64>,
    /// The same from the moment on when mail came to these hosts.
    pub secs_from_mail: Option<f64>,
}

/// The figures of one way.
#[derive(Debug, Clone, Serialize)]
pub struct ShareOutcome {
    /// `shared`, or `an eighth each`.
    pub way: String,
    /// The most sessions at once.
    pub most: u32,
    /// How long there were more than the limit, in milliseconds.
    pub above_ms: f64,
    /// How much of the limit was used, of 1.
    pub used: f64,
    /// The same for each twentieth of the time.
    pub parts: Vec<f64>,
    /// The moves, in order.
    pub moves: Vec<Move>,
    /// Mails that the sink has taken, those that it has taken twice, and those that it has not and whose host did not
    /// die.
    pub accepted: usize,
    /// See `accepted`.
    pub twice: usize,
    /// See `accepted`.
    pub lost: usize,
    /// The processor time of an agent, in milliseconds a second; the mean of those that lived on.
    pub agent_ms: Option<f64>,
    /// /proc/loadavg at the end.
    pub load: String,
    /// For the picture: the sessions of all together, and of each host.
    #[serde(skip)]
    pub steps: Vec<Vec<Step>>,
}

/// Is the agent of a host until it is killed.
pub fn agent(home: PathBuf) -> ExitCode {
    if let Err(error) = share::run(&Share::of(home)) {
        eprintln!("{error:?}");
    }
    ExitCode::FAILURE
}

struct Host {
    qmail: Qmail,
    agent: Option<Child>,
    said: PathBuf,
    has_mail: bool,
    is_dead: bool,
    /// How many mails were queued.
    queued: u32,
}

/// The store: a primary and a replica, and the address of whichever serves.
struct Stores {
    primary: Redis,
    replica: Redis,
    address: Proxy,
    promote_at: Option<Instant>,
}

impl Stores {
    fn start() -> Result<Stores> {
        let missing = || Error::new("S12 needs redis-server", "install the package redis-server");
        let primary = Redis::start(&[]).ok_or_else(missing)?;
        let of = ["--replicaof", "127.0.0.1", &primary.port.to_string()];
        let replica = Redis::start(&of).ok_or_else(missing)?;
        let address = Proxy::start(primary.port);
        Ok(Stores { primary, replica, address, promote_at: None })
    }

    /// kill -9.
    fn fail(&mut self) {
        self.primary.stop();
        self.promote_at = Some(Instant::now() + FAILOVER);
    }

    /// The replica takes over when it is time.
    fn promote_if_due(&mut self) -> Result<()> {
        if self.promote_at.is_none_or(|at| Instant::now() < at) {
            return Ok(());
        }
        self.promote_at = None;
        let failed = || Error::doing("promote the replica");
        let mut replica = TcpStream::connect(("127.0.0.1", self.replica.port)).map_err(failed())?;
        replica.write_all(b"REPLICAOF NO ONE\r\n").map_err(failed())?;
        let mut answer = [0; 3];
        replica.read_exact(&mut answer).map_err(failed())?;
        if &answer != b"+OK" {
            return Err(Error::new("the replica does not want to be promoted", ""));
        }
        self.address.go_to(self.replica.port);
        Ok(())
    }
}

fn plan(limit: u32, concurrency: u32) -> Plan {
    let mail = |number: u32| Mail { domain: 0, class: (number / MAILS_OF_A_HOST) as usize };
    let behaviour = Behaviour::Serve(Service::holding(HOLD));
    Plan {
        domains: vec![Domain { name: domain_name(0), server: 0 }],
        servers: vec![Server { address: address(0), behaviour }],
        route: Route::Table,
        known: KnownSites::Nothing,
        mails: (0..HOSTS as u32 * MAILS_OF_A_HOST).map(mail).collect(),
        classes: HOSTS,
        before: Vec::new(),
        lists: Vec::new(),
        arrivals: Vec::new(),
        injected: Vec::new(),
        later: Vec::new(),
        wanted: Vec::new(),
        held: None,
        most: LENGTH,
        ending: Duration::ZERO,
        table: format!(":{limit}\n"),
        cap: limit,
        concurrency,
        patience: Duration::from_secs(60),
        starttls: StartTls::Unknown,
    }
}

/// How long the sink takes to accept a mail: so long that the start of the next process is a small part of it.
const HOLD: Duration = Duration::from_millis(500);

impl Host {
    fn start_agent(&mut self, store: u16, number: usize) -> Result<()> {
        let config =
            format!("store redis://127.0.0.1:{store}\nhost h{number}\nlease 3\nforget 6\n");
        self.qmail.write("control/concurrencyshare", &config)?;
        let program = std::env::current_exe().map_err(Error::doing("find this program"))?;
        let said = File::create(&self.said).map_err(Error::doing("write what an agent says"))?;
        let agent = Command::new(program)
            .arg(AGENT)
            .arg(self.qmail.home())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(said)
            .spawn()
            .map_err(Error::doing("start an agent"))?;
        self.agent = Some(agent);
        Ok(())
    }

    fn kill(&mut self) {
        self.qmail.kill();
        if let Some(mut agent) = self.agent.take() {
            let _ = (agent.kill(), agent.wait());
        }
    }

    fn takes_part(&self) -> bool {
        let lease = self.qmail.status().and_then(|status| status.lease);
        lease.is_some_and(|lease| lease.phase == LeasePhase::Valid)
    }

    /// What its agent has printed.
    fn said(&self) -> String {
        fs::read_to_string(&self.said).unwrap_or_default()
    }

    /// Queues mail until enough of it runs or waits.
    fn feed(&mut self, number: usize, plan: &Plan, sink: &Sink) -> Result<()> {
        let under_way = self.queued - sink.accepted(number);
        for _ in under_way..UNDER_WAY {
            if self.queued == MAILS_OF_A_HOST {
                return Err(Error::new("there is no mail left", "choose a lower --scale"));
            }
            self.qmail.queue(plan, number as u32 * MAILS_OF_A_HOST + self.queued)?;
            self.queued += 1;
        }
        if under_way < UNDER_WAY {
            self.qmail.notify()?;
        }
        Ok(())
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Builds the hosts, and runs both ways.
pub fn run(scratch: &Scratch, setting: &ShareSettings<'_>) -> Result<Vec<ShareOutcome>> {
    let tree = patched(scratch, setting.tree, Flavour::Gate, setting.concurrency)?;
    let mut hosts = Vec::new();
    for number in 0..HOSTS {
        eprintln!("building host {number} of {HOSTS}");
        check_signals()?;
        hosts.push(Host {
            qmail: Qmail::of_patched(scratch, &tree, &format!("h{number}"), setting.concurrency)?,
            agent: None,
            said: scratch.root().join(format!("h{number}.said")),
            has_mail: false,
            is_dead: false,
            queued: 0,
        });
    }
    let mut outcomes = Vec::new();
    for is_shared in [true, false] {
        let outcome = one_way(&mut hosts, setting, is_shared)?;
        eprint!("{}", to_table(std::slice::from_ref(&outcome)));
        outcomes.push(outcome);
    }
    Ok(outcomes)
}

/// A move while it is measured: when it began, on the sink's clock, and how many mails each host had been given.
struct MoveBegun {
    at_us: u64,
    hosts: Vec<usize>,
    /// Of the hosts that have mail no more: which, and how many.
    others: Vec<(usize, u32)>,
}

fn one_way(
    hosts: &mut [Host],
    setting: &ShareSettings<'_>,
    is_shared: bool,
) -> Result<ShareOutcome> {
    let limit = if is_shared { LIMIT } else { LIMIT / HOSTS as u32 };
    let plan = plan(limit, setting.concurrency);
    let classes = plan.mails.iter().map(|mail| mail.class as u8).collect();
    let sink = Sink::start(&plan.servers, setting.port, classes, plan.classes, StartTls::Unknown)?;
    let mut stores = if is_shared { Some(Stores::start()?) } else { None };
    for (number, host) in hosts.iter_mut().enumerate() {
        (host.has_mail, host.is_dead, host.queued) = (false, false, 0);
        host.qmail.prepare(&plan, setting.port)?;
        host.qmail.write("queue/lock/gatelease", "")?;
        if let Some(stores) = &stores {
            host.start_agent(stores.address.port, number)?;
        }
        host.qmail.start()?;
    }
    if is_shared {
        begin(hosts, &plan, &sink)?;
    }
    let begun = wander(hosts, setting, &plan, &sink, &mut stores)?;
    let end_us = sink.started().elapsed().as_micros() as u64;
    let alive = || hosts.iter().filter(|host| !host.is_dead);
    let secs = setting.length.as_secs_f64();
    let agents: Vec<f64> = alive()
        .filter_map(|host| Some(usage::of_process(host.agent.as_ref()?.id())? / secs))
        .collect();
    let agent_ms = (!agents.is_empty()).then(|| agents.iter().sum::<f64>() / agents.len() as f64);
    let queued: Vec<(u32, bool)> = hosts.iter().map(|host| (host.queued, host.is_dead)).collect();
    let said: Vec<String> = hosts.iter().map(Host::said).collect();
    // What waits is still delivered: so it is seen whether mail was lost.
    let until = Instant::now() + PATIENCE;
    while queued
        .iter()
        .enumerate()
        .any(|(number, &(queued, is_dead))| !is_dead && sink.accepted(number) < queued)
        && Instant::now() < until
    {
        check_signals()?;
        std::thread::sleep(Duration::from_millis(20));
    }
    hosts.iter_mut().for_each(Host::kill);
    let record = sink.stop()?;
    let mut outcome = figures(&record, &begun, end_us, is_shared);
    for (number, &(queued, is_dead)) in queued.iter().enumerate() {
        let first = number as u32 * MAILS_OF_A_HOST;
        let mut times = vec![0; queued as usize];
        for accepted in &record.accepted {
            if let Some(times) = times.get_mut(accepted.mail.wrapping_sub(first) as usize) {
                *times += 1;
            }
        }
        outcome.twice += times.iter().filter(|&&times| times > 1).count();
        if !is_dead {
            outcome.lost += times.iter().filter(|&&times| times == 0).count();
        }
    }
    outcome.agent_ms = agent_ms;
    if is_shared && said.iter().any(|said| !said.contains(" shares the limits of the pool ")) {
        return Err(Error::new(format!("an agent never took part: {}", said.join("; ")), ""));
    }
    Ok(outcome)
}

/// Waits until all hosts take part. An idle gate reads its lease with the first mail.
fn begin(hosts: &mut [Host], plan: &Plan, sink: &Sink) -> Result<()> {
    let until = Instant::now() + PATIENCE;
    for (number, host) in hosts.iter_mut().enumerate() {
        host.qmail.queue(plan, number as u32 * MAILS_OF_A_HOST)?;
        host.queued = 1;
        host.qmail.notify()?;
    }
    let is_ready = |number: usize, host: &Host| sink.accepted(number) == 1 && host.takes_part();
    while !hosts.iter().enumerate().all(|(number, host)| is_ready(number, host)) {
        check_signals()?;
        if Instant::now() > until {
            let said: Vec<String> = hosts.iter().map(Host::said).collect();
            return Err(Error::new(format!("not all hosts take part: {}", said.join("; ")), ""));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// Lets the mail wander, and hosts and the store die.
fn wander(
    hosts: &mut [Host],
    setting: &ShareSettings<'_>,
    plan: &Plan,
    sink: &Sink,
    stores: &mut Option<Stores>,
) -> Result<Vec<MoveBegun>> {
    let mut random = Random::new(setting.seed);
    let (start, mut begun): (_, Vec<MoveBegun>) = (Instant::now(), Vec::new());
    let (mut has_failed, mut checked) = (false, start);
    while start.elapsed() < setting.length {
        if start.elapsed() >= SPELL * begun.len() as u32 {
            let mut alive: Vec<usize> = (0..HOSTS).filter(|&at| !hosts[at].is_dead).collect();
            // Others than before, as far as there are others.
            alive.sort_by_key(|&at| (hosts[at].has_mail, random.next()));
            alive.truncate(1 + random.next() as usize % 4);
            for (at, host) in hosts.iter_mut().enumerate() {
                host.has_mail = alive.contains(&at);
            }
            let others = hosts.iter().enumerate();
            let others = others.filter(|(_, host)| !host.has_mail && !host.is_dead);
            begun.push(MoveBegun {
                at_us: sink.started().elapsed().as_micros() as u64,
                hosts: alive,
                others: others.map(|(at, host)| (at, host.queued)).collect(),
            });
        }
        if start.elapsed() >= setting.length / 3 {
            for host in &mut hosts[HOSTS - 2..] {
                if !std::mem::replace(&mut host.is_dead, true) {
                    host.kill();
                    host.has_mail = false;
                }
            }
        }
        if let Some(stores) = stores {
            if start.elapsed() >= setting.length * 2 / 3
                && !std::mem::replace(&mut has_failed, true)
            {
                stores.fail();
            }
            stores.promote_if_due()?;
        }
        for (number, host) in hosts.iter_mut().enumerate() {
            if host.has_mail {
                host.feed(number, plan, sink)?;
            }
        }
        if checked.elapsed() > Duration::from_secs(1) {
            checked = Instant::now();
            check_signals()?;
            for host in hosts.iter_mut().filter(|host| !host.is_dead) {
                host.qmail.check()?;
                if let Some(agent) = &mut host.agent
                    && let Ok(Some(status)) = agent.try_wait()
                {
                    let said = host.said();
                    return Err(Error::new(format!("an agent has ended: {status}: {said}"), ""));
                }
            }
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    Ok(begun)
}

fn figures(record: &Record, begun: &[MoveBegun], end_us: u64, is_shared: bool) -> ShareOutcome {
    let steps = &record.servers[0].steps;
    let start_us = begun.first().map_or(0, |first| first.at_us);
    let (above_ms, _) = measure::above(steps, LIMIT);
    let used = |from, to| measure::mean(steps, from, to) / f64::from(LIMIT);
    let part = |at: u64| start_us + (end_us - start_us) * at / PARTS;
    let moves = begun.iter().zip(1..).map(|(one, next)| {
        let until_us = begun.get(next).map_or(end_us, |next| next.at_us);
        let enough = (f64::from(LIMIT) * ENOUGH).ceil() as u32;
        let of_hosts = one.hosts.iter().map(|&at| &record.classes[at][..]);
        let all = plot::sum(of_hosts);
        let settled_us = all.iter().find_map(|step| {
            let is_it = (one.at_us..until_us).contains(&step.at_us) && step.sessions >= enough;
            is_it.then_some(step.at_us)
        });
        let drained =
            one.others.iter().map(|&(at, queued)| last_start(&record.classes[at], queued));
        let drained_us = drained.max().unwrap_or(0).max(one.at_us);
        let secs = |from: u64| settled_us.map(|at| at.saturating_sub(from) as f64 / 1e6);
        Move {
            at_secs: (one.at_us - start_us) as f64 / 1e6,
            hosts: one.hosts.clone(),
            secs: secs(drained_us),
            secs_from_mail: secs(one.at_us),
        }
    });
    let means = |steps: &[Step]| smoothed(&plot::shifted(steps, start_us), end_us - start_us);
    ShareOutcome {
        way: if is_shared { "shared".to_owned() } else { "an eighth each".to_owned() },
        most: measure::peak(steps),
        above_ms,
        used: used(start_us, end_us),
        parts: (0..PARTS).map(|at| used(part(at), part(at + 1))).collect(),
        moves: moves.collect(),
        accepted: record.accepted.len(),
        twice: 0,
        lost: 0,
        agent_ms: None,
        load: fs::read_to_string("/proc/loadavg").unwrap_or_default().trim().to_owned(),
        steps: std::iter::once(steps).chain(&record.classes).map(|steps| means(steps)).collect(),
    }
}

/// How many parts of the time have a figure of their own.
const PARTS: u64 = 20;

/// When the session of the last of so many mails began.
fn last_start(steps: &[Step], mails: u32) -> u64 {
    let (mut before, mut starts) = (0, 0);
    for step in steps {
        starts += step.sessions.saturating_sub(before);
        before = step.sessions;
        if starts >= mails && mails > 0 {
            return step.at_us;
        }
    }
    0
}

/// Half-second means: each delivery that ends makes room for another one, which is too fine for a picture.
fn smoothed(steps: &[Step], end_us: u64) -> Vec<Step> {
    const WIDTH_US: u64 = 500_000;
    let mean = |at: u64| measure::mean(steps, at, at + WIDTH_US).round() as u32;
    let all = (0..end_us / WIDTH_US).map(|at| at * WIDTH_US);
    let mut all: Vec<Step> = all.map(|at_us| Step { at_us, sessions: mean(at_us) }).collect();
    let last = all.pop();
    all.dedup_by_key(|step| step.sessions);
    all.extend(last);
    all
}

/// The figures of both ways.
pub fn to_table(outcomes: &[ShareOutcome]) -> String {
    let mut text = String::new();
    for one in outcomes {
        let secs = |of: fn(&Move) -> Option<f64>| -> String {
            let all = one.moves.iter().map(|one| match of(one) {
                Some(secs) => format!("{secs:.1}"),
                None => "-".to_owned(),
            });
            all.collect::<Vec<_>>().join(" ")
        };
        let parts: Vec<String> =
            one.parts.iter().map(|part| format!("{:.0}", 100.0 * part)).collect();
        // Writing into memory does not fail.
        let _ = writeln!(
            text,
            "S12 {}: at most {} sessions of {LIMIT} ({:.1} ms above), {:.1} % used; {} accepted, {} twice, {} lost\n  \
             each twentieth of the time: {} %\n  \
             until hosts with mail used 97 %: {} s; since mail came there: {} s\n  \
             an agent took {} ms of processor time a second; load {}",
            one.way,
            one.most,
            one.above_ms,
            100.0 * one.used,
            one.accepted,
            one.twice,
            one.lost,
            parts.join(" "),
            secs(|one| one.secs),
            secs(|one| one.secs_from_mail),
            one.agent_ms.map_or_else(|| "-".to_owned(), |ms| format!("{ms:.1}")),
            one.load,
        );
    }
    text
}

/// Sessions over time: both ways, and those of each host that shares.
pub fn picture(outcomes: &[ShareOutcome], setting: &ShareSettings<'_>) -> String {
    const HOST_COLOURS: [&str; HOSTS] =
        ["#1b6ca8", "#d1495b", "#edae49", "#00798c", "#8d6a9f", "#6a994e", "#7f5539", "#444444"];
    let both = outcomes.iter().zip([("shared", "#1b6ca8"), ("10 on each host", "#d1495b")]);
    let both = both.rev().map(|(one, (label, colour))| Series {
        label: label.to_owned(),
        colour,
        steps: one.steps[0].clone(),
    });
    let cap = Some((LIMIT, format!("limit {LIMIT}")));
    let mut panels = vec![Panel { title: "all hosts".to_owned(), series: both.collect(), cap }];
    if let Some(shared) = outcomes.first() {
        let hosts = shared.steps[1..].iter().zip(HOST_COLOURS).enumerate();
        let series = hosts.map(|(number, (steps, colour))| Series {
            label: (number + 1).to_string(),
            colour,
            steps: steps.clone(),
        });
        let series = series.rev().collect();
        panels.push(Panel { title: "shared, each host".to_owned(), series, cap: None });
    }
    let secs = setting.length.as_secs_f64();
    let subtitle = format!(
        "the mail moves to other hosts every 30 s; hosts 7 and 8 die at {:.0} s, the store at {:.0} s; means of 0.5 s",
        secs / 3.0,
        secs * 2.0 / 3.0
    );
    plot::draw("Sessions of eight qmails at one server", &subtitle, &panels)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn steps(pairs: &[(u64, u32)]) -> Vec<Step> {
        pairs.iter().map(|&(at_us, sessions)| Step { at_us, sessions }).collect()
    }

    #[test]
    fn a_move_counts_from_the_last_mail_of_the_others() {
        let secs = 1_000_000;
        let other =
            steps(&[(secs, 40), (2 * secs, 80), (3 * secs, 81), (4 * secs, 20), (5 * secs, 0)]);
        let new = steps(&[(3 * secs, 10), (4 * secs, 60), (5 * secs, 78)]);
        let mut record = Record { classes: vec![other, new], ..Record::default() };
        let all = plot::sum(record.classes.iter().map(|steps| &steps[..]));
        record.servers.push(crate::sink::ServerRecord { steps: all, ..Default::default() });
        let begun = |at, hosts, others| MoveBegun { at_us: at * secs, hosts, others };
        let begun = [begun(0, vec![0], vec![(1, 0)]), begun(2, vec![1], vec![(0, 81)])];
        let outcome = figures(&record, &begun, 6 * secs, true);
        let moves: Vec<_> =
            outcome.moves.iter().map(|one| (one.secs, one.secs_from_mail)).collect();
        assert_eq!(moves, [(None, None), (Some(2.0), Some(3.0))]);
        assert_eq!((outcome.most, outcome.parts.len()), (91, 20));
        assert!((outcome.above_ms - 1000.0).abs() < 1.0, "{}", outcome.above_ms);
        let table = to_table(&[outcome]);
        assert!(table.contains("S12 shared: at most 91 sessions of 80"), "{table}");
        assert!(table.contains("97 %: - 2.0 s; since mail came there: - 3.0 s"), "{table}");
    }
}
