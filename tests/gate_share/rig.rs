//! A host of the tests: a qmail home with a gate in this process, and `qpatch gate share` as a process of its own.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use qpatch_gate::command::Parts;
use qpatch_gate::gate::DeliveryEnd;
use qpatch_gate::host::{Ask, Due, Host};
use qpatch_gate::problem::File;
use qpatch_gate::rules::KeyKind;
use qpatch_gate_status::Status;
use tempfile::TempDir;

/// The length of a lease, in milliseconds.
pub(crate) const LEASE_MS: u64 = 1000;
/// As many as deliveries can be running, held and away.
pub(crate) const SLOTS: u32 = 400;

pub(crate) struct Node {
    dir: PathBuf,
    /// Removed with the node; None: it belongs to another one.
    #[allow(dead_code)]
    temporary: Option<TempDir>,
    gate: Host,
    agent: Option<Child>,
    /// Mail that waits for a call: its queue, slot and domain.
    away: Vec<(String, u32, Vec<u8>)>,
    /// The slots that have started since somebody emptied this.
    pub(crate) started: Vec<u32>,
}

impl Node {
    /// A qmail with this table, whose agent has this configuration. The agent does not run yet.
    pub(crate) fn new(name: &str, table: &str, config: &str) -> Self {
        let lease = format!("{config}\nlease {}\nforget 60\n", LEASE_MS as f64 / 1000.0);
        Self::with(name, table, &lease)
    }

    /// The same with a whole configuration.
    pub(crate) fn with(name: &str, table: &str, config: &str) -> Self {
        Self::with_files(name, table, config, &[])
    }

    /// The same with a queue that may have a second spawner.
    pub(crate) fn with_channels(name: &str, table: &str, config: &str) -> Self {
        let files = ["queue/lock/gatestatus.1", "queue/lock/gateshared"];
        Self::with_files(name, table, config, &files)
    }

    fn with_files(name: &str, table: &str, config: &str, more: &[&'static str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        for folder in ["control", "queue/lock"] {
            fs::create_dir_all(dir.path().join(folder)).unwrap();
        }
        let files = [File::Status, File::Lease, File::Seen].into_iter().chain(File::KEPT);
        for file in files.map(File::path).chain(more.iter().copied()) {
            fs::write(dir.path().join(file), "").unwrap();
        }
        fs::write(dir.path().join("control/concurrencydomains"), table).unwrap();
        fs::write(dir.path().join("control/concurrencyremote"), format!("{SLOTS}\n")).unwrap();
        fs::write(dir.path().join("control/me"), format!("{name}\n")).unwrap();
        fs::write(dir.path().join("control/concurrencyshare"), config).unwrap();
        let mut node = Self::beside(dir.path());
        node.temporary = Some(dir);
        node
    }

    /// Another spawner of the qmail in this folder, without an agent.
    pub(crate) fn beside(dir: &Path) -> Self {
        let (control, status) = (dir.join("control"), dir.join("queue/lock/gatestatus"));
        let gate = Host::open(SLOTS, control.as_os_str(), status.as_os_str(), 1).unwrap();
        let dir = dir.to_path_buf();
        Self { dir, temporary: None, gate, agent: None, away: Vec::new(), started: Vec::new() }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.dir
    }

    fn said_file(&self) -> PathBuf {
        self.dir.join("said")
    }

    /// What the agent has printed.
    pub(crate) fn said(&self) -> String {
        fs::read_to_string(self.said_file()).unwrap_or_default()
    }

    pub(crate) fn start(&mut self) {
        let said = fs::OpenOptions::new().create(true).append(true).open(self.said_file()).unwrap();
        let agent = Command::new(env!("CARGO_BIN_EXE_qpatch"))
            .args(["gate", "share"])
            .arg(&self.dir)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(said)
            .spawn();
        self.agent = Some(agent.unwrap());
    }

    pub(crate) fn signal(&self, name: &str) {
        let pid = self.agent.as_ref().unwrap().id();
        assert!(Command::new("kill").arg(name).arg(pid.to_string()).status().unwrap().success());
    }

    /// kill -9, or the end of an agent that has ended by itself. Returns whether it ended by itself.
    pub(crate) fn kill(&mut self) -> bool {
        let Some(mut agent) = self.agent.take() else { return false };
        let has_ended = agent.try_wait().unwrap().is_some();
        let _ = agent.kill();
        agent.wait().unwrap();
        has_ended
    }

    /// The processor time of the agent so far, in milliseconds; for benches/share.rs.
    #[allow(dead_code)]
    pub(crate) fn agent_cpu_ms(&self) -> f64 {
        let pid = self.agent.as_ref().map_or(0, Child::id);
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let rest = stat.rsplit(')').next().unwrap_or_default();
        let ticks =
            rest.split_whitespace().skip(11).take(2).filter_map(|ticks| ticks.parse::<f64>().ok());
        ticks.sum::<f64>() * 10.0
    }

    pub(crate) fn has_ended(&mut self) -> bool {
        self.agent.as_mut().unwrap().try_wait().unwrap().is_some()
    }

    /// Asks for these deliveries to a domain. What does not start is held, or is away until it is called.
    pub(crate) fn mail(&mut self, slots: std::ops::Range<u32>, domain: impl AsRef<[u8]>) {
        for slot in slots {
            self.ask(slot, domain.as_ref().to_vec());
        }
    }

    fn ask(&mut self, slot: u32, domain: Vec<u8>) {
        let recipient = [b"u@", &domain[..], b"\0"].concat();
        let parts = [&b"1/1\0"[..], b"s\0", &recipient];
        match self.gate.ask(slot, &Parts::new(&parts).unwrap()) {
            Ask::Go => self.started.push(slot),
            Ask::Hold => {}
            Ask::Report => {
                let queue = self.word(1);
                self.away.push((queue, slot, domain));
            }
        }
    }

    /// A word of the gate's report: "B60 1 ..." sends mail away to queue 1, "R1 20" calls 20 of it.
    fn word(&self, number: usize) -> String {
        let text = String::from_utf8_lossy(self.gate.text()).to_string();
        let word = text.split([' ', '\n', '\0', ':']).nth(number).unwrap_or_default();
        word.trim_start_matches('R').to_string()
    }

    /// What a spawner and qmail-send do between deliveries.
    pub(crate) fn pump(&mut self) {
        loop {
            match self.gate.due() {
                Due::Nothing => break,
                Due::Go { slot, .. } => self.started.push(slot),
                Due::Report { slot, command } => {
                    let recipient = self.gate.command(command).recipient();
                    let domain = recipient.strip_prefix(b"u@").unwrap_or(recipient);
                    let domain = domain.strip_suffix(b"\0").unwrap_or(domain).to_vec();
                    let queue = self.word(1);
                    self.away.push((queue, slot, domain));
                }
                Due::Call => {
                    let (queue, most) = (self.word(0), self.word(1).parse().unwrap_or(0));
                    let (called, rest): (Vec<_>, Vec<_>) =
                        self.away.drain(..).partition(|away| away.0 == queue);
                    self.away = rest;
                    for (number, (queue, slot, domain)) in called.into_iter().enumerate() {
                        match number < most {
                            true => self.ask(slot, domain),
                            false => self.away.push((queue, slot, domain)),
                        }
                    }
                }
            }
        }
        let _ = self.gate.timeout_ms();
    }

    /// Ends all deliveries of these slots.
    pub(crate) fn end(&mut self, slots: std::ops::Range<u32>) {
        self.away.retain(|(_, slot, _)| !slots.contains(slot));
        for slot in slots {
            self.gate.done(slot, DeliveryEnd::Reported(b"r\0K192.0.2.7 accepted message.\n\0"));
        }
    }

    pub(crate) fn running(&self, domain: impl AsRef<[u8]>) -> u32 {
        self.gate.find(domain.as_ref()).map_or(0, |key| key.running)
    }

    /// The share of a domain that the gate has in force.
    pub(crate) fn share(&self, domain: &str) -> Option<u32> {
        self.gate.find(domain.as_bytes()).map(|key| key.share)
    }

    pub(crate) fn status(&self) -> Option<Status> {
        Status::parse(&fs::read(self.path().join("queue/lock/gatestatus")).unwrap()).ok()
    }

    /// How far the lease is, as the gate says it.
    pub(crate) fn phase(&self) -> &'static str {
        self.status().and_then(|status| status.lease).map_or("none", |lease| lease.phase.name())
    }
}

trait Find {
    fn find(&self, domain: &[u8]) -> Option<&qpatch_gate::gate::Key>;
}

impl Find for Host {
    fn find(&self, domain: &[u8]) -> Option<&qpatch_gate::gate::Key> {
        self.gate().find_key(KeyKind::Domain, domain)
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            eprintln!("{}: {}", self.dir.display(), self.said());
        }
    }
}

/// Lets all gates work until this holds.
pub(crate) fn until(
    what: &str,
    nodes: &mut [&mut Node],
    mut holds: impl FnMut(&mut [&mut Node]) -> bool,
) {
    let end = Instant::now() + Duration::from_secs(20);
    loop {
        for node in nodes.iter_mut() {
            node.pump();
        }
        if holds(nodes) {
            return;
        }
        assert!(Instant::now() < end, "{what}");
        sleep(Duration::from_millis(10));
    }
}

pub(crate) fn secret(path: &Path, text: &str, mode: u32) {
    fs::write(path, text).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}
