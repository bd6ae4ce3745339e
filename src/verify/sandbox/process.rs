//! Programs that a proof starts. Each has a process group of its own, which ends with its owner
//! here.
#![forbid(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitStatus};
use std::time::{Duration, Instant};

use crate::sys::{self, ChildState, Interest, Polled, Watch};
use crate::verify::error::Error;

/// The longest time that a command may print nothing. After that it is given up.
pub(crate) const PATIENCE: Duration = Duration::from_secs(300);

/// A running program. Dropping it kills the program and all processes that it started in its group.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    ended: Option<OwnedFd>,
    status: Option<ExitStatus>,
}

impl Process {
    /// Starts `command`. Errors call it `name`.
    pub(crate) fn start(mut command: Command, name: &str) -> Result<Process, Error> {
        command.process_group(0);
        let child = command
            .spawn()
            .map_err(|source| Error::Program { program: name.to_owned(), source })?;
        let ended = sys::pidfd(child.id());
        Ok(Process { name: name.to_owned(), child, ended, status: None })
    }

    /// Returns the process number.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Returns the name that errors use.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Sends a signal to this process alone.
    pub fn signal(&self, signal: i32) -> Result<(), Error> {
        if self.status.is_some() {
            return Ok(());
        }
        sys::kill(self.id(), signal)
            .map_err(Error::system(format!("send signal {signal} to {}", self.name)))
    }

    /// Waits for the end of the process, at most `patience`.
    pub fn wait(&mut self, patience: Duration) -> Result<ExitStatus, Error> {
        if let Some(status) = self.status {
            return Ok(status);
        }
        let until = Instant::now() + patience;
        loop {
            if sys::peek_child(self.id())
                .map_err(Error::system(format!("wait for {}", self.name)))?
                == ChildState::Ended
            {
                return self.reap();
            }
            // Without a pidfd there is no event for the end of the process, so look every 5 ms.
            let (mut watches, wake) = match &self.ended {
                Some(fd) => (vec![Watch::new(fd.as_fd(), Interest::Read)], until),
                None => (Vec::new(), until.min(Instant::now() + Duration::from_millis(5))),
            };
            match sys::poll(&mut watches, wake)
                .map_err(Error::system(format!("wait for {}", self.name)))?
            {
                Polled::Interrupted => return Err(interrupted()),
                Polled::TimedOut if Instant::now() >= until => {
                    return Err(Error::Timeout {
                        waited_for: format!("{} to end", self.name),
                        seconds: patience.as_secs(),
                        seen: "it still runs".to_owned(),
                    });
                }
                Polled::TimedOut | Polled::Ready => {}
            }
        }
    }

    fn reap(&mut self) -> Result<ExitStatus, Error> {
        // Kill the group first: once its leader is reaped, its number may belong to another
        // process.
        let _ = sys::kill_group(self.id(), libc::SIGKILL);
        let status = self.child.wait().map_err(Error::system(format!("wait for {}", self.name)))?;
        sys::reap_group(self.id());
        self.status = Some(status);
        Ok(status)
    }

    /// Kills the process and its group now.
    pub(crate) fn destroy(&mut self) {
        if self.status.is_none() {
            let _ = sys::kill_group(self.id(), libc::SIGKILL);
            let _ = self.child.kill();
            self.status = self.child.wait().ok();
            sys::reap_group(self.id());
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.destroy();
    }
}

/// Returns in words how a process ended.
pub(crate) fn describe(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit code {code}"),
        (None, Some(signal)) => {
            let name = match signal {
                libc::SIGABRT => " (abort)",
                libc::SIGSEGV => " (segmentation fault)",
                libc::SIGBUS => " (bus error)",
                libc::SIGILL => " (illegal instruction)",
                libc::SIGKILL => " (kill)",
                libc::SIGTERM => " (terminate)",
                libc::SIGPIPE => " (broken pipe)",
                _ => "",
            };
            format!("signal {signal}{name}")
        }
        (None, None) => "an unknown cause".to_owned(),
    }
}

/// Returns the error for a stop signal.
pub(crate) fn interrupted() -> Error {
    Error::Interrupted(sys::stop_signal().unwrap_or(libc::SIGTERM))
}

/// Runs `command` to its end. Returns its status and its output (both streams, in order).
pub(crate) fn run_captured(
    mut command: Command,
    name: &str,
    patience: Duration,
) -> Result<(ExitStatus, Vec<u8>), Error> {
    let (mut reader, writer) = io::pipe().map_err(Error::system("make a pipe"))?;
    sys::set_nonblocking(reader.as_fd()).map_err(Error::system("set up a pipe"))?;
    let second = writer.try_clone().map_err(Error::system("set up a pipe"))?;
    command.stdin(std::process::Stdio::null()).stdout(writer).stderr(second);
    let mut process = Process::start(command, name)?;
    let mut output = Vec::new();
    let mut until = Instant::now() + patience;
    loop {
        let mut watches = [Watch::new(reader.as_fd(), Interest::Read)];
        match sys::poll(&mut watches, until).map_err(Error::system(format!("wait for {name}")))? {
            Polled::Interrupted => return Err(interrupted()),
            Polled::TimedOut => {
                return Err(Error::Timeout {
                    waited_for: format!("{name} to finish"),
                    seconds: patience.as_secs(),
                    seen: format!("its last output: {}", last_line(&output)),
                });
            }
            Polled::Ready => {}
        }
        let mut buffer = [0_u8; 16384];
        match io::Read::read(&mut reader, &mut buffer) {
            Ok(0) => break,
            Ok(n) => {
                output.extend_from_slice(&buffer[..n]);
                until = Instant::now() + patience;
            }
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
                ) => {}
            Err(source) => {
                return Err(Error::System { action: format!("read what {name} prints"), source });
            }
        }
    }
    let status = process.wait(patience)?;
    Ok((status, output))
}

/// Returns the end of a program's output on one line, for an error; empty if it said nothing.
pub(crate) fn last_words(said: &[u8]) -> String {
    const MOST: usize = 400;
    let text = String::from_utf8_lossy(said);
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let shown = lines[lines.len().saturating_sub(5)..].join(" | ");
    let from = shown.char_indices().rev().nth(MOST).map_or(0, |(at, _)| at);
    shown[from..].to_owned()
}

fn last_line(output: &[u8]) -> String {
    let text = String::from_utf8_lossy(output);
    text.trim_end().lines().next_back().unwrap_or("none").to_owned()
}
