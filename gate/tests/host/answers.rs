//! What the gate answers to a command and to a report, and how long the spawner may sleep.

use qpatch_gate::command::Parts;
use qpatch_gate::gate::DeliveryEnd;
use qpatch_gate::host::{Ask, Done, Due};
use qpatch_gate::rules::KeyKind;
use qpatch_gate::table::Limit;

use crate::home::{Home, Host, ask, done, limit_after, next_second, pass_ms, text};

#[test]
fn busy_reports() {
    let home = Home::new();
    home.write("concurrencyremote", "4\n");
    home.write("concurrencydomains", "a.example:1\nb.example:1:Twins\n");
    let mut host = home.open(100);
    assert_eq!(ask(&mut host, 0, "a.example"), Ask::Go);
    assert_eq!(ask(&mut host, 1, "a.example"), Ask::Hold);
    assert_eq!(ask(&mut host, 2, "a.example"), Ask::Report);
    let report = text(&host);
    let (secs, rest) = report.strip_prefix('B').unwrap().split_once(' ').unwrap();
    assert!((1..=3600).contains(&secs.parse::<u32>().unwrap()));
    assert_eq!(rest, "1 a.example is at its limit of 1 delivery; not tried. (#4.4.5)\n");
    assert_eq!(ask(&mut host, 1, "a.example"), Ask::Report);
    assert_eq!(text(&host), "ZInternal error: delnum in use. (#4.3.5)\n");
    assert_eq!(ask(&mut host, 2, "b.example"), Ask::Go);
    assert_eq!(ask(&mut host, 3, "b.example"), Ask::Report);
    assert!(text(&host).contains(" group twins is at its limit of 1 delivery;"));
}

#[test]
fn what_this_host_sent_is_not_the_servers_word() {
    let home = Home::new();
    home.write("concurrencyremote", "100\n");
    home.write("concurrencydomains", ":9::learn\n");
    home.write("me", "throttle.example\nmore\n");
    let mut host = home.open(100);
    let (fixed, lower) = (Limit::AtMost(9), Limit::AtMost(2));
    let sender = "a@ratelimit.example\0";
    assert_eq!(limit_after(&mut host, sender, "450 4.7.1 throttled"), lower);
    assert_eq!(limit_after(&mut host, sender, "450 ratelimit.example: no"), fixed);
    assert_eq!(limit_after(&mut host, sender, "450 at Throttle.example: no"), fixed);
    assert_eq!(limit_after(&mut host, "a@b.example\0", "450 at ratelimit.example: no"), lower);
    // helohost comes first, and counts within a second.
    home.write("helohost", "busy-throttle.example \n");
    next_second();
    assert_eq!(limit_after(&mut host, sender, "450 no busy-throttle.example"), fixed);
    assert_eq!(limit_after(&mut host, sender, "450 there is no throttle.example"), lower);
    home.remove("helohost");
    next_second();
    assert_eq!(limit_after(&mut host, sender, "450 what is throttle.example?"), fixed);
    assert_eq!(limit_after(&mut host, sender, "450 what's busy-throttle.example?"), lower);
}

/// `rate` does not change the limit. It slows the starts: the pause doubles while the server says that it is too fast.
#[test]
fn too_fast_is_not_too_many() {
    let home = Home::new();
    home.write("concurrencyremote", "100\n");
    home.write("concurrencydomains", ":9::learn\nfixed.example:2\n");
    home.write("concurrencyreplies", "450 \"slow down\" rate\n");
    let mut host = home.open(100);
    let refused =
        b"ZConnected to 192.0.2.1 but sender was rejected.\nRemote host said: 450 slow down\n\0";
    for (domain, limit, first) in [("a.example", 9, 0), ("fixed.example", 2, 20)] {
        let key = |host: &Host| {
            let key = host.gate().find_key(KeyKind::Domain, domain.as_bytes()).unwrap();
            (key.limit(), key.suspended_until(0).unwrap())
        };
        assert_eq!(ask(&mut host, first, domain), Ask::Go);
        assert_eq!(ask(&mut host, first + 1, domain), Ask::Go);
        let before = host.gate().find_key(KeyKind::Domain, domain.as_bytes()).unwrap().limit();
        assert_eq!(before, Limit::AtMost(limit));
        assert_eq!(host.done(first, DeliveryEnd::Reported(refused)), Done::Instead, "others run");
        let (after, until_us) = key(&host);
        assert_eq!(after, before);
        // The other one had started before the pause, so its reply adds nothing.
        host.done(first + 1, DeliveryEnd::Reported(refused));
        assert_eq!(key(&host), (before, until_us));
        assert_eq!(ask(&mut host, first, domain), Ask::Report, "behind those that went back");
        assert!(text(&host).contains(" is paused by control/concurrencyreplies:1; not tried."));
        next_second();
        assert_eq!(ask(&mut host, first, domain), Ask::Go);
        host.done(first, DeliveryEnd::Reported(refused));
        let (after, again_us) = key(&host);
        assert_eq!(after, before);
        assert!((1_900_000..60_000_000).contains(&(again_us - until_us)), "twice as long");
    }
}

#[test]
fn odd_recipients() {
    let home = Home::new();
    home.write("concurrencydomains", ":1\n[10.0.0.1]:2\n.long.example:1:long\n");
    let mut host = home.open(100);
    let mut slot = 0;
    let mut go = |host: &mut Host, recipient: &[u8]| {
        slot += 1;
        host.ask(slot, &Parts::new(&[b"1/1\0", b"\0", recipient]).unwrap()) == Ask::Go
    };
    for _ in 0..3 {
        assert!(go(&mut host, b"nobody\0"), "without a domain it is docmd's business");
        assert!(go(&mut host, b""));
    }
    assert!(go(&mut host, b"u@[10.0.0.1]\0"));
    assert!(go(&mut host, b"u@[10.0.0.1]\0"));
    assert!(!go(&mut host, b"u@[10.0.0.1]\0"));
    assert!(go(&mut host, b"u@dot.example\0"));
    assert!(!go(&mut host, b"u@DOT.example.\0"));
    assert!(go(&mut host, "u@bücher.example\0".as_bytes()));
    assert!(!go(&mut host, "u@bücher.example\0".as_bytes()));
    assert!(go(&mut host, b"u@\0"));
    assert!(!go(&mut host, b"u@\0"));
    let long = |end: &str| [b"u@", &b"x".repeat(10_000)[..], end.as_bytes(), b"\0"].concat();
    assert!(go(&mut host, &long(".long.example")));
    assert!(!go(&mut host, &long(".other.long.example")), "its suffix has a group");
    assert!(go(&mut host, &long("")));
    assert!(!go(&mut host, &long("")));
    assert!(!go(&mut host, &b"@".repeat(10_000)), "an empty domain again");
}

#[test]
fn sleeping_is_right() {
    let home = Home::new();
    home.write("concurrencyremote", "10\n");
    home.write("concurrencydomains", ":1\n");
    // Files at rest: the start waits for nothing.
    next_second();
    let mut host = home.open(10);
    assert_eq!(host.timeout_ms(), Some(60_002), "nothing but the next heartbeat");
    pass_ms(100);
    ask(&mut host, 0, "a.example");
    // One second after the start, whenever the spawner asks.
    assert_eq!(host.timeout_ms(), Some(902));
    pass_ms(300);
    ask(&mut host, 1, "a.example");
    assert_eq!(host.timeout_ms(), Some(602));
    pass_ms(700);
    assert_eq!(host.due(), Due::Nothing);
    host.done(0, DeliveryEnd::NeverStarted);
    assert_eq!(host.timeout_ms(), Some(0), "a held command can start");
    assert!(matches!(host.due(), Due::Go { slot: 1, .. }));
    host.done(1, DeliveryEnd::NeverStarted);
    next_second();
    host.due();
    assert_eq!(host.timeout_ms(), Some(60_002));
}

#[test]
fn held_commands_are_dropped() {
    let home = Home::new();
    home.write("concurrencyremote", "10\n");
    home.write("concurrencydomains", ":1\n");
    let mut host = home.open(10);
    for slot in 0..4 {
        ask(&mut host, slot, "a.example");
    }
    assert_eq!(host.held(), 3);
    host.drop_held();
    assert_eq!(host.held(), 0);
    host.done(0, DeliveryEnd::NeverStarted);
    assert_eq!(host.due(), Due::Nothing);
    host.drop_held();
    let status = home.status().unwrap();
    assert_eq!((status.in_use, status.held, status.totals.held), (0, 0, 3));
}

#[test]
fn the_log_is_told_how_long_a_delivery_was_held() {
    const ACCEPTED: &[u8] = b"r\0K192.0.2.1 accepted message.\n\0";
    const REFUSED: &[u8] =
        b"ZConnected to 192.0.2.1 but greeting failed.\nRemote host said: 421 too many\n\0";
    let home = Home::new();
    home.write("concurrencydomains", ":2::learn\n");
    let mut host = home.open(100);
    let starts = |host: &mut Host, held: u32, ended: u32, report: &[u8]| {
        assert_eq!(ask(host, held, "a.example"), Ask::Hold);
        pass_ms(20);
        let ended = done(host, ended, report);
        assert!(matches!(host.due(), Due::Go { slot, .. } if slot == held));
        ended
    };
    for slot in 0..2 {
        assert_eq!(ask(&mut host, slot, "a.example"), Ask::Go);
    }
    // A delivery that was not held has no such line.
    assert_eq!(starts(&mut host, 2, 0, ACCEPTED), (Done::AsItIs, String::new()));
    pass_ms(30);
    let (is, line) = starts(&mut host, 3, 2, ACCEPTED);
    assert_eq!(is, Done::WithLine);
    assert_eq!(line, "Held 0.020 s, ran 0.050 s.\n");
    // A permanent failure goes to the sender, and a delivery that could not run has no report.
    assert_eq!(starts(&mut host, 4, 3, b"DSorry. (#5.1.2)\n\0").0, Done::AsItIs);
    assert_eq!(starts(&mut host, 5, 4, b"").0, Done::AsItIs);
    // A delivery that was held and refused has the line as well.
    let (is, text) = done(&mut host, 5, REFUSED);
    assert_eq!(is, Done::Instead);
    let (refused, line) = text.split_once('\n').unwrap();
    assert!(refused.starts_with('B') && refused.ends_with(" (#4.4.5)"), "{text:?}");
    assert_eq!(line, "Held 0.020 s, ran 0.000 s.\n");
}
