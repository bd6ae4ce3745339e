//! Writes a plan to disk, and reverts it.
//!
//! All state is in `TREE/.qpatch/`:
//!
//! ```text
//! lock           held while a process works on the tree
//! journal.json   what was changed, and whether that is under way or finished
//! orig/NAME      each changed file as it was before qpatch first changed it
//! new/NAME       the file that is about to be renamed over NAME
//! ```
//!
//! The order makes it safe. First, everything is written to `orig/` and `new/` and synced. A full
//! disk shows here, while nothing in the tree has changed. Then the journal, which names every
//! change, is renamed into place: that is the commit. Then each file of `new/` is renamed over its
//! target. A process killed before the commit has changed nothing. One killed after it has left
//! everything that is needed to go forward (`apply`) or back (`revert`).

#![forbid(unsafe_code)]

mod files;
mod record;

use std::fs::{self, File, FileTimes, OpenOptions, Permissions};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use files::{hand_over, make_dir, remove_dir, remove_file, step, sync_dir, write_synced};
use record::{
    Journal, JournalEntry, JournalState, Original, VERSION, digest, from_nanos, is_plain_name,
    nanos,
};

use super::plan::FileChange;
use super::{STATE_DIR, Tree};
use crate::error::{Error, Result};

/// What `recover` did about an interrupted run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Recovered {
    /// There was nothing to recover.
    Nothing,
    /// An interrupted apply was finished.
    Applied,
    /// An interrupted revert was finished.
    Reverted,
}

/// What a revert does with changes made after the apply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LaterChanges {
    /// Stop and name the files.
    Keep,
    /// Restore the originals anyway.
    Discard,
}

/// What a revert did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reverted {
    /// Files that have their old contents again.
    pub put_back: usize,
    /// Files that did not exist before and are removed.
    pub removed: usize,
}

/// Returns the original state of `tree`: the old bytes of each file that qpatch changed, `None` for
/// each file that it created. The list is empty if qpatch has not changed the tree. Takes no lock,
/// because it only reads the tree.
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

/// Reads the journal in the folder `state`; `None` if qpatch has not changed the tree.
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

/// Reads the file as it was before qpatch, kept in the folder `state`; `None` if it did not exist.
fn read_original(state: &Path, entry: &JournalEntry) -> Result<Option<Vec<u8>>> {
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

/// A tree that this process has locked. Only one process at a time can change a tree.
#[derive(Debug)]
pub struct LockedTree<'a> {
    tree: &'a Tree,
    state: PathBuf,
    _lock: File,
}

impl<'a> LockedTree<'a> {
    /// Locks the tree.
    ///
    /// # Errors
    /// If `.qpatch` cannot be created in it, or another process has the lock.
    pub fn lock(tree: &'a Tree) -> Result<LockedTree<'a>> {
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
        Ok(LockedTree { tree, state, _lock: lock })
    }

    /// Finishes what an interrupted process began.
    ///
    /// # Errors
    /// If someone else has changed a file in the meantime.
    pub fn recover(&self) -> Result<Recovered> {
        match self.journal()? {
            None => {
                self.clear()?;
                Ok(Recovered::Nothing)
            }
            Some(mut journal) => match journal.state {
                JournalState::Applied => Ok(Recovered::Nothing),
                JournalState::Applying => {
                    self.roll_forward(&mut journal)?;
                    Ok(Recovered::Applied)
                }
                JournalState::Reverting => {
                    self.restore(&journal)?;
                    Ok(Recovered::Reverted)
                }
            },
        }
    }

    /// Leaves the tree without a change.
    ///
    /// # Errors
    /// If `.qpatch` has no journal and cannot be removed.
    pub fn end(&self) -> Result<()> {
        match self.journal()? {
            None => self.clear(),
            Some(_) => Ok(()),
        }
    }

    /// Writes `changes`: all of them, or none.
    ///
    /// # Errors
    /// If a file is read-only or leads out of the tree, has changed since it was read, or
    /// the disk is full. The tree is then as it was.
    pub fn apply(&self, changes: &[FileChange]) -> Result<()> {
        let previous = self.journal()?;
        let result = self.stage(changes, previous.clone());
        let mut journal = match result {
            Ok(journal) => journal,
            Err(error) => {
                // Nothing in the tree has changed; leave no trace of the attempt.
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

    /// Restores every file as it was before the first apply.
    ///
    /// # Errors
    /// If qpatch has not changed this tree, or files were changed after the apply and
    /// `later` says to keep those changes.
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
        // Check everything that could stop the revert half-way before changing anything.
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
        journal.state = JournalState::Reverting;
        self.write_journal(&journal)?;
        self.restore(&journal)?;
        let removed = journal.files.iter().filter(|entry| entry.original.is_none()).count();
        Ok(Reverted { put_back: journal.files.len() - removed, removed })
    }

    /// Returns whether the file has contents that qpatch knows: original, before or after.
    fn is_known(&self, entry: &JournalEntry) -> bool {
        let now = self.digest_of(&entry.name);
        let original = entry.original.as_ref().map(|o| o.digest.clone());
        now == Some(entry.after.clone()) || now == entry.before || now == original
    }

    fn path(&self, name: &str) -> PathBuf {
        self.tree.path(name)
    }

    /// Syncs the renames to disk: the tree's folder, and the folder above if a file there has
    /// changed.
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
        // Only a regular file has contents that qpatch knows. Reading a FIFO would block.
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

    /// Writes `bytes` to the file `path` of the state, and gives it to the owner of the tree.
    fn write(&self, path: &Path, bytes: &[u8]) -> Result<()> {
        write_synced(path, bytes)?;
        hand_over(path, self.tree);
        Ok(())
    }

    /// Writes everything that the commit needs, without touching the tree's own files.
    fn stage(&self, changes: &[FileChange], previous: Option<Journal>) -> Result<Journal> {
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
            state: JournalState::Applying,
            applied_at: 0,
            files: Vec::new(),
        });
        journal.state = JournalState::Applying;
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
            journal.files.push(JournalEntry {
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

    /// Renames each staged file over its target, then marks the journal as applied.
    fn roll_forward(&self, journal: &mut Journal) -> Result<()> {
        let new = self.state.join("new");
        let pending: Vec<&JournalEntry> =
            journal.files.iter().filter(|e| new.join(&e.name).exists()).collect();
        // Check all files before the first rename, and each again just before its own.
        for entry in &pending {
            self.check_unchanged(entry)?;
        }
        for entry in pending {
            self.check_unchanged(entry)?;
            self.put(&new.join(&entry.name), &entry.name, None)?;
        }
        self.sync_folders(journal)?;
        journal.state = JournalState::Applied;
        for entry in &mut journal.files {
            entry.before = None;
        }
        self.write_journal(journal)?;
        remove_dir(&new)
    }

    fn check_unchanged(&self, entry: &JournalEntry) -> Result<()> {
        let now = self.digest_of(&entry.name);
        if now == entry.before || now.as_ref() == Some(&entry.after) {
            return Ok(());
        }
        Err(changed_meanwhile(&self.path(&entry.name)))
    }

    /// Restores the previous files after a failed roll forward in this process.
    fn roll_back(
        &self,
        journal: &Journal,
        changes: &[FileChange],
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

    /// Returns the kept original of `entry`; `None` for a file that qpatch created.
    fn original(&self, entry: &JournalEntry) -> Result<Option<Vec<u8>>> {
        read_original(&self.state, entry)
    }

    /// Restores every original, then removes the state.
    fn restore(&self, journal: &Journal) -> Result<()> {
        // Objects compiled from patched sources are younger than the originals, so make would take
        // them for up to date. In that case the originals must look new.
        let built = self.built_since(journal);
        let new = self.state.join("new");
        make_dir(&new, self.tree)?;
        for entry in &journal.files {
            let Some(original) = &entry.original else {
                // A file that qpatch created, unless something else has taken its name.
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

    /// Returns whether a file that qpatch did not write, and that stays, is younger than the apply.
    fn built_since(&self, journal: &Journal) -> bool {
        let Ok(entries) = fs::read_dir(self.tree.root()) else { return true };
        entries.flatten().any(|entry| {
            let name = entry.file_name();
            let is_ours =
                |e: &JournalEntry| *e.name == *name || e.made_object().is_some_and(|o| *o == *name);
            !journal.files.iter().any(is_ours)
                && entry.metadata().is_ok_and(|m| {
                    m.is_file() && m.modified().is_ok_and(|t| nanos(t) >= journal.applied_at)
                })
        })
    }

    /// Renames `staged` over the file `name`. The new file has the old one's owner and mode. Its
    /// time is `mtime_ns`, or one that make takes for newer than the old file's.
    fn put(&self, staged: &Path, name: &str, mtime_ns: Option<i128>) -> Result<()> {
        let path = self.path(name).canonicalize().unwrap_or_else(|_| self.path(name));
        let mut time = SystemTime::now();
        if let Ok(meta) = fs::metadata(&path) {
            fs::set_permissions(staged, meta.permissions())
                .map_err(|e| Error::io(staged, "set the mode of", &e))?;
            let own = fs::metadata(staged).map_err(|e| Error::io(staged, "read", &e))?;
            if (own.uid(), own.gid()) != (meta.uid(), meta.gid()) {
                // Only root can do this. For others the file changes its owner, as with any editor.
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

    /// Removes `.qpatch` and its contents. The journal goes first: without it, the rest means
    /// nothing.
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
