//! The README's picture of `qpatch demo` is what the program prints.

mod common;

use common::{Fixture, qpatch};
use qpatch::fixture::Dialect;
use qpatch::verify::Part;

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
