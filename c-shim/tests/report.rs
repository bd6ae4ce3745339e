//! Reports in the wordings of all trees, true ones and such as a server would like to fake.

use std::net::IpAddr;

use proptest::collection::vec;
use proptest::prelude::*;
use qpatch_gate::report::{Report, Seen, Sent, classify};

const TOO_MANY: Seen = Seen::TooMany(Sent::No);

fn seen(report: &str) -> (Seen, Option<String>) {
    let Report { seen, peer } = classify(report.as_bytes());
    (seen, peer.map(|peer: IpAddr| peer.to_string()))
}

#[track_caller]
fn check(report: &str, wanted: Seen, peer: &str) {
    assert_eq!(seen(report), (wanted, Some(peer.to_string())), "{report:?}");
}

#[track_caller]
fn check_no_peer(report: &str, wanted: Seen) {
    assert_eq!(seen(report), (wanted, None), "{report:?}");
}

#[test]
fn accepted() {
    check(
        "r\0K192.0.2.1 accepted message.\nRemote host said: 250 ok 1 qp 2\n\0",
        Seen::Accepted,
        "192.0.2.1",
    );
    check("r\0K192.0.2.1 accepted message.\n\0", Seen::Accepted, "192.0.2.1");
    // With the recipient, and for DEBUG with TLS (sagredo); by QMTP, and with the protocol (indimail).
    check(
        "r<From:a@example To:b@example> \0K192.0.2.1 accepted message.\nRemote host said: 250 ok\nSTARTTLS proto=TLSv1.3; cipher=X;\n\0",
        Seen::Accepted,
        "192.0.2.1",
    );
    check(
        "rFrom: <a> RCPT: <b> \0K2001:db8::1 accepted message - Protocol SMTP.\nRemote host said: 250 ok\n\0",
        Seen::Accepted,
        "2001:db8::1",
    );
    check("r\0K192.0.2.1 accepted message - Protocol QMTP\n\0", Seen::Accepted, "192.0.2.1");
    check("r\0K::ffff:192.0.2.1 accepted message.\n\0", Seen::Accepted, "192.0.2.1");
    check("r\0Kmx.example [192.0.2.1] accepted message.\n\0", Seen::Accepted, "192.0.2.1");
    // Not for this recipient.
    check(
        "s192.0.2.1 does not like recipient.\n\0K192.0.2.1 accepted message.\n\0",
        Seen::Deferred,
        "192.0.2.1",
    );
    check(
        "h192.0.2.1 does not like recipient.\n\0K192.0.2.1 accepted message.\n\0",
        Seen::Failed,
        "192.0.2.1",
    );
}

#[test]
fn connections() {
    for text in [
        "ZSorry, I wasn't able to establish an SMTP connection. (#4.4.1)\n\0",
        "ZSorry, I wasn't able to establish a SMTP connection for mx.example to 192.0.2.1 port 25 bind IP [0.0.0.0]. (#4.4.1)\n\0",
        "ZSorry, I wasn't able to establish a QMTP connection for mx.example. (#4.4.1)\n\0",
    ] {
        check_no_peer(text, Seen::ConnectFailed);
    }
    for text in [
        "ZConnected to 192.0.2.1 but connection died. (#4.4.2)\n\0",
        "ZConnected to 192.0.2.1 but connection died. Possible duplicate! (#4.4.2)\n\0",
        "ZConnected to 192.0.2.1 but connection died. Will try alternate MX. tcpto interval 120 (#4.4.2)\n\0",
        "ZConnected to 192.0.2.1 but connection died. error:0A000126:SSL routines (#4.4.2)\n\0",
        "r\0ZConnected to 192.0.2.1 but connection died. (#4.4.2)\n\0",
    ] {
        check(text, Seen::Died, "192.0.2.1");
    }
}

#[test]
fn nothing() {
    for text in [
        "",
        "\0",
        "Z",
        "Z\0",
        "K\0",
        "r\0",
        "r\0K\0",
        "ZOut of memory. (#4.3.0)\n\0",
        "ZSystem resources temporarily unavailable. (#4.3.0)\n\0",
        "ZUnable to read message. (#4.3.0)\n\0",
        "ZCNAME lookup failed temporarily. (#4.4.3)\n\0",
        "ZSorry, I couldn't find any host by that name. (#4.1.2)\n\0",
        "DSorry, I couldn't find any host named nowhere.example. (#5.1.2)\n\0",
        "DSorry, I couldn't find a mail exchanger or IP address. (#5.4.4)\n\0",
        "DSorry. Although I'm listed as a best-preference MX or A for that host,\nit isn't in my control/locals file, so I don't treat it as local. (#5.4.6)\n\0",
        "DSMTP cannot transfer messages with partial final lines. (#5.6.2)\n\0",
        "ZTLS connect failed: timed out; connecting to 192.0.2.1.\nRemote host said: 421 too many connections\n\0",
        "ZTLS unable to verify server mx.example: received certificate for Connected?to?10.0.0.1; connected to 192.0.2.1.\n\0",
        "Kno supported AUTH method found, continuing without authentication.\n\0r\0K192.0.2.1 accepted message.\n\0",
        "Zqmail-remote crashed.\n\0",
        // Cut off: without its zero byte qmail-rspawn does not take it, either.
        "r\0K192.0.2.1 accepted message.\n",
        "r\0K192.0.2.1 accep",
        "ZConnected to 192.0.2.1 but greeting failed.\nRemote host said: 421",
    ] {
        check_no_peer(text, Seen::Nothing);
    }
}

/// The real texts; the sources are in the documentation of the module.
#[test]
fn providers() {
    let too_many = [
        "421 4.7.28 Gmail has detected an unusual rate of email originating from your IP address.",
        "421-4.7.0 Our system has detected an unusual rate of\n421-4.7.0 unsolicited mail originating from your IP address.\n421 4.7.0 abc - gsmtp",
        "421 4.7.0 Try again later, closing connection. x - gsmtp",
        "421 4.4.5 Server busy, try again later. x - gsmtp",
        "421 4.3.0 Temporary System Problem. Try again later. x - gsmtp",
        "421 4.7.0 [TSS04] Messages from 192.0.2.9 temporarily deferred due to unexpected volume or user complaints - 4.16.55.1; see https://postmaster.yahooinc.com/error-codes",
        "421 4.7.0 [TS01] Messages from 192.0.2.9 temporarily deferred due to user complaints",
        "451 4.7.500 Server busy. Please try again later from [192.0.2.9]. (S77719)",
        "451 4.7.650 The mail server [192.0.2.9] has been temporarily rate limited due to IP reputation. (S775)",
        "451 4.7.652 The mail server [192.0.2.9] has exceeded the maximum number of connections. (S3115)",
        "421 Too many concurrent SMTP connections; please try again later.",
        "421 Too many sessions opened",
        "421 4.1.0 192.0.2.9 Throttled - try again later. RL000003",
        "421 mwinf5c02 ME Too many connections, slow down. OFR004_104 [104]",
        "451 4.7.1 Service unavailable - try again later",
        "421 4.7.0 mx.example Error: too many connections from 192.0.2.9",
        "421 4.3.2 VPOP3 Too many connections from your IP address - try later",
        "450 4.7.1 Error: too much mail from 192.0.2.9",
        "452-4.3.1 Too many simultaneous\n452-4.3.1 connections\n452 4.3.1 bye",
        "421",
        "421 ",
        "421\tgo away",
    ];
    for reply in too_many {
        let at = |own: &str| format!("{own}\nRemote host said: {reply}\n\0");
        for own in [
            "ZConnected to 192.0.2.1 but greeting failed.",
            "ZTLS Connected to 192.0.2.1 but greeting failed.",
            "ZConnected to 192.0.2.1 but my name was rejected.",
            "ZConnected to 192.0.2.1 but sender was rejected.",
            "r\0Z192.0.2.1 failed on DATA command.",
        ] {
            // "421\t" is no reply line, but qmail-remote reads its code.
            let wanted = if reply.contains('\t') { Seen::Deferred } else { TOO_MANY };
            check(&at(own), wanted, "192.0.2.1");
        }
        if reply.contains('\t') {
            continue;
        }
        check(
            &at("r\0Z192.0.2.1 failed after I sent the message."),
            Seen::TooMany(Sent::Yes),
            "192.0.2.1",
        );
        for line in [
            "s192.0.2.1 does not like recipient.",
            "s<From:a@example To:b@example> 192.0.2.1 does not like recipient.",
            "sFrom: <a@example> RCPT: <b@example> 192.0.2.1 does not like recipient.",
        ] {
            let report = format!("{}DGiving up on 192.0.2.1.\n\0", at(line));
            check(&report, TOO_MANY, "192.0.2.1");
        }
    }
    let deferred = [
        "450 4.2.1 The user you are trying to contact is receiving mail too quickly.",
        "450 4.2.1 The user you are trying to contact is receiving mail at a rate that prevents additional messages from being delivered.",
        "421 4.7.0 TLS required for RCPT domain, closing connection.",
        "421 4.7.0 IP not in whitelist for RCPT domain, closing connection.",
        "421-4.7.26 This mail has been rate limited because it is unauthenticated.",
        "421 4.7.32 DMARC",
        "421 Reverse DNS failure : Try again later",
        "421 4.7.1 Messages to b@example deferred due to excessive volume. Try again later",
        "421 4.7.0 me.com Error: too many errors",
        "450 4.7.1 <b@example>: Recipient address rejected: Greylisted, try again later",
        "451 4.7.1 Greylisting in action, please come back later",
        "421 graylisted, too fast",
        "450 4.1.1 unknown user",
        "452 4.2.2 over quota",
        "452 4.5.3 Too many recipients",
        "451 4.3.0 Mail server temporarily rejected message.",
        "451 4.6.0 content",
        "450 4.7.1 Service unavailable; client blocked using list.example",
        "4210 too many connections",
        "99 too many connections",
        "250 too many connections",
        "",
    ];
    for reply in deferred {
        let report = format!(
            "ZConnected to 192.0.2.1 but sender was rejected.\nRemote host said: {reply}\n\0"
        );
        check(&report, Seen::Deferred, "192.0.2.1");
        let report = format!(
            "s192.0.2.1 does not like recipient.\nRemote host said: {reply}\n\0DGiving up on 192.0.2.1.\n\0"
        );
        check(&report, Seen::Deferred, "192.0.2.1");
    }
    // 554 at the greeting is temporary for qmail-1.03; a permanent refusal is one, whatever its words.
    check(
        "ZConnected to 192.0.2.1 but greeting failed.\nRemote host said: 554 Too many connections\n\0",
        TOO_MANY,
        "192.0.2.1",
    );
    check(
        "ZConnected to 192.0.2.1 but greeting failed.\nRemote host said: 554 go away, too fast\n\0",
        Seen::Deferred,
        "192.0.2.1",
    );
    check(
        "DConnected to 192.0.2.1 but greeting failed.\nRemote host said: 554 Too many connections\n\0",
        Seen::Failed,
        "192.0.2.1",
    );
    check(
        "h192.0.2.1 does not like recipient.\nRemote host said: 550 4.7.28 rate limit\n\0DGiving up on 192.0.2.1.\n\0",
        Seen::Failed,
        "192.0.2.1",
    );
    // At the greeting "try again later" is about the server; behind it, greylisting says so.
    check(
        "ZConnected to 192.0.2.1 but greeting failed.\nRemote host said: 450 try again later\n\0",
        TOO_MANY,
        "192.0.2.1",
    );
    check(
        "ZConnected to 192.0.2.1 but sender was rejected.\nRemote host said: 450 try again later\n\0",
        Seen::Deferred,
        "192.0.2.1",
    );
}

/// A server says what it likes, where it may.
#[test]
fn fakes() {
    let said = "421 4.7.0 too many connections\nZConnected to 10.0.0.1 but greeting failed.\nRemote host said: 421 x\x1b[2J\r\nSorry, I wasn't able to establish an SMTP connection. 10.0.0.1 accepted message";
    check(
        &format!("r\0K192.0.2.1 accepted message.\nRemote host said: {said}\n\0"),
        Seen::Accepted,
        "192.0.2.1",
    );
    check(
        &format!("r\0D192.0.2.1 failed after I sent the message.\nRemote host said: {said}\n\0"),
        Seen::Failed,
        "192.0.2.1",
    );
    check(
        &format!("ZConnected to 192.0.2.1 but sender was rejected.\nRemote host said: {said}\n\0"),
        TOO_MANY,
        "192.0.2.1",
    );
    // Only the reply's first three digits are its code.
    let said = "450 4.1.1 no\n421 4.7.0 bye";
    check(
        &format!("ZConnected to 192.0.2.1 but sender was rejected.\nRemote host said: {said}\n\0"),
        Seen::Deferred,
        "192.0.2.1",
    );
    let said = "250 Remote host said: 421 4.7.0 bye";
    check(
        &format!("ZConnected to 192.0.2.1 but sender was rejected.\nRemote host said: {said}\n\0"),
        Seen::Deferred,
        "192.0.2.1",
    );
    // Names and addresses of mailboxes cannot hold a blank; they do not fake a peer.
    check(
        "s<From:a@example To:10.0.0.1?does?not?like?recipient.@example> 192.0.2.1 does not like recipient.\nRemote host said: 450 no\n\0DGiving up on 192.0.2.1.\n\0",
        Seen::Deferred,
        "192.0.2.1",
    );
    // The peer is where qmail-remote prints it, or there is none.
    check_no_peer(
        "ZConnected to mx.example but greeting failed.\nRemote host said: 421 x\n\0",
        TOO_MANY,
    );
    check_no_peer(
        "ZConnected to 192.0.2.1.5 but greeting failed.\nRemote host said: 421 x\n\0",
        TOO_MANY,
    );
    check_no_peer("ZConnected to 192.0.2.1\n but greeting failed. 10.0.0.1\n\0", Seen::Nothing);
    check_no_peer("DGiving up on .\n\0", Seen::Failed);
}

#[test]
fn every_code() {
    for code in 0..=999 {
        for stage in ["greeting failed", "sender was rejected"] {
            let report =
                format!("ZConnected to 192.0.2.1 but {stage}.\nRemote host said: {code:03} no\n\0");
            let wanted = if code == 421 { TOO_MANY } else { Seen::Deferred };
            check(&report, wanted, "192.0.2.1");
        }
    }
    for detail in 0..=999 {
        for code in [421, 450, 451, 452] {
            let report = format!(
                "ZConnected to 192.0.2.1 but sender was rejected.\nRemote host said: {code} 4.7.{detail} no\n\0"
            );
            let wanted = match detail {
                28 | 500 | 650..=659 => TOO_MANY,
                20..=60 => Seen::Deferred,
                _ if code == 421 => TOO_MANY,
                _ => Seen::Deferred,
            };
            check(&report, wanted, "192.0.2.1");
        }
    }
}

#[test]
fn megabytes() {
    let mut report =
        b"ZConnected to 192.0.2.1 but sender was rejected.\nRemote host said: 450 ".to_vec();
    report.resize(60_000, b'x');
    report.extend_from_slice(b" too many connections\n\0");
    assert_eq!(classify(&report).seen, Seen::Deferred, "no more than the beginning is searched");
    report.resize(10_000_000, b'Z');
    assert_eq!(classify(&report).seen, Seen::Nothing);
    assert_eq!(classify(&vec![0; 10_000_000]).seen, Seen::Nothing);
}

const PIECES: [&str; 20] = [
    "r",
    "s",
    "h",
    "K",
    "Z",
    "D",
    "\0",
    "\n",
    "Connected to ",
    "192.0.2.1",
    "10.0.0.1",
    " but ",
    "greeting failed",
    " accepted message",
    ".",
    "Remote host said: ",
    "421 ",
    "4.7.28",
    "too many connections",
    " does not like recipient.",
];

proptest! {
    #[test]
    fn any_bytes(report in vec(any::<u8>(), 0..2000)) {
        let _ = classify(&report);
    }

    #[test]
    fn pieces(pieces in vec(0..PIECES.len(), 0..40)) {
        let report: String = pieces.into_iter().map(|piece| PIECES[piece]).collect();
        let read = classify(report.as_bytes());
        if read.seen == Seen::Accepted {
            prop_assert!(report.contains(" accepted message") && read.peer.is_some());
        }
    }

    /// Whatever the server says (without zero bytes, which qmail-remote replaces), it decides of its own refusal only.
    #[test]
    fn the_server_has_its_place(said in vec(1u8..=255, 0..300)) {
        let with = |own: &[u8]| [own, b"\nRemote host said: ", &said, b"\0"].concat();
        let peer = Some(IpAddr::from([192, 0, 2, 1]));
        let read = classify(&with(b"r\0K192.0.2.1 accepted message."));
        prop_assert_eq!(read, Report { seen: Seen::Accepted, peer });
        let read = classify(&with(b"DConnected to 192.0.2.1 but sender was rejected."));
        prop_assert_eq!(read, Report { seen: Seen::Failed, peer });
        let read = classify(&with(b"ZConnected to 192.0.2.1 but sender was rejected."));
        prop_assert_eq!(read.peer, peer);
        prop_assert!(matches!(read.seen, Seen::Deferred | Seen::TooMany(Sent::No)));
    }

    /// Cut off anywhere, a report says the same or nothing.
    #[test]
    fn cut_off(at in 0usize..200) {
        let whole = b"s192.0.2.1 does not like recipient.\nRemote host said: 421 4.7.0 too many connections\n\0DGiving up on 192.0.2.1.\n\0";
        let part = &whole[..at.min(whole.len())];
        let wanted = if part.len() == whole.len() { classify(whole).seen } else { Seen::Nothing };
        prop_assert_eq!(classify(part).seen, wanted);
    }
}
