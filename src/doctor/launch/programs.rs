//! The programs of a start script: those that set a limit and start another program, those that start another program
//! and keep the limits, and those that only name a program.
//!
//! Their options were tried with dash 0.5.12, bash 5.2, ksh93u+m, zsh 5.9, busybox 1.35, daemontools 0.76, runit 2.1.2,
//! s6 2.11.1 and util-linux 2.38 (2.41 refuses a number with a suffix). perp's runlimit and nosh follow their manuals.
#![forbid(unsafe_code)]

use super::field::Field;
use super::limits::{Above, Amount, LimitPart, LimitValue, Limited};
use super::shell::Shell;

/// What a script starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StartedProgram {
    /// qmail.
    Qmail,
    /// A supervisor, which starts the services in its folder.
    Supervisor,
}

/// A limit that a command sets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct SetLimit<'f> {
    /// What is limited.
    pub what: Limited,
    /// Which of the two limits.
    pub part: LimitPart,
    /// The new limit.
    pub amount: Amount,
    /// What happens if that is too much.
    pub above: Above,
    /// The word that has the number.
    pub field: &'f Field,
    /// The number as it is written.
    pub number: &'f str,
}

/// What comes after a word of a command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum NextStep<'f> {
    /// The shell becomes the program after this number of words.
    Exec(usize),
    /// It starts the program after this number of words.
    Pass(usize),
    /// It sets the shell's own limits.
    Ulimit,
    /// It sets limits and starts another program, or sets the limits of the shell.
    Limits {
        /// The limits.
        sets: Vec<SetLimit<'f>>,
        /// The number of its own words; the other program comes after them.
        skipped: usize,
        /// Whether it sets the limits of the shell.
        own: bool,
    },
    /// It runs the word with this index as a script.
    Text(Shell, usize),
    /// It starts none of its words.
    Mentions,
    /// It is qmail or a supervisor.
    StartedProgram(StartedProgram),
    /// Unknown: it may start one of its words.
    Other,
}

/// Commands that name programs but do not start them.
const MENTIONS: [&str; 62] = [
    "echo",
    "printf",
    "kill",
    "killall",
    "pkill",
    "pidof",
    "pgrep",
    "svc",
    "svok",
    "svstat",
    "svup",
    "sv",
    "s6-svc",
    "s6-svstat",
    "s6-svok",
    "s6-svwait",
    "ps",
    "grep",
    "egrep",
    "fgrep",
    "test",
    "[",
    "[[",
    "rm",
    "touch",
    "logger",
    "tail",
    "head",
    "cat",
    "chown",
    "chmod",
    "chgrp",
    "ls",
    "cd",
    "mkdir",
    "ln",
    "cp",
    "mv",
    "stat",
    "type",
    "which",
    "killproc",
    "pidofproc",
    "checkproc",
    "checkpid",
    "status",
    "systemctl",
    "service",
    "rc-service",
    "einfo",
    "ebegin",
    "eend",
    "eerror",
    "ewarn",
    "success",
    "failure",
    "trap",
    "sed",
    "awk",
    "alias",
    "install",
    "find",
];

/// Returns what the program `name`, given without its path, does with its arguments.
pub(super) fn next<'f>(
    name: &str,
    args: &'f [Field],
    is_first: bool,
    in_shell: bool,
) -> NextStep<'f> {
    match name {
        "exec" if in_shell => return NextStep::Exec(exec_options(args)),
        "command" | "builtin" | "time" if in_shell => return NextStep::Pass(0),
        "ulimit" if in_shell && is_first => return NextStep::Ulimit,
        "limit" | "unlimit" if in_shell && is_first => return NextStep::Ulimit,
        "softlimit" => return options(args, &SOFTLIMIT),
        "hardlimit" => return options(args, &LimitOptions { part: LimitPart::Both, ..SOFTLIMIT }),
        "s6-softlimit" => return options(args, &LimitOptions { flags: "hH", ..SOFTLIMIT }),
        "chpst" => return options(args, &CHPST),
        "runlimit" => {
            return options(
                args,
                &LimitOptions { flags: "EhV", values: "acdflmoprstF", ..SOFTLIMIT },
            );
        }
        "ulimit" if !in_shell => {
            return options(
                args,
                &LimitOptions { flags: "HS", values: "nu", part: LimitPart::Both },
            );
        }
        "prlimit" => return prlimit(args),
        "qmail-start" | "qmail-send" | "qmail-rspawn" => {
            return NextStep::StartedProgram(StartedProgram::Qmail);
        }
        "svscan" | "svscanboot" | "runsvdir" | "runsvdir-start" | "s6-svscan" | "perpd"
        | "perpboot" | "service-manager" => {
            return NextStep::StartedProgram(StartedProgram::Supervisor);
        }
        "start-stop-daemon" => {
            let stops = |field: &Field| {
                matches!(
                    field.text.as_str(),
                    "-K" | "--stop"
                        | "-T"
                        | "--status"
                        | "-H"
                        | "--help"
                        | "-V"
                        | "--version"
                        | "--signal"
                )
            };
            let own = args.iter().take_while(|field| field.text != "--");
            return if own.into_iter().any(stops) { NextStep::Mentions } else { NextStep::Other };
        }
        _ => {}
    }
    if is_first && (MENTIONS.contains(&name) || name.starts_with("log_")) {
        return NextStep::Mentions;
    }
    if let Some(shell) = Shell::named(name) {
        // The script is the first word that is not an option, after an option with a c.
        let mut has_text = false;
        for (index, field) in args.iter().enumerate() {
            match field.text.strip_prefix(['-', '+']) {
                Some(letters) if !letters.is_empty() => {
                    has_text |= !letters.starts_with('-') && letters.contains('c');
                    // csh -cf TEXT
                }
                _ if has_text => return NextStep::Text(shell, index),
                _ => return NextStep::Pass(index),
            }
        }
        return NextStep::Other;
    }
    if matches!(name, "su" | "runuser" | "setpriv" | "script")
        && let Some(index) =
            args.iter().position(|field| matches!(field.text.as_str(), "-c" | "--command"))
    {
        return NextStep::Text(Shell::Unknown, index + 1);
    }
    if matches!(name, "execlineb") && args.first().is_some_and(|field| field.text.contains('c')) {
        return NextStep::Text(Shell::Unknown, 1);
    }
    NextStep::Other
}

/// Returns the number of words that are options of exec: -a NAME, -c and -l.
fn exec_options(args: &[Field]) -> usize {
    let mut skipped = 0;
    while let Some(letters) = args.get(skipped).and_then(|field| field.text.strip_prefix('-')) {
        skipped += if letters.ends_with('a') { 2 } else { 1 };
    }
    skipped.min(args.len())
}

/// The options of a program that sets limits with options of one letter.
struct LimitOptions {
    /// The letters without a value.
    flags: &'static str,
    /// The letters with one.
    values: &'static str,
    /// Which limit it sets.
    part: LimitPart,
}

const SOFTLIMIT: LimitOptions =
    LimitOptions { flags: "", values: "acdflmoprst", part: LimitPart::Soft };
const CHPST: LimitOptions =
    LimitOptions { flags: "vVP012", values: "uUb/enlLmdopfct", part: LimitPart::Soft };

fn options<'f>(args: &'f [Field], options: &LimitOptions) -> NextStep<'f> {
    let mut sets = Vec::new();
    let mut part = options.part;
    let mut at = 0;
    while let Some(field) = args.get(at) {
        if is_unknown(field) {
            // The options come from a variable that is not known, as in Gentoo's `softlimit ${SOFTLIMIT_OPTS}`.
            sets.extend(anything(field, part, Above::Capped));
            at += 1;
            continue;
        }
        let Some(letters) = field.text.strip_prefix('-').filter(|letters| !letters.is_empty())
        else {
            break;
        };
        at += 1;
        if letters == "-" {
            break;
        }
        for (index, letter) in letters.char_indices() {
            if options.flags.contains(letter) {
                match letter {
                    'h' if options.flags == "hH" => part = LimitPart::Hard,
                    'H' if options.flags == "hH" => part = LimitPart::Both,
                    'H' => part = LimitPart::Hard,
                    'S' => part = LimitPart::Soft,
                    _ => {}
                }
                continue;
            }
            if !options.values.contains(letter) {
                // The program has no such option, so it will not start.
                return NextStep::Limits { sets, skipped: at, own: false };
            }
            let rest = &letters[index + letter.len_utf8()..];
            let (value, number) = if rest.is_empty() {
                let value = args.get(at);
                at += 1;
                (value, value.map_or("", |value| value.text.as_str()))
            } else {
                (Some(field), rest)
            };
            let what = match letter {
                'o' | 'n' if letter == 'o' || options.values == "nu" => Limited::OpenFiles,
                'p' | 'u' if letter == 'p' || options.values == "nu" => Limited::Processes,
                _ => break,
            };
            if let Some(value) = value {
                let amount = amount(number, value.known);
                sets.push(SetLimit {
                    what,
                    part,
                    amount,
                    above: Above::Capped,
                    field: value,
                    number,
                });
            }
            break;
        }
    }
    NextStep::Limits { sets, skipped: at.min(args.len()), own: false }
}

/// Returns whether a word comes completely from a variable or command that is not known.
fn is_unknown(field: &Field) -> bool {
    !field.known && field.text.starts_with(['$', '`'])
}

/// Returns the limits that an unknown word may set.
fn anything(field: &Field, part: LimitPart, above: Above) -> [SetLimit<'_>; 2] {
    [Limited::OpenFiles, Limited::Processes].map(|what| SetLimit {
        what,
        part,
        amount: Amount::Value(LimitValue::Unknown),
        above,
        field,
        number: &field.text,
    })
}

fn amount(number: &str, known: bool) -> Amount {
    match number {
        "=" | "^" | "hard" => Amount::Hard,
        "unlimited" => Amount::Value(LimitValue::Unlimited),
        digits if known => {
            Amount::Value(digits.parse().map_or(LimitValue::Unknown, LimitValue::Number))
        }
        _ => Amount::Value(LimitValue::Unknown),
    }
}

/// Parses prlimit of util-linux: `prlimit --nofile=SOFT:HARD`, `-nN`. With --pid it starts no program.
fn prlimit(args: &[Field]) -> NextStep<'_> {
    let mut sets = Vec::new();
    let mut at = 0;
    let mut own = None;
    while let Some(field) = args.get(at) {
        let Some(option) = field.text.strip_prefix('-').filter(|option| !option.is_empty()) else {
            break;
        };
        at += 1;
        if option == "-" {
            break;
        }
        let (name, value) = match option.strip_prefix('-') {
            Some(long) => {
                long.split_once('=').map_or((long, None), |(name, value)| (name, Some(value)))
            }
            None => {
                let letter = &option[..option.chars().next().map_or(0, char::len_utf8)];
                let value = &option[letter.len()..];
                (
                    letter,
                    Some(value.strip_prefix('=').unwrap_or(value))
                        .filter(|value| !value.is_empty()),
                )
            }
        };
        let what = match name {
            "nofile" | "n" => Limited::OpenFiles,
            "nproc" | "u" => Limited::Processes,
            "pid" | "p" => {
                let pid = value.or_else(|| args.get(at).map(|field| field.text.as_str()));
                own = Some(pid == Some("$$"));
                if value.is_none() {
                    at += 1;
                }
                continue;
            }
            "output" | "o" if value.is_none() => {
                at += 1;
                continue;
            }
            _ => continue,
        };
        let Some(number) = value else { continue };
        let part = |text: &str| match text {
            "unlimited" => LimitValue::Unlimited,
            // prlimit reads the digits at the start and ignores the rest: 64K is 64.
            digits if field.known => {
                let end = digits.bytes().take_while(u8::is_ascii_digit).count();
                digits[..end].parse().map_or(LimitValue::Unknown, LimitValue::Number)
            }
            _ => LimitValue::Unknown,
        };
        let mut push = |part, value, number| {
            sets.push(SetLimit {
                what,
                part,
                amount: Amount::Value(value),
                above: Above::Fails,
                field,
                number,
            });
        };
        match number.split_once(':') {
            None => push(LimitPart::Both, part(number), number),
            Some((soft, "")) => push(LimitPart::Soft, part(soft), number),
            Some(("", hard)) => push(LimitPart::Hard, part(hard), number),
            Some((soft, hard)) => {
                push(LimitPart::Both, part(hard), number);
                push(LimitPart::Soft, part(soft), number);
            }
        }
    }
    match own {
        Some(true) => NextStep::Limits { sets, skipped: at, own: true },
        // It sets the limits of another process.
        Some(false) => NextStep::Mentions,
        None => NextStep::Limits { sets, skipped: at.min(args.len()), own: false },
    }
}

/// Returns the limits that a shell's `ulimit`, or csh's `limit`, sets.
pub(super) fn ulimit(shell: Shell, args: &[Field]) -> Vec<SetLimit<'_>> {
    if let Some(field) = args.first().filter(|field| is_unknown(field)) {
        return anything(field, LimitPart::Both, Above::Fails).to_vec();
    }
    match shell {
        Shell::Csh => csh_limit(args),
        Shell::Dash | Shell::Ksh => last_letter(shell, args),
        Shell::Bash | Shell::Zsh | Shell::Busybox | Shell::Unknown => each_letter(shell, args),
    }
}

fn letter(shell: Shell, letter: char) -> Option<Limited> {
    match letter {
        'n' => Some(Limited::OpenFiles),
        'u' if shell != Shell::Dash => Some(Limited::Processes),
        'p' if shell == Shell::Dash => Some(Limited::Processes),
        _ => None,
    }
}

fn shell_amount(shell: Shell, field: &Field, number: &str) -> Option<Amount> {
    if !field.known {
        return Some(Amount::Value(LimitValue::Unknown));
    }
    Some(match (number, shell) {
        ("unlimited", Shell::Zsh) => Amount::Hard,
        ("unlimited", _) => Amount::Value(LimitValue::Unlimited),
        ("hard", Shell::Bash | Shell::Zsh | Shell::Unknown) => Amount::Hard,
        ("soft", Shell::Bash | Shell::Unknown) => Amount::Soft,
        (digits, _) if !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit()) => {
            match shell {
                // ksh evaluates an expression, in which a leading zero means octal.
                Shell::Ksh if digits.len() > 1 && digits.starts_with('0') => Amount::Value(
                    u64::from_str_radix(digits, 8).map_or(LimitValue::Unknown, LimitValue::Number),
                ),
                _ => {
                    Amount::Value(digits.parse().map_or(LimitValue::Unlimited, LimitValue::Number))
                }
            }
        }
        (_, Shell::Ksh) => Amount::Value(LimitValue::Unknown),
        // The shell reports an error and sets nothing.
        _ => return None,
    })
}

/// Parses ulimit of dash and ksh: options without values, of which the last ones count, then one value.
fn last_letter(shell: Shell, args: &[Field]) -> Vec<SetLimit<'_>> {
    let mut what = None;
    let (mut soft, mut hard) = (false, false);
    let mut at = 0;
    while let Some(letters) = args.get(at).and_then(|field| field.text.strip_prefix('-')) {
        if letters.is_empty() {
            break;
        }
        at += 1;
        if letters == "-" {
            break;
        }
        for one in letters.chars() {
            match one {
                // In dash, the last of the two counts.
                'S' => (soft, hard) = (true, hard && shell == Shell::Ksh),
                'H' => (soft, hard) = (soft && shell == Shell::Ksh, true),
                'u' if shell == Shell::Dash => return Vec::new(),
                one if one.is_ascii_digit() => return Vec::new(),
                one => what = letter(shell, one),
            }
        }
    }
    let part = match (soft, hard) {
        (true, false) => LimitPart::Soft,
        (false, true) => LimitPart::Hard,
        _ => LimitPart::Both,
    };
    match (what, &args[at..]) {
        (Some(what), [field]) => match shell_amount(shell, field, &field.text) {
            Some(amount) => {
                vec![SetLimit {
                    what,
                    part,
                    amount,
                    above: Above::Fails,
                    field,
                    number: &field.text,
                }]
            }
            None => Vec::new(),
        },
        _ => Vec::new(),
    }
}

/// Parses ulimit of bash, zsh and busybox: each letter has its own value, attached (not in zsh) or in the next word.
fn each_letter(shell: Shell, args: &[Field]) -> Vec<SetLimit<'_>> {
    let (mut soft, mut hard) = (false, false);
    let mut given = Vec::new();
    let mut at = 0;
    while let Some(field) = args.get(at) {
        let Some(letters) = field.text.strip_prefix('-') else { break };
        at += 1;
        for (index, one) in letters.char_indices() {
            match one {
                'S' => soft = true,
                'H' => hard = true,
                one => {
                    let attached = &letters[index + one.len_utf8()..];
                    let next = args.get(at).filter(|next| !next.text.starts_with('-'));
                    let (value, number) = if !attached.is_empty() {
                        if shell == Shell::Zsh {
                            return Vec::new();
                        }
                        (Some(field), attached)
                    } else {
                        at += usize::from(next.is_some());
                        (next, next.map_or("", |next| next.text.as_str()))
                    };
                    if let (Some(what), Some(value)) = (letter(shell, one), value) {
                        let Some(amount) = shell_amount(shell, value, number) else {
                            return Vec::new();
                        };
                        given.push((what, amount, value, number));
                    }
                    break;
                }
            }
        }
    }
    let part = match (soft, hard) {
        (true, false) => LimitPart::Soft,
        (false, true) => LimitPart::Hard,
        (false, false) if shell == Shell::Zsh => LimitPart::Soft,
        _ => LimitPart::Both,
    };
    // zsh lowers the soft limit together with the hard one.
    let above =
        if shell == Shell::Zsh && part == LimitPart::Hard { Above::Capped } else { Above::Fails };
    let set = |(what, amount, field, number)| SetLimit { what, part, amount, above, field, number };
    given.into_iter().map(set).collect()
}

/// Parses csh's `limit [-h] descriptors N` and `unlimit descriptors`.
fn csh_limit(args: &[Field]) -> Vec<SetLimit<'_>> {
    let hard = args.first().is_some_and(|field| field.text == "-h");
    let args = if hard { &args[1..] } else { args };
    let Some(name) = args.first() else { return Vec::new() };
    let what = match name.text.as_str() {
        "descriptors" | "openfiles" | "-n" => Limited::OpenFiles,
        "maxproc" | "-u" => Limited::Processes,
        _ => return Vec::new(),
    };
    let part = if hard { LimitPart::Both } else { LimitPart::Soft };
    let (field, amount) = match args.get(1) {
        None => (name, Amount::Hard),
        Some(field) if field.text == "unlimited" => (field, Amount::Hard),
        Some(field) if !field.known => (field, Amount::Value(LimitValue::Unknown)),
        Some(field) => (
            field,
            Amount::Value(field.text.parse().map_or(LimitValue::Unknown, LimitValue::Number)),
        ),
    };
    vec![SetLimit { what, part, amount, above: Above::Fails, field, number: &field.text }]
}
