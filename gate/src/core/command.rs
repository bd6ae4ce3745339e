//! Copies of the commands that are held. The parts of a command have a meaning for spawn.c; the gate reads only the
//! message's number, the sender and the recipient.

#![forbid(unsafe_code)]

use crate::util::memory::{self, OutOfMemory};

/// The most parts of a command.
pub const PARTS: usize = 8;
/// The most bytes of a part.
pub const PART_MAX: usize = 65536;

#[derive(Debug, Default)]
struct Command {
    bytes: Vec<u8>,
    ends: [u32; PARTS],
    parts: usize,
}

/// The parts of a command, in the order in which they were read.
#[derive(Clone, Copy, Debug)]
pub struct Parts<'a> {
    parts: [&'a [u8]; PARTS],
    len: usize,
}

impl<'a> Parts<'a> {
    /// None if there is no part, if there are more than [`PARTS`], or if one is longer than [`PART_MAX`].
    #[must_use]
    pub fn new(from: &[&'a [u8]]) -> Option<Self> {
        if from.is_empty() || from.len() > PARTS || from.iter().any(|part| part.len() > PART_MAX) {
            return None;
        }
        let mut parts: [&[u8]; PARTS] = [&[]; PARTS];
        parts[..from.len()].copy_from_slice(from);
        Some(Self { parts, len: from.len() })
    }

    /// All parts.
    #[must_use]
    pub fn as_slice(&self) -> &[&'a [u8]] {
        &self.parts[..self.len]
    }

    /// The sender: the second part of at least three, in all trees; else empty. Other parts stand between sender and
    /// recipient.
    #[must_use]
    pub fn sender(&self) -> &'a [u8] {
        if self.len < 3 { &[] } else { self.parts[1] }
    }

    /// The recipient: the last part.
    #[must_use]
    pub fn recipient(&self) -> &'a [u8] {
        self.parts[self.len - 1]
    }
}

/// The copies. Their buffers are reused, so a hold allocates only if more are held than before.
#[derive(Debug, Default)]
pub struct Commands {
    all: Vec<Command>,
    free: Vec<u32>,
    used: usize,
    /// The most that were used since the last [`Commands::trim`].
    peak: usize,
}

/// A larger buffer than this, in bytes, is not kept for the next command.
const KEPT_BYTES: usize = 1024;

impl Commands {
    /// Copies a command and returns its handle.
    ///
    /// # Errors
    /// No memory: nothing was stored.
    pub fn store(&mut self, parts: &Parts<'_>) -> Result<u32, OutOfMemory> {
        if self.free.is_empty() {
            let at = self.all.len() as u32;
            self.free.try_reserve(1 + self.all.len())?;
            memory::push(&mut self.all, Command::default())?;
            self.free.push(at);
        }
        let at = self.free[self.free.len() - 1];
        let command = &mut self.all[at as usize];
        command.bytes.clear();
        let bytes: usize = parts.as_slice().iter().map(|part| part.len()).sum();
        command.bytes.try_reserve_exact(bytes)?;
        for (end, part) in command.ends.iter_mut().zip(parts.as_slice()) {
            command.bytes.extend_from_slice(part);
            *end = command.bytes.len() as u32;
        }
        command.parts = parts.as_slice().len();
        self.free.pop();
        self.used += 1;
        self.peak = self.peak.max(self.used);
        Ok(at)
    }

    /// The parts of a stored command. It stays readable after [`Commands::release`] until the next `store` or `trim`.
    #[must_use]
    pub fn parts(&self, at: u32) -> Parts<'_> {
        let command = &self.all[at as usize];
        let mut parts: [&[u8]; PARTS] = [&[]; PARTS];
        let mut start = 0;
        for (part, &end) in parts.iter_mut().zip(&command.ends[..command.parts]) {
            *part = &command.bytes[start..end as usize];
            start = end as usize;
        }
        Parts { parts, len: command.parts }
    }

    /// Frees a command.
    pub fn release(&mut self, at: u32) {
        self.free.push(at);
        self.used -= 1;
    }

    /// How many commands are stored.
    #[must_use]
    pub fn used(&self) -> usize {
        self.used
    }

    /// The bytes that all copies occupy.
    #[must_use]
    pub fn bytes(&self) -> usize {
        let buffers: usize = self.all.iter().map(|command| command.bytes.capacity()).sum();
        buffers + self.all.capacity() * size_of::<Command>() + self.free.capacity() * 4
    }

    /// Gives back memory that was not needed since the last call. Call it about once a second, not for each delivery.
    pub fn trim(&mut self) {
        if self.used == 0 {
            if self.peak == 0 {
                *self = Self::default();
            }
        } else {
            // Free buffers are taken from the end of the list, so those at its beginning have been idle longest.
            let idle = self.all.len() - self.peak.min(self.all.len());
            for &at in &self.free[..idle.min(self.free.len())] {
                self.all[at as usize].bytes = Vec::new();
            }
        }
        for &at in &self.free {
            let bytes = &mut self.all[at as usize].bytes;
            if bytes.capacity() > KEPT_BYTES {
                *bytes = Vec::new();
            }
        }
        self.peak = self.used;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stored_command_is_read_back() {
        let mut commands = Commands::default();
        let first = Parts::new(&[b"1/1\0", b"", b"a@b\0"]).unwrap();
        let second = Parts::new(&[b"x"]).unwrap();
        let a = commands.store(&first).unwrap();
        let b = commands.store(&second).unwrap();
        assert_eq!(commands.parts(a).as_slice(), [&b"1/1\0"[..], b"", b"a@b\0"]);
        assert_eq!(commands.parts(b).as_slice(), [b"x"]);
        assert_eq!(commands.parts(a).recipient(), b"a@b\0");
        assert_eq!(Parts::new(&[b"1", b"s@a", b"q", b"r@b"]).unwrap().sender(), b"s@a");
        assert_eq!(Parts::new(&[b"1", b"r@b"]).unwrap().sender(), b"");
        commands.release(a);
        commands.release(b);
        assert_eq!(commands.used(), 0);
        commands.trim();
        commands.trim();
        assert_eq!(commands.bytes(), 0);
    }

    #[test]
    fn too_many_or_too_long_parts_are_refused() {
        assert!(Parts::new(&[]).is_none());
        assert!(Parts::new(&[&b""[..]; PARTS + 1]).is_none());
        assert!(Parts::new(&[&vec![0; PART_MAX + 1]]).is_none());
        assert!(Parts::new(&[&vec![0; PART_MAX]]).is_some());
    }
}
