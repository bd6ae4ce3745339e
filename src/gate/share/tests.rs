//! The agent and the script against a real redis-server, with many hosts in one process. Their gates are models: they
//! read the lease as the gate does, and run as many deliveries as it allows. Each host has a clock of its own, an hour
//! from the next one.

use std::collections::HashMap;
use std::thread::sleep;
use std::time::{Duration, Instant};

use qpatch_gate::host_share::{LeasePhase, fall_back_share, start_share};
use qpatch_gate::lease::{Header, Parsed, parse};
use qpatch_gate::random::Random;
use qpatch_gate::rules::KeyKind;
use qpatch_test_support::redis::Redis;

use super::agent::{Agent, Demand, Item, KeyDemand, Stage, StepReply, Welcome, key_name};
use super::config::{Config, Terms};
use super::run::turn;
use super::store::{CallError, Calls, Store};

const LEASE_MS: u64 = 600;
const BOOT: u64 = 7;

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
}

/// A step as it was sent: for one that arrives late.
type Sent = (u64, u64, (u32, u32), bool, Vec<Item>);

struct Flaky {
    store: Store,
    fault: Fault,
    late: Option<Sent>,
}

impl Calls for Flaky {
    fn disconnect(&mut self) {
        self.store.disconnect();
    }

    fn hello(
        &mut self,
        agent: u64,
        start_hosts: u32,
        is_leased: bool,
    ) -> Result<Welcome, CallError> {
        let welcome = self.store.hello(agent, start_hosts, is_leased);
        if let Some((agent, conn, hosts, is_complete, items)) = self.late.take() {
            let late = self.store.step(agent, conn, hosts, is_complete, &items);
            assert!(matches!(late, Err(CallError::Gone)), "{late:?}");
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
        let fault = std::mem::replace(&mut self.fault, Fault::None);
        if fault == Fault::Late {
            self.late = Some((agent, conn, hosts, is_complete, items.to_vec()));
        }
        if matches!(fault, Fault::Lost | Fault::Late) {
            return Err(CallError::Failed("lost".to_string()));
        }
        let reply = self.store.step(agent, conn, hosts, is_complete, items)?;
        if fault == Fault::ReplyLost {
            return Err(CallError::Failed("no answer".to_string()));
        }
        Ok(reply)
    }
}

struct Host {
    terms: Terms,
    agent: Agent,
    store: Flaky,
    start: Instant,
    offset_ms: u64,
    /// queue/lock/gatelease.
    file: Vec<u8>,
    /// What the gate has read.
    lease: Option<(Header, HashMap<Vec<u8>, u32>)>,
    /// Mail and deliveries of each key.
    mail: HashMap<String, u32>,
    running: HashMap<String, u32>,
    is_stopped: bool,
}

/// Several hosts, and what they share.
struct Pool {
    redis: Redis,
    start: Instant,
    hosts: Vec<Host>,
    limits: HashMap<String, u32>,
    name: String,
    terms: Terms,
}

fn terms() -> Terms {
    Terms { lease_ms: LEASE_MS, forget_ms: 600_000, least: 1 }
}

impl Host {
    fn now_ms(&self) -> u64 {
        self.offset_ms + self.start.elapsed().as_millis() as u64
    }

    fn phase(&self) -> LeasePhase {
        self.lease
            .as_ref()
            .map_or(LeasePhase::None, |lease| lease.0.phase(BOOT, Some(self.now_ms())))
    }

    /// How many deliveries its gate allows; None before the host takes part.
    fn in_force(&self, key: &str, limit: u32) -> Option<u32> {
        let (header, listed) = self.lease.as_ref().filter(|lease| lease.0.until_ms > 0)?;
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
        let mut keys = HashMap::new();
        let parsed = parse(&mut self.file.clone(), |kind, name, share| {
            keys.insert(key_name(kind, name), share);
        });
        if let Parsed::Whole(header) = parsed {
            self.lease = Some((header, keys));
        }
    }

    fn demand(&self, limits: &HashMap<String, u32>) -> Demand {
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
        Demand { runs: true, confirmed, keys }
    }

    /// A turn of the agent.
    fn turn(&mut self, limits: &HashMap<String, u32>) {
        let now_ms = self.now_ms();
        self.agent.observe(&self.demand(limits), now_ms);
        let (start, offset_ms) = (self.start, self.offset_ms);
        let clock = || Ok(offset_ms + start.elapsed().as_millis() as u64);
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
        let mut keys = Vec::new();
        let parsed = parse(&mut self.file.clone(), |kind, name, share| {
            keys.push((kind, name.to_vec(), share));
        });
        if let Parsed::Whole(header) = parsed {
            self.agent = Agent::resume(self.terms, BOOT, header, keys);
        }
        self.store.disconnect();
    }

    /// The gate starts what it may, and some of what runs ends.
    fn run(&mut self, limits: &HashMap<String, u32>, random: &mut Random) {
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
        let mut pool = Self {
            redis,
            start: Instant::now(),
            hosts: Vec::new(),
            limits,
            name: "p".to_string(),
            terms,
        };
        for _ in 0..count {
            pool.add();
        }
        Some(pool)
    }

    fn add(&mut self) {
        let number = self.hosts.len() as u64;
        let config = Config {
            store: format!("redis://127.0.0.1:{}", self.redis.port),
            pool: self.name.clone(),
            host: format!("h{number}"),
            user: None,
            password_file: None,
            ca_file: None,
            terms: self.terms,
        };
        let store = Flaky { store: Store::new(&config).unwrap(), fault: Fault::None, late: None };
        self.hosts.push(Host {
            terms: self.terms,
            agent: Agent::new(self.terms, 100 + number, BOOT, 5),
            store,
            start: self.start,
            offset_ms: 3_600_000 * (number + 1),
            file: Vec::new(),
            lease: None,
            mail: HashMap::new(),
            running: HashMap::new(),
            is_stopped: false,
        });
    }

    /// One round: each host whose agent is not stopped has a turn, and each gate reads its lease.
    fn round(&mut self) {
        for host in &mut self.hosts {
            if !host.is_stopped {
                host.turn(&self.limits);
            }
            host.read();
        }
        self.check();
    }

    /// The sum of what is in force is never above the limit.
    fn check(&self) {
        for (key, &limit) in &self.limits {
            let all: Vec<_> =
                self.hosts.iter().filter_map(|host| host.in_force(key, limit)).collect();
            assert!(all.iter().sum::<u32>() <= self.most(limit), "{key}: {all:?} of {limit}");
        }
    }

    /// The limit; and if it is below the number of hosts, one for each lost host that is never without any.
    fn most(&self, limit: u32) -> u32 {
        let lost =
            self.hosts.iter().filter(|host| host.phase() != LeasePhase::Valid).count() as u32;
        if limit < self.hosts.len() as u32 { limit + lost * self.terms.least } else { limit }
    }

    /// Rounds until this holds.
    fn until(&mut self, what: &str, holds: impl Fn(&Self) -> bool) {
        let end = Instant::now() + Duration::from_secs(20);
        while !holds(self) {
            assert!(Instant::now() < end, "{what}: {:?}", self.shares());
            self.round();
            sleep(Duration::from_millis(5));
        }
    }

    fn all_in(&mut self) {
        self.until("all take part", |pool| {
            pool.hosts
                .iter()
                .all(|host| host.agent.stage == Stage::In && host.phase() == LeasePhase::Valid)
        });
    }

    fn shares(&self) -> Vec<Vec<u32>> {
        let mut keys: Vec<_> = self.limits.iter().collect();
        keys.sort();
        let of = |key: &str, limit| {
            self.hosts.iter().map(|host| host.in_force(key, limit).unwrap_or(0)).collect()
        };
        keys.into_iter().map(|(key, &limit)| of(key, limit)).collect()
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
    let mut store = redis::Client::open(format!("redis://127.0.0.1:{}", pool.redis.port)).unwrap();
    let keys = |store: &mut redis::Client| -> Vec<String> {
        redis::cmd("KEYS").arg("*:k:*").query(store).unwrap()
    };
    pool.until("the store has forgotten the key", |_| keys(&mut store.clone()).is_empty());
    assert!(keys(&mut store).is_empty());
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
    // The table of one host has a lower limit: it counts for all.
    pool.limits.insert("a".to_string(), 8);
    pool.until("the lower limit counts", |pool| pool.shares()[0].iter().sum::<u32>() <= 8);
}

/// One schedule: turns in a random order, with calls and answers that are lost or late, agents that are killed or
/// stopped for longer than a lease, gates that read late, and hosts that come late.
fn schedule(seed: u64, least: u32) {
    let limits = [("a", 20), ("b", 5), ("c", 2), ("d", 1)];
    let Some(mut pool) = Pool::with(&limits, 3, Terms { least, ..terms() }) else { return };
    let mut random = Random::new(seed);
    let mut chance = |of: u64| random.next().is_multiple_of(of);
    pool.all_in();
    let mut stopped_until = [0; 5];
    for round in 0..150u32 {
        if round == 30 || round == 70 {
            pool.add();
        }
        for (at, stopped_until) in stopped_until.iter_mut().enumerate().take(pool.hosts.len()) {
            let limits = pool.limits.clone();
            let host = &mut pool.hosts[at];
            if chance(40) {
                *stopped_until = round + 60 + u32::from(chance(2)) * 40;
            }
            for &(key, _) in
                &limits.iter().map(|(key, limit)| (key.as_str(), limit)).collect::<Vec<_>>()
            {
                if chance(20) {
                    host.mail.insert(key.to_string(), if chance(2) { 50 } else { 0 });
                }
            }
            if chance(12) {
                host.store.fault = [Fault::Lost, Fault::ReplyLost, Fault::Late]
                    [usize::from(chance(2)) + usize::from(chance(2))];
            }
            if chance(60) {
                host.restart();
            }
            if round >= *stopped_until || at == 0 {
                host.turn(&limits);
            }
            if chance(4) {
                host.read();
            }
            pool.check();
            pool.hosts[at].run(&limits, &mut Random::new(u64::from(round)));
            for (key, &limit) in &limits {
                let running: u32 = pool.hosts.iter().filter_map(|host| host.running.get(key)).sum();
                // A delivery may outlast the lease of a host that is never without any.
                let least = if limit < 5 { 5 * pool.terms.least } else { 0 };
                assert!(
                    running <= pool.most(limit) + least,
                    "seed {seed}, round {round}: {running} run of {key}:{limit}"
                );
            }
        }
        sleep(Duration::from_millis(8));
    }
    // All come back.
    pool.all_in();
}

#[test]
fn the_sum_is_never_above_the_limit() {
    for (seed, least) in [(1, 1), (2, 0)] {
        schedule(seed, least);
    }
}

#[test]
fn a_lost_host_has_its_fall_back_share_and_gives_the_rest_back() {
    let terms = Terms { forget_ms: 2500, ..terms() };
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
    pool.hosts[0].lease = None;
    pool.hosts[3].lease = None;
    pool.hosts[0].file.clear();
    pool.hosts[3].file.clear();
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
    pool.redis.restart();
    pool.wants("a", &[100, 100, 100]);
    let started = Instant::now();
    pool.until("shares again", |pool| pool.shares().iter().flatten().all(|&share| share >= 6));
    assert!(
        started.elapsed() >= Duration::from_millis(LEASE_MS),
        "for the time of a lease nobody gets more"
    );
    // A host of which this store never heard waits as well.
    pool.redis.restart();
    pool.add();
    pool.all_in();
    pool.wants("a", &[100, 100, 100, 100]);
    pool.until("a part for each", |pool| pool.shares()[0] == [5, 5, 5, 5]);
}

#[test]
fn two_agents_with_one_name_do_not_share_a_place() {
    let Some(mut pool) = Pool::new(&[("a", 20)], 2) else { return };
    pool.all_in();
    pool.add();
    // It has the name of the first.
    let config = Config {
        store: format!("redis://127.0.0.1:{}", pool.redis.port),
        pool: "p".to_string(),
        host: "h0".to_string(),
        user: None,
        password_file: None,
        ca_file: None,
        terms: terms(),
    };
    let mut other = Store::new(&config).unwrap();
    assert!(matches!(other.hello(1, 1, false), Err(CallError::Taken)));
    assert!(matches!(other.step(1, 1, (1, 1), true, &[]), Err(CallError::Gone)));
}

#[test]
fn names_with_every_byte_and_ten_thousand_keys() {
    let Some(redis) = Redis::start(&[]) else { return };
    let config = |host: &str| Config {
        store: format!("redis://127.0.0.1:{}", redis.port),
        pool: "p".to_string(),
        host: host.to_string(),
        user: None,
        password_file: None,
        ca_file: None,
        terms: Terms { lease_ms: 20_000, ..terms() },
    };
    let mut store = Store::new(&config("h0")).unwrap();
    // The store is new: it waits for hosts that it does not know. A host with a lease need not wait.
    let welcome = store.hello(1, 1, true).unwrap();
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
    let mut all: Vec<Vec<u8>> = {
        let mut client = redis::Client::open(config("x").store).unwrap();
        redis::cmd("SMEMBERS").arg("qpatch:{p}:keys").query(&mut client).unwrap()
    };
    all.sort();
    keys.sort();
    assert!(all == keys);
}
