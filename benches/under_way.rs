//! What a delivery costs qmail-rspawn while others are under way: `cargo bench --bench under_way [-- TREE]`.
//!
//! The same tree (without TREE the fixture) with the patch spawn-events and without, conf-spawn 65000, in turn: HELD
//! deliveries wait, and others start and end beside them, one at a time. Printed is the processor time of qmail-rspawn
//! alone for each of these, and its ratio to that with the fewest held.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use qpatch::fixture::Dialect;
use qpatch::verify::build;
use qpatch::verify::rig::protocol;
use qpatch::verify::rig::spawner::{Channel, Spawner};
use qpatch::verify::rig::stub::{Mode, Stubs, recipient};
use qpatch::verify::sandbox::SiteConfig;
use qpatch::verify::sandbox::limits::Raised;
use qpatch::verify::sandbox::scratch::{Keep, Scratch};
use qpatch::verify::sandbox::site::{MessageId, Site};

const SPAWN: u32 = 65000;
/// Two descriptors each: the last needs a limit of 20,000.
const HELD: [u32; 3] = [100, 1000, 9900];
const DELIVERIES: u32 = 300;
const ROUNDS: usize = 3;

struct Subject {
    name: &'static str,
    site: Site,
    stubs: Stubs,
    message: MessageId,
    /// For each of HELD, microseconds a delivery in each round.
    cpu_us: [Vec<f64>; HELD.len()],
}

impl Subject {
    fn build(scratch: &Scratch, tree: &Path, name: &'static str, flags: &[&str]) -> Subject {
        let copy = scratch.copy(tree, &format!("{name}-tree")).expect("a copy of the tree");
        let mut apply = Command::new(env!("CARGO_BIN_EXE_qpatch"));
        apply.args(["apply", "--spawn", &SPAWN.to_string()]).args(flags).arg(&copy);
        let applied = apply.output().expect("qpatch can be run");
        assert!(applied.status.success(), "{}", String::from_utf8_lossy(&applied.stderr));
        let config = SiteConfig { spawn: Some(SPAWN), ..SiteConfig::default() };
        let site = scratch.site(&copy, name, &config).expect("a configured copy");
        build::prepare(&site).expect("what the build needs");
        build::make(&site, &["qmail-rspawn"]).expect("the tree builds");
        build::install(&site, "qmail-rspawn").expect("qmail-rspawn");
        let stubs = Stubs::install(&site).expect("the stubs");
        let message = site.add_message(b"Subject: a message of the bench\n\nhello\n");
        let message = message.expect("a message");
        Subject { name, site, stubs, message, cpu_us: Default::default() }
    }

    fn send(&self, spawner: &mut Spawner, number: u32, hold: Option<&str>) {
        spawner.send(&protocol::Command {
            number,
            message: self.message.relative(),
            sender: "sender@sender.example".to_owned(),
            recipient: recipient(Mode::Accept, hold, number, "remote.example"),
        });
    }

    fn round(&mut self, at: usize) {
        let held = HELD[at];
        let mut spawner =
            Spawner::start(&self.site, &mut self.stubs, Channel::Remote).expect("qmail-rspawn");
        self.stubs.forget();
        self.stubs.hold("all").expect("a hold");
        for number in 0..held {
            self.send(&mut spawner, number, Some("all"));
        }
        let all =
            |seen: qpatch::verify::rig::spawner::DeliveryCounts| seen.started >= held as usize;
        spawner.wait(&mut self.stubs, "the held deliveries", all).expect("they start");
        let process = spawner.process().id();
        let before = used_us(process);
        for _ in 0..DELIVERIES {
            self.send(&mut spawner, held, None);
            spawner.wait(&mut self.stubs, "a report", |seen| seen.reports > 0).expect("a report");
            assert_eq!(spawner.take_reports().len(), 1);
        }
        self.cpu_us[at].push((used_us(process) - before) / f64::from(DELIVERIES));
        self.stubs.release("all").expect("no hold");
        spawner.close_input();
        spawner.wait_exit(&mut self.stubs).expect("qmail-rspawn ends");
    }
}

/// The processor time of a process, without that of its children: the first number of /proc/PID/schedstat, in nanoseconds.
fn used_us(process: u32) -> f64 {
    let text =
        fs::read_to_string(format!("/proc/{process}/schedstat")).expect("a Linux with schedstat");
    let number = text.split(' ').next().and_then(|number| number.parse::<f64>().ok());
    number.expect("a number of nanoseconds") / 1e3
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted[sorted.len() / 2]
}

fn main() {
    let given = std::env::args().skip(1).find(|arg| !arg.starts_with('-'));
    let folder = tempfile::tempdir().expect("a folder for the tree");
    let tree = given.map_or_else(
        || {
            Dialect::StockKr.write(folder.path()).expect("the fixture can be written");
            folder.path().to_owned()
        },
        PathBuf::from,
    );
    let _limits = Raised::raise();
    let scratch = Scratch::new(&tree, None, Keep::No).expect("a folder for the copies");
    let mut subjects = [
        Subject::build(&scratch, &tree, "spawn-events", &[]),
        Subject::build(&scratch, &tree, "select", &["--skip", "spawn-events"]),
    ];
    for _ in 0..ROUNDS {
        for at in 0..HELD.len() {
            subjects.iter_mut().for_each(|subject| subject.round(at));
        }
    }
    println!("qmail-rspawn at conf-spawn {SPAWN}, us a delivery, medians of {ROUNDS} rounds");
    for subject in &subjects {
        print!("  {:12}", subject.name);
        let least = median(&subject.cpu_us[0]);
        for (held, values) in HELD.iter().zip(&subject.cpu_us) {
            let us = median(values);
            print!("  {held:5} under way: {us:7.1} (x{:.2})", us / least);
        }
        println!();
    }
}
