//! Running processes: qmail's daemons with their limits, what their control groups allow, and the memory of
//! qmail-remote.
#![forbid(unsafe_code)]

use std::fs;
use std::path::{Path, PathBuf};

use super::host::{Fact, Host};

/// The limits of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ProcessLimits {
    /// Soft limit on descriptors; `None`: unlimited.
    pub files: Option<u64>,
    /// Hard limit on descriptors.
    pub files_hard: Option<u64>,
    /// Soft limit on processes of the user.
    pub processes: Option<u64>,
}

/// A qmail daemon that runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Daemon {
    /// Its name.
    pub name: String,
    /// Its process.
    pub pid: u32,
    /// Its limits.
    pub limits: Fact<ProcessLimits>,
    /// Whether the program file was replaced after the start; `None`: cannot be seen.
    pub replaced: Option<bool>,
    /// The control group, its own or one above, that leaves the least room for processes.
    pub group: Option<ControlGroup>,
    /// The memory that is free in its control group and in those above, in KiB.
    pub group_memory_kib: Option<u64>,
}

/// A control group that limits processes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ControlGroup {
    /// Its path below the root of the control groups.
    pub path: String,
    /// Its limit.
    pub most: u64,
    /// The processes in it now.
    pub now: u64,
    /// The processes of these that are not in the daemon's own group.
    pub others: u64,
}

/// The daemons of this qmail, and daemons that may belong to it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Daemons {
    /// The daemons of this qmail.
    pub ours: Vec<Daemon>,
    /// Daemons that may belong to this qmail or to another one: names and processes.
    pub unclear: Vec<String>,
    /// Whether doctor runs as root, and so sees everything that can be seen.
    pub asked_by_root: bool,
}

/// Memory of the qmail-remotes that run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RemoteMemory {
    /// How many were measured.
    pub count: u64,
    /// The memory that all of them take, in KiB.
    pub kib: u64,
    /// How that was measured.
    pub measure: Measure,
}

/// How the memory of a process is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Measure {
    /// Its proportional share of memory (Pss), and its page tables.
    Proportional,
    /// Its own pages and page tables, because the kernel shows this user no more. Shared pages do not count.
    Own,
}

/// Parses /proc/PID/limits.
pub fn limits(text: &str) -> ProcessLimits {
    let row = |name: &str| -> (Option<u64>, Option<u64>) {
        let Some(rest) = text.lines().find_map(|line| line.strip_prefix(name)) else {
            return (None, None);
        };
        let mut values = rest.split_whitespace().map(|value| value.parse().ok());
        (values.next().flatten(), values.next().flatten())
    };
    let (files, files_hard) = row("Max open files");
    let (processes, _) = row("Max processes");
    ProcessLimits { files, files_hard, processes }
}

/// Returns the value of a line such as `MemAvailable: 1000 kB`.
pub fn field_kib(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find(|line| line.split(':').next() == Some(name))?;
    line.split_whitespace().nth(1)?.parse().ok()
}

/// Returns the processes of the machine with their names, without zombies.
fn processes(host: &Host<'_>) -> Fact<Vec<(u32, String)>> {
    let proc = host.path("/proc");
    let entries = fs::read_dir(&proc).map_err(|error| format!("/proc: {error}"))?;
    let mut found = Vec::new();
    for entry in entries.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        if let Ok(name) = host.read(format!("/proc/{pid}/comm"))
            && !is_zombie(host, pid)
        {
            found.push((pid, name.trim().to_owned()));
        }
    }
    found.sort();
    Ok(found)
}

fn is_zombie(host: &Host<'_>, pid: u32) -> bool {
    let stat = host.read(format!("/proc/{pid}/stat")).unwrap_or_default();
    // PID (NAME) STATE: the name may have anything in it.
    stat.rsplit_once(')').is_some_and(|(_, rest)| rest.trim_start().starts_with(['Z', 'X']))
}

/// Returns the running processes with one of these names.
pub fn named(host: &Host<'_>, names: &[&str]) -> Vec<(u32, String)> {
    let all = processes(host).unwrap_or_default();
    all.into_iter().filter(|(_, name)| names.contains(&name.as_str())).collect()
}

/// Returns the program that a process runs, as the machine sees it. Only root and the process's user may see it.
fn program_of(host: &Host<'_>, pid: u32) -> Option<PathBuf> {
    host.link(format!("/proc/{pid}/exe"))
}

/// Returns whether a process belongs to the qmail in `home`, because the machine may have several. `None`: cannot be
/// seen.
fn belongs(host: &Host<'_>, pid: u32, home: &Path) -> Option<bool> {
    let real = host.real(home).unwrap_or_else(|| home.to_path_buf());
    let is_below = |path: PathBuf| path.starts_with(home) || path.starts_with(&real);
    // A package may have the programs elsewhere; all daemons work in the queue or in the home.
    let cwd = host.link(format!("/proc/{pid}/cwd"));
    match (program_of(host, pid).map(is_below), cwd.map(is_below)) {
        (None, None) => None,
        (program, cwd) => Some(program == Some(true) || cwd == Some(true)),
    }
}

/// Returns the daemons of the qmail in `home`, and the names of those that may belong to it.
pub fn daemons(host: &Host<'_>, home: &Path) -> Fact<Daemons> {
    let names = ["qmail-send", "qmail-lspawn", "qmail-rspawn"];
    let mut found = Daemons { asked_by_root: is_root(host), ..Daemons::default() };
    for (pid, name) in processes(host)? {
        match names.contains(&name.as_str()).then(|| belongs(host, pid, home)) {
            Some(Some(true)) => found.ours.push(daemon(host, pid, name)),
            Some(None) => found.unclear.push(format!("{name} (process {pid})")),
            Some(Some(false)) | None => {}
        }
    }
    // Leave out daemons that have ended meanwhile.
    found.ours.retain(|daemon| {
        daemon.limits.is_ok() || host.path(format!("/proc/{}", daemon.pid)).exists()
    });
    Ok(found)
}

fn daemon(host: &Host<'_>, pid: u32, name: String) -> Daemon {
    Daemon {
        name,
        pid,
        limits: host.read(format!("/proc/{pid}/limits")).map(|text| limits(&text)),
        replaced: program_of(host, pid)
            .map(|program| program.to_string_lossy().ends_with(" (deleted)")),
        group: group(host, pid),
        group_memory_kib: group_memory_kib(host, pid),
    }
}

fn is_root(host: &Host<'_>) -> bool {
    let status = host.read("/proc/self/status").unwrap_or_default();
    let user = status.lines().find_map(|line| line.strip_prefix("Uid:"));
    user.and_then(|ids| ids.split_whitespace().nth(1)) == Some("0")
}

/// Returns the control groups of a process that have `controller`, from its own to the root: their folders and paths.
fn groups(host: &Host<'_>, pid: u32, controller: &str) -> Vec<(String, String)> {
    let Ok(text) = host.read(format!("/proc/{pid}/cgroup")) else { return Vec::new() };
    let mut found = Vec::new();
    for line in text.lines() {
        let parts: Vec<&str> = line.splitn(3, ':').collect();
        let [_, controllers, path] = parts.as_slice() else { continue };
        let mount = match *controllers {
            "" => "/sys/fs/cgroup".to_owned(),
            controllers if controllers.split(',').any(|one| one == controller) => {
                format!("/sys/fs/cgroup/{controllers}")
            }
            _ => continue,
        };
        // A process of an outer namespace has a path that starts with "/..".
        let mut path = path.trim_start_matches('/').to_owned();
        loop {
            found.push((
                format!("{mount}/{path}").trim_end_matches('/').to_owned(),
                format!("/{path}"),
            ));
            match path.rsplit_once('/') {
                Some((above, _)) => path = above.to_owned(),
                None if path.is_empty() => break,
                None => path = String::new(),
            }
        }
    }
    found
}

fn group(host: &Host<'_>, pid: u32) -> Option<ControlGroup> {
    let mut tightest: Option<ControlGroup> = None;
    let mut own = None;
    for (folder, path) in groups(host, pid, "pids") {
        let Ok(now) = host.number(&format!("{folder}/pids.current")) else { continue };
        let own = *own.get_or_insert(now);
        // "max" is not a number: no limit.
        let Ok(most) = host.number(&format!("{folder}/pids.max")) else { continue };
        let group = ControlGroup { path, most, now, others: now.saturating_sub(own) };
        let room = |group: &ControlGroup| group.most.saturating_sub(group.others);
        if tightest.as_ref().is_none_or(|tightest| room(&group) < room(tightest)) {
            tightest = Some(group);
        }
    }
    tightest
}

/// More memory than any machine has. Without a limit, control groups of version 1 show such a number.
const NO_LIMIT_BYTES: u64 = 1 << 60;

fn group_memory_kib(host: &Host<'_>, pid: u32) -> Option<u64> {
    let mut least: Option<u64> = None;
    for (folder, _) in groups(host, pid, "memory") {
        let pair = |most: &str, now: &str| {
            let most = host
                .number(&format!("{folder}/{most}"))
                .ok()
                .filter(|most| *most < NO_LIMIT_BYTES)?;
            Some((most, host.number(&format!("{folder}/{now}")).ok()?))
        };
        let pair = pair("memory.max", "memory.current");
        let pair = pair.or_else(|| {
            let most = host.number(&format!("{folder}/memory.limit_in_bytes")).ok();
            let most = most.filter(|most| *most < NO_LIMIT_BYTES)?;
            Some((most, host.number(&format!("{folder}/memory.usage_in_bytes")).ok()?))
        });
        let Some((most, now)) = pair else { continue };
        // The page cache counts as used, but the kernel frees it when needed.
        let stat = host.read(format!("{folder}/memory.stat")).unwrap_or_default();
        let cache = stat.lines().find_map(|line| {
            let mut words = line.split_whitespace();
            matches!(words.next()?, "inactive_file" | "total_inactive_file")
                .then(|| words.next()?.parse::<u64>().ok())?
        });
        let room = most.saturating_sub(now.saturating_sub(cache.unwrap_or(0))) >> 10;
        least = Some(least.map_or(room, |least| least.min(room)));
    }
    least
}

/// Measures the memory of the running qmail-remotes; `None` if none runs.
pub fn remotes(host: &Host<'_>, home: &Path) -> Option<RemoteMemory> {
    let (mut proportional, mut own) = ((0, 0), (0, 0));
    for (pid, name) in processes(host).ok()? {
        // A qmail-remote of another qmail takes about the same.
        if name != "qmail-remote" || belongs(host, pid, home) == Some(false) {
            continue;
        }
        let Ok(status) = host.read(format!("/proc/{pid}/status")) else { continue };
        let tables = field_kib(&status, "VmPTE").unwrap_or(0);
        let rollup = host.read(format!("/proc/{pid}/smaps_rollup")).ok();
        if let Some(pss) = rollup.and_then(|text| field_kib(&text, "Pss")) {
            proportional = (proportional.0 + 1, proportional.1 + pss + tables);
        }
        if let Some(anonymous) = field_kib(&status, "RssAnon") {
            own = (own.0 + 1, own.1 + anonymous + tables);
        }
    }
    // Pss is exact, but only root and the process's user see it.
    let ((count, kib), measure) = if proportional.0 > 0 {
        (proportional, Measure::Proportional)
    } else {
        (own, Measure::Own)
    };
    (count > 0).then_some(RemoteMemory { count, kib, measure })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limits_file_is_read() {
        let text = "Limit                     Soft Limit           Hard Limit           Units     \n\
                    Max processes             96364                unlimited            processes \n\
                    Max open files            1024                 20000                files     \n";
        let expected =
            ProcessLimits { files: Some(1024), files_hard: Some(20000), processes: Some(96364) };
        assert_eq!(limits(text), expected);
        assert_eq!(limits(""), ProcessLimits::default());
    }
}
