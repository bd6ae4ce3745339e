//! What `gate show --watch` draws on a terminal: as much as fits, with colours if the terminal shows them.

use std::io;

use anstyle::Style;
use terminal_size::{Height, Width, terminal_size_of};

/// The rows and columns of the terminal at standard output; None if it does not say.
pub(super) fn size_of_screen() -> Option<(usize, usize)> {
    let (Width(columns), Height(rows)) = terminal_size_of(io::stdout())?;
    (rows > 1 && columns > 1).then_some((rows.into(), columns.into()))
}

/// A line of the screen: texts without control characters, each with its style.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct ScreenLine(pub(super) Vec<(Style, String)>);

impl From<String> for ScreenLine {
    fn from(text: String) -> Self {
        Self(vec![(Style::new(), text)])
    }
}

impl ScreenLine {
    pub(super) fn push(&mut self, style: Style, text: String) {
        self.0.push((style, text));
    }

    /// Adds its bytes, at most so many columns. Every character is one column wide: names and words are ASCII.
    fn draw(&self, columns: usize, frame: &mut Vec<u8>) {
        let mut left = columns;
        for (style, text) in &self.0 {
            let shown: String = text.chars().take(left).collect();
            left -= shown.chars().count();
            match *style == Style::new() {
                true => frame.extend_from_slice(shown.as_bytes()),
                false => frame.extend_from_slice(format!("{style}{shown}{style:#}").as_bytes()),
            }
            if left == 0 {
                return;
            }
        }
    }

    #[cfg(test)]
    pub(super) fn text(&self) -> String {
        self.0.iter().map(|(_, text)| &text[..]).collect()
    }
}

/// The bytes that draw lines over what is on the screen, without what does not fit. The last row is for `foot`.
pub(super) fn on_screen(
    lines: &[ScreenLine],
    foot: &ScreenLine,
    (rows, columns): (usize, usize),
) -> Vec<u8> {
    let mut frame = b"\x1b[H".to_vec();
    for line in lines.iter().take(rows - 1) {
        line.draw(columns, &mut frame);
        frame.extend_from_slice(b"\x1b[K\r\n");
    }
    frame.extend_from_slice(b"\x1b[J");
    frame.extend_from_slice(format!("\x1b[{rows};1H").as_bytes());
    foot.draw(columns - 1, &mut frame);
    frame
}

/// At most `room` lines. If that leaves some out, the last line says how many: `hidden` of those that are shown.
pub(super) fn shortened<L: From<String>>(
    mut lines: Vec<L>,
    room: usize,
    hidden: impl Fn(usize) -> u64,
) -> Vec<L> {
    if lines.len() > room {
        lines.truncate(room.saturating_sub(1));
        if room > 0 {
            lines.push(format!("and {} more", hidden(lines.len())).into());
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_too_much_for_the_screen_is_left_out() {
        let lines = ["abcdef", "b", "c"].map(|text| ScreenLine::from(text.to_string()));
        let frame = on_screen(&lines, &ScreenLine::from("q quits".to_string()), (3, 4));
        assert_eq!(frame, b"\x1b[Habcd\x1b[K\r\nb\x1b[K\r\n\x1b[J\x1b[3;1Hq q");
        let mut line = ScreenLine::default();
        line.push(Style::new().bold(), "a\u{2588}b".to_string());
        line.push(Style::new(), "cd".to_string());
        let mut drawn = Vec::new();
        line.draw(4, &mut drawn);
        assert_eq!(String::from_utf8(drawn).unwrap(), "\x1b[1ma\u{2588}b\x1b[0mc");
    }
}
