//! What is asked of DNS about mail exchangers, and what it can answer. `resolver` asks.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

/// The servers to ask, and how long to wait.
#[derive(Clone, Debug)]
pub(super) struct Resolver {
    /// Empty: those of /etc/resolv.conf.
    pub(super) servers: Vec<SocketAddr>,
    /// The time for one answer. Each query is sent twice.
    pub(super) answer: Duration,
    /// The time for all names together.
    pub(super) total: Duration,
    /// A look-up that takes longer leaves its place to the next one, and goes on beside it.
    pub(super) patience: Duration,
}

/// A name to look up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Asked {
    pub(super) name: String,
    pub(super) query: Query,
    pub(super) order: Order,
}

/// When a name is looked up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Order {
    /// Before all strangers: it is in the map.
    Known,
    Stranger,
}

/// What qmail-remote asks DNS for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Query {
    /// The mail exchangers of a domain.
    Domain,
    /// The address of a relay of smtproutes. The relay counts as its own exchanger, with the names that it is an alias
    /// of.
    Relay,
}

/// A host that takes mail.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Exchanger {
    /// A lower one is tried earlier.
    pub(super) preference: u16,
    /// In lower case, without a dot at the end. None if the name is not a host name: mail goes there all the same, but
    /// the host belongs to no site.
    pub(super) name: Option<String>,
}

/// The answer of DNS for a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum DnsAnswer {
    /// The most preferred first; at least one.
    Exchangers(Vec<Exchanger>),
    /// No exchangers: the host of this name takes the mail itself. Its name, and the names that it is an alias of.
    Host(Vec<Exchanger>),
    /// There is no such domain.
    NoDomain,
    /// It takes no mail (RFC 7505).
    NoMail,
    /// No reliable answer, and the reason.
    NoAnswer(String),
}

/// Returns whether a name can be asked for: up to 253 bytes of letters, digits, `-` and `_` between dots, and no
/// address.
pub(super) fn is_name(name: &str) -> bool {
    let is_label = |label: &str| (1..=63).contains(&label.len()) && is_host_label(label.as_bytes());
    name.len() <= 253 && name.split('.').all(is_label) && name.parse::<IpAddr>().is_err()
}

pub(super) fn is_host_label(label: &[u8]) -> bool {
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
