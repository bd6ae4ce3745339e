//! What large tables of the gate cost a start of qmail-remote: `cargo bench --bench tables [-- TREE]`.
//!
//! A fork copies the page tables of qmail-rspawn, so memory of the gate may make each start dearer. The same tree
//! (without TREE the fixture) runs with an empty gate and with [`DOMAINS`] listed domains and [`SITES`] known sites, in
//! turn, in each of the three ways to start a delivery: fork and exec (a tree without the patch fork-server), quick
//! exec, and the fork server. Printed for each way are the processor time of a delivery, of qmail-rspawn and of all it
//! has started, and how many times as much the large tables take. The bar of that ratio is [`BAR`].

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use qpatch::fixture::Dialect;
use qpatch::verify::build;
use qpatch::verify::rig::protocol;
use qpatch::verify::rig::spawner::{Channel, Spawner};
use qpatch::verify::rig::stub::Stubs;
use qpatch::verify::sandbox::SiteConfig;
use qpatch::verify::sandbox::limits::Raised;
use qpatch::verify::sandbox::scratch::{Keep, Scratch};
use qpatch::verify::sandbox::site::{MessageId, Site};

const DOMAINS: u32 = 100_000;
const SITES: u32 = 50_000;
const DELIVERIES: u32 = 500;
const AT_ONCE: u32 = 20;
const ROUNDS: usize = 11;
/// The tables may make a start this many times as dear, by the design.
const BAR: f64 = 1.05;

/// The quickest qmail-remote: what is measured is how it is started.
const REMOTE: &str = "#include <unistd.h>\n\
    #ifdef SERVER\n#include \"remote_start.h\"\n#endif\n\
    int main(int argc, char **argv)\n{\n\
    #ifdef SERVER\n  remote_serve(&argc,&argv);\n#endif\n\
    (void) argc;\n  (void) argv;\n  return write(1,\"r\\0Kok\\n\",7) != 7;\n}\n";

#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    ForkExec,
    QuickExec,
    ForkServer,
}

impl Way {
    const ALL: [Way; 3] = [Way::ForkExec, Way::QuickExec, Way::ForkServer];

    fn name(self) -> &'static str {
        match self {
            Way::ForkExec => "fork and exec",
            Way::QuickExec => "quick exec",
            Way::ForkServer => "fork server",
        }
    }
}

#[derive(Clone, Copy)]
enum Tables {
    Empty,
    Large,
}

/// The figures of one round.
#[derive(Clone, Copy)]
struct Figures {
    /// Microseconds a delivery, of qmail-rspawn.
    own_us: f64,
    /// And of what it has started and waited for.
    started_us: f64,
    resident_kib: f64,
}

struct Subject {
    way: Way,
    site: Site,
    stubs: Stubs,
    message: MessageId,
    empty: Vec<Figures>,
    large: Vec<Figures>,
}

impl Subject {
    fn build(scratch: &Scratch, tree: &Path, way: Way) -> Subject {
        let name = way.name().replace(' ', "-");
        let copy = scratch.copy(tree, &format!("{name}-tree")).expect("a copy of the tree");
        let mut apply = Command::new(env!("CARGO_BIN_EXE_qpatch"));
        apply.args(["apply", "--spawn", "1000"]);
        if way == Way::ForkExec {
            apply.args(["--skip", "fork-server"]);
        }
        let applied = apply.arg(&copy).output().expect("qpatch can be run");
        assert!(applied.status.success(), "{}", String::from_utf8_lossy(&applied.stderr));
        let config = SiteConfig { spawn: Some(1000), ..SiteConfig::default() };
        let site = scratch.site(&copy, &name, &config).expect("a configured copy");
        build::prepare(&site).expect("what the build needs");
        build::make(&site, &["qmail-rspawn"]).expect("the tree builds");
        build::install(&site, "qmail-rspawn").expect("qmail-rspawn");
        let stubs = Stubs::install(&site).expect("the stubs");
        let message = site.add_message(b"Subject: a message of the bench\n\nhello\n");
        let message = message.expect("a message");
        let remote = site.home().join("bin/qmail-remote");
        let source = site.rig().join("remote.c");
        fs::write(&source, REMOTE).expect("a file can be written");
        fs::remove_file(&remote).expect("the stub");
        let mut compile = Command::new("cc");
        compile.args(["-O2", "-o"]).args([&remote, &source]);
        if way == Way::ForkServer {
            let server = site.tree().join("remote_serve.c");
            compile.args(["-DSERVER", "-I"]).args([site.tree(), &server]);
        }
        assert!(compile.status().is_ok_and(|status| status.success()), "qmail-remote compiles");
        if way == Way::ForkServer {
            site.set_control("remoteserver", "10000\n").expect("control files can be written");
        }
        Subject { way, site, stubs, message, empty: Vec::new(), large: Vec::new() }
    }

    fn set_tables(&self, tables: Tables) {
        let (mut domains, mut sites) = (":20\n127.0.0.0/8:20:site\n".to_owned(), String::new());
        if let Tables::Large = tables {
            domains.extend((0..DOMAINS).map(|n| format!("listed-{n}.example:20\n")));
            sites.push_str("qpatch-sites\t1\n");
            sites.extend((0..SITES).map(|n| format!("known-{n}.example\t127.0.0.1\n")));
            sites.push_str("end\n");
        }
        self.site.set_control("concurrencydomains", &domains).expect("control files");
        let seen = self.site.home().join("queue/lock/gatesites");
        self.site.write(&seen, sites.as_bytes()).expect("the gate's file of sites");
    }

    fn round(&mut self, tables: Tables) {
        self.set_tables(tables);
        let children = children_us();
        let mut spawner =
            Spawner::start(&self.site, &mut self.stubs, Channel::Remote).expect("qmail-rspawn");
        // The first delivery finds the tables read, and starts the server.
        self.deliver(&mut spawner, 1);
        let process = spawner.process().id();
        let before = used_us(process);
        self.deliver(&mut spawner, DELIVERIES);
        let after = used_us(process);
        let resident_kib = resident_kib(process);
        spawner.close_input();
        let status = spawner.wait_exit(&mut self.stubs).expect("qmail-rspawn ends");
        assert!(status.success(), "{status}");
        self.check_way();
        let each = |us: f64| us / f64::from(DELIVERIES);
        let figures = Figures {
            own_us: each(after - before),
            // The end of qmail-rspawn, too, so this is a little too much.
            started_us: each(children_us() - children - after),
            resident_kib,
        };
        match tables {
            Tables::Empty => self.empty.push(figures),
            Tables::Large => self.large.push(figures),
        }
    }

    fn deliver(&mut self, spawner: &mut Spawner, count: u32) {
        let mut free: Vec<u32> = (0..AT_ONCE).collect();
        let (mut sent, mut reported) = (0, 0);
        while reported < count {
            while sent < count
                && let Some(number) = free.pop()
            {
                spawner.send(&protocol::Command {
                    number,
                    message: self.message.relative(),
                    sender: "sender@sender.example".to_owned(),
                    recipient: format!("u@d{}.example", sent % 50),
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
    }

    /// Fails if deliveries were started in another way. The file is written at the first delivery and when a server is
    /// ready, and a tree without the patch leaves it empty.
    fn check_way(&self) {
        let path = self.site.home().join("queue/lock/remotestatus");
        let text = fs::read_to_string(path).unwrap_or_default();
        let field = |name: &str| {
            let mut values = text.lines().filter_map(|line| line.strip_prefix(name));
            values.next().and_then(|value| value.trim().parse::<u32>().ok()).unwrap_or(0)
        };
        let found = match (field("by-exec "), field("server ")) {
            (0, _) => Way::ForkExec,
            (_, 0) => Way::QuickExec,
            (_, _) => Way::ForkServer,
        };
        assert!(found == self.way, "{}: {text}", self.way.name());
    }
}

/// The processor time of a process without that of its children: the first number of /proc/PID/schedstat, in
/// nanoseconds.
fn used_us(process: u32) -> f64 {
    let text =
        fs::read_to_string(format!("/proc/{process}/schedstat")).expect("a Linux with schedstat");
    let number = text.split(' ').next().and_then(|number| number.parse::<f64>().ok());
    number.expect("a number of nanoseconds") / 1e3
}

/// The processor time of all children that have been waited for, and of theirs.
fn children_us() -> f64 {
    // SAFETY: a rusage of zeroes is one, and may be written.
    let usage = unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        assert_eq!(libc::getrusage(libc::RUSAGE_CHILDREN, &mut usage), 0);
        usage
    };
    let us = |time: libc::timeval| time.tv_sec as f64 * 1e6 + time.tv_usec as f64;
    us(usage.ru_utime) + us(usage.ru_stime)
}

fn resident_kib(process: u32) -> f64 {
    let text = fs::read_to_string(format!("/proc/{process}/status")).expect("a Linux");
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let number = line.and_then(|line| line.trim().trim_end_matches(" kB").parse().ok());
    number.expect("a number of KiB")
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut sorted: Vec<f64> = values.collect();
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
    let mut subjects = Way::ALL.map(|way| Subject::build(&scratch, &tree, way));
    for round in 0..ROUNDS {
        for subject in &mut subjects {
            let mut turns = [Tables::Empty, Tables::Large];
            // The second one finds a warmer cache.
            if round % 2 == 1 {
                turns.reverse();
            }
            turns.into_iter().for_each(|tables| subject.round(tables));
        }
    }
    let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    println!(
        "us of processor time a delivery, qmail-rspawn + what it has started, medians of {ROUNDS} rounds; load {}",
        load.trim()
    );
    println!("large: {DOMAINS} listed domains and {SITES} known sites");
    for subject in &subjects {
        print!("  {:13}", subject.way.name());
        for (name, figures) in [("empty", &subject.empty), ("large", &subject.large)] {
            print!(
                "  {name} {:5.1} + {:5.1} (resident {:5.0} KiB)",
                median(figures.iter().map(|figures| figures.own_us)),
                median(figures.iter().map(|figures| figures.started_us)),
                median(figures.iter().map(|figures| figures.resident_kib)),
            );
        }
        let pairs = || subject.large.iter().zip(&subject.empty);
        let own = median(pairs().map(|(large, empty)| large.own_us / empty.own_us));
        let whole = |figures: &Figures| figures.own_us + figures.started_us;
        let all = median(pairs().map(|(large, empty)| whole(large) / whole(empty)));
        println!("  x{all:.3} (bar x{BAR}), qmail-rspawn alone x{own:.3}");
    }
}
