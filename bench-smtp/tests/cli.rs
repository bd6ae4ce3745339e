//! Bad arguments, and folders that are not a qmail tree.

use std::process::Command;

fn bench(args: &[&str]) -> (Option<i32>, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_qpatch-bench-smtp"))
        .args(args)
        .output()
        .expect("it can be run");
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

#[test]
fn wrong_usage_is_2() {
    for args in [
        &[][..],
        &["TREE", "--scenario", "S7"],
        &["TREE", "--scenario", "S12"],
        &["TREE", "--scale", "0"],
        &["TREE", "--runs", "0"],
        &["TREE", "--port", "25"],
        &["TREE", "--learn", "maybe"],
        &["TREE", "--server", "exim-max"],
        &["TREE", "--servers", "DIR", "--server", "exchange"],
        &["TREE", "--servers", "DIR", "--scenario", "S1"],
        &["TREE", "--shares", "--scenario", "S1"],
    ] {
        let (code, said) = bench(args);
        assert_eq!(code, Some(2), "{args:?}: {said}");
        let about = args.iter().rev().find(|arg| arg.starts_with("--")).unwrap_or(&"<TREE>");
        assert!(said.starts_with("error: ") && said.contains(about), "{args:?}: {said}");
    }
}

#[test]
fn what_is_no_tree_is_1_and_says_what_is_missing() {
    let dir = tempfile::tempdir().expect("a directory");
    let (code, said) = bench(&[&dir.path().display().to_string()]);
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("it has no Makefile"), "{said}");
    let (code, said) = bench(&["/nonexistent"]);
    assert_eq!(code, Some(1), "{said}");
}

#[test]
fn the_attack_needs_a_tree_that_is_one() {
    let attack = |args: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_qpatch-attack")).args(args).output();
        let output = output.expect("it can be run");
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let (code, said) = attack(&["--rounds", "0"]);
    assert_eq!(code, Some(2), "{said}");
    let (code, said) = attack(&["/nonexistent"]);
    assert_eq!(code, Some(1), "{said}");
}
