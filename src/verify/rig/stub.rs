//! The stub that stands in for qmail-remote, qmail-local and qmail-getpw, and the rig's side of it: the events that
//! stubs report, and the holds that they wait for. stub.c describes what a stub does.
#![forbid(unsafe_code)]

use std::collections::HashMap;
use std::fmt;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::time::Duration;

use crate::sys::{self, Resource};
use crate::verify::build;
use crate::verify::error::Error;
use crate::verify::sandbox::private_tree::Sandbox;
use crate::verify::sandbox::process::run_captured;

const STUB_C: &str = include_str!("stub.c");
const PATIENCE: Duration = Duration::from_secs(120);

/// What a stub does. The first letter of the recipient chooses it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Mode {
    /// Accepts.
    Accept,
    /// Refuses for now.
    Defer,
    /// Refuses for good.
    Bounce,
    /// qmail-remote: the message was accepted, this recipient is refused for now. (qmail-local: like `Defer`.)
    DeferRecipient,
    /// qmail-remote: the message was accepted, this recipient is refused for good. (qmail-local: like `Bounce`.)
    BounceRecipient,
    /// Dies of SIGKILL.
    Crash,
    /// Exits 111 without a word.
    Fail,
}

impl Mode {
    /// Every mode.
    pub const ALL: [Mode; 7] = [
        Mode::Accept,
        Mode::Defer,
        Mode::Bounce,
        Mode::DeferRecipient,
        Mode::BounceRecipient,
        Mode::Crash,
        Mode::Fail,
    ];

    /// Chooses a mode whose report names the recipient, so that qmail-send's log shows whose it is. Three of five
    /// recipients accept, because most mail is accepted, and a bounce costs as much as a message.
    pub(crate) fn of_mail(random: &mut super::numbers::Random) -> Mode {
        if random.below(5) < 3 { Mode::Accept } else { Mode::ALL[1 + random.below(4) as usize] }
    }

    fn letter(self) -> char {
        match self {
            Mode::Accept => 'k',
            Mode::Defer => 'z',
            Mode::Bounce => 'd',
            Mode::DeferRecipient => 's',
            Mode::BounceRecipient => 'h',
            Mode::Crash => 'c',
            Mode::Fail => 'x',
        }
    }

    /// Returns the letter that the spawner must report: `K`, `Z` or `D`.
    pub fn report(self) -> u8 {
        match self {
            Mode::Accept => b'K',
            Mode::Defer | Mode::DeferRecipient | Mode::Crash | Mode::Fail => b'Z',
            Mode::Bounce | Mode::BounceRecipient => b'D',
        }
    }

    /// Returns whether the report has the recipient's address.
    pub fn names_recipient(self) -> bool {
        !matches!(self, Mode::Crash | Mode::Fail)
    }
}

/// Returns a recipient that makes a stub do `mode` once `hold` is released. `tag` makes it unique. `hold` may end in `+60`:
/// then the stub waits 60 ms more.
pub fn recipient(mode: Mode, hold: Option<&str>, tag: impl fmt::Display, domain: &str) -> String {
    format!("{}-{}-{tag}@{domain}", mode.letter(), hold.unwrap_or("none"))
}

/// Whether a delivery starts or ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StubEventKind {
    /// The stub runs.
    Start,
    /// The stub is about to answer and exit.
    End,
}

/// An event that a stub reported, which is one line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StubEvent {
    /// Start or end.
    pub kind: StubEventKind,
    /// The stub's process.
    pub pid: u32,
    /// CLOCK_MONOTONIC, in nanoseconds.
    pub at_ns: u64,
    /// `remote` or `local`.
    pub program: String,
    /// The whole recipient.
    pub recipient: String,
}

impl StubEvent {
    fn parse(line: &str) -> Option<StubEvent> {
        let mut words = line.splitn(5, ' ');
        let kind = match words.next()? {
            "S" => StubEventKind::Start,
            "E" => StubEventKind::End,
            _ => return None,
        };
        Some(StubEvent {
            kind,
            pid: words.next()?.parse().ok()?,
            at_ns: words.next()?.parse().ok()?,
            program: words.next()?.to_owned(),
            recipient: words.next()?.to_owned(),
        })
    }

    /// Returns the part after the `@`.
    pub fn domain(&self) -> &str {
        self.recipient.rsplit('@').next().unwrap_or_default()
    }
}

/// Returns the most stubs that ran at the same time, among the events that `counts` picks.
///
/// A stub reports its start after it has begun, and its end before it exits. So the true number is never lower.
pub fn peak<'e>(
    events: impl IntoIterator<Item = &'e StubEvent>,
    counts: impl Fn(&StubEvent) -> bool,
) -> usize {
    // At the same nanosecond the end comes first, so that only a sure overlap counts.
    let mut steps: Vec<(u64, i8)> = events
        .into_iter()
        .filter(|event| counts(event))
        .map(|event| (event.at_ns, if event.kind == StubEventKind::Start { 1 } else { -1 }))
        .collect();
    steps.sort_unstable();
    let mut running = 0_i64;
    steps
        .iter()
        .map(|(_, step)| {
            running += i64::from(*step);
            running
        })
        .max()
        .and_then(|most| usize::try_from(most).ok())
        .unwrap_or(0)
}

/// The rig's side of the stubs of one [`Sandbox`].
#[derive(Debug)]
pub struct Stubs {
    rig: PathBuf,
    reader: File,
    partial: Vec<u8>,
    events: Vec<StubEvent>,
    started: usize,
    holds: HashMap<String, Hold>,
    linked: Linkage,
}

/// How the stub program was linked. It decides how much memory each of thousands of stubs takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Linkage {
    /// Statically: it starts fastest, and stubs share the most memory.
    Static,
    /// Dynamically, because there is no static C library.
    Dynamic,
}

#[derive(Debug)]
struct Hold {
    file: File,
    held: bool,
}

impl Stubs {
    /// Compiles the stub with the sandbox's compiler, links it into the home's bin/ under its three names, and makes
    /// the events pipe.
    ///
    /// # Errors
    /// The compiler fails, or a file cannot be made.
    pub fn install(sandbox: &Sandbox) -> Result<Stubs, Error> {
        let linked = compile(sandbox)?;
        let program = sandbox.rig().join("stub");
        for name in ["qmail-remote", "qmail-local", "qmail-getpw"] {
            let link = sandbox.home().join("bin").join(name);
            let _ = fs::remove_file(&link);
            std::os::unix::fs::symlink(&program, &link).map_err(Error::file("make", &link))?;
            sandbox.identity().chown(&link)?;
        }
        let path = sandbox.rig().join("events");
        let _ = fs::remove_file(&path);
        sys::mkfifo(&path, 0o600).map_err(Error::file("make the pipe", &path))?;
        sandbox.identity().chown(&path)?;
        // Open it for writing, too: then the pipe has no end of file between two stubs.
        let reader = File::options()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NONBLOCK)
            .open(&path)
            .map_err(Error::file("open", &path))?;
        sys::set_pipe_size(reader.as_fd(), 1 << 20);
        Ok(Stubs {
            rig: sandbox.rig().to_path_buf(),
            reader,
            partial: Vec::new(),
            events: Vec::new(),
            started: 0,
            holds: HashMap::new(),
            linked,
        })
    }

    /// Sets the soft limit of a running process of the sandbox, and returns the old one; `None` if the system cannot do
    /// that. A program of the sandbox's user does it, because root without CAP_SYS_RESOURCE may not.
    pub(crate) fn set_soft_limit(
        &self,
        sandbox: &Sandbox,
        pid: u32,
        resource: Resource,
        soft: u64,
    ) -> Result<Option<u64>, Error> {
        use std::os::unix::process::CommandExt;
        let mut command = sandbox.command(sandbox.rig().join("stub"));
        let name = match resource {
            Resource::OpenFiles => "nofile",
            Resource::Processes => "nproc",
        };
        command.arg0("rig-limit").arg(pid.to_string()).arg(name).arg(soft.to_string());
        let (status, output) = run_captured(command, "rig-limit", PATIENCE)?;
        let before = std::str::from_utf8(&output).ok().and_then(|text| text.parse().ok());
        Ok(before.filter(|_| status.success()))
    }

    /// Returns how the stub was linked.
    pub fn linked(&self) -> Linkage {
        self.linked
    }

    /// Makes stubs whose recipient names `hold` wait until it is released.
    pub fn hold(&mut self, hold: &str) -> Result<(), Error> {
        let path = self.rig.join("hold").join(hold);
        if !self.holds.contains_key(hold) {
            let file = File::options()
                .create(true)
                .truncate(false)
                .write(true)
                .mode(0o644)
                .open(&path)
                .map_err(Error::file("make", &path))?;
            // Set the mode whatever the umask is: if this process is root, a stub of another user must open the file.
            let mode = std::os::unix::fs::PermissionsExt::from_mode(0o644);
            file.set_permissions(mode).map_err(Error::file("set the mode of", &path))?;
            self.holds.insert(hold.to_owned(), Hold { file, held: false });
        }
        self.set_hold(hold, true)
    }

    /// Lets all stubs that wait for `hold` go on, and all later ones.
    pub fn release(&mut self, hold: &str) -> Result<(), Error> {
        self.set_hold(hold, false)
    }

    fn set_hold(&mut self, hold: &str, held: bool) -> Result<(), Error> {
        if let Some(entry) = self.holds.get_mut(hold)
            && entry.held != held
        {
            sys::lock_exclusive(entry.file.as_fd(), held)
                .map_err(Error::system(format!("lock hold {hold}")))?;
            entry.held = held;
        }
        Ok(())
    }

    /// Returns all events since the last [`Stubs::forget`].
    pub fn events(&self) -> &[StubEvent] {
        &self.events
    }

    /// Returns how many deliveries have started and how many have ended since the last [`Stubs::forget`].
    pub fn counts(&self) -> (usize, usize) {
        (self.started, self.events.len() - self.started)
    }

    /// Removes all events, for the next trial. A report may be read before the events of its delivery, which were
    /// written earlier: they belong to the trial that is over.
    pub fn forget(&mut self) {
        // An error comes again at the next read, which can report it.
        let _ = self.read();
        self.events.clear();
        self.started = 0;
    }

    /// The descriptor to wait for.
    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.reader.as_fd()
    }

    /// Reads all events that are there, and returns their number. Stubs wait while their pipe is full, so a function
    /// that waits for something else must call this, too.
    pub fn read(&mut self) -> Result<usize, Error> {
        let before = self.events.len();
        let mut buffer = [0_u8; 65536];
        loop {
            match self.reader.read(&mut buffer) {
                Ok(0) => break,
                Ok(n) => self.take(&buffer[..n]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(Error::system("read the stubs' events")(error)),
            }
        }
        Ok(self.events.len() - before)
    }

    fn take(&mut self, bytes: &[u8]) {
        self.partial.extend_from_slice(bytes);
        let Some(end) = self.partial.iter().rposition(|byte| *byte == b'\n') else { return };
        let lines = String::from_utf8_lossy(&self.partial[..end]).into_owned();
        self.partial.drain(..=end);
        for event in lines.lines().filter_map(StubEvent::parse) {
            self.started += usize::from(event.kind == StubEventKind::Start);
            self.events.push(event);
        }
    }
}

/// Compiles the stub; statically, if there is a static C library.
fn compile(sandbox: &Sandbox) -> Result<Linkage, Error> {
    let options = build::fork_server_options(sandbox);
    let with_static = [&["-static".into()], options.as_slice()].concat();
    match build::compile_own(sandbox, "stub.c", STUB_C, "stub", &with_static) {
        Ok(()) => return Ok(Linkage::Static),
        Err(Error::Build(_)) => {}
        Err(error) => return Err(error),
    }
    build::compile_own(sandbox, "stub.c", STUB_C, "stub", &options)?;
    Ok(Linkage::Dynamic)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(kind: StubEventKind, at_ns: u64, recipient: &str) -> StubEvent {
        StubEvent {
            kind,
            pid: 1,
            at_ns,
            program: "remote".to_owned(),
            recipient: recipient.to_owned(),
        }
    }

    #[test]
    fn a_line_becomes_an_event() {
        let parsed =
            StubEvent::parse("S 12 3456789 remote k-all-7@a.example").expect("well-formed");
        assert_eq!(parsed.kind, StubEventKind::Start);
        assert_eq!((parsed.pid, parsed.at_ns), (12, 3_456_789));
        assert_eq!(parsed.domain(), "a.example");
        assert_eq!(StubEvent::parse("X 1 2 remote r"), None);
        assert_eq!(StubEvent::parse("S one 2 remote r"), None);
    }

    #[test]
    fn peak_counts_only_what_surely_overlapped() {
        use StubEventKind::{End, Start};
        let events = [
            event(Start, 1, "a@x"),
            event(Start, 2, "b@x"),
            event(Start, 2, "c@y"),
            event(End, 3, "a@x"),
            event(Start, 3, "d@x"),
            event(End, 4, "b@x"),
            event(End, 5, "c@y"),
            event(End, 6, "d@x"),
        ];
        assert_eq!(peak(&events, |_| true), 3);
        assert_eq!(peak(&events, |event| event.domain() == "x"), 2);
        assert_eq!(peak(&[], |_| true), 0);
    }

    #[test]
    fn recipients_say_what_to_do() {
        assert_eq!(recipient(Mode::Accept, Some("all"), 7, "a.example"), "k-all-7@a.example");
        assert_eq!(recipient(Mode::Fail, None, 7, "a.example"), "x-none-7@a.example");
    }

    /// The rig may read a delivery's report before the delivery's last event, which then counted in the next trial.
    #[test]
    fn what_is_forgotten_does_not_come_back() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("events");
        sys::mkfifo(&path, 0o600).expect("a pipe");
        let open =
            || File::options().read(true).write(true).custom_flags(libc::O_NONBLOCK).open(&path);
        let mut stubs = Stubs {
            rig: dir.path().to_path_buf(),
            reader: open().expect("the pipe"),
            partial: Vec::new(),
            events: Vec::new(),
            started: 0,
            holds: HashMap::new(),
            linked: Linkage::Static,
        };
        io::Write::write_all(&mut open().expect("the pipe"), b"S 1 1 remote r\nE 1 2 remote r\n")
            .expect("events");
        stubs.forget();
        assert_eq!(stubs.read().expect("no error"), 0);
        assert_eq!(stubs.counts(), (0, 0));
    }
}
