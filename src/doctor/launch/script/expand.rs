//! Expands a word of a script: variables get their values, and a value without quotes is split into words.
#![forbid(unsafe_code)]

use super::walk::{ScriptState, VALUE_MAX, Walk};
use crate::doctor::launch::field::{Field, Variable};
use crate::doctor::launch::shell::{self, PieceKind, Shell, Word};

impl Walk<'_> {
    /// Returns the words that `word` expands to. A part that only the running script knows stays as it is written,
    /// and the word counts as unknown.
    pub(super) fn expand(&self, word: &Word, place: &ScriptState) -> Vec<Field> {
        let column = if word.line <= 1 { word.column + self.base.1 } else { word.column };
        let here = |text: &str, known| Field {
            text: text.to_owned(),
            known,
            file: self.file.clone(),
            line: self.line_of(word.line),
            column,
        };
        let mut fields: Vec<Field> = Vec::new();
        let mut current: Option<Field> = None;
        let add = |current: &mut Option<Field>, text: &str, known: bool| match current {
            // A longer value is neither a limit nor a path.
            Some(field) if field.text.len() + text.len() > VALUE_MAX => field.known = false,
            Some(field) => {
                field.text.push_str(text);
                field.known &= known;
            }
            None => *current = Some(here(text, known)),
        };
        let is_empty =
            |piece: &&shell::Piece| piece.kind == PieceKind::Plain && piece.text.is_empty();
        let is_one_piece = word.pieces.iter().filter(|piece| !is_empty(piece)).count() == 1;
        for piece in &word.pieces {
            let (value, origin) = match &piece.kind {
                PieceKind::Plain => {
                    add(&mut current, &piece.text, true);
                    continue;
                }
                PieceKind::Dynamic => (None, None),
                PieceKind::Variable(name, default) => match (place.variables.get(name), default) {
                    (Some(Variable { value: Some(value), file, line }), _) if !value.is_empty() => {
                        (Some(value.clone()), Some((file, *line)))
                    }
                    (Some(Variable { value: Some(value), .. }), default) => match default {
                        Some(default) if !default.contains('$') && !default.contains('`') => {
                            (Some(default.trim_matches(['"', '\'']).to_owned()), None)
                        }
                        Some(_) => (None, None),
                        None => (Some(value.clone()), None),
                    },
                    _ => (None, None),
                },
            };
            let Some(value) = value else {
                add(&mut current, &piece.text, false);
                continue;
            };
            // zsh does not split a value.
            if piece.quoted || self.shell == Shell::Zsh {
                add(&mut current, &value, true);
            } else {
                let mut parts = value.split_whitespace();
                if value.starts_with(char::is_whitespace) {
                    fields.extend(current.take());
                }
                if let Some(part) = parts.next() {
                    add(&mut current, part, true);
                }
                for part in parts {
                    fields.extend(current.take());
                    add(&mut current, part, true);
                }
                if value.ends_with(char::is_whitespace) {
                    fields.extend(current.take());
                }
            }
            // If the word is just one variable, the line to change is the one that sets the variable.
            if let (true, Some((file, line))) = (is_one_piece, origin.filter(|(_, line)| *line > 0))
            {
                for field in fields.iter_mut().chain(current.iter_mut()) {
                    (field.file, field.line, field.column) = (file.clone(), line, 0);
                }
            }
        }
        fields.extend(current);
        fields
    }
}
