//! What can go wrong in a proof, each with what to do next.
#![forbid(unsafe_code)]

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use crate::error::NOT_PERMITTED;

/// Why a proof, or a part of one, did not succeed.
#[derive(Debug)]
#[non_exhaustive]
pub enum Error {
    /// A signal asked the process to stop; its number.
    Interrupted(i32),
    /// The folder is not a qmail source tree, or one of its files cannot be read.
    Tree(crate::error::Error),
    /// It is one, but not one that can be built as it is.
    NotBuilt {
        /// The folder.
        tree: PathBuf,
        /// What is in the way, and what to do about it.
        why: String,
    },
    /// No directory in which a copy can be made and run.
    NoPlace {
        /// Each directory that was tried, with the reason against it.
        tried: Vec<(PathBuf, String)>,
    },
    /// A file or directory could not be read, written or made.
    File {
        /// What was being done, as in "copy", "read".
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// The system's own reason.
        source: io::Error,
    },
    /// Another call of the system failed.
    System {
        /// What was being done.
        action: String,
        /// The system's own reason.
        source: io::Error,
    },
    /// A program that is needed could not be started.
    Program {
        /// The program.
        program: String,
        /// The system's own reason.
        source: io::Error,
    },
    /// The compiler or make failed.
    Build(Box<BuildFailure>),
    /// Something that was waited for did not come.
    Timeout {
        /// What was waited for.
        waited_for: String,
        /// For how long without any sign of progress.
        seconds: u64,
        /// What had been seen by then.
        seen: String,
    },
    /// A program of the tree ended when it should not have.
    Died {
        /// The program.
        program: String,
        /// How it ended, as in "signal 6 (abort)".
        how: String,
        /// What it was doing.
        context: String,
        /// Its last words on standard error or in the log; empty where there are none.
        said: String,
        /// The likely cause, where that is known; else empty.
        cause: &'static str,
    },
    /// The tree does not do what it has to.
    Disproved(Box<Disproof>),
}

/// A claim that turned out to be false.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Disproof {
    /// What was tried, as in "qmail-rspawn, delivery number 32768".
    pub what: String,
    /// What should have happened.
    pub expected: String,
    /// What happened.
    pub found: String,
    /// The likely cause and the next step; empty when nothing is known.
    pub next: String,
}

/// A command of a build that failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BuildFailure {
    /// The command, as in `make qmail-send`.
    pub command: String,
    /// How it ended.
    pub how: String,
    /// The lines that matter of what it printed.
    pub lines: Vec<String>,
    /// The likely cause and the next step, where they are known.
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
            // Also where a folder of PATH may not be looked into.
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
                // First what it has said itself, then what may be guessed.
                if !said.is_empty() {
                    write!(f, "; its last words: {said:?}")?;
                }
                if cause.is_empty() { Ok(()) } else { write!(f, "; {cause}") }
            }
            Error::Disproved(disproof) => disproof.fmt(f),
        }
    }
}

/// What to do where a limit of this process was in the way.
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
