//! qmail-send with every delivery number in use at once. The rig plays the spawners, so no process runs for a delivery.
#![forbid(unsafe_code)]

use std::collections::HashMap;

use super::super::spawner_trials::OnProgress;
use super::account::{
    MESSAGES, MailFigures, ReportedRecipients, check_complaints, is_grave, peak_supplemental,
};
use super::plan::MailPlan;
use super::queue::{empty_queue, set_concurrency};
use crate::verify::error::Error;
use crate::verify::rig::numbers::Random;
use crate::verify::rig::protocol::{Report, Width};
use crate::verify::rig::sendrig::{SendRig, Spawners};
use crate::verify::rig::spawner::Channel;
use crate::verify::rig::stub::{Mode, Stubs};
use crate::verify::sandbox::private_tree::Sandbox;

/// The deliveries over each supplemental channel when the rig plays the spawners. More than 255, so that both bytes
/// of a delivery number are used.
const SUPPLEMENTAL: u32 = 300;

/// Runs qmail-send against spawners that the rig plays: conf-spawn remote deliveries at the same time, so that every
/// delivery number is in use, and up to 1000 local ones. Then the rig reports K, Z or D for each, in random order.
///
/// # Errors
/// qmail-send used a wrong number, took a report for another delivery, or left a wrong queue.
pub fn every_number(
    sandbox: &Sandbox,
    stubs: &mut Stubs,
    width: Width,
    random: &mut Random,
    on_progress: OnProgress<'_>,
) -> Result<MailFigures, Error> {
    let spawn = sandbox.spawn();
    let local = spawn.min(1000);
    let mut plan = MailPlan::default();
    plan.add(Channel::Remote, MESSAGES / 2, spawn, None, random);
    plan.add(Channel::Local, MESSAGES / 2, local, None, random);
    plan.add_supplemental(sandbox, spawn.min(SUPPLEMENTAL), None, random);
    empty_queue(sandbox)?;
    set_concurrency(sandbox, local, spawn, spawn)?;
    let all = plan.mails.len();
    plan.queue(sandbox, 0..all)?;

    let mut modes_of: HashMap<String, Mode> = HashMap::new();
    for (address, mode) in plan.mails.iter().flat_map(|mail| &mail.recipients) {
        modes_of.insert(address.clone(), *mode);
    }
    let total = plan.recipients();
    let goal = 2 * total as u64;
    stubs.forget();
    let mut rig = SendRig::start(sandbox, Spawners::Played { width, spawn })?;

    // Collect all commands before the first report: only then is every number in use.
    let mut held: HashMap<(usize, u32), String> = HashMap::new();
    rig.wait(stubs, &format!("{total} deliveries from qmail-send"), |rig, _| {
        for (index, relay) in rig.relays().iter_mut().enumerate() {
            for command in relay.take_commands() {
                if command.number >= spawn {
                    return Err(number_error(
                        relay.channel(),
                        command.number,
                        &format!("below {spawn}"),
                    ));
                }
                if held.insert((index, command.number), command.recipient).is_some() {
                    return Err(number_error(
                        relay.channel(),
                        command.number,
                        "free, as long as it is not answered",
                    ));
                }
            }
        }
        on_progress(held.len() as u64, goal);
        Ok(held.len() >= total)
    })?;
    // Report range by range, so that an error names one: numbers that fit into a byte, numbers that need a second byte,
    // and numbers that a signed 16-bit integer cannot hold.
    let mut answered = 0;
    let mut taken = ReportedRecipients::default();
    for range in [0..256, 256..32768, 32768..u32::MAX] {
        let mut answers: Vec<(&(usize, u32), &String)> =
            held.iter().filter(|((_, number), _)| range.contains(number)).collect();
        answers.sort();
        random.shuffle(&mut answers);
        answered += answers.len();
        for ((index, number), recipient) in answers {
            let letter = modes_of.get(recipient).map_or(b'K', |mode| mode.report());
            let text = format!("{recipient} answered\n");
            rig.relays()[*index].report(&Report { number: *number, letter, text });
        }
        rig.wait(
            stubs,
            &format!("qmail-send to take the reports of {answered} deliveries"),
            |rig, _| {
                answer_again(rig, &modes_of);
                on_progress((total + rig.log().ended) as u64, goal);
                if let Some(line) = rig.log().complaints.iter().find(|line| is_grave(line)) {
                    return Err(wrongly_taken(line, range.start, spawn));
                }
                Ok(taken.count(rig.log()).recipients >= answered)
            },
        )?;
    }
    let (bounces, finished) = (plan.bounces(), plan.finished());
    rig.wait(stubs, "qmail-send to deliver the bounces", |rig, _| {
        answer_again(rig, &modes_of);
        on_progress((total + rig.log().ended) as u64, goal);
        Ok(taken.count(rig.log()).bounces >= bounces
            && rig.log().ended_messages >= finished + bounces)
    })?;
    rig.terminate()?;
    let log = rig.wait_exit(stubs)?;
    let notes = check_complaints(&log)?;
    plan.check(&[&log], |_| false)?;
    plan.check_queue(sandbox)?;
    Ok(MailFigures {
        messages: plan.mails.len(),
        recipients: total,
        bounces,
        peak_remote: log.peak("remote") as usize,
        peak_local: log.peak("local") as usize,
        peak_supplemental: peak_supplemental(sandbox, &log, spawn.min(SUPPLEMENTAL))?,
        notes,
    })
}

/// Reports the deliveries that come after every recipient has had its report: bounces, and recipients that qmail-send
/// tries again because the trial takes longer than its retry time.
fn answer_again(rig: &mut SendRig, modes_of: &HashMap<String, Mode>) {
    for relay in rig.relays() {
        for command in relay.take_commands() {
            let letter = modes_of.get(&command.recipient).map_or(b'K', |mode| mode.report());
            let text = format!("{} answered\n", command.recipient);
            relay.report(&Report { number: command.number, letter, text });
        }
    }
}

/// Returns the error for a complaint of qmail-send while the reports of the numbers from `from` on came.
fn wrongly_taken(line: &str, from: u32, spawn: u32) -> Error {
    let next = match from {
        0 => "",
        256 => {
            "del_dochan does not put both bytes of a delivery number together; qpatch apply (big-concurrency) repairs it"
        }
        _ => {
            "del_dochan reads the high byte of a delivery number as a signed char, as in the classic patch; qpatch apply \
             (big-concurrency) repairs it"
        }
    };
    Error::disproved(
        format!(
            "qmail-send, the reports of delivery numbers {from} to {}",
            spawn.saturating_sub(1)
        ),
        "each taken for its own delivery",
        format!("{line:?}"),
        next,
    )
}

fn number_error(channel: Channel, number: u32, expected: &str) -> Error {
    Error::disproved(
        format!("qmail-send, delivery number {number} to {channel}"),
        expected,
        "not so",
        "delivery numbers are cut off or reused while a delivery runs",
    )
}
