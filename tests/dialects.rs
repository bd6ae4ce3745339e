//! The patches on each fixture dialect: second apply, revert, and the diff under other tools. What a patch makes of
//! each is in `cargo test --test cases`.

mod common;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use common::{Fixture, bytes, run, snapshot};
use qpatch::fixture::Dialect;
use qpatch_test_support::has;

/// Whether status says of each patch that nothing is missing.
fn is_all_there(status: &str) -> bool {
    status.lines().all(|line| line.contains(" applied ") || line.contains(" unneeded "))
}

#[test]
fn a_second_apply_changes_nothing_and_a_revert_gives_all_back() {
    for dialect in Dialect::ALL {
        let fixture = Fixture::new(dialect);
        let before = fixture.snapshot();
        fixture.qpatch(&["apply", "--spawn", "1000"]).ok();
        assert_eq!(fixture.read("conf-spawn").lines().next(), Some("1000"));
        let once = fixture.snapshot();
        let second = fixture.qpatch(&["apply", "--spawn", "1000"]).ok();
        assert!(second.out.contains("nothing to change"), "{}", second.out);
        assert_eq!(fixture.snapshot(), once);
        let status = fixture.qpatch(&["status"]).ok().out;
        assert!(is_all_there(&status), "{status}");
        fixture.qpatch(&["revert"]).ok();
        assert_eq!(fixture.snapshot(), before);
    }
}

/// An operator puts a flag or a library behind the name of a program, where the patches have put their objects.
#[test]
fn a_flag_among_the_objects_is_no_reason_to_add_them_again() {
    for dialect in Dialect::ALL {
        let fixture = Fixture::new(dialect);
        fixture.qpatch(&["apply"]).ok();
        let makefile = fixture.read("Makefile");
        let flagged: String = makefile
            .split_inclusive('\n')
            .map(|line| match line.strip_prefix("\t./load ") {
                Some(words) => {
                    let (program, objects) = words.split_once(' ').unwrap();
                    format!("\t./load {program} -static {}", objects.replace(".o ", ".o $(LIBS) "))
                }
                None => line.to_string(),
            })
            .collect();
        assert!(
            flagged.contains("./load qmail-remote -static remote_serve.o $(LIBS) "),
            "{flagged}"
        );
        assert!(flagged.contains("gate_glue.o $(LIBS) gate.a"), "{flagged}");
        fixture.write("Makefile", &flagged);
        let second = fixture.qpatch(&["apply"]).ok();
        assert_eq!(fixture.read("Makefile"), flagged, "{}", second.out);
        let status = fixture.qpatch(&["status"]).ok().out;
        assert!(is_all_there(&status), "{status}");
    }
}

#[test]
fn another_size_later_is_one_more_change_and_revert_still_goes_back_to_the_start() {
    let fixture = Fixture::new(Dialect::StockKr);
    let before = fixture.snapshot();
    fixture.qpatch(&["apply"]).ok();
    assert_eq!(fixture.read("conf-spawn").lines().next(), Some("120"));
    let out = fixture.qpatch(&["apply", "--spawn", "65000"]).ok().out;
    assert!(out.contains("1 file changed"), "{out}");
    assert_eq!(fixture.read("conf-spawn").lines().next(), Some("65000"));
    fixture.qpatch(&["revert"]).ok();
    assert_eq!(fixture.snapshot(), before);
}

#[test]
fn the_diff_gives_what_apply_gives_under_patch_git_and_quilt() {
    for dialect in Dialect::ALL {
        let applied = Fixture::new(dialect);
        let diff = applied.qpatch(&["diff", "--spawn", "1000"]).ok().out;
        applied.qpatch(&["apply", "--spawn", "1000"]).ok();
        let mut want = applied.snapshot();
        // Not text, so not in the diff, which says so.
        want.remove(Path::new("gate.a")).unwrap();
        let scratch = tempfile::tempdir().unwrap();
        let file = scratch.path().join("qpatch.diff");
        fs::write(&file, &diff).unwrap();
        let file = file.to_str().unwrap();
        let tools: [(&str, &[&[&str]]); 3] = [
            ("patch", &[&["patch", "-p1", "-F0", "-s", "-i", file]]),
            ("git", &[&["git", "apply", "--whitespace=nowarn", file]]),
            ("quilt", &[&["quilt", "import", file], &["quilt", "push", "-a", "--fuzz=0"]]),
        ];
        for (tool, commands) in tools {
            if !has(tool) {
                continue;
            }
            let other = Fixture::new(dialect);
            for command in commands {
                run(Command::new(command[0]).args(&command[1..]).current_dir(other.path())).ok();
            }
            for extra in ["patches", ".pc"] {
                let _ = fs::remove_dir_all(other.path().join(extra));
            }
            assert_eq!(bytes(&snapshot(other.path())), bytes(&want), "{tool}");
        }
    }
}

#[test]
fn the_sign_bug_is_repaired_and_nothing_else_of_the_protocol_is_touched() {
    let fixture = Fixture::new(Dialect::TwoByte);
    let status = fixture.qpatch(&["status"]).ok().out;
    assert!(status.contains("big-concurrency partial"), "{status}");
    assert_eq!(status.matches("there, but wrong").count(), 2, "{status}");
    let diff = fixture.qpatch(&["diff", "--only", "big-concurrency"]).ok().out;
    let changed: Vec<_> = diff
        .lines()
        .filter(|l| l.starts_with('+') && !l.starts_with("+++") && l.contains("delnum"))
        .map(|l| l[1..].trim())
        .collect();
    assert_eq!(
        changed,
        [
            "delnum += (unsigned int) ((unsigned char) dline[c].s[1]) << 8;",
            "delnum += (unsigned int) ((unsigned char) ch) << 8;"
        ]
    );
}

#[test]
fn only_and_skip() {
    let fixture = Fixture::new(Dialect::StockAnsi);
    fixture.qpatch(&["apply", "--only", "fd-setsize"]).ok();
    let status = fixture.qpatch(&["status"]).ok().out;
    assert!(status.contains("fd-setsize      applied"), "{status}");
    assert!(status.contains("big-concurrency missing"), "{status}");
    let out = fixture
        .qpatch(&["apply", "--skip", "fd-setsize,toolchain,domain-gate", "--dry-run"])
        .ok()
        .out;
    assert!(!out.contains("fd-setsize") && out.contains("would change spawn.c"), "{out}");
}

#[test]
fn a_log_of_another_name_without_braces_is_known_too() {
    let fixture = Fixture::new(Dialect::TwoByte);
    let line = "log1(\"warning: internal error: delivery report out of range\\n\");";
    fixture.replace(
        "qmail-send.c",
        line,
        "log3(\"warning: \",queue,\": a report for nothing\\n\");",
    );
    let diff = fixture.qpatch(&["diff", "--gate"]).ok().out;
    let at = diff.find("gate_retry_call(c,").expect("the call is written");
    let lines: Vec<_> = diff[at..].lines().skip(1).take(2).map(|l| l[1..].trim()).collect();
    assert_eq!(lines, ["log3(\"warning: \",queue,\": a report for nothing\\n\");", "}"]);
}

/// eQmail and others have the buffers of djbdns in place of substdio.
#[test]
fn a_tree_with_buffers_gets_all_patches_and_compiles() {
    let fixture = Fixture::new(Dialect::StockKr);
    for entry in fs::read_dir(fixture.path()).unwrap() {
        let path = entry.unwrap().path();
        let Ok(text) = fs::read_to_string(&path) else { continue };
        let text = text.replace("SUBSTDIO_FDBUF", "BUFFER_INIT").replace("SUBSTDIO", "BUFFER");
        let text = text.replace("substdio_fdbuf", "buffer_init").replace("substdio", "buffer");
        let name = path.file_name().unwrap().to_str().unwrap().replace("substdio", "buffer");
        fs::remove_file(&path).unwrap();
        fixture.write(&name, &text);
        if text.starts_with("#!") {
            fs::set_permissions(fixture.path().join(name), fs::Permissions::from_mode(0o755))
                .unwrap();
        }
    }
    let out = fixture.qpatch(&["apply", "--gate"]).ok();
    assert_eq!(out.err, "");
    assert!(fixture.read("spawn.c").contains("buffer_puts(&ssout,gateglue_text);"));
    assert!(fixture.read("qsutil.c").contains("log_endline(&sslog);"));
    for (name, text) in bytes(&fixture.snapshot()) {
        let is_c = name.extension().is_some_and(|end| end == "c" || end == "h");
        assert!(!is_c || !String::from_utf8_lossy(text).contains("substdio"), "{name:?}");
    }
    let objects =
        ["spawn.o", "qmail-rspawn.o", "qmail-send.o", "qsutil.o", "gate_glue.o", "gate_retry.o"];
    run(Command::new("make").arg("-s").args(objects).current_dir(fixture.path())).ok();
}

#[test]
fn a_tree_on_skalibs_is_told_why_the_gate_does_not_fit() {
    let fixture = Fixture::new(Dialect::StockAnsi);
    fixture.replace("spawn.c", "#include \"select.h\"", "#include <skalibs/iopause.h>");
    let why = "spawn.c: domain-gate: this tree is not of its kind: it waits with iopause() of skalibs, the gate's hooks \
               are for select()";
    let refused = fixture.qpatch(&["apply", "--gate"]);
    assert_eq!((refused.code, refused.err.matches("qpatch: ").count()), (1, 1), "{}", refused.err);
    assert!(refused.err.contains(why), "{}", refused.err);
    let applied = fixture.qpatch(&["apply"]).ok();
    assert!(applied.err.contains(why), "{}", applied.err);
}

#[test]
fn a_fork_that_the_gate_does_not_know_gets_the_rest_with_a_warning() {
    let fixture = Fixture::new(Dialect::StockKr);
    fixture.replace("spawn.c", "sig_childunblock();", "sig_unblock(sig_child);");
    let refused = fixture.qpatch(&["apply", "--gate"]);
    assert_eq!(refused.code, 1);
    let why = "spawn.c: domain-gate: held commands start: no match; nothing comes near: `sig_childunblock` is not there";
    assert!(refused.err.contains(why), "{}", refused.err);
    let applied = fixture.qpatch(&["apply"]).ok();
    assert!(
        applied.err.starts_with("qpatch: warning: no limits per domain: the gate does not fit"),
        "{}",
        applied.err
    );
    assert!(fixture.read("spawn.c").contains("delnum >> 8"));
    assert!(!fixture.path().join("gate.a").exists());
    assert_eq!(fixture.qpatch(&["apply", "--no-gate"]).ok().err, "");
}

#[test]
fn without_the_gate_nothing_of_it_is_in_the_tree() {
    let fixture = Fixture::new(Dialect::StockAnsi);
    let out = fixture.qpatch(&["apply", "--no-gate"]).ok().out;
    assert!(!out.contains("domain-gate"), "{out}");
    for (name, (bytes, ..)) in fixture.snapshot() {
        if !name.starts_with(".qpatch") {
            assert!(!String::from_utf8_lossy(&bytes).contains("gateglue"), "{}", name.display());
        }
    }
}
