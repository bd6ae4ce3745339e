//! The shell's language, as far as it matters for what a start script runs: words with their quotes and variables, and
//! which commands run after which, under which conditions. And execline's and nosh's, which is one command in blocks.
//!
//! A script that is not understood is no error: what the parser cannot place becomes a command that nobody knows.
#![forbid(unsafe_code)]

use std::rc::Rc;

/// A part of a word.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Piece {
    /// What it is.
    pub kind: Kind,
    /// As it is written, without quotes.
    pub text: String,
    /// Between quotes.
    pub quoted: bool,
}

/// What a part of a word is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
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
            [Piece { kind: Kind::Plain, text, quoted: false }] => Some(text),
            _ => None,
        }
    }

    /// The name and the first part of the value, if the word is an assignment.
    pub fn assignment(&self) -> Option<(&str, Word)> {
        let (first, rest) = self.pieces.split_first()?;
        if first.quoted || first.kind != Kind::Plain {
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

/// Whether this can be a variable's name.
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

#[derive(Debug, Clone, PartialEq, Eq)]
enum Token {
    Word(Word),
    Operator(&'static str),
    Newline,
}

/// Nobody writes a script that is longer, in bytes.
const TEXT_MAX: usize = 1 << 20;

/// Blocks in blocks.
const DEPTH_MAX: usize = 60;

/// As much of a script as is read.
fn beginning(text: &str) -> &str {
    let mut end = text.len().min(TEXT_MAX);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

/// Reads a script.
pub fn parse(text: &str) -> Node {
    let mut parser = Parser { tokens: tokens(text), at: 0, depth: 0 };
    let mut nodes = Vec::new();
    while parser.at < parser.tokens.len() {
        let before = parser.at;
        nodes.push(parser.list(&[]));
        if parser.at == before {
            // A word that ends a block which nobody has begun.
            parser.at += 1;
        }
    }
    Node::Sequence(nodes)
}

struct Lexer<'t> {
    text: &'t str,
    at: usize,
    line: usize,
    line_start: usize,
}

const OPERATORS: [&str; 24] = [
    "<<<", "<<-", ";;&", "&>>", "&&", "||", ";;", ";&", "<<", ">>", "<&", ">&", "<>", ">|", "&>",
    "|&", ";", "&", "|", "(", ")", "<", ">", "\n",
];

fn tokens(text: &str) -> Vec<Token> {
    let text = beginning(text);
    let mut lexer = Lexer { text, at: 0, line: 1, line_start: 0 };
    let mut found = Vec::new();
    // Of here-documents: the words that end them, and whether tabs may stand before.
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
    fn rest(&self) -> &str {
        &self.text[self.at..]
    }

    fn peek(&self) -> Option<char> {
        self.rest().chars().next()
    }

    fn step(&mut self) -> Option<char> {
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

    fn word(&mut self) -> Word {
        let (line, column) = (self.line, self.at - self.line_start);
        let mut pieces: Vec<Piece> = Vec::new();
        let plain = |pieces: &mut Vec<Piece>, c: Option<char>, quoted: bool| match pieces.last_mut()
        {
            Some(Piece { kind: Kind::Plain, text, quoted: same }) if *same == quoted => {
                text.extend(c);
            }
            _ => pieces.push(Piece { kind: Kind::Plain, text: c.into_iter().collect(), quoted }),
        };
        let start = self.at;
        while let Some(next) = self.peek() {
            let substitution = self.rest().starts_with("<(") || self.rest().starts_with(">(");
            if !substitution && (next.is_whitespace() || "|&;()<>".contains(next)) {
                if self.at == start {
                    // Never without progress.
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

    /// What stands between `open`, which has been read, and its end.
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
        Piece { kind: Kind::Dynamic, text, quoted }
    }

    /// What comes after a dollar sign.
    fn dollar(&mut self, quoted: bool) -> Piece {
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
                    Kind::Variable(name, default)
                } else {
                    Kind::Dynamic
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
                Piece { kind: Kind::Variable(name, None), text, quoted }
            }
            Some(c) if c.is_ascii_digit() || "$?!#@*-".contains(c) => {
                self.step();
                Piece { kind: Kind::Dynamic, text: format!("${c}"), quoted }
            }
            _ => Piece { kind: Kind::Plain, text: "$".to_owned(), quoted },
        }
    }
}

struct Parser {
    tokens: Vec<Token>,
    at: usize,
    depth: usize,
}

impl Parser {
    fn reserved(&self) -> Option<&str> {
        match self.tokens.get(self.at)? {
            Token::Word(word) => word.bare(),
            _ => None,
        }
    }

    fn is_operator(&self, wanted: &str) -> bool {
        matches!(self.tokens.get(self.at), Some(Token::Operator(operator)) if *operator == wanted)
    }

    fn skip_newlines(&mut self) {
        while matches!(self.tokens.get(self.at), Some(Token::Newline)) {
            self.at += 1;
        }
    }

    /// Commands up to one of the words of `ends`, a `)` or the end of a case, which are left.
    fn list(&mut self, ends: &[&str]) -> Node {
        let mut nodes = Vec::new();
        self.depth += 1;
        while self.at < self.tokens.len() && self.depth < DEPTH_MAX {
            match self.tokens.get(self.at) {
                Some(Token::Newline | Token::Operator(";" | "&")) => self.at += 1,
                Some(Token::Operator(")" | ";;" | ";&" | ";;&")) | None => break,
                Some(_) if self.reserved().is_some_and(|word| ends.contains(&word)) => break,
                Some(_) => {
                    let before = self.at;
                    let node = self.chain();
                    // What runs in the background changes nothing for the rest.
                    nodes.push(if self.is_operator("&") {
                        Node::Apart(Box::new(node))
                    } else {
                        node
                    });
                    if self.at == before {
                        self.at += 1;
                    }
                }
            }
        }
        self.depth -= 1;
        Node::Sequence(nodes)
    }

    fn chain(&mut self) -> Node {
        let first = self.pipe();
        let mut rest = Vec::new();
        loop {
            let on_success = match self.tokens.get(self.at) {
                Some(Token::Operator("&&")) => true,
                Some(Token::Operator("||")) => false,
                _ => break,
            };
            self.at += 1;
            self.skip_newlines();
            rest.push((on_success, self.pipe()));
        }
        if rest.is_empty() { first } else { Node::Chain(Box::new(first), rest) }
    }

    fn pipe(&mut self) -> Node {
        if self.reserved() == Some("!") {
            self.at += 1;
        }
        let first = self.command();
        let mut parts = vec![first];
        while self.is_operator("|") || self.is_operator("|&") {
            self.at += 1;
            self.skip_newlines();
            parts.push(self.command());
        }
        match parts.len() {
            1 => parts.remove(0),
            _ => {
                Node::Sequence(parts.into_iter().map(|part| Node::Apart(Box::new(part))).collect())
            }
        }
    }

    fn redirection(&mut self) -> bool {
        let Some(Token::Operator(operator)) = self.tokens.get(self.at) else { return false };
        if !operator.starts_with(['<', '>']) && !operator.starts_with("&>") {
            return false;
        }
        self.at += 1;
        if matches!(self.tokens.get(self.at), Some(Token::Word(_))) {
            self.at += 1;
        }
        true
    }

    fn command(&mut self) -> Node {
        if self.is_operator("(") {
            self.at += 1;
            let inner = self.list(&[]);
            if self.is_operator(")") {
                self.at += 1;
            }
            while self.redirection() {}
            return Node::Apart(Box::new(inner));
        }
        let node = match self.reserved() {
            Some("{") => {
                self.at += 1;
                let inner = self.list(&["}"]);
                self.end("}");
                inner
            }
            Some("if") => self.conditional(),
            Some("while" | "until") => {
                self.at += 1;
                let condition = self.list(&["do"]);
                self.end("do");
                let body = self.list(&["done"]);
                self.end("done");
                Node::Loop(Box::new(condition), Box::new(body))
            }
            Some("for" | "select") => {
                self.at += 1;
                while self.at < self.tokens.len() && self.reserved() != Some("do") {
                    self.at += 1;
                }
                self.end("do");
                let body = self.list(&["done"]);
                self.end("done");
                Node::Loop(Box::new(Node::Sequence(Vec::new())), Box::new(body))
            }
            Some("case") => self.case(),
            Some("function") => {
                self.at += 1;
                let name = self.reserved().unwrap_or_default().to_owned();
                self.at += 1;
                self.function(name)
            }
            Some(name)
                if matches!(self.tokens.get(self.at + 1), Some(Token::Operator("(")))
                    && matches!(self.tokens.get(self.at + 2), Some(Token::Operator(")"))) =>
            {
                let name = name.to_owned();
                self.at += 1;
                self.function(name)
            }
            _ => return self.simple(),
        };
        while self.redirection() {}
        node
    }

    fn end(&mut self, word: &str) {
        if self.reserved() == Some(word) {
            self.at += 1;
        }
    }

    fn function(&mut self, name: String) -> Node {
        while self.is_operator("(") || self.is_operator(")") {
            self.at += 1;
        }
        self.skip_newlines();
        let body = self.command();
        Node::Function(name, Rc::new(body))
    }

    fn conditional(&mut self) -> Node {
        let mut branches = Vec::new();
        loop {
            self.at += 1;
            let condition = self.list(&["then"]);
            self.end("then");
            let body = self.list(&["elif", "else", "fi"]);
            branches.push((condition, body));
            if self.reserved() != Some("elif") {
                break;
            }
        }
        let node = if self.reserved() == Some("else") {
            self.at += 1;
            let last = self.list(&["fi"]);
            Node::Either(branches, Box::new(last))
        } else {
            Node::Branches(branches)
        };
        self.end("fi");
        node
    }

    fn case(&mut self) -> Node {
        self.at += 1;
        while self.at < self.tokens.len() && self.reserved() != Some("in") {
            self.at += 1;
        }
        self.at += 1;
        let mut branches = Vec::new();
        let mut last = None;
        loop {
            self.skip_newlines();
            if self.at >= self.tokens.len() || self.reserved() == Some("esac") {
                break;
            }
            // The patterns, up to their parenthesis.
            let from = self.at;
            while self.at < self.tokens.len() && !self.is_operator(")") {
                self.at += 1;
            }
            let is_rest = matches!(
                self.tokens.get(from..self.at),
                Some([Token::Word(word)] | [Token::Operator("("), Token::Word(word)]) if word.bare() == Some("*")
            );
            self.at += 1;
            let body = self.list(&["esac"]);
            if is_rest {
                last = Some(body);
            } else {
                branches.push((Node::Sequence(Vec::new()), body));
            }
            if matches!(self.tokens.get(self.at), Some(Token::Operator(";;" | ";&" | ";;&"))) {
                self.at += 1;
            } else if self.reserved() != Some("esac") {
                // A parenthesis that nothing has opened.
                self.at += 1;
            }
        }
        self.end("esac");
        match last {
            Some(last) => Node::Either(branches, Box::new(last)),
            None => Node::Branches(branches),
        }
    }

    fn simple(&mut self) -> Node {
        let mut words = Vec::new();
        loop {
            // "2" in "2>&1" is no word of the command.
            let is_number =
                self.reserved().is_some_and(|word| word.bytes().all(|byte| byte.is_ascii_digit()));
            if is_number {
                let (this, next) = (self.at, self.tokens.get(self.at + 1));
                let redirects = matches!(next, Some(Token::Operator(operator)) if operator.starts_with(['<', '>']));
                if redirects && self.adjacent(this) {
                    self.at += 1;
                }
            }
            if self.redirection() {
                continue;
            }
            match self.tokens.get(self.at) {
                Some(Token::Word(word)) => {
                    words.push(word.clone());
                    self.at += 1;
                }
                _ => break,
            }
        }
        Node::Simple(words)
    }

    /// A number that is written in front of `<` or `>` names a descriptor, whether or not there is a blank: taking `ulimit
    /// -n 1024 >&2` for one would lose the limit, so only one digit counts.
    fn adjacent(&self, at: usize) -> bool {
        matches!(self.tokens.get(at), Some(Token::Word(word)) if word.bare().is_some_and(|word| word.len() == 1))
    }
}

/// A word of a script of execline or nosh, or a brace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Link {
    /// A word.
    Word(Word),
    /// A block.
    Block(Vec<Link>),
}

/// Reads a script of execline or nosh: one command line.
pub fn parse_chain(text: &str) -> Vec<Link> {
    let text = beginning(text);
    let mut lexer = Lexer { text, at: 0, line: 1, line_start: 0 };
    let mut open: Vec<Vec<Link>> = vec![Vec::new()];
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
                    outer.push(Link::Block(block));
                }
            }
            _ => {
                if let Some(current) = open.last_mut() {
                    current.push(Link::Word(word));
                }
            }
        }
    }
    while open.len() > 1 {
        let block = open.pop().unwrap_or_default();
        if let Some(outer) = open.last_mut() {
            outer.push(Link::Block(block));
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
                pieces.push(Piece { kind: Kind::Plain, text: std::mem::take(text), quoted });
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
