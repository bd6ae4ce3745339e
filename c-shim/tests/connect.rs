//! What cannot connect, seen by the gate: a server that closes its socket for a while, and a machine that cannot connect at all.

use qpatch_gate::command::Parts;
use qpatch_gate::gate::{Answer, Busy, Gate, Next, Ran, Why};
use qpatch_gate::rules::KeyKind;
use qpatch_gate::table::{Limit, Table};

const SEC: u64 = 1_000_000;
const ACCEPTED: Ran<'_> =
    Ran::Yes(b"r\0K192.0.2.7 accepted message.\nRemote host said: 250 ok\n\0");
const FAILED: Ran<'_> =
    Ran::Yes(b"ZSorry, I wasn't able to establish an SMTP connection. (#4.4.1)\n\0");

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

/// Deliveries to so many domains that are accepted.
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

/// No route, no ports: it is not the servers, with limits that learn and with fixed ones.
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
            assert!(matches!(busy, Some(Busy { why: Why::Refused, .. })), "not a try");
        }
        // Nobody's limit is lower for that, and nobody is suspended for longer than all.
        let now_us = from_us + 300;
        for i in 0..50 {
            let domain = format!("d{i}.example");
            assert_eq!(limit(&gate, &domain), Limit::AtMost(20), "{table} {i}");
            let key = gate.find_key(KeyKind::Domain, domain.as_bytes()).unwrap();
            assert_eq!(key.suspended_until(now_us), None);
        }
        // What comes is held, also for domains that were never seen; until the pause is over.
        assert_eq!(ask(&mut gate, now_us, 300, 300, "new.example"), Answer::Hold);
        while gate.next(now_us) != Next::None {}
        let wait_us = gate.timeout_us(now_us).unwrap().max(1);
        assert!(wait_us <= 2 * SEC, "{wait_us}");
        let mut now_us = now_us;
        let slot = loop {
            match gate.next(now_us) {
                Next::Go { slot, .. } => break slot,
                Next::None => now_us += gate.timeout_us(now_us).unwrap().max(1),
                Next::Call(_) => {}
                Next::Busy { .. } => panic!("it was held for too long"),
            }
            assert!(now_us < from_us + 3 * SEC);
        };
        assert!(now_us >= from_us + 2 * SEC);
        // It connects: all is as before.
        assert_eq!(gate.done(now_us + 1, slot, ACCEPTED), None);
        assert_eq!(ask(&mut gate, now_us + 2, 301, 301, "d1.example"), Answer::Go);
    }
}

/// A list of dead domains says nothing of this machine, and pauses nobody else.
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

/// Ten of a hundred servers fail together, and the others do not: it is those ten.
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
            gate.done(now_us, i, Ran::No);
        }
        while gate.next(now_us) != Next::None {}
    }
    let suspended = |i: u32| {
        let key = gate.find_key(KeyKind::Domain, format!("d{i}.example").as_bytes()).unwrap();
        key.suspended_until(now_us).is_some()
    };
    assert!((0..10).all(suspended) && !(10..100).any(suspended));
}

/// A fixed limit stays; but what could not connect beside others was no try, three times, and there is a pause.
#[test]
fn a_fixed_limit_and_a_socket_that_is_closed() {
    let mut gate = gate("d.example:5\n");
    for slot in 0..5 {
        assert_eq!(ask(&mut gate, 1, slot, slot, "d.example"), Answer::Go);
    }
    assert_eq!(gate.done(SEC, 0, ACCEPTED), None);
    for mail in 10..13 {
        assert_eq!(ask(&mut gate, SEC + u64::from(mail), 0, mail, "d.example"), Answer::Go);
        assert!(gate.done(SEC + u64::from(mail) + 1, 0, FAILED).is_some());
        assert_eq!(limit(&gate, "d.example"), Limit::AtMost(5));
    }
    let answer = ask(&mut gate, SEC + 100, 0, 13, "d.example");
    assert!(matches!(answer, Answer::Busy(Busy { why: Why::Paused(_), .. })), "{answer:?}");
    let key = gate.find_key(KeyKind::Domain, b"d.example").unwrap();
    let until_us = key.suspended_until(SEC + 100).unwrap();
    assert!((3 * SEC..=5 * SEC).contains(&until_us), "{until_us}");
    // One mail in vain, again and again: a try in the end.
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
                gate.done(now_us, 1, Ran::No);
            }
            Answer::Busy(busy) => assert!(matches!(busy.why, Why::Paused(_))),
            Answer::InUse => panic!("slot 1 is in use"),
        }
        now_us += SEC;
        while gate.next(now_us) != Next::None {}
    }
    assert_eq!(returns, 3);
}
