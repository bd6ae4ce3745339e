//! Splits bytes into tokens.
//!
//! Two lexers share one token type. The C lexer follows the translation phases that matter for
//! matching: it removes line splices, treats comments as white space, and makes a preprocessor line
//! a run of tokens between [`TokenKind::Directive`] and [`TokenKind::LineEnd`]. The text lexer is for
//! makefiles, manual pages and `conf-*` files: it makes words, and a [`TokenKind::LineEnd`] for each
//! unspliced line.
//!
//! Both accept any bytes. Invalid C (an apostrophe in a comment of `#if 0`, a byte that is not
//! UTF-8) becomes a token or ends one. It is not an error, because a rule matches only what it
//! spells out.

#![forbid(unsafe_code)]

use std::borrow::Cow;
use std::ops::Range;

/// How the bytes of a file are split into tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lang {
    /// C source, K&R to C23.
    C,
    /// Words and line ends.
    Text,
}

impl Lang {
    /// The language of a file by its name: C for `*.c`, `*.h` and qmail's `*.h1`/`*.h2`, else text.
    #[must_use]
    pub fn of(name: &str) -> Lang {
        match name.rsplit_once('.') {
            Some((_, "c" | "h" | "h1" | "h2")) => Lang::C,
            _ => Lang::Text,
        }
    }
}

/// What a token is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenKind {
    /// An identifier or keyword.
    Ident,
    /// A preprocessing number.
    Number,
    /// A string literal, quotes included.
    Str,
    /// A character constant, quotes included.
    Char,
    /// A punctuator, or a byte that starts no other token.
    Punct,
    /// The `#` that opens a preprocessor line.
    Directive,
    /// The end of a preprocessor line (C) or of any line (text). Its span is empty or the newline.
    LineEnd,
    /// A `<header>` in an include line.
    Header,
    /// A word of a text file.
    Word,
}

/// A token: its kind and the position of its bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Token {
    /// Its kind.
    pub kind: TokenKind,
    /// Byte offsets into the source.
    pub span: Range<usize>,
}

/// A source with its tokens.
#[derive(Debug)]
pub struct Source<'a> {
    /// The bytes, untouched.
    pub bytes: &'a [u8],
    /// The tokens, in order; spans do not overlap.
    pub tokens: Vec<Token>,
}

impl<'a> Source<'a> {
    /// Splits `bytes` into tokens.
    #[must_use]
    pub fn new(lang: Lang, bytes: &'a [u8]) -> Source<'a> {
        let tokens = match lang {
            Lang::C => CLexer::new(bytes).run(),
            Lang::Text => text_tokens(bytes),
        };
        Source { bytes, tokens }
    }

    /// Returns the text of token `i` without line splices.
    #[must_use]
    pub fn text(&self, i: usize) -> Cow<'a, [u8]> {
        let token = &self.tokens[i];
        if token.kind == TokenKind::LineEnd {
            return Cow::Borrowed(b"\n");
        }
        unspliced(&self.bytes[token.span.clone()])
    }

    /// Returns whether token `i` has kind `kind` and text `text`.
    #[must_use]
    pub fn is(&self, i: usize, kind: TokenKind, text: &str) -> bool {
        self.tokens.get(i).is_some_and(|t| t.kind == kind && &*self.text(i) == text.as_bytes())
    }

    /// Returns the line, counted from 1, of the byte at `offset`.
    #[must_use]
    pub fn line(&self, offset: usize) -> usize {
        let end = offset.min(self.bytes.len());
        1 + self.bytes[..end].iter().filter(|&&b| b == b'\n').count()
    }
}

/// Returns `raw` without its backslash-newline pairs.
fn unspliced(raw: &[u8]) -> Cow<'_, [u8]> {
    if memchr::memchr(b'\\', raw).is_none() {
        return Cow::Borrowed(raw);
    }
    let mut out = Vec::with_capacity(raw.len());
    let mut at = 0;
    while at < raw.len() {
        match splice(raw, at) {
            0 => {
                out.push(raw[at]);
                at += 1;
            }
            n => at += n,
        }
    }
    Cow::Owned(out)
}

/// Returns the length of the line splice at `at`, or 0.
fn splice(bytes: &[u8], at: usize) -> usize {
    match &bytes[at..] {
        [b'\\', b'\n', ..] => 2,
        [b'\\', b'\r', b'\n', ..] => 3,
        _ => 0,
    }
}

fn text_tokens(bytes: &[u8]) -> Vec<Token> {
    let mut tokens = Vec::new();
    let mut at = 0;
    while at < bytes.len() {
        let spliced = splice(bytes, at);
        if spliced > 0 {
            at += spliced;
        } else if bytes[at] == b'\n' {
            tokens.push(Token { kind: TokenKind::LineEnd, span: at..at + 1 });
            at += 1;
        } else if bytes[at].is_ascii_whitespace() {
            at += 1;
        } else {
            let start = at;
            while at < bytes.len() && !bytes[at].is_ascii_whitespace() && splice(bytes, at) == 0 {
                at += 1;
            }
            tokens.push(Token { kind: TokenKind::Word, span: start..at });
        }
    }
    tokens
}

/// Punctuators of more than one byte, longest first (C23 6.4.6, without digraphs).
const PUNCTUATORS: [&[u8]; 23] = [
    b"...", b"<<=", b">>=", b"->", b"++", b"--", b"<<", b">>", b"<=", b">=", b"==", b"!=", b"&&",
    b"||", b"*=", b"/=", b"%=", b"+=", b"-=", b"&=", b"^=", b"|=", b"##",
];

struct CLexer<'a> {
    bytes: &'a [u8],
    at: usize,
    tokens: Vec<Token>,
    in_directive: bool,
}

impl<'a> CLexer<'a> {
    fn new(bytes: &'a [u8]) -> Self {
        CLexer { bytes, at: 0, tokens: Vec::new(), in_directive: false }
    }

    /// Moves the cursor past line splices and returns the logical byte there.
    fn peek(&mut self) -> Option<u8> {
        loop {
            match splice_at(self.bytes, self.at) {
                0 => return self.bytes.get(self.at).copied(),
                n => self.at += n,
            }
        }
    }

    /// Returns the logical byte after the one at the cursor.
    fn peek_second(&self) -> Option<u8> {
        let mut at = self.at + 1;
        loop {
            match splice_at(self.bytes, at) {
                0 => return self.bytes.get(at).copied(),
                n => at += n,
            }
        }
    }

    fn push(&mut self, kind: TokenKind, start: usize) {
        self.tokens.push(Token { kind, span: start..self.at });
    }

    fn run(mut self) -> Vec<Token> {
        let mut line_start = true;
        while let Some(byte) = self.peek() {
            let start = self.at;
            match byte {
                b'\n' => {
                    self.end_directive();
                    self.at += 1;
                    line_start = true;
                    continue;
                }
                b' ' | b'\t' | b'\r' | 0x0b | 0x0c => {
                    self.at += 1;
                    continue;
                }
                b'/' if self.peek_second() == Some(b'*') => {
                    self.block_comment();
                    continue;
                }
                b'/' if self.peek_second() == Some(b'/') => {
                    self.skip_while(|b| b != b'\n');
                    continue;
                }
                b'#' if line_start => {
                    self.at += 1;
                    self.in_directive = true;
                    self.push(TokenKind::Directive, start);
                }
                b'<' if self.after_include() => self.header(start),
                b'"' | b'\'' => self.quoted(byte, start),
                b'0'..=b'9' => self.number(start),
                b'.' if self.peek_second().is_some_and(|b| b.is_ascii_digit()) => {
                    self.number(start);
                }
                _ if is_ident(byte) => {
                    self.skip_while(is_ident);
                    self.push(TokenKind::Ident, start);
                }
                _ => self.punctuator(start),
            }
            line_start = false;
        }
        self.end_directive();
        self.tokens
    }

    fn end_directive(&mut self) {
        if self.in_directive {
            self.in_directive = false;
            // CRLF is one line end: text added after the line's last token goes before the CR.
            let last = self.tokens.last().map_or(0, |t| t.span.end);
            let cr = self.at > last && self.bytes[self.at - 1] == b'\r';
            let at = self.at - usize::from(cr);
            self.tokens.push(Token { kind: TokenKind::LineEnd, span: at..at });
        }
    }

    fn skip_while(&mut self, keep: impl Fn(u8) -> bool) {
        while self.peek().is_some_and(&keep) {
            self.at += 1;
        }
    }

    fn block_comment(&mut self) {
        let body = &self.bytes[self.at + 2..];
        self.at += 2 + body.windows(2).position(|w| w == b"*/").map_or(body.len(), |n| n + 2);
    }

    /// Returns whether the tokens so far end in `# include`, `# include_next` or `# import`.
    fn after_include(&self) -> bool {
        let [.., hash, name] = self.tokens.as_slice() else { return false };
        self.in_directive
            && hash.kind == TokenKind::Directive
            && matches!(
                &*unspliced(&self.bytes[name.span.clone()]),
                b"include" | b"include_next" | b"import"
            )
    }

    fn header(&mut self, start: usize) {
        self.skip_while(|b| b != b'>' && b != b'\n');
        if self.peek() == Some(b'>') {
            self.at += 1;
        }
        self.push(TokenKind::Header, start);
    }

    /// Reads a literal. An unclosed one ends with its line, so an apostrophe in prose spoils only
    /// its own line.
    fn quoted(&mut self, quote: u8, start: usize) {
        self.at += 1;
        while let Some(byte) = self.peek() {
            if byte == b'\n' {
                break;
            }
            self.at += 1;
            if byte == quote {
                break;
            }
            if byte == b'\\' && self.peek().is_some_and(|b| b != b'\n') {
                self.at += 1;
            }
        }
        self.push(if quote == b'"' { TokenKind::Str } else { TokenKind::Char }, start);
    }

    fn number(&mut self, start: usize) {
        let mut last = 0;
        while let Some(byte) = self.peek() {
            let exponent = matches!(last, b'e' | b'E' | b'p' | b'P') && matches!(byte, b'+' | b'-');
            if !(is_ident(byte) || byte == b'.' || exponent) {
                break;
            }
            last = byte;
            self.at += 1;
        }
        self.push(TokenKind::Number, start);
    }

    fn punctuator(&mut self, start: usize) {
        let rest = &self.bytes[self.at..];
        // Most are of one character, and then what follows is no punctuation.
        let len = match rest {
            [_, next, ..] if next.is_ascii_punctuation() => {
                PUNCTUATORS.iter().find(|p| rest.starts_with(p)).map_or(1, |p| p.len())
            }
            _ => 1,
        };
        self.at += len;
        self.push(TokenKind::Punct, start);
    }
}

/// Like [`splice`], but accepts an offset past the end.
fn splice_at(bytes: &[u8], at: usize) -> usize {
    if at < bytes.len() { splice(bytes, at) } else { 0 }
}

fn is_ident(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'$' || byte >= 0x80
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lexed(text: &str) -> Vec<(TokenKind, String)> {
        let source = Source::new(Lang::C, text.as_bytes());
        (0..source.tokens.len())
            .map(|i| (source.tokens[i].kind, String::from_utf8(source.text(i).into()).unwrap()))
            .collect()
    }

    fn words(text: &str) -> Vec<String> {
        lexed(text).into_iter().map(|(_, text)| text).collect()
    }

    #[test]
    fn comments_and_splices_are_white_space() {
        assert_eq!(words("a/* b */c // d\\\n e\nf\\\ng"), ["a", "c", "fg"]);
    }

    #[test]
    fn a_string_may_run_over_a_spliced_line() {
        assert_eq!(words("p(\"one\\n\\\ntwo\");"), ["p", "(", "\"one\\ntwo\"", ")", ";"]);
    }

    #[test]
    fn a_preprocessor_line_has_both_ends() {
        assert_eq!(
            lexed("# include <a b.h> /* c */\nx"),
            [
                (TokenKind::Directive, "#".into()),
                (TokenKind::Ident, "include".into()),
                (TokenKind::Header, "<a b.h>".into()),
                (TokenKind::LineEnd, "\n".into()),
                (TokenKind::Ident, "x".into()),
            ]
        );
        assert_eq!(lexed("#endif").last().unwrap().0, TokenKind::LineEnd);
    }

    #[test]
    fn an_apostrophe_in_prose_costs_only_its_line() {
        assert_eq!(
            words("#error don't\nint x;"),
            ["#", "error", "don", "'t", "\n", "int", "x", ";"]
        );
    }

    #[test]
    fn a_comment_in_an_include_line_is_not_a_header() {
        assert_eq!(words("#include \"a.h\"\n"), ["#", "include", "\"a.h\"", "\n"]);
        assert_eq!(words("a < b"), ["a", "<", "b"]);
    }

    #[test]
    fn punctuators_are_longest_first() {
        assert_eq!(words("a<<=b>>c->d...e"), ["a", "<<=", "b", ">>", "c", "->", "d", "...", "e"]);
    }

    #[test]
    fn crlf_is_a_line_end() {
        assert_eq!(words("#define A 1\r\nb\r\n"), ["#", "define", "A", "1", "\n", "b"]);
    }

    #[test]
    fn numbers_are_preprocessing_numbers() {
        assert_eq!(words("0x1fUL 1e+5 .5f 3..2"), ["0x1fUL", "1e+5", ".5f", "3..2"]);
    }

    #[test]
    fn text_has_words_and_line_ends() {
        let source = Source::new(Lang::Text, b"a: b \\\n c\n\td\n");
        let texts: Vec<_> = (0..source.tokens.len()).map(|i| source.text(i).into_owned()).collect();
        assert_eq!(texts, [&b"a:"[..], b"b", b"c", b"\n", b"d", b"\n"]);
    }
}
