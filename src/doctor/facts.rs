//! Gathers everything that doctor wants to know of the machine. It reads through a [`Host`], so that a test can
//! imitate a machine in a folder.
#![forbid(unsafe_code)]

use std::io;
use std::path::{Path, PathBuf};

use memchr::memmem;
use qpatch_gate::name::Hasher;
use qpatch_gate::problem::{Kind, Problems};
use qpatch_gate::status::InForce;
use qpatch_gate::table::{self, Table};
use qpatch_gate_status::Status;

use super::host::{Fact, Host};
use super::launch::conf;
use super::launch::limits::Setting;
use super::launch::{self, Launch};
use super::options::Options;
use super::process::{self, Daemons, ProcessLimits, RemoteMemory, field_kib};
use crate::patches::{BIND_NOPORT_MARK, descriptors_each};
use crate::qmail::control::{leading_number, read_file};
use crate::qmail::relay_files;
use crate::qmail::remote_status::RemoteStatus;

/// A C library.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Libc {
    /// glibc, with its version.
    Glibc(String),
    /// One that does not define its name. On Linux that is musl, whose fd_set has a fixed size.
    Nameless,
    /// The C library of another system.
    Other(String),
}

/// What the compiler defines.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Compiler {
    /// The C library that it compiles for.
    pub libc: Libc,
    /// The level of `_FORTIFY_SOURCE` that it defines by itself when optimising.
    pub fortify: u32,
}

/// The file system of the queue.
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
pub struct DomainLimits {
    /// What the gate would load.
    pub table: Table,
    /// Its errors and warnings. The gate does not use a file with errors.
    pub problems: Problems,
    /// Its lines.
    pub text: Vec<u8>,
}

impl DomainLimits {
    /// Parses the file with the gate's own parser.
    ///
    /// # Errors
    /// No memory.
    pub fn parse(text: &[u8]) -> Fact<DomainLimits> {
        let text = table::without_mark(text).to_vec();
        let (table, problems) = Table::parse(&text, Hasher::new(1))
            .map_err(|_| "control/concurrencydomains: out of memory".to_owned())?;
        Ok(DomainLimits { table, problems, text })
    }
}

/// All facts.
#[derive(Debug)]
pub struct Facts {
    /// qmail's home.
    pub home: PathBuf,
    /// conf-spawn of the installed qmail.
    pub spawn: Fact<u32>,
    /// control/concurrencyremote; 20 if there is no such file.
    pub remote: Fact<u32>,
    /// control/concurrencylocal; 10 if there is no such file.
    pub local: Fact<u32>,
    /// control/concurrencydomains; `Ok(None)` if there is no such file.
    pub caps: Fact<Option<DomainLimits>>,
    /// Which limits the running gate has in force, if its status file says so.
    pub in_force: Option<InForce>,
    /// Messages, each with help, about files that send mail to relays before control/smtproutes does.
    pub relay_warnings: Vec<(String, String)>,
    /// The first line of control/remoteserver, if there is such a file.
    pub remote_server: Option<String>,
    /// How the running qmail-rspawns start qmail-remote.
    pub starts: Vec<RemoteStatus>,
    /// The limits of this process, which are those of the shell that started it.
    pub shell: Fact<ProcessLimits>,
    /// The running daemons.
    pub daemons: Fact<Daemons>,
    /// What starts qmail.
    pub launch: Launch,
    /// kernel.pid_max.
    pub pid_max: Fact<u64>,
    /// kernel.threads-max.
    pub threads_max: Fact<u64>,
    /// Threads that run now.
    pub threads: Fact<u64>,
    /// Memory that is free for programs, in KiB.
    pub memory_kib: Fact<u64>,
    /// The memory of the running qmail-remotes.
    pub remotes: Option<RemoteMemory>,
    /// The pages that the pipes of one user may have before new pipes are small (fs.pipe-user-pages-soft), and the most
    /// pages (-hard); 0: no limit.
    pub pipe_pages: (Fact<u64>, Fact<u64>),
    /// Descriptors that a spawner has for each delivery; the more of both spawners. Two if they cannot be read.
    pub files_each: u64,
    /// Control files that give outgoing connections an address of the machine.
    pub outgoing: Vec<String>,
    /// Whether qmail-remote was built with the patch outgoing-ports. Only looked at if there are such files.
    pub takes_ports_late: Fact<bool>,
    /// The first and the last ephemeral port.
    pub ports: Fact<(u32, u32)>,
    /// Connection tracking: the limit, and the connections now; `Ok(None)`: not in use.
    pub conntrack: Fact<Option<(u64, u64)>>,
    /// Limits of limits.conf for qmailr.
    pub limits_conf: Vec<Setting>,
    /// The compiler.
    pub compiler: Fact<Compiler>,
    /// The file system of the queue.
    pub queue: Fact<Mount>,
}

/// Gathers all facts.
pub fn gather(host: &Host<'_>, options: &Options) -> Facts {
    let control = options.home.join("control");
    let mut launch = launch::find(host, &options.home);
    let mut limits_conf = Vec::new();
    let confs = host.files_of("/etc/security", "limits.conf").into_iter();
    for file in confs.chain(host.files_of("/etc/security/limits.d", ".conf")) {
        match host.read(&file) {
            Ok(text) => limits_conf.extend(conf::limits(&file, &text, "qmailr")),
            Err(why) => launch.unread.push(why),
        }
    }
    let outgoing = outgoing(host, &options.home);
    Facts {
        home: options.home.clone(),
        spawn: installed_spawn(host, &options.home),
        remote: control_number(host, &control.join("concurrencyremote"), 20),
        local: control_number(host, &control.join("concurrencylocal"), 10),
        caps: caps(host, &control.join("concurrencydomains")),
        in_force: in_force(host, &options.home.join("queue/lock/gatestatus")),
        relay_warnings: relay_files::find(&host.path(&options.home))
            .into_iter()
            .map(|file| (file.message(), file.help()))
            .collect(),
        remote_server: host
            .read(control.join("remoteserver"))
            .ok()
            .map(|text| text.lines().next().unwrap_or_default().to_owned()),
        starts: RemoteStatus::running(&host.path(&options.home)),
        shell: host.read("/proc/self/limits").map(|text| process::limits(&text)),
        daemons: process::daemons(host, &options.home),
        launch,
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
        remotes: process::remotes(host, &options.home),
        pipe_pages: (
            host.number("/proc/sys/fs/pipe-user-pages-soft"),
            host.number("/proc/sys/fs/pipe-user-pages-hard"),
        ),
        files_each: ["bin/qmail-lspawn", "bin/qmail-rspawn"]
            .map(|name| host.read_bytes(options.home.join(name)))
            .iter()
            .map(|program| program.as_ref().map_or(2, |program| descriptors_each(program)))
            .max()
            .unwrap_or(2),
        takes_ports_late: match outgoing.as_slice() {
            [] => Ok(false),
            _ => host
                .read_bytes(options.home.join("bin/qmail-remote"))
                .map(|program| memmem::find(&program, BIND_NOPORT_MARK).is_some()),
        },
        outgoing,
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

/// Returns conf-spawn of the installed qmail. It is in no file, but qmail-showctl prints it.
fn installed_spawn(host: &Host<'_>, home: &Path) -> Fact<u32> {
    let program = host.path(home.join("bin/qmail-showctl"));
    let said = (host.run)(&program, &[], "")?;
    spawn_in_showctl(&said)
        .ok_or_else(|| format!("{} does not print its silent concurrency limit", program.display()))
}

fn spawn_in_showctl(said: &str) -> Option<u32> {
    let rest = said.split("silent concurrency limit: ").nth(1)?;
    let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
    digits.parse().ok()
}

/// Returns whether a control file exists.
///
/// # Errors
/// Its folder does not exist.
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
    leading_number(text.as_bytes()).ok_or_else(|| {
        let line = text.lines().next().unwrap_or_default().trim();
        format!("{}: {line:?} is not a number", path.display())
    })
}

/// Returns which limits the gate has in force. The first spawner's status is enough, because all read the same files.
fn in_force(host: &Host<'_>, path: &Path) -> Option<InForce> {
    let status = Status::parse(&host.read_bytes(path).ok()?).ok()?;
    Some(status.in_force)
}

fn caps(host: &Host<'_>, path: &Path) -> Fact<Option<DomainLimits>> {
    if !is_there(host, path)? {
        return Ok(None);
    }
    let at = path.display();
    match read_file(&host.path(path), table::FILE_MAX) {
        Ok(None) => Ok(None),
        Ok(Some((_, text))) => DomainLimits::parse(&text).map(Some),
        Err(Kind::NotRegular) => Err(format!("{at}: not a regular file")),
        Err(Kind::TooBig(bytes, _)) => {
            Err(format!("{at}: {bytes} bytes are more than the gate reads"))
        }
        Err(Kind::Unreadable(number)) => {
            Err(format!("{at}: {}", io::Error::from_raw_os_error(number)))
        }
        Err(kind) => Err(format!("{at}: {kind}")),
    }
}

/// Control files of the patches that bind an outgoing connection to an address of the machine.
const OUTGOING: [&str; 8] = [
    "outgoingip",
    "outgoingips",
    "outgoingipv6",
    "bindroutes",
    "smtpbindroutes",
    "domainips",
    "domainbindings",
    "smtpbinding",
];

/// Returns the files of [`OUTGOING`] that qmail-remote reads, or may read.
fn outgoing(host: &Host<'_>, home: &Path) -> Vec<String> {
    let read = relay_files::read_by_remote(&host.path(home), &OUTGOING).into_iter();
    let shown = read.map(|(name, read)| match read {
        relay_files::ReadByRemote::Unknown => {
            format!("control/{name} (if this qmail-remote reads it)")
        }
        relay_files::ReadByRemote::Yes | relay_files::ReadByRemote::No => format!("control/{name}"),
    });
    shown.collect()
}

fn conntrack(host: &Host<'_>) -> Fact<Option<(u64, u64)>> {
    let max = "/proc/sys/net/netfilter/nf_conntrack_max";
    if !host.path(max).exists() {
        return Ok(None);
    }
    let count = host.number("/proc/sys/net/netfilter/nf_conntrack_count").unwrap_or(0);
    Ok(Some((host.number(max)?, count)))
}

fn compiler(host: &Host<'_>, cc: &str) -> Fact<Compiler> {
    let mut words = cc.split_whitespace();
    let program = words.next().ok_or_else(|| "no compiler is named".to_owned())?;
    let mut args: Vec<&str> = words.collect();
    args.extend(["-O2", "-E", "-dM", "-x", "c", "-"]);
    // Any header of the C library defines its name.
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
    // Follow links if possible. If a folder cannot be entered, use the path as it is.
    let real = host.real(&queue).unwrap_or(queue);
    let mounts = host.read("/proc/mounts")?;
    mount_of(&mounts, &real)
        .ok_or_else(|| "/proc/mounts does not show the file system of the queue".to_owned())
}

fn mount_of(mounts: &str, path: &Path) -> Option<Mount> {
    let mut best: Option<Mount> = None;
    for line in mounts.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        let [_, point, kind, options, ..] = words.as_slice() else { continue };
        // Of several mounts at the same point, the last one is on top.
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
    use std::fs;

    use super::*;

    #[test]
    fn conf_spawn_is_read_from_showctl() {
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

    use crate::doctor::launch::limits::LimitValue;
    use crate::doctor::process::{ControlGroup, Measure};

    /// Writes an imitation of a machine.
    fn machine(files: &[(&str, &str)]) -> crate::verify::sandbox::scratch::Scratch {
        use crate::verify::sandbox::scratch::{Keep, Scratch};
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
            ("proc/1/comm", "init\n"),
            ("proc/1/limits", "Max open files  512 512 files\n"),
            ("service/smtpd/run", "exec softlimit -o 50 qmail-smtpd\n"),
            (
                "etc/systemd/system/qmail.service",
                "[Service]\nExecStart=/var/qmail/rc\nLimitNOFILE=1024\n",
            ),
            ("etc/systemd/system/qmail.service.d/more.conf", "[Service]\nTasksMax=512\n"),
            ("etc/systemd/system/other.service", "[Service]\nLimitNOFILE=1\n"),
            ("etc/security/limits.conf", "qmailr hard nproc 100\n"),
            ("proc/self/limits", limits),
            ("proc/12/comm", "qmail-rspawn\n"),
            ("proc/12/limits", limits),
            ("proc/12/cgroup", "0::/system.slice/qmail.service\n"),
            ("sys/fs/cgroup/system.slice/qmail.service/pids.max", "max\n"),
            ("sys/fs/cgroup/system.slice/qmail.service/pids.current", "4\n"),
            ("sys/fs/cgroup/system.slice/pids.max", "800\n"),
            ("sys/fs/cgroup/system.slice/pids.current", "44\n"),
            ("sys/fs/cgroup/system.slice/memory.max", "1024000\n"),
            ("sys/fs/cgroup/system.slice/memory.current", "204800\n"),
            ("sys/fs/cgroup/system.slice/memory.stat", "anon 5\ninactive_file 102400\n"),
            // Those of two other installations, of which one cannot be looked into.
            ("proc/14/comm", "qmail-send\n"),
            ("proc/14/limits", limits),
            ("proc/15/comm", "qmail-lspawn\n"),
            ("proc/15/limits", limits),
            // A package's, with its programs elsewhere.
            ("proc/16/comm", "qmail-send\n"),
            ("proc/16/limits", limits),
            ("proc/13/comm", "qmail-remote\n"),
            ("proc/13/status", "Name: qmail-remote\nRssAnon: 115 kB\nVmPTE: 39 kB\n"),
            ("proc/13/smaps_rollup", "0-1 ---p 0 0 0 [rollup]\nRss: 1400 kB\nPss: 117 kB\n"),
            ("proc/17/comm", "qmail-remote\n"),
            ("proc/17/stat", "17 (qmail-remote) Z 1\n"),
            ("proc/17/status", "Name: qmail-remote\nVmPTE: 999 kB\n"),
            ("proc/18/comm", "qmail-send\n"),
            ("proc/18/stat", "18 (a) b) Z 1\n"),
            ("var/qmail/control/outgoingip", "192.0.2.1\n"),
            (
                "var/qmail/bin/qmail-remote",
                "\u{7f}ELF\u{0}qpatch: IP_BIND_ADDRESS_NO_PORT\u{0}outgoingip\u{0}",
            ),
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
        assert_eq!(facts.relay_warnings, []);
        let starts: Vec<(&str, Option<&str>, LimitValue)> = facts
            .launch
            .starts
            .iter()
            .map(|one| (one.file.as_str(), one.unit.as_deref(), one.states[0].files[0].soft.value))
            .collect();
        // rc is started by run, whose hard limit is that of process 1.
        assert_eq!(
            starts,
            [
                (
                    "/etc/systemd/system/qmail.service",
                    Some("qmail.service"),
                    LimitValue::Number(1024)
                ),
                ("/service/qmail/run", None, LimitValue::Number(512)),
            ]
        );
        assert_eq!(facts.launch.services[0].tasks[0].most, 512);
        let daemons = facts.daemons.expect("seen");
        let pids: Vec<u32> = daemons.ours.iter().map(|daemon| daemon.pid).collect();
        assert_eq!(pids, [12, 16]);
        assert_eq!(daemons.unclear, ["qmail-lspawn (process 15)"]);
        let group =
            ControlGroup { path: "/system.slice".to_owned(), most: 800, now: 44, others: 40 };
        assert_eq!((daemons.ours[0].pid, &daemons.ours[0].group), (12, &Some(group)));
        assert_eq!(daemons.ours[0].group_memory_kib, Some(900));
        assert_eq!(daemons.ours[0].limits.as_ref().expect("seen").files, Some(1024));
        assert_eq!(facts.limits_conf.len(), 1);
        // One that has ended is not counted, nor is a daemon that has.
        let measure = Measure::Proportional;
        assert_eq!(facts.remotes, Some(RemoteMemory { count: 1, kib: 117 + 39, measure }));
        assert_eq!((facts.threads, facts.memory_kib), (Ok(77), Ok(1_000_000)));
        assert_eq!(facts.ports, Ok((32768, 60999)));
        assert_eq!((facts.outgoing.len(), facts.takes_ports_late), (1, Ok(true)));
        assert_eq!(facts.conntrack, Ok(Some((65536, 12))));
        assert_eq!(facts.queue.expect("mounted").kind, "ext4");
        assert_eq!(facts.launch.unread, Vec::<String>::new());
    }

    #[test]
    fn a_delivery_takes_one_descriptor_only_if_both_spawners_say_so() {
        let each = |lspawn: &str, rspawn: &str| {
            let scratch = machine(&[
                ("var/qmail/bin/qmail-lspawn", lspawn),
                ("var/qmail/bin/qmail-rspawn", rspawn),
            ]);
            let run = |_: &Path, _: &[&str], _: &str| Err("cannot run".to_owned());
            let host = Host { root: scratch.root().to_path_buf(), run: &run };
            gather(&host, &Options::default()).files_each
        };
        let one = "\u{7f}ELF\u{0}qpatch: one descriptor a delivery\u{0}";
        assert_eq!((each(one, one), each("ELF", one), each(one, "ELF")), (1, 2, 2));
    }

    #[test]
    fn on_an_empty_machine_all_facts_are_unknown() {
        let scratch = machine(&[]);
        let run = |_: &Path, _: &[&str], _: &str| Err("cannot run".to_owned());
        let host = Host { root: scratch.root().to_path_buf(), run: &run };
        let facts = gather(&host, &Options::default());
        // `qpatch gate init` has nowhere to write to.
        let why = facts.caps.expect_err("no folder");
        assert_eq!(why, "/var/qmail/control: no such directory");
        assert!(facts.spawn.is_err() && facts.remote.is_err() && facts.daemons.is_err());
        assert!(facts.shell.is_err() && facts.queue.is_err() && facts.pid_max.is_err());
        assert_eq!(facts.files_each, 2);
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
