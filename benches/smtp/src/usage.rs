//! Processor time and processes: what the programs under test have used, and that none of them stays.

use std::time::{Duration, Instant};

use nix::sys::resource::{Usage, UsageWho, getrusage};
use nix::sys::time::TimeValLike;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};

use crate::error::{Error, Result};

/// User and system time, in milliseconds.
pub(crate) fn milliseconds(usage: &Usage) -> f64 {
    (usage.user_time().num_microseconds() + usage.system_time().num_microseconds()) as f64 / 1000.0
}

/// The processor time of all processes that this one has waited for, and that those had waited for, in milliseconds.
pub fn of_children() -> Result<f64> {
    let usage = getrusage(UsageWho::RUSAGE_CHILDREN).map_err(Error::doing("read the usage"))?;
    Ok(milliseconds(&usage))
}

/// From now on whoever is left behind by a process that this one has started becomes a child of this one: its usage
/// counts, and it can be waited for.
pub fn adopt_orphans() -> Result<()> {
    nix::sys::prctl::set_child_subreaper(true).map_err(Error::doing("become a subreaper"))
}

/// Waits for every child that there is. None of them may be one that somebody else here waits for.
///
/// # Errors
/// If one of them does not end within `patience`.
pub fn reap_all(patience: Duration) -> Result<()> {
    let until = Instant::now() + patience;
    loop {
        match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::StillAlive) if Instant::now() >= until => {
                return Err(Error::new(
                    format!("a program still runs {patience:?} after it should have ended"),
                    "look with ps",
                ));
            }
            Ok(WaitStatus::StillAlive) => std::thread::sleep(Duration::from_millis(5)),
            Ok(_) | Err(nix::Error::EINTR) => {}
            Err(nix::Error::ECHILD) => return Ok(()),
            Err(error) => return Err(Error::doing("wait for a program")(error)),
        }
    }
}
