//! The rules and the metrics, as Prometheus reads them.

mod common;

use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use common::qpatch;
use qpatch_test_support::has;

fn root(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}

fn promtool(dir: &Path, args: &[&str]) -> Output {
    Command::new("promtool").args(args).current_dir(dir).output().unwrap()
}

fn said(output: &Output) -> String {
    [&output.stdout[..], &output.stderr].map(String::from_utf8_lossy).concat()
}

/// What gate show prints of a case of gate_cases.
fn metrics(case: &str) -> String {
    let home = root("tests/gate_cases").join(case).join("qmail");
    qpatch(&["gate", "show", home.to_str().unwrap(), "--format", "prometheus"]).ok().out
}

const CASES: [&str; 3] =
    ["show-prometheus", "show-prometheus-several", "show-prometheus-duplicates"];

/// Each rule of alerts.yml: its name, and the lines of it.
fn rules(text: &str) -> Vec<(String, String)> {
    let mut rules = Vec::new();
    for rule in text.split("      - alert: ").skip(1) {
        rules.push((rule.lines().next().unwrap().to_string(), rule.to_string()));
    }
    rules
}

#[test]
fn each_alert_comes_when_it_should_and_only_then() {
    let rules = rules(&fs::read_to_string(root("monitoring/alerts.yml")).unwrap());
    assert!(rules.len() >= 8, "{rules:?}");
    let tests = fs::read_to_string(root("monitoring/alerts_test.yml")).unwrap();
    for (name, _) in &rules {
        let silent = format!("alertname: {name}, exp_alerts: []");
        let loud = format!("alertname: {name}\n        exp_alerts:\n          - exp_labels");
        assert!(tests.contains(&silent) && tests.contains(&loud), "{name}");
    }
    if !has("promtool") {
        return;
    }
    let dir = root("monitoring");
    let output = promtool(&dir, &["check", "rules", "alerts.yml"]);
    assert!(output.status.success(), "{}", said(&output));
    let output = promtool(&dir, &["test", "rules", "alerts_test.yml"]);
    assert!(output.status.success(), "{}", said(&output));
}

/// The tests of the rules see of each when it is never true, and when it always is.
#[test]
fn the_tests_of_the_rules_see_each_rule() {
    if !has("promtool") {
        return;
    }
    let text = fs::read_to_string(root("monitoring/alerts.yml")).unwrap();
    let dir = tempfile::tempdir().unwrap();
    fs::copy(root("monitoring/alerts_test.yml"), dir.path().join("alerts_test.yml")).unwrap();
    for expr in ["qmail_gate_up > 7", "qmail_gate_up >= 0 or qmail_gate_key_held >= 0"] {
        let mut changed = text.clone();
        for (_, rule) in rules(&text) {
            let (head, rest) = rule.split_once("        expr: ").unwrap();
            let ends = ["        for: ", "        labels:"].iter().filter_map(|end| rest.find(end));
            let rest = &rest[ends.min().unwrap()..];
            changed = changed.replace(&rule, &format!("{head}        expr: {expr}\n{rest}"));
        }
        assert_eq!(changed.matches(expr).count(), rules(&text).len());
        fs::write(dir.path().join("alerts.yml"), changed).unwrap();
        let output = promtool(dir.path(), &["test", "rules", "alerts_test.yml"]);
        let said = said(&output);
        assert!(!output.status.success(), "{said}");
        for (name, _) in rules(&text) {
            assert!(said.contains(&name), "{name}, {expr}: {said}");
        }
    }
}

#[test]
fn the_rules_ask_for_metrics_that_there_are() {
    let told: BTreeSet<String> = CASES
        .iter()
        .flat_map(|case| {
            let text = metrics(case);
            let names = text.lines().filter_map(|line| line.strip_prefix("# TYPE "));
            names.map(|line| line.split(' ').next().unwrap().to_string()).collect::<Vec<_>>()
        })
        .collect();
    for file in ["monitoring/alerts.yml", "monitoring/alerts_test.yml", "monitoring/README.md"] {
        let text = fs::read_to_string(root(file)).unwrap();
        let words = text.split(|char: char| !char.is_ascii_alphanumeric() && char != '_');
        let asked: BTreeSet<_> = words.filter(|word| word.starts_with("qmail_gate_")).collect();
        assert!(!asked.is_empty());
        let unknown: Vec<_> = asked.into_iter().filter(|&name| !told.contains(name)).collect();
        assert!(unknown.is_empty(), "{file}: {unknown:?}");
    }
    // And the manual page has them all.
    let page = fs::read_to_string(root("man/qpatch-gate-show.1")).unwrap();
    for name in &told {
        assert!(page.contains(&format!("\\fB{name}\\fR (")), "{name}");
    }
}

#[test]
fn prometheus_reads_the_metrics_and_finds_no_odd_name() {
    let mut pages: Vec<String> = CASES.iter().map(|case| metrics(case)).collect();
    let dir = tempfile::tempdir().unwrap();
    let lock = dir.path().join("queue/lock");
    fs::create_dir_all(&lock).unwrap();
    fs::create_dir(dir.path().join("control")).unwrap();
    // Every byte in a name, and the names that only one quote, bar or escape tells apart.
    let mut names: Vec<Vec<u8>> = (0..=255u8).map(|byte| vec![byte]).collect();
    names.extend([&b"\\n"[..], b"\"", b"\\\"", b"%41", b"\xff", b"%ff", b""].map(<[u8]>::to_vec));
    let mut status = b"qpatch-gate\t1\t1\nstate\tlimits\ntable\t1\t0\t0\tfile\n".to_vec();
    for name in names.iter().filter(|name| !name.iter().any(|byte| b"\t\n".contains(byte))) {
        status.extend(b"key\tdomain\t");
        status.extend(name);
        status.extend(b"\t1\t0\t0\t1\t0\t0\t0\t0\t0\t1\t1\t1\t\x1b[2J\x07\xe2\x80\xae\t-\t1\n");
    }
    status.extend(b"end\t1\n");
    fs::write(lock.join("gatestatus"), &status).unwrap();
    fs::write(lock.join("gatestatus.1"), &status).unwrap();
    let home = dir.path().to_str().unwrap();
    pages.push(qpatch(&["gate", "show", home, "--format", "prometheus"]).ok().out);
    for format in ["table", "json"] {
        let out = qpatch(&["gate", "show", home, "--format", format]).ok().out;
        let printable = |char: char| char == '\n' || (' '..='~').contains(&char);
        assert!(out.chars().all(printable), "{out}");
    }
    for page in &pages {
        let mut series = BTreeSet::new();
        for line in page.lines().filter(|line| !line.starts_with('#')) {
            assert!(line.bytes().all(|byte| (b' '..=b'~').contains(&byte)), "{line}");
            let (name, value) = line.rsplit_once(' ').unwrap();
            assert!(value.parse::<f64>().is_ok(), "{line}");
            assert!(series.insert(name), "twice: {name}");
        }
    }
    // All bytes but tab and line feed, and what was said in two ways (%41, %ff; `%` and "" once more) once.
    let keys = pages.last().unwrap().matches("\nqmail_gate_key_limit{").count();
    assert_eq!(keys, 254 + 3);
    if !has("promtool") {
        return;
    }
    for page in &pages {
        let mut child = Command::new("promtool")
            .args(["check", "metrics"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(page.as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success() && said(&output).is_empty(), "{}", said(&output));
    }
}
