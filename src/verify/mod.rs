//! `qpatch verify`: proves that a tree does what qpatch promises, on the operator's machine and with
//! the operator's compiler.
//!
//! A proof works on a copy of the tree in a temporary directory. It runs as an unprivileged user,
//! needs none of qmail's users, and leaves nothing behind. It builds the tree's own programs with
//! the tree's own Makefile and runs them over their own pipes. Only the far end of a delivery is a
//! stub.
//!
//! [`run`] is the whole proof. Its parts can be used alone: a [`sandbox::scratch::Scratch`] holds
//! [`sandbox::private_tree::Sandbox`]s; [`build`] compiles in one; [`rig::stub::Stubs`] are the far
//! end; [`rig::spawner::Spawner`] and [`rig::sendrig::SendRig`] are the running programs;
//! [`proofs::spawner_trials`], [`proofs::mail`] and [`proofs::gate`] test them.
#![deny(unsafe_code)]

pub mod build;
pub mod error;
mod options;
pub mod proofs;
pub mod report;
pub mod rig;
pub mod sandbox;
mod session;

use std::path::Path;
use std::time::Instant;

use crate::sys;

pub use error::{Disproof, Error};
pub use options::{FORTIFY, MAX_SPAWN, Options, Part};
pub use report::{Progress, ProofOutcome, Silent, Step, StepVerdict, Transient, Written};

/// Proves `tree`. A step that fails is part of the outcome. An error means that the proof could not
/// be carried out (not a tree, no place for a copy), or that a signal stopped it
/// ([`Error::Interrupted`]).
///
/// While it runs, SIGINT, SIGTERM and SIGHUP make it clean up and return; see [`die_of`].
pub fn run(
    tree: &Path,
    options: &Options,
    progress: &mut dyn Progress,
) -> Result<ProofOutcome, Error> {
    let started = Instant::now();
    sandbox::check_tree(tree)?;
    if let Some(spawn) = options.spawn
        && !(1..=MAX_SPAWN).contains(&spawn)
    {
        return Err(Error::disproved(
            "the conf-spawn to try",
            format!("1 to {MAX_SPAWN}"),
            spawn.to_string(),
            "",
        ));
    }
    if let Some(control) = &options.control {
        std::fs::read_dir(control).map_err(Error::file("read", control))?;
    }
    let _signals = sys::SignalGuard::install().map_err(Error::system("catch signals"))?;
    sys::adopt_orphans();
    let _limits = sandbox::limits::Raised::raise();
    let scratch =
        sandbox::scratch::Scratch::new(tree, options.scratch_parent.as_deref(), options.keep)?;
    let seed =
        options.seed.unwrap_or_else(|| sys::monotonic_ns() ^ u64::from(std::process::id()) << 32);
    let mut session = session::Session::new(&scratch, tree, options, seed, progress);
    let proved = session.run();
    let outcome = ProofOutcome {
        tree: tree.to_path_buf(),
        spawn: session.spawn(),
        cc: session.cc(),
        seed,
        steps: session.into_steps(),
        kept: (options.keep == sandbox::scratch::Keep::Yes).then(|| scratch.root().to_path_buf()),
        seconds: started.elapsed().as_secs_f64(),
    };
    scratch.close()?;
    proved.map(|()| outcome)
}

/// While it lives, SIGINT, SIGTERM and SIGHUP do not end this process. [`stopped_by`] returns the
/// signal, and functions that wait return [`Error::Interrupted`].
#[derive(Debug)]
pub struct CatchSignals {
    _guard: sys::SignalGuard,
}

impl CatchSignals {
    /// Catches signals from now on. Only one can exist: a second one waits until the first is
    /// dropped.
    pub fn install() -> Result<CatchSignals, Error> {
        let guard = sys::SignalGuard::install().map_err(Error::system("catch signals"))?;
        Ok(CatchSignals { _guard: guard })
    }
}

/// Returns the signal that asked this process to stop since [`CatchSignals`] was installed.
pub fn stopped_by() -> Option<i32> {
    sys::stop_signal()
}

/// Ends this process as `signal` would have ended it if [`run`] had not caught it. A shell or a
/// supervisor then sees the exit status that it expects.
pub fn die_of(signal: i32) {
    sys::die_of(signal);
}
