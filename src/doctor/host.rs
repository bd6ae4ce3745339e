//! The machine that doctor looks at: its files below a root, so that a test can imitate a machine in a folder, and its
//! programs.
#![forbid(unsafe_code)]

use std::fmt;
use std::fs;
use std::io::Read as _;
use std::path::{Component, Path, PathBuf};

use crate::qmail::control::{NotOpened, open_regular};

/// A fact about the machine, or the reason why it could not be seen.
pub type Fact<T> = Result<T, String>;

/// Runs a program and returns what it printed.
pub type Runner<'h> = &'h dyn Fn(&Path, &[&str], &str) -> Result<String, String>;

/// The most bytes that are read of a file. Every script, unit and program of qmail is much smaller.
const BYTES_MAX: u64 = 64 << 20;

/// A machine to look at.
pub struct Host<'h> {
    /// What stands for `/`.
    pub root: PathBuf,
    /// Runs a program of the machine with arguments and standard input.
    pub run: Runner<'h>,
}

impl fmt::Debug for Host<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Host").field("root", &self.root).finish_non_exhaustive()
    }
}

impl Host<'static> {
    /// This machine.
    pub fn this_machine() -> Host<'static> {
        Host { root: PathBuf::from("/"), run: &run_program }
    }
}

/// The most links in a path, as in the kernel.
const LINKS_MAX: usize = 40;

impl Host<'_> {
    /// Returns the real place of a path of the machine. Links are followed below the root.
    pub(super) fn path(&self, path: impl AsRef<Path>) -> PathBuf {
        let path = path.as_ref();
        let real = self.real(path).unwrap_or_else(|| path.to_path_buf());
        self.below(&real)
    }

    fn below(&self, path: &Path) -> PathBuf {
        self.root.join(path.strip_prefix("/").unwrap_or(path))
    }

    /// Returns the path without links, as the machine sees it; `None` if there are too many links. Parts that do not
    /// exist stay as they are.
    pub(super) fn real(&self, path: &Path) -> Option<PathBuf> {
        let mut real = PathBuf::from("/");
        let mut left: Vec<PathBuf> = parts(path);
        left.reverse();
        let mut links = 0;
        while let Some(part) = left.pop() {
            if part == Path::new("..") {
                real.pop();
                continue;
            }
            let next = real.join(&part);
            match fs::read_link(self.below(&next)) {
                Ok(target) => {
                    links += 1;
                    if links > LINKS_MAX {
                        return None;
                    }
                    if target.is_absolute() {
                        real = PathBuf::from("/");
                    }
                    left.extend(parts(&target).into_iter().rev());
                }
                Err(_) => real = next,
            }
        }
        Some(real)
    }

    /// Returns the target of a link. Its folder may be behind links.
    pub(super) fn link(&self, path: impl AsRef<Path>) -> Option<PathBuf> {
        let path = path.as_ref();
        let folder = self.real(path.parent()?)?;
        fs::read_link(self.below(&folder.join(path.file_name()?))).ok()
    }

    /// Reads a regular file, also of /proc, up to [`BYTES_MAX`]. It never waits for the writer of a FIFO or for the
    /// next line of /proc/kmsg.
    pub(super) fn read_bytes(&self, path: impl AsRef<Path>) -> Fact<Vec<u8>> {
        let path = path.as_ref();
        let failed = |error: std::io::Error| format!("{}: {error}", path.display());
        let (file, _) = open_regular(&self.path(path)).map_err(|why| match why {
            NotOpened::NotRegular => format!("{}: not a regular file", path.display()),
            NotOpened::System(error) => failed(error),
        })?;
        let mut bytes = Vec::new();
        file.take(BYTES_MAX).read_to_end(&mut bytes).map_err(failed)?;
        Ok(bytes)
    }

    pub(super) fn read(&self, path: impl AsRef<Path>) -> Fact<String> {
        Ok(String::from_utf8_lossy(&self.read_bytes(path)?).into_owned())
    }

    pub(super) fn number(&self, path: &str) -> Fact<u64> {
        let text = self.read(path)?;
        text.trim().parse().map_err(|_| format!("{path}: {:?} is not a number", text.trim()))
    }

    pub(super) fn is_file(&self, path: impl AsRef<Path>) -> bool {
        self.path(path).is_file()
    }

    /// Returns the names in a folder, sorted; none if there is no such folder.
    pub(super) fn names(&self, dir: &str) -> Vec<String> {
        let Ok(entries) = fs::read_dir(self.path(dir)) else { return Vec::new() };
        let mut names: Vec<String> = entries
            .flatten()
            .map(|entry| entry.file_name().to_string_lossy().into_owned())
            .collect();
        names.sort();
        names
    }

    /// Returns the paths of the files in `dir` whose names end in `suffix`.
    pub(super) fn files_of(&self, dir: &str, suffix: &str) -> Vec<String> {
        let names = self.names(dir).into_iter().filter(|name| name.ends_with(suffix));
        names.map(|name| format!("{dir}/{name}")).filter(|path| !self.path(path).is_dir()).collect()
    }

    /// Returns the paths of the folders in `dir`.
    pub(super) fn dirs_of(&self, dir: &str) -> Vec<String> {
        let names = self.names(dir).into_iter();
        names.map(|name| format!("{dir}/{name}")).filter(|path| self.path(path).is_dir()).collect()
    }
}

fn parts(path: &Path) -> Vec<PathBuf> {
    let parts = path
        .components()
        .filter(|part| matches!(part, Component::Normal(_) | Component::ParentDir));
    parts.map(|part| PathBuf::from(part.as_os_str())).collect()
}

fn run_program(program: &Path, args: &[&str], input: &str) -> Result<String, String> {
    use std::io::Write as _;
    use std::process::{Command, Stdio};
    let name = program.display();
    let failed = |error: std::io::Error| format!("cannot run {name}: {error}");
    let mut child = Command::new(program)
        .args(args)
        .env("LC_ALL", "C")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .map_err(failed)?;
    if let Some(mut stdin) = child.stdin.take() {
        // The program need not read its input.
        let _ = stdin.write_all(input.as_bytes());
    }
    let output = child.wait_with_output().map_err(failed)?;
    if output.status.success() {
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    } else {
        Err(format!("{name} failed ({})", output.status))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_regular_files_are_read() {
        let dir = tempfile::tempdir().unwrap();
        let made = std::process::Command::new("mkfifo").arg(dir.path().join("fifo")).status();
        assert!(made.unwrap().success());
        std::os::unix::fs::symlink("/dev/zero", dir.path().join("zero")).unwrap();
        fs::write(dir.path().join("file"), "20\n").unwrap();
        let run = |_: &Path, _: &[&str], _: &str| Err(String::new());
        let host = Host { root: "/".into(), run: &run };
        for name in ["fifo", "zero"] {
            let said = host.read(dir.path().join(name)).unwrap_err();
            assert!(said.ends_with(": not a regular file"), "{said}");
        }
        assert_eq!(host.read(dir.path().join("file")).as_deref(), Ok("20\n"));
    }
}
