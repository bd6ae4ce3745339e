//! `qpatch man`: writes the manual pages. Those of the commands are made from their help; concurrencydomains(5) and
//! concurrencyreplies(5) are written by hand.
//!
//! clap_mangen writes most of a command's page. Its SYNOPSIS lacks the values of options, and it knows no METRICS, EXIT
//! STATUS and SEE ALSO: these are written here.

#![forbid(unsafe_code)]

use std::fs;
use std::io;
use std::path::Path;

use clap::{Arg, ArgAction, Command};
use clap_mangen::Man;

use crate::error::Error;
use crate::output::CommandResult;

/// The pages of the gate's control files, which are written by hand.
const CONTROL_FILES: [(&str, &str); 2] = [
    ("concurrencydomains.5", include_str!("../../man/concurrencydomains.5")),
    ("concurrencyreplies.5", include_str!("../../man/concurrencyreplies.5")),
];

/// What the exit codes 0 and 1 mean, for commands where they mean more than "done" and "could not". 2 is always wrong
/// usage.
const EXIT_STATUS: [(&str, &str, &str); 11] = [
    (
        "qpatch-status",
        "the tree was read, with or without patches in it",
        "it is not a qmail tree, or could not be read",
    ),
    (
        "qpatch-rule-try",
        "each rule that was tried fits or is there already",
        "a rule does not fit, or the rule or the file could not be read",
    ),
    ("qpatch-verify", "every step holds", "a step fails, or could not be tried"),
    ("qpatch-demo", "every step holds", "a step fails, or could not be tried"),
    (
        "qpatch-doctor",
        "no change is needed, as far as doctor could see",
        "a change is needed, or no qmail is installed in the named QMAILHOME",
    ),
    (
        "qpatch-gate-check",
        "no errors; there may be warnings",
        "there is an error, so the gate does not use the file; or the file could not be read",
    ),
    (
        "qpatch-gate-import",
        "the table was made; what it does not express is listed in it",
        "a file could not be read, or is not what its mail server reads",
    ),
    ("qpatch-gate-show", "the status was read", "there is none, or it could not be understood"),
    (
        "qpatch-gate-serve",
        "SIGTERM or SIGINT has ended it",
        "it could not listen on the address, or there is no such QMAILHOME",
    ),
    (
        "qpatch-gate-share",
        "never: it runs until a signal ends it",
        "control/concurrencyshare or the password cannot be used, or queue/lock/gatelease cannot be written",
    ),
    (
        "qpatch-gate-sites",
        "DNS answered, and the file has its answers",
        "DNS gave no answer at all, or the file could not be written; nothing was changed",
    ),
];

/// The text before the list of metrics.
const METRICS: &str = "\
With \\fB\\-\\-format prometheus\\fR, for node_exporter's textfile folder; the folder monitoring of the sources has a \
dashboard and alert rules. \
Times are in seconds since 1970.
.PP
If a tree has several remote channels, each has a qmail\\-rspawn. Metrics of one qmail\\-rspawn have a label \\fBspawner\\fR: \
0 for queue/lock/gatestatus, 1 for gatestatus.1. The counters of keys have it too. All other metrics are sums over all spawners.
.PP
The metrics of keys have the labels \\fBkind\\fR (domain, relay, group, candidates) and \\fBkey\\fR, the name: bytes that are not printable \
ASCII are \\fB%\\fR and two hexadecimal digits, here as in every other output, and so is \\fB%\\fR. A key has series of its own if it is a \
group, a relay, or a domain with a line of its own in concurrencydomains, if it is or was at its limit, or if it is one of \
the \\fB\\-\\-busiest\\fR of the rest. The others are added up under \\fBkind=\"other\"\\fR, except their counters: such a sum would \
fall when a key gets series of its own, and a counter must not fall. To get what the others did, subtract, for example \
rate(qmail_gate_done_total[5m]) \\- sum without (kind, key, spawner) (rate(qmail_gate_key_done_total[5m])).
";

/// Writes the manual pages into the folder `dir`, or below the folder `prefix`, where it makes the folders.
///
/// # Errors
/// If a page cannot be written.
pub fn run(dir: Option<&Path>, prefix: Option<&Path>, command: Command) -> CommandResult {
    let place = dir.or(prefix).unwrap_or(Path::new("."));
    let failed = |error: io::Error| {
        let mut failed = Error::io(place, "write the manual pages", &error);
        if prefix.is_none() && error.kind() == io::ErrorKind::NotFound {
            failed.help = format!("make the folder first: mkdir -p {}", place.display());
        }
        failed
    };
    for (name, text) in pages(command).map_err(failed)? {
        let folder = match prefix {
            None => place.to_owned(),
            Some(prefix) => {
                let section = name.rsplit('.').next().unwrap_or("1");
                let folder = prefix.join(format!("share/man/man{section}"));
                fs::create_dir_all(&folder).map_err(failed)?;
                folder
            }
        };
        fs::write(folder.join(name), text).map_err(failed)?;
    }
    Ok(())
}

/// Returns the file name and the text of every page. Fails only if clap_mangen no longer writes what is expected.
fn pages(command: Command) -> io::Result<Vec<(String, String)>> {
    let mut command = command.disable_help_subcommand(true);
    command.build();
    let source = format!("qpatch {}", command.get_version().unwrap_or_default());
    let by_hand = CONTROL_FILES.iter().map(|(name, text)| (name.to_string(), text.to_string()));
    let mut pages: Vec<_> = by_hand.collect();
    add(&command, &source, &mut pages)?;
    Ok(pages)
}

fn add(command: &Command, source: &str, pages: &mut Vec<(String, String)>) -> io::Result<()> {
    for subcommand in command.get_subcommands().filter(|c| !c.is_hide_set()) {
        add(subcommand, source, pages)?;
    }
    let man = Man::new(command.clone()).source(source);
    pages.push((man.get_filename(), page(&man, command)?));
    Ok(())
}

fn page(man: &Man, command: &Command) -> io::Result<String> {
    const SYNOPSIS: &str = ".SH SYNOPSIS\n";
    const DESCRIPTION: &str = ".SH DESCRIPTION\n";
    let mut written = Vec::new();
    man.render(&mut written)?;
    let written = String::from_utf8_lossy(&written);
    let other = || io::Error::other("clap_mangen writes SYNOPSIS and DESCRIPTION no longer");
    let (head, rest) = written.split_once(SYNOPSIS).ok_or_else(other)?;
    let (_, rest) = rest.split_once(DESCRIPTION).ok_or_else(other)?;
    // The version is in the foot of the page, as in every manual page.
    let (rest, _) = rest.split_once(".SH VERSION\n").unwrap_or((rest, ""));
    let name = command.get_display_name().unwrap_or_else(|| command.get_name());
    Ok(format!(
        "{head}{SYNOPSIS}{}\n{DESCRIPTION}{rest}{}{}{}",
        synopsis(command),
        metrics(name),
        exit_status(name),
        see_also(name)
    ))
}

/// Escapes `text` for roff, which may turn a bare hyphen into another character.
fn escaped(text: &str) -> String {
    text.replace('\\', "\\e").replace('-', "\\-")
}

fn bold(text: &str) -> String {
    format!("\\fB{}\\fR", escaped(text))
}

fn italic(text: &str) -> String {
    format!("\\fI{}\\fR", escaped(text))
}

/// `qpatch apply [--spawn N] ... TREE`
fn synopsis(command: &Command) -> String {
    let mut words = vec![bold(command.get_bin_name().unwrap_or_else(|| command.get_name()))];
    let shown = || command.get_arguments().filter(|a| !a.is_hide_set());
    let (required, optional): (Vec<_>, Vec<_>) =
        shown().filter(|a| !a.is_positional()).partition(|a| a.is_required_set());
    for arg in optional.into_iter().chain(required).chain(command.get_positionals()) {
        let mut word = match arg.is_positional() {
            true => value(arg),
            false => option(arg),
        };
        let again =
            arg.get_value_delimiter().is_none() && matches!(arg.get_action(), ArgAction::Append);
        word = match (arg.is_required_set(), again) {
            (true, false) => word,
            // Not `LOG...`, which would mean several values after one option.
            (true, true) => format!("{word} [{word}]..."),
            (false, false) => format!("[{word}]"),
            (false, true) => format!("[{word}]..."),
        };
        words.push(word);
    }
    if command.has_subcommands() {
        words.push(italic("subcommand"));
    }
    words.join(" ")
}

fn option(arg: &Arg) -> String {
    let short = arg.get_short().map(|short| bold(&format!("-{short}")));
    let long = arg.get_long().map(|long| bold(&format!("--{long}")));
    let names = short.into_iter().chain(long).collect::<Vec<_>>().join("|");
    match arg.get_num_args() {
        Some(values) if values.takes_values() && values.min_values() == 0 => {
            format!("{names} [{}]", value(arg))
        }
        Some(values) if values.takes_values() => format!("{names} {}", value(arg)),
        _ => names,
    }
}

fn value(arg: &Arg) -> String {
    let names = arg.get_value_names().unwrap_or_default();
    italic(&names.iter().map(|name| name.as_str()).collect::<Vec<_>>().join(" "))
}

fn exit_status(name: &str) -> String {
    let of_its_own = EXIT_STATUS.iter().find(|(command, ..)| *command == name);
    let (done, could_not) =
        of_its_own.map_or(("done", "could not; standard error says why"), |(_, a, b)| (a, b));
    let rows = [("0", done), ("1", could_not), ("2", "wrong usage")];
    let rows = rows.map(|(code, meaning)| format!(".TP\n{}\n{meaning}\n", bold(code)));
    format!(".SH \"EXIT STATUS\"\n{}", rows.concat())
}

/// Returns the section METRICS, for `gate show`.
fn metrics(name: &str) -> String {
    if name != "qpatch-gate-show" {
        return String::new();
    }
    let rows = crate::gate::show::prometheus::metrics()
        .map(|(name, kind, help)| format!(".TP\n{} ({kind})\n{}\n", bold(&name), escaped(help)));
    format!(".SH METRICS\n{}{}", METRICS, rows.collect::<String>())
}

fn see_also(name: &str) -> String {
    let pages: &[&str] = match name {
        "qpatch" => &["concurrencydomains(5)"],
        "qpatch-gate" => &["qpatch(1)", "concurrencydomains(5)"],
        "qpatch-gate-check" => {
            &["qpatch(1)", "qpatch-gate(1)", "concurrencydomains(5)", "concurrencyreplies(5)"]
        }
        gate if gate.starts_with("qpatch-gate-") => {
            &["qpatch(1)", "qpatch-gate(1)", "concurrencydomains(5)"]
        }
        _ => &["qpatch(1)"],
    };
    format!(".SH \"SEE ALSO\"\n{}\n", escaped(&pages.join(", ")))
}
