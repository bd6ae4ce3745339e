//! What the agents and the store do, one case after the other.

use qpatch_gate::lease::FILE_MAX;

use super::super::agent::{KEYS_PER_CALL, Report};
use super::*;

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
    pool.empty_store();
    pool.wants("a", &[100, 100]);
    pool.first_comes_last();
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
    // The other one wants its half.
    pool.hosts[1].mail.insert("a".to_string(), 1000);
    pool.first_comes_last();
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
    let report = Report { share: Some(3), running: 2, want: 9, limit: 20 };
    let started = Instant::now();
    for part in keys.chunks(KEYS_PER_CALL) {
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
fn a_store_whose_settings_change_later() {
    let Some(redis) = Redis::start(&[]) else { return };
    let mut store = Store::new(&config(&redis, "h0", terms())).unwrap().looking_each_time();
    let set = |name: &str, value: &str| {
        let mut command = redis::cmd("CONFIG");
        command.arg("SET").arg(name).arg(value);
        let _: () = command.query(&mut connection(&redis)).unwrap();
    };
    let welcome = store.hello(1, (1, 1), true).unwrap();
    set("maxmemory", "100mb");
    store.step(1, welcome.conn, (1, 1), true, &[]).unwrap();
    set("maxmemory-policy", "allkeys-lru");
    let step = store.step(1, welcome.conn, (1, 1), true, &[]);
    let Err(CallError::Failed(why)) = step else { panic!("{step:?}") };
    assert!(why.contains("set maxmemory-policy noeviction"), "{why}");
    set("maxmemory-policy", "noeviction");
    store.step(1, welcome.conn, (1, 1), true, &[]).unwrap();
}

#[test]
fn what_the_acl_does_not_allow_is_named() {
    let Some(redis) = Redis::start(&[]) else { return };
    let call = |rules: &[&str]| {
        let mut command = redis::cmd("ACL");
        command.arg("SETUSER").arg("default").arg("reset").arg("on").arg("nopass").arg(rules);
        // The next one has to be allowed again: this connection is of another user.
        let mut admin = redis::Client::open(format!("redis://admin:x@127.0.0.1:{}", redis.port))
            .unwrap()
            .get_connection()
            .unwrap();
        let _: () = command.query(&mut admin).unwrap();
        let mut store = Store::new(&config(&redis, "h0", terms())).unwrap();
        match store.hello(1, (1, 1), true) {
            Err(CallError::Failed(why)) => why,
            other => format!("{other:?}"),
        }
    };
    let mut command = redis::cmd("ACL");
    command.arg("SETUSER").arg("admin").arg("on").arg(">x").arg("~*").arg("+@all");
    let _: () = command.query(&mut connection(&redis)).unwrap();
    for (rules, expected) in [
        (&["~other:*", "+@all"][..], "its keys begin with qpatch:{p}:"),
        (&["~*", "+@all", "-evalsha"], "'evalsha' command"),
        (&["~*", "+@all", "-script"], "'script|load' command"),
        (&["~*", "+@all", "-hset"], "HSET"),
        (&["~*", "+@all", "-info"], "Welcome"),
        (&["~qpatch:{p}:*", "+@all"], "Welcome"),
    ] {
        let why = call(rules);
        assert!(why.contains(expected), "{rules:?}: {why}");
        assert!(!why.contains("password"), "{why}");
    }
}

/// The lease has room for five hundred keys with names of this length.
const LONG: usize = 2000;

fn long_name(number: usize) -> String {
    format!("{number:0>LONG$}")
}

fn listed(host: &Host) -> usize {
    host.lease.as_ref().map_or(0, |lease| lease.1.len())
}

#[test]
fn as_many_keys_as_the_lease_has_room_for() {
    let names: Vec<String> = (0..600).map(long_name).collect();
    let limits: Vec<(&str, u32)> = names.iter().map(|name| (&name[..], 9)).collect();
    let Some(mut pool) = Pool::new(&limits, 2) else { return };
    pool.all_in();
    for name in &names {
        pool.wants(name, &[100, 100]);
    }
    pool.until("half each of what fits", |pool| {
        let has_half = |of: &&Vec<u32>| of.iter().all(|&share| share >= 4);
        pool.shares().iter().filter(has_half).count() > 500
    });
    for host in &pool.hosts {
        assert!(host.file.len() as u64 <= FILE_MAX && listed(host) < 600, "{}", listed(host));
        assert!(host.agent.lacks_room());
    }
    // The others have their start-up shares.
    assert!(pool.shares().iter().flatten().all(|&share| share > 0));
    // When some keys want nothing any more, there is room for others.
    for name in &names[..300] {
        pool.wants(name, &[0, 0]);
    }
    pool.until("the others have theirs", |pool| {
        let shares = pool.shares();
        shares[300..].iter().all(|of| of.iter().all(|&share| share >= 4))
    });

    // A new host has nothing of any key of which others have shares, whether it has room to say so or not.
    for name in &names {
        pool.wants(name, &[100, 0]);
    }
    pool.until("nearly all keys have shares", |pool| {
        listed(&pool.hosts[0]) + listed(&pool.hosts[1]) > 900
    });
    pool.add();
    pool.until("it takes part", |pool| pool.hosts[2].agent.stage == Stage::In);
    let start_hosts = pool.hosts[2].lease.as_ref().map(|lease| lease.0.start_hosts);
    assert!(listed(&pool.hosts[2]) > 500 && start_hosts > Some(10_000), "{start_hosts:?}");
    for host in &mut pool.hosts[..2] {
        host.mail.clear();
    }
    pool.wants(&names[599], &[0, 0, 100]);
    pool.until("its mail has places", |pool| pool.shares()[599] == [0, 0, 9]);
    // Another agent goes on as this one did, and others do not take over that number of hosts.
    pool.hosts[2].restart();
    pool.until("it is back", |pool| pool.hosts[2].agent.stage == Stage::In);
    pool.add();
    pool.all_in();
    assert_eq!(pool.hosts[3].lease.as_ref().map(|lease| lease.0.start_hosts), Some(4));
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

/// The gates say nothing new, but the store asks of a key that is not worth a call by itself.
#[test]
fn a_key_of_which_the_store_asks_is_reported_as_it_is() {
    let mut agent = Agent::new(terms(), 1, BOOT, 5);
    let welcome = Welcome { conn: 1, most: 2, is_reset: false, is_new: false };
    let reply = |inbox| StepReply { most: 2, divisor: 2, inbox, ..StepReply::default() };
    agent.welcome(welcome, &reply(Vec::new()), &[], 0, 0);
    let name = b"a.example".to_vec();
    let key = KeyDemand { kind: KeyKind::Domain, name, limit: 20, running: 1, want: 1 };
    let key_name = key_name(key.kind, &key.name);
    let demand = Demand { runs: true, confirmed: 5, keys: vec![key], ..Demand::default() };
    agent.observe(&demand, 10);
    assert_eq!(agent.items(10), []);
    agent.answered(&[], &reply(vec![key_name.clone()]), 20);
    agent.observe(&demand, 30);
    let what = Report { share: None, running: 1, want: 1, limit: 20 };
    assert_eq!(agent.items(30), [Item { key: key_name, what }]);
}
