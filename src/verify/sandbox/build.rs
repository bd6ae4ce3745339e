//! Building the programs of a [`Site`] with the tree's own Makefile, and saying why that failed.
#![forbid(unsafe_code)]

use std::fs;
use std::path::PathBuf;
use std::time::Instant;

use crate::verify::error::{BuildFailure, Error};
use crate::verify::sandbox::process::{PATIENCE, describe, run_captured};
use crate::verify::sandbox::site::Site;

/// What is said where a source of the rig does not compile: it may be the compiler, its flags or its C library.
pub(crate) const NOT_OURS: &str = "a source of verify itself, in plain C89 and POSIX, does not compile with conf-cc and the C \
    library behind it; its first message tells why";

/// The source of the object that [`prepare`] links into every program.
const LINK_C: &str = include_str!("link.c");

/// What a build took.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Built {
    /// Wall time in seconds.
    pub seconds: f64,
}

/// Compiles what stands in for qmail's users (see link.c); the tree's programs cannot be linked before.
pub fn prepare(site: &Site) -> Result<(), Error> {
    let source = site.rig().join("link.c");
    site.write(&source, LINK_C.as_bytes())?;
    let object = site.rig().join("link.o");
    let mut command = site.compiler();
    command
        .args(["-w", "-fno-lto", "-c", "-o"])
        .arg(&object)
        .arg(format!("-DRIG=\"{}\"", site.rig().display()))
        .arg(format!("-DRIG_UID={}", site.identity().uid()))
        .arg(format!("-DRIG_GID={}", site.identity().gid()))
        .arg(&source);
    let (status, output) = run_captured(command, site.cc(), PATIENCE)?;
    if status.success() {
        return Ok(());
    }
    Err(Error::Build(Box::new(BuildFailure {
        command: format!("{} link.c", site.cc()),
        how: describe(status),
        lines: telling_lines(&String::from_utf8_lossy(&output)),
        cause: Some(NOT_OURS.to_owned()),
    })))
}

/// Runs `make` for `targets` in the copy, on all processors; if that fails once more on one, which settles whether the
/// Makefile or the tree is at fault and keeps the messages in order.
pub fn make(site: &Site, targets: &[&str]) -> Result<Built, Error> {
    let started = Instant::now();
    let jobs = std::thread::available_parallelism().map_or(1, std::num::NonZeroUsize::get).min(8);
    let mut last = None;
    for jobs in [jobs, 1] {
        let mut command = site.command("make");
        command.arg(format!("-j{jobs}")).args(targets);
        let (status, output) = run_captured(command, "make", PATIENCE)?;
        if status.success() {
            return Ok(Built { seconds: started.elapsed().as_secs_f64() });
        }
        let output = String::from_utf8_lossy(&output).into_owned();
        last = Some(BuildFailure {
            command: format!("make {}", targets.join(" ")),
            how: describe(status),
            lines: telling_lines(&output),
            cause: likely_cause(&output, site.spawn(), site.cc()),
        });
    }
    match last {
        Some(failure) => Err(Error::Build(Box::new(failure))),
        None => Ok(Built { seconds: started.elapsed().as_secs_f64() }),
    }
}

/// Puts a program of the copy into the home's bin/, where the others look for it.
pub fn install(site: &Site, program: &str) -> Result<PathBuf, Error> {
    let (from, to) = (site.tree().join(program), site.home().join("bin").join(program));
    let _ = fs::remove_file(&to);
    fs::copy(&from, &to).map_err(Error::file("copy", &from))?;
    site.identity().give(&to)?;
    Ok(to)
}

/// Where the tree's chkspawn is kept when another one takes its place.
const CHKSPAWN_ASIDE: &str = "rig-chkspawn";

/// Runs the copy's chkspawn, which the Makefile has built. `Ok(None)`: it accepts conf-spawn; else what it says.
pub fn chkspawn(site: &Site) -> Result<Option<String>, Error> {
    let aside = site.tree().join(CHKSPAWN_ASIDE);
    let program = if aside.exists() { aside } else { site.tree().join("chkspawn") };
    let (status, output) = run_captured(site.command(program), "chkspawn", PATIENCE)?;
    if status.success() {
        return Ok(None);
    }
    let text = String::from_utf8_lossy(&output);
    let said = text.split_whitespace().collect::<Vec<_>>().join(" ");
    Ok(Some(if said.is_empty() { describe(status) } else { said }))
}

/// Puts a chkspawn that accepts anything in place of the tree's, so that what it warns of can be shown. [`chkspawn`]
/// still runs the tree's.
pub(crate) fn set_chkspawn_aside(site: &Site) -> Result<(), Error> {
    use std::os::unix::fs::PermissionsExt;
    let path = site.tree().join("chkspawn");
    fs::rename(&path, site.tree().join(CHKSPAWN_ASIDE)).map_err(Error::file("move", &path))?;
    site.write(&path, b"#!/bin/sh\nexit 0\n")?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755))
        .map_err(Error::file("set the mode of", &path))
}

/// At most this many lines of a failed build are shown.
const SHOWN_LINES: usize = 12;

/// The lines with errors and what surrounds a linker's complaint; the last ones where nothing looks like an error.
pub(crate) fn telling_lines(output: &str) -> Vec<String> {
    let tells = |line: &&str| {
        let echoed = line.starts_with("./") || line.contains("warning:");
        let lower = line.to_ascii_lowercase();
        let words = [
            "error:",
            "error ",
            "undefined",
            "mismatch",
            "cannot find",
            "no such file",
            "oops",
            "insist",
            "no rule to make",
            "not found",
        ];
        !echoed && words.iter().any(|word| lower.contains(word))
    };
    let lines: Vec<&str> = output.lines().filter(|line| !line.trim().is_empty()).collect();
    let mut telling: Vec<&str> = lines.iter().copied().filter(tells).collect();
    if telling.is_empty() {
        telling = lines[lines.len().saturating_sub(SHOWN_LINES)..].to_vec();
    }
    telling.truncate(SHOWN_LINES);
    telling.into_iter().map(str::to_owned).collect()
}

/// What usually is behind a message, and what helps.
fn likely_cause(output: &str, spawn: u32, cc: &str) -> Option<String> {
    let has =
        |text: &str| output.lines().any(|line| line.contains(text) && !line.contains("warning:"));
    let cause = if has("TLS definition") && has("errno") || has("undefined reference to `errno'") {
        "the tree declares \"extern int errno\", which has not linked since glibc 2.3; qpatch apply (toolchain) includes \
         <errno.h> instead"
            .to_owned()
    } else if has("Oops. You have set conf-spawn") {
        format!(
            "the tree's chkspawn refuses conf-spawn {spawn}; qpatch apply --spawn {spawn} raises its ceiling"
        )
    } else if has("hidden limit") {
        format!(
            "the C library's FD_SETSIZE is too small for conf-spawn {spawn}; qpatch apply (fd-setsize) raises it"
        )
    } else if has("bits/types.h") {
        "the tree includes bits/types.h, which only glibc has; qpatch apply (fd-setsize) makes a select.h that does without it \
         elsewhere (musl)"
            .to_owned()
    } else if has("gate.a(") || has("_dl_find_object") {
        "gate.a is probably made for another C library than that of the tree's compiler; use a qpatch that was itself built \
         for that one, or qpatch apply --no-gate"
            .to_owned()
    } else if has("-static-libgcc") && (has("invalid option") || has("unknown option")) {
        "this linker cannot link the gate's library (gate.a, with the options in gate.lib); put gcc or clang into conf-ld, or qpatch \
         apply --no-gate"
            .to_owned()
    } else if has("implicit declaration of function")
        || has("implicit-function-declaration")
        || has("return-mismatch")
        || has("implicit-int")
        || has("return type of 'main' is not 'int'")
        || has("'main' must return 'int'")
        || has("too many arguments to function")
        || has("conflicting types for")
    {
        match cc.contains("-std=gnu89") || cc.contains("-ansi") {
            true => "the sources are older than what conf-cc's flags make an error of (-Werror=...); take those flags out, or \
                     add -Wno-error=implicit-function-declaration behind them"
                .to_owned(),
            false => "the sources are older than this compiler's defaults; qpatch apply (toolchain) puts -std=gnu89 into conf-cc"
                .to_owned(),
        }
    } else if let Some(library) = word_after(output, "cannot find -l") {
        format!("the library {library} is not installed; install its development package")
    } else if let Some(header) = missing_header(output) {
        format!(
            "the header {header} is not installed or not in conf-cc's include path; install its development package"
        )
    } else if let Some(command) = missing_command(output) {
        format!("the program {command} is not installed")
    } else {
        return None;
    };
    Some(cause)
}

fn word_after(output: &str, before: &str) -> Option<String> {
    let rest = output.split(before).nth(1)?;
    rest.split([':', ' ', '\n', '\'']).next().filter(|word| !word.is_empty()).map(str::to_owned)
}

fn missing_header(output: &str) -> Option<String> {
    let line = output.lines().find(|line| {
        line.contains("fatal error:")
            && (line.contains("No such file") || line.contains("file not found"))
    })?;
    let said = line.split("fatal error:").nth(1)?.trim();
    said.split([':', ' ']).next().map(|name| name.trim_matches('\'').to_owned())
}

fn missing_command(output: &str) -> Option<String> {
    let line = output.lines().find(|line| line.contains("not found") && line.contains("sh"))?;
    let before =
        line.split(": not found").next().or_else(|| line.split(": command not found").next())?;
    before
        .rsplit(':')
        .next()
        .map(|name| name.trim().to_owned())
        .filter(|name| !name.is_empty() && !name.contains(' '))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_causes_are_named() {
        let tls = "/usr/bin/ld: errno: TLS definition in /lib/libc.so.6 mismatches non-TLS reference in chkspawn.o";
        let likely_cause = |output: &str, spawn| super::likely_cause(output, spawn, "cc -O2");
        assert!(likely_cause(tls, 1000).expect("known").contains("extern int errno"));
        let oops = "Oops. You have set conf-spawn higher than 255.";
        assert!(likely_cause(oops, 1000).expect("known").contains("--spawn 1000"));
        let header = "dkim.c:3:10: fatal error: openssl/evp.h: No such file or directory";
        assert!(likely_cause(header, 1).expect("known").contains("openssl/evp.h"));
        let library = "/usr/bin/ld: cannot find -lldap: No such file or directory";
        assert!(likely_cause(library, 1).expect("known").contains("library ldap"));
        let not_glibc = "select.h:20:10: fatal error: bits/types.h: No such file or directory";
        assert!(likely_cause(not_glibc, 1).expect("known").contains("which only glibc has"));
        let of_glibc = "/usr/bin/ld: gate.a(gate.0): in function `x':\n(.text+0x1902): undefined reference to \
                        `_dl_find_object'";
        assert!(likely_cause(of_glibc, 1).expect("known").contains("--no-gate"));
        assert_eq!(likely_cause("make: *** [Makefile:1: x] Error 1", 1), None);
        let tcc = "tcc: error: invalid option -- '-static-libgcc'";
        assert!(likely_cause(tcc, 1).expect("known").contains("put gcc or clang into conf-ld"));
        let implicit = "a.c:1:2: error: implicit declaration of function 'f' [-Werror=implicit-function-declaration]";
        assert!(likely_cause(implicit, 1).expect("known").contains("(toolchain) puts -std=gnu89"));
        let there = super::likely_cause(
            implicit,
            1,
            "gcc -Werror=implicit-function-declaration -std=gnu89",
        );
        assert!(there.expect("known").contains("add -Wno-error=implicit-function-declaration"));
    }

    #[test]
    fn errors_are_picked_out_of_a_long_build() {
        let output = "cc -c a.c\ncc -c b.c\nb.c:1:2: error: unknown type\nmake: *** [Makefile:9: b.o] Error 1\n";
        assert_eq!(
            telling_lines(output),
            ["b.c:1:2: error: unknown type", "make: *** [Makefile:9: b.o] Error 1"]
                .map(str::to_owned)
        );
    }
}
