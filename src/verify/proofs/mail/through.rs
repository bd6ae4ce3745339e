//! Mail through qmail-send, both spawners and the stubs, with many deliveries at once.
#![forbid(unsafe_code)]

use super::super::spawner_trials::OnProgress;
use super::account::{
    Deferred, MailFigures, ReportedRecipients, check_complaints, check_stubs, peak_supplemental,
};
use super::plan::{BODY, MailPlan};
use super::queue::{empty_queue, set_concurrency};
use crate::verify::error::Error;
use crate::verify::rig::log::Log;
use crate::verify::rig::numbers::Random;
use crate::verify::rig::sendrig::{SendRig, Spawners, run_qmail_queue};
use crate::verify::rig::spawner::Channel;
use crate::verify::rig::stub::{Stubs, peak};
use crate::verify::sandbox::private_tree::Sandbox;

/// The deliveries of each kind that [`through`] runs at the same time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Concurrency {
    /// Through qmail-rspawn.
    pub remote: u32,
    /// Through qmail-lspawn.
    pub local: u32,
    /// Through each further qmail-rspawn.
    pub supplemental: u32,
}

/// Sends `messages` messages through the tree's qmail-send, both its spawners and the stubs, and compares the result
/// for each recipient with the plan. First all deliveries of `at_once` run at the same time, then they end.
///
/// # Errors
/// Fewer deliveries ran at the same time, or mail was lost, delivered twice, or reported for another recipient.
pub fn through(
    sandbox: &Sandbox,
    stubs: &mut Stubs,
    messages: u32,
    at_once: Concurrency,
    random: &mut Random,
    on_progress: OnProgress<'_>,
) -> Result<MailFigures, Error> {
    let mut plan = MailPlan::default();
    let half = messages / 2;
    plan.add(Channel::Remote, half, at_once.remote.max(half), Some("crowd"), random);
    plan.add(
        Channel::Local,
        messages - half,
        at_once.local.max(messages - half),
        Some("crowd"),
        random,
    );
    plan.add_supplemental(sandbox, at_once.supplemental, Some("crowd"), random);
    empty_queue(sandbox)?;
    set_concurrency(sandbox, at_once.local, at_once.remote, at_once.supplemental)?;
    stubs.forget();
    stubs.hold("crowd")?;
    let last = plan.mails.len();
    // The tree's own qmail-queue queues only the last 20: to queue all of them would take longer than everything else.
    let direct = last - last.min(20);
    plan.queue(sandbox, 0..direct)?;
    let total = plan.recipients();
    let all_remote = at_once.remote + at_once.supplemental * sandbox.supplemental().count;
    let together = (all_remote + at_once.local) as usize;
    let goal = (together + total) as u64;
    let mut rig = SendRig::start(sandbox, Spawners::Own)?;
    for mail in &plan.mails[direct..] {
        run_qmail_queue(sandbox, BODY, &mail.sender, &mail.addresses())?;
        rig.attend(stubs)?;
    }
    rig.wait(stubs, &format!("{together} deliveries at the same time"), |rig, stubs| {
        on_progress(stubs.counts().0 as u64, goal);
        if rig.log().ended > 0 {
            return Err(early(rig.log()));
        }
        Ok(stubs.counts().0 >= together)
    })?;
    stubs.release("crowd")?;
    let mut taken = ReportedRecipients::default();
    let (bounces, finished) = (plan.bounces(), plan.finished());
    rig.wait(
        stubs,
        &format!("the reports of {total} deliveries and {bounces} bounces"),
        |rig, _| {
            on_progress((together + rig.log().ended) as u64, goal);
            let taken = taken.count(rig.log());
            Ok(taken.recipients >= total
                && taken.bounces >= bounces
                && rig.log().ended_messages >= finished + bounces)
        },
    )?;
    rig.terminate()?;
    let log = rig.wait_exit(stubs)?;
    let notes = check_complaints(&log)?;
    plan.check(&[&log], |_| false)?;
    plan.check_queue(sandbox)?;
    check_stubs(&plan, stubs, Deferred::AfterRetryTime, |_| 1)?;
    let peak_of = |channel: Channel| peak(stubs.events(), |event| event.program == channel.stub());
    let sent = MailFigures {
        messages: plan.mails.len(),
        recipients: total,
        bounces,
        peak_remote: peak_of(Channel::Remote),
        peak_local: peak_of(Channel::Local),
        peak_supplemental: peak_supplemental(sandbox, &log, at_once.supplemental)?,
        notes,
    };
    for (channel, found, limit) in [
        (Channel::Remote, sent.peak_remote, all_remote),
        (Channel::Local, sent.peak_local, at_once.local),
    ] {
        if found != limit as usize {
            return Err(Error::disproved(
                format!("deliveries at the same time through {channel}"),
                limit.to_string(),
                found.to_string(),
                "",
            ));
        }
    }
    Ok(sent)
}

/// Returns the error for a report that came although every stub still waits: the spawner refused the delivery.
fn early(log: &Log) -> Error {
    let first =
        log.deliveries.values().find_map(|delivery| Some((delivery, delivery.outcome.as_ref()?)));
    let found = first.map_or("a report".to_owned(), |(delivery, outcome)| {
        format!("{} {:?} for {}", char::from(outcome.letter), outcome.text, delivery.recipient)
    });
    Error::disproved(
        "qmail-send, a delivery that is under way",
        "no report before it ends",
        found,
        "the spawner refuses it, or its report went to the wrong delivery",
    )
}
