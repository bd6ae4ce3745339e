//! queue/lock/gatekept.rates: what was started within the last hour and day, for keys with such rates
//! ([`crate::core::start_log`]). It is written before a delivery starts that the file must count, and then about once a
//! second while something starts, in the way of [`crate::host::kept`]: a process that is killed leaves the old contents
//! or the new ones. Without such rates nothing is written. If it cannot be written, mail goes on, and the status says
//! so.

#![forbid(unsafe_code)]

use std::path::Path;

use super::Host;
use crate::control::problem::{self, Kind, Problem};
use crate::core::start_log::{FILE_MAX, LogState, Stamp, StartLog};
use crate::host::clock::Clock;
use crate::host::kept;
use crate::util::memory::Text;

/// Microseconds in a clock tick, as Linux counts the starts of processes: 100 ticks a second on every machine.
const TICK_US: u64 = 10_000;

impl<C: Clock> Host<C> {
    /// Restores the starts from before a restart. Without the file, or if it is not understood, none are known.
    pub(super) fn restore_start_log(&mut self) {
        let path = Path::new(&self.rates_path);
        let is_empty = std::fs::metadata(path).is_ok_and(|metadata| metadata.len() == 0);
        if is_empty {
            return;
        }
        let file = match kept::at_once().read(true).open(path) {
            Ok(file) => file,
            // Without rates of an hour or a day nobody misses it, and with them writing it reports the problem.
            Err(_) => return,
        };
        let stamp = self.stamp(0);
        let restored = kept::read(&file, FILE_MAX).and_then(|(text, _)| {
            let log = self.gate.start_log_mut().ok_or(Kind::KeptNotWhole)?;
            log.restore(&text, &stamp, 0).map_err(|_| Kind::KeptNotWhole)
        });
        match restored {
            // From now on it has the clocks of this process.
            Ok(()) => self.write_start_log(LogState::Closed, 0),
            Err(kind) => {
                self.rates_problem = Some(Problem::of_file(problem::File::KeptRates, kind));
            }
        }
    }

    /// Writes the log if a delivery that starts now must be counted in the file before.
    #[inline]
    pub(super) fn write_start_log_first(&mut self, now_us: u64) {
        if self.gate.start_log().is_some_and(StartLog::must_write) {
            self.write_start_log(LogState::Open, now_us);
        }
    }

    /// Writes the log if something has changed.
    pub(super) fn write_start_log_if_due(&mut self, now_us: u64) {
        if let Some(state) = self.gate.start_log().and_then(|log| log.due(now_us)) {
            self.write_start_log(state, now_us);
        }
    }

    /// Writes the log; nothing starts any more.
    pub(super) fn close_start_log(&mut self, now_us: u64) {
        if self.gate.start_log().is_some_and(|log| !log.is_closed()) {
            self.write_start_log(LogState::Closed, now_us);
        }
    }

    fn write_start_log(&mut self, state: LogState, now_us: u64) {
        let stamp = self.stamp(now_us);
        let mut text = Text::default();
        let written =
            match self.gate.start_log().map(|log| log.write(&mut text, state, &stamp, now_us)) {
                Some(Ok(())) => kept::write(&self.rates_path, Some(&text.bytes)).map(|_| ()),
                Some(Err(_)) | None => Err(Kind::OutOfMemory),
            };
        if let Some(log) = self.gate.start_log_mut() {
            log.note_written(state, now_us);
        }
        let problem = written.err().map(|kind| Problem::of_file(problem::File::KeptRates, kind));
        if problem != self.rates_problem {
            self.rates_problem = problem;
            self.touch();
        }
    }

    fn stamp(&self, now_us: u64) -> Stamp {
        let since_boot_us = self.identity.start_ticks.saturating_mul(TICK_US);
        Stamp {
            wall_secs: self.unix_secs(),
            boot_us: since_boot_us.saturating_add(now_us),
            boot: self.boot,
        }
    }
}
