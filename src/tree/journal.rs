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

use std::fs::{self, File, FileTimes, OpenOptions, Permissions};
use std::io::Write;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, chown, lchown};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::plan::Change;
use super::{STATE_DIR, Tree};
use crate::error::{Error, Result};

/// The journal's format.
const VERSION: u32 = 1;

/// What `.qpatch/journal.json` holds.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Journal {
    version: u32,
    state: State,
    /// When the last apply was committed, in nanoseconds since 1970.
    applied_at: u128,
    files: Vec<Entry>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum State {
    Applying,
    Applied,
    Reverting,
}

/// A file that qpatch changed or made.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Entry {
    name: String,
    /// What it was before qpatch; `None` for a file that qpatch made.
    original: Option<Original>,
    /// Digest before the apply that is under way.
    before: Option<String>,
    /// Digest after it.
    after: String,
    /// Whether someone changed it between two applies.
    #[serde(default)]
    edited: bool,
}

impl Entry {
    /// The object that make builds of a source that qpatch made. It goes with the source: the tree's own `make clean` does not
    /// know it.
    fn made_object(&self) -> Option<String> {
        let stem = self.name.strip_suffix(".c").filter(|_| self.original.is_none())?;
        Some(format!("{stem}.o"))
    }
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Original {
    digest: String,
    mode: u32,
    mtime_ns: i128,
}

/// What an apply did.
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
        let path = self.state.join("journal.json");
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
        let journal: Journal =
            serde_json::from_slice(&text).map_err(|e| unreadable(e.to_string()))?;
        if journal.version != VERSION {
            return Err(unreadable(format!("version {}, not {VERSION}", journal.version)));
        }
        if let Some(entry) = journal.files.iter().find(|e| !is_plain_name(&e.name)) {
            return Err(unreadable(format!("it names {:?}", entry.name)));
        }
        Ok(Some(journal))
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
        let Some(original) = &entry.original else { return Ok(None) };
        let kept = self.state.join("orig").join(&entry.name);
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

/// A name in the tree's folder itself.
fn is_plain_name(name: &str) -> bool {
    let mut components = Path::new(name).components();
    matches!(
        (components.next(), components.next()),
        (Some(std::path::Component::Normal(only)), None) if only == name
    )
}

fn digest(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect()
}

fn nanos(time: SystemTime) -> u128 {
    time.duration_since(UNIX_EPOCH).map_or(0, |d| d.as_nanos())
}

fn from_nanos(ns: i128) -> SystemTime {
    let magnitude = Duration::from_nanos(u64::try_from(ns.unsigned_abs()).unwrap_or(u64::MAX));
    if ns < 0 { UNIX_EPOCH - magnitude } else { UNIX_EPOCH + magnitude }
}

/// Stands before each system call that changes something, for the tests to interrupt there.
fn step() {
    #[cfg(test)]
    tests::step();
}

fn write_synced(path: &Path, bytes: &[u8]) -> Result<()> {
    step();
    let write = || -> std::io::Result<()> {
        let mut file = OpenOptions::new()
            .create(true)
            .truncate(true)
            .write(true)
            .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
            .open(path)?;
        file.write_all(bytes)?;
        file.sync_all()
    };
    write().map_err(|e| Error::io(path, "write", &e))
}

fn make_dir(path: &Path, tree: &Tree) -> Result<()> {
    fs::create_dir_all(path).map_err(|e| Error::io(path, "make the folder", &e))?;
    hand_over(path, tree);
    Ok(())
}

/// Let `path` belong to the owner of the tree's folder. Only root can; and when root applies, the
/// owner shall be able to build and to revert all the same.
fn hand_over(path: &Path, tree: &Tree) {
    if let (Ok(own), Ok(folder)) = (fs::symlink_metadata(path), fs::metadata(tree.root()))
        && own.uid() != folder.uid()
    {
        let _ = lchown(path, Some(folder.uid()), Some(folder.gid()));
    }
}

fn sync_dir(path: &Path) -> Result<()> {
    File::open(path).and_then(|dir| dir.sync_all()).map_err(|e| Error::io(path, "sync", &e))
}

fn remove_dir(path: &Path) -> Result<()> {
    step();
    match fs::remove_dir_all(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(Error::io(path, "remove", &e)),
        _ => Ok(()),
    }
}

fn remove_file(path: &Path) -> Result<()> {
    step();
    match fs::remove_file(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(Error::io(path, "remove", &e)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::collections::BTreeMap;
    use std::panic::{AssertUnwindSafe, catch_unwind};

    use super::*;

    thread_local! {
        /// How many steps this thread may still make; the process "is killed" at the next one.
        static STEPS: Cell<usize> = const { Cell::new(usize::MAX) };
    }

    pub(super) fn step() {
        STEPS.with(|steps| {
            let left = steps.get();
            if left == 0 {
                steps.set(usize::MAX);
                std::panic::resume_unwind(Box::new("killed"));
            }
            steps.set(left - 1);
        });
    }

    /// Run `work`, killed before its step number `steps`; whether it got to its end.
    fn killed_at(steps: usize, work: impl FnOnce()) -> bool {
        STEPS.with(|s| s.set(steps));
        let done = catch_unwind(AssertUnwindSafe(work)).is_ok();
        STEPS.with(|s| s.set(usize::MAX));
        done
    }

    struct Fixture {
        dir: tempfile::TempDir,
    }

    type Snapshot = BTreeMap<String, (Vec<u8>, u32, i64, i64)>;

    impl Fixture {
        fn new() -> Fixture {
            let dir = tempfile::tempdir().unwrap();
            for name in ["Makefile", "spawn.c", "qmail-send.c", "qmail-rspawn.c", "conf-spawn"] {
                let path = dir.path().join(name);
                fs::write(&path, format!("old {name}\n")).unwrap();
                fs::set_permissions(&path, Permissions::from_mode(0o640)).unwrap();
                let time = UNIX_EPOCH + Duration::new(900_000_000, 123_456_789);
                File::open(&path).unwrap().set_modified(time).unwrap();
            }
            Fixture { dir }
        }

        fn tree(&self) -> Tree {
            Tree::open(self.dir.path()).unwrap()
        }

        fn snapshot(&self) -> Snapshot {
            fs::read_dir(self.dir.path())
                .unwrap()
                .map(|e| e.unwrap().path())
                .filter(|p| p.is_file())
                .map(|p| {
                    let meta = fs::metadata(&p).unwrap();
                    let name = p.file_name().unwrap().to_str().unwrap().to_string();
                    let mode = meta.permissions().mode();
                    (name, (fs::read(&p).unwrap(), mode, meta.mtime(), meta.mtime_nsec()))
                })
                .collect()
        }

        fn text(&self, name: &str) -> String {
            fs::read_to_string(self.dir.path().join(name)).unwrap()
        }
    }

    fn changes(from: &str, to: &str) -> Vec<Change> {
        let mut changes: Vec<_> = ["Makefile", "spawn.c", "qmail-send.c"]
            .iter()
            .map(|name| Change {
                name: (*name).to_string(),
                old: Some(format!("{from} {name}\n").into_bytes()),
                new: format!("{to} {name}\n").into_bytes(),
            })
            .collect();
        let old = (from != "old").then(|| format!("{from} made.c\n").into_bytes());
        let new = format!("{to} made.c\n").into_bytes();
        changes.push(Change { name: "made.c".to_string(), old, new });
        changes
    }

    #[test]
    fn apply_and_revert_give_back_bytes_modes_and_times() {
        let fixture = Fixture::new();
        let before = fixture.snapshot();
        let tree = fixture.tree();
        Session::begin(&tree).unwrap().apply(&changes("old", "new")).unwrap();
        assert_eq!(fixture.text("spawn.c"), "new spawn.c\n");
        let mode = fs::metadata(fixture.dir.path().join("spawn.c")).unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, 0o640);
        Session::begin(&tree).unwrap().apply(&changes("new", "newer")).unwrap();
        assert_eq!(fixture.text("made.c"), "newer made.c\n");
        assert_eq!(
            Session::begin(&tree).unwrap().revert(LaterChanges::Keep).unwrap(),
            Reverted { put_back: 3, removed: 1 }
        );
        assert_eq!(fixture.snapshot(), before);
        assert!(!fixture.dir.path().join(STATE_DIR).exists());
    }

    /// Killed at every step of an apply, then completed by `finish`.
    fn every_interruption(
        second: bool,
        work: impl Fn(&Session<'_>),
        finish: impl Fn(&Fixture, &Snapshot),
    ) {
        for steps in 0.. {
            assert!(steps < 1000, "no end of steps");
            let fixture = Fixture::new();
            let before = fixture.snapshot();
            let tree = fixture.tree();
            if second {
                Session::begin(&tree).unwrap().apply(&changes("old", "mid")).unwrap();
                fs::write(fixture.dir.path().join("made.o"), "built").unwrap();
            }
            let done = killed_at(steps, || work(&Session::begin(&tree).unwrap()));
            finish(&fixture, &before);
            if done {
                assert!(steps > 8, "the steps are not counted: {steps}");
                return;
            }
        }
    }

    fn complete_apply(fixture: &Fixture, from: &[&str]) {
        let session_tree = fixture.tree();
        let session = Session::begin(&session_tree).unwrap();
        session.recover().unwrap();
        let now = fixture.text("spawn.c");
        let now = now.split(' ').next().unwrap();
        if now != "new" {
            assert!(from.contains(&now), "spawn.c is {now}");
            session.apply(&changes(now, "new")).unwrap();
        }
        for name in ["Makefile", "spawn.c", "qmail-send.c", "made.c"] {
            assert_eq!(fixture.text(name), format!("new {name}\n"));
        }
        assert_eq!(fixture.text("conf-spawn"), "old conf-spawn\n");
    }

    fn complete_revert(fixture: &Fixture, before: &Snapshot) {
        let tree = fixture.tree();
        // Where nothing was committed, or the revert was over, there is nothing to revert.
        let _ = Session::begin(&tree).unwrap().revert(LaterChanges::Keep);
        assert_eq!(fixture.snapshot(), *before);
        assert!(!fixture.dir.path().join(STATE_DIR).exists());
    }

    #[test]
    fn an_apply_killed_anywhere_is_completed_by_apply() {
        let apply = |session: &Session<'_>| session.apply(&changes("old", "new")).unwrap();
        every_interruption(false, apply, |fixture, _| complete_apply(fixture, &["old"]));
    }

    #[test]
    fn an_apply_killed_anywhere_is_taken_back_by_revert() {
        let apply = |session: &Session<'_>| session.apply(&changes("old", "new")).unwrap();
        every_interruption(false, apply, complete_revert);
    }

    #[test]
    fn a_second_apply_killed_anywhere_is_completed_or_taken_back() {
        let apply = |session: &Session<'_>| session.apply(&changes("mid", "new")).unwrap();
        every_interruption(true, apply, |fixture, _| complete_apply(fixture, &["mid"]));
        every_interruption(true, apply, complete_revert);
    }

    #[test]
    fn a_revert_killed_anywhere_is_completed_by_either() {
        let revert = |session: &Session<'_>| {
            session.revert(LaterChanges::Keep).unwrap();
        };
        every_interruption(true, revert, complete_revert);
        every_interruption(true, revert, |fixture, _| complete_apply(fixture, &["old", "mid"]));
        every_interruption(true, revert, |fixture, before| {
            let tree = fixture.tree();
            if Session::begin(&tree).unwrap().recover().unwrap() == Recovered::Reverted {
                assert_eq!(fixture.snapshot(), *before);
            }
        });
    }

    #[test]
    fn objects_built_from_patched_sources_are_built_again_after_a_revert() {
        let fixture = Fixture::new();
        let tree = fixture.tree();
        Session::begin(&tree).unwrap().apply(&changes("old", "new")).unwrap();
        let object = fixture.dir.path().join("spawn.o");
        fs::write(&object, "object").unwrap();
        Session::begin(&tree).unwrap().revert(LaterChanges::Keep).unwrap();
        let time =
            |name: &str| fs::metadata(fixture.dir.path().join(name)).unwrap().modified().unwrap();
        assert_eq!(fixture.text("spawn.c"), "old spawn.c\n");
        assert!(time("spawn.c") >= time("spawn.o"));
    }

    #[test]
    fn a_file_that_changes_after_it_was_read_is_kept() {
        let fixture = Fixture::new();
        let tree = fixture.tree();
        let plan = changes("old", "new");
        fs::write(fixture.dir.path().join("qmail-send.c"), "by hand\n").unwrap();
        let before = fixture.snapshot();
        let error = Session::begin(&tree).unwrap().apply(&plan).unwrap_err();
        assert!(error.to_string().contains("qmail-send.c: changed by someone else"), "{error}");
        assert_eq!(fixture.snapshot(), before);
        assert!(!fixture.dir.path().join(STATE_DIR).exists());
    }

    #[test]
    fn a_change_after_the_apply_is_not_thrown_away() {
        let fixture = Fixture::new();
        let before = fixture.snapshot();
        let tree = fixture.tree();
        Session::begin(&tree).unwrap().apply(&changes("old", "new")).unwrap();
        fs::write(fixture.dir.path().join("spawn.c"), "by hand\n").unwrap();
        let session = Session::begin(&tree).unwrap();
        let error = session.revert(LaterChanges::Keep).unwrap_err();
        assert!(error.to_string().contains("changed after qpatch applied its patches: spawn.c"));
        assert_eq!(fixture.text("spawn.c"), "by hand\n");
        assert_eq!(fixture.text("made.c"), "new made.c\n");
        fs::write(fixture.dir.path().join("made.c"), "by hand\n").unwrap();
        session.revert(LaterChanges::Discard).unwrap();
        assert!(!fixture.dir.path().join("made.c").exists());
        assert_eq!(
            fixture.snapshot().keys().collect::<Vec<_>>(),
            before.keys().collect::<Vec<_>>()
        );
        assert_eq!(fixture.text("spawn.c"), "old spawn.c\n");
    }

    #[test]
    fn a_change_between_two_applies_is_not_thrown_away() {
        let fixture = Fixture::new();
        let tree = fixture.tree();
        Session::begin(&tree).unwrap().apply(&changes("old", "new")).unwrap();
        fs::write(fixture.dir.path().join("spawn.c"), "by hand\n").unwrap();
        let mut again = changes("new", "newer");
        again[1].old = Some(b"by hand\n".to_vec());
        Session::begin(&tree).unwrap().apply(&again).unwrap();
        let error = Session::begin(&tree).unwrap().revert(LaterChanges::Keep).unwrap_err();
        assert!(error.to_string().contains("patches: spawn.c"), "{error}");
        Session::begin(&tree).unwrap().revert(LaterChanges::Discard).unwrap();
    }

    #[test]
    fn a_lost_original_stops_a_revert_before_it_begins() {
        let fixture = Fixture::new();
        let tree = fixture.tree();
        Session::begin(&tree).unwrap().apply(&changes("old", "new")).unwrap();
        let before = fixture.snapshot();
        fs::remove_file(fixture.dir.path().join(STATE_DIR).join("orig/qmail-send.c")).unwrap();
        let error = Session::begin(&tree).unwrap().revert(LaterChanges::Keep).unwrap_err();
        assert!(error.to_string().contains("the kept original is missing"), "{error}");
        assert_eq!(fixture.snapshot(), before);
    }

    #[test]
    fn a_link_put_in_after_the_apply_is_not_followed_out_of_the_tree() {
        let fixture = Fixture::new();
        let tree = fixture.tree();
        Session::begin(&tree).unwrap().apply(&changes("old", "new")).unwrap();
        let outside = tempfile::tempdir().unwrap();
        let target = outside.path().join("spawn.c");
        fs::write(&target, "new spawn.c\n").unwrap();
        let path = fixture.dir.path().join("spawn.c");
        fs::remove_file(&path).unwrap();
        std::os::unix::fs::symlink(&target, &path).unwrap();
        let error = Session::begin(&tree).unwrap().revert(LaterChanges::Keep).unwrap_err();
        assert!(error.to_string().contains("leads out of the tree"), "{error}");
        assert_eq!(fs::read_to_string(target).unwrap(), "new spawn.c\n");
    }

    #[test]
    fn a_journal_that_names_a_file_outside_is_refused() {
        let fixture = Fixture::new();
        let tree = fixture.tree();
        Session::begin(&tree).unwrap().apply(&changes("old", "new")).unwrap();
        let path = fixture.dir.path().join(STATE_DIR).join("journal.json");
        let text = fs::read_to_string(&path).unwrap().replace("\"spawn.c\"", "\"../spawn.c\"");
        fs::write(&path, text).unwrap();
        let error = Session::begin(&tree).unwrap().revert(LaterChanges::Discard).unwrap_err();
        assert!(error.to_string().contains("it names \"../spawn.c\""), "{error}");
    }

    #[test]
    fn a_hostile_state_folder_is_refused_at_once() {
        for name in ["lock", "journal.json", "orig", "new"] {
            let fixture = Fixture::new();
            let state = fixture.dir.path().join(STATE_DIR);
            fs::create_dir(&state).unwrap();
            std::os::unix::fs::symlink("/dev/zero", state.join(name)).unwrap();
            let error = Session::begin(&fixture.tree()).unwrap_err().to_string();
            assert!(error.contains(name) && error.contains("move it away"), "{error}");
        }
        let fixture = Fixture::new();
        let state = fixture.dir.path().join(STATE_DIR);
        fs::create_dir(&state).unwrap();
        let journal = r#"{"version":1,"state":"reverting","applied_at":0,"files":
            [{"name":"spawn.c","original":null,"before":null,"after":""}]}"#;
        fs::write(state.join("journal.json"), journal).unwrap();
        Session::begin(&fixture.tree()).unwrap().recover().unwrap();
        assert_eq!(fixture.text("spawn.c"), "old spawn.c\n");
    }

    #[test]
    fn one_process_at_a_time() {
        let fixture = Fixture::new();
        let tree = fixture.tree();
        let first = Session::begin(&tree).unwrap();
        let error = Session::begin(&tree).unwrap_err();
        assert!(error.to_string().contains("another qpatch is at work in this tree"));
        drop(first);
        Session::begin(&tree).unwrap();
    }
}
