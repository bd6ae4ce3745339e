//! With the feature `compiled`: compiles gate_retry.c as the mail server does, with a clock and an allocator that the
//! tests control, and passes on where the gate's sources are.

#[cfg(not(feature = "compiled"))]
fn main() {
    println!("cargo::rerun-if-changed=build.rs");
}

#[cfg(feature = "compiled")]
fn main() {
    let var = |name| std::env::var(name).unwrap_or_else(|e| panic!("{name}: {e}"));
    for file in ["tests/c/twin.c", "gate_retry.c", "gate_retry.h"] {
        println!("cargo::rerun-if-changed={file}");
    }
    println!("cargo::rustc-env=GATE_ROOT={}", var("DEP_QPATCH_GATE_ROOT"));
    println!("cargo::rustc-env=GATE_TARGET={}", var("TARGET"));
    cc::Build::new()
        .file("tests/c/twin.c")
        .include(".")
        .std("gnu89")
        .extra_warnings(true)
        .warnings_into_errors(true)
        .compile("gate_retry_test");
}
