//! Measures the size of an fd_set in each source file of the tree.
//!
//! The size depends on the headers of a file and on their order, so it is measured in the file itself. A probe includes
//! the whole source, and ends with a constant that spells the size in digits. The tree's own compiler compiles it, and
//! the digits are then searched in the object. This needs no other tool, and works with cross compilers.

use std::fs;

use crate::verify::build;
use crate::verify::error::Error;
use crate::verify::sandbox::makefile::targets;
use crate::verify::sandbox::private_tree::Sandbox;
use crate::verify::sandbox::process::run_captured;

/// The size of an fd_set in one source file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileFdSet {
    /// The source file.
    pub file: String,
    /// The number of descriptors that an fd_set has room for in this file.
    pub room: u64,
}

/// The sizes of fd_set in a tree.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FdSets {
    /// The files, in alphabetical order.
    pub files: Vec<FileFdSet>,
    /// Files that mention fd_set but could not be compiled here.
    pub left_out: Vec<String>,
}

/// Stands before the digits in the object.
const MARK: &[u8] = b"rig-fdset=";

/// Measures in every source file that uses fd_set and that the Makefile compiles to an object.
///
/// # Errors
/// The Makefile or a source cannot be read.
pub fn measure(sandbox: &Sandbox) -> Result<FdSets, Error> {
    let rules = targets(sandbox.tree())?;
    let mut files = Vec::new();
    for entry in fs::read_dir(sandbox.tree()).map_err(Error::file("read", sandbox.tree()))? {
        let name = entry
            .map_err(Error::file("read", sandbox.tree()))?
            .file_name()
            .to_string_lossy()
            .into_owned();
        let Some(stem) = name.strip_suffix(".c") else { continue };
        if !rules.contains(&format!("{stem}.o")) {
            continue;
        }
        let path = sandbox.tree().join(&name);
        let source = fs::read(&path).map_err(Error::file("read", &path))?;
        if mentions(&source, b"fd_set")
            || mentions(&source, b"FD_SET")
            || mentions(&source, b"FD_ZERO")
        {
            files.push(name);
        }
    }
    files.sort();
    let mut sets = FdSets::default();
    for file in files {
        // Make the object first, because its rule makes the headers that it needs.
        let object = format!("{}.o", file.trim_end_matches(".c"));
        let room = match build::make(sandbox, &[&object]) {
            Ok(_) => probe(sandbox, &file)?,
            Err(Error::Build(_)) => None,
            Err(error) => return Err(error),
        };
        match room {
            Some(room) => sets.files.push(FileFdSet { file, room }),
            None => sets.left_out.push(file),
        }
    }
    Ok(sets)
}

/// Returns whether a source has `word` as a whole word.
fn mentions(source: &[u8], word: &[u8]) -> bool {
    let is_word =
        |byte: Option<&u8>| byte.is_some_and(|byte| byte.is_ascii_alphanumeric() || *byte == b'_');
    source.windows(word.len()).enumerate().any(|(at, found)| {
        found == word
            && !(at > 0 && is_word(source.get(at - 1)))
            && !is_word(source.get(at + word.len()))
    })
}

/// Compiles the probe for one file, and returns the size; `None` if it does not compile.
fn probe(sandbox: &Sandbox, file: &str) -> Result<Option<u64>, Error> {
    let digits = |value: &str| {
        let digits: Vec<String> = (0..10)
            .rev()
            .map(|power| format!("'0' + ({value}) / {}UL % 10", 10_u64.pow(power)))
            .collect();
        digits.join(", ")
    };
    let mark: Vec<String> = MARK.iter().map(|byte| format!("'{}'", char::from(*byte))).collect();
    let source = format!(
        "#include \"{file}\"\nconst char rig_fdset[] = {{ {}, {}, ';' }};\n",
        mark.join(", "),
        digits("(unsigned long) sizeof(fd_set) * 8"),
    );
    let (name, object) = ("rigfdset.c", sandbox.tree().join("rigfdset.o"));
    let _ = fs::remove_file(&object);
    sandbox.write(&sandbox.tree().join(name), source.as_bytes())?;
    let mut command = sandbox.command(sandbox.tree().join("compile"));
    command.arg(name);
    let (status, _) = run_captured(command, "./compile", std::time::Duration::from_secs(120))?;
    if !status.success() {
        return Ok(None);
    }
    let bytes = fs::read(&object).map_err(Error::file("read", &object))?;
    Ok(spelled(&bytes))
}

/// Returns the number behind the mark in an object.
fn spelled(object: &[u8]) -> Option<u64> {
    let at = object.windows(MARK.len()).position(|found| found == MARK)? + MARK.len();
    let digits = object.get(at..at + 10)?;
    std::str::from_utf8(digits).ok()?.parse().ok()
}

impl FdSets {
    /// Checks that the size is the same in all files, and that it is enough in spawn.c for `spawn` deliveries. Returns
    /// the size; `None` if no file uses fd_set (they call poll).
    ///
    /// # Errors
    /// The sizes differ, or spawn.c's is too small.
    pub fn check(&self, spawn: u32) -> Result<Option<u64>, Error> {
        let Some(largest) = self.files.iter().map(|seen| seen.room).max() else { return Ok(None) };
        let odd: Vec<String> = self
            .files
            .iter()
            .filter(|seen| seen.room != largest)
            .map(|seen| format!("{} in {}", seen.room, seen.file))
            .collect();
        if !odd.is_empty() {
            let right: Vec<&str> = self
                .files
                .iter()
                .filter(|seen| seen.room == largest)
                .map(|seen| seen.file.as_str())
                .collect();
            return Err(Error::disproved(
                "the size of fd_set",
                format!("{largest} descriptors everywhere, as in {}", right.join(", ")),
                odd.join(", "),
                "there, select.h comes after a header that includes sys/types.h, or not at all, so FD_SET overwrites memory; \
                 qpatch apply (fd-setsize) puts select.h first",
            ));
        }
        let needed = 2 * u64::from(spawn) + 5;
        let spawner = self.files.iter().any(|seen| seen.file == "spawn.c");
        if spawner && largest < needed {
            return Err(Error::disproved(
                "the size of fd_set in spawn.c",
                format!(
                    "at least {needed} descriptors for conf-spawn {spawn} (without spawn-events two for each delivery, and five)"
                ),
                largest.to_string(),
                format!(
                    "from descriptor {largest} on, FD_SET overwrites memory; qpatch apply --spawn {spawn} (fd-setsize) raises it"
                ),
            ));
        }
        Ok(Some(largest))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sets(seen: &[(&str, u64)]) -> FdSets {
        let seen = seen
            .iter()
            .map(|(file, room)| FileFdSet { file: (*file).to_owned(), room: *room })
            .collect();
        FdSets { files: seen, left_out: Vec::new() }
    }

    #[test]
    fn words_are_whole_words() {
        assert!(mentions(b"fd_set rfds;", b"fd_set"));
        assert!(mentions(b"(fd_set*)0", b"fd_set"));
        assert!(!mentions(b"my_fd_set_t", b"fd_set"));
        assert!(!mentions(b"", b"fd_set"));
    }

    #[test]
    fn the_size_is_found_in_an_object() {
        assert_eq!(spelled(b"\x7fELF..rig-fdset=0000131072;.."), Some(131_072));
        assert_eq!(spelled(b"rig-fdset=00"), None);
        assert_eq!(spelled(b"nothing"), None);
    }

    #[test]
    fn one_size_that_is_enough_passes() {
        assert_eq!(
            sets(&[("chkspawn.c", 4096), ("spawn.c", 4096)]).check(1000).expect("fits"),
            Some(4096)
        );
        assert_eq!(sets(&[]).check(65000).expect("no fd_set at all"), None);
        assert_eq!(
            sets(&[("timeoutread.c", 1024)]).check(65000).expect("spawn.c polls"),
            Some(1024)
        );
    }

    #[test]
    fn a_moved_include_and_too_small_a_set_are_named() {
        let error =
            sets(&[("chkspawn.c", 131_072), ("spawn.c", 1024)]).check(1000).expect_err("two sizes");
        assert!(error.to_string().contains("1024 in spawn.c"), "{error}");
        let error =
            sets(&[("chkspawn.c", 1024), ("spawn.c", 1024)]).check(510).expect_err("too small");
        assert!(error.to_string().contains("at least 1025"), "{error}");
    }
}
