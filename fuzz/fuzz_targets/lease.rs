//! libFuzzer's way into the property of its name; see the library.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| qpatch_fuzz::lease(bytes));
