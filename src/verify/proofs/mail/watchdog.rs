//! Ends a trial in which programs run but no mail gets done.
#![forbid(unsafe_code)]

use std::time::{Duration, Instant};

use crate::verify::error::Error;

/// The longest time that a trial of the gate may go on while no mail is done. It is longer than the minute of a hold,
/// and than the pauses before the gate calls mail that is away. The whole trial may take longer, as with
/// [`crate::verify::rig::spawner::IDLE`].
const NO_PROGRESS: Duration = Duration::from_secs(150);

/// Ends a trial in which no mail gets done. A wait for a sign of life does not notice that: a gate that answers busy
/// for ever causes events for ever.
#[derive(Debug)]
pub struct Watchdog {
    done: usize,
    since: Instant,
}

impl Default for Watchdog {
    fn default() -> Watchdog {
        Watchdog { done: 0, since: Instant::now() }
    }
}

impl Watchdog {
    /// Records how much is done. `what` describes it for the error.
    ///
    /// # Errors
    /// The number has not changed for 150 s.
    pub fn check(&mut self, done: usize, what: impl FnOnce() -> String) -> Result<(), Error> {
        if done != self.done {
            *self = Watchdog { done, since: Instant::now() };
        }
        if self.since.elapsed() < NO_PROGRESS {
            return Ok(());
        }
        Err(Error::disproved(
            what(),
            format!("one more within {} s", NO_PROGRESS.as_secs()),
            format!("{done}, and no more"),
            "",
        ))
    }
}
