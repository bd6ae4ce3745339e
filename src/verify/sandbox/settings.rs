//! Checks whether verify can build a tree, and finds the settings that verify changes in its copy.
#![forbid(unsafe_code)]

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use super::identity::Identity;
use crate::tree::Tree;
use crate::verify::error::Error;

/// The conf-* files by which a Makefile can give the programs qmail's home; s/qmail uses conf-home.
const HOMES: [&str; 2] = ["conf-qmail", "conf-home"];

/// Checks that `tree` is a qmail source tree that verify can build.
pub fn check_tree(tree: &Path) -> Result<(), Error> {
    Settings::of_tree(tree).map(|_| ())
}

/// The places of the settings that verify changes in its copy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Settings {
    /// The file that has qmail's home.
    pub(super) home: &'static str,
    /// The conf-* files that are one folder up.
    pub(super) above: BTreeSet<String>,
}

impl Settings {
    /// Reads the settings of a tree. Recognises it as every other command does: see [`Tree::open`].
    pub(super) fn of_tree(path: &Path) -> Result<Settings, Error> {
        let tree = Tree::open(path).map_err(Error::Tree)?;
        let no = |why: String| Error::NotBuilt { tree: path.to_path_buf(), why };
        for name in ["conf-spawn", "conf-cc", "conf-ld"] {
            if !tree.names().contains(name) {
                return Err(no(missing(&tree, name)));
            }
        }
        let makefile = tree.read("Makefile").map_err(Error::Tree)?;
        let makefile = String::from_utf8_lossy(&makefile);
        let Some(home) = HOMES.into_iter().find(|name| makefile.contains(name)) else {
            let names = HOMES.join(" nor ");
            return Err(no(format!(
                "its Makefile names neither {names}, so the copy cannot get a qmail home of its own"
            )));
        };
        if !tree.names().contains(home) {
            return Err(no(missing(&tree, home)));
        }
        let above = tree.names().iter().filter(|name| tree.is_above(name)).cloned().collect();
        Ok(Settings { home, above })
    }

    /// Copies the conf-* files one folder up from `tree` to the folder `to`.
    pub(super) fn copy_above(
        &self,
        tree: &Path,
        to: &Path,
        identity: Identity,
    ) -> Result<(), Error> {
        let tree = Tree::open(tree).map_err(Error::Tree)?;
        for name in &self.above {
            let bytes = tree.read(name).map_err(Error::Tree)?;
            let path = to.join(name);
            fs::write(&path, bytes).map_err(Error::file("write", &path))?;
            identity.chown(&path)?;
        }
        Ok(())
    }
}

/// Returns the message that `tree` has no `name`, with the script or template that makes it, if
/// known.
fn missing(tree: &Tree, name: &str) -> String {
    let template = format!("{name}.in");
    let is_script = |script: &&String| script.ends_with("configure") || script.ends_with(".sh");
    let script = tree.names().iter().filter(is_script).find(|script| {
        let text = tree.read(script).unwrap_or_default();
        let wanted = if tree.names().contains(&template) { &template } else { name };
        memchr::memmem::find(&text, wanted.as_bytes()).is_some()
    });
    match script {
        Some(script) => format!("it has no {name}, which its {script} makes: run that first"),
        None if tree.names().contains(&template) => {
            format!("it has no {name}, only {template}: make it from that first")
        }
        None => format!("it has no {name}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::verify::sandbox::scratch::{Keep, Scratch};

    #[test]
    fn a_directory_that_is_no_tree_is_named_with_what_it_lacks() {
        let scratch = Scratch::new(Path::new("/"), None, Keep::No).expect("scratch");
        let error = check_tree(scratch.root()).expect_err("empty directory");
        assert!(
            error.to_string().contains("not a qmail source tree: it has no Makefile"),
            "{error}"
        );
    }
}
