//! The tree's own qmail-send on a scratch queue. The tree's own qmail-start starts it, so that its descriptors are
//! those of that tree (trees with qmail-todo or more channels have more of them).
//!
//! The spawners are either the tree's, with stubs at the far end, or relays. Behind a relay, the rig itself plays the
//! spawner, and can use all 65000 delivery numbers at once without a process or a descriptor for each.
//!
//! The programs never deadlock, even if all pipes are full, because they do not wait for each other in a circle:
//!
//! - The rig waits only in poll. It reads the log, the commands and the stubs' events completely whenever there are
//!   any, and keeps what a relay does not take yet.
//! - qmail-send waits for the rig to read its log, and for qmail-clean and qmail-queue, which wait for none of the
//!   others. It writes commands with O_NONBLOCK, and reads reports after select has seen some.
//! - A relay has one thread for both directions. It waits for the rig to read a command, or for qmail-send to read a
//!   report. Meanwhile it reads no commands, and qmail-send does not wait for that.

use std::fs::{self, File};
use std::io::{self, PipeReader, Read};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::log::Log;
use super::pipes::Incoming;
use super::protocol::{Command, Report, Width};
use super::spawner::{Channel, IDLE, likely_cause_of_death, search_path};
use super::stub::Stubs;
use crate::sys::{self, Interest, Polled, Resource, Watch};
use crate::verify::error::Error;
use crate::verify::sandbox::private_tree::Sandbox;
use crate::verify::sandbox::process::{Process, describe, interrupted, last_words};

/// The programs of a tree that [`SendRig`] needs. See also [`OPTIONAL_PROGRAMS`].
pub const PROGRAMS: [&str; 6] =
    ["qmail-start", "qmail-send", "qmail-clean", "qmail-queue", "qmail-rspawn", "qmail-lspawn"];

/// A program that some trees run beside qmail-send.
pub const OPTIONAL_PROGRAMS: [&str; 1] = ["qmail-todo"];

/// The smallest pipe of Linux, in bytes. The pipes of a user with more than fs.pipe-user-pages-soft are as small. With
/// this size, the pipes of a trial with relays are full on both sides most of the time.
const SMALL_PIPE: usize = 4096;

/// How long nothing may happen after SIGTERM before it is sent again.
const SIGTERM_AGAIN: Duration = Duration::from_secs(1);

/// The file of the rig that is the programs' standard error.
const ERRORS: &str = "errors";

/// Who plays the spawners.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Spawners {
    /// The tree's own qmail-lspawn and qmail-rspawn.
    Own,
    /// The rig, through relays that announce conf-spawn as a spawner does.
    Played {
        /// The protocol to speak.
        width: Width,
        /// The conf-spawn to announce on every channel.
        spawn: u32,
    },
}

/// A running qmail-send with its helpers.
#[derive(Debug)]
pub struct SendRig {
    process: Process,
    log: Log,
    pipe: Incoming,
    relays: Vec<Relay>,
    idle: Duration,
    /// The file that is standard error of qmail-start, and of the programs that inherit it.
    errors: PathBuf,
}

/// The rig's end of one spawner that it plays itself.
#[derive(Debug)]
pub struct Relay {
    channel: Channel,
    width: Width,
    from: File,
    to: File,
    bytes: Vec<u8>,
    outgoing: Vec<u8>,
    commands: Vec<Command>,
    first: Option<u8>,
}

impl Relay {
    /// Makes the files of one relay, and announces conf-spawn.
    fn open(
        dir: &Path,
        sandbox: &Sandbox,
        channel: Channel,
        number: usize,
        width: Width,
        spawn: u32,
    ) -> Result<Relay, Error> {
        let file = |kind: &str| dir.join(format!("{}.{number}.{kind}", channel.stub()));
        sandbox.write(&file("lock"), &[])?;
        let open = |kind: &str| -> Result<File, Error> {
            let path = file(kind);
            let _ = fs::remove_file(&path);
            sys::mkfifo(&path, 0o600).map_err(Error::file("make the pipe", &path))?;
            sandbox.identity().chown(&path)?;
            // Open it both ways: then neither side sees an end of file before the other side has opened it.
            let fifo = File::options()
                .read(true)
                .write(true)
                .custom_flags(libc::O_NONBLOCK)
                .open(&path)
                .map_err(Error::file("open", &path))?;
            sys::set_pipe_size(fifo.as_fd(), SMALL_PIPE);
            Ok(fifo)
        };
        let (from, to) = (open("cmd")?, open("rep")?);
        let mut outgoing = Vec::new();
        width.push(spawn, &mut outgoing);
        Ok(Relay {
            channel,
            width,
            from,
            to,
            bytes: Vec::new(),
            outgoing,
            commands: Vec::new(),
            first: None,
        })
    }

    /// Returns the channel that it plays.
    pub fn channel(&self) -> Channel {
        self.channel
    }

    /// Takes the commands that qmail-send has sent so far.
    pub fn take_commands(&mut self) -> Vec<Command> {
        std::mem::take(&mut self.commands)
    }

    /// Answers a command.
    pub fn report(&mut self, report: &Report) {
        self.outgoing.extend_from_slice(&report.encode(self.width));
    }

    fn read(&mut self) -> Result<(), Error> {
        let mut buffer = [0_u8; 65536];
        loop {
            match self.from.read(&mut buffer) {
                Ok(0) => break,
                Ok(n) => self.bytes.extend_from_slice(&buffer[..n]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(Error::system("read a relay")(error)),
            }
        }
        // The first command is for delivery 0, and its message begins with a digit. So the second byte shows how many
        // bytes qmail-send writes for a number.
        if self.first.is_none() && self.bytes.len() >= 2 {
            self.first = Some(self.bytes[1]);
        }
        if let Some(second) = self.first {
            let wrote = if second == 0 { Width::Two } else { Width::One };
            if wrote != self.width {
                return Err(wrong_width(wrote, self.width));
            }
        }
        let mut taken = 0;
        while let Some((command, len)) = Command::decode(&self.bytes[taken..], self.width) {
            self.commands.push(command);
            taken += len;
        }
        self.bytes.drain(..taken);
        Ok(())
    }

    fn write(&mut self) -> Result<(), Error> {
        let mut written = 0;
        while written < self.outgoing.len() {
            match io::Write::write(&mut self.to, &self.outgoing[written..]) {
                Ok(n) => written += n,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(Error::system("write to a relay")(error)),
            }
        }
        self.outgoing.drain(..written);
        Ok(())
    }
}

fn wrong_width(wrote: Width, wanted: Width) -> Error {
    let words = |width: Width| match width {
        Width::One => "one byte",
        Width::Two => "two bytes",
    };
    Error::disproved(
        "qmail-send, the width of its delivery numbers",
        format!("{}, as the tree's spawners speak", words(wanted)),
        words(wrote),
        "spawn.c and qmail-send.c are not patched alike: every delivery would be refused or reported for another one; \
         qpatch apply (big-concurrency) makes both right",
    )
}

impl SendRig {
    /// Starts qmail-start in the sandbox's home, whose bin/ holds [`PROGRAMS`] and the stubs.
    pub fn start(sandbox: &Sandbox, spawners: Spawners) -> Result<SendRig, Error> {
        let mut path = search_path(sandbox);
        let mut relays = Vec::new();
        if let Spawners::Played { width, spawn } = spawners {
            let dir = sandbox.rig().join("relay");
            fs::create_dir_all(&dir).map_err(Error::file("make", &dir))?;
            sandbox.identity().chown(&dir)?;
            // Make a few more relays than the known channels need; an unused one does no harm. Each takes two
            // descriptors, so make no more than needed if there are few.
            let known = 1 + sandbox.supplemental().count as usize;
            let room = sys::limit(Resource::OpenFiles).soft;
            let remote = if room > 64 + 2 * known as u64 { known.max(8) } else { known };
            for (channel, count) in [(Channel::Local, 1), (Channel::Remote, remote)] {
                let link = dir.join(channel.program());
                let _ = fs::remove_file(&link);
                std::os::unix::fs::symlink(sandbox.rig().join("stub"), &link)
                    .map_err(Error::file("make", &link))?;
                for number in 0..count {
                    relays.push(Relay::open(&dir, sandbox, channel, number, width, spawn)?);
                }
            }
            let mut with_relays = dir.into_os_string();
            with_relays.push(":");
            with_relays.push(path);
            path = with_relays;
        }
        let (reader, process) = start_programs(sandbox, path)?;
        if !relays.is_empty() {
            sys::set_pipe_size(reader.as_fd(), SMALL_PIPE);
        }
        Ok(SendRig {
            process,
            log: Log::default(),
            pipe: Incoming::new(reader)?,
            relays,
            idle: IDLE,
            errors: sandbox.rig().join(ERRORS),
        })
    }

    /// Returns what qmail-send has logged.
    pub fn log(&self) -> &Log {
        &self.log
    }

    pub(crate) fn log_mut(&mut self) -> &mut Log {
        &mut self.log
    }

    /// Returns the spawners that the rig plays.
    pub fn relays(&mut self) -> &mut [Relay] {
        &mut self.relays
    }

    /// Returns the process, which was qmail-start and is now qmail-send.
    pub fn process(&self) -> &Process {
        &self.process
    }

    /// Ends a wait after `idle` without any event, instead of after [`IDLE`].
    pub fn set_idle(&mut self, idle: Duration) {
        self.idle = idle;
    }

    /// Waits until `done` returns true. It is called after every event, and may answer commands. `waiting_for`
    /// completes "waited for" in an error.
    ///
    /// # Errors
    /// Nothing happened for [`IDLE`], qmail-send died, or `done` failed.
    pub fn wait(
        &mut self,
        stubs: &mut Stubs,
        waiting_for: &str,
        mut done: impl FnMut(&mut SendRig, &Stubs) -> Result<bool, Error>,
    ) -> Result<(), Error> {
        loop {
            if done(self, stubs)? {
                return Ok(());
            }
            if !self.pipe.is_open() {
                return Err(self.died(waiting_for));
            }
            if !self.step(stubs, Instant::now() + self.idle)? {
                let (started, ended) = stubs.counts();
                return Err(Error::Timeout {
                    waited_for: waiting_for.to_owned(),
                    seconds: self.idle.as_secs(),
                    seen: format!(
                        "qmail-send had started {} deliveries and ended {}, stubs had started {started} and ended \
                         {ended}; its last complaint: {}",
                        self.log.deliveries.len(),
                        self.log.ended,
                        self.log.complaints.last().map_or("none", String::as_str)
                    ),
                });
            }
        }
    }

    /// Reads everything that is there, without waiting, so that no program has to wait for the rig.
    pub fn attend(&mut self, stubs: &mut Stubs) -> Result<(), Error> {
        while self.step(stubs, Instant::now())? {}
        Ok(())
    }

    /// Waits for an event and handles it; returns false if there was none until `until`. If poll returns early without
    /// one, the wait goes on.
    fn step(&mut self, stubs: &mut Stubs, until: Instant) -> Result<bool, Error> {
        loop {
            let mut watches = vec![Watch::new(stubs.fd(), Interest::Read)];
            if self.pipe.is_open() {
                watches.push(Watch::new(self.pipe.fd(), Interest::Read));
            }
            for relay in &self.relays {
                watches.push(Watch::new(relay.from.as_fd(), Interest::Read));
                if !relay.outgoing.is_empty() {
                    watches.push(Watch::new(relay.to.as_fd(), Interest::Write));
                }
            }
            match sys::poll(&mut watches, until).map_err(Error::system("wait for qmail-send"))? {
                Polled::Interrupted => return Err(interrupted()),
                Polled::TimedOut => return Ok(false),
                Polled::Ready => {}
            }
            let mut alive = watches.iter().any(|watch| watch.readable);
            stubs.read()?;
            self.pipe.read()?;
            let pending = self.pipe.pending();
            self.log.take(pending);
            let len = pending.len();
            self.pipe.take(len);
            for relay in &mut self.relays {
                relay.read()?;
                let before = relay.outgoing.len();
                relay.write()?;
                alive |= relay.outgoing.len() < before;
            }
            if alive || Instant::now() >= until {
                return Ok(alive);
            }
        }
    }

    /// Sends SIGTERM: qmail-send starts no more deliveries, and exits when the last one is reported.
    pub fn terminate(&self) -> Result<(), Error> {
        self.process.signal(libc::SIGTERM)
    }

    /// Kills qmail-send alone, as a crash would; the spawners find that their pipes have no other end any more.
    pub fn crash(&mut self, stubs: &mut Stubs) -> Result<(), Error> {
        self.process.signal(libc::SIGKILL)?;
        while self.pipe.is_open() {
            if !self.step(stubs, Instant::now() + self.idle)? {
                return Err(Error::Timeout {
                    waited_for: "the end of qmail-send after SIGKILL".to_owned(),
                    seconds: self.idle.as_secs(),
                    seen: "its log is still open".to_owned(),
                });
            }
        }
        Ok(())
    }

    /// Waits for the end of qmail-send after [`terminate`](Self::terminate), and returns its log.
    ///
    /// It repeats SIGTERM each second in which nothing happens. Any qmail-send looks whether SIGTERM came, and then
    /// waits in select: a signal that arrives in between ends nothing until select returns, which may take hours.
    pub fn wait_exit(mut self, stubs: &mut Stubs) -> Result<Log, Error> {
        let mut heard = Instant::now();
        while self.pipe.is_open() {
            if self.step(stubs, Instant::now() + SIGTERM_AGAIN.min(self.idle))? {
                heard = Instant::now();
            } else if heard.elapsed() < self.idle {
                self.terminate()?;
            } else {
                return Err(Error::Timeout {
                    waited_for: "qmail-send to exit after SIGTERM".to_owned(),
                    seconds: self.idle.as_secs(),
                    seen: format!(
                        "{} deliveries had started, {} had ended",
                        self.log.deliveries.len(),
                        self.log.ended
                    ),
                });
            }
        }
        // An event of a stub that came before the last line of the log may not be read yet.
        stubs.read()?;
        let status = self.process.wait(self.idle)?;
        if status.code() == Some(0) && self.log.exiting {
            return Ok(std::mem::take(&mut self.log));
        }
        Err(Error::disproved(
            "qmail-send after SIGTERM",
            "\"status: exiting\" and exit code 0",
            describe(status),
            match self.last_words() {
                said if said.is_empty() => said,
                said => format!("its last words: {said:?}"),
            },
        ))
    }

    fn died(&mut self, waiting_for: &str) -> Error {
        let status = match self.process.wait(self.idle) {
            Ok(status) => status,
            Err(error) => return error,
        };
        let context = format!(
            "while the rig waited for {waiting_for}; {} deliveries had started, {} had ended",
            self.log.deliveries.len(),
            self.log.ended
        );
        Error::Died {
            program: "qmail-send".to_owned(),
            how: describe(status),
            context,
            said: self.last_words(),
            cause: likely_cause_of_death(status),
        }
    }

    /// Returns the last words of the programs on standard error or, if there are none, in the log.
    fn last_words(&self) -> String {
        let said = fs::read(&self.errors).unwrap_or_default();
        if last_words(&said).is_empty() { self.log.last.clone() } else { last_words(&said) }
    }
}

/// Starts the tree's own programs without a rig. Returns qmail-send's log and its process.
pub fn start_own(sandbox: &Sandbox) -> Result<(PipeReader, Process), Error> {
    start_programs(sandbox, search_path(sandbox))
}

fn start_programs(
    sandbox: &Sandbox,
    path: std::ffi::OsString,
) -> Result<(PipeReader, Process), Error> {
    let (reader, writer) = io::pipe().map_err(Error::system("make a pipe"))?;
    let null = File::open("/dev/null").map_err(Error::file("open", "/dev/null"))?;
    let errors = sandbox.rig().join(ERRORS);
    sandbox.write(&errors, &[])?;
    let said = File::options().append(true).open(&errors).map_err(Error::file("open", &errors))?;
    let mut command = sandbox.command(sandbox.home().join("bin/qmail-start"));
    command.arg("./Mailbox").env("PATH", path).current_dir("/");
    let map = vec![(null.as_raw_fd(), 0), (writer.as_raw_fd(), 1), (said.as_raw_fd(), 2)];
    // As under a supervisor, no descriptor above 2 is open when qmail-start begins.
    sys::map_descriptors(&mut command, map, 16);
    let process = Process::start(command, "qmail-start")?;
    Ok((reader, process))
}

/// Wakes qmail-send to look into queue/todo, as qmail-queue does.
pub fn pull_trigger(sandbox: &Sandbox) -> Result<(), Error> {
    let path = sandbox.home().join("queue/lock/trigger");
    let opened = File::options().write(true).custom_flags(libc::O_NONBLOCK).open(&path);
    match opened {
        // qmail-send does not run. It looks into queue/todo when it starts.
        Err(error) if error.raw_os_error() == Some(libc::ENXIO) => Ok(()),
        Err(error) => Err(Error::file("open", &path)(error)),
        Ok(trigger) => pull(trigger).map_err(Error::file("write", &path)),
    }
}

fn pull(mut trigger: impl io::Write) -> io::Result<()> {
    match trigger.write(&[0]) {
        // The trigger is pulled already; or qmail-send has closed it to open it again, and looks into queue/todo after
        // that.
        Err(error)
            if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::BrokenPipe) =>
        {
            Ok(())
        }
        written => written.map(drop),
    }
}

/// Queues a message by running the tree's own qmail-queue.
pub fn run_qmail_queue(
    sandbox: &Sandbox,
    body: &[u8],
    sender: &str,
    recipients: &[String],
) -> Result<(), Error> {
    let mut envelope = format!("F{sender}\0").into_bytes();
    for recipient in recipients {
        envelope.extend_from_slice(format!("T{recipient}\0").as_bytes());
    }
    envelope.push(0);
    // Both fit into a pipe, so they can be written before qmail-queue reads.
    let feed = |bytes: &[u8]| -> io::Result<PipeReader> {
        let (reader, mut writer) = io::pipe()?;
        io::Write::write_all(&mut writer, bytes)?;
        Ok(reader)
    };
    if body.len() > 4096 || envelope.len() > 4096 {
        return Err(Error::System {
            action: "queue a message of more than 4096 bytes".to_owned(),
            source: io::ErrorKind::InvalidInput.into(),
        });
    }
    let body = feed(body).map_err(Error::system("make a pipe"))?;
    let envelope = feed(&envelope).map_err(Error::system("make a pipe"))?;
    let mut command = sandbox.command(sandbox.home().join("bin/qmail-queue"));
    command.current_dir("/");
    sys::map_descriptors(&mut command, vec![(body.as_raw_fd(), 0), (envelope.as_raw_fd(), 1)], 7);
    let status = Process::start(command, "qmail-queue")?.wait(IDLE)?;
    if status.success() {
        return Ok(());
    }
    Err(Error::disproved(
        "qmail-queue, a message with a correct envelope",
        "exit code 0",
        describe(status),
        "",
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trigger_that_qmail_send_opens_again_is_pulled() {
        let (reader, writer) = io::pipe().unwrap();
        drop(reader);
        pull(writer).unwrap();
    }
}
