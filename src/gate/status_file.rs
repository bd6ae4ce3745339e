//! Reads the status files of the gates of an installed qmail, checks whether the processes that wrote them still run,
//! and merges them.
//!
//! A tree with several remote channels has a qmail-rspawn for each channel. Each writes its own file:
//! queue/lock/gatestatus, gatestatus.1, gatestatus.2 and so on. An empty file has never been written.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};
use std::ffi::{OsStr, OsString};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::Duration;

use qpatch_gate::escape::{Escaped, unescaped_bytes};
use qpatch_gate::problem::Kind;
use qpatch_gate::process::Stat;
use qpatch_gate::status::{InForce, State};
use qpatch_gate::table::Limit;
use qpatch_gate_status::{FILE_MAX, KeyStatus, Status, StatusError};

use super::advice::{advice, meaning};
use crate::error::Error;
use crate::qmail::control::read_file;
use crate::qmail::home::Home;
use crate::sys;

/// The most spawners of one qmail. Their files are opened by name, so that no right to list the folder is needed. A
/// missing number does not end the search.
const SPAWNERS_MAX: u32 = 64;

/// Why there is no status.
#[derive(Debug)]
pub(super) struct Unread {
    pub(super) path: PathBuf,
    pub(super) why: UnreadReason,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum UnreadReason {
    /// No such file.
    Missing,
    /// Permission denied.
    Denied,
    /// It cannot be read, or is no regular file.
    File(Kind),
    /// It has been read, but is no status.
    Status(StatusError),
}

/// Whether the process that wrote a status still runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ProcessState {
    Running,
    Gone,
    /// It cannot be seen from here.
    Unknown,
}

impl ProcessState {
    pub(super) fn alive(self) -> Option<bool> {
        match self {
            Self::Running => Some(true),
            Self::Gone => Some(false),
            Self::Unknown => None,
        }
    }
}

/// One qmail-rspawn, as its status file describes it.
#[derive(Debug)]
pub(super) struct SpawnerStatus {
    /// 0 for gatestatus, 1 for gatestatus.1.
    pub(super) number: u32,
    pub(super) status: Status,
    pub(super) process: ProcessState,
}

impl SpawnerStatus {
    /// The name of its file.
    pub(super) fn file(&self) -> String {
        file_name(self.number)
    }

    /// Looks again whether it runs.
    #[cfg(feature = "share")]
    pub(super) fn look_again(&mut self) {
        self.process = process(&self.status, Path::new("/proc"));
    }

    /// Whether it runs, as far as can be seen, and has had no internal error.
    pub(super) fn is_up(&self) -> bool {
        self.process != ProcessState::Gone && self.status.state != State::Failed
    }
}

fn file_name(number: u32) -> String {
    match number {
        0 => "gatestatus".to_string(),
        number => format!("gatestatus.{number}"),
    }
}

/// How long to wait before a half-written file is read again. A gate writes its file in far less time.
const LOOK_AGAIN: Duration = Duration::from_millis(20);
const LOOKS: u32 = 50;

/// Reads the files of all spawners of a qmail: at least one, the first one first.
pub(super) fn read(home: &Home) -> Result<Vec<SpawnerStatus>, Unread> {
    let mut spawners = Vec::new();
    // Most have one file, and the agent of `gate share` reads often. Who may not list the folder looks for all.
    let names = std::fs::read_dir(home.lock("")).ok().map(|entries| {
        entries.flatten().map(|entry| entry.file_name()).collect::<HashSet<OsString>>()
    });
    let is_there = |name: &str| names.as_ref().is_none_or(|names| names.contains(OsStr::new(name)));
    for number in (0..SPAWNERS_MAX).filter(|&number| number == 0 || is_there(&file_name(number))) {
        let path = home.lock(&file_name(number));
        match read_one(&path) {
            Ok(status) => {
                let process = process(&status, Path::new("/proc"));
                spawners.push(SpawnerStatus { number, status, process });
            }
            Err(UnreadReason::Missing) if number > 0 => {}
            Err(UnreadReason::Status(StatusError::Empty)) => {}
            Err(why) => return Err(Unread { path, why }),
        }
    }
    // A spawner that could not share at first may have written two files: only the newer one counts.
    let process =
        |one: &SpawnerStatus| (one.status.pid, one.status.start_ticks, one.status.namespace);
    let mut newest = HashMap::new();
    for one in &spawners {
        let generation = newest.entry(process(one)).or_insert(0);
        *generation = one.status.generation.max(*generation);
    }
    spawners.retain(|one| {
        one.status.start_ticks == 0 || newest[&process(one)] == one.status.generation
    });
    if spawners.is_empty() {
        return Err(Unread {
            path: home.lock("gatestatus"),
            why: UnreadReason::Status(StatusError::Empty),
        });
    }
    Ok(spawners)
}

/// Reads a status file; again while it is being written.
fn read_one(path: &Path) -> Result<Status, UnreadReason> {
    let mut looks = 1;
    loop {
        let bytes = match read_file(path, FILE_MAX as u64) {
            Ok(Some((_, bytes))) => bytes,
            Ok(None) => return Err(UnreadReason::Missing),
            Err(Kind::Unreadable(libc::EACCES | libc::EPERM)) => return Err(UnreadReason::Denied),
            Err(kind) => return Err(UnreadReason::File(kind)),
        };
        match Status::parse(&bytes) {
            Err(StatusError::Torn) if looks < LOOKS => {
                looks += 1;
                sleep(LOOK_AGAIN);
            }
            parsed => return parsed.map_err(UnreadReason::Status),
        }
    }
}

/// Why there is no status, and what to do about it.
pub(super) fn explain(home: &Home, unread: &Unread) -> Error {
    let Unread { path, why } = unread;
    let at = |what: &str, help: String| Error::new(path.display(), what, help);
    let lock = home.lock("");
    match why {
        UnreadReason::Missing if matches!(lock.try_exists(), Ok(false)) => Error::new(
            home.path().display(),
            "no qmail is installed here: it has no queue/lock",
            "name the folder that has qmail's control and queue",
        ),
        UnreadReason::Missing => at(
            "no such file: this qmail has no gate",
            "build one: qpatch apply TREE, then make setup check in TREE (which makes the file), \
             then restart qmail"
                .to_string(),
        ),
        UnreadReason::Denied => at(
            "permission denied",
            "run qpatch as root, or as a user of the group that queue/lock belongs to".to_string(),
        ),
        UnreadReason::File(kind) => at(&meaning(*kind), advice(*kind)),
        UnreadReason::Status(StatusError::Empty) => at(
            "empty: no gate has written it yet",
            why_empty(home, path).unwrap_or_else(|| {
                "it is written with the first delivery after qmail has been restarted; if it stays \
                 empty, the qmail-rspawn that runs has no gate"
                    .to_string()
            }),
        ),
        UnreadReason::Status(StatusError::Torn) => at(
            "the end is missing, and stays missing",
            "a running gate writes it again within a minute; is the disk full?".to_string(),
        ),
        UnreadReason::Status(error @ (StatusError::Foreign | StatusError::Line(_))) => at(
            &error.to_string(),
            "the gate and qpatch are of different versions: use the qpatch that patched the tree, \
             or apply, build and install again"
                .to_string(),
        ),
    }
}

/// Looks for a reason why the file is empty.
fn why_empty(home: &Home, path: &Path) -> Option<String> {
    let domains = home.control("concurrencydomains");
    if matches!(domains.try_exists(), Ok(false)) {
        return Some(format!(
            "there are no limits: qpatch gate init {} writes {} to start from",
            home.path().display(),
            domains.display()
        ));
    }
    let status = std::fs::metadata(path).ok()?;
    let tcpto = std::fs::metadata(home.lock("tcpto")).ok()?;
    (status.uid() != tcpto.uid()).then(|| {
        format!(
            "it belongs to user {}, and qmail-rspawn runs as user {}: chown {} {}",
            status.uid(),
            tcpto.uid(),
            tcpto.uid(),
            path.display()
        )
    })
}

/// The first namespace of process numbers (PROC_PID_INIT_INO in Linux's proc_ns.h): all processes are seen from there.
const FIRST_NAMESPACE: u64 = 0xeffffffc;

/// Whether the process that wrote a status still runs. A zombie does not run; nor does another process that now has the
/// same number.
fn process(status: &Status, proc: &Path) -> ProcessState {
    let namespace = std::fs::metadata(proc.join("self/ns/pid")).map_or(0, |file| file.ino());
    if status.namespace != 0 && namespace != 0 && status.namespace != namespace {
        return in_another_namespace(status, proc, namespace);
    }
    match read_stat(proc, &status.pid.to_string()) {
        Some(text) => match Stat::parse(&text) {
            Some(stat) if wrote(status, &stat) => ProcessState::Running,
            Some(_) => ProcessState::Gone,
            None => ProcessState::Unknown,
        },
        // There is no /proc, or it hides the processes of other users. Which process has the number now cannot be seen.
        None if sys::is_process(status.pid) => ProcessState::Unknown,
        None => ProcessState::Gone,
    }
}

fn read_stat(proc: &Path, pid: &str) -> Option<Vec<u8>> {
    std::fs::read(proc.join(pid).join("stat")).ok()
}

/// Whether this is the process that wrote the status, and it lives. Earlier gates wrote only the number.
fn wrote(status: &Status, stat: &Stat<'_>) -> bool {
    let lives = !matches!(stat.state, b'Z' | b'X' | b'x');
    let known = status.start_ticks != 0;
    let same =
        status.start_ticks == stat.start_ticks && status.program == Escaped(stat.name).to_string();
    lives && (same || !known)
}

/// The same for a qmail in a container: the process has another number there, but the same start time.
fn in_another_namespace(status: &Status, proc: &Path, here: u64) -> ProcessState {
    let Ok(entries) = std::fs::read_dir(proc) else { return ProcessState::Unknown };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let Some(pid) = name.to_str().filter(|name| name.bytes().all(|b| b.is_ascii_digit()))
        else {
            continue;
        };
        let found = read_stat(proc, pid)
            .and_then(|text| Stat::parse(&text).map(|stat| wrote(status, &stat)))
            .unwrap_or(false);
        if found && innermost_pid(proc, pid) == Some(status.pid) {
            return ProcessState::Running;
        }
    }
    // Whether all processes are seen from here, or only ours and those below.
    let sees_all = here == FIRST_NAMESPACE && read_stat(proc, "1").is_some();
    if sees_all { ProcessState::Gone } else { ProcessState::Unknown }
}

/// The number that a process has in its own namespace.
fn innermost_pid(proc: &Path, pid: &str) -> Option<u32> {
    let text = std::fs::read_to_string(proc.join(pid).join("status")).ok()?;
    let numbers = text.lines().find_map(|line| line.strip_prefix("NSpid:"))?;
    numbers.split_whitespace().last()?.parse().ok()
}

/// The spawners whose figures count. qmail-send ends when one of its spawners ends, so a spawner that is gone while
/// another one runs belongs to an earlier run. If none runs, the last figures of all of them count.
pub(super) fn counted(spawners: &[SpawnerStatus]) -> impl Iterator<Item = &SpawnerStatus> {
    let runs = |spawner: &SpawnerStatus| spawner.process != ProcessState::Gone;
    let any = spawners.iter().any(runs);
    spawners.iter().filter(move |spawner| !any || runs(spawner))
}

/// Merges the statuses of several spawners into one, in which each key is there once.
///
/// Counters and numbers of deliveries are added up. What all spawners read from the same files is taken from the one
/// that wrote last, because it may have read them later. Of the limits that a key has learned, the lowest counts.
pub(super) fn merged(spawners: &[SpawnerStatus]) -> Status {
    let mut statuses: Vec<&Status> = counted(spawners).map(|spawner| &spawner.status).collect();
    let first = statuses[0];
    statuses.sort_by_key(|status| std::cmp::Reverse(status.written_secs));
    let mut sum = Status { pid: first.pid, keys: Vec::new(), ..statuses[0].clone() };
    for status in &statuses[1..] {
        sum.lease = match (sum.lease, status.lease) {
            (Some(one), Some(other)) if other.seq < one.seq => Some(other),
            (Some(one), Some(_)) => Some(one),
            (None, _) | (_, None) => None,
        };
        sum.written_secs = sum.written_secs.min(status.written_secs);
        sum.state = worse(sum.state, status.state);
        if status.in_force != InForce::File && sum.in_force != InForce::None {
            sum.in_force = status.in_force;
        }
        sum.slots = sum.slots.saturating_add(status.slots);
        sum.concurrency_remote = sum.concurrency_remote.saturating_add(status.concurrency_remote);
        sum.in_use = sum.in_use.saturating_add(status.in_use);
        sum.held = sum.held.saturating_add(status.held);
        let (to, of) = (&mut sum.totals, &status.totals);
        for (to, of) in [
            (&mut to.asked, of.asked),
            (&mut to.busy, of.busy),
            (&mut to.held, of.held),
            (&mut to.expired, of.expired),
            (&mut to.done, of.done),
            (&mut to.refused, of.refused),
            (&mut to.suspended, of.suspended),
            (&mut sum.unlisted, status.unlisted),
        ] {
            *to = to.saturating_add(of);
        }
        sum.seen = sum.seen.max(status.seen);
        for problem in &status.problems {
            if !sum.problems.contains(problem) {
                sum.problems.push(problem.clone());
            }
        }
    }
    let mut places = HashMap::new();
    for key in statuses.iter().flat_map(|status| &status.keys) {
        match places.entry((key.kind, &key.name[..])) {
            Entry::Vacant(entry) => {
                entry.insert(sum.keys.len());
                sum.keys.push(key.clone());
            }
            Entry::Occupied(entry) => add_key(&mut sum.keys[*entry.get()], key),
        }
    }
    sum
}

fn worse(a: State, b: State) -> State {
    let rank = |state| match state {
        State::Limits => 0,
        State::Stock => 1,
        State::Failed => 2,
    };
    if rank(b) > rank(a) { b } else { a }
}

fn add_key(sum: &mut KeyStatus, key: &KeyStatus) {
    let done = sum.done.saturating_add(key.done);
    let of_one = |key: &KeyStatus| if key.mean_ms > 0 { key.done.max(1) } else { 0 };
    let (of_sum, of_key) = (u128::from(of_one(sum)), u128::from(of_one(key)));
    let ms = u128::from(sum.mean_ms) * of_sum + u128::from(key.mean_ms) * of_key;
    sum.mean_ms = ms.checked_div(of_sum + of_key).unwrap_or(0) as u64;
    sum.running = sum.running.saturating_add(key.running);
    sum.held = sum.held.saturating_add(key.held);
    sum.away = sum.away.saturating_add(key.away);
    sum.busy = sum.busy.saturating_add(key.busy);
    sum.held_ever = sum.held_ever.saturating_add(key.held_ever);
    sum.done = done;
    // The peaks may have been at different times, so this is only a lower bound of the common peak.
    sum.peak = sum.peak.max(key.peak).max(sum.running);
    sum.rate += key.rate;
    sum.effective = match (sum.effective, key.effective) {
        (Limit::AtMost(a), Limit::AtMost(b)) => Limit::AtMost(a.min(b)),
        (Limit::Unlimited, limit) | (limit, Limit::Unlimited) => limit,
    };
    sum.named |= key.named;
    // Each spawner has the rates for itself.
    sum.next_start_ms = match sum.rates.is_empty() {
        true => key.next_start_ms,
        false if key.rates.is_empty() => sum.next_start_ms,
        false => sum.next_start_ms.min(key.next_start_ms),
    };
    if sum.rates.is_empty() {
        sum.rates.clone_from(&key.rates);
    }
    let fewer = |one: Option<u32>, other: Option<u32>| one.into_iter().chain(other).min();
    sum.share = fewer(sum.share, key.share);
    sum.hour_left = fewer(sum.hour_left, key.hour_left);
    sum.day_left = fewer(sum.day_left, key.day_left);
    if sum.error.is_empty() || (key.objected_secs > sum.objected_secs && !key.error.is_empty()) {
        sum.error.clone_from(&key.error);
    }
    sum.objected_secs = sum.objected_secs.max(key.objected_secs);
    sum.suspended_secs = sum.suspended_secs.max(key.suspended_secs);
}

/// The bytes of a key's name.
pub(super) fn name_bytes(key: &KeyStatus) -> Vec<u8> {
    unescaped_bytes(key.name.as_bytes()).unwrap_or_default()
}
