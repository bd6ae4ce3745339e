//! Parses the time at the beginning of a line, in the formats of these loggers:
//!
//! | who | time | zone |
//! | --- | --- | --- |
//! | multilog t, svlogd -t, s6-log t, tai64n | `@40000000499602dc075bca00` | TAI64N: none needed |
//! | splogger, accustamp, journalctl -o short-unix, ts %.s | `1234567890.123456` | seconds since 1970 |
//! | svlogd -tt, -ttt | `2009-02-13_23:31:30.12345`, `2009-02-13T23:31:30.12345` | UTC |
//! | tai64nlocal, s6-log T | `2009-02-13 23:31:30.123456789`, s6-log with two spaces behind it | local |
//! | rsyslog, syslog-ng (ISO), docker logs -t, kubectl, journalctl -o short-iso[-precise] | `2009-02-13T23:31:30.123456+01:00`, `...Z`, `...+0100` | said |
//! | journalctl -o short-full, with-unit, verbose | `Fri 2009-02-13 23:31:30 CET` | named, which is local if it is not UTC |
//! | syslog, journalctl -o short[-precise], ts | `Feb 13 23:31:30`, `Feb 13 23:31:30.123456` | local, and no year |
//! | journalctl -o short-monotonic, short-delta | `[    5.250123]`, `[    5.250123 <    0.250000 >]` | since the start of the machine |

use super::event::number;

/// A time, with its precision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    /// Microseconds since the start of [`Basis`].
    pub us: i64,
    /// Whether it has a fraction of a second.
    pub precision: Precision,
    /// What it counts from.
    pub basis: Basis,
}

/// How exact a time is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Precision {
    /// Whole seconds.
    Seconds,
    /// Fractions of a second.
    Fine,
}

/// What a time counts from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Basis {
    /// 1970-01-01 UTC.
    Universal,
    /// 1970-01-01 in local time. It jumps when daylight saving time begins and ends.
    Local,
    /// The new year in local time, in a leap year. The line does not say which year.
    NewYear,
    /// The start of the machine.
    Start,
}

const SECOND: i64 = 1_000_000;
const DAY: i64 = 86_400 * SECOND;
const MONTHS: [&[u8]; 12] = [
    b"Jan", b"Feb", b"Mar", b"Apr", b"May", b"Jun", b"Jul", b"Aug", b"Sep", b"Oct", b"Nov", b"Dec",
];
const DAYS: [&[u8]; 7] = [b"Mon ", b"Tue ", b"Wed ", b"Thu ", b"Fri ", b"Sat ", b"Sun "];

/// When a number without a date is a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Numbers {
    /// Always: at the beginning of a line.
    Short,
    /// Only with at least nine digits or a fraction: later in a line, a short number may be a process.
    Long,
}

/// Returns the time at the beginning of a line, and the rest behind its spaces.
pub(super) fn stamp(line: &[u8], numbers: Numbers) -> Option<(Stamp, &[u8])> {
    let day = DAYS.iter().find_map(|&day| line.strip_prefix(day));
    let (stamp, rest) = match day.unwrap_or(line) {
        [b'@', hex @ ..] => tai64n(hex)?,
        [b'[', inner @ ..] => bracketed(inner)?,
        text @ [b'0'..=b'9', _, _, _, b'-' | b'/', ..] => date(text)?,
        text @ [b'0'..=b'9', ..] => seconds(text, numbers)?,
        text => syslog(text)?,
    };
    let rest = rest.strip_prefix(b":").unwrap_or(rest);
    let trimmed = rest.trim_ascii_start();
    (rest.is_empty() || trimmed.len() < rest.len()).then_some((stamp, trimmed))
}

/// Parses 16 hexadecimal digits of TAI seconds, and optionally 8 of nanoseconds.
fn tai64n(text: &[u8]) -> Option<(Stamp, &[u8])> {
    const UNIX: i64 = (1 << 62) + 10;
    let digits = text.iter().position(|byte| !byte.is_ascii_hexdigit()).unwrap_or(text.len());
    let hex = |digits: &[u8]| i64::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok();
    let (nanos, precision) = match digits {
        16 => (0, Precision::Seconds),
        24.. => (hex(&text[16..24])?, Precision::Fine),
        _ => return None,
    };
    let us = hex(&text[..16])?.checked_sub(UNIX)?.checked_mul(SECOND)?.checked_add(nanos / 1000)?;
    Some((Stamp { us, precision, basis: Basis::Universal }, &text[digits.min(24)..]))
}

/// Parses `5.250123]`, `5.250123 < 0.250000 >]`, or a date in brackets.
fn bracketed(text: &[u8]) -> Option<(Stamp, &[u8])> {
    let end = text.iter().take(80).position(|&byte| byte == b']')?;
    let (inner, rest) = (text[..end].trim_ascii(), &text[end + 1..]);
    if inner.get(4).is_some_and(|byte| matches!(byte, b'-' | b'/')) {
        let (stamp, behind) = date(inner)?;
        return behind.is_empty().then_some((stamp, rest));
    }
    let (secs, behind) = number(inner)?;
    let (micros, precision, behind) = fraction(behind);
    let is_delta = behind.trim_ascii().is_empty()
        || (behind.trim_ascii_start().starts_with(b"<") && behind.ends_with(b">"));
    if precision == Precision::Seconds || !is_delta {
        return None;
    }
    let us = i64::try_from(secs).ok()?.checked_mul(SECOND)?.checked_add(micros)?;
    Some((Stamp { us, precision, basis: Basis::Start }, rest))
}

/// Parses a fraction of a second behind a dot or a comma, in microseconds.
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

/// Parses `1234567890.123456`.
fn seconds(text: &[u8], numbers: Numbers) -> Option<(Stamp, &[u8])> {
    let (secs, rest) = number(text)?;
    let digits = text.len() - rest.len();
    let (micros, precision, rest) = fraction(rest);
    if numbers == Numbers::Long && digits < 9 && precision == Precision::Seconds {
        return None;
    }
    let us = i64::try_from(secs).ok()?.checked_mul(SECOND)?.checked_add(micros)?;
    Some((Stamp { us, precision, basis: Basis::Universal }, rest))
}

/// Parses `2009-02-13 23:31:30.123456`, also with a T, an underscore or slashes, and with a zone behind it.
fn date(text: &[u8]) -> Option<(Stamp, &[u8])> {
    let (year, rest) = number(text)?;
    let [dash @ (b'-' | b'/'), rest @ ..] = rest else { return None };
    let (month, rest) = number(rest)?;
    let (day, rest) = number(rest.strip_prefix(&[*dash])?)?;
    let [between @ (b' ' | b'T' | b't' | b'_'), rest @ ..] = rest else { return None };
    let (time, precision, behind) = time_of_day(rest)?;
    let days = crate::date::days_since_1970(year, month, day)?;
    let local = days * DAY + time;
    let (east_secs, behind) = match zone(behind) {
        Zone::East(secs, behind) => (Some(secs), behind),
        // svlogd has five digits, and UTC.
        Zone::None if *between == b'_' || rest.len() - behind.len() == "23:31:30.12345".len() => {
            (Some(0), behind)
        }
        Zone::None => (None, behind),
        Zone::Named(behind) => (None, behind),
    };
    let basis = if east_secs.is_some() { Basis::Universal } else { Basis::Local };
    let us = local.checked_sub(east_secs.unwrap_or(0) * SECOND)?;
    Some((Stamp { us, precision, basis }, behind))
}

enum Zone<'a> {
    /// The seconds east of Greenwich.
    East(i64, &'a [u8]),
    /// A name such as CET, whose offset is not known here.
    Named(&'a [u8]),
    None,
}

/// Parses `Z`, `+01:00`, `+0100`, `-03`, ` +0100`, ` UTC`, ` CET`.
fn zone(text: &[u8]) -> Zone<'_> {
    let word = text.strip_prefix(b" ").unwrap_or(text);
    let end = word
        .iter()
        .position(|byte| !(byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'-' | b':')))
        .unwrap_or(word.len());
    let (name, rest) = word.split_at(end);
    match name {
        b"Z" | b"z" | b"UTC" | b"GMT" | b"UTC:" => Zone::East(0, rest),
        [sign @ (b'+' | b'-'), digits @ ..] => {
            let digits = digits.strip_suffix(b":").unwrap_or(digits);
            let figures: Vec<i64> = digits
                .iter()
                .filter(|&&byte| byte != b':')
                .map(|&byte| i64::from(byte) - 48)
                .collect();
            let (hours, minutes) = match figures[..] {
                [h1, h2] => (h1 * 10 + h2, 0),
                [h1, h2, m1, m2] => (h1 * 10 + h2, m1 * 10 + m2),
                _ => return Zone::None,
            };
            if figures.iter().any(|figure| !(0..=9).contains(figure)) || hours > 15 || minutes > 59
            {
                return Zone::None;
            }
            let secs = hours * 3600 + minutes * 60;
            Zone::East(if *sign == b'+' { secs } else { -secs }, rest)
        }
        name if (3..=5).contains(&name.len())
            && word.len() < text.len()
            && name.iter().all(u8::is_ascii_uppercase) =>
        {
            Zone::Named(rest)
        }
        _ => Zone::None,
    }
}

/// Parses `Feb 13 23:31:30`.
fn syslog(text: &[u8]) -> Option<(Stamp, &[u8])> {
    // Any leap year.
    const LEAP: u64 = 1972;
    let month = MONTHS.iter().position(|&month| text.starts_with(month))? as u64 + 1;
    let rest = text[3..].strip_prefix(b" ")?;
    let (day, rest) = number(rest.strip_prefix(b" ").unwrap_or(rest))?;
    let (time, precision, rest) = time_of_day(rest.strip_prefix(b" ")?)?;
    let days =
        crate::date::days_since_1970(LEAP, month, day)? - crate::date::days_since_1970(LEAP, 1, 1)?;
    Some((Stamp { us: days * DAY + time, precision, basis: Basis::NewYear }, rest))
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

#[cfg(test)]
mod tests {
    use super::*;

    const FINE: i64 = 1_234_567_890_123_456;

    fn read(text: &str) -> Option<(i64, Precision, Basis, &str)> {
        let (stamp, rest) = stamp(text.as_bytes(), Numbers::Short)?;
        let Stamp { us, precision, basis } = stamp;
        Some((us, precision, basis, std::str::from_utf8(rest).unwrap()))
    }

    #[track_caller]
    fn check(text: &str, us: i64, basis: Basis) {
        let precision = if us % SECOND == 0 { Precision::Seconds } else { Precision::Fine };
        assert_eq!(read(text), Some((us, precision, basis, "rest")), "{text}");
    }

    #[test]
    fn times_of_all_loggers() {
        let whole = FINE - FINE % SECOND;
        for (text, us) in [
            ("@40000000499602dc075bca00 rest", FINE),
            ("@40000000499602dc rest", whole),
            ("1234567890.123456 rest", FINE),
            ("1234567890 rest", whole),
            ("2009-02-13_23:31:30.12345 rest", FINE - 6),
            ("2009-02-13T23:31:30.12345 rest", FINE - 6),
            ("2009-02-13T23:31:30.123456Z rest", FINE),
            ("2009-02-13T23:31:30.123456789Z rest", FINE),
            ("2009-02-14T00:31:30.123456+01:00 rest", FINE),
            ("2009-02-14T00:31:30+0100 rest", whole),
            ("2009-02-13T20:01:30-0330 rest", whole),
            ("2009-02-13 20:31:30-03 rest", whole),
            ("2009-02-14 00:31:30 +0100 rest", whole),
            ("Fri 2009-02-13 23:31:30 UTC rest", whole),
            ("[2009-02-13T23:31:30Z] rest", whole),
        ] {
            check(text, us, Basis::Universal);
        }
        for (text, us) in [
            ("2009-02-13 23:31:30.123456 rest", FINE),
            ("2009-02-13 23:31:30.123456789  rest", FINE),
            ("2009-02-13 23:31:30,123456 rest", FINE),
            ("2009/02/13 23:31:30 rest", whole),
            ("Fri 2009-02-13 23:31:30 CEST rest", whole),
            ("[2009-02-13 23:31:30] rest", whole),
        ] {
            check(text, us, Basis::Local);
        }
        let new_year = (43 * 86_400 + 84_690) * SECOND;
        check("Feb 13 23:31:30 rest", new_year, Basis::NewYear);
        check("Feb 13 23:31:30.123456 rest", new_year + 123_456, Basis::NewYear);
        check("Feb  3 23:31:30 rest", new_year - 10 * DAY, Basis::NewYear);
        check("Feb 29 00:00:00 rest", 59 * DAY, Basis::NewYear);
        check("Mar  1 00:00:00 rest", 60 * DAY, Basis::NewYear);
        check("[    5.250123] rest", 5_250_123, Basis::Start);
        check("[    5.250123 <    0.250000 >] rest", 5_250_123, Basis::Start);
        check("[    5.250123                ] rest", 5_250_123, Basis::Start);
    }

    #[test]
    fn texts_that_are_not_a_time() {
        for text in [
            "",
            "x",
            "@40000000 x",
            "@40000000499602dc075bcz00 x",
            "@+0000000499602dc075bca00 x",
            "@40000000499602dc075bca00x",
            "2009-13-01 00:00:00 x",
            "2009-02-13 23:61:30 x",
            "Feb 13 23:61:00 host qmail: x",
            "Feb 13",
            "99999999999999999999 x",
            "9223372036854775807 x",
            "[qmail] x",
            "[77] x",
            "[5.25 x",
            "1234567890.123456x",
        ] {
            assert_eq!(read(text), None, "{text}");
        }
        assert_eq!(stamp(b"12345678 x", Numbers::Long), None);
        assert!(stamp(b"123456789 x", Numbers::Long).is_some());
        assert!(stamp(b"1001.000000 x", Numbers::Long).is_some());
        // A host whose name is behind the time.
        assert_eq!(read("2009-02-13 23:31:30 mx1 x").unwrap().3, "mx1 x");
    }
}
