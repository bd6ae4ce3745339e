//! Tells the build scripts that want it (those of qpatch and of c-shim) where the gate's sources are.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!(
        "cargo::metadata=root={}",
        std::env::var("CARGO_MANIFEST_DIR").expect("cargo sets it")
    );
}
