//! KumoMTA's shaping files, in TOML or JSON: the default one, the community's, and an operator's own.
//!
//! For a destination KumoMTA puts together: the section `default`, all providers that match it, the section of a domain
//! with the same mail exchangers, and that of the domain itself if it has `mx_rollup = false`. Of each setting the last
//! one counts, but what begins with `provider_` holds for all domains of a provider together, beside the rest. A line
//! of the table inherits nothing, so each line says all of it. A provider becomes a group with a line for each of its
//! patterns. From the page "Traffic Shaping" of KumoMTA's user guide, and `get_egress_path_config` in
//! `crates/kumo-api-types/src/shaping.rs` at its commit 3ebc1e85 of August 2026. [`sections`] reads the files.

mod providers;
mod sections;
mod tree;

use std::collections::{HashMap, HashSet};

use qpatch_gate::limit::LIMIT_MAX;
use qpatch_gate::literal;
use qpatch_gate::name::is_of_host;
use qpatch_gate::rates::Rates;

use super::draft::{Draft, DraftLine, EXCHANGER, EXCHANGERS, lower_limit, without_repeats};
use super::foreign::ForeignFile;
use super::ledger::{Ledger, SettingId};
use crate::error::Error;
use crate::gate::text::printable;
use providers::Providers;
use sections::{
    CONNECTION_RATE, LIMIT, OWN, PROVIDER_RATE, ProviderPattern, ReadPattern, SHARED, SectionKind,
    Sections, ShapingSection, ShapingSetting, ShapingValue,
};

/// `connection_limit` where no section sets it (`EgressPathConfig::default_connection_limit`).
const CONNECTION_LIMIT: u64 = 32;

const ROLLUP: &str = "mx_rollup: in KumoMTA domains with the same mail exchangers share it; here each has it for itself";

const ROLLUP_HELP: &str = "Where many domains have the same mail exchangers (mx_rollup), add a line mx:EXCHANGER with \
    a group, and give the lines of those domains that group.";

/// Reads the files, in their order, and makes a table of them.
pub(super) fn import(files: &[ForeignFile], ledger: &mut Ledger) -> Result<Draft, Error> {
    let mut sections = Sections::default();
    for file in files {
        sections.add_file(file, ledger)?;
    }
    Ok(draft(&sections, ledger))
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

impl ProviderPattern {
    fn subjects(&self, notes: &mut Vec<String>) -> Vec<String> {
        match self {
            ProviderPattern::MxSuffix(suffix) => suffixes(EXCHANGER, suffix, notes),
            ProviderPattern::DomainSuffix(suffix) => suffixes("", suffix, notes),
            ProviderPattern::HostName(name) => vec![format!("{EXCHANGER}{name}")],
        }
    }

    fn is_of_exchangers(&self) -> bool {
        !matches!(self, ProviderPattern::DomainSuffix(_))
    }
}

/// What holds for a destination, in KumoMTA's order.
#[derive(Clone, Default)]
struct Layers<'a> {
    sections: Vec<&'a ShapingSection>,
}

impl<'a> Layers<'a> {
    fn add(&mut self, section: &'a ShapingSection) {
        let is_own = matches!(section.kind, SectionKind::Site | SectionKind::Domain);
        if is_own && section.replaces_base.is_some() {
            self.sections.clear();
        }
        self.sections.push(section);
    }

    fn providers(&self) -> impl Iterator<Item = &'a ShapingSection> {
        self.sections.iter().copied().filter(|section| section.kind == SectionKind::Provider)
    }

    /// Of each setting the last one, and what all providers say for their domains together.
    fn settings(&self) -> Vec<&'a ShapingSetting> {
        let last = |name: &&str| self.sections.iter().rev().find_map(|section| section.find(name));
        let own = OWN.iter().filter_map(last);
        let is_shared = |setting: &&ShapingSetting| SHARED.contains(&setting.name.as_str());
        let shared = self.providers().flat_map(|section| section.settings.iter().filter(is_shared));
        shared.chain(own).collect()
    }

    /// A line with the lowest limit and all rates, without a name.
    fn line(&self, ledger: &mut Ledger) -> DraftLine {
        let settings = self.settings();
        let limit = |setting: &&&ShapingSetting| match setting.value {
            ShapingValue::Limit(limit) => Some(limit),
            ShapingValue::Rate { .. } => None,
        };
        let lowest = settings.iter().filter(|own| limit(own).is_some()).min_by_key(limit).copied();
        let mut line = DraftLine {
            subjects: Vec::new(),
            limit: lowest.as_ref().and_then(|own| limit(&own)),
            group: None,
            rates: Rates::NONE,
            from: lowest.iter().map(|own| own.id).collect(),
            notes: Vec::new(),
        };
        for setting in &settings {
            match &setting.value {
                ShapingValue::Limit(_) if Some(setting.id) != lowest.map(|own| own.id) => {
                    ledger.leave(setting.id, "a lower limit of the same provider holds");
                }
                ShapingValue::Limit(_) => {}
                ShapingValue::Rate { text, rate, has_burst } => {
                    line.rates = line.rates.lowest(setting.value.rates());
                    line.from.push(setting.id);
                    line.notes.extend(rate.note(text));
                    if *has_burst && rate.rates.has_long() {
                        let note = "max_burst is not said: such a rate may be used up at once";
                        line.notes.push(note.to_string());
                    }
                }
            }
        }
        let has_own = settings.iter().any(|setting| setting.name == LIMIT);
        if !has_own && line.limit.is_none_or(|limit| limit > CONNECTION_LIMIT) {
            line.limit = Some(CONNECTION_LIMIT);
            line.notes.push(format!("KumoMTA's own connection_limit is {CONNECTION_LIMIT}"));
        }
        if let Some(limit) = line.limit.filter(|&limit| limit > u64::from(LIMIT_MAX)) {
            line.limit = Some(u64::from(LIMIT_MAX));
            line.notes.push(format!("{limit} is said as {LIMIT_MAX}, which is stricter"));
        }
        if settings.iter().filter(|setting| setting.name == PROVIDER_RATE).count() > 1 {
            line.notes.push(format!("of several {PROVIDER_RATE} the lowest holds"));
        }
        let omitted = self.sections.iter().flat_map(|section| &section.omitted).cloned();
        let omitted: Vec<String> = omitted.collect();
        if !omitted.is_empty() {
            line.notes.push(format!("limits that are not in it: {}", omitted.join(", ")));
        }
        line
    }
}

/// Whether a name can be a domain of the table.
fn is_domain(name: &str) -> bool {
    literal::bracketed(name.as_bytes()).is_some()
        || (!name.is_empty() && name.bytes().all(is_of_host))
}

fn draft(sections: &Sections, ledger: &mut Ledger) -> Draft {
    let mut draft = Draft::default();
    let mut base = Layers::default();
    let default = sections.find(SectionKind::Default, "default");
    default.into_iter().for_each(|section| base.add(section));
    draft.note(ROLLUP_HELP);
    let mut line = base.line(ledger);
    line.subjects.push(String::new());
    line.notes.push(ROLLUP.to_string());
    draft.lines.push(line);
    for id in default.iter().flat_map(|default| &default.rollup) {
        ledger.leave_unrelated(*id);
    }
    let providers = Providers::of(sections);
    for (number, section) in providers.all() {
        add_provider((number, section), &base, &providers, &mut draft, ledger);
    }
    let mut names = HashSet::new();
    for section in &sections.all {
        let is_own = matches!(section.kind, SectionKind::Site | SectionKind::Domain);
        if is_own && names.insert(section.name.as_str()) {
            add_domain(&section.name, &base, (sections, &providers), &mut draft, ledger);
        }
    }
    if sections.all.iter().any(|section| section.find(CONNECTION_RATE).is_some()) {
        draft.note(
            "A delivery of qmail opens one connection for one message, so a rate of connections (max_connection_rate) \
             limits messages, too. KumoMTA sends many messages over each connection. If mail waits for such a rate, \
             raise it.",
        );
    }
    draft.lines[1..].sort_by_key(|line| line.from.iter().map(|&id| ledger.place(id)).max());
    draft.settle(ledger);
    for id in sections.all.iter().flat_map(|section| &section.settings).map(|setting| setting.id) {
        ledger.leave(id, "another setting takes its place wherever it would count");
    }
    draft
}

fn add_provider(
    (number, section): (usize, &ShapingSection),
    base: &Layers<'_>,
    providers: &Providers<'_>,
    draft: &mut Draft,
    ledger: &mut Ledger,
) {
    if !section.has_limits() {
        let why = "its provider has no limit and no rate, so its domains count one by one";
        return section.patterns.iter().for_each(|own| ledger.leave(own.id, why));
    }
    if section.patterns.is_empty() {
        let own = section.settings.iter();
        return own.for_each(|own| ledger.leave(own.id, "its provider matches nothing"));
    }
    // A line for each set of providers that patterns lie in.
    let mut lines: Vec<DraftLine> = Vec::new();
    let mut line_of: HashMap<(Vec<usize>, bool), usize> = HashMap::new();
    for ReadPattern { pattern, id, is_dead } in &section.patterns {
        let mut notes = Vec::new();
        for subject in pattern.subjects(&mut notes) {
            let matching = providers.matching(&subject, Some(number));
            let at = *line_of.entry((matching, *is_dead)).or_insert_with_key(|(matching, _)| {
                let mut layers = base.clone();
                matching.iter().for_each(|&number| layers.add(providers.section(number)));
                let mut line = layers.line(ledger);
                if *is_dead {
                    let without = base.line(ledger);
                    line.limit = lower_limit(line.limit, without.limit);
                    line.rates = line.rates.lowest(without.rates);
                    line.notes.push(
                        "KumoMTA compares a pattern with names in lower case that end without a dot, so this one \
                         matches nothing there; here it does, with no more than the section default allows"
                            .to_string(),
                    );
                }
                line.group = Some(section.name.clone());
                let others = matching.iter().filter(|other| **other != number);
                let others: Vec<&str> =
                    others.map(|&other| providers.section(other).name.as_str()).collect();
                if !others.is_empty() {
                    line.notes.push(format!(
                        "in KumoMTA it counts under {}, too; here it counts in this group alone",
                        printable(others.join(", "))
                    ));
                }
                lines.push(line);
                lines.len() - 1
            });
            let line = &mut lines[at];
            if !pattern.is_of_exchangers() {
                line.notes.extend(providers.exchangers_note(&[number]));
            }
            if pattern.is_of_exchangers() {
                draft.note(EXCHANGERS);
                draft.note(
                    "KumoMTA counts a domain under a provider if all its mail exchangers match; the gate, if the most \
                     preferred ones do. So a domain with a backup elsewhere has other limits here.",
                );
            }
            line.subjects.push(subject);
            line.from.push(*id);
            line.notes.append(&mut notes);
        }
    }
    for mut line in lines {
        line.from = without_repeats(line.from);
        let mut seen = HashSet::new();
        line.notes.retain(|note| seen.insert(note.clone()));
        if !section.is_shared() || !line.rates.is_none() && section.find(PROVIDER_RATE).is_none() {
            draft.note(
                "A provider is a group here: all its domains share the limit and the rates. In KumoMTA each set of \
                 mail exchangers has what does not begin with provider_ for itself. So the group is stricter; the \
                 parts of a provider can have a group each.",
            );
        }
        draft.lines.push(line);
    }
}

/// The line of a domain with a section of its own.
fn add_domain(
    section_name: &str,
    base: &Layers<'_>,
    (sections, providers): (&Sections, &Providers<'_>),
    draft: &mut Draft,
    ledger: &mut Ledger,
) {
    let kinds = [SectionKind::Site, SectionKind::Domain];
    let own: Vec<_> = kinds.iter().filter_map(|&kind| sections.find(kind, section_name)).collect();
    let rollup: Vec<SettingId> =
        own.iter().flat_map(|section| section.rollup.iter().copied()).collect();
    let name = section_name.trim_end_matches('.');
    let says_something =
        |section: &&ShapingSection| section.has_limits() || section.replaces_base.is_some();
    let why = match () {
        () if !is_domain(name) => Some("its section is not for a domain"),
        () if !own.iter().any(says_something) => {
            Some("its section has no limit and no rate, so it has no line")
        }
        () => None,
    };
    if let Some(why) = why {
        let ids = own.iter().flat_map(|section| section.settings.iter().map(|own| own.id));
        return ids.chain(rollup).for_each(|id| ledger.leave(id, why));
    }
    let mut layers = base.clone();
    let matching = providers.matching(name, None);
    matching.iter().for_each(|&number| layers.add(providers.section(number)));
    own.iter().for_each(|section| layers.add(section));
    let mut line = layers.line(ledger);
    line.subjects.push(name.to_string());
    // What its provider shares, it shares, too.
    let shared: Vec<_> = layers.providers().filter(|provider| provider.is_shared()).collect();
    if let Some((last, others)) = shared.split_last() {
        line.group = Some(last.name.clone());
        for other in others {
            line.notes.push(format!(
                "in KumoMTA it counts under {}, too; here it counts in this group alone",
                printable(&other.name)
            ));
        }
    }
    let replaces_base = own.iter().any(|section| section.replaces_base.is_some());
    if !replaces_base {
        line.notes.extend(providers.exchangers_note(&matching));
    }
    if own.iter().any(|section| section.kind == SectionKind::Site) {
        line.notes.push(ROLLUP.to_string());
        draft.note(ROLLUP_HELP);
    }
    line.from.extend(rollup);
    line.from.extend(own.iter().filter_map(|section| section.replaces_base));
    draft.lines.push(line);
}
