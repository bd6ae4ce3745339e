//! select_set.h beside the system's own fd_set: the same random descriptors, told alike. With sanitizers, and with each
//! compiler and C library that there is.

#[path = "common/mod.rs"]
mod common;

use std::path::Path;
use std::process::Command;

use common::has;

fn agrees(compiler: &str, flags: &[&str]) {
    if !has(compiler) {
        return;
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let dir = tempfile::tempdir().unwrap();
    let program = dir.path().join("select_set");
    let ran = |command: &mut Command| {
        let output = command.output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{compiler} {flags:?}: {}: {said}", output.status);
    };
    ran(Command::new(compiler)
        .args(flags)
        .args(["-g", "-Wall", "-Wextra", "-Werror", "-I"])
        .arg(root.join("patches/fd-setsize"))
        .arg(root.join("tests/c/select_set.c"))
        .arg("-o")
        .arg(&program));
    ran(&mut Command::new(&program));
}

#[test]
fn with_sanitizers() {
    agrees("gcc", &["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]);
}

#[test]
fn as_old_c_and_fortified() {
    agrees("gcc", &["-std=gnu89", "-O2", "-U_FORTIFY_SOURCE", "-D_FORTIFY_SOURCE=3"]);
}

#[test]
fn with_clang() {
    agrees("clang", &["-O2"]);
}

#[test]
fn with_musl() {
    agrees("musl-gcc", &["-O2"]);
}
