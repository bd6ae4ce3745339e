//! `qpatch doctor`: whether the machine can run as many deliveries as qmail is set up for.
//!
//! Looks at files that anybody may read, at the limits of the running daemons, and asks the compiler; changes nothing,
//! never needs root, and says what it could not see. Looking ([`facts`]) and judging ([`checks`]) are apart: facts can
//! come from a directory that imitates a machine, and checks are pure.
#![forbid(unsafe_code)]

pub mod checks;
pub mod facts;
pub mod host;
pub mod launch;
pub mod process;

use std::fmt;
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::error::Error;
use crate::qmail::home::QMAIL_HOME;

/// What to examine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// qmail's home, as in conf-qmail: absolute, since programs and start scripts are looked for below it.
    pub home: PathBuf,
    /// The number of remote deliveries to plan for; `None`: control/concurrencyremote.
    pub concurrency: Option<u32>,
    /// The compiler that the tree is built with.
    pub cc: String,
}

impl Default for Options {
    fn default() -> Options {
        Options { home: PathBuf::from(QMAIL_HOME), concurrency: None, cc: "cc".to_owned() }
    }
}

/// What a check comes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
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
    pub verdict: Verdict,
    /// What was found, and what is needed.
    pub detail: String,
    /// What to change.
    pub fixes: Vec<Fix>,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = match self.verdict {
            Verdict::Ok => "ok",
            Verdict::Note => "note",
            Verdict::Warn => "WARN",
            Verdict::Unknown => "?",
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
pub struct Report {
    /// qmail's home.
    pub home: PathBuf,
    /// The number of remote deliveries that the findings are about.
    pub concurrency: u32,
    /// The findings.
    pub findings: Vec<Finding>,
}

impl Report {
    /// Whether nothing will get in the way, as far as could be seen.
    pub fn ok(&self) -> bool {
        self.findings.iter().all(|finding| finding.verdict != Verdict::Warn)
    }

    /// The last line for a person.
    pub fn summary(&self) -> String {
        let count =
            |verdict| self.findings.iter().filter(|finding| finding.verdict == verdict).count();
        format!(
            "{} of {} checks are fine for {} remote deliveries at once; {} to change, {} to consider, {} could not be seen",
            count(Verdict::Ok),
            self.findings.len(),
            self.concurrency,
            count(Verdict::Warn),
            count(Verdict::Note),
            count(Verdict::Unknown)
        )
    }

    /// The report as one JSON object, with `ok` in it.
    pub fn to_json(&self) -> String {
        #[derive(Serialize)]
        struct WithVerdict<'r> {
            ok: bool,
            #[serde(flatten)]
            report: &'r Report,
        }
        let whole = WithVerdict { ok: self.ok(), report: self };
        serde_json::to_string_pretty(&whole)
            .unwrap_or_else(|error| format!("{{\"ok\":false,\"error\":\"{error}\"}}"))
    }
}

/// The folder that somebody has named as qmail's home, absolute.
///
/// # Errors
/// If there is no qmail in it.
pub fn installed(home: &Path) -> Result<PathBuf, Error> {
    if !["control", "queue"].iter().any(|name| home.join(name).is_dir()) {
        return Err(Error::new(
            home.display(),
            "no qmail is installed here: it has neither control nor queue",
            "name the folder that has control and queue; before an install: qpatch doctor --concurrency N",
        ));
    }
    if home.is_absolute() {
        // As it is written in start scripts, which may be a link.
        return Ok(home.to_path_buf());
    }
    home.canonicalize().map_err(|error| Error::io(home, "look into it", &error))
}

/// Examines this machine.
pub fn examine(options: &Options) -> Report {
    let host = host::Host::this_machine();
    examine_host(&host, options)
}

/// Examines `host`, which may be an imitation.
pub fn examine_host(host: &host::Host<'_>, options: &Options) -> Report {
    let facts = facts::gather(host, options);
    let concurrency = checks::concurrency(&facts, options);
    Report { home: options.home.clone(), concurrency, findings: checks::all(&facts, concurrency) }
}
