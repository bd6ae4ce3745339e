//! A control file, the copy of its last good contents, and which of the two counts.

#![forbid(unsafe_code)]

use std::ffi::{OsStr, OsString};
use std::io::ErrorKind;
use std::path::Path;
use std::time::Duration;

use crate::control::problem::{self, Kind, Problem};
use crate::control::table;
use crate::core::gate::CONCURRENCY_REMOTE;
use crate::host::clock::Clock;
use crate::host::kept::{self, ContentsMark};
use crate::host::watched::{
    Contents, FileVersion, Watched, directory_of, is_young, join, open_if, read_if,
};
use crate::util::memory::OutOfMemory;

/// A file that was changed within this time may not be complete yet. Half a file can be free of mistakes, and would
/// count.
pub(super) const QUIET: Duration = Duration::from_millis(200);

/// The same for a file that is missing, or has less than half of what it had: the program that overwrites or replaces
/// it may have been delayed half-way.
pub(super) const LONG_QUIET: Duration = Duration::from_secs(3);

/// After this many checks in a row the status says that a file changes all the time.
pub(super) const RESTLESS_CHECKS_MAX: u32 = 5;

/// After this time the gate tries again to write a copy that it could not write.
pub(super) const KEEP_AGAIN_US: u64 = 60_000_000;

/// Where the contents that are in force come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ContentsSource {
    /// The file as it is, or the fact that there is none.
    File,
    /// An earlier file, from its copy or from memory.
    Earlier,
    /// The good lines of the file as it is.
    Part,
    /// Nothing has been read yet.
    Nothing,
}

/// A control file, and what of it is in force.
#[derive(Debug)]
pub(super) struct Control {
    pub(super) file: problem::File,
    pub(super) watched: Watched,
    pub(super) problem: Option<Problem>,
    pub(super) source: ContentsSource,
    /// How many checks in a row found it changing.
    pub(super) restless_checks: u32,
    pub(super) kept: KeptCopy,
    /// Whether qmail-send's log already says that something else than the file counts.
    pub(super) logged: Logged,
}

/// Whether something is in qmail-send's log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Logged {
    No,
    Yes,
}

/// The copy of the last good contents of a control file.
#[derive(Debug)]
pub(super) struct KeptCopy {
    pub(super) file: problem::File,
    pub(super) path: OsString,
    /// Length and sum of the copy's contents, if these are known and whole.
    pub(super) mark: Option<ContentsMark>,
    /// The version of the copy that was read or written last.
    pub(super) seen: FileVersion,
    /// When it was last checked.
    pub(super) looked_us: u64,
    /// The contents that it must have, while the control file cannot be used.
    pub(super) held: Option<Vec<u8>>,
    pub(super) problem: Option<Problem>,
    /// When writing it failed.
    pub(super) failed_us: Option<u64>,
}

impl KeptCopy {
    pub(super) fn new(file: problem::File, path: OsString) -> Self {
        let (mark, seen, looked_us) = (None, FileVersion::Nothing, 0);
        Self { file, path, mark, seen, looked_us, held: None, problem: None, failed_us: None }
    }

    /// Its contents, if they are whole, and when it was written, in seconds since 1970.
    pub(super) fn read(&mut self) -> Option<(Vec<u8>, u64)> {
        (self.mark, self.problem) = (None, None);
        let read = open_if(&self.path, FileVersion::Nothing).and_then(|(seen, file)| {
            self.seen = seen;
            match (seen, file) {
                (FileVersion::File { size, modified: (secs, _), .. }, Some(file)) if size > 0 => {
                    let (contents, mark) = kept::read(&file, table::FILE_MAX)?;
                    self.mark = Some(mark);
                    Ok(Some((contents, u64::try_from(secs).unwrap_or(0))))
                }
                // A tree that was patched by an earlier qpatch has no such file; that is reported when there is
                // something to keep.
                _ => Ok(None),
            }
        });
        read.unwrap_or_else(|kind| {
            self.problem = Some(Problem::of_file(self.file, kind));
            None
        })
    }

    /// Writes these contents, unless it has them already. None: there is no control file.
    pub(super) fn write(&mut self, contents: Option<&[u8]>, now_us: u64) {
        if contents.map(ContentsMark::of) == self.mark
            && self.failed_us.is_none()
            && self.problem.is_none()
        {
            return;
        }
        // If there is no copy, there is nothing to empty.
        if contents.is_none()
            && read_if(&self.path, 0, FileVersion::Nothing) == Ok((FileVersion::Missing, None))
        {
            (self.mark, self.problem) = (None, None);
            return;
        }
        let written = kept::write(&self.path, contents).map(|(mark, metadata)| {
            (self.mark, self.seen) = (mark, FileVersion::of(&metadata));
        });
        self.failed_us = written.is_err().then_some(now_us);
        self.problem = written.err().map(|kind| Problem::of_file(self.file, kind));
    }

    /// The control file can be used, or does not exist: keeps these contents.
    pub(super) fn keep(&mut self, contents: Option<&[u8]>, now_us: u64) {
        self.held = None;
        self.write(contents, now_us);
    }

    /// The control file cannot be used any more: holds the contents of the copy in memory, in case the copy is removed.
    pub(super) fn hold(&mut self) {
        if self.held.is_none() && self.mark.is_some() {
            let (mark, problem) = (self.mark, self.problem);
            self.held = self.read().filter(|_| self.mark == mark).map(|(contents, _)| contents);
            self.problem = self.problem.or(problem);
        }
    }

    /// Whether another program has written or removed it since the gate read or wrote it.
    pub(super) fn has_changed(&self) -> bool {
        let now = std::fs::metadata(Path::new(&self.path)).map(|file| FileVersion::of(&file));
        now.unwrap_or(FileVersion::Missing) != self.seen
    }
}

impl Control {
    /// The file in the folder `control`, and its copy in the folder `lock`.
    pub(super) fn new(
        control: &OsStr,
        file: problem::File,
        lock: &OsStr,
        kept: problem::File,
    ) -> Result<Self, OutOfMemory> {
        Ok(Self {
            file,
            watched: Watched::new(control, file.name())?,
            problem: None,
            source: ContentsSource::Nothing,
            restless_checks: 0,
            logged: Logged::No,
            kept: KeptCopy::new(kept, join(lock, kept.name())?),
        })
    }

    /// Reads it if it has changed. A file that is still changing counts as the same, until it has been changing for too
    /// long.
    pub(super) fn look(&mut self, max: u64, clock: &dyn Clock) -> Contents {
        let contents = self.watched.look(max);
        let is_at_rest = match contents {
            Contents::Read(ref text) => self.watched.is_whole(self.quiet(text.len() as u64), clock),
            Contents::Missing => !self.is_just_taken_away(clock),
            Contents::Same | Contents::Unusable(_) => true,
        };
        if !is_at_rest {
            self.watched.seen = FileVersion::Nothing;
            self.restless_checks += 1;
            let is_news = self.restless_checks == RESTLESS_CHECKS_MAX
                || self.source == ContentsSource::Nothing;
            return if is_news { Contents::Unusable(Kind::Changing) } else { Contents::Same };
        }
        self.restless_checks = 0;
        contents
    }

    /// How long a file of this length must not have changed.
    pub(super) fn quiet(&self, length: u64) -> Duration {
        match self.kept.mark {
            Some(mark) if length < mark.length() / 2 => LONG_QUIET,
            _ => QUIET,
        }
    }

    /// Whether the file may be different in a moment.
    pub(super) fn is_restless(&self, clock: &dyn Clock) -> bool {
        match std::fs::metadata(Path::new(&self.watched.path)) {
            Ok(file) => {
                file.is_file() && is_young(&FileVersion::of(&file), self.quiet(file.len()), clock)
            }
            Err(error) => error.kind() == ErrorKind::NotFound && self.is_just_taken_away(clock),
        }
    }

    /// Whether it may exist again in a moment: its folder has just changed, and a copy of it is kept, which is so until
    /// it has been away for some time.
    pub(super) fn is_just_taken_away(&self, clock: &dyn Clock) -> bool {
        let folder = std::fs::metadata(Path::new(directory_of(&self.watched.path)));
        self.kept.mark.is_some()
            && folder.is_ok_and(|folder| is_young(&FileVersion::of(&folder), LONG_QUIET, clock))
    }

    /// If it is time: checks the copy, and tries again what could not be kept.
    pub(super) fn keep_again(&mut self, now_us: u64) {
        let is_time = |at_us: u64| now_us.saturating_sub(at_us) >= KEEP_AGAIN_US;
        if is_time(self.kept.looked_us) {
            self.kept.looked_us = now_us;
            if self.kept.failed_us.is_none() && self.kept.has_changed() {
                self.restore_copy(now_us);
            }
        }
        if self.kept.failed_us.is_some_and(is_time) {
            self.kept.failed_us = Some(now_us);
            if let Some(held) = self.kept.held.take() {
                self.kept.write(Some(&held), now_us);
                self.kept.held = Some(held);
                return;
            }
            // If there is no copy, the file need not be read again for it.
            if std::fs::metadata(Path::new(&self.kept.path)).is_ok() {
                self.watched.seen = FileVersion::Nothing;
            }
        }
    }

    /// Another program has changed the copy: writes its contents again.
    pub(super) fn restore_copy(&mut self, now_us: u64) {
        let should = self.kept.mark;
        // Another spawner of the queue may have written the same contents.
        let _ = self.kept.read();
        if self.kept.mark == should && self.kept.problem.is_none() {
            return;
        }
        match self.kept.held.take() {
            Some(held) => {
                self.kept.write(Some(&held), now_us);
                self.kept.held = Some(held);
            }
            // The file itself says what to write.
            None => self.watched.seen = FileVersion::Nothing,
        }
        if self.source == ContentsSource::Earlier
            && self.kept.mark.is_none()
            && self.kept.problem.is_none()
        {
            self.kept.problem = Some(Problem::of_file(self.kept.file, Kind::KeptNotWhole));
        }
    }

    /// Notes the result of loading. If there was no memory, the file is read again at the next check.
    pub(super) fn settle(&mut self, set: Result<Option<Problem>, Kind>) {
        if set == Err(Kind::OutOfMemory) {
            self.watched.seen = FileVersion::Nothing;
        }
        self.problem = set.unwrap_or_else(|kind| Some(Problem::of_file(self.file, kind)));
    }

    /// Whether something else than the file counts, or nothing although there is a file. A file that is still changing
    /// goes into the status only: an operator who replaces a file needs no warning.
    pub(super) fn is_passed_over(&self) -> bool {
        match self.source {
            _ if self.problem.is_some_and(|problem| problem.kind == Kind::Changing) => false,
            ContentsSource::File => false,
            ContentsSource::Earlier | ContentsSource::Part => true,
            ContentsSource::Nothing => self.problem.is_some(),
        }
    }

    /// Its problems: what is wrong with it, what counts in its place, and what is wrong with the copy.
    pub(super) fn problems(&self) -> [Option<Problem>; 3] {
        let counts = match self.source {
            ContentsSource::File | ContentsSource::Nothing => None,
            ContentsSource::Earlier => Some(Kind::EarlierCounts),
            ContentsSource::Part => Some(Kind::PartCounts(CONCURRENCY_REMOTE)),
        };
        [self.problem, counts.map(|kind| Problem::of_file(self.file, kind)), self.kept.problem]
    }
}
