//! The results of a proof, [`Step`] by [`Step`], for people and for programs.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

use serde::Serialize;

/// How a step ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum StepVerdict {
    /// The claim holds.
    Pass,
    /// The claim does not hold.
    Fail,
    /// Not tried; the step's detail says why.
    Skipped,
}

/// One step of a proof.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Step {
    /// A short name that is the same in all versions, such as `qmail-rspawn`.
    pub name: String,
    /// How it ended.
    #[serde(rename = "result")]
    pub verdict: StepVerdict,
    /// On success, what was shown, with figures. On failure, what was expected, what was found, and
    /// what to do. May have several lines.
    pub detail: String,
    /// Figures by name, for programs.
    pub figures: BTreeMap<&'static str, u64>,
    /// Remarks that are not errors but worth knowing.
    pub notes: Vec<String>,
    /// What ran at once over time, as lines of text; empty for most steps.
    #[serde(skip)]
    pub chart: Vec<String>,
    /// Wall time in seconds.
    pub seconds: f64,
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = match self.verdict {
            StepVerdict::Pass => "ok",
            StepVerdict::Fail => "FAIL",
            StepVerdict::Skipped => "skip",
        };
        let mut lines = self.detail.lines();
        write!(f, "{word:<4}  {:<22}  {}", self.name, lines.next().unwrap_or_default())?;
        if self.verdict != StepVerdict::Skipped {
            write!(f, " ({:.1} s)", self.seconds)?;
        }
        for line in lines {
            write!(f, "\n      {line}")?;
        }
        for note in &self.notes {
            write!(f, "\n      note: {note}")?;
        }
        Ok(())
    }
}

/// The result of a whole proof.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ProofOutcome {
    /// The tree, as the caller gave it.
    pub tree: PathBuf,
    /// The conf-spawn that was tried.
    pub spawn: u32,
    /// The first line of conf-cc that was used.
    pub cc: String,
    /// The seed of all random choices. The same seed repeats the proof.
    pub seed: u64,
    /// The steps, in order.
    pub steps: Vec<Step>,
    /// The scratch directory, if it was kept.
    pub kept: Option<PathBuf>,
    /// Wall time in seconds.
    pub seconds: f64,
}

impl ProofOutcome {
    /// Returns whether no step failed. Steps that were skipped because of a failed step need no
    /// separate check: the failed one decides.
    pub fn ok(&self) -> bool {
        self.steps.iter().all(|step| step.verdict != StepVerdict::Fail)
    }

    /// Returns how many deliveries ran at once in qmail-rspawn, if that was tried. The number is
    /// below conf-spawn if the machine allows no more.
    pub fn at_once(&self) -> Option<u64> {
        let step = self.steps.iter().find(|step| step.name == "qmail-rspawn")?;
        step.figures.get("at_once").copied()
    }

    /// Returns the last line for people: the overall result.
    pub fn summary(&self) -> String {
        let failed = self.steps.iter().filter(|step| step.verdict == StepVerdict::Fail).count();
        let passed = self.steps.iter().filter(|step| step.verdict == StepVerdict::Pass).count();
        let skipped = self.steps.len() - failed - passed;
        let skipped = if skipped == 0 { String::new() } else { format!(", {skipped} not tried") };
        let tried = match self.at_once() {
            // conf-spawn is read in the first step; until then it is 0.
            _ if self.spawn == 0 => String::new(),
            Some(at_once) if at_once < u64::from(self.spawn) => format!(
                " at conf-spawn {}, but with {at_once} deliveries at once, because this machine allows no more",
                self.spawn
            ),
            _ => format!(" at conf-spawn {}", self.spawn),
        };
        let what = match failed {
            0 if passed == 1 => "1 step holds".to_owned(),
            0 => format!("{passed} steps hold"),
            _ => format!("{failed} of {} steps failed", failed + passed),
        };
        format!("{what}{tried}{skipped}; {:.0} s, seed {}", self.seconds, self.seed)
    }

    /// Returns the outcome as one JSON object, together with `ok` and `at_once`.
    pub fn to_json(&self) -> String {
        #[derive(Serialize)]
        struct ProofJson<'o> {
            ok: bool,
            at_once: Option<u64>,
            #[serde(flatten)]
            outcome: &'o ProofOutcome,
        }
        let whole = ProofJson { ok: self.ok(), at_once: self.at_once(), outcome: self };
        // It has only strings, numbers and lists of them, all of which JSON can express.
        serde_json::to_string_pretty(&whole)
            .unwrap_or_else(|error| format!("{{\"ok\":false,\"error\":\"{error}\"}}"))
    }
}

/// Receives the progress of a proof.
pub trait Progress {
    /// A step begins.
    fn begin(&mut self, name: &str);
    /// The current step has done `done` of `total` parts. Called often.
    fn advance(&mut self, done: u64, total: u64);
    /// The step has ended.
    fn end(&mut self, step: &Step);
}

/// Shows no progress.
#[derive(Debug, Clone, Copy, Default)]
pub struct Silent;

impl Progress for Silent {
    fn begin(&mut self, _name: &str) {}
    fn advance(&mut self, _done: u64, _total: u64) {}
    fn end(&mut self, _step: &Step) {}
}

/// Whether [`Written`] may show a line that it overwrites later.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transient {
    /// Yes: the output is a terminal.
    Shown,
    /// No: the output is a file or a pipe, which gets only finished lines.
    Hidden,
}

/// Writes a line for each step. On a terminal it also shows the progress of the current step.
#[derive(Debug)]
pub struct Written<W> {
    out: W,
    transient: Transient,
    name: String,
    shown: bool,
    last: Option<std::time::Instant>,
}

impl<W: std::io::Write> Written<W> {
    /// Returns a [`Written`] that writes to `out`.
    pub fn new(out: W, transient: Transient) -> Written<W> {
        Written { out, transient, name: String::new(), shown: false, last: None }
    }

    fn transient(&mut self, text: &str) {
        if self.transient == Transient::Shown {
            // Return to the start of the line and erase it.
            let _ = write!(self.out, "\r\x1b[K{text}");
            let _ = self.out.flush();
            self.shown = !text.is_empty();
        }
    }
}

impl<W: std::io::Write> Progress for Written<W> {
    fn begin(&mut self, name: &str) {
        name.clone_into(&mut self.name);
        self.last = None;
        self.transient(&format!("...   {name}"));
    }

    fn advance(&mut self, done: u64, total: u64) {
        let due = self.last.is_none_or(|last| last.elapsed().as_millis() >= 100);
        if due && total > 0 {
            self.last = Some(std::time::Instant::now());
            let text = format!("...   {:<22}  {done} of {total}", self.name);
            self.transient(&text);
        }
    }

    fn end(&mut self, step: &Step) {
        if self.shown {
            self.transient("");
        }
        let _ = writeln!(self.out, "{step}");
        let _ = self.out.flush();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step(verdict: StepVerdict) -> Step {
        Step {
            name: "qmail-rspawn".to_owned(),
            verdict,
            detail: "1000 \"at once\"\nline".to_owned(),
            figures: BTreeMap::from([("at_once", 1000)]),
            notes: vec!["a\tb".to_owned()],
            chart: Vec::new(),
            seconds: 1.25,
        }
    }

    fn outcome(steps: Vec<Step>) -> ProofOutcome {
        ProofOutcome {
            tree: PathBuf::from("t"),
            spawn: 1000,
            cc: "cc -O2".to_owned(),
            seed: 7,
            steps,
            kept: None,
            seconds: 2.0,
        }
    }

    #[test]
    fn json_has_names_that_programs_can_rely_on() {
        let json = outcome(vec![step(StepVerdict::Pass)]).to_json();
        let value: serde_json::Value = serde_json::from_str(&json).expect("valid JSON");
        assert_eq!(
            value,
            serde_json::json!({
                "ok": true, "at_once": 1000, "tree": "t", "spawn": 1000, "cc": "cc -O2", "seed": 7, "seconds": 2.0, "kept": null,
                "steps": [{
                    "name": "qmail-rspawn", "result": "pass", "detail": "1000 \"at once\"\nline",
                    "figures": {"at_once": 1000}, "notes": ["a\tb"], "seconds": 1.25
                }]
            })
        );
    }

    #[test]
    fn a_failure_or_nothing_decides() {
        assert!(outcome(vec![step(StepVerdict::Pass), step(StepVerdict::Skipped)]).ok());
        assert!(!outcome(vec![step(StepVerdict::Pass), step(StepVerdict::Fail)]).ok());
        let failed = outcome(vec![
            step(StepVerdict::Pass),
            step(StepVerdict::Fail),
            step(StepVerdict::Skipped),
        ]);
        assert_eq!(
            failed.summary(),
            "1 of 2 steps failed at conf-spawn 1000, 1 not tried; 2 s, seed 7"
        );
    }

    #[test]
    fn fewer_at_once_than_conf_spawn_is_reported() {
        let mut fewer = outcome(vec![step(StepVerdict::Pass)]);
        assert_eq!(fewer.summary(), "1 step holds at conf-spawn 1000; 2 s, seed 7");
        fewer.spawn = 20_000;
        assert_eq!(
            fewer.summary(),
            "1 step holds at conf-spawn 20000, but with 1000 deliveries at once, because this machine allows no more; \
             2 s, seed 7"
        );
    }

    #[test]
    fn a_step_is_a_line_with_what_follows_indented() {
        assert_eq!(
            step(StepVerdict::Fail).to_string(),
            "FAIL  qmail-rspawn            1000 \"at once\" (1.2 s)\n      line\n      note: a\tb"
        );
    }

    #[test]
    fn a_pipe_gets_no_transient_line() {
        let mut bytes = Vec::new();
        {
            let mut progress = Written::new(&mut bytes, Transient::Hidden);
            progress.begin("build");
            progress.advance(1, 2);
            progress.end(&step(StepVerdict::Pass));
        }
        let text = String::from_utf8(bytes).expect("text");
        assert!(text.starts_with("ok    qmail-rspawn"), "{text:?}");
        assert!(!text.contains('\r'));
    }
}
