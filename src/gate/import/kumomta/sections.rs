//! The sections of the shaping files, put together as KumoMTA does it (`merge_from` of its shaping.rs).

use std::collections::HashMap;
use std::ops::Range;

use qpatch_gate::rates::Rates;

use super::tree::{Entry, Node, NodeValue, read};
use crate::error::Error;
use crate::gate::import::foreign::ForeignFile;
use crate::gate::import::ledger::{Ledger, Place, SettingId};
use crate::gate::import::rate::{ForeignRate, TableRate};
use crate::gate::text::printable;

pub(super) const LIMIT: &str = "connection_limit";
pub(super) const MESSAGE_RATE: &str = "max_message_rate";
pub(super) const CONNECTION_RATE: &str = "max_connection_rate";
pub(super) const PROVIDER_LIMIT: &str = "provider_connection_limit";
pub(super) const PROVIDER_RATE: &str = "provider_max_message_rate";

/// What any section may say that the table can express.
pub(super) const OWN: [&str; 3] = [LIMIT, MESSAGE_RATE, CONNECTION_RATE];

/// The same of a provider, for all its domains together.
pub(super) const SHARED: [&str; 2] = [PROVIDER_LIMIT, PROVIDER_RATE];

/// Why a setting about limits is not expressed; None for one that is about something else.
fn reason(name: &str) -> Option<&'static str> {
    Some(match name {
        "max_deliveries_per_connection" => "qmail-remote sends one message over each connection",
        "max_recipients_per_batch" => "qmail-remote has one recipient for each connection",
        "additional_connection_limits" | "additional_message_rate_throttles" => {
            "a delivery counts under one key, so it cannot have further limits beside it"
        }
        "source_selection_rate"
        | "additional_source_selection_rates"
        | "provider_source_selection_rate" => "qmail does not choose between sources",
        "consecutive_connection_failures_before_delay" => {
            "the gate pauses a destination by itself; learn in the fourth field turns it on"
        }
        "automation" => AUTOMATION,
        "sources" => "expected a section for each source",
        "match" => "expected a list of patterns, in the section of a provider",
        "max_ready" => "how much mail may wait is not a limit of the gate",
        name if SHARED.contains(&name) => "only the section of a provider can have it",
        _ => return None,
    })
}

const AUTOMATION: &str = "what happens after a reply (automation) is no part of the table: with learn in the fourth \
    field a limit follows what the server accepts, and concurrencyreplies(5) is for certain words";

/// Settings that would lower a limit of the table, and that it cannot have.
fn is_further_limit(name: &str) -> bool {
    matches!(name, "additional_connection_limits" | "additional_message_rate_throttles")
}

/// What a provider matches.
#[derive(Clone, Debug)]
pub(super) enum ProviderPattern {
    MxSuffix(String),
    DomainSuffix(String),
    HostName(String),
}

/// A pattern of a provider, as it is written.
#[derive(Clone, Debug)]
pub(super) struct ReadPattern {
    /// In lower case, without the dot of the root.
    pub(super) pattern: ProviderPattern,
    pub(super) id: SettingId,
    /// Whether it matches nothing in KumoMTA, which compares it as it is written with names in that form.
    pub(super) is_dead: bool,
}

/// A setting that can be expressed.
#[derive(Clone, Debug)]
pub(super) struct ShapingSetting {
    pub(super) name: String,
    pub(super) value: ShapingValue,
    pub(super) id: SettingId,
}

#[derive(Clone, Debug)]
pub(super) enum ShapingValue {
    Limit(u64),
    Rate {
        /// As it is written.
        text: String,
        rate: TableRate,
        has_burst: bool,
    },
}

impl ShapingValue {
    /// Reads the value of a setting of [`OWN`] or [`SHARED`].
    ///
    /// # Errors
    /// Why it cannot be expressed. What is inherited then holds.
    fn parse(name: &str, value: &NodeValue) -> Result<Self, String> {
        let (NodeValue::Text(text) | NodeValue::Number(text)) = value else {
            return Err("expected a text or a number".to_string());
        };
        // Whether other hosts share it through Redis.
        let text = text.strip_prefix("local:").unwrap_or(text);
        if matches!(name, LIMIT | PROVIDER_LIMIT) {
            let digits: String = text.chars().filter(|sign| !matches!(sign, ',' | '_')).collect();
            let number = digits.parse::<u64>();
            return number.map(ShapingValue::Limit).map_err(|_| "expected a number".to_string());
        }
        // How much may start at once: the table's N/s and N/m are spread evenly, N/h and N/d are not.
        let (text, has_burst) = match text.split_once(",max_burst=") {
            Some((rate, _)) => (rate, true),
            None => (text, false),
        };
        let rate = ForeignRate::parse(text, &[',', '_'])?.in_table();
        Ok(ShapingValue::Rate { text: text.to_string(), rate, has_burst })
    }

    pub(super) fn rates(&self) -> Rates {
        match self {
            ShapingValue::Limit(_) => Rates::NONE,
            ShapingValue::Rate { rate, .. } => rate.rates,
        }
    }
}

/// What a section is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum SectionKind {
    Default,
    /// All domains with the mail exchangers of the domain that it names.
    Site,
    /// One domain (`mx_rollup = false`).
    Domain,
    Provider,
}

/// A section, put together from all files.
#[derive(Debug)]
pub(super) struct ShapingSection {
    pub(super) name: String,
    pub(super) kind: SectionKind,
    /// That it inherits nothing. Only its first file counts for that.
    pub(super) replaces_base: Option<SettingId>,
    /// Of one name only [`PROVIDER_RATE`] stands here more than once.
    pub(super) settings: Vec<ShapingSetting>,
    pub(super) patterns: Vec<ReadPattern>,
    /// mx_rollup, where it is written.
    pub(super) rollup: Vec<SettingId>,
    /// Settings of it that would lower a limit and are not expressed, with their places.
    pub(super) omitted: Vec<String>,
}

impl ShapingSection {
    fn scope(&self) -> String {
        match self.kind {
            SectionKind::Provider => format!("provider {}", self.name),
            _ => self.name.clone(),
        }
    }

    pub(super) fn find(&self, name: &str) -> Option<&ShapingSetting> {
        self.settings.iter().find(|setting| setting.name == name)
    }

    pub(super) fn has_limits(&self) -> bool {
        !self.settings.is_empty() || !self.omitted.is_empty()
    }

    /// Whether its domains share a limit or a rate.
    pub(super) fn is_shared(&self) -> bool {
        SHARED.iter().any(|name| self.find(name).is_some())
    }

    fn omit(&mut self, what: &str, id: SettingId, ledger: &Ledger) {
        let place = ledger.place_text(ledger.place(id));
        self.omitted.push(format!("{} ({place})", printable(what)));
    }
}

/// Where the lines of a text begin.
struct Lines<'a> {
    text: &'a str,
    ends: Vec<usize>,
    file: usize,
}

impl Lines<'_> {
    fn place(&self, at: usize) -> Place {
        let line = self.ends.partition_point(|&end| end < at) as u32 + 1;
        Place { file: self.file, line }
    }

    fn slice(&self, span: Range<usize>) -> &str {
        self.text.get(span).unwrap_or_default()
    }
}

/// All sections, in the order in which they first come.
#[derive(Debug, Default)]
pub(super) struct Sections {
    pub(super) all: Vec<ShapingSection>,
    at: HashMap<(SectionKind, String), usize>,
    /// The indices of the providers in `all`.
    providers: Vec<usize>,
}

impl Sections {
    pub(super) fn find(&self, kind: SectionKind, name: &str) -> Option<&ShapingSection> {
        Some(&self.all[*self.at.get(&(kind, name.to_string()))?])
    }

    pub(super) fn providers(&self) -> impl Iterator<Item = &ShapingSection> {
        self.providers.iter().map(|&at| &self.all[at])
    }

    /// Adds a file to those before it.
    ///
    /// # Errors
    /// It is neither TOML nor JSON.
    pub(super) fn add_file(
        &mut self,
        source: &ForeignFile,
        ledger: &mut Ledger,
    ) -> Result<(), Error> {
        let (text, root) = read(source)?;
        let file = ledger.add_file(&source.name, &source.text);
        let ends = text.bytes().enumerate().filter(|(_, byte)| *byte == b'\n').map(|(at, _)| at);
        let lines = Lines { text, ends: ends.collect(), file };
        for entry in root.entries() {
            match (entry.name.as_str(), &entry.node.value) {
                ("provider", NodeValue::Table(providers)) => {
                    for entry in providers {
                        self.add_section(entry, SectionKind::Provider, &lines, ledger);
                    }
                }
                ("default", _) => self.add_section(entry, SectionKind::Default, &lines, ledger),
                _ => {
                    let rollup = entry.node.entries().iter().find(|own| own.name == "mx_rollup");
                    let is_domain =
                        rollup.is_some_and(|own| matches!(own.node.value, NodeValue::Bool(false)));
                    let kind = if is_domain { SectionKind::Domain } else { SectionKind::Site };
                    self.add_section(entry, kind, &lines, ledger);
                }
            }
        }
        Ok(())
    }

    fn add_section(
        &mut self,
        entry: &Entry,
        kind: SectionKind,
        lines: &Lines<'_>,
        ledger: &mut Ledger,
    ) {
        let name = &entry.name;
        let NodeValue::Table(entries) = &entry.node.value else {
            let id =
                ledger.add(lines.place(entry.at), "", name, lines.slice(entry.node.span.clone()));
            return ledger.leave(id, "it stands in no section");
        };
        let known = self.at.get(&(kind, name.clone())).copied();
        let at = known.unwrap_or_else(|| {
            self.at.insert((kind, name.clone()), self.all.len());
            if kind == SectionKind::Provider {
                self.providers.push(self.all.len());
            }
            self.all.push(ShapingSection {
                name: name.clone(),
                kind,
                replaces_base: None,
                settings: Vec::new(),
                patterns: Vec::new(),
                rollup: Vec::new(),
                omitted: Vec::new(),
            });
            self.all.len() - 1
        });
        let section = &mut self.all[at];
        // It counts wherever it stands in the section.
        if let Some(own) = entries.iter().find(|own| own.name == "replace_base") {
            let place = lines.place(own.at);
            let text = lines.slice(own.node.span.clone());
            let id = ledger.add(place, &section.scope(), "replace_base", text);
            ledger.express(id);
            if matches!(own.node.value, NodeValue::Bool(true)) {
                if known.is_none() {
                    section.replaces_base = Some(id);
                }
                let why = format!("replace_base in {} drops it", ledger.place_text(place));
                // KumoMTA keeps an earlier provider_max_message_rate.
                let (kept, dropped) = std::mem::take(&mut section.settings)
                    .into_iter()
                    .partition(|setting| setting.name == PROVIDER_RATE);
                section.settings = kept;
                let dropped = Vec::into_iter(dropped).map(|setting: ShapingSetting| setting.id);
                let patterns = section.patterns.drain(..).map(|own| own.id);
                for id in dropped.chain(patterns) {
                    ledger.leave(id, why.clone());
                }
                section.omitted.clear();
            }
        }
        for entry in entries {
            add_entry(entry, lines, ledger, section);
        }
    }
}

fn add_entry(entry: &Entry, lines: &Lines<'_>, ledger: &mut Ledger, section: &mut ShapingSection) {
    let scope = section.scope();
    let place = lines.place(entry.at);
    let text = lines.slice(entry.node.span.clone());
    match (entry.name.as_str(), &entry.node.value) {
        ("replace_base", _) => {}
        ("automation", NodeValue::Array(rules)) => {
            rules.iter().for_each(|rule| add_automation(rule, lines, ledger, &scope));
        }
        // A section in single brackets has one rule.
        ("automation", NodeValue::Table(_)) => {
            add_automation(&entry.node, lines, ledger, &scope);
        }
        ("sources", NodeValue::Table(sources)) => {
            for source in sources {
                let scope = format!("{scope}, source {}", source.name);
                let settings = match &source.node.value {
                    NodeValue::Table(settings) => settings.as_slice(),
                    _ => std::slice::from_ref(source),
                };
                for own in settings {
                    let text = lines.slice(own.node.span.clone());
                    let id = ledger.add(lines.place(own.at), &scope, &own.name, text);
                    ledger.leave(id, "it is for one of several sources; qmail sends from one");
                    let name = own.name.as_str();
                    if OWN.contains(&name) || is_further_limit(name) {
                        let what = format!("{name} of source {}", source.name);
                        section.omit(&what, id, ledger);
                    }
                }
            }
        }
        ("match", NodeValue::Array(patterns)) if section.kind == SectionKind::Provider => {
            for pattern in patterns {
                let text = lines.slice(pattern.span.clone());
                let id = ledger.add(lines.place(pattern.span.start), &scope, "match", text);
                match pattern_of(pattern) {
                    Some((pattern, is_dead)) => {
                        section.patterns.push(ReadPattern { pattern, id, is_dead });
                    }
                    None => {
                        ledger.leave(id, "expected MXSuffix, DomainSuffix or HostName with a text");
                    }
                }
            }
        }
        ("mx_rollup", _) if section.kind != SectionKind::Provider => {
            section.rollup.push(ledger.add(place, &scope, "mx_rollup", text));
        }
        (name, value) => {
            let id = ledger.add(place, &scope, name, text);
            let is_shared = section.kind == SectionKind::Provider && SHARED.contains(&name);
            if OWN.contains(&name) || is_shared {
                match ShapingValue::parse(name, value) {
                    Ok(value) => add_setting(section, name, value, id, ledger),
                    Err(why) => {
                        ledger.leave(id, why);
                        section.omit(name, id, ledger);
                    }
                }
            } else if let Some(why) = reason(name) {
                ledger.leave(id, why);
                if is_further_limit(name) {
                    section.omit(name, id, ledger);
                }
            } else {
                ledger.leave_unrelated(id);
            }
        }
    }
}

fn add_setting(
    section: &mut ShapingSection,
    name: &str,
    value: ShapingValue,
    id: SettingId,
    ledger: &mut Ledger,
) {
    let new = ShapingSetting { name: name.to_string(), value, id };
    let old = section.settings.iter_mut().find(|old| old.name == name);
    match old {
        Some(old) if name != PROVIDER_RATE => {
            let why = "a later setting for the same section takes its place";
            ledger.leave(std::mem::replace(old, new).id, why);
        }
        // KumoMTA takes the first one, and means the last one: here all hold.
        _ => section.settings.push(new),
    }
}

/// One rule of what a reply does. It is one setting: its regex, and what it does.
fn add_automation(rule: &Node, lines: &Lines<'_>, ledger: &mut Ledger, scope: &str) {
    let part = |name: &str| {
        let found = rule.entries().iter().find(|own| own.name == name);
        found.map(|own| lines.slice(own.node.span.clone()))
    };
    let at = rule.entries().first().map_or(rule.span.start, |own| own.at);
    let text = match (part("regex"), part("action")) {
        (Some(regex), Some(action)) => format!("{action} upon {regex}"),
        _ => lines.slice(rule.span.clone()).to_string(),
    };
    let id = ledger.add(lines.place(at), scope, "automation", text);
    ledger.leave_counted(id, AUTOMATION);
}

fn pattern_of(node: &Node) -> Option<(ProviderPattern, bool)> {
    let [own] = node.entries() else { return None };
    let NodeValue::Text(written) = &own.node.value else { return None };
    let text = written.trim_end_matches('.').to_ascii_lowercase();
    let is_dead = text != *written;
    let pattern = match own.name.as_str() {
        _ if text.is_empty() => return None,
        "MXSuffix" => ProviderPattern::MxSuffix(text),
        "DomainSuffix" => ProviderPattern::DomainSuffix(text),
        "HostName" => ProviderPattern::HostName(text),
        _ => return None,
    };
    Some((pattern, is_dead))
}
