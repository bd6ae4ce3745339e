//! The table that an import makes: its lines, each with the settings that it comes from.
//!
//! A line that the gate's own parser refuses is not in the table; its settings are left with the parser's words. Two
//! lines for one name, and the lines of a group, get the lowest of their limits. Then the parser reads the whole table,
//! so `qpatch gate check` finds nothing in what is written.

use std::collections::{HashMap, HashSet};
use std::io::{self, Write};

use qpatch_gate::name::Hasher;
use qpatch_gate::rates::Rates;
use qpatch_gate::table::{GROUP_MAX, Table};

use super::ledger::{Counts, Ledger, LeftOut, SettingId};
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
    /// As the mail server names it, until [`Draft::settle`].
    pub(super) group: Option<String>,
    pub(super) rates: Rates,
    /// The settings that it expresses.
    pub(super) from: Vec<SettingId>,
    /// What the reader of the table should know about it.
    pub(super) notes: Vec<String>,
}

impl DraftLine {
    /// Whether only the names differ. The line of the empty name stays by itself.
    fn says_the_same(&self, other: &DraftLine) -> bool {
        let is_default = |line: &DraftLine| line.subjects.iter().any(String::is_empty);
        (self.limit, &self.group, self.rates) == (other.limit, &other.group, other.rates)
            && (&self.from, &self.notes) == (&other.from, &other.notes)
            && !is_default(self)
            && !is_default(other)
    }

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
fn group_name(name: &str) -> String {
    let mut group: String = name
        .chars()
        .map(|sign| if sign.is_ascii_graphic() && sign != ':' { sign } else { '-' })
        .collect();
    group.truncate(GROUP_MAX);
    if group.is_empty() { "unnamed".to_string() } else { group }
}

/// The same with a number behind it, within the same length.
fn numbered(group: &str, number: u32) -> String {
    let end = format!("-{number}");
    format!("{}{end}", &group[..group.len().min(GROUP_MAX - end.len())])
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

/// The prefix of a line for mail exchangers.
pub(super) const EXCHANGER: &str = "mx:";

/// Why a line is not in the table.
fn refusal(content: &str) -> Option<String> {
    let Ok((table, problems)) = Table::parse(content.as_bytes(), Hasher::new(1)) else {
        return Some("there is not enough memory".to_string());
    };
    // A name that begins with # would be a comment.
    if content.starts_with('#') || !content.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Some("this is no domain; one that is not ASCII is written as xn--...".to_string());
    }
    // What is only a warning in a table, such as a star, shows here that no domain was meant.
    if let Some(problem) = problems.iter().next() {
        return Some(meaning(problem.kind));
    }
    let expected = if content.starts_with(EXCHANGER) { (1, 0) } else { (0, 1) };
    let is_as_meant = (table.exchangers(), table.len()) == expected && !table.has_ranges();
    (!is_as_meant).then(|| "this is no domain".to_string())
}

/// The lower of two limits; None: no limit.
pub(super) fn lower_limit(one: Option<u64>, other: Option<u64>) -> Option<u64> {
    one.into_iter().chain(other).min()
}

/// A name in a sentence.
fn name_text(subject: &str) -> String {
    if subject.is_empty() { "all other domains".to_string() } else { printable(subject) }
}

impl Draft {
    /// Says something of the whole table once.
    pub(super) fn note(&mut self, note: &str) {
        if self.notes.iter().all(|other| other != note) {
            self.notes.push(note.to_string());
        }
    }

    /// Takes out what the gate would not take. Of several lines for one name the last one stays, with the lowest limit
    /// and rates of all; so do the lines of a group. Marks the settings of the lines as expressed.
    pub(super) fn settle(&mut self, ledger: &mut Ledger) {
        let mut reasons: Vec<(SettingId, String)> = Vec::new();
        self.name_groups();
        self.refuse_lines(&mut reasons);
        self.join_names(ledger, &mut reasons);
        self.level_groups();
        self.refuse_as_a_whole(&mut reasons);
        self.lines.dedup_by(|next, line| {
            let is_same = next.says_the_same(line);
            if is_same {
                line.subjects.append(&mut next.subjects);
            }
            is_same
        });
        for id in self.lines.iter().flat_map(|line| &line.from) {
            ledger.express(*id);
        }
        for (id, why) in reasons {
            ledger.leave(id, why);
        }
    }

    /// Gives each group a name that the table can have. Different groups stay different: `a b` and `a:b` become `a-b`
    /// and `a-b-2`, and neither of them `a-b` if there is one of that name.
    fn name_groups(&mut self) {
        // The gate does not tell upper from lower case, and nor do mail servers in names of hosts.
        let key = |name: &str| name.to_ascii_lowercase();
        let written = || self.lines.iter().filter_map(|line| line.group.as_deref());
        let mut names: HashMap<String, String> = written()
            .filter(|name| group_name(name) == **name)
            .map(|name| (key(name), name.to_string()))
            .collect();
        let mut taken: HashSet<String> = names.keys().cloned().collect();
        let mut numbers = HashMap::<String, u32>::new();
        for name in written() {
            names.entry(key(name)).or_insert_with(|| {
                let group = group_name(name);
                let number = numbers.entry(key(&group)).or_insert(1);
                let mut new = group.clone();
                while !taken.insert(key(&new)) {
                    *number += 1;
                    new = numbered(&group, *number);
                }
                new
            });
        }
        for group in self.lines.iter_mut().filter_map(|line| line.group.as_mut()) {
            // Where only the case differs, each line keeps its own.
            if group_name(group) != *group {
                *group = names[&key(group)].clone();
            }
        }
    }

    /// Keeps the names of each line for which there is no reason to drop them. A line without a name goes, and its
    /// settings get the last reason.
    fn keep_names(
        &mut self,
        reasons: &mut Vec<(SettingId, String)>,
        mut why_not: impl FnMut(usize, &DraftLine, &str) -> Option<String>,
    ) {
        let mut at = 0;
        self.lines.retain_mut(|line| {
            let mut why = None;
            let mut subjects = std::mem::take(&mut line.subjects);
            subjects.retain(|subject| {
                let found = why_not(at, line, subject);
                let is_kept = found.is_none();
                why = found.or(why.take());
                is_kept
            });
            line.subjects = subjects;
            at += 1;
            if let Some(why) = why {
                if line.subjects.is_empty() {
                    reasons.extend(line.from.iter().map(|&id| (id, why.clone())));
                } else {
                    line.notes.push(why);
                }
            }
            !line.subjects.is_empty()
        });
    }

    fn refuse_lines(&mut self, reasons: &mut Vec<(SettingId, String)>) {
        for subject in self.lines.iter_mut().flat_map(|line| &mut line.subjects) {
            // The gate ignores the dot of the root, too.
            if subject.len() > 1 && subject.ends_with('.') {
                subject.pop();
            }
        }
        self.keep_names(reasons, |_, line, subject| {
            let content = line.content(subject);
            let why = refusal(&content)?;
            Some(format!("the table cannot have the line {}: {why}", printable(&content)))
        });
    }

    /// Leaves one line for each name.
    fn join_names(&mut self, ledger: &Ledger, reasons: &mut Vec<(SettingId, String)>) {
        let mut lines_of = HashMap::<String, Vec<usize>>::new();
        for (at, line) in self.lines.iter().enumerate() {
            for subject in &line.subjects {
                let lines = lines_of.entry(subject.to_ascii_lowercase()).or_default();
                if lines.last() != Some(&at) {
                    lines.push(at);
                }
            }
        }
        // The names whose last line allows more than an earlier one, by that last line.
        let mut lowered = HashMap::<usize, Vec<DraftLine>>::new();
        for (subject, lines) in &lines_of {
            let [earlier @ .., last] = lines.as_slice() else { continue };
            if earlier.is_empty() {
                continue;
            }
            let line = &self.lines[*last];
            let mut joined = DraftLine { subjects: vec![subject.clone()], ..line.clone() };
            for other in earlier.iter().map(|&at| &self.lines[at]) {
                let limit = lower_limit(joined.limit, other.limit);
                let rates = joined.rates.lowest(other.rates);
                if (limit, rates) != (joined.limit, joined.rates) {
                    (joined.limit, joined.rates) = (limit, rates);
                    let places = other.from.iter().map(|&id| ledger.place_text(ledger.place(id)));
                    let places: Vec<String> = places.collect();
                    joined.notes.push(format!(
                        "{} is set earlier, too ({}); the lowest holds",
                        name_text(subject),
                        places.join(" ")
                    ));
                    joined.from.extend(other.from.iter().copied());
                }
            }
            if joined.notes.len() > self.lines[*last].notes.len() {
                joined.from = without_repeats(joined.from);
                lowered.entry(*last).or_default().push(joined);
            }
        }
        let mut apart: HashSet<String> = HashSet::new();
        for line in lowered.values().flatten() {
            apart.extend(line.subjects.iter().cloned());
        }
        let mut seen = HashSet::new();
        let mut lines = Vec::with_capacity(self.lines.len());
        for (at, mut line) in std::mem::take(&mut self.lines).into_iter().enumerate() {
            let mut why = None;
            line.subjects.retain(|subject| {
                let name = subject.to_ascii_lowercase();
                let is_last = lines_of[&name].last() == Some(&at);
                if !is_last {
                    why =
                        Some(format!("a later setting for {} takes its place", name_text(subject)));
                }
                is_last && !apart.contains(&name) && seen.insert(name)
            });
            if !line.subjects.is_empty() {
                line.notes.extend(why);
                lines.push(line);
            } else if let Some(why) = why {
                reasons.extend(line.from.iter().map(|&id| (id, why.clone())));
            }
            let mut own = lowered.remove(&at).unwrap_or_default();
            own.sort_by(|one, other| one.subjects.cmp(&other.subjects));
            lines.extend(own);
        }
        self.lines = lines;
    }

    /// Gives all lines of a group the lowest of their limits and rates.
    fn level_groups(&mut self) {
        let key = |line: &DraftLine| line.group.as_ref().map(|group| group.to_ascii_lowercase());
        let mut lowest = HashMap::<String, (Option<u64>, Rates)>::new();
        for line in &self.lines {
            let Some(group) = key(line) else { continue };
            let known = lowest.entry(group).or_insert((line.limit, line.rates));
            *known = (lower_limit(known.0, line.limit), known.1.lowest(line.rates));
        }
        for line in &mut self.lines {
            let Some(group) = key(line) else { continue };
            let (limit, rates) = lowest[&group];
            if (line.limit, line.rates) != (limit, rates) {
                let before = line.content("");
                (line.limit, line.rates) = (limit, rates);
                line.notes.push(format!(
                    "the lines of a group have one limit, the lowest: without the others it would be {before}; for a \
                     limit of its own, change its group"
                ));
            }
        }
    }

    /// Takes out what is a problem only beside other lines, such as one group too many.
    fn refuse_as_a_whole(&mut self, reasons: &mut Vec<(SettingId, String)>) {
        loop {
            let mut text = String::new();
            for line in &self.lines {
                for subject in &line.subjects {
                    text.push_str(&line.content(subject));
                    text.push('\n');
                }
            }
            let Ok((_, problems)) = Table::parse(text.as_bytes(), Hasher::new(1)) else { return };
            let why: HashMap<u32, String> = problems
                .iter()
                .filter(|problem| problem.line > 0)
                .map(|problem| (problem.line, meaning(problem.kind)))
                .collect();
            if why.is_empty() {
                return;
            }
            let mut number = 0;
            self.keep_names(reasons, |_, line, subject| {
                number += 1;
                let why = why.get(&number)?;
                let content = printable(line.content(subject));
                Some(format!("the table cannot have the line {content}: {why}"))
            });
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
        let mut by_reason = HashMap::<&str, Vec<&LeftOut>>::new();
        for left in &left {
            let known = by_reason.entry(&left.why).or_default();
            if known.is_empty() {
                reasons.push(&left.why);
            }
            known.push(left);
        }
        for why in reasons {
            writeln!(out, "#")?;
            write_wrapped(out, "# ", &format!("{why}:"))?;
            for left in listed(&by_reason[why], ledger) {
                writeln!(out, "#   {left}")?;
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

/// The settings with one reason: each with its place, or their number in each file.
fn listed(settings: &[&LeftOut], ledger: &Ledger) -> Vec<String> {
    if !settings.iter().all(|left| left.is_counted) {
        let one = |left: &&LeftOut| format!("{}: {}", ledger.place_text(left.place), left.what);
        return settings.iter().map(one).collect();
    }
    let of_file = settings.chunk_by(|one, other| one.place.file == other.place.file);
    let number = |file: &[&LeftOut]| {
        let (first, last) = (file[0].place, file[file.len() - 1].place.line);
        format!("{} to {last}: {}", ledger.place_text(first), count(file.len() as u64, "setting"))
    };
    of_file.map(number).collect()
}

/// The same without what came before.
pub(super) fn without_repeats(ids: Vec<SettingId>) -> Vec<SettingId> {
    let mut seen = HashSet::new();
    ids.into_iter().filter(|id| seen.insert(*id)).collect()
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
