//! How results and errors reach the operator: standard output, formats, tables, and the result of a command.

#![forbid(unsafe_code)]

use std::io::{self, BufWriter, ErrorKind, Write};

use anstream::{AutoStream, ColorChoice};
use anstyle::Style;
use clap::ValueEnum;

use crate::error::Error;

/// Why a command failed. It has no error if the failure has been printed already.
#[derive(Debug, Default)]
pub struct Failures(Vec<Error>);

/// The result of a command.
pub type CommandResult = Result<(), Failures>;

impl Failures {
    /// Returns a failure that has been printed already, as a part of the result.
    #[must_use]
    pub fn printed() -> Failures {
        Failures::default()
    }

    /// Writes the errors to standard error.
    pub fn print(&self) {
        for error in &self.0 {
            eprintln!("qpatch: {error}");
        }
    }
}

impl From<Error> for Failures {
    fn from(error: Error) -> Failures {
        Failures(vec![error])
    }
}

impl From<Vec<Error>> for Failures {
    fn from(errors: Vec<Error>) -> Failures {
        Failures(errors)
    }
}

/// Writes a warning to standard error.
pub(crate) fn warn(warning: &str) {
    eprintln!("qpatch: warning: {warning}");
}

/// How a result is printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people
    #[default]
    Table,
    /// For programs
    Json,
}

/// Whether something still reads standard output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum StdoutReader {
    There,
    Gone,
}

/// Writes to standard output. It is no error if the reader has gone (`| head`).
pub(crate) fn print(write: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> CommandResult {
    match printed(write) {
        Ok(StdoutReader::There | StdoutReader::Gone) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Writes to standard output, and returns whether something still reads it.
pub(crate) fn printed(
    write: impl FnOnce(&mut dyn Write) -> io::Result<()>,
) -> Result<StdoutReader, Error> {
    let mut out = BufWriter::new(io::stdout().lock());
    match write(&mut out).and_then(|()| out.flush()) {
        Ok(()) => Ok(StdoutReader::There),
        Err(error) if error.kind() == ErrorKind::BrokenPipe => {
            // The rest of the buffer has no reader.
            let _ = out.into_parts();
            Ok(StdoutReader::Gone)
        }
        Err(error) => Err(Error::new("standard output", error.to_string(), "")),
    }
}

/// Returns what `write` writes.
pub(crate) fn written(write: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> Vec<u8> {
    let mut text = Vec::new();
    write(&mut text).expect("memory can be written");
    text
}

/// Returns the style of emphasised text: bold on a terminal that shows it, plain elsewhere and with NO_COLOR.
pub(crate) fn bold() -> Style {
    match AutoStream::choice(&io::stdout()) {
        ColorChoice::Never => Style::new(),
        _ => Style::new().bold(),
    }
}

/// The side of its column on which a cell stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    Left,
    Right,
}

/// Writes rows under their titles, two spaces between the columns, none at the ends of lines.
pub(crate) fn table<const N: usize>(
    out: &mut dyn Write,
    columns: [(&str, Side); N],
    rows: &[[String; N]],
) -> io::Result<()> {
    let titles = columns.map(|(title, _)| title.to_string());
    let mut widths = [0; N];
    for row in std::iter::once(&titles).chain(rows) {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.len());
        }
    }
    for row in std::iter::once(&titles).chain(rows) {
        let mut line = String::new();
        for (((cell, width), (_, side)), at) in row.iter().zip(widths).zip(columns).zip(0..) {
            if at > 0 {
                line.push_str("  ");
            }
            match side {
                Side::Left => line.push_str(&format!("{cell:<width$}")),
                Side::Right => line.push_str(&format!("{cell:>width$}")),
            }
        }
        writeln!(out, "{}", line.trim_end())?;
    }
    Ok(())
}

/// Returns `1 line`, `2 lines`.
pub(crate) fn count(number: u64, one: &str) -> String {
    if number == 1 { format!("1 {one}") } else { format!("{number} {one}s") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned() {
        let mut out = Vec::new();
        let columns = [("KEY", Side::Left), ("LIMIT", Side::Right), ("ERROR", Side::Left)];
        let row = |cells: [&str; 3]| cells.map(str::to_string);
        let rows = [row(["a.example", "1", ""]), row(["b", "1000000", "no"])];
        table(&mut out, columns, &rows).unwrap();
        let text = String::from_utf8(out).unwrap();
        assert_eq!(text, "KEY          LIMIT  ERROR\na.example        1\nb          1000000  no\n");
    }
}
