//! `qpatch apply`: plans the changes, writes them, and prints the next steps.

#![forbid(unsafe_code)]

use std::io::{self, Write};
use std::path::Path;

use clap::Args;

use super::choice::PatchChoice;
use super::patch_table::{self, Tense};
use super::revert::{self, Revert};
use super::verify::prove;
use crate::output::{CommandResult, Format, count, print};
use crate::patches;
use crate::tree::Tree;
use crate::tree::journal::{LockedTree, Recovered};
use crate::verify;

/// Arguments of `qpatch apply`.
#[derive(Debug, Args)]
pub struct Apply {
    #[command(flatten)]
    pub(crate) choice: PatchChoice,
    /// Print what would be done, and change nothing
    #[arg(long)]
    pub(super) dry_run: bool,
    /// Verify the tree afterwards, and revert it if a step fails
    #[arg(long, conflicts_with = "dry_run")]
    pub(super) verify: bool,
}

/// Applies the patches, and verifies the tree if the arguments say so.
///
/// # Errors
/// The tree is as it was, unless the verification fails and the revert after it fails as well.
pub fn run(args: &Apply) -> CommandResult {
    apply(args, NextSteps::Shown)?;
    verify_applied(args)
}

/// Whether apply prints what an operator does after it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum NextSteps {
    Shown,
    Hidden,
}

impl NextSteps {
    fn words(self, tree: &Path) -> String {
        if self == NextSteps::Hidden {
            return String::new();
        }
        let back = "; `qpatch revert` puts all back. Next:";
        match verify::sandbox::check_tree(tree) {
            Ok(()) => format!("{back} qpatch verify, then make setup check"),
            Err(verify::Error::NotBuilt { why, .. }) => {
                format!("{back} make setup check\nqpatch verify cannot build this tree: {why}")
            }
            Err(_) => format!("{back} make setup check"),
        }
    }
}

pub(super) fn apply(args: &Apply, next: NextSteps) -> CommandResult {
    let tree = Tree::open(&args.choice.tree)?;
    if args.dry_run {
        let plan = args.choice.plan(&tree)?;
        return print(|out| {
            patch_table::write(out, &plan.reports, Tense::Present)?;
            write_spawn(out, &args.choice, &tree)?;
            for change in &plan.changes {
                let verb = if change.old.is_some() { "would change" } else { "would make" };
                writeln!(out, "{verb} {}", tree.shown(&change.name))?;
            }
            match plan.changes.len() {
                0 => writeln!(out, "nothing to change"),
                n => writeln!(
                    out,
                    "{} would change, nothing was changed; `qpatch diff` instead of `apply --dry-run` shows the lines",
                    count(n as u64, "file")
                ),
            }
        });
    }
    let recovered = LockedTree::lock(&tree).and_then(|locked| locked.recover())?;
    // The interrupted process may have left new files.
    let tree = Tree::open(&args.choice.tree)?;
    let locked = LockedTree::lock(&tree)?;
    let plan = args.choice.plan(&tree).inspect_err(|_| {
        let _ = locked.end();
    })?;
    if plan.changes.is_empty() {
        locked.end()?;
    } else {
        locked.apply(&plan.changes)?;
    }
    print(|out| {
        match recovered {
            Recovered::Nothing => {}
            Recovered::Applied => writeln!(out, "finished an interrupted apply first")?,
            Recovered::Reverted => writeln!(out, "finished an interrupted revert first")?,
        }
        patch_table::write(out, &plan.reports, Tense::Past)?;
        write_spawn(out, &args.choice, &tree)?;
        match plan.changes.len() {
            0 => writeln!(out, "nothing to change"),
            n => writeln!(out, "{} changed{}", count(n as u64, "file"), next.words(tree.root())),
        }
    })
}

/// Without --spawn, conf-spawn does not rise. Prints its value and how to change it.
fn write_spawn(out: &mut dyn Write, choice: &PatchChoice, tree: &Tree) -> io::Result<()> {
    if choice.spawn.is_some() || !choice.has(patches::BIG_CONCURRENCY) {
        return Ok(());
    }
    let text = tree.read("conf-spawn").unwrap_or_default();
    let first = text.split(|&byte| byte == b'\n').next().unwrap_or_default().trim_ascii();
    match std::str::from_utf8(first).map(str::parse::<u32>) {
        Ok(Ok(spawn)) => writeln!(out, "conf-spawn is {spawn}; --spawn N changes it"),
        _ => Ok(()),
    }
}

/// Does what `apply --verify` does after the apply.
fn verify_applied(args: &Apply) -> CommandResult {
    if !args.verify {
        return Ok(());
    }
    let tree = &args.choice.tree;
    let proved = prove(tree, &verify::Options::default(), Format::Table);
    proved.map(drop).inspect_err(|_| {
        let args = Revert { tree: tree.clone(), force: false };
        if let Err(failures) = revert::run(&args) {
            failures.print();
        }
    })
}
