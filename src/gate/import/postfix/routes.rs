//! Where Postfix sends the mail of a domain.
//!
//! As in resolve.c and transport.c of its trivial-rewrite: first the address class with its transport and the
//! relayhost, then the most specific line of the transport tables. Of two lines for one name the first one counts:
//! postmap warns of the second one and leaves it out, for hash, btree, lmdb, cdb, dbm and sdbm as for texthash (seen
//! with postmap of 3.7.11 for hash, btree and texthash, read in the sources for the others). Upper and lower case are
//! the same.

use std::collections::{HashMap, HashSet};

use super::main_cf::{MainCf, Value};
use super::syntax::logical_lines;
use crate::gate::import::foreign::ForeignFile;
use crate::gate::import::ledger::{Ledger, Place, SettingId};
use crate::gate::import::subject::Subject;
use crate::gate::text::printable;

/// `transport:nexthop`. An empty transport is that of the address class; an empty next hop is the recipient's domain.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Route {
    pub(super) transport: String,
    pub(super) nexthop: String,
}

impl Route {
    fn parse(text: &str) -> Self {
        let (transport, nexthop) = text.split_once(':').unwrap_or((text, ""));
        Self { transport: transport.trim().to_string(), nexthop: nexthop.trim().to_string() }
    }

    /// What a line of a transport table makes of it (`update_entry` of transport.c).
    fn changed_by(mut self, entry: &Route) -> Self {
        if !entry.transport.is_empty() {
            return entry.clone();
        }
        if !entry.nexthop.is_empty() {
            self.nexthop.clone_from(&entry.nexthop);
        }
        self
    }

    /// The name of the group for a next hop: without brackets, and with the port where there is one.
    pub(super) fn group(&self) -> Option<String> {
        let nexthop = self.nexthop.replace(['[', ']'], "");
        (!nexthop.is_empty()).then(|| nexthop.trim_end_matches(":25").to_string())
    }

    /// Whether the next hop is a host, with or without brackets and a port.
    pub(super) fn is_one_host(&self) -> bool {
        !self.nexthop.contains([',', ' ', '\t', '/', '!'])
    }

    /// Whether it is the queue of this domain's own mail.
    pub(super) fn is_own_of(&self, subject: &Subject) -> bool {
        matches!(subject, Subject::Name(name) if self.nexthop.is_empty()
            || self.nexthop.eq_ignore_ascii_case(name))
    }
}

/// A route, and the settings that it comes from.
#[derive(Clone, Debug)]
pub(super) struct Found {
    pub(super) route: Route,
    pub(super) ids: Vec<SettingId>,
}

/// A line of a transport table.
#[derive(Clone, Debug)]
struct Entry {
    route: Route,
    id: SettingId,
}

/// All that decides about routes.
pub(super) struct Routes {
    default: Found,
    relay: Found,
    relay_domains: HashSet<Subject>,
    relay_domains_ids: Vec<SettingId>,
    entries: HashMap<Subject, Entry>,
    /// The subjects of the transport tables, then those of relay_domains, each once, in their order.
    pub(super) subjects: Vec<Subject>,
    /// Lines for addresses, each with the domain.
    pub(super) addresses: Vec<(Subject, SettingId)>,
    /// What may lower the limits of domains and was not read, as notes.
    pub(super) unread: Vec<String>,
}

impl Routes {
    pub(super) fn read(main: &MainCf, tables: &[ForeignFile], ledger: &mut Ledger) -> Self {
        let relayhost = main.value("relayhost", ledger).filter(|host| !host.text.is_empty());
        let class = |name: &str, builtin: &str, ledger: &mut Ledger| {
            let value = main.value(name, ledger);
            let Value { text, mut ids } =
                value.unwrap_or(Value { text: builtin.to_string(), ids: Vec::new() });
            let mut route = Route::parse(&text);
            if route.transport.is_empty() {
                route.transport = builtin.to_string();
            }
            if let (true, Some(host)) = (route.nexthop.is_empty(), &relayhost) {
                route.nexthop.clone_from(&host.text);
                ids.extend(&host.ids);
            }
            Found { route, ids }
        };
        let mut routes = Self {
            default: class("default_transport", "smtp", ledger),
            relay: class("relay_transport", "relay", ledger),
            relay_domains: HashSet::new(),
            relay_domains_ids: Vec::new(),
            entries: HashMap::new(),
            subjects: Vec::new(),
            addresses: Vec::new(),
            unread: Vec::new(),
        };
        let parents = main.value("parent_domain_matches_subdomains", ledger);
        let is_in_parents =
            |list: &Value, name: &str| list.text.split([',', ' ', '\t']).any(|word| word == name);
        let by_parent = parents.as_ref().filter(|list| is_in_parents(list, "transport_maps"));
        for table in tables {
            routes.read_table(table, by_parent.is_some(), ledger);
        }
        if let Some(list) = by_parent {
            list.ids.iter().for_each(|&id| ledger.express(id));
        }
        // Postfix's own value of the parameter has relay_domains.
        let relay_by_parent =
            parents.as_ref().is_none_or(|list| is_in_parents(list, "relay_domains"));
        routes.read_relay_domains(main, relay_by_parent, ledger);
        routes
    }

    fn read_table(&mut self, table: &ForeignFile, by_parent: bool, ledger: &mut Ledger) {
        let file = ledger.add_file(&table.name, &table.text);
        for line in logical_lines(&String::from_utf8_lossy(&table.text)) {
            let place = Place { file, line: line.number };
            let (pattern, value) = line.text.split_once([' ', '\t']).unwrap_or((&line.text, ""));
            let value = value.trim();
            let id = ledger.add(place, "", pattern, value);
            let entry = Entry { route: Route::parse(value), id };
            if let Some((_, domain)) = pattern.rsplit_once('@') {
                ledger.leave(id, "the gate counts by domains, not by recipients");
                self.addresses.push((Subject::of(domain), id));
                continue;
            }
            if pattern.contains('/') {
                ledger.leave(id, "a table of patterns is not read");
                continue;
            }
            let subjects = match pattern {
                "*" => vec![Subject::All],
                name if by_parent && name.starts_with('.') => {
                    let why = "with transport_maps in parent_domain_matches_subdomains Postfix looks for no name with \
                               a dot before it";
                    ledger.leave(id, why);
                    continue;
                }
                name if by_parent => vec![Subject::of(name), Subject::of(&format!(".{name}"))],
                name => vec![Subject::of(name)],
            };
            for subject in subjects {
                if self.entries.contains_key(&subject) {
                    let why = format!(
                        "an earlier line for {} counts, as postmap has it",
                        printable(pattern)
                    );
                    ledger.leave(id, why);
                } else {
                    self.subjects.push(subject.clone());
                    self.entries.insert(subject, entry.clone());
                }
            }
        }
    }

    /// The domains of relay_domains have relay_transport, before a transport table changes it.
    fn read_relay_domains(&mut self, main: &MainCf, by_parent: bool, ledger: &mut Ledger) {
        let Some(domains) = main.value("relay_domains", ledger) else { return };
        let id = domains.ids[0];
        self.relay_domains_ids = domains.ids;
        for domain in domains.text.split([',', ' ', '\t']).filter(|domain| !domain.is_empty()) {
            if domain.contains(['/', ':', '!']) {
                let part = ledger.add(ledger.place(id), "", "relay_domains", domain);
                ledger.leave(part, "a table of relay_domains is not read");
                self.unread.push(format!(
                    "the domains of {} in relay_domains are not known, so they have this line",
                    printable(domain)
                ));
                continue;
            }
            let mut subjects = vec![Subject::of(domain)];
            if by_parent && !domain.starts_with('.') {
                subjects.push(Subject::of(&format!(".{domain}")));
            }
            for subject in subjects {
                if self.relay_domains.insert(subject.clone())
                    && !self.entries.contains_key(&subject)
                {
                    self.subjects.push(subject);
                }
            }
        }
    }

    /// Where the mail of a subject goes, unless a line for something more specific says otherwise.
    pub(super) fn find(&self, subject: &Subject) -> Found {
        let mut found = self.default.clone();
        if subject.and_parents().any(|parent| self.relay_domains.contains(&parent)) {
            found = self.relay.clone();
            found.ids.extend(&self.relay_domains_ids);
        }
        let parents = subject.and_parents().chain([Subject::All]);
        let Some(entry) = parents.into_iter().find_map(|parent| self.entries.get(&parent)) else {
            return found;
        };
        let is_changed = !entry.route.transport.is_empty();
        found.route = found.route.changed_by(&entry.route);
        if is_changed {
            found.ids.clear();
        }
        found.ids.push(entry.id);
        found
    }
}
