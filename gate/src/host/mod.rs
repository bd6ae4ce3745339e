//! The gate in a spawner: it knows the time, reads the control files when they change, and writes the status file.
//!
//! A file that cannot be used does not change what is in force. At the start, when nothing is, the copy of the last good one
//! counts ([`crate::host::kept`]); without one, of concurrencydomains, the lines that are good and a limit of 20 for all other
//! domains. Only where there is no such file there are no limits.
//!
//! Everything is relative to the working directory of the spawner, queue/mess. Looking at the files costs six `stat`
//! calls a second, or seven where qmail-remote reads authsenders; the status one `write` a second, when something changed, or one a minute, and what was seen of sites one in
//! ten seconds. All descriptors are closed again at once, but for that of [`crate::host::shared`], which only a queue with several
//! spawners has.

#![forbid(unsafe_code)]

pub mod clock;
pub mod kept;
pub mod process;
pub mod shared;
pub mod status;

use std::ffi::{OsStr, OsString};
use std::fmt::Write as _;
use std::fs::{File, Metadata};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, UNIX_EPOCH};

use self::clock::{Clock, SystemClock};
use self::kept::Mark;
use self::status::{Escaped, Frame, InForce, State};
use crate::control::name::Hasher;
use crate::control::problem::{self, Kind, Problem, Problems};
use crate::control::route::{self, Routes};
use crate::control::sender::{Asked, Reads, Senders};
use crate::control::site::{self, Map};
use crate::control::table::{self, Limit, Table};
use crate::core::command::Parts;
use crate::core::gate::{
    Answer, Busy, CALL_SLOT, CONCURRENCY_REMOTE, Call, Cause, Gate, Key, Next, Ran, Times, Why,
};
use crate::core::rules::KeyKind;
use crate::core::share::Spawners;
use crate::host::process::Identity;
use crate::host::shared::{COLUMNS_MAX, Shared};
use crate::report;
use crate::report::replies::{self, Replies};
use crate::util::memory::{OutOfMemory, Text};

const LOOK_US: u64 = 1_000_000;
const WRITE_US: u64 = 1_000_000;
/// A gate that has nothing to say writes all the same, so that the age of the status tells whether the spawner runs.
const HEARTBEAT_US: u64 = 60_000_000;
/// A file that was changed within this time may not be whole yet. Half a file without a mistake would be taken for a good one.
const QUIET: Duration = Duration::from_millis(200);
/// The same for a file that has less than half of what it had, or is missing: whoever overwrites or replaces it may have been
/// kept waiting in the middle of that.
const LONG_QUIET: Duration = Duration::from_secs(3);
/// When such a file is looked at again, and after how many looks the status says that it never comes to rest.
const LOOK_AGAIN_US: u64 = 250_000;
const LOOKS_IN_VAIN: u32 = 5;
/// How long the start waits for a file to come to rest; qmail-send waits meanwhile.
const START_WAIT: Duration = Duration::from_secs(1);
/// After how long a copy that could not be written is tried again.
const KEEP_AGAIN_US: u64 = 60_000_000;
/// What was seen of sites changes with nearly every new domain, and matters only at the next start: so it is written less often.
const WRITE_SITES_US: u64 = 10_000_000;
/// The next look comes a little later than the time for it, so that a time-out that ends early is not in vain.
const SLACK_MS: u64 = 2;

/// Between two rounds of warnings in qmail-send's log about control files that cannot be used, in microseconds.
const NOTICE_US: u64 = 60_000_000;

/// The largest file with a name, in bytes.
const NAME_FILE_MAX: u64 = 4096;

/// How much of a key's name a report shows, in bytes.
const SHOWN_NAME: usize = 100;

/// Which contents of a file have been read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Seen {
    Nothing,
    Missing,
    Unusable(Kind),
    File { device: u64, inode: u64, size: u64, modified: (i64, i64), changed: (i64, i64) },
}

impl Seen {
    fn of(metadata: &Metadata) -> Self {
        Self::File {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }
}

/// Where the contents that count come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Source {
    /// The file as it is, or that there is none.
    File,
    /// An earlier one.
    Earlier,
    /// The good lines of the file as it is.
    Part,
    /// Nothing has been seen yet.
    Nothing,
}

/// A file, and which contents of it have been read.
#[derive(Debug)]
struct Watched {
    path: OsString,
    seen: Seen,
}

/// A control file, and what counts of it.
#[derive(Debug)]
struct Control {
    file: problem::File,
    watched: Watched,
    problem: Option<Problem>,
    source: Source,
    /// How often in a row it was changing when it was looked at.
    in_vain: u32,
    kept: Kept,
    /// Whether qmail-send's log has it that something else than the file counts.
    logged: Logged,
}

/// Whether something is in qmail-send's log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Logged {
    No,
    Yes,
}

/// The copy of the last good contents of a control file.
#[derive(Debug)]
struct Kept {
    file: problem::File,
    path: OsString,
    /// What the copy has, if that is known and whole.
    mark: Option<Mark>,
    /// The copy when it was last read or written.
    seen: Seen,
    /// When it was last looked at.
    looked_us: u64,
    /// What it should have, while the control file cannot be used.
    held: Option<Vec<u8>>,
    problem: Option<Problem>,
    /// When it could not be written.
    failed_us: Option<u64>,
}

impl Kept {
    fn new(file: problem::File, path: OsString) -> Self {
        let (mark, seen, looked_us) = (None, Seen::Nothing, 0);
        Self { file, path, mark, seen, looked_us, held: None, problem: None, failed_us: None }
    }

    /// What it has, if that is whole, and when it was written, in seconds since 1970.
    fn read(&mut self) -> Option<(Vec<u8>, u64)> {
        (self.mark, self.problem) = (None, None);
        let read = open_if(&self.path, Seen::Nothing).and_then(|(seen, file)| {
            self.seen = seen;
            match (seen, file) {
                (Seen::File { size, modified: (secs, _), .. }, Some(file)) if size > 0 => {
                    let (contents, mark) = kept::read(&file, table::FILE_MAX)?;
                    self.mark = Some(mark);
                    Ok(Some((contents, u64::try_from(secs).unwrap_or(0))))
                }
                // A tree that was patched by an earlier qpatch has none; that is said when there is something to be kept.
                _ => Ok(None),
            }
        });
        read.unwrap_or_else(|kind| {
            self.problem = Some(Problem::of_file(self.file, kind));
            None
        })
    }

    /// Writes this into it, if it has something else. None: there is no file.
    fn write(&mut self, contents: Option<&[u8]>, now_us: u64) {
        if contents.map(Mark::of) == self.mark && self.failed_us.is_none() && self.problem.is_none()
        {
            return;
        }
        // Nothing is kept where nothing can be.
        if contents.is_none() && read_if(&self.path, 0, Seen::Nothing) == Ok((Seen::Missing, None))
        {
            (self.mark, self.problem) = (None, None);
            return;
        }
        let written = kept::write(&self.path, contents).map(|(mark, metadata)| {
            (self.mark, self.seen) = (mark, Seen::of(&metadata));
        });
        self.failed_us = written.is_err().then_some(now_us);
        self.problem = written.err().map(|kind| Problem::of_file(self.file, kind));
    }

    /// The control file can be used (or is not there): this is what has to be kept.
    fn keep(&mut self, contents: Option<&[u8]>, now_us: u64) {
        self.held = None;
        self.write(contents, now_us);
    }

    /// The control file cannot be used any more: what the copy has is held for the time when somebody takes that away.
    fn hold(&mut self) {
        if self.held.is_none() && self.mark.is_some() {
            let (mark, problem) = (self.mark, self.problem);
            self.held = self.read().filter(|_| self.mark == mark).map(|(contents, _)| contents);
            self.problem = self.problem.or(problem);
        }
    }

    /// Whether somebody else has written it, or removed it, since it was read or written.
    fn has_changed(&self) -> bool {
        let now = std::fs::metadata(Path::new(&self.path)).map(|file| Seen::of(&file));
        now.unwrap_or(Seen::Missing) != self.seen
    }
}

enum Contents {
    Same,
    Missing,
    Unusable(Kind),
    Read(Vec<u8>),
}

impl Watched {
    fn new(directory: &OsStr, name: &str) -> Result<Self, OutOfMemory> {
        Ok(Self { path: join(directory, name)?, seen: Seen::Nothing })
    }

    /// What is new about it. What is unusable is reported once, until it is something else.
    fn look(&mut self, max: u64) -> Contents {
        let (seen, contents) = match read_if(&self.path, max, self.seen) {
            Ok((seen, None)) if seen == self.seen => (seen, Contents::Same),
            Ok((seen, None)) => (seen, Contents::Missing),
            Ok((seen, Some(bytes))) => (seen, Contents::Read(bytes)),
            Err(kind) if self.seen == Seen::Unusable(kind) => (self.seen, Contents::Same),
            Err(kind) => (Seen::Unusable(kind), Contents::Unusable(kind)),
        };
        self.seen = seen;
        contents
    }

    /// Whether what was read is all of it: nobody has changed it meanwhile, or shortly before.
    fn is_whole(&self, quiet: Duration, clock: &dyn Clock) -> bool {
        let now = std::fs::metadata(Path::new(&self.path));
        !is_young(&self.seen, quiet, clock) && now.is_ok_and(|now| Seen::of(&now) == self.seen)
    }
}

impl Control {
    /// The file in the folder `control`, and its copy in the folder `lock`.
    fn new(
        control: &OsStr,
        file: problem::File,
        lock: &OsStr,
        kept: problem::File,
    ) -> Result<Self, OutOfMemory> {
        Ok(Self {
            file,
            watched: Watched::new(control, file.name())?,
            problem: None,
            source: Source::Nothing,
            in_vain: 0,
            logged: Logged::No,
            kept: Kept::new(kept, join(lock, kept.name())?),
        })
    }

    /// What is new about it. A file that is changing just now is not news yet. If it never stops changing, that is news.
    fn look(&mut self, max: u64, clock: &dyn Clock) -> Contents {
        let contents = self.watched.look(max);
        let is_at_rest = match contents {
            Contents::Read(ref text) => self.watched.is_whole(self.quiet(text.len() as u64), clock),
            Contents::Missing => !self.is_just_taken_away(clock),
            Contents::Same | Contents::Unusable(_) => true,
        };
        if !is_at_rest {
            self.watched.seen = Seen::Nothing;
            self.in_vain += 1;
            let is_news = self.in_vain == LOOKS_IN_VAIN || self.source == Source::Nothing;
            return if is_news { Contents::Unusable(Kind::Changing) } else { Contents::Same };
        }
        self.in_vain = 0;
        contents
    }

    /// How long a file of so many bytes has to be at rest.
    fn quiet(&self, length: u64) -> Duration {
        match self.kept.mark {
            Some(mark) if length < mark.length() / 2 => LONG_QUIET,
            _ => QUIET,
        }
    }

    /// Whether what is there now may be something else in an instant.
    fn is_restless(&self, clock: &dyn Clock) -> bool {
        match std::fs::metadata(Path::new(&self.watched.path)) {
            Ok(file) => file.is_file() && is_young(&Seen::of(&file), self.quiet(file.len()), clock),
            Err(error) => error.kind() == ErrorKind::NotFound && self.is_just_taken_away(clock),
        }
    }

    /// Whether it may be there again in an instant: something was made or removed in its folder, and a copy of it is kept,
    /// which is so until it has been away for good.
    fn is_just_taken_away(&self, clock: &dyn Clock) -> bool {
        let folder = std::fs::metadata(Path::new(directory_of(&self.watched.path)));
        self.kept.mark.is_some()
            && folder.is_ok_and(|folder| is_young(&Seen::of(&folder), LONG_QUIET, clock))
    }

    /// Looks again at the copy, and at what could not be kept, if it is time for that.
    fn keep_again(&mut self, now_us: u64) {
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
            // Where there is none, the file itself need not be read again for it.
            if std::fs::metadata(Path::new(&self.kept.path)).is_ok() {
                self.watched.seen = Seen::Nothing;
            }
        }
    }

    /// Somebody else has changed the copy: writes again what it should have.
    fn restore_copy(&mut self, now_us: u64) {
        let should = self.kept.mark;
        // Another spawner of the queue may have written the same.
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
            None => self.watched.seen = Seen::Nothing,
        }
        if self.source == Source::Earlier && self.kept.mark.is_none() && self.kept.problem.is_none()
        {
            self.kept.problem = Some(Problem::of_file(self.kept.file, Kind::KeptNotWhole));
        }
    }

    /// What became of what was read. Without memory it is read again at the next look.
    fn settle(&mut self, set: Result<Option<Problem>, Kind>) {
        if set == Err(Kind::OutOfMemory) {
            self.watched.seen = Seen::Nothing;
        }
        self.problem = set.unwrap_or_else(|kind| Some(Problem::of_file(self.file, kind)));
    }

    /// Whether something else than the file counts, or nothing though there is one.
    /// That it is changing just now is for the status: whoever removes one or puts another there is no cause for a warning.
    fn is_passed_over(&self) -> bool {
        match self.source {
            _ if self.problem.is_some_and(|problem| problem.kind == Kind::Changing) => false,
            Source::File => false,
            Source::Earlier | Source::Part => true,
            Source::Nothing => self.problem.is_some(),
        }
    }

    /// What is to be said of it: what is wrong with it, what counts in its place, and what is wrong with the copy.
    fn problems(&self) -> [Option<Problem>; 3] {
        let counts = match self.source {
            Source::File | Source::Nothing => None,
            Source::Earlier => Some(Kind::EarlierCounts),
            Source::Part => Some(Kind::PartCounts(CONCURRENCY_REMOTE)),
        };
        [self.problem, counts.map(|kind| Problem::of_file(self.file, kind)), self.kept.problem]
    }
}

/// Whether a file was changed so short a time ago that more may come.
fn is_young(seen: &Seen, quiet: Duration, clock: &dyn Clock) -> bool {
    let Seen::File { modified: (secs, nanos), .. } = *seen else { return false };
    let (Ok(secs), Ok(nanos)) = (u64::try_from(secs), u32::try_from(nanos)) else { return false };
    // A time to come is none.
    let age = UNIX_EPOCH
        .checked_add(Duration::new(secs, nanos))
        .map(|at| clock.wall().duration_since(at));
    age.is_some_and(|age| age.is_ok_and(|age| age < quiet))
}

/// A control file that counts as a whole, or not at all if it has an error. Its copy has only what anybody may see.
trait Plain: Sized {
    /// The longest one that is read, in bytes.
    const MAX: u64 = table::FILE_MAX;

    fn none(hasher: Hasher) -> Self;
    fn parse(text: &[u8], hasher: Hasher) -> Result<(Self, Problems), OutOfMemory>;
    fn set(self, gate: &mut Gate, now_us: u64) -> Result<(), OutOfMemory>;
    fn keep(text: Vec<u8>) -> Result<Vec<u8>, OutOfMemory>;
}

impl Plain for Routes {
    fn none(hasher: Hasher) -> Self {
        Self::new(hasher)
    }

    fn parse(text: &[u8], hasher: Hasher) -> Result<(Self, Problems), OutOfMemory> {
        Self::parse(text, hasher)
    }

    fn set(self, gate: &mut Gate, now_us: u64) -> Result<(), OutOfMemory> {
        gate.set_routes(self, now_us)
    }

    fn keep(text: Vec<u8>) -> Result<Vec<u8>, OutOfMemory> {
        let mut kept = Text::default();
        route::without_secrets(&text, &mut kept)?;
        Ok(kept.bytes)
    }
}

impl Plain for Senders {
    fn none(hasher: Hasher) -> Self {
        Self::new(hasher)
    }

    fn parse(text: &[u8], hasher: Hasher) -> Result<(Self, Problems), OutOfMemory> {
        Self::parse(text, hasher)
    }

    fn set(self, gate: &mut Gate, _now_us: u64) -> Result<(), OutOfMemory> {
        gate.set_senders(self);
        Ok(())
    }

    fn keep(text: Vec<u8>) -> Result<Vec<u8>, OutOfMemory> {
        <Routes as Plain>::keep(text)
    }
}

impl Plain for Replies {
    const MAX: u64 = replies::FILE_MAX;

    fn none(_hasher: Hasher) -> Self {
        Self::default()
    }

    fn parse(text: &[u8], _hasher: Hasher) -> Result<(Self, Problems), OutOfMemory> {
        Self::parse(text)
    }

    fn set(self, gate: &mut Gate, now_us: u64) -> Result<(), OutOfMemory> {
        gate.set_replies(self, now_us);
        Ok(())
    }

    fn keep(text: Vec<u8>) -> Result<Vec<u8>, OutOfMemory> {
        Ok(text)
    }
}

impl Plain for Map {
    fn none(hasher: Hasher) -> Self {
        Self::new(hasher)
    }

    fn parse(text: &[u8], hasher: Hasher) -> Result<(Self, Problems), OutOfMemory> {
        Self::parse(text, hasher)
    }

    fn set(self, gate: &mut Gate, now_us: u64) -> Result<(), OutOfMemory> {
        gate.set_map(self, now_us)
    }

    fn keep(text: Vec<u8>) -> Result<Vec<u8>, OutOfMemory> {
        Ok(text)
    }
}

/// What became of the contents of a file.
enum Loaded {
    /// They count. There may be a warning.
    Good(Option<Problem>),
    /// They have an error, and do not.
    Bad(Problem),
}

fn load<T: Plain>(gate: &mut Gate, text: &[u8], now_us: u64) -> Result<Loaded, OutOfMemory> {
    let (value, problems) = T::parse(text, gate.hasher())?;
    match problems.worst() {
        Some(worst) if problems.errors() > 0 => Ok(Loaded::Bad(worst)),
        worst => value.set(gate, now_us).map(|()| Loaded::Good(worst)),
    }
}

/// Looks at a file, and puts in force what is new about it. True if anything is.
fn follow<T: Plain>(file: &mut Control, gate: &mut Gate, clock: &dyn Clock, now_us: u64) -> bool {
    file.keep_again(now_us);
    let set = match file.look(T::MAX, clock) {
        Contents::Same => return false,
        Contents::Missing => {
            file.source = Source::File;
            file.kept.keep(None, now_us);
            T::none(gate.hasher()).set(gate, now_us).map(|()| None).map_err(|_| Kind::OutOfMemory)
        }
        Contents::Unusable(kind) => {
            fall_back::<T>(file, gate, now_us);
            Err(kind)
        }
        Contents::Read(text) => match load::<T>(gate, &text, now_us) {
            Ok(Loaded::Good(warning)) => {
                file.source = Source::File;
                if let Ok(kept) = T::keep(text) {
                    file.kept.keep(Some(&kept), now_us);
                }
                Ok(warning)
            }
            Ok(Loaded::Bad(error)) => {
                fall_back::<T>(file, gate, now_us);
                Ok(Some(error))
            }
            Err(OutOfMemory) => Err(Kind::OutOfMemory),
        },
    };
    file.settle(set);
    true
}

/// The file cannot be used. What counts goes on to count; at the start, the copy of the last good one.
fn fall_back<T: Plain>(file: &mut Control, gate: &mut Gate, now_us: u64) {
    let something_counts = match file.source {
        Source::Nothing => file
            .kept
            .read()
            .is_some_and(|(text, _)| matches!(load::<T>(gate, &text, now_us), Ok(Loaded::Good(_)))),
        Source::File | Source::Earlier | Source::Part => true,
    };
    if something_counts {
        file.source = Source::Earlier;
        file.kept.hold();
    }
}

/// A regular file that is not the one that has been seen; none when it is, or when there is no file.
fn open_if(path: &OsStr, known: Seen) -> Result<(Seen, Option<File>), Kind> {
    let unreadable = |error: std::io::Error| Kind::Unreadable(error.raw_os_error().unwrap_or(0));
    // A dangling link, or a folder that is missing, is not the same as a missing file: somebody has meant one to be there.
    let missing = |error: std::io::Error| {
        let is_there = std::fs::symlink_metadata(Path::new(path)).is_ok();
        let has_folder =
            std::fs::metadata(Path::new(directory_of(path))).is_ok_and(|folder| folder.is_dir());
        match is_there || !has_folder {
            true => Err(unreadable(error)),
            false => Ok((Seen::Missing, None)),
        }
    };
    // Looked at before it is opened: opening a FIFO would wait for a writer.
    let metadata = match std::fs::metadata(Path::new(path)) {
        Err(error) if error.kind() == ErrorKind::NotFound => return missing(error),
        Err(error) => return Err(unreadable(error)),
        Ok(metadata) => metadata,
    };
    if !metadata.is_file() {
        return Err(Kind::NotRegular);
    }
    if Seen::of(&metadata) == known {
        return Ok((known, None));
    }
    let file = match kept::at_once().read(true).open(Path::new(path)) {
        Err(error) if error.kind() == ErrorKind::NotFound => return missing(error),
        opened => opened.map_err(unreadable)?,
    };
    let metadata = file.metadata().map_err(unreadable)?;
    match metadata.is_file() {
        true => Ok((Seen::of(&metadata), Some(file))),
        false => Err(Kind::NotRegular),
    }
}

/// The contents of a regular file that is not the one that has been seen; none when it is, or when there is no file.
fn read_if(path: &OsStr, max: u64, known: Seen) -> Result<(Seen, Option<Vec<u8>>), Kind> {
    let unreadable = |error: std::io::Error| Kind::Unreadable(error.raw_os_error().unwrap_or(0));
    let (seen, file) = open_if(path, known)?;
    let (Seen::File { size, .. }, Some(mut file)) = (seen, file) else { return Ok((seen, None)) };
    if size > max {
        return Err(Kind::TooBig(size, max));
    }
    // A file that grows while it is read is another one at the next look.
    let size = size as usize;
    let mut bytes = crate::util::memory::filled(0u8, size).map_err(|_| Kind::OutOfMemory)?;
    let mut filled = 0;
    while filled < size {
        match file.read(&mut bytes[filled..]) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(unreadable(error)),
        }
    }
    bytes.truncate(filled);
    Ok((seen, Some(bytes)))
}

fn copy(from: &OsStr) -> Result<OsString, OutOfMemory> {
    let mut to = OsString::new();
    to.try_reserve(from.len())?;
    to.push(from);
    Ok(to)
}

/// What is before the last slash.
fn directory_of(path: &OsStr) -> &OsStr {
    match Path::new(path).parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.as_os_str(),
        _ => OsStr::new("."),
    }
}

fn join(directory: &OsStr, name: &str) -> Result<OsString, OutOfMemory> {
    let mut path = OsString::new();
    path.try_reserve(directory.len() + 1 + name.len())?;
    path.push(directory);
    path.push("/");
    path.push(name);
    Ok(path)
}

/// How many spawners the queue is meant for: hier.c makes a status file for each, `.1` being that of the second.
fn status_files(base: &OsStr) -> Result<u32, OutOfMemory> {
    let mut count = 1;
    while count < COLUMNS_MAX as u32
        && std::fs::metadata(Path::new(&numbered(base, count)?)).is_ok()
    {
        count += 1;
    }
    Ok(count)
}

/// control/concurrencysuppl and a number, as qmail-send reads it in trees with the channels patch; what is wrong with it is
/// qmail-send's to tell.
fn concurrency_supplemental(control: &OsStr, number: u32) -> Result<u32, OutOfMemory> {
    let mut name = Text::default();
    write!(name, "concurrencysuppl{number}").map_err(|_| OutOfMemory)?;
    let name = std::str::from_utf8(&name.bytes).unwrap_or_default();
    Ok(concurrency_remote(&join(control, name)?).0)
}

/// The file of one of several spawners: the first has the name as it is.
fn numbered(base: &OsStr, index: u32) -> Result<OsString, OutOfMemory> {
    if index == 0 {
        return copy(base);
    }
    let mut number = Text::default();
    write!(number, ".{index}").map_err(|_| OutOfMemory)?;
    let mut path = OsString::new();
    path.try_reserve_exact(base.len() + number.bytes.len())?;
    path.push(base);
    path.push(OsStr::from_bytes(&number.bytes));
    Ok(path)
}

/// What there is to do about a held command; `text` is in [`Host::text`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Due {
    /// Nothing.
    Nothing,
    /// Start it.
    Go {
        /// Its slot.
        slot: u32,
        /// For [`Host::command`].
        command: u32,
    },
    /// Report [`Host::text`].
    Report {
        /// Its slot.
        slot: u32,
        /// For [`Host::command`].
        command: u32,
    },
    /// Report [`Host::text`], for no slot: qmail-send should give mail that was sent away, or log something.
    Call,
}

/// What to do about a command that has been read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ask {
    /// Start it.
    Go,
    /// It is kept.
    Hold,
    /// Report [`Host::text`].
    Report,
}

/// What becomes of the report of a delivery that has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Done {
    /// It goes to qmail-send.
    AsItIs,
    /// It goes there with [`Host::text`] as its last line: how long it was held, and how long it ran.
    WithLine,
    /// [`Host::text`] goes there instead: it was not really tried.
    Instead,
}

/// The gate, its files and its clock.
#[derive(Debug)]
pub struct Host<C = SystemClock> {
    gate: Gate,
    clock: C,
    slots: u32,
    concurrency_remote: u32,
    concurrency_problem: Option<Problem>,
    domains: Control,
    routes: Control,
    sites: Control,
    /// Only where qmail-remote reads it.
    senders: Option<Control>,
    replies: Control,
    /// The name for HELO: that of the first one that there is.
    helo: [Watched; 2],
    /// The names of the status file and of what was seen of sites, for a spawner that is alone or the first.
    status_base: OsString,
    seen_base: OsString,
    status_path: OsString,
    status_problem: Option<Problem>,
    seen_path: OsString,
    seen_problem: Option<Problem>,
    /// How much of what was seen has been written, and when.
    seen_written: u64,
    seen_written_us: u64,
    status_text: Text,
    generation: u64,
    identity: Identity,
    loaded_secs: u64,
    looked_us: u64,
    written_us: u64,
    dirty: bool,
    failed: bool,
    /// The slot that a command is asked for, until there is an answer.
    asking: Option<u32>,
    /// A control file is to be told of in qmail-send's log; when that was done the last time.
    unlogged: bool,
    logged_us: Option<u64>,
    /// After a failure: where the search for held slots goes on.
    rescue_from: u32,
    text: Text,
}

impl Host {
    /// Opens the gate: reads the control files, and writes the status if there is anything to say, or anything left of an
    /// earlier spawner: what does not count any more, and may say more than it should, goes at once.
    ///
    /// # Errors
    /// No memory, or slots out of range.
    pub fn open(
        slots: u32,
        control: &OsStr,
        status: &OsStr,
        seed: u64,
    ) -> Result<Self, OutOfMemory> {
        Self::open_beside(slots, control, status, Reads::default(), seed)
    }

    /// The same beside a qmail-remote that reads more than smtproutes.
    ///
    /// # Errors
    /// As those of [`Host::open`].
    pub fn open_beside(
        slots: u32,
        control: &OsStr,
        status: &OsStr,
        reads: Reads,
        seed: u64,
    ) -> Result<Self, OutOfMemory> {
        Self::open_with(SystemClock::start(), slots, control, status, reads, seed)
    }
}

impl<C: Clock> Host<C> {
    /// The same with a clock of the caller's.
    ///
    /// # Errors
    /// As those of [`Host::open`].
    pub fn open_with(
        clock: C,
        slots: u32,
        control: &OsStr,
        status: &OsStr,
        reads: Reads,
        seed: u64,
    ) -> Result<Self, OutOfMemory> {
        let (concurrency_remote, concurrency_problem) =
            concurrency_remote(&join(control, "concurrencyremote")?);
        let expected = status_files(status)?;
        // Which channel is this spawner's nobody tells it. Too low a number grows with what is seen in use; with too high a one,
        // mail that is held could fill all slots of its channel.
        let mut capacity = concurrency_remote;
        for number in 1..expected {
            capacity = capacity.min(concurrency_supplemental(control, number - 1)?);
        }
        let mut text = Text::default();
        text.bytes.try_reserve(576)?;
        let lock = directory_of(status);
        let mut host = Self {
            gate: Gate::new(slots, capacity, seed)?,
            clock,
            slots,
            concurrency_remote,
            concurrency_problem,
            domains: Control::new(
                control,
                problem::File::Domains,
                lock,
                problem::File::KeptDomains,
            )?,
            routes: Control::new(control, problem::File::Routes, lock, problem::File::KeptRoutes)?,
            sites: Control::new(control, problem::File::Sites, lock, problem::File::KeptSites)?,
            senders: match reads.senders {
                Asked::No => None,
                Asked::Yes => Some(Control::new(
                    control,
                    problem::File::Senders,
                    lock,
                    problem::File::KeptSenders,
                )?),
            },
            replies: Control::new(
                control,
                problem::File::Replies,
                lock,
                problem::File::KeptReplies,
            )?,
            helo: [Watched::new(control, "helohost")?, Watched::new(control, "me")?],
            status_base: copy(status)?,
            seen_base: join(directory_of(status), "gatesites")?,
            status_path: copy(status)?,
            status_problem: None,
            seen_path: join(lock, "gatesites")?,
            seen_problem: None,
            seen_written: 0,
            seen_written_us: 0,
            status_text: Text::default(),
            generation: 0,
            identity: Identity::of_self(),
            loaded_secs: 0,
            looked_us: 0,
            written_us: 0,
            dirty: false,
            failed: false,
            asking: None,
            unlogged: false,
            logged_us: None,
            rescue_from: 0,
            text,
        };
        host.gate.set_reads(reads);
        host.restore_seen(expected)?;
        let shared = join(directory_of(status), "gateshared")?;
        if let Some(shared) =
            Shared::open(&shared, slots, expected, seed ^ u64::from(std::process::id()))?
        {
            host.dirty |= shared.problem().is_some();
            host.gate.share(Box::new(shared));
            host.name_files()?;
        }
        host.come_to_rest();
        host.look(0);
        host.write_status(0);
        Ok(host)
    }

    /// A command has been read.
    pub fn ask(&mut self, slot: u32, parts: &Parts<'_>) -> Ask {
        if self.failed {
            return Ask::Go;
        }
        if slot == CALL_SLOT {
            return self.ask_together(parts.recipient());
        }
        self.asking = Some(slot);
        let now_us = self.now_us();
        self.tick(now_us);
        let answer = match self.gate.ask(now_us, slot, parts) {
            Answer::Go => {
                self.touch();
                Ask::Go
            }
            Answer::Hold => {
                self.touch();
                Ask::Hold
            }
            Answer::Busy(busy) => {
                self.touch();
                self.busy_text(busy);
                Ask::Report
            }
            Answer::InUse => {
                self.plain_text("ZInternal error: delnum in use. (#4.3.5)\n");
                Ask::Report
            }
        };
        self.asking = None;
        answer
    }

    /// `recipient` is a number, an @ and a domain: so many recipients of this domain, see [`Gate::ask_together`].
    fn ask_together(&mut self, recipient: &[u8]) -> Ask {
        let digits = recipient.split(|&byte| byte == b'@').next().unwrap_or_default();
        let number = std::str::from_utf8(digits).ok().and_then(|digits| digits.parse().ok());
        let Some(number @ 1..) = number else { return Ask::Go };
        let now_us = self.now_us();
        self.tick(now_us);
        let Some(busy) = self.gate.ask_together(now_us, number, recipient) else { return Ask::Go };
        self.touch();
        self.busy_text(busy);
        Ask::Report
    }

    /// What there is to do about the held commands; to be called until there is nothing.
    pub fn due(&mut self) -> Due {
        if self.failed {
            return self.rescue();
        }
        let now_us = self.now_us();
        self.tick(now_us);
        if self.unlogged && self.notice_text(now_us) {
            return Due::Call;
        }
        match self.gate.next(now_us) {
            Next::None => Due::Nothing,
            Next::Go { slot, command } => {
                self.touch();
                Due::Go { slot, command }
            }
            Next::Busy { slot, command, busy } => {
                self.touch();
                self.busy_text(busy);
                Due::Report { slot, command }
            }
            Next::Call(call) => {
                self.call_text(call);
                Due::Call
            }
        }
    }

    /// The delivery in this slot has ended: whether its report goes to qmail-send as it is, or [`Host::text`] instead.
    pub fn done(&mut self, slot: u32, ran: Ran<'_>) -> Done {
        if self.failed {
            return Done::AsItIs;
        }
        let now_us = self.now_us();
        let times = self.gate.times(now_us, slot);
        let busy = self.gate.done(now_us, slot, ran);
        self.touch();
        match (busy, times, ran) {
            (None, Some(times), Ran::Yes(report)) if report::takes_a_line(report) => {
                self.text.bytes.clear();
                self.times_text(times);
                Done::WithLine
            }
            (None, ..) => Done::AsItIs,
            (Some(busy), times, _) => {
                self.busy_text(busy);
                if let Some(times) = times {
                    self.text.bytes.pop();
                    self.times_text(times);
                }
                Done::Instead
            }
        }
    }

    /// Milliseconds until [`Host::due`] has something to do; None if a report or a command comes first.
    pub fn timeout_ms(&mut self) -> Option<u64> {
        if self.failed {
            return (self.rescue_from < self.slots).then_some(0);
        }
        let now_us = self.now_us();
        let mut wait_us = self.wait_us(now_us)?;
        if wait_us == 0 {
            // Files and status are due, which is done here; a held command is up to the caller.
            self.tick(now_us);
            wait_us = self.wait_us(now_us)?;
        }
        Some(if wait_us == 0 { 0 } else { wait_us.div_ceil(1000) + SLACK_MS })
    }

    fn wait_us(&self, now_us: u64) -> Option<u64> {
        let held_us = self.gate.timeout_us(now_us);
        let until =
            |last_us: u64, every_us: u64| every_us.saturating_sub(now_us.saturating_sub(last_us));
        let look_us = held_us.map(|_| until(self.looked_us, LOOK_US));
        let write_us = self.write_every_us().map(|every_us| until(self.written_us, every_us));
        [held_us, look_us, write_us].into_iter().flatten().min()
    }

    /// How long after the last one the next status is due. A gate that has never had anything to say goes on like that.
    fn write_every_us(&self) -> Option<u64> {
        match self.dirty {
            true => Some(WRITE_US),
            false => (self.generation > 0).then_some(HEARTBEAT_US),
        }
    }

    /// How many commands are held.
    #[must_use]
    pub fn held(&self) -> u32 {
        if self.failed { self.gate.to_rescue(self.rescue_from) } else { self.gate.held() }
    }

    /// Forgets the held commands. When nothing runs any more, the status is written for the last time.
    pub fn drop_held(&mut self) {
        if self.failed {
            self.rescue_from = self.slots;
            let _ = self.gate.rescue_handing();
            return;
        }
        if self.gate.held() > 0 {
            self.touch();
        }
        self.gate.drop_held();
        // The spawner ends with its last delivery, and this is called until then.
        if self.gate.in_use() == 0 {
            let now_us = self.now_us();
            if self.dirty {
                self.write_status(now_us);
            }
            self.write_seen(now_us);
        }
    }

    /// The parts of a command that [`Host::due`] gave.
    #[must_use]
    pub fn command(&self, command: u32) -> Parts<'_> {
        self.gate.command(command)
    }

    /// The report of the last answer, ended by a zero byte.
    #[must_use]
    pub fn text(&self) -> &[u8] {
        &self.text.bytes
    }

    /// Something has failed that must not: from now on everything goes, and what is held is given back.
    pub fn fail(&mut self) {
        if !self.failed {
            self.failed = true;
            if let Some(slot) = self.asking {
                // The answer is that it starts: it must not be given back, too.
                self.gate.abandon(slot);
            }
            self.gate.leave_spawners();
            let now_us = self.now_us();
            self.write_status(now_us);
        }
    }

    fn rescue(&mut self) -> Due {
        if let Some((slot, command)) = self.gate.rescue_handing() {
            return Due::Go { slot, command };
        }
        let Some((slot, command)) = self.gate.rescue(self.rescue_from) else {
            self.rescue_from = self.slots;
            return match self.gate.rescue_call() {
                Some(number) => {
                    self.call_text(Call { number, most: u32::MAX });
                    Due::Call
                }
                None => Due::Nothing,
            };
        };
        self.rescue_from = slot + 1;
        Due::Go { slot, command }
    }

    fn now_us(&self) -> u64 {
        self.clock.now_us()
    }

    fn unix_secs(&self) -> u64 {
        self.clock.wall().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
    }

    /// The status has to be written, also without limits: what runs is counted all the same.
    fn touch(&mut self) {
        self.dirty = true;
    }

    /// Waits for control files that are being replaced at this very moment, but not for long. Of a file that does not come to
    /// rest nothing is taken: see [`Control::look`].
    fn come_to_rest(&mut self) {
        let until_us = START_WAIT.as_micros() as u64;
        let clock = &self.clock;
        let all = [&mut self.domains, &mut self.routes, &mut self.sites, &mut self.replies];
        for file in all.into_iter().chain(&mut self.senders) {
            // What is wrong with it is told when it is needed.
            let _ = file.kept.read();
            while file.is_restless(clock) && clock.now_us() < until_us {
                clock.pause(QUIET / 10);
            }
        }
    }

    /// What is to be done once a second.
    #[inline]
    fn tick(&mut self, now_us: u64) {
        if now_us.saturating_sub(self.looked_us) >= LOOK_US {
            self.look(now_us);
            // Without memory to give memory back there is nothing to be done.
            let _ = self.gate.tidy(now_us);
        }
        let unwritten_us = now_us.saturating_sub(self.written_us);
        if unwritten_us >= WRITE_US
            && self.write_every_us().is_some_and(|every_us| unwritten_us >= every_us)
        {
            self.write_status(now_us);
        }
        if now_us.saturating_sub(self.seen_written_us) >= WRITE_SITES_US {
            self.write_seen(now_us);
        }
    }

    fn look(&mut self, now_us: u64) {
        self.looked_us = now_us;
        self.look_at_domains(now_us);
        let routes = follow::<Routes>(&mut self.routes, &mut self.gate, &self.clock, now_us);
        let sites = follow::<Map>(&mut self.sites, &mut self.gate, &self.clock, now_us);
        let replies = follow::<Replies>(&mut self.replies, &mut self.gate, &self.clock, now_us);
        let senders = match &mut self.senders {
            Some(senders) => follow::<Senders>(senders, &mut self.gate, &self.clock, now_us),
            None => false,
        };
        if routes || sites || replies || senders {
            self.touch();
        }
        self.look_for_notices();
        self.look_at_helo();
        self.look_at_spawners();
        if self.controls().any(|file| (1..LOOKS_IN_VAIN).contains(&file.in_vain)) {
            self.looked_us = now_us.saturating_sub(LOOK_US - LOOK_AGAIN_US);
        }
    }

    /// Whether there is something for qmail-send's log. Where a queue has several spawners the first one speaks.
    fn look_for_notices(&mut self) {
        let all = [&mut self.domains, &mut self.routes, &mut self.sites, &mut self.replies];
        let is_first = self.gate.spawners().is_none_or(|all| all.index() == 0);
        self.unlogged = false;
        for control in all.into_iter().chain(&mut self.senders) {
            if !control.is_passed_over() {
                control.logged = Logged::No;
            }
            self.unlogged |= is_first && control.is_passed_over() && control.logged == Logged::No;
        }
    }

    /// A line for qmail-send's log about one control file, if it is time for that: at the start, and once a minute.
    fn notice_text(&mut self, now_us: u64) -> bool {
        let is_early = |at_us: u64| now_us.saturating_sub(at_us) < NOTICE_US;
        if self.logged_us.is_some_and(is_early) {
            return false;
        }
        let all = [&mut self.domains, &mut self.routes, &mut self.sites, &mut self.replies];
        let told = all
            .into_iter()
            .chain(&mut self.senders)
            .find(|control| control.is_passed_over() && control.logged == Logged::No);
        let Some(control) = told else {
            self.unlogged = false;
            self.logged_us = Some(now_us);
            return false;
        };
        control.logged = Logged::Yes;
        let [problem, counts, _] = control.problems();
        self.text.bytes.clear();
        let _ = self.text.write_str("Nwarning: ");
        if let Some(problem) = problem {
            let _ = write!(self.text, "{problem}");
        }
        if let Some(counts) = counts {
            let _ = write!(self.text, "; {}", counts.kind);
        }
        let _ = self.text.push(b"\n\0");
        true
    }

    /// Who else is at the queue. In the first second nothing can have changed.
    fn look_at_spawners(&mut self) {
        let known = |gate: &Gate| gate.spawners().map(|all| (all.index(), all.problem()));
        let before = known(&self.gate);
        if before.is_none() {
            return;
        }
        self.gate.look_at_spawners();
        let now = known(&self.gate);
        if now == before {
            return;
        }
        self.touch();
        if now.map(|now| now.0) != before.map(|before| before.0) {
            // Of the old name nobody is to read any more: the process that it tells of is alive.
            let _ = overwrite(&self.status_path, b"");
            // Without memory the old name stays until the next change.
            let _ = self.name_files();
        }
    }

    /// The files that only this one of several spawners writes.
    fn name_files(&mut self) -> Result<(), OutOfMemory> {
        let index = self.gate.spawners().map_or(0, |spawners| spawners.index());
        let status = numbered(&self.status_base, index)?;
        self.seen_path = numbered(&self.seen_base, index)?;
        self.status_path = status;
        (self.status_problem, self.seen_problem) = (None, None);
        Ok(())
    }

    fn look_at_domains(&mut self, now_us: u64) {
        self.domains.keep_again(now_us);
        let set = match self.domains.look(table::FILE_MAX, &self.clock) {
            Contents::Same => return,
            Contents::Missing => {
                let set = self.gate.set_table(None, now_us).map_err(|_| Kind::OutOfMemory);
                if set.is_ok() {
                    self.domains.source = Source::File;
                    self.domains.kept.keep(None, now_us);
                }
                set.map(|()| None)
            }
            Contents::Unusable(kind) => {
                let table = Table::new(self.gate.hasher());
                self.fall_back(table, now_us).and(Err(kind))
            }
            Contents::Read(text) => self.load_table(&text, now_us),
        };
        self.domains.settle(set);
        self.touch();
    }

    /// Loads a table; what is wrong with it.
    fn load_table(&mut self, text: &[u8], now_us: u64) -> Result<Option<Problem>, Kind> {
        let parsed = Table::parse(text, self.gate.hasher());
        let (table, problems) = parsed.map_err(|_| Kind::OutOfMemory)?;
        if problems.errors() > 0 {
            self.fall_back(table, now_us)?;
        } else {
            self.gate.set_table(Some(table), now_us).map_err(|_| Kind::OutOfMemory)?;
            self.loaded_secs = self.unix_secs();
            self.domains.source = Source::File;
            self.domains.kept.keep(Some(text), now_us);
        }
        Ok(problems.worst())
    }

    /// The file cannot be used. What counts already goes on to count; at the start, the copy of the last good one; without
    /// any, the good lines.
    fn fall_back(&mut self, mut good_lines: Table, now_us: u64) -> Result<(), Kind> {
        let is_whole = matches!(self.domains.source, Source::File | Source::Earlier);
        if is_whole && self.gate.rules().table.is_some() {
            self.domains.source = Source::Earlier;
            self.domains.kept.hold();
            return Ok(());
        }
        if let Some((text, written_secs)) = self.domains.kept.read()
            && let Ok((table, problems)) = Table::parse(&text, self.gate.hasher())
            && problems.errors() == 0
        {
            self.gate.set_table(Some(table), now_us).map_err(|_| Kind::OutOfMemory)?;
            self.loaded_secs = written_secs;
            self.domains.source = Source::Earlier;
            self.domains.kept.held = Some(text);
            return Ok(());
        }
        good_lines.limit_others(CONCURRENCY_REMOTE).map_err(|_| Kind::OutOfMemory)?;
        self.gate.set_table(Some(good_lines), now_us).map_err(|_| Kind::OutOfMemory)?;
        self.loaded_secs = self.unix_secs();
        self.domains.source = Source::Part;
        Ok(())
    }

    /// The control files that are watched, in the order in which they are told of.
    fn controls(&self) -> impl Iterator<Item = &Control> {
        let all = [&self.domains, &self.routes, &self.sites, &self.replies];
        all.into_iter().chain(&self.senders)
    }

    /// As in qmail-remote: the first line of helohost, else that of me. Problems with these are qmail-remote's to tell.
    fn look_at_helo(&mut self) {
        let [helohost, me] = &mut self.helo;
        let contents = match helohost.look(NAME_FILE_MAX) {
            Contents::Same if helohost.seen != Seen::Missing => return,
            Contents::Read(bytes) => {
                // If it goes away, me is to be read again.
                me.seen = Seen::Nothing;
                bytes
            }
            _ => match me.look(NAME_FILE_MAX) {
                Contents::Same => return,
                Contents::Read(bytes) => bytes,
                Contents::Missing | Contents::Unusable(_) => Vec::new(),
            },
        };
        let line = contents.split(|&byte| byte == b'\n').next().unwrap_or_default();
        self.gate.set_helo(table::trimmed(line));
    }

    /// What was seen of sites before the spawner was started, by whichever of the spawners. Whatever is wrong with these files, it
    /// is only not known then.
    fn restore_seen(&mut self, files: u32) -> Result<(), OutOfMemory> {
        let hasher = self.gate.hasher();
        for index in 0..files {
            let path = numbered(&self.seen_base, index)?;
            match read_if(&path, site::FILE_MAX, Seen::Nothing) {
                Ok((_, Some(bytes))) => {
                    site::read(&bytes, hasher, self.gate.seen_mut())?;
                    self.seen_written = self.gate.rules().sites.seen.changes();
                    // Whatever was not read is gone at once: it may be what an earlier build should not have written. That had
                    // only the first file.
                    let mut text = Text::default();
                    site::write(&mut text, &self.gate.rules().sites.seen)?;
                    if index == 0 && !bytes.is_empty() && text.bytes != bytes {
                        self.overwrite_seen(&text);
                    }
                }
                Ok((_, None)) => {}
                Err(kind) => {
                    self.seen_problem = Some(Problem::of_file(problem::File::Seen, kind));
                }
            }
        }
        Ok(())
    }

    /// Writes what was seen of sites, if something changed. Like the status file it must exist.
    fn write_seen(&mut self, now_us: u64) {
        self.seen_written_us = now_us;
        let seen = &self.gate.rules().sites.seen;
        let changes = seen.changes();
        if changes == self.seen_written {
            return;
        }
        let mut text = Text::default();
        if site::write(&mut text, seen).is_err() {
            return;
        }
        if self.overwrite_seen(&text) {
            self.seen_written = changes;
        }
    }

    /// Whether it could be written; why not is told in the status.
    fn overwrite_seen(&mut self, text: &Text) -> bool {
        let written = overwrite(&self.seen_path, &text.bytes);
        let is_written = written.is_ok();
        let problem = written.err().map(|kind| Problem::of_file(problem::File::Seen, kind));
        if problem != self.seen_problem {
            self.seen_problem = problem;
            self.touch();
        }
        is_written
    }

    fn busy_text(&mut self, busy: Busy) {
        let key = self.gate.key(busy.key);
        self.text.bytes.clear();
        // It fits into what has been reserved; if it did not, the text would end early.
        let _ = write_busy(&mut self.text, key, busy);
        let _ = self.text.push(b"\0");
    }

    /// Adds the line from which the log tells when a delivery started that was held. For reports that only qmail-send's log
    /// shows: what bounces is for the sender, who has nothing to do with it.
    fn times_text(&mut self, Times { held_ms, ran_ms }: Times) {
        let secs = |ms: u64| (ms / 1000, ms % 1000);
        let ((held, held_part), (ran, ran_part)) = (secs(held_ms.into()), secs(ran_ms));
        // As in busy_text.
        let _ = write!(self.text, "Held {held}.{held_part:03} s, ran {ran}.{ran_part:03} s.\n\0");
    }

    fn call_text(&mut self, Call { number, most }: Call) {
        self.text.bytes.clear();
        // As in busy_text.
        let _ = write!(self.text, "R{number} {most}\n\0");
    }

    fn plain_text(&mut self, text: &str) {
        self.text.bytes.clear();
        let _ = self.text.push(text.as_bytes());
        let _ = self.text.push(b"\0");
    }

    fn write_status(&mut self, now_us: u64) {
        self.written_us = now_us;
        self.dirty = false;
        self.generation += 1;
        self.gate.count_parted();
        let state = match self.gate.rules().table {
            _ if self.failed => State::Failed,
            Some(_) => State::Limits,
            None => State::Stock,
        };
        let in_force = match state {
            State::Stock | State::Failed => InForce::None,
            State::Limits => match self.domains.source {
                Source::File | Source::Nothing => InForce::File,
                Source::Earlier => InForce::Kept,
                Source::Part => InForce::Part,
            },
        };
        let frame = Frame {
            generation: self.generation,
            written_secs: self.unix_secs(),
            pid: std::process::id(),
            identity: self.identity,
            state,
            in_force,
            slots: self.slots,
            concurrency_remote: self.concurrency_remote,
            loaded_secs: self.loaded_secs,
            now_us,
        };
        let mut problems = [[None; 3]; 7];
        for (to, control) in problems.iter_mut().zip(self.controls()) {
            *to = control.problems();
        }
        let shared = self.gate.spawners().and_then(Spawners::problem);
        problems[5] = [self.concurrency_problem, self.status_problem, self.seen_problem];
        problems[6][0] = shared;
        if status::write(&mut self.status_text, &frame, &self.gate, problems.as_flattened())
            .is_err()
        {
            return;
        }
        let written = overwrite(&self.status_path, &self.status_text.bytes);
        self.status_problem =
            written.err().map(|kind| Problem::of_file(problem::File::Status, kind));
        if self.status_text.bytes.capacity() > 64 << 10 {
            self.status_text = Text::default();
        }
    }

    /// The gate, for tests and simulations.
    #[must_use]
    pub fn gate(&self) -> &Gate {
        &self.gate
    }
}

/// Overwrites a file that exists. One write and then the cut, so that a reader sees the end of the old text at most.
fn overwrite(path: &OsStr, bytes: &[u8]) -> Result<(), Kind> {
    let unreadable = |error: std::io::Error| Kind::Unreadable(error.raw_os_error().unwrap_or(0));
    if !std::fs::metadata(Path::new(path)).map_err(unreadable)?.is_file() {
        return Err(Kind::NotRegular);
    }
    let mut file = kept::at_once().write(true).open(Path::new(path)).map_err(unreadable)?;
    file.write_all(bytes).map_err(unreadable)?;
    file.set_len(bytes.len() as u64).map_err(unreadable)
}

/// control/concurrencyremote as qmail-send reads it: the digits at the beginning of the first line.
fn concurrency_remote(path: &OsStr) -> (u32, Option<Problem>) {
    let file = problem::File::ConcurrencyRemote;
    match read_if(path, 4096, Seen::Nothing) {
        Ok((_, None)) => (CONCURRENCY_REMOTE, None),
        Ok((_, Some(bytes))) => {
            let digits = bytes.iter().take_while(|byte| byte.is_ascii_digit());
            let value = digits.fold(None, |value: Option<u32>, digit| {
                Some(value.unwrap_or(0).saturating_mul(10).saturating_add(u32::from(digit - b'0')))
            });
            match value {
                Some(value) => (value, None),
                None => (
                    CONCURRENCY_REMOTE,
                    Some(Problem { line: 1, ..Problem::of_file(file, Kind::NotNumber) }),
                ),
            }
        }
        Err(kind) => (CONCURRENCY_REMOTE, Some(Problem::of_file(file, kind))),
    }
}

/// What qmail-send is told of a delivery that is not made now:
///
/// ```text
/// B73 5 gmail.com is at its limit of 20 deliveries; not tried. (#4.4.5)
/// B73 5 gmail.com is at 12 deliveries, its server takes no more (limit 20); not tried. (#4.4.5)
/// B73 5 gmail.com refused this one beside 11 (limit 20); to be tried again: REPORT (#4.4.5) [or without "beside 11"]
/// B73 5 a.example has its part of its site's places, 15; not tried. (#4.4.5)
/// B73 5 gmail.com: no connection to its server succeeds, one at a time is tried; not tried. (#4.4.1)
/// Zgmail.com: no connection to its server succeeds, none is tried for 73 s; not tried. (#4.4.1)
/// B73 5 gmail.com is paused by control/concurrencyreplies:7; not tried. (#4.4.5)
/// Zgmail.com is paused by control/concurrencyreplies:7 for 1730 s; not tried. (#4.4.5)
/// ```
fn write_busy(out: &mut Text, key: &Key, busy: Busy) -> std::fmt::Result {
    match busy.why {
        Why::AtLimit | Why::Refused | Why::Paused(_) | Why::AtPart(_) => {
            write!(out, "B{} {} ", busy.secs, key.number)?;
        }
        Why::Suspended(_) => out.write_str("Z")?,
    }
    match key.kind {
        KeyKind::Domain => {}
        KeyKind::Relay => out.write_str("relay ")?,
        KeyKind::Group => out.write_str("group ")?,
        KeyKind::Candidates => out.write_str("candidates of ")?,
    }
    if key.name.is_empty() {
        out.write_str("(no domain)")?;
    }
    for &byte in &key.name[..key.name.len().min(SHOWN_NAME)] {
        // As `qpatch gate show` prints it; but a name is one word here.
        match byte {
            b' ' => out.write_str("%20")?,
            byte => write!(out, "{}", Escaped(&[byte]))?,
        }
    }
    if key.name.len() > SHOWN_NAME {
        out.write_str("...")?;
    }
    let of_table = |out: &mut Text| match key.cap.limit {
        Limit::AtMost(limit) => write!(out, " (limit {limit})"),
        Limit::Unlimited => Ok(()),
    };
    match (busy.why, key.limit()) {
        (Why::Suspended(Cause::Rule(line)), _) => {
            return writeln!(
                out,
                " is paused by {}:{line} for {} s; not tried. (#4.4.5)",
                problem::File::Replies,
                busy.secs
            );
        }
        (Why::Paused(Cause::Rule(line)), _) => {
            return writeln!(
                out,
                " is paused by {}:{line}; not tried. (#4.4.5)",
                problem::File::Replies
            );
        }
        (Why::Suspended(Cause::NoConnection), _) => {
            return writeln!(
                out,
                ": no connection to its server succeeds, none is tried for {} s; not tried. (#4.4.1)",
                busy.secs
            );
        }
        (Why::Paused(Cause::NoConnection), _) => {
            return out.write_str(
                ": no connection to its server succeeds, one at a time is tried; not tried. (#4.4.1)\n",
            );
        }
        (Why::AtPart(part), _) => {
            return writeln!(
                out,
                " has its part of its site's places, {part}; not tried. (#4.4.5)"
            );
        }
        (Why::Refused, _) => {
            out.write_str(" refused this one")?;
            if key.running > 0 {
                write!(out, " beside {}", key.running)?;
            }
            of_table(out)?;
            out.write_str("; to be tried again: ")?;
            for &byte in &key.error {
                out.write_char(match byte {
                    b'\n' => '/',
                    b' '..=b'~' => char::from(byte),
                    _ => '?',
                })?;
            }
            return out.write_str(" (#4.4.5)\n");
        }
        (Why::AtLimit, Limit::AtMost(0)) => out.write_str(" is closed (limit 0)")?,
        (Why::AtLimit, Limit::AtMost(limit)) if key.cap.limit != Limit::AtMost(limit) => {
            write!(out, " is at {limit} deliver{}, its server takes no more", ending(limit))?;
            of_table(out)?;
        }
        (Why::AtLimit, Limit::AtMost(limit)) => {
            write!(out, " is at its limit of {limit} deliver{}", ending(limit))?;
        }
        (Why::AtLimit, Limit::Unlimited) => out.write_str(" was at its limit")?,
    }
    out.write_str("; not tried. (#4.4.5)\n")
}

fn ending(deliveries: u32) -> &'static str {
    if deliveries == 1 { "y" } else { "ies" }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::learn::{Began, Counted, Ended, Learning};
    use crate::core::rules::Cap;
    use crate::util::random::Random;
    use std::fs::File;
    use std::time::SystemTime;

    fn busy(kind: KeyKind, name: &[u8], limit: u32, secs: u32) -> String {
        let cap = Cap { limit: Limit::AtMost(limit), learning: Learning::On };
        let mut key = Key::new(kind, name.to_vec(), cap);
        key.number = 7;
        told(&key, Why::AtLimit, secs)
    }

    fn told(key: &Key, why: Why, secs: u32) -> String {
        let mut out = Text::default();
        write_busy(&mut out, key, Busy { key: 0, secs, why }).unwrap();
        String::from_utf8(out.bytes).unwrap()
    }

    #[test]
    fn the_texts_of_what_the_server_does_not_take() {
        let cap = Cap { limit: Limit::AtMost(20), learning: Learning::On };
        let mut key = Key::new(KeyKind::Domain, b"gmail.com".to_vec(), cap);
        (key.number, key.running) = (7, 11);
        key.error =
            b"Connected to 10.0.0.1 but greeting failed.\nRemote host said: 421 \x1b[2J\n".to_vec();
        assert_eq!(
            told(&key, Why::Refused, 61),
            "B61 7 gmail.com refused this one beside 11 (limit 20); to be tried again: Connected to 10.0.0.1 but \
             greeting failed./Remote host said: 421 ?[2J/ (#4.4.5)\n"
        );
        assert_eq!(
            told(&key, Why::Paused(Cause::NoConnection), 61),
            "B61 7 gmail.com: no connection to its server succeeds, one at a time is tried; not tried. (#4.4.1)\n"
        );
        assert_eq!(
            told(&key, Why::Suspended(Cause::NoConnection), 61),
            "Zgmail.com: no connection to its server succeeds, none is tried for 61 s; not tried. (#4.4.1)\n"
        );
        assert_eq!(
            told(&key, Why::Paused(Cause::Rule(12)), 61),
            "B61 7 gmail.com is paused by control/concurrencyreplies:12; not tried. (#4.4.5)\n"
        );
        assert_eq!(
            told(&key, Why::Suspended(Cause::Rule(12)), 7200),
            "Zgmail.com is paused by control/concurrencyreplies:12 for 7200 s; not tried. (#4.4.5)\n"
        );
        let refused = Ended {
            now_us: 2,
            started_us: 1,
            running: 11,
            beside: 11,
            limit: 20,
            learning: Learning::On,
            seen: crate::report::Seen::TooMany(crate::report::Sent::No),
            counted: Counted::All,
            began: Began::Freely,
        };
        key.learned.end(&refused, &mut Random::new(1));
        assert_eq!(
            told(&key, Why::AtLimit, 61),
            "B61 7 gmail.com is at 11 deliveries, its server takes no more (limit 20); not tried. (#4.4.5)\n"
        );
    }

    /// A home whose status has been written by an earlier process, if `old` says so.
    fn home(name: &str, old: &str, domains: Option<&str>) -> OsString {
        let path = std::env::temp_dir().join(format!("gate-beat-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        std::fs::create_dir_all(&path).unwrap();
        std::fs::write(path.join("status"), old).unwrap();
        std::fs::write(path.join("gatekept.domains"), "").unwrap();
        if let Some(domains) = domains {
            put(path.as_os_str(), domains);
        }
        path.into_os_string()
    }

    /// Changes concurrencydomains, an hour ago: the time that passes here is not the file system's.
    fn put(home: &OsStr, domains: &str) {
        let mut file = File::create(Path::new(home).join("concurrencydomains")).unwrap();
        file.write_all(domains.as_bytes()).unwrap();
        file.set_modified(SystemTime::now() - Duration::from_secs(3600)).unwrap();
    }

    fn read(home: &OsStr) -> Result<status::Status, status::StatusError> {
        status::Status::parse(&std::fs::read(Path::new(home).join("status")).unwrap())
    }

    /// The time goes on by so much.
    fn pass(host: &mut Host, secs: u64) {
        host.clock.start -= Duration::from_secs(secs);
    }

    #[test]
    fn an_idle_gate_writes_once_a_minute() {
        let home = home("idle", "", Some(":1\n"));
        let mut host = Host::open(10, &home, &join(&home, "status").unwrap(), 1).unwrap();
        assert_eq!(read(&home).unwrap().generation, 1);
        pass(&mut host, 30);
        assert!((10_000..=30_010).contains(&host.timeout_ms().unwrap()));
        assert_eq!(read(&home).unwrap().generation, 1);
        for minute in 2..5 {
            pass(&mut host, 60);
            assert!((30_000..=60_010).contains(&host.timeout_ms().unwrap()));
            let status = read(&home).unwrap();
            assert_eq!((status.generation, status.in_force), (minute, InForce::File));
        }
        // It sees then what became of its files, with nobody asking for a delivery.
        put(&home, ":2O\n");
        pass(&mut host, 60);
        host.timeout_ms();
        let status = read(&home).unwrap();
        assert_eq!(
            (status.in_force, status.state, status.problems.len()),
            (InForce::Kept, State::Limits, 2)
        );
        put(&home, ":2\n# now\n");
        pass(&mut host, 60);
        host.timeout_ms();
        assert_eq!(read(&home).unwrap().in_force, InForce::File);
        std::fs::remove_file(Path::new(&home).join("concurrencydomains")).unwrap();
        let long_ago = SystemTime::now() - Duration::from_secs(3600);
        File::open(Path::new(&home)).unwrap().set_modified(long_ago).unwrap();
        pass(&mut host, 60);
        host.timeout_ms();
        let status = read(&home).unwrap();
        assert_eq!((status.in_force, status.state), (InForce::None, State::Stock));
        let generation = status.generation;
        pass(&mut host, 60);
        host.timeout_ms();
        assert_eq!(read(&home).unwrap().generation, generation + 1, "also without limits");
        host.fail();
        assert_eq!(read(&home).unwrap().in_force, InForce::None);
        let _ = std::fs::remove_dir_all(&home);
    }

    /// The copy is looked at once a minute, also while the control file cannot be used, and the copy is all there is.
    #[test]
    fn a_copy_that_somebody_has_changed_is_written_again() {
        let other = {
            let home = home("other", "", Some("c.example:9\n"));
            Host::open(10, &home, &join(&home, "status").unwrap(), 1).unwrap();
            let other = std::fs::read(Path::new(&home).join("gatekept.domains")).unwrap();
            let _ = std::fs::remove_dir_all(&home);
            other
        };
        let whole = "a.example:3\n:30\n";
        for now in [whole, "a.example:3O\n"] {
            let home = home("changed", "", Some(whole));
            let kept = Path::new(&home).join("gatekept.domains");
            let read_kept =
                || kept::read(&File::open(&kept).unwrap(), 1000).map(|(contents, _)| contents);
            let mut host = Host::open(10, &home, &join(&home, "status").unwrap(), 1).unwrap();
            put(&home, now);
            pass(&mut host, 60);
            host.timeout_ms();
            assert_eq!(read_kept(), Ok(whole.as_bytes().to_vec()));
            let torn = &other[..other.len() - 1];
            for (what, bytes) in [("empty", &b""[..]), ("torn", torn), ("other", &other)] {
                std::fs::write(&kept, bytes).unwrap();
                pass(&mut host, 60);
                host.timeout_ms();
                assert_eq!(read_kept(), Ok(whole.as_bytes().to_vec()), "{now:?}: {what}");
            }
            // Removed, it cannot be made again; when it is there, it is written.
            std::fs::remove_file(&kept).unwrap();
            pass(&mut host, 60);
            host.timeout_ms();
            let problems = read(&home).unwrap().problems;
            let what = "queue/lock/gatekept.domains: cannot be written (error 2)";
            assert!(problems.iter().any(|problem| problem == what), "{problems:?}");
            std::fs::write(&kept, "").unwrap();
            pass(&mut host, 60);
            host.timeout_ms();
            assert_eq!(read_kept(), Ok(whole.as_bytes().to_vec()), "{now:?}: removed");
            let problems = read(&home).unwrap().problems;
            assert!(!problems.iter().any(|problem| problem.contains("gatekept")), "{problems:?}");
            let _ = std::fs::remove_dir_all(&home);
        }
        // What is there without a control file is of no use: an operator who has removed it wants no limits.
        let home = home("none", "", None);
        let mut host = Host::open(10, &home, &join(&home, "status").unwrap(), 1).unwrap();
        let kept = Path::new(&home).join("gatekept.domains");
        std::fs::write(&kept, &other).unwrap();
        let long_ago = SystemTime::now() - Duration::from_secs(3600);
        File::open(Path::new(&home)).unwrap().set_modified(long_ago).unwrap();
        pass(&mut host, 60);
        host.timeout_ms();
        assert_eq!(std::fs::read(&kept).unwrap(), b"");
        let _ = std::fs::remove_dir_all(&home);
    }

    #[test]
    fn a_gate_without_limits_writes_too() {
        let home = home("stock", "qpatch-gate\t1\t7\nstate\tlimits\nend\t7\n", None);
        let status = join(&home, "status").unwrap();
        let mut host = Host::open(10, &home, &status, 1).unwrap();
        let now = read(&home).unwrap();
        assert_eq!(
            (now.state, now.in_force, now.pid),
            (State::Stock, InForce::None, std::process::id())
        );
        pass(&mut host, 60);
        host.timeout_ms();
        assert_eq!(read(&home).unwrap().generation, 2);
        let _ = std::fs::remove_dir_all(&home);
    }

    #[test]
    fn the_text_of_a_busy_report() {
        assert_eq!(
            busy(KeyKind::Domain, b"gmail.com", 20, 73),
            "B73 7 gmail.com is at its limit of 20 deliveries; not tried. (#4.4.5)\n"
        );
        assert_eq!(
            busy(KeyKind::Group, b"yahoo", 1, 3600),
            "B3600 7 group yahoo is at its limit of 1 delivery; not tried. (#4.4.5)\n"
        );
        assert_eq!(
            busy(KeyKind::Relay, b"mx.example", 0, 1),
            "B1 7 relay mx.example is closed (limit 0); not tried. (#4.4.5)\n"
        );
        assert_eq!(
            busy(KeyKind::Domain, b"a\nb\0\xff c%", 2, 5),
            "B5 7 a%0ab%00%ff%20c%25 is at its limit of 2 deliveries; not tried. (#4.4.5)\n"
        );
        assert!(busy(KeyKind::Domain, &[b'x'; 255], 2, 5).len() < 200);
    }
}
