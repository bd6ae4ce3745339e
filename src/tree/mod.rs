//! The only code that reads or writes a qmail tree.
//!
//! [`Tree`] recognises a tree and reads it; [`plan`] works out in memory what the patches change;
//! [`journal`] writes that to disk, or takes it back, such that a process killed at any moment
//! leaves a tree that the next `apply` or `revert` completes.

#![forbid(unsafe_code)]

pub mod diff;
pub mod journal;
pub mod plan;

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use crate::engine::function::functions;
use crate::engine::lex::{Kind, Lang, Source};
use crate::engine::rule::Parameters;
use crate::error::{Error, Result};
use crate::qmail::conf_line;

/// The largest file that is read, in bytes. The largest source of any known qmail is 120 KiB.
pub const MAX_FILE: u64 = 8 << 20;

/// The folder in a tree that holds all of qpatch's state.
pub const STATE_DIR: &str = ".qpatch";

/// Files without which a folder is not a qmail source tree.
pub(crate) const MARKS: [&str; 4] = ["Makefile", "spawn.c", "qmail-send.c", "qmail-rspawn.c"];

/// A folder with the sources of a qmail.
#[derive(Debug)]
pub struct Tree {
    root: PathBuf,
    /// Names of the regular files directly in it, and of links to such files inside the tree, and those of `above`.
    names: BTreeSet<String>,
    /// Names of the conf-* files that lie one folder up, where the Makefile looks for them (`../conf-spawn`, as in
    /// s/qmail).
    above: BTreeSet<String>,
}

impl Tree {
    /// Recognise the qmail source tree in the folder `root`.
    ///
    /// # Errors
    /// If it is no folder, or has not the files that make a qmail; if a folder below it has them,
    /// the error names that one.
    pub fn open(root: &Path) -> Result<Tree> {
        let root = root.canonicalize().map_err(|e| Error::io(root, "open the tree", &e))?;
        if !root.is_dir() {
            return Err(Error::new(
                root.display(),
                "not a folder",
                "name the folder that holds qmail's Makefile and spawn.c",
            ));
        }
        let mut names = file_names(&root)?;
        let missing: Vec<_> = MARKS.iter().filter(|m| !names.contains(**m)).copied().collect();
        if !missing.is_empty() {
            let help = match below(&root) {
                Some(inner) => format!("did you mean {}?", inner.display()),
                None => "name the folder that holds qmail's Makefile and spawn.c".to_string(),
            };
            return Err(Error::new(
                root.display(),
                format!("not a qmail source tree: it has no {}", missing.join(", no ")),
                help,
            ));
        }
        let mut tree = Tree { root, names: BTreeSet::new(), above: BTreeSet::new() };
        let makefile = read_file(&tree.root.join("Makefile")).unwrap_or_default();
        tree.above = confs_above(&tree.root, &makefile);
        tree.above.retain(|name| !names.contains(name));
        names.extend(tree.above.iter().cloned());
        tree.names = names;
        Ok(tree)
    }

    /// The tree's folder, absolute and without links.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Names of the files that a patch may speak of.
    #[must_use]
    pub fn names(&self) -> &BTreeSet<String> {
        &self.names
    }

    /// Whether `name` is a conf-* file that lies one folder up, where the Makefile looks for it.
    #[must_use]
    pub fn is_above(&self, name: &str) -> bool {
        self.above.contains(name)
    }

    /// Where the file `name` is, or would be; links are not followed.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        let folder = if self.is_above(name) { self.root.parent() } else { None };
        folder.unwrap_or(&self.root).join(name)
    }

    /// `name` as it is seen from the tree's folder, for people: `../conf-spawn` where it lies one folder up.
    #[must_use]
    pub fn shown(&self, name: &str) -> String {
        if self.is_above(name) { format!("../{name}") } else { name.to_string() }
    }

    /// The bytes of the files whose names end in `end`, without those that cannot be read.
    fn sources<'a>(&'a self, end: &'a str) -> impl Iterator<Item = Vec<u8>> + 'a {
        let names = self.names.iter().filter(move |n| n.ends_with(end));
        names.filter_map(|name| self.read(name).ok())
    }

    /// The bytes of the file `name`.
    ///
    /// # Errors
    /// If it cannot be read, is larger than [`MAX_FILE`], or leads out of the tree.
    pub fn read(&self, name: &str) -> Result<Vec<u8>> {
        read_file(&self.resolve(name)?)
    }

    /// The bytes of the file outside the tree that the link `name` leads to, if that is what
    /// `name` is.
    pub(crate) fn read_outside(&self, name: &str) -> Option<Vec<u8>> {
        let real = self.root.join(name).canonicalize().ok()?;
        let file = !real.starts_with(&self.root) && real.is_file();
        file.then(|| read_file(&real).ok()).flatten()
    }

    /// The file that `name` stands for, links followed.
    ///
    /// # Errors
    /// If a link leads out of the tree, or to nothing.
    pub fn resolve(&self, name: &str) -> Result<PathBuf> {
        let path = self.path(name);
        let real = path.canonicalize().map_err(|e| Error::io(&path, "read", &e))?;
        let inside = if self.is_above(name) { self.root.parent() } else { Some(&*self.root) };
        if !inside.is_some_and(|inside| real.starts_with(inside)) {
            return Err(Error::new(
                path.display(),
                format!("a symbolic link that leads out of the tree, to {}", real.display()),
                "replace the link by a copy of the file; qpatch changes only files in the tree",
            ));
        }
        Ok(real)
    }

    /// Check that `name` may be replaced: its own permissions say so, also to root.
    ///
    /// # Errors
    /// If the file or its folder is read-only, or the file leads out of the tree.
    pub fn check_writable(&self, name: &str) -> Result<()> {
        let path = self.resolve(name)?;
        for (path, help) in [
            (path.as_path(), "make the file writable"),
            (path.parent().unwrap_or(&self.root), "make the folder writable"),
        ] {
            let mode =
                fs::metadata(path).map_err(|e| Error::io(path, "read", &e))?.permissions().mode();
            if mode & 0o200 == 0 {
                return Err(Error::new(
                    path.display(),
                    format!("read-only (mode {:04o})", mode & 0o7777),
                    format!("{help} (chmod u+w), then run qpatch again"),
                ));
            }
        }
        Ok(())
    }
}

fn read_file(path: &Path) -> Result<Vec<u8>> {
    let size = fs::metadata(path).map_err(|e| Error::io(path, "read", &e))?.len();
    if size > MAX_FILE {
        return Err(Error::new(
            path.display(),
            format!("{size} bytes; a file of a qmail tree has at most {MAX_FILE}"),
            "this is not the source file that its name says; unpack the tree again",
        ));
    }
    fs::read(path).map_err(|e| Error::io(path, "read", &e))
}

/// The conf-* files one folder up from `root` that `makefile` names.
fn confs_above(root: &Path, makefile: &[u8]) -> BTreeSet<String> {
    let Some(parent) = root.parent() else { return BTreeSet::new() };
    let text = String::from_utf8_lossy(makefile);
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    text.split("../conf-")
        .skip(1)
        .map(|rest| format!("conf-{}", rest.split(|c| !plain(c)).next().unwrap_or_default()))
        .filter(|name| parent.join(name).is_file())
        .collect()
}

/// Names of the regular files in `root`, and of links that may lead to one.
fn file_names(root: &Path) -> Result<BTreeSet<String>> {
    let mut names = BTreeSet::new();
    for entry in fs::read_dir(root).map_err(|e| Error::io(root, "list the folder", &e))? {
        let entry = entry.map_err(|e| Error::io(root, "list the folder", &e))?;
        let kind = entry.file_type().map_err(|e| Error::io(&entry.path(), "read", &e))?;
        let file = kind.is_file() || (kind.is_symlink() && !entry.path().is_dir());
        if let (true, Ok(name)) = (file, entry.file_name().into_string()) {
            // As for a shell's `*.c`: what editors and other systems leave there (`.#spawn.c`, a
            // dangling link; `._spawn.c`) is no source.
            if !name.starts_with('.') {
                names.insert(name);
            }
        }
    }
    Ok(names)
}

/// A folder one or two levels below `root` that is a qmail source tree.
fn below(root: &Path) -> Option<PathBuf> {
    let folders = |path: &Path| -> Vec<PathBuf> {
        let Ok(entries) = fs::read_dir(path) else { return Vec::new() };
        let mut found: Vec<_> = entries
            .flatten()
            .filter(|e| e.file_type().is_ok_and(|t| t.is_dir()))
            .map(|e| e.path())
            .take(200)
            .collect();
        found.sort();
        found
    };
    let is_tree = |path: &PathBuf| MARKS.iter().all(|m| path.join(m).is_file());
    let first = folders(root);
    first
        .iter()
        .find(|p| is_tree(p))
        .cloned()
        .or_else(|| first.iter().flat_map(|p| folders(p)).find(is_tree))
}

impl Tree {
    /// What the rules want to know of this tree, beside the conf-spawn that it is to get.
    #[must_use]
    pub fn parameters(&self, spawn: Option<u32>) -> Parameters {
        let mut parameters = Parameters::new();
        parameters.extend(spawn.map(|spawn| ("spawn".to_string(), spawn.to_string())));
        if is_old_style(self) {
            parameters.insert("old-style".to_string(), String::new());
        }
        if has_definitions_in_headers(self) {
            parameters.insert("definitions-in-headers".to_string(), String::new());
        }
        if has_flags_from_elsewhere(self) {
            parameters.insert("flags-from-elsewhere".to_string(), String::new());
        }
        if binds_outgoing(self) {
            parameters.insert("binds-outgoing".to_string(), String::new());
        }
        parameters
    }
}

/// Whether a header defines an object (`int sig_alarm;` without `extern`). Every file that includes
/// it then has one, and since gcc 10 and clang 11 they no longer link into one.
fn has_definitions_in_headers(tree: &Tree) -> bool {
    tree.sources(".h").any(|bytes| defines_objects(&bytes))
}

fn defines_objects(header: &[u8]) -> bool {
    const TYPES: [&[u8]; 6] = [b"int", b"unsigned", b"long", b"short", b"char", b"stralloc"];
    let source = Source::new(Lang::C, header);
    let mut depth = 0usize;
    let mut in_directive = false;
    let mut statement: Vec<usize> = Vec::new();
    for (i, token) in source.tokens.iter().enumerate() {
        match token.kind {
            Kind::Directive => in_directive = true,
            Kind::LineEnd => in_directive = false,
            _ if in_directive => {}
            _ => match &*source.text(i) {
                b"{" => depth += 1,
                b"}" => depth = depth.saturating_sub(1),
                b";" if depth == 0 => {
                    let starts =
                        statement.first().is_some_and(|&t| TYPES.contains(&&*source.text(t)));
                    let calls = statement.iter().any(|&t| &*source.text(t) == b"(");
                    if starts && statement.len() > 1 && !calls {
                        return true;
                    }
                    statement.clear();
                }
                _ => statement.push(i),
            },
        }
    }
    false
}

/// Whether the sources are written in the C before 1999: K&R definitions, implicit `int`.
fn is_old_style(tree: &Tree) -> bool {
    let old = |bytes: Vec<u8>| functions(&Source::new(Lang::C, &bytes)).iter().any(|f| f.old_style);
    tree.sources(".c").any(old)
}

/// Whether a source that connects to servers of others binds these connections to an address of the
/// host, as patches for outgoing addresses do.
fn binds_outgoing(tree: &Tree) -> bool {
    const SOURCES: [&str; 3] = ["timeoutconn.c", "qmail-remote.c", "qmail-smtpam.c"];
    let binds = |bytes: Vec<u8>| {
        let c = Source::new(Lang::C, &bytes);
        (0..c.tokens.len().saturating_sub(1)).any(|at| {
            let called = c.is(at, Kind::Ident, "bind") || c.is(at, Kind::Ident, "bind_noport");
            called && c.is(at + 1, Kind::Punct, "(")
        })
    };
    SOURCES.iter().filter_map(|name| tree.read(name).ok()).any(binds)
}

/// Whether old sources are compiled with flags that only a command in conf-cc knows, as Debian's
/// dpkg-buildflags. It is not asked: what it gives depends on the day and the environment.
fn has_flags_from_elsewhere(tree: &Tree) -> bool {
    let conf_cc = tree.read("conf-cc").unwrap_or_default();
    let conf_cc = String::from_utf8_lossy(&conf_cc);
    let line = conf_cc.lines().next().unwrap_or_default();
    conf_line::has_flags_from_elsewhere(line) && is_old_style(tree)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_defines_an_object() {
        for header in ["int sig_alarm;\n", "#ifndef X\n#define X\nunsigned long a;\n#endif\n"] {
            assert!(defines_objects(header.as_bytes()), "{header}");
        }
        for header in [
            "extern int a;\n",
            "int f();\nextern int g(int);\n",
            "typedef unsigned int u;\nstruct s { int a; };\nint (*h)();\n",
            "#define X int a;\n",
            "",
        ] {
            assert!(!defines_objects(header.as_bytes()), "{header}");
        }
    }
}
