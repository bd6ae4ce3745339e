//! Builds the patched fixtures with their own Makefiles and runs them over their own pipes, at 1000, 20000 and 65000.
//! Also shows the failures of trees without qpatch.

mod common;
#[path = "common/rig.rs"]
mod rig;
#[path = "common/trees.rs"]
mod trees;

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use common::Fixture;
use qpatch::fixture::Dialect;
use qpatch::verify::build;
use qpatch::verify::error::{Disproof, Error};
use qpatch::verify::proofs::{fdset, spawner_trials};
use qpatch::verify::rig::numbers::Random;
use qpatch::verify::rig::protocol::{Command, Width};
use qpatch::verify::rig::sendrig::{SendRig, Spawners, pull_trigger};
use qpatch::verify::rig::spawner::{Channel, Spawner};
use qpatch::verify::rig::stub::{self, Mode};
use qpatch::verify::sandbox::SandboxConfig;
use qpatch::verify::{self, CatchSignals, Options, Part, Silent, StepVerdict};
use qpatch_test_support::{has, tell, write_script};
use rig::{Rig, config, running_below, sandbox};
use trees::{Gate, classic, patched};

/// As distributions with hardened builds compile (Ubuntu's gcc does so by default).
const FORTIFY: [&str; 2] = ["-U_FORTIFY_SOURCE", "-D_FORTIFY_SOURCE=3"];

/// The deliveries at the same time: more than twice the 509 that FD_SETSIZE 1024 has room for.
const CROWD: u32 = 1200;

/// What of a whole proof [`runs`] does not ask of a dialect. The whole proof of stock-kr is that of `qpatch demo`, in
/// readme.rs.
const REST: [Part; 6] =
    [Part::Chkspawn, Part::FdSet, Part::Mail, Part::Restart, Part::Gate, Part::ForkServer];

/// Runs the steps `options.only`. None may fail or be left out, and conf-spawn deliveries run at once.
fn proved(fixture: &Fixture, options: Options) {
    let options = Options { seed: Some(1), ..options };
    let outcome = verify::run(fixture.path(), &options, &mut Silent).unwrap();
    let lines: String = outcome.steps.iter().map(|step| format!("{step}\n")).collect();
    assert!(outcome.ok(), "{lines}");
    for part in &options.only {
        let name = part.name();
        let step = outcome.steps.iter().find(|step| step.name == name);
        assert_eq!(step.map(|step| step.verdict), Some(StepVerdict::Pass), "{name}:\n{lines}");
    }
    if options.only.contains(&Part::Rspawn) {
        assert_eq!(outcome.at_once(), Some(outcome.spawn.into()), "{lines}");
    }
    for note in outcome.steps.iter().flat_map(|step| &step.notes) {
        tell(note);
    }
    tell(outcome.summary());
}

#[test]
fn stock_ansi_is_proved_at_1000() {
    let options = Options { only: REST.to_vec(), ..Options::default() };
    proved(&patched(Dialect::StockAnsi, Gate::In), options);
}

#[test]
fn two_byte_is_proved_at_1000() {
    let options = Options { only: REST.to_vec(), ..Options::default() };
    proved(&patched(Dialect::TwoByte, Gate::In), options);
}

/// The compiler that builds a tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Compiler {
    Own,
    Fortifying,
    Clang,
}

/// What qmail-send must do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Send {
    Nothing,
    EveryNumber,
}

/// Every dialect runs at every size, with the gate and without, and with every compiler, but not in all combinations:
/// two sizes differ in one number in one object, and the gate does not change how qmail-send handles numbers. `largest`
/// says whether the gate is in at the largest size.
fn runs(dialect: Dialect, largest: Gate) {
    for (spawn, gate, compiler, send) in [
        (1000, Gate::Out, Compiler::Clang, Send::Nothing),
        (20000, Gate::In, Compiler::Own, Send::Nothing),
        (65000, largest, Compiler::Fortifying, Send::EveryNumber),
    ] {
        let what = format!("{} at {spawn}, gate {gate:?}, compiler {compiler:?}", dialect.name());
        if compiler == Compiler::Clang && !has("clang") {
            continue;
        }
        let fixture = patched(dialect, gate);
        let config = match compiler {
            Compiler::Own => config(spawn, &[]),
            Compiler::Fortifying => config(spawn, &FORTIFY),
            Compiler::Clang => SandboxConfig { cc: Some("clang".to_owned()), ..config(spawn, &[]) },
        };
        let mut rig = Rig::build(fixture.path(), &config).unwrap_or_else(|e| panic!("{what}: {e}"));
        let remote = rig.crowd(Channel::Remote, CROWD).unwrap_or_else(|e| panic!("{what}: {e}"));
        let local = rig.crowd(Channel::Local, 600).unwrap_or_else(|e| panic!("{what}: {e}"));
        let mut told = format!("{what}: {remote} remote and {local} local deliveries at once");
        if send == Send::EveryNumber {
            let sent = rig.every_number().unwrap_or_else(|e| panic!("{what}: {e}"));
            assert_eq!(sent.peak_remote, spawn as usize, "{what}");
            told.push_str(&format!(", {} numbers of qmail-send", sent.peak_remote));
        }
        tell(told);
    }
}

#[test]
fn stock_kr_runs_at_every_size() {
    runs(Dialect::StockKr, Gate::In);
}

#[test]
fn stock_ansi_runs_at_every_size() {
    runs(Dialect::StockAnsi, Gate::Out);
}

#[test]
fn two_byte_runs_at_every_size() {
    runs(Dialect::TwoByte, Gate::In);
}

/// Stops qmail-send, qmail-clean and the relays for a while in turns, each at an arbitrary point, with the smallest
/// pipes, which are full on both sides. Meanwhile other proofs of this process end.
#[test]
fn programs_that_stand_still_for_a_while_stop_no_trial() {
    for gate in [Gate::Out, Gate::In] {
        let fixture = patched(Dialect::StockKr, gate);
        let mut rig = Rig::build(fixture.path(), &config(1000, &[])).unwrap();
        let dir = rig.sandbox.home().parent().unwrap().to_path_buf();
        let done = AtomicBool::new(false);
        let stops = std::thread::scope(|scope| {
            let stopper = scope.spawn(|| {
                let mut stops = 0;
                while !done.load(Ordering::Relaxed) {
                    for (pid, _) in running_below(&dir) {
                        // The process may have ended since.
                        let script = format!("kill -STOP {pid} && sleep 0.01; kill -CONT {pid}");
                        stops += u32::from(
                            common::run(std::process::Command::new("sh").args(["-c", &script]))
                                .code
                                == 0,
                        );
                    }
                }
                stops
            });
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    let guard = CatchSignals::install().unwrap();
                    std::thread::sleep(Duration::from_millis(10));
                    drop(guard);
                }
            });
            let sent = rig.every_number();
            done.store(true, Ordering::Relaxed);
            assert_eq!(sent.unwrap().peak_remote, 1000, "{gate:?}");
            stopper.join().unwrap()
        });
        // Each of the programs at least once.
        assert!(stops >= 5, "{stops}");
    }
}

/// qmail-send looks whether SIGTERM came, prepares its sets, and then waits in select. A signal that comes in between
/// ends nothing until select returns, which may take a day. That is so in qmail-1.03, too. The rig repeats the signal.
#[test]
fn a_signal_just_before_select_is_repeated() {
    let fixture = patched(Dialect::StockKr, Gate::Out);
    let mut rig = Rig::build(fixture.path(), &config(1000, &[])).unwrap();
    let dir = rig.sandbox.rig().join("late");
    fs::create_dir(&dir).unwrap();
    fs::set_permissions(&dir, Permissions::from_mode(0o777)).unwrap();
    let [late, armed, ready] = ["late.so", "armed", "ready"].map(|name| dir.join(name));
    common::run(
        std::process::Command::new("cc")
            .args(["-O2", "-shared", "-fPIC", "-o"])
            .arg(&late)
            .arg(format!("-DARMED=\"{}\"", armed.display()))
            .arg(format!("-DREADY=\"{}\"", ready.display()))
            .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/c/late_select.c")),
    )
    .ok();
    let program = rig.sandbox.home().join("bin/qmail-send");
    let real = program.with_extension("real");
    fs::rename(&program, &real).unwrap();
    let script = format!("#!/bin/sh\nLD_PRELOAD={} exec {}\n", late.display(), real.display());
    write_script(&program, &script);
    let mut send = SendRig::start(&rig.sandbox, Spawners::Own).unwrap();
    send.wait(&mut rig.stubs, "the first status", |send, _| Ok(send.log().limit("remote") > 0))
        .unwrap();
    rig.sandbox.write(&armed, b"").unwrap();
    pull_trigger(&rig.sandbox).unwrap();
    let end = Instant::now() + Duration::from_secs(60);
    while !ready.exists() {
        assert!(Instant::now() < end, "qmail-send did not come to a long select");
        std::thread::sleep(Duration::from_millis(10));
    }
    send.terminate().unwrap();
    send.set_idle(Duration::from_secs(20));
    send.wait_exit(&mut rig.stubs).unwrap();
}

/// Builds the tree's own chkspawn, and returns its message if it refuses conf-spawn.
fn chkspawn_says(fixture: &Fixture, spawn: u32) -> Option<String> {
    let (_scratch, sandbox) = sandbox(fixture.path(), &config(spawn, &[])).unwrap();
    build::make(&sandbox, &["chkspawn"]).unwrap();
    let said = build::chkspawn(&sandbox).unwrap();
    // The build stops where chkspawn does.
    if said.is_some() {
        let stopped = build::make(&sandbox, &["spawn.o"]).unwrap_err().to_string();
        assert!(stopped.contains("Oops."), "{stopped}");
    }
    said
}

#[test]
fn chkspawn_still_refuses_what_does_not_fit() {
    for dialect in Dialect::ALL {
        let fixture = patched(dialect, Gate::Out);
        let said = chkspawn_says(&fixture, 65001).unwrap();
        assert!(said.starts_with("Oops. You have set conf-spawn higher than 65000."), "{said}");
        for header in ["select.h1", "select.h2"] {
            fixture.replace(header, "#define SELECT_FDS 131072\n", "#define SELECT_FDS 65536\n");
        }
        let said = chkspawn_says(&fixture, 65000).unwrap();
        assert!(said.contains("hidden limit of 65536"), "{said}");
        assert!(said.contains("32765"), "{said}");
        assert!(chkspawn_says(&fixture, 32766).is_some());
        assert_eq!(chkspawn_says(&fixture, 32765), None);
    }
}

/// musl's fd_set always has 1024 bits, so the tree has its own there.
#[test]
fn where_fd_setsize_is_fixed_the_tree_has_an_fd_set_of_its_own() {
    if !has("musl-gcc") {
        return;
    }
    let musl = "musl-gcc";
    for dialect in Dialect::ALL {
        let fixture = patched(dialect, Gate::Out);
        let config = SandboxConfig { cc: Some(musl.to_owned()), ..config(65000, &FORTIFY) };
        let mut rig = Rig::build(fixture.path(), &config).unwrap();
        let fd_sets = fdset::measure(&rig.sandbox).unwrap();
        assert_eq!(fd_sets.check(65000).unwrap(), Some(131_072), "{fd_sets:?}");
        let remote = rig.crowd(Channel::Remote, CROWD).unwrap();
        let local = rig.crowd(Channel::Local, 600).unwrap();
        tell(format_args!("{}, musl: {remote} and {local} deliveries at once", dialect.name()));
    }
    // More commands than fit into one read, so that some are still unread when no descriptor is left.
    let options = Options {
        spawn: Some(1200),
        cc: Some(musl.to_owned()),
        only: vec![
            Part::Chkspawn,
            Part::FdSet,
            Part::Rspawn,
            Part::Lspawn,
            Part::Numbers,
            Part::Mail,
            Part::Restart,
        ],
        ..Options::default()
    };
    proved(&patched(Dialect::StockKr, Gate::Out), options);
}

/// gcc 14 makes errors of these by default. In gnu89 mode, where `-fpermissive` is the default, it makes errors of none
/// (its own test gcc.dg/permerror-gnu89.c says so), and clang 16 only of the last two.
const ERRORS_OF_GCC_14: [&str; 4] = [
    "-Werror=implicit-function-declaration",
    "-Werror=implicit-int",
    "-Werror=incompatible-pointer-types",
    "-Werror=int-conversion",
];

#[test]
fn the_errors_of_new_compilers_do_not_stop_the_build() {
    // The compiler's own default comes first, and the tree's -std after it.
    let modern = |spawn: u32, std: &str| SandboxConfig {
        spawn: Some(spawn),
        cc: Some(format!("gcc -std={std} {}", ERRORS_OF_GCC_14.join(" "))),
        ..SandboxConfig::default()
    };
    // Not stock-kr, which fails to build for other reasons.
    let old = Fixture::new(Dialect::TwoByte);
    let (_scratch, unpatched) = sandbox(old.path(), &modern(500, "gnu17")).unwrap();
    let stopped = build::make(&unpatched, &["spawn.o"]).unwrap_err().to_string();
    assert!(stopped.contains("[-Werror=implicit-"), "{stopped}");

    for dialect in Dialect::ALL {
        let fixture = patched(dialect, Gate::In);
        let config = match dialect {
            // conf-cc names no standard, so all of gcc 14's errors count.
            Dialect::StockAnsi => modern(1000, "gnu17"),
            Dialect::StockKr | Dialect::TwoByte => config(1000, &ERRORS_OF_GCC_14[2..]),
        };
        let (_scratch, sandbox) = sandbox(fixture.path(), &config).unwrap();
        build::make(&sandbox, &["qmail-rspawn", "qmail-lspawn", "qmail-send", "chkspawn"])
            .unwrap_or_else(|e| panic!("{}: {e}", dialect.name()));
    }
}

fn disproof(error: Error) -> Disproof {
    match error {
        Error::Disproved(disproof) => *disproof,
        other => panic!("{other}"),
    }
}

/// A failure without qpatch: the classic patch with its recipe builds at 40000, and chkspawn accepts it, but every
/// delivery number from 32768 on is lost.
#[test]
fn without_qpatch_delivery_number_32768_is_negative() {
    let fixture = classic();
    let mut rig = Rig::build(fixture.path(), &config(40000, &[])).unwrap();
    let Rig { sandbox, stubs, message, .. } = &mut rig;
    let mut spawner = Spawner::start(sandbox, stubs, Channel::Remote).unwrap();
    assert_eq!((spawner.width(), spawner.announced()), (Width::Two, 40000));
    let mut at_once = |numbers: &[u32]| {
        let random = &mut Random::new(1);
        spawner_trials::at_once(&mut spawner, stubs, *message, numbers, random, &mut |_, _| {})
    };
    assert_eq!(at_once(&[0, 255, 256, 509, 1023, 1024, 32767]).unwrap(), 7);
    let wrong = disproof(at_once(&[32767, 32768]).unwrap_err());
    assert_eq!(wrong.what, "qmail-rspawn, delivery number 32768");
    assert!(wrong.found.contains("delivery number negative"), "{wrong}");

    let wrong = disproof(rig.every_number().unwrap_err());
    assert_eq!(wrong.what, "qmail-send, the reports of delivery numbers 32768 to 39999");
    assert!(wrong.found.contains("report out of range"), "{wrong}");
}

/// Another failure without qpatch: under `_FORTIFY_SOURCE` the C library aborts at its own limit of 1024, whatever
/// select.h says.
#[test]
fn without_qpatch_a_fortified_spawner_aborts_at_descriptor_1024() {
    let fixture = classic();
    let mut rig = Rig::build(fixture.path(), &config(1000, &FORTIFY)).unwrap();
    let Rig { sandbox, stubs, message, .. } = &mut rig;
    let mut spawner = Spawner::start(sandbox, stubs, Channel::Remote).unwrap();
    stubs.forget();
    stubs.hold("all").unwrap();
    for number in 0..1000 {
        spawner.send(&Command {
            number,
            message: message.relative(),
            sender: "sender@sender.example".to_owned(),
            recipient: stub::recipient(Mode::Accept, Some("all"), number, "remote.example"),
        });
        let waited = spawner.wait(stubs, "one more delivery", |seen| {
            seen.started > number as usize || seen.reports > 0
        });
        match waited {
            Ok(()) => assert!(spawner.take_reports().is_empty(), "a delivery was refused"),
            Err(Error::Died { how, .. }) => {
                assert_eq!(how, "signal 6 (abort)");
                // Delivery n uses descriptor 2n + 2, or one a little above. The start of its child may be seen before
                // the spawner calls select, so that the next delivery is the one that fails.
                assert!((508..=512).contains(&number), "it aborted at delivery {number}");
                return;
            }
            Err(other) => panic!("{other}"),
        }
    }
    panic!("it did not abort");
}
