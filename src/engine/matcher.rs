//! Matches patterns against tokens.
//!
//! The matcher backtracks over the elements of a pattern. A gap or a run takes as few tokens as it
//! can. The work for one start position is bounded ([`MAX_STEPS`]), so that no rule and no source
//! can hang the tool. Real rules need a few hundred steps.

#![forbid(unsafe_code)]

use std::cell::Cell;
use std::collections::HashMap;
use std::ops::Range;

use crate::engine::function::functions;
use crate::engine::include::includes;
use crate::engine::lex::{Lang, Source, TokenKind};
use crate::engine::makefile;
use crate::engine::rule::{Alternative, Element, Pattern, Scope};

/// Element comparisons allowed for one start position. Beyond that it counts as no match.
pub const MAX_STEPS: usize = 1_000_000;

/// Where a pattern matched.
#[derive(Clone, Debug)]
pub struct Match {
    /// The tokens that each element of the pattern took.
    pub tokens: Vec<Range<usize>>,
    /// The tokens of each metavariable at its first use.
    pub bindings: HashMap<String, Range<usize>>,
}

impl Match {
    /// Returns all tokens of the match.
    #[must_use]
    pub fn extent(&self) -> Range<usize> {
        match (self.tokens.first(), self.tokens.last()) {
            (Some(first), Some(last)) => first.start..last.end,
            _ => 0..0,
        }
    }
}

/// Where a pattern that does not match came closest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Near {
    /// A part of the pattern is there.
    Place(Box<Nearest>),
    /// None of the pattern's words is there.
    Nowhere {
        /// The pattern's words.
        words: Vec<String>,
        /// Line of the function or target that was searched; `None` if the whole file was searched.
        line: Option<usize>,
    },
}

impl Near {
    /// Returns the line of the file that this is about.
    #[must_use]
    pub fn line(&self) -> Option<usize> {
        match self {
            Near::Place(nearest) => Some(nearest.line),
            Near::Nowhere { line, .. } => *line,
        }
    }

    /// Returns the share of the pattern that is there, in thousandths.
    #[must_use]
    pub fn share(&self) -> usize {
        match self {
            Near::Place(nearest) => nearest.share,
            Near::Nowhere { .. } => 0,
        }
    }
}

/// The place that has the longest part of a pattern.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Nearest {
    /// Elements that matched in a row, without gaps.
    pub matched: usize,
    /// Elements of the pattern, without gaps.
    pub total: usize,
    /// Share of the pattern that matched, in thousandths; a word weighs more than punctuation.
    pub share: usize,
    /// Line of the token that did not fit.
    pub line: usize,
    /// The element of the pattern that did not fit.
    pub element: usize,
    /// The line of the rule file with that element, if known.
    pub rule_line: Option<usize>,
    /// What the pattern wanted at that place.
    pub wanted: String,
    /// Set if everything after `wanted` matched: the first element of that.
    pub before: Option<String>,
    /// What the source has there.
    pub found: String,
}

/// Returns all matches of `pattern` in `region`, first to last, without overlap.
#[must_use]
pub fn find_all(source: &Source<'_>, region: Range<usize>, pattern: &Pattern) -> Vec<Match> {
    let mut search = Search::new(source, region.clone(), pattern);
    let mut found = Vec::new();
    let mut at = region.start;
    while at < region.end {
        match search.at(at) {
            Some(found_here) => {
                at = found_here.extent().end.max(at + 1);
                found.push(found_here);
            }
            None => at += 1,
        }
    }
    found
}

/// Returns whether `pattern` matches anywhere in `region`.
#[must_use]
pub fn matches(source: &Source<'_>, region: Range<usize>, pattern: &Pattern) -> bool {
    let mut search = Search::new(source, region.clone(), pattern);
    region.into_iter().any(|at| search.at(at).is_some())
}

/// Returns where in `regions` the pattern came closest to matching: where the longest part of it
/// is. That part need not be the beginning of the pattern.
#[must_use]
pub fn nearest(source: &Source<'_>, regions: &[Range<usize>], pattern: &Pattern) -> Near {
    let elements = &pattern.elements;
    let weights: Vec<usize> = elements.iter().map(weight).collect();
    let weigh = |range: Range<usize>| weights[range].iter().sum::<usize>();
    // The part from element `from` on: its weight, how many elements matched, and which one did
    // not.
    struct PartialMatch {
        weight: usize,
        matched: usize,
        from: usize,
        start: usize,
        token: usize,
        element: usize,
    }
    let mut best: Option<PartialMatch> = None;
    for region in regions {
        let mut search = Search::new(source, region.clone(), pattern);
        for from in (0..elements.len()).filter(|&n| n == 0 || weights[n] == WORD) {
            for start in region.clone() {
                search.furthest.set((0, start, from));
                let (matched, token, element) = match search.part(from, start) {
                    Some(found) => {
                        let gap = |n: &usize| elements[*n] != Element::Gap;
                        let matched = (from..elements.len()).filter(gap).count();
                        (matched, found.extent().end, elements.len())
                    }
                    None => search.furthest.get(),
                };
                let weight = weigh(from..element);
                if best.as_ref().is_none_or(|b| weight > b.weight) {
                    best = Some(PartialMatch { weight, matched, from, start, token, element });
                }
            }
        }
    }
    let Some(part) = best.filter(|part| part.weight >= WORD) else {
        let word = |(e, w): (&Element, &usize)| match e {
            Element::Token(_, text) if *w == WORD => {
                Some(String::from_utf8_lossy(text).into_owned())
            }
            _ => None,
        };
        let mut words: Vec<_> = elements.iter().zip(&weights).filter_map(word).collect();
        let mut seen = std::collections::HashSet::new();
        words.retain(|word| seen.insert(word.clone()));
        let whole = regions.iter().any(|r| r.len() == source.tokens.len());
        let start = regions.first().filter(|_| !whole).and_then(|r| source.tokens.get(r.start));
        return Near::Nowhere { words, line: start.map(|t| source.line(t.span.start)) };
    };
    // Everything from there on matched, so the element before it did not. Before a gap, that
    // element could be anywhere above.
    let behind = part.element == elements.len();
    let mut part = part;
    while behind
        && part.start > 0
        && matches!(part.from.checked_sub(1).map(|n| &elements[n]), Some(Element::Token(kind, text))
            if source.tokens[part.start - 1].kind == *kind && source.text(part.start - 1) == text.as_slice())
    {
        (part.from, part.start, part.matched) = (part.from - 1, part.start - 1, part.matched + 1);
    }
    let (element, token) = match behind {
        true => (part.from.saturating_sub(1), part.start.checked_sub(1)),
        false => (part.element, Some(part.token)),
    };
    let gap = behind && elements.get(element) == Some(&Element::Gap);
    let element = if gap { element.saturating_sub(1) } else { element };
    let (at, found) = match token.and_then(|t| source.tokens.get(t).map(|token| (t, token))) {
        _ if gap => (source.tokens[part.start].span.start, "nothing like it above".to_string()),
        Some((t, token)) => {
            (token.span.start, String::from_utf8_lossy(&source.text(t)).into_owned())
        }
        None if behind => (0, "the start of the file".to_string()),
        None => (source.bytes.len(), "the end of the file".to_string()),
    };
    let shown =
        |element: usize| elements.get(element).map_or_else(String::new, |e| wanted(pattern, e));
    Near::Place(Box::new(Nearest {
        matched: part.matched,
        total: elements.iter().filter(|e| **e != Element::Gap).count(),
        share: part.weight * 1000 / weigh(0..elements.len()).max(1),
        line: source.line(at),
        element,
        rule_line: None,
        wanted: shown(element),
        before: behind.then(|| shown(part.from)),
        found,
    }))
}

/// The weight of a word in a partial match. Punctuation and keywords weigh 1: they are everywhere.
const WORD: usize = 4;

fn weight(element: &Element) -> usize {
    const KEYWORDS: [&[u8]; 18] = [
        b"if",
        b"else",
        b"for",
        b"while",
        b"do",
        b"switch",
        b"case",
        b"break",
        b"return",
        b"int",
        b"char",
        b"unsigned",
        b"long",
        b"void",
        b"static",
        b"extern",
        b"struct",
        b"i",
    ];
    match element {
        Element::Token(TokenKind::Punct | TokenKind::LineEnd | TokenKind::Directive, _) => 1,
        Element::Token(TokenKind::Ident, text) if KEYWORDS.contains(&text.as_slice()) => 1,
        Element::Token(..) => WORD,
        Element::Variable(_) | Element::Run(_) | Element::Gap => 0,
    }
}

fn wanted(pattern: &Pattern, element: &Element) -> String {
    match element {
        Element::Token(_, text) => String::from_utf8_lossy(text).into_owned(),
        Element::Run(name) => format!("$${name}"),
        Element::Gap => "...".to_string(),
        Element::Variable(name) => match pattern.lets.get(name) {
            None => format!("${name}"),
            Some(alternatives) => alternatives
                .iter()
                .map(|a| match a {
                    Alternative::Token(_, text) => String::from_utf8_lossy(text).into_owned(),
                    Alternative::Kind(kind) => format!("a {kind:?}").to_lowercase(),
                })
                .collect::<Vec<_>>()
                .join(" or "),
        },
    }
}

struct Search<'a> {
    source: &'a Source<'a>,
    region: Range<usize>,
    pattern: &'a Pattern,
    steps: Cell<usize>,
    /// Number of elements matched, and the token and element that did not fit.
    furthest: Cell<(usize, usize, usize)>,
}

impl<'a> Search<'a> {
    fn new(source: &'a Source<'a>, region: Range<usize>, pattern: &'a Pattern) -> Self {
        let steps = Cell::new(0);
        let furthest = Cell::new((0, region.start, 0));
        Search { source, region, pattern, steps, furthest }
    }

    fn at(&mut self, start: usize) -> Option<Match> {
        self.part(0, start)
    }

    /// Matches the elements from `element` on at `start`.
    fn part(&mut self, element: usize, start: usize) -> Option<Match> {
        self.steps.set(0);
        let mut state = Match {
            tokens: Vec::with_capacity(self.pattern.elements.len()),
            bindings: HashMap::new(),
        };
        self.from(element, start, 0, &mut state).then_some(state)
    }

    fn fits(&self, token: usize, kind: TokenKind, text: &[u8]) -> bool {
        let t = &self.source.tokens[token];
        t.kind == kind && (kind == TokenKind::LineEnd || &*self.source.text(token) == text)
    }

    /// Matches the elements from `element` on at `token`. Before them, `count` elements matched,
    /// gaps not counted.
    fn from(&self, element: usize, token: usize, count: usize, state: &mut Match) -> bool {
        if self.steps.get() >= MAX_STEPS {
            return false;
        }
        self.steps.set(self.steps.get() + 1);
        let Some(wanted) = self.pattern.elements.get(element) else { return true };
        if count >= self.furthest.get().0 && *wanted != Element::Gap {
            self.furthest.set((count, token, element));
        }
        match wanted {
            Element::Gap => {
                (token..=self.region.end).any(|next| self.take(element, token..next, count, state))
            }
            Element::Token(kind, text) => {
                token < self.region.end
                    && self.fits(token, *kind, text)
                    && self.take(element, token..token + 1, count + 1, state)
            }
            Element::Variable(name) => {
                token < self.region.end
                    && self.admits(name, token)
                    && self.bind(name, element, token..token + 1, count, state)
            }
            Element::Run(name) => {
                self.balanced(token).any(|end| self.bind(name, element, token..end, count, state))
            }
        }
    }

    /// Gives `tokens` to `element` and continues after them.
    fn take(&self, element: usize, tokens: Range<usize>, count: usize, state: &mut Match) -> bool {
        let end = tokens.end;
        state.tokens.push(tokens);
        if self.from(element + 1, end, count, state) {
            return true;
        }
        state.tokens.pop();
        false
    }

    fn bind(
        &self,
        name: &str,
        element: usize,
        tokens: Range<usize>,
        count: usize,
        state: &mut Match,
    ) -> bool {
        if let Some(bound) = state.bindings.get(name) {
            return self.same(bound.clone(), tokens.clone())
                && self.take(element, tokens, count + 1, state);
        }
        state.bindings.insert(name.to_string(), tokens.clone());
        if self.take(element, tokens, count + 1, state) {
            return true;
        }
        state.bindings.remove(name);
        false
    }

    fn same(&self, a: Range<usize>, b: Range<usize>) -> bool {
        a.len() == b.len()
            && a.zip(b).all(|(i, j)| {
                self.source.tokens[i].kind == self.source.tokens[j].kind
                    && self.source.text(i) == self.source.text(j)
            })
    }

    fn admits(&self, name: &str, token: usize) -> bool {
        if self.source.tokens[token].kind == TokenKind::LineEnd {
            return false;
        }
        self.pattern.lets.get(name).is_none_or(|alternatives| {
            alternatives.iter().any(|a| match a {
                Alternative::Token(kind, text) => self.fits(token, *kind, text),
                Alternative::Kind(kind) => self.source.tokens[token].kind == *kind,
            })
        })
    }

    /// Returns the ends of the runs from `start` on in which brackets balance, shortest first.
    fn balanced(&self, start: usize) -> impl Iterator<Item = usize> + '_ {
        let mut depth = 0usize;
        let mut at = start;
        let mut open = true;
        std::iter::from_fn(move || {
            while open {
                if at >= self.region.end {
                    open = false;
                    break;
                }
                match &*self.source.text(at) {
                    b"(" | b"[" | b"{" => depth += 1,
                    b")" | b"]" | b"}" => match depth.checked_sub(1) {
                        Some(less) => depth = less,
                        None => {
                            open = false;
                            break;
                        }
                    },
                    _ => {}
                }
                at += 1;
                if depth == 0 {
                    return Some(at);
                }
            }
            None
        })
    }
}

/// Returns the parts of `source` that `scope` names, as token ranges.
///
/// # Errors
/// If the scope is missing: the functions or targets that the file has instead.
pub fn regions(
    source: &Source<'_>,
    lang: Lang,
    scope: &Scope,
) -> Result<Vec<Range<usize>>, Vec<String>> {
    match scope {
        Scope::File | Scope::End => Ok(std::iter::once(0..source.tokens.len()).collect()),
        Scope::FirstLine => {
            let end = (0..source.tokens.len())
                .find(|&i| source.tokens[i].kind == TokenKind::LineEnd)
                .map_or(source.tokens.len(), |i| i + 1);
            Ok(std::iter::once(0..end).collect())
        }
        Scope::BeforeIncludes => Ok(std::iter::once(first_include(source)).collect()),
        Scope::AfterIncludes => {
            let includes = free_includes(source);
            let range = match (includes.first(), includes.last()) {
                (Some(first), Some(last)) => first.start..last.end,
                _ => 0..0,
            };
            Ok(std::iter::once(range).collect())
        }
        Scope::Function(names) => {
            debug_assert_eq!(lang, Lang::C);
            let functions = functions(source);
            for name in names {
                let regions: Vec<_> = functions
                    .iter()
                    .filter(|f| f.name == *name)
                    .map(|f| f.tokens.clone())
                    .collect();
                if !regions.is_empty() {
                    return Ok(regions);
                }
            }
            Err(functions.into_iter().map(|f| f.name).collect())
        }
        Scope::Target(name) => {
            let rules = makefile::rules(source);
            let ours = rules.iter().filter(|rule| rule.targets.contains(name));
            let regions: Vec<_> = ours.flat_map(|rule| rule.tokens.clone()).collect();
            if regions.is_empty() {
                return Err(rules.into_iter().flat_map(|rule| rule.targets).collect());
            }
            Ok(regions)
        }
    }
}

/// Returns the first `#include` line if it is in no conditional, else an empty range at the
/// outermost conditional around it. Without an `#include` line, returns an empty range at the
/// start.
fn first_include(source: &Source<'_>) -> Range<usize> {
    includes(source).into_iter().next().map_or(0..0, |include| match include.held_by {
        Some(outer) => outer..outer,
        None => include.tokens,
    })
}

/// Returns the `#include` lines that are in no conditional.
fn free_includes(source: &Source<'_>) -> Vec<Range<usize>> {
    includes(source).into_iter().filter(|i| i.held_by.is_none()).map(|i| i.tokens).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_include_and_what_holds_it() {
        let range = |text: &str| first_include(&Source::new(Lang::C, text.as_bytes()));
        assert_eq!(range("/* c */\n#include <a.h>\n#include <b.h>\n"), 0..4);
        assert_eq!(range("int x;\n#ifdef A\n#include <a.h>\n#endif\n"), 3..3);
        assert_eq!(range("int x;\n"), 0..0);
    }

    /// Returns the nearest place for a pattern, which is written as the context of a rule.
    fn near(pattern: &str, text: &str) -> Near {
        let rule = format!("file a.c\n@@ : t\n {}\n+;\n=x\n", pattern.replace('\n', "\n "));
        let patch = crate::engine::rule::parse(
            "t",
            "t",
            &rule,
            &crate::engine::rule::Parameters::new(),
            &[],
        )
        .unwrap();
        let source = Source::new(Lang::C, text.as_bytes());
        let whole: Vec<Range<usize>> = std::iter::once(0..source.tokens.len()).collect();
        nearest(&source, &whole, &patch.sections[0].rules()[0].parts[0].variants[0].pattern)
    }

    #[test]
    fn the_nearest_place_is_where_the_longest_part_is() {
        let text = "f();\ng(a);\nh(x);\nclose(fd);\nend();\n";
        for (pattern, line, wanted, before, found) in [
            // The beginning of the pattern.
            ("close(fd);\nexit();", 5, "exit", None, "end"),
            // Its end: nothing before that is there.
            ("open(y);\nclose(fd);", 3, "y", Some(")"), "x"),
            ("begin(z);\n...\nclose(fd);", 4, ";", Some("close"), "nothing like it above"),
            // The middle.
            ("open(y); close(fd); exit();", 5, "exit", None, "end"),
        ] {
            let Near::Place(nearest) = near(pattern, text) else { panic!("{pattern}: nowhere") };
            let got = (
                nearest.line,
                nearest.wanted.as_str(),
                nearest.before.as_deref(),
                nearest.found.as_str(),
            );
            assert_eq!(got, (line, wanted, before, found), "{pattern}");
        }
    }

    #[test]
    fn a_pattern_whose_words_are_nowhere_is_at_no_line() {
        let nowhere = near("sig_childunblock();", "#include <a.h>\nint main() { return 0; }\n");
        assert_eq!(nowhere, Near::Nowhere { words: vec!["sig_childunblock".into()], line: None });
    }
}
