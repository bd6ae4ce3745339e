//! The steps that run qmail-send: every delivery number, mail, restart, the gate and the fork server.
#![forbid(unsafe_code)]

use super::steps::{InstalledSandbox, Session, StepDetail};
use crate::verify::error::Error;
use crate::verify::proofs::fork_server::{self, ForkServerTrial};
use crate::verify::proofs::gate;
use crate::verify::proofs::mail::{self, Concurrency, MailFigures, Stop};
use crate::verify::rig::at_once;
use crate::verify::rig::spawner::{Channel, Spawner};
use crate::verify::sandbox::private_tree::Sandbox;

/// The most deliveries of each channel that go through qmail-send and real spawners at the same
/// time.
const MAX_CONCURRENCY: u32 = 4096;

/// Deliveries that are under way when qmail-send is stopped.
const UNDER_WAY: u32 = 100;

impl Session<'_> {
    /// The step qmail-send-numbers.
    pub(super) fn every_number(
        &mut self,
        ready: &mut InstalledSandbox,
    ) -> Result<((), StepDetail), Error> {
        let width = match ready.width {
            Some(width) => width,
            None => Spawner::start(&ready.sandbox, &mut ready.stubs, Channel::Remote)?.width(),
        };
        let progress = &mut *self.progress;
        let sent = mail::every_number(
            &ready.sandbox,
            &mut ready.stubs,
            width,
            &mut self.random,
            &mut |done, total| {
                progress.advance(done, total);
            },
        )?;
        let mut detail = format!(
            "{} remote and {} local deliveries at once against spawners played by the rig, every delivery number in \
             both directions; {} reports in random order, each taken for its own",
            sent.peak_remote, sent.peak_local, sent.recipients
        );
        detail.push_str(&on_each(&ready.sandbox, sent.peak_supplemental));
        Ok(((), with_figures(detail, sent)))
    }

    /// Returns the deliveries of each kind that the machine has room for.
    fn concurrency(ready: &InstalledSandbox) -> Concurrency {
        let spawn = ready.sandbox.spawn();
        let one = ready.machine.bound().map_or(spawn, |bound| bound.deliveries.min(spawn));
        let both = ready.machine.processes_left().map_or(u64::MAX, |left| left / 2);
        let remote = u64::from(one.min(MAX_CONCURRENCY)).min(both).max(1);
        let remote = u32::try_from(remote).unwrap_or(MAX_CONCURRENCY);
        Concurrency { remote, local: remote.min(1000), supplemental: remote.min(20) }
    }

    /// The step mail, also for the fortified build.
    pub(super) fn mail(&mut self, ready: &mut InstalledSandbox) -> Result<((), StepDetail), Error> {
        let concurrency = Self::concurrency(ready);
        let progress = &mut *self.progress;
        let on_progress = &mut |done, total| progress.advance(done, total);
        let sent = mail::through(
            &ready.sandbox,
            &mut ready.stubs,
            mail::MESSAGES,
            concurrency,
            &mut self.random,
            on_progress,
        )?;
        let mut detail = format!(
            "{} messages through qmail-send, qmail-rspawn and qmail-lspawn: {} remote and {} local deliveries at once, {} \
             recipients delivered, deferred or bounced as they should, {} bounces, none lost, none twice",
            sent.messages, sent.peak_remote, sent.peak_local, sent.recipients, sent.bounces
        );
        detail.push_str(&on_each(&ready.sandbox, sent.peak_supplemental));
        Ok(((), with_figures(detail, sent)))
    }

    /// The step restart.
    pub(super) fn restart(
        &mut self,
        ready: &mut InstalledSandbox,
    ) -> Result<((), StepDetail), Error> {
        let running = UNDER_WAY.min(Self::concurrency(ready).remote);
        let mut notes = Vec::new();
        for stop in [Stop::Terminate, Stop::Kill] {
            notes.extend(
                mail::restart(&ready.sandbox, &mut ready.stubs, stop, running, &mut self.random)?
                    .notes,
            );
        }
        let detail = format!(
            "qmail-send stopped by SIGTERM and by SIGKILL with {running} deliveries under way and as many waiting: after \
             the restart none lost, and twice only what was under way when it was killed"
        );
        let mut shown = StepDetail::new(detail).figure("under_way", running as usize);
        shown.notes = notes;
        Ok(((), shown))
    }

    /// The step gate.
    pub(super) fn gate(&mut self, ready: &mut InstalledSandbox) -> Result<((), StepDetail), Error> {
        let progress = &mut *self.progress;
        let on_progress = &mut |done, total| progress.advance(done, total);
        let room = Self::concurrency(ready).remote;
        let delivery_ms = self.options.capped_delivery_ms;
        let InstalledSandbox { sandbox, stubs, .. } = &mut *ready;
        let gated = gate::prove(sandbox, stubs, room, delivery_ms, &mut self.random, on_progress)?;
        let mut detail = format!(
            "{} deliveries to a domain with a limit of {}: never more than {} at once, while {} to other domains went \
             through; after {} failed starts, all its places are free",
            gated.capped, gated.limit, gated.peak, gated.others, gated.failed_starts
        );
        if let Some(peak) = gated.group_peak {
            detail.push_str(&format!(
                "; a group with mail over all {} remote channels: never more than {peak} at once",
                1 + ready.sandbox.supplemental().count
            ));
        }
        let mut shown = StepDetail::new(detail)
            .figure("limit", gated.limit as usize)
            .figure("peak", gated.peak);
        shown.notes = gated.notes;
        shown.chart = at_once::chart(&gated.curves);
        Ok(((), shown))
    }

    /// The step fork-server.
    pub(super) fn fork_server(
        &mut self,
        ready: &mut InstalledSandbox,
    ) -> Result<((), StepDetail), Error> {
        let progress = &mut *self.progress;
        let on_progress = &mut |done, total| progress.advance(done, total);
        let room = Self::concurrency(ready).remote;
        let InstalledSandbox { sandbox, stubs, .. } = ready;
        let shown = match fork_server::prove(sandbox, stubs, room, &mut self.random, on_progress)? {
            ForkServerTrial::Unavailable(why) => StepDetail::new(format!("not on this machine: {why}; each delivery is executed")),
            ForkServerTrial::Works { facts, at_once, by_server } => StepDetail::new(format!(
                "a delivery that it makes sees what an executed qmail-remote sees ({facts} facts); {at_once} at once, \
                 {by_server} deliveries by the server"
            ))
            .figure("at_once", at_once),
        };
        Ok(((), shown))
    }
}

/// Returns what to report of supplemental channels; empty if the tree has none.
fn on_each(sandbox: &Sandbox, peak: usize) -> String {
    match sandbox.supplemental().count {
        0 => String::new(),
        count => format!("; {peak} at once on each of {count} supplemental channels among them"),
    }
}

/// Returns the detail of a step with the figures of its trial.
fn with_figures(detail: String, sent: MailFigures) -> StepDetail {
    let mut shown = StepDetail::new(detail)
        .figure("messages", sent.messages)
        .figure("recipients", sent.recipients)
        .figure("bounces", sent.bounces)
        .figure("peak_remote", sent.peak_remote)
        .figure("peak_local", sent.peak_local);
    shown.notes = sent.notes;
    shown
}
