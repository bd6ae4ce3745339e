//! A domain or a group at its limit, while mail to other domains goes through.
#![forbid(unsafe_code)]

use super::super::spawner_trials::OnProgress;
use super::account::{Deferred, check_complaints, check_stubs};
use super::plan::MailPlan;
use super::queue::{empty_queue, set_concurrency};
use super::watchdog::Watchdog;
use crate::verify::error::Error;
use crate::verify::rig::at_once::{self, AtOnce};
use crate::verify::rig::log::Log;
use crate::verify::rig::numbers::Random;
use crate::verify::rig::sendrig::{SendRig, Spawners};
use crate::verify::rig::stub::{self, Mode, StubEventKind, Stubs, peak};
use crate::verify::sandbox::private_tree::Sandbox;

/// What [`capped`] measured.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CappedFigures {
    /// Deliveries to the capped domain.
    pub capped: usize,
    /// Deliveries to other domains.
    pub others: usize,
    /// The most deliveries to the capped domain at the same time.
    pub peak: usize,
    /// What ran at once, over time: deliveries to the capped domain, and those to others.
    pub curves: Vec<AtOnce>,
    /// Warnings of qmail-send that do not fail the trial.
    pub notes: Vec<String>,
}

/// How the trial of a limit runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CappedLoad {
    /// The limit of the domains together.
    pub limit: u32,
    /// How many deliveries of one spawner the machine has room for.
    pub room: u32,
    /// How long each delivery takes, in ms.
    pub delivery_ms: u32,
}

/// Queues at least 100 mails to `domains`, which together have a limit of `limit`, mixed with 200 mails to twenty other
/// domains. While `limit` deliveries to `domains` wait, all mail to the others must be done. Then `domains` get their
/// mail, with never more than `limit` deliveries at the same time.
///
/// # Errors
/// The limit was exceeded, mail to the other domains waited, or no mail was done for 150 s.
pub fn capped(
    sandbox: &Sandbox,
    stubs: &mut Stubs,
    domains: &[String],
    CappedLoad { limit, room, delivery_ms }: CappedLoad,
    random: &mut Random,
    on_progress: OnProgress<'_>,
) -> Result<CappedFigures, Error> {
    let (to_capped, to_others) = (100_usize.max(8 * domains.len()), 200_usize);
    let domain = &domains.join(", ");
    let (held, free) = (format!("capped+{delivery_ms}"), format!("none+{delivery_ms}"));
    let mut plan = MailPlan::default();
    for number in 0..to_capped + to_others {
        let mut mail = MailPlan::message_from(number);
        let address = if number < to_capped {
            stub::recipient(Mode::Accept, Some(&held), number, &domains[number % domains.len()])
        } else {
            stub::recipient(
                Mode::Accept,
                Some(&free),
                number,
                &format!("other{}.example", number % 20),
            )
        };
        mail.recipients.push((address, Mode::Accept));
        plan.mails.push(mail);
    }
    random.shuffle(&mut plan.mails);
    empty_queue(sandbox)?;
    // Lower than the number of mails, so that the gate cannot hold them all: it sends the rest away and must call it.
    let few = to_capped.div_ceil(2 * domains.len());
    let most = sandbox.spawn().min(room);
    set_concurrency(sandbox, 1, most.min(60), most.min(few as u32))?;
    stubs.forget();
    stubs.hold("capped")?;
    let total = plan.mails.len();
    plan.queue(sandbox, 0..total)?;
    let mut rig = SendRig::start(sandbox, Spawners::Own)?;
    let is_capped = |event: &stub::StubEvent| domains.iter().any(|domain| event.domain() == domain);
    let places = (limit as usize).min(sandbox.spawn() as usize);
    let others = format!("all mail to other domains while {domain} is full");
    let mut watchdog = Watchdog::default();
    rig.wait(stubs, &others, |rig, stubs| {
        on_progress(stubs.counts().1 as u64, total as u64);
        check_progress(rig.log(), stubs, &mut watchdog, &others)?;
        let started = stubs
            .events()
            .iter()
            .filter(|event| is_capped(event) && event.kind == StubEventKind::Start)
            .count();
        if started > places {
            return Err(over_limit(domains, places, started));
        }
        let delivered = rig.log().deliveries.values().filter(|delivery| {
            delivery.outcome.as_ref().is_some_and(|outcome| outcome.letter == b'K')
        });
        Ok(started == places && delivered.count() >= to_others)
    })?;
    stubs.release("capped")?;
    let all = format!("all mail to {domain}");
    let mut watchdog = Watchdog::default();
    rig.wait(stubs, &all, |rig, stubs| {
        on_progress(stubs.counts().1 as u64, total as u64);
        check_progress(rig.log(), stubs, &mut watchdog, &all)?;
        Ok(rig.log().ended_messages >= total)
    })?;
    rig.terminate()?;
    let log = rig.wait_exit(stubs)?;
    let notes = check_complaints(&log)?;
    plan.check_queue(sandbox)?;
    check_stubs(&plan, stubs, Deferred::AfterRetryTime, |_| 1)?;
    let peak = peak(stubs.events(), is_capped);
    if peak > places {
        return Err(over_limit(domains, places, peak));
    }
    let is_other = |event: &stub::StubEvent| !is_capped(event);
    let shown = [
        (
            format!("{to_capped} messages to {domain}, which has a limit of {limit}"),
            &is_capped as _,
        ),
        (format!("{to_others} messages to other domains, which have none"), &is_other as _),
    ];
    let curves = at_once::curves(stubs.events(), &shown);
    Ok(CappedFigures { capped: to_capped, others: to_others, peak, curves, notes })
}

/// Fails if qmail-send has complained, because after a fault of the gate it would complain for ever, and if no mail
/// gets done.
fn check_progress(
    log: &Log,
    stubs: &Stubs,
    watchdog: &mut Watchdog,
    waiting_for: &str,
) -> Result<(), Error> {
    check_complaints(log)?;
    watchdog.check(stubs.counts().1, || {
        let outcomes = log.deliveries.values().filter_map(|delivery| delivery.outcome.as_ref());
        let sent_away = outcomes.filter(|outcome| outcome.letter == b'Z').count();
        format!(
            "qmail-send, {waiting_for} ({} messages done, {sent_away} deliveries deferred or sent away as busy), stubs \
             that have ended",
            log.ended_messages
        )
    })
}

fn over_limit(domains: &[String], limit: usize, found: usize) -> Error {
    let cause = if domains.len() > 1 {
        "each qmail-rspawn counts for itself: hier.c must make queue/lock/gateshared and a gatestatus for each of them, as \
         qpatch apply (domain-gate) writes it"
    } else {
        "the gate is not asked before each delivery, or its account of what runs is wrong"
    };
    Error::disproved(
        format!("deliveries to {} at the same time", domains.join(", ")),
        limit.to_string(),
        found.to_string(),
        cause,
    )
}
