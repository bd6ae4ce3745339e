//! Splits a script into tokens of the shell's language.
#![forbid(unsafe_code)]

use super::{Piece, PieceKind, Word, is_name};

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Token {
    Word(Word),
    Operator(&'static str),
    Newline,
}

pub(super) struct Lexer<'t> {
    pub(super) text: &'t str,
    pub(super) at: usize,
    pub(super) line: usize,
    pub(super) line_start: usize,
}

const OPERATORS: [&str; 24] = [
    "<<<", "<<-", ";;&", "&>>", "&&", "||", ";;", ";&", "<<", ">>", "<&", ">&", "<>", ">|", "&>",
    "|&", ";", "&", "|", "(", ")", "<", ">", "\n",
];

pub(super) fn tokens(text: &str) -> Vec<Token> {
    let text = beginning(text);
    let mut lexer = Lexer { text, at: 0, line: 1, line_start: 0 };
    let mut found = Vec::new();
    // The words that end the open here-documents, and whether tabs may stand before each.
    let mut documents: Vec<(String, bool)> = Vec::new();
    while let Some(next) = lexer.peek() {
        if matches!(next, ' ' | '\t' | '\r') {
            lexer.step();
        } else if lexer.rest().starts_with("\\\n") {
            lexer.step();
            lexer.step();
        } else if next == '#' {
            while lexer.peek().is_some_and(|c| c != '\n') {
                lexer.step();
            }
        } else if (lexer.rest().starts_with("<(") || lexer.rest().starts_with(">("))
            || !OPERATORS.iter().any(|operator| lexer.rest().starts_with(operator))
        {
            let word = lexer.word();
            let document = match found.last() {
                Some(Token::Operator(operator @ ("<<" | "<<-"))) => Some(*operator == "<<-"),
                _ => None,
            };
            if let Some(tabs) = document {
                documents
                    .push((word.pieces.iter().map(|piece| piece.text.as_str()).collect(), tabs));
            }
            found.push(Token::Word(word));
        } else {
            let rest = lexer.rest();
            let operator =
                OPERATORS.into_iter().find(|operator| rest.starts_with(operator)).unwrap_or(";");
            for _ in 0..operator.len() {
                lexer.step();
            }
            if operator == "\n" {
                found.push(Token::Newline);
                for (end, tabs) in documents.drain(..) {
                    lexer.skip_document(&end, tabs);
                }
            } else {
                found.push(Token::Operator(operator));
            }
        }
    }
    found
}

impl Lexer<'_> {
    pub(super) fn rest(&self) -> &str {
        &self.text[self.at..]
    }

    pub(super) fn peek(&self) -> Option<char> {
        self.rest().chars().next()
    }

    pub(super) fn step(&mut self) -> Option<char> {
        let next = self.peek()?;
        self.at += next.len_utf8();
        if next == '\n' {
            self.line += 1;
            self.line_start = self.at;
        }
        Some(next)
    }

    fn skip_document(&mut self, end: &str, tabs: bool) {
        while !self.rest().is_empty() {
            let line = self.rest().split('\n').next().unwrap_or_default();
            let line = if tabs { line.trim_start_matches('\t') } else { line };
            let is_end = line.trim_end_matches('\r') == end;
            while self.step().is_some_and(|c| c != '\n') {}
            if is_end {
                break;
            }
        }
    }

    pub(super) fn word(&mut self) -> Word {
        let (line, column) = (self.line, self.at - self.line_start);
        let mut pieces: Vec<Piece> = Vec::new();
        let plain = |pieces: &mut Vec<Piece>, c: Option<char>, quoted: bool| match pieces.last_mut()
        {
            Some(Piece { kind: PieceKind::Plain, text, quoted: same }) if *same == quoted => {
                text.extend(c);
            }
            _ => {
                pieces.push(Piece {
                    kind: PieceKind::Plain,
                    text: c.into_iter().collect(),
                    quoted,
                });
            }
        };
        let start = self.at;
        while let Some(next) = self.peek() {
            let substitution = self.rest().starts_with("<(") || self.rest().starts_with(">(");
            if !substitution && (next.is_whitespace() || "|&;()<>".contains(next)) {
                if self.at == start {
                    // Always make progress.
                    self.step();
                }
                break;
            }
            self.step();
            match next {
                '<' | '>' => {
                    self.step();
                    pieces.push(self.dynamic(next, ')', false));
                }
                '\\' => match self.step() {
                    Some('\n') | None => {}
                    c => plain(&mut pieces, c, true),
                },
                '\'' => {
                    plain(&mut pieces, None, true);
                    while let Some(c) = self.step().filter(|c| *c != '\'') {
                        plain(&mut pieces, Some(c), true);
                    }
                }
                '"' => {
                    plain(&mut pieces, None, true);
                    while let Some(c) = self.step().filter(|c| *c != '"') {
                        match c {
                            '\\' => match self.step() {
                                Some('\n') | None => {}
                                Some(c @ ('"' | '\\' | '$' | '`')) => {
                                    plain(&mut pieces, Some(c), true);
                                }
                                c => {
                                    plain(&mut pieces, Some('\\'), true);
                                    plain(&mut pieces, c, true);
                                }
                            },
                            '$' => pieces.push(self.dollar(true)),
                            '`' => pieces.push(self.dynamic('`', '`', true)),
                            c => plain(&mut pieces, Some(c), true),
                        }
                    }
                }
                '$' if self.peek() == Some('\'') => {}
                '$' => pieces.push(self.dollar(false)),
                '`' => pieces.push(self.dynamic('`', '`', false)),
                c => plain(&mut pieces, Some(c), false),
            }
        }
        Word { pieces, line, column }
    }

    /// Reads up to `close`; `open` has been read.
    fn dynamic(&mut self, open: char, close: char, quoted: bool) -> Piece {
        let mut text = String::from(open);
        if open != '`' {
            text.push('(');
        }
        let mut depth = 1;
        while let Some(c) = self.step() {
            text.push(c);
            match c {
                '\\' => text.extend(self.step()),
                '\'' if open != '`' => {
                    while let Some(c) = self.step() {
                        text.push(c);
                        if c == '\'' {
                            break;
                        }
                    }
                }
                '(' if close == ')' => depth += 1,
                c if c == close => {
                    depth -= 1;
                    if depth == 0 {
                        break;
                    }
                }
                _ => {}
            }
        }
        Piece { kind: PieceKind::Dynamic, text, quoted }
    }

    /// Reads what follows a dollar sign.
    pub(super) fn dollar(&mut self, quoted: bool) -> Piece {
        match self.peek() {
            Some('(') => {
                self.step();
                self.dynamic('$', ')', quoted)
            }
            Some('{') => {
                let mut text = String::from("${");
                self.step();
                let mut depth = 1;
                while let Some(c) = self.step() {
                    text.push(c);
                    match c {
                        '{' => depth += 1,
                        '}' => depth -= 1,
                        _ => {}
                    }
                    if depth == 0 {
                        break;
                    }
                }
                let inner = text[2..].trim_end_matches('}');
                let name: String =
                    inner.chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '_').collect();
                let rest = &inner[name.len()..];
                let default = [":-", ":=", "-", "="]
                    .iter()
                    .find_map(|how| rest.strip_prefix(how))
                    .map(str::to_owned);
                let kind = if is_name(&name) && (rest.is_empty() || default.is_some()) {
                    PieceKind::Variable(name, default)
                } else {
                    PieceKind::Dynamic
                };
                Piece { kind, text, quoted }
            }
            Some(c) if c.is_ascii_alphabetic() || c == '_' => {
                let mut name = String::new();
                while let Some(c) = self.peek().filter(|c| c.is_ascii_alphanumeric() || *c == '_') {
                    name.push(c);
                    self.step();
                }
                let text = format!("${name}");
                Piece { kind: PieceKind::Variable(name, None), text, quoted }
            }
            Some(c) if c.is_ascii_digit() || "$?!#@*-".contains(c) => {
                self.step();
                Piece { kind: PieceKind::Dynamic, text: format!("${c}"), quoted }
            }
            _ => Piece { kind: PieceKind::Plain, text: "$".to_owned(), quoted },
        }
    }
}

/// The longest script that is read, in bytes. The rest is ignored.
const TEXT_MAX: usize = 1 << 20;

/// The most blocks within blocks.
pub(super) const DEPTH_MAX: usize = 60;

/// Returns the part of a script that is read.
pub(super) fn beginning(text: &str) -> &str {
    let mut end = text.len().min(TEXT_MAX);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_is_read_than_the_longest_script_has() {
        for text in ["a".repeat(TEXT_MAX + 9), format!("a{}", "é".repeat(TEXT_MAX))] {
            assert!((TEXT_MAX - 1..=TEXT_MAX).contains(&beginning(&text).len()));
        }
        assert_eq!(beginning("é"), "é");
    }
}
