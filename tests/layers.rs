//! The folders of the sources are the architecture: no module imports another in a circle, and no import goes up.
//!
//! ARCHITECTURE.md says what each room is for; here is which is above which. What tests import does not count.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::str::FromStr;

use proc_macro2::{Delimiter, TokenStream, TokenTree};

/// The rooms of the tool, from the bottom up. A module belongs to the room with the longest name that is its own or
/// that of a folder around it. Rooms of one line stand side by side and do not import each other.
const TOOL: &[&[&str]] = &[
    &["error", "date", "sys"],
    &["output", "fixture"],
    &["engine::lex"],
    &["engine::makefile", "engine::include", "engine::function"],
    &["engine::rule"],
    &["engine::matcher"],
    &["engine::edit"],
    &["engine"],
    &["patches", "qmail"],
    &["tree"],
    &["verify::error"],
    &["verify::sandbox"],
    &["verify::build"],
    &["verify::rig"],
    &["verify::proofs"],
    &["verify"],
    &["gate", "doctor"],
    &["commands"],
    &["cli"],
];

/// Where the gate's sources are.
const GATE: &str = "gate/src";

#[test]
fn the_tool_has_no_circle_and_no_import_upwards() {
    let sources = Sources::read(Path::new("src"));
    assert_eq!(sources.wrong(TOOL), [""; 0]);
}

#[test]
fn the_gate_has_no_circle() {
    let sources = Sources::read(Path::new(GATE));
    assert!(sources.modules.len() > 20, "{GATE} is not where the gate's sources are");
    assert_eq!(sources.circles(), [""; 0]);
}

#[test]
fn a_circle_and_an_import_upwards_are_found() {
    let layers: &[&[&str]] = &[&["low"], &["high", "beside"]];
    let wrong = |files: &[(&str, &str)]| Sources::of(files).wrong(layers);
    let good = [
        ("", "mod low; mod high; pub use high::a as upstairs;"),
        ("low", "//! crate::high\nuse std::fmt; fn f() -> &'static str { \"crate::high::f\" }"),
        ("high", "pub mod a; mod b; pub use b::F; use crate::low::f; fn g() { a::x(); }"),
        (
            "high::a",
            "use super::b::{self, F}; #[cfg(test)] mod tests { use crate::beside::f; use super::super::x; }",
        ),
        ("high::b", "pub(in crate::high) struct F; // use super::a;\n/* use super::a; */"),
        (
            "beside",
            "use crate::low; #[cfg(test)] use crate::high::a; #[cfg(test)] fn t() { crate::high::g(); }",
        ),
    ];
    assert_eq!(wrong(&good), [""; 0]);
    for (module, more, expected) in [
        ("low", "use crate::high;", "low imports high (crate::high): that is above it"),
        (
            "low",
            "fn g() { x(&[m!(crate::high::a::x())]); }",
            "low imports high::a (crate::high::a::x): that is above it",
        ),
        (
            "beside",
            "use crate::{low, high::{a as c}};",
            "beside imports high::a (crate::high::a): that is beside it",
        ),
        ("high::b", "use super::a;", "a circle: high::a -> high::b -> high::a"),
        ("high::b", "fn h() { super::g() }", "a circle: high -> high::a -> high::b -> high"),
        ("high::b", "use super::super::high::a::y;", "a circle: high::a -> high::b -> high::a"),
        // By names that other modules pass on.
        ("low", "use crate::high::F;", "low imports high::b (crate::high::F): that is above it"),
        (
            "low",
            "use crate::upstairs::x;",
            "low imports high::a (crate::upstairs::x): that is above it",
        ),
        (
            "low",
            "pub use crate::high::b::F;",
            "low imports high::b (crate::high::b::F): that is above it",
        ),
    ] {
        let mut files = good.map(|(name, text)| (name, text.to_string()));
        let (_, text) = files.iter_mut().find(|(name, _)| *name == module).unwrap();
        text.insert(0, '\n');
        text.push('\n');
        text.push_str(more);
        let files: Vec<_> = files.iter().map(|(name, text)| (*name, text.as_str())).collect();
        let found = wrong(&files);
        assert!(found.iter().any(|found| found == expected), "{module} {more}: {found:?}");
    }
    let homeless = wrong(&[("new::room", "")]);
    assert_eq!(homeless, ["new::room is in no room: give it one in tests/layers.rs"]);
}

/// The modules of a crate.
struct Sources {
    modules: BTreeMap<String, Module>,
}

/// What a module imports, and what it passes on.
#[derive(Default)]
struct Module {
    /// By the module that is imported: the first path that says so.
    imports: BTreeMap<String, String>,
}

/// A path in a module, without `crate`, and whether it is only passed on (`pub use`).
struct Mention {
    path: Vec<String>,
    written: String,
}

impl Sources {
    fn read(root: &Path) -> Sources {
        let mut files = Vec::new();
        read_folder(&Path::new(env!("CARGO_MANIFEST_DIR")).join(root), "", &mut files);
        let files: Vec<_> =
            files.iter().map(|(name, text)| (name.as_str(), text.as_str())).collect();
        Sources::of(&files)
    }

    fn of(files: &[(&str, &str)]) -> Sources {
        let names: BTreeSet<String> = files.iter().map(|(name, _)| (*name).to_string()).collect();
        let mut mentions = Vec::new();
        let mut aliases = BTreeMap::new();
        for (name, text) in files {
            let tokens = TokenStream::from_str(text).unwrap_or_else(|e| panic!("{name}: {e}"));
            let mut reader = Reader {
                module: segments(name),
                names: &names,
                mentions: Vec::new(),
                passed_on: Vec::new(),
                words: BTreeSet::new(),
            };
            reader.tokens(&tokens.into_iter().collect::<Vec<_>>());
            for (alias, path, written) in reader.passed_on {
                // What the module uses itself it imports as well.
                if reader.words.contains(&alias) {
                    reader.mentions.push(Mention { path: path.clone(), written });
                }
                aliases.insert([segments(name), vec![alias]].concat(), path);
            }
            mentions.push(((*name).to_string(), reader.mentions));
        }
        let mut modules = BTreeMap::new();
        for (name, mentions) in mentions {
            let mut module = Module::default();
            for Mention { path, written } in mentions {
                let imported = module_of(path, &names, &aliases);
                if let Some(imported) =
                    imported.filter(|imported| !imported.is_empty() && *imported != name)
                {
                    module.imports.entry(imported).or_insert(written);
                }
            }
            modules.insert(name, module);
        }
        Sources { modules }
    }

    fn wrong(&self, layers: &[&[&str]]) -> Vec<String> {
        let rooms = layers
            .iter()
            .zip(0..)
            .flat_map(|(rooms, height)| rooms.iter().map(move |room| (*room, height)));
        let rooms: Vec<(&str, usize)> = rooms.collect();
        let room_of = |module: &str| {
            let holds = |room: &str| module == room || module.starts_with(&format!("{room}::"));
            rooms.iter().filter(|(room, _)| holds(room)).max_by_key(|(room, _)| room.len())
        };
        let mut wrong = Vec::new();
        for (name, module) in self.modules.iter().filter(|(name, _)| !name.is_empty()) {
            let Some((room, height)) = room_of(name) else {
                wrong.push(format!("{name} is in no room: give it one in tests/layers.rs"));
                continue;
            };
            for (imported, written) in &module.imports {
                let where_it_is = match room_of(imported) {
                    Some((other, at)) if at >= height && other != room => {
                        if at > height {
                            "above"
                        } else {
                            "beside"
                        }
                    }
                    _ => continue,
                };
                wrong.push(format!(
                    "{name} imports {imported} ({written}): that is {where_it_is} it"
                ));
            }
        }
        wrong.extend(self.circles());
        wrong
    }

    /// One circle for each module that is in any, the shortest through it.
    fn circles(&self) -> Vec<String> {
        let circles: BTreeSet<String> =
            self.modules.keys().filter_map(|name| self.circle(name)).collect();
        circles.into_iter().collect()
    }

    /// The shortest way from a module back to it, if no module on it has a smaller name.
    fn circle(&self, start: &str) -> Option<String> {
        let mut came_from: BTreeMap<&str, &str> = BTreeMap::new();
        let mut edge = vec![start];
        while !edge.is_empty() {
            let mut next = Vec::new();
            for from in edge {
                for to in
                    self.modules.get(from).into_iter().flat_map(|module| module.imports.keys())
                {
                    if to == start {
                        let mut way = vec![start, from];
                        while let Some(before) = came_from.get(way[way.len() - 1]) {
                            way.push(before);
                        }
                        if from == start {
                            return None;
                        }
                        way.reverse();
                        let is_told_elsewhere = way.iter().any(|module| *module < start);
                        return (!is_told_elsewhere)
                            .then(|| format!("a circle: {}", way.join(" -> ")));
                    }
                    if to.as_str() > start && !came_from.contains_key(to.as_str()) {
                        came_from.insert(to, from);
                        next.push(to.as_str());
                    }
                }
            }
            edge = next;
        }
        None
    }
}

fn segments(path: &str) -> Vec<String> {
    path.split("::").filter(|part| !part.is_empty()).map(str::to_string).collect()
}

/// The module that a path leads to, by way of names that modules pass on.
fn module_of(
    mut path: Vec<String>,
    names: &BTreeSet<String>,
    aliases: &BTreeMap<Vec<String>, Vec<String>>,
) -> Option<String> {
    for _ in 0..10 {
        // None of them: the crate's root.
        let length =
            (0..=path.len()).rev().find(|&length| names.contains(&path[..length].join("::")))?;
        match path.get(..=length).and_then(|with_item| aliases.get(with_item)) {
            Some(target) => path = [target.as_slice(), &path[length + 1..]].concat(),
            None => return Some(path[..length].join("::")),
        }
    }
    panic!("{}: names that lead to each other", path.join("::"));
}

/// Finds the paths of a module.
struct Reader<'n> {
    module: Vec<String>,
    names: &'n BTreeSet<String>,
    mentions: Vec<Mention>,
    /// Names that are passed on: how it is called here, and the path.
    passed_on: Vec<(String, Vec<String>, String)>,
    /// The words of what it does itself.
    words: BTreeSet<String>,
}

impl Reader<'_> {
    fn tokens(&mut self, tokens: &[TokenTree]) {
        let mut at = 0;
        let mut is_public = false;
        while at < tokens.len() {
            match &tokens[at] {
                TokenTree::Punct(hash) if hash.as_char() == '#' && is_test(tokens.get(at + 1)) => {
                    at = behind_item(tokens, at + 2);
                    continue;
                }
                TokenTree::Ident(word) if word == "pub" => {
                    is_public = true;
                    // pub(in crate::x) imports nothing.
                    let restricted =
                        |group: &proc_macro2::Group| group.delimiter() == Delimiter::Parenthesis;
                    let next = tokens.get(at + 1);
                    at += match next {
                        Some(TokenTree::Group(group)) if restricted(group) => 2,
                        _ => 1,
                    };
                    continue;
                }
                TokenTree::Ident(word) if word == "use" => {
                    let end = (at..tokens.len())
                        .find(|&i| is_punct(tokens.get(i), ';'))
                        .unwrap_or(tokens.len());
                    self.use_tree(&tokens[at + 1..end], &[], is_public);
                    at = end;
                }
                TokenTree::Ident(_) if is_path(tokens, at) && !is_path_before(tokens, at) => {
                    let (path, end) = path_at(tokens, at);
                    self.mention(&path, None);
                    self.words.insert(path[0].clone());
                    at = end;
                    continue;
                }
                TokenTree::Ident(word) if word == "mod" => at += 1,
                TokenTree::Ident(word) => {
                    self.words.insert(word.to_string());
                }
                TokenTree::Group(group) => {
                    self.tokens(&group.stream().into_iter().collect::<Vec<_>>());
                }
                _ => {}
            }
            is_public = false;
            at += 1;
        }
    }

    /// What is behind `use`, or in its braces behind `before`.
    fn use_tree(&mut self, tokens: &[TokenTree], before: &[String], is_public: bool) {
        for tree in tokens.split(|token| is_punct(Some(token), ',')).filter(|tree| !tree.is_empty())
        {
            let (path, end) = path_at(tree, 0);
            let path = [before, &path].concat();
            match tree.get(end..) {
                Some([.., TokenTree::Group(group)]) => {
                    self.use_tree(
                        &group.stream().into_iter().collect::<Vec<_>>(),
                        &path,
                        is_public,
                    );
                }
                rest => {
                    let rest = rest.unwrap_or_default();
                    let renamed = match rest {
                        [TokenTree::Ident(word), TokenTree::Ident(name)] if word == "as" => {
                            Some(name.to_string())
                        }
                        _ => None,
                    };
                    let name = renamed.or_else(|| path.last().cloned());
                    self.mention(&path, name.filter(|_| is_public));
                }
            }
        }
    }

    fn mention(&mut self, path: &[String], passed_on_as: Option<String>) {
        let written = path.join("::");
        let mut full = match path[0].as_str() {
            "crate" => Vec::new(),
            "self" => self.module.clone(),
            "super" => self.module.clone(),
            child => {
                let full = [self.module.as_slice(), &[child.to_string()]].concat();
                if !self.names.contains(&full.join("::")) {
                    return;
                }
                self.module.clone()
            }
        };
        for part in path {
            match part.as_str() {
                "crate" | "self" => {}
                "super" => {
                    full.pop();
                }
                part => full.push(part.to_string()),
            }
        }
        match passed_on_as {
            Some(name) => {
                // What is in its own folder it only passes on.
                if !full.starts_with(&self.module) {
                    self.mentions.push(Mention { path: full.clone(), written: written.clone() });
                }
                self.passed_on.push((name, full, written));
            }
            None => self.mentions.push(Mention { path: full, written }),
        }
    }
}

fn is_punct(token: Option<&TokenTree>, wanted: char) -> bool {
    matches!(token, Some(TokenTree::Punct(punct)) if punct.as_char() == wanted)
}

fn is_path(tokens: &[TokenTree], at: usize) -> bool {
    is_punct(tokens.get(at + 1), ':') && is_punct(tokens.get(at + 2), ':')
}

fn is_path_before(tokens: &[TokenTree], at: usize) -> bool {
    at >= 2 && is_punct(tokens.get(at - 1), ':') && is_punct(tokens.get(at - 2), ':')
}

/// The words of the path at `at`, and where it ends: behind its last word, or behind the colons before a brace or a
/// star.
fn path_at(tokens: &[TokenTree], mut at: usize) -> (Vec<String>, usize) {
    let mut path = Vec::new();
    while let Some(TokenTree::Ident(word)) = tokens.get(at) {
        path.push(word.to_string());
        at += 1;
        if !is_path(tokens, at - 1) {
            break;
        }
        at += 2;
    }
    (path, at)
}

/// Whether this is what is behind the `#` of `#[cfg(test)]`.
fn is_test(token: Option<&TokenTree>) -> bool {
    let Some(TokenTree::Group(group)) = token else { return false };
    group.stream().to_string().replace(' ', "") == "cfg(test)"
}

/// Behind the item at `at`: a brace or a semicolon ends it.
fn behind_item(tokens: &[TokenTree], at: usize) -> usize {
    let ends = |token: &TokenTree| match token {
        TokenTree::Group(group) => group.delimiter() == Delimiter::Brace,
        token => is_punct(Some(token), ';'),
    };
    (at..tokens.len()).find(|&i| ends(&tokens[i])).map_or(tokens.len(), |end| end + 1)
}

/// The files of a folder, by their modules' names. The programs' own (main.rs) have none.
fn read_folder(folder: &Path, module: &str, files: &mut Vec<(String, String)>) {
    let entries = fs::read_dir(folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
    for path in entries.map(|entry| entry.unwrap().path()) {
        let stem = path.file_stem().unwrap().to_string_lossy().into_owned();
        let below = |name: &str| {
            if module.is_empty() { name.to_string() } else { format!("{module}::{name}") }
        };
        if path.is_dir() {
            read_folder(&path, &below(&stem), files);
        } else if path.extension().is_some_and(|end| end == "rs") && stem != "main" {
            let name =
                if stem == "mod" || stem == "lib" { module.to_string() } else { below(&stem) };
            files.push((name, fs::read_to_string(&path).unwrap()));
        }
    }
}
