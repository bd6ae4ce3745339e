//! The gate and its C as the mail server gets them: rustc makes the static library, cc compiles the glue and links both
//! with the libraries that rustc names. Also with AddressSanitizer, and under Valgrind if there is one.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;

use qpatch_gate::problem::File;
use qpatch_gate_library as library;
use qpatch_test_support::{has, skip};

/// The most that the gate may add to a stripped program, in bytes. It adds 603 KiB, 174 of which are the standard
/// library's back traces. Rates are 68 KiB of it.
const GROWTH_MAX: u64 = 640 << 10;

/// The static library and the arguments to link with, made once for all tests.
struct Gate {
    archive: PathBuf,
    libraries: Vec<String>,
}

fn gate() -> &'static Gate {
    static GATE: OnceLock<Gate> = OnceLock::new();
    GATE.get_or_init(|| made("gate.a", &[]))
}

/// The library with injected panics.
fn panicking_gate() -> &'static Gate {
    static GATE: OnceLock<Gate> = OnceLock::new();
    GATE.get_or_init(|| made("panicking.a", &["--cfg", "feature=\"panic-injection\""]))
}

/// Built as for the mail server, but a warning is an error.
fn made(name: &str, more: &[&str]) -> Gate {
    let archive = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    let rustc = std::env::var("RUSTC").unwrap_or_else(|_| "rustc".into());
    let more = [&["-D", "warnings"], more].concat();
    let libraries =
        library::build(&rustc, env!("GATE_TARGET"), &gate_source("src/lib.rs"), &archive, &more);
    Gate { archive, libraries }
}

struct Build {
    path: PathBuf,
}

impl Drop for Build {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.path);
    }
}

fn source(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}

fn gate_source(name: &str) -> PathBuf {
    Path::new(env!("GATE_ROOT")).join(name)
}

fn run(command: &mut Command) -> Output {
    command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"))
}

fn succeed(command: &mut Command) -> Output {
    let output = run(command);
    assert!(
        output.status.success(),
        "{command:?}: {}\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    output
}

fn compiler() -> String {
    std::env::var("CC").unwrap_or_else(|_| "cc".into())
}

impl Build {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("gate-c-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        fs::create_dir_all(path.join("queue/mess")).unwrap();
        fs::create_dir_all(path.join("queue/lock")).unwrap();
        fs::create_dir_all(path.join("control")).unwrap();
        for file in [File::Status].into_iter().chain(File::KEPT).map(File::name) {
            fs::write(path.join("queue/lock").join(file), "").unwrap();
        }
        fs::write(path.join("control/concurrencyremote"), "120\n").unwrap();
        fs::write(path.join("control/concurrencydomains"), "busy.example:3\n:20\n").unwrap();
        Self { path }
    }

    fn object(&self, file: &str, flags: &[&str]) -> PathBuf {
        let object = self.path.join(file.replace('/', "_")).with_extension("o");
        let output = succeed(
            Command::new(compiler())
                .args(["-std=gnu89", "-Wall", "-Werror", "-g", "-O2", "-c"])
                .args(flags)
                .arg("-I")
                .arg(source("tests/c"))
                .arg("-I")
                .arg(source(""))
                .arg("-I")
                .arg(gate_source(""))
                .arg(source(file))
                .arg("-o")
                .arg(&object),
        );
        assert!(output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
        object
    }

    fn link(&self, name: &str, flags: &[&str], files: &[&str], gate: Option<&Gate>) -> PathBuf {
        let program = self.path.join(name);
        let mut command = Command::new(compiler());
        command.args(flags).args(files.iter().map(|file| self.object(file, flags)));
        if let Some(gate) = gate {
            command.arg(&gate.archive).args(&gate.libraries);
        }
        succeed(command.arg("-o").arg(&program));
        program
    }

    fn command(&self, program: &Path, mode: &str) -> Command {
        let mut command = Command::new(program);
        command.arg(mode).current_dir(self.path.join("queue/mess"));
        command
    }

    /// Runs a program that must succeed and print one line only. Returns the numbers in that line.
    fn numbers(&self, program: &Path, mode: &str) -> Vec<u64> {
        let output = succeed(&mut self.command(program, mode));
        assert!(
            output.stderr.is_empty(),
            "the gate printed: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        let text = String::from_utf8(output.stdout).unwrap();
        print!("{mode}: {text}");
        text.split_whitespace().filter_map(|word| word.parse().ok()).collect()
    }
}

const GLUE: [&str; 2] = ["tests/c/glue.c", "gate_glue.c"];

#[test]
fn glue() {
    let build = Build::new("glue");
    let program = build.link("glue", &[], &GLUE, Some(gate()));
    let [commands, ended, held, busy, nomem, calls] = build.numbers(&program, "run")[..] else {
        panic!("six numbers")
    };
    assert_eq!((commands, nomem), (ended, 0));
    assert!(held > 100 && busy > 100 && calls > 10);
    let [commands, ended, _, _, nomem, _] = build.numbers(&program, "memory")[..] else {
        panic!("six numbers")
    };
    assert_eq!(commands, ended);
    assert!(nomem > 10, "{nomem}");
    let status = fs::read_to_string(build.path.join("queue/lock/gatestatus")).unwrap();
    assert!(status.contains("key\tdomain\tbusy.example\t3\t0\t0\t"), "{status}");

    // Without the control file it is stock.
    fs::remove_file(build.path.join("control/concurrencydomains")).unwrap();
    // Without a kept copy, too, as three seconds after it was removed.
    fs::write(build.path.join("queue/lock/gatekept.domains"), "").unwrap();
    let output = run(&mut build.command(&program, "run"));
    assert_eq!(String::from_utf8_lossy(&output.stdout), "wrong: over the limit\n");

    let stub = build.link("stub", &[], &["tests/c/glue.c", "gate_stub.c"], None);
    let output = run(&mut build.command(&stub, "run"));
    assert_eq!(
        String::from_utf8_lossy(&output.stdout),
        "wrong: over the limit\n",
        "the stub has no limit"
    );

    let sizes = [&program, &stub].map(|program| {
        succeed(Command::new("strip").arg(program));
        fs::metadata(program).unwrap().len()
    });
    let growth = sizes[0] - sizes[1];
    println!(
        "the gate adds {growth} bytes ({} KiB) to a stripped program of {}",
        growth >> 10,
        sizes[1]
    );
    assert!(growth <= GROWTH_MAX);
}

/// All symbols are bound in the parent, so that no child binds them between fork and exec.
#[test]
fn symbols_are_bound_at_the_start() {
    let build = Build::new("now");
    // Even if lazy binding is the default.
    let program = build.link("glue", &["-Wl,-z,lazy"], &GLUE, Some(gate()));
    let Ok(output) = Command::new("readelf").args(["-d", "-W"]).arg(&program).output() else {
        skip("no readelf");
        return;
    };
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("BIND_NOW") || text.contains("Flags: NOW"), "{text}");
}

#[test]
fn panics_stay_inside() {
    let build = Build::new("panic");
    let program = build.link("glue", &[], &GLUE, Some(panicking_gate()));
    let [commands, _, held, busy, ..] = build.numbers(&program, "panic")[..] else {
        panic!("six numbers")
    };
    assert!(commands > 0 && held > 0);
    assert_eq!(busy, 0, "after a panic everything goes");
    let status = fs::read_to_string(build.path.join("queue/lock/gatestatus")).unwrap();
    assert!(status.contains("state\tfailed\n"), "{status}");
}

/// The library for the mail server has no injected panics.
#[test]
fn nothing_injects_panics_into_the_mail_server() {
    let injects = |gate: &Gate| {
        let bytes = fs::read(&gate.archive).unwrap();
        let text = bytes.windows(8).any(|window| window == b"injected");
        let output = succeed(Command::new("nm").arg(&gate.archive));
        let symbols = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(symbols.contains(" T gate_ask\n"), "it has symbols");
        (text, symbols.contains("gate_inject_panics"), symbols.contains("inject"))
    };
    assert_eq!(injects(panicking_gate()), (true, true, true), "or the look finds nothing at all");
    assert_eq!(injects(gate()), (false, false, false));
}

#[test]
fn sanitizer() {
    let build = Build::new("asan");
    let flags = ["-fsanitize=address"];
    let program = build.link("glue", &flags, &GLUE, Some(gate()));
    let proof = run(&mut build.command(&program, "overflow"));
    let said = String::from_utf8_lossy(&proof.stderr);
    assert!(
        !proof.status.success() && said.contains("AddressSanitizer: heap-buffer-overflow"),
        "is it on? {said}"
    );
    assert_eq!(build.numbers(&program, "run").len(), 6);
    assert_eq!(build.numbers(&program, "memory").len(), 6);
    let retry = build.link("retry", &flags, &["tests/c/retry.c", "gate_retry.c"], None);
    succeed(&mut build.command(&retry, ""));
}

#[test]
fn valgrind() {
    if !has("valgrind") {
        return;
    }
    let build = Build::new("valgrind");
    let glue = build.link("glue", &[], &GLUE, Some(panicking_gate()));
    let retry = build.link("retry", &[], &["tests/c/retry.c", "gate_retry.c"], None);
    let check = |program: &Path, mode: &str| {
        run(Command::new("valgrind")
            .args([
                "--quiet",
                "--error-exitcode=99",
                "--leak-check=full",
                "--errors-for-leak-kinds=definite",
            ])
            .arg(program)
            .args([mode, "1000"])
            .current_dir(build.path.join("queue/mess")))
    };
    let proof = check(&glue, "overflow");
    assert_eq!(proof.status.code(), Some(99), "{}", String::from_utf8_lossy(&proof.stderr));
    for (program, mode) in [(&glue, "run"), (&glue, "memory"), (&glue, "panic"), (&retry, "")] {
        let output = check(program, mode);
        assert!(output.status.success(), "{mode}: {}", String::from_utf8_lossy(&output.stderr));
    }
}

#[test]
fn retry() {
    let build = Build::new("retry");
    let program = build.link("retry", &[], &["tests/c/retry.c", "gate_retry.c"], None);
    let output = succeed(&mut build.command(&program, ""));
    assert_eq!(String::from_utf8_lossy(&output.stdout), "retry ok\n");
}

/// With every compiler and dialect that trees use.
#[test]
fn compiles_without_warnings() {
    let build = Build::new("warnings");
    for compiler in ["gcc", "clang"] {
        if !has(compiler) {
            continue;
        }
        for dialect in ["-std=gnu89", "-std=gnu99", "-std=gnu17"] {
            for file in ["gate_glue.c", "gate_stub.c", "gate_retry.c"] {
                let output = run(Command::new(compiler)
                    .args([dialect, "-Wall", "-Wextra", "-Werror", "-O2", "-c"])
                    .arg("-I")
                    .arg(source("tests/c"))
                    .arg("-I")
                    .arg(gate_source(""))
                    .arg(source(file))
                    .arg("-o")
                    .arg(build.path.join("x.o")));
                let said = String::from_utf8_lossy(&output.stderr);
                assert!(
                    output.status.success() && said.is_empty(),
                    "{compiler} {dialect} {file}: {said}"
                );
            }
        }
    }
}
