//! Builds the gate's static library, which the program embeds with its header.
//!
//! It writes three files to OUT_DIR: gate.a, gate.h, and gate.lib with the libraries to link after gate.a.

use std::env;
use std::fs;
use std::path::PathBuf;

use qpatch_gate_library as library;

fn main() {
    let root = PathBuf::from(var("DEP_QPATCH_GATE_ROOT"));
    let out = PathBuf::from(var("OUT_DIR"));
    let header = root.join("gate.h");
    println!("cargo::rerun-if-changed={}", header.display());
    // A file that is new in the folder of a patch is embedded, too.
    println!("cargo::rerun-if-changed=patches");
    fs::copy(&header, out.join("gate.h")).unwrap_or_else(|e| panic!("{}: {e}", header.display()));
    println!("cargo::rerun-if-changed={}", root.join("src").display());
    let (source, archive) = (root.join("src/lib.rs"), out.join("gate.a"));
    let link = library::build(&var("RUSTC"), &var("TARGET"), &source, &archive, &[]).join(" ");
    fs::write(out.join("gate.lib"), format!("{link}\n")).expect("OUT_DIR can be written");
}

fn var(name: &str) -> String {
    env::var(name).unwrap_or_else(|e| panic!("{name}: {e}"))
}
