//! Parses the shell's language, as far as a start script needs it: words with quotes and variables, and which
//! commands run after which, under which conditions. Also parses the language of execline and nosh, which is one
//! command in blocks.
//!
//! A script that is not understood is not an error: what the parser does not know becomes an unknown command.
#![forbid(unsafe_code)]

mod chain;
mod lexer;
mod parser;

use std::rc::Rc;

pub use chain::{ChainItem, parse_chain};
pub use parser::parse;

/// A shell. Their ulimit commands differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shell {
    /// Debian's sh.
    Dash,
    /// The sh of most other systems.
    Bash,
    /// ksh93.
    Ksh,
    /// zsh.
    Zsh,
    /// The sh of Alpine and of rescue systems.
    Busybox,
    /// csh and tcsh, which have `limit`.
    Csh,
    /// One that could not be seen.
    Unknown,
}

impl Shell {
    /// Returns the shell with this name.
    pub fn named(name: &str) -> Option<Shell> {
        Some(match name {
            "dash" => Shell::Dash,
            "bash" => Shell::Bash,
            "ksh" | "ksh93" | "mksh" | "pdksh" => Shell::Ksh,
            "zsh" => Shell::Zsh,
            "busybox" | "ash" => Shell::Busybox,
            "csh" | "tcsh" => Shell::Csh,
            "sh" => Shell::Unknown,
            _ => return None,
        })
    }
}

/// A part of a word.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Piece {
    /// Its kind.
    pub kind: PieceKind,
    /// As it is written, without quotes.
    pub text: String,
    /// Whether it stands in quotes.
    pub quoted: bool,
}

/// The kind of a part of a word.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PieceKind {
    /// Plain text.
    Plain,
    /// The value of a variable, and its default if it has none.
    Variable(String, Option<String>),
    /// The output of a command, or anything else that only the running shell knows.
    Dynamic,
}

/// A word.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Word {
    /// Its parts.
    pub pieces: Vec<Piece>,
    /// The line, from 1.
    pub line: usize,
    /// Where in the line it starts, in bytes.
    pub column: usize,
}

impl Word {
    /// Returns the word, if it has neither quotes nor variables.
    pub fn bare(&self) -> Option<&str> {
        match self.pieces.as_slice() {
            [Piece { kind: PieceKind::Plain, text, quoted: false }] => Some(text),
            _ => None,
        }
    }

    /// Returns the name and the value, if the word is an assignment.
    pub fn assignment(&self) -> Option<(&str, Word)> {
        let (first, rest) = self.pieces.split_first()?;
        if first.quoted || first.kind != PieceKind::Plain {
            return None;
        }
        let (name, value) = first.text.split_once('=')?;
        let name = name.strip_suffix('+').unwrap_or(name);
        if !is_name(name) {
            return None;
        }
        let mut pieces = vec![Piece { text: value.to_owned(), ..first.clone() }];
        pieces.extend_from_slice(rest);
        Some((name, Word { pieces, line: self.line, column: self.column + name.len() + 1 }))
    }
}

/// Returns whether this can be the name of a variable.
pub fn is_name(text: &str) -> bool {
    let mut bytes = text.bytes();
    bytes.next().is_some_and(|byte| byte.is_ascii_alphabetic() || byte == b'_')
        && bytes.all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
}

/// Commands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Node {
    /// One command, with its assignments.
    Simple(Vec<Word>),
    /// Commands that run one after the other.
    Sequence(Vec<Node>),
    /// A command, and others that run if the one before succeeds (true) or fails (false).
    Chain(Box<Node>, Vec<(bool, Node)>),
    /// Commands that change nothing for those after them: a subshell, a part of a pipe.
    Apart(Box<Node>),
    /// One of these branches, or none. Each has a condition, which runs first.
    Branches(Vec<(Node, Node)>),
    /// One of these branches. The last one has no condition.
    Either(Vec<(Node, Node)>, Box<Node>),
    /// A condition and a body, which runs any number of times.
    Loop(Box<Node>, Box<Node>),
    /// The definition of a function: its name and its body.
    Function(String, Rc<Node>),
}
