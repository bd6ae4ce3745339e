//! The results of doctor: a finding for each check, and the report of all.
#![forbid(unsafe_code)]

use std::fmt;
use std::path::PathBuf;

use serde::Serialize;

/// The result of a check.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum CheckVerdict {
    /// Enough for the planned concurrency.
    Ok,
    /// Does not stop deliveries, but should be considered. The finding says what to do.
    Note,
    /// Will stop deliveries. The finding says what to change.
    Warn,
    /// Could not be seen. The finding says why.
    Unknown,
}

/// A line to write, and where.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Fix {
    /// The file, and where in it.
    pub place: String,
    /// The exact line.
    pub line: String,
}

/// The result of one check.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// A short name that is the same in all versions.
    pub name: &'static str,
    /// The verdict.
    #[serde(rename = "result")]
    pub verdict: CheckVerdict,
    /// What was found, and what is needed.
    pub detail: String,
    /// What to change.
    pub fixes: Vec<Fix>,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = match self.verdict {
            CheckVerdict::Ok => "ok",
            CheckVerdict::Note => "note",
            CheckVerdict::Warn => "WARN",
            CheckVerdict::Unknown => "?",
        };
        write!(f, "{word:<4}  {:<18}  {}", self.name, self.detail)?;
        for fix in &self.fixes {
            write!(f, "\n      {}: {}", fix.place, fix.line)?;
        }
        Ok(())
    }
}

/// The results of all checks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct DoctorReport {
    /// qmail's home.
    pub home: PathBuf,
    /// The number of remote deliveries that the findings are about.
    pub concurrency: u32,
    /// The findings.
    pub findings: Vec<Finding>,
}

impl DoctorReport {
    /// Returns whether there is no warning. What could not be seen does not count.
    pub fn ok(&self) -> bool {
        self.findings.iter().all(|finding| finding.verdict != CheckVerdict::Warn)
    }

    /// Returns the last line for people: the overall result.
    pub fn summary(&self) -> String {
        let count =
            |verdict| self.findings.iter().filter(|finding| finding.verdict == verdict).count();
        format!(
            "{} of {} checks are fine for {} remote deliveries at once; {} to change, {} to consider, {} could not be seen",
            count(CheckVerdict::Ok),
            self.findings.len(),
            self.concurrency,
            count(CheckVerdict::Warn),
            count(CheckVerdict::Note),
            count(CheckVerdict::Unknown)
        )
    }

    /// Returns the report as one JSON object, together with `ok`.
    pub fn to_json(&self) -> String {
        #[derive(Serialize)]
        struct DoctorJson<'r> {
            ok: bool,
            #[serde(flatten)]
            report: &'r DoctorReport,
        }
        let whole = DoctorJson { ok: self.ok(), report: self };
        serde_json::to_string_pretty(&whole)
            .unwrap_or_else(|error| format!("{{\"ok\":false,\"error\":\"{error}\"}}"))
    }
}
