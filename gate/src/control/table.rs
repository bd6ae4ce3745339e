//! control/concurrencydomains: `domain:limit[:group[:words]]`.
//!
//! A line ends with LF or CRLF; spaces and tabs at its end are ignored, as in all of qmail's control files. Empty lines
//! and lines that begin with `#` are comments. A domain is looked up as in smtproutes: the exact name, then each
//! `.suffix`, then the empty name. Of two lines for the same domain the later one counts, as in every file that qmail
//! reads into a constmap. An empty limit means unlimited; 0 holds everything. The lines of a group count together,
//! under the lowest of their limits.
//!
//! In place of a domain a line may have a range of addresses, `192.0.2.0/24` or `[2001:db8::]/32`, or a name of mail
//! exchangers, `mx:mail.example` or `mx:.example`. Such a line is for all domains whose mail goes there (see
//! [`crate::control::site`]). They count together, under the name of the group or, without one, under the first field.
//! Of several ranges with the same address the longest counts.
//!
//! The fourth field says whether the limit follows the server, `learn` or `fixed`, and has rates
//! ([`crate::control::words`]). In a group one line speaks for all. If two lines disagree, the limit is fixed, and of
//! each unit the lowest rate counts. This file has more than 700 lines because it is one format, its look-ups and their
//! tests.

#![forbid(unsafe_code)]

use std::cmp::Reverse;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::control::limit::RATED_MAX;
pub use crate::control::limit::{Cap, GROUP_MAX, GROUPS_MAX, LIMIT_MAX, Learning, Limit};
use crate::control::literal::{self, Literal};
use crate::control::name::{Hasher, NAME_MAX, is_word_for_all, not_of_host};
use crate::control::name_map::{NameEntry, NameMap, VALUE_MAX};
use crate::control::problem::{File, Kind, Problem, Problems};
use crate::control::rates::Rates;
use crate::control::words::Words;
use crate::util::memory::{self, OutOfMemory};

/// The largest file, in bytes. A million domains are about 25 MB.
pub const FILE_MAX: u64 = 64 << 20;

/// Whether a line without a fourth field learns.
pub const LEARNING: Learning = Learning::Fixed;

/// A group of lines that count together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Group {
    /// Its name, in lower case.
    pub name: Vec<u8>,
    /// The lowest of its lines' limits.
    pub limit: Limit,
    /// What its lines say about learning; None: nothing.
    pub learning: Option<Learning>,
    /// The lowest of its lines' rates.
    pub rates: Rates,
    /// Its first line, from 1.
    pub line: u32,
}

impl Group {
    /// Its limit, and whether that learns.
    #[must_use]
    pub fn cap(&self) -> Cap {
        let learning = self.learning.unwrap_or(LEARNING);
        Cap { limit: self.limit, learning, rates: self.rates }
    }
}

/// The line that a name matched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Line {
    /// Its limit and learning; for a line with a group, those of the group.
    pub cap: Cap,
    /// The index of its group.
    pub group: Option<u32>,
    place: NameEntry,
}

impl Line {
    /// Whether it is the line of the empty name.
    #[must_use]
    pub fn is_default(&self) -> bool {
        self.place.is_default()
    }
}

/// A range of addresses that count together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    /// Its lowest address. IPv4 is in `::ffff:0:0/96`, as everywhere here.
    first: u128,
    /// How many bits all its addresses have in common, 0..=128.
    length: u8,
    /// The index of its group.
    pub group: u32,
    /// Its line, from 1.
    pub line: u32,
}

/// An address as a number.
fn bits(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => address.to_ipv6_mapped().to_bits(),
        IpAddr::V6(address) => address.to_bits(),
    }
}

/// The bits that an address has in common with all others of a range of this length.
fn network(address: u128, length: u8) -> u128 {
    match length {
        0 => 0,
        length => address & (u128::MAX << (128 - u32::from(length))),
    }
}

/// How a line is stored as a value of a [`NameMap`]: a limit, UNLIMITED, or GROUP plus the index of a group; for a line
/// without a group, LEARNS is set if it learns. A line with rates and without a group is RATED plus an index.
const UNLIMITED: u32 = GROUP - 1;
const GROUP: u32 = 1 << 19;
const LEARNS: u32 = 1 << 20;
const _: () = assert!(LIMIT_MAX < UNLIMITED && GROUP as usize + GROUPS_MAX < LEARNS as usize);
const RATED: u32 = GROUP | LEARNS;
const _: () = assert!(RATED as usize + RATED_MAX <= VALUE_MAX as usize);

/// The value of a line without a group and without rates.
fn plain_value(limit: Limit, learning: Learning) -> u32 {
    let learns = match learning {
        Learning::On => LEARNS,
        Learning::Fixed => 0,
    };
    learns
        | match limit {
            Limit::AtMost(limit) => limit,
            Limit::Unlimited => UNLIMITED,
        }
}

/// The parsed file.
#[derive(Debug)]
pub struct Table {
    lines: NameMap,
    /// Sorted by length, the longest first, then by the first address.
    ranges: Vec<Range>,
    exchangers: NameMap,
    groups: Vec<Group>,
    group_index: NameMap,
    /// What lines with rates and without a group say.
    rated: Vec<Cap>,
}

impl Table {
    /// A table with no lines: everything is unlimited.
    #[must_use]
    pub fn new(hasher: Hasher) -> Self {
        Self {
            lines: NameMap::new(hasher),
            ranges: Vec::new(),
            exchangers: NameMap::new(hasher),
            groups: Vec::new(),
            group_index: NameMap::new(hasher),
            rated: Vec::new(),
        }
    }

    /// Parses a file and collects all problems. If one of them is an error, the table must not be used.
    ///
    /// # Errors
    /// No memory.
    pub fn parse(text: &[u8], hasher: Hasher) -> Result<(Self, Problems), OutOfMemory> {
        let mut problems = Problems::new(File::Domains);
        let mut table = Self::new(hasher);
        if is_utf16(text) {
            problems.add(0, 0, Kind::Utf16);
            return Ok((table, problems));
        }
        let text = without_mark(text);
        let room = |counts: fn(&[u8]) -> bool| {
            NameMap::with_room(
                hasher,
                content_lines(text).filter(|&(_, line)| counts(line)).count(),
            )
        };
        table.lines = room(|_| true)?;
        table.group_index = room(may_have_group)?;
        table.exchangers = room(begins_with_mx)?;
        for (number, line) in content_lines(text) {
            if let Some(fields) = fields(line, number, &mut problems) {
                table.add(&fields, number, &mut problems)?;
            }
        }
        table.sort_ranges(&mut problems);
        // Without memory for that the table stays larger, and is as good.
        let _ = table.lines.pack();
        Ok((table, problems))
    }

    fn add(
        &mut self,
        fields: &Fields<'_>,
        line: u32,
        problems: &mut Problems,
    ) -> Result<(), OutOfMemory> {
        let value = match fields.group {
            Some(_) if self.groups.len() >= GROUPS_MAX => {
                problems.add(line, 0, Kind::TooManyGroups);
                return Ok(());
            }
            Some(name) => GROUP + self.add_group(name, fields, line, problems)?,
            None if !fields.words.rates.is_none() => {
                let Words { learning, rates } = fields.words;
                let learning = learning.unwrap_or(LEARNING);
                let cap = Cap { limit: fields.limit, learning, rates };
                // Lines that say the same often follow each other.
                if self.rated.last() != Some(&cap) {
                    if self.rated.len() >= RATED_MAX {
                        problems.add(line, 0, Kind::TooManyRates);
                        return Ok(());
                    }
                    memory::push(&mut self.rated, cap)?;
                }
                RATED + self.rated.len() as u32 - 1
            }
            None => plain_value(fields.limit, fields.words.learning.unwrap_or(LEARNING)),
        };
        let earlier = match fields.of {
            Of::Domain(name) => self.lines.insert(name, value, line)?,
            Of::Literal(address) => self.lines.insert(Literal::new(address).text(), value, line)?,
            Of::Exchanger(name) => self.exchangers.insert(name, value, line)?,
            Of::Range { first, length } => {
                let range = Range { first, length, group: value - GROUP, line };
                memory::push(&mut self.ranges, range)?;
                None
            }
        };
        if let Some(earlier) = earlier {
            problems.add(line, 1, Kind::Duplicate(earlier));
        }
        Ok(())
    }

    /// Of two lines for the same range the later one counts.
    fn sort_ranges(&mut self, problems: &mut Problems) {
        let same = |range: &Range| (Reverse(range.length), range.first);
        self.ranges.sort_unstable_by_key(|range| (same(range), Reverse(range.line)));
        self.ranges.dedup_by(|earlier, later| {
            let is_same = same(earlier) == same(later);
            if is_same {
                problems.add(later.line, 1, Kind::Duplicate(earlier.line));
            }
            is_same
        });
    }

    fn add_group(
        &mut self,
        name: &[u8],
        fields: &Fields<'_>,
        line: u32,
        problems: &mut Problems,
    ) -> Result<u32, OutOfMemory> {
        let &Fields { limit, words: Words { learning, rates }, .. } = fields;
        if let Some((index, _)) = self.group_index.find(name) {
            let group = &mut self.groups[index as usize];
            if group.limit != limit {
                problems.add(line, 0, Kind::GroupDisagrees(group.line));
                group.limit = group.limit.min(limit);
            }
            group.learning = match (group.learning, learning) {
                (Some(earlier), Some(now)) if earlier != now => {
                    problems.add(line, 0, Kind::LearningDisagrees(group.line));
                    Some(Learning::Fixed)
                }
                (earlier, now) => earlier.or(now),
            };
            if group.rates != rates {
                if !group.rates.is_none() && !rates.is_none() {
                    problems.add(line, 0, Kind::RatesDisagree(group.line));
                }
                group.rates = group.rates.lowest(rates);
            }
            return Ok(index);
        }
        let index = self.groups.len() as u32;
        let mut lower = Vec::new();
        lower.try_reserve_exact(name.len())?;
        lower.extend(name.iter().map(u8::to_ascii_lowercase));
        memory::push(&mut self.groups, Group { name: lower, limit, learning, rates, line })?;
        self.group_index.insert(name, index, line)?;
        Ok(index)
    }

    /// For a file with errors, of which only the good lines count: limits every domain without a line of its own to
    /// `most`. The line of the empty name keeps its rates, its learning and its group. The lower limit holds for that
    /// whole group, because the lowest limit of a group's lines counts.
    ///
    /// # Errors
    /// No memory.
    pub fn limit_others(&mut self, most: u32) -> Result<(), OutOfMemory> {
        let limit = Limit::AtMost(most);
        let default = self.find(b"").filter(Line::is_default);
        let cap = default.map_or(Cap { learning: LEARNING, ..Cap::NONE }, |line| line.cap);
        if cap.limit <= limit {
            return Ok(());
        }
        if let Some(group) = default.and_then(|line| line.group) {
            self.groups[group as usize].limit = limit;
            return Ok(());
        }
        let value = if cap.rates.is_none() {
            plain_value(limit, cap.learning)
        } else {
            // A full list still has room for this one: see RATED.
            memory::push(&mut self.rated, Cap { limit, ..cap })?;
            RATED + self.rated.len() as u32 - 1
        };
        self.lines.insert(b"", value, 0)?;
        Ok(())
    }

    /// The line that a name matches.
    #[must_use]
    pub fn find(&self, name: &[u8]) -> Option<Line> {
        self.lines.find(name).map(|found| self.line(found))
    }

    /// The same for a name whose hash is known.
    #[inline]
    #[must_use]
    pub fn find_hashed(&self, hash: u64, name: &[u8]) -> Option<Line> {
        self.lines.find_hashed(hash, name).map(|found| self.line(found))
    }

    /// Whether a line names exactly this domain.
    #[must_use]
    pub fn has_line(&self, name: &[u8]) -> bool {
        let is_literal = |address| self.find_literal(address).is_some();
        self.lines.has(name) || literal::bracketed(name).is_some_and(is_literal)
    }

    /// The line that a domain with this hash matches. The domain may be an address in brackets.
    #[must_use]
    pub fn find_domain(&self, hash: u64, name: &[u8]) -> Option<Line> {
        let of_address = literal::bracketed(name).and_then(|address| self.find_literal(address));
        of_address.or_else(|| self.find_hashed(hash, name))
    }

    /// The line that a relay of smtproutes matches. The relay may be an address, in canonical form and without
    /// brackets.
    #[must_use]
    pub fn find_relay(&self, name: &[u8]) -> Option<Line> {
        let line = self.find(name);
        if line.is_some_and(|line| !line.is_default()) {
            return line;
        }
        literal::bare(name).and_then(|address| self.find_literal(address)).or(line)
    }

    /// The line of an address, if it has one of its own.
    fn find_literal(&self, address: IpAddr) -> Option<Line> {
        self.find(Literal::new(address).text()).filter(|line| !line.is_default())
    }

    /// The longest range that an address is in.
    #[must_use]
    pub fn find_address(&self, address: IpAddr) -> Option<&Range> {
        let address = bits(address);
        let mut ranges = &self.ranges[..];
        while let Some(&Range { length, .. }) = ranges.first() {
            let (same, shorter) =
                ranges.split_at(ranges.partition_point(|range| range.length == length));
            let first = network(address, length);
            if let Ok(at) = same.binary_search_by_key(&first, |range| range.first) {
                return Some(&same[at]);
            }
            ranges = shorter;
        }
        None
    }

    /// Whether there are ranges of addresses.
    #[must_use]
    pub fn has_ranges(&self) -> bool {
        !self.ranges.is_empty()
    }

    /// The line with `mx:` that the name of a mail exchanger matches: the index of its group, and its number.
    #[must_use]
    pub fn find_exchanger(&self, name: &[u8]) -> Option<(u32, u32)> {
        let (value, place) = self.exchangers.find(name)?;
        Some((value - GROUP, self.exchangers.line(place)))
    }

    /// Whether there are lines with `mx:`.
    #[must_use]
    pub fn has_exchangers(&self) -> bool {
        !self.exchangers.is_empty()
    }

    /// Starts to load what [`Table::find_hashed`] needs into the cache, while the caller does something else.
    #[inline]
    pub fn prefetch(&self, hash: u64) {
        self.lines.prefetch(hash);
    }

    #[inline]
    fn line(&self, (value, place): (u32, NameEntry)) -> Line {
        Line { cap: self.cap(value), group: group_of(value), place }
    }

    #[inline]
    fn cap(&self, value: u32) -> Cap {
        if let Some(group) = group_of(value) {
            return self.groups[group as usize].cap();
        }
        if let Some(index) = value.checked_sub(RATED) {
            return self.rated[index as usize];
        }
        let limit = match value & !LEARNS {
            UNLIMITED => Limit::Unlimited,
            limit => Limit::AtMost(limit),
        };
        let learning = if value & LEARNS != 0 { Learning::On } else { Learning::Fixed };
        Cap { limit, learning, rates: Rates::NONE }
    }

    /// Whether a line has a rate for an hour or a day.
    #[must_use]
    pub fn has_long_rates(&self) -> bool {
        let groups = self.groups.iter().map(|group| &group.rates);
        let lines = self.rated.iter().map(|cap| &cap.rates);
        groups.chain(lines).any(Rates::has_long)
    }

    /// Whether a line has rates.
    #[must_use]
    pub fn has_rates(&self) -> bool {
        !self.rated.is_empty() || self.groups.iter().any(|group| !group.rates.is_none())
    }

    /// The number of a line that was found, from 1.
    #[must_use]
    pub fn number(&self, line: &Line) -> u32 {
        self.lines.line(line.place)
    }

    /// The groups, in the order of their first lines.
    #[must_use]
    pub fn groups(&self) -> &[Group] {
        &self.groups
    }

    /// The index of the group of this name.
    #[must_use]
    pub fn group(&self, name: &[u8]) -> Option<u32> {
        self.group_index.find(name).map(|(index, _)| index)
    }

    /// How many ranges of addresses it has.
    #[must_use]
    pub fn ranges(&self) -> usize {
        self.ranges.len()
    }

    /// How many names of mail exchangers it has.
    #[must_use]
    pub fn exchangers(&self) -> usize {
        self.exchangers.len()
    }

    /// How many domains it has.
    #[must_use]
    pub fn len(&self) -> usize {
        self.lines.len()
    }

    /// Whether it has no line.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.lines.is_empty() && self.ranges.is_empty() && self.exchangers.is_empty()
    }

    /// How much memory it occupies, in bytes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        let maps = self.lines.bytes() + self.group_index.bytes() + self.exchangers.bytes();
        maps + self.groups.len() * size_of::<Group>()
            + self.ranges.len() * size_of::<Range>()
            + self.rated.len() * size_of::<Cap>()
    }

    /// Warnings about limits above the number of deliveries that qmail-send starts, in no particular order.
    pub fn above(&self, concurrency_remote: u32) -> impl Iterator<Item = Problem> {
        let ranges = self.ranges.iter().map(|range| (GROUP + range.group, range.line));
        let lines = self.lines.iter().chain(self.exchangers.iter()).chain(ranges);
        lines.filter_map(move |(value, line)| match self.cap(value).limit {
            Limit::AtMost(limit) if limit > concurrency_remote => Some(Problem {
                file: File::Domains,
                line,
                column: 0,
                kind: Kind::AboveConcurrencyRemote(concurrency_remote),
            }),
            _ => None,
        })
    }
}

/// The index of a value's group.
#[inline]
fn group_of(value: u32) -> Option<u32> {
    (value < LEARNS).then(|| value.checked_sub(GROUP)).flatten()
}

/// The lines of a control file without comments, empty lines and white space at their ends, each with its number from
/// 1.
pub fn content_lines(text: &[u8]) -> impl Iterator<Item = (u32, &[u8])> {
    let lines = text.split(|&byte| byte == b'\n').zip(1u32..);
    lines
        .map(|(line, number)| (number, trimmed(line)))
        .filter(|(_, line)| !matches!(line, [] | [b'#', ..]))
}

/// The byte order mark that some editors put before a text in UTF-8. To qmail it is a part of the first line.
pub const MARK: &[u8] = b"\xef\xbb\xbf";

/// A text without the byte order mark before it.
#[must_use]
pub fn without_mark(text: &[u8]) -> &[u8] {
    text.strip_prefix(MARK).unwrap_or(text)
}

/// Whether a text has nothing but white space and a byte order mark: not even a comment.
#[must_use]
pub fn is_blank(text: &[u8]) -> bool {
    without_mark(text).iter().all(|byte| matches!(byte, b' ' | b'\t' | b'\r' | b'\n'))
}

/// Whether a text begins with the byte order mark of UTF-16, as some editors write it.
#[must_use]
pub fn is_utf16(text: &[u8]) -> bool {
    text.starts_with(b"\xff\xfe") || text.starts_with(b"\xfe\xff")
}

/// A line without the white space at its end.
pub(crate) fn trimmed(line: &[u8]) -> &[u8] {
    let end = line
        .iter()
        .rposition(|byte| !matches!(byte, b' ' | b'\t' | b'\r'))
        .map_or(0, |last| last + 1);
    &line[..end]
}

/// Whether a line may have a group: a named one, or one that is named after its range.
fn may_have_group(line: &[u8]) -> bool {
    line.contains(&b'/') || line.iter().filter(|&&byte| byte == b':').count() > 1
}

fn begins_with_mx(line: &[u8]) -> bool {
    line.get(..3).is_some_and(|start| start.eq_ignore_ascii_case(b"mx:"))
}

/// The first field of a line.
#[derive(Clone, Copy)]
enum Of<'a> {
    Domain(&'a [u8]),
    Literal(IpAddr),
    Range { first: u128, length: u8 },
    Exchanger(&'a [u8]),
}

/// The fields of a line.
struct Fields<'a> {
    of: Of<'a>,
    limit: Limit,
    group: Option<&'a [u8]>,
    words: Words,
}

/// The length of the first field, up to the colon before the limit. Colons in `[2001:db8::25]`, in `[2001:db8::]/32`
/// and right behind `mx` do not end it; but in `mx:10` the domain is `mx`.
#[must_use]
pub fn subject_len(content: &[u8]) -> Option<usize> {
    let colon =
        |from: usize| content[from..].iter().position(|&byte| byte == b':').map(|at| from + at);
    if content.first() == Some(&b'[')
        && let Some(close) = content.iter().position(|&byte| byte == b']')
        && matches!(content.get(close + 1), None | Some(b'/' | b':'))
    {
        return colon(close);
    }
    let first = colon(0)?;
    if begins_with_mx(content) {
        let rest = &content[first + 1..];
        let field = rest.split(|&byte| byte == b':').next().unwrap_or(rest);
        if !field.iter().all(u8::is_ascii_digit) {
            return colon(first + 1);
        }
    }
    Some(first)
}

/// The fields of a line; None when it has an error.
fn fields<'a>(content: &'a [u8], line: u32, problems: &mut Problems) -> Option<Fields<'a>> {
    let Some(first) = subject_len(content) else {
        let column = content
            .iter()
            .position(|byte| !byte.is_ascii_graphic())
            .map_or(content.len() + 1, |at| at + 1);
        problems.add(line, column, Kind::NoLimit);
        return None;
    };
    let colons = || (1..).zip(content).filter(|(_, byte)| **byte == b':').map(|(column, _)| column);
    if let Some(column) = colons().nth(3)
        && (literal::bare(content).is_some()
            || content
                .iter()
                .rposition(|&byte| byte == b':')
                .is_some_and(|last| literal::bare(&content[..last]).is_some()))
    {
        // It is an address without brackets: one problem is enough.
        problems.add(line, column, Kind::TooManyFields);
        return None;
    }
    let errors = problems.errors();
    let subject = &content[..first];
    let of = if subject.contains(&b'/') {
        range(subject, line, problems)
    } else if begins_with_mx(subject) {
        let name = &subject[3..];
        if is_word_for_all(name) {
            problems.add(line, 4, Kind::ExchangerAll);
            Of::Exchanger(name)
        } else {
            Of::Exchanger(domain(name, 4, line, problems))
        }
    } else if let Some(address) = literal::bracketed(subject) {
        Of::Literal(address)
    } else {
        Of::Domain(domain(subject, 1, line, problems))
    };
    let mut fields = Fields { of, limit: Limit::Unlimited, group: None, words: Words::default() };
    if !matches!(of, Of::Domain(_) | Of::Literal(_)) {
        fields.group = Some(subject);
    }
    let mut column = first + 2;
    let count = content[first + 1..].split(|&byte| byte == b':').count();
    for (number, field) in (2..).zip(content[first + 1..].split(|&byte| byte == b':')) {
        match number {
            2 => fields.limit = limit(field, line, column, problems),
            3 if field.is_empty() && count > 2 => {}
            3 => {
                group(field, line, column, problems);
                fields.group = Some(field);
            }
            4 if count > 3 => {}
            4 => fields.words = Words::parse(field, line, column, problems),
            _ => {
                problems.add(line, column - 1, Kind::TooManyFields);
                break;
            }
        }
        column += field.len() + 1;
    }
    (problems.errors() == errors).then_some(fields)
}

/// `192.0.2.0/24` or `[2001:db8::]/32`.
fn range<'a>(subject: &[u8], line: u32, problems: &mut Problems) -> Of<'a> {
    let slash = subject.iter().position(|&byte| byte == b'/').unwrap_or(subject.len());
    let (address, length) = (&subject[..slash], &subject[(slash + 1).min(subject.len())..]);
    let address = match address {
        [b'[', inner @ .., b']'] => inner,
        address => address,
    };
    let address = std::str::from_utf8(address).unwrap_or_default();
    let (address, most) = if let Ok(address) = address.parse::<Ipv4Addr>() {
        (bits(IpAddr::V4(address)), 32)
    } else if let Ok(address) = address.parse::<Ipv6Addr>() {
        (bits(IpAddr::V6(address)), 128)
    } else {
        problems.add(line, 1, Kind::RangeAddress);
        return Of::Range { first: 0, length: 0 };
    };
    let length = match limit(length, line, slash + 2, &mut Problems::new(File::Domains)) {
        Limit::AtMost(length) if length <= most => 128 - most + length,
        _ => {
            problems.add(line, slash + 2, Kind::RangeLength(most as u8));
            return Of::Range { first: 0, length: 0 };
        }
    };
    let first = network(address, length as u8);
    if first != address {
        problems.add(line, 1, Kind::RangeHostBits);
    }
    Of::Range { first, length: length as u8 }
}

fn domain<'a>(name: &'a [u8], column: usize, line: u32, problems: &mut Problems) -> &'a [u8] {
    let bare = crate::control::name::without_root(name);
    if is_word_for_all(name) {
        problems.add(line, column, Kind::DomainAll);
        return bare;
    }
    if bare.len() < name.len() {
        problems.add(line, column + name.len() - 1, Kind::DomainRoot);
    }
    if bare.len() > NAME_MAX {
        problems.add(line, column + NAME_MAX, Kind::DomainTooLong);
    }
    let bad = |byte: &u8| byte.is_ascii() && (!byte.is_ascii_graphic() || *byte == b'@');
    if let Some(at) = bare.iter().position(bad) {
        problems.add(line, column + at, Kind::DomainCharacter(bare[at]));
    } else if let Some(at) = bare.iter().position(|byte| !byte.is_ascii()) {
        let is_mark = bare[at..].starts_with(MARK);
        let kind = if is_mark { Kind::DomainMark } else { Kind::DomainNotAscii };
        problems.add(line, column + at, kind);
    }
    if let Some(at) = bare.windows(2).position(|pair| pair == b"..") {
        problems.add(line, column + at + 1, Kind::DomainEmptyLabel);
    }
    if let Some(at) = bare.iter().position(|&byte| byte == b'*') {
        problems.add(line, column + at, Kind::DomainStar);
    } else if bare.first() == Some(&b'[') {
        problems.add(line, column, Kind::DomainLiteral);
    } else if let Some(at) = not_of_host(bare).filter(|_| !bare.iter().any(bad)) {
        // A name with an error needs no second problem.
        problems.add(line, column + at, Kind::DomainNotHost(bare[at]));
    }
    bare
}

fn limit(digits: &[u8], line: u32, column: usize, problems: &mut Problems) -> Limit {
    if digits.is_empty() {
        return Limit::Unlimited;
    }
    if let Some(at) = digits.iter().position(|byte| !byte.is_ascii_digit()) {
        problems.add(line, column + at, Kind::LimitNotNumber);
        return Limit::Unlimited;
    }
    let value = digits.iter().try_fold(0u32, |value, digit| {
        value
            .checked_mul(10)?
            .checked_add(u32::from(digit - b'0'))
            .filter(|&value| value <= LIMIT_MAX)
    });
    value.map_or_else(
        || {
            problems.add(line, column, Kind::LimitTooLarge);
            Limit::Unlimited
        },
        Limit::AtMost,
    )
}

fn group(name: &[u8], line: u32, column: usize, problems: &mut Problems) {
    if name.is_empty() {
        problems.add(line, column, Kind::GroupEmpty);
    } else if let Some(at) = name.iter().position(|byte| !byte.is_ascii_graphic()) {
        problems.add(line, column + at, Kind::GroupCharacter(name[at]));
    } else if name.len() > GROUP_MAX {
        problems.add(line, column + GROUP_MAX, Kind::GroupTooLong);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &[u8]) -> (Table, Vec<(u32, u32, Kind)>) {
        let (table, problems) = Table::parse(text, Hasher::new(3)).unwrap();
        (
            table,
            problems.iter().map(|problem| (problem.line, problem.column, problem.kind)).collect(),
        )
    }

    #[test]
    fn content_lines_have_their_numbers() {
        let lines: Vec<_> = content_lines(b"# x\n\na:1 \r\n  \n:2").collect();
        assert_eq!(lines, [(3, &b"a:1"[..]), (5, b":2")]);
    }

    #[test]
    fn without_a_last_good_file_the_default_keeps_its_rates() {
        for (text, limit, rates, learning) in [
            ("", 20, "", Learning::Fixed),
            (":50\n", 20, "", Learning::Fixed),
            (":5\n", 5, "", Learning::Fixed),
            (":50::learn\n", 20, "", Learning::On),
            (":50::5/m\n", 20, "5/m", Learning::Fixed),
            (":::5/m,100/d\n", 20, "5/m,100/d", Learning::Fixed),
            (":7::learn,5/m\n", 7, "5/m", Learning::On),
            (":0::5/m\n", 0, "5/m", Learning::Fixed),
            (":50:all:learn,5/m\n", 20, "5/m", Learning::On),
        ] {
            let text = format!("{text}a.example:30::9/m\nb.example:x\n");
            let (mut table, problems) = parse(text.as_bytes());
            assert_eq!(problems.len(), 1, "{text}");
            table.limit_others(20).unwrap();
            let cap = table.find(b"other.example").unwrap().cap;
            assert_eq!(cap.limit, Limit::AtMost(limit), "{text}");
            assert_eq!((&cap.rates.to_string()[..], cap.learning), (rates, learning), "{text}");
            let cap = table.find(b"a.example").unwrap().cap;
            assert_eq!(
                (cap.limit, &cap.rates.to_string()[..]),
                (Limit::AtMost(30), "9/m"),
                "{text}"
            );
        }
    }

    fn limit_of(table: &Table, name: &str) -> Option<Limit> {
        table.find(name.as_bytes()).map(|line| line.cap.limit)
    }

    #[test]
    fn the_example_of_the_manual() {
        let (table, problems) = parse(
            b"# at most 20 for any domain that is not listed\n:20\ngmail.com:50\nyahoo.com:10:yahoo\n\
              .yahoo.com:10:yahoo\nymail.com:10:Yahoo\nslow.example:1\npartner.example:\n",
        );
        assert_eq!(problems, []);
        assert_eq!(limit_of(&table, "GMail.com"), Some(Limit::AtMost(50)));
        assert_eq!(limit_of(&table, "partner.example"), Some(Limit::Unlimited));
        assert_eq!(limit_of(&table, "other.example"), Some(Limit::AtMost(20)));
        let groups = ["yahoo.com", "mx.yahoo.com", "ymail.com"]
            .map(|name| table.find(name.as_bytes()).unwrap().group);
        assert_eq!(groups, [Some(0); 3]);
        assert_eq!(table.number(&table.find(b"ymail.com").unwrap()), 6);
        assert_eq!(
            table.groups()[0],
            Group {
                name: b"yahoo".to_vec(),
                limit: Limit::AtMost(10),
                learning: None,
                rates: Rates::NONE,
                line: 4
            }
        );
    }

    #[test]
    fn line_ends_comments_and_blanks() {
        let (table, problems) =
            parse(b"\r\n#x\r\n\n  \t\na.example:1\r\nb.example:2 \t\nc.example:3");
        assert_eq!(problems, []);
        assert_eq!(table.len(), 3);
        assert_eq!(limit_of(&table, "c.example"), Some(Limit::AtMost(3)));
        for empty in [&b""[..], b"\n", b"\r\n", b"#"] {
            let (table, problems) = parse(empty);
            assert!(table.is_empty() && problems.is_empty());
        }
    }

    #[test]
    fn errors_have_a_place() {
        for (text, column, kind) in [
            (&b"gmail.com"[..], 10, Kind::NoLimit),
            (b"gmail.com 20", 10, Kind::NoLimit),
            (b"gmail.com:2x", 12, Kind::LimitNotNumber),
            (b"gmail.com: 20", 11, Kind::LimitNotNumber),
            (b"gmail.com:-1", 11, Kind::LimitNotNumber),
            (b"gmail.com:20 # comment", 13, Kind::LimitNotNumber),
            (b"gmail.com:500001", 11, Kind::LimitTooLarge),
            (b"gmail.com:99999999999999999999999999", 11, Kind::LimitTooLarge),
            (b"gmail.com:20:", 14, Kind::GroupEmpty),
            (b"gmail.com:20:a:b", 16, Kind::UnknownWord),
            (b"gmail.com:20:a:", 16, Kind::UnknownWord),
            (b"gmail.com:20::fixed:b", 20, Kind::TooManyFields),
            (b"gmail.com:20::fixed,learn", 21, Kind::LearningTwice),
            (b"gmail.com:20::learn,", 21, Kind::UnknownWord),
            (b"gmail.com:20::,learn", 15, Kind::UnknownWord),
            (b"gmail.com:20::learn, 5/s", 21, Kind::RateNumber),
            (b"gmail.com:20::learn,600", 21, Kind::UnknownWord),
            (b"gmail.com:20::learn,/m", 21, Kind::RateNumber),
            (b"gmail.com:20::-5/m", 15, Kind::RateNumber),
            (b"gmail.com:20::6x/m", 16, Kind::RateNumber),
            (b"gmail.com:20::600/", 19, Kind::RateUnit),
            (b"gmail.com:20::600/min", 19, Kind::RateUnit),
            (b"gmail.com:20::600/m/s", 19, Kind::RateUnit),
            (b"gmail.com:20::600/-5s", 19, Kind::RateUnit),
            (b"gmail.com:20::0/m", 15, Kind::RateZero),
            (b"gmail.com:20::1/0s", 17, Kind::RateTime),
            (b"gmail.com:20::1/3601s", 17, Kind::RateTime),
            (b"gmail.com:20::1/61m", 17, Kind::RateTime),
            (b"gmail.com:20::1/99999999999s", 17, Kind::RateTime),
            (b"gmail.com:20::1/4294967295m", 17, Kind::RateTime),
            (b"gmail.com:20::10001/s", 15, Kind::RateTooHigh),
            (b"gmail.com:20::600001/m", 15, Kind::RateTooHigh),
            (b"gmail.com:20::99999999999999999999/m", 15, Kind::RateTooHigh),
            (b"gmail.com:20::20/s,1/10s", 20, Kind::RateTwice),
            (b"gmail.com:20::5/h,6/s,7/H", 23, Kind::RateTwice),
            (b"gmail.com:20::0/d", 15, Kind::RateZero),
            (b"gmail.com:20::5/2h", 17, Kind::RateUnit),
            (b"gmail.com:20::36000001/h", 15, Kind::RateTooHigh),
            (b"gmail.com:20::864000001/d", 15, Kind::RateTooHigh),
            (b"gmail.com:20::20/s,600/m,5/M", 26, Kind::RateTwice),
            (b"gmail.com:20:a b", 15, Kind::GroupCharacter(b' ')),
            (b" gmail.com:20", 1, Kind::DomainCharacter(b' ')),
            (b"u@gmail.com:20", 2, Kind::DomainCharacter(b'@')),
            (b"a\0b:20", 2, Kind::DomainCharacter(0)),
        ] {
            let (_, problems) = parse(text);
            assert_eq!(problems, [(1, column, kind)], "{}", String::from_utf8_lossy(text));
            assert_eq!(kind.severity(), crate::control::problem::Severity::Error);
        }
    }

    #[test]
    fn warnings_keep_the_line() {
        let (table, problems) = parse(b"a.example:1\nA.example:2\n");
        assert_eq!(problems, [(2, 1, Kind::Duplicate(1))]);
        assert_eq!(limit_of(&table, "a.example"), Some(Limit::AtMost(2)));

        let (table, problems) = parse(b"a.example:9:g\nb.example:2:g\nc.example::g\n");
        assert_eq!(problems, [(2, 0, Kind::GroupDisagrees(1)), (3, 0, Kind::GroupDisagrees(1))]);
        assert_eq!(limit_of(&table, "a.example"), Some(Limit::AtMost(2)));
        assert_eq!(limit_of(&table, "c.example"), Some(Limit::AtMost(2)));

        let (table, problems) =
            parse("bücher.example:3\n*.example:4\nroot.example.:5\n".as_bytes());
        assert_eq!(
            problems,
            [(1, 2, Kind::DomainNotAscii), (2, 1, Kind::DomainStar), (3, 13, Kind::DomainRoot)]
        );
        assert_eq!(limit_of(&table, "root.example"), Some(Limit::AtMost(5)));
        assert_eq!(table.len(), 3);
    }

    #[test]
    fn words_for_all_domains_are_told() {
        for word in [
            "*", ".", "*.", ".*", "*.*", "**", "..", "?", "%", "\"*\"", "<*>", "default", "ALL",
            "Any",
        ] {
            let (table, problems) = parse(format!("{word}:20\n").as_bytes());
            assert_eq!(problems, [(1, 1, Kind::DomainAll)], "{word}");
            assert_eq!(Kind::DomainAll.severity(), crate::control::problem::Severity::Warning);
            assert_eq!(limit_of(&table, "other.example"), None, "{word}");
        }
        assert_eq!(parse(b"mx:*:20\n").1, [(1, 4, Kind::ExchangerAll)]);
        for odd in ["?.example", "\"gmail.com\"", "gmail.com=20", "gmail.com,yahoo.com"] {
            let (_, problems) = parse(format!("{odd}:20\n").as_bytes());
            assert!(matches!(problems[..], [(1, _, Kind::DomainNotHost(_))]), "{odd} {problems:?}");
        }
        assert_eq!(parse(b"*.example:20\n").1, [(1, 1, Kind::DomainStar)]);
        assert_eq!(parse(b"a..example:20\n").1, [(1, 3, Kind::DomainEmptyLabel)]);
        assert_eq!(parse(b"..example:20\n").1, [(1, 2, Kind::DomainEmptyLabel)]);
        assert_eq!(parse(b"mx:.a..example:20\n").1, [(1, 7, Kind::DomainEmptyLabel)]);
        assert_eq!(parse(b"all.example:20\n").1, []);
    }

    #[test]
    fn a_byte_order_mark_is_no_part_of_a_line() {
        let (table, problems) = parse(b"\xef\xbb\xbf:20\ngmail.com:5\n");
        assert_eq!(problems, []);
        assert_eq!(limit_of(&table, "other.example"), Some(Limit::AtMost(20)));
        assert_eq!(parse(b"\xef\xbb\xbf# a comment\r\n:20\r\n").1, []);
        assert_eq!(parse(b"\xef\xbb\xbf").1, []);
        // Elsewhere than at the beginning it is a part of a name.
        assert_eq!(parse("a.example:1\n\u{feff}:20\n".as_bytes()).1, [(2, 1, Kind::DomainMark)]);
        assert_eq!(parse("\u{feff}\u{feff}:20\n".as_bytes()).1, [(1, 1, Kind::DomainMark)]);
        for text in
            [&b"\xff\xfe:\x00\x32\x00\n\x00"[..], b"\xfe\xff\x00:\x00\x32\x00\n", b"\xff\xfe"]
        {
            assert_eq!(parse(text).1, [(0, 0, Kind::Utf16)]);
        }
    }

    #[test]
    fn addresses_in_brackets_are_domains() {
        let (table, problems) =
            parse(b"[2001:DB8:0::25]:100\n[192.0.2.1]:7::learn\n[IPv6:::1]:3:g\n");
        assert_eq!(problems, []);
        assert_eq!(table.len(), 3);
        let limit = |name: &str| table.find_relay(name.as_bytes()).map(|line| line.cap.limit);
        assert_eq!(limit("2001:db8::25"), Some(Limit::AtMost(100)));
        assert_eq!(limit("192.0.2.1"), Some(Limit::AtMost(7)));
        assert_eq!(limit("::1"), Some(Limit::AtMost(3)));
        assert_eq!(limit("2001:db8::26"), None);
        let twice = b"[2001:db8::25]:1\n[2001:db8:0::25]:2\n[IPv6:2001:DB8::25]:3\n";
        assert_eq!(parse(twice).1, [(2, 1, Kind::Duplicate(1)), (3, 1, Kind::Duplicate(2))]);
        for (text, column, kind) in [
            (&b"[a:b]:5"[..], 1, Kind::DomainLiteral),
            (b"[mx.example]:5", 1, Kind::DomainLiteral),
            (b"[2001:db8::25]", 15, Kind::NoLimit),
            (b"[2001:db8::25]:x", 16, Kind::LimitNotNumber),
            (b"2001:db8::25:100", 13, Kind::TooManyFields),
            (b"2001:db8:0:0:0:0:0:25:100", 13, Kind::TooManyFields),
            (b"relay.example|u:5", 14, Kind::DomainNotHost(b'|')),
        ] {
            assert_eq!(parse(text).1, [(1, column, kind)], "{}", String::from_utf8_lossy(text));
        }
    }

    #[test]
    fn long_names() {
        let (_, problems) = parse(&[&b"a".repeat(1000)[..], b":5\n"].concat());
        assert_eq!(problems, [(1, 256, Kind::DomainTooLong)]);
        let (table, problems) = parse(&[&b"a".repeat(255)[..], b":5\n"].concat());
        assert_eq!(problems, []);
        assert_eq!(table.len(), 1);
        let (_, problems) = parse(&[b"a.example:5:", &b"g".repeat(65)[..]].concat());
        assert_eq!(problems, [(1, 77, Kind::GroupTooLong)]);
    }

    #[test]
    fn binary_is_reported_without_end() {
        let noise: Vec<u8> =
            (0..200_000u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
        let (_, problems) = Table::parse(&noise, Hasher::new(3)).unwrap();
        assert!(problems.errors() > 0);
        assert!(problems.iter().count() <= Problems::LISTED + 1);
    }

    #[test]
    fn the_text_of_a_problem() {
        let (_, problems) = Table::parse(b":20\ngmail.com:2O\n", Hasher::new(3)).unwrap();
        assert_eq!(
            problems.worst().unwrap().to_string(),
            "control/concurrencydomains:2:12: the limit is not a number (empty means unlimited)"
        );
    }

    #[test]
    fn limits_above_concurrencyremote() {
        let (table, _) = parse(b":20\na.example:21\nb.example:\n");
        let above: Vec<_> = table.above(20).map(|problem| problem.line).collect();
        assert_eq!(above, [2]);
    }

    fn group_at(table: &Table, address: &str) -> Option<String> {
        let range = table.find_address(address.parse().unwrap())?;
        Some(String::from_utf8(table.groups()[range.group as usize].name.clone()).unwrap())
    }

    #[test]
    fn ranges_of_addresses() {
        let (table, problems) = parse(
            b"192.0.2.0/24:10:outlook\n[2001:db8::]/32:10:Outlook\n192.0.2.64/26:3\n0.0.0.0/0:7:four\n\
              [2001:db8:1::]/48::six\n198.51.100.7/32:1:one:learn\n",
        );
        assert_eq!(problems, []);
        for (address, group) in [
            ("192.0.2.1", Some("outlook")),
            ("192.0.2.65", Some("192.0.2.64/26")),
            ("192.0.2.128", Some("outlook")),
            ("192.0.3.0", Some("four")),
            ("::ffff:192.0.2.65", Some("192.0.2.64/26")),
            ("2001:db8::1", Some("outlook")),
            ("2001:db8:1::1", Some("six")),
            ("2001:db9::1", None),
            ("198.51.100.7", Some("one")),
        ] {
            assert_eq!(group_at(&table, address).as_deref(), group, "{address}");
        }
        assert!(table.has_ranges() && !table.has_exchangers() && !table.is_empty());
        assert_eq!((table.len(), table.groups().len()), (0, 5));
    }

    #[test]
    fn ranges_have_problems_too() {
        for (text, line, column, kind) in [
            (&b"192.0.2.0/33:1"[..], 1, 11, Kind::RangeLength(32)),
            (b"192.0.2.0/:1", 1, 11, Kind::RangeLength(32)),
            (b"192.0.2.0/x:1", 1, 11, Kind::RangeLength(32)),
            (b"[2001:db8::]/129:1", 1, 14, Kind::RangeLength(128)),
            (b"192.0.2/24:1", 1, 1, Kind::RangeAddress),
            (b"outlook.com/24:1", 1, 1, Kind::RangeAddress),
            (b"[2001:db8::]/32", 1, 16, Kind::NoLimit),
            (b"192.0.2.1/24:1", 1, 1, Kind::RangeHostBits),
            (b"192.0.2.0/24:1:a\n192.0.2.0/24:1:b", 2, 1, Kind::Duplicate(1)),
        ] {
            let (table, problems) = parse(text);
            assert_eq!(problems, [(line, column, kind)], "{}", String::from_utf8_lossy(text));
            if matches!(kind, Kind::Duplicate(_)) {
                assert_eq!(group_at(&table, "192.0.2.9").as_deref(), Some("b"));
            }
        }
    }

    #[test]
    fn mail_exchangers() {
        let (table, problems) =
            parse(b"mx:.outlook.com:10:outlook\nMX:mx.example:3\nmx:7\nmx::all\n");
        assert_eq!(problems, [(4, 1, Kind::Duplicate(3))]);
        let group = |name: &str| {
            let (index, line) = table.find_exchanger(name.as_bytes())?;
            let name = table.groups()[index as usize].name.clone();
            Some((String::from_utf8(name).unwrap(), line))
        };
        assert_eq!(group("a.mail.OUTLOOK.com"), Some(("outlook".to_string(), 1)));
        assert_eq!(group("mx.example"), Some(("mx:mx.example".to_string(), 2)));
        assert_eq!(group("outlook.com"), None);
        assert_eq!(limit_of(&table, "mx"), Some(Limit::Unlimited));
        assert_eq!(table.len(), 1);
        assert_eq!(parse(b"mx:.outlook.com").1, [(1, 16, Kind::NoLimit)]);
        assert_eq!(parse(b"mx:a b:1").1, [(1, 5, Kind::DomainCharacter(b' '))]);
    }

    #[test]
    fn the_fourth_field() {
        let (table, problems) = parse(
            b"a.example:5::learn\nb.example:5::FIXED\nc.example:5\nd.example:6:g:learn\ne.example:6:g\n\
              f.example:7:h:learn\ng.example:7:h:fixed\n",
        );
        assert_eq!(problems, [(7, 0, Kind::LearningDisagrees(6))]);
        let learning = |name: &str| table.find(name.as_bytes()).unwrap().cap.learning;
        assert_eq!(learning("a.example"), Learning::On);
        assert_eq!(learning("b.example"), Learning::Fixed);
        assert_eq!(learning("c.example"), LEARNING);
        assert_eq!(["d.example", "e.example"].map(learning), [Learning::On; 2]);
        assert_eq!(["f.example", "g.example"].map(learning), [Learning::Fixed; 2]);
        assert_eq!(limit_of(&table, "a.example"), Some(Limit::AtMost(5)));
    }

    fn rates_of(table: &Table, name: &str) -> String {
        table.find(name.as_bytes()).unwrap().cap.rates.to_string()
    }

    #[test]
    fn rates_stand_in_the_fourth_field() {
        let (table, problems) = parse(
            b"gmail.com:20:google:learn,600/m\nhotmail.com:10::20/S,Fixed,5/10M\nslow.example:1::1/10s\n\
              plain.example:1::learn\nfree.example:::3600000/60m\nsame.example:1::1/10s\n\
              day.example:10::50000/D,20/s,5000/h,learn\n",
        );
        assert_eq!(problems, []);
        for (name, limit, learning, rates) in [
            ("gmail.com", Limit::AtMost(20), Learning::On, "600/m"),
            ("hotmail.com", Limit::AtMost(10), Learning::Fixed, "20/s,5/10m"),
            ("slow.example", Limit::AtMost(1), Learning::Fixed, "1/10s"),
            ("same.example", Limit::AtMost(1), Learning::Fixed, "1/10s"),
            ("plain.example", Limit::AtMost(1), Learning::On, ""),
            ("free.example", Limit::Unlimited, Learning::Fixed, "3600000/60m"),
            ("day.example", Limit::AtMost(10), Learning::On, "20/s,5000/h,50000/d"),
        ] {
            let cap = table.find(name.as_bytes()).unwrap().cap;
            assert_eq!((cap.limit, cap.learning), (limit, learning), "{name}");
            assert_eq!(cap.rates.to_string(), rates, "{name}");
        }
        assert_eq!(table.find(b"slow.example").unwrap().group, None);
        assert!(table.has_rates() && !parse(b":20\na.example:5:g:learn\n").0.has_rates());
    }

    #[test]
    fn a_group_has_the_lowest_rate_of_each_unit() {
        let (table, problems) = parse(
            b"a.example:5:g:20/s\nb.example:5:g\nc.example:5:g:1/10s,600/m\nd.example:5:g:300/m\n\
              192.0.2.0/24:5:h:7/s\ne.example:5:h:learn,7/s\n",
        );
        assert_eq!(problems, [(3, 0, Kind::RatesDisagree(1)), (4, 0, Kind::RatesDisagree(1))]);
        assert_eq!(rates_of(&table, "a.example"), "1/10s,300/m");
        assert_eq!(rates_of(&table, "e.example"), "7/s");
        assert_eq!(table.find(b"e.example").unwrap().cap.learning, Learning::On);
        // Of two rates that allow as many starts, the one with the shorter time is the stricter one.
        assert_eq!(
            rates_of(&parse(b"a.example:1:g:10/10s\nb.example:1:g:1/s\n").0, "a.example"),
            "1/s"
        );
    }
}
