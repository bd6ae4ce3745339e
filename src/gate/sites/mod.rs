//! `qpatch gate sites`: asks DNS which domains have their mail exchangers at a site, and writes them into
//! control/concurrencysites. The sites are those of the lines of concurrencydomains with `mx:`.
//!
//! **Which domains.** Those with a key of their own in the status file, those of --log and --domain, and those of the
//! old map (a domain that counts under a group is no longer named in the status). A domain with a line of its own needs
//! no look-up, because that line comes first. If smtproutes sends a domain to a relay, the relay is looked up.
//!
//! **Which site.** That of the most preferred exchangers, where mail goes as long as they are up. If several of these
//! match, the line that comes first in the file counts, because DNS gives them in any order. If one of these matches no
//! line, the domain is not a member: part of its mail goes elsewhere. Less preferred exchangers do not count. The owner
//! of a domain may name a provider's servers as spares, and its mail would then take places there without need.
//!
//! **How long.** A comment above the domains has the day when mail to them was last seen, or when --domain last named
//! them. [`UNSEEN_DAYS`] days later a domain leaves the map. It comes back at the next run after mail to it has been
//! seen. The map has at most [`outcome::DOMAINS_MAX`] domains, those that were seen last.
//!
//! **Two runs at the same time.** What another run has written since this one began stays, except for the names that
//! this one looked up. A run that is killed leaves the old map whole.
//!
//! **Slow name servers.** The owner of a domain may let the resolver wait. Names of the map are looked up before all
//! others, and a name that has no answer after a second no longer keeps the next one from being asked for.
//!
//! **Without an answer** a domain stays as it was. Only an answer (another exchanger, no such domain, no mail there)
//! changes the map. If there is no answer at all, the map is not written.
//!
//! The command runs as root on input from others: recipients, and the DNS of their domains. So a domain is written only
//! if it is a host name, a group only as the table has it, and the whole text only if the gate reads it back line for
//! line.

// In a build without a resolver there are no answers.
#[cfg_attr(not(feature = "sites"), allow(dead_code))]
mod exchangers;
mod map;
mod membership;
mod outcome;
#[cfg(feature = "sites")]
mod resolver;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use clap::Args;
use qpatch_gate::name::{Hasher, domain_of, without_root};
use qpatch_gate::rules::{KeyKind, RelayLine, Rules};
use qpatch_gate::table::{self, Table};
use qpatch_gate_status::StatusError;

use super::advice::unusable;
use super::source::{Source, load};
use super::status_file::{self, Unread, UnreadReason};
use super::text::{domain_argument, printable};
use crate::error::Error;
use crate::output::{CommandResult, Format, count, print};
use crate::qmail::control::read_file;
use crate::qmail::home::{Home, QMAIL_HOME};
use crate::qmail::log::Log;
use crate::qmail::log::event::Event;
use exchangers::{Asked, Order, Query, Resolver, is_name};
use map::{lock, mapped, write};
use membership::Membership;
use outcome::NotAsked;
pub use outcome::SitesOutcome;

/// Arguments of `qpatch gate sites`.
#[derive(Debug, Args)]
pub struct Sites {
    /// The folder where qmail is installed
    #[arg(value_name = "QMAILHOME", default_value = QMAIL_HOME)]
    home: PathBuf,
    /// Also look up the domains of the deliveries in this log of qmail-send, - for standard input; may be repeated
    #[arg(long, value_name = "LOG")]
    log: Vec<PathBuf>,
    /// More logs, as from a shell that expands `--log /var/log/qmail/@*`
    #[arg(value_name = "LOG", requires = "log")]
    more: Vec<PathBuf>,
    /// Also look up this domain; may be repeated
    #[arg(long = "domain", value_name = "D", value_parser = domain_argument)]
    domains: Vec<String>,
    /// Print what would change, and write nothing
    #[arg(long)]
    dry_run: bool,
    /// Ask this name server instead of those in /etc/resolv.conf; may be repeated
    #[arg(long, value_name = "ADDR[:PORT]", value_parser = server)]
    server: Vec<SocketAddr>,
    /// How long to wait for an answer; each query is sent twice
    #[arg(long, value_name = "SECONDS", default_value_t = TIMEOUT_SECS,
        value_parser = clap::value_parser!(u32).range(1..=60))]
    timeout: u32,
    /// The output format
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
/// The longest time for all look-ups together. Names that are left stay as they were until the next run.
const LOOK_UPS_MAX: Duration = Duration::from_secs(600);
/// A name without an answer keeps another one from being asked for no longer than this.
const PATIENCE: Duration = Duration::from_secs(1);
/// The most names that are looked up in one run.
const NAMES_MAX: usize = 100_000;
/// After this many days without mail to it, a domain leaves the map.
const UNSEEN_DAYS: i64 = 30;
/// The names to look up.
#[derive(Debug)]
struct LookUpList<'a> {
    rules: &'a Rules,
    table: &'a Table,
    relays: &'a HashSet<Vec<u8>>,
    list: Vec<(String, Query)>,
    index: HashMap<String, usize>,
    /// How many names were left out because DNS cannot have them.
    odd: u64,
    left_out: u64,
}

impl LookUpList<'_> {
    /// Adds a domain to which mail has been seen, or its relay. Returns why the domain is not looked up.
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
        self.add(domain, Query::Domain);
        None
    }

    fn add_relay(&mut self, relay: &[u8]) -> Option<NotAsked> {
        if let Some(line) = self.table.find_relay(relay).filter(|line| !line.is_default()) {
            return Some(NotAsked::Line(self.table.number(&line)));
        }
        self.add(relay, Query::Relay);
        None
    }

    /// Adds a name that is in the map already.
    fn add_mapped(&mut self, name: &[u8]) -> Option<NotAsked> {
        if self.relays.contains(name) { self.add_relay(name) } else { self.add_domain(name) }
    }

    fn add(&mut self, name: &[u8], query: Query) {
        let Some(name) = std::str::from_utf8(name).ok().filter(|name| is_name(name)) else {
            self.odd += 1;
            return;
        };
        let name = name.to_ascii_lowercase();
        if let Some(&at) = self.index.get(&name) {
            // The name of a relay that is also a domain with mail of its own: then it may have exchangers.
            if query == Query::Domain {
                self.list[at].1 = query;
            }
        } else if self.list.len() >= NAMES_MAX {
            self.left_out += 1;
        } else {
            self.index.insert(name.clone(), self.list.len());
            self.list.push((name, query));
        }
    }
}

/// Runs it.
///
/// # Errors
/// A file cannot be read or written, or DNS gives no answer at all.
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
pub fn look_up(args: &Sites) -> Result<SitesOutcome, Error> {
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
    let mut outcome = SitesOutcome {
        file: path.display().to_string(),
        dry_run: args.dry_run,
        domains: old.len() as u64,
        ..SitesOutcome::default()
    };
    let Some(table) = rules.table.as_ref().filter(|table| table.has_exchangers()) else {
        let domains = source.domains.display();
        outcome.notes.push(match rules.table {
            None => format!("there is no {domains}: nothing to look up"),
            Some(_) => format!("no line of {domains} begins with mx: nothing to look up"),
        });
        return Ok(outcome);
    };

    let mut names = LookUpList {
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
    // Each run starts at another name, so that no name is left out every time.
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
    let LookUpList { list, odd, left_out, .. } = names;
    if odd > 0 {
        outcome.notes.push(format!("{} that DNS cannot have: not looked up", count(odd, "name")));
    }
    if left_out > 0 {
        let more = count(left_out, "name");
        outcome.notes.push(format!("{more} left out: one run looks up at most {NAMES_MAX}"));
    }

    let resolver = Resolver {
        servers: args.server.clone(),
        answer: Duration::from_secs(args.timeout.into()),
        total: LOOK_UPS_MAX,
        patience: PATIENCE,
    };
    let order = |name: &str| if old.contains_key(name) { Order::Known } else { Order::Stranger };
    let names: Vec<_> = list
        .iter()
        .map(|(name, query)| Asked { name: name.clone(), query: *query, order: order(name) })
        .collect();
    let found = resolver.ask(&names, |said| Membership::of(&said, table))?;
    outcome.asked = list.len() as u64;
    let answered = found.iter().filter(|found| !matches!(found, Membership::Unanswered(_)));
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
impl Resolver {
    fn ask<T>(&self, _: &[Asked], _: impl Fn(exchangers::DnsAnswer) -> T) -> Result<Vec<T>, Error> {
        Err(no_resolver())
    }
}

fn add_logs(names: &mut LookUpList<'_>, paths: &[PathBuf]) -> Result<(), Error> {
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

/// The error when no name server answered any query.
fn unanswered(path: &Path, found: &[Membership], args: &Sites) -> Error {
    let mut reasons: BTreeMap<&str, u64> = BTreeMap::new();
    for found in found {
        if let Membership::Unanswered(why) = found {
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

#[cfg(test)]
mod tests {
    #[cfg(not(feature = "sites"))]
    use super::*;

    #[cfg(not(feature = "sites"))]
    #[test]
    fn a_build_without_a_resolver_says_so() {
        let asked = look_up(&Sites::of(PathBuf::from("/nonexistent"), Vec::new()));
        assert_eq!(
            asked.expect_err("no resolver").to_string(),
            "gate sites: this qpatch was built without a DNS resolver\n  build it with the cargo feature `sites`, which \
             is on by default; until then control/concurrencysites stays as it is"
        );
    }
}
