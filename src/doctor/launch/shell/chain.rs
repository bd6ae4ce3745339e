//! Parses the language of execline and nosh: one command in blocks.
#![forbid(unsafe_code)]

use super::lexer::{DEPTH_MAX, Lexer, beginning};
use super::{Piece, PieceKind, Word};

/// A part of a script of execline or nosh.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ChainItem {
    /// A word.
    Word(Word),
    /// A block.
    Block(Vec<ChainItem>),
}

/// Parses a script of execline or nosh, which is one command line.
pub fn parse_chain(text: &str) -> Vec<ChainItem> {
    let text = beginning(text);
    let mut lexer = Lexer { text, at: 0, line: 1, line_start: 0 };
    let mut open: Vec<Vec<ChainItem>> = vec![Vec::new()];
    while let Some(next) = lexer.peek() {
        if next.is_whitespace() {
            lexer.step();
            continue;
        }
        if next == '#' {
            while lexer.peek().is_some_and(|c| c != '\n') {
                lexer.step();
            }
            continue;
        }
        let word = lexer.chain_word();
        match word.bare() {
            Some("{") if open.len() < DEPTH_MAX => open.push(Vec::new()),
            Some("}") if open.len() > 1 => {
                let block = open.pop().unwrap_or_default();
                if let Some(outer) = open.last_mut() {
                    outer.push(ChainItem::Block(block));
                }
            }
            _ => {
                if let Some(current) = open.last_mut() {
                    current.push(ChainItem::Word(word));
                }
            }
        }
    }
    while open.len() > 1 {
        let block = open.pop().unwrap_or_default();
        if let Some(outer) = open.last_mut() {
            outer.push(ChainItem::Block(block));
        }
    }
    open.pop().unwrap_or_default()
}

impl Lexer<'_> {
    fn chain_word(&mut self) -> Word {
        let (line, column) = (self.line, self.at - self.line_start);
        let mut text = String::new();
        let mut quoted = false;
        let mut pieces = Vec::new();
        let close = |text: &mut String, pieces: &mut Vec<Piece>, quoted: bool| {
            if !text.is_empty() || quoted {
                pieces.push(Piece { kind: PieceKind::Plain, text: std::mem::take(text), quoted });
            }
        };
        let mut any_quotes = false;
        while let Some(next) = self.peek() {
            if !quoted && next.is_whitespace() {
                break;
            }
            self.step();
            match next {
                '"' => {
                    any_quotes = true;
                    quoted = !quoted;
                }
                '\\' => {
                    any_quotes = true;
                    text.extend(self.step());
                }
                '$' => {
                    close(&mut text, &mut pieces, any_quotes);
                    pieces.push(self.dollar(true));
                }
                c => text.push(c),
            }
        }
        let is_empty = any_quotes && pieces.is_empty();
        close(&mut text, &mut pieces, is_empty);
        Word { pieces, line, column }
    }
}
