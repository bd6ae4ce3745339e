//! The lines of a rule file, and the errors in them.

#![forbid(unsafe_code)]

use crate::engine::rule::{Attachments, Parameters, RuleError};

/// The first words of a section.
pub(super) const SECTIONS: [&str; 6] = ["file", "file?", "files", "files?", "create", "refuse"];

/// Reads a rule file line by line.
pub(super) struct RuleParser<'a> {
    pub(super) file: &'a str,
    pub(super) parameters: &'a Parameters,
    pub(super) attachments: &'a Attachments<'a>,
    pub(super) lines: Vec<&'a str>,
    pub(super) at: usize,
    /// The `when` of the section that is being read.
    pub(super) when: Option<String>,
}

impl<'a> RuleParser<'a> {
    /// Returns an error in the current line at `column`, counted from 0.
    pub(super) fn error<T>(
        &self,
        column: usize,
        message: impl Into<String>,
    ) -> Result<T, RuleError> {
        let last = self.lines.len().saturating_sub(1);
        self.error_in(self.at.min(last), column, message)
    }

    /// Returns an error in line `line`, counted from 0.
    pub(super) fn error_in<T>(
        &self,
        line: usize,
        column: usize,
        message: impl Into<String>,
    ) -> Result<T, RuleError> {
        let (file, message) = (self.file.to_string(), message.into());
        Err(RuleError { file, line: line + 1, column: column + 1, message })
    }

    /// Returns the next line that is neither blank nor a comment, without moving past it.
    pub(super) fn next(&mut self) -> Option<&'a str> {
        while let Some(line) = self.lines.get(self.at).copied() {
            if line.trim().is_empty() || line.starts_with('#') {
                self.at += 1;
            } else {
                return Some(line);
            }
        }
        None
    }

    /// Returns `text`, which starts in column 1, with `${name}` replaced by its parameter, and `$${` by a literal
    /// `${`.
    pub(super) fn substituted(&self, text: &str) -> Result<String, RuleError> {
        let mut out = String::new();
        let mut at = 0;
        while let Some(start) = text[at..].find("${").map(|n| at + n) {
            if text[at..start].ends_with('$') {
                out.push_str(&text[at..start - 1]);
                out.push_str("${");
                at = start + 2;
                continue;
            }
            let Some(end) = text[start..].find('}').map(|n| start + n) else {
                return self.error(start + 1, "expected `}` after `${`");
            };
            let name = &text[start + 2..end];
            if self.when.as_deref() != Some(name) {
                let wanted = match &self.when {
                    Some(when) => format!("expected `${{{when}}}`, the parameter of this section"),
                    None => "expected a section with `when` for a parameter".to_string(),
                };
                return self.error(start + 1, format!("{wanted}; found `${{{name}}}`"));
            }
            out.push_str(&text[at..start]);
            // If the parameter has no value, the section is dropped after parsing.
            out.push_str(self.parameters.get(name).map_or("0", String::as_str));
            at = end + 1;
        }
        out.push_str(&text[at..]);
        Ok(out)
    }
}

pub(super) fn is_identifier(word: &str) -> bool {
    word.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        && word.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
}

/// Formats the words as `a`, `b` or `c`.
pub(super) fn one_of(words: &[&str]) -> String {
    match words {
        [] => String::new(),
        [one] => format!("`{one}`"),
        [first @ .., last] => {
            let first: Vec<_> = first.iter().map(|word| format!("`{word}`")).collect();
            format!("{} or `{last}`", first.join(", "))
        }
    }
}
