//! Tables and texts for people.

use std::io::{self, Write};

use qpatch_gate::rules::KeyKind;
use qpatch_gate::table::Limit;

/// Which side of its column a cell is on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    Left,
    Right,
}

/// Writes rows under their titles, two spaces between the columns, none at the ends of lines.
pub(super) fn table<const N: usize>(
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

/// The text on one line of printable ASCII: what mail brought in must not talk to the terminal.
pub(super) fn plain(text: &str) -> String {
    let line = text.trim_end().chars().map(|char| match char {
        ' '..='~' => char,
        '\n' | '\t' | '\r' => ' ',
        _ => '?',
    });
    line.collect()
}

/// No more than so many bytes of printable ASCII.
pub(super) fn cut(text: &str, most: usize) -> String {
    match text.get(..most.saturating_sub(3)) {
        Some(start) if text.len() > most => format!("{start}..."),
        _ => text.to_string(),
    }
}

/// `gmail.com`, `group yahoo`, `relay mx.example`.
pub(super) fn key_name(kind: KeyKind, name: &str) -> String {
    let name = if name.is_empty() { "(no domain)".to_string() } else { plain(name) };
    match kind {
        KeyKind::Domain => name,
        KeyKind::Relay | KeyKind::Group => format!("{} {name}", kind.name()),
    }
}

/// A limit in a table.
pub(super) fn limit_text(limit: Limit) -> String {
    match limit {
        Limit::AtMost(limit) => limit.to_string(),
        Limit::Unlimited => "none".to_string(),
    }
}

/// A limit in JSON: null is unlimited.
pub(super) fn limit_value(limit: Limit) -> Option<u32> {
    match limit {
        Limit::AtMost(limit) => Some(limit),
        Limit::Unlimited => None,
    }
}

/// `1 line`, `2 lines`.
pub(super) fn count(number: u64, one: &str) -> String {
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

    #[test]
    fn nothing_talks_to_the_terminal() {
        assert_eq!(plain("a\tb\n\x1b[2Jc\u{202e}\r\n"), "a b ?[2Jc?");
        assert_eq!(cut("abcdefgh", 8), "abcdefgh");
        assert_eq!(cut("abcdefghi", 8), "abcde...");
        assert_eq!(key_name(KeyKind::Domain, ""), "(no domain)");
        assert_eq!(key_name(KeyKind::Group, "y"), "group y");
    }
}
