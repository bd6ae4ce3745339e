//! The limits per domain in the patched fixture's own qmail-rspawn and qmail-send. A stub in place of qmail-remote
//! records when each delivery starts and ends; limits are checked against this record.

#[path = "../common/mod.rs"]
mod common;
#[path = "../common/rig.rs"]
mod rig;
#[path = "../common/trees.rs"]
mod trees;

mod bytes;
mod control_files;
mod send;
mod spawner;

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use common::Fixture;
use qpatch::fixture::Dialect;
use qpatch::verify::rig::protocol::{Command, Report};
use qpatch::verify::rig::spawner::{Channel, IDLE, Spawner};
use qpatch::verify::rig::stub::{self, Mode, StubEventKind, peak};
use qpatch::verify::sandbox::private_tree::Sandbox;
use qpatch_gate::table::Limit;
use qpatch_gate_status::Status;
use rig::{Rig, config, furnish};
use trees::{Gate, patched};

const BUSY: &str = "busy.example";

const SENDER: &str = "sender@sender.example";

const BODY: &[u8] = b"Subject: a message of the rig\n\nhello\n";

/// A rig with the gate, `limits` in control/concurrencydomains and a slow qmail-remote.
fn gated(programs: &[&str], limits: &str, concurrency_remote: u32) -> Rig {
    gated_of(&patched(Dialect::StockKr, Gate::In), programs, limits, concurrency_remote)
}

fn gated_of(fixture: &Fixture, programs: &[&str], limits: &str, concurrency_remote: u32) -> Rig {
    let rig = Rig::of(fixture.path(), &config(1000, &[]), programs).unwrap();
    furnish(&rig.sandbox, limits, concurrency_remote);
    rig
}

fn domains(sandbox: &Sandbox) -> PathBuf {
    sandbox.home().join("control/concurrencydomains")
}

/// Replaces the limits at once: a file that is written bit by bit could be read half written.
fn set_limits(sandbox: &Sandbox, limits: &str) {
    let new = sandbox.home().join("control/new");
    sandbox.write(&new, limits.as_bytes()).unwrap();
    fs::rename(new, domains(sandbox)).unwrap();
}

/// The status file, once `wanted` is true of it. There is no event for a file that changes.
fn status(sandbox: &Sandbox, what: &str, wanted: impl Fn(&Status) -> bool) -> Status {
    let path = sandbox.home().join("queue/lock/gatestatus");
    let until = Instant::now() + IDLE;
    loop {
        let status = Status::parse(&fs::read(&path).unwrap());
        match status {
            Ok(status) if wanted(&status) => return status,
            other if Instant::now() > until => panic!("waited for {what}: {other:?}"),
            _ => std::thread::sleep(Duration::from_millis(20)),
        }
    }
}

fn limit_of(status: &Status, domain: &str) -> Option<Limit> {
    status.keys.iter().find(|key| key.name == domain).map(|key| key.limit)
}

/// qmail-rspawn with deliveries by number.
struct Spawning<'r> {
    rig: &'r mut Rig,
    spawner: Spawner,
}

impl<'r> Spawning<'r> {
    fn start(rig: &'r mut Rig) -> Spawning<'r> {
        rig.stubs.forget();
        let spawner = Spawner::start(&rig.sandbox, &mut rig.stubs, Channel::Remote).unwrap();
        Spawning { rig, spawner }
    }

    fn send(&mut self, number: u32, recipient: String) {
        let message = self.rig.message.relative();
        self.spawner.send(&Command { number, message, sender: SENDER.to_owned(), recipient });
    }

    /// Waits until this many deliveries have started since the rig's record began.
    fn started(&mut self, count: usize) {
        let what = format!("{count} deliveries to start");
        self.spawner.wait(&mut self.rig.stubs, &what, |seen| seen.started >= count).unwrap();
    }

    /// The next `count` reports.
    fn reports(&mut self, count: usize) -> Vec<Report> {
        let what = format!("{count} reports");
        self.spawner.wait(&mut self.rig.stubs, &what, |seen| seen.reports >= count).unwrap();
        let reports = self.spawner.take_reports();
        assert_eq!(reports.len(), count, "{reports:?}");
        reports
    }

    /// Runs a delivery to a domain without a limit. When it has ended, all earlier commands have been read.
    fn round_trip(&mut self) {
        self.send(999, stub::recipient(Mode::Accept, None, "trip", "elsewhere.example"));
        let report = self.reports(1).remove(0);
        assert_eq!((report.number, report.letter), (999, b'K'), "{report:?}");
    }

    /// The status, once `wanted` is true of it. The gate looks at its files when it is called.
    fn status(&mut self, what: &str, wanted: impl Fn(&Status) -> bool) -> Status {
        let until = Instant::now() + IDLE;
        loop {
            self.round_trip();
            let status = status(&self.rig.sandbox, what, |_| true);
            if wanted(&status) {
                return status;
            }
            assert!(Instant::now() < until, "{what}: {status:?}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// How many deliveries to `domain` have started.
    fn count(&self, domain: &str) -> usize {
        let events = self.rig.stubs.events().iter();
        events
            .filter(|event| event.kind == StubEventKind::Start && event.domain() == domain)
            .count()
    }

    fn peak(&self, domain: &str) -> usize {
        peak(self.rig.stubs.events(), |event| event.domain() == domain)
    }

    /// Fills the places of `domain`, which are all free, with `limit` deliveries, and empties them.
    fn fill(&mut self, domain: &str, limit: u32) {
        self.rig.stubs.forget();
        self.rig.stubs.hold("fill").unwrap();
        for number in 0..=limit {
            self.send(number, stub::recipient(Mode::Accept, Some("fill"), number, domain));
        }
        self.started(limit as usize);
        self.round_trip();
        assert_eq!(self.count(domain), limit as usize);
        self.rig.stubs.release("fill").unwrap();
        let letters: Vec<u8> =
            self.reports(limit as usize + 1).iter().map(|report| report.letter).collect();
        assert_eq!(letters, vec![b'K'; limit as usize + 1]);
        assert_eq!(self.peak(domain), limit as usize);
    }

    /// Ends the input; qmail-rspawn must exit with 0.
    fn end(mut self) -> Vec<Report> {
        self.spawner.close_input();
        let status = self.spawner.wait_exit(&mut self.rig.stubs).unwrap();
        assert_eq!(status.code(), Some(0));
        self.spawner.take_reports()
    }
}
