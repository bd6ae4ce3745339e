//! `qpatch doctor`: whether the machine can run as many deliveries as qmail is set up for.
//!
//! doctor reads files that every user may read, reads the limits of the running daemons, and asks the compiler. It
//! changes nothing, does not need root, and reports what it could not see. Looking ([`facts`]) and judging
//! ([`checks`]) are apart: facts can come from a folder that imitates a machine, and checks are pure functions.
#![forbid(unsafe_code)]

pub mod checks;
pub mod facts;
mod finding;
pub mod host;
pub mod launch;
mod options;
pub mod process;

use std::path::{Path, PathBuf};

use crate::error::Error;

pub use finding::{CheckVerdict, DoctorReport, Finding, Fix};
pub use options::Options;

/// Returns the absolute path of the folder that the operator named as qmail's home.
///
/// # Errors
/// The folder has neither control nor queue, or cannot be looked into.
pub fn installed(home: &Path) -> Result<PathBuf, Error> {
    if !["control", "queue"].iter().any(|name| home.join(name).is_dir()) {
        return Err(Error::new(
            home.display(),
            "no qmail is installed here: it has neither control nor queue",
            "name the folder that has control and queue; before an install: qpatch doctor --concurrency N",
        ));
    }
    if home.is_absolute() {
        // Keep the path as start scripts write it, even if it is a link.
        return Ok(home.to_path_buf());
    }
    home.canonicalize().map_err(|error| Error::io(home, "look into it", &error))
}

/// Examines this machine.
pub fn examine(options: &Options) -> DoctorReport {
    let host = host::Host::this_machine();
    examine_host(&host, options)
}

/// Examines `host`, which may be an imitation.
pub fn examine_host(host: &host::Host<'_>, options: &Options) -> DoctorReport {
    let facts = facts::gather(host, options);
    let concurrency = checks::concurrency(&facts, options);
    DoctorReport {
        home: options.home.clone(),
        concurrency,
        findings: checks::all(&facts, concurrency),
    }
}
