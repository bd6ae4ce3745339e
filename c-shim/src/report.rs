//! What the report of a delivery says about the server: what qmail-remote printed, read without trusting the server.
//!
//! A report is a line for each recipient (`r` accepted, `s` temporary, `h` permanent) and one for the message (`K`, `Z`,
//! `D`); each ends with a zero byte. qmail-remote's own words come first, up to the first line feed; then, after `Remote host
//! said: `, the server's reply, in which qmail-remote has replaced zero bytes. So the place decides, never a search through
//! everything: what kind of end it was is read from qmail-remote's words at the start of the line, the peer's address from
//! where qmail-remote prints it, and the server's reply only from right behind the fixed words, beginning with its three
//! digits. A server can say of itself what it likes, and no more.
//!
//! Read in qmail-1.03, netqmail-1.06, 41 different qmail-remote.c of notqmail's branches and tags (with AUTH, TLS, SMTPUTF8,
//! outgoingip), sagredo's qmail and indimail. They differ in this:
//!
//! | | who | read as |
//! | --- | --- | --- |
//! | `ZConnected to IP but greeting failed.` | all; `ZTLS Connected to ...` with TLS | the reply counts |
//! | `ZSorry, I wasn't able to establish an SMTP connection. (#4.4.1)` | all; indimail: `a SMTP connection for HOST to IP port N`, `a QMTP connection` | a failed connection. **Those with TLS patches (netqmail's, Gentoo's, sagredo's, indimail) try the next MX when the greeting is 4xx, and then print this: a 421 at the greeting looks like a connection that failed** |
//! | `ZConnected to IP but connection died. (#4.4.2)` | all; with `Possible duplicate!`, a TLS error, or indimail's `Will try alternate MX.` between | died |
//! | `sIP does not like recipient.` then `DGiving up on IP.` | all; sagredo: `s<From:A To:B> IP ...`, indimail: `sFrom: <A> RCPT: <B> IP ...`, where no address holds a blank | the recipient line's reply counts |
//! | `KIP accepted message.` | all; indimail: ` - Protocol SMTP` | accepted |
//! | `ZIP failed on DATA command.`, `ZIP failed after I sent the message.` | all | the reply counts |
//! | `Kno supported AUTH method found, ...` | where there is AUTH, as a line before all others | nothing |
//! | `ZTLS ...; connected to IP.`, `ZCNAME lookup failed ...`, `ZSorry, I couldn't find any host ...`, and what else is said of this machine or of DNS | | nothing |
//!
//! **Which replies mean too many or too fast.** Their sources:
//!
//! | who | reply | source |
//! | --- | --- | --- |
//! | Gmail | `421 4.7.28` unusual rate; `421 4.7.0` Try again later, closing connection; `421 4.4.5` Server busy | support.google.com/a/answer/3726730 |
//! | Gmail | but `421 4.7.0` TLS required, `421 4.7.0` IP not in whitelist, `421 4.7.26` and its neighbours (not authenticated) are policy, `450 4.2.1` is about one recipient | the same |
//! | Yahoo | `421 4.7.0 [TSS04] Messages from IP temporarily deferred due to unexpected volume or user complaints` | smtpfieldmanual.com/provider/yahoo/421/4.7.0 |
//! | Outlook | `451 4.7.500 Server busy`, `451 4.7.650 ... rate limited`, `451 4.7.652 ... exceeded the maximum number of connections` | suped.com, "Hotmail error 451 4.7.652"; bentonow.com/smtp-errors/microsoft |
//! | Outlook | `421 Too many concurrent SMTP connections; please try again later` | github.com/mohamedboukari/bunmail issue 91 |
//! | Comcast | `421 Too many sessions opened`, `421 4.1.0 IP Throttled - try again later`; but `421 Reverse DNS failure : Try again later` is policy | its postmaster pages; suped.com, "Comcast throttling" |
//! | Orange | `Too many connections, slow down.` | github.com/Mailu/Mailu issue 2213 |
//! | Apple | `451 4.7.1 Service unavailable - try again later`; but `421 4.7.1 Messages to A deferred due to excessive volume` is about one recipient, and `421 4.7.0 Error: too many errors` about errors | smtp.codes/icloud |
//! | Postfix | `421 4.7.0 HOST Error: too many connections from IP` | github.com/modoboa/modoboa-installer issue 92 |
//!
//! Everything else that is temporary (greylisting, mailboxes, content, authentication) is a deferral. RFC 5321 (3.8) has 421
//! for a server that closes the connection, whatever the reason; so a 421 that says nothing else counts.

#![forbid(unsafe_code)]

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// What a report says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Report {
    /// What the delivery saw of the server.
    pub seen: Seen,
    /// The address that qmail-remote was connected to, if it says so.
    pub peer: Option<IpAddr>,
}

/// What a delivery saw of the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seen {
    /// It took the message.
    Accepted,
    /// It refused for now: too many at once, or too fast.
    TooMany(Sent),
    /// Nothing at its address let itself be connected to, or (with TLS patches) every greeting was a 4xx.
    ConnectFailed,
    /// The connection broke or hung. The server may have the message.
    Died,
    /// It answered, and refused for now for another reason: greylisting, the recipient, the content.
    Deferred,
    /// It answered, and refused for good.
    Failed,
    /// Nothing: no server had to do with it, or the report is not understood.
    Nothing,
}

/// Whether the whole message had been sent when it was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sent {
    /// No more than the envelope.
    No,
    /// All of it; each new try costs as much.
    Yes,
}

const NOTHING: Report = Report { seen: Seen::Nothing, peer: None };

/// qmail-remote keeps 5000 bytes of a reply, and has one recipient. What is longer is not from it.
const REPORT_MAX: usize = 65536;

/// So much of a reply is searched for words.
const WORDS_MAX: usize = 1024;

/// Reads a report.
#[must_use]
pub fn classify(report: &[u8]) -> Report {
    if report.len() > REPORT_MAX {
        return NOTHING;
    }
    // As in qmail-rspawn: a line counts if it has its zero byte, the first byte of all says what became of the recipient,
    // and the first K, Z or D is the message's.
    let mut lines =
        report.split_inclusive(|&byte| byte == 0).filter_map(|line| line.strip_suffix(&[0]));
    let recipient = match report.first() {
        Some(b'r' | b'h' | b's') => lines.next(),
        _ => None,
    };
    let Some(message) = lines.find(|line| matches!(line.first(), Some(b'K' | b'Z' | b'D'))) else {
        return NOTHING;
    };
    let (own, reply) = halves(&message[1..]);
    let end = End::read(own);
    let seen = match (message[0], recipient.map(|line| line[0]), end.kind) {
        (_, _, Kind::Unknown) => return NOTHING,
        (b'K', Some(b's'), Kind::Accepted) => Seen::Deferred,
        (b'K', Some(b'h'), Kind::Accepted) => Seen::Failed,
        (b'K', _, Kind::Accepted) => Seen::Accepted,
        (b'Z', _, Kind::NotConnected) => Seen::ConnectFailed,
        (b'Z', _, Kind::Died) => Seen::Died,
        (b'Z', _, Kind::Refused(stage)) => temporary(stage, reply),
        (b'D', Some(b's'), Kind::GaveUp) => {
            let (own, reply) = halves(recipient.map_or(&[], |line| &line[1..]));
            if own.ends_with(b" does not like recipient.") {
                temporary(Stage::Envelope, reply)
            } else {
                Seen::Deferred
            }
        }
        (b'D', _, Kind::GaveUp | Kind::Refused(_)) => Seen::Failed,
        _ => return NOTHING,
    };
    Report { seen, peer: end.peer }
}

/// qmail-remote's own words, up to the first line feed, and the server's reply.
fn halves(line: &[u8]) -> (&[u8], &[u8]) {
    let end = line.iter().position(|&byte| byte == b'\n').unwrap_or(line.len());
    let (own, rest) = line.split_at(end);
    (own, rest.strip_prefix(b"\nRemote host said: ").unwrap_or_default())
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// At the greeting, or when the name was given.
    Start,
    /// At the sender, a recipient, the DATA command, or authentication.
    Envelope,
    /// After the message.
    Message,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Accepted,
    NotConnected,
    Died,
    Refused(Stage),
    GaveUp,
    Unknown,
}

struct End {
    kind: Kind,
    peer: Option<IpAddr>,
}

impl End {
    fn read(own: &[u8]) -> Self {
        let unknown = Self { kind: Kind::Unknown, peer: None };
        if own.starts_with(b"Sorry, I wasn't able to establish a") {
            return Self { kind: Kind::NotConnected, peer: None };
        }
        let greeted = own.strip_prefix(b"TLS ").unwrap_or(own);
        if let Some(rest) = greeted.strip_prefix(b"Connected to ") {
            let Some((peer, what)) = cut(rest, b" but ") else { return unknown };
            let kind = if what.starts_with(b"connection died") {
                Kind::Died
            } else if what.starts_with(b"greeting failed") || what.starts_with(b"my name was") {
                Kind::Refused(Stage::Start)
            } else {
                Kind::Refused(Stage::Envelope)
            };
            return Self { kind, peer: address(peer) };
        }
        if let Some(rest) = own.strip_prefix(b"Giving up on ") {
            return Self {
                kind: Kind::GaveUp,
                peer: address(rest.strip_suffix(b".").unwrap_or(rest)),
            };
        }
        for (words, kind) in [
            (&b" accepted message"[..], Kind::Accepted),
            (b" failed on DATA command", Kind::Refused(Stage::Envelope)),
            (b" failed after I sent the message", Kind::Refused(Stage::Message)),
        ] {
            if let Some((peer, _)) = cut(own, words)
                && let Some(peer) = address(peer)
            {
                return Self { kind, peer: Some(peer) };
            }
        }
        unknown
    }
}

/// What is before and behind the first `at`.
fn cut<'a>(text: &'a [u8], at: &[u8]) -> Option<(&'a [u8], &'a [u8])> {
    let start = text.windows(at.len()).position(|window| window == at)?;
    Some((&text[..start], &text[start + at.len()..]))
}

/// The last word, if it is an address, plain or in brackets: some print a name before it.
fn address(text: &[u8]) -> Option<IpAddr> {
    let word = text.rsplit(|&byte| byte == b' ').next()?;
    let word = match word {
        [b'[', inner @ .., b']'] | [b'(', inner @ .., b')'] => inner,
        word => word,
    };
    if word.len() > 45 {
        return None;
    }
    let word = std::str::from_utf8(word).ok()?;
    if let Ok(ip) = word.parse::<Ipv4Addr>() {
        return Some(IpAddr::V4(ip));
    }
    word.parse::<Ipv6Addr>().ok().map(|ip| ip.to_canonical())
}

/// What a reply means that was taken as temporary.
fn temporary(stage: Stage, reply: &[u8]) -> Seen {
    let sent = if stage == Stage::Message { Sent::Yes } else { Sent::No };
    if Reply::read(reply).is_some_and(|reply| reply.says_too_many(stage)) {
        Seen::TooMany(sent)
    } else {
        Seen::Deferred
    }
}

struct Reply {
    code: u16,
    /// The subject and the detail of an enhanced status code (RFC 3463).
    enhanced: Option<(u16, u16)>,
    words: [u8; WORDS_MAX],
    len: usize,
}

/// About connections: these count with any code.
const CONNECTIONS: [&str; 14] = [
    "too many connection",
    "too many concurrent",
    "too many simultaneous",
    "too many session",
    "too many open",
    "too many smtp",
    "maximum number of connections",
    "maximum number of concurrent",
    "maximum connections",
    "concurrent connection",
    "simultaneous connection",
    "connection limit",
    "connections limit",
    "connection rate",
];

/// About another reason, whatever else is said.
const OTHER_REASONS: [&str; 17] = [
    "greylist",
    "graylist",
    "grey list",
    "gray list",
    "grey-list",
    "gray-list",
    "reverse dns",
    "tls required",
    "not in whitelist",
    "unauthenticated",
    "too many errors",
    "too many recipients",
    "too many invalid",
    "too many unknown",
    "the user you are trying to contact",
    "messages to ",
    "blocked using",
];

/// About speed or load.
const SPEED: [&str; 17] = [
    "rate limit",
    "rate-limit",
    "ratelimit",
    "throttl",
    "slow down",
    "too fast",
    "too many messages",
    "too much mail",
    "unusual rate",
    "excessive rate",
    "unexpected volume",
    "server busy",
    "server is busy",
    "system busy",
    "too busy",
    "load too high",
    "service unavailable - try again later",
];

/// At the greeting nothing is known of recipients and content: there these count, too.
const UNAVAILABLE: [&str; 3] = ["try again later", "service unavailable", "busy"];

impl Reply {
    fn read(reply: &[u8]) -> Option<Self> {
        let (code, enhanced, _) = status(reply)?;
        let mut this = Self { code, enhanced, words: [0; WORDS_MAX], len: 0 };
        for line in reply.split(|&byte| byte == b'\n') {
            // A phrase may go on in the next line, behind its codes.
            let text = status(line).map_or(line, |(_, _, text)| text);
            for &byte in text.iter().chain(b" ") {
                let byte = match byte {
                    0x21..=0x7e => byte.to_ascii_lowercase(),
                    _ => b' ',
                };
                if byte == b' ' && this.len > 0 && this.words[this.len - 1] == b' ' {
                    continue;
                }
                if this.len == WORDS_MAX {
                    return Some(this);
                }
                this.words[this.len] = byte;
                this.len += 1;
            }
        }
        Some(this)
    }

    fn has_any(&self, phrases: &[&str]) -> bool {
        let words = &self.words[..self.len];
        phrases
            .iter()
            .any(|phrase| words.windows(phrase.len()).any(|window| window == phrase.as_bytes()))
    }

    fn says_too_many(&self, stage: Stage) -> bool {
        if !(400..600).contains(&self.code) {
            return false;
        }
        if self.has_any(&CONNECTIONS) {
            return true;
        }
        if self.code >= 500 || self.has_any(&OTHER_REASONS) {
            return false;
        }
        if matches!(self.enhanced, Some((7, 28 | 500 | 650..=659))) || self.has_any(&SPEED) {
            return true;
        }
        match self.enhanced {
            // An address, a mailbox, the content, the number of recipients.
            Some((1 | 2 | 6, _) | (5, 3)) => return false,
            // Authentication, reverse DNS and the like, in Gmail's numbers.
            Some((7, 20..=60)) => return false,
            _ => {}
        }
        self.code == 421 || (stage == Stage::Start && self.has_any(&UNAVAILABLE))
    }
}

/// A code, an enhanced code (subject and detail), and the text behind.
type Status<'a> = (u16, Option<(u16, u16)>, &'a [u8]);

fn status(line: &[u8]) -> Option<Status<'_>> {
    let (digits, rest) = line.split_at_checked(3)?;
    let code = number(digits)?;
    let rest = match rest {
        [] => rest,
        [b' ' | b'-', text @ ..] => text,
        // A line feed ends the reply's first line.
        [b'\n', ..] => rest,
        _ => return None,
    };
    let word =
        rest.split(|byte| !byte.is_ascii_digit() && *byte != b'.').next().unwrap_or_default();
    let mut parts = word.split(|&byte| byte == b'.');
    let enhanced = match (parts.next(), parts.next(), parts.next(), parts.next()) {
        (Some([b'2' | b'4' | b'5']), Some(subject), Some(detail), None) => {
            number(subject).zip(number(detail))
        }
        _ => None,
    };
    Some((code, enhanced, if enhanced.is_some() { &rest[word.len()..] } else { rest }))
}

/// One to three digits.
fn number(digits: &[u8]) -> Option<u16> {
    if digits.is_empty() || digits.len() > 3 {
        return None;
    }
    digits.iter().try_fold(0u16, |number, byte| {
        byte.is_ascii_digit().then(|| number * 10 + u16::from(byte - b'0'))
    })
}
