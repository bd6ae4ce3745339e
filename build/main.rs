//! Builds the gate's static library and puts it, with its C files, where the program embeds them.
//!
//! What the linker of the mail server has to add becomes gate.lib.

use std::env;
use std::fs;
use std::path::PathBuf;

mod staticlib;

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
    let (source, library) = (root.join("src/lib.rs"), out.join("gate.a"));
    let link = staticlib::build(&var("RUSTC"), &var("TARGET"), &source, &library, &[]).join(" ");
    fs::write(out.join("gate.lib"), format!("{link}\n")).expect("OUT_DIR can be written");
}

fn var(name: &str) -> String {
    env::var(name).unwrap_or_else(|e| panic!("{name}: {e}"))
}
