//! A rule applied to a whole file: whether it is done, fits, or does not fit, and the edits.
//!
//! [`examine`] returns edits only if the post-condition of the rule holds after them. `write` makes
//! the text of each edit.

#![forbid(unsafe_code)]

mod write;

use std::fmt;
use std::ops::Range;

use crate::engine::lex::{Lang, Source};
use crate::engine::matcher::{self, Match, Near, Nearest};
use crate::engine::rule::{Count, Hunk, Rule, RulePart, Scope};
pub use write::Edit;
use write::{hunk_edits, insert_lines_at, line_start};

/// The state of a file with regard to a rule.
#[derive(Clone, Debug)]
pub enum Examined {
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
pub fn examine(rule: &Rule, lang: Lang, source: &Source<'_>) -> Examined {
    if holds(rule, lang, source) {
        return Examined::Done;
    }
    let mut edits = Vec::new();
    for part in &rule.parts {
        match part_edits(part, lang, source) {
            Ok(part_edits) => edits.extend(part_edits),
            Err(misfit) => return Examined::Misfit(misfit),
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
        return Examined::Misfit(misfit);
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
        return Examined::Misfit(Misfit::Unproved(near));
    }
    Examined::Fits { edits }
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
pub struct PartMatches {
    /// The first variant that matches; `None` if none does, which [`Count::Any`] allows.
    pub variant: Option<usize>,
    /// Its matches. Empty for a variant that has only `+` lines: its place is its scope.
    pub matches: Vec<Match>,
    /// The regions that were searched.
    regions: Vec<Range<usize>>,
}

/// Returns where `part` matches, in the first variant that does.
///
/// # Errors
/// If it does not match, or not as often as it must.
pub fn find(part: &RulePart, lang: Lang, source: &Source<'_>) -> Result<PartMatches, Misfit> {
    let nothing = || Ok(PartMatches { variant: None, matches: Vec::new(), regions: Vec::new() });
    let regions = match matcher::regions(source, lang, &part.scope) {
        Ok(regions) => regions,
        Err(_) if part.count == Count::Any => return nothing(),
        Err(has) => return Err(Misfit::NoScope { wanted: scope_name(&part.scope), has }),
    };
    for (n, hunk) in part.variants.iter().enumerate() {
        if hunk.pattern.elements.is_empty() {
            return Ok(PartMatches { variant: Some(n), matches: Vec::new(), regions });
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
        return Ok(PartMatches { variant: Some(n), matches, regions });
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
pub fn nearest(part: &RulePart, lang: Lang, source: &Source<'_>) -> Vec<Near> {
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

fn part_edits(part: &RulePart, lang: Lang, source: &Source<'_>) -> Result<Vec<Edit>, Misfit> {
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
