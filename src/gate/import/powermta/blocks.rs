//! What PowerMTA's configuration says about domains: the directives of the blocks that match a name.
//!
//! The blocks outside of `<virtual-mta>` are one scope, those of each virtual MTA or pool another one. In a scope a
//! name has the settings of `<domain *>`, then of the blocks with a wildcard that match it, then of its own block; of
//! several the later one counts.

use std::collections::{BTreeMap, HashMap, HashSet};

use qpatch_gate::limit::LIMIT_MAX;
use qpatch_gate::rates::Rates;

use crate::gate::import::draft::DraftLine;
use crate::gate::import::ledger::{Ledger, SettingId};
use crate::gate::import::rate::{ForeignRate, TableRate};
use crate::gate::import::subject::Subject;
use crate::gate::text::printable;

/// max-smtp-out where no block sets it.
const OWN_LIMIT: u64 = 20;

/// How many times queue-to is followed from one queue to the next.
const HOPS_MAX: usize = 8;

pub(super) const MAX_SMTP_OUT: &str = "max-smtp-out";
pub(super) const QUEUE_TO: &str = "queue-to";

/// The directives that the table can express.
pub(super) const EXPRESSIBLE: [&str; 9] = [
    MAX_SMTP_OUT,
    "max-smtp-out-per-source-ip",
    "source-ip-max-smtp-out",
    "max-msg-rate",
    "max-connect-rate",
    "max-msg-per-hour",
    "source-ip-max-msg-rate",
    "source-ip-max-connect-rate",
    QUEUE_TO,
];

#[derive(Clone, Debug)]
pub(super) struct Directive {
    pub(super) name: String,
    pub(super) value: DirectiveValue,
    pub(super) id: SettingId,
    pub(super) scope: usize,
    /// The first name of its block.
    pub(super) of: Subject,
}

#[derive(Clone, Debug)]
pub(super) enum DirectiveValue {
    /// None: unlimited.
    Limit(Option<u64>),
    /// As it is written, and as the table says it; None: unlimited.
    Rate(Option<(String, TableRate)>),
    /// The name of a queue, in lower case; empty: none.
    Queue(String),
    /// A limit that the table cannot have.
    Unsaid,
}

impl DirectiveValue {
    /// Reads the value of a directive of [`EXPRESSIBLE`].
    ///
    /// # Errors
    /// Why it cannot be expressed. What is inherited then holds.
    pub(super) fn parse(name: &str, text: &str) -> Result<Self, String> {
        // source-ip-... CIDR VALUE: qmail sends from one address, so what is for one source address is for all mail.
        let text = match text.split_once(char::is_whitespace) {
            Some((_, value)) if name.starts_with("source-ip-") => value.trim(),
            _ => text,
        };
        let is_unlimited = text.eq_ignore_ascii_case("unlimited");
        match name {
            QUEUE_TO => Ok(DirectiveValue::Queue(text.to_ascii_lowercase())),
            name if name.contains("smtp-out") && is_unlimited => Ok(DirectiveValue::Limit(None)),
            name if name.contains("smtp-out") => match text.parse::<u64>() {
                Ok(0) => Err("a limit of 0 would hold all mail of the line".to_string()),
                Ok(limit) => Ok(DirectiveValue::Limit(Some(limit))),
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

/// What a block is for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum NamePattern {
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
    pub(super) fn parse(text: &str) -> Option<Self> {
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

    /// The lines of the table that it needs.
    pub(super) fn subjects(&self) -> Vec<Subject> {
        match self {
            NamePattern::All => vec![Subject::All],
            NamePattern::Name(name) => vec![Subject::Name(name.clone())],
            NamePattern::Below(name) => vec![Subject::Below(name.clone())],
            NamePattern::Tree(name) => {
                vec![Subject::Name(name.clone()), Subject::Below(name.clone())]
            }
        }
    }
}

/// Of each directive the one that counts, by its index; in the order of their names.
type Chosen = BTreeMap<String, usize>;

/// The blocks outside of virtual MTAs, or those of one of them.
#[derive(Debug, Default)]
pub(super) struct Scope {
    all: Layer,
    /// Without the values that the table cannot have: what holds in their place.
    sayable: Layer,
}

/// Directives by the names of their blocks.
#[derive(Debug, Default)]
struct Layer {
    all: Chosen,
    exact: HashMap<String, Chosen>,
    wildcard: HashMap<Subject, Chosen>,
}

impl Layer {
    fn add(&mut self, pattern: &NamePattern, name: &str, index: usize) {
        let insert = |chosen: &mut Chosen| {
            chosen.insert(name.to_string(), index);
        };
        match pattern {
            NamePattern::All => insert(&mut self.all),
            NamePattern::Name(name) => insert(self.exact.entry(name.clone()).or_default()),
            NamePattern::Below(_) | NamePattern::Tree(_) => {
                for subject in pattern.subjects() {
                    insert(self.wildcard.entry(subject).or_default());
                }
            }
        }
    }

    /// The directives that hold for all names of a subject that have no closer block.
    fn find(&self, subject: &Subject) -> Chosen {
        let mut found = self.all.clone();
        let mut wildcards = Chosen::new();
        for chosen in subject.and_parents().filter_map(|parent| self.wildcard.get(&parent)) {
            for (name, &index) in chosen {
                let known = wildcards.entry(name.clone()).or_insert(index);
                *known = index.max(*known);
            }
        }
        found.extend(wildcards);
        if let Subject::Name(name) = subject {
            let own = self.exact.get(name).into_iter().flatten();
            found.extend(own.map(|(name, &index)| (name.clone(), index)));
        }
        found
    }
}

/// All blocks.
#[derive(Debug)]
pub(super) struct Blocks {
    /// The first one is that outside of virtual MTAs.
    pub(super) scopes: Vec<Scope>,
    pub(super) directives: Vec<Directive>,
    /// The queues that other mail goes to.
    pub(super) targets: HashSet<String>,
}

impl Default for Blocks {
    fn default() -> Self {
        Self { scopes: vec![Scope::default()], directives: Vec::new(), targets: HashSet::new() }
    }
}

impl Blocks {
    /// Adds a directive to the blocks of these patterns.
    pub(super) fn add(&mut self, patterns: &[NamePattern], directive: Directive) {
        if let DirectiveValue::Queue(queue) = &directive.value {
            self.targets.insert(queue.clone());
        }
        let Scope { all, sayable } = &mut self.scopes[directive.scope];
        for pattern in patterns {
            all.add(pattern, &directive.name, self.directives.len());
            if !matches!(directive.value, DirectiveValue::Unsaid) {
                sayable.add(pattern, &directive.name, self.directives.len());
            }
        }
        self.directives.push(directive);
    }

    /// The queue that a name's mail goes to at last, and the directives on the way. None: that of the name itself.
    pub(super) fn queue(&self, subject: &Subject) -> (Option<String>, Vec<SettingId>) {
        let (mut subject, mut from) = (subject.clone(), Vec::new());
        let mut queue = None;
        for _ in 0..HOPS_MAX {
            let found = self.scopes.iter().find_map(|scope| {
                let index = scope.all.find(&subject).get(QUEUE_TO).copied()?;
                Some(&self.directives[index])
            });
            let Some(Directive { value: DirectiveValue::Queue(next), id, .. }) = found else {
                break;
            };
            if next.is_empty() || subject == Subject::Name(next.clone()) {
                break;
            }
            from.push(*id);
            queue = Some(next.clone());
            subject = Subject::Name(next.clone());
        }
        (queue, from)
    }

    /// Why a directive is in no line.
    pub(super) fn unused(&self, index: usize) -> &'static str {
        let directive = &self.directives[index];
        let counts = self.scopes[directive.scope].all.find(&directive.of).get(&directive.name)
            == Some(&index);
        match directive.value {
            _ if !counts => "a later directive for the same names takes its place",
            _ if self.queue(&directive.of).0.is_some() => {
                "the mail of its domains goes to another queue, whose settings count"
            }
            _ if matches!(&directive.of, Subject::Name(name) if self.is_only_queue(name)
                && !self.targets.contains(name)) =>
            {
                "no mail goes to its queue"
            }
            DirectiveValue::Limit(_) => "a lower limit for the same names holds",
            _ => "no mail goes to its queue",
        }
    }

    /// Whether it is a queue, and no name of a domain.
    pub(super) fn is_only_queue(&self, name: &str) -> bool {
        let looks_like_one = [".queue", ".rollup"].iter().any(|end| name.ends_with(end));
        looks_like_one || !name.contains('.') && self.targets.contains(name)
    }

    /// The limit, the rates and their settings for a name: of all scopes the lowest.
    pub(super) fn line(&self, subject: &Subject, ledger: &Ledger) -> DraftLine {
        let mut line = DraftLine {
            subjects: Vec::new(),
            limit: None,
            group: None,
            rates: Rates::NONE,
            from: Vec::new(),
            notes: Vec::new(),
        };
        let mut limit_from = None;
        let mut has_limit = false;
        let mut unsaid = Vec::new();
        let mut of_virtual_mtas = false;
        for (number, scope) in self.scopes.iter().enumerate() {
            let mut sayable = None;
            for (name, index) in scope.all.find(subject) {
                of_virtual_mtas |= number > 0;
                let mut directive = &self.directives[index];
                if matches!(directive.value, DirectiveValue::Unsaid) {
                    let place = ledger.place_text(ledger.place(directive.id));
                    unsaid.push(format!("{} ({place})", printable(&name)));
                    let sayable = sayable.get_or_insert_with(|| scope.sayable.find(subject));
                    let Some(&inherited) = sayable.get(&name) else { continue };
                    directive = &self.directives[inherited];
                }
                has_limit |= number == 0 && name == MAX_SMTP_OUT;
                match &directive.value {
                    DirectiveValue::Queue(_) | DirectiveValue::Unsaid => {}
                    DirectiveValue::Limit(limit) => {
                        let is_lower = match (limit, line.limit) {
                            (Some(limit), Some(known)) => *limit < known,
                            (Some(_), None) => true,
                            (None, _) => limit_from.is_none(),
                        };
                        if is_lower {
                            line.limit = *limit;
                            limit_from = Some(directive.id);
                        }
                    }
                    DirectiveValue::Rate(rate) => {
                        if let Some((text, rate)) = rate {
                            line.rates = line.rates.lowest(rate.rates);
                            line.notes.extend(rate.note(text));
                        }
                        line.from.push(directive.id);
                    }
                }
            }
        }
        line.from.splice(0..0, limit_from);
        if !has_limit && line.limit.is_none_or(|limit| limit > OWN_LIMIT) {
            line.limit = Some(OWN_LIMIT);
            line.notes.push(format!("PowerMTA's own max-smtp-out is {OWN_LIMIT}"));
        }
        if let Some(limit) = line.limit.filter(|&limit| limit > u64::from(LIMIT_MAX)) {
            line.limit = Some(u64::from(LIMIT_MAX));
            line.notes.push(format!("{limit} is said as {LIMIT_MAX}, which is stricter"));
        }
        if of_virtual_mtas {
            line.notes.push(
                "blocks of virtual MTAs are in it: of all of them and of those outside the lowest limit and all rates \
                 hold"
                    .to_string(),
            );
        }
        if !unsaid.is_empty() {
            line.notes.push(format!("limits that are not in it: {}", unsaid.join(", ")));
        }
        line
    }
}
