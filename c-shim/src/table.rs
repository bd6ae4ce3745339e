//! control/concurrencydomains: `domain:limit[:group]`.
//!
//! One line each, ended by LF or CRLF; spaces and tabs at the end of a line are ignored, as in all of qmail's control
//! files. Empty lines and lines that begin with `#` are comments. A domain is looked up as in smtproutes: the exact
//! name, then each `.suffix`, then the empty name. Of two lines for the same domain the later one counts, as in every
//! file that qmail reads into a constmap. An empty limit means unlimited; 0 holds everything. The lines of a group count
//! together, under the lowest of their limits.

#![forbid(unsafe_code)]

use crate::memory::{self, OutOfMemory};
use crate::name::{Hasher, NAME_MAX, NameMap, Place, VALUE_MAX};
use crate::problem::{File, Kind, Problem, Problems};

/// The highest limit that can be written. conf-spawn's highest is 65000, so what is above that is never reached.
pub const LIMIT_MAX: u32 = 500_000;

/// So many different groups.
pub const GROUPS_MAX: usize = 500_000;

/// The longest name of a group, in bytes.
pub const GROUP_MAX: usize = 64;

/// The largest file, in bytes. A million domains are about 25 MB.
pub const FILE_MAX: u64 = 64 << 20;

/// How many deliveries at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Limit {
    /// At most so many; 0 holds everything.
    AtMost(u32),
    /// No limit.
    Unlimited,
}

impl Limit {
    /// Whether one more may start beside `running`.
    #[must_use]
    pub fn admits(self, running: u32) -> bool {
        match self {
            Self::AtMost(limit) => running < limit,
            Self::Unlimited => true,
        }
    }
}

/// A group of lines that count together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Group {
    /// Its name, in lower case.
    pub name: Vec<u8>,
    /// The lowest limit of its lines.
    pub limit: Limit,
    /// Its first line, from 1.
    pub line: u32,
}

/// The line that a name matched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Line {
    /// Its limit; for a line with a group, the group's.
    pub limit: Limit,
    /// The index of its group.
    pub group: Option<u32>,
    place: Place,
}

/// A line as a value of a [`NameMap`]: a limit, unlimited, or (the upper half of the values) a group's index.
const UNLIMITED: u32 = GROUP - 1;
const GROUP: u32 = 1 << 19;
const _: () = assert!(LIMIT_MAX < UNLIMITED && GROUP as usize + GROUPS_MAX <= VALUE_MAX as usize);

/// The parsed file.
#[derive(Debug)]
pub struct Table {
    lines: NameMap,
    groups: Vec<Group>,
    group_index: NameMap,
}

impl Table {
    /// A table with no lines: everything is unlimited.
    #[must_use]
    pub fn new(hasher: Hasher) -> Self {
        Self { lines: NameMap::new(hasher), groups: Vec::new(), group_index: NameMap::new(hasher) }
    }

    /// Parses a file. All problems are collected; when one of them is an error the table is not to be used.
    ///
    /// # Errors
    /// No memory.
    pub fn parse(text: &[u8], hasher: Hasher) -> Result<(Self, Problems), OutOfMemory> {
        let mut problems = Problems::new(File::Domains);
        let mut table = Self::new(hasher);
        table.lines = NameMap::with_room(
            hasher,
            lines_of(text).filter(|(_, line)| is_content(line)).count(),
        )?;
        table.group_index =
            NameMap::with_room(hasher, lines_of(text).filter(|(_, line)| has_group(line)).count())?;
        for (number, line) in lines_of(text) {
            if !is_content(line) {
                continue;
            }
            if let Some((domain, limit, group)) = fields(trimmed(line), number, &mut problems) {
                table.add(domain, limit, group, number, &mut problems)?;
            }
        }
        Ok((table, problems))
    }

    fn add(
        &mut self,
        domain: &[u8],
        limit: Limit,
        group: Option<&[u8]>,
        line: u32,
        problems: &mut Problems,
    ) -> Result<(), OutOfMemory> {
        let value = match (group, limit) {
            (Some(_), _) if self.groups.len() >= GROUPS_MAX => {
                problems.add(line, 0, Kind::TooManyGroups);
                return Ok(());
            }
            (Some(name), _) => GROUP + self.add_group(name, limit, line, problems)?,
            (None, Limit::AtMost(limit)) => limit,
            (None, Limit::Unlimited) => UNLIMITED,
        };
        if let Some(earlier) = self.lines.insert(domain, value, line)? {
            problems.add(line, 1, Kind::Duplicate(earlier));
        }
        Ok(())
    }

    fn add_group(
        &mut self,
        name: &[u8],
        limit: Limit,
        line: u32,
        problems: &mut Problems,
    ) -> Result<u32, OutOfMemory> {
        if let Some((index, _)) = self.group_index.find(name) {
            let group = &mut self.groups[index as usize];
            if group.limit != limit {
                problems.add(line, 0, Kind::GroupDisagrees(group.line));
                group.limit = group.limit.min(limit);
            }
            return Ok(index);
        }
        let index = self.groups.len() as u32;
        let mut lower = Vec::new();
        lower.try_reserve_exact(name.len())?;
        lower.extend(name.iter().map(u8::to_ascii_lowercase));
        memory::push(&mut self.groups, Group { name: lower, limit, line })?;
        self.group_index.insert(name, index, line)?;
        Ok(index)
    }

    /// The line that a name matches.
    #[must_use]
    pub fn find(&self, name: &[u8]) -> Option<Line> {
        self.lines.find(name).map(|found| self.line(found))
    }

    /// The line that a name matches whose hash is known.
    #[inline]
    #[must_use]
    pub fn find_hashed(&self, hash: u64, name: &[u8]) -> Option<Line> {
        self.lines.find_hashed(hash, name).map(|found| self.line(found))
    }

    /// Brings what [`Table::find_hashed`] needs into the cache, while the caller does something else.
    #[inline]
    pub fn prefetch(&self, hash: u64) {
        self.lines.prefetch(hash);
    }

    #[inline]
    fn line(&self, (value, place): (u32, Place)) -> Line {
        Line { limit: self.limit(value), group: value.checked_sub(GROUP), place }
    }

    #[inline]
    fn limit(&self, value: u32) -> Limit {
        match value {
            UNLIMITED => Limit::Unlimited,
            limit if limit < GROUP => Limit::AtMost(limit),
            group => self.groups[(group - GROUP) as usize].limit,
        }
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

    /// The group of this name.
    #[must_use]
    pub fn group(&self, name: &[u8]) -> Option<&Group> {
        self.group_index.find(name).map(|(index, _)| &self.groups[index as usize])
    }

    /// How many domains it has.
    #[must_use]
    pub fn len(&self) -> usize {
        self.lines.len()
    }

    /// Whether it has no line.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.lines.is_empty()
    }

    /// The bytes that it occupies.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.lines.bytes() + self.group_index.bytes() + self.groups.len() * size_of::<Group>()
    }

    /// Warnings about limits that cannot be reached because qmail-send starts no more than this; in no order.
    pub fn above(&self, concurrency_remote: u32) -> impl Iterator<Item = Problem> {
        self.lines.iter().filter_map(move |(value, line)| match self.limit(value) {
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

/// The lines of a text with their numbers from 1; an end of line at the end of the text begins no further one.
pub(crate) fn lines_of(text: &[u8]) -> impl Iterator<Item = (u32, &[u8])> {
    let text = text.strip_suffix(b"\n").unwrap_or(text);
    text.split(|&byte| byte == b'\n').zip(1u32..).map(|(line, number)| (number, line))
}

/// A line without the white space at its end.
pub(crate) fn trimmed(line: &[u8]) -> &[u8] {
    let end = line
        .iter()
        .rposition(|byte| !matches!(byte, b' ' | b'\t' | b'\r'))
        .map_or(0, |last| last + 1);
    &line[..end]
}

/// Whether a line is more than a comment.
pub(crate) fn is_content(line: &[u8]) -> bool {
    let content = trimmed(line);
    !content.is_empty() && content[0] != b'#'
}

/// Whether a line may have a group.
fn has_group(line: &[u8]) -> bool {
    is_content(line) && line.iter().filter(|&&byte| byte == b':').count() > 1
}

type Fields<'a> = (&'a [u8], Limit, Option<&'a [u8]>);

/// Domain, limit and group of a line; None when it has an error.
fn fields<'a>(content: &'a [u8], line: u32, problems: &mut Problems) -> Option<Fields<'a>> {
    let Some(first) = content.iter().position(|&byte| byte == b':') else {
        let column = content
            .iter()
            .position(|byte| !byte.is_ascii_graphic())
            .map_or(content.len() + 1, |at| at + 1);
        problems.add(line, column, Kind::NoLimit);
        return None;
    };
    let errors = problems.errors();
    let domain = domain(&content[..first], line, problems);
    let rest = &content[first + 1..];
    let second = rest.iter().position(|&byte| byte == b':');
    let limit = limit(&rest[..second.unwrap_or(rest.len())], line, first + 2, problems);
    let group = second.map(|at| {
        let start = first + 1 + at + 1;
        group(&content[start..], line, start + 1, problems);
        &content[start..]
    });
    (problems.errors() == errors).then_some((domain, limit, group))
}

fn domain<'a>(name: &'a [u8], line: u32, problems: &mut Problems) -> &'a [u8] {
    let bare = crate::name::without_root(name);
    if bare.len() < name.len() {
        problems.add(line, name.len(), Kind::DomainRoot);
    }
    if bare.len() > NAME_MAX {
        problems.add(line, NAME_MAX + 1, Kind::DomainTooLong);
    }
    let bad = |byte: &u8| byte.is_ascii() && (!byte.is_ascii_graphic() || *byte == b'@');
    if let Some(at) = bare.iter().position(bad) {
        problems.add(line, at + 1, Kind::DomainCharacter(bare[at]));
    } else if let Some(at) = bare.iter().position(|byte| !byte.is_ascii()) {
        problems.add(line, at + 1, Kind::DomainNotAscii);
    }
    if let Some(at) = bare.iter().position(|&byte| byte == b'*') {
        problems.add(line, at + 1, Kind::DomainStar);
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
    } else if let Some(at) = name.iter().position(|&byte| byte == b':') {
        problems.add(line, column + at, Kind::TooManyFields);
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

    fn limit_of(table: &Table, name: &str) -> Option<Limit> {
        table.find(name.as_bytes()).map(|line| line.limit)
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
            Group { name: b"yahoo".to_vec(), limit: Limit::AtMost(10), line: 4 }
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
            (b"gmail.com:20:a:b", 15, Kind::TooManyFields),
            (b"gmail.com:20:a b", 15, Kind::GroupCharacter(b' ')),
            (b" gmail.com:20", 1, Kind::DomainCharacter(b' ')),
            (b"u@gmail.com:20", 2, Kind::DomainCharacter(b'@')),
            (b"a\0b:20", 2, Kind::DomainCharacter(0)),
        ] {
            let (_, problems) = parse(text);
            assert_eq!(problems, [(1, column, kind)], "{}", String::from_utf8_lossy(text));
            assert_eq!(kind.severity(), crate::problem::Severity::Error);
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
}
