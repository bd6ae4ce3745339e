//! Builds the gate's static library, which the program embeds with its header.
//!
//! It writes to OUT_DIR: gate.a, gate.h, gate.lib with the libraries to link after gate.a, and the folder gate-source
//! with the sources of gate.a, for `qpatch gate library --source`.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};

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
    let encoded = env::var("CARGO_ENCODED_RUSTFLAGS").unwrap_or_default();
    let flags = library::encoded_flags(&encoded);
    let link = library::build(&var("RUSTC"), &var("TARGET"), &source, &archive, &flags).join(" ");
    fs::write(out.join("gate.lib"), format!("{link}\n")).expect("OUT_DIR can be written");
    let copy = out.join("gate-source");
    let _ = fs::remove_dir_all(&copy);
    copy_folder(&root.join("src"), &copy.join("src"));
}

fn copy_folder(from: &Path, to: &Path) {
    let failed = |e: &dyn std::fmt::Display| -> ! { panic!("{}: {e}", from.display()) };
    fs::create_dir_all(to).unwrap_or_else(|e| failed(&e));
    for entry in fs::read_dir(from).unwrap_or_else(|e| failed(&e)) {
        let entry = entry.unwrap_or_else(|e| failed(&e)).path();
        let name = entry.file_name().expect("an entry has a name");
        if entry.is_dir() {
            copy_folder(&entry, &to.join(name));
        } else {
            fs::copy(&entry, to.join(name)).unwrap_or_else(|e| failed(&e));
        }
    }
}

fn var(name: &str) -> String {
    env::var(name).unwrap_or_else(|e| panic!("{name}: {e}"))
}
