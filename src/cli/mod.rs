//! Arguments, printing and exit codes; nothing else.

#![forbid(unsafe_code)]

use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::builder::{PossibleValue, PossibleValuesParser};
use clap::error::ErrorKind;
use clap::{Args, CommandFactory, Parser, Subcommand, ValueEnum};
use serde::Serialize;

use crate::commands::rule as trial;
use crate::doctor;
use crate::engine::rule::{Parameters, Patch};
use crate::error::Error;
use crate::fixture::Dialect;
use crate::patches::{self, Shipped};
use crate::tree::journal::{LaterChanges, Recovered, Session};
use crate::tree::plan::{Halves, Outcome, Plan, Report, Standing};
use crate::tree::{self, Tree};
use crate::verify::sandbox::scratch::Keep;
use crate::verify::sandbox::target::Target;
use crate::verify::{self, Silent, Transient, Written};

/// Make a qmail source tree run thousands of simultaneous deliveries.
///
/// Unpack any qmail (qmail-1.03, netqmail, notqmail, a fork), run `qpatch apply TREE --spawn 1000`,
/// then `make setup check` as always.
#[derive(Debug, Parser)]
#[command(name = "qpatch", version, max_term_width = 100)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Apply what is missing, repair what is known to be wrong, leave the rest alone
    ///
    /// All of it or nothing: if a rule does not fit, nothing is changed. A second apply changes
    /// nothing. What was changed is kept in TREE/.qpatch, for `qpatch revert`.
    Apply(Apply),
    /// Print what apply would change, as a unified diff for patch -p1, git apply and quilt
    Diff(Choice),
    /// Put every file back as it was before the first apply
    Revert(Revert),
    /// Tell for each patch whether it is in the tree
    Status(Status),
    /// Prove a tree: build it in a copy and run it with as many deliveries as it shall have
    ///
    /// Works on any qmail tree, unprivileged, without qmail's users. Exits with 0 only if every
    /// step holds.
    Verify(Verify),
    /// Check, write, watch and try out the limits per destination domain
    Gate(crate::gate::Gate),
    /// Tell what of this machine is in the way of so many deliveries
    Doctor(Doctor),
    /// Look at the rules of the patches, and try one out on a file
    Rule {
        #[command(subcommand)]
        command: trial::Command,
    },
    /// Apply and verify on a built-in tree: see what qpatch does, without a tree of your own
    Demo {
        /// How many deliveries at once
        #[arg(long, value_name = "N", default_value_t = 1000,
            value_parser = clap::value_parser!(u32).range(1..=65000))]
        spawn: u32,
    },
    /// Print a completion script for a shell
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
    /// Write the manual pages (the commands', concurrencydomains(5) and concurrencyreplies(5)) into a folder
    Man {
        /// The folder, which must exist
        dir: PathBuf,
    },
}

/// Which patches, for which tree.
#[derive(Debug, Args)]
struct Choice {
    /// The folder with qmail's Makefile and spawn.c
    tree: PathBuf,
    /// Set conf-spawn: how many deliveries qmail-lspawn and qmail-rspawn may each run at once,
    /// 1 to 65000. Without it, conf-spawn stays as it is
    #[arg(long, value_name = "N", allow_hyphen_values = true,
        value_parser = clap::value_parser!(u32).range(1..=65000))]
    spawn: Option<u32>,
    /// Only these patches
    #[arg(long, value_name = "ID,...", value_delimiter = ',', value_parser = patch_ids())]
    only: Vec<String>,
    /// Not these patches
    #[arg(long, value_name = "ID,...", value_delimiter = ',', value_parser = patch_ids())]
    skip: Vec<String>,
    /// Leave out the gate, the limit of deliveries per domain (the same as --skip domain-gate)
    #[arg(long)]
    no_gate: bool,
    /// Fail where the gate does not fit the tree, instead of leaving it out with a warning
    #[arg(long, conflicts_with = "no_gate")]
    gate: bool,
    /// Where half of the two-byte protocol is in the tree already, make the other half
    #[arg(long)]
    complete: bool,
}

#[derive(Debug, Args)]
struct Apply {
    #[command(flatten)]
    choice: Choice,
    /// Tell what would be done, and change nothing
    #[arg(long)]
    dry_run: bool,
    /// Then verify the tree, and revert it if a step fails
    #[arg(long, conflicts_with = "dry_run")]
    verify: bool,
}

#[derive(Debug, Args)]
struct Revert {
    /// The folder with qmail's Makefile and spawn.c
    tree: PathBuf,
    /// Throw away what was changed after the apply
    #[arg(long)]
    force: bool,
}

#[derive(Debug, Args)]
struct Status {
    /// The folder with qmail's Makefile and spawn.c
    tree: PathBuf,
    /// How to print it
    #[arg(long, value_enum, default_value_t = Format::Table)]
    format: Format,
}

#[derive(Debug, Args)]
struct Verify {
    /// The folder with qmail's Makefile and spawn.c
    tree: PathBuf,
    /// Try this conf-spawn instead of the tree's own, 1 to 65000
    #[arg(long, value_name = "N", allow_hyphen_values = true,
        value_parser = clap::value_parser!(u32).range(1..=65000))]
    spawn: Option<u32>,
    /// Try this compiler instead of the one in conf-cc
    #[arg(long, value_name = "CC")]
    cc: Option<String>,
    /// Only this step, and what it needs: build, chkspawn, fd_set, machine, qmail-rspawn, qmail-lspawn,
    /// qmail-send-numbers, mail, restart, gate, fortify. May be given several times
    #[arg(long, value_name = "STEP,...", value_delimiter = ',', value_parser = steps(),
        hide_possible_values = true)]
    only: Vec<String>,
    /// Copy the files of this folder into the copy's control folder, for spawners that want files of
    /// their own (LDAP). Files that decide where mail goes and how much at once are left out
    #[arg(long, value_name = "DIR")]
    control: Option<PathBuf>,
    /// Keep the copy, to look inside
    #[arg(long)]
    keep: bool,
    /// Repeat the random choices of an earlier run, which told its seed
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// How to print it
    #[arg(long, value_enum, default_value_t = Format::Table)]
    format: Format,
}

#[derive(Debug, Args)]
struct Doctor {
    /// The folder where qmail is installed [default: /var/qmail]
    #[arg(value_name = "QMAILHOME")]
    home: Option<PathBuf>,
    /// So many remote deliveries at once, instead of what control/concurrencyremote says
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=65000))]
    concurrency: Option<u32>,
    /// The compiler that builds the tree
    #[arg(long, value_name = "CC", default_value = "cc")]
    cc: String,
    /// How to print it
    #[arg(long, value_enum, default_value_t = Format::Table)]
    format: Format,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    /// For people
    Table,
    /// For programs
    Json,
}

/// The ids of all patches, which help, errors and completions name.
pub(crate) fn patch_ids() -> PossibleValuesParser {
    PossibleValuesParser::new(patches::ALL.map(|p| p.id))
}

/// The steps of a proof that can be asked for.
fn steps() -> PossibleValuesParser {
    PossibleValuesParser::new(
        verify::Part::ALL.map(|part| PossibleValue::new(part.name()).alias(part.step())),
    )
}

/// Run the command line `args`.
pub fn run(args: impl IntoIterator<Item = std::ffi::OsString>) -> ExitCode {
    let cli = match Cli::try_parse_from(args).and_then(Cli::checked) {
        Ok(cli) => cli,
        Err(error) => {
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { 2 } else { 0 });
        }
    };
    let done = match cli.command {
        Command::Apply(args) => apply(&args, Next::Told).and_then(|()| verify_applied(&args)),
        Command::Diff(choice) => diff(&choice),
        Command::Revert(args) => revert(&args),
        Command::Status(args) => status(&args),
        Command::Verify(args) => verify_tree(&args),
        Command::Gate(args) => crate::gate::run(&args),
        Command::Doctor(args) => doctor(&args),
        Command::Rule { command } => rule(&command),
        Command::Demo { spawn } => demo(spawn),
        Command::Completions { shell } => completions(shell),
        Command::Man { dir } => man(&dir),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(errors) => {
            for error in errors {
                eprintln!("qpatch: {error}");
            }
            ExitCode::FAILURE
        }
    }
}

impl Cli {
    /// What clap cannot know to be wrong usage.
    fn checked(self) -> Result<Self, clap::Error> {
        let (name, choice) = match &self.command {
            Command::Apply(args) => ("apply", &args.choice),
            Command::Diff(choice) => ("diff", choice),
            _ => return Ok(self),
        };
        let what = if !patches::ALL.iter().any(|p| choice.has(p.id, !choice.no_gate)) {
            "no patch is left after --only, --skip and --no-gate"
        } else if choice.spawn.is_some() && !choice.has(patches::BIG_CONCURRENCY, true) {
            "--spawn needs big-concurrency, which --only or --skip leaves out: give one of the two up"
        } else {
            return Ok(self);
        };
        let mut command = Cli::command();
        command.build();
        Err(match command.find_subcommand_mut(name) {
            Some(command) => command.error(ErrorKind::ArgumentConflict, what),
            None => command.error(ErrorKind::ArgumentConflict, what),
        })
    }
}

type Done = Result<(), Vec<Error>>;

fn one(error: Error) -> Vec<Error> {
    vec![error]
}

impl Choice {
    fn halves(&self) -> Halves {
        if self.complete { Halves::Complete } else { Halves::Refuse }
    }

    fn has(&self, patch: &str, gate: bool) -> bool {
        (self.only.is_empty() || self.only.iter().any(|id| id == patch))
            && !self.skip.iter().any(|id| id == patch)
            && (gate || patch != patches::GATE)
    }

    fn patches(&self, tree: &Tree, gate: bool) -> Result<Vec<Patch>, Error> {
        read_patches(tree, self.spawn, |p| self.has(p.id, gate))
    }

    fn plan(&self, tree: &Tree) -> Result<Plan, Vec<Error>> {
        let leaves_out_gate = self.no_gate || self.skip.iter().any(|id| id == patches::GATE);
        if leaves_out_gate && tree.root().join("gate_glue.c").exists() {
            eprintln!(
                "qpatch: warning: the gate is in this tree already, and stays\n  `qpatch revert`, then \
                 `qpatch apply --no-gate`, takes it out"
            );
        }
        let patches = self.patches(tree, !self.no_gate).map_err(one)?;
        let plan = Plan::new(tree, &patches).map_err(one)?;
        let gate_asked_for = self.gate || self.only.iter().any(|id| id == patches::GATE);
        let misfit = plan.misfits(patches::GATE).next();
        let wrong_machine = if misfit.is_none() { wrong_machine(tree, &plan) } else { None };
        let misfit = misfit.or_else(|| wrong_machine.clone());
        let alone = !self.has(patches::BIG_CONCURRENCY, true);
        let why = "domain-gate needs big-concurrency, which --only or --skip leaves out";
        if let (Some(misfit), false) = (&misfit, gate_asked_for) {
            // Big concurrency is worth having on a fork that the gate does not know.
            let patches = self.patches(tree, false).map_err(one)?;
            let without = Plan::new(tree, &patches).map_err(one)?;
            without.check(&patches, self.halves())?;
            let reason = if alone { why.to_string() } else { misfit.to_string() };
            eprintln!(
                "qpatch: warning: no limits per domain: the gate does not fit this tree and is \
                 left out\n  {reason}\n  --gate makes this an error, --no-gate leaves it out \
                 without this warning"
            );
            return Ok(without);
        }
        if let Some(wrong) = wrong_machine {
            return Err(one(wrong));
        }
        plan.check(&patches, self.halves()).map_err(|mut errors| {
            if alone && misfit.is_some() {
                errors.push(Error::new("", why, ""));
            }
            errors
        })?;
        Ok(plan)
    }
}

/// That the gate was compiled for another machine than the tree is, where the plan puts it in.
fn wrong_machine(tree: &Tree, plan: &Plan) -> Option<Error> {
    let change = plan.changes.iter().find(|change| change.name == "gate.a")?;
    let gate = Target::of_archive(&change.new)?;
    let compiled = Target::of_compiler(tree).filter(|target| *target != gate)?;
    Some(Error::new(
        "gate.a",
        format!(
            "domain-gate: the gate is compiled for {gate}, but the tree's conf-cc compiles for {compiled}"
        ),
        "use a qpatch that was built for that machine (cargo build --target), or another compiler in conf-cc",
    ))
}

fn read_patches(
    tree: &Tree,
    spawn: Option<u32>,
    chosen: impl Fn(&Shipped) -> bool,
) -> Result<Vec<Patch>, Error> {
    let mut parameters = Parameters::new();
    if let Some(spawn) = spawn {
        parameters.insert("spawn".to_string(), spawn.to_string());
    }
    if tree::is_old_style(tree) {
        parameters.insert("old-style".to_string(), String::new());
    }
    if tree::has_definitions_in_headers(tree) {
        parameters.insert("definitions-in-headers".to_string(), String::new());
    }
    patches::ALL
        .iter()
        .filter(|p| chosen(p))
        .map(|p| p.patch(&parameters).map_err(|e| Error::new("", e.to_string(), "")))
        .collect()
}

/// Whether apply tells what an operator does after it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Next {
    Told,
    Untold,
}

impl Next {
    fn words(self, tree: &Path) -> String {
        if self == Next::Untold {
            return String::new();
        }
        let back = "; `qpatch revert` puts all back. Next:";
        match verify::sandbox::scratch::check_tree(tree) {
            Ok(()) => format!("{back} qpatch verify, then make setup check"),
            Err(verify::Error::NotBuilt { why, .. }) => {
                format!("{back} make setup check\nqpatch verify cannot build this tree: {why}")
            }
            Err(_) => format!("{back} make setup check"),
        }
    }
}

fn apply(args: &Apply, next: Next) -> Done {
    let tree = Tree::open(&args.choice.tree).map_err(one)?;
    if args.dry_run {
        let plan = args.choice.plan(&tree)?;
        return print(|out| {
            report(out, &plan.reports, Tense::Present)?;
            tell_spawn(out, &args.choice, &tree)?;
            for change in &plan.changes {
                let verb = if change.old.is_some() { "would change" } else { "would make" };
                writeln!(out, "{verb} {}", tree.shown(&change.name))?;
            }
            match plan.changes.len() {
                0 => writeln!(out, "nothing to change"),
                n => writeln!(
                    out,
                    "{}, nothing was changed; `qpatch diff` instead of `apply --dry-run` shows the \
                     lines",
                    files(n, "would change")
                ),
            }
        });
    }
    let recovered = Session::begin(&tree).and_then(|s| s.recover()).map_err(one)?;
    // What an interrupted process left may have been new files.
    let tree = Tree::open(&args.choice.tree).map_err(one)?;
    let session = Session::begin(&tree).map_err(one)?;
    let plan = args.choice.plan(&tree).inspect_err(|_| {
        let _ = session.end();
    })?;
    if plan.changes.is_empty() {
        session.end().map_err(one)?;
    } else {
        session.apply(&plan.changes).map_err(one)?;
    }
    print(|out| {
        match recovered {
            Recovered::Nothing => {}
            Recovered::Applied => writeln!(out, "finished an interrupted apply first")?,
            Recovered::Reverted => writeln!(out, "finished an interrupted revert first")?,
        }
        report(out, &plan.reports, Tense::Past)?;
        tell_spawn(out, &args.choice, &tree)?;
        match plan.changes.len() {
            0 => writeln!(out, "nothing to change"),
            n => writeln!(out, "{}{}", files(n, "changed"), next.words(tree.root())),
        }
    })
}

/// What conf-spawn stays at: whoever forgets --spawn shall not wait for the deliveries in vain.
fn tell_spawn(out: &mut dyn Write, choice: &Choice, tree: &Tree) -> io::Result<()> {
    if choice.spawn.is_some() || !choice.has(patches::BIG_CONCURRENCY, true) {
        return Ok(());
    }
    let text = tree.read("conf-spawn").unwrap_or_default();
    let first = text.split(|&byte| byte == b'\n').next().unwrap_or_default().trim_ascii();
    match std::str::from_utf8(first).map(str::parse::<u32>) {
        Ok(Ok(spawn)) => writeln!(out, "conf-spawn is {spawn}; --spawn N changes it"),
        _ => Ok(()),
    }
}

/// What `apply --verify` does after the apply.
fn verify_applied(args: &Apply) -> Done {
    if !args.verify {
        return Ok(());
    }
    let tree = &args.choice.tree;
    prove(tree, &verify::Options::default(), Format::Table).inspect_err(|_| {
        let args = Revert { tree: tree.clone(), force: false };
        if let Err(errors) = revert(&args) {
            for error in errors {
                eprintln!("qpatch: {error}");
            }
        }
    })
}

fn diff(choice: &Choice) -> Done {
    let tree = Tree::open(&choice.tree).map_err(one)?;
    let plan = choice.plan(&tree)?;
    let (above, inside): (Vec<_>, Vec<_>) =
        plan.changes.iter().partition(|c| tree.is_above(&c.name));
    let (binary, text): (Vec<_>, Vec<_>) = inside.into_iter().partition(|c| c.new.contains(&0));
    print(|out| {
        for change in &text {
            out.write_all(&crate::tree::diff::unified(change))?;
        }
        Ok(())
    })?;
    for change in above {
        let first = change.new.split(|&byte| byte == b'\n').next().unwrap_or_default();
        eprintln!(
            "qpatch: warning: {} lies one folder up, where patch does not go, and is not in the diff; put this into its \
             first line: {}",
            tree.shown(&change.name),
            String::from_utf8_lossy(first)
        );
    }
    for change in binary {
        eprintln!(
            "qpatch: warning: {} is no text and not in the diff; `qpatch gate library > TREE/{}` \
             makes it",
            change.name, change.name
        );
    }
    Ok(())
}

fn revert(args: &Revert) -> Done {
    let tree = Tree::open(&args.tree).map_err(one)?;
    let session = Session::begin(&tree).map_err(one)?;
    let later = if args.force { LaterChanges::Discard } else { LaterChanges::Keep };
    let reverted = session.revert(later).map_err(one)?;
    print(|out| {
        write!(out, "{}", files(reverted.put_back, "put back"))?;
        match reverted.removed {
            0 => writeln!(out),
            made => writeln!(out, ", {made} that qpatch had made removed"),
        }
    })
}

/// `1 file changed`, `2 files changed`.
fn files(count: usize, what: &str) -> String {
    format!("{count} {} {what}", if count == 1 { "file" } else { "files" })
}

/// What `status` prints as JSON.
#[derive(Serialize)]
struct StatusReport<'a> {
    tree: String,
    patches: &'a [Report],
}

fn status(args: &Status) -> Done {
    let tree = Tree::open(&args.tree).map_err(one)?;
    let patches = read_patches(&tree, None, |_| true).map_err(one)?;
    let plan = Plan::new(&tree, &patches).map_err(one)?;
    print(|out| match args.format {
        Format::Table => {
            report(out, &plan.reports, Tense::Present)?;
            for report in &plan.reports {
                for rule in &report.rules {
                    let why = match &rule.outcome {
                        Outcome::Misfit(why) => why.as_str(),
                        Outcome::Make if report.standing == Standing::Partial => "missing",
                        Outcome::Repair => "there, but wrong",
                        _ => continue,
                    };
                    writeln!(out, "{}: {}: {}: {why}", report.patch, rule.file, rule.title)?;
                }
            }
            Ok(())
        }
        Format::Json => {
            let tree = tree.root().display().to_string();
            serde_json::to_writer_pretty(
                &mut *out,
                &StatusReport { tree, patches: &plan.reports },
            )?;
            writeln!(out)
        }
    })
}

fn verify_tree(args: &Verify) -> Done {
    let options = verify::Options {
        spawn: args.spawn,
        cc: args.cc.clone(),
        keep: if args.keep { Keep::Yes } else { Keep::No },
        seed: args.seed,
        only: args.only.iter().filter_map(|name| verify::Part::named(name)).collect(),
        control: args.control.clone(),
        ..verify::Options::default()
    };
    prove(&args.tree, &options, args.format)
}

/// Verify and print; an error if a step fails.
fn prove(tree: &Path, options: &verify::Options, format: Format) -> Done {
    let outcome = match format {
        Format::Table => {
            let transient = match io::stdout().is_terminal() {
                true => Transient::Shown,
                false => Transient::Hidden,
            };
            verify::run(tree, options, &mut Written::new(io::stdout(), transient))
        }
        Format::Json => verify::run(tree, options, &mut Silent),
    };
    let outcome = match outcome {
        Ok(outcome) => outcome,
        Err(verify::Error::Interrupted(signal)) => {
            verify::die_of(signal);
            return Err(Vec::new());
        }
        Err(verify::Error::Tree(error)) => return Err(one(error)),
        Err(error) => return Err(one(Error::new("", error.to_string(), ""))),
    };
    print(|out| match format {
        Format::Table => {
            writeln!(out, "{}", outcome.summary())?;
            match &outcome.kept {
                Some(kept) => writeln!(out, "kept: {}", kept.display()),
                None => Ok(()),
            }
        }
        Format::Json => writeln!(out, "{}", outcome.to_json()),
    })?;
    // What failed has been printed.
    if outcome.ok() { Ok(()) } else { Err(Vec::new()) }
}

/// Exits with 1 if something is to change.
fn doctor(args: &Doctor) -> Done {
    let home = match &args.home {
        Some(home) => doctor::installed(home).map_err(one)?,
        // Asked before an install, which is most useful, there is none yet.
        None => doctor::Options::default().home,
    };
    let options = doctor::Options { home, concurrency: args.concurrency, cc: args.cc.clone() };
    let report = doctor::examine(&options);
    print(|out| match args.format {
        Format::Table => {
            for finding in &report.findings {
                writeln!(out, "{finding}")?;
            }
            writeln!(out, "{}", report.summary())
        }
        Format::Json => writeln!(out, "{}", report.to_json()),
    })?;
    if report.ok() { Ok(()) } else { Err(Vec::new()) }
}

/// Exits with 1 if a rule that was tried does not fit.
fn rule(command: &trial::Command) -> Done {
    match command {
        trial::Command::Show { id } => print(|out| out.write_all(trial::shown(id).as_bytes())),
        trial::Command::Try(args) => {
            let outcome = trial::run(args).map_err(one)?;
            print(|out| out.write_all(outcome.text.as_bytes()))?;
            if outcome.fits { Ok(()) } else { Err(Vec::new()) }
        }
    }
}

fn demo(spawn: u32) -> Done {
    let temp = tempfile::tempdir()
        .map_err(|e| one(Error::io(&std::env::temp_dir(), "make a folder in", &e)))?;
    let tree = temp.path().join("qmail");
    Dialect::StockKr.write(&tree).map_err(one)?;
    let choice = Choice {
        tree: tree.clone(),
        spawn: Some(spawn),
        only: Vec::new(),
        skip: Vec::new(),
        no_gate: false,
        gate: true,
        complete: false,
    };
    print(|out| {
        writeln!(out, "apply --spawn {spawn} to a built-in tree (as qmail-1.03: K&R, one byte)")
    })?;
    apply(&Apply { choice, dry_run: false, verify: false }, Next::Untold)?;
    print(|out| writeln!(out, "\nverify"))?;
    prove(&tree, &verify::Options::default(), Format::Table)
}

fn completions(shell: clap_complete::Shell) -> Done {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "qpatch", &mut script);
    print(|out| out.write_all(&script))
}

fn man(dir: &Path) -> Done {
    let failed = |error: io::Error| {
        let mut failed = Error::io(dir, "write the manual pages", &error);
        if error.kind() == io::ErrorKind::NotFound {
            failed.help = format!("make the folder first: mkdir -p {}", dir.display());
        }
        one(failed)
    };
    for (name, text) in crate::commands::man::pages(Cli::command()).map_err(failed)? {
        std::fs::write(dir.join(name), text).map_err(failed)?;
    }
    Ok(())
}

/// Whether a table tells what is, or what has been done.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Tense {
    Present,
    Past,
}

/// The table of patches.
fn report(out: &mut dyn Write, reports: &[Report], tense: Tense) -> io::Result<()> {
    let (on, off) = if io::stdout().is_terminal() { ("\x1b[1m", "\x1b[0m") } else { ("", "") };
    for report in reports {
        let count = |wanted: fn(&Outcome) -> bool| {
            report.rules.iter().filter(|r| wanted(&r.outcome)).count()
        };
        let past = tense == Tense::Past;
        let parts: Vec<_> = [
            (count(|o| *o == Outcome::Done), "there"),
            (count(|o| *o == Outcome::Make), if past { "made" } else { "to make" }),
            (count(|o| *o == Outcome::Repair), if past { "repaired" } else { "to repair" }),
            (count(|o| matches!(o, Outcome::Misfit(_))), "not understood"),
        ]
        .into_iter()
        .filter(|(n, _)| *n > 0)
        .map(|(n, word)| format!("{n} {word}"))
        .collect();
        let standing = if past { Standing::Applied } else { report.standing };
        let name = standing.name();
        writeln!(out, "{on}{:<16}{name:<8}{off} {}", report.patch, parts.join(", "))?;
    }
    Ok(())
}

/// Write to standard output. A reader that went away is no error.
fn print(write: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> Done {
    let mut out = io::stdout().lock();
    match write(&mut out).and_then(|()| out.flush()) {
        Err(e) if e.kind() != io::ErrorKind::BrokenPipe => {
            Err(one(Error::new("standard output", e.to_string(), "")))
        }
        _ => Ok(()),
    }
}
