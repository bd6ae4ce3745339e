//! `qpatch verify` on trees with faults: each must fail, in the right step and with the reason. Nothing may be left
//! behind. This file has a few lines more than 700 because all its trees are broken in one place and proved alike.

mod common;
#[path = "common/rig.rs"]
mod rig;
#[path = "common/trees.rs"]
mod trees;

use std::fs::{self, Permissions};
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use common::{Fixture, Run, run};
use qpatch::fixture::Dialect;
use qpatch::verify::rig::protocol;
use qpatch::verify::rig::spawner::{Channel, Spawner};
use qpatch::verify::rig::stub::{self, Mode};
use qpatch::verify::sandbox::private_tree::TodoLayout;
use qpatch::verify::sandbox::{Fsync, SandboxConfig};
use qpatch::verify::{self, Options, Part, Silent};
use qpatch_test_support::skip;
use serde_json::Value;
use tempfile::TempDir;
use trees::{Gate, classic, patched};

/// A folder for $TMPDIR. If a proof runs as root, its programs run as another user, who must be able to enter it.
fn tmpdir() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    fs::set_permissions(dir.path(), Permissions::from_mode(0o755)).unwrap();
    dir
}

fn entries(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).unwrap();
    entries.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned()).collect()
}

/// Runs `qpatch verify ARGS` on the fixture with at most `files` descriptors, and checks that $TMPDIR is empty
/// afterwards.
fn proof(fixture: &Fixture, args: &[&str], files: u32) -> Run {
    proof_with(fixture, args, files, &[])
}

fn proof_with(fixture: &Fixture, args: &[&str], files: u32, env: &[(&str, &str)]) -> Run {
    let tmp = tmpdir();
    let mut command = Command::new("sh");
    command
        .args(["-c", &format!("ulimit -n {files}; exec timeout 300 \"$@\""), "sh"])
        .args([env!("CARGO_BIN_EXE_qpatch"), "verify"])
        .args(args)
        .arg(fixture.path())
        .env("TMPDIR", tmp.path())
        .envs(env.iter().copied());
    let run = run(&mut command);
    assert_eq!(entries(tmp.path()), Vec::<String>::new());
    run
}

/// Enough descriptors for a proof at conf-spawn 1000, and few enough to keep one at 40000 small.
const FILES: u32 = 2600;

/// Checks that the proof fails in the step `step` with all of `reasons`. Returns its outcome.
fn disproved(fixture: &Fixture, args: &[&str], step: &str, reasons: &[&str]) -> Value {
    let run = proof(fixture, &[args, &["--format", "json"]].concat(), FILES);
    let outcome: Value =
        serde_json::from_str(&run.out).unwrap_or_else(|e| panic!("{e}: {}", run.out));
    assert_eq!((run.code, &outcome["ok"]), (1, &Value::Bool(false)), "{outcome:#}");
    let failed = steps(&outcome).find(|s| s["name"] == step && s["result"] == "fail");
    let detail =
        failed.unwrap_or_else(|| panic!("{step}: {outcome:#}"))["detail"].as_str().unwrap();
    for reason in reasons {
        assert!(detail.contains(reason), "{step}: wanted {reason:?}, found {detail:?}");
    }
    outcome
}

fn steps(outcome: &Value) -> impl Iterator<Item = &Value> {
    outcome["steps"].as_array().unwrap().iter()
}

#[test]
fn a_stock_tree_that_no_longer_links() {
    let outcome = disproved(
        &Fixture::new(Dialect::StockKr),
        &["--spawn", "1000"],
        "build",
        &[
            "the tree declares \"extern int errno\", which has not linked since glibc 2.3; qpatch apply (toolchain) \
             includes <errno.h> instead",
            "lists everything that is missing)",
        ],
    );
    assert_eq!(steps(&outcome).count(), 1);
}

#[test]
fn a_stock_tree_at_1000() {
    let run = proof(&Fixture::new(Dialect::StockAnsi), &["--spawn", "1000"], FILES);
    assert_eq!(run.code, 1, "{}{}", run.out, run.err);
    assert_eq!(run.err, "");
    for line in [
        "FAIL  chkspawn                chkspawn: expected conf-spawn 1000 accepted, found \"Oops. You have set conf-spawn \
         higher than 255.",
        "make would stop here; qpatch apply --spawn 1000 raises what it checks",
        "FAIL  fd_set                  the size of fd_set in spawn.c: expected at least 2005 descriptors for conf-spawn \
         1000 (without spawn-events two for each delivery, and five), found 1024; from descriptor 1024 on, FD_SET \
         overwrites memory; qpatch apply --spawn 1000 (fd-setsize) raises it",
        "FAIL  qmail-rspawn            qmail-rspawn, the width of its delivery numbers: expected two bytes, as conf-spawn \
         1000 needs, found one byte: it announces 232 instead of 1000, and delivery number 256 would be taken for 0",
        "the tree lacks the big-concurrency patch: qpatch apply --spawn 1000",
        "skip  mail                    not tried, because an earlier step failed\n",
        "skip  gate                    the tree has no gate (domain-gate is not applied)\n",
        "skip  fork-server             the tree has no fork server (fork-server is not applied)\n",
        "\n4 of 6 steps failed at conf-spawn 1000, 6 not tried; ",
    ] {
        assert!(run.out.contains(line), "wanted {line:?}, found\n{}", run.out);
    }
}

#[test]
fn the_classic_patch_and_recipe_at_40000() {
    let outcome = disproved(
        &classic(),
        &["--spawn", "40000", "--only", "chkspawn,fd_set,qmail-rspawn"],
        "qmail-rspawn",
        &[
            "qmail-rspawn, delivery number 32768: expected ",
            "delivery number negative",
            "the high byte of a delivery number is read as a signed char, as in the classic patch: every number from 32768 \
             on is lost; qpatch apply (big-concurrency) repairs it",
        ],
    );
    // Everything that can be seen without running it is right.
    for name in ["build", "chkspawn", "fd_set"] {
        assert!(steps(&outcome).any(|s| s["name"] == name && s["result"] == "pass"), "{outcome:#}");
    }
}

#[test]
fn the_classic_patch_and_recipe_under_fortify() {
    let options = Options {
        spawn: Some(1000),
        only: vec![Part::Chkspawn, Part::FdSet, Part::FortifyRspawn, Part::FortifyLspawn],
        ..Options::default()
    };
    let outcome = verify::run(classic().path(), &options, &mut Silent).unwrap();
    assert!(!outcome.ok());
    let step = |name: &str| outcome.steps.iter().find(|step| step.name == name).unwrap();
    for name in ["build", "chkspawn", "fd_set", "fortify-build"] {
        assert_eq!(step(name).verdict, verify::StepVerdict::Pass, "{}", step(name));
    }
    for name in ["fortify-qmail-rspawn", "fortify-qmail-lspawn"] {
        assert_eq!(step(name).verdict, verify::StepVerdict::Fail);
        let detail = &step(name).detail;
        assert!(detail.contains("ended by signal 6 (abort)"), "{detail}");
        assert!(
            detail.contains(
                "under _FORTIFY_SOURCE the C library aborts on a descriptor of 1024 or more"
            ),
            "{detail}"
        );
        assert!(detail.contains("otherwise on memory that was damaged"), "{detail}");
    }
}

#[test]
fn an_include_that_was_moved_back() {
    // In stock-ansi, unlike in stock-kr, a header of the tree includes sys/types.h.
    for (dialect, source, before) in [
        (Dialect::StockKr, "spawn.c", "#include <sys/stat.h>\n"),
        (Dialect::StockAnsi, "chkspawn.c", "#include \"substdio.h\"\n"),
    ] {
        let fixture = patched(dialect, Gate::In);
        let select = "#include \"select.h\"\n";
        fixture.replace(source, select, "");
        fixture.replace(source, before, &format!("{before}{select}"));
        disproved(
            &fixture,
            &[],
            "build",
            &[
                "error: #error \"sys/select.h was included before select.h, which must be the first header of a file\"",
            ],
        );
    }
}

#[test]
fn a_slot_that_is_not_freed_after_a_failed_fork() {
    let fixture = patched(Dialect::StockKr, Gate::In);
    // The slot keeps its pipe, and is in use for ever.
    fixture.replace(
        "spawn.c",
        "    close(pi[0]);\n    close(pi[1]);\n    return;\n",
        "    d[delnum].fdin = pi[0]; d[delnum].fdkeep = pi[1]; d[delnum].child = child; d[delnum].used = 1;\n    return;\n",
    );
    let outcome = disproved(
        &fixture,
        &["--only", "qmail-rspawn", "--only", "qmail-lspawn"],
        "qmail-rspawn",
        &[
            "again after fork fails: expected K, found Z ",
            "in use",
            "the slot of a delivery that could not be started is not freed",
        ],
    );
    let lspawn = steps(&outcome).find(|step| step["name"] == "qmail-lspawn").unwrap();
    assert_eq!(lspawn["result"], "fail");
}

#[test]
fn a_gate_that_does_not_learn_of_the_end_of_a_delivery() {
    let fixture = patched(Dialect::StockKr, Gate::In);
    fixture.replace("spawn.c", "gateglue_done((unsigned int) i,&d[i].output)", "0");
    // The gate answers busy for ever, which causes events, but no mail is done.
    let options = Options { only: vec![Part::Gate], ..Options::default() };
    let outcome = verify::run(fixture.path(), &options, &mut Silent).unwrap();
    let gate = outcome.steps.iter().find(|step| step.name == "gate").unwrap();
    assert_eq!(gate.verdict, verify::StepVerdict::Fail, "{gate}");
    assert!(gate.detail.contains("deliveries to capped.example at the same time"), "{gate}");
    let wrong = outcome.steps.iter().filter(|step| step.verdict == verify::StepVerdict::Fail);
    assert_eq!(wrong.count(), 1);
}

#[test]
fn a_qmail_send_that_does_not_hear_the_gate_s_calls() {
    let fixture = patched(Dialect::StockKr, Gate::In);
    fixture.replace(
        "qmail-send.c",
        "if (!gate_retry_call(c,(unsigned long) delnum,&dline[c].s[2]))",
        "",
    );
    let options = Options { only: vec![Part::Gate], ..Options::default() };
    let outcome = verify::run(fixture.path(), &options, &mut Silent).unwrap();
    let gate = outcome.steps.iter().find(|step| step.name == "gate").unwrap();
    assert_eq!(gate.verdict, verify::StepVerdict::Fail, "{gate}");
    // It fails at once, not after a timeout.
    assert!(gate.detail.contains("delivery report out of range"), "{gate}");
}

/// Waits for the end of a child, at most `patience`; then kills it.
fn end(child: &mut Child, patience: Duration) -> Option<std::process::ExitStatus> {
    let until = Instant::now() + patience;
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return Some(status);
        }
        if Instant::now() > until {
            child.kill().unwrap();
            child.wait().unwrap();
            return None;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn an_interrupted_proof_leaves_nothing_behind() {
    let fixture = patched(Dialect::StockAnsi, Gate::Out);
    for last_step in ["build", "qmail-send-numbers"] {
        let tmp = tmpdir();
        // A program that a shell starts in the background ignores SIGINT by default.
        let mut child = Command::new("env")
            .args(["--default-signal=INT", env!("CARGO_BIN_EXE_qpatch"), "verify"])
            .arg(fixture.path())
            .env("TMPDIR", tmp.path())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        loop {
            let line =
                lines.next().unwrap_or_else(|| panic!("it ended before {last_step}")).unwrap();
            assert!(line.starts_with("ok "), "{line}");
            if line[6..].starts_with(last_step) {
                break;
            }
        }
        assert_eq!(entries(tmp.path()).len(), 1, "what it left would be elsewhere");
        run(Command::new("sh").args(["-c", "kill -INT $0", &child.id().to_string()])).ok();
        let status = end(&mut child, Duration::from_secs(30)).expect("it goes on after SIGINT");
        assert_eq!(status.signal(), Some(2), "{status}");
        assert_eq!(entries(tmp.path()), Vec::<String>::new());
        assert_eq!(rig::running_below(tmp.path()), []);
        // Steps that ended before the signal are printed, but no result.
        assert!(lines.all(|line| line.unwrap().starts_with("ok ")));
    }
}

/// A fork in which big-todo can be switched on: only the code that is compiled decides about its queue.
#[test]
fn only_compiled_code_decides_about_directories() {
    let fixture = Fixture::new(Dialect::StockKr);
    let split = "  dsplit(\"queue/mess\",auto_uidq,0750);\n";
    fixture.replace(
        "hier.c",
        split,
        &format!("{split}#ifdef BIG_TODO\n  dsplit(\"queue/todo\",auto_uidq,0750);\n#endif\n"),
    );
    let layout = |flags: &[&str]| {
        let (_scratch, sandbox) = rig::sandbox(fixture.path(), &rig::config(100, flags)).unwrap();
        sandbox.todo_layout()
    };
    assert_eq!(layout(&[]), TodoLayout::Flat);
    assert_eq!(layout(&["-DBIG_TODO"]), TodoLayout::Split);
    // A header that make has not made yet.
    let hier = fixture.read("hier.c");
    fixture.write("hier.c", &format!("#include \"made.h\"\n{hier}"));
    assert_eq!(layout(&[]), TodoLayout::Flat);
    assert_eq!(layout(&["-DBIG_TODO"]), TodoLayout::Split);
    // A header that exists, beside the missing one.
    fixture.write("there.h", "#define BIG_TODO\n");
    fixture.write("hier.c", &format!("#include \"made.h\"\n# include \"there.h\"\n{hier}"));
    assert_eq!(layout(&[]), TodoLayout::Split);
}

/// The programs of a proof do not wait for the disk; those of the bench's queue on a disk do.
#[test]
fn fsync_is_replaced_only_where_it_is_to_do_nothing() {
    let fixture = Fixture::new(Dialect::StockKr);
    for (fsync, replaced) in [(Fsync::Skipped, true), (Fsync::Real, false)] {
        let config = SandboxConfig { fsync, ..rig::config(100, &[]) };
        let (_scratch, sandbox) = rig::sandbox(fixture.path(), &config).unwrap();
        let object = fs::read(sandbox.rig().join("link.o")).unwrap();
        // The name of a symbol.
        let has = |name: &[u8]| object.windows(name.len()).any(|bytes| bytes == name);
        assert!(has(b"\0getpwnam\0"), "{fsync:?}");
        assert_eq!(has(b"\0fsync\0"), replaced, "{fsync:?}");
    }
}

/// A qmail-lspawn that cannot start: the reason is reported, and the steps that do not need it run.
#[test]
fn a_qmail_lspawn_that_wants_more_than_there_is() {
    let fixture = patched(Dialect::StockKr, Gate::In);
    fixture.replace(
        "qmail-lspawn.c",
        "  if (argc < 2) _exit(100);\n",
        "  if (open_read(\"control/ldapserver\") == -1) _exit(112);\n",
    );
    let outcome = disproved(
        &fixture,
        &["--only", "qmail-lspawn,qmail-send-numbers,mail"],
        "qmail-lspawn",
        &["ended by exit code 112 at its start", "control files of its own"],
    );
    let verdict = |name: &str| {
        let step = steps(&outcome).find(|step| step["name"] == name);
        step.map(|step| step["result"].clone()).unwrap_or_default()
    };
    assert_eq!(verdict("qmail-send-numbers"), "pass");
    assert_eq!(verdict("mail"), "skipped");
}

/// Few descriptors are reported as a limit of the machine, not as a system call that failed.
#[test]
fn a_machine_with_few_descriptors() {
    let fixture = patched(Dialect::StockKr, Gate::In);
    for (files, only) in [(64, "qmail-rspawn,mail,gate"), (40, "qmail-send-numbers,mail")] {
        let run = proof(&fixture, &["--spawn", "60", "--only", only], files);
        let allows = format!(
            "this machine allows {} deliveries at once, not 60 (RLIMIT_NOFILE {files})",
            files - 16
        );
        assert!(run.out.contains(&allows), "wanted {allows:?}, found\n{}", run.out);
        run.ok();
    }
}

#[test]
fn steps_that_were_not_asked_for() {
    let fixture = Fixture::new(Dialect::StockAnsi);
    let run = proof(&fixture, &["--only", "chkspawn", "--only", "fd_set"], FILES).ok();
    let steps =
        ["machine", "qmail-rspawn", "qmail-lspawn", "qmail-send-numbers", "mail", "restart"];
    for step in steps.into_iter().chain(["gate", "fortify-build"]) {
        let line = format!("\nskip  {step:<22}  not asked for\n");
        assert!(run.out.contains(&line), "wanted {line:?}, found\n{}", run.out);
    }
    assert!(run.out.contains("\n3 steps hold at conf-spawn "), "{}", run.out);
    // One between others: what comes before it is not tried.
    let run = proof(&fixture, &["--only", "restart"], FILES).ok();
    for line in ["\nskip  mail                    not asked for\n", "\nok    restart "] {
        assert!(run.out.contains(line), "wanted {line:?}, found\n{}", run.out);
    }
    // What was asked for and is not there has not been proved.
    let reason = "a gate, as --only asks for it, found none; qpatch apply (domain-gate) puts it in";
    disproved(&fixture, &["--only", "gate"], "gate", &[reason]);
}

#[test]
fn a_spawner_that_wants_a_control_file() {
    let fixture = patched(Dialect::StockKr, Gate::In);
    fixture.replace(
        "qmail-lspawn.c",
        "  if (argc < 2) _exit(100);\n",
        "  if (open_read(\"../../control/ldapserver\") == -1) _exit(112);\n  \
         if (open_read(\"../../control/ldap/password\") == -1) _exit(112);\n",
    );
    let control = tempfile::tempdir().unwrap();
    fs::write(control.path().join("ldapserver"), "localhost\n").unwrap();
    fs::create_dir(control.path().join("ldap")).unwrap();
    fs::write(control.path().join("ldap/password"), "secret\n").unwrap();
    // With the contents that these files have on a server, the rig could not work.
    for (name, text) in [("me", "mail.example\n"), ("concurrencyremote", "0\n"), ("locals", "")] {
        fs::write(control.path().join(name), text).unwrap();
    }
    let dir = control.path().to_str().unwrap();
    proof(&fixture, &["--only", "qmail-lspawn,mail", "--control", dir], FILES).ok();
    let run = proof(&fixture, &["--control", "/nonexistent"], FILES);
    let said = "qpatch: cannot read /nonexistent: No such file or directory (os error 2)\n";
    assert_eq!((run.code, run.out.as_str(), run.err.as_str()), (1, "", said));
}

/// What is copied is what is in the folder, and no more than a control folder has.
#[test]
fn a_control_folder_with_links_or_too_much_in_it() {
    let fixture = patched(Dialect::StockKr, Gate::In);
    let refused = |control: &tempfile::TempDir, name: &str, why: &str| {
        let run = proof(&fixture, &["--control", control.path().to_str().unwrap()], FILES);
        let said = format!("cannot copy {}: {why} (", control.path().join(name).display());
        assert!(run.code == 1 && run.out.contains(&said), "{}{}", run.out, run.err);
    };
    let control = tempfile::tempdir().unwrap();
    fs::write(control.path().join("helohost"), "a.example\n").unwrap();
    std::os::unix::fs::symlink("helohost", control.path().join("bindaddr")).unwrap();
    std::os::unix::fs::symlink("/etc/passwd", control.path().join("users")).unwrap();
    refused(&control, "users", "it is a link out of the folder of --control");
    fs::remove_file(control.path().join("users")).unwrap();
    std::os::unix::fs::symlink(".", control.path().join("users")).unwrap();
    refused(&control, "users", "it is a link to a folder");
    fs::remove_file(control.path().join("users")).unwrap();
    fs::File::create(control.path().join("users")).unwrap().set_len(300 << 20).unwrap();
    refused(&control, "users", "the folder of --control has more than 256 MiB");
}

/// In s/qmail, the conf-* files are one folder up, and its home is in conf-home.
#[test]
fn settings_one_folder_up() {
    let outer = tempfile::tempdir().unwrap();
    let src = outer.path().join("src");
    Dialect::StockAnsi.write(&src).unwrap();
    let makefile = fs::read_to_string(src.join("Makefile")).unwrap();
    fs::write(
        src.join("Makefile"),
        makefile.replace("conf-", "../conf-").replace("conf-qmail", "conf-home"),
    )
    .unwrap();
    for entry in entries(&src).iter().filter(|name| name.starts_with("conf-")) {
        let up = if entry == "conf-qmail" { "conf-home" } else { entry };
        fs::rename(src.join(entry), outer.path().join(up)).unwrap();
    }
    let before = common::snapshot(outer.path());
    let tree = src.to_str().unwrap();
    let applied = common::qpatch(&["apply", "--spawn", "300", tree]).ok();
    assert!(
        applied.out.ends_with("Next: qpatch verify, then make setup check\n"),
        "{}",
        applied.out
    );
    let spawn = fs::read_to_string(outer.path().join("conf-spawn")).unwrap();
    assert!(spawn.starts_with("300\n"), "{spawn}");
    assert_eq!(entries(&src).iter().find(|name| name.starts_with("conf-")), None);
    let diff = common::qpatch(&["diff", "--spawn", "400", tree]).ok();
    assert_eq!(diff.out, "");
    assert!(diff.err.contains("../conf-spawn lies one folder up"), "{}", diff.err);
    common::qpatch(&["verify", "--only", "qmail-rspawn,mail", tree]).ok();
    common::qpatch(&["revert", tree]).ok();
    assert_eq!(common::bytes(&common::snapshot(outer.path())), common::bytes(&before));
}

/// A fork whose own configure makes the files that verify must set: apply knows that, and does not recommend verify.
#[test]
fn settings_that_a_configure_makes() {
    for (name, template, script) in [
        ("conf-qmail", Some("conf-qmail.in"), Some("default.configure")),
        ("conf-ld", None, Some("configure")),
        ("conf-qmail", Some("conf-qmail.in"), None),
        ("conf-cc", None, None),
    ] {
        let fixture = Fixture::new(Dialect::StockAnsi);
        fs::rename(fixture.path().join(name), fixture.path().join(template.unwrap_or("kept")))
            .unwrap();
        if let Some(script) = script {
            let from = template.unwrap_or("kept");
            fixture.write(script, &format!("#!/bin/sh\nsed s/a/a/ {from} > {name}\n"));
        }
        let why = match (script, template) {
            (Some(script), _) => {
                format!("it has no {name}, which its {script} makes: run that first")
            }
            (None, Some(template)) => {
                format!("it has no {name}, only {template}: make it from that first")
            }
            (None, None) => format!("it has no {name}"),
        };
        if name != "conf-cc" {
            let applied = fixture.qpatch(&["apply", "--spawn", "1000"]).ok();
            let next =
                format!("Next: make setup check\nqpatch verify cannot build this tree: {why}\n");
            assert!(applied.out.ends_with(&next), "wanted {next:?}, found {:?}", applied.out);
        }
        let verify = fixture.qpatch(&["verify"]);
        let path = fixture.path().display();
        let said = format!("qpatch: {path}: verify cannot build this tree: {why}\n");
        assert_eq!((verify.code, verify.out.as_str(), verify.err.as_str()), (1, "", &*said));
    }
}

/// The tree's ./compile and ./load let a shell in the tree read the first lines of conf-cc and conf-ld. So does verify.
#[test]
fn a_compiler_line_that_only_a_shell_understands() {
    let fixture = Fixture::new(Dialect::StockAnsi);
    fs::create_dir_all(fixture.path().join("two words")).unwrap();
    fixture.write("two words/there.h", "#define THERE WORD\n");
    fixture.write("flags", "-DWORD=1 -DTWO=2\n");
    for source in ["spawn.c", "qmail-lspawn.c", "hier.c"] {
        let old = fixture.read(source);
        let check = "#include \"there.h\"\n#if THERE + TWO != 3\n#error no\n#endif\n";
        fixture.write(source, &format!("{old}{check}"));
    }
    // The number of channels depends on what these flags define.
    fixture.write(
        "channels.h",
        "#include \"there.h\"\n#if THERE\n#define SUPPL_CHANNELS 0\n#else\n#error no\n#endif\n",
    );
    let rest = "\nThe second line `exit 1` \"counts for nothing.\n";
    fixture.write(
        "conf-cc",
        &format!("${{NO_SUCH:-cc}} -O2 `cat flags | head -1` -I\"two words\" -DX=\"a b\"{rest}"),
    );
    fixture
        .write("conf-ld", &format!("$(echo cc | tr x y) `test -d 'two words' && echo -g`{rest}"));
    let run = proof(&fixture, &["--only", "fd_set,qmail-rspawn,qmail-lspawn,mail"], FILES).ok();
    assert!(run.out.contains("-I\"two words\" -DX=\"a b\"\""), "{}", run.out);
    assert!(
        run.out.contains("descriptors in each of chkspawn.c, qmail-send.c, spawn.c"),
        "{}",
        run.out
    );
    // Another compiler replaces the first word, which has blanks.
    fixture.write("conf-cc", "`echo no such program` `cat flags` -I\"two words\"\n");
    fixture.write("conf-ld", "'no such program'\n");
    proof(&fixture, &["--only", "qmail-rspawn", "--cc", "cc -O1"], FILES).ok();
    // A compiler that does not exist: the message says that --cc names it.
    let args = ["--only", "build", "--cc", "no-such-cc -O1"];
    // A shell says "Permission denied" if a folder of PATH is closed to it, as root's own is to the user that verify
    // takes.
    let none = proof_with(&fixture, &args, FILES, &[("PATH", "/usr/bin:/bin")]);
    let reason = "exit code 127; there is no no-such-cc, which --cc names; name another compiler, or install it";
    assert!(none.out.contains(reason), "{}", none.out);
    // The hint knows the flags that come from a command.
    fixture.write("flags", "-DWORD=1 -DTWO=2 -Werror=implicit-function-declaration\n");
    fixture.write("conf-cc", "cc `head -1 flags` -std=gnu89 -I'two words'\n");
    fixture.replace("seek_set.c", "#include", "int f(void) { return undeclared(); }\n#include");
    let hint = "(-Werror=implicit-function-declaration, which a command or a variable in conf-cc gives); put \
                -Wno-error=implicit-function-declaration at the end of conf-cc's first line";
    disproved(&fixture, &["--only", "build", "--cc", "cc"], "build", &[hint]);
}

/// Ids that a distribution has fixed in a source that no rule makes, and ids that a program looks up at run time.
#[test]
fn ids_that_the_tree_does_not_make_of_its_users() {
    let fixed = Fixture::new(Dialect::StockAnsi);
    let makefile = fixed.read("Makefile");
    let at = makefile.find("auto_uids.c: auto-uid").unwrap();
    let end = at + makefile[at..].find("\n\n").unwrap() + 1;
    fixed.write("Makefile", &format!("{}{}", &makefile[..at], &makefile[end..]));
    let users = ["a", "d", "l", "o", "p", "q", "r", "s"];
    let ids: Vec<String> = users
        .iter()
        .enumerate()
        .map(|(at, user)| format!("int auto_uid{user} = {};\n", 64010 + at))
        .collect();
    let numbers = format!("{}int auto_gidq = 64010, auto_gidn = 65531;\n", ids.concat());
    fixed.write("auto_uids.c", &numbers);

    let asked = Fixture::new(Dialect::StockAnsi);
    let makefile = fixed.read("Makefile");
    let start = "load qmail-start.o auto_uids.o rest.a base.a\n\t./load qmail-start auto_uids.o rest.a base.a";
    assert!(makefile.contains(start));
    asked.write(
        "Makefile",
        &makefile.replace(start, &start.replace("uids.o", "uids.o auto_qmail.o")),
    );
    let ask = "#include <stdio.h>\n#include <sys/stat.h>\n#include <unistd.h>\nextern char auto_qmail[];\n\
               static int id(const char *kind)\n{\n  struct stat st;\n  char name[1000];\n  \
               sprintf(name,\"%s/owners/%s\",auto_qmail,kind);\n  if (stat(name,&st) == -1) _exit(111);\n  \
               return kind[0] == 'u' ? st.st_uid : st.st_gid;\n}\n";
    let all: Vec<String> = users
        .iter()
        .map(|user| format!("uid{user}"))
        .chain(["gidq".into(), "gidn".into()])
        .collect();
    let defined: String = all.iter().map(|id| format!("int auto_{id};\n")).collect();
    let set: String = all.iter().map(|id| format!("  auto_{id} = id(\"{id}\");\n")).collect();
    let start = "__attribute__((constructor)) static void ids(void)\n";
    asked.write("auto_uids.c", &format!("{ask}{defined}{start}{{\n{set}}}\n"));
    for tree in [fixed, asked] {
        proof(&tree, &["--only", "qmail-lspawn,mail"], FILES).ok();
    }
}

/// The program's own message comes before the likely cause.
#[test]
fn the_last_words_of_a_program_that_ends_at_once() {
    let fixture = patched(Dialect::StockKr, Gate::Out);
    let start = "int main(int argc, char **argv)\n{\n  static char *send[] = { \"qmail-send\", 0 };\n  int i;\n";
    let says = |words: &str| {
        format!(
            "  write(2,\"fatal: {words}\\n\",{});\n  _exit(111);\n",
            "fatal: \n".len() + words.len()
        )
    };
    let lspawn = fixture.read("qmail-lspawn.c");
    let initialize = lspawn.find("  if (argc < 2) _exit(100);\n").unwrap();
    fixture.write(
        "qmail-lspawn.c",
        &format!(
            "{}{}{}",
            &lspawn[..initialize],
            says("no directory server"),
            &lspawn[initialize..]
        ),
    );
    fixture.replace("qmail-start.c", start, &format!("{start}\n{}", says("no ids")));
    let guess = "it may want control files of its own";
    for (step, words) in [("qmail-lspawn", "no directory server"), ("restart", "no ids")] {
        let said = format!("; its last words: \"fatal: {words}\"; {guess}");
        disproved(&fixture, &["--only", step], step, &[&said]);
    }
}

/// Also in the middle of a trial, where standard error is closed, as under qmail-start.
#[test]
fn the_last_words_of_a_spawner_that_ends_in_the_middle() {
    let fixture = patched(Dialect::StockKr, Gate::Out);
    let report = "  if (wait_crashed(wstat)) {\n    substdio_puts(ss,\"Zqmail-remote";
    let says = "  write(2,\"fatal: out of wits\\n\",19);\n  _exit(111);\n";
    fixture.replace("qmail-rspawn.c", report, &format!("{says}{report}"));
    let step = "qmail-rspawn";
    let said =
        "had ended; its last words: \"fatal: out of wits\"; it may want control files of its own";
    let outcome = disproved(
        &fixture,
        &["--only", step],
        step,
        &[
            "ended by exit code 111 while",
            // How many of these have ended by then depends on the machine.
            "; 1000 deliveries had started, ",
            said,
        ],
    );
    assert!(!outcome.to_string().contains("did not end)"), "{outcome:#}");
}

/// If a hardened build fails, that is not the patches' fault if it fails without them, too.
#[test]
fn a_tree_that_cannot_be_hardened_patched_or_not() {
    let refuses = "#if _FORTIFY_SOURCE > 2\n#error this source cannot be hardened\n#endif\n";
    let fixture = Fixture::new(Dialect::StockKr);
    fixture.write("seek_set.c", &format!("{refuses}{}", fixture.read("seek_set.c")));
    fixture.qpatch(&["apply", "--spawn", "300", "--no-gate"]).ok();
    let run = proof(&fixture, &["--only", "build,fortify"], FILES).ok();
    let told = "skip  fortify-build           the unpatched tree fails in the same way with -O2 -U_FORTIFY_SOURCE -D_FORTIFY_SOURCE=3: \
                make ";
    assert!(run.out.contains(told), "{}", run.out);
    assert!(run.out.contains("note: seek_set.c:2:2: error: #error this source"), "{}", run.out);
    // If the source fails only with the patches, it is their fault.
    fixture.write("spawn.c", &format!("{refuses}{}", fixture.read("spawn.c")));
    let outcome =
        disproved(&fixture, &["--only", "fortify-build"], "fortify-build", &["exit code 2"]);
    let note = "not in the unpatched tree: spawn.c: error: #error this source cannot be hardened";
    let step = steps(&outcome).find(|step| step["name"] == "fortify-build").unwrap();
    assert_eq!(step["notes"], serde_json::json!([note]));
}

/// In a container, the first process may not reap orphans. The processes that qmail-send leaves behind when it is
/// killed would stay for ever.
#[test]
fn a_proof_reaps_all_that_it_has_started() {
    let fixture = Fixture::new(Dialect::StockAnsi);
    let dir = tmpdir();
    let counter = dir.path().join("count-orphans");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/common/count_orphans.c");
    run(Command::new("cc").arg("-o").arg(&counter).arg(source)).ok();
    let run = run(Command::new(&counter)
        .args([env!("CARGO_BIN_EXE_qpatch"), "verify", "--only", "qmail-rspawn,mail,restart"])
        .arg(fixture.path()))
    .ok();
    assert_eq!(run.out.lines().last(), Some("0"), "{}", run.out);
}

/// If an unsigned long has 32 bits, a time in nanoseconds does not fit into one.
#[test]
fn a_stub_of_32_bits_reports_the_time() {
    let fixture = Fixture::new(Dialect::StockAnsi);
    let mut config = rig::config(100, &[]);
    config.cc = Some("cc -m32".to_owned());
    let mut rig = match rig::Rig::of(fixture.path(), &config, &["qmail-rspawn"]) {
        Ok(rig) => rig,
        // The machine is not x86, or has no C library for 32 bits.
        Err(why) => {
            let program = "#include <errno.h>\nint main(void) { return errno; }\n";
            fixture.write("one.c", program);
            let one = fixture.path().join("one.c");
            let built = Command::new("cc").args(["-m32", "-o", "/dev/null"]).arg(&one).output();
            assert!(!built.unwrap().status.success(), "{why}");
            skip("no compiler and C library of 32 bits");
            return;
        }
    };
    let mut spawner = Spawner::start(&rig.sandbox, &mut rig.stubs, Channel::Remote).unwrap();
    spawner.send(&protocol::Command {
        number: 0,
        message: rig.message.relative(),
        sender: "s@sender.example".to_owned(),
        recipient: stub::recipient(Mode::Accept, None, 0, "remote.example"),
    });
    spawner.wait(&mut rig.stubs, "a report", |seen| seen.reports == 1).unwrap();
    let uptime = fs::read_to_string("/proc/uptime").unwrap();
    let seconds: f64 = uptime.split(' ').next().unwrap().parse().unwrap();
    let at = rig.stubs.events().last().unwrap().at_ns;
    // The uptime also counts the time that a machine sleeps. 2^32 ns are 4.3 s.
    assert!(seconds < 10.0 || at > u64::from(u32::MAX), "{at} ns, {seconds} s after the start");
}
