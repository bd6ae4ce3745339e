//! The tree's real qmail-rspawn or qmail-lspawn, run over its pipes as qmail-start would run it.
#![forbid(unsafe_code)]

use std::fmt;
use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::pipes::{Incoming, Outgoing};
use super::protocol::{self, Command, Report, Width};
use super::stub::Stubs;
use crate::sys::{self, Interest, Polled, Watch};
use crate::verify::error::Error;
use crate::verify::sandbox::private_tree::Sandbox;
use crate::verify::sandbox::process::{Process, describe, interrupted, last_words};

/// Which of the two spawners.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Channel {
    /// qmail-lspawn, which starts qmail-local.
    Local,
    /// qmail-rspawn, which starts qmail-remote.
    Remote,
}

impl Channel {
    /// The spawner's name.
    pub fn program(self) -> &'static str {
        match self {
            Channel::Local => "qmail-lspawn",
            Channel::Remote => "qmail-rspawn",
        }
    }

    /// Returns the name that stubs of this channel report.
    pub fn stub(self) -> &'static str {
        match self {
            Channel::Local => "local",
            Channel::Remote => "remote",
        }
    }

    pub(crate) fn command(self, sandbox: &Sandbox) -> std::process::Command {
        use std::os::unix::process::CommandExt;
        let bin = sandbox.home().join("bin");
        let mut command = sandbox.command(bin.join(self.program()));
        command.arg0(self.program()).current_dir("/").env("PATH", search_path(sandbox));
        if self == Channel::Local {
            command.arg("./Mailbox");
        }
        command
    }
}

impl fmt::Display for Channel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.program())
    }
}

/// Returns a PATH that begins with the home's bin/, as in qmail's start scripts: qmail-rspawn looks for qmail-remote
/// there.
pub(crate) fn search_path(sandbox: &Sandbox) -> std::ffi::OsString {
    let mut path = sandbox.home().join("bin").into_os_string();
    if let Some(rest) = std::env::var_os("PATH") {
        path.push(":");
        path.push(rest);
    }
    path
}

/// The longest time without any event before a wait ends. The whole wait may take longer, because a slow machine that
/// makes progress is not at fault.
pub const IDLE: Duration = Duration::from_secs(60);

/// Where a spawner's standard error goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stderr {
    /// It is closed, as under qmail-start, so that descriptor 2 may be the pipe of a delivery.
    Closed,
    /// Into a file, so that an error can quote it.
    Kept,
}

/// A running spawner.
#[derive(Debug)]
pub struct Spawner {
    channel: Channel,
    /// The file with its standard error, if it is kept.
    errors: Option<PathBuf>,
    process: Process,
    input: Option<Outgoing>,
    output: Incoming,
    width: Width,
    announced: u32,
    reports: Vec<Report>,
    idle: Duration,
}

/// The deliveries and reports since the last trial began.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeliveryCounts {
    /// Stubs that have reported their start.
    pub started: usize,
    /// Stubs that have reported their end.
    pub ended: usize,
    /// Reports that have come and are not taken yet.
    pub reports: usize,
}

impl Spawner {
    /// Starts the spawner that is installed in the sandbox's home, and finds out which protocol it speaks. Its standard
    /// error is closed.
    ///
    /// # Errors
    /// It died, or did not announce its conf-spawn and refuse a bad command.
    pub fn start(sandbox: &Sandbox, stubs: &mut Stubs, channel: Channel) -> Result<Spawner, Error> {
        Spawner::start_with(sandbox, stubs, channel, Stderr::Closed)
    }

    /// Does the same, with its standard error as `errors` says.
    pub fn start_with(
        sandbox: &Sandbox,
        stubs: &mut Stubs,
        channel: Channel,
        errors: Stderr,
    ) -> Result<Spawner, Error> {
        let (child_in, our_out) = io::pipe().map_err(Error::system("make a pipe"))?;
        let (our_in, child_out) = io::pipe().map_err(Error::system("make a pipe"))?;
        let mut command = channel.command(sandbox);
        let path = sandbox.rig().join(format!("{}.errors", channel.program()));
        let file = match errors {
            Stderr::Closed => None,
            Stderr::Kept => Some(emptied(sandbox, &path)?),
        };
        // qmail-start closes 2..6, so that descriptor 2 may be the pipe of a delivery.
        let mut map = vec![(child_in.as_raw_fd(), 0), (child_out.as_raw_fd(), 1)];
        map.extend(file.as_ref().map(|file| (file.as_raw_fd(), 2)));
        sys::map_descriptors(&mut command, map, 7);
        let process = Process::start(command, channel.program())?;
        drop((child_in, child_out));
        let mut spawner = Spawner {
            channel,
            errors: file.map(|_| path.clone()),
            process,
            input: Some(Outgoing::new(our_out)?),
            output: Incoming::new(our_in)?,
            width: Width::Two,
            announced: 0,
            reports: Vec::new(),
            idle: IDLE,
        };
        match spawner.greet(stubs) {
            Err(Error::Died { program, how, context, cause, .. }) => {
                let said = last_words_at_start(sandbox, channel, &path)?;
                Err(Error::Died { program, how, context, said, cause })
            }
            greeted => greeted.map(|()| spawner),
        }
    }

    fn greet(&mut self, stubs: &mut Stubs) -> Result<(), Error> {
        self.push(protocol::PROBE);
        let greeting = loop {
            if let Some(greeting) = protocol::read_greeting(self.output.pending()) {
                break greeting;
            }
            if !self.step(stubs, Instant::now() + self.idle)? {
                return Err(Error::Timeout {
                    waited_for: format!(
                        "{} to say its conf-spawn and refuse a bad command",
                        self.channel
                    ),
                    seconds: self.idle.as_secs(),
                    seen: format!("it had written {} bytes", self.output.pending().len()),
                });
            }
            if !self.output.is_open() && protocol::read_greeting(self.output.pending()).is_none() {
                return Err(self.died("at its start, before it said its conf-spawn"));
            }
        };
        self.width = greeting.width;
        self.announced = greeting.announced;
        self.output.take(greeting.len);
        if self.width == Width::One {
            self.push(protocol::PROBE_REST_ONE);
            self.wait(stubs, "the second answer of the probe", |seen| seen.reports >= 1)?;
            self.reports.clear();
        }
        Ok(())
    }

    /// Returns which of the two it is.
    pub fn channel(&self) -> Channel {
        self.channel
    }

    /// Returns the protocol that it speaks.
    pub fn width(&self) -> Width {
        self.width
    }

    /// Returns the conf-spawn that it announced.
    pub fn announced(&self) -> u32 {
        self.announced
    }

    /// Returns its process.
    pub fn process(&self) -> &Process {
        &self.process
    }

    /// Ends a wait after `idle` without any event, instead of after [`IDLE`].
    pub fn set_idle(&mut self, idle: Duration) {
        self.idle = idle;
    }

    /// Sends a command. It is written as soon as the spawner reads.
    pub fn send(&mut self, command: &Command) {
        let bytes = command.encode(self.width);
        self.push(&bytes);
    }

    fn push(&mut self, bytes: &[u8]) {
        if let Some(input) = &mut self.input {
            input.push(bytes);
        }
    }

    /// Closes the spawner's input, as happens when qmail-send ends.
    pub fn close_input(&mut self) {
        self.input = None;
    }

    /// Takes the reports that have come so far.
    pub fn take_reports(&mut self) -> Vec<Report> {
        std::mem::take(&mut self.reports)
    }

    /// Waits until `done` returns true. `waiting_for` completes "waited for" in an error.
    ///
    /// # Errors
    /// Nothing happened for [`IDLE`], or the spawner died.
    pub fn wait(
        &mut self,
        stubs: &mut Stubs,
        waiting_for: &str,
        mut done: impl FnMut(DeliveryCounts) -> bool,
    ) -> Result<(), Error> {
        loop {
            let seen = self.seen(stubs);
            if done(seen) {
                return Ok(());
            }
            if !self.output.is_open() {
                return Err(self.died(&format!(
                    "while the rig waited for {waiting_for}; {} deliveries had started, {} had ended",
                    seen.started, seen.ended
                )));
            }
            if !self.step(stubs, Instant::now() + self.idle)? {
                return Err(Error::Timeout {
                    waited_for: format!("{waiting_for} ({})", self.channel),
                    seconds: self.idle.as_secs(),
                    seen: format!(
                        "{} deliveries had started, {} had ended, {} reports had come",
                        seen.started, seen.ended, seen.reports
                    ),
                });
            }
        }
    }

    /// Waits for the end of the spawner after its input was closed.
    pub fn wait_exit(&mut self, stubs: &mut Stubs) -> Result<std::process::ExitStatus, Error> {
        while self.output.is_open() {
            if !self.step(stubs, Instant::now() + self.idle)? {
                return Err(Error::Timeout {
                    waited_for: format!("{} to exit after the end of its input", self.channel),
                    seconds: self.idle.as_secs(),
                    seen: format!("{:?}", self.seen(stubs)),
                });
            }
        }
        self.process.wait(self.idle)
    }

    fn seen(&self, stubs: &Stubs) -> DeliveryCounts {
        let (started, ended) = stubs.counts();
        DeliveryCounts { started, ended, reports: self.reports.len() }
    }

    /// Waits for an event and handles it; returns false if there was none until `until`.
    fn step(&mut self, stubs: &mut Stubs, until: Instant) -> Result<bool, Error> {
        let mut watches = vec![
            Watch::new(self.output.fd(), Interest::Read),
            Watch::new(stubs.fd(), Interest::Read),
        ];
        if let Some(input) = self.input.as_ref().filter(|input| input.is_pending()) {
            watches.push(Watch::new(input.fd(), Interest::Write));
        }
        match sys::poll(&mut watches, until).map_err(Error::system("wait for a spawner"))? {
            Polled::Interrupted => return Err(interrupted()),
            Polled::TimedOut => return Ok(false),
            Polled::Ready => {}
        }
        stubs.read()?;
        if let Some(input) = &mut self.input {
            input.write()?;
        }
        self.output.read()?;
        // Reports can be read only after the greeting.
        if self.announced > 0 || self.width == Width::One {
            while let Some((report, len)) = Report::decode(self.output.pending(), self.width) {
                self.output.take(len);
                if !report.is_from_gate() {
                    self.reports.push(report);
                }
            }
        }
        Ok(true)
    }

    fn died(&mut self, context: &str) -> Error {
        let status = match self.process.wait(self.idle) {
            Ok(status) => status,
            Err(error) => return error,
        };
        Error::Died {
            program: self.channel.program().to_owned(),
            how: describe(status),
            context: context.to_owned(),
            said: self.errors.as_deref().map(last_words_in).unwrap_or_default(),
            cause: likely_cause_of_death(status),
        }
    }
}

/// Starts another spawner, with nothing to do, and returns what it writes on standard error. This shows why one ended
/// at its start: [`Spawner::start`] closes standard error, as qmail-start does.
fn last_words_at_start(
    sandbox: &Sandbox,
    channel: Channel,
    errors: &Path,
) -> Result<String, Error> {
    let file = emptied(sandbox, errors)?;
    let null = File::open("/dev/null").map_err(Error::file("open", "/dev/null"))?;
    let sink = File::options().write(true).open("/dev/null");
    let sink = sink.map_err(Error::file("open", "/dev/null"))?;
    let mut command = channel.command(sandbox);
    let map = vec![(null.as_raw_fd(), 0), (sink.as_raw_fd(), 1), (file.as_raw_fd(), 2)];
    sys::map_descriptors(&mut command, map, 7);
    // How it ends does not matter, only its message.
    let ended = Process::start(command, channel.program())?.wait(Duration::from_secs(5));
    if let Err(error @ Error::Interrupted(_)) = ended {
        return Err(error);
    }
    Ok(last_words_in(errors))
}

/// Makes the file `path` empty, for the standard error of a program.
fn emptied(sandbox: &Sandbox, path: &Path) -> Result<File, Error> {
    sandbox.write(path, &[])?;
    File::options().append(true).open(path).map_err(Error::file("open", path))
}

/// Returns the last words of a program in the file with its standard error.
fn last_words_in(errors: &Path) -> String {
    last_words(&fs::read(errors).unwrap_or_default())
}

/// Runs `trial` with the spawner's standard error closed. If the spawner dies, runs `trial` again with standard error
/// open, so that the error can quote the spawner. If it does not die again, the error says so.
pub(crate) fn with_last_words<T>(
    mut trial: impl FnMut(Stderr) -> Result<T, Error>,
) -> Result<T, Error> {
    match trial(Stderr::Closed) {
        Err(Error::Died { program, how, context, said, cause }) if said.is_empty() => {
            let again = trial(Stderr::Kept);
            let (said, context) = match again {
                Err(error @ Error::Interrupted(_)) => return Err(error),
                Err(Error::Died { program: again, said, .. }) if again == program => {
                    (said, context)
                }
                _ => {
                    (said, format!("{context} (once; with its standard error open it did not end)"))
                }
            };
            Err(Error::Died { program, how, context, said, cause })
        }
        first => first,
    }
}

/// Returns what usually ends a spawner in this way; empty if unknown.
pub(crate) fn likely_cause_of_death(status: std::process::ExitStatus) -> &'static str {
    use std::os::unix::process::ExitStatusExt;
    match status.signal() {
        Some(libc::SIGABRT) => {
            "under _FORTIFY_SOURCE the C library aborts on a descriptor of 1024 or more in FD_SET, whatever the size of \
             the tree's fd_set; qpatch apply (fd-setsize) takes care of that; otherwise on memory that was damaged or freed \
             wrongly (-fsanitize=address in conf-cc and conf-ld shows where)"
        }
        Some(libc::SIGSEGV | libc::SIGBUS) => {
            "a pointer cut to 32 bits (alloc without a declaration), or memory overwritten by FD_SET beyond the tree's \
             fd_set; qpatch apply (toolchain, fd-setsize) takes care of both"
        }
        _ => match status.code() {
            // The exit codes of qmail's programs that cannot read a file that they need.
            Some(111 | 112) => {
                "it may want control files of its own (a fork with LDAP or SQL): verify --control DIR gives it those in DIR"
            }
            _ => "",
        },
    }
}
