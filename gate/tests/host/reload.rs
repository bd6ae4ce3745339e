//! Control files that change while the gate runs: what is read again, when, and what a mistake does.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::Ordering;
use std::thread::sleep;
use std::time::{Duration, Instant};

use qpatch_gate::gate::DeliveryEnd;
use qpatch_gate::host::{Ask, Due};
use qpatch_gate::sender::Reads;
use qpatch_gate::status::State;
use qpatch_gate::table::Limit;

use crate::home::{
    Files, Home, Host, ask, at_rest, keys, limit, limit_after, next_second, open, pass_ms, text,
    wait_for_due,
};

/// The processor time of this thread, which does not depend on the load of the machine; only Linux has it.
fn processor_time() -> Option<Duration> {
    let text = fs::read_to_string("/proc/thread-self/schedstat").ok()?;
    text.split(' ').next()?.parse().ok().map(Duration::from_nanos)
}

#[test]
fn without_a_file_it_is_stock() {
    let home = Home::new();
    let mut host = home.open(10);
    for slot in 0..10 {
        assert_eq!(ask(&mut host, slot, "a.example"), Ask::Go);
    }
    for slot in 0..9 {
        host.done(slot, DeliveryEnd::Reported(b"r\0Kok\0"));
    }
    // What runs is counted all the same.
    next_second();
    host.due();
    let status = home.status().unwrap();
    assert_eq!((status.state, status.in_use, status.totals.done), (State::Stock, 1, 9));
    assert_eq!((status.keys[0].limit, status.keys[0].running), (Limit::Unlimited, 1));
    assert_eq!(status.problems, [""; 0]);
}

#[test]
fn a_file_that_appears_counts_what_runs_already() {
    let home = Home::new();
    home.write("concurrencyremote", "100\n");
    let mut host = home.open(100);
    for slot in 0..3 {
        assert_eq!(ask(&mut host, slot, "a.example"), Ask::Go);
    }
    home.write("concurrencydomains", ":4\n");
    next_second();
    assert_eq!(ask(&mut host, 3, "a.example"), Ask::Go);
    assert_eq!(ask(&mut host, 4, "a.example"), Ask::Hold);
    home.remove("concurrencydomains");
    let (due, ms) = wait_for_due(&mut host);
    assert!(matches!(due, Due::Go { slot: 4, .. }), "stock again");
    // Not at once: another file might take its place.
    assert!((2500..5000).contains(&ms), "{ms} ms");
}

#[test]
fn limits_change_within_a_second_both_ways() {
    let home = Home::new();
    home.write("concurrencyremote", "100\n");
    home.write("concurrencydomains", ":2\n");
    let mut host = home.open(100);
    for slot in 0..2 {
        assert_eq!(ask(&mut host, slot, "a.example"), Ask::Go);
    }
    for slot in 2..6 {
        assert_eq!(ask(&mut host, slot, "a.example"), Ask::Hold);
    }
    home.write("concurrencydomains", ":5\n");
    let (due, ms) = wait_for_due(&mut host);
    assert!(matches!(due, Due::Go { slot: 2, .. }));
    assert!(ms < 1200, "{ms} ms");
    assert!(matches!(host.due(), Due::Go { slot: 3, .. }));
    assert!(matches!(host.due(), Due::Go { slot: 4, .. }));
    assert_eq!(host.due(), Due::Nothing);
    home.write("concurrencydomains", ":3\n");
    next_second();
    // Five run: none is killed, and none starts until fewer than three run.
    for slot in 0..2 {
        host.done(slot, DeliveryEnd::Reported(b"r\0Kok\0"));
        assert_eq!(host.due(), Due::Nothing);
    }
    host.done(2, DeliveryEnd::Reported(b"r\0Kok\0"));
    assert!(matches!(host.due(), Due::Go { slot: 5, .. }));
}

#[test]
fn bad_files_leave_the_last_good_table() {
    let home = Home::new();
    home.write("concurrencyremote", "100\n");
    home.write("concurrencydomains", "a.example:1\n");
    let mut host = home.open(100);
    assert_eq!(ask(&mut host, 0, "a.example"), Ask::Go);
    let domains = home.control("concurrencydomains");
    let mut slot = 1;
    let mut limited = |host: &mut Host, expected: &str| {
        next_second();
        assert_eq!(ask(host, slot, "a.example"), Ask::Hold, "{expected}");
        slot += 1;
        next_second();
        host.due();
        let earlier = "control/concurrencydomains: the last one that had no errors counts";
        let problem = home.problem();
        assert_eq!(problem.trim_end_matches(earlier).trim_end_matches("; "), expected);
    };

    home.write("concurrencydomains", "a.example:1O\n");
    limited(
        &mut host,
        "control/concurrencydomains:1:12: the limit is not a number (empty means unlimited)",
    );

    home.write(
        "concurrencydomains",
        (0..50_000u32).map(|i| ((i * i) >> 3) as u8).collect::<Vec<u8>>(),
    );
    next_second();
    assert_eq!(ask(&mut host, 20, "a.example"), Ask::Hold);

    fs::remove_file(&domains).unwrap();
    fs::create_dir(&domains).unwrap();
    limited(&mut host, "control/concurrencydomains: not a regular file");

    fs::remove_dir(&domains).unwrap();
    assert!(Command::new("mkfifo").arg(&domains).status().unwrap().success());
    limited(&mut host, "control/concurrencydomains: not a regular file");

    fs::remove_file(&domains).unwrap();
    // Unreadable for root, too: a link to itself.
    std::os::unix::fs::symlink("concurrencydomains", &domains).unwrap();
    let error = fs::metadata(&domains).unwrap_err().raw_os_error().unwrap();
    limited(&mut host, &format!("control/concurrencydomains: cannot be read (error {error})"));

    fs::remove_file(&domains).unwrap();
    // A sparse file: only its size matters.
    fs::File::create(&domains).unwrap().set_len(100 << 20).unwrap();
    limited(
        &mut host,
        "control/concurrencydomains: 104857600 bytes are too many, 67108864 is the most",
    );

    home.write("concurrencydomains", "a.example:1\na.example:1\n");
    limited(
        &mut host,
        "control/concurrencydomains:2:1: the domain is in line 1 already; this line counts",
    );

    home.write("concurrencydomains", "a.example:1\r\n# no end of line\n:7");
    limited(&mut host, "");
}

/// When dropped, even by a test that fails, it stops another thread.
struct Stop<'a>(&'a std::sync::atomic::AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Starts gates while another thread replaces the file all the time.
fn replacing(write: impl Fn(&Path, &[u8]) + Sync) {
    let home = Home::new();
    // Half of the file has no mistake and another meaning: no limit for a domain of the second half.
    let text: String = (0..2000).map(|i| format!("d{i:04}.example:{}\n", 1 + i % 2)).collect();
    home.write("concurrencydomains", &text);
    drop(home.open(100));
    let kept = fs::read(home.path.join("lock/gatekept.domains")).unwrap();
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                write(&home.control("concurrencydomains"), text.as_bytes());
            }
        });
        let _stop = Stop(&stop);
        for _ in 0..5 {
            let mut host = home.open_with(100, "", Files::OfOthers { speed: 10 });
            for domain in ["d0000.example", "d1998.example"] {
                assert_eq!(limit(&host, domain), 1);
            }
            assert_eq!(home.status().unwrap().domains, 2000);
            next_second();
            host.due();
            assert_eq!(limit(&host, "d1998.example"), 1);
        }
    });
    assert_eq!(fs::read(home.path.join("lock/gatekept.domains")).unwrap(), kept);
}

#[test]
fn a_file_that_is_renamed_into_place_all_the_time() {
    replacing(|path, text| {
        fs::write(path.with_extension("new"), text).unwrap();
        fs::rename(path.with_extension("new"), path).unwrap();
    });
}

#[test]
fn a_file_that_is_overwritten_all_the_time() {
    replacing(|path, text| {
        let mut file = fs::File::create(path).unwrap();
        for part in text.chunks(text.len() / 4 + 1) {
            std::io::Write::write_all(&mut file, part).unwrap();
            sleep(Duration::from_millis(1));
        }
    });
}

#[test]
fn a_file_that_is_removed_and_made_anew_all_the_time() {
    replacing(|path, text| {
        fs::remove_file(path).unwrap();
        sleep(Duration::from_millis(1));
        fs::write(path, text).unwrap();
        sleep(Duration::from_millis(1));
    });
}

/// A file is written slowly while the gate starts: its first part has no mistake, but is not complete.
#[test]
fn a_file_that_is_half_written_at_the_start_is_waited_for() {
    let home = Home::new();
    let path = home.control("concurrencydomains");
    let mut file = fs::File::create(&path).unwrap();
    let slow = std::thread::spawn(move || {
        for line in ["a.example:3\n", "b.example:4\n", ":5\n"] {
            std::io::Write::write_all(&mut file, line.as_bytes()).unwrap();
            sleep(Duration::from_millis(100));
        }
    });
    let host = home.open_with(100, "", Files::OfOthers { speed: 1 });
    slow.join().unwrap();
    let limits = ["a.example", "b.example", "c.example"].map(|domain| limit(&host, domain));
    // If the machine delays the writer for longer than the gate waits, every domain has 20 until the file is complete.
    assert!([[3, 4, 5], [20, 20, 20]].contains(&limits), "{limits:?}");
}

#[test]
fn the_operators_words_are_reloaded_and_the_last_good_ones_kept() {
    let home = Home::new();
    home.write("concurrencyremote", "100\n");
    home.write("concurrencydomains", ":9::learn\n");
    home.write("concurrencyreplies", "450 \"slow\" limit\n");
    let mut host = home.open(100);
    let (fixed, lower) = (Limit::AtMost(9), Limit::AtMost(2));
    assert_eq!(limit_after(&mut host, "a@a.example\0", "450 slow"), lower);
    assert_eq!(limit_after(&mut host, "a@a.example\0", "450 sluggish"), fixed);
    home.write("concurrencyreplies", "450 \"sluggish\" limit\n450 /slow(/ limit\n");
    next_second();
    assert_eq!(limit_after(&mut host, "a@a.example\0", "450 slow"), lower, "the last good one");
    assert_eq!(limit_after(&mut host, "a@a.example\0", "450 sluggish"), fixed);
    next_second();
    host.timeout_ms();
    assert_eq!(
        home.problem(),
        "control/concurrencyreplies:2:10: the ( is never closed; \
         control/concurrencyreplies: the last one that had no errors counts"
    );
    home.write("concurrencyreplies", "450 \"sluggish\" pause 7200\n");
    next_second();
    assert_eq!(limit_after(&mut host, "a@a.example\0", "450 slow"), fixed);
    assert_eq!(ask(&mut host, 0, "b.example"), Ask::Go);
    let report =
        "ZConnected to 192.0.2.1 but sender was rejected.\nRemote host said: 450 sluggish\n\0";
    host.done(0, DeliveryEnd::Reported(report.as_bytes()));
    assert_eq!(ask(&mut host, 0, "b.example"), Ask::Report);
    assert_eq!(
        text(&host),
        "Zb.example is paused by control/concurrencyreplies:1 for 7200 s; not tried. (#4.4.5)\n"
    );
    home.remove("concurrencyreplies");
    // It may exist again in a moment.
    pass_ms(3100);
    assert_eq!(ask(&mut host, 0, "b.example"), Ask::Go, "without the file there is no pause");
    next_second();
    host.timeout_ms();
    assert_eq!(home.problem(), "");
}

/// The lines that the gate has for qmail-send's log.
fn notices(host: &mut Host) -> Vec<String> {
    let mut all = Vec::new();
    while host.due() == Due::Call {
        all.push(text(host));
    }
    all
}

#[test]
fn the_log_is_told_what_counts_in_place_of_a_file() {
    let home = Home::new();
    home.write("concurrencydomains", ":20\na.example:3\n");
    home.write("smtproutes", ":relay.example|user|S3cret\n");
    let mut host = at_rest(&home, |home| home.open(10));
    assert_eq!(notices(&mut host), [""; 0]);
    drop(host);
    home.write("concurrencydomains", ":20\na.example:3\nb.example:x\n");
    home.remove("smtproutes");
    fs::create_dir(home.control("smtproutes")).unwrap();
    let mut host = at_rest(&home, |home| home.open(10));
    let of_domains = "Nwarning: control/concurrencydomains:3:11: the limit is not a number (empty means unlimited); \
                      the last one that had no errors counts\n";
    let of_routes = "Nwarning: control/smtproutes: not a regular file; the last one that had no errors counts\n";
    assert_eq!(notices(&mut host), [of_domains, of_routes]);
    next_second();
    assert_eq!(notices(&mut host), [""; 0], "once");
    // Without a copy: the good lines.
    fs::write(home.path.join("lock/gatekept.domains"), "").unwrap();
    let mut host = at_rest(&home, |home| home.open(10));
    let said = notices(&mut host);
    assert!(
        said[0].ends_with("its good lines count, and a limit of 20 for all other domains\n"),
        "{said:?}"
    );
}

#[test]
fn an_empty_file_in_the_place_of_limits_opens_nothing() {
    // A byte order mark and white space are nothing, either.
    for empty in ["", "\u{feff}", "\n", "\u{feff} \t\r\n\n"] {
        empty_in_the_place_of_limits(empty);
    }
}

fn empty_in_the_place_of_limits(empty: &str) {
    let home = Home::new();
    home.write("concurrencydomains", "a.example:1\n");
    let mut host = at_rest(&home, |home| home.open(10));
    assert_eq!(ask(&mut host, 0, "a.example"), Ask::Go);
    // What a script leaves on a full disk: it writes a new file, which stays empty, and renames it.
    home.write("concurrencydomains.new", empty);
    fs::rename(home.control("concurrencydomains.new"), home.control("concurrencydomains")).unwrap();
    // Also after a restart.
    for mut host in [host, at_rest(&home, |home| home.open(10))] {
        for _ in 0..20 {
            next_second();
            let _ = notices(&mut host);
        }
        let _ = ask(&mut host, 1, "a.example");
        assert_eq!(ask(&mut host, 2, "a.example"), Ask::Hold);
        assert_eq!(
            home.problem(),
            "control/concurrencydomains: it is empty; control/concurrencydomains: the last one that had no errors counts"
        );
    }
    // To have no limits, the operator removes the file or writes a comment.
    home.write("concurrencydomains", "# none\n");
    let mut host = at_rest(&home, |home| home.open(10));
    assert_eq!(ask(&mut host, 1, "a.example"), Ask::Go);
    assert_eq!(ask(&mut host, 2, "a.example"), Ask::Go);
    // That is a good file, too: an empty one in its place changes nothing.
    home.write("concurrencydomains", empty);
    pass_ms(20_000);
    assert_eq!(ask(&mut host, 3, "a.example"), Ask::Go);
    assert_eq!(ask(&mut host, 4, "a.example"), Ask::Go);
}

#[test]
fn an_empty_file_without_a_last_good_one_limits_every_domain_to_twenty() {
    const EMPTY: &str = "control/concurrencydomains: it is empty; control/concurrencydomains: no earlier one without \
                         errors is known: its good lines count, and a limit of 20 for all other domains";
    // From the start, and while the gate runs without limits.
    for before_start in [true, false] {
        let home = Home::new();
        home.write("concurrencyremote", "100\n");
        if before_start {
            home.write("concurrencydomains", "");
        }
        let mut host = at_rest(&home, |home| home.open(100));
        if !before_start {
            assert_eq!(ask(&mut host, 50, "a.example"), Ask::Go);
            host.done(50, DeliveryEnd::Reported(b"r\0Kok\0"));
            home.write("concurrencydomains", "");
            pass_ms(20_000);
        }
        for slot in 0..20 {
            assert_eq!(ask(&mut host, slot, "a.example"), Ask::Go, "{before_start}");
        }
        assert_eq!(ask(&mut host, 20, "a.example"), Ask::Hold, "{before_start}");
        assert_eq!(home.problem(), EMPTY);
        let said = notices(&mut host);
        assert_eq!(
            said,
            [
                "Nwarning: control/concurrencydomains: it is empty; no earlier one without errors is known: its good lines \
              count, and a limit of 20 for all other domains\n"
            ]
        );
    }
}

#[test]
fn a_hundred_thousand_lines_load_quickly() {
    let home = Home::new();
    let text: String = (0..100_000).map(|i| format!("domain{i}.example:{}\n", i % 50)).collect();
    home.write("concurrencydomains", text);
    let start = Instant::now();
    let before = processor_time();
    let mut host = home.open(10);
    println!("100,000 lines loaded in {:?}", start.elapsed());
    if let (Some(before), Some(after)) = (before, processor_time()) {
        assert!(after - before < Duration::from_secs(5), "{:?}", after - before);
    }
    assert_eq!(ask(&mut host, 0, "domain99951.example"), Ask::Go);
    assert_eq!(home.status().unwrap().domains, 100_000);
}

#[test]
fn paths_are_bytes() {
    let odd = OsStr::from_bytes(b"no/such/\xff/place");
    let open = |slots| open(Files::OfTheTest, slots, odd, odd, Reads::default());
    let mut host = open(3).unwrap();
    assert_eq!(ask(&mut host, 0, "a.example"), Ask::Go);
    assert!(open(0).is_err());
    assert!(open(65536).is_err());
    assert!(!Path::new(odd).exists());
}

#[test]
fn the_map_of_sites_is_reloaded_and_the_last_good_one_kept() {
    let home = Home::new();
    home.write("concurrencydomains", ":20\nmx:.outlook.com:2:outlook\n");
    let mut host = home.open(50);
    let domains = ["a.example", "b.example"];
    assert_eq!(keys(&host, domains), domains);
    home.write("concurrencysites", "a.example:outlook\nnonsense\n");
    next_second();
    for slot in 0..3 {
        ask(&mut host, slot, "a.example");
    }
    assert_eq!(keys(&host, domains), ["outlook", "b.example"]);
    assert_eq!((host.gate().in_use(), host.held()), (3, 1));
    next_second();
    host.due();
    assert_eq!(
        home.problem(),
        "control/concurrencysites:2: not domain:group, so this line is ignored"
    );
    assert_eq!((home.status().unwrap().mapped, home.status().unwrap().seen), (1, 0));
    home.remove("concurrencysites");
    fs::create_dir(home.control("concurrencysites")).unwrap();
    next_second();
    host.due();
    assert_eq!(keys(&host, domains), ["outlook", "b.example"], "the last good one");
    fs::remove_dir(home.control("concurrencysites")).unwrap();
    pass_ms(3100);
    host.due();
    assert_eq!(keys(&host, domains), domains);
}
