//! Lines in qmail-send's log about control files that cannot be used.

#![forbid(unsafe_code)]

use std::fmt::Write as _;

use super::Host;
use crate::host::clock::Clock;
use crate::host::control_file::{Control, Logged};

/// Between two rounds of warnings in qmail-send's log about control files that cannot be used, in microseconds.
const NOTICE_US: u64 = 60_000_000;

impl<C: Clock> Host<C> {
    /// Checks whether there is something for qmail-send's log. If a queue has several spawners, the first one writes
    /// it.
    pub(super) fn look_for_notices(&mut self) {
        let all = [&mut self.domains, &mut self.routes, &mut self.sites, &mut self.replies];
        let is_first = self.gate.other_spawners().is_none_or(|all| all.index() == 0);
        self.unlogged = false;
        for control in all.into_iter().chain(&mut self.senders) {
            if !control.is_passed_over() {
                control.logged = Logged::No;
            }
            self.unlogged |= is_first && control.is_passed_over() && control.logged == Logged::No;
        }
    }

    /// Makes a line for qmail-send's log about one control file, if it is time for that: at the start, and once a
    /// minute.
    pub(super) fn notice_text(&mut self, now_us: u64) -> bool {
        let is_early = |at_us: u64| now_us.saturating_sub(at_us) < NOTICE_US;
        if self.logged_us.is_some_and(is_early) {
            return false;
        }
        let all = [&mut self.domains, &mut self.routes, &mut self.sites, &mut self.replies];
        let told = all
            .into_iter()
            .chain(&mut self.senders)
            .find(|control| control.is_passed_over() && control.logged == Logged::No);
        let Some(control) = told else {
            self.unlogged = false;
            self.logged_us = Some(now_us);
            return false;
        };
        control.logged = Logged::Yes;
        let [problem, counts, _] = control.problems();
        self.text.bytes.clear();
        let _ = self.text.write_str("Nwarning: ");
        if let Some(problem) = problem {
            let _ = write!(self.text, "{problem}");
        }
        if let Some(counts) = counts {
            let _ = write!(self.text, "; {}", counts.kind);
        }
        let _ = self.text.push(b"\n\0");
        true
    }

    /// The time until the next line for the log may be written, in microseconds. `None`: there is no line to write.
    pub(super) fn notice_wait_us(&self, now_us: u64) -> Option<u64> {
        let since_us = |at_us: u64| now_us.saturating_sub(at_us);
        self.unlogged
            .then(|| self.logged_us.map_or(0, |at_us| NOTICE_US.saturating_sub(since_us(at_us))))
    }

    /// The control files, in the order in which they are reported.
    pub(super) fn controls(&self) -> impl Iterator<Item = &Control> {
        let all = [&self.domains, &self.routes, &self.sites, &self.replies];
        all.into_iter().chain(&self.senders)
    }
}
