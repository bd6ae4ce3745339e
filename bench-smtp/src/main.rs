//! Runs the scenarios; see README.md.

#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::net::SocketAddrV4;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, ValueEnum};
use qpatch::verify::sandbox::limits::Raised;
use qpatch::verify::sandbox::scratch::{Keep, Scratch};
use qpatch::verify::sandbox::{Fsync, check_tree};
use qpatch::verify::{CatchSignals, die_of};

use qpatch_bench_smtp::dns::{NameServer, Zone};
use qpatch_bench_smtp::error::{Error, Result};
use qpatch_bench_smtp::plan::{Plan, Route};
use qpatch_bench_smtp::plot::{self, Panel, Series};
use qpatch_bench_smtp::qmail::{Flavour, Qmail};
use qpatch_bench_smtp::report::BenchReport;
use qpatch_bench_smtp::run::{Run, Subject, run};
use qpatch_bench_smtp::scenario::{Learn, QueueKind, Scenario, ScenarioOptions};
use qpatch_bench_smtp::servers::{self, SERVER_KINDS, ServerKind};
use qpatch_bench_smtp::shares;
use qpatch_bench_smtp::sink::Step;
use qpatch_bench_smtp::tls::StartTls;
use qpatch_bench_smtp::{measure, postfix, sandbox, session, usage};

/// Measure the patched qmail on real SMTP over loopback, with the gate, without it, and beside Postfix
#[derive(Debug, Parser)]
#[command(name = "qpatch-bench-smtp", max_term_width = 100)]
struct Args {
    /// A qmail source tree, patched or not; it is copied
    tree: PathBuf,
    /// Only these scenarios: S1 to S6, S8 to S11
    #[arg(long, value_name = "S1,...", value_delimiter = ',', value_parser = scenario)]
    scenario: Vec<Scenario>,
    /// Only these mail servers
    #[arg(long, value_name = "NAME,...", value_delimiter = ',')]
    only: Vec<SubjectName>,
    /// Write all figures to this file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Draw sessions over time into this directory
    #[arg(long, value_name = "DIR")]
    svg: Option<PathBuf>,
    /// Keep qmail-send's log of each run in this directory
    #[arg(long, value_name = "DIR")]
    logs: Option<PathBuf>,
    /// Whether Postfix runs, too; auto: if it is installed and this is root
    #[arg(long, default_value = "auto")]
    postfix: PostfixUse,
    /// How many times each scenario is run; the table has the medians
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=100))]
    runs: u32,
    /// The part of the mail that is sent: 1 is all of it
    #[arg(long, value_name = "F", default_value_t = 1.0, value_parser = scale)]
    scale: f64,
    /// conf-spawn and concurrencyremote
    #[arg(long, value_name = "N", default_value_t = 1000, value_parser = clap::value_parser!(u32).range(20..=65000))]
    spawn: u32,
    /// Lines for control/concurrencydomains in place of ":20" and, in S5, one for the site; \n between them
    #[arg(long, value_name = "LINES")]
    table: Option<String>,
    /// Whether the limits in those lines learn; the default is that of concurrencydomains
    #[arg(long, conflicts_with = "table")]
    learn: Option<OnOff>,
    /// The order of the mail
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
    /// Where the queues are made; without it /dev/shm, if programs can be run from there
    #[arg(long, value_name = "DIR")]
    scratch: Option<PathBuf>,
    /// In place of the scenarios: S7, with real servers whose packages are unpacked in folders of DIR
    #[arg(long, value_name = "DIR", conflicts_with_all = ["scenario", "only", "svg"])]
    servers: Option<PathBuf>,
    /// Only these real servers, see README.md
    #[arg(long, value_name = "NAME,...", value_delimiter = ',', value_parser = kind, requires = "servers")]
    server: Vec<&'static ServerKind>,
    /// In place of the scenarios: S12, eight qmails that share a limit through Redis
    #[arg(long, conflicts_with_all = ["scenario", "only", "servers", "tls", "learn", "table", "runs", "postfix"])]
    shares: bool,
    /// The servers offer STARTTLS; for a tree whose qmail-remote uses it
    #[arg(long, conflicts_with = "servers")]
    tls: bool,
    /// Do not make a network namespace; the sinks then listen on this port
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1024..))]
    port: Option<u16>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum SubjectName {
    Gate,
    NoGate,
    ForkServer,
    ForkExec,
    LogPieces,
    Classic,
    Postfix,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum PostfixUse {
    Auto,
    No,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum OnOff {
    On,
    Off,
}

fn scenario(name: &str) -> std::result::Result<Scenario, String> {
    Scenario::parse(name).ok_or_else(|| "the scenarios are S1 to S6 and S8 to S11".to_owned())
}

fn scale(text: &str) -> std::result::Result<f64, String> {
    match text.parse::<f64>() {
        Ok(scale) if scale > 0.0 && scale <= 20.0 => Ok(scale),
        _ => Err("a number above 0, 20 at most".to_owned()),
    }
}

fn kind(name: &str) -> std::result::Result<&'static ServerKind, String> {
    SERVER_KINDS.iter().find(|kind| kind.name == name).ok_or_else(|| {
        format!("the servers are {}", SERVER_KINDS.each_ref().map(|kind| kind.name).join(", "))
    })
}

/// A super-server has started this program to speak SMTP, see [`servers::SESSION`]; or it is an agent of S12.
fn session() -> Option<ExitCode> {
    let mut args = std::env::args().skip(1);
    let what = args.next()?;
    if what == shares::AGENT {
        return Some(shares::agent(PathBuf::from(args.next()?)));
    }
    if what != servers::SESSION {
        return None;
    }
    let hold = Duration::try_from_secs_f64(args.next()?.parse().ok()?).ok()?;
    // If the client has gone, the error has no reader.
    let _ = session::serve(std::io::stdin().lock(), std::io::stdout(), hold);
    Some(ExitCode::SUCCESS)
}

fn main() -> ExitCode {
    if let Some(code) = session() {
        return code;
    }
    let args = Args::parse();
    match bench(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("qpatch-bench-smtp: {error}");
            if let Some(signal) = error.signal {
                die_of(signal);
            }
            ExitCode::FAILURE
        }
    }
}

/// The port of the sinks if the bench has a network of its own: the one to which mail by MX records goes.
const SMTP: u16 = 25;
/// The port of the sinks on the machine's own network.
const HIGH_PORT: u16 = 25025;

fn bench(args: &Args) -> Result<()> {
    check_tree(&args.tree)?;
    let mut report = BenchReport::default();
    let (port, has_network) = network(args, &mut report);
    let _signals = CatchSignals::install()?;
    let _limits = Raised::raise();
    usage::adopt_orphans()?;
    let scratch = scratch(args)?;
    let mut has_dns = false;
    if has_network {
        match sandbox::use_name_server(&scratch.root().join("resolv.conf")) {
            Ok(()) => has_dns = true,
            Err(error) => report.notes.push(format!("no name server, S5 only by relay: {error}")),
        }
    }
    let options = ScenarioOptions {
        seed: args.seed,
        scale: args.scale,
        table: args.table.as_ref().map(|table| format!("{}\n", table.replace("\\n", "\n"))),
        learn: args.learn.map(|learn| if learn == OnOff::On { Learn::On } else { Learn::Off }),
        concurrency: args.spawn,
        starttls: if args.tls { StartTls::Offered } else { StartTls::Unknown },
        has_dns,
    };
    about(args, &scratch, &mut report);
    if let Some(dir) = &args.servers {
        real_servers(args, dir, &scratch, port, &mut report)?;
        scratch.close()?;
        return finish(args, &report);
    }
    if args.shares {
        let setting = shares::ShareSettings {
            tree: &args.tree,
            port,
            concurrency: args.spawn,
            seed: args.seed,
            length: shares::LENGTH.mul_f64(args.scale),
        };
        let outcomes = shares::run(&scratch, &setting)?;
        print!("{}", shares::to_table(&outcomes));
        if let Some(dir) = &args.svg {
            std::fs::create_dir_all(dir)
                .map_err(Error::doing(format!("make {}", dir.display())))?;
            std::fs::write(dir.join("S12.svg"), shares::picture(&outcomes, &setting))
                .map_err(Error::doing("write S12.svg"))?;
        }
        report.shares = outcomes;
        scratch.close()?;
        return finish(args, &report);
    }
    let wanted =
        if args.scenario.is_empty() { Scenario::ALL.to_vec() } else { args.scenario.clone() };
    let kept_on = |kind| {
        wanted.iter().copied().filter(|scenario| scenario.queue() == kind).collect::<Vec<_>>()
    };
    let (fast, disk) = (kept_on(QueueKind::Fast), kept_on(QueueKind::Disk));
    if !fast.is_empty() {
        let mut subjects = subjects(args, &scratch, Fsync::Skipped, &mut report)?;
        run_scenarios(args, &fast, &options, &mut subjects, port, &mut report)?;
    }
    if !disk.is_empty() {
        let scratch = Scratch::new(&args.tree, args.scratch.as_deref(), Keep::No)?;
        report.about.insert("queues of S10".to_owned(), queues_are(&scratch).to_owned());
        if is_in_memory(&scratch) {
            let place = scratch.root().display();
            report.notes.push(format!(
                "{place} is in memory, so fsync costs S10 nothing: --scratch names a folder on a disk"
            ));
        }
        let mut subjects = subjects(args, &scratch, Fsync::Real, &mut report)?;
        run_scenarios(args, &disk, &options, &mut subjects, port, &mut report)?;
        drop(subjects);
        scratch.close()?;
    }
    scratch.close()?;
    finish(args, &report)
}

/// Puts all mail servers through the scenarios.
fn run_scenarios(
    args: &Args,
    scenarios: &[Scenario],
    options: &ScenarioOptions,
    subjects: &mut [Box<dyn Subject>],
    port: u16,
    report: &mut BenchReport,
) -> Result<()> {
    for &scenario in scenarios {
        eprintln!("{scenario}: {}", scenario.title());
        let mut shown = RunsBySubject::new();
        for number in 1..=args.runs {
            // In turn forwards and backwards, so that no mail server is always first.
            let mut turns: Vec<_> = subjects.iter_mut().collect();
            if number % 2 == 0 {
                turns.reverse();
            }
            for subject in turns {
                let runs = run_plans(scenario, options, subject.as_mut(), port, number)?;
                report.add(scenario, subject.name(), scenario.measures(&runs));
                if number == 1 {
                    shown.insert(subject.name().to_owned(), runs);
                }
            }
        }
        if let Some(dir) = &args.svg {
            draw(scenario, &shown, dir)?;
        }
    }
    Ok(())
}

/// S7.
fn real_servers(
    args: &Args,
    dir: &Path,
    scratch: &Scratch,
    port: u16,
    report: &mut BenchReport,
) -> Result<()> {
    let kinds: Vec<&ServerKind> =
        if args.server.is_empty() { SERVER_KINDS.iter().collect() } else { args.server.clone() };
    if let Err(error) = sandbox::add_users(scratch.root(), &servers::users(&kinds)) {
        report.notes.push(format!("some servers need users of their own: {error}"));
    }
    let learning = match args.learn {
        None => vec!["learn", "fixed"],
        Some(OnOff::On) => vec!["learn"],
        Some(OnOff::Off) => vec!["fixed"],
    };
    let limit = |learning: &str| if learning == "learn" { servers::LIMIT } else { servers::PLACES };
    let tables: Vec<String> = match &args.table {
        Some(table) => vec![format!("{}\n", table.replace("\\n", "\n"))],
        None => learning.iter().map(|how| format!(":{}::{how}\n", limit(how))).collect(),
    };
    eprintln!("building the tree");
    let mut qmail = Qmail::build(scratch, &args.tree, Flavour::Gate, args.spawn, Fsync::Skipped)?;
    if let Some(logs) = &args.logs {
        qmail.keep_logs(logs);
    }
    let setting = servers::LoopSettings {
        servers: dir,
        parent: scratch.root().parent().unwrap_or(Path::new("/tmp")),
        port,
        mails: ((servers::MAILS as f64 * args.scale).round() as usize).max(2),
        concurrency: args.spawn,
    };
    for kind in kinds {
        for table in &tables {
            for _ in 0..args.runs {
                match servers::run(kind, table, &mut qmail, &setting)? {
                    Ok(outcome) => {
                        eprint!("{}", servers::to_table(std::slice::from_ref(&outcome)));
                        report.servers.push(outcome);
                    }
                    Err(why) => report.notes.push(format!("{}: {why}", kind.name)),
                }
            }
        }
    }
    Ok(())
}

fn finish(args: &Args, report: &BenchReport) -> Result<()> {
    if report.servers.is_empty() && report.shares.is_empty() {
        print!("{}", report.to_table());
    } else if !report.servers.is_empty() {
        print!("{}", servers::to_table(&report.servers));
    }
    for note in &report.notes {
        println!("note: {note}");
    }
    if let Some(path) = &args.json {
        std::fs::write(path, report.to_json())
            .map_err(Error::doing(format!("write {}", path.display())))?;
    }
    Ok(())
}

type Runs = BTreeMap<&'static str, (Plan, Run)>;
/// By mail server.
type RunsBySubject = BTreeMap<String, Runs>;

/// What each mail server's line looks like; the pairs that share a picture.
const COLOURS: [(&str, &str, &str); 3] = [
    ("no gate", "without the gate", "#d1495b"),
    ("postfix", "Postfix", "#8d6a9f"),
    ("gate", "with the gate", "#1b6ca8"),
];
const PAIRS: [(&str, &[&str]); 2] =
    [("", &["no gate", "gate"]), ("-postfix", &["postfix", "gate"])];

/// Draws the scenario's runs, two mail servers in each picture.
fn draw(scenario: Scenario, shown: &RunsBySubject, dir: &Path) -> Result<()> {
    std::fs::create_dir_all(dir).map_err(Error::doing(format!("make {}", dir.display())))?;
    for (name, cap, label) in scenario.pictures() {
        for (suffix, pair) in PAIRS {
            if !pair.iter().all(|subject| shown.contains_key(*subject)) {
                continue;
            }
            let series = |servers: &dyn Fn(&Run) -> Vec<Step>| -> Vec<Series> {
                COLOURS
                    .iter()
                    .filter(|(subject, ..)| pair.contains(subject))
                    .filter_map(|(subject, label, colour)| {
                        let (_, run) = shown.get(*subject)?.get(name)?;
                        let from = measure::first_session(run)?;
                        let steps = plot::shifted(&servers(run), from);
                        Some(Series { label: (*label).to_owned(), colour, steps })
                    })
                    .collect()
            };
            let Some((plan, _)) = shown.values().find_map(|runs| runs.get(name)) else { continue };
            let of_big = series(&|run| run.record.servers[0].steps.clone());
            let of_others = series(&|run| {
                plot::sum(run.record.servers[1..].iter().map(|server| &server.steps[..]))
            });
            let title = |big: &str| {
                if plan.servers.len() > 1 { big.to_owned() } else { "the server".to_owned() }
            };
            let mut panels = vec![Panel {
                title: title("the big domain"),
                series: of_big,
                cap: Some((*cap, (*label).to_owned())),
            }];
            if plan.servers.len() > 1 {
                let title = format!("the {} others together", plan.servers.len() - 1);
                panels.push(Panel { title, series: of_others, cap: None });
            }
            panels.retain(|panel| panel.series.iter().any(|series| !series.steps.is_empty()));
            let svg = plot::draw("SMTP sessions that the servers see", scenario.title(), &panels);
            let middle =
                if scenario.pictures().len() > 1 { format!("-{name}") } else { String::new() };
            let path = dir.join(format!("{scenario}{middle}{suffix}.svg"));
            std::fs::write(&path, svg)
                .map_err(Error::doing(format!("write {}", path.display())))?;
        }
    }
    Ok(())
}

/// The port of the sinks, and whether the network is the bench's own.
fn network(args: &Args, report: &mut BenchReport) -> (u16, bool) {
    if let Some(port) = args.port {
        return (port, false);
    }
    match sandbox::enter() {
        Ok(()) => (SMTP, true),
        Err(error) => {
            report.notes.push(format!(
                "the network is the machine's own (loopback addresses, port {HIGH_PORT}), S5 only by relay: {error}"
            ));
            (HIGH_PORT, false)
        }
    }
}

fn scratch(args: &Args) -> Result<Scratch> {
    if let Some(parent) = &args.scratch {
        return Ok(Scratch::new(&args.tree, Some(parent), Keep::No)?);
    }
    let memory = Path::new("/dev/shm");
    Ok(Scratch::new(&args.tree, Some(memory), Keep::No)
        .or_else(|_| Scratch::new(&args.tree, None, Keep::No))?)
}

fn is_in_memory(scratch: &Scratch) -> bool {
    nix::sys::statfs::statfs(scratch.root())
        .is_ok_and(|place| place.filesystem_type() == nix::sys::statfs::TMPFS_MAGIC)
}

fn queues_are(scratch: &Scratch) -> &'static str {
    if is_in_memory(scratch) { "in memory (tmpfs)" } else { "on disk" }
}

fn about(args: &Args, scratch: &Scratch, report: &mut BenchReport) {
    let mut about = |name: &str, value: String| {
        report.about.insert(name.to_owned(), value);
    };
    about("tree", args.tree.file_name().unwrap_or_default().to_string_lossy().into_owned());
    about("seed", args.seed.to_string());
    about("scale", args.scale.to_string());
    about("runs", args.runs.to_string());
    about("concurrency", args.spawn.to_string());
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    about("processors", processors.to_string());
    about("queues", queues_are(scratch).to_owned());
    if let Ok(load) = std::fs::read_to_string("/proc/loadavg") {
        about("load before", load.trim().to_owned());
    }
}

fn subjects(
    args: &Args,
    scratch: &Scratch,
    fsync: Fsync,
    report: &mut BenchReport,
) -> Result<Vec<Box<dyn Subject>>> {
    let wants = |which| args.only.is_empty() || args.only.contains(&which);
    let mut subjects: Vec<Box<dyn Subject>> = Vec::new();
    for (which, flavour) in [
        (SubjectName::Gate, Flavour::Gate),
        (SubjectName::NoGate, Flavour::NoGate),
        (SubjectName::ForkServer, Flavour::ForkServer),
        (SubjectName::ForkExec, Flavour::ForkExec),
        (SubjectName::LogPieces, Flavour::LogPieces),
        (SubjectName::Classic, Flavour::Classic),
    ] {
        if wants(which) {
            eprintln!("building the tree, {which:?}");
            let mut qmail = Qmail::build(scratch, &args.tree, flavour, args.spawn, fsync)?;
            if let Some(dir) = &args.logs {
                qmail.keep_logs(dir);
            }
            subjects.push(Box::new(qmail));
        }
    }
    if wants(SubjectName::Postfix) && args.postfix == PostfixUse::Auto {
        match postfix::find() {
            Ok(version) => {
                let parent = scratch.root().parent().unwrap_or(Path::new("/tmp"));
                report.about.insert("postfix".to_owned(), version);
                subjects.push(Box::new(postfix::Postfix::new(parent)?));
            }
            Err(why) => report.notes.push(format!("not beside Postfix: {why}")),
        }
    }
    Ok(subjects)
}

/// All plans of a scenario, put through one mail server.
fn run_plans(
    scenario: Scenario,
    options: &ScenarioOptions,
    subject: &mut dyn Subject,
    port: u16,
    number: u32,
) -> Result<Runs> {
    let mut runs = BTreeMap::new();
    for (name, plan) in scenario.plans(options) {
        if !subject.can_run(&plan) {
            continue;
        }
        let at = SocketAddrV4::new(sandbox::NAME_SERVER, 53);
        let names = (plan.route == Route::Mx).then(|| NameServer::start(at, Zone::of(&plan)));
        let _names = names.transpose()?;
        let shown = run(subject, &plan, port)?;
        eprintln!(
            "{scenario} {number} {}: {name}: {} in {:.1} s, {} accepted, {} started, {} busy, {} returned, \
             {} suspended, {} deferred{}",
            subject.name(),
            if shown.complete { "done" } else { "NOT done" },
            (shown.end_us - shown.start_us) as f64 / 1e6,
            shown.record.accepted.len(),
            shown.self_report.started,
            shown.self_report.busy,
            shown.self_report.returned,
            shown.self_report.suspended,
            shown.self_report.deferred,
            shown
                .self_report
                .complaints
                .first()
                .map(|line| format!("; {line}"))
                .unwrap_or_default(),
        );
        if plan.starttls == StartTls::Offered {
            eprintln!("    over TLS: {}", shown.record.encrypted);
        }
        if !shown.self_report.cpu_ms_of.is_empty() {
            let parts = shown.self_report.cpu_ms_of.iter();
            let parts: Vec<String> = parts.map(|(name, ms)| format!("{name} {ms:.0}")).collect();
            eprintln!("    CPU ms: {}", parts.join(", "));
        }
        runs.insert(name, (plan, shown));
    }
    Ok(runs)
}
