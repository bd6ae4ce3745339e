//! Judging: pure functions from [`Facts`] to [`Finding`]s.
#![forbid(unsafe_code)]

use qpatch_gate::table;

use super::facts::{Caps, Compiler, Daemon, Facts, Libc};
use super::launch::{Limited, Setting};
use super::{Finding, Fix, Options, Verdict};

/// Own memory of one qmail-remote where none runs that could be measured, in KiB: without TLS it takes a quarter of
/// that, with TLS and a large certificate store several times as much.
const REMOTE_KIB: u64 = 1024;

/// Processes besides the deliveries: everything else on the machine.
const OTHER_PROCESSES: u64 = 500;

/// The number of remote deliveries that the findings are about: what was asked for, or what control/concurrencyremote
/// says; never more than conf-spawn.
pub fn concurrency(facts: &Facts, options: &Options) -> u32 {
    let wanted = options.concurrency.or(facts.remote.as_ref().ok().copied()).unwrap_or(20);
    match &facts.spawn {
        Ok(spawn) if options.concurrency.is_none() => wanted.min(*spawn),
        _ => wanted,
    }
}

/// The ports from 1024 on.
const ALL_PORTS: u64 = 65536 - 1024;

/// Every check, in the order in which the things come into play.
pub fn all(facts: &Facts, concurrency: u32) -> Vec<Finding> {
    let remote = u64::from(concurrency);
    let local = u64::from(facts.local.as_ref().copied().unwrap_or(10));
    vec![
        conf_spawn(facts, concurrency),
        domain_limits(facts, concurrency),
        relays(facts),
        shell_files(facts, remote),
        daemon_files(facts, remote.max(local)),
        launch_files(facts, remote.max(local)),
        replaced(facts),
        user_processes(facts, remote),
        unit_processes(facts, remote + local),
        kernel_processes(facts, remote + local),
        memory(facts, remote),
        ports(facts, remote),
        conntrack(facts, remote),
        c_library(facts),
        fortify(facts),
        queue(facts),
    ]
}

/// Descriptors that a spawner needs: two for each delivery, and five (chkspawn's formula); a few to spare.
fn files_for(deliveries: u64) -> u64 {
    2 * deliveries + 16
}

fn finding(name: &'static str, verdict: Verdict, detail: impl Into<String>) -> Finding {
    Finding { name, verdict, detail: detail.into(), fixes: Vec::new() }
}

fn unknown(name: &'static str, why: impl Into<String>) -> Finding {
    finding(name, Verdict::Unknown, why)
}

impl Finding {
    fn fix(mut self, place: impl Into<String>, line: impl Into<String>) -> Finding {
        self.fixes.push(Fix { place: place.into(), line: line.into() });
        self
    }
}

fn conf_spawn(facts: &Facts, concurrency: u32) -> Finding {
    const NAME: &str = "conf-spawn";
    let control = facts.home.join("control/concurrencyremote");
    let remote = match &facts.remote {
        Ok(remote) => *remote,
        Err(why) => return unknown(NAME, why.clone()),
    };
    match &facts.spawn {
        Err(why) => unknown(NAME, format!("{why}; concurrencyremote is {remote}")),
        Ok(spawn) if concurrency > *spawn || remote > *spawn => {
            let wanted = concurrency.max(remote);
            finding(
                NAME,
                Verdict::Warn,
                format!("the installed qmail runs at most {spawn} deliveries of each kind, whatever is set: {wanted} are wanted"),
            )
            .fix("in the source tree", format!("qpatch apply . --spawn {wanted} && make setup check"))
        }
        Ok(spawn) if remote < concurrency => finding(
            NAME,
            Verdict::Warn,
            format!("concurrencyremote is {remote}, {concurrency} are wanted; the installed qmail can run {spawn}"),
        )
        .fix(control.display().to_string(), concurrency.to_string()),
        Ok(spawn) => {
            finding(NAME, Verdict::Ok, format!("concurrencyremote is {remote}; the installed qmail can run {spawn}"))
        }
    }
}

fn domain_limits(facts: &Facts, concurrency: u32) -> Finding {
    const NAME: &str = "domain limits";
    let file = facts.home.join("control/concurrencydomains");
    let caps = match &facts.caps {
        Err(why) => return unknown(NAME, why.clone()),
        Ok(None) => {
            return finding(
                NAME,
                Verdict::Note,
                format!(
                    "none: one domain may take all {concurrency} deliveries (there is no control/concurrencydomains)"
                ),
            )
            .fix("a file to start from", format!("qpatch gate init {}", facts.home.display()));
        }
        Ok(Some(caps)) => caps,
    };
    let Caps { table, problems, text } = caps;
    let check = format!("qpatch gate check {}", facts.home.display());
    if let (errors @ 1.., Some(first)) = (problems.errors(), problems.worst()) {
        let errors = if errors == 1 { "an error".to_owned() } else { format!("{errors} errors") };
        return finding(
            NAME,
            Verdict::Warn,
            format!(
                "control/concurrencydomains has {errors}, and the gate does not use it: {first}"
            ),
        )
        .fix("all of them are told by", check);
    }
    let lines = table.len() + table.ranges() + table.exchangers();
    let warnings = match problems.iter().count() {
        0 => String::new(),
        1 => format!("; a warning, which {check} tells"),
        warnings => format!("; {warnings} warnings, which {check} tells"),
    };
    let mut never: Vec<u32> = table.above(concurrency).map(|problem| problem.line).collect();
    never.sort_unstable();
    let Some(&first) = never.first() else {
        return finding(
            NAME,
            Verdict::Ok,
            format!("{lines} lines, none above concurrencyremote {concurrency}{warnings}"),
        );
    };
    let numbered = (1..).zip(text.split(|&byte| byte == b'\n'));
    let above: Vec<_> = numbered
        .filter(|(number, _)| never.binary_search(number).is_ok())
        .filter_map(|(_, line)| parts(line))
        .collect();
    let wanted =
        above.iter().filter_map(|(_, limit, _)| limit.parse().ok()).max().unwrap_or(concurrency);
    let (subject, _, rest) = above.first().cloned().unwrap_or_default();
    let domain = if subject.is_empty() { "the default" } else { &subject };
    finding(
        NAME,
        Verdict::Warn,
        format!(
            "{} of {lines} limits can never be reached with concurrencyremote {concurrency}: {domain} in line {first}, for \
             one{warnings}",
            never.len(),
        ),
    )
    .fix(facts.home.join("control/concurrencyremote").display().to_string(), (2 * wanted).to_string())
    .fix(format!("or {} line {first}", file.display()), format!("{subject}:{concurrency}{rest}"))
}

/// What a line is about, its limit, and what is behind that. Nothing of what may be a password.
fn parts(line: &[u8]) -> Option<(String, String, String)> {
    let line = line.trim_ascii_end();
    let (subject, rest) = line.split_at(table::subject_len(line)?);
    let end = rest[1..].iter().position(|&byte| byte == b':').map_or(rest.len(), |at| at + 1);
    let shown =
        subject.split(|&byte| matches!(byte, b'|' | b';' | b',')).next().unwrap_or_default();
    let text = |bytes: &[u8]| bytes.escape_ascii().to_string();
    Some((text(shown), text(&rest[1..end]), text(&rest[end..])))
}

/// Relays that the gate does not look up.
fn relays(facts: &Facts) -> Finding {
    const NAME: &str = "relays";
    let Some((message, _)) = facts.elsewhere.first() else {
        return finding(NAME, Verdict::Ok, "none but those of control/smtproutes");
    };
    let verdict = match &facts.caps {
        // Without limits there is nothing that could count in a wrong way.
        Ok(None) => Verdict::Ok,
        _ => Verdict::Note,
    };
    let messages = facts
        .elsewhere
        .iter()
        .skip(1)
        .fold(message.clone(), |all, (message, _)| all + "; " + message);
    facts.elsewhere.iter().fold(
        finding(NAME, verdict, messages),
        |found, (_, help)| match verdict {
            Verdict::Note => found.fix("to be considered", help.as_str()),
            _ => found,
        },
    )
}

fn enough(limit: Option<u64>, needed: u64) -> bool {
    limit.is_none_or(|limit| limit >= needed)
}

fn shown(limit: Option<u64>) -> String {
    limit.map_or("unlimited".to_owned(), |limit| limit.to_string())
}

fn shell_files(facts: &Facts, deliveries: u64) -> Finding {
    const NAME: &str = "descriptors, shell";
    let limits = match &facts.shell {
        Ok(limits) => limits,
        Err(why) => return unknown(NAME, why.clone()),
    };
    let needed = files_for(deliveries);
    let found =
        format!("{} soft, {} hard; {needed} needed", shown(limits.files), shown(limits.files_hard));
    if enough(limits.files, needed) {
        finding(NAME, Verdict::Ok, found)
    } else if enough(limits.files_hard, needed) {
        // Only what is started from here is concerned, and it can help itself.
        finding(
            NAME,
            Verdict::Ok,
            format!("{found} (for qmail started from this shell: ulimit -n {needed})"),
        )
    } else {
        finding(NAME, Verdict::Warn, found)
            .fix("/etc/security/limits.d/qmail.conf", format!("* - nofile {needed}"))
    }
}

/// Where a limit of descriptors is to be raised: where one is set, else where qmail is started.
fn raise_files(facts: &Facts, needed: u64, mut to: Finding) -> Finding {
    for setting in too_low(facts, Limited::OpenFiles, needed) {
        to = to.fix(setting.place(), setting.with(needed));
    }
    if !to.fixes.is_empty() {
        return to;
    }
    match facts.starters.first() {
        Some(unit) if unit.ends_with(".service") => {
            let name = unit.rsplit('/').next().unwrap_or(unit);
            to.fix(
                format!("/etc/systemd/system/{name}.d/limits.conf, in [Service]"),
                format!("LimitNOFILE={needed}"),
            )
        }
        Some(script) => to.fix(format!("{script} line 2"), format!("ulimit -n {needed}")),
        None => to.fix("where qmail is started, before it", format!("ulimit -n {needed}")),
    }
}

fn too_low(facts: &Facts, what: Limited, needed: u64) -> Vec<&Setting> {
    facts
        .settings
        .iter()
        .filter(|setting| setting.what == what && !enough(setting.value, needed))
        .collect()
}

/// A list that is not longer than a line: what it has more of is counted.
fn first_few(names: &[String]) -> String {
    const SHOWN: usize = 3;
    let more = match names.len().saturating_sub(SHOWN) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    format!("{}{more}", names[..names.len().min(SHOWN)].join(", "))
}

fn running(facts: &Facts) -> Result<&[Daemon], String> {
    match &facts.daemons {
        Err(why) => Err(why.clone()),
        Ok(daemons) if daemons.is_empty() && !facts.not_told.is_empty() => Err(format!(
            "running: {}; only root can see whether that is the qmail in {} (in a container perhaps not even root)",
            first_few(&facts.not_told),
            facts.home.display()
        )),
        Ok(daemons) if daemons.is_empty() => {
            Err("no qmail-send is running that can be seen (it may run in a container, or /proc be mounted with hidepid)".to_owned())
        }
        Ok(daemons) => Ok(daemons),
    }
}

fn daemon_files(facts: &Facts, deliveries: u64) -> Finding {
    const NAME: &str = "descriptors, qmail";
    let daemons = match running(facts) {
        Ok(daemons) => daemons,
        Err(why) => return unknown(NAME, why),
    };
    let needed = files_for(deliveries);
    let mut least: Option<(Option<u64>, &Daemon)> = None;
    for daemon in daemons {
        let limits = match &daemon.limits {
            Ok(limits) => limits,
            Err(why) => return unknown(NAME, why.clone()),
        };
        let lower = |(files, _): (Option<u64>, _)| match (limits.files, files) {
            (Some(this), Some(other)) => this < other,
            (this, other) => this.is_some() && other.is_none(),
        };
        if least.is_none_or(lower) {
            least = Some((limits.files, daemon));
        }
    }
    let Some((files, daemon)) = least else { return unknown(NAME, "no limits to be seen") };
    let found = format!(
        "the running {} (process {}) may open {}; {needed} needed",
        daemon.name,
        daemon.pid,
        shown(files)
    );
    if enough(files, needed) {
        return finding(NAME, Verdict::Ok, found);
    }
    let all = files.map_or(0, |files| files.saturating_sub(5) / 2);
    let warned =
        finding(NAME, Verdict::Warn, format!("{found}, as it is {all} deliveries find room"));
    raise_files(facts, needed, warned)
}

fn launch_files(facts: &Facts, deliveries: u64) -> Finding {
    const NAME: &str = "start scripts";
    let needed = files_for(deliveries);
    let mut low = finding(NAME, Verdict::Warn, String::new());
    let settings = too_low(facts, Limited::OpenFiles, needed);
    let processes = too_low(facts, Limited::Processes, deliveries + OTHER_PROCESSES);
    for setting in &settings {
        low = low.fix(setting.place(), setting.with(needed));
    }
    for setting in &processes {
        low = low.fix(setting.place(), setting.with(deliveries + OTHER_PROCESSES));
    }
    if let Some(first) = settings.first().or(processes.first()) {
        low.detail = format!("{} sets a limit that is too low: {}", first.place(), first.text);
        return low;
    }
    if let Some(why) = facts.unread.first() {
        return unknown(NAME, format!("could not read all that may set a limit: {why}"));
    }
    if facts.starters.is_empty() {
        return unknown(
            NAME,
            "found nothing that starts qmail (rc in qmail's home, supervise folders, init scripts, systemd units): look at `ulimit -n` \
             and `ulimit -u` where it is started",
        );
    }
    let limits =
        if facts.settings.is_empty() { "set no limit" } else { "set limits that are high enough" };
    finding(NAME, Verdict::Ok, format!("{} {limits}", facts.starters.join(", ")))
}

fn replaced(facts: &Facts) -> Finding {
    const NAME: &str = "running programs";
    let daemons = match running(facts) {
        Ok(daemons) => daemons,
        Err(why) => return unknown(NAME, why),
    };
    if let Some(old) = daemons.iter().find(|daemon| daemon.replaced == Some(true)) {
        return finding(
            NAME,
            Verdict::Warn,
            format!(
                "{} was installed anew, but the old program still runs (process {})",
                old.name, old.pid
            ),
        )
        .fix("as root", "restart qmail");
    }
    if daemons.iter().any(|daemon| daemon.replaced.is_none()) {
        return unknown(
            NAME,
            "whether the installed programs are those that run can only be seen by root",
        );
    }
    finding(NAME, Verdict::Ok, "the installed programs are those that run")
}

fn user_processes(facts: &Facts, remote: u64) -> Finding {
    const NAME: &str = "processes, qmailr";
    let needed = remote + 10;
    let conf = facts
        .limits_conf
        .iter()
        .find(|setting| setting.what == Limited::Processes && !enough(setting.value, needed));
    let with_conf = |mut found: Finding| {
        if let Some(setting) = conf {
            found = found.fix(setting.place(), setting.with(needed));
        }
        found
    };
    let daemons = match running(facts) {
        Ok(daemons) => daemons,
        Err(why) => {
            return match conf {
                // Daemons that a supervisor starts do not get these limits, those from a login shell do.
                Some(setting) => with_conf(finding(
                    NAME,
                    Verdict::Warn,
                    format!("{} limits qmailr: {}", setting.place(), setting.text),
                )),
                None => unknown(NAME, why),
            };
        }
    };
    let Some(rspawn) = daemons.iter().find(|daemon| daemon.name == "qmail-rspawn") else {
        return unknown(NAME, "no qmail-rspawn is running that can be seen");
    };
    match &rspawn.limits {
        Err(why) => unknown(NAME, why.clone()),
        Ok(limits) if enough(limits.processes, needed) => finding(
            NAME,
            Verdict::Ok,
            format!(
                "the running qmail-rspawn may have {}; {needed} needed",
                shown(limits.processes)
            ),
        ),
        Ok(limits) => with_conf(
            finding(
                NAME,
                Verdict::Warn,
                format!(
                    "the running qmail-rspawn may have {}; {needed} needed",
                    shown(limits.processes)
                ),
            )
            .fix("where qmail is started, before it", format!("ulimit -u {needed}")),
        ),
    }
}

fn unit_processes(facts: &Facts, deliveries: u64) -> Finding {
    const NAME: &str = "processes, unit";
    let needed = deliveries + 50;
    if let Some(setting) = too_low(facts, Limited::UnitProcesses, needed).first() {
        return finding(
            NAME,
            Verdict::Warn,
            format!("{} is too low: {}", setting.place(), setting.text),
        )
        .fix(setting.place(), setting.with(needed));
    }
    let daemons = match running(facts) {
        Ok(daemons) => daemons,
        Err(why) => return unknown(NAME, why),
    };
    match daemons.iter().find_map(|daemon| daemon.unit_processes) {
        None => finding(NAME, Verdict::Ok, "no control group limits the processes of qmail"),
        Some((most, now)) if most >= needed => finding(
            NAME,
            Verdict::Ok,
            format!("the control group may have {most}, has {now}; {needed} needed"),
        ),
        Some((most, now)) => finding(
            NAME,
            Verdict::Warn,
            format!("the control group may have {most}, has {now}; {needed} needed"),
        )
        .fix("qmail's systemd unit, in [Service]", format!("TasksMax={needed}")),
    }
}

fn kernel_processes(facts: &Facts, deliveries: u64) -> Finding {
    const NAME: &str = "processes, kernel";
    let (pid_max, threads_max) = match (&facts.pid_max, &facts.threads_max) {
        (Ok(pid_max), Ok(threads_max)) => (*pid_max, *threads_max),
        (Err(why), _) | (_, Err(why)) => return unknown(NAME, why.clone()),
    };
    let threads = facts.threads.as_ref().copied().unwrap_or(OTHER_PROCESSES);
    let needed = deliveries + threads + OTHER_PROCESSES;
    let detail = format!(
        "pid_max {pid_max}, threads-max {threads_max}; {threads} threads run now, {needed} needed"
    );
    let mut found = finding(NAME, Verdict::Ok, detail);
    for (name, value) in [("kernel.pid_max", pid_max), ("kernel.threads-max", threads_max)] {
        if value < needed {
            found.verdict = Verdict::Warn;
            found = found.fix(
                "/etc/sysctl.d/qmail.conf",
                format!("{name} = {}", needed.next_power_of_two()),
            );
        }
    }
    found
}

fn memory(facts: &Facts, remote: u64) -> Finding {
    const NAME: &str = "memory";
    let available = match &facts.memory_kib {
        Ok(kib) => *kib,
        Err(why) => return unknown(NAME, why.clone()),
    };
    let (each, how) = match facts.remotes {
        Some((count, kib)) => {
            (kib.div_ceil(count), format!("as {count} running qmail-remote take on average"))
        }
        None => (
            REMOTE_KIB,
            "an estimate: no qmail-remote is running that could be measured".to_owned(),
        ),
    };
    let needed = remote * each;
    let detail = format!(
        "{} MiB free, {} MiB needed for {remote} qmail-remote ({each} KiB each, {how})",
        available >> 10,
        needed >> 10
    );
    if needed <= available {
        return finding(NAME, Verdict::Ok, detail);
    }
    let fits = available / each.max(1);
    finding(NAME, Verdict::Warn, detail)
        .fix(facts.home.join("control/concurrencyremote").display().to_string(), fits.to_string())
}

fn ports(facts: &Facts, remote: u64) -> Finding {
    const NAME: &str = "ephemeral ports";
    let (first, last) = match &facts.ports {
        Ok(ports) => *ports,
        Err(why) => return unknown(NAME, why.clone()),
    };
    let count = u64::from(last.saturating_sub(first)) + 1;
    // A port is taken for a minute after its connection; with deliveries of a few seconds that is ten times as many.
    let needed = (10 * remote).min(ALL_PORTS);
    let detail = format!(
        "{first} to {last}, {count} ports; {needed} are enough even if all mail goes to one host"
    );
    if count >= needed {
        finding(NAME, Verdict::Ok, detail)
    } else {
        finding(NAME, Verdict::Warn, detail)
            .fix("/etc/sysctl.d/qmail.conf", "net.ipv4.ip_local_port_range = 1024 65535")
    }
}

fn conntrack(facts: &Facts, remote: u64) -> Finding {
    const NAME: &str = "connection tracking";
    match &facts.conntrack {
        Err(why) => unknown(NAME, why.clone()),
        Ok(None) => finding(NAME, Verdict::Ok, "not in use"),
        Ok(Some((max, count))) => {
            // A closed connection is tracked for two minutes.
            let needed = count + 20 * remote;
            let detail = format!("{max} connections may be tracked, {count} are; {needed} needed");
            if *max >= needed {
                finding(NAME, Verdict::Ok, detail)
            } else {
                finding(NAME, Verdict::Warn, detail).fix(
                    "/etc/sysctl.d/qmail.conf",
                    format!("net.netfilter.nf_conntrack_max = {}", needed.next_power_of_two()),
                )
            }
        }
    }
}

fn c_library(facts: &Facts) -> Finding {
    const NAME: &str = "C library";
    match &facts.compiler {
        Err(why) => unknown(NAME, why.clone()),
        Ok(Compiler { libc: Libc::Glibc(version), .. }) => {
            finding(NAME, Verdict::Ok, format!("glibc {version}: the size of fd_set can be raised"))
        }
        Ok(Compiler { libc: Libc::Nameless, .. }) => finding(
            NAME,
            Verdict::Ok,
            "not glibc (musl?): the size of fd_set is fixed, so a patched tree has one of its own; a gate.a from a qpatch \
             that was built for glibc does not link there",
        ),
        Ok(Compiler { libc: Libc::Other(system), .. }) => finding(
            NAME,
            Verdict::Ok,
            format!("that of {system}: FD_SETSIZE can be defined before the first header"),
        ),
    }
}

fn fortify(facts: &Facts) -> Finding {
    const NAME: &str = "fortify";
    match &facts.compiler {
        Err(why) => unknown(NAME, why.clone()),
        Ok(Compiler { fortify: 0, .. }) => {
            finding(NAME, Verdict::Ok, "the compiler defines no _FORTIFY_SOURCE by itself")
        }
        Ok(Compiler { fortify, .. }) => finding(
            NAME,
            Verdict::Ok,
            format!(
                "the compiler defines _FORTIFY_SOURCE={fortify} by itself: a tree without qpatch's fd-setsize would abort on \
                 descriptor 1024; qpatch verify tries it"
            ),
        ),
    }
}

fn queue(facts: &Facts) -> Finding {
    const NAME: &str = "queue";
    let mount = match &facts.queue {
        Ok(mount) => mount,
        Err(why) => return unknown(NAME, why.clone()),
    };
    let found = format!("on {} ({})", mount.kind, mount.point);
    let warn = |why: &str| {
        finding(NAME, Verdict::Warn, format!("{found}: {why}"))
            .fix("move the queue", "to a local file system on disk, such as ext4 or xfs")
    };
    match mount.kind.as_str() {
        "tmpfs" | "ramfs" | "devtmpfs" => warn("mail is lost when the machine restarts"),
        "nfs" | "nfs4" | "cifs" | "smb3" | "9p" | "fuse.sshfs" | "fuse.glusterfs" => {
            warn("qmail's queue must be local: it relies on link() and on inode numbers")
        }
        "overlay" | "overlayfs" | "aufs" => warn(
            "in a container's own layer: mail is lost with the container, and inode numbers may change",
        ),
        _ => finding(NAME, Verdict::Ok, found),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::facts::{Limits, Mount};
    use crate::doctor::{Report, launch};
    use std::path::PathBuf;

    /// A machine on which 1000 deliveries can run.
    fn healthy() -> Facts {
        let limits =
            Limits { files: Some(65536), files_hard: Some(65536), processes: Some(100_000) };
        let daemon = |name: &str, pid| Daemon {
            name: name.to_owned(),
            pid,
            limits: Ok(limits),
            replaced: Some(false),
            unit_processes: Some((10_000, 5)),
        };
        Facts {
            home: PathBuf::from("/q"),
            spawn: Ok(1000),
            remote: Ok(1000),
            local: Ok(10),
            caps: Ok(Some(caps(b":20\n"))),
            elsewhere: Vec::new(),
            shell: Ok(limits),
            not_told: Vec::new(),
            daemons: Ok(vec![daemon("qmail-send", 7), daemon("qmail-rspawn", 8)]),
            settings: Vec::new(),
            starters: vec!["/q/rc".to_owned()],
            unread: Vec::new(),
            pid_max: Ok(4_194_304),
            threads_max: Ok(100_000),
            threads: Ok(300),
            memory_kib: Ok(8 << 20),
            remotes: None,
            ports: Ok((32768, 60999)),
            conntrack: Ok(None),
            limits_conf: Vec::new(),
            compiler: Ok(Compiler { libc: Libc::Glibc("2.36".to_owned()), fortify: 0 }),
            queue: Ok(Mount {
                point: "/".to_owned(),
                kind: "ext4".to_owned(),
                options: "rw".to_owned(),
            }),
        }
    }

    fn found(facts: &Facts, name: &str) -> Finding {
        let concurrency = concurrency(facts, &Options::default());
        let all = all(facts, concurrency);
        all.into_iter().find(|finding| finding.name == name).expect("a check of this name")
    }

    fn assert_warns(facts: &Facts, name: &str, place: &str, line: &str) {
        let finding = found(facts, name);
        assert_eq!(finding.verdict, Verdict::Warn, "{finding}");
        let fix = Fix { place: place.to_owned(), line: line.to_owned() };
        assert!(finding.fixes.contains(&fix), "{finding}");
    }

    #[test]
    fn a_healthy_machine_has_nothing_to_change() {
        for finding in all(&healthy(), 1000) {
            assert_eq!(finding.verdict, Verdict::Ok, "{finding}");
            assert!(finding.fixes.is_empty(), "{finding}");
        }
    }

    #[test]
    fn a_fixed_fd_set_is_no_hindrance() {
        let compiler = Compiler { libc: Libc::Nameless, fortify: 0 };
        let facts = Facts { compiler: Ok(compiler), ..healthy() };
        let finding = found(&facts, "C library");
        assert_eq!(finding.verdict, Verdict::Ok, "{finding}");
        assert!(finding.to_string().contains("has one of its own"), "{finding}");
    }

    #[test]
    fn what_is_not_seen_is_unknown_and_says_why() {
        let facts = Facts {
            spawn: Err("no showctl".to_owned()),
            shell: Err("no proc".to_owned()),
            daemons: Err("no proc".to_owned()),
            pid_max: Err("no proc".to_owned()),
            memory_kib: Err("no proc".to_owned()),
            ports: Err("no proc".to_owned()),
            conntrack: Err("no proc".to_owned()),
            compiler: Err("no cc".to_owned()),
            queue: Err("no mounts".to_owned()),
            starters: Vec::new(),
            ..healthy()
        };
        let unknown: Vec<&str> = all(&facts, 1000)
            .iter()
            .filter(|finding| finding.verdict == Verdict::Unknown)
            .map(|finding| finding.name)
            .collect();
        assert_eq!(unknown.len(), 14, "{unknown:?}");
    }

    #[test]
    fn no_limits_per_domain_are_worth_a_thought() {
        let finding = found(&Facts { caps: Ok(None), ..healthy() }, "domain limits");
        assert_eq!(
            finding.to_string(),
            "note  domain limits       none: one domain may take all 1000 deliveries (there is no \
             control/concurrencydomains)\n      a file to start from: qpatch gate init /q"
        );
        let report = Report { home: "/q".into(), concurrency: 1000, findings: vec![finding] };
        assert!(report.ok());
        let summary = "0 of 1 checks are fine for 1000 remote deliveries at once; 0 to change, 1 to consider, 0 could \
                       not be seen";
        assert_eq!(report.summary(), summary);
    }

    #[test]
    fn daemons_that_may_be_of_another_qmail_are_not_judged() {
        let not_told = vec!["qmail-send (process 7)".to_owned()];
        let facts = Facts { daemons: Ok(Vec::new()), not_told, ..healthy() };
        let finding = found(&facts, "descriptors, qmail");
        let why = "running: qmail-send (process 7); only root can see whether that is the qmail in /q (in a container perhaps not even root)";
        assert_eq!((finding.verdict, finding.detail.as_str()), (Verdict::Unknown, why));
        // However many there are, it is a line.
        let many: Vec<String> = (1..=22).map(|pid| format!("qmail-send (process {pid})")).collect();
        let shown =
            "qmail-send (process 1), qmail-send (process 2), qmail-send (process 3) and 19 more";
        assert_eq!(first_few(&many), shown);
    }

    #[test]
    fn the_plan_is_the_smaller_of_what_is_set_and_what_is_built() {
        let facts = Facts { remote: Ok(5000), ..healthy() };
        assert_eq!(concurrency(&facts, &Options::default()), 1000);
        let options = Options { concurrency: Some(3000), ..Options::default() };
        assert_eq!(concurrency(&facts, &options), 3000);
        assert_warns(
            &facts,
            "conf-spawn",
            "in the source tree",
            "qpatch apply . --spawn 5000 && make setup check",
        );
    }

    #[test]
    fn a_daemon_with_few_descriptors_is_told_where_it_is_started() {
        let mut facts = healthy();
        if let Ok(daemons) = &mut facts.daemons {
            daemons[1].limits = Ok(Limits { files: Some(1024), ..Limits::default() });
        }
        assert_warns(&facts, "descriptors, qmail", "/q/rc line 2", "ulimit -n 2016");
        facts.starters = vec!["/lib/systemd/system/qmail.service".to_owned()];
        let place = "/etc/systemd/system/qmail.service.d/limits.conf, in [Service]";
        assert_warns(&facts, "descriptors, qmail", place, "LimitNOFILE=2016");
        facts.settings = launch::in_script("/s/run", "exec softlimit -o 1024 /q/rc");
        assert_warns(&facts, "descriptors, qmail", "/s/run line 1", "exec softlimit -o 2016 /q/rc");
        assert_warns(&facts, "start scripts", "/s/run line 1", "exec softlimit -o 2016 /q/rc");
    }

    #[test]
    fn kernel_limits_are_raised_to_a_power_of_two() {
        let facts = Facts { pid_max: Ok(1500), threads_max: Ok(900), ..healthy() };
        assert_warns(
            &facts,
            "processes, kernel",
            "/etc/sysctl.d/qmail.conf",
            "kernel.pid_max = 2048",
        );
        assert_warns(
            &facts,
            "processes, kernel",
            "/etc/sysctl.d/qmail.conf",
            "kernel.threads-max = 2048",
        );
    }

    #[test]
    fn memory_is_judged_by_what_runs_where_something_runs() {
        let facts = Facts { memory_kib: Ok(500 << 10), ..healthy() };
        assert_warns(&facts, "memory", "/q/control/concurrencyremote", "500");
        let facts = Facts { remotes: Some((10, 4000)), ..facts };
        assert_eq!(found(&facts, "memory").verdict, Verdict::Ok);
    }

    #[test]
    fn other_limits_name_their_line() {
        let facts = Facts { ports: Ok((50000, 51000)), ..healthy() };
        let line = "net.ipv4.ip_local_port_range = 1024 65535";
        assert_warns(&facts, "ephemeral ports", "/etc/sysctl.d/qmail.conf", line);
        let facts = Facts { conntrack: Ok(Some((4096, 100))), ..healthy() };
        let line = "net.netfilter.nf_conntrack_max = 32768";
        assert_warns(&facts, "connection tracking", "/etc/sysctl.d/qmail.conf", line);
        let facts = Facts { caps: Ok(Some(caps(b":20\n\nbig.example:1500\n"))), ..healthy() };
        assert_warns(&facts, "domain limits", "/q/control/concurrencyremote", "3000");
        let facts = Facts {
            settings: launch::in_unit("/etc/systemd/system/qmail.service", "TasksMax=512"),
            ..healthy()
        };
        let place = "/etc/systemd/system/qmail.service line 1";
        assert_warns(&facts, "processes, unit", place, "TasksMax=1060");
    }

    fn caps(text: &[u8]) -> Caps {
        Caps::parse(text).expect("memory")
    }

    #[test]
    fn limits_are_those_that_the_gate_counts_by() {
        let told = |text: &str| {
            found(&Facts { caps: Ok(Some(caps(text.as_bytes()))), ..healthy() }, "domain limits")
        };
        for (line, fix) in [
            ("mx:.outlook.com:1500:outlook", "mx:.outlook.com:1000:outlook"),
            ("192.0.2.0/24:1500", "192.0.2.0/24:1000"),
            ("[2001:db8::]/32:1500:g:learn", "[2001:db8::]/32:1000:g:learn"),
            ("[2001:db8::25]:1500::learn", "[2001:db8::25]:1000::learn"),
            ("mx:1500", "mx:1000"),
            (":1500", ":1000"),
            ("\u{feff}a.example:1500", "a.example:1000"),
            ("relay.example|user|S3cretPass:1500", "relay.example:1000"),
        ] {
            let finding = told(&format!("{line}\nfree.example:\nb.example:7\n"));
            assert_eq!(finding.verdict, Verdict::Warn, "{line}: {finding}");
            assert!(
                finding.detail.starts_with("1 of 3 limits can never be reached"),
                "{line}: {finding}"
            );
            let lines: Vec<_> = finding.fixes.iter().map(|fix| fix.line.as_str()).collect();
            assert_eq!(lines, ["3000", fix]);
            assert!(!finding.to_string().contains("S3cretPass"), "{finding}");
        }
        // The lowest limit of a group counts for all its lines; unlimited is above nothing.
        for text in [
            "a.example:1500:g\nb.example:5:g\n",
            "a.example:\n192.0.2.0/24:\n",
            "# a.example:1500\n",
            ":1000\n",
        ] {
            let finding = told(text);
            assert_eq!(finding.verdict, Verdict::Ok, "{finding}");
        }
        for (text, what) in [
            (
                ":20\na.example:many\n",
                "has an error, and the gate does not use it: control/concurrencydomains:2:11: the limit is",
            ),
            (
                "a.example\nb.example:5:\n",
                "has 2 errors, and the gate does not use it: control/concurrencydomains:1:10: no colon",
            ),
        ] {
            let finding = told(text);
            assert!(finding.verdict == Verdict::Warn && finding.detail.contains(what), "{finding}");
            assert_eq!(finding.fixes[0].line, "qpatch gate check /q");
        }
        let finding = told("*:20\n");
        let detail = "1 lines, none above concurrencyremote 1000; a warning, which qpatch gate check /q tells";
        assert_eq!((finding.verdict, finding.detail.as_str()), (Verdict::Ok, detail));
    }

    #[test]
    fn relays_that_do_not_count_are_told() {
        let elsewhere = vec![("authsenders chooses".to_owned(), "do this".to_owned())];
        let facts = Facts { elsewhere: elsewhere.clone(), ..healthy() };
        let finding = found(&facts, "relays");
        assert_eq!(
            (finding.verdict, finding.detail.as_str()),
            (Verdict::Note, "authsenders chooses")
        );
        assert_eq!(finding.fixes[0].line, "do this");
        let facts = Facts { elsewhere, caps: Ok(None), ..healthy() };
        assert_eq!(found(&facts, "relays").verdict, Verdict::Ok);
    }

    #[test]
    fn a_queue_in_memory_or_on_the_network_is_warned_of() {
        for kind in ["tmpfs", "nfs4", "overlay"] {
            let queue = Mount { kind: kind.to_owned(), ..healthy().queue.expect("healthy") };
            let facts = Facts { queue: Ok(queue), ..healthy() };
            assert_eq!(found(&facts, "queue").verdict, Verdict::Warn, "{kind}");
        }
    }
}
