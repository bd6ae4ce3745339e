//! Tells qpatch where the gate's sources are, and the tests for which target they are.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!(
        "cargo::metadata=root={}",
        std::env::var("CARGO_MANIFEST_DIR").expect("cargo sets it")
    );
    println!("cargo::rustc-env=GATE_TARGET={}", std::env::var("TARGET").expect("cargo sets it"));
}
