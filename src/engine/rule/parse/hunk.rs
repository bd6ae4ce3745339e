//! Hunks and post-conditions: the patterns of a rule, and the lines that it writes.

#![forbid(unsafe_code)]

use std::collections::BTreeMap;

use super::lines::RuleParser;
use crate::engine::lex::{Lang, Source, TokenKind};
use crate::engine::rule::{
    Alternative, Element, Hunk, HunkLine, LineMark, LinePiece, Pattern, RuleError, Scope, pieces,
    variable,
};

impl RuleParser<'_> {
    /// Parses one `?$name = a | b` line. `mark` bytes of it are before the `?`.
    fn alternatives(
        &self,
        line: &str,
        mark: usize,
        lang: Lang,
        lets: &mut BTreeMap<String, Vec<Alternative>>,
    ) -> Result<(), RuleError> {
        let rest = &line[mark + 1..];
        let Some(equals) = rest.find('=') else {
            return self.error(mark + 1, "expected `?$name = a | b`");
        };
        let name = rest[..equals].trim();
        let Some(name) = variable(name).filter(|_| !name.starts_with("$$")) else {
            let what = "expected a metavariable `$name`";
            return self.error(mark + 1, format!("{what}, found {name:?}"));
        };
        let mut alternatives = Vec::new();
        let mut at = mark + 1 + equals + 1;
        for value in rest[equals + 1..].split(" | ") {
            let column = at + (value.len() - value.trim_start().len());
            at += value.len() + 3;
            let value = value.trim();
            let kind = match value {
                "<number>" => Some(TokenKind::Number),
                "<string>" => Some(TokenKind::Str),
                "<identifier>" => Some(TokenKind::Ident),
                _ => None,
            };
            let bracketed = value.starts_with('<') && value.ends_with('>') && value.len() > 2;
            alternatives.push(match kind {
                Some(kind) if lang == Lang::C => Alternative::Kind(kind),
                _ if bracketed => {
                    let wanted = match lang {
                        Lang::C => "`<number>`, `<string>`, `<identifier>` or a token",
                        Lang::Text => "a word: a text file has no kinds",
                    };
                    return self.error(column, format!("expected {wanted}, found {value:?}"));
                }
                _ => {
                    let source = Source::new(lang, value.as_bytes());
                    if source.tokens.len() != 1 {
                        return self.error(column, format!("expected one token, found {value:?}"));
                    }
                    Alternative::Token(source.tokens[0].kind, source.text(0).into_owned())
                }
            });
        }
        if lets.insert(name.to_string(), alternatives).is_some() {
            return self
                .error(mark + 1, format!("expected one line of alternatives for `${name}`"));
        }
        Ok(())
    }

    pub(super) fn hunk(
        &mut self,
        lang: Lang,
        scope: &Scope,
        title: String,
    ) -> Result<Hunk, RuleError> {
        let mut lets = BTreeMap::new();
        let first_let = self.at;
        while let Some(line) = self.lines.get(self.at).filter(|l| l.starts_with('?')) {
            self.alternatives(line, 0, lang, &mut lets)?;
            self.at += 1;
        }
        let start = self.at;
        let mut lines = Vec::new();
        let mut elements = Vec::new();
        while let Some(line) = self.lines.get(self.at).copied() {
            let mark = match line.as_bytes().first() {
                Some(b' ') => LineMark::Context,
                Some(b'-') => LineMark::Remove,
                Some(b'+') => LineMark::Add,
                _ => break,
            };
            let text = self.substituted(&line[1..])?;
            let begin = elements.len();
            if mark != LineMark::Add {
                if lang == Lang::Text && !elements.is_empty() {
                    elements.push(Element::Token(TokenKind::LineEnd, b"\n".to_vec()));
                }
                elements.extend(self.elements(lang, &text)?);
            }
            let elements = begin..elements.len();
            lines.push(HunkLine { mark, text, elements, line: self.at + 1 });
            self.at += 1;
        }
        if lines.is_empty() {
            return self.error(0, "expected hunk lines that start with ' ', '-' or '+'");
        }
        if lines.iter().all(|l| l.mark == LineMark::Context) {
            return self.error_in(start, 0, "expected a `-` or `+` line in this hunk");
        }
        let has_place = matches!(scope, Scope::BeforeIncludes | Scope::AfterIncludes | Scope::End);
        if elements.is_empty() && !has_place {
            let what = "expected a line to match (' ' or '-')";
            return self.error_in(start, 0, format!("{what}: `+` lines alone have no place here"));
        }
        if !elements.is_empty() && *scope == Scope::End {
            return self.error_in(start, 0, "expected only `+` lines `at end`");
        }
        if loose(elements.first()) || loose(elements.last()) {
            return self.error_in(start, 0, "a hunk may not start or end with a gap or a run");
        }
        for (i, line) in lines.iter().enumerate().filter(|(_, l)| l.mark == LineMark::Remove) {
            if line.elements.is_empty() {
                return self.error_in(start + i, 1, "a removed line may not be empty");
            }
            if elements[line.elements.clone()].contains(&Element::Gap) {
                return self.error_in(start + i, 1, "a removed line may not have a gap");
            }
        }
        self.check_names(start, &elements)?;
        self.check_added(start, lang, &lines, &elements)?;
        self.check_lets(first_let, &lets, &elements)?;
        Ok(Hunk { title, lines, pattern: Pattern { elements, lets } })
    }

    /// Checks that a matched line binds every metavariable of the added lines.
    fn check_added(
        &self,
        start: usize,
        lang: Lang,
        lines: &[HunkLine],
        elements: &[Element],
    ) -> Result<(), RuleError> {
        for (i, line) in lines.iter().enumerate().filter(|(_, l)| l.mark == LineMark::Add) {
            for piece in pieces(&line.text) {
                let LinePiece::Variable(name) = piece else { continue };
                let bound = elements.iter().any(|e| match e {
                    Element::Variable(n) | Element::Run(n) => n == name,
                    _ => false,
                });
                if !bound {
                    let column = 1 + line.text.find(&format!("${name}")).unwrap_or(0);
                    let what = format!("`${name}` is not bound by this hunk");
                    return self.error_in(start + i, column, what);
                }
            }
            if lang == Lang::C {
                // C has `$` only in strings, so this is a misspelt metavariable.
                let source = Source::new(lang, line.text.as_bytes());
                for (t, token) in source.tokens.iter().enumerate() {
                    let text = source.text(t);
                    let spelled = String::from_utf8_lossy(&text);
                    if token.kind == TokenKind::Ident
                        && spelled.contains('$')
                        && variable(&spelled).is_none()
                    {
                        return self.error_in(start + i, token.span.start + 1, misspelt(&spelled));
                    }
                }
            }
        }
        Ok(())
    }

    /// Checks that no name is used as both `$x` and `$$x`: it cannot stand for one token and for
    /// several.
    fn check_names(&self, line: usize, elements: &[Element]) -> Result<(), RuleError> {
        let twice = elements.iter().find_map(|element| match element {
            Element::Run(name) if elements.contains(&Element::Variable(name.clone())) => Some(name),
            _ => None,
        });
        match twice {
            None => Ok(()),
            Some(name) => self.error_in(
                line,
                0,
                format!("expected two names, found `${name}` and `$${name}`"),
            ),
        }
    }

    /// Checks that each metavariable with alternatives is in use; otherwise it is misspelt.
    fn check_lets(
        &self,
        line: usize,
        lets: &BTreeMap<String, Vec<Alternative>>,
        elements: &[Element],
    ) -> Result<(), RuleError> {
        match lets.keys().find(|name| !elements.contains(&Element::Variable((*name).clone()))) {
            None => Ok(()),
            Some(name) => self.error_in(
                line,
                0,
                format!("`${name}` has alternatives, but is not in use here"),
            ),
        }
    }

    pub(super) fn post_condition(&mut self, lang: Lang, mark: char) -> Result<Pattern, RuleError> {
        let start = self.at;
        let mut elements: Vec<Element> = Vec::new();
        let mut lets = BTreeMap::new();
        while let Some(line) = self.lines.get(self.at).copied() {
            let Some(text) = line.strip_prefix(mark) else { break };
            if text.starts_with('?') {
                if !elements.is_empty() {
                    let what = "expected the alternatives before the first line of the pattern";
                    return self.error(1, what);
                }
                self.alternatives(line, 1, lang, &mut lets)?;
                self.at += 1;
                continue;
            }
            if lang == Lang::Text && !elements.is_empty() {
                elements.push(Element::Token(TokenKind::LineEnd, b"\n".to_vec()));
            }
            let text = self.substituted(text)?;
            elements.extend(self.elements(lang, &text)?);
            self.at += 1;
        }
        if elements.is_empty() {
            return self.error_in(start, 1, format!("expected a pattern after `{mark}`"));
        }
        if loose(elements.first()) || loose(elements.last()) {
            let what = "a post-condition may not start or end with a gap or a run";
            return self.error_in(start, 1, what);
        }
        self.check_names(start, &elements)?;
        self.check_lets(start, &lets, &elements)?;
        Ok(Pattern { elements, lets })
    }

    /// Splits `text`, which starts in column 1, into elements.
    fn elements(&self, lang: Lang, text: &str) -> Result<Vec<Element>, RuleError> {
        let source = Source::new(lang, text.as_bytes());
        let mut elements = Vec::new();
        for (i, token) in source.tokens.iter().enumerate() {
            let bytes = source.text(i);
            let spelled = String::from_utf8_lossy(&bytes);
            if spelled == "..." {
                elements.push(Element::Gap);
            } else if lang == Lang::Text && spelled == "$" {
                elements.push(Element::Token(TokenKind::LineEnd, b"\n".to_vec()));
            } else if let Some(name) = variable(&spelled) {
                elements.push(if spelled.starts_with("$$") {
                    Element::Run(name.to_string())
                } else {
                    Element::Variable(name.to_string())
                });
            } else if token.kind == TokenKind::Ident && spelled.contains('$') {
                return self.error(token.span.start + 1, misspelt(&spelled));
            } else {
                elements.push(Element::Token(token.kind, bytes.into_owned()));
            }
        }
        Ok(elements)
    }
}

fn misspelt(found: &str) -> String {
    format!("expected `$name` or `$$name` with a lower-case name, found {found:?}")
}

/// Returns whether an element is a gap or a run, which has no end of its own.
fn loose(element: Option<&Element>) -> bool {
    matches!(element, Some(Element::Gap | Element::Run(_)))
}
