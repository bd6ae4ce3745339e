//! The table of patches that apply and status print.

#![forbid(unsafe_code)]

use std::io::{self, Write};

use crate::output::bold;
use crate::tree::plan::{Outcome, Report, Standing};

/// Whether a table tells what is, or what has been done.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Tense {
    Present,
    Past,
}

/// The table of patches.
pub(super) fn write(out: &mut dyn Write, reports: &[Report], tense: Tense) -> io::Result<()> {
    let bold = bold();
    for report in reports.iter().filter(|report| report.concerns_the_tree()) {
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
        writeln!(out, "{bold}{:<16}{name:<8}{bold:#} {}", report.patch, parts.join(", "))?;
    }
    Ok(())
}
