use std::fs::File;
use std::io::Write as _;
use std::path::Path;
use std::time::SystemTime;

use super::*;
use crate::control::limit::{Cap, Learning, Limit};
use crate::core::gate::{BusyReason, Key, PauseCause};
use crate::core::learn::{Coverage, EndedDelivery, StartedIn};
use crate::core::rules::KeyKind;
use crate::util::random::Random;

fn busy(kind: KeyKind, name: &[u8], limit: u32, secs: u32) -> String {
    let cap = Cap { limit: Limit::AtMost(limit), learning: Learning::On };
    let mut key = Key::new(kind, name.to_vec(), cap);
    key.number = 7;
    told(&key, BusyReason::AtLimit, secs)
}

fn told(key: &Key, why: BusyReason, secs: u32) -> String {
    let mut out = Text::default();
    write_busy(&mut out, key, Busy { key: 0, secs, why }).unwrap();
    String::from_utf8(out.bytes).unwrap()
}

#[test]
fn the_texts_of_what_the_server_does_not_take() {
    let cap = Cap { limit: Limit::AtMost(20), learning: Learning::On };
    let mut key = Key::new(KeyKind::Domain, b"gmail.com".to_vec(), cap);
    (key.number, key.running) = (7, 11);
    key.error =
        b"Connected to 10.0.0.1 but greeting failed.\nRemote host said: 421 \x1b[2J\n".to_vec();
    assert_eq!(
        told(&key, BusyReason::Refused, 61),
        "B61 7 gmail.com refused this one beside 11 (limit 20); to be tried again: Connected to 10.0.0.1 but \
         greeting failed./Remote host said: 421 ?[2J/ (#4.4.5)\n"
    );
    assert_eq!(
        told(&key, BusyReason::Paused(PauseCause::NoConnection), 61),
        "B61 7 gmail.com: no connection to its server succeeds, one at a time is tried; not tried. (#4.4.1)\n"
    );
    assert_eq!(
        told(&key, BusyReason::Suspended(PauseCause::NoConnection), 61),
        "Zgmail.com: no connection to its server succeeds, none is tried for 61 s; not tried. (#4.4.1)\n"
    );
    assert_eq!(
        told(&key, BusyReason::Paused(PauseCause::Rule(12)), 61),
        "B61 7 gmail.com is paused by control/concurrencyreplies:12; not tried. (#4.4.5)\n"
    );
    assert_eq!(
        told(&key, BusyReason::Suspended(PauseCause::Rule(12)), 7200),
        "Zgmail.com is paused by control/concurrencyreplies:12 for 7200 s; not tried. (#4.4.5)\n"
    );
    let refused = EndedDelivery {
        now_us: 2,
        started_us: 1,
        running: 11,
        beside: 11,
        limit: 20,
        learning: Learning::On,
        seen: crate::report::Seen::TooMany(crate::report::Sent::No),
        coverage: Coverage::AllDeliveries,
        started_in: StartedIn::FreePlace,
    };
    key.learned.delivery_ended(&refused, &mut Random::new(1));
    assert_eq!(
        told(&key, BusyReason::AtLimit, 61),
        "B61 7 gmail.com is at 11 deliveries, its server takes no more (limit 20); not tried. (#4.4.5)\n"
    );
}

/// A home whose status has been written by an earlier process, if `old` says so.
fn home(name: &str, old: &str, domains: Option<&str>) -> OsString {
    let path = std::env::temp_dir().join(format!("gate-beat-{name}-{}", std::process::id()));
    let _ = std::fs::remove_dir_all(&path);
    std::fs::create_dir_all(&path).unwrap();
    std::fs::write(path.join("status"), old).unwrap();
    std::fs::write(path.join("gatekept.domains"), "").unwrap();
    if let Some(domains) = domains {
        put(path.as_os_str(), domains);
    }
    path.into_os_string()
}

/// Changes concurrencydomains, an hour ago: the time that passes here is not the file system's.
fn put(home: &OsStr, domains: &str) {
    let mut file = File::create(Path::new(home).join("concurrencydomains")).unwrap();
    file.write_all(domains.as_bytes()).unwrap();
    file.set_modified(SystemTime::now() - Duration::from_secs(3600)).unwrap();
}

fn read(home: &OsStr) -> Result<status::Status, status::StatusError> {
    status::Status::parse(&std::fs::read(Path::new(home).join("status")).unwrap())
}

/// The time goes on by so much.
fn pass(host: &mut Host, secs: u64) {
    host.clock.start -= Duration::from_secs(secs);
}

#[test]
fn an_idle_gate_writes_once_a_minute() {
    let home = home("idle", "", Some(":1\n"));
    let mut host = Host::open(10, &home, &join(&home, "status").unwrap(), 1).unwrap();
    assert_eq!(read(&home).unwrap().generation, 1);
    pass(&mut host, 30);
    assert!((10_000..=30_010).contains(&host.timeout_ms().unwrap()));
    assert_eq!(read(&home).unwrap().generation, 1);
    for minute in 2..5 {
        pass(&mut host, 60);
        assert!((30_000..=60_010).contains(&host.timeout_ms().unwrap()));
        let status = read(&home).unwrap();
        assert_eq!((status.generation, status.in_force), (minute, InForce::File));
    }
    // It sees then what became of its files, with nobody asking for a delivery.
    put(&home, ":2O\n");
    pass(&mut host, 60);
    host.timeout_ms();
    let status = read(&home).unwrap();
    assert_eq!(
        (status.in_force, status.state, status.problems.len()),
        (InForce::Kept, State::Limits, 2)
    );
    put(&home, ":2\n# now\n");
    pass(&mut host, 60);
    host.timeout_ms();
    assert_eq!(read(&home).unwrap().in_force, InForce::File);
    std::fs::remove_file(Path::new(&home).join("concurrencydomains")).unwrap();
    let long_ago = SystemTime::now() - Duration::from_secs(3600);
    File::open(Path::new(&home)).unwrap().set_modified(long_ago).unwrap();
    pass(&mut host, 60);
    host.timeout_ms();
    let status = read(&home).unwrap();
    assert_eq!((status.in_force, status.state), (InForce::None, State::Stock));
    let generation = status.generation;
    pass(&mut host, 60);
    host.timeout_ms();
    assert_eq!(read(&home).unwrap().generation, generation + 1, "also without limits");
    host.fail();
    assert_eq!(read(&home).unwrap().in_force, InForce::None);
    let _ = std::fs::remove_dir_all(&home);
}

/// The copy is looked at once a minute, also while the control file cannot be used, and the copy is all there is.
#[test]
fn a_copy_that_somebody_has_changed_is_written_again() {
    let other = {
        let home = home("other", "", Some("c.example:9\n"));
        Host::open(10, &home, &join(&home, "status").unwrap(), 1).unwrap();
        let other = std::fs::read(Path::new(&home).join("gatekept.domains")).unwrap();
        let _ = std::fs::remove_dir_all(&home);
        other
    };
    let whole = "a.example:3\n:30\n";
    for now in [whole, "a.example:3O\n"] {
        let home = home("changed", "", Some(whole));
        let kept = Path::new(&home).join("gatekept.domains");
        let read_kept =
            || kept::read(&File::open(&kept).unwrap(), 1000).map(|(contents, _)| contents);
        let mut host = Host::open(10, &home, &join(&home, "status").unwrap(), 1).unwrap();
        put(&home, now);
        pass(&mut host, 60);
        host.timeout_ms();
        assert_eq!(read_kept(), Ok(whole.as_bytes().to_vec()));
        let torn = &other[..other.len() - 1];
        for (what, bytes) in [("empty", &b""[..]), ("torn", torn), ("other", &other)] {
            std::fs::write(&kept, bytes).unwrap();
            pass(&mut host, 60);
            host.timeout_ms();
            assert_eq!(read_kept(), Ok(whole.as_bytes().to_vec()), "{now:?}: {what}");
        }
        // Removed, it cannot be made again; when it is there, it is written.
        std::fs::remove_file(&kept).unwrap();
        pass(&mut host, 60);
        host.timeout_ms();
        let problems = read(&home).unwrap().problems;
        let what = "queue/lock/gatekept.domains: cannot be written (error 2)";
        assert!(problems.iter().any(|problem| problem == what), "{problems:?}");
        std::fs::write(&kept, "").unwrap();
        pass(&mut host, 60);
        host.timeout_ms();
        assert_eq!(read_kept(), Ok(whole.as_bytes().to_vec()), "{now:?}: removed");
        let problems = read(&home).unwrap().problems;
        assert!(!problems.iter().any(|problem| problem.contains("gatekept")), "{problems:?}");
        let _ = std::fs::remove_dir_all(&home);
    }
    // What is there without a control file is of no use: an operator who has removed it wants no limits.
    let home = home("none", "", None);
    let mut host = Host::open(10, &home, &join(&home, "status").unwrap(), 1).unwrap();
    let kept = Path::new(&home).join("gatekept.domains");
    std::fs::write(&kept, &other).unwrap();
    let long_ago = SystemTime::now() - Duration::from_secs(3600);
    File::open(Path::new(&home)).unwrap().set_modified(long_ago).unwrap();
    pass(&mut host, 60);
    host.timeout_ms();
    assert_eq!(std::fs::read(&kept).unwrap(), b"");
    let _ = std::fs::remove_dir_all(&home);
}

#[test]
fn a_gate_without_limits_writes_too() {
    let home = home("stock", "qpatch-gate\t1\t7\nstate\tlimits\nend\t7\n", None);
    let status = join(&home, "status").unwrap();
    let mut host = Host::open(10, &home, &status, 1).unwrap();
    let now = read(&home).unwrap();
    assert_eq!(
        (now.state, now.in_force, now.pid),
        (State::Stock, InForce::None, std::process::id())
    );
    pass(&mut host, 60);
    host.timeout_ms();
    assert_eq!(read(&home).unwrap().generation, 2);
    let _ = std::fs::remove_dir_all(&home);
}

#[test]
fn the_text_of_a_busy_report() {
    assert_eq!(
        busy(KeyKind::Domain, b"gmail.com", 20, 73),
        "B73 7 gmail.com is at its limit of 20 deliveries; not tried. (#4.4.5)\n"
    );
    assert_eq!(
        busy(KeyKind::Group, b"yahoo", 1, 3600),
        "B3600 7 group yahoo is at its limit of 1 delivery; not tried. (#4.4.5)\n"
    );
    assert_eq!(
        busy(KeyKind::Relay, b"mx.example", 0, 1),
        "B1 7 relay mx.example is closed (limit 0); not tried. (#4.4.5)\n"
    );
    assert_eq!(
        busy(KeyKind::Domain, b"a\nb\0\xff c%", 2, 5),
        "B5 7 a%0ab%00%ff%20c%25 is at its limit of 2 deliveries; not tried. (#4.4.5)\n"
    );
    assert!(busy(KeyKind::Domain, &[b'x'; 255], 2, 5).len() < 200);
}
