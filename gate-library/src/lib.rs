//! How the gate's static library is made for the mail server. qpatch's build script and the tests of the C share it.
//!
//! A plain call of rustc: the gate has no dependencies, and it wants a profile of its own (fat LTO, one unit,
//! unwinding) whatever the profile of qpatch is.

use std::path::Path;
use std::process::Command;

/// Compiles the library; `more` are further arguments for rustc. What whoever links it has to add for this target.
pub fn build(
    rustc: &str,
    target: &str,
    source: &Path,
    library: &Path,
    more: &[&str],
) -> Vec<String> {
    let mut command = Command::new(rustc);
    command
        .args(["--crate-name", "qpatch_gate", "--crate-type", "staticlib", "--edition", "2024"])
        // With 2 it is 68 KiB larger, and a delivery's calls take 0.29 us in place of 0.31 (3005 and 3355
        // instructions).
        .args(["-C", "opt-level=s", "-C", "lto=fat", "-C", "codegen-units=1", "-C", "panic=unwind"])
        .args(["--print", "native-static-libs", "--target", target])
        .args(more)
        .arg("-o")
        .arg(library)
        .arg(source);
    let output = command.output().unwrap_or_else(|e| panic!("{command:?}: {e}"));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}:\n{said}");
    // The standard library's debugging symbols are more than half of it. No harm where there is no strip.
    let _ = Command::new("strip").arg("--strip-debug").arg(library).status();
    let libraries = said
        .lines()
        .find_map(|line| line.split_once("native-static-libs: "))
        .unwrap_or_else(|| panic!("rustc told no native-static-libs:\n{said}"))
        .1;
    link_arguments(libraries, target)
}

/// What rustc says, with two changes for the sake of qmail-rspawn's forks.
///
/// libgcc is linked statically, also where nothing else is: the mappings of the shared one are copied with each fork.
/// (And it is not there for a static program, `cc -static` in conf-ld.)
///
/// All symbols are bound at the start, whatever conf-ld says of that: it comes last. What is not bound then, each child
/// binds for itself between fork and exec, with the gate as without it. That is seven page faults a delivery on
/// notqmail-1.09, as many as the gate's memory costs there (benches/spawner.rs).
fn link_arguments(libraries: &str, target: &str) -> Vec<String> {
    let replaced = |library| if library == "-lgcc_s" { "-static-libgcc" } else { library };
    let libraries = libraries.split_whitespace().map(replaced);
    // Apple's and AIX's linkers know no -z.
    let knows_z = !target.contains("apple") && !target.contains("aix");
    libraries.chain(knows_z.then_some("-Wl,-z,now")).map(str::to_owned).collect()
}
