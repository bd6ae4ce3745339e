//! The clock of [`crate::host`]. The spawner has the system's clock; a test has one that it moves itself, so it never
//! waits.

#![forbid(unsafe_code)]

use std::fmt::Debug;
use std::time::{Duration, Instant, SystemTime};

use crate::host::process;

/// A clock.
pub trait Clock: Debug {
    /// Microseconds since the clock was made. It never goes back.
    fn now_us(&self) -> u64;

    /// The time of day, to compare with the modification times of files. It may go back.
    fn wall(&self) -> SystemTime;

    /// Waits for this long.
    fn pause(&self, time: Duration);

    /// Milliseconds since the start of the machine, time of sleep included; None: not known.
    fn since_boot_ms(&self) -> Option<u64> {
        process::since_boot_ms()
    }
}

/// The system's clock.
#[derive(Clone, Copy, Debug)]
pub struct SystemClock {
    start: Instant,
}

impl SystemClock {
    /// A clock that starts at 0 now.
    #[must_use]
    pub fn start() -> Self {
        Self { start: Instant::now() }
    }
}

impl Clock for SystemClock {
    #[inline]
    fn now_us(&self) -> u64 {
        self.start.elapsed().as_micros() as u64
    }

    fn wall(&self) -> SystemTime {
        SystemTime::now()
    }

    fn pause(&self, time: Duration) {
        std::thread::sleep(time);
    }
}
