//! The only code that writes a qmail tree. (verify reads one as well: it works on a copy.)
//!
//! [`Tree`] recognises a tree and reads it. [`plan`] works out in memory what the patches change.
//! [`journal`] writes that to disk, or reverts it. A process that is killed at any moment leaves a
//! tree that the next `apply` or `revert` completes.

#![forbid(unsafe_code)]

pub mod diff;
pub mod journal;
pub mod plan;

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use crate::engine::function::functions;
use crate::engine::lex::{Lang, Source, TokenKind};
use crate::engine::rule::Parameters;
use crate::error::{Error, Result};
use crate::qmail::conf_line;

/// The largest file that qpatch reads, in bytes. The largest source of any known qmail is 120 KiB.
pub const MAX_FILE: u64 = 8 << 20;

/// The folder in a tree that has all of qpatch's state.
pub const STATE_DIR: &str = ".qpatch";

/// The files that make a folder a qmail source tree.
pub(crate) const MARKS: [&str; 4] = ["Makefile", "spawn.c", "qmail-send.c", "qmail-rspawn.c"];

/// A folder with the sources of qmail.
#[derive(Debug)]
pub struct Tree {
    root: PathBuf,
    /// Names of the regular files directly in it, of links to such files inside the tree, and of
    /// `above`.
    names: BTreeSet<String>,
    /// Names of the conf-* files one folder up that the Makefile refers to (`../conf-spawn`, as in
    /// s/qmail).
    above: BTreeSet<String>,
}

impl Tree {
    /// Opens the qmail source tree in the folder `root`.
    ///
    /// # Errors
    /// If `root` is not a folder, or does not have the files of a qmail tree. If a folder
    /// below it has them, the error names that folder.
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

    /// Returns the tree's folder, as an absolute path without links.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Returns the names of the files that a patch may refer to.
    #[must_use]
    pub fn names(&self) -> &BTreeSet<String> {
        &self.names
    }

    /// Returns whether `name` is a conf-* file one folder up that the Makefile refers to.
    #[must_use]
    pub fn is_above(&self, name: &str) -> bool {
        self.above.contains(name)
    }

    /// Returns the path of the file `name`, which need not exist. Does not follow links.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        let folder = if self.is_above(name) { self.root.parent() } else { None };
        folder.unwrap_or(&self.root).join(name)
    }

    /// Returns `name` as seen from the tree's folder, for people: `../conf-spawn` for a file one
    /// folder up.
    #[must_use]
    pub fn shown(&self, name: &str) -> String {
        if self.is_above(name) { format!("../{name}") } else { name.to_string() }
    }

    /// Returns the bytes of the files whose names end in `end`. Skips unreadable files.
    fn sources<'a>(&'a self, end: &'a str) -> impl Iterator<Item = Vec<u8>> + 'a {
        let names = self.names.iter().filter(move |n| n.ends_with(end));
        names.filter_map(|name| self.read(name).ok())
    }

    /// Returns the bytes of the file `name`.
    ///
    /// # Errors
    /// If it cannot be read, is larger than [`MAX_FILE`], or leads out of the tree.
    pub fn read(&self, name: &str) -> Result<Vec<u8>> {
        read_file(&self.resolve(name)?)
    }

    /// Returns the bytes of a file outside the tree, if `name` is a link to one.
    pub(crate) fn read_outside(&self, name: &str) -> Option<Vec<u8>> {
        let real = self.root.join(name).canonicalize().ok()?;
        let file = !real.starts_with(&self.root) && real.is_file();
        file.then(|| read_file(&real).ok()).flatten()
    }

    /// Returns the file that `name` stands for. Follows links.
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

    /// Checks that the permissions of `name` let it be replaced. This counts for root, too.
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

/// Returns the conf-* files one folder up from `root` that `makefile` names.
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

/// Returns the names of the regular files in `root`, and of links that may lead to one.
fn file_names(root: &Path) -> Result<BTreeSet<String>> {
    let mut names = BTreeSet::new();
    for entry in fs::read_dir(root).map_err(|e| Error::io(root, "list the folder", &e))? {
        let entry = entry.map_err(|e| Error::io(root, "list the folder", &e))?;
        let kind = entry.file_type().map_err(|e| Error::io(&entry.path(), "read", &e))?;
        let file = kind.is_file() || (kind.is_symlink() && !entry.path().is_dir());
        if let (true, Ok(name)) = (file, entry.file_name().into_string()) {
            // Skip dot files, as a shell's `*.c` does: what editors and other systems leave
            // (`.#spawn.c`, a dangling link; `._spawn.c`) is not a source.
            if !name.starts_with('.') {
                names.insert(name);
            }
        }
    }
    Ok(names)
}

/// Returns a folder one or two levels below `root` that is a qmail source tree.
fn below(root: &Path) -> Option<PathBuf> {
    let folders = |path: &Path| -> Vec<PathBuf> {
        let Ok(entries) = fs::read_dir(path) else { return Vec::new() };
        let mut found: Vec<_> = entries
            .flatten()
            .filter(|e| e.file_type().is_ok_and(|t| t.is_dir()))
            // Hidden folders are someone's copies and backups.
            .filter(|e| !e.file_name().as_encoded_bytes().starts_with(b"."))
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
    /// Returns the parameters for the rules: the future conf-spawn, and what this tree shows.
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

/// Returns whether a header defines an object (`int sig_alarm;` without `extern`). Then every file
/// that includes it defines one, and since gcc 10 and clang 11 they no longer link.
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
            TokenKind::Directive => in_directive = true,
            TokenKind::LineEnd => in_directive = false,
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

/// Returns whether the sources use C from before 1999: K&R definitions, implicit `int`.
fn is_old_style(tree: &Tree) -> bool {
    let old = |bytes: Vec<u8>| functions(&Source::new(Lang::C, &bytes)).iter().any(|f| f.old_style);
    tree.sources(".c").any(old)
}

/// Returns whether a source that connects to remote servers binds the connections to a local
/// address, as patches for outgoing addresses do.
fn binds_outgoing(tree: &Tree) -> bool {
    const SOURCES: [&str; 3] = ["timeoutconn.c", "qmail-remote.c", "qmail-smtpam.c"];
    let binds = |bytes: Vec<u8>| {
        let c = Source::new(Lang::C, &bytes);
        (0..c.tokens.len().saturating_sub(1)).any(|at| {
            let called =
                c.is(at, TokenKind::Ident, "bind") || c.is(at, TokenKind::Ident, "bind_noport");
            called && c.is(at + 1, TokenKind::Punct, "(")
        })
    };
    SOURCES.iter().filter_map(|name| tree.read(name).ok()).any(binds)
}

/// Returns whether old sources are compiled with flags that a command in conf-cc prints, such as
/// Debian's dpkg-buildflags. The command is not run: its output depends on the day and the
/// environment.
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
