//! Connections that fail: a server that closes its socket for a while, and a machine that cannot connect at all.

use qpatch_gate::command::Parts;
use qpatch_gate::gate::{Answer, Busy, BusyReason, DeliveryEnd, Gate, NextAction};
use qpatch_gate::rules::KeyKind;
use qpatch_gate::table::{Limit, Table};

const SEC: u64 = 1_000_000;
const ACCEPTED: DeliveryEnd<'_> =
    DeliveryEnd::Reported(b"r\0K192.0.2.7 accepted message.\nRemote host said: 250 ok\n\0");
const FAILED: DeliveryEnd<'_> =
    DeliveryEnd::Reported(b"ZSorry, I wasn't able to establish an SMTP connection. (#4.4.1)\n\0");

fn gate(table: &str) -> Gate {
    let mut gate = Gate::new(1000, 1000, 7).unwrap();
    let table = Table::parse(table.as_bytes(), gate.hasher()).unwrap().0;
    gate.set_table(Some(table), 0).unwrap();
    gate
}

fn ask(gate: &mut Gate, now_us: u64, slot: u32, mail: u32, domain: &str) -> Answer {
    let (mail, recipient) = (format!("{mail}/1\0"), format!("u@{domain}\0"));
    gate.ask(now_us, slot, &Parts::new(&[mail.as_bytes(), b"s\0", recipient.as_bytes()]).unwrap())
}

/// Makes one accepted delivery to each of `domains` domains.
fn accepted(gate: &mut Gate, domains: u32) {
    for i in 0..domains {
        assert_eq!(ask(gate, 1, i, i, &format!("d{i}.example")), Answer::Go);
    }
    for i in 0..domains {
        assert_eq!(gate.done(2, i, ACCEPTED), None);
    }
}

fn limit(gate: &Gate, domain: &str) -> Limit {
    gate.find_key(KeyKind::Domain, domain.as_bytes()).unwrap().limit()
}

/// No route, no ports: the fault is not in the servers, with limits that learn and with fixed ones.
#[test]
fn a_shortage_of_this_machine() {
    for table in [":20::learn\n", ":20\n"] {
        let mut gate = gate(table);
        accepted(&mut gate, 50);
        let from_us = 10 * SEC;
        for i in 0..200 {
            let domain = format!("d{}.example", i % 50);
            assert_eq!(ask(&mut gate, from_us, i, i, &domain), Answer::Go);
        }
        for i in 0..200 {
            let busy = gate.done(from_us + 1 + u64::from(i), i, FAILED);
            assert!(matches!(busy, Some(Busy { why: BusyReason::Refused, .. })), "not a try");
        }
        // No limit is lower because of it, and no key is suspended longer than all are.
        let now_us = from_us + 300;
        for i in 0..50 {
            let domain = format!("d{i}.example");
            assert_eq!(limit(&gate, &domain), Limit::AtMost(20), "{table} {i}");
            let key = gate.find_key(KeyKind::Domain, domain.as_bytes()).unwrap();
            assert_eq!(key.suspended_until(now_us), None);
        }
        // New commands are held until the pause is over, also for domains that were never seen.
        assert_eq!(ask(&mut gate, now_us, 300, 300, "new.example"), Answer::Hold);
        while gate.next(now_us) != NextAction::None {}
        let wait_us = gate.timeout_us(now_us).unwrap().max(1);
        assert!(wait_us <= 2 * SEC, "{wait_us}");
        let mut now_us = now_us;
        let slot = loop {
            match gate.next(now_us) {
                NextAction::Go { slot, .. } => break slot,
                NextAction::None => now_us += gate.timeout_us(now_us).unwrap().max(1),
                NextAction::Call(_) => {}
                NextAction::Busy { .. } => panic!("it was held for too long"),
            }
            assert!(now_us < from_us + 3 * SEC);
        };
        assert!(now_us >= from_us + 2 * SEC);
        // Connections succeed: all is as before.
        assert_eq!(gate.done(now_us + 1, slot, ACCEPTED), None);
        assert_eq!(ask(&mut gate, now_us + 2, 301, 301, "d1.example"), Answer::Go);
    }
}

/// A list of dead domains says nothing of this machine, and pauses no other key.
#[test]
fn dead_domains_are_no_witnesses() {
    let mut gate = gate(":20::learn\n");
    accepted(&mut gate, 4);
    let from_us = 10 * SEC;
    for i in 0..300 {
        assert_eq!(ask(&mut gate, from_us, i, i, &format!("dead{i}.example")), Answer::Go);
    }
    for i in 0..300 {
        assert_eq!(gate.done(from_us + 1, i, FAILED), None, "a try");
    }
    assert_eq!(ask(&mut gate, from_us + 2, 0, 1000, "d1.example"), Answer::Go);
}

/// Ten of a hundred servers fail together, and the others do not: the fault is in those ten.
#[test]
fn some_servers_that_fail_together() {
    let mut gate = gate(":20::learn\n");
    accepted(&mut gate, 100);
    let mut now_us = 10 * SEC;
    for round in 0..50 {
        for i in 0..100 {
            ask(&mut gate, now_us, i, 1000 * round + i, &format!("d{i}.example"));
        }
        for i in 0..100 {
            now_us += 1;
            gate.done(now_us, i, if i < 10 { FAILED } else { ACCEPTED });
        }
        now_us += SEC;
        for i in 10..100 {
            assert_eq!(
                ask(&mut gate, now_us, i, 0, &format!("d{i}.example")),
                Answer::Go,
                "{round}"
            );
            gate.done(now_us, i, DeliveryEnd::NeverStarted);
        }
        while gate.next(now_us) != NextAction::None {}
    }
    let suspended = |i: u32| {
        let key = gate.find_key(KeyKind::Domain, format!("d{i}.example").as_bytes()).unwrap();
        key.suspended_until(now_us).is_some()
    };
    assert!((0..10).all(suspended) && !(10..100).any(suspended));
}

/// A fixed limit does not change. But a delivery that could not connect beside others does not count as an attempt,
/// three times, and there is a pause.
#[test]
fn a_fixed_limit_and_a_socket_that_is_closed() {
    let mut gate = gate("d.example:5\n");
    for slot in 0..5 {
        assert_eq!(ask(&mut gate, 1, slot, slot, "d.example"), Answer::Go);
    }
    assert_eq!(gate.done(SEC, 0, ACCEPTED), None);
    let mut now_us = SEC;
    for mail in 10..13 {
        assert_eq!(ask(&mut gate, now_us, 0, mail, "d.example"), Answer::Go);
        assert!(gate.done(now_us + 1, 0, FAILED).is_some());
        assert_eq!(limit(&gate, "d.example"), Limit::AtMost(5));
        // Longer than a place waits because the server may still count a session.
        now_us += SEC / 4;
    }
    let answer = ask(&mut gate, now_us, 0, 13, "d.example");
    assert!(matches!(answer, Answer::Busy(Busy { why: BusyReason::Paused(_), .. })), "{answer:?}");
    let key = gate.find_key(KeyKind::Domain, b"d.example").unwrap();
    let until_us = key.suspended_until(now_us).unwrap();
    assert!((4 * SEC..=5 * SEC).contains(&until_us), "{until_us}");
    // One mail is refused again and again: that counts as an attempt in the end.
    let mut gate = self::gate("d.example:5\n");
    assert_eq!(ask(&mut gate, 1, 0, 0, "d.example"), Answer::Go);
    assert_eq!(gate.done(2, 0, ACCEPTED), None);
    let mut now_us = 3;
    let mut returns = 0;
    loop {
        match ask(&mut gate, now_us, 1, 1, "d.example") {
            Answer::Go if gate.done(now_us + 1, 1, FAILED).is_none() => break,
            Answer::Go => returns += 1,
            Answer::Hold => {
                gate.done(now_us, 1, DeliveryEnd::NeverStarted);
            }
            Answer::Busy(busy) => assert!(matches!(busy.why, BusyReason::Paused(_))),
            Answer::InUse => panic!("slot 1 is in use"),
        }
        now_us += SEC;
        while gate.next(now_us) != NextAction::None {}
    }
    assert_eq!(returns, 3);
}

const GREETING: &[u8] =
    b"ZConnected to 192.0.2.7 but greeting failed.\nRemote host said: 421 4.7.0 closing\n\0";
const CUT_OFF: &[u8] = b"ZConnected to 192.0.2.7 but connection died. (#4.4.2)\n\0";
const NOT_CONNECTED: &[u8] = b"ZSorry, I wasn't able to establish an SMTP connection. (#4.4.1)\n\0";

/// Five run, one is accepted, and the delivery in its place has this report, `took_us` after its start.
fn in_its_place(gate: &mut Gate, report: &[u8], took_us: u64) -> Option<Busy> {
    for slot in 0..5 {
        assert_eq!(ask(gate, 1, slot, slot, "d.example"), Answer::Go);
    }
    assert_eq!(gate.done(SEC, 0, ACCEPTED), None);
    assert_eq!(ask(gate, SEC + 1, 0, 10, "d.example"), Answer::Go);
    gate.done(SEC + 1 + took_us, 0, DeliveryEnd::Reported(report))
}

/// A fixed limit that equals the server's: a delivery that is refused at the door beside others does not count as an
/// attempt, and the next one waits for the place.
#[test]
fn a_fixed_limit_and_what_is_refused_at_the_door() {
    for table in ["d.example:5\n", "d.example:5\n192.0.2.0/24:9:site\n"] {
        for report in [GREETING, CUT_OFF, NOT_CONNECTED] {
            let mut gate = gate(table);
            let busy = in_its_place(&mut gate, report, 2000);
            assert!(matches!(busy, Some(Busy { why: BusyReason::Refused, .. })), "{busy:?}");
            assert_eq!(limit(&gate, "d.example"), Limit::AtMost(5));
            // Not in the same millisecond; but soon, although nothing else ends.
            let mut now_us = SEC + 2001;
            assert_eq!(ask(&mut gate, now_us, 0, 11, "d.example"), Answer::Hold);
            loop {
                match gate.next(now_us) {
                    NextAction::Go { slot: 0, .. } => break,
                    NextAction::None => now_us += gate.timeout_us(now_us).unwrap().max(1),
                    NextAction::Call(_) => {}
                    other => panic!("{other:?}"),
                }
            }
            assert!((SEC + 12_000..SEC + 42_001).contains(&now_us), "{now_us}");
            assert_eq!(gate.done(now_us + SEC, 0, ACCEPTED), None);
        }
    }
}

/// A delivery counts as an attempt if the server may have the message, if the reply is about the mail, or if it took a
/// minute. So does a fourth refusal, and a refusal when no other delivery was accepted recently.
#[test]
fn a_fixed_limit_and_what_is_a_try() {
    let tries: [&[u8]; 4] = [
        b"ZConnected to 192.0.2.7 but connection died. Possible duplicate! (#4.4.2)\n\0",
        b"ZConnected to 192.0.2.7 but sender was rejected.\nRemote host said: 421 4.3.2 Too many open connections.\n\0",
        b"s192.0.2.7 does not like recipient.\nRemote host said: 450 4.7.1 Greylisted\n\0DGiving up on 192.0.2.7.\n\0",
        b"ZConnected to 192.0.2.7 but greeting failed.\nRemote host said: 554 no\n\0",
    ];
    for report in tries {
        assert_eq!(in_its_place(&mut gate("d.example:5\n"), report, 2000), None);
    }
    assert_eq!(in_its_place(&mut gate("d.example:5\n"), CUT_OFF, 61 * SEC), None);
    assert_eq!(in_its_place(&mut gate("d.example:5:\n"), b"ZSorry\n\0", 2000), None);

    let mut gate = gate("d.example:5\n");
    assert!(in_its_place(&mut gate, GREETING, 2000).is_some());
    let mut now_us = SEC + 3000;
    let mut returns = 1;
    loop {
        match ask(&mut gate, now_us, 0, 10, "d.example") {
            Answer::Go if gate.done(now_us + 1, 0, DeliveryEnd::Reported(GREETING)).is_none() => {
                break;
            }
            Answer::Go => returns += 1,
            _ => {
                gate.done(now_us, 0, DeliveryEnd::NeverStarted);
            }
        }
        now_us += SEC;
        while gate.next(now_us) != NextAction::None {}
    }
    assert_eq!(returns, 3);

    // Alone, and after more than a minute.
    for slot in 1..5 {
        gate.done(now_us, slot, ACCEPTED);
    }
    now_us += 61 * SEC;
    assert_eq!(ask(&mut gate, now_us, 0, 11, "d.example"), Answer::Go);
    assert_eq!(gate.done(now_us + 1, 0, DeliveryEnd::Reported(GREETING)), None);
}
