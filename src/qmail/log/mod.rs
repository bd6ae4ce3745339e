//! Reads qmail-send's log, in the forms that loggers, containers and rotation give it. The whole project uses this
//! reader: the simulation and the search for sites read files ([`Log`]), the proof reads qmail-send's own output
//! ([`event`]).
//!
//! `input` reads the files, `copies` finds those that are named twice, `records` reads those that do not have one line
//! for each record, [`stamp`] the times, [`line`] the words before qmail-send's, and [`event`] qmail-send's words.

mod copies;
pub mod event;
mod input;
pub mod line;
mod records;
pub mod stamp;

use std::path::{Path, PathBuf};

use crate::error::Error;
use input::{Ending, Source};
use line::{Foreign, Line};
use records::{Record, Records, Unit};
use stamp::{Basis, Stamp};

/// The lines of some files, one after the other.
#[derive(Debug)]
pub struct Log {
    /// The files that are still to be read; the last one is next.
    paths: Vec<PathBuf>,
    source: Option<Source>,
    records: Records,
    line: Vec<u8>,
    record: Record,
    /// The files that end too early, each with the reason.
    cut: Vec<String>,
    reordered: bool,
    /// Names of files that were named before, each with that name.
    repeated: Vec<String>,
    /// Files that are copies of others, or of the beginnings of others, each with the other one.
    copies: Vec<String>,
}

/// A line of a log.
#[derive(Debug)]
pub struct Entry<'a> {
    /// The file's name.
    pub file: &'a str,
    /// The line's number, from 1. For a record of several lines, the number of the last.
    pub number: u64,
    /// The line, or the text of a record.
    pub text: &'a [u8],
    /// What it says.
    pub line: Result<Line<'a>, Foreign<'a>>,
}

/// The first time of a file is searched in this number of lines.
const AHEAD_LINES: u64 = 1000;

impl Log {
    /// Opens the files; `-` is standard input. If all files have times, they are read in the order of their times,
    /// whatever order they are named in. A file that is named twice is read once.
    ///
    /// # Errors
    /// One cannot be opened.
    pub fn open(paths: &[PathBuf]) -> Result<Self, Error> {
        for path in paths {
            // Check all files now, before hours of logs are read.
            input::check(path)?;
        }
        let mut paths = paths.to_vec();
        let repeated = copies::remove_repeated(&mut paths);
        let mut ordered = paths.clone();
        let plain: Vec<_> = paths.iter().filter(|path| input::is_plain_file(path)).collect();
        let copies = if plain.len() > 1 { copies::copies(&plain)? } else { Vec::new() };
        if paths.len() > 1 && plain.len() == paths.len() {
            let mut begun = Vec::new();
            for path in &paths {
                begun.push((first_time(path)?, path.clone()));
            }
            // If a file has no time, or the times cannot be compared, the order stays.
            if begun.iter().all(|(time, _)| time.is_some()) && have_one_basis(&begun) {
                begun.sort_by_key(|(time, _)| time.map(|time| time.us));
                ordered = begun.into_iter().map(|(_, path)| path).collect();
            }
        }
        let reordered = ordered != paths;
        ordered.reverse();
        Ok(Self { reordered, repeated, copies, ..Self::of(ordered) })
    }

    /// Of these files, the last one first.
    fn of(paths: Vec<PathBuf>) -> Self {
        Self {
            paths,
            source: None,
            records: Records::default(),
            line: Vec::new(),
            record: Record::default(),
            cut: Vec::new(),
            reordered: false,
            repeated: Vec::new(),
            copies: Vec::new(),
        }
    }

    /// Returns the next line that is not empty; `None` at the end.
    ///
    /// # Errors
    /// The input cannot be read.
    pub fn next_entry(&mut self) -> Result<Option<Entry<'_>>, Error> {
        let is_record = loop {
            let source = match &mut self.source {
                Some(source) => source,
                none => {
                    let Some(path) = self.paths.pop() else { return Ok(None) };
                    none.insert(Source::open(&path)?)
                }
            };
            let unit = if source.next_line(&mut self.line)? {
                if self.line.contains(&0x1b) {
                    without_colours(&mut self.line);
                }
                self.records.line(&self.line)
            } else {
                let unit = self.records.end();
                if unit == Unit::Part {
                    self.close();
                    continue;
                }
                unit
            };
            match unit {
                Unit::Part => {}
                Unit::Line if self.line.trim_ascii().is_empty() => {}
                Unit::Line => break false,
                Unit::Record(record) => {
                    self.record = record;
                    break true;
                }
            }
        };
        let (file, number) =
            self.source.as_ref().map_or(("", 0), |source| (source.name.as_str(), source.lines));
        let (text, line) = if is_record {
            let Record { stamp, source, tag, text } = &self.record;
            let mut line = line::read(text, *stamp, *source);
            match &mut line {
                Ok(Line { tag: inner, .. }) | Err(Foreign { tag: inner, .. }) => {
                    if inner.is_empty() {
                        *inner = tag;
                    }
                }
            }
            (&text[..], line)
        } else {
            (&self.line[..], line::read(&self.line, None, 0))
        };
        Ok(Some(Entry { file, number, text, line }))
    }

    fn close(&mut self) {
        let Some(source) = self.source.take() else { return };
        let name = source.name.clone();
        if let Ending::Cut(why) = source.close() {
            self.cut.push(format!("{name} ({why})"));
        }
    }

    /// Files that end too early, each with the reason.
    ///
    #[must_use]
    pub fn cut(&self) -> &[String] {
        &self.cut
    }

    /// Names of files that were named before, and are not read again, each with that name.
    #[must_use]
    pub fn repeated(&self) -> &[String] {
        &self.repeated
    }

    /// Files whose lines another one has, too, each with that one. All are read.
    #[must_use]
    pub fn copies(&self) -> &[String] {
        &self.copies
    }

    /// Returns whether the files are read in another order than they were named in.
    #[must_use]
    pub fn is_reordered(&self) -> bool {
        self.reordered
    }
}

/// Returns the first time in a file. A time without a year gets the last year in which it is before the file was
/// written, so that December comes before January.
fn first_time(path: &Path) -> Result<Option<Stamp>, Error> {
    let mut log = Log::of(vec![path.to_path_buf()]);
    while let Some(entry) = log.next_entry()? {
        let stamp = match entry.line {
            Ok(line) => line.stamp,
            Err(foreign) => foreign.stamp,
        };
        if let Some(stamp @ Stamp { us, basis, .. }) = stamp {
            const YEAR_US: i64 = 366 * 86_400_000_000;
            let written_us = path.metadata().and_then(|metadata| metadata.modified()).ok();
            let written_us = written_us
                .and_then(|time| time.duration_since(std::time::UNIX_EPOCH).ok())
                .map_or(0, |since| since.as_micros() as i64);
            return Ok(Some(match basis {
                // It is later in the year than the file was written, so it is of the year before.
                Basis::NewYear if us > written_of_year(written_us) => {
                    Stamp { us: us - YEAR_US, ..stamp }
                }
                _ => stamp,
            }));
        }
        if entry.number >= AHEAD_LINES {
            break;
        }
    }
    Ok(None)
}

/// Returns the end of the day of a time, within its year as in [`Basis::NewYear`], and a day more, because its zone
/// is not known.
fn written_of_year(us: i64) -> i64 {
    const DAY_US: i64 = 86_400_000_000;
    let days = us.div_euclid(DAY_US);
    let date = crate::date::iso(days);
    let of_year = date
        .get(..4)
        .and_then(|year| year.parse::<u64>().ok())
        .and_then(|year| crate::date::days_since_1970(year, 1, 1))
        .map_or(0, |new_year| days - new_year);
    (of_year + 2) * DAY_US
}

/// Returns whether the times can be compared.
fn have_one_basis(begun: &[(Option<Stamp>, PathBuf)]) -> bool {
    // A local time differs from a universal one by less than a day, which is good enough for an order.
    let kind = |basis| match basis {
        Basis::Universal | Basis::Local => 0,
        Basis::NewYear => 1,
        Basis::Start => 2,
    };
    let mut kinds = begun.iter().filter_map(|(time, _)| time.map(|time| kind(time.basis)));
    let first = kinds.next();
    kinds.all(|kind| Some(kind) == first)
}

/// Removes the colours that docker compose and terminals put in.
fn without_colours(line: &mut Vec<u8>) {
    let mut to = 0;
    let mut at = 0;
    while at < line.len() {
        if line[at..].starts_with(b"\x1b[") {
            at += 2;
            while at < line.len() && !(0x40..=0x7e).contains(&line[at]) {
                at += 1;
            }
            at += 1;
            continue;
        }
        line[to] = line[at];
        (to, at) = (to + 1, at + 1);
    }
    line.truncate(to);
}
