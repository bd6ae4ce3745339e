//! Which key a domain counts under, and the limit of that key. The first of these that applies decides:
//!
//! 1. The group of the line of concurrencydomains that matches the domain, unless that is the default line.
//! 2. The site of its next hop ([`crate::control::site`]), unless a line other than the default one matches the next
//!    hop. The next hop is the relay that smtproutes sends the domain to, else the domain itself. A candidate of a site
//!    counts with the site's other candidates.
//! 3. The group of the default line.
//! 4. The relay, with the limit of the relay's own name.
//! 5. The domain itself.
//!
//! In trees whose qmail-remote chooses a relay by the sender ([`crate::control::sender`]), such a relay is the next hop
//! whatever the domain is, and smtproutes is not read. Then 2. to 4. apply to the relay: the line with its name, or the
//! default line, and the group of that line.

#![forbid(unsafe_code)]

use std::net::IpAddr;

use crate::control::limit::Learning;
pub use crate::control::limit::{Cap, Limit};
use crate::control::name::Hasher;
use crate::control::name_map::NameEntry;
use crate::control::route::Routes;
use crate::control::sender::{Asked, BOUNCES, Reads, Senders};
use crate::control::site::{Evidence, SiteReason, Sites};
use crate::control::table::{Line, Table};
use crate::report::replies::Replies;
use crate::util::memory::OutOfMemory;

/// What the name of a key is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum KeyKind {
    /// One domain.
    Domain,
    /// All domains that smtproutes sends to one relay.
    Relay,
    /// The lines of concurrencydomains with one group, and the domains of its sites.
    Group,
    /// The domains whose mail a group's sites have refused, and have not taken yet.
    Candidates,
}

impl KeyKind {
    /// Its name in the status file.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Domain => "domain",
            Self::Relay => "relay",
            Self::Group => "group",
            Self::Candidates => "candidates",
        }
    }

    /// The kind with this name in the status file.
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        [Self::Domain, Self::Relay, Self::Group, Self::Candidates]
            .into_iter()
            .find(|kind| kind.name() == name)
    }
}

/// The key and the limit of a domain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Resolution<'a> {
    /// What its name is.
    pub kind: KeyKind,
    /// The name of the key. That of a domain is as the caller wrote it; others are in lower case.
    pub name: &'a [u8],
    /// The most deliveries of the key at once, and whether the limit learns.
    pub cap: Cap,
    /// The line of concurrencydomains that sets the limit.
    pub line: Option<Line>,
    /// The line of smtproutes or authsenders that was followed.
    pub route: Option<RelayLine>,
    /// Why it counts for a site, if it does. Then there is no `line`.
    pub site: Option<SiteReason>,
}

/// A line that names a relay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RelayLine {
    /// A line of smtproutes.
    Smtproutes(NameEntry),
    /// A line of authsenders.
    Authsenders(NameEntry),
}

/// A relay that is chosen by the sender, and the line that names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SenderRelay<'a> {
    /// Its name, in lower case.
    pub name: &'a [u8],
    /// The line.
    pub line: RelayLine,
}

/// All control files, parsed. Without concurrencydomains there is no limit, and smtproutes does not matter.
#[derive(Debug)]
pub struct Rules {
    /// Hashes the names in all of them.
    pub hasher: Hasher,
    /// control/concurrencydomains; None when there is no such file.
    pub table: Option<Table>,
    /// control/smtproutes.
    pub routes: Routes,
    /// Which other files the tree's qmail-remote reads for relays.
    pub reads: Reads,
    /// control/authsenders, if qmail-remote reads it.
    pub senders: Senders,
    /// control/concurrencysites, and the addresses that were seen.
    pub sites: Sites,
    /// The name that qmail-remote gives with HELO.
    pub helo: Vec<u8>,
    /// control/concurrencyreplies.
    pub replies: Replies,
}

impl Rules {
    /// No files: stock behaviour.
    #[must_use]
    pub fn stock(hasher: Hasher) -> Self {
        Self {
            hasher,
            table: None,
            routes: Routes::new(hasher),
            reads: Reads::default(),
            senders: Senders::new(hasher),
            sites: Sites::new(hasher),
            helo: Vec::new(),
            replies: Replies::default(),
        }
    }

    /// The numbers of the line of concurrencydomains that a resolution comes from, and of the line of smtproutes or
    /// authsenders that names its relay; from 1, and 0 for none.
    #[must_use]
    pub fn lines(&self, found: &Resolution<'_>) -> (u32, u32) {
        let of_table =
            self.table.as_ref().zip(found.line).map_or(0, |(table, line)| table.number(&line));
        let of_relay_line = match found.route {
            None => 0,
            Some(RelayLine::Smtproutes(place)) => self.routes.number(place),
            Some(RelayLine::Authsenders(place)) => self.senders.number(place),
        };
        (of_table, of_relay_line)
    }

    /// Whether the sender may choose the relay. Then the domain alone does not decide under which key its mail counts.
    #[must_use]
    pub fn sender_matters(&self) -> bool {
        (self.reads.senders == Asked::Yes && !self.senders.is_empty())
            || (self.reads.bounces == Asked::Yes && self.routes.find_own(BOUNCES).is_some())
    }

    /// The relay for a sender, if senders choose relays. The sender has no zero bytes at its end.
    #[must_use]
    pub fn by_sender(&self, sender: &[u8]) -> Option<SenderRelay<'_>> {
        self.table.as_ref()?;
        if self.reads.senders == Asked::Yes
            && let Some((name, place)) = self.senders.find(sender)
        {
            return Some(SenderRelay { name, line: RelayLine::Authsenders(place) });
        }
        if self.reads.bounces == Asked::Yes && sender.is_empty() {
            let found = self.routes.find_own(BOUNCES);
            return found
                .map(|(name, place)| SenderRelay { name, line: RelayLine::Smtproutes(place) });
        }
        None
    }

    /// Whether the relay of a sender is the next hop of mail to a domain with this hash. It is, unless the domain's own
    /// line puts it into a group.
    #[must_use]
    pub fn sender_decides(&self, hash: u64, domain: &[u8]) -> bool {
        let own = self.table.as_ref().and_then(|table| own_line(table, hash, domain));
        !own.is_some_and(own_decides)
    }

    /// The key and the limit of a domain, for mail that goes to the relay of its sender if the sender has one. The
    /// domain has no dot at its end.
    #[must_use]
    pub fn resolve_for<'a>(
        &'a self,
        domain: &'a [u8],
        relay: Option<SenderRelay<'a>>,
    ) -> Resolution<'a> {
        let hash = self.hasher.hash(domain);
        match relay {
            Some(SenderRelay { name, line }) if self.sender_decides(hash, domain) => {
                self.resolve_relay(name, Some(line))
            }
            _ => self.resolve_hashed(hash, domain),
        }
    }

    /// The key and the limit of a domain, or of a relay that was chosen by the sender.
    #[must_use]
    pub fn resolve_entry<'a>(&'a self, kind: KeyKind, hash: u64, name: &'a [u8]) -> Resolution<'a> {
        match kind {
            KeyKind::Relay => self.resolve_relay(name, None),
            KeyKind::Domain | KeyKind::Group | KeyKind::Candidates => {
                self.resolve_hashed(hash, name)
            }
        }
    }

    fn resolve_relay<'a>(&'a self, name: &'a [u8], route: Option<RelayLine>) -> Resolution<'a> {
        let next_hop = NextHop { name, hash: self.hasher.hash(name), route };
        let found = Resolution {
            kind: KeyKind::Relay,
            name,
            cap: Cap::NONE,
            line: None,
            route,
            site: None,
        };
        let Some(table) = &self.table else { return found };
        let line = table.find_relay(name);
        if let Some((group, because)) = self.site(&next_hop, line, table) {
            return of_site(table, group, because, found);
        }
        line.map_or(found, |line| of_line(table, line, found))
    }

    /// The key and the limit of a domain. The domain has no dot at its end.
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
            site: None,
        };
        let Some(table) = &self.table else { return unlimited };
        let own = own_line(table, hash, domain);
        // Most tables have no routes and no sites. Then the domain's own line is enough.
        let nothing_else_can =
            !table.has_ranges() && self.routes.is_empty() && self.sites.map.is_empty();
        if nothing_else_can || own.is_some_and(own_decides) {
            return own.map_or(unlimited, |line| of_line(table, line, unlimited));
        }
        let next_hop = self.next_hop(hash, domain);
        let line = match next_hop.route {
            Some(_) => table.find_relay(next_hop.name),
            None => own,
        };
        if let Some((group, because)) = self.site(&next_hop, line, table) {
            let route = next_hop.route;
            return of_site(table, group, because, Resolution { route, ..unlimited });
        }
        if let Some(line) = own
            && line.group.is_some()
        {
            return of_line(table, line, unlimited);
        }
        let NextHop { name, route, .. } = next_hop;
        let kind = if route.is_some() { KeyKind::Relay } else { KeyKind::Domain };
        let found = Resolution { kind, name, route, ..unlimited };
        line.map_or(found, |line| of_line(table, line, found))
    }

    /// The next hop of mail to a domain with this hash.
    #[inline]
    #[must_use]
    pub fn next_hop<'a>(&'a self, hash: u64, domain: &'a [u8]) -> NextHop<'a> {
        next_hop(&self.routes, self.hasher, hash, domain)
    }

    /// Whether the address matters to which a delivery connected.
    #[inline]
    #[must_use]
    pub fn looks_at_addresses(&self) -> bool {
        self.table.as_ref().is_some_and(Table::has_ranges)
    }

    /// Whether the report matters of a delivery whose key has this cap.
    #[inline]
    #[must_use]
    pub fn reads_reports(&self, cap: Cap) -> bool {
        cap.learning == Learning::On
            || (self.table.is_some() && !self.replies.is_empty())
            || self.looks_at_addresses()
    }

    /// The group of the site that is at this address.
    #[must_use]
    pub fn group_at(&self, peer: IpAddr) -> Option<&[u8]> {
        let table = self.table.as_ref()?;
        table.find_address(peer).map(|range| &table.groups()[range.group as usize].name[..])
    }

    /// Notes that a delivery to a domain, or to a relay, was at this address. Returns whether its next hop may belong
    /// to another site from now on.
    ///
    /// # Errors
    /// No memory: nothing is noted.
    pub fn note(
        &mut self,
        kind: KeyKind,
        name: &[u8],
        peer: IpAddr,
        evidence: Evidence,
    ) -> Result<bool, OutOfMemory> {
        let Some(table) = &self.table else { return Ok(false) };
        let hash = self.hasher.hash(name);
        let next_hop = match kind {
            KeyKind::Domain => next_hop(&self.routes, self.hasher, hash, name),
            KeyKind::Relay | KeyKind::Group | KeyKind::Candidates => {
                NextHop { name, hash, route: None }
            }
        };
        self.sites.seen.note(next_hop.hash, next_hop.name, peer, evidence, table)
    }

    /// The group of a next hop's site, unless `line`, which matches its name, decides.
    fn site(
        &self,
        next_hop: &NextHop<'_>,
        line: Option<Line>,
        table: &Table,
    ) -> Option<(u32, SiteReason)> {
        if line.is_some_and(|line| !line.is_default()) {
            return None;
        }
        self.sites.group(next_hop.hash, next_hop.name, table)
    }

    /// Whether the operator has named this key: a group, a relay, or a domain with its own line. Other names come from
    /// the senders of mail.
    #[must_use]
    pub fn has_named(&self, kind: KeyKind, name: &[u8]) -> bool {
        match kind {
            KeyKind::Group | KeyKind::Relay | KeyKind::Candidates => true,
            KeyKind::Domain => self.table.as_ref().is_some_and(|table| table.has_line(name)),
        }
    }

    fn cap_of_group(&self, name: &[u8]) -> Option<Cap> {
        let table = self.table.as_ref()?;
        table.group(name).map(|index| table.groups()[index as usize].cap())
    }

    /// The cap of a key that exists; None if no domain can have this key any more. A domain's key ends when a group or
    /// a route takes the domain over.
    #[must_use]
    pub fn cap_of(&self, kind: KeyKind, name: &[u8]) -> Option<Cap> {
        let table = self.table.as_ref();
        match kind {
            KeyKind::Group => self.cap_of_group(name),
            KeyKind::Candidates => self.cap_of_group(name).map(of_candidates),
            KeyKind::Domain => {
                let now = self.resolve(name);
                (now.kind == kind && now.name.eq_ignore_ascii_case(name)).then_some(now.cap)
            }
            KeyKind::Relay => {
                let Some(table) = table else { return Some(Cap::NONE) };
                let line = table.find_relay(name);
                let next_hop = NextHop { name, hash: self.hasher.hash(name), route: None };
                match line {
                    _ if self.site(&next_hop, line, table).is_some() => None,
                    Some(line) if line.group.is_some() => None,
                    Some(line) => Some(line.cap),
                    None => Some(Cap::NONE),
                }
            }
        }
    }
}

/// The cap of a site's candidates: all together have half of the site's limit, and each one place (core/gate/sites.rs).
/// With half, a hundred unknown domains behind one server become members about as fast as the server takes their mail
/// (tests/simulation.rs).
fn of_candidates(cap: Cap) -> Cap {
    match cap.limit {
        Limit::AtMost(limit) => Cap { limit: Limit::AtMost(limit.div_ceil(2)), ..cap },
        Limit::Unlimited => cap,
    }
}

/// The line that matches a domain itself.
fn own_line(table: &Table, hash: u64, domain: &[u8]) -> Option<Line> {
    match domain {
        [b'[', ..] => table.find_domain(hash, domain),
        _ => table.find_hashed(hash, domain),
    }
}

/// Whether a domain's own line decides because it puts the domain into a group.
fn own_decides(line: Line) -> bool {
    line.group.is_some() && !line.is_default()
}

/// Puts the cap and the group of a line into what was found so far. Its group applies whatever the next hop is.
fn of_line<'a>(table: &'a Table, line: Line, found: Resolution<'a>) -> Resolution<'a> {
    let group = line.group.map(|index| &table.groups()[index as usize]);
    let (kind, name) =
        group.map_or((found.kind, found.name), |group| (KeyKind::Group, &group.name[..]));
    Resolution { kind, name, cap: line.cap, line: Some(line), ..found }
}

fn of_site<'a>(
    table: &'a Table,
    group: u32,
    because: SiteReason,
    found: Resolution<'a>,
) -> Resolution<'a> {
    let group = &table.groups()[group as usize];
    let (kind, cap) = match because {
        SiteReason::Refused(..) => (KeyKind::Candidates, of_candidates(group.cap())),
        SiteReason::Map(_) | SiteReason::Literal(..) | SiteReason::Address(..) => {
            (KeyKind::Group, group.cap())
        }
    };
    Resolution { kind, name: &group.name, cap, site: Some(because), ..found }
}

fn next_hop<'a>(routes: &'a Routes, hasher: Hasher, hash: u64, domain: &'a [u8]) -> NextHop<'a> {
    match routes.find_hashed(hash, domain) {
        Some((name, place)) => {
            NextHop { name, hash: hasher.hash(name), route: Some(RelayLine::Smtproutes(place)) }
        }
        None => NextHop { name: domain, hash, route: None },
    }
}

/// The next hop of mail.
#[derive(Clone, Copy, Debug)]
pub struct NextHop<'a> {
    /// A relay of smtproutes, or the domain itself.
    pub name: &'a [u8],
    /// The hash of the name.
    pub hash: u64,
    /// The line of smtproutes or authsenders that names it.
    pub route: Option<RelayLine>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::site::{Evidence, Map};

    fn rules(table: &str, routes: &str) -> Rules {
        let hasher = Hasher::new(5);
        Rules {
            hasher,
            table: Some(Table::parse(table.as_bytes(), hasher).unwrap().0),
            routes: Routes::parse(routes.as_bytes(), hasher).unwrap().0,
            ..Rules::stock(hasher)
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
    fn the_domains_own_line_decides_without_routes_and_sites() {
        let table = ":20\na.example:1:g\n.sub.example:7\n";
        let own = |rules: &Rules, domain: &str, limit| {
            let expected = (KeyKind::Domain, domain.to_string(), limit);
            assert_eq!(resolved(rules, domain), expected);
        };
        let at_most = Limit::AtMost;
        let group = |name: &str, limit| (KeyKind::Group, name.to_string(), at_most(limit));
        let plain = rules(table, "");
        own(&plain, "x.example", at_most(20));
        own(&plain, "x.sub.example", at_most(7));
        assert_eq!(resolved(&plain, "a.example"), group("g", 1));
        own(&rules("b.example:3\n", ""), "x.example", Limit::Unlimited);
        assert_eq!(resolved(&rules(":3:rest\n", ""), "x.example"), group("rest", 3));
        // With a route, a site of the map, or an address, that decides.
        let routed = rules(table, "x.example:relay.example\n");
        let relay = (KeyKind::Relay, "relay.example".to_string(), at_most(20));
        assert_eq!(resolved(&routed, "x.example"), relay);
        let mut mapped = rules(table, "");
        mapped.sites.map = Map::parse(b"x.example:g\n", mapped.hasher).unwrap().0;
        assert_eq!(resolved(&mapped, "x.example"), group("g", 1));
        let mut seen = rules("192.0.2.0/24:1\n", "");
        let address = "192.0.2.9".parse().unwrap();
        seen.note(KeyKind::Domain, b"x.example", address, Evidence::Took).unwrap();
        assert_eq!(resolved(&seen, "x.example"), group("192.0.2.0/24", 1));
    }

    #[test]
    fn addresses_are_found_in_all_notations() {
        let at_most = Limit::AtMost;
        let routes = "six.example:[2001:DB8:0::25]:26|u|p\nfour.example:[::ffff:192.0.2.1]\nother.example:[2001:db8::26]\n\
                      far.example:[2001:db8:1::1]\n";
        let relay = |name: &str, limit| (KeyKind::Relay, name.to_string(), at_most(limit));
        let group = |name: &str, limit| (KeyKind::Group, name.to_string(), at_most(limit));
        for (table, six, four, other) in [
            (
                ":20\n[2001:db8::25]:100\n[192.0.2.1]:7\n",
                relay("2001:db8::25", 100),
                relay("192.0.2.1", 7),
                20,
            ),
            (
                ":20\n[IPv6:2001:db8:0:0::25]:100\n192.0.2.1:7\n",
                relay("2001:db8::25", 100),
                relay("192.0.2.1", 7),
                20,
            ),
            (
                "[2001:DB8::0:25]:100\n[::ffff:192.0.2.1]:7\n:20\n",
                relay("2001:db8::25", 100),
                relay("192.0.2.1", 7),
                20,
            ),
            (
                ":20\n[2001:db8::25]/128:100:relay\n192.0.2.1/32:7\n",
                group("relay", 100),
                group("192.0.2.1/32", 7),
                20,
            ),
            (
                ":20\n[2001:db8::25]:100:both\n[192.0.2.1]:7:both\n",
                group("both", 7),
                group("both", 7),
                20,
            ),
            (
                ":20\n[2001:db8::]/64:5:net\n[2001:db8::25]:100\n192.0.2.0/24:7\n",
                relay("2001:db8::25", 100),
                group("192.0.2.0/24", 7),
                5,
            ),
        ] {
            let rules = rules(table, routes);
            assert_eq!(resolved(&rules, "six.example"), six, "{table}");
            assert_eq!(resolved(&rules, "four.example"), four, "{table}");
            assert_eq!(resolved(&rules, "other.example").2, at_most(other), "{table}");
            assert_eq!(resolved(&rules, "far.example"), relay("2001:db8:1::1", 20), "{table}");
            for (kind, name, limit) in [six, four] {
                assert_eq!(
                    rules.cap_of(kind, name.as_bytes()).map(|cap| cap.limit),
                    Some(limit),
                    "{table}"
                );
            }
        }
        // Mail to an address literal: its site is known without a delivery.
        let rules = rules(":20\n[2001:db8::25]:3\n192.0.2.0/24:7:net\n[192.0.2.9]:1\n", "");
        for (domain, expected) in [
            (
                "[IPv6:2001:DB8:0::25]",
                (KeyKind::Domain, "[IPv6:2001:DB8:0::25]".to_string(), at_most(3)),
            ),
            ("[192.0.2.7]", group("net", 7)),
            ("[192.0.2.9]", (KeyKind::Domain, "[192.0.2.9]".to_string(), at_most(1))),
            ("[192.0.3.9]", (KeyKind::Domain, "[192.0.3.9]".to_string(), at_most(20))),
            ("[no address]", (KeyKind::Domain, "[no address]".to_string(), at_most(20))),
        ] {
            assert_eq!(resolved(&rules, domain), expected);
        }
        assert_eq!(rules.cap_of(KeyKind::Relay, b"192.0.2.1"), None, "a site has taken it over");
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

    #[test]
    fn sites_come_before_the_default_line() {
        let mut rules = rules(
            "192.0.2.0/24:10:outlook\n:20:rest\nown.example:3\n.suffix.example:4\ngrouped.example:5:g\n\
             mx:.outlook.com:9:outlook\nrelay2.example:6\n",
            "routed.example:relay.example\nrouted2.example:relay2.example\n",
        );
        let hasher = rules.hasher;
        let names = [
            "seen.example",
            "own.example",
            "a.suffix.example",
            "grouped.example",
            "relay.example",
            "relay2.example",
        ];
        for name in names {
            let (table, seen) = (rules.table.as_ref().unwrap(), &mut rules.sites.seen);
            let address = "192.0.2.9".parse().unwrap();
            seen.note(
                hasher.hash(name.as_bytes()),
                name.as_bytes(),
                address,
                Evidence::Took,
                table,
            )
            .unwrap();
        }
        rules.sites.map = Map::parse(
            b"mapped.example:outlook\nown.example:outlook\nlost.example:nowhere\nseen.example:g\n",
            hasher,
        )
        .unwrap()
        .0;
        let outlook = (KeyKind::Group, "outlook".to_string(), Limit::AtMost(9));
        assert_eq!(resolved(&rules, "mapped.example"), outlook);
        assert_eq!(resolved(&rules, "routed.example"), outlook);
        let group = |name: &str, limit| (KeyKind::Group, name.to_string(), Limit::AtMost(limit));
        assert_eq!(resolved(&rules, "seen.example"), group("g", 5), "the map comes first");
        assert_eq!(resolved(&rules, "lost.example"), group("rest", 20));
        assert_eq!(resolved(&rules, "grouped.example"), group("g", 5));
        let domain = |name: &str, limit| (KeyKind::Domain, name.to_string(), Limit::AtMost(limit));
        assert_eq!(resolved(&rules, "own.example"), domain("own.example", 3));
        assert_eq!(resolved(&rules, "a.suffix.example"), domain("a.suffix.example", 4));
        // The group of the default line comes before a relay's own line.
        assert_eq!(resolved(&rules, "routed2.example"), group("rest", 20));
        assert_eq!(rules.cap_of(KeyKind::Relay, b"relay.example"), None);
        assert!(rules.cap_of(KeyKind::Relay, b"relay2.example").is_some());
    }
}
