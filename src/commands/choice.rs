//! Which patches a command is about, and what they change in a tree.
//!
//! The gate and the fork server fit most forks, but not all. If one of them does not fit the tree, it is left out with
//! a warning, unless the command line names it.

#![forbid(unsafe_code)]

use std::cell::OnceCell;
use std::path::PathBuf;

use clap::Args;
use clap::builder::PossibleValuesParser;

use crate::engine::rule::Patch;
use crate::error::Error;
use crate::output::{Failures, warn};
use crate::patches::{self, Shipped};
use crate::tree::Tree;
use crate::tree::plan::{OnPartialProtocol, PatchPlan};
use crate::verify::sandbox::target::ObjectTarget;

/// Which patches, for which tree.
#[derive(Debug, Args)]
pub struct PatchChoice {
    /// The folder with qmail's Makefile and spawn.c
    pub(super) tree: PathBuf,
    /// Set conf-spawn, the number of deliveries that qmail-lspawn and qmail-rspawn may each run at
    /// once, 1 to 65000. Without this option conf-spawn stays as it is
    #[arg(long, value_name = "N", allow_hyphen_values = true,
        value_parser = clap::value_parser!(u32).range(1..=65000))]
    pub(super) spawn: Option<u32>,
    /// Only these patches
    #[arg(long, value_name = "ID,...", value_delimiter = ',', value_parser = patch_ids())]
    pub(super) only: Vec<String>,
    /// Not these patches
    #[arg(long, value_name = "ID,...", value_delimiter = ',', value_parser = patch_ids())]
    pub(super) skip: Vec<String>,
    /// Leave out the gate, the limit of deliveries per domain (the same as --skip domain-gate)
    #[arg(long)]
    pub(super) no_gate: bool,
    /// Fail where the gate does not fit the tree, instead of leaving it out with a warning
    #[arg(long, conflicts_with = "no_gate")]
    pub(super) gate: bool,
    /// If the tree has half of the two-byte protocol already, make the other half
    #[arg(long)]
    pub(super) complete: bool,
}

/// Returns the ids of all patches, for help, errors and completions.
pub(crate) fn patch_ids() -> PossibleValuesParser {
    PossibleValuesParser::new(patches::ALL.map(|p| p.id))
}

impl PatchChoice {
    /// Returns why these options do not go together; `None` if they do.
    pub(crate) fn conflict(&self) -> Option<&'static str> {
        if !patches::ALL.iter().any(|p| self.has(p.id)) {
            Some("no patch is left after --only, --skip and --no-gate")
        } else if self.spawn.is_some() && !self.has(patches::BIG_CONCURRENCY) {
            Some(
                "--spawn needs big-concurrency, which --only or --skip leaves out: drop one of these options",
            )
        } else {
            None
        }
    }

    fn on_partial_protocol(&self) -> OnPartialProtocol {
        if self.complete { OnPartialProtocol::Complete } else { OnPartialProtocol::Refuse }
    }

    pub(super) fn has(&self, patch: &str) -> bool {
        (self.only.is_empty() || self.only.iter().any(|id| id == patch))
            && !self.skip.iter().any(|id| id == patch)
            && !(self.no_gate && patch == patches::GATE)
    }

    /// Returns whether the command line names this patch, so that a misfit is an error.
    fn insists_on(&self, patch: &str) -> bool {
        (self.gate && patch == patches::GATE) || self.only.iter().any(|id| id == patch)
    }

    pub(super) fn plan(&self, tree: &Tree) -> Result<PatchPlan, Failures> {
        let leaves_out_gate = self.no_gate || self.skip.iter().any(|id| id == patches::GATE);
        if leaves_out_gate && tree.root().join("gate_glue.c").exists() {
            warn(
                "the gate is in this tree already, and stays\n  `qpatch revert`, then `qpatch apply --no-gate`, takes it out",
            );
        }
        let mut left_out: Vec<&str> = Vec::new();
        let mut warnings = Vec::new();
        let compiler = CompilerTarget { tree, target: OnceCell::new() };
        loop {
            let patches =
                read_patches(tree, self.spawn, |p| self.has(p.id) && !left_out.contains(&p.id))?;
            let plan = PatchPlan::new(tree, &patches)?;
            let optional =
                patches::OPTIONAL.iter().filter(|optional| !self.insists_on(optional.id));
            let misfit = optional.clone().find_map(|optional| {
                self.misfit(&plan, optional.id, &compiler).map(|misfit| (optional, misfit))
            });
            let Some((optional, misfit)) = misfit else {
                if let Some(wrong) = wrong_machine(&plan, &compiler) {
                    return Err(wrong.into());
                }
                plan.check(&patches, self.on_partial_protocol()).map_err(|mut errors| {
                    if plan.misfits(patches::GATE).next().is_some() && self.gate_is_alone() {
                        errors.push(Error::new("", GATE_ALONE, ""));
                    }
                    errors
                })?;
                warnings.iter().for_each(|text: &String| warn(text));
                return Ok(plan);
            };
            warnings.push(format!("{}\n  {misfit}\n  {}", optional.without, optional.choice));
            left_out.push(optional.id);
        }
    }

    fn gate_is_alone(&self) -> bool {
        !self.has(patches::BIG_CONCURRENCY)
    }

    /// Returns why an optional patch does not fit the tree; `None` if it fits.
    fn misfit(
        &self,
        plan: &PatchPlan,
        patch: &str,
        compiler: &CompilerTarget<'_>,
    ) -> Option<String> {
        let misfit = plan.misfits(patch).next();
        if patch != patches::GATE {
            return misfit.map(|misfit| misfit.to_string());
        }
        let misfit = misfit.or_else(|| wrong_machine(plan, compiler))?;
        Some(if self.gate_is_alone() { GATE_ALONE.to_owned() } else { misfit.to_string() })
    }
}

const GATE_ALONE: &str = "domain-gate needs big-concurrency, which --only or --skip leaves out";

/// The machine that the tree's compiler compiles for. To find it takes a run of the compiler, so it is found once, and
/// only if it is asked for.
struct CompilerTarget<'t> {
    tree: &'t Tree,
    target: OnceCell<Option<ObjectTarget>>,
}

impl CompilerTarget<'_> {
    /// Returns the machine; `None` if the compiler does not show it.
    fn target(&self) -> Option<ObjectTarget> {
        *self.target.get_or_init(|| ObjectTarget::of_compiler(self.tree))
    }
}

/// Returns an error if the plan adds the gate, and the gate was compiled for another machine than the one that the
/// tree's compiler compiles for.
fn wrong_machine(plan: &PatchPlan, compiler: &CompilerTarget<'_>) -> Option<Error> {
    let change = plan.changes.iter().find(|change| change.name == "gate.a")?;
    let gate = ObjectTarget::of_archive(&change.new)?;
    let compiled = compiler.target().filter(|target| *target != gate)?;
    Some(Error::new(
        "gate.a",
        format!(
            "domain-gate: the gate is compiled for {gate}, but the tree's conf-cc compiles for {compiled}"
        ),
        "use a qpatch that was built for that machine (cargo build --target), or another compiler in conf-cc",
    ))
}

pub(super) fn read_patches(
    tree: &Tree,
    spawn: Option<u32>,
    chosen: impl Fn(&Shipped) -> bool,
) -> Result<Vec<Patch>, Error> {
    let parameters = tree.parameters(spawn);
    patches::ALL
        .iter()
        .filter(|p| chosen(p))
        .map(|p| p.patch(&parameters).map_err(|e| Error::new("", e.to_string(), "")))
        .collect()
}
