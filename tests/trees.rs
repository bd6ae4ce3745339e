//! Real trees: `QMAIL_TREES=DIR` has every tree in DIR patched, built and proved, in copies. Without it the tests here
//! say "skipped": no qmail source is part of this project.

mod common;
#[path = "common/rig.rs"]
mod rig;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use common::{Run, bytes, copy, qpatch, real_trees, run, snapshot};
use qpatch::verify::build;
use qpatch::verify::error::Error;
use qpatch::verify::rig::sendrig;
use qpatch::verify::sandbox::{SandboxConfig, check_tree};
use qpatch::verify::{self, Options, Part, ProofOutcome, Silent, StepVerdict};
use qpatch_test_support::{has, tell};
use rig::sandbox;

#[test]
fn every_tree_is_patched_and_proved() {
    let trees = real_trees();
    let mut failed = Vec::new();
    for tree in &trees {
        let name = tree.file_name().unwrap().to_string_lossy().into_owned();
        let line = match tried(tree) {
            Ok(line) => format!("{name}: {line}"),
            Err(why) => {
                failed.push(format!("{name}: {why}"));
                format!("{name}: FAILED: {why}")
            }
        };
        tell(line);
    }
    assert!(failed.is_empty(), "{} of {}:\n{}", failed.len(), trees.len(), failed.join("\n"));
}

/// `qpatch ARGS TREE`, which has to succeed.
fn qpatch_on(tree: &Path, args: &[&str]) -> Result<Run, String> {
    let run = qpatch(&[args, &[tree.to_str().ok_or("its name is not UTF-8")?]].concat());
    if run.code == 0 { Ok(run) } else { Err(format!("{args:?}: {}", run.err)) }
}

fn agree(holds: bool, what: &str) -> Result<(), String> {
    if holds { Ok(()) } else { Err(what.to_owned()) }
}

/// What is to be said of a tree; an error if it is not as it has to be.
fn tried(tree: &Path) -> Result<String, String> {
    if let Err(why) = check_tree(tree) {
        return Ok(format!("skipped: {why}"));
    }
    let mut line = patched_and_reverted(tree)?;
    if let Err(why) = builds_without(tree) {
        let why = why.to_string();
        line.push_str("; skipped: it does not build without qpatch either: ");
        line.push_str(&why.lines().take(2).collect::<Vec<_>>().join(": "));
        return Ok(line);
    }
    let (_dir, patched) = copy(tree);
    for (spawn, only) in [(1000, vec![]), (65000, vec![Part::Rspawn, Part::Lspawn, Part::Numbers])]
    {
        qpatch_on(&patched, &["apply", "--spawn", &spawn.to_string()])?;
        let options = Options { only, ..Options::default() };
        let outcome = verify::run(&patched, &options, &mut Silent).map_err(|e| e.to_string())?;
        line.push_str("; ");
        line.push_str(&proved(&outcome)?);
    }
    Ok(line)
}

/// apply, apply again, revert, and the same by diff and GNU patch.
fn patched_and_reverted(tree: &Path) -> Result<String, String> {
    let (_dir, copied) = copy(tree);
    let before = snapshot(&copied);
    let started = Instant::now();
    let applied = qpatch_on(&copied, &["apply", "--spawn", "1000"])?;
    let taken = started.elapsed().as_millis();
    let once = snapshot(&copied);
    qpatch_on(&copied, &["apply", "--spawn", "1000"])?;
    agree(snapshot(&copied) == once, "a second apply changes something")?;
    qpatch_on(&copied, &["revert"])?;
    agree(snapshot(&copied) == before, "revert does not give everything back")?;

    let diff = qpatch_on(&copied, &["diff", "--spawn", "1000", "--no-gate"])?.out;
    qpatch_on(&copied, &["apply", "--spawn", "1000", "--no-gate"])?;
    if has("patch") {
        let (_other_dir, other) = copy(tree);
        let file = other.with_extension("diff");
        fs::write(&file, diff).unwrap();
        let patch = ["-p1", "-F0", "-s", "--no-backup-if-mismatch", "-i"];
        let patched = run(Command::new("patch").args(patch).arg(&file).current_dir(&other));
        agree(patched.code == 0, &format!("patch: {}{}", patched.out, patched.err))?;
        let (diffed, applied) = (snapshot(&other), snapshot(&copied));
        agree(bytes(&diffed) == bytes(&applied), &differing(&bytes(&diffed), &bytes(&applied)))?;
    }
    let gate = if applied.err.contains("no limits per domain") { "without" } else { "with" };
    let files = applied.out.lines().last().unwrap_or_default();
    let files = files.split(';').next().unwrap_or_default();
    Ok(format!("{files} in {taken} ms, {gate} the gate"))
}

fn differing(one: &BTreeMap<&Path, &[u8]>, other: &BTreeMap<&Path, &[u8]>) -> String {
    let names = one.keys().chain(other.keys()).filter(|name| one.get(*name) != other.get(*name));
    let names: Vec<_> = names.map(|name| name.display().to_string()).collect();
    format!("diff and apply differ in {}", names.join(", "))
}

/// Whether the tree builds at its own conf-spawn, with nothing but what today's C library and compilers ask for.
fn builds_without(tree: &Path) -> Result<(), Error> {
    let (_dir, copied) = copy(tree);
    // Where even that does not fit, the tree as it is has to do.
    let _ = qpatch_on(&copied, &["apply", "--only", "toolchain"]);
    let (_scratch, sandbox) = sandbox(&copied, &SandboxConfig::default())?;
    build::make(&sandbox, &sendrig::PROGRAMS).map(|_| ())
}

/// The figures of a proof that holds.
fn proved(outcome: &ProofOutcome) -> Result<String, String> {
    let failed = outcome.steps.iter().find(|step| step.verdict == StepVerdict::Fail);
    if let Some(step) = failed {
        return Err(format!("verify at {}: {step}", outcome.spawn));
    }
    let figure = |step: &str, name: &str| {
        let step = outcome.steps.iter().find(|found| found.name == step);
        step.and_then(|step| step.figures.get(name)).map_or("?".to_owned(), u64::to_string)
    };
    Ok(format!(
        "at {}: {} remote and {} local deliveries at once, {} numbers of qmail-send, {:.0} s",
        outcome.spawn,
        figure("qmail-rspawn", "at_once"),
        figure("qmail-lspawn", "at_once"),
        figure("qmail-send-numbers", "peak_remote"),
        outcome.seconds
    ))
}
