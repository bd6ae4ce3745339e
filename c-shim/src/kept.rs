//! queue/lock/gatekept.domains, .routes, .sites, .senders and .replies: the last control files of each kind that could be used, so that a
//! restart does not open the gate when the file itself has a mistake or cannot be read.
//!
//! ```text
//! qpatch-kept  1  LENGTH  SUM
//! CONTENTS
//! ```
//!
//! LENGTH is that of the contents in bytes, SUM the 64-bit FNV-1a of them, in hexadecimal. The spawner may not create files
//! in queue/lock, so the file is overwritten in place: who is killed while writing, or finds the disk full, leaves a file
//! whose sum is wrong, which counts as none, and never a part of one. An empty file is none.
//!
//! Several spawners of one queue write the same contents, and each writes again what it finds to be different later.

#![forbid(unsafe_code)]

use std::ffi::OsStr;
use std::fmt::Write as _;
use std::fs::OpenOptions;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use crate::memory::{OutOfMemory, Text};
use crate::problem::Kind;

/// The length of the first line, in bytes.
pub const HEAD: usize = 12 + 2 + 21 + 17;

/// Which contents are in a kept file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mark {
    length: u64,
    sum: u64,
}

impl Mark {
    /// That of some contents.
    #[must_use]
    pub fn of(contents: &[u8]) -> Self {
        let step = |sum: u64, byte: &u8| (sum ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        Self {
            length: contents.len() as u64,
            sum: contents.iter().fold(0xcbf2_9ce4_8422_2325, step),
        }
    }

    /// How many bytes the contents have.
    #[must_use]
    pub fn length(self) -> u64 {
        self.length
    }
}

/// O_NONBLOCK, without which an open of a FIFO waits for somebody at its other end. A file is looked at before it is opened, but
/// may be a FIFO by then.
const NO_WAIT: i32 = match cfg!(all(
    target_os = "linux",
    any(target_arch = "x86", target_arch = "x86_64", target_arch = "arm", target_arch = "aarch64")
)) {
    true => 0o4000,
    false => 0,
};

/// Options with which no open waits.
pub(crate) fn at_once() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.custom_flags(NO_WAIT);
    options
}

fn head(mark: Mark) -> Result<Text, OutOfMemory> {
    let mut text = Text::default();
    text.bytes.try_reserve_exact(HEAD)?;
    let Mark { length, sum } = mark;
    writeln!(text, "qpatch-kept\t1\t{length:020}\t{sum:016x}").map_err(|_| OutOfMemory)?;
    Ok(text)
}

/// The contents that a whole file has, and their mark.
#[must_use]
pub fn contents(file: &[u8]) -> Option<(&[u8], Mark)> {
    let (first, contents) = file.split_at_checked(HEAD)?;
    let mark = Mark::of(contents);
    (head(mark).ok()?.bytes == first).then_some((contents, mark))
}

/// Overwrites a file that exists, with contents or, without any, with nothing.
///
/// # Errors
/// It is not written, and may hold what is no kept file.
pub fn write(path: &OsStr, contents: Option<&[u8]>) -> Result<Option<Mark>, Kind> {
    let unwritable = |error: std::io::Error| Kind::Unwritable(error.raw_os_error().unwrap_or(0));
    if !std::fs::metadata(Path::new(path)).map_err(unwritable)?.is_file() {
        return Err(Kind::NotRegular);
    }
    let mut file = at_once().write(true).open(Path::new(path)).map_err(unwritable)?;
    let Some(contents) = contents else {
        return file.set_len(0).map(|()| None).map_err(unwritable);
    };
    let mark = Mark::of(contents);
    let head = head(mark).map_err(|_| Kind::OutOfMemory)?;
    let written = file
        .write_all(&head.bytes)
        .and_then(|()| file.write_all(contents))
        .and_then(|()| file.set_len((HEAD + contents.len()) as u64));
    if let Err(error) = written {
        // What is there now is no use, and takes room on a disk that is perhaps full.
        let _ = file.set_len(0);
        return Err(unwritable(error));
    }
    Ok(Some(mark))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(contents: &[u8]) -> Vec<u8> {
        [&head(Mark::of(contents)).unwrap().bytes, contents].concat()
    }

    #[test]
    fn only_a_whole_file_is_one() {
        for text in [&b""[..], b":20\n", b"a.example:1\n\n\0\xff", &[b'\n'; 3000]] {
            let whole = file(text);
            assert_eq!(whole.len(), HEAD + text.len());
            assert_eq!(contents(&whole).map(|(text, _)| text), Some(text));
            for cut in 0..whole.len() {
                assert_eq!(contents(&whole[..cut]), None, "{cut}");
                let mut other = whole.clone();
                other[cut] ^= 4;
                assert_eq!(contents(&other), None, "{cut}");
            }
            assert_eq!(contents(&[&whole[..], b"\n"].concat()), None);
        }
        // The beginning of one, the end of another that is as long.
        let (one, other) = (file(b"a.example:10\n"), file(b"a.example:99\n"));
        assert_eq!(contents(&[&one[..HEAD], &other[HEAD..]].concat()), None);
        assert_eq!(contents(&[0; 4096]), None);
    }

    #[test]
    fn a_fifo_is_not_waited_for() {
        let path = std::env::temp_dir().join(format!("gate-fifo-{}", std::process::id()));
        let _ = std::fs::remove_file(&path);
        let made = std::process::Command::new("mkfifo").arg(&path).status().unwrap();
        assert!(made.success());
        let (tell, told) = std::sync::mpsc::channel();
        let opened = path.clone();
        std::thread::spawn(move || {
            let read = at_once().read(true).open(&opened).is_ok();
            let _ = tell.send((read, at_once().write(true).open(&opened).is_ok()));
        });
        let told = told.recv_timeout(std::time::Duration::from_secs(60));
        let _ = std::fs::remove_file(&path);
        assert_eq!(told, Ok((true, false)));
    }

    #[test]
    fn the_sum_is_fnv_1a() {
        // From the authors' own test vectors (draft-eastlake-fnv, C.2).
        assert_eq!(Mark::of(b"").sum, 0xcbf2_9ce4_8422_2325);
        assert_eq!(Mark::of(b"foobar").sum, 0x8594_4171_f739_67e8);
    }
}
