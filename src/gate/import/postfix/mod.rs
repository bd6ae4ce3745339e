//! Postfix's main.cf, and its transport tables in their text form.
//!
//! A transport's limit is for each destination: the next hop of a transport table, else the recipient's domain. Domains
//! with the same next hop become a group, since Postfix counts them together. A rate delay means one delivery at a
//! time, and a pause after each (postconf(5), and qmgr_transport.c of Postfix's commit 17830e5c of 2026). master.cf is
//! not read.

mod syntax;

use std::collections::HashMap;

use qpatch_gate::rates::Rates;

use super::draft::{Draft, DraftLine, group_name};
use super::foreign::ForeignFile;
use super::ledger::{Ledger, Place, SettingId};
use super::rate::ForeignRate;
use crate::error::Error;
use crate::gate::text::printable;
use syntax::{expand, logical_lines};

/// default_destination_concurrency_limit where main.cf does not set it.
const CONCURRENCY_LIMIT: u64 = 20;

/// Values of Postfix's own that others name. A relative name is below the folder of main.cf.
const OWN_VALUES: [(&str, &str); 8] = [
    ("config_directory", "."),
    ("default_destination_concurrency_limit", "20"),
    ("default_destination_rate_delay", "0s"),
    ("default_destination_recipient_limit", "50"),
    ("default_process_limit", "100"),
    ("default_transport", "smtp"),
    ("initial_destination_concurrency", "5"),
    ("relay_transport", "relay"),
];

const LIMIT: &str = "_destination_concurrency_limit";
const DELAY: &str = "_destination_rate_delay";

/// Kinds of lookup tables whose file beside the name is text in the syntax of transport(5).
const TEXT_KINDS: [&str; 7] = ["hash", "btree", "lmdb", "cdb", "dbm", "sdbm", "texthash"];

/// Transports that deliver no mail to another host.
const LOCAL: [&str; 7] = ["local", "virtual", "error", "retry", "discard", "defer", "hold"];

/// Why a parameter about limits is not expressed; None for one that is about something else.
fn reason(name: &str) -> Option<&'static str> {
    const FEEDBACK: &str = "with learn in the fourth field, the limit follows what the server accepts, \
        with rules of its own";
    Some(match name {
        "default_process_limit" => {
            "the limit of all deliveries together is control/concurrencyremote"
        }
        "local_destination_concurrency_limit" | "virtual_destination_concurrency_limit" => {
            "the gate limits no local deliveries"
        }
        _ if name.ends_with("initial_destination_concurrency") => FEEDBACK,
        _ if name.contains("_destination_concurrency_") && !name.ends_with(LIMIT) => FEEDBACK,
        _ if name.ends_with("_transport_rate_delay") => {
            "it is one pause for all destinations of a transport; a group with a rate would share a limit, too"
        }
        _ if name.ends_with("_destination_recipient_limit") => {
            "qmail-remote has one recipient for each connection"
        }
        _ if name.ends_with("_recipient_limit") => "it limits what Postfix keeps in memory",
        "smtp_connection_cache_destinations" | "smtp_connection_cache_on_demand" => {
            "qmail-remote sends one message over each connection"
        }
        _ => return None,
    })
}

struct MainCfParameter {
    name: String,
    id: SettingId,
}

/// main.cf.
struct MainCf {
    parameters: Vec<MainCfParameter>,
    values: HashMap<String, String>,
}

impl MainCf {
    fn read(source: &ForeignFile, file: usize, ledger: &mut Ledger) -> Result<Self, Error> {
        let mut main = Self { parameters: Vec::new(), values: HashMap::new() };
        for line in logical_lines(&String::from_utf8_lossy(&source.text)) {
            let place = Place { file, line: line.number };
            let found = line.text.split_once('=').map(|(name, value)| (name.trim(), value.trim()));
            let Some((name, value)) = found.filter(|(name, _)| !name.is_empty()) else {
                let what = format!("expected NAME = VALUE, found {}", printable(&line.text));
                let help = "name main.cf first and the transport tables after it; postconf -n says what Postfix reads";
                return Err(Error::new(ledger.place_text(place), what, help));
            };
            let id = ledger.add(place, "", name, value);
            if let Some(earlier) = main.parameters.iter_mut().find(|old| old.name == name) {
                let why = "a later line for the same parameter takes its place";
                ledger.leave(std::mem::replace(&mut earlier.id, id), why);
            } else {
                main.parameters.push(MainCfParameter { name: name.to_string(), id });
            }
            main.values.insert(name.to_string(), value.to_string());
        }
        for (name, value) in OWN_VALUES {
            main.values.entry(name.to_string()).or_insert_with(|| value.to_string());
        }
        Ok(main)
    }

    fn id(&self, name: &str) -> Option<SettingId> {
        self.parameters.iter().find(|own| own.name == name).map(|own| own.id)
    }

    /// The value of a parameter; None: the file does not set it, or its value is not known. The reason is then noted.
    fn value(&self, name: &str, ledger: &mut Ledger) -> Option<(String, SettingId)> {
        let id = self.id(name)?;
        match expand(&self.values[name], &self.values) {
            Ok(value) => Some((value.trim().to_string(), id)),
            Err(unknown) => {
                ledger.leave(id, unknown.reason());
                None
            }
        }
    }

    /// The value of a transport's parameter: its own, else the default's.
    fn of_transport(
        &self,
        transport: &str,
        end: &str,
        ledger: &mut Ledger,
    ) -> Option<(String, SettingId)> {
        let own = self.value(&format!("{transport}{end}"), ledger);
        own.or_else(|| self.value(&format!("default{end}"), ledger))
    }
}

/// Where a destination's mail goes: `transport:nexthop`.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Route {
    transport: String,
    nexthop: String,
}

impl Route {
    fn parse(text: &str, default_transport: &str) -> Self {
        let (transport, nexthop) = text.split_once(':').unwrap_or((text, ""));
        let transport = if transport.is_empty() { default_transport } else { transport };
        Self { transport: transport.to_string(), nexthop: nexthop.to_string() }
    }

    /// The name of the group for a next hop: without brackets, and with the port where there is one.
    fn group(&self) -> Option<String> {
        let nexthop = self.nexthop.replace(['[', ']'], "");
        (!nexthop.is_empty()).then(|| group_name(nexthop.trim_end_matches(":25")))
    }
}

/// The names of the transport tables that main.cf names and whose text can be read, relative to its folder.
pub(super) fn transport_tables(main_cf: &ForeignFile) -> Vec<String> {
    let mut ledger = Ledger::default();
    let file = ledger.add_file(&main_cf.name, &main_cf.text);
    let Ok(main) = MainCf::read(main_cf, file, &mut ledger) else { return Vec::new() };
    let Some(maps) = main.values.get("transport_maps") else { return Vec::new() };
    let maps = expand(maps, &main.values).unwrap_or_default();
    let tables = map_names(&maps);
    tables.filter(|(kind, _)| TEXT_KINDS.contains(kind)).map(|(_, name)| name.to_string()).collect()
}

/// The tables of a list of `kind:name`.
fn map_names(maps: &str) -> impl Iterator<Item = (&str, &str)> {
    let words = maps.split([',', ' ', '\t']).filter(|word| !word.is_empty());
    words.map(|word| word.split_once(':').unwrap_or(("", word)))
}

/// Reads main.cf, which is the first file, and the transport tables, and makes a table of them.
pub(super) fn import(files: &[ForeignFile], ledger: &mut Ledger) -> Result<Draft, Error> {
    let mut draft = Draft::default();
    let Some((main_cf, tables)) = files.split_first() else { return Ok(draft) };
    let file = ledger.add_file(&main_cf.name, &main_cf.text);
    let main = MainCf::read(main_cf, file, ledger)?;
    draft.note(
        "master.cf is not read: its column maxproc limits a transport over all destinations, and its -o options may \
         set other values than main.cf.",
    );
    let route_of = |name: &str, builtin: &str, ledger: &mut Ledger| {
        let value = main.value(name, ledger);
        let text = value.as_ref().map_or(builtin, |(value, _)| value);
        (Route::parse(text, builtin), value.map(|(_, id)| id))
    };
    let (mut default, default_id) = route_of("default_transport", "smtp", ledger);
    let (relay, relay_id) = route_of("relay_transport", "relay", ledger);
    let relayhost = main.value("relayhost", ledger).filter(|(value, _)| !value.is_empty());
    if let Some((host, _)) = &relayhost {
        default.nexthop = host.clone();
    }
    let mut default_ids: Vec<SettingId> = default_id.into_iter().collect();
    default_ids.extend(relayhost.map(|(_, id)| id));

    let matches_parents = main
        .value("parent_domain_matches_subdomains", ledger)
        .map(|(value, id)| (value.split([',', ' ']).any(|word| word == "transport_maps"), id));
    let mut lines = Vec::new();
    for table in tables {
        read_table(
            table,
            &default,
            matches_parents.is_some_and(|(all, _)| all),
            ledger,
            &mut lines,
        );
    }
    if let Some((true, id)) = matches_parents {
        ledger.express(id);
    }
    if let Some((maps, id)) = main.value("transport_maps", ledger) {
        let unread = map_names(&maps).find(|(kind, name)| {
            let end = name.rsplit('/').next().unwrap_or(name);
            let is_read = tables.iter().any(|table| table.name.rsplit('/').next() == Some(end));
            !TEXT_KINDS.contains(kind) || !is_read
        });
        match unread {
            None => ledger.express(id),
            Some((kind, name)) => ledger.leave(
                id,
                format!(
                    "the table {kind}:{name} was not read: name its text file on the command line",
                    kind = printable(kind),
                    name = printable(name)
                ),
            ),
        }
    }
    if let Some(at) = lines.iter().position(|line: &TableLine| line.subjects == [""]) {
        let line = lines.remove(at);
        default = line.route;
        default_ids
            .iter()
            .for_each(|&id| ledger.leave(id, "the line * of a transport table takes its place"));
        default_ids = vec![line.id];
    }
    relay_domains(&main, &relay, relay_id, ledger, &mut lines);

    let mut line = transport_line(&main, &default, ledger);
    line.subjects.push(String::new());
    line.from.extend(default_ids);
    if !default.nexthop.is_empty() {
        line.notes.push(format!(
            "for qmail, the relay of all mail is a line :{} in control/smtproutes",
            relay_words(&default.nexthop)
        ));
    }
    draft.lines.push(line);
    let mut groups: Vec<(Route, usize)> = Vec::new();
    for TableLine { subjects, route, id } in lines {
        let known = groups.iter().find(|(other, _)| *other == route && !route.nexthop.is_empty());
        let at = match known {
            Some((_, at)) => *at,
            None => {
                draft.lines.push(transport_line(&main, &route, ledger));
                let at = draft.lines.len() - 1;
                if !route.nexthop.is_empty() {
                    draft.lines[at].notes.push(format!(
                        "for qmail, the way to this relay is a line DOMAIN:{} in control/smtproutes",
                        relay_words(&route.nexthop)
                    ));
                }
                groups.push((route, at));
                at
            }
        };
        draft.lines[at].subjects.extend(subjects);
        if !draft.lines[at].from.contains(&id) {
            draft.lines[at].from.push(id);
        }
    }
    draft.settle(ledger);
    for MainCfParameter { name, id } in &main.parameters {
        if let Some(why) = reason(name) {
            ledger.leave(*id, why);
        } else if name.ends_with(LIMIT) || name.ends_with(DELAY) {
            ledger.leave(*id, "no line of the tables that were read names its transport");
        } else if matches!(name.as_str(), "relay_domains" | "relay_transport" | "default_transport")
        {
            ledger.leave(*id, "no limit depends on it");
        } else {
            ledger.leave_unrelated(*id);
        }
    }
    Ok(draft)
}

/// A next hop in the words of smtproutes: `host` or `host:port`.
fn relay_words(nexthop: &str) -> String {
    printable(nexthop.replace(['[', ']'], ""))
}

/// A line of a transport table that names domains.
struct TableLine {
    subjects: Vec<String>,
    route: Route,
    id: SettingId,
}

fn read_table(
    table: &ForeignFile,
    default: &Route,
    matches_parents: bool,
    ledger: &mut Ledger,
    lines: &mut Vec<TableLine>,
) {
    let file = ledger.add_file(&table.name, &table.text);
    for line in logical_lines(&String::from_utf8_lossy(&table.text)) {
        let place = Place { file, line: line.number };
        let (pattern, value) = line.text.split_once([' ', '\t']).unwrap_or((&line.text, ""));
        let value = value.trim();
        let id = ledger.add(place, "", pattern, value);
        let route = Route::parse(value, &default.transport);
        if pattern.contains('@') {
            ledger.leave(id, "the gate counts by domains, not by recipients");
        } else if LOCAL.contains(&route.transport.as_str()) {
            ledger.leave(id, "its transport sends nothing to another host");
        } else if pattern.contains('/') {
            ledger.leave(id, "a table of patterns is not read");
        } else {
            let subjects = match pattern {
                "*" => vec![String::new()],
                name if matches_parents && !name.starts_with('.') => {
                    vec![name.to_string(), format!(".{name}")]
                }
                name => vec![name.to_string()],
            };
            lines.push(TableLine { subjects, route, id });
        }
    }
}

/// The domains of relay_domains have relay_transport. A transport table comes before it.
fn relay_domains(
    main: &MainCf,
    relay: &Route,
    relay_id: Option<SettingId>,
    ledger: &mut Ledger,
    lines: &mut Vec<TableLine>,
) {
    let Some((domains, id)) = main.value("relay_domains", ledger) else { return };
    for domain in domains.split([',', ' ', '\t']).filter(|domain| !domain.is_empty()) {
        if domain.contains(['/', ':', '!']) {
            let part = ledger.add(ledger.place(id), "", "relay_domains", domain);
            ledger.leave(part, "a table of relay_domains is not read");
            continue;
        }
        // The default of parent_domain_matches_subdomains has relay_domains.
        let mut subjects = vec![domain.to_string()];
        if !domain.starts_with('.') {
            subjects.push(format!(".{domain}"));
        }
        let has_line = |subject: &String| lines.iter().any(|line| line.subjects.contains(subject));
        subjects.retain(|subject| !has_line(subject));
        if !subjects.is_empty() {
            lines.push(TableLine { subjects, route: relay.clone(), id });
            if let Some(relay_id) = relay_id {
                ledger.express(relay_id);
            }
        }
    }
}

/// The limit and the rate of a transport, for each of its destinations.
fn transport_line(main: &MainCf, route: &Route, ledger: &mut Ledger) -> DraftLine {
    let mut line = DraftLine {
        subjects: Vec::new(),
        limit: Some(CONCURRENCY_LIMIT),
        group: route.group(),
        rates: Rates::NONE,
        from: Vec::new(),
        notes: Vec::new(),
    };
    match main.of_transport(&route.transport, LIMIT, ledger) {
        None => line.notes.push(format!(
            "Postfix's own default_destination_concurrency_limit is {CONCURRENCY_LIMIT}"
        )),
        Some((value, id)) => match value.parse::<u64>() {
            Ok(limit) => {
                // 0 is no limit.
                line.limit = (limit > 0).then_some(limit);
                line.from.push(id);
            }
            Err(_) => ledger.leave(id, format!("expected a number, found {}", printable(&value))),
        },
    }
    let Some((value, id)) = main.of_transport(&route.transport, DELAY, ledger) else { return line };
    match delay(&value) {
        Err(why) => {
            ledger.leave(id, why);
            line.limit = Some(1);
            line.notes.push("a rate delay means one delivery at a time".to_string());
        }
        Ok(None) => line.from.push(id),
        Ok(Some(rates)) => {
            line.limit = Some(1);
            line.rates = rates;
            line.from.push(id);
            line.notes.push("a rate delay means one delivery at a time".to_string());
        }
    }
    line
}

/// A pause between two deliveries as a rate; None: no pause.
fn delay(value: &str) -> Result<Option<Rates>, String> {
    let digits = value.trim_end_matches(|sign: char| sign.is_ascii_alphabetic());
    let unit_secs = match &value[digits.len()..] {
        "" | "s" | "S" => 1,
        "m" | "M" => 60,
        "h" | "H" => 3600,
        "d" | "D" => 86400,
        "w" | "W" => 7 * 86400,
        _ => {
            return Err(format!(
                "expected a number and s, m, h, d or w, found {}",
                printable(value)
            ));
        }
    };
    let number = digits.parse::<u64>().ok().and_then(|number| number.checked_mul(unit_secs));
    match number {
        None => Err(format!("expected a number and s, m, h, d or w, found {}", printable(value))),
        Some(0) => Ok(None),
        Some(secs @ ..=3600) => {
            let rate = ForeignRate { starts: 1, scale: secs, unit_secs: 1 };
            rate.in_table().map(|rate| Some(rate.rates))
        }
        Some(_) => Err(
            "the longest pause of the table is an hour; the nearest is 1/60m, or N/d for N messages a day".to_string()
        ),
    }
}
