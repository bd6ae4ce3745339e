//! Files that are checked again and again: which version was read, and how to open and overwrite them safely.

#![forbid(unsafe_code)]

use std::ffi::{OsStr, OsString};
use std::fs::{File, Metadata};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, UNIX_EPOCH};

use crate::control::problem::Kind;
use crate::host::clock::Clock;
use crate::host::kept;
use crate::util::memory::OutOfMemory;

/// A version of a file, as far as stat(2) can tell versions apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FileVersion {
    Nothing,
    Missing,
    Unusable(Kind),
    File { device: u64, inode: u64, size: u64, modified: (i64, i64), changed: (i64, i64) },
}

impl FileVersion {
    pub(super) fn of(metadata: &Metadata) -> Self {
        Self::File {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }
}

/// A file, and the version of it that was read.
#[derive(Debug)]
pub(super) struct Watched {
    pub(super) path: OsString,
    pub(super) seen: FileVersion,
}

pub(super) enum Contents {
    Same,
    Missing,
    Unusable(Kind),
    Read(Vec<u8>),
}

impl Watched {
    pub(super) fn new(directory: &OsStr, name: &str) -> Result<Self, OutOfMemory> {
        Ok(Self { path: join(directory, name)?, seen: FileVersion::Nothing })
    }

    /// Reads it if it has changed. An unusable file is reported once, until it changes.
    pub(super) fn look(&mut self, max: u64) -> Contents {
        let (seen, contents) = match read_if(&self.path, max, self.seen) {
            Ok((seen, None)) if seen == self.seen => (seen, Contents::Same),
            Ok((seen, None)) => (seen, Contents::Missing),
            Ok((seen, Some(bytes))) => (seen, Contents::Read(bytes)),
            Err(kind) if self.seen == FileVersion::Unusable(kind) => (self.seen, Contents::Same),
            Err(kind) => (FileVersion::Unusable(kind), Contents::Unusable(kind)),
        };
        self.seen = seen;
        contents
    }

    /// Whether all of it was read: nothing has changed it meanwhile or shortly before.
    pub(super) fn is_whole(&self, quiet: Duration, clock: &dyn Clock) -> bool {
        let now = std::fs::metadata(Path::new(&self.path));
        !is_young(&self.seen, quiet, clock)
            && now.is_ok_and(|now| FileVersion::of(&now) == self.seen)
    }
}

/// Whether a file was changed within this time, so that more changes may follow.
pub(super) fn is_young(seen: &FileVersion, quiet: Duration, clock: &dyn Clock) -> bool {
    let FileVersion::File { modified: (secs, nanos), .. } = *seen else { return false };
    let (Ok(secs), Ok(nanos)) = (u64::try_from(secs), u32::try_from(nanos)) else { return false };
    // A time in the future does not count.
    let age = UNIX_EPOCH
        .checked_add(Duration::new(secs, nanos))
        .map(|at| clock.wall().duration_since(at));
    age.is_some_and(|age| age.is_ok_and(|age| age < quiet))
}

/// Opens a regular file, unless it is the known version. None: it is, or there is no file.
pub(super) fn open_if(
    path: &OsStr,
    known: FileVersion,
) -> Result<(FileVersion, Option<File>), Kind> {
    let unreadable = |error: std::io::Error| Kind::Unreadable(error.raw_os_error().unwrap_or(0));
    // A dangling link or a missing folder is not the same as a missing file: somebody wants a file to be there.
    let missing = |error: std::io::Error| {
        let is_there = std::fs::symlink_metadata(Path::new(path)).is_ok();
        let has_folder =
            std::fs::metadata(Path::new(directory_of(path))).is_ok_and(|folder| folder.is_dir());
        match is_there || !has_folder {
            true => Err(unreadable(error)),
            false => Ok((FileVersion::Missing, None)),
        }
    };
    // It is checked before it is opened: opening a FIFO would wait for a writer.
    let metadata = match std::fs::metadata(Path::new(path)) {
        Err(error) if error.kind() == ErrorKind::NotFound => return missing(error),
        Err(error) => return Err(unreadable(error)),
        Ok(metadata) => metadata,
    };
    if !metadata.is_file() {
        return Err(Kind::NotRegular);
    }
    if FileVersion::of(&metadata) == known {
        return Ok((known, None));
    }
    let file = match kept::at_once().read(true).open(Path::new(path)) {
        Err(error) if error.kind() == ErrorKind::NotFound => return missing(error),
        opened => opened.map_err(unreadable)?,
    };
    let metadata = file.metadata().map_err(unreadable)?;
    match metadata.is_file() {
        true => Ok((FileVersion::of(&metadata), Some(file))),
        false => Err(Kind::NotRegular),
    }
}

/// Reads a regular file, unless it is the known version. None: it is, or there is no file.
pub(super) fn read_if(
    path: &OsStr,
    max: u64,
    known: FileVersion,
) -> Result<(FileVersion, Option<Vec<u8>>), Kind> {
    let unreadable = |error: std::io::Error| Kind::Unreadable(error.raw_os_error().unwrap_or(0));
    let (seen, file) = open_if(path, known)?;
    let (FileVersion::File { size, .. }, Some(mut file)) = (seen, file) else {
        return Ok((seen, None));
    };
    if size > max {
        return Err(Kind::TooBig(size, max));
    }
    // A file that grows meanwhile is another version at the next check.
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

pub(super) fn copy(from: &OsStr) -> Result<OsString, OutOfMemory> {
    let mut to = OsString::new();
    to.try_reserve(from.len())?;
    to.push(from);
    Ok(to)
}

/// The folder of a path; `.` if it has none.
pub(super) fn directory_of(path: &OsStr) -> &OsStr {
    match Path::new(path).parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.as_os_str(),
        _ => OsStr::new("."),
    }
}

pub(super) fn join(directory: &OsStr, name: &str) -> Result<OsString, OutOfMemory> {
    let mut path = OsString::new();
    path.try_reserve(directory.len() + 1 + name.len())?;
    path.push(directory);
    path.push("/");
    path.push(name);
    Ok(path)
}

/// Overwrites a file that exists. It writes first and then cuts to length, so that at worst a reader sees the end of
/// the old text behind the new one.
pub(super) fn overwrite(path: &OsStr, bytes: &[u8]) -> Result<(), Kind> {
    let unreadable = |error: std::io::Error| Kind::Unreadable(error.raw_os_error().unwrap_or(0));
    if !std::fs::metadata(Path::new(path)).map_err(unreadable)?.is_file() {
        return Err(Kind::NotRegular);
    }
    let mut file = kept::at_once().write(true).open(Path::new(path)).map_err(unreadable)?;
    file.write_all(bytes).map_err(unreadable)?;
    file.set_len(bytes.len() as u64).map_err(unreadable)
}
