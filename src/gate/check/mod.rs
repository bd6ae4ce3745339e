//! `qpatch gate check`: what is wrong with the control files, and what is legal but surely not meant.
//!
//! The gate's own parser says what is an error; here are added the warnings that need more than one line or one file.

mod replies;

use std::collections::{HashMap, HashSet};
use std::fs::Metadata;
use std::net::{IpAddr, Ipv4Addr};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use clap::Args;
use qpatch_gate::gate::CONCURRENCY_REMOTE;
use qpatch_gate::learn::Learning;
use qpatch_gate::literal::{self, Literal};
use qpatch_gate::name::{
    Hasher, domain_of, host_part, is_of_host, is_word_for_all, not_of_host, without_root,
};
use qpatch_gate::problem::{File, Kind, Problem, Problems, Severity};
use qpatch_gate::regex::Fault;
use qpatch_gate::replies::Replies;
use qpatch_gate::route::Routes;
use qpatch_gate::rules::{KeyKind, Resolution, Rules, Way};
use qpatch_gate::sender::{Asked, Reads, Senders};
use qpatch_gate::site::{self, Because, Map};
use qpatch_gate::status::{State, StatusError, unescaped_bytes};
use qpatch_gate::table::{self, Limit, Table};
use serde::Serialize;

use super::status_file::{self, Why};
use super::text::{escaped, key_name, limit_text, limit_value, plain};
use super::{Home, content_lines, leading_number, meaning, read_file, unusable};
use crate::error::Error;
use crate::output::{CommandResult, Failures, Format, Side, count, print, table};
use crate::qmail::relay_files;
use replies::{Told, reply_argument};

/// Arguments of `qpatch gate check`.
#[derive(Debug, Args)]
pub struct Check {
    /// The folder where qmail is installed, or one file with lines domain:limit[:group[:learn|fixed]]
    #[arg(value_name = "QMAILHOME|FILE", default_value = super::QMAIL_HOME)]
    path: PathBuf,
    /// Also tell under which key this domain counts, and its limit; may be repeated
    #[arg(long = "domain", value_name = "D", value_parser = domain_argument)]
    domains: Vec<String>,
    /// Tell it for mail of this sender, where qmail-remote chooses relays by senders (control/authsenders)
    ///
    /// Without it, for a sender that has no line of its own. An empty one is that of bounces.
    #[arg(long, value_name = "ADDRESS", requires = "domains")]
    sender: Option<String>,
    /// Also tell what this reply of a server would mean to the gate; may be repeated
    ///
    /// As the server gives it, "421 4.7.0 Too many connections", or a line of qmail-send's log that
    /// has it. Lines of control/concurrencyreplies come before the gate's own reading.
    #[arg(long = "reply", value_name = "TEXT", value_parser = reply_argument)]
    replies: Vec<String>,
    /// How to print it
    #[arg(long, value_enum, default_value_t = Format::Table)]
    format: Format,
}

/// A domain, or an address of which only the domain matters.
pub(super) fn domain_argument(value: &str) -> Result<String, String> {
    if value.contains('/') {
        return Err(
            "this is no domain: example.com is, or an address, whose domain counts".to_string()
        );
    }
    let domain = domain_of(value.as_bytes()).unwrap_or(value.as_bytes());
    Ok(String::from_utf8_lossy(without_root(domain)).into_owned())
}

/// The bytes of such an argument, which may be a name as it is printed: with `%ff` for a byte.
pub(super) fn domain_bytes(argument: &str) -> Vec<u8> {
    unescaped_bytes(argument.as_bytes()).unwrap_or_default()
}

/// So many warnings of one sort are listed.
const LISTED: usize = 1000;

/// One thing that is wrong, and what to do about it.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Finding {
    file: String,
    /// From 1; 0 when it is about the whole file.
    line: u32,
    /// In bytes, from 1; 0 when it is about the whole file.
    column: u32,
    #[serde(serialize_with = "severity_name")]
    severity: Severity,
    message: String,
    help: String,
}

fn severity_name<S: serde::Serializer>(severity: &Severity, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_str(match severity {
        Severity::Warning => "warning",
        Severity::Error => "error",
    })
}

impl Finding {
    fn new(
        severity: Severity,
        place: (&Path, u32, u32),
        message: impl Into<String>,
        help: impl Into<String>,
    ) -> Self {
        let (path, line, column) = place;
        let (file, message, help) = (path.display().to_string(), message.into(), help.into());
        Self { file, line, column, severity, message, help }
    }

    fn warning(
        place: (&Path, u32, u32),
        message: impl Into<String>,
        help: impl Into<String>,
    ) -> Self {
        Self::new(Severity::Warning, place, message, help)
    }

    fn of_problem(problem: &Problem, path: &Path, text: &[u8]) -> Self {
        let column = match problem.column {
            0 if problem.line > 0 => column_of(problem, text),
            column => column,
        };
        let place = (path, problem.line, column);
        let help = match problem.kind {
            // Each takes a look for the line; there are a thousand at most.
            Kind::DomainAll | Kind::DomainStar | Kind::RouteAll | Kind::RouteStar => {
                let line =
                    (problem.line as usize).checked_sub(1).and_then(|at| lines(text).nth(at));
                line.and_then(|line| instead(problem.kind, line))
            }
            _ => None,
        };
        let help = help.unwrap_or_else(|| advice(problem.kind));
        let help = match problem.file {
            File::Senders => help.replace("host:", "sender:"),
            _ => help,
        };
        Self::new(problem.severity(), place, meaning(problem.kind), help)
    }

    fn place(&self) -> String {
        match self.line {
            0 => self.file.clone(),
            line => format!("{}:{line}:{}", self.file, self.column),
        }
    }

    fn is_error(&self) -> bool {
        self.severity == Severity::Error
    }
}

/// Where in its line a problem is that the gate knows by its line only: at the limit, for problems of limits.
fn column_of(problem: &Problem, text: &[u8]) -> u32 {
    match problem.kind {
        Kind::AboveConcurrencyRemote(_) | Kind::GroupDisagrees(_) | Kind::LearningDisagrees(_) => {
            let line = text.split(|&byte| byte == b'\n').nth(problem.line as usize - 1);
            let colon = line.and_then(table::subject_len);
            colon.map_or(1, |at| at as u32 + 2)
        }
        _ => 1,
    }
}

fn lines(text: &[u8]) -> impl Iterator<Item = &[u8]> {
    text.split(|&byte| byte == b'\n').map(<[u8]>::trim_ascii_end)
}

/// What to write in the place of a line that is meant for all domains, or for all below one.
fn instead(kind: Kind, line: &[u8]) -> Option<String> {
    let below = |name: &[u8]| {
        let domain = name.strip_prefix(b"*.")?;
        let is_name = !domain.is_empty() && domain.iter().all(|&byte| is_of_host(byte));
        is_name.then(|| format!(".{}", String::from_utf8_lossy(domain)))
    };
    let (name, rest, what) = match kind {
        Kind::DomainAll | Kind::DomainStar => {
            let (mx, line) = match line.split_at_checked(3) {
                Some((mx, line)) if mx.eq_ignore_ascii_case(b"mx:") && line.contains(&b':') => {
                    ("mx:", line)
                }
                _ => ("", line),
            };
            let colon = line.iter().position(|&byte| byte == b':')?;
            let (name, rest) = (&line[..colon], plain(&line[colon..]));
            if !mx.is_empty() {
                return Some(format!("write {mx}{}{rest}", below(name)?));
            }
            (name, rest, "domains")
        }
        Kind::RouteAll | Kind::RouteStar => {
            let host = host_of(line)?;
            // Nothing but the relay's name may be shown.
            let value = [b"x", &line[host.len()..]].concat();
            let routes = Routes::parse(&value, Hasher::new(1)).ok()?.0;
            let relay = routes.find(b"x").map_or(&b""[..], |(name, _)| name);
            (host, format!(":{}", relay_text(relay)), "hosts")
        }
        _ => return None,
    };
    if is_word_for_all(name) {
        return Some(format!("write {rest} for all other {what}"));
    }
    let below = below(name)?;
    Some(format!("write {below}{rest} for all {what} below {}", &below[1..]))
}

/// A relay, or the line of one, as it is written: IPv6 addresses in brackets.
fn relay_text(relay: &[u8]) -> String {
    match literal::bare(relay) {
        Some(address @ IpAddr::V6(_)) => format!("[{address}]"),
        _ => escaped(relay),
    }
}

/// What can be done about a problem.
pub(super) fn advice(kind: Kind) -> String {
    let text = match kind {
        Kind::NoLimit => "write domain:limit; a comment begins with # in a line of its own",
        Kind::LimitNotNumber => {
            "write digits only, without spaces; a comment needs a line of its own"
        }
        Kind::LimitTooLarge => {
            return format!(
                "write nothing behind the colon for no limit, or a number up to {}",
                table::LIMIT_MAX
            );
        }
        Kind::GroupEmpty => "write the group's name, or leave out the second colon",
        Kind::GroupCharacter(_) => "a group's name has letters, digits and punctuation",
        Kind::GroupTooLong => "give the group a shorter name",
        Kind::TooManyGroups => "let more domains share a group",
        Kind::TooManyFields => {
            "a limit counts for one domain; an IPv6 address needs brackets: [2001:db8::25]:20"
        }
        Kind::LearningWord => "write fixed or learn, or leave out the third colon",
        Kind::RangeAddress => "write an address, a slash and the number of bits; IPv6 in brackets",
        Kind::RangeLength(_) => "write how many bits all addresses of the range have in common",
        Kind::RangeHostBits => "write the lowest address of the range",
        Kind::SiteLine => "qpatch gate sites writes this file: run it again",
        Kind::TooManySites => "let fewer domains match lines with mx:",
        Kind::ReplyFields => {
            "write a code, a pattern and a meaning, as in: 421 /too many (connections|sessions)/ limit"
        }
        Kind::ReplyCode => "write the code of the replies that are meant, with x for any number",
        Kind::PatternStart => "put the text in quotes, or a regular expression between slashes",
        Kind::PatternOpen => {
            "a quote or slash that is part of the pattern has a backslash before it"
        }
        Kind::PatternEnd => {
            "a slash in a pattern is written \\/; case never matters, so there are no flags"
        }
        Kind::Pattern(fault) => fault_advice(fault),
        Kind::ReplyMeaning => {
            "limit: too many at once; rate: too fast; nothing: a plain deferral; pause 600: start nothing for 600 s"
        }
        Kind::PauseSeconds => "write whole seconds",
        Kind::ReplyTail => "write one meaning in a line",
        Kind::TooManyReplies => "let fewer lines, or shorter patterns, say the same",
        Kind::ReplyNeverReached(_) => "the first line that fits counts: move it up, or remove it",
        Kind::ReplyPermanent => "write a code that begins with 4, or a pause",
        Kind::DomainTooLong => "no name server has such a name: remove the line",
        Kind::DomainCharacter(b'@') => "write the domain only, without a user and an @",
        Kind::DomainCharacter(_) => "write the domain only, from the first column on",
        Kind::DomainNotAscii => "write the domain's xn-- form, which mail carries",
        Kind::DomainStar => {
            "write .example.com:LIMIT for all below example.com; nothing stands for a part of a name"
        }
        Kind::DomainAll => "write :LIMIT for all other domains",
        Kind::DomainLiteral => {
            "write an address, as in [192.0.2.1]:20 and [2001:db8::25]:20, or no brackets"
        }
        Kind::ExchangerAll => {
            "write its name, as in mx:mx.example.com:LIMIT, or mx:.example.com:LIMIT for all below example.com"
        }
        Kind::DomainMark => "remove it: files that were put together had one each",
        Kind::DomainNotHost(byte) if !matches!(byte, b'|' | b';' | b',') => {
            "write the name only, as mail carries it"
        }
        Kind::DomainNotHost(_) => {
            "write the name only: what a route has behind it does not belong here, where others can read it"
        }
        Kind::Utf16 => "save it as plain text, or as UTF-8",
        Kind::DomainRoot => "leave out the dot",
        Kind::Duplicate(_) => "remove one of the two lines",
        Kind::GroupDisagrees(_) => "write the same limit in all lines of the group",
        Kind::LearningDisagrees(_) => "write the same fourth field in all lines of the group",
        Kind::AboveConcurrencyRemote(_) => {
            "raise control/concurrencyremote and restart qmail-send, or lower the limit"
        }
        Kind::NotRegular => "put a regular file there",
        Kind::TooBig(..) => "is it the right file? A million domains need about 25 MB",
        Kind::Unreadable(libc::EACCES | libc::EPERM) => "run qpatch as root, or let it be read",
        Kind::RouteNoColon => "write host:relay, host:relay:port or host:",
        Kind::RouteTooLong => "no name server has such a name: remove the line",
        Kind::RouteStar | Kind::RouteAll | Kind::RouteNotHost(_) => {
            "write :RELAY for all other hosts, .example.com:RELAY for those below example.com"
        }
        Kind::RouteMark => "save the file without it, as plain text",
        Kind::RouteUnclear => {
            "write host:relay, host:relay:port or host:; an IPv6 address in brackets"
        }
        Kind::TooManyRoutes => "the domains of these routes count by themselves",
        Kind::NotNumber => "write a number into control/concurrencyremote",
        Kind::CountsAlone(_) => "make setup check in the patched tree, while qmail is stopped",
        Kind::SharedFull => "end the qmail-rspawn of a qmail-send that is gone",
        Kind::ProcessesHidden => "mount /proc without hidepid",
        Kind::SharedCrowded => "raise limits that are far below what the servers take",
        Kind::OutOfMemory => "make room, then run it again",
        Kind::Unwritable(_) => "make it writable for qmailr, and room on its disk",
        Kind::Changing => "end what writes it all the time",
        Kind::EarlierCounts | Kind::PartCounts(_) => "correct the file",
        Kind::KeptNotWhole => "the gate writes it anew with the next good control file",
        Kind::More(_) => "correct the others first",
        Kind::Unreadable(_) => "",
    };
    text.to_string()
}

fn fault_advice(fault: Fault) -> &'static str {
    match fault {
        Fault::Empty => "write * for any text",
        Fault::GroupOpen | Fault::GroupNotOpen => {
            "a parenthesis that is meant as such is written \\( or \\)"
        }
        Fault::ClassOpen | Fault::ClassInClass => "a bracket that is meant as such is written \\[",
        Fault::ClassRange => "a hyphen that is meant as such is written \\-",
        Fault::NothingToRepeat => {
            "a character that is meant as such has a backslash before it: \\* \\+ \\?"
        }
        Fault::Braces => "a brace that is meant as such is written \\{",
        Fault::Backslash => "a backslash that is meant as such is written \\\\",
        Fault::Escape(_) => {
            "\\d \\s \\w \\b and their capitals have a meaning, and punctuation behind a backslash means itself"
        }
        Fault::NotSupported => "say it in several lines: the first one that fits counts",
        Fault::Character(_) => "write a dot for any character",
        Fault::RepeatTooLarge | Fault::RepeatOrder | Fault::TooLong | Fault::TooDeep => {
            "write a shorter pattern"
        }
    }
}

/// Where the rules come from.
#[derive(Clone, Debug)]
pub(super) struct Source {
    home: Option<Home>,
    pub(super) domains: PathBuf,
    pub(super) routes: Option<PathBuf>,
    senders: Option<PathBuf>,
    sites: Option<PathBuf>,
    replies: Option<PathBuf>,
    seen: Option<PathBuf>,
}

impl Source {
    /// The control files of a qmail home, or one file.
    pub(super) fn of(path: &Path) -> Result<Self, Error> {
        if !path.is_dir() {
            return Ok(Self {
                home: None,
                domains: path.to_path_buf(),
                routes: None,
                senders: None,
                sites: None,
                replies: None,
                seen: None,
            });
        }
        let home = Home::with_control(path)?;
        Ok(Self {
            domains: home.control("concurrencydomains"),
            routes: Some(home.control("smtproutes")),
            senders: Some(home.control("authsenders")),
            sites: Some(home.control("concurrencysites")),
            replies: Some(home.control("concurrencyreplies")),
            seen: Some(home.lock("gatesites")),
            home: Some(home),
        })
    }
}

/// What has been read.
#[derive(Debug)]
pub(super) struct Loaded {
    pub(super) findings: Vec<Finding>,
    /// None when there is an error: the gate does not use such a file.
    pub(super) rules: Option<Rules>,
    /// The file of domains, with what the system knows of it. None if there is none.
    domains: Option<(Metadata, Vec<u8>)>,
    routes: Vec<u8>,
    /// What the gate itself said, as it would write it into its status.
    said: HashSet<String>,
}

impl Loaded {
    /// The rules, or its errors as one.
    pub(super) fn into_rules(self, path: &Path) -> Result<Rules, Error> {
        self.rules.ok_or_else(|| {
            let mut errors = self.findings.iter().filter(|finding| finding.is_error());
            let first = errors.next();
            let place = first.map_or_else(String::new, Finding::place);
            let mut what = first.map_or_else(String::new, |error| error.message.clone());
            if let more @ 1.. = errors.count() as u64 {
                what.push_str(&format!(" (and {})", count(more, "more error")));
            }
            Error::new(place, what, format!("qpatch gate check {} tells it all", path.display()))
        })
    }
}

/// Reads the rules as the gate does. Without the file of domains there is a rule book that limits nothing.
pub(super) fn load(source: &Source, hasher: Hasher) -> Result<Loaded, Error> {
    let mut loaded = Loaded {
        findings: Vec::new(),
        rules: None,
        domains: None,
        routes: Vec::new(),
        said: HashSet::new(),
    };
    let no_memory = |_| unusable(&source.domains, Kind::OutOfMemory);
    let mut rules = Rules::stock(hasher);
    match read_file(&source.domains, table::FILE_MAX) {
        Ok(None) if source.home.is_none() => {
            let help = "name a file, or the folder that has qmail's control";
            return Err(Error::new(source.domains.display(), "no such file", help));
        }
        Ok(None) => {}
        Ok(Some((metadata, text))) => {
            let (table, problems) = Table::parse(&text, hasher).map_err(no_memory)?;
            // As the gate skips it.
            let text = table::without_mark(&text).to_vec();
            loaded.add(&problems, &source.domains, &text);
            loaded.domains = Some((metadata, text));
            rules.table = Some(table);
        }
        Err(kind) => loaded.add_file(File::Domains, kind, &source.domains),
    }
    if let Some(path) = &source.routes {
        match read_file(path, table::FILE_MAX) {
            Ok(None) => {}
            Ok(Some((_, text))) => {
                let (routes, problems) = Routes::parse(&text, hasher).map_err(no_memory)?;
                loaded.add(&problems, path, &text);
                loaded.routes = text;
                rules.routes = routes;
            }
            Err(kind) => loaded.add_file(File::Routes, kind, path),
        }
    }
    if let Some(home) = &source.home {
        rules.reads = relay_files::followed(&home.0);
        loaded.leave_out_bounces(rules.reads, source.routes.as_deref());
    }
    if let Some(path) = source.senders.as_ref().filter(|_| rules.reads.senders == Asked::Yes) {
        match read_file(path, table::FILE_MAX) {
            Ok(None) => {}
            Ok(Some((_, text))) => {
                let (senders, problems) = Senders::parse(&text, hasher).map_err(no_memory)?;
                loaded.add(&problems, path, &text);
                rules.senders = senders;
            }
            Err(kind) => loaded.add_file(File::Senders, kind, path),
        }
    }
    if let Some(path) = &source.sites {
        match read_file(path, table::FILE_MAX) {
            Ok(None) => {}
            Ok(Some((_, text))) => {
                let (map, problems) = Map::parse(&text, hasher).map_err(no_memory)?;
                loaded.add(&problems, path, &text);
                rules.sites.map = map;
            }
            Err(kind) => loaded.add_file(File::Sites, kind, path),
        }
    }
    // Errors in these words do not touch the limits.
    let is_usable = !loaded.findings.iter().any(Finding::is_error);
    if let Some(path) = &source.replies {
        match read_file(path, table::FILE_MAX) {
            Ok(None) => {}
            Ok(Some((_, text))) => {
                let (replies, problems) = Replies::parse(&text).map_err(no_memory)?;
                loaded.add(&problems, path, &text);
                rules.replies = replies;
            }
            Err(kind) => loaded.add_file(File::Replies, kind, path),
        }
    }
    if is_usable && loaded.findings.iter().any(Finding::is_error) {
        rules.replies = Replies::default();
    }
    // Nobody but the gate writes it; where it cannot be read, what the gate has seen is not known here.
    if let Some(path) = &source.seen
        && let Ok(Some((_, bytes))) = read_file(path, site::FILE_MAX)
    {
        site::read(&bytes, hasher, &mut rules.sites.seen).map_err(no_memory)?;
    }
    if is_usable {
        loaded.rules = Some(rules);
    }
    Ok(loaded)
}

impl Loaded {
    /// The relays of smtproutes, in lower case.
    pub(super) fn relays(&self) -> HashSet<Vec<u8>> {
        let Some(rules) = &self.rules else { return HashSet::new() };
        let hosts = content_lines(&self.routes).filter_map(|(_, line)| host_of(line));
        let relays = hosts.filter_map(|host| rules.routes.find(host));
        relays.map(|(relay, _)| relay.to_vec()).collect()
    }

    fn add(&mut self, problems: &Problems, path: &Path, text: &[u8]) {
        self.said.extend(problems.iter().map(|problem| problem.to_string()));
        let found = problems.iter().map(|problem| Finding::of_problem(&problem, path, text));
        self.findings.extend(found);
    }

    fn add_file(&mut self, file: File, kind: Kind, path: &Path) {
        let problem = Problem::of_file(file, kind);
        self.said.insert(problem.to_string());
        self.findings.push(Finding::of_problem(&problem, path, &[]));
    }

    /// The line for mail without a sender does something, though no host has such a name.
    fn leave_out_bounces(&mut self, reads: Reads, routes: Option<&Path>) {
        let Some(routes) = routes.map(|path| path.display().to_string()) else { return };
        let lines = content_lines(&self.routes);
        let is_meant = |line: &[u8]| {
            host_of(line).is_some_and(|host| relay_files::is_for_bounces(host, reads))
        };
        let meant: Vec<u32> =
            lines.filter(|(_, line)| is_meant(line)).map(|(number, _)| number).collect();
        let said = meaning(Kind::RouteNotHost(b'!'));
        self.findings.retain(|finding| {
            finding.file != routes || finding.message != said || !meant.contains(&finding.line)
        });
        // The gate itself goes on to say it in its status.
        for number in meant {
            let kind = Kind::RouteNotHost(b'!');
            let problem = Problem { file: File::Routes, line: number, column: 1, kind };
            self.said.insert(problem.to_string());
        }
    }

    /// Adds warnings of one sort.
    fn warn(&mut self, mut warnings: Vec<Finding>) {
        let more = warnings.len().saturating_sub(LISTED);
        warnings.truncate(LISTED);
        if let (1.., Some(last)) = (more, warnings.last_mut()) {
            last.message.push_str(&format!(" (and {} like this)", count(more as u64, "more line")));
        }
        self.findings.append(&mut warnings);
    }
}

/// Runs it.
///
/// # Errors
/// The files cannot be read, or have errors, which have been printed.
pub fn run(args: &Check) -> CommandResult {
    let source = Source::of(&args.path)?;
    let mut loaded = load(&source, Hasher::new(1))?;
    let remote = concurrency_remote(&source, &mut loaded);
    for warnings in not_meant(&source, &loaded, remote) {
        loaded.warn(warnings);
    }
    if let Some(home) = &source.home {
        look_elsewhere(home, &mut loaded);
        look_at_permissions(home, &source, &mut loaded);
        look_at_status(home, &mut loaded);
    }
    let of_file = |finding: &Finding| {
        [Some(&source.domains), source.routes.as_ref(), source.replies.as_ref()]
            .iter()
            .position(|path| path.is_some_and(|path| *path.display().to_string() == finding.file))
            .unwrap_or(3)
    };
    loaded.findings.sort_by_key(|finding| (of_file(finding), finding.line, finding.column));
    let answers = answers(&loaded, &args.domains, args.sender.as_deref());
    let none = Replies::default();
    let told = replies::told(loaded.rules.as_ref().map_or(&none, |r| &r.replies), &args.replies);
    match args.format {
        Format::Table => print_table(&source, &loaded, remote, &answers, &told, args)?,
        Format::Json => print_json(&loaded, remote, &answers, &told)?,
    }
    let failed = loaded.findings.iter().any(Finding::is_error);
    if failed { Err(Failures::printed()) } else { Ok(()) }
}

/// What qmail-send has read at its start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Remote {
    limit: u32,
    /// Whether control/concurrencyremote says so.
    from: Whence,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Whence {
    File,
    Default,
}

fn concurrency_remote(source: &Source, loaded: &mut Loaded) -> Option<Remote> {
    let path = source.home.as_ref()?.control("concurrencyremote");
    let default = Remote { limit: CONCURRENCY_REMOTE, from: Whence::Default };
    let kind = match read_file(&path, 4096) {
        Ok(None) => return Some(default),
        Ok(Some((_, text))) => match leading_number(&text) {
            Some(limit) => return Some(Remote { limit, from: Whence::File }),
            None => Kind::NotNumber,
        },
        Err(kind) => kind,
    };
    let line = u32::from(kind == Kind::NotNumber);
    let problem = Problem { line, ..Problem::of_file(File::ConcurrencyRemote, kind) };
    loaded.said.insert(problem.to_string());
    // To the limits a wrong concurrencyremote is no error: they count as they stand.
    let finding = Finding::of_problem(&problem, &path, &[]);
    loaded.findings.push(Finding { severity: Severity::Warning, ..finding });
    Some(default)
}

/// What is legal, but surely not meant: one list for each sort.
fn not_meant(source: &Source, loaded: &Loaded, remote: Option<Remote>) -> Vec<Vec<Finding>> {
    let path = &source.domains;
    let (Some(rules), Some((_, text))) = (&loaded.rules, &loaded.domains) else {
        return match (&source.home, &loaded.rules) {
            (Some(home), Some(_)) => vec![vec![Finding::warning(
                (path, 0, 0),
                "no such file: no domain has a limit, as in stock qmail",
                format!("qpatch gate init {} writes one to start from", home.0.display()),
            )]],
            _ => Vec::new(),
        };
    };
    let Some(table) = &rules.table else { return Vec::new() };
    let mut sorts = vec![
        no_default(path, table),
        zeros(path, text),
        bare_addresses(path, text, &loaded.relays()),
    ];
    if let Some(remote) = remote {
        sorts.push(never_reached(path, text, table, remote));
    }
    if let Some(routes) = &source.routes {
        sorts.push(overruled(path, text, rules, &loaded.relays()));
        sorts.push(repeated_routes(routes, &loaded.routes, rules));
        sorts.push(crowded_relays(routes, &loaded.routes, rules));
    }
    if let Some(sites) = &source.sites {
        sorts.push(sites_of_nobody(sites, rules, table));
        sorts.push(exchangers_without_map(path, text, rules, table));
    }
    sorts
}

/// The line of the empty name.
fn default_line(table: &Table) -> Option<u32> {
    table.find(b"").map(|line| table.number(&line))
}

fn no_default(path: &Path, table: &Table) -> Vec<Finding> {
    if default_line(table).is_some() {
        return Vec::new();
    }
    let message = match table.is_empty() {
        true => "no line with a limit: no domain has one",
        false => "no default: a domain that matches no line has no limit",
    };
    let help = "add a line :20 for all other domains, or : if they are to have none";
    vec![Finding::warning((path, 0, 0), message, help)]
}

/// Groups of concurrencysites that concurrencydomains does not have.
fn sites_of_nobody(path: &Path, rules: &Rules, table: &Table) -> Vec<Finding> {
    let lost = rules.sites.map.groups().filter(|name| table.group(name).is_none());
    let lost = lost.map(|name| {
        let name = escaped(name);
        let message =
            format!("the group {name} is not in concurrencydomains: its lines do nothing");
        Finding::warning((path, 0, 0), message, "qpatch gate sites writes the file anew")
    });
    lost.collect()
}

/// Lines with `mx:`, and nobody has asked DNS.
fn exchangers_without_map(path: &Path, text: &[u8], rules: &Rules, table: &Table) -> Vec<Finding> {
    if !table.has_exchangers() || !rules.sites.map.is_empty() {
        return Vec::new();
    }
    let is_mx = |line: &[u8]| line.get(..3).is_some_and(|mx| mx.eq_ignore_ascii_case(b"mx:"));
    let first = content_lines(text).find(|(_, line)| is_mx(line));
    let message = "lines with mx: do nothing: there is no control/concurrencysites, or it is empty";
    let help = "let cron run qpatch gate sites, which looks mail exchangers up and writes it";
    vec![Finding::warning((path, first.map_or(0, |(number, _)| number), 1), message, help)]
}

/// The domain of a line, and where its limit is.
fn split(line: &[u8]) -> Option<(&[u8], &[u8], u32)> {
    let colon = table::subject_len(line)?;
    let rest = &line[colon + 1..];
    let end = rest.iter().position(|&byte| byte == b':').unwrap_or(rest.len());
    Some((without_root(&line[..colon]), &rest[..end], colon as u32 + 2))
}

/// What a line is about, as it may be shown: someone may have written a relay's password behind its name here, too.
fn shown_domain(subject: &[u8]) -> String {
    let is_other = subject.starts_with(b"[") || subject.contains(&b'/') || subject.contains(&b':');
    let shown = if is_other && !subject.contains(&b'|') { subject } else { host_part(subject) };
    escaped(shown)
}

/// In other mail servers 0 is no limit.
fn zeros(path: &Path, text: &[u8]) -> Vec<Finding> {
    let zeros = content_lines(text).filter_map(|(number, line)| {
        let (domain, limit, column) = split(line)?;
        let is_zero = !limit.is_empty() && limit.iter().all(|&digit| digit == b'0');
        let mail = match domain {
            b"" => "all mail".to_string(),
            name => match shown_domain(name) {
                shown if shown.is_empty() => "its mail".to_string(),
                shown => format!("all mail for {shown}"),
            },
        };
        is_zero.then(|| {
            let message = format!("0 keeps {mail} in the queue");
            let help = "leave the limit empty if there is to be none";
            Finding::warning((path, number, column), message, help)
        })
    });
    zeros.collect()
}

/// Addresses where a domain is expected. A relay may have one for its name, mail to an address has it in brackets.
fn bare_addresses(path: &Path, text: &[u8], relays: &HashSet<Vec<u8>>) -> Vec<Finding> {
    let addresses = content_lines(text).filter_map(|(number, line)| {
        let (domain, ..) = split(line)?;
        let address: Ipv4Addr = std::str::from_utf8(domain).ok()?.parse().ok()?;
        (!relays.contains(domain)).then(|| {
            let message = format!("{address} is an address, and no mail has it for a domain");
            let help = format!(
                "write {address}/32 for a server, [{address}] for mail to the address itself"
            );
            Finding::warning((path, number, 1), message, help)
        })
    });
    addresses.collect()
}

fn never_reached(path: &Path, text: &[u8], table: &Table, remote: Remote) -> Vec<Finding> {
    let mut above: Vec<Problem> = table.above(remote.limit).collect();
    above.sort_by_key(|problem| problem.line);
    let mut columns = HashMap::new();
    for (number, line) in content_lines(text) {
        if let Some((_, _, column)) = split(line) {
            columns.insert(number, column);
        }
    }
    let finding = |problem: &Problem| {
        let column = columns.get(&problem.line).copied().unwrap_or(1);
        let problem = Problem { column, ..*problem };
        let mut finding = Finding::of_problem(&problem, path, text);
        if remote.from == Whence::Default {
            finding.message.push_str(", qmail's default");
        }
        finding
    };
    above.iter().map(finding).collect()
}

/// Lines whose domain a route takes away from them.
fn overruled(path: &Path, text: &[u8], rules: &Rules, relays: &HashSet<Vec<u8>>) -> Vec<Finding> {
    let lines = content_lines(text).filter_map(|(number, line)| {
        let (domain, limit, _) = split(line)?;
        let rest = &line[domain.len() + 1 + limit.len()..];
        let has_group = rest.len() > 1 && !rest.starts_with(b"::");
        let is_no_domain = domain.iter().any(|byte| matches!(byte, b'/' | b':'));
        if domain.is_empty() || domain[0] == b'.' || is_no_domain || has_group {
            return None;
        }
        // Hardly anybody sends mail to an address: it is there for the relay.
        let address = literal::bracketed(domain).map(Literal::new);
        if address.is_some_and(|address| relays.contains(address.name())) {
            return None;
        }
        let found = rules.resolve(domain);
        let (of_domains, of_routes) = rules.lines(&found);
        if found.route.is_none() || of_domains == number || found.site.is_some() {
            return None;
        }
        let relay = escaped(found.name);
        let (line, key) = (line_text(of_domains), key_name(found.kind, &relay));
        let limit = limit_words(found.cap.limit);
        let message = format!(
            "the limit does not count: smtproutes:{of_routes} sends {domain} to a relay, and {key} has \
             {limit} ({line})",
            domain = shown_domain(domain),
        );
        let help = "give the relay a line, or the domain a group";
        Some(Finding::warning((path, number, 1), message, help))
    });
    lines.collect()
}

fn limit_words(limit: Limit) -> String {
    match limit {
        Limit::AtMost(limit) => format!("a limit of {limit}"),
        Limit::Unlimited => "no limit".to_string(),
    }
}

fn host_of(line: &[u8]) -> Option<&[u8]> {
    let colon = line.iter().position(|&byte| byte == b':')?;
    Some(&line[..colon])
}

fn repeated_routes(path: &Path, text: &[u8], rules: &Rules) -> Vec<Finding> {
    let lines = content_lines(text).filter_map(|(number, line)| {
        let (_, place) = rules.routes.find(host_of(line)?)?;
        let counts = rules.routes.number(place);
        // A name that is too long is not among them, and then what is found is a suffix of it.
        (counts > number).then(|| {
            let message = format!("the host is in line {counts} again; that line counts");
            Finding::warning((path, number, 1), message, "remove one of the two lines")
        })
    });
    lines.collect()
}

/// Relays that take mail of many domains, and have only the default's limit for all of them together.
fn crowded_relays(path: &Path, text: &[u8], rules: &Rules) -> Vec<Finding> {
    #[derive(Clone, Copy)]
    struct Use {
        first: u32,
        lines: u32,
        wide: u32,
    }
    let mut relays: Vec<(&[u8], Use)> = Vec::new();
    let mut index: HashMap<&[u8], usize> = HashMap::new();
    for (number, line) in content_lines(text) {
        let Some(host) = host_of(line) else { continue };
        // Nothing comes by these lines.
        if is_word_for_all(host) || host.contains(&b'*') || not_of_host(host).is_some() {
            continue;
        }
        let Some((relay, place)) = rules.routes.find(host) else { continue };
        if rules.routes.number(place) != number {
            continue;
        }
        let at = *index.entry(relay).or_insert_with(|| {
            relays.push((relay, Use { first: number, lines: 0, wide: 0 }));
            relays.len() - 1
        });
        let seen = &mut relays[at].1;
        seen.lines += 1;
        seen.wide += u32::from(host.first().is_none_or(|&byte| byte == b'.'));
    }
    let Some(table) = &rules.table else { return Vec::new() };
    let default = default_line(table);
    let crowded = relays.iter().filter_map(|(relay, seen)| {
        let line = table.find_relay(relay)?;
        // A site, or a range for the address that it is, may have taken it over.
        rules.cap_of(KeyKind::Relay, relay)?;
        let Limit::AtMost(limit) = line.cap.limit else { return None };
        let by_default = Some(table.number(&line)) == default && line.group.is_none();
        if !by_default || (seen.lines < 2 && seen.wide == 0) {
            return None;
        }
        let address = relay_text(relay);
        let relay = escaped(relay);
        let message = format!(
            "everything that goes to the relay {relay} counts together, and has only the \
             default's limit of {limit} ({})",
            line_text(table.number(&line))
        );
        let help = format!(
            "give the relay a line of its own: {address}:LIMIT, or {address}: if it is to have none"
        );
        Some(Finding::warning((path, seen.first, 1), message, help))
    });
    crowded.collect()
}

/// `concurrencydomains:3`; 0 is no line.
fn line_text(number: u32) -> String {
    match number {
        0 => "no line".to_string(),
        number => format!("concurrencydomains:{number}"),
    }
}

/// Relays that are in other files than smtproutes.
fn look_elsewhere(home: &Home, loaded: &mut Loaded) {
    if loaded.domains.is_none() {
        return;
    }
    for file in relay_files::find(&home.0) {
        let path = home.control(file.name);
        loaded.findings.push(Finding::warning((&path, 0, 0), file.message(), file.help()));
    }
}

/// qmail-rspawn runs as qmailr, to whom queue/lock/tcpto belongs.
fn look_at_permissions(home: &Home, source: &Source, loaded: &mut Loaded) {
    let tcpto = std::fs::metadata(home.lock("tcpto")).ok();
    if let Some((metadata, _)) = &loaded.domains {
        let mode = metadata.mode();
        let readable = mode & 0o004 != 0
            || tcpto.as_ref().is_some_and(|tcpto| {
                (metadata.uid() == tcpto.uid() && mode & 0o400 != 0)
                    || (metadata.gid() == tcpto.gid() && mode & 0o040 != 0)
            });
        if !readable {
            let path = &source.domains;
            let message = format!(
                "the gate cannot read it: its mode is {:04o}, and qmail-rspawn runs as qmailr",
                mode & 0o7777
            );
            let help = format!("chmod 644 {}", path.display());
            loaded.findings.push(Finding::new(Severity::Error, (path, 0, 0), message, help));
            // The gate does not use it, either.
            loaded.rules = None;
        }
    }
    let Some(tcpto) = tcpto else { return };
    // One for each qmail-rspawn; those of a tree with supplemental channels share a file besides.
    let numbered = (1..).map(|number| format!("gatestatus.{number}"));
    let others = numbered.take_while(|name| home.lock(name).exists()).collect::<Vec<_>>();
    if !others.is_empty() && !home.lock("gateshared").exists() {
        let message =
            "no such file: each limit holds per qmail-rspawn, not for all of them together";
        let help = advice(Kind::CountsAlone(0));
        loaded.findings.push(Finding::warning((&home.lock("gateshared"), 0, 0), message, help));
    }
    let follows_senders = relay_files::followed(&home.0).senders == Asked::Yes;
    let kept = File::KEPT.into_iter().filter(|&file| file != File::KeptSenders || follows_senders);
    let kept = kept.map(File::name);
    let kept: Vec<_> = kept.collect();
    if home.lock("gatestatus").exists() {
        for path in kept.iter().map(|name| home.lock(name)).filter(|path| !path.exists()) {
            let message = "no such file: what the control file says is not kept, so after a restart a mistake in it counts at once";
            let help = "make setup check in the patched tree, while qmail is stopped";
            loaded.findings.push(Finding::warning((&path, 0, 0), message, help));
        }
    }
    let names = ["gatestatus", "gateshared"].into_iter().chain(kept);
    let names = names.chain(others.iter().map(String::as_str));
    for path in names.map(|name| home.lock(name)) {
        let Ok(file) = std::fs::metadata(&path) else { continue };
        if file.is_file() && file.uid() != tcpto.uid() {
            let message = format!(
                "the gate cannot write it: it belongs to user {}, and qmail-rspawn runs as user {}",
                file.uid(),
                tcpto.uid()
            );
            let help = format!("chown {} {}", tcpto.uid(), path.display());
            loaded.findings.push(Finding::warning((&path, 0, 0), message, help));
        }
    }
}

/// What the running gate says; of several spawners, each thing once.
fn look_at_status(home: &Home, loaded: &mut Loaded) {
    let mut warn = |path: &Path, message: String, help: &str| {
        loaded.findings.push(Finding::warning((path, 0, 0), message, help));
    };
    let path = home.lock("gatestatus");
    match status_file::read(home) {
        Ok(spawners) => {
            let status = status_file::together(&spawners);
            if status.state == State::Failed {
                let message = "the gate had an internal error: since then there are no limits";
                warn(&path, message.to_string(), "restart qmail, and report it");
                return;
            }
            for problem in &status.problems {
                if !loaded.said.contains(problem) {
                    let message = format!("the gate says: {}", plain(problem));
                    let help = "if it has been corrected, the gate sees it with its next delivery";
                    warn(&path, message, help);
                }
            }
        }
        Err(unread) => match unread.why {
            // Without a queue there is no gate that could be asked, and a gate without limits is silent.
            Why::Missing if home.lock("").is_dir() => warn(
                &path,
                "no such file: this qmail has no gate".to_string(),
                "qpatch apply TREE, make setup check, restart qmail",
            ),
            Why::Missing | Why::Denied | Why::Status(StatusError::Empty) => {}
            Why::File(_) | Why::Status(_) => {
                let error = status_file::explain(home, &unread);
                warn(&unread.path, error.what, &error.help);
            }
        },
    }
}

/// What becomes of a domain.
#[derive(Debug, Serialize)]
struct Answer {
    domain: String,
    kind: &'static str,
    key: String,
    /// null is unlimited.
    limit: Option<u32>,
    /// The line of concurrencydomains; 0 for none.
    line: u32,
    /// The line of smtproutes; 0 for none.
    route: u32,
    /// The line of authsenders, if the sender chooses the relay.
    #[serde(skip_serializing_if = "Option::is_none")]
    authsenders: Option<u32>,
    /// Whether the limit follows the server.
    learns: bool,
    /// Why it counts for a site, if it does.
    #[serde(skip_serializing_if = "Option::is_none")]
    site: Option<String>,
    #[serde(skip)]
    row: [String; 4],
}

/// No sender has it: what it finds is what counts for senders without a line of their own.
const NO_SENDER: &str = "\0";

fn answers(loaded: &Loaded, domains: &[String], sender: Option<&str>) -> Vec<Answer> {
    let Some(rules) = &loaded.rules else { return Vec::new() };
    let relay = rules.by_sender(sender.unwrap_or(NO_SENDER).as_bytes());
    let answer = |domain: &String| {
        let asked = domain_bytes(domain);
        let found = rules.resolve_for(&asked, relay);
        let (line, route) = rules.lines(&found);
        let (route, authsenders) = match found.route {
            Some(Way::Sender(_)) => (0, Some(route)),
            Some(Way::Host(_)) | None => (route, None),
        };
        let (domain, key) = (escaped(&asked), escaped(found.name.to_ascii_lowercase()));
        let row = [
            key_name(KeyKind::Domain, &domain),
            key_name(found.kind, &key),
            limit_text(found.cap.limit),
            from(rules, &found),
        ];
        let limit = limit_value(found.cap.limit);
        Answer {
            domain,
            kind: found.kind.name(),
            key,
            limit,
            line,
            route,
            authsenders,
            learns: found.cap.learning == Learning::On,
            site: found.site.map(site_text),
            row,
        }
    };
    domains.iter().map(answer).collect()
}

/// Where a key and its limit come from.
pub(super) fn from(rules: &Rules, found: &Resolution<'_>) -> String {
    let (line, route) = rules.lines(found);
    let mut from = found.site.map_or_else(|| line_text(line), site_text);
    if found.line.is_some_and(|line| line.is_default()) {
        from.push_str(" (the default)");
    }
    match found.route {
        Some(Way::Host(_)) => from.push_str(&format!(", by smtproutes:{route}")),
        Some(Way::Sender(_)) => from.push_str(&format!(", by authsenders:{route}")),
        None => {}
    }
    from
}

fn site_text(because: Because) -> String {
    match because {
        Because::Map(line) => format!("concurrencysites:{line}"),
        Because::Literal(address, line) | Because::Address(address, line) => {
            format!("concurrencydomains:{line}, its mail goes to {address}")
        }
        Because::Refused(address, line) => {
            format!(
                "concurrencydomains:{line}, its mail was refused at {address}, and none taken yet"
            )
        }
    }
}

fn numbers(loaded: &Loaded) -> (u64, u64) {
    let errors = loaded.findings.iter().filter(|finding| finding.is_error()).count() as u64;
    (errors, loaded.findings.len() as u64 - errors)
}

fn print_table(
    source: &Source,
    loaded: &Loaded,
    remote: Option<Remote>,
    answers: &[Answer],
    told: &[Told],
    args: &Check,
) -> CommandResult {
    print(|out| {
        let mut helped = HashSet::new();
        for finding in &loaded.findings {
            let severity = if finding.is_error() { "error" } else { "warning" };
            writeln!(out, "{}: {severity}: {}", finding.place(), finding.message)?;
            // What to do is told once.
            if !finding.help.is_empty() && helped.insert(&finding.help) {
                writeln!(out, "  {}", finding.help)?;
            }
        }
        let mut sums = match numbers(loaded) {
            (0, 0) => "no problems".to_string(),
            (0, warnings) => count(warnings, "warning"),
            (errors, 0) => count(errors, "error"),
            (errors, warnings) => {
                format!("{}, {}", count(errors, "error"), count(warnings, "warning"))
            }
        };
        let Some(rules) = &loaded.rules else {
            writeln!(
                out,
                "{}: {sums}; the gate goes on with the last file that had no errors",
                source.domains.display()
            )?;
            if !args.domains.is_empty() {
                writeln!(out, "no limits of domains are told while there are errors")?;
            }
            if !args.replies.is_empty() {
                writeln!(out, "no replies are told while there are errors")?;
            }
            return Ok(());
        };
        let mut facts = Vec::new();
        if let Some(table) = &rules.table {
            facts.push(count(table.len() as u64, "line"));
            let others = [(table.ranges(), "range"), (table.exchangers(), "mx line")];
            let others = others.iter().filter(|(number, _)| *number > 0);
            facts.extend(others.map(|&(number, what)| count(number as u64, what)));
            if !table.groups().is_empty() {
                facts.push(count(table.groups().len() as u64, "group"));
            }
            let default = table.find(b"").map_or(Limit::Unlimited, |line| line.cap.limit);
            facts.push(format!("default {}", limit_text(default)));
        }
        if !rules.routes.is_empty() {
            facts.push(count(rules.routes.len() as u64, "route"));
        }
        if !rules.senders.is_empty() {
            facts.push(count(rules.senders.len() as u64, "sender line"));
        }
        if !rules.replies.is_empty() {
            facts.push(count(rules.replies.len() as u64, "reply line"));
        }
        if let Some(Remote { limit, from }) = remote {
            let default = if from == Whence::Default { " (qmail's default)" } else { "" };
            facts.push(format!("concurrencyremote {limit}{default}"));
        }
        if !facts.is_empty() {
            sums.push_str("; ");
        }
        writeln!(out, "{}: {sums}{}", source.domains.display(), facts.join(", "))?;
        let has_errors = numbers(loaded).0 > 0;
        if let (true, Some(path)) = (has_errors, &source.replies) {
            let path = path.display();
            writeln!(out, "{path}: the gate goes on with the last file that had no errors")?;
        }
        match has_errors && !told.is_empty() {
            true => writeln!(out, "no replies are told while there are errors")?,
            false => replies::print(out, told)?,
        }
        if answers.is_empty() {
            return Ok(());
        }
        writeln!(out)?;
        let columns = [
            ("DOMAIN", Side::Left),
            ("KEY", Side::Left),
            ("LIMIT", Side::Right),
            ("FROM", Side::Left),
        ];
        let rows: Vec<_> = answers.iter().map(|answer| answer.row.clone()).collect();
        table(out, columns, &rows)
    })
}

/// What is printed as JSON.
#[derive(Serialize)]
struct Report<'a> {
    errors: u64,
    warnings: u64,
    problems: &'a [Finding],
    #[serde(skip_serializing_if = "Option::is_none")]
    concurrencyremote: Option<u32>,
    domains: &'a [Answer],
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    replies: &'a [Told],
}

fn print_json(
    loaded: &Loaded,
    remote: Option<Remote>,
    answers: &[Answer],
    told: &[Told],
) -> CommandResult {
    let (errors, warnings) = numbers(loaded);
    // What is told would not be what the gate does.
    let told = if errors > 0 { &[] } else { told };
    let report = Report {
        errors,
        warnings,
        problems: &loaded.findings,
        concurrencyremote: remote.map(|remote| remote.limit),
        domains: answers,
        replies: told,
    };
    print(|out| {
        serde_json::to_writer_pretty(&mut *out, &report)?;
        writeln!(out)
    })
}
