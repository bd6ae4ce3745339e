//! The limits per domain in the patched fixture's own qmail-rspawn and qmail-send. A stub in place of qmail-remote
//! records when each delivery starts and ends; limits are checked against this record.

mod common;
#[path = "common/rig.rs"]
mod rig;
#[path = "common/trees.rs"]
mod trees;

use std::collections::{BTreeSet, HashMap};
use std::fs::{self, Permissions};
use std::io::{Read, Write};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{self, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use common::{Fixture, run};
use qpatch::fixture::Dialect;
use qpatch::verify::proofs::gate;
use qpatch::verify::proofs::mail::Watchdog;
use qpatch::verify::rig::log::{Log, logged};
use qpatch::verify::rig::numbers::{self, Random};
use qpatch::verify::rig::protocol::{Command, Report, Width};
use qpatch::verify::rig::sendrig::{self, SendRig, Spawners, pull_trigger};
use qpatch::verify::rig::spawner::{Channel, IDLE, Spawner};
use qpatch::verify::rig::stub::{self, Mode, StubEvent, StubEventKind, Stubs, peak};
use qpatch::verify::sandbox::private_tree::Sandbox;
use qpatch_gate::problem::File;
use qpatch_gate::status::{InForce, State};
use qpatch_gate::table::Limit;
use qpatch_gate_status::Status;
use qpatch_test_support::{skip, tell, write_script};
use rig::{Rig, config};
use trees::{Gate, patched};

const BUSY: &str = "busy.example";
const SENDER: &str = "sender@sender.example";
const BODY: &[u8] = b"Subject: a message of the rig\n\nhello\n";

/// A rig with the gate, `limits` in control/concurrencydomains and a slow qmail-remote.
fn gated(programs: &[&str], limits: &str, concurrency_remote: u32) -> Rig {
    gated_of(&patched(Dialect::StockKr, Gate::In), programs, limits, concurrency_remote)
}

fn gated_of(fixture: &Fixture, programs: &[&str], limits: &str, concurrency_remote: u32) -> Rig {
    let rig = Rig::of(fixture.path(), &config(1000, &[]), programs).unwrap();
    furnish(&rig.sandbox, limits, concurrency_remote);
    rig
}

fn furnish(sandbox: &Sandbox, limits: &str, concurrency_remote: u32) {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/common/remote.c");
    let program = sandbox.rig().join("remote");
    run(process::Command::new("cc")
        .args(["-O2", "-o"])
        .arg(&program)
        .arg(format!("-DRIG=\"{}\"", sandbox.rig().display()))
        .arg(source))
    .ok();
    let remote = sandbox.home().join("bin/qmail-remote");
    fs::remove_file(&remote).unwrap();
    symlink(program, remote).unwrap();
    // As the tree's hier.c makes them.
    for file in [File::Status].into_iter().chain(File::KEPT).map(File::name) {
        sandbox.write(&sandbox.home().join("queue/lock").join(file), b"").unwrap();
    }
    sandbox.set_control("concurrencyremote", &format!("{concurrency_remote}\n")).unwrap();
    sandbox.set_control("concurrencydomains", limits).unwrap();
}

fn domains(sandbox: &Sandbox) -> PathBuf {
    sandbox.home().join("control/concurrencydomains")
}

/// Replaces the limits at once: a file that is written bit by bit could be read half written.
fn set_limits(sandbox: &Sandbox, limits: &str) {
    let new = sandbox.home().join("control/new");
    sandbox.write(&new, limits.as_bytes()).unwrap();
    fs::rename(new, domains(sandbox)).unwrap();
}

/// The status file, once `wanted` is true of it. There is no event for a file that changes.
fn status(sandbox: &Sandbox, what: &str, wanted: impl Fn(&Status) -> bool) -> Status {
    let path = sandbox.home().join("queue/lock/gatestatus");
    let until = Instant::now() + IDLE;
    loop {
        let status = Status::parse(&fs::read(&path).unwrap());
        match status {
            Ok(status) if wanted(&status) => return status,
            other if Instant::now() > until => panic!("waited for {what}: {other:?}"),
            _ => std::thread::sleep(Duration::from_millis(20)),
        }
    }
}

fn limit_of(status: &Status, domain: &str) -> Option<Limit> {
    status.keys.iter().find(|key| key.name == domain).map(|key| key.limit)
}

/// qmail-rspawn with deliveries by number.
struct Spawning<'r> {
    rig: &'r mut Rig,
    spawner: Spawner,
}

impl<'r> Spawning<'r> {
    fn start(rig: &'r mut Rig) -> Spawning<'r> {
        rig.stubs.forget();
        let spawner = Spawner::start(&rig.sandbox, &mut rig.stubs, Channel::Remote).unwrap();
        Spawning { rig, spawner }
    }

    fn send(&mut self, number: u32, recipient: String) {
        let message = self.rig.message.relative();
        self.spawner.send(&Command { number, message, sender: SENDER.to_owned(), recipient });
    }

    /// Waits until this many deliveries have started since the rig's record began.
    fn started(&mut self, count: usize) {
        let what = format!("{count} deliveries to start");
        self.spawner.wait(&mut self.rig.stubs, &what, |seen| seen.started >= count).unwrap();
    }

    /// The next `count` reports.
    fn reports(&mut self, count: usize) -> Vec<Report> {
        let what = format!("{count} reports");
        self.spawner.wait(&mut self.rig.stubs, &what, |seen| seen.reports >= count).unwrap();
        let reports = self.spawner.take_reports();
        assert_eq!(reports.len(), count, "{reports:?}");
        reports
    }

    /// Runs a delivery to a domain without a limit. When it has ended, all earlier commands have been read.
    fn round_trip(&mut self) {
        self.send(999, stub::recipient(Mode::Accept, None, "trip", "elsewhere.example"));
        let report = self.reports(1).remove(0);
        assert_eq!((report.number, report.letter), (999, b'K'), "{report:?}");
    }

    /// The status, once `wanted` is true of it. The gate looks at its files when it is called.
    fn status(&mut self, what: &str, wanted: impl Fn(&Status) -> bool) -> Status {
        let until = Instant::now() + IDLE;
        loop {
            self.round_trip();
            let status = status(&self.rig.sandbox, what, |_| true);
            if wanted(&status) {
                return status;
            }
            assert!(Instant::now() < until, "{what}: {status:?}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// How many deliveries to `domain` have started.
    fn count(&self, domain: &str) -> usize {
        let events = self.rig.stubs.events().iter();
        events
            .filter(|event| event.kind == StubEventKind::Start && event.domain() == domain)
            .count()
    }

    fn peak(&self, domain: &str) -> usize {
        peak(self.rig.stubs.events(), |event| event.domain() == domain)
    }

    /// Fills the places of `domain`, which are all free, with `limit` deliveries, and empties them.
    fn fill(&mut self, domain: &str, limit: u32) {
        self.rig.stubs.forget();
        self.rig.stubs.hold("fill").unwrap();
        for number in 0..=limit {
            self.send(number, stub::recipient(Mode::Accept, Some("fill"), number, domain));
        }
        self.started(limit as usize);
        self.round_trip();
        assert_eq!(self.count(domain), limit as usize);
        self.rig.stubs.release("fill").unwrap();
        let letters: Vec<u8> =
            self.reports(limit as usize + 1).iter().map(|report| report.letter).collect();
        assert_eq!(letters, vec![b'K'; limit as usize + 1]);
        assert_eq!(self.peak(domain), limit as usize);
    }

    /// Ends the input; qmail-rspawn must exit with 0.
    fn end(mut self) -> Vec<Report> {
        self.spawner.close_input();
        let status = self.spawner.wait_exit(&mut self.rig.stubs).unwrap();
        assert_eq!(status.code(), Some(0));
        self.spawner.take_reports()
    }
}

/// 600 run and 900 wait, over the whole range of delivery numbers; each answer has its own number.
#[test]
fn held_deliveries_keep_their_numbers() {
    let fixture = patched(Dialect::TwoByte, Gate::In);
    let config = config(65000, &["-U_FORTIFY_SOURCE", "-D_FORTIFY_SOURCE=3"]);
    let mut rig = Rig::of(fixture.path(), &config, &["qmail-rspawn"]).unwrap();
    furnish(&rig.sandbox, &format!("{BUSY}:600\n"), 65000);
    let numbers = numbers::choose(65000, 1500, &mut rig.random);
    rig.stubs.hold("all").unwrap();
    let mut rspawn = Spawning::start(&mut rig);
    for number in &numbers {
        rspawn.send(*number, stub::recipient(Mode::Accept, Some("all"), number, BUSY));
    }
    rspawn.started(600);
    rspawn.rig.stubs.release("all").unwrap();
    let reports = rspawn.reports(1500);
    for Report { number, letter, text } in &reports {
        assert!(*letter == b'K' && text.contains(&format!("-{number}@")), "{number}: {text:?}");
    }
    let reported: BTreeSet<u32> = reports.iter().map(|report| report.number).collect();
    assert_eq!(reported, numbers.into_iter().collect());
    assert_eq!(rspawn.peak(BUSY), 600);
    assert_eq!(rspawn.end(), []);
}

#[test]
fn a_limit_is_changed_while_deliveries_run() {
    let mut rig = gated(&["qmail-rspawn"], &format!("{BUSY}:20\n"), 200);
    for hold in ["a", "b", "c"] {
        rig.stubs.hold(hold).unwrap();
    }
    let mut rspawn = Spawning::start(&mut rig);
    let to_busy = |number: u32, hold| stub::recipient(Mode::Accept, Some(hold), number, BUSY);
    for number in 0..45 {
        rspawn.send(number, to_busy(number, ["a", "b", "c"][number as usize / 15]));
    }
    rspawn.started(20);
    rspawn.round_trip();
    assert_eq!(rspawn.count(BUSY), 20);

    // That it counts within a second is tested with the gate's own clock, in gate/tests/host/.
    set_limits(&rspawn.rig.sandbox, &format!("{BUSY}:30\n"));
    // Including the one that went elsewhere.
    rspawn.started(31);
    rspawn.round_trip();
    assert_eq!(rspawn.count(BUSY), 30);

    set_limits(&rspawn.rig.sandbox, &format!("{BUSY}:10\n"));
    status(&rspawn.rig.sandbox, "a limit of 10", |status| {
        limit_of(status, BUSY) == Some(Limit::AtMost(10))
    });
    // Nothing that runs is stopped, and nothing starts before fewer than 10 run.
    rspawn.round_trip();
    rspawn.rig.stubs.release("a").unwrap();
    let ended: BTreeSet<u32> = rspawn.reports(15).iter().map(|report| report.number).collect();
    assert_eq!(ended, (0..15).collect());
    rspawn.round_trip();
    assert_eq!(rspawn.count(BUSY), 30);
    rspawn.rig.stubs.release("b").unwrap();
    let ended: BTreeSet<u32> = rspawn.reports(15).iter().map(|report| report.number).collect();
    assert_eq!(ended, (15..30).collect());
    rspawn.started(40 + 4);
    rspawn.round_trip();
    assert_eq!(rspawn.count(BUSY), 40);

    // 0 holds all, as concurrencyremote 0 does.
    set_limits(&rspawn.rig.sandbox, &format!("{BUSY}:0\n"));
    status(&rspawn.rig.sandbox, "a limit of 0", |status| {
        limit_of(status, BUSY) == Some(Limit::AtMost(0))
    });
    rspawn.rig.stubs.release("c").unwrap();
    rspawn.reports(10);
    rspawn.round_trip();
    assert_eq!(rspawn.count(BUSY), 40);
    assert_eq!(rspawn.peak(BUSY), 30);

    rspawn.rig.stubs.forget();
    set_limits(&rspawn.rig.sandbox, &format!("{BUSY}:1\n"));
    rspawn.reports(5);
    assert_eq!((rspawn.count(BUSY), rspawn.peak(BUSY)), (5, 1));
    assert_eq!(rspawn.end(), []);
}

/// With 20 a second, the start number N comes N / 20 s after the first one at the earliest. Meanwhile other mail goes,
/// and each delivery has one report. A stub says when it runs, which may be later than its start, and so nothing here
/// fails on a slow machine.
#[test]
fn a_rate_spreads_the_starts() {
    let mut rig = gated(&["qmail-rspawn"], ":\nbusy.example:20::20/s\n", 200);
    let mut spawning = Spawning::start(&mut rig);
    spawning.round_trip();
    let before_ns = spawning.rig.stubs.events().iter().map(|event| event.at_ns).max().unwrap();
    for number in 0..41 {
        spawning.send(number, stub::recipient(Mode::Accept, None, number, BUSY));
    }
    spawning.send(999, stub::recipient(Mode::Accept, None, "trip", "elsewhere.example"));
    let reports = spawning.reports(42);
    assert!(reports.iter().all(|report| report.letter == b'K'), "{reports:?}");
    assert_ne!(reports[41].number, 999, "other mail waited for the rate");
    let held = reports.iter().filter(|report| report.text.contains("Held ")).count();
    assert!(held >= 38, "{held} were held: {reports:?}");
    let events = spawning.rig.stubs.events().iter();
    let starts = events.filter(|e| e.kind == StubEventKind::Start && e.domain() == BUSY);
    let mut starts: Vec<u64> = starts.map(|event| event.at_ns).collect();
    starts.sort_unstable();
    assert_eq!(starts.len(), 41);
    for (number, at_ns) in (0u64..).zip(starts) {
        let least_ns = number * 50_000_000;
        let earliest_ns = before_ns + least_ns.saturating_sub(5_000_000);
        assert!(
            at_ns >= earliest_ns,
            "start {number} came {} ns after the first mail",
            at_ns - before_ns
        );
    }
    assert!(spawning.end().is_empty());
}

/// A changed rate counts within seconds, also for what is held.
#[test]
fn a_rate_is_changed_while_mail_is_held() {
    let mut rig = gated(&["qmail-rspawn"], ":\nbusy.example:20::1/60m\n", 200);
    let mut spawning = Spawning::start(&mut rig);
    spawning.send(0, stub::recipient(Mode::Accept, None, 0, BUSY));
    let away = spawning.reports(1).remove(0);
    assert!(away.text.contains(" busy.example is at its rate of 1/60m; not tried."), "{away:?}");
    set_limits(&spawning.rig.sandbox, ":\nbusy.example:20::1/20s\n");
    spawning.status("the slow rate is in force", |status| {
        status.keys.iter().any(|key| key.name == BUSY && key.rates == "1/20s")
    });
    spawning.send(1, stub::recipient(Mode::Accept, None, 1, BUSY));
    spawning.round_trip();
    assert_eq!(spawning.count(BUSY), 0);
    set_limits(&spawning.rig.sandbox, ":\nbusy.example:20::100/s\n");
    spawning.started(1);
    assert!(spawning.reports(1).iter().all(|report| report.letter == b'K'));
    assert!(spawning.end().is_empty());
}

#[test]
fn without_its_file_there_is_no_limit() {
    let mut rig = gated(&["qmail-rspawn"], &format!("{BUSY}:5\n"), 200);
    rig.stubs.hold("all").unwrap();
    let mut rspawn = Spawning::start(&mut rig);
    for number in 0..40 {
        rspawn.send(number, stub::recipient(Mode::Accept, Some("all"), number, BUSY));
    }
    rspawn.started(5);
    rspawn.round_trip();
    assert_eq!(rspawn.count(BUSY), 5);
    fs::remove_file(domains(&rspawn.rig.sandbox)).unwrap();
    rspawn.started(1 + 40);
    rspawn.rig.stubs.release("all").unwrap();
    assert!(rspawn.reports(40).iter().all(|report| report.letter == b'K'));
    assert_eq!(rspawn.peak(BUSY), 40);
    assert_eq!(rspawn.end(), []);
}

/// Debian's libc6-dev has libc.a; elsewhere it may be a package of its own.
fn can_link_statically() -> bool {
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("empty.c");
    fs::write(&source, "int main(void) { return 0; }\n").unwrap();
    let output = process::Command::new("cc")
        .args(["-static", "-o"])
        .args([&dir.path().join("empty"), &source])
        .output();
    output.is_ok_and(|output| output.status.success())
}

#[test]
fn it_links_into_a_static_program() {
    if !can_link_statically() {
        skip("the C library of this machine cannot be linked statically");
        return;
    }
    let fixture = patched(Dialect::StockKr, Gate::In);
    fixture.replace("conf-ld", "cc -s\n", "cc -s -static\n");
    let mut rig = gated_of(&fixture, &["qmail-rspawn"], &format!("{BUSY}:5\n"), 200);
    let program = fs::read(rig.sandbox.home().join("bin/qmail-rspawn")).unwrap();
    let names_a_loader = program.windows(8).any(|bytes| bytes == b".interp\0");
    assert!(!names_a_loader);
    let mut rspawn = Spawning::start(&mut rig);
    rspawn.fill(BUSY, 5);
    assert_eq!(rspawn.end(), []);
}

#[test]
fn a_place_comes_back_however_a_delivery_ends() {
    const LIMIT: u32 = 5;
    // This also holds for domains that are not listed.
    let mut rig = gated(&sendrig::PROGRAMS, &format!(":{LIMIT}\n"), 200);
    let mut rspawn = Spawning::start(&mut rig);
    // A crash, an exit code, silence, garbage: three times as many as there are places.
    for (mode, letter) in [('c', b'Z'), ('x', b'Z'), ('n', b'Z'), ('g', b'D')] {
        for number in 0..3 * LIMIT {
            rspawn.send(number, format!("{mode}-none-{number}@bad.example"));
        }
        let reports = rspawn.reports(3 * LIMIT as usize);
        let numbers: BTreeSet<u32> = reports.iter().map(|report| report.number).collect();
        assert_eq!(numbers, (0..3 * LIMIT).collect(), "{mode}: {reports:?}");
        // Garbage may be read as anything but a success.
        assert!(
            reports
                .iter()
                .all(|report| report.letter == letter || mode == 'g' && report.letter != b'K'),
            "{mode}: {reports:?}"
        );
        rspawn.fill("bad.example", LIMIT);
    }
    // Deliveries that never start: no message, no host, not even a number.
    for (message, recipient) in
        [("0/999999999999", "k-none-1@bad.example"), ("x/1", "k-none-1@bad.example")]
    {
        for number in 0..3 * LIMIT {
            rspawn.spawner.send(&Command {
                number,
                message: message.to_owned(),
                sender: SENDER.to_owned(),
                recipient: recipient.to_owned(),
            });
        }
        let reports = rspawn.reports(3 * LIMIT as usize);
        assert!(reports.iter().all(|report| matches!(report.letter, b'Z' | b'D')), "{reports:?}");
        rspawn.fill("bad.example", LIMIT);
    }
    // Recipients of every kind; none of them crashes it.
    let long = "x".repeat(70_000);
    for domain in [
        "",
        ".",
        "..",
        "bad.example.",
        "BAD.example",
        "[127.0.0.1]",
        "xn--bcher-kva.example",
        &long,
    ] {
        for number in 0..3 * LIMIT {
            rspawn.send(number, format!("k-none-{number}@{domain}"));
            rspawn.send(3 * LIMIT + number, format!("k-none-{number}{domain}"));
        }
        let reports = rspawn.reports(6 * LIMIT as usize);
        let numbers: BTreeSet<u32> = reports.iter().map(|report| report.number).collect();
        assert_eq!(numbers, (0..6 * LIMIT).collect());
        let mut letters = reports.iter().map(|report| report.letter);
        assert!(letters.all(|letter| b"KZD".contains(&letter)), "{domain:?}: {reports:?}");
    }
    rspawn.fill("bad.example", LIMIT);
    assert_eq!(rspawn.end(), []);

    // The same through qmail-send; and fork fails.
    let Rig { sandbox, stubs, .. } = &mut rig;
    let gated = gate::prove(sandbox, stubs, u32::MAX, &mut Random::new(1), &mut |_, _| {}).unwrap();
    if gated.failed_starts == 0 {
        skip("failures of fork: this system cannot make a running process see them");
    }
}

#[test]
fn what_is_held_when_qmail_send_is_gone_is_not_delivered() {
    let mut rig = gated(&["qmail-rspawn"], &format!("{BUSY}:2\n"), 200);
    rig.stubs.hold("all").unwrap();
    let mut rspawn = Spawning::start(&mut rig);
    for number in 0..30 {
        rspawn.send(number, stub::recipient(Mode::Accept, Some("all"), number, BUSY));
    }
    rspawn.started(2);
    rspawn.round_trip();
    rspawn.spawner.close_input();
    rspawn.rig.stubs.release("all").unwrap();
    let reports = rspawn.end();
    let numbers: BTreeSet<u32> = reports.iter().map(|report| report.number).collect();
    assert_eq!(numbers, BTreeSet::from([0, 1]), "{reports:?}");
    let events = rig.stubs.events();
    assert_eq!(events.iter().filter(|event| event.domain() == BUSY).count(), 4);
}

/// A qmail-rspawn whose clock goes forward when `put_forward` says so.
fn with_a_clock_of_its_own(sandbox: &Sandbox) {
    let clock = sandbox.rig().join("later.so");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/c/later.c");
    run(process::Command::new("cc")
        .args(["-O2", "-shared", "-fPIC", "-o"])
        .arg(&clock)
        .arg(format!("-DLATER=\"{}\"", sandbox.rig().join("later").display()))
        .arg(source))
    .ok();
    let program = sandbox.home().join("bin/qmail-rspawn");
    let real = program.with_extension("real");
    fs::rename(&program, &real).unwrap();
    let script = format!("#!/bin/sh\nLD_PRELOAD={} exec {}\n", clock.display(), real.display());
    write_script(&program, &script);
}

fn put_forward(sandbox: &Sandbox, seconds: u64) {
    let new = sandbox.rig().join("later.new");
    sandbox.write(&new, seconds.to_string().as_bytes()).unwrap();
    fs::rename(new, sandbox.rig().join("later")).unwrap();
}

/// By the gate's clock, which is put forward: 58 s are not enough, and then it comes by itself.
#[test]
fn a_hold_ends_after_a_minute() {
    const FORWARD: u64 = 58;
    let mut rig = gated(&["qmail-rspawn"], &format!("{BUSY}:1\n"), 200);
    with_a_clock_of_its_own(&rig.sandbox);
    rig.stubs.hold("all").unwrap();
    let mut rspawn = Spawning::start(&mut rig);
    let sent = Instant::now();
    for number in 0..2 {
        rspawn.send(number, stub::recipient(Mode::Accept, Some("all"), number, BUSY));
    }
    rspawn.started(1);
    rspawn.round_trip();
    put_forward(&rspawn.rig.sandbox, FORWARD);
    // The gate looks at its clock when it is called, and says then how long it may sleep.
    rspawn.send(999, stub::recipient(Mode::Accept, None, "trip", "elsewhere.example"));
    let mut reports = rspawn.reports(2);
    let seconds = sent.elapsed().as_secs_f64() + FORWARD as f64;
    reports.sort_by_key(|report| report.number);
    let [held, trip] = &reports[..] else { panic!("{reports:?}") };
    assert_eq!((trip.number, trip.letter), (999, b'K'), "{trip:?}");
    assert_eq!((held.number, held.letter), (1, b'B'), "{held:?}");
    assert!(held.text.contains(" busy.example is at its limit of 1 delivery; not tried."));
    assert!(seconds >= 60.0, "{seconds}");
    rspawn.rig.stubs.release("all").unwrap();
    assert_eq!(rspawn.reports(1)[0].letter, b'K');
    assert_eq!(rspawn.count(BUSY), 1);
}

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

/// qmail-rspawn without the rig: bytes in, bytes out.
struct Raw {
    child: process::Child,
    input: Option<process::ChildStdin>,
    output: process::ChildStdout,
    bytes: Vec<u8>,
    read: usize,
    /// Gets a message for all output, and is dropped at the end: a watchdog kills a qmail-rspawn that does not answer.
    alive: mpsc::Sender<()>,
}

impl Raw {
    /// Starts it, and reads the two bytes that it writes first.
    fn start(sandbox: &Sandbox) -> Raw {
        let mut command = process::Command::new(sandbox.home().join("bin/qmail-rspawn"));
        if sandbox.identity().changes() {
            command.uid(sandbox.identity().uid()).gid(sandbox.identity().gid());
        }
        let mut child = command
            .env("PATH", sandbox.home().join("bin"))
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let input = child.stdin.take();
        let output = child.stdout.take().unwrap();
        let pid = child.id().to_string();
        let (alive, watched) = mpsc::channel();
        std::thread::spawn(move || {
            while match watched.recv_timeout(IDLE) {
                Ok(()) => true,
                Err(RecvTimeoutError::Disconnected) => false,
                Err(RecvTimeoutError::Timeout) => {
                    run(process::Command::new("sh").args(["-c", "kill -KILL $0", &pid]));
                    false
                }
            } {
                // It goes on.
            }
        });
        let mut raw = Raw { child, input, output, bytes: vec![0; 2], read: 2, alive };
        raw.output.read_exact(&mut raw.bytes).unwrap();
        raw
    }

    fn write(&mut self, bytes: &[u8]) {
        self.input.as_mut().unwrap().write_all(bytes).unwrap();
    }

    /// The next report.
    fn report(&mut self) -> Report {
        loop {
            if let Some((report, len)) = Report::decode(&self.bytes[self.read..], Width::Two) {
                self.read += len;
                self.alive.send(()).unwrap();
                return report;
            }
            let mut byte = [0];
            self.output.read_exact(&mut byte).unwrap_or_else(|e| panic!("no report: {e}"));
            self.bytes.push(byte[0]);
        }
    }

    /// Ends its input, and returns all that it has written.
    fn end(mut self) -> Vec<u8> {
        self.input = None;
        self.output.read_to_end(&mut self.bytes).unwrap();
        assert_eq!(self.child.wait().unwrap().code(), Some(0));
        self.bytes
    }
}

#[test]
fn a_held_delivery_does_not_start_in_the_middle_of_a_command() {
    let mut rig = gated(&["qmail-rspawn"], &format!("{BUSY}:1\n"), 200);
    rig.stubs.forget();
    rig.stubs.hold("first").unwrap();
    let message = rig.message.relative();
    let command = |number, recipient: String| {
        let sender = SENDER.to_owned();
        Command { number, message: message.clone(), sender, recipient }.encode(Width::Two)
    };
    let mut raw = Raw::start(&rig.sandbox);
    raw.write(&command(1, stub::recipient(Mode::Accept, Some("first"), "first", BUSY)));
    raw.write(&command(2, stub::recipient(Mode::Defer, None, "second", BUSY)));
    let third = command(3, stub::recipient(Mode::Bounce, None, "third", "elsewhere.example"));
    // Cut in its number, in its message, in its sender and in its recipient.
    for cut in [1, 4, third.len() / 2, third.len() - 5] {
        raw.write(&third[..cut]);
        rig.stubs.release("first").unwrap();
        let report = raw.report();
        assert_eq!((report.number, report.letter), (1, b'K'), "{report:?}");
        raw.write(&third[cut..]);
        // In either order: the third is started before the second, but they run at the same time.
        let mut reports = [raw.report(), raw.report()];
        reports.sort_by_key(|report| report.number);
        let [second, third_report] = &reports;
        assert_eq!((second.number, second.letter), (2, b'Z'), "{reports:?}");
        assert!(second.text.contains("z-none-second@busy.example"), "{reports:?}");
        assert_eq!((third_report.number, third_report.letter), (3, b'D'), "{reports:?}");
        assert!(third_report.text.contains("d-none-third@elsewhere.example"), "{reports:?}");
        // Once more.
        rig.stubs.hold("first").unwrap();
        raw.write(&command(1, stub::recipient(Mode::Accept, Some("first"), "first", BUSY)));
        raw.write(&command(2, stub::recipient(Mode::Defer, None, "second", BUSY)));
    }
    rig.stubs.release("first").unwrap();
    raw.report();
    raw.report();
    raw.end();
}

#[test]
fn without_limits_the_pipes_carry_the_same_bytes_as_without_the_gate() {
    for dialect in Dialect::ALL {
        let mut seen = Vec::new();
        for gate in [Gate::Out, Gate::In] {
            let fixture = patched(dialect, gate);
            let rig = Rig::of(fixture.path(), &config(1000, &[]), &["qmail-rspawn"]).unwrap();
            rig.sandbox.write(&rig.sandbox.home().join("queue/lock/gatestatus"), b"").unwrap();
            rig.sandbox
                .set_control("smtproutes", "busy.example:relay.example\n:other.example\n")
                .unwrap();
            let message = rig.message.relative();
            let mut commands = Vec::new();
            let mut push = |number, message: &str, recipient: String| {
                commands.push(Command {
                    number,
                    message: message.to_owned(),
                    sender: SENDER.to_owned(),
                    recipient,
                });
            };
            for (at, mode) in Mode::ALL.into_iter().enumerate() {
                for number in [at as u32, 255, 256, 999] {
                    push(number, &message, stub::recipient(mode, None, number, BUSY));
                }
            }
            let good = || stub::recipient(Mode::Accept, None, 1, BUSY);
            for number in [0, 999, 1000, 32768, 65535] {
                push(number, &message, good());
                push(number, "x/1", good());
                push(number, "", good());
                push(number, &"1".repeat(120), good());
                push(number, "0/999999999999", good());
                push(number, &message, "nobody".to_owned());
                push(number, &message, String::new());
                push(number, &message, "k-none-1@[127.0.0.1]".to_owned());
                push(number, &message, format!("k-none-1@{}.example.", "x".repeat(1000)));
                push(number, &message, "k-none-1@".to_owned());
            }
            // One at a time, because deliveries that run at the same time end in any order.
            let mut raw = Raw::start(&rig.sandbox);
            for command in &commands {
                raw.write(&command.encode(Width::Two));
                let report = raw.report();
                assert_eq!(report.number, command.number, "{command:?}: {report:?}");
            }
            seen.push(raw.end());
        }
        assert!(seen[0] == seen[1], "{}", dialect.name());
    }
}

/// A mail in the queue.
fn queue(sandbox: &Sandbox, recipient: &str) {
    sandbox.queue_message(BODY, SENDER, &[recipient.to_owned()]).unwrap();
}

/// The names of files below some folders of the queue.
fn left_in(sandbox: &Sandbox, folders: &[&str]) -> Vec<PathBuf> {
    let mut open: Vec<PathBuf> =
        folders.iter().map(|folder| sandbox.home().join("queue").join(folder)).collect();
    let mut files = Vec::new();
    while let Some(path) = open.pop() {
        if path.is_dir() {
            open.extend(fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path()));
        } else {
            files.push(path);
        }
    }
    files
}

/// The recipients that are still to be tried, by queue/remote.
fn waiting(sandbox: &Sandbox) -> BTreeSet<String> {
    let mut waiting = BTreeSet::new();
    for file in left_in(sandbox, &["remote"]) {
        for record in fs::read(file).unwrap().split(|byte| *byte == 0) {
            if let Some((b'T', address)) = record.split_first() {
                waiting.insert(String::from_utf8(address.to_vec()).unwrap());
            }
        }
    }
    waiting
}

fn ended(stubs: &Stubs, wanted: impl Fn(&StubEvent) -> bool) -> usize {
    stubs.events().iter().filter(|event| event.kind == StubEventKind::End && wanted(event)).count()
}

#[test]
fn qmail_send_stops_soon_with_held_deliveries_and_loses_nothing() {
    const LIMIT: usize = 5;
    let mut rig = gated(&sendrig::PROGRAMS, &format!("{BUSY}:{LIMIT}\n"), 60);
    let Rig { sandbox, stubs, .. } = &mut rig;
    stubs.forget();
    stubs.hold("stop").unwrap();
    let mut all = BTreeSet::new();
    for number in 0..100 {
        let recipient = stub::recipient(Mode::Accept, Some("stop"), number, BUSY);
        queue(sandbox, &recipient);
        all.insert(recipient);
    }
    for number in 0..20 {
        let domain = format!("other{number}.example");
        let recipient = stub::recipient(Mode::Accept, None, number, &domain);
        queue(sandbox, &recipient);
        all.insert(recipient);
    }
    let mut send = SendRig::start(sandbox, Spawners::Own).unwrap();
    send.wait(stubs, "all mail to be tried", |send, stubs| {
        Ok(ended(stubs, |event| event.domain() != BUSY) == 20 && send.log().deliveries.len() >= 120)
    })
    .unwrap();
    // Each of the 100 runs, is held, or is away.
    let status = status(sandbox, "all 100 to be accounted for", |status| {
        let key = status.keys.iter().find(|key| key.name == BUSY);
        key.is_some_and(|key| key.running == 5 && key.held + key.away == 95 && key.held > 5)
    });
    let held = status.held as usize;
    send.terminate().unwrap();
    stubs.release("stop").unwrap();
    let stopped = Instant::now();
    // Held deliveries run when the places become free. If they waited for the time limit of a hold, nothing would
    // happen for nearly a minute.
    send.set_idle(Duration::from_secs(45));
    let log = send.wait_exit(stubs).unwrap();
    let seconds = stopped.elapsed().as_secs_f64();
    let delivered: BTreeSet<String> = stubs
        .events()
        .iter()
        .filter(|event| event.kind == StubEventKind::End)
        .map(|event| event.recipient.clone())
        .collect();
    assert!(delivered.len() >= 20 + LIMIT + held, "{} delivered, {held} held", delivered.len());
    let left = waiting(sandbox);
    assert!(left.is_disjoint(&delivered));
    assert_eq!(&left | &delivered, all);
    assert_eq!(log.ended, log.deliveries.len());
    assert!(left.len() >= LIMIT, "{} left", left.len());

    // Mail that was away is tried after the restart; at once with SIGALRM. (Messages that are done may still be in the
    // queue: qmail-send stopped before it had removed them.)
    let messages = left_in(sandbox, &["info"]).len();
    assert!(messages >= left.len());
    let mut send = SendRig::start(sandbox, Spawners::Own).unwrap();
    send.set_idle(Duration::from_secs(150));
    send.wait(stubs, "the rest of the mail", |send, _| {
        // Its first status line comes when it has set up its signals; and one at a time is enough.
        let log = send.log();
        if log.limit("remote") > 0 && log.deliveries.len() == log.ended {
            send.process().signal(libc::SIGALRM)?;
        }
        Ok(send.log().ended_messages >= messages)
    })
    .unwrap();
    send.terminate().unwrap();
    send.wait_exit(stubs).unwrap();
    assert_eq!(ended(stubs, |_| true), all.len());
    assert_eq!(peak(stubs.events(), |event| event.domain() == BUSY), LIMIT);
    assert_eq!(
        left_in(sandbox, &["info", "remote", "local", "bounce", "todo"]),
        [] as [PathBuf; 0]
    );
    tell(format_args!(
        "SIGTERM with {LIMIT} running, {held} held and {} away: exit after {seconds:.2} s",
        left.len()
    ));
}

/// What the heavy test measures about the mail to other domains.
struct Others {
    /// From qmail-send's start to the end of the last mail that was queued with the busy domain's.
    batch: Took,
    /// From queueing to the end of the delivery, for mails that came later, one by one; the median.
    single: Took,
}

/// How long something took.
#[derive(Clone, Copy, PartialEq, PartialOrd)]
struct Took {
    /// In deliveries to the busy domain that ended in the meantime: this does not depend on other load.
    busy: usize,
    seconds: f64,
}

/// With 50 ms for each and 20 at a time it takes 13 s, or what two processors need to start so many: 25 s.
const TO_BUSY: usize = 5000;
const TO_OTHERS: usize = 500;
const LIMIT: usize = 20;

/// How many mails to other domains come one by one while the busy domain's are delivered.
const SINGLES: usize = 100;

/// How long a delivery takes, in milliseconds.
const SERVICE_MS: u32 = 50;

fn to_busy(number: usize) -> String {
    format!("k-{SERVICE_MS}-{number}@{BUSY}")
}

fn to_other(number: usize) -> String {
    format!("k-{SERVICE_MS}-{number}@other{}.example", number % 50)
}

/// Delivers `busy` mails to the busy domain, and all those to others.
fn deliver(sandbox: &Sandbox, stubs: &mut Stubs, busy: usize, others: usize) -> (Others, Log) {
    stubs.forget();
    let mut recipients: Vec<String> = (0..busy).map(to_busy).collect();
    recipients.extend((0..others - SINGLES).map(to_other));
    Random::new(7).shuffle(&mut recipients);
    for recipient in &recipients {
        queue(sandbox, recipient);
    }
    // qmail-send reads all new messages first, so that this is not measured.
    sandbox.set_control("concurrencyremote", "0\n").unwrap();
    let mut send = SendRig::start(sandbox, Spawners::Own).unwrap();
    send.wait(stubs, "the queue to be read", |send, _| {
        Ok(send.log().new_messages >= recipients.len())
    })
    .unwrap();
    send.terminate().unwrap();
    send.wait_exit(stubs).unwrap();

    sandbox.set_control("concurrencyremote", "500\n").unwrap();
    let total = busy + others;
    let mut seen = 0;
    let mut ends: HashMap<String, u64> = HashMap::new();
    let mut queued: HashMap<String, (Instant, usize)> = HashMap::new();
    let mut times: Vec<Took> = Vec::new();
    let mut next = others - SINGLES;
    let mut others_done = 0;
    let started = Instant::now();
    let mut batch = Took { busy: 0, seconds: 0.0 };
    let mut progress = Watchdog::default();
    let mut send = SendRig::start(sandbox, Spawners::Own).unwrap();
    send.set_idle(Duration::from_secs(150));
    send.wait(stubs, "all mail", |send, stubs| {
        // A deadline: mail that goes away again and again would look like progress.
        progress.check(ends.len(), || "deliveries that have ended".to_owned())?;
        for event in &stubs.events()[seen..] {
            if event.kind == StubEventKind::Start {
                continue;
            }
            assert!(
                ends.insert(event.recipient.clone(), event.at_ns).is_none(),
                "{event:?}: twice"
            );
            if event.domain() == BUSY {
                continue;
            }
            others_done += 1;
            let busy_done = ends.len() - others_done;
            match queued.remove(&event.recipient) {
                Some((queued, before)) => times.push(Took {
                    busy: busy_done - before,
                    seconds: queued.elapsed().as_secs_f64(),
                }),
                None => batch = Took { busy: busy_done, seconds: started.elapsed().as_secs_f64() },
            }
        }
        seen = stubs.events().len();
        // The next mail comes alone, when all mails before it are done.
        if next < others && others_done == next {
            let recipient = to_other(next);
            next += 1;
            queued.insert(recipient.clone(), (Instant::now(), ends.len() - others_done));
            queue(sandbox, &recipient);
            pull_trigger(sandbox)?;
        }
        Ok(send.log().ended_messages >= total)
    })
    .unwrap();
    send.terminate().unwrap();
    let log = send.wait_exit(stubs).unwrap();
    assert_eq!(ends.len(), total);
    times.sort_by(|a, b| a.partial_cmp(b).unwrap());
    (Others { batch, single: times[times.len() / 2] }, log)
}

#[test]
fn a_busy_domain_stays_below_its_limit_and_holds_up_no_other() {
    let mut rig = gated(&sendrig::PROGRAMS, &format!(":{LIMIT}\n"), 500);
    let Rig { sandbox, stubs, .. } = &mut rig;
    let (alone, _) = deliver(sandbox, stubs, 0, TO_OTHERS);
    assert_eq!(
        left_in(sandbox, &["info", "remote", "local", "bounce", "todo"]),
        [] as [PathBuf; 0]
    );

    let started = Instant::now();
    let (mixed, log) = deliver(sandbox, stubs, TO_BUSY, TO_OTHERS);
    let seconds = started.elapsed().as_secs_f64();
    assert_eq!(
        left_in(sandbox, &["info", "remote", "local", "bounce", "todo"]),
        [] as [PathBuf; 0]
    );
    let most = peak(stubs.events(), |event| event.domain() == BUSY);
    assert_eq!(most, LIMIT);

    // In qmail-send's log, too: one success for each, and otherwise only busy answers.
    let mut successes: HashMap<&str, usize> = HashMap::new();
    let mut busy_answers = 0;
    for delivery in log.deliveries.values() {
        let outcome = delivery.outcome.as_ref().unwrap();
        match outcome.letter {
            b'K' => *successes.entry(delivery.recipient.as_str()).or_default() += 1,
            b'Z' if outcome.text.starts_with("busy.example_is_at_its_limit_of_20_deliveries;") => {
                busy_answers += 1;
            }
            _ => panic!("{delivery:?}"),
        }
    }
    for recipient in (0..TO_BUSY).map(to_busy).chain((0..TO_OTHERS).map(to_other)) {
        assert_eq!(successes.get(logged(&recipient).as_str()), Some(&1), "{recipient}");
    }
    assert_eq!(successes.len(), TO_BUSY + TO_OTHERS);

    tell(format_args!(
        "{TO_BUSY} deliveries to one domain with a limit of {LIMIT}, {TO_OTHERS} to fifty others: {seconds:.0} s, peak \
         {most}, {:.2} busy answers a mail; others: in the same queue {:.2} s instead of {:.2} s, while {} of the busy \
         domain's ended; one by one {:.0} ms instead of {:.0} ms, while {} ended",
        busy_answers as f64 / TO_BUSY as f64,
        mixed.batch.seconds,
        alone.batch.seconds,
        mixed.batch.busy,
        mixed.single.seconds * 1000.0,
        alone.single.seconds * 1000.0,
        mixed.single.busy,
    ));
    // The busy domain's deliveries share the two processors, so this tests only the order of magnitude: if the gate did
    // not keep slots for other domains, their mail would wait for all of the busy domain's.
    let (batch, single) = (mixed.batch.busy, mixed.single.busy);
    assert!(batch < TO_BUSY / 2, "the batch was done after {batch} of the busy domain's");
    assert!(single < 10 * LIMIT, "a single mail took as long as {single} of the busy domain's");
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

/// qmail-send's log says so if something else than the control file counts.
#[test]
fn the_log_says_at_the_start_that_only_the_good_lines_count() {
    let mut rig = gated(&sendrig::PROGRAMS, ":20\nx.example:nonsense\n", 100);
    let Rig { sandbox, stubs, .. } = &mut rig;
    stubs.forget();
    let mut send = SendRig::start(sandbox, Spawners::Own).unwrap();
    send.wait(stubs, "a line in the log", |send, _| Ok(!send.log().complaints.is_empty())).unwrap();
    send.terminate().unwrap();
    let log = send.wait_exit(stubs).unwrap();
    assert_eq!(
        log.complaints,
        [
            "warning: control/concurrencydomains:2:11: the limit is not a number (empty means unlimited); no earlier one \
          without errors is known: its good lines count, and a limit of 20 for all other domains"
        ]
    );
}
