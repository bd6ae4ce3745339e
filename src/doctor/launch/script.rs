//! Follows a start script from its first line to the programs that it starts, with the limits that it sets on the way.
//!
//! Nothing is run. Where the way depends on what only the running script knows (a condition, a variable from
//! outside), all ways are followed, and a limit that comes from outside is unknown.
//!
//! Longer than other files: [`Walk`] is one state, and each of its methods is a step that changes it.
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use super::field::{Field, Variable};
use super::limits::{
    Amount, KernelLimits, LimitChange, LimitPair, LimitState, LimitValue, Limited, Setting,
};
use super::programs::{self, NextStep, StartedProgram};
use super::shell::{self, ChainItem, Node, PieceKind, Shell, Word};

/// What a path that a script names turns out to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PathContent {
    /// A script, with its text.
    Script(String),
    /// Anything else, or nothing.
    Other,
    /// It is there and cannot be read.
    Unreadable(String),
}

/// What the scripts run on.
pub trait ScriptHost {
    /// What is at a path.
    fn content_of(&self, path: &str) -> PathContent;
    /// What /bin/sh is.
    fn shell(&self) -> Shell;
    /// The limits of the machine itself.
    fn kernel_limits(&self) -> KernelLimits;
    /// Whether this is qmail's rc.
    fn is_rc(&self, path: &str) -> bool;
    /// Whether a script is followed where another one names it among other words.
    fn is_known(&self, path: &str) -> bool;
}

/// A place that starts something.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StartPoint {
    /// What.
    pub target: StartedProgram,
    /// The file.
    pub file: String,
    /// The limits that are in force there.
    pub state: LimitState,
}

/// What was found.
#[derive(Debug, Default)]
pub struct WalkResult {
    /// The places that start something.
    pub reaches: Vec<StartPoint>,
    /// The scripts that were followed.
    pub files: BTreeSet<String>,
    /// What could not be read.
    pub unread: Vec<String>,
    /// Lines that look as if they set the limit of descriptors, and do not.
    pub idle: Vec<String>,
}

/// Scripts that call scripts.
const NESTED_MAX: usize = 12;

/// More commands than this are followed in no start script.
const COMMANDS_MAX: usize = 20_000;

/// Scripts are parsed up to so many bytes in all, each time that one is read.
const PARSED_MAX: usize = 16 << 20;

/// A value that a script puts together from parts is known up to so many bytes. `a=$a$a` doubles it each time.
const VALUE_MAX: usize = 16 << 10;

/// The state of a script at one place.
#[derive(Debug, Clone)]
struct ScriptState {
    /// False after `exit` or `exec`.
    live: bool,
    limits: LimitState,
    variables: BTreeMap<String, Variable>,
}

impl ScriptState {
    fn join(&mut self, other: &ScriptState) {
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

/// Follows scripts.
pub struct Walk<'w> {
    host: &'w dyn ScriptHost,
    /// What was found.
    pub found: WalkResult,
    lines: BTreeMap<String, Vec<String>>,
    functions: BTreeMap<String, Rc<Node>>,
    called: BTreeSet<String>,
    calls: usize,
    commands: usize,
    /// Bytes of scripts that were parsed.
    parsed: usize,
    /// Whether something was not followed to its end.
    is_cut: bool,
    file: String,
    shell: Shell,
    /// Of a text between quotes: the line and the column that it starts at.
    base: (usize, usize),
    nested: usize,
    /// The latest place that was live.
    last: Option<ScriptState>,
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
    /// From nothing.
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
            last: None,
        }
    }

    /// Ends here what would take too long, and says so.
    fn cut(&mut self) {
        if !self.is_cut {
            self.is_cut = true;
            self.found.unread.push(format!(
                "{}: too much to follow to the end: scripts within scripts, or very many commands",
                self.file
            ));
        }
    }

    /// Returns whether a text of so many bytes may still be followed, in one more script.
    fn may_follow(&mut self, bytes: usize) -> bool {
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

    /// A command line that is no script's: of a unit.
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

    /// Makes the lines of a file known, so that settings can show them.
    pub fn know(&mut self, file: &str, text: &str) {
        self.lines.insert(file.to_owned(), text.lines().map(str::to_owned).collect());
    }

    /// A whole text in the language of the shell. Functions that it does not call itself are called by what reads it.
    fn whole(&mut self, text: &str, mut place: ScriptState, first: &[&str]) {
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

    /// A service script of OpenRC: the settings of all services, those of this one, the script, rc_ulimit, its
    /// functions.
    fn openrc(&mut self, file: &str, text: &str, mut place: ScriptState) {
        let name = file.rsplit('/').next().unwrap_or_default();
        let confs = ["/etc/rc.conf".to_owned(), format!("/etc/conf.d/{name}")];
        for conf in confs {
            self.source(&conf, &mut place);
        }
        self.found.files.retain(|file| !file.starts_with("/etc/conf.d/") && file != "/etc/rc.conf");
        let node = shell::parse(text);
        self.run(&node, &mut place);
        place.live = true;
        let set = |place: &ScriptState, name: &str| {
            place.variables.get(name).is_some_and(|variable| variable.value.as_deref() != Some(""))
        };
        for name in ["rc_ulimit", "RC_ULIMIT"] {
            if set(&place, name) {
                let word = Word {
                    pieces: vec![shell::Piece {
                        kind: PieceKind::Variable(name.to_owned(), None),
                        text: format!("${name}"),
                        quoted: false,
                    }],
                    line: 0,
                    column: 0,
                };
                let fields = self.expand(&word, &place);
                self.ulimit(&fields, &mut place);
                break;
            }
        }
        let start = ["start_pre", "start"];
        if !self.functions.contains_key("start") && set(&place, "command") {
            let words =
                [("command", "$command"), ("command_args", "$command_args")].map(|(name, text)| {
                    Word {
                        pieces: vec![shell::Piece {
                            kind: PieceKind::Variable(name.to_owned(), None),
                            text: text.to_owned(),
                            quoted: false,
                        }],
                        line: 0,
                        column: 0,
                    }
                });
            if let Some(body) = self.functions.get("start_pre").cloned() {
                self.run(&body, &mut place);
                place.live = true;
            }
            let fields = words.iter().flat_map(|word| self.expand(word, &place)).collect();
            self.command(fields, &mut place, Within::Program);
            return;
        }
        for name in start {
            if let Some(body) = self.functions.get(name).cloned() {
                self.run(&body, &mut place);
                place.live = true;
            }
        }
    }

    fn run(&mut self, node: &Node, place: &mut ScriptState) {
        if !place.live {
            // Functions count even so.
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
                    self.run(node, place);
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

    fn branches(
        &mut self,
        branches: &[(Node, Node)],
        last: Option<&Node>,
        place: &mut ScriptState,
    ) {
        let mut after: Option<ScriptState> = None;
        for (condition, body) in branches {
            self.run(condition, place);
            let mut branch = place.clone();
            self.run(body, &mut branch);
            match &mut after {
                Some(after) => after.join(&branch),
                None => after = Some(branch),
            }
        }
        // Without a last one it may be none of them.
        if let Some(last) = last {
            self.run(last, place);
        }
        if let Some(after) = after {
            place.join(&after);
        }
    }

    /// Whether a command surely succeeds: a limit that root may set does.
    fn surely(&self, node: &Node, place: &ScriptState) -> Option<bool> {
        let Node::Simple(words) = node else { return None };
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
            Some("false") => Some(false),
            _ => None,
        }
    }

    fn simple(&mut self, words: &[Word], place: &mut ScriptState) {
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
                if let Some(field) = fields.get(1).filter(|field| field.known) {
                    let path = field.text.clone();
                    self.source(&path, place);
                }
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
                        // `return` ends the function alone; `exit` in one is taken for the same.
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

    fn assign(&mut self, word: &Word, place: &mut ScriptState) {
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

    /// Reads another file's commands as if they were here.
    fn source(&mut self, path: &str, place: &mut ScriptState) {
        match self.host.content_of(path) {
            PathContent::Script(text) => {
                if !self.may_follow(text.len()) {
                    return;
                }
                self.know(path, &text);
                let outer = (std::mem::replace(&mut self.file, path.to_owned()), self.base);
                self.base = (0, 0);
                self.nested += 1;
                // The functions of a library are not looked into: they do what their names say.
                let functions = self.functions.clone();
                let node = shell::parse(&text);
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
            PathContent::Unreadable(why) => self.found.unread.push(why),
            PathContent::Other => {}
        }
    }

    fn line_of(&self, line: usize) -> usize {
        line + self.base.0
    }

    fn expand(&self, word: &Word, place: &ScriptState) -> Vec<Field> {
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
            // A value that grows beyond this is no limit and no path, whatever it is.
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
            // zsh leaves a value whole.
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
            // A word that is one variable is set where the variable is set.
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

    /// The line that a field comes from, with that field as the number.
    fn setting(
        &self,
        what: Limited,
        value: LimitValue,
        field: &Field,
        number: &str,
    ) -> Rc<Setting> {
        let whole =
            self.lines.get(&field.file).and_then(|lines| lines.get(field.line.checked_sub(1)?));
        let whole = whole.map_or("", String::as_str);
        let text = whole.trim();
        let cut = whole.len() - whole.trim_start().len();
        Rc::new(Setting {
            what,
            value,
            file: field.file.clone(),
            line: field.line,
            text: text.to_owned(),
            number: number.to_owned(),
            from: field.column.saturating_sub(cut),
        })
    }

    fn changes(&self, args: &[Field]) -> Vec<LimitChange> {
        programs::ulimit(self.shell, args).iter().map(|set| self.change(set)).collect()
    }

    fn change(&self, set: &programs::SetLimit<'_>) -> LimitChange {
        let value = match set.amount {
            Amount::Value(value) => value,
            Amount::Soft | Amount::Hard => LimitValue::Unknown,
        };
        let setting = self.setting(set.what, value, set.field, set.number);
        LimitChange { part: set.part, amount: set.amount, above: set.above, setting }
    }

    fn ulimit(&mut self, args: &[Field], place: &mut ScriptState) {
        let machine = self.host.kernel_limits();
        let before = place.limits.files.clone();
        // Where the shell cannot be seen: what dash and bash do is not the same, and one of them it is.
        let shells = match self.shell {
            Shell::Unknown => &[Shell::Bash, Shell::Dash][..],
            ref shell => std::slice::from_ref(shell),
        };
        let sets = |shell: &Shell| {
            programs::ulimit(*shell, args).iter().map(|set| self.change(set)).collect()
        };
        let changes: Vec<Vec<LimitChange>> = shells.iter().map(sets).collect();
        let mut ways = changes.iter().map(|changes| {
            let mut way = place.clone();
            for change in changes {
                way.limits.apply(change, machine);
            }
            way
        });
        if let Some(first) = ways.next() {
            let after = ways.fold(first, |mut all, way| {
                all.join(&way);
                all
            });
            *place = after;
        }
        let is_number = |field: &Field| {
            field.text.starts_with(|c: char| c.is_ascii_digit()) || field.text == "unlimited"
        };
        let is_files =
            args.iter().any(|field| field.text.starts_with('-') && field.text.contains('n'));
        let soft =
            |pairs: &[LimitPair]| pairs.iter().map(|pair| pair.soft.clone()).collect::<Vec<_>>();
        if is_files && args.iter().any(is_number) && soft(&before) == soft(&place.limits.files) {
            let field = &args[0];
            let setting = self.setting(Limited::OpenFiles, LimitValue::Unknown, field, "");
            self.found.idle.push(format!("{} ({})", setting.place(), setting.text));
        }
    }

    /// A command: a chain of programs, each of which may set limits and start the next one.
    fn command(&mut self, fields: Vec<Field>, place: &mut ScriptState, within: Within) {
        let machine = self.host.kernel_limits();
        let mut limits = place.limits.clone();
        let mut at = 0;
        let mut is_exec = false;
        let mut is_first = true;
        while let Some(field) = fields.get(at) {
            let name = field.text.rsplit('/').next().unwrap_or_default().to_owned();
            let args = &fields[at + 1..];
            match programs::next(&name, args, is_first, within == Within::Shell) {
                NextStep::Exec(skipped) => {
                    is_exec = true;
                    at += 1 + skipped;
                    continue;
                }
                NextStep::Pass(skipped) => {
                    at += 1 + skipped;
                    continue;
                }
                NextStep::Ulimit => {
                    self.ulimit(args, place);
                    return;
                }
                NextStep::Limits { sets, skipped, own } => {
                    let changes: Vec<LimitChange> =
                        sets.iter().map(|set| self.change(set)).collect();
                    for change in &changes {
                        if own {
                            place.limits.apply(change, machine);
                        } else {
                            limits.apply(change, machine);
                        }
                    }
                    if own {
                        return;
                    }
                    at += 1 + skipped;
                    is_first = true;
                    continue;
                }
                NextStep::Text(shell, index) => {
                    if let Some(text) = args.get(index) {
                        self.text(&text.clone(), shell, &limits, &place.variables.clone());
                    }
                    break;
                }
                NextStep::Mentions => break,
                NextStep::StartedProgram(target) => {
                    self.found.reaches.push(StartPoint {
                        target,
                        file: self.file.clone(),
                        state: limits.clone(),
                    });
                    break;
                }
                NextStep::Other => {}
            }
            let path = field.text.clone();
            if field.known && path.starts_with('/') && (is_first || self.host.is_known(&path)) {
                let is_rc = self.host.is_rc(&path);
                match self.host.content_of(&path) {
                    PathContent::Script(text) => {
                        let variables = place.variables.clone();
                        self.script(&path, &text, &limits, &variables);
                        break;
                    }
                    // qmail's rc starts qmail, also where it is still to be written or of another kind.
                    called if is_rc => {
                        if let PathContent::Unreadable(why) = called {
                            self.found.unread.push(why);
                        }
                        let (file, state) = (self.file.clone(), limits.clone());
                        self.found.reaches.push(StartPoint {
                            target: StartedProgram::Qmail,
                            file,
                            state,
                        });
                        break;
                    }
                    PathContent::Unreadable(why) if self.host.is_known(&path) => {
                        self.found.unread.push(why);
                        break;
                    }
                    PathContent::Unreadable(_) | PathContent::Other => {}
                }
            }
            is_first = false;
            at += 1;
        }
        if is_exec && within == Within::Shell && fields.len() > 1 {
            self.last = Some(place.clone());
            place.live = false;
        }
    }

    /// A script in one word: `sh -c 'ulimit -n 512; exec qmail-start'`.
    fn text(
        &mut self,
        field: &Field,
        shell: Shell,
        limits: &LimitState,
        variables: &BTreeMap<String, Variable>,
    ) {
        if !self.may_follow(field.text.len()) {
            return;
        }
        let place =
            ScriptState { live: true, limits: limits.clone(), variables: variables.clone() };
        let outer = (self.shell, self.base, std::mem::replace(&mut self.file, field.file.clone()));
        self.shell = if shell == Shell::Unknown { self.host.shell() } else { shell };
        self.base = (field.line.saturating_sub(1), field.column);
        self.nested += 1;
        self.whole(&field.text, place, &[]);
        self.nested -= 1;
        (self.shell, self.base, self.file) = outer;
    }

    /// A script of execline or nosh.
    fn chain(&mut self, links: &[ChainItem], place: &ScriptState) {
        let mut fields = Vec::new();
        let mut place = place.clone();
        let mut words = links.iter().peekable();
        while let Some(link) = words.next() {
            match link {
                ChainItem::Block(inner) => self.chain(inner, &place),
                ChainItem::Word(word) => {
                    let mut expanded = self.expand(word, &place);
                    if expanded.first().is_some_and(|field| field.text == "define") {
                        // define NAME VALUE: what follows has the value in place of the name.
                        let rest: Vec<&ChainItem> = words.clone().take(2).collect();
                        if let [ChainItem::Word(name), ChainItem::Word(value)] = rest.as_slice() {
                            let name = self.expand(name, &place);
                            let value = self.expand(value, &place);
                            if let ([name], [value]) = (name.as_slice(), value.as_slice()) {
                                let variable = Variable {
                                    value: value.known.then(|| value.text.clone()),
                                    file: value.file.clone(),
                                    line: value.line,
                                };
                                place.variables.insert(name.text.clone(), variable);
                                words.next();
                                words.next();
                                continue;
                            }
                        }
                    }
                    fields.append(&mut expanded);
                }
            }
        }
        self.command(fields, &mut place, Within::Program);
    }
}

/// Whether a command is a shell's, which has commands of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Within {
    Shell,
    Program,
}

fn quoted(word: &Word) -> Word {
    let pieces = word.pieces.iter().map(|piece| shell::Piece { quoted: true, ..piece.clone() });
    Word { pieces: pieces.collect(), ..*word }
}

/// Returns whether a script is one command line: execline's, or nosh's.
pub fn is_chain(text: &str) -> bool {
    matches!(interpreter(text).as_str(), "execlineb" | "nosh" | "with-contenv")
}

/// The name of the program that a script is for.
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
