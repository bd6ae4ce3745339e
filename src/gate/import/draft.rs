//! The table that an import makes: its lines, each with the settings that it comes from.
//!
//! A line that the gate's own parser refuses is not in the table; its settings are left with the parser's words. So
//! `qpatch gate check` accepts what is written.

use std::collections::HashMap;
use std::io::{self, Write};

use qpatch_gate::name::Hasher;
use qpatch_gate::problem::{Kind, Problem, Severity};
use qpatch_gate::rates::Rates;
use qpatch_gate::table::{GROUP_MAX, Table};

use super::ledger::{Counts, Ledger, SettingId};
use crate::gate::advice::meaning;
use crate::gate::text::printable;
use crate::output::count;

/// Lines of the table that say the same of several names.
#[derive(Clone, Debug)]
pub(super) struct DraftLine {
    /// The first fields: `gmail.com`, `.example.com`, `mx:.google.com`, or nothing for the default.
    pub(super) subjects: Vec<String>,
    /// None: no limit.
    pub(super) limit: Option<u64>,
    pub(super) group: Option<String>,
    pub(super) rates: Rates,
    /// The settings that it expresses.
    pub(super) from: Vec<SettingId>,
    /// What the reader of the table should know about it.
    pub(super) notes: Vec<String>,
}

impl DraftLine {
    fn content(&self, subject: &str) -> String {
        let limit = self.limit.map_or_else(String::new, |limit| limit.to_string());
        let group = self.group.as_deref().unwrap_or_default();
        let rates = self.rates.to_string();
        match (group, rates.as_str()) {
            ("", "") => format!("{subject}:{limit}"),
            (group, "") => format!("{subject}:{limit}:{group}"),
            (group, rates) => format!("{subject}:{limit}:{group}:{rates}"),
        }
    }
}

/// A group's name for a name of another mail server: printable, without a colon, at most as long as the gate takes.
pub(super) fn group_name(name: &str) -> String {
    let mut group: String = name
        .chars()
        .map(|sign| if sign.is_ascii_graphic() && sign != ':' { sign } else { '-' })
        .collect();
    group.truncate(GROUP_MAX);
    if group.is_empty() { "unnamed".to_string() } else { group }
}

/// The table.
#[derive(Debug, Default)]
pub(super) struct Draft {
    pub(super) lines: Vec<DraftLine>,
    /// What holds for the whole table.
    pub(super) notes: Vec<String>,
}

/// What to do with lines that begin with `mx:`.
pub(super) const EXCHANGERS: &str = "Lines with mx: are for the domains whose mail exchangers match. Let cron run qpatch \
     gate sites QMAILHOME, which \
     looks them up.";

/// Why a line is not in the table.
fn refusal(content: &str) -> Option<String> {
    let Ok((_, problems)) = Table::parse(content.as_bytes(), Hasher::new(1)) else {
        return Some("there is not enough memory".to_string());
    };
    // A name that begins with # would be a comment.
    if content.starts_with('#') || !content.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Some("this is no domain; one that is not ASCII is written as xn--...".to_string());
    }
    // Words for all domains and stars are only warned about in a table, but here no domain was meant by them.
    let is_refused = |problem: &Problem| {
        let is_pattern =
            matches!(problem.kind, Kind::DomainAll | Kind::DomainStar | Kind::ExchangerAll);
        problem.severity() == Severity::Error || is_pattern
    };
    let errors = problems.iter().find(is_refused);
    errors.map(|problem| meaning(problem.kind))
}

impl Draft {
    /// Says something of the whole table once.
    pub(super) fn note(&mut self, note: &str) {
        if self.notes.iter().all(|other| other != note) {
            self.notes.push(note.to_string());
        }
    }

    /// Takes out what the gate would not take, and of several lines for one name all but the last. Marks the settings
    /// of the other lines as expressed.
    pub(super) fn settle(&mut self, ledger: &mut Ledger) {
        let mut last = HashMap::new();
        for (at, line) in self.lines.iter().enumerate() {
            for subject in &line.subjects {
                last.insert(subject.to_ascii_lowercase(), at);
            }
        }
        let lines = std::mem::take(&mut self.lines);
        let mut reasons: Vec<(SettingId, String)> = Vec::new();
        for (at, mut line) in lines.into_iter().enumerate() {
            let mut why = String::new();
            let subjects = std::mem::take(&mut line.subjects);
            for subject in subjects {
                let content = line.content(&subject);
                if let Some(refusal) = refusal(&content) {
                    why = format!(
                        "the table cannot have the line {}: {refusal}",
                        printable(&content)
                    );
                } else if last[&subject.to_ascii_lowercase()] != at {
                    why = format!("a later setting for {} takes its place", printable(&subject));
                } else if !line.subjects.contains(&subject) {
                    line.subjects.push(subject);
                }
            }
            if line.subjects.is_empty() {
                reasons.extend(line.from.iter().map(|&id| (id, why.clone())));
                continue;
            }
            if !why.is_empty() {
                line.notes.push(why);
            }
            line.from.iter().for_each(|&id| ledger.express(id));
            self.lines.push(line);
        }
        for (id, why) in reasons {
            ledger.leave(id, why);
        }
    }

    /// Writes the table, then what it does not express.
    pub(super) fn write(
        &self,
        out: &mut dyn Write,
        ledger: &Ledger,
        made_by: &str,
    ) -> io::Result<()> {
        let counts = ledger.counts();
        writeln!(out, "# {made_by}")?;
        writeln!(out, "# {}", counts_text(counts))?;
        writeln!(
            out,
            "# Before the gate uses it: qpatch gate check FILE, and qpatch gate simulate FILE --log LOG."
        )?;
        for note in &self.notes {
            writeln!(out, "#")?;
            write_wrapped(out, "# ", note)?;
        }
        for line in &self.lines {
            writeln!(out)?;
            for id in &line.from {
                writeln!(out, "# {}", ledger.text(*id))?;
            }
            for note in &line.notes {
                write_wrapped(out, "# note: ", note)?;
            }
            for subject in &line.subjects {
                writeln!(out, "{}", line.content(subject))?;
            }
        }
        let left = ledger.left();
        if !left.is_empty() {
            writeln!(out, "\n# NOT EXPRESSED: {}", count(left.len() as u64, "setting"))?;
        }
        // The reasons in the order in which they first come.
        let mut reasons: Vec<&str> = Vec::new();
        for left in &left {
            if !reasons.contains(&left.why.as_str()) {
                reasons.push(&left.why);
            }
        }
        for why in reasons {
            writeln!(out, "#")?;
            write_wrapped(out, "# ", &format!("{why}:"))?;
            for left in left.iter().filter(|left| left.why == why) {
                writeln!(out, "#   {}: {}", ledger.place_text(left.place), left.what)?;
            }
        }
        let unrelated = ledger.unrelated();
        if !unrelated.is_empty() {
            writeln!(out, "\n# NOT ABOUT LIMITS OR RATES: {}", count(counts.unrelated, "setting"))?;
            writeln!(out, "#")?;
        }
        for (name, places) in unrelated {
            let places: Vec<_> = places.iter().map(|&place| ledger.place_text(place)).collect();
            write_wrapped(out, "#   ", &format!("{name} ({})", places.join(" ")))?;
        }
        Ok(())
    }
}

/// `412 lines with 190 settings: 20 are expressed here, 160 are not, 10 are about something else`.
pub(super) fn counts_text(counts: Counts) -> String {
    format!(
        "{} with {}: {} expressed, {} not, {} about something else",
        count(counts.lines, "line"),
        count(counts.settings, "setting"),
        counts.expressed,
        counts.left,
        counts.unrelated
    )
}

/// Writes a text in lines of at most 120 bytes where its words allow it. The first one begins with `start`, the others
/// with `#` and as many spaces.
fn write_wrapped(out: &mut dyn Write, start: &str, text: &str) -> io::Result<()> {
    let mut line = start.to_string();
    let indent = format!("#{}", " ".repeat(start.len() - 1));
    for word in text.split(' ') {
        if line.len() + word.len() > 119 && line.len() > indent.len() {
            writeln!(out, "{}", line.trim_end())?;
            line = indent.clone();
        }
        line.push_str(word);
        line.push(' ');
    }
    writeln!(out, "{}", line.trim_end())
}
