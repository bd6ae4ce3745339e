//! The command line: wrong usage, what commands print, and the manual pages. `odd_trees` has the trees that are damaged
//! or unusual, `packaging` what packagers use.

mod common;
#[path = "cli/odd_trees.rs"]
mod odd_trees;
#[path = "cli/packaging.rs"]
mod packaging;

use std::fs;
use std::process::Command;

use common::{Fixture, Run, qpatch, run};
use qpatch::fixture::Dialect;
use qpatch_test_support::golden;

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
    // In a tree that has them already, domain-gate alone fits.
    fixture.qpatch(&["apply", "--no-gate"]).ok();
    assert_eq!(fixture.qpatch(&["apply", "--only", "domain-gate"]).ok().err, "");
}

#[test]
fn revert_takes_out_the_gate_and_all_that_was_built_of_it() {
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
fn spawn_without_big_concurrency_is_wrong_usage() {
    for left_out in [["--skip", "big-concurrency"], ["--only", "fd-setsize"]] {
        let run = qpatch(&[&["apply", "--spawn", "1000", "/"][..], &left_out].concat());
        assert_eq!(run.code, 2, "{}", run.err);
        let what = "error: --spawn needs big-concurrency, which --only or --skip leaves out: drop one of these \
                    options\n";
        assert!(run.err.starts_with(what), "{}", run.err);
    }
}

#[test]
fn wrong_usage() {
    for (args, says) in [
        (&["apply"][..], "error: the following required arguments were not provided:\n  <TREE>\n"),
        (&["frobnicate"], "error: unrecognized subcommand 'frobnicate'\n"),
        (&[], "\nUsage: qpatch "),
        (&["apply", "--only", "nothing", "/"], "error: invalid value 'nothing' for '--only <"),
    ] {
        let run = qpatch(args);
        assert_eq!((run.code, run.out.as_str()), (2, ""), "{args:?}");
        assert!(run.err.contains(says), "{args:?}: {}", run.err);
    }
    let version = concat!("qpatch ", env!("CARGO_PKG_VERSION"), "\n");
    for (args, says) in [
        (&["--help"][..], "\nUsage: qpatch "),
        (&["--version"], version),
        (&["apply", "--help"], "\nUsage: qpatch apply "),
        (&["completions", "bash"], "_qpatch() {\n"),
    ] {
        let run = qpatch(args).ok();
        assert_eq!(run.err, "", "{args:?}");
        assert!(run.out.contains(says), "{args:?}: {}", run.out);
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
    let ids = qpatch::patches::ALL.map(|patch| patch.id).join(", ") + "]";
    // The help may wrap anywhere.
    let words = help.split_whitespace().collect::<Vec<_>>().join(" ");
    assert_eq!(words.matches(&ids).count(), 2, "{help}");
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
fn apply_and_revert_count_the_files() {
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
    // `rule show` prints the rule that was tried.
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

/// A rule for C is tried as C, whatever the file is called.
#[test]
fn the_rule_says_in_which_language_a_file_is() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    fs::write(
        path("rule"),
        "file spawn.c\n@@ in main() : t\n-select( $n )\n+pselect($n)\n=pselect($n)\n",
    )
    .unwrap();
    fs::write(path("spawn.c.orig"), "int main(void)\n{\n  select(nfds);\n}\n").unwrap();
    let run = qpatch(&["rule", "try", &format!("{}:2", path("rule")), &path("spawn.c.orig")]).ok();
    assert!(run.out.contains("+  pselect(nfds);"), "{}", run.out);
}

/// `QPATCH_BLESS=1` writes them.
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
        let page = fs::read(written.path().join(&name)).unwrap();
        golden(&kept.join(&name), &page).unwrap_or_else(|difference| panic!("{difference}"));
    }
    assert_eq!(pages(&kept), pages(written.path()));
}

#[test]
fn manual_pages_have_their_sections() {
    let dir = tempfile::tempdir().unwrap();
    qpatch(&["man", dir.path().to_str().unwrap()]).ok();
    let page = |name: &str| fs::read_to_string(dir.path().join(name)).unwrap();
    let synopsis = "\n\\fBqpatch gate simulate\\fR [\\fB\\-\\-concurrencyremote\\fR \\fIN\\fR] \
                    [\\fB\\-\\-try\\fR \\fIKEY:N,N...\\fR] [\\fB\\-\\-html\\fR \\fIFILE\\fR] \
                    [\\fB\\-\\-format\\fR \\fIFORMAT\\fR] [\\fB\\-h\\fR|\\fB\\-\\-help\\fR] \
                    \\fB\\-\\-log\\fR \\fILOG\\fR [\\fB\\-\\-log\\fR \\fILOG\\fR]... \\fIFILE|QMAILHOME\\fR \
                    [\\fILOG\\fR]...\n";
    let simulate = page("qpatch-gate-simulate.1");
    assert!(simulate.contains(synopsis), "{simulate}");
    let status =
        ".SH \"EXIT STATUS\"\n.TP\n\\fB0\\fR\nno change is needed, as far as doctor could see\n";
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

/// IndiMail's tree has nothing that the patch toolchain changes, as this fixture.
#[test]
fn a_patch_that_a_tree_has_nothing_for_is_not_applied() {
    let fixture = Fixture::new(Dialect::StockAnsi);
    let line = "toolchain       unneeded this tree has nothing that it changes\n";
    for args in [&["status"][..], &["apply", "--dry-run"], &["apply"], &["apply"], &["status"]] {
        let out = fixture.qpatch(args).ok().out;
        assert!(out.starts_with(line), "{args:?}: {out}");
    }
    let run = fixture.qpatch(&["status", "--format", "json"]).ok();
    let value: serde_json::Value = serde_json::from_str(&run.out).unwrap();
    assert_eq!(value["patches"][0]["standing"], "unneeded");
}

#[test]
fn status_as_json() {
    let fixture = Fixture::new(Dialect::TwoByte);
    let run = fixture.qpatch(&["status", "--format", "json"]).ok();
    let value: serde_json::Value = serde_json::from_str(&run.out).unwrap();
    let patches = value["patches"].as_array().unwrap();
    let standing: Vec<_> = patches.iter().map(|p| p["standing"].as_str().unwrap()).collect();
    // It writes its log in lines already, and has no outgoing addresses: two patches have nothing to do with it.
    assert_eq!(standing, [&["missing", "partial"][..], &["missing"; 5]].concat());
    let repairs = patches[1]["rules"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|r| r["outcome"]["state"] == "repair")
        .count();
    assert_eq!(repairs, 2);
}
