//! What is asked of DNS about mail exchangers, and what it can answer. `resolver` asks.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

/// The servers to ask, and how long to wait.
#[derive(Clone, Debug)]
pub(super) struct Asker {
    /// Empty: those of /etc/resolv.conf.
    pub(super) servers: Vec<SocketAddr>,
    /// For one answer. Each question is asked twice.
    pub(super) answer: Duration,
    /// For everything.
    pub(super) total: Duration,
}

/// What qmail-remote asks DNS for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Hop {
    /// The mail exchangers of a domain.
    Domain,
    /// The address of a relay of smtproutes: its own name is that of the exchanger, and those that it is an alias of.
    Relay,
}

/// Who takes mail.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Exchanger {
    /// The lower the earlier it is tried.
    pub(super) preference: u16,
    /// In lower case, without a dot at the end. None if the name does not count: mail goes there all the same, but the
    /// host belongs to no site.
    pub(super) name: Option<String>,
}

/// The answer of DNS for a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Said {
    /// The most preferred first; at least one.
    Exchangers(Vec<Exchanger>),
    /// No exchangers: the name's own host takes its mail. Its name and those that it is an alias of.
    Host(Vec<Exchanger>),
    /// There is no such domain.
    NoDomain,
    /// It takes no mail (RFC 7505).
    NoMail,
    /// Nothing that can be relied on; why.
    Nothing(String),
}

/// Returns whether a name can be asked for: up to 253 bytes of letters, digits, `-` and `_` between dots, and no
/// address.
pub(super) fn is_name(name: &str) -> bool {
    let is_label = |label: &str| (1..=63).contains(&label.len()) && is_plain(label.as_bytes());
    name.len() <= 253 && name.split('.').all(is_label) && name.parse::<IpAddr>().is_err()
}

pub(super) fn is_plain(label: &[u8]) -> bool {
    label.iter().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_can_be_asked_for() {
        for good in ["a", "a.example", "_x.a-b.example", "xn--bcher-kva.example", "1.example"] {
            assert!(is_name(good), "{good}");
        }
        let long = "a".repeat(64);
        for bad in [
            "",
            ".",
            "a..b",
            "a.",
            "a b",
            "a:b",
            "a\nb",
            "\u{fc}.example",
            "[192.0.2.1]",
            "192.0.2.1",
            &long,
        ] {
            assert!(!is_name(bad), "{bad}");
        }
    }
}
