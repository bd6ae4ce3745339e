//! Warnings about lines that are legal, but surely not meant.

use std::collections::{HashMap, HashSet};
use std::net::Ipv4Addr;
use std::path::Path;

use qpatch_gate::literal::{self, Literal};
use qpatch_gate::name::{host_part, is_word_for_all, not_of_host, without_root};
use qpatch_gate::problem::Problem;
use qpatch_gate::rules::{KeyKind, Rules};
use qpatch_gate::table::{self, Limit, Table, content_lines};

use super::running::{ConcurrencyRemote, ConcurrencyRemoteSource};
use crate::gate::finding::FileFinding;
use crate::gate::source::{LoadedRules, Source};
use crate::gate::text::{escaped, host_of, key_name, line_text, relay_text};

/// The warnings, one list for each sort.
pub(super) fn not_meant(
    source: &Source,
    loaded: &LoadedRules,
    remote: Option<ConcurrencyRemote>,
) -> Vec<Vec<FileFinding>> {
    let path = &source.domains;
    let (Some(rules), Some((_, text))) = (&loaded.rules, &loaded.domains) else {
        return match (&source.home, &loaded.rules) {
            (Some(home), Some(_)) => vec![vec![FileFinding::warning(
                (path, 0, 0),
                "no such file: no domain has a limit, as in stock qmail",
                format!("qpatch gate init {} writes one to start from", home.path().display()),
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
        sorts.push(unknown_groups(sites, rules, table));
        sorts.push(exchangers_without_map(path, text, rules, table));
    }
    sorts
}

/// The line of the empty name.
fn default_line(table: &Table) -> Option<u32> {
    table.find(b"").map(|line| table.number(&line))
}

fn no_default(path: &Path, table: &Table) -> Vec<FileFinding> {
    if default_line(table).is_some() {
        return Vec::new();
    }
    let message = match table.is_empty() {
        true => "no line with a limit: no domain has one",
        false => "no default: a domain that matches no line has no limit",
    };
    let help = "add a line :20 for all other domains, or : if they are to have none";
    vec![FileFinding::warning((path, 0, 0), message, help)]
}

/// Groups of concurrencysites that concurrencydomains does not have.
fn unknown_groups(path: &Path, rules: &Rules, table: &Table) -> Vec<FileFinding> {
    let lost = rules.sites.map.groups().filter(|name| table.group(name).is_none());
    let lost = lost.map(|name| {
        let name = escaped(name);
        let message =
            format!("the group {name} is not in concurrencydomains: its lines do nothing");
        FileFinding::warning((path, 0, 0), message, "qpatch gate sites rewrites the file")
    });
    lost.collect()
}

/// Lines with `mx:` while concurrencysites is missing or empty.
fn exchangers_without_map(
    path: &Path,
    text: &[u8],
    rules: &Rules,
    table: &Table,
) -> Vec<FileFinding> {
    if !table.has_exchangers() || !rules.sites.map.is_empty() {
        return Vec::new();
    }
    let is_mx = |line: &[u8]| line.get(..3).is_some_and(|mx| mx.eq_ignore_ascii_case(b"mx:"));
    let first = content_lines(text).find(|(_, line)| is_mx(line));
    let message = "lines with mx: do nothing: there is no control/concurrencysites, or it is empty";
    let help = "let cron run qpatch gate sites, which looks mail exchangers up and writes it";
    vec![FileFinding::warning((path, first.map_or(0, |(number, _)| number), 1), message, help)]
}

/// The domain of a line, its limit, and the limit's column, from 1.
fn split(line: &[u8]) -> Option<(&[u8], &[u8], u32)> {
    let colon = table::subject_len(line)?;
    let rest = &line[colon + 1..];
    let end = rest.iter().position(|&byte| byte == b':').unwrap_or(rest.len());
    Some((without_root(&line[..colon]), &rest[..end], colon as u32 + 2))
}

/// The domain of a line in a form that may be printed. An operator may have written a relay's password behind its name
/// here, too, and that is left out.
fn display_domain(subject: &[u8]) -> String {
    let is_other = subject.starts_with(b"[") || subject.contains(&b'/') || subject.contains(&b':');
    let shown = if is_other && !subject.contains(&b'|') { subject } else { host_part(subject) };
    escaped(shown)
}

/// Limits of 0. In other mail servers 0 means no limit.
fn zeros(path: &Path, text: &[u8]) -> Vec<FileFinding> {
    let zeros = content_lines(text).filter_map(|(number, line)| {
        let (domain, limit, column) = split(line)?;
        let is_zero = !limit.is_empty() && limit.iter().all(|&digit| digit == b'0');
        let mail = match domain {
            b"" => "all mail".to_string(),
            name => match display_domain(name) {
                shown if shown.is_empty() => "its mail".to_string(),
                shown => format!("all mail for {shown}"),
            },
        };
        is_zero.then(|| {
            let message = format!("0 keeps {mail} in the queue");
            let help = "leave the limit empty for no limit";
            FileFinding::warning((path, number, column), message, help)
        })
    });
    zeros.collect()
}

/// Addresses where a domain is expected. A relay may have an address for its name; mail to an address has brackets
/// around it.
fn bare_addresses(path: &Path, text: &[u8], relays: &HashSet<Vec<u8>>) -> Vec<FileFinding> {
    let addresses = content_lines(text).filter_map(|(number, line)| {
        let (domain, ..) = split(line)?;
        let address: Ipv4Addr = std::str::from_utf8(domain).ok()?.parse().ok()?;
        (!relays.contains(domain)).then(|| {
            let message = format!("{address} is an address, and no mail has it for a domain");
            let help = format!(
                "write {address}/32 for a server, [{address}] for mail to the address itself"
            );
            FileFinding::warning((path, number, 1), message, help)
        })
    });
    addresses.collect()
}

fn never_reached(
    path: &Path,
    text: &[u8],
    table: &Table,
    remote: ConcurrencyRemote,
) -> Vec<FileFinding> {
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
        let mut finding = FileFinding::of_problem(&problem, path, text);
        if remote.from == ConcurrencyRemoteSource::Default {
            finding.message.push_str(", qmail's default");
        }
        finding
    };
    above.iter().map(finding).collect()
}

/// Lines that do nothing because smtproutes sends their domain to a relay.
fn overruled(
    path: &Path,
    text: &[u8],
    rules: &Rules,
    relays: &HashSet<Vec<u8>>,
) -> Vec<FileFinding> {
    let lines = content_lines(text).filter_map(|(number, line)| {
        let (domain, limit, _) = split(line)?;
        let rest = &line[domain.len() + 1 + limit.len()..];
        let has_group = rest.len() > 1 && !rest.starts_with(b"::");
        let is_no_domain = domain.iter().any(|byte| matches!(byte, b'/' | b':'));
        if domain.is_empty() || domain[0] == b'.' || is_no_domain || has_group {
            return None;
        }
        // Mail to an address is rare, so this line is meant for the relay.
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
            domain = display_domain(domain),
        );
        let help = "give the relay a line, or the domain a group";
        Some(FileFinding::warning((path, number, 1), message, help))
    });
    lines.collect()
}

fn limit_words(limit: Limit) -> String {
    match limit {
        Limit::AtMost(limit) => format!("a limit of {limit}"),
        Limit::Unlimited => "no limit".to_string(),
    }
}

fn repeated_routes(path: &Path, text: &[u8], rules: &Rules) -> Vec<FileFinding> {
    let lines = content_lines(text).filter_map(|(number, line)| {
        let (_, place) = rules.routes.find(host_of(line)?)?;
        let counts = rules.routes.number(place);
        // A name that is too long is not in the table; then the line that was found is that of a suffix.
        (counts > number).then(|| {
            let message = format!("the host is in line {counts} again; that line counts");
            FileFinding::warning((path, number, 1), message, "remove one of the two lines")
        })
    });
    lines.collect()
}

/// Relays that take the mail of many domains, with only the default limit for all of it together.
fn crowded_relays(path: &Path, text: &[u8], rules: &Rules) -> Vec<FileFinding> {
    #[derive(Clone, Copy)]
    struct RelayUse {
        first: u32,
        lines: u32,
        wide: u32,
    }
    let mut relays: Vec<(&[u8], RelayUse)> = Vec::new();
    let mut index: HashMap<&[u8], usize> = HashMap::new();
    for (number, line) in content_lines(text) {
        let Some(host) = host_of(line) else { continue };
        // No mail is routed by these lines.
        if is_word_for_all(host) || host.contains(&b'*') || not_of_host(host).is_some() {
            continue;
        }
        let Some((relay, place)) = rules.routes.find(host) else { continue };
        if rules.routes.number(place) != number {
            continue;
        }
        let at = *index.entry(relay).or_insert_with(|| {
            relays.push((relay, RelayUse { first: number, lines: 0, wide: 0 }));
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
        // The relay may count under a site, or under the range of its address.
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
        Some(FileFinding::warning((path, seen.first, 1), message, help))
    });
    crowded.collect()
}
