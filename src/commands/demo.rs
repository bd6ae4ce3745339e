//! `qpatch demo`: applies the patches to a built-in tree, verifies it, and shows what ran at once under a limit.

#![forbid(unsafe_code)]

use super::apply::{self, Apply, NextSteps};
use super::choice::PatchChoice;
use super::verify::prove;
use crate::error::Error;
use crate::fixture::Dialect;
use crate::output::{CommandResult, Format, print};
use crate::verify;

/// How long a delivery takes where the chart shows the limit at work: 100 deliveries, 5 at once, take a second.
const DELIVERY_MS: u32 = 50;

/// Runs the demo with conf-spawn `spawn`.
///
/// # Errors
/// If a step fails or could not be tried.
pub fn run(spawn: u32) -> CommandResult {
    let temp = tempfile::tempdir()
        .map_err(|e| Error::io(&std::env::temp_dir(), "make a folder in", &e))?;
    let tree = temp.path().join("qmail");
    Dialect::StockKr.write(&tree)?;
    let choice = PatchChoice {
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
    apply::apply(&Apply { choice, dry_run: false, verify: false }, NextSteps::Hidden)?;
    print(|out| writeln!(out, "\nverify"))?;
    let options = verify::Options { capped_delivery_ms: DELIVERY_MS, ..verify::Options::default() };
    let outcome = prove(&tree, &options, Format::Table)?;
    let charts = outcome.steps.iter().filter(|step| !step.chart.is_empty());
    print(|out| {
        for step in charts {
            writeln!(out, "\nthe gate at work, in the step {}: deliveries at once", step.name)?;
            step.chart.iter().try_for_each(|line| writeln!(out, "{line}"))?;
        }
        Ok(())
    })
}
