//! A shaping file as a tree of values, each with its place: TOML, or JSON with the same names.

use std::ops::Range;

use serde::Deserialize;
use serde::de::{Deserializer, Error as _, MapAccess, Visitor};
use serde_json::value::RawValue;
use toml::de::{DeTable, DeValue};

use crate::error::Error;
use crate::gate::import::foreign::ForeignFile;

/// How deep values are looked at. What the reader knows is at most six deep.
const DEPTH_MAX: usize = 8;

/// A byte order mark.
const MARK: char = '\u{feff}';

/// A value, and where it stands.
#[derive(Clone, Debug)]
pub(super) struct Node {
    pub(super) span: Range<usize>,
    pub(super) value: NodeValue,
}

#[derive(Clone, Debug)]
pub(super) enum NodeValue {
    /// In the order of the file.
    Table(Vec<Entry>),
    Array(Vec<Node>),
    Text(String),
    /// A whole decimal number, as it is written.
    Number(String),
    Bool(bool),
    Other,
}

/// A name and its value in a table.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) name: String,
    /// Where the name stands; in JSON, its value.
    pub(super) at: usize,
    pub(super) node: Node,
}

impl Node {
    pub(super) fn entries(&self) -> &[Entry] {
        match &self.value {
            NodeValue::Table(entries) => entries,
            _ => &[],
        }
    }
}

/// `shaping.toml:3:20`: a place in a file, from 1.
fn place_of(source: &ForeignFile, text: &str, at: usize) -> String {
    let before = &text.as_bytes()[..at.min(text.len())];
    let line = before.iter().filter(|&&byte| byte == b'\n').count() + 1;
    let column = before.iter().rev().take_while(|&&byte| byte != b'\n').count() + 1;
    format!("{}:{line}:{column}", source.name)
}

/// Reads a file and returns its text and its tree. As in KumoMTA the name says whether it is JSON; without an ending,
/// its first character does.
///
/// # Errors
/// It is neither.
pub(super) fn read(source: &ForeignFile) -> Result<(&str, Node), Error> {
    let text = std::str::from_utf8(&source.text).map_err(|error| {
        let valid = std::str::from_utf8(&source.text[..error.valid_up_to()]).unwrap_or_default();
        let place = place_of(source, valid, valid.len());
        let what = "expected UTF-8, as TOML and JSON are; found another byte";
        Error::new(place, what, "convert the file with iconv")
    })?;
    let is_json = match () {
        () if source.name.ends_with(".json") => true,
        () if source.name.ends_with(".toml") => false,
        () => text.strip_prefix(MARK).unwrap_or(text).trim_start().starts_with('{'),
    };
    // Editors on Windows write a byte order mark. TOML may have one, and the reader of JSON does not take it.
    let text = if is_json { text.strip_prefix(MARK).unwrap_or(text) } else { text };
    let node = if is_json { of_json(source, text)? } else { of_toml(source, text)? };
    Ok((text, node))
}

fn of_toml(source: &ForeignFile, text: &str) -> Result<Node, Error> {
    let table = DeTable::parse(text).map_err(|error| {
        let place = place_of(source, text, error.span().map_or(0, |span| span.start));
        let what = format!("expected TOML: {}", error.message().trim_end());
        Error::new(place, what, "mend it, or check it with KumoMTA's validate-shaping")
    })?;
    Ok(Node { span: table.span(), value: toml_table(table.get_ref(), DEPTH_MAX) })
}

fn toml_table(table: &DeTable<'_>, depth: usize) -> NodeValue {
    let mut entries: Vec<Entry> = table
        .iter()
        .map(|(name, value)| Entry {
            name: name.get_ref().to_string(),
            at: name.span().start,
            node: Node { span: value.span(), value: toml_value(value.get_ref(), depth) },
        })
        .collect();
    entries.sort_by_key(|entry| entry.at);
    NodeValue::Table(entries)
}

fn toml_value(value: &DeValue<'_>, depth: usize) -> NodeValue {
    let Some(depth) = depth.checked_sub(1) else { return NodeValue::Other };
    match value {
        DeValue::Table(table) => toml_table(table, depth),
        DeValue::Array(values) => {
            let node = |value: &toml::Spanned<DeValue<'_>>| Node {
                span: value.span(),
                value: toml_value(value.get_ref(), depth),
            };
            NodeValue::Array(values.iter().map(node).collect())
        }
        DeValue::String(text) => NodeValue::Text(text.to_string()),
        DeValue::Integer(number) if number.radix() == 10 => {
            NodeValue::Number(number.as_str().to_string())
        }
        DeValue::Boolean(value) => NodeValue::Bool(*value),
        _ => NodeValue::Other,
    }
}

/// An object as it is written: serde_json's own map has neither the order nor the places.
struct RawObject<'a>(Vec<(String, &'a RawValue)>);

impl<'de> Deserialize<'de> for RawObject<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries;
        impl<'de> Visitor<'de> for Entries {
            type Value = RawObject<'de>;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<Self::Value, M::Error> {
                let mut entries = Vec::new();
                let mut names = std::collections::HashSet::new();
                while let Some((name, value)) = map.next_entry::<String, &'de RawValue>()? {
                    if !names.insert(name.clone()) {
                        return Err(M::Error::custom(format!("the name {name} stands twice")));
                    }
                    entries.push((name, value));
                }
                Ok(RawObject(entries))
            }
        }
        deserializer.deserialize_map(Entries)
    }
}

fn of_json(source: &ForeignFile, text: &str) -> Result<Node, Error> {
    let reader = JsonReader { source, text };
    let raw: &RawValue = serde_json::from_str(text).map_err(|error| reader.error(0, &error))?;
    if !raw.get().starts_with('{') {
        let place = place_of(source, text, reader.start(raw));
        return Err(Error::new(
            place,
            "expected an object with a section for each domain",
            "write { \"default\": { ... } }",
        ));
    }
    reader.node(raw, DEPTH_MAX)
}

struct JsonReader<'a> {
    source: &'a ForeignFile,
    text: &'a str,
}

impl JsonReader<'_> {
    /// Where a part of the text begins.
    fn start(&self, raw: &RawValue) -> usize {
        (raw.get().as_ptr() as usize).saturating_sub(self.text.as_ptr() as usize)
    }

    /// An error in the part of the text that begins here.
    fn error(&self, start: usize, error: &serde_json::Error) -> Error {
        let part = &self.text[start..];
        let line = part.split_inclusive('\n').take(error.line().saturating_sub(1));
        let at = start + line.map(str::len).sum::<usize>() + error.column().saturating_sub(1);
        let message = error.to_string();
        let message = message.split(" at line ").next().unwrap_or_default();
        Error::new(
            place_of(self.source, self.text, at),
            format!("expected JSON: {}", crate::gate::text::printable(message)),
            "mend it, or check it with KumoMTA's validate-shaping",
        )
    }

    fn node(&self, raw: &RawValue, depth: usize) -> Result<Node, Error> {
        let start = self.start(raw);
        let span = start..start + raw.get().len();
        let fault = |error| self.error(start, &error);
        let Some(depth) = depth.checked_sub(1) else {
            return Ok(Node { span, value: NodeValue::Other });
        };
        let value = match raw.get().as_bytes().first() {
            Some(b'{') => {
                let object: RawObject<'_> = serde_json::from_str(raw.get()).map_err(fault)?;
                let entry = |(name, value): (String, &RawValue)| {
                    Ok(Entry { name, at: self.start(value), node: self.node(value, depth)? })
                };
                NodeValue::Table(object.0.into_iter().map(entry).collect::<Result<_, _>>()?)
            }
            Some(b'[') => {
                let values: Vec<&RawValue> = serde_json::from_str(raw.get()).map_err(fault)?;
                let nodes = values.into_iter().map(|value| self.node(value, depth));
                NodeValue::Array(nodes.collect::<Result<_, _>>()?)
            }
            Some(b'"') => NodeValue::Text(serde_json::from_str(raw.get()).map_err(fault)?),
            Some(b't' | b'f') => NodeValue::Bool(raw.get() == "true"),
            Some(_) if raw.get().bytes().all(|byte| byte.is_ascii_digit()) => {
                NodeValue::Number(raw.get().to_string())
            }
            _ => NodeValue::Other,
        };
        Ok(Node { span, value })
    }
}
