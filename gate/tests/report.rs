//! Reports in the wordings of all trees: real ones, and ones that a server might fake. This file has more than 700
//! lines because most of it is one table of wordings.

use std::net::IpAddr;

use proptest::collection::vec;
use proptest::prelude::*;
use qpatch_gate::echo::{Envelope, Own};
use qpatch_gate::name::Hasher;
use qpatch_gate::replies::Replies;
use qpatch_gate::report::{
    DeliveryReport, DeliveryVerdict, ReportReader, Sent, classify, takes_a_line,
};

const TOO_MANY: DeliveryVerdict = DeliveryVerdict::TooMany(Sent::No);
const AT_ENVELOPE: DeliveryVerdict = DeliveryVerdict::TooMany(Sent::Envelope);

fn seen(report: &str) -> (DeliveryVerdict, Option<String>) {
    let DeliveryReport { seen, peer, .. } = classify(report.as_bytes());
    (seen, peer.map(|peer: IpAddr| peer.to_string()))
}

#[track_caller]
fn check(report: &str, wanted: DeliveryVerdict, peer: &str) {
    assert_eq!(seen(report), (wanted, Some(peer.to_string())), "{report:?}");
}

#[track_caller]
fn check_no_peer(report: &str, wanted: DeliveryVerdict) {
    assert_eq!(seen(report), (wanted, None), "{report:?}");
}

#[test]
fn accepted() {
    check(
        "r\0K192.0.2.1 accepted message.\nRemote host said: 250 ok 1 qp 2\n\0",
        DeliveryVerdict::Accepted,
        "192.0.2.1",
    );
    check("r\0K192.0.2.1 accepted message.\n\0", DeliveryVerdict::Accepted, "192.0.2.1");
    // With the recipient, and for DEBUG with TLS (sagredo); by QMTP, and with the protocol (indimail).
    check(
        "r<From:a@example To:b@example> \0K192.0.2.1 accepted message.\nRemote host said: 250 ok\nSTARTTLS proto=TLSv1.3; cipher=X;\n\0",
        DeliveryVerdict::Accepted,
        "192.0.2.1",
    );
    check(
        "rFrom: <a> RCPT: <b> \0K2001:db8::1 accepted message - Protocol SMTP.\nRemote host said: 250 ok\n\0",
        DeliveryVerdict::Accepted,
        "2001:db8::1",
    );
    check(
        "r\0K192.0.2.1 accepted message - Protocol QMTP\n\0",
        DeliveryVerdict::Accepted,
        "192.0.2.1",
    );
    check("r\0K::ffff:192.0.2.1 accepted message.\n\0", DeliveryVerdict::Accepted, "192.0.2.1");
    check(
        "r\0Kmx.example [192.0.2.1] accepted message.\n\0",
        DeliveryVerdict::Accepted,
        "192.0.2.1",
    );
    // Not for this recipient.
    check(
        "s192.0.2.1 does not like recipient.\n\0K192.0.2.1 accepted message.\n\0",
        DeliveryVerdict::Deferred,
        "192.0.2.1",
    );
    check(
        "h192.0.2.1 does not like recipient.\n\0K192.0.2.1 accepted message.\n\0",
        DeliveryVerdict::Failed,
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
        check_no_peer(text, DeliveryVerdict::ConnectFailed);
    }
    for text in [
        "ZConnected to 192.0.2.1 but connection died. (#4.4.2)\n\0",
        "ZTLS Connected to 192.0.2.1 but connection died. (#4.4.2)\n\0",
        "ZConnected to 192.0.2.1 but connection died. Will try alternate MX. tcpto interval 120 (#4.4.2)\n\0",
        "ZConnected to 192.0.2.1 but connection died. error:0A000126:SSL routines (#4.4.2)\n\0",
        "r\0ZConnected to 192.0.2.1 but connection died. (#4.4.2)\n\0",
        // Not qmail-remote's words: they are behind the line feed.
        "ZConnected to 192.0.2.1 but connection died. (#4.4.2)\nRemote host said: 421 Possible duplicate!\n\0",
    ] {
        check(text, DeliveryVerdict::Died(Sent::No), "192.0.2.1");
    }
    for text in [
        "ZConnected to 192.0.2.1 but connection died. Possible duplicate! (#4.4.2)\n\0",
        "r\0ZConnected to 192.0.2.1 but connection died. Possible duplicate! (#4.4.2)\n\0",
        "ZTLS Connected to 192.0.2.1 but connection died. Possible duplicate! (#4.4.2)\n\0",
        "ZConnected to 192.0.2.1 but connection died. Possible duplicate! error:0A000126:SSL routines (#4.4.2)\n\0",
        "ZConnected to 192.0.2.1 but connection died. error:0A000126:SSL routines Possible duplicate! (#4.4.2)\n\0",
        "ZConnected to 192.0.2.1 but connection died. Will try alternate MX. Possible duplicate! (#4.4.2)\n\0",
    ] {
        check(text, DeliveryVerdict::Died(Sent::Yes), "192.0.2.1");
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
        check_no_peer(text, DeliveryVerdict::Nothing);
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
            let knows_mail = own.contains("sender") || own.contains("DATA");
            let wanted = match reply.contains('\t') {
                true => DeliveryVerdict::Deferred,
                false if knows_mail => AT_ENVELOPE,
                false => TOO_MANY,
            };
            check(&at(own), wanted, "192.0.2.1");
        }
        if reply.contains('\t') {
            continue;
        }
        check(
            &at("r\0Z192.0.2.1 failed after I sent the message."),
            DeliveryVerdict::TooMany(Sent::Yes),
            "192.0.2.1",
        );
        for line in [
            "s192.0.2.1 does not like recipient.",
            "s<From:a@example To:b@example> 192.0.2.1 does not like recipient.",
            "sFrom: <a@example> RCPT: <b@example> 192.0.2.1 does not like recipient.",
        ] {
            let report = format!("{}DGiving up on 192.0.2.1.\n\0", at(line));
            check(&report, AT_ENVELOPE, "192.0.2.1");
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
        check(&report, DeliveryVerdict::Deferred, "192.0.2.1");
        let report = format!(
            "s192.0.2.1 does not like recipient.\nRemote host said: {reply}\n\0DGiving up on 192.0.2.1.\n\0"
        );
        check(&report, DeliveryVerdict::Deferred, "192.0.2.1");
    }
    // 554 at the greeting is temporary for qmail-1.03; a permanent refusal is one, whatever its words.
    check(
        "ZConnected to 192.0.2.1 but greeting failed.\nRemote host said: 554 Too many connections\n\0",
        TOO_MANY,
        "192.0.2.1",
    );
    check(
        "ZConnected to 192.0.2.1 but greeting failed.\nRemote host said: 554 go away, too fast\n\0",
        DeliveryVerdict::Deferred,
        "192.0.2.1",
    );
    check(
        "DConnected to 192.0.2.1 but greeting failed.\nRemote host said: 554 Too many connections\n\0",
        DeliveryVerdict::Failed,
        "192.0.2.1",
    );
    check(
        "h192.0.2.1 does not like recipient.\nRemote host said: 550 4.7.28 rate limit\n\0DGiving up on 192.0.2.1.\n\0",
        DeliveryVerdict::Failed,
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
        DeliveryVerdict::Deferred,
        "192.0.2.1",
    );
}

/// Where a server may say it, and what follows.
#[derive(Clone, Copy)]
enum Says {
    /// Too many or too fast, wherever it is said.
    TooMany,
    /// Too many or too fast at the greeting, and nothing of the kind behind it.
    TooManyAtGreeting,
    /// Another reason, wherever it is said.
    Else,
}

/// What servers say, by the sources that the module names. The address of this host is 192.0.2.9.
const SERVERS: &[(&str, &[&str], Says)] = &[
    (
        "Postfix smtpd.c, postscreen.c",
        &[
            "421 4.7.0 mx.example Error: too many connections from 192.0.2.9",
            "450 4.7.1 Error: too much mail from 192.0.2.9",
            "450 4.7.1 Error: too many recipients from 192.0.2.9",
            "421 4.7.0 mx.example Error: too many new TLS sessions from 192.0.2.9",
            "454 4.7.0 Error: too many new TLS sessions from 192.0.2.9",
            "450 4.7.1 Error: too many AUTH commands from 192.0.2.9",
            "421 4.7.0 Error: too many connections",
            "421 4.3.2 All screening ports are busy",
            "421 4.3.2 All server ports are busy",
            "421 4.3.2 No system resources",
            "421 mx.example Service unavailable - try again later",
        ],
        Says::TooMany,
    ),
    (
        "Postfix, not about how many",
        &[
            "452 4.5.3 Error: too many recipients",
            "421 4.7.0 mx.example Error: too many errors",
            "421 4.4.2 mx.example Error: timeout exceeded",
            "421 4.3.0 mx.example Server local data error",
            "421 4.3.5 Server configuration error",
            "451 4.3.5 Server configuration error",
            "451 4.3.0 Temporary lookup error",
            "458 Unable to queue messages",
            "454 4.7.0 TLS not available due to local problem",
            "451 4.3.5 <u@ratelimit.example>: Sender address rejected: Server configuration error",
            "450 4.7.1 <too-many-connections.example>: Helo command rejected: Host not found",
            "450 4.7.25 Client host rejected: cannot find your hostname, [192.0.2.9]",
            "450 4.1.8 <a@throttle.example>: Sender address rejected: Domain not found",
            "450 4.1.1 <slow.down@busy.example>: Recipient address rejected: unverified address: Address lookup failed",
        ],
        Says::Else,
    ),
    (
        "Postfix, a policy server that is down",
        &["450 4.7.1 <dip@fullthrottle.example>: Recipient address rejected: Service unavailable"],
        Says::TooManyAtGreeting,
    ),
    (
        "Exim daemon.c, smtp_in.c; its specification, 45.38 and 61",
        &[
            "421 Too many concurrent SMTP connections; please try again later.",
            "421 Too many concurrent SMTP connections from this IP address; please try again later.",
            "421 mx.example: Too many concurrent SMTP connections; please try again later",
            "421 mx.example: Too much load; please try again later",
            "421 Too much load; please try again later.",
            "451 Sorry, too busy. Try again later.",
            "451 Sender rate exceeds 100 messages per 1h",
            "451 Too many connections from this IP right now",
            // cPanel's.
            "451 The server has reached its limit for processing requests from your host. Please try again later.",
        ],
        Says::TooMany,
    ),
    (
        "Exim, not about how many",
        &[
            "452 too many recipients",
            "452 Space shortage, please try later",
            "451 Cannot resolve <a@throttled.example> at this time",
            "421 mx.example: SMTP command timeout - closing connection",
        ],
        Says::Else,
    ),
    (
        "sendmail's conncontrol, ratecontrol and milters",
        &[
            "421 4.3.2 Too many open connections.",
            "452 4.3.2 Too many open connections.",
            "421 4.3.2 Connection rate limit exceeded.",
            "452 4.3.2 Connection rate limit exceeded.",
            "433 4.3.0 Connection rate limit exceeded.",
            "421 4.7.0 mx.example closing connection",
        ],
        Says::TooMany,
    ),
    ("sendmail, a milter", &["451 4.3.2 Please try again later"], Says::TooManyAtGreeting),
    ("sendmail, too many recipients", &["452 4.5.3 Too many recipients"], Says::Else),
    (
        "Haraka's limit and toobusy",
        &[
            "421 Too many concurrent connections",
            "421 connection rate limit exceeded",
            "450 recipient rate limit exceeded",
            "450 rcpt rate limit exceeded",
            "450 null recip rate limit",
            "450 rate limit exceeded",
            "421 Too busy; please try again later",
        ],
        Says::TooMany,
    ),
    ("Haraka, not about how many", &["421 rDNS Temporary Failure", "421 timeout"], Says::Else),
    (
        "qpsmtpd's hosts_allow and loadcheck; ipsvd",
        &[
            "450 too many connections from 192.0.2.9, try again later",
            "451 too many connections from 192.0.2.9, try again later",
            "450 Server load too high, please try again later.",
            "421 per host concurrency limit reached",
        ],
        Says::TooMany,
    ),
    ("qpsmtpd's greylisting", &["450 This mail is temporarily denied"], Says::Else),
    ("dovecot submission", &["421 4.0.0 mx.example Connection queue full"], Says::TooMany),
    ("dovecot lib-smtp", &["451 4.5.3 Too many recipients"], Says::Else),
    (
        "OpenSMTPD smtp_session.c",
        &["451 4.5.3 b4f1: Too many recipients", "451 Temporary failure"],
        Says::Else,
    ),
    (
        "Courier",
        &[
            "431 Too many recipients.",
            "431 Mail system full.",
            "412 You are not whitelisted by this recipient, please come back.",
            "417 DNS lookup failure: throttle@ratelimit.example.  Come back.",
        ],
        Says::Else,
    ),
    (
        "postfwd's, policyd's and policyd-rate-guard's examples",
        &[
            "450 4.7.1 <b@example>: Recipient address rejected: sorry, max 30 requests per hour",
            "450 4.7.1 <b@example>: Recipient address rejected: sorry, max 3 requests per 5 minutes",
            "450 4.7.1 <b@example>: Recipient address rejected: sorry, max 3 recipients per hour",
            "450 4.7.1 <b@example>: Recipient address rejected: sorry, max 1.5mb per 10 minutes",
            "450 4.7.1 <b@example>: Recipient address rejected: Policy rejection; Message count quota exceeded",
            "450 4.7.1 <b@example>: Recipient address rejected: Rate limit reached, retry later.",
        ],
        Says::TooMany,
    ),
    (
        "postfwd, not about how many",
        &[
            "421 maintenance - please try again later",
            "450 4.7.1 office closed during christmas",
            "450 4.7.1 <b@example>: Recipient address rejected: see you in may",
        ],
        Says::Else,
    ),
    ("rspamd's ratelimit and greylist", &["451 4.7.1 Ratelimit \"my_ip\" exceeded"], Says::TooMany),
    (
        "rspamd's ratelimit for one recipient",
        &["451 4.7.1 Ratelimit \"to_ip\" exceeded", "451 4.7.1 Ratelimit \"to\" exceeded"],
        Says::Else,
    ),
    ("rspamd's greylist", &["451 4.7.1 Try again later"], Says::TooManyAtGreeting),
    (
        "Exchange, Exchange Online",
        &[
            "421 4.3.2 The maximum number of concurrent server connections has exceeded a limit, closing transmission channel",
            "421 4.3.2 The maximum number of concurrent connections has exceeded a limit, closing transmission channel",
            "421 4.4.2 Message submission rate for this client has exceeded the configured limit",
            "432 4.3.2 Concurrent connections limit exceeded.",
            "452 4.5.3 Too many recipients received this hour",
        ],
        Says::TooMany,
    ),
    (
        "Exchange, one mailbox",
        &["432 4.3.2 STOREDRV.Deliver; recipient thread limit exceeded"],
        Says::Else,
    ),
    ("Momentum", &["421 4.4.5 Service unavailable, concurrency limit reached"], Says::TooMany),
    ("Momentum, one session", &["452 4.5.3 Service limit of this batch"], Says::Else),
    (
        "texts of providers, from KumoMTA's shaping rules",
        &[
            "421 Connection refused from 192.0.2.9 due to exceed max concurrent connections. IB007",
            "421 mwinf5c02 ME Trop de connexions, veuillez verifier votre configuration. OFR004_104",
            "450 Connection frequency limited",
            "421 4.7.0 [TSS04] Messages from 192.0.2.9 temporarily deferred due to unexpected volume or user complaints",
            "421 4.1.0 192.0.2.9 Throttled - try again later. RL000010",
        ],
        Says::TooMany,
    ),
    (
        "greylisting: postgrey, milter-greylist, sqlgrey, Haraka, Exim's example, spamd",
        &[
            "450 4.2.0 <b@example>: Recipient address rejected: Greylisted, see http://postgrey.schweikert.ch/help/throttle.example.html",
            "451 4.7.1 Greylisting in action, please come back later",
            "451 4.7.1 Greylisting in action, please come back in 00:05:00",
            "450 4.7.1 <b@example>: Recipient address rejected: Greylisted for 5 minutes",
            "451 4.7.1 Greylisted. Please come back later.",
            "451 192.0.2.9 is not yet authorized to deliver mail from <a@busy.example> to <b@throttle.example>. Please try later.",
            "451 4.7.1 Greylisted; one try per 5 minutes",
        ],
        Says::Else,
    ),
    ("spamd", &["451 Temporary failure, please try again later."], Says::TooManyAtGreeting),
];

#[test]
fn servers() {
    for (source, replies, says) in SERVERS {
        for reply in *replies {
            let stages = [
                ("ZConnected to 192.0.2.1 but greeting failed.", "", true),
                ("ZConnected to 192.0.2.1 but sender was rejected.", "", false),
                ("s192.0.2.1 does not like recipient.", "DGiving up on 192.0.2.1.\n\0", false),
                ("r\0Z192.0.2.1 failed on DATA command.", "", false),
                ("r\0Z192.0.2.1 failed after I sent the message.", "", false),
            ];
            for (own, more, at_greeting) in stages {
                let report = format!("{own}\nRemote host said: {reply}\n\0{more}");
                let sent = match own {
                    _ if own.contains("after I") => Sent::Yes,
                    _ if own.contains("greeting") || own.contains("my name") => Sent::No,
                    _ => Sent::Envelope,
                };
                let wanted = match says {
                    Says::TooMany => DeliveryVerdict::TooMany(sent),
                    Says::TooManyAtGreeting if at_greeting => DeliveryVerdict::TooMany(sent),
                    Says::TooManyAtGreeting | Says::Else => DeliveryVerdict::Deferred,
                };
                assert_eq!(classify(report.as_bytes()).seen, wanted, "{source}: {own} {reply}");
            }
        }
    }
}

/// What the delivery of `sender` to `recipient`, by a host that is called `helo`, sees in a reply to its recipient.
fn seen_of(sender: &str, recipient: &str, helo: &str, reply: &str) -> DeliveryVerdict {
    let hasher = Hasher::new(3);
    let with_zero = |address: &str| [address.as_bytes(), b"\0"].concat();
    let envelope = Envelope::new(&hasher, &with_zero(sender), &with_zero(recipient));
    let domain = recipient.rsplit_once('@').map_or("", |(_, domain)| domain).to_lowercase();
    let own = Own { hasher, envelope, names: [domain.as_bytes(), helo.as_bytes()] };
    let report = format!(
        "s192.0.2.1 does not like recipient.\nRemote host said: {reply}\n\0DGiving up on 192.0.2.1.\n\0"
    );
    ReportReader { own, replies: &Replies::default() }.classify(report.as_bytes()).seen
}

#[test]
fn what_the_server_repeats() {
    // Sender, recipient, HELO name, and what the server says. In none of them does it speak of itself.
    let repeated = [
        (
            "a@a.example",
            "dip@fullthrottle.example",
            "h",
            "450 4.7.1 <dip@fullthrottle.example>: Recipient address rejected",
        ),
        ("a@a.example", "b@b.example", "h", "450 <other@fullthrottle.example>: rejected"),
        (
            "u@ratelimit.example",
            "b@b.example",
            "h",
            "451 4.3.5 <u@ratelimit.example>: Sender address rejected",
        ),
        // Without brackets, in any case, with a dot at the end, the domain alone, or a name below it.
        (
            "u@ratelimit.example",
            "b@b.example",
            "h",
            "451 u@ratelimit.example: Sender address rejected",
        ),
        ("u@ratelimit.example", "b@b.example", "h", "451 U@RateLimit.Example. cannot be verified"),
        (
            "u@RateLimit.example",
            "b@b.example",
            "h",
            "451 Domain ratelimit.example. does not resolve",
        ),
        ("u@ratelimit.example", "b@b.example", "h", "451 (ratelimit.example) does not resolve"),
        ("u@ratelimit.example", "b@b.example", "h", "451 no answer from mx1.ratelimit.example yet"),
        (
            "a@a.example",
            "b@fullthrottle.example",
            "h",
            "450 4.2.1 b@FULLTHROTTLE.example: over quota",
        ),
        (
            "a@a.example",
            "b@Too-Busy.Throttle.example",
            "h",
            "450 too-busy.throttle.example: no such host",
        ),
        (
            "a@a.example",
            "b@throttle.example",
            "h",
            "450 see http://postgrey.example/help/throttle.example.html",
        ),
        // The local part alone, which is a phrase or has one.
        (
            "a@a.example",
            "fullthrottle@b.example",
            "h",
            "450 4.2.1 mailbox fullthrottle is over quota",
        ),
        ("slow.down-throttle@a.example", "b@b.example", "h", "450 slow.down-throttle: unknown"),
        ("a@a.example", "ratelimit@b.example", "h", "450 user ratelimit unknown"),
        ("a@a.example", "too many connections@b.example", "h", "450 too many connections: unknown"),
        // Quoted local parts, nested and unclosed brackets, source routes, xtext, mail of others, domain literals.
        (
            "a@a.example",
            "too many connections@b.example",
            "h",
            "450 <\"too many connections\"@b.example>: no",
        ),
        (
            "a@a.example",
            "too many connections@b.example",
            "h",
            "450 \"too many connections\"@b.example: no",
        ),
        (
            "a@a.example",
            "too many connections@b.example",
            "h",
            "450 too many connections@b.example: no",
        ),
        ("a@a.example", "b@b.example", "h", "450 <\"a > too many connections\"@b.example>: no"),
        (
            "a@a.example",
            "b@b.example",
            "h",
            "450 <\"a \\\" > too many connections\"@b.example>: no",
        ),
        ("a@a.example", "b@b.example", "h", "450 <<a@throttle.example> too many connections>: no"),
        (
            "a@a.example",
            "b@b.example",
            "h",
            "450 <@throttle.example,@busy.example:a@ratelimit.example>: no",
        ),
        ("a@a.example", "b@b.example", "h", "450 <b@throttled.example: no"),
        ("a@a.example", "b@b.example", "h", "450 <\"b@throttled.example: no"),
        (
            "a@a.example",
            "b@b.example",
            "h",
            "450 <<b@throttled.example: no <c@ratelimit.example> no",
        ),
        (
            "a@a.example",
            "b@b.example",
            "h",
            "450 orcpt=rfc822;rate+20limit+2Bthrottle@b.example: no",
        ),
        ("a@a.example", "b@b.example", "h", "450 write to postmaster@throttle.example"),
        (
            "a@a.example",
            "b@b.example",
            "h",
            "450 write to throttle@[192.0.2.1] or @ratelimit.example",
        ),
        (
            "list-return-7-throttle=b.example@a.example",
            "b@b.example",
            "h",
            "450 list-return-7-throttle=b.example@a.example",
        ),
        // The HELO name.
        (
            "a@a.example",
            "b@b.example",
            "throttle.example",
            "450 Throttle.example: Helo command rejected",
        ),
        ("a@a.example", "b@b.example", "throttle", "450 throttle: Helo command rejected"),
        (
            "a@a.example",
            "b@b.example",
            "throttle.example",
            "450 <Throttle.example>: Helo command rejected",
        ),
        // In a later line.
        (
            "a@throttle.example",
            "b@b.example",
            "h",
            "450-4.1.8 no\n450 4.1.8 throttle.example does not resolve",
        ),
        // Bytes above 127.
        ("a@a.example", "b@b.example", "h", "450 b\u{e9}throttle\u{e9}@b.example: no"),
    ];
    for (sender, recipient, helo, reply) in repeated {
        assert_eq!(seen_of(sender, recipient, helo, reply), DeliveryVerdict::Deferred, "{reply:?}");
    }
    // The server's own words count, whatever was sent.
    let own = [
        ("mail@a.example", "b@b.example", "h", "450 4.7.1 Error: too much mail from 192.0.2.9"),
        (
            "a@a.example",
            "service@b.example",
            "h",
            "451 4.7.1 Service unavailable - try again later",
        ),
        (
            "too@a.example",
            "many@b.example",
            "connections",
            "450 too many connections from many@b.example",
        ),
        ("rate@a.example", "limit@b.example", "h", "450 rate limit exceeded for limit"),
        ("a@throttle.example", "b@b.example", "h", "450 throttle.example is throttled"),
        ("ratelimit@a.example", "b@b.example", "h", "450 ratelimit: ratelimits for ratelimit"),
        (
            "a@connections.example",
            "b@b.example",
            "h",
            "450 <a@connections.example> too many connections",
        ),
        ("a@a.example", "b@b.example", "h", "450 rate < 5 too many connections > 3"),
        ("a@a.example", "b@b.example", "h", "450 max 10 @ once, too many connections"),
        ("a@a.example", "b@b.example", "h", "450 a <b too many connections"),
        ("", "b@b.example", "", "450 <>: too many connections"),
        ("#@[]", "b", "", "450 # too many connections []"),
    ];
    for (sender, recipient, helo, reply) in own {
        assert_eq!(seen_of(sender, recipient, helo, reply), AT_ENVELOPE, "{reply:?}");
    }
}

/// A server says what it likes, where it may.
#[test]
fn fakes() {
    let said = "421 4.7.0 too many connections\nZConnected to 10.0.0.1 but greeting failed.\nRemote host said: 421 x\x1b[2J\r\nSorry, I wasn't able to establish an SMTP connection. 10.0.0.1 accepted message";
    check(
        &format!("r\0K192.0.2.1 accepted message.\nRemote host said: {said}\n\0"),
        DeliveryVerdict::Accepted,
        "192.0.2.1",
    );
    check(
        &format!("r\0D192.0.2.1 failed after I sent the message.\nRemote host said: {said}\n\0"),
        DeliveryVerdict::Failed,
        "192.0.2.1",
    );
    check(
        &format!("ZConnected to 192.0.2.1 but sender was rejected.\nRemote host said: {said}\n\0"),
        AT_ENVELOPE,
        "192.0.2.1",
    );
    // Only the reply's first three digits are its code.
    let said = "450 4.1.1 no\n421 4.7.0 bye";
    check(
        &format!("ZConnected to 192.0.2.1 but sender was rejected.\nRemote host said: {said}\n\0"),
        DeliveryVerdict::Deferred,
        "192.0.2.1",
    );
    let said = "250 Remote host said: 421 4.7.0 bye";
    check(
        &format!("ZConnected to 192.0.2.1 but sender was rejected.\nRemote host said: {said}\n\0"),
        DeliveryVerdict::Deferred,
        "192.0.2.1",
    );
    // Names and addresses of mailboxes cannot hold a blank; they do not fake a peer.
    check(
        "s<From:a@example To:10.0.0.1?does?not?like?recipient.@example> 192.0.2.1 does not like recipient.\nRemote host said: 450 no\n\0DGiving up on 192.0.2.1.\n\0",
        DeliveryVerdict::Deferred,
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
    check_no_peer(
        "ZConnected to 192.0.2.1\n but greeting failed. 10.0.0.1\n\0",
        DeliveryVerdict::Nothing,
    );
    check_no_peer("DGiving up on .\n\0", DeliveryVerdict::Failed);
}

#[test]
fn every_code() {
    for code in 0..=999 {
        for (stage, too_many) in
            [("greeting failed", TOO_MANY), ("sender was rejected", AT_ENVELOPE)]
        {
            let report =
                format!("ZConnected to 192.0.2.1 but {stage}.\nRemote host said: {code:03} no\n\0");
            let wanted = if code == 421 { too_many } else { DeliveryVerdict::Deferred };
            check(&report, wanted, "192.0.2.1");
        }
    }
    for detail in 0..=999 {
        for code in [421, 450, 451, 452] {
            let report = format!(
                "ZConnected to 192.0.2.1 but sender was rejected.\nRemote host said: {code} 4.7.{detail} no\n\0"
            );
            let wanted = match detail {
                28 | 500 | 650..=659 => AT_ENVELOPE,
                20..=60 => DeliveryVerdict::Deferred,
                _ if code == 421 => AT_ENVELOPE,
                _ => DeliveryVerdict::Deferred,
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
    assert_eq!(
        classify(&report).seen,
        DeliveryVerdict::Deferred,
        "no more than the beginning is searched"
    );
    // Brackets that never close are looked at once, not once each.
    for piece in ["<", "<a", "<\"", "<a<b>", "<\"a>", "a@", "@", "x.", "\"@a"] {
        let report = format!(
            "ZConnected to 192.0.2.1 but sender was rejected.\nRemote host said: 450 {} too many connections\n\0",
            piece.repeat(60_000 / piece.len())
        );
        let _ = seen(&report);
    }
    report.resize(10_000_000, b'Z');
    assert_eq!(classify(&report).seen, DeliveryVerdict::Nothing);
    assert_eq!(classify(&vec![0; 10_000_000]).seen, DeliveryVerdict::Nothing);
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

    /// Whatever stands in an address, or was sent, and however the server writes it.
    #[test]
    fn addresses_say_nothing(
        local in "[a-z]{0,8}(throttle|ratelimit|too\\.many|slow-down)[a-z]{0,8}",
        domain in "[a-z]{0,8}(throttle|ratelimit|busy)[a-z]{0,8}\\.example",
        form in 0usize..6,
        upper in any::<bool>(),
        is_sender in any::<bool>(),
    ) {
        let address = format!("{local}@{domain}");
        let (sender, recipient) =
            if is_sender { (&*address, "b@b.example") } else { ("a@a.example", &*address) };
        let shown = match form {
            0 => format!("<{address}>"),
            1 => address.clone(),
            2 => domain,
            3 => format!("mx.{domain}."),
            4 => local,
            _ => format!("<{address}"),
        };
        let shown = if upper { shown.to_uppercase() } else { shown };
        let reply = format!("450 4.1.1 {shown}: rejected");
        prop_assert_eq!(seen_of(sender, recipient, "h.example", &reply), DeliveryVerdict::Deferred);
        let reply = format!("450 4.1.1 {shown}: rejected, too many connections");
        prop_assert_eq!(seen_of(sender, recipient, "h.example", &reply), AT_ENVELOPE);
    }

    #[test]
    fn pieces(pieces in vec(0..PIECES.len(), 0..40)) {
        let report: String = pieces.into_iter().map(|piece| PIECES[piece]).collect();
        let read = classify(report.as_bytes());
        if read.seen == DeliveryVerdict::Accepted {
            prop_assert!(report.contains(" accepted message") && read.peer.is_some());
        }
    }

    /// Whatever the server says (without zero bytes, which qmail-remote replaces), it decides of its own refusal only.
    #[test]
    fn the_server_has_its_place(said in vec(1u8..=255, 0..300)) {
        let with = |own: &[u8]| [own, b"\nRemote host said: ", &said, b"\0"].concat();
        let peer = Some(IpAddr::from([192, 0, 2, 1]));
        let read = classify(&with(b"r\0K192.0.2.1 accepted message."));
        prop_assert_eq!(read, DeliveryReport { seen: DeliveryVerdict::Accepted, peer, rule: None });
        let read = classify(&with(b"DConnected to 192.0.2.1 but sender was rejected."));
        prop_assert_eq!(read, DeliveryReport { seen: DeliveryVerdict::Failed, peer, rule: None });
        let read = classify(&with(b"ZConnected to 192.0.2.1 but sender was rejected."));
        prop_assert_eq!(read.peer, peer);
        prop_assert!(matches!(read.seen, DeliveryVerdict::Deferred | AT_ENVELOPE));
    }

    /// Cut off anywhere, a report says the same or nothing.
    #[test]
    fn cut_off(at in 0usize..200) {
        let whole = b"s192.0.2.1 does not like recipient.\nRemote host said: 421 4.7.0 too many connections\n\0DGiving up on 192.0.2.1.\n\0";
        let part = &whole[..at.min(whole.len())];
        let wanted = if part.len() == whole.len() { classify(whole).seen } else { DeliveryVerdict::Nothing };
        prop_assert_eq!(classify(part).seen, wanted);
    }
}

/// qmail-rspawn's report() prints the first line from its second byte on, and then the second one if it is no worse.
#[test]
fn a_line_is_added_where_only_the_log_shows_it() {
    for report in [
        &b"r\0K192.0.2.1 accepted message.\n\0"[..],
        b"K192.0.2.1 accepted message.\n\0",
        b"ZConnected to 192.0.2.1 but connection died. (#4.4.2)\n\0",
        b"s192.0.2.1 does not like recipient.\n\0DGiving up on 192.0.2.1.\n\0",
        b"r\0Z192.0.2.1 failed on DATA command.\n\0",
        b"s\0Z\0",
    ] {
        assert!(takes_a_line(report), "{}", report.escape_ascii());
    }
    for report in [
        // What fails for good goes to the sender.
        &b"h192.0.2.1 does not like recipient.\n\0DGiving up on 192.0.2.1.\n\0"[..],
        b"DSorry.\n\0",
        b"r\0D192.0.2.1 failed after I sent the message.\n\0",
        // The second line is not shown.
        b"s\0Kaccepted\0",
        // These are not what qmail-remote prints for one recipient, or end in the middle.
        b"",
        b"\0",
        b"Kaccepted",
        b"r\0Kaccepted",
        b"r\0Kaccepted\0\0",
        b"Kno supported AUTH method found\0r\0Kaccepted\0",
        b"r\0r\0Kaccepted\0",
        b"x\0Kaccepted\0",
    ] {
        assert!(!takes_a_line(report), "{}", report.escape_ascii());
    }
}
