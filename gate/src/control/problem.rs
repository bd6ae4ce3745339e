//! What can be wrong with a control file: kind, line and column.

#![forbid(unsafe_code)]

use std::fmt;

use crate::control::limit::{
    GROUP_MAX, GROUPS_MAX, LIMIT_MAX, PAUSE_MAX_SECS, PROGRAMS_MAX, RATED_MAX, RULES_MAX,
};
use crate::control::name::NAME_MAX;
use crate::control::name_map::VALUE_MAX;
use crate::control::rates::{RATE_MAX, RATE_SECS_MAX};
use crate::util::regex::Fault;

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// The file is used, but it may not mean what the operator wants.
    Warning,
    /// The file is not used: the last good one stays.
    Error,
}

/// Which file it is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum File {
    /// control/concurrencydomains
    Domains,
    /// control/smtproutes
    Routes,
    /// control/authsenders
    Senders,
    /// control/concurrencyremote
    ConcurrencyRemote,
    /// control/concurrencysites
    Sites,
    /// control/concurrencyreplies
    Replies,
    /// queue/lock/gatestatus
    Status,
    /// queue/lock/gatesites
    Seen,
    /// queue/lock/gateshared
    Shared,
    /// queue/lock/gatelease
    Lease,
    /// queue/lock/gatekept.domains
    KeptDomains,
    /// queue/lock/gatekept.routes
    KeptRoutes,
    /// queue/lock/gatekept.sites
    KeptSites,
    /// queue/lock/gatekept.senders
    KeptSenders,
    /// queue/lock/gatekept.replies
    KeptReplies,
    /// queue/lock/gatekept.rates
    KeptRates,
}

impl File {
    /// The copies of the last good control files, and the starts that count for rates. hier.c makes them, with
    /// [`File::Status`].
    pub const KEPT: [Self; 6] = [
        Self::KeptDomains,
        Self::KeptRoutes,
        Self::KeptSites,
        Self::KeptReplies,
        Self::KeptSenders,
        Self::KeptRates,
    ];

    /// Its path from qmail's home.
    #[must_use]
    pub const fn path(self) -> &'static str {
        match self {
            Self::Domains => "control/concurrencydomains",
            Self::Routes => "control/smtproutes",
            Self::Senders => "control/authsenders",
            Self::ConcurrencyRemote => "control/concurrencyremote",
            Self::Sites => "control/concurrencysites",
            Self::Replies => "control/concurrencyreplies",
            Self::Status => "queue/lock/gatestatus",
            Self::Seen => "queue/lock/gatesites",
            Self::Shared => "queue/lock/gateshared",
            Self::Lease => "queue/lock/gatelease",
            Self::KeptDomains => "queue/lock/gatekept.domains",
            Self::KeptRoutes => "queue/lock/gatekept.routes",
            Self::KeptSites => "queue/lock/gatekept.sites",
            Self::KeptSenders => "queue/lock/gatekept.senders",
            Self::KeptReplies => "queue/lock/gatekept.replies",
            Self::KeptRates => "queue/lock/gatekept.rates",
        }
    }

    /// Its name in its folder.
    #[must_use]
    pub fn name(self) -> &'static str {
        let path = self.path();
        path.rsplit_once('/').map_or(path, |(_, name)| name)
    }
}

impl fmt::Display for File {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.path())
    }
}

/// What is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// No colon in the line.
    NoLimit,
    /// The limit has other characters than digits.
    LimitNotNumber,
    /// The limit is above [`LIMIT_MAX`].
    LimitTooLarge,
    /// A colon behind the limit and nothing behind that.
    GroupEmpty,
    /// The group's name has a byte that is not printable ASCII.
    GroupCharacter(u8),
    /// The group's name is longer than [`GROUP_MAX`].
    GroupTooLong,
    /// More than [`GROUPS_MAX`] groups.
    TooManyGroups,
    /// More than three colons.
    TooManyFields,
    /// A word of the fourth field is neither `learn` nor `fixed` nor a rate.
    UnknownWord,
    /// The fourth field has `learn` or `fixed` twice, or both.
    LearningTwice,
    /// No number where a rate has one.
    RateNumber,
    /// What follows the slash of a rate is no unit.
    RateUnit,
    /// The time of a rate is 0, or longer than [`RATE_SECS_MAX`].
    RateTime,
    /// A rate of 0.
    RateZero,
    /// A rate above [`RATE_MAX`].
    RateTooHigh,
    /// The line has a rate of this unit already.
    RateTwice,
    /// More than [`RATED_MAX`] lines without a group have rates.
    TooManyRates,
    /// The text before the slash is no address.
    RangeAddress,
    /// The text behind the slash is not a number of bits up to this one.
    RangeLength(u8),
    /// The address has bits behind those that the range has in common. They are ignored.
    RangeHostBits,
    /// The domain is longer than [`NAME_MAX`].
    DomainTooLong,
    /// The domain has white space, a control character or an `@`.
    DomainCharacter(u8),
    /// The domain has bytes above 127: DNS and SMTP carry the `xn--` form.
    DomainNotAscii,
    /// A `*`: wildcards are written `.example.com`.
    DomainStar,
    /// A word that means all domains in other software: here the empty name does.
    DomainAll,
    /// The text in brackets is no address.
    DomainLiteral,
    /// A word or a star where an exchanger's name is expected.
    ExchangerAll,
    /// A character that no host's name has; some of them end the relay's name in lines of smtproutes.
    DomainNotHost(u8),
    /// A byte order mark in the domain: the file was joined from several.
    DomainMark,
    /// The file is in UTF-16.
    Utf16,
    /// A dot at the end of the domain, which is ignored.
    DomainRoot,
    /// Two dots in a row, or a second one at the start: there is no name between them.
    DomainEmptyLabel,
    /// The domain is in an earlier line, with this number. The later line counts.
    Duplicate(u32),
    /// The group has another limit in an earlier line, with this number. The lower limit counts.
    GroupDisagrees(u32),
    /// The group has another fourth field in an earlier line; this is the number of its first line. The limit is fixed.
    LearningDisagrees(u32),
    /// The group has other rates in an earlier line; this is the number of its first line. The lowest count.
    RatesDisagree(u32),
    /// The limit is above concurrencyremote, which is this number: it is never reached.
    AboveConcurrencyRemote(u32),
    /// The file is not a regular file.
    NotRegular,
    /// The file is larger than the gate reads; its size and the largest in bytes.
    TooBig(u64, u64),
    /// The file cannot be opened or read; the system's error number, 0 if there is none.
    Unreadable(i32),
    /// The file cannot be written; the system's error number, 0 if there is none.
    Unwritable(i32),
    /// A line of smtproutes without a colon: qmail-remote ignores it.
    RouteNoColon,
    /// A name in smtproutes that is longer than [`NAME_MAX`]: the gate does not follow it.
    RouteTooLong,
    /// A `*` in a host of smtproutes.
    RouteStar,
    /// A word in smtproutes that means all hosts in other software.
    RouteAll,
    /// A character in a host of smtproutes that no host's name has.
    RouteNotHost(u8),
    /// smtproutes begins with a byte order mark, which qmail-remote takes as a part of the first host.
    RouteMark,
    /// The relay in smtproutes is no name of a host: the gate does not follow it.
    RouteUnclear,
    /// More than [`VALUE_MAX`] relays in smtproutes: the gate does not follow the others.
    TooManyRoutes,
    /// A line of concurrencysites without a colon or a domain, or with an impossible domain or group.
    SiteLine,
    /// Too many lines in concurrencysites, or groups in them.
    TooManySites,
    /// A line of concurrencyreplies lacks a field.
    ReplyFields,
    /// Its first field is no code of refusals.
    ReplyCode,
    /// Its second field does not begin as a pattern.
    PatternStart,
    /// Its pattern has no end.
    PatternOpen,
    /// No blank follows its pattern.
    PatternEnd,
    /// Its pattern is wrong.
    Pattern(Fault),
    /// Its third field is no meaning.
    ReplyMeaning,
    /// The seconds of a pause are not from 1 to [`PAUSE_MAX_SECS`].
    PauseSeconds,
    /// Other text follows its meaning.
    ReplyTail,
    /// More than [`RULES_MAX`] lines, or [`PROGRAMS_MAX`] steps.
    TooManyReplies,
    /// An earlier line, with this number, matches all that this one matches.
    ReplyNeverReached(u32),
    /// It is for permanent refusals, for which only a pause has an effect.
    ReplyPermanent,
    /// concurrencyremote is not a number.
    NotNumber,
    /// The spawners of this queue cannot share what they run; the system's error number, 0 if there is none.
    CountsAlone(i32),
    /// The same: there are more of them than the file has columns.
    SharedFull,
    /// The same: /proc does not show which of the others are alive.
    ProcessesHidden,
    /// The same, for some keys: there are too many at once.
    SharedCrowded,
    /// No memory.
    OutOfMemory,
    /// The file changes all the time, and is not used.
    Changing,
    /// It is empty, or has only white space: a full disk, or a program that is killed while it writes, leaves such a
    /// file.
    Empty,
    /// The last file without errors counts.
    EarlierCounts,
    /// There is no earlier file without errors: the lines without errors count, and this limit for every other domain.
    PartCounts(u32),
    /// A copy of the last good file that is not whole.
    KeptNotWhole,
    /// The agent does not renew the lease, so each limit is divided by this number of hosts.
    LeaseOver(u32),
    /// More problems than are listed; how many more.
    More(u32),
}

/// More hosts than this share no limits: the number is not known.
const HOSTS_MAX: u32 = 100_000;

impl Kind {
    /// Warning or error.
    #[must_use]
    pub fn severity(self) -> Severity {
        match self {
            Self::DomainNotAscii
            | Self::DomainStar
            | Self::DomainAll
            | Self::DomainLiteral
            | Self::ExchangerAll
            | Self::DomainNotHost(_)
            | Self::DomainMark
            | Self::DomainRoot
            | Self::DomainEmptyLabel
            | Self::Duplicate(_)
            | Self::GroupDisagrees(_)
            | Self::LearningDisagrees(_)
            | Self::RatesDisagree(_)
            | Self::RangeHostBits
            | Self::SiteLine
            | Self::TooManySites
            | Self::AboveConcurrencyRemote(_)
            | Self::ReplyNeverReached(_)
            | Self::ReplyPermanent
            | Self::RouteNoColon
            | Self::RouteTooLong
            | Self::RouteStar
            | Self::RouteAll
            | Self::RouteNotHost(_)
            | Self::RouteMark
            | Self::RouteUnclear
            | Self::TooManyRoutes
            | Self::SharedCrowded
            | Self::NotNumber => Severity::Warning,
            _ => Severity::Error,
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::NoLimit => f.write_str("no colon: a line is domain:limit[:group[:words]]"),
            Self::LimitNotNumber => f.write_str("the limit is not a number (empty means unlimited)"),
            Self::LimitTooLarge => write!(f, "the limit is above {}", LIMIT_MAX),
            Self::GroupEmpty => f.write_str("the group's name is empty"),
            Self::GroupCharacter(byte) => write!(f, "the group's name has {}", Byte(byte)),
            Self::GroupTooLong => write!(f, "the group's name is longer than {} bytes", GROUP_MAX),
            Self::TooManyGroups => write!(f, "this is more than {} groups", GROUPS_MAX),
            Self::TooManyFields => {
                f.write_str("too many colons: a line is domain:limit[:group[:words]]")
            }
            Self::UnknownWord => f.write_str("expected learn, fixed or a rate such as 600/m"),
            Self::LearningTwice => f.write_str("learn or fixed is in this field already"),
            Self::RateNumber => f.write_str("a rate begins with a number: 600/m"),
            Self::RateUnit => f.write_str("expected s, m, h, d, 10s or 5m"),
            Self::RateTime => write!(f, "the time of a rate in s or m is not from 1 s to {} m", RATE_SECS_MAX / 60),
            Self::RateZero => f.write_str("a rate cannot be 0; to hold everything, set the limit to 0"),
            Self::RateTooHigh => write!(f, "the rate is above {} a second", RATE_MAX),
            Self::RateTwice => f.write_str("a rate of this unit is in this field already"),
            Self::TooManyRates => write!(f, "this is more than {} lines with rates and without a group", RATED_MAX),
            Self::RangeAddress => f.write_str("not a range of addresses: 192.0.2.0/24 and [2001:db8::]/32 are"),
            Self::RangeLength(most) => write!(f, "the length of the range is not a number from 0 to {most}"),
            Self::RangeHostBits => f.write_str("the address has more bits than the range; they are ignored"),
            Self::DomainTooLong => write!(f, "the domain is longer than {} bytes", NAME_MAX),
            Self::DomainCharacter(byte) => write!(f, "the domain has {}", Byte(byte)),
            Self::DomainNotAscii => {
                f.write_str("the domain is not ASCII: recipients have its xn-- form, which must be written here")
            }
            Self::DomainStar => f.write_str("a star is no wildcard: .example.com means every host below example.com"),
            Self::DomainAll => f.write_str("no domain has this name: the empty one stands for all other domains"),
            Self::DomainLiteral => f.write_str("what is in the brackets is no address"),
            Self::DomainNotHost(byte) => write!(f, "no host's name has {}", Byte(byte)),
            Self::ExchangerAll => f.write_str("no mail exchanger has this name"),
            Self::DomainMark => f.write_str("a byte order mark, which counts for a part of the domain"),
            Self::Utf16 => f.write_str("the file is in UTF-16"),
            Self::DomainRoot => f.write_str("the dot at the domain's end is ignored"),
            Self::DomainEmptyLabel => f.write_str("no domain has two dots in a row"),
            Self::Duplicate(line) => write!(f, "the domain is in line {line} already; this line counts"),
            Self::GroupDisagrees(line) => {
                write!(f, "the group has another limit in line {line}; the lowest counts for all its domains")
            }
            Self::LearningDisagrees(line) => {
                write!(f, "the group, which begins in line {line}, both learns and is fixed; it is fixed")
            }
            Self::RatesDisagree(line) => {
                write!(f, "the group, which begins in line {line}, has other rates; the lowest of each unit count")
            }
            Self::AboveConcurrencyRemote(limit) => write!(f, "the limit is never reached: concurrencyremote is {limit}"),
            Self::NotRegular => f.write_str("not a regular file"),
            Self::TooBig(size, max) => write!(f, "{size} bytes are too many, {max} is the most"),
            Self::Unreadable(0) => f.write_str("cannot be read"),
            Self::Unreadable(error) => write!(f, "cannot be read (error {error})"),
            Self::Unwritable(error) => write!(f, "cannot be written (error {error})"),
            Self::RouteNoColon => f.write_str("no colon: qmail-remote ignores this line"),
            Self::RouteTooLong => f.write_str("the name is too long, the gate does not follow this route"),
            Self::RouteStar => f.write_str("* is no wildcard in smtproutes"),
            Self::RouteAll => f.write_str("no host has this name: the empty one stands for all others"),
            Self::RouteNotHost(byte) => write!(f, "no host's name has {}: the line does nothing", Byte(byte)),
            Self::RouteMark => {
                f.write_str("a byte order mark, which qmail-remote takes for a part of this line: the line does not count")
            }
            Self::RouteUnclear => f.write_str("what stands for the relay is no host's name, the gate does not follow this route"),
            Self::TooManyRoutes => write!(f, "this is more than {} routes, the gate does not follow it", VALUE_MAX),
            Self::SiteLine => f.write_str("not domain:group, so this line is ignored"),
            Self::TooManySites => f.write_str("too many lines or groups, the gate does not follow it"),
            Self::ReplyFields => f.write_str("a line is CODE PATTERN MEANING"),
            Self::ReplyCode => {
                f.write_str("not a code of refusals: 421, 4xx, 4.7.28, 4.7.x and * are")
            }
            Self::PatternStart => {
                f.write_str("not a pattern: /regular expression/, \"text\" and * are")
            }
            Self::PatternOpen => f.write_str("the pattern has no end"),
            Self::PatternEnd => f.write_str("no blank behind the pattern"),
            Self::Pattern(fault) => fault.fmt(f),
            Self::ReplyMeaning => {
                f.write_str("not a meaning: limit, rate, nothing and pause SECONDS are")
            }
            Self::PauseSeconds => {
                write!(f, "not seconds from 1 to {}", PAUSE_MAX_SECS)
            }
            Self::ReplyTail => f.write_str("more behind the meaning; a comment begins with #"),
            Self::TooManyReplies => write!(
                f,
                "more than {} lines, or patterns of {} steps",
                RULES_MAX,
                PROGRAMS_MAX
            ),
            Self::ReplyNeverReached(line) => {
                write!(f, "line {line} says it for all of these; this line never counts")
            }
            Self::ReplyPermanent => {
                f.write_str("a refusal for good is no deferral: only pause does something here")
            }
            Self::NotNumber => f.write_str("not a number, so the default of 20 counts"),
            Self::CountsAlone(0) => f.write_str("cannot be used, so each limit holds per qmail-rspawn"),
            Self::CountsAlone(error) => {
                write!(f, "cannot be used (error {error}), so each limit holds per qmail-rspawn")
            }
            Self::SharedFull => {
                f.write_str("too many qmail-rspawn at this queue, so each limit holds once more in one of them")
            }
            Self::ProcessesHidden => {
                f.write_str("/proc hides other processes (hidepid), so each limit holds per qmail-rspawn")
            }
            Self::SharedCrowded => {
                f.write_str("too many destinations at once, so the limits of some hold per qmail-rspawn")
            }
            Self::OutOfMemory => f.write_str("out of memory"),
            Self::Changing => f.write_str("it was changed just now, or changes all the time"),
            Self::Empty => f.write_str("it is empty"),
            Self::EarlierCounts => f.write_str("the last one that had no errors counts"),
            Self::PartCounts(limit) => {
                write!(f, "no earlier one without errors is known: its good lines count, and a limit of {limit} for all other domains")
            }
            Self::KeptNotWhole => f.write_str("not whole, so it is not used"),
            Self::LeaseOver(0 | 1) => {
                f.write_str("there is no lease yet: qpatch gate share has not reached its store; limits count whole")
            }
            Self::LeaseOver(hosts @ ..=HOSTS_MAX) => {
                write!(f, "the lease is over: qpatch gate share does not renew it; each limit is divided by {hosts}")
            }
            Self::LeaseOver(_) => f.write_str(
                "the lease is over: qpatch gate share does not renew it; each limit is at its least",
            ),
            Self::More(count) => write!(f, "{count} more problems"),
        }
    }
}

/// A byte as a person can read it.
struct Byte(u8);

impl fmt::Display for Byte {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            b' ' => f.write_str("a space"),
            b'\t' => f.write_str("a tab"),
            byte if byte.is_ascii_graphic() => write!(f, "'{}'", char::from(byte)),
            byte => write!(f, "a byte {byte:#04x}"),
        }
    }
}

/// One problem, and where it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The file.
    pub file: File,
    /// The line, from 1; 0 when it is about the whole file.
    pub line: u32,
    /// The byte in the line, from 1; 0 when it is about the whole line or file.
    pub column: u32,
    /// What it is.
    pub kind: Kind,
}

impl Problem {
    /// About a whole file.
    #[must_use]
    pub fn of_file(file: File, kind: Kind) -> Self {
        Self { file, line: 0, column: 0, kind }
    }

    /// Warning or error.
    #[must_use]
    pub fn severity(&self) -> Severity {
        self.kind.severity()
    }
}

/// `control/concurrencydomains:3:11: the limit is not a number (empty means unlimited)`
impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:", self.file)?;
        if self.line > 0 {
            write!(f, "{}:", self.line)?;
            if self.column > 0 {
                write!(f, "{}:", self.column)?;
            }
        }
        write!(f, " {}", self.kind)
    }
}

/// The problems of one file. The first [`Problems::LISTED`] are kept, the others counted.
#[derive(Clone, Debug)]
pub struct Problems {
    file: File,
    list: Vec<Problem>,
    unlisted: u32,
    errors: u32,
    first_error: Option<Problem>,
}

impl Problems {
    /// How many problems are kept; the rest are only counted.
    pub const LISTED: usize = 1000;

    /// None yet.
    #[must_use]
    pub fn new(file: File) -> Self {
        Self { file, list: Vec::new(), unlisted: 0, errors: 0, first_error: None }
    }

    /// Adds one.
    pub fn add(&mut self, line: u32, column: usize, kind: Kind) {
        let column = u32::try_from(column).unwrap_or(u32::MAX);
        let problem = Problem { file: self.file, line, column, kind };
        if kind.severity() == Severity::Error {
            self.errors = self.errors.saturating_add(1);
            self.first_error.get_or_insert(problem);
        }
        if self.list.len() >= Self::LISTED
            || crate::util::memory::push(&mut self.list, problem).is_err()
        {
            self.unlisted = self.unlisted.saturating_add(1);
        }
    }

    /// The problems in the order of the file; the last one may be a [`Kind::More`].
    pub fn iter(&self) -> impl Iterator<Item = Problem> {
        let more =
            (self.unlisted > 0).then(|| Problem::of_file(self.file, Kind::More(self.unlisted)));
        self.list.iter().copied().chain(more)
    }

    /// How many errors there are, listed or not.
    #[must_use]
    pub fn errors(&self) -> u32 {
        self.errors
    }

    /// The first error; else the first warning.
    #[must_use]
    pub fn worst(&self) -> Option<Problem> {
        self.first_error.or_else(|| self.list.first().copied())
    }

    /// Whether nothing is wrong.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.list.is_empty() && self.unlisted == 0
    }
}
