//! The [`Walk`]: follows a script from its first line, along the order of its commands.
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use super::host::{PathContent, ScriptHost};
use crate::doctor::launch::field::{Field, Variable};
use crate::doctor::launch::limits::{LimitState, LimitValue, Limited};
use crate::doctor::launch::programs::StartedProgram;
use crate::doctor::launch::shell::{self, Node, Shell, Word};

/// A place in a script that starts qmail or a supervisor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StartPoint {
    /// What it starts.
    pub target: StartedProgram,
    /// The file.
    pub file: String,
    /// The limits in force there.
    pub state: LimitState,
}

/// What a walk found.
#[derive(Debug, Default)]
pub struct WalkResult {
    /// The places that start qmail or a supervisor.
    pub reaches: Vec<StartPoint>,
    /// The scripts that were followed.
    pub files: BTreeSet<String>,
    /// Files that could not be read, or not followed to the end; with the reason.
    pub unread: Vec<String>,
    /// Lines that seem to set the limit of descriptors but have no effect.
    pub idle: Vec<String>,
}

/// The most scripts within scripts.
const NESTED_MAX: usize = 12;

/// The most commands that are followed. No start script has more.
const COMMANDS_MAX: usize = 20_000;

/// The most bytes of scripts that are parsed. A script counts each time that it is read.
const PARSED_MAX: usize = 16 << 20;

/// The longest value of a variable that is kept, in bytes: `a=$a$a` doubles a value each time.
pub(super) const VALUE_MAX: usize = 16 << 10;

/// The state of a script at one place.
#[derive(Debug, Clone)]
pub(super) struct ScriptState {
    /// Whether commands still run; false after `exit` or `exec`.
    pub(super) live: bool,
    pub(super) limits: LimitState,
    pub(super) variables: BTreeMap<String, Variable>,
}

impl ScriptState {
    /// Either this state or `other`: a variable that differs becomes unknown.
    pub(super) fn join(&mut self, other: &ScriptState) {
        if !other.live {
            return;
        }
        if !self.live {
            *self = other.clone();
            return;
        }
        self.limits.join(&other.limits);
        for (name, variable) in &other.variables {
            let mine = self.variables.entry(name.clone()).or_insert_with(|| variable.clone());
            if mine.value != variable.value {
                mine.value = None;
            }
        }
        let unset: Vec<String> = self
            .variables
            .keys()
            .filter(|name| !other.variables.contains_key(*name))
            .cloned()
            .collect();
        for name in unset {
            if let Some(variable) = self.variables.get_mut(&name) {
                variable.value = None;
            }
        }
    }
}

/// Follows scripts. One value follows the scripts of one unit or one start script.
pub struct Walk<'w> {
    pub(super) host: &'w dyn ScriptHost,
    /// What was found.
    pub found: WalkResult,
    pub(super) lines: BTreeMap<String, Vec<String>>,
    pub(super) functions: BTreeMap<String, Rc<Node>>,
    pub(super) called: BTreeSet<String>,
    pub(super) calls: usize,
    pub(super) commands: usize,
    /// Bytes of scripts that were parsed.
    pub(super) parsed: usize,
    /// Whether something was not followed to the end.
    pub(super) is_cut: bool,
    pub(super) file: String,
    pub(super) shell: Shell,
    /// The line and the column at which a text between quotes starts.
    pub(super) base: (usize, usize),
    pub(super) nested: usize,
    /// How many conditions decide whether what is followed runs.
    pub(super) guards: usize,
    /// The state at the last command that ran.
    pub(super) last: Option<ScriptState>,
}

impl std::fmt::Debug for Walk<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Walk")
            .field("file", &self.file)
            .field("found", &self.found)
            .finish_non_exhaustive()
    }
}

impl<'w> Walk<'w> {
    /// Returns a walk that has followed nothing yet.
    pub fn new(host: &'w dyn ScriptHost) -> Walk<'w> {
        Walk {
            host,
            found: WalkResult::default(),
            lines: BTreeMap::new(),
            functions: BTreeMap::new(),
            called: BTreeSet::new(),
            calls: 0,
            commands: 0,
            parsed: 0,
            is_cut: false,
            file: String::new(),
            shell: Shell::Unknown,
            base: (0, 0),
            nested: 0,
            guards: 0,
            last: None,
        }
    }

    /// Records that something takes too long to follow to the end.
    pub(super) fn cut(&mut self) {
        if !self.is_cut {
            self.is_cut = true;
            self.found.unread.push(format!(
                "{}: too much to follow to the end: scripts within scripts, or very many commands",
                self.file
            ));
        }
    }

    /// Returns whether one more script, of this size in bytes, may be followed.
    pub(super) fn may_follow(&mut self, bytes: usize) -> bool {
        self.parsed = self.parsed.saturating_add(bytes);
        let may = self.nested < NESTED_MAX && self.parsed <= PARSED_MAX;
        if !may {
            self.cut();
        }
        may
    }

    /// Follows a script that is started with `limits` and `variables`.
    pub fn script(
        &mut self,
        file: &str,
        text: &str,
        limits: &LimitState,
        variables: &BTreeMap<String, Variable>,
    ) {
        if !self.may_follow(text.len()) {
            return;
        }
        self.found.files.insert(file.to_owned());
        self.lines.insert(file.to_owned(), text.lines().map(str::to_owned).collect());
        let place =
            ScriptState { live: true, limits: limits.clone(), variables: variables.clone() };
        let interpreter = interpreter(text);
        let outer = (std::mem::replace(&mut self.file, file.to_owned()), self.shell, self.base);
        self.base = (0, 0);
        self.nested += 1;
        match interpreter.as_str() {
            "execlineb" | "nosh" | "with-contenv" => {
                let links = shell::parse_chain(text);
                self.chain(&links, &place);
            }
            "openrc-run" | "runscript" => {
                self.shell = self.host.shell();
                self.openrc(file, text, place);
            }
            name => match Shell::named(name) {
                Some(shell) => {
                    self.shell = if shell == Shell::Unknown { self.host.shell() } else { shell };
                    self.whole(text, place, &[]);
                }
                None => self.found.unread.push(format!("{file}: written for {name}")),
            },
        }
        self.nested -= 1;
        (self.file, self.shell, self.base) = outer;
    }

    /// Follows the command line of a unit.
    pub fn command_line(
        &mut self,
        fields: Vec<Field>,
        limits: &LimitState,
        variables: &BTreeMap<String, Variable>,
    ) {
        let mut place =
            ScriptState { live: true, limits: limits.clone(), variables: variables.clone() };
        self.shell = self.host.shell();
        self.command(fields, &mut place, Within::Program);
    }

    /// Remembers the lines of a file, so that settings can show them.
    pub fn know(&mut self, file: &str, text: &str) {
        self.lines.insert(file.to_owned(), text.lines().map(str::to_owned).collect());
    }

    /// Follows a whole text in the shell's language. Afterwards it follows the functions that the text does not call
    /// itself, because the program that reads the text may call them.
    pub(super) fn whole(&mut self, text: &str, mut place: ScriptState, first: &[&str]) {
        let node = shell::parse(text);
        let outer = (
            std::mem::take(&mut self.functions),
            std::mem::take(&mut self.called),
            self.last.replace(place.clone()),
        );
        self.run(&node, &mut place);
        let mut end = match self.last.clone() {
            Some(last) if !place.live => last,
            _ => place,
        };
        for name in first {
            if let Some(body) = self.functions.get(*name).cloned()
                && self.called.insert((*name).to_owned())
            {
                self.run(&body, &mut end);
                end.live = true;
            }
        }
        loop {
            let left = self.functions.iter().find(|(name, _)| !self.called.contains(*name));
            let Some((name, body)) = left.map(|(name, body)| (name.clone(), Rc::clone(body)))
            else {
                break;
            };
            self.called.insert(name);
            self.run(&body, &mut end.clone());
        }
        (self.functions, self.called, self.last) = outer;
    }

    /// Follows a part of a script.
    pub(super) fn run(&mut self, node: &Node, place: &mut ScriptState) {
        if !place.live {
            // Functions are defined all the same.
            if let Node::Function(name, body) = node {
                self.functions.insert(name.clone(), Rc::clone(body));
            } else if let Node::Sequence(nodes) = node {
                for node in nodes {
                    self.run(node, place);
                }
            }
            return;
        }
        match node {
            Node::Simple(words) => self.simple(words, place),
            Node::Sequence(nodes) => {
                for node in nodes {
                    self.run(node, place);
                }
            }
            Node::Chain(first, rest) => {
                let mut succeeded = self.surely(first, place);
                self.run(first, place);
                for (on_success, node) in rest {
                    if succeeded == Some(!on_success) {
                        continue;
                    }
                    let before = place.clone();
                    let sure = self.surely(node, place);
                    self.guards += 1;
                    self.run(node, place);
                    self.guards -= 1;
                    if succeeded.is_none() {
                        place.join(&before);
                    }
                    succeeded = succeeded.and(sure);
                }
            }
            Node::Apart(inner) => self.run(inner, &mut place.clone()),
            Node::Branches(branches) => self.branches(branches, None, place),
            Node::Either(branches, last) => self.branches(branches, Some(last), place),
            Node::Loop(condition, body) => {
                self.run(condition, place);
                let before = place.clone();
                self.run(body, place);
                place.join(&before);
            }
            Node::Function(name, body) => {
                self.functions.insert(name.clone(), Rc::clone(body));
            }
        }
    }

    /// Follows each branch, and joins the states after them.
    pub(super) fn branches(
        &mut self,
        branches: &[(Node, Node)],
        last: Option<&Node>,
        place: &mut ScriptState,
    ) {
        let mut after: Option<ScriptState> = None;
        for (condition, body) in branches {
            let is_taken = self.surely(condition, place) == Some(true) && after.is_none();
            self.run(condition, place);
            let mut branch = place.clone();
            self.guards += 1;
            self.run(body, &mut branch);
            self.guards -= 1;
            if is_taken {
                *place = branch;
                return;
            }
            match &mut after {
                Some(after) => after.join(&branch),
                None => after = Some(branch),
            }
        }
        // Without a last branch, possibly none of them runs.
        if let Some(last) = last {
            self.run(last, place);
        }
        if let Some(after) = after {
            place.join(&after);
        }
    }

    /// Returns whether a command surely succeeds or surely fails. `None`: unknown. A limit that root may set succeeds.
    pub(super) fn surely(&self, node: &Node, place: &ScriptState) -> Option<bool> {
        let words = match node {
            Node::Simple(words) => words,
            Node::Sequence(nodes) if nodes.len() == 1 => return self.surely(&nodes[0], place),
            _ => return None,
        };
        let fields: Vec<Field> = words.iter().flat_map(|word| self.expand(word, place)).collect();
        match fields.first().map(|field| field.text.as_str()) {
            Some("ulimit") if fields.len() > 1 => {
                let mut after = place.clone();
                let changes = self.changes(&fields[1..]);
                let mut worked = Vec::new();
                for change in &changes {
                    if change.setting.value == LimitValue::Unknown {
                        return None;
                    }
                    after.limits.apply(change, self.host.kernel_limits());
                    worked.push(after.limits.is(change));
                }
                match worked.as_slice() {
                    [first, rest @ ..] if rest.iter().all(|one| one == first) => Some(*first),
                    _ => None,
                }
            }
            Some("true" | ":") => Some(true),
            // Not for a file that is not there: it may be when qmail starts.
            Some("[" | "test") => match &fields[1..] {
                [test, file, ..]
                    if fields.len() == 3 + usize::from(fields[0].text == "[")
                        && ["-e", "-f", "-r"].contains(&test.text.as_str())
                        && file.known
                        && matches!(self.host.content_of(&file.text), PathContent::Script(_)) =>
                {
                    Some(true)
                }
                _ => None,
            },
            Some("false") => Some(false),
            _ => None,
        }
    }

    /// Follows a simple command: assignments, a command of the shell, a function, or a program.
    pub(super) fn simple(&mut self, words: &[Word], place: &mut ScriptState) {
        self.commands += 1;
        if self.commands > COMMANDS_MAX {
            self.cut();
            return;
        }
        let assigned = words.iter().take_while(|word| word.assignment().is_some()).count();
        let (assignments, words) = words.split_at(assigned);
        if words.is_empty() {
            for word in assignments {
                self.assign(word, place);
            }
            return;
        }
        let fields: Vec<Field> = words.iter().flat_map(|word| self.expand(word, place)).collect();
        let Some(name) = fields.first().map(|field| field.text.clone()) else { return };
        match name.as_str() {
            "export" | "readonly" | "local" | "declare" | "typeset" | "set" | "setenv" => {
                for word in &words[1..] {
                    self.assign(word, place);
                }
            }
            "read" | "unset" | "getopts" => {
                for field in &fields[1..] {
                    let unknown =
                        Variable { value: None, file: self.file.clone(), line: field.line };
                    place.variables.insert(field.text.clone(), unknown);
                }
            }
            "exit" | "return" => {
                self.last = Some(place.clone());
                place.live = false;
            }
            "." | "source" => {
                if let Some(field) = fields.get(1) {
                    self.source(field, place);
                }
            }
            "eval" if fields.iter().any(|field| !field.known) => {
                let why = "only the running script knows these commands";
                self.unsee(&fields[0], why, place);
            }
            "eval" => {
                let text: Vec<&str> = fields[1..].iter().map(|field| field.text.as_str()).collect();
                let text = text.join(" ");
                if self.calls < NESTED_MAX && self.may_follow(text.len()) {
                    self.calls += 1;
                    self.run(&shell::parse(&text), place);
                    self.calls -= 1;
                } else {
                    self.cut();
                }
            }
            _ => {
                if let Some(body) = self.functions.get(&name).cloned() {
                    if self.calls < NESTED_MAX {
                        self.called.insert(name);
                        self.calls += 1;
                        let before = self.last.clone();
                        self.run(&body, place);
                        // `return` ends only the function. `exit` in a function is taken for `return`.
                        if !place.live
                            && let Some(last) = self.last.clone()
                        {
                            *place = last;
                        }
                        self.last = before;
                        self.calls -= 1;
                    } else {
                        self.cut();
                    }
                    return;
                }
                self.command(fields, place, Within::Shell);
            }
        }
    }

    /// Sets a variable.
    pub(super) fn assign(&mut self, word: &Word, place: &mut ScriptState) {
        let Some((name, value)) = word.assignment() else { return };
        let whole: Vec<Field> = self.expand(&quoted(&value), place);
        let value = match whole.as_slice() {
            [] => Some(String::new()),
            [field] if field.known => Some(field.text.clone()),
            _ => None,
        };
        let line = self.line_of(word.line);
        place.variables.insert(name.to_owned(), Variable { value, file: self.file.clone(), line });
    }

    /// Follows the commands of the file that `field` names as if they stood here.
    fn source(&mut self, field: &Field, place: &mut ScriptState) {
        let Some(path) = self.sourced_path(field) else {
            self.unsee(field, "which file that is, only the running script knows", place);
            return;
        };
        match self.host.content_of(&path) {
            PathContent::Script(text) => self.sourced(&path, &text, place),
            PathContent::Unreadable(why) => {
                self.unsee(field, &why, place);
                self.found.unread.push(why);
            }
            PathContent::Other => self.unsee(field, "that file is not a script", place),
            // The condition is probably that the file exists.
            PathContent::Missing if self.guards > 0 => {}
            PathContent::Missing => self.unsee(field, "there is no such file", place),
        }
    }

    /// Follows the commands of a file, if it is there, as if they stood here.
    pub(super) fn source_if_there(&mut self, path: &str, place: &mut ScriptState) {
        match self.host.content_of(path) {
            PathContent::Script(text) => self.sourced(path, &text, place),
            PathContent::Unreadable(why) => self.found.unread.push(why),
            PathContent::Other | PathContent::Missing => {}
        }
    }

    fn sourced(&mut self, path: &str, text: &str, place: &mut ScriptState) {
        if !self.may_follow(text.len()) {
            return;
        }
        self.know(path, text);
        let outer = (std::mem::replace(&mut self.file, path.to_owned()), self.base);
        self.base = (0, 0);
        self.nested += 1;
        // Do not follow the functions of a library: they do what their names say.
        let functions = self.functions.clone();
        let node = shell::parse(text);
        self.run(&node, place);
        let is_library = text.len() > 8192 || path.contains("functions");
        if is_library {
            self.functions = functions;
        }
        if !place.live {
            place.live = true;
        }
        self.nested -= 1;
        (self.file, self.base) = outer;
    }

    /// Returns the absolute path of a file that a script reads its next commands from. A supervisor starts `run` in its
    /// folder. `None`: only the running script knows it.
    fn sourced_path(&self, field: &Field) -> Option<String> {
        let path = field.known.then_some(field.text.as_str())?;
        if path.starts_with('/') {
            return Some(path.to_owned());
        }
        let folder = self.file.strip_suffix("/run")?;
        path.contains('/').then(|| format!("{folder}/{}", path.trim_start_matches("./")))
    }

    /// From here on the limit, and the variables, may be anything: the line of `field` has commands that cannot be read.
    fn unsee(&mut self, field: &Field, why: &str, place: &mut ScriptState) {
        let line = self.setting(Limited::OpenFiles, LimitValue::Unknown, field, "");
        let (at, text) = (line.place(), &line.text);
        place.limits.unsee_files(format!(
            "{at} may set a limit that cannot be known from here ({why}): {text}"
        ));
        for variable in place.variables.values_mut() {
            // A path is mostly that of a program, which leads on to what starts qmail.
            if !variable.value.as_ref().is_some_and(|value| value.starts_with('/')) {
                variable.value = None;
            }
        }
    }

    /// Returns the line in the file for a line of the text that is followed.
    pub(super) fn line_of(&self, line: usize) -> usize {
        line + self.base.0
    }
}

/// What runs a command. A shell has commands of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Within {
    Shell,
    Program,
}

/// Returns the word as if it stood in quotes.
fn quoted(word: &Word) -> Word {
    let pieces = word.pieces.iter().map(|piece| shell::Piece { quoted: true, ..piece.clone() });
    Word { pieces: pieces.collect(), ..*word }
}

/// Returns whether a script is one command line: execline's, or nosh's.
pub fn is_chain(text: &str) -> bool {
    matches!(interpreter(text).as_str(), "execlineb" | "nosh" | "with-contenv")
}

/// Returns the name of the program that a script is written for.
fn interpreter(text: &str) -> String {
    let Some(line) = text.lines().next().and_then(|line| line.strip_prefix("#!")) else {
        return "sh".to_owned();
    };
    let mut words = line.split_whitespace().map(|word| word.rsplit('/').next().unwrap_or_default());
    let first = words.next().unwrap_or_default();
    match first {
        "env" | "busybox" => words
            .find(|word| !word.starts_with('-') && !word.contains('='))
            .unwrap_or("sh")
            .to_owned(),
        "with-contenv" => {
            words.next().filter(|word| Shell::named(word).is_some()).unwrap_or(first).to_owned()
        }
        _ => first.to_owned(),
    }
}
