//! Mail that goes to a relay, by its domain or by its sender, and what is shown of the relay's credentials.

use std::fs;

use qpatch_gate::command::Parts;
use qpatch_gate::gate::DeliveryEnd;
use qpatch_gate::host::{Ask, Done, Due};
use qpatch_gate::rules::KeyKind;
use qpatch_gate::status::State;
use qpatch_gate::table::Limit;
use qpatch_gate_status::Status;

use crate::home::{Home, SENDERS, ask, ask_from, next_second, running, text};

#[test]
fn relays_count_together() {
    let home = Home::new();
    home.write("concurrencydomains", "relay.example:2\n");
    home.write("smtproutes", "a.example:relay.example:26\nb.example:[Relay.Example]\n");
    let mut host = home.open(100);
    assert_eq!(ask(&mut host, 0, "a.example"), Ask::Go);
    assert_eq!(ask(&mut host, 1, "b.example"), Ask::Go);
    assert_eq!(ask(&mut host, 2, "A.example."), Ask::Hold);
    assert_eq!(ask(&mut host, 3, "c.example"), Ask::Go);
    home.write("smtproutes", "a.example:relay.example:26\n");
    next_second();
    assert!(
        matches!(host.due(), Due::Go { slot: 2, .. }),
        "b.example does not count there any more"
    );
}

/// The question about many recipients has their domain and no sender. If the sender decides the relay, they may belong
/// to other keys.
#[test]
fn what_the_sender_may_decide_is_asked_for_one_by_one() {
    const TOGETHER: u32 = 65535;
    for (reads, answer) in [("", Ask::Report), ("authsenders", Ask::Go)] {
        let home = Home::new();
        home.write("concurrencydomains", "own.example:1\n");
        home.write("authsenders", SENDERS);
        let mut host = home.open_beside(reads);
        assert_eq!(ask_from(&mut host, 0, "s@elsewhere.example", "own.example"), Ask::Go);
        let question = Parts::new(&[b"1/1\0", b"\0", b"7@own.example\0"]).unwrap();
        assert_eq!(host.ask(TOGETHER, &question), answer, "{reads:?}");
        if answer == Ask::Go {
            assert_eq!(ask_from(&mut host, 1, "s@a.example", "own.example"), Ask::Go);
        }
    }
}

#[test]
fn a_relay_by_the_sender_is_the_key_where_qmail_remote_reads_it() {
    let home = Home::new();
    home.write("concurrencyremote", "100\n");
    home.write(
        "concurrencydomains",
        ":20\nrelay.example:2\ngrouped.example:9:group\n192.0.2.0/24:3:site\nown.example:1\n",
    );
    home.write("smtproutes", "x.example:other.example\n!@:bounces.example|user|S3cret\n");
    home.write("authsenders", SENDERS);
    let mut host = home.open_beside("qmail-remote reads: authsenders");
    assert_eq!(ask_from(&mut host, 0, "s@a.example", "x.example"), Ask::Go);
    assert_eq!(ask_from(&mut host, 1, "s@a.example", "own.example"), Ask::Go);
    assert_eq!(ask_from(&mut host, 2, "t@A.EXAMPLE", "y.example"), Ask::Hold, "2 of 2 places");
    assert_eq!(running(&host, KeyKind::Relay, "relay.example"), 2);
    // A domain's own group comes first, as it does before smtproutes. An empty relay means smtproutes.
    assert_eq!(ask_from(&mut host, 3, "s@a.example", "grouped.example"), Ask::Go);
    assert_eq!(running(&host, KeyKind::Group, "group"), 1);
    assert_eq!(ask_from(&mut host, 4, "u@a.example", "x.example"), Ask::Go);
    assert_eq!(running(&host, KeyKind::Relay, "other.example"), 1);
    assert_eq!(ask_from(&mut host, 5, "s@elsewhere.example", "own.example"), Ask::Go);
    assert_eq!(ask_from(&mut host, 6, "s@elsewhere.example", "own.example"), Ask::Hold);
    assert_eq!(running(&host, KeyKind::Domain, "own.example"), 1);
    // The address of a relay may be a site's.
    assert_eq!(ask_from(&mut host, 7, "s@sub.b.example", "z.example"), Ask::Go);
    assert_eq!(running(&host, KeyKind::Group, "site"), 1);
    // This qmail-remote does not know the line for bounces.
    assert_eq!(ask_from(&mut host, 8, "", "q.example"), Ask::Go);
    assert_eq!(running(&host, KeyKind::Domain, "q.example"), 1);
    assert_eq!(host.done(0, DeliveryEnd::Reported(b"r\0Kok\0")), Done::AsItIs);
    assert!(matches!(host.due(), Due::Go { slot: 2, .. }));
    // With other limits, running deliveries still count, under the new keys. (A file that has become much shorter would
    // not count so soon.)
    let long = "#".repeat(100) + "\n";
    home.write("concurrencydomains", format!(":20\nrelay.example:5:relays\n{long}"));
    next_second();
    assert_eq!(ask_from(&mut host, 10, "s@a.example", "x.example"), Ask::Go);
    assert_eq!(running(&host, KeyKind::Group, "relays"), 3);
    home.write("concurrencydomains", format!(":20\n{long}"));
    next_second();
    assert_eq!(ask_from(&mut host, 11, "s@a.example", "x.example"), Ask::Go);
    assert_eq!(running(&host, KeyKind::Relay, "relay.example"), 4);
    for slot in [1, 2, 3, 4, 5, 7, 8, 10, 11] {
        host.done(slot, DeliveryEnd::Reported(b"r\0Kok\0"));
    }
    while let Due::Go { slot, .. } = host.due() {
        host.done(slot, DeliveryEnd::Reported(b"r\0Kok\0"));
    }
    assert_eq!(running(&host, KeyKind::Relay, "relay.example"), 0);
    assert_eq!(host.gate().in_use(), 0);
    // Another file.
    home.write("authsenders", format!("@a.example:relay2.example user S3cret\n{long}"));
    next_second();
    assert_eq!(ask_from(&mut host, 12, "s@a.example", "x.example"), Ask::Go);
    assert_eq!(running(&host, KeyKind::Relay, "relay2.example"), 1);
    next_second();
    host.due();
    let written = fs::read_dir(home.path.join("lock")).unwrap();
    for file in written.map(|entry| entry.unwrap().path()) {
        let text = String::from_utf8_lossy(&fs::read(&file).unwrap()).into_owned();
        assert!(!text.contains("S3cret"), "{}: {text}", file.display());
    }
    assert_eq!(
        home.problem(),
        "control/smtproutes:2:1: no host's name has '!': the line does nothing"
    );
}

#[test]
fn bounces_have_a_relay_of_their_own_where_qmail_remote_knows_one() {
    let home = Home::new();
    home.write("concurrencyremote", "100\n");
    home.write("concurrencydomains", ":20\n");
    home.write("smtproutes", "!@:bounces.example|user|S3cret\n:relay.example\n");
    home.write("authsenders", SENDERS);
    let mut host = home.open_beside("!@");
    assert_eq!(ask_from(&mut host, 0, "", "x.example"), Ask::Go);
    assert_eq!(ask_from(&mut host, 1, "s@a.example", "x.example"), Ask::Go);
    assert_eq!(running(&host, KeyKind::Relay, "bounces.example"), 1);
    assert_eq!(running(&host, KeyKind::Relay, "relay.example"), 1, "authsenders is not read");
    home.write("smtproutes", "#".repeat(100));
    next_second();
    assert_eq!(ask_from(&mut host, 2, "", "x.example"), Ask::Go);
    assert_eq!(
        running(&host, KeyKind::Domain, "x.example"),
        2,
        "it and what ran by the other route"
    );
}

/// A server's repetition of the recipient's domain does not count, even if the key is the relay.
#[test]
fn the_recipients_domain_is_no_word_of_a_relay() {
    let home = Home::new();
    home.write("concurrencyremote", "100\n");
    home.write("concurrencydomains", ":20::learn\n");
    home.write("authsenders", ":relay.example\n");
    let mut host = home.open_beside("authsenders");
    let refused = b"s450 4.7.1 throttled.example: try again\0Zrelay does not like recipient.\nRemote host said: \
        450 4.7.1 throttled.example: try again\nGiving up on 192.0.2.1.\n\0";
    for slot in 0..5 {
        assert_eq!(ask_from(&mut host, slot, "s@a.example", "throttled.example"), Ask::Go);
    }
    for slot in 0..5 {
        assert_eq!(
            host.done(slot, DeliveryEnd::Reported(refused)),
            Done::AsItIs,
            "{}",
            text(&host)
        );
    }
    let key = host.gate().find_key(KeyKind::Relay, b"relay.example").unwrap();
    assert_eq!(key.limit(), Limit::AtMost(20));
}

const SECRET: &str = "s3cretpass";

/// The contents of the gate's files.
fn told(home: &Home) -> String {
    let read = |name: &str| fs::read_to_string(home.path.join("lock").join(name)).unwrap();
    read("gatestatus") + &read("gatesites")
}

#[test]
fn no_credentials_of_a_relay_are_told() {
    for route in [
        "Relay.example|Mailuser|S3cretPass",
        "Relay.example:26|Mailuser|S3cretPass",
        "Relay.example Mailuser S3cretPass",
        "Relay.example:26\tMailuser\tS3cretPass",
        "[192.0.2.7]:26|Mailuser|S3cretPass",
        "[2001:db8::7]:26|Mailuser|S3cretPass",
        "|Mailuser|S3cretPass",
        "Mailuser:S3cretPass@Relay.example",
        "[Relay.example|Mailuser|S3cretPass",
        "Relay.example\x01Mailuser\x01S3cretPass",
    ] {
        let home = Home::new();
        home.write("concurrencyremote", "100\n");
        home.write(
            "concurrencydomains",
            ":1::learn\n192.0.2.0/24:1:site:learn\n[2001:db8::]/64:1:site6\n",
        );
        // With and without a colon.
        home.write("smtproutes", format!(":{route}\n{route}\na.example{route}\n"));
        fs::write(home.path.join("lock/gatesites"), "").unwrap();
        let mut host = home.open(100);
        let mut said = String::new();
        for (slot, domain) in (0..40).zip(["a.example", "b.example"].into_iter().cycle()) {
            if ask(&mut host, slot, domain) == Ask::Report {
                said += &text(&host);
            }
        }
        // qmail-remote itself repeats a name that it does not find; and the server has an address of a site.
        for report in [
            format!("r\0DSorry, I couldn't find any host named {route}. (#5.1.2)\n\0"),
            "r\0ZConnected to 192.0.2.7 but greeting failed.\nRemote host said: 421 too many\n\0"
                .to_string(),
        ] {
            for slot in 0..40 {
                if host.done(slot, DeliveryEnd::Reported(report.as_bytes())) == Done::Instead {
                    said += &text(&host);
                }
                while host.due() != Due::Nothing {
                    said += &String::from_utf8_lossy(host.text());
                }
            }
        }
        said += &format!("{host:?}");
        host.drop_held();
        drop(host);
        said += &told(&home);
        said += &format!("{:?}", home.status().unwrap());
        let said = said.to_ascii_lowercase();
        assert!(said.contains("b.example") || said.contains("site"), "{said}");
        for secret in [SECRET, "mailuser"] {
            assert!(!said.contains(secret), "{route}: {said}");
        }
    }
}

#[test]
fn what_an_earlier_build_wrote_of_relays_is_gone_at_once() {
    let sites = format!(
        "qpatch-sites\t1\na.example\t192.0.2.7\nrelay.example|u|{SECRET}\t192.0.2.7\nrelay.example u {SECRET}\t192.0.2.7\nend\n"
    );
    let status = format!(
        "qpatch-gate\t1\t3\nkey\trelay\trelay.example|u|{SECRET}\t20\t0\t0\t0\t0\t0\t0\t0.0\t0\t20\t0\t0\t\nend\t3\n"
    );
    // While the earlier build still runs, the reader leaves the secret out of its status.
    let parsed = Status::parse(status.as_bytes()).unwrap();
    assert_eq!(parsed.keys[0].name, "relay.example");
    // Also without limits, and if the files are torn or no such files.
    for limits in [Some(":20\n192.0.2.0/24:2:site\n"), None] {
        for (sites, known) in [
            (&sites[..], "a.example\t192.0.2.7\n"),
            (&sites[..sites.len() - 8], "a.example\t192.0.2.7\n"),
            (&sites[1..], ""),
            (&format!("{sites}relay.example|u|{SECRET}\n"), "a.example\t192.0.2.7\n"),
        ] {
            let home = Home::new();
            if let Some(limits) = limits {
                home.write("concurrencydomains", limits);
            }
            fs::write(home.path.join("lock/gatesites"), sites).unwrap();
            fs::write(home.path.join("lock/gatestatus"), &status).unwrap();
            let host = home.open(50);
            let told = told(&home);
            assert!(!told.contains(SECRET), "{told}");
            assert!(told.ends_with(&format!("qpatch-sites\t1\n{known}end\n")), "{told}");
            let state = if limits.is_some() { State::Limits } else { State::Stock };
            assert_eq!(home.status().unwrap().state, state);
            drop(host);
            // A file that is right is not written again.
            let file = home.path.join("lock/gatesites");
            let written = fs::metadata(&file).unwrap().modified().unwrap();
            drop(home.open(50));
            assert_eq!(fs::metadata(&file).unwrap().modified().unwrap(), written);
        }
    }
}
