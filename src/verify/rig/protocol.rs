//! The protocol of the pipes between qmail-send and a spawner: bytes in, values out, no I/O.
//!
//! A spawner first sends its conf-spawn. A command is: delivery number, message, NUL, sender, NUL, recipient, NUL. A
//! report is: delivery number, one letter, text, NUL. Numbers take one byte in stock qmail, and two bytes with the
//! big-concurrency patch, the low byte first.
#![forbid(unsafe_code)]

/// How many bytes a delivery number takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Width {
    /// Stock qmail: 0..255.
    One,
    /// With the big-concurrency patch: 0..65535.
    Two,
}

impl Width {
    /// Returns the number of bytes.
    pub fn bytes(self) -> usize {
        match self {
            Width::One => 1,
            Width::Two => 2,
        }
    }

    /// Appends a number. A high byte that does not fit is cut off, as qmail-send does.
    pub fn push(self, number: u32, to: &mut Vec<u8>) {
        let [low, high, ..] = number.to_le_bytes();
        to.push(low);
        if self == Width::Two {
            to.push(high);
        }
    }

    fn read(self, bytes: &[u8]) -> Option<(u32, &[u8])> {
        match (self, bytes) {
            (Width::One, [low, rest @ ..]) => Some((u32::from(*low), rest)),
            (Width::Two, [low, high, rest @ ..]) => {
                Some((u32::from(u16::from_le_bytes([*low, *high])), rest))
            }
            _ => None,
        }
    }
}

/// A command of qmail-send to a spawner.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Command {
    /// The delivery number.
    pub number: u32,
    /// The message, relative to queue/mess.
    pub message: String,
    /// The envelope sender.
    pub sender: String,
    /// The recipient.
    pub recipient: String,
}

impl Command {
    /// Returns the command's bytes.
    pub fn encode(&self, width: Width) -> Vec<u8> {
        let mut bytes = Vec::new();
        width.push(self.number, &mut bytes);
        for field in [&self.message, &self.sender, &self.recipient] {
            bytes.extend_from_slice(field.as_bytes());
            bytes.push(0);
        }
        bytes
    }

    /// Reads the command at the start of `bytes`, and returns it with its length; `None` if it is not complete.
    pub fn decode(bytes: &[u8], width: Width) -> Option<(Command, usize)> {
        let (number, mut rest) = width.read(bytes)?;
        let mut fields = [const { String::new() }; 3];
        for field in &mut fields {
            let end = rest.iter().position(|byte| *byte == 0)?;
            *field = String::from_utf8_lossy(&rest[..end]).into_owned();
            rest = &rest[end + 1..];
        }
        let [message, sender, recipient] = fields;
        Some((Command { number, message, sender, recipient }, bytes.len() - rest.len()))
    }
}

/// A report of a spawner to qmail-send.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// The delivery number.
    pub number: u32,
    /// `K` (delivered), `Z` (deferred), `D` (refused), or another letter that a fork sends.
    pub letter: u8,
    /// The text.
    pub text: String,
}

impl Report {
    /// Reads the report at the start of `bytes`, and returns it with its length; `None` if it is not complete.
    pub fn decode(bytes: &[u8], width: Width) -> Option<(Report, usize)> {
        let (number, rest) = width.read(bytes)?;
        let end = rest.iter().position(|byte| *byte == 0)?;
        let (letter, text) =
            rest[..end].split_first().map_or((0, &[][..]), |(letter, text)| (*letter, text));
        let text = String::from_utf8_lossy(text).into_owned();
        Some((Report { number, letter, text }, bytes.len() - rest.len() + end + 1))
    }

    /// Returns whether this is not a report but a call of the gate, or its line for the log (gate.h). No delivery has
    /// the number 65535.
    pub fn is_from_gate(&self) -> bool {
        matches!(self.letter, b'R' | b'N') && self.number == 65535
    }

    /// Returns the report's bytes.
    pub fn encode(&self, width: Width) -> Vec<u8> {
        let mut bytes = Vec::new();
        width.push(self.number, &mut bytes);
        bytes.push(self.letter);
        bytes.extend_from_slice(self.text.as_bytes());
        bytes.push(0);
        bytes
    }

    /// Returns the letter and the text on one line, for a message.
    pub fn shown(&self) -> String {
        format!("{} {:?}", char::from(self.letter), self.text.trim_end())
    }
}

/// A command that both protocols refuse, each in its own way: see [`read_greeting`].
///
/// With two bytes it is: delivery 0, message "x", sender and recipient empty. It is refused because a message is a
/// number. With one byte it is: delivery 0, message empty, sender "x", recipient empty. It is refused because the
/// message has no name; the last byte is left over and starts the next command.
pub(crate) const PROBE: &[u8] = b"\0\0x\0\0\0";

/// Completes the command that the last byte of [`PROBE`] starts in the one-byte protocol. It gets one more report.
pub(crate) const PROBE_REST_ONE: &[u8] = b"x\0\0\0";

/// What a spawner sent at its start and in answer to [`PROBE`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Greeting {
    /// The protocol that it speaks.
    pub(crate) width: Width,
    /// The conf-spawn that it announced. In the one-byte protocol it has only the lowest eight bits.
    pub(crate) announced: u32,
    /// The number of bytes, with the answer to the probe.
    pub(crate) len: usize,
}

/// Reads what a spawner sends first. `None`: it is not complete.
pub(crate) fn read_greeting(bytes: &[u8]) -> Option<Greeting> {
    // One byte: N, 0, letter, text, NUL. Two bytes: N, N, 0, 0, letter, text, NUL. The third byte is a letter or the
    // low byte of delivery number 0, which shows the width for any N. A gate (two bytes) may first send lines for the
    // log, under number 65535.
    let width = if matches!(*bytes.get(2)?, 0 | 0xff) { Width::Two } else { Width::One };
    let (announced, mut rest) = width.read(bytes)?;
    loop {
        let (report, len) = Report::decode(rest, width)?;
        rest = &rest[len..];
        if !report.is_from_gate() {
            return Some(Greeting { width, announced, len: bytes.len() - rest.len() });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_keep_their_high_byte_in_two_bytes_and_lose_it_in_one() {
        for (width, sent, got) in
            [(Width::Two, 32768, 32768), (Width::Two, 65535, 65535), (Width::One, 256, 0)]
        {
            let report = Report { number: sent, letter: b'K', text: "ok\n".to_owned() };
            let bytes = report.encode(width);
            let (read, len) = Report::decode(&bytes, width).expect("complete");
            assert_eq!((read.number, len), (got, bytes.len()));
        }
    }

    #[test]
    fn commands_survive_the_pipe_and_wait_until_complete() {
        let command = Command {
            number: 509,
            message: "3/77".to_owned(),
            sender: "s@x".to_owned(),
            recipient: "r@y".to_owned(),
        };
        let bytes = command.encode(Width::Two);
        assert_eq!(Command::decode(&bytes, Width::Two), Some((command, bytes.len())));
        assert_eq!(Command::decode(&bytes[..bytes.len() - 1], Width::Two), None);
        assert_eq!(Command::decode(&[], Width::Two), None);
    }

    #[test]
    fn greetings_tell_the_protocols_apart_for_any_size() {
        for spawn in [1_u32, 120, 255, 256, 509, 1000, 0x4400, 0x5a44, 65000] {
            let low = spawn.to_le_bytes()[0];
            let high = spawn.to_le_bytes()[1];
            let mut two = vec![low, high, 0, 0];
            two.extend_from_slice(b"DInternal error\n\0");
            let greeting = read_greeting(&two).expect("complete");
            assert_eq!(
                (greeting.width, greeting.announced, greeting.len),
                (Width::Two, spawn, two.len())
            );
            let mut one = vec![low, 0];
            one.extend_from_slice(b"DInternal error\n\0");
            let greeting = read_greeting(&one).expect("complete");
            assert_eq!((greeting.width, greeting.announced), (Width::One, u32::from(low)));
            assert_eq!(read_greeting(&two[..8]), None);
        }
        assert_eq!(read_greeting(b""), None);
        // The gate has something for the log before anything else.
        let noticed = b"\xe8\x03\xff\xffNwarning: x\n\0\xff\xffR7\0\0\0Dno\n\0";
        let greeting = read_greeting(noticed).expect("complete");
        assert_eq!(greeting, Greeting { width: Width::Two, announced: 1000, len: noticed.len() });
        assert_eq!(read_greeting(&noticed[..24]), None);
    }
}
