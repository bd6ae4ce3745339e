//! PowerMTA's configuration: `<domain>` blocks, `domain-macro`, `queue-to`, virtual MTAs, and rollups by mail exchanger.
//!
//! A name has the settings that [`blocks`] finds for it. The domains that `queue-to` sends to one queue, and those that
//! `mx PATTERN QUEUE` sends there, become a group with that queue's settings. Qmail sends from one address and has no
//! virtual MTAs, so of what their blocks and those outside say the lowest holds. PowerMTA's documentation is not public;
//! what the directives mean here is in docs/import.md. [`reader`] reads the files.

mod blocks;
mod reader;

use std::collections::{HashMap, HashSet};

use super::draft::{Draft, DraftLine, EXCHANGER, EXCHANGERS, without_repeats};
use super::foreign::ForeignFile;
use super::ledger::{Ledger, SettingId};
use super::subject::Subject;
use crate::error::Error;
use crate::gate::text::printable;
use blocks::NamePattern;
pub(super) use reader::includes;
use reader::{Configuration, Reader};

/// The most names times virtual MTAs.
const LOOK_UPS_MAX: usize = 10_000_000;

/// Reads the files as one configuration, and makes a table of it.
pub(super) fn import(files: &[ForeignFile], ledger: &mut Ledger) -> Result<Draft, Error> {
    let configuration = Reader::read(files, ledger)?;
    let (scopes, names) = (configuration.blocks.scopes.len(), configuration.patterns.len());
    if scopes.saturating_mul(names) > LOOK_UPS_MAX {
        let place = configuration.last_virtual_mta.map(|place| ledger.place_text(place));
        return Err(Error::new(
            place.unwrap_or_default(),
            format!("{} virtual MTAs and {names} names of domains are too much", scopes - 1),
            "leave virtual MTAs with the same blocks out of a copy of the file",
        ));
    }
    Ok(draft(&configuration, ledger))
}

/// The lines of queues, in the order in which the queues first come.
struct Queues<'a> {
    configuration: &'a Configuration,
    lines: HashMap<String, usize>,
}

impl Queues<'_> {
    fn add(
        &mut self,
        queue: &str,
        subjects: Vec<String>,
        from: Vec<SettingId>,
        draft: &mut Draft,
        ledger: &Ledger,
    ) {
        let at = *self.lines.entry(queue.to_string()).or_insert_with(|| {
            let subject = Subject::Name(queue.to_string());
            let line = self.configuration.blocks.line(&subject, ledger);
            draft.lines.push(DraftLine { group: Some(queue.to_string()), ..line });
            draft.lines.len() - 1
        });
        draft.lines[at].subjects.extend(subjects);
        draft.lines[at].from.extend(from);
    }
}

/// The note at a domain that may count in the queue of its mail exchangers.
fn rollups_note(configuration: &Configuration) -> Option<String> {
    let mut seen = HashSet::new();
    let queues = configuration.rollups.iter().map(|rollup| rollup.queue.as_str());
    let queues: Vec<&str> = queues.filter(|queue| seen.insert(*queue)).collect();
    (!queues.is_empty()).then(|| {
        format!(
            "in PowerMTA it counts in the queue of its mail exchangers, if an mx line has them: {}. If so, give it that \
             group",
            printable(queues.join(", "))
        )
    })
}

fn draft(configuration: &Configuration, ledger: &mut Ledger) -> Draft {
    let mut draft = Draft::default();
    let blocks = &configuration.blocks;
    let (queue, from) = blocks.queue(&Subject::All);
    let mut default = match queue {
        None => blocks.line(&Subject::All, ledger),
        Some(queue) => {
            let group = Some(queue.clone());
            DraftLine { group, ..blocks.line(&Subject::Name(queue), ledger) }
        }
    };
    if !configuration.unsayable.is_empty() {
        default.notes.push(format!(
            "these have no line, so what they match has this one, or that of another name: {}",
            configuration.unsayable.join(", ")
        ));
    }
    default.subjects.push(String::new());
    default.from.extend(from);
    draft.lines.push(default);
    let mut queues = Queues { configuration, lines: HashMap::new() };
    let mut seen = HashSet::new();
    let of_rollups = rollups_note(configuration);
    for pattern in &configuration.patterns {
        // The block of a queue is no line; its settings are in the lines of those whose mail goes there.
        if matches!(pattern, NamePattern::Name(name) if blocks.is_only_queue(name)) {
            continue;
        }
        for subject in pattern.subjects() {
            if subject == Subject::All || !seen.insert(subject.clone()) {
                continue;
            }
            let text = subject.text();
            let (queue, from) = blocks.queue(&subject);
            match queue.or_else(|| blocks.targets.contains(&text).then(|| text.clone())) {
                Some(queue) => queues.add(&queue, vec![text], from, &mut draft, ledger),
                None => {
                    let mut line = blocks.line(&subject, ledger);
                    line.subjects.push(text);
                    line.notes.extend(of_rollups.clone());
                    draft.lines.push(line);
                }
            }
        }
    }
    for rollup in &configuration.rollups {
        let (queue, mut from) = blocks.queue(&Subject::Name(rollup.queue.clone()));
        from.push(rollup.id);
        let queue = queue.unwrap_or_else(|| rollup.queue.clone());
        let subjects = rollup.exchanger.subjects();
        let subjects = subjects.iter().map(|own| format!("{EXCHANGER}{}", own.text())).collect();
        draft.note(EXCHANGERS);
        queues.add(&queue, subjects, from, &mut draft, ledger);
    }
    for line in &mut draft.lines {
        line.from = without_repeats(std::mem::take(&mut line.from));
    }
    if blocks.directives.iter().any(|own| own.name.ends_with("max-connect-rate")) {
        draft.note(
            "A delivery of qmail opens one connection for one message, so a rate of connections (max-connect-rate) \
             limits messages, too. If mail waits for such a rate, raise it.",
        );
    }
    for name in &configuration.unread {
        draft.note(&format!(
            "The included file {name} was not read. What it says counts in PowerMTA, and may be less than any line here \
             allows."
        ));
    }
    draft.settle(ledger);
    for (index, directive) in blocks.directives.iter().enumerate() {
        if ledger.is_unread(directive.id) {
            ledger.leave(directive.id, blocks.unused(index));
        }
    }
    draft
}
