//! Reads the rules of an installed qmail, or of one file, as the gate reads them, with all problems in them.

use std::collections::HashSet;
use std::fs::Metadata;
use std::path::{Path, PathBuf};

use qpatch_gate::name::Hasher;
use qpatch_gate::problem::{File, Kind, Problem, Problems};
use qpatch_gate::replies::Replies;
use qpatch_gate::route::Routes;
use qpatch_gate::rules::Rules;
use qpatch_gate::sender::{Asked, Reads, Senders};
use qpatch_gate::site::{self, Map};
use qpatch_gate::table::{self, Table, content_lines};

use super::advice::{meaning, unusable};
use super::finding::FileFinding;
use super::text::host_of;
use crate::error::Error;
use crate::output::count;
use crate::qmail::control::read_file;
use crate::qmail::home::Home;
use crate::qmail::relay_files;

/// The most warnings of one sort that are listed.
const WARNINGS_MAX: usize = 1000;

/// Where the rules come from.
#[derive(Clone, Debug)]
pub(super) struct Source {
    pub(super) home: Option<Home>,
    pub(super) domains: PathBuf,
    pub(super) routes: Option<PathBuf>,
    pub(super) senders: Option<PathBuf>,
    pub(super) sites: Option<PathBuf>,
    pub(super) replies: Option<PathBuf>,
    pub(super) seen: Option<PathBuf>,
}

impl Source {
    /// The control files of a qmail home, or `path` alone if it is not a folder.
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
pub(super) struct LoadedRules {
    pub(super) findings: Vec<FileFinding>,
    /// None when there is an error: the gate does not use such a file.
    pub(super) rules: Option<Rules>,
    /// concurrencydomains: its metadata and its text. None if there is no such file.
    pub(super) domains: Option<(Metadata, Vec<u8>)>,
    pub(super) routes: Vec<u8>,
    /// The problems that the gate finds in these files, as it would write them into its status.
    pub(super) gate_messages: HashSet<String>,
}

impl LoadedRules {
    /// The rules, or the first error, with the number of the others.
    pub(super) fn into_rules(self, path: &Path) -> Result<Rules, Error> {
        self.rules.ok_or_else(|| {
            let mut errors = self.findings.iter().filter(|finding| finding.is_error());
            let first = errors.next();
            let place = first.map_or_else(String::new, FileFinding::place);
            let mut what = first.map_or_else(String::new, |error| error.message.clone());
            if let more @ 1.. = errors.count() as u64 {
                what.push_str(&format!(" (and {})", count(more, "more error")));
            }
            Error::new(
                place,
                what,
                format!("qpatch gate check {} lists all of them", path.display()),
            )
        })
    }
}

/// Reads the rules as the gate does. Without concurrencydomains the rules limit nothing.
///
/// # Errors
/// `source` is one file that does not exist, or memory is missing. Problems in files are findings, not errors.
pub(super) fn load(source: &Source, hasher: Hasher) -> Result<LoadedRules, Error> {
    let mut loaded = LoadedRules {
        findings: Vec::new(),
        rules: None,
        domains: None,
        routes: Vec::new(),
        gate_messages: HashSet::new(),
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
            // The gate skips a byte order mark, too.
            let text = table::without_mark(&text).to_vec();
            match table::is_blank(&text) {
                true => loaded.add_file(File::Domains, Kind::Empty, &source.domains),
                false => loaded.add(&problems, &source.domains, &text),
            }
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
        rules.reads = relay_files::followed(home.path());
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
    // Errors in concurrencyreplies do not affect the limits.
    let is_usable = !loaded.findings.iter().any(FileFinding::is_error);
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
    if is_usable && loaded.findings.iter().any(FileFinding::is_error) {
        rules.replies = Replies::default();
    }
    // Only the gate writes this file. If it cannot be read, the sites that the gate has seen are not known here.
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

impl LoadedRules {
    /// The relays of smtproutes, in lower case.
    pub(super) fn relays(&self) -> HashSet<Vec<u8>> {
        let Some(rules) = &self.rules else { return HashSet::new() };
        let hosts = content_lines(&self.routes).filter_map(|(_, line)| host_of(line));
        let relays = hosts.filter_map(|host| rules.routes.find(host));
        relays.map(|(relay, _)| relay.to_vec()).collect()
    }

    fn add(&mut self, problems: &Problems, path: &Path, text: &[u8]) {
        self.gate_messages.extend(problems.iter().map(|problem| problem.to_string()));
        let found = problems.iter().map(|problem| FileFinding::of_problem(&problem, path, text));
        self.findings.extend(found);
    }

    fn add_file(&mut self, file: File, kind: Kind, path: &Path) {
        let problem = Problem::of_file(file, kind);
        self.gate_messages.insert(problem.to_string());
        self.findings.push(FileFinding::of_problem(&problem, path, &[]));
    }

    /// Drops the warnings about lines of smtproutes for bounces (mail without a sender): no host has such a name, but
    /// some qmail-remotes use the line.
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
        // The gate still reports it in its status.
        for number in meant {
            let kind = Kind::RouteNotHost(b'!');
            let problem = Problem { file: File::Routes, line: number, column: 1, kind };
            self.gate_messages.insert(problem.to_string());
        }
    }

    /// Adds warnings of one sort.
    pub(super) fn warn(&mut self, mut warnings: Vec<FileFinding>) {
        let more = warnings.len().saturating_sub(WARNINGS_MAX);
        warnings.truncate(WARNINGS_MAX);
        if let (1.., Some(last)) = (more, warnings.last_mut()) {
            last.message.push_str(&format!(" (and {} like this)", count(more as u64, "more line")));
        }
        self.findings.append(&mut warnings);
    }
}
