//! The limits of this machine: how many deliveries can run at the same time, and which limit
//! decides.
//!
//! Parsing is apart from reading, and every file is read below a root directory, so that both can
//! be tested anywhere.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use super::identity::Identity;
use crate::patches::descriptors_each;
use crate::sys::{self, Resource, ResourceLimit};
use crate::verify::error::Error;

/// Memory of one running stub, with the kernel's share. Measured on x86-64 Linux 6 with 7900
/// statically linked stubs: 52 KiB of its own, 42 of page tables, 16 of kernel stack and 113 of
/// other kernel memory.
const STUB_BYTES: u64 = 300 * 1024;

/// Processes left for everything else on this machine.
const SPARE_PROCESSES: u64 = 200;

/// Descriptors that a spawner needs beside those of each delivery, with a reserve: its own two, the
/// message, and the pipes of a delivery that is being started.
const SPARE_FILES: u64 = 16;

/// Raises the soft limits on descriptors and processes to the hard ones, for this process and its
/// future children. When the last of these values is dropped, the limits are restored.
#[derive(Debug)]
#[non_exhaustive]
pub struct Raised;

/// The number of [`Raised`] values, and the limits to restore when the last one goes. Limits belong
/// to the process, so two proofs in two threads share them.
static RAISED: Mutex<(usize, Vec<(Resource, u64)>)> = Mutex::new((0, Vec::new()));

impl Raised {
    /// Raises the limits. A limit that cannot be raised stays; [`MachineLimits`] shows the result.
    pub fn raise() -> Raised {
        let mut raised = RAISED.lock().unwrap_or_else(PoisonError::into_inner);
        raised.0 += 1;
        if raised.0 == 1 {
            for resource in [Resource::OpenFiles, Resource::Processes] {
                let ResourceLimit { soft, hard } = sys::limit(resource);
                if soft < hard && sys::set_soft_limit(resource, hard).is_ok() {
                    raised.1.push((resource, soft));
                }
            }
        }
        Raised
    }
}

impl Drop for Raised {
    fn drop(&mut self) {
        let mut raised = RAISED.lock().unwrap_or_else(PoisonError::into_inner);
        raised.0 = raised.0.saturating_sub(1);
        if raised.0 == 0 {
            for (resource, soft) in std::mem::take(&mut raised.1) {
                let _ = sys::set_soft_limit(resource, soft);
            }
        }
    }
}

/// The most deliveries that a limit has room for, and the name of the limit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeliveryBound {
    /// The number of deliveries.
    pub deliveries: u32,
    /// The limit with its value, such as `RLIMIT_NOFILE 20000`.
    pub limit: String,
}

/// The limits of this machine that matter for many deliveries.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MachineLimits {
    /// Descriptors that a process may open.
    pub open_files: Option<u64>,
    /// Processes that may still be started, for each limit.
    pub processes: Vec<(u64, String)>,
    /// Memory that is still available, in bytes.
    pub memory: Option<u64>,
    /// Descriptors that a spawner needs for each delivery; two if it is not known.
    pub descriptors_each: Option<u64>,
}

impl MachineLimits {
    /// Reads the limits of this machine for programs that run as `identity`.
    pub fn look(identity: Identity) -> MachineLimits {
        let mut machine = MachineLimits::below(Path::new("/"), identity.uid());
        machine.open_files = Some(sys::limit(Resource::OpenFiles).soft);
        let limit = sys::limit(Resource::Processes);
        if limit.soft != u64::MAX && identity.uid() != 0 {
            let used = processes_of(Path::new("/"), identity.uid()).unwrap_or(0);
            machine
                .processes
                .push((limit.soft.saturating_sub(used), format!("RLIMIT_NPROC {}", limit.soft)));
        }
        machine
    }

    /// Looks how many descriptors the spawners that are installed in `home` need for a delivery.
    pub(crate) fn look_at_spawners(&mut self, home: &Path) -> Result<(), Error> {
        for name in ["qmail-lspawn", "qmail-rspawn"] {
            let path = home.join("bin").join(name);
            let program = fs::read(&path).map_err(Error::file("read", &path))?;
            self.descriptors_each = self.descriptors_each.max(Some(descriptors_each(&program)));
        }
        Ok(())
    }

    /// Reads the limits that /proc and /sys below `root` show.
    fn below(root: &Path, _uid: u32) -> MachineLimits {
        let mut machine = MachineLimits::default();
        let running =
            read(root, "proc/loadavg").ok().and_then(|text| threads_in_loadavg(&text)).unwrap_or(0);
        for (file, name) in
            [("proc/sys/kernel/pid_max", "pid_max"), ("proc/sys/kernel/threads-max", "threads-max")]
        {
            if let Some(most) =
                read(root, file).ok().and_then(|text| text.trim().parse::<u64>().ok())
            {
                machine.processes.push((most.saturating_sub(running), format!("{name} {most}")));
            }
        }
        for dir in cgroups(root) {
            if let (Some(most), Some(used)) =
                (number_in(&dir, "pids.max"), number_in(&dir, "pids.current"))
            {
                machine.processes.push((
                    most.saturating_sub(used),
                    format!("the control group's pids.max {most}"),
                ));
            }
        }
        machine.memory = read(root, "proc/meminfo")
            .ok()
            .and_then(|text| kib_in_meminfo(&text, "MemAvailable"))
            .map(|kib| kib * 1024);
        for dir in cgroups(root) {
            if let (Some(most), Some(used)) =
                (number_in(&dir, "memory.max"), number_in(&dir, "memory.current"))
            {
                let left = most.saturating_sub(used);
                machine.memory = Some(machine.memory.map_or(left, |memory| memory.min(left)));
            }
        }
        machine
    }

    /// Returns how many deliveries one spawner can run at the same time here, by the tightest
    /// limit.
    pub fn bound(&self) -> Option<DeliveryBound> {
        let clamp = |count: u64| u32::try_from(count).unwrap_or(u32::MAX);
        let mut bounds = Vec::new();
        if let Some(files) = self.open_files {
            // chkspawn adds five; qmail-lspawn has a few more while it starts a delivery.
            bounds.push(DeliveryBound {
                deliveries: clamp(files.saturating_sub(SPARE_FILES) / self.descriptors(1)),
                limit: format!("RLIMIT_NOFILE {files}"),
            });
        }
        for (left, limit) in &self.processes {
            bounds.push(DeliveryBound {
                deliveries: clamp(left.saturating_sub(SPARE_PROCESSES)),
                limit: limit.clone(),
            });
        }
        if let Some(memory) = self.memory {
            // Use half of the free memory: the machine has other things to do.
            bounds.push(DeliveryBound {
                deliveries: clamp(memory / 2 / STUB_BYTES),
                limit: format!("{} MiB of free memory", memory >> 20),
            });
        }
        bounds.into_iter().min_by_key(|bound| bound.deliveries)
    }

    /// Returns how many descriptors a spawner has for so many deliveries.
    pub(crate) fn descriptors(&self, deliveries: u64) -> u64 {
        self.descriptors_each.unwrap_or(2) * deliveries
    }

    /// Returns how many processes can be started before the first limit is reached; `None` if
    /// unknown.
    pub fn processes_left(&self) -> Option<u64> {
        let by_memory = self.memory.map(|memory| memory / 2 / STUB_BYTES);
        let processes = self.processes.iter().map(|(left, _)| left.saturating_sub(SPARE_PROCESSES));
        processes.chain(by_memory).min()
    }
}

pub(crate) fn read(root: &Path, file: &str) -> io::Result<String> {
    let bytes = fs::read(root.join(file))?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

fn number_in(dir: &Path, file: &str) -> Option<u64> {
    fs::read_to_string(dir.join(file)).ok()?.trim().parse().ok()
}

/// Returns the directories of this process's control group and of those above it.
fn cgroups(root: &Path) -> Vec<PathBuf> {
    let Ok(text) = read(root, "proc/self/cgroup") else { return Vec::new() };
    let mut dirs = Vec::new();
    for line in text.lines() {
        let mut parts = line.splitn(3, ':');
        let (_, Some(controllers), Some(path)) = (parts.next(), parts.next(), parts.next()) else {
            continue;
        };
        let mount = match controllers {
            "" => root.join("sys/fs/cgroup"),
            "pids" => root.join("sys/fs/cgroup/pids"),
            _ => continue,
        };
        let mut dir = mount.join(path.trim_start_matches('/'));
        // In a container the path may exist only outside. Then the mount point counts.
        while dir.starts_with(&mount) {
            dirs.push(dir.clone());
            if !dir.pop() {
                break;
            }
        }
    }
    dirs
}

/// Returns the number of threads on the machine, from /proc/loadavg ("0.1 0.2 0.3 2/345 6789":
/// 345).
fn threads_in_loadavg(text: &str) -> Option<u64> {
    text.split_whitespace().nth(3)?.split('/').nth(1)?.parse().ok()
}

/// Returns a value of /proc/meminfo, in KiB.
pub(crate) fn kib_in_meminfo(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find(|line| line.split(':').next() == Some(name))?;
    line.split_whitespace().nth(1)?.parse().ok()
}

/// Returns how many processes a user has.
fn processes_of(root: &Path, uid: u32) -> Result<u64, Error> {
    use std::os::unix::fs::MetadataExt;
    let proc = root.join("proc");
    let mut count = 0;
    for entry in fs::read_dir(&proc).map_err(Error::file("read", &proc))?.flatten() {
        let is_process =
            entry.file_name().to_string_lossy().bytes().all(|byte| byte.is_ascii_digit());
        if is_process && entry.metadata().is_ok_and(|metadata| metadata.uid() == uid) {
            count += 1;
        }
    }
    Ok(count)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_read() {
        assert_eq!(threads_in_loadavg("0.00 0.01 0.05 2/345 6789\n"), Some(345));
        assert_eq!(threads_in_loadavg("nonsense"), None);
        assert_eq!(
            kib_in_meminfo("MemTotal: 10 kB\nMemAvailable:   2048 kB\n", "MemAvailable"),
            Some(2048)
        );
        assert_eq!(kib_in_meminfo("MemTotal: 10 kB\n", "MemAvailable"), None);
    }

    #[test]
    fn the_tightest_limit_counts_and_is_named() {
        let machine = MachineLimits {
            open_files: Some(20000),
            processes: vec![(32768, "pid_max 32768".to_owned())],
            memory: Some(8 << 30),
            descriptors_each: None,
        };
        let bound = machine.bound().expect("limits are known");
        assert_eq!((bound.deliveries, bound.limit.as_str()), (9992, "RLIMIT_NOFILE 20000"));
        let machine = MachineLimits { descriptors_each: Some(1), ..machine };
        let bound = machine.bound().expect("limits are known");
        assert_eq!((bound.deliveries, bound.limit.as_str()), (13981, "8192 MiB of free memory"));
        let machine =
            MachineLimits { processes: vec![(700, "pids.max 700".to_owned())], ..machine };
        assert_eq!(machine.bound().expect("limits are known").deliveries, 500);
        assert_eq!(MachineLimits::default().bound(), None);
    }
}
