//! Works out in memory what a set of patches changes in a tree.

#![forbid(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet};

use serde::{Serialize, Serializer};

use super::{MARKS, Tree};
use crate::engine::edit::{self, Edit, Examined, Misfit};
use crate::engine::function::functions;
use crate::engine::include::{Header, headers};
use crate::engine::lex::{Lang, Source, TokenKind};
use crate::engine::makefile;
use crate::engine::matcher;
use crate::engine::rule::{
    Absent, Action, Condition, Need, Patch, Purpose, Reach, Scope, Section, Select,
};
use crate::error::{Error, Result};

const MAKEFILE: &str = "Makefile";

const MISSED: &str = "the tree has no such file, but its Makefile builds from it";

/// The changes of the patches, and the state of each patch.
#[derive(Debug)]
pub struct PatchPlan {
    /// The files that change, by name.
    pub changes: Vec<FileChange>,
    /// One per patch, in order.
    pub reports: Vec<PatchReport>,
}

/// A file that changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileChange {
    /// Its name in the tree.
    pub name: String,
    /// Its bytes now; `None` if the patch creates it.
    pub old: Option<Vec<u8>>,
    /// Its bytes after the change.
    pub new: Vec<u8>,
}

/// The state of one patch in the tree.
#[derive(Clone, Debug, Serialize)]
pub struct PatchReport {
    /// The patch's id.
    pub patch: String,
    /// The state in one word.
    pub standing: PatchState,
    /// The details, by rule and file.
    pub rules: Vec<RuleReport>,
}

impl PatchReport {
    /// Returns whether a rule of the patch concerns this tree. Other patches are not listed.
    #[must_use]
    pub fn concerns_the_tree(&self) -> bool {
        !self.rules.is_empty()
    }
}

/// The state of a patch in a tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum PatchState {
    /// Everything that it makes true is true.
    Applied,
    /// Nothing in the tree is of its kind, so there is nothing to change, and no trace of a change.
    Unneeded,
    /// Nothing of it is true; it fits.
    Missing,
    /// A part of it is there, or there but wrong; the rest fits.
    Partial,
    /// The tree has some code in a form that the rules do not know.
    Foreign,
}

impl PatchState {
    /// Returns the word for people.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            PatchState::Applied => "applied",
            PatchState::Unneeded => "unneeded",
            PatchState::Missing => "missing",
            PatchState::Partial => "partial",
            PatchState::Foreign => "foreign",
        }
    }
}

/// The state of one rule in one file.
#[derive(Clone, Debug, Serialize)]
pub struct RuleReport {
    /// The file.
    pub file: String,
    /// What the rule makes true.
    pub title: String,
    /// Its line in the patch's rule file.
    pub line: usize,
    /// The state.
    pub outcome: RuleOutcome,
}

/// Why a rule does not fit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MisfitReason {
    /// The tree writes it another way: the nearest place, and what is different there.
    Written(String),
    /// The tree has another file with the name of one that the patch makes. No variant of a rule helps there.
    OtherFile,
}

impl MisfitReason {
    /// Returns it in words.
    #[must_use]
    pub fn as_str(&self) -> &str {
        match self {
            MisfitReason::Written(why) => why,
            MisfitReason::OtherFile => {
                "the tree has another file of this name (of an earlier qpatch: qpatch revert, then apply)"
            }
        }
    }
}

impl Serialize for MisfitReason {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

/// The state of a rule in a file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "state", content = "why", rename_all = "lowercase")]
pub enum RuleOutcome {
    /// The change is there already.
    Done,
    /// The rule has nothing to do in this file.
    Nothing,
    /// The change is made.
    Make,
    /// The change is there, known to be wrong, and repaired.
    Repair,
    /// The rule does not fit.
    Misfit(MisfitReason),
}

/// What to do with a tree in which one half of the protocol uses two bytes for a delivery number,
/// and the other half one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnPartialProtocol {
    /// Refuse: someone may be in the middle of a change.
    Refuse,
    /// Make the missing half.
    Complete,
}

impl PatchPlan {
    /// Works out what `patches` change in `tree`.
    ///
    /// # Errors
    /// If a file cannot be read. A rule that does not fit is not an error here: see
    /// [`PatchPlan::check`].
    pub fn new(tree: &Tree, patches: &[Patch]) -> Result<PatchPlan> {
        let mut work = PatchedFiles::read(tree)?;
        let mut reports = Vec::new();
        for patch in patches {
            let mut rules = Vec::new();
            let mut evidence = RuleFindings::default();
            match work.refused(tree, patch)? {
                Some(refused) => {
                    evidence.misfit = true;
                    rules.push(refused);
                }
                None => {
                    for section in &patch.sections {
                        work.section(tree, section, &mut rules, &mut evidence)?;
                    }
                }
            }
            let is_idle = rules.iter().all(|rule| rule.outcome == RuleOutcome::Nothing);
            let standing = if is_idle { PatchState::Unneeded } else { evidence.standing() };
            reports.push(PatchReport { patch: patch.id.clone(), standing, rules });
        }
        work.dependencies();
        Ok(PatchPlan { changes: work.changes(), reports })
    }

    /// Refuses a plan that must not be applied: a rule does not fit, or half of the protocol is
    /// done.
    ///
    /// # Errors
    /// One for each misfit, with the place, the nearest match and what to do.
    pub fn check(
        &self,
        patches: &[Patch],
        halves: OnPartialProtocol,
    ) -> std::result::Result<(), Vec<Error>> {
        let mut errors: Vec<_> =
            self.reports.iter().flat_map(|report| self.misfits(&report.patch)).collect();
        if errors.is_empty() && halves == OnPartialProtocol::Refuse {
            errors.extend(self.half_made(patches));
        }
        if errors.is_empty() { Ok(()) } else { Err(errors) }
    }

    /// Returns an error for each rule of one patch that does not fit: the place, the nearest match
    /// and what to do.
    pub fn misfits<'a>(&'a self, patch: &str) -> impl Iterator<Item = Error> + 'a {
        let reports = self.reports.iter().filter(move |r| r.patch == patch).collect::<Vec<_>>();
        reports.into_iter().flat_map(|report| {
            report.rules.iter().filter_map(|rule| {
                let RuleOutcome::Misfit(why) = &rule.outcome else { return None };
                let help = match why {
                    MisfitReason::OtherFile => format!(
                        "what an earlier qpatch has made stays until then; if the file is the tree's own, --skip {} \
                         leaves this patch out",
                        report.patch
                    ),
                    MisfitReason::Written(_) => format!(
                        "the rule is patches/{0}/rule:{1}; if this tree writes it another way, \
                         change the file by hand\nor add a variant to the rule (`qpatch rule try \
                         {0}:{1} FILE` shows how near it comes); --skip {0} leaves this patch out",
                        report.patch, rule.line
                    ),
                };
                let what = format!("{}: {}: {}", report.patch, rule.title, why.as_str());
                Some(Error::new(&rule.file, what, help))
            })
        })
    }

    /// Returns an error if some of the rules that belong together are done and others are not.
    fn half_made(&self, patches: &[Patch]) -> Option<Error> {
        for (report, patch) in self.reports.iter().zip(patches) {
            let together: BTreeSet<usize> = patch
                .sections
                .iter()
                .flat_map(Section::rules)
                .filter(|r| r.together)
                .map(|r| r.line)
                .collect();
            let of = |outcome: RuleOutcome| {
                let rules = report.rules.iter();
                rules
                    .filter(|r| together.contains(&r.line) && r.outcome == outcome)
                    .map(|r| format!("{} ({})", r.file, r.title))
                    .collect::<Vec<_>>()
            };
            let (done, missing) = (of(RuleOutcome::Done), of(RuleOutcome::Make));
            if !done.is_empty() && !missing.is_empty() {
                return Some(Error::new(
                    "",
                    format!(
                        "{}: half of this change is in the tree already\nthere: {}\nnot there: {}",
                        report.patch,
                        done.join(", "),
                        missing.join(", ")
                    ),
                    "take the half out (or unpack the tree again), or have qpatch make the rest \
                     with --complete",
                ));
            }
        }
        None
    }
}

/// What the rules of one patch found.
#[derive(Default)]
struct RuleFindings {
    done: bool,
    made: bool,
    repaired: bool,
    misfit: bool,
}

impl RuleFindings {
    fn standing(&self) -> PatchState {
        if self.misfit {
            PatchState::Foreign
        } else if !self.made && !self.repaired {
            PatchState::Applied
        } else if self.done || self.repaired {
            PatchState::Partial
        } else {
            PatchState::Missing
        }
    }
}

/// The files of a tree, before and after the patches.
struct PatchedFiles {
    old: BTreeMap<String, Vec<u8>>,
    new: BTreeMap<String, Vec<u8>>,
    /// The headers that each file in `new` includes.
    includes: BTreeMap<String, Vec<Header>>,
    /// Links that lead out of the tree. They may be read; the error says why they must not be
    /// changed.
    outside: BTreeMap<String, Error>,
    /// Sources that could not be read.
    unread: Vec<String>,
}

impl PatchedFiles {
    /// Reads the C sources and the makefile of `tree`. Other files are read when a rule needs them.
    fn read(tree: &Tree) -> Result<PatchedFiles> {
        let (mut old, mut outside, mut unread) = (BTreeMap::new(), BTreeMap::new(), Vec::new());
        for name in tree.names().iter().filter(|n| Lang::of(n) == Lang::C) {
            let bytes = match tree.read(name) {
                Ok(bytes) => bytes,
                Err(error) if MARKS.contains(&name.as_str()) => return Err(error),
                Err(error) => match tree.read_outside(name) {
                    Some(bytes) => {
                        outside.insert(name.clone(), error);
                        bytes
                    }
                    // A dangling link or an unreadable file matters only if a rule needs it.
                    None => {
                        unread.push(name.clone());
                        continue;
                    }
                },
            };
            old.insert(name.clone(), bytes);
        }
        old.insert(MAKEFILE.to_string(), tree.read(MAKEFILE)?);
        let (new, includes) = (BTreeMap::new(), BTreeMap::new());
        let mut work = PatchedFiles { old, new, includes, outside, unread };
        for (name, bytes) in work.old.clone() {
            work.put(name, bytes);
        }
        Ok(work)
    }

    /// Sets the new bytes of the file `name`.
    fn put(&mut self, name: String, bytes: Vec<u8>) {
        self.includes.insert(name.clone(), headers(&bytes));
        self.new.insert(name, bytes);
    }

    /// Returns the headers that `name` includes, directly or through others.
    fn all_includes(&self, name: &str) -> BTreeSet<&str> {
        let mut seen = BTreeSet::new();
        let mut open = vec![name];
        while let Some(file) = open.pop() {
            for include in self.includes.get(file).into_iter().flatten() {
                if seen.insert(include.name.as_str()) {
                    open.push(&include.name);
                }
            }
        }
        seen
    }

    fn load(&mut self, tree: &Tree, name: &str) -> Result<()> {
        if !self.new.contains_key(name) {
            let bytes = tree.read(name)?;
            self.old.insert(name.to_string(), bytes.clone());
            self.put(name.to_string(), bytes);
        }
        Ok(())
    }

    fn has(&self, tree: &Tree, name: &str) -> bool {
        self.new.contains_key(name) || tree.names().contains(name)
    }

    /// Returns the files that a section is about; `Err` has the text of a misfit.
    fn selected(
        &mut self,
        tree: &Tree,
        select: &Select,
    ) -> Result<std::result::Result<Vec<String>, String>> {
        if let Some(name) = select.names.iter().find(|name| self.is_missed(tree, name))
            && (select.reach == Reach::All || !select.names.iter().any(|n| self.has(tree, n)))
        {
            return Ok(Err(match select.reach {
                Reach::All => format!("{name}: {MISSED}"),
                Reach::First => MISSED.to_string(),
            }));
        }
        let mut found = Vec::new();
        for name in &select.names {
            // A glob takes C files, which are all read already; other files are read when a section
            // names them.
            let taken: Vec<_> = if name.contains('*') {
                self.new.keys().filter(|file| takes(name, file)).cloned().collect()
            } else if self.has(tree, name) {
                self.load(tree, name)?;
                vec![name.clone()]
            } else {
                Vec::new()
            };
            found.extend(taken.into_iter().filter(|file| {
                !select.except.contains(file)
                    && select.with.iter().all(|any| any.iter().any(|c| self.condition(file, c)))
            }));
        }
        match select.reach {
            Reach::First => found.truncate(1),
            Reach::All => {
                found.sort();
                found.dedup();
            }
        }
        if found.is_empty() && select.absent == Absent::Error {
            return Ok(Err(self.nothing_selected(&select.with)));
        }
        Ok(Ok(found))
    }

    /// Returns whether `name`, a C source or conf-cc, is missing although the tree's makefile
    /// builds from it. qmail makes `x.h` from `x.h1` and `x.h2`, and forks have the rules for that
    /// in another makefile. A tree without conf-spawn can be patched: the operator writes that
    /// file.
    fn is_missed(&self, tree: &Tree, name: &str) -> bool {
        (Lang::of(name) == Lang::C || name == "conf-cc")
            && !self.has(tree, name)
            && !self.has(tree, &format!("{name}1"))
            && needs(&self.new[MAKEFILE], name)
    }

    /// Returns the text of the misfit "no file meets the conditions `with`".
    fn nothing_selected(&self, with: &[Vec<Condition>]) -> String {
        if with.is_empty() {
            return "the tree has no such file".to_string();
        }
        let words = |any: &Vec<Condition>| {
            any.iter().map(Condition::to_string).collect::<Vec<_>>().join(" or ")
        };
        let conditions = with.iter().map(words).collect::<Vec<_>>().join(" and ");
        let mut why = format!("no such file of the tree {conditions}");
        if !self.unread.is_empty() {
            why += &format!("; could not be read: {}", self.unread.join(", "));
        }
        why
    }

    fn condition(&self, name: &str, condition: &Condition) -> bool {
        let bytes = &self.new[name];
        match condition {
            Condition::Function(function) => {
                contains(bytes, function.as_bytes())
                    && functions(&Source::new(Lang::C, bytes)).iter().any(|f| f.name == *function)
            }
            Condition::Include(header) => self.all_includes(name).contains(header.as_str()),
            Condition::NoInclude(header) => !self.all_includes(name).contains(header.as_str()),
            Condition::Identifier(word) => self.mentions(name, word),
            Condition::Calls(function) => {
                contains(bytes, function.as_bytes()) && {
                    let source = Source::new(Lang::C, bytes);
                    (0..source.tokens.len()).any(|i| {
                        source.is(i, TokenKind::Ident, function)
                            && source.is(i + 1, TokenKind::Punct, "(")
                    })
                }
            }
        }
    }

    /// Returns whether `name`, or a header of the tree that it includes, has the identifier `word`.
    fn mentions(&self, name: &str, word: &str) -> bool {
        let has = |bytes: &[u8]| {
            contains(bytes, word.as_bytes()) && {
                let source = Source::new(Lang::C, bytes);
                (0..source.tokens.len()).any(|i| source.is(i, TokenKind::Ident, word))
            }
        };
        has(&self.new[name])
            || self
                .all_includes(name)
                .into_iter()
                .filter_map(|header| self.new.get(header))
                .any(|bytes| has(bytes))
    }

    /// Returns the report of the first section that refuses this tree, if any. The findings of the
    /// patch's other rules then do not matter.
    fn refused(&mut self, tree: &Tree, patch: &Patch) -> Result<Option<RuleReport>> {
        for section in &patch.sections {
            let Action::Refuse(reason) = &section.work else { continue };
            if section.unless.iter().any(|n| self.has(tree, n)) {
                continue;
            }
            let selected = self.selected(tree, &section.select)?.unwrap_or_default();
            if let Some(file) = selected.into_iter().next() {
                let title = "this tree is not of its kind".to_string();
                let (line, outcome) =
                    (section.line, RuleOutcome::Misfit(MisfitReason::Written(reason.clone())));
                return Ok(Some(RuleReport { file, title, line, outcome }));
            }
        }
        Ok(None)
    }

    fn section(
        &mut self,
        tree: &Tree,
        section: &Section,
        reports: &mut Vec<RuleReport>,
        evidence: &mut RuleFindings,
    ) -> Result<()> {
        if section.unless.iter().any(|n| self.has(tree, n)) {
            return Ok(());
        }
        let rules = match &section.work {
            Action::Rules(rules) => rules,
            Action::Refuse(_) => return Ok(()),
            Action::Create(content) => {
                let name = &section.select.names[0];
                let outcome = self.create(tree, name, content)?;
                match &outcome {
                    RuleOutcome::Done => evidence.done = true,
                    RuleOutcome::Misfit(_) => evidence.misfit = true,
                    _ => evidence.made = true,
                }
                let (file, title) = (name.clone(), "a file of the patch".to_string());
                reports.push(RuleReport { file, title, line: section.line, outcome });
                return Ok(());
            }
        };
        let names = match self.selected(tree, &section.select)? {
            Ok(names) => names,
            Err(why) => {
                evidence.misfit = true;
                reports.push(RuleReport {
                    file: section.select.names.join(" or "),
                    title: rules[0].title.clone(),
                    line: section.line,
                    outcome: RuleOutcome::Misfit(MisfitReason::Written(why)),
                });
                return Ok(());
            }
        };
        for name in names {
            self.load(tree, &name)?;
            for rule in rules {
                let lang = section.lang();
                let bytes = &self.new[&name];
                let source = Source::new(lang, bytes);
                let outcome = match edit::examine(rule, lang, &source) {
                    Examined::Done if rule.done.is_empty() || rule.purpose == Purpose::Repair => {
                        RuleOutcome::Nothing
                    }
                    Examined::Done => {
                        // A header may be the first one by chance, so that is no evidence.
                        evidence.done |= rule.parts[0].scope != Scope::BeforeIncludes;
                        RuleOutcome::Done
                    }
                    Examined::Fits { edits } => {
                        if let Some(error) = self.outside.get(&name) {
                            return Err(error.clone());
                        }
                        let bytes = edit::apply(bytes, &edits);
                        self.put(name.clone(), bytes);
                        match rule.purpose {
                            Purpose::Make => {
                                evidence.made = true;
                                RuleOutcome::Make
                            }
                            Purpose::Repair => {
                                evidence.repaired = true;
                                RuleOutcome::Repair
                            }
                        }
                    }
                    Examined::Misfit(_) if rule.need == Need::Optional => RuleOutcome::Nothing,
                    Examined::Misfit(misfit) => {
                        evidence.misfit = true;
                        RuleOutcome::Misfit(MisfitReason::Written(place(&name, &misfit)))
                    }
                };
                reports.push(RuleReport {
                    file: name.clone(),
                    title: rule.title.clone(),
                    line: rule.line,
                    outcome,
                });
            }
        }
        Ok(())
    }

    fn create(&mut self, tree: &Tree, name: &str, content: &[u8]) -> Result<RuleOutcome> {
        if !self.has(tree, name) {
            self.put(name.to_string(), content.to_vec());
            return Ok(RuleOutcome::Make);
        }
        self.load(tree, name)?;
        if self.new[name] == content {
            return Ok(RuleOutcome::Done);
        }
        Ok(RuleOutcome::Misfit(MisfitReason::OtherFile))
    }

    /// For each source that a patch makes include a header of the tree, adds that header to the
    /// prerequisites of the source's object.
    fn dependencies(&mut self) {
        let mut makefile = self.new[MAKEFILE].clone();
        for (name, bytes) in &self.new {
            let Some(stem) = name.strip_suffix(".c") else { continue };
            let before = self.old.get(name).map_or(&[][..], Vec::as_slice);
            if before == bytes.as_slice() {
                continue;
            }
            let had = headers(before);
            let added = headers(bytes).into_iter().filter(|i| i.quoted && !had.contains(i));
            for include in added {
                makefile = with_prerequisite(&makefile, &format!("{stem}.o"), &include.name);
            }
        }
        self.put(MAKEFILE.to_string(), makefile);
    }

    fn changes(self) -> Vec<FileChange> {
        let mut changes = Vec::new();
        for (name, new) in self.new {
            let old = self.old.get(&name).cloned();
            if old.as_ref() != Some(&new) {
                changes.push(FileChange { name, old, new });
            }
        }
        changes
    }
}

/// Returns `makefile` with `header` among the prerequisites of `target`; unchanged if it has no
/// such target.
fn with_prerequisite(makefile: &[u8], target: &str, header: &str) -> Vec<u8> {
    let source = Source::new(Lang::Text, makefile);
    let Ok(regions) = matcher::regions(&source, Lang::Text, &Scope::Target(target.to_string()))
    else {
        return makefile.to_vec();
    };
    let line = |r: &std::ops::Range<usize>| {
        let end = r.clone().find(|&i| source.tokens[i].kind == TokenKind::LineEnd).unwrap_or(r.end);
        r.start..end
    };
    if regions.iter().any(|r| line(r).any(|i| source.is(i, TokenKind::Word, header))) {
        return makefile.to_vec();
    }
    let end = source.tokens[line(&regions[0]).end - 1].span.end;
    edit::apply(makefile, &[Edit { range: end..end, text: format!(" {header}").into_bytes() }])
}

/// Returns whether `name` is a prerequisite in `makefile`, and not a target.
fn needs(makefile: &[u8], name: &str) -> bool {
    let rules = makefile::rules_of(makefile);
    let is_one_of = |names: &[String]| names.iter().any(|one| one == name);
    rules.iter().any(|rule| is_one_of(&rule.prerequisites))
        && !rules.iter().any(|rule| is_one_of(&rule.targets))
}

fn place(name: &str, misfit: &Misfit) -> String {
    match misfit.line() {
        Some(line) => format!("{name}:{line}: {misfit}"),
        None => misfit.to_string(),
    }
}

/// Returns whether `glob`, a name with at most one `*`, matches the file `name`.
pub(crate) fn takes(glob: &str, name: &str) -> bool {
    match glob.split_once('*') {
        None => glob == name,
        Some((before, after)) => {
            name.len() >= before.len() + after.len()
                && name.starts_with(before)
                && name.ends_with(after)
        }
    }
}

fn contains(bytes: &[u8], word: &[u8]) -> bool {
    memchr::memmem::find(bytes, word).is_some()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prerequisite_is_added_once_and_where_it_belongs() {
        let makefile = b"a.o: \\\ncompile a.c x.h\n\t./compile a.c\n\nb.o: compile\n";
        let once = with_prerequisite(makefile, "a.o", "select.h");
        assert_eq!(once, b"a.o: \\\ncompile a.c x.h select.h\n\t./compile a.c\n\nb.o: compile\n");
        assert_eq!(with_prerequisite(&once, "a.o", "select.h"), once);
        assert_eq!(with_prerequisite(makefile, "c.o", "select.h"), makefile);
    }

    #[test]
    fn what_a_makefile_needs() {
        let makefile = b"# x.c: y.c\na.o: \\\ncompile a.c x.h\n\t./compile b.c\n\nx.h: x.h1\n";
        for (name, is_needed) in
            [("a.c", true), ("x.h1", true), ("x.h", false), ("b.c", false), ("y.c", false)]
        {
            assert_eq!(needs(makefile, name), is_needed, "{name}");
        }
    }

    #[test]
    fn globs() {
        assert!(takes("*.c", "a.c") && takes("a.c", "a.c") && takes("q*.c", "q.c"));
        assert!(!takes("*.c", "a.h") && !takes("ab*bc", "abc"));
    }
}
