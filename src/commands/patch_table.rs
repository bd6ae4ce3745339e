//! The table of patches that apply and status print.

#![forbid(unsafe_code)]

use std::io::{self, Write};

use crate::output::bold;
use crate::tree::plan::{PatchReport, PatchState, RuleOutcome};

/// Whether a table says what apply would do, or what it has done.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Tense {
    Present,
    Past,
}

/// What the table says of a patch in [`PatchState::Unneeded`].
const NOTHING_TO_CHANGE: &str = "this tree has nothing that it changes";

/// Writes the table of patches.
pub(super) fn write(out: &mut dyn Write, reports: &[PatchReport], tense: Tense) -> io::Result<()> {
    let bold = bold();
    for report in reports.iter().filter(|report| report.concerns_the_tree()) {
        let count = |wanted: fn(&RuleOutcome) -> bool| {
            report.rules.iter().filter(|r| wanted(&r.outcome)).count()
        };
        let past = tense == Tense::Past;
        let parts: Vec<_> = [
            (count(|o| *o == RuleOutcome::Done), "there"),
            (count(|o| *o == RuleOutcome::Make), if past { "made" } else { "to make" }),
            (count(|o| *o == RuleOutcome::Repair), if past { "repaired" } else { "to repair" }),
            (count(|o| matches!(o, RuleOutcome::Misfit(_))), "not understood"),
        ]
        .into_iter()
        .filter(|(n, _)| *n > 0)
        .map(|(n, word)| format!("{n} {word}"))
        .collect();
        let (name, details) = match report.standing {
            PatchState::Unneeded => (report.standing.name(), NOTHING_TO_CHANGE.to_owned()),
            _ if past => (PatchState::Applied.name(), parts.join(", ")),
            standing => (standing.name(), parts.join(", ")),
        };
        writeln!(out, "{bold}{:<16}{name:<8}{bold:#} {details}", report.patch)?;
    }
    Ok(())
}
