//! Two more files: the addresses of sites from before a restart, and the name that qmail-remote gives with HELO.

#![forbid(unsafe_code)]

use super::Host;
use crate::control::problem::{self, Problem};
use crate::control::{site, table};
use crate::host::clock::Clock;
use crate::host::spawners::numbered;
use crate::host::watched::{Contents, FileVersion, overwrite, read_if};
use crate::util::memory::{OutOfMemory, Text};

/// The largest file with a name, in bytes.
const NAME_FILE_MAX: u64 = 4096;

impl<C: Clock> Host<C> {
    /// Restores the addresses of sites that this or another spawner of the queue saw before a restart. If a file cannot
    /// be read, its addresses are not known, and nothing else happens.
    pub(super) fn restore_seen(&mut self, files: u32) -> Result<(), OutOfMemory> {
        let hasher = self.gate.hasher();
        for index in 0..files {
            let path = numbered(&self.seen_base, index)?;
            match read_if(&path, site::FILE_MAX, FileVersion::Nothing) {
                Ok((_, Some(bytes))) => {
                    site::read(&bytes, hasher, self.gate.seen_mut())?;
                    self.seen_written = self.gate.rules().sites.seen.changes();
                    // Lines that were dropped must leave the file at once: an earlier build may have written secrets
                    // there. It wrote only the first file.
                    let mut text = Text::default();
                    site::write(&mut text, &self.gate.rules().sites.seen)?;
                    if index == 0 && !bytes.is_empty() && text.bytes != bytes {
                        self.overwrite_seen(&text);
                    }
                }
                Ok((_, None)) => {}
                Err(kind) => {
                    self.seen_problem = Some(Problem::of_file(problem::File::Seen, kind));
                }
            }
        }
        Ok(())
    }

    /// Writes the addresses of sites, if they have changed. Like the status file, the file must exist.
    pub(super) fn write_seen(&mut self, now_us: u64) {
        self.seen_written_us = now_us;
        let seen = &self.gate.rules().sites.seen;
        let changes = seen.changes();
        if changes == self.seen_written {
            return;
        }
        let mut text = Text::default();
        if site::write(&mut text, seen).is_err() {
            return;
        }
        if self.overwrite_seen(&text) {
            self.seen_written = changes;
        }
    }

    /// Whether it could be written. The status says why not.
    pub(super) fn overwrite_seen(&mut self, text: &Text) -> bool {
        let written = overwrite(&self.seen_path, &text.bytes);
        let is_written = written.is_ok();
        let problem = written.err().map(|kind| Problem::of_file(problem::File::Seen, kind));
        if problem != self.seen_problem {
            self.seen_problem = problem;
            self.touch();
        }
        is_written
    }

    /// As in qmail-remote: the first line of helohost, else that of me. qmail-remote reports problems with these files.
    pub(super) fn look_at_helo(&mut self) {
        let [helohost, me] = &mut self.helo;
        let contents = match helohost.look(NAME_FILE_MAX) {
            Contents::Same if helohost.seen != FileVersion::Missing => return,
            Contents::Read(bytes) => {
                // If helohost goes away, me must be read again.
                me.seen = FileVersion::Nothing;
                bytes
            }
            _ => match me.look(NAME_FILE_MAX) {
                Contents::Same => return,
                Contents::Read(bytes) => bytes,
                Contents::Missing | Contents::Unusable(_) => Vec::new(),
            },
        };
        let line = contents.split(|&byte| byte == b'\n').next().unwrap_or_default();
        self.gate.set_helo(table::trimmed(line));
    }
}
