//! The syntax of PowerMTA's configuration: blocks, directives, macros and included files.

use std::collections::{HashMap, HashSet};

use super::blocks::{Blocks, Directive, DirectiveValue, EXPRESSIBLE, NamePattern};
use crate::error::Error;
use crate::gate::import::foreign::ForeignFile;
use crate::gate::import::ledger::{Ledger, Place, SettingId};
use crate::gate::import::subject::Subject;
use crate::gate::text::printable;

/// How deep files include others.
const INCLUDES_MAX: usize = 16;

/// The most bytes that are read, a file counting as often as it is included.
const BYTES_MAX: usize = 64 << 20;

/// The most settings of names: each directive counts as often as its block has names.
const SETTINGS_MAX: usize = 2_000_000;

const UNKNOWN_LIMIT: &str = "qpatch does not know this directive, which may be a limit";

const REPLY: &str = "a reply in a list is no part of the table: with learn in the fourth field a limit follows what the \
    server accepts, and concurrencyreplies(5) is for certain words";

/// Why a directive about limits is not expressed; None for one that is about something else.
fn reason(name: &str) -> Option<&'static str> {
    Some(match name {
        "max-msg-per-connection" => "qmail-remote sends one message over each connection",
        "max-rcpt-per-message" | "max-rcpt-per-transaction" => {
            "qmail-remote has one recipient for each connection"
        }
        "smtp-pattern-list" => {
            "what a reply does is no part of the table: write it into control/concurrencyreplies (see \
             concurrencyreplies(5))"
        }
        "reply" => REPLY,
        "smtp-out-rampup-interval" => {
            "it is the time between two connections of which each has many messages; with one message each, 1/10s in \
             the fourth field is a pause of ten seconds between two messages"
        }
        "total-max-smtp-out" => "the limit of all deliveries together is control/concurrencyremote",
        "max-data-volume-rate" | "source-ip-max-data-volume-rate" => {
            "the gate does not count bytes"
        }
        "max-cold-virtual-mta-msg" | "reroute-to-virtual-mta" => "qmail has no virtual MTAs",
        "min-smtp-out" => "the gate has no lower bound of deliveries",
        "disable-mx-rollup" => {
            "the gate looks up the exchangers of every domain without a line of its own"
        }
        _ if name.starts_with("backoff-") => {
            "the gate has no second set of limits for bad times; with learn in the fourth field the limit follows what \
             the server accepts"
        }
        _ if is_like_a_limit(name) => UNKNOWN_LIMIT,
        _ => return None,
    })
}

/// Whether a directive may limit how many deliveries run or start, by the words of its name.
fn is_like_a_limit(name: &str) -> bool {
    let has = |words: &[&str]| name.split('-').any(|word| words.contains(&word));
    let counts = [
        "connect",
        "connection",
        "connections",
        "data",
        "deliveries",
        "message",
        "messages",
        "msg",
        "rcpt",
    ];
    let is_known = name == "total-max-smtp-out" || name.starts_with("backoff-");
    let is_size = has(&["size", "length", "errors", "recorded", "logged"]);
    !is_known
        && !is_size
        && (name.contains("max-smtp-out")
            || has(&["max"]) && has(&counts)
            || has(&["limit", "rate"]) && has(&counts))
}

/// `mx PATTERN QUEUE`.
#[derive(Clone, Debug)]
pub(super) struct Rollup {
    pub(super) exchanger: NamePattern,
    pub(super) queue: String,
    pub(super) id: SettingId,
}

/// What the files say.
#[derive(Debug, Default)]
pub(super) struct Configuration {
    pub(super) blocks: Blocks,
    /// What the `<domain>` blocks are for, each once, in their order.
    pub(super) patterns: Vec<NamePattern>,
    pub(super) rollups: Vec<Rollup>,
    macros: HashMap<String, Macro>,
    known_patterns: HashSet<NamePattern>,
    /// Included files that were not read.
    pub(super) unread: Vec<String>,
    /// Names that have limits and no line, each with its place.
    pub(super) unsayable: Vec<String>,
    /// The last block of a virtual MTA.
    pub(super) last_virtual_mta: Option<Place>,
}

#[derive(Debug, Default)]
struct Macro {
    domains: Vec<String>,
    known: HashSet<String>,
}

/// A `domain-macro` whose list may go on in the next line.
struct OpenMacro {
    name: String,
    id: SettingId,
    has_domains: bool,
}

impl OpenMacro {
    fn end(self, ledger: &mut Ledger) {
        if !self.has_domains {
            ledger.leave(self.id, "it has no domains");
        }
    }
}

/// A block that is open.
struct OpenBlock {
    tag: String,
    line: u32,
    /// `<domain *>`, as it is shown.
    scope: String,
    /// The names of a `<domain>`.
    patterns: Vec<NamePattern>,
    /// The index of the scope that its directives are in.
    of: usize,
}

/// Reads the files as one configuration. A file that another one includes is read there.
pub(super) struct Reader<'a> {
    files: &'a [ForeignFile],
    ledger: &'a mut Ledger,
    configuration: Configuration,
    /// The number of each file in the ledger, once it has been read.
    numbers: Vec<Option<usize>>,
    /// The settings of files that are included more than once are the same.
    known: HashMap<(Place, String), SettingId>,
    open: Vec<OpenBlock>,
    /// The files that are being read, the innermost last.
    stack: Vec<usize>,
    bytes: usize,
    settings: usize,
}

impl<'a> Reader<'a> {
    /// Reads all files.
    ///
    /// # Errors
    /// A block is not closed, or closes another one; or the files say too much.
    pub(super) fn read(
        files: &'a [ForeignFile],
        ledger: &'a mut Ledger,
    ) -> Result<Configuration, Error> {
        let mut reader = Self {
            files,
            ledger,
            configuration: Configuration::default(),
            numbers: vec![None; files.len()],
            known: HashMap::new(),
            open: Vec::new(),
            stack: Vec::new(),
            bytes: 0,
            settings: 0,
        };
        for at in 0..files.len() {
            if reader.numbers[at].is_none() {
                reader.read_file(at)?;
            }
        }
        Ok(reader.configuration)
    }

    fn error(&self, line: u32, what: String, help: &str) -> Error {
        let name = self.stack.last().map_or("", |&at| self.files[at].name.as_str());
        Error::new(format!("{name}:{line}"), what, help)
    }

    fn place(&self, line: u32) -> Place {
        let file = self.stack.last().and_then(|&at| self.numbers[at]).unwrap_or_default();
        Place { file, line }
    }

    fn setting(&mut self, line: u32, scope: &str, name: &str, value: &str) -> SettingId {
        let place = self.place(line);
        let ledger = &mut self.ledger;
        let known = self.known.entry((place, name.to_string()));
        *known.or_insert_with(|| ledger.add(place, scope, name, value))
    }

    fn read_file(&mut self, at: usize) -> Result<(), Error> {
        let source = &self.files[at];
        if self.numbers[at].is_none() {
            self.numbers[at] = Some(self.ledger.add_file(&source.name, &source.text));
        }
        self.stack.push(at);
        let open_before = self.open.len();
        let text = String::from_utf8_lossy(&source.text).into_owned();
        let mut macro_before: Option<OpenMacro> = None;
        for (number, line) in (1..).zip(text.lines()) {
            self.bytes += line.len() + 1;
            if self.bytes > BYTES_MAX {
                let what = format!(
                    "the files have more than {} MB with what they include",
                    BYTES_MAX >> 20
                );
                return Err(self.error(number, what, "include fewer files"));
            }
            let line = without_comment(line.trim_start_matches('\u{feff}')).trim();
            if line.is_empty() {
                continue;
            }
            // The list of a domain-macro may stand on the next line, and a comma at the end of a line continues it.
            if let Some(open) = macro_before.take() {
                let is_list = open.has_domains || !line.contains(char::is_whitespace);
                if !line.starts_with('<') && is_list {
                    self.configuration.add_macro(&open.name, line);
                    self.ledger.express(open.id);
                    macro_before =
                        line.ends_with(',').then_some(OpenMacro { has_domains: true, ..open });
                    continue;
                }
                open.end(self.ledger);
            }
            if let Some(tag) = line.strip_prefix("</") {
                self.close(number, tag, open_before)?;
            } else if let Some(tag) = line.strip_prefix('<') {
                self.open(number, tag)?;
            } else {
                macro_before = self.directive(number, line)?;
            }
        }
        if let Some(open) = macro_before {
            open.end(self.ledger);
        }
        if self.open.len() > open_before {
            let open = &self.open[self.open.len() - 1];
            let what = format!("{} is not closed", open.scope);
            return Err(self.error(open.line, what, &format!("add </{}> at its end", open.tag)));
        }
        self.stack.pop();
        Ok(())
    }

    /// Counts settings of names.
    fn count(&mut self, number: u32, more: usize) -> Result<(), Error> {
        self.settings += more;
        if self.settings <= SETTINGS_MAX {
            return Ok(());
        }
        let what = format!(
            "up to here the blocks have more than {SETTINGS_MAX} settings: each directive counts as often as its block \
             has names"
        );
        Err(self.error(
            number,
            what,
            "write what holds for all into <domain *>, or what holds for many into one queue with queue-to",
        ))
    }

    fn open(&mut self, number: u32, tag: &str) -> Result<(), Error> {
        let Some(inner) = tag.strip_suffix('>') else {
            let what = format!("expected > at the end of the line, found {}", printable(tag));
            return Err(self.error(
                number,
                what,
                "write a block as <domain NAME>, on a line of its own",
            ));
        };
        let (tag, argument) =
            inner.trim().split_once(char::is_whitespace).unwrap_or((inner.trim(), ""));
        let (tag, argument) = (tag.to_ascii_lowercase(), argument.trim());
        let scope = match argument {
            "" => format!("<{}>", printable(&tag)),
            argument => format!("<{} {}>", printable(&tag), printable(argument)),
        };
        let mut of = self.open.last().map_or(0, |open| open.of);
        if tag.starts_with("virtual-mta") {
            self.configuration.blocks.scopes.push(Default::default());
            of = self.configuration.blocks.scopes.len() - 1;
            self.configuration.last_virtual_mta = Some(self.place(number));
        }
        let mut patterns = Vec::new();
        if tag == "domain" {
            let names = unquoted(argument).split(',').map(str::trim);
            for name in names.filter(|name| !name.is_empty()) {
                patterns.extend(self.patterns(number, &scope, name)?);
            }
        }
        for pattern in &patterns {
            if self.configuration.known_patterns.insert(pattern.clone()) {
                self.configuration.patterns.push(pattern.clone());
            }
        }
        self.open.push(OpenBlock { tag, line: number, scope, patterns, of });
        Ok(())
    }

    /// The patterns of one name of a block: for a macro, those of its domains.
    fn patterns(
        &mut self,
        number: u32,
        scope: &str,
        name: &str,
    ) -> Result<Vec<NamePattern>, Error> {
        let names = match name.strip_prefix('$') {
            Some(name) => match self.configuration.macros.get(&name.to_ascii_lowercase()) {
                Some(known) => known.domains.clone(),
                None => {
                    let id = self.setting(number, "", scope, "");
                    let why = format!("there is no domain-macro {} before it", printable(name));
                    self.ledger.leave(id, why);
                    self.unsayable(id, &format!("${name}"));
                    Vec::new()
                }
            },
            None => vec![name.to_string()],
        };
        self.count(number, names.len())?;
        let mut patterns = Vec::new();
        for name in names {
            match NamePattern::parse(&name) {
                Some(pattern) => patterns.push(pattern),
                None => {
                    let id = self.setting(number, scope, &name, "");
                    self.ledger.leave(id, "the table has no such pattern of names");
                    self.unsayable(id, &name);
                }
            }
        }
        Ok(patterns)
    }

    /// Notes names that have limits and no line.
    fn unsayable(&mut self, id: SettingId, names: &str) {
        let place = self.ledger.place_text(self.ledger.place(id));
        self.configuration.unsayable.push(format!("{} ({place})", printable(names)));
    }

    fn close(&mut self, number: u32, tag: &str, open_before: usize) -> Result<(), Error> {
        let tag = tag.trim_end_matches('>').trim().to_ascii_lowercase();
        // An included file closes only its own blocks.
        let open = if self.open.len() > open_before { self.open.pop() } else { None };
        match open {
            Some(open) if open.tag == tag => Ok(()),
            Some(open) => {
                let (expected, found) = (&open.tag, printable(&tag));
                let what = format!(
                    "expected </{expected}> for the block of line {}, found </{found}>",
                    open.line
                );
                Err(self.error(number, what, "close each block before the one around it"))
            }
            None => {
                let what = format!("</{}> closes no block", printable(&tag));
                Err(self.error(
                    number,
                    what,
                    "remove the line, or add the line that opens the block",
                ))
            }
        }
    }

    /// Reads a directive. Returns a macro whose list may go on in the next line.
    fn directive(&mut self, number: u32, line: &str) -> Result<Option<OpenMacro>, Error> {
        let (name, value) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
        let (name, value) = (name.to_ascii_lowercase(), unquoted(value.trim()));
        let outer = self.open.iter().rev().skip(1).find(|outer| outer.of > 0);
        let around = match (self.open.last(), outer) {
            (Some(open), Some(outer)) => format!("{} in {}", open.scope, outer.scope),
            (Some(open), None) => open.scope.clone(),
            (None, _) => String::new(),
        };
        let id = self.setting(number, &around, &name, value);
        let (tag, of) = self.open.last().map_or(("", 0), |open| (open.tag.as_str(), open.of));
        match tag {
            _ if name == "include" => self.include(number, id, value)?,
            "" if name == "domain-macro" => {
                let (name, list) = value.split_once(char::is_whitespace).unwrap_or((value, ""));
                let has_domains = !list.trim().is_empty();
                if has_domains {
                    self.configuration.add_macro(name, list);
                    self.ledger.express(id);
                }
                if !has_domains || list.ends_with(',') {
                    return Ok(Some(OpenMacro { name: name.to_string(), id, has_domains }));
                }
            }
            "domain" if !self.open[self.open.len() - 1].patterns.is_empty() => {
                let patterns = std::mem::take(&mut self.open.last_mut().expect("open").patterns);
                let counted = self.count(number, patterns.len());
                self.of_names(id, &name, value, of, &patterns);
                self.open.last_mut().expect("open").patterns = patterns;
                counted?;
            }
            "domain" => match EXPRESSIBLE.contains(&name.as_str()) {
                true => self.ledger.leave(id, "its block has no name that the table can have"),
                false => self.leave(id, &name),
            },
            _ if name == "mx" => self.rollup(id, value),
            // It is not known to be allowed there; then it would be for all domains.
            tag if tag.is_empty() || tag.starts_with("virtual-mta") => {
                self.of_names(id, &name, value, of, &[NamePattern::All]);
            }
            _ if EXPRESSIBLE.contains(&name.as_str()) => {
                self.ledger.leave(id, "it stands in a block that is not about domains");
            }
            _ => self.leave(id, &name),
        }
        Ok(None)
    }

    /// A directive for these names.
    fn of_names(
        &mut self,
        id: SettingId,
        name: &str,
        value: &str,
        scope: usize,
        patterns: &[NamePattern],
    ) {
        let value = if EXPRESSIBLE.contains(&name) {
            DirectiveValue::parse(name, value).unwrap_or_else(|why| {
                self.ledger.leave(id, why);
                DirectiveValue::Unsaid
            })
        } else {
            self.leave(id, name);
            if reason(name) != Some(UNKNOWN_LIMIT) {
                return;
            }
            DirectiveValue::Unsaid
        };
        let of = patterns.first().and_then(|first| first.subjects().into_iter().next());
        let of = of.unwrap_or(Subject::All);
        let directive = Directive { name: name.to_string(), value, id, scope, of };
        self.configuration.blocks.add(patterns, directive);
    }

    fn rollup(&mut self, id: SettingId, value: &str) {
        let mut words = value.split_whitespace();
        match (words.next().and_then(NamePattern::parse), words.next()) {
            (Some(exchanger), Some(queue)) if exchanger != NamePattern::All => {
                let queue = unquoted(queue).to_ascii_lowercase();
                self.configuration.blocks.targets.insert(queue.clone());
                self.configuration.rollups.push(Rollup { exchanger, queue, id });
            }
            _ => {
                self.ledger
                    .leave(id, "expected mx PATTERN QUEUE, with a pattern such as *.example.com");
                self.unsayable(id, &format!("mx {value}"));
            }
        }
    }

    fn include(&mut self, number: u32, id: SettingId, value: &str) -> Result<(), Error> {
        let Some(at) = included(self.files, value) else {
            self.ledger.leave(id, "the file was not read: name it on the command line, too");
            self.configuration.unread.push(printable(value));
            return Ok(());
        };
        if self.stack.contains(&at) {
            return Err(self.error(
                number,
                format!("{} includes itself", printable(value)),
                "remove the line",
            ));
        }
        if self.stack.len() > INCLUDES_MAX {
            let what = format!("files include others more than {INCLUDES_MAX} deep");
            return Err(self.error(number, what, "include the file further out"));
        }
        self.ledger.express(id);
        self.read_file(at)
    }

    fn leave(&mut self, id: SettingId, name: &str) {
        match reason(name) {
            Some(REPLY) => self.ledger.leave_counted(id, REPLY),
            Some(why) => self.ledger.leave(id, why),
            None => self.ledger.leave_unrelated(id),
        }
    }
}

/// The names of the files that a file includes.
pub(in crate::gate::import) fn includes(source: &ForeignFile) -> Vec<String> {
    let text = String::from_utf8_lossy(&source.text);
    let words = text
        .lines()
        .filter_map(|line| without_comment(line).trim().split_once(char::is_whitespace));
    let names = words.filter(|(name, _)| name.eq_ignore_ascii_case("include"));
    names.map(|(_, value)| unquoted(value.trim()).to_string()).collect()
}

/// Which file an include means: the one with that name, else one with the same end.
fn included(files: &[ForeignFile], value: &str) -> Option<usize> {
    let end = |name: &str| name.rsplit('/').next().map(str::to_string);
    let below = format!("/{value}");
    let exactly = files.iter().position(|file| file.name == value || file.name.ends_with(&below));
    exactly.or_else(|| files.iter().position(|file| end(&file.name) == end(value)))
}

/// A line without its comment, which begins with a `#` at the start of a word and outside quotes.
fn without_comment(line: &str) -> &str {
    let (mut quoted, mut before) = (false, ' ');
    for (at, sign) in line.char_indices() {
        match sign {
            '"' => quoted = !quoted,
            '#' if !quoted && before.is_whitespace() => return &line[..at],
            _ => {}
        }
        before = sign;
    }
    line
}

fn unquoted(text: &str) -> &str {
    text.strip_prefix('"').and_then(|text| text.strip_suffix('"')).unwrap_or(text)
}

impl Configuration {
    fn add_macro(&mut self, name: &str, list: &str) {
        let known = self.macros.entry(name.to_ascii_lowercase()).or_default();
        let domains = unquoted(list.trim()).split([',', ' ', '\t']);
        for domain in domains.filter(|domain| !domain.is_empty()) {
            let domain = domain.to_ascii_lowercase();
            if known.known.insert(domain.clone()) {
                known.domains.push(domain);
            }
        }
    }
}
