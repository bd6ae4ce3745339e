//! Properties of the engine on any input.

use proptest::prelude::*;
use qpatch::edit::{self, State};
use qpatch::fixture::Dialect;
use qpatch::lex::{Kind, Lang, Source};
use qpatch::matcher;
use qpatch::rule::{self, Parameters, Patch};

fn shipped() -> Vec<Patch> {
    let parameters = Parameters::from([("spawn".into(), "1000".into())]);
    qpatch::patches::ALL.iter().map(|p| p.patch(&parameters).unwrap()).collect()
}

/// Bytes that look enough like C to get deep into the lexer and the matcher.
fn almost_c() -> impl Strategy<Value = Vec<u8>> {
    let piece = prop_oneof![
        Just("#include \"select.h\"\n".to_string()),
        Just("#ifdef X\n".to_string()),
        Just("#else\n".to_string()),
        Just("#endif\n".to_string()),
        Just("void err(s) char *s; {".to_string()),
        Just("int main() {".to_string()),
        Just("ch = delnum; put(&o,&ch,1);".to_string()),
        Just("\\\n".to_string()),
        Just("/*".to_string()),
        Just("*/".to_string()),
        Just("\"".to_string()),
        Just("'".to_string()),
        "[ \t\r\n(){};,=<>+-]{0,6}",
        "[a-z]{1,3}",
    ];
    prop_oneof![
        proptest::collection::vec(any::<u8>(), 0..200),
        proptest::collection::vec(piece, 0..40).prop_map(|v| v.concat().into_bytes()),
    ]
}

proptest! {
    #[test]
    fn any_bytes_can_be_lexed_and_nothing_is_lost(bytes in almost_c()) {
        for lang in [Lang::C, Lang::Text] {
            let source = Source::new(lang, &bytes);
            let mut at = 0;
            for token in &source.tokens {
                prop_assert!(token.span.start >= at && token.span.end <= bytes.len());
                at = token.span.end;
            }
            let _ = matcher::functions(&source);
        }
    }

    #[test]
    fn any_text_can_be_read_as_a_rule(text in "(file a.c\n|@@ in f\\(\\) : t\n|[ +=!-][a-z ;$.]{0,8}\n|@[&|]\n|\\PC{0,12}\n){0,12}") {
        let _ = rule::parse("x", "x.rule", &text, &Parameters::new(), &[]);
    }

    #[test]
    fn shipped_rules_take_any_bytes(bytes in almost_c()) {
        for patch in shipped() {
            for section in &patch.sections {
                for rule in &section.rules {
                    let source = Source::new(Lang::C, &bytes);
                    if let State::Fits { edits } = edit::examine(rule, Lang::C, &source) {
                        let after = edit::apply(&bytes, &edits);
                        let after = Source::new(Lang::C, &after);
                        prop_assert!(edit::holds(rule, Lang::C, &after));
                    }
                }
            }
        }
    }

    #[test]
    fn any_rule_takes_any_bytes(
        hunk in proptest::collection::vec("[ +-](x|y|\\$a|\\$\\$b|\\(|\\)|;|\\.\\.\\.|#include \"a.h\"| ){0,5}", 1..5),
        bytes in almost_c(),
    ) {
        let text = format!("file a.c\n@@ all : t\n{}\n=x\n", hunk.join("\n"));
        if let Ok(patch) = rule::parse("x", "x.rule", &text, &Parameters::new(), &[]) {
            for lang in [Lang::C, Lang::Text] {
                let _ = edit::examine(&patch.sections[0].rules[0], lang, &Source::new(lang, &bytes));
            }
        }
    }
}

/// `bytes` with the white space between its tokens drawn anew, line splices and comments among it.
/// Preprocessor lines stay lines.
fn laid_out_anew(bytes: &[u8], seed: u64) -> Vec<u8> {
    let source = Source::new(Lang::C, bytes);
    let mut random = seed | 1;
    let mut next = |n: u64| {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random % n
    };
    let mut out = Vec::new();
    let mut directive = false;
    for (i, token) in source.tokens.iter().enumerate() {
        match token.kind {
            Kind::Directive => {
                out.push(b'\n');
                directive = true;
            }
            Kind::LineEnd => {
                out.push(b'\n');
                directive = false;
                continue;
            }
            _ => {
                let blank: &[u8] = match (next(8), directive) {
                    (0 | 1, _) => b" ",
                    (2, _) => b" /* x = \"1\"; */ ",
                    (3, _) => b"\\\n ",
                    (4, false) => b"\n",
                    (5, false) => b"\n\t\t",
                    (6, false) => b" // it's\n",
                    _ => b"  ",
                };
                // `#define X(a)` and `#define X (a)` are not the same, nor `a + +b` and `a ++b`.
                let touching =
                    i > 0 && source.tokens[i - 1].span.end == token.span.start && directive;
                if !touching {
                    out.extend_from_slice(blank);
                }
            }
        }
        out.extend_from_slice(&bytes[token.span.clone()]);
    }
    out.push(b'\n');
    out
}

fn tokens(bytes: &[u8]) -> Vec<(Kind, Vec<u8>)> {
    let source = Source::new(Lang::C, bytes);
    (0..source.tokens.len()).map(|i| (source.tokens[i].kind, source.text(i).into_owned())).collect()
}

/// The file after all rules that apply to it, in order, and how many did.
fn patched(bytes: &[u8]) -> (Vec<u8>, usize) {
    let mut bytes = bytes.to_vec();
    let mut made = 0;
    for patch in shipped() {
        for rule in patch.sections.iter().flat_map(|s| &s.rules) {
            if let State::Fits { edits } =
                edit::examine(rule, Lang::C, &Source::new(Lang::C, &bytes))
            {
                bytes = edit::apply(&bytes, &edits);
                made += 1;
            }
        }
    }
    (bytes, made)
}

#[test]
fn white_space_does_not_change_what_applies() {
    for dialect in Dialect::ALL {
        let dir = tempfile::tempdir().unwrap();
        dialect.write(dir.path()).unwrap();
        for name in ["spawn.c", "qmail-send.c", "chkspawn.c", "timeoutconn.c"] {
            let bytes = std::fs::read(dir.path().join(name)).unwrap();
            let (want, made) = patched(&bytes);
            assert!(made > 0, "{name}: no rule applies");
            for seed in 1..12 {
                let other = laid_out_anew(&bytes, seed);
                assert_eq!(tokens(&other), tokens(&bytes), "{name} {seed}: the re-layout is wrong");
                let (got, _) = patched(&other);
                let (got, want) = (tokens(&got), tokens(&want));
                let differs = got.iter().zip(&want).position(|(a, b)| a != b);
                let around = |tokens: &[(Kind, Vec<u8>)]| {
                    let at = differs.unwrap_or(0).saturating_sub(12);
                    let words = tokens.iter().skip(at).take(24);
                    words.map(|(_, t)| String::from_utf8_lossy(t).into_owned()).collect::<Vec<_>>()
                };
                assert!(
                    got == want,
                    "{} {name}, seed {seed}: {:?} instead of {:?}",
                    dialect.name(),
                    around(&got),
                    around(&want)
                );
            }
        }
    }
}
