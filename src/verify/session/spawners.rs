//! The steps that prove each spawner alone, in the plain and in the fortified build.
#![forbid(unsafe_code)]

use std::collections::HashSet;
use std::time::Duration;

use super::steps::{Build, InstalledSandbox, NOT_ASKED, Passed, Session, StepDetail};
use crate::verify::error::Error;
use crate::verify::proofs::spawner_trials::{self, FailedStarts};
use crate::verify::rig::numbers;
use crate::verify::rig::protocol::Width;
use crate::verify::rig::spawner::{Channel, Spawner, Stderr, with_last_words};
use crate::verify::sandbox::limits::DeliveryBound;

/// The C library's own FD_SETSIZE. From this descriptor on, a raised FD_SETSIZE and fortify's check
/// matter.
const STOCK_FD_SETSIZE: u64 = 1024;

impl Session<'_> {
    /// Proves qmail-rspawn and qmail-lspawn of one build. A spawner that is not asked for counts as passed.
    pub(super) fn spawners(
        &mut self,
        of: Build,
        ready: &mut InstalledSandbox,
    ) -> Result<Passed, Error> {
        let mut passed = Passed { remote: false, local: false };
        for channel in [Channel::Remote, Channel::Local] {
            let part = of.part(channel);
            if !self.wants(part) {
                self.skip(part.name(), NOT_ASKED);
                match channel {
                    Channel::Remote => passed.remote = true,
                    Channel::Local => passed.local = true,
                }
                continue;
            }
            let fd_set_holds = self.fd_set_holds;
            let proved = self.step(part.name(), |session| {
                session.spawner(ready, channel).map_err(|error| match error {
                    Error::Timeout { waited_for, seconds, seen } if !fd_set_holds => {
                        Error::Timeout {
                            waited_for,
                            seconds,
                            seen: format!("{seen}; the step fd_set shows why"),
                        }
                    }
                    other => other,
                })
            })?;
            match channel {
                Channel::Remote => passed.remote = proved.is_some(),
                Channel::Local => passed.local = proved.is_some(),
            }
        }
        Ok(passed)
    }

    /// Proves one spawner. Its standard error is closed, as under qmail-start. If it dies, the
    /// proof runs again with standard error open, so that the error has the spawner's own message.
    fn spawner(
        &mut self,
        ready: &mut InstalledSandbox,
        channel: Channel,
    ) -> Result<((), StepDetail), Error> {
        with_last_words(|errors| self.spawner_with(ready, channel, errors))
    }

    fn spawner_with(
        &mut self,
        ready: &mut InstalledSandbox,
        channel: Channel,
        errors: Stderr,
    ) -> Result<((), StepDetail), Error> {
        let InstalledSandbox { sandbox, stubs, message, machine, width } = ready;
        let spawn = sandbox.spawn();
        let mut spawner = Spawner::start_with(sandbox, stubs, channel, errors)?;
        if !self.fd_set_holds {
            // It will probably hang. The proof has failed already, so do not wait long.
            spawner.set_idle(Duration::from_secs(5));
        }
        *width = Some(spawner.width());
        check_greeting(&spawner, spawn)?;
        let bound = machine.bound().filter(|bound| bound.deliveries < spawn);
        let at_once = bound.as_ref().map_or(spawn, |bound| bound.deliveries).max(1);

        let first = numbers::choose(spawn, at_once, &mut self.random);
        let progress = &mut *self.progress;
        let running = spawner_trials::at_once(
            &mut spawner,
            stubs,
            *message,
            &first,
            &mut self.random,
            &mut |done, total| {
                progress.advance(done, total);
            },
        )?;
        let mut tried = running;
        if spawn <= numbers::ALL_UP_TO && tried < spawn as usize {
            let done: HashSet<u32> = first.into_iter().collect();
            let rest: Vec<u32> = (0..spawn).filter(|number| !done.contains(number)).collect();
            for some in rest.chunks(at_once as usize) {
                tried += spawner_trials::at_once(
                    &mut spawner,
                    stubs,
                    *message,
                    some,
                    &mut self.random,
                    &mut |_, _| {},
                )?;
            }
        }
        let edges = numbers::boundaries(spawn);
        // In chunks that this machine can run at once, however small it is.
        let mut refused = spawner_trials::Refusals::default();
        let mut given_back = 0;
        let mut not_tried = None;
        for some in edges.chunks(at_once as usize) {
            spawner_trials::each_letter(&mut spawner, stubs, *message, some)?;
            let more = spawner_trials::refusals(&mut spawner, stubs, sandbox, *message, some)?;
            refused.answered += more.answered;
            for note in more.notes {
                if !refused.notes.contains(&note) {
                    refused.notes.push(note);
                }
            }
            match spawner_trials::failures(&mut spawner, stubs, sandbox, *message, some)? {
                FailedStarts::Answered(count) => given_back += count,
                FailedStarts::NotTried(why) => not_tried = Some(why),
            }
        }
        spawner_trials::end_of_input(spawner, stubs, *message, at_once.min(5))?;

        let numbers = if tried == spawn as usize {
            "every delivery number".to_owned()
        } else {
            format!("{tried} of {spawn} delivery numbers, all boundaries among them")
        };
        let mut detail = format!(
            "{running} deliveries at once; {numbers}; K, Z and D each to its own; {} refusals and {given_back} failed \
             starts answered, slots freed",
            refused.answered
        );
        if let Some(DeliveryBound { limit, .. }) = bound {
            detail.push_str(&format!(
                "; not {spawn} at once, because this machine allows no more ({limit})"
            ));
        }
        let mut shown = StepDetail::new(detail)
            .figure("at_once", running)
            .figure("numbers", tried)
            .figure("refusals", refused.answered)
            .figure("failed_starts", given_back);
        shown.notes = refused.notes;
        let descriptors = |deliveries: u32| machine.descriptors(u64::from(deliveries)) + 5;
        if descriptors(spawn) > STOCK_FD_SETSIZE && descriptors(at_once) <= STOCK_FD_SETSIZE {
            shown.notes.push(format!(
                "no descriptor of {STOCK_FD_SETSIZE} or more was reached, so what happens there was not tried (qpatch doctor \
                 says how to raise the limit)"
            ));
        }
        shown.notes.extend(not_tried.map(|why| format!("failed starts were not tried: {why}")));
        Ok(((), shown))
    }
}

/// Checks the width of delivery numbers and the announced conf-spawn, before any command is sent.
fn check_greeting(spawner: &Spawner, spawn: u32) -> Result<(), Error> {
    let channel = spawner.channel();
    let announced = spawner.announced();
    match spawner.width() {
        Width::One if spawn > 255 => Err(Error::disproved(
            format!("{channel}, the width of its delivery numbers"),
            format!("two bytes, as conf-spawn {spawn} needs"),
            format!(
                "one byte: it announces {announced} instead of {spawn}, and delivery number 256 would be taken for 0"
            ),
            format!(
                "qmail-send would never run more than {announced} deliveries at the same time; the tree lacks the \
                 big-concurrency patch: qpatch apply --spawn {spawn}"
            ),
        )),
        _ if announced != spawn => Err(Error::disproved(
            format!("{channel}, the conf-spawn that it announces"),
            spawn.to_string(),
            announced.to_string(),
            "",
        )),
        _ => Ok(()),
    }
}
