//! Postfix's main.cf, and its transport tables in their text form.
//!
//! A transport's limit is for each destination: the next hop of a transport table, else the recipient's domain. Domains
//! with the same next hop become a group, since Postfix counts them together. A rate delay means one delivery at a
//! time, and a pause after each (postconf(5), and qmgr_transport.c of Postfix's commit 17830e5c of 2026). master.cf is
//! not read. [`routes`] says where mail goes, [`main_cf`] what holds for it there.

mod main_cf;
mod routes;
mod syntax;

use std::collections::{HashMap, HashSet};

use super::draft::{Draft, without_repeats};
use super::foreign::ForeignFile;
use super::ledger::Ledger;
use super::subject::Subject;
use crate::error::Error;
use crate::gate::text::printable;
use main_cf::{DELAY, LIMIT, MainCf, MainCfParameter, TRANSPORT_DELAY};
use routes::{Found, Route, Routes};
use syntax::list_words;

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
        "sender_dependent_default_transport_maps" | "sender_dependent_relayhost_maps" => {
            "the table does not depend on the sender; for mail of some senders other limits may hold in Postfix"
        }
        _ if name.ends_with("initial_destination_concurrency") => FEEDBACK,
        _ if name.contains("_destination_concurrency_") && !name.ends_with(LIMIT) => FEEDBACK,
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

/// The names of the transport tables that main.cf names and whose text can be read, relative to its folder.
pub(super) fn transport_tables(main_cf: &ForeignFile) -> Vec<String> {
    let mut ledger = Ledger::default();
    let file = ledger.add_file(&main_cf.name, &main_cf.text);
    let Ok(main) = MainCf::read(main_cf, file, &mut ledger) else { return Vec::new() };
    let maps = main.text("transport_maps").unwrap_or_default();
    let tables = list_words(&maps).map(kind_and_name);
    tables.filter(|(kind, _)| TEXT_KINDS.contains(kind)).map(|(_, name)| name.to_string()).collect()
}

/// The parts of `kind:name`.
fn kind_and_name(table: &str) -> (&str, &str) {
    table.split_once(':').unwrap_or(("", table))
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
    let routes = Routes::read(&main, tables, ledger);
    note_unread_tables(&main, tables, &mut draft, ledger);
    note_other_ways(&main, &mut draft);
    add_lines(&main, &routes, &mut draft, ledger);
    draft.settle(ledger);
    for MainCfParameter { name, id } in &main.parameters {
        if let Some(why) = reason(name) {
            ledger.leave(*id, why);
        } else if [LIMIT, DELAY, TRANSPORT_DELAY].iter().any(|end| name.ends_with(end)) {
            ledger.leave(*id, "no line of the tables that were read names its transport");
        } else if matches!(
            name.as_str(),
            "relay_domains" | "relay_transport" | "default_transport" | "relayhost"
        ) {
            ledger.leave(*id, "no limit depends on it");
        } else {
            ledger.leave_unrelated(*id);
        }
    }
    Ok(draft)
}

/// Says of which mail Postfix decides by more than the recipient's domain and the transport tables.
fn note_other_ways(main: &MainCf, draft: &mut Draft) {
    let text = |name: &str| main.text(name).filter(|text| !text.trim().is_empty());
    for name in ["sender_dependent_default_transport_maps", "sender_dependent_relayhost_maps"] {
        if text(name).is_some() {
            draft.note(&format!(
                "The table does not depend on the sender. For the senders of {name} other limits may hold in Postfix, and \
                 may be less than any line here allows."
            ));
        }
    }
    for (transport, domains) in
        [("virtual_transport", "virtual_mailbox_domains"), ("local_transport", "mydestination")]
    {
        let Some(value) = text(transport) else { continue };
        let name = value.split(':').next().unwrap_or_default().trim();
        if !LOCAL.contains(&name) && (text(domains).is_some() || transport == "local_transport") {
            draft.note(&format!(
                "In Postfix the domains of {domains} have {transport} = {}, whose limits are not in the table. If qmail \
                 sends their mail to another host, give them lines.",
                printable(&value)
            ));
        }
    }
}

/// Says which tables of transport_maps were not read.
fn note_unread_tables(
    main: &MainCf,
    tables: &[ForeignFile],
    draft: &mut Draft,
    ledger: &mut Ledger,
) {
    let Some(maps) = main.value("transport_maps", ledger) else { return };
    let mut reasons = Vec::new();
    for table in list_words(&maps.text) {
        let (kind, name) = kind_and_name(table);
        let end = name.rsplit('/').next().unwrap_or(name);
        let is_read = tables.iter().any(|table| table.name.rsplit('/').next() == Some(end));
        let is_text = TEXT_KINDS.contains(&kind);
        if is_text && is_read {
            continue;
        }
        let table = printable(table);
        draft.note(&format!(
            "The table {table} was not read. What it has for a domain counts in Postfix, and may be less than any line \
             here allows."
        ));
        reasons.push(match is_text {
            true => format!("the table {table} was not read: name its text file on the command line"),
            false => format!(
                "the table {table} was not read: write what it says into a text file as in transport(5), and name that"
            ),
        });
    }
    if reasons.is_empty() {
        maps.ids.iter().for_each(|&id| ledger.express(id));
    } else {
        ledger.leave(maps.ids[0], reasons.join("; "));
    }
}

/// The domains whose name is a next hop of others: their mail is in the same queue of Postfix as that of the others.
/// Adds them to the subjects.
fn own_queues(routes: &Routes, subjects: &mut Vec<Subject>) -> HashSet<Subject> {
    let mut seen: HashSet<Subject> = subjects.iter().cloned().collect();
    let mut own = HashSet::new();
    for at in 0..subjects.len() {
        let route = routes.find(&subjects[at]).route;
        if route.nexthop.is_empty() || route.nexthop.contains(['[', ':']) {
            continue;
        }
        let hop = Subject::of(&route.nexthop);
        let of_hop = routes.find(&hop).route;
        if of_hop.transport == route.transport && of_hop.is_own_of(&hop) {
            if seen.insert(hop.clone()) {
                subjects.push(hop.clone());
            }
            own.insert(hop);
        }
    }
    own
}

/// The line of the empty name, then one for each subject, or for each next hop.
fn add_lines(main: &MainCf, routes: &Routes, draft: &mut Draft, ledger: &mut Ledger) {
    let mut subjects = vec![Subject::All];
    subjects.extend(routes.subjects.iter().filter(|own| **own != Subject::All).cloned());
    let own_queues = own_queues(routes, &mut subjects);
    let mut line_of_route = HashMap::<Route, usize>::new();
    let mut line_of_subject = HashMap::<Subject, usize>::new();
    for subject in subjects {
        let Found { mut route, ids } = routes.find(&subject);
        if LOCAL.contains(&route.transport.as_str()) && subject != Subject::All {
            ids.iter().for_each(|&id| {
                ledger.leave(id, "its transport sends nothing to another host");
            });
            continue;
        }
        if let (Subject::Name(name), true) = (&subject, own_queues.contains(&subject)) {
            route.nexthop.clone_from(name);
        }
        let at = match line_of_route.get(&route) {
            Some(&at) if subject != Subject::All => at,
            _ => {
                draft.lines.push(main.transport_line(&route.transport, route.group(), ledger));
                let at = draft.lines.len() - 1;
                if !route.nexthop.is_empty() {
                    let hop = printable(route.nexthop.replace(['[', ']'], ""));
                    draft.lines[at].notes.push(match subject {
                        _ if !route.is_one_host() => format!(
                            "smtproutes has one host and port; it has no line for {}",
                            printable(&route.nexthop)
                        ),
                        Subject::All => format!(
                            "for qmail, the relay of all mail is a line :{hop} in control/smtproutes"
                        ),
                        _ => format!(
                            "for qmail, the way to this relay is a line DOMAIN:{hop} in control/smtproutes"
                        ),
                    });
                    if subject != Subject::All {
                        line_of_route.insert(route.clone(), at);
                    }
                }
                at
            }
        };
        draft.lines[at].subjects.push(subject.text());
        draft.lines[at].from.extend(ids);
        line_of_subject.insert(subject, at);
    }
    for (domain, id) in &routes.addresses {
        let parents = domain.and_parents().chain([Subject::All]);
        let at = parents.into_iter().find_map(|parent| line_of_subject.get(&parent));
        if let Some(&at) = at {
            let place = ledger.place_text(ledger.place(*id));
            draft.lines[at].notes.push(format!("{place} has another route for some addresses"));
        }
    }
    draft.lines[0].notes.extend(routes.unread.iter().cloned());
    for line in &mut draft.lines {
        line.from = without_repeats(std::mem::take(&mut line.from));
    }
}
