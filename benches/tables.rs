//! What large tables of the gate cost a start of qmail-remote: `cargo bench --bench tables [-- TREE]`.
//!
//! A fork copies the page tables of qmail-rspawn, so memory of the gate may make each start dearer. The same tree
//! (without TREE the fixture) runs with an empty gate and with [`DOMAINS`] listed domains and [`SITES`] known sites, in
//! turn, in each of the three ways to start a delivery: fork and exec (a tree without the patch fork-server), quick
//! exec, and the fork server. Printed for each way are the processor time of a delivery, of qmail-rspawn and of all it
//! has started, and how many times as much the large tables take. The bar of that ratio is [`BAR`].

mod rig;

use std::fs;
use std::path::Path;

use qpatch::qmail::remote_status::RemoteStatus;
use qpatch::verify::sandbox::limits::Raised;
use qpatch::verify::sandbox::scratch::Scratch;
use rig::{Built, REMOTE, Usage, median, used_us};

const DOMAINS: u32 = 100_000;
const SITES: u32 = 50_000;
const DELIVERIES: u32 = 500;
const AT_ONCE: u32 = 20;
const ROUNDS: usize = 11;
/// The tables may make a start this many times as dear, by the design.
const BAR: f64 = 1.05;

/// The quickest qmail-remote that can be a server.
const SERVER: &str = "#include <unistd.h>\n#include \"remote_start.h\"\n\
    int main(int argc, char **argv)\n{\n  remote_serve(&argc,&argv);\n\
    return write(1,\"r\\0Kok\\n\",7) != 7;\n}\n";

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
    built: Built,
    empty: Vec<Figures>,
    large: Vec<Figures>,
}

impl Subject {
    fn build(scratch: &Scratch, tree: &Path, way: Way) -> Subject {
        let name = way.name().replace(' ', "-");
        let flags: &[&str] = if way == Way::ForkExec { &["--skip", "fork-server"] } else { &[] };
        let built = Built::new(scratch, tree, &name, 1000, flags);
        if way == Way::ForkServer {
            let tree = built.sandbox.tree();
            built.set_remote(SERVER, &[Path::new("-I"), tree, &tree.join("remote_serve.c")]);
            let set = built.sandbox.set_control("remoteserver", "10000\n");
            set.expect("control files can be written");
        } else {
            built.set_remote(REMOTE, &[]);
        }
        Subject { way, built, empty: Vec::new(), large: Vec::new() }
    }

    fn set_tables(&self, tables: Tables) {
        let (mut domains, mut sites) = (":20\n127.0.0.0/8:20:site\n".to_owned(), String::new());
        if let Tables::Large = tables {
            domains.extend((0..DOMAINS).map(|n| format!("listed-{n}.example:20\n")));
            sites.push_str("qpatch-sites\t1\n");
            sites.extend((0..SITES).map(|n| format!("known-{n}.example\t127.0.0.1\n")));
            sites.push_str("end\n");
        }
        self.built.sandbox.set_control("concurrencydomains", &domains).expect("control files");
        let seen = self.built.sandbox.home().join("queue/lock/gatesites");
        self.built.sandbox.write(&seen, sites.as_bytes()).expect("the gate's file of sites");
    }

    fn round(&mut self, tables: Tables) {
        self.set_tables(tables);
        let children = Usage::by_children().cpu_us;
        let mut spawner = self.built.start();
        // The first delivery finds the tables read, and starts the server.
        self.built.deliver(&mut spawner, 1, AT_ONCE);
        let process = spawner.process().id();
        let before = used_us(process);
        self.built.deliver(&mut spawner, DELIVERIES, AT_ONCE);
        let after = used_us(process);
        let resident_kib = resident_kib(process);
        self.built.end(spawner);
        self.check_way();
        let each = |us: f64| us / f64::from(DELIVERIES);
        let figures = Figures {
            own_us: each(after - before),
            // The end of qmail-rspawn, too, so this is a little too much.
            started_us: each(Usage::by_children().cpu_us - children - after),
            resident_kib,
        };
        match tables {
            Tables::Empty => self.empty.push(figures),
            Tables::Large => self.large.push(figures),
        }
    }

    /// Fails if deliveries were started in another way. The file is written at the first delivery and when a server is
    /// ready, and a tree without the patch leaves it empty.
    fn check_way(&self) {
        let statuses = RemoteStatus::read(self.built.sandbox.home());
        let found = match statuses.first() {
            None => Way::ForkExec,
            Some(status) if status.by_exec == 0 => Way::ForkExec,
            Some(status) if status.server == 0 => Way::QuickExec,
            Some(_) => Way::ForkServer,
        };
        assert!(found == self.way, "{}: {statuses:?}", self.way.name());
    }
}

fn resident_kib(process: u32) -> f64 {
    let text = fs::read_to_string(format!("/proc/{process}/status")).expect("a Linux");
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let number = line.and_then(|line| line.trim().trim_end_matches(" kB").parse().ok());
    number.expect("a number of KiB")
}

fn main() {
    let (tree, _folder) = rig::tree();
    let _limits = Raised::raise();
    let scratch = rig::scratch(&tree);
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
