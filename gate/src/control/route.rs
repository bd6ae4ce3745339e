//! control/smtproutes as qmail-remote reads it: `domain:relay[:port]`, looked up by exact name, each `.suffix`, then
//! the empty name. A matching line with an empty relay means that there is no relay. Lines without a colon are ignored.
//!
//! The gate counts by the name of the relay and ignores the port, because the machine behind the name has the limit.
//!
//! With patches for SMTP AUTH a user and a password follow the relay: `domain:relay:port|user|password`,
//! `relay|user|password`, `relay user password`, and others. The name of a key appears in logs, in the status file and
//! in labels, so **the gate keeps nothing of a line but the name of the relay**. No host's name has a bar, a blank or
//! another such byte, so in every tree the name ends there. The gate does not follow a line that is not clear.

#![forbid(unsafe_code)]

use std::net::IpAddr;

use crate::control::literal::{self, Literal};
use crate::control::name::{
    Hasher, NAME_MAX, is_of_host, is_word_for_all, not_of_host, without_root,
};
use crate::control::name_map::{NameEntry, NameMap, VALUE_MAX};
use crate::control::problem::{File, Kind, Problems};
use crate::control::table::{MARK, content_lines, is_utf16};
use crate::util::memory::{self, OutOfMemory};

/// The parsed file.
#[derive(Debug)]
pub struct Routes {
    lines: NameMap,
    /// Where each relay's name ends in `names`; it begins where the one before ends.
    ends: Vec<u32>,
    names: Vec<u8>,
}

impl Routes {
    /// No routes.
    #[must_use]
    pub fn new(hasher: Hasher) -> Self {
        Self { lines: NameMap::new(hasher), ends: Vec::new(), names: Vec::new() }
    }

    /// Parses a file. It has no errors, only warnings about lines that do nothing.
    ///
    /// # Errors
    /// No memory.
    pub fn parse(text: &[u8], hasher: Hasher) -> Result<(Self, Problems), OutOfMemory> {
        Self::parse_file(File::Routes, text, hasher)
    }

    /// The same for any file of this form: smtproutes, or one with senders in place of hosts.
    pub(crate) fn parse_file(
        file: File,
        text: &[u8],
        hasher: Hasher,
    ) -> Result<(Self, Problems), OutOfMemory> {
        let mut routes = Self::new(hasher);
        let mut problems = Problems::new(file);
        routes.lines = NameMap::with_room(hasher, content_lines(text).count())?;
        // qmail-remote does not skip a mark, so the line behind it is for no host there, and must not be here.
        if text.starts_with(MARK) || is_utf16(text) {
            problems.add(1, 0, Kind::RouteMark);
        }
        for (number, content) in content_lines(text) {
            let Some(colon) = content.iter().position(|&byte| byte == b':') else {
                problems.add(number, 0, Kind::RouteNoColon);
                continue;
            };
            let literal;
            let relay = match relay(&content[colon + 1..]) {
                Relay::None => &[],
                Relay::Name(name) => name,
                Relay::Address(address) => {
                    literal = Literal::new(address);
                    literal.name()
                }
                Relay::Unclear => {
                    problems.add(number, 0, Kind::RouteUnclear);
                    &[]
                }
            };
            let host = &content[..colon];
            if file != File::Routes {
                // A sender may have any character.
            } else if host.contains(&b'*') {
                problems.add(number, 0, Kind::RouteStar);
            } else if is_word_for_all(host) {
                problems.add(number, 0, Kind::RouteAll);
            } else if let Some(at) = not_of_host(host) {
                problems.add(number, at + 1, Kind::RouteNotHost(host[at]));
            }
            if colon > NAME_MAX || relay.len() > NAME_MAX {
                problems.add(number, 0, Kind::RouteTooLong);
                continue;
            }
            let at = routes.ends.len() as u32;
            if at > VALUE_MAX {
                problems.add(number, 0, Kind::TooManyRoutes);
                continue;
            }
            routes.names.try_reserve(relay.len())?;
            routes.names.extend(relay.iter().map(u8::to_ascii_lowercase));
            memory::push(&mut routes.ends, routes.names.len() as u32)?;
            routes.lines.insert(&content[..colon], at, number)?;
        }
        Ok((routes, problems))
    }

    /// The name of the relay for a host, in lower case, and a handle of the line for [`Routes::number`].
    #[must_use]
    pub fn find(&self, host: &[u8]) -> Option<(&[u8], NameEntry)> {
        self.lines.find(host).and_then(|found| self.relay(found))
    }

    /// The same for a host whose hash is known.
    #[inline]
    #[must_use]
    pub fn find_hashed(&self, hash: u64, host: &[u8]) -> Option<(&[u8], NameEntry)> {
        self.lines.find_hashed(hash, host).and_then(|found| self.relay(found))
    }

    /// The same for a sender, in a file of senders.
    pub(crate) fn find_sender(&self, sender: &[u8]) -> Option<(&[u8], NameEntry)> {
        self.lines.find_sender(sender).and_then(|found| self.relay(found))
    }

    /// The same for a host that has a line of its own.
    pub(crate) fn find_own(&self, host: &[u8]) -> Option<(&[u8], NameEntry)> {
        self.lines.find_own(host).and_then(|found| self.relay(found))
    }

    fn relay(&self, (at, place): (u32, NameEntry)) -> Option<(&[u8], NameEntry)> {
        let at = at as usize;
        let start = if at == 0 { 0 } else { self.ends[at - 1] as usize };
        let name = &self.names[start..self.ends[at] as usize];
        (!name.is_empty()).then_some((name, place))
    }

    /// The number of a line that was found, from 1.
    #[must_use]
    pub fn number(&self, place: NameEntry) -> u32 {
        self.lines.line(place)
    }

    /// How many routes it has.
    #[must_use]
    pub fn len(&self) -> usize {
        self.lines.len()
    }

    /// Whether it has no route.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.lines.is_empty()
    }
}

/// Writes the part of a file that may be kept: hosts and names of relays, and nothing else. It has the same routes.
///
/// # Errors
/// No memory.
pub fn without_secrets(text: &[u8], out: &mut memory::Text) -> Result<(), OutOfMemory> {
    for (_, content) in content_lines(text) {
        let Some(colon) = content.iter().position(|&byte| byte == b':') else { continue };
        if colon > NAME_MAX {
            continue;
        }
        let (host, address) = (&content[..colon], &content[colon + 1..]);
        let literal;
        let (open, name, close) = match relay(address) {
            Relay::None | Relay::Unclear => (&b":"[..], &[][..], &b"\n"[..]),
            Relay::Name(name) if name.len() > NAME_MAX => continue,
            Relay::Name(name) => (&b":"[..], name, &b"\n"[..]),
            Relay::Address(address) => {
                literal = Literal::new(address);
                (&b":["[..], literal.name(), &b"]\n"[..])
            }
        };
        for part in [host, open, name, close] {
            out.push(part)?;
        }
    }
    Ok(())
}

/// The part of qmail-remote's words that may be shown. A qmail-remote that does not know credentials takes them as a
/// part of the host's name, and repeats all of it: `Sorry, I couldn't find any host named relay.example|user|password.
/// (#5.1.2)`. Then nothing of the name may be shown, because it may begin with the name of the user.
#[must_use]
pub fn without_credentials(words: &[u8]) -> &[u8] {
    const BEFORE: &[u8] = b" host named ";
    let Some(at) = words.windows(BEFORE.len()).position(|window| window == BEFORE) else {
        return words;
    };
    let name = at + BEFORE.len();
    match words[name..].iter().position(|&byte| !is_of_host(byte)) {
        Some(end) if !words[name + end..].starts_with(b" (#") => &words[..name],
        _ => words,
    }
}

/// The relay of a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Relay<'a> {
    /// There is none.
    None,
    Name(&'a [u8]),
    Address(IpAddr),
    /// It may be a name or something else, such as a password.
    Unclear,
}

/// Whether a byte can follow the name of a relay, before a port or credentials.
fn ends_name(byte: u8) -> bool {
    matches!(byte, b':' | b'|' | b';' | b',' | b' ' | b'\t')
}

/// `[Relay.Example]:26` is `Relay.Example`, and so is `Relay.Example.|user|password`.
fn relay(field: &[u8]) -> Relay<'_> {
    if let [b'[', rest @ ..] = field {
        let Some(close) = rest.iter().position(|&byte| byte == b']') else { return Relay::Unclear };
        let (inner, behind) = (&rest[..close], &rest[close + 1..]);
        if behind.first().is_some_and(|&byte| !ends_name(byte)) {
            return Relay::Unclear;
        }
        return match literal::inside(inner) {
            Some(address) => Relay::Address(address),
            None if inner.iter().all(|&byte| is_of_host(byte)) => named(inner),
            None => Relay::Unclear,
        };
    }
    // s/qmail has a semicolon before the port, so an IPv6 address needs no brackets.
    let to =
        |is_end: fn(u8) -> bool| field.iter().position(|&byte| is_end(byte)).unwrap_or(field.len());
    let address = &field[..to(|byte| byte != b':' && ends_name(byte))];
    if let Some(address) = literal::bare(address) {
        return Relay::Address(address);
    }
    let (name, behind) = field.split_at(to(|byte| !is_of_host(byte)));
    match behind {
        // In `user:password@relay` the relay is not before the colon: it is only if a port follows, or if no name can
        // follow.
        [b':', port @ ..] => {
            let digits = port.iter().take_while(|byte| byte.is_ascii_digit()).count();
            match port.get(digits) {
                Some(&byte) if !ends_name(byte) && port.contains(&b'@') => Relay::Unclear,
                _ => named(name),
            }
        }
        [byte, ..] if !ends_name(*byte) => Relay::Unclear,
        _ => named(name),
    }
}

fn named(name: &[u8]) -> Relay<'_> {
    match without_root(name) {
        [] => Relay::None,
        name => literal::bare(name).map_or(Relay::Name(name), Relay::Address),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn relay(routes: &Routes, host: &str) -> Option<String> {
        routes.find(host.as_bytes()).map(|(name, _)| String::from_utf8(name.to_vec()).unwrap())
    }

    #[test]
    fn the_example_of_the_manual() {
        let (routes, problems) = Routes::parse(
            b"inside.af.mil:firewall.af.mil:26\n.af.mil:\n:heaven.af.mil\n",
            Hasher::new(1),
        )
        .unwrap();
        assert!(problems.is_empty());
        assert_eq!(relay(&routes, "inside.af.mil").as_deref(), Some("firewall.af.mil"));
        assert_eq!(relay(&routes, "x.af.mil"), None);
        assert_eq!(relay(&routes, "af.mil").as_deref(), Some("heaven.af.mil"));
    }

    #[test]
    fn relays_are_names() {
        let text =
            b"a:[10.0.0.1]:26\nb:[Mx.Example]\nc:Mx.Example.:587\nd: \ne\n# f:g\nh:[::1]\r\n";
        let (routes, problems) = Routes::parse(text, Hasher::new(1)).unwrap();
        assert_eq!(relay(&routes, "a").as_deref(), Some("10.0.0.1"));
        assert_eq!(relay(&routes, "b").as_deref(), Some("mx.example"));
        assert_eq!(relay(&routes, "c").as_deref(), Some("mx.example"));
        assert_eq!(relay(&routes, "d"), None);
        assert_eq!(relay(&routes, "h").as_deref(), Some("::1"));
        let kinds: Vec<_> = problems.iter().map(|problem| (problem.line, problem.kind)).collect();
        assert_eq!(kinds, [(5, Kind::RouteNoColon)]);
    }

    #[test]
    fn there_are_no_wildcards_and_no_marks() {
        let (routes, problems) = Routes::parse(
            b"*:relay.example\n*.example:r\nALL:r\nany:r\n.:r\nall.example:r\n@a.example:r\nu@a.example:r\n\
              192.0.2.0/24:r\n[192.0.2.1]:r\n",
            Hasher::new(1),
        )
        .unwrap();
        let kinds: Vec<_> = problems.iter().map(|problem| (problem.line, problem.kind)).collect();
        let expected = [
            (1, Kind::RouteStar),
            (2, Kind::RouteStar),
            (3, Kind::RouteAll),
            (4, Kind::RouteAll),
            (5, Kind::RouteAll),
            (7, Kind::RouteNotHost(b'@')),
            (8, Kind::RouteNotHost(b'@')),
            (9, Kind::RouteNotHost(b'/')),
        ];
        assert_eq!(kinds, expected);
        assert_eq!(relay(&routes, "a.example"), None);
        let (routes, problems) =
            Routes::parse(b"\xef\xbb\xbf:relay.example\na.example:b\n", Hasher::new(1)).unwrap();
        assert_eq!(
            problems.worst().map(|problem| (problem.line, problem.kind)),
            Some((1, Kind::RouteMark))
        );
        assert_eq!(
            (relay(&routes, "x.example"), relay(&routes, "a.example").as_deref()),
            (None, Some("b"))
        );
    }

    /// Every way in which trees, or people, write credentials into a route.
    const SECRETS: [&str; 34] = [
        "relay.example|user|S3cret",
        "relay.example.|user|S3cret",
        "relay.example:26|user|S3cret",
        "relay.example:|user|S3cret",
        "relay.example|user@relay.example|S3cret",
        "relay.example:26|user@relay.example|S3cret",
        "relay.example user S3cret",
        "relay.example:26 user S3cret",
        "relay.example\tuser\tS3cret",
        "relay.example \t|user|S3cret",
        "relay.example;26|user|S3cret",
        "relay.example,user,S3cret",
        "relay.example:26:user:S3cret",
        "relay.example:26:user@relay.example:S3cret",
        "RELAY.example|user|S3cret|192.0.2.1",
        "[relay.example]|user|S3cret",
        "[relay.example]:26|user|S3cret",
        "[relay.example] user S3cret",
        // No relay.
        "|user|S3cret",
        ":26|user|S3cret",
        " user S3cret",
        "\tuser\tS3cret",
        // Not clear.
        "user:S3cret@relay.example",
        "user:S3cret@relay.example:26",
        "user:123S3cret@relay.example",
        "user:S3c!ret@relay.example",
        "user|S3cret@relay.example",
        "user@S3cret",
        "@S3cret",
        "[relay.example|user|S3cret",
        "[user:S3cret]",
        "[relay.example]S3cret",
        "relay.example\x01S3cret",
        "relay.example/user/S3cret",
    ];

    #[test]
    fn credentials_are_no_part_of_a_name() {
        for (field, at) in SECRETS.into_iter().zip(0..) {
            let text = format!("a.example:{field}\n:{field}\n");
            let (routes, problems) = Routes::parse(text.as_bytes(), Hasher::new(1)).unwrap();
            let found = [relay(&routes, "a.example"), relay(&routes, "b.example")];
            let expected = match field {
                // A password that would have to be guessed from a name that is one.
                "user|S3cret@relay.example" => Some("user"),
                _ => (at < 18).then_some("relay.example"),
            };
            assert_eq!(found, [expected; 2].map(|name| name.map(str::to_string)), "{field}");
            let shown = format!(
                "{routes:?} {problems:?} {:?}",
                problems.iter().map(|one| one.to_string()).collect::<Vec<_>>()
            );
            assert!(!shown.to_ascii_lowercase().contains("s3cret"), "{field}: {shown}");
            // Nor in what is kept, whatever shows it.
            let kept = String::from_utf8_lossy(&routes.names).to_ascii_lowercase();
            assert!(!kept.contains("s3cret") && !kept.contains('|'), "{field}: {kept}");
        }
    }

    #[test]
    fn what_qmail_remote_repeats_is_cut() {
        const SORRY: &str = "Sorry, I couldn't find any host named ";
        for (name, kept) in [
            ("relay.example. (#5.1.2)\n", "relay.example. (#5.1.2)\n"),
            ("relay.example|user|S3cret. (#5.1.2)\n", ""),
            ("relay.example?user?S3cret. (#5.1.2)\n", ""),
            ("|user|S3cret. (#5.1.2)\n", ""),
            ("relay.example user S3cret. (#5.1.2)\n", ""),
            ("[relay.example|user|S3cret. (#5.1.2)\n", ""),
            ("", ""),
        ] {
            let words = format!("{SORRY}{name}");
            let shown = without_credentials(words.as_bytes());
            assert_eq!(shown, format!("{SORRY}{kept}").as_bytes(), "{name}");
        }
        let others = b"Connected to 192.0.2.1 but sender was rejected.\n";
        assert_eq!(without_credentials(others), others);
    }

    #[test]
    fn addresses_have_one_name() {
        for (field, expected) in [
            ("[2001:db8::25]", Some("2001:db8::25")),
            ("[2001:DB8:0::25]:26", Some("2001:db8::25")),
            ("[IPv6:2001:db8::25]:26|user|S3cret", Some("2001:db8::25")),
            ("[2001:db8::25]|user|S3cret", Some("2001:db8::25")),
            ("[::ffff:192.0.2.1]:26|user|S3cret", Some("192.0.2.1")),
            ("[192.0.2.1]|user|S3cret", Some("192.0.2.1")),
            ("192.0.2.1|user|S3cret", Some("192.0.2.1")),
            ("192.0.2.1:26", Some("192.0.2.1")),
            ("2001:DB8:0::25", Some("2001:db8::25")),
            ("2001:db8::25;26|user|S3cret", Some("2001:db8::25")),
            ("2001:db8::25|user|S3cret", Some("2001:db8::25")),
            ("[2001:db8::25", None),
            ("[2001:db8::zz]:26", None),
            ("[]", None),
        ] {
            let text = format!("a.example:{field}\n");
            let (routes, _) = Routes::parse(text.as_bytes(), Hasher::new(1)).unwrap();
            assert_eq!(relay(&routes, "a.example").as_deref(), expected, "{field}");
        }
    }

    #[test]
    fn any_bytes_give_a_name_or_none() {
        let mut random = crate::util::random::Random::new(7);
        for _ in 0..20_000 {
            let odd = b":|;, \t@[]%.-a1\xffZ";
            let field: Vec<u8> = (0..random.next() % 24)
                .map(|_| match random.next() % 4 {
                    0 => random.next() as u8,
                    _ => odd[random.next() as usize % odd.len()],
                })
                .filter(|&byte| byte != b'\n')
                .collect();
            let text = [b"a.example:", &field[..], b"\n"].concat();
            let (routes, _) = Routes::parse(&text, Hasher::new(1)).unwrap();
            let Some((name, _)) = routes.find(b"a.example") else { continue };
            assert!(crate::control::name::is_host(name), "{}", field.escape_ascii());
        }
    }

    #[test]
    fn too_long_is_not_followed() {
        let text = [&b"a:"[..], &b"x".repeat(300), b"\n", &b"y".repeat(300), b":b\nc:d\n"].concat();
        let (routes, problems) = Routes::parse(&text, Hasher::new(1)).unwrap();
        assert_eq!(routes.len(), 1);
        assert_eq!(problems.iter().count(), 2);
    }
}
