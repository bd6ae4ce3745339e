//! The engine: `cases/NAME/{rule,in.EXT}` with `out.EXT` or `error`. A case `try-NAME` is run by `qpatch rule try`,
//! which has to say what is in `try`.

use std::fs;
use std::path::Path;
use std::process::Command;

use qpatch::engine::edit::{self, Examined};
use qpatch::engine::lex::Source;
use qpatch::engine::rule::{self, Parameters};
use qpatch_test_support::golden;

enum Result {
    Changed(Vec<u8>),
    Error(String),
}

fn run(rule_text: &str, input: &[u8]) -> Result {
    let patch = match rule::parse("case", "rule", rule_text, &Parameters::new(), &[]) {
        Ok(patch) => patch,
        Err(error) => return Result::Error(format!("{error}\n")),
    };
    let mut bytes = input.to_vec();
    for section in &patch.sections {
        for rule in section.rules() {
            match edit::examine(rule, section.lang(), &Source::new(section.lang(), &bytes)) {
                Examined::Done => {}
                Examined::Fits { edits } => bytes = edit::apply(&bytes, &edits),
                Examined::Misfit(misfit) => return Result::Error(format!("{misfit}\n")),
            }
        }
    }
    Result::Changed(bytes)
}

/// The golden `try` of what `qpatch rule try` says.
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
    golden(&dir.join("try"), got.as_bytes())
}

pub(crate) fn check(dir: &Path) -> std::result::Result<(), String> {
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
    let result = run(&rule_text, &fs::read(&input).unwrap());
    let (want, got) = match result {
        Result::Changed(bytes) => {
            // What has been applied once is there already.
            match run(&rule_text, &bytes) {
                Result::Changed(again) if again == bytes => {}
                Result::Changed(_) => return Err(format!("{name}: a second run changes it")),
                Result::Error(e) => return Err(format!("{name}: a second run: {e}")),
            }
            (input.with_file_name("out").with_extension(input.extension().unwrap()), bytes)
        }
        Result::Error(text) => (dir.join("error"), text.into_bytes()),
    };
    golden(&want, &got)
}
