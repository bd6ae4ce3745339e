//! Bad input and what is said about it: exit code, exact text, and not one byte changed.

mod common;

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::process::ExitStatusExt;
use std::process::Command;

use common::{Fixture, Run, qpatch, run};
use qpatch::fixture::Dialect;

/// The command fails with `code`, says `text` (with TREE for the folder), and changes nothing.
fn refused(fixture: &Fixture, args: &[&str], code: i32, text: &str) {
    let before = fixture.snapshot();
    let run = fixture.qpatch(args);
    let real = fixture.path().canonicalize().unwrap();
    let err = run.err.replace(real.to_str().unwrap(), "TREE");
    assert_eq!((run.code, err.as_str()), (code, text), "{args:?}");
    assert_eq!(fixture.snapshot(), before, "{args:?}: the tree was changed");
}

#[test]
fn a_folder_that_is_not_qmail() {
    let fixture = Fixture::new(Dialect::StockKr);
    fs::remove_file(fixture.path().join("qmail-send.c")).unwrap();
    for command in ["apply", "diff", "revert", "status", "verify"] {
        refused(
            &fixture,
            &[command],
            1,
            "qpatch: TREE: not a qmail source tree: it has no qmail-send.c\n  \
             name the folder that holds qmail's Makefile and spawn.c\n",
        );
    }
}

#[test]
fn a_tree_one_level_further_down_is_named() {
    let outer = tempfile::tempdir().unwrap();
    Dialect::StockKr.write(&outer.path().join("src")).unwrap();
    let run = qpatch(&["apply", outer.path().to_str().unwrap()]);
    assert_eq!(run.code, 1);
    assert!(run.err.contains("did you mean") && run.err.contains("/src?"), "{}", run.err);
}

#[test]
fn a_tree_that_is_not_there_or_no_folder() {
    let run = qpatch(&["apply", "/nonexistent/tree"]);
    assert_eq!(run.code, 1);
    assert_eq!(
        run.err,
        "qpatch: /nonexistent/tree: cannot open the tree: No such file or directory (os error 2)\n"
    );
    let run = qpatch(&["apply", "/dev/null"]);
    assert_eq!(run.code, 1);
    assert!(run.err.starts_with("qpatch: /dev/null: not a folder\n"), "{}", run.err);
}

#[test]
fn a_spawn_out_of_range_is_wrong_usage() {
    let fixture = Fixture::new(Dialect::StockKr);
    let before = fixture.snapshot();
    for value in ["0", "65001", "-1", "abc", "", "1e3", "99999999999999999999"] {
        let run: Run = fixture.qpatch(&["apply", "--spawn", value]);
        assert_eq!(run.code, 2, "{value}: {}", run.err);
        assert!(run.err.contains("--spawn"), "{value}: {}", run.err);
        assert_eq!(fixture.snapshot(), before);
    }
    for value in ["1", "65000"] {
        fixture.qpatch(&["apply", "--dry-run", "--spawn", value]).ok();
    }
    assert_eq!(fixture.snapshot(), before);
}

#[test]
fn the_gate_needs_the_two_bytes() {
    let why = "domain-gate needs big-concurrency, which --only or --skip leaves out";
    let fixture = Fixture::new(Dialect::StockKr);
    let run = fixture.qpatch(&["apply", "--skip", "big-concurrency"]).ok();
    assert!(run.err.contains(&format!("is left out\n  {why}\n")), "{}", run.err);
    fixture.qpatch(&["revert"]).ok();
    let run = fixture.qpatch(&["apply", "--only", "domain-gate"]);
    assert_eq!(run.code, 1);
    assert!(run.err.ends_with(&format!("qpatch: {why}\n")), "{}", run.err);
    // Where they are there already, nothing is amiss.
    fixture.qpatch(&["apply", "--no-gate"]).ok();
    assert_eq!(fixture.qpatch(&["apply", "--only", "domain-gate"]).ok().err, "");
}

#[test]
fn a_gate_that_is_there_is_taken_out_by_revert_and_all_that_was_built_of_it() {
    let fixture = Fixture::new(Dialect::StockAnsi);
    let before = fixture.snapshot();
    fixture.qpatch(&["apply"]).ok();
    let run = fixture.qpatch(&["apply", "--no-gate"]).ok();
    assert!(run.err.contains("the gate is in this tree already, and stays"), "{}", run.err);
    for object in ["gate_glue.o", "gate_stub.o", "gate_retry.o"] {
        fixture.write(object, "as make leaves it");
    }
    fixture.qpatch(&["revert"]).ok();
    assert_eq!(fixture.snapshot(), before);
    assert_eq!(fixture.qpatch(&["apply", "--no-gate"]).ok().err, "");
}

#[test]
fn a_size_for_a_patch_that_is_left_out_is_wrong_usage() {
    for left_out in [["--skip", "big-concurrency"], ["--only", "fd-setsize"]] {
        let run = qpatch(&[&["apply", "--spawn", "1000", "/"][..], &left_out].concat());
        assert_eq!(run.code, 2, "{}", run.err);
        let what = "error: --spawn needs big-concurrency, which --only or --skip leaves out: give one of the \
                    two up\n";
        assert!(run.err.starts_with(what), "{}", run.err);
    }
}

#[test]
fn wrong_usage() {
    for args in [&["apply"][..], &["frobnicate"], &[], &["apply", "--only", "nothing", "/"]] {
        assert_eq!(qpatch(args).code, 2, "{args:?}");
    }
    for args in [&["--help"][..], &["--version"], &["apply", "--help"], &["completions", "bash"]] {
        let run = qpatch(args).ok();
        assert!(!run.out.is_empty() && run.err.is_empty(), "{args:?}");
    }
}

#[test]
fn a_choice_of_no_patch_is_wrong_usage() {
    for args in [
        &["apply", "--only", "fd-setsize", "--skip", "fd-setsize", "/"][..],
        &["diff", "--only", "domain-gate", "--no-gate", "/"],
    ] {
        let run = qpatch(args);
        assert_eq!((run.code, run.out.as_str()), (2, ""), "{args:?}: {}", run.err);
        let what = "error: no patch is left after --only, --skip and --no-gate\n";
        assert!(run.err.starts_with(what), "{}", run.err);
        assert!(run.err.contains(&format!("Usage: qpatch {} ", args[0])), "{}", run.err);
    }
    let help = qpatch(&["apply", "--help"]).ok().out;
    let ids = "toolchain, big-concurrency, fd-setsize, log-lines, outgoing-ports, domain-gate, fork-server]";
    // However it is wrapped.
    let words = help.split_whitespace().collect::<Vec<_>>().join(" ");
    assert_eq!(words.matches(ids).count(), 2, "{help}");
}

#[test]
fn a_step_that_verify_does_not_have_is_wrong_usage() {
    let run = qpatch(&["verify", "--only", "spawner", "/"]);
    assert_eq!((run.code, run.out.as_str()), (2, ""), "{}", run.err);
    let what = "error: invalid value 'spawner' for '--only <STEP,...>'\n  [possible values: build, chkspawn, fd_set, machine, \
                qmail-rspawn, qmail-lspawn, qmail-send-numbers, mail, restart, gate, fork-server, fortify-build, \
                fortify-qmail-rspawn, fortify-qmail-lspawn, fortify-mail, fortify]\n";
    assert!(run.err.starts_with(what), "{}", run.err);
}

#[test]
fn what_apply_and_revert_say_that_they_did() {
    let fixture = Fixture::new(Dialect::StockKr);
    let names = fixture.snapshot();
    let spawn = "\nconf-spawn is 120; --spawn N changes it\n";
    let dry = fixture.qpatch(&["apply", "--dry-run"]).ok().out;
    let count = |verb: &str| dry.lines().filter(|line| line.starts_with(verb)).count();
    let (changed, made) = (count("would change "), count("would make "));
    let last = format!(
        "\n{} files would change, nothing was changed; `qpatch diff` instead of `apply --dry-run` \
         shows the lines\n",
        changed + made
    );
    assert!(dry.contains(spawn) && dry.ends_with(&last), "{dry}");
    assert!(fixture.qpatch(&["apply"]).ok().out.contains(spawn));
    let only = fixture.qpatch(&["apply", "--dry-run", "--only", "toolchain"]).ok().out;
    assert!(!only.contains("--spawn"), "{only}");
    let out = fixture.qpatch(&["revert"]).ok().out;
    let reverted = format!("{changed} files put back, {made} that qpatch had made removed\n");
    assert_eq!(out, reverted);
    assert_eq!(fixture.snapshot(), names);
    assert!(!fixture.qpatch(&["apply", "--spawn", "1000"]).ok().out.contains("conf-spawn is"));
    let dry = fixture.qpatch(&["apply", "--dry-run", "--spawn", "1000"]).ok().out;
    assert!(dry.ends_with("nothing to change\n"), "{dry}");
    fixture.qpatch(&["revert"]).ok();
    fixture.qpatch(&["apply", "--only", "toolchain"]).ok();
    let out = fixture.qpatch(&["revert"]).ok().out;
    assert!(out.ends_with(" put back\n"), "{out}");
}

#[test]
fn doctor_looks_at_the_folder_that_it_is_given() {
    let dir = tempfile::tempdir().unwrap();
    let doctor = |args: &[&str]| {
        let program = env!("CARGO_BIN_EXE_qpatch");
        run(Command::new(program).arg("doctor").args(args).current_dir(dir.path()))
    };
    fs::create_dir_all(dir.path().join("home/control")).unwrap();
    fs::create_dir(dir.path().join("home/queue")).unwrap();
    fs::write(dir.path().join("home/control/concurrencyremote"), "77\n").unwrap();
    let home = dir.path().canonicalize().unwrap().join("home");
    for args in [["home", "--format", "json"], ["./home", "--format", "json"]] {
        let report: serde_json::Value = serde_json::from_str(&doctor(&args).out).unwrap();
        assert_eq!((&report["home"], &report["concurrency"]), (&home.to_str().into(), &77.into()));
    }
    let help = "  name the folder that has control and queue; before an install: qpatch doctor --concurrency N\n";
    fs::create_dir(dir.path().join("empty")).unwrap();
    for place in ["/nonexist", "empty"] {
        let run = doctor(&[place]);
        let what = "no qmail is installed here: it has neither control nor queue";
        assert_eq!((run.code, run.out.as_str()), (1, ""));
        assert_eq!(run.err, format!("qpatch: {place}: {what}\n{help}"));
    }
}

#[test]
fn a_missing_file() {
    let fixture = Fixture::new(Dialect::StockKr);
    fs::remove_file(fixture.path().join("conf-spawn")).unwrap();
    fixture.qpatch(&["diff"]).ok();
    refused(
        &fixture,
        &["apply", "--spawn", "1000"],
        1,
        "qpatch: conf-spawn: big-concurrency: there is a conf-spawn to set (apply without --spawn, \
         and set it by hand): the tree has no such file\n  \
         the rule is patches/big-concurrency/rule:192; if this tree writes it another way, change \
         the file by hand\n  or add a variant to the rule (`qpatch rule try big-concurrency:192 FILE` shows how \
         near it comes); --skip big-concurrency leaves this patch out\n",
    );
}

#[test]
fn a_rule_that_does_not_fit() {
    let fixture = Fixture::new(Dialect::StockKr);
    fixture.replace("spawn.c", "if (!stralloc_append(&messid,&ch)) flagabort = 1;", "");
    fixture.qpatch(&["diff"]).ok();
    fixture.replace("spawn.c", "delnum = (unsigned int) (unsigned char) ch;", "delnum = (int) ch;");
    let run = fixture.qpatch(&["apply"]);
    assert_eq!(run.code, 1);
    assert!(
        run.err.contains(
            "spawn.c: big-concurrency: a command starts with both bytes of its delivery number: \
             spawn.c:1"
        ) && run.err.contains("tokens, line ")
            && run.err.contains("wanted `char` before `)`, found `int`"),
        "{}",
        run.err
    );
    assert!(!fixture.path().join(".qpatch").exists());
}

#[test]
fn rule_try_names_what_it_cannot_use() {
    let fixture = Fixture::new(Dialect::StockKr);
    let spawn = fixture.path().join("spawn.c");
    let spawn = spawn.to_str().unwrap();
    for (args, code, want) in [
        (
            &["no-such-patch", spawn][..],
            1,
            "no-such-patch: no such rule file\n  name a rule file, or one of qpatch's patches: toolchain, ",
        ),
        (
            &["fd-setsize:1", spawn],
            1,
            "patches/fd-setsize/rule:1: no rule has this line\n  rules begin on the lines ",
        ),
        (
            &["fd-setsize:9999", spawn],
            1,
            "patches/fd-setsize/rule:9999: there is no such line: the rule file has ",
        ),
        (
            &["domain-gate", "/dev/null"],
            1,
            "no rule is for a file called null\n  its rules are for *.c, ",
        ),
        (&["domain-gate", "/no/such/file"], 1, "/no/such/file: cannot read the file: "),
        (&["domain-gate"], 2, "<FILE>"),
    ] {
        let run = qpatch(&[&["rule", "try"], args].concat());
        assert_eq!(run.code, code, "{args:?}: {}", run.err);
        assert!(run.err.contains(want), "{args:?}: {}", run.err);
    }
}

#[test]
fn rule_try_takes_the_line_that_a_misfit_names() {
    let fixture = Fixture::new(Dialect::StockKr);
    fixture.replace("spawn.c", "sig_childunblock();", "sig_unblock(sig_child);");
    fixture.qpatch(&["apply", "--no-gate"]).ok();
    let misfit = fixture.qpatch(&["apply", "--gate"]).err;
    let (_, rest) = misfit.split_once("`qpatch rule try ").expect("it says how to go on");
    let rule = rest.split(' ').next().unwrap();
    let file = fixture.path().join("spawn.c");
    let run = qpatch(&["rule", "try", rule, file.to_str().unwrap()]);
    assert_eq!(run.code, 1, "{}", run.err);
    assert!(run.out.contains("held commands start: does not fit\n"), "{}", run.out);
    // The rule as it is shown is the rule that was tried.
    let dir = tempfile::tempdir().unwrap();
    let own = dir.path().join("my.rule");
    let text = qpatch(&["rule", "show", "domain-gate"]).ok().out;
    fs::write(&own, text.replace("sig_childunblock();", "sig_unblock(sig_child);")).unwrap();
    let line = rule.split(':').nth(1).unwrap();
    let run =
        qpatch(&["rule", "try", &format!("{}:{line}", own.display()), file.to_str().unwrap()]);
    assert_eq!(run.code, 0, "{}{}", run.out, run.err);
    assert!(
        run.out.contains("held commands start: fits\n") && run.out.contains("+"),
        "{}",
        run.out
    );
}

#[test]
fn half_of_the_classic_patch_by_hand() {
    let fixture = Fixture::new(Dialect::StockKr);
    let two_byte = Fixture::new(Dialect::TwoByte);
    fixture.write("spawn.c", &two_byte.read("spawn.c"));
    let before = fixture.snapshot();
    let run = fixture.qpatch(&["apply", "--spawn", "1000"]);
    assert_eq!(run.code, 1);
    assert!(
        run.err.starts_with("qpatch: big-concurrency: half of this change is in the tree already")
            && run.err.contains("\n  there: spawn.c (")
            && run.err.contains("\n  not there: qmail-send.c (")
            && run.err.contains("--complete"),
        "{}",
        run.err
    );
    assert_eq!(fixture.snapshot(), before);
    fixture.qpatch(&["apply", "--spawn", "1000", "--complete"]).ok();
    let whole = Fixture::new(Dialect::StockKr);
    whole.qpatch(&["apply", "--spawn", "1000"]).ok();
    assert_eq!(fixture.read("qmail-send.c"), whole.read("qmail-send.c"));
}

#[test]
fn a_read_only_file_or_folder() {
    let fixture = Fixture::new(Dialect::StockKr);
    let path = fixture.path().join("spawn.c");
    fs::set_permissions(&path, Permissions::from_mode(0o444)).unwrap();
    refused(
        &fixture,
        &["apply"],
        1,
        "qpatch: TREE/spawn.c: read-only (mode 0444)\n  \
         make the file writable (chmod u+w), then run qpatch again\n",
    );
    fs::set_permissions(&path, Permissions::from_mode(0o644)).unwrap();
    fs::set_permissions(fixture.path(), Permissions::from_mode(0o555)).unwrap();
    refused(
        &fixture,
        &["apply"],
        1,
        "qpatch: TREE: read-only (mode 0555)\n  \
         make the folder writable (chmod u+w), then run qpatch again\n",
    );
    fixture.qpatch(&["diff"]).ok();
    fs::set_permissions(fixture.path(), Permissions::from_mode(0o755)).unwrap();
}

#[test]
fn a_link_that_leads_out_of_the_tree() {
    let fixture = Fixture::new(Dialect::StockKr);
    let outside = tempfile::tempdir().unwrap();
    let target = outside.path().join("conf-spawn");
    fs::write(&target, "120\n").unwrap();
    let path = fixture.path().join("conf-spawn");
    fs::remove_file(&path).unwrap();
    symlink(&target, &path).unwrap();
    refused(
        &fixture,
        &["apply", "--spawn", "1000"],
        1,
        &format!(
            "qpatch: TREE/conf-spawn: a symbolic link that leads out of the tree, to {}\n  \
             replace the link by a copy of the file; qpatch changes only files in the tree\n",
            target.canonicalize().unwrap().display()
        ),
    );
    assert_eq!(fs::read_to_string(target).unwrap(), "120\n");
}

#[test]
fn a_source_that_is_a_link_out_of_the_tree() {
    // The first is one of the files that make a qmail; the other is found by what it uses, and
    // must not be passed over because it is outside.
    for name in ["spawn.c", "timeoutread.c"] {
        let fixture = Fixture::new(Dialect::StockKr);
        let outside = tempfile::tempdir().unwrap();
        let target = outside.path().join(name);
        let path = fixture.path().join(name);
        fs::copy(&path, &target).unwrap();
        fs::remove_file(&path).unwrap();
        symlink(&target, &path).unwrap();
        refused(
            &fixture,
            &["apply"],
            1,
            &format!(
                "qpatch: TREE/{name}: a symbolic link that leads out of the tree, to {}\n  \
                 replace the link by a copy of the file; qpatch changes only files in the tree\n",
                target.canonicalize().unwrap().display()
            ),
        );
    }
}

#[test]
fn a_source_that_the_makefile_builds_from_and_that_is_not_there() {
    for (name, patch) in
        [("chkspawn.c", "big-concurrency"), ("select.h2", "fd-setsize"), ("conf-cc", "toolchain")]
    {
        let fixture = Fixture::new(Dialect::StockKr);
        fs::remove_file(fixture.path().join(name)).unwrap();
        let before = fixture.snapshot();
        let run = fixture.qpatch(&["apply"]);
        assert_eq!(run.code, 1, "{}", run.out);
        assert!(run.err.starts_with(&format!("qpatch: {name}")) || run.err.contains(patch));
        let why = "the tree has no such file, but its Makefile builds from it\n";
        assert!(run.err.contains(why), "{}", run.err);
        assert_eq!(fixture.snapshot(), before);
    }
}

/// A fork that has the rules for its generated headers in another makefile.
#[test]
fn a_header_that_is_made_elsewhere_is_not_missed() {
    let fixture = Fixture::new(Dialect::StockKr);
    fixture.replace("Makefile", "\nselect.h:", "\nelsewhere:");
    fixture.qpatch(&["apply"]).ok();
    let once = fixture.snapshot();
    assert!(fixture.qpatch(&["apply"]).ok().out.ends_with("nothing to change\n"));
    assert_eq!(fixture.snapshot(), once);
}

#[test]
fn a_source_without_the_function() {
    let fixture = Fixture::new(Dialect::StockKr);
    fixture.write("spawn.c", "");
    let run = fixture.qpatch(&["apply", "--no-gate"]);
    assert_eq!(run.code, 1);
    assert!(run.err.contains(": no such file of the tree defines docmd()\n"), "{}", run.err);
}

#[test]
fn what_an_editor_leaves_is_no_source() {
    let fixture = Fixture::new(Dialect::StockAnsi);
    symlink("someone@host.1234:1", fixture.path().join(".#spawn.c")).unwrap();
    symlink("gone.h", fixture.path().join("dangling.h")).unwrap();
    fs::copy(fixture.path().join("spawn.c"), fixture.path().join("._spawn.c")).unwrap();
    fixture.qpatch(&["apply"]).ok();
    assert_eq!(fixture.read("._spawn.c"), Fixture::new(Dialect::StockAnsi).read("spawn.c"));
}

/// Sources that came through an archive of another system.
#[test]
fn a_tree_with_carriage_returns() {
    let fixture = Fixture::new(Dialect::StockKr);
    let before = fixture.snapshot();
    for name in before.keys().filter_map(|n| n.to_str()) {
        fixture.write(name, &fixture.read(name).replace('\n', "\r\n"));
    }
    // Stray ones end no line.
    fixture.write("spawn.c", &(fixture.read("spawn.c") + "/* a\rb */\r\r\n"));
    let other = tempfile::tempdir().unwrap();
    let copy = other.path().join("copy");
    run(Command::new("cp").arg("-a").args([fixture.path(), copy.as_path()])).ok();
    let diff = fixture.qpatch(&["diff", "--no-gate", "--spawn", "1000"]).ok().out;
    fs::write(other.path().join("diff"), diff).unwrap();
    fixture.qpatch(&["apply", "--no-gate", "--spawn", "1000"]).ok();
    for name in ["spawn.c", "qmail-send.c", "select.h1", "select.h2", "Makefile", "conf-cc"] {
        let text = fixture.read(name);
        assert_eq!(text.matches('\n').count(), text.matches("\r\n").count(), "{name}");
        let stray = usize::from(name == "spawn.c");
        assert_eq!(text.matches("\r\r\n").count(), stray, "{name}");
    }
    run(Command::new("patch").args(["-p1", "-s", "--binary", "-i", "../diff"]).current_dir(&copy))
        .ok();
    for name in before.keys() {
        let is_same = fs::read(copy.join(name)).ok() == fs::read(fixture.path().join(name)).ok();
        assert!(is_same, "{name:?}: patch makes another file of it than apply");
    }
}

/// Root may apply to a tree that someone else shall build, and revert.
#[test]
fn a_tree_of_someone_else() {
    let fixture = Fixture::new(Dialect::StockKr);
    if run(Command::new("chown").args(["-R", "1234:1234"]).arg(fixture.path())).code != 0 {
        eprintln!("skipped: only root can give a tree away");
        return;
    }
    fixture.qpatch(&["apply"]).ok();
    let all =
        Command::new("find").arg(fixture.path()).args(["!", "-uid", "1234"]).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&all.stdout), "");
}

#[test]
fn a_link_inside_the_tree_is_followed_and_stays_a_link() {
    let fixture = Fixture::new(Dialect::StockKr);
    let path = fixture.path().join("spawn.c");
    fs::rename(&path, fixture.path().join("real-spawn.c.in")).unwrap();
    symlink("real-spawn.c.in", &path).unwrap();
    let before = fixture.snapshot();
    fixture.qpatch(&["apply"]).ok();
    assert!(fs::symlink_metadata(&path).unwrap().is_symlink());
    assert!(fixture.read("real-spawn.c.in").contains("delnum >> 8"));
    fixture.qpatch(&["revert"]).ok();
    assert_eq!(common::bytes(&fixture.snapshot()), common::bytes(&before));
}

#[test]
fn an_enormous_file() {
    let fixture = Fixture::new(Dialect::StockKr);
    let file = fs::OpenOptions::new().write(true).open(fixture.path().join("conf-spawn")).unwrap();
    file.set_len(qpatch::tree::MAX_FILE + 1).unwrap();
    let run = fixture.qpatch(&["apply", "--spawn", "1000"]);
    assert_eq!(run.code, 1);
    assert!(run.err.contains("conf-spawn: 8388609 bytes; a file of a qmail tree has at most"));
}

#[test]
fn a_full_disk() {
    let mount = tempfile::tempdir().unwrap();
    let path = mount.path().to_str().unwrap();
    let mounted = Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=900k", "tmpfs", path])
        .output()
        .is_ok_and(|o| o.status.success());
    if !mounted {
        eprintln!("skipped: a small file system cannot be mounted here");
        return;
    }
    let result = std::panic::catch_unwind(|| {
        let tree = mount.path().join("tree");
        // As much of the tree as fits, then the rest of the room.
        Dialect::StockKr.write(&tree).expect("the fixture fits into 900 KiB");
        let filler = mount.path().join("filler");
        let mut size = 1 << 20;
        while size >= 512 {
            let old = fs::read(&filler).unwrap_or_default();
            if fs::write(&filler, vec![0; old.len() + size]).is_err() {
                fs::write(&filler, old).unwrap();
                size /= 2;
            }
        }
        let before = common::snapshot(&tree);
        let run = qpatch(&["apply", tree.to_str().unwrap()]);
        assert_eq!(run.code, 1, "{}{}", run.out, run.err);
        assert!(run.err.contains("No space left on device"), "{}", run.err);
        assert_eq!(common::snapshot(&tree), before);
    });
    run(Command::new("umount").arg(path)).ok();
    result.unwrap();
}

/// A real kill -9, at points spread over the whole run. What happens at each step is tested in
/// `tree::journal`; this is the program itself.
#[test]
fn killed_at_any_time() {
    let mut killed = 0;
    for round in 0..40u64 {
        let fixture = Fixture::new(Dialect::StockAnsi);
        let before = fixture.snapshot();
        let mut child = Command::new(env!("CARGO_BIN_EXE_qpatch"))
            .args(["apply", "--spawn", "1000"])
            .arg(fixture.path())
            .stdout(std::process::Stdio::null())
            .spawn()
            .unwrap();
        // No event to wait for: the point is to strike blindly.
        std::thread::sleep(std::time::Duration::from_micros(round * 2500));
        let _ = child.kill();
        killed += i32::from(child.wait().unwrap().signal() == Some(9));
        if round % 2 == 0 {
            fixture.qpatch(&["apply", "--spawn", "1000"]).ok();
            let whole = Fixture::new(Dialect::StockAnsi);
            whole.qpatch(&["apply", "--spawn", "1000"]).ok();
            assert_eq!(common::bytes(&fixture.snapshot()), common::bytes(&whole.snapshot()));
        } else {
            // 1 where the kill came before anything was done.
            let _ = fixture.qpatch(&["revert"]);
            assert_eq!(fixture.snapshot(), before);
        }
    }
    assert!(killed > 0, "no run was killed in time");
}

/// Written anew by `SNAPSHOTS=overwrite`.
#[test]
fn the_manual_pages_are_those_of_the_program() {
    let written = tempfile::tempdir().unwrap();
    qpatch(&["man", written.path().to_str().unwrap()]).ok();
    let kept = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("man");
    let pages = |dir: &std::path::Path| {
        let names = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name());
        let mut names: Vec<_> = names.map(|name| name.into_string().unwrap()).collect();
        names.sort();
        names
    };
    for name in pages(written.path()) {
        let page = fs::read_to_string(written.path().join(&name)).unwrap();
        snapbox::assert_data_eq!(page, snapbox::Data::read_from(&kept.join(&name), None).raw());
    }
    assert_eq!(pages(&kept), pages(written.path()));
}

#[test]
fn manual_pages_say_what_a_page_has_to() {
    let dir = tempfile::tempdir().unwrap();
    qpatch(&["man", dir.path().to_str().unwrap()]).ok();
    let page = |name: &str| fs::read_to_string(dir.path().join(name)).unwrap();
    let synopsis = "\n\\fBqpatch gate simulate\\fR [\\fB\\-\\-concurrencyremote\\fR \\fIN\\fR] \
                    [\\fB\\-\\-format\\fR \\fIFORMAT\\fR] [\\fB\\-h\\fR|\\fB\\-\\-help\\fR] \
                    \\fB\\-\\-log\\fR \\fILOG\\fR [\\fB\\-\\-log\\fR \\fILOG\\fR]... \\fIFILE|QMAILHOME\\fR \
                    [\\fILOG\\fR]...\n";
    let simulate = page("qpatch-gate-simulate.1");
    assert!(simulate.contains(synopsis), "{simulate}");
    let status =
        ".SH \"EXIT STATUS\"\n.TP\n\\fB0\\fR\nnothing is to change, as far as could be seen\n";
    assert!(page("qpatch-doctor.1").contains(status));
    let see = page("qpatch.1");
    assert!(see.ends_with(".SH \"SEE ALSO\"\nconcurrencydomains(5)\n"), "{see}");
    for entry in fs::read_dir(dir.path()).unwrap() {
        let path = entry.unwrap().path();
        let text = fs::read_to_string(&path).unwrap();
        let sections = ["\"SEE ALSO\"", "SYNOPSIS", "\"EXIT STATUS\""];
        let wanted = if path.extension().unwrap() == "5" { 1 } else { 3 };
        for section in &sections[..wanted] {
            assert_eq!(text.matches(&format!(".SH {section}\n")).count(), 1, "{section} {text}");
        }
    }
}

#[test]
fn manual_pages_need_their_folder() {
    let dir = tempfile::tempdir().unwrap();
    let missing = dir.path().join("man1").display().to_string();
    let run = qpatch(&["man", &missing]);
    assert_eq!(run.code, 1);
    assert_eq!(
        run.err,
        format!(
            "qpatch: {missing}: cannot write the manual pages: No such file or directory \
             (os error 2)\n  make the folder first: mkdir -p {missing}\n"
        )
    );
}

#[test]
fn a_half_read_output_is_no_error() {
    let fixture = Fixture::new(Dialect::StockKr);
    let script = format!(
        "{} diff --no-gate {} | head -n 1; echo ${{PIPESTATUS[0]}}",
        env!("CARGO_BIN_EXE_qpatch"),
        fixture.path().display()
    );
    let run = run(Command::new("bash").args(["-c", &script])).ok();
    assert_eq!(run.out, "--- a/Makefile\n0\n");
    assert_eq!(run.err, "");
}

#[test]
fn status_as_json() {
    let fixture = Fixture::new(Dialect::TwoByte);
    let run = fixture.qpatch(&["status", "--format", "json"]).ok();
    let value: serde_json::Value = serde_json::from_str(&run.out).unwrap();
    let patches = value["patches"].as_array().unwrap();
    let standing: Vec<_> = patches.iter().map(|p| p["standing"].as_str().unwrap()).collect();
    assert_eq!(standing, ["missing", "partial", "missing", "missing", "missing"]);
    let repairs = patches[1]["rules"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|r| r["outcome"]["state"] == "repair")
        .count();
    assert_eq!(repairs, 2);
}

#[test]
fn a_gate_for_another_machine_is_left_out() {
    let fixture = Fixture::new(Dialect::StockKr);
    // A compiler for a machine that there is none of: its objects say so.
    fixture.write(
        "other-cc",
        "while [ $# -gt 2 ]; do [ \"$1\" = -o ] && out=$2; shift; done\n\
         printf '\\177ELF\\001\\002\\001\\000\\000\\000\\000\\000\\000\\000\\000\\000\\000\\001\\366\\366' > \"$out\"\n",
    );
    fixture.write("conf-cc", "sh `pwd`/other-cc\n");
    let says = "domain-gate: the gate is compiled for ";
    let but = ", but the tree's conf-cc compiles for machine 63222 of ELF with 32 bits\n";
    let asked = fixture.qpatch(&["apply", "--gate"]);
    assert_eq!((asked.code, asked.out.as_str()), (1, ""), "{}", asked.err);
    assert!(asked.err.starts_with(&format!("qpatch: gate.a: {says}")), "{}", asked.err);
    assert!(asked.err.contains(but) && asked.err.contains("cargo build --target"), "{}", asked.err);
    let left_out = fixture.qpatch(&["apply"]).ok();
    let warning =
        "qpatch: warning: no limits per domain: the gate does not fit this tree and is left out\n";
    assert!(left_out.err.starts_with(warning), "{}", left_out.err);
    assert!(left_out.err.contains(but), "{}", left_out.err);
    assert!(!fixture.path().join("gate.a").exists());
    // Where there is no compiler, apply does not need one.
    let fixture = Fixture::new(Dialect::StockKr);
    fixture.write("conf-cc", "no-such-compiler -O2\n");
    assert_eq!(fixture.qpatch(&["apply", "--gate"]).ok().err, "");
}

#[test]
fn a_distribution_s_flags_that_old_sources_do_not_stand() {
    let fixture = Fixture::new(Dialect::StockKr);
    let flags = "gcc -g -Werror=implicit-function-declaration -O2";
    fixture
        .write("conf-cc", &format!("{flags}\n\ntext with -Werror=implicit-function-declaration\n"));
    fixture.qpatch(&["apply"]).ok();
    let changed = flags.replace("-Werror", "-Wno-error");
    let now = fixture.read("conf-cc");
    assert!(now.starts_with(&format!("{changed} -std=gnu89")), "{now}");
    let again = fixture.qpatch(&["apply"]).ok();
    assert!(again.out.ends_with("nothing to change\n"), "{}", again.out);
    let status = fixture.qpatch(&["status"]).ok();
    assert!(status.out.contains("toolchain       applied"), "{}", status.out);
    fixture.qpatch(&["revert"]).ok();
    assert!(fixture.read("conf-cc").starts_with(flags));
    // Flags that a command or a variable gives may have it, too; a command within a flag gives a part of that one
    // alone.
    let off = " -Wno-error=implicit-function-declaration";
    for (flags, more) in [
        ("cc `dpkg-buildflags --get CFLAGS`", off),
        ("cc -Werror=implicit-function-declaration $(rpm --eval '%{optflags}')", off),
        ("cc $CFLAGS -Wno-error=implicit-function-declaration", ""),
        ("cc -I`head -1 conf-ssl`/include", ""),
    ] {
        let fixture = Fixture::new(Dialect::StockKr);
        fixture.write("conf-cc", &format!("{flags}\n"));
        fixture.qpatch(&["apply"]).ok();
        let wanted = flags.replace("-Werror", "-Wno-error");
        assert_eq!(fixture.read("conf-cc"), format!("{wanted} -std=gnu89{more}\n"));
        let again = fixture.qpatch(&["apply"]).ok();
        assert!(again.out.ends_with("nothing to change\n"), "{}", again.out);
    }
    // Sources of today's C need none of it.
    let fixture = Fixture::new(Dialect::StockAnsi);
    fixture.write("conf-cc", "cc `dpkg-buildflags --get CFLAGS`\n");
    fixture.qpatch(&["apply"]).ok();
    assert_eq!(fixture.read("conf-cc"), "cc `dpkg-buildflags --get CFLAGS`\n");
}

#[test]
fn a_file_that_open_makes_has_a_mode() {
    let fixture = Fixture::new(Dialect::StockAnsi);
    let source = "#include <fcntl.h>\n\
        int a(char *f) { return open(f,O_WRONLY | O_CREAT); }\n\
        int b(char *f) { return open(f,O_CREAT|O_RDWR) + open(f,O_CREAT | O_RDWR | O_EXCL); }\n\
        int c(char *f) { return open(f, O_WRONLY | O_CREAT | O_EXCL, 0600); }\n\
        int d(char *f) { return open(g(f,1), O_WRONLY | O_CREAT | O_EXCL); }\n\
        int e(char *f) { return open(f, O_RDONLY | O_CREAT, 0644) + open(f,O_RDONLY); }\n\
        int h(char *f) { return open(f,O_WRONLY|O_NDELAY|O_CREAT|O_EXCL|O_TRUNC); }\n";
    fixture.write("extra.c", source);
    fixture.qpatch(&["apply"]).ok();
    let wanted = source
        .replace("O_CREAT);", "O_CREAT,0644);")
        .replace("|O_RDWR)", "|O_RDWR,0644)")
        .replace("O_EXCL);", "O_EXCL,0644);")
        .replace("O_TRUNC);", "O_TRUNC,0644);");
    assert_eq!(fixture.read("extra.c"), wanted);
    let again = fixture.qpatch(&["apply"]).ok();
    assert!(again.out.ends_with("nothing to change\n"), "{}", again.out);
}
