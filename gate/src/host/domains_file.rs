//! How control/concurrencydomains comes into force, and what counts when it cannot be used.

#![forbid(unsafe_code)]

use super::Host;
use crate::control::problem::{Kind, Problem};
use crate::control::table::{self, Table};
use crate::core::gate::CONCURRENCY_REMOTE;
use crate::host::clock::Clock;
use crate::host::control_file::ContentsSource;
use crate::host::watched::Contents;

impl<C: Clock> Host<C> {
    pub(super) fn look_at_domains(&mut self, now_us: u64) {
        self.domains.keep_again(now_us);
        let set = match self.domains.look(table::FILE_MAX, &self.clock) {
            Contents::Same => return,
            Contents::Missing => {
                let set = self.gate.set_table(None, now_us).map_err(|_| Kind::OutOfMemory);
                if set.is_ok() {
                    self.domains.source = ContentsSource::File;
                    self.domains.kept.keep(None, now_us);
                }
                set.map(|()| None)
            }
            Contents::Unusable(kind) => {
                let table = Table::new(self.gate.hasher());
                self.fall_back(table, now_us).and(Err(kind))
            }
            Contents::Read(text) => self.load_table(&text, now_us),
        };
        self.domains.settle(set);
        self.touch();
    }

    /// Loads a table, and returns what is wrong with it.
    pub(super) fn load_table(&mut self, text: &[u8], now_us: u64) -> Result<Option<Problem>, Kind> {
        let parsed = Table::parse(text, self.gate.hasher());
        let (table, problems) = parsed.map_err(|_| Kind::OutOfMemory)?;
        // Only a missing file means no limits, or one with a comment. If a file is written under another name and
        // renamed, a full disk can leave a file of 0 bytes in the place of the limits.
        if table::is_blank(text) {
            return self.fall_back(table, now_us).and(Err(Kind::Empty));
        }
        if problems.errors() > 0 {
            self.fall_back(table, now_us)?;
        } else {
            self.gate.set_table(Some(table), now_us).map_err(|_| Kind::OutOfMemory)?;
            self.loaded_secs = self.unix_secs();
            self.domains.source = ContentsSource::File;
            self.domains.kept.keep(Some(text), now_us);
        }
        Ok(problems.worst())
    }

    /// The file cannot be used. What is in force stays in force. At the start the copy of the last good file counts;
    /// without one, the good lines do.
    pub(super) fn fall_back(&mut self, mut good_lines: Table, now_us: u64) -> Result<(), Kind> {
        let is_whole =
            matches!(self.domains.source, ContentsSource::File | ContentsSource::Earlier);
        if is_whole && self.gate.rules().table.is_some() {
            self.domains.source = ContentsSource::Earlier;
            self.domains.kept.hold();
            return Ok(());
        }
        if let Some((text, written_secs)) = self.domains.kept.read()
            && let Ok((table, problems)) = Table::parse(&text, self.gate.hasher())
            && problems.errors() == 0
        {
            self.gate.set_table(Some(table), now_us).map_err(|_| Kind::OutOfMemory)?;
            self.loaded_secs = written_secs;
            self.domains.source = ContentsSource::Earlier;
            self.domains.kept.held = Some(text);
            return Ok(());
        }
        good_lines.limit_others(CONCURRENCY_REMOTE).map_err(|_| Kind::OutOfMemory)?;
        self.gate.set_table(Some(good_lines), now_us).map_err(|_| Kind::OutOfMemory)?;
        self.loaded_secs = self.unix_secs();
        self.domains.source = ContentsSource::Part;
        Ok(())
    }
}
