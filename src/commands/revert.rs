//! `qpatch revert`: every file as it was before the first apply.

#![forbid(unsafe_code)]

use std::path::PathBuf;

use clap::Args;

use crate::output::{CommandResult, count, print};
use crate::tree::Tree;
use crate::tree::journal::{LaterChanges, Session};

/// Arguments of `qpatch revert`.
#[derive(Debug, Args)]
pub struct Revert {
    /// The folder with qmail's Makefile and spawn.c
    pub(super) tree: PathBuf,
    /// Throw away what was changed after the apply
    #[arg(long)]
    pub(super) force: bool,
}

/// Put every file back.
///
/// # Errors
/// If a file cannot be put back, or was changed after the apply and that is to be kept.
pub fn run(args: &Revert) -> CommandResult {
    let tree = Tree::open(&args.tree)?;
    let session = Session::begin(&tree)?;
    let later = if args.force { LaterChanges::Discard } else { LaterChanges::Keep };
    let reverted = session.revert(later)?;
    print(|out| {
        write!(out, "{} put back", count(reverted.put_back as u64, "file"))?;
        match reverted.removed {
            0 => writeln!(out),
            made => writeln!(out, ", {made} that qpatch had made removed"),
        }
    })
}
