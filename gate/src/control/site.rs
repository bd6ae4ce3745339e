//! Sites: domains whose mail goes to the same servers, and which therefore count together, although their names differ.
//!
//! There are two sources. **The map**, control/concurrencysites, has a line `domain:group` for each domain whose mail
//! exchangers match a line with `mx:` of concurrencydomains. `qpatch gate sites` looks them up in DNS and writes the
//! file, so the spawner never asks DNS. **Addresses of deliveries**: qmail-remote prints the address that it was
//! connected to. If that is in a range of concurrencydomains, the next hop, a domain or a relay of smtproutes, belongs
//! to the group of that range.
//!
//! An address counts only where qmail-remote itself prints it (see [`crate::report`]), so no server can claim the
//! address of another. A domain counts with the provider that its mail exchanger belongs to, because its mail goes
//! there.
//!
//! **Members and candidates.** A next hop becomes a member of a site when the site takes its mail. One that the site
//! only refused is a candidate: the owner of a domain can point its mail exchanger at a provider for one delivery, and
//! elsewhere for the next. All candidates of a site count together, apart from its members (see
//! [`crate::core::rules`]): they take none of the members' places, and their replies say nothing about the site. The
//! first mail that the site takes makes a candidate a member. A delivery that was connected to an address elsewhere
//! removes the next hop, whether it was a candidate or a member.
//!
//! The memory is bounded: only next hops with an address in a range are remembered, of these the [`SEEN_MAX`] members
//! and the [`CANDIDATES_MAX`] candidates with the latest deliveries.

#![forbid(unsafe_code)]

use std::net::IpAddr;

use crate::control::literal;
use crate::control::name::{Hasher, NAME_MAX, is_host, without_root};
use crate::control::name_map::{NameMap, VALUE_MAX};
use crate::control::problem::{File, Kind, Problems};
use crate::control::table::{Table, content_lines, without_mark};
use crate::util::escape::{Escaped, unescaped_bytes};
use crate::util::index::Index;
use crate::util::list::{EMPTY, Link, List, NONE, UNLINKED, append, unlink};
use crate::util::memory::{self, OutOfMemory};

/// The most members of sites that are known by their address; about 6 MB.
pub const SEEN_MAX: usize = 50_000;

/// The most candidates. They have a list of their own, so that names which strangers choose displace no member.
pub const CANDIDATES_MAX: usize = 5_000;

/// control/concurrencysites.
#[derive(Debug)]
pub struct Map {
    domains: NameMap,
    groups: Vec<Vec<u8>>,
}

impl Map {
    /// No line.
    #[must_use]
    pub fn new(hasher: Hasher) -> Self {
        Self { domains: NameMap::new(hasher), groups: Vec::new() }
    }

    /// Parses a file. It has no errors, only warnings about lines that do nothing.
    ///
    /// # Errors
    /// No memory.
    pub fn parse(text: &[u8], hasher: Hasher) -> Result<(Self, Problems), OutOfMemory> {
        let mut problems = Problems::new(File::Sites);
        let text = without_mark(text);
        let room = content_lines(text).count();
        let mut map = Self { domains: NameMap::with_room(hasher, room)?, groups: Vec::new() };
        // The index of each group's name.
        let mut known = NameMap::with_room(hasher, room)?;
        for (number, content) in content_lines(text) {
            let colon = content.iter().position(|&byte| byte == b':').unwrap_or(0);
            let (domain, group) = (&content[..colon], content.get(colon + 1..).unwrap_or_default());
            // A group that is named after its range may have a longer name than one that is written.
            let fits = |name: &[u8]| {
                !name.is_empty() && name.len() <= NAME_MAX && name.iter().all(u8::is_ascii_graphic)
            };
            if !fits(domain) || domain[0] == b'.' || !fits(group) {
                problems.add(number, 0, Kind::SiteLine);
                continue;
            }
            let index = match known.find(group) {
                Some((index, _)) => index,
                None if map.groups.len() >= VALUE_MAX as usize => {
                    problems.add(number, 0, Kind::TooManySites);
                    continue;
                }
                None => {
                    let index = map.groups.len() as u32;
                    let mut name = Vec::new();
                    name.try_reserve_exact(group.len())?;
                    name.extend_from_slice(group);
                    memory::push(&mut map.groups, name)?;
                    known.insert(group, index, number)?;
                    index
                }
            };
            map.domains.insert(without_root(domain), index, number)?;
        }
        Ok((map, problems))
    }

    /// The group of a domain whose hash is known, and the line that says so, from 1.
    #[inline]
    #[must_use]
    pub fn find_hashed(&self, hash: u64, domain: &[u8]) -> Option<(&[u8], u32)> {
        let (index, place) = self.domains.find_hashed(hash, domain)?;
        Some((&self.groups[index as usize], self.domains.line(place)))
    }

    /// How many domains it has.
    #[must_use]
    pub fn len(&self) -> usize {
        self.domains.len()
    }

    /// Whether it has none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.domains.is_empty()
    }

    /// The names of its groups.
    pub fn groups(&self) -> impl Iterator<Item = &[u8]> {
        self.groups.iter().map(Vec::as_slice)
    }
}

/// What a delivery showed about an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Evidence {
    /// It took the mail.
    Took,
    /// The delivery was connected to it.
    Answered,
}

/// How a next hop belongs to the site that its address is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// The site has taken its mail.
    Member,
    /// The site has refused its mail, and taken none yet.
    Candidate,
}

#[derive(Debug)]
struct Hop {
    hash: u64,
    name: Vec<u8>,
    address: IpAddr,
    link: Link,
}

/// Next hops with their addresses, up to a number of them.
#[derive(Debug)]
struct Hops {
    all: Vec<Hop>,
    index: Index,
    /// In the order of their last deliveries, the oldest first.
    order: List,
    most: usize,
}

impl Hops {
    fn with_most(most: usize) -> Self {
        Self { all: Vec::new(), index: Index::default(), order: EMPTY, most: most.max(1) }
    }

    #[inline]
    fn at(&self, hash: u64) -> Option<u32> {
        self.index.find(hash, |at| self.all[at as usize].hash == hash)
    }

    fn touch(&mut self, at: u32) {
        if self.order.last != at {
            unlink(&mut self.order, at, &mut self.all, |hop| &mut hop.link);
            append(&mut self.order, at, &mut self.all, |hop| &mut hop.link);
        }
    }

    fn insert(&mut self, hash: u64, name: &[u8], address: IpAddr) -> Result<(), OutOfMemory> {
        if self.all.len() >= self.most {
            self.remove(self.order.first);
        }
        let mut lower = Vec::new();
        lower.try_reserve_exact(name.len())?;
        lower.extend(name.iter().map(u8::to_ascii_lowercase));
        self.all.try_reserve(1)?;
        let at = self.all.len() as u32;
        self.index.insert(hash, at)?;
        self.all.push(Hop { hash, name: lower, address, link: UNLINKED });
        append(&mut self.order, at, &mut self.all, |hop| &mut hop.link);
        Ok(())
    }

    /// The last entry moves there, so that there are no gaps.
    fn remove(&mut self, at: u32) {
        unlink(&mut self.order, at, &mut self.all, |hop| &mut hop.link);
        self.index.remove(self.all[at as usize].hash, at);
        let last = self.all.len() as u32 - 1;
        self.all.swap_remove(at as usize);
        if at != last {
            let Hop { hash, link, .. } = self.all[at as usize];
            self.index.remove(hash, last);
            // There is room, because one was removed.
            let _ = self.index.insert(hash, at);
            match link.prev {
                NONE => self.order.first = at,
                prev => self.all[prev as usize].link.next = at,
            }
            match link.next {
                NONE => self.order.last = at,
                next => self.all[next as usize].link.prev = at,
            }
        }
    }
}

/// The addresses of next hops.
#[derive(Debug)]
pub struct Seen {
    members: Hops,
    candidates: Hops,
    changes: u64,
}

impl Default for Seen {
    fn default() -> Self {
        Self::with_most(SEEN_MAX, CANDIDATES_MAX)
    }
}

impl Seen {
    /// Remembers at most this many members and candidates.
    #[must_use]
    pub fn with_most(members: usize, candidates: usize) -> Self {
        Self {
            members: Hops::with_most(members),
            candidates: Hops::with_most(candidates),
            changes: 0,
        }
    }

    /// The address of the next hop with this hash, and how it belongs to the site.
    #[inline]
    #[must_use]
    pub fn address(&self, hash: u64) -> Option<(IpAddr, Standing)> {
        let find = |hops: &Hops| hops.at(hash).map(|at| hops.all[at as usize].address);
        find(&self.members)
            .map(|address| (address, Standing::Member))
            .or_else(|| find(&self.candidates).map(|address| (address, Standing::Candidate)))
    }

    /// Notes that a delivery to the next hop with this hash was connected to this address. Returns whether it now
    /// belongs to another group, or in another way. It ignores an address that is in no range, and a name that no host
    /// has.
    ///
    /// # Errors
    /// No memory: the next hop is not known.
    pub fn note(
        &mut self,
        hash: u64,
        name: &[u8],
        address: IpAddr,
        evidence: Evidence,
        table: &Table,
    ) -> Result<bool, OutOfMemory> {
        let group = |address| table.find_address(address).map(|range| range.group);
        let now = group(address);
        let before = self.address(hash).map(|(known, standing)| (group(known), known, standing));
        let standing = match (before, evidence) {
            // Another delivery at the same site does not change what it is.
            (Some((there, _, Standing::Member)), _) if there == now => Standing::Member,
            (_, Evidence::Took) => Standing::Member,
            (_, Evidence::Answered) => Standing::Candidate,
        };
        if let Some((there, known, was)) = before
            && there == now
            && was == standing
        {
            let hops = self.hops(standing);
            if let Some(at) = hops.at(hash) {
                hops.touch(at);
                hops.all[at as usize].address = address;
            }
            self.changes += u64::from(known != address && standing == Standing::Member);
            return Ok(false);
        }
        if let Some((.., was)) = before {
            self.remove(hash, was);
        }
        if now.is_none() || !is_host(name) {
            return Ok(before.is_some());
        }
        self.hops(standing).insert(hash, name, address)?;
        self.changes += u64::from(standing == Standing::Member);
        Ok(true)
    }

    fn hops(&mut self, standing: Standing) -> &mut Hops {
        match standing {
            Standing::Member => &mut self.members,
            Standing::Candidate => &mut self.candidates,
        }
    }

    fn remove(&mut self, hash: u64, standing: Standing) {
        let hops = self.hops(standing);
        if let Some(at) = hops.at(hash) {
            hops.remove(at);
            self.changes += u64::from(standing == Standing::Member);
        }
    }

    /// Restores a member from before a restart; see [`Seen::iter`] for the order.
    ///
    /// # Errors
    /// No memory: nothing has changed.
    pub fn restore(
        &mut self,
        hasher: Hasher,
        name: &[u8],
        address: IpAddr,
    ) -> Result<(), OutOfMemory> {
        let hash = hasher.hash(name);
        match self.members.at(hash) {
            Some(at) => self.members.all[at as usize].address = address,
            None => {
                self.members.insert(hash, name, address)?;
                self.changes += 1;
            }
        }
        Ok(())
    }

    /// All members with their addresses, in the order of their last deliveries, the oldest first.
    pub fn iter(&self) -> impl Iterator<Item = (&[u8], IpAddr)> {
        let mut at = self.members.order.first;
        std::iter::from_fn(move || {
            let hop = self.members.all.get(at as usize)?;
            at = hop.link.next;
            Some((&hop.name[..], hop.address))
        })
    }

    /// Counts the changes of the members, without those of their order.
    #[must_use]
    pub fn changes(&self) -> u64 {
        self.changes
    }

    /// How many members there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.members.all.len()
    }

    /// Whether there is neither member nor candidate.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.members.all.is_empty() && self.candidates.all.is_empty()
    }
}

/// Why a next hop counts for a site.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SiteReason {
    /// A line of control/concurrencysites, from 1.
    Map(u32),
    /// Its name is an address in the range of this line of control/concurrencydomains, from 1.
    Literal(IpAddr, u32),
    /// Its mail was taken at an address in the range of this line of control/concurrencydomains, from 1.
    Address(IpAddr, u32),
    /// Its mail was refused at such an address, and none was taken there yet: it is a candidate. The number is that of
    /// the line.
    Refused(IpAddr, u32),
}

/// Both sources.
#[derive(Debug)]
pub struct Sites {
    /// control/concurrencysites.
    pub map: Map,
    /// The addresses of deliveries.
    pub seen: Seen,
}

impl Sites {
    /// No map, and no address is known.
    #[must_use]
    pub fn new(hasher: Hasher) -> Self {
        Self { map: Map::new(hasher), seen: Seen::default() }
    }

    /// The index of the group that a next hop belongs to by its site. The map, which the operator asked for, comes
    /// before addresses. A line of the map whose group is not in the table does not count.
    #[inline]
    #[must_use]
    pub fn group(&self, hash: u64, next_hop: &[u8], table: &Table) -> Option<(u32, SiteReason)> {
        if !self.map.is_empty()
            && let Some((name, line)) = self.map.find_hashed(hash, next_hop)
            && let Some(group) = table.group(name)
        {
            return Some((group, SiteReason::Map(line)));
        }
        if !table.has_ranges() {
            return None;
        }
        if let Some(address) = literal::of_name(next_hop) {
            let range = table.find_address(address)?;
            return Some((range.group, SiteReason::Literal(address, range.line)));
        }
        let (address, standing) = self.seen.address(hash)?;
        let range = table.find_address(address)?;
        let because = match standing {
            Standing::Member => SiteReason::Address(address, range.line),
            Standing::Candidate => SiteReason::Refused(address, range.line),
        };
        Some((range.group, because))
    }
}

/// queue/lock/gatesites, which keeps the members over a restart: a line for each next hop, with its name, a tab and its
/// address, then a line `end`. Names are escaped as in the status file.
pub const HEAD: &[u8] = b"qpatch-sites\t1\n";

/// The largest such file, in bytes.
pub const FILE_MAX: u64 = 64 << 20;

/// Writes the file into `out`, which is emptied first.
///
/// # Errors
/// No memory.
pub fn write(out: &mut memory::Text, seen: &Seen) -> Result<(), OutOfMemory> {
    use std::fmt::Write as _;
    out.bytes.clear();
    out.push(HEAD)?;
    for (name, address) in seen.iter() {
        writeln!(out, "{}\t{address}", Escaped(name)).map_err(|_| OutOfMemory)?;
    }
    out.push(b"end\n")
}

/// Reads the file. It is overwritten in place, so after a crash it may be torn; each line that can be read counts. A
/// name that no host has is dropped: earlier builds wrote the password of a relay behind the name of the relay.
///
/// # Errors
/// No memory; what was read so far counts.
pub fn read(bytes: &[u8], hasher: Hasher, seen: &mut Seen) -> Result<(), OutOfMemory> {
    let Some(lines) = bytes.strip_prefix(HEAD) else { return Ok(()) };
    for line in lines.split_inclusive(|&byte| byte == b'\n') {
        let Some(line) = line.strip_suffix(b"\n") else { break };
        if line == b"end" {
            break;
        }
        let mut fields = line.split(|&byte| byte == b'\t');
        let (Some(name), Some(address), None) = (fields.next(), fields.next(), fields.next())
        else {
            continue;
        };
        let Some(address) = std::str::from_utf8(address).ok().and_then(|text| text.parse().ok())
        else {
            continue;
        };
        let Some(name) = unescaped_bytes(name) else { continue };
        if is_host(&name) && name.len() <= NAME_MAX {
            seen.restore(hasher, &name, address)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::util::random::Random;
    use std::collections::HashMap;

    fn table(text: &str) -> Table {
        Table::parse(text.as_bytes(), Hasher::new(1)).unwrap().0
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn note(seen: &mut Seen, name: &str, at: &str, evidence: Evidence, table: &Table) -> bool {
        seen.note(Hasher::new(1).hash(name.as_bytes()), name.as_bytes(), ip(at), evidence, table)
            .unwrap()
    }

    #[test]
    fn the_map() {
        let (map, problems) = Map::parse(
            b"# by qpatch gate sites\nA.example:outlook\nb.example.:Outlook\n.c.example:x\n:x\nnothing\nd.example:\n\
              e.example:mx:.outlook.com\nf g:x\n",
            Hasher::new(1),
        )
        .unwrap();
        let lines: Vec<_> = problems.iter().map(|problem| (problem.line, problem.kind)).collect();
        assert_eq!(lines, [4, 5, 6, 7, 9].map(|line| (line, Kind::SiteLine)));
        let find = |name: &str| {
            map.find_hashed(Hasher::new(1).hash(name.as_bytes()), name.as_bytes())
                .map(|(group, line)| (std::str::from_utf8(group).unwrap(), line))
        };
        assert_eq!(find("a.EXAMPLE"), Some(("outlook", 2)));
        assert_eq!(find("b.example"), Some(("outlook", 3)));
        assert_eq!(find("e.example"), Some(("mx:.outlook.com", 8)));
        assert_eq!(find("x.c.example"), None);
        assert_eq!((map.len(), map.groups().count()), (3, 2));
    }

    #[test]
    fn what_took_mail_is_a_member_and_what_refused_it_a_candidate() {
        use Evidence::{Answered, Took};
        let table = table("192.0.2.0/24:10:a\n198.51.100.0/24:10:b\n192.0.2.9/32:10:a\n");
        let mut seen = Seen::default();
        let hash = Hasher::new(1).hash(b"x.example");
        let note =
            |seen: &mut Seen, at: &str, evidence| note(seen, "x.example", at, evidence, &table);
        let known =
            |seen: &Seen| seen.address(hash).map(|(at, standing)| (at.to_string(), standing));
        let is = |at: &str, standing| Some((at.to_string(), standing));
        assert!(!note(&mut seen, "203.0.113.1", Took), "in no range");
        assert!(seen.is_empty());
        assert!(note(&mut seen, "192.0.2.1", Answered));
        assert_eq!(known(&seen), is("192.0.2.1", Standing::Candidate));
        assert!(!note(&mut seen, "192.0.2.9", Answered), "another range of the same group");
        assert_eq!((seen.len(), seen.changes()), (0, 0), "a candidate is not written down");
        assert!(note(&mut seen, "198.51.100.1", Answered), "elsewhere it is a candidate, too");
        assert_eq!(known(&seen), is("198.51.100.1", Standing::Candidate));
        assert!(note(&mut seen, "203.0.113.1", Answered), "any evidence takes it out");
        assert!(seen.is_empty());
        assert!(note(&mut seen, "192.0.2.1", Answered));
        assert!(note(&mut seen, "192.0.2.1", Took));
        assert_eq!(known(&seen), is("192.0.2.1", Standing::Member));
        assert!(!note(&mut seen, "192.0.2.9", Answered));
        assert_eq!(known(&seen), is("192.0.2.9", Standing::Member));
        assert!(note(&mut seen, "198.51.100.1", Took));
        assert_eq!(known(&seen), is("198.51.100.1", Standing::Member));
        assert!(note(&mut seen, "192.0.2.1", Answered), "a member as well");
        assert_eq!(known(&seen), is("192.0.2.1", Standing::Candidate));
        assert!(note(&mut seen, "203.0.113.1", Took));
        assert!(seen.is_empty());
    }

    #[test]
    fn candidates_push_no_member_out() {
        let table = table("192.0.2.0/24:10:a\n");
        let mut seen = Seen::with_most(3, 2);
        for name in ["a", "b", "c"] {
            note(&mut seen, name, "192.0.2.1", Evidence::Took, &table);
        }
        for at in 0..100 {
            let name = format!("stranger{at}");
            note(&mut seen, &name, "192.0.2.1", Evidence::Answered, &table);
        }
        assert_eq!((seen.members.all.len(), seen.candidates.all.len()), (3, 2));
    }

    #[test]
    fn the_oldest_goes_first() {
        let table = table("192.0.2.0/24:10:a\n");
        let mut seen = Seen::with_most(3, 3);
        for name in ["a", "b", "c", "a", "d"] {
            note(&mut seen, name, "192.0.2.1", Evidence::Took, &table);
        }
        let names: Vec<_> = seen.iter().map(|(name, _)| name[0]).collect();
        assert_eq!(names, b"cad");
    }

    #[test]
    fn agrees_with_a_map() {
        let table = table("192.0.2.0/24:10:a\n");
        let mut random = Random::new(9);
        let mut seen = Seen::with_most(100, 100);
        let mut model: HashMap<u64, u64> = HashMap::new();
        for now in 0..20_000u64 {
            let name = format!("d{}.example", random.next() % 150);
            let hash = Hasher::new(1).hash(name.as_bytes());
            let inside = !random.next().is_multiple_of(4);
            let at = if inside { "192.0.2.7" } else { "203.0.113.1" };
            note(&mut seen, &name, at, Evidence::Took, &table);
            if inside {
                model.insert(hash, now);
                if model.len() > 100 {
                    let oldest = *model.iter().min_by_key(|&(_, &at)| at).unwrap().0;
                    model.remove(&oldest);
                }
            } else {
                model.remove(&hash);
            }
            assert_eq!(seen.len(), model.len());
        }
        assert!(model.keys().all(|&hash| seen.address(hash).is_some()));
        let mut order: Vec<(u64, u64)> = model.iter().map(|(&hash, &at)| (at, hash)).collect();
        order.sort_unstable();
        let found: Vec<u64> = seen.iter().map(|(name, _)| Hasher::new(1).hash(name)).collect();
        assert_eq!(found, order.iter().map(|&(_, hash)| hash).collect::<Vec<_>>());
    }

    #[test]
    fn it_survives_a_restart() {
        let table = table("192.0.2.0/24:10:a\n[2001:db8::]/32:10:a\n");
        let mut seen = Seen::default();
        for (name, at) in [("a.example", "192.0.2.1"), ("b\u{fc}.example", "2001:db8::1")] {
            note(&mut seen, name, at, Evidence::Took, &table);
        }
        let mut text = memory::Text::default();
        write(&mut text, &seen).unwrap();
        assert_eq!(
            String::from_utf8_lossy(&text.bytes),
            "qpatch-sites\t1\na.example\t192.0.2.1\nb%c3%bc.example\t2001:db8::1\nend\n"
        );
        let hasher = Hasher::new(77);
        let restored = |bytes: &[u8]| {
            let mut again = Seen::default();
            read(bytes, hasher, &mut again).unwrap();
            again.iter().map(|(name, at)| (name.to_vec(), at)).collect::<Vec<_>>()
        };
        let all: Vec<_> = seen.iter().map(|(name, at)| (name.to_vec(), at)).collect();
        assert_eq!(restored(&text.bytes), all);
        // Torn, or not such a file at all.
        assert_eq!(restored(&text.bytes[..text.bytes.len() - 8]), all[..1]);
        assert_eq!(restored(b"qpatch-sites\t1\nx\nend\n"), []);
        assert_eq!(
            restored(b"qpatch-sites\t1\nx\ty\tz\n%c3%bc\t1.2.3.4\n\t1.2.3.4\na\t1.2.3.4\n").len(),
            2
        );
        // What earlier builds took as names of relays, and what is no name.
        let odd = [
            "r|u|S3cret",
            "r u S3cret",
            "r%09u",
            "u@r",
            "[r|u|S3cret",
            "%zz",
            "r:26",
            "[10.0.0.300]",
            "r%00",
        ];
        for name in odd {
            assert_eq!(
                restored(format!("qpatch-sites\t1\n{name}\t192.0.2.1\nend\n").as_bytes()),
                [],
                "{name}"
            );
        }
        for name in ["[192.0.2.1]", "192.0.2.1", "2001:db8::1", "a_b.example", "x"] {
            let text = format!("qpatch-sites\t1\n{name}\t192.0.2.1\nend\n");
            assert_eq!(restored(text.as_bytes()).len(), 1, "{name}");
        }
        assert_eq!(restored(b"else\na\t1.2.3.4\n"), []);
        for cut in 0..text.bytes.len() {
            restored(&text.bytes[..cut]);
        }
    }
}
