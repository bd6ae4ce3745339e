//! The patches on each fixture dialect: byte-exact goldens (`dialects/NAME.diff`, which `SNAPSHOTS=overwrite` writes), a
//! second apply, a revert, and the diff under other tools.

mod common;

use std::fs;
use std::path::Path;
use std::process::Command;

use common::{Fixture, bytes, has, run, snapshot};
use qpatch::fixture::Dialect;
use snapbox::{Data, assert_data_eq};

#[test]
fn each_dialect_is_patched_as_recorded() {
    for dialect in Dialect::ALL {
        let fixture = Fixture::new(dialect);
        let diff = fixture.qpatch(&["diff", "--spawn", "1000", "--no-gate"]).ok().out;
        assert_data_eq!(diff, golden(&format!("{}.diff", dialect.name())));
        fixture.qpatch(&["apply", "--spawn", "1000", "--no-gate"]).ok();
        let gate = fixture.qpatch(&["diff", "--only", "domain-gate"]).ok();
        assert!(gate.err.contains("gate.a is no text and not in the diff"), "{}", gate.err);
        assert_data_eq!(hooks(&gate.out), golden(&format!("{}.gate.diff", dialect.name())));
    }
}

fn golden(name: &str) -> Data {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/dialects").join(name);
    Data::read_from(&path, None).raw()
}

/// Returns a diff without the files that it creates, which are in c-shim/.
fn hooks(diff: &str) -> String {
    let mut keep = true;
    let mut out = String::new();
    for line in diff.lines() {
        if line.starts_with("--- ") {
            keep = line != "--- /dev/null";
        }
        if keep {
            out.push_str(line);
            out.push('\n');
        }
    }
    out
}

#[test]
fn a_second_apply_changes_nothing_and_a_revert_restores_everything() {
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
        assert_eq!(status.matches(" applied ").count(), status.lines().count(), "{status}");
        fixture.qpatch(&["revert"]).ok();
        assert_eq!(fixture.snapshot(), before);
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
fn patch_git_and_quilt_make_of_the_diff_what_apply_makes() {
    for dialect in Dialect::ALL {
        let applied = Fixture::new(dialect);
        let diff = applied.qpatch(&["diff", "--spawn", "1000"]).ok().out;
        applied.qpatch(&["apply", "--spawn", "1000"]).ok();
        let mut want = applied.snapshot();
        // It is not text, so it is not in the diff, and a warning says so.
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

/// Returns one tree with the ways in which several forks (IndiMail, eQmail, aQmail and notqmail's send-jobs) write the
/// places of the gate.
fn fork() -> Fixture {
    let fixture = Fixture::new(Dialect::StockAnsi);
    // The report function at the end of a delivery has another name.
    for name in ["spawn.c", "spawn.h", "qmail-lspawn.c", "qmail-rspawn.c"] {
        if fixture.path().join(name).exists() && fixture.read(name).contains(" report(") {
            fixture.replace(name, " report(", " tell_outcome(");
        }
        if fixture.read(name).contains("\treport(") {
            fixture.replace(name, "\treport(", "\ttell_outcome(");
        }
    }
    // A queue may be sorted in two orders, so an insertion names one.
    fixture.replace(
        "prioq.h",
        "extern int prioq_insert(",
        "enum order { EARLY_FIRST, LATE_FIRST };\nextern int prioq_insert(enum order, ",
    );
    fixture.replace("prioq.c", "int prioq_insert(", "int prioq_insert(enum order order, ");
    fixture.replace(
        "prioq.c",
        "  if (!room(pq)) return 0;",
        "  if (order != EARLY_FIRST || !room(pq)) return 0;",
    );
    fixture.replace("qmail-send.c", "prioq_insert(", "prioq_insert(EARLY_FIRST,");
    // A report for a delivery that does not exist is logged in other words, by a macro, and in braces.
    fixture.replace(
        "qmail-send.c",
        "log1(\"warning: internal error: delivery report out of range\\n\");",
        "{\n\t\t\t\tlog1(WARNING(\"a report for a slot that runs nothing\\n\"));\n\t\t\t}",
    );
    fixture.replace(
        "qmail-send.c",
        "prioq pqchan",
        "#define WARNING(text) \"warning: \" text\n\nprioq pqchan",
    );
    // The job is in a variable.
    fixture.replace("qmail-send.c", "jo[pass[c].j].retry = nextretry", "jo[j].retry = nextretry");
    // Comments between the prerequisites and the recipe, which make allows.
    fixture.replace(
        "Makefile",
        "\t./load qmail-send ",
        "# with qmail-send's own objects \\\n# and the archives\n\n\t./load qmail-send ",
    );
    fixture
}

#[test]
fn the_gate_fits_forks_that_write_its_places_another_way() {
    let fixture = fork();
    fixture.qpatch(&["apply", "--spawn", "1000", "--no-gate"]).ok();
    let gate = fixture.qpatch(&["diff", "--only", "domain-gate"]).ok();
    assert_data_eq!(hooks(&gate.out), golden("fork.gate.diff"));
    fixture.qpatch(&["apply", "--gate"]).ok();
    let proof = fixture.qpatch(&["verify", "--only", "gate", "--spawn", "40"]).ok().out;
    assert!(proof.contains("\nok    gate "), "{proof}");
}

#[test]
fn a_log_function_with_another_name_and_without_braces_fits() {
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

#[test]
fn apply_says_why_the_gate_does_not_fit_a_tree_on_skalibs() {
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
fn no_gate_leaves_no_trace_of_the_gate_in_the_tree() {
    let fixture = Fixture::new(Dialect::StockAnsi);
    let out = fixture.qpatch(&["apply", "--no-gate"]).ok().out;
    assert!(!out.contains("domain-gate"), "{out}");
    for (name, (bytes, ..)) in fixture.snapshot() {
        if !name.starts_with(".qpatch") {
            assert!(!String::from_utf8_lossy(&bytes).contains("gateglue"), "{}", name.display());
        }
    }
}
