//! Writing a plan to disk, and taking it back.
//!
//! All state is in `TREE/.qpatch/`:
//!
//! ```text
//! lock           held while a process works on the tree
//! journal.json   what was changed, and whether that is under way or finished
//! orig/NAME      each changed file as it was before qpatch ever touched it
//! new/NAME       what is about to be renamed over NAME
//! ```
//!
//! The order is what makes it safe. First everything is written to `orig/` and `new/` and synced:
//! a full disk shows here, and nothing of the tree has changed. Then the journal is renamed into
//! place, naming every change: that is the commit. Then each file of `new/` is renamed over its
//! place. A process killed before the commit has changed nothing; one killed after it has left all
//! that is needed to go forward (`apply`) or back (`revert`).

#![forbid(unsafe_code)]

mod files;
mod record;

use std::fs::{self, File, FileTimes, OpenOptions, Permissions};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use files::{hand_over, make_dir, remove_dir, remove_file, step, sync_dir, write_synced};
use record::{Entry, Journal, Original, State, VERSION, digest, from_nanos, is_plain_name, nanos};

use super::plan::Change;
use super::{STATE_DIR, Tree};
use crate::error::{Error, Result};

/// What was left over from an interrupted run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Recovered {
    /// There was nothing to recover.
    Nothing,
    /// An interrupted apply was finished.
    Applied,
    /// An interrupted revert was finished.
    Reverted,
}

/// Whether a revert may throw away what was changed after the apply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LaterChanges {
    /// Stop and say which files.
    Keep,
    /// Put the original back all the same.
    Discard,
}

/// What a revert did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reverted {
    /// Files that are as they were again.
    pub put_back: usize,
    /// Files that there were none of before.
    pub removed: usize,
}

/// What `tree` was before qpatch changed it: each file that it has changed with its bytes, `None` for one that it made.
/// Nothing where qpatch has not changed it. Takes no lock: the tree is only read.
///
/// # Errors
/// If the journal or an original cannot be read.
pub fn originals(tree: &Tree) -> Result<Vec<(String, Option<Vec<u8>>)>> {
    let state = tree.root().join(STATE_DIR);
    let journal = read_journal(&state)?;
    let files = journal.into_iter().flat_map(|journal| journal.files);
    files
        .map(|entry| {
            let original = read_original(&state, &entry)?;
            Ok((entry.name, original))
        })
        .collect()
}

/// The journal in the folder `state`; `None` where qpatch has not changed the tree.
fn read_journal(state: &Path) -> Result<Option<Journal>> {
    let path = state.join("journal.json");
    let text = match fs::read(&path) {
        Ok(text) => text,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(Error::io(&path, "read", &e)),
    };
    let unreadable = |why: String| {
        Error::new(
            path.display(),
            format!("not a journal of this qpatch: {why}"),
            "the originals are in .qpatch/orig; unpack the tree again, or copy them back",
        )
    };
    let journal: Journal = serde_json::from_slice(&text).map_err(|e| unreadable(e.to_string()))?;
    if journal.version != VERSION {
        return Err(unreadable(format!("version {}, not {VERSION}", journal.version)));
    }
    if let Some(entry) = journal.files.iter().find(|e| !is_plain_name(&e.name)) {
        return Err(unreadable(format!("it names {:?}", entry.name)));
    }
    Ok(Some(journal))
}

/// The bytes of the file as it was before qpatch, kept in the folder `state`; `None` where there was none.
fn read_original(state: &Path, entry: &Entry) -> Result<Option<Vec<u8>>> {
    let Some(original) = &entry.original else { return Ok(None) };
    let kept = state.join("orig").join(&entry.name);
    let damaged = |what: &str| {
        Error::new(
            kept.display(),
            format!("the kept original is {what}"),
            "nothing was reverted; unpack the tree again",
        )
    };
    if !fs::symlink_metadata(&kept).is_ok_and(|m| m.is_file()) {
        return Err(damaged("missing"));
    }
    let bytes = fs::read(&kept).map_err(|e| Error::io(&kept, "read", &e))?;
    if digest(&bytes) != original.digest {
        return Err(damaged("damaged"));
    }
    Ok(Some(bytes))
}

/// The right to change a tree: one process at a time has it.
#[derive(Debug)]
pub struct Session<'a> {
    tree: &'a Tree,
    state: PathBuf,
    _lock: File,
}

impl<'a> Session<'a> {
    /// Take the tree.
    ///
    /// # Errors
    /// If `.qpatch` cannot be made in it, or another process has it.
    pub fn begin(tree: &'a Tree) -> Result<Session<'a>> {
        let state = tree.root().join(STATE_DIR);
        for folder in [state.clone(), state.join("orig"), state.join("new")] {
            if fs::symlink_metadata(&folder).is_ok_and(|m| !m.is_dir()) {
                return Err(Error::new(
                    folder.display(),
                    "not a folder, but qpatch keeps its state there",
                    "move it away",
                ));
            }
        }
        for file in [state.join("lock"), state.join("journal.json")] {
            if fs::symlink_metadata(&file).is_ok_and(|m| !m.is_file()) {
                return Err(Error::new(
                    file.display(),
                    "not a regular file, but qpatch keeps its state there",
                    "move it away",
                ));
            }
        }
        let mode = fs::metadata(tree.root())
            .map_err(|e| Error::io(tree.root(), "read", &e))?
            .permissions()
            .mode();
        if mode & 0o200 == 0 {
            return Err(Error::new(
                tree.root().display(),
                format!("read-only (mode {:04o})", mode & 0o7777),
                "make the folder writable (chmod u+w), then run qpatch again",
            ));
        }
        make_dir(&state, tree)?;
        let path = state.join("lock");
        let lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .custom_flags(libc::O_NOFOLLOW)
            .open(&path)
            .map_err(|e| Error::io(&path, "open", &e))?;
        hand_over(&path, tree);
        lock.try_lock().map_err(|_| {
            Error::new(
                tree.root().display(),
                "another qpatch is at work in this tree",
                "wait for it to end, then run this one again",
            )
        })?;
        Ok(Session { tree, state, _lock: lock })
    }

    /// Whether qpatch has changed this tree.
    ///
    /// # Errors
    /// If the journal cannot be read.
    pub fn is_applied(&self) -> Result<bool> {
        Ok(self.journal()?.is_some())
    }

    /// Finish what an interrupted process began.
    ///
    /// # Errors
    /// If a file was changed by someone else in between.
    pub fn recover(&self) -> Result<Recovered> {
        match self.journal()? {
            None => {
                self.clear()?;
                Ok(Recovered::Nothing)
            }
            Some(mut journal) => match journal.state {
                State::Applied => Ok(Recovered::Nothing),
                State::Applying => {
                    self.roll_forward(&mut journal)?;
                    Ok(Recovered::Applied)
                }
                State::Reverting => {
                    self.restore(&journal)?;
                    Ok(Recovered::Reverted)
                }
            },
        }
    }

    /// Leave the tree without having changed it.
    ///
    /// # Errors
    /// If `.qpatch`, where nothing is kept in it, cannot be removed.
    pub fn end(&self) -> Result<()> {
        match self.journal()? {
            None => self.clear(),
            Some(_) => Ok(()),
        }
    }

    /// Write `changes`. All of them, or none.
    ///
    /// # Errors
    /// If a file is read-only or leads out of the tree, was changed since it was read, or the
    /// disk is full. The tree is then as it was.
    pub fn apply(&self, changes: &[Change]) -> Result<()> {
        let previous = self.journal()?;
        let result = self.stage(changes, previous.clone());
        let mut journal = match result {
            Ok(journal) => journal,
            Err(error) => {
                // Nothing of the tree has been touched; leave no trace of the attempt either.
                let _ = match &previous {
                    None => self.clear(),
                    Some(_) => remove_dir(&self.state.join("new")),
                };
                return Err(error);
            }
        };
        self.write_journal(&journal)?;
        if let Err(error) = self.roll_forward(&mut journal) {
            self.roll_back(&journal, changes, previous)?;
            return Err(error);
        }
        Ok(())
    }

    /// Put back every file as it was before the first apply.
    ///
    /// # Errors
    /// If qpatch has not changed this tree, or files were changed after it and `later` says to
    /// keep that.
    pub fn revert(&self, later: LaterChanges) -> Result<Reverted> {
        let Some(mut journal) = self.journal()? else {
            self.clear()?;
            return Err(Error::new(
                self.tree.root().display(),
                "nothing to revert: there is no .qpatch with the originals of what qpatch has changed",
                "if `qpatch status` finds patches in it, unpack the tree again",
            ));
        };
        if later == LaterChanges::Keep {
            let changed: Vec<_> = journal
                .files
                .iter()
                .filter(|entry| entry.edited || !self.is_known(entry))
                .map(|entry| entry.name.clone())
                .collect();
            if !changed.is_empty() {
                return Err(Error::new(
                    self.tree.root().display(),
                    format!("changed after qpatch applied its patches: {}", changed.join(", ")),
                    "save those changes and run `qpatch revert --force`, which throws them away",
                ));
            }
        }
        // Whatever could stop it half-way is looked at before anything is changed.
        for entry in &journal.files {
            if fs::symlink_metadata(self.path(&entry.name)).is_ok() {
                self.tree.resolve(&entry.name)?;
            }
            self.original(entry)?;
        }
        if later == LaterChanges::Discard {
            for entry in &mut journal.files {
                entry.edited = true;
            }
        }
        journal.state = State::Reverting;
        self.write_journal(&journal)?;
        self.restore(&journal)?;
        let removed = journal.files.iter().filter(|entry| entry.original.is_none()).count();
        Ok(Reverted { put_back: journal.files.len() - removed, removed })
    }

    /// Whether the file has a content that qpatch knows: original, before or after.
    fn is_known(&self, entry: &Entry) -> bool {
        let now = self.digest_of(&entry.name);
        let original = entry.original.as_ref().map(|o| o.digest.clone());
        now == Some(entry.after.clone()) || now == entry.before || now == original
    }

    fn path(&self, name: &str) -> PathBuf {
        self.tree.path(name)
    }

    /// Have what was renamed on the disk: the tree's folder, and the one above it where that has changed.
    fn sync_folders(&self, journal: &Journal) -> Result<()> {
        sync_dir(self.tree.root())?;
        match self.tree.root().parent() {
            Some(above) if journal.files.iter().any(|e| self.tree.is_above(&e.name)) => {
                sync_dir(above)
            }
            _ => Ok(()),
        }
    }

    fn digest_of(&self, name: &str) -> Option<String> {
        // What is no file (a FIFO would be waited for) has no content that qpatch knows.
        let path = self.path(name);
        let bytes = fs::metadata(&path)
            .ok()
            .filter(fs::Metadata::is_file)
            .and_then(|_| fs::read(&path).ok())?;
        Some(digest(&bytes))
    }

    fn journal(&self) -> Result<Option<Journal>> {
        read_journal(&self.state)
    }

    fn write_journal(&self, journal: &Journal) -> Result<()> {
        let text = serde_json::to_vec_pretty(journal)
            .map_err(|e| Error::new("journal", e.to_string(), ""))?;
        let staged = self.state.join("journal.new");
        self.write(&staged, &text)?;
        let path = self.state.join("journal.json");
        step();
        fs::rename(&staged, &path).map_err(|e| Error::io(&path, "write", &e))?;
        sync_dir(&self.state)
    }

    /// Write `bytes` to the file `path` of the state, for the owner of the tree.
    fn write(&self, path: &Path, bytes: &[u8]) -> Result<()> {
        write_synced(path, bytes)?;
        hand_over(path, self.tree);
        Ok(())
    }

    /// Write everything that the commit needs beside the tree.
    fn stage(&self, changes: &[Change], previous: Option<Journal>) -> Result<Journal> {
        for change in changes {
            match change.old {
                Some(_) => self.tree.check_writable(&change.name)?,
                None => {
                    if fs::symlink_metadata(self.path(&change.name)).is_ok() {
                        return Err(changed_meanwhile(&self.path(&change.name)));
                    }
                }
            }
        }
        let mut journal = previous.unwrap_or(Journal {
            version: VERSION,
            state: State::Applying,
            applied_at: 0,
            files: Vec::new(),
        });
        journal.state = State::Applying;
        journal.applied_at = nanos(SystemTime::now());
        let (orig, new) = (self.state.join("orig"), self.state.join("new"));
        remove_dir(&new)?;
        for dir in [&orig, &new] {
            make_dir(dir, self.tree)?;
        }
        for entry in &mut journal.files {
            entry.before = Some(entry.after.clone());
        }
        for change in changes {
            let before = change.old.as_deref().map(digest);
            let after = digest(&change.new);
            self.write(&new.join(&change.name), &change.new)?;
            if let Some(entry) = journal.files.iter_mut().find(|e| e.name == change.name) {
                entry.edited |= before.as_ref() != Some(&entry.after);
                (entry.before, entry.after) = (before, after);
                continue;
            }
            let original = match &change.old {
                None => None,
                Some(bytes) => {
                    let path = self.tree.resolve(&change.name)?;
                    let meta = fs::metadata(&path).map_err(|e| Error::io(&path, "read", &e))?;
                    self.write(&orig.join(&change.name), bytes)?;
                    Some(Original {
                        digest: digest(bytes),
                        mode: meta.permissions().mode() & 0o7777,
                        mtime_ns: i128::from(meta.mtime()) * 1_000_000_000
                            + i128::from(meta.mtime_nsec()),
                    })
                }
            };
            journal.files.push(Entry {
                name: change.name.clone(),
                original,
                before,
                after,
                edited: false,
            });
        }
        sync_dir(&orig)?;
        sync_dir(&new)?;
        Ok(journal)
    }

    /// Rename what is staged over its place, then say that all is applied.
    fn roll_forward(&self, journal: &mut Journal) -> Result<()> {
        let new = self.state.join("new");
        let pending: Vec<&Entry> =
            journal.files.iter().filter(|e| new.join(&e.name).exists()).collect();
        // All are checked before the first is renamed, and each again just before its turn.
        for entry in &pending {
            self.check_unchanged(entry)?;
        }
        for entry in pending {
            self.check_unchanged(entry)?;
            self.put(&new.join(&entry.name), &entry.name, None)?;
        }
        self.sync_folders(journal)?;
        journal.state = State::Applied;
        for entry in &mut journal.files {
            entry.before = None;
        }
        self.write_journal(journal)?;
        remove_dir(&new)
    }

    fn check_unchanged(&self, entry: &Entry) -> Result<()> {
        let now = self.digest_of(&entry.name);
        if now == entry.before || now.as_ref() == Some(&entry.after) {
            return Ok(());
        }
        Err(changed_meanwhile(&self.path(&entry.name)))
    }

    /// After a failed roll forward in this same process: put back what the files were before.
    fn roll_back(
        &self,
        journal: &Journal,
        changes: &[Change],
        previous: Option<Journal>,
    ) -> Result<()> {
        for change in changes {
            let entry = journal.files.iter().find(|e| e.name == change.name);
            let Some(entry) = entry.filter(|e| self.digest_of(&e.name).as_ref() == Some(&e.after))
            else {
                continue;
            };
            match &change.old {
                None => remove_file(&self.path(&change.name))?,
                Some(bytes) => {
                    let staged = self.state.join("new").join(&change.name);
                    self.write(&staged, bytes)?;
                    let original = entry.original.as_ref().filter(|_| previous.is_none());
                    self.put(&staged, &change.name, original.map(|o| o.mtime_ns))?;
                }
            }
        }
        match previous {
            None => self.clear(),
            Some(journal) => {
                self.write_journal(&journal)?;
                remove_dir(&self.state.join("new"))
            }
        }
    }

    /// The kept original of `entry`; `None` for a file that qpatch made.
    fn original(&self, entry: &Entry) -> Result<Option<Vec<u8>>> {
        read_original(&self.state, entry)
    }

    /// Put every original back, then forget all.
    fn restore(&self, journal: &Journal) -> Result<()> {
        // Objects that were compiled from patched sources are younger than the originals: make
        // would take them for up to date. Then the originals must look new.
        let built = self.built_since(journal);
        let new = self.state.join("new");
        make_dir(&new, self.tree)?;
        for entry in &journal.files {
            let Some(original) = &entry.original else {
                // A file that qpatch made, unless something else has taken its name.
                if entry.edited || self.is_known(entry) {
                    remove_file(&self.path(&entry.name))?;
                    if let Some(object) = entry.made_object() {
                        remove_file(&self.path(&object))?;
                    }
                }
                continue;
            };
            let mtime = (!built).then_some(original.mtime_ns);
            let Some(bytes) = self.original(entry)? else { continue };
            let staged = new.join(&entry.name);
            self.write(&staged, &bytes)?;
            let mode = Permissions::from_mode(original.mode);
            fs::set_permissions(&staged, mode.clone())
                .map_err(|e| Error::io(&staged, "set the mode of", &e))?;
            self.put(&staged, &entry.name, mtime)?;
            let path = self.path(&entry.name);
            fs::set_permissions(&path, mode)
                .map_err(|e| Error::io(&path, "set the mode of", &e))?;
        }
        self.sync_folders(journal)?;
        self.clear()
    }

    /// Whether anything that qpatch did not write, and that stays, is younger than the apply.
    fn built_since(&self, journal: &Journal) -> bool {
        let Ok(entries) = fs::read_dir(self.tree.root()) else { return true };
        entries.flatten().any(|entry| {
            let name = entry.file_name();
            let is_ours =
                |e: &Entry| *e.name == *name || e.made_object().is_some_and(|o| *o == *name);
            !journal.files.iter().any(is_ours)
                && entry.metadata().is_ok_and(|m| {
                    m.is_file() && m.modified().is_ok_and(|t| nanos(t) >= journal.applied_at)
                })
        })
    }

    /// Rename `staged` over the file `name`, with that file's owner and mode, and with a time
    /// that make takes for newer than the old one, or `mtime_ns`.
    fn put(&self, staged: &Path, name: &str, mtime_ns: Option<i128>) -> Result<()> {
        let path = self.path(name).canonicalize().unwrap_or_else(|_| self.path(name));
        let mut time = SystemTime::now();
        if let Ok(meta) = fs::metadata(&path) {
            fs::set_permissions(staged, meta.permissions())
                .map_err(|e| Error::io(staged, "set the mode of", &e))?;
            let own = fs::metadata(staged).map_err(|e| Error::io(staged, "read", &e))?;
            if (own.uid(), own.gid()) != (meta.uid(), meta.gid()) {
                // Only root can; for others the file changes hands as with any editor.
                let _ = chown(staged, Some(meta.uid()), Some(meta.gid()));
            }
            if let Ok(old) = meta.modified() {
                time = time.max(old + Duration::from_secs(u64::from(old > time)));
            }
        }
        if let Some(ns) = mtime_ns {
            time = from_nanos(ns);
        }
        let set_time = || -> std::io::Result<()> {
            // The owner may set the times of a file that is open for reading only.
            File::open(staged)?.set_times(FileTimes::new().set_modified(time))
        };
        set_time().map_err(|e| Error::io(staged, "set the time of", &e))?;
        step();
        fs::rename(staged, &path).map_err(|e| Error::io(&path, "replace", &e))
    }

    /// Remove `.qpatch` with all that is in it; the journal first, because without one the rest
    /// means nothing.
    fn clear(&self) -> Result<()> {
        remove_file(&self.state.join("journal.json"))?;
        remove_dir(&self.state)
    }
}

fn changed_meanwhile(path: &Path) -> Error {
    Error::new(
        path.display(),
        "changed by someone else while qpatch was at work; the change was kept",
        "see what that change is, then run qpatch again",
    )
}

#[cfg(test)]
mod tests;
