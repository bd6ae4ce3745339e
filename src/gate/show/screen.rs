//! What `gate show --watch` draws on a terminal: as much as fits.

use std::io;

use terminal_size::{Height, Width, terminal_size_of};

/// The rows and columns of the terminal at standard output; None if it does not say.
pub(super) fn size_of_screen() -> Option<(usize, usize)> {
    let (Width(columns), Height(rows)) = terminal_size_of(io::stdout())?;
    (rows > 1 && columns > 1).then_some((rows.into(), columns.into()))
}

/// The bytes that draw `text` over what is on the screen, without what does not fit.
pub(super) fn on_screen(text: &[u8], (rows, columns): (usize, usize)) -> Vec<u8> {
    let mut frame = b"\x1b[H".to_vec();
    for line in text.split(|&byte| byte == b'\n').take(rows - 1) {
        frame.extend_from_slice(&line[..line.len().min(columns)]);
        frame.extend_from_slice(b"\x1b[K\n");
    }
    frame.extend_from_slice(b"\x1b[J");
    frame
}

/// At most `room` lines. If that leaves some out, the last line says how many: `hidden` of those that are shown.
pub(super) fn shortened(
    mut lines: Vec<String>,
    room: usize,
    hidden: impl Fn(usize) -> u64,
) -> Vec<String> {
    if lines.len() > room {
        lines.truncate(room.saturating_sub(1));
        if room > 0 {
            lines.push(format!("and {} more", hidden(lines.len())));
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_too_much_for_the_screen_is_left_out() {
        let frame = on_screen(b"abcdef\nb\nc\n", (3, 4));
        assert_eq!(frame, b"\x1b[Habcd\x1b[K\nb\x1b[K\n\x1b[J");
    }
}
