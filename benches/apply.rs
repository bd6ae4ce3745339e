//! Measures how long `qpatch apply` takes on a tree, compared with GNU patch and spatch (Coccinelle) on the same tree
//! in the same run. Prints ratios, because times of one machine mean little on another.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use qpatch::fixture::Dialect;

const ROUNDS: usize = 15;

/// The median time of `work`, each round on a fresh tree.
fn median(mut work: impl FnMut(&Path) -> bool) -> Option<Duration> {
    let mut times = Vec::new();
    for _ in 0..ROUNDS {
        let dir = tempfile::tempdir().expect("a folder for the tree");
        Dialect::StockKr.write(dir.path()).expect("the fixture can be written");
        let start = Instant::now();
        if !work(dir.path()) {
            return None;
        }
        times.push(start.elapsed());
    }
    times.sort();
    Some(times[ROUNDS / 2])
}

fn quiet(command: &mut Command) -> bool {
    let status = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status();
    status.is_ok_and(|s| s.success())
}

fn main() {
    let qpatch = env!("CARGO_BIN_EXE_qpatch");
    let scratch = tempfile::tempdir().expect("a folder");
    let diff_file = scratch.path().join("qpatch.diff");
    let tree = scratch.path().join("tree");
    Dialect::StockKr.write(&tree).expect("the fixture can be written");
    let diff =
        Command::new(qpatch).args(["diff", "--no-gate"]).arg(&tree).output().expect("qpatch");
    std::fs::write(&diff_file, diff.stdout).expect("the diff can be written");
    let cocci = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/two-byte.cocci");

    let plan = median(|tree| quiet(Command::new(qpatch).args(["diff", "--no-gate"]).arg(tree)));
    let rows = [
        ("qpatch diff (everything but writing)", plan),
        (
            "qpatch apply (with its journal, synced)",
            median(|tree| quiet(Command::new(qpatch).args(["apply", "--no-gate"]).arg(tree))),
        ),
        (
            "patch -p1 (finished diff, not synced)",
            median(|tree| {
                quiet(
                    Command::new("patch")
                        .args(["-p1", "-s", "-d"])
                        .arg(tree)
                        .arg("-i")
                        .arg(&diff_file),
                )
            }),
        ),
        (
            "spatch (3 rules, 3 files)",
            median(|tree| {
                ["spawn.c", "qmail-send.c", "chkspawn.c"].iter().all(|file| {
                    quiet(
                        Command::new("spatch")
                            .arg("--in-place")
                            .arg("--sp-file")
                            .arg(&cocci)
                            .arg(tree.join(file)),
                    )
                })
            }),
        ),
    ];
    let base = plan.expect("qpatch diff works").as_secs_f64();
    println!("stock-kr fixture, median of {ROUNDS}; ratio to qpatch diff");
    for (name, time) in rows {
        match time {
            Some(time) => println!(
                "{name:<42} {:>8.1} ms {:>7.2}",
                time.as_secs_f64() * 1e3,
                time.as_secs_f64() / base
            ),
            None => println!("{name:<42} skipped: it cannot be run here"),
        }
    }
}
