//! What doctor found: one finding a check, and the report of all.
#![forbid(unsafe_code)]

use std::fmt;
use std::path::PathBuf;

use serde::Serialize;

/// What a check comes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum CheckVerdict {
    /// Enough for what is set up.
    Ok,
    /// Is in the way of no delivery, but worth a thought; the finding says what could be done.
    Note,
    /// Will get in the way; the finding says what to change.
    Warn,
    /// Could not be seen; the finding says why.
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

/// One thing that was checked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// A short name that stays the same from version to version.
    pub name: &'static str,
    /// What it comes to.
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

/// Everything that was checked.
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
    /// Whether nothing will get in the way, as far as could be seen.
    pub fn ok(&self) -> bool {
        self.findings.iter().all(|finding| finding.verdict != CheckVerdict::Warn)
    }

    /// The last line for a person.
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

    /// The report as one JSON object, with `ok` in it.
    pub fn to_json(&self) -> String {
        #[derive(Serialize)]
        struct WithVerdict<'r> {
            ok: bool,
            #[serde(flatten)]
            report: &'r DoctorReport,
        }
        let whole = WithVerdict { ok: self.ok(), report: self };
        serde_json::to_string_pretty(&whole)
            .unwrap_or_else(|error| format!("{{\"ok\":false,\"error\":\"{error}\"}}"))
    }
}
