//! The files of the spawners of one queue, and how many deliveries qmail-send gives each of them at once.

#![forbid(unsafe_code)]

use std::ffi::{OsStr, OsString};
use std::fmt::Write as _;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use crate::control::problem::{self, Kind, Problem};
use crate::core::gate::CONCURRENCY_REMOTE;
use crate::host::spawner_columns::COLUMNS_MAX;
use crate::host::watched::{FileVersion, copy, join, read_if};
use crate::util::memory::{OutOfMemory, Text};

/// How many spawners the queue is made for: hier.c makes a status file for each; `.1` is that of the second.
pub(super) fn status_files(base: &OsStr) -> Result<u32, OutOfMemory> {
    let mut count = 1;
    while count < COLUMNS_MAX as u32
        && std::fs::metadata(Path::new(&numbered(base, count)?)).is_ok()
    {
        count += 1;
    }
    Ok(count)
}

/// control/concurrencysuppl and a number, as qmail-send reads it in trees with the channels patch. qmail-send reports
/// problems with it.
pub(super) fn concurrency_supplemental(control: &OsStr, number: u32) -> Result<u32, OutOfMemory> {
    let mut name = Text::default();
    write!(name, "concurrencysuppl{number}").map_err(|_| OutOfMemory)?;
    let name = std::str::from_utf8(&name.bytes).unwrap_or_default();
    Ok(concurrency_remote(&join(control, name)?).0)
}

/// The name of a file of one of several spawners: the first spawner has the name as it is.
pub(super) fn numbered(base: &OsStr, index: u32) -> Result<OsString, OutOfMemory> {
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

/// control/concurrencyremote as qmail-send reads it: the digits at the beginning of the first line.
pub(super) fn concurrency_remote(path: &OsStr) -> (u32, Option<Problem>) {
    let file = problem::File::ConcurrencyRemote;
    match read_if(path, 4096, FileVersion::Nothing) {
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
