//! Runs the steps of one proof in order, and reports what each has shown.
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use super::error::Error;
use super::options::{Options, Part};
use super::proofs::fdset;
use super::proofs::fork_server::{self, ForkServerTrial};
use super::proofs::gate;
use super::proofs::mail::{self, Concurrency, MailFigures, Stop};
use super::proofs::spawner_trials::{self, FailedStarts};
use super::report::{Progress, Step, StepVerdict};
use super::rig::numbers::{self, Random};
use super::rig::protocol::Width;
use super::rig::sendrig;
use super::rig::spawner::{Channel, Spawner, Stderr, with_last_words};
use super::rig::stub::Stubs;
use super::sandbox::SiteConfig;
use super::sandbox::build;
use super::sandbox::limits::{DeliveryBound, MachineLimits};
use super::sandbox::makefile::targets;
use super::sandbox::scratch::Scratch;
use super::sandbox::site::{MessageId, Site};
use crate::tree::{Tree, journal};

/// The most deliveries of each channel that go through qmail-send and real spawners at the same
/// time.
const MAX_CONCURRENCY: u32 = 4096;

/// The C library's own FD_SETSIZE. From this descriptor on, a raised FD_SETSIZE and fortify's check
/// matter.
const STOCK_FD_SETSIZE: u64 = 1024;

/// Why a step is skipped that `--only` leaves out.
const NOT_ASKED: &str = "not asked for";

/// Why a step is skipped that needs a failed one.
const EARLIER_FAILED: &str = "not tried, because an earlier step failed";

/// The flags of hardened builds. The compilers of Ubuntu and others define the macro already, and a
/// second definition would be a warning.
const FORTIFY_FLAGS: [&str; 3] = ["-O2", "-U_FORTIFY_SOURCE", "-D_FORTIFY_SOURCE=3"];

/// Deliveries under way when qmail-send is stopped.
const UNDER_WAY: u32 = 100;

pub(super) struct Session<'s> {
    scratch: &'s Scratch,
    tree: &'s Path,
    options: &'s Options,
    random: Random,
    progress: &'s mut dyn Progress,
    steps: Vec<Step>,
    spawn: u32,
    cc: String,
    fd_set_holds: bool,
}

/// What a successful step reports.
#[derive(Debug, Default)]
struct StepDetail {
    detail: String,
    figures: BTreeMap<&'static str, u64>,
    notes: Vec<String>,
}

impl StepDetail {
    fn new(detail: impl Into<String>) -> StepDetail {
        StepDetail { detail: detail.into(), ..StepDetail::default() }
    }

    fn figure(mut self, name: &'static str, value: usize) -> StepDetail {
        self.figures.insert(name, value as u64);
        self
    }
}

/// The spawners that have passed their proof.
#[derive(Debug, Clone, Copy)]
struct Passed {
    remote: bool,
    local: bool,
}

impl Passed {
    fn both(self) -> bool {
        self.remote && self.local
    }
}

/// The build that a spawner belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Build {
    Plain,
    Fortified,
}

impl Build {
    fn part(self, channel: Channel) -> Part {
        match (self, channel) {
            (Build::Plain, Channel::Remote) => Part::Rspawn,
            (Build::Plain, Channel::Local) => Part::Lspawn,
            (Build::Fortified, Channel::Remote) => Part::FortifyRspawn,
            (Build::Fortified, Channel::Local) => Part::FortifyLspawn,
        }
    }
}

/// A site with built and installed programs, and its stubs.
struct InstalledSite {
    site: Site,
    stubs: Stubs,
    message: MessageId,
    machine: MachineLimits,
    width: Option<Width>,
}

impl<'s> Session<'s> {
    pub(super) fn new(
        scratch: &'s Scratch,
        tree: &'s Path,
        options: &'s Options,
        seed: u64,
        progress: &'s mut dyn Progress,
    ) -> Session<'s> {
        let spawn = options.spawn.unwrap_or(0);
        Session {
            scratch,
            tree,
            options,
            random: Random::new(seed),
            progress,
            steps: Vec::new(),
            spawn,
            cc: String::new(),
            fd_set_holds: true,
        }
    }

    pub(super) fn spawn(&self) -> u32 {
        self.spawn
    }

    pub(super) fn cc(&self) -> String {
        self.cc.clone()
    }

    pub(super) fn into_steps(self) -> Vec<Step> {
        self.steps
    }

    /// Returns whether `part` was asked for.
    fn wants(&self, part: Part) -> bool {
        self.options.only.is_empty() || self.options.only.contains(&part)
    }

    /// Runs one step and records its result. `Ok(None)` means that it failed. Only a stop signal is
    /// returned as an error.
    fn step<T>(
        &mut self,
        name: &str,
        body: impl FnOnce(&mut Self) -> Result<(T, StepDetail), Error>,
    ) -> Result<Option<T>, Error> {
        self.progress.begin(name);
        let started = Instant::now();
        let (value, verdict, shown) = match body(self) {
            Ok((value, shown)) => (Some(value), StepVerdict::Pass, shown),
            Err(error @ Error::Interrupted(_)) => return Err(error),
            Err(error) => (None, StepVerdict::Fail, StepDetail::new(error.to_string())),
        };
        self.end(name, verdict, shown, started.elapsed().as_secs_f64());
        Ok(value)
    }

    fn skip(&mut self, name: &str, why: &str) {
        self.end(name, StepVerdict::Skipped, StepDetail::new(why), 0.0);
    }

    fn end(&mut self, name: &str, verdict: StepVerdict, shown: StepDetail, seconds: f64) {
        let StepDetail { detail, figures, notes } = shown;
        let step = Step { name: name.to_owned(), verdict, detail, figures, notes, seconds };
        self.progress.end(&step);
        self.steps.push(step);
    }

    pub(super) fn run(&mut self) -> Result<(), Error> {
        let Some(mut plain) = self.build_plain()? else { return Ok(()) };
        let passed = self.spawners(Build::Plain, &mut plain)?;
        let spawners = passed.both();
        // The rig plays both spawners, so this step does not need a qmail-lspawn that can run here.
        let numbers = self.part(Part::Numbers, passed.remote, |session, name| {
            session.step(name, |session| session.every_number(&mut plain))
        })?;
        let mail = self.part(Part::Mail, spawners && numbers, |session, name| {
            session.step(name, |session| session.mail(&mut plain))
        })?;
        self.part(Part::Restart, spawners && mail, |session, name| {
            session.step(name, |session| session.restart(&mut plain))
        })?;
        if gate::is_in(self.tree) {
            self.part(Part::Gate, spawners && mail, |session, name| {
                session.step(name, |session| session.gate(&mut plain))
            })?;
        } else if self.options.only.contains(&Part::Gate) {
            self.step::<()>(Part::Gate.name(), |_| {
                let next = "qpatch apply (domain-gate) puts it in";
                Err(Error::disproved("the tree", "a gate, as --only asks for it", "none", next))
            })?;
        } else {
            self.part(Part::Gate, true, |session, name| {
                session.skip(name, "the tree has no gate (domain-gate is not applied)");
                Ok(None)
            })?;
        }
        if fork_server::is_in(self.tree) {
            self.part(Part::ForkServer, passed.remote, |session, name| {
                session.step(name, |session| session.fork_server(&mut plain))
            })?;
        } else {
            self.part(Part::ForkServer, true, |session, name| {
                session.skip(name, "the tree has no fork server (fork-server is not applied)");
                Ok(None)
            })?;
        }
        drop(plain);
        self.fortified(spawners && mail)
    }

    /// Runs `body` if the part was asked for and the parts that it needs have passed. Returns false
    /// if it failed or could not be tried; true if it passed or was not asked for.
    fn part(
        &mut self,
        part: Part,
        possible: bool,
        body: impl FnOnce(&mut Self, &str) -> Result<Option<()>, Error>,
    ) -> Result<bool, Error> {
        let name = part.name();
        if !self.wants(part) {
            self.skip(name, NOT_ASKED);
            return Ok(true);
        }
        if !possible {
            self.skip(name, EARLIER_FAILED);
            return Ok(false);
        }
        Ok(body(self, name)?.is_some())
    }

    /// Copies and builds the tree. Checks what can be checked without running any program but
    /// chkspawn.
    fn build_plain(&mut self) -> Result<Option<InstalledSite>, Error> {
        let built = self.step("build", |session| {
            session.compile("plain").map_err(|error| match error {
                Error::Build(mut failure) => {
                    let tree = session.tree.display();
                    failure
                        .lines
                        .push(format!("(qpatch status {tree} lists everything that is missing)"));
                    Error::Build(failure)
                }
                other => other,
            })
        })?;
        let Some(site) = built else { return Ok(None) };
        self.spawn = site.spawn();
        self.cc = site.cc().to_owned();
        let has_chkspawn = targets(site.tree())?.contains("chkspawn");
        self.part(Part::Chkspawn, true, |session, name| {
            if has_chkspawn {
                return session.step(name, |_| chkspawn(&site));
            }
            session.skip(name, "the tree has none");
            Ok(None)
        })?;
        self.fd_set_holds =
            self.part(Part::FdSet, true, |session, name| session.step(name, |_| fd_sets(&site)))?;
        let runs = |part: &Part| !matches!(part, Part::Build | Part::Chkspawn | Part::FdSet);
        if self.options.only.is_empty() || self.options.only.iter().any(runs) {
            return self.step(Part::Machine.name(), |session| session.install(site));
        }
        // The step for the fortified build stands for all parts of that build.
        let parts =
            Part::ALL.iter().filter(|part| runs(part) && !Part::FORTIFY[1..].contains(part));
        for part in parts {
            self.skip(part.name(), NOT_ASKED);
        }
        Ok(None)
    }

    /// Returns the configuration that was asked for, with `cflags` after its flags.
    fn config(&self, cflags: &[&str]) -> SiteConfig {
        let asked = self.options.cflags.iter().map(String::as_str);
        SiteConfig {
            spawn: self.options.spawn,
            cc: self.options.cc.clone(),
            cflags: asked.chain(cflags.iter().copied()).map(str::to_owned).collect(),
            control: self.options.control.clone(),
        }
    }

    /// Copies and builds everything. If chkspawn refuses conf-spawn, a stand-in replaces it, so
    /// that later steps can show what it warns of. The chkspawn step reports its message.
    fn compile(&mut self, name: &str) -> Result<(Site, StepDetail), Error> {
        let site = self.scratch.site(self.tree, name, &self.config(&[]))?;
        self.compile_in(&site).map(|shown| (site, shown))
    }

    fn compile_in(&mut self, site: &Site) -> Result<StepDetail, Error> {
        self.spawn = site.spawn();
        self.cc = site.cc().to_owned();
        build::prepare(site)?;
        let rules = targets(site.tree())?;
        let mut wanted: Vec<&str> = sendrig::PROGRAMS.to_vec();
        for program in wanted.iter() {
            if !rules.contains(*program) {
                return Err(Error::disproved(
                    "the Makefile",
                    format!("a rule for {program}"),
                    "none",
                    "verify has to run this program of the tree",
                ));
            }
        }
        wanted
            .extend(sendrig::OPTIONAL_PROGRAMS.iter().filter(|program| rules.contains(**program)));
        let started = Instant::now();
        if rules.contains("chkspawn") {
            build::make(site, &["chkspawn"])?;
            if build::chkspawn(site)?.is_some() {
                build::set_chkspawn_aside(site)?;
            }
        }
        build::make(site, &wanted)?;
        let programs = wanted.len();
        let detail = format!(
            "{programs} programs in {:.1} s with \"{}\"",
            started.elapsed().as_secs_f64(),
            site.cc().to_owned()
        );
        Ok(StepDetail::new(detail).figure("programs", programs))
    }

    fn install(&mut self, site: Site) -> Result<(InstalledSite, StepDetail), Error> {
        let rules = targets(site.tree())?;
        let optional =
            sendrig::OPTIONAL_PROGRAMS.iter().filter(|program| rules.contains(**program));
        for program in sendrig::PROGRAMS.iter().chain(optional) {
            build::install(&site, program)?;
        }
        let stubs = Stubs::install(&site)?;
        let message = site.add_message(b"Subject: a message of the rig\n\nhello\n")?;
        let machine = MachineLimits::look(site.identity());
        let shown = room(&machine, site.spawn(), site.identity().changes());
        Ok((InstalledSite { site, stubs, message, machine, width: None }, shown))
    }

    fn spawners(&mut self, of: Build, ready: &mut InstalledSite) -> Result<Passed, Error> {
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
                            seen: format!("{seen}; step fd_set tells why"),
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
        ready: &mut InstalledSite,
        channel: Channel,
    ) -> Result<((), StepDetail), Error> {
        with_last_words(|errors| self.spawner_with(ready, channel, errors))
    }

    fn spawner_with(
        &mut self,
        ready: &mut InstalledSite,
        channel: Channel,
        errors: Stderr,
    ) -> Result<((), StepDetail), Error> {
        let InstalledSite { site, stubs, message, machine, width } = ready;
        let spawn = site.spawn();
        let mut spawner = Spawner::start_with(site, stubs, channel, errors)?;
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
            let done: std::collections::HashSet<u32> = first.into_iter().collect();
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
            let more = spawner_trials::refusals(&mut spawner, stubs, site, *message, some)?;
            refused.answered += more.answered;
            for note in more.notes {
                if !refused.notes.contains(&note) {
                    refused.notes.push(note);
                }
            }
            match spawner_trials::failures(&mut spawner, stubs, site, *message, some)? {
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
             starts answered, places given back",
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
        let descriptors = |deliveries: u32| 2 * u64::from(deliveries) + 5;
        if descriptors(spawn) > STOCK_FD_SETSIZE && descriptors(at_once) <= STOCK_FD_SETSIZE {
            shown.notes.push(format!(
                "no descriptor of {STOCK_FD_SETSIZE} or more was reached, so what happens there was not tried (qpatch doctor \
                 tells how to raise the limit)"
            ));
        }
        shown.notes.extend(not_tried.map(|why| format!("failed starts were not tried: {why}")));
        Ok(((), shown))
    }

    fn every_number(&mut self, ready: &mut InstalledSite) -> Result<((), StepDetail), Error> {
        let width = match ready.width {
            Some(width) => width,
            None => Spawner::start(&ready.site, &mut ready.stubs, Channel::Remote)?.width(),
        };
        let progress = &mut *self.progress;
        let sent = mail::every_number(
            &ready.site,
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
        detail.push_str(&on_each(&ready.site, sent.peak_supplemental));
        Ok(((), with_figures(detail, sent)))
    }

    fn concurrency(ready: &InstalledSite) -> Concurrency {
        let spawn = ready.site.spawn();
        let one = ready.machine.bound().map_or(spawn, |bound| bound.deliveries.min(spawn));
        let both = ready.machine.processes_left().map_or(u64::MAX, |left| left / 2);
        let remote = u64::from(one.min(MAX_CONCURRENCY)).min(both).max(1);
        let remote = u32::try_from(remote).unwrap_or(MAX_CONCURRENCY);
        Concurrency { remote, local: remote.min(1000), supplemental: remote.min(20) }
    }

    fn mail(&mut self, ready: &mut InstalledSite) -> Result<((), StepDetail), Error> {
        let concurrency = Self::concurrency(ready);
        let progress = &mut *self.progress;
        let on_progress = &mut |done, total| progress.advance(done, total);
        let sent = mail::through(
            &ready.site,
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
        detail.push_str(&on_each(&ready.site, sent.peak_supplemental));
        Ok(((), with_figures(detail, sent)))
    }

    fn restart(&mut self, ready: &mut InstalledSite) -> Result<((), StepDetail), Error> {
        let running = UNDER_WAY.min(Self::concurrency(ready).remote);
        let mut notes = Vec::new();
        for stop in [Stop::Terminate, Stop::Kill] {
            notes.extend(
                mail::restart(&ready.site, &mut ready.stubs, stop, running, &mut self.random)?
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

    fn gate(&mut self, ready: &mut InstalledSite) -> Result<((), StepDetail), Error> {
        let progress = &mut *self.progress;
        let on_progress = &mut |done, total| progress.advance(done, total);
        let room = Self::concurrency(ready).remote;
        let gated =
            gate::prove(&ready.site, &mut ready.stubs, room, &mut self.random, on_progress)?;
        let mut detail = format!(
            "{} deliveries to a domain with a limit of {}: never more than {} at once, while {} to other domains went \
             through; its places are whole after {} failed starts",
            gated.capped, gated.limit, gated.peak, gated.others, gated.failed_starts
        );
        if let Some(peak) = gated.group_peak {
            detail.push_str(&format!(
                "; a group with mail over all {} remote channels: never more than {peak} at once",
                1 + ready.site.supplemental().count
            ));
        }
        let mut shown = StepDetail::new(detail)
            .figure("limit", gated.limit as usize)
            .figure("peak", gated.peak);
        shown.notes = gated.notes;
        Ok(((), shown))
    }

    fn fork_server(&mut self, ready: &mut InstalledSite) -> Result<((), StepDetail), Error> {
        let progress = &mut *self.progress;
        let on_progress = &mut |done, total| progress.advance(done, total);
        let room = Self::concurrency(ready).remote;
        let InstalledSite { site, stubs, .. } = ready;
        let shown = match fork_server::prove(site, stubs, room, &mut self.random, on_progress)? {
            ForkServerTrial::Unavailable(why) => StepDetail::new(format!("not on this machine: {why}; each delivery is executed")),
            ForkServerTrial::Works { facts, at_once, by_server } => StepDetail::new(format!(
                "a delivery that it makes sees what an executed qmail-remote sees ({facts} facts); {at_once} at once, \
                 {by_server} deliveries by the server"
            ))
            .figure("at_once", at_once),
        };
        Ok(((), shown))
    }

    /// Repeats the spawner and mail steps with a hardened build. Each of them needs that build.
    fn fortified(&mut self, possible: bool) -> Result<(), Error> {
        let name = Part::FortifyBuild.name();
        if !Part::FORTIFY.into_iter().any(|part| self.wants(part)) {
            self.skip(name, NOT_ASKED);
            return Ok(());
        }
        if !possible {
            self.skip(name, EARLIER_FAILED);
            return Ok(());
        }
        let Some(site) = self.fortified_build(name)? else { return Ok(()) };
        let (mut ready, _) = self.install(site)?;
        let passed = self.spawners(Build::Fortified, &mut ready)?;
        self.part(Part::FortifyMail, passed.both(), |session, name| {
            session.step(name, |session| session.mail(&mut ready))
        })?;
        Ok(())
    }

    /// Builds the tree with `FORTIFY_FLAGS`. A failure counts against the patches only if the
    /// unpatched tree does not have the same errors.
    fn fortified_build(&mut self, name: &str) -> Result<Option<Site>, Error> {
        let cc = self.cc.clone();
        self.progress.begin(name);
        let started = Instant::now();
        let site = self.scratch.site(self.tree, "fortify", &self.config(&FORTIFY_FLAGS))?;
        let (site, verdict, shown) = match self.compile_in(&site) {
            Ok(shown) => (Some(site), StepVerdict::Pass, shown),
            Err(error @ Error::Interrupted(_)) => return Err(error),
            Err(Error::Build(failure)) => match self.errors_of_the_patches(&site)? {
                Some(errors) if errors.is_empty() => {
                    let flags = FORTIFY_FLAGS.join(" ");
                    let detail =
                        format!("the unpatched tree fails alike with {flags}: {}", failure.command);
                    let shown = StepDetail { notes: failure.lines, ..StepDetail::new(detail) };
                    (None, StepVerdict::Skipped, shown)
                }
                errors => {
                    let mut shown = StepDetail::new(failure.to_string());
                    let notes = errors.into_iter().flatten().take(5);
                    shown.notes.extend(
                        notes.map(|error| format!("not so in the unpatched tree: {error}")),
                    );
                    (None, StepVerdict::Fail, shown)
                }
            },
            Err(error) => (None, StepVerdict::Fail, StepDetail::new(error.to_string())),
        };
        self.cc = cc;
        self.end(name, verdict, shown, started.elapsed().as_secs_f64());
        Ok(site)
    }

    /// Returns the errors that `site` has and the unpatched tree does not, with the same conf-cc
    /// and flags. `None` if that cannot be determined.
    fn errors_of_the_patches(&mut self, site: &Site) -> Result<Option<BTreeSet<String>>, Error> {
        let errors = build::errors_of_all(site, &sendrig::PROGRAMS)?;
        let tree = Tree::open(self.tree).map_err(Error::Tree)?;
        let originals = journal::originals(&tree).map_err(Error::Tree)?;
        if errors.is_empty() || originals.is_empty() {
            return Ok(None);
        }
        let copy = self.scratch.copy(self.tree, "unpatched")?;
        let copied = Tree::open(&copy).map_err(Error::Tree)?;
        for (name, bytes) in originals.into_iter().filter(|(name, _)| name != "conf-cc") {
            let path = copied.path(&name);
            let done = match bytes {
                Some(bytes) => fs::write(&path, bytes),
                None if path.exists() => fs::remove_file(&path),
                None => Ok(()),
            };
            done.map_err(Error::file("put back", &path))?;
        }
        let mut config = self.config(&FORTIFY_FLAGS);
        config.spawn = None;
        let site = match self.scratch.site(&copy, "fortify-unpatched", &config) {
            Ok(site) => site,
            // For example, because only qpatch had set conf-spawn.
            Err(Error::Disproved(_)) => return Ok(None),
            Err(error) => return Err(error),
        };
        let unpatched = build::errors_of_all(&site, &sendrig::PROGRAMS)?;
        Ok(Some(errors.difference(&unpatched).cloned().collect()))
    }
}

/// Returns the words about supplemental channels; empty if the tree has none.
fn on_each(site: &Site, peak: usize) -> String {
    match site.supplemental().count {
        0 => String::new(),
        count => format!("; {peak} at once on each of {count} supplemental channels among them"),
    }
}

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

fn chkspawn(site: &Site) -> Result<((), StepDetail), Error> {
    let spawn = site.spawn();
    // Run the tree's own chkspawn, even if a stand-in replaced it during the build.
    match build::chkspawn(site)? {
        None => Ok(((), StepDetail::new(format!("accepts conf-spawn {spawn}")))),
        Some(said) => Err(Error::disproved(
            "chkspawn",
            format!("conf-spawn {spawn} accepted"),
            format!("{said:?}"),
            format!("make would stop here; qpatch apply --spawn {spawn} raises what it checks"),
        )),
    }
}

fn fd_sets(site: &Site) -> Result<((), StepDetail), Error> {
    let sets = fdset::measure(site)?;
    let room = sets.check(site.spawn())?;
    let files: Vec<&str> = sets.files.iter().map(|seen| seen.file.as_str()).collect();
    let detail = match room {
        Some(room) if files.contains(&"spawn.c") => {
            format!("room for {room} descriptors in each of {}", files.join(", "))
        }
        Some(room) => format!(
            "spawn.c uses no fd_set (it calls poll itself); room for {room} descriptors in {}",
            files.join(", ")
        ),
        None => "no source file uses fd_set (they call poll themselves)".to_owned(),
    };
    let mut shown = StepDetail::new(detail)
        .figure("descriptors", usize::try_from(room.unwrap_or(0)).unwrap_or(usize::MAX))
        .figure("files", files.len());
    if !sets.left_out.is_empty() {
        shown
            .notes
            .push(format!("not compiled here, so not checked: {}", sets.left_out.join(", ")));
    }
    Ok(((), shown))
}

/// Reports how many deliveries the machine has room for.
fn room(machine: &MachineLimits, spawn: u32, unprivileged: bool) -> StepDetail {
    let whom = if unprivileged { "as an unprivileged user" } else { "as the present user" };
    match machine.bound() {
        Some(DeliveryBound { deliveries, limit }) if deliveries < spawn => StepDetail::new(format!(
            "run {whom}; this machine allows {deliveries} deliveries at once, not {spawn} ({limit})"
        ))
        .figure("allowed", deliveries as usize),
        Some(DeliveryBound { deliveries, limit }) => StepDetail::new(format!(
            "run {whom}; this machine allows up to {deliveries} deliveries at once ({limit})"
        ))
        .figure("allowed", deliveries as usize),
        None => StepDetail::new(format!("run {whom}; the limits of this machine are not known")),
    }
}

/// Checks the width of delivery numbers and the announced conf-spawn before any number is sent.
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
