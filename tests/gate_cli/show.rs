//! `qpatch gate show` once: the tables, JSON, and a status that is not whole.

use std::fs::{self, Permissions};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;
use std::thread;
use std::time::Duration;

use serde_json::Value;

use super::{Home, busy_gate, json, status_of, status_with};

#[test]
fn show_prints_what_the_gate_wrote() {
    let home = Home::new();
    let _host = busy_gate(&home);
    let run = home.gate(&["show", "."]).ok();
    let mut lines = run.out.lines();
    let mut next = || lines.next().unwrap_or_default();
    assert_eq!(next(), format!("qmail-rspawn {}: limits count", std::process::id()));
    let now = next();
    assert!(
        now.starts_with(
            "now:   2 running and 1 held, of 5 (conf-spawn 50, concurrencyremote 5); written "
        ),
        "{now}"
    );
    assert_eq!(
        next(),
        "ever:  6 asked for, 2 done, 1 held, 1 busy answer (for 0 the hold was too long)"
    );
    assert!(next().starts_with("rules: 3 lines, 0 routes; read "));
    assert_eq!(next(), "");
    let words = |line: &str| line.split_whitespace().map(str::to_string).collect::<Vec<_>>();
    assert_eq!(
        next(),
        "KEY           LIMIT  ALLOWED  RUNNING  HELD  AWAY  BUSY  DONE  PEAK  PER SEC  MEAN  LAST ERROR"
    );
    let busy = words(next());
    assert_eq!(busy[..6], ["group", "busy", "2", "-", "2", "1"], "{busy:?}");
    assert_eq!(busy[7..10], ["1", "0", "2"], "busy, done, peak: {busy:?}");
    let down = next();
    assert!(
        down.starts_with("down.example     20        -        0     0     0     0     1     1  "),
        "{down}"
    );
    assert!(
        down.ends_with("  192.0.2.1 does not like you. Remote host said: 421 %1b[2J"),
        "{down}"
    );
    assert!(
        next().starts_with("free.example   none        -        0     0     0     0     1     1  ")
    );
    assert_eq!(next(), "");

    let report = json(&home.gate(&["show", ".", "--format", "json"]).ok().out);
    assert_eq!(report["state"], "limits");
    assert_eq!(report["alive"], true);
    assert_eq!(report["held"], 1);
    assert_eq!(report["busy_total"], 1);
    assert_eq!(report["keys"][0]["kind"], "group");
    assert_eq!(report["keys"][0]["running"], 2);
    assert_eq!(
        report["keys"][1]["last_error"],
        "192.0.2.1 does not like you.%0aRemote host said: 421 %1b[2J%0a"
    );
    assert_eq!(report["keys"][2]["limit"], Value::Null);

    let metrics = home.gate(&["show", ".", "--format", "prometheus"]).ok().out;
    assert!(
        metrics.contains("\nqmail_gate_key_running{kind=\"group\",key=\"busy\"} 2\n"),
        "{metrics}"
    );
}

#[test]
fn show_looks_again_while_the_file_is_being_written() {
    let home = Home::new();
    let _host = busy_gate(&home);
    let file = home.path("queue/lock/gatestatus");
    let whole = fs::read(&file).unwrap();
    fs::write(&file, &whole[..whole.len() / 2]).unwrap();
    let late = thread::spawn(move || {
        thread::sleep(Duration::from_millis(200));
        // The gate writes the file in the same way: it is never empty in between.
        let mut file = fs::OpenOptions::new().write(true).open(file).unwrap();
        file.write_all(&whole).unwrap();
    });
    home.gate(&["show", "."]).ok();
    late.join().unwrap();
}

/// The text with `N` for each number of seconds.
fn without_seconds(text: &str) -> String {
    let words = text.split_inclusive([' ', '\n']).collect::<Vec<_>>();
    let is_time = |at: usize| {
        words.get(at + 1).is_some_and(|unit| unit.trim_end_matches([' ', '\n', ';', ':']) == "s")
    };
    let number = |word: &str| word.trim_end().bytes().all(|byte| byte.is_ascii_digit());
    let words = words.iter().enumerate().map(|(at, word)| {
        if is_time(at) && number(word) { "N ".to_string() } else { (*word).to_string() }
    });
    words.collect()
}

const LEARNED: &str = "key|group|outlook|10|8|2|4|60|10|4|12.5|200|8|@-30|0|192.0.2.7 failed after I sent the \
message.%0aRemote host said: 421 4.3.2 too many %1b[31mconnections from your address, and so on, for long\n\
key|domain|down.example|20|0|0|0|3|1|0|0.0|0|1|@-50|@700|Sorry, I wasn't able to establish an SMTP connection. (#4.4.1)\n\
key|domain|fine.example|-|4|0|0|7|4|0|1.0|90|-|0|0|\n";

#[test]
fn show_lists_the_servers_that_objected() {
    let home = Home::new();
    fs::write(home.path("queue/lock/gatestatus"), status_with(LEARNED)).unwrap();
    let out = home.gate(&["show", "."]).ok().out;
    assert!(
        out.contains("\nsites: 12 domains of concurrencysites, 1 next hop seen at an address\n"),
        "{out}"
    );
    let (_, objections) = out.rsplit_once("\n\n").unwrap();
    assert_eq!(
        without_seconds(objections),
        "group outlook: 8 instead of 10; objected N s ago; last error: 192.0.2.7 failed after I sent the ...\n\
         down.example: suspended for N s; objected N s ago; last error: Sorry, I wasn't able to establi...\n"
    );
    assert!(objections.lines().all(|line| line.len() <= 100));
}

#[test]
fn show_domain_prints_the_key_of_a_domain() {
    let home = Home::new();
    fs::write(home.path("queue/lock/gatestatus"), status_with(LEARNED)).unwrap();
    fs::write(home.path("queue/lock/gatesites"), "qpatch-sites\t1\nseen.example\t192.0.2.7\nend\n")
        .unwrap();
    home.control(
        "concurrencydomains",
        ":20::learn\nmx:.outlook.com:10:outlook:learn\n192.0.2.0/24:10:outlook\nfine.example:\n",
    );
    home.control("concurrencysites", "mapped.example:outlook\n");
    home.control("smtproutes", "far.example:relay.example\n");
    let run = home.gate(&[
        "show",
        ".",
        "--domain",
        "mapped.example",
        "--domain",
        "seen.example",
        "--domain",
        "down.example",
        "--domain",
        "far.example",
    ]);
    let out = run.ok().out;
    let group = "  limit      10, follows the server; now 8\n  now        8 running, 2 held, 4 away\n  objected   N s ago\n  \
                 error      192.0.2.7 failed after I sent the message. Remote host said: 421 4.3.2 too many %1b[...\n";
    let (_, out) = out.split_once("\n\n").unwrap();
    assert_eq!(
        without_seconds(out),
        format!(
            "mapped.example: counts as group outlook\n  from       concurrencysites:1\n{group}\n\
             seen.example: counts as group outlook\n  from       concurrencydomains:3, its mail goes to 192.0.2.7\n{group}\n\
             down.example: counts as down.example\n  from       concurrencydomains:1 (the default)\n  \
             limit      20, follows the server; now 1\n  now        0 running, 0 held, 0 away\n  objected   N s ago\n  \
             suspended  for N s: nothing is started\n  \
             error      Sorry, I wasn't able to establish an SMTP connection. (#4.4.1)\n\n\
             far.example: counts as relay relay.example\n  from       concurrencydomains:1 (the default), by smtproutes:1\n  \
             limit      20, follows the server\n  now        nothing runs, waits or is remembered\n"
        )
    );
    home.control("concurrencydomains", ":2O\n");
    let run = home.gate(&["show", ".", "--domain", "a.example"]);
    assert_eq!(run.code, 1);
    assert!(run.err.starts_with("qpatch: ./control/concurrencydomains:1:3: "), "{}", run.err);
}

#[test]
fn several_spawners_are_merged() {
    let home = Home::new();
    home.control("concurrencydomains", ":20\nbig.example:9:big\n");
    let put = |file: &str, process: &str, running: u32, keys: &str| {
        fs::write(home.path("queue/lock").join(file), status_of(process, running, keys)).unwrap();
    };
    let me = std::process::id().to_string();
    let first = "key|group|big|9|5|0|1|10|5|1|1.0|100|9|0|0||named|0\n\
                 key|domain|only.example|20|1|0|0|1|1|0|0.0|0|20|0|0||-|0\n";
    put("gatestatus", &me, 6, first);
    let alone = home.gate(&["show", ".", "--format", "prometheus"]).ok().out;
    fs::write(home.path("queue/lock/gatestatus.1"), "").unwrap();
    let empty = home.gate(&["show", ".", "--format", "prometheus"]).ok().out;
    assert_eq!(alone, empty, "an empty file has never been written");
    assert!(alone.contains("\nqmail_gate_up 1\n"), "{alone}");

    let second = "key|group|big|9|2|3|4|30|6|2|2.5|200|4|@-9|0|no|named|3\n";
    put("gatestatus.2", &me, 5, second);
    let text = home.gate(&["show", "."]).ok().out;
    let mut lines = text.lines();
    assert_eq!(lines.next().unwrap(), format!("qmail-rspawn {me} (gatestatus): limits count"));
    assert_eq!(lines.next().unwrap(), format!("qmail-rspawn {me} (gatestatus.2): limits count"));
    let now = lines.next().unwrap();
    assert!(
        now.starts_with("now:   11 running and 0 held, of 100 (2 spawners); written "),
        "{now}"
    );
    assert!(text.contains("\never:  180 asked for, 140 done, 4 held, 8 busy answers"), "{text}");
    assert_eq!(text.matches("big").count(), 2, "{text}");
    let row = text.lines().find(|line| line.starts_with("group big")).unwrap();
    let row: Vec<&str> = row.split_whitespace().collect();
    assert_eq!(row[2..10], ["9", "4", "7", "3", "3", "5", "40", "7"], "{text}");
    let report = json(&home.gate(&["show", ".", "--format", "json"]).ok().out);
    assert_eq!(report["spawners"].as_array().unwrap().len(), 2);
    assert_eq!((&report["keys"][0]["mean_ms"], &report["alive"]), (&175.into(), &true.into()));
    let text = home.gate(&["show", ".", "--domain", "big.example"]).ok().out;
    assert!(text.contains("\n  now        7 running, 3 held, 3 away\n"), "{text}");
    let metrics = home.gate(&["show", ".", "--format", "prometheus"]).ok().out;
    for line in [
        "qmail_gate_up{spawner=\"0\"} 1",
        "qmail_gate_up{spawner=\"2\"} 1",
        "qmail_gate_slots 200",
        "qmail_gate_slots_in_use 11",
        "qmail_gate_done_total 140",
        "qmail_gate_key_limit{kind=\"group\",key=\"big\"} 9",
        "qmail_gate_key_running{kind=\"group\",key=\"big\"} 7",
        "qmail_gate_key_done_total{kind=\"group\",key=\"big\",spawner=\"0\"} 10",
        "qmail_gate_key_done_total{kind=\"group\",key=\"big\",spawner=\"2\"} 30",
        "qmail_gate_key_busy_total{kind=\"group\",key=\"big\",spawner=\"2\"} 4",
    ] {
        assert_eq!(metrics.lines().filter(|&found| found == line).count(), 1, "{line}\n{metrics}");
    }

    // A spawner that is gone belongs to an earlier run: qmail-send ends when one of its spawners ends.
    put("gatestatus.2", "4000000000", 5, second);
    let text = home.gate(&["show", "."]).ok().out;
    assert!(
        text.contains("(gatestatus.2): limits count\nthis process is gone; its figures are left out\nnow:   6 running"),
        "{text}"
    );
    let metrics = home.gate(&["show", ".", "--format", "prometheus"]).ok().out;
    for line in [
        "qmail_gate_up{spawner=\"0\"} 1",
        "qmail_gate_up{spawner=\"2\"} 0",
        "qmail_gate_slots 100",
        "qmail_gate_key_running{kind=\"group\",key=\"big\"} 5",
    ] {
        assert!(metrics.lines().any(|found| found == line), "{line}\n{metrics}");
    }
    put("gatestatus", "4000000000", 6, first);
    let metrics = home.gate(&["show", ".", "--format", "prometheus"]).ok().out;
    let line = "qmail_gate_key_running{kind=\"group\",key=\"big\"} 7";
    assert!(metrics.lines().any(|found| found == line), "the last figures of all\n{metrics}");

    // A spawner that has another file since.
    let identity = format!("{me}\t12\tqmail-rspawn\t0");
    put("gatestatus", &identity, 6, first);
    put("gatestatus.2", &identity, 5, second);
    let later = fs::read_to_string(home.path("queue/lock/gatestatus.2")).unwrap();
    let later = later.replace("gate\t1\t7\n", "gate\t1\t8\n").replace("end\t7", "end\t8");
    fs::write(home.path("queue/lock/gatestatus.2"), later).unwrap();
    let metrics = home.gate(&["show", ".", "--format", "prometheus"]).ok().out;
    for line in ["qmail_gate_up 0", "qmail_gate_key_running{kind=\"group\",key=\"big\"} 2"] {
        assert!(metrics.lines().any(|found| found == line), "{line}\n{metrics}");
    }
    put("gatestatus.2", "4000000000", 5, second);

    // The first file may be missing, and an error names the file.
    fs::write(home.path("queue/lock/gatestatus"), "").unwrap();
    assert_eq!(json(&home.gate(&["show", ".", "--format", "json"]).ok().out)["running"], 5);
    fs::write(home.path("queue/lock/gatestatus.63"), "what\n").unwrap();
    let run = home.gate(&["show", "."]);
    assert_eq!(run.code, 1);
    let expected = "qpatch: ./queue/lock/gatestatus.63: not a status file of this version\n";
    assert!(run.err.starts_with(expected), "{}", run.err);
}

#[test]
fn show_refuses_a_status_that_is_not_a_regular_file() {
    let home = Home::new();
    let file = home.path("queue/lock/gatestatus");
    let said = "qpatch: ./queue/lock/gatestatus: not a regular file\n  put a regular file there\n";
    fs::remove_file(&file).unwrap();
    fs::create_dir(&file).unwrap();
    let run = home.gate(&["show", "."]);
    assert_eq!((run.code, run.err.as_str()), (1, said));
    fs::remove_dir(&file).unwrap();
    assert!(Command::new("mkfifo").arg(&file).status().unwrap().success());
    let run = home.gate(&["show", "."]);
    assert_eq!((run.code, run.err.as_str()), (1, said));

    let lock = home.path("queue/lock");
    fs::set_permissions(&lock, Permissions::from_mode(0o0)).unwrap();
    let run = home.gate_as_user(&["show", "."]);
    fs::set_permissions(&lock, Permissions::from_mode(0o755)).unwrap();
    assert_eq!(
        (run.code, run.err.as_str()),
        (
            1,
            "qpatch: ./queue/lock/gatestatus: permission denied\n  run qpatch as root, or as a user of the group that \
             queue/lock belongs to\n"
        )
    );
}
