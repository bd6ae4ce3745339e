//! An attack on a patched tree: kills, signals, stalls, and control files that change all the time.
//!
//! The tree's own qmail-send and qmail-rspawn run with a qmail-remote that takes 150 ms for each delivery and writes
//! down when it starts and ends. By that account and by qmail-send's log the attack checks, at each step and in the
//! end:
//!
//! - no mail is lost: each recipient is delivered to, and the queue is empty;
//! - never more deliveries of a key at once than the highest limit that any of its tables gives it;
//! - no recipient is delivered to twice, unless its delivery was under way at a kill;
//! - neither qmail-send nor qmail-rspawn keeps a descriptor;
//! - storms of SIGALRM and SIGHUP cost at most [`BUSY_MOST`] busy answers a mail;
//! - after a stall of qmail-send the backlog goes at [`PACE_MOST`] times what its limit takes, at most;
//! - a message that somebody removes costs at most [`TROUBLE_MOST`] lines `trouble opening` for its file at a time.
//!
//! The file has a few lines more than 700, because all steps use one account of the mail.
//!
//! A supervisor that starts qmail-send again at once would count what the killed ones still have under way on top. So
//! each start waits until no process of the last one runs.

#![forbid(unsafe_code)]

use std::collections::{BTreeSet, HashMap, HashSet};
use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use clap::Parser;
use nix::sys::signal::{Signal, kill};
use nix::time::{ClockId, clock_gettime};
use nix::unistd::{Gid, Pid, Uid, chown};
use qpatch::fixture::Dialect;
use qpatch::verify::rig::log::Log;
use qpatch::verify::rig::numbers::Random;
use qpatch::verify::rig::sendrig::{SendRig, Spawners, pull_trigger};
use qpatch::verify::rig::stub::{StubEventKind, Stubs};
use qpatch::verify::sandbox::limits::Raised;
use qpatch::verify::sandbox::private_tree::{MessageId, Sandbox};
use qpatch::verify::sandbox::scratch::{Keep, Scratch};
use qpatch::verify::sandbox::{Fsync, check_tree};
use qpatch::verify::{CatchSignals, die_of};
use qpatch_bench_smtp::error::{Error, Result, check_signals};
use qpatch_bench_smtp::qmail::{self, Flavour};
use qpatch_bench_smtp::usage;
use qpatch_gate::problem::File;
use qpatch_gate_status::Status;

/// Kill and restart the patched qmail-send and qmail-rspawn under load, and check that no mail is lost
#[derive(Debug, Parser)]
#[command(name = "qpatch-attack", max_term_width = 100)]
struct Args {
    /// A qmail source tree, patched or not; it is copied. Without it, the built-in tree
    tree: Option<PathBuf>,
    /// How often qmail-rspawn, qmail-send or both are killed
    #[arg(long, value_name = "N", default_value_t = 24, value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: u32,
    /// The order of the mail and of the kills
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
    /// How long qmail-send is stopped with a backlog, in seconds; 0: not at all
    #[arg(long, value_name = "SECONDS", default_value_t = 20, value_parser = clap::value_parser!(u64).range(0..=600))]
    stall: u64,
    /// Where the queue is made; without it /dev/shm, if programs can be run from there
    #[arg(long, value_name = "DIR")]
    scratch: Option<PathBuf>,
}

/// The account of deliveries that take their time.
const REMOTE_C: &str = include_str!("../../../tests/common/remote.c");
const SPAWN: u32 = 200;
/// What a delivery takes, in milliseconds.
const SERVICE_MS: u32 = 150;
const SENDER: &str = "#@[]";
const BODY: &[u8] = b"Subject: a message of the attack\n\nhello\n";

const NARROW: &str = "narrow.example";
const WIDE: &str = "wide.example";
/// The highest limit that any of [`TABLES`] gives to a domain.
fn limit_of(domain: &str) -> usize {
    match domain {
        NARROW => 5,
        WIDE => 20,
        _ => 10,
    }
}
/// What control/concurrencydomains is replaced with. A file with a mistake and an empty one change nothing.
const TABLES: [&str; 6] = [
    ":10\nnarrow.example:5\nwide.example:20\n",
    ":10\nnarrow.example:3\nwide.example:20::learn\n",
    ":10\nnarrow.example:banana\n",
    "",
    ":9\nwide.example:18\nnarrow.example:5\n",
    ":10\nnarrow.example:5:a\nwide.example:20:b\n\0",
];

const BUSY_MOST: f64 = 3.0;
const TROUBLE_MOST: usize = 4;
const PACE_MOST: f64 = 1.1;
/// A mail server that does nothing for so long does not work any more.
const PATIENCE: Duration = Duration::from_secs(90);

fn main() -> ExitCode {
    let args = Args::parse();
    match attack(&args) {
        Ok(failed) if failed.is_empty() => {
            println!("it holds");
            ExitCode::SUCCESS
        }
        Ok(failed) => {
            for what in failed {
                println!("FAILED: {what}");
            }
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("qpatch-attack: {error}");
            if let Some(signal) = error.signal {
                die_of(signal);
            }
            ExitCode::FAILURE
        }
    }
}

/// Returns what did not hold.
fn attack(args: &Args) -> Result<Vec<String>> {
    let _signals = CatchSignals::install()?;
    let _limits = Raised::raise();
    usage::adopt_orphans()?;
    let built_in = tempfile::tempdir().map_err(Error::doing("make a folder"))?;
    let tree = match &args.tree {
        Some(tree) => tree.clone(),
        None => {
            Dialect::StockKr.write(built_in.path())?;
            built_in.path().to_path_buf()
        }
    };
    check_tree(&tree)?;
    let memory = args.scratch.clone().unwrap_or_else(|| PathBuf::from("/dev/shm"));
    let scratch = Scratch::new(&tree, Some(&memory), Keep::No)
        .or_else(|_| Scratch::new(&tree, args.scratch.as_deref(), Keep::No))?;
    eprintln!("building the tree");
    let sandbox = qmail::build_sandbox(&scratch, &tree, Flavour::Gate, SPAWN, Fsync::Skipped)?;
    let mut target = Target::new(sandbox, args.seed)?;
    target.learn_the_table()?;
    let churn = Churn::start(&target.sandbox);
    let mut step = |name: &str, step: &mut dyn FnMut(&mut Target) -> Result<()>| -> Result<()> {
        let started = Instant::now();
        step(&mut target)?;
        println!("{name}: {} ({:.0} s)", target.said, started.elapsed().as_secs_f64());
        Ok(())
    };
    step("storm", &mut Target::storm)?;
    step("kills", &mut |target| target.kills(args.rounds))?;
    step("rest", &mut Target::finish)?;
    let replaced = churn.stop();
    if args.stall > 0 {
        step("stall", &mut |target| target.stall(Duration::from_secs(args.stall)))?;
    }
    step("removed", &mut Target::remove_a_message)?;
    println!("control/concurrencydomains was replaced {:.0} times a second", replaced);
    let failed = std::mem::take(&mut target.failed);
    drop(target);
    scratch.close()?;
    Ok(failed)
}

/// Replaces control/concurrencydomains about a thousand times a second.
struct Churn {
    ends: Arc<AtomicBool>,
    count: Arc<AtomicU64>,
    started: Instant,
    thread: Option<JoinHandle<()>>,
}

impl Churn {
    fn start(sandbox: &Sandbox) -> Churn {
        let control = sandbox.home().join("control");
        let owner = Some(Uid::from_raw(sandbox.identity().uid()));
        let group = Some(Gid::from_raw(sandbox.identity().gid()));
        let ends = Arc::new(AtomicBool::new(false));
        let count = Arc::new(AtomicU64::new(0));
        let (is_over, number) = (Arc::clone(&ends), Arc::clone(&count));
        let thread = thread::spawn(move || {
            let (new, file) = (control.join("new"), control.join("concurrencydomains"));
            while !is_over.load(Ordering::Relaxed) {
                let at = number.fetch_add(1, Ordering::Relaxed) as usize;
                // If a write fails, the file in place stays; each seventh may not be read.
                let mode = if at % 7 == 6 { 0o000 } else { 0o644 };
                let _ = fs::write(&new, TABLES[at % TABLES.len()])
                    .map_err(drop)
                    .and_then(|()| chown(&new, owner, group).map_err(drop))
                    .and_then(|()| {
                        fs::set_permissions(&new, Permissions::from_mode(mode)).map_err(drop)
                    })
                    .and_then(|()| fs::rename(&new, &file).map_err(drop));
                thread::sleep(Duration::from_micros(900));
            }
        });
        Churn { ends, count, started: Instant::now(), thread: Some(thread) }
    }

    /// Returns how often a second it has replaced the file.
    fn stop(mut self) -> f64 {
        let seconds = self.started.elapsed().as_secs_f64();
        self.end();
        self.count.load(Ordering::Relaxed) as f64 / seconds
    }

    fn end(&mut self) {
        self.ends.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Also where a step fails: the thread writes into a folder that is removed then.
impl Drop for Churn {
    fn drop(&mut self) {
        self.end();
    }
}

/// The installed tree, and the account of what has happened to its mail.
struct Target {
    sandbox: Sandbox,
    stubs: Stubs,
    random: Random,
    wanted: HashSet<String>,
    /// How often the delivery to a recipient was under way at a kill.
    under_way: HashMap<String, u32>,
    /// When a delivery that wrote no end was over, by its process and recipient.
    cut_short: HashMap<(u32, String), u64>,
    killed: u32,
    failed: Vec<String>,
    /// What the last step has done.
    said: String,
    next: usize,
}

fn now_ns() -> u64 {
    clock_gettime(ClockId::CLOCK_MONOTONIC)
        .map_or(0, |time| time.tv_sec() as u64 * 1_000_000_000 + time.tv_nsec() as u64)
}

fn send_signal(pid: u32, signal: Signal) {
    // It may have ended meanwhile.
    let _ = kill(Pid::from_raw(pid as i32), signal);
}

/// The child of qmail-send with this name.
fn child(send: u32, name: &str) -> Option<u32> {
    let listed = fs::read_to_string(format!("/proc/{send}/task/{send}/children")).ok()?;
    listed.split_whitespace().filter_map(|pid| pid.parse().ok()).find(|pid: &u32| {
        fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|comm| comm.trim() == name)
    })
}

fn descriptors(pid: u32) -> Option<usize> {
    Some(fs::read_dir(format!("/proc/{pid}/fd")).ok()?.count())
}

impl Target {
    fn new(sandbox: Sandbox, seed: u64) -> Result<Target> {
        let stubs = Stubs::install(&sandbox)?;
        let source = sandbox.rig().join("remote.c");
        let program = sandbox.rig().join("remote");
        sandbox.write(&source, REMOTE_C.as_bytes())?;
        let built = Command::new("cc")
            .args(["-O2", "-o"])
            .arg(&program)
            .arg(format!("-DRIG=\"{}\"", sandbox.rig().display()))
            .arg(&source)
            .status();
        if !built.as_ref().is_ok_and(std::process::ExitStatus::success) {
            return Err(Error::new("cc cannot compile the qmail-remote of the attack", ""));
        }
        let remote = sandbox.home().join("bin/qmail-remote");
        fs::remove_file(&remote)
            .and_then(|()| symlink(&program, &remote))
            .map_err(Error::doing("install the qmail-remote of the attack"))?;
        // As `make setup` makes them.
        for file in [File::Status].into_iter().chain(File::KEPT).map(File::name) {
            sandbox.write(&sandbox.home().join("queue/lock").join(file), b"")?;
        }
        sandbox.set_control("concurrencyremote", &format!("{SPAWN}\n"))?;
        sandbox.set_control("concurrencydomains", TABLES[0])?;
        Ok(Target {
            sandbox,
            stubs,
            random: Random::new(seed),
            wanted: HashSet::new(),
            under_way: HashMap::new(),
            cut_short: HashMap::new(),
            killed: 0,
            failed: Vec::new(),
            said: String::new(),
            next: 0,
        })
    }

    fn fail(&mut self, what: String) {
        eprintln!("FAILED: {what}");
        self.failed.push(what);
    }

    fn recipient(&mut self, domain: &str) -> String {
        self.next += 1;
        let recipient = format!("k-{SERVICE_MS}-{}@{domain}", self.next);
        self.wanted.insert(recipient.clone());
        recipient
    }

    /// Queues so many mails: a fifth to the narrow domain, a fifth to fifty others, the rest to the wide one.
    fn queue(&mut self, number: usize) -> Result<()> {
        for _ in 0..number {
            let domain = match self.random.below(5) {
                0 => NARROW.to_owned(),
                1 => format!("other{}.example", self.random.below(50)),
                _ => WIDE.to_owned(),
            };
            let recipient = self.recipient(&domain);
            self.sandbox.queue_message(BODY, SENDER, &[recipient])?;
        }
        Ok(pull_trigger(&self.sandbox)?)
    }

    fn queue_list(&mut self, domains: &[String], number: usize) -> Result<MessageId> {
        let of = |at: usize| domains[at % domains.len()].clone();
        let recipients: Vec<String> = (0..number).map(|at| self.recipient(&of(at))).collect();
        let id = self.sandbox.queue_message(BODY, SENDER, &recipients)?;
        pull_trigger(&self.sandbox)?;
        Ok(id)
    }

    fn start(&self) -> Result<SendRig> {
        Ok(SendRig::start(&self.sandbox, Spawners::Own)?)
    }

    fn attend(&mut self, send: &mut SendRig) -> Result<()> {
        check_signals()?;
        send.attend(&mut self.stubs)?;
        Ok(())
    }

    /// Attends to the programs until `done`.
    fn until(
        &mut self,
        send: &mut SendRig,
        what: &str,
        mut done: impl FnMut(&mut Target, &mut SendRig) -> Result<bool>,
    ) -> Result<()> {
        let mut seen = (0, 0);
        let mut alive = Instant::now();
        loop {
            self.attend(send)?;
            if done(self, send)? {
                return Ok(());
            }
            let (started, ended) = self.stubs.counts();
            if seen != (started, ended) {
                (seen, alive) = ((started, ended), Instant::now());
            }
            if alive.elapsed() > PATIENCE {
                let what =
                    format!("waited for {what}: {started} deliveries started, {ended} ended");
                return Err(Error::new(what, ""));
            }
            thread::sleep(Duration::from_millis(1));
        }
    }

    fn wait_for(&mut self, send: &mut SendRig, time: Duration) -> Result<()> {
        let end = Instant::now() + time;
        self.until(send, "the time", |_, _| Ok(Instant::now() >= end))
    }

    fn status(&self) -> Option<Status> {
        let path = self.sandbox.home().join("queue/lock/gatestatus");
        Status::parse(&fs::read(path).ok()?).ok()
    }

    /// Recipients that have been delivered to.
    fn delivered(&self) -> HashSet<&str> {
        let ends = self.stubs.events().iter().filter(|event| event.kind == StubEventKind::End);
        ends.map(|event| event.recipient.as_str()).collect()
    }

    /// Waits until all mail has been delivered and qmail-send has removed it.
    fn drain(&mut self, send: &mut SendRig) -> Result<()> {
        let mut last = Instant::now();
        let mut before = 0;
        self.until(send, "the queue to be empty", |target, send| {
            if last.elapsed() < Duration::from_secs(1) {
                return Ok(false);
            }
            last = Instant::now();
            // What was deferred because its qmail-remote was killed would come after 400 s.
            let (_, ended) = target.stubs.counts();
            if ended == before {
                send.process().signal(Signal::SIGALRM as i32)?;
            }
            before = ended;
            Ok(target.left().is_empty())
        })
    }

    /// The messages in the queue.
    fn left(&self) -> Vec<PathBuf> {
        let mut open: Vec<PathBuf> = ["info", "remote", "local", "bounce", "todo"]
            .map(|folder| self.sandbox.home().join("queue").join(folder))
            .to_vec();
        let mut files = Vec::new();
        while let Some(path) = open.pop() {
            match fs::read_dir(&path) {
                Ok(entries) => open.extend(entries.flatten().map(|entry| entry.path())),
                Err(_) => files.push(path),
            }
        }
        files
    }

    /// Deliveries that have started and not ended, by process and recipient.
    fn running(&self) -> BTreeSet<(u32, String)> {
        let mut running = BTreeSet::new();
        for event in self.stubs.events() {
            let delivery = (event.pid, event.recipient.clone());
            match event.kind {
                StubEventKind::Start => running.insert(delivery),
                StubEventKind::End => running.remove(&delivery),
            };
        }
        running.retain(|delivery| !self.cut_short.contains_key(delivery));
        running
    }

    /// Kills a qmail-remote that runs.
    fn kill_a_remote(&mut self) {
        let running: Vec<_> = self.running().into_iter().collect();
        let Some(at) = (self.random.below(1 << 20) as usize).checked_rem(running.len()) else {
            return;
        };
        let (pid, recipient) = running[at].clone();
        if self.is_ours(pid) {
            *self.under_way.entry(recipient.clone()).or_default() += 1;
            // Before, not after: another delivery may start as soon as it is dead.
            self.cut_short.insert((pid, recipient), now_ns());
            send_signal(pid, Signal::SIGKILL);
            self.killed += 1;
        }
    }

    /// Whether the process runs a program of the sandbox.
    fn is_ours(&self, pid: u32) -> bool {
        let base = self.sandbox.home().parent().unwrap_or(self.sandbox.home());
        fs::read_link(format!("/proc/{pid}/exe")).is_ok_and(|program| program.starts_with(base))
    }

    /// Waits until no process of the sandbox runs.
    fn wait_for_orphans(&mut self) -> Result<()> {
        let until = Instant::now() + PATIENCE;
        loop {
            let pids = fs::read_dir("/proc").map_err(Error::doing("read /proc"))?;
            let mut pids =
                pids.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
            if !pids.any(|pid| self.is_ours(pid)) {
                break;
            }
            if Instant::now() > until {
                return Err(Error::new("a process of the tree does not end", "look with ps"));
            }
            thread::sleep(Duration::from_millis(5));
        }
        // The rig kills the process group of a qmail-send that it has waited for.
        self.stubs.read()?;
        let now = now_ns();
        let running = self.running();
        self.cut_short.extend(running.into_iter().map(|delivery| (delivery, now)));
        Ok(())
    }

    /// Whatever has no outcome in the log was under way at a kill. So was the last success: the kill may have come
    /// before qmail-send marked it in the queue.
    fn note_under_way(&mut self, log: &Log) {
        let last = log.order.last().and_then(|last| log.deliveries.get(last));
        let open = log.deliveries.values().filter(|delivery| delivery.outcome.is_none());
        for delivery in open.chain(last) {
            *self.under_way.entry(delivery.recipient.clone()).or_default() += 1;
        }
    }

    fn check_limits(&mut self) {
        let mut steps: HashMap<&str, Vec<(u64, i64)>> = HashMap::new();
        for event in self.stubs.events() {
            let is_end = event.kind == StubEventKind::End;
            steps
                .entry(event.domain())
                .or_default()
                .push((event.at_ns, if is_end { -1 } else { 1 }));
        }
        for ((_, recipient), at) in &self.cut_short {
            let domain = recipient.rsplit('@').next().unwrap_or_default();
            steps.entry(domain).or_default().push((*at, -1));
        }
        let mut above = Vec::new();
        for (domain, mut steps) in steps {
            steps.sort_unstable();
            let mut running = 0;
            let most = steps.iter().map(|(_, step)| {
                running += step;
                running
            });
            let most = usize::try_from(most.max().unwrap_or(0)).unwrap_or(0);
            if most > limit_of(domain) {
                above.push(format!("{domain}: {most} at once, its limit is {}", limit_of(domain)));
            }
        }
        above.into_iter().for_each(|what| self.fail(what));
    }

    fn check_twice(&mut self) -> usize {
        let mut times: HashMap<&str, u32> = HashMap::new();
        for event in self.stubs.events() {
            if event.kind == StubEventKind::End {
                *times.entry(event.recipient.as_str()).or_default() += 1;
            }
        }
        let mut twice = 0;
        let mut wrong = Vec::new();
        for (recipient, times) in times {
            let allowed = self.under_way.get(recipient).copied().unwrap_or(0);
            twice += times as usize - 1;
            if times > 1 + allowed {
                wrong.push(format!("{recipient}: {times} times, and under way at {allowed} kills"));
            }
        }
        wrong.into_iter().for_each(|what| self.fail(what));
        twice
    }

    /// The busy answers in the log.
    fn busy_answers(log: &Log) -> usize {
        let outcomes = log.deliveries.values().filter_map(|delivery| delivery.outcome.as_ref());
        outcomes.filter(|outcome| outcome.text.contains(";_not_tried._")).count()
    }

    /// The descriptors of qmail-send and of qmail-rspawn.
    fn descriptors(&mut self, send: &SendRig) -> Option<(usize, usize)> {
        let send = send.process().id();
        Some((descriptors(send)?, descriptors(child(send, "qmail-rspawn")?)?))
    }

    /// Lets the gate read a table without mistakes, which it keeps. If the first one had a mistake, everything would
    /// have a limit of 20.
    fn learn_the_table(&mut self) -> Result<()> {
        let mut send = self.start()?;
        self.until(&mut send, "a status line", |_, send| Ok(send.log().limit("remote") > 0))?;
        self.queue(1)?;
        self.drain(&mut send)?;
        send.terminate()?;
        send.wait_exit(&mut self.stubs)?;
        Ok(())
    }

    /// Storms of signals at qmail-send, stalls of both, and killed deliveries.
    fn storm(&mut self) -> Result<()> {
        const MAILS: usize = 3000;
        let mut send = self.start()?;
        self.queue(1)?;
        self.drain(&mut send)?;
        let before = self.descriptors(&send);
        self.queue(MAILS)?;
        let started = Instant::now();
        let (mut signals, mut stalls) = (0_u32, 0_u32);
        let mut stalled: Option<(u32, Instant)> = None;
        self.until(&mut send, "the backlog", |target, send| {
            let pid = send.process().id();
            if let Some((stopped, until)) = stalled {
                if Instant::now() >= until {
                    send_signal(stopped, Signal::SIGCONT);
                    stalled = None;
                }
                return Ok(false);
            }
            signals += 1;
            let signal = if signals % 2 == 0 { Signal::SIGALRM } else { Signal::SIGHUP };
            send_signal(pid, signal);
            if signals % 50 == 0 {
                target.kill_a_remote();
            }
            if started.elapsed() > Duration::from_secs(4) * (stalls + 1) && stalls < 3 {
                stalls += 1;
                let other = child(pid, "qmail-rspawn").unwrap_or(pid);
                let stopped = if stalls == 2 { other } else { pid };
                send_signal(stopped, Signal::SIGSTOP);
                stalled = Some((stopped, Instant::now() + Duration::from_secs(3)));
            }
            Ok(target.delivered().len() >= target.wanted.len() - 50)
        })?;
        self.drain(&mut send)?;
        let busy = Self::busy_answers(send.log()) as f64 / MAILS as f64;
        if busy > BUSY_MOST {
            self.fail(format!("{busy:.2} busy answers a mail"));
        }
        let after = self.descriptors(&send);
        if before.is_none() || after != before {
            self.fail(format!("descriptors: {before:?} before the storm, {after:?} after it"));
        }
        send.terminate()?;
        send.wait_exit(&mut self.stubs)?;
        self.check_limits();
        self.said = format!(
            "{MAILS} mails, {signals} signals, {stalls} stalls of 3 s, {} deliveries killed, {busy:.2} busy answers a mail",
            self.killed
        );
        Ok(())
    }

    /// Kills qmail-rspawn, qmail-send or both, and starts them again.
    fn kills(&mut self, rounds: u32) -> Result<()> {
        let mut held_at_kills = 0;
        let mut under_way = 0;
        self.queue_list(&[WIDE.to_owned()], 1500)?;
        for round in 0..rounds {
            let mut send = self.start()?;
            self.until(&mut send, "a status line", |_, send| Ok(send.log().limit("remote") > 0))?;
            self.queue(120)?;
            let pause = Duration::from_millis(300 + u64::from(self.random.below(1200)));
            self.wait_for(&mut send, pause)?;
            // Every second kill comes in the middle of held mail, by the status, which is written once a second.
            if round % 2 == 0 {
                let end = Instant::now() + Duration::from_secs(3);
                self.until(&mut send, "held mail", |target, _| {
                    let held = target.status().map_or(0, |status| status.held);
                    Ok(held > 0 || Instant::now() > end)
                })?;
            }
            held_at_kills += u32::from(self.status().is_some_and(|status| status.held > 0));
            let pid = send.process().id();
            let rspawn = child(pid, "qmail-rspawn");
            let before: u32 = self.under_way.values().sum();
            match self.random.below(4) {
                0 => {
                    send.crash(&mut self.stubs)?;
                    self.note_under_way(send.log());
                }
                1 => {
                    rspawn.into_iter().for_each(|pid| send_signal(pid, Signal::SIGKILL));
                    send.crash(&mut self.stubs)?;
                    self.note_under_way(send.log());
                }
                2 => {
                    send.terminate()?;
                    send.wait_exit(&mut self.stubs)?;
                }
                _ => {
                    rspawn.into_iter().for_each(|pid| send_signal(pid, Signal::SIGKILL));
                    // qmail-send logs that it has lost its spawner, and exits.
                    let log = send.wait_exit(&mut self.stubs)?;
                    self.note_under_way(&log);
                }
            }
            under_way += self.under_way.values().sum::<u32>() - before;
            self.wait_for_orphans()?;
        }
        self.check_limits();
        self.said = format!(
            "{rounds} rounds, {held_at_kills} with held mail, {under_way} deliveries under way at a kill"
        );
        Ok(())
    }

    /// Delivers what is left.
    fn finish(&mut self) -> Result<()> {
        let mut send = self.start()?;
        self.drain(&mut send)?;
        send.terminate()?;
        send.wait_exit(&mut self.stubs)?;
        let delivered = self.delivered();
        let lost: Vec<String> =
            self.wanted.iter().filter(|one| !delivered.contains(one.as_str())).cloned().collect();
        if let Some(first) = lost.first() {
            self.fail(format!("{} are lost, such as {first}", lost.len()));
        }
        self.check_limits();
        let twice = self.check_twice();
        self.said = format!("{} recipients, {} lost, {twice} twice", self.wanted.len(), lost.len());
        Ok(())
    }

    /// Replaces control/concurrencydomains once, and empties the status. No qmail-send runs.
    fn set_table(&self, lines: &str) -> Result<()> {
        // Otherwise the next step might take the mail that was away in the last one for its own.
        self.sandbox.write(&self.sandbox.home().join("queue/lock/gatestatus"), b"")?;
        // The file that is there may be one that cannot be read.
        let table = self.sandbox.home().join("control/concurrencydomains");
        fs::remove_file(&table).map_err(Error::doing("remove the table"))?;
        self.sandbox.set_control("concurrencydomains", lines)?;
        // The gate does not trust a file that has been changed just now.
        thread::sleep(Duration::from_secs(2));
        Ok(())
    }

    /// Stops qmail-send while most of a backlog is away.
    fn stall(&mut self, time: Duration) -> Result<()> {
        const MAILS: usize = 4000;
        self.set_table(TABLES[0])?;
        let mut send = self.start()?;
        for _ in 0..MAILS {
            let recipient = self.recipient(WIDE);
            self.sandbox.queue_message(BODY, SENDER, &[recipient])?;
        }
        pull_trigger(&self.sandbox)?;
        self.until(&mut send, "mail that is away", |target, _| {
            let away =
                target.status().map_or(0, |status| status.keys.iter().map(|key| key.away).sum());
            Ok(away > 2000_u32)
        })?;
        send_signal(send.process().id(), Signal::SIGSTOP);
        let end = Instant::now() + time;
        while Instant::now() < end {
            self.attend(&mut send)?;
            thread::sleep(Duration::from_millis(5));
        }
        send_signal(send.process().id(), Signal::SIGCONT);
        let start_ns = now_ns();
        self.drain(&mut send)?;
        let ends = self.stubs.events().iter().filter(|event| event.kind == StubEventKind::End);
        let after: Vec<u64> = ends.map(|end| end.at_ns).filter(|&at| at > start_ns).collect();
        let took = (after.iter().max().unwrap_or(&start_ns) - start_ns) as f64 / 1e9;
        let at_best = after.len() as f64 * f64::from(SERVICE_MS) / 1e3 / limit_of(WIDE) as f64;
        let pace = took / at_best;
        if pace > PACE_MOST || after.len() < 1000 {
            self.fail(format!("{} mails after a stall took {took:.1} s", after.len()));
        }
        send.terminate()?;
        send.wait_exit(&mut self.stubs)?;
        self.check_limits();
        self.said = format!(
            "{} s; then {} mails in {took:.1} s, {pace:.3} times what the limit takes",
            time.as_secs(),
            after.len()
        );
        Ok(())
    }

    /// Removes the files of a message while its recipients are away.
    fn remove_a_message(&mut self) -> Result<()> {
        self.set_table(":1\n")?;
        let mut send = self.start()?;
        let domains: Vec<String> = (0..40).map(|number| format!("gone{number}.example")).collect();
        let list = self.queue_list(&domains, 2000)?;
        self.until(&mut send, "mail that is away", |target, _| {
            let away =
                target.status().map_or(0, |status| status.keys.iter().map(|key| key.away).sum());
            Ok(away > 1000_u32)
        })?;
        for folder in ["info", "remote", "mess"] {
            let path = self.sandbox.home().join("queue").join(list.path(folder));
            fs::remove_file(&path).map_err(Error::doing("remove a message"))?;
        }
        // All that runs and is held ends, and then a message that is younger than all entries is delivered.
        self.until(&mut send, "the places", |target, _| {
            Ok(target.status().is_some_and(|status| status.in_use == 0 && status.held == 0))
        })?;
        let last = self.recipient("last.example");
        self.sandbox.queue_message(BODY, SENDER, std::slice::from_ref(&last))?;
        pull_trigger(&self.sandbox)?;
        self.until(&mut send, "a younger message", |target, _| {
            Ok(target.delivered().contains(last.as_str()))
        })?;
        let file = list.path("remote");
        let lines = send.log().complaints.iter();
        let lines = lines.filter(|line| line.contains("trouble opening") && line.contains(&file));
        let lines = lines.count();
        if lines > TROUBLE_MOST {
            self.fail(format!("{lines} lines \"trouble opening\" of one removed message"));
        }
        self.said = format!("a message of 2000 recipients, {lines} lines \"trouble opening\"");
        // qmail-send would go on to look for the file, so it ends as it may.
        send.terminate()?;
        send.wait_exit(&mut self.stubs)?;
        Ok(())
    }
}
