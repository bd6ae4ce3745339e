//! KumoMTA's shaping files, in TOML: the default one, the community's, and an operator's own.
//!
//! Several files are put together as KumoMTA does it: a later setting takes the place of an earlier one, and
//! `replace_base` drops all earlier ones of its section. A section inherits what it does not set from `default`; a line
//! of the table inherits nothing, so each line says all of it. A provider becomes a group with a line for each of its
//! patterns. From the page "Traffic Shaping" of KumoMTA's user guide, and `crates/kumo-api-types/src/shaping.rs` at its
//! commit 3ebc1e85 of August 2026.

use std::ops::Range;

use qpatch_gate::limit::LIMIT_MAX;
use qpatch_gate::literal;
use qpatch_gate::name::is_of_host;
use qpatch_gate::rates::Rates;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::draft::{Draft, DraftLine, EXCHANGERS, group_name};
use super::foreign::ForeignFile;
use super::ledger::{Ledger, Place, SettingId};
use super::rate::{ForeignRate, TableRate};
use crate::error::Error;

/// `connection_limit` where no section sets it (`EgressPathConfig::default_connection_limit`).
const CONNECTION_LIMIT: u64 = 32;

const LIMIT: &str = "connection_limit";
const PROVIDER_LIMIT: &str = "provider_connection_limit";
const PROVIDER_RATE: &str = "provider_max_message_rate";
const MESSAGE_RATE: &str = "max_message_rate";
const CONNECTION_RATE: &str = "max_connection_rate";

/// What a section may say that the table can express.
const EXPRESSIBLE: [&str; 5] =
    [LIMIT, PROVIDER_LIMIT, PROVIDER_RATE, MESSAGE_RATE, CONNECTION_RATE];

const ROLLUP: &str = "In KumoMTA all domains with the same mail exchangers share a limit (mx_rollup). Here a \
     domain has it for itself. \
     Where many domains have the same exchangers, add a line mx:EXCHANGER, and give both lines one group.";

const LOWER: &str = "a lower limit of the same provider holds";

const NO_LIMITS: &str = "its section has no limit and no rate, so it has no line";

/// Why a setting about limits is not expressed; None for one that is about something else.
fn reason(name: &str) -> Option<&'static str> {
    Some(match name {
        "max_deliveries_per_connection" => "qmail-remote sends one message over each connection",
        "max_recipients_per_batch" => "qmail-remote has one recipient for each connection",
        "additional_connection_limits" | "additional_message_rate_throttles" => {
            "a delivery counts under one key, so it cannot have further limits beside it"
        }
        "source_selection_rate" | "additional_source_selection_rates" => {
            "qmail does not choose between sources"
        }
        "consecutive_connection_failures_before_delay" => {
            "the gate pauses a destination by itself; learn in the fourth field turns it on"
        }
        "automation" => AUTOMATION,
        "sources" => "expected a section for each source",
        "match" => "expected a list of patterns, in the section of a provider",
        "max_ready" => "how much mail may wait is not a limit of the gate",
        _ => return None,
    })
}

const AUTOMATION: &str = "what happens after a reply (automation) is no part of the table: with learn in the fourth \
    field a limit follows what the server accepts, and concurrencyreplies(5) is for certain words";

/// What a provider matches.
#[derive(Clone, Debug)]
enum ProviderPattern {
    MxSuffix(String),
    DomainSuffix(String),
    HostName(String),
}

/// A setting that can be expressed.
#[derive(Clone, Debug)]
struct ShapingSetting {
    name: String,
    value: ShapingValue,
    id: SettingId,
}

#[derive(Clone, Debug)]
enum ShapingValue {
    Limit(u64),
    Rate {
        /// As it is written.
        text: String,
        rate: TableRate,
        has_burst: bool,
    },
}

impl ShapingValue {
    /// Reads the value of a setting of [`EXPRESSIBLE`].
    ///
    /// # Errors
    /// Why it cannot be expressed. What is inherited then holds.
    fn parse(name: &str, value: &DeValue<'_>) -> Result<Self, String> {
        let text = match value {
            DeValue::String(text) => text.as_ref(),
            DeValue::Integer(number) if number.radix() == 10 => number.as_str(),
            _ => return Err("expected a text or a number".to_string()),
        };
        // Whether other hosts share it through Redis.
        let text = text.strip_prefix("local:").unwrap_or(text);
        if matches!(name, LIMIT | PROVIDER_LIMIT) {
            let digits: String = text.chars().filter(|sign| !matches!(sign, ',' | '_')).collect();
            return match digits.parse::<u64>() {
                Ok(limit) if limit <= u64::from(LIMIT_MAX) => Ok(ShapingValue::Limit(limit)),
                Ok(_) => Err(format!("a limit of the table is at most {LIMIT_MAX}")),
                Err(_) => Err("expected a number".to_string()),
            };
        }
        // How much may start at once: the table's N/s and N/m are spread evenly, N/h and N/d are not.
        let (text, has_burst) = match text.split_once(",max_burst=") {
            Some((rate, _)) => (rate, true),
            None => (text, false),
        };
        let rate = ForeignRate::parse(text, &[',', '_'])?.in_table();
        Ok(ShapingValue::Rate { text: text.to_string(), rate, has_burst })
    }
}

/// A section, put together from all files.
#[derive(Debug)]
struct ShapingSection {
    name: String,
    kind: SectionKind,
    replaces_base: bool,
    parameters: Vec<ShapingSetting>,
    patterns: Vec<(ProviderPattern, SettingId)>,
    rollup: Option<(bool, SettingId)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum SectionKind {
    Domain,
    Provider,
}

impl ShapingSection {
    fn scope(&self) -> String {
        match self.kind {
            SectionKind::Domain => self.name.clone(),
            SectionKind::Provider => format!("provider {}", self.name),
        }
    }

    fn find(&self, name: &str) -> Option<&ShapingSetting> {
        self.parameters.iter().find(|parameter| parameter.name == name)
    }

    fn has_limits(&self) -> bool {
        EXPRESSIBLE.iter().any(|name| self.find(name).is_some())
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

/// Reads the files, in their order, and makes a table of them.
pub(super) fn import(files: &[ForeignFile], ledger: &mut Ledger) -> Result<Draft, Error> {
    let mut sections: Vec<ShapingSection> = Vec::new();
    for file in files {
        read_file(file, ledger, &mut sections)?;
    }
    Ok(draft(&sections, ledger))
}

fn read_file(
    source: &ForeignFile,
    ledger: &mut Ledger,
    sections: &mut Vec<ShapingSection>,
) -> Result<(), Error> {
    let at_line = |text: &[u8], at: usize| {
        let before = &text[..at.min(text.len())];
        let line = before.iter().filter(|&&byte| byte == b'\n').count() + 1;
        let column = before.iter().rev().take_while(|&&byte| byte != b'\n').count() + 1;
        format!("{}:{line}:{column}", source.name)
    };
    let text = std::str::from_utf8(&source.text).map_err(|error| {
        let place = at_line(&source.text, error.valid_up_to());
        Error::new(
            place,
            "expected UTF-8, as TOML is; found another byte",
            "convert the file with iconv",
        )
    })?;
    let table = DeTable::parse(text).map_err(|error| {
        let place = at_line(&source.text, error.span().map_or(0, |span| span.start));
        let what = format!("expected TOML: {}", error.message().trim_end());
        Error::new(place, what, "mend it, or check it with KumoMTA's validate-shaping")
    })?;
    let file = ledger.add_file(&source.name, &source.text);
    let ends = text.bytes().enumerate().filter(|(_, byte)| *byte == b'\n').map(|(at, _)| at);
    let lines = Lines { text, ends: ends.collect(), file };
    for (name, value) in in_order(table.get_ref()) {
        match (name.get_ref().as_ref(), value.get_ref()) {
            ("provider", DeValue::Table(providers)) => {
                for (name, value) in in_order(providers) {
                    let kind = SectionKind::Provider;
                    add_section(name, value, kind, &lines, ledger, sections);
                }
            }
            _ => add_section(name, value, SectionKind::Domain, &lines, ledger, sections),
        }
    }
    Ok(())
}

type Name<'i> = Spanned<std::borrow::Cow<'i, str>>;
type TomlEntry<'a, 'i> = (&'a Name<'i>, &'a Spanned<DeValue<'i>>);

/// The entries of a table as they stand in the file.
fn in_order<'a, 'i>(table: &'a DeTable<'i>) -> Vec<TomlEntry<'a, 'i>> {
    let mut entries: Vec<TomlEntry<'a, 'i>> = table.iter().collect();
    entries.sort_by_key(|(name, _)| name.span().start);
    entries
}

fn add_section(
    name: &Name<'_>,
    value: &Spanned<DeValue<'_>>,
    kind: SectionKind,
    lines: &Lines<'_>,
    ledger: &mut Ledger,
    sections: &mut Vec<ShapingSection>,
) {
    let text = name.get_ref().as_ref();
    let DeValue::Table(table) = value.get_ref() else {
        let place = lines.place(name.span().start);
        let id = ledger.add(place, "", text, lines.slice(value.span()));
        return ledger.leave(id, "it stands in no section");
    };
    let at = sections.iter().position(|section| section.kind == kind && section.name == text);
    let at = at.unwrap_or_else(|| {
        sections.push(ShapingSection {
            name: text.to_string(),
            kind,
            replaces_base: false,
            parameters: Vec::new(),
            patterns: Vec::new(),
            rollup: None,
        });
        sections.len() - 1
    });
    let section = &mut sections[at];
    let entries = in_order(table);
    // It counts wherever it stands in the section.
    if let Some((name, value)) = entries.iter().find(|(name, _)| name.get_ref() == "replace_base") {
        let place = lines.place(name.span().start);
        let id = ledger.add(place, &section.scope(), "replace_base", lines.slice(value.span()));
        ledger.express(id);
        if value.get_ref().as_bool() == Some(true) {
            let why = format!("replace_base in {} drops it", ledger.place_text(place));
            let dropped = section.parameters.drain(..).map(|parameter| parameter.id);
            let dropped = dropped.chain(section.patterns.drain(..).map(|(_, id)| id));
            dropped
                .chain(section.rollup.take().map(|(_, id)| id))
                .for_each(|id| ledger.leave(id, why.clone()));
            section.replaces_base = true;
        }
    }
    for (name, value) in entries {
        add_entry(name, value, lines, ledger, section);
    }
}

fn add_entry(
    name: &Name<'_>,
    value: &Spanned<DeValue<'_>>,
    lines: &Lines<'_>,
    ledger: &mut Ledger,
    section: &mut ShapingSection,
) {
    let scope = section.scope();
    let place = lines.place(name.span().start);
    let text = lines.slice(value.span());
    match (name.get_ref().as_ref(), value.get_ref()) {
        ("replace_base", _) => {}
        ("automation", DeValue::Array(rules)) => {
            for rule in rules.iter() {
                add_automation(rule, lines, ledger, &scope);
            }
        }
        // A section in single brackets has one rule.
        ("automation", DeValue::Table(_)) => add_automation(value, lines, ledger, &scope),
        ("sources", DeValue::Table(sources)) => {
            for (source, value) in in_order(sources) {
                let scope = format!("{scope}, source {}", source.get_ref());
                let settings = match value.get_ref() {
                    DeValue::Table(table) => in_order(table),
                    _ => vec![(source, value)],
                };
                for (name, value) in settings {
                    let place = lines.place(name.span().start);
                    let id = ledger.add(place, &scope, name.get_ref(), lines.slice(value.span()));
                    ledger.leave(id, "it is for one of several sources; qmail sends from one");
                }
            }
        }
        ("match", DeValue::Array(patterns)) if section.kind == SectionKind::Provider => {
            for pattern in patterns.iter() {
                let place = lines.place(pattern.span().start);
                let id = ledger.add(place, &scope, "match", lines.slice(pattern.span()));
                match pattern_of(pattern.get_ref()) {
                    Some(pattern) => section.patterns.push((pattern, id)),
                    None => {
                        ledger.leave(id, "expected MXSuffix, DomainSuffix or HostName with a text");
                    }
                }
            }
        }
        ("mx_rollup", value) if section.kind == SectionKind::Domain => {
            let id = ledger.add(place, &scope, "mx_rollup", text);
            section.rollup = Some((value.as_bool().unwrap_or(true), id));
        }
        (name, value) => {
            let id = ledger.add(place, &scope, name, text);
            if EXPRESSIBLE.contains(&name) {
                let value = match ShapingValue::parse(name, value) {
                    Ok(value) => value,
                    Err(why) => return ledger.leave(id, why),
                };
                let new = ShapingSetting { name: name.to_string(), value, id };
                match section.parameters.iter_mut().find(|old| old.name == name) {
                    Some(old) => {
                        let why = "a later setting for the same section takes its place";
                        ledger.leave(std::mem::replace(old, new).id, why);
                    }
                    None => section.parameters.push(new),
                }
            } else if let Some(why) = reason(name) {
                ledger.leave(id, why);
            } else {
                ledger.leave_unrelated(id);
            }
        }
    }
}

/// One rule of what a reply does. It is one setting: its regex, and what it does.
fn add_automation(
    rule: &Spanned<DeValue<'_>>,
    lines: &Lines<'_>,
    ledger: &mut Ledger,
    scope: &str,
) {
    let empty = DeTable::new();
    let table = rule.get_ref().as_table().unwrap_or(&empty);
    let entries = in_order(table);
    let part = |name: &str| {
        let found = entries.iter().find(|(key, _)| key.get_ref() == name);
        found.map(|(_, value)| lines.slice(value.span()))
    };
    let at = entries.first().map_or(rule.span().start, |(name, _)| name.span().start);
    let text = match (part("regex"), part("action")) {
        (Some(regex), Some(action)) => format!("{action} upon {regex}"),
        _ => lines.slice(rule.span()).to_string(),
    };
    let id = ledger.add(lines.place(at), scope, "automation", text);
    ledger.leave_counted(id, AUTOMATION);
}

fn pattern_of(value: &DeValue<'_>) -> Option<ProviderPattern> {
    let table = value.as_table()?;
    let (name, value) = table.iter().next().filter(|_| table.len() == 1)?;
    let text = value.get_ref().as_str()?.trim_end_matches('.').to_string();
    match name.get_ref().as_ref() {
        _ if text.is_empty() => None,
        "MXSuffix" => Some(ProviderPattern::MxSuffix(text)),
        "DomainSuffix" => Some(ProviderPattern::DomainSuffix(text)),
        "HostName" => Some(ProviderPattern::HostName(text)),
        _ => None,
    }
}

/// A suffix that does not begin with a dot is that name itself, and the names below it.
fn suffixes(before: &str, suffix: &str, notes: &mut Vec<String>) -> Vec<String> {
    if suffix.starts_with('.') {
        return vec![format!("{before}{suffix}")];
    }
    notes.push(format!(
        "KumoMTA takes {suffix} for the end of any name; here it is {suffix} itself and the names below it"
    ));
    vec![format!("{before}{suffix}"), format!("{before}.{suffix}")]
}

/// The limits and rates of a line, as they are found.
struct SectionCap {
    limit: Option<u64>,
    limit_from: Option<SettingId>,
    rates: Rates,
    from: Vec<SettingId>,
    notes: Vec<String>,
}

impl SectionCap {
    fn add(&mut self, parameter: &ShapingSetting, ledger: &mut Ledger) {
        match &parameter.value {
            // The provider's own comes last.
            ShapingValue::Limit(limit) if self.limit.is_none_or(|other| *limit <= other) => {
                self.limit = Some(*limit);
                if let Some(higher) = self.limit_from.replace(parameter.id) {
                    ledger.leave(higher, LOWER);
                }
            }
            ShapingValue::Limit(_) => ledger.leave(parameter.id, LOWER),
            ShapingValue::Rate { text, rate, has_burst } => {
                self.rates = self.rates.lowest(rate.rates);
                self.from.push(parameter.id);
                self.notes.extend(rate.note(text));
                if *has_burst && rate.rates.has_long() {
                    let note = "max_burst is not said: such a rate may be used up at once";
                    self.notes.push(note.to_string());
                }
            }
        }
    }
}

/// What holds for a section: of each name the setting of the last of these sections that has it.
fn effective<'a>(layers: &[&'a ShapingSection]) -> Vec<&'a ShapingSetting> {
    let of = |name: &&str| layers.iter().rev().find_map(|section| section.find(name));
    EXPRESSIBLE.iter().filter_map(of).collect()
}

fn cap(parameters: &[&ShapingSetting], ledger: &mut Ledger) -> SectionCap {
    let mut cap = SectionCap {
        limit: None,
        limit_from: None,
        rates: Rates::NONE,
        from: Vec::new(),
        notes: Vec::new(),
    };
    parameters.iter().for_each(|parameter| cap.add(parameter, ledger));
    let has_own = |name| parameters.iter().any(|parameter| parameter.name == name);
    cap.from.splice(0..0, cap.limit_from);
    if !has_own(LIMIT) && cap.limit.is_none_or(|limit| limit > CONNECTION_LIMIT) {
        cap.limit = Some(CONNECTION_LIMIT);
        let note = format!("KumoMTA's own connection_limit is {CONNECTION_LIMIT}");
        cap.notes.push(note);
    }
    cap
}

/// Whether a name can be a domain of the table.
fn is_domain(name: &str) -> bool {
    literal::bracketed(name.as_bytes()).is_some()
        || (!name.is_empty() && name.bytes().all(is_of_host))
}

fn draft(sections: &[ShapingSection], ledger: &mut Ledger) -> Draft {
    let mut draft = Draft::default();
    let is_default = |section: &ShapingSection| {
        section.kind == SectionKind::Domain && section.name.eq_ignore_ascii_case("default")
    };
    let default = sections.iter().find(|section| is_default(section));
    let base: Vec<&ShapingSection> = default.into_iter().collect();
    let SectionCap { limit, rates, from, notes, .. } = cap(&effective(&base), ledger);
    draft.note(ROLLUP);
    draft.lines.push(DraftLine {
        subjects: vec![String::new()],
        limit,
        group: None,
        rates,
        from,
        notes,
    });
    if let Some((_, id)) = default.and_then(|default| default.rollup) {
        ledger.leave_unrelated(id);
    }
    for section in sections.iter().filter(|section| !is_default(section)) {
        let mut layers = if section.replaces_base { Vec::new() } else { base.clone() };
        match section.kind {
            SectionKind::Provider => add_provider(section, &mut layers, &mut draft, ledger),
            SectionKind::Domain => add_domain(section, &mut layers, sections, &mut draft, ledger),
        }
    }
    if sections.iter().any(|section| section.find(CONNECTION_RATE).is_some()) {
        draft.note(
            "A delivery of qmail opens one connection for one message, so a rate of connections (max_connection_rate) \
             limits messages, too. KumoMTA sends many messages over each connection. If mail waits for such a rate, \
             raise it.",
        );
    }
    draft.lines[1..].sort_by_key(|line| line.from.iter().map(|&id| ledger.place(id)).max());
    draft.settle(ledger);
    draft
}

fn add_provider<'a>(
    section: &'a ShapingSection,
    layers: &mut Vec<&'a ShapingSection>,
    draft: &mut Draft,
    ledger: &mut Ledger,
) {
    if !section.has_limits() {
        let why = "its provider has no limit and no rate, so its domains count one by one";
        return section.patterns.iter().for_each(|&(_, id)| ledger.leave(id, why));
    }
    layers.push(section);
    let mut cap = cap(&effective(layers), ledger);
    let mut subjects = Vec::new();
    for (pattern, id) in &section.patterns {
        cap.from.push(*id);
        subjects.extend(match pattern {
            ProviderPattern::MxSuffix(suffix) => suffixes("mx:", suffix, &mut cap.notes),
            ProviderPattern::DomainSuffix(suffix) => suffixes("", suffix, &mut cap.notes),
            ProviderPattern::HostName(name) => vec![format!("mx:{name}")],
        });
    }
    if subjects.is_empty() {
        let own = section.parameters.iter();
        return own.for_each(|own| ledger.leave(own.id, "its provider matches nothing"));
    }
    if subjects.iter().any(|subject| subject.starts_with("mx:")) {
        draft.note(EXCHANGERS);
    }
    let shared = |name| section.find(name).is_some();
    if !shared(PROVIDER_LIMIT) || !shared(PROVIDER_RATE) && !cap.rates.is_none() {
        draft.note(
            "A provider is a group here: all its domains share the limit and the rates. In KumoMTA each set of mail \
             exchangers has what does not begin with provider_ for itself. So the group is stricter; the parts of a \
             provider can have a group each.",
        );
    }
    let group = Some(group_name(&section.name));
    let SectionCap { limit, rates, from, notes, .. } = cap;
    draft.lines.push(DraftLine { subjects, limit, group, rates, from, notes });
}

fn add_domain<'a>(
    section: &'a ShapingSection,
    layers: &mut Vec<&'a ShapingSection>,
    sections: &'a [ShapingSection],
    draft: &mut Draft,
    ledger: &mut Ledger,
) {
    let name = section.name.trim_end_matches('.');
    let why = if is_domain(name) { NO_LIMITS } else { "its section is not for a domain" };
    if why != NO_LIMITS || !section.has_limits() {
        let own = section.parameters.iter().map(|parameter| parameter.id);
        return own.chain(section.rollup.map(|(_, id)| id)).for_each(|id| ledger.leave(id, why));
    }
    let mut notes = Vec::new();
    let ends = |pattern: &ProviderPattern| match pattern {
        ProviderPattern::DomainSuffix(suffix) => {
            name.to_ascii_lowercase().ends_with(&suffix.to_ascii_lowercase())
        }
        _ => false,
    };
    for provider in sections.iter().filter(|section| section.kind == SectionKind::Provider) {
        if provider.patterns.iter().any(|(pattern, _)| ends(pattern)) && !section.replaces_base {
            layers.push(provider);
            notes.push(format!(
                "in KumoMTA it also counts under the provider {}; here it counts by itself",
                provider.name
            ));
        }
    }
    layers.push(section);
    let mut cap = cap(&effective(layers), ledger);
    match section.rollup {
        Some((false, id)) => cap.from.push(id),
        rollup => {
            if let Some((_, id)) = rollup {
                ledger.leave(
                    id,
                    "the table does not know which domains have the same mail exchangers",
                );
            }
            draft.note(ROLLUP);
        }
    }
    cap.notes.append(&mut notes);
    let SectionCap { limit, rates, from, notes, .. } = cap;
    let subjects = vec![name.to_string()];
    draft.lines.push(DraftLine { subjects, limit, group: None, rates, from, notes });
}
