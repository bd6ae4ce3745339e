//! Sites: domains whose mail goes to the same servers count together. What may make a domain count under a site, how
//! much of the site's places each may have, and what a report says of the site and of the domain.

use qpatch_gate::command::Parts;
use qpatch_gate::gate::{Answer, Busy, BusyReason, DeliveryEnd, Gate, NextAction};
use qpatch_gate::rules::KeyKind;
use qpatch_gate::table::{Limit, Table};

/// A hundred domains behind one address with a limit of three: each is tried once, then all count together.
#[test]
fn domains_of_a_site_come_together() {
    let mut gate = Gate::new(400, 400, 7).unwrap();
    let table = Table::parse(b":20\n192.0.2.0/24:3:site\n", gate.hasher()).unwrap().0;
    gate.set_table(Some(table), 0).unwrap();
    let ask = |gate: &mut Gate, now_us: u64, slot: u32, domain: u32| {
        let recipient = format!("u@d{domain}.example\0");
        gate.ask(now_us, slot, &Parts::new(&[b"1/1\0", b"s\0", recipient.as_bytes()]).unwrap())
    };
    for domain in 0..100 {
        assert_eq!(ask(&mut gate, 0, domain, domain), Answer::Go);
    }
    for slot in 0..100 {
        let report = b"r\0K192.0.2.7 accepted message.\nRemote host said: 250 ok\n\0";
        gate.done(1000, slot, DeliveryEnd::Reported(report));
    }
    assert_eq!(gate.next(1_000_000), NextAction::None);
    let answers: Vec<_> = (0..100).map(|i| ask(&mut gate, 1_000_001, i, i)).collect();
    assert_eq!(answers.iter().filter(|&&answer| answer == Answer::Go).count(), 3);
    assert_eq!(answers.iter().filter(|&&answer| answer == Answer::Hold).count(), 97);
    let keys: Vec<_> = gate.keys().filter(|key| key.running > 0).collect();
    assert_eq!((keys.len(), &keys[0].name[..], keys[0].running), (1, &b"site"[..], 3));
    assert_eq!(gate.rules().sites.seen.len(), 100);
}

/// A domain's site is known from its first refusal on, but the domain counts under the site a little later. A refusal
/// in between was beside the others of the site, not alone.
#[test]
fn refused_before_it_counts_under_its_site() {
    let mut gate = Gate::new(400, 400, 7).unwrap();
    let table = Table::parse(b":20::learn\n192.0.2.0/24:20:site:learn\n", gate.hasher()).unwrap().0;
    gate.set_table(Some(table), 0).unwrap();
    for slot in 0..4 {
        let recipient = format!("u{slot}@d.example\0");
        let parts = Parts::new(&[b"1/1\0", b"s\0", recipient.as_bytes()]).unwrap();
        assert_eq!(gate.ask(0, slot, &parts), Answer::Go);
    }
    let report =
        b"r\0ZConnected to 192.0.2.7 but greeting failed.\nRemote host said: 421 too many\n\0";
    for slot in 0..4 {
        let busy = gate.done(1000, slot, DeliveryEnd::Reported(report));
        assert!(
            matches!(busy, Some(Busy { why: BusyReason::Refused, .. })),
            "slot {slot}: {busy:?}"
        );
    }
}

/// Mail that is refused for ever must age, also before its domain counts under its site.
#[test]
fn a_mail_that_is_refused_before_its_site_counts_is_tried_in_the_end() {
    let mut gate = Gate::new(400, 400, 7).unwrap();
    let table = Table::parse(b":20::fixed\n192.0.2.0/24:20:site:learn\n", gate.hasher()).unwrap().0;
    gate.set_table(Some(table), 0).unwrap();
    let report =
        b"r\0ZConnected to 192.0.2.7 but greeting failed.\nRemote host said: 421 too many\n\0";
    let parts = Parts::new(&[b"1/1\0", b"s\0", b"u@d.example\0"]).unwrap();
    let returned: Vec<bool> = (0..8)
        .map(|_| {
            gate.ask(0, 0, &parts);
            gate.done(0, 0, DeliveryEnd::Reported(report)).is_some()
        })
        .collect();
    assert_eq!(returned, [true, true, true, false, true, true, true, false]);
}

/// Where limits do not learn, each refusal counts as an attempt.
#[test]
fn a_site_that_does_not_learn_sends_nothing_back() {
    for (own, site) in [("", ""), ("::fixed", ":fixed"), ("::learn", ":fixed")] {
        let mut gate = Gate::new(400, 400, 7).unwrap();
        let table = format!(":20{own}\n192.0.2.0/24:3:site{site}\n");
        let (table, problems) = Table::parse(table.as_bytes(), gate.hasher()).unwrap();
        assert!(problems.is_empty(), "{problems:?}");
        gate.set_table(Some(table), 0).unwrap();
        let refused =
            b"r\0ZConnected to 192.0.2.7 but greeting failed.\nRemote host said: 421 too many\n\0";
        let accepted = b"r\0K192.0.2.7 accepted message.\nRemote host said: 250 ok\n\0";
        let parts = Parts::new(&[b"1/1\0", b"s\0", b"u@d.example\0"]).unwrap();
        let mut deliver = |now_us: u64, report: &[u8]| {
            assert_eq!(gate.ask(now_us, 0, &parts), Answer::Go);
            let busy = gate.done(now_us, 0, DeliveryEnd::Reported(report));
            while gate.next(now_us) != NextAction::None {}
            busy
        };
        assert_eq!(deliver(1, refused), None, "{own} {site}");
        assert_eq!(deliver(2, accepted), None);
        // From then on it counts under its site.
        assert_eq!(deliver(1_000_000, accepted), None);
        for at in 0..8 {
            assert_eq!(deliver(2_000_000 + at, refused), None, "{own} {site}: {at}");
        }
    }
}

/// The owner of a domain of a site can move it elsewhere, but cannot lower the site's limit from there.
#[test]
fn what_is_refused_elsewhere_says_nothing_of_the_site() {
    let mut gate = Gate::new(400, 400, 7).unwrap();
    let table = Table::parse(b":20::learn\n192.0.2.0/24:20:site:learn\n", gate.hasher()).unwrap().0;
    gate.set_table(Some(table), 0).unwrap();
    let parts = Parts::new(&[b"1/1\0", b"s\0", b"u@d.example\0"]).unwrap();
    let there =
        DeliveryEnd::Reported(b"r\0K192.0.2.7 accepted message.\nRemote host said: 250 ok\n\0");
    let elsewhere = DeliveryEnd::Reported(
        b"r\0ZConnected to 203.0.113.1 but greeting failed.\nRemote host said: 421 too many\n\0",
    );
    gate.ask(1, 0, &parts);
    gate.done(1, 0, there);
    while gate.next(1_000_000) != NextAction::None {}
    for slot in 0..8 {
        assert_eq!(gate.ask(1_000_000, slot, &parts), Answer::Go);
    }
    for slot in 0..8 {
        assert_eq!(gate.done(1_000_001, slot, elsewhere), None);
    }
    let site = gate.keys().find(|key| key.name == b"site").unwrap();
    assert_eq!((site.limit(), site.suspended_until(1_000_002)), (Limit::AtMost(20), None));
}

const TOOK: &[u8] = b"r\0K192.0.2.7 accepted message.\nRemote host said: 250 ok\n\0";
const REFUSED: &[u8] =
    b"r\0ZConnected to 192.0.2.7 but greeting failed.\nRemote host said: 421 too many\n\0";
const NOT_CONNECTED: &[u8] = b"ZSorry, I wasn't able to establish an SMTP connection. (#4.4.1)\n\0";
const DIED_ELSEWHERE: &[u8] =
    b"ZConnected to 203.0.113.1 but connection died. Possible duplicate! (#4.4.2)\n\0";

/// A gate with this table, in which 192.0.2.0/24 is a site, and ten members of it.
fn gate_with_members(table: &str) -> Gate {
    let mut gate = Gate::new(1000, 1000, 7).unwrap();
    let (table, problems) = Table::parse(table.as_bytes(), gate.hasher()).unwrap();
    assert!(problems.is_empty(), "{problems:?}");
    gate.set_table(Some(table), 0).unwrap();
    for slot in 0..10 {
        assert_eq!(ask_for(&mut gate, 1, slot, &format!("member{slot}.example")), Answer::Go);
        gate.done(1, slot, DeliveryEnd::Reported(TOOK));
    }
    while gate.next(SECOND) != NextAction::None {}
    gate
}

const SECOND: u64 = 1_000_000;

fn ask_for(gate: &mut Gate, now_us: u64, slot: u32, domain: &str) -> Answer {
    let (message, recipient) = (format!("{slot}/1\0"), format!("u@{domain}\0"));
    let parts = Parts::new(&[message.as_bytes(), b"s\0", recipient.as_bytes()]).unwrap();
    gate.ask(now_us, slot, &parts)
}

/// How many of `commands` commands for members of the site start at once, from slot 100 on.
fn members_that_start(gate: &mut Gate, now_us: u64, commands: u32) -> usize {
    (0..commands)
        .map(|i| ask_for(gate, now_us, 100 + i, &format!("member{}.example", i % 10)))
        .filter(|&answer| answer == Answer::Go)
        .count()
}

/// The owner of a domain can have its mail refused once at a provider's address, and then let it hang elsewhere.
#[test]
fn a_stranger_that_a_site_refused_takes_none_of_its_places() {
    for learning in ["fixed", "learn"] {
        for limit in [1, 2, 5, 10, 20] {
            let table = format!(":20::{learning}\n192.0.2.0/24:{limit}:site:{learning}\n");
            let mut gate = gate_with_members(&table);
            assert_eq!(ask_for(&mut gate, SECOND, 0, "attacker.example"), Answer::Go);
            gate.done(SECOND, 0, DeliveryEnd::Reported(REFUSED));
            while gate.next(2 * SECOND) != NextAction::None {}
            let hanging = (0..12)
                .map(|slot| ask_for(&mut gate, 10 * SECOND, slot, "attacker.example"))
                .filter(|&answer| answer == Answer::Go)
                .count();
            assert!(hanging <= 1, "{hanging} places for a candidate");
            assert_eq!(members_that_start(&mut gate, 10 * SECOND, 40), limit, "{table}");
        }
    }
}

/// The same with many domains, one delivery each: all candidates together have places of their own.
#[test]
fn many_strangers_take_none_of_a_sites_places_either() {
    let mut gate = gate_with_members(":20::learn\n192.0.2.0/24:20:site:learn\n");
    for slot in 0..100 {
        let domain = format!("attacker{slot}.example");
        assert_eq!(ask_for(&mut gate, SECOND, slot, &domain), Answer::Go);
    }
    for slot in 0..100 {
        gate.done(SECOND, slot, DeliveryEnd::Reported(REFUSED));
    }
    while gate.next(2 * SECOND) != NextAction::None {}
    let hanging = (0..100)
        .map(|slot| ask_for(&mut gate, 400 * SECOND, slot, &format!("attacker{slot}.example")))
        .filter(|&answer| answer == Answer::Go)
        .count();
    assert!((1..=10).contains(&hanging), "{hanging}");
    assert_eq!(members_that_start(&mut gate, 400 * SECOND, 40), 20);
}

/// A failed connection has no address in its report: it says something of its own domain, not of the site.
#[test]
fn connections_that_fail_count_for_their_domain_alone() {
    let mut gate = gate_with_members(":20::learn\n192.0.2.0/24:20:site:learn\n");
    let mut now_us = SECOND;
    let mut waited = 0;
    for _ in 0..200 {
        now_us += SECOND;
        match ask_for(&mut gate, now_us, 0, "member0.example") {
            Answer::Go => drop(gate.done(now_us, 0, DeliveryEnd::Reported(NOT_CONNECTED))),
            Answer::Busy(busy) => {
                assert!(matches!(
                    busy.why,
                    BusyReason::Paused(_) | BusyReason::Suspended(_) | BusyReason::AtDomainShare(_)
                ));
                waited += 1;
            }
            answer => panic!("{answer:?}"),
        }
        while gate.next(now_us) != NextAction::None {}
    }
    assert!(waited > 150, "the domain itself is tried less and less: {waited} of 200 waited");
    let site = gate.find_key(KeyKind::Group, b"site").unwrap();
    assert_eq!((site.limit(), site.suspended_until(now_us)), (Limit::AtMost(20), None));
    assert_eq!(members_that_start(&mut gate, now_us, 40), 20);
}

/// Where no connection succeeds for many members at once, it is this machine, and not each of their servers.
#[test]
fn a_shortage_of_this_machine_is_seen_behind_a_site() {
    for learning in ["fixed", "learn"] {
        let table = format!(":20::{learning}\n192.0.2.0/24:20:site:{learning}\n");
        let mut gate = gate_with_members(&table);
        assert_eq!(members_that_start(&mut gate, SECOND, 10), 10);
        (100..110).for_each(|slot| {
            assert_eq!(gate.done(SECOND, slot, DeliveryEnd::Reported(TOOK)), None);
        });
        let now_us = 120 * SECOND;
        assert_eq!(members_that_start(&mut gate, now_us, 10), 10);
        let tries: Vec<_> = (100..110)
            .map(|slot| gate.done(now_us, slot, DeliveryEnd::Reported(NOT_CONNECTED)))
            .collect();
        // The first ones look like any failure.
        assert!(
            tries[5..].iter().all(Option::is_some),
            "{learning}: these were no tries: {tries:?}"
        );
        while gate.next(now_us) != NextAction::None {}
        assert_eq!(members_that_start(&mut gate, now_us + 1, 10), 0, "nothing starts for a while");
        assert_eq!(members_that_start(&mut gate, now_us + 3 * SECOND, 10), 10, "{learning}");
    }
}

/// Commands of a member that are held are no deliveries beside the one that failed.
#[test]
fn held_mail_of_a_member_is_not_beside_it() {
    let mut gate = gate_with_members(":20::learn\n192.0.2.0/24:2:site:learn\n");
    let now_us = 120 * SECOND;
    assert_eq!(ask_for(&mut gate, now_us, 0, "member1.example"), Answer::Go);
    assert_eq!(ask_for(&mut gate, now_us, 1, "member0.example"), Answer::Go);
    assert_eq!(ask_for(&mut gate, now_us, 2, "member0.example"), Answer::Hold);
    let failed = gate.done(now_us + SECOND, 1, DeliveryEnd::Reported(NOT_CONNECTED));
    assert_eq!(
        failed, None,
        "it was alone, and its domain has taken nothing of late: that was a try"
    );
}

/// Fifty places that are free at once are all in use at once again, whether by held mail or by mail that is away.
#[test]
fn fifty_places_at_once() {
    for slots in [70, 100, 350] {
        let mut gate = Gate::new(slots, slots, 7).unwrap();
        let table = Table::parse(b":50\n", gate.hasher()).unwrap().0;
        gate.set_table(Some(table), 0).unwrap();
        let mut running = Vec::new();
        let mut free: Vec<u32> = (0..slots).rev().collect();
        let (mut held, mut away) = (0, 0u32);
        for _ in 0..300 {
            let slot = free.pop().unwrap();
            match ask_for(&mut gate, SECOND, slot, "d.example") {
                Answer::Go => running.push(slot),
                Answer::Hold => held += 1u32,
                Answer::Busy(_) => {
                    away += 1;
                    free.push(slot);
                }
                Answer::InUse => panic!("slot {slot} is free"),
            }
        }
        assert_eq!((running.len(), held + away), (50, 250));
        for round in 2..6 {
            let now_us = round * SECOND;
            for slot in running.drain(..) {
                assert_eq!(gate.done(now_us, slot, DeliveryEnd::Reported(TOOK)), None);
                free.push(slot);
            }
            // No time goes by: what is called is here at once.
            loop {
                match gate.next(now_us) {
                    NextAction::Go { slot, .. } => running.push(slot),
                    NextAction::Call(call) => {
                        for _ in 0..call.most.min(away) {
                            let slot = free.pop().unwrap();
                            match ask_for(&mut gate, now_us, slot, "d.example") {
                                Answer::Go => running.push(slot),
                                Answer::Hold => {}
                                Answer::Busy(_) => {
                                    away += 1;
                                    free.push(slot);
                                }
                                Answer::InUse => panic!("slot {slot} is free"),
                            }
                            away -= 1;
                        }
                    }
                    NextAction::None => break,
                    next => panic!("{next:?}"),
                }
            }
            assert_eq!(running.len(), 50, "round {round} with {slots} slots, {away} away");
        }
    }
}

/// A member whose mail the site took can hang later: it has at most three quarters of the places.
#[test]
fn one_member_leaves_places_to_the_others() {
    let mut gate = gate_with_members(":20\n192.0.2.0/24:20:site\n");
    let answers: Vec<_> =
        (0..40).map(|slot| ask_for(&mut gate, SECOND, slot, "member0.example")).collect();
    assert_eq!(answers.iter().filter(|&&answer| answer == Answer::Go).count(), 15);
    let away = |answer: &&Answer| {
        matches!(answer, Answer::Busy(Busy { why: BusyReason::AtDomainShare(15), .. }))
    };
    assert_eq!(answers.iter().filter(away).count(), 25);
    assert_eq!(members_that_start(&mut gate, SECOND, 1), 0, "member0 itself");
    let others = (0..9)
        .filter(|i| {
            let domain = format!("member{}.example", i + 1);
            ask_for(&mut gate, SECOND, 200 + i, &domain) == Answer::Go
        })
        .count();
    assert_eq!(others, 5);
    // Its mail is away under its own number, and is called as its deliveries end.
    gate.done(2 * SECOND, 0, DeliveryEnd::Reported(TOOK));
    let mut called = 0;
    for at in 0..10 {
        while let NextAction::Call(call) = gate.next((2 + at) * SECOND) {
            called += call.most;
        }
    }
    assert_eq!(called, 1);
}

/// Any delivery that was connected elsewhere takes a domain out of the site.
#[test]
fn what_is_elsewhere_is_no_candidate_and_no_member() {
    let mut gate = gate_with_members(":20\n192.0.2.0/24:20:site\n");
    let of = |gate: &Gate, domain: &[u8]| gate.rules().resolve(domain).kind;
    assert_eq!(ask_for(&mut gate, SECOND, 0, "stranger.example"), Answer::Go);
    gate.done(SECOND, 0, DeliveryEnd::Reported(REFUSED));
    assert_eq!(of(&gate, b"stranger.example"), KeyKind::Candidates);
    while gate.next(2 * SECOND) != NextAction::None {}
    for (domain, kind) in
        [("stranger.example", KeyKind::Candidates), ("member3.example", KeyKind::Group)]
    {
        assert_eq!(of(&gate, domain.as_bytes()), kind);
        assert_eq!(ask_for(&mut gate, 2 * SECOND, 0, domain), Answer::Go);
        gate.done(3 * SECOND, 0, DeliveryEnd::Reported(DIED_ELSEWHERE));
        assert_eq!(of(&gate, domain.as_bytes()), KeyKind::Domain);
        while gate.next(3 * SECOND) != NextAction::None {}
    }
    // A candidate whose mail the site takes is a member.
    assert_eq!(ask_for(&mut gate, 4 * SECOND, 0, "stranger.example"), Answer::Go);
    gate.done(4 * SECOND, 0, DeliveryEnd::Reported(REFUSED));
    while gate.next(5 * SECOND) != NextAction::None {}
    assert_eq!(ask_for(&mut gate, 5 * SECOND, 0, "stranger.example"), Answer::Go);
    gate.done(5 * SECOND, 0, DeliveryEnd::Reported(TOOK));
    assert_eq!(of(&gate, b"stranger.example"), KeyKind::Group);
}

/// Mail that comes in a short pause is not deferred because other mail is away.
#[test]
fn mail_that_comes_in_a_short_pause_comes_back_after_it() {
    let mut gate = Gate::new(400, 400, 7).unwrap();
    let table = Table::parse(b":20::learn\n192.0.2.0/24:20:site:learn\n", gate.hasher()).unwrap().0;
    gate.set_table(Some(table), 0).unwrap();
    let report =
        b"r\0ZConnected to 192.0.2.7 but greeting failed.\nRemote host said: 421 too many\n\0";
    let parts = |mail: &'static [u8]| Parts::new(&[mail, b"s\0", b"u@d.example\0"]).unwrap();
    assert_eq!(gate.ask(1, 0, &parts(b"1/1\0")), Answer::Go);
    assert!(
        gate.done(1, 0, DeliveryEnd::Reported(report)).is_some(),
        "before it counts under its site"
    );
    while gate.next(1_000_000) != NextAction::None {}
    // Alone at a site whose domains are not known yet: a pause, and the mail is away.
    assert_eq!(gate.ask(1_000_000, 0, &parts(b"1/1\0")), Answer::Go);
    assert!(gate.done(1_000_000, 0, DeliveryEnd::Reported(report)).is_some());
    let answer = gate.ask(1_000_001, 0, &parts(b"1/2\0"));
    assert!(matches!(answer, Answer::Busy(Busy { why: BusyReason::Paused(_), .. })), "{answer:?}");
    // After the pause both are called.
    let mut called = 0;
    let mut now_us = 1_000_001;
    while called < 2 && now_us < 4_000_000 {
        match gate.next(now_us) {
            NextAction::Call(call) => called += call.most,
            NextAction::None => now_us += gate.timeout_us(now_us).unwrap().max(1),
            next => panic!("{next:?}"),
        }
    }
    assert_eq!(called, 2);
}
