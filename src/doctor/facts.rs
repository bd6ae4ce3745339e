//! Looking: every file and program that doctor asks, read through a [`Host`], so that a test can imitate a machine in a
//! directory.
#![forbid(unsafe_code)]

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use qpatch_gate::name::Hasher;
use qpatch_gate::problem::Problems;
use qpatch_gate::table::{self, Table};

use super::Options;
use super::launch::{self, Setting};
use crate::gate::elsewhere;

/// Something that was looked for: what it is, or why it could not be seen.
pub type Fact<T> = Result<T, String>;

/// Runs a program and returns what it printed.
pub type Runner<'h> = &'h dyn Fn(&Path, &[&str], &str) -> Result<String, String>;

/// A machine to look at.
pub struct Host<'h> {
    /// What stands for `/`.
    pub root: PathBuf,
    /// Runs a program of the machine with arguments and standard input.
    pub run: Runner<'h>,
}

impl fmt::Debug for Host<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Host").field("root", &self.root).finish_non_exhaustive()
    }
}

impl Host<'static> {
    /// This machine.
    pub fn this_machine() -> Host<'static> {
        Host { root: PathBuf::from("/"), run: &run_program }
    }
}

impl Host<'_> {
    fn path(&self, path: impl AsRef<Path>) -> PathBuf {
        let path = path.as_ref();
        self.root.join(path.strip_prefix("/").unwrap_or(path))
    }

    fn read(&self, path: impl AsRef<Path>) -> Fact<String> {
        let path = path.as_ref();
        let bytes =
            fs::read(self.path(path)).map_err(|error| format!("{}: {error}", path.display()))?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    fn number(&self, path: &str) -> Fact<u64> {
        let text = self.read(path)?;
        text.trim().parse().map_err(|_| format!("{path}: {:?} is not a number", text.trim()))
    }
}

fn run_program(program: &Path, args: &[&str], input: &str) -> Result<String, String> {
    use std::io::Write as _;
    use std::process::{Command, Stdio};
    let name = program.display();
    let failed = |error: std::io::Error| format!("cannot run {name}: {error}");
    let mut child = Command::new(program)
        .args(args)
        .env("LC_ALL", "C")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .map_err(failed)?;
    if let Some(mut stdin) = child.stdin.take() {
        // A program that does not read its input is none the worse for it.
        let _ = stdin.write_all(input.as_bytes());
    }
    let output = child.wait_with_output().map_err(failed)?;
    if output.status.success() {
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    } else {
        Err(format!("{name} failed ({})", output.status))
    }
}

/// The limits of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Limits {
    /// Soft limit on descriptors; `None`: unlimited.
    pub files: Option<u64>,
    /// Hard limit on descriptors.
    pub files_hard: Option<u64>,
    /// Soft limit on processes of the user.
    pub processes: Option<u64>,
}

/// A qmail daemon that runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Daemon {
    /// Its name.
    pub name: String,
    /// Its process.
    pub pid: u32,
    /// Its limits.
    pub limits: Fact<Limits>,
    /// The program file has been replaced since it was started; `None`: cannot be seen.
    pub replaced: Option<bool>,
    /// The smallest pids.max of its control group and those above: the limit and how many there are now.
    pub unit_processes: Option<(u64, u64)>,
}

/// A C library.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Libc {
    /// glibc, with its version.
    Glibc(String),
    /// None that says its name; on Linux that is musl, whose fd_set cannot be raised.
    Nameless,
    /// That of another system.
    Other(String),
}

/// What the compiler says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Compiler {
    /// The C library that it compiles for.
    pub libc: Libc,
    /// The level of `_FORTIFY_SOURCE` that it defines by itself when optimising.
    pub fortify: u32,
}

/// Where the queue lies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// The mount point.
    pub point: String,
    /// The file system's type.
    pub kind: String,
    /// Its options.
    pub options: String,
}

/// control/concurrencydomains, as the gate understands it.
#[derive(Debug)]
pub struct Caps {
    /// What the gate would load.
    pub table: Table,
    /// What is wrong with it. With an error the gate does not use it.
    pub problems: Problems,
    /// Its lines.
    pub text: Vec<u8>,
}

impl Caps {
    /// Parses the file with the gate's own parser.
    ///
    /// # Errors
    /// No memory.
    pub fn parse(text: &[u8]) -> Fact<Caps> {
        let text = table::without_mark(text).to_vec();
        let (table, problems) = Table::parse(&text, Hasher::new(1))
            .map_err(|_| "control/concurrencydomains: out of memory".to_owned())?;
        Ok(Caps { table, problems, text })
    }
}

/// Everything that was seen.
#[derive(Debug)]
pub struct Facts {
    /// qmail's home.
    pub home: PathBuf,
    /// conf-spawn of the installed qmail.
    pub spawn: Fact<u32>,
    /// control/concurrencyremote (20 where there is none).
    pub remote: Fact<u32>,
    /// control/concurrencylocal (10 where there is none).
    pub local: Fact<u32>,
    /// control/concurrencydomains; `Ok(None)`: there is none.
    pub caps: Fact<Option<Caps>>,
    /// What is said of files that send mail to relays before control/smtproutes does.
    pub elsewhere: Vec<(String, String)>,
    /// The limits of this process, which are those of the shell that has started it.
    pub shell: Fact<Limits>,
    /// The daemons of this qmail that run.
    pub daemons: Fact<Vec<Daemon>>,
    /// The daemons that run, and perhaps belong to another qmail: names and processes.
    pub not_told: Vec<String>,
    /// Limits that are set where qmail is started.
    pub settings: Vec<Setting>,
    /// The scripts and units that start qmail.
    pub starters: Vec<String>,
    /// What could hold a limit and could not be read.
    pub unread: Vec<String>,
    /// kernel.pid_max.
    pub pid_max: Fact<u64>,
    /// kernel.threads-max.
    pub threads_max: Fact<u64>,
    /// Threads that run now.
    pub threads: Fact<u64>,
    /// Memory that is free for programs, in KiB.
    pub memory_kib: Fact<u64>,
    /// Running qmail-remote: how many, and their own memory together in KiB.
    pub remotes: Option<(u64, u64)>,
    /// First and last ephemeral port.
    pub ports: Fact<(u32, u32)>,
    /// Connection tracking: the limit and how many there are; `Ok(None)`: not in use.
    pub conntrack: Fact<Option<(u64, u64)>>,
    /// Limits of limits.conf for qmailr.
    pub limits_conf: Vec<Setting>,
    /// The compiler.
    pub compiler: Fact<Compiler>,
    /// The file system of the queue.
    pub queue: Fact<Mount>,
}

/// Looks at everything.
pub fn gather(host: &Host<'_>, options: &Options) -> Facts {
    let control = options.home.join("control");
    let Launchers { settings, starters, mut unread } = launchers(host, &options.home);
    let (daemons, not_told) = match daemons(host, &options.home) {
        Ok((ours, not_told)) => (Ok(ours), not_told),
        Err(why) => (Err(why), Vec::new()),
    };
    let mut limits_conf = Vec::new();
    for file in files_of(host, "/etc/security", "limits.conf").into_iter().chain(files_of(
        host,
        "/etc/security/limits.d",
        ".conf",
    )) {
        match host.read(&file) {
            Ok(text) => limits_conf.extend(launch::in_limits_conf(&file, &text, "qmailr")),
            Err(why) => unread.push(why),
        }
    }
    Facts {
        home: options.home.clone(),
        spawn: installed_spawn(host, &options.home),
        remote: control_number(host, &control.join("concurrencyremote"), 20),
        local: control_number(host, &control.join("concurrencylocal"), 10),
        caps: caps(host, &control.join("concurrencydomains")),
        elsewhere: elsewhere::find(&host.path(&options.home))
            .into_iter()
            .map(|file| (file.message(), file.help()))
            .collect(),
        shell: host.read("/proc/self/limits").map(|text| limits(&text)),
        daemons,
        not_told,
        settings,
        starters,
        unread,
        pid_max: host.number("/proc/sys/kernel/pid_max"),
        threads_max: host.number("/proc/sys/kernel/threads-max"),
        threads: host.read("/proc/loadavg").and_then(|text| {
            let threads = text
                .split_whitespace()
                .nth(3)
                .and_then(|pair| pair.split('/').nth(1)?.parse().ok());
            threads.ok_or_else(|| "/proc/loadavg: not understood".to_owned())
        }),
        memory_kib: host.read("/proc/meminfo").and_then(|text| {
            field_kib(&text, "MemAvailable")
                .ok_or_else(|| "/proc/meminfo: no MemAvailable".to_owned())
        }),
        remotes: remotes(host, &options.home),
        ports: host.read("/proc/sys/net/ipv4/ip_local_port_range").and_then(|text| {
            let mut numbers = text.split_whitespace().map(str::parse::<u32>);
            match (numbers.next(), numbers.next()) {
                (Some(Ok(first)), Some(Ok(last))) => Ok((first, last)),
                _ => Err("/proc/sys/net/ipv4/ip_local_port_range: not understood".to_owned()),
            }
        }),
        conntrack: conntrack(host),
        limits_conf,
        compiler: compiler(host, &options.cc),
        queue: queue_mount(host, &options.home),
    }
}

/// The installed qmail says its conf-spawn in qmail-showctl; the number is in no file.
fn installed_spawn(host: &Host<'_>, home: &Path) -> Fact<u32> {
    let program = host.path(home.join("bin/qmail-showctl"));
    let said = (host.run)(&program, &[], "")?;
    spawn_in_showctl(&said)
        .ok_or_else(|| format!("{} does not tell its silent concurrency limit", program.display()))
}

fn spawn_in_showctl(said: &str) -> Option<u32> {
    let rest = said.split("silent concurrency limit: ").nth(1)?;
    let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
    digits.parse().ok()
}

/// Whether there is such a control file; an error if there is no folder for it.
fn is_there(host: &Host<'_>, path: &Path) -> Fact<bool> {
    let control = path.parent().unwrap_or(path);
    match host.path(path).exists() {
        false if !host.path(control).is_dir() => {
            Err(format!("{}: no such directory", control.display()))
        }
        is_there => Ok(is_there),
    }
}

fn control_number(host: &Host<'_>, path: &Path, default: u32) -> Fact<u32> {
    if !is_there(host, path)? {
        return Ok(default);
    }
    let text = host.read(path)?;
    let line = text.lines().next().unwrap_or_default().trim();
    // qmail reads the digits at the start, and 0 where there are none.
    let digits: String = line.chars().take_while(char::is_ascii_digit).collect();
    digits.parse().map_err(|_| format!("{}: {line:?} is not a number", path.display()))
}

fn caps(host: &Host<'_>, path: &Path) -> Fact<Option<Caps>> {
    if !is_there(host, path)? {
        return Ok(None);
    }
    // As the gate does: opening a FIFO would wait.
    let failed = |error: std::io::Error| format!("{}: {error}", path.display());
    let metadata = fs::metadata(host.path(path)).map_err(failed)?;
    if !metadata.is_file() {
        return Err(format!("{}: not a regular file", path.display()));
    }
    if metadata.len() > table::FILE_MAX {
        return Err(format!(
            "{}: {} bytes are more than the gate reads",
            path.display(),
            metadata.len()
        ));
    }
    Caps::parse(&fs::read(host.path(path)).map_err(failed)?).map(Some)
}

/// A file in the form of /proc/PID/limits.
fn limits(text: &str) -> Limits {
    let row = |name: &str| -> (Option<u64>, Option<u64>) {
        let Some(rest) = text.lines().find_map(|line| line.strip_prefix(name)) else {
            return (None, None);
        };
        let mut values = rest.split_whitespace().map(|value| value.parse().ok());
        (values.next().flatten(), values.next().flatten())
    };
    let (files, files_hard) = row("Max open files");
    let (processes, _) = row("Max processes");
    Limits { files, files_hard, processes }
}

fn field_kib(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find(|line| line.split(':').next() == Some(name))?;
    line.split_whitespace().nth(1)?.parse().ok()
}

/// The processes of the machine by name, without those that have ended and that nobody has waited for.
fn processes(host: &Host<'_>) -> Fact<Vec<(u32, String)>> {
    let proc = host.path("/proc");
    let entries = fs::read_dir(&proc).map_err(|error| format!("/proc: {error}"))?;
    let mut found = Vec::new();
    for entry in entries.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        let stat = host.read(format!("/proc/{pid}/stat")).unwrap_or_default();
        // The name before it is in brackets, and may have any in it.
        let state = stat.rsplit_once(')').map(|(_, rest)| rest.trim_start());
        if state.is_some_and(|state| state.starts_with(['Z', 'X'])) {
            continue;
        }
        if let Ok(name) = host.read(format!("/proc/{pid}/comm")) {
            found.push((pid, name.trim().to_owned()));
        }
    }
    found.sort();
    Ok(found)
}

/// The program that a process runs, as the machine sees it; only root and its own user may know.
fn program_of(host: &Host<'_>, pid: u32) -> Option<PathBuf> {
    fs::read_link(host.path(format!("/proc/{pid}/exe"))).ok()
}

/// Whether a process belongs to the qmail in `home`: there may be another one on the machine. None: cannot be seen.
fn belongs(host: &Host<'_>, pid: u32, home: &Path) -> Option<bool> {
    let real = fs::canonicalize(host.path(home)).unwrap_or_else(|_| home.to_path_buf());
    let is_below = |path: PathBuf| path.starts_with(home) || path.starts_with(&real);
    // A package may have the programs elsewhere; all daemons work in the queue or in the home.
    let cwd = fs::read_link(host.path(format!("/proc/{pid}/cwd"))).ok();
    match (program_of(host, pid).map(is_below), cwd.map(is_below)) {
        (None, None) => None,
        (program, cwd) => Some(program == Some(true) || cwd == Some(true)),
    }
}

/// The daemons of the qmail in `home`, and the names of those that cannot be told from them.
fn daemons(host: &Host<'_>, home: &Path) -> Fact<(Vec<Daemon>, Vec<String>)> {
    let names = ["qmail-send", "qmail-lspawn", "qmail-rspawn"];
    let mut ours = Vec::new();
    let mut not_told = Vec::new();
    for (pid, name) in processes(host)? {
        match names.contains(&name.as_str()).then(|| belongs(host, pid, home)) {
            Some(Some(true)) => ours.push((pid, name)),
            Some(None) => not_told.push(format!("{name} (process {pid})")),
            Some(Some(false)) | None => {}
        }
    }
    let ours = ours
        .into_iter()
        .map(|(pid, name)| Daemon {
            name,
            pid,
            limits: host.read(format!("/proc/{pid}/limits")).map(|text| limits(&text)),
            replaced: program_of(host, pid)
                .map(|program| program.to_string_lossy().ends_with(" (deleted)")),
            unit_processes: unit_processes(host, pid),
        })
        // One that has ended meanwhile has no limits, and needs none.
        .filter(|daemon| {
            daemon.limits.is_ok() || host.path(format!("/proc/{}", daemon.pid)).exists()
        })
        .collect();
    Ok((ours, not_told))
}

fn unit_processes(host: &Host<'_>, pid: u32) -> Option<(u64, u64)> {
    let text = host.read(format!("/proc/{pid}/cgroup")).ok()?;
    let mut tightest: Option<(u64, u64)> = None;
    for line in text.lines() {
        let mut parts = line.splitn(3, ':').skip(1);
        let mount = match parts.next()? {
            "" => "/sys/fs/cgroup",
            "pids" => "/sys/fs/cgroup/pids",
            _ => continue,
        };
        let mut dir = PathBuf::from(mount).join(parts.next()?.trim_start_matches('/'));
        while dir.starts_with(mount) {
            let most = host.number(&dir.join("pids.max").display().to_string());
            let now = host.number(&dir.join("pids.current").display().to_string());
            if let (Ok(most), Ok(now)) = (most, now)
                && tightest.is_none_or(|(least, _)| most < least)
            {
                tightest = Some((most, now));
            }
            if !dir.pop() {
                break;
            }
        }
    }
    tightest
}

fn remotes(host: &Host<'_>, home: &Path) -> Option<(u64, u64)> {
    let mut count = 0;
    let mut kib = 0;
    for (pid, name) in processes(host).ok()? {
        // How much one takes is about the same, whosever it is.
        if name != "qmail-remote" || belongs(host, pid, home) == Some(false) {
            continue;
        }
        // Its own memory: the program and the libraries are there once for all.
        let status = host.read(format!("/proc/{pid}/status")).ok();
        if let Some(own) = status.and_then(|text| field_kib(&text, "RssAnon")) {
            count += 1;
            kib += own;
        }
    }
    (count > 0).then_some((count, kib))
}

fn conntrack(host: &Host<'_>) -> Fact<Option<(u64, u64)>> {
    let max = "/proc/sys/net/netfilter/nf_conntrack_max";
    if !host.path(max).exists() {
        return Ok(None);
    }
    let count = host.number("/proc/sys/net/netfilter/nf_conntrack_count").unwrap_or(0);
    Ok(Some((host.number(max)?, count)))
}

struct Launchers {
    settings: Vec<Setting>,
    starters: Vec<String>,
    unread: Vec<String>,
}

/// The names of the files in `dir` that end in `suffix`, with the directory.
fn files_of(host: &Host<'_>, dir: &str, suffix: &str) -> Vec<String> {
    let Ok(entries) = fs::read_dir(host.path(dir)) else { return Vec::new() };
    let mut files: Vec<String> = entries
        .flatten()
        .filter(|entry| !entry.path().is_dir())
        .map(|entry| format!("{dir}/{}", entry.file_name().to_string_lossy()))
        .filter(|file| file.ends_with(suffix))
        .collect();
    files.sort();
    files
}

fn dirs_of(host: &Host<'_>, dir: &str) -> Vec<String> {
    let Ok(entries) = fs::read_dir(host.path(dir)) else { return Vec::new() };
    let mut dirs: Vec<String> = entries
        .flatten()
        .filter(|entry| entry.path().is_dir())
        .map(|entry| format!("{dir}/{}", entry.file_name().to_string_lossy()))
        .collect();
    dirs.sort();
    dirs
}

/// Finds what starts qmail, where the usual guides put it.
fn launchers(host: &Host<'_>, home: &Path) -> Launchers {
    let home = home.display().to_string();
    let mut scripts = vec![format!("{home}/rc")];
    for dir in [
        &format!("{home}/supervise"),
        "/var/qmail/supervise",
        "/service",
        "/etc/service",
        "/var/service",
        "/etc/sv",
    ] {
        scripts.extend(dirs_of(host, dir).into_iter().map(|dir| format!("{dir}/run")));
    }
    scripts.extend(
        files_of(host, "/etc/init.d", "").into_iter().filter(|file| file.contains("qmail")),
    );
    scripts.push("/etc/rc.local".to_owned());
    let mut units = Vec::new();
    for dir in [
        "/etc/systemd/system",
        "/lib/systemd/system",
        "/usr/lib/systemd/system",
        "/run/systemd/system",
    ] {
        let named =
            |file: &String| file.rsplit('/').next().is_some_and(|name| name.contains("qmail"));
        units.extend(files_of(host, dir, ".service").into_iter().filter(named));
        for drop_in in dirs_of(host, dir).into_iter().filter(named) {
            units.extend(files_of(host, &drop_in, ".conf"));
        }
    }
    let mut found = Launchers { settings: Vec::new(), starters: Vec::new(), unread: Vec::new() };
    let mut seen = std::collections::BTreeSet::new();
    for (file, is_unit) in scripts
        .into_iter()
        .map(|file| (file, false))
        .chain(units.into_iter().map(|file| (file, true)))
    {
        // /service/NAME is often a link to supervise/NAME, and /lib one to /usr/lib: the same file once.
        let Ok(real) = fs::canonicalize(host.path(&file)) else { continue };
        if !seen.insert(real) {
            continue;
        }
        match host.read(&file) {
            Err(why) => found.unread.push(why),
            Ok(text) if is_unit => {
                found.settings.extend(launch::in_unit(&file, &text));
                if !file.ends_with(".conf") {
                    found.starters.push(file);
                }
            }
            Ok(text) if launch::starts_qmail(&text, &home) => {
                found.settings.extend(launch::in_script(&file, &text));
                found.starters.push(file);
            }
            Ok(_) => {}
        }
    }
    found
}

fn compiler(host: &Host<'_>, cc: &str) -> Fact<Compiler> {
    let mut words = cc.split_whitespace();
    let program = words.next().ok_or_else(|| "no compiler is named".to_owned())?;
    let mut args: Vec<&str> = words.collect();
    args.extend(["-O2", "-E", "-dM", "-x", "c", "-"]);
    // Any header of the C library makes it say its name.
    let defined = (host.run)(Path::new(program), &args, "#include <limits.h>\n")?;
    Ok(compiler_of(&defined))
}

fn compiler_of(defined: &str) -> Compiler {
    let macro_value = |name: &str| {
        defined.lines().find_map(|line| {
            let rest = line.strip_prefix("#define ")?.strip_prefix(name)?;
            rest.starts_with(' ').then(|| rest.trim().to_owned())
        })
    };
    let libc = match (macro_value("__GLIBC__"), macro_value("__GLIBC_MINOR__")) {
        (Some(major), Some(minor)) => Libc::Glibc(format!("{major}.{minor}")),
        _ if macro_value("__linux__").is_some() => Libc::Nameless,
        _ => {
            let systems = ["__FreeBSD__", "__OpenBSD__", "__NetBSD__", "__APPLE__", "__sun"];
            let system = systems.into_iter().find(|name| macro_value(name).is_some());
            Libc::Other(system.unwrap_or("an unknown system").trim_matches('_').to_owned())
        }
    };
    let fortify = macro_value("_FORTIFY_SOURCE").and_then(|value| value.parse().ok()).unwrap_or(0);
    Compiler { libc, fortify }
}

fn queue_mount(host: &Host<'_>, home: &Path) -> Fact<Mount> {
    if !host.path(home).is_dir() {
        return Err(format!("{}: no such directory", home.display()));
    }
    let queue = home.join("queue");
    // Links are followed where they can be; a queue that nobody else may enter has a path all the same.
    let real = match fs::canonicalize(host.path(&queue)) {
        Ok(real) => real.strip_prefix(&host.root).map_or(queue, |rest| Path::new("/").join(rest)),
        Err(_) => queue,
    };
    let mounts = host.read("/proc/mounts")?;
    mount_of(&mounts, &real).ok_or_else(|| "/proc/mounts does not tell".to_owned())
}

fn mount_of(mounts: &str, path: &Path) -> Option<Mount> {
    let mut best: Option<Mount> = None;
    for line in mounts.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        let [_, point, kind, options, ..] = words.as_slice() else { continue };
        // The last of those that fit best is the one on top.
        let longer = best.as_ref().is_none_or(|best| point.len() >= best.point.len());
        if path.starts_with(point) && longer {
            best = Some(Mount {
                point: (*point).to_owned(),
                kind: (*kind).to_owned(),
                options: (*options).to_owned(),
            });
        }
    }
    best
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limits_file_is_read() {
        let text = "Limit                     Soft Limit           Hard Limit           Units     \n\
                    Max processes             96364                unlimited            processes \n\
                    Max open files            1024                 20000                files     \n";
        let expected =
            Limits { files: Some(1024), files_hard: Some(20000), processes: Some(96364) };
        assert_eq!(limits(text), expected);
        assert_eq!(limits(""), Limits::default());
    }

    #[test]
    fn showctl_tells_conf_spawn() {
        assert_eq!(
            spawn_in_showctl("user-ext delimiter: -.\nsilent concurrency limit: 1000.\n"),
            Some(1000)
        );
        assert_eq!(spawn_in_showctl("nothing"), None);
    }

    #[test]
    fn the_compiler_is_understood() {
        let glibc = "#define __GLIBC__ 2\n#define __GLIBC_MINOR__ 36\n#define _FORTIFY_SOURCE 3\n#define __linux__ 1\n";
        assert_eq!(
            compiler_of(glibc),
            Compiler { libc: Libc::Glibc("2.36".to_owned()), fortify: 3 }
        );
        let musl = "#define __linux__ 1\n";
        assert_eq!(compiler_of(musl), Compiler { libc: Libc::Nameless, fortify: 0 });
        assert_eq!(compiler_of("#define __FreeBSD__ 14\n").libc, Libc::Other("FreeBSD".to_owned()));
    }

    /// Writes an imitation of a machine.
    fn machine(files: &[(&str, &str)]) -> crate::verify::scratch::Scratch {
        use crate::verify::scratch::{Keep, Scratch};
        let scratch = Scratch::new(Path::new("/"), None, Keep::No).expect("a directory");
        for (path, text) in files {
            let path = scratch.root().join(path);
            fs::create_dir_all(path.parent().expect("below the root")).expect("a directory");
            fs::write(path, text).expect("a file");
        }
        scratch
    }

    #[test]
    fn a_machine_is_looked_at_from_end_to_end() {
        let limits = "Max processes  500 500 processes\nMax open files  1024 4096 files\n";
        let scratch = machine(&[
            ("var/qmail/control/concurrencyremote", "900\n"),
            (
                "var/qmail/control/concurrencydomains",
                "# limits\n:20\nbig.example:50:big\nfree.example:\n",
            ),
            ("var/qmail/rc", "#!/bin/sh\nexec env - PATH=x qmail-start ./Mailbox\n"),
            ("var/qmail/queue/lock/x", ""),
            ("service/qmail/run", "exec softlimit -o 1024 /var/qmail/rc\n"),
            ("service/smtpd/run", "exec softlimit -o 50 qmail-smtpd\n"),
            ("etc/systemd/system/qmail.service", "[Service]\nLimitNOFILE=1024\n"),
            ("etc/systemd/system/qmail.service.d/more.conf", "[Service]\nTasksMax=512\n"),
            ("etc/systemd/system/other.service", "[Service]\nLimitNOFILE=1\n"),
            ("etc/security/limits.conf", "qmailr hard nproc 100\n"),
            ("proc/self/limits", limits),
            ("proc/12/comm", "qmail-rspawn\n"),
            ("proc/12/limits", limits),
            ("proc/12/cgroup", "0::/system.slice/qmail.service\n"),
            ("sys/fs/cgroup/system.slice/qmail.service/pids.max", "512\n"),
            ("sys/fs/cgroup/system.slice/qmail.service/pids.current", "4\n"),
            // Those of two other installations, of which one cannot be looked into.
            ("proc/14/comm", "qmail-send\n"),
            ("proc/14/limits", limits),
            ("proc/15/comm", "qmail-lspawn\n"),
            ("proc/15/limits", limits),
            // A package's, with its programs elsewhere.
            ("proc/16/comm", "qmail-send\n"),
            ("proc/16/limits", limits),
            // One that has ended, and that its parent does not wait for.
            ("proc/17/comm", "qmail-send\n"),
            ("proc/17/stat", "17 (qmail-send) Z 1 17 17 0 -1 4228108 0\n"),
            ("proc/13/comm", "qmail-remote\n"),
            ("proc/13/status", "Name: qmail-remote\nRssAnon: 640 kB\n"),
            ("proc/loadavg", "0 0 0 1/77 99\n"),
            ("proc/meminfo", "MemAvailable: 1000000 kB\n"),
            ("proc/mounts", "/dev/a / ext4 rw 0 0\n"),
            ("proc/sys/kernel/pid_max", "32768\n"),
            ("proc/sys/kernel/threads-max", "50000\n"),
            ("proc/sys/net/ipv4/ip_local_port_range", "32768\t60999\n"),
            ("proc/sys/net/netfilter/nf_conntrack_max", "65536\n"),
            ("proc/sys/net/netfilter/nf_conntrack_count", "12\n"),
        ]);
        for (link, target) in [
            ("12/exe", "/var/qmail/bin/qmail-rspawn"),
            ("14/exe", "/var/other/bin/qmail-send"),
            ("14/cwd", "/var/other/queue"),
            ("16/exe", "/usr/sbin/qmail-send"),
            ("16/cwd", "/var/qmail/queue"),
        ] {
            let link = scratch.root().join("proc").join(link);
            std::os::unix::fs::symlink(target, link).expect("a link");
        }
        let run = |program: &Path, _: &[&str], _: &str| {
            if program.ends_with("qmail-showctl") {
                Ok("silent concurrency limit: 1000.\n".to_owned())
            } else {
                Ok("#define __GLIBC__ 2\n#define __GLIBC_MINOR__ 36\n".to_owned())
            }
        };
        let host = Host { root: scratch.root().to_path_buf(), run: &run };
        let facts = gather(&host, &Options::default());
        assert_eq!((facts.spawn, facts.remote, facts.local), (Ok(1000), Ok(900), Ok(10)));
        let caps = facts.caps.expect("readable").expect("there");
        assert!(caps.problems.is_empty());
        assert_eq!((caps.table.len(), caps.table.groups().len()), (3, 1));
        assert_eq!(facts.elsewhere, []);
        let settings: Vec<(&str, Option<u64>)> =
            facts.settings.iter().map(|one| (one.file.as_str(), one.value)).collect();
        assert_eq!(
            settings,
            [
                ("/service/qmail/run", Some(1024)),
                ("/etc/systemd/system/qmail.service", Some(1024)),
                ("/etc/systemd/system/qmail.service.d/more.conf", Some(512)),
            ]
        );
        let starters = ["/var/qmail/rc", "/service/qmail/run", "/etc/systemd/system/qmail.service"];
        assert_eq!(facts.starters, starters);
        let daemons = facts.daemons.expect("seen");
        let pids: Vec<u32> = daemons.iter().map(|daemon| daemon.pid).collect();
        assert_eq!(pids, [12, 16]);
        assert_eq!(facts.not_told, ["qmail-lspawn (process 15)"]);
        assert_eq!((daemons[0].pid, daemons[0].unit_processes), (12, Some((512, 4))));
        assert_eq!(daemons[0].limits.as_ref().expect("seen").files, Some(1024));
        assert_eq!(facts.limits_conf.len(), 1);
        assert_eq!(facts.remotes, Some((1, 640)));
        assert_eq!((facts.threads, facts.memory_kib), (Ok(77), Ok(1_000_000)));
        assert_eq!(facts.ports, Ok((32768, 60999)));
        assert_eq!(facts.conntrack, Ok(Some((65536, 12))));
        assert_eq!(facts.queue.expect("mounted").kind, "ext4");
        assert_eq!(facts.unread, Vec::<String>::new());
    }

    #[test]
    fn an_empty_machine_is_nothing_but_unknown() {
        let scratch = machine(&[]);
        let run = |_: &Path, _: &[&str], _: &str| Err("cannot run".to_owned());
        let host = Host { root: scratch.root().to_path_buf(), run: &run };
        let facts = gather(&host, &Options::default());
        // `qpatch gate init` has nowhere to write to.
        let why = facts.caps.expect_err("no folder");
        assert_eq!(why, "/var/qmail/control: no such directory");
        assert!(facts.spawn.is_err() && facts.remote.is_err() && facts.daemons.is_err());
        assert!(facts.shell.is_err() && facts.queue.is_err() && facts.pid_max.is_err());
    }

    #[test]
    fn the_innermost_mount_counts() {
        let mounts =
            "/dev/a / ext4 rw 0 0\ntmpfs /var/qmail tmpfs rw 0 0\n/dev/b /var ext4 rw 0 0\n";
        let mount = mount_of(mounts, Path::new("/var/qmail/queue")).expect("mounted");
        assert_eq!((mount.point.as_str(), mount.kind.as_str()), ("/var/qmail", "tmpfs"));
        assert_eq!(mount_of("", Path::new("/")), None);
    }
}
