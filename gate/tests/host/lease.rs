//! The shares of this host: what the gate does with queue/lock/gatelease, over its life, restarts and damage.

use std::fs;

use qpatch_gate::gate::DeliveryEnd;
use qpatch_gate::host::{Ask, Due};
use qpatch_gate::host_share::LeasePhase;
use qpatch_gate::rules::KeyKind;

use super::home::{Home, Host, ask, at_rest, boot_ms, next_second, pass_ms, running, text};

/// Writes a lease for 8 hosts that ends so many milliseconds from now, and settles a second later.
fn write(home: &Home, seq: u64, left_ms: u64, keys: &str) {
    let text = super::lease_text::lease(seq, boot_ms() + left_ms, keys);
    fs::write(home.path.join("lock/gatelease"), text).unwrap();
}

fn home() -> Home {
    let home = Home::new();
    home.write("concurrencydomains", ":20\nfew.example:7\nopen.example:\nshut.example:0\n");
    home
}

/// Starts deliveries of one domain until one does not start, and returns how many did.
fn starts(host: &mut Host, domain: &str) -> u32 {
    let first = 2;
    let mut slot = first;
    while ask(host, slot, domain) == Ask::Go {
        slot += 1;
    }
    slot - first
}

fn end_all(host: &mut Host) {
    host.drop_held();
    for slot in 0..200 {
        host.done(slot, DeliveryEnd::Reported(b"r\0K192.0.2.7 accepted message.\n\0"));
    }
}

#[test]
fn a_share_is_a_limit_and_no_share_raises_one() {
    let home = home();
    write(
        &home,
        5,
        10_000,
        "domain\ta.example\t3\ndomain\tb.example\t0\ndomain\tfew.example\t50\n",
    );
    let mut host = at_rest(&home, |home| home.open(200));
    for (domain, expected) in
        [("a.example", 3), ("b.example", 0), ("c.example", 1), ("few.example", 7)]
    {
        assert_eq!(starts(&mut host, domain), expected, "{domain}");
        end_all(&mut host);
    }
    assert_eq!(ask(&mut host, 0, "shut.example"), Ask::Hold);
    for slot in 1..100 {
        assert_eq!(ask(&mut host, slot, "open.example"), Ask::Go);
    }
    next_second();
    host.due();
    let status = home.status().unwrap();
    let lease = status.lease.unwrap();
    assert_eq!((lease.seq, lease.phase, lease.hosts), (5, LeasePhase::Valid, 8));
    let share = |name: &str| status.keys.iter().find(|key| key.name == name).unwrap().share;
    assert_eq!(share("a.example"), Some(3));
    assert_eq!(share("b.example"), Some(0));
    assert_eq!(share("c.example"), Some(1));
    assert_eq!([share("open.example"), share("shut.example")], [None, None]);
    assert_eq!(status.problems, Vec::<String>::new());
}

#[test]
fn what_waits_starts_when_the_share_grows() {
    let home = home();
    write(&home, 1, 60_000, "domain\ta.example\t0\n");
    let mut host = at_rest(&home, |home| home.open(40));
    assert_eq!(ask(&mut host, 0, "a.example"), Ask::Hold);
    let answers = (1..40).map(|slot| ask(&mut host, slot, "a.example"));
    assert_eq!(answers.last(), Some(Ask::Report));
    assert!(text(&host).ends_with(
        "a.example is at this host's share, 0 deliveries (limit 20); not tried. (#4.4.5)\n"
    ));
    assert_eq!(host.due(), Due::Nothing);
    // The status says what waits within a tenth of a second.
    pass_ms(102);
    assert_eq!(host.due(), Due::Nothing);
    assert!(home.status().unwrap().keys[0].held > 0);
    write(&home, 2, 60_000, "domain\ta.example\t2\n");
    pass_ms(51);
    assert_eq!(host.due(), Due::Go { slot: 0, command: 0 });
    assert!(matches!(host.due(), Due::Go { slot: 1, .. }));
    assert_eq!(running(&host, KeyKind::Domain, "a.example"), 2);
    // It is confirmed at once.
    assert_eq!(home.status().unwrap().lease.unwrap().seq, 2);
}

#[test]
fn a_long_status_is_written_less_often() {
    let home = home();
    write(&home, 1, 600_000, "");
    let mut host = at_rest(&home, |home| home.open(200));
    for slot in 0..190 {
        assert_eq!(ask(&mut host, slot, &format!("{slot}.{}.example", "x".repeat(200))), Ask::Go);
    }
    let generation = |host: &mut Host| {
        host.due();
        home.status().unwrap().generation
    };
    pass_ms(1000);
    let before = generation(&mut host);
    let bytes = fs::metadata(home.path.join("lock/gatestatus")).unwrap().len();
    assert!((40_000..70_000).contains(&bytes), "{bytes}");
    host.done(0, DeliveryEnd::Reported(b"r\0K192.0.2.7 accepted message.\n\0"));
    // A tenth of a second, and two microseconds for each byte.
    pass_ms(100 + bytes / 500 - 5);
    assert_eq!(generation(&mut host), before);
    pass_ms(6);
    assert_eq!(generation(&mut host), before + 1);
}

#[test]
fn a_gate_at_rest_confirms_what_is_in_force() {
    let home = home();
    let mut host = at_rest(&home, |home| home.open(40));
    assert_eq!(home.status().unwrap().lease, None);
    assert_eq!(ask(&mut host, 0, "a.example"), Ask::Go);
    host.done(0, DeliveryEnd::Reported(b"r\0K192.0.2.7 accepted message.\n\0"));
    write(&home, 1, 60_000, "");
    pass_ms(60_000);
    host.due();
    for seq in 2..5 {
        write(&home, seq, 60_000, "");
        let wait_ms = host.timeout_ms().unwrap();
        assert!(wait_ms < 300, "{wait_ms}");
        pass_ms(wait_ms);
        host.due();
        assert_eq!(home.status().unwrap().lease.unwrap().seq, seq);
    }
    // A lease that is only longer need not be confirmed.
    let written = home.status().unwrap().generation;
    for _ in 0..8 {
        write(&home, 4, 60_000, "");
        pass_ms(250);
        host.due();
    }
    assert_eq!(home.status().unwrap().generation, written);
    fs::write(home.path.join("lock/gatelease"), "").unwrap();
    pass_ms(251);
    host.due();
    assert_eq!(home.status().unwrap().lease, None);
    assert_eq!(starts(&mut host, "a.example"), 20);
}

#[test]
fn at_the_end_of_the_lease_the_fall_back_share_counts() {
    let home = home();
    write(&home, 1, 5000, "domain\ta.example\t9\ndomain\tb.example\t0\n");
    let mut host = at_rest(&home, |home| home.open(200));
    let all = |host: &mut Host| {
        ["a.example", "b.example", "few.example"].map(|domain| {
            let count = starts(host, domain);
            end_all(host);
            count
        })
    };
    assert_eq!(all(&mut host), [9, 0, 0]);
    pass_ms(5000);
    assert_eq!(all(&mut host), [2, 0, 0]);
    pass_ms(1000);
    assert_eq!(all(&mut host), [2, 2, 1]);
    let said = "queue/lock/gatelease: the lease is over: qpatch gate share does not renew it; each limit is divided by 8";
    next_second();
    host.due();
    assert_eq!(home.problem(), said);
    // A gate that starts then knows it, too.
    let mut later = home.open(200);
    assert_eq!(all(&mut later), [2, 2, 1]);
    // The agent is back.
    write(&home, 2, 5000, "domain\ta.example\t4\n");
    pass_ms(251);
    assert_eq!(all(&mut host), [4, 1, 0]);
    assert_eq!(home.problem(), "");
}

#[test]
fn a_damaged_file_changes_nothing_before_the_lease_ends() {
    let home = home();
    let path = home.path.join("lock/gatelease");
    write(&home, 1, 5000, "domain\ta.example\t9\n");
    let mut host = at_rest(&home, |home| home.open(200));
    let whole = fs::read(&path).unwrap();
    let damaged = [&whole[..whole.len() - 3], &whole[..20], &b"no lease\n"[..]];
    for bytes in damaged {
        fs::write(&path, bytes).unwrap();
        pass_ms(251);
        assert_eq!(starts(&mut host, "a.example"), 9);
        end_all(&mut host);
        assert_eq!(home.problem(), "queue/lock/gatelease: not whole, so it is not used");
    }
    // A gate that starts now knows how many hosts there are if the first line is whole, and else nothing.
    for (bytes, expected) in damaged.into_iter().zip([2, 20, 20]) {
        fs::write(&path, bytes).unwrap();
        let mut later = home.open(200);
        assert_eq!(starts(&mut later, "a.example"), expected);
    }
    pass_ms(6000);
    assert_eq!(starts(&mut host, "a.example"), 2);
}

#[test]
fn another_table_keeps_the_shares() {
    let home = home();
    write(&home, 1, 600_000, "group\tg\t3\ndomain\ta.example\t2\n");
    let mut host = at_rest(&home, |home| home.open(200));
    assert_eq!(starts(&mut host, "a.example"), 2);
    host.drop_held();
    home.write("concurrencydomains", ":20\na.example:10:g\n");
    pass_ms(3500);
    // Two run already, and count under the group.
    assert_eq!([90, 91].map(|slot| ask(&mut host, slot, "a.example")), [Ask::Go, Ask::Hold]);
}

/// The candidates of a site have the share of its members: a site is one key for the other hosts.
#[test]
fn a_site_has_one_share() {
    let home = Home::new();
    home.write("concurrencydomains", ":20\n192.0.2.0/24:20:site:learn\n");
    write(&home, 1, 600_000, "");
    let mut host = at_rest(&home, |home| home.open(200));
    let refused =
        b"r\0ZConnected to 192.0.2.7 but greeting failed.\nRemote host said: 421 too many\n\0";
    let taken = b"r\0K192.0.2.7 accepted message.\nRemote host said: 250 ok\n\0";
    for (slot, domain, report) in
        [(0, "stranger.example", &refused[..]), (1, "member.example", &taken[..])]
    {
        assert_eq!(ask(&mut host, slot, domain), Ask::Go);
        host.done(slot, DeliveryEnd::Reported(report));
    }
    pass_ms(2000);
    host.due();
    let share = |host: &Host, kind| host.gate().find_key(kind, b"site").map(|key| key.share);
    for (seq, keys, expected) in [(2, "group\tsite\t7\n", 7), (3, "group\tsite\t0\n", 0)] {
        write(&home, seq, 600_000, keys);
        pass_ms(300);
        host.due();
        for (slot, domain) in [(2, "stranger.example"), (3, "member.example")] {
            ask(&mut host, slot, domain);
        }
        assert_eq!(share(&host, KeyKind::Group), Some(expected));
        assert_eq!(share(&host, KeyKind::Candidates), Some(expected));
    }
}
