//! A private Postfix, with its own configuration, queue and log in a temporary directory. Its only listener takes a
//! single message, once, and the mail of plans in which mail comes in while it runs. The system's own Postfix, if there
//! is one, is not touched.
//!
//! The queue has the files that Postfix's own cleanup(8) would write, without that cost. One message goes in by SMTP
//! while no queue manager runs. Its queue file is the template of all others, whose recipients have the same length.

use std::collections::HashSet;
use std::fs::{self, Permissions};
use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::{Gid, Pid, Uid, User, chown, geteuid};
use tempfile::TempDir;

use crate::error::{Error, Result};
use crate::inject::Entrance;
use crate::plan::{Plan, Route, domain_name};
use crate::run::{SelfReport, Subject};
use crate::sink::local_part;
use crate::usage::{self, MemoryUse};

/// How long Postfix waits between two looks at deferred mail, and before it tries a mail or a destination again, in
/// seconds. The default of 300 would be longer than the scenarios.
pub const BACKOFF_SECS: u32 = 5;

/// The address at which it takes the one message.
const INJECT_PORT: u16 = 25026;

/// How long Postfix's one-shot programs may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// A private Postfix.
#[derive(Debug)]
pub struct Postfix {
    dir: TempDir,
    daemons: String,
    owner: (Uid, Gid),
    mould: Vec<u8>,
    master: Option<Pid>,
    started: Instant,
    before: usize,
    looked: Option<(Instant, usize)>,
    passed_secs: Option<f64>,
}

/// Whether Postfix listens for mail at [`INJECT_PORT`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Door {
    /// It does.
    Open,
    /// It does not.
    Closed,
}

/// The recipient in the template.
fn mould_recipient() -> String {
    format!("{}@{}", local_part(0), domain_name(0))
}

/// The version of the Postfix that is installed here; an error says why there is none that can run.
pub fn find() -> std::result::Result<String, String> {
    if !geteuid().is_root() {
        return Err("Postfix can only be started by root".to_owned());
    }
    let output = Command::new("postconf").args(["-d", "-h", "mail_version"]).output();
    match output {
        Ok(output) if output.status.success() => {
            Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
        }
        _ => Err("Postfix is not installed".to_owned()),
    }
}

fn default_of(name: &str) -> Result<String> {
    let output = Command::new("postconf")
        .args(["-d", "-h", name])
        .output()
        .map_err(Error::doing("run postconf"))?;
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

impl Postfix {
    /// Makes one in a directory below `parent`, which all users must be able to enter.
    pub fn new(parent: &Path) -> Result<Postfix> {
        let dir = tempfile::Builder::new()
            .prefix("qpatch-bench-postfix.")
            .tempdir_in(parent)
            .map_err(Error::doing("make a directory for Postfix"))?;
        fs::set_permissions(dir.path(), Permissions::from_mode(0o755))
            .map_err(Error::doing("set the mode of Postfix's directory"))?;
        let user =
            User::from_name("postfix")
                .map_err(Error::doing("look for the user postfix"))?
                .ok_or_else(|| Error::new("there is no user postfix", "install Postfix again"))?;
        for name in ["etc", "queue", "data"] {
            fs::create_dir(dir.path().join(name)).map_err(Error::doing("make a directory"))?;
        }
        chown(&dir.path().join("data"), Some(user.uid), None)
            .map_err(Error::doing("change the owner of a directory"))?;
        let mut postfix = Postfix {
            dir,
            daemons: default_of("daemon_directory")?,
            owner: (user.uid, user.gid),
            mould: Vec::new(),
            master: None,
            started: Instant::now(),
            before: 0,
            looked: None,
            passed_secs: None,
        };
        postfix.make_mould()?;
        Ok(postfix)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn write(&self, name: &str, text: &str) -> Result<()> {
        let path = self.path(name);
        fs::write(&path, text).map_err(Error::doing(format!("write {}", path.display())))
    }

    fn configure(&self, main: &str, queue_manager: bool, door: Door) -> Result<()> {
        let dir = self.dir.path().display();
        self.write(
            "etc/main.cf",
            &format!(
                "compatibility_level = 3.6\nqueue_directory = {dir}/queue\ndata_directory = {dir}/data\n\
                 maillog_file = {dir}/log\nmaillog_file_prefixes = {dir}\ndaemon_directory = {}\n\
                 myhostname = bench.example\nmydestination =\nlocal_recipient_maps =\nalias_maps =\n\
                 mynetworks = 127.0.0.0/8\ninet_interfaces = 127.0.0.1\ninet_protocols = ipv4\n\
                 smtpd_relay_restrictions = permit_mynetworks, reject\nnotify_classes =\nbiff = no\n\
                 smtp_tls_security_level = none\nsmtp_connection_cache_on_demand = no\n{main}",
                self.daemons
            ),
        )?;
        let mut master = String::new();
        if queue_manager {
            master.push_str("qmgr unix n - n 300 1 qmgr\n");
        }
        if door == Door::Open {
            master.push_str(&format!("127.0.0.1:{INJECT_PORT} inet n - n - - smtpd\n"));
        }
        for (name, private, limit, program) in [
            ("cleanup", "n", "0", "cleanup"),
            ("rewrite", "-", "-", "trivial-rewrite"),
            ("bounce", "-", "0", "bounce"),
            ("defer", "-", "0", "bounce"),
            ("trace", "-", "0", "bounce"),
            ("verify", "-", "1", "verify"),
            ("flush", "n", "0", "flush"),
            ("proxymap", "-", "-", "proxymap"),
            ("smtp", "-", "-", "smtp"),
            ("error", "-", "-", "error"),
            ("retry", "-", "-", "error"),
            ("discard", "-", "-", "discard"),
            ("anvil", "-", "1", "anvil"),
            ("scache", "-", "1", "scache"),
            ("postlog", "n", "1", "postlogd"),
        ] {
            let kind = if name == "postlog" { "unix-dgram" } else { "unix" };
            master.push_str(&format!("{name} {kind} {private} - n - {limit} {program}\n"));
        }
        self.write("etc/master.cf", &master)
    }

    /// Runs `postfix COMMAND` for this instance.
    fn command(&self, command: &str) -> Result<()> {
        let mut child = Command::new("postfix")
            .arg("-c")
            .arg(self.path("etc"))
            .arg(command)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .map_err(Error::doing("run postfix"))?;
        let until = Instant::now() + PATIENCE;
        loop {
            match child.try_wait().map_err(Error::doing("wait for postfix"))? {
                Some(status) if status.success() => return Ok(()),
                Some(status) => {
                    return Err(Error::new(
                        format!("postfix {command}: {status}; {}", self.last_lines()),
                        "",
                    ));
                }
                None if Instant::now() > until => {
                    let _ = child.kill();
                    let _ = child.wait();
                    return Err(Error::new(format!("postfix {command} takes too long"), ""));
                }
                None => std::thread::sleep(Duration::from_millis(5)),
            }
        }
    }

    fn log(&self) -> String {
        fs::read(self.path("log"))
            .map(|log| String::from_utf8_lossy(&log).into_owned())
            .unwrap_or_default()
    }

    fn last_lines(&self) -> String {
        let log = self.log();
        let lines: Vec<&str> = log.lines().rev().take(3).collect();
        lines.into_iter().rev().collect::<Vec<_>>().join(" / ")
    }

    fn run(&mut self) -> Result<()> {
        self.command("start")?;
        let path = self.path("queue/pid/master.pid");
        let text =
            fs::read_to_string(&path).map_err(Error::doing(format!("read {}", path.display())))?;
        let pid = text.trim().parse().map_err(Error::doing("read Postfix's process number"))?;
        self.master = Some(Pid::from_raw(pid));
        Ok(())
    }

    fn end(&mut self) -> Result<()> {
        let Some(master) = self.master.take() else { return Ok(()) };
        // Adopted and not waited for yet: the number is still its own.
        let _ = kill(master, Signal::SIGTERM);
        usage::reap_all(Duration::from_secs(20))
    }

    fn clear(&self) -> Result<()> {
        for name in ["queue", "data"] {
            let dir = self.path(name);
            for entry in fs::read_dir(&dir).map_err(Error::doing("read Postfix's directory"))? {
                let path = entry.map_err(Error::doing("read Postfix's directory"))?.path();
                let removed =
                    if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
                removed.map_err(Error::doing(format!("remove {}", path.display())))?;
            }
        }
        let _ = fs::remove_file(self.path("log"));
        // It makes the directories of its queue.
        self.command("check")
    }

    fn make_mould(&mut self) -> Result<()> {
        self.configure("", false, Door::Open)?;
        self.clear()?;
        self.run()?;
        let sent = send_one();
        let incoming = self.path("queue/incoming");
        let mut found = Vec::new();
        for entry in fs::read_dir(&incoming).map_err(Error::doing("read Postfix's queue"))? {
            found.push(entry.map_err(Error::doing("read Postfix's queue"))?.path());
        }
        self.end()?;
        sent?;
        let [file] = found.as_slice() else {
            return Err(Error::new(
                format!("Postfix has {} queue files where there should be one", found.len()),
                self.last_lines(),
            ));
        };
        self.mould = fs::read(file).map_err(Error::doing("read a queue file of Postfix"))?;
        Ok(())
    }

    fn incoming(&mut self) -> Result<usize> {
        if let Some((at, count)) = self.looked
            && at.elapsed() < Duration::from_millis(250)
        {
            return Ok(count);
        }
        let count = fs::read_dir(self.path("queue/incoming"))
            .map_err(Error::doing("read Postfix's queue"))?
            .count();
        self.looked = Some((Instant::now(), count));
        Ok(count)
    }
}

/// Gives the one message to smtpd(8).
fn send_one() -> Result<()> {
    let mut session = SmtpSession::default();
    session.put(&mould_recipient())?;
    session.say("QUIT\r\n", "221")
}

/// A session with smtpd(8), which takes mail after mail, and is opened again when smtpd has closed it.
#[derive(Debug, Default)]
struct SmtpSession {
    stream: Option<BufReader<TcpStream>>,
}

impl SmtpSession {
    fn open(&mut self) -> Result<()> {
        let failed = |error: std::io::Error| {
            Error::new(format!("cannot reach Postfix's smtpd: {error}"), "")
        };
        let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, INJECT_PORT)).map_err(failed)?;
        stream.set_read_timeout(Some(PATIENCE)).map_err(failed)?;
        stream.set_nodelay(true).map_err(failed)?;
        self.stream = Some(BufReader::new(stream));
        self.say("", "220")?;
        self.say("HELO bench.example\r\n", "250")
    }

    /// Writes a line and reads the answer, which must begin with `code`.
    fn say(&mut self, line: &str, code: &str) -> Result<()> {
        let failed = |error: std::io::Error| {
            Error::new(format!("cannot give Postfix a message: {error}"), "")
        };
        let Some(stream) = &mut self.stream else {
            return Err(Error::new("there is no session with Postfix's smtpd", ""));
        };
        stream.get_mut().write_all(line.as_bytes()).map_err(failed)?;
        let mut answer = String::new();
        stream.read_line(&mut answer).map_err(failed)?;
        if answer.starts_with(code) {
            return Ok(());
        }
        self.stream = None;
        Err(Error::new(format!("Postfix answers {line:?} with {answer:?}"), ""))
    }
}

impl Entrance for SmtpSession {
    fn put(&mut self, recipient: &str) -> Result<()> {
        if self.stream.is_none() {
            self.open()?;
        }
        self.say("MAIL FROM:<>\r\n", "250")?;
        self.say(&format!("RCPT TO:<{recipient}>\r\n"), "250")?;
        self.say("DATA\r\n", "354")?;
        self.say(
            "From: <bench@bench.example>\r\nSubject: a message of the bench\r\n\r\nhello\r\n.\r\n",
            "250",
        )
    }
}

/// Replaces `from` in `bytes` by `to`, which must have the same length.
fn replace(bytes: &mut [u8], from: &[u8], to: &[u8]) -> usize {
    let mut count = 0;
    let mut at = 0;
    while at + from.len() <= bytes.len() {
        if bytes[at..].starts_with(from) {
            bytes[at..at + to.len()].copy_from_slice(to);
            count += 1;
            at += from.len();
        } else {
            at += 1;
        }
    }
    count
}

impl Subject for Postfix {
    fn can_run(&self, plan: &Plan) -> bool {
        plan.known == crate::plan::KnownSites::Nothing
            && plan.lists.is_empty()
            && plan.held.is_none()
    }

    fn name(&self) -> &str {
        "postfix"
    }

    fn prepare(&mut self, plan: &Plan, port: u16) -> Result<()> {
        self.end()?;
        let way = match plan.route {
            Route::Table => {
                let routes =
                    plan.routes(|domain, address| format!("{domain} smtp:[{address}]:{port}\n"));
                self.write("etc/transport", &routes)?;
                let dir = self.dir.path().display();
                format!(
                    "transport_maps = texthash:{dir}/etc/transport\nsmtp_dns_support_level = disabled\n"
                )
            }
            Route::Mx => "smtp_dns_support_level = enabled\n".to_owned(),
        };
        let patience = plan.patience.as_secs().max(1);
        let timeouts: String =
            ["connect", "helo", "mail", "rcpt", "data_init", "data_done", "quit"]
                .map(|stage| format!("smtp_{stage}_timeout = {patience}s\n"))
                .concat();
        let (cap, processes) = (plan.cap, plan.concurrency);
        self.configure(
            &format!(
                "default_destination_concurrency_limit = {cap}\ndefault_process_limit = {processes}\n\
                 qmgr_message_active_limit = 100000\nqmgr_message_recipient_limit = 100000\n\
                 queue_run_delay = {BACKOFF_SECS}s\nminimal_backoff_time = {BACKOFF_SECS}s\n\
                 maximal_backoff_time = {BACKOFF_SECS}s\n{way}{timeouts}"
            ),
            true,
            if plan.injected.is_empty() { Door::Closed } else { Door::Open },
        )?;
        self.clear()?;
        self.before = 0;
        self.looked = None;
        self.passed_secs = None;
        Ok(())
    }

    fn queue(&mut self, plan: &Plan, mail: u32) -> Result<()> {
        let mut bytes = self.mould.clone();
        if replace(&mut bytes, mould_recipient().as_bytes(), plan.recipient(mail).as_bytes()) == 0 {
            return Err(Error::new("Postfix's queue file does not have its recipient in it", ""));
        }
        let failed = Error::doing("write a queue file of Postfix");
        let incoming = self.path("queue/incoming");
        let fresh = incoming.join("bench.new");
        let write = || -> std::io::Result<()> {
            fs::write(&fresh, &bytes)?;
            chown(&fresh, Some(self.owner.0), Some(self.owner.1))?;
            // The name of a queue file ends in its inode's number; it is whole when it can be executed.
            let number = fs::metadata(&fresh)?.ino();
            fs::set_permissions(&fresh, Permissions::from_mode(0o700))?;
            fs::rename(&fresh, incoming.join(format!("{:05X}{number:X}", mail % 0xF_FFFF)))
        };
        write().map_err(failed)?;
        if self.master.is_none() {
            self.before += 1;
        }
        Ok(())
    }

    fn queue_list(&mut self, _plan: &Plan, _mails: &[u32]) -> Result<()> {
        Err(Error::new("Postfix is not put through messages with several recipients", ""))
    }

    fn entrance(&self) -> Result<Box<dyn Entrance>> {
        Ok(Box::new(SmtpSession::default()))
    }

    fn memory(&self) -> Option<MemoryUse> {
        None
    }

    fn left(&self) -> Result<Option<HashSet<u32>>> {
        Ok(None)
    }

    fn start(&mut self) -> Result<()> {
        self.run()?;
        self.started = Instant::now();
        Ok(())
    }

    fn notify(&mut self) -> Result<()> {
        let path = self.path("queue/public/qmgr");
        let mut socket =
            UnixStream::connect(&path).map_err(Error::doing("reach Postfix's qmgr"))?;
        // "Look into incoming", as cleanup(8) does.
        socket.write_all(b"I").map_err(Error::doing("tell Postfix's qmgr"))
    }

    fn passed(&mut self, _plan: &Plan) -> Result<usize> {
        let left = self.incoming()?;
        if left == 0 && self.passed_secs.is_none() {
            self.passed_secs = Some(self.started.elapsed().as_secs_f64());
        }
        Ok(self.before.saturating_sub(left))
    }

    fn check(&mut self) -> Result<()> {
        match self.master {
            Some(master) if kill(master, None).is_ok() => Ok(()),
            _ => Err(Error::new(format!("Postfix has ended: {}", self.last_lines()), "")),
        }
    }

    fn stop(&mut self, _patience: Duration) -> Result<SelfReport> {
        self.end()?;
        let log = self.log();
        let mut self_report = SelfReport { passed_secs: self.passed_secs, ..SelfReport::default() };
        for line in log.lines() {
            if line.contains("status=deferred") {
                self_report.deferred += 1;
            } else if line.contains("status=bounced") {
                self_report.failed += 1;
            }
            let is_grave =
                [" fatal: ", " panic: ", " error: "].iter().any(|word| line.contains(word));
            if is_grave && self_report.complaints.len() < 20 {
                self_report.complaints.push(line.to_owned());
            }
        }
        Ok(self_report)
    }
}

impl Drop for Postfix {
    fn drop(&mut self) {
        let _ = self.end();
    }
}
