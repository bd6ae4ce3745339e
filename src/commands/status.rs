//! `qpatch status`: how each patch stands to a tree.

#![forbid(unsafe_code)]

use std::path::PathBuf;

use clap::Args;
use serde::Serialize;

use super::choice::read_patches;
use super::patch_table::{self, Tense};
use crate::output::{CommandResult, Format, print};
use crate::tree::Tree;
use crate::tree::plan::{Outcome, Plan, Report, Standing};

/// Arguments of `qpatch status`.
#[derive(Debug, Args)]
pub struct Status {
    /// The folder with qmail's Makefile and spawn.c
    tree: PathBuf,
    /// How to print it
    #[arg(long, value_enum, default_value_t = Format::Table)]
    format: Format,
}

/// What `status` prints as JSON.
#[derive(Serialize)]
struct StatusReport<'a> {
    tree: String,
    patches: Vec<&'a Report>,
}

/// Print how each patch stands.
///
/// # Errors
/// If the tree cannot be read.
pub fn run(args: &Status) -> CommandResult {
    let tree = Tree::open(&args.tree)?;
    let patches = read_patches(&tree, None, |_| true)?;
    let plan = Plan::new(&tree, &patches)?;
    print(|out| match args.format {
        Format::Table => {
            patch_table::write(out, &plan.reports, Tense::Present)?;
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
            let patches = plan.reports.iter().filter(|report| report.concerns_the_tree()).collect();
            serde_json::to_writer_pretty(&mut *out, &StatusReport { tree, patches })?;
            writeln!(out)
        }
    })
}
