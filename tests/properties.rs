//! Properties of the engine on any input.

use proptest::prelude::*;
use qpatch::engine::edit::{self, Examined};
use qpatch::engine::function::functions;
use qpatch::engine::lex::{Lang, Source, TokenKind};
use qpatch::engine::rule::{self, Parameters, Patch};
use qpatch::fixture::Dialect;

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
            let _ = functions(&source);
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
                for rule in section.rules() {
                    let source = Source::new(Lang::C, &bytes);
                    if let Examined::Fits { edits } = edit::examine(rule, Lang::C, &source) {
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
                let _ = edit::examine(&patch.sections[0].rules()[0], lang, &Source::new(lang, &bytes));
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
            TokenKind::Directive => {
                out.push(b'\n');
                directive = true;
            }
            TokenKind::LineEnd => {
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

fn tokens(bytes: &[u8]) -> Vec<(TokenKind, Vec<u8>)> {
    let source = Source::new(Lang::C, bytes);
    (0..source.tokens.len()).map(|i| (source.tokens[i].kind, source.text(i).into_owned())).collect()
}

/// The file after all rules that apply to it, in order, and how many did.
fn patched(bytes: &[u8]) -> (Vec<u8>, usize) {
    let mut bytes = bytes.to_vec();
    let mut made = 0;
    for patch in shipped() {
        for rule in patch.sections.iter().flat_map(rule::Section::rules) {
            if let Examined::Fits { edits } =
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
    // This takes half a minute of processor, so the trees are tried beside each other.
    std::thread::scope(|scope| {
        for dialect in Dialect::ALL {
            scope.spawn(move || white_space_changes_nothing_in(dialect));
        }
    });
}

fn white_space_changes_nothing_in(dialect: Dialect) {
    let dir = tempfile::tempdir().unwrap();
    dialect.write(dir.path()).unwrap();
    for name in ["spawn.c", "qmail-send.c", "chkspawn.c", "timeoutconn.c"] {
        let bytes = std::fs::read(dir.path().join(name)).unwrap();
        let (want, made) = patched(&bytes);
        assert!(made > 0, "{name}: no rule applies");
        for seed in 1..8 {
            let other = laid_out_anew(&bytes, seed);
            assert_eq!(tokens(&other), tokens(&bytes), "{name} {seed}: the re-layout is wrong");
            let (got, _) = patched(&other);
            let (got, want) = (tokens(&got), tokens(&want));
            let differs = got.iter().zip(&want).position(|(a, b)| a != b);
            let around = |tokens: &[(TokenKind, Vec<u8>)]| {
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

/// Rule files to change a word of.
const RULE_FILES: [&str; 5] = [
    include_str!("../patches/toolchain/rule"),
    include_str!("../patches/big-concurrency/rule"),
    include_str!("../patches/fd-setsize/rule"),
    include_str!("../patches/domain-gate/rule"),
    "files *.c | *.h as c when spawn with function f and calls g or include h.h unless a | b except c.c\n\
     @@ in f() | g() all together : one\n?$n = 1 | <number>\n x = $n;\n ...\n-y($$z);\n+y(${spawn});\n\
     @| or : another\n-w;\n+y;\n@& in g() any : a further place\n-v;\n+u;\n=?$n = 2 | <string>\n=y($n);\n\n!v;\n\
     refuse *.c with identifier q and no-include r.h : of another kind\n",
];

/// A file, line by line, each in words.
type Lines = Vec<Vec<String>>;

/// What of a rule file the parser has to keep, line by line. Where it takes words in any order they are sorted.
fn lines_of(text: &str) -> Lines {
    let sorted = |line: &str| {
        let mut words: Vec<_> = line.split_whitespace().map(str::to_string).collect();
        words.sort();
        words
    };
    let mut lang = Lang::C;
    let mut out = Lines::new();
    let mut previous = ' ';
    for line in text.lines() {
        let first = line.chars().next().unwrap_or(' ');
        match first {
            '#' => {}
            _ if line.trim().is_empty() => {}
            '@' => {
                out.push(sorted(&line.replacen(':', " : ", usize::from(!line.starts_with("@|")))));
            }
            ' ' | '+' | '-' => out.push(vec![line.to_string()]),
            '?' => out.push(sorted(&line.replacen('=', " = ", 1))),
            '=' | '!' if line[1..].starts_with('?') => {
                out.push(sorted(&line.replacen("?$", "? $", 1).replacen(
                    '=',
                    " = ",
                    1 + usize::from(first == '='),
                )));
            }
            '=' | '!' => {
                if previous != first {
                    out.push(vec![first.to_string()]);
                } else if lang == Lang::Text {
                    out.last_mut().unwrap().push("\n".to_string());
                }
                let source = Source::new(lang, &line.as_bytes()[1..]);
                let words = (0..source.tokens.len())
                    .map(|i| String::from_utf8(source.text(i).into_owned()).unwrap());
                let end = |word: String| {
                    if lang == Lang::Text && word == "$" { "\n".to_string() } else { word }
                };
                out.last_mut().unwrap().extend(words.map(end));
            }
            _ => {
                let words: Vec<_> = line.split_whitespace().collect();
                let given = words.iter().position(|w| *w == "as").and_then(|n| words.get(n + 1));
                lang = match given {
                    Some(&"c") => Lang::C,
                    Some(&"text") => Lang::Text,
                    _ => Lang::of(words.get(1).unwrap_or(&"")),
                };
                out.push(sorted(line));
            }
        }
        previous =
            if line.get(1..).is_some_and(|rest| rest.starts_with('?')) { '?' } else { first };
    }
    out
}

/// A rule file that says what `patch` has.
fn written(patch: &Patch) -> String {
    use rule::{
        Absent, Action, Alternative, Condition, Count, Element, LineMark, Need, Purpose, Reach,
        Scope,
    };
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    let lets = |pattern: &rule::Pattern, mark: &str| {
        let alternative = |a: &Alternative| match a {
            Alternative::Token(_, bytes) => text(bytes),
            Alternative::Kind(TokenKind::Number) => "<number>".to_string(),
            Alternative::Kind(TokenKind::Str) => "<string>".to_string(),
            Alternative::Kind(_) => "<identifier>".to_string(),
        };
        let line = |(name, of): (&String, &Vec<Alternative>)| {
            format!(
                "{mark}?${name} = {}\n",
                of.iter().map(alternative).collect::<Vec<_>>().join(" | ")
            )
        };
        pattern.lets.iter().map(line).collect::<String>()
    };
    let hunk = |hunk: &rule::Hunk| {
        let mark = |mark| match mark {
            LineMark::Context => ' ',
            LineMark::Remove => '-',
            LineMark::Add => '+',
        };
        let lines = hunk.lines.iter().map(|l| format!("{}{}\n", mark(l.mark), l.text));
        lets(&hunk.pattern, "") + &lines.collect::<String>()
    };
    let post = |pattern: &rule::Pattern, mark: &str| {
        let element = |e: &Element| match e {
            Element::Token(TokenKind::LineEnd, _) => format!("\n{mark}"),
            Element::Token(TokenKind::Directive, _) => format!("\n{mark}#"),
            Element::Token(_, bytes) => format!(" {}", text(bytes)),
            Element::Variable(name) => format!(" ${name}"),
            Element::Run(name) => format!(" $${name}"),
            Element::Gap => " ...".to_string(),
        };
        let elements = pattern.elements.iter().map(element).collect::<String>();
        format!("{}{mark}{elements}\n\n", lets(pattern, mark))
    };
    let place = |part: &rule::RulePart| {
        let scope = match &part.scope {
            Scope::File => String::new(),
            Scope::Function(names) => format!("in {}()", names.join("() | ")),
            Scope::Target(name) => format!("in target {name}"),
            Scope::BeforeIncludes => "before includes".to_string(),
            Scope::AfterIncludes => "after includes".to_string(),
            Scope::End => "at end".to_string(),
            Scope::FirstLine => "first line".to_string(),
        };
        match part.count {
            Count::Once => scope,
            Count::All => scope + " all",
            Count::Any => scope + " any",
        }
    };
    let condition = |c: &Condition| match c {
        Condition::Function(name) => format!("function {name}"),
        Condition::Calls(name) => format!("calls {name}"),
        Condition::Identifier(name) => format!("identifier {name}"),
        Condition::Include(name) => format!("include {name}"),
        Condition::NoInclude(name) => format!("no-include {name}"),
    };
    let mut out = String::new();
    for section in &patch.sections {
        let optional = if section.select.absent == Absent::Skip { "?" } else { "" };
        out += &match (&section.work, section.select.reach) {
            (Action::Create(_), _) => "create".to_string(),
            (Action::Refuse(_), _) => "refuse".to_string(),
            (_, Reach::First) => format!("file{optional}"),
            (_, Reach::All) => format!("files{optional}"),
        };
        out += &format!(" {}", section.select.names.join(" | "));
        out += match section.written_lang {
            None => "",
            Some(Lang::C) => " as c",
            Some(Lang::Text) => " as text",
        };
        out += &section.when.iter().map(|name| format!(" when {name}")).collect::<String>();
        let with = section.select.with.iter();
        let with: Vec<_> =
            with.map(|any| any.iter().map(condition).collect::<Vec<_>>().join(" or ")).collect();
        if !with.is_empty() {
            out += &format!(" with {}", with.join(" and "));
        }
        for (word, names) in [("unless", &section.unless), ("except", &section.select.except)] {
            if !names.is_empty() {
                out += &format!(" {word} {}", names.join(" | "));
            }
        }
        match &section.work {
            Action::Rules(_) => out += "\n",
            Action::Refuse(reason) => out += &format!(" : {reason}\n"),
            Action::Create(content) => match content.strip_prefix(b"the file ") {
                Some(name) => out += &format!(" from {}\n", text(name)),
                None => {
                    out += "\n";
                    out += &text(content).lines().map(|l| format!("+{l}\n")).collect::<String>();
                }
            },
        }
        for rule in section.rules() {
            for (n, part) in rule.parts.iter().enumerate() {
                match n {
                    0 => {
                        out += &format!("@@ {}", place(part));
                        out += if rule.together { " together" } else { "" };
                        out += if rule.purpose == Purpose::Repair { " repair" } else { "" };
                        out += if rule.need == Need::Optional { " optional" } else { "" };
                        out += &format!(" : {}\n", rule.title);
                    }
                    _ => out += &format!("@& {} : a further place\n", place(part)),
                }
                for (n, variant) in part.variants.iter().enumerate() {
                    if n > 0 {
                        out += &format!("@| {}\n", variant.title);
                    }
                    out += &hunk(variant);
                }
            }
            out += &rule.done.iter().map(|p| post(p, "=")).collect::<String>();
            out += &rule.never.iter().map(|p| post(p, "!")).collect::<String>();
        }
    }
    out
}

/// The rule file `text` as the parser understands it, written out again; its own lines with the parameter put in.
fn read_and_written(text: &str) -> Result<(Lines, Lines), String> {
    const SPAWN: &str = "424242";
    let parameters = rule::PARAMETERS.map(|name| (name.to_string(), SPAWN.to_string()));
    let names: Vec<_> = text.split_whitespace().collect();
    let contents: Vec<_> =
        names.iter().map(|name| format!("the file {name}").into_bytes()).collect();
    let kept: Vec<(&str, &[u8])> =
        names.iter().copied().zip(contents.iter().map(Vec::as_slice)).collect();
    let patch =
        rule::parse("x", "x.rule", text, &parameters.into(), &kept).map_err(|e| e.to_string())?;
    // The title of a further place is not kept: it is a remark.
    let further = |line: &str| match (line.starts_with("@&"), line.find(':')) {
        (true, Some(at)) => format!("{} : a further place\n", &line[..at]),
        _ => format!("{line}\n"),
    };
    let text: String = text.lines().map(further).collect();
    Ok((lines_of(&text.replace("${spawn}", SPAWN)), lines_of(&written(&patch))))
}

#[test]
fn the_parser_keeps_every_word_of_the_rule_files() {
    for text in RULE_FILES {
        let (own, again) = read_and_written(text).unwrap();
        for (own, again) in own.iter().zip(&again) {
            assert_eq!(own, again);
        }
        assert_eq!(own.len(), again.len());
    }
}

/// What is done to a word.
#[derive(Clone, Copy, Debug)]
enum Mistake {
    Dropped,
    Doubled,
    Misspelt,
}

proptest! {
    /// A rule file with one word dropped, doubled or misspelt is an error, or means just what it says: the parser never
    /// drops a word and never reads one as something else.
    #[test]
    fn a_wrong_word_is_an_error_or_means_what_it_says(
        file in 0..RULE_FILES.len(),
        word in any::<proptest::sample::Index>(),
        mistake in prop_oneof![Just(Mistake::Dropped), Just(Mistake::Doubled), Just(Mistake::Misspelt)],
        letter in any::<proptest::sample::Index>(),
    ) {
        let text = RULE_FILES[file];
        let words: Vec<_> = text.split_whitespace().collect();
        let word = words[word.index(words.len())];
        let at = word.as_ptr() as usize - text.as_ptr() as usize;
        let new = match mistake {
            Mistake::Dropped => String::new(),
            Mistake::Doubled => format!("{word} {word}"),
            Mistake::Misspelt => {
                let n = letter.index(word.len());
                if !word.is_char_boundary(n) || !word.is_char_boundary(n + 1) {
                    return Ok(());
                }
                format!("{}{}{}", &word[..n], if &word[n..=n] == "z" { "q" } else { "z" }, &word[n + 1..])
            }
        };
        let mistaken = format!("{}{new}{}", &text[..at], &text[at + word.len()..]);
        if let Ok((own, again)) = read_and_written(&mistaken) {
            prop_assert_eq!(own, again, "{:?} {}", mistake, word);
        }
    }
}
