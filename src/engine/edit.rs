//! Edits: what a matched hunk writes, and the rules applied to a whole file.
//!
//! The aim is the edit that a careful person would make. Tokens that stay keep their bytes. A new
//! line takes the indentation of its neighbours and the line ending of the file. A line that an
//! edit leaves empty is removed.

#![forbid(unsafe_code)]

use std::fmt;
use std::ops::Range;

use crate::engine::lex::{Kind, Lang, Source};
use crate::engine::matcher::{self, Match, Near, Nearest};
use crate::engine::rule::{Count, Hunk, Mark, Part, Piece, Rule, Scope, pieces};

/// A replacement of bytes of a source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Edit {
    /// Byte offsets.
    pub range: Range<usize>,
    /// The bytes that replace them.
    pub text: Vec<u8>,
}

/// The state of a file with regard to a rule.
#[derive(Clone, Debug)]
pub enum State {
    /// Its post-condition holds.
    Done,
    /// The rule fits; these edits apply it.
    Fits {
        /// In order, not overlapping.
        edits: Vec<Edit>,
    },
    /// The post-condition does not hold, and the rule does not fit.
    Misfit(Misfit),
}

/// Why a rule does not fit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Misfit {
    /// The file does not define the function, or the makefile does not have the target.
    NoScope {
        /// The scope that was searched for.
        wanted: String,
        /// The functions or targets that the file has.
        has: Vec<String>,
    },
    /// No variant matches.
    NoMatch(Near),
    /// It matches more than once.
    Ambiguous {
        /// Lines of the matches.
        lines: Vec<usize>,
    },
    /// It was applied, and the post-condition still does not hold: the rule is wrong.
    Unproved(Near),
    /// Two rules change the same bytes.
    Overlap {
        /// Line of the file.
        line: usize,
    },
}

impl Misfit {
    /// Returns the line of the file that this is about.
    #[must_use]
    pub fn line(&self) -> Option<usize> {
        match self {
            Misfit::NoScope { .. } => None,
            Misfit::NoMatch(near) | Misfit::Unproved(near) => near.line(),
            Misfit::Ambiguous { lines } => lines.first().copied(),
            Misfit::Overlap { line } => Some(*line),
        }
    }
}

impl fmt::Display for Misfit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let near = |near: &Near| match near {
            Near::Nowhere { words, .. } => {
                let words: Vec<_> =
                    words.iter().map(|w| format!("`{}`", w.escape_debug())).collect();
                match words.as_slice() {
                    [] => "nothing comes near".to_string(),
                    [word] => format!("nothing comes near: {word} is not there"),
                    words => format!("nothing comes near: of {} none is there", words.join(", ")),
                }
            }
            Near::Place(n) => {
                let before = match &n.before {
                    Some(next) => format!(" before `{}`", next.escape_debug()),
                    None => String::new(),
                };
                let Nearest { matched, total, line, wanted, found, .. } = &**n;
                let (wanted, found) = (wanted.escape_debug(), found.escape_debug());
                format!(
                    "nearest: {matched} of {total} tokens, line {line}: wanted `{wanted}`{before}, \
                     found `{found}`"
                )
            }
        };
        match self {
            Misfit::NoScope { wanted, has } if has.is_empty() => {
                write!(f, "no {wanted} here")
            }
            Misfit::NoScope { wanted, has } => {
                write!(f, "no {wanted} here; the file has {}", has.join(", "))
            }
            Misfit::NoMatch(nearest) => write!(f, "no match; {}", near(nearest)),
            Misfit::Ambiguous { lines } => {
                let first: Vec<_> = lines.iter().take(8).map(ToString::to_string).collect();
                let more = if lines.len() > first.len() { ", ..." } else { "" };
                write!(f, "matches {} times, on lines {}{more}", lines.len(), first.join(", "))
            }
            Misfit::Unproved(nearest) => {
                write!(f, "applied, but its post-condition does not hold; {}", near(nearest))
            }
            Misfit::Overlap { line } => {
                write!(f, "changes bytes on line {line} that another rule changes too")
            }
        }
    }
}

/// Returns the state of `source` with regard to `rule`.
#[must_use]
pub fn examine(rule: &Rule, lang: Lang, source: &Source<'_>) -> State {
    if holds(rule, lang, source) {
        return State::Done;
    }
    let mut edits = Vec::new();
    for part in &rule.parts {
        match part_edits(part, lang, source) {
            Ok(part_edits) => edits.extend(part_edits),
            Err(misfit) => return State::Misfit(misfit),
        }
    }
    edits.sort_by_key(|e| (e.range.start, e.range.end));
    // Two parts may add lines at the same place.
    edits.dedup_by(|later, first| {
        let same = later.range == first.range
            && source.bytes[first.range.clone()].iter().all(|b| matches!(b, b' ' | b'\t'));
        if same {
            first.text.append(&mut later.text);
        }
        same
    });
    if let Some(misfit) = overlap(source, &edits) {
        return State::Misfit(misfit);
    }
    let after = apply(source.bytes, &edits);
    let after = Source::new(lang, &after);
    if !holds(rule, lang, &after) {
        let wanted = rule.done.first();
        let regions = matcher::regions(&after, lang, &rule.parts[0].scope).unwrap_or_default();
        let near = match wanted {
            Some(pattern) => matcher::nearest(&after, &regions, pattern),
            None => Near::Nowhere { words: Vec::new(), line: None },
        };
        return State::Misfit(Misfit::Unproved(near));
    }
    State::Fits { edits }
}

/// Returns whether the post-condition of `rule` holds in the scope of the rule's first part.
#[must_use]
pub fn holds(rule: &Rule, lang: Lang, source: &Source<'_>) -> bool {
    let Ok(regions) = matcher::regions(source, lang, &rule.parts[0].scope) else { return false };
    let somewhere = |p| regions.iter().any(|r| matcher::matches(source, r.clone(), p));
    (rule.done.is_empty() || rule.done.iter().any(somewhere)) && !rule.never.iter().any(somewhere)
}

/// The matches of a part.
#[derive(Clone, Debug)]
pub struct Found {
    /// The first variant that matches; `None` if none does, which [`Count::Any`] allows.
    pub variant: Option<usize>,
    /// Its matches. Empty for a variant that has only `+` lines: its place is its scope.
    pub matches: Vec<Match>,
    /// The regions that were searched.
    regions: Vec<Range<usize>>,
}

/// Returns where `part` matches, in the first variant that does.
///
/// # Errors If it does not match, or not as often as it must.
pub fn find(part: &Part, lang: Lang, source: &Source<'_>) -> Result<Found, Misfit> {
    let nothing = || Ok(Found { variant: None, matches: Vec::new(), regions: Vec::new() });
    let regions = match matcher::regions(source, lang, &part.scope) {
        Ok(regions) => regions,
        Err(_) if part.count == Count::Any => return nothing(),
        Err(has) => return Err(Misfit::NoScope { wanted: scope_name(&part.scope), has }),
    };
    for (n, hunk) in part.variants.iter().enumerate() {
        if hunk.pattern.elements.is_empty() {
            return Ok(Found { variant: Some(n), matches: Vec::new(), regions });
        }
        let matches: Vec<Match> = regions
            .iter()
            .flat_map(|r| matcher::find_all(source, r.clone(), &hunk.pattern))
            .collect();
        if matches.is_empty() {
            continue;
        }
        if part.count == Count::Once && matches.len() > 1 {
            let line = |m: &Match| source.line(source.tokens[m.extent().start].span.start);
            return Err(Misfit::Ambiguous { lines: matches.iter().map(line).collect() });
        }
        return Ok(Found { variant: Some(n), matches, regions });
    }
    if part.count == Count::Any {
        return nothing();
    }
    let mut best: Option<Near> = None;
    for near in nearest(part, lang, source) {
        if best.as_ref().is_none_or(|best| near.share() > best.share()) {
            best = Some(near);
        }
    }
    Err(Misfit::NoMatch(best.unwrap_or(Near::Nowhere { words: Vec::new(), line: None })))
}

/// Returns where each variant of `part` comes closest to matching; nothing if its scope is missing.
#[must_use]
pub fn nearest(part: &Part, lang: Lang, source: &Source<'_>) -> Vec<Near> {
    let Ok(regions) = matcher::regions(source, lang, &part.scope) else { return Vec::new() };
    let near = |hunk: &Hunk| {
        let mut near = matcher::nearest(source, &regions, &hunk.pattern);
        if let Near::Place(place) = &mut near {
            place.rule_line = hunk.line_of(place.element).map(|line| line.line);
        }
        near
    };
    part.variants.iter().map(near).collect()
}

fn part_edits(part: &Part, lang: Lang, source: &Source<'_>) -> Result<Vec<Edit>, Misfit> {
    let found = find(part, lang, source)?;
    let Some(hunk) = found.variant.map(|n| &part.variants[n]) else { return Ok(Vec::new()) };
    if !hunk.pattern.elements.is_empty() {
        return Ok(found.matches.iter().flat_map(|m| hunk_edits(hunk, lang, source, m)).collect());
    }
    let region = found.regions.first().cloned().unwrap_or_default();
    let at = match part.scope {
        Scope::AfterIncludes if !region.is_empty() => {
            // After the newline of the last include.
            let end = source.tokens[region.end - 1].span.end;
            let line = source.bytes[end..].iter().position(|&b| b == b'\n');
            line.map_or(source.bytes.len(), |n| end + n + 1)
        }
        Scope::End => source.bytes.len(),
        _ => source
            .tokens
            .get(region.start)
            .map_or(source.bytes.len(), |t| line_start(source.bytes, t.span.start)),
    };
    Ok(vec![insert_lines_at(hunk, source, at)])
}

fn scope_name(scope: &Scope) -> String {
    match scope {
        Scope::File | Scope::End => "file".to_string(),
        Scope::BeforeIncludes | Scope::AfterIncludes => "#include".to_string(),
        Scope::FirstLine => "first line".to_string(),
        Scope::Function(names) => format!("{}()", names.join("() or ")),
        Scope::Target(name) => format!("target {name}"),
    }
}

fn overlap(source: &Source<'_>, edits: &[Edit]) -> Option<Misfit> {
    edits
        .windows(2)
        .find(|pair| pair[0].range.end > pair[1].range.start)
        .map(|pair| Misfit::Overlap { line: source.line(pair[1].range.start) })
}

/// Returns `bytes` with `edits` applied. They are in order and do not overlap.
#[must_use]
pub fn apply(bytes: &[u8], edits: &[Edit]) -> Vec<u8> {
    let grown: usize = edits.iter().map(|e| e.text.len()).sum();
    let mut out = Vec::with_capacity(bytes.len() + grown);
    let mut at = 0;
    for edit in edits {
        out.extend_from_slice(&bytes[at..edit.range.start]);
        out.extend_from_slice(&edit.text);
        at = edit.range.end;
    }
    out.extend_from_slice(&bytes[at..]);
    out
}

/// Returns the edits of one hunk at one match.
fn hunk_edits(hunk: &Hunk, lang: Lang, source: &Source<'_>, found: &Match) -> Vec<Edit> {
    let writer = Writer { hunk, lang, source, found };
    let mut edits = Vec::new();
    let mut at = 0;
    while at < hunk.lines.len() {
        if hunk.lines[at].mark == Mark::Context {
            at += 1;
            continue;
        }
        let end = (at..hunk.lines.len())
            .find(|&i| hunk.lines[i].mark == Mark::Context)
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
        let (removed, added) = (of(Mark::Remove), of(Mark::Add));
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
                Piece::Text(text) => out.extend_from_slice(text.as_bytes()),
                Piece::Variable(name) => {
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
            .filter(|&i| self.hunk.lines[i].mark != Mark::Add && self.has_tokens(i))
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
        if self.lang == Lang::Text && last.kind == Kind::LineEnd {
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
                Kind::LineEnd => Some(false),
                Kind::Directive => Some(true),
                _ => None,
            })
            .unwrap_or(false)
            && tokens[token].kind != Kind::LineEnd
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
        let line_end = |i: usize| self.source.tokens[i].kind == Kind::LineEnd;
        let first = old.start;
        let old: Vec<usize> = old.filter(|&i| !line_end(i)).collect();
        if old.is_empty() {
            let at = self.source.tokens[first].span.start;
            return vec![Edit { range: at..at, text: text.to_vec() }];
        }
        let new_tokens: Vec<usize> =
            (0..new.tokens.len()).filter(|&i| new.tokens[i].kind != Kind::LineEnd).collect();
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
fn insert_lines_at(hunk: &Hunk, source: &Source<'_>, at: usize) -> Edit {
    let eol = eol_at(source.bytes, at);
    let mut text = Vec::new();
    if at > 0 && source.bytes[at - 1] != b'\n' {
        text.extend_from_slice(eol);
    }
    for line in hunk.lines.iter().filter(|l| l.mark == Mark::Add) {
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

fn line_start(bytes: &[u8], at: usize) -> usize {
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
