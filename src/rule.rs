//! Rule files: what a patch matches and what it writes.
//!
//! The language is documented, with its grammar, in `patches/README.md`.

#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::fmt;

use crate::lex::{Kind, Lang, Source};

/// One patch: the rules that together make one thing true of a tree.
#[derive(Clone, Debug)]
pub struct Patch {
    /// The name of its folder under `patches/`.
    pub id: String,
    /// One section per `file` or `create` line, in the order of the rule file.
    pub sections: Vec<Section>,
}

/// Rules for one selection of files, or a file to create.
#[derive(Clone, Debug)]
pub struct Section {
    /// The files it is about.
    pub select: Select,
    /// Left out where the tree has one of these files.
    pub unless: Vec<String>,
    /// How its files are split into tokens; `None`: by their names.
    pub lang: Option<Lang>,
    /// What is done to each of them.
    pub rules: Vec<Rule>,
    /// Line of the rule file.
    pub line: usize,
}

/// Which files of a tree a section is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Select {
    /// The first of these names that the tree has.
    Name {
        /// Candidates, in order of preference.
        names: Vec<String>,
        /// What it means when the tree has none of them.
        absent: Absent,
    },
    /// Every file that a glob takes and a condition holds for.
    Glob {
        /// Name patterns with at most one `*`.
        globs: Vec<String>,
        /// Of each of these, one must hold.
        with: Vec<Vec<Condition>>,
        /// Names left out.
        except: Vec<String>,
        /// What it means when there is no such file.
        absent: Absent,
    },
    /// A file that the patch brings along.
    Create {
        /// Its name.
        name: String,
        /// Its bytes.
        content: Vec<u8>,
    },
}

/// What it means when a section finds no file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Absent {
    /// The patch does not fit.
    Error,
    /// There is nothing to do.
    Skip,
}

/// A condition on a file that a glob took.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Condition {
    /// It defines this function.
    Function(String),
    /// It includes this header, itself or through the tree's own headers.
    Include(String),
    /// It has this identifier outside of comments, itself or in a header of the tree that it
    /// includes.
    Identifier(String),
    /// It calls this function, or defines it.
    Calls(String),
    /// It does not include this header, neither itself nor through the tree's own headers.
    NoInclude(String),
}

/// What it asks of a file, for people: `defines docmd()`.
impl fmt::Display for Condition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Condition::Function(name) => write!(f, "defines {name}()"),
            Condition::Include(header) => write!(f, "includes {header}"),
            Condition::Identifier(word) => write!(f, "uses {word}"),
            Condition::Calls(name) => write!(f, "calls {name}()"),
            Condition::NoInclude(header) => write!(f, "goes without {header}"),
        }
    }
}

/// One change with its proof.
#[derive(Clone, Debug)]
pub struct Rule {
    /// What it makes true, for people.
    pub title: String,
    /// Line of the rule file.
    pub line: usize,
    /// Whether it speaks of one protocol with the other rules so marked: either all of them are
    /// made, or all of them are to be made.
    pub together: bool,
    /// Whether what it changes is missing or wrong.
    pub purpose: Purpose,
    /// What it means when it does not fit.
    pub need: Need,
    /// Applied together, each in its own scope.
    pub parts: Vec<Part>,
    /// Post-condition: one of these must match (none given: the `never` ones decide).
    pub done: Vec<Pattern>,
    /// Post-condition: none of these may match.
    pub never: Vec<Pattern>,
}

/// A place in a file and the ways in which the code there may be written.
#[derive(Clone, Debug)]
pub struct Part {
    /// Where to look.
    pub scope: Scope,
    /// How often it must match.
    pub count: Count,
    /// Tried in order; the first that matches is used.
    pub variants: Vec<Hunk>,
}

/// The stretch of a file that a pattern is matched in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Scope {
    /// All of it.
    File,
    /// The definition of the first of these functions that the file has.
    Function(Vec<String>),
    /// Before the first `#include`, outside of any conditional.
    BeforeIncludes,
    /// After the last `#include` outside of any conditional.
    AfterIncludes,
    /// The end of the file.
    End,
    /// The first line.
    FirstLine,
    /// A makefile target with its recipe.
    Target(String),
}

/// How often a part must match.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Count {
    /// Exactly once.
    Once,
    /// Once or more, each place changed.
    All,
    /// Any number of times, also none.
    Any,
}

/// What a rule is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// The change is missing.
    Make,
    /// The change is there, but known to be wrong.
    Repair,
}

/// What it means when a rule does not fit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// The patch does not fit.
    Required,
    /// This tree goes without, as with a sentence in a manual page.
    Optional,
}

/// Lines to match and to write: one way in which the code may be written.
#[derive(Clone, Debug)]
pub struct Hunk {
    /// In order.
    pub lines: Vec<Line>,
    /// What the context and removed lines match.
    pub pattern: Pattern,
}

/// The first column of a hunk line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mark {
    /// Matched and kept.
    Context,
    /// Matched and removed.
    Remove,
    /// Written.
    Add,
}

/// A line of a hunk.
#[derive(Clone, Debug)]
pub struct Line {
    /// Context, removed or added.
    pub mark: Mark,
    /// Its text without the mark.
    pub text: String,
    /// For context and removed lines: its elements in [`Hunk::pattern`], `start..end`.
    pub elements: std::ops::Range<usize>,
}

/// A sequence of elements to match against tokens.
#[derive(Clone, Debug, Default)]
pub struct Pattern {
    /// In order.
    pub elements: Vec<Element>,
    /// Alternatives for metavariables.
    pub lets: BTreeMap<String, Vec<Alternative>>,
}

/// One element of a pattern.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Element {
    /// This token.
    Token(Kind, Vec<u8>),
    /// `$name`: any one token, the same wherever the name stands.
    Variable(String),
    /// `$$name`: a run of tokens in which brackets balance, the shortest that fits.
    Run(String),
    /// `...`: any tokens, the fewest that fit.
    Gap,
}

/// What a metavariable may stand for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Alternative {
    /// This token.
    Token(Kind, Vec<u8>),
    /// Any token of this kind.
    Kind(Kind),
}

/// A rule file that cannot be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RuleError {
    /// The name of the rule file.
    pub file: String,
    /// Line, from 1.
    pub line: usize,
    /// Column in bytes, from 1.
    pub column: usize,
    /// What was expected and what was found.
    pub message: String,
}

impl fmt::Display for RuleError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}: {}", self.file, self.line, self.column, self.message)
    }
}

impl std::error::Error for RuleError {}

/// Values for `${name}` in a rule file. A section that says `when name` is left out where `name`
/// has none.
pub type Parameters = BTreeMap<String, String>;

/// Files that a patch brings along beside its rule file, by name: what `create NAME from FILE`
/// takes.
pub type Attachments<'a> = [(&'a str, &'a [u8])];

/// Read the rule file `text`, called `file` in errors, as patch `id`.
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
    Parser { file, parameters, attachments, lines: text.lines().collect(), at: 0 }.patch(id)
}

/// Words of a section line that are not names.
const KEYWORDS: [&str; 9] = ["|", "from", "when", "with", "and", "or", "as", "except", "unless"];

struct Parser<'a> {
    file: &'a str,
    parameters: &'a Parameters,
    attachments: &'a Attachments<'a>,
    lines: Vec<&'a str>,
    at: usize,
}

/// A section as parsed, before it is known whether its `when` holds.
struct Header<'a> {
    select: Select,
    attached: Option<&'a [u8]>,
    unless: Vec<String>,
    when: Option<String>,
    lang: Option<Lang>,
}

/// What stands on a `@@` or `@&` line.
struct RuleHeader {
    scope: Scope,
    count: Count,
    purpose: Purpose,
    need: Need,
    together: bool,
    title: String,
}

impl<'a> Parser<'a> {
    fn error<T>(&self, column: usize, message: impl Into<String>) -> Result<T, RuleError> {
        Err(RuleError {
            file: self.file.to_string(),
            line: self.at.min(self.lines.len().saturating_sub(1)) + 1,
            column: column + 1,
            message: message.into(),
        })
    }

    /// The next line that is neither blank nor a comment, without moving past it.
    fn next(&mut self) -> Option<String> {
        while let Some(line) = self.lines.get(self.at) {
            if line.trim().is_empty() || line.starts_with('#') {
                self.at += 1;
            } else {
                return Some((*line).to_string());
            }
        }
        None
    }

    fn patch(mut self, id: &str) -> Result<Patch, RuleError> {
        let mut sections = Vec::new();
        while let Some(line) = self.next() {
            let start = self.at + 1;
            let header = self.section_header(&line)?;
            self.at += 1;
            let (select, rules) = match header.select {
                Select::Create { name, .. } => {
                    let content = match header.attached {
                        Some(bytes) => bytes.to_vec(),
                        None => self.content()?,
                    };
                    (Select::Create { name, content }, Vec::new())
                }
                select => {
                    let rules = self.rules(header.lang.unwrap_or_else(|| lang_of(&select)))?;
                    (select, rules)
                }
            };
            if header.when.as_ref().is_none_or(|name| self.parameters.contains_key(name)) {
                let Header { unless, lang, .. } = header;
                sections.push(Section { select, unless, lang, rules, line: start });
            }
        }
        if sections.is_empty() {
            return self.error(0, "expected a `file` or `create` line, found the end of the file");
        }
        Ok(Patch { id: id.to_string(), sections })
    }

    fn section_header(&self, line: &str) -> Result<Header<'a>, RuleError> {
        let mut words = line.split_whitespace().peekable();
        let verb = words.next().unwrap_or_default();
        let absent = if verb.ends_with('?') { Absent::Skip } else { Absent::Error };
        match verb {
            "file" | "file?" | "files" | "files?" | "create" => {}
            _ => {
                return self
                    .error(0, format!("expected `file`, `files` or `create`, found {verb:?}"));
            }
        }
        let mut names = Vec::new();
        let mut with: Vec<Vec<Condition>> = Vec::new();
        let mut except = Vec::new();
        let mut unless = Vec::new();
        let mut when = None;
        let mut lang = None;
        let mut attached = None;
        while let Some(word) = words.next() {
            match word {
                "|" => {}
                "when" => match words.next() {
                    Some(name) => when = Some(name.to_string()),
                    None => return self.error(line.len(), "expected a parameter after `when`"),
                },
                "from" => {
                    let file = words.next().unwrap_or_default();
                    match self.attachments.iter().find(|(name, _)| *name == file) {
                        Some((_, bytes)) => attached = Some(*bytes),
                        None => {
                            return self.error(
                                line.len(),
                                format!(
                                    "expected a file of this patch after `from`, found {file:?}"
                                ),
                            );
                        }
                    }
                }
                "as" => match words.next() {
                    Some("c") => lang = Some(Lang::C),
                    Some("text") => lang = Some(Lang::Text),
                    other => {
                        let found = other.unwrap_or_default();
                        return self.error(
                            line.len(),
                            format!("expected `c` or `text` after `as`, found {found:?}"),
                        );
                    }
                },
                "except" | "unless" => {
                    let list = if word == "except" { &mut except } else { &mut unless };
                    while let Some(name) = words.next_if(|w| !KEYWORDS.contains(w)) {
                        list.push(name.to_string());
                    }
                }
                "with" | "and" | "or" => {
                    let (kind, value) = (words.next(), words.next());
                    let Some((kind, value)) = kind.zip(value) else {
                        return self.error(line.len(), "expected a condition: its kind and a name");
                    };
                    let value = value.trim_matches('"').trim_end_matches("()").to_string();
                    let condition = match kind {
                        "function" => Condition::Function(value),
                        "include" => Condition::Include(value),
                        "identifier" => Condition::Identifier(value),
                        "calls" => Condition::Calls(value),
                        "no-include" => Condition::NoInclude(value),
                        _ => {
                            return self.error(
                                line.find(kind).unwrap_or(0),
                                format!(
                                    "expected `function`, `include`, `identifier`, `calls` or \
                                     `no-include`, found {kind:?}"
                                ),
                            );
                        }
                    };
                    match with.last_mut().filter(|_| word == "or") {
                        Some(group) => group.push(condition),
                        None => with.push(vec![condition]),
                    }
                }
                name => names.push(name.to_string()),
            }
        }
        if names.is_empty() {
            return self.error(line.len(), "expected a file name");
        }
        let select = match verb {
            "create" => Select::Create { name: names.swap_remove(0), content: Vec::new() },
            "files" | "files?" => Select::Glob { globs: names, with, except, absent },
            _ => Select::Name { names, absent },
        };
        Ok(Header { select, attached, unless, when, lang })
    }

    /// The `+` lines of a created file.
    fn content(&mut self) -> Result<Vec<u8>, RuleError> {
        let mut content = Vec::new();
        while let Some(line) = self.lines.get(self.at) {
            let Some(text) = line.strip_prefix('+') else { break };
            content.extend_from_slice(self.substituted(text)?.as_bytes());
            content.push(b'\n');
            self.at += 1;
        }
        if content.is_empty() {
            return self.error(0, "expected the `+` lines of the new file");
        }
        Ok(content)
    }

    /// `text` with `${name}` replaced by its parameter.
    fn substituted(&self, text: &str) -> Result<String, RuleError> {
        let mut out = String::new();
        let mut rest = text;
        while let Some(start) = rest.find("${") {
            let Some(end) = rest[start..].find('}') else {
                return self.error(start, "expected `}` after `${`");
            };
            let name = &rest[start + 2..start + end];
            out.push_str(&rest[..start]);
            // A section whose parameter has no value is dropped after it was read.
            out.push_str(self.parameters.get(name).map_or("0", String::as_str));
            rest = &rest[start + end + 1..];
        }
        out.push_str(rest);
        Ok(out)
    }

    fn rules(&mut self, lang: Lang) -> Result<Vec<Rule>, RuleError> {
        let mut rules: Vec<Rule> = Vec::new();
        while let Some(line) = self.next() {
            if let Some(header) = line.strip_prefix("@@") {
                let head = self.rule_header(header)?;
                let line = self.at + 1;
                self.at += 1;
                let variants = vec![self.hunk(lang)?];
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
            } else if let Some(header) = line.strip_prefix("@&") {
                let head = self.rule_header(header)?;
                let Some(rule) = rules.last_mut() else {
                    return self.error(0, "expected `@@` first, found `@&`");
                };
                self.at += 1;
                let variants = vec![self.hunk(lang)?];
                rule.parts.push(Part { scope: head.scope, count: head.count, variants });
            } else if line.starts_with("@|") {
                let Some(part) = rules.last_mut().and_then(|r| r.parts.last_mut()) else {
                    return self.error(0, "expected `@@` first, found `@|`");
                };
                self.at += 1;
                part.variants.push(self.hunk(lang)?);
            } else if line.starts_with(['=', '!']) {
                let mark = if line.starts_with('=') { '=' } else { '!' };
                let pattern = self.post_condition(lang, mark)?;
                let Some(rule) = rules.last_mut() else {
                    return self.error(0, format!("expected `@@` first, found `{mark}`"));
                };
                match mark {
                    '=' => rule.done.push(pattern),
                    _ => rule.never.push(pattern),
                }
            } else if line.starts_with("file") || line.starts_with("create") {
                break;
            } else {
                return self.error(
                    0,
                    format!("expected `@@`, `@&`, `@|`, `=`, `!` or a new section, found {line:?}"),
                );
            }
        }
        if rules.is_empty() {
            return self.error(0, "expected `@@` and a rule");
        }
        if let Some(rule) = rules.iter().find(|r| r.done.is_empty() && r.never.is_empty()) {
            self.at = rule.line - 1;
            return self.error(0, "expected a post-condition (`=` or `!` lines) for this rule");
        }
        Ok(rules)
    }

    fn rule_header(&self, header: &str) -> Result<RuleHeader, RuleError> {
        let Some((head, title)) = header.split_once(':') else {
            return self.error(2, "expected `: TITLE` after the scope");
        };
        let mut words: Vec<&str> = head.split_whitespace().collect();
        let (mut count, mut purpose, mut together) = (Count::Once, Purpose::Make, false);
        let mut need = Need::Required;
        while let Some(last) = words.last() {
            match *last {
                "all" => count = Count::All,
                "any" => count = Count::Any,
                "together" => together = true,
                "optional" => need = Need::Optional,
                "repair" => purpose = Purpose::Repair,
                _ => break,
            }
            words.pop();
        }
        let scope = match words.as_slice() {
            [] => Scope::File,
            ["before", "includes"] => Scope::BeforeIncludes,
            ["after", "includes"] => Scope::AfterIncludes,
            ["at", "end"] => Scope::End,
            ["first", "line"] => Scope::FirstLine,
            ["in", "target", name] => Scope::Target((*name).to_string()),
            ["in", names @ ..] => Scope::Function(
                names
                    .iter()
                    .filter(|name| **name != "|")
                    .map(|name| name.trim_end_matches("()").to_string())
                    .collect(),
            ),
            other => {
                return self.error(
                    3,
                    format!(
                        "expected `in FUNCTION()`, `in target NAME`, `before includes`, \
                         `after includes`, `at end`, `first line`, `all`, `any`, `together`, `repair` or \
                         `optional`, found {:?}",
                        other.join(" ")
                    ),
                );
            }
        };
        Ok(RuleHeader { scope, count, purpose, need, together, title: title.trim().to_string() })
    }

    /// `?$name = a | b` lines.
    fn lets(&mut self, lang: Lang) -> Result<BTreeMap<String, Vec<Alternative>>, RuleError> {
        let mut lets = BTreeMap::new();
        while let Some(line) = self.lines.get(self.at).copied() {
            let Some(rest) = line.strip_prefix('?') else { break };
            let Some((name, values)) = rest.split_once('=') else {
                return self.error(1, "expected `?$name = a | b`");
            };
            let name = name.trim();
            let Some(name) = name.strip_prefix('$').filter(|n| !n.is_empty()) else {
                return self.error(1, format!("expected a metavariable `$name`, found {name:?}"));
            };
            let mut alternatives = Vec::new();
            for value in values.split(" | ") {
                let value = value.trim();
                alternatives.push(match value {
                    "<number>" => Alternative::Kind(Kind::Number),
                    "<string>" => Alternative::Kind(Kind::Str),
                    "<identifier>" => Alternative::Kind(Kind::Ident),
                    _ => {
                        let source = Source::new(lang, value.as_bytes());
                        if source.tokens.len() != 1 {
                            return self.error(
                                line.find(value).unwrap_or(0),
                                format!("expected one token, found {value:?}"),
                            );
                        }
                        Alternative::Token(source.tokens[0].kind, source.text(0).into_owned())
                    }
                });
            }
            lets.insert(name.to_string(), alternatives);
            self.at += 1;
        }
        Ok(lets)
    }

    fn hunk(&mut self, lang: Lang) -> Result<Hunk, RuleError> {
        let lets = self.lets(lang)?;
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
            lines.push(Line { mark, text, elements: begin..elements.len() });
            self.at += 1;
        }
        if lines.is_empty() {
            return self.error(0, "expected hunk lines that start with ' ', '-' or '+'");
        }
        if lines.iter().all(|l| l.mark == Mark::Context) {
            self.at = start;
            return self.error(0, "expected a `-` or `+` line in this hunk");
        }
        if matches!(elements.first(), Some(Element::Gap | Element::Run(_)))
            || matches!(elements.last(), Some(Element::Gap | Element::Run(_)))
        {
            self.at = start;
            return self.error(0, "a hunk may not start or end with a gap or a run");
        }
        for line in lines.iter().filter(|l| l.mark == Mark::Remove) {
            if line.elements.is_empty() {
                self.at = start;
                return self.error(1, "a removed line may not be empty");
            }
            if elements[line.elements.clone()].contains(&Element::Gap) {
                self.at = start;
                return self.error(1, "a removed line may not have a gap");
            }
        }
        self.check_variables(start, &lines, &elements)?;
        Ok(Hunk { lines, pattern: Pattern { elements, lets } })
    }

    /// Every metavariable of an added line must be bound by a matched one.
    fn check_variables(
        &mut self,
        start: usize,
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
                    self.at = start + i;
                    return self.error(1, format!("`{name}` is not bound by this hunk"));
                }
            }
        }
        Ok(())
    }

    fn post_condition(&mut self, lang: Lang, mark: char) -> Result<Pattern, RuleError> {
        let mut elements: Vec<Element> = Vec::new();
        let mut lets = BTreeMap::new();
        while let Some(line) = self.lines.get(self.at).copied() {
            let Some(text) = line.strip_prefix(mark) else { break };
            if text.starts_with('?') {
                self.lines[self.at] = text;
                lets.extend(self.lets(lang)?);
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
            return self.error(0, format!("expected a pattern after `{mark}`"));
        }
        Ok(Pattern { elements, lets })
    }

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
            } else if spelled.starts_with('$') && lang == Lang::C {
                return self.error(
                    token.span.start + 1,
                    format!(
                        "expected `$name` or `$$name` with a lower-case name, found {spelled:?}"
                    ),
                );
            } else {
                elements.push(Element::Token(token.kind, bytes.into_owned()));
            }
        }
        Ok(elements)
    }
}

fn lang_of(select: &Select) -> Lang {
    match select {
        Select::Name { names, .. } => Lang::of(&names[0]),
        Select::Glob { globs, .. } => Lang::of(&globs[0]),
        Select::Create { .. } => Lang::Text,
    }
}

/// The name in `$name` or `$$name`.
fn variable(word: &str) -> Option<&str> {
    let name = word.strip_prefix("$$").or_else(|| word.strip_prefix('$'))?;
    let ok = name.starts_with(|c: char| c.is_ascii_lowercase())
        && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_');
    ok.then_some(name)
}

/// A piece of an added line.
#[derive(Debug, PartialEq, Eq)]
pub enum Piece<'a> {
    /// Written as it stands.
    Text(&'a str),
    /// Replaced by what the metavariable is bound to.
    Variable(&'a str),
}

/// Split an added line at its metavariables.
#[must_use]
pub fn pieces(text: &str) -> Vec<Piece<'_>> {
    let mut pieces = Vec::new();
    let mut plain = 0;
    let mut at = 0;
    while let Some(offset) = text[at..].find('$') {
        let start = at + offset;
        let dollars = text[start..].bytes().take_while(|&b| b == b'$').count().min(2);
        let len = text[start + dollars..]
            .bytes()
            .take_while(|&b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
            .count();
        let end = start + dollars + len;
        match variable(&text[start..end]) {
            Some(name) => {
                if plain < start {
                    pieces.push(Piece::Text(&text[plain..start]));
                }
                pieces.push(Piece::Variable(name));
                plain = end;
                at = end;
            }
            None => at = start + dollars,
        }
    }
    if plain < text.len() {
        pieces.push(Piece::Text(&text[plain..]));
    }
    pieces
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
        let rule = &patch.sections[0].rules[0];
        assert_eq!(rule.title, "title");
        assert_eq!(rule.parts[0].scope, Scope::Function(vec!["f".into(), "g".into()]));
        let hunk = &rule.parts[0].variants[0];
        assert_eq!(hunk.lines.len(), 4);
        assert_eq!(hunk.pattern.elements.len(), 7);
        assert_eq!(hunk.pattern.lets["n"].len(), 2);
        assert_eq!(rule.done.len(), 1);
    }

    #[test]
    fn errors_have_line_and_column() {
        for (text, want) in [
            ("", "test.rule:1:1: expected a `file` or `create` line, found the end of the file"),
            ("fill a.c\n", "test.rule:1:1: expected `file`, `files` or `create`, found \"fill\""),
            ("file a.c\n@@ in f()\n", "test.rule:2:3: expected `: TITLE` after the scope"),
            (
                "file a.c\n@@ : t\n-x\n+y\n",
                "test.rule:2:1: expected a post-condition (`=` or `!` lines) for this rule",
            ),
            (
                "file a.c\n@@ : t\n x\n=y\n",
                "test.rule:3:1: expected a `-` or `+` line in this hunk",
            ),
            ("file a.c\n@@ : t\n-x\n+$y\n=y\n", "test.rule:4:2: `y` is not bound by this hunk"),
            (
                "file a.c\n@@ : t\n ...\n-x\n=y\n",
                "test.rule:3:1: a hunk may not start or end with a gap or a run",
            ),
            (
                "file a.c\n@@ : t\n-$X\n=y\n",
                "test.rule:3:2: expected `$name` or `$$name` with a lower-case name, found \"$X\"",
            ),
        ] {
            assert_eq!(patch(text).unwrap_err(), want, "{text}");
        }
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
        assert_eq!(patch.sections[0].rules[0].parts[0].variants[0].lines[1].text, "1000");
    }
}
