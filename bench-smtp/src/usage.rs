//! Measures the processor time of the programs under test, and makes sure that none of them stays behind.

use std::collections::BTreeMap;
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

/// From now on, orphans of the processes that this one has started become its children: their usage counts, and they
/// can be waited for.
pub fn adopt_orphans() -> Result<()> {
    nix::sys::prctl::set_child_subreaper(true).map_err(Error::doing("become a subreaper"))
}

/// Waits for all children of this process. No other code of the process may wait for one of them.
///
/// # Errors
/// One of them does not end within `patience`.
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

/// The processor time in milliseconds of process `pid` and of each of its children that run now. The time of processes
/// that a child has waited for is listed separately, as `CHILD's children`. What cannot be read is left out.
pub fn of_programs(pid: u32) -> BTreeMap<String, f64> {
    let mut found = BTreeMap::new();
    let listed = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
    let children = listed.unwrap_or_default();
    let children = children.split_whitespace().filter_map(|child| child.parse().ok());
    for pid in std::iter::once(pid).chain(children) {
        let Ok(stat) = std::fs::read_to_string(format!("/proc/{pid}/stat")) else { continue };
        if let Some((name, own, waited_for)) = times(&stat) {
            *found.entry(name.clone()).or_default() += own;
            if waited_for > 0.0 {
                *found.entry(format!("{name}'s children")).or_default() += waited_for;
            }
        }
    }
    found
}

/// Parses /proc/PID/stat: the name, the process's own time, and that of the processes it has waited for.
fn times(stat: &str) -> Option<(String, f64, f64)> {
    let (head, tail) = (stat.find('(')? + 1, stat.rfind(')')?);
    let name = stat.get(head..tail)?.to_owned();
    let fields: Vec<&str> = stat.get(tail + 2..)?.split_whitespace().collect();
    // Fields 14 to 17 of proc(5); field 3 is the first here. Clock ticks are hundredths of a second on Linux.
    let ticks = |number: usize| fields.get(number - 3)?.parse::<f64>().ok();
    let own = (ticks(14)? + ticks(15)?) * 10.0;
    Some((name, own, (ticks(16)? + ticks(17)?) * 10.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_behind_any_name() {
        let stat = "12 (a) b) S 1 12 12 0 -1 4194560 100 0 0 0 7 3 20 30 20 0 1 0 100";
        assert_eq!(times(stat), Some(("a) b".to_owned(), 100.0, 500.0)));
    }
}
