//! Names, limits and their origins, in the form in which people read and write them.

use std::net::IpAddr;

use qpatch_gate::escape::{Escaped, unescaped_bytes};
use qpatch_gate::literal;
use qpatch_gate::name::{domain_of, without_root};
use qpatch_gate::rules::{KeyKind, RelayLine, Resolution, Rules};
use qpatch_gate::site::SiteReason;
use qpatch_gate::table::Limit;

/// A name as it is printed everywhere: printable ASCII as it is; `%` and all other bytes as `%` and two hexadecimal
/// digits. A name that came with mail must not control the terminal, reverse the line, or look like another name.
pub(super) fn escaped(name: impl AsRef<[u8]>) -> String {
    Escaped(name.as_ref()).to_string()
}

/// A text on one line: escaped as a name is, but line ends and tabs become spaces, and `%` stays. So two texts may look
/// the same.
pub(super) fn printable(text: impl AsRef<[u8]>) -> String {
    let mut line = String::new();
    for &byte in text.as_ref().trim_ascii_end() {
        match byte {
            b'\n' | b'\t' | b'\r' => line.push(' '),
            b'%' => line.push('%'),
            byte => line.push_str(&escaped([byte])),
        }
    }
    line
}

/// A text of the status file, where it is escaped, in printable form.
pub(super) fn printable_status(text: &str) -> String {
    printable(unescaped_bytes(text.as_bytes()).unwrap_or_default())
}

/// At most `most` bytes of printable ASCII; a text that is cut ends with `...`.
pub(super) fn cut(text: &str, most: usize) -> String {
    match text.get(..most.saturating_sub(3)) {
        Some(start) if text.len() > most => format!("{start}..."),
        _ => text.to_string(),
    }
}

/// `gmail.com`, `group yahoo`, `relay mx.example`; the name is escaped.
pub(super) fn key_name(kind: KeyKind, name: &str) -> String {
    let name = if name.is_empty() { "(no domain)" } else { name };
    match kind {
        KeyKind::Domain => name.to_string(),
        KeyKind::Relay | KeyKind::Group => format!("{} {name}", kind.name()),
        KeyKind::Candidates => format!("candidates of {name}"),
    }
}

/// A limit in a table.
pub(super) fn limit_text(limit: Limit) -> String {
    match limit {
        Limit::AtMost(limit) => limit.to_string(),
        Limit::Unlimited => "none".to_string(),
    }
}

/// A limit and rates in a table: `20, 600/m`; where there is no limit, only the rates.
pub(super) fn cap_text(limit: Limit, rates: &str) -> String {
    match (limit, rates) {
        (limit, "") => limit_text(limit),
        (Limit::Unlimited, rates) => rates.to_string(),
        (limit, rates) => format!("{}, {rates}", limit_text(limit)),
    }
}

/// `next in 0.4 s`; None: the rates allow a start.
pub(super) fn next_start(ms: u64) -> Option<String> {
    match ms {
        0 => None,
        ms => Some(format!("next in {:.1} s", ms as f64 / 1000.0)),
    }
}

/// `312/h left`, `40/d left`: what rates for an hour and a day still allow.
pub(super) fn starts_left(hour: Option<u32>, day: Option<u32>) -> impl Iterator<Item = String> {
    let units = [(hour, 'h'), (day, 'd')];
    units.into_iter().filter_map(|(left, unit)| left.map(|left| format!("{left}/{unit} left")))
}

/// A limit in JSON: null is unlimited.
pub(super) fn limit_value(limit: Limit) -> Option<u32> {
    match limit {
        Limit::AtMost(limit) => Some(limit),
        Limit::Unlimited => None,
    }
}

/// `concurrencydomains:3`; 0 is no line.
pub(super) fn line_text(number: u32) -> String {
    match number {
        0 => "no line".to_string(),
        number => format!("concurrencydomains:{number}"),
    }
}

/// Where a key and its limit come from.
pub(super) fn origin_text(rules: &Rules, found: &Resolution<'_>) -> String {
    let (line, route) = rules.lines(found);
    let mut from = found.site.map_or_else(|| line_text(line), site_text);
    if found.line.is_some_and(|line| line.is_default()) {
        from.push_str(" (the default)");
    }
    match found.route {
        Some(RelayLine::Smtproutes(_)) => from.push_str(&format!(", by smtproutes:{route}")),
        Some(RelayLine::Authsenders(_)) => from.push_str(&format!(", by authsenders:{route}")),
        None => {}
    }
    from
}

pub(super) fn site_text(because: SiteReason) -> String {
    match because {
        SiteReason::Map(line) => format!("concurrencysites:{line}"),
        SiteReason::Literal(address, line) | SiteReason::Address(address, line) => {
            format!("concurrencydomains:{line}, its mail goes to {address}")
        }
        SiteReason::Refused(address, line) => {
            format!(
                "concurrencydomains:{line}, its mail was refused at {address}, and none taken yet"
            )
        }
    }
}

/// A relay, or the line of one, as it is written: IPv6 addresses in brackets.
pub(super) fn relay_text(relay: &[u8]) -> String {
    match literal::bare(relay) {
        Some(address @ IpAddr::V6(_)) => format!("[{address}]"),
        _ => escaped(relay),
    }
}

/// The name before the first colon of a line.
pub(super) fn host_of(line: &[u8]) -> Option<&[u8]> {
    let colon = line.iter().position(|&byte| byte == b':')?;
    Some(&line[..colon])
}

/// Parses the argument of --domain: a domain, or an address, of which only the domain counts.
pub(super) fn domain_argument(value: &str) -> Result<String, String> {
    if value.contains('/') {
        return Err(
            "this is not a domain: write example.com, or an address, of which the domain counts"
                .to_string(),
        );
    }
    let domain = domain_of(value.as_bytes()).unwrap_or(value.as_bytes());
    Ok(String::from_utf8_lossy(without_root(domain)).into_owned())
}

/// The bytes of such an argument. It may be a name as it is printed, with `%ff` for a byte.
pub(super) fn domain_bytes(argument: &str) -> Vec<u8> {
    unescaped_bytes(argument.as_bytes()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_byte_controls_the_terminal() {
        assert_eq!(printable("100%\tb\n\x1b[2Jc\u{202e}\r\n"), "100% b %1b[2Jc%e2%80%ae");
        assert_eq!(printable_status("a%0a%25b%1b%zz\u{7f}"), "a %b%1b%zz%7f");
        let odd = b"\x07\x1b\x7f\x80\x9f\xc2\x9b%\n ";
        assert_eq!(escaped(odd), "%07%1b%7f%80%9f%c2%9b%25%0a ");
        for turning in
            "\u{202a}\u{202b}\u{202c}\u{202d}\u{202e}\u{2066}\u{2069}\u{200e}\u{200f}\u{61c}"
                .chars()
        {
            assert!(
                printable(turning.to_string()).is_ascii()
                    && escaped(turning.to_string()).is_ascii()
            );
        }
        assert_eq!(cut("abcdefgh", 8), "abcdefgh");
        assert_eq!(cut("abcdefghi", 8), "abcde...");
        assert_eq!(key_name(KeyKind::Domain, ""), "(no domain)");
        assert_eq!(key_name(KeyKind::Group, "y"), "group y");
    }
}
