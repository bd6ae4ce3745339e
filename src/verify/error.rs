//! The errors of a proof. Each says what to do next.
#![forbid(unsafe_code)]

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use crate::error::NOT_PERMITTED;

/// The reason why a proof, or a part of it, did not succeed.
#[derive(Debug)]
#[non_exhaustive]
pub enum Error {
    /// A signal, with this number, asked the process to stop.
    Interrupted(i32),
    /// The folder is not a qmail source tree, or one of its files cannot be read.
    Tree(crate::error::Error),
    /// The folder is a qmail source tree, but it cannot be built as it is.
    NotBuilt {
        /// The folder.
        tree: PathBuf,
        /// The obstacle, and what to do about it.
        why: String,
    },
    /// There is no directory in which a copy can be made and run.
    NoPlace {
        /// The directories that were tried, each with the reason why it does not serve.
        tried: Vec<(PathBuf, String)>,
    },
    /// A file or directory could not be read, written or made.
    File {
        /// The action, such as "copy" or "read".
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// Another system call failed.
    System {
        /// The action.
        action: String,
        /// The system's reason.
        source: io::Error,
    },
    /// A program that the proof needs could not be started.
    Program {
        /// The program.
        program: String,
        /// The system's reason.
        source: io::Error,
    },
    /// The compiler or make failed.
    Build(Box<BuildFailure>),
    /// An expected event did not happen.
    Timeout {
        /// The expected event.
        waited_for: String,
        /// Seconds without any progress.
        seconds: u64,
        /// What had been seen by then.
        seen: String,
    },
    /// A program of the tree ended when it should not have.
    Died {
        /// The program.
        program: String,
        /// How it ended, such as "signal 6 (abort)".
        how: String,
        /// What it was doing.
        context: String,
        /// Its last words on standard error or in the log; empty if it said nothing.
        said: String,
        /// The likely cause, if known; else empty.
        cause: &'static str,
    },
    /// The tree does not do what it must do.
    Disproved(Box<Disproof>),
}

/// A claim that proved false.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Disproof {
    /// What was tried, such as "qmail-rspawn, delivery number 32768".
    pub what: String,
    /// What should have happened.
    pub expected: String,
    /// What happened.
    pub found: String,
    /// The likely cause and the next step; empty if unknown.
    pub next: String,
}

/// A failed command of a build.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BuildFailure {
    /// The command, such as `make qmail-send`.
    pub command: String,
    /// How it ended.
    pub how: String,
    /// The relevant lines of its output.
    pub lines: Vec<String>,
    /// The likely cause and the next step, if known.
    pub cause: Option<String>,
}

impl fmt::Display for BuildFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.command, self.how)?;
        if let Some(cause) = &self.cause {
            write!(f, "; {cause}")?;
        }
        for line in &self.lines {
            write!(f, "\n{line}")?;
        }
        Ok(())
    }
}

impl Error {
    pub(crate) fn file(
        action: &'static str,
        path: impl AsRef<Path>,
    ) -> impl FnOnce(io::Error) -> Error {
        let path = path.as_ref().to_path_buf();
        move |source| Error::File { action, path, source }
    }

    pub(crate) fn system(action: impl Into<String>) -> impl FnOnce(io::Error) -> Error {
        let action = action.into();
        move |source| Error::System { action, source }
    }

    pub(crate) fn disproved(
        what: impl Into<String>,
        expected: impl Into<String>,
        found: impl Into<String>,
        next: impl Into<String>,
    ) -> Error {
        Error::Disproved(Box::new(Disproof {
            what: what.into(),
            expected: expected.into(),
            found: found.into(),
            next: next.into(),
        }))
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Interrupted(signal) => write!(f, "stopped by signal {signal}"),
            Error::Tree(error) => error.fmt(f),
            Error::NotBuilt { tree, why } => {
                write!(f, "{}: verify cannot build this tree: {why}", tree.display())
            }
            Error::NoPlace { tried } => {
                f.write_str("found no directory to make a copy in")?;
                for (path, reason) in tried {
                    write!(f, "; {}: {reason}", path.display())?;
                }
                f.write_str("; set TMPDIR to a directory from which programs can be run")
            }
            Error::File { action, path, source } => {
                write!(f, "cannot {action} {}: {source}", path.display())?;
                if source.kind() == io::ErrorKind::PermissionDenied {
                    write!(f, "; {NOT_PERMITTED}")?;
                }
                f.write_str(too_few(source))
            }
            Error::System { action, source } => {
                write!(f, "cannot {action}: {source}{}", too_few(source))
            }
            Error::Program { program, source } if source.kind() == io::ErrorKind::NotFound => {
                write!(f, "cannot run {program}: there is no such program in PATH; install it")
            }
            // This may also be a folder in PATH that the user may not enter.
            Error::Program { program, source }
                if source.kind() == io::ErrorKind::PermissionDenied =>
            {
                write!(
                    f,
                    "cannot run {program}: {source}; is it installed where an unprivileged user finds it in PATH?"
                )
            }
            Error::Program { program, source } => {
                write!(f, "cannot run {program}: {source}{}", too_few(source))
            }
            Error::Build(failure) => failure.fmt(f),
            Error::Timeout { waited_for, seconds, seen } => {
                write!(f, "waited for {waited_for}, and nothing happened for {seconds} s; {seen}")
            }
            Error::Died { program, how, context, said, cause } => {
                write!(f, "{program} ended by {how} {context}")?;
                // First the program's own words, then the guess.
                if !said.is_empty() {
                    write!(f, "; its last words: {said:?}")?;
                }
                if cause.is_empty() { Ok(()) } else { write!(f, "; {cause}") }
            }
            Error::Disproved(disproof) => disproof.fmt(f),
        }
    }
}

/// Returns what to do if a limit of this process caused the error.
fn too_few(source: &io::Error) -> &'static str {
    match source.raw_os_error() {
        Some(libc::EMFILE) => "; raise the limit on open files (ulimit -n), and try again",
        Some(libc::EAGAIN) => "; raise the limit on processes (ulimit -u), and try again",
        _ => "",
    }
}

impl fmt::Display for Disproof {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: expected {}, found {}", self.what, self.expected, self.found)?;
        if self.next.is_empty() { Ok(()) } else { write!(f, "; {}", self.next) }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Error::File { source, .. }
            | Error::System { source, .. }
            | Error::Program { source, .. } => Some(source),
            _ => None,
        }
    }
}
