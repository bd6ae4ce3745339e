//! The tree's own qmail-send, spawners and qmail-remote, as qmail-start wires them, without privileges.

use std::collections::{HashMap, HashSet};
use std::fs::{self, File};
use std::io::{BufWriter, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use qpatch::gate::sites::{self, Sites};
use qpatch::patches;
use qpatch::tree::Tree;
use qpatch::tree::journal::LockedTree;
use qpatch::tree::plan::{OnPartialProtocol, PatchPlan};
use qpatch::verify::build;
use qpatch::verify::proofs::mail;
use qpatch::verify::rig::sendrig;
use qpatch::verify::sandbox::makefile::targets;
use qpatch::verify::sandbox::private_tree::Sandbox;
use qpatch::verify::sandbox::process::Process;
use qpatch::verify::sandbox::scratch::Scratch;
use qpatch::verify::sandbox::{Fsync, SandboxConfig};
use qpatch_gate::table::Limit;
use qpatch_gate_status::Status;

use crate::error::{Error, Result};
use crate::inject::Entrance;
use crate::plan::{KnownSites, Plan, Route};
use crate::run::{SelfReport, Subject};
use crate::sink::mail_of_local_part;
use crate::usage::{self, MemoryUse};

/// Which of qpatch's patches a tree has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flavour {
    /// All patches.
    Gate,
    /// All patches but the gate.
    NoGate,
    /// All patches, and the fork server starts qmail-remote.
    ForkServer,
    /// All patches but fork-server: qmail-remote is started by fork and exec.
    ForkExec,
    /// All patches but log-lines: qmail-send writes its log piece by piece.
    LogPieces,
    /// Only the patches that let more deliveries run at once: toolchain, big-concurrency and fd-setsize.
    Classic,
}

impl Flavour {
    fn name(self) -> &'static str {
        match self {
            Flavour::Gate => "gate",
            Flavour::NoGate => "no gate",
            Flavour::ForkServer => "fork server",
            Flavour::ForkExec => "fork and exec",
            Flavour::LogPieces => "log in pieces",
            Flavour::Classic => "classic",
        }
    }

    fn has_gate(self) -> bool {
        !matches!(self, Flavour::NoGate | Flavour::Classic)
    }

    fn has(self, patch: &str) -> bool {
        match patch {
            patches::GATE => self.has_gate(),
            patches::FORK_SERVER => !matches!(self, Flavour::ForkExec | Flavour::Classic),
            patches::LOG_LINES => !matches!(self, Flavour::LogPieces | Flavour::Classic),
            patches::SPAWN_EVENTS => self != Flavour::Classic,
            _ => true,
        }
    }
}

const BODY: &[u8] = b"From: <bench@bench.example>\nSubject: a message of the bench\n\nhello\n";

/// qmail-send discards bounces of messages with this sender.
const SENDER: &str = "#@[]";

/// The programs besides those that every run of qmail-send needs.
const PROGRAMS: [&str; 1] = ["qmail-remote"];

/// A built and installed copy of the tree.
#[derive(Debug)]
pub struct Qmail {
    sandbox: Sandbox,
    flavour: Flavour,
    sender: &'static str,
    running: Option<RunningQmail>,
    logs: Option<PathBuf>,
    starts: u32,
}

#[derive(Debug)]
struct RunningQmail {
    process: Process,
    account: Arc<Mutex<LogTally>>,
    reader: Option<JoinHandle<()>>,
}

/// What has been read from qmail-send's log.
#[derive(Debug)]
struct LogTally {
    self_report: SelfReport,
    taken_up: HashSet<u64>,
    /// The mail of each delivery, by the delivery's number.
    under_way: HashMap<u64, u32>,
    /// How many mails were queued before the start.
    before: usize,
    started: Instant,
    works: bool,
}

impl LogTally {
    fn line(&mut self, line: &str) {
        if let Some(rest) = line.strip_prefix("starting delivery ") {
            self.self_report.started += 1;
            let recipient =
                rest.split_once(" to remote ").and_then(|(_, to)| mail_of_local_part(to));
            let number = rest.split(':').next().and_then(|number| number.parse().ok());
            if let Some((number, mail)) = number.zip(recipient) {
                self.under_way.insert(number, mail);
            }
            let message = rest.split_once(": msg ").and_then(|(_, rest)| rest.split(' ').next());
            if self.taken_up.len() < self.before
                && let Some(message) = message.and_then(|number| number.parse().ok())
            {
                self.taken_up.insert(message);
                if self.taken_up.len() == self.before {
                    self.self_report.passed_secs = Some(self.started.elapsed().as_secs_f64());
                }
            }
        } else if let Some(rest) = line.strip_prefix("delivery ") {
            let (number, text) = rest.split_once(": ").unwrap_or(("", rest));
            let mail = number.parse().ok().and_then(|number: u64| self.under_way.remove(&number));
            if text.starts_with("success: ") {
                let secs = self.started.elapsed().as_secs_f64();
                self.self_report.delivered.extend(mail.map(|mail| (secs, mail)));
            } else if text.starts_with("deferral: ") && is_busy(text) {
                self.self_report.busy += 1;
            } else if text.starts_with("deferral: ") && text.contains("(#4.4.5)") {
                self.self_report.returned += 1;
            } else if text.starts_with("deferral: ") && text.contains("_not_tried._(#4.4.1)") {
                self.self_report.suspended += 1;
            } else if text.starts_with("deferral: ") {
                self.self_report.deferred += 1;
                self.self_report.deferred_mails.extend(mail);
            } else if text.starts_with("failure: ") {
                self.self_report.failed += 1;
                self.complain(line);
            } else {
                self.complain(line);
            }
        } else if line.starts_with("new msg ") {
            self.self_report.todo_secs = Some(self.started.elapsed().as_secs_f64());
        } else if line.starts_with("status:") {
            self.works = true;
        } else if line.starts_with("warning:") || line.starts_with("alert:") {
            self.complain(line);
        }
    }

    fn complain(&mut self, line: &str) {
        if self.self_report.complaints.len() < 20 {
            self.self_report.complaints.push(line.to_owned());
        }
    }
}

impl Qmail {
    /// Copies `tree`, patches and builds the copy for `spawn` deliveries.
    pub fn build(
        scratch: &Scratch,
        tree: &Path,
        flavour: Flavour,
        spawn: u32,
        fsync: Fsync,
    ) -> Result<Qmail> {
        Ok(Qmail::of(build_sandbox(scratch, tree, flavour, spawn, fsync)?, flavour))
    }

    /// Builds a copy of a tree that is patched, with a home called `name`.
    pub fn of_patched(scratch: &Scratch, patched: &Path, name: &str, spawn: u32) -> Result<Qmail> {
        Ok(Qmail::of(install(scratch, patched, name, spawn, Fsync::Skipped)?, Flavour::Gate))
    }

    fn of(sandbox: Sandbox, flavour: Flavour) -> Qmail {
        Qmail { sandbox, flavour, sender: SENDER, running: None, logs: None, starts: 0 }
    }

    /// The folder with its control and queue.
    pub fn home(&self) -> &Path {
        self.sandbox.home()
    }

    /// kill -9 of all its processes.
    pub fn kill(&mut self) {
        self.running = None;
    }

    /// What the gate does, if it has written it.
    pub fn status(&self) -> Option<Status> {
        Status::parse(&fs::read(self.status_file()).ok()?).ok()
    }

    /// Writes a file of the home, which stays its user's.
    pub fn write(&self, path: &str, contents: &str) -> Result<()> {
        Ok(self.sandbox.write(&self.sandbox.home().join(path), contents.as_bytes())?)
    }

    /// Keeps the log of each run of qmail-send in `dir` from now on. Each line has the seconds since the start before
    /// it.
    pub fn keep_logs(&mut self, dir: &Path) {
        self.logs = Some(dir.to_path_buf());
    }

    /// The file for the log of the next run.
    fn log_file(&mut self) -> Result<Option<BufWriter<File>>> {
        let Some(dir) = &self.logs else { return Ok(None) };
        self.starts += 1;
        let path =
            dir.join(format!("{}.{}.log", self.flavour.name().replace(' ', "-"), self.starts));
        fs::create_dir_all(dir)
            .and_then(|()| File::create(&path))
            .map(|file| Some(BufWriter::new(file)))
            .map_err(Error::doing(format!("write {}", path.display())))
    }

    fn account(&self) -> Result<std::sync::MutexGuard<'_, LogTally>> {
        let running = self.running.as_ref().ok_or_else(|| Error::new("qmail does not run", ""))?;
        Ok(running.account.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Sets the sender of mail. Real servers do not accept the one for which qmail-send discards bounces.
    pub fn set_sender(&mut self, sender: &'static str) {
        self.sender = sender;
    }

    /// What it has reported up to now.
    pub fn self_report(&self) -> Result<SelfReport> {
        Ok(self.account()?.self_report.clone())
    }

    /// The file of the sites that the gate has seen. `make setup` makes it; without it the gate writes none.
    fn status_file(&self) -> PathBuf {
        self.sandbox.home().join("queue/lock/gatestatus")
    }

    /// The configured limit and the effective one, from the status file; of several keys, those of the key with the
    /// lowest effective limit. None: there is no key.
    pub fn limits(&self) -> Option<(u32, u32)> {
        let bytes = fs::read(self.status_file()).ok()?;
        let status = Status::parse(&bytes).ok()?;
        let limits = status.keys.iter().filter_map(|key| match (key.limit, key.effective) {
            (Limit::AtMost(limit), Limit::AtMost(effective)) => Some((limit, effective)),
            _ => None,
        });
        limits.min_by_key(|(_, effective)| *effective)
    }

    /// Sets the gate's knowledge of sites as the plan says.
    fn know(&self, plan: &Plan) -> Result<()> {
        let seen = self.sandbox.home().join("queue/lock/gatesites");
        match plan.known {
            KnownSites::Nothing => self.sandbox.write(&seen, b"")?,
            KnownSites::Seen => {
                if fs::metadata(&seen).map_or(0, |seen| seen.len()) == 0 {
                    return Err(Error::new("the gate has seen nothing in the run before", ""));
                }
            }
            KnownSites::Asked => {
                self.sandbox.write(&seen, b"")?;
                let domains = plan.domains.iter().map(|domain| domain.name.clone()).collect();
                let args = Sites::of(self.sandbox.home().to_path_buf(), domains);
                let outcome = sites::look_up(&args)?;
                if outcome.domains() != plan.domains.len() as u64 {
                    let found = outcome.domains();
                    let wanted = plan.domains.len();
                    let what = format!("gate sites has found {found} of {wanted} domains");
                    return Err(Error::new(what, "--table needs a line with mx:"));
                }
            }
        }
        Ok(())
    }

    fn control(&self, name: &str, contents: Option<&str>) -> Result<()> {
        match contents {
            Some(contents) => Ok(self.sandbox.set_control(name, contents)?),
            None => match fs::remove_file(self.sandbox.home().join("control").join(name)) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    Err(Error::doing(format!("remove control/{name}"))(error))
                }
                _ => Ok(()),
            },
        }
    }
}

/// Copies `tree`, patches the copy for `spawn` deliveries, and builds and installs it.
pub fn build_sandbox(
    scratch: &Scratch,
    tree: &Path,
    flavour: Flavour,
    spawn: u32,
    fsync: Fsync,
) -> Result<Sandbox> {
    let name = flavour.name().replace(' ', "-");
    let copy = patched(scratch, tree, flavour, spawn)?;
    install(scratch, &copy, &name, spawn, fsync)
}

/// Copies `tree`, and patches the copy for `spawn` deliveries.
pub fn patched(scratch: &Scratch, tree: &Path, flavour: Flavour, spawn: u32) -> Result<PathBuf> {
    let name = flavour.name().replace(' ', "-");
    let copy = scratch.copy(tree, &format!("{name}-tree"))?;
    patch(&copy, flavour, spawn)?;
    Ok(copy)
}

/// Builds a copy of a patched tree, and installs it in a home called `name`.
fn install(
    scratch: &Scratch,
    patched: &Path,
    name: &str,
    spawn: u32,
    fsync: Fsync,
) -> Result<Sandbox> {
    let config = SandboxConfig { spawn: Some(spawn), fsync, ..SandboxConfig::default() };
    let sandbox = scratch.sandbox(patched, name, &config)?;
    build::prepare(&sandbox)?;
    let rules = targets(sandbox.tree())?;
    let optional = sendrig::OPTIONAL_PROGRAMS.iter().filter(|name| rules.contains(**name));
    let programs: Vec<&str> =
        sendrig::PROGRAMS.iter().chain(&PROGRAMS).chain(optional).copied().collect();
    build::make(&sandbox, &programs)?;
    for program in programs {
        build::install(&sandbox, program)?;
    }
    // As in a real installation: whoever runs qmail-queue, it writes as the owner of the queue.
    let queue = sandbox.home().join("bin/qmail-queue");
    fs::set_permissions(&queue, fs::Permissions::from_mode(0o4755))
        .map_err(Error::doing("set the mode of qmail-queue"))?;
    Ok(sandbox)
}

/// Applies qpatch's patches to the tree at `root`.
fn patch(root: &Path, flavour: Flavour, spawn: u32) -> Result<()> {
    let tree = Tree::open(root)?;
    let parameters = tree.parameters(Some(spawn));
    let chosen = patches::ALL.iter().filter(|p| flavour.has(p.id));
    let patches = chosen
        .map(|shipped| shipped.patch(&parameters))
        .collect::<std::result::Result<Vec<_>, _>>()
        .map_err(Error::doing("read a patch"))?;
    let changes = PatchPlan::new(&tree, &patches)?;
    changes.check(&patches, OnPartialProtocol::Refuse).map_err(|errors| {
        let messages: Vec<String> = errors.iter().map(ToString::to_string).collect();
        Error::new(format!("the patches do not fit the tree: {}", messages.join("; ")), "")
    })?;
    let locked = LockedTree::lock(&tree)?;
    if changes.changes.is_empty() {
        locked.end()?;
    } else {
        locked.apply(&changes.changes)?;
    }
    Ok(())
}

impl Subject for Qmail {
    fn name(&self) -> &str {
        self.flavour.name()
    }

    fn can_run(&self, plan: &Plan) -> bool {
        plan.known == KnownSites::Nothing || self.flavour.has_gate()
    }

    fn prepare(&mut self, plan: &Plan, port: u16) -> Result<()> {
        self.running = None;
        mail::empty_queue(&self.sandbox)?;
        let tcpto = self.sandbox.home().join("queue/lock/tcpto");
        // In place: it stays its owner's.
        fs::write(&tcpto, [0; 1024]).map_err(Error::doing("clear queue/lock/tcpto"))?;
        let routes = plan.routes(|domain, address| format!("{domain}:{address}:{port}\n"));
        self.control("smtproutes", (plan.route == Route::Table).then_some(&routes))?;
        let table = self.flavour.has_gate().then_some(plan.table.as_str());
        self.control("concurrencydomains", table)?;
        self.control("concurrencysites", None)?;
        if self.flavour.has_gate() {
            self.know(plan)?;
            self.sandbox.write(&self.status_file(), b"")?;
        }
        let deliveries = (self.flavour == Flavour::ForkServer).then_some("10000\n");
        self.control("remoteserver", deliveries)?;
        self.control("concurrencyremote", Some(&format!("{}\n", plan.concurrency)))?;
        let patience = format!("{}\n", plan.patience.as_secs().max(1));
        self.control("timeoutremote", Some(&patience))?;
        self.control("timeoutconnect", Some(&patience))
    }

    fn queue(&mut self, plan: &Plan, mail: u32) -> Result<()> {
        self.sandbox.queue_message(BODY, self.sender, &[plan.recipient(mail)])?;
        Ok(())
    }

    fn queue_list(&mut self, plan: &Plan, mails: &[u32]) -> Result<()> {
        let recipients: Vec<String> = mails.iter().map(|&mail| plan.recipient(mail)).collect();
        self.sandbox.queue_message(BODY, self.sender, &recipients)?;
        Ok(())
    }

    fn entrance(&self) -> Result<Box<dyn Entrance>> {
        let program = self.sandbox.home().join("bin/qmail-queue");
        Ok(Box::new(QmailQueue { program, sender: self.sender }))
    }

    fn memory(&self) -> Option<MemoryUse> {
        Some(usage::memory_of_group(self.running.as_ref()?.process.id()))
    }

    fn left(&self) -> Result<Option<HashSet<u32>>> {
        let queue = self.sandbox.home().join("queue");
        let mut left = HashSet::new();
        for name in ["todo", "remote", "local"] {
            recipients_below(&queue.join(name), &mut left)?;
        }
        Ok(Some(left))
    }

    fn start(&mut self) -> Result<()> {
        let mut file = self.log_file()?;
        let (mut log, process) = sendrig::start_own(&self.sandbox)?;
        let account = Arc::new(Mutex::new(LogTally {
            self_report: SelfReport::default(),
            taken_up: HashSet::new(),
            under_way: HashMap::new(),
            before: messages(&self.sandbox.home().join("queue/mess"))?,
            started: Instant::now(),
            works: false,
        }));
        let shared = Arc::clone(&account);
        let reader = std::thread::Builder::new()
            .name("log".to_owned())
            .spawn(move || {
                let mut rest: Vec<u8> = Vec::new();
                let mut buffer = vec![0_u8; 65536];
                while let Ok(count @ 1..) = log.read(&mut buffer) {
                    rest.extend_from_slice(&buffer[..count]);
                    let Some(end) = rest.iter().rposition(|byte| *byte == b'\n') else { continue };
                    let mut account = shared.lock().unwrap_or_else(PoisonError::into_inner);
                    let secs = account.started.elapsed().as_secs_f64();
                    for line in String::from_utf8_lossy(&rest[..end]).lines() {
                        account.line(line);
                        if let Some(file) = &mut file {
                            let _ = writeln!(file, "{secs:.4} {line}");
                        }
                    }
                    rest.drain(..=end);
                }
            })
            .map_err(Error::doing("start a thread"))?;
        self.running = Some(RunningQmail { process, account, reader: Some(reader) });
        let until = Instant::now() + Duration::from_secs(20);
        while !self.account()?.works {
            if Instant::now() > until {
                return Err(Error::new("qmail-send has logged nothing for 20 s", ""));
            }
            std::thread::sleep(Duration::from_micros(200));
        }
        Ok(())
    }

    fn notify(&mut self) -> Result<()> {
        Ok(sendrig::pull_trigger(&self.sandbox)?)
    }

    fn passed(&mut self, _plan: &Plan) -> Result<usize> {
        Ok(self.account()?.taken_up.len())
    }

    fn check(&mut self) -> Result<()> {
        let running = self.running.as_ref().ok_or_else(|| Error::new("qmail does not run", ""))?;
        if running.reader.as_ref().is_some_and(JoinHandle::is_finished) {
            let said = self.account()?.self_report.complaints.join(" / ");
            return Err(Error::new(format!("qmail-send has ended by itself: {said}"), ""));
        }
        Ok(())
    }

    fn stop(&mut self, patience: Duration) -> Result<SelfReport> {
        let Some(mut running) = self.running.take() else { return Ok(SelfReport::default()) };
        let parts = usage::of_programs(running.process.id());
        running.process.signal(Signal::SIGTERM as i32)?;
        // It waits for what is under way. What takes too long is not waited for: the group is killed by the drop below.
        let asked = Instant::now();
        let ended_secs = running.process.wait(patience).ok().map(|_| asked.elapsed().as_secs_f64());
        let reader = running.reader.take();
        let account = Arc::clone(&running.account);
        drop(running);
        if let Some(reader) = reader {
            let _ = reader.join();
        }
        let account = account.lock().unwrap_or_else(PoisonError::into_inner);
        let mut self_report = account.self_report.clone();
        self_report.cpu_ms_of = parts;
        self_report.ended_secs = ended_secs;
        Ok(self_report)
    }
}

/// Whether this is the text of a busy answer: mail that waits until the gate calls it. The text of mail that the gate
/// defers untried ends in another way.
fn is_busy(text: &str) -> bool {
    text.contains("_not_tried._(#4.4.5)")
        || text.contains("_one_at_a_time_is_tried;_not_tried._(#4.4.1)")
}

/// Runs the tree's own qmail-queue for each mail.
#[derive(Debug)]
struct QmailQueue {
    program: PathBuf,
    sender: &'static str,
}

impl Entrance for QmailQueue {
    fn put(&mut self, recipient: &str) -> Result<()> {
        let failed = Error::doing("run qmail-queue");
        let run = || -> std::io::Result<std::process::ExitStatus> {
            // Both texts fit into a pipe.
            let (message, mut message_in) = std::io::pipe()?;
            let (envelope, mut envelope_in) = std::io::pipe()?;
            message_in.write_all(BODY)?;
            envelope_in.write_all(format!("F{}\0T{recipient}\0\0", self.sender).as_bytes())?;
            drop((message_in, envelope_in));
            // It reads the envelope from descriptor 1.
            Command::new(&self.program)
                .stdin(message)
                .stdout(envelope)
                .stderr(Stdio::null())
                .status()
        };
        let status = run().map_err(failed)?;
        if status.success() {
            return Ok(());
        }
        Err(Error::new(format!("qmail-queue did not take a mail: {status}"), ""))
    }
}

/// The mails whose recipients are in the envelopes below `dir` and are not marked as done.
fn recipients_below(dir: &Path, found: &mut HashSet<u32>) -> Result<()> {
    let failed = || Error::doing(format!("read {}", dir.display()));
    for entry in fs::read_dir(dir).map_err(failed())? {
        let entry = entry.map_err(failed())?;
        if entry.file_type().map_err(failed())?.is_dir() {
            recipients_below(&entry.path(), found)?;
            continue;
        }
        let envelope = fs::read(entry.path()).map_err(failed())?;
        let recipients =
            envelope.split(|&byte| byte == 0).filter_map(|part| part.strip_prefix(b"T"));
        found.extend(
            recipients
                .filter_map(|recipient| mail_of_local_part(std::str::from_utf8(recipient).ok()?)),
        );
    }
    Ok(())
}

/// How many messages there are in queue/mess.
fn messages(dir: &Path) -> Result<usize> {
    let mut count = 0;
    for part in fs::read_dir(dir).map_err(Error::doing("read queue/mess"))? {
        let part = part.map_err(Error::doing("read queue/mess"))?.path();
        count += fs::read_dir(&part).map_err(Error::doing("read queue/mess"))?.count();
    }
    Ok(count)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mail_is_left_until_it_is_marked_as_done() {
        let dir = tempfile::tempdir().expect("a directory");
        std::fs::create_dir(dir.path().join("3")).expect("a part");
        for (name, envelope) in [
            ("3/1", &b"Tm000001@d001.bench.example\0Dm000002@d001.bench.example\0"[..]),
            ("2", b"u1\0p2\0F#@[]\0Tm000003@d001.bench.example\0"),
        ] {
            std::fs::write(dir.path().join(name), envelope).expect("an envelope");
        }
        let mut found = HashSet::new();
        recipients_below(dir.path(), &mut found).expect("readable");
        assert_eq!(found, HashSet::from([1, 3]));
        assert!(recipients_below(&dir.path().join("none"), &mut found).is_err());
    }

    #[test]
    fn what_qmail_queue_reads_is_a_message_and_its_envelope() {
        let dir = tempfile::tempdir().expect("a directory");
        let script = dir.path().join("queue");
        let text = format!(
            "#!/bin/sh\ncat > {0}/message; cat <&1 > {0}/envelope; grep -q refused {0}/envelope && exit 31\nexit 0\n",
            dir.path().display()
        );
        std::fs::write(&script, text).expect("a program");
        std::fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).expect("its mode");
        let mut entrance = QmailQueue { program: script, sender: SENDER };
        entrance.put("m000001@d001.bench.example").expect("taken");
        let read = |name: &str| std::fs::read(dir.path().join(name)).expect("written");
        assert_eq!(read("message"), BODY);
        assert_eq!(read("envelope"), b"F#@[]\0Tm000001@d001.bench.example\0\0");
        let error = entrance.put("refused@d001.bench.example").expect_err("not taken");
        assert!(error.to_string().contains("exit status: 31"), "{error}");
    }
}
