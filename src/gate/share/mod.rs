//! `qpatch gate share`: an agent beside each qmail, so that several hosts share the limits of concurrencydomains.
//!
//! The agent reads what the gate does from its status file, asks the store (Valkey or Redis) for this host's share of
//! each limit, and writes queue/lock/gatelease, which the gate reads. The gate never opens a socket.
//!
//! - The sum of what all hosts may have in force is never above the limit, whatever is late or lost: a share grows only
//!   by what is left, and what a host gives up counts as free when its gate has confirmed that.
//! - A share holds for the time of a lease. No clock of a host matters: a lease is a duration.
//! - A host without contact has the limit divided by the number of hosts, and the others leave it that much, until it
//!   is taken for gone.
//!
//! `config` reads control/concurrencyshare, `gates` the status files and the lease. `agent` decides, without files,
//! network and clock. `store` calls `step.lua`, which divides. `run` is the loop. docs/share.md is the guide.

#[cfg(feature = "share")]
mod agent;
#[cfg(feature = "share")]
mod config;
#[cfg(feature = "share")]
mod gates;
#[cfg(feature = "share")]
mod run;
#[cfg(feature = "share")]
mod store;
#[cfg(all(test, feature = "share"))]
mod tests;

use std::path::PathBuf;

use clap::Args;

use crate::output::CommandResult;
use crate::qmail::home::QMAIL_HOME;

/// Arguments of `qpatch gate share`.
#[derive(Debug, Args)]
#[cfg_attr(not(feature = "share"), allow(dead_code))]
pub struct Share {
    /// The folder where qmail is installed
    #[arg(value_name = "QMAILHOME", default_value = QMAIL_HOME)]
    home: PathBuf,
}

impl Share {
    /// For the qmail in this folder.
    #[must_use]
    pub fn of(home: PathBuf) -> Self {
        Self { home }
    }
}

/// Runs it until it is killed.
///
/// # Errors
/// control/concurrencyshare cannot be used, or the lease cannot be written. That the store cannot be reached is only a
/// warning.
#[cfg(feature = "share")]
pub fn run(args: &Share) -> CommandResult {
    let home = crate::qmail::home::Home::with_control(&args.home)?;
    Ok(run::run(home)?)
}

/// Runs it.
///
/// # Errors
/// This build has no client of the store.
#[cfg(not(feature = "share"))]
pub fn run(_: &Share) -> CommandResult {
    Err(crate::error::Error::new(
        "gate share",
        "this qpatch was built without a client for Valkey or Redis",
        "build it with the cargo feature `share`, which is on by default",
    )
    .into())
}
