//! `--try KEY:2,5,10`: the same log with other limits of one key.
//!
//! Each limit has a gate of its own, and all of them read the log at the same time. A key that has lines of a group
//! gets the limit in each of these lines; any other one gets a line of its own at the end of the table.

use std::io::{self, Write};

use qpatch_gate::learn::Learning;
use qpatch_gate::memory::OutOfMemory;
use qpatch_gate::rules::{KeyKind, Rules};
use qpatch_gate::table::{Cap, LIMIT_MAX, Limit, Table, content_lines, subject_len};
use serde::Serialize;

use super::keys::SimulatedKey;
use super::replay::Replay;
use crate::gate::text::{escaped, key_name};
use crate::output::{Side, table};

/// The most limits of one run: each takes as much memory as a simulation.
const LIMITS_MAX: usize = 12;

/// The argument: a key and limits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct TriedLimits {
    pub(super) key: String,
    pub(super) limits: Vec<u32>,
}

impl TriedLimits {
    /// Parses `gmail.com:2,5,10`.
    ///
    /// # Errors
    /// What was expected.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let expected = || {
            format!(
                "write a domain, a relay or a group, a colon, and 1 to {LIMITS_MAX} limits from 0 to \
                 {LIMIT_MAX}, as in \
                 gmail.com:2,5,10"
            )
        };
        let (key, limits) =
            text.rsplit_once(':').filter(|(key, _)| !key.is_empty()).ok_or_else(expected)?;
        let limits =
            limits.split(',').map(|limit| limit.parse().ok().filter(|&limit| limit <= LIMIT_MAX));
        let limits = limits.collect::<Option<Vec<u32>>>().ok_or_else(expected)?;
        if limits.len() > LIMITS_MAX {
            return Err(expected());
        }
        Ok(Self { key: key.trim_end_matches('.').to_ascii_lowercase(), limits })
    }
}

/// The key that an argument means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct TriedKey {
    pub(super) kind: KeyKind,
    pub(super) name: Vec<u8>,
    cap: Cap,
}

impl TriedKey {
    /// A domain means the key that it counts under. A name without a line that is the name of a group is that group.
    pub(super) fn find(name: &str, rules: &Rules) -> Self {
        let table = rules.table.as_ref();
        let group =
            table.and_then(|table| Some(&table.groups()[table.group(name.as_bytes())? as usize]));
        if let Some(group) = group
            && table.is_some_and(|table| !table.has_line(name.as_bytes()))
        {
            return Self { kind: KeyKind::Group, name: group.name.clone(), cap: group.cap() };
        }
        let found = rules.resolve(name.as_bytes());
        Self { kind: found.kind, name: found.name.to_ascii_lowercase(), cap: found.cap }
    }

    /// Whether another limit in the table's text is one of this key. It is none if a line cannot begin with the name,
    /// as with `#x` or `x:`.
    ///
    /// # Errors
    /// There is no memory. The rules may then be without a table.
    pub(super) fn takes_limit(
        &self,
        name: &str,
        text: &[u8],
        rules: &mut Rules,
    ) -> Result<bool, OutOfMemory> {
        if matches!(self.kind, KeyKind::Group | KeyKind::Candidates) {
            return Ok(true);
        }
        let other = if self.cap.limit == Limit::AtMost(1) { 2 } else { 1 };
        let (table, problems) = Table::parse(&self.with_limit(text, other), rules.hasher)?;
        let before = rules.table.replace(table);
        let expected =
            Self { cap: Cap { limit: Limit::AtMost(other), ..self.cap }, ..self.clone() };
        let takes = problems.errors() == 0 && Self::find(name, rules) == expected;
        rules.table = before;
        Ok(takes)
    }

    /// The text of a table with another limit of this key.
    pub(super) fn with_limit(&self, text: &[u8], limit: u32) -> Vec<u8> {
        let mut changed = Vec::with_capacity(text.len() + 100);
        if !matches!(self.kind, KeyKind::Group | KeyKind::Candidates) {
            changed.extend_from_slice(text);
            if !text.ends_with(b"\n") {
                changed.push(b'\n');
            }
            changed.extend_from_slice(&self.name);
            let learning = (self.cap.learning == Learning::On).then(|| "learn".to_string());
            let rates = Some(self.cap.rates.to_string()).filter(|rates| !rates.is_empty());
            let words: Vec<String> = learning.into_iter().chain(rates).collect();
            changed.extend_from_slice(
                match words.is_empty() {
                    true => format!(":{limit}\n"),
                    false => format!(":{limit}::{}\n", words.join(",")),
                }
                .as_bytes(),
            );
            return changed;
        }
        let mut lines = content_lines(text).peekable();
        for (line, number) in text.split(|&byte| byte == b'\n').zip(1u32..) {
            match lines.next_if(|&(at, _)| at == number) {
                Some((_, content)) if self.is_group_of(content) => {
                    let start = subject_len(content).map_or(content.len(), |colon| colon + 1);
                    let rest = &content[start..];
                    let end = rest.iter().position(|&byte| byte == b':').unwrap_or(rest.len());
                    changed.extend_from_slice(&content[..start]);
                    changed.extend_from_slice(limit.to_string().as_bytes());
                    changed.extend_from_slice(&rest[end..]);
                }
                _ => changed.extend_from_slice(line),
            }
            changed.push(b'\n');
        }
        changed
    }

    /// Whether a line belongs to this group: by its third field, or by its first one if that is a site.
    fn is_group_of(&self, content: &[u8]) -> bool {
        let Some(colon) = subject_len(content) else { return false };
        let (subject, rest) = (&content[..colon], &content[colon + 1..]);
        let group = rest.split(|&byte| byte == b':').nth(1).unwrap_or_default();
        let is_site = subject.contains(&b'/') || subject.to_ascii_lowercase().starts_with(b"mx:");
        let group = if group.is_empty() && is_site { subject } else { group };
        !group.is_empty() && group.eq_ignore_ascii_case(&self.name)
    }

    pub(super) fn text(&self) -> String {
        key_name(self.kind, &escaped(&self.name))
    }

    fn in_run<'a>(&self, run: &'a Replay) -> Option<&'a SimulatedKey> {
        let mut keys = run.machine.keys.iter().filter(|key| key.deliveries > 0);
        keys.find(|key| key.kind == self.kind && key.name == self.name)
    }
}

/// What the limits would have done.
#[derive(Debug, Serialize)]
pub(super) struct TriesOutcome {
    pub(super) key: String,
    pub(super) limits: Vec<TryOutcome>,
}

/// One limit. Times are in seconds.
#[derive(Debug, Serialize)]
pub(super) struct TryOutcome {
    /// null is unlimited.
    pub(super) limit: Option<u32>,
    /// Whether it is the limit of the file.
    pub(super) is_in_file: bool,
    pub(super) peak: u32,
    pub(super) waited: u64,
    pub(super) mean_wait: f64,
    pub(super) max_wait: f64,
    /// How much later the key's last delivery ends than in the log.
    pub(super) last_end_later: f64,
    pub(super) busy_answers: u64,
    pub(super) never_started: u64,
}

impl TriesOutcome {
    /// The outcomes of runs, each with its limit; None: no delivery counts under the key. The first run is that with
    /// the limit of the file.
    pub(super) fn new(key: &TriedKey, limits: &[u32], runs: &[Replay]) -> Option<Self> {
        let in_file = match key.cap.limit {
            qpatch_gate::table::Limit::AtMost(limit) => Some(limit),
            qpatch_gate::table::Limit::Unlimited => None,
        };
        let all = std::iter::once((in_file, true))
            .chain(limits.iter().map(|&limit| (Some(limit), false)));
        let rows = all.zip(runs).map(|((limit, is_in_file), run)| {
            let key = key.in_run(run)?;
            let secs = |us: u64| us as f64 / 1e6;
            Some(TryOutcome {
                limit,
                is_in_file,
                peak: key.peak,
                waited: key.waited,
                mean_wait: if key.waited == 0 {
                    0.0
                } else {
                    secs(key.waited_us) / key.waited as f64
                },
                max_wait: secs(key.waited_max_us),
                last_end_later: secs(key.last_end_us) - secs(key.log_end_us),
                busy_answers: key.busy,
                never_started: key.never,
            })
        });
        Some(Self { key: key.text(), limits: rows.collect::<Option<Vec<_>>>()? })
    }

    pub(super) fn table(&self, out: &mut dyn Write) -> io::Result<()> {
        writeln!(out, "\n{} with other limits; the rest of the table as it is:", self.key)?;
        let columns = [
            ("LIMIT", Side::Right),
            ("PEAK", Side::Right),
            ("WAITED", Side::Right),
            ("MEAN WAIT", Side::Right),
            ("LONGEST WAIT", Side::Right),
            ("LAST END", Side::Right),
            ("BUSY", Side::Right),
            ("", Side::Left),
        ];
        let row = |row: &TryOutcome| {
            let time = |secs: f64| format!("{secs:.1} s");
            [
                row.limit.map_or_else(|| "none".to_string(), |limit| limit.to_string()),
                row.peak.to_string(),
                row.waited.to_string(),
                time(row.mean_wait),
                time(row.max_wait),
                match row.never_started {
                    0 => format!("{:+.1} s", row.last_end_later),
                    _ => "never".to_string(),
                },
                row.busy_answers.to_string(),
                if row.is_in_file { "in the file".to_string() } else { String::new() },
            ]
        };
        // The limit of the file comes last.
        let (first, others) = self.limits.split_first().expect("one run is that of the file");
        let rows: Vec<_> = others.iter().chain([first]).map(row).collect();
        table(out, columns, &rows)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use qpatch_gate::name::Hasher;

    fn changed(text: &str, name: &str) -> String {
        let hasher = Hasher::new(1);
        let mut rules = Rules::stock(hasher);
        rules.table = Some(Table::parse(text.as_bytes(), hasher).unwrap().0);
        let key = TriedKey::find(name, &rules);
        assert_eq!(key.takes_limit(name, text.as_bytes(), &mut rules), Ok(true), "{name}");
        let text = String::from_utf8(key.with_limit(text.as_bytes(), 7)).unwrap();
        rules.table = Some(Table::parse(text.as_bytes(), hasher).unwrap().0);
        let again = TriedKey::find(name, &rules);
        assert_eq!((again.kind, &again.name), (key.kind, &key.name), "{text}");
        assert_eq!(again.cap, Cap { limit: Limit::AtMost(7), ..key.cap }, "{text}");
        text
    }

    #[test]
    fn a_key_gets_another_limit_and_nothing_else_changes() {
        let text = "# x\n:20::learn\ngmail.com:5:google\n[192.0.2.1]:1\nb.example:3::learn,600/m \n\
                    mx:.google.com:5:Google\n192.0.2.0/24:9\nmx:10";
        let appended = |line: &str| format!("{text}\n{line}\n");
        assert_eq!(changed(text, "other.example"), appended("other.example:7::learn"));
        assert_eq!(changed(text, "b.example"), appended("b.example:7::learn,600/m"));
        assert_eq!(changed(text, "[192.0.2.1]"), appended("[192.0.2.1]:7"));
        assert_eq!(changed(text, "mx"), appended("mx:7"));
        let google = text.replace(":5:", ":7:") + "\n";
        assert_eq!(changed(text, "gmail.com"), google);
        assert_eq!(changed(text, "google"), google);
        assert_eq!(changed(text, "192.0.2.0/24"), text.replace("/24:9", "/24:7") + "\n");
    }

    #[test]
    fn a_name_that_no_line_can_begin_with_takes_no_limit() {
        for text in ["", ":1\n", ":2", "a.example:5:g"] {
            for name in ["#x", "a.example:", "a.example:9", "a b", "b.example:1\nc.example", "a\tb"]
            {
                let hasher = Hasher::new(1);
                let mut rules = Rules::stock(hasher);
                rules.table = Some(Table::parse(text.as_bytes(), hasher).unwrap().0);
                let key = TriedKey::find(name, &rules);
                let takes = key.takes_limit(name, text.as_bytes(), &mut rules);
                assert_eq!(takes, Ok(false), "{name} with {text}");
            }
        }
    }

    #[test]
    fn the_argument() {
        let parsed = |text| TriedLimits::parse(text).map(|tried| (tried.key, tried.limits));
        assert_eq!(parsed("Gmail.com.:2,5"), Ok(("gmail.com".to_string(), vec![2, 5])));
        assert_eq!(parsed("[2001:db8::1]:3"), Ok(("[2001:db8::1]".to_string(), vec![3])));
        for wrong in ["", "a", ":5", "a:", "a:1,", "a:x", "a:500001", "a:1,1,1,1,1,1,1,1,1,1,1,1,1"]
        {
            assert!(parsed(wrong).is_err(), "{wrong}");
        }
    }
}
