//! The `#include` lines of a C source.

#![forbid(unsafe_code)]

use std::ops::Range;

use super::lex::{Lang, Source, TokenKind};

/// An `#include` line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Include {
    /// The header; `None` where a macro gives it.
    pub header: Option<Header>,
    /// Its tokens.
    pub tokens: Range<usize>,
    /// The token that opens the outermost conditional around it.
    pub held_by: Option<usize>,
}

/// A header, as an `#include` line names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// Its name.
    pub name: String,
    /// Whether the name is in quotes, as for headers of the tree.
    pub quoted: bool,
}

/// Returns the `#include` lines of `source`, which is [`Lang::C`].
#[must_use]
pub fn includes(source: &Source<'_>) -> Vec<Include> {
    let mut found = Vec::new();
    let mut open: Vec<usize> = Vec::new();
    for at in 0..source.tokens.len().saturating_sub(1) {
        if source.tokens[at].kind != TokenKind::Directive {
            continue;
        }
        match &*source.text(at + 1) {
            b"if" | b"ifdef" | b"ifndef" => open.push(at),
            b"endif" => {
                open.pop();
            }
            b"include" => {
                let end = (at..source.tokens.len())
                    .find(|&i| source.tokens[i].kind == TokenKind::LineEnd)
                    .map_or(source.tokens.len(), |i| i + 1);
                let header = header(source, at + 2);
                found.push(Include { header, tokens: at..end, held_by: open.first().copied() });
            }
            _ => {}
        }
    }
    found
}

/// Returns the headers that a C source includes directly.
#[must_use]
pub fn headers(bytes: &[u8]) -> Vec<Header> {
    if memchr::memmem::find(bytes, b"include").is_none() {
        return Vec::new();
    }
    includes(&Source::new(Lang::C, bytes))
        .into_iter()
        .filter_map(|include| include.header)
        .collect()
}

fn header(source: &Source<'_>, at: usize) -> Option<Header> {
    let quoted = match source.tokens.get(at)?.kind {
        TokenKind::Str => true,
        TokenKind::Header => false,
        _ => return None,
    };
    let text = source.text(at);
    let end: &[u8] = if quoted { b"\"" } else { b">" };
    let name = text.get(1..)?.strip_suffix(end)?;
    Some(Header { name: String::from_utf8_lossy(name).into_owned(), quoted })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_that_are_included() {
        let source = b"#include \"a.h\"\n # include <sys/b.h> /* x */\n#include C\n/*\n#include \"d.h\"\n*/\n\
            #ifdef E\n#include \\\n\"f.h\"\n#endif\n#include \"g\n#define include\n";
        let header = |name: &str, quoted| Header { name: name.to_string(), quoted };
        assert_eq!(
            headers(source),
            [header("a.h", true), header("sys/b.h", false), header("f.h", true)]
        );
        let source = Source::new(Lang::C, source);
        let held: Vec<bool> = includes(&source).iter().map(|i| i.held_by.is_some()).collect();
        assert_eq!(held, [false, false, false, true, false]);
    }
}
