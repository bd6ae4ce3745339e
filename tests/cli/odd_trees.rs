//! Trees that are damaged or unusual: the exit code, the exact text, and that an error changes no byte of the tree.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::process::ExitStatusExt;
use std::process::Command;

use super::common::{self, Fixture, qpatch, run};
use qpatch::fixture::Dialect;
use qpatch_test_support::skip;

/// Checks that the command fails with `code`, prints `text` (with TREE for the folder), and changes nothing.
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

/// Such a folder is a copy that someone keeps, of this program perhaps.
#[test]
fn a_tree_in_a_hidden_folder_is_not_named() {
    let outer = tempfile::tempdir().unwrap();
    Dialect::StockKr.write(&outer.path().join(".old")).unwrap();
    Dialect::StockKr.write(&outer.path().join("a/.git/tree")).unwrap();
    let run = qpatch(&["apply", outer.path().to_str().unwrap()]);
    assert_eq!(run.code, 1);
    assert!(
        run.err.ends_with("  name the folder that holds qmail's Makefile and spawn.c\n"),
        "{}",
        run.err
    );
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
    // The first is one of the files by which a tree is recognised. A rule finds the other by what it uses, and must
    // not skip it because it is outside.
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

/// Such sources come out of an archive of another system.
#[test]
fn a_tree_with_carriage_returns() {
    let fixture = Fixture::new(Dialect::StockKr);
    let before = fixture.snapshot();
    for name in before.keys().filter_map(|n| n.to_str()) {
        fixture.write(name, &fixture.read(name).replace('\n', "\r\n"));
    }
    // These carriage returns end no line.
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

/// If root applies the patches to another user's tree, that user must still be able to build and to revert.
#[test]
fn a_tree_of_someone_else() {
    let fixture = Fixture::new(Dialect::StockKr);
    if run(Command::new("chown").args(["-R", "1234:1234"]).arg(fixture.path())).code != 0 {
        skip("only root can give a tree away");
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
        skip("a small file system cannot be mounted here");
        return;
    }
    let result = std::panic::catch_unwind(|| {
        let tree = mount.path().join("tree");
        // Write the tree, then fill the rest of the disk.
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

/// Kills the program with SIGKILL, at times spread over the whole run. The unit tests of `tree::journal` kill it at
/// each step.
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
        // No event to wait for: the kill must come at an arbitrary time.
        std::thread::sleep(std::time::Duration::from_micros(round * 2500));
        let _ = child.kill();
        killed += i32::from(child.wait().unwrap().signal() == Some(9));
        if round % 2 == 0 {
            fixture.qpatch(&["apply", "--spawn", "1000"]).ok();
            let whole = Fixture::new(Dialect::StockAnsi);
            whole.qpatch(&["apply", "--spawn", "1000"]).ok();
            assert_eq!(common::bytes(&fixture.snapshot()), common::bytes(&whole.snapshot()));
        } else {
            // The exit code is 1 if the kill came before the first change.
            let _ = fixture.qpatch(&["revert"]);
            assert_eq!(fixture.snapshot(), before);
        }
    }
    assert!(killed > 0, "no run was killed in time");
}

#[test]
fn a_gate_for_another_machine_is_left_out() {
    let fixture = Fixture::new(Dialect::StockKr);
    // A compiler whose objects are for a machine that does not exist.
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
    // Apply does not need a compiler.
    let fixture = Fixture::new(Dialect::StockKr);
    fixture.write("conf-cc", "no-such-compiler -O2\n");
    assert_eq!(fixture.qpatch(&["apply", "--gate"]).ok().err, "");
}

#[test]
fn a_distribution_s_flags_that_old_sources_do_not_compile_with() {
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
    // Flags from a command or a variable may include it, too. A command within a flag gives only a part of that flag.
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
    // Sources in today's C need none of this.
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
