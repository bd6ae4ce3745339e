//! The status file: what the gate writes, and how it is read.

use std::fs;
use std::process::Command;

use qpatch_gate::escape::Escaped;
use qpatch_gate::gate::DeliveryEnd;
use qpatch_gate::host::{Ask, Due};
use qpatch_gate::process::Identity;
use qpatch_gate::rules::KeyKind;
use qpatch_gate::status::{InForce, State};
use qpatch_gate::table::Limit;
use qpatch_gate_status::{Status, StatusError};

use crate::home::{Home, ask, next_second};

#[test]
fn the_status_file_tells_what_happens() {
    let home = Home::new();
    home.write("concurrencyremote", "5\n");
    home.write("concurrencydomains", ":20\na%b.example:3\nbusy.example:2:Busy\nfree.example:\n");
    let mut host = home.open(50);
    for slot in 0..4 {
        ask(&mut host, slot, "busy.example");
    }
    ask(&mut host, 4, "free.example");
    ask(&mut host, 5, "a%b.example");
    host.done(4, DeliveryEnd::Reported(b"r\0Kok\0"));
    host.done(
        5,
        DeliveryEnd::Reported(b"sbusy\0Z10.0.0.1 does not\tlike you.\nRemote host said: 421\n\0"),
    );
    next_second();
    host.due();
    let status = home.status().unwrap();
    assert_eq!((status.state, status.slots, status.concurrency_remote), (State::Limits, 50, 5));
    assert_eq!((status.in_use, status.held), (3, 1));
    assert_eq!(
        (status.totals.asked, status.totals.done, status.totals.busy, status.totals.held),
        (6, 2, 1, 1)
    );
    assert_eq!(status.pid, std::process::id());
    let odd = "control/concurrencydomains:2:2: no host's name has '%'";
    assert_eq!((&status.problems[..], status.unlisted), (&[odd.to_string()][..], 0));
    assert_eq!(status.in_force, InForce::File);
    let identity = Identity::of_self();
    assert_eq!(
        (status.start_ticks, status.namespace, status.program),
        (identity.start_ticks, identity.namespace, Escaped(identity.name()).to_string())
    );
    let key = |name: &str| status.keys.iter().find(|key| key.name == name).unwrap();
    let busy = key("busy");
    assert_eq!(
        (busy.kind, busy.limit, busy.running, busy.held),
        (KeyKind::Group, Limit::AtMost(2), 2, 1)
    );
    assert_eq!((busy.busy, busy.peak), (1, 2));
    assert_eq!(busy.away, 1);
    assert_eq!(key("free.example").limit, Limit::Unlimited);
    let failed = key("a%25b.example");
    assert_eq!(failed.done, 1);
    assert_eq!(failed.error, "10.0.0.1 does not%09like you.%0aRemote host said: 421%0a");
    assert_eq!(status.keys.len(), 3);
}

#[test]
fn torn_and_foreign_status_files() {
    let home = Home::new();
    home.write("concurrencydomains", ":1\n");
    let _host = home.open(10);
    let path = home.path.join("lock/gatestatus");
    let whole = fs::read(&path).unwrap();
    assert!(Status::parse(&whole).is_ok());
    for cut in 1..whole.len() - 1 {
        let error = Status::parse(&whole[..cut]).unwrap_err();
        assert!(matches!(error, StatusError::Torn | StatusError::Foreign), "{cut}: {error:?}");
    }
    let old = String::from_utf8(whole.clone()).unwrap().replace("\t1\t1\n", "\t1\t2\n");
    assert_eq!(
        Status::parse(old.as_bytes()),
        Err(StatusError::Torn),
        "the beginning of one, the end of another"
    );
    let longer = [&whole[..], b"key\tleft over from a longer one"].concat();
    assert!(Status::parse(&longer).is_ok());
    assert_eq!(Status::parse(b""), Err(StatusError::Empty));
    assert_eq!(Status::parse(&[0; 1024]), Err(StatusError::Empty));
    assert_eq!(Status::parse(b"something else\n"), Err(StatusError::Foreign));
    assert_eq!(Status::parse(b"qpatch-gate\t2\t1\nend\t1\n"), Err(StatusError::Foreign));
    assert_eq!(Status::parse(b"qpatch-gate\t1\t1\nslots\tx\nend\t1\n"), Err(StatusError::Line(2)));
}

/// An earlier reader ignores what a later version adds. What an earlier gate did not write is not known.
#[test]
fn versions_of_the_status_file() {
    let home = Home::new();
    home.write("concurrencydomains", ":1\nown.example:2\n");
    let mut host = home.open(10);
    for (slot, domain) in (0..).zip(["own.example", "other.example", "other.example"]) {
        ask(&mut host, slot, domain);
    }
    next_second();
    host.due();
    let text = fs::read_to_string(home.path.join("lock/gatestatus")).unwrap();
    let now = Status::parse(text.as_bytes()).unwrap();
    let named: Vec<_> =
        now.keys.iter().map(|key| (&key.name[..], key.named, key.held_ever)).collect();
    assert!(named.contains(&("own.example", true, 0)), "{named:?}");
    assert!(named.contains(&("other.example", false, 1)), "{named:?}");

    let later = text
        .replace('\n', "\tmore\t\t1\n")
        .replace("state", "weather\tfine\nkey\tplanet\tmars\nstate");
    assert_eq!(Status::parse(later.as_bytes()), Err(StatusError::Line(5)), "a key has its fields");
    let later = later.replace("key\tplanet\tmars\n", "");
    assert_eq!(Status::parse(later.as_bytes()).as_ref(), Ok(&now));
    let planet =
        text.replace("unlisted", "key\tplanet\tm\t1\t0\t0\t0\t0\t0\t0\t0\t0\t1\t0\t0\t\nunlisted");
    assert_eq!(Status::parse(planet.as_bytes()).as_ref(), Ok(&now), "of a kind of a later version");
    let word = text.replace("\tfile\n", "\tpartly\n");
    assert_eq!(Status::parse(word.as_bytes()).unwrap().in_force, InForce::None);
    let next = text.replace("qpatch-gate\t1", "qpatch-gate\t2");
    assert_eq!(Status::parse(next.as_bytes()), Err(StatusError::Foreign));

    // As the first gates wrote it.
    let fields =
        |line: &str, most: usize| line.split('\t').take(most).collect::<Vec<_>>().join("\t");
    let first = text.lines().map(|line| match line.split_once('\t') {
        Some(("pid", _)) => fields(line, 2),
        Some(("table", _)) => fields(line, 4),
        Some(("key", _)) => fields(line, 16),
        _ => line.to_string(),
    });
    let first = first.collect::<Vec<_>>().join("\n") + "\n";
    assert!(first.len() < text.len());
    let mut expected = Status { start_ticks: 0, namespace: 0, program: String::new(), ..now };
    for key in &mut expected.keys {
        (key.named, key.held_ever) = (false, 0);
    }
    assert_eq!(Status::parse(first.as_bytes()), Ok(expected));
    // Fewer fields than the first gates wrote are an error.
    for (field, least) in [
        ("written", 2),
        ("pid", 2),
        ("state", 2),
        ("slots", 5),
        ("total", 8),
        ("table", 4),
        ("key", 16),
    ] {
        let short = first.lines().map(|line| match line.starts_with(field) {
            true => fields(line, least - 1),
            false => line.to_string(),
        });
        let short = short.collect::<Vec<_>>().join("\n") + "\n";
        assert!(matches!(Status::parse(short.as_bytes()), Err(StatusError::Line(_))), "{short}");
    }
}

/// Names come out as printable ASCII, whatever the file has, and different names stay different.
#[test]
fn names_of_any_bytes() {
    let key = |name: &[u8]| {
        let head = b"qpatch-gate\t1\t1\nstate\tlimits\nproblem\t\x1b\x9b\nkey\tdomain\t";
        let tail = b"\t1\t0\t0\t0\t0\t0\t0\t0\t0\t1\t0\t0\t\xff\x07\nend\t1\n";
        let status = Status::parse(&[&head[..], name, tail].concat()).unwrap();
        assert_eq!((&status.problems[0][..], &status.keys[0].error[..]), ("%1b%9b", "%ff%07"));
        status.keys[0].name.clone()
    };
    let mut names = std::collections::BTreeSet::new();
    for byte in (0..=255u8).filter(|byte| !b"\t\n%".contains(byte)) {
        let name = key(&[byte]);
        assert!(name.bytes().all(|byte| (b' '..=b'~').contains(&byte)), "{name}");
        assert_eq!(name, key(Escaped(&[byte]).to_string().as_bytes()), "escaped or not");
        assert!(names.insert(name));
    }
    assert_eq!((key(b"%"), key(b"%25")), ("%25".to_string(), "%25".to_string()));
    assert_eq!(key("\u{202e}\u{200f}".as_bytes()), "%e2%80%ae%e2%80%8f");
}

#[test]
fn without_a_status_file_mail_goes_on() {
    let home = Home::new();
    let status = home.path.join("lock/gatestatus");
    home.write("concurrencydomains", ":1\n");
    fs::remove_file(&status).unwrap();
    let mut host = home.open(10);
    assert_eq!(ask(&mut host, 0, "a.example"), Ask::Go);
    assert_eq!(ask(&mut host, 1, "a.example"), Ask::Hold);
    next_second();
    assert_eq!(host.due(), Due::Nothing);
    assert!(!status.exists(), "it is not created");
    assert!(Command::new("mkfifo").arg(&status).status().unwrap().success());
    host.done(0, DeliveryEnd::NeverStarted);
    next_second();
    assert!(matches!(host.due(), Due::Go { slot: 1, .. }));
    fs::remove_file(&status).unwrap();
    fs::write(&status, "").unwrap();
    host.done(1, DeliveryEnd::NeverStarted);
    next_second();
    host.due();
    assert_eq!(
        home.problem(),
        "queue/lock/gatestatus: not a regular file",
        "the last write failed"
    );
}
