//! The copies of the last good control files, and what counts after a restart.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use qpatch_gate::gate::DeliveryEnd;
use qpatch_gate::host::Ask;
use qpatch_gate::problem::File;
use qpatch_gate::rules::KeyKind;
use qpatch_gate::status::State;

use crate::home::{Home, Host, SENDERS, ask, ask_from, at_rest, keys, limit, next_second, pass_ms};

#[test]
fn without_a_good_file_ever_its_good_lines_count_and_twenty_for_all_others() {
    let home = Home::new();
    home.write("concurrencydomains", "a.example\nb.example:2\nfree.example:\n:500\n");
    home.write("concurrencyremote", "many\n");
    home.write("smtproutes", "nonsense\n");
    let mut host = home.open(100);
    assert_eq!(
        ["a.example", "b.example", "free.example", "c.example"].map(|domain| limit(&host, domain)),
        [20, 2, u32::MAX, 20]
    );
    let status = home.status().unwrap();
    assert_eq!(status.state, State::Limits);
    assert_eq!(
        status.problems,
        [
            "control/concurrencydomains:1:10: no colon: a line is domain:limit[:group[:words]]",
            "control/concurrencydomains: no earlier one without errors is known: its good lines count, and a limit of 20 for \
             all other domains",
            "control/smtproutes:1: no colon: qmail-remote ignores this line",
            "control/concurrencyremote:1: not a number, so the default of 20 counts",
        ]
    );
    assert_eq!(status.concurrency_remote, 20);
    // The limits follow the good lines of the file while it has errors. A default below 20 stays.
    home.write("concurrencydomains", "a.example:7\nb.example\n:5\n");
    next_second();
    host.due();
    assert_eq!(["a.example", "b.example"].map(|domain| limit(&host, domain)), [7, 5]);
    home.write("concurrencydomains", ":400\n");
    next_second();
    host.due();
    assert_eq!(limit(&host, "a.example"), 400);
}

/// Replaces a control file by something that cannot be used.
type Break = fn(&Home, &str);

const BREAKS: [(&str, Break); 7] = [
    ("a mistake", |home, name| home.write(name, "a.example:1O\n:\n")),
    ("binary", |home, name| {
        home.write(name, (0..50_000u32).map(|i| ((i * i) >> 3) as u8).collect::<Vec<u8>>());
    }),
    ("no right to read it", |home, name| {
        home.write(name, ":\n");
        // A link to itself is unreadable for root, too.
        fs::remove_file(home.control(name)).unwrap();
        std::os::unix::fs::symlink(name, home.control(name)).unwrap();
    }),
    ("a link that leads nowhere", |home, name| {
        let _ = fs::remove_file(home.control(name));
        std::os::unix::fs::symlink("away", home.control(name)).unwrap();
    }),
    ("a folder", |home, name| {
        let _ = fs::remove_file(home.control(name));
        fs::create_dir(home.control(name)).unwrap();
    }),
    ("too large", |home, name| {
        let _ = fs::remove_file(home.control(name));
        fs::File::create(home.control(name)).unwrap().set_len(100 << 20).unwrap();
    }),
    ("control is away", |home, _| {
        fs::rename(home.path.join("control"), home.path.join("gone")).unwrap();
    }),
];

#[test]
fn the_last_good_table_counts_after_a_restart() {
    for (what, make) in BREAKS {
        let home = Home::new();
        home.write("concurrencydomains", "# mine\na.example:3:g:learn\n:30\n");
        drop(home.open(100));
        make(&home, "concurrencydomains");
        for _ in 0..2 {
            let host = home.open(100);
            let limits = ["a.example", "b.example"].map(|domain| limit(&host, domain));
            assert_eq!(limits, [3, 30], "{what}");
            let status = home.status().unwrap();
            assert_eq!((status.state, status.domains), (State::Limits, 2), "{what}");
            assert!(status.loaded_secs > 0, "{what}");
            let [wrong, counts, ..] = &status.problems[..] else { panic!("{what}: {status:?}") };
            assert!(wrong.starts_with("control/concurrencydomains:"), "{what}: {wrong}");
            assert_eq!(
                counts,
                "control/concurrencydomains: the last one that had no errors counts"
            );
        }
    }
}

/// An operator who has removed the file wants no limits, and does not want an earlier file back later.
#[test]
fn without_the_file_there_are_no_limits_whatever_was_kept() {
    let home = Home::new();
    home.write("concurrencydomains", ":3\n");
    drop(home.open(100));
    assert!(fs::metadata(home.path.join("lock/gatekept.domains")).unwrap().len() > 0);
    home.remove("concurrencydomains");
    assert_eq!(limit(&home.open(100), "a.example"), 3, "it may be there again in an instant");
    pass_ms(3100);
    let host = home.open(100);
    assert_eq!(limit(&host, "a.example"), u32::MAX);
    assert_eq!((home.status().unwrap().state, home.problem()), (State::Stock, String::new()));
    assert_eq!(fs::metadata(home.path.join("lock/gatekept.domains")).unwrap().len(), 0);
    drop(host);
    home.write("concurrencydomains", ":x\n");
    assert_eq!(limit(&home.open(100), "a.example"), 20);
}

#[test]
fn routes_and_sites_count_after_a_restart_and_no_secret_is_kept() {
    let home = Home::new();
    home.write("concurrencydomains", ":20\nmx:.outlook.com:2:outlook\n");
    home.write(
        "smtproutes",
        "a.example:relay.example|user|S3cret\nb.example:[2001:DB8::0:1]:26 user S3cret\n.c.example:\n# S3cret\n\
         d.example:user:S3cret@r.example\n:Smart.Example:587|u|S3cret\n",
    );
    home.write("concurrencysites", "a.example:outlook\nrelay.example:outlook\n");
    let domains = ["a.example", "b.example", "x.c.example", "d.example", "e.example"];
    let keys = |host: &Host| {
        domains.map(|domain| {
            let name = host.gate().rules().resolve(domain.as_bytes()).name;
            String::from_utf8(name.to_vec()).unwrap()
        })
    };
    let before = keys(&home.open(100));
    assert_eq!(before, ["outlook", "2001:db8::1", "x.c.example", "d.example", "smart.example"]);
    for file in fs::read_dir(home.path.join("lock")).unwrap() {
        let bytes = fs::read(file.unwrap().path()).unwrap();
        assert!(!bytes.windows(6).any(|window| window == b"S3cret"));
        assert!(!bytes.windows(4).any(|window| window == b"user" || window == b"|u|S"));
    }
    for (what, make) in
        BREAKS.into_iter().filter(|(what, _)| ["a folder", "too large"].contains(what))
    {
        make(&home, "smtproutes");
        make(&home, "concurrencysites");
        let host = home.open(100);
        assert_eq!(keys(&host), before, "{what}");
        let problems = home.status().unwrap().problems;
        assert!(
            problems.contains(
                &"control/smtproutes: the last one that had no errors counts".to_string()
            )
        );
        drop(host);
        for name in ["smtproutes", "concurrencysites"] {
            let _ = fs::remove_dir(home.control(name));
        }
    }
}

/// What a crash, a full disk or another program may leave of the copy.
#[test]
fn a_copy_that_is_not_whole_counts_for_nothing() {
    let home = Home::new();
    home.write("concurrencydomains", "a.example:3\n:30\n");
    let kept = home.path.join("lock/gatekept.domains");
    drop(home.open(100));
    let whole = fs::read(&kept).unwrap();
    home.write("concurrencydomains", "nonsense\n");
    let other = [&whole[..whole.len() - 3], b"99\n"].concat();
    for (what, bytes) in [
        ("cut", &whole[..whole.len() - 4]),
        ("cut in the first line", &whole[..20]),
        ("changed", &other),
        ("zeros", &[0; 100]),
        ("noise", b"\xff\xfe\n:::\n"),
    ] {
        fs::write(&kept, bytes).unwrap();
        let host = home.open(100);
        assert_eq!(
            ["a.example", "b.example"].map(|domain| limit(&host, domain)),
            [20, 20],
            "{what}"
        );
        assert!(
            home.problem().contains("; queue/lock/gatekept.domains: not whole, so it is not used"),
            "{what}"
        );
    }
    fs::write(&kept, &whole).unwrap();
    assert_eq!(limit(&home.open(100), "a.example"), 3);
    // The next good file repairs it.
    fs::write(&kept, &other).unwrap();
    home.write("concurrencydomains", "a.example:4\n");
    assert_eq!(limit(&home.open(100), "a.example"), 4);
    assert_eq!(home.problem(), "");
    home.write("concurrencydomains", "nonsense\n");
    assert_eq!(limit(&home.open(100), "a.example"), 4);
}

#[test]
fn where_nothing_can_be_kept_it_is_said_and_mail_goes_on() {
    let home = Home::new();
    let kept = home.path.join("lock/gatekept.domains");
    fs::remove_file(&kept).unwrap();
    home.write("concurrencydomains", ":3\n");
    let mut host = home.open(100);
    assert_eq!(ask(&mut host, 0, "a.example"), Ask::Go);
    assert_eq!(limit(&host, "a.example"), 3);
    assert_eq!(home.problem(), "queue/lock/gatekept.domains: cannot be written (error 2)");
    assert!(!kept.exists(), "it is not created");
    fs::create_dir(&kept).unwrap();
    drop(host);
    assert_eq!(limit(&home.open(100), "a.example"), 3);
    assert_eq!(home.problem(), "queue/lock/gatekept.domains: not a regular file");
    fs::remove_dir(&kept).unwrap();
    // A device that is full.
    if fs::metadata("/dev/full").is_ok() {
        std::os::unix::fs::symlink("/dev/full", &kept).unwrap();
        assert_eq!(limit(&home.open(100), "a.example"), 3);
        assert_eq!(home.problem(), "queue/lock/gatekept.domains: not a regular file");
    }
}

/// A small file system, unmounted at the end; None if this process may not mount one.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn mount(path: PathBuf, bytes: u32) -> Option<Self> {
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", &format!("size={bytes}"), "tmpfs"]).arg(&path);
        if mount.output().is_ok_and(|output| output.status.success()) {
            return Some(Self(path));
        }
        qpatch_test_support::skip("a small file system cannot be mounted here; root can");
        None
    }

    /// Fills the rest of it.
    fn fill(&self) {
        let mut filler = fs::File::create(self.0.join("filler")).unwrap();
        while std::io::Write::write_all(&mut filler, &[1; 512]).is_ok() {}
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.0).status();
    }
}

/// With a full disk the copy stays, mail goes on, and what could not be kept is kept as soon as there is room.
#[test]
fn a_full_disk_leaves_the_copy_that_was_there() {
    let home = Home::new();
    let Some(disk) = SmallDisk::mount(home.path.join("lock"), 64 << 10) else { return };
    for file in [File::Status].into_iter().chain(File::KEPT).map(File::name) {
        fs::write(home.path.join("lock").join(file), "").unwrap();
    }
    home.write("concurrencydomains", "a.example:3\n:30\n");
    let mut host = home.open(100);
    disk.fill();
    // Longer than the old contents and the rest of their block.
    let lines: String = (0..1500).map(|i| format!("d{i:05}.example:1\n")).collect();
    home.write("concurrencydomains", format!("{lines}a.example:4\n"));
    next_second();
    assert_eq!(ask(&mut host, 0, "a.example"), Ask::Go);
    assert_eq!(limit(&host, "a.example"), 4);
    drop(host);
    let kept = home.path.join("lock/gatekept.domains");
    assert!(fs::metadata(&kept).unwrap().len() < 4096, "no room is taken for nothing");
    home.write("concurrencydomains", "a.example:5O\n");
    let mut host = home.open(100);
    assert_eq!(limit(&host, "a.example"), 3);
    assert_eq!(limit(&host, "b.example"), 30);
    // Contents that fit into blocks of the file are kept on a full disk, too.
    home.write("concurrencydomains", "a.example:6\n");
    next_second();
    host.due();
    home.write("concurrencydomains", "a.example:7O\n");
    drop(host);
    assert_eq!(limit(&home.open(100), "a.example"), 6);
    // With room again.
    fs::remove_file(disk.0.join("filler")).unwrap();
    home.write("concurrencydomains", format!("{lines}a.example:8\n"));
    drop(home.open(100));
    home.write("concurrencydomains", "a.example:9O\n");
    assert_eq!(limit(&home.open(100), "a.example"), 8);
    assert!(!home.problem().contains("gatekept"), "{}", home.problem());
}

/// Only changes are written: the times of the file show it.
#[test]
fn a_copy_is_written_when_it_changes_and_only_then() {
    let home = Home::new();
    home.write("concurrencydomains", ":3\n");
    let kept = home.path.join("lock/gatekept.domains");
    drop(home.open(100));
    let old = std::time::SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000);
    let set_old =
        || fs::File::options().write(true).open(&kept).unwrap().set_modified(old).unwrap();
    let is_old = || fs::metadata(&kept).unwrap().modified().unwrap() == old;
    set_old();
    let mut host = home.open(100);
    assert!(is_old());
    home.write("concurrencydomains", ":3\n");
    next_second();
    host.due();
    assert!(is_old(), "another file with the same contents");
    home.write("concurrencydomains", ":4\n");
    next_second();
    host.due();
    assert!(!is_old());
    home.write("concurrencydomains", ":nonsense\n");
    set_old();
    next_second();
    host.due();
    assert!(is_old(), "nothing bad is kept");
}

#[test]
fn senders_and_the_operators_words_count_after_a_restart() {
    let home = Home::new();
    home.write("concurrencyremote", "100\n");
    home.write("concurrencydomains", ":20\nrelay.example:1\n");
    home.write("authsenders", SENDERS);
    home.write("concurrencyreplies", "4xx \"overload\" pause 100\n");
    drop(at_rest(&home, |home| home.open_beside("authsenders")));
    let kept = fs::read_to_string(home.path.join("lock/gatekept.senders")).unwrap();
    assert!(kept.contains("@a.example:relay.example\n") && !kept.contains("S3cret"), "{kept}");
    // Neither can be used at the next start.
    home.remove("authsenders");
    fs::create_dir(home.control("authsenders")).unwrap();
    home.write("concurrencyreplies", "4xx \"overload\" pause 100\n4xx \"x\" nonsense\n");
    let mut host = at_rest(&home, |home| home.open_beside("authsenders"));
    assert_eq!(ask_from(&mut host, 0, "s@a.example", "x.example"), Ask::Go);
    assert_eq!(ask_from(&mut host, 1, "s@a.example", "y.example"), Ask::Hold);
    host.done(
        0,
        DeliveryEnd::Reported(
            b"s\0ZConnected to 192.0.2.1 but greeting failed.\nRemote host said: 421 overload\n\0",
        ),
    );
    let key = host.gate().find_key(KeyKind::Relay, b"relay.example").unwrap();
    assert!(key.suspended_until(2_000_000).is_some(), "{key:?}");
    next_second();
    host.due();
    let problems = home.status().unwrap().problems;
    assert_eq!(
        problems,
        [
            "control/concurrencyreplies:2:9: not a meaning: limit, rate, nothing and pause SECONDS are",
            "control/concurrencyreplies: the last one that had no errors counts",
            "control/authsenders: not a regular file",
            "control/authsenders: the last one that had no errors counts",
        ]
    );
}

#[test]
fn where_mail_was_seen_to_go_is_known_after_a_restart() {
    let home = Home::new();
    home.write("concurrencydomains", ":20\n192.0.2.0/24:2:site\n");
    let domains = ["a.example", "b.example"];
    let deliver = |host: &mut Host| {
        for (slot, domain) in domains.iter().enumerate() {
            ask(host, slot as u32, domain);
            let report = b"r\0K192.0.2.7 accepted message.\nRemote host said: 250 ok\n\0";
            host.done(slot as u32, DeliveryEnd::Reported(report));
        }
    };
    let seen = home.path.join("lock/gatesites");
    {
        let mut host = home.open(50);
        deliver(&mut host);
        host.drop_held();
        assert!(!seen.exists(), "the spawner may create no files there");
        next_second();
        host.due();
        assert_eq!(home.problem(), "queue/lock/gatesites: cannot be read (error 2)");
    }
    fs::write(&seen, "").unwrap();
    {
        let mut host = home.open(50);
        assert_eq!(keys(&host, domains), domains);
        deliver(&mut host);
        host.drop_held();
    }
    assert_eq!(
        fs::read_to_string(&seen).unwrap(),
        "qpatch-sites\t1\na.example\t192.0.2.7\nb.example\t192.0.2.7\nend\n"
    );
    let mut host = home.open(50);
    assert_eq!(keys(&host, domains), ["site", "site"]);
    ask(&mut host, 0, "a.example");
    next_second();
    host.due();
    assert_eq!(home.status().unwrap().seen, 2);
}
