//! Helpers of several checks: findings, limits in words, and the running daemons.
#![forbid(unsafe_code)]

use crate::doctor::facts::Facts;
use crate::doctor::finding::{CheckVerdict, Finding, Fix};
use crate::doctor::process::Daemon;

/// Processes besides the deliveries: everything else on the machine.
pub(super) const OTHER_PROCESSES: u64 = 500;

/// Where a setting of the kernel belongs.
pub(super) const SYSCTL: &str = "/etc/sysctl.d/qmail.conf";

/// The most names that a message lists.
pub(super) const NAMES_MAX: usize = 3;

/// Descriptors that a spawner needs: those of each delivery, and five (chkspawn's formula); a few to spare.
pub(super) fn files_for(facts: &Facts, deliveries: u64) -> u64 {
    facts.files_each * deliveries + 16
}

pub(super) fn finding(
    name: &'static str,
    verdict: CheckVerdict,
    detail: impl Into<String>,
) -> Finding {
    Finding { name, verdict, detail: detail.into(), fixes: Vec::new() }
}

pub(super) fn unknown(name: &'static str, why: impl Into<String>) -> Finding {
    finding(name, CheckVerdict::Unknown, why)
}

impl Finding {
    pub(super) fn fix(mut self, place: impl Into<String>, line: impl Into<String>) -> Finding {
        self.fixes.push(Fix { place: place.into(), line: line.into() });
        self
    }
}

pub(super) fn enough(limit: Option<u64>, needed: u64) -> bool {
    limit.is_none_or(|limit| limit >= needed)
}

pub(super) fn limit_text(limit: Option<u64>) -> String {
    limit.map_or("unlimited".to_owned(), |limit| limit.to_string())
}

/// The first few of many names.
pub(super) fn names<S: AsRef<str>>(all: &[S]) -> String {
    let first: Vec<&str> = all.iter().take(NAMES_MAX).map(AsRef::as_ref).collect();
    match all.len().saturating_sub(NAMES_MAX) {
        0 => first.join(", "),
        more => format!("{} and {more} more", first.join(", ")),
    }
}

pub(super) fn running(facts: &Facts) -> Result<&[Daemon], String> {
    let daemons = facts.daemons.as_ref().map_err(String::clone)?;
    if !daemons.ours.is_empty() {
        return Ok(&daemons.ours);
    }
    if daemons.unclear.is_empty() {
        return Err("no qmail-send is running that can be seen (it may run in a container, or /proc be mounted with hidepid)"
            .to_owned());
    }
    let who = match daemons.asked_by_root {
        false => "only root can see",
        true => "it cannot be seen from here, not even by root,",
    };
    Err(format!(
        "running: {}; {who} whether that is the qmail in {}",
        names(&daemons.unclear),
        facts.home.display()
    ))
}
