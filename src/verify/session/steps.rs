//! The [`Session`]: what the steps of one proof share, and how a step is run and recorded.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Instant;

use crate::verify::error::Error;
use crate::verify::options::{Options, Part};
use crate::verify::report::{Progress, Step, StepVerdict};
use crate::verify::rig::numbers::Random;
use crate::verify::rig::protocol::Width;
use crate::verify::rig::spawner::Channel;
use crate::verify::rig::stub::Stubs;
use crate::verify::sandbox::SandboxConfig;
use crate::verify::sandbox::limits::MachineLimits;
use crate::verify::sandbox::private_tree::{MessageId, Sandbox};
use crate::verify::sandbox::scratch::Scratch;

/// The reason of a skipped step that `--only` leaves out.
pub(super) const NOT_ASKED: &str = "not asked for";

/// The reason of a skipped step that needs one that failed.
pub(super) const EARLIER_FAILED: &str = "not tried, because an earlier step failed";

/// A proof that is running.
pub(in crate::verify) struct Session<'s> {
    pub(super) scratch: &'s Scratch,
    pub(super) tree: &'s Path,
    pub(super) options: &'s Options,
    pub(super) random: Random,
    pub(super) progress: &'s mut dyn Progress,
    pub(super) steps: Vec<Step>,
    /// conf-spawn of the sandbox; 0 until it is configured.
    pub(super) spawn: u32,
    /// The first line of conf-cc.
    pub(super) cc: String,
    /// The step fd_set passed or was not asked for.
    pub(super) fd_set_holds: bool,
}

/// What a step reports beside its verdict.
#[derive(Debug, Default)]
pub(super) struct StepDetail {
    pub(super) detail: String,
    pub(super) figures: BTreeMap<&'static str, u64>,
    pub(super) notes: Vec<String>,
    pub(super) chart: Vec<String>,
}

impl StepDetail {
    pub(super) fn new(detail: impl Into<String>) -> StepDetail {
        StepDetail { detail: detail.into(), ..StepDetail::default() }
    }

    pub(super) fn figure(mut self, name: &'static str, value: usize) -> StepDetail {
        self.figures.insert(name, value as u64);
        self
    }
}

/// Which spawners passed their proof, or were not asked for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Passed {
    pub(super) remote: bool,
    pub(super) local: bool,
}

impl Passed {
    pub(super) fn both(self) -> bool {
        self.remote && self.local
    }
}

/// The build that a spawner belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Build {
    Plain,
    Fortified,
}

impl Build {
    pub(super) fn part(self, channel: Channel) -> Part {
        match (self, channel) {
            (Build::Plain, Channel::Remote) => Part::Rspawn,
            (Build::Plain, Channel::Local) => Part::Lspawn,
            (Build::Fortified, Channel::Remote) => Part::FortifyRspawn,
            (Build::Fortified, Channel::Local) => Part::FortifyLspawn,
        }
    }
}

/// A sandbox with built and installed programs, and its stubs.
pub(super) struct InstalledSandbox {
    pub(super) sandbox: Sandbox,
    pub(super) stubs: Stubs,
    pub(super) message: MessageId,
    pub(super) machine: MachineLimits,
    /// How qmail-rspawn writes delivery numbers, once it has run.
    pub(super) width: Option<Width>,
}

impl<'s> Session<'s> {
    pub(in crate::verify) fn new(
        scratch: &'s Scratch,
        tree: &'s Path,
        options: &'s Options,
        seed: u64,
        progress: &'s mut dyn Progress,
    ) -> Session<'s> {
        let spawn = options.spawn.unwrap_or(0);
        Session {
            scratch,
            tree,
            options,
            random: Random::new(seed),
            progress,
            steps: Vec::new(),
            spawn,
            cc: String::new(),
            fd_set_holds: true,
        }
    }

    pub(in crate::verify) fn spawn(&self) -> u32 {
        self.spawn
    }

    pub(in crate::verify) fn cc(&self) -> String {
        self.cc.clone()
    }

    pub(in crate::verify) fn into_steps(self) -> Vec<Step> {
        self.steps
    }

    /// Returns the configuration that was asked for, with `cflags` after its flags.
    pub(super) fn config(&self, cflags: &[&str]) -> SandboxConfig {
        let asked = self.options.cflags.iter().map(String::as_str);
        SandboxConfig {
            spawn: self.options.spawn,
            cc: self.options.cc.clone(),
            cflags: asked.chain(cflags.iter().copied()).map(str::to_owned).collect(),
            control: self.options.control.clone(),
            ..SandboxConfig::default()
        }
    }

    /// Returns whether `part` was asked for.
    pub(super) fn wants(&self, part: Part) -> bool {
        self.options.only.is_empty() || self.options.only.contains(&part)
    }

    /// Runs one step and records its result. `Ok(None)` means that it failed. Only a stop signal is
    /// returned as an error.
    pub(super) fn step<T>(
        &mut self,
        name: &str,
        body: impl FnOnce(&mut Self) -> Result<(T, StepDetail), Error>,
    ) -> Result<Option<T>, Error> {
        self.progress.begin(name);
        let started = Instant::now();
        let (value, verdict, shown) = match body(self) {
            Ok((value, shown)) => (Some(value), StepVerdict::Pass, shown),
            Err(error @ Error::Interrupted(_)) => return Err(error),
            Err(error) => (None, StepVerdict::Fail, StepDetail::new(error.to_string())),
        };
        self.end(name, verdict, shown, started.elapsed().as_secs_f64());
        Ok(value)
    }

    pub(super) fn skip(&mut self, name: &str, why: &str) {
        self.end(name, StepVerdict::Skipped, StepDetail::new(why), 0.0);
    }

    /// Runs `body` if the part was asked for and the parts that it needs have passed. Returns false
    /// if it failed or could not be tried; true if it passed or was not asked for.
    pub(super) fn part(
        &mut self,
        part: Part,
        possible: bool,
        body: impl FnOnce(&mut Self, &str) -> Result<Option<()>, Error>,
    ) -> Result<bool, Error> {
        let name = part.name();
        if !self.wants(part) {
            self.skip(name, NOT_ASKED);
            return Ok(true);
        }
        if !possible {
            self.skip(name, EARLIER_FAILED);
            return Ok(false);
        }
        Ok(body(self, name)?.is_some())
    }

    pub(super) fn end(
        &mut self,
        name: &str,
        verdict: StepVerdict,
        shown: StepDetail,
        seconds: f64,
    ) {
        let StepDetail { detail, figures, notes, chart } = shown;
        let step = Step { name: name.to_owned(), verdict, detail, figures, notes, chart, seconds };
        self.progress.end(&step);
        self.steps.push(step);
    }
}
