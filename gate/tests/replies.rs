//! control/concurrencyreplies: what its patterns match, and what the gate does then.

use proptest::prelude::*;
use qpatch_gate::command::Parts;
use qpatch_gate::gate::{Answer, Busy, BusyReason, DeliveryEnd, Gate, NextAction, PauseCause};
use qpatch_gate::regex::{Fault, Regex, RegexError};
use qpatch_gate::replies::Replies;
use qpatch_gate::rules::KeyKind;
use qpatch_gate::table::{Limit, Table};

const SEC: u64 = 1_000_000;

/// The crate `regex`, set to ASCII and to ignore case.
fn reference(pattern: &str) -> Result<regex::bytes::Regex, regex::Error> {
    regex::bytes::RegexBuilder::new(pattern).case_insensitive(true).unicode(false).build()
}

/// Patterns of the grammar.
fn patterns() -> impl Strategy<Value = String> {
    let single = prop_oneof![
        8 => "[a-dA-D0-2 _-]",
        1 => Just(".".to_string()),
        1 => "\\\\[dDsSwWbB]",
        1 => "\\\\[.*+?()|^$/\\[\\]{}\\\\]",
        1 => "[\\^$]",
        2 => "\\[\\^?\\]?([a-cA-C0-2_ .]|a-c|B-D|0-1|\\\\[dDsSwW]|\\\\\\]|\\\\-){1,4}-?\\]",
    ];
    single.prop_recursive(5, 60, 5, |inner| {
        let quantified = (inner.clone(), "\\*|\\+|\\?|\\*\\?|\\{[0-2]\\}|\\{[0-2],\\}|\\{[0-1],[1-3]\\}\\??");
        prop_oneof![
            3 => prop::collection::vec(inner.clone(), 1..5).prop_map(|parts| parts.concat()),
            2 => prop::collection::vec(inner.clone(), 1..4).prop_map(|parts| format!("({})", parts.join("|"))),
            1 => prop::collection::vec(inner.clone(), 1..4).prop_map(|parts| parts.join("|")),
            1 => inner.prop_map(|part| format!("(?:{part})")),
            2 => quantified.prop_map(|(part, times)| format!("({part}){times}")),
        ]
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn patterns_match_as_those_of_the_crate(
        pattern in patterns(),
        texts in prop::collection::vec("[a-d0-2 _.*+?()|^$/\\[\\]{}\\\\-]{0,12}", 1..12),
    ) {
        let Ok(reference) = reference(&pattern) else { return Ok(()) };
        let own = match Regex::new(pattern.as_bytes()) {
            Ok(own) => own,
            Err(RegexError::At(_, Fault::TooLong)) => return Ok(()),
            Err(error) => panic!("{pattern:?}: {error:?}"),
        };
        for text in texts {
            let wanted = reference.is_match(text.as_bytes());
            prop_assert_eq!(own.is_match(text.as_bytes()), wanted, "{:?} in {:?}", pattern, text);
        }
    }

    /// Any bytes are a pattern, or have a fault at a position within them.
    #[test]
    fn any_pattern(pattern in prop::collection::vec(prop_oneof![3 => 0x20u8..0x7f, 1 => any::<u8>()], 0..40)) {
        match Regex::new(&pattern) {
            Ok(regex) => { let _ = regex.is_match(b"421 4.7.0 too many connections from <>"); }
            Err(RegexError::At(at, _)) => prop_assert!(at <= pattern.len()),
            Err(RegexError::OutOfMemory) => prop_assert!(false),
        }
    }

    /// A pattern that both accept means the same to both: no pattern has another meaning here than elsewhere.
    #[test]
    fn what_is_taken_means_the_same(
        pattern in "[ab01.*+?(){}|^$\\[\\]\\\\dsb,:-]{1,10}",
        text in "[ab01 .-]{0,8}",
    ) {
        if let (Ok(own), Ok(reference)) = (Regex::new(pattern.as_bytes()), reference(&pattern)) {
            prop_assert_eq!(own.is_match(text.as_bytes()), reference.is_match(text.as_bytes()), "{:?} in {:?}", pattern, text);
        }
    }

    #[test]
    fn any_file(text in prop::collection::vec(any::<u8>(), 0..300)) {
        let _ = Replies::parse(&text).unwrap();
    }

    #[test]
    fn nearly_a_file(lines in prop::collection::vec(
        prop::sample::select(vec!["421", "4xx", "4.7.1", "*", "/a(b|c)+/", "/", "\"x\\\"y\"", "\"", "limit", "rate", "pause", "60", "nothing", "#", "\n"]), 0..40))
    {
        let (replies, problems) = Replies::parse(lines.join(" ").as_bytes()).unwrap();
        prop_assert!(replies.len() + problems.iter().count() <= 40);
    }
}

fn replies(text: &str) -> Replies {
    let (replies, problems) = Replies::parse(text.as_bytes()).unwrap();
    assert_eq!(problems.errors(), 0, "{:?}", problems.worst());
    replies
}

fn gate(table: &str, words: &str) -> Gate {
    let mut gate = Gate::new(100, 100, 1).unwrap();
    let table = Table::parse(table.as_bytes(), gate.hasher()).unwrap().0;
    gate.set_table(Some(table), 0).unwrap();
    gate.set_replies(replies(words), 0);
    gate
}

fn ask(gate: &mut Gate, now_us: u64, slot: u32, domain: &str) -> Answer {
    let recipient = format!("user@{domain}\0");
    gate.ask(
        now_us,
        slot,
        &Parts::new(&[b"1/1\0", b"s@a.example\0", recipient.as_bytes()]).unwrap(),
    )
}

/// The gate's answer to the sender after a reply.
fn done(gate: &mut Gate, now_us: u64, slot: u32, reply: &str) -> Option<Busy> {
    let report =
        format!("ZConnected to 192.0.2.1 but sender was rejected.\nRemote host said: {reply}\n\0");
    gate.done(now_us, slot, DeliveryEnd::Reported(report.as_bytes()))
}

fn limit(gate: &Gate, domain: &str) -> Limit {
    gate.find_key(KeyKind::Domain, domain.as_bytes()).unwrap().limit()
}

#[test]
fn a_pause_counts_for_fixed_limits_and_none() {
    for table in [":5\n", ":\n", ":5::learn\n"] {
        let mut gate = gate(table, "# x\n421 \"[TSS04]\" pause 90\n");
        for slot in 0..3 {
            assert_eq!(ask(&mut gate, SEC, slot, "a.example"), Answer::Go);
        }
        assert_eq!(done(&mut gate, 2 * SEC, 0, "421 4.7.0 [TSS04] later"), None, "it was a try");
        // Nothing starts. What cannot be held is deferred.
        let answer = ask(&mut gate, 3 * SEC, 0, "a.example");
        let Answer::Busy(Busy { secs, why, .. }) = answer else { panic!("{table}: {answer:?}") };
        assert_eq!((secs, why), (89, BusyReason::Suspended(PauseCause::Rule(2))), "{table}");
        assert_eq!(ask(&mut gate, 3 * SEC, 0, "b.example"), Answer::Go, "others go on");
        gate.done(4 * SEC, 0, DeliveryEnd::NeverStarted);
        // Deliveries that end meanwhile change nothing, successful or not.
        gate.done(4 * SEC, 1, DeliveryEnd::Reported(b"r\0K192.0.2.1 accepted message.\n\0"));
        assert_eq!(gate.next(4 * SEC), NextAction::None);
        // In its last minute mail is held, and starts when it is over.
        assert_eq!(ask(&mut gate, 40 * SEC, 0, "a.example"), Answer::Hold, "{table}");
        assert_eq!(gate.next(91 * SEC), NextAction::None);
        assert_eq!(gate.timeout_us(91 * SEC), Some(SEC));
        assert!(matches!(gate.next(92 * SEC), NextAction::Go { slot: 0, .. }), "{table}");
        assert_eq!(gate.totals().suspended, 1);
    }
}

#[test]
fn pauses_are_prolonged_and_never_shortened() {
    let mut gate = gate(":5\n", "421 \"long\" pause 100\n421 \"short\" pause 10\n");
    for slot in 0..3 {
        ask(&mut gate, SEC, slot, "a.example");
    }
    done(&mut gate, 2 * SEC, 0, "421 long");
    done(&mut gate, 3 * SEC, 1, "421 short");
    let until = |gate: &Gate| {
        gate.find_key(KeyKind::Domain, b"a.example").unwrap().suspended_until(4 * SEC)
    };
    assert_eq!(until(&gate), Some(102 * SEC));
    done(&mut gate, 4 * SEC, 2, "421 long");
    assert_eq!(until(&gate), Some(104 * SEC));
}

#[test]
fn a_refusal_for_good_may_want_a_pause_and_nothing_else() {
    let mut gate = gate(":5::learn\n", "550 \"blocked\" pause 60\n5xx * limit\n");
    for slot in 0..3 {
        ask(&mut gate, SEC, slot, "a.example");
    }
    let refused = |what: &str| {
        format!(
            "h192.0.2.1 does not like recipient.\nRemote host said: 550 5.7.1 {what}\n\0DGiving up on 192.0.2.1.\n\0"
        )
    };
    assert_eq!(
        gate.done(2 * SEC, 0, DeliveryEnd::Reported(refused("no such user").as_bytes())),
        None
    );
    assert_eq!(limit(&gate, "a.example"), Limit::AtMost(5));
    assert_eq!(ask(&mut gate, 2 * SEC, 0, "a.example"), Answer::Go);
    assert_eq!(
        gate.done(3 * SEC, 1, DeliveryEnd::Reported(refused("You Are Blocked").as_bytes())),
        None
    );
    assert_eq!(ask(&mut gate, 4 * SEC, 1, "a.example"), Answer::Hold);
}

#[test]
fn the_operators_words_come_before_the_gates() {
    let words =
        "450 /^450 4\\.2\\.0 full house/ limit\n45x \"sluggish\" rate\n421 \"too many\" nothing\n";
    let cases = [
        ("450 4.2.0 Full House", Limit::AtMost(2)),
        ("450 4.2.1 Full House", Limit::AtMost(9)),
        // Too fast is not too many.
        ("451 too sluggish", Limit::AtMost(9)),
        ("421 Too many connections", Limit::AtMost(9)),
        // The gate reads a reply itself if no line matches it.
        ("452 Too many connections", Limit::AtMost(2)),
        ("452 <sluggish@full.house.example> over quota", Limit::AtMost(9)),
    ];
    for (reply, wanted) in cases {
        let mut gate = gate(":9::learn\n", words);
        for slot in 0..3 {
            ask(&mut gate, SEC, slot, "a.example");
        }
        done(&mut gate, 2 * SEC, 0, reply);
        assert_eq!(limit(&gate, "a.example"), wanted, "{reply}");
    }
}

#[test]
fn another_file_ends_all_pauses() {
    let mut gate = gate(":5\n", "421 * pause 7200\n");
    ask(&mut gate, SEC, 0, "a.example");
    done(&mut gate, SEC, 0, "421 x");
    assert!(matches!(ask(&mut gate, 7100 * SEC, 0, "a.example"), Answer::Busy(_)));
    assert_eq!(ask(&mut gate, 7150 * SEC, 0, "a.example"), Answer::Hold);
    assert_eq!(gate.next(7151 * SEC), NextAction::None);
    gate.set_replies(replies("421 * pause 60\n"), 7151 * SEC);
    assert!(matches!(gate.next(7151 * SEC), NextAction::Go { slot: 0, .. }));
    // A shorter pause ends at its own time.
    done(&mut gate, 7152 * SEC, 0, "421 x");
    assert_eq!(ask(&mut gate, 7153 * SEC, 0, "a.example"), Answer::Hold);
    assert_eq!(gate.timeout_us(7153 * SEC), Some(59 * SEC));
    assert!(matches!(gate.next(7212 * SEC), NextAction::Go { slot: 0, .. }));
}

#[test]
fn a_pause_is_not_forgotten_when_nothing_comes() {
    let mut gate = gate(":5\n", "421 * pause 7200\n");
    ask(&mut gate, 0, 0, "a.example");
    done(&mut gate, 0, 0, "421 x");
    for secs in (0..7100).step_by(100) {
        gate.tidy(secs * SEC).unwrap();
    }
    // Nor does a change of the table end it.
    let table = Table::parse(b":7\n", gate.hasher()).unwrap().0;
    gate.set_table(Some(table), 7100 * SEC).unwrap();
    assert!(matches!(ask(&mut gate, 7100 * SEC, 0, "a.example"), Answer::Busy(_)));
    assert_eq!(ask(&mut gate, 7200 * SEC, 0, "a.example"), Answer::Go);
}

#[test]
fn without_limits_nothing_is_read() {
    let mut gate = Gate::new(100, 100, 1).unwrap();
    gate.set_replies(replies("421 * pause 7200\n"), 0);
    ask(&mut gate, 0, 0, "a.example");
    done(&mut gate, SEC, 0, "421 x");
    assert_eq!(ask(&mut gate, 2 * SEC, 0, "a.example"), Answer::Go);
}
