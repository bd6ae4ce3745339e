//! A network of the bench's own: a namespace in which there is nothing but a loopback interface, so that no mail can ever
//! leave the machine, port 25 is free, and /etc/resolv.conf can name the bench's own name server.

use std::fs;
use std::net::Ipv4Addr;
use std::path::Path;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::unistd::{getegid, geteuid};

use crate::error::{Error, Result};

/// Where the bench's name server listens, in its own network.
pub const NAME_SERVER: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 53);

/// Moves this process into namespaces of its own. There may be no other thread yet.
///
/// # Errors
/// Where the system does not let it. Nothing has changed then, or the process has a network that does nothing.
pub fn enter() -> Result<()> {
    let why =
        |what: &'static str| move |error: nix::Error| Error::new(format!("{what}: {error}"), "");
    let (uid, gid) = (geteuid(), getegid());
    let mut flags = CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS;
    if !uid.is_root() {
        flags |= CloneFlags::CLONE_NEWUSER;
    }
    unshare(flags).map_err(why("no namespaces"))?;
    if !uid.is_root() {
        // The same number inside: what runs as this user outside does so here.
        for (file, text) in [
            ("setgroups", "deny".to_owned()),
            ("uid_map", format!("{uid} {uid} 1\n")),
            ("gid_map", format!("{gid} {gid} 1\n")),
        ] {
            fs::write(Path::new("/proc/self").join(file), text)
                .map_err(Error::doing(format!("write /proc/self/{file}")))?;
        }
    }
    let none: Option<&str> = None;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)
        .map_err(why("cannot make the mounts private"))?;
    crate::sys::loopback_up().map_err(Error::doing("switch the loopback interface on"))?;
    // More than the usual 28,000: each connection keeps its port for a minute after its end.
    let _ = fs::write("/proc/sys/net/ipv4/ip_local_port_range", "1024 65000");
    Ok(())
}

/// Makes /etc/resolv.conf, for this process and those that it starts, name [`NAME_SERVER`]. `file` is written and has to
/// stay.
pub fn use_name_server(file: &Path) -> Result<()> {
    fs::write(file, format!("nameserver {NAME_SERVER}\noptions attempts:2 timeout:2\n"))
        .map_err(Error::doing(format!("write {}", file.display())))?;
    let target =
        fs::canonicalize("/etc/resolv.conf").map_err(Error::doing("find /etc/resolv.conf"))?;
    let none: Option<&str> = None;
    mount(Some(file), &target, none, MsFlags::MS_BIND, none)
        .map_err(|error| Error::new(format!("cannot mount over {}: {error}", target.display()), ""))
}
