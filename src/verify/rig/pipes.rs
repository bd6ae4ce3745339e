//! The rig's ends of the pipes to the tree's programs. They never block: they keep what cannot be written yet, and what
//! is read but not taken yet.
#![forbid(unsafe_code)]

use std::io::{self, PipeReader, PipeWriter, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};

use crate::sys;
use crate::verify::error::Error;

/// A pipe that the rig reads.
#[derive(Debug)]
pub(crate) struct Incoming {
    reader: PipeReader,
    bytes: Vec<u8>,
    taken: usize,
    open: bool,
}

impl Incoming {
    pub(crate) fn new(reader: PipeReader) -> Result<Incoming, Error> {
        sys::set_nonblocking(reader.as_fd()).map_err(Error::system("set up a pipe"))?;
        Ok(Incoming { reader, bytes: Vec::new(), taken: 0, open: true })
    }

    /// Returns whether the other side still has it open.
    pub(crate) fn is_open(&self) -> bool {
        self.open
    }

    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.reader.as_fd()
    }

    /// Reads everything that is there. Returns whether there was something; the end counts.
    pub(crate) fn read(&mut self) -> Result<bool, Error> {
        let mut any = false;
        let mut buffer = [0_u8; 65536];
        while self.open {
            match self.reader.read(&mut buffer) {
                Ok(0) => {
                    self.open = false;
                    any = true;
                }
                Ok(n) => {
                    self.bytes.extend_from_slice(&buffer[..n]);
                    any = true;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(Error::system("read a pipe of the rig")(error)),
            }
        }
        Ok(any)
    }

    /// Returns what is read and not taken yet.
    pub(crate) fn pending(&self) -> &[u8] {
        &self.bytes[self.taken..]
    }

    /// Takes the next `n` bytes away.
    pub(crate) fn take(&mut self, n: usize) {
        self.taken = (self.taken + n).min(self.bytes.len());
        // To move the rest each time would take quadratic time; never to move it would keep everything in memory.
        if self.taken == self.bytes.len() || self.taken > 1 << 16 {
            self.bytes.drain(..self.taken);
            self.taken = 0;
        }
    }
}

/// A pipe that the rig writes.
#[derive(Debug)]
pub(crate) struct Outgoing {
    writer: PipeWriter,
    bytes: Vec<u8>,
    written: usize,
}

impl Outgoing {
    pub(crate) fn new(writer: PipeWriter) -> Result<Outgoing, Error> {
        sys::set_nonblocking(writer.as_fd()).map_err(Error::system("set up a pipe"))?;
        Ok(Outgoing { writer, bytes: Vec::new(), written: 0 })
    }

    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.writer.as_fd()
    }

    /// Returns whether something is still to be written.
    pub(crate) fn is_pending(&self) -> bool {
        self.written < self.bytes.len()
    }

    pub(crate) fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// Writes what the pipe takes. If the reader is gone, that is not an error here: the end of the program is noticed
    /// elsewhere, where more is known about it.
    pub(crate) fn write(&mut self) -> Result<bool, Error> {
        let mut any = false;
        while self.is_pending() {
            match self.writer.write(&self.bytes[self.written..]) {
                Ok(n) => {
                    self.written += n;
                    any = true;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {
                    self.written = self.bytes.len();
                    any = true;
                }
                Err(error) => return Err(Error::system("write a pipe of the rig")(error)),
            }
        }
        if !self.is_pending() {
            self.bytes.clear();
            self.written = 0;
        }
        Ok(any)
    }
}
