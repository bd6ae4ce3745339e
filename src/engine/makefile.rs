//! Reads makefiles as make does: which targets have a rule, their prerequisites, and where the rule
//! stands.

#![forbid(unsafe_code)]

use std::ops::Range;

use super::lex::{Lang, Source, TokenKind};

/// A rule of a makefile.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MakeRule {
    /// Its targets.
    pub targets: Vec<String>,
    /// Its prerequisites.
    pub prerequisites: Vec<String>,
    /// Its tokens, recipe included. Blank and comment lines between recipe lines do not end the
    /// rule and do not belong to it: the tokens after them are a further range.
    pub tokens: Vec<Range<usize>>,
}

/// Returns the rules of a makefile, in order. `source` is [`Lang::Text`].
#[must_use]
pub fn rules(source: &Source<'_>) -> Vec<MakeRule> {
    let mut found = Vec::new();
    let tokens = &source.tokens;
    let behind_line = |at: usize| {
        let end = (at..tokens.len()).find(|&i| tokens[i].kind == TokenKind::LineEnd);
        end.map_or(tokens.len(), |i| i + 1)
    };
    let mut at = 0;
    while at < tokens.len() {
        let head = if recipe_line(source, at) { None } else { head(source, at..behind_line(at)) };
        let Some((targets, prerequisites)) = head else {
            at = behind_line(at);
            continue;
        };
        let mut ranges = Vec::new();
        let (mut start, mut end) = (at, behind_line(at));
        loop {
            while end < tokens.len() && recipe_line(source, end) {
                end = behind_line(end);
            }
            ranges.push(start..end);
            let mut next = end;
            while next < tokens.len()
                && !recipe_line(source, next)
                && (tokens[next].kind == TokenKind::LineEnd || source.text(next).starts_with(b"#"))
            {
                next = behind_line(next);
            }
            if next >= tokens.len() || !recipe_line(source, next) {
                break;
            }
            (start, end) = (next, next);
        }
        found.push(MakeRule { targets, prerequisites, tokens: ranges });
        at = end;
    }
    found
}

/// Returns the rules of the makefile `text`, in order.
#[must_use]
pub fn rules_of(text: &[u8]) -> Vec<MakeRule> {
    rules(&Source::new(Lang::Text, text))
}

/// Returns whether the makefile `text` includes another one. [`rules_of`] does not see the rules of
/// that one.
#[must_use]
pub fn includes_another(text: &[u8]) -> bool {
    let mut lines = text.split(|&byte| byte == b'\n');
    lines.any(|line| line.starts_with(b"include") || line.starts_with(b"-include"))
}

/// Returns the targets and prerequisites of the line with the tokens `line`, if it starts a rule.
fn head(source: &Source<'_>, line: Range<usize>) -> Option<(Vec<String>, Vec<String>)> {
    let (mut targets, mut prerequisites) = (Vec::new(), Vec::new());
    let mut is_behind_colon = false;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    for at in line.filter(|&at| source.tokens[at].kind == TokenKind::Word) {
        let word = source.text(at);
        let mut rest = &*word;
        if rest.starts_with(b"#") || rest == b";" {
            break;
        }
        if !is_behind_colon {
            let Some(colon) = outside_brackets(rest, b":=") else {
                targets.push(text(rest));
                continue;
            };
            let behind = &rest[colon + 1..];
            // A variable definition: `A = x`, `A := x`, `A ::= x`.
            if rest[colon] == b'=' || behind.starts_with(b"=") || behind.starts_with(b":=") {
                return None;
            }
            if colon > 0 {
                targets.push(text(&rest[..colon]));
            }
            rest = behind.strip_prefix(b":").unwrap_or(behind);
            is_behind_colon = true;
        }
        if !rest.is_empty() {
            prerequisites.push(text(rest));
        }
    }
    (is_behind_colon && !targets.is_empty()).then_some((targets, prerequisites))
}

/// Returns the position of the first byte of `wanted` that is not within `$(...)` or `${...}`.
fn outside_brackets(word: &[u8], wanted: &[u8]) -> Option<usize> {
    let mut depth = 0_usize;
    word.iter().position(|byte| {
        match byte {
            b'(' | b'{' => depth += 1,
            b')' | b'}' => depth = depth.saturating_sub(1),
            byte => return depth == 0 && wanted.contains(byte),
        }
        false
    })
}

/// Returns whether the line of token `at` starts with a tab.
fn recipe_line(source: &Source<'_>, at: usize) -> bool {
    let start = source.tokens[at].span.start;
    let line = source.bytes[..start].iter().rposition(|&b| b == b'\n').map_or(0, |n| n + 1);
    source.bytes.get(line) == Some(&b'\t')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_makes_what() {
        let heads = |text: &str| {
            let words = |words: &[String]| words.join(" ");
            let rules = rules_of(text.as_bytes()).into_iter();
            rules.map(|rule| (words(&rule.targets), words(&rule.prerequisites))).collect::<Vec<_>>()
        };
        let makefile = "SHELL=/bin/sh\nA := b\nB ::= c : d\nC = e : f\ndefault: it\n\t./load x:y\nqmail-send \\\nx: y \\\nz # c\n\
            a b: c\n# d: e\ng:h\n$(O:.c=.o) : i;\nj:: k ; l: m\n: n\no:\n";
        let expected = [
            ("default", "it"),
            ("qmail-send x", "y z"),
            ("a b", "c"),
            ("g", "h"),
            ("$(O:.c=.o)", "i;"),
            ("j", "k"),
            ("o", ""),
        ];
        let expected = expected.map(|(targets, from)| (targets.to_string(), from.to_string()));
        assert_eq!(heads(makefile), expected);
    }

    #[test]
    fn makefile_targets() {
        let source = Source::new(Lang::Text, b"a: \\\nb c\n\t./x\n\t./y\n\nd : e\nf:\n");
        let lens = |ranges: Vec<Range<usize>>| ranges.iter().map(Range::len).collect::<Vec<_>>();
        let found: Vec<_> =
            rules(&source).into_iter().map(|r| (r.targets.join(" "), lens(r.tokens))).collect();
        assert_eq!(found, [("a".into(), vec![8]), ("d".into(), vec![4]), ("f".into(), vec![2])]);
    }

    #[test]
    fn a_recipe_goes_on_behind_comments_and_blank_lines() {
        let text = b"a: b\n# c \\\n d:\n\n\t./x a\n#\n\t./y\n\n# e\nf: g\n";
        let source = Source::new(Lang::Text, text);
        let words = |range: &Range<usize>| {
            let words = range.clone().filter(|&i| source.tokens[i].kind == TokenKind::Word);
            words
                .map(|i| String::from_utf8(source.text(i).into_owned()).unwrap())
                .collect::<Vec<_>>()
                .join(" ")
        };
        let found: Vec<_> = rules(&source)
            .iter()
            .map(|r| (r.targets.join(" "), r.tokens.iter().map(words).collect::<Vec<_>>()))
            .collect();
        let of_a = ["a: b", "./x a", "./y"].map(String::from).to_vec();
        assert_eq!(found, [("a".to_string(), of_a), ("f".to_string(), vec!["f: g".to_string()])]);
    }
}
