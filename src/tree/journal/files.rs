//! System calls that change something. A test can interrupt each of them.

#![forbid(unsafe_code)]

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, lchown};
use std::path::Path;

use crate::error::{Error, Result};
use crate::tree::Tree;

/// Runs before each system call that changes something, so that tests can interrupt there.
pub(super) fn step() {
    #[cfg(test)]
    interrupt::step();
}

pub(super) fn write_synced(path: &Path, bytes: &[u8]) -> Result<()> {
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

pub(super) fn make_dir(path: &Path, tree: &Tree) -> Result<()> {
    fs::create_dir_all(path).map_err(|e| Error::io(path, "make the folder", &e))?;
    hand_over(path, tree);
    Ok(())
}

/// Gives `path` to the owner of the tree's folder. Only root can do this: when root applies the
/// patches, the owner must still be able to build and to revert.
pub(super) fn hand_over(path: &Path, tree: &Tree) {
    if let (Ok(own), Ok(folder)) = (fs::symlink_metadata(path), fs::metadata(tree.root()))
        && own.uid() != folder.uid()
    {
        let _ = lchown(path, Some(folder.uid()), Some(folder.gid()));
    }
}

pub(super) fn sync_dir(path: &Path) -> Result<()> {
    File::open(path).and_then(|dir| dir.sync_all()).map_err(|e| Error::io(path, "sync", &e))
}

pub(super) fn remove_dir(path: &Path) -> Result<()> {
    step();
    match fs::remove_dir_all(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(Error::io(path, "remove", &e)),
        _ => Ok(()),
    }
}

pub(super) fn remove_file(path: &Path) -> Result<()> {
    step();
    match fs::remove_file(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(Error::io(path, "remove", &e)),
        _ => Ok(()),
    }
}

#[cfg(test)]
pub(super) mod interrupt {
    use std::cell::Cell;

    thread_local! {
        /// The steps that this thread may still make. At the next one the process "is killed".
        pub(in crate::tree::journal) static STEPS: Cell<usize> = const { Cell::new(usize::MAX) };
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
}
