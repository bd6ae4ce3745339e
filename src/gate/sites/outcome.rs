//! The result of a run: what changes in the map, as a table and as JSON.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::io::{self, Write};

use qpatch_gate::name::NAME_MAX;
use serde::Serialize;

use super::exchangers::{Query, is_name};
use super::map::MapEntry;
use super::membership::Membership;
use crate::date;
use crate::gate::text::printable;
use crate::output::{Side, count, table};

/// The most domains in the map.
pub(super) const DOMAINS_MAX: usize = 100_000;
/// The most rows of the printed table.
const ROWS_MAX: usize = 1000;

/// Why a domain is not looked up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NotAsked {
    /// This line of concurrencydomains names it, or its relay.
    Line(u32),
    /// Its relay is looked up instead.
    Route(u32),
    /// No mail to it has been seen since this day.
    Unseen(i64),
}

/// The result of a run.
#[derive(Debug, Default, Serialize)]
pub struct SitesOutcome {
    pub(super) file: String,
    pub(super) dry_run: bool,
    pub(super) written: bool,
    /// How many domains the map has now, or would have.
    pub(super) domains: u64,
    pub(super) asked: u64,
    pub(super) answered: u64,
    /// How many names were answered and are at no site.
    pub(super) elsewhere: u64,
    pub(super) added: Vec<MapChange>,
    pub(super) changed: Vec<MapChange>,
    pub(super) removed: Vec<MapChange>,
    /// Not answered; they stay as they were.
    pub(super) kept: Vec<MapChange>,
    /// Not answered, and not in the map.
    pub(super) unknown: Vec<MapChange>,
    pub(super) notes: Vec<String>,
}

impl SitesOutcome {
    /// How many domains the map has now, or would have.
    #[must_use]
    pub fn domains(&self) -> u64 {
        self.domains
    }
}

/// What changes for a domain.
#[derive(Debug, Serialize)]
pub(super) struct MapChange {
    domain: String,
    /// Its group now.
    #[serde(skip_serializing_if = "Option::is_none")]
    group: Option<String>,
    /// Its group until now.
    #[serde(skip_serializing_if = "Option::is_none")]
    was: Option<String>,
    because: String,
}

impl SitesOutcome {
    /// Sorts the answers into the lists of changes, and returns the new map.
    pub(super) fn compare(
        &mut self,
        old: &BTreeMap<String, MapEntry>,
        list: &[(String, Query)],
        found: Vec<Membership>,
        not_asked: &HashMap<&str, NotAsked>,
    ) -> BTreeMap<String, MapEntry> {
        let mut new = BTreeMap::new();
        let seen_of = |name: &str| old.get(name).map_or(0, |mapped| mapped.seen);
        for ((name, _), found) in list.iter().zip(found) {
            let was = old.get(name).map(|mapped| &mapped.group);
            let (group, because) = match found {
                Membership::Unanswered(why) => {
                    let change = MapChange {
                        domain: name.clone(),
                        group: was.cloned(),
                        was: None,
                        because: printable(&why),
                    };
                    match was {
                        Some(was) => {
                            let kept = MapEntry { group: was.clone(), seen: seen_of(name) };
                            new.insert(name.clone(), kept);
                            self.kept.push(change);
                        }
                        None => self.unknown.push(change),
                    }
                    continue;
                }
                Membership::Elsewhere(because) => (None, because),
                Membership::At(group, because) => (Some(group), because),
            };
            // The gate does not read groups with longer names.
            let group = group.filter(|group| group.len() <= NAME_MAX);
            let change = |group: Option<&String>, was: Option<&String>| MapChange {
                domain: name.clone(),
                group: group.cloned(),
                was: was.cloned(),
                because: because.clone(),
            };
            match (&group, was) {
                (None, None) => self.elsewhere += 1,
                (None, was) => {
                    self.elsewhere += 1;
                    self.removed.push(change(None, was));
                }
                (now, None) => self.added.push(change(now.as_ref(), None)),
                (Some(now), Some(was)) if now.eq_ignore_ascii_case(was) => {}
                (now, was) => self.changed.push(change(now.as_ref(), was)),
            }
            if let Some(group) = group {
                new.insert(name.clone(), MapEntry { group, seen: seen_of(name) });
            }
        }
        let asked: HashSet<&str> = list.iter().map(|(name, _)| name.as_str()).collect();
        for (name, was) in old.iter().filter(|(name, _)| !asked.contains(name.as_str())) {
            let because = match not_asked.get(name.as_str()) {
                Some(NotAsked::Line(line)) => format!("concurrencydomains:{line} names it"),
                Some(NotAsked::Route(line)) => format!("smtproutes:{line} sends it to a relay"),
                Some(NotAsked::Unseen(day)) => format!("not seen since {}", date::iso(*day)),
                None if is_name(name) => {
                    // There were too many names, so this one was left out.
                    new.insert(name.clone(), was.clone());
                    continue;
                }
                None => "DNS cannot have such a name".to_string(),
            };
            let (domain, was) = (name.clone(), Some(was.group.clone()));
            self.removed.push(MapChange { domain, group: None, was, because });
        }
        let lists = [&mut self.added, &mut self.changed, &mut self.removed];
        for list in lists.into_iter().chain([&mut self.kept, &mut self.unknown]) {
            list.sort_by(|a, b| a.domain.cmp(&b.domain));
        }
        new
    }

    /// Keeps the [`DOMAINS_MAX`] domains that were seen last.
    pub(super) fn bound(
        &mut self,
        new: &mut BTreeMap<String, MapEntry>,
        old: &BTreeMap<String, MapEntry>,
    ) {
        let Some(more) = new.len().checked_sub(DOMAINS_MAX).filter(|&more| more > 0) else {
            return;
        };
        let mut days: Vec<i64> = new.values().map(|mapped| mapped.seen).collect();
        days.sort_unstable();
        let oldest = days[more - 1];
        // Of the domains last seen on day `oldest`, only those for which there is no room go, new ones first.
        let mut at_oldest = more - days.partition_point(|&day| day < oldest);
        let mut goes: HashSet<String> = HashSet::new();
        for is_known in [false, true] {
            for (name, mapped) in &*new {
                let leaves = mapped.seen < oldest || (mapped.seen == oldest && at_oldest > 0);
                if leaves && old.contains_key(name) == is_known && goes.insert(name.clone()) {
                    at_oldest -= usize::from(mapped.seen == oldest);
                }
            }
        }
        new.retain(|name, _| !goes.contains(name));
        self.added.retain(|change| !goes.contains(&change.domain));
        let more = count(goes.len() as u64, "domain");
        self.notes.push(format!("{more} left out: the map has at most {DOMAINS_MAX}"));
    }

    pub(super) fn table(&self, out: &mut dyn Write) -> io::Result<()> {
        let mut rows = Vec::new();
        for (what, list) in [
            ("added", &self.added),
            ("changed", &self.changed),
            ("removed", &self.removed),
            ("kept", &self.kept),
            ("unknown", &self.unknown),
        ] {
            rows.extend(list.iter().map(|change| {
                let was = change.was.as_ref().map(|was| format!("; was {}", printable(was)));
                [
                    what.to_string(),
                    printable(&change.domain),
                    change.group.as_ref().map_or("-".to_string(), printable),
                    format!("{}{}", change.because, was.unwrap_or_default()),
                ]
            }));
        }
        let more = rows.len().saturating_sub(ROWS_MAX);
        rows.truncate(ROWS_MAX);
        if !rows.is_empty() {
            let columns = [
                ("CHANGE", Side::Left),
                ("DOMAIN", Side::Left),
                ("SITE", Side::Left),
                ("BECAUSE", Side::Left),
            ];
            table(out, columns, &rows)?;
            if more > 0 {
                writeln!(out, "and {more} more; --format json has all")?;
            }
            writeln!(out)?;
        }
        for note in &self.notes {
            writeln!(out, "note: {note}")?;
        }
        if self.asked > 0 {
            writeln!(
                out,
                "{} looked up: {} answered, of which {} at no site; {} not answered",
                count(self.asked, "name"),
                self.answered,
                self.elsewhere,
                self.asked - self.answered
            )?;
        }
        let changes = self.added.len() + self.changed.len() + self.removed.len();
        let done = match (changes, self.written) {
            (_, true) => "written",
            (0, false) => "nothing changed",
            (_, false) => "not written (--dry-run)",
        };
        writeln!(
            out,
            "{}: {}, {} added, {} changed, {} removed; {done}",
            self.file,
            count(self.domains, "domain"),
            self.added.len(),
            self.changed.len(),
            self.removed.len()
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_map_keeps_the_domains_that_were_seen_last() {
        let entry = |day: i64| MapEntry { group: "g".to_string(), seen: day };
        let all = DOMAINS_MAX + 10;
        let mut new: BTreeMap<_, _> = (0..all)
            .map(|at| (format!("d{at:07}.example"), entry(if at < 4 { 1 } else { 2 })))
            .collect();
        let mut old = new.clone();
        // These domains of the second day are new.
        for at in all - 3..all {
            old.remove(&format!("d{at:07}.example"));
        }
        let mut outcome = SitesOutcome::default();
        outcome.bound(&mut new, &old);
        assert_eq!(new.len(), DOMAINS_MAX);
        let has = |at: usize| new.contains_key(&format!("d{at:07}.example"));
        assert!(!(0..4).any(has) && !(all - 3..all).any(has) && !(4..7).any(has));
        assert!((7..all - 3).all(has));
        assert_eq!(outcome.notes, ["10 domains left out: the map has at most 100000"]);
        outcome.bound(&mut new, &old);
        assert_eq!((new.len(), outcome.notes.len()), (DOMAINS_MAX, 1));
    }
}
