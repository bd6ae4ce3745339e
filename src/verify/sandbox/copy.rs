//! Copies a tree into the scratch directory of a proof. [`crate::verify::build`] then builds the copy.
#![forbid(unsafe_code)]

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use super::identity::Identity;
use super::makefile::targets;
use super::process;
use crate::engine::makefile::includes_another;
use crate::sys;
use crate::verify::error::Error;

/// Larger than any qmail tree (with its objects a few tens of megabytes), so that a wrong directory
/// is noticed before it is copied.
const MAX_BYTES: u64 = 1 << 30;
const MAX_FILES: u64 = 100_000;

/// Copies the sources of a tree, with modes and times. Leaves out what make has built, and version
/// control.
pub(super) fn copy_tree(from: &Path, to: &Path, identity: Identity) -> Result<(), Error> {
    let built: BTreeSet<String> = match fs::read(from.join("TARGETS")) {
        Ok(list) => String::from_utf8_lossy(&list).split_whitespace().map(str::to_owned).collect(),
        Err(_) => BTreeSet::new(),
    };
    let from = fs::canonicalize(from).map_err(Error::file("look at", from))?;
    let rules = targets(&from)?;
    let makefile = fs::read(from.join("Makefile")).unwrap_or_default();
    let all_rules = !includes_another(&makefile);
    let mut copier =
        Copier { root: from.clone(), built, rules, all_rules, identity, bytes: 0, files: 0 };
    copier.directory(&from, to)
}

struct Copier {
    root: PathBuf,
    built: BTreeSet<String>,
    rules: BTreeSet<String>,
    /// The Makefile does not include another one.
    all_rules: bool,
    identity: Identity,
    bytes: u64,
    files: u64,
}

impl Copier {
    fn directory(&mut self, from: &Path, to: &Path) -> Result<(), Error> {
        fs::create_dir(to).map_err(Error::file("make", to))?;
        for entry in fs::read_dir(from).map_err(Error::file("read", from))? {
            let entry = entry.map_err(Error::file("read", from))?;
            if sys::stop_signal().is_some() {
                return Err(process::interrupted());
            }
            self.entry(from, &entry.file_name(), to)?;
        }
        self.identity.chown(to)
    }

    fn entry(
        &mut self,
        from_dir: &Path,
        name: &std::ffi::OsStr,
        to_dir: &Path,
    ) -> Result<(), Error> {
        let (from, to) = (from_dir.join(name), to_dir.join(name));
        let text = name.to_string_lossy();
        if [".git", ".hg", ".svn", ".qpatch", "CVS"].contains(&text.as_ref()) {
            return Ok(());
        }
        // Follow links: the target may be outside the tree, and make sees its contents.
        let metadata = match fs::metadata(&from) {
            Ok(metadata) => metadata,
            // A dangling link counts as no file. So does a file that was removed meanwhile.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(Error::file("look at", &from)(error)),
        };
        if metadata.is_dir() {
            let real = fs::canonicalize(&from).map_err(Error::file("look at", &from))?;
            // A link to a parent directory would be copied for ever.
            if from.starts_with(&real) && from != real {
                return Ok(());
            }
            return self.directory(&from, &to);
        }
        if !metadata.is_file() || self.is_built(from_dir, &text) {
            return Ok(());
        }
        self.files += 1;
        self.bytes += metadata.len();
        if self.files > MAX_FILES || self.bytes > MAX_BYTES {
            return Err(Error::Tree(crate::error::Error::new(
                self.root.display(),
                "too large to be a qmail source tree",
                "name the folder that holds qmail's Makefile and spawn.c, and nothing else",
            )));
        }
        fs::copy(&from, &to).map_err(Error::file("copy", &from))?;
        let mode = metadata.permissions().mode() | 0o600;
        fs::set_permissions(&to, fs::Permissions::from_mode(mode & 0o777))
            .map_err(Error::file("set the mode of", &to))?;
        let file = fs::File::options().write(true).open(&to).map_err(Error::file("open", &to))?;
        let modified = metadata.modified().map_err(Error::file("look at", &from))?;
        file.set_modified(modified).map_err(Error::file("set the time of", &to))?;
        self.identity.chown(&to)
    }

    /// Returns whether a file is left out. Left out are the files that `make clean` would remove
    /// (qmail trees list them in TARGETS), and objects and archives that the Makefile makes: they
    /// were built for other settings and would be in the way. An archive that it does not make came
    /// with the tree, as the gate does.
    fn is_built(&self, dir: &Path, name: &str) -> bool {
        if dir != self.root {
            return name.ends_with(".o");
        }
        let object = name.ends_with(".o") || name.ends_with(".a");
        let is_made = self.rules.contains(name);
        // Some forks ship auto_uids.c and have dropped its rule, but still list it in TARGETS.
        let is_listed =
            self.built.contains(name) && (is_made || !self.all_rules || !name.ends_with(".c"));
        is_listed || (object && is_made)
    }
}

pub(super) fn make_dir(path: &Path, identity: Identity) -> Result<(), Error> {
    fs::create_dir_all(path).map_err(Error::file("make", path))?;
    identity.chown(path)
}
