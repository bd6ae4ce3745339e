//! What must hold whatever happens: random schedules against a plain model of the places. And the bounds of memory, the
//! order of turns, and clocks that jump.

use std::collections::HashMap;

use proptest::collection::vec;
use proptest::prelude::*;
use qpatch_gate::command::Parts;
use qpatch_gate::gate::{
    Answer, BusyReason, DeliveryEnd, Gate, HOLD_MAX_US, NextAction, SLOTS_MAX,
};
use qpatch_gate::learn::{Admission, Learning};
use qpatch_gate::route::Routes;
use qpatch_gate::rules::KeyKind;
use qpatch_gate::site::{Map, SiteReason};
use qpatch_gate::table::{Limit, Table};

const DOMAINS: [&str; 10] = [
    "one.example",
    "two.example",
    "grouped-a.example",
    "grouped-b.example",
    "sub.grouped.example",
    "routed-a.example",
    "routed-b.example",
    "closed.example",
    "free.example",
    "Two.EXAMPLE",
];

/// Tables with different limits and groups, an empty one, and none.
const TABLES: [Option<&str>; 8] = [
    Some(
        ":2\none.example:1\ngrouped-a.example:3:g\ngrouped-b.example:3:g\nclosed.example:0\nfree.example:\n",
    ),
    Some(
        ":4\none.example:3\n.grouped.example:2:g\ngrouped-a.example:2:g\nrelay.example:1\nclosed.example:2\n",
    ),
    Some(":1\nrelay.example:5:g\ngrouped-b.example:5:g\ntwo.example:0\n"),
    Some(
        ":2\n192.0.2.0/24:3:site\n198.51.100.0/24:1\nmx:.example:2:mapped\nclosed.example:0\nrelay.example:4\n",
    ),
    Some(":4:rest\n192.0.2.0/24:1:site\n192.0.2.64/26:2:mapped\n198.51.100.0/24:0:site\n"),
    Some(":0\n"),
    Some(""),
    None,
];

const ROUTES: [&str; 3] = [
    "routed-a.example:relay.example\nrouted-b.example:[relay.example]:26\n",
    "",
    ":relay.example\none.example:\n",
];

const MAPS: [&str; 3] = [
    "one.example:mapped\ntwo.example:mapped\nfree.example:site\nclosed.example:mapped\n",
    "",
    "relay.example:site\nfree.example:nowhere\ngrouped-a.example:mapped\n",
];

const ADDRESSES: [&str; 4] = ["192.0.2.1", "192.0.2.65", "198.51.100.1", "203.0.113.1"];

#[derive(Clone, Debug)]
enum Step {
    /// A command for this domain comes in the lowest free slot, as from qmail-send.
    Ask {
        domain: usize,
    },
    /// A command for a slot that qmail-send would not have chosen.
    AskSlot {
        slot: u32,
        domain: usize,
    },
    /// One of the running deliveries ends.
    Done {
        which: usize,
        ran: bool,
    },
    /// One of the running deliveries ends, and its report has an address; time passes until its domain's site counts.
    Seen {
        which: usize,
        at: usize,
        took: bool,
    },
    Map {
        which: usize,
    },
    /// A report for any slot.
    DoneSlot {
        slot: u32,
    },
    /// Time goes by, or the clock jumps back.
    Wait {
        ms: i64,
    },
    Table {
        which: usize,
    },
    Routes {
        which: usize,
    },
    Drop,
    Tidy,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        40 => (0..DOMAINS.len()).prop_map(|domain| Step::Ask { domain }),
        25 => (any::<usize>(), any::<bool>()).prop_map(|(which, ran)| Step::Done { which, ran }),
        12 => (0i64..3000).prop_map(|ms| Step::Wait { ms }),
        2 => (-100_000i64..200_000).prop_map(|ms| Step::Wait { ms }),
        2 => (0..40u32, 0..DOMAINS.len()).prop_map(|(slot, domain)| Step::AskSlot { slot, domain }),
        4 => (any::<usize>(), 0..ADDRESSES.len(), any::<bool>())
            .prop_map(|(which, at, took)| Step::Seen { which, at, took }),
        1 => (0..MAPS.len()).prop_map(|which| Step::Map { which }),
        2 => (0..40u32).prop_map(|slot| Step::DoneSlot { slot }),
        2 => (0..TABLES.len()).prop_map(|which| Step::Table { which }),
        1 => (0..ROUTES.len()).prop_map(|which| Step::Routes { which }),
        1 => Just(Step::Drop),
        2 => Just(Step::Tidy),
    ]
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Slot {
    Running(usize),
    Held(usize, u64),
}

type KeyName = (KeyKind, Vec<u8>);

struct Check {
    gate: Gate,
    now_us: u64,
    slots: Vec<Option<Slot>>,
    latest_us: u64,
}

impl Check {
    fn new(slots: u32, concurrency_remote: u32, seed: u64) -> Self {
        let gate = Gate::new(slots, concurrency_remote, seed).unwrap();
        Self { gate, now_us: 1 << 40, slots: vec![None; slots as usize], latest_us: 1 << 40 }
    }

    fn key_of(&self, domain: usize) -> (KeyName, Limit) {
        let found = self.gate.rules().resolve(DOMAINS[domain].as_bytes());
        ((found.kind, found.name.to_ascii_lowercase()), found.cap.limit)
    }

    /// Whether a key with this many running has a place. Candidates have the places that the members of their site
    /// leave while no member waits, and always a quarter.
    fn admits(&self, key: &KeyName, limit: Limit, running: u32) -> bool {
        let members = self.gate.find_key(KeyKind::Group, &key.1);
        let left = match members.map(|members| (members, members.limit())) {
            Some((members, Limit::AtMost(limit))) if key.0 == KeyKind::Candidates => {
                let least = (limit / 4).max(1);
                let waits = members.held > 0 || members.recall.away() > 0;
                if waits { least } else { limit.saturating_sub(members.running).max(least) }
            }
            _ => u32::MAX,
        };
        !matches!(limit, Limit::AtMost(most) if running >= most) && running < left
    }

    /// Whether a key starts nothing for a moment because its server has refused something at the door.
    fn waits(&self, key: &KeyName) -> bool {
        let Some(key) = self.gate.find_key(key.0, &key.1) else { return false };
        let limit = if let Limit::AtMost(limit) = key.cap.limit { limit } else { SLOTS_MAX };
        let (learned, learning) = (&key.learned, key.cap.learning);
        learned.may_start(self.latest_us, key.running, limit, learning) != Admission::Start
            || (learning == Learning::Fixed
                && learned.most(self.latest_us, limit, learning) < limit)
    }

    /// The most slots that a domain of a site may have.
    fn part(&self, domain: usize) -> u32 {
        let found = self.gate.rules().resolve(DOMAINS[domain].as_bytes());
        match (found.site, found.cap.limit) {
            (Some(SiteReason::Refused(..)), _) => 1,
            (Some(SiteReason::Address(..)), Limit::AtMost(limit)) => (limit * 3).div_ceil(4),
            _ => u32::MAX,
        }
    }

    fn slots_of(&self, domain: usize) -> u32 {
        let is_same = |slot: &&Slot| {
            let (Slot::Running(other) | Slot::Held(other, _)) = slot;
            DOMAINS[*other].eq_ignore_ascii_case(DOMAINS[domain])
        };
        self.slots.iter().flatten().filter(is_same).count() as u32
    }

    fn count(&self, key: &KeyName, of: impl Fn(&Slot) -> Option<usize>) -> u32 {
        let domains = self.slots.iter().flatten().filter_map(of);
        domains.filter(|&domain| self.key_of(domain).0 == *key).count() as u32
    }

    fn running(&self, key: &KeyName) -> u32 {
        self.count(key, |slot| if let Slot::Running(domain) = slot { Some(*domain) } else { None })
    }

    fn held(&self, key: &KeyName) -> u32 {
        self.count(key, |slot| if let Slot::Held(domain, _) = slot { Some(*domain) } else { None })
    }

    fn in_use(&self) -> u32 {
        self.slots.iter().flatten().count() as u32
    }

    fn parts(slot: u32, domain: usize) -> [String; 3] {
        [
            format!("{slot}/{domain}\0"),
            "sender@a.example\0".into(),
            format!("user{slot}@{}\0", DOMAINS[domain]),
        ]
    }

    fn ask(&mut self, slot: u32, domain: usize) {
        let strings = Self::parts(slot, domain);
        let bytes: Vec<&[u8]> = strings.iter().map(String::as_bytes).collect();
        let (key, limit) = self.key_of(domain);
        let before = self.running(&key);
        self.look_at_the_clock();
        let answer = self.gate.ask(self.now_us, slot, &Parts::new(&bytes).unwrap());
        let Some(entry) = self.slots.get(slot as usize).copied() else {
            assert_eq!(answer, Answer::Go, "a slot that does not exist");
            return;
        };
        match (entry, answer) {
            (Some(Slot::Running(_)), Answer::Go) | (Some(Slot::Held(..)), Answer::InUse) => {}
            (Some(entry), answer) => panic!("slot {slot} is {entry:?}, the answer was {answer:?}"),
            (None, Answer::Go) => {
                assert!(self.admits(&key, limit, before), "over the limit: {before} of {limit:?}");
                self.slots[slot as usize] = Some(Slot::Running(domain));
            }
            (None, Answer::Hold) => {
                assert!(
                    !self.admits(&key, limit, before) || self.held(&key) > 0 || self.waits(&key),
                    "held although there was a place"
                );
                self.slots[slot as usize] = Some(Slot::Held(domain, self.latest_us));
                let free = self.gate.capacity() - self.in_use();
                assert!(self.held(&key) <= free, "{} held, {free} free", self.held(&key));
            }
            (None, Answer::Busy(busy)) => {
                assert!((1..=3600).contains(&busy.secs));
                let shown = self.gate.key(busy.key);
                if let BusyReason::AtDomainShare(part) = busy.why {
                    assert_eq!(part, self.part(domain));
                    assert!(
                        self.slots_of(domain) >= part,
                        "sent away although it did not have its share"
                    );
                    let name = DOMAINS[domain].to_ascii_lowercase().into_bytes();
                    assert_eq!((shown.kind, &shown.name), (KeyKind::Domain, &name));
                } else {
                    let has_place = self.admits(&key, limit, before) && !self.waits(&key);
                    assert!(!has_place, "sent away although there was a place");
                    assert_eq!((shown.kind, &shown.name), (key.0, &key.1));
                }
            }
            (None, Answer::InUse) => panic!("slot {slot} is free"),
        }
    }

    /// Notes the time of a call of the gate. The gate's time does not go back.
    fn look_at_the_clock(&mut self) {
        self.latest_us = self.latest_us.max(self.now_us);
    }

    /// Takes all actions of the gate for held commands.
    fn take_all_actions(&mut self) {
        self.look_at_the_clock();
        loop {
            match self.gate.next(self.now_us) {
                NextAction::None => break,
                NextAction::Go { slot, command } => {
                    let Some(Slot::Held(domain, _)) = self.slots[slot as usize] else {
                        panic!("{slot} is not held")
                    };
                    let (key, limit) = self.key_of(domain);
                    assert!(self.admits(&key, limit, self.running(&key)), "over the limit");
                    self.same_command(slot, domain, command);
                    self.slots[slot as usize] = Some(Slot::Running(domain));
                }
                NextAction::Busy { slot, command, busy } => {
                    let Some(Slot::Held(domain, since_us)) = self.slots[slot as usize] else {
                        panic!("{slot} is not held")
                    };
                    assert!(self.latest_us - since_us >= HOLD_MAX_US, "sent away too early");
                    assert!((1..=3600).contains(&busy.secs));
                    self.same_command(slot, domain, command);
                    self.slots[slot as usize] = None;
                }
                NextAction::Call(call) => assert!(call.most > 0),
            }
        }
    }

    fn same_command(&self, slot: u32, domain: usize, command: u32) {
        let strings = Self::parts(slot, domain);
        assert_eq!(self.gate.command(command).as_slice(), strings.each_ref().map(String::as_bytes));
    }

    fn invariants(&self) {
        assert_eq!(self.gate.in_use(), self.in_use(), "a place is lost or counted twice");
        let mut keys: HashMap<KeyName, Limit> = HashMap::new();
        for slot in self.slots.iter().flatten() {
            let (Slot::Running(domain) | Slot::Held(domain, _)) = slot;
            let (key, limit) = self.key_of(*domain);
            keys.insert(key, limit);
        }
        let mut held = 0;
        for (key, limit) in &keys {
            let shown = self
                .gate
                .keys()
                .find(|shown| shown.kind == key.0 && shown.name == key.1)
                .expect("the key");
            assert_eq!(shown.cap.limit, *limit);
            assert_eq!(shown.running, self.running(key), "{key:?}");
            assert_eq!(shown.held, self.held(key), "{key:?}");
            assert!(
                shown.held == 0 || !self.admits(key, *limit, shown.running) || self.waits(key),
                "a place is idle, and a command is held for it"
            );
            held += shown.held;
        }
        assert_eq!(self.gate.held(), held);
        for shown in self.gate.keys().filter(|shown| shown.running + shown.held > 0) {
            assert!(keys.contains_key(&(shown.kind, shown.name.clone())), "{shown:?}");
        }
        for slot in self.slots.iter().flatten() {
            if let Slot::Held(_, since_us) = slot {
                assert!(self.latest_us - since_us < HOLD_MAX_US, "held for too long");
            }
        }
        let due = self.gate.timeout_us(self.now_us);
        let is_away =
            self.gate.keys().any(|key| key.recall.away() > 0 && key.cap.limit != Limit::AtMost(0));
        assert!(due.is_some() || held == 0 && !is_away);
        assert_ne!(due, Some(0));
        let called =
            self.gate.keys().map(|key| key.recall.called() + key.called_by_domain).sum::<u32>();
        assert_eq!(self.gate.called(), called);
    }

    fn done(&mut self, which: usize, ran: DeliveryEnd<'_>) {
        let running: Vec<usize> = (0..self.slots.len())
            .filter(|&slot| matches!(self.slots[slot], Some(Slot::Running(_))))
            .collect();
        if !running.is_empty() {
            let slot = running[which % running.len()];
            self.look_at_the_clock();
            self.gate.done(self.now_us, slot as u32, ran);
            self.slots[slot] = None;
        }
    }

    fn take(&mut self, step: &Step) {
        match *step {
            Step::Ask { domain } => {
                if let Some(slot) = self.slots.iter().position(Option::is_none) {
                    self.ask(slot as u32, domain);
                }
            }
            Step::AskSlot { slot, domain } => self.ask(slot, domain),
            Step::Done { which, ran } => {
                self.done(
                    which,
                    if ran {
                        DeliveryEnd::Reported(b"r\0Kaccepted\0")
                    } else {
                        DeliveryEnd::NeverStarted
                    },
                );
            }
            Step::Seen { which, at, took } => {
                let at = ADDRESSES[at];
                let report = if took {
                    format!("r\0K{at} accepted message.\nRemote host said: 250 ok\n\0")
                } else {
                    format!("ZConnected to {at} but greeting failed.\nRemote host said: 451 no\n\0")
                };
                self.done(which, DeliveryEnd::Reported(report.as_bytes()));
                self.now_us = self.latest_us + 200_000;
                self.take_all_actions();
            }
            Step::Map { which } => {
                let map = Map::parse(MAPS[which].as_bytes(), self.gate.hasher()).unwrap().0;
                self.look_at_the_clock();
                self.gate.set_map(map, self.now_us).unwrap();
            }
            Step::DoneSlot { slot } => {
                self.look_at_the_clock();
                self.gate.done(self.now_us, slot, DeliveryEnd::Reported(b"hno such user\0Dgone\0"));
                if let Some(entry) = self.slots.get_mut(slot as usize) {
                    *entry = None;
                }
            }
            Step::Wait { ms } => {
                self.now_us = self.now_us.saturating_add_signed(ms * 1000);
            }
            Step::Table { which } => {
                let hasher = self.gate.hasher();
                let table =
                    TABLES[which].map(|text| Table::parse(text.as_bytes(), hasher).unwrap().0);
                self.look_at_the_clock();
                self.gate.set_table(table, self.now_us).unwrap();
            }
            Step::Routes { which } => {
                let routes = Routes::parse(ROUTES[which].as_bytes(), self.gate.hasher()).unwrap().0;
                self.look_at_the_clock();
                self.gate.set_routes(routes, self.now_us).unwrap();
            }
            Step::Drop => {
                self.gate.drop_held();
                for slot in &mut self.slots {
                    if matches!(slot, Some(Slot::Held(..))) {
                        *slot = None;
                    }
                }
            }
            Step::Tidy => {
                self.look_at_the_clock();
                self.gate.tidy(self.now_us).unwrap();
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    /// No key is ever over its limit. No place is idle while its key has a held command, and no command is sent away or
    /// held while there is a place, unless the server has just refused a delivery at the door. No place is lost or
    /// counted twice, also through reloads. Never more commands are held than slots are free, none for more than a
    /// minute, and each comes back unchanged.
    #[test]
    fn places(
        slots in 1u32..40,
        concurrency_remote in 1u32..60,
        seed in any::<u64>(),
        table in 0..TABLES.len(),
        steps in vec((step(), any::<bool>()), 1..400),
    ) {
        let mut check = Check::new(slots, concurrency_remote, seed);
        check.take(&Step::Table { which: table });
        for (step, settles) in &steps {
            check.take(step);
            // As in spawn.c, several commands may be read, and reports written, before the actions for held ones.
            if *settles {
                check.take_all_actions();
                check.invariants();
            }
        }
    }

    /// When all deliveries have ended and their keys are forgotten, memory is as small as for few deliveries.
    #[test]
    fn memory_returns(seed in any::<u64>(), domains in 2_000u32..6_000) {
        let mut gate = Gate::new(6_000, 6_000, seed).unwrap();
        let table = Table::parse(b":1\n", gate.hasher()).unwrap().0;
        gate.set_table(Some(table), 0).unwrap();
        for slot in 0..domains {
            // Two for each domain, so that half of them are held.
            let recipient = format!("u@domain{}.example\0", slot / 2);
            gate.ask(1, slot, &Parts::new(&[b"1/1\0", b"s\0", recipient.as_bytes()]).unwrap());
        }
        let full = gate.bytes();
        for _ in 0..2 {
            for slot in 0..domains {
                gate.done(2, slot, DeliveryEnd::NeverStarted);
            }
            while gate.next(2) != NextAction::None {}
        }
        prop_assert_eq!(gate.in_use(), 0);
        // Mail that was sent away counts as away until the time of its busy answers is over.
        for second in 0..8000u64 {
            while gate.next(second * 1_000_000) != NextAction::None {}
            gate.tidy(second * 1_000_000).unwrap();
        }
        let idle = gate.bytes();
        prop_assert!(idle < 8192, "{} bytes when full, {} when idle", full, idle);
    }
}

/// Domains that never come again do not use more and more memory.
#[test]
fn a_million_domains() {
    let mut gate = Gate::new(1000, 1000, 7).unwrap();
    let table = Table::parse(b":1\n", gate.hasher()).unwrap().0;
    gate.set_table(Some(table), 0).unwrap();
    let mut most = 0;
    for i in 0..1_000_000u64 {
        let recipient = format!("u@domain{i}.example\0");
        let slot = (i % 1000) as u32;
        let now_us = i * 1000;
        gate.done(now_us, slot, DeliveryEnd::Reported(b"r\0Kok\0"));
        assert_eq!(
            gate.ask(now_us, slot, &Parts::new(&[b"1/1\0", b"s\0", recipient.as_bytes()]).unwrap()),
            Answer::Go
        );
        if i % 1000 == 0 {
            gate.tidy(now_us).unwrap();
            most = most.max(gate.bytes());
        }
    }
    println!("a million domains, 1000 at once: at most {most} bytes");
    assert!(most < 1_500_000, "{most} bytes");
}

/// If a key is suspended when its turn comes, it has its turn later.
#[test]
fn a_turn_that_comes_in_a_pause_is_not_lost() {
    let mut gate = Gate::new(400, 400, 7).unwrap();
    let table = Table::parse(b"d.example:2::learn\n", gate.hasher()).unwrap().0;
    gate.set_table(Some(table), 0).unwrap();
    let parts = Parts::new(&[b"1/1\0", b"s\0", b"u@d.example\0"]).unwrap();
    let failed = DeliveryEnd::Reported(
        b"r\0ZSorry, I wasn't able to establish an SMTP connection. (#4.4.1)\n\0",
    );
    for now_us in 1..3 {
        assert_eq!(gate.ask(now_us, 0, &parts), Answer::Go);
        assert_eq!(gate.done(now_us, 0, failed), None);
        assert_eq!(gate.next(now_us), NextAction::None);
    }
    assert_eq!(gate.ask(3, 0, &parts), Answer::Go);
    assert_eq!(gate.ask(3, 1, &parts), Answer::Go);
    assert_eq!(gate.ask(3, 2, &parts), Answer::Hold);
    // A place is free; but before anything is started in it the key is suspended.
    gate.done(4, 0, DeliveryEnd::NeverStarted);
    gate.done(4, 1, failed);
    assert_eq!(gate.next(4), NextAction::None);
    let wait_us = gate.timeout_us(4).unwrap();
    assert!((500_000..=2_000_000).contains(&wait_us), "{wait_us}");
    assert!(matches!(gate.next(4 + wait_us), NextAction::Go { slot: 2, .. }));
}

/// When many domains have become idle together, a new domain replaces one of them, not all.
#[test]
fn one_comes_and_one_goes() {
    const MANY: u32 = 60_000;
    let mut gate = Gate::new(65_000, 65_000, 7).unwrap();
    let table = Table::parse(b":20\n", gate.hasher()).unwrap().0;
    gate.set_table(Some(table), 0).unwrap();
    let ask = |gate: &mut Gate, slot: u32, domain: u32| {
        let recipient = format!("u@d{domain}.example\0");
        gate.ask(0, slot, &Parts::new(&[b"1/1\0", b"s\0", recipient.as_bytes()]).unwrap())
    };
    for slot in 0..MANY {
        assert_eq!(ask(&mut gate, slot, slot), Answer::Go);
    }
    let most = gate.bytes();
    for slot in 0..MANY {
        gate.done(0, slot, DeliveryEnd::NeverStarted);
    }
    let idle = gate.keys().count();
    assert_eq!(idle, MANY as usize);
    ask(&mut gate, 0, MANY);
    assert_eq!(gate.keys().count(), idle);
    // Its name may be longer than that of the domain that was forgotten.
    assert!(gate.bytes() <= most + 100);
    gate.tidy(1).unwrap();
    assert!(gate.keys().count() < 300);
    assert!(gate.bytes() < most / 50, "{} of {most} bytes", gate.bytes());
}

/// Several keys that become startable at once take turns.
#[test]
fn round_robin() {
    let mut gate = Gate::new(100, 100, 7).unwrap();
    let closed = Table::parse(b":0\n", gate.hasher()).unwrap().0;
    gate.set_table(Some(closed), 0).unwrap();
    let ask = |gate: &mut Gate, slot: u32, domain: &str| {
        let recipient = format!("u@{domain}\0");
        gate.ask(0, slot, &Parts::new(&[b"1/1\0", b"s\0", recipient.as_bytes()]).unwrap())
    };
    for slot in 0..30 {
        let domain = ["a.example", "b.example", "c.example"][slot as usize / 10];
        assert_eq!(ask(&mut gate, slot, domain), Answer::Hold);
    }
    let open = Table::parse(b":10\n", gate.hasher()).unwrap().0;
    gate.set_table(Some(open), 1).unwrap();
    let mut turns = Vec::new();
    while let NextAction::Go { slot, .. } = gate.next(2) {
        turns.push(slot);
    }
    let expected: Vec<u32> = (0..10).flat_map(|i| [i, 10 + i, 20 + i]).collect();
    assert_eq!(turns, expected, "in turn over the domains, and in order within each");
}

/// A clock that jumps: a jump back counts as standing still, and an hour forward only ends holds.
#[test]
fn clock_jumps() {
    let mut check = Check::new(20, 20, 3);
    check.take(&Step::Table { which: 0 });
    for _ in 0..8 {
        check.take(&Step::Ask { domain: 0 });
    }
    for ms in [-1_000_000_000, 1, 3_600_000, -3_600_000, 5, 1_000_000_000_000] {
        check.take(&Step::Wait { ms });
        check.take_all_actions();
        check.invariants();
        check.take(&Step::Ask { domain: 0 });
        check.take_all_actions();
        check.invariants();
    }
}
