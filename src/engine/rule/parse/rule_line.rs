//! The lines `@@ WHERE : TITLE` and `@& WHERE : TITLE`.

#![forbid(unsafe_code)]

use super::lines::{RuleParser, is_identifier};
use super::words::LineWords;
use crate::engine::lex::Lang;
use crate::engine::rule::{Count, Need, Purpose, RuleError, Scope};

/// The contents of a `@@` or `@&` line.
pub(super) struct RuleLine {
    pub(super) scope: Scope,
    pub(super) count: Count,
    pub(super) purpose: Purpose,
    pub(super) need: Need,
    pub(super) together: bool,
    pub(super) title: String,
}

impl RuleParser<'_> {
    /// Parses the line `@@ WHERE : TITLE` or `@& WHERE : TITLE`.
    pub(super) fn rule_header(&self, line: &str, lang: Lang) -> Result<RuleLine, RuleError> {
        let further = line.starts_with("@&");
        let head = line.find(':').unwrap_or(line.len());
        if !line[2..].starts_with(' ') {
            return self.error(2, format!("expected a blank after `{}`", &line[..2]));
        }
        let mut words = LineWords::new(&line[2..head], 2);
        let scope = self.scope(&mut words, lang)?;
        let (mut count, mut purpose, mut need) = (None, Purpose::Make, Need::Required);
        let mut together = false;
        let mut seen = Vec::new();
        while let Some(word) = words.peek() {
            let column = words.column();
            match word {
                "all" | "any" => {
                    let new = if word == "all" { Count::All } else { Count::Any };
                    if count.replace(new).is_some() {
                        return self.error(column, "expected only one of `all` and `any`");
                    }
                }
                "together" | "repair" | "optional" if further => {
                    let what = format!("expected `{word}` on the `@@` line");
                    return self.error(column, format!("{what}: it is about the whole rule"));
                }
                "together" => together = true,
                "repair" => purpose = Purpose::Repair,
                "optional" => need = Need::Optional,
                _ => {
                    let scope = match scope {
                        Scope::File => {
                            "`in FUNCTION()`, `in target NAME`, `before includes`, \
                                        `after includes`, `at end`, `first line`, "
                        }
                        Scope::Function(_) => "`|`, ",
                        _ => "",
                    };
                    let words = match further {
                        true => "`all`, `any` or `:`",
                        false => "`all`, `any`, `together`, `repair`, `optional` or `:`",
                    };
                    return self.error(column, format!("expected {scope}{words}, found {word:?}"));
                }
            }
            if seen.contains(&word) {
                return self.error(column, format!("expected `{word}` only once"));
            }
            seen.push(word);
            words.next();
        }
        let title = line[head..].trim_start_matches(':').trim();
        if title.is_empty() {
            return self
                .error(line.trim_end().len(), "expected `: TITLE`, found the end of the line");
        }
        let count = count.unwrap_or(Count::Once);
        Ok(RuleLine { scope, count, purpose, need, together, title: title.to_string() })
    }

    fn scope(&self, words: &mut LineWords<'_>, lang: Lang) -> Result<Scope, RuleError> {
        let start = words.column();
        let two = (words.peek(), words.words.get(words.at + 1).map(|(_, word)| *word));
        let scope = match two {
            (Some("before"), Some("includes")) => Scope::BeforeIncludes,
            (Some("after"), Some("includes")) => Scope::AfterIncludes,
            (Some("at"), Some("end")) => Scope::End,
            (Some("first"), Some("line")) => Scope::FirstLine,
            (Some("in"), Some("target")) => {
                words.at += 2;
                let Some(name) = words.next() else {
                    let what = "expected a makefile target after `in target`";
                    return self.error(words.column(), format!("{what}, found the end"));
                };
                words.at -= 2;
                Scope::Target(name.to_string())
            }
            (Some("in"), _) => {
                words.next();
                let mut names = vec![self.function(words)?];
                while words.peek() == Some("|") {
                    words.next();
                    names.push(self.function(words)?);
                }
                words.at -= 2;
                Scope::Function(names)
            }
            _ => return Ok(Scope::File),
        };
        words.at += 2;
        let c = matches!(scope, Scope::BeforeIncludes | Scope::AfterIncludes | Scope::Function(_));
        let text = matches!(scope, Scope::Target(_));
        if (c && lang == Lang::Text) || (text && lang == Lang::C) {
            let (kind, other) = if c { ("C", "text") } else { ("text", "C") };
            let what = format!("expected a {kind} file for this scope");
            return self.error(start, format!("{what}, found a section of {other} files"));
        }
        Ok(scope)
    }

    /// Parses `FUNCTION()`.
    fn function(&self, words: &mut LineWords<'_>) -> Result<String, RuleError> {
        match words.peek().and_then(|w| w.strip_suffix("()")).filter(|name| is_identifier(name)) {
            Some(name) => {
                words.next();
                Ok(name.to_string())
            }
            None => {
                let found = words.found();
                let what = "expected `FUNCTION()` or `target NAME`";
                self.error(words.column(), format!("{what}, found {found}"))
            }
        }
    }
}
