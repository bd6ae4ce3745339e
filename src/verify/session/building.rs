//! The first steps of a proof: build the tree, look at what was built, prepare the rig. (build, chkspawn, fd_set,
//! machine.)
#![forbid(unsafe_code)]

use std::time::Instant;

use super::steps::{InstalledSandbox, NOT_ASKED, Session, StepDetail};
use crate::verify::build;
use crate::verify::error::Error;
use crate::verify::options::Part;
use crate::verify::proofs::fdset;
use crate::verify::rig::sendrig;
use crate::verify::rig::stub::Stubs;
use crate::verify::sandbox::limits::{DeliveryBound, MachineLimits};
use crate::verify::sandbox::makefile::targets;
use crate::verify::sandbox::private_tree::Sandbox;

impl Session<'_> {
    /// Copies, builds and installs the tree: the steps build, chkspawn, fd_set and machine. `None`: the
    /// build failed, or no step is asked for that runs the programs.
    pub(super) fn build_plain(&mut self) -> Result<Option<InstalledSandbox>, Error> {
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
        let Some(sandbox) = built else { return Ok(None) };
        self.spawn = sandbox.spawn();
        self.cc = sandbox.cc().to_owned();
        let has_chkspawn = targets(sandbox.tree())?.contains("chkspawn");
        self.part(Part::Chkspawn, true, |session, name| {
            if has_chkspawn {
                return session.step(name, |_| chkspawn(&sandbox));
            }
            session.skip(name, "the tree has none");
            Ok(None)
        })?;
        self.fd_set_holds = self
            .part(Part::FdSet, true, |session, name| session.step(name, |_| fd_sets(&sandbox)))?;
        let runs = |part: &Part| !matches!(part, Part::Build | Part::Chkspawn | Part::FdSet);
        if self.options.only.is_empty() || self.options.only.iter().any(runs) {
            return self.step(Part::Machine.name(), |session| session.install(sandbox));
        }
        // The step for the fortified build stands for all parts of that build.
        let parts =
            Part::ALL.iter().filter(|part| runs(part) && !Part::FORTIFY[1..].contains(part));
        for part in parts {
            self.skip(part.name(), NOT_ASKED);
        }
        Ok(None)
    }

    /// Copies and builds everything. If chkspawn refuses conf-spawn, a stand-in replaces it, so
    /// that later steps can show what it warns of. The chkspawn step reports its message.
    fn compile(&mut self, name: &str) -> Result<(Sandbox, StepDetail), Error> {
        let sandbox = self.scratch.sandbox(self.tree, name, &self.config(&[]))?;
        self.compile_in(&sandbox).map(|shown| (sandbox, shown))
    }

    pub(super) fn compile_in(&mut self, sandbox: &Sandbox) -> Result<StepDetail, Error> {
        self.spawn = sandbox.spawn();
        self.cc = sandbox.cc().to_owned();
        build::prepare(sandbox)?;
        let rules = targets(sandbox.tree())?;
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
            build::make(sandbox, &["chkspawn"])?;
            if build::chkspawn(sandbox)?.is_some() {
                build::set_chkspawn_aside(sandbox)?;
            }
        }
        build::make(sandbox, &wanted)?;
        let programs = wanted.len();
        let detail = format!(
            "{programs} programs in {:.1} s with \"{}\"",
            started.elapsed().as_secs_f64(),
            sandbox.cc().to_owned()
        );
        Ok(StepDetail::new(detail).figure("programs", programs))
    }

    pub(super) fn install(
        &mut self,
        sandbox: Sandbox,
    ) -> Result<(InstalledSandbox, StepDetail), Error> {
        let rules = targets(sandbox.tree())?;
        let optional =
            sendrig::OPTIONAL_PROGRAMS.iter().filter(|program| rules.contains(**program));
        for program in sendrig::PROGRAMS.iter().chain(optional) {
            build::install(&sandbox, program)?;
        }
        let stubs = Stubs::install(&sandbox)?;
        let message = sandbox.add_message(b"Subject: a message of the rig\n\nhello\n")?;
        let mut machine = MachineLimits::look(sandbox.identity());
        machine.look_at_spawners(sandbox.home())?;
        let shown = machine_room(&machine, sandbox.spawn(), sandbox.identity().changes());
        Ok((InstalledSandbox { sandbox, stubs, message, machine, width: None }, shown))
    }
}

/// Runs the tree's own chkspawn.
fn chkspawn(sandbox: &Sandbox) -> Result<((), StepDetail), Error> {
    let spawn = sandbox.spawn();
    // It still runs if a stand-in replaced it during the build.
    match build::chkspawn(sandbox)? {
        None => Ok(((), StepDetail::new(format!("accepts conf-spawn {spawn}")))),
        Some(message) => Err(Error::disproved(
            "chkspawn",
            format!("conf-spawn {spawn} accepted"),
            format!("{message:?}"),
            format!("make would stop here; qpatch apply --spawn {spawn} raises what it checks"),
        )),
    }
}

/// Checks that every fd_set of the tree has room for the descriptors of a spawner.
fn fd_sets(sandbox: &Sandbox) -> Result<((), StepDetail), Error> {
    let sets = fdset::measure(sandbox)?;
    let room = sets.check(sandbox.spawn())?;
    let files: Vec<&str> = sets.files.iter().map(|size| size.file.as_str()).collect();
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
fn machine_room(machine: &MachineLimits, spawn: u32, unprivileged: bool) -> StepDetail {
    let user = if unprivileged { "as an unprivileged user" } else { "as the present user" };
    match machine.bound() {
        Some(DeliveryBound { deliveries, limit }) if deliveries < spawn => StepDetail::new(format!(
            "run {user}; this machine allows {deliveries} deliveries at once, not {spawn} ({limit})"
        ))
        .figure("allowed", deliveries as usize),
        Some(DeliveryBound { deliveries, limit }) => StepDetail::new(format!(
            "run {user}; this machine allows up to {deliveries} deliveries at once ({limit})"
        ))
        .figure("allowed", deliveries as usize),
        None => StepDetail::new(format!("run {user}; the limits of this machine are not known")),
    }
}
