//! `qpatch gate show --format prometheus`: whether the gate is up, its series, and the dashboard that reads them.

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use qpatch_gate::gate::DeliveryEnd;
use qpatch_test_support::{has, is_root, skip};
use serde_json::Value;

use super::{Home, ask, busy_gate, json, status_of};

/// Metrics that no panel of monitoring/grafana.json has, on purpose.
const IN_NO_PANEL: [&str; 2] = [
    // Grafana makes its own rate of key_done_total.
    "qmail_gate_key_rate",
    // The panels of the keys have these keys as one series.
    "qmail_gate_keys_other",
];

/// Every `expr` and every query of a variable.
fn queries(value: &Value, found: &mut Vec<String>) {
    match value {
        Value::Object(fields) => {
            for (name, value) in fields {
                match value {
                    // The query of the variable for the data source is the kind of source.
                    Value::String(text)
                        if name == "expr" || (name == "query" && text != "prometheus") =>
                    {
                        found.push(text.clone());
                    }
                    value => queries(value, found),
                }
            }
        }
        Value::Array(list) => list.iter().for_each(|value| queries(value, found)),
        _ => {}
    }
}

/// The names of metrics in a text.
fn metrics_in(text: &str) -> BTreeSet<String> {
    let words = text.split(|char: char| !char.is_ascii_alphanumeric() && char != '_');
    words.filter(|word| word.starts_with("qmail_gate_")).map(str::to_string).collect()
}

#[test]
fn the_dashboard_has_all_metrics() {
    let home = Home::new();
    let _host = busy_gate(&home);
    let text = home.gate(&["show", ".", "--format", "prometheus"]).ok().out;
    let told: BTreeSet<String> = text
        .lines()
        .filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next().map(str::to_string))
        .collect();
    assert_eq!(metrics_in(&text), told, "each has a type");
    // A counter is read by its rate, and a gauge is not.
    let counters: BTreeSet<&str> = text
        .lines()
        .filter_map(|line| line.strip_prefix("# TYPE ")?.strip_suffix(" counter"))
        .collect();

    let dashboard = json(include_str!("../../monitoring/grafana.json"));
    let mut exprs = Vec::new();
    queries(&dashboard, &mut exprs);
    let panels = dashboard["panels"].as_array().unwrap();
    assert!(exprs.len() > panels.len() && panels.len() >= 10);
    let mut used = BTreeSet::new();
    for expr in &exprs {
        let metrics = metrics_in(expr);
        assert!(!metrics.is_empty(), "{expr}");
        for (open, close) in ["()", "{}", "[]"].map(|pair| pair.split_at(1)) {
            assert_eq!(expr.matches(open).count(), expr.matches(close).count(), "{expr}");
        }
        for metric in &metrics {
            let is_rate = expr.contains(&format!("rate({metric}{{"));
            assert_eq!(is_rate, counters.contains(metric.as_str()), "{expr}");
            // Only metrics of keys have the labels of keys.
            let of_key = metric.starts_with("qmail_gate_key_");
            assert!(of_key || !expr.contains("key=~"), "{expr}");
        }
        used.extend(metrics);
    }
    let unknown: Vec<_> = used.difference(&told).collect();
    assert!(unknown.is_empty(), "the gate does not tell {unknown:?}");
    let unused: Vec<_> = told.difference(&used).map(String::as_str).collect();
    assert_eq!(unused, IN_NO_PANEL, "neither in a panel nor left out on purpose");

    let mut ids = BTreeSet::new();
    let mut places = BTreeSet::new();
    for panel in panels {
        assert!(ids.insert(panel["id"].as_u64().unwrap()), "{panel}");
        let at = |name: &str| panel["gridPos"][name].as_u64().unwrap();
        assert!(at("x") + at("w") <= 24, "{panel}");
        for (x, y) in (at("x")..at("x") + at("w"))
            .flat_map(|x| (at("y")..at("y") + at("h")).map(move |y| (x, y)))
        {
            assert!(places.insert((x, y)), "two panels are in one place: {panel}");
        }
    }
}

/// When a process started, and its name, once it is in this state; `?` for any.
fn wait_for_state(pid: u32, state: char) -> (u64, String) {
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        let text = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        let (name, rest) = text.split_once('(').unwrap().1.rsplit_once(')').unwrap();
        let fields: Vec<&str> = rest.split_whitespace().collect();
        if state == '?' || fields[0].starts_with(state) {
            return (fields[19].parse().unwrap(), name.to_string());
        }
        assert!(Instant::now() < deadline, "{pid} is not {state}: {text}");
        thread::yield_now();
    }
}

/// The words of `up` and `alive`.
fn is_up(home: &Home) -> (String, Value) {
    let text = home.gate(&["show", ".", "--format", "prometheus"]).ok().out;
    let up = text.lines().find_map(|line| line.strip_prefix("qmail_gate_up ")).unwrap();
    let report = json(&home.gate(&["show", ".", "--format", "json"]).ok().out);
    (up.to_string(), report["alive"].clone())
}

#[test]
fn up_is_about_the_very_process_that_wrote_the_status() {
    if !Path::new("/proc/self/stat").exists() {
        skip("no /proc");
        return;
    }
    let home = Home::new();
    let namespace = fs::metadata("/proc/self/ns/pid").unwrap().ino();
    let told = |process: &str| {
        fs::write(home.path("queue/lock/gatestatus"), status_of(process, 1, "")).unwrap();
        is_up(&home)
    };
    let up = ("1".to_string(), Value::Bool(true));
    let down = ("0".to_string(), Value::Bool(false));
    let mut child = Command::new("sleep").arg("1000").spawn().unwrap();
    let pid = child.id();
    let (start, name) = loop {
        // Between fork and exec it has our name.
        let found = wait_for_state(pid, 'S');
        if found.1 == "sleep" {
            break found;
        }
    };
    let very = format!("{pid}\t{start}\t{name}\t{namespace}");
    assert_eq!(told(&very), up);
    assert_eq!(told(&format!("{pid}")), up, "an earlier gate says no more");
    assert_eq!(told(&format!("{pid}\t{start}\t{name}\t0")), up);
    assert_eq!(told(&format!("{pid}\t{}\t{name}\t{namespace}", start + 1)), down, "a later one");
    assert_eq!(
        told(&format!("{pid}\t{start}\tqmail-rspawn\t{namespace}")),
        down,
        "another program"
    );
    for no_process in ["0", "4194305", "4294967295"] {
        assert_eq!(told(no_process), down, "{no_process}");
    }
    assert_eq!(told(&format!("{pid}")).0, "1");
    let failed = status_of(&very, 1, "").replace("state\tlimits", "state\tfailed");
    fs::write(home.path("queue/lock/gatestatus"), failed).unwrap();
    assert_eq!(is_up(&home), ("0".to_string(), Value::Bool(true)), "it runs without limits");

    let first = wait_for_state(1, '?');
    assert_eq!(told(&format!("1\t{}\t{}\t{namespace}", first.0, first.1)), up, "whoever's it is");

    // SIGKILL, and no process waits for it: it stays a zombie.
    let killed = Command::new("kill").args(["-KILL", &pid.to_string()]).status().unwrap();
    assert!(killed.success());
    wait_for_state(pid, 'Z');
    assert_eq!(told(&very), down, "a zombie");
    assert_eq!(told(&format!("{pid}")), down, "a zombie");
    child.wait().unwrap();
    assert_eq!(told(&very), down);
    let out = home.gate(&["show", "."]).ok().out;
    let gone = "\nthis process is gone; these are its last figures\n\
                if qmail runs, its qmail-rspawn has made no delivery yet, or has no gate (qpatch revert)\n";
    assert!(out.contains(gone), "{out}");
}

#[test]
fn up_of_a_qmail_in_a_container() {
    if !is_root() {
        skip("namespaces take root");
        return;
    }
    if !has("unshare") {
        return;
    }
    // /proc is that of our namespace there, so it has our number of the shell, which becomes sleep.
    let script = "read stat < /proc/self/stat; echo \"$$ $stat\"; exec sleep 1000";
    let mut child = Command::new("unshare")
        .args(["--pid", "--fork", "--kill-child", "sh", "-c", script])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let words: Vec<&str> = line.split_whitespace().collect();
    if words.is_empty() {
        child.wait().unwrap();
        skip("no namespaces here");
        return;
    }
    let (inside, outside) = (words[0], words[1].parse().unwrap());
    assert_eq!(inside, "1");
    let start = loop {
        let (start, name) = wait_for_state(outside, 'S');
        if name == "sleep" {
            break start;
        }
    };
    let home = Home::new();
    let told = |process: &str| {
        fs::write(home.path("queue/lock/gatestatus"), status_of(process, 1, "")).unwrap();
        is_up(&home)
    };
    let up = ("1".to_string(), Value::Bool(true));
    let very = format!("1\t{start}\tsleep\t77");
    assert_eq!(told(&very), up, "the 1 of there is not the 1 of here");
    assert_ne!(told(&format!("1\t{start}\tqmail-rspawn\t77")), up);
    assert_ne!(told(&format!("2\t{start}\tsleep\t77")), up);
    assert_ne!(told(&format!("1\t{}\tsleep\t77", start + 1)), up);
    child.kill().unwrap();
    child.wait().unwrap();
    let deadline = Instant::now() + Duration::from_secs(30);
    while Path::new(&format!("/proc/{outside}/stat")).exists() {
        assert!(Instant::now() < deadline);
        thread::yield_now();
    }
    assert_ne!(told(&very), up);
}

/// The series of a page that are of keys, and those that are counters.
fn series(page: &str) -> (Vec<&str>, Vec<(&str, f64)>) {
    let lines = page.lines().filter_map(|line| line.rsplit_once(' '));
    let lines: Vec<_> = lines.filter(|(name, _)| !name.starts_with('#')).collect();
    let keys = lines.iter().map(|&(name, _)| name).filter(|name| name.contains("key="));
    let counters =
        lines.iter().filter(|(name, _)| name.split('{').next().unwrap().ends_with("_total"));
    let counters = counters.map(|&(name, value)| (name, value.parse().unwrap()));
    (keys.collect(), counters.collect())
}

#[test]
fn keys_of_strangers_have_few_series_and_no_counter_falls() {
    let home = Home::new();
    home.control("concurrencyremote", "400\n");
    home.control("concurrencydomains", ":20\nzz-own.example:3\n.suffix.example:4\n");
    let mut host = home.host(500);
    let mut deliver = |domain: &str, times: u32| {
        for slot in 0..times {
            ask(&mut host, slot, domain);
        }
        for slot in 0..times {
            host.done(slot, DeliveryEnd::Reported(b"r\0Kok\0"));
        }
        thread::sleep(Duration::from_millis(1));
        host.due();
    };
    for number in 0..600 {
        deliver(&format!("s{number}.example"), 1);
        deliver(&format!("s{number}.suffix.example"), 1);
    }
    deliver("zz-own.example", 1);
    deliver("zz-hot.example", 21);
    deliver("zz-busy.example", 15);
    let page = |host_wrote: &mut dyn FnMut()| {
        host_wrote();
        home.gate(&["show", ".", "--format", "prometheus"]).ok().out
    };
    let first = page(&mut || {
        thread::sleep(Duration::from_millis(1050));
        deliver("zz-busy.example", 1);
    });
    let (keys, counters) = series(&first);
    assert!(keys.len() < 11 * 30, "{}\n{first}", keys.len());
    for key in ["own", "hot", "busy"] {
        let name = format!("key=\"zz-{key}.example\"");
        assert!(keys.iter().any(|series| series.contains(&name)), "{name}\n{first}");
    }
    let others = keys.iter().filter(|series| series.contains("other")).count();
    assert_eq!(others, 4, "running, held, away, rate\n{first}");
    let others = first.lines().find_map(|line| line.strip_prefix("qmail_gate_keys_other "));
    let others: u32 = others.unwrap().parse().unwrap();
    assert!(others > 100, "{others}\n{first}");
    let total = |counters: &[(&str, f64)], what: &str| {
        let of = counters.iter().filter(|(name, _)| name.split('{').next() == Some(what));
        of.map(|(_, value)| value).sum::<f64>()
    };
    let left =
        total(&counters, "qmail_gate_done_total") - total(&counters, "qmail_gate_key_done_total");
    assert_eq!(left, 1200.0 - 19.0, "19 of the strangers are among the busiest");

    // One of the strangers comes to its limit, and one becomes the busiest of all.
    let second = page(&mut || {
        deliver("s599.example", 25);
        deliver("s598.example", 19);
        deliver("s597.suffix.example", 3);
        thread::sleep(Duration::from_millis(1050));
        deliver("zz-own.example", 1);
    });
    let (keys, later) = series(&second);
    for key in ["s599", "s598", "s597.suffix"] {
        let name = format!("key=\"{key}.example\"");
        assert!(keys.iter().any(|series| series.contains(&name)), "{name}\n{second}");
        assert!(!first.contains(&name), "{name}\n{first}");
    }
    for (name, value) in &counters {
        let now = later.iter().find(|(later, _)| later == name);
        assert!(now.is_none_or(|(_, now)| now >= value), "{name} fell from {value}");
    }

    let none = home.gate(&["show", ".", "--format", "prometheus", "--busiest", "0"]).ok().out;
    assert!(none.contains("zz-own.example") && none.contains("zz-hot.example"), "{none}");
    assert!(!none.contains("zz-busy.example") && !none.contains("s598.example"), "{none}");
    let run = home.gate(&["show", ".", "--busiest", "1001"]);
    assert_eq!(run.code, 2);
}
