//! `qpatch gate share` as real processes, with real gates and a real redis-server on loopback.

#[path = "../common/mod.rs"]
mod common;
mod rig;

use std::fs;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use qpatch_gate::lease::{Parsed, parse};
use qpatch_test_support::port::HeldPort;
use qpatch_test_support::proxy::Proxy;
use qpatch_test_support::redis::Redis;
use rig::{LEASE_MS, Node, SLOTS, secret, until};

const TABLE: &str = ":20\n";

fn store(port: u16) -> String {
    format!("store redis://127.0.0.1:{port}")
}

/// Two hosts that take part.
fn pair(redis: &Redis) -> (Node, Node) {
    pair_at(redis.port, redis.port)
}

/// Each finds the store at a port of its own.
fn pair_at(one: u16, two: u16) -> (Node, Node) {
    let mut one = Node::new("one", TABLE, &store(one));
    let mut two = Node::new("two", TABLE, &store(two));
    for node in [&mut one, &mut two] {
        node.start();
    }
    until("both take part", &mut [&mut one, &mut two], all_valid);
    (one, two)
}

fn all_valid(nodes: &mut [&mut Node]) -> bool {
    nodes.iter().all(|node| {
        node.phase() == "valid" && node.said().contains(" shares the limits of the pool ")
    })
}

#[test]
fn shares_follow_the_mail_and_an_agent_may_die() {
    let Some(redis) = Redis::start(&[]) else { return };
    let (mut one, mut two) = pair(&redis);
    one.mail(0..30, "a.example");
    until("one host has all places", &mut [&mut one, &mut two], |nodes| {
        nodes[0].running("a.example") == 20
    });
    two.mail(0..30, "a.example");
    assert_eq!(two.running("a.example"), 0, "its start-up share is taken");
    // As deliveries end, the other one gets its half.
    let started = Instant::now();
    until("the share falls", &mut [&mut one, &mut two], |nodes| {
        nodes[0].share("a.example") == Some(10)
    });
    one.end(0..10);
    until("half each", &mut [&mut one, &mut two], |nodes| nodes[1].running("a.example") == 10);
    qpatch_test_support::tell(format_args!("half each after {:?}", started.elapsed()));
    assert_eq!(one.running("a.example"), 10);

    // kill -9: the gate keeps its share until the lease ends, and then has its fall-back share.
    one.kill();
    until("the lease is over", &mut [&mut one, &mut two], |nodes| nodes[0].phase() == "over");
    assert_eq!(one.running("a.example") + two.running("a.example"), 20);
    let problems = one.status().unwrap().problems;
    assert!(problems[0].contains("each limit is divided by 2"), "{problems:?}");
    // Another agent goes on.
    one.start();
    until("the agent is back", &mut [&mut one, &mut two], all_valid);
    // A second one for the same qmail does not start.
    let run = common::qpatch(&["gate", "share", one.path().to_str().unwrap()]);
    assert!(run.err.contains("another qpatch gate share has this file"), "{}", run.err);
}

#[test]
fn an_agent_that_is_stopped_for_longer_than_a_lease() {
    let Some(redis) = Redis::start(&[]) else { return };
    let (mut one, mut two) = pair(&redis);
    one.mail(0..30, "a.example");
    until("one host has all places", &mut [&mut one, &mut two], |nodes| {
        nodes[0].running("a.example") == 20
    });
    one.end(0..30);
    one.mail(0..6, "a.example");
    one.signal("-STOP");
    two.mail(0..30, "a.example");
    until("the lease is over", &mut [&mut one, &mut two], |nodes| nodes[0].phase() == "over");
    // What runs there counts until the lease is over, then the fall-back share.
    until("the other has its half", &mut [&mut one, &mut two], |nodes| {
        nodes[1].running("a.example") == 10
    });
    one.mail(30..60, "a.example");
    assert_eq!(one.running("a.example"), 10);
    one.signal("-CONT");
    until("the agent is back", &mut [&mut one, &mut two], all_valid);
    assert!(one.running("a.example") + two.running("a.example") <= 20);
}

#[test]
fn the_store_goes_away_and_comes_back_empty() {
    let Some(mut redis) = Redis::start(&[]) else { return };
    let (mut one, mut two) = pair(&redis);
    one.mail(0..30, "a.example");
    until("one host has all places", &mut [&mut one, &mut two], |nodes| {
        nodes[0].running("a.example") == 20
    });
    redis.stop();
    until("no lease", &mut [&mut one, &mut two], |nodes| {
        nodes.iter().all(|node| node.phase() == "over")
    });
    two.mail(0..30, "a.example");
    assert_eq!(two.running("a.example"), 10, "the limit divided by two");
    assert!(two.said().contains("the connection is refused; "), "{}", two.said());
    one.end(0..30);
    two.end(0..30);
    redis.restart();
    until("both take part again", &mut [&mut one, &mut two], |nodes| {
        nodes.iter().all(|node| node.phase() == "valid")
    });
    one.mail(30..60, "a.example");
    until("one host has all places", &mut [&mut one, &mut two], |nodes| {
        nodes[0].running("a.example") == 20
    });
}

#[test]
fn a_password_and_tls() {
    let Some(redis) = Redis::start(&["--requirepass", "S3cret-word"]) else { return };
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("password");
    let config = format!("{}\npassword-file {}", store(redis.port), file.display());
    let mut node = Node::new("one", TABLE, &config);
    let path = node.path().to_str().unwrap().to_string();
    secret(&file, "S3cret-word\n", 0o644);
    let run = common::qpatch(&["gate", "share", &path]);
    assert_eq!(run.code, 1);
    assert!(run.err.contains("(mode 644), so it keeps no secret"), "{}", run.err);
    // A wrong one is not repeated.
    secret(&file, "Wr0ng-word\n", 0o600);
    node.start();
    until("it is refused", &mut [&mut node], |nodes| {
        nodes[0].said().contains("refuses this user or password")
    });
    assert!(!node.said().contains("Wr0ng"), "{}", node.said());
    node.kill();
    secret(&file, "S3cret-word\n", 0o640);
    node.start();
    until("it takes part", &mut [&mut node], all_valid);
    node.kill();

    // TLS, with an authority of our own.
    if !qpatch_test_support::has_command("openssl", "version") {
        return;
    }
    let cert = dir.path().join("cert.pem");
    let key = dir.path().join("key.pem");
    let made = std::process::Command::new("openssl")
        .args([
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:P-256",
            "-nodes",
            "-days",
            "2",
        ])
        .args(["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"])
        .args(["-addext", "basicConstraints=critical,CA:FALSE"])
        .arg("-keyout")
        .arg(&key)
        .arg("-out")
        .arg(&cert)
        .output()
        .unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let held = HeldPort::of(Ipv4Addr::LOCALHOST);
    let port = held.port();
    let (cert, key) = (cert.to_str().unwrap(), key.to_str().unwrap());
    let tls = ["--tls-port", &port.to_string(), "--tls-cert-file", cert, "--tls-key-file", key];
    let args = [
        &tls[..],
        &["--tls-auth-clients", "no", "--tls-ca-cert-file", cert, "--requirepass", "S3cret-word"],
    ];
    let _redis = Redis::start(&args.concat()).unwrap();
    let address = format!("store rediss://127.0.0.1:{port}\npassword-file {}", file.display());
    // Without the authority the certificate is not trusted.
    let mut node = Node::new("one", TABLE, &address);
    node.start();
    until("it is not trusted", &mut [&mut node], |nodes| {
        nodes[0].said().contains("no connection: ")
    });
    assert!(!node.said().contains("S3cret"), "{}", node.said());
    let mut node = Node::new("one", TABLE, &format!("{address}\nca-file {cert}"));
    node.start();
    until("it takes part over TLS", &mut [&mut node], all_valid);
}

#[test]
fn a_slow_store_and_a_replica() {
    let Some(redis) = Redis::start(&[]) else { return };
    let proxy = Proxy::start(redis.port);
    let (mut one, mut two) = pair_at(proxy.port, redis.port);
    one.mail(0..30, "a.example");
    until("one has all places", &mut [&mut one, &mut two], |nodes| {
        nodes[0].running("a.example") == 20
    });
    one.end(0..30);
    // A fifth of a lease for each answer: slow, and good enough.
    proxy.delay(Duration::from_millis(LEASE_MS / 5));
    one.mail(0..30, "a.example");
    until("places", &mut [&mut one, &mut two], |nodes| nodes[0].running("a.example") == 20);
    // Two seconds are as good as no answer: the fall-back share counts, and the other host is not held up.
    proxy.delay(Duration::from_secs(2));
    until("the lease is over", &mut [&mut one, &mut two], |nodes| nodes[0].phase() == "over");
    assert!(one.said().contains("no answer in time"), "{}", one.said());
    one.end(0..30);
    two.mail(0..30, "a.example");
    until("the other has its half", &mut [&mut one, &mut two], |nodes| {
        nodes[1].running("a.example") == 10
    });
    proxy.delay(Duration::ZERO);
    until("both take part again", &mut [&mut one, &mut two], all_valid);

    let replica = Redis::start(&["--replicaof", "127.0.0.1", &redis.port.to_string()]).unwrap();
    let mut three = Node::new("three", TABLE, &store(replica.port));
    three.start();
    until("the replica is recognised", &mut [&mut three], |nodes| {
        nodes[0].said().contains("it is a replica, which takes no writes: name the primary")
    });
    assert!(!three.has_ended());
    // Its gate has the limit: this host has never taken part.
    three.mail(0..30, "a.example");
    assert_eq!(three.running("a.example"), 20);
}

/// docs/examples/share-three-hosts: three qmails in networks of their own.
#[test]
fn the_example_with_three_hosts() {
    use std::process::{Command, Stdio};
    if !rustix::process::geteuid().is_root() {
        qpatch_test_support::skip("network namespaces take root");
        return;
    }
    if !qpatch_test_support::has("redis-server")
        || !qpatch_test_support::has("unshare")
        || !qpatch_test_support::has_command("ip", "-V")
    {
        return;
    }
    let mut nodes: Vec<Node> = (0..3).map(|_| Node::with("one", TABLE, "")).collect();
    let bin = std::path::Path::new(env!("CARGO_BIN_EXE_qpatch")).parent().unwrap();
    let path = format!("{}:{}", bin.display(), std::env::var("PATH").unwrap());
    let said = nodes[0].path().join("said");
    let mut example = Command::new("docs/examples/share-three-hosts")
        .args(nodes.iter().map(Node::path))
        .env("PATH", path)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(fs::File::create(&said).unwrap())
        .spawn()
        .unwrap();
    let mut all: Vec<&mut Node> = nodes.iter_mut().collect();
    until("all take part", &mut all, |nodes| {
        nodes.iter().all(|node| node.phase() == "valid")
            && nodes[0].said().contains("host4 shares the limits of the pool mail")
    });
    all[0].mail(0..30, "a.example");
    until("one has all", &mut all, |nodes| nodes[0].running("a.example") == 20);
    for node in &mut all[1..] {
        node.mail(0..30, "a.example");
    }
    let mut ended = 0;
    until("each has its part", &mut all, |nodes| {
        let running: Vec<u32> = nodes.iter().map(|node| node.running("a.example")).collect();
        assert!(running.iter().sum::<u32>() <= 20, "{running:?}");
        if nodes[0].share("a.example").is_some_and(|share| running[0] > share) {
            nodes[0].end(ended..ended + 1);
            ended += 1;
        }
        running.iter().sum::<u32>() == 20 && running.iter().all(|&running| running >= 6)
    });
    // It ends as a whole.
    example.kill().unwrap();
    example.wait().unwrap();
    until("the agents have ended", &mut all, |nodes| {
        nodes.iter().all(|node| node.phase() != "valid")
    });
}

/// A replica takes over that has missed the last writes, at the address that the agents have.
#[test]
fn a_replica_takes_over() {
    let Some(mut primary) = Redis::start(&[]) else { return };
    let wire = Proxy::start(primary.port);
    let replica = Redis::start(&["--replicaof", "127.0.0.1", &wire.port.to_string()]).unwrap();
    let mut to_replica = redis::Client::open(format!("redis://127.0.0.1:{}", replica.port))
        .unwrap()
        .get_connection()
        .unwrap();
    let address = Proxy::start(primary.port);
    let (mut one, mut two) = pair_at(address.port, address.port);
    one.mail(0..20, "a.example");
    until("one has all, and the replica knows it", &mut [&mut one, &mut two], |nodes| {
        let mut command = redis::cmd("HGET");
        command.arg("qpatch:{qmail}:k:domain:a.example").arg("one");
        let line: Option<String> = command.query(&mut to_replica).unwrap();
        nodes[0].running("a.example") == 20 && line.is_some_and(|line| line.starts_with("20 "))
    });
    // What is written from now on the replica never gets.
    wire.delay(Duration::from_secs(3600));
    one.end(0..20);
    two.mail(0..30, "a.example");
    until("the other has all", &mut [&mut one, &mut two], |nodes| {
        nodes[1].running("a.example") == 20
    });
    one.mail(0..30, "a.example");
    primary.stop();
    let mut command = redis::cmd("REPLICAOF");
    let _: () = command.arg("NO").arg("ONE").query(&mut to_replica).unwrap();
    address.go_to(replica.port);
    // For it one host has all, and the other one nothing.
    let mut ended = 0;
    until("half each, and never more than the limit", &mut [&mut one, &mut two], |nodes| {
        let running = [0, 1].map(|at| nodes[at].running("a.example"));
        assert!(running.iter().sum::<u32>() <= 20, "{running:?}");
        if nodes[1].share("a.example").is_some_and(|share| running[1] > share) {
            nodes[1].end(ended..ended + 1);
            ended += 1;
        }
        running == [10, 10] && nodes.iter().all(|node| node.phase() == "valid")
    });
}

/// Two machines whose clocks are an hour apart: this process and its agent, and another process of this program with
/// its agent, which have a time namespace of their own.
#[test]
fn clocks_that_are_an_hour_apart() {
    if !rustix::process::geteuid().is_root() {
        qpatch_test_support::skip("time namespaces take root");
        return;
    }
    if !qpatch_test_support::has("unshare") {
        return;
    }
    let Some(redis) = Redis::start(&[]) else { return };
    let dir = tempfile::tempdir().unwrap();
    let mut command = std::process::Command::new("unshare");
    command.args(["--time", "--boottime", "3600", "--fork", "--kill-child=SIGKILL"]);
    command.arg(std::env::current_exe().unwrap()).env(OTHER_STORE, store(redis.port));
    let mut two = other_process(command, dir.path());
    let other = || fs::read_to_string(dir.path().join("is")).unwrap_or_default();
    let mut one = Node::new("one", TABLE, &store(redis.port));
    one.start();
    until("both take part", &mut [&mut one], |nodes| all_valid(nodes) && other() == "valid 0");
    one.mail(0..20, "a.example");
    until("one has all", &mut [&mut one], |nodes| nodes[0].running("a.example") == 20);
    one.end(0..20);
    fs::write(dir.path().join("mail"), "20").unwrap();
    until("the other has all", &mut [&mut one], |_| other() == "valid 20");
    // The lease of each ends by its own clock.
    one.kill();
    fs::write(dir.path().join("kill"), "").unwrap();
    until("no lease", &mut [&mut one], |nodes| nodes[0].phase() == "over" && other() == "over 20");
    fs::write(dir.path().join("end"), "").unwrap();
    assert!(two.wait().unwrap().success());
}

/// A queue with supplemental channels has several spawners, each with a status of its own. They are one host.
#[test]
fn two_spawners_of_one_queue() {
    let Some(redis) = Redis::start(&[]) else { return };
    let config = format!("{}\nlease 1\nforget 60\n", store(redis.port));
    let mut one = Node::with_channels("one", TABLE, &config);
    let mut two = Node::new("two", TABLE, &store(redis.port));
    for node in [&mut one, &mut two] {
        node.start();
    }
    until("both take part", &mut [&mut one, &mut two], all_valid);
    one.mail(0..8, "a.example");
    let dir = tempfile::tempdir().unwrap();
    let mut command = std::process::Command::new(std::env::current_exe().unwrap());
    command.env(OTHER_HOME, one.path());
    let mut beside = other_process(command, dir.path());
    let other = || fs::read_to_string(dir.path().join("is")).unwrap_or_default();
    fs::write(dir.path().join("mail"), "12").unwrap();
    until("the spawners have all", &mut [&mut one, &mut two], |nodes| {
        nodes[0].running("a.example") == 8 && other() == "valid 12"
    });
    // What both run counts, and what either gives back goes to the other host.
    two.mail(0..20, "a.example");
    one.end(0..8);
    until("the rest for the other host", &mut [&mut one, &mut two], |nodes| {
        assert!(nodes[1].running("a.example") <= 8, "{}", other());
        nodes[1].running("a.example") == 8 && other() == "valid 12"
    });
    fs::write(dir.path().join("end"), "").unwrap();
    assert!(beside.wait().unwrap().success());
}

/// Starts this program as the other process of a test.
fn other_process(mut command: std::process::Command, dir: &std::path::Path) -> std::process::Child {
    command.args(["--exact", "the_other_process"]).env(OTHER, dir);
    command.stdout(std::process::Stdio::null()).spawn().unwrap()
}

/// The folder of the other process, and its store, or the home of which it is a second spawner.
const OTHER: &str = "QPATCH_TEST_OTHER";
const OTHER_STORE: &str = "QPATCH_TEST_OTHER_STORE";
const OTHER_HOME: &str = "QPATCH_TEST_OTHER_HOME";

/// The other process of a test; alone it does nothing. It does what files in the folder say, and writes how its gate
/// is.
#[test]
fn the_other_process() {
    let Some(dir) = std::env::var_os(OTHER) else { return };
    let told = |what: &str| std::path::Path::new(&dir).join(what).exists();
    let mut node = match (std::env::var(OTHER_STORE), std::env::var_os(OTHER_HOME)) {
        (Ok(store), _) => {
            let mut node = Node::new("two", TABLE, &store);
            node.start();
            node
        }
        (Err(_), home) => Node::beside(std::path::Path::new(&home.unwrap())),
    };
    let (mut has_mail, mut was) = (false, String::new());
    until("its end", &mut [&mut node], |nodes| {
        let mail = fs::read_to_string(std::path::Path::new(&dir).join("mail")).ok();
        let mail = mail.and_then(|count| count.parse().ok()).filter(|_| !has_mail);
        if let Some(count) = mail {
            has_mail = true;
            nodes[0].mail(0..count, "a.example");
        }
        if told("kill") {
            nodes[0].kill();
        }
        let is = format!("{} {}", nodes[0].phase(), nodes[0].running("a.example"));
        if is != was {
            let fresh = std::path::Path::new(&dir).join("fresh");
            fs::write(&fresh, &is).unwrap();
            fs::rename(&fresh, std::path::Path::new(&dir).join("is")).unwrap();
            was = is;
        }
        told("end")
    });
}

#[test]
fn names_with_every_byte() {
    let Some(redis) = Redis::start(&[]) else { return };
    let (mut one, mut two) = pair(&redis);
    let is_letter_of_a_domain = |byte: &u8| !byte.is_ascii_uppercase() && !b"@.".contains(byte);
    let names: Vec<Vec<u8>> = (1..=255u8)
        .filter(is_letter_of_a_domain)
        .map(|byte| [&[byte, byte][..], b"{x}.example"].concat())
        .collect();
    assert_eq!(names.len(), 227);
    for names in names.chunks(SLOTS as usize / 2) {
        for (name, slot) in names.iter().zip((0..).step_by(2)) {
            one.mail(slot..slot + 2, name);
        }
        until("each runs two", &mut [&mut one, &mut two], |nodes| {
            names.iter().all(|name| nodes[0].running(name) == 2)
        });
        one.end(0..SLOTS);
    }
}

/// A host that joins has nothing of ten thousand keys of which others have shares, and gets what it asks for.
#[test]
fn ten_thousand_keys() {
    let Some(redis) = Redis::start(&[]) else { return };
    let mut names: Vec<Vec<u8>> =
        (0..10_000).map(|number| format!("{number}.example").into_bytes()).collect();
    names.extend((0..=255u8).map(|byte| [&[byte, byte][..], b"{x}.example"].concat()));
    let address = format!("redis://127.0.0.1:{}", redis.port);
    let mut connection = redis::Client::open(address).unwrap().get_connection().unwrap();
    let mut calls = redis::pipe();
    for name in &names {
        let key = [b"domain:", &name[..]].concat();
        calls.cmd("SADD").arg("qpatch:{qmail}:keys").arg(&key).ignore();
        let lines = [b"qpatch:{qmail}:k:", &key[..]].concat();
        calls.cmd("HSET").arg(lines).arg("other").arg("20 20 20 1").ignore();
    }
    let _: () = calls.query(&mut connection).unwrap();
    let mut one = Node::new("one", TABLE, &store(redis.port));
    one.start();
    until("it takes part", &mut [&mut one], all_valid);
    let mut bytes = fs::read(one.path().join("queue/lock/gatelease")).unwrap();
    let mut listed = Vec::new();
    let parsed = parse(&mut bytes, |_, name, share| listed.push((name.to_vec(), share)));
    assert!(matches!(parsed, Parsed::Whole(_)), "{parsed:?}");
    let mut expected: Vec<_> = names.iter().map(|name| (name.clone(), 0)).collect();
    listed.sort();
    expected.sort();
    assert!(listed == expected, "{} listed", listed.len());
    for (name, slot) in names.iter().skip(9_900).step_by(10).zip((0..).step_by(5)) {
        one.mail(slot..slot + 5, name);
    }
    until("places", &mut [&mut one], |nodes| {
        names.iter().skip(9_900).step_by(10).all(|name| nodes[0].running(name) == 5)
    });
}

#[test]
fn what_is_wrong_is_said() {
    let node = Node::new("one", TABLE, "store redis://127.0.0.1:1");
    let path = node.path().to_str().unwrap();
    let config = node.path().join("control/concurrencyshare");
    for (text, expected) in [
        (
            "store redis://:S3cret@127.0.0.1\n",
            "a password does not belong here: use password-file, and user",
        ),
        ("pool x\n", "no store\n  add a line such as: store redis://store.example:6379"),
        (
            "store redis://a\nhost a:b\n",
            "concurrencyshare:2: the name of the host has other characters",
        ),
    ] {
        fs::write(&config, text).unwrap();
        let run = common::qpatch(&["gate", "share", path]);
        assert_eq!(run.code, 1);
        assert!(run.err.contains(expected), "{}", run.err);
        assert!(!run.err.contains("S3cret"), "{}", run.err);
    }
    fs::remove_file(&config).unwrap();
    let run = common::qpatch(&["gate", "share", path]);
    assert!(run.err.contains("no such file"), "{}", run.err);
}
