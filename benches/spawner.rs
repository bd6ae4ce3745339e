//! Measures what the gate costs qmail-rspawn: `cargo bench --bench spawner [-- TREE]`.
//!
//! Runs the same tree (without TREE: the fixture) with the gate and without, in turn in the same run. Prints processor
//! time a delivery, of qmail-rspawn and of its children; time from start to exit; and size.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use qpatch::fixture::Dialect;
use qpatch::verify::build;
use qpatch::verify::rig::protocol;
use qpatch::verify::rig::spawner::{Channel, Spawner};
use qpatch::verify::rig::stub::Stubs;
use qpatch::verify::sandbox::SiteConfig;
use qpatch::verify::sandbox::limits::Raised;
use qpatch::verify::sandbox::scratch::{Keep, Scratch};
use qpatch::verify::sandbox::site::{MessageId, Site};

const ROUNDS: usize = 60;
const DELIVERIES: u32 = 500;
const AT_ONCE: u32 = 40;
const DOMAINS: u32 = 50;
/// How much more processor time a delivery may take with the gate.
const BAR: f64 = 1.02;

/// The quickest qmail-remote possible: only what happens before it is measured.
const REMOTE: &str =
    "#include <unistd.h>\nint main(void) { return write(1, \"r\\0Kok\\n\", 7) != 7; }\n";

struct Subject {
    name: &'static str,
    site: Site,
    stubs: Stubs,
    message: MessageId,
    cpu_us: Vec<f64>,
    faults: Vec<f64>,
    start_us: Vec<f64>,
    bytes: u64,
}

impl Subject {
    fn build(scratch: &Scratch, tree: &Path, name: &'static str, gate: &str) -> Subject {
        let copy = scratch.copy(tree, &format!("{name}-tree")).expect("a copy of the tree");
        let mut apply = Command::new(env!("CARGO_BIN_EXE_qpatch"));
        let applied = apply.args(["apply", "--spawn", "1000", gate]).arg(&copy).output();
        let applied = applied.expect("qpatch can be run");
        assert!(applied.status.success(), "{}", String::from_utf8_lossy(&applied.stderr));
        let config = SiteConfig { spawn: Some(1000), ..SiteConfig::default() };
        let site = scratch.site(&copy, name, &config).expect("a configured copy");
        build::prepare(&site).expect("what the build needs");
        build::make(&site, &["qmail-rspawn"]).expect("the tree builds");
        let program = build::install(&site, "qmail-rspawn").expect("qmail-rspawn");
        let stubs = Stubs::install(&site).expect("the stubs");
        let message = site.add_message(b"Subject: a message of the bench\n\nhello\n");
        let message = message.expect("a message");
        let remote = site.home().join("bin/qmail-remote");
        let source = site.rig().join("remote.c");
        fs::write(&source, REMOTE).expect("a file can be written");
        fs::remove_file(&remote).expect("the stub");
        let compiled = Command::new("cc").args(["-O2", "-o"]).args([&remote, &source]).status();
        assert!(compiled.is_ok_and(|status| status.success()), "qmail-remote compiles");
        site.set_control("concurrencydomains", ":20\n").expect("control files can be written");
        let bytes = stripped(&program, &site.rig().join("stripped"));
        Subject {
            name,
            site,
            stubs,
            message,
            cpu_us: Vec::new(),
            faults: Vec::new(),
            start_us: Vec::new(),
            bytes,
        }
    }

    fn start(&mut self) -> Spawner {
        Spawner::start(&self.site, &mut self.stubs, Channel::Remote).expect("qmail-rspawn starts")
    }

    fn end(&mut self, mut spawner: Spawner) {
        spawner.close_input();
        let status = spawner.wait_exit(&mut self.stubs).expect("qmail-rspawn ends");
        assert!(status.success(), "{status}");
    }

    fn round(&mut self) {
        let started = Instant::now();
        let spawner = self.start();
        self.end(spawner);
        self.start_us.push(started.elapsed().as_secs_f64() * 1e6);

        let before = Usage::by_children();
        let mut spawner = self.start();
        let mut sent = 0;
        let mut free: Vec<u32> = (0..AT_ONCE).collect();
        let mut reported = 0;
        while reported < DELIVERIES {
            while sent < DELIVERIES
                && let Some(number) = free.pop()
            {
                spawner.send(&protocol::Command {
                    number,
                    message: self.message.relative(),
                    sender: "sender@sender.example".to_owned(),
                    recipient: format!("u@d{}.example", sent % DOMAINS),
                });
                sent += 1;
            }
            spawner
                .wait(&mut self.stubs, "a report", |seen| seen.reports > 0)
                .expect("reports come");
            for report in spawner.take_reports() {
                assert_eq!(report.letter, b'K', "{report:?}");
                free.push(report.number);
                reported += 1;
            }
        }
        self.end(spawner);
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

/// The usage of all children that have been waited for, and of those that they have waited for.
struct Usage {
    cpu_us: f64,
    /// Page faults without input: after a fork, the first write to each page causes one.
    faults: f64,
}

impl Usage {
    fn by_children() -> Usage {
        // SAFETY: a rusage of zeroes is one, and may be written.
        let usage = unsafe {
            let mut usage: libc::rusage = std::mem::zeroed();
            assert_eq!(libc::getrusage(libc::RUSAGE_CHILDREN, &mut usage), 0);
            usage
        };
        let us = |time: libc::timeval| time.tv_sec as f64 * 1e6 + time.tv_usec as f64;
        Usage { cpu_us: us(usage.ru_utime) + us(usage.ru_stime), faults: usage.ru_minflt as f64 }
    }
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted[sorted.len() / 2]
}

/// Of what was measured one after the other.
fn median_ratio(of: &[f64], to: &[f64]) -> f64 {
    median(&of.iter().zip(to).map(|(of, to)| of / to).collect::<Vec<_>>())
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
            median(&subject.cpu_us),
            median(&subject.faults),
            median(&subject.start_us),
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
