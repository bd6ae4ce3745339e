//! What the tests of all crates share: the one way to skip, and the one way to compare with a golden.
//!
//! - [`skip`] is the only way for a test to leave something out. It says so on standard error, also when the test
//!   passes. Where `QPATCH_SKIP_NOTHING` is set, as in `.ci/run`, it fails the test.
//! - [`port`] holds a free port for a server.
//! - [`redis`] starts a redis-server for a test, and [`proxy`] a proxy before it.
//! - [`golden`] compares bytes with a file. Where `QPATCH_BLESS` is set, it writes the file instead.

#![forbid(unsafe_code)]

pub mod port;
pub mod proxy;
pub mod redis;

use std::env;
use std::fmt::Display;
use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Command, Stdio};

/// Says that a test leaves something out, and why.
///
/// # Panics
/// If `QPATCH_SKIP_NOTHING` is set.
#[track_caller]
pub fn skip(why: impl Display) {
    assert!(
        env::var_os("QPATCH_SKIP_NOTHING").is_none(),
        "skipped, and QPATCH_SKIP_NOTHING is set: {why}"
    );
    tell(format_args!("skipped: {why}"));
}

/// Writes a line to standard error itself: `eprintln!` of a test that passes is not shown.
pub fn tell(line: impl Display) {
    let _ = writeln!(io::stderr().lock(), "{line}");
}

/// Returns whether `program --version` succeeds here; skips if not.
///
/// # Panics
/// As [`skip`].
#[track_caller]
pub fn has(program: &str) -> bool {
    has_command(program, "--version")
}

/// Returns whether `program` succeeds here with this argument; skips if not.
///
/// # Panics
/// As [`skip`].
#[track_caller]
pub fn has_command(program: &str, argument: &str) -> bool {
    let output = Command::new(program).arg(argument).output();
    let found = output.is_ok_and(|output| output.status.success());
    if !found {
        skip(format_args!("no {program} on this machine"));
    }
    found
}

/// Copies a program. Another process does it: a test in another thread may start a child just then, and the child has
/// all open files of this process until it executes its program. While it has `to` open for writing, `to` cannot be
/// executed (ETXTBSY).
///
/// # Panics
/// If cp(1) fails.
#[track_caller]
pub fn copy_program(from: &Path, to: &Path) {
    let status = Command::new("cp").arg("--").args([from, to]).status();
    assert!(status.is_ok_and(|status| status.success()), "{}: not copied", to.display());
}

/// Writes a script that can be executed at once, in another process as [`copy_program`] does. Its mode is 0755.
///
/// # Panics
/// If it cannot be written.
#[track_caller]
pub fn write_script(to: &Path, text: &str) {
    let mut shell = Command::new("sh")
        .args(["-c", r#"cat >"$0" && chmod 755 "$0""#])
        .arg(to)
        .stdin(Stdio::piped())
        .spawn()
        .expect("sh");
    shell.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    assert!(shell.wait().unwrap().success(), "{}: not written", to.display());
}

/// Returns whether this process runs as root.
pub fn is_root() -> bool {
    fs::metadata("/proc/self").is_ok_and(|metadata| metadata.uid() == 0)
}

/// Returns whether goldens are written instead of compared.
pub fn is_blessing() -> bool {
    env::var_os("QPATCH_BLESS").is_some()
}

/// Compares `got` with the file `golden`; no file is the same as an empty one. If goldens are to be written, it writes
/// the file, or removes it if there is nothing to write.
///
/// # Errors
/// The difference, as a unified diff.
///
/// # Panics
/// If the file cannot be written.
pub fn golden(golden: &Path, got: &[u8]) -> Result<(), String> {
    let want = fs::read(golden).unwrap_or_default();
    if want == got {
        return Ok(());
    }
    if is_blessing() {
        let written = if got.is_empty() { fs::remove_file(golden) } else { fs::write(golden, got) };
        written.unwrap_or_else(|e| panic!("{}: {e}", golden.display()));
        return Ok(());
    }
    let diff = similar::TextDiff::from_lines(&want[..], got);
    let diff = diff.unified_diff().header("expected", "got").to_string();
    Err(format!(
        "{}: not as expected; QPATCH_BLESS=1 writes what it is now\n{diff}",
        golden.display()
    ))
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_difference_is_shown() {
        let golden = std::env::temp_dir().join("qpatch-no-such-golden");
        assert_eq!(super::golden(&golden, b""), Ok(()));
        if !super::is_blessing() {
            let shown = super::golden(&golden, b"a\n").unwrap_err();
            assert!(shown.ends_with("@@ -0,0 +1 @@\n+a\n"), "{shown}");
        }
    }
}
