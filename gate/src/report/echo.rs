//! The server's own words in a reply, without what it repeats of the mail.
//!
//! Servers repeat addresses and names: `450 4.7.1 <dip@fullthrottle.example>: Recipient address rejected`, `451 4.3.5
//! ratelimit.example: Sender domain rejected`. A stranger who chooses an address chooses these words, so they must not
//! decide what a reply means. [`Words`] is a reply without them:
//!
//! - What is between `<` and `>` is left out; only `<>` stays. The byte behind the bracket must not be blank. Quoted
//!   local parts and nested brackets are understood. Without a `>` in its line, an address ends at the first blank.
//! - An address without brackets, `local@domain`, becomes `<>`, whether this delivery sent it or not.
//! - So do the names that this delivery sent: the domains of its sender and its recipient, the HELO name, and names
//!   below these.
//! - A local part alone may be an ordinary word (`service@`, `mail@`). It stays, but a phrase within it does not count:
//!   if the recipient is `fullthrottle@`, `fullthrottle is over quota` does not mean throttling; if the sender is
//!   `mail@`, `too much mail` still counts. The same goes for a name without a dot.
//!
//! Each slot keeps hash and length of what was sent; copies of 65000 envelopes would cost more memory than everything
//! else here. So a local part is found only as a whole, and not if the server encodes it; together with its domain it
//! is found in any encoding.

#![forbid(unsafe_code)]

use crate::control::name::{Hasher, domain_of, without_root};

/// How much of a reply is read, in bytes, not counting what is left out.
pub const WORDS_MAX: usize = 1024;

/// The sender and the recipient of a delivery, as hashes and lengths in bytes. The recipient's domain is here only if
/// [`Envelope::with_domain`] has added it. A length of 0 means that the part is missing, or is longer than 255.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Envelope {
    hashes: [u32; 4],
    lengths: [u8; 4],
}

impl Envelope {
    /// Nothing is known.
    pub const NONE: Self = Self { hashes: [0; 4], lengths: [0; 4] };

    /// The envelope of a sender and a recipient as qmail-rspawn reads them, with zero bytes at the end.
    #[must_use]
    pub fn new(hasher: &Hasher, sender: &[u8], recipient: &[u8]) -> Self {
        let (sender, of_sender) = halves(sender);
        let (recipient, _) = halves(recipient);
        let mut this = Self::NONE;
        for (at, part) in [sender, recipient, of_sender].into_iter().enumerate() {
            this.put(at, hasher, part);
        }
        this
    }

    /// The same with the recipient's domain, if [`Own::names`] does not have it.
    #[must_use]
    pub fn with_domain(mut self, hasher: &Hasher, recipient: &[u8]) -> Self {
        self.put(3, hasher, halves(recipient).1);
        self
    }

    fn put(&mut self, at: usize, hasher: &Hasher, part: &[u8]) {
        if let Ok(length) = u8::try_from(part.len())
            && length > 0
        {
            self.hashes[at] = hasher.hash(part) as u32;
            self.lengths[at] = length;
        }
    }
}

/// Local part and domain.
fn halves(address: &[u8]) -> (&[u8], &[u8]) {
    let end = address.iter().rposition(|&byte| byte != 0).map_or(0, |last| last + 1);
    let address = &address[..end];
    match domain_of(address) {
        Some(domain) => (&address[..end - domain.len() - 1], without_root(domain)),
        None => (address, &[]),
    }
}

/// What a delivery sent.
#[derive(Clone, Copy, Debug)]
pub struct Own<'a> {
    /// The hasher of the envelope.
    pub hasher: Hasher,
    /// Sender and recipient.
    pub envelope: Envelope,
    /// The domain of the recipient, and the name for HELO. Empty: not known.
    pub names: [&'a [u8]; 2],
}

/// A part that was sent.
#[derive(Clone, Copy)]
struct SentText {
    hash: u32,
    length: usize,
}

/// Which part of an address it was.
#[derive(Clone, Copy, PartialEq, Eq)]
enum SentKind {
    Local,
    Name,
}

impl Own<'_> {
    /// Nothing is known.
    #[must_use]
    pub fn unknown() -> Self {
        Self { hasher: Hasher::new(0), envelope: Envelope::NONE, names: [&[]; 2] }
    }

    /// All that is known. A missing part has length 0.
    fn sent(&self) -> [(SentKind, SentText); 6] {
        let of_envelope = |at: usize| SentText {
            hash: self.envelope.hashes[at],
            length: usize::from(self.envelope.lengths[at]),
        };
        let of_name = |name: &[u8]| SentText { hash: self.hash(name), length: name.len() };
        [
            (SentKind::Local, of_envelope(0)),
            (SentKind::Local, of_envelope(1)),
            (SentKind::Name, of_envelope(2)),
            (SentKind::Name, of_envelope(3)),
            (SentKind::Name, of_name(self.names[0])),
            (SentKind::Name, of_name(self.names[1])),
        ]
    }

    fn hash(&self, text: &[u8]) -> u32 {
        self.hasher.hash(text) as u32
    }
}

/// A reply in lower case, all its lines joined, with one blank in place of several, and without what the server
/// repeats. It begins with its code and its enhanced code, if it has one.
pub(crate) struct Words {
    bytes: [u8; WORDS_MAX],
    len: usize,
    /// A bit for each byte of a word that was sent and may be an ordinary word.
    repeated: [u64; WORDS_MAX / 64],
}

/// Takes the place of a byte above 127, which may be part of an address, until addresses have been found.
const NOT_ASCII: u8 = 0x7f;

impl Words {
    pub(crate) const fn new() -> Self {
        Self { bytes: [0; WORDS_MAX], len: 0, repeated: [0; WORDS_MAX / 64] }
    }

    /// The words.
    pub(crate) fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }

    /// The words without a blank at the end.
    pub(crate) fn text(&self) -> &[u8] {
        let words = self.as_bytes();
        words.strip_suffix(b" ").unwrap_or(words)
    }

    /// Whether one of these phrases is in the server's own words.
    pub(crate) fn has_any(&self, phrases: &[&str]) -> bool {
        phrases.iter().any(|phrase| self.find(phrase.as_bytes()).is_some())
    }

    /// The first position of the phrase in the server's own words.
    pub(crate) fn find(&self, phrase: &[u8]) -> Option<usize> {
        let is_own = |&at: &usize| (at..at + phrase.len()).any(|at| !self.is_repeated(at));
        self.as_bytes()
            .windows(phrase.len())
            .enumerate()
            .filter_map(|(at, window)| (window == phrase).then_some(at))
            .find(is_own)
    }

    fn is_repeated(&self, at: usize) -> bool {
        self.repeated[at / 64] >> (at % 64) & 1 == 1
    }

    /// Adds a line of a reply, without what is in brackets.
    pub(crate) fn add_line(&mut self, line: &[u8]) {
        let mut rest = line;
        // If one address is not closed in this line, none behind it is.
        let mut closes = true;
        while let [byte, behind @ ..] = rest
            && self.len < WORDS_MAX
        {
            if *byte != b'<' || behind.first().is_none_or(u8::is_ascii_whitespace) {
                self.push(*byte);
                rest = behind;
                continue;
            }
            let length = if closes { closed(rest) } else { None };
            closes = length.is_some();
            self.push(b'<');
            self.push(b'>');
            rest = &rest[length.unwrap_or_else(|| open(rest))..];
        }
        self.push(b' ');
    }

    /// Adds a byte, but no second blank.
    pub(crate) fn push(&mut self, byte: u8) {
        let byte = match byte {
            0x21..=0x7e => byte.to_ascii_lowercase(),
            0x80.. => NOT_ASCII,
            _ => b' ',
        };
        if byte == b' ' && self.len > 0 && self.bytes[self.len - 1] == b' ' {
            return;
        }
        if self.len < WORDS_MAX {
            self.bytes[self.len] = byte;
            self.len += 1;
        }
    }

    /// Removes what else the server repeats. Call it when all lines have been added.
    pub(crate) fn forget(&mut self, own: &Own<'_>) {
        let sent = own.sent();
        self.forget_addresses(own, &sent);
        self.forget_names(own, &sent);
        self.mark_words(own, &sent);
        for byte in &mut self.bytes[..self.len] {
            if *byte == NOT_ASCII {
                *byte = b' ';
            }
        }
    }

    /// Removes addresses without brackets.
    fn forget_addresses(&mut self, own: &Own<'_>, sent: &[(SentKind, SentText)]) {
        let mut compaction = Compaction::default();
        while let Some(at) = compaction.next(self, b'@') {
            let before = &self.bytes[compaction.read..at];
            let length = match before {
                [head @ .., b'"'] => {
                    let quote = head.iter().rposition(|&byte| byte == b'"');
                    quote.map_or(1, |quote| before.len() - quote)
                }
                _ => before.iter().rev().take_while(|&&byte| is_atom(byte)).count(),
            };
            // It may be a local part with blanks that the server prints without quotes.
            let known = sent.iter().filter(|(part, sent)| {
                let start = before.len().checked_sub(sent.length);
                *part == SentKind::Local
                    && sent.length > length
                    && start.is_some_and(|start| own.hash(&before[start..]) == sent.hash)
            });
            let length = known.map(|(_, sent)| sent.length).max().unwrap_or(length);
            let behind = &self.bytes[at + 1..self.len];
            let domain = match behind {
                [b'[', inner @ ..] => {
                    inner.iter().position(|&byte| byte == b']').map_or(0, |end| end + 2)
                }
                _ => behind.iter().take_while(|&&byte| is_name(byte)).count(),
            };
            // Otherwise the @ is no part of an address: `max 10 msgs @ once`.
            if domain > 0 {
                compaction.leave_out(self, at - length, at + 1 + domain);
            } else {
                compaction.keep(self, at + 1);
            }
        }
        compaction.end(self);
    }

    /// Removes names that were sent, and names below these.
    fn forget_names(&mut self, own: &Own<'_>, sent: &[(SentKind, SentText)]) {
        if sent.iter().all(|(part, sent)| *part == SentKind::Local || sent.length == 0) {
            return;
        }
        let mut compaction = Compaction::default();
        while let Some(start) = compaction.next_that(self, is_name) {
            let rest = &self.bytes[start..self.len];
            let end = rest.iter().position(|&byte| !is_name(byte)).unwrap_or(rest.len());
            let name = without_root(&rest[..end]);
            let is_sent = |name: &[u8]| {
                let same = |(part, sent): &(SentKind, SentText)| {
                    *part == SentKind::Name
                        && sent.length == name.len()
                        && own.hash(name) == sent.hash
                };
                name.contains(&b'.') && sent.iter().any(same)
            };
            let parents = (0..name.len()).filter(|&at| name[at] == b'.').map(|at| &name[at + 1..]);
            if std::iter::once(name).chain(parents).any(is_sent) {
                compaction.leave_out(self, start, start + name.len());
            }
            compaction.keep(self, start + end);
        }
        compaction.end(self);
    }

    /// Marks words that were sent and may be ordinary words.
    fn mark_words(&mut self, own: &Own<'_>, sent: &[(SentKind, SentText)]) {
        for (_, sent) in sent.iter().filter(|(_, sent)| (1..=self.len).contains(&sent.length)) {
            for start in 0..=self.len - sent.length {
                let end = start + sent.length;
                let joins = |at: usize| is_name(self.bytes[at]) && self.bytes[at] != b'.';
                let within = |at: usize| at > 0 && at < self.len && joins(at - 1) && joins(at);
                if within(start) || within(end) || own.hash(&self.bytes[start..end]) != sent.hash {
                    continue;
                }
                for at in start..end {
                    self.repeated[at / 64] |= 1 << (at % 64);
                }
            }
        }
    }
}

/// Removes parts of the words in one pass: what stays is moved to the front.
#[derive(Default)]
struct Compaction {
    read: usize,
    written: usize,
}

impl Compaction {
    fn next(&self, words: &Words, byte: u8) -> Option<usize> {
        self.next_that(words, |other| other == byte)
    }

    fn next_that(&self, words: &Words, is_it: impl Fn(u8) -> bool) -> Option<usize> {
        let rest = &words.bytes[self.read..words.len];
        rest.iter().position(|&byte| is_it(byte)).map(|at| self.read + at)
    }

    fn keep(&mut self, words: &mut Words, until: usize) {
        words.bytes.copy_within(self.read..until, self.written);
        self.written += until - self.read;
        self.read = until;
    }

    /// From `start` to `end`, two bytes at least.
    fn leave_out(&mut self, words: &mut Words, start: usize, end: usize) {
        self.keep(words, start);
        words.bytes[self.written..self.written + 2].copy_from_slice(b"<>");
        self.written += 2;
        self.read = end;
    }

    fn end(mut self, words: &mut Words) {
        self.keep(words, words.len);
        words.len = self.written;
    }
}

/// The length of an address in brackets, with both brackets; None: they do not match.
fn closed(text: &[u8]) -> Option<usize> {
    let (mut depth, mut quoted, mut before) = (0, false, 0);
    let mut bytes = text.iter().enumerate();
    while let Some((at, &byte)) = bytes.next() {
        match byte {
            b'\\' if quoted => {
                bytes.next();
            }
            b'"' => quoted = !quoted && matches!(before, b'<' | b'.' | b':' | b','),
            b'<' if !quoted => depth += 1,
            b'>' if !quoted => {
                depth -= 1;
                if depth == 0 {
                    return Some(at + 1);
                }
            }
            _ => {}
        }
        before = byte;
    }
    None
}

/// The length of an address whose brackets do not match.
fn open(text: &[u8]) -> usize {
    match text.iter().position(|&byte| byte == b'>' || byte.is_ascii_whitespace()) {
        Some(at) if text[at] == b'>' => at + 1,
        Some(at) => at,
        None => text.len(),
    }
}

fn is_letter(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == NOT_ASCII
}

/// Whether a byte can be part of a name.
fn is_name(byte: u8) -> bool {
    is_letter(byte) || matches!(byte, b'.' | b'-' | b'_')
}

/// Whether a byte can be in a local part without quotes (RFC 5322, 3.2.3).
fn is_atom(byte: u8) -> bool {
    is_name(byte)
        || matches!(
            byte,
            b'!' | b'#' | b'$' | b'%' | b'&' | b'\'' | b'*' | b'+' | b'/' | b'=' | b'?'
        )
        || matches!(byte, b'^' | b'`' | b'{' | b'|' | b'}' | b'~')
}
