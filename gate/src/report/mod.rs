//! Reads the report of a delivery: what qmail-remote printed, and what that says about the server. The server is not
//! trusted.
//!
//! A report has a line for each recipient (`r` accepted, `s` temporary, `h` permanent) and one for the message (`K`,
//! `Z`, `D`); each ends with a zero byte. qmail-remote's own words come first, up to the first line feed; then, after
//! `Remote host said: `, the server's reply, in which qmail-remote has replaced zero bytes. So the position decides,
//! and never a search through all of it: the kind of end comes from qmail-remote's words at the start of the line, the
//! peer's address from where qmail-remote prints it, and the server's reply from right behind the fixed words,
//! beginning with its three digits. A server can only speak about itself.
//!
//! qmail-remote differs from tree to tree, and servers differ in the words of a refusal. docs/replies.md lists what was
//! read, with the sources. Every temporary refusal that is not in that list (mailboxes, content, authentication) is a
//! deferral. A 421 without other words counts as too many: a server that closes the connection says 421, for any reason
//! (RFC 5321, 3.8).
//!
//! Only the server's own words count, and not the addresses that it repeats: see [`crate::report::echo`].

#![forbid(unsafe_code)]

pub mod echo;
pub mod replies;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::report::echo::{Own, Words};
use crate::report::replies::{Enhanced, MatchedLine, Meaning, Replies};

/// What a report says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeliveryReport {
    /// What the delivery saw of the server.
    pub seen: DeliveryVerdict,
    /// The address that qmail-remote was connected to, if the report has it.
    pub peer: Option<IpAddr>,
    /// The line of control/concurrencyreplies that matched.
    pub rule: Option<MatchedLine>,
}

/// What a delivery says about the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeliveryVerdict {
    /// It took the message.
    Accepted,
    /// It refused for now: too many at once, or too fast.
    TooMany(Sent),
    /// No address of it took a connection, or (with TLS patches) every greeting was a 4xx.
    ConnectFailed,
    /// The connection broke or hung. [`Sent::Yes`]: the server may have the message.
    Died(Sent),
    /// It answered, and refused for now for another reason: greylisting, the recipient, the content.
    Deferred,
    /// It answered, and refused for good.
    Failed,
    /// Nothing: no server was involved, or the report is not understood.
    Nothing,
}

impl DeliveryVerdict {
    /// Whether the server said "too many" before the message was sent.
    #[must_use]
    pub fn is_too_many_early(self) -> bool {
        matches!(self, Self::TooMany(Sent::No | Sent::Envelope))
    }
}

/// How much of the mail had been sent when it was refused, or may have been when the connection broke.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sent {
    /// Nothing: the server knew nothing about the mail. If the connection broke: the envelope at most.
    No,
    /// The envelope, or a part of it. So the refusal may concern this mail.
    Envelope,
    /// All of it; each new try costs as much.
    Yes,
}

const NOTHING: DeliveryReport =
    DeliveryReport { seen: DeliveryVerdict::Nothing, peer: None, rule: None };

/// qmail-remote keeps 5000 bytes of a reply, and has one recipient. A longer report is not from qmail-remote.
const REPORT_MAX: usize = 65536;

/// What else is known when a report is read.
#[derive(Clone, Copy, Debug)]
pub struct ReportReader<'a> {
    /// What the delivery sent.
    pub own: Own<'a>,
    /// The operator's rules for replies.
    pub replies: &'a Replies,
}

/// Reads a report without knowing more about the delivery.
#[must_use]
pub fn classify(report: &[u8]) -> DeliveryReport {
    ReportReader { own: Own::unknown(), replies: &Replies::default() }.classify(report)
}

/// Whether a server let anybody in, where no more need be known: [`DeliveryVerdict::Accepted`],
/// [`DeliveryVerdict::ConnectFailed`], [`DeliveryVerdict::Died`] if the server cannot have the message,
/// [`DeliveryVerdict::TooMany`] for a 4xx at the greeting, when it knew nothing of the mail,
/// [`DeliveryVerdict::Deferred`] for any other answer, or [`DeliveryVerdict::Nothing`]. Nothing that a server repeats
/// of the mail comes into it.
#[must_use]
pub fn at_the_door(report: &[u8]) -> DeliveryVerdict {
    // Nearly all of them: what was accepted.
    if let [b'r', 0, b'K', ..] = report {
        return DeliveryVerdict::Accepted;
    }
    match classify(report).seen {
        DeliveryVerdict::TooMany(_) | DeliveryVerdict::Deferred if is_of_greeting(report) => {
            DeliveryVerdict::TooMany(Sent::No)
        }
        DeliveryVerdict::TooMany(_) | DeliveryVerdict::Failed => DeliveryVerdict::Deferred,
        DeliveryVerdict::Died(Sent::Yes) => DeliveryVerdict::Nothing,
        seen => seen,
    }
}

/// Whether a line can be added that only qmail-send's log shows. qmail-rspawn joins the lines of a report: the added
/// line must be its end, and the report a success or a deferral. A permanent failure goes to the sender.
#[must_use]
pub fn takes_a_line(report: &[u8]) -> bool {
    let Some(whole) = report.strip_suffix(&[0]) else { return false };
    let mut lines = whole.split(|&byte| byte == 0);
    let (first, second, third) = (lines.next(), lines.next(), lines.next());
    let letter = |line: Option<&[u8]>| line.and_then(|line| line.first().copied());
    match (letter(first), letter(second), third) {
        (Some(b'K' | b'Z'), None, None) => second.is_none(),
        // The message's line is shown behind the recipient's, if it is no better.
        (Some(b's'), Some(b'Z' | b'D'), None) | (Some(b'r'), Some(b'K' | b'Z'), None) => true,
        _ => false,
    }
}

/// Whether qmail-remote says that the greeting failed, or that the server refused its name, with a temporary reply.
fn is_of_greeting(report: &[u8]) -> bool {
    let Some(rest) = report.strip_prefix(b"Z") else { return false };
    let (own, reply) = halves(rest);
    RemoteEnd::read(own).kind == EndKind::Refused(Stage::Start) && reply.first() == Some(&b'4')
}

/// Where in a session a reply was given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// At the greeting, or when the name was given.
    Start,
    /// At the sender, a recipient, the DATA command, or authentication.
    Envelope,
    /// After the message.
    Message,
}

impl ReportReader<'_> {
    /// Reads a report.
    #[must_use]
    pub fn classify(&self, report: &[u8]) -> DeliveryReport {
        classify_by(self, report)
    }

    /// What a temporary reply means, and which of the operator's lines says so.
    #[must_use]
    pub fn temporary(&self, stage: Stage, reply: &[u8]) -> (DeliveryVerdict, Option<MatchedLine>) {
        let sent = match stage {
            Stage::Start => Sent::No,
            Stage::Envelope => Sent::Envelope,
            Stage::Message => Sent::Yes,
        };
        let Some(reply) = Reply::read(reply, &self.own) else {
            return (DeliveryVerdict::Deferred, None);
        };
        let rule = self.replies.find(reply.code, reply.enhanced, &reply.words);
        let is_too_many = match rule {
            Some(rule) => matches!(rule.meaning, Meaning::Limit | Meaning::Rate),
            None => reply.says_too_many(stage),
        };
        (if is_too_many { DeliveryVerdict::TooMany(sent) } else { DeliveryVerdict::Deferred }, rule)
    }

    /// The text in which patterns are searched for; None: it is no reply.
    #[must_use]
    pub fn read_as(&self, reply: &[u8]) -> Option<Vec<u8>> {
        let reply = Reply::read(reply, &self.own)?;
        let mut text = Vec::new();
        text.try_reserve_exact(reply.words.text().len()).ok()?;
        text.extend_from_slice(reply.words.text());
        Some(text)
    }

    /// The operator's line that wants a pause after a permanent reply. Other lines make no difference to such mail.
    #[must_use]
    pub fn permanent(&self, reply: &[u8]) -> Option<MatchedLine> {
        if self.replies.is_empty() {
            return None;
        }
        let reply = Reply::read(reply, &self.own)?;
        let rule = self.replies.find(reply.code, reply.enhanced, &reply.words);
        rule.filter(|rule| matches!(rule.meaning, Meaning::Pause(_)))
    }
}

fn classify_by(reader: &ReportReader<'_>, report: &[u8]) -> DeliveryReport {
    if report.len() > REPORT_MAX {
        return NOTHING;
    }
    // As in qmail-rspawn: a line counts if it has its zero byte, the first byte of the report is the result of the
    // recipient, and the first line with K, Z or D is that of the message.
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
    let end = RemoteEnd::read(own);
    let (of_recipient, recipients_reply) = halves(recipient.map_or(&[], |line| &line[1..]));
    let plain = |seen| (seen, None);
    let (seen, rule) = match (message[0], recipient.map(|line| line[0]), end.kind) {
        (_, _, EndKind::Unknown) => return NOTHING,
        (b'K', Some(b's'), EndKind::Accepted) => plain(DeliveryVerdict::Deferred),
        (b'K', Some(b'h'), EndKind::Accepted) => plain(DeliveryVerdict::Failed),
        (b'K', _, EndKind::Accepted) => plain(DeliveryVerdict::Accepted),
        (b'Z', _, EndKind::NotConnected) => plain(DeliveryVerdict::ConnectFailed),
        (b'Z', _, EndKind::Died(may_have_it)) => plain(DeliveryVerdict::Died(may_have_it)),
        (b'Z', _, EndKind::Refused(stage)) => reader.temporary(stage, reply),
        (b'D', Some(b's'), EndKind::GaveUp) if of_recipient.ends_with(DOES_NOT_LIKE) => {
            reader.temporary(Stage::Envelope, recipients_reply)
        }
        (b'D', Some(b's'), EndKind::GaveUp) => plain(DeliveryVerdict::Deferred),
        (b'D', Some(b'h'), EndKind::GaveUp) if of_recipient.ends_with(DOES_NOT_LIKE) => {
            (DeliveryVerdict::Failed, reader.permanent(recipients_reply))
        }
        (b'D', _, EndKind::GaveUp) => plain(DeliveryVerdict::Failed),
        (b'D', _, EndKind::Refused(_)) => (DeliveryVerdict::Failed, reader.permanent(reply)),
        _ => return NOTHING,
    };
    DeliveryReport { seen, peer: end.peer, rule }
}

/// The end of qmail-remote's words about a recipient that was refused.
const DOES_NOT_LIKE: &[u8] = b" does not like recipient.";

/// qmail-remote's own words, up to the first line feed, and the server's reply.
fn halves(line: &[u8]) -> (&[u8], &[u8]) {
    let end = line.iter().position(|&byte| byte == b'\n').unwrap_or(line.len());
    let (own, rest) = line.split_at(end);
    (own, rest.strip_prefix(b"\nRemote host said: ").unwrap_or_default())
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum EndKind {
    Accepted,
    NotConnected,
    Died(Sent),
    Refused(Stage),
    GaveUp,
    Unknown,
}

struct RemoteEnd {
    kind: EndKind,
    peer: Option<IpAddr>,
}

impl RemoteEnd {
    fn read(own: &[u8]) -> Self {
        let unknown = Self { kind: EndKind::Unknown, peer: None };
        if own.starts_with(b"Sorry, I wasn't able to establish a") {
            return Self { kind: EndKind::NotConnected, peer: None };
        }
        let greeted = own.strip_prefix(b"TLS ").unwrap_or(own);
        if let Some(rest) = greeted.strip_prefix(b"Connected to ") {
            let Some((peer, what)) = cut(rest, b" but ") else { return unknown };
            let kind = if what.starts_with(b"connection died") {
                // An error of TLS may follow, or what happens to other exchangers, in any order.
                let may_have_it = cut(what, b"Possible duplicate!").is_some();
                EndKind::Died(if may_have_it { Sent::Yes } else { Sent::No })
            } else if what.starts_with(b"greeting failed") || what.starts_with(b"my name was") {
                EndKind::Refused(Stage::Start)
            } else {
                EndKind::Refused(Stage::Envelope)
            };
            return Self { kind, peer: address(peer) };
        }
        if let Some(rest) = own.strip_prefix(b"Giving up on ") {
            return Self {
                kind: EndKind::GaveUp,
                peer: address(rest.strip_suffix(b".").unwrap_or(rest)),
            };
        }
        for (words, kind) in [
            (&b" accepted message"[..], EndKind::Accepted),
            (b" failed on DATA command", EndKind::Refused(Stage::Envelope)),
            (b" failed after I sent the message", EndKind::Refused(Stage::Message)),
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

/// The text before and behind the first `at`.
fn cut<'a>(text: &'a [u8], at: &[u8]) -> Option<(&'a [u8], &'a [u8])> {
    let start = text.windows(at.len()).position(|window| window == at)?;
    Some((&text[..start], &text[start + at.len()..]))
}

/// The last word, if it is an address, plain or in brackets. Some trees print a name before it.
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

/// A server's reply.
pub(crate) struct Reply {
    pub(crate) code: u16,
    /// Of its first line.
    pub(crate) enhanced: Option<Enhanced>,
    pub(crate) words: Words,
}

/// Phrases about connections: they count with any code, and before all other phrases.
const CONNECTIONS: [&str; 16] = [
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
    "concurrency limit",
    "simultaneous connection",
    "connection limit",
    "connections limit",
    "connection rate",
    "trop de connexions",
];

/// Phrases about how much this client has sent lately; they contain phrases of [`OTHER_REASONS`].
const OF_THIS_CLIENT: [&str; 2] = ["too many recipients from", "recipients received this hour"];

/// Phrases about another reason: with one of these, those below do not count.
const OTHER_REASONS: [&str; 23] = [
    "greylist",
    "graylist",
    "grey list",
    "gray list",
    "grey-list",
    "gray-list",
    "reverse dns",
    "rdns",
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
    "ratelimit \"to",
    "timeout",
    "maintenance",
    "configuration error",
    "local data error",
];

/// Phrases about speed or load.
const SPEED: [&str; 26] = [
    "rate limit",
    "rate-limit",
    "ratelimit",
    "rate exceed",
    "submission rate",
    "throttl",
    "slow down",
    "too fast",
    "too many messages",
    "too many new tls",
    "too many auth commands",
    "too much mail",
    "too much load",
    "unusual rate",
    "excessive rate",
    "unexpected volume",
    "frequency limited",
    "rejection; message count quota",
    "server busy",
    "server is busy",
    "system busy",
    "too busy",
    "load too high",
    "its limit for processing requests",
    "no system resources",
    "service unavailable - try again later",
];

/// Phrases that count at the greeting, when the server does not know recipients and content yet.
const UNAVAILABLE: [&str; 3] = ["try again later", "service unavailable", "busy"];

/// Units of `max 30 requests per hour` and `3 requests per 5 minutes`.
const TIMES: [&str; 7] = ["second", "sec", "minute", "min", "hour", "1h", "1m"];

impl Reply {
    pub(crate) fn read(reply: &[u8], own: &Own<'_>) -> Option<Self> {
        let (code, enhanced, text) = reply_head(reply)?;
        let mut words = Words::new();
        let codes = &reply[..reply.len() - text.len()];
        codes.iter().for_each(|&byte| words.push(if byte == b'-' { b' ' } else { byte }));
        for line in reply.split(|&byte| byte == b'\n') {
            // A phrase may continue in the next line, behind its codes.
            words.add_line(reply_head(line).map_or(line, |(_, _, text)| text));
        }
        words.forget(own);
        Some(Self { code, enhanced, words })
    }

    fn says_too_many(&self, stage: Stage) -> bool {
        if !(400..600).contains(&self.code) {
            return false;
        }
        if self.words.has_any(&CONNECTIONS) {
            return true;
        }
        if self.code >= 500 {
            return false;
        }
        if self.words.has_any(&OF_THIS_CLIENT) {
            return true;
        }
        if self.words.has_any(&OTHER_REASONS) {
            return false;
        }
        let by_code = matches!(self.enhanced, Some((7, 28 | 500 | 650..=659)));
        if by_code || self.words.has_any(&SPEED) || self.says_a_rate() {
            return true;
        }
        match self.enhanced {
            // An address, a mailbox, the content, the number of recipients.
            Some((1 | 2 | 6, _) | (5, 3)) => return false,
            // Authentication, reverse DNS and the like, by Gmail's numbers.
            Some((7, 20..=60)) => return false,
            _ => {}
        }
        self.code == 421 || (stage == Stage::Start && self.words.has_any(&UNAVAILABLE))
    }

    /// Whether it names a rate: a number per second, minute or hour.
    fn says_a_rate(&self) -> bool {
        let Some(at) = self.words.find(b" per ") else { return false };
        let behind = &self.words.as_bytes()[at + " per ".len()..];
        let number = behind.iter().take_while(|byte| byte.is_ascii_digit()).count();
        let unit = behind[number..].strip_prefix(b" ").filter(|_| number > 0).unwrap_or(behind);
        TIMES.iter().any(|time| unit.starts_with(time.as_bytes()))
    }
}

/// A code, an enhanced code (subject and detail), and the text behind.
type ReplyHead<'a> = (u16, Option<Enhanced>, &'a [u8]);

fn reply_head(line: &[u8]) -> Option<ReplyHead<'_>> {
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
