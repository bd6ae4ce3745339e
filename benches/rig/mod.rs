//! What the benches of qmail-rspawn share: a tree that is patched and built, deliveries, and processor times.
#![allow(dead_code, unreachable_pub)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use qpatch::fixture::Dialect;
use qpatch::verify::build;
use qpatch::verify::rig::protocol;
use qpatch::verify::rig::spawner::{Channel, Spawner};
use qpatch::verify::rig::stub::Stubs;
use qpatch::verify::sandbox::SandboxConfig;
use qpatch::verify::sandbox::private_tree::{MessageId, Sandbox};
use qpatch::verify::sandbox::scratch::{Keep, Scratch};
use tempfile::TempDir;

/// The quickest qmail-remote possible: only what happens before it is measured.
pub const REMOTE: &str =
    "#include <unistd.h>\nint main(void) { return write(1, \"r\\0Kok\\n\", 7) != 7; }\n";

/// The tree of the command line, or else the fixture, which lives as long as the folder beside it.
pub fn tree() -> (PathBuf, TempDir) {
    let given = std::env::args().skip(1).find(|arg| !arg.starts_with('-'));
    let folder = tempfile::tempdir().expect("a folder for the tree");
    let tree = given.map_or_else(
        || {
            Dialect::StockKr.write(folder.path()).expect("the fixture can be written");
            folder.path().to_owned()
        },
        PathBuf::from,
    );
    (tree, folder)
}

/// The folder for the copies of a tree.
pub fn scratch(tree: &Path) -> Scratch {
    Scratch::new(tree, None, Keep::No).expect("a folder for the copies")
}

/// A patched copy of a tree, ready for make. `flags` are those of `qpatch apply`.
pub fn patched(scratch: &Scratch, tree: &Path, name: &str, spawn: u32, flags: &[&str]) -> Sandbox {
    let copy = scratch.copy(tree, &format!("{name}-tree")).expect("a copy of the tree");
    let mut apply = Command::new(env!("CARGO_BIN_EXE_qpatch"));
    apply.args(["apply", "--spawn", &spawn.to_string()]).args(flags).arg(&copy);
    let applied = apply.output().expect("qpatch can be run");
    assert!(applied.status.success(), "{}", String::from_utf8_lossy(&applied.stderr));
    let config = SandboxConfig { spawn: Some(spawn), ..SandboxConfig::default() };
    let sandbox = scratch.sandbox(&copy, name, &config).expect("a configured copy");
    build::prepare(&sandbox).expect("what the build needs");
    sandbox
}

/// A patched copy of a tree with its qmail-rspawn built and installed.
pub struct Built {
    pub sandbox: Sandbox,
    pub stubs: Stubs,
    pub message: MessageId,
    /// The installed qmail-rspawn.
    pub program: PathBuf,
}

impl Built {
    /// `flags` are those of `qpatch apply`.
    pub fn new(scratch: &Scratch, tree: &Path, name: &str, spawn: u32, flags: &[&str]) -> Built {
        let sandbox = patched(scratch, tree, name, spawn, flags);
        build::make(&sandbox, &["qmail-rspawn"]).expect("the tree builds");
        let program = build::install(&sandbox, "qmail-rspawn").expect("qmail-rspawn");
        let stubs = Stubs::install(&sandbox).expect("the stubs");
        let message = sandbox.add_message(b"Subject: a message of the bench\n\nhello\n");
        Built { sandbox, stubs, message: message.expect("a message"), program }
    }

    /// Puts a program of this C text in place of the stub; `flags` are more arguments of cc.
    pub fn set_remote(&self, text: &str, flags: &[&Path]) {
        let remote = self.sandbox.home().join("bin/qmail-remote");
        let source = self.sandbox.rig().join("remote.c");
        fs::write(&source, text).expect("a file can be written");
        fs::remove_file(&remote).expect("the stub");
        let mut compile = Command::new("cc");
        compile.args(["-O2", "-o"]).args([&remote, &source]).args(flags);
        assert!(compile.status().is_ok_and(|status| status.success()), "qmail-remote compiles");
    }

    pub fn start(&mut self) -> Spawner {
        Spawner::start(&self.sandbox, &mut self.stubs, Channel::Remote)
            .expect("qmail-rspawn starts")
    }

    pub fn end(&mut self, mut spawner: Spawner) {
        spawner.close_input();
        let status = spawner.wait_exit(&mut self.stubs).expect("qmail-rspawn ends");
        assert!(status.success(), "{status}");
    }

    pub fn command(&self, number: u32, recipient: String) -> protocol::Command {
        let sender = "sender@sender.example".to_owned();
        protocol::Command { number, message: self.message.relative(), sender, recipient }
    }

    /// Delivers `count` messages, `at_once` at a time, to 50 domains.
    pub fn deliver(&mut self, spawner: &mut Spawner, count: u32, at_once: u32) {
        let mut free: Vec<u32> = (0..at_once).collect();
        let (mut sent, mut reported) = (0, 0);
        while reported < count {
            while sent < count
                && let Some(number) = free.pop()
            {
                spawner.send(&self.command(number, format!("u@d{}.example", sent % 50)));
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
    }
}

/// The processor time of a process without that of its children, in microseconds: the first number of
/// /proc/PID/schedstat, which has nanoseconds.
pub fn used_us(process: u32) -> f64 {
    let text =
        fs::read_to_string(format!("/proc/{process}/schedstat")).expect("a Linux with schedstat");
    let number = text.split(' ').next().and_then(|number| number.parse::<f64>().ok());
    number.expect("a number of nanoseconds") / 1e3
}

/// Measures each subject with each number of deliveries under way, in turn, and prints the medians of the rounds and
/// their ratios to that with the fewest. `measure` is given a subject and a number, and returns microseconds.
pub fn under_way<S>(
    rounds: usize,
    held: &[u32],
    subjects: &mut [(&str, S)],
    mut measure: impl FnMut(&mut S, u32) -> f64,
) {
    let mut all_us = vec![vec![Vec::new(); held.len()]; subjects.len()];
    for _ in 0..rounds {
        for (at, &held) in held.iter().enumerate() {
            for ((_, subject), us) in subjects.iter_mut().zip(&mut all_us) {
                us[at].push(measure(subject, held));
            }
        }
    }
    for ((name, _), us) in subjects.iter().zip(&all_us) {
        print!("  {name:12}");
        let medians: Vec<f64> = us.iter().map(|us| median(us.iter().copied())).collect();
        for (held, us) in held.iter().zip(&medians) {
            print!("  {held:5} under way: {us:7.1} (x{:.2})", us / medians[0]);
        }
        println!();
    }
}

/// The usage of all children that have been waited for, and of those that they have waited for.
pub struct Usage {
    pub cpu_us: f64,
    /// Page faults without input: after a fork, the first write to each page causes one.
    pub faults: f64,
}

impl Usage {
    pub fn by_children() -> Usage {
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

pub fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    let mut sorted: Vec<f64> = values.into_iter().collect();
    sorted.sort_by(f64::total_cmp);
    sorted[sorted.len() / 2]
}
