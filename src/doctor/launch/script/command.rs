//! Follows one command: a chain of programs, each of which may set limits and start the next one.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;

use super::host::PathContent;
use super::walk::{ScriptState, StartPoint, Walk, Within};
use crate::doctor::launch::field::{Field, Variable};
use crate::doctor::launch::limits::{LimitChange, LimitState};
use crate::doctor::launch::programs::{self, NextStep, StartedProgram};
use crate::doctor::launch::shell::{ChainItem, Shell};

impl Walk<'_> {
    /// Follows the programs of a command from its first word to the one that is looked for.
    pub(super) fn command(&mut self, fields: Vec<Field>, place: &mut ScriptState, within: Within) {
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
                    // qmail's rc starts qmail, also if it does not exist yet or is not a script.
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
                    PathContent::Unreadable(_) | PathContent::Other | PathContent::Missing => {}
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

    /// Follows a script in one word: `sh -c 'ulimit -n 512; exec qmail-start'`.
    pub(super) fn text(
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

    /// Follows a script of execline or nosh.
    pub(super) fn chain(&mut self, links: &[ChainItem], place: &ScriptState) {
        let mut fields = Vec::new();
        let mut place = place.clone();
        let mut words = links.iter().peekable();
        while let Some(link) = words.next() {
            match link {
                ChainItem::Block(inner) => self.chain(inner, &place),
                ChainItem::Word(word) => {
                    let mut expanded = self.expand(word, &place);
                    if expanded.first().is_some_and(|field| field.text == "define") {
                        // define NAME VALUE sets a variable for the rest of the line.
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
