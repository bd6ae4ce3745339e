//! A network of the bench's own: a namespace with only a loopback interface. So no mail can leave the machine, port 25
//! is free, and /etc/resolv.conf can name the bench's own name server.

use std::fs;
use std::net::Ipv4Addr;
use std::path::Path;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::unistd::{getegid, geteuid, sethostname};

use crate::error::{Error, Result};

/// The address of the bench's name server, in its own network.
pub const NAME_SERVER: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 53);

/// Moves this process into namespaces of its own. The process must have only one thread.
///
/// # Errors
/// The system does not permit it. Nothing has changed then, or the process has a network without any interface up.
pub fn enter() -> Result<()> {
    let why =
        |what: &'static str| move |error: nix::Error| Error::new(format!("{what}: {error}"), "");
    let (uid, gid) = (geteuid(), getegid());
    let mut flags = CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWUTS;
    if !uid.is_root() {
        flags |= CloneFlags::CLONE_NEWUSER;
    }
    unshare(flags).map_err(why("no namespaces"))?;
    if !uid.is_root() {
        // The user has the same number inside the namespace as outside.
        for (file, text) in [
            ("setgroups", "deny".to_owned()),
            ("uid_map", format!("{uid} {uid} 1\n")),
            ("gid_map", format!("{gid} {gid} 1\n")),
        ] {
            fs::write(Path::new("/proc/self").join(file), text)
                .map_err(Error::doing(format!("write /proc/self/{file}")))?;
        }
    }
    // sendmail waits for a minute if the machine's own name has no dot.
    sethostname("bench.example").map_err(why("cannot set the host's name"))?;
    let none: Option<&str> = None;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)
        .map_err(why("cannot make the mounts private"))?;
    crate::sys::loopback_up().map_err(Error::doing("switch the loopback interface on"))?;
    // More than the usual 28,000: each connection keeps its port for a minute after its end.
    let _ = fs::write("/proc/sys/net/ipv4/ip_local_port_range", "1024 65000");
    Ok(())
}

/// Makes /etc/resolv.conf name [`NAME_SERVER`], for this process and those that it starts. Writes `file`, which must
/// stay while they run.
pub fn use_name_server(file: &Path) -> Result<()> {
    fs::write(file, format!("nameserver {NAME_SERVER}\noptions attempts:2 timeout:2\n"))
        .map_err(Error::doing(format!("write {}", file.display())))?;
    let target =
        fs::canonicalize("/etc/resolv.conf").map_err(Error::doing("find /etc/resolv.conf"))?;
    let none: Option<&str> = None;
    mount(Some(file), &target, none, MsFlags::MS_BIND, none)
        .map_err(|error| Error::new(format!("cannot mount over {}: {error}", target.display()), ""))
}

/// Adds users to /etc/passwd, and groups of the same names to /etc/group, as this process and those that it starts see
/// these files. Existing users stay. Writes the files into `dir`, where they must stay.
pub fn add_users(dir: &Path, names: &[&str]) -> Result<()> {
    /// Above the numbers that distributions give to packages.
    const FIRST: usize = 64900;
    for (file, rest) in [("passwd", ":/nonexistent:/usr/sbin/nologin"), ("group", "")] {
        let system = Path::new("/etc").join(file);
        let mut text =
            fs::read_to_string(&system).map_err(Error::doing(format!("read /etc/{file}")))?;
        let is_there =
            |text: &str, name: &str| text.lines().any(|line| line.split(':').next() == Some(name));
        for (number, name) in (FIRST..).zip(names) {
            if !is_there(&text, name) {
                let ids = if file == "passwd" {
                    format!("{number}:{number}:")
                } else {
                    format!("{number}:")
                };
                text.push_str(&format!("{name}:x:{ids}{rest}\n"));
            }
        }
        let copy = dir.join(file);
        fs::write(&copy, text).map_err(Error::doing(format!("write {}", copy.display())))?;
        let none: Option<&str> = None;
        mount(Some(&copy), &system, none, MsFlags::MS_BIND, none).map_err(|error| {
            Error::new(format!("cannot mount over {}: {error}", system.display()), "")
        })?;
    }
    Ok(())
}
