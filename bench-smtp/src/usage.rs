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
        if let Some((name, own, waited_for)) = stat_of(pid).as_deref().and_then(times) {
            *found.entry(name.clone()).or_default() += own;
            if waited_for > 0.0 {
                *found.entry(format!("{name}'s children")).or_default() += waited_for;
            }
        }
    }
    found
}

/// The processor time in milliseconds of process `pid` itself, if it can be read.
pub fn of_process(pid: u32) -> Option<f64> {
    times(&stat_of(pid)?).map(|(_, own, _)| own)
}

fn stat_of(pid: u32) -> Option<String> {
    std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()
}

/// The memory of a group of processes.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct MemoryUse {
    /// How many processes.
    pub processes: usize,
    /// Their proportional set sizes together, in KiB: each page counts in part for each process that has it.
    pub pss_kib: f64,
    /// Their page tables together, in KiB.
    pub page_tables_kib: f64,
}

/// The memory of all processes of the process group `group`. A process that ends meanwhile is left out.
pub fn memory_of_group(group: u32) -> MemoryUse {
    let mut found = MemoryUse::default();
    for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let process = entry.path();
        let read = |name: &str| std::fs::read_to_string(process.join(name)).ok();
        if read("stat").and_then(|stat| group_in(&stat)) != Some(group) {
            continue;
        }
        let figure = |file: &str, name: &str| kib_of(&read(file)?, name);
        if let Some((pss, tables)) = figure("smaps_rollup", "Pss").zip(figure("status", "VmPTE")) {
            found.processes += 1;
            found.pss_kib += pss;
            found.page_tables_kib += tables;
        }
    }
    found
}

/// The memory that this machine could still give to programs, in KiB.
pub fn available_kib() -> Option<f64> {
    kib_of(&std::fs::read_to_string("/proc/meminfo").ok()?, "MemAvailable")
}

/// The figure in a line `NAME:  12 kB` of a file of /proc.
fn kib_of(text: &str, name: &str) -> Option<f64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    line.split_whitespace().next()?.parse().ok()
}

/// The process group in /proc/PID/stat: field 5.
fn group_in(stat: &str) -> Option<u32> {
    stat.get(stat.rfind(')')? + 2..)?.split_whitespace().nth(2)?.parse().ok()
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
        assert_eq!(group_in(stat), Some(12));
    }

    #[test]
    fn the_memory_of_this_process_is_found() {
        let text = "Rss:   20 kB\nPss_Dirty:   4 kB\nPss:          12 kB\n";
        assert_eq!((kib_of(text, "Pss"), kib_of(text, "Swap")), (Some(12.0), None));
        let own = nix::unistd::getpgrp().as_raw().unsigned_abs();
        let memory = memory_of_group(own);
        assert!(memory.processes >= 1 && memory.pss_kib > 0.0, "{memory:?}");
        assert!(available_kib().is_some_and(|kib| kib > 0.0));
    }
}
