//! PowerMTA's configuration: `<domain>` blocks, `domain-macro`, `queue-to`, and rollups by mail exchanger.
//!
//! A domain has the settings of `<domain *>`, then of the blocks with a wildcard that match it, then of its own block;
//! of several blocks the later one counts. The domains that `queue-to` sends to one queue, and those that `mx PATTERN
//! QUEUE` sends there, become a group with that queue's settings. PowerMTA's documentation is not public; what the
//! directives mean here is in docs/import.md, and [`EXPRESSIBLE`] lists those that the table can express. `include` is
//! not followed.

use std::collections::HashMap;

use qpatch_gate::limit::LIMIT_MAX;
use qpatch_gate::rates::Rates;

use super::draft::{Draft, DraftLine, EXCHANGERS, group_name};
use super::foreign::ForeignFile;
use super::ledger::{Ledger, Place, SettingId};
use super::rate::{ForeignRate, TableRate};
use crate::error::Error;
use crate::gate::text::printable;

/// max-smtp-out where no block sets it.
const OWN_LIMIT: u64 = 20;

/// How many times queue-to is followed from one queue to the next.
const HOPS_MAX: usize = 8;

/// The directives of a `<domain>` that the table can express.
const EXPRESSIBLE: [&str; 5] =
    [MAX_SMTP_OUT, "max-msg-rate", "max-connect-rate", "max-msg-per-hour", QUEUE_TO];

const MAX_SMTP_OUT: &str = "max-smtp-out";

const QUEUE_TO: &str = "queue-to";

/// Why a directive about limits is not expressed; None for one that is about something else.
fn reason(name: &str) -> Option<&'static str> {
    Some(match name {
        "max-msg-per-connection" => "qmail-remote sends one message over each connection",
        "max-rcpt-per-message" | "max-rcpt-per-transaction" => {
            "qmail-remote has one recipient for each connection"
        }
        "smtp-pattern-list" | "reply" => {
            "what a reply does is no part of the table: write it into control/concurrencyreplies (see \
             concurrencyreplies(5))"
        }
        "smtp-out-rampup-interval" => {
            "it is the time between two connections of which each has many messages; with one message each, 1/10s in \
             the fourth field is a pause of ten seconds between two messages"
        }
        "total-max-smtp-out" => "the limit of all deliveries together is control/concurrencyremote",
        "max-data-volume-rate" | "source-ip-max-data-volume-rate" => {
            "the gate does not count bytes"
        }
        "max-cold-virtual-mta-msg" => "qmail has no virtual MTAs",
        "max-smtp-out-per-source-ip" => "qmail sends from one address",
        "min-smtp-out" => "the gate has no lower bound of deliveries",
        "disable-mx-rollup" => {
            "the gate looks up the exchangers of every domain without a line of its own"
        }
        _ if name.starts_with("source-ip-max-") => "qmail sends from one address",
        _ if name.starts_with("backoff-") => {
            "the gate has no second set of limits for bad times; with learn in the fourth field the limit follows what \
             the server accepts"
        }
        "include" => "the file is not read from here: name it on the command line, too",
        _ => return None,
    })
}

/// A directive of a `<domain>` block.
#[derive(Clone, Debug)]
struct Directive {
    name: String,
    value: DirectiveValue,
    id: SettingId,
}

#[derive(Clone, Debug)]
enum DirectiveValue {
    /// None: unlimited.
    Limit(Option<u64>),
    /// As it is written, and as the table says it; None: unlimited.
    Rate(Option<(String, TableRate)>),
    /// The name of a queue, in lower case; empty: none.
    Queue(String),
}

impl DirectiveValue {
    /// Reads the value of a directive of [`EXPRESSIBLE`].
    ///
    /// # Errors
    /// Why it cannot be expressed. What is inherited then holds.
    fn parse(name: &str, text: &str) -> Result<Self, String> {
        let is_unlimited = text.eq_ignore_ascii_case("unlimited");
        match name {
            QUEUE_TO => Ok(DirectiveValue::Queue(text.to_ascii_lowercase())),
            MAX_SMTP_OUT if is_unlimited => Ok(DirectiveValue::Limit(None)),
            MAX_SMTP_OUT => match text.parse::<u64>() {
                Ok(0) => Err("a limit of 0 would hold all mail of the line".to_string()),
                Ok(limit) if limit <= u64::from(LIMIT_MAX) => {
                    Ok(DirectiveValue::Limit(Some(limit)))
                }
                Ok(_) => Err(format!("a limit of the table is at most {LIMIT_MAX}")),
                Err(_) => Err("expected a number, or unlimited".to_string()),
            },
            // 0 is unlimited, too.
            _ if is_unlimited || text == "0" => Ok(DirectiveValue::Rate(None)),
            _ => {
                let per_hour = format!("{text}/h");
                let text = if name == "max-msg-per-hour" { &per_hour } else { text };
                let rate = ForeignRate::parse(text, &[])?.in_table();
                Ok(DirectiveValue::Rate(Some((text.to_string(), rate))))
            }
        }
    }
}

/// A `<domain>` block for one pattern of names.
#[derive(Clone, Debug)]
struct DomainBlock {
    pattern: NamePattern,
    directives: Vec<Directive>,
    order: usize,
}

/// What a block is for.
#[derive(Clone, Debug, PartialEq, Eq)]
enum NamePattern {
    All,
    /// `example.com`
    Name(String),
    /// `*.example.com`: the names below it.
    Below(String),
    /// `[*.]example.com`: the name itself, and those below it.
    Tree(String),
}

impl NamePattern {
    /// None: it is something that the table cannot say, such as a regular expression.
    fn parse(text: &str) -> Option<Self> {
        let name = |text: &str| {
            let is_name = !text.is_empty() && !text.contains(['*', '?', '[', ']', '/', '$', ' ']);
            is_name.then(|| text.trim_end_matches('.').to_ascii_lowercase())
        };
        match text {
            "*" => Some(NamePattern::All),
            _ if text.starts_with("[*.]") => name(&text[4..]).map(NamePattern::Tree),
            _ if text.starts_with("*.") => name(&text[2..]).map(NamePattern::Below),
            _ if text.starts_with('[') && text.ends_with(']') => {
                Some(NamePattern::Name(text.to_string()))
            }
            _ => name(text).map(NamePattern::Name),
        }
    }

    /// How closely it matches a name: 0 is best.
    fn matches(&self, name: &str) -> Option<u8> {
        let is_below =
            |domain: &str| name.strip_suffix(domain).is_some_and(|rest| rest.ends_with('.'));
        match self {
            NamePattern::Name(own) if own == name => Some(0),
            NamePattern::Tree(own) if own == name || is_below(own) => Some(1),
            NamePattern::Below(own) if is_below(own) => Some(1),
            NamePattern::All => Some(2),
            _ => None,
        }
    }

    fn subjects(&self) -> Vec<String> {
        match self {
            NamePattern::All => vec![String::new()],
            NamePattern::Name(name) => vec![name.clone()],
            NamePattern::Below(name) => vec![format!(".{name}")],
            NamePattern::Tree(name) => vec![name.clone(), format!(".{name}")],
        }
    }

    /// A name that it matches, to look its settings up.
    fn sample(&self) -> String {
        match self {
            NamePattern::All => String::new(),
            NamePattern::Name(name) | NamePattern::Tree(name) => name.clone(),
            NamePattern::Below(name) => format!("any.{name}"),
        }
    }
}

/// `mx PATTERN QUEUE`.
#[derive(Clone, Debug)]
struct Rollup {
    exchanger: NamePattern,
    queue: String,
    id: SettingId,
}

#[derive(Debug, Default)]
struct Configuration {
    blocks: Vec<DomainBlock>,
    rollups: Vec<Rollup>,
    macros: HashMap<String, Vec<String>>,
}

/// Reads the files as one configuration, and makes a table of it.
pub(super) fn import(files: &[ForeignFile], ledger: &mut Ledger) -> Result<Draft, Error> {
    let mut configuration = Configuration::default();
    for file in files {
        Reader::new(file, ledger).read(&mut configuration)?;
    }
    Ok(draft(&configuration, ledger))
}

/// A block that is open.
struct OpenBlock {
    tag: String,
    line: u32,
    /// `<domain *>`, as it is shown.
    scope: String,
    /// The indexes of the blocks of the configuration that get its directives.
    blocks: Vec<usize>,
    is_of_virtual_mta: bool,
}

struct Reader<'a> {
    source: &'a ForeignFile,
    file: usize,
    ledger: &'a mut Ledger,
    open: Vec<OpenBlock>,
}

impl<'a> Reader<'a> {
    fn new(source: &'a ForeignFile, ledger: &'a mut Ledger) -> Self {
        let file = ledger.add_file(&source.name, &source.text);
        Self { source, file, ledger, open: Vec::new() }
    }

    fn error(&self, line: u32, what: String, help: &str) -> Error {
        Error::new(format!("{}:{line}", self.source.name), what, help)
    }

    fn read(&mut self, configuration: &mut Configuration) -> Result<(), Error> {
        let text = String::from_utf8_lossy(&self.source.text).into_owned();
        let mut macro_before: Option<(String, SettingId)> = None;
        for (number, line) in (1..).zip(text.lines()) {
            let line = without_comment(line.trim_start_matches('\u{feff}')).trim();
            if line.is_empty() {
                continue;
            }
            // The list of a domain-macro may stand on the next line.
            if let Some((name, id)) = macro_before.take() {
                if !line.starts_with('<') && !line.contains(char::is_whitespace) {
                    add_macro(configuration, &name, line);
                    self.ledger.express(id);
                    continue;
                }
                self.ledger.leave(id, "it has no domains");
            }
            if let Some(tag) = line.strip_prefix("</") {
                self.close(number, tag)?;
            } else if let Some(tag) = line.strip_prefix('<') {
                self.open(number, tag, configuration)?;
            } else {
                macro_before = self.directive(number, line, configuration);
            }
        }
        if let Some((_, id)) = macro_before {
            self.ledger.leave(id, "it has no domains");
        }
        match self.open.last() {
            None => Ok(()),
            Some(open) => {
                let what = format!("{} is not closed", open.scope);
                Err(self.error(open.line, what, &format!("add </{}> at its end", open.tag)))
            }
        }
    }

    fn open(
        &mut self,
        number: u32,
        tag: &str,
        configuration: &mut Configuration,
    ) -> Result<(), Error> {
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
        let is_of_virtual_mta = self.open.iter().any(|open| open.tag.starts_with("virtual-mta"));
        let mut blocks = Vec::new();
        if tag == "domain" && !is_of_virtual_mta {
            for name in unquoted(argument).split(',').map(str::trim).filter(|name| !name.is_empty())
            {
                for pattern in self.patterns(number, &scope, name, configuration) {
                    blocks.push(configuration.blocks.len());
                    let order = configuration.blocks.len();
                    configuration.blocks.push(DomainBlock {
                        pattern,
                        directives: Vec::new(),
                        order,
                    });
                }
            }
        }
        self.open.push(OpenBlock { tag, line: number, scope, blocks, is_of_virtual_mta });
        Ok(())
    }

    /// The patterns of one name of a block: for a macro, those of its domains.
    fn patterns(
        &mut self,
        number: u32,
        scope: &str,
        name: &str,
        configuration: &Configuration,
    ) -> Vec<NamePattern> {
        let place = Place { file: self.file, line: number };
        let names = match name.strip_prefix('$') {
            Some(name) => match configuration.macros.get(&name.to_ascii_lowercase()) {
                Some(names) => names.clone(),
                None => {
                    let id = self.ledger.add(place, "", scope, "");
                    let why = format!("there is no domain-macro {} before it", printable(name));
                    self.ledger.leave(id, why);
                    Vec::new()
                }
            },
            None => vec![name.to_string()],
        };
        let mut patterns = Vec::new();
        for name in names {
            match NamePattern::parse(&name) {
                Some(pattern) => patterns.push(pattern),
                None => {
                    let id = self.ledger.add(place, scope, &name, "");
                    self.ledger.leave(id, "the table has no such pattern of names");
                }
            }
        }
        patterns
    }

    fn close(&mut self, number: u32, tag: &str) -> Result<(), Error> {
        let tag = tag.trim_end_matches('>').trim().to_ascii_lowercase();
        match self.open.pop() {
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

    /// Reads a directive. Returns a macro whose domains are on the next line.
    fn directive(
        &mut self,
        number: u32,
        line: &str,
        configuration: &mut Configuration,
    ) -> Option<(String, SettingId)> {
        let (name, value) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
        let (name, value) = (name.to_ascii_lowercase(), unquoted(value.trim()));
        let scope = self.open.last().map_or("", |open| open.scope.as_str());
        let around = match self.open.iter().rev().nth(1) {
            Some(outer) if self.open.last().is_some_and(|open| open.is_of_virtual_mta) => {
                format!("{} in {}", scope, outer.scope)
            }
            _ => scope.to_string(),
        };
        let place = Place { file: self.file, line: number };
        let id = self.ledger.add(place, &around, &name, value);
        match self.open.last() {
            Some(open) if open.tag == "domain" && open.is_of_virtual_mta => {
                match EXPRESSIBLE.contains(&name.as_str()) || reason(&name).is_some() {
                    true => self.ledger.leave(
                        id,
                        "qmail has no virtual MTAs; to use it, move its block out of <virtual-mta> in a \
                         copy of the file",
                    ),
                    false => self.ledger.leave_unrelated(id),
                }
            }
            Some(open) if open.tag == "domain" => {
                if !EXPRESSIBLE.contains(&name.as_str()) {
                    self.leave(id, &name);
                } else if open.blocks.is_empty() {
                    self.ledger.leave(id, "its block has no name that the table can have");
                } else {
                    match DirectiveValue::parse(&name, value) {
                        Err(why) => self.ledger.leave(id, why),
                        Ok(value) => {
                            for &block in &open.blocks {
                                let (name, value) = (name.clone(), value.clone());
                                configuration.blocks[block].directives.push(Directive {
                                    name,
                                    value,
                                    id,
                                });
                            }
                        }
                    }
                }
            }
            _ if name == "mx" => self.rollup(id, value, configuration),
            None if name == "domain-macro" => {
                let (name, list) = value.split_once(char::is_whitespace).unwrap_or((value, ""));
                if list.trim().is_empty() {
                    return Some((name.to_string(), id));
                }
                add_macro(configuration, name, list);
                self.ledger.express(id);
            }
            _ => self.leave(id, &name),
        }
        None
    }

    fn rollup(&mut self, id: SettingId, value: &str, configuration: &mut Configuration) {
        let mut words = value.split_whitespace();
        match (words.next().and_then(NamePattern::parse), words.next()) {
            (Some(exchanger), Some(queue)) if exchanger != NamePattern::All => {
                let queue = unquoted(queue).to_ascii_lowercase();
                configuration.rollups.push(Rollup { exchanger, queue, id });
            }
            _ => self
                .ledger
                .leave(id, "expected mx PATTERN QUEUE, with a pattern such as *.example.com"),
        }
    }

    fn leave(&mut self, id: SettingId, name: &str) {
        match reason(name) {
            Some(why) => self.ledger.leave(id, why),
            None => self.ledger.leave_unrelated(id),
        }
    }
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

fn add_macro(configuration: &mut Configuration, name: &str, list: &str) {
    let domains = configuration.macros.entry(name.to_ascii_lowercase()).or_default();
    for domain in unquoted(list.trim()).split([',', ' ', '\t']).filter(|domain| !domain.is_empty())
    {
        let domain = domain.to_ascii_lowercase();
        if !domains.contains(&domain) {
            domains.push(domain);
        }
    }
}

impl Configuration {
    /// The settings of a name: of each directive the one of the block that matches best, of several the last.
    fn effective(&self, name: &str) -> HashMap<&str, &Directive> {
        let mut blocks: Vec<(u8, usize, &DomainBlock)> = self
            .blocks
            .iter()
            .filter_map(|block| Some((block.pattern.matches(name)?, block.order, block)))
            .collect();
        blocks.sort_by_key(|&(closeness, order, _)| (std::cmp::Reverse(closeness), order));
        let mut found = HashMap::new();
        for (_, _, block) in blocks {
            found.extend(block.directives.iter().map(|own| (own.name.as_str(), own)));
        }
        found
    }

    /// The queue that a name's mail goes to at last, and the directives on the way. None: that of the name itself.
    fn queue(&self, name: &str) -> (Option<String>, Vec<SettingId>) {
        let (mut queue, mut from) = (None::<String>, Vec::new());
        for _ in 0..HOPS_MAX {
            let now = queue.as_deref().unwrap_or(name);
            match self.effective(now).get(QUEUE_TO) {
                Some(Directive { value: DirectiveValue::Queue(next), id, .. })
                    if !next.is_empty() && next != now =>
                {
                    from.push(*id);
                    queue = Some(next.clone());
                }
                _ => break,
            }
        }
        (queue, from)
    }

    /// Whether the mail of other names goes to this queue.
    fn is_target(&self, queue: &str) -> bool {
        let mut directives = self.blocks.iter().flat_map(|block| &block.directives);
        directives.any(|own| matches!(&own.value, DirectiveValue::Queue(to) if to == queue))
            || self.rollups.iter().any(|rollup| rollup.queue == queue)
    }

    /// Whether it is a queue, and no name of a domain.
    fn is_only_queue(&self, name: &str) -> bool {
        let looks_like_one = [".queue", ".rollup"].iter().any(|end| name.ends_with(end));
        looks_like_one || !name.contains('.') && self.is_target(name)
    }
}

/// The limit, the rates and their settings for a queue.
fn cap(configuration: &Configuration, queue: &str) -> DraftLine {
    let mut line = DraftLine {
        subjects: Vec::new(),
        limit: Some(OWN_LIMIT),
        group: None,
        rates: Rates::NONE,
        from: Vec::new(),
        notes: Vec::new(),
    };
    let effective = configuration.effective(queue);
    if !effective.contains_key(MAX_SMTP_OUT) {
        line.notes.push(format!("PowerMTA's own max-smtp-out is {OWN_LIMIT}"));
    }
    for directive in EXPRESSIBLE.iter().filter_map(|name| effective.get(name)) {
        match &directive.value {
            DirectiveValue::Queue(_) => continue,
            DirectiveValue::Limit(limit) => line.limit = *limit,
            DirectiveValue::Rate(None) => {}
            DirectiveValue::Rate(Some((text, rate))) => {
                line.rates = line.rates.lowest(rate.rates);
                line.notes.extend(rate.note(text));
            }
        }
        line.from.push(directive.id);
    }
    line
}

fn draft(configuration: &Configuration, ledger: &mut Ledger) -> Draft {
    let mut draft = Draft::default();
    let mut default = cap(configuration, "");
    default.subjects.push(String::new());
    let (queue, from) = configuration.queue("");
    if let Some(queue) = queue {
        default = DraftLine {
            subjects: default.subjects,
            group: Some(group_name(&queue)),
            ..cap(configuration, &queue)
        };
        default.from.extend(from);
    }
    draft.lines.push(default);
    // A line for each queue, in the order in which the queues first come.
    let mut queues: HashMap<String, usize> = HashMap::new();
    let mut seen = Vec::new();
    for block in &configuration.blocks {
        let name = block.pattern.sample();
        if block.pattern == NamePattern::All || seen.contains(&&block.pattern) {
            continue;
        }
        seen.push(&block.pattern);
        let (queue, from) = configuration.queue(&name);
        // The block of a queue is no line; its settings are in the lines of those whose mail goes there.
        if matches!(block.pattern, NamePattern::Name(_)) && configuration.is_only_queue(&name) {
            continue;
        }
        let queue = queue.or_else(|| configuration.is_target(&name).then(|| name.clone()));
        if block.directives.is_empty() && queue.is_none() {
            continue;
        }
        let subjects = block.pattern.subjects();
        match queue {
            None => {
                let line = cap(configuration, &name);
                draft.lines.push(DraftLine { subjects, ..line });
            }
            Some(queue) => {
                add_to_queue(configuration, &queue, subjects, from, &mut queues, &mut draft);
            }
        }
    }
    for rollup in &configuration.rollups {
        let (queue, mut from) = configuration.queue(&rollup.queue);
        from.push(rollup.id);
        let queue = queue.unwrap_or_else(|| rollup.queue.clone());
        let subjects =
            rollup.exchanger.subjects().iter().map(|name| format!("mx:{name}")).collect();
        draft.note(EXCHANGERS);
        add_to_queue(configuration, &queue, subjects, from, &mut queues, &mut draft);
    }
    if configuration
        .blocks
        .iter()
        .flat_map(|block| &block.directives)
        .any(|own| own.name == "max-connect-rate")
    {
        draft.note(
            "A delivery of qmail opens one connection for one message, so a rate of connections (max-connect-rate) \
             limits messages, too. If mail waits for such a rate, raise it.",
        );
    }
    draft.settle(ledger);
    for block in &configuration.blocks {
        for directive in &block.directives {
            if ledger.is_unread(directive.id) {
                ledger.leave(directive.id, unused(configuration, block, directive));
            }
        }
    }
    draft
}

/// Why a directive is in no line.
fn unused(
    configuration: &Configuration,
    block: &DomainBlock,
    directive: &Directive,
) -> &'static str {
    let sample = block.pattern.sample();
    let holds = configuration.effective(&sample).get(directive.name.as_str()).map(|own| own.id);
    match holds {
        Some(id) if id != directive.id => "a later directive for the same names takes its place",
        _ if configuration.queue(&sample).0.is_some() => {
            "the mail of its domains goes to another queue, whose settings count"
        }
        _ => "no mail goes to its queue",
    }
}

fn add_to_queue(
    configuration: &Configuration,
    queue: &str,
    subjects: Vec<String>,
    from: Vec<SettingId>,
    queues: &mut HashMap<String, usize>,
    draft: &mut Draft,
) {
    let at = *queues.entry(queue.to_string()).or_insert_with(|| {
        let group = Some(group_name(queue));
        draft.lines.push(DraftLine { group, ..cap(configuration, queue) });
        draft.lines.len() - 1
    });
    let line = &mut draft.lines[at];
    line.subjects.extend(subjects);
    for id in from {
        if !line.from.contains(&id) {
            line.from.push(id);
        }
    }
}
