//! What packagers use: the sources of gate.a, and the manual pages below a prefix.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use qpatch::fixture::Dialect;

use crate::common::{Fixture, qpatch};

/// make in a folder of sources, with the rustc that has built qpatch first in PATH.
fn make(dir: &Path, words: &[&str]) -> Output {
    Command::new("make").arg("-s").args(words).current_dir(dir).output().unwrap()
}

/// The library that qpatch embeds was built in another folder by a build script: the bytes are the same.
#[test]
fn the_sources_of_the_library_make_the_same_library() {
    let dir = tempfile::tempdir().unwrap();
    let sources = dir.path().join("gate");
    qpatch(&["gate", "library", "--source", sources.to_str().unwrap()]).ok();
    let output = make(&sources, &[]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let embedded = Command::new(env!("CARGO_BIN_EXE_qpatch")).args(["gate", "library"]).output();
    assert!(fs::read(sources.join("gate.a")).unwrap() == embedded.unwrap().stdout);
    let tree = Fixture::new(Dialect::StockKr);
    tree.qpatch(&["apply"]).ok();
    let made = fs::read_to_string(sources.join("gate.lib")).unwrap();
    assert_eq!(made, fs::read_to_string(tree.path().join("gate.lib")).unwrap());
    let library = fs::read(sources.join("gate.a")).unwrap();
    let folder = dir.path().to_str().unwrap().as_bytes();
    assert!(!library.windows(folder.len()).any(|bytes| bytes == folder), "a path of this machine");
}

#[test]
fn the_makefile_hands_flags_and_the_target_to_rustc() {
    let dir = tempfile::tempdir().unwrap();
    let sources = dir.path().join("gate");
    let source = sources.to_str().unwrap();
    let target = "no-such-machine";
    qpatch(&["gate", "library", "--source", source, "--target", target]).ok();
    for (words, complaint) in [
        (&["TARGET=", "RUSTFLAGS=--no-such-flag"][..], "no-such-flag"),
        (&[], "no-such-machine"),
        (&["TARGET=neither-there"], "neither-there"),
    ] {
        let output = make(&sources, words);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && said.contains(complaint), "{words:?}: {said}");
        assert!(!sources.join("gate.a").exists());
    }
    // The last of two counts: an error in the gate must not end qmail-rspawn.
    let shown = make(&sources, &["-n", "RUSTFLAGS=-C panic=abort"]).stdout;
    let shown = String::from_utf8_lossy(&shown);
    assert!(shown.find("panic=abort").unwrap() < shown.find("panic=unwind").unwrap(), "{shown}");
    // A second time, the folder is there already.
    let run = qpatch(&["gate", "library", "--source", source]);
    let expected = format!("qpatch: {source}: exists\n  name a new folder after --source\n");
    assert_eq!((run.code, run.err), (1, expected));
    for wrong in [&["--target", "x"][..], &["--source", "d", "--target", "a b"]] {
        assert_eq!(qpatch(&[&["gate", "library"], wrong].concat()).code, 2);
    }
}

#[test]
fn manual_pages_are_installed_below_a_prefix() {
    let dir = tempfile::tempdir().unwrap();
    let prefix = dir.path().join("new/usr");
    qpatch(&["man", "--install", prefix.to_str().unwrap()]).ok();
    for page in fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("man")).unwrap() {
        let page = page.unwrap().path();
        let section = page.extension().unwrap().to_str().unwrap();
        let installed =
            prefix.join(format!("share/man/man{section}")).join(page.file_name().unwrap());
        assert_eq!(fs::read(installed).unwrap(), fs::read(page).unwrap());
    }
    let file = dir.path().join("file");
    fs::write(&file, "").unwrap();
    let run = qpatch(&["man", "--install", file.to_str().unwrap()]);
    assert_eq!(run.code, 1);
    assert!(run.err.contains("write the manual pages"), "{}", run.err);
    assert_eq!(qpatch(&["man"]).code, 2);
}
