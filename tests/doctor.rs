//! Compares what doctor predicts for commands of shells and of limit programs with what they do on this machine. What
//! it reports of whole machines is in `cargo test --test cases`.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;

use proptest::prelude::*;
use qpatch::doctor::launch::limits::{
    InheritedLimit, KernelLimits, LimitPair, LimitState, LimitValue,
};
use qpatch::doctor::launch::script::{PathContent, ScriptHost, Walk};
use qpatch::doctor::launch::shell::Shell;
use qpatch::doctor::launch::unit;
use qpatch_test_support::{is_root, skip, write_script};

/// A machine that has only a shell.
struct Bare(Shell);

impl ScriptHost for Bare {
    fn content_of(&self, _: &str) -> PathContent {
        PathContent::Missing
    }
    fn shell(&self) -> Shell {
        self.0
    }
    fn kernel_limits(&self) -> KernelLimits {
        KernelLimits { nr_open: None, may_raise: false }
    }
    fn is_rc(&self, _: &str) -> bool {
        false
    }
    fn is_known(&self, _: &str) -> bool {
        false
    }
}

/// Returns the soft and the hard limit that doctor predicts at qmail-start, if the script starts with 1000 and 5000
/// descriptors; `None` if it cannot know.
fn predicted(script: &str, shell: Shell) -> Option<(u64, u64)> {
    let by = std::rc::Rc::new(InheritedLimit { by: String::new(), certain: true, raise: None });
    let pair = LimitPair::inherited(LimitValue::Number(1000), LimitValue::Number(5000), &by);
    let world = Bare(shell);
    let mut walk = Walk::new(&world);
    walk.script("run", script, &LimitState::new(pair, LimitPair::NOT_FOUND), &BTreeMap::new());
    let [reach] = walk.found.reaches.as_slice() else { return None };
    let (pair, rest) = reach.state.files.split_first()?;
    let values = |pair: &LimitPair| (pair.soft.value, pair.hard.value);
    if rest.iter().any(|other| values(other) != values(pair)) {
        return None;
    }
    match (pair.soft.value, pair.hard.value) {
        (LimitValue::Number(soft), LimitValue::Number(hard)) => Some((soft, hard)),
        _ => None,
    }
}

/// Returns the limits that qmail-start has if a real shell runs the script.
fn actual(script: &str, shell: &[&str]) -> Option<(u64, u64)> {
    let dir = tempfile::tempdir().unwrap();
    let start = dir.path().join("qmail-start");
    write_script(&start, "#!/bin/sh\necho limits $(ulimit -Sn) $(ulimit -Hn)\n");
    let run = dir.path().join("run");
    fs::write(&run, script).unwrap();
    let path = format!("{}:{}", dir.path().display(), std::env::var("PATH").unwrap_or_default());
    // Take away the right to exceed the hard limit, also from root.
    let begin = "ulimit -Sn 1000; ulimit -Hn 5000; exec \"$@\"";
    let begin = [
        "setpriv",
        "--bounding-set=-sys_resource",
        "--inh-caps=-sys_resource",
        "sh",
        "-c",
        begin,
        "sh",
    ];
    let begin = if is_root() { &begin[..] } else { &begin[3..] };
    let mut command = Command::new(begin[0]);
    command.args(&begin[1..]).args(shell).arg(&run).env("PATH", path);
    let output = command.output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let limits = text.lines().find_map(|line| line.strip_prefix("limits "))?;
    let (soft, hard) = limits.split_once(' ')?;
    Some((soft.parse().ok()?, hard.parse().ok()?))
}

fn is_there(program: &str) -> bool {
    let path = std::env::var("PATH").unwrap_or_default();
    let found = path.split(':').any(|dir| Path::new(dir).join(program).is_file());
    if !found {
        skip(format_args!("{program} is not installed"));
    }
    found
}

/// Spellings of ulimit, and scripts around it.
const ULIMITS: [&str; 44] = [
    "ulimit -n 100",
    "ulimit -Sn 100",
    "ulimit -S -n 100",
    "ulimit -Hn 2000",
    "ulimit -H -n 2000",
    "ulimit -Hn 500",
    "ulimit -n hard",
    "ulimit -Sn hard",
    "ulimit -n soft",
    "ulimit -n unlimited",
    "ulimit -SHn 100",
    "ulimit -SHn 2000",
    "ulimit -HSn 2000",
    "ulimit -n 4k",
    "ulimit -n 100 -u 50000",
    "ulimit -n100",
    "ulimit -Sn 9000",
    "ulimit -n 9000",
    "ulimit -n '100'",
    "ulimit -n 0100",
    "ulimit -n 0x64",
    "ulimit 100000",
    "ulimit -n",
    "ulimit -n 100\nulimit -Sn 50",
    "ulimit -n 100; ulimit -n 200",
    "ulimit -n 200 && ulimit -n 100",
    "ulimit -n 9000 2>/dev/null || ulimit -n 300",
    "ulimit -n 300 || ulimit -n 100",
    "N=100; ulimit -n $N",
    "N=100\nulimit -n ${N}",
    "N=; ulimit -n ${N:-300}",
    "O='-n 100'; ulimit $O",
    "( ulimit -n 100 )",
    "{ ulimit -n 100; }",
    "ulimit -n 100 | cat",
    "f() { ulimit -n 100; }; f",
    "f() { ulimit -n 100; }",
    "ulimit -n \\\n 100",
    "# ulimit -n 100",
    "cat <<END >/dev/null\nulimit -n 100\nEND",
    "echo ulimit -n 100 >/dev/null",
    "eval 'ulimit -n 100'",
    "if true; then ulimit -n 100; else ulimit -n 100; fi",
    "case x in x) ulimit -n 100;; *) ulimit -n 100;; esac",
];

#[test]
fn doctor_predicts_the_limits_of_shells() {
    let shells: [(&[&str], Shell); 5] = [
        (&["dash"], Shell::Dash),
        (&["bash"], Shell::Bash),
        (&["ksh"], Shell::Ksh),
        (&["zsh"], Shell::Zsh),
        (&["busybox", "sh"], Shell::Busybox),
    ];
    let mut wrong = Vec::new();
    for (command, shell) in shells {
        if !is_there(command[0]) {
            continue;
        }
        // zsh without its modules has no ulimit.
        if actual("ulimit -n 100 || exit\nexec qmail-start\n", command).is_none() {
            skip(format_args!("{} has no ulimit", command[0]));
            continue;
        }
        for line in ULIMITS {
            let script = format!("{line}\nexec qmail-start\n");
            let (taken, real) = (predicted(&script, shell), actual(&script, command));
            // If doctor says that it cannot know, that is not an error.
            if taken != real && taken.is_some() {
                wrong.push(format!("{command:?} {line:?}: predicted {taken:?}, is {real:?}"));
            }
            if taken.is_none() && shell == Shell::Dash {
                wrong.push(format!("{command:?} {line:?}: not understood, is {real:?}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Commands that start qmail-start under a limit.
const PROGRAMS: [&str; 36] = [
    "softlimit -o 100 qmail-start",
    "softlimit -o100 qmail-start",
    "softlimit -o = qmail-start",
    "softlimit -o 9000 qmail-start",
    "softlimit -m 90000000 -o 100 -o 200 qmail-start",
    "softlimit -o 4k qmail-start",
    "chpst -o 100 qmail-start",
    "chpst -o 9000 qmail-start",
    "chpst -vo 100 qmail-start",
    "chpst -m 90000000 -o 300 qmail-start",
    "s6-softlimit -o 100 qmail-start",
    "s6-softlimit -o 9000 qmail-start",
    "s6-softlimit -H -o 100 qmail-start",
    "s6-softlimit -h -o 2000 qmail-start",
    "s6-softlimit -o = qmail-start",
    "s6-softlimit -Ho100 qmail-start",
    "prlimit --nofile=100 qmail-start",
    "prlimit --nofile=100: qmail-start",
    "prlimit --nofile=:2000 qmail-start",
    "prlimit --nofile=100:2000 qmail-start",
    "prlimit -n100 qmail-start",
    "prlimit -n=100 qmail-start",
    "prlimit --nofile=64K qmail-start",
    "prlimit --pid $$ --nofile=100:2000; qmail-start",
    "exec env -i PATH=\"$PATH\" softlimit -o 100 qmail-start ./Mailbox",
    "exec env -i PATH=\"$PATH\" prlimit --nofile=100 qmail-start ./Mailbox",
    "exec nice -n 5 prlimit -n100 qmail-start",
    "exec prlimit -n2000 prlimit -n100: qmail-start",
    "exec sh -c 'ulimit -n 100; exec qmail-start'",
    "exec sh -c \"ulimit -n 100; exec qmail-start\"",
    "sh -ec 'ulimit -n 100 && qmail-start' 2>&1",
    "setsid -w sh -c 'ulimit -Sn 100; qmail-start' </dev/null",
    "exec -a qmail prlimit -n100 qmail-start",
    "command prlimit -n100 qmail-start",
    "nohup prlimit -n100 qmail-start 2>/dev/null",
    "timeout 60 prlimit -n100 qmail-start",
];

#[test]
fn doctor_predicts_the_limits_of_programs() {
    let mut wrong = Vec::new();
    for line in PROGRAMS {
        let own = ["softlimit", "chpst", "s6-softlimit", "prlimit"];
        let missing = own.into_iter().find(|program| {
            line.split_whitespace().any(|word| word == *program) && !is_there(program)
        });
        if missing.is_some() {
            continue;
        }
        let script = format!("{line}\n");
        let real = actual(&script, &["bash"]);
        let taken = predicted(&script, Shell::Bash);
        // A program that refuses its options starts no other one.
        if taken != real && real.is_some() {
            wrong.push(format!("{line:?}: predicted {taken:?}, is {real:?}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// A script that is not followed to the end is reported.
#[test]
fn a_script_that_is_not_followed_to_the_end_is_reported() {
    let many = ":\n".repeat(20_001);
    for (what, script, is_cut) in [
        ("few commands", ":\nulimit -n 5000\nexec qmail-start\n".to_string(), false),
        ("many commands", format!("{many}ulimit -n 50\nexec qmail-start\n"), true),
        ("a function that calls itself", "f() { f; }\nf\nexec qmail-start\n".to_string(), true),
        ("one eval", "eval ':'\nexec qmail-start\n".to_string(), false),
    ] {
        let world = Bare(Shell::Dash);
        let mut walk = Walk::new(&world);
        let by = std::rc::Rc::new(InheritedLimit { by: String::new(), certain: true, raise: None });
        let pair = LimitPair::inherited(LimitValue::Number(1000), LimitValue::Number(5000), &by);
        walk.script("run", &script, &LimitState::new(pair, LimitPair::NOT_FOUND), &BTreeMap::new());
        let wanted = match is_cut {
            true => vec![
                "run: too much to follow to the end: scripts within scripts, or very many commands"
                    .to_string(),
            ],
            false => Vec::new(),
        };
        assert_eq!(walk.found.unread, wanted, "{what}");
    }
}

#[test]
fn odd_scripts_do_not_stop_doctor() {
    // Each of these once made a parser loop or recurse for ever.
    for text in [
        "f() { f; }; f",
        "f() { g; }\ng() { f; }\ng",
        ". run",
        "eval 'eval \"$0\"'",
        "((((",
        "))))",
        "case",
        "case x in",
        "if",
        "while",
        "for",
        "function",
        "f()",
        "<<",
        "<<E\n",
        "\"",
        "'",
        "$(",
        "${",
        "`",
        "\\",
        "{",
        "}",
        "fi; done; esac",
        "x=$(ulimit -n 5",
        "((i<5))",
        "[[ a < b ]]",
        "<(",
        "a <(b) >(c)",
        "case x in (a) b;; c",
        "then",
        "é=1; echo 'ü",
        "$",
    ] {
        for head in ["", "#!/bin/execlineb -P\n", "#!/sbin/openrc-run\n", "#!/usr/bin/perl\n"] {
            let _ = predicted(&format!("{head}{text}"), Shell::Dash);
            let _ = predicted(&format!("{head}{text}\nexec qmail-start\n"), Shell::Unknown);
        }
    }
}

/// Pieces of scripts and units, and other text.
fn pieces() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        Just("ulimit -n 5\n"),
        Just("exec qmail-start "),
        Just("if "),
        Just("then "),
        Just("else "),
        Just("fi\n"),
        Just("case x in "),
        Just("esac "),
        Just("a) "),
        Just(";; "),
        Just("f() "),
        Just("f; "),
        Just("{ "),
        Just("} "),
        Just("( "),
        Just(") "),
        Just("while "),
        Just("do "),
        Just("done "),
        Just("&& "),
        Just("|| "),
        Just("| "),
        Just("& "),
        Just("<<E\n"),
        Just("\nE\n"),
        Just("2>&1 "),
        Just("\""),
        Just("'"),
        Just("`"),
        Just("$("),
        Just("${x:-"),
        Just("$x "),
        Just("x=5 "),
        Just("\\\n"),
        Just("\\"),
        Just("prlimit -n5: "),
        Just("softlimit -o"),
        Just("sh -c "),
        Just("[Service]\n"),
        Just("ExecStart=@-/bin/sh "),
        Just("LimitNOFILE=1"),
        Just("0x"),
        Just(":"),
        Just("%"),
        Just(".5"),
        Just("K"),
        Just("\u{e9}"),
        Just("\0"),
        Just("#"),
        Just("\n"),
        Just(" "),
    ];
    prop::collection::vec(piece, 0..40).prop_map(|pieces| pieces.concat())
}

/// Each line doubles the value: after 60 lines it would need more memory than any machine has.
#[test]
fn a_value_that_doubles_is_not_followed() {
    let doubled = format!("a=12345678\n{}", "a=\"$a$a\"\n".repeat(60));
    let run = "exec qmail-start\n";
    let taken = |limit: &str| predicted(&format!("{doubled}ulimit -n {limit}\n{run}"), Shell::Dash);
    assert_eq!((taken("2000"), taken("$a")), (Some((2000, 2000)), None));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, ..ProptestConfig::default() })]

    #[test]
    fn no_text_stops_doctor(text in pieces(), head in prop_oneof![Just(""), Just("#!/bin/execlineb\n"), Just("#!/sbin/openrc-run\n")]) {
        let script = format!("{head}{text}");
        for shell in [Shell::Dash, Shell::Bash, Shell::Ksh, Shell::Csh, Shell::Unknown] {
            let _ = predicted(&script, shell);
        }
        for entry in unit::entries("f", &text) {
            let _ = unit::words(&entry.value);
        }
        let _ = (unit::words(&text), unit::limit(&text), unit::tasks(&text, Some(1000)), unit::memory(&text, Some(1000)));
    }
}
