//! `qpatch gate sites` against name servers that do what no name server should.
//!
//! Whoever owns a domain owns its name server, and the operator's own resolver passes on most of what that says. So the
//! look-up must end in bounded time, in bounded memory, with an answer for every domain that has one, and the map must
//! be whole whatever happens: a full disk, a kill, another run at the same time.

use std::fs;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use crate::common::run;
use crate::dns::{Says, mx, name};
use crate::rig::{HEAD, LIMITS, Rig, domains};
use hickory_resolver::proto::rr::Name;
use qpatch_test_support::skip;
use serde_json::Value;

fn because(report: &Value, domain: &str) -> String {
    let lists = ["added", "kept", "unknown"].map(|list| report[list].as_array().unwrap());
    let change = lists.into_iter().flatten().find(|change| change["domain"] == domain);
    change.map_or("", |change| change["because"].as_str().unwrap()).to_string()
}

fn args(names: &[String]) -> Vec<&str> {
    names.iter().flat_map(|name| ["--domain", name]).collect()
}

/// An MX record of the name that was asked for, up to the name of the exchanger, which has two bytes.
const MX_RECORD: &[u8] = b"\xc0\x0c\0\x0f\0\x01\0\0\0\x3c\0\x04\0\x01";

/// Each of these has a reason of its own, and none holds up the good one.
#[test]
fn answers_that_no_server_should_give() {
    let rig = Rig { timeout: "2", ..Rig::new(LIMITS) };
    let with_target = |target: &[u8]| [MX_RECORD, target].concat();
    // The question is at 12, and `selfref.example` takes 17 bytes and 4 for its type and class: the answer is at 33.
    let to_itself = with_target(&(0xc000u16 | (33 + MX_RECORD.len() as u16)).to_be_bytes());
    let every_byte = |byte: u8| {
        let label = [b'a', byte];
        (u16::from(byte), Name::from_labels([&label[..], b"outlook", b"com"]).unwrap())
    };
    let many: Vec<_> = (0..300).map(|n| (n, name(&format!("h{n}.outlook.com.")))).collect();
    for (domain, says) in [
        ("ids.example", Says::WrongIds(500)),
        ("selfref.example", Says::Bytes(1, to_itself)),
        ("forward.example", Says::Bytes(1, with_target(b"\xff\xff"))),
        ("short.example", Says::Bytes(1, MX_RECORD.to_vec())),
        ("counts.example", Says::Bytes(u16::MAX, with_target(b"\xc0\x0c"))),
        ("*.one.example", Says::Chain(1)),
        ("*.long.example", Says::Chain(1000)),
        ("self.example", mx(&[(1, "self.example.")])),
        ("bytes.example", Says::Mx((0..=255).map(every_byte).collect())),
        ("many.example", Says::Truncated(many)),
        ("good.example", mx(&[(1, "x.outlook.com.")])),
    ] {
        rig.dns.says(domain, says);
    }
    let names = [
        "ids", "selfref", "forward", "short", "counts", "0.one", "0.long", "self", "bytes", "many",
        "good",
    ];
    let names = names.map(|name| format!("{name}.example"));
    let report = rig.json(&args(&names));
    assert_eq!(domains(&report["added"]), ["good.example", "many.example"], "{report}");
    // Mail to the one goes to its own host, mail to the other to a host without a usable name.
    assert_eq!((&report["elsewhere"], &report["answered"]), (&2.into(), &4.into()), "{report}");
    let why = |name: &str| because(&report, &format!("{name}.example"));
    for name in ["selfref", "forward", "short", "counts"] {
        assert_eq!(why(name), "a malformed answer", "{name}");
    }
    assert_eq!(why("ids"), "no answer in time");
    assert_eq!(why("0.one"), "too many aliases, or a loop of them");
    assert_eq!(why("0.long"), "too many aliases, or a loop of them");
}

/// A stranger whose name server makes the resolver wait. Many resolvers answer the questions of one TCP connection one
/// after the other, so a connection that names share would make all of them wait.
#[test]
fn a_stranger_who_is_slow_by_tcp_holds_up_no_other() {
    let rig = Rig { timeout: "5", ..Rig::new(LIMITS) };
    let of = |what: &str, count: u32| -> Vec<String> {
        (0..count).map(|n| format!("{what}{n}.example")).collect()
    };
    let (hang, drip, long) = (of("hang", 5), of("drip", 5), of("long", 60));
    let exchangers: Vec<_> = (0..50).map(|n| (n, name(&format!("h{n}.outlook.com.")))).collect();
    hang.iter().for_each(|name| rig.dns.says(name, Says::Hangs));
    drip.iter().for_each(|name| rig.dns.says(name, Says::Drips(Duration::from_secs(1))));
    long.iter().for_each(|name| rig.dns.says(name, Says::Truncated(exchangers.clone())));
    let start = Instant::now();
    let report = rig.json(&args(&[&hang[..], &drip, &long].concat()));
    // A name takes four times the time for one answer at most; the rest is for a busy machine.
    assert!(start.elapsed() < Duration::from_secs(4 * 5 + 60), "{:?}", start.elapsed());
    assert_eq!(report["added"].as_array().unwrap().len(), long.len(), "{report}");
    for name in hang.iter().chain(&drip) {
        assert_eq!(because(&report, name), "no answer in time");
    }
}

/// Answers as long as they can be, for many names: what is kept of them is what the map needs.
#[test]
fn long_answers_for_many_names_take_little_memory() {
    let rig = Rig::new(LIMITS);
    let names: Vec<String> = (0..2000).map(|n| format!("d{n:04}.example")).collect();
    let label = "l".repeat(60);
    let long = |n| (n, name(&format!("h{n}.{label}.{label}.{label}.example.")));
    let peak = |says: &Says| {
        for name in &names {
            rig.dns.says(name, says.clone());
        }
        let child = rig.command(&args(&names)).stdout(Stdio::null()).spawn().unwrap();
        peak_kib(child)
    };
    let short = peak(&mx(&[(1, "x.else.example.")]));
    let long = peak(&Says::Mx((0..16).map(long).collect()));
    eprintln!("{short} KiB with short answers, {long} KiB with long ones");
    // 2000 * 16 * 190 bytes are 6 MiB.
    assert!(long < short + 3072, "{short} KiB, {long} KiB");
}

/// The most memory that a process takes, in KiB. The kernel says it only of one that is there; what wait4 says contains
/// the memory of the process that started it.
fn peak_kib(mut child: std::process::Child) -> u64 {
    let mut peak = 0;
    let status = format!("/proc/{}/status", child.id());
    while child.try_wait().unwrap().is_none() {
        let text = fs::read_to_string(&status).unwrap_or_default();
        let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let figure = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse().ok());
        peak = figure.unwrap_or(peak);
        thread::sleep(Duration::from_millis(1));
    }
    peak
}

/// Limits with very many lines, and a map with names that were never asked for.
#[test]
fn a_table_with_100_000_lines() {
    let mut limits = LIMITS.to_string();
    for n in 0..100_000 {
        limits.push_str(&format!("mx:.s{n}.example:5\n"));
    }
    let rig = Rig::new(&limits);
    let all: Vec<String> = (0..200).map(|n| format!("d{n}.example")).collect();
    for (n, domain) in all.iter().enumerate() {
        let target = name(&format!("x.s{}.example.", n * 499));
        rig.dns.says(domain, Says::Mx(vec![(1, target)]));
    }
    let report = rig.json(&args(&all));
    assert_eq!(domains(&report["added"]).len(), 200, "{report}");
}

/// What another run has found while this one waits for an answer is not lost.
#[test]
fn two_runs_at_the_same_time() {
    let rig = Rig { timeout: "60", ..Rig::new(LIMITS) };
    rig.dns.says("first.example", Says::Hangs);
    let mut first = rig.command(&["--domain", "first.example", "--domain", "both.example"]);
    rig.dns.says("both.example", mx(&[(1, "x.outlook.com.")]));
    let mut first = first.stdout(Stdio::piped()).spawn().unwrap();
    // It has read the map, and waits for an answer by TCP.
    let start = Instant::now();
    while rig.dns.asked().1 == 0 {
        assert!(start.elapsed() < Duration::from_secs(60), "it does not ask");
        thread::sleep(Duration::from_millis(5));
    }
    rig.dns.says("second.example", mx(&[(1, "x.google.com.")]));
    rig.sites(&["--domain", "second.example"]).ok();
    rig.dns.says("first.example", mx(&[(1, "x.outlook.com.")]));
    rig.dns.let_go();
    assert!(first.wait().unwrap().success());
    let all = "both.example:outlook\nfirst.example:outlook\nsecond.example:google\n";
    assert_eq!(rig.map(), format!("{HEAD}{all}"));
}

/// At the moments around the writing of the map. Whatever a killed run leaves, the next one clears away.
#[test]
fn a_killed_run_leaves_a_whole_map() {
    let rig = Rig::new(LIMITS);
    let names: Vec<String> = (0..100).map(|n| format!("d{n:03}.example")).collect();
    let map =
        |site: &str| -> String { names.iter().map(|name| format!("{name}:{site}\n")).collect() };
    let sites = ["outlook", "google"];
    let mut killed = 0;
    for round in 0..20u32 {
        let target = format!("x.{}.com.", sites[round as usize % 2]);
        for name in &names {
            rig.dns.says(name, mx(&[(1, &target)]));
        }
        let before = rig.dns.asked().0;
        let mut child = rig.command(&args(&names)).stdout(Stdio::null()).spawn().unwrap();
        while rig.dns.asked().0 < before + 100 && child.try_wait().unwrap().is_none() {
            thread::sleep(Duration::from_millis(1));
        }
        // No event to wait for: the point is to strike blindly.
        thread::sleep(Duration::from_micros(u64::from(round) * 700));
        let _ = child.kill();
        killed += u32::from(!child.wait().unwrap().success());
        let now = rig.map();
        let whole = sites.map(|site| format!("{HEAD}{}", map(site)));
        assert!(now.is_empty() || whole.contains(&now), "round {round}: {now}");
    }
    assert!(killed > 0, "no run was killed in time");
    fs::write(rig.path("control/.concurrencysites.qpatch-new"), "half of a li").unwrap();
    rig.dns.says("e.example", mx(&[(1, "x.outlook.com.")]));
    rig.sites(&[&args(&names)[..], &["--domain", "e.example"]].concat()).ok();
    let left = fs::read_dir(rig.path("control")).unwrap();
    let mut left: Vec<_> = left.map(|entry| entry.unwrap().file_name()).collect();
    left.sort();
    assert_eq!(left, ["concurrencydomains", "concurrencysites"]);
}

#[test]
fn a_full_disk_leaves_the_old_map() {
    let rig = Rig::new(LIMITS);
    let control = rig.path("control");
    let mounted = Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=64k", "tmpfs"])
        .arg(&control)
        .output()
        .is_ok_and(|out| out.status.success());
    if !mounted {
        skip("a small file system cannot be mounted here");
        return;
    }
    let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        rig.control("concurrencydomains", LIMITS);
        rig.control("concurrencysites", "a.example:outlook\n");
        let mut filler = vec![0; 64 << 10];
        while fs::write(control.join("filler"), &filler).is_err() {
            filler.truncate(filler.len() - 4096);
        }
        let names: Vec<String> = (0..500).map(|n| format!("d{n:03}.example")).collect();
        for name in &names {
            rig.dns.says(name, mx(&[(1, "x.outlook.com.")]));
        }
        let failed = rig.sites(&args(&names));
        assert_eq!(failed.code, 1, "{}{}", failed.out, failed.err);
        let expected = "qpatch: ./control: cannot write into it: No space left on device";
        assert!(failed.err.starts_with(expected), "{}", failed.err);
        assert_eq!(rig.map(), "a.example:outlook\n");
        assert_eq!(fs::read_dir(&control).unwrap().count(), 3, "nothing is left over");
        fs::remove_file(control.join("filler")).unwrap();
        rig.sites(&args(&names)).ok();
        assert_eq!(rig.map().lines().count(), 1 + 500);
    }));
    run(Command::new("umount").arg(&control)).ok();
    result.unwrap();
}
