//! What the gate of a patched tree must do: keep a domain at its limit without delaying mail to others, and take the
//! place back from a delivery that could not be started.
#![forbid(unsafe_code)]

use std::path::Path;

use super::mail::{self, CappedFigures, CappedLoad};
use super::spawner_trials::OnProgress;
use crate::sys::Resource;
use crate::verify::error::Error;
use crate::verify::rig::at_once::AtOnce;
use crate::verify::rig::numbers::Random;
use crate::verify::rig::protocol::Command;
use crate::verify::rig::spawner::{Channel, Spawner, Stderr, with_last_words};
use crate::verify::rig::stub::{self, Mode, StubEventKind, Stubs};
use crate::verify::sandbox::private_tree::{MessageId, Sandbox};

/// The limit that the trials set.
const LIMIT: u32 = 5;
const DOMAIN: &str = "capped.example";

/// Returns whether a tree has the gate.
pub fn is_in(tree: &Path) -> bool {
    tree.join("gate.h").is_file() && tree.join("gate_glue.h").is_file()
}

/// What the proof of the gate measured.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GateFigures {
    /// The limit of the capped domain.
    pub limit: u32,
    /// The most deliveries to it at the same time.
    pub peak: usize,
    /// Deliveries to it, all done.
    pub capped: usize,
    /// Deliveries to other domains, done while the capped one was full.
    pub others: usize,
    /// The most deliveries at the same time to a group with mail over every remote channel; `None` if there is only one
    /// channel.
    pub group_peak: Option<usize>,
    /// Starts that were made to fail before the limit was tried again; 0 if this machine offers no way to do that.
    pub failed_starts: usize,
    /// What ran at once on the usual channel, over time.
    pub curves: Vec<AtOnce>,
    /// Warnings of qmail-send that do not fail the proof.
    pub notes: Vec<String>,
}

/// Sends 100 mails to a domain with a limit of 5, among mails to other domains, through the tree's own qmail-send.
/// Then makes starts fail at qmail-rspawn. The machine has room for `room` deliveries of one spawner; if that is less
/// than 6, the limit is lower. On the usual channel each delivery takes `delivery_ms`.
///
/// # Errors
/// The limit was exceeded, other mail waited, or a place was not given back.
pub fn prove(
    sandbox: &Sandbox,
    stubs: &mut Stubs,
    room: u32,
    delivery_ms: u32,
    random: &mut Random,
    on_progress: OnProgress<'_>,
) -> Result<GateFigures, Error> {
    // Leave room for one delivery to another domain.
    let limit = LIMIT.min(room.saturating_sub(1)).max(1);
    let mut group = vec![DOMAIN.to_owned()];
    group.extend(
        (0..sandbox.supplemental().count).map(|number| sandbox.supplemental_domain(number)),
    );
    let table = |name: &str| {
        group.iter().map(|domain| format!("{domain}:{limit}{name}\n")).collect::<String>()
    };
    sandbox.set_control("concurrencydomains", &table(""))?;
    let mut shown =
        prove_domain_limit(sandbox, stubs, limit, room, delivery_ms, random, on_progress);
    if let Ok(shown) = &mut shown
        && group.len() > 1
    {
        sandbox.set_control("concurrencydomains", &table(":all-channels"))?;
        let load = CappedLoad { limit, room, delivery_ms: 0 };
        let over_all = mail::capped(sandbox, stubs, &group, load, random, on_progress)?;
        shown.group_peak = Some(over_all.peak);
        shown.capped += over_all.capped;
        shown.others += over_all.others;
        shown.notes.extend(over_all.notes);
    }
    let path = sandbox.home().join("control/concurrencydomains");
    std::fs::remove_file(&path).map_err(Error::file("remove", &path))?;
    shown
}

/// Proves the limit of one domain on the usual channel.
fn prove_domain_limit(
    sandbox: &Sandbox,
    stubs: &mut Stubs,
    limit: u32,
    room: u32,
    delivery_ms: u32,
    random: &mut Random,
    on_progress: OnProgress<'_>,
) -> Result<GateFigures, Error> {
    let load = CappedLoad { limit, room, delivery_ms };
    let CappedFigures { capped, others, peak, curves, notes } =
        mail::capped(sandbox, stubs, &[DOMAIN.to_owned()], load, random, on_progress)?;
    // The trials with qmail-send empty the queue, so the message is added after them.
    let message = sandbox.add_message(b"Subject: gate\n\nto a full domain\n")?;
    let failed_starts =
        with_last_words(|errors| places_come_back(sandbox, stubs, limit, message, errors))?;
    Ok(GateFigures { limit, peak, capped, others, group_peak: None, failed_starts, curves, notes })
}

/// Makes more starts fail than the domain has places, and then fills its places. Returns how many failed; 0 if this
/// machine offers no way to make them fail.
fn places_come_back(
    sandbox: &Sandbox,
    stubs: &mut Stubs,
    limit: u32,
    message: MessageId,
    errors: Stderr,
) -> Result<usize, Error> {
    let failures = (4 * limit).min(sandbox.spawn());
    let mut spawner = Spawner::start_with(sandbox, stubs, Channel::Remote, errors)?;
    let command = |number: u32, hold: Option<&str>| Command {
        number,
        message: message.relative(),
        sender: "sender@sender.example".to_owned(),
        recipient: stub::recipient(Mode::Accept, hold, number, DOMAIN),
    };
    stubs.forget();
    let pid = spawner.process().id();
    let Some(before) = stubs.set_soft_limit(sandbox, pid, Resource::Processes, 0)? else {
        return Ok(0);
    };
    let mut failed = 0;
    for number in 0..failures {
        spawner.send(&command(number, None));
        match spawner.wait(stubs, "a refusal while fork fails", |seen| seen.reports >= 1) {
            // The gate holds it as if the domain were full, although nothing runs.
            Err(Error::Timeout { .. }) => {
                return Err(not_given_back(limit, failed, "a refusal", "none"));
            }
            other => other?,
        }
        failed += spawner.take_reports().iter().filter(|report| report.letter == b'Z').count();
    }
    stubs.set_soft_limit(sandbox, pid, Resource::Processes, before)?;
    if failed == 0 {
        return Ok(0);
    }
    stubs.forget();
    stubs.hold("gate")?;
    let wanted = limit.min(sandbox.spawn());
    for number in 0..wanted {
        spawner.send(&command(number, Some("gate")));
    }
    let filled = spawner.wait(stubs, &format!("{wanted} deliveries to {DOMAIN}"), |seen| {
        seen.started + seen.reports >= wanted as usize
    });
    stubs.release("gate")?;
    let started = stubs.events().iter().filter(|event| event.kind == StubEventKind::Start).count();
    match filled {
        Ok(()) if started >= wanted as usize => {}
        Ok(()) | Err(Error::Timeout { .. }) => {
            let at_once = |count: usize| format!("{count} deliveries at the same time");
            return Err(not_given_back(
                limit,
                failed,
                &at_once(wanted as usize),
                &at_once(started),
            ));
        }
        Err(error) => return Err(error),
    }
    spawner.wait(stubs, &format!("{wanted} reports"), |seen| seen.reports >= wanted as usize)?;
    Ok(failed)
}

fn not_given_back(limit: u32, failed: usize, expected: &str, found: &str) -> Error {
    Error::disproved(
        format!("qmail-rspawn, mail to {DOMAIN} (limit {limit}) after {failed} starts had failed"),
        expected,
        found,
        "the gate does not take back the place of a delivery that could not be started: the domain has fewer and fewer \
         places, and in the end none",
    )
}
