//! qmail-rspawn by itself: numbers of deliveries, changed limits and rates, places that come back, and the minute that
//! a hold lasts.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process;
use std::time::Instant;

use qpatch::fixture::Dialect;
use qpatch::verify::proofs::gate;
use qpatch::verify::rig::numbers::{self, Random};
use qpatch::verify::rig::protocol::{Command, Report};
use qpatch::verify::rig::sendrig;
use qpatch::verify::rig::stub::{self, Mode, StubEventKind};
use qpatch::verify::sandbox::private_tree::Sandbox;
use qpatch_gate::table::Limit;
use qpatch_test_support::{skip, write_script};

use super::{
    BUSY, SENDER, Spawning, domains, furnish, gated, gated_of, limit_of, set_limits, status,
};
use crate::common::run;
use crate::rig::{Rig, config};
use crate::trees::{Gate, patched};

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
    let gated =
        gate::prove(sandbox, stubs, u32::MAX, 0, &mut Random::new(1), &mut |_, _| {}).unwrap();
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
