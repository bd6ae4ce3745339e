//! The agent and the script against a real redis-server, with many hosts in one process. Their gates are models: they
//! read the lease as the gate does, and run as many deliveries as it allows. The test sets the time, of the store too, so
//! a seed gives the same run again. Each host has a clock of its own, an hour from the next one.

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

#[test]
fn shares_go_where_the_mail_is_and_equal_demand_gets_equal_parts() {
    let Some(mut pool) = Pool::new(&[("a", 20)], 4) else { return };
    pool.all_in();
    assert_eq!(pool.shares(), [[1, 1, 1, 1]]);
    pool.wants("a", &[100, 0, 0, 0]);
    // All of it, although the others are idle: their start-up shares go, too.
    pool.until("one has all", |pool| pool.shares() == [[20, 0, 0, 0]]);
    pool.wants("a", &[100, 100, 0, 0]);
    pool.until("two have half each", |pool| pool.shares() == [[10, 10, 0, 0]]);
    pool.wants("a", &[100, 100, 100, 3]);
    pool.until("small demand is met, the rest is divided", |pool| {
        let mut of = pool.shares()[0].clone();
        let small = of.pop();
        of.sort_unstable();
        small == Some(3) && of == [5, 6, 6]
    });
    pool.wants("a", &[0, 0, 0, 0]);
    pool.until("all have their start-up shares again", |pool| pool.shares() == [[1, 1, 1, 1]]);
    // Then nothing is left in the store.
    pool.until("the store has forgotten the key", |pool| {
        let store = &mut *pool.clock.store.borrow_mut();
        let keys: Vec<String> = redis::cmd("KEYS").arg("*:k:*").query(store).unwrap();
        keys.is_empty()
    });
}

#[test]
fn a_new_host_and_a_limit_below_the_number_of_hosts() {
    let Some(mut pool) = Pool::new(&[("a", 20), ("few", 2)], 3) else { return };
    pool.all_in();
    pool.wants("a", &[100, 100, 0]);
    pool.until("two have half each", |pool| pool.shares()[0] == [10, 10, 0]);
    // Of a limit that not all can have, nobody has a part unasked.
    assert_eq!(pool.shares()[1], [0, 0, 0]);
    pool.wants("few", &[5, 5, 5]);
    pool.until("two have one", |pool| pool.shares()[1].iter().sum::<u32>() == 2);
    pool.add();
    assert_eq!(pool.shares()[0], [10, 10, 0, 0]);
    pool.wants("a", &[100, 100, 0, 100]);
    pool.until("the new one has its part", |pool| {
        let mut of = pool.shares()[0].clone();
        of.sort_unstable();
        of == [0, 6, 7, 7]
    });
    // A lower limit counts for all, as soon as their gates know it.
    pool.is_checked = false;
    pool.limits.insert("a".to_string(), 8);
    pool.until("the lower limit counts", |pool| pool.shares()[0].iter().sum::<u32>() <= 8);
}

/// One schedule: turns in a random order, with calls and answers that are lost, late or slow, agents that are killed or
/// stopped for several leases, gates that read late or start again, leases that are damaged, hosts that come late, and a
/// store that forgets everything.
fn schedule(seed: u64, least: u32) {
    const ROUNDS: u32 = 300;
    let limits = [("a", 20), ("b", 5), ("c", 2), ("d", 1)];
    let Some(mut pool) = Pool::with(&limits, 3, Terms { least, ..terms() }) else { return };
    let limits = pool.limits.clone();
    let mut random = Random::new(seed);
    let mut below = |of: u64| random.next() % of;
    pool.all_in();
    let mut stopped_until_ms = [0; 5];
    for round in 0..ROUNDS {
        let when = format!("seed {seed}, round {round}");
        if below(u64::from(ROUNDS) / 3) == 0 && pool.hosts.len() < 5 {
            pool.add();
        }
        match below(150) {
            0 => pool.replace_store(),
            1 | 2 => pool.empty_store(),
            _ => {}
        }
        for (at, stopped_until_ms) in stopped_until_ms.iter_mut().enumerate().take(pool.hosts.len())
        {
            pool.clock.pass(below(TURN_MS / 2));
            pool.check(&when);
            let now_ms = pool.clock.now_ms.get();
            let host = &mut pool.hosts[at];
            if below(60) == 0 {
                // Up to the end of the lease, and of settling, and long after.
                *stopped_until_ms = now_ms + below(4 * LEASE_MS);
            }
            for key in limits.keys() {
                if below(20) == 0 {
                    host.mail.insert(key.clone(), below(2) as u32 * 50);
                }
            }
            if below(12) == 0 {
                let slow = Fault::Slow(below(LEASE_MS / 4));
                let fault = [Fault::Lost, Fault::ReplyLost, Fault::Late, slow][below(4) as usize];
                host.store.faults = vec![fault];
                host.store.faults.resize(1 + below(3) as usize, Fault::None);
            }
            if below(300) == 0 {
                host.store.deaf_until_ms = now_ms + below(5 * LEASE_MS);
            }
            // A gate that cannot read its leases.
            if below(300) == 0 {
                host.blind_until_ms = now_ms + below(8 * LEASE_MS);
            }
            match below(100) {
                0 | 1 => host.restart(),
                2 if host.file.len() > 1 => {
                    // A gate that starts with a damaged first line has its whole limits: so this one does not start.
                    let length = 1 + below(host.file.len() as u64 - 1) as usize;
                    host.file.truncate(length);
                    host.restart();
                }
                3 if !matches!(parse(&mut host.file.clone(), |_, _, _| {}), Parsed::Torn) => {
                    host.lease = None;
                    host.read();
                }
                _ => {}
            }
            if now_ms >= *stopped_until_ms {
                host.turn(&limits);
            }
            // A gate looks ten times a second.
            if below(4) == 0 || host.now_ms() >= host.read_ms + GATE_LATE_MS {
                host.read();
            }
            pool.check(&when);
            pool.hosts[at].run(&limits, &mut Random::new(u64::from(round)));
        }
    }
    // All come back, and divide as before.
    for host in &mut pool.hosts {
        (host.store.deaf_until_ms, host.blind_until_ms) = (0, 0);
        host.store.faults.clear();
        host.running.clear();
    }
    pool.wants("a", &[1000; 5]);
    pool.until("equal parts", |pool| {
        let of = &pool.shares()[0];
        of.iter().sum::<u32>() == 20
            && of.iter().all(|&share| share.abs_diff(20 / of.len() as u32) <= 1)
    });
}

#[test]
fn the_sum_is_never_above_the_limit() {
    let seeds = std::env::var("QPATCH_SHARE_SEEDS").ok().and_then(|seeds| seeds.parse().ok());
    for seed in 1..=seeds.unwrap_or(3) {
        schedule(seed, (seed % 2) as u32);
    }
}

#[test]
fn a_lost_host_has_its_fall_back_share_and_gives_the_rest_back() {
    let terms = Terms { forget_ms: 4 * LEASE_MS, ..terms() };
    let Some(mut pool) = Pool::with(&[("a", 20)], 4, terms) else { return };
    pool.all_in();
    pool.wants("a", &[100, 100, 0, 0]);
    pool.until("two have half each", |pool| pool.shares() == [[10, 10, 0, 0]]);
    pool.hosts[0].is_stopped = true;
    pool.hosts[3].is_stopped = true;
    pool.until("the lost ones fall back, and the others leave them that", |pool| {
        pool.shares() == [[5, 10, 0, 5]]
    });
    // The machines are dead: their gates have nothing in force any more.
    for at in [0, 3] {
        pool.hosts[at].lease = None;
        pool.hosts[at].file.clear();
    }
    pool.until("what they had is given back", |pool| pool.shares() == [[0, 20, 0, 0]]);
}

#[test]
fn a_store_that_forgets_everything_gives_nothing_away_twice() {
    let Some(mut pool) = Pool::new(&[("a", 20), ("b", 20)], 3) else { return };
    pool.all_in();
    pool.wants("a", &[100, 0, 0]);
    pool.wants("b", &[50, 50, 50]);
    pool.until("shares", |pool| {
        let of = pool.shares();
        of[0] == [20, 0, 0] && of[1].iter().all(|&share| share >= 6)
    });
    pool.replace_store();
    pool.wants("a", &[100, 100, 100]);
    let ms = pool.until("shares again", |pool| pool.shares()[0].iter().all(|&share| share >= 6));
    assert!(ms >= LEASE_MS, "for the time of a lease nobody gets more: {ms}");
    // A host of which this store never heard waits as well.
    pool.replace_store();
    pool.add();
    let replaced_ms = pool.clock.now_ms.get();
    pool.wants("a", &[100, 100, 100, 100]);
    pool.until("the new one takes part", |pool| pool.hosts[3].phase() == LeasePhase::Valid);
    assert!(pool.clock.now_ms.get() >= replaced_ms + LEASE_MS);
    pool.until("a part for each", |pool| pool.shares()[0] == [5, 5, 5, 5]);
}

#[test]
fn a_host_that_comes_last_to_a_store_that_forgot_has_its_share() {
    let Some(mut pool) = Pool::new(&[("a", 20)], 8) else { return };
    pool.all_in();
    pool.wants("a", &[100]);
    pool.until("one has all", |pool| pool.shares()[0][0] == 20);
    let held = pool.hosts[0].agent.until_ms();
    pool.empty_store();
    pool.wants("a", &[100, 100]);
    pool.hosts[0].is_stopped = true;
    while pool.hosts[0].now_ms() + TURN_MS < held {
        pool.round();
    }
    // Its hello and its first step arrive just before the end of its lease, and it reports nothing for a while.
    for _ in 0..2 {
        pool.hosts[0].turn(&pool.limits.clone());
    }
    assert_eq!(pool.hosts[0].agent.stage, Stage::Joining);
    for _ in 0..2 * LEASE_MS / TURN_MS {
        pool.round();
    }
    pool.hosts[0].is_stopped = false;
    pool.until("half each", |pool| pool.shares()[0][..2] == [10, 10]);
}

/// The answers of a host's steps are lost, so its gate has its fall-back shares, while each step renews its place in the
/// store.
#[test]
fn a_host_that_hears_nothing_is_left_its_fall_back_share() {
    let Some(mut pool) = Pool::new(&[("a", 20)], 2) else { return };
    pool.all_in();
    pool.wants("a", &[1000]);
    pool.until("one has all", |pool| pool.shares()[0] == [20, 0]);
    pool.hosts[1].store.deaf_until_ms = u64::MAX;
    pool.until("it has its part without contact", |pool| pool.shares()[0] == [10, 10]);
}

/// The gate of a host cannot read its lease, but its agent and the store have no trouble.
#[test]
fn a_gate_that_cannot_read_its_lease_is_left_its_fall_back_share() {
    let Some(mut pool) = Pool::new(&[("a", 20)], 2) else { return };
    pool.all_in();
    pool.wants("a", &[1000]);
    pool.until("one has all", |pool| pool.shares()[0] == [20, 0]);
    pool.hosts[1].blind_until_ms = u64::MAX;
    pool.until("it has its part", |pool| pool.shares()[0] == [10, 10]);
    pool.hosts[1].blind_until_ms = 0;
    pool.until("it is back", |pool| pool.shares()[0] == [20, 0]);
}

/// Another store takes over that lacks the last grants.
#[test]
fn a_store_that_missed_the_last_grants() {
    let Some(mut pool) = Pool::new(&[("a", 20)], 2) else { return };
    pool.all_in();
    pool.wants("a", &[1000, 1000]);
    pool.until("half each", |pool| pool.shares()[0] == [10, 10]);
    let dump = |pool: &Pool, name: &str| -> Vec<(String, String)> {
        let store = &mut *pool.clock.store.borrow_mut();
        redis::cmd("HGETALL").arg(name).query(store).unwrap()
    };
    let names = ["qpatch:{p}:hosts", "qpatch:{p}:k:domain:a"];
    let before = names.map(|name| dump(&pool, name));
    pool.hosts[1].mail.clear();
    pool.hosts[1].running.clear();
    pool.until("one has all", |pool| pool.shares()[0] == [20, 0]);
    pool.replace_store();
    for (name, lines) in names.iter().zip(&before) {
        let store = &mut *pool.clock.store.borrow_mut();
        let _: () = redis::cmd("HSET").arg(name).arg(lines).query(store).unwrap();
    }
    let keys = "qpatch:{p}:keys";
    let _: () = redis::cmd("SADD")
        .arg(keys)
        .arg("domain:a")
        .query(&mut *pool.clock.store.borrow_mut())
        .unwrap();
    // One host comes late, and only its hello and first step arrive; the other one wants its half.
    pool.hosts[1].mail.insert("a".to_string(), 1000);
    let until_ms = pool.hosts[0].agent.until_ms();
    pool.hosts[0].is_stopped = true;
    while pool.hosts[0].now_ms() + TURN_MS < until_ms {
        pool.round();
    }
    for _ in 0..2 {
        pool.hosts[0].turn(&pool.limits.clone());
    }
    for _ in 0..2 * LEASE_MS / TURN_MS {
        pool.round();
    }
    pool.hosts[0].is_stopped = false;
    pool.until("half each", |pool| pool.shares()[0] == [10, 10]);
}

#[test]
fn deliveries_that_still_run_count() {
    let Some(mut pool) = Pool::new(&[("a", 20)], 2) else { return };
    pool.all_in();
    pool.wants("a", &[1000]);
    pool.until("one has all", |pool| pool.shares()[0] == [20, 0]);
    pool.wants("a", &[0, 1000]);
    for running in [20, 12, 3, 0] {
        pool.hosts[0].running.insert("a".to_string(), running);
        for _ in 0..2 * LEASE_MS / TURN_MS {
            pool.round();
            assert!(pool.shares()[0][1] + running <= 20, "{:?}, {running} run", pool.shares());
        }
        assert_eq!(pool.shares()[0][1] + running, 20);
    }
}

#[test]
fn a_damaged_lease_gives_no_gate_its_whole_limits() {
    for lines in [0, 1] {
        let Some(mut pool) = Pool::new(&[("a", 20)], 4) else { return };
        pool.all_in();
        pool.wants("a", &[100, 100, 100, 100]);
        pool.until("equal parts", |pool| pool.shares()[0] == [5, 5, 5, 5]);
        let host = &mut pool.hosts[0];
        let ends = host.file.iter().enumerate().filter(|byte| *byte.1 == b'\n');
        let line = ends.map(|end| end.0).nth(lines).unwrap();
        host.file.truncate(line);
        host.restart();
        let ms = pool.until("it is back", |pool| {
            pool.hosts[0].agent.stage == Stage::In && pool.shares()[0] == [5, 5, 5, 5]
        });
        assert!(ms >= LEASE_MS, "what its gate had is over before it begins: {ms}");
    }
}

#[test]
fn two_agents_with_one_name_do_not_share_a_place() {
    let Some(mut pool) = Pool::new(&[("a", 20)], 2) else { return };
    pool.all_in();
    pool.add();
    // It has the name of the first.
    let config = config(&pool.redis, "h0", terms());
    let mut other = Store::new(&config).unwrap().with_test_clock();
    assert!(matches!(other.hello(1, (1, 1), false), Err(CallError::Taken)));
    assert!(matches!(other.step(1, 1, (1, 1), true, &[]), Err(CallError::Gone)));
}

#[test]
fn names_with_every_byte_and_ten_thousand_keys() {
    let Some(redis) = Redis::start(&[]) else { return };
    let config = config(&redis, "h0", Terms { lease_ms: 20_000, ..terms() });
    let mut store = Store::new(&config).unwrap();
    // The store is new: it waits for hosts that it does not know. A host with a lease need not wait.
    let welcome = store.hello(1, (1, 1), true).unwrap();
    let mut keys: Vec<Vec<u8>> =
        (0..=255u8).map(|byte| vec![b'd', b':', byte, b'{', byte, b'}']).collect();
    keys.extend((0..10_000).map(|number| format!("domain:{number}.example").into_bytes()));
    let report = super::agent::Report { share: Some(3), running: 2, want: 9, limit: 20 };
    let started = Instant::now();
    for part in keys.chunks(super::agent::KEYS_PER_CALL) {
        let items: Vec<Item> =
            part.iter().map(|key| Item { key: key.clone(), what: report }).collect();
        let reply = store.step(1, welcome.conn, (1, 1), true, &items).unwrap();
        assert!(reply.shares.iter().all(|&share| share == Some(3)), "{:?}", &reply.shares[..5]);
    }
    qpatch_test_support::tell(format_args!("10,256 keys in {:?}", started.elapsed()));
    let mut all: Vec<Vec<u8>> =
        { redis::cmd("SMEMBERS").arg("qpatch:{p}:keys").query(&mut connection(&redis)).unwrap() };
    all.sort();
    keys.sort();
    assert!(all == keys);
}

#[test]
fn a_key_that_the_status_does_not_list_still_runs() {
    let mut agent = Agent::new(terms(), 1, BOOT, 5);
    let name = b"a.example".to_vec();
    let key = KeyDemand { kind: KeyKind::Domain, name, limit: 20, running: 12, want: 20 };
    let listed = |keys| Demand { runs: true, keys, ..Demand::default() };
    agent.observe(&listed(vec![key]), 0);
    assert_eq!(agent.running(), [12]);
    // The status is full, and nothing that it does not list has more than seven.
    agent.observe(&Demand { unlisted_running: Some(7), ..listed(Vec::new()) }, 10);
    assert_eq!(agent.running(), [7]);
    // All keys are listed: it has none.
    agent.observe(&listed(Vec::new()), 20);
    assert_eq!(agent.running(), [0]);
}
