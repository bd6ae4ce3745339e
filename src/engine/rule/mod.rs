//! Rule files: what a patch matches and what it writes.
//!
//! `patches/README.md` documents the language and its grammar.

#![forbid(unsafe_code)]

mod parse;

use std::collections::BTreeMap;
use std::fmt;

use crate::engine::lex::{Lang, TokenKind};

pub use parse::parse;

/// One patch: rules that together make one thing true of a tree.
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
    /// The files that it changes or creates.
    pub select: Select,
    /// The section is skipped if the tree has one of these files.
    pub unless: Vec<String>,
    /// What `as` says; see [`Section::lang`].
    pub written_lang: Option<Lang>,
    /// The section is skipped if this parameter has no value.
    pub when: Option<String>,
    /// What it does to each of its files.
    pub work: Action,
    /// Line of the rule file.
    pub line: usize,
}

impl Section {
    /// Returns how its rules, and all files that they are for, are split into tokens. The parser has made sure that its
    /// names agree.
    #[must_use]
    pub fn lang(&self) -> Lang {
        self.written_lang.unwrap_or_else(|| Lang::of(&self.select.names[0]))
    }

    /// Returns its rules; none for a section that creates a file or refuses a tree.
    #[must_use]
    pub fn rules(&self) -> &[Rule] {
        match &self.work {
            Action::Rules(rules) => rules,
            Action::Create(_) | Action::Refuse(_) => &[],
        }
    }
}

/// What a section does.
#[derive(Clone, Debug)]
pub enum Action {
    /// Change each file of the selection.
    Rules(Vec<Rule>),
    /// Write a new file with these bytes. The selection has one name.
    Create(Vec<u8>),
    /// Refuse the patch, for this reason, if the tree has such a file.
    Refuse(String),
}

/// The files of a tree that a section is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Select {
    /// Names, or name patterns with at most one `*`.
    pub names: Vec<String>,
    /// Whether it takes one file or all of them.
    pub reach: Reach,
    /// Conditions: of each group, at least one must hold.
    pub with: Vec<Vec<Condition>>,
    /// Names that are left out.
    pub except: Vec<String>,
    /// What it means if there is no such file.
    pub absent: Absent,
}

/// How many of the files that meet the conditions a selection takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// The first one, in the order of the names.
    First,
    /// Each of them.
    All,
}

/// What it means if a section finds no file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Absent {
    /// The patch does not fit.
    Error,
    /// The section has nothing to do.
    Skip,
}

/// A condition on a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Condition {
    /// It defines this function.
    Function(String),
    /// It includes this header, directly or through headers of the tree.
    Include(String),
    /// It has this identifier outside of comments, itself or in a header of the tree that it
    /// includes.
    Identifier(String),
    /// It calls or defines this function.
    Calls(String),
    /// It includes this header neither directly nor through headers of the tree.
    NoInclude(String),
}

/// Writes the condition for people: `defines docmd()`.
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

/// One change, with its post-condition.
#[derive(Clone, Debug)]
pub struct Rule {
    /// What it makes true, in words for people.
    pub title: String,
    /// Line of the rule file.
    pub line: usize,
    /// Whether it changes one protocol together with the other rules that have this mark: a tree
    /// has either all of them or none.
    pub together: bool,
    /// Whether the change is missing, or there and wrong.
    pub purpose: Purpose,
    /// What it means if the rule does not fit.
    pub need: Need,
    /// Applied together, each in its own scope.
    pub parts: Vec<RulePart>,
    /// Post-condition: one of these must match. If the list is empty, only `never` counts.
    pub done: Vec<Pattern>,
    /// Post-condition: none of these may match.
    pub never: Vec<Pattern>,
}

/// A place in a file, and the ways in which the code there may be written.
#[derive(Clone, Debug)]
pub struct RulePart {
    /// Where to look.
    pub scope: Scope,
    /// How often it must match.
    pub count: Count,
    /// Tried in order; the first that matches is used.
    pub variants: Vec<Hunk>,
}

/// The part of a file in which a pattern is matched.
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
    /// Once or more; each match is changed.
    All,
    /// Any number of times, or not at all.
    Any,
}

/// What a rule is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// The change is missing.
    Make,
    /// The change is there, but it is known to be wrong.
    Repair,
}

/// What it means if a rule does not fit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// The patch does not fit.
    Required,
    /// The tree goes without the change, for example without a sentence in a manual page.
    Optional,
}

/// Lines to match and to write: one way in which the code may be written.
#[derive(Clone, Debug)]
pub struct Hunk {
    /// For a further variant, the text after `@|`; else empty.
    pub title: String,
    /// In order.
    pub lines: Vec<HunkLine>,
    /// What the context and removed lines match.
    pub pattern: Pattern,
}

/// The first column of a hunk line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LineMark {
    /// Matched and kept.
    Context,
    /// Matched and removed.
    Remove,
    /// Written.
    Add,
}

/// A line of a hunk.
#[derive(Clone, Debug)]
pub struct HunkLine {
    /// Context, removed or added.
    pub mark: LineMark,
    /// Its text without the mark.
    pub text: String,
    /// For context and removed lines: the range of its elements in [`Hunk::pattern`].
    pub elements: std::ops::Range<usize>,
    /// Line of the rule file.
    pub line: usize,
}

impl Hunk {
    /// Returns the hunk line that has the element `element` of the pattern.
    #[must_use]
    pub fn line_of(&self, element: usize) -> Option<&HunkLine> {
        // The element between two lines of a text hunk counts as the end of the first line.
        self.lines.iter().find(|l| element < l.elements.end && l.mark != LineMark::Add)
    }
}

/// A sequence of elements to match against tokens.
#[derive(Clone, Debug, Default)]
pub struct Pattern {
    /// In order.
    pub elements: Vec<Element>,
    /// The values that a metavariable may have.
    pub lets: BTreeMap<String, Vec<Alternative>>,
}

/// One element of a pattern.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Element {
    /// This token.
    Token(TokenKind, Vec<u8>),
    /// `$name`: any one token; the same token wherever the name is used.
    Variable(String),
    /// `$$name`: a run of tokens in which brackets balance; the shortest that fits.
    Run(String),
    /// `...`: any tokens; the fewest that fit.
    Gap,
}

/// A value that a metavariable may have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Alternative {
    /// This token.
    Token(TokenKind, Vec<u8>),
    /// Any token of this kind.
    Kind(TokenKind),
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

/// Values for `${name}` in a rule file. A section with `when name` is skipped if `name` has no
/// value.
pub type Parameters = BTreeMap<String, String>;

/// The known parameters: the `N` of `--spawn N`, and what qpatch finds out about a tree.
pub const PARAMETERS: [&str; 5] =
    ["spawn", "old-style", "definitions-in-headers", "flags-from-elsewhere", "binds-outgoing"];

/// Files that a patch has beside its rule file, by name. `create NAME from FILE` takes one.
pub type Attachments<'a> = [(&'a str, &'a [u8])];

/// Returns the name in `$name` or `$$name`.
fn variable(word: &str) -> Option<&str> {
    let name = word.strip_prefix("$$").or_else(|| word.strip_prefix('$'))?;
    let ok = name.starts_with(|c: char| c.is_ascii_lowercase())
        && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_');
    ok.then_some(name)
}

/// A piece of an added line.
#[derive(Debug, PartialEq, Eq)]
pub enum LinePiece<'a> {
    /// Written as it stands.
    Text(&'a str),
    /// Replaced by the metavariable's value.
    Variable(&'a str),
}

/// Splits an added line at its metavariables.
#[must_use]
pub fn pieces(text: &str) -> Vec<LinePiece<'_>> {
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
                    pieces.push(LinePiece::Text(&text[plain..start]));
                }
                pieces.push(LinePiece::Variable(name));
                plain = end;
                at = end;
            }
            None => at = start + dollars,
        }
    }
    if plain < text.len() {
        pieces.push(LinePiece::Text(&text[plain..]));
    }
    pieces
}
