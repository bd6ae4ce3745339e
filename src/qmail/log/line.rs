//! Parses a line of a log: first times, hosts, programs and containers, then what qmail-send says.
//!
//! The words before qmail-send's are read one by one, so loggers may put them in any order: syslog's host and
//! program, a facility, a container, the words of RFC 5424. If there are several times, the most exact one counts. If
//! several are equally exact, the last one counts, which was written first.

use super::event::{self, Event, LoggedEvent};
use super::stamp::{Numbers, Stamp, stamp};

/// The most words before qmail-send's.
const WORDS: usize = 12;

/// A line of qmail-send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Line<'a> {
    /// Its time; `None` if the logger wrote none.
    pub stamp: Option<Stamp>,
    /// A hash of its host, program and queue. Lines with the same origin belong together, and numbers of deliveries are
    /// unique among them.
    pub origin: u64,
    /// The program or container, for messages; empty if none is named.
    pub tag: &'a [u8],
    /// What it says.
    pub event: Event<'a>,
}

/// A line that is not from qmail-send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Foreign<'a> {
    /// Its time, if it has one.
    pub stamp: Option<Stamp>,
    /// The program that wrote it, if it is named.
    pub tag: &'a [u8],
    /// It begins like a line about a delivery.
    pub is_broken: bool,
}

/// Parses a line. `outer` is the time that its record has, if there is one, and `source` a hash of the record's writer.
///
/// # Errors
/// The line is not from qmail-send.
pub fn read<'a>(
    line: &'a [u8],
    outer: Option<Stamp>,
    source: u64,
) -> Result<Line<'a>, Foreign<'a>> {
    let mut best = outer;
    let mut origin = source;
    let mut tag: &[u8] = b"";
    let mut is_broken = false;
    let mut may_be_weak = true;
    let mut rest = priority(line.trim_ascii_start());
    for at in 0..WORDS {
        let numbers = if at == 0 { Numbers::Short } else { Numbers::Long };
        while let Some((stamp, behind)) = stamp(rest, numbers) {
            if best.is_none_or(|best| stamp.precision >= best.precision) {
                best = Some(stamp);
            }
            (rest, may_be_weak) = (behind, true);
        }
        if let Some(behind) = structured_data(rest) {
            (rest, may_be_weak) = (without_mark(behind), true);
        }
        if let Some(LoggedEvent { event, queue }) = event::parse(rest)
            && (may_be_weak || is_strong(&event))
        {
            let origin = queue.iter().fold(origin, |origin, name| mixed(origin, name));
            return Ok(Line { stamp: best, origin, tag, event });
        }
        is_broken |= may_be_weak && event::is_meant_as_delivery(rest);
        let end = rest.iter().position(|&byte| byte == b' ').unwrap_or(rest.len());
        let word = &rest[..end];
        rest = without_mark(rest[end..].trim_ascii_start());
        if rest.is_empty() {
            break;
        }
        let name = named(word);
        may_be_weak =
            matches!(word, [.., b':' | b']' | b'|'] | [b'-' | b'F' | b'P']) || word == b"1";
        if word.ends_with(b":") && tag.is_empty() {
            tag = name;
        }
        // A number is a process, which may differ for each line, so it names no origin.
        if !name.iter().all(|byte| byte.is_ascii_digit() || *byte == b'-') {
            origin = mixed(origin, name);
        }
    }
    Err(Foreign { stamp: best, tag, is_broken })
}

/// Returns the text behind `<22>` or `<22>1 `, which syslog puts before a line.
fn priority(line: &[u8]) -> &[u8] {
    let Some(rest) = line.strip_prefix(b"<") else { return line };
    match event::number(rest) {
        Some((_, behind)) if behind.starts_with(b">") => {
            behind.strip_prefix(b">1 ").unwrap_or(&behind[1..])
        }
        _ => line,
    }
}

/// Returns the text behind the byte order mark that RFC 5424 puts before UTF-8.
fn without_mark(text: &[u8]) -> &[u8] {
    text.strip_prefix("\u{feff}".as_bytes()).unwrap_or(text)
}

/// Returns the text behind the structured data of RFC 5424: `[meta sequenceId="5"][origin ip="192.0.2.1"] `. It differs
/// from line to line, so it names no origin. Brackets without a parameter do not count, because other loggers use them.
fn structured_data(text: &[u8]) -> Option<&[u8]> {
    let mut rest = text;
    while let Some(inner) = rest.strip_prefix(b"[") {
        let mut parameters = &inner[sd_name(inner)..];
        if parameters.len() == inner.len() || !parameters.starts_with(b" ") {
            return None;
        }
        rest = loop {
            match parameters {
                [b']', behind @ ..] => break behind,
                [b' ', parameter @ ..] => {
                    let end = sd_name(parameter);
                    let value = parameter[end..].strip_prefix(b"=\"").filter(|_| end > 0)?;
                    parameters = &value[sd_value(value)? + 1..];
                }
                _ => return None,
            }
        };
    }
    let trimmed = rest.trim_ascii_start();
    (rest.len() < text.len() && trimmed.len() < rest.len()).then_some(trimmed)
}

/// Returns the length of a name of structured data.
fn sd_name(text: &[u8]) -> usize {
    let is_over = |byte: &u8| matches!(byte, b'=' | b']' | b'"') || !byte.is_ascii_graphic();
    text.iter().position(is_over).unwrap_or(text.len())
}

/// Returns the position of the quote that ends a value. A backslash escapes the next byte.
fn sd_value(text: &[u8]) -> Option<usize> {
    let mut escaped = false;
    text.iter().position(|&byte| {
        let is_end = byte == b'"' && !escaped;
        escaped = byte == b'\\' && !escaped;
        is_end
    })
}

/// Returns a word without its colon and without a process number in brackets.
fn named(word: &[u8]) -> &[u8] {
    let word = word.strip_suffix(b":").unwrap_or(word);
    match word.iter().rposition(|&byte| byte == b'[') {
        Some(at) if at > 0 && word.ends_with(b"]") => {
            let inner = &word[at + 1..word.len() - 1];
            if inner.iter().all(u8::is_ascii_digit) { &word[..at] } else { word }
        }
        _ => word,
    }
}

/// Returns whether an event cannot be mistaken, wherever in a line it stands.
fn is_strong(event: &Event<'_>) -> bool {
    matches!(event, Event::Start { .. } | Event::End { .. } | Event::Status(_))
}

/// Adds a name to a hash (FNV-1a); a zero byte ends each name.
pub(super) fn mixed(hash: u64, name: &[u8]) -> u64 {
    name.iter()
        .chain(&[0])
        .fold(hash, |hash, &byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3))
}
