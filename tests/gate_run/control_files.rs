//! Control files that cannot be used, the kept copies of good ones, and what the gate takes from a relay's line.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process;

use qpatch::fixture::Dialect;
use qpatch::verify::rig::numbers::Random;
use qpatch::verify::rig::stub::{self, Mode, peak};
use qpatch_gate::problem::File;
use qpatch_gate::status::{InForce, State};
use qpatch_gate::table::Limit;
use qpatch_test_support::{skip, write_script};

use super::{BUSY, Spawning, domains, gated, gated_of, set_limits, status};
use crate::common::{Fixture, run};

/// What replaces control/concurrencydomains: a name, and how to make it.
type Broken = (&'static str, fn(&Path));

const BROKEN: [Broken; 7] = [
    ("a folder", |path| fs::create_dir(path).unwrap()),
    ("a FIFO", |path| {
        run(process::Command::new("mkfifo").arg(path)).ok();
    }),
    ("binary", |path| {
        let mut random = Random::new(1);
        let bytes: Vec<u8> = (0..100_000).map(|_| random.draw() as u8).collect();
        fs::write(path, bytes).unwrap();
    }),
    ("100 MB", |path| fs::File::create(path).unwrap().set_len(100 << 20).unwrap()),
    ("unreadable", |path| {
        fs::write(path, ":1\n").unwrap();
        fs::set_permissions(path, Permissions::from_mode(0o000)).unwrap();
    }),
    ("a link to itself", |path| symlink("concurrencydomains", path).unwrap()),
    ("a line that is wrong", |path| fs::write(path, ":1\nbusy.example:many\n").unwrap()),
];

fn remove(path: &Path) {
    if fs::remove_file(path).is_err() {
        fs::remove_dir(path).unwrap();
    }
}

/// After a restart with a file that cannot be used, the limits of the last good one hold, whether qmail-rspawn was
/// killed or ended by itself.
#[test]
fn a_restart_does_not_open_the_gate() {
    let mut rig = gated(&["qmail-rspawn"], &format!("{BUSY}:30\n:40\n"), 200);
    let mut rspawn = Spawning::start(&mut rig);
    rspawn.fill(BUSY, 30);
    let status_of = |rspawn: &mut Spawning<'_>, what: &str| {
        let pid = rspawn.spawner.process().id();
        rspawn.status(what, |status| status.pid == pid)
    };
    assert_eq!(status_of(&mut rspawn, "the good file").in_force, InForce::File);
    for (what, make) in BROKEN {
        rspawn.spawner.process().signal(libc::SIGKILL).unwrap();
        drop(rspawn);
        let path = domains(&rig.sandbox);
        remove(&path);
        make(&path);
        rspawn = Spawning::start(&mut rig);
        rspawn.fill(BUSY, 30);
        let status = status_of(&mut rspawn, what);
        let is_readable = what == "unreadable" && !rspawn.rig.sandbox.identity().changes();
        if is_readable && status.in_force == InForce::File {
            skip("root may read every file");
            continue;
        }
        assert_eq!((status.state, status.in_force), (State::Limits, InForce::Kept), "{what}");
    }
    // Corrected, it counts at once.
    let path = domains(&rspawn.rig.sandbox);
    remove(&path);
    set_limits(&rspawn.rig.sandbox, &format!("{BUSY}:40\n"));
    rspawn.status("the corrected file", |status| status.in_force == InForce::File);
    rspawn.fill(BUSY, 40);
    assert_eq!(rspawn.end(), []);
    // Without the file there are no limits, after the time in which another file could be put in its place.
    fs::remove_file(domains(&rig.sandbox)).unwrap();
    let mut rspawn = Spawning::start(&mut rig);
    rspawn.status("no file", |status| status.in_force == InForce::None);
    assert_eq!(rspawn.end(), []);
}

/// The disk is full: the copy cannot be written, mail goes on, and the earlier copy still counts.
#[test]
fn a_full_disk_takes_no_limit_and_no_mail() {
    let mut rig = gated(&["qmail-rspawn"], &format!("{BUSY}:2\n"), 200);
    drop(Spawning::start(&mut rig));
    // More than the limit on files below, in good lines.
    let lines: String = (0..2000).map(|i| format!("d{i:05}.example:1\n")).collect();
    set_limits(&rig.sandbox, &format!("{BUSY}:3\n{lines}"));
    let lock = rig.sandbox.home().join("queue/lock");
    let kept = lock.join("gatekept.domains");
    let program = rig.sandbox.home().join("bin/qmail-rspawn");
    let real = program.with_extension("real");
    fs::rename(&program, &real).unwrap();
    let script = format!("#!/bin/sh\ntrap '' XFSZ\nulimit -f 16\nexec {}\n", real.display());
    write_script(&program, &script);
    let mut rspawn = Spawning::start(&mut rig);
    rspawn.fill(BUSY, 3);
    let what = "queue/lock/gatekept.domains: cannot be written (error 27)";
    rspawn.status(what, |status| status.problems.iter().any(|problem| problem == what));
    assert_eq!(rspawn.end(), []);
    // The earlier copy is there, and counts.
    let good = fs::read(domains(&rig.sandbox)).unwrap();
    set_limits(&rig.sandbox, &format!("{BUSY}:3O\n"));
    let mut rspawn = Spawning::start(&mut rig);
    rspawn.status("the copy", |status| status.in_force == InForce::Kept);
    rspawn.fill(BUSY, 2);
    assert_eq!(rspawn.end(), []);
    rig.sandbox.write(&domains(&rig.sandbox), &good).unwrap();
    fs::rename(real, program).unwrap();
    let mut rspawn = Spawning::start(&mut rig);
    rspawn.status("no problem", |status| status.problems.is_empty());
    assert!(fs::metadata(&kept).unwrap().len() > lines.len() as u64);
    assert_eq!(rspawn.end(), []);
}

#[test]
fn a_broken_control_file_stops_no_mail() {
    let mut rig = gated(&["qmail-rspawn"], "", 200);
    // Without any good file before: there is still a limit, and the status file says why.
    for (what, make) in BROKEN {
        let path = domains(&rig.sandbox);
        remove(&path);
        make(&path);
        let mut rspawn = Spawning::start(&mut rig);
        let pid = rspawn.spawner.process().id();
        for number in 0..30 {
            rspawn.send(number, stub::recipient(Mode::Accept, None, number, BUSY));
        }
        let reports = rspawn.reports(30);
        assert!(reports.iter().all(|report| report.letter == b'K'), "{what}: {reports:?}");
        assert!(rspawn.peak(BUSY) <= 20, "{what}");
        let status = status(&rspawn.rig.sandbox, what, |status| status.pid == pid);
        assert_eq!((status.state, status.in_force), (State::Limits, InForce::Part), "{what}");
        let [wrong, counts] = &status.problems[..] else { panic!("{what}: {status:?}") };
        assert!(wrong.starts_with("control/concurrencydomains:"), "{what}: {wrong}");
        assert!(counts.contains("its good lines count, and a limit of 20"), "{what}: {counts}");
        assert_eq!(rspawn.end(), []);
    }
    // In the middle: the last good table stays.
    let good = format!("{BUSY}:2\n");
    remove(&domains(&rig.sandbox));
    set_limits(&rig.sandbox, &good);
    let mut rspawn = Spawning::start(&mut rig);
    for (what, make) in BROKEN {
        rspawn.fill(BUSY, 2);
        let path = domains(&rspawn.rig.sandbox);
        let aside = path.with_extension("new");
        make(&aside);
        // A folder cannot take the place of a file.
        if aside.is_dir() {
            remove(&path);
        }
        fs::rename(aside, path).unwrap();
        let seen = rspawn.status(what, |status| !status.problems.is_empty());
        assert_eq!(seen.state, State::Limits, "{what}");
        rspawn.fill(BUSY, 2);
        let path = domains(&rspawn.rig.sandbox);
        if path.is_dir() {
            remove(&path);
        }
        set_limits(&rspawn.rig.sandbox, &good);
        rspawn.status(what, |status| status.problems.is_empty());
    }
    assert_eq!(rspawn.end(), []);
}

#[test]
fn no_password_of_a_relay_leaves_the_spawner() {
    const SECRET: &str = "s3cretpass";
    let mut rig = gated(&["qmail-rspawn"], ":20\nrelay.example:1\n", 2);
    let (control, lock) =
        (rig.sandbox.home().join("control"), rig.sandbox.home().join("queue/lock"));
    let routes = "b.example:Relay.example|mailuser|S3cretPass\nc.example:Relay.example mailuser S3cretPass\n\
                  d.example:[2001:db8::25]:26|mailuser|S3cretPass\n";
    rig.sandbox.write(&control.join("smtproutes"), routes.as_bytes()).unwrap();
    // An earlier build has left this.
    let old = format!("relay.example|mailuser|{SECRET}");
    let sites = format!("qpatch-sites\t1\n{old}\t192.0.2.7\nend\n");
    rig.sandbox.write(&lock.join("gatesites"), sites.as_bytes()).unwrap();
    let status_text = format!(
        "qpatch-gate\t1\t3\nkey\trelay\t{old}\t20\t0\t0\t0\t0\t0\t0\t0.0\t0\t20\t0\t0\t\nend\t3\n"
    );
    rig.sandbox.write(&lock.join("gatestatus"), status_text.as_bytes()).unwrap();
    rig.stubs.hold("all").unwrap();
    let home = rig.sandbox.home().to_path_buf();
    let told = || {
        let read =
            |name: &str| String::from_utf8_lossy(&fs::read(lock.join(name)).unwrap()).into_owned();
        read("gatestatus") + &read("gatesites")
    };
    let mut rspawn = Spawning::start(&mut rig);
    // The gate is open before the spawner says how many slots it has, which has been waited for.
    rspawn.round_trip();
    let cleaned = told();
    assert!(!cleaned.contains("S3cretPass") && !cleaned.contains(SECRET), "{cleaned}");
    assert!(cleaned.ends_with("qpatch-sites\t1\nend\n"), "{cleaned}");

    rspawn.send(0, stub::recipient(Mode::Accept, Some("all"), 0, "b.example"));
    rspawn.started(1);
    // Only the relay's own line makes it one at a time.
    rspawn.send(1, stub::recipient(Mode::Accept, Some("all"), 1, "c.example"));
    rspawn.send(2, stub::recipient(Mode::Accept, Some("all"), 2, "b.example"));
    let mut said: String = rspawn.reports(2).into_iter().map(|report| report.text).collect();
    assert!(
        said.contains("relay relay.example is at its limit of 1 delivery; not tried."),
        "{said}"
    );
    rspawn.send(3, stub::recipient(Mode::Accept, Some("all"), 3, "d.example"));
    rspawn.started(2);
    rspawn.rig.stubs.release("all").unwrap();
    said.extend(rspawn.reports(2).into_iter().map(|report| report.text));
    rspawn.spawner.close_input();
    rspawn.end();
    said += &told();
    for args in [
        &["gate", "show"][..],
        &["gate", "show", "--format", "prometheus"],
        &["gate", "check", "--domain", "b.example"],
    ] {
        let run = run(process::Command::new(env!("CARGO_BIN_EXE_qpatch")).args(args).arg(&home));
        assert!(run.out.contains("relay.example"), "{}{}", run.out, run.err);
        said += &run.out;
        said += &run.err;
    }
    assert!(said.contains("2001:db8::25"), "{said}");
    let said = said.to_ascii_lowercase();
    assert!(!said.contains(SECRET) && !said.contains("mailuser"), "{said}");
}

/// A tree whose qmail-remote chooses relays by senders, as the SMTP AUTH patches do: the Makefile sees it, and the gate
/// counts by these relays.
#[test]
fn a_tree_that_routes_by_senders_counts_by_their_relays() {
    let fixture = Fixture::new(Dialect::StockKr);
    fixture.replace(
        "qmail-remote.c",
        "static stralloc routes = {0};\n",
        "static stralloc routes = {0};\nchar *senderfile = \"control/authsenders\";\n",
    );
    fixture.qpatch(&["apply", "--spawn", "1000", "--gate"]).ok();
    let mut rig = gated_of(&fixture, &["qmail-rspawn"], ":20\nrelay.example:2\n", 100);
    let lines = "@sender.example:relay.example:587|user|S3cretPass\n";
    rig.sandbox.set_control("authsenders", lines).unwrap();
    let lock = rig.sandbox.home().join("queue/lock");
    rig.stubs.hold("all").unwrap();
    let mut rspawn = Spawning::start(&mut rig);
    for (number, domain) in (0..).zip(["a.example", "b.example", "c.example", "d.example"]) {
        rspawn.send(number, stub::recipient(Mode::Accept, Some("all"), number, domain));
    }
    rspawn.started(2);
    let status = status(&rspawn.rig.sandbox, "two to wait", |status| status.held == 2);
    let relay = status.keys.iter().find(|key| key.name == "relay.example").unwrap();
    assert_eq!((relay.limit, relay.running), (Limit::AtMost(2), 2));
    rspawn.rig.stubs.release("all").unwrap();
    assert!(rspawn.reports(4).iter().all(|report| report.letter == b'K'));
    assert_eq!(peak(rspawn.rig.stubs.events(), |_| true), 2);
    rspawn.end();
    for name in [File::Status].into_iter().chain(File::KEPT).map(File::name) {
        let text = fs::read(lock.join(name)).unwrap();
        assert!(!String::from_utf8_lossy(&text).contains("S3cretPass"), "{name}");
    }
}
