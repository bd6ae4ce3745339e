//! `qpatch gate sites`: asks DNS whose mail goes to the sites of concurrencydomains' lines with `mx:`, and writes that into
//! control/concurrencysites for the gate.
//!
//! **Which domains.** Those that have a key of their own in the status file, those of logs, those that the operator names,
//! and those of the map that is there: once a domain counts for a group, the status does not name it any more. A domain
//! that a line other than the default one speaks of needs no look-up, for such a line comes first; where smtproutes sends a
//! domain to a relay, the relay is looked up.
//!
//! **Which site.** That of the most preferred exchangers: there mail goes as long as they are up. Among equally preferred ones
//! the line that comes first in the file counts; DNS gives them in any order. If one of them matches no line, the domain is no
//! member, for a part of its mail goes elsewhere. A less preferred exchanger makes no member:
//! whoever owns a domain may name a provider's servers as its spares, and its mail would take places there that it
//! does not need.
//!
//! **How long.** A comment above the domains tells the day when mail for them was seen last, or that they were asked for. After
//! [`UNSEEN_DAYS`] days a domain leaves the map; when mail to it is seen again it comes back at the next run. The map has
//! [`DOMAINS_MAX`] domains at most, those that were seen last.
//!
//! **Two runs at the same time.** What another run has written since this one began stays, but for the names that this one
//! has asked for. A run that is killed leaves the old map whole.
//!
//! **What is not answered** stays as it was. Only an answer (another exchanger, no such domain, no mail there) changes the
//! map, and if there is none at all, nothing is touched.
//!
//! It runs as root, and what it reads was chosen by others: recipients, and whoever runs their DNS. So a domain is written
//! only if it is a plain name, a group only as the table has it, and the whole text must be one that the gate reads back
//! line for line.

// Nothing answers in a build without a resolver.
#[cfg_attr(not(feature = "sites"), allow(dead_code))]
mod exchangers;
#[cfg(feature = "sites")]
mod resolver;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::{self, File, Permissions};
use std::io::{self, Write};
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use clap::Args;
use qpatch_gate::name::{Hasher, NAME_MAX, domain_of, without_root};
use qpatch_gate::rules::{KeyKind, RelayLine, Rules};
use qpatch_gate::site::Map;
use qpatch_gate::table::{self, Table};
use qpatch_gate_status::StatusError;
use serde::Serialize;

use super::advice::unusable;
use super::source::{Source, load};
use super::status_file::{self, Unread, UnreadReason};
use super::text::{domain_argument, printable};
use crate::date;
use crate::error::Error;
use crate::output::{CommandResult, Format, Side, count, print, table};
use crate::qmail::control::{content_lines, read_file};
use crate::qmail::home::{Home, QMAIL_HOME};
use crate::qmail::log::Log;
use crate::qmail::log::event::Event;
use exchangers::{Asker, Exchanger, Hop, Said, is_name};

/// Arguments of `qpatch gate sites`.
#[derive(Debug, Args)]
pub struct Sites {
    /// The folder where qmail is installed
    #[arg(value_name = "QMAILHOME", default_value = QMAIL_HOME)]
    home: PathBuf,
    /// Also look up the domains of the deliveries in this log of qmail-send, - for standard input; may be repeated
    #[arg(long, value_name = "LOG")]
    log: Vec<PathBuf>,
    /// Further logs: what a shell makes of `--log /var/log/qmail/@*`
    #[arg(value_name = "LOG", requires = "log")]
    more: Vec<PathBuf>,
    /// Also look up this domain; may be repeated
    #[arg(long = "domain", value_name = "D", value_parser = domain_argument)]
    domains: Vec<String>,
    /// Tell what would change, and write nothing
    #[arg(long)]
    dry_run: bool,
    /// Ask this name server instead of those in /etc/resolv.conf; may be repeated
    #[arg(long, value_name = "ADDR[:PORT]", value_parser = server)]
    server: Vec<SocketAddr>,
    /// How long to wait for an answer; each question is asked twice
    #[arg(long, value_name = "SECONDS", default_value_t = TIMEOUT_SECS,
        value_parser = clap::value_parser!(u32).range(1..=60))]
    timeout: u32,
    /// How to print it
    #[arg(long, value_enum, default_value_t = Format::Table)]
    format: Format,
}

impl Sites {
    /// For the installation at `home`, these domains, and the name servers of /etc/resolv.conf.
    #[must_use]
    pub fn of(home: PathBuf, domains: Vec<String>) -> Self {
        Self {
            home,
            log: Vec::new(),
            more: Vec::new(),
            domains,
            dry_run: false,
            server: Vec::new(),
            timeout: TIMEOUT_SECS,
            format: Format::default(),
        }
    }
}

fn server(value: &str) -> Result<SocketAddr, String> {
    let address = value.parse::<IpAddr>().map(|ip| SocketAddr::new(ip, 53));
    address.or_else(|_| value.parse()).map_err(|_| {
        "an address, with or without a port: 192.0.2.1, 192.0.2.1:5353, [2001:db8::1]:5353"
            .to_string()
    })
}

/// How long to wait for an answer, in seconds, without --timeout.
const TIMEOUT_SECS: u32 = 5;
/// The longest time for all look-ups together; what is left then stays as it was until the next run.
const TOTAL: Duration = Duration::from_secs(600);
/// The most names that are looked up in one run.
const NAMES_MAX: usize = 100_000;
/// The most domains in the map.
const DOMAINS_MAX: usize = 100_000;
/// After so many days without mail seen for it, a domain leaves the map.
const UNSEEN_DAYS: i64 = 30;
/// How a comment begins that tells on which day the domains below it were last seen.
const SEEN: &str = "# seen ";
/// The most rows that are printed for people.
const ROWS: usize = 1000;

/// What the new map is called until it is in its place.
const BESIDE: &str = ".concurrencysites.qpatch-new";

/// The first line of the file.
const HEAD: &str =
    "# Written by qpatch gate sites, which overwrites it: what is changed here is lost.\n";

/// What is to be looked up.
#[derive(Debug)]
struct Names<'a> {
    rules: &'a Rules,
    table: &'a Table,
    relays: &'a HashSet<Vec<u8>>,
    list: Vec<(String, Hop)>,
    index: HashMap<String, usize>,
    /// Seen, but not names that DNS could have.
    odd: u64,
    left_out: u64,
}

/// Why a domain is not looked up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum NotAsked {
    /// A line of concurrencydomains speaks of it or of its relay.
    Line(u32),
    /// Its relay is looked up instead.
    Route(u32),
    /// It was not seen since this day.
    Unseen(i64),
}

impl Names<'_> {
    /// Mail to a domain has been seen.
    fn add_domain(&mut self, domain: &[u8]) -> Option<NotAsked> {
        let domain = without_root(domain);
        let found = self.table.find_domain(self.rules.hasher.hash(domain), domain);
        let line = |line: &table::Line| NotAsked::Line(self.table.number(line));
        let own = found.filter(|line| !line.is_default());
        if let Some(own) = own.filter(|line| line.group.is_some()) {
            return Some(line(&own));
        }
        let next_hop = self.rules.next_hop(self.rules.hasher.hash(domain), domain);
        if let Some(RelayLine::Smtproutes(place)) = next_hop.route {
            let not_asked = self.add_relay(next_hop.name);
            let route = NotAsked::Route(self.rules.routes.number(place));
            return Some(not_asked.unwrap_or(route));
        }
        if let Some(own) = own {
            return Some(line(&own));
        }
        self.add(domain, Hop::Domain);
        None
    }

    fn add_relay(&mut self, relay: &[u8]) -> Option<NotAsked> {
        if let Some(line) = self.table.find_relay(relay).filter(|line| !line.is_default()) {
            return Some(NotAsked::Line(self.table.number(&line)));
        }
        self.add(relay, Hop::Relay);
        None
    }

    /// A name that is in the map already.
    fn add_mapped(&mut self, name: &[u8]) -> Option<NotAsked> {
        if self.relays.contains(name) { self.add_relay(name) } else { self.add_domain(name) }
    }

    fn add(&mut self, name: &[u8], hop: Hop) {
        let Some(name) = std::str::from_utf8(name).ok().filter(|name| is_name(name)) else {
            self.odd += 1;
            return;
        };
        let name = name.to_ascii_lowercase();
        if let Some(&at) = self.index.get(&name) {
            // A relay that mail is sent to as a domain, too: that has exchangers.
            if hop == Hop::Domain {
                self.list[at].1 = hop;
            }
        } else if self.list.len() >= NAMES_MAX {
            self.left_out += 1;
        } else {
            self.index.insert(name.clone(), self.list.len());
            self.list.push((name, hop));
        }
    }
}

/// What the map says of a domain.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Mapped {
    group: String,
    /// The day when it was seen last, from 1970-01-01 on.
    seen: i64,
}

/// The lines of control/concurrencysites that the gate uses; of two for the same domain the later one. What stands below no
/// [`SEEN`] was seen `today`.
fn mapped(text: &[u8], today: i64) -> BTreeMap<String, Mapped> {
    let mut seen = today;
    let mut map = BTreeMap::new();
    for line in text.split(|&byte| byte == b'\n') {
        if let Some(day) = line.strip_prefix(SEEN.as_bytes()) {
            let day = std::str::from_utf8(day).ok().and_then(|day| date::from_iso(day.trim_end()));
            seen = day.unwrap_or(today).min(today);
            continue;
        }
        let Some((_, line)) = content_lines(line).next() else { continue };
        let Some(colon) = line.iter().position(|&byte| byte == b':') else { continue };
        let fits = |name: &[u8]| {
            !name.is_empty() && name.len() <= NAME_MAX && name.iter().all(u8::is_ascii_graphic)
        };
        let (domain, group) = (&line[..colon], &line[colon + 1..]);
        if fits(domain) && domain[0] != b'.' && fits(group) {
            let domain = String::from_utf8_lossy(without_root(domain)).to_ascii_lowercase();
            let group = String::from_utf8_lossy(group).into_owned();
            map.insert(domain, Mapped { group, seen });
        }
    }
    map
}

/// An exchanger that matches a line of concurrencydomains: the most preferred one, and its group and line.
fn matching<'a>(exchangers: &'a [Exchanger], table: &Table) -> Option<(&'a Exchanger, u32, u32)> {
    let matches = exchangers.iter().filter_map(|exchanger| {
        let (group, line) = table.find_exchanger(exchanger.name.as_ref()?.as_bytes())?;
        Some((exchanger, group, line))
    });
    matches.min_by_key(|&(exchanger, _, line)| (exchanger.preference, line))
}

/// The site of a domain with these exchangers: the index of the group, if its mail goes there, and why or why not.
///
/// With `is_one` they are the names of one host, of which one that matches is enough.
fn site_of(exchangers: &[Exchanger], is_one: bool, table: &Table) -> (Option<u32>, String) {
    let Some(first) = exchangers.first() else {
        return (None, "it has no exchangers".to_string());
    };
    let told = |Exchanger { preference, name }: &Exchanger| {
        let name = name.as_deref().unwrap_or("an exchanger without a usable name");
        format!("{name} ({preference})")
    };
    let at_no_site = |exchanger: &&Exchanger| match &exchanger.name {
        Some(name) => table.find_exchanger(name.as_bytes()).is_none(),
        None => true,
    };
    let elsewhere = exchangers
        .iter()
        .take_while(|exchanger| !is_one && exchanger.preference == first.preference)
        .find(at_no_site);
    match (matching(exchangers, table), elsewhere) {
        (Some((matched, group, line)), None) => {
            (Some(group), format!("{}, concurrencydomains:{line}", told(matched)))
        }
        (Some((matched, _, line)), Some(elsewhere)) => {
            let order = match matched.preference == first.preference {
                true => "is tried as early as",
                false => "is tried first, before",
            };
            let matched = format!("{}, concurrencydomains:{line}", told(matched));
            (None, format!("{} {order} {matched}", told(elsewhere)))
        }
        (None, _) => (None, format!("{} matches no line", told(first))),
    }
}

/// What the answer of DNS means for a name.
#[derive(Clone, Debug)]
enum Found {
    /// At the site of the group with this name; why.
    At(String, String),
    /// At no site; why.
    Elsewhere(String),
    /// There is no answer that can be relied on; why.
    Unanswered(String),
}

impl Found {
    fn of(said: &Said, table: &Table) -> Self {
        let (exchangers, is_one) = match said {
            Said::Nothing(why) => return Self::Unanswered(why.clone()),
            Said::NoDomain => return Self::Elsewhere("no such domain".to_string()),
            Said::NoMail => return Self::Elsewhere("it takes no mail (null MX)".to_string()),
            Said::Exchangers(exchangers) => (exchangers, false),
            Said::Host(names) => (names, true),
        };
        match site_of(exchangers, is_one, table) {
            (None, because) => Self::Elsewhere(because),
            (Some(group), because) => {
                let name = &table.groups()[group as usize].name;
                Self::At(String::from_utf8_lossy(name).into_owned(), because)
            }
        }
    }
}

/// Runs it.
///
/// # Errors
/// A file cannot be read or written, or DNS answers nothing.
pub fn run(args: &Sites) -> CommandResult {
    let outcome = look_up(args)?;
    print(|out| match args.format {
        Format::Table => outcome.table(out),
        Format::Json => {
            serde_json::to_writer_pretty(&mut *out, &outcome)?;
            writeln!(out)
        }
    })
}

/// Looks the sites up and writes control/concurrencysites.
///
/// # Errors
/// As [`run`].
pub fn look_up(args: &Sites) -> Result<Outcome, Error> {
    if !cfg!(feature = "sites") {
        return Err(no_resolver());
    }
    let home = &Home::with_control(&args.home)?;
    let source = Source::of(&args.home)?;
    let path = &home.control("concurrencysites");
    let loaded = load(&source, Hasher::new(1))?;
    let relays = loaded.relays();
    let rules = loaded.into_rules(&args.home)?;
    let text = match read_file(path, table::FILE_MAX) {
        Ok(read) => read.map(|(_, text)| text),
        Err(kind) => return Err(unusable(path, kind)),
    };
    let today = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let today = (today / 86_400) as i64;
    let old = text.as_deref().map(|text| mapped(text, today)).unwrap_or_default();
    let mut outcome = Outcome {
        file: path.display().to_string(),
        dry_run: args.dry_run,
        domains: old.len() as u64,
        ..Outcome::default()
    };
    let Some(table) = rules.table.as_ref().filter(|table| table.has_exchangers()) else {
        let domains = source.domains.display();
        outcome.notes.push(match rules.table {
            None => format!("there is no {domains}: nothing to look up"),
            Some(_) => format!("no line of {domains} begins with mx: nothing to look up"),
        });
        return Ok(outcome);
    };

    let mut names = Names {
        rules: &rules,
        table,
        relays: &relays,
        list: Vec::new(),
        index: HashMap::new(),
        odd: 0,
        left_out: 0,
    };
    for domain in &args.domains {
        names.add_domain(domain.as_bytes());
    }
    match status_file::read(home) {
        Ok(spawners) => {
            for key in &status_file::merged(&spawners).keys {
                let name = status_file::name_bytes(key);
                match key.kind {
                    KeyKind::Domain => drop(names.add_domain(&name)),
                    KeyKind::Relay => drop(names.add_relay(&name)),
                    KeyKind::Group | KeyKind::Candidates => {}
                }
            }
        }
        Err(Unread {
            why: UnreadReason::Missing | UnreadReason::Status(StatusError::Empty),
            ..
        }) => {}
        Err(unread) => {
            let error = status_file::explain(home, &unread);
            outcome.notes.push(format!("{}: {}", error.place, error.what));
        }
    }
    if !args.log.is_empty() {
        add_logs(&mut names, &[&args.log[..], &args.more].concat())?;
    }
    // From another place each time, so that none is always the one for which no time is left.
    let start =
        SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs() / 60);
    let start = start as usize % old.len().max(1);
    let mut not_asked = HashMap::new();
    let seen: HashSet<String> = names.list.iter().map(|(name, _)| name.clone()).collect();
    let is_seen = |name: &String| seen.contains(name) || relays.contains(name.as_bytes());
    for name in old.keys().skip(start).chain(old.keys().take(start)) {
        if !is_seen(name) && today - old[name].seen > UNSEEN_DAYS {
            not_asked.insert(name.as_str(), NotAsked::Unseen(old[name].seen));
        } else if let Some(why) = names.add_mapped(name.as_bytes()) {
            not_asked.insert(name.as_str(), why);
        }
    }
    let Names { list, odd, left_out, .. } = names;
    if odd > 0 {
        outcome.notes.push(format!("{} that no DNS has, not asked for", count(odd, "name")));
    }
    if left_out > 0 {
        let more = count(left_out, "name");
        outcome.notes.push(format!("{more} left out: {NAMES_MAX} at a time are the most"));
    }

    let asker = Asker {
        servers: args.server.clone(),
        answer: Duration::from_secs(args.timeout.into()),
        total: TOTAL,
    };
    let found = asker.ask(&list, |said| Found::of(&said, table))?;
    outcome.asked = list.len() as u64;
    let answered = found.iter().filter(|found| !matches!(found, Found::Unanswered(_)));
    outcome.answered = answered.count() as u64;
    if outcome.asked > 0 && outcome.answered == 0 {
        return Err(unanswered(path, &found, args));
    }
    let mut new = outcome.compare(&old, &list, found, &not_asked);
    for (name, mapped) in &mut new {
        if !old.contains_key(name) || is_seen(name) {
            mapped.seen = today;
        }
    }
    let mut current = None;
    let _lock = if new != old && !args.dry_run {
        let lock = lock(path);
        // Another run may have written it since.
        let read = read_file(path, table::FILE_MAX).map_err(|kind| unusable(path, kind))?;
        let read = read.map(|(_, text)| mapped(&text, today)).unwrap_or_default();
        let asked: HashSet<&String> = list.iter().map(|(name, _)| name).collect();
        for (name, entry) in &read {
            if old.get(name) != Some(entry) && !asked.contains(name) {
                new.insert(name.clone(), entry.clone());
            }
        }
        current = Some(read);
        lock
    } else {
        None
    };
    outcome.bound(&mut new, &old);
    outcome.domains = new.len() as u64;
    if current.is_some_and(|current| current != new) {
        write(path, &new)?;
        outcome.written = true;
    }
    Ok(outcome)
}

/// Waits until no other run writes the map, and keeps others from it until it is dropped. None where the file system
/// has no locks for folders; then of two runs that end at the same moment the later one counts.
fn lock(path: &Path) -> Option<File> {
    let folder = File::open(path.parent()?).ok()?;
    folder.lock().ok()?;
    Some(folder)
}

/// The error of a build without the cargo feature `sites`.
fn no_resolver() -> Error {
    Error::new(
        "gate sites",
        "this qpatch was built without a DNS resolver",
        "build it with the cargo feature `sites`, which is on by default; until then \
         control/concurrencysites stays as it is",
    )
}

#[cfg(not(feature = "sites"))]
impl Asker {
    fn ask<T>(&self, _: &[(String, Hop)], _: impl Fn(Said) -> T) -> Result<Vec<T>, Error> {
        Err(no_resolver())
    }
}

fn add_logs(names: &mut Names<'_>, paths: &[PathBuf]) -> Result<(), Error> {
    let mut log = Log::open(paths)?;
    while let Some(entry) = log.next_entry()? {
        if let Ok(line) = entry.line
            && let Event::Start { recipient, channel, .. } = line.event
            && channel != b"local"
            && let Some(domain) = domain_of(recipient)
        {
            names.add_domain(domain);
        }
    }
    Ok(())
}

/// No name server could tell anything.
fn unanswered(path: &Path, found: &[Found], args: &Sites) -> Error {
    let mut reasons: BTreeMap<&str, u64> = BTreeMap::new();
    for found in found {
        if let Found::Unanswered(why) = found {
            *reasons.entry(why).or_default() += 1;
        }
    }
    let reasons: Vec<_> =
        reasons.iter().map(|(why, times)| format!("{} ({times})", printable(why))).collect();
    let servers: Vec<_> = args.server.iter().map(ToString::to_string).collect();
    let (place, help) = match servers.is_empty() {
        true => {
            ("the servers of /etc/resolv.conf".to_string(), "name another server with --server")
        }
        false => (servers.join(" "), "name another server, or leave --server out"),
    };
    let what = format!(
        "no answer to {}: {}; {} is as it was",
        count(found.len() as u64, "look-up"),
        reasons.join(", "),
        path.display()
    );
    Error::new(place, what, help)
}

/// Writes the map beside the old one, and puts it in its place. A link there is replaced, not followed. The caller has
/// [`lock`].
fn write(path: &Path, map: &BTreeMap<String, Mapped>) -> Result<(), Error> {
    let mut text = HEAD.to_string();
    let mut days: BTreeMap<i64, Vec<(&String, &String)>> = BTreeMap::new();
    for (domain, Mapped { group, seen }) in map {
        days.entry(*seen).or_default().push((domain, group));
    }
    for (day, domains) in days.iter().rev() {
        text.push_str(&format!("{SEEN}{}\n", date::iso(*day)));
        for (domain, group) in domains {
            text.push_str(&format!("{domain}:{group}\n"));
        }
    }
    let read = Map::parse(text.as_bytes(), Hasher::new(1)).ok();
    if read.is_none_or(|(read, problems)| read.len() != map.len() || !problems.is_empty()) {
        let what = "not written: the gate would not read it as it is meant";
        return Err(Error::new(path.display(), what, "report it"));
    }
    let control = path.parent().unwrap_or(Path::new("."));
    let refused = |error: io::Error| Error::io(control, "write into it", &error);
    // The name is always the same, so a run that was killed leaves one file at most, which the next one removes.
    match fs::remove_file(control.join(BESIDE)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(refused(error)),
        _ => {}
    }
    let beside = tempfile::Builder::new().prefix(BESIDE).rand_bytes(0).tempfile_in(control);
    let mut file = beside.map_err(refused)?;
    file.write_all(text.as_bytes()).map_err(refused)?;
    // qmail-rspawn reads it as qmailr, whatever the umask here.
    file.as_file().set_permissions(Permissions::from_mode(0o644)).map_err(refused)?;
    file.as_file().sync_all().map_err(refused)?;
    file.persist(path).map_err(|error| refused(error.error))?;
    Ok(())
}

/// What came out.
#[derive(Debug, Default, Serialize)]
pub struct Outcome {
    file: String,
    dry_run: bool,
    written: bool,
    /// How many the map has now, or would have.
    domains: u64,
    asked: u64,
    answered: u64,
    /// Answered, and at no site.
    elsewhere: u64,
    added: Vec<Change>,
    changed: Vec<Change>,
    removed: Vec<Change>,
    /// Not answered; as they were.
    kept: Vec<Change>,
    /// Not answered, and not in the map.
    unknown: Vec<Change>,
    notes: Vec<String>,
}

impl Outcome {
    /// How many domains the map has now, or would have.
    #[must_use]
    pub fn domains(&self) -> u64 {
        self.domains
    }
}

/// What becomes of a domain.
#[derive(Debug, Serialize)]
struct Change {
    domain: String,
    /// Its group now.
    #[serde(skip_serializing_if = "Option::is_none")]
    group: Option<String>,
    /// Its group until now.
    #[serde(skip_serializing_if = "Option::is_none")]
    was: Option<String>,
    because: String,
}

impl Outcome {
    /// The new map.
    fn compare(
        &mut self,
        old: &BTreeMap<String, Mapped>,
        list: &[(String, Hop)],
        found: Vec<Found>,
        not_asked: &HashMap<&str, NotAsked>,
    ) -> BTreeMap<String, Mapped> {
        let mut new = BTreeMap::new();
        let seen_of = |name: &str| old.get(name).map_or(0, |mapped| mapped.seen);
        for ((name, _), found) in list.iter().zip(found) {
            let was = old.get(name).map(|mapped| &mapped.group);
            let (group, because) = match found {
                Found::Unanswered(why) => {
                    let change = Change {
                        domain: name.clone(),
                        group: was.cloned(),
                        was: None,
                        because: printable(&why),
                    };
                    match was {
                        Some(was) => {
                            let kept = Mapped { group: was.clone(), seen: seen_of(name) };
                            new.insert(name.clone(), kept);
                            self.kept.push(change);
                        }
                        None => self.unknown.push(change),
                    }
                    continue;
                }
                Found::Elsewhere(because) => (None, because),
                Found::At(group, because) => (Some(group), because),
            };
            // A line of 256 bytes and more cannot be the name of a group here.
            let group = group.filter(|group| group.len() <= NAME_MAX);
            let change = |group: Option<&String>, was: Option<&String>| Change {
                domain: name.clone(),
                group: group.cloned(),
                was: was.cloned(),
                because: because.clone(),
            };
            match (&group, was) {
                (None, None) => self.elsewhere += 1,
                (None, was) => {
                    self.elsewhere += 1;
                    self.removed.push(change(None, was));
                }
                (now, None) => self.added.push(change(now.as_ref(), None)),
                (Some(now), Some(was)) if now.eq_ignore_ascii_case(was) => {}
                (now, was) => self.changed.push(change(now.as_ref(), was)),
            }
            if let Some(group) = group {
                new.insert(name.clone(), Mapped { group, seen: seen_of(name) });
            }
        }
        let asked: HashSet<&str> = list.iter().map(|(name, _)| name.as_str()).collect();
        for (name, was) in old.iter().filter(|(name, _)| !asked.contains(name.as_str())) {
            let because = match not_asked.get(name.as_str()) {
                Some(NotAsked::Line(line)) => format!("concurrencydomains:{line} speaks of it"),
                Some(NotAsked::Route(line)) => format!("smtproutes:{line} sends it to a relay"),
                Some(NotAsked::Unseen(day)) => format!("not seen since {}", date::iso(*day)),
                None if is_name(name) => {
                    // There were too many.
                    new.insert(name.clone(), was.clone());
                    continue;
                }
                None => "no DNS has such a name".to_string(),
            };
            let (domain, was) = (name.clone(), Some(was.group.clone()));
            self.removed.push(Change { domain, group: None, was, because });
        }
        let lists = [&mut self.added, &mut self.changed, &mut self.removed];
        for list in lists.into_iter().chain([&mut self.kept, &mut self.unknown]) {
            list.sort_by(|a, b| a.domain.cmp(&b.domain));
        }
        new
    }

    /// Keeps the domains that were seen last, as many as the map may have.
    fn bound(&mut self, new: &mut BTreeMap<String, Mapped>, old: &BTreeMap<String, Mapped>) {
        let Some(more) = new.len().checked_sub(DOMAINS_MAX).filter(|&more| more > 0) else {
            return;
        };
        let mut days: Vec<i64> = new.values().map(|mapped| mapped.seen).collect();
        days.sort_unstable();
        let oldest = days[more - 1];
        // Of those that were seen on the last day that goes, as many as there is no room for; those go first that are new.
        let mut at_oldest = more - days.partition_point(|&day| day < oldest);
        let mut goes: HashSet<String> = HashSet::new();
        for is_known in [false, true] {
            for (name, mapped) in &*new {
                let leaves = mapped.seen < oldest || (mapped.seen == oldest && at_oldest > 0);
                if leaves && old.contains_key(name) == is_known && goes.insert(name.clone()) {
                    at_oldest -= usize::from(mapped.seen == oldest);
                }
            }
        }
        new.retain(|name, _| !goes.contains(name));
        self.added.retain(|change| !goes.contains(&change.domain));
        let more = count(goes.len() as u64, "domain");
        self.notes.push(format!("{more} left out: the map has {DOMAINS_MAX} at the most"));
    }

    fn table(&self, out: &mut dyn Write) -> io::Result<()> {
        let mut rows = Vec::new();
        for (what, list) in [
            ("added", &self.added),
            ("changed", &self.changed),
            ("removed", &self.removed),
            ("kept", &self.kept),
            ("unknown", &self.unknown),
        ] {
            rows.extend(list.iter().map(|change| {
                let was = change.was.as_ref().map(|was| format!("; was {}", printable(was)));
                [
                    what.to_string(),
                    printable(&change.domain),
                    change.group.as_ref().map_or("-".to_string(), printable),
                    format!("{}{}", change.because, was.unwrap_or_default()),
                ]
            }));
        }
        let more = rows.len().saturating_sub(ROWS);
        rows.truncate(ROWS);
        if !rows.is_empty() {
            let columns = [
                ("CHANGE", Side::Left),
                ("DOMAIN", Side::Left),
                ("SITE", Side::Left),
                ("BECAUSE", Side::Left),
            ];
            table(out, columns, &rows)?;
            if more > 0 {
                writeln!(out, "and {more} more; --format json has all")?;
            }
            writeln!(out)?;
        }
        for note in &self.notes {
            writeln!(out, "note: {note}")?;
        }
        if self.asked > 0 {
            writeln!(
                out,
                "{} looked up: {} answered, of which {} at no site; {} not answered",
                count(self.asked, "name"),
                self.answered,
                self.elsewhere,
                self.asked - self.answered
            )?;
        }
        let changes = self.added.len() + self.changed.len() + self.removed.len();
        let done = match (changes, self.written) {
            (_, true) => "written",
            (0, false) => "nothing changed",
            (_, false) => "not written (--dry-run)",
        };
        writeln!(
            out,
            "{}: {}, {} added, {} changed, {} removed; {done}",
            self.file,
            count(self.domains, "domain"),
            self.added.len(),
            self.changed.len(),
            self.removed.len()
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(not(feature = "sites"))]
    #[test]
    fn a_build_without_a_resolver_says_so() {
        let asked = look_up(&Sites::of(PathBuf::from("/nonexistent"), Vec::new()));
        assert_eq!(
            asked.expect_err("no resolver").to_string(),
            "gate sites: this qpatch was built without a DNS resolver\n  build it with the cargo feature `sites`, which is \
             on by default; until then control/concurrencysites stays as it is"
        );
    }

    #[test]
    fn the_map_keeps_what_was_seen_last() {
        let entry = |day: i64| Mapped { group: "g".to_string(), seen: day };
        let all = DOMAINS_MAX + 10;
        let mut new: BTreeMap<_, _> = (0..all)
            .map(|at| (format!("d{at:07}.example"), entry(if at < 4 { 1 } else { 2 })))
            .collect();
        let mut old = new.clone();
        // Of those of the second day these are new.
        for at in all - 3..all {
            old.remove(&format!("d{at:07}.example"));
        }
        let mut outcome = Outcome::default();
        outcome.bound(&mut new, &old);
        assert_eq!(new.len(), DOMAINS_MAX);
        let has = |at: usize| new.contains_key(&format!("d{at:07}.example"));
        assert!(!(0..4).any(has) && !(all - 3..all).any(has) && !(4..7).any(has));
        assert!((7..all - 3).all(has));
        assert_eq!(outcome.notes, ["10 domains left out: the map has 100000 at the most"]);
        outcome.bound(&mut new, &old);
        assert_eq!((new.len(), outcome.notes.len()), (DOMAINS_MAX, 1));
    }

    #[test]
    fn days_of_the_map() {
        let today = date::from_iso("2026-11-28").unwrap();
        let text = b"# by hand\na.example:x\n# seen 2026-10-01\nb.example:x\n# seen tomorrow\nc.example:x\n\
                     # seen 2030-01-01\nd.example:x\n";
        let days: Vec<_> = mapped(text, today).into_values().map(|mapped| mapped.seen).collect();
        assert_eq!(days, [today, date::from_iso("2026-10-01").unwrap(), today, today]);
    }
}
