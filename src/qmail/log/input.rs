//! Reads the files of a log line by line, compressed or not.
//!
//! The system's own gzip, xz, zstd and bzip2 decompress: a machine with compressed logs has them, they know every
//! variant of their formats, and otherwise qpatch would need four libraries for this alone.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use crate::error::Error;

/// The longest line, in bytes; the rest is cut off. A line about the start of a delivery is never longer, and the
/// start of a line is enough to recognise the end of a delivery.
pub(super) const LINE_MAX: usize = 256 << 10;

/// The first bytes of compressed files, and the programs that decompress them.
const PACKED: [(&[u8], &str); 4] = [
    (b"\x1f\x8b", "gzip"),
    (b"\xfd7zXZ\0", "xz"),
    (b"\x28\xb5\x2f\xfd", "zstd"),
    (b"BZh", "bzip2"),
];
const MAGIC: usize = 6;

/// A file that is being read.
pub(super) struct Source {
    pub(super) name: String,
    input: BufReader<Box<dyn Read>>,
    unpacker: Option<(Child, &'static str)>,
    /// The number of lines read.
    pub(super) lines: u64,
}

impl std::fmt::Debug for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Source").field("name", &self.name).finish_non_exhaustive()
    }
}

/// Whether a file was complete.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Ending {
    Whole,
    /// The program that decompresses it reports an error.
    Cut(String),
}

impl Source {
    /// Opens a file; `-` is standard input.
    pub(super) fn open(path: &Path) -> Result<Self, Error> {
        if path == Path::new("-") {
            return Self::new("standard input".to_string(), Box::new(io::stdin()));
        }
        let name = path.display().to_string();
        let file = File::open(path).map_err(|error| Error::io(path, "open the log", &error))?;
        Self::new(name, Box::new(file))
    }

    fn new(name: String, mut input: Box<dyn Read + Send>) -> Result<Self, Error> {
        let unread = |error: io::Error| Error::new(&name, format!("cannot be read: {error}"), "");
        let mut magic = Vec::new();
        (&mut input).take(MAGIC as u64).read_to_end(&mut magic).map_err(unread)?;
        let packed = PACKED.iter().find(|(begin, _)| magic.starts_with(begin));
        let whole = io::Cursor::new(magic).chain(input);
        let Some(&(_, program)) = packed else {
            let input = BufReader::with_capacity(1 << 16, Box::new(whole) as Box<dyn Read>);
            return Ok(Self { name, input, unpacker: None, lines: 0 });
        };
        let started = Command::new(program)
            .arg("-dc")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn();
        let mut child = started.map_err(|error| {
            let what = format!("is packed by {program}, which cannot be run: {error}");
            Error::new(&name, what, format!("install {program}, or unpack the file elsewhere"))
        })?;
        let (Some(stdin), Some(stdout)) = (child.stdin.take(), child.stdout.take()) else {
            return Err(Error::new(&name, format!("no pipe to {program}"), ""));
        };
        // The thread ends with its input, or when the program ends.
        std::thread::spawn(move || feed(whole, stdin));
        let input = BufReader::with_capacity(1 << 16, Box::new(stdout) as Box<dyn Read>);
        Ok(Self { name, input, unpacker: Some((child, program)), lines: 0 })
    }

    /// Reads the next line, without its end, into `line`. Returns false at the end.
    pub(super) fn next_line(&mut self, line: &mut Vec<u8>) -> Result<bool, Error> {
        let read = next_line(&mut self.input, line);
        let read =
            read.map_err(|error| Error::new(&self.name, format!("cannot be read: {error}"), ""))?;
        self.lines += u64::from(read);
        Ok(read)
    }

    /// Closes the file after the last line, and returns whether it was complete.
    pub(super) fn close(mut self) -> Ending {
        let Some((mut child, program)) = self.unpacker.take() else { return Ending::Whole };
        let mut said = String::new();
        if let Some(stderr) = child.stderr.take() {
            // The first 4096 bytes are enough.
            let _ = stderr.take(4096).read_to_string(&mut said);
        }
        match child.wait() {
            Ok(status) if status.success() => Ending::Whole,
            // gzip's 2 is a warning: bytes behind the end.
            Ok(status) if program == "gzip" && status.code() == Some(2) => Ending::Whole,
            ended => {
                let first = said.lines().map(str::trim).find(|line| !line.is_empty());
                let first = first.map(|line| line.strip_prefix(program).unwrap_or(line));
                let said = first.map(|line| line.trim_start_matches([':', ' ']).to_string());
                let ended =
                    || ended.map_or_else(|error| error.to_string(), |status| status.to_string());
                Ending::Cut(format!("{program}: {}", said.unwrap_or_else(ended)))
            }
        }
    }
}

impl Drop for Source {
    fn drop(&mut self) {
        if let Some((child, _)) = &mut self.unpacker {
            // It was not read to the end.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn feed(mut from: impl Read, mut to: impl Write) {
    // After an error here, the program's input is cut, and the program reports that.
    let _ = io::copy(&mut from, &mut to);
}

fn next_line(input: &mut dyn BufRead, line: &mut Vec<u8>) -> io::Result<bool> {
    line.clear();
    let mut read = false;
    loop {
        let bytes = match input.fill_buf() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            bytes => bytes?,
        };
        if bytes.is_empty() {
            return Ok(read);
        }
        read = true;
        let newline = memchr::memchr(b'\n', bytes);
        let text = &bytes[..newline.unwrap_or(bytes.len())];
        line.extend_from_slice(&text[..text.len().min(LINE_MAX - line.len())]);
        let used = text.len() + usize::from(newline.is_some());
        input.consume(used);
        if newline.is_some() {
            if line.last() == Some(&b'\r') {
                line.pop();
            }
            return Ok(true);
        }
    }
}

/// Checks that a file can be opened. Opens only regular files, because to open a FIFO has an effect on its writer.
pub(super) fn check(path: &Path) -> Result<(), Error> {
    if path.is_dir() {
        let help = "name the files in it: the order does not matter";
        return Err(Error::new(path.display(), "is a folder", help));
    }
    let is_other = path.metadata().is_ok_and(|metadata| !metadata.is_file());
    if path == Path::new("-") || is_other {
        return Ok(());
    }
    File::open(path).map_err(|error| Error::io(path, "open the log", &error)).map(drop)
}

/// Returns whether it is a regular file, which can be read twice.
pub(super) fn is_plain_file(path: &Path) -> bool {
    path.metadata().is_ok_and(|metadata| metadata.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_lines_are_cut() {
        let text = [&b"a\r\n"[..], &b"x".repeat(LINE_MAX + 100), b"\n\nlast"].concat();
        for size in [1, 7, 8192] {
            let mut input = io::BufReader::with_capacity(size, &text[..]);
            let mut line = Vec::new();
            let mut lengths = Vec::new();
            while next_line(&mut input, &mut line).unwrap() {
                lengths.push(line.len());
            }
            assert_eq!(lengths, [1, LINE_MAX, 0, 4]);
        }
    }
}
