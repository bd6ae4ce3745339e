//! Measures what the gate costs qmail-rspawn: `cargo bench --bench spawner [-- TREE]`.
//!
//! Runs the same tree (without TREE: the fixture) with the gate and without, in turn in the same run. Prints processor
//! time a delivery, of qmail-rspawn and of its children; time from start to exit; and size.

mod rig;

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use qpatch::verify::sandbox::limits::Raised;
use qpatch::verify::sandbox::scratch::Scratch;
use rig::{Built, REMOTE, Usage, median};

const ROUNDS: usize = 60;
const DELIVERIES: u32 = 500;
const AT_ONCE: u32 = 40;
/// How much more processor time a delivery may take with the gate.
const BAR: f64 = 1.02;

struct Subject {
    name: &'static str,
    built: Built,
    cpu_us: Vec<f64>,
    faults: Vec<f64>,
    start_us: Vec<f64>,
    bytes: u64,
}

impl Subject {
    fn build(scratch: &Scratch, tree: &Path, name: &'static str, gate: &str) -> Subject {
        let built = Built::new(scratch, tree, name, 1000, &[gate]);
        built.set_remote(REMOTE, &[]);
        built
            .sandbox
            .set_control("concurrencydomains", ":20\n")
            .expect("control files can be written");
        let bytes = stripped(&built.program, &built.sandbox.rig().join("stripped"));
        Subject { name, built, cpu_us: Vec::new(), faults: Vec::new(), start_us: Vec::new(), bytes }
    }

    fn round(&mut self) {
        let started = Instant::now();
        let spawner = self.built.start();
        self.built.end(spawner);
        self.start_us.push(started.elapsed().as_secs_f64() * 1e6);

        let before = Usage::by_children();
        let mut spawner = self.built.start();
        self.built.deliver(&mut spawner, DELIVERIES, AT_ONCE);
        self.built.end(spawner);
        let after = Usage::by_children();
        self.cpu_us.push((after.cpu_us - before.cpu_us) / f64::from(DELIVERIES));
        self.faults.push((after.faults - before.faults) / f64::from(DELIVERIES));
    }
}

/// The size of a program without its symbols.
fn stripped(program: &Path, to: &Path) -> u64 {
    let status = Command::new("strip").arg("-o").args([to, program]).status();
    assert!(status.expect("strip can be run").success());
    fs::metadata(to).expect("the stripped program").len()
}

/// Of what was measured one after the other.
fn median_ratio(of: &[f64], to: &[f64]) -> f64 {
    median(of.iter().zip(to).map(|(of, to)| of / to))
}

fn main() {
    let (tree, _folder) = rig::tree();
    let _limits = Raised::raise();
    let scratch = rig::scratch(&tree);
    let mut gate = Subject::build(&scratch, &tree, "gate", "--gate");
    let mut plain = Subject::build(&scratch, &tree, "no-gate", "--no-gate");
    for round in 0..ROUNDS {
        // The second one finds a warmer cache, so they take turns.
        if round % 2 == 0 {
            gate.round();
            plain.round();
        } else {
            plain.round();
            gate.round();
        }
    }
    println!("qmail-rspawn, {ROUNDS} rounds of {DELIVERIES} deliveries, medians");
    for subject in [&gate, &plain] {
        println!(
            "  {:7}  CPU {:7.1} us and {:6.1} page faults a delivery  start to exit {:6.0} us  {:7} bytes",
            subject.name,
            median(subject.cpu_us.iter().copied()),
            median(subject.faults.iter().copied()),
            median(subject.start_us.iter().copied()),
            subject.bytes
        );
    }
    println!(
        "  ratio: CPU x{:.3} (bar x{BAR}), start to exit x{:.2}, {:+.0} KiB (bar +512)",
        median_ratio(&gate.cpu_us, &plain.cpu_us),
        median_ratio(&gate.start_us, &plain.start_us),
        (gate.bytes as f64 - plain.bytes as f64) / 1024.0
    );
}
