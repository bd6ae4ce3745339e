//! Parses which commands run after which, under which conditions.
#![forbid(unsafe_code)]

use std::rc::Rc;

use super::Node;
use super::lexer::{DEPTH_MAX, Token, tokens};

/// Parses a script.
pub fn parse(text: &str) -> Node {
    let mut parser = Parser { tokens: tokens(text), at: 0, depth: 0 };
    let mut nodes = Vec::new();
    while parser.at < parser.tokens.len() {
        let before = parser.at;
        nodes.push(parser.list(&[]));
        if parser.at == before {
            // The end of a block that was not begun.
            parser.at += 1;
        }
    }
    Node::Sequence(nodes)
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

    /// Parses commands up to one of the words `ends`, a `)` or the end of a case. Leaves that token.
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
                    // A command in the background changes nothing for the others.
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
                // A parenthesis that was not opened.
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
            // "2" in "2>&1" is not a word of the command.
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

    /// Returns whether the number before `<` or `>` names a descriptor. The tokens do not show whether a blank stands
    /// between them, so only a single digit counts: otherwise `ulimit -n 1024 >&2` would lose its limit.
    fn adjacent(&self, at: usize) -> bool {
        matches!(self.tokens.get(at), Some(Token::Word(word)) if word.bare().is_some_and(|word| word.len() == 1))
    }
}
