//! Which providers a name belongs to: found by its ends, so that a file may have any number of providers.

use std::collections::HashMap;

use super::sections::{ProviderPattern, Sections, ShapingSection};
use crate::gate::import::draft::EXCHANGER;
use crate::gate::text::printable;

/// The most providers that a note names.
const NAMED_MAX: usize = 20;

/// The providers by what they match; each by its number among the providers.
#[derive(Debug)]
pub(super) struct Providers<'a> {
    all: Vec<&'a ShapingSection>,
    domain_suffixes: HashMap<&'a str, Vec<usize>>,
    exchanger_suffixes: HashMap<&'a str, Vec<usize>>,
    exchangers: HashMap<&'a str, Vec<usize>>,
    /// Those by mail exchangers that have limits.
    by_exchangers: Vec<usize>,
}

impl<'a> Providers<'a> {
    pub(super) fn of(sections: &'a Sections) -> Self {
        let mut providers = Self {
            all: sections.providers().collect(),
            domain_suffixes: HashMap::new(),
            exchanger_suffixes: HashMap::new(),
            exchangers: HashMap::new(),
            by_exchangers: Vec::new(),
        };
        for (number, section) in sections.providers().enumerate() {
            for own in section.patterns.iter().filter(|own| !own.is_dead) {
                let (names, name) = match &own.pattern {
                    ProviderPattern::MxSuffix(end) => (&mut providers.exchanger_suffixes, end),
                    ProviderPattern::DomainSuffix(end) => (&mut providers.domain_suffixes, end),
                    ProviderPattern::HostName(name) => (&mut providers.exchangers, name),
                };
                names.entry(name.as_str()).or_default().push(number);
            }
            let is_by_exchangers =
                section.patterns.iter().any(|own| own.pattern.is_of_exchangers());
            if section.has_limits() && is_by_exchangers {
                providers.by_exchangers.push(number);
            }
        }
        providers
    }

    /// All of them, each with its number.
    pub(super) fn all(&self) -> impl Iterator<Item = (usize, &'a ShapingSection)> {
        self.all.iter().copied().enumerate()
    }

    pub(super) fn section(&self, number: usize) -> &'a ShapingSection {
        self.all[number]
    }

    /// The numbers of the providers that have all that the first field of a line is for, and `own`, in their order.
    pub(super) fn matching(&self, subject: &str, own: Option<usize>) -> Vec<usize> {
        let subject = subject.to_ascii_lowercase();
        let (suffixes, name) = match subject.strip_prefix(EXCHANGER) {
            Some(host) => (&self.exchanger_suffixes, host),
            None => (&self.domain_suffixes, subject.as_str()),
        };
        let ends = (0..name.len()).filter_map(|at| name.get(at..)?.into());
        let mut numbers: Vec<usize> =
            ends.filter_map(|end: &str| suffixes.get(end)).flatten().copied().collect();
        if subject.starts_with(EXCHANGER) {
            numbers.extend(self.exchangers.get(name).into_iter().flatten());
        }
        numbers.extend(own);
        numbers.sort_unstable();
        numbers.dedup();
        numbers
    }

    /// The note of a domain that may be under a provider by its mail exchangers, other than `but`.
    pub(super) fn exchangers_note(&self, but: &[usize]) -> Option<String> {
        let others = || self.by_exchangers.iter().filter(|number| !but.contains(number));
        let names: Vec<&str> =
            others().take(NAMED_MAX + 1).map(|&number| self.all[number].name.as_str()).collect();
        if names.is_empty() {
            return None;
        }
        let mut text = printable(names[..names.len().min(NAMED_MAX)].join(", "));
        if names.len() > NAMED_MAX {
            text.push_str(" and others");
        }
        Some(format!(
            "in KumoMTA it counts under the provider of its mail exchangers, too, if that is one of: {text}. If so, \
             give it that group"
        ))
    }
}
