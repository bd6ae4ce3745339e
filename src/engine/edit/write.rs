//! What a matched hunk writes.
//!
//! The aim is the edit that a careful person would make. Tokens that stay keep their bytes. A new
//! line takes the indentation of its neighbours and the line ending of the file. A line that an
//! edit leaves empty is removed.

#![forbid(unsafe_code)]

use std::ops::Range;

use crate::engine::lex::{Lang, Source, TokenKind};
use crate::engine::matcher::Match;
use crate::engine::rule::{Hunk, LineMark, LinePiece, pieces};

/// A replacement of bytes of a source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Edit {
    /// Byte offsets.
    pub range: Range<usize>,
    /// The bytes that replace them.
    pub text: Vec<u8>,
}

/// Returns the edits of one hunk at one match.
pub(super) fn hunk_edits(hunk: &Hunk, lang: Lang, source: &Source<'_>, found: &Match) -> Vec<Edit> {
    let writer = Writer { hunk, lang, source, found };
    let mut edits = Vec::new();
    let mut at = 0;
    while at < hunk.lines.len() {
        if hunk.lines[at].mark == LineMark::Context {
            at += 1;
            continue;
        }
        let end = (at..hunk.lines.len())
            .find(|&i| hunk.lines[i].mark == LineMark::Context)
            .unwrap_or(hunk.lines.len());
        edits.extend(writer.block(at..end));
        at = end;
    }
    edits
}

/// Writes the blocks of a hunk: the runs of `-` and `+` lines between context.
struct Writer<'a> {
    hunk: &'a Hunk,
    lang: Lang,
    source: &'a Source<'a>,
    found: &'a Match,
}

impl Writer<'_> {
    fn block(&self, lines: Range<usize>) -> Vec<Edit> {
        let of = |mark| {
            lines.clone().filter(move |&i| self.hunk.lines[i].mark == mark).collect::<Vec<_>>()
        };
        let (removed, added) = (of(LineMark::Remove), of(LineMark::Add));
        if removed.is_empty() {
            return vec![self.insertion(lines.start, &added)];
        }
        if removed.len() == added.len() {
            return removed
                .iter()
                .zip(&added)
                .flat_map(|(&old, &new)| {
                    let text = self.line_text(new);
                    self.replacement(self.line_tokens(old), &text)
                })
                .collect();
        }
        let tokens =
            self.line_tokens(removed[0]).start..self.line_tokens(removed[removed.len() - 1]).end;
        if added.is_empty() {
            return vec![self.deletion(tokens)];
        }
        let indent = self.indent_of_token(tokens.start);
        let base = rule_indent(&self.hunk.lines[removed[0]].text);
        let eol = self.eol(self.source.tokens[tokens.start].span.start);
        let mut text = Vec::new();
        for (n, &line) in added.iter().enumerate() {
            if n > 0 {
                text.extend_from_slice(eol);
                text.extend(self.indent(line, indent, base));
            }
            text.extend(self.line_text(line));
        }
        self.replacement(tokens, &text)
    }

    /// Returns the source tokens of hunk line `line`.
    fn line_tokens(&self, line: usize) -> Range<usize> {
        let elements = self.hunk.lines[line].elements.clone();
        self.found.tokens[elements.start].start..self.found.tokens[elements.end - 1].end
    }

    /// Returns the added line `line` without indentation, with its metavariables filled in.
    fn line_text(&self, line: usize) -> Vec<u8> {
        let text = self.hunk.lines[line].text.trim_start();
        let mut out = Vec::new();
        for piece in pieces(text) {
            match piece {
                LinePiece::Text(text) => out.extend_from_slice(text.as_bytes()),
                LinePiece::Variable(name) => {
                    let tokens = &self.found.bindings[name];
                    if let (Some(first), Some(last)) =
                        (self.source.tokens.get(tokens.start), tokens.end.checked_sub(1))
                    {
                        let end = self.source.tokens[last].span.end;
                        out.extend_from_slice(&self.source.bytes[first.span.start..end]);
                    }
                }
            }
        }
        out
    }

    fn indent_of_token(&self, token: usize) -> &[u8] {
        indent_at(self.source.bytes, self.source.tokens[token].span.start)
    }

    fn eol(&self, near: usize) -> &'static [u8] {
        eol_at(self.source.bytes, near)
    }

    /// Returns the indentation of the added line `line`. It is that of the nearest line that the
    /// rule file has at the same depth and that starts a line in the source. Without such a line,
    /// it is `indent`, which stands for the rule file's `base`, plus the rule file's additional
    /// depth.
    fn indent(&self, line: usize, indent: &[u8], base: usize) -> Vec<u8> {
        let own = rule_indent(&self.hunk.lines[line].text);
        let model = (0..self.hunk.lines.len())
            .filter(|&i| self.hunk.lines[i].mark != LineMark::Add && self.has_tokens(i))
            .filter(|&i| rule_indent(&self.hunk.lines[i].text) == own)
            .filter_map(|i| {
                let start = self.source.tokens[self.line_tokens(i).start].span.start;
                let found = indent_at(self.source.bytes, start);
                let starts_line = line_start(self.source.bytes, start) + found.len() == start;
                starts_line.then_some((i.abs_diff(line), found))
            })
            .min_by_key(|(distance, _)| *distance);
        if let Some((_, found)) = model {
            return found.to_vec();
        }
        let mut out = indent.to_vec();
        if own > base {
            let tabs = indent.contains(&b'\t');
            out.extend(if tabs { vec![b'\t'] } else { vec![b' '; own - base] });
        }
        out
    }

    /// Returns the edit that adds the lines `added`, which stand before hunk line `block` or at the
    /// end of the hunk.
    fn insertion(&self, block: usize, added: &[usize]) -> Edit {
        // Add after the line above. After a gap the place is unknown, so add before the line below.
        let above = (0..block).rev().find(|&i| !self.hunk.lines[i].elements.is_empty());
        let previous = above.filter(|&i| self.has_tokens(i));
        let next =
            (added[added.len() - 1] + 1..self.hunk.lines.len()).find(|&i| self.has_tokens(i));
        match (previous, next) {
            (Some(previous), _) => self.insertion_after(previous, added),
            (None, Some(next)) => {
                let token = self.line_tokens(next).start;
                let start = self.source.tokens[token].span.start;
                let base = rule_indent(&self.hunk.lines[next].text);
                let indent = indent_at(self.source.bytes, start);
                let line = line_start(self.source.bytes, start);
                let first_on_line = line + indent.len() == start;
                let mut text = Vec::new();
                for &i in added {
                    if first_on_line {
                        text.extend(self.indent(i, indent, base));
                    }
                    text.extend(self.line_text(i));
                    text.extend_from_slice(if first_on_line { self.eol(start) } else { b" " });
                }
                let at = if first_on_line { line } else { start };
                Edit { range: at..at, text }
            }
            // Cannot happen: a hunk without context is not matched.
            (None, None) => Edit { range: 0..0, text: Vec::new() },
        }
    }

    /// Returns whether hunk line `line` was matched to tokens. A line that is only a gap has no
    /// place.
    fn has_tokens(&self, line: usize) -> bool {
        let line = &self.hunk.lines[line];
        !line.elements.is_empty()
            && !self.hunk.pattern.elements[line.elements.clone()]
                .iter()
                .all(|e| *e == crate::engine::rule::Element::Gap)
    }

    fn insertion_after(&self, previous: usize, added: &[usize]) -> Edit {
        let bytes = self.source.bytes;
        let tokens = self.line_tokens(previous);
        let last = &self.source.tokens[tokens.end - 1];
        let after = last.span.end;
        let following = self.source.tokens.get(tokens.end).map_or(bytes.len(), |t| t.span.start);
        let eol = self.eol(last.span.start);
        let indent = self.indent_of_token(tokens.start);
        let base = rule_indent(&self.hunk.lines[previous].text);
        let lines: Vec<Vec<u8>> = added
            .iter()
            .map(|&i| {
                let mut line = self.indent(i, indent, base);
                line.extend(self.line_text(i));
                line
            })
            .collect();
        if self.lang == Lang::Text && last.kind == TokenKind::LineEnd {
            let mut text = lines.join(eol);
            text.extend_from_slice(eol);
            return Edit { range: after..after, text };
        }
        if let Some(at) = line_end_between(bytes, after, following, self.lang) {
            let mut text = Vec::new();
            for line in &lines {
                text.extend_from_slice(eol);
                text.extend_from_slice(line);
            }
            return Edit { range: at..at, text };
        }
        // The next token is on the same line. In a text file or a macro a line break would change
        // the meaning, so add the new text on that line; otherwise break the line.
        let blank =
            bytes[after..following].iter().take_while(|b| matches!(b, b' ' | b'\t')).count();
        if self.lang == Lang::Text || self.in_directive(tokens.end - 1) {
            let mut text = Vec::new();
            for line in &lines {
                text.push(b' ');
                text.extend_from_slice(line.trim_ascii_start());
            }
            return Edit { range: after..after, text };
        }
        let mut text = Vec::new();
        for line in &lines {
            text.extend_from_slice(eol);
            text.extend_from_slice(line);
        }
        if following < bytes.len() {
            text.extend_from_slice(eol);
            text.extend_from_slice(indent);
        }
        Edit { range: after..after + blank, text }
    }

    fn in_directive(&self, token: usize) -> bool {
        let tokens = &self.source.tokens;
        (0..token)
            .rev()
            .find_map(|i| match tokens[i].kind {
                TokenKind::LineEnd => Some(false),
                TokenKind::Directive => Some(true),
                _ => None,
            })
            .unwrap_or(false)
            && tokens[token].kind != TokenKind::LineEnd
    }

    fn deletion(&self, tokens: Range<usize>) -> Edit {
        let bytes = self.source.bytes;
        let start = self.source.tokens[tokens.start].span.start;
        let end = self.source.tokens[tokens.end - 1].span.end;
        let line = line_start(bytes, start);
        let rest = bytes[end..].iter().take_while(|b| matches!(b, b' ' | b'\t' | b'\r')).count();
        let blank_before = bytes[line..start].iter().all(|b| matches!(b, b' ' | b'\t'));
        let line_ended = end > start && bytes[end - 1] == b'\n';
        if blank_before && line_ended {
            return Edit { range: line..end, text: Vec::new() };
        }
        match bytes.get(end + rest) {
            Some(b'\n') if blank_before => Edit { range: line..end + rest + 1, text: Vec::new() },
            None if blank_before => Edit { range: line..bytes.len(), text: Vec::new() },
            Some(b'\n') => {
                let blank =
                    bytes[..start].iter().rev().take_while(|b| matches!(b, b' ' | b'\t')).count();
                Edit { range: start - blank..end, text: Vec::new() }
            }
            _ => Edit { range: start..end + rest, text: Vec::new() },
        }
    }

    /// Turns the source tokens `old` into `text`. Leaves each token alone that both have.
    fn replacement(&self, old: Range<usize>, text: &[u8]) -> Vec<Edit> {
        let new = Source::new(self.lang, text);
        let line_end = |i: usize| self.source.tokens[i].kind == TokenKind::LineEnd;
        let first = old.start;
        let old: Vec<usize> = old.filter(|&i| !line_end(i)).collect();
        if old.is_empty() {
            let at = self.source.tokens[first].span.start;
            return vec![Edit { range: at..at, text: text.to_vec() }];
        }
        let new_tokens: Vec<usize> =
            (0..new.tokens.len()).filter(|&i| new.tokens[i].kind != TokenKind::LineEnd).collect();
        let same = |i: usize, j: usize| {
            self.source.tokens[old[i]].kind == new.tokens[new_tokens[j]].kind
                && self.source.text(old[i]) == new.text(new_tokens[j])
        };
        let kept = common(old.len(), new_tokens.len(), same);
        let old_span = |i: usize| self.source.tokens[old[i]].span.clone();
        let new_span = |j: usize| new.tokens[new_tokens[j]].span.clone();
        let mut edits = Vec::new();
        let (mut i, mut j) = (0, 0);
        for (next_i, next_j) in kept.into_iter().chain([(old.len(), new_tokens.len())]) {
            if i < next_i || j < next_j {
                // Edit between the kept tokens on both sides. A replacement keeps the blanks around
                // it. A pure insertion or deletion takes the rule's blanks, unless a comment or a
                // line end stands there.
                let old_out = (i.checked_sub(1).map(|i| old_span(i).end))
                    .zip((next_i < old.len()).then(|| old_span(next_i).start))
                    .map(|(start, end)| start..end);
                let new_out = (j.checked_sub(1).map(|j| new_span(j).end))
                    .zip((next_j < new_tokens.len()).then(|| new_span(next_j).start))
                    .map(|(start, end)| start..end);
                let old_in = (i < next_i).then(|| old_span(i).start..old_span(next_i - 1).end);
                let new_in = (j < next_j).then(|| new_span(j).start..new_span(next_j - 1).end);
                let blank = |r: Range<usize>| {
                    self.source.bytes[r].iter().all(|b| matches!(b, b' ' | b'\t'))
                };
                let replaces = old_in.is_some() && new_in.is_some();
                let loose = !replaces
                    && old_out.clone().is_some_and(|out| match &old_in {
                        Some(inner) => blank(out.start..inner.start) && blank(inner.end..out.end),
                        None => blank(out),
                    });
                edits.push(match (old_out, new_out) {
                    (Some(range), Some(new)) if loose => Edit { range, text: text[new].to_vec() },
                    _ => {
                        let range = old_in.unwrap_or_else(|| {
                            let at = match i.checked_sub(1) {
                                Some(before) => old_span(before).end,
                                None => old_span(next_i).start,
                            };
                            at..at
                        });
                        // An insertion takes the blanks that the rule has before it; at the start,
                        // those after it.
                        let inserted = match new_in {
                            None => Vec::new(),
                            Some(new) if !range.is_empty() => text[new].to_vec(),
                            Some(new) if i > 0 => {
                                let from = j.checked_sub(1).map_or(new.start, |j| new_span(j).end);
                                text[from..new.end].to_vec()
                            }
                            Some(new) => text[new.start..new_span(next_j).start].to_vec(),
                        };
                        Edit { range, text: inserted }
                    }
                });
            }
            (i, j) = (next_i + 1, next_j + 1);
        }
        edits
    }
}

/// Returns the edit for a hunk that has only `+` lines: adds them before the line at byte `at`.
pub(super) fn insert_lines_at(hunk: &Hunk, source: &Source<'_>, at: usize) -> Edit {
    let eol = eol_at(source.bytes, at);
    let mut text = Vec::new();
    if at > 0 && source.bytes[at - 1] != b'\n' {
        text.extend_from_slice(eol);
    }
    for line in hunk.lines.iter().filter(|l| l.mark == LineMark::Add) {
        text.extend_from_slice(line.text.as_bytes());
        text.extend_from_slice(eol);
    }
    Edit { range: at..at, text }
}

/// Returns a longest common subsequence of two sequences, as pairs of indices.
fn common(a: usize, b: usize, same: impl Fn(usize, usize) -> bool) -> Vec<(usize, usize)> {
    let mut length = vec![vec![0u32; b + 1]; a + 1];
    for i in (0..a).rev() {
        for j in (0..b).rev() {
            length[i][j] = if same(i, j) {
                length[i + 1][j + 1] + 1
            } else {
                length[i + 1][j].max(length[i][j + 1])
            };
        }
    }
    let (mut i, mut j) = (0, 0);
    let mut pairs = Vec::new();
    while i < a && j < b {
        if same(i, j) {
            pairs.push((i, j));
            i += 1;
            j += 1;
        } else if length[i + 1][j] >= length[i][j + 1] {
            i += 1;
        } else {
            j += 1;
        }
    }
    pairs
}

/// Returns the first line end between two tokens that is in no comment and no splice. A line may be
/// added there, before the `\r` of a CRLF.
fn line_end_between(bytes: &[u8], from: usize, to: usize, lang: Lang) -> Option<usize> {
    let mut at = from;
    while at < to {
        match &bytes[at..to] {
            [b'/', b'*', rest @ ..] if lang == Lang::C => {
                at += 2 + rest.windows(2).position(|w| w == b"*/").map_or(rest.len(), |n| n + 2);
            }
            [b'\\', b'\n', ..] => at += 2,
            [b'\\', b'\r', b'\n', ..] => at += 3,
            [b'\r', b'\n', ..] | [b'\n', ..] => return Some(at),
            _ => at += 1,
        }
    }
    // The source may end without a newline.
    (to == bytes.len() && at >= to).then_some(to)
}

pub(super) fn line_start(bytes: &[u8], at: usize) -> usize {
    bytes[..at].iter().rposition(|&b| b == b'\n').map_or(0, |n| n + 1)
}

fn indent_at(bytes: &[u8], at: usize) -> &[u8] {
    let start = line_start(bytes, at);
    let len = bytes[start..at].iter().take_while(|b| matches!(b, b' ' | b'\t')).count();
    &bytes[start..start + len]
}

/// Returns the line ending in use near `at`.
fn eol_at(bytes: &[u8], at: usize) -> &'static [u8] {
    let next = bytes[at..].iter().position(|&b| b == b'\n').map(|n| at + n);
    let end = next.or_else(|| bytes[..at].iter().rposition(|&b| b == b'\n'));
    match end {
        Some(n) if n > 0 && bytes[n - 1] == b'\r' => b"\r\n",
        _ => b"\n",
    }
}

fn rule_indent(text: &str) -> usize {
    text.len() - text.trim_start().len()
}
