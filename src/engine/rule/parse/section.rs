//! The section lines: `file`, `create` and `refuse`, with their clauses.

#![forbid(unsafe_code)]

use super::lines::{RuleParser, SECTIONS, is_identifier, one_of};
use super::words::LineWords;
use crate::engine::lex::Lang;
use crate::engine::rule::{Absent, Condition, PARAMETERS, Reach, RuleError, Select};

/// The first words of a section's clauses.
const CLAUSES: [&str; 7] = ["as", "when", "with", "and", "or", "unless", "except"];

/// The kinds of conditions.
pub(super) const CONDITIONS: &str = "`function`, `calls`, `identifier`, `include` or `no-include`";

/// A section line.
pub(super) struct SectionHeader<'a> {
    pub(super) verb: &'a str,
    pub(super) select: Select,
    pub(super) attached: Option<&'a [u8]>,
    pub(super) unless: Vec<String>,
    pub(super) lang: Option<Lang>,
    /// Why it refuses a tree.
    pub(super) reason: String,
}

impl<'a> RuleParser<'a> {
    pub(super) fn section_header(&mut self, line: &'a str) -> Result<SectionHeader<'a>, RuleError> {
        if line.starts_with(char::is_whitespace) {
            return self.error(0, format!("expected {}, found a blank", one_of(&SECTIONS)));
        }
        // A reason is text for people: none of its words belongs to the grammar.
        let (head, reason) = match line.split_once(" : ") {
            Some((head, reason)) if line.starts_with("refuse") => (head, Some(reason.trim())),
            _ => (line, None),
        };
        let mut words = LineWords::new(head, 0);
        let verb = words.next().unwrap_or_default();
        if !SECTIONS.contains(&verb) {
            return self.error(0, format!("expected {}, found {verb:?}", one_of(&SECTIONS)));
        }
        let reach = match verb {
            "files" | "files?" | "refuse" => Reach::All,
            _ => Reach::First,
        };
        let absent = match verb {
            "file?" | "files?" | "refuse" => Absent::Skip,
            _ => Absent::Error,
        };
        let names = match verb {
            "create" => vec![self.file_name(&mut words)?],
            _ => self.file_names(&mut words)?,
        };
        if let (Reach::First, Some(name)) = (reach, names.iter().find(|n| n.contains('*'))) {
            let column = line.find(name.as_str()).unwrap_or(0);
            return self.error(column, format!("expected a file name without `*`, found {name:?}"));
        }
        let select = Select { names, reach, with: Vec::new(), except: Vec::new(), absent };
        let (unless, attached, lang) = (Vec::new(), None, None);
        let mut header =
            SectionHeader { verb, select, attached, unless, lang, reason: String::new() };
        self.clauses(&mut words, &mut header)?;
        if verb == "refuse" {
            match reason {
                Some(reason) if !reason.is_empty() => header.reason = reason.to_string(),
                _ => {
                    return self
                        .error(words.end, "expected ` : REASON`, found the end of the line");
                }
            }
        }
        Ok(header)
    }

    /// Parses the clauses after the names. Each may occur once.
    fn clauses(
        &mut self,
        words: &mut LineWords<'a>,
        header: &mut SectionHeader<'a>,
    ) -> Result<(), RuleError> {
        let mut seen: Vec<&str> = Vec::new();
        while let Some(word) = words.peek() {
            let column = words.column();
            let fits = match word {
                "from" => header.verb == "create",
                "as" => !matches!(header.verb, "create" | "refuse"),
                "with" | "except" => header.verb != "create",
                "and" | "or" => seen.last() == Some(&"with"),
                "when" | "unless" => true,
                _ => false,
            };
            if !fits {
                let clauses: &[&str] = match header.verb {
                    "create" => &["from", "when", "unless"],
                    "refuse" => &["|", "when", "with", "unless", "except", " : REASON"],
                    _ => &["|", "as", "when", "with", "unless", "except"],
                };
                let wanted = format!("expected `{}` or the end of the line", clauses.join("`, `"));
                return self.error(column, format!("{wanted}, found {word:?}"));
            }
            if seen.contains(&word) {
                return self.error(column, format!("expected `{word}` only once"));
            }
            words.next();
            match word {
                "from" => header.attached = Some(self.attached(words)?),
                "as" => header.lang = Some(self.language(words)?),
                "when" => self.when = Some(self.parameter(words)?),
                "unless" => header.unless = self.file_names(words)?,
                "except" => header.select.except = self.file_names(words)?,
                _ => {
                    let condition = self.condition(words)?;
                    match header.select.with.last_mut().filter(|_| word == "or") {
                        Some(group) => group.push(condition),
                        None => header.select.with.push(vec![condition]),
                    }
                }
            }
            if !matches!(word, "and" | "or") {
                seen.push(word);
            }
        }
        Ok(())
    }

    /// Parses `NAME { "|" NAME }`.
    fn file_names(&self, words: &mut LineWords<'_>) -> Result<Vec<String>, RuleError> {
        let mut names = vec![self.file_name(words)?];
        while words.peek() == Some("|") {
            words.next();
            names.push(self.file_name(words)?);
        }
        Ok(names)
    }

    fn file_name(&self, words: &mut LineWords<'_>) -> Result<String, RuleError> {
        let name = words.peek().unwrap_or_default();
        let plain = |c: char| c.is_ascii_alphanumeric() || "._-+*".contains(c);
        let ok = !name.is_empty() && name.chars().all(plain) && !CLAUSES.contains(&name);
        if !ok || name.matches('*').count() > 1 {
            let found = words.found();
            return self.error(words.column(), format!("expected a file name, found {found}"));
        }
        words.next();
        Ok(name.to_string())
    }

    fn attached(&self, words: &mut LineWords<'_>) -> Result<&'a [u8], RuleError> {
        let file = words.peek().unwrap_or_default();
        match self.attachments.iter().find(|(name, _)| *name == file) {
            Some((_, bytes)) => {
                words.next();
                Ok(bytes)
            }
            None => {
                let found = words.found();
                let what = "expected a file of this patch after `from`";
                self.error(words.column(), format!("{what}, found {found}"))
            }
        }
    }

    fn language(&self, words: &mut LineWords<'_>) -> Result<Lang, RuleError> {
        let lang = match words.peek() {
            Some("c") => Lang::C,
            Some("text") => Lang::Text,
            _ => {
                let found = words.found();
                let what = "expected `c` or `text` after `as`";
                return self.error(words.column(), format!("{what}, found {found}"));
            }
        };
        words.next();
        Ok(lang)
    }

    fn parameter(&self, words: &mut LineWords<'_>) -> Result<String, RuleError> {
        match words.peek().filter(|name| PARAMETERS.contains(name)) {
            Some(name) => {
                words.next();
                Ok(name.to_string())
            }
            None => {
                let (wanted, found) = (one_of(&PARAMETERS), words.found());
                self.error(words.column(), format!("expected {wanted} after `when`, found {found}"))
            }
        }
    }

    fn condition(&self, words: &mut LineWords<'_>) -> Result<Condition, RuleError> {
        let make = match words.peek() {
            Some("function") => Condition::Function,
            Some("calls") => Condition::Calls,
            Some("identifier") => Condition::Identifier,
            Some("include") => Condition::Include,
            Some("no-include") => Condition::NoInclude,
            _ => {
                let found = words.found();
                return self.error(words.column(), format!("expected {CONDITIONS}, found {found}"));
            }
        };
        let header = matches!(words.next(), Some("include" | "no-include"));
        let value = words.peek().unwrap_or_default();
        let path = |c: char| c.is_ascii_alphanumeric() || "._-+/".contains(c);
        let (what, ok) = match header {
            true => ("a header", value.contains('.') && value.chars().all(path)),
            false => ("an identifier", is_identifier(value)),
        };
        if !ok {
            let found = words.found();
            return self.error(words.column(), format!("expected {what}, found {found}"));
        }
        words.next();
        Ok(make(value.to_string()))
    }

    /// Returns the language of a selection. All of its names must agree, and so must all files that a name with a star
    /// takes: its end has to tell.
    pub(super) fn lang_of(&self, select: &Select, line: &str) -> Result<Lang, RuleError> {
        let lang = Lang::of(&select.names[0]);
        let takes_both =
            |name: &&String| name.split_once('*').is_some_and(|(_, end)| !end.contains('.'));
        if let Some(name) = select.names.iter().find(takes_both) {
            return self.error(
                line.find(name.as_str()).unwrap_or(0),
                format!("expected a name that ends in .c or the like, or `as`; found {name:?}, which may take C and text"),
            );
        }
        match select.names.iter().find(|name| Lang::of(name) != lang) {
            None => Ok(lang),
            Some(name) => self.error(
                line.find(name.as_str()).unwrap_or(0),
                format!("expected only C files or only text files, or `as`; found {name:?}"),
            ),
        }
    }
}
