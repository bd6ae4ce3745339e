//! The syntax of main.cf and of lookup tables: logical lines, and `$name` in values.
//!
//! As in postconf(1) and postconf(5): a line that begins with white space continues the one before, also across
//! comments and empty lines between them; `#` begins a comment only as the first visible character of a line. `$name`, `${name}`
//! and `$(name)` are the value of another parameter, `${name?text}` and `${name:text}` depend on whether it has one,
//! `${name?{yes}:{no}}` and `${{left} == {right} ? {yes} : {no}}` choose, and `$$` is a dollar sign.

use std::collections::{BTreeSet, HashMap};

/// How deep values may name others.
const DEPTH_MAX: usize = 20;

/// The longest value, in bytes.
const LENGTH_MAX: usize = 64 << 10;

/// A logical line, and the number of its first line, from 1.
pub(super) struct LogicalLine {
    pub(super) number: u32,
    pub(super) text: String,
}

/// The logical lines of a file.
pub(super) fn logical_lines(text: &str) -> Vec<LogicalLine> {
    let mut lines: Vec<LogicalLine> = Vec::new();
    for (number, line) in (1..).zip(text.split('\n')) {
        let line = line.strip_suffix('\r').unwrap_or(line);
        let content = line.trim_matches(|sign: char| sign.is_ascii_whitespace());
        if content.is_empty() || content.starts_with('#') {
            continue;
        }
        match lines.last_mut() {
            Some(last) if line.starts_with([' ', '\t']) => {
                last.text.push(' ');
                last.text.push_str(content);
            }
            _ => lines.push(LogicalLine { number, text: content.to_string() }),
        }
    }
    lines
}

/// The words of a list: separated by white space and commas outside of braces.
pub(super) fn list_words(list: &str) -> impl Iterator<Item = &str> {
    let mut level = 0usize;
    let is_between = move |sign: char| {
        match sign {
            '{' => level += 1,
            '}' => level = level.saturating_sub(1),
            _ => {}
        }
        level == 0 && (sign == ',' || sign.is_ascii_whitespace())
    };
    list.split(is_between).filter(|word| !word.is_empty())
}

/// Why a value cannot be known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Unknown {
    /// It names a parameter that the file does not set.
    NotSet(String),
    /// It names itself, or is too deep or too long.
    Endless,
    /// A bracket is missing, or a condition cannot be read.
    Malformed,
}

impl Unknown {
    pub(super) fn reason(&self) -> String {
        match self {
            Unknown::NotSet(name) => {
                format!(
                    "it uses ${name}, which the file does not set; write its value (postconf {name}) in its place"
                )
            }
            Unknown::Endless => "its value names itself, or is too long".to_string(),
            Unknown::Malformed => {
                "a bracket of a $name is missing, or its condition cannot be read".to_string()
            }
        }
    }
}

/// A value with all names replaced.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Expanded {
    pub(super) text: String,
    /// The parameters that it names, also through others.
    pub(super) names: BTreeSet<String>,
}

/// Replaces all names in a value.
pub(super) fn expand(text: &str, values: &HashMap<String, String>) -> Result<Expanded, Unknown> {
    let mut out = Expanded { text: String::new(), names: BTreeSet::new() };
    expand_into(text, values, DEPTH_MAX, &mut out)?;
    Ok(out)
}

fn expand_into(
    text: &str,
    values: &HashMap<String, String>,
    depth: usize,
    out: &mut Expanded,
) -> Result<(), Unknown> {
    let depth = depth.checked_sub(1).ok_or(Unknown::Endless)?;
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        out.text.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        if let Some(after) = rest.strip_prefix('$') {
            out.text.push('$');
            rest = after;
        } else if rest.starts_with(['{', '(']) {
            let (inner, after) = bracketed(rest).ok_or(Unknown::Malformed)?;
            rest = after;
            expand_bracketed(inner, values, depth, out)?;
        } else {
            let is_name = |sign: char| sign.is_ascii_alphanumeric() || sign == '_';
            let end = rest.find(|sign| !is_name(sign)).unwrap_or(rest.len());
            let (name, after) = rest.split_at(end);
            if name.is_empty() {
                return Err(Unknown::Malformed);
            }
            rest = after;
            expand_name(name, values, depth, out)?;
        }
        if out.text.len() > LENGTH_MAX {
            return Err(Unknown::Endless);
        }
    }
    out.text.push_str(rest);
    if out.text.len() > LENGTH_MAX { Err(Unknown::Endless) } else { Ok(()) }
}

fn expand_name(
    name: &str,
    values: &HashMap<String, String>,
    depth: usize,
    out: &mut Expanded,
) -> Result<(), Unknown> {
    let value = values.get(name).ok_or_else(|| Unknown::NotSet(name.to_string()))?;
    out.names.insert(name.to_string());
    expand_into(value, values, depth, out)
}

/// The text in the brackets that a text begins with, and what follows them.
fn bracketed(text: &str) -> Option<(&str, &str)> {
    let open = text.chars().next()?;
    let close = if open == '{' { '}' } else { ')' };
    let mut level = 0usize;
    for (at, sign) in text.char_indices() {
        if sign == open {
            level += 1;
        } else if sign == close {
            level -= 1;
            if level == 0 {
                return Some((&text[1..at], &text[at + 1..]));
            }
        }
    }
    None
}

/// What stands in `${...}`.
fn expand_bracketed(
    inner: &str,
    values: &HashMap<String, String>,
    depth: usize,
    out: &mut Expanded,
) -> Result<(), Unknown> {
    let inner = inner.trim();
    let (is_true, rest) = if inner.starts_with('{') {
        let (left, rest) = bracketed(inner).ok_or(Unknown::Malformed)?;
        let rest = rest.trim_start();
        let operators = ["==", "!=", "<=", ">=", "<", ">"];
        let operator = operators.iter().find(|operator| rest.starts_with(**operator));
        let operator = *operator.ok_or(Unknown::Malformed)?;
        let (right, rest) = bracketed(rest[operator.len()..].trim_start())
            .filter(|_| rest[operator.len()..].trim_start().starts_with('{'))
            .ok_or(Unknown::Malformed)?;
        let mut side = |text: &str| {
            let mut side = Expanded { text: String::new(), names: BTreeSet::new() };
            expand_into(text.trim(), values, depth, &mut side)?;
            out.names.extend(side.names);
            Ok(side.text)
        };
        (compare(&side(left)?, operator, &side(right)?), rest.trim_start())
    } else {
        let is_name = |sign: char| sign.is_ascii_alphanumeric() || sign == '_';
        let end = inner.find(|sign| !is_name(sign)).unwrap_or(inner.len());
        let (name, rest) = inner.split_at(end);
        let rest = rest.trim_start();
        if rest.is_empty() {
            return match name {
                "" => Err(Unknown::Malformed),
                name => expand_name(name, values, depth, out),
            };
        }
        let mut value = Expanded { text: String::new(), names: BTreeSet::new() };
        // A parameter that the file does not set may have a value of Postfix's own.
        expand_name(name, values, depth, &mut value)?;
        out.names.extend(value.names);
        (!value.text.is_empty(), rest)
    };
    let (yes, no) = choices(rest).ok_or(Unknown::Malformed)?;
    match if is_true { yes } else { no } {
        Some(text) => expand_into(text, values, depth, out),
        None => Ok(()),
    }
}

/// `?{yes}:{no}`, `?yes`, `:no`.
fn choices(rest: &str) -> Option<(Option<&str>, Option<&str>)> {
    let mut parts = (None, None);
    if let Some(yes) = rest.strip_prefix('?') {
        let trimmed = yes.trim_start();
        if !trimmed.starts_with('{') {
            return Some((Some(yes), None));
        }
        let (yes, rest) = bracketed(trimmed)?;
        parts.0 = Some(yes.trim());
        match rest.trim_start() {
            "" => return Some(parts),
            rest => {
                let no = rest.strip_prefix(':')?.trim_start();
                parts.1 = Some(
                    bracketed(no).filter(|_| no.starts_with('{')).map_or(no, |(no, _)| no.trim()),
                );
            }
        }
        return Some(parts);
    }
    let no = rest.strip_prefix(':')?;
    let trimmed = no.trim_start();
    let inner = trimmed.starts_with('{').then(|| bracketed(trimmed)).flatten();
    Some((None, Some(inner.map_or(no, |(no, _)| no.trim()))))
}

/// Numbers are compared as numbers, other texts as texts.
fn compare(left: &str, operator: &str, right: &str) -> bool {
    let order = match (left.parse::<i64>(), right.parse::<i64>()) {
        (Ok(left), Ok(right)) => left.cmp(&right),
        _ => left.cmp(right),
    };
    match operator {
        "==" => order.is_eq(),
        "!=" => order.is_ne(),
        "<=" => order.is_le(),
        ">=" => order.is_ge(),
        "<" => order.is_lt(),
        _ => order.is_gt(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_expanded_as_postfix_does() {
        let values =
            [("a", "1"), ("b", "x$a"), ("empty", ""), ("loop", "$loop"), ("two", "$two$two")];
        let values = values.map(|(name, value)| (name.to_string(), value.to_string())).into();
        for (text, expected) in [
            ("$a ${a} $(a)", Ok("1 1 1")),
            ("${b}y", Ok("x1y")),
            ("$$a", Ok("$a")),
            ("${a?yes}${empty?yes}", Ok("yes")),
            ("${a:no}${empty:no}", Ok("no")),
            ("${a?{yes}:{no}} ${empty ? {yes} : {no}}", Ok("yes no")),
            ("${{$a} == {1} ? {same} : {other}}", Ok("same")),
            ("${{10} > {9} ? {$b} : {other}}", Ok("x1")),
            ("${{a} != {a}?{x}}", Ok("")),
            ("${a", Err(Unknown::Malformed)),
            ("$", Err(Unknown::Malformed)),
            ("${}", Err(Unknown::Malformed)),
            ("${{$a} ~ {1}?{x}}", Err(Unknown::Malformed)),
            ("$c", Err(Unknown::NotSet("c".to_string()))),
            ("$loop", Err(Unknown::Endless)),
            ("$two", Err(Unknown::Endless)),
        ] {
            let found = expand(text, &values).map(|value| value.text);
            assert_eq!(found, expected.map(str::to_string), "{text}");
        }
        let names = expand("$b ${{$empty} == {1}?{$two}:{x}}", &values).unwrap().names;
        assert_eq!(names.into_iter().collect::<Vec<_>>(), ["a", "b", "empty"]);
    }

    #[test]
    fn a_line_that_begins_with_white_space_continues_the_one_before() {
        let text = "# x\na = 1,\n # no comment ends it\n\n\t2\r\nb = 3 # stays\n";
        let lines: Vec<_> =
            logical_lines(text).into_iter().map(|line| (line.number, line.text)).collect();
        assert_eq!(lines, [(2, "a = 1, 2".to_string()), (6, "b = 3 # stays".to_string())]);
    }
}
