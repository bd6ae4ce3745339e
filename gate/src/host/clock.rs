//! The time, as [`crate::host`] asks for it. The spawner has the system's; a test has one that it moves itself, and so
//! waits for nothing.

#![forbid(unsafe_code)]

use std::fmt::Debug;
use std::time::{Duration, Instant, SystemTime};

/// What tells the time.
pub trait Clock: Debug {
    /// Microseconds since the clock was made. It never goes back.
    fn now_us(&self) -> u64;

    /// The time that the modification times of files are compared with. It may go back.
    fn wall(&self) -> SystemTime;

    /// Waits for this long.
    fn pause(&self, time: Duration);
}

/// The system's clock.
#[derive(Clone, Copy, Debug)]
pub struct SystemClock {
    start: Instant,
}

impl SystemClock {
    /// One that begins now.
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
