//! Compiles gate_retry.c as the mail server does, with a clock and an allocator that the tests hold in their hands.

fn main() {
    for file in ["retry.c", "../gate_retry.c", "../gate_retry.h"] {
        println!("cargo::rerun-if-changed={file}");
    }
    cc::Build::new()
        .file("retry.c")
        .include("..")
        .std("gnu89")
        .extra_warnings(true)
        .warnings_into_errors(true)
        .compile("gate_retry_test");
}
