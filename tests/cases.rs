//! Byte-exact goldens for the engine: `cases/NAME/{rule,in.EXT}` with `out.EXT` or `error`.
//!
//! `QPATCH_BLESS=1 cargo test --test cases` writes the files that are missing. Look at them before you commit.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use qpatch::engine::edit::{self, Examined};
use qpatch::engine::lex::{Lang, Source};
use qpatch::engine::rule::{self, Parameters};

enum RuleRun {
    Changed(Vec<u8>),
    Error(String),
}

fn run(rule_text: &str, lang: Lang, input: &[u8]) -> RuleRun {
    let patch = match rule::parse("case", "rule", rule_text, &Parameters::new(), &[]) {
        Ok(patch) => patch,
        Err(error) => return RuleRun::Error(format!("{error}\n")),
    };
    let mut bytes = input.to_vec();
    for rule in patch.sections.iter().flat_map(rule::Section::rules) {
        match edit::examine(rule, lang, &Source::new(lang, &bytes)) {
            Examined::Done => {}
            Examined::Fits { edits } => bytes = edit::apply(&bytes, &edits),
            Examined::Misfit(misfit) => return RuleRun::Error(format!("{misfit}\n")),
        }
    }
    RuleRun::Changed(bytes)
}

/// Compares what `qpatch rule try` prints with the golden `try`.
fn tried(dir: &Path, input: &Path) -> std::result::Result<(), String> {
    let input = input.file_name().unwrap();
    let run = Command::new(env!("CARGO_BIN_EXE_qpatch"))
        .args(["rule", "try", "rule"])
        .arg(input)
        .current_dir(dir)
        .output()
        .unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let got =
        format!("{}{}exit {}\n", text(&run.stdout), text(&run.stderr), run.status.code().unwrap());
    let want = dir.join("try");
    if std::env::var_os("QPATCH_BLESS").is_some() && !want.exists() {
        fs::write(&want, &got).unwrap();
    }
    let expected = fs::read_to_string(&want).unwrap_or_default();
    if expected == got {
        return Ok(());
    }
    Err(format!("{}: expected\n{expected}\ngot\n{got}", dir.display()))
}

fn check(dir: &Path) -> std::result::Result<(), String> {
    let name = dir.file_name().unwrap().to_string_lossy().into_owned();
    let input = fs::read_dir(dir)
        .unwrap()
        .map(|e| e.unwrap().path())
        .find(|p| p.file_stem().is_some_and(|s| s == "in"))
        .ok_or(format!("{name}: no in.*"))?;
    let rule_text =
        fs::read_to_string(dir.join("rule")).map_err(|e| format!("{name}: rule: {e}"))?;
    if name.starts_with("try-") {
        return tried(dir, &input);
    }
    let lang = Lang::of(&input.to_string_lossy());
    let result = run(&rule_text, lang, &fs::read(&input).unwrap());
    let (want, got) = match result {
        RuleRun::Changed(bytes) => {
            // After the first run, every rule must be there already.
            match run(&rule_text, lang, &bytes) {
                RuleRun::Changed(again) if again == bytes => {}
                RuleRun::Changed(_) => return Err(format!("{name}: a second run changes it")),
                RuleRun::Error(e) => return Err(format!("{name}: a second run: {e}")),
            }
            (input.with_file_name("out").with_extension(input.extension().unwrap()), bytes)
        }
        RuleRun::Error(text) => (dir.join("error"), text.into_bytes()),
    };
    if std::env::var_os("QPATCH_BLESS").is_some() && !want.exists() {
        fs::write(&want, &got).unwrap();
    }
    let expected = fs::read(&want).map_err(|_| {
        format!("{name}: no {}, got:\n{}", want.display(), String::from_utf8_lossy(&got))
    })?;
    if expected == got {
        return Ok(());
    }
    Err(format!(
        "{name}: expected\n{}\ngot\n{}",
        String::from_utf8_lossy(&expected),
        String::from_utf8_lossy(&got)
    ))
}

#[test]
fn every_case() {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/cases");
    let mut dirs: Vec<_> =
        fs::read_dir(root).unwrap().map(|e| e.unwrap().path()).filter(|p| p.is_dir()).collect();
    dirs.sort();
    assert!(dirs.len() >= 25, "the cases are gone: {}", dirs.len());
    let failures: Vec<_> = dirs.iter().filter_map(|dir| check(dir).err()).collect();
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}
