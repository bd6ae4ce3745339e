//! `qpatch gate`: `gate_cases/NAME/args` is `EXIT-CODE: ARGUMENTS`. The command runs in a copy of the folder, and has
//! to say what is in `out` and `err` (no file: nothing).

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use qpatch_test_support::golden;

use crate::common::{Run, run};

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let to = to.join(path.file_name().unwrap());
        if path.is_dir() {
            copy(&path, &to);
        } else {
            fs::write(&to, fs::read(&path).unwrap()).unwrap();
            // Whatever the umask was when the repository was cloned.
            fs::set_permissions(&to, Permissions::from_mode(0o644)).unwrap();
        }
    }
}

pub(crate) fn check(case: &Path) -> Result<(), String> {
    let name = case.file_name().unwrap().to_string_lossy();
    let args = fs::read_to_string(case.join("args")).map_err(|e| format!("{name}: args: {e}"))?;
    let (code, args) = args.trim_end().split_once(": ").ok_or(format!("{name}: args: no colon"))?;
    let args: Vec<&str> = args.split(' ').collect();
    let dir = tempfile::tempdir().unwrap();
    copy(case, dir.path());
    for own in ["args", "out", "err"] {
        let _ = fs::remove_file(dir.path().join(own));
    }
    let Run { code: got, out, err } = run(Command::new(env!("CARGO_BIN_EXE_qpatch"))
        .current_dir(dir.path())
        .arg("gate")
        .args(args));
    let mut wrong = String::new();
    if code.parse() != Ok(got) {
        wrong.push_str(&format!("{name}: exit code {got}, not {code}\n"));
    }
    for (name, got) in [("out", out), ("err", err)] {
        if let Err(difference) = golden(&case.join(name), got.as_bytes()) {
            wrong.push_str(&difference);
        }
    }
    if wrong.is_empty() { Ok(()) } else { Err(wrong) }
}
