//! The parser reads what its grammar says, and every error has a place.

use super::section::CONDITIONS;
use super::*;
use crate::engine::rule::{LinePiece, Scope, pieces};

fn patch(text: &str) -> Result<Patch, String> {
    parse("test", "test.rule", text, &Parameters::new(), &[]).map_err(|e| e.to_string())
}

#[test]
fn a_rule_has_scope_hunk_and_post_condition() {
    let patch = patch(
        "# a comment\nfile a.c | b.c\n@@ in f() | g() : title\n?$n = 1 | <number>\n x = $n;\n ...\n-y;\n+z($n);\n=z\n",
    )
    .unwrap();
    let rule = &patch.sections[0].rules()[0];
    assert_eq!(rule.title, "title");
    assert_eq!(rule.parts[0].scope, Scope::Function(vec!["f".into(), "g".into()]));
    let hunk = &rule.parts[0].variants[0];
    assert_eq!(hunk.lines.len(), 4);
    assert_eq!(hunk.pattern.elements.len(), 7);
    assert_eq!(hunk.pattern.lets["n"].len(), 2);
    assert_eq!(rule.done.len(), 1);
}

#[test]
fn errors_have_line_column_what_was_expected_and_what_was_found() {
    const SECTION: &str = "`file`, `file?`, `files`, `files?`, `create` or `refuse`";
    const CLAUSE: &str =
        "expected `|`, `as`, `when`, `with`, `unless`, `except` or the end of the line";
    const MORE: &str = "`all`, `any`, `together`, `repair`, `optional` or `:`";
    const RULE: &str = "@@ : t\n-x\n+y\n=y\n";
    for (text, want) in [
        ("", format!("1:1: expected {SECTION}, found the end of the file")),
        ("fill a.c\n", format!("1:1: expected {SECTION}, found \"fill\"")),
        (" file a.c\n", format!("1:1: expected {SECTION}, found a blank")),
        ("file\n", "1:5: expected a file name, found the end of the line".into()),
        ("file spawn.c wiht function f\n", format!("1:14: {CLAUSE}, found \"wiht\"")),
        ("files *.c *.h\n", format!("1:11: {CLAUSE}, found \"*.h\"")),
        ("file a.c |\n", "1:11: expected a file name, found the end of the line".into()),
        ("file a.c | with\n", "1:12: expected a file name, found \"with\"".into()),
        ("file *.c\n", "1:6: expected a file name without `*`, found \"*.c\"".into()),
        ("files **.c\n", "1:7: expected a file name, found \"**.c\"".into()),
        ("file a.c and function f\n", format!("1:10: {CLAUSE}, found \"and\"")),
        ("file a.c as pascal\n", "1:13: expected `c` or `text` after `as`, found \"pascal\"".into()),
        ("file a.c as c as c\n", "1:15: expected `as` only once".into()),
        (
            "file a.c when spwan\n",
            "1:15: expected `spawn`, `old-style`, `definitions-in-headers`, `flags-from-elsewhere` or `binds-outgoing` after `when`, found \"spwan\""
                .into(),
        ),
        ("file a.c with fonction f\n", format!("1:15: expected {CONDITIONS}, found \"fonction\"")),
        ("file a.c with function\n", "1:23: expected an identifier, found the end of the line".into()),
        ("file a.c with function f()\n", "1:24: expected an identifier, found \"f()\"".into()),
        ("file a.c with include select\n", "1:23: expected a header, found \"select\"".into()),
        ("file a.c with function f g\n", format!("1:26: {CLAUSE}, found \"g\"")),
        ("file a.c except\n", "1:16: expected a file name, found the end of the line".into()),
        ("file a.c | b.mk\n", "1:12: expected only C files or only text files, or `as`; found \"b.mk\"".into()),
        (
            "create a.h with function f\n",
            "1:12: expected `from`, `when`, `unless` or the end of the line, found \"with\"".into(),
        ),
        (
            "create a.h b.h\n",
            "1:12: expected `from`, `when`, `unless` or the end of the line, found \"b.h\"".into(),
        ),
        ("create a.h from b.h\n", "1:17: expected a file of this patch after `from`, found \"b.h\"".into()),
        ("create a.h\n", "2:1: expected `from`, or the `+` lines of the new file".into()),
        ("refuse *.c with function f\n", "1:27: expected ` : REASON`, found the end of the line".into()),
        (
            "file a.c\n@@ : t\n-x\n+${spawn}\n=y\n",
            "4:2: expected a section with `when` for a parameter; found `${spawn}`".into(),
        ),
        (
            "file a.c when spawn\n@@ : t\n-x\n+${typo}\n=y\n",
            "4:2: expected `${spawn}`, the parameter of this section; found `${typo}`".into(),
        ),
        ("file a.c when spawn\n@@ : t\n-x\n+a ${spawn\n", "4:4: expected `}` after `${`".into()),
        ("file a.c\n", "1:1: expected `@@` and a rule".into()),
        ("file a.c\n@@in f() : t\n", "2:3: expected a blank after `@@`".into()),
        ("file a.c\n@@ in f()\n", "2:10: expected `: TITLE`, found the end of the line".into()),
        ("file a.c\n@@ in f() :\n", "2:12: expected `: TITLE`, found the end of the line".into()),
        ("file a.c\n@@ in f : t\n", "2:7: expected `FUNCTION()` or `target NAME`, found \"f\"".into()),
        ("file a.c\n@@ in f() g() : t\n", format!("2:11: expected `|`, {MORE}, found \"g()\"")),
        ("file a.c\n@@ at end alll : t\n", format!("2:11: expected {MORE}, found \"alll\"")),
        (
            "file a.c\n@@ repiar : t\n",
            format!(
                "2:4: expected `in FUNCTION()`, `in target NAME`, `before includes`, `after includes`, \
                 `at end`, `first line`, {MORE}, found \"repiar\""
            ),
        ),
        ("file a.c\n@@ all any : t\n", "2:8: expected only one of `all` and `any`".into()),
        ("file a.c\n@@ repair repair : t\n", "2:11: expected `repair` only once".into()),
        ("file a.c\n@@ in target x : t\n", "2:4: expected a text file for this scope, found a section of C files".into()),
        ("file a.mk\n@@ in f() : t\n", "2:4: expected a C file for this scope, found a section of text files".into()),
        (
            "file a.c\n@@ : t\n-x\n+y\n@& in f() repair : u\n-x\n+y\n=y\n",
            "5:11: expected `repair` on the `@@` line: it is about the whole rule".into(),
        ),
        ("file a.c\n@@ : t\n-x\n+y\n@|\n-z\n+y\n=y\n", "5:3: expected ` TITLE` after `@|`".into()),
        (
            "file a.c\n@@ : t\n-x\n+y\n=y\n@| or\n-z\n+y\n",
            "6:1: expected `@|` before the post-condition of its rule".into(),
        ),
        ("file a.c\n=y\n", "2:1: expected `@@` first, found `=`".into()),
        ("file a.c\n@@ : t\n-x\n+y\n", "2:1: expected a post-condition (`=` or `!` lines) for this rule".into()),
        (
            "file a.c\n@@ : t\n-x\n+y\n@@ : u\n-x\n+y\n=y\n",
            "2:1: expected a post-condition (`=` or `!` lines) for this rule".into(),
        ),
        ("file a.c\n@@ : t\n x\n=y\n", "3:1: expected a `-` or `+` line in this hunk".into()),
        (
            "file a.c\n@@ in f() : t\n+x\n=x\n",
            "3:1: expected a line to match (' ' or '-'): `+` lines alone have no place here".into(),
        ),
        ("file a.c\n@@ at end : t\n x\n+y\n=y\n", "3:1: expected only `+` lines `at end`".into()),
        ("file a.c\n@@ : t\n-x\n+$y\n=y\n", "4:2: `$y` is not bound by this hunk".into()),
        (
            "file a.c\n@@ : t\n-x\n+f($Y);\n=y\n",
            "4:4: expected `$name` or `$$name` with a lower-case name, found \"$Y\"".into(),
        ),
        ("file a.c\n@@ : t\n ...\n-x\n=y\n", "3:1: a hunk may not start or end with a gap or a run".into()),
        (
            "file a.c\n@@ : t\n-x\n=y\n=...\n",
            "4:2: a post-condition may not start or end with a gap or a run".into(),
        ),
        (
            "file a.c\n@@ : t\n-$X\n=y\n",
            "3:2: expected `$name` or `$$name` with a lower-case name, found \"$X\"".into(),
        ),
        ("file a.c\n@@ : t\n-$x($$x);\n=y\n", "3:1: expected two names, found `$x` and `$$x`".into()),
        ("file a.c\n@@ : t\n?$n 1\n-$n\n=y\n", "3:2: expected `?$name = a | b`".into()),
        ("file a.c\n@@ : t\n?n = 1\n-$n\n=y\n", "3:2: expected a metavariable `$name`, found \"n\"".into()),
        ("file a.c\n@@ : t\n?$n = 1 2\n-$n\n=y\n", "3:7: expected one token, found \"1 2\"".into()),
        (
            "file a.c\n@@ : t\n?$n = 1 | <numbr>\n-$n\n=y\n",
            "3:11: expected `<number>`, `<string>`, `<identifier>` or a token, found \"<numbr>\"".into(),
        ),
        (
            "file conf\n@@ : t\n?$n = <number>\n-$n\n=y\n",
            "3:7: expected a word: a text file has no kinds, found \"<number>\"".into(),
        ),
        ("file a.c\n@@ : t\n?$n = 1\n?$n = 2\n-$n\n=y\n", "4:2: expected one line of alternatives for `$n`".into()),
        ("file a.c\n@@ : t\n?$nn = 1\n-$n\n=y\n", "3:1: `$nn` has alternatives, but is not in use here".into()),
        ("file a.c\n@@ : t\n-x\n=?$n = 1\n=y\n", "4:1: `$n` has alternatives, but is not in use here".into()),
        (
            "file a.c\n@@ : t\n-x\n=y $n\n=?$n = 1\n",
            "5:2: expected the alternatives before the first line of the pattern".into(),
        ),
        (
            "file a.c\n@@ : t\n-x\n\n+y\n=y\n",
            "5:1: expected `@@`, `@&`, `@|`, `=`, `!` or a new section, found \"+y\"".into(),
        ),
    ] {
        // A valid section line needs a rule after it, or the error would be the missing rule.
        let whole = if text.lines().count() == 1 && !want.contains("`@@` and") {
            format!("{text}{RULE}")
        } else {
            text.to_string()
        };
        assert_eq!(patch(&whole).map(|_| ()), Err(format!("test.rule:{want}")), "{whole}");
    }
}

/// Returns the smallest rule files that have each word of the grammar.
fn with_each_word() -> Vec<(&'static str, String)> {
    let rule = "@@ : t\n-x\n+y\n=y\n";
    let section = |word, line: &str| (word, format!("{line}\n{rule}"));
    let text = |word, head: &str| (word, format!("file a.mk\n@@ {head} : t\n-x\n+y\n=y\n"));
    let c = |word, head: &str| (word, format!("file a.c\n@@ {head} : t\n-x\n+y\n=y\n"));
    vec![
        section("file", "file a.c | b.c"),
        section("files", "files *.c"),
        section("file?", "file? a.c"),
        section("files?", "files? *.c"),
        ("create", "create a.h\n+x\n".into()),
        ("from", "create a.h from kept.h\n".into()),
        ("refuse", "refuse *.c with function f : it is not ours\n".into()),
        section("|", "file a.c | b.c"),
        section("as", "file a.x as c"),
        section("c", "file a.x as c"),
        section("text", "file a.c as text"),
        section("when", "file a.c when spawn"),
        section("with", "file a.c with function f and calls g or calls h"),
        section("and", "file a.c with function f and calls g or calls h"),
        section("or", "file a.c with function f and calls g or calls h"),
        section("unless", "file a.c unless b.c | c.c"),
        section("except", "files *.c except b.c | c.c"),
        section("function", "file a.c with function f"),
        section("calls", "file a.c with calls f"),
        section("identifier", "file a.c with identifier f"),
        section("include", "file a.c with include f.h"),
        section("no-include", "file a.c with no-include f.h"),
        c("@@", ""),
        ("@|", "file a.c\n@@ : t\n-x\n+y\n@| or\n-z\n+y\n=y\n".into()),
        ("@&", "file a.c\n@@ : t\n-x\n+y\n@& all : u\n-z\n+y\n=y\n".into()),
        (":", "file a.c\n@@ : t\n-x\n+y\n=y\n".into()),
        c("all", "all"),
        c("any", "any"),
        c("together", "together"),
        c("repair", "repair"),
        c("optional", "optional"),
        c("in", "in f() | g()"),
        text("in target", "in target a.o"),
        c("before includes", "before includes"),
        c("after includes", "after includes"),
        ("at end", "file a.c\n@@ at end : t\n+y\n=y\n".into()),
        c("first line", "first line"),
        (" ", "file a.c\n@@ : t\n x\n+y\n=y\n".into()),
        ("-", "file a.c\n@@ : t\n-x\n=y\n".into()),
        ("+", "file a.c\n@@ : t\n x\n+y\n=y\n".into()),
        ("?$name =", "file a.c\n@@ : t\n?$name = 1 | <number>\n-$name\n=y\n".into()),
        (" | ", "file a.c\n@@ : t\n?$name = 1 | <number>\n-$name\n=y\n".into()),
        ("=", "file a.c\n@@ : t\n-x\n=y\n".into()),
        ("!", "file a.c\n@@ : t\n-x\n!y\n".into()),
    ]
}

#[test]
fn the_grammar_of_the_readme_is_what_the_parser_takes() {
    let readme = include_str!("../../../../patches/README.md");
    let grammar = readme.split("## Grammar").nth(1).unwrap().split("```").nth(1).unwrap();
    let mut documented: Vec<&str> = Vec::new();
    for line in grammar.lines() {
        documented.extend(line.split('"').skip(1).step_by(2));
    }
    documented.sort_unstable();
    documented.dedup();
    let mut taken: Vec<_> = with_each_word().into_iter().map(|(word, _)| word).collect();
    taken.sort_unstable();
    assert_eq!(
        documented, taken,
        "the words of the grammar in patches/README.md, and those of this test"
    );

    let kept: &Attachments<'_> = &[("kept.h", b"x")];
    let parameters = Parameters::from([("spawn".into(), "1000".into())]);
    let read = |text: &str| parse("test", "test.rule", text, &parameters, kept);
    for (word, text) in with_each_word() {
        read(&text).unwrap_or_else(|error| panic!("{word}: {error}\n{text}"));
        if word.bytes().all(|b| b.is_ascii_punctuation() || b == b' ') {
            continue;
        }
        // A misspelt word must be an error, for each word that stands in the file.
        let marked = if word == "in" { "in f" } else { word };
        let misspelt = text.replacen(marked, &marked.replacen(&word[..1], "zz", 1), 1);
        assert_ne!(misspelt, text, "{word}");
        assert!(read(&misspelt).is_err(), "{word}: taken, but misspelt:\n{misspelt}");
    }
}

#[test]
fn the_examples_of_the_readme_are_rules() {
    let readme = include_str!("../../../../patches/README.md");
    let blocks = readme.split("```").skip(1).step_by(2);
    let mut read = 0;
    for block in blocks.filter_map(|block| block.strip_prefix('\n')) {
        if SECTIONS.iter().any(|verb| block.starts_with(&format!("{verb} "))) {
            patch(block).unwrap_or_else(|error| panic!("{error}\n{block}"));
            read += 1;
        }
    }
    assert!(read >= 1, "no example of a rule in patches/README.md");
}

#[test]
fn pieces_of_an_added_line() {
    assert_eq!(
        pieces("if ($$cond) $x; $Y $"),
        [
            LinePiece::Text("if ("),
            LinePiece::Variable("cond"),
            LinePiece::Text(") "),
            LinePiece::Variable("x"),
            LinePiece::Text("; $Y $"),
        ]
    );
}

#[test]
fn a_section_waits_for_its_parameter() {
    let text =
        "file conf when spawn\n@@ : t\n-x\n+${spawn}\n=${spawn}\nfile a.c\n@@ : t\n-x\n+y\n=y\n";
    assert_eq!(patch(text).unwrap().sections.len(), 1);
    let parameters = Parameters::from([("spawn".into(), "1000".into())]);
    let patch = parse("test", "test.rule", text, &parameters, &[]).unwrap();
    assert_eq!(patch.sections.len(), 2);
    assert_eq!(patch.sections[0].rules()[0].parts[0].variants[0].lines[1].text, "1000");
}
