//! qmail-send's log: time stamps and the lines about deliveries.
//!
//! Stamps are what accustamp and splogger write (`1234567890.123456`), multilog (`@40000000499602dc...`), tai64nlocal and
//! ISO 8601 (`2009-02-13 23:31:30.123456`), and syslog, with or without one of the others behind it
//! (`Feb 13 23:31:30 host qmail: `). What is between the stamp and the line is syslog's host and tag.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use crate::error::Error;

/// A line that is longer is cut: no line about a delivery's start is, and the ends are told by their beginnings.
const LINE_MAX: usize = 16 << 10;

/// What a line tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event<'a> {
    /// A delivery to a remote recipient has been handed to qmail-rspawn.
    Start {
        /// Its number, which counts up from 1 in a qmail-send's life.
        number: u64,
        /// The message's number in the queue.
        message: u64,
        /// The address.
        recipient: &'a [u8],
    },
    /// A local delivery; its numbers are from the same count.
    StartLocal {
        /// Its number.
        number: u64,
    },
    /// A delivery has been reported.
    End {
        /// Its number.
        number: u64,
        /// How.
        end: End,
        /// What it said, as qmail-send writes it: `_` for a space, `/` for a line feed, `?` for what cannot be printed.
        text: &'a [u8],
    },
    /// concurrencyremote, as qmail-send has it.
    Status {
        /// The most remote deliveries.
        concurrency_remote: u32,
    },
    /// A line of qmail-send that has nothing to do with this.
    Other,
}

/// How a delivery ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The mail was taken.
    Success,
    /// It bounces.
    Failure,
    /// It is tried again.
    Deferral,
    /// qmail-send did not understand the report.
    Mangled,
    /// A gate has answered: it was not tried.
    Busy,
    /// A gate's answer, too: it was tried, and refused because there were too many.
    Refused,
}

/// Why a line cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unusable {
    /// It has no time stamp.
    NoStamp,
    /// It is not a line of qmail-send.
    Foreign,
}

/// How exact a time stamp is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Precision {
    /// Whole seconds.
    Seconds,
    /// Parts of a second.
    Fine,
}

/// A time in microseconds since 1970, or since a new year of which nobody knows which, and how exact it is.
pub type Stamp = (i64, Precision);

/// Reads a line.
///
/// # Errors
/// It cannot be used.
pub fn parse(line: &[u8]) -> Result<(Stamp, Event<'_>), Unusable> {
    let (stamp, rest) = stamp(line).ok_or(Unusable::NoStamp)?;
    if let Some(event) = event(rest) {
        return Ok((stamp, event));
    }
    // Behind a stamp of syslog: `host tag: `, and perhaps another stamp, which is the better one.
    let colon = rest.windows(2).position(|pair| pair == b": ").ok_or(Unusable::Foreign)?;
    let rest = &rest[colon + 2..];
    let (stamp, rest) = self::stamp(rest).unwrap_or((stamp, rest));
    event(rest).map(|event| (stamp, event)).ok_or(Unusable::Foreign)
}

/// The time at the beginning of a line, and what is behind it.
fn stamp(line: &[u8]) -> Option<(Stamp, &[u8])> {
    let (stamp, rest) = match line {
        [b'@', hex @ ..] => tai64n(hex)?,
        [b'0'..=b'9', _, _, _, b'-', ..] => date(line)?,
        [b'0'..=b'9', ..] => seconds(line)?,
        _ => syslog(line)?,
    };
    Some((stamp, rest.strip_prefix(b" ")?))
}

const SECOND: i64 = 1_000_000;

/// 16 hexadecimal digits of TAI seconds, 8 of nanoseconds.
fn tai64n(text: &[u8]) -> Option<(Stamp, &[u8])> {
    const UNIX: i64 = (1 << 62) + 10;
    let hex = |digits: &[u8]| {
        let digits = std::str::from_utf8(digits).ok()?;
        if digits.starts_with('+') {
            return None;
        }
        i64::from_str_radix(digits, 16).ok()
    };
    let secs = hex(text.get(..16)?)?.checked_sub(UNIX)?;
    let nanos = hex(text.get(16..24)?)?;
    let micros = secs.checked_mul(SECOND)?.checked_add(nanos / 1000)?;
    Some(((micros, Precision::Fine), &text[24..]))
}

/// A decimal number, and what is behind it.
fn number(text: &[u8]) -> Option<(u64, &[u8])> {
    let end = text.iter().position(|byte| !byte.is_ascii_digit()).unwrap_or(text.len());
    let digits = std::str::from_utf8(&text[..end]).ok()?;
    Some((digits.parse().ok()?, &text[end..]))
}

/// A fraction of a second behind a dot, or a comma, in microseconds.
fn fraction(text: &[u8]) -> (i64, Precision, &[u8]) {
    let digits = match text {
        [b'.' | b',', digits @ ..] if digits.first().is_some_and(u8::is_ascii_digit) => digits,
        _ => return (0, Precision::Seconds, text),
    };
    let end = digits.iter().position(|byte| !byte.is_ascii_digit()).unwrap_or(digits.len());
    let micros = (0..6).fold(0, |micros, at| {
        let digit = if at < end { i64::from(digits[at] - b'0') } else { 0 };
        micros * 10 + digit
    });
    (micros, Precision::Fine, &digits[end..])
}

/// `1234567890.123456`
fn seconds(text: &[u8]) -> Option<(Stamp, &[u8])> {
    let (secs, rest) = number(text)?;
    let (micros, precision, rest) = fraction(rest);
    let secs = i64::try_from(secs).ok()?.checked_mul(SECOND)?;
    Some(((secs.checked_add(micros)?, precision), rest))
}

/// `2009-02-13 23:31:30.123456`, also with a T in it and a zone behind it. The zone does not matter.
fn date(text: &[u8]) -> Option<(Stamp, &[u8])> {
    let (year, rest) = number(text)?;
    let (month, rest) = number(rest.strip_prefix(b"-")?)?;
    let (day, rest) = number(rest.strip_prefix(b"-")?)?;
    let [b' ' | b'T', rest @ ..] = rest else { return None };
    let (time, precision, rest) = time_of_day(rest)?;
    let end = rest.iter().position(|&byte| byte == b' ').unwrap_or(rest.len());
    let is_zone =
        rest[..end].iter().all(|byte| matches!(byte, b'+' | b'-' | b':' | b'Z' | b'0'..=b'9'));
    let days = crate::date::days_since_1970(year, month, day)?;
    is_zone.then_some(((days * 86_400 * SECOND + time, precision), &rest[end..]))
}

/// `Feb 13 23:31:30`
fn syslog(text: &[u8]) -> Option<(Stamp, &[u8])> {
    const MONTHS: [&[u8]; 12] = [
        b"Jan", b"Feb", b"Mar", b"Apr", b"May", b"Jun", b"Jul", b"Aug", b"Sep", b"Oct", b"Nov",
        b"Dec",
    ];
    let month = MONTHS.iter().position(|&month| text.starts_with(month))? as u64 + 1;
    let rest = text[3..].strip_prefix(b" ")?;
    let (day, rest) = number(rest.strip_prefix(b" ").unwrap_or(rest))?;
    let (time, precision, rest) = time_of_day(rest.strip_prefix(b" ")?)?;
    let days = crate::date::days_since_1970(1970, month, day)?;
    Some(((days * 86_400 * SECOND + time, precision), rest))
}

fn time_of_day(text: &[u8]) -> Option<(i64, Precision, &[u8])> {
    let (hours, rest) = number(text)?;
    let (minutes, rest) = number(rest.strip_prefix(b":")?)?;
    let (secs, rest) = number(rest.strip_prefix(b":")?)?;
    if hours > 24 || minutes > 59 || secs > 60 {
        return None;
    }
    let (micros, precision, rest) = fraction(rest);
    Some(((hours * 3600 + minutes * 60 + secs) as i64 * SECOND + micros, precision, rest))
}

/// What qmail-send's line says; None if it is none.
fn event(text: &[u8]) -> Option<Event<'_>> {
    const OTHERS: [&[u8]; 12] = [
        b"new msg ",
        b"info msg ",
        b"end msg ",
        b"bounce msg ",
        b"double bounce",
        b"triple bounce",
        b"status: exiting",
        b"warning: ",
        b"alert: ",
        b"number of ",
        b"running",
        b"cannot start",
    ];
    if let Some(rest) = text.strip_prefix(b"starting delivery ") {
        let (number, rest) = number(rest)?;
        let (message, rest) = self::number(rest.strip_prefix(b": msg ")?)?;
        let rest = rest.strip_prefix(b" to ")?;
        return match rest.strip_prefix(b"remote ") {
            Some(recipient) => {
                Some(Event::Start { number, message, recipient: recipient.trim_ascii_end() })
            }
            None => rest.starts_with(b"local ").then_some(Event::StartLocal { number }),
        };
    }
    if let Some(rest) = text.strip_prefix(b"delivery ") {
        let (number, rest) = number(rest)?;
        let (end, text) = end(rest.strip_prefix(b": ")?)?;
        return Some(Event::End { number, end, text });
    }
    if OTHERS.iter().any(|other| text.starts_with(other)) {
        return Some(Event::Other);
    }
    let rest = text.strip_prefix(b"status: local ")?;
    let remote = rest.windows(8).position(|window| window == b" remote ")?;
    let (_, rest) = number(&rest[remote + 8..])?;
    let (limit, _) = number(rest.strip_prefix(b"/")?)?;
    Some(Event::Status { concurrency_remote: u32::try_from(limit).ok()? })
}

fn end(text: &[u8]) -> Option<(End, &[u8])> {
    const ENDS: [(&[u8], End); 4] = [
        (b"success", End::Success),
        (b"failure", End::Failure),
        (b"deferral", End::Deferral),
        (b"report mangled", End::Mangled),
    ];
    let (word, end) = ENDS.iter().find(|(word, _)| text.starts_with(word))?;
    let said = text[word.len()..].strip_prefix(b": ").unwrap_or_default();
    let end = match end {
        // As the gate ends its texts; see its host.rs.
        End::Deferral
            if [&b";_not_tried._(#4.4.5)/"[..], b";_not_tried._(#4.4.1)/"]
                .iter()
                .any(|ending| said.trim_ascii_end().ends_with(ending)) =>
        {
            End::Busy
        }
        End::Deferral if refused(said).is_some() => End::Refused,
        end => *end,
    };
    Some((end, said))
}

/// The report that a gate did not pass on, because there were too many.
pub fn refused(said: &[u8]) -> Option<&[u8]> {
    const WORDS: &[u8] = b";_to_be_tried_again:_";
    let rest = said.trim_ascii_end().strip_suffix(b"_(#4.4.5)/")?;
    // The key is before it, which has no such word.
    const REFUSED: &[u8] = b"_refused_this_one";
    let start = said.windows(REFUSED.len()).position(|window| window == REFUSED)?;
    let at = start + said[start..].windows(WORDS.len()).position(|window| window == WORDS)?;
    rest.get(at + WORDS.len()..)
}

/// The next line without its end, in `line`, which is used again. False at the end of the input.
///
/// # Errors
/// The input cannot be read.
pub fn next_line(input: &mut dyn BufRead, line: &mut Vec<u8>) -> io::Result<bool> {
    line.clear();
    let mut read = false;
    loop {
        let bytes = match input.fill_buf() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            bytes => bytes?,
        };
        if bytes.is_empty() {
            return Ok(read);
        }
        read = true;
        let newline = bytes.iter().position(|&byte| byte == b'\n');
        let text = &bytes[..newline.unwrap_or(bytes.len())];
        line.extend_from_slice(&text[..text.len().min(LINE_MAX - line.len())]);
        let used = text.len() + usize::from(newline.is_some());
        input.consume(used);
        if newline.is_some() {
            if line.last() == Some(&b'\r') {
                line.pop();
            }
            return Ok(true);
        }
    }
}

/// All logs, one after the other; `-` is standard input.
///
/// # Errors
/// One cannot be opened.
pub(super) fn open(paths: &[PathBuf]) -> Result<Box<dyn BufRead>, Error> {
    let mut all: Box<dyn Read> = Box::new(io::empty());
    for path in paths {
        let input: Box<dyn Read> = if path == Path::new("-") {
            Box::new(io::stdin())
        } else if path.is_dir() {
            let help = "name the files in it, the oldest first";
            return Err(Error::new(path.display(), "is a folder", help));
        } else {
            let opened = File::open(path);
            Box::new(opened.map_err(|error| Error::io(path, "open the log", &error))?)
        };
        all = Box::new(all.chain(WholeLines { input, last: b'\n' }));
    }
    Ok(Box::new(BufReader::with_capacity(1 << 16, all)))
}

/// Ends the last line if it has no end: the next log begins one all the same.
struct WholeLines {
    input: Box<dyn Read>,
    last: u8,
}

impl Read for WholeLines {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let count = self.input.read(into)?;
        if let Some(&last) = into[..count].last() {
            self.last = last;
        } else if let Some(end) = into.first_mut()
            && self.last != b'\n'
        {
            *end = b'\n';
            self.last = b'\n';
            return Ok(1);
        }
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FINE: i64 = 1_234_567_890_123_456;

    fn time(stamp: &str) -> Option<Stamp> {
        parse(format!("{stamp} new msg 7").as_bytes()).ok().map(|(stamp, _)| stamp)
    }

    #[test]
    fn time_stamps() {
        let fine = Some((FINE, Precision::Fine));
        assert_eq!(time("1234567890.123456"), fine);
        assert_eq!(time("1234567890"), Some((1_234_567_890 * SECOND, Precision::Seconds)));
        assert_eq!(time("@40000000499602dc075bca00"), Some((FINE, Precision::Fine)));
        assert_eq!(time("2009-02-13 23:31:30.123456789"), fine);
        assert_eq!(time("2009-02-13T23:31:30.123456+00:00 host qmail-send[1]:"), fine);
        assert_eq!(time("2009-02-13T23:31:30Z host qmail:").unwrap().1, Precision::Seconds);
        let syslog = time("Feb  3 23:31:30 host qmail:").unwrap();
        assert_eq!(syslog, ((33 * 86_400 + 84_690) * SECOND, Precision::Seconds));
        assert_eq!(time("Feb 13 23:31:30 host qmail: 1234567890.123456"), fine);
        for bad in ["", "x", "@40000000", "@40000000499602dc075bcz00", "@+0000000499602dc075bca00"]
        {
            assert_eq!(time(bad), None, "{bad}");
        }
        for bad in ["2009-13-01 00:00:00", "Feb 13 23:61:00 host qmail:", "99999999999999999999"] {
            assert_eq!(time(bad), None, "{bad}");
        }
    }

    #[test]
    fn days() {
        for (date, days) in [((1970, 1, 1), 0), ((2000, 2, 29), 11_016), ((2024, 12, 31), 20_088)] {
            assert_eq!(crate::date::days_since_1970(date.0, date.1, date.2), Some(days));
        }
    }

    fn event_of(line: &str) -> Option<Event<'_>> {
        event(line.as_bytes())
    }

    #[test]
    fn lines_of_qmail_send() {
        assert_eq!(
            event_of("starting delivery 12: msg 345 to remote u@a@b.example"),
            Some(Event::Start { number: 12, message: 345, recipient: b"u@a@b.example" })
        );
        assert_eq!(
            event_of("starting delivery 12: msg 345 to local u@b"),
            Some(Event::StartLocal { number: 12 })
        );
        let ended = |line| match event_of(line) {
            Some(Event::End { number, end, text }) => {
                (number, end, std::str::from_utf8(text).unwrap())
            }
            other => panic!("{other:?}"),
        };
        assert_eq!(
            ended("delivery 1: success: 10.0.0.1_accepted_message./"),
            (1, End::Success, "10.0.0.1_accepted_message./")
        );
        assert_eq!(ended("delivery 2: failure: no/"), (2, End::Failure, "no/"));
        assert_eq!(ended("delivery 3: deferral: later/"), (3, End::Deferral, "later/"));
        assert_eq!(ended("delivery 4: report mangled, will defer"), (4, End::Mangled, ""));
        for busy in [
            "b.example_is_at_its_limit_of_2_deliveries;_not_tried._(#4.4.5)/",
            "group_g_is_closed_(limit_0);_not_tried._(#4.4.5)/",
            "b.example:_no_connection_to_its_server_succeeds,_none_is_tried_for_61_s;_not_tried._(#4.4.1)/",
            "b.example:_no_connection_to_its_server_succeeds,_one_at_a_time_is_tried;_not_tried._(#4.4.1)/",
        ] {
            let line = format!("delivery 5: deferral: {busy}");
            let Some(Event::End { number, end, text }) = event_of(&line) else { panic!("{line}") };
            assert_eq!((number, end, text), (5, End::Busy, busy.as_bytes()));
        }
        for how in ["_beside_11_(limit_20)", "_beside_11", "_(limit_20)", ""] {
            let line = format!(
                "delivery 6: deferral: b.example_refused_this_one{how};_to_be_tried_again:_Connected_to_\
                 10.0.0.1_but_greeting_failed./Remote_host_said:_421_x/_(#4.4.5)/"
            );
            let Some(Event::End { end, text, .. }) = event_of(&line) else { panic!("{line}") };
            assert_eq!(end, End::Refused, "{line}");
            assert_eq!(
                refused(text),
                Some(&b"Connected_to_10.0.0.1_but_greeting_failed./Remote_host_said:_421_x/"[..])
            );
        }
        assert_eq!(
            event_of("status: local 0/10 remote 3/255 exitasap"),
            Some(Event::Status { concurrency_remote: 255 })
        );
        for other in ["status: exiting", "info msg 1: bytes 2 from <> qp 3 uid 4", "alert: oops"] {
            assert_eq!(event_of(other), Some(Event::Other));
        }
        for foreign in
            ["", "delivery x: success: ", "starting delivery 1: msg 2", "delivery 1: what"]
        {
            assert_eq!(event_of(foreign), None);
        }
    }

    #[test]
    fn lines_without_stamp_or_sense() {
        assert_eq!(parse(b"new msg 7"), Err(Unusable::NoStamp));
        assert_eq!(parse(b"1234567890.1"), Err(Unusable::NoStamp));
        assert_eq!(parse(b"1234567890.1 hello"), Err(Unusable::Foreign));
        assert_eq!(parse(b"Feb 13 23:31:30 host sshd[1]: new msg"), Err(Unusable::Foreign));
    }

    #[test]
    fn long_lines_are_cut() {
        let text = [&b"a\r\n"[..], &b"x".repeat(100_000), b"\n\nlast"].concat();
        for size in [1, 7, 8192] {
            let mut input = io::BufReader::with_capacity(size, &text[..]);
            let mut line = Vec::new();
            let mut lengths = Vec::new();
            while next_line(&mut input, &mut line).unwrap() {
                lengths.push(line.len());
            }
            assert_eq!(lengths, [1, LINE_MAX, 0, 4]);
        }
    }
}
