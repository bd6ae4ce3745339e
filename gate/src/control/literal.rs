//! Addresses in the place of a host's name: `192.0.2.1`, `[192.0.2.1]`, `[2001:db8::25]`, `[IPv6:2001:db8::25]`. An
//! address has many spellings, and must not have a limit for each of them: here it becomes one text. An IPv4 address
//! that is written as an IPv6 one (`::ffff:192.0.2.1`) is the IPv4 address.

#![forbid(unsafe_code)]

use std::fmt::Write as _;
use std::net::IpAddr;

/// Reads an address without brackets. It leaves out a zone (`fe80::1%eth0`), because the gate counts by the address.
#[must_use]
pub fn bare(text: &[u8]) -> Option<IpAddr> {
    // Most names are no addresses, and begin with another character.
    if !matches!(text.first()?, b':' | b'0'..=b'9' | b'a'..=b'f' | b'A'..=b'F') {
        return None;
    }
    let text = std::str::from_utf8(text).ok()?;
    let text = match text.split_once('%') {
        Some((address, _)) if address.contains(':') => address,
        _ => text,
    };
    text.parse::<IpAddr>().ok().map(|address| address.to_canonical())
}

/// Reads an address with or without brackets. qmail-remote needs no DNS for such a host.
#[must_use]
pub fn of_name(name: &[u8]) -> Option<IpAddr> {
    bare(name).or_else(|| bracketed(name))
}

/// Reads what is between brackets: an address, with or without the tag of RFC 5321.
#[must_use]
pub fn bracketed(text: &[u8]) -> Option<IpAddr> {
    let [b'[', inner @ .., b']'] = text else { return None };
    inside(inner)
}

/// Reads an address in brackets.
#[must_use]
pub fn inside(inner: &[u8]) -> Option<IpAddr> {
    match inner.split_at_checked(5) {
        Some((tag, address)) if tag.eq_ignore_ascii_case(b"ipv6:") => {
            bare(address).filter(|_| address.contains(&b':'))
        }
        _ => bare(inner),
    }
}

/// The longest text: `[`, 8 groups of 4 digits with 7 colons, or with an IPv4 address at the end, `]`.
const LONGEST: usize = 2 + 46;

/// An address as a text that needs no allocation.
#[derive(Clone, Copy, Debug)]
pub struct Literal {
    bytes: [u8; LONGEST],
    len: usize,
}

impl Literal {
    /// With brackets, as in a recipient's domain and in concurrencydomains.
    #[must_use]
    pub fn new(address: IpAddr) -> Self {
        let mut literal = Self { bytes: [0; LONGEST], len: 0 };
        // It fits: see LONGEST.
        let _ = write!(literal, "[{}]", address.to_canonical());
        literal
    }

    /// `[192.0.2.1]`
    #[must_use]
    pub fn text(&self) -> &[u8] {
        &self.bytes[..self.len]
    }

    /// `192.0.2.1`, as relays are named.
    #[must_use]
    pub fn name(&self) -> &[u8] {
        &self.bytes[1..self.len - 1]
    }
}

impl std::fmt::Write for Literal {
    fn write_str(&mut self, text: &str) -> std::fmt::Result {
        let end = self.len + text.len();
        self.bytes.get_mut(self.len..end).ok_or(std::fmt::Error)?.copy_from_slice(text.as_bytes());
        self.len = end;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_address_has_one_text() {
        for (text, expected) in [
            ("[192.0.2.1]", Some("[192.0.2.1]")),
            ("[2001:DB8:0::25]", Some("[2001:db8::25]")),
            ("[2001:db8:0:0:0:0:0:25]", Some("[2001:db8::25]")),
            ("[IPv6:2001:db8::25]", Some("[2001:db8::25]")),
            ("[ipv6:2001:db8::]", Some("[2001:db8::]")),
            ("[::ffff:192.0.2.1]", Some("[192.0.2.1]")),
            ("[::FFFF:c000:201]", Some("[192.0.2.1]")),
            ("[fe80::1%eth0]", Some("[fe80::1]")),
            ("[::]", Some("[::]")),
            (
                "[ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff]",
                Some("[ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff]"),
            ),
            ("[IPv6:192.0.2.1]", None),
            ("[192.0.2.256]", None),
            ("[192.0.2]", None),
            ("[mx.example]", None),
            ("[]", None),
            ("[", None),
            ("", None),
            ("2001:db8::25", None),
        ] {
            let literal = bracketed(text.as_bytes()).map(Literal::new);
            let found =
                literal.as_ref().map(|literal| std::str::from_utf8(literal.text()).unwrap());
            assert_eq!(found, expected, "{text}");
        }
        assert_eq!(bare(b"192.0.2.1"), Some(IpAddr::from([192, 0, 2, 1])));
        assert_eq!(bare(b"192.0.2.1%eth0"), None);
        assert_eq!(bare(b""), None);
        assert_eq!(Literal::new(IpAddr::from([192, 0, 2, 1])).name(), b"192.0.2.1");
    }
}
