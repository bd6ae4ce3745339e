//! Builds the gate's static library for the mail server. qpatch's build script and the tests of the C use it, and the
//! Makefile of `qpatch gate library --source` has its flags.
//!
//! It calls rustc directly: the gate has no dependencies, and always needs its own profile (fat LTO, one unit,
//! unwinding), whatever the profile of qpatch is.

use std::path::Path;
use std::process::Command;

/// The flags of rustc, without files and target. Of flags that are given twice, the last one counts: so these come last.
/// With panic=abort, an error in the gate would end qmail-rspawn. With opt-level 2 the library is 68 KiB larger, and the
/// calls of a delivery take 0.29 us instead of 0.31 (3005 and 3355 instructions).
pub const FLAGS: &str = "--crate-name qpatch_gate --crate-type staticlib --edition 2024 -C opt-level=s -C lto=fat \
                         -C codegen-units=1 -C panic=unwind --print native-static-libs";

/// Compiles the library; `more` are further arguments for rustc. Returns the arguments that the linker needs besides
/// it, for this target.
///
/// The library holds no path of the folder that it was built in: two builds by the same rustc give the same bytes.
pub fn build(
    rustc: &str,
    target: &str,
    source: &Path,
    library: &Path,
    more: &[&str],
) -> Vec<String> {
    let mut command = Command::new(rustc);
    let mut prefix = source.parent().unwrap_or(Path::new("")).as_os_str().to_owned();
    prefix.push("=gate");
    command
        .args(more)
        .arg("--remap-path-prefix")
        .arg(prefix)
        .args(FLAGS.split_whitespace())
        .args(["--target", target])
        .arg("-o")
        .arg(library)
        .arg(source);
    let output = command.output().unwrap_or_else(|e| panic!("{command:?}: {e}"));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}:\n{said}");
    // The debugging symbols of the standard library are more than half of it. Without strip they stay.
    let _ = Command::new("strip").arg("--strip-debug").arg(library).status();
    let libraries = said
        .lines()
        .find_map(|line| line.split_once("native-static-libs: "))
        .unwrap_or_else(|| panic!("rustc told no native-static-libs:\n{said}"))
        .1;
    link_arguments(libraries, target)
}

/// The flags of RUSTFLAGS, as cargo hands them to a build script (CARGO_ENCODED_RUSTFLAGS).
pub fn encoded_flags(encoded: &str) -> Vec<&str> {
    encoded.split('\x1f').filter(|flag| !flag.is_empty()).collect()
}

/// The arguments that rustc prints, with two changes for the forks of qmail-rspawn.
///
/// libgcc is linked statically, even if nothing else is: each fork would copy the mappings of the shared one. (And a
/// static program, with `cc -static` in conf-ld, cannot have it.)
///
/// All symbols are bound at the start. The argument comes last, so it overrides conf-ld. Otherwise each child binds
/// symbols for itself between fork and exec, with or without the gate. That costs seven page faults a delivery on
/// notqmail-1.09, as many as the gate's memory costs there (benches/spawner.rs).
fn link_arguments(libraries: &str, target: &str) -> Vec<String> {
    let replaced = |library| if library == "-lgcc_s" { "-static-libgcc" } else { library };
    let libraries = libraries.split_whitespace().map(replaced);
    // The linkers of Apple and AIX have no -z.
    let knows_z = !target.contains("apple") && !target.contains("aix");
    libraries.chain(knows_z.then_some("-Wl,-z,now")).map(str::to_owned).collect()
}
