//! `gate simulate` on the log of a server with a gate. With the same limits the result has the times of the log; with
//! higher limits it has the times of a server with these. The logs are real: those of the fixture's programs, and of
//! the trees in QMAIL_TREES.

mod common;
#[path = "common/rig.rs"]
mod rig;
#[path = "common/trees.rs"]
mod trees;

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::Command;
use std::sync::mpsc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use common::{copy, real_trees, run};
use qpatch::fixture::Dialect;
use qpatch::verify::rig::sendrig;
use qpatch::verify::rig::spawner::IDLE;
use qpatch::verify::rig::stub::{self, Mode};
use qpatch_test_support::tell;
use rig::{Rig, config, furnish};
use serde_json::Value;
use trees::{Gate, patched};

const BUSY: &str = "busy.example";
const LIMIT: u32 = 5;
const MAILS: usize = 60;
const EACH_MS: &str = "400";

/// The log of `MAILS` mails to one domain, each line with the time at which it was read, as multilog writes it.
fn log_of(tree: &Path, concurrency_remote: u32) -> String {
    let rig = Rig::of(tree, &config(120, &[]), &sendrig::PROGRAMS).unwrap();
    let sandbox = &rig.sandbox;
    furnish(sandbox, &format!(":{LIMIT}\n"), concurrency_remote);
    for number in 0..MAILS {
        let recipient = stub::recipient(Mode::Accept, Some(EACH_MS), number, BUSY);
        sandbox.queue_message(b"Subject: x\n\nx\n", "sender@sender.example", &[recipient]).unwrap();
    }
    let (reader, process) = sendrig::start_own(sandbox).unwrap();
    let (send, lines) = mpsc::channel();
    let reading = std::thread::spawn(move || {
        for line in BufReader::new(reader).lines() {
            let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
            let secs = now.as_secs() + 10 + (1 << 62);
            let line = format!("@{secs:016x}{:08x} {}\n", now.subsec_nanos(), line.unwrap());
            if send.send(line).is_err() {
                return;
            }
        }
    });
    let mut log = String::new();
    let mut done = 0;
    while done < MAILS {
        let line = lines.recv_timeout(IDLE).unwrap_or_else(|error| panic!("{error}:\n{log}"));
        done += usize::from(line.contains(": success: "));
        log.push_str(&line);
    }
    process.signal(libc::SIGTERM).unwrap();
    while let Ok(line) = lines.recv_timeout(Duration::from_secs(60)) {
        log.push_str(&line);
    }
    reading.join().unwrap();
    log
}

fn simulated(log: &str, limit: u32) -> Value {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("log"), log).unwrap();
    fs::write(dir.path().join("limits"), format!(":{limit}\n")).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_qpatch"));
    command.args(["gate", "simulate", "limits", "--log", "log", "--format", "json"]);
    let out = run(command.current_dir(dir.path()));
    assert_eq!(out.code, 0, "{}", out.err);
    serde_json::from_str(&out.out).unwrap()
}

/// The seconds between the first start and the last success in the log.
fn whole_secs(log: &str) -> f64 {
    let secs = |line: &str| {
        let hex = |range| u64::from_str_radix(&line[range], 16).unwrap();
        (hex(1..17) - (1 << 62)) as f64 + hex(17..25) as f64 / 1e9
    };
    let first = log.lines().find(|line| line.contains("starting delivery ")).unwrap();
    let last = log.lines().rfind(|line| line.contains(": success: ")).unwrap();
    secs(last) - secs(first)
}

fn check(what: &str, tree: &Path) {
    for concurrency_remote in [100, 20] {
        let log = log_of(tree, concurrency_remote);
        let own_secs = whole_secs(&log);
        let figure = |value: &Value, name: &str| value[name].as_f64().unwrap();
        let same = simulated(&log, LIMIT);
        let later_secs = figure(&same, "last_end_later");
        let held = same["lines"]["held_already"].as_u64().unwrap();
        let busy = same["lines"]["busy_already"].as_u64().unwrap();
        let double = simulated(&log, 2 * LIMIT);
        let earlier_secs = -figure(&double, "last_end_later");
        tell(format_args!(
            "{what}, concurrencyremote {concurrency_remote}: {own_secs:.2} s, {held} held, {busy} busy answers; \
             replayed: {later_secs:+.2} s, peak {} in the log; limit {}: {earlier_secs:.2} s earlier",
            same["keys"][0]["peak_before"],
            2 * LIMIT
        ));
        assert_eq!(same["deliveries"], MAILS, "{same}");
        assert_eq!(same["keys"][0]["peak_with_limits"], LIMIT, "{same}");
        assert!(held > 0 && (busy > 0 || concurrency_remote == 100), "{log}");
        assert!(later_secs.abs() <= 0.05 * own_secs + 0.1, "{own_secs}, {later_secs}:\n{log}");
        let half_secs = own_secs / 2.0;
        assert!((earlier_secs - half_secs).abs() <= 0.1 * own_secs + 0.2, "{double}\n{log}");
    }
}

#[test]
fn a_log_of_a_server_with_a_gate_gives_back_its_own_times() {
    check("fixture", patched(Dialect::StockKr, Gate::In).path());
}

#[test]
fn a_log_of_each_real_tree_gives_back_its_own_times() {
    for tree in real_trees() {
        let (_dir, to) = copy(&tree);
        let mut apply = Command::new(env!("CARGO_BIN_EXE_qpatch"));
        let out = run(apply.args(["apply", "--spawn", "120", "--gate"]).arg(&to));
        if out.code != 0 {
            tell(format_args!("{}: skipped: {}", tree.display(), out.err));
            continue;
        }
        check(&tree.file_name().unwrap().to_string_lossy(), &to);
    }
}
