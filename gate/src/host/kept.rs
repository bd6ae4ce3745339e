//! queue/lock/gatekept.domains, .routes, .sites, .senders and .replies: copies of the last control files that could be
//! used. They keep the limits in force over a restart if a file itself has a mistake or cannot be read.
//!
//! ```text
//! qpatch-kept  2  GENERATION  AT  LENGTH  SUM
//! qpatch-kept  2  GENERATION  AT  LENGTH  SUM
//! CONTENTS
//! CONTENTS
//! ```
//!
//! Each of the two lines describes contents: LENGTH bytes from byte AT of the file on. SUM is the 64-bit FNV-1a of the
//! contents and then of the line up to SUM, in hexadecimal. The contents with the higher GENERATION count if their sum
//! is right; otherwise the others do.
//!
//! The spawner may not create files in queue/lock, so this one is written in place: first the new contents, beside
//! those that count, then the line that describes them, over the line that does not count. If the spawner is killed
//! half-way, or the disk is full, the old contents still count. The file takes up to three times the space of the
//! largest control file of its kind. It is not synced to the disk, because the spawner must not wait for a disk. A
//! power cut leaves the new contents, the old ones, or (if both were changed within seconds) none.
//!
//! Earlier gates wrote one line, `qpatch-kept 1 LENGTH SUM`, and the contents behind it. Such a file is read. It gets
//! the new form in three steps: the new contents behind the old ones, their line at the end of the file, and the two
//! lines in front. The last line of a file counts if neither of the first two does.
//!
//! Several spawners of one queue write the same contents in the same way. If one writes while another writes different
//! contents, the sum is wrong, and the earlier contents count until both check again.

#![forbid(unsafe_code)]

use std::ffi::OsStr;
use std::fs::{File, Metadata, OpenOptions};
use std::io::{Error, ErrorKind, Write as _};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use crate::control::problem::Kind;
use crate::util::fnv;
use crate::util::memory::filled;

/// The length of a line that describes contents, in bytes.
const LINE: usize = 14 + 3 * 21 + 17;
/// The lowest position of contents, in bytes.
const FRONT: u64 = 2 * LINE as u64;
/// The length of the first line of the earlier form.
const OLD_LINE: usize = 14 + 21 + 17;

/// Length and sum of contents: they identify what a kept file has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ContentsMark {
    length: u64,
    sum: u64,
}

impl ContentsMark {
    const EMPTY: Self = Self { length: 0, sum: fnv::BASIS };

    /// The mark of these contents.
    #[must_use]
    pub fn of(contents: &[u8]) -> Self {
        Self::EMPTY.and(contents)
    }

    /// The mark of these contents with more behind them.
    fn and(self, more: &[u8]) -> Self {
        let sum = fnv::add(self.sum, more.iter().copied());
        Self { length: self.length + more.len() as u64, sum }
    }

    /// How many bytes the contents have.
    #[must_use]
    pub fn length(self) -> u64 {
        self.length
    }
}

/// O_NONBLOCK. Without it, opening a FIFO waits for its other end. A file is checked before it is opened, but may have
/// become a FIFO by then.
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

/// The operations on the file. In tests they fail at any byte.
trait Store {
    fn length(&self) -> Result<u64, Error>;
    /// Fills all of it.
    fn read(&self, bytes: &mut [u8], at: u64) -> Result<(), Error>;
    fn write(&mut self, bytes: &[u8], at: u64) -> Result<(), Error>;
    fn cut(&mut self, length: u64) -> Result<(), Error>;
}

impl Store for &File {
    fn length(&self) -> Result<u64, Error> {
        self.metadata().map(|metadata| metadata.len())
    }

    fn read(&self, bytes: &mut [u8], at: u64) -> Result<(), Error> {
        self.read_exact_at(bytes, at)
    }

    fn write(&mut self, bytes: &[u8], at: u64) -> Result<(), Error> {
        self.write_all_at(bytes, at)
    }

    fn cut(&mut self, length: u64) -> Result<(), Error> {
        self.set_len(length)
    }
}

/// The line that describes contents.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum IndexLine {
    First,
    Second,
    /// That at the end of the file.
    Last,
    /// The first line of the earlier form.
    Old,
}

/// Contents in the file, as a line describes them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Extent {
    index: IndexLine,
    generation: u64,
    at: u64,
    mark: ContentsMark,
}

impl Extent {
    /// The position behind them.
    fn end(&self) -> u64 {
        self.at + self.mark.length
    }

    /// Reads a line. It does not check the sum.
    fn parse(index: IndexLine, line: &[u8]) -> Option<Self> {
        let mut fields = line.split(|&byte| byte == b'\t').skip(2);
        let mut number = || std::str::from_utf8(fields.next()?).ok()?.parse().ok();
        let (generation, at) = match index {
            IndexLine::First | IndexLine::Second | IndexLine::Last => (number()?, number()?),
            IndexLine::Old => (0, OLD_LINE as u64),
        };
        let mark = ContentsMark { length: number()?, sum: 0 };
        at.checked_add(mark.length).map(|_| Self { index, generation, at, mark })
    }

    /// The line that describes them.
    fn line(&self) -> [u8; LINE] {
        let mut line = [b' '; LINE];
        let (ContentsMark { length, .. }, at, generation) = (self.mark, self.at, self.generation);
        let (index, sum) = line.split_at_mut(LINE - 17);
        // The text is as long as its place: the widths are fixed, and no number has more digits.
        let _ = match self.index {
            IndexLine::Old => {
                let sum = self.mark.sum;
                writeln!(&mut line[..], "qpatch-kept\t1\t{length:020}\t{sum:016x}")
            }
            IndexLine::First | IndexLine::Second | IndexLine::Last => {
                write!(&mut *index, "qpatch-kept\t2\t{generation:020}\t{at:020}\t{length:020}\t")
                    .and_then(|()| writeln!(&mut *sum, "{:016x}", self.mark.and(index).sum))
            }
        };
        line
    }

    /// Checks that the file has these contents. None: it does not.
    fn found(mut self, store: &impl Store, line: &[u8]) -> Result<Option<Self>, Error> {
        let mut part = [0; 4096];
        let (mut mark, mut at) = (ContentsMark::EMPTY, self.at);
        while at < self.end() {
            let count = (self.end() - at).min(part.len() as u64);
            let part = &mut part[..count as usize];
            match store.read(part, at) {
                Ok(()) => mark = mark.and(part),
                Err(error) if error.kind() == ErrorKind::UnexpectedEof => return Ok(None),
                Err(error) => return Err(error),
            }
            at += count;
        }
        self.mark = mark;
        Ok(self.line().starts_with(line).then_some(self))
    }
}

/// Finds the contents that count.
fn newest(store: &impl Store) -> Result<Option<Extent>, Error> {
    let length = store.length()?;
    let line_at = |index: IndexLine| {
        let (at, count) = match index {
            IndexLine::First => (Some(0), LINE),
            IndexLine::Second => (Some(LINE as u64), LINE),
            IndexLine::Last => (length.checked_sub(LINE as u64), LINE),
            IndexLine::Old => (Some(0), OLD_LINE),
        };
        let mut line = [0; LINE];
        let read = match at {
            Some(at) if at + count as u64 <= length => store.read(&mut line[..count], at),
            _ => return Ok(None),
        };
        match read {
            Ok(()) => Ok(Extent::parse(index, &line[..count])
                .filter(|place| place.end() <= length)
                .map(|place| (place, line, count))),
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => Ok(None),
            Err(error) => Err(error),
        }
    };
    let mut front = [line_at(IndexLine::First)?, line_at(IndexLine::Second)?];
    if front[1].map(|(place, ..)| place.generation) > front[0].map(|(place, ..)| place.generation) {
        front.swap(0, 1);
    }
    for index in front.into_iter().chain([line_at(IndexLine::Last)?, line_at(IndexLine::Old)?]) {
        if let Some((place, line, count)) = index
            && let Some(place) = place.found(store, &line[..count])?
        {
            return Ok(Some(place));
        }
    }
    Ok(None)
}

/// The two lines at the beginning: that of these contents, and an empty one.
fn front(place: Extent) -> [u8; 2 * LINE] {
    let mut front = [b' '; 2 * LINE];
    front[..LINE].copy_from_slice(&Extent { index: IndexLine::First, ..place }.line());
    front[2 * LINE - 1] = b'\n';
    front
}

/// Writes contents beside those that count, and then the line that makes them count.
fn put(store: &mut impl Store, contents: &[u8]) -> Result<ContentsMark, Error> {
    let mark = ContentsMark::of(contents);
    let old = newest(store)?;
    if let Some(place) = old
        && place.index == IndexLine::Last
    {
        // The next write may end behind that line.
        store.write(&front(place), 0)?;
    }
    let (index, generation, at) = match old {
        None => (IndexLine::First, 1, FRONT),
        Some(old) => {
            let index = match old.index {
                IndexLine::First | IndexLine::Last => IndexLine::Second,
                IndexLine::Second => IndexLine::First,
                IndexLine::Old => IndexLine::Last,
            };
            let fits_before = old.index != IndexLine::Old && mark.length <= old.at - FRONT;
            let at = if fits_before { FRONT } else { old.end().max(FRONT) };
            (index, old.generation.saturating_add(1), at)
        }
    };
    let place = Extent { index, generation, at, mark };
    if index == IndexLine::Last {
        // What follows the old contents is an unfinished write.
        store.cut(old.map_or(0, |old| old.end()))?;
    }
    store.write(contents, at)?;
    match (index, old) {
        (IndexLine::Second, _) => store.write(&place.line(), LINE as u64)?,
        (IndexLine::First, Some(_)) => store.write(&place.line(), 0)?,
        (IndexLine::First | IndexLine::Old, _) => store.write(&front(place), 0)?,
        (IndexLine::Last, _) => {
            store.write(&place.line(), place.end())?;
            store.write(&front(place), 0)?;
        }
    }
    // The old contents stay, too: the new ones may not be on the disk if the power fails.
    let used = place.end().max(old.map_or(0, |old| old.end()));
    if store.length()? > used {
        store.cut(used)?;
    }
    Ok(mark)
}

/// As [`put`], but if it fails, the file does not stay longer than before, unless contents that count need that.
fn put_or_cut(store: &mut impl Store, contents: &[u8]) -> Result<ContentsMark, Error> {
    let before = store.length()?;
    let written = put(store, contents);
    if written.is_err()
        && store.length()? > before
        && newest(store)?
            .is_none_or(|place| place.index != IndexLine::Last && place.end() <= before)
    {
        // Frees the space, because the disk may be full.
        let _ = store.cut(before);
    }
    written
}

fn unwritable(error: Error) -> Kind {
    Kind::Unwritable(error.raw_os_error().unwrap_or(0))
}

/// The contents that count in a file, of at most `max` bytes, and their mark.
///
/// # Errors
/// The file cannot be read, there is no memory for the contents, or no contents in it are whole.
pub fn read(file: &File, max: u64) -> Result<(Vec<u8>, ContentsMark), Kind> {
    let unreadable = |error: Error| Kind::Unreadable(error.raw_os_error().unwrap_or(0));
    let place = newest(&file).map_err(unreadable)?;
    let place = place.filter(|place| place.mark.length <= max).ok_or(Kind::KeptNotWhole)?;
    let mut contents = filled(0u8, place.mark.length as usize).map_err(|_| Kind::OutOfMemory)?;
    match file.read_exact_at(&mut contents, place.at) {
        Err(error) if error.kind() != ErrorKind::UnexpectedEof => Err(unreadable(error)),
        // Another spawner may have written in the meantime.
        read if read.is_err() || ContentsMark::of(&contents) != place.mark => {
            Err(Kind::KeptNotWhole)
        }
        _ => Ok((contents, place.mark)),
    }
}

/// Writes contents into a file that exists, so that they count; without contents it empties the file. Returns the new
/// mark, and the metadata of the file.
///
/// # Errors
/// It could not be written. What was in it still counts.
pub fn write(
    path: &OsStr,
    contents: Option<&[u8]>,
) -> Result<(Option<ContentsMark>, Metadata), Kind> {
    if !std::fs::metadata(Path::new(path)).map_err(unwritable)?.is_file() {
        return Err(Kind::NotRegular);
    }
    let file = at_once().read(true).write(true).open(Path::new(path)).map_err(unwritable)?;
    let mark = match contents {
        Some(contents) => Some(put_or_cut(&mut &file, contents).map_err(unwritable)?),
        None => file.set_len(0).map(|()| None).map_err(unwritable)?,
    };
    Ok((mark, file.metadata().map_err(unwritable)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file to which `left` more bytes can be written.
    #[derive(Clone, Debug, Default)]
    struct Torn {
        bytes: Vec<u8>,
        left: usize,
    }

    impl Store for Torn {
        fn length(&self) -> Result<u64, Error> {
            Ok(self.bytes.len() as u64)
        }

        fn read(&self, bytes: &mut [u8], at: u64) -> Result<(), Error> {
            let from = self.bytes.get(at as usize..at as usize + bytes.len());
            bytes.copy_from_slice(from.ok_or(ErrorKind::UnexpectedEof)?);
            Ok(())
        }

        fn write(&mut self, bytes: &[u8], at: u64) -> Result<(), Error> {
            for (byte, at) in bytes.iter().zip(at as usize..) {
                if self.left == 0 {
                    return Err(ErrorKind::StorageFull.into());
                }
                self.left -= 1;
                if self.bytes.len() <= at {
                    self.bytes.resize(at + 1, 0);
                }
                self.bytes[at] = *byte;
            }
            Ok(())
        }

        fn cut(&mut self, length: u64) -> Result<(), Error> {
            self.bytes.resize(length as usize, 0);
            Ok(())
        }
    }

    impl Torn {
        fn contents(&self) -> Option<Vec<u8>> {
            let place = newest(self).unwrap()?;
            let contents = self.bytes[place.at as usize..place.end() as usize].to_vec();
            assert_eq!(ContentsMark::of(&contents), place.mark);
            Some(contents)
        }

        fn put(&mut self, contents: &[u8]) {
            self.left = usize::MAX;
            put(self, contents).unwrap();
            assert_eq!(self.contents().as_deref(), Some(contents));
        }
    }

    /// As an earlier gate wrote it.
    fn old_form(contents: &[u8]) -> Torn {
        let ContentsMark { length, sum } = ContentsMark::of(contents);
        let line = format!("qpatch-kept\t1\t{length:020}\t{sum:016x}\n");
        Torn { bytes: [line.as_bytes(), contents].concat(), left: 0 }
    }

    /// Contents of very different lengths, one after the other.
    const LENGTHS: [usize; 14] = [30, 31, 29, 200, 0, 5, 150, 99, 99, 40, 350, 1, 340, 0];

    fn lines(length: usize, which: usize) -> Vec<u8> {
        (0..length)
            .map(|at| if at % 16 == 15 { b'\n' } else { b'a' + (which % 26) as u8 })
            .collect()
    }

    /// The write that is cut, or finds no room, at any byte leaves the old contents or the new ones, and can be done
    /// again.
    #[test]
    fn a_write_that_ends_anywhere_leaves_the_old_contents_or_the_new_ones() {
        let first = lines(50, 25);
        let mut new_form = Torn::default();
        new_form.put(&first);
        for mut file in [old_form(&first), new_form, old_form(b"")] {
            let mut old = file.contents().expect("whole");
            for (which, length) in LENGTHS.into_iter().enumerate() {
                let new = lines(length, which);
                for left in 0.. {
                    // Killed: what is written is written.
                    let mut killed = Torn { left, ..file.clone() };
                    let done = put(&mut killed, &new).is_ok();
                    let found = killed.contents();
                    let found = found.unwrap_or_else(|| panic!("{which}: nothing after {left}"));
                    assert!(found == new || !done && found == old, "{which}: {left}: {found:?}");
                    // At the next start, killed again at any byte of another, with what the first attempt left.
                    for again in (left % 3..).step_by(17) {
                        let mut twice = Torn { left: again, ..killed.clone() };
                        let done = put(&mut twice, &first).is_ok();
                        let now = twice.contents();
                        let now =
                            now.unwrap_or_else(|| panic!("{which}: nothing after {left}, {again}"));
                        assert!(now == first || !done && now == found, "{which}: {left}, {again}");
                        if done {
                            break;
                        }
                    }
                    // No room: the file is no longer than before.
                    let mut full = Torn { left, ..file.clone() };
                    let done = put_or_cut(&mut full, &new).is_ok();
                    let found = full.contents().expect("the old contents or the new ones");
                    assert!(found == new || !done && found == old, "{which}: {left}: {found:?}");
                    let is_new = found == new;
                    assert!(
                        done || is_new || full.bytes.len() <= file.bytes.len(),
                        "{which}: {left}"
                    );
                    full.put(&new);
                    if done {
                        break;
                    }
                }
                file.put(&new);
                old = new;
            }
        }
    }

    /// After a power cut, the line may be there and its contents not yet.
    #[test]
    fn a_line_whose_contents_are_not_there_yet_counts_for_nothing() {
        let mut file = Torn::default();
        file.put(&lines(50, 1));
        for (which, length) in LENGTHS.into_iter().enumerate().filter(|(_, length)| *length > 0) {
            let (old, mut new) = (file.contents().unwrap(), file.clone());
            new.put(&lines(length, which));
            let place = newest(&new).unwrap().unwrap();
            new.bytes[place.end() as usize - 1] ^= 1;
            assert_eq!(new.contents(), Some(old));
            file.put(&lines(length, which));
        }
    }

    #[test]
    fn a_file_is_bounded_by_three_times_its_longest_contents() {
        let mut file = old_form(&lines(1000, 1));
        let mut random = crate::util::random::Random::new(7);
        for which in 0..5000 {
            let length = (random.next() % 1001) as usize;
            file.put(&lines(length, which));
            assert!(file.bytes.len() <= 2 * LINE + 3000, "{which}: {}", file.bytes.len());
        }
        for which in 0..4 {
            file.put(&lines(10, which));
        }
        assert!(file.bytes.len() <= 2 * LINE + 20, "{}", file.bytes.len());
    }

    #[test]
    fn only_whole_contents_count() {
        for text in [&b""[..], b":20\n", b"a.example:1\n\n\0\xff", &[b'\n'; 300]] {
            let mut first = Torn::default();
            first.put(text);
            assert_eq!(first.bytes.len(), 2 * LINE + text.len());
            for (file, used) in [(&first, LINE), (&old_form(text), OLD_LINE)] {
                let front = file.bytes.len() - text.len();
                for cut in 0..file.bytes.len() {
                    let is_used = cut < used || cut >= front;
                    let mut other = file.clone();
                    other.bytes[cut] ^= 4;
                    assert_eq!(other.contents().as_deref(), (!is_used).then_some(text), "{cut}");
                    other.bytes.clone_from(&file.bytes);
                    other.bytes.truncate(cut);
                    let is_whole = text.is_empty() && cut >= front;
                    assert_eq!(other.contents().is_some(), is_whole, "{cut}");
                }
                let more = Torn { bytes: [&file.bytes[..], b"\n"].concat(), left: 0 };
                assert_eq!(more.contents().as_deref(), Some(text));
            }
        }
        // The beginning of one, the end of another that is as long.
        let (mut one, mut other) = (Torn::default(), Torn::default());
        one.put(b"a.example:10\n");
        other.put(b"a.example:99\n");
        one.bytes.truncate(2 * LINE);
        one.bytes.extend_from_slice(&other.bytes[2 * LINE..]);
        assert_eq!(one.contents(), None);
        for bytes in [vec![0; 4096], vec![b'\t'; 4096], b"9\t".repeat(300), vec![b'\n'; LINE]] {
            assert_eq!(Torn { bytes, left: 0 }.contents(), None);
        }
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
        assert_eq!(ContentsMark::of(b"").sum, 0xcbf2_9ce4_8422_2325);
        assert_eq!(ContentsMark::of(b"foobar").sum, 0x8594_4171_f739_67e8);
    }
}
