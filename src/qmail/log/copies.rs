//! Finds what is named twice among the files of a log: one file by several names, and copies of a file's beginning.
#![forbid(unsafe_code)]

use std::collections::HashMap;
use std::fs::{File, Metadata};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::input::Source;
use crate::error::Error;

/// What each line about a delivery has. Files that have only other lines in common are no copies: many logs begin with
/// the same status line.
const DELIVERY: &[u8] = b"delivery ";

/// Removes the names of regular files that were named before, by the same name or another. Returns a text for each.
pub(super) fn remove_repeated(paths: &mut Vec<PathBuf>) -> Vec<String> {
    let mut first_names: HashMap<(u64, u64), PathBuf> = HashMap::new();
    let mut repeated = Vec::new();
    paths.retain(|path| {
        let Some(file) = metadata(path).filter(Metadata::is_file) else { return true };
        let id = (file.dev(), file.ino());
        if let Some(first) = first_names.get(&id) {
            repeated.push(match first == path {
                true => format!("{} is named more than once", shown(path)),
                false => format!("{} is the same file as {}", shown(path), shown(first)),
            });
            return false;
        }
        first_names.insert(id, path.clone());
        true
    });
    repeated
}

/// Returns a text for each of the regular files that has all lines of another one, or whose lines another one begins
/// with. Compressed files are compared by what they have unpacked.
///
/// # Errors
/// A file cannot be read.
pub(super) fn copies(paths: &[&PathBuf]) -> Result<Vec<String>, Error> {
    // By their first lines, so that files of which none is a copy are read no further.
    let mut alike: HashMap<Vec<u8>, Vec<&PathBuf>> = HashMap::new();
    let mut copies = Vec::new();
    for &path in paths {
        let mut line = Vec::new();
        if !Source::open(path)?.next_line(&mut line)? {
            continue;
        }
        let others = alike.entry(line).or_default();
        let mut is_copy = false;
        for other in others.iter() {
            let (copy, whole) = match compare(path, other)? {
                Compared::Different => continue,
                Compared::FirstIsShorter => (path, *other),
                Compared::SecondIsShorter => (*other, path),
            };
            copies.push(format!("{} has the same lines as {}", shown(copy), shown(whole)));
            is_copy = true;
            break;
        }
        if !is_copy {
            others.push(path);
        }
    }
    Ok(copies)
}

enum Compared {
    Different,
    /// The second has all lines of the first, from its beginning on.
    FirstIsShorter,
    SecondIsShorter,
}

fn compare(first: &Path, second: &Path) -> Result<Compared, Error> {
    let (mut a, mut b) = (Source::open(first)?, Source::open(second)?);
    let (mut a_line, mut b_line) = (Vec::new(), Vec::new());
    let mut has_deliveries = false;
    loop {
        let (a_goes_on, b_goes_on) = (a.next_line(&mut a_line)?, b.next_line(&mut b_line)?);
        if !a_goes_on || !b_goes_on {
            return Ok(match (has_deliveries, a_goes_on) {
                (false, _) => Compared::Different,
                (true, false) => Compared::FirstIsShorter,
                (true, true) => Compared::SecondIsShorter,
            });
        }
        if a_line != b_line {
            return Ok(Compared::Different);
        }
        has_deliveries = has_deliveries || memchr::memmem::find(&a_line, DELIVERY).is_some();
    }
}

fn metadata(path: &Path) -> Option<Metadata> {
    if path == Path::new("-") {
        let stdin = io::stdin().as_fd().try_clone_to_owned().ok()?;
        return File::from(stdin).metadata().ok();
    }
    path.metadata().ok()
}

fn shown(path: &Path) -> String {
    match path == Path::new("-") {
        true => "standard input".to_owned(),
        false => path.display().to_string(),
    }
}
