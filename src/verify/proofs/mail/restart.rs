//! qmail-send stopped or killed with deliveries under way, and started again.
#![forbid(unsafe_code)]

use std::collections::HashSet;
use std::time::Instant;

use super::account::{Deferred, MailFigures, check_complaints, check_stubs};
use super::plan::MailPlan;
use super::queue::{empty_queue, set_concurrency};
use crate::sys::{self, Interest, Polled, Watch};
use crate::verify::error::Error;
use crate::verify::rig::log::{Log, logged};
use crate::verify::rig::numbers::Random;
use crate::verify::rig::sendrig::{SendRig, Spawners, pull_trigger};
use crate::verify::rig::spawner::{Channel, IDLE};
use crate::verify::rig::stub::Stubs;
use crate::verify::sandbox::private_tree::Sandbox;
use crate::verify::sandbox::process::interrupted;

/// How qmail-send is stopped in [`restart`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stop {
    /// By SIGTERM, as `svc -d` does it. qmail-send waits for the deliveries that are under way.
    Terminate,
    /// By SIGKILL, as in a crash. The deliveries that are under way are repeated after the restart.
    Kill,
}

/// Stops qmail-send with `running` deliveries under way and as many waiting, and starts it again.
///
/// # Errors
/// Mail was lost, or mail that was not under way at a kill was delivered twice.
pub fn restart(
    sandbox: &Sandbox,
    stubs: &mut Stubs,
    stop: Stop,
    running: u32,
    random: &mut Random,
) -> Result<MailFigures, Error> {
    let mut plan = MailPlan::default();
    plan.add(Channel::Remote, running * 2, running * 2, Some("stop"), random);
    empty_queue(sandbox)?;
    set_concurrency(sandbox, 1, running, running)?;
    stubs.forget();
    stubs.hold("stop")?;
    let all = plan.mails.len();
    plan.queue(sandbox, 0..all)?;
    let total = plan.recipients();
    let under_way = running as usize;

    let mut rig = SendRig::start(sandbox, Spawners::Own)?;
    // Wait until all messages are in queue/remote: a kill with messages in queue/todo would be another trial.
    rig.wait(stubs, &format!("{under_way} deliveries at the same time"), |rig, stubs| {
        Ok(stubs.counts().0 >= under_way && rig.log().new_messages >= all)
    })?;
    let interrupted: HashSet<String> = match stop {
        Stop::Terminate => HashSet::new(),
        Stop::Kill => stubs.events().iter().map(|event| event.recipient.clone()).collect(),
    };
    let first = match stop {
        Stop::Terminate => {
            rig.terminate()?;
            stubs.release("stop")?;
            let log = rig.wait_exit(stubs)?;
            if log.ended != under_way {
                return Err(Error::disproved(
                    "qmail-send after SIGTERM with deliveries under way",
                    format!("{under_way} reports and no new delivery"),
                    format!("{} reports", log.ended),
                    "",
                ));
            }
            log
        }
        Stop::Kill => {
            rig.crash(stubs)?;
            stubs.release("stop")?;
            // The orphaned spawners finish their deliveries. Nothing reads their reports.
            while stubs.counts().1 < under_way {
                await_stubs(stubs)?;
            }
            let log = std::mem::take(rig.log_mut());
            drop(rig);
            log
        }
    };

    let (bounces, finished) = (plan.bounces(), plan.finished());
    let gone_before = first.ended_messages;
    let mut rig = SendRig::start(sandbox, Spawners::Own)?;
    pull_trigger(sandbox)?;
    rig.wait(stubs, "the rest of the deliveries after the restart", |rig, _| {
        Ok(gone_before + rig.log().ended_messages >= finished + bounces
            && answered(&[&first, rig.log()]).len() >= total + bounces)
    })?;
    rig.terminate()?;
    let second = rig.wait_exit(stubs)?;
    let mut notes = check_complaints(&first)?;
    notes.extend(check_complaints(&second)?);
    let interrupted_logged: HashSet<String> =
        interrupted.iter().map(|address| logged(address)).collect();
    plan.check(&[&first, &second], |address| interrupted_logged.contains(address))?;
    plan.check_queue(sandbox)?;
    check_stubs(&plan, stubs, Deferred::AtAnyTime, |address| {
        if interrupted.contains(address) { 2 } else { 1 }
    })?;
    Ok(MailFigures {
        messages: all,
        recipients: total,
        bounces,
        peak_remote: under_way,
        peak_local: 0,
        peak_supplemental: 0,
        notes,
    })
}

/// Returns the recipients that have had a report.
fn answered<'l>(logs: &[&'l Log]) -> HashSet<&'l str> {
    let deliveries = logs.iter().flat_map(|log| log.deliveries.values());
    deliveries
        .filter(|delivery| delivery.outcome.is_some())
        .map(|delivery| delivery.recipient.as_str())
        .collect()
}

/// Waits for the next event of a stub, and reads it.
fn await_stubs(stubs: &mut Stubs) -> Result<(), Error> {
    let idle = IDLE;
    let mut watches = [Watch::new(stubs.fd(), Interest::Read)];
    match sys::poll(&mut watches, Instant::now() + idle).map_err(Error::system("wait for stubs"))? {
        Polled::Interrupted => return Err(interrupted()),
        Polled::TimedOut => {
            return Err(Error::Timeout {
                waited_for: "the deliveries that were under way when qmail-send was killed"
                    .to_owned(),
                seconds: idle.as_secs(),
                seen: format!("{} of them had ended", stubs.counts().1),
            });
        }
        Polled::Ready => {}
    }
    stubs.read().map(|_| ())
}
