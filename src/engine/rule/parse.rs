//! The parser of rule files. It accepts each word of a rule file or reports an error.

#![forbid(unsafe_code)]

use std::collections::BTreeMap;

use super::{
    Absent, Alternative, Attachments, Condition, Count, Element, Hunk, Line, Mark, Need,
    PARAMETERS, Parameters, Part, Patch, Pattern, Piece, Purpose, Reach, Rule, RuleError, Scope,
    Section, Select, Work, pieces, variable,
};
use crate::engine::lex::{Kind, Lang, Source};

/// Reads the rule file `text` as patch `id`. Errors call it `file`.
///
/// # Errors The first thing that the grammar does not allow, with line and column.
pub fn parse(
    id: &str,
    file: &str,
    text: &str,
    parameters: &Parameters,
    attachments: &Attachments<'_>,
) -> Result<Patch, RuleError> {
    let lines: Vec<_> = text.lines().collect();
    Parser { file, parameters, attachments, lines, at: 0, when: None }.patch(id)
}

/// The first words of a section.
const SECTIONS: [&str; 6] = ["file", "file?", "files", "files?", "create", "refuse"];

/// The first words of a section's clauses.
const CLAUSES: [&str; 7] = ["as", "when", "with", "and", "or", "unless", "except"];

/// The kinds of conditions.
const CONDITIONS: &str = "`function`, `calls`, `identifier`, `include` or `no-include`";

/// The words of a line, each with its column, counted from 0.
struct Words<'a> {
    words: Vec<(usize, &'a str)>,
    at: usize,
    /// The column where the line ends.
    end: usize,
}

impl<'a> Words<'a> {
    /// Splits `text`, which starts in column `start` of its line.
    fn new(text: &'a str, start: usize) -> Words<'a> {
        let words = text.split_whitespace();
        let column = |word: &str| start + (word.as_ptr() as usize - text.as_ptr() as usize);
        Words {
            words: words.map(|word| (column(word), word)).collect(),
            at: 0,
            end: start + text.trim_end().len(),
        }
    }

    fn peek(&self) -> Option<&'a str> {
        self.words.get(self.at).map(|(_, word)| *word)
    }

    fn next(&mut self) -> Option<&'a str> {
        let word = self.peek()?;
        self.at += 1;
        Some(word)
    }

    /// Returns the column of the word that [`Words::peek`] returns; after the last word, that of
    /// the line end.
    fn column(&self) -> usize {
        self.words.get(self.at).map_or(self.end, |(column, _)| *column)
    }

    /// Returns what [`Words::peek`] returns, quoted for an error.
    fn found(&self) -> String {
        match self.peek() {
            Some(word) => format!("{word:?}"),
            None => "the end of the line".to_string(),
        }
    }
}

struct Parser<'a> {
    file: &'a str,
    parameters: &'a Parameters,
    attachments: &'a Attachments<'a>,
    lines: Vec<&'a str>,
    at: usize,
    /// The `when` of the section that is being read.
    when: Option<String>,
}

/// A section line.
struct Header<'a> {
    verb: &'a str,
    select: Select,
    attached: Option<&'a [u8]>,
    unless: Vec<String>,
    lang: Option<Lang>,
    /// Why it refuses a tree.
    reason: String,
}

/// The contents of a `@@` or `@&` line.
struct RuleHeader {
    scope: Scope,
    count: Count,
    purpose: Purpose,
    need: Need,
    together: bool,
    title: String,
}

impl<'a> Parser<'a> {
    /// Returns an error in the current line at `column`, counted from 0.
    fn error<T>(&self, column: usize, message: impl Into<String>) -> Result<T, RuleError> {
        let last = self.lines.len().saturating_sub(1);
        self.error_in(self.at.min(last), column, message)
    }

    /// Returns an error in line `line`, counted from 0.
    fn error_in<T>(
        &self,
        line: usize,
        column: usize,
        message: impl Into<String>,
    ) -> Result<T, RuleError> {
        let (file, message) = (self.file.to_string(), message.into());
        Err(RuleError { file, line: line + 1, column: column + 1, message })
    }

    /// Returns the next line that is neither blank nor a comment, without moving past it.
    fn next(&mut self) -> Option<&'a str> {
        while let Some(line) = self.lines.get(self.at).copied() {
            if line.trim().is_empty() || line.starts_with('#') {
                self.at += 1;
            } else {
                return Some(line);
            }
        }
        None
    }

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
                ("create", Some(bytes)) => Work::Create(bytes.to_vec()),
                ("create", None) => Work::Create(self.content()?),
                ("refuse", _) => Work::Refuse(header.reason),
                _ => Work::Rules(self.rules(lang)?),
            };
            let Header { select, unless, lang, .. } = header;
            let when = self.when.take();
            if when.as_ref().is_none_or(|name| self.parameters.contains_key(name)) {
                sections.push(Section { select, unless, lang, when, work, line: start });
            }
        }
        if count == 0 {
            let wanted = one_of(&SECTIONS);
            return self.error(0, format!("expected {wanted}, found the end of the file"));
        }
        Ok(Patch { id: id.to_string(), sections })
    }

    fn section_header(&mut self, line: &'a str) -> Result<Header<'a>, RuleError> {
        if line.starts_with(char::is_whitespace) {
            return self.error(0, format!("expected {}, found a blank", one_of(&SECTIONS)));
        }
        // A reason is text for people: none of its words belongs to the grammar.
        let (head, reason) = match line.split_once(" : ") {
            Some((head, reason)) if line.starts_with("refuse") => (head, Some(reason.trim())),
            _ => (line, None),
        };
        let mut words = Words::new(head, 0);
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
        let mut header = Header { verb, select, attached, unless, lang, reason: String::new() };
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
    fn clauses(&mut self, words: &mut Words<'a>, header: &mut Header<'a>) -> Result<(), RuleError> {
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
    fn file_names(&self, words: &mut Words<'_>) -> Result<Vec<String>, RuleError> {
        let mut names = vec![self.file_name(words)?];
        while words.peek() == Some("|") {
            words.next();
            names.push(self.file_name(words)?);
        }
        Ok(names)
    }

    fn file_name(&self, words: &mut Words<'_>) -> Result<String, RuleError> {
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

    fn attached(&self, words: &mut Words<'_>) -> Result<&'a [u8], RuleError> {
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

    fn language(&self, words: &mut Words<'_>) -> Result<Lang, RuleError> {
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

    fn parameter(&self, words: &mut Words<'_>) -> Result<String, RuleError> {
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

    fn condition(&self, words: &mut Words<'_>) -> Result<Condition, RuleError> {
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

    /// Returns the language of a selection. All of its names must agree.
    fn lang_of(&self, select: &Select, line: &str) -> Result<Lang, RuleError> {
        let lang = Lang::of(&select.names[0]);
        match select.names.iter().find(|name| Lang::of(name) != lang) {
            None => Ok(lang),
            Some(name) => self.error(
                line.find(name.as_str()).unwrap_or(0),
                format!("expected only C files or only text files, or `as`; found {name:?}"),
            ),
        }
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

    /// Returns `text`, which starts in column 1, with `${name}` replaced by its parameter, and `$${` by a literal
    /// `${`.
    fn substituted(&self, text: &str) -> Result<String, RuleError> {
        let mut out = String::new();
        let mut at = 0;
        while let Some(start) = text[at..].find("${").map(|n| at + n) {
            if text[at..start].ends_with('$') {
                out.push_str(&text[at..start - 1]);
                out.push_str("${");
                at = start + 2;
                continue;
            }
            let Some(end) = text[start..].find('}').map(|n| start + n) else {
                return self.error(start + 1, "expected `}` after `${`");
            };
            let name = &text[start + 2..end];
            if self.when.as_deref() != Some(name) {
                let wanted = match &self.when {
                    Some(when) => format!("expected `${{{when}}}`, the parameter of this section"),
                    None => "expected a section with `when` for a parameter".to_string(),
                };
                return self.error(start + 1, format!("{wanted}; found `${{{name}}}`"));
            }
            out.push_str(&text[at..start]);
            // If the parameter has no value, the section is dropped after parsing.
            out.push_str(self.parameters.get(name).map_or("0", String::as_str));
            at = end + 1;
        }
        out.push_str(&text[at..]);
        Ok(out)
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
                    parts: vec![Part { scope: head.scope, count: head.count, variants }],
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
                    let part = Part { scope: head.scope, count: head.count, variants };
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

    /// Parses the line `@@ WHERE : TITLE` or `@& WHERE : TITLE`.
    fn rule_header(&self, line: &str, lang: Lang) -> Result<RuleHeader, RuleError> {
        let further = line.starts_with("@&");
        let head = line.find(':').unwrap_or(line.len());
        if !line[2..].starts_with(' ') {
            return self.error(2, format!("expected a blank after `{}`", &line[..2]));
        }
        let mut words = Words::new(&line[2..head], 2);
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
        Ok(RuleHeader { scope, count, purpose, need, together, title: title.to_string() })
    }

    fn scope(&self, words: &mut Words<'_>, lang: Lang) -> Result<Scope, RuleError> {
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
    fn function(&self, words: &mut Words<'_>) -> Result<String, RuleError> {
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
                "<number>" => Some(Kind::Number),
                "<string>" => Some(Kind::Str),
                "<identifier>" => Some(Kind::Ident),
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

    fn hunk(&mut self, lang: Lang, scope: &Scope, title: String) -> Result<Hunk, RuleError> {
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
                Some(b' ') => Mark::Context,
                Some(b'-') => Mark::Remove,
                Some(b'+') => Mark::Add,
                _ => break,
            };
            let text = self.substituted(&line[1..])?;
            let begin = elements.len();
            if mark != Mark::Add {
                if lang == Lang::Text && !elements.is_empty() {
                    elements.push(Element::Token(Kind::LineEnd, b"\n".to_vec()));
                }
                elements.extend(self.elements(lang, &text)?);
            }
            let elements = begin..elements.len();
            lines.push(Line { mark, text, elements, line: self.at + 1 });
            self.at += 1;
        }
        if lines.is_empty() {
            return self.error(0, "expected hunk lines that start with ' ', '-' or '+'");
        }
        if lines.iter().all(|l| l.mark == Mark::Context) {
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
        for (i, line) in lines.iter().enumerate().filter(|(_, l)| l.mark == Mark::Remove) {
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
        lines: &[Line],
        elements: &[Element],
    ) -> Result<(), RuleError> {
        for (i, line) in lines.iter().enumerate().filter(|(_, l)| l.mark == Mark::Add) {
            for piece in pieces(&line.text) {
                let Piece::Variable(name) = piece else { continue };
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
                    if token.kind == Kind::Ident
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

    fn post_condition(&mut self, lang: Lang, mark: char) -> Result<Pattern, RuleError> {
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
                elements.push(Element::Token(Kind::LineEnd, b"\n".to_vec()));
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
                elements.push(Element::Token(Kind::LineEnd, b"\n".to_vec()));
            } else if let Some(name) = variable(&spelled) {
                elements.push(if spelled.starts_with("$$") {
                    Element::Run(name.to_string())
                } else {
                    Element::Variable(name.to_string())
                });
            } else if token.kind == Kind::Ident && spelled.contains('$') {
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

fn is_identifier(word: &str) -> bool {
    word.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        && word.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
}

/// Formats the words as `a`, `b` or `c`.
fn one_of(words: &[&str]) -> String {
    match words {
        [] => String::new(),
        [one] => format!("`{one}`"),
        [first @ .., last] => {
            let first: Vec<_> = first.iter().map(|word| format!("`{word}`")).collect();
            format!("{} or `{last}`", first.join(", "))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
        let readme = include_str!("../../../patches/README.md");
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
        let readme = include_str!("../../../patches/README.md");
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
                Piece::Text("if ("),
                Piece::Variable("cond"),
                Piece::Text(") "),
                Piece::Variable("x"),
                Piece::Text("; $Y $"),
            ]
        );
    }

    #[test]
    fn a_section_waits_for_its_parameter() {
        let text = "file conf when spawn\n@@ : t\n-x\n+${spawn}\n=${spawn}\nfile a.c\n@@ : t\n-x\n+y\n=y\n";
        assert_eq!(patch(text).unwrap().sections.len(), 1);
        let parameters = Parameters::from([("spawn".into(), "1000".into())]);
        let patch = parse("test", "test.rule", text, &parameters, &[]).unwrap();
        assert_eq!(patch.sections.len(), 2);
        assert_eq!(patch.sections[0].rules()[0].parts[0].variants[0].lines[1].text, "1000");
    }
}
