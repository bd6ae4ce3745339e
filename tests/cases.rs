//! Every golden, one test each: `cargo test --test cases NAME` runs those whose name has NAME in it. The names are
//! `rules::FOLDER`, `gate::FOLDER`, `doctor::FILE` and `dialects::DIALECT`.
//!
//! `QPATCH_BLESS=1 cargo test --test cases NAME` writes what they say now; read the difference before you commit it.

mod common;
#[path = "goldens/dialects.rs"]
mod dialects;
#[path = "goldens/doctor.rs"]
mod doctor;
#[path = "goldens/gate.rs"]
mod gate;
#[path = "goldens/rules.rs"]
mod rules;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use libtest_mimic::{Arguments, Failed, Trial};

fn main() -> ExitCode {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests");
    let mut trials = Vec::new();
    trials.extend(each("rules", &tests.join("cases"), rules::check));
    trials.extend(each("gate", &tests.join("gate_cases"), gate::check));
    trials.extend(each("doctor", &tests.join("doctor_cases"), doctor::check));
    for name in dialects::NAMES {
        let dir = tests.join("dialects");
        trials.push(trial("dialects", name, move || dialects::check(&dir, name)));
    }
    libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
}

/// A test for each entry of `dir`.
fn each(kind: &str, dir: &Path, check: fn(&Path) -> Result<(), String>) -> Vec<Trial> {
    let entries = fs::read_dir(dir).unwrap_or_else(|e| panic!("{}: {e}", dir.display()));
    let mut cases: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    cases.sort();
    assert!(!cases.is_empty(), "{} has no cases", dir.display());
    let name = |case: &Path| case.file_name().unwrap().to_string_lossy().into_owned();
    cases.into_iter().map(|case| trial(kind, &name(&case), move || check(&case))).collect()
}

fn trial(
    kind: &str,
    name: &str,
    check: impl FnOnce() -> Result<(), String> + Send + 'static,
) -> Trial {
    Trial::test(format!("{kind}::{name}"), || check().map_err(Failed::from))
}
