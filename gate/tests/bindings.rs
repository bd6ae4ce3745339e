//! src/bindings.rs is bindgen's reading of gate.h. This test runs bindgen again and compares.
//!
//! libclang is loaded when the test runs. Without it the test is skipped. `QPATCH_BLESS=1` writes the file instead of
//! comparing.

use std::panic::catch_unwind;
use std::path::Path;

use qpatch_test_support::{golden, skip};

fn generate() -> String {
    let header = Path::new(env!("CARGO_MANIFEST_DIR")).join("gate.h");
    let bindings = bindgen::Builder::default()
        .header(header.to_str().unwrap())
        .clang_arg("-std=c89")
        .allowlist_item("gate_.*|GATE_.*")
        .raw_line("//! Written by bindgen from gate.h; tests/bindings.rs compares the two.")
        .disable_header_comment()
        .rust_edition(bindgen::RustEdition::Edition2024)
        .rust_target(bindgen::RustTarget::stable(85, 0).ok().unwrap())
        .use_core()
        .layout_tests(false)
        .formatter(bindgen::Formatter::None)
        .generate()
        .unwrap();
    rustfmt(&bindings.to_string())
}

/// Formats with the project's settings, so that `cargo fmt` changes nothing.
fn rustfmt(text: &str) -> String {
    use std::io::Write;
    use std::process::{Command, Stdio};
    let mut child = Command::new("rustfmt")
        .args(["--edition", "2024", "--emit", "stdout"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("rustfmt");
    child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success());
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn bindings_are_what_bindgen_reads() {
    let loaded = catch_unwind(|| bindgen::clang_version().full);
    if loaded.is_err() {
        skip("no libclang");
        return;
    }
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/bindings.rs");
    golden(&path, generate().as_bytes()).unwrap_or_else(|difference| panic!("{difference}"));
}
