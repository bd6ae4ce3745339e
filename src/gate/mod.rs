//! `qpatch gate`: the control file of the gate, its status, and what its limits would do.
//!
//! One module for each subcommand. All of them use the gate's own code (the crate `qpatch_gate`), so what they say is what
//! will run.

#![forbid(unsafe_code)]

pub mod check;
pub mod init;
pub mod library;
pub mod show;
pub mod simulate;
pub mod sites;
mod status_file;
mod text;

use std::fs::{Metadata, OpenOptions};
use std::io::{self, ErrorKind, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use qpatch_gate::problem::Kind;

use crate::error::Error;
use crate::output::CommandResult;

/// `qpatch gate` and what follows it.
#[derive(Debug, Args)]
pub struct Gate {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Tell everything that is wrong with control/concurrencydomains, and the limit of a domain
    ///
    /// Reads the file as the gate does, and prints every problem with file, line, column and
    /// meaning. In a QMAILHOME it also looks at smtproutes, concurrencyremote, and what the
    /// running gate says. Exits with 1 if there is an error: the gate does not use such a file.
    Check(check::Check),
    /// Write a commented control/concurrencydomains to start from
    ///
    /// 20 for every domain, as Postfix does, and the figures that other mail servers ship for
    /// the big providers, each with its source. An existing file is not touched.
    Init(init::Init),
    /// Show what the running gate does, from its status file
    ///
    /// Each key with its limit, what its server makes of it now (NOW), and what runs, is held, and
    /// is away. With --domain: under which key a domain counts now, and why.
    Show(show::Show),
    /// Tell what limits would have done to the deliveries in qmail-send's log
    ///
    /// Runs the gate itself over the log: which domains would have been limited, how long their
    /// mail would have waited, how many busy answers there would have been. Limits that learn are
    /// told what servers said in the log; what they would have said to fewer deliveries at once
    /// nobody knows, so such limits fall lower here than they would.
    ///
    /// Where the server has a gate already, its log says how long each delivery was held, and mail
    /// that was sent away as busy counts as one that waited: so the log tells what a higher limit
    /// would do, too. Times are read as these write them: multilog, svlogd (-t, -tt, -ttt), s6-log
    /// (t, T), tai64nlocal, splogger, syslogd, rsyslog and syslog-ng, journalctl (each -o but cat),
    /// docker logs -t, docker compose logs -t, and kubectl logs --timestamps. Files that gzip, xz,
    /// zstd or bzip2 have packed are unpacked by these programs. Several queues in one log (IndiMail)
    /// count together. A log in local time without a zone is followed through the change to daylight
    /// saving time and back where an hour is missing or comes twice. Exits with 1 if there is no
    /// delivery in the log that can be read.
    Simulate(simulate::Simulate),
    /// Look up whose mail exchangers are at a site, and write control/concurrencysites
    ///
    /// For cron. Asks DNS for the mail exchangers of the domains that the running gate has seen,
    /// and those of --log and --domain, matches them with the lines of concurrencydomains that
    /// begin with mx:, and writes which domain belongs to which of their groups. The gate takes it
    /// over within a second. What DNS does not answer stays as it was. Exits with 1, and changes
    /// nothing, if DNS answers nothing at all.
    Sites(sites::Sites),
    /// Write the gate's static library, gate.a, to standard output
    ///
    /// It is the one file of the gate that `qpatch diff` cannot show.
    Library,
}

/// Runs a subcommand.
///
/// # Errors
/// What could not be done.
pub fn run(gate: &Gate) -> CommandResult {
    match &gate.command {
        Command::Check(args) => check::run(args),
        Command::Init(args) => init::run(args),
        Command::Show(args) => show::run(args),
        Command::Simulate(args) => simulate::run(args),
        Command::Sites(args) => sites::run(args),
        Command::Library => library::run(),
    }
}

/// Where qmail is installed when nobody says.
const QMAIL_HOME: &str = "/var/qmail";

/// A folder in which qmail is installed.
#[derive(Clone, Debug)]
struct Home(PathBuf);

impl Home {
    fn new(path: &Path) -> Result<Self, Error> {
        let help = "name the folder that has qmail's control and queue";
        match std::fs::metadata(path) {
            Err(error) => {
                Err(Error { help: help.to_string(), ..Error::io(path, "look into it", &error) })
            }
            Ok(metadata) if !metadata.is_dir() => {
                Err(Error::new(path.display(), "not a folder", help))
            }
            Ok(_) => Ok(Self(path.to_path_buf())),
        }
    }

    /// With a folder for the control files.
    fn with_control(path: &Path) -> Result<Self, Error> {
        let home = Self::new(path)?;
        if home.0.join("control").is_dir() {
            return Ok(home);
        }
        let help = "name the folder that has qmail's control and queue";
        Err(Error::new(path.display(), "no qmail is installed here: it has no control", help))
    }

    fn control(&self, name: &str) -> PathBuf {
        self.0.join("control").join(name)
    }

    fn lock(&self, name: &str) -> PathBuf {
        self.0.join("queue/lock").join(name)
    }
}

/// Reads a file as the gate does: only regular ones, and none that are larger than `max` bytes. None if there is none.
fn read_file(path: &Path, max: u64) -> Result<Option<(Metadata, Vec<u8>)>, Kind> {
    let unreadable = |error: io::Error| Kind::Unreadable(error.raw_os_error().unwrap_or(0));
    // A FIFO must not be waited for.
    let opened = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path);
    let file = match opened {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) if error.raw_os_error() == Some(libc::ENXIO) => return Err(Kind::NotRegular),
        opened => opened.map_err(unreadable)?,
    };
    let metadata = file.metadata().map_err(unreadable)?;
    if !metadata.is_file() {
        return Err(Kind::NotRegular);
    }
    if metadata.len() > max {
        return Err(Kind::TooBig(metadata.len(), max));
    }
    let mut bytes = Vec::new();
    file.take(max).read_to_end(&mut bytes).map_err(unreadable)?;
    Ok(Some((metadata, bytes)))
}

/// What a problem means. For what the system refused, in the system's words.
fn meaning(kind: Kind) -> String {
    match kind {
        Kind::Unreadable(number @ 1..) => {
            format!("cannot be read: {}", io::Error::from_raw_os_error(number))
        }
        kind => kind.to_string(),
    }
}

/// The whole error about a file that cannot be used.
fn unusable(path: &Path, kind: Kind) -> Error {
    Error::new(path.display(), meaning(kind), check::advice(kind))
}

/// control/concurrencyremote as qmail-send reads it: the digits at the beginning; None if there are none.
fn leading_number(text: &[u8]) -> Option<u32> {
    let digits = text.iter().take_while(|byte| byte.is_ascii_digit());
    digits.fold(None, |value: Option<u32>, digit| {
        Some(value.unwrap_or(0).saturating_mul(10).saturating_add(u32::from(digit - b'0')))
    })
}

/// The lines of a control file that say something, with their numbers from 1, without white space at their ends.
pub(crate) fn content_lines(text: &[u8]) -> impl Iterator<Item = (u32, &[u8])> {
    text.split(|&byte| byte == b'\n').zip(1u32..).filter_map(|(line, number)| {
        let end = line.iter().rposition(|byte| !matches!(byte, b' ' | b'\t' | b'\r'))?;
        (line[0] != b'#').then_some((number, &line[..=end]))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn concurrencyremote_as_qmail_reads_it() {
        assert_eq!(leading_number(b"100\n"), Some(100));
        assert_eq!(leading_number(b"12x"), Some(12));
        assert_eq!(leading_number(b" 12"), None);
        assert_eq!(leading_number(b""), None);
        assert_eq!(leading_number(b"99999999999999"), Some(u32::MAX));
    }

    #[test]
    fn lines_are_numbered_as_the_gate_does() {
        let lines: Vec<_> = content_lines(b"# x\n\na:1 \r\n  \n:2").collect();
        assert_eq!(lines, [(3, &b"a:1"[..]), (5, b":2")]);
    }
}
