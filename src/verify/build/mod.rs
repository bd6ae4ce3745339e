//! Builds a tree: the programs of a [`Sandbox`], in its copy, with the tree's own Makefile; and verify's own C with the
//! tree's compiler. `failure` explains a build that fails.
#![forbid(unsafe_code)]

mod failure;

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs;
use std::path::PathBuf;
use std::time::Instant;

use crate::verify::error::{BuildFailure, Error};
use crate::verify::sandbox::Fsync;
use crate::verify::sandbox::private_tree::Sandbox;
use crate::verify::sandbox::process::{PATIENCE, describe, run_captured};

/// The cost of a build.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Built {
    /// Wall time in seconds.
    pub seconds: f64,
}

/// The source of the object that [`prepare`] links into every program.
const LINK_C: &str = include_str!("link.c");

/// Compiles the stand-in for qmail's users (see link.c). The tree's programs cannot be linked
/// before.
///
/// # Errors
/// conf-cc cannot compile it.
pub fn prepare(sandbox: &Sandbox) -> Result<(), Error> {
    let ids = [
        format!("-DRIG_UID={}", sandbox.identity().uid()),
        format!("-DRIG_GID={}", sandbox.identity().gid()),
    ];
    let mut options = vec!["-fno-lto".into(), "-c".into()];
    options.extend(ids.map(OsString::from));
    if sandbox.fsync() == Fsync::Real {
        options.push("-DRIG_REAL_FSYNC".into());
    }
    compile_own(sandbox, "link.c", LINK_C, "link.o", &options)
}

/// Compiles `text`, which is a source of verify itself, with the tree's compiler and flags. The source goes to the file
/// `source` of the rig's folder, the result to the file `output` there. `options` follow the flags of conf-cc.
///
/// # Errors
/// The compiler fails, or a file cannot be written.
pub(crate) fn compile_own(
    sandbox: &Sandbox,
    source: &str,
    text: &str,
    output: &str,
    options: &[OsString],
) -> Result<(), Error> {
    let path = sandbox.rig().join(source);
    sandbox.write(&path, text.as_bytes())?;
    let mut command = sandbox.compiler();
    command.arg("-w").arg(format!("-DRIG=\"{}\"", sandbox.rig().display()));
    command.arg("-o").arg(sandbox.rig().join(output)).args(options).arg(&path);
    let (status, said) = run_captured(command, sandbox.cc(), PATIENCE)?;
    if status.success() {
        Ok(())
    } else {
        Err(failure::of_own_source(sandbox, source, status, &said))
    }
}

/// Returns the options that link the fork server of a patched tree (remote_serve.c) into a program of the rig; none if
/// the tree has no fork server.
pub(crate) fn fork_server_options(sandbox: &Sandbox) -> Vec<OsString> {
    let server = sandbox.tree().join("remote_serve.c");
    if !server.is_file() {
        return Vec::new();
    }
    vec!["-DREMOTE_SERVE".into(), "-I".into(), sandbox.tree().into(), server.into()]
}

/// Runs `make` for `targets` in the copy, on all processors. If that fails, runs it again on one
/// processor: that keeps the messages in order, and shows whether only parallel make fails.
pub fn make(sandbox: &Sandbox, targets: &[&str]) -> Result<Built, Error> {
    let started = Instant::now();
    let jobs = std::thread::available_parallelism().map_or(1, std::num::NonZeroUsize::get).min(8);
    let mut last = None;
    for jobs in [jobs, 1] {
        let mut command = sandbox.command("make");
        command.arg(format!("-j{jobs}")).args(targets);
        let (status, output) = run_captured(command, "make", PATIENCE)?;
        if status.success() {
            return Ok(Built { seconds: started.elapsed().as_secs_f64() });
        }
        let output = String::from_utf8_lossy(&output).into_owned();
        last = Some(BuildFailure {
            command: format!("make {}", targets.join(" ")),
            how: describe(status),
            lines: failure::lines_with_errors(&output),
            cause: failure::likely_cause(
                &output,
                &failure::CompilerSettings {
                    spawn: sandbox.spawn(),
                    cc: sandbox.cc(),
                    expanded_cc: &sandbox.expanded_cc(),
                    asked_cc: sandbox.asked_cc(),
                },
            ),
        });
    }
    match last {
        Some(failure) => Err(Error::Build(Box::new(failure))),
        None => Ok(Built { seconds: started.elapsed().as_secs_f64() }),
    }
}

/// Builds `targets`, continues after errors (`make -k`), and returns all of them.
pub(crate) fn errors_of_all(
    sandbox: &Sandbox,
    targets: &[&str],
) -> Result<BTreeSet<String>, Error> {
    prepare(sandbox)?;
    let mut command = sandbox.command("make");
    command.arg("-k").args(targets);
    let (_, output) = run_captured(command, "make", PATIENCE)?;
    Ok(failure::errors_in(String::from_utf8_lossy(&output).lines()))
}

/// Puts a program of the copy into the home's bin/, where the other programs look for it. The file gets a second name
/// and is not copied: while this process wrote it, a child that another thread starts could keep it open for writing,
/// and then it could not be executed (ETXTBSY).
pub fn install(sandbox: &Sandbox, program: &str) -> Result<PathBuf, Error> {
    let (from, to) = (sandbox.tree().join(program), sandbox.home().join("bin").join(program));
    let _ = fs::remove_file(&to);
    fs::hard_link(&from, &to).map_err(Error::file("link", &from))?;
    Ok(to)
}

/// The name of the tree's chkspawn after a stand-in has replaced it.
const CHKSPAWN_ASIDE: &str = "rig-chkspawn";

/// Runs the copy's chkspawn, which the Makefile has built. `Ok(None)`: it accepts conf-spawn;
/// otherwise returns its message.
pub fn chkspawn(sandbox: &Sandbox) -> Result<Option<String>, Error> {
    let aside = sandbox.tree().join(CHKSPAWN_ASIDE);
    let program = if aside.exists() { aside } else { sandbox.tree().join("chkspawn") };
    let (status, output) = run_captured(sandbox.command(program), "chkspawn", PATIENCE)?;
    if status.success() {
        return Ok(None);
    }
    let text = String::from_utf8_lossy(&output);
    let message = text.split_whitespace().collect::<Vec<_>>().join(" ");
    Ok(Some(if message.is_empty() { describe(status) } else { message }))
}

/// Replaces the tree's chkspawn by one that accepts everything, so that the proof can show what it
/// warns of. [`chkspawn`] still runs the tree's own.
pub(crate) fn set_chkspawn_aside(sandbox: &Sandbox) -> Result<(), Error> {
    use std::os::unix::fs::PermissionsExt;
    let path = sandbox.tree().join("chkspawn");
    fs::rename(&path, sandbox.tree().join(CHKSPAWN_ASIDE)).map_err(Error::file("move", &path))?;
    sandbox.write(&path, b"#!/bin/sh\nexit 0\n")?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755))
        .map_err(Error::file("set the mode of", &path))
}
