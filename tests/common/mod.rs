//! Helpers for several test files.
#![allow(dead_code, unreachable_pub)]

use std::collections::BTreeMap;
use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use qpatch::fixture::Dialect;
use qpatch_test_support::{copy_program, is_root};
use tempfile::TempDir;

/// Compiles the driver `tests/c/NAME.c`, which includes files of the patch in `patches/PATCH`, with sanitizers.
pub fn sanitized_driver(dir: &TempDir, name: &str, patch: &str) -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let program = dir.path().join(name);
    let mut compile = Command::new(std::env::var("CC").unwrap_or_else(|_| "cc".into()));
    compile
        .args(["-std=gnu89", "-O1", "-Wall", "-Wextra", "-Werror", "-g"])
        .args(["-fsanitize=address,undefined", "-fno-sanitize-recover=all"])
        .arg("-I")
        .arg(root.join("tests/c"))
        .arg("-I")
        .arg(root.join("patches").join(patch))
        .arg(root.join("tests/c").join(name).with_extension("c"))
        .arg("-o")
        .arg(&program);
    run(&mut compile).ok();
    program
}

/// A fixture tree in a folder of its own.
pub struct Fixture {
    pub dir: TempDir,
}

impl Fixture {
    pub fn new(dialect: Dialect) -> Fixture {
        let dir = tempfile::tempdir().unwrap();
        dialect.write(dir.path()).unwrap();
        Fixture { dir }
    }

    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    pub fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path().join(name)).unwrap()
    }

    pub fn write(&self, name: &str, text: &str) {
        fs::write(self.path().join(name), text).unwrap();
    }

    /// Replaces `from`, which must be in the file, with `to`.
    pub fn replace(&self, name: &str, from: &str, to: &str) {
        let text = self.read(name);
        assert!(text.contains(from), "{name} has no {from:?}");
        self.write(name, &text.replace(from, to));
    }

    pub fn qpatch(&self, args: &[&str]) -> Run {
        let mut all = args.to_vec();
        let path = self.path().to_str().unwrap();
        all.push(path);
        qpatch(&all)
    }

    pub fn snapshot(&self) -> Snapshot {
        snapshot(self.path())
    }
}

/// The bytes, mode and modification time (seconds, nanoseconds) of each file by name, including those in `.qpatch`.
pub type Snapshot = BTreeMap<PathBuf, (Vec<u8>, u32, i64, i64)>;

pub fn snapshot(root: &Path) -> Snapshot {
    let mut found = Snapshot::new();
    let mut open = vec![root.to_path_buf()];
    while let Some(dir) = open.pop() {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            let meta = fs::symlink_metadata(&path).unwrap();
            if meta.is_dir() {
                open.push(path);
                continue;
            }
            let bytes = if meta.is_file() { fs::read(&path).unwrap() } else { Vec::new() };
            let name = path.strip_prefix(root).unwrap().to_path_buf();
            found.insert(name, (bytes, meta.permissions().mode(), meta.mtime(), meta.mtime_nsec()));
        }
    }
    found
}

/// Returns only the names and bytes of a snapshot, without `.qpatch`.
pub fn bytes(snapshot: &Snapshot) -> BTreeMap<&Path, &[u8]> {
    snapshot
        .iter()
        .filter(|(name, _)| !name.starts_with(".qpatch"))
        .map(|(name, (bytes, ..))| (name.as_path(), bytes.as_slice()))
        .collect()
}

/// The result of a run of a program.
pub struct Run {
    pub code: i32,
    pub out: String,
    pub err: String,
}

impl Run {
    pub fn ok(self) -> Run {
        assert_eq!(self.code, 0, "{}{}", self.out, self.err);
        self
    }
}

pub fn qpatch(args: &[&str]) -> Run {
    run(Command::new(env!("CARGO_BIN_EXE_qpatch")).args(args))
}

/// The trees in the folder that QMAIL_TREES names, by name. None without it, which no machine of the check has: that is
/// said, and is no failure.
pub fn real_trees() -> Vec<PathBuf> {
    let Some(dir) = std::env::var_os("QMAIL_TREES") else {
        qpatch_test_support::tell("skipped: QMAIL_TREES is not set");
        return Vec::new();
    };
    let entries = fs::read_dir(&dir).unwrap_or_else(|e| panic!("QMAIL_TREES: {e}"));
    let mut trees: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    trees.retain(|path| path.is_dir());
    trees.sort();
    assert!(!trees.is_empty(), "QMAIL_TREES: no folder in {}", dir.display());
    trees
}

/// A copy of a tree, with its modes and times.
pub fn copy(tree: &Path) -> (TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let to = dir.path().join("tree");
    run(Command::new("cp").arg("-a").arg(tree).arg(&to)).ok();
    (dir, to)
}

pub fn run(command: &mut Command) -> Run {
    let Output { status, stdout, stderr } =
        command.output().unwrap_or_else(|e| panic!("{command:?}: {e}"));
    Run {
        code: status.code().unwrap_or(-1),
        out: String::from_utf8(stdout).unwrap(),
        err: String::from_utf8(stderr).unwrap(),
    }
}

/// The user that root becomes where permissions shall stop a program.
const USER: u32 = 65534;

/// Runs `command`, a qpatch that works in `dir`, as a user who is not root. `dir` belongs to root then, if this process
/// is root's, and so the user may write nothing there.
pub fn run_as_user(command: &mut Command, dir: &Path) -> Run {
    if !is_root() {
        return run(command);
    }
    // The user may not get to where cargo has built the program.
    let program = dir.join("qpatch");
    copy_program(Path::new(command.get_program()), &program);
    fs::set_permissions(&program, Permissions::from_mode(0o755)).unwrap();
    fs::set_permissions(dir, Permissions::from_mode(0o755)).unwrap();
    let mut by_user = Command::new(&program);
    by_user.args(command.get_args()).uid(USER).gid(USER).current_dir(dir);
    let run = run(&mut by_user);
    fs::remove_file(program).unwrap();
    run
}
