//! The shell's language, as far as it matters for what a start script runs: words with their quotes and variables, and
//! which commands run after which, under which conditions. And execline's and nosh's, which is one command in blocks.
//!
//! A script that is not understood is no error: what the parser cannot place becomes a command that nobody knows.
#![forbid(unsafe_code)]

mod chain;
mod lexer;
mod parser;

use std::rc::Rc;

pub use chain::{ChainItem, parse_chain};
pub use parser::parse;

/// A shell, as far as its ulimit differs.
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
    /// That of Alpine and of rescue systems.
    Busybox,
    /// csh and tcsh, which have `limit`.
    Csh,
    /// One that could not be seen.
    Unknown,
}

impl Shell {
    /// By its name.
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
    /// What it is.
    pub kind: PieceKind,
    /// As it is written, without quotes.
    pub text: String,
    /// Between quotes.
    pub quoted: bool,
}

/// What a part of a word is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PieceKind {
    /// Itself.
    Plain,
    /// A variable's value, and what stands for it if it has none.
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
    /// The word, if it has neither quotes nor variables.
    pub fn bare(&self) -> Option<&str> {
        match self.pieces.as_slice() {
            [Piece { kind: PieceKind::Plain, text, quoted: false }] => Some(text),
            _ => None,
        }
    }

    /// The name and the first part of the value, if the word is an assignment.
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

/// Returns whether this can be a variable's name.
pub fn is_name(text: &str) -> bool {
    let mut bytes = text.bytes();
    bytes.next().is_some_and(|byte| byte.is_ascii_alphabetic() || byte == b'_')
        && bytes.all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
}

/// Commands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Node {
    /// One command, with what it is assigned.
    Simple(Vec<Word>),
    /// One after the other.
    Sequence(Vec<Node>),
    /// The second one if the first one succeeds (true) or fails (false).
    Chain(Box<Node>, Vec<(bool, Node)>),
    /// What changes nothing for what comes after it: a subshell, a part of a pipe.
    Apart(Box<Node>),
    /// One of these, or none of them. Each has a condition, which is run first.
    Branches(Vec<(Node, Node)>),
    /// Always one of these; the last one is without a condition.
    Either(Vec<(Node, Node)>, Box<Node>),
    /// Perhaps, and perhaps several times.
    Loop(Box<Node>, Box<Node>),
    /// A function's body.
    Function(String, Rc<Node>),
}
