//! S7: real servers at the far end, each set to five sessions or with a mail filter that defers, and the gate before
//! them.
//!
//! What is measured here is what the sink's 421 cannot show: a server that closes its listening socket, that hangs up
//! without a word, that serves the next one only when a place is free, that counts a session longer than it lasts, or
//! that says "not now" for reasons of its own.

use std::collections::HashSet;
use std::fmt::Write as _;
use std::fs::{self, Permissions};
use std::io::{BufRead, BufReader, Read, Write as _};
use std::net::{SocketAddrV4, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, killpg};
use nix::unistd::{Pid, User, chown, geteuid};
use serde::Serialize;
use tempfile::TempDir;

use crate::error::{Error, Result, check_signals};
use crate::milter::{Milter, Takes, is_taken};
use crate::plan::{Domain, Known, Mail, Plan, Route, address, domain_name};
use crate::qmail::Qmail;
use crate::run::Subject as _;
use crate::sink::{Behaviour, Server as Address, Service};
use crate::usage;

/// How many sessions a server with a limit has.
pub const PLACES: u32 = 5;
/// What the table says where limits learn.
pub const LIMIT: u32 = 20;
/// How long a server takes for a mail.
pub const HOLD: Duration = Duration::from_secs(1);
/// How many mails there are, at `--scale 1`.
pub const MAILS: usize = 200;
/// After this time a run is over, or when nothing is left but what was deferred as a try: that comes again after 400 s.
const MOST: Duration = Duration::from_secs(120);
/// The filter that is down comes up after this time, and then the second half of the mail arrives.
const DOWN: Duration = Duration::from_secs(10);

const MILTER_PORT: u16 = 25027;

/// What is special about the mail, and about the server's filter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Filter {
    /// It is none of its business.
    None,
    /// It holds each mail.
    Holds,
    /// It defers every second recipient as well.
    EverySecond,
    /// It does not run until [`DOWN`].
    Down,
}

/// A server and the setting that limits it.
#[derive(Debug, Clone, Copy)]
pub struct Kind {
    /// What `--server` calls it.
    pub name: &'static str,
    /// The setting.
    pub setting: &'static str,
    /// Its program, below the folder of its package.
    program: &'static str,
    /// Who has to exist for it, and its queue's owner.
    user: Option<&'static str>,
    filter: Filter,
    set_up: fn(&Place) -> Result<Command>,
}

/// All of them.
pub const KINDS: [Kind; 13] = [
    Kind {
        name: "postfix-count",
        setting: "smtpd_client_connection_count_limit",
        program: POSTFIX,
        user: Some("mail"),
        filter: Filter::Holds,
        set_up: |place| postfix(place, "-", PLACES),
    },
    Kind {
        name: "postfix-processes",
        setting: "maxproc of smtpd in master.cf",
        program: POSTFIX,
        user: Some("mail"),
        filter: Filter::Holds,
        set_up: |place| postfix(place, &PLACES.to_string(), 0),
    },
    Kind {
        name: "postfix-milter",
        setting: "no limit; a milter defers every second recipient",
        program: POSTFIX,
        user: Some("mail"),
        filter: Filter::EverySecond,
        set_up: |place| postfix(place, "-", 0),
    },
    Kind {
        name: "postfix-milter-down",
        setting: "no limit; a milter is down for 10 s, then the second half of the mail comes",
        program: POSTFIX,
        user: Some("mail"),
        filter: Filter::Down,
        set_up: |place| postfix(place, "-", 0),
    },
    Kind {
        name: "exim-max",
        setting: "smtp_accept_max",
        program: EXIM,
        user: Some(EXIM_USER),
        filter: Filter::None,
        set_up: |place| exim(place, PLACES, 0),
    },
    Kind {
        name: "exim-per-host",
        setting: "smtp_accept_max_per_host",
        program: EXIM,
        user: Some(EXIM_USER),
        filter: Filter::None,
        set_up: |place| exim(place, 100, PLACES),
    },
    Kind {
        name: "sendmail-children",
        setting: "MaxDaemonChildren",
        program: SENDMAIL,
        user: Some("root"),
        filter: Filter::Holds,
        set_up: |place| sendmail(place, &format!("O MaxDaemonChildren={PLACES}\n")),
    },
    Kind {
        name: "sendmail-conncontrol",
        setting: "conncontrol, terminate",
        program: SENDMAIL,
        user: Some("root"),
        filter: Filter::Holds,
        // The rule that FEATURE(conncontrol, nodelay, terminate) makes, with its figure written in.
        set_up: |place| {
            sendmail(
                place,
                &format!(
                    "Karith arith\nScheck_relay\nR$*\t$: $(arith l $@ {PLACES} $@ $&{{client_connections}} $)\n\
                     RTRUE\t$#error $@ 4.3.2 $: 421 Too many open connections.\n"
                ),
            )
        },
    },
    Kind {
        name: "courier-per-ip",
        setting: "couriertcpd -maxperip (MAXPERIP)",
        program: "usr/sbin/couriertcpd",
        user: None,
        filter: Filter::None,
        set_up: |place| {
            let places = format!("-maxperip={PLACES}");
            let mut command = place.command();
            command.args(["-nodnslookup", "-noidentlookup", "-maxprocs=100", "-maxperc=100"]);
            command.args([&places, &format!("-address={}", place.at.ip())]);
            command.arg(place.at.port().to_string()).arg(&place.session).args(session_args());
            Ok(command)
        },
    },
    Kind {
        name: "tcpsvd-per-host",
        setting: "tcpsvd -C",
        program: "usr/bin/tcpsvd",
        user: None,
        filter: Filter::None,
        set_up: |place| {
            let mut command = place.command();
            command.args(["-l", "0", "-c", "100", "-C", &PLACES.to_string()]);
            command.arg(place.at.ip().to_string()).arg(place.at.port().to_string());
            command.arg(&place.session).args(session_args());
            Ok(command)
        },
    },
    Kind {
        name: "xinetd-per-source",
        setting: "per_source",
        program: "usr/sbin/xinetd",
        user: None,
        filter: Filter::None,
        set_up: xinetd,
    },
    Kind {
        name: "tcpserver-total",
        setting: "tcpserver -c",
        program: "usr/bin/tcpserver",
        user: None,
        filter: Filter::None,
        set_up: |place| {
            let mut command = place.command();
            command.args(["-R", "-H", "-l", "0", "-b", "100", "-c", &PLACES.to_string()]);
            command.arg(place.at.ip().to_string()).arg(place.at.port().to_string());
            command.arg(&place.session).args(session_args());
            Ok(command)
        },
    },
    Kind {
        name: "no-limit",
        setting: "tcpserver -c 100: takes all",
        program: "usr/bin/tcpserver",
        user: None,
        filter: Filter::None,
        set_up: |place| {
            let mut command = place.command();
            command.args(["-R", "-H", "-l", "0", "-b", "100", "-c", "100"]);
            command.arg(place.at.ip().to_string()).arg(place.at.port().to_string());
            command.arg(&place.session).args(session_args());
            Ok(command)
        },
    },
];

const POSTFIX: &str = "usr/lib/postfix/sbin/master";
const EXIM: &str = "usr/sbin/exim4";
/// Debian's has this name compiled in.
const EXIM_USER: &str = "Debian-exim";
const SENDMAIL: &str = "usr/libexec/sendmail/sendmail";

/// How this program is told to be a session, see [`crate::session`].
pub const SESSION: &str = "--session";

fn session_args() -> [String; 2] {
    [SESSION.to_owned(), HOLD.as_secs_f64().to_string()]
}

/// What a server's configuration is made of.
struct Place<'p> {
    /// Its own, which everybody can enter.
    dir: &'p Path,
    /// The folder that its package is unpacked in, or /.
    root: &'p Path,
    program: PathBuf,
    /// Where its libraries are.
    libraries: String,
    at: SocketAddrV4,
    /// This program.
    session: PathBuf,
}

impl Place<'_> {
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

fn postfix(place: &Place, processes: &str, count_limit: u32) -> Result<Command> {
    let dir = place.dir.display();
    let root = place.root.display();
    // The users only have to be there, each for itself: Debian has them without Postfix.
    place.write(
        "main.cf",
        &format!(
            "compatibility_level = 3.6\nqueue_directory = {dir}/queue\ndata_directory = {dir}/data\n\
             daemon_directory = {root}/usr/lib/postfix/sbin\ncommand_directory = {root}/usr/sbin\n\
             shlib_directory = {root}/usr/lib/postfix\nmeta_directory = {dir}\nin_flow_delay = 0\nmail_owner = mail\nsetgid_group = news\n\
             import_environment = LD_LIBRARY_PATH MAIL_CONFIG\nmaillog_file = {dir}/log\nmaillog_file_prefixes = {dir}\n\
             myhostname = server.bench.example\nmydestination =\nalias_maps =\nlocal_recipient_maps =\n\
             inet_protocols = ipv4\nmynetworks = 127.0.0.0/8\nsmtpd_relay_restrictions = permit_mynetworks, reject\n\
             smtpd_peername_lookup = no\nsmtpd_client_event_limit_exceptions =\n\
             smtpd_client_connection_count_limit = {count_limit}\n\
             smtpd_milters = inet:127.0.0.1:{MILTER_PORT}\nmilter_default_action = tempfail\n"
        ),
    )?;
    place.write("dynamicmaps.cf", "")?;
    let mut master = format!("{} inet n - n - {processes} smtpd\n", place.at);
    for (name, private, limit, program) in [
        ("cleanup", "n", "0", "cleanup"),
        ("rewrite", "-", "-", "trivial-rewrite"),
        ("proxymap", "-", "-", "proxymap"),
        ("anvil", "-", "1", "anvil"),
    ] {
        let _ = writeln!(master, "{name} unix {private} - n - {limit} {program}");
    }
    master.push_str("postlog unix-dgram n - n - 1 postlogd\n");
    place.write("master.cf", &master)?;
    place.make_dir("data", "mail")?;
    place.make_dir("queue", "root")?;
    place.make_dir("queue/pid", "root")?;
    for name in [
        "active", "bounce", "corrupt", "defer", "deferred", "flush", "hold", "incoming", "private",
        "public", "saved", "trace",
    ] {
        place.make_dir(&format!("queue/{name}"), "mail")?;
    }
    let mut command = place.command();
    command.arg("-d").arg("-c").arg(place.dir);
    Ok(command)
}

fn exim(place: &Place, most: u32, per_host: u32) -> Result<Command> {
    let dir = place.dir.display();
    let (ip, port) = (place.at.ip(), place.at.port());
    place.make_dir("spool", EXIM_USER)?;
    let per_host = if per_host > 0 {
        format!("smtp_accept_max_per_host = {per_host}\n")
    } else {
        String::new()
    };
    let path = place.write(
        "exim.conf",
        &format!(
            "primary_hostname = server.bench.example\nspool_directory = {dir}/spool\nlog_file_path = {dir}/spool/%slog\n\
             local_interfaces = {ip}\ndaemon_smtp_ports = {port}\nsmtp_accept_max = {most}\n{per_host}\
             host_lookup =\nrfc1413_query_timeout = 0s\ntls_advertise_hosts =\nkeep_environment =\n\
             acl_smtp_rcpt = accept\nacl_smtp_data = data\n\
             begin acl\ndata:\n  discard delay = {}s\n",
            HOLD.as_secs()
        ),
    )?;
    let mut command = place.command();
    command.arg("-bdf").arg("-C").arg(path);
    Ok(command)
}

fn sendmail(place: &Place, setting: &str) -> Result<Command> {
    let dir = place.dir.display();
    let (ip, port) = (place.at.ip(), place.at.port());
    place.make_dir("queue", "root")?;
    // No mail is delivered, so there is nothing to rewrite: every address goes to one mailer.
    let path = place.write(
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
    fs::set_permissions(place.dir.join("queue"), Permissions::from_mode(0o700))
        .map_err(Error::doing("set a mode"))?;
    // Debian's is installed set-group-id, and such a program does not look into LD_LIBRARY_PATH.
    let program = place.dir.join("sendmail");
    fs::copy(&place.program, &program)
        .and_then(|_| fs::set_permissions(&program, Permissions::from_mode(0o755)))
        .map_err(Error::doing("copy sendmail"))?;
    let mut command = place.run(&program);
    command.arg("-bD").arg(format!("-C{}", path.display()));
    Ok(command)
}

fn xinetd(place: &Place) -> Result<Command> {
    let dir = place.dir.display();
    let path = place.write(
        "xinetd.conf",
        &format!(
            "service bench\n{{\n  type = UNLISTED\n  socket_type = stream\n  protocol = tcp\n  wait = no\n  user = {}\n\
             bind = {}\n  port = {}\n  server = {}\n  server_args = {}\n  cps = 10000 1\n  instances = UNLIMITED\n\
             per_source = {PLACES}\n  log_type = FILE {dir}/log\n}}\n",
            geteuid(),
            place.at.ip(),
            place.at.port(),
            place.session.display(),
            session_args().join(" "),
        ),
    )?;
    let mut command = place.command();
    command.args(["-dontfork", "-inetd_ipv6"]);
    command.arg("-pidfile").arg(place.dir.join("pid")).arg("-f").arg(path);
    Ok(command)
}

/// A server that runs. Dropping it ends it and everything that it has started and that has not left its group.
#[derive(Debug)]
struct Running {
    child: Child,
    /// Its files.
    _dir: TempDir,
}

impl Drop for Running {
    fn drop(&mut self) {
        let group = Pid::from_raw(self.child.id().cast_signed());
        // Not waited for yet: the number is still its own.
        let _ = killpg(group, Signal::SIGTERM);
        let until = Instant::now() + Duration::from_secs(2);
        while matches!(self.child.try_wait(), Ok(None)) && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(5));
        }
        let _ = killpg(group, Signal::SIGKILL);
        let _ = self.child.wait();
    }
}

/// The folder that has the program of `kind`: one of those in `servers`, or the system's.
fn find(kind: &Kind, servers: &Path) -> std::result::Result<PathBuf, String> {
    let mut folders: Vec<PathBuf> =
        fs::read_dir(servers).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
    folders.sort();
    folders.push(PathBuf::from("/"));
    folders
        .into_iter()
        .find(|folder| folder.join(kind.program).is_file())
        .ok_or_else(|| format!("skipped: no {}", kind.program))
}

/// The folders below `root` that shared libraries are in, to two levels: lib, lib/TRIPLET, lib/PACKAGE.
fn libraries(root: &Path) -> String {
    if root == Path::new("/") {
        return String::new();
    }
    let subfolders = |dir: &PathBuf| -> Vec<PathBuf> {
        let entries = fs::read_dir(dir).into_iter().flatten().flatten();
        entries.map(|entry| entry.path()).filter(|path| path.is_dir()).collect()
    };
    let tops: Vec<PathBuf> = ["usr/lib", "lib"].map(|top| root.join(top)).to_vec();
    let first: Vec<PathBuf> = tops.iter().flat_map(subfolders).collect();
    let second: Vec<PathBuf> = first.iter().flat_map(subfolders).collect();
    let has_library = |dir: &PathBuf| {
        let mut entries = fs::read_dir(dir).into_iter().flatten().flatten();
        entries.any(|entry| entry.file_name().to_string_lossy().contains(".so"))
    };
    let all = tops.into_iter().chain(first).chain(second).filter(has_library);
    all.map(|dir| dir.display().to_string()).collect::<Vec<_>>().join(":")
}

/// Starts a server and returns when it has greeted somebody.
fn start(kind: &Kind, root: &Path, at: SocketAddrV4, parent: &Path) -> Result<Running> {
    let dir = tempfile::Builder::new()
        .prefix("qpatch-bench-server.")
        .tempdir_in(parent)
        .map_err(Error::doing("make a directory for a server"))?;
    fs::set_permissions(dir.path(), Permissions::from_mode(0o755))
        .map_err(Error::doing("set the mode of a server's directory"))?;
    let place = Place {
        dir: dir.path(),
        root,
        program: root.join(kind.program),
        libraries: libraries(root),
        at,
        session: std::env::current_exe().map_err(Error::doing("find this program"))?,
    };
    let mut command = (kind.set_up)(&place)?;
    let said = fs::File::create(dir.path().join("said")).map_err(Error::doing("make a file"))?;
    let said_too = said.try_clone().map_err(Error::doing("make a file"))?;
    command.stdin(Stdio::null()).stdout(said).stderr(said_too).process_group(0);
    let child = command.spawn().map_err(Error::doing(format!("start {}", kind.program)))?;
    let mut running = Running { child, _dir: dir };
    let until = Instant::now() + Duration::from_secs(20);
    while !greets(at) {
        check_signals()?;
        let ended = running.child.try_wait().map_err(Error::doing("wait for a server"))?;
        if ended.is_some() || Instant::now() > until {
            return Err(Error::new(
                format!("{} does not greet: {}", kind.name, words(running._dir.path())),
                "",
            ));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(running)
}

/// What a server has said into its files: the last lines of each.
fn words(dir: &Path) -> String {
    let mut all = Vec::new();
    for name in ["said", "log", "spool/mainlog", "spool/paniclog"] {
        let text = fs::read(dir.join(name)).unwrap_or_default();
        let text = String::from_utf8_lossy(&text).into_owned();
        let lines: Vec<&str> = text.lines().rev().take(3).collect();
        all.extend(lines.into_iter().rev().map(str::to_owned));
    }
    all.join(" / ")
}

/// Whether somebody greets there. The session is ended, and its end is waited for.
fn greets(at: SocketAddrV4) -> bool {
    let Ok(stream) = TcpStream::connect(at) else { return false };
    let _ = stream.set_read_timeout(Some(Duration::from_secs(10)));
    let mut reader = BufReader::new(&stream);
    let mut line = String::new();
    if reader.read_line(&mut line).is_err() || !line.starts_with("220") {
        return false;
    }
    (&stream).write_all(b"QUIT\r\n").is_ok() && reader.read_to_end(&mut Vec::new()).is_ok()
}

/// What a run with a real server has shown.
#[derive(Debug, Serialize)]
pub struct Outcome {
    /// [`Kind::name`].
    pub server: &'static str,
    /// control/concurrencydomains.
    pub table: String,
    /// How many mails the server would take,
    pub wanted: usize,
    /// and how many of them it has taken within 120 s.
    pub delivered: usize,
    /// From the arrival of the first of them to the delivery of the last, in seconds; None: not all were.
    pub secs: Option<f64>,
    /// The same for a client that always has as many sessions as the server takes, and as the table lets it.
    pub ideal_secs: f64,
    /// Deliveries that the server refused, and that the gate did not count as a try.
    pub returned: usize,
    /// Those that were deferred as a try. In `postfix-milter` and `-milter-down` half of the mail should be.
    pub deferred: usize,
    /// Those that were deferred without a try because the key was suspended.
    pub suspended: usize,
    /// The effective limit: since the start in seconds, and what it was from then on.
    pub limits: Vec<(f64, u32)>,
}

/// Where it is done, and how much.
#[derive(Debug)]
pub struct Loop<'l> {
    /// The folder with the unpacked packages.
    pub servers: &'l Path,
    /// Where temporary directories can be made.
    pub parent: &'l Path,
    /// The servers' port.
    pub port: u16,
    /// How many mails.
    pub mails: usize,
    /// concurrencyremote.
    pub concurrency: u32,
}

/// Those who have to be in /etc/passwd for the servers of `kinds`.
pub fn users<'k>(kinds: &[&'k Kind]) -> Vec<&'k str> {
    kinds.iter().filter_map(|kind| kind.user).collect::<HashSet<_>>().into_iter().collect()
}

/// The mail: by number, whether the server would take it, and half of it after [`DOWN`] where the filter is down.
fn plan(kind: &Kind, table: &str, setting: &Loop) -> Plan {
    let down = kind.filter == Filter::Down;
    let takes = |mail: usize| match kind.filter {
        Filter::None | Filter::Holds => true,
        Filter::EverySecond => is_taken(mail as u32),
        Filter::Down => mail >= setting.mails / 2,
    };
    let class_of = |mail| Mail { domain: 0, class: usize::from(!takes(mail)) };
    let (later, before): (Vec<u32>, Vec<u32>) =
        (0..setting.mails as u32).partition(|mail| down && takes(*mail as usize));
    Plan {
        domains: vec![Domain { name: domain_name(0), server: 0 }],
        servers: vec![Address {
            address: address(0),
            behaviour: Behaviour::Serve(Service::holding(HOLD)),
        }],
        route: Route::Table,
        known: Known::Nothing,
        mails: (0..setting.mails).map(class_of).collect(),
        classes: 2,
        before,
        lists: Vec::new(),
        arrivals: later.into_iter().map(|mail| (DOWN, mail)).collect(),
        later: Vec::new(),
        wanted: vec![0],
        most: MOST,
        table: table.to_owned(),
        cap: LIMIT,
        concurrency: setting.concurrency,
        patience: Duration::from_secs(60),
    }
}

/// Runs one of them; Err(Ok(why)) if it cannot be run here.
pub fn run(
    kind: &Kind,
    table: &str,
    qmail: &mut Qmail,
    setting: &Loop,
) -> Result<std::result::Result<Outcome, String>> {
    if kind.user.is_some() && !geteuid().is_root() {
        return Ok(Err("skipped: it can only be started by root".to_owned()));
    }
    let root = match find(kind, setting.servers) {
        Ok(root) => root,
        Err(why) => return Ok(Err(why)),
    };
    let plan = plan(kind, table, setting);
    let takes = if kind.filter == Filter::EverySecond { Takes::EverySecond } else { Takes::All };
    let milter = || Milter::start(MILTER_PORT, takes, HOLD);
    let mut filter = match kind.filter {
        Filter::Holds | Filter::EverySecond => Some(milter()?),
        Filter::None | Filter::Down => None,
    };
    let at = SocketAddrV4::new(address(0), setting.port);
    let server = start(kind, &root, at, setting.parent)?;
    qmail.set_sender("bench@bench.example");
    qmail.prepare(&plan, setting.port)?;
    for &mail in &plan.before {
        qmail.queue(&plan, mail)?;
    }
    qmail.start()?;
    let started = Instant::now();
    let wanted = plan.count(0);
    let is_wanted = |mail: &u32| plan.mails[*mail as usize].class == 0;
    // How many are delivered, and how many more can be within the time.
    let state = |qmail: &Qmail| -> Result<(usize, usize)> {
        let told = qmail.told()?;
        if told.failed > 0 {
            let what = format!("{} refuses mail for good: {:?}", kind.name, told.complaints);
            return Err(Error::new(what, ""));
        }
        let taken: HashSet<u32> =
            told.delivered.into_iter().map(|(_, mail)| mail).filter(is_wanted).collect();
        let waiting: HashSet<u32> = told
            .deferred_mails
            .into_iter()
            .filter(|mail| is_wanted(mail) && !taken.contains(mail))
            .collect();
        Ok((taken.len(), wanted - taken.len() - waiting.len()))
    };
    let mut limits: Vec<(f64, u32)> = Vec::new();
    let mut ceiling = LIMIT;
    let mut waiting = plan.arrivals.clone();
    let complete = loop {
        check_signals()?;
        let secs = started.elapsed().as_secs_f64();
        if let Some((configured, limit)) = qmail.limits() {
            ceiling = configured;
            if limits.last().is_none_or(|(_, last)| *last != limit) {
                limits.push((secs, limit));
            }
        }
        if !waiting.is_empty() && started.elapsed() >= DOWN {
            filter = Some(milter()?);
            for (_, mail) in waiting.drain(..) {
                qmail.queue(&plan, mail)?;
            }
            qmail.tell()?;
        }
        let (taken, left) = state(qmail)?;
        if left == 0 || started.elapsed() >= plan.most {
            break taken == wanted;
        }
        qmail.check()?;
        std::thread::sleep(Duration::from_millis(50));
    };
    let told = qmail.stop()?;
    drop(server);
    drop(filter);
    usage::reap_all(Duration::from_secs(20))?;
    let taken: Vec<f64> =
        told.delivered.iter().filter(|(_, mail)| is_wanted(mail)).map(|(secs, _)| *secs).collect();
    let from = if kind.filter == Filter::Down { DOWN.as_secs_f64() } else { 0.0 };
    let last = taken.iter().copied().fold(0.0, f64::max);
    let places = match kind.filter {
        Filter::EverySecond | Filter::Down => ceiling,
        _ if kind.name == "no-limit" => ceiling,
        Filter::None | Filter::Holds => ceiling.min(PLACES),
    };
    Ok(Ok(Outcome {
        server: kind.name,
        table: table.to_owned(),
        wanted,
        delivered: taken.len(),
        secs: complete.then_some(last - from),
        ideal_secs: wanted as f64 * HOLD.as_secs_f64() / f64::from(places.max(1)),
        returned: told.returned,
        deferred: told.deferred,
        suspended: told.suspended,
        limits,
    }))
}

/// A table in Markdown.
pub fn to_table(outcomes: &[Outcome]) -> String {
    let mut text = String::from(
        "| server | table | delivered | s | ideal, s | refused, no try | deferred as a try | suspended | the limit |\n\
         | --- | --- | --- | --- | --- | --- | --- | --- | --- |\n",
    );
    for outcome in outcomes {
        let secs = outcome.secs.map_or_else(|| "-".to_owned(), |secs| format!("{secs:.1}"));
        let _ = writeln!(
            text,
            "| {} | {} | {} of {} | {secs} | {:.0} | {} | {} | {} | {} |",
            outcome.server,
            outcome.table.trim_end().replace('\n', "; "),
            outcome.delivered,
            outcome.wanted,
            outcome.ideal_secs,
            outcome.returned,
            outcome.deferred,
            outcome.suspended,
            over_time(&outcome.limits),
        );
    }
    text
}

/// `20, 5 at 0.3 s, 6 at 20 s`, of many changes the first and the last.
fn over_time(limits: &[(f64, u32)]) -> String {
    const SHOWN: usize = 4;
    let one = |(secs, limit): &(f64, u32)| format!("{limit} at {secs:.0} s");
    let all: Vec<String> = limits.iter().map(one).collect();
    if all.len() <= 2 * SHOWN {
        return all.join(", ");
    }
    let least = limits.iter().map(|(_, limit)| limit).min().copied().unwrap_or(0);
    let (head, tail) = (all[..SHOWN].join(", "), all[all.len() - SHOWN..].join(", "));
    format!("{head}, ... {tail} ({} changes, lowest {least})", all.len() - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_is_found_in_any_folder_with_its_libraries_and_missed_by_name() {
        let servers = tempfile::tempdir().expect("a directory");
        let kind = KINDS.iter().find(|kind| kind.name == "courier-per-ip").expect("it is there");
        let nowhere = Kind { program: "usr/sbin/no-such-program", ..*kind };
        assert_eq!(
            find(&nowhere, servers.path()),
            Err("skipped: no usr/sbin/no-such-program".to_owned())
        );
        for (folder, file) in [
            ("a", "usr/bin/something"),
            ("b", "usr/sbin/no-such-program"),
            ("b", "usr/lib/some-triplet/libone.so.1"),
            ("b", "usr/lib/some-triplet/private/libtwo.so"),
            ("b", "usr/lib/text/file"),
        ] {
            let path = servers.path().join(folder).join(file);
            fs::create_dir_all(path.parent().expect("a parent")).expect("directories");
            fs::write(path, "").expect("a file");
        }
        let root = find(&nowhere, servers.path()).expect("it is in b");
        assert_eq!(root, servers.path().join("b"));
        let triplet = root.join("usr/lib/some-triplet");
        let expected = format!("{}:{}", triplet.display(), triplet.join("private").display());
        assert_eq!(libraries(&root), expected);
        assert_eq!(libraries(Path::new("/")), "");
    }

    #[test]
    fn the_mail_is_the_one_that_a_filter_lets_through() {
        let setting = Loop {
            servers: Path::new("/"),
            parent: Path::new("/"),
            port: 25,
            mails: 10,
            concurrency: 100,
        };
        let of = |name| KINDS.iter().find(|kind| kind.name == name).expect("it is there");
        let figures = |name| {
            let plan = plan(of(name), ":20\n", &setting);
            (plan.count(0), plan.before.len(), plan.arrivals.len())
        };
        assert_eq!(figures("exim-max"), (10, 10, 0));
        assert_eq!(figures("postfix-milter"), (5, 10, 0));
        assert_eq!(figures("postfix-milter-down"), (5, 5, 5));
    }

    #[test]
    fn a_limit_that_changes_often_is_told_by_its_ends() {
        let few = [(0.4, 20), (1.2, 5)];
        assert_eq!(over_time(&few), "20 at 0 s, 5 at 1 s");
        let many: Vec<(f64, u32)> =
            (0..30).map(|number| (f64::from(number), 30 - number)).collect();
        assert_eq!(
            over_time(&many),
            "30 at 0 s, 29 at 1 s, 28 at 2 s, 27 at 3 s, ... 4 at 26 s, 3 at 27 s, 2 at 28 s, 1 at 29 s (29 changes, lowest 1)"
        );
    }
}
