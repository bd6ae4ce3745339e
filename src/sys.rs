//! System calls for verify and doctor, behind safe functions. The only unsafe code in `src/`.
//!
//! Most calls go through rustix, which needs no unsafe code here. The C library is called directly for signal handlers
//! ([`SignalGuard`], [`die_of`]) and between fork and exec ([`map_descriptors`]): rustix covers neither. On a system
//! that lacks a feature of Linux (a pipe's size, pidfd, a subreaper), the function does nothing, and its comment says
//! so.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::{FlockOperation, OFlags};
use rustix::io::{Errno, retry_on_intr};
use rustix::process::{self, Pid, Rlimit, Signal, WaitIdOptions, WaitOptions};

/// A descriptor, what to wait for on it, and what the last [`poll`] found.
#[derive(Debug)]
pub(crate) struct Watch<'fd> {
    fd: BorrowedFd<'fd>,
    interest: Interest,
    /// There is something to read, or the other side has closed.
    pub(crate) readable: bool,
    /// Writing will not block, or the other side has closed.
    pub(crate) writable: bool,
}

/// The direction of a [`Watch`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Interest {
    /// Wait until a read would not block.
    Read,
    /// Wait until a write would not block.
    Write,
}

impl<'fd> Watch<'fd> {
    /// Returns a watch on `fd`, neither readable nor writable yet.
    pub(crate) fn new(fd: BorrowedFd<'fd>, interest: Interest) -> Self {
        Watch { fd, interest, readable: false, writable: false }
    }
}

/// How a [`poll`] ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Polled {
    /// At least one watch is readable or writable.
    Ready,
    /// The time was up first.
    TimedOut,
    /// A signal that asks the process to stop has arrived ([`SignalGuard`]).
    Interrupted,
}

/// Waits until one of `watches` is ready, `until` has come, or a stop signal arrives.
pub(crate) fn poll(watches: &mut [Watch<'_>], until: Instant) -> io::Result<Polled> {
    let mut fds: Vec<PollFd<'_>> = watches
        .iter()
        .map(|watch| match watch.interest {
            Interest::Read => PollFd::from_borrowed_fd(watch.fd, PollFlags::IN),
            Interest::Write => PollFd::from_borrowed_fd(watch.fd, PollFlags::OUT),
        })
        .collect();
    if GUARDED.load(Ordering::Acquire)
        && let Some((reader, _)) = STOP_PIPE.get()
    {
        fds.push(PollFd::new(reader, PollFlags::IN));
    }
    loop {
        if stop_signal().is_some() {
            return Ok(Polled::Interrupted);
        }
        let left = until.saturating_duration_since(Instant::now());
        // No time that can be given means no end.
        let left = Timespec::try_from(left).ok();
        let ready = match rustix::event::poll(&mut fds, left.as_ref()) {
            Ok(ready) => ready,
            Err(Errno::INTR) => continue,
            Err(error) => return Err(error.into()),
        };
        if stop_signal().is_some() {
            return Ok(Polled::Interrupted);
        }
        for (watch, fd) in watches.iter_mut().zip(&fds) {
            let found = fd.revents();
            let closed = found.intersects(PollFlags::HUP | PollFlags::ERR | PollFlags::NVAL);
            watch.readable =
                watch.interest == Interest::Read && (closed || found.contains(PollFlags::IN));
            watch.writable =
                watch.interest == Interest::Write && (closed || found.contains(PollFlags::OUT));
        }
        // `ready` counts the stop pipe too, which says no more than `stop_signal`.
        if watches.iter().any(|watch| watch.readable || watch.writable) {
            return Ok(Polled::Ready);
        }
        if until <= Instant::now() {
            return Ok(Polled::TimedOut);
        }
        if ready > 0 {
            drain_stop_pipe();
        }
    }
}

/// Makes reads and writes on `fd` return instead of waiting. The flag belongs to the open file and affects every
/// process that shares it, so use this only for ends of pipes that stay in this process.
pub(crate) fn set_nonblocking(fd: BorrowedFd<'_>) -> io::Result<()> {
    let flags = rustix::fs::fcntl_getfl(fd)?;
    Ok(rustix::fs::fcntl_setfl(fd, flags | OFlags::NONBLOCK)?)
}

/// Sets how many bytes a pipe holds before its writers wait. Linux only; elsewhere nothing changes.
pub(crate) fn set_pipe_size(fd: BorrowedFd<'_>, bytes: usize) {
    // A refusal (the user's limit) does no harm.
    #[cfg(target_os = "linux")]
    let _ = rustix::pipe::fcntl_setpipe_size(fd, bytes);
    #[cfg(not(target_os = "linux"))]
    let _ = (fd, bytes);
}

/// Makes a named pipe with these permissions, minus the umask.
pub(crate) fn mkfifo(path: &Path, mode: u32) -> io::Result<()> {
    use rustix::fs::{CWD, Mode};
    let mode = Mode::from_raw_mode(mode as rustix::fs::RawMode);
    #[cfg(not(target_vendor = "apple"))]
    return Ok(rustix::fs::mkfifoat(CWD, path, mode)?);
    #[cfg(target_vendor = "apple")]
    {
        let _ = (CWD, path, mode);
        Err(io::ErrorKind::Unsupported.into())
    }
}

/// Returns whether programs on the file system that holds `path` can be executed (it is not mounted `noexec`). Always
/// true on systems other than Linux.
pub(crate) fn can_execute_from(path: &Path) -> io::Result<bool> {
    let info = rustix::fs::statvfs(path)?;
    #[cfg(any(target_os = "linux", target_os = "android"))]
    return Ok(!info.f_flag.contains(rustix::fs::StatVfsMountFlags::NOEXEC));
    #[cfg(not(any(target_os = "linux", target_os = "android")))]
    {
        let _ = info;
        Ok(true)
    }
}

/// Takes (`true`) or releases (`false`) the exclusive lock that stubs wait for. Waits for another holder to release it.
pub(crate) fn lock_exclusive(fd: BorrowedFd<'_>, hold: bool) -> io::Result<()> {
    let operation = if hold { FlockOperation::LockExclusive } else { FlockOperation::Unlock };
    Ok(retry_on_intr(|| rustix::fs::flock(fd, operation))?)
}

/// Returns the effective user id of this process.
pub(crate) fn effective_uid() -> u32 {
    process::geteuid().as_raw()
}

/// Returns the effective group id of this process.
pub(crate) fn effective_gid() -> u32 {
    process::getegid().as_raw()
}

/// A limit of the kernel on a process or a user.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Resource {
    /// Open descriptors of a process (RLIMIT_NOFILE).
    OpenFiles,
    /// Processes of a user (RLIMIT_NPROC).
    Processes,
}

impl Resource {
    fn rlimit(self) -> process::Resource {
        match self {
            Resource::OpenFiles => process::Resource::Nofile,
            Resource::Processes => process::Resource::Nproc,
        }
    }
}

/// The soft and hard value of a [`Resource`]; `u64::MAX` is "unlimited".
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ResourceLimit {
    /// The value that applies now.
    pub(crate) soft: u64,
    /// The value up to which the process itself may raise it.
    pub(crate) hard: u64,
}

/// Returns a limit of this process.
pub(crate) fn limit(resource: Resource) -> ResourceLimit {
    let Rlimit { current, maximum } = process::getrlimit(resource.rlimit());
    let number = |value: Option<u64>| value.unwrap_or(u64::MAX);
    ResourceLimit { soft: number(current), hard: number(maximum) }
}

/// Sets the soft limit of this process, and of every program that it starts from now on.
pub(crate) fn set_soft_limit(resource: Resource, soft: u64) -> io::Result<()> {
    let resource = resource.rlimit();
    let current = (soft != u64::MAX).then_some(soft);
    Ok(process::setrlimit(resource, Rlimit { current, ..process::getrlimit(resource) })?)
}

/// Returns the number of a process; an error for 0, which stands for a group.
fn pid_of(pid: u32) -> io::Result<Pid> {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
    pid.ok_or_else(|| io::ErrorKind::InvalidInput.into())
}

fn signal_of(signal: i32) -> io::Result<Signal> {
    Signal::from_named_raw(signal).ok_or_else(|| io::ErrorKind::InvalidInput.into())
}

/// Sends `signal` to a process that this one has started and not yet waited for: so its number cannot belong to
/// another.
pub(crate) fn kill(pid: u32, signal: i32) -> io::Result<()> {
    Ok(process::kill_process(pid_of(pid)?, signal_of(signal)?)?)
}

/// Returns whether a process with this number exists, of any user. A zombie counts.
pub(crate) fn is_process(pid: u32) -> bool {
    pid_of(pid).is_ok_and(|pid| process::test_kill_process(pid) != Err(Errno::SRCH))
}

/// Returns the leader of a process group; an error for 0 and 1, which stand for other processes than a group's.
fn group_of(leader: u32) -> io::Result<Pid> {
    if leader <= 1 {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    pid_of(leader)
}

/// Sends `signal` to the process group `leader`, whose leader this process has started and not yet waited for.
pub(crate) fn kill_group(leader: u32, signal: i32) -> io::Result<()> {
    Ok(process::kill_process_group(group_of(leader)?, signal_of(signal)?)?)
}

/// Makes this process the parent of every descendant that loses its own, instead of process 1, which in a container may
/// never reap them. [`reap_group`] then reaps them. Linux only; elsewhere nothing changes.
pub(crate) fn adopt_orphans() {
    // A kernel that does not know this refuses, which does no harm.
    #[cfg(target_os = "linux")]
    let _ = process::set_child_subreaper(Some(process::getpid()));
}

/// Waits until no child of this process is left in the process group `leader`. Call it after all of them have been sent
/// SIGKILL, and after the leader has been waited for.
pub(crate) fn reap_group(leader: u32) {
    let Ok(leader) = group_of(leader) else { return };
    while retry_on_intr(|| process::waitpgid(leader, WaitOptions::empty())).is_ok() {}
}

/// The state of a child process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ChildState {
    /// Still running.
    Running,
    /// Dead but not yet reaped: its number and its group's number are still its own.
    Ended,
}

/// Returns the state of a child, without reaping it.
pub(crate) fn peek_child(pid: u32) -> io::Result<ChildState> {
    let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
    let ended = process::waitid(process::WaitId::Pid(pid_of(pid)?), options)?;
    Ok(if ended.is_some() { ChildState::Ended } else { ChildState::Running })
}

/// Returns a descriptor that becomes readable when process `pid` ends. `None` where the system has none (other than
/// Linux, or before 5.3).
pub(crate) fn pidfd(pid: u32) -> Option<OwnedFd> {
    #[cfg(target_os = "linux")]
    return process::pidfd_open(pid_of(pid).ok()?, process::PidfdFlags::empty()).ok();
    #[cfg(not(target_os = "linux"))]
    {
        let _ = pid;
        None
    }
}

/// Makes `command` start with exactly the descriptors of `map` (from this process, to the child) among those below
/// `below`, as qmail-start does. Descriptors that are not in the map are closed.
///
/// [`Command`] sets up descriptors 0, 1 and 2 first; they are replaced or closed here. The descriptor with which the
/// standard library reports a failed exec may be closed as well. Then the child aborts, and the caller sees a child
/// that ended at once. `map` has at most 16 entries, else the child does not start.
pub(crate) fn map_descriptors(command: &mut Command, map: Vec<(RawFd, RawFd)>, below: RawFd) {
    // Just above the targets: with a low RLIMIT_NOFILE there is not much room.
    let above = map.iter().map(|(_, target)| target + 1).fold(below, RawFd::max);
    let setup = move || -> io::Result<()> {
        // Copies above every target first, so that no target overwrites a source that is still needed.
        let mut copies = [-1 as RawFd; 16];
        if map.len() > copies.len() {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        for (copy, (source, _)) in copies.iter_mut().zip(&map) {
            // SAFETY: F_DUPFD_CLOEXEC takes an integer; a bad source is reported as an error.
            *copy = unsafe { libc::fcntl(*source, libc::F_DUPFD_CLOEXEC, above) };
            if *copy < 0 {
                return Err(io::Error::last_os_error());
            }
        }
        for target in 0..below {
            // SAFETY: closing a descriptor of the child, which is about to exec and owns no Rust values that use it.
            unsafe { libc::close(target) };
        }
        for (copy, (_, target)) in copies.iter().zip(&map) {
            // SAFETY: dup2 takes two integers; the copy lies above every target.
            if unsafe { libc::dup2(*copy, *target) } < 0 {
                return Err(io::Error::last_os_error());
            }
        }
        Ok(())
    };
    // SAFETY: between fork and exec, `setup` only calls fcntl, close and dup2, which are async-signal-safe; it does
    // not allocate (the map was moved in beforehand) and takes no locks.
    unsafe { command.pre_exec(setup) };
}

static STOP_SIGNAL: AtomicI32 = AtomicI32::new(0);
/// Whether a [`SignalGuard`] lives.
static GUARDED: AtomicBool = AtomicBool::new(false);
/// The pipe with which the handler wakes every [`poll`]. It is made once and never closed: a thread may still wait for
/// it when another thread's guard goes, and its descriptor must not become another file's meanwhile.
static STOP_PIPE: std::sync::OnceLock<(io::PipeReader, io::PipeWriter)> =
    std::sync::OnceLock::new();
static ONLY_GUARD: std::sync::Mutex<()> = std::sync::Mutex::new(());

const STOP_SIGNALS: [i32; 3] = [libc::SIGINT, libc::SIGTERM, libc::SIGHUP];

/// Only loads and stores atomics and calls write(2), which are async-signal-safe.
extern "C" fn on_stop_signal(signal: libc::c_int) {
    STOP_SIGNAL.store(signal, Ordering::Release);
    if let Some((_, writer)) = STOP_PIPE.get() {
        // A full pipe wakes its reader as well as one more byte.
        let _ = rustix::io::write(writer, &[0]);
    }
}

/// Returns the signal that has asked this process to stop since the [`SignalGuard`] was installed.
pub(crate) fn stop_signal() -> Option<i32> {
    Some(STOP_SIGNAL.load(Ordering::Acquire)).filter(|signal| *signal != 0)
}

/// Makes [`STOP_PIPE`].
fn make_stop_pipe() -> io::Result<()> {
    if STOP_PIPE.get().is_none() {
        let (reader, writer) = io::pipe()?;
        set_nonblocking(reader.as_fd())?;
        set_nonblocking(writer.as_fd())?;
        STOP_PIPE.get_or_init(|| (reader, writer));
    }
    Ok(())
}

/// Empties the pipe. A byte that a signal has left there would end the next wait at once.
fn drain_stop_pipe() {
    if let Some((reader, _)) = STOP_PIPE.get() {
        let mut reader: &io::PipeReader = reader;
        let mut bytes = [0_u8; 64];
        while matches!(io::Read::read(&mut reader, &mut bytes), Ok(n) if n > 0) {}
    }
}

/// While it lives, SIGINT, SIGTERM and SIGHUP do not end the process. They wake every [`poll`], which then returns
/// [`Polled::Interrupted`], so that the caller unwinds and cleans up. Dropping the guard restores the previous
/// handlers.
pub(crate) struct SignalGuard {
    old: Vec<(i32, libc::sigaction)>,
    _only_one: std::sync::MutexGuard<'static, ()>,
}

impl std::fmt::Debug for SignalGuard {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SignalGuard").finish_non_exhaustive()
    }
}

impl SignalGuard {
    /// Installs the handlers. A signal that the caller ignores (nohup) stays ignored. A second guard in the same
    /// process waits until the first is dropped.
    pub(crate) fn install() -> io::Result<SignalGuard> {
        let only_one = ONLY_GUARD.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        make_stop_pipe()?;
        drain_stop_pipe();
        STOP_SIGNAL.store(0, Ordering::Release);
        GUARDED.store(true, Ordering::Release);
        let mut guard = SignalGuard { old: Vec::new(), _only_one: only_one };
        for signal in STOP_SIGNALS {
            // SAFETY: sigaction is plain old data; an all-zero value is valid (no flags, empty mask).
            let mut old: libc::sigaction = unsafe { std::mem::zeroed() };
            // SAFETY: a null new action only reads the old one into a live, writable struct.
            if unsafe { libc::sigaction(signal, std::ptr::null(), &mut old) } < 0 {
                return Err(io::Error::last_os_error());
            }
            if old.sa_sigaction == libc::SIG_IGN {
                continue;
            }
            // SAFETY: as above.
            let mut new: libc::sigaction = unsafe { std::mem::zeroed() };
            new.sa_sigaction = on_stop_signal as extern "C" fn(libc::c_int) as libc::sighandler_t;
            new.sa_flags = libc::SA_RESTART;
            // SAFETY: `new` names a handler that only uses atomics and write(2), both async-signal-safe.
            if unsafe { libc::sigaction(signal, &new, std::ptr::null_mut()) } < 0 {
                return Err(io::Error::last_os_error());
            }
            guard.old.push((signal, old));
        }
        Ok(guard)
    }
}

impl Drop for SignalGuard {
    fn drop(&mut self) {
        for (signal, old) in &self.old {
            // SAFETY: `old` is what sigaction itself has returned for this signal.
            unsafe { libc::sigaction(*signal, old, std::ptr::null_mut()) };
        }
        GUARDED.store(false, Ordering::Release);
    }
}

/// Ends this process with `signal`, as if it had not been caught: so a shell sees what it expects after ^C.
pub(crate) fn die_of(signal: i32) {
    // SAFETY: sigaction is plain old data; an all-zero value means SIG_DFL without flags.
    let default: libc::sigaction = unsafe { std::mem::zeroed() };
    // SAFETY: `default` is a live sigaction that is only read; raise takes an integer.
    unsafe {
        libc::sigaction(signal, &default, std::ptr::null_mut());
        libc::raise(signal);
    }
}

/// Returns the time of the clock that the stubs use (CLOCK_MONOTONIC), in nanoseconds.
pub(crate) fn monotonic_ns() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    Duration::try_from(now).map_or(0, |now| u64::try_from(now.as_nanos()).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Tests run several proofs in one process. The end of one in another thread must not wake a wait in this one.
    #[test]
    fn the_end_of_another_thread_s_guard_ends_no_wait() {
        let (quiet, _writer) = io::pipe().expect("a pipe");
        for _ in 0..3 {
            let (caught, wait) = std::sync::mpsc::channel();
            let other = std::thread::spawn(move || {
                let guard = SignalGuard::install().expect("handlers");
                caught.send(()).expect("the other thread waits");
                // If the wait below has not begun by then, the test passes, as it must.
                std::thread::sleep(Duration::from_millis(100));
                drop(guard);
            });
            wait.recv().expect("a guard");
            let until = Instant::now() + Duration::from_millis(500);
            let mut watches = [Watch::new(quiet.as_fd(), Interest::Read)];
            assert_eq!(poll(&mut watches, until).expect("poll"), Polled::TimedOut);
            assert!(Instant::now() >= until);
            other.join().expect("the other thread");
        }
    }
}
