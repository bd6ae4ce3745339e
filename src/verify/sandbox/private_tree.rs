//! One copy of a tree, and the qmail home (control/, bin/, queue/) that it is compiled for.
#![forbid(unsafe_code)]

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use super::identity::Identity;
use super::settings::Settings;
use crate::verify::error::Error;

/// Where the tree's qmail-queue puts the envelope of a new message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TodoLayout {
    /// queue/todo/N, as in stock qmail.
    Flat,
    /// queue/todo/S/N, as in trees with the big-todo patch.
    Split,
}

/// What fsync() does in the programs of a [`Sandbox`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Fsync {
    /// Nothing.
    #[default]
    Skipped,
    /// What it does on this machine. The queue should then be on a real disk.
    Real,
}

/// One configured copy of a tree, with its home.
#[derive(Debug)]
pub struct Sandbox {
    pub(super) tree: PathBuf,
    pub(super) settings: Settings,
    pub(super) home: PathBuf,
    pub(super) rig: PathBuf,
    pub(super) identity: Identity,
    pub(super) cc: String,
    pub(super) asked_cc: Option<String>,
    pub(super) spawn: u32,
    pub(super) split: u32,
    pub(super) todo: TodoLayout,
    pub(super) supplemental: Supplemental,
    pub(super) fsync: Fsync,
}

/// The remote channels of a tree beside the usual one. Trees with the channels patch have them.
/// Each has its own qmail-rspawn, and qmail-send chooses the channel by the recipient's domain.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Supplemental {
    /// Their number.
    pub count: u32,
    /// The name of their folders below queue/, and in the log. A number from 0 on follows it.
    pub name: String,
}

impl Sandbox {
    /// Returns the copy of the tree.
    pub fn tree(&self) -> &Path {
        &self.tree
    }

    /// Returns the qmail home that the copy is compiled for (its conf-qmail).
    pub fn home(&self) -> &Path {
        &self.home
    }

    /// Returns the directory that the stubs use: the events pipe and the holds are there.
    pub fn rig(&self) -> &Path {
        &self.rig
    }

    /// Returns the user that programs run as.
    pub fn identity(&self) -> Identity {
        self.identity
    }

    /// Returns conf-spawn of the copy.
    pub fn spawn(&self) -> u32 {
        self.spawn
    }

    /// Returns the first line of conf-cc: the compiler and its flags, as a shell command line.
    pub fn cc(&self) -> &str {
        &self.cc
    }

    /// Returns the compiler that replaces the tree's ([`super::configure::SandboxConfig::cc`]).
    pub(crate) fn asked_cc(&self) -> Option<&str> {
        self.asked_cc.as_deref()
    }

    /// Returns [`Sandbox::cc`] as a shell expands it in the tree: without quotes, and with the output
    /// of commands in backquotes and the values of variables. If the shell cannot read the line,
    /// returns it as it is.
    pub(crate) fn expanded_cc(&self) -> String {
        let mut command = self.command("sh");
        command.arg("-c").arg(format!("printf '%s ' {}", self.cc));
        let said = command.stdin(std::process::Stdio::null()).output().ok();
        let said = said.filter(|output| output.status.success());
        said.map_or_else(
            || self.cc.clone(),
            |output| String::from_utf8_lossy(&output.stdout).trim_end().to_owned(),
        )
    }

    /// Returns a command for the compiler with its flags; the caller adds arguments. As in
    /// `./compile`, a shell reads the line in the tree, because it may have quotes, variables and
    /// commands in backquotes.
    pub(crate) fn compiler(&self) -> Command {
        let mut command = self.command("sh");
        command.arg("-c").arg(format!("exec {} \"$@\"", self.cc)).arg("sh");
        command
    }

    /// Returns what fsync() does in its programs.
    pub(crate) fn fsync(&self) -> Fsync {
        self.fsync
    }

    /// Returns its supplemental channels.
    pub fn supplemental(&self) -> &Supplemental {
        &self.supplemental
    }

    /// Returns the domain whose mail goes over supplemental channel `number`.
    pub fn supplemental_domain(&self, number: u32) -> String {
        format!("suppl{number}.example")
    }

    /// Returns how the tree lays out queue/todo.
    pub fn todo_layout(&self) -> TodoLayout {
        self.todo
    }

    /// Returns the path of a conf-* file of the copy. In some trees it is one folder up.
    pub(super) fn conf_path(&self, name: &str) -> PathBuf {
        let above = self.settings.above.contains(name);
        let folder = self.tree.parent().filter(|_| above).unwrap_or(&self.tree);
        folder.join(name)
    }

    pub(super) fn conf_line(&self, name: &str) -> Result<String, Error> {
        let path = self.conf_path(name);
        let bytes = fs::read(&path).map_err(Error::file("read", &path))?;
        let line = bytes.split(|byte| *byte == b'\n').next().unwrap_or_default();
        Ok(String::from_utf8_lossy(line).trim().to_owned())
    }

    pub(super) fn conf_number(&self, name: &str) -> Result<u32, Error> {
        let line = self.conf_line(name)?;
        line.parse().map_err(|_| {
            Error::disproved(
                name,
                "a number in the first line",
                format!("{line:?}"),
                "correct the file",
            )
        })
    }

    /// Replaces the first line of a conf-* file, which the Makefile reads. The rest explains it and
    /// stays.
    pub fn set_conf(&self, name: &str, value: &str) -> Result<(), Error> {
        let path = self.conf_path(name);
        let old = match fs::read(&path) {
            Ok(old) => old,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Vec::new(),
            Err(error) => return Err(Error::file("read", &path)(error)),
        };
        let rest = old.iter().position(|byte| *byte == b'\n').map_or(&b"\n"[..], |at| &old[at..]);
        let mut new = value.as_bytes().to_vec();
        new.extend_from_slice(rest);
        // Make a new file instead of overwriting the old one: the copy may be read-only.
        let _ = fs::remove_file(&path);
        self.write(&path, &new)
    }

    /// Writes a file of the sandbox and gives it to the sandbox's user.
    ///
    /// # Errors The file cannot be written, or its owner cannot be changed.
    pub fn write(&self, path: &Path, contents: &[u8]) -> Result<(), Error> {
        let mut file = fs::File::create(path).map_err(Error::file("write", path))?;
        file.write_all(contents).map_err(Error::file("write", path))?;
        self.identity.chown(path)
    }

    /// Writes `control/NAME` of the home.
    pub fn set_control(&self, name: &str, contents: &str) -> Result<(), Error> {
        self.write(&self.home.join("control").join(name), contents.as_bytes())
    }

    /// Returns a command that runs as the sandbox's user in the sandbox's environment: temporary files
    /// stay in the scratch directory, the flags of an outer make do not reach the tree's, and
    /// messages are in English.
    pub(crate) fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = self.identity.command(program);
        for name in
            ["MAKEFLAGS", "MFLAGS", "MAKELEVEL", "MAKEFILES", "GNUMAKEFLAGS", "CFLAGS", "LDFLAGS"]
        {
            command.env_remove(name);
        }
        command
            .env("LC_ALL", "C")
            .env("TMPDIR", self.rig.join("tmp"))
            .env("HOME", self.rig.join("tmp"))
            .current_dir(&self.tree);
        command
    }

    /// Puts a message with `body` into queue/mess, owned as qmail expects. Returns its number.
    pub fn add_message(&self, body: &[u8]) -> Result<MessageId, Error> {
        let queue = self.home.join("queue");
        let fresh = queue.join("pid").join(format!("rig.{}", std::process::id()));
        self.write(&fresh, body)?;
        let number = fs::metadata(&fresh).map_err(Error::file("look at", &fresh))?.ino();
        let id =
            MessageId { number, part: u32::try_from(number % u64::from(self.split)).unwrap_or(0) };
        let path = queue.join(id.path("mess"));
        fs::rename(&fresh, &path).map_err(Error::file("make", &path))?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644))
            .map_err(Error::file("set the mode of", &path))?;
        Ok(id)
    }

    /// Queues a whole message as qmail-queue does, without the cost of running it: queue/mess, and
    /// the envelope in queue/todo for qmail-send's next look there.
    pub fn queue_message(
        &self,
        body: &[u8],
        sender: &str,
        recipients: &[String],
    ) -> Result<MessageId, Error> {
        let id = self.add_message(body)?;
        let mut envelope =
            format!("u{}\0p{}\0F{sender}\0", self.identity.uid(), std::process::id()).into_bytes();
        for recipient in recipients {
            envelope.push(b'T');
            envelope.extend_from_slice(recipient.as_bytes());
            envelope.push(0);
        }
        let queue = self.home.join("queue");
        let name = |dir: &str| match self.todo {
            TodoLayout::Flat => format!("{dir}/{}", id.number),
            TodoLayout::Split => id.path(dir),
        };
        let (intd, todo) = (queue.join(name("intd")), queue.join(name("todo")));
        self.write(&intd, &envelope)?;
        fs::hard_link(&intd, &todo).map_err(Error::file("make", &todo))?;
        Ok(id)
    }
}

/// The number of a message in the queue, and its part (conf-split).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MessageId {
    /// Its number, which is its inode number.
    pub number: u64,
    pub(super) part: u32,
}

impl MessageId {
    /// Returns its path below queue/, such as `mess/7/12345`.
    pub fn path(&self, dir: &str) -> String {
        format!("{dir}/{}/{}", self.part, self.number)
    }

    /// Returns its path relative to queue/mess, as a spawner gets it: `7/12345`.
    pub fn relative(&self) -> String {
        format!("{}/{}", self.part, self.number)
    }
}
