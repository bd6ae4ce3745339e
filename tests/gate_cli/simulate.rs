//! `qpatch gate simulate`: limits hold, no mail is lost, and every sort of log line is read.

use std::fs;
use std::io::Write;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;

use serde_json::Value;

use super::{gate, json};
use crate::common::run;

fn simulate(dir: &Path, log: &[u8]) -> Value {
    let mut child = gate(dir, &["simulate", "limits", "--log", "-", "--format", "json"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let log = log.to_vec();
    let writer = thread::spawn(move || stdin.write_all(&log));
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap().unwrap();
    assert!(output.status.success());
    json(&String::from_utf8(output.stdout).unwrap())
}

#[test]
fn simulate_keeps_every_limit_and_loses_nothing() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("limits"), ":3\na.example:5\n").unwrap();
    // Ten at once for a.example, for 100 s; each takes a second.
    let mut log = String::from("1000.0 status: local 0/10 remote 0/40\n");
    let mut number = 0;
    for second in 0..100 {
        if second > 0 {
            for done in number - 11..number {
                log.push_str(&format!("{}.0 delivery {}: success: ok/\n", 1000 + second, done + 1));
            }
        }
        for at in 0..11 {
            number += 1;
            let domain = if at == 10 { "b.example" } else { "a.example" };
            let start = format!(
                "{}.0 starting delivery {number}: msg 1 to remote u@{domain}\n",
                1000 + second
            );
            log.push_str(&start);
        }
    }
    let report = simulate(dir.path(), log.as_bytes());
    let key = |name: &str| {
        let keys = report["keys"].as_array().unwrap();
        keys.iter().find(|key| key["key"] == name).unwrap().clone()
    };
    let (a, b) = (key("a.example"), key("b.example"));
    assert_eq!((&a["deliveries"], &a["peak_before"]), (&1000.into(), &10.into()));
    assert_eq!(a["peak_with_limits"], 5);
    // For 99 s, twice as much arrives as the limit takes. The rest needs another 99 s, and the time for calling it
    // back.
    let later = report["last_end_later"].as_f64().unwrap();
    assert!((99.0..110.0).contains(&later), "{later}");
    assert!(a["waited"].as_u64().unwrap() >= 990);
    assert!(a["busy_answers"].as_u64().unwrap() > 0, "40 slots do not hold it all");
    assert_eq!(
        (&b["waited"], &b["peak_with_limits"]),
        (&0.into(), &1.into()),
        "the others go on as before"
    );
}

#[test]
fn a_log_that_is_named_twice_counts_once() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| fs::write(dir.path().join(name), text).unwrap();
    let lines = |from: u64| {
        let status = format!("{}.0 status: local 0/10 remote 0/40\n", 1000 * from);
        let line = |at: u64| {
            let (second, number) = (1000 * from + at, 10 * from + at);
            format!(
                "{second}.1 starting delivery {number}: msg {number} to remote u@a.example\n\
                 {second}.5 delivery {number}: success: ok/\n"
            )
        };
        status + &(0..5).map(line).collect::<String>()
    };
    write("limits", ":3\n");
    write("log", &lines(1));
    write("later", &lines(2));
    write("copy", &lines(1));
    write("beginning", lines(1).split_inclusive("1002").next().unwrap().trim_end_matches("1002"));
    // Only its first line is that of log.
    write("queue2", &(lines(1).lines().next().unwrap().to_owned() + "\n" + &lines(3)));
    symlink("log", dir.path().join("link")).unwrap();
    fs::hard_link(dir.path().join("log"), dir.path().join("hard")).unwrap();
    let simulate = |logs: &[&str]| {
        let run = run(gate(dir.path(), &["simulate", "limits", "--log"])
            .args(logs)
            .stdin(fs::File::open(dir.path().join("log")).unwrap()))
        .ok();
        let count = run.out.lines().nth(1).unwrap().split(' ').nth(4).unwrap().to_owned();
        let notes = run.out.lines().filter_map(|line| line.strip_prefix("note:   "));
        (count, notes.map(str::to_owned).collect::<Vec<_>>())
    };
    for (logs, deliveries, wanted) in [
        (&["log", "later"][..], "10", &[][..]),
        (&["log", "queue2"], "10", &[]),
        (&["log", "log", "later"], "10", &["log is named more than once, and is read once"]),
        (
            &["log", "./log", "link", "hard", "-"],
            "5",
            &[
                "./log is the same file as log, and is read once",
                "link is the same file as log, and is read once",
                "hard is the same file as log, and is read once",
                "standard input is the same file as log, and is read once",
            ],
        ),
        (
            &["log", "copy"],
            "10",
            &["copy has the same lines as log, so what it has counts twice: leave it out"],
        ),
        (
            &["beginning", "log", "later"],
            "12",
            &["beginning has the same lines as log, so what it has counts twice: leave it out"],
        ),
    ] {
        let (count, notes) = simulate(logs);
        assert_eq!(count, deliveries, "{logs:?} {notes:?}");
        let notes: Vec<_> = notes
            .iter()
            .filter(|note| {
                note.contains("twice") || note.contains("once,") || note.contains("same")
            })
            .collect();
        assert_eq!(notes, wanted, "{logs:?}");
    }
    run(Command::new("gzip").arg("copy").current_dir(dir.path())).ok();
    let notes = simulate(&["copy.gz", "log"]).1;
    assert!(
        notes.iter().any(|note| note.starts_with("log has the same lines as copy.gz,")),
        "{notes:?}"
    );
}

#[test]
fn simulate_reads_every_sort_of_line() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("limits"), ":1\n").unwrap();
    let mut log = b"1.0 starting delivery 1: msg 1 to remote u@a.example\r\n".to_vec();
    for recipient in
        [&b""[..], b"@", b"nobody", b"u@", b"u@[192.0.2.1]", b"u@A.example.", b"\xff@\xff\x00"]
    {
        let number = log.iter().filter(|&&byte| byte == b'\n').count() + 1;
        log.extend_from_slice(
            format!("2.0 starting delivery {number}: msg 1 to remote ").as_bytes(),
        );
        log.extend_from_slice(recipient);
        log.push(b'\n');
    }
    log.extend_from_slice(b"3.0 starting delivery 9: msg 1 to remote u@");
    log.extend_from_slice(&b"x".repeat(10_000));
    log.extend_from_slice(b".example\n4.0 starting delivery 10: msg 1 to remote u@");
    log.extend_from_slice(&b"y".repeat(1_000_000));
    log.extend_from_slice(b"\n5.0 starting delivery 99999999999999999999: msg 1 to remote u@b\n");
    log.extend_from_slice(b"18446744073709551615.0 delivery 1: success: ok/\n");
    log.extend_from_slice(b"9223372036854.0 delivery 2: success: ok/\n6.0 no end of line");
    let report = simulate(dir.path(), &log);
    assert_eq!(report["deliveries"], 10);
    assert_eq!(report["lines"]["starts_only"], 9);
    assert_eq!(report["lines"]["foreign"], 2);
    assert_eq!(report["lines"]["no_stamp"], 1);
    let never_over =
        |key: &Value| key["peak_with_limits"].as_u64().unwrap() <= 1 || key["key"] == "(no @)";
    assert!(report["keys"].as_array().unwrap().iter().all(never_over), "{report}");
}
