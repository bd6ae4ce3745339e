//! Files beside the control files with limits: what was seen of sites, and the name that qmail-remote gives with HELO.

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
    /// What was seen of sites before the spawner was started, by whichever of the spawners. Whatever is wrong with
    /// these files, it is only not known then.
    pub(super) fn restore_seen(&mut self, files: u32) -> Result<(), OutOfMemory> {
        let hasher = self.gate.hasher();
        for index in 0..files {
            let path = numbered(&self.seen_base, index)?;
            match read_if(&path, site::FILE_MAX, FileVersion::Nothing) {
                Ok((_, Some(bytes))) => {
                    site::read(&bytes, hasher, self.gate.seen_mut())?;
                    self.seen_written = self.gate.rules().sites.seen.changes();
                    // Whatever was not read is gone at once: it may be what an earlier build should not have written.
                    // That had only the first file.
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

    /// Writes what was seen of sites, if something changed. Like the status file it must exist.
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

    /// Whether it could be written; why not is told in the status.
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

    /// As in qmail-remote: the first line of helohost, else that of me. Problems with these are qmail-remote's to tell.
    pub(super) fn look_at_helo(&mut self) {
        let [helohost, me] = &mut self.helo;
        let contents = match helohost.look(NAME_FILE_MAX) {
            Contents::Same if helohost.seen != FileVersion::Missing => return,
            Contents::Read(bytes) => {
                // If it goes away, me is to be read again.
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
