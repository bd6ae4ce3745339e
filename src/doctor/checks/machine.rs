//! Checks what the machine has: memory, pipes, ports, tracked connections, the compiler, and the file system of the
//! queue.
#![forbid(unsafe_code)]

use super::super::facts::{Compiler, Facts, Libc};
use super::super::finding::{CheckVerdict, Finding};
use super::super::process::Measure;
use super::common::{SYSCTL, finding, names, unknown};
use super::processes::raise;

/// The memory of one waiting qmail-remote in KiB, if none runs that could be measured. Measured with 600 of
/// netqmail-1.06 (gcc -O2, glibc 2.36, no TLS), each connected to a silent server: 117 of memory (Pss), 39 of page
/// tables, and the kernel's own share; linked statically 74 and 38. The resident size (RSS) is 1400, nearly all of it
/// shared.
const REMOTE_KIB: u64 = 200;

/// The memory that the kernel keeps for a process beside these figures, in KiB: a stack of 16 KiB, structures and a
/// socket.
const KERNEL_KIB: u64 = 40;

/// The ports from 1024 on.
const ALL_PORTS: u64 = 65536 - 1024;

pub(super) fn memory(facts: &Facts, remote: u64) -> Finding {
    const NAME: &str = "memory";
    let available = match &facts.memory_kib {
        Ok(kib) => *kib,
        Err(why) => return unknown(NAME, why.clone()),
    };
    let daemons = facts.daemons.as_ref().map_or(&[][..], |daemons| &daemons.ours);
    let group = daemons.iter().filter_map(|daemon| daemon.group_memory_kib).min();
    let (available, whose) = match group {
        Some(group) if group < available => (group, " in qmail's control group"),
        _ => (available, ""),
    };
    let (each, how) = match facts.remotes {
        Some(remotes) => {
            let each = remotes.kib.div_ceil(remotes.count.max(1)) + KERNEL_KIB;
            let measure = match remotes.measure {
                Measure::Proportional => "its share of memory and its page tables",
                Measure::Own => "its own memory and page tables; root sees its share of the rest",
            };
            (each, format!("as the {} running ones on average: {measure}, and {KERNEL_KIB} in the kernel", remotes.count))
        }
        None => (
            REMOTE_KIB,
            "as netqmail-1.06's without TLS was measured; with TLS it can be several times as much, and none runs here"
                .to_owned(),
        ),
    };
    let needed = remote * each;
    let detail = format!(
        "{} MiB free{whose}, {} MiB needed for {remote} qmail-remote ({each} KiB each, {how})",
        available >> 10,
        needed >> 10
    );
    let services = facts.launch.services.iter();
    let ceilings =
        services.flat_map(|service| service.memory.iter().map(move |ceiling| (service, ceiling)));
    let mut low = ceilings.filter(|(_, ceiling)| ceiling.most >> 10 < needed).peekable();
    if let Some((service, first)) = low.peek() {
        let ends = if service.ends_on_lack_of_memory {
            ", and systemd then ends all of it (OOMPolicy)"
        } else {
            ""
        };
        let detail = format!(
            "{} may have {} MiB, by {}; {} MiB needed for {remote} qmail-remote ({each} KiB each, {how}); at the limit the kernel kills \
             some{ends}",
            first.unit,
            first.most >> 20,
            first.by,
            needed >> 10
        );
        let wanted = (needed >> 10).next_power_of_two();
        return low.fold(finding(NAME, CheckVerdict::Warn, detail), |found, (_, ceiling)| {
            raise(found, ceiling, &format!("{wanted}M"), wanted << 20)
        });
    }
    if needed <= available {
        return finding(NAME, CheckVerdict::Ok, detail);
    }
    let fits = available / each.max(1);
    finding(NAME, CheckVerdict::Warn, detail)
        .fix(facts.home.join("control/concurrencyremote").display().to_string(), fits.to_string())
}

/// The pages of a pipe, and of a new pipe of a user who has more than fs.pipe-user-pages-soft.
const PIPE_PAGES: (u64, u64) = (16, 2);

/// Checks the limits on pipes: qmail-rspawn has one pipe for each delivery, and runs as qmailr, to whom they apply.
pub(super) fn pipes(facts: &Facts, remote: u64) -> Finding {
    const NAME: &str = "pipes";
    let (soft, hard) = match &facts.pipe_pages {
        (Ok(soft), Ok(hard)) => (*soft, *hard),
        (Err(why), _) | (_, Err(why)) => return unknown(NAME, why.clone()),
    };
    let needed = remote + 8;
    let whole = match soft {
        0 => u64::MAX,
        soft => soft / PIPE_PAGES.0,
    };
    let shrinks = match soft {
        soft if soft > 0 && whole < needed => {
            format!(
                "; from number {} on a pipe of qmailr holds 8192 bytes, which is enough for a report",
                whole + 1
            )
        }
        _ => String::new(),
    };
    if hard == 0 {
        return finding(
            NAME,
            CheckVerdict::Ok,
            format!("fs.pipe-user-pages-hard limits none{shrinks}"),
        );
    }
    // Beyond the soft limit each new pipe is small. A hard limit below the soft one allows no small pipes.
    let most = if hard <= soft || soft == 0 {
        hard / PIPE_PAGES.0
    } else {
        whole + (hard - whole * PIPE_PAGES.0) / PIPE_PAGES.1
    };
    let detail = format!(
        "fs.pipe-user-pages-hard {hard} allows qmailr {most} pipes; {needed} needed{shrinks}"
    );
    if most >= needed {
        return finding(NAME, CheckVerdict::Ok, detail);
    }
    let pages = match soft {
        0 => needed * PIPE_PAGES.0,
        _ => whole.min(needed) * PIPE_PAGES.0 + needed.saturating_sub(whole) * PIPE_PAGES.1,
    };
    finding(NAME, CheckVerdict::Warn, detail)
        .fix(SYSCTL, format!("fs.pipe-user-pages-hard = {}", pages.next_power_of_two()))
}

pub(super) fn ports(facts: &Facts, remote: u64) -> Finding {
    const NAME: &str = "ephemeral ports";
    let (first, last) = match &facts.ports {
        Ok(ports) => *ports,
        Err(why) => return unknown(NAME, why.clone()),
    };
    let count = u64::from(last.saturating_sub(first)) + 1;
    // A port is taken for a minute after its connection; with deliveries of a few seconds that is ten times as many.
    let needed = (10 * remote).min(ALL_PORTS);
    let range = format!("{first} to {last}, {count} ports");
    let (verdict, detail) = match (facts.outgoing.as_slice(), &facts.takes_ports_late) {
        ([], _) => (
            CheckVerdict::Ok,
            format!("{range}; {needed} are enough even if all mail goes to one host"),
        ),
        (files, Ok(true)) => (
            CheckVerdict::Ok,
            format!(
                "{range}; {needed} are enough even if all mail goes to one host, also for connections that have their address from \
                 {}: qmail-remote was built with outgoing-ports",
                names(files)
            ),
        ),
        (files, seen) => {
            let built = match seen {
                Ok(_) => "this qmail-remote was built without it".to_owned(),
                Err(why) => format!("whether this one was built with it could not be seen: {why}"),
            };
            let detail = format!(
                "{range}, {needed} needed; a connection that has its address from {} shares them with all destinations, not with one, \
                 unless qmail-remote sets IP_BIND_ADDRESS_NO_PORT, as qpatch's patch outgoing-ports lets it do; {built}; when they \
                 run out, it says what it says for a server that refuses",
                names(files)
            );
            (CheckVerdict::Note, detail)
        }
    };
    if count >= needed {
        return finding(NAME, verdict, detail);
    }
    finding(NAME, CheckVerdict::Warn, detail)
        .fix(SYSCTL, "net.ipv4.ip_local_port_range = 1024 65535")
}

pub(super) fn conntrack(facts: &Facts, remote: u64) -> Finding {
    const NAME: &str = "connection tracking";
    match &facts.conntrack {
        Err(why) => unknown(NAME, why.clone()),
        Ok(None) => finding(NAME, CheckVerdict::Ok, "not in use"),
        Ok(Some((max, count))) => {
            // A closed connection is tracked for two minutes.
            let needed = count + 20 * remote;
            let detail = format!("{max} connections may be tracked, {count} are; {needed} needed");
            if *max >= needed {
                finding(NAME, CheckVerdict::Ok, detail)
            } else {
                finding(NAME, CheckVerdict::Warn, detail).fix(
                    SYSCTL,
                    format!("net.netfilter.nf_conntrack_max = {}", needed.next_power_of_two()),
                )
            }
        }
    }
}

pub(super) fn c_library(facts: &Facts) -> Finding {
    const NAME: &str = "C library";
    match &facts.compiler {
        Err(why) => unknown(NAME, why.clone()),
        Ok(Compiler { libc: Libc::Glibc(version), .. }) => finding(
            NAME,
            CheckVerdict::Ok,
            format!("glibc {version}: the size of fd_set can be raised"),
        ),
        Ok(Compiler { libc: Libc::Nameless, .. }) => finding(
            NAME,
            CheckVerdict::Ok,
            "not glibc (musl?): the size of fd_set is fixed, so a patched tree has one of its own; a gate.a from a qpatch \
             that was built for glibc does not link there",
        ),
        Ok(Compiler { libc: Libc::Other(system), .. }) => finding(
            NAME,
            CheckVerdict::Ok,
            format!("that of {system}: FD_SETSIZE can be defined before the first header"),
        ),
    }
}

pub(super) fn fortify(facts: &Facts) -> Finding {
    const NAME: &str = "fortify";
    match &facts.compiler {
        Err(why) => unknown(NAME, why.clone()),
        Ok(Compiler { fortify: 0, .. }) => {
            finding(NAME, CheckVerdict::Ok, "the compiler defines no _FORTIFY_SOURCE by itself")
        }
        Ok(Compiler { fortify, .. }) => finding(
            NAME,
            CheckVerdict::Ok,
            format!(
                "the compiler defines _FORTIFY_SOURCE={fortify} by itself: a tree without qpatch's fd-setsize would abort on \
                 descriptor 1024; qpatch verify tries it"
            ),
        ),
    }
}

pub(super) fn queue(facts: &Facts) -> Finding {
    const NAME: &str = "queue";
    let mount = match &facts.queue {
        Ok(mount) => mount,
        Err(why) => return unknown(NAME, why.clone()),
    };
    let found = format!("on {} ({})", mount.kind, mount.point);
    let warn = |why: &str| {
        finding(NAME, CheckVerdict::Warn, format!("{found}: {why}"))
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
        _ => finding(NAME, CheckVerdict::Ok, found),
    }
}
