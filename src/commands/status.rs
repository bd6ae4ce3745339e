//! `qpatch status`: prints the state of each patch in a tree.

#![forbid(unsafe_code)]

use std::path::PathBuf;

use clap::Args;
use serde::Serialize;

use super::choice::read_patches;
use super::patch_table::{self, Tense};
use crate::output::{CommandResult, Format, print};
use crate::tree::Tree;
use crate::tree::plan::{PatchPlan, PatchReport, PatchState, RuleOutcome};

/// Arguments of `qpatch status`.
#[derive(Debug, Args)]
pub struct StatusArgs {
    /// The folder with qmail's Makefile and spawn.c
    tree: PathBuf,
    /// The output format
    #[arg(long, value_enum, default_value_t = Format::Table)]
    format: Format,
}

/// The JSON that `status` prints.
#[derive(Serialize)]
struct StatusReport<'a> {
    tree: String,
    patches: Vec<&'a PatchReport>,
}

/// Prints the state of each patch.
///
/// # Errors
/// If the tree cannot be read.
pub fn run(args: &StatusArgs) -> CommandResult {
    let tree = Tree::open(&args.tree)?;
    let patches = read_patches(&tree, None, |_| true)?;
    let plan = PatchPlan::new(&tree, &patches)?;
    print(|out| match args.format {
        Format::Table => {
            patch_table::write(out, &plan.reports, Tense::Present)?;
            for report in &plan.reports {
                for rule in &report.rules {
                    let why = match &rule.outcome {
                        RuleOutcome::Misfit(why) => why.as_str(),
                        RuleOutcome::Make if report.standing == PatchState::Partial => "missing",
                        RuleOutcome::Repair => "there, but wrong",
                        _ => continue,
                    };
                    writeln!(out, "{}: {}: {}: {why}", report.patch, rule.file, rule.title)?;
                }
            }
            Ok(())
        }
        Format::Json => {
            let tree = tree.root().display().to_string();
            let patches = plan.reports.iter().filter(|report| report.concerns_the_tree()).collect();
            serde_json::to_writer_pretty(&mut *out, &StatusReport { tree, patches })?;
            writeln!(out)
        }
    })
}
