//! The agent and the script against a real redis-server, with many hosts in one process. Their gates are models: they
//! read the lease as the gate does, and run as many deliveries as it allows. The test sets the time, of the store too, so
//! a seed gives the same run again. Each host has a clock of its own, an hour from the next one.

mod cases;
mod schedules;

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashMap};
use std::rc::Rc;
use std::time::Instant;

use qpatch_gate::host_share::{LeasePhase, fall_back_share, start_share};
use qpatch_gate::lease::{Header, Parsed, parse};
use qpatch_gate::random::Random;
use qpatch_gate::rules::KeyKind;
use qpatch_test_support::redis::Redis;

use super::agent::{Agent, Demand, Item, KeyDemand, Stage, StepReply, Welcome, key_name};
use super::config::{Config, Terms};
use super::run::turn;
use super::store::{CallError, Calls, Store};

const LEASE_MS: u64 = 3000;
const BOOT: u64 = 7;
/// How long a turn is, at most.
const TURN_MS: u64 = 250;
/// How long a gate may take to read a lease.
const GATE_LATE_MS: u64 = LEASE_MS / 4;

/// What happens to the next call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    None,
    /// It does not arrive.
    Lost,
    /// Its answer does not arrive.
    ReplyLost,
    /// It arrives after the next connection has been made.
    Late,
    /// It takes this long to the store, and its answer as long again.
    Slow(u64),
}

/// A step as it was sent: for one that arrives late.
type Sent = (u64, u64, (u32, u32), bool, Vec<Item>);

/// The time, in milliseconds, for hosts and store.
#[derive(Clone)]
struct Clock {
    now_ms: Rc<Cell<u64>>,
    store: Rc<RefCell<redis::Connection>>,
}

impl Clock {
    fn new(redis: &Redis) -> Self {
        let clock = Self {
            now_ms: Rc::new(Cell::new(1_000_000)),
            store: Rc::new(RefCell::new(connection(redis))),
        };
        clock.pass(0);
        clock
    }

    fn pass(&self, ms: u64) {
        let now_ms = self.now_ms.get() + ms;
        self.now_ms.set(now_ms);
        let mut command = redis::cmd("HSET");
        command.arg(Store::TEST_CLOCK).arg("secs").arg(now_ms / 1000);
        command.arg("us").arg(now_ms % 1000 * 1000);
        let _: () = command.query(&mut *self.store.borrow_mut()).unwrap();
    }
}

fn connection(redis: &Redis) -> redis::Connection {
    redis::Client::open(format!("redis://127.0.0.1:{}", redis.port))
        .unwrap()
        .get_connection()
        .unwrap()
}

struct Flaky {
    store: Store,
    clock: Clock,
    /// What happens to the next calls, the last one first.
    faults: Vec<Fault>,
    /// Until then the answers of all steps are lost, and those of hellos are not.
    deaf_until_ms: u64,
    late: Option<Sent>,
}

impl Calls for Flaky {
    fn disconnect(&mut self) {
        self.store.disconnect();
    }

    fn hello(
        &mut self,
        agent: u64,
        hosts: (u32, u32),
        is_leased: bool,
    ) -> Result<Welcome, CallError> {
        let fault = self.faults.pop().unwrap_or(Fault::None);
        if matches!(fault, Fault::Lost | Fault::Late) {
            return Err(CallError::Failed("lost".to_string()));
        }
        let welcome = self.store.hello(agent, hosts, is_leased);
        if let Some((agent, conn, hosts, is_complete, items)) = self.late.take() {
            let late = self.store.step(agent, conn, hosts, is_complete, &items);
            assert!(matches!(late, Err(CallError::Gone)), "{late:?}");
        }
        if fault == Fault::ReplyLost {
            return Err(CallError::Failed("no answer".to_string()));
        }
        welcome
    }

    fn step(
        &mut self,
        agent: u64,
        conn: u64,
        hosts: (u32, u32),
        is_complete: bool,
        items: &[Item],
    ) -> Result<StepReply, CallError> {
        let is_deaf = self.clock.now_ms.get() < self.deaf_until_ms;
        let fault = if is_deaf { Some(Fault::ReplyLost) } else { self.faults.pop() };
        let fault = fault.unwrap_or(Fault::None);
        if fault == Fault::Late {
            self.late = Some((agent, conn, hosts, is_complete, items.to_vec()));
        }
        if matches!(fault, Fault::Lost | Fault::Late) {
            return Err(CallError::Failed("lost".to_string()));
        }
        let slow_ms = if let Fault::Slow(ms) = fault { ms } else { 0 };
        self.clock.pass(slow_ms);
        let reply = self.store.step(agent, conn, hosts, is_complete, items);
        self.clock.pass(slow_ms);
        if fault == Fault::ReplyLost {
            return Err(CallError::Failed("no answer".to_string()));
        }
        reply
    }
}

struct Host {
    terms: Terms,
    agent: Agent,
    store: Flaky,
    clock: Clock,
    offset_ms: u64,
    /// queue/lock/gatelease.
    file: Vec<u8>,
    /// What the gate has read.
    lease: Option<(Header, HashMap<Vec<u8>, u32>)>,
    /// When it did.
    read_ms: u64,
    /// Until then it cannot.
    blind_until_ms: u64,
    /// Mail and deliveries of each key.
    mail: BTreeMap<String, u32>,
    running: BTreeMap<String, u32>,
    /// Whether its gate has ever had a lease. Before, its limits are whole.
    was_leased: bool,
    is_stopped: bool,
    /// It has no lease, and the store did not know it then, or its gate started with a damaged one.
    is_unknown: bool,
}

/// Several hosts, and what they share.
struct Pool {
    redis: Redis,
    clock: Clock,
    hosts: Vec<Host>,
    limits: BTreeMap<String, u32>,
    terms: Terms,
    /// Whether the sum is at most the limit.
    is_checked: bool,
}

fn terms() -> Terms {
    Terms { lease_ms: LEASE_MS, forget_ms: 6_000_000, least: 1 }
}

fn config(redis: &Redis, host: &str, terms: Terms) -> Config {
    Config {
        store: format!("redis://127.0.0.1:{}", redis.port),
        pool: "p".to_string(),
        host: host.to_string(),
        user: None,
        password_file: None,
        ca_file: None,
        terms,
    }
}

impl Host {
    fn now_ms(&self) -> u64 {
        self.offset_ms + self.clock.now_ms.get()
    }

    fn phase(&self) -> LeasePhase {
        self.lease
            .as_ref()
            .map_or(LeasePhase::None, |lease| lease.0.phase(BOOT, Some(self.now_ms())))
    }

    /// How many deliveries its gate allows; None before the host takes part.
    fn in_force(&self, key: &str, limit: u32) -> Option<u32> {
        let (header, listed) = self.lease.as_ref().filter(|_| self.was_leased)?;
        let share = listed.get(&key_name(KeyKind::Domain, key.as_bytes())).copied();
        let share = share.unwrap_or_else(|| start_share(limit, header.start_hosts)).min(limit);
        let fall_back = fall_back_share(limit, header.hosts, header.least);
        Some(match self.phase() {
            LeasePhase::None | LeasePhase::Valid => share,
            LeasePhase::Settling => share.min(fall_back),
            LeasePhase::Over => fall_back,
        })
    }

    fn read(&mut self) {
        if self.clock.now_ms.get() < self.blind_until_ms {
            return;
        }
        self.read_ms = self.now_ms();
        let mut keys = HashMap::new();
        let parsed = parse(&mut self.file.clone(), |kind, name, share| {
            keys.insert(key_name(kind, name), share);
        });
        self.lease = match (parsed, self.lease.take()) {
            (Parsed::Whole(header), _) => Some((header, keys)),
            (Parsed::HeaderOnly(header), None) => {
                let header = Header { until_ms: 0, settle_ms: 0, seq: 0, ..header };
                self.is_unknown = true;
                Some((header, HashMap::new()))
            }
            (Parsed::HeaderOnly(_) | Parsed::Torn, before) => before,
        };
        self.was_leased |= self.lease.as_ref().is_some_and(|lease| lease.0.until_ms > 0);
    }

    fn demand(&self, limits: &BTreeMap<String, u32>) -> Demand {
        let keys = limits.iter().map(|(name, &limit)| {
            let running = self.running.get(name).copied().unwrap_or(0);
            let want = (running + self.mail.get(name).copied().unwrap_or(0)).min(limit);
            KeyDemand {
                kind: KeyKind::Domain,
                name: name.clone().into_bytes(),
                limit,
                running,
                want,
            }
        });
        let confirmed = self.lease.as_ref().map_or(0, |lease| lease.0.seq);
        let keys = keys.filter(|key| key.want > 0).collect();
        let (has_read, phase) = (confirmed > 0, self.phase());
        Demand { runs: true, confirmed, has_read, phase, unlisted_running: None, keys }
    }

    /// A turn of the agent.
    fn turn(&mut self, limits: &BTreeMap<String, u32>) {
        let now_ms = self.now_ms();
        self.agent.observe(&self.demand(limits), now_ms);
        let (clock, offset_ms) = (self.clock.clone(), self.offset_ms);
        let clock = || Ok(offset_ms + clock.now_ms.get());
        let mut file = None;
        turn(&mut self.agent, &mut self.store, &clock, &mut |text| {
            file = Some(text.to_vec());
            Ok(())
        })
        .unwrap();
        if let Some(file) = file {
            self.file = file;
        }
    }

    /// The agent is killed, and another one started.
    fn restart(&mut self) {
        let now_ms = self.now_ms();
        let mut keys = Vec::new();
        let parsed = parse(&mut self.file.clone(), |kind, name, share| {
            keys.push((kind, name.to_vec(), share));
        });
        let header = match parsed {
            Parsed::Whole(header) => {
                self.agent = Agent::resume(self.terms, BOOT, header, keys);
                self.store.disconnect();
                return;
            }
            Parsed::HeaderOnly(header) => Some(header),
            Parsed::Torn => None,
        };
        if !self.file.is_empty() {
            let seq = now_ms * 100;
            self.agent = Agent::after_damage(self.terms, seq, BOOT, seq, header, now_ms);
        }
        self.store.disconnect();
    }

    /// The gate starts what it may, and some of what runs ends.
    fn run(&mut self, limits: &BTreeMap<String, u32>, random: &mut Random) {
        for (key, &limit) in limits {
            let allowed = self.in_force(key, limit).unwrap_or(0);
            let running = self.running.entry(key.clone()).or_default();
            *running -= (random.next() % (u64::from(*running) + 1)) as u32;
            let mail = self.mail.entry(key.clone()).or_default();
            let starts = allowed.saturating_sub(*running).min(*mail);
            *running += starts;
            *mail -= starts;
        }
    }
}

impl Pool {
    fn new(limits: &[(&str, u32)], count: usize) -> Option<Self> {
        Self::with(limits, count, terms())
    }

    fn with(limits: &[(&str, u32)], count: usize, terms: Terms) -> Option<Self> {
        let redis = Redis::start(&[])?;
        let limits = limits.iter().map(|&(name, limit)| (name.to_string(), limit)).collect();
        let clock = Clock::new(&redis);
        let mut pool = Self { redis, clock, hosts: Vec::new(), limits, terms, is_checked: true };
        for _ in 0..count {
            pool.add();
        }
        Some(pool)
    }

    fn add(&mut self) {
        let number = self.hosts.len() as u64;
        let store = Store::new(&config(&self.redis, &format!("h{number}"), self.terms)).unwrap();
        let store = store.with_test_clock();
        let clock = self.clock.clone();
        self.hosts.push(Host {
            terms: self.terms,
            agent: Agent::new(self.terms, 100 + number, BOOT, 5),
            store: Flaky {
                store,
                clock: clock.clone(),
                faults: Vec::new(),
                deaf_until_ms: 0,
                late: None,
            },
            clock,
            offset_ms: 3_600_000 * (number + 1),
            file: Vec::new(),
            lease: None,
            read_ms: 0,
            blind_until_ms: 0,
            mail: BTreeMap::new(),
            running: BTreeMap::new(),
            was_leased: false,
            is_stopped: false,
            is_unknown: false,
        });
    }

    /// Another server, which knows nothing.
    fn replace_store(&mut self) {
        self.redis.restart();
        *self.clock.store.borrow_mut() = connection(&self.redis);
        self.clock.pass(1);
    }

    /// The same server forgets everything.
    fn empty_store(&mut self) {
        let _: () = redis::cmd("FLUSHALL").query(&mut *self.clock.store.borrow_mut()).unwrap();
        self.clock.pass(1);
    }

    /// One round: each host whose agent is not stopped has a turn, and each gate reads its lease.
    fn round(&mut self) {
        for at in 0..self.hosts.len() {
            self.clock.pass(TURN_MS / 10);
            let host = &mut self.hosts[at];
            if !host.is_stopped {
                host.turn(&self.limits);
            }
            host.read();
            self.check("");
        }
        self.clock.pass(TURN_MS / 2);
        self.check("");
    }

    /// The sum of what is in force is never above the limit.
    fn check(&mut self, when: &str) {
        self.note_unknown();
        if !self.is_checked {
            return;
        }
        for (key, &limit) in &self.limits {
            let all: Vec<_> =
                self.hosts.iter().filter_map(|host| host.in_force(key, limit)).collect();
            assert!(
                all.iter().sum::<u32>() <= self.most(key, limit),
                "{when} {key}: {all:?} of {limit}, {:?}",
                self.hosts
                    .iter()
                    .map(|host| (host.phase(), host.lease.as_ref().map(|l| l.0)))
                    .collect::<Vec<_>>()
            );
        }
    }

    /// The limit; what a host has since it lost its lease without the store's knowledge; what a lost host has only
    /// because it always has the least; and the start-up share of a host that came while lost hosts had everything.
    fn most(&self, key: &str, limit: u32) -> u32 {
        let more = self.hosts.iter().map(|host| {
            let part = host.lease.as_ref().map_or(0, |lease| limit / lease.0.hosts);
            let has = host.in_force(key, limit).unwrap_or(0);
            if host.phase() == LeasePhase::Valid {
                let name = key_name(KeyKind::Domain, key.as_bytes());
                let is_listed =
                    host.lease.as_ref().is_some_and(|lease| lease.1.contains_key(&name));
                return if is_listed || part > 0 { 0 } else { has };
            }
            if host.is_unknown { has } else { has.saturating_sub(part) }
        });
        limit + more.sum::<u32>()
    }

    /// Notes of which hosts without a lease the store does not know.
    fn note_unknown(&mut self) {
        let store = &mut *self.clock.store.borrow_mut();
        let known: Vec<String> = redis::cmd("HKEYS").arg("qpatch:{p}:hosts").query(store).unwrap();
        for (at, host) in self.hosts.iter_mut().enumerate() {
            let is_known = known.contains(&format!("h{at}"));
            host.is_unknown = host.phase() != LeasePhase::Valid && (host.is_unknown || !is_known);
        }
    }

    /// Rounds until this holds. Returns how long it took, in milliseconds.
    fn until(&mut self, what: &str, holds: impl Fn(&Self) -> bool) -> u64 {
        let start_ms = self.clock.now_ms.get();
        while !holds(self) {
            let ms = self.clock.now_ms.get() - start_ms;
            assert!(ms < 100 * LEASE_MS, "{what}: {:?}", self.shares());
            self.round();
        }
        self.clock.now_ms.get() - start_ms
    }

    fn all_in(&mut self) {
        self.until("all take part", |pool| {
            pool.hosts
                .iter()
                .all(|host| host.agent.stage == Stage::In && host.phase() == LeasePhase::Valid)
        });
    }

    /// The hello and the first step of the first host arrive just before the end of its lease, and it reports nothing for
    /// two leases.
    fn first_comes_last(&mut self) {
        let until_ms = self.hosts[0].agent.until_ms();
        self.hosts[0].is_stopped = true;
        while self.hosts[0].now_ms() + TURN_MS < until_ms {
            self.round();
        }
        for _ in 0..2 {
            self.hosts[0].turn(&self.limits);
        }
        assert_eq!(self.hosts[0].agent.stage, Stage::Joining);
        for _ in 0..2 * LEASE_MS / TURN_MS {
            self.round();
        }
        self.hosts[0].is_stopped = false;
    }

    fn shares(&self) -> Vec<Vec<u32>> {
        let of = |key: &str, limit| {
            self.hosts.iter().map(|host| host.in_force(key, limit).unwrap_or(0)).collect()
        };
        self.limits.iter().map(|(key, &limit)| of(key, limit)).collect()
    }

    fn wants(&mut self, key: &str, mail: &[u32]) {
        for (host, &mail) in self.hosts.iter_mut().zip(mail) {
            host.mail.insert(key.to_string(), mail);
        }
    }
}
