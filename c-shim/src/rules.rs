//! Which key a domain counts under, and the limit of that key: the group of the line of concurrencydomains that matches
//! the domain; else the relay that smtproutes sends the domain to, with the limit of the relay's own name; else the
//! domain itself.

#![forbid(unsafe_code)]

use crate::learn::Learning;
use crate::name::{Hasher, Place};
use crate::route::Routes;
use crate::table::{Limit, Line, Table};

/// What is counted together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum KeyKind {
    /// One domain.
    Domain,
    /// All domains that smtproutes sends to one relay.
    Relay,
    /// The lines of concurrencydomains with one group.
    Group,
}

impl KeyKind {
    /// Its name in the status file.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Domain => "domain",
            Self::Relay => "relay",
            Self::Group => "group",
        }
    }

    /// The kind of this name.
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        [Self::Domain, Self::Relay, Self::Group].into_iter().find(|kind| kind.name() == name)
    }
}

/// Whether a line that does not say so learns.
pub const LEARNING: Learning = Learning::Fixed;

/// What the table says of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cap {
    /// How many deliveries of the key run at once.
    pub limit: Limit,
    /// Whether fewer do when its server objects.
    pub learning: Learning,
}

impl Cap {
    /// What no line speaks of: stock behaviour.
    pub const NONE: Self = Self { limit: Limit::Unlimited, learning: Learning::Fixed };
}

/// The key and the limit of a domain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Resolution<'a> {
    /// What the name is.
    pub kind: KeyKind,
    /// The name of the key. For a domain it is as it was asked for, otherwise in lower case.
    pub name: &'a [u8],
    /// How many deliveries of the key run at once.
    pub cap: Cap,
    /// The line of concurrencydomains that says so.
    pub line: Option<Line>,
    /// The line of smtproutes that was followed.
    pub route: Option<Place>,
}

/// Both files, parsed. Without concurrencydomains everything is unlimited, and smtproutes does not matter.
#[derive(Debug)]
pub struct Rules {
    /// Hashes the names in both.
    pub hasher: Hasher,
    /// control/concurrencydomains; None when there is no such file.
    pub table: Option<Table>,
    /// control/smtproutes.
    pub routes: Routes,
}

impl Rules {
    /// No files: stock behaviour.
    #[must_use]
    pub fn stock(hasher: Hasher) -> Self {
        Self { hasher, table: None, routes: Routes::new(hasher) }
    }

    /// The line of concurrencydomains that a resolution comes from, and the line of smtproutes that it went through; from
    /// 1, and 0 for none.
    #[must_use]
    pub fn lines(&self, found: &Resolution<'_>) -> (u32, u32) {
        let of_table =
            self.table.as_ref().zip(found.line).map_or(0, |(table, line)| table.number(&line));
        (of_table, found.route.map_or(0, |route| self.routes.number(route)))
    }

    /// The key and the limit of a domain, without a dot at its end.
    #[must_use]
    pub fn resolve<'a>(&'a self, domain: &'a [u8]) -> Resolution<'a> {
        self.resolve_hashed(self.hasher.hash(domain), domain)
    }

    /// The same for a domain whose hash is known.
    #[must_use]
    pub fn resolve_hashed<'a>(&'a self, hash: u64, domain: &'a [u8]) -> Resolution<'a> {
        let unlimited = Resolution {
            kind: KeyKind::Domain,
            name: domain,
            cap: Cap::NONE,
            line: None,
            route: None,
        };
        let Some(table) = &self.table else { return unlimited };
        let own = table.find_hashed(hash, domain);
        let of_line = |line: Line, kind, name, route| {
            let group = line.group.map(|index| &table.groups()[index as usize]);
            let (kind, name) =
                group.map_or((kind, name), |group| (KeyKind::Group, &group.name[..]));
            Resolution { kind, name, cap: cap_of_line(line), line: Some(line), route }
        };
        if let Some(line) = own
            && line.group.is_some()
        {
            return of_line(line, KeyKind::Domain, domain, None);
        }
        if let Some((relay, route)) = self.routes.find_hashed(hash, domain) {
            return match table.find(relay) {
                Some(line) => of_line(line, KeyKind::Relay, relay, Some(route)),
                None => Resolution {
                    kind: KeyKind::Relay,
                    name: relay,
                    route: Some(route),
                    ..unlimited
                },
            };
        }
        own.map_or(unlimited, |line| of_line(line, KeyKind::Domain, domain, None))
    }

    /// The cap of a key that exists, or None if no domain can have this key any more. A domain's key ends when a group
    /// or a route takes the domain over.
    #[must_use]
    pub fn cap_of(&self, kind: KeyKind, name: &[u8]) -> Option<Cap> {
        let table = self.table.as_ref();
        match kind {
            KeyKind::Group => table
                .and_then(|table| table.group(name))
                .map(|group| Cap { limit: group.limit, learning: LEARNING }),
            KeyKind::Domain => {
                let now = self.resolve(name);
                (now.kind == kind && now.name.eq_ignore_ascii_case(name)).then_some(now.cap)
            }
            KeyKind::Relay => match table.and_then(|table| table.find(name)) {
                Some(line) if line.group.is_some() => None,
                Some(line) => Some(cap_of_line(line)),
                None => Some(Cap::NONE),
            },
        }
    }
}

fn cap_of_line(line: Line) -> Cap {
    Cap { limit: line.limit, learning: LEARNING }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(table: &str, routes: &str) -> Rules {
        let hasher = Hasher::new(5);
        Rules {
            hasher,
            table: Some(Table::parse(table.as_bytes(), hasher).unwrap().0),
            routes: Routes::parse(routes.as_bytes(), hasher).unwrap().0,
        }
    }

    fn resolved(rules: &Rules, domain: &str) -> (KeyKind, String, Limit) {
        let found = rules.resolve(domain.as_bytes());
        (found.kind, String::from_utf8(found.name.to_vec()).unwrap(), found.cap.limit)
    }

    #[test]
    fn group_before_relay_before_domain() {
        let rules = rules(
            ":20\n.sub.example:7\nyahoo.com:10:yahoo\n.yahoo.com:10:yahoo\nrelay.example:5\nbig.example:4:relays\n",
            "yahoo.com:relay.example\nrouted.example:RELAY.example:26\nvia.example:big.example\nfar.example:[10.1.2.3]\n",
        );
        let at_most = Limit::AtMost;
        assert_eq!(resolved(&rules, "yahoo.com"), (KeyKind::Group, "yahoo".into(), at_most(10)));
        assert_eq!(resolved(&rules, "mx.yahoo.com"), (KeyKind::Group, "yahoo".into(), at_most(10)));
        assert_eq!(
            resolved(&rules, "routed.example"),
            (KeyKind::Relay, "relay.example".into(), at_most(5))
        );
        assert_eq!(resolved(&rules, "via.example"), (KeyKind::Group, "relays".into(), at_most(4)));
        assert_eq!(
            resolved(&rules, "far.example"),
            (KeyKind::Relay, "10.1.2.3".into(), at_most(20))
        );
        assert_eq!(
            resolved(&rules, "a.sub.example"),
            (KeyKind::Domain, "a.sub.example".into(), at_most(7))
        );
        assert_eq!(
            resolved(&rules, "b.sub.example"),
            (KeyKind::Domain, "b.sub.example".into(), at_most(7))
        );
        assert_eq!(
            resolved(&rules, "[1.2.3.4]"),
            (KeyKind::Domain, "[1.2.3.4]".into(), at_most(20))
        );
    }

    #[test]
    fn without_a_file_everything_is_unlimited() {
        let rules = Rules::stock(Hasher::new(5));
        assert_eq!(
            resolved(&rules, "a.example"),
            (KeyKind::Domain, "a.example".into(), Limit::Unlimited)
        );
    }

    #[test]
    fn keys_end_when_others_take_over() {
        let rules = rules(":20\na.example:1:g\nr.example:2:g\n", "b.example:r2.example\n");
        let limit_of = |kind, name: &[u8]| rules.cap_of(kind, name).map(|cap| cap.limit);
        assert_eq!(limit_of(KeyKind::Domain, b"x.example"), Some(Limit::AtMost(20)));
        assert_eq!(limit_of(KeyKind::Domain, b"a.example"), None);
        assert_eq!(limit_of(KeyKind::Domain, b"b.example"), None);
        assert_eq!(limit_of(KeyKind::Group, b"g"), Some(Limit::AtMost(1)));
        assert_eq!(limit_of(KeyKind::Group, b"h"), None);
        assert_eq!(limit_of(KeyKind::Relay, b"r.example"), None);
        assert_eq!(limit_of(KeyKind::Relay, b"r2.example"), Some(Limit::AtMost(20)));
    }
}
