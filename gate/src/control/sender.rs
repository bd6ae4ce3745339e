//! control/authsenders, as qmail-remote reads it in trees with Erwin Hoffmann's patch for SMTP AUTH: it gives the relay
//! of a sender, and comes before smtproutes. sagredo's qmail, brdelphus's, s/qmail, and notqmail's branches
//! patches/notqmail/smtp-auth, patches/Gentoo/auth+tls and netqmail-smtp-auth have it, all with the same look-up. The
//! lines are those of smtproutes with a sender in place of the host:
//!
//! ```text
//! info@a.example:relay.example:587|user|password
//! @a.example:relay2.example|user|password
//! .sub.example:relay3.example
//! :relay.example
//! ```
//!
//! qmail-remote looks a sender up in quoted form (RFC 821): the whole address, then what begins with each of its dots
//! and `@`, the longest first, then the empty name. So `first.last@a.example` matches `.last@a.example`, `@a.example`
//! and `.example`, but not `.a.example`, which is for hosts below it. The first line that matches ends the search. If
//! it has no relay, smtproutes decides.
//!
//! The build of the tree finds out whether its qmail-remote reads this file: see [`Reads`].

#![forbid(unsafe_code)]

use crate::control::name::{Hasher, NAME_MAX};
use crate::control::name_map::NameEntry;
use crate::control::problem::{File, Problems};
use crate::control::route::Routes;
use crate::util::memory::OutOfMemory;

/// Where the tree's qmail-remote looks for a relay, besides smtproutes, as far as the gate follows it. The Makefile of
/// a patched tree finds it in qmail-remote.c: at run time qmailr cannot read the program.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reads {
    /// control/authsenders, by the sender.
    pub senders: Asked,
    /// The host `!@` of control/smtproutes, for mail without a sender: s/qmail, aQmail, IndiMail.
    pub bounces: Asked,
}

/// Whether qmail-remote looks something up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Asked {
    /// It does not.
    #[default]
    No,
    /// It does.
    Yes,
}

/// The host for mail without a sender.
pub const BOUNCES: &[u8] = b"!@";

impl Reads {
    /// Reads words that are separated by blanks, and ignores those that it does not know.
    #[must_use]
    pub fn parse(words: &[u8]) -> Self {
        let mut this = Self::default();
        for word in words.split(|&byte| byte == b' ') {
            match word {
                b"authsenders" => this.senders = Asked::Yes,
                BOUNCES => this.bounces = Asked::Yes,
                _ => {}
            }
        }
        this
    }

    /// Whether the sender of a mail matters.
    #[must_use]
    pub fn any(self) -> bool {
        self != Self::default()
    }
}

/// The parsed file.
#[derive(Debug)]
pub struct Senders {
    routes: Routes,
}

impl Senders {
    /// No senders.
    #[must_use]
    pub fn new(hasher: Hasher) -> Self {
        Self { routes: Routes::new(hasher) }
    }

    /// Parses a file. It has no errors, only warnings about lines that do nothing.
    ///
    /// # Errors
    /// No memory.
    pub fn parse(text: &[u8], hasher: Hasher) -> Result<(Self, Problems), OutOfMemory> {
        let (routes, problems) = Routes::parse_file(File::Senders, text, hasher)?;
        Ok((Self { routes }, problems))
    }

    /// The name of the relay for a sender, in lower case. The sender is as qmail-rspawn reads it, without zero bytes at
    /// the end.
    #[must_use]
    pub fn find(&self, sender: &[u8]) -> Option<(&[u8], NameEntry)> {
        let mut quoted = Quoted::new();
        self.routes.find_sender(quoted.of(sender))
    }

    /// The number of a line that was found, from 1.
    #[must_use]
    pub fn number(&self, place: NameEntry) -> u32 {
        self.routes.number(place)
    }

    /// How many lines it has.
    #[must_use]
    pub fn len(&self) -> usize {
        self.routes.len()
    }

    /// Whether it has none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.routes.is_empty()
    }
}

/// Room for the end of an address. No name in the map is longer than [`NAME_MAX`], so the beginning of a longer address
/// does not matter.
struct Quoted {
    bytes: [u8; NAME_MAX + 1],
}

impl Quoted {
    fn new() -> Self {
        Self { bytes: [0; NAME_MAX + 1] }
    }

    /// An address as qmail-remote's addrmangle() makes it: with quotes around a local part that needs them.
    fn of<'a>(&'a mut self, sender: &'a [u8]) -> &'a [u8] {
        let Some(at) = sender.iter().rposition(|&byte| byte == b'@') else { return sender };
        let (local, domain) = sender.split_at(at);
        if !needs_quotes(local) {
            return sender;
        }
        let quoted = local.iter().rev().flat_map(|&byte| {
            let backslash = matches!(byte, b'\r' | b'\n' | b'"' | b'\\').then_some(b'\\');
            std::iter::once(byte).chain(backslash)
        });
        let quote = || std::iter::once(b'"');
        let backwards = domain.iter().rev().copied().chain(quote()).chain(quoted).chain(quote());
        let mut start = self.bytes.len();
        for (to, byte) in self.bytes.iter_mut().rev().zip(backwards) {
            *to = byte;
            start -= 1;
        }
        &self.bytes[start..]
    }
}

/// As quote_need() of qmail's quote.c.
fn needs_quotes(local: &[u8]) -> bool {
    let is_odd = |&byte: &u8| {
        !byte.is_ascii_graphic()
            || matches!(
                byte,
                b'"' | b'(' | b')' | b',' | b':' | b';' | b'<' | b'>' | b'@' | b'[' | b'\\' | b']'
            )
    };
    local.is_empty()
        || local.iter().any(is_odd)
        || local.starts_with(b".")
        || local.ends_with(b".")
        || local.windows(2).any(|pair| pair == b"..")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn relay(senders: &Senders, sender: &str) -> Option<(String, u32)> {
        let (name, place) = senders.find(sender.as_bytes())?;
        Some((String::from_utf8(name.to_vec()).unwrap(), senders.number(place)))
    }

    fn parse(text: &str) -> Senders {
        Senders::parse(text.as_bytes(), Hasher::new(1)).unwrap().0
    }

    #[test]
    fn the_longest_comes_first() {
        let senders = parse(
            "Info@A.Example:relay1.example:26|other|otherpw\n.last@a.example:relay2.example\n\
             @a.example:relay3.example|u|p\n.example:relay4.example u p\n@none.example:\n# x@y:z\nno colon\n",
        );
        let found = |sender| relay(&senders, sender);
        let line = |name: &str, line| Some((name.to_string(), line));
        assert_eq!(found("info@a.example"), line("relay1.example", 1));
        assert_eq!(found("INFO@a.EXAMPLE"), line("relay1.example", 1));
        assert_eq!(found("first.last@a.example"), line("relay2.example", 2));
        assert_eq!(found("last@a.example"), line("relay3.example", 3));
        assert_eq!(found("x.info@a.example"), line("relay3.example", 3));
        assert_eq!(found("x@b.example"), line("relay4.example", 4));
        assert_eq!(found("x@b.a.example"), line("relay4.example", 4), "no @a.example in it");
        assert_eq!(found("x@none.example"), None, "it ends the search");
        assert_eq!(found("x@other.test"), None);
        assert_eq!(found(""), None);
        assert_eq!(found("#@[]"), None);
        let all = parse(":relay.example:587|e=mc2|testpass\n");
        for sender in ["", "#@[]", "x@a.example", "no-domain", "@", "."] {
            assert_eq!(relay(&all, sender), line("relay.example", 1), "{sender}");
        }
        let last = parse("a@b:one\nA@B:two\n.b:x\n");
        assert_eq!(relay(&last, "a@b"), line("two", 2), "the last line of a name counts");
        assert_eq!(relay(&last, ".b"), line("x", 3));
    }

    #[test]
    fn it_is_looked_up_as_it_is_quoted() {
        let senders = parse(
            "\"a b\"@c.example:one\na b@c.example:wrong\n\"x\\\"y\"@c.example:two\n\"\"@c.example:three\n\
             \"a..b\"@c.example:four\n.b\"@c.example:five\n@inner\"@c.example:six\n",
        );
        let found = |sender| relay(&senders, sender).map(|(name, _)| name);
        assert_eq!(found("a b@c.example").as_deref(), Some("one"));
        assert_eq!(found("x\"y@c.example").as_deref(), Some("two"));
        assert_eq!(found("@c.example").as_deref(), Some("three"));
        assert_eq!(found("a..b@c.example").as_deref(), Some("four"));
        assert_eq!(found("a c.b@c.example").as_deref(), Some("five"));
        assert_eq!(found("x@inner@c.example").as_deref(), Some("six"));
        assert_eq!(found("plain@c.example"), None);
    }

    #[test]
    fn however_long_it_is_only_its_end_is_looked_at() {
        let senders = parse("@c.example:one\n.y@d.example:two\n");
        for length in [200, 240, 255, 256, 300, 65_000] {
            for (fill, domain, expected) in [
                ("a", "c", Some("one")),
                (".", "c", Some("one")),
                ("@", "c", Some("one")),
                ("\"", "c", Some("one")),
                (" ", "e", None),
            ] {
                let sender = format!("{}@{domain}.example", fill.repeat(length));
                let found = relay(&senders, &sender).map(|(name, _)| name);
                assert_eq!(found.as_deref(), expected, "{length} {fill}");
            }
            let sender = format!("{}.y@d.example", "x".repeat(length));
            assert_eq!(relay(&senders, &sender).map(|found| found.1), Some(2), "{length}");
        }
    }

    #[test]
    fn no_credential_is_kept() {
        let text = "@a.example:relay.example|S3cret|S3cret\nS3cret:relay.example S3cret S3cret\nu@b.example|S3cret|S3cret\n";
        let (senders, problems) = Senders::parse(text.as_bytes(), Hasher::new(1)).unwrap();
        let said = problems.iter().map(|problem| problem.to_string()).collect::<Vec<_>>();
        assert_eq!(said, ["control/authsenders:3: no colon: qmail-remote ignores this line"]);
        assert!(!format!("{senders:?} {problems:?}").contains("S3cret"));
        let mut kept = crate::util::memory::Text::default();
        crate::control::route::without_secrets(text.as_bytes(), &mut kept).unwrap();
        assert_eq!(kept.bytes, b"@a.example:relay.example\nS3cret:relay.example\n");
    }

    #[test]
    fn what_qmail_remote_reads() {
        let reads = |words: &str| Reads::parse(words.as_bytes());
        assert_eq!(reads(""), Reads::default());
        assert!(!reads("qmail-remote reads:").any());
        assert_eq!(
            reads("qmail-remote reads: authsenders !@"),
            Reads { senders: Asked::Yes, bounces: Asked::Yes }
        );
        assert_eq!(reads("!@ other"), Reads { bounces: Asked::Yes, ..Reads::default() });
    }
}
