//! Builds the gate's static library and puts it, with its C files, where the program embeds them.
//!
//! The library is compiled by a plain call of rustc: it has no dependencies, and it wants a profile
//! of its own (fat LTO, one unit, unwinding) whatever the profile of qpatch is. What the linker of
//! the mail server has to add is what rustc says for this target, and becomes gate.lib.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

const C_FILES: [&str; 6] =
    ["gate.h", "gate_glue.h", "gate_glue.c", "gate_stub.c", "gate_retry.h", "gate_retry.c"];

fn main() {
    let root = PathBuf::from(var("DEP_QPATCH_GATE_ROOT"));
    let out = PathBuf::from(var("OUT_DIR"));
    for name in C_FILES {
        let from = root.join(name);
        println!("cargo::rerun-if-changed={}", from.display());
        fs::copy(&from, out.join(name)).unwrap_or_else(|e| panic!("{}: {e}", from.display()));
    }
    println!("cargo::rerun-if-changed={}", root.join("src").display());
    let libs = build(&root.join("src/lib.rs"), &out.join("gate.a"));
    fs::write(out.join("gate.lib"), format!("{libs}\n")).expect("OUT_DIR can be written");
}

fn var(name: &str) -> String {
    env::var(name).unwrap_or_else(|e| panic!("{name}: {e}"))
}

/// Compile the library; the libraries that whoever links it has to add.
fn build(source: &Path, library: &Path) -> String {
    let mut command = Command::new(var("RUSTC"));
    command
        .args(["--crate-name", "qpatch_gate", "--crate-type", "staticlib", "--edition", "2024"])
        // A fifth quicker than with s, for 44 KiB more of qmail-rspawn.
        .args(["-C", "opt-level=2", "-C", "lto=fat", "-C", "codegen-units=1", "-C", "panic=unwind"])
        .args(["--print", "native-static-libs", "--target", &var("TARGET"), "-o"])
        .arg(library)
        .arg(source);
    let output = command.output().unwrap_or_else(|e| panic!("{command:?}: {e}"));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}:\n{said}");
    // The standard library's debugging symbols are more than half of it. No harm where there is
    // no strip.
    let _ = Command::new("strip").arg("--strip-debug").arg(library).status();
    said.lines()
        .find_map(|line| line.split_once("native-static-libs: "))
        .map(|(_, libs)| with_static_libgcc(libs))
        .unwrap_or_else(|| panic!("rustc told no native-static-libs:\n{said}"))
}

/// libgcc is linked statically, also where nothing else is: the shared one is not there for a
/// static program (`cc -static` in conf-ld), and elsewhere its mappings are copied with each fork
/// of qmail-rspawn.
fn with_static_libgcc(libs: &str) -> String {
    let replaced = |lib| if lib == "-lgcc_s" { "-static-libgcc" } else { lib };
    libs.split_whitespace().map(replaced).collect::<Vec<_>>().join(" ")
}
