//! The real servers of S7, and how each is configured: with five sessions, or with a mail filter that defers.

use std::fmt::Write as _;
use std::fs::{self, Permissions};
use std::net::SocketAddrV4;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::unistd::{User, chown, geteuid};

use super::{HOLD, MILTER_PORT, PLACES};
use crate::error::{Error, Result};

/// What the bench's mail filter does to the server's mail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Filter {
    /// The server has no filter.
    None,
    /// The filter holds each mail for [`HOLD`].
    Holds,
    /// The filter holds each mail, and defers every second recipient.
    EverySecond,
    /// The filter does not run until [`super::DOWN`].
    Down,
}

/// A server and the setting that limits it.
#[derive(Debug, Clone, Copy)]
pub struct ServerKind {
    /// What `--server` calls it.
    pub name: &'static str,
    /// The setting.
    pub setting: &'static str,
    /// Its program, relative to the folder of its package.
    pub(super) program: &'static str,
    /// A user that has to exist for it and owns its queue. Such a server needs root.
    pub(super) user: Option<&'static str>,
    pub(super) filter: Filter,
    pub(super) set_up: fn(&ServerSetup) -> Result<Command>,
}

/// All servers.
pub const SERVER_KINDS: [ServerKind; 13] = [
    ServerKind {
        name: "postfix-count",
        setting: "smtpd_client_connection_count_limit",
        program: POSTFIX,
        user: Some("mail"),
        filter: Filter::Holds,
        set_up: |setup| postfix(setup, "-", PLACES),
    },
    ServerKind {
        name: "postfix-processes",
        setting: "maxproc of smtpd in master.cf",
        program: POSTFIX,
        user: Some("mail"),
        filter: Filter::Holds,
        set_up: |setup| postfix(setup, &PLACES.to_string(), 0),
    },
    ServerKind {
        name: "postfix-milter",
        setting: "no limit; a milter defers every second recipient",
        program: POSTFIX,
        user: Some("mail"),
        filter: Filter::EverySecond,
        set_up: |setup| postfix(setup, "-", 0),
    },
    ServerKind {
        name: "postfix-milter-down",
        setting: "no limit; a milter is down for 10 s, then the second half of the mail comes",
        program: POSTFIX,
        user: Some("mail"),
        filter: Filter::Down,
        set_up: |setup| postfix(setup, "-", 0),
    },
    ServerKind {
        name: "exim-max",
        setting: "smtp_accept_max",
        program: EXIM,
        user: Some(EXIM_USER),
        filter: Filter::None,
        set_up: |setup| exim(setup, PLACES, 0),
    },
    ServerKind {
        name: "exim-per-host",
        setting: "smtp_accept_max_per_host",
        program: EXIM,
        user: Some(EXIM_USER),
        filter: Filter::None,
        set_up: |setup| exim(setup, 100, PLACES),
    },
    ServerKind {
        name: "sendmail-children",
        setting: "MaxDaemonChildren",
        program: SENDMAIL,
        user: Some("root"),
        filter: Filter::Holds,
        set_up: |setup| sendmail(setup, &format!("O MaxDaemonChildren={PLACES}\n")),
    },
    ServerKind {
        name: "sendmail-conncontrol",
        setting: "conncontrol, terminate",
        program: SENDMAIL,
        user: Some("root"),
        filter: Filter::Holds,
        // The rule that FEATURE(conncontrol, nodelay, terminate) makes, with its figure written in.
        set_up: |setup| {
            sendmail(
                setup,
                &format!(
                    "Karith arith\nScheck_relay\nR$*\t$: $(arith l $@ {PLACES} $@ $&{{client_connections}} $)\n\
                     RTRUE\t$#error $@ 4.3.2 $: 421 Too many open connections.\n"
                ),
            )
        },
    },
    ServerKind {
        name: "courier-per-ip",
        setting: "couriertcpd -maxperip (MAXPERIP)",
        program: "usr/sbin/couriertcpd",
        user: None,
        filter: Filter::None,
        set_up: |setup| {
            let places = format!("-maxperip={PLACES}");
            let mut command = setup.command();
            command.args(["-nodnslookup", "-noidentlookup", "-maxprocs=100", "-maxperc=100"]);
            command.args([&places, &format!("-address={}", setup.at.ip())]);
            command.arg(setup.at.port().to_string()).arg(&setup.session).args(session_args());
            Ok(command)
        },
    },
    ServerKind {
        name: "tcpsvd-per-host",
        setting: "tcpsvd -C",
        program: "usr/bin/tcpsvd",
        user: None,
        filter: Filter::None,
        set_up: |setup| {
            let mut command = setup.command();
            command.args(["-l", "0", "-c", "100", "-C", &PLACES.to_string()]);
            command.arg(setup.at.ip().to_string()).arg(setup.at.port().to_string());
            command.arg(&setup.session).args(session_args());
            Ok(command)
        },
    },
    ServerKind {
        name: "xinetd-per-source",
        setting: "per_source",
        program: "usr/sbin/xinetd",
        user: None,
        filter: Filter::None,
        set_up: xinetd,
    },
    ServerKind {
        name: "tcpserver-total",
        setting: "tcpserver -c",
        program: "usr/bin/tcpserver",
        user: None,
        filter: Filter::None,
        set_up: |setup| {
            let mut command = setup.command();
            command.args(["-R", "-H", "-l", "0", "-b", "100", "-c", &PLACES.to_string()]);
            command.arg(setup.at.ip().to_string()).arg(setup.at.port().to_string());
            command.arg(&setup.session).args(session_args());
            Ok(command)
        },
    },
    ServerKind {
        name: "no-limit",
        setting: "tcpserver -c 100: takes all",
        program: "usr/bin/tcpserver",
        user: None,
        filter: Filter::None,
        set_up: |setup| {
            let mut command = setup.command();
            command.args(["-R", "-H", "-l", "0", "-b", "100", "-c", "100"]);
            command.arg(setup.at.ip().to_string()).arg(setup.at.port().to_string());
            command.arg(&setup.session).args(session_args());
            Ok(command)
        },
    },
];

const POSTFIX: &str = "usr/lib/postfix/sbin/master";
const EXIM: &str = "usr/sbin/exim4";
/// The user name that is compiled into Debian's Exim.
const EXIM_USER: &str = "Debian-exim";
const SENDMAIL: &str = "usr/libexec/sendmail/sendmail";

/// The first argument that makes this program an SMTP session, see [`crate::session`].
pub const SESSION: &str = "--session";

fn session_args() -> [String; 2] {
    [SESSION.to_owned(), HOLD.as_secs_f64().to_string()]
}

/// What a server's configuration is made of.
pub(super) struct ServerSetup<'p> {
    /// Its own folder, which every user can enter.
    pub(super) dir: &'p Path,
    /// The folder in which its package is unpacked, or /.
    pub(super) root: &'p Path,
    pub(super) program: PathBuf,
    /// Where its libraries are.
    pub(super) libraries: String,
    pub(super) at: SocketAddrV4,
    /// This program.
    pub(super) session: PathBuf,
}

impl ServerSetup<'_> {
    fn command(&self) -> Command {
        self.run(&self.program)
    }

    fn run(&self, program: &Path) -> Command {
        let mut command = Command::new(program);
        command.env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").current_dir("/");
        if !self.libraries.is_empty() {
            command.env("LD_LIBRARY_PATH", &self.libraries);
        }
        command
    }

    fn write(&self, name: &str, text: &str) -> Result<PathBuf> {
        let path = self.dir.join(name);
        fs::write(&path, text).map_err(Error::doing(format!("write {}", path.display())))?;
        Ok(path)
    }

    fn make_dir(&self, name: &str, owner: &str) -> Result<()> {
        let path = self.dir.join(name);
        let user = User::from_name(owner).ok().flatten();
        let user = user.ok_or_else(|| Error::new(format!("there is no user {owner}"), ""))?;
        fs::create_dir_all(&path)
            .map_err(Error::doing(format!("make {}", path.display())))
            .and_then(|()| {
                chown(&path, Some(user.uid), Some(user.gid))
                    .map_err(Error::doing("change an owner"))
            })
    }
}

fn postfix(setup: &ServerSetup, processes: &str, count_limit: u32) -> Result<Command> {
    let dir = setup.dir.display();
    let root = setup.root.display();
    // Postfix needs two users that differ and exist: Debian has these without Postfix.
    setup.write(
        "main.cf",
        &format!(
            "compatibility_level = 3.6\nqueue_directory = {dir}/queue\ndata_directory = {dir}/data\n\
             daemon_directory = {root}/usr/lib/postfix/sbin\ncommand_directory = {root}/usr/sbin\n\
             shlib_directory = {root}/usr/lib/postfix\nmeta_directory = {dir}\nin_flow_delay = 0\n\
             mail_owner = mail\nsetgid_group = news\n\
             import_environment = LD_LIBRARY_PATH MAIL_CONFIG\n\
             maillog_file = {dir}/log\nmaillog_file_prefixes = {dir}\n\
             myhostname = server.bench.example\nmydestination =\nalias_maps =\nlocal_recipient_maps =\n\
             inet_protocols = ipv4\nmynetworks = 127.0.0.0/8\nsmtpd_relay_restrictions = permit_mynetworks, reject\n\
             smtpd_peername_lookup = no\nsmtpd_client_event_limit_exceptions =\n\
             smtpd_client_connection_count_limit = {count_limit}\n\
             smtpd_milters = inet:127.0.0.1:{MILTER_PORT}\nmilter_default_action = tempfail\n"
        ),
    )?;
    setup.write("dynamicmaps.cf", "")?;
    let mut master = format!("{} inet n - n - {processes} smtpd\n", setup.at);
    for (name, private, limit, program) in [
        ("cleanup", "n", "0", "cleanup"),
        ("rewrite", "-", "-", "trivial-rewrite"),
        ("proxymap", "-", "-", "proxymap"),
        ("anvil", "-", "1", "anvil"),
    ] {
        let _ = writeln!(master, "{name} unix {private} - n - {limit} {program}");
    }
    master.push_str("postlog unix-dgram n - n - 1 postlogd\n");
    setup.write("master.cf", &master)?;
    setup.make_dir("data", "mail")?;
    setup.make_dir("queue", "root")?;
    setup.make_dir("queue/pid", "root")?;
    for name in [
        "active", "bounce", "corrupt", "defer", "deferred", "flush", "hold", "incoming", "private",
        "public", "saved", "trace",
    ] {
        setup.make_dir(&format!("queue/{name}"), "mail")?;
    }
    let mut command = setup.command();
    command.arg("-d").arg("-c").arg(setup.dir);
    Ok(command)
}

fn exim(setup: &ServerSetup, most: u32, per_host: u32) -> Result<Command> {
    let dir = setup.dir.display();
    let (ip, port) = (setup.at.ip(), setup.at.port());
    setup.make_dir("spool", EXIM_USER)?;
    let per_host = if per_host > 0 {
        format!("smtp_accept_max_per_host = {per_host}\n")
    } else {
        String::new()
    };
    let path = setup.write(
        "exim.conf",
        &format!(
            "primary_hostname = server.bench.example\nspool_directory = {dir}/spool\n\
             log_file_path = {dir}/spool/%slog\n\
             local_interfaces = {ip}\ndaemon_smtp_ports = {port}\nsmtp_accept_max = {most}\n{per_host}\
             host_lookup =\nrfc1413_query_timeout = 0s\ntls_advertise_hosts =\nkeep_environment =\n\
             acl_smtp_rcpt = accept\nacl_smtp_data = data\n\
             begin acl\ndata:\n  discard delay = {}s\n",
            HOLD.as_secs()
        ),
    )?;
    let mut command = setup.command();
    command.arg("-bdf").arg("-C").arg(path);
    Ok(command)
}

fn sendmail(setup: &ServerSetup, setting: &str) -> Result<Command> {
    let dir = setup.dir.display();
    let (ip, port) = (setup.at.ip(), setup.at.port());
    setup.make_dir("queue", "root")?;
    // No mail is delivered, so there is nothing to rewrite: every address goes to one mailer.
    let path = setup.write(
        "sendmail.cf",
        &format!(
            "V10\nDjserver.bench.example\nDnMAILER-DAEMON\n\
             O QueueDirectory={dir}/queue\nO PidFile={dir}/pid\nO LogLevel=1\nO Timeout.ident=0\n\
             O DontBlameSendmail=TrustStickyBit\n\
             O DontProbeInterfaces=True\nO RefuseLA=0\nO QueueLA=0\nO DelayLA=0\n\
             O DaemonPortOptions=Name=MTA, Family=inet, Addr={ip}, Port={port}\n\
             O InputMailFilters=bench\nXbench, S=inet:{MILTER_PORT}@127.0.0.1, F=T\n\
             Mlocal, P=[IPC], F=lmDFMuXk, A=TCP $h\nMprog, P=[IPC], F=lmDFMuXk, A=TCP $h\n\
             S0\nR$*\t$#local $@ nowhere $: $1\n{setting}"
        ),
    )?;
    fs::set_permissions(setup.dir.join("queue"), Permissions::from_mode(0o700))
        .map_err(Error::doing("set a mode"))?;
    // Debian installs sendmail set-group-id, and such a program ignores LD_LIBRARY_PATH.
    let program = setup.dir.join("sendmail");
    fs::copy(&setup.program, &program)
        .and_then(|_| fs::set_permissions(&program, Permissions::from_mode(0o755)))
        .map_err(Error::doing("copy sendmail"))?;
    let mut command = setup.run(&program);
    command.arg("-bD").arg(format!("-C{}", path.display()));
    Ok(command)
}

fn xinetd(setup: &ServerSetup) -> Result<Command> {
    let dir = setup.dir.display();
    let path = setup.write(
        "xinetd.conf",
        &format!(
            "service bench\n{{\n  type = UNLISTED\n  socket_type = stream\n  protocol = tcp\n  wait = no\n  user = {}\n\
             bind = {}\n  port = {}\n  server = {}\n  server_args = {}\n  cps = 10000 1\n  instances = UNLIMITED\n\
             per_source = {PLACES}\n  log_type = FILE {dir}/log\n}}\n",
            geteuid(),
            setup.at.ip(),
            setup.at.port(),
            setup.session.display(),
            session_args().join(" "),
        ),
    )?;
    let mut command = setup.command();
    command.args(["-dontfork", "-inetd_ipv6"]);
    command.arg("-pidfile").arg(setup.dir.join("pid")).arg("-f").arg(path);
    Ok(command)
}
