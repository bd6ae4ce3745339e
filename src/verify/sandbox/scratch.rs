//! A temporary directory for proofs, which is removed with its owner. A [`Sandbox`] in it is one copy
//! of a tree, configured for one compiler and one conf-spawn.
#![forbid(unsafe_code)]

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use super::configure::{SandboxConfig, configure};
use super::copy::{copy_tree, make_dir};
use super::identity::Identity;
use super::private_tree::{Fsync, Sandbox, Supplemental, TodoLayout};
use super::settings::Settings;
use crate::sys;
use crate::verify::error::Error;

/// Whether the scratch directory outlives its owner.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Keep {
    /// Removed when the [`Scratch`] is dropped.
    #[default]
    No,
    /// Kept, so that one can look inside.
    Yes,
}

/// A temporary directory for proofs.
#[derive(Debug)]
pub struct Scratch {
    root: PathBuf,
    identity: Identity,
    keep: Keep,
}

impl Scratch {
    /// Makes the directory below `parent`, if given. Otherwise it goes below the first of
    /// `$TMPDIR`, /tmp and /var/tmp that can be written and that programs can run from. `tree` only
    /// decides which user programs run as ([`Identity::for_tree`]).
    pub fn new(tree: &Path, parent: Option<&Path>, keep: Keep) -> Result<Scratch, Error> {
        let identity = Identity::for_tree(tree)?;
        let candidates: Vec<PathBuf> = match parent {
            Some(parent) => vec![parent.to_path_buf()],
            None => std::env::var_os("TMPDIR")
                .filter(|dir| !dir.is_empty())
                .map(PathBuf::from)
                .into_iter()
                .chain([PathBuf::from("/tmp"), PathBuf::from("/var/tmp")])
                .collect(),
        };
        let mut tried = Vec::new();
        for candidate in candidates {
            match Self::make_root(&candidate, identity) {
                Ok(root) => {
                    let scratch = Scratch { root, identity, keep };
                    identity.chown(&scratch.root)?;
                    return Ok(scratch);
                }
                Err(reason) => tried.push((candidate, reason)),
            }
        }
        Err(Error::NoPlace { tried })
    }

    fn make_root(parent: &Path, identity: Identity) -> Result<PathBuf, String> {
        let parent = fs::canonicalize(parent).map_err(|error| error.to_string())?;
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"/._-+,@:=".contains(&byte);
        if !parent.as_os_str().as_encoded_bytes().iter().all(|byte| plain(*byte)) {
            return Err("qmail's Makefile cannot have this name in conf-qmail".to_owned());
        }
        if identity.changes() {
            for dir in parent.ancestors() {
                let mode = fs::metadata(dir).map_err(|error| error.to_string())?.mode();
                if mode & 0o001 == 0 {
                    return Err(format!("user {} cannot enter {}", identity.uid(), dir.display()));
                }
            }
        }
        if !sys::can_execute_from(&parent).map_err(|error| error.to_string())? {
            return Err("mounted noexec".to_owned());
        }
        tempfile::Builder::new()
            .prefix("qpatch-verify.")
            .permissions(fs::Permissions::from_mode(0o700))
            .tempdir_in(&parent)
            .map(tempfile::TempDir::keep)
            .map_err(|error| error.to_string())
    }

    /// Returns the directory.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Returns the user that programs run as.
    pub fn identity(&self) -> Identity {
        self.identity
    }

    /// Copies `tree` into a new sandbox called `name` and configures the copy. Compiles nothing.
    pub fn sandbox(
        &self,
        tree: &Path,
        name: &str,
        config: &SandboxConfig,
    ) -> Result<Sandbox, Error> {
        let settings = Settings::of_tree(tree)?;
        let base = self.root.join(name);
        let sandbox = Sandbox {
            tree: base.join("tree"),
            settings,
            home: base.join("home"),
            rig: base.join("rig"),
            identity: self.identity,
            cc: String::new(),
            asked_cc: None,
            spawn: 0,
            split: 23,
            todo: TodoLayout::Flat,
            supplemental: Supplemental::default(),
            fsync: Fsync::default(),
        };
        make_dir(&base, self.identity)?;
        copy_tree(tree, &sandbox.tree, self.identity)?;
        sandbox.settings.copy_above(tree, &base, self.identity)?;
        configure(sandbox, config)
    }

    /// Copies `tree` to a directory called `name`, so that the copy can be changed before a sandbox is
    /// made of it.
    pub fn copy(&self, tree: &Path, name: &str) -> Result<PathBuf, Error> {
        let settings = Settings::of_tree(tree)?;
        let copy = self.root.join(name);
        copy_tree(tree, &copy, self.identity)?;
        settings.copy_above(tree, &self.root, self.identity)?;
        Ok(copy)
    }

    /// Removes the directory, unless it is kept. Returns an error if that fails.
    pub fn close(mut self) -> Result<(), Error> {
        self.remove()
    }

    fn remove(&mut self) -> Result<(), Error> {
        if self.keep == Keep::Yes {
            return Ok(());
        }
        // Only once, whatever happens: afterwards the name could belong to someone else.
        self.keep = Keep::Yes;
        fs::remove_dir_all(&self.root).map_err(Error::file("remove", &self.root))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = self.remove();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scratch_leaves_nothing_behind() {
        let scratch = Scratch::new(Path::new("/"), None, Keep::No).expect("scratch");
        let root = scratch.root().to_path_buf();
        fs::write(root.join("file"), "x").expect("write");
        assert!(root.exists());
        drop(scratch);
        assert!(!root.exists());
    }
}
