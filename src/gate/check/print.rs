//! Prints what check found, as text or as JSON.

use std::collections::HashSet;

use qpatch_gate::gate::CONCURRENCY_REMOTE;
use qpatch_gate::table::Limit;
use serde::Serialize;

use super::domain_keys::DomainKey;
use super::replies::{self, ReplyReading};
use super::running::{ConcurrencyRemote, ConcurrencyRemoteSource};
use crate::gate::finding::FileFinding;
use crate::gate::source::{LoadedRules, Source};
use crate::gate::text::limit_text;
use crate::output::{CommandResult, Side, count, print, table};

/// What the operator asked for besides the findings: --domain, --reply.
#[derive(Clone, Copy, Debug)]
pub(super) struct Requested {
    pub(super) domains: bool,
    pub(super) replies: bool,
}

fn numbers(loaded: &LoadedRules) -> (u64, u64) {
    let errors = loaded.findings.iter().filter(|finding| finding.is_error()).count() as u64;
    (errors, loaded.findings.len() as u64 - errors)
}

pub(super) fn print_table(
    source: &Source,
    loaded: &LoadedRules,
    remote: Option<ConcurrencyRemote>,
    domain_keys: &[DomainKey],
    readings: &[ReplyReading],
    asked: Requested,
) -> CommandResult {
    print(|out| {
        let mut helped = HashSet::new();
        for finding in &loaded.findings {
            let severity = if finding.is_error() { "error" } else { "warning" };
            writeln!(out, "{}: {severity}: {}", finding.place(), finding.message)?;
            // The same help is printed only once.
            if !finding.help.is_empty() && helped.insert(&finding.help) {
                writeln!(out, "  {}", finding.help)?;
            }
        }
        let mut sums = match numbers(loaded) {
            (0, 0) => "no problems".to_string(),
            (0, warnings) => count(warnings, "warning"),
            (errors, 0) => count(errors, "error"),
            (errors, warnings) => {
                format!("{}, {}", count(errors, "error"), count(warnings, "warning"))
            }
        };
        let Some(rules) = &loaded.rules else {
            writeln!(
                out,
                "{}: {sums}; the gate goes on with the last file that had no errors, or, where there was none, \
                 with the good lines and a limit of {CONCURRENCY_REMOTE} for all other domains",
                source.domains.display()
            )?;
            if asked.domains {
                writeln!(out, "--domain is not answered while there are errors")?;
            }
            if asked.replies {
                writeln!(out, "--reply is not answered while there are errors")?;
            }
            return Ok(());
        };
        let mut facts = Vec::new();
        if let Some(table) = &rules.table {
            facts.push(count(table.len() as u64, "line"));
            let others = [(table.ranges(), "range"), (table.exchangers(), "mx line")];
            let others = others.iter().filter(|(number, _)| *number > 0);
            facts.extend(others.map(|&(number, what)| count(number as u64, what)));
            if !table.groups().is_empty() {
                facts.push(count(table.groups().len() as u64, "group"));
            }
            let default = table.find(b"").map_or(Limit::Unlimited, |line| line.cap.limit);
            facts.push(format!("default {}", limit_text(default)));
        }
        if !rules.routes.is_empty() {
            facts.push(count(rules.routes.len() as u64, "route"));
        }
        if !rules.senders.is_empty() {
            facts.push(count(rules.senders.len() as u64, "sender line"));
        }
        if !rules.replies.is_empty() {
            facts.push(count(rules.replies.len() as u64, "reply line"));
        }
        if let Some(ConcurrencyRemote { limit, from }) = remote {
            let default =
                if from == ConcurrencyRemoteSource::Default { " (qmail's default)" } else { "" };
            facts.push(format!("concurrencyremote {limit}{default}"));
        }
        if !facts.is_empty() {
            sums.push_str("; ");
        }
        writeln!(out, "{}: {sums}{}", source.domains.display(), facts.join(", "))?;
        let has_errors = numbers(loaded).0 > 0;
        if let (true, Some(path)) = (has_errors, &source.replies) {
            let path = path.display();
            writeln!(
                out,
                "{path}: the gate goes on with the last file that had no errors, or, where there was none, without any"
            )?;
        }
        match has_errors && !readings.is_empty() {
            true => writeln!(out, "--reply is not answered while there are errors")?,
            false => replies::print(out, readings)?,
        }
        if domain_keys.is_empty() {
            return Ok(());
        }
        writeln!(out)?;
        let columns = [
            ("DOMAIN", Side::Left),
            ("KEY", Side::Left),
            ("LIMIT", Side::Right),
            ("FROM", Side::Left),
        ];
        let rows: Vec<_> = domain_keys.iter().map(|answer| answer.row.clone()).collect();
        table(out, columns, &rows)
    })
}

/// What is printed as JSON.
#[derive(Serialize)]
struct CheckReport<'a> {
    errors: u64,
    warnings: u64,
    problems: &'a [FileFinding],
    #[serde(skip_serializing_if = "Option::is_none")]
    concurrencyremote: Option<u32>,
    domains: &'a [DomainKey],
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    replies: &'a [ReplyReading],
}

pub(super) fn print_json(
    loaded: &LoadedRules,
    remote: Option<ConcurrencyRemote>,
    domain_keys: &[DomainKey],
    readings: &[ReplyReading],
) -> CommandResult {
    let (errors, warnings) = numbers(loaded);
    // With errors the gate would not use this file, so these readings would be wrong.
    let readings = if errors > 0 { &[] } else { readings };
    let report = CheckReport {
        errors,
        warnings,
        problems: &loaded.findings,
        concurrencyremote: remote.map(|remote| remote.limit),
        domains: domain_keys,
        replies: readings,
    };
    print(|out| {
        serde_json::to_writer_pretty(&mut *out, &report)?;
        writeln!(out)
    })
}
