//! The README's pictures are what the program makes: the text of `qpatch demo`, and docs/simulate.svg.

mod common;

use std::fs;
use std::path::Path;

use common::{Fixture, qpatch};
use qpatch::fixture::Dialect;
use qpatch::verify::Part;
use qpatch_test_support::golden;

/// `text` with every number as `#`: times and seeds differ from run to run.
fn without_numbers(text: &str) -> String {
    let mut out = String::new();
    for c in text.chars() {
        if !c.is_ascii_digit() {
            out.push(c);
        } else if !out.ends_with('#') {
            out.push('#');
        }
    }
    out.replace("#.#", "#")
}

/// Whether `line` is `pattern`, in which `...` stands for anything.
fn is_like(line: &str, pattern: &str) -> bool {
    let mut rest = line;
    for (i, piece) in pattern.split("...").map(str::trim).enumerate() {
        match rest.find(piece) {
            Some(0) => rest = &rest[piece.len()..],
            Some(at) if i > 0 => rest = &rest[at + piece.len()..],
            _ => return false,
        }
    }
    true
}

#[test]
fn the_demo_is_as_pictured() {
    let readme = include_str!("../README.md");
    let start = readme.find("apply --spawn 1000 to a built-in tree").expect("the picture");
    let picture = &readme[start..start + readme[start..].find("```").expect("its end")];
    let done = qpatch(&["demo"]).ok();
    // This is also the whole proof of stock-kr: nothing fails, nothing is left out, with 1000 deliveries at once.
    let (_, steps) = done.out.split_once("\nverify\n").expect("steps");
    let (steps, chart) =
        steps.split_once("\n\nthe gate at work, in the step gate: ").expect("a chart");
    // A domain is at its limit while mail to others goes through.
    let capped = "100 messages to capped.example, which has a limit of 5: at most 5 at once, all done after ";
    assert!(
        chart.contains(capped) && chart.contains("\n     5 |") && chart.contains("#####"),
        "{chart}"
    );
    assert!(
        chart.contains("\n200 messages to other domains, which have none: at most "),
        "{chart}"
    );
    // Each delivery takes 50 ms, so 95 of them take 0.95 s at least after the first five.
    let (_, rest) = chart.split_once(capped).expect("the limit");
    let secs: f64 = rest.split_once(" s\n").expect("a time").0.parse().expect("a number");
    assert!(secs >= 0.9, "{chart}");
    let (steps, summary) = steps.trim_end().rsplit_once('\n').expect("a summary");
    let is_step = |line: &&str| !line.starts_with(' ');
    assert!(steps.lines().filter(is_step).all(|line| line.starts_with("ok ")), "{}", done.out);
    assert_eq!(steps.lines().filter(is_step).count(), Part::ALL.len(), "{}", done.out);
    assert!(steps.contains(" 1000 deliveries at once; "), "{}", done.out);
    assert!(summary.starts_with("15 steps hold at conf-spawn 1000; "), "{}", done.out);
    let told = |line: &&str| !line.trim().is_empty();
    // What apply did is told to the number; what verify did depends on the machine.
    let (applied, verified) = picture.split_once("verify\n").expect("both parts");
    for pictured in applied.lines().filter(told) {
        assert!(done.out.lines().any(|line| line == pictured), "{pictured:?}:\n{}", done.out);
    }
    let printed: Vec<String> = done.out.lines().map(without_numbers).collect();
    for pictured in verified.lines().filter(told).map(without_numbers) {
        assert!(
            printed.iter().any(|line| is_like(line, &pictured)),
            "the demo does not print {pictured:?}:\n{}",
            done.out
        );
    }
}

/// The error of a rule that does not fit, which both documents show.
#[test]
fn the_error_is_as_quoted() {
    let fixture = Fixture::new(Dialect::StockKr);
    fixture.replace("spawn.c", "delnum = (unsigned int) (unsigned char) ch;", "delnum = (int) ch;");
    let run = fixture.qpatch(&["apply"]);
    assert_eq!(run.code, 1);
    let in_one_line = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
    let printed = in_one_line(&run.err);
    for document in [include_str!("../docs/going-live.md"), include_str!("../patches/README.md")] {
        let start = document.find("qpatch: spawn.c: big-concurrency:").expect("the error");
        let quoted = &document[start..start + document[start..].find("```").expect("its end")];
        assert!(printed.contains(&in_one_line(quoted)), "{quoted}\n{printed}");
    }
}

/// A fresh checkout needs these two commands and no others.
#[test]
fn the_readme_has_a_command_for_the_demo_and_one_for_the_tests() {
    let readme = include_str!("../README.md");
    for command in ["cargo run --release -- demo", "cargo test --workspace"] {
        assert!(readme.contains(&format!("```\n{command}\n```")), "{command}");
    }
    assert!(include_str!("../ci/check").contains(" cargo test --workspace "), "ci/check runs it");
}

#[test]
fn a_picture_that_is_not_true_is_seen() {
    assert!(is_like("ok mail # messages, none lost (# s)", "ok mail ... none lost"));
    assert!(!is_like("FAIL mail # messages", "ok mail ..."));
    assert_eq!(without_numbers("12.5 s, 1000 at"), "# s, # at");
}

/// A newsletter to one provider: 1500 messages within two minutes, each of which takes 2 to 6 seconds.
fn newsletter() -> String {
    let mut lines = Vec::new();
    let mut random = 1u64;
    for number in 1..=1500u64 {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        let start_ms = 20_000 + number * 80;
        let end_ms = start_ms + 2000 + (random >> 40) % 4000;
        let at = |ms: u64| format!("{}.{:03}", 1_700_000_000 + ms / 1000, ms % 1000);
        let start =
            format!("starting delivery {number}: msg {number} to remote u@provider.example");
        lines.push((start_ms, format!("{} {start}\n", at(start_ms))));
        let end = format!("delivery {number}: success: 192.0.2.1_accepted_message./");
        lines.push((end_ms, format!("{} {end}\n", at(end_ms))));
    }
    lines.sort();
    lines.into_iter().map(|(_, line)| line).collect()
}

#[test]
fn the_picture_of_a_simulation_is_what_simulate_draws() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_string();
    fs::write(path("log"), newsletter()).unwrap();
    fs::write(path("limits"), "provider.example:20\n").unwrap();
    let (limits, log, html) = (path("limits"), path("log"), path("page.html"));
    let args = [
        "gate",
        "simulate",
        &limits,
        "--log",
        &log,
        "--concurrencyremote",
        "1000",
        "--html",
        &html,
    ];
    let out = qpatch(&args).ok().out;
    let page = fs::read_to_string(&html).unwrap();
    let between = |start: &str, end: &str| {
        let at = page.find(start).expect(start);
        &page[at..at + page[at..].find(end).expect(end)]
    };
    let chart = between("<svg id=\"key-1\" class=\"chart\"", "</svg>");
    let style =
        between("/* picture */", "/* page */").lines().skip(1).collect::<Vec<_>>().join("\n");
    let svg = "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"720\"";
    let chart = chart.replacen("<svg", svg, 1);
    let (head, rest) = chart.split_once('\n').unwrap();
    let picture = format!(
        "{head}\n<style>\n{style}\nsvg {{ background: var(--back); }}\n</style>\n{rest}</svg>\n"
    );
    golden(&Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/simulate.svg"), picture.as_bytes())
        .unwrap_or_else(|difference| panic!("{difference}"));
    // What the README says beside it.
    let said = out.lines().find(|line| line.starts_with("result: ")).unwrap();
    assert!(said.contains(" and 176.4 s at most;"), "{said}");
    let readme = include_str!("../README.md");
    assert!(readme.contains("1500 messages") && readme.contains("at most three minutes"));
}
