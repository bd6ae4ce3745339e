//! A qmail home with control and queue/lock, and a gate in it whose clock stands still until the test moves it.

use std::cell::Cell;
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::sleep;
use std::time::{Duration, SystemTime};

use qpatch_gate::clock::Clock;
use qpatch_gate::command::Parts;
use qpatch_gate::gate::DeliveryEnd;
use qpatch_gate::host::{self, Ask, Done, Due};
use qpatch_gate::problem::File;
use qpatch_gate::rules::KeyKind;
use qpatch_gate::sender::Reads;
use qpatch_gate::table::Limit;
use qpatch_gate_status::{Status, StatusError};

thread_local! {
    /// How far each test, in a thread of its own, has moved its time.
    static MOVED: Cell<Duration> = const { Cell::new(Duration::ZERO) };
}

/// How the times of files relate to the test's clock.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Files {
    /// The test writes them, at its own time.
    OfTheTest,
    /// Another thread writes them, in real time. While the gate waits, its clock runs `speed` times as fast.
    OfOthers { speed: u32 },
}

/// A clock that stands still until [`pass`] moves it.
#[derive(Debug)]
pub(crate) struct TestClock {
    opened: Duration,
    files: Files,
}

impl Clock for TestClock {
    fn now_us(&self) -> u64 {
        (MOVED.get() - self.opened).as_micros() as u64
    }

    fn wall(&self) -> SystemTime {
        match self.files {
            Files::OfTheTest => wall(),
            Files::OfOthers { .. } => SystemTime::now(),
        }
    }

    fn pause(&self, time: Duration) {
        if let Files::OfOthers { speed } = self.files {
            sleep(time / speed);
        }
        pass(time);
    }

    fn since_boot_ms(&self) -> Option<u64> {
        Some(boot_ms())
    }
}

/// The time since the machine started, as far as the gate knows.
pub(crate) fn boot_ms() -> u64 {
    1_000_000 + MOVED.get().as_millis() as u64
}

pub(crate) type Host = host::Host<TestClock>;

/// Lets this much time pass.
pub(crate) fn pass(time: Duration) {
    MOVED.set(MOVED.get() + time);
}

pub(crate) fn pass_ms(ms: u64) {
    pass(Duration::from_millis(ms));
}

pub(crate) fn next_second() {
    pass_ms(1050);
}

/// The time of files that the test writes.
pub(crate) fn wall() -> SystemTime {
    SystemTime::now() + MOVED.get()
}

/// Marks a folder as changed now.
pub(crate) fn stamp(folder: &Path) {
    fs::File::open(folder).unwrap().set_modified(wall()).unwrap();
}

pub(crate) fn open(
    files: Files,
    slots: u32,
    control: &OsStr,
    status: &OsStr,
    reads: Reads,
) -> Result<Host, qpatch_gate::memory::OutOfMemory> {
    let clock = TestClock { opened: MOVED.get(), files };
    Host::open_with(clock, slots, control, status, reads, 1)
}

/// A qmail home with control and queue/lock, removed in the end.
pub(crate) struct Home {
    pub(crate) path: PathBuf,
}

impl Home {
    pub(crate) fn new() -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("gate-host-{}-{number}", std::process::id()));
        fs::create_dir_all(path.join("control")).unwrap();
        fs::create_dir_all(path.join("lock")).unwrap();
        for file in [File::Status].into_iter().chain(File::KEPT).map(File::name) {
            fs::write(path.join("lock").join(file), "").unwrap();
        }
        Self { path }
    }

    pub(crate) fn control(&self, name: &str) -> PathBuf {
        self.path.join("control").join(name)
    }

    pub(crate) fn write(&self, name: &str, text: impl AsRef<[u8]>) {
        // With a rename, so that a reader sees the old file or the new one.
        let next = self.control("next");
        fs::write(&next, text).unwrap();
        stamp(&next);
        fs::rename(next, self.control(name)).unwrap();
        stamp(&self.path.join("control"));
    }

    pub(crate) fn remove(&self, name: &str) {
        fs::remove_file(self.control(name)).unwrap();
        stamp(&self.path.join("control"));
    }

    pub(crate) fn open(&self, slots: u32) -> Host {
        self.open_with(slots, "", Files::OfTheTest)
    }

    pub(crate) fn open_with(&self, slots: u32, reads: &str, files: Files) -> Host {
        let (control, status) = (self.path.join("control"), self.path.join("lock/gatestatus"));
        let reads = Reads::parse(reads.as_bytes());
        open(files, slots, control.as_os_str(), status.as_os_str(), reads).unwrap()
    }

    /// With a qmail-remote that reads more than smtproutes.
    pub(crate) fn open_beside(&self, reads: &str) -> Host {
        self.open_with(100, reads, Files::OfTheTest)
    }

    pub(crate) fn status(&self) -> Result<Status, StatusError> {
        Status::parse(&fs::read(self.path.join("lock/gatestatus")).unwrap())
    }

    pub(crate) fn problem(&self) -> String {
        self.status().unwrap().problems.join("; ")
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.path);
    }
}

pub(crate) fn ask(host: &mut Host, slot: u32, domain: &str) -> Ask {
    let recipient = format!("user@{domain}\0");
    host.ask(slot, &Parts::new(&[b"1/1\0", b"sender\0", recipient.as_bytes()]).unwrap())
}

pub(crate) fn text(host: &Host) -> String {
    let (end, text) = host.text().split_last().unwrap();
    assert_eq!(*end, 0);
    String::from_utf8(text.to_vec()).unwrap()
}

/// As the spawner's loop: lets as much time pass as the gate allows, until something is due. Returns how many
/// milliseconds that took.
pub(crate) fn wait_for_due(host: &mut Host) -> (Due, u64) {
    let mut allowed_ms = 0;
    loop {
        let due = host.due();
        if due != Due::Nothing {
            return (due, allowed_ms);
        }
        let wait_ms = host.timeout_ms().expect("something is held");
        allowed_ms += wait_ms;
        assert!(allowed_ms < 10_000, "nothing came");
        pass_ms(wait_ms);
    }
}

/// How many deliveries to a domain may run at once.
pub(crate) fn limit(host: &Host, domain: &str) -> u32 {
    match host.gate().rules().resolve(domain.as_bytes()).cap.limit {
        Limit::AtMost(limit) => limit,
        Limit::Unlimited => u32::MAX,
    }
}

/// Runs three deliveries at once to a key that learns, and gives the first one this reply. Returns the limit that the
/// gate has learned.
pub(crate) fn limit_after(host: &mut Host, sender: &str, reply: &str) -> Limit {
    let recipient = format!("user@{}.example\0", host.gate().totals().asked);
    for slot in 0..3 {
        let parts = [&b"1/1\0"[..], sender.as_bytes(), b"more", recipient.as_bytes()];
        assert_eq!(host.ask(slot, &Parts::new(&parts).unwrap()), Ask::Go);
    }
    let report =
        format!("ZConnected to 192.0.2.1 but sender was rejected.\nRemote host said: {reply}\n\0");
    host.done(0, DeliveryEnd::Reported(report.as_bytes()));
    let domain = recipient.trim_end_matches('\0').trim_start_matches("user@");
    let limit = host.gate().find_key(KeyKind::Domain, domain.as_bytes()).unwrap().limit();
    for slot in 1..3 {
        host.done(slot, DeliveryEnd::NeverStarted);
    }
    limit
}

/// Asks about mail of this sender, and returns the answer.
pub(crate) fn ask_from(host: &mut Host, slot: u32, sender: &str, domain: &str) -> Ask {
    let (sender, recipient) = (format!("{sender}\0"), format!("user@{domain}\0"));
    host.ask(slot, &Parts::new(&[b"1/1\0", sender.as_bytes(), recipient.as_bytes()]).unwrap())
}

pub(crate) const SENDERS: &str =
    "@a.example:relay.example:587|user|S3cret\nu@a.example:\n.b.example:[192.0.2.25]|user|S3cret\n";

pub(crate) fn running(host: &Host, kind: KeyKind, name: &str) -> u32 {
    host.gate().find_key(kind, name.as_bytes()).map_or(0, |key| key.running)
}

/// Opens a gate some time after the files were written.
pub(crate) fn at_rest(home: &Home, open: impl Fn(&Home) -> Host) -> Host {
    pass_ms(250);
    open(home)
}

/// The keys that deliveries to these domains count under.
pub(crate) fn keys(host: &Host, domains: [&str; 2]) -> [String; 2] {
    domains.map(|domain| {
        let name = host.gate().rules().resolve(domain.as_bytes()).name;
        String::from_utf8(name.to_vec()).unwrap()
    })
}

/// What [`Host::done`] answers to a report, and the text.
pub(crate) fn done(host: &mut Host, slot: u32, report: &[u8]) -> (Done, String) {
    let done = host.done(slot, DeliveryEnd::Reported(report));
    (done, if done == Done::AsItIs { String::new() } else { text(host) })
}
