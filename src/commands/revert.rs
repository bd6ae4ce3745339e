//! `qpatch revert`: restores every file as it was before the first apply.

#![forbid(unsafe_code)]

use std::path::PathBuf;

use clap::Args;

use crate::output::{CommandResult, count, print};
use crate::tree::Tree;
use crate::tree::journal::{LaterChanges, LockedTree};

/// Arguments of `qpatch revert`.
#[derive(Debug, Args)]
pub struct Revert {
    /// The folder with qmail's Makefile and spawn.c
    pub(super) tree: PathBuf,
    /// Discard changes that were made after the apply
    #[arg(long)]
    pub(super) force: bool,
}

/// Restores every file.
///
/// # Errors
/// If a file cannot be restored, or was changed after the apply and `force` is not set.
pub fn run(args: &Revert) -> CommandResult {
    let tree = Tree::open(&args.tree)?;
    let locked = LockedTree::lock(&tree)?;
    let later = if args.force { LaterChanges::Discard } else { LaterChanges::Keep };
    let reverted = locked.revert(later)?;
    print(|out| {
        write!(out, "{} put back", count(reverted.put_back as u64, "file"))?;
        match reverted.removed {
            0 => writeln!(out),
            made => writeln!(out, ", {made} that qpatch had made removed"),
        }
    })
}
