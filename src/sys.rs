//! Every call of the C library that verify and doctor need, and the only unsafe code of either.
//!
//! Each function is a thin, safe cover: arguments are checked or typed, results are turned into [`io::Result`].

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicI32, Ordering};
use std::time::{Duration, Instant};

/// What to wait for on a descriptor, and what was found.
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
    /// A watch on `fd` that has not seen anything yet.
    pub(crate) fn new(fd: BorrowedFd<'fd>, interest: Interest) -> Self {
        Watch { fd, interest, readable: false, writable: false }
    }
}

/// How a [`poll`] ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Polled {
    /// At least one watch has something to tell.
    Ready,
    /// The time was up first.
    TimedOut,
    /// A signal that asks the process to stop has arrived ([`SignalGuard`]).
    Interrupted,
}

/// Waits until one of `watches` is ready, `until` has come, or a stop signal arrives.
pub(crate) fn poll(watches: &mut [Watch<'_>], until: Instant) -> io::Result<Polled> {
    let mut fds: Vec<libc::pollfd> = watches
        .iter()
        .map(|watch| libc::pollfd {
            fd: watch.fd.as_raw_fd(),
            events: match watch.interest {
                Interest::Read => libc::POLLIN,
                Interest::Write => libc::POLLOUT,
            },
            revents: 0,
        })
        .collect();
    let stop_fd = STOP_READ.load(Ordering::Acquire);
    if stop_fd >= 0 {
        fds.push(libc::pollfd { fd: stop_fd, events: libc::POLLIN, revents: 0 });
    }
    loop {
        if stop_signal().is_some() {
            return Ok(Polled::Interrupted);
        }
        let left = until.saturating_duration_since(Instant::now());
        // Rounded up: a wait that ends a fraction of a millisecond early would spin.
        let millis = i32::try_from(left.as_micros().div_ceil(1000)).unwrap_or(i32::MAX);
        // SAFETY: `fds` is a live, initialised array of exactly `fds.len()` pollfd, not shared with anyone.
        let ready = unsafe { libc::poll(fds.as_mut_ptr(), fds.len() as libc::nfds_t, millis) };
        if ready < 0 {
            let error = io::Error::last_os_error();
            if error.kind() == io::ErrorKind::Interrupted {
                continue;
            }
            return Err(error);
        }
        if stop_signal().is_some() {
            return Ok(Polled::Interrupted);
        }
        for (watch, fd) in watches.iter_mut().zip(&fds) {
            let closed = fd.revents & (libc::POLLHUP | libc::POLLERR | libc::POLLNVAL) != 0;
            watch.readable =
                watch.interest == Interest::Read && (fd.revents & libc::POLLIN != 0 || closed);
            watch.writable =
                watch.interest == Interest::Write && (fd.revents & libc::POLLOUT != 0 || closed);
        }
        // Not `ready`: the stop pipe counts there, and has nothing to tell that is not in `stop_signal`.
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

/// Makes reads and writes on `fd` return instead of waiting. The flag belongs to the open file: whoever shares it is
/// affected, so it is only used on ends of pipes that stay in this process.
pub(crate) fn set_nonblocking(fd: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: F_GETFL takes no pointer; `fd` is open for the length of the borrow.
    let flags = unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_GETFL) };
    if flags < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: as above; F_SETFL takes an integer.
    let result = unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_SETFL, flags | libc::O_NONBLOCK) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Lets a pipe hold `bytes` before its writers wait, more or less than now, where the system can (Linux); elsewhere
/// nothing changes.
pub(crate) fn set_pipe_size(fd: BorrowedFd<'_>, bytes: usize) {
    #[cfg(target_os = "linux")]
    {
        let bytes = libc::c_int::try_from(bytes).unwrap_or(libc::c_int::MAX);
        // SAFETY: F_SETPIPE_SZ takes an integer; `fd` is open. A refusal (limit of the user) is harmless.
        unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_SETPIPE_SZ, bytes) };
    }
    #[cfg(not(target_os = "linux"))]
    let _ = (fd, bytes);
}

/// Makes a named pipe that only its owner can open.
pub(crate) fn mkfifo(path: &Path, mode: u32) -> io::Result<()> {
    let path = c_path(path)?;
    // SAFETY: `path` is a NUL-terminated string that lives until the call returns.
    let result = unsafe { libc::mkfifo(path.as_ptr(), mode as libc::mode_t) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Makes a new directory from a template that ends in `XXXXXX`, mode 0700, and returns its name.
pub(crate) fn mkdtemp(template: &Path) -> io::Result<std::path::PathBuf> {
    let mut bytes = c_path(template)?.into_bytes_with_nul();
    // SAFETY: `bytes` is a NUL-terminated, writable buffer; mkdtemp changes only its last six characters.
    let made = unsafe { libc::mkdtemp(bytes.as_mut_ptr().cast()) };
    if made.is_null() {
        return Err(io::Error::last_os_error());
    }
    bytes.pop();
    Ok(std::path::PathBuf::from(std::ffi::OsString::from_vec(bytes)))
}

/// Whether programs can be run from the file system that holds `path` (it is not mounted `noexec`).
pub(crate) fn can_execute_from(path: &Path) -> io::Result<bool> {
    let path = c_path(path)?;
    // SAFETY: statvfs is plain old data; an all-zero value is valid.
    let mut info: libc::statvfs = unsafe { std::mem::zeroed() };
    // SAFETY: `path` is NUL-terminated and `info` a live, writable statvfs.
    if unsafe { libc::statvfs(path.as_ptr(), &mut info) } < 0 {
        return Err(io::Error::last_os_error());
    }
    #[cfg(any(target_os = "linux", target_os = "android"))]
    let executable = info.f_flag & libc::ST_NOEXEC == 0;
    #[cfg(not(any(target_os = "linux", target_os = "android")))]
    let executable = true;
    Ok(executable)
}

/// Takes (`true`) or gives up (`false`) the exclusive lock that stubs wait for. Waits if another holder is in the way.
pub(crate) fn lock_exclusive(fd: BorrowedFd<'_>, hold: bool) -> io::Result<()> {
    let operation = if hold { libc::LOCK_EX } else { libc::LOCK_UN };
    loop {
        // SAFETY: flock takes no pointer; `fd` is open for the length of the borrow.
        if unsafe { libc::flock(fd.as_raw_fd(), operation) } == 0 {
            return Ok(());
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}

/// The effective user id of this process.
pub(crate) fn effective_uid() -> u32 {
    // SAFETY: geteuid cannot fail and touches no memory of ours.
    unsafe { libc::geteuid() }
}

/// The effective group id of this process.
pub(crate) fn effective_gid() -> u32 {
    // SAFETY: getegid cannot fail and touches no memory of ours.
    unsafe { libc::getegid() }
}

/// A limit of the kernel on a process or a user.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Resource {
    /// Open descriptors of a process (RLIMIT_NOFILE).
    OpenFiles,
    /// Processes of a user (RLIMIT_NPROC).
    Processes,
}

/// The soft and hard value of a [`Resource`]; `u64::MAX` is "unlimited".
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Limit {
    /// What counts now.
    pub(crate) soft: u64,
    /// How far the process itself may raise it.
    pub(crate) hard: u64,
}

/// Reads a limit of this process.
pub(crate) fn limit(resource: Resource) -> io::Result<Limit> {
    let mut value = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `value` is a live, writable rlimit. (The type of the first argument differs between C libraries.)
    let result = unsafe {
        match resource {
            Resource::OpenFiles => libc::getrlimit(libc::RLIMIT_NOFILE, &mut value),
            Resource::Processes => libc::getrlimit(libc::RLIMIT_NPROC, &mut value),
        }
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(Limit { soft: value.rlim_cur, hard: value.rlim_max })
}

/// Sets the soft limit of this process, and with it that of every program started from now on.
pub(crate) fn set_soft_limit(resource: Resource, soft: u64) -> io::Result<()> {
    let value = libc::rlimit { rlim_cur: soft, rlim_max: limit(resource)?.hard };
    // SAFETY: `value` is a live rlimit that setrlimit only reads.
    let result = unsafe {
        match resource {
            Resource::OpenFiles => libc::setrlimit(libc::RLIMIT_NOFILE, &value),
            Resource::Processes => libc::setrlimit(libc::RLIMIT_NPROC, &value),
        }
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Sends `signal` to a process that this one has started and not yet waited for.
pub(crate) fn kill(pid: u32, signal: i32) -> io::Result<()> {
    let pid = libc::pid_t::try_from(pid).map_err(|_| io::ErrorKind::InvalidInput)?;
    // SAFETY: kill takes no pointer. The caller has not reaped `pid`, so the number cannot belong to another process.
    if unsafe { libc::kill(pid, signal) } < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Whether there is a process with this number, whoever's it is; a zombie is one.
pub(crate) fn is_process(pid: u32) -> bool {
    // 0 and negative numbers are groups.
    let Some(pid) = libc::pid_t::try_from(pid).ok().filter(|&pid| pid > 0) else { return false };
    // SAFETY: kill takes no pointer, and signal 0 is sent to nobody.
    let sent = unsafe { libc::kill(pid, 0) };
    sent == 0 || io::Error::last_os_error().raw_os_error() != Some(libc::ESRCH)
}

/// Sends `signal` to the process group `leader`, whose leader this process has started and not yet waited for.
pub(crate) fn kill_group(leader: u32, signal: i32) -> io::Result<()> {
    let leader = libc::pid_t::try_from(leader).map_err(|_| io::ErrorKind::InvalidInput)?;
    if leader <= 1 {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    // SAFETY: killpg takes no pointer. The leader has not been reaped, so the group number cannot have been reused.
    if unsafe { libc::killpg(leader, signal) } < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// Whoever is left without a parent below this process becomes its child, where the system has such a thing (Linux),
/// and not that of the first process, which in a container may never reap anybody. From then on it is to be reaped
/// here: [`reap_group`].
pub(crate) fn adopt_orphans() {
    #[cfg(target_os = "linux")]
    {
        // SAFETY: PR_SET_CHILD_SUBREAPER takes an integer. A kernel that does not know it refuses, which is harmless.
        unsafe { libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1 as libc::c_ulong) };
    }
}

/// Waits for every child of this process that is in the process group `leader`, until there is none. All of them have
/// been sent SIGKILL, and the group's leader has been waited for just now.
pub(crate) fn reap_group(leader: u32) {
    let Some(leader) = libc::pid_t::try_from(leader).ok().filter(|&leader| leader > 1) else {
        return;
    };
    loop {
        // SAFETY: a null status is allowed; nothing is written.
        let reaped = unsafe { libc::waitpid(-leader, std::ptr::null_mut(), 0) };
        if reaped < 0 && io::Error::last_os_error().kind() != io::ErrorKind::Interrupted {
            return;
        }
    }
}

/// How a child process stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ChildState {
    /// Still running.
    Running,
    /// Dead but not yet reaped: its number and its group's number are still its own.
    Ended,
}

/// Looks at a child without reaping it.
pub(crate) fn peek_child(pid: u32) -> io::Result<ChildState> {
    // SAFETY: siginfo_t is plain old data; an all-zero value is valid.
    let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
    // SAFETY: `info` is a live, writable siginfo_t. WNOWAIT leaves the child to be waited for.
    let result = unsafe {
        libc::waitid(
            libc::P_PID,
            pid as libc::id_t,
            &mut info,
            libc::WEXITED | libc::WNOHANG | libc::WNOWAIT,
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: waitid has succeeded and filled in the fields that si_pid reads (zero: nothing to report).
    let reported = unsafe { info.si_pid() };
    Ok(if reported == 0 { ChildState::Running } else { ChildState::Ended })
}

/// A descriptor that becomes readable when process `pid` ends, where the system has such a thing.
pub(crate) fn pidfd(pid: u32) -> Option<std::os::fd::OwnedFd> {
    #[cfg(target_os = "linux")]
    {
        use std::os::fd::FromRawFd;
        let pid = libc::pid_t::try_from(pid).ok()?;
        // SAFETY: pidfd_open takes two integers; the descriptor that it returns is new and close-on-exec.
        let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
        let fd = RawFd::try_from(fd).ok().filter(|fd| *fd >= 0)?;
        // SAFETY: `fd` was just opened and belongs to nobody else.
        Some(unsafe { std::os::fd::OwnedFd::from_raw_fd(fd) })
    }
    #[cfg(not(target_os = "linux"))]
    {
        let _ = pid;
        None
    }
}

/// Starts `command` with exactly the descriptors of `map` (from this process, to the child) below `below`, as
/// qmail-start does: what is not in the map is closed.
///
/// Descriptors 0, 1 and 2 are set up by [`Command`] first and are replaced or closed here. The descriptor that the
/// standard library uses to report a failed exec may be among those closed: then the child aborts instead, which the
/// caller sees as a child that ended at once.
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
static STOP_READ: AtomicI32 = AtomicI32::new(-1);
static STOP_WRITE: AtomicI32 = AtomicI32::new(-1);
// Made once and never closed: a thread may wait for it when a guard of another thread goes, and its number must not
// become that of another file meanwhile.
static STOP_PIPE: std::sync::OnceLock<(io::PipeReader, io::PipeWriter)> =
    std::sync::OnceLock::new();
static GUARDED: std::sync::Mutex<()> = std::sync::Mutex::new(());

const STOP_SIGNALS: [i32; 3] = [libc::SIGINT, libc::SIGTERM, libc::SIGHUP];

extern "C" fn on_stop_signal(signal: libc::c_int) {
    STOP_SIGNAL.store(signal, Ordering::Release);
    let fd = STOP_WRITE.load(Ordering::Acquire);
    if fd >= 0 {
        let byte = [0_u8];
        // SAFETY: write is async-signal-safe; `byte` is one readable byte. A full pipe is as good as one more byte.
        unsafe { libc::write(fd, byte.as_ptr().cast(), 1) };
    }
}

/// The signal that has asked this process to stop, since the [`SignalGuard`] was set up.
pub(crate) fn stop_signal() -> Option<i32> {
    Some(STOP_SIGNAL.load(Ordering::Acquire)).filter(|signal| *signal != 0)
}

/// The pipe by which the handler wakes a [`poll`].
fn stop_pipe() -> io::Result<&'static (io::PipeReader, io::PipeWriter)> {
    use std::os::fd::AsFd;
    if let Some(pipe) = STOP_PIPE.get() {
        return Ok(pipe);
    }
    let (reader, writer) = io::pipe()?;
    set_nonblocking(reader.as_fd())?;
    set_nonblocking(writer.as_fd())?;
    Ok(STOP_PIPE.get_or_init(|| (reader, writer)))
}

/// Takes what a signal has left there, for it would end the next wait at once.
fn drain_stop_pipe() {
    if let Some((reader, _)) = STOP_PIPE.get() {
        let mut reader: &io::PipeReader = reader;
        let mut bytes = [0_u8; 64];
        while matches!(io::Read::read(&mut reader, &mut bytes), Ok(n) if n > 0) {}
    }
}

/// While it lives, SIGINT, SIGTERM and SIGHUP do not end the process: they wake every [`poll`], which then returns
/// [`Polled::Interrupted`], so that the caller unwinds and cleans up. Dropping it restores what was there before.
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
    /// Sets the handlers. A signal that the caller ignores (nohup) stays ignored. A second guard in the same process
    /// waits for the first to go.
    pub(crate) fn install() -> io::Result<SignalGuard> {
        let only_one = GUARDED.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let (reader, writer) = stop_pipe()?;
        drain_stop_pipe();
        STOP_SIGNAL.store(0, Ordering::Release);
        STOP_WRITE.store(writer.as_raw_fd(), Ordering::Release);
        STOP_READ.store(reader.as_raw_fd(), Ordering::Release);
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
        STOP_READ.store(-1, Ordering::Release);
        STOP_WRITE.store(-1, Ordering::Release);
    }
}

/// Ends this process by `signal`, as if it had not been caught: a shell then sees what it expects after ^C.
pub(crate) fn die_of(signal: i32) {
    // SAFETY: sigaction is plain old data; an all-zero value means SIG_DFL without flags.
    let default: libc::sigaction = unsafe { std::mem::zeroed() };
    // SAFETY: `default` is a live sigaction that is only read; raise takes an integer.
    unsafe {
        libc::sigaction(signal, &default, std::ptr::null_mut());
        libc::raise(signal);
    }
}

/// A timestamp of the clock that the stubs use (CLOCK_MONOTONIC), in nanoseconds.
pub(crate) fn monotonic_ns() -> u64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `now` is a live, writable timespec.
    if unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut now) } < 0 {
        return 0;
    }
    let whole = Duration::new(
        u64::try_from(now.tv_sec).unwrap_or(0),
        u32::try_from(now.tv_nsec).unwrap_or(0),
    );
    u64::try_from(whole.as_nanos()).unwrap_or(u64::MAX)
}

fn c_path(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(|_| io::ErrorKind::InvalidInput.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    /// A proof in another thread that comes to its end (tests run several in one process) is nothing that has happened
    /// to whoever waits here, and no signal.
    #[test]
    fn the_end_of_another_thread_s_guard_ends_no_wait() {
        let (quiet, _writer) = io::pipe().expect("a pipe");
        for _ in 0..3 {
            let (caught, wait) = std::sync::mpsc::channel();
            let other = std::thread::spawn(move || {
                let guard = SignalGuard::install().expect("handlers");
                caught.send(()).expect("somebody waits");
                // Not for luck: where the wait below has not begun by then, the test holds, as it has to.
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
