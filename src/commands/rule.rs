//! `qpatch rule`: prints the rules of a patch, and shows what one rule does to one file. This is for people who write
//! a variant for a fork.

#![forbid(unsafe_code)]

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};

use super::choice::patch_ids;
use crate::engine::edit::{self, Examined, Misfit};
use crate::engine::lex::{Lang, Source};
use crate::engine::matcher::Near;
use crate::engine::rule::{self, Need, Parameters, Patch, Rule, RulePart, Section};
use crate::error::Error;
use crate::output::{CommandResult, Failures, print};
use crate::patches::{self, Shipped};
use crate::tree::plan::{FileChange, takes};

/// The commands for people who write rules.
#[derive(Debug, Subcommand)]
pub enum RuleCommand {
    /// Show what one rule does to one file: where it matches, what it writes, or why it does not fit
    ///
    /// For the maintainer of a fork that the rules do not fit: try the rule that does not fit, write a variant, and try
    /// that. Changes nothing. Exits with 0 if each rule fits or is there already, with 1 if one does not fit.
    Try(Try),
    /// Print the rule file of a patch, to start from
    Show {
        /// The patch
        #[arg(value_name = "ID", value_parser = patch_ids())]
        id: String,
    },
}

/// What to try on what.
#[derive(Debug, Args)]
pub struct Try {
    /// A rule file, or the name of a patch (domain-gate). With :LINE after it, only the rule that has this line.
    /// Without a line, all rules for a file of FILE's name, each applied to the result of the one before
    rule: String,
    /// The file, in the state in which the rule gets it: most rules of domain-gate need the two-byte delivery numbers
    /// (`qpatch apply --no-gate`)
    file: PathBuf,
    /// The N of `apply --spawn N`, for rules that write it
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=65000))]
    spawn: Option<u32>,
}

/// What a trial found.
struct TrialResult {
    /// For people.
    text: String,
    /// Whether each rule fits or is there already.
    fits: bool,
}

/// Runs one of them.
///
/// # Errors
/// If a rule does not fit, or cannot be read.
pub fn run(command: &RuleCommand) -> CommandResult {
    match command {
        RuleCommand::Show { id } => print(|out| out.write_all(shown(id).as_bytes())),
        RuleCommand::Try(args) => {
            let outcome = try_out(args)?;
            print(|out| out.write_all(outcome.text.as_bytes()))?;
            if outcome.fits { Ok(()) } else { Err(Failures::printed()) }
        }
    }
}

/// Returns the rule file of the patch `id`.
fn shown(id: &str) -> &'static str {
    patches::ALL.iter().find(|p| p.id == id).map_or("", Shipped::text)
}

/// Tries the rules. Returns an error if the rule file or the file cannot be read, or if no rule is meant.
fn try_out(args: &Try) -> Result<TrialResult, Error> {
    let (name, line) = named(&args.rule);
    let (shown_as, text) = rule_file(name)?;
    let mut parameters = Parameters::from([
        ("old-style".to_string(), String::new()),
        ("definitions-in-headers".to_string(), String::new()),
        ("flags-from-elsewhere".to_string(), String::new()),
        ("binds-outgoing".to_string(), String::new()),
    ]);
    parameters.extend(args.spawn.map(|n| ("spawn".to_string(), n.to_string())));
    let lines = text.lines().count();
    if let Some(line) = line.filter(|&line| line == 0 || line > lines) {
        let what = format!("there is no such line: the rule file has {lines} lines");
        let help = "name a line of the rule that is meant, or leave the line out";
        return Err(Error::new(format!("{shown_as}:{line}"), what, help));
    }
    let kept = beside(name);
    let mut attachments: Vec<(&str, &[u8])> = patches::attachments();
    attachments.extend(kept.iter().map(|name| (name.as_str(), &b""[..])));
    let patch =
        rule::parse(name, &shown_as, &text, &parameters, &attachments).map_err(|error| {
            Error::new("", error.to_string(), "patches/README.md of qpatch has the grammar")
        })?;
    let bytes =
        std::fs::read(&args.file).map_err(|e| Error::io(&args.file, "read the file", &e))?;
    let file = args.file.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    let rules = meant(&patch, line, &file);
    if rules.is_empty() {
        return Err(none_meant(&patch, &shown_as, line, &file));
    }
    let mut trial = Trial { rule_file: &shown_as, rules: &text, file, bytes, text: String::new() };
    let mut fits = true;
    for (section, rule) in rules {
        let fit = trial.rule(section, rule);
        fits &= fit || (rule.need == Need::Optional && line.is_none());
    }
    Ok(TrialResult { text: trial.text, fits })
}

/// Splits `RULE:LINE`. If a file has the whole text as its name, it is that file.
fn named(rule: &str) -> (&str, Option<usize>) {
    match rule.rsplit_once(':') {
        Some((name, line)) if !Path::new(rule).exists() => match line.parse() {
            Ok(line) => (name, Some(line)),
            Err(_) => (rule, None),
        },
        _ => (rule, None),
    }
}

/// Returns the name of a rule file as errors write it, and its text.
fn rule_file(name: &str) -> Result<(String, String), Error> {
    if let Some(shipped) = shipped(name).filter(|_| !Path::new(name).exists()) {
        return Ok((shipped.file(), shipped.text().to_string()));
    }
    match std::fs::read_to_string(name) {
        Ok(text) => Ok((name.to_string(), text)),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            let ids: Vec<_> = patches::ALL.iter().map(|p| p.id).collect();
            let help = format!("name a rule file, or one of qpatch's patches: {}", ids.join(", "));
            Err(Error::new(name, "no such rule file", help))
        }
        Err(e) => Err(Error::io(Path::new(name), "read the rule file", &e)),
    }
}

/// Returns the patch that `name` names: by its id, or by its rule file as messages write it.
fn shipped(name: &str) -> Option<&'static Shipped> {
    patches::ALL.iter().find(|p| p.id == name || p.file() == name)
}

/// Returns the names of the files beside the rule file `name`, which `create ... from` may take.
fn beside(name: &str) -> Vec<String> {
    let folder = Path::new(name).parent().filter(|p| !p.as_os_str().is_empty());
    let entries = std::fs::read_dir(folder.unwrap_or(Path::new("."))).into_iter().flatten();
    entries.filter_map(|e| e.ok()?.file_name().into_string().ok()).collect()
}

/// Returns the rules to try: the one that has line `line`, or all for a file of this name.
fn meant<'a>(patch: &'a Patch, line: Option<usize>, file: &str) -> Vec<(&'a Section, &'a Rule)> {
    let all = patch.sections.iter().flat_map(|s| s.rules().iter().map(move |r| (s, r)));
    match line {
        // A rule ends where the next rule or section begins.
        Some(line) => {
            let ends =
                patch.sections.iter().map(|s| s.line).chain(all.clone().map(|(_, r)| r.line));
            let start = ends.filter(|&start| start <= line).max();
            all.filter(|(_, rule)| Some(rule.line) == start).collect()
        }
        None => all
            .filter(|(section, _)| {
                let select = &section.select;
                select.names.iter().any(|name| takes(name, file))
                    && !select.except.iter().any(|e| e == file)
            })
            .collect(),
    }
}

fn none_meant(patch: &Patch, rule_file: &str, line: Option<usize>, file: &str) -> Error {
    let rules = patch.sections.iter().flat_map(Section::rules);
    match line {
        Some(line) => {
            let rules: Vec<_> = rules.map(|r| r.line.to_string()).collect();
            let help = match rules.as_slice() {
                [] => "it has no rule; those for --spawn want --spawn N".to_string(),
                rules => format!("rules begin on the lines {}", rules.join(", ")),
            };
            Error::new(format!("{rule_file}:{line}"), "no rule has this line", help)
        }
        None => {
            let names = patch.sections.iter().filter(|s| !s.rules().is_empty());
            let names: Vec<_> = names.map(|s| s.select.names.join(" or ")).collect();
            let help = format!(
                "its rules are for {}; with {rule_file}:LINE one of them is tried whatever the file is called",
                names.join(", ")
            );
            Error::new(rule_file, format!("no rule is for a file called {file}"), help)
        }
    }
}

struct Trial<'a> {
    rule_file: &'a str,
    rules: &'a str,
    file: String,
    /// The file in the state in which the next rule gets it.
    bytes: Vec<u8>,
    text: String,
}

impl Trial<'_> {
    fn say(&mut self, line: std::fmt::Arguments<'_>) {
        // Writing to a String does not fail.
        let _ = self.text.write_fmt(line);
        self.text.push('\n');
    }

    /// Tries one rule. Returns whether it fits or is there already.
    fn rule(&mut self, section: &Section, rule: &Rule) -> bool {
        let lang = section.lang();
        let bytes = std::mem::take(&mut self.bytes);
        let source = Source::new(lang, &bytes);
        let head = format!("{}:{}: {}", self.rule_file, rule.line, rule.title);
        let (fits, after) = match edit::examine(rule, lang, &source) {
            Examined::Done if rule.done.is_empty() => {
                self.say(format_args!("{head}: nothing to do here"));
                (true, None)
            }
            Examined::Done => {
                self.say(format_args!("{head}: there already"));
                (true, None)
            }
            Examined::Fits { edits } => {
                self.say(format_args!("{head}: fits"));
                for part in &rule.parts {
                    self.matches(part, lang, &source);
                }
                let new = edit::apply(&bytes, &edits);
                let change = FileChange { name: self.file.clone(), old: Some(bytes.clone()), new };
                self.text.push_str(&String::from_utf8_lossy(&crate::tree::diff::unified(&change)));
                (true, Some(change.new))
            }
            Examined::Misfit(misfit) => {
                let optional = if rule.need == Need::Optional {
                    " (which it may, being optional)"
                } else {
                    ""
                };
                self.say(format_args!("{head}: does not fit{optional}"));
                self.misfit(rule, &misfit, lang, &source);
                (false, None)
            }
        };
        self.bytes = after.unwrap_or(bytes);
        fits
    }

    /// Writes where a part matches, and in which variant.
    fn matches(&mut self, part: &RulePart, lang: Lang, source: &Source<'_>) {
        let Ok(found) = edit::find(part, lang, source) else { return };
        let Some(variant) = found.variant else { return };
        let hunk = &part.variants[variant];
        let first = hunk.lines.first().map_or(0, |l| l.line);
        for found in &found.matches {
            let line = source.line(source.tokens[found.extent().start].span.start);
            let text = line_of(source.bytes, line);
            let (file, rule_file) = (self.file.clone(), self.rule_file);
            self.say(format_args!("  {file}:{line}: {text}\n    as in {rule_file}:{first}"));
        }
        if found.matches.is_empty() {
            let rule_file = self.rule_file;
            self.say(format_args!("  the lines of {rule_file}:{first} have nothing to match; they go where the scope says"));
        }
    }

    fn misfit(&mut self, rule: &Rule, misfit: &Misfit, lang: Lang, source: &Source<'_>) {
        let file = self.file.clone();
        match misfit {
            Misfit::NoMatch(_) => {
                for part in &rule.parts {
                    let Err(Misfit::NoMatch(_)) = edit::find(part, lang, source) else { continue };
                    for (n, near) in edit::nearest(part, lang, source).iter().enumerate() {
                        self.near(part, n, near, source.bytes);
                    }
                }
            }
            Misfit::Ambiguous { lines } => {
                self.say(format_args!("  {misfit}; it has to match once"));
                for &line in lines {
                    let text = line_of(source.bytes, line);
                    self.say(format_args!("  {file}:{line}: {text}"));
                }
            }
            _ => self.say(format_args!("  {file}: {misfit}")),
        }
    }

    /// Writes how near one variant comes.
    fn near(&mut self, part: &RulePart, variant: usize, near: &Near, bytes: &[u8]) {
        let hunk = &part.variants[variant];
        let first = hunk.lines.first().map_or(0, |l| l.line);
        let (file, rule_file) = (self.file.clone(), self.rule_file);
        self.say(format_args!(
            "  the way of {rule_file}:{first}: {}",
            Misfit::NoMatch(near.clone())
        ));
        if let Some(line) = near.line() {
            let text = line_of(bytes, line);
            self.say(format_args!("    {file}:{line}: {text}"));
        }
        if let Near::Place(place) = near
            && let Some(line) = place.rule_line
        {
            let text = self.rules.lines().nth(line - 1).unwrap_or_default().to_string();
            self.say(format_args!("    {rule_file}:{line}: {text}"));
        }
    }
}

/// Returns line `line` of `bytes`, counted from 1, without the blanks around it; at most 100 characters.
fn line_of(bytes: &[u8], line: usize) -> String {
    let text = bytes.split(|&b| b == b'\n').nth(line - 1).unwrap_or_default();
    let text = String::from_utf8_lossy(text.trim_ascii());
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(100).collect()
}
