//! What a delivery costs qmail-rspawn while others are under way: `cargo bench --bench under_way [-- TREE]`.
//!
//! The same tree (without TREE the fixture) with the patch spawn-events and without, conf-spawn 65000, in turn: HELD
//! deliveries wait, and others start and end beside them, one at a time. Printed is the processor time of qmail-rspawn
//! alone for each of these, and its ratio to that with the fewest held.

mod rig;

use std::path::Path;

use qpatch::verify::rig::spawner::Spawner;
use qpatch::verify::rig::stub::{Mode, recipient};
use qpatch::verify::sandbox::limits::Raised;
use qpatch::verify::sandbox::scratch::Scratch;
use rig::{Built, used_us};

const SPAWN: u32 = 65000;
/// Two descriptors each without spawn-events: the last needs a limit of 20,000.
const HELD: [u32; 3] = [100, 1000, 9900];
const DELIVERIES: u32 = 300;
const ROUNDS: usize = 3;

struct Subject {
    built: Built,
}

impl Subject {
    fn build(scratch: &Scratch, tree: &Path, name: &str, flags: &[&str]) -> Subject {
        Subject { built: Built::new(scratch, tree, name, SPAWN, flags) }
    }

    fn send(&self, spawner: &mut Spawner, number: u32, hold: Option<&str>) {
        let recipient = recipient(Mode::Accept, hold, number, "remote.example");
        spawner.send(&self.built.command(number, recipient));
    }

    /// Returns microseconds a delivery beside `held` that wait.
    fn round(&mut self, held: u32) -> f64 {
        let mut spawner = self.built.start();
        self.built.stubs.forget();
        self.built.stubs.hold("all").expect("a hold");
        for number in 0..held {
            self.send(&mut spawner, number, Some("all"));
        }
        spawner
            .wait(&mut self.built.stubs, "the held deliveries", |seen| {
                seen.started >= held as usize
            })
            .expect("they start");
        let process = spawner.process().id();
        let before = used_us(process);
        for _ in 0..DELIVERIES {
            self.send(&mut spawner, held, None);
            spawner
                .wait(&mut self.built.stubs, "a report", |seen| seen.reports > 0)
                .expect("a report");
            assert_eq!(spawner.take_reports().len(), 1);
        }
        let us = (used_us(process) - before) / f64::from(DELIVERIES);
        self.built.stubs.release("all").expect("no hold");
        self.built.end(spawner);
        us
    }
}

fn main() {
    let (tree, _folder) = rig::tree();
    let _limits = Raised::raise();
    let scratch = rig::scratch(&tree);
    let ways: [(&str, &[&str]); 2] =
        [("spawn-events", &[]), ("select", &["--skip", "spawn-events"])];
    let mut subjects =
        ways.map(|(name, flags)| (name, Subject::build(&scratch, &tree, name, flags)));
    println!("qmail-rspawn at conf-spawn {SPAWN}, us a delivery, medians of {ROUNDS} rounds");
    rig::under_way(ROUNDS, &HELD, &mut subjects, Subject::round);
}
