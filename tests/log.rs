//! One log in every format, and bytes that are none.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use proptest::prelude::*;
use qpatch::qmail::log::Log;
use qpatch::qmail::log::event::Event;
use qpatch::qmail::log::stamp::Precision;
use qpatch_test_support::skip;

/// What a log says of deliveries: microseconds since the first, and what happened, with the place of its origin among
/// the log's.
fn told(dir: &Path, files: &[&str]) -> Vec<(i64, String)> {
    let paths: Vec<PathBuf> = files.iter().map(|file| dir.join(file)).collect();
    let mut log = Log::open(&paths).unwrap();
    let mut events = Vec::new();
    let mut origins = Vec::new();
    while let Some(entry) = log.next_entry().unwrap() {
        let Ok(line) = entry.line else { continue };
        let Some(stamp) = line.stamp else { continue };
        let place = origins.iter().position(|&origin| origin == line.origin);
        let place = place.unwrap_or_else(|| {
            origins.push(line.origin);
            origins.len() - 1
        });
        let what = match line.event {
            Event::Start { number, message, recipient, .. } => {
                format!("{place} start {number} {message} {}", recipient.escape_ascii())
            }
            Event::End { number, end, text } => {
                format!("{place} end {number} {end:?} {}", text.escape_ascii())
            }
            _ => continue,
        };
        assert!(stamp.precision <= Precision::Fine);
        events.push((stamp.us, what));
    }
    let first = events.first().map_or(0, |&(us, _)| us);
    for (us, _) in &mut events {
        *us -= first;
    }
    events
}

/// 2023-11-14 22:13:20 and so many microseconds, in a format: nanoseconds are zero.
fn calendar(us: u64, between: &str, digits: usize, behind: &str) -> String {
    let secs = 80_000 + us / 1_000_000;
    let fraction = format!("{:06}000", us % 1_000_000);
    let (h, m, s) = (secs / 3600, secs / 60 % 60, secs % 60);
    let dot = if digits > 0 { "." } else { "" };
    format!("2023-11-14{between}{h:02}:{m:02}:{s:02}{dot}{}{behind}", &fraction[..digits])
}

const BASE: u64 = 1_699_920_000 + 80_000;

/// How a logger writes a line at a time, and of how many microseconds its time is a multiple.
type Format = (&'static str, u64, fn(u64, &str) -> String);

fn unix(us: u64) -> String {
    format!("{}.{:06}", BASE + us / 1_000_000, us % 1_000_000)
}

fn json(us: u64, line: &str) -> serde_json::Value {
    let time = format!("{}{:06}", BASE + us / 1_000_000, us % 1_000_000);
    serde_json::json!({"__REALTIME_TIMESTAMP": time, "_HOSTNAME": "mx1", "SYSLOG_IDENTIFIER": "qmail-send",
        "MESSAGE": line, "_PID": "77"})
}

const FORMATS: [Format; 32] = [
    ("multilog", 1, |us, line| {
        let secs = BASE + us / 1_000_000 + 10 + (1 << 62);
        format!("@{secs:016x}{:08x} {line}", us % 1_000_000 * 1000)
    }),
    ("splogger", 1, |us, line| format!("{} {line}", unix(us))),
    ("svlogd -tt", 10, |us, line| format!("{}{line}", calendar(us, "_", 5, " "))),
    ("svlogd -ttt", 10, |us, line| format!("{}{line}", calendar(us, "T", 5, " "))),
    ("svlogd -tt, p", 10, |us, line| format!("{}qmail: {line}", calendar(us, "_", 5, " "))),
    ("tai64nlocal", 1, |us, line| format!("{}{line}", calendar(us, " ", 9, " "))),
    ("s6-log T", 1, |us, line| format!("{}{line}", calendar(us, " ", 9, "  "))),
    ("s6-log p T", 1, |us, line| format!("{}qmail:  {line}", calendar(us, " ", 9, "  "))),
    ("iso", 1_000_000, |us, line| {
        format!("{}{line}", calendar(us, "T", 0, "+0000 mx1 qmail-send[77]: "))
    }),
    ("iso precise", 1, |us, line| {
        format!("{}{line}", calendar(us, "T", 6, "+0000 mx1 qmail-send[77]: "))
    }),
    ("rsyslog", 1, |us, line| format!("{}{line}", calendar(us, "T", 6, "+01:00 mx1 qmail: "))),
    ("rfc 5424", 1, |us, line| {
        format!("<22>1 {}{line}", calendar(us, "T", 6, "Z mx1 qmail 77 - - "))
    }),
    ("rfc 5424, syslog-ng", 1, |us, line| {
        let data = format!(r#"[meta sequenceId="{us}"][x@1 a="]\" [" b=""] qmail: "#);
        format!("<22>1 {}{data}{line}", calendar(us, "T", 6, "+01:00 mx1 mx1 - - "))
    }),
    ("syslog", 1_000_000, |us, line| {
        format!("Nov 14 {} mx1 qmail: {line}", &calendar(us, " ", 0, "")[11..])
    }),
    ("syslog, splogger", 1, |us, line| {
        format!("Nov 14 {} mx1 qmail: {} {line}", &calendar(us, " ", 0, "")[11..], unix(us))
    }),
    ("busybox syslogd", 1_000_000, |us, line| {
        format!("Nov 14 {} mx1 mail.info qmail: {line}", &calendar(us, " ", 0, "")[11..])
    }),
    ("socklog", 10, |us, line| {
        let syslog = &calendar(us, " ", 0, "")[11..];
        format!("{}mail.info: Nov 14 {syslog} qmail: {line}", calendar(us, "_", 5, " "))
    }),
    ("metalog", 1_000_000, |us, line| {
        format!("Nov 14 {} [qmail] {line}", &calendar(us, " ", 0, "")[11..])
    }),
    ("short-precise", 1, |us, line| {
        format!("Nov 14 {} mx1 qmail-send[77]: {line}", &calendar(us, " ", 6, "")[11..])
    }),
    ("short-full", 1_000_000, |us, line| {
        format!("Tue {}{line}", calendar(us, " ", 0, " CET mx1 qmail-send[77]: "))
    }),
    ("with-unit", 1_000_000, |us, line| {
        format!("Tue {}{line}", calendar(us, " ", 0, " UTC mx1 qmail.service[77]: "))
    }),
    ("short-monotonic", 1, |us, line| {
        format!("[{:5}.{:06}] mx1 qmail-send[77]: {line}", us / 1_000_000, us % 1_000_000)
    }),
    ("short-delta", 1, |us, line| {
        let (secs, micros) = (us / 1_000_000, us % 1_000_000);
        format!("[{secs:5}.{micros:06} <    0.250000 >] mx1 qmail-send[77]: {line}")
    }),
    ("short-unix", 1, |us, line| format!("{} mx1 qmail-send[77]: {line}", unix(us))),
    ("json", 1, |us, line| json(us, line).to_string()),
    ("json-sse", 1, |us, line| format!("data: {}\n", json(us, line))),
    ("json-seq", 1, |us, line| format!("\x1e{}", json(us, line))),
    ("json-pretty", 1, |us, line| serde_json::to_string_pretty(&json(us, line)).unwrap()),
    ("export", 1, |us, line| {
        let time = format!("{}{:06}", BASE + us / 1_000_000, us % 1_000_000);
        format!("__CURSOR=s=1;i=2\n__REALTIME_TIMESTAMP={time}\n_PID=77\nMESSAGE={line}\n")
    }),
    ("verbose", 1, |us, line| {
        format!("Tue {} [s=1;i=2]\n    _PID=77\n    MESSAGE={line}", calendar(us, " ", 6, " CET"))
    }),
    ("docker compose", 1, |us, line| {
        format!("\x1b[36mmail-1  | \x1b[0m{}{line}", calendar(us, "T", 9, "Z "))
    }),
    ("cri", 1, |us, line| format!("{}{line}", calendar(us, "T", 9, "Z stderr F "))),
];

/// Deliveries: how long after the one before, and for whom.
fn lines() -> impl Strategy<Value = Vec<(u64, String)>> {
    let end = prop::sample::select(vec![
        "success: 192.0.2.1_accepted_message./Remote_host_said:_250_ok/",
        "deferral: Connected_to_192.0.2.1_but_greeting_failed./Remote_host_said:_421_too_many:_delivery_7:_x/",
        "failure: Sorry,_no_mailbox_here_by_that_name._(#5.1.1)/",
        "success: ok/Held_3.214_s,_ran_2.001_s./",
        "deferral: b.example_is_at_its_limit_of_2_deliveries;_not_tried._(#4.4.5)/",
        "report mangled, will defer",
    ]);
    let delivery = (0u64..3_000_000, "[a-z0-9=+.-]{1,12}@[a-z0-9.-]{1,20}", 1u64..1 << 40, end);
    prop::collection::vec(delivery, 1..30).prop_map(|deliveries| {
        let mut us = 0;
        let mut lines = Vec::new();
        for (number, (after_us, recipient, message, end)) in (1..).zip(deliveries) {
            us += after_us;
            lines.push((
                us,
                format!("starting delivery {number}: msg {message} to remote {recipient}"),
            ));
            us += after_us;
            lines.push((us, format!("delivery {number}: {end}")));
        }
        lines
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn every_format_tells_the_same(lines in lines()) {
        let dir = tempfile::tempdir().unwrap();
        for (name, unit_us, format) in FORMATS {
            let text = |format: fn(u64, &str) -> String| -> String {
                lines.iter().map(|(us, line)| format(us / unit_us * unit_us, line) + "\n").collect()
            };
            fs::write(dir.path().join("log"), text(FORMATS[0].2)).unwrap();
            let plain = told(dir.path(), &["log"]);
            fs::write(dir.path().join("log"), text(format)).unwrap();
            prop_assert_eq!(plain.len(), lines.len());
            prop_assert_eq!(told(dir.path(), &["log"]), plain, "{}:\n{}", name, text(format));
        }
    }

    #[test]
    fn no_bytes_are_too_odd(bytes in prop::collection::vec(any::<u8>(), 0..2000), at in 0usize..FORMATS.len(), cut in 0usize..200) {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log");
        fs::write(&log, &bytes).unwrap();
        // Packed files that end in the middle are an error of the packer's, not of ours.
        told(dir.path(), &["log"]);
        // A line of a format with these bytes in it.
        let line = FORMATS[at].2(1_234_567, "starting delivery 1: msg 2 to remote u@a.example").into_bytes();
        let (before, behind) = line.split_at(cut.min(line.len()));
        fs::write(&log, [before, &bytes[..], behind, b"\n"].concat()).unwrap();
        told(dir.path(), &["log"]);
    }
}

fn packed(program: &str, text: &Path) -> Option<Vec<u8>> {
    let output =
        Command::new(program).arg("-c").stdin(fs::File::open(text).unwrap()).output().ok()?;
    output.status.success().then_some(output.stdout)
}

fn simulate(dir: &Path, files: &[&str]) -> (i32, String) {
    fs::write(dir.join("limits"), ":5\n").unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_qpatch"));
    command.args(["gate", "simulate", "limits", "--log"]).args(files).current_dir(dir);
    let output = command.output().unwrap();
    let text = [output.stdout, output.stderr].concat();
    (output.status.code().unwrap(), String::from_utf8(text).unwrap())
}

#[test]
fn packed_files_and_packed_files_that_end_too_early() {
    let mut text = String::new();
    for number in 1..=20_000 {
        let line =
            format!("starting delivery {number}: msg {number} to remote u{number}@a.example");
        text += &(FORMATS[0].2(number * 1000, &line) + "\n");
        text += &(FORMATS[0].2(number * 1000 + 500, &format!("delivery {number}: success: ok/"))
            + "\n");
    }
    for program in ["gzip", "xz", "zstd", "bzip2"] {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("text"), &text).unwrap();
        let Some(packed) = packed(program, &dir.path().join("text")) else {
            skip(format_args!("no {program}"));
            continue;
        };
        fs::write(dir.path().join("log"), &packed).unwrap();
        let (code, said) = simulate(dir.path(), &["log"]);
        assert!(code == 0 && said.contains("20000 deliveries"), "{program}: {said}");
        assert!(!said.contains("note:"), "{program}: {said}");
        // Half of it: what is there counts, and that it is half of it is said.
        fs::write(dir.path().join("log"), &packed[..packed.len() / 2]).unwrap();
        let (code, said) = simulate(dir.path(), &["log"]);
        assert!(said.contains(&format!("log ({program}: ")), "{program}: {said}");
        assert!(said.contains("too early"), "{program}: {said}");
        assert!(code == 0 || said.contains("no delivery"), "{program}: {said}");
        // Ten bytes of it: nothing.
        fs::write(dir.path().join("log"), &packed[..10]).unwrap();
        let (code, said) = simulate(dir.path(), &["log"]);
        assert!(code == 1 && said.contains(&format!("log ({program}: ")), "{program}: {said}");
    }
}

#[test]
fn lines_that_cannot_be_read_are_told() {
    let dir = tempfile::tempdir().unwrap();
    let good = "2023-11-14T22:13:20Z mx1 qmail: starting delivery 1: msg 2 to remote u@a.example\n\
                2023-11-14T22:13:21Z mx1 qmail: delivery 1: success: ok/\n";
    let stranger = "2023-11-14T22:13:20Z mx1 sshd[7]: Accepted publickey for root\n";
    fs::write(dir.path().join("log"), [stranger, good].concat()).unwrap();
    let (code, said) = simulate(dir.path(), &["log"]);
    assert_eq!(code, 0);
    assert!(
        said.contains("1 line of other programs: sshd\n") && !said.contains("not used"),
        "{said}"
    );
    // One that should be of qmail-send.
    let broken = "2023-11-14T22:13:20Z mx1 qmail: starting delivery 2: to remote u@a.example\n";
    fs::write(dir.path().join("log"), [good, broken].concat()).unwrap();
    let (code, said) = simulate(dir.path(), &["log"]);
    assert_eq!(code, 0);
    assert!(
        said.contains("1 of 3 lines not used") && said.contains("the first is log:3: 2023-"),
        "{said}"
    );
    // journalctl -o cat.
    fs::write(dir.path().join("log"), "starting delivery 1: msg 2 to remote u@a.example\n")
        .unwrap();
    let (code, said) = simulate(dir.path(), &["log"]);
    assert_eq!(code, 1);
    assert!(
        said.contains("the first line that cannot be used is log:1: starting delivery"),
        "{said}"
    );
}

#[test]
fn files_are_read_in_the_order_of_their_times() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, text: String| fs::write(dir.path().join(name), text).unwrap();
    let line = |time: &str, text: &str| format!("{time} mx qmail: {text}\n");
    write("old", line("Dec 31 23:59:58", "starting delivery 1: msg 2 to remote u@a.example"));
    write("new", line("Jan  1 00:00:03", "delivery 1: success: ok/"));
    // Written in January, whenever this runs.
    let january = std::time::UNIX_EPOCH + std::time::Duration::from_secs(1_704_067_300);
    for name in ["old", "new"] {
        fs::File::options()
            .append(true)
            .open(dir.path().join(name))
            .unwrap()
            .set_modified(january)
            .unwrap();
    }
    for files in [["old", "new"], ["new", "old"]] {
        let (code, said) = simulate(dir.path(), &files);
        assert!(code == 0 && said.contains("1 delivery to remote recipients in 5.0 s"), "{said}");
        assert!(!said.contains("set back") && !said.contains("not in the log"), "{said}");
        assert_eq!(said.contains("in the order of their first times"), files[0] == "new", "{said}");
    }
}
