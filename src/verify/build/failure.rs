//! Explains a failed build: which lines of its output matter, the usual cause of a message, and what to do about it.
#![forbid(unsafe_code)]

use std::collections::BTreeSet;
use std::process::ExitStatus;

use crate::verify::error::{BuildFailure, Error};
use crate::verify::sandbox::private_tree::Sandbox;
use crate::verify::sandbox::process::describe;

/// The message if a source of verify does not compile: the cause may be the compiler, its flags or its C library.
const OWN_SOURCE_FAILED: &str = "a source of verify itself does not compile with conf-cc and the C library behind it; \
    its first message says why";

/// Returns the errors of compiler and linker among `lines`, without line and column numbers.
pub(super) fn errors_in<'l>(lines: impl Iterator<Item = &'l str>) -> BTreeSet<String> {
    let is_relevant = |line: &&str| {
        (line.contains("error:") || line.contains("undefined reference"))
            && !line.contains("warning:")
    };
    lines.filter(is_relevant).map(without_numbers).collect()
}

/// Turns `a.c:12:3: error: x` into `a.c: error: x`, and `a.c:(.text+0x12): undefined ...` into
/// `a.c: undefined ...`.
fn without_numbers(line: &str) -> String {
    let is_place = |part: &&str| {
        !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit())
            || part.starts_with("(.text")
    };
    let parts: Vec<&str> = line.split(':').filter(|part| !is_place(part)).collect();
    parts.join(":")
}

/// Returns the error for a failed compilation of `source`, which is one of verify's own.
pub(super) fn of_own_source(
    sandbox: &Sandbox,
    source: &str,
    status: ExitStatus,
    output: &[u8],
) -> Error {
    let output = String::from_utf8_lossy(output);
    let cause =
        not_run(&output, sandbox.asked_cc()).unwrap_or_else(|| OWN_SOURCE_FAILED.to_owned());
    Error::Build(Box::new(BuildFailure {
        command: format!("{} {source}", sandbox.cc()),
        how: describe(status),
        lines: lines_with_errors(&output),
        cause: Some(cause),
    }))
}

/// The most lines that are shown of a failed build.
const SHOWN_LINES: usize = 12;

/// Returns the lines with errors and those around a linker's complaint. If no line looks like an
/// error, returns the last lines.
pub(super) fn lines_with_errors(output: &str) -> Vec<String> {
    let is_relevant = |line: &&str| {
        let echoed = line.starts_with("./") && command_not_run(line).is_none();
        let echoed = echoed || line.contains("warning:");
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
    let mut relevant: Vec<&str> = lines.iter().copied().filter(is_relevant).collect();
    if relevant.is_empty() {
        relevant = lines[lines.len().saturating_sub(SHOWN_LINES)..].to_vec();
    }
    relevant.truncate(SHOWN_LINES);
    relevant.into_iter().map(str::to_owned).collect()
}

/// The settings of a build.
#[derive(Debug, Clone, Copy)]
pub(super) struct CompilerSettings<'s> {
    pub(super) spawn: u32,
    /// conf-cc's first line.
    pub(super) cc: &'s str,
    /// The same line as the shell expands it.
    pub(super) expanded_cc: &'s str,
    /// The compiler that the caller asked for instead of conf-cc's.
    pub(super) asked_cc: Option<&'s str>,
}

/// Returns the usual cause of a message, and the remedy.
pub(super) fn likely_cause(output: &str, settings: &CompilerSettings<'_>) -> Option<String> {
    let spawn = settings.spawn;
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
        return old_sources(output, settings);
    } else if let Some(library) = word_after(output, "cannot find -l") {
        format!("the library {library} is not installed; install its development package")
    } else if let Some(header) = missing_header(output) {
        format!(
            "the header {header} is not installed or not in conf-cc's include path; install its development package"
        )
    } else {
        return not_run(output, settings.asked_cc);
    };
    Some(cause)
}

/// Returns what to do about a compiler that refuses old C. Does not suggest a flag that conf-cc has
/// already.
fn old_sources(output: &str, settings: &CompilerSettings<'_>) -> Option<String> {
    const OLD: [&str; 6] =
        ["-ansi", "-std=c89", "-std=c90", "-std=gnu89", "-std=gnu90", "-std=iso9899:1990"];
    let words: Vec<&str> = settings.expanded_cc.split_whitespace().collect();
    // The last of several counts.
    let standard = words.iter().rev().find(|word| **word == "-ansi" || word.starts_with("-std="));
    match standard {
        None => {
            return Some(
                "the sources are older than this compiler's defaults; qpatch apply (toolchain) puts -std=gnu89 into conf-cc"
                    .to_owned(),
            );
        }
        Some(new) if !OLD.contains(new) => {
            return Some(format!(
                "the sources are older than {new}, which conf-cc has; put -std=gnu89 in its place"
            ));
        }
        Some(_) => {}
    }
    let names = made_errors(output);
    if names.is_empty() {
        return None;
    }
    let is_off = |name: &&String| {
        let (on, off) = (format!("-Werror={name}"), format!("-Wno-error={name}"));
        let last = words.iter().rev().find(|word| ["-Werror", &on, &off].contains(word));
        last.is_some_and(|last| **last == off)
    };
    let cause = match names.iter().find(|name| words.contains(&format!("-Werror={name}").as_str()))
    {
        _ if names.iter().all(|name| is_off(&name)) => {
            return Some(
                "the sources are older than what the flags make an error of; conf-cc says -Wno-error=... already, so a flag behind \
                 it, from the Makefile or ./compile, says -Werror=... again; take that one out"
                    .to_owned(),
            );
        }
        Some(name) if !settings.cc.contains(&format!("-Werror={name}")) => {
            format!("-Werror={name}, which a command or a variable in conf-cc gives")
        }
        _ => "-Werror=...".to_owned(),
    };
    let off: Vec<String> = names
        .iter()
        .filter(|name| !is_off(name))
        .map(|name| format!("-Wno-error={name}"))
        .collect();
    Some(format!(
        "the sources are older than what conf-cc's flags make an error of ({cause}); put {} at the end of conf-cc's first line",
        off.join(" ")
    ))
}

/// Returns the warnings that a flag has turned into errors, by the compilers' names for them:
/// `[-Werror=NAME]`, in clang `[-Werror,-WNAME]`.
fn made_errors(output: &str) -> BTreeSet<String> {
    let errors = output.lines().filter(|line| !line.contains("warning:"));
    let tags = errors
        .filter_map(|line| line.trim_end().strip_suffix(']')?.rsplit_once('[').map(|(_, tag)| tag));
    tags.filter_map(|tag| tag.strip_prefix("-Werror=").or_else(|| tag.strip_prefix("-Werror,-W")))
        .map(str::to_owned)
        .collect()
}

/// Returns the word that follows `before`.
fn word_after(output: &str, before: &str) -> Option<String> {
    let rest = output.split(before).nth(1)?;
    rest.split([':', ' ', '\n', '\'']).next().filter(|word| !word.is_empty()).map(str::to_owned)
}

/// Returns the header that a compiler did not find.
fn missing_header(output: &str) -> Option<String> {
    let line = output.lines().find(|line| {
        line.contains("fatal error:")
            && (line.contains("No such file") || line.contains("file not found"))
    })?;
    let message = line.split("fatal error:").nth(1)?.trim();
    message.split([':', ' ']).next().map(|name| name.trim_matches('\'').to_owned())
}

/// Returns the message that a program could not be run, and where it is named.
fn not_run(output: &str, asked_cc: Option<&str>) -> Option<String> {
    let (program, why) = output.lines().find_map(command_not_run)?;
    let asked = asked_cc.is_some_and(|asked| asked.split_whitespace().next() == Some(program));
    let named = if asked { "--cc names" } else { "conf-cc, conf-ld or the Makefile names" };
    Some(match why {
        NotRun::NotFound if asked => {
            format!("there is no {program}, which --cc names; name another compiler, or install it")
        }
        NotRun::NotFound => format!("the program {program} is not installed"),
        NotRun::NotPermitted => format!(
            "the user that verify runs as may not run {program}, which {named}, or may not enter its folder"
        ),
    })
}

/// Why a shell or make could not run a program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum NotRun {
    NotFound,
    NotPermitted,
}

/// Returns the program that a shell or make could not run, from a line such as `./load: 3: exec:
/// ccc: not found`.
fn command_not_run(line: &str) -> Option<(&str, NotRun)> {
    const ENDS: [(&str, NotRun); 5] = [
        (": not found", NotRun::NotFound),
        (": command not found", NotRun::NotFound),
        (": Command not found", NotRun::NotFound),
        (": No such file or directory", NotRun::NotFound),
        (": Permission denied", NotRun::NotPermitted),
    ];
    let (before, why) =
        ENDS.iter().find_map(|(end, why)| Some((line.trim_end().strip_suffix(end)?, *why)))?;
    let (speaker, name) = before.rsplit_once(": ")?;
    let speaker = speaker.split(':').next().unwrap_or_default();
    let speaker = speaker.rsplit('/').next().unwrap_or_default();
    // make says the same about other files, but with more words.
    let speaks = ["sh", "bash", "dash", "make", "compile", "load", "makelib"].contains(&speaker)
        || speaker.starts_with("make[");
    (speaks && !name.is_empty() && !name.contains(' ')).then_some((name, why))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_causes_are_named() {
        let tls = "/usr/bin/ld: errno: TLS definition in /lib/libc.so.6 mismatches non-TLS reference in chkspawn.o";
        let likely_cause = |output: &str, spawn| {
            super::likely_cause(output, &CompilerSettings { spawn, ..settings("cc -O2", "cc -O2") })
        };
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
    }

    fn settings<'s>(cc: &'s str, expanded_cc: &'s str) -> CompilerSettings<'s> {
        CompilerSettings { spawn: 1, cc, expanded_cc, asked_cc: None }
    }

    /// The hint for sources that are too old for the flags does not name a flag that is there
    /// already.
    #[test]
    fn what_helps_old_sources_depends_on_the_flags() {
        let name = "implicit-function-declaration";
        let gcc = format!("a.c:1:2: error: implicit declaration of function 'f' [-Werror={name}]");
        let clang =
            format!("a.c:1:2: error: implicit declaration of function 'f' [-Werror,-W{name}]");
        let by_default = format!("a.c:1:2: error: implicit declaration of function 'f' [-W{name}]");
        let (on, off) = (format!("-Werror={name}"), format!("-Wno-error={name}"));
        let hint =
            |output: &str, cc: &str, expanded: &str| likely_cause(output, &settings(cc, expanded));

        for output in [&gcc, &clang, &by_default] {
            let cc = format!("gcc {on}");
            assert!(hint(output, &cc, &cc).expect("known").contains("(toolchain) puts -std=gnu89"));
            let newer = hint(output, "gcc -std=gnu17", "gcc -std=gnu89 -std=gnu17").expect("known");
            assert!(newer.contains("older than -std=gnu17, which conf-cc has"), "{newer}");
        }
        for output in [&gcc, &clang] {
            let cc = format!("gcc {on} -std=gnu89");
            let hint = hint(output, &cc, &cc).expect("known");
            assert!(
                hint.ends_with(&format!(
                    "(-Werror=...); put {off} at the end of conf-cc's first line"
                )),
                "{hint}"
            );
        }
        let command = "cc `dpkg-buildflags --get CFLAGS` -std=gnu89";
        let said =
            hint(&gcc, command, &format!("cc -g -O2 {on} -Wformat -std=gnu89")).expect("known");
        assert!(
            said.contains(&format!(
                "({on}, which a command or a variable in conf-cc gives); put {off} at"
            )),
            "{said}"
        );
        // Before the command's flags it has no effect; after them it has.
        let before =
            hint(&gcc, &format!("cc {off} `x`"), &format!("cc {off} {on} -ansi")).expect("known");
        assert!(before.contains(&format!("put {off} at the end")), "{before}");
        let there = hint(&gcc, &format!("{command} {off}"), &format!("cc {on} -std=gnu89 {off}"))
            .expect("known");
        assert!(
            there.contains("from the Makefile or ./compile, says -Werror=... again"),
            "{there}"
        );
        // Of two warnings that are errors, one is switched off already.
        let two =
            format!("{gcc}\na.c:3:1: error: return type defaults to 'int' [-Werror=implicit-int]");
        let other = hint(&two, command, &format!("cc {on} -std=gnu89 {off} -Werror=implicit-int"))
            .expect("known");
        assert!(other.contains("put -Wno-error=implicit-int at the end"), "{other}");
        // A real error, which no flag removes.
        let own = "a.c:1:2: error: conflicting types for 'f'";
        assert_eq!(hint(own, "gcc -std=gnu89", "gcc -std=gnu89"), None);
    }

    #[test]
    fn a_program_that_cannot_be_run_is_named_with_who_names_it() {
        for (line, wanted) in [
            ("sh: 1: exec: nocc: not found", Some(("nocc", NotRun::NotFound))),
            ("./load: 3: exec: nold: not found", Some(("nold", NotRun::NotFound))),
            ("./load: line 3: exec: nold: not found", Some(("nold", NotRun::NotFound))),
            ("/bin/sh: line 1: nroff: command not found", Some(("nroff", NotRun::NotFound))),
            ("make[1]: nroff: No such file or directory", Some(("nroff", NotRun::NotFound))),
            ("sh: 1: exec: /tmp: Permission denied", Some(("/tmp", NotRun::NotPermitted))),
            ("a.c:1:2: fatal error: b.h: No such file or directory", None),
            ("/usr/bin/ld: cannot find -lx: No such file or directory", None),
            ("make: *** No rule to make target 'x'.  Stop.", None),
            ("cp: cannot stat 'x.o': No such file or directory", None),
        ] {
            assert_eq!(command_not_run(line), wanted, "{line}");
        }
        let output = "./load: 3: exec: nold: not found";
        assert_eq!(lines_with_errors(output), [output.to_owned()]);
        let cause =
            |asked_cc| likely_cause(output, &CompilerSettings { asked_cc, ..settings("cc", "cc") });
        assert_eq!(cause(None).expect("known"), "the program nold is not installed");
        let asked = cause(Some("nold -m32")).expect("known");
        assert_eq!(
            asked,
            "there is no nold, which --cc names; name another compiler, or install it"
        );
    }

    #[test]
    fn errors_are_picked_out_of_a_long_build() {
        let output = "cc -c a.c\ncc -c b.c\nb.c:1:2: error: unknown type\nmake: *** [Makefile:9: b.o] Error 1\n";
        assert_eq!(
            lines_with_errors(output),
            ["b.c:1:2: error: unknown type", "make: *** [Makefile:9: b.o] Error 1"]
                .map(str::to_owned)
        );
    }
}
