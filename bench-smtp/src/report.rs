//! Tables and JSON.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde::Serialize;

use crate::figures::{Bar, Measure};
use crate::measure::median;
use crate::scenario::Scenario;
use crate::servers::ServerOutcome;
use crate::shares::ShareOutcome;

/// The columns, in order. A table has those that were measured.
const SUBJECTS: [&str; 7] =
    ["gate", "no gate", "fork server", "fork and exec", "log in pieces", "classic", "postfix"];

/// One figure of one scenario, for every mail server.
#[derive(Debug, Clone, Serialize)]
pub struct MeasureRow {
    /// S1 to S6, S8 to S11.
    pub scenario: String,
    /// The name of the figure, with its unit.
    pub measure: String,
    /// By mail server: the value in each run; null if it could not be measured.
    pub values: BTreeMap<String, Vec<Option<f64>>>,
    /// The value that the gate has to reach.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bar: Option<Bar>,
    /// Whether the median of the gate's runs reaches it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub met: Option<bool>,
}

impl MeasureRow {
    /// The median of the runs of a mail server; None if there are none, or if one could not be measured.
    pub fn median(&self, subject: &str) -> Option<f64> {
        let values = self.values.get(subject)?;
        let all: Option<Vec<f64>> = values.iter().copied().collect();
        median(&all?)
    }

    /// Sets `met`. `below` is the value of the tree without the gate in the next row.
    fn judge(&mut self, below: Option<f64>) {
        let Some(bar) = self.bar else { return };
        let gate = self.median("gate");
        self.met = match bar {
            _ if !self.values.contains_key("gate") => None,
            Bar::AtMost(most) => Some(gate.is_some_and(|gate| gate <= most)),
            Bar::AtLeast(least) => Some(gate.is_some_and(|gate| gate >= least)),
            Bar::AtLeastOfNoGate(share) => {
                let before = self.median("no gate");
                before.map(|before| gate.is_some_and(|gate| gate >= share * before))
            }
            Bar::AtMostOfNoGateBelow(times) => {
                below.map(|below| gate.is_some_and(|gate| gate <= times * below))
            }
        };
    }

    fn cell(&self, subject: &str) -> String {
        let Some(values) = self.values.get(subject) else { return String::new() };
        let known: Vec<f64> = values.iter().flatten().copied().collect();
        let Some(middle) = self.median(subject) else { return "-".to_owned() };
        if known.len() < 2 {
            return figure(middle);
        }
        let least = known.iter().copied().fold(f64::INFINITY, f64::min);
        let most = known.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        if (most - least).abs() < f64::EPSILON {
            return figure(middle);
        }
        format!("{} ({} to {})", figure(middle), figure(least), figure(most))
    }

    fn ratio(&self, to: &str) -> String {
        match self.median("gate").zip(self.median(to)) {
            Some((gate, other)) if other > 0.0 => figure(gate / other),
            _ => String::new(),
        }
    }
}

/// A number with three or four significant digits.
fn figure(value: f64) -> String {
    let size = value.abs();
    if size >= 1000.0 || (size - size.round()).abs() < 1e-9 {
        format!("{value:.0}")
    } else if size >= 100.0 {
        format!("{value:.1}")
    } else if size >= 1.0 {
        format!("{value:.2}")
    } else if size >= 0.1 {
        format!("{value:.3}")
    } else {
        format!("{value:.4}")
    }
}

/// Collects the results of the runs.
#[derive(Debug, Default, Serialize)]
pub struct BenchReport {
    /// About the machine and the choices made.
    pub about: BTreeMap<String, String>,
    /// In the order of the scenarios.
    pub rows: Vec<MeasureRow>,
    /// The results of runs with real servers.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub servers: Vec<ServerOutcome>,
    /// The results of S12.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub shares: Vec<ShareOutcome>,
    /// Notes about the figures.
    pub notes: Vec<String>,
}

impl BenchReport {
    /// Adds one run of a scenario.
    pub fn add(&mut self, scenario: Scenario, subject: &str, measures: Vec<Measure>) {
        for Measure { name, value, bar } in measures {
            let scenario = scenario.to_string();
            let is_it = |row: &MeasureRow| row.scenario == scenario && row.measure == name;
            let at = self.rows.iter().position(is_it).unwrap_or_else(|| {
                let values = BTreeMap::new();
                self.rows.push(MeasureRow { scenario, measure: name, values, bar, met: None });
                self.rows.len() - 1
            });
            self.rows[at].values.entry(subject.to_owned()).or_default().push(value);
        }
        // The rows of a scenario follow one another since its first run, so the next row is of the same scenario.
        let below = |at: usize| self.rows.get(at + 1).and_then(|row| row.median("no gate"));
        let below: Vec<_> = (0..self.rows.len()).map(below).collect();
        for (row, below) in self.rows.iter_mut().zip(below) {
            row.judge(below);
        }
    }

    /// How many bars the gate has not reached.
    pub fn missed(&self) -> usize {
        self.rows.iter().filter(|row| row.met == Some(false)).count()
    }

    /// The report as one JSON object.
    pub fn to_json(&self) -> String {
        // The report has only names, numbers and lists of them, so it can always be written.
        serde_json::to_string_pretty(self).unwrap_or_default()
    }

    /// A table in Markdown, padded so that it is readable as plain text.
    pub fn to_table(&self) -> String {
        let mut subjects = SUBJECTS.to_vec();
        subjects.retain(|subject| self.rows.iter().any(|row| row.values.contains_key(*subject)));
        let mut head = vec!["", "measured"];
        head.extend(&subjects);
        head.extend(["/ no gate", "/ postfix", "bar", ""]);
        let mut lines: Vec<Vec<String>> = vec![head.iter().map(|&word| word.to_owned()).collect()];
        let mut last = "";
        for row in &self.rows {
            let scenario = if row.scenario == last { "" } else { row.scenario.as_str() };
            last = &row.scenario;
            let met = match row.met {
                Some(true) => "met",
                Some(false) => "NOT MET",
                None => "",
            };
            let mut line = vec![scenario.to_owned(), row.measure.clone()];
            line.extend(subjects.iter().map(|subject| row.cell(subject)));
            line.extend([row.ratio("no gate"), row.ratio("postfix")]);
            line.extend([row.bar.map(|bar| bar.to_string()).unwrap_or_default(), met.to_owned()]);
            lines.push(line);
        }
        let widths: Vec<usize> = (0..head.len())
            .map(|column| lines.iter().map(|line| line[column].chars().count()).max().unwrap_or(0))
            .collect();
        let mut table = String::new();
        for (number, line) in lines.iter().enumerate() {
            table.push('|');
            for (cell, width) in line.iter().zip(&widths) {
                let _ = write!(table, " {cell:<width$} |");
            }
            table.push('\n');
            if number == 0 {
                table.push('|');
                for width in &widths {
                    let _ = write!(table, "{}|", "-".repeat(width + 2));
                }
                table.push('\n');
            }
        }
        table
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn measure(value: f64) -> Vec<Measure> {
        let bar = Some(Bar::AtMost(20.0));
        vec![Measure { name: "sessions, most".to_owned(), value: Some(value), bar }]
    }

    #[test]
    fn a_row_has_medians_ratios_and_a_verdict() {
        let mut report = BenchReport::default();
        for (subject, value) in [("gate", 19.0), ("gate", 20.0), ("gate", 21.0), ("no gate", 957.0)]
        {
            report.add(Scenario::S1, subject, measure(value));
        }
        assert_eq!(report.rows.len(), 1);
        assert_eq!(report.rows[0].met, Some(true));
        let table = report.to_table();
        assert!(table.contains("| 20 (19 to 21) | 957"), "{table}");
        assert!(table.contains("| 0.0209 "), "{table}");
        assert!(table.contains("| <= 20 | met |"), "{table}");
        let json: serde_json::Value = serde_json::from_str(&report.to_json()).expect("JSON");
        assert_eq!(json["rows"][0]["values"]["no gate"][0], 957.0);
        assert_eq!(json["rows"][0]["bar"]["at_most"], 20.0);
    }

    #[test]
    fn a_bar_can_rest_on_the_row_below_without_the_gate() {
        let rows = |of: f64, below: f64| {
            let row =
                |name: &str, value, bar| Measure { name: name.to_owned(), value: Some(value), bar };
            vec![
                row("CPU", of, Some(Bar::AtMostOfNoGateBelow(1.3))),
                row("CPU, same pace", below, None),
            ]
        };
        for (gate, met) in [(57.4, true), (61.0, true), (61.2, false)] {
            let mut report = BenchReport::default();
            // Neither the gate's value in the row below counts, nor that of the tree without the gate in this row.
            report.add(Scenario::S8, "gate", rows(gate, 1.0));
            assert_eq!((report.rows[0].met, report.missed()), (None, 0), "not without its measure");
            report.add(Scenario::S8, "no gate", rows(19.5, 47.0));
            assert_eq!((report.rows[0].met, report.rows[1].met), (Some(met), None), "{gate}");
            assert_eq!(report.missed(), usize::from(!met));
            let table = report.to_table();
            assert!(table.contains("| <= 1.3 of no gate below | "), "{table}");
        }
    }

    #[test]
    fn what_was_not_measured_misses_its_bar() {
        let mut report = BenchReport::default();
        let bar = Some(Bar::AtMost(13.0));
        let name = "done, s".to_owned();
        report.add(Scenario::S3, "gate", vec![Measure { name, value: None, bar }]);
        assert_eq!((report.rows[0].met, report.missed()), (Some(false), 1));
    }
}
