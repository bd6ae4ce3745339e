//! The parser of rule files. It accepts each word of a rule file or reports an error.
//!
//! This file has the order of the lines. `lines` has the lines and the errors in them, `section` reads a section line,
//! `rule_line` the line that begins a rule, and `hunk` the patterns.

#![forbid(unsafe_code)]

mod hunk;
mod lines;
mod rule_line;
mod section;
mod words;

use super::{Action, Attachments, Parameters, Patch, Rule, RuleError, RulePart, Section};
use crate::engine::lex::Lang;
use lines::{RuleParser, SECTIONS, one_of};
use section::SectionHeader;

/// Reads the rule file `text` as patch `id`. Errors call it `file`.
///
/// # Errors
/// The first thing that the grammar does not allow, with line and column.
pub fn parse(
    id: &str,
    file: &str,
    text: &str,
    parameters: &Parameters,
    attachments: &Attachments<'_>,
) -> Result<Patch, RuleError> {
    let lines: Vec<_> = text.lines().collect();
    RuleParser { file, parameters, attachments, lines, at: 0, when: None }.patch(id)
}

impl<'a> RuleParser<'a> {
    fn patch(mut self, id: &str) -> Result<Patch, RuleError> {
        let mut sections = Vec::new();
        let mut count = 0;
        while let Some(line) = self.next() {
            count += 1;
            let start = self.at + 1;
            self.when = None;
            let header = self.section_header(line)?;
            let lang = match header.lang {
                Some(lang) => lang,
                None if matches!(header.verb, "create" | "refuse") => Lang::Text,
                None => self.lang_of(&header.select, line)?,
            };
            self.at += 1;
            let work = match (header.verb, header.attached) {
                ("create", Some(bytes)) => Action::Create(bytes.to_vec()),
                ("create", None) => Action::Create(self.content()?),
                ("refuse", _) => Action::Refuse(header.reason),
                _ => Action::Rules(self.rules(lang)?),
            };
            let SectionHeader { select, unless, lang: written_lang, .. } = header;
            let when = self.when.take();
            if when.as_ref().is_none_or(|name| self.parameters.contains_key(name)) {
                sections.push(Section { select, unless, written_lang, when, work, line: start });
            }
        }
        if count == 0 {
            let wanted = one_of(&SECTIONS);
            return self.error(0, format!("expected {wanted}, found the end of the file"));
        }
        Ok(Patch { id: id.to_string(), sections })
    }

    /// Reads the `+` lines of a created file.
    fn content(&mut self) -> Result<Vec<u8>, RuleError> {
        let mut content = Vec::new();
        while let Some(line) = self.lines.get(self.at) {
            let Some(text) = line.strip_prefix('+') else { break };
            content.extend_from_slice(self.substituted(text)?.as_bytes());
            content.push(b'\n');
            self.at += 1;
        }
        if content.is_empty() {
            return self.error(0, "expected `from`, or the `+` lines of the new file");
        }
        Ok(content)
    }

    fn rules(&mut self, lang: Lang) -> Result<Vec<Rule>, RuleError> {
        let mut rules: Vec<Rule> = Vec::new();
        let proved = |rules: &Vec<Rule>| {
            rules.last().is_none_or(|r| !r.done.is_empty() || !r.never.is_empty())
        };
        let unproved = "expected a post-condition (`=` or `!` lines) for this rule";
        while let Some(line) = self.next() {
            if line.starts_with("@@") {
                if !proved(&rules) {
                    return self.error_in(rules[rules.len() - 1].line - 1, 0, unproved);
                }
                let head = self.rule_header(line, lang)?;
                let line = self.at + 1;
                self.at += 1;
                let variants = vec![self.hunk(lang, &head.scope, String::new())?];
                rules.push(Rule {
                    title: head.title,
                    line,
                    together: head.together,
                    purpose: head.purpose,
                    need: head.need,
                    parts: vec![RulePart { scope: head.scope, count: head.count, variants }],
                    done: Vec::new(),
                    never: Vec::new(),
                });
            } else if line.starts_with("@&") || line.starts_with("@|") {
                let mark = &line[..2];
                if rules.is_empty() {
                    return self.error(0, format!("expected `@@` first, found `{mark}`"));
                }
                if proved(&rules) {
                    let what = "before the post-condition of its rule";
                    return self.error(0, format!("expected `{mark}` {what}"));
                }
                if mark == "@&" {
                    let head = self.rule_header(line, lang)?;
                    self.at += 1;
                    let variants = vec![self.hunk(lang, &head.scope, String::new())?];
                    let part = RulePart { scope: head.scope, count: head.count, variants };
                    rules.last_mut().expect("not empty").parts.push(part);
                } else {
                    let title = line[2..].trim();
                    if title.is_empty() || !line[2..].starts_with(' ') {
                        return self.error(2, "expected ` TITLE` after `@|`");
                    }
                    self.at += 1;
                    let rule = rules.last_mut().expect("not empty");
                    let part = rule.parts.last_mut().expect("a rule has a part");
                    let hunk = self.hunk(lang, &part.scope, title.to_string())?;
                    part.variants.push(hunk);
                }
            } else if line.starts_with(['=', '!']) {
                let mark = if line.starts_with('=') { '=' } else { '!' };
                if rules.is_empty() {
                    return self.error(0, format!("expected `@@` first, found `{mark}`"));
                }
                let pattern = self.post_condition(lang, mark)?;
                let rule = rules.last_mut().expect("not empty");
                match mark {
                    '=' => rule.done.push(pattern),
                    _ => rule.never.push(pattern),
                }
            } else if SECTIONS.contains(&line.split(' ').next().unwrap_or_default()) {
                break;
            } else {
                let wanted = "expected `@@`, `@&`, `@|`, `=`, `!` or a new section";
                return self.error(0, format!("{wanted}, found {line:?}"));
            }
        }
        if rules.is_empty() {
            return self.error(0, "expected `@@` and a rule");
        }
        if !proved(&rules) {
            return self.error_in(rules[rules.len() - 1].line - 1, 0, unproved);
        }
        Ok(rules)
    }
}

#[cfg(test)]
mod tests;
