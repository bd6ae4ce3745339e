//! `qpatch gate import` against a model of each mail server: for random small configurations, the table never allows a
//! destination more than its source does, unless a note at the line says so.
//!
//! The models look names up as the sources do, one key after the other; they share no code with the readers.

use std::process::Command;

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;
use qpatch::gate::import::{ForeignFile, MailServer, table_of};
use qpatch_gate::name::Hasher;
use qpatch_gate::table::{Limit, Table};

/// The words of notes that admit that the table may allow more.
const ADMISSIONS: [&str; 6] = [
    "looser",
    "not in it",
    "counts as not set",
    "here it counts in this group alone",
    "give it that group",
    "has another route",
];

const DESTINATIONS: [&str; 7] = [
    "x.example",
    "y.x.example",
    "w.y.x.example",
    "q.x.example",
    "z.example",
    "any.x.example",
    "other.example",
];

/// No limit is the highest.
const UNLIMITED: u64 = u64::MAX;

/// What the table has for a destination.
#[derive(Debug)]
struct Said {
    limit: u64,
    group: Option<u32>,
    admits: bool,
}

struct Made {
    text: String,
    table: Table,
}

impl Made {
    fn new(server: MailServer, files: &[(&str, String)]) -> Self {
        let files: Vec<ForeignFile> = files
            .iter()
            .map(|(name, text)| ForeignFile {
                name: name.to_string(),
                text: text.clone().into_bytes(),
            })
            .collect();
        let text = String::from_utf8(table_of(server, &files).unwrap()).unwrap();
        let (table, problems) = Table::parse(text.as_bytes(), Hasher::new(1)).unwrap();
        assert!(problems.is_empty(), "{text}");
        Self { text, table }
    }

    fn find(&self, name: &str) -> Said {
        let line = self.table.find(name.as_bytes()).expect("the table has a default");
        let limit = match line.cap.limit {
            Limit::AtMost(limit) => u64::from(limit),
            Limit::Unlimited => UNLIMITED,
        };
        // The paragraph of the line, by the first of its names that matches.
        let parents = name.match_indices('.').map(|(at, _)| &name[at..]);
        let subjects = std::iter::once(name).chain(parents).chain([""]);
        let paragraph = subjects.into_iter().find_map(|subject| {
            let start = format!("{subject}:");
            self.text.split("\n\n").find(|part| {
                let lines = part.lines().filter(|line| !line.starts_with('#'));
                lines.into_iter().any(|line| line.starts_with(&start))
            })
        });
        let paragraph = paragraph.unwrap().replace("\n#       ", " ");
        let notes = paragraph.lines().filter(|line| line.starts_with("# note: "));
        let admits =
            notes.into_iter().any(|note| ADMISSIONS.iter().any(|words| note.contains(words)));
        Said { limit, group: line.group, admits }
    }

    /// Each destination, and those that share a queue in the source, have at most what they have there.
    fn check<Q: PartialEq + std::fmt::Debug>(&self, model: impl Fn(&str) -> Option<(Q, u64)>) {
        let found = DESTINATIONS.iter().filter_map(|&name| Some((name, model(name)?)));
        let found: Vec<(&str, (Q, u64), Said)> =
            found.map(|(name, queue)| (name, queue, self.find(name))).collect();
        for (name, (queue, limit), said) in &found {
            let text = &self.text;
            assert!(
                said.limit <= *limit || said.admits,
                "{name} {queue:?} {limit} {said:?}\n{text}"
            );
            for (other, (other_queue, _), other_said) in &found {
                let is_shared = name != other && queue == other_queue && *limit != UNLIMITED;
                let is_together = said.group.is_some() && said.group == other_said.group;
                assert!(
                    !is_shared || is_together || said.admits || other_said.admits,
                    "{name} and {other} share {queue:?}\n{text}"
                );
            }
        }
    }
}

/// What holds for a name: the first of its keys that has a value.
fn first<'a, T>(keys: &[String], values: &'a [(String, T)]) -> Option<&'a T> {
    keys.iter().find_map(|key| Some(&values.iter().find(|(own, _)| own == key)?.1))
}

/// `w.y.x.example`, `.y.x.example`, `.x.example`, `.example`; without dots where parents match by their names.
fn keys(name: &str, by_parent: bool) -> Vec<String> {
    let parents = name.match_indices('.').map(|(at, _)| &name[at + usize::from(by_parent)..]);
    std::iter::once(name).chain(parents).map(str::to_string).collect()
}

fn postfix_table() -> impl Strategy<Value = Vec<(String, String)>> {
    let names = ["x.example", ".x.example", "y.x.example", ".y.x.example", "z.example", "*"];
    let routes = [
        "a:",
        "b:",
        ":",
        "a:[r.example]",
        "b:[r.example]",
        ":[r.example]",
        "a:z.example",
        "error:x",
        "b",
    ];
    let name = select(names.to_vec()).prop_map(str::to_string);
    vec((name, select(routes.to_vec()).prop_map(str::to_string)), 0..8)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..Default::default() })]

    #[test]
    fn postfix(
        entries in postfix_table(),
        limits in vec(proptest::option::of(0u64..40), 4),
        relay_domains in vec(select(vec!["x.example", "y.x.example", "z.example"]), 0..3),
        relayhost in proptest::option::of(Just("[smart.example]")),
        relay_transport in select(vec!["relay", "a", "b:[r.example]"]),
        by_parent in any::<bool>(),
    ) {
        let transports = ["default", "a", "b", "relay"];
        let mut main_cf = String::new();
        for (transport, limit) in transports.iter().zip(&limits) {
            if let Some(limit) = limit {
                main_cf += &format!("{transport}_destination_concurrency_limit = {limit}\n");
            }
        }
        main_cf += &format!("relay_domains = {}\n", relay_domains.join(", "));
        main_cf += &format!("relay_transport = {relay_transport}\n");
        if let Some(host) = relayhost {
            main_cf += &format!("relayhost = {host}\n");
        }
        if by_parent {
            main_cf += "parent_domain_matches_subdomains = transport_maps, relay_domains\n";
        }
        let table: String =
            entries.iter().map(|(name, route)| format!("{name} {route}\n")).collect();
        let made = Made::new(MailServer::Postfix, &[("main.cf", main_cf), ("transport", table)]);
        made.check(|name| {
            let is_relay = relay_domains
                .iter()
                .any(|own| name == *own || name.ends_with(&format!(".{own}")));
            let class = if is_relay { relay_transport } else { "smtp" };
            let (mut transport, mut hop) = class.split_once(':').unwrap_or((class, ""));
            if hop.is_empty() {
                hop = relayhost.unwrap_or(name);
            }
            let mut keys = keys(name, by_parent);
            keys.push("*".to_string());
            if let Some(route) = first(&keys, &entries) {
                let (own, own_hop) = route.split_once(':').unwrap_or((route, ""));
                if !own.is_empty() {
                    (transport, hop) = (own, name);
                }
                if !own_hop.is_empty() {
                    hop = own_hop;
                }
            }
            if transport == "error" {
                return None;
            }
            let own = transports.iter().position(|other| *other == transport);
            let limit = own.and_then(|at| limits[at]).or(limits[0]).unwrap_or(20);
            let limit = if limit == 0 { UNLIMITED } else { limit };
            Some((format!("{transport}:{hop}"), limit))
        });
    }

    #[test]
    fn powermta(
        blocks in vec(
            (
                0usize..3,
                select(vec!["*", "x.example", "*.x.example", "[*.]x.example", "y.x.example", "*.y.x.example",
                            "any.x.example"]),
                1u64..60,
            ),
            0..8,
        ),
    ) {
        let block = |pattern: &str, limit: u64| {
            format!("<domain {pattern}>\nmax-smtp-out {limit}\n</domain>\n")
        };
        let mut config = String::new();
        for scope in 0..3 {
            let own: String = blocks
                .iter()
                .filter(|(of, ..)| *of == scope)
                .map(|(_, pattern, limit)| block(pattern, *limit))
                .collect();
            config += &match scope {
                0 => own,
                scope => format!("<virtual-mta m{scope}>\n{own}</virtual-mta>\n"),
            };
        }
        let made = Made::new(MailServer::Powermta, &[("config", config)]);
        made.check(|name| {
            let of_scope = |scope: usize| {
                let matches = |pattern: &str| match pattern {
                    "*" => Some(0),
                    _ if pattern == name => Some(2),
                    _ => {
                        let (is_tree, parent) = match pattern.strip_prefix("[*.]") {
                            Some(parent) => (true, parent),
                            None => (false, pattern.strip_prefix("*.")?),
                        };
                        let is_below = name.ends_with(&format!(".{parent}"));
                        (is_below || is_tree && name == parent).then_some(1)
                    }
                };
                let own = blocks.iter().enumerate().filter(|(_, (of, ..))| *of == scope);
                let own = own.filter_map(|(at, (_, pattern, limit))| {
                    Some(((matches(pattern)?, at), *limit))
                });
                own.max_by_key(|(order, _)| *order).map(|(_, limit)| limit)
            };
            let outside = of_scope(0).unwrap_or(20);
            let lowest = (1..3).map(|scope| of_scope(scope).unwrap_or(outside)).min();
            Some((name.to_string(), lowest.unwrap_or(outside).min(outside)))
        });
    }

    #[test]
    fn kumomta(
        default in proptest::option::of(1u64..40),
        providers in vec((proptest::option::of(1u64..40), proptest::option::of(1u64..40)), 2),
        domains in vec(
            (
                0usize..2,
                select(vec!["x.example", "y.x.example", "z.example"]),
                proptest::option::of(1u64..40),
                any::<bool>(),
                any::<bool>(),
            ),
            0..5,
        ),
    ) {
        let suffixes = [".x.example", ".y.x.example"];
        let mut files = [String::new(), String::new()];
        if let Some(limit) = default {
            files[0] += &format!("[\"default\"]\nconnection_limit = {limit}\n");
        }
        for (at, (own, shared)) in providers.iter().enumerate() {
            files[0] += &format!("[provider.p{at}]\nmatch = [{{DomainSuffix=\"{}\"}}]\n", suffixes[at]);
            if let Some(limit) = own {
                files[0] += &format!("connection_limit = {limit}\n");
            }
            if let Some(limit) = shared {
                files[0] += &format!("provider_connection_limit = {limit}\n");
            }
        }
        // Of one name a file has one section.
        let mut seen = Vec::new();
        let mut sections = Vec::new();
        for (file, name, limit, is_site, replaces) in &domains {
            if !seen.contains(&(file, name)) {
                seen.push((file, name));
                sections.push((*file, *name, *limit, *is_site, *replaces));
            }
        }
        sections.sort_by_key(|section| section.0);
        for (file, name, limit, is_site, replaces) in &sections {
            files[*file] += &format!("[\"{name}\"]\nmx_rollup = {is_site}\nreplace_base = {replaces}\n");
            if let Some(limit) = limit {
                files[*file] += &format!("connection_limit = {limit}\n");
            }
        }
        let made = Made::new(
            MailServer::Kumomta,
            &[("a.toml", files[0].clone()), ("b.toml", files[1].clone())],
        );
        // get_egress_path_config; here each domain has mail exchangers of its own.
        let model = |name: &str| {
            let mut limit = default;
            let mut shared = Vec::new();
            for (at, (own, of_all)) in providers.iter().enumerate() {
                if name.ends_with(suffixes[at]) {
                    limit = own.or(limit);
                    shared.extend(of_all.map(|of_all| (at, of_all)));
                }
            }
            for site in [true, false] {
                let own = sections.iter().filter(|own| own.1 == name && own.3 == site);
                let own: Vec<_> = own.collect();
                let Some(base) = own.first() else { continue };
                let mut merged = base.2;
                for later in &own[1..] {
                    merged = if later.4 { later.2 } else { later.2.or(merged) };
                }
                if base.4 {
                    (limit, shared) = (None, Vec::new());
                }
                limit = merged.or(limit);
            }
            (limit.unwrap_or(32), shared)
        };
        made.check(|name| {
            let (limit, shared) = model(name);
            let lowest = shared.iter().map(|(_, of_all)| *of_all).chain([limit]).min();
            Some((name.to_string(), lowest.unwrap_or(limit)))
        });
        // What a provider limits for all its domains together.
        for at in 0..providers.len() {
            made.check(|name| {
                let (_, shared) = model(name);
                let of_all = shared.iter().find(|(of, _)| *of == at)?.1;
                Some((at, of_all))
            });
        }
    }
}

/// The model's rule for two lines of one name, asked of Postfix itself.
#[test]
fn of_two_lines_postmap_takes_the_first() {
    if !qpatch_test_support::has_command("postconf", "-m") {
        return qpatch_test_support::skip("no Postfix");
    }
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    };
    let main_cf = "a_destination_concurrency_limit = 3\nb_destination_concurrency_limit = 9\n";
    let entries = "x.example a:\nX.Example b:\n* b:\n* a:\n";
    write("main.cf", &format!("compatibility_level = 3.6\n{main_cf}"));
    let table = write("transport", entries);
    let files = [("main.cf", main_cf.to_string()), ("transport", entries.to_string())];
    let made = Made::new(MailServer::Postfix, &files);
    let kinds = Command::new("postconf").arg("-m").output().unwrap();
    let kinds = String::from_utf8(kinds.stdout).unwrap();
    let postmap = |arguments: &[&str]| {
        let output = Command::new("postmap").arg("-c").arg(folder.path()).args(arguments).output();
        String::from_utf8(output.unwrap().stdout).unwrap()
    };
    for kind in ["texthash", "hash", "btree", "lmdb", "cdb"] {
        if !kinds.lines().any(|known| known == kind) {
            continue;
        }
        let map = format!("{kind}:{table}");
        if kind != "texthash" {
            postmap(&[&map]);
        }
        for (key, name) in [("x.example", "x.example"), ("*", "other.example")] {
            let limit = match postmap(&["-q", key, &map]).trim() {
                "a:" => 3,
                "b:" => 9,
                other => panic!("{kind} {key}: {other}"),
            };
            assert_eq!(made.find(name).limit, limit, "{kind} {key}");
        }
    }
}

#[test]
fn what_macros_make_is_bounded() {
    let mut config = String::from("domain-macro all ");
    (0..100_000).for_each(|number| config += &format!("d{number}.example,"));
    config.push('\n');
    config += &"<domain $all>\nmax-smtp-out 3\n</domain>\n".repeat(11);
    let file = ForeignFile { name: "config".to_string(), text: config.into_bytes() };
    let error = table_of(MailServer::Powermta, &[file]).unwrap_err().to_string();
    let expected = "config:32: up to here the blocks have more than 2000000 settings: each directive counts as often as \
                    its block has names";
    assert!(error.starts_with(expected), "{error}");
}
