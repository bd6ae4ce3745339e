//! Trees that are built and run through the parts of `qpatch verify`.
//!
//! A whole proof asks everything of a tree. A rig builds one and asks one question of it.
#![allow(dead_code, unreachable_pub)]

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use qpatch::verify::build;
use qpatch::verify::error::Error;
use qpatch::verify::proofs::mail::{self, MailFigures};
use qpatch::verify::proofs::spawner_trials;
use qpatch::verify::rig::numbers::{self, Random};
use qpatch::verify::rig::protocol::Width;
use qpatch::verify::rig::sendrig;
use qpatch::verify::rig::spawner::{Channel, Spawner};
use qpatch::verify::rig::stub::Stubs;
use qpatch::verify::sandbox::SandboxConfig;
use qpatch::verify::sandbox::limits::{DeliveryBound, MachineLimits, Raised};
use qpatch::verify::sandbox::private_tree::{MessageId, Sandbox};
use qpatch::verify::sandbox::scratch::{Keep, Scratch};
use qpatch_gate::problem::File;
use qpatch_test_support::skip;

use crate::common::run;

/// A tree's programs, built by its own Makefile and installed in a home of their own.
pub(crate) struct Rig {
    pub(crate) stubs: Stubs,
    pub(crate) message: MessageId,
    pub(crate) sandbox: Sandbox,
    pub(crate) random: Random,
    _limits: Raised,
    _scratch: Scratch,
}

/// A conf-spawn and further words for conf-cc.
pub(crate) fn config(spawn: u32, cflags: &[&str]) -> SandboxConfig {
    SandboxConfig {
        spawn: Some(spawn),
        cc: None,
        cflags: cflags.iter().map(|flag| (*flag).to_owned()).collect(),
        ..SandboxConfig::default()
    }
}

/// A configured copy of a tree, ready for make.
pub(crate) fn sandbox(tree: &Path, config: &SandboxConfig) -> Result<(Scratch, Sandbox), Error> {
    let scratch = Scratch::new(tree, None, Keep::No)?;
    let sandbox = scratch.sandbox(tree, "sandbox", config)?;
    build::prepare(&sandbox)?;
    Ok((scratch, sandbox))
}

impl Rig {
    /// Builds all that a qmail-send needs; the tree's chkspawn has to accept conf-spawn.
    pub(crate) fn build(tree: &Path, config: &SandboxConfig) -> Result<Rig, Error> {
        Rig::of(tree, config, &sendrig::PROGRAMS)
    }

    /// Builds `programs` of the tree.
    pub(crate) fn of(tree: &Path, config: &SandboxConfig, programs: &[&str]) -> Result<Rig, Error> {
        let limits = Raised::raise();
        let (scratch, sandbox) = sandbox(tree, config)?;
        build::make(&sandbox, &[programs, &["chkspawn"]].concat())?;
        assert_eq!(build::chkspawn(&sandbox)?, None, "chkspawn");
        for program in programs {
            build::install(&sandbox, program)?;
        }
        let stubs = Stubs::install(&sandbox)?;
        let message = sandbox.add_message(b"Subject: a message of the rig\n\nhello\n")?;
        // Fixed, so that a failure repeats.
        let random = Random::new(1);
        Ok(Rig { stubs, message, sandbox, random, _limits: limits, _scratch: scratch })
    }

    /// `count` deliveries at the same time, or what this machine allows, all boundaries among their numbers; then K, Z
    /// and D at each boundary, and what has to be refused.
    pub(crate) fn crowd(&mut self, channel: Channel, count: u32) -> Result<usize, Error> {
        let spawn = self.sandbox.spawn();
        let room = MachineLimits::look(self.sandbox.identity()).bound();
        let count = match room {
            Some(DeliveryBound { deliveries, limit }) if deliveries < count => {
                skip(format_args!("{count} at once: {deliveries}, because of {limit}"));
                deliveries
            }
            _ => count,
        };
        let mut spawner = Spawner::start(&self.sandbox, &mut self.stubs, channel)?;
        assert_eq!((spawner.width(), spawner.announced()), (Width::Two, spawn));
        let numbers = numbers::choose(spawn, count, &mut self.random);
        let running = spawner_trials::at_once(
            &mut spawner,
            &mut self.stubs,
            self.message,
            &numbers,
            &mut self.random,
            &mut |_, _| {},
        )?;
        let edges = numbers::boundaries(spawn);
        spawner_trials::each_letter(&mut spawner, &mut self.stubs, self.message, &edges)?;
        spawner_trials::refusals(
            &mut spawner,
            &mut self.stubs,
            &self.sandbox,
            self.message,
            &edges,
        )?;
        spawner_trials::end_of_input(spawner, &mut self.stubs, self.message, 2)?;
        Ok(running)
    }

    /// qmail-send with every delivery number at once, the spawners played by the rig.
    pub(crate) fn every_number(&mut self) -> Result<MailFigures, Error> {
        mail::every_number(
            &self.sandbox,
            &mut self.stubs,
            Width::Two,
            &mut self.random,
            &mut |_, _| {},
        )
    }
}

/// Puts a slow qmail-remote into a rig (`remote.c`), makes the gate's files as the tree's hier.c does, and sets the
/// limits.
pub(crate) fn furnish(sandbox: &Sandbox, limits: &str, concurrency_remote: u32) {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/common/remote.c");
    let program = sandbox.rig().join("remote");
    run(Command::new("cc")
        .args(["-O2", "-o"])
        .arg(&program)
        .arg(format!("-DRIG=\"{}\"", sandbox.rig().display()))
        .arg(source))
    .ok();
    let remote = sandbox.home().join("bin/qmail-remote");
    fs::remove_file(&remote).unwrap();
    symlink(program, remote).unwrap();
    for file in [File::Status].into_iter().chain(File::KEPT).map(File::name) {
        sandbox.write(&sandbox.home().join("queue/lock").join(file), b"").unwrap();
    }
    sandbox.set_control("concurrencyremote", &format!("{concurrency_remote}\n")).unwrap();
    sandbox.set_control("concurrencydomains", limits).unwrap();
}

/// The processes whose program lies below `dir`, each with its program.
pub(crate) fn running_below(dir: &Path) -> Vec<(u32, PathBuf)> {
    let dir = dir.canonicalize().unwrap();
    let mut running = Vec::new();
    for process in std::fs::read_dir("/proc").unwrap().flatten() {
        let pid = process.file_name().to_str().and_then(|name| name.parse().ok());
        let program = std::fs::read_link(process.path().join("exe")).ok();
        running.extend(pid.zip(program.filter(|program| program.starts_with(&dir))));
    }
    running
}
