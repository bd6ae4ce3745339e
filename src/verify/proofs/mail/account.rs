//! What all trials of qmail-send use to compare their results: the figures, the recipients that have had a report,
//! qmail-send's complaints, and the deliveries that the stubs counted.
#![forbid(unsafe_code)]

use std::collections::{HashMap, HashSet};

use super::plan::MailPlan;
use super::queue::supplemental_names;
use crate::verify::error::Error;
use crate::verify::rig::log::Log;
use crate::verify::rig::stub::{StubEventKind, Stubs};
use crate::verify::sandbox::private_tree::Sandbox;

/// The most messages that carry the recipients of one trial.
pub const MESSAGES: u32 = 2000;

/// qmail-send retries a deferred recipient after 100 s (local) at the earliest; a delivery within 90 s of the one
/// before is not a retry.
const EARLIEST_RETRY_NS: u64 = 90_000_000_000;

/// What a trial of qmail-send measured.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MailFigures {
    /// Messages queued.
    pub messages: usize,
    /// Recipients of these messages.
    pub recipients: usize,
    /// Bounces that qmail-send made and delivered.
    pub bounces: usize,
    /// The most remote deliveries at the same time.
    pub peak_remote: usize,
    /// The most local deliveries at the same time.
    pub peak_local: usize,
    /// The most deliveries at the same time on each supplemental channel.
    pub peak_supplemental: usize,
    /// Warnings of qmail-send that do not fail the trial.
    pub notes: Vec<String>,
}

/// Counts the recipients that have had a report. A recipient with several deliveries counts once.
#[derive(Debug, Default)]
pub(super) struct ReportedRecipients {
    seen: HashSet<String>,
    looked_at: usize,
    pub(super) recipients: usize,
    pub(super) bounces: usize,
}

impl ReportedRecipients {
    /// Counts the reports that came since the last call.
    pub(super) fn count(&mut self, log: &Log) -> &ReportedRecipients {
        for id in &log.order[self.looked_at..] {
            let Some(delivery) = log.deliveries.get(id) else { continue };
            if self.seen.insert(delivery.recipient.clone()) {
                match is_bounce(&delivery.recipient) {
                    true => self.bounces += 1,
                    false => self.recipients += 1,
                }
            }
        }
        self.looked_at = log.order.len();
        self
    }
}

/// Returns whether this is an address of a sender, so that the mail to it is a bounce.
fn is_bounce(recipient: &str) -> bool {
    recipient.ends_with("@sender.example")
}

/// Returns the complaints in the log.
///
/// # Errors
/// A complaint means that a delivery or a report went wrong.
pub(super) fn check_complaints(log: &Log) -> Result<Vec<String>, Error> {
    match log.complaints.iter().find(|line| is_grave(line)) {
        Some(line) => {
            Err(Error::disproved("qmail-send's log", "no complaint", format!("{line:?}"), ""))
        }
        None => Ok(log.complaints.clone()),
    }
}

/// Returns whether a complaint means that a delivery or a report went wrong.
pub(super) fn is_grave(line: &str) -> bool {
    ["alert:", "unexpected:", "mangled", "report out of range", "delivered twice"]
        .iter()
        .any(|word| line.contains(word))
}

/// Returns the most deliveries at once on each supplemental channel; 0 if the tree has none.
///
/// # Errors
/// It was not `wanted` on one of them.
pub(super) fn peak_supplemental(sandbox: &Sandbox, log: &Log, wanted: u32) -> Result<usize, Error> {
    let names = supplemental_names(sandbox);
    match names.iter().find(|name| log.peak(name) != wanted) {
        Some(name) => Err(Error::disproved(
            format!("qmail-send, deliveries at the same time on channel {name}"),
            wanted.to_string(),
            log.peak(name).to_string(),
            format!("control/suppls* name one domain for each of {} channels", names.len()),
        )),
        None if names.is_empty() => Ok(0),
        None => Ok(wanted as usize),
    }
}

/// When a deferred recipient may be retried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Deferred {
    /// Not before qmail-send's retry time.
    AfterRetryTime,
    /// At any time. qmail-send writes the retry time when it closes a message. If it is stopped before that, it retries
    /// at once after the restart.
    AtAnyTime,
}

/// Checks with the stubs' events that each recipient had as many deliveries as `times` returns. A deferred recipient
/// may have more, as `deferred` allows.
pub(super) fn check_stubs(
    plan: &MailPlan,
    stubs: &Stubs,
    deferred: Deferred,
    times: impl Fn(&str) -> usize,
) -> Result<(), Error> {
    let mut starts: HashMap<&str, Vec<u64>> = HashMap::new();
    for event in stubs.events().iter().filter(|event| event.kind == StubEventKind::Start) {
        starts.entry(event.recipient.as_str()).or_default().push(event.at_ns);
    }
    for (address, mode) in plan.mails.iter().flat_map(|mail| &mail.recipients) {
        let found = starts.get(address.as_str()).map_or(&[][..], Vec::as_slice);
        let retries = match (mode.report(), deferred) {
            (b'Z', Deferred::AtAnyTime) => found.len().saturating_sub(times(address)),
            (b'Z', Deferred::AfterRetryTime) => {
                found.windows(2).filter(|pair| pair[1] - pair[0] >= EARLIEST_RETRY_NS).count()
            }
            _ => 0,
        };
        if found.len() - retries != times(address) {
            return Err(Error::disproved(
                format!("deliveries to {address}"),
                times(address).to_string(),
                found.len().to_string(),
                "mail was lost or sent twice",
            ));
        }
    }
    Ok(())
}
