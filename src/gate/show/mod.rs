//! `qpatch gate show`: prints the status of the running gate as a table, as JSON, or for Prometheus.

mod domain;
mod json;
mod live;
pub(crate) mod prometheus;
pub(in crate::gate) mod rates;
mod screen;
mod start_rates;
mod terminal;

use std::cmp::Ordering;
use std::collections::HashMap;
use std::io::{self, IsTerminal, Write};
use std::path::PathBuf;
use std::thread::sleep;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use clap::{Args, ValueEnum};
use qpatch_gate::host_share::LeasePhase;
use qpatch_gate::status::{InForce, KEYS_MAX, State};
use qpatch_gate::table::Limit;
use qpatch_gate_status::{KeyStatus, Status};

use super::status_file::{ProcessState, SpawnerStatus, Unread, counted, explain, merged, read};
use super::text::{
    cap_text, cut, domain_argument, key_name, limit_text, next_start, printable, printable_status,
    starts_left,
};
use crate::error::Error;
use crate::output::{CommandResult, Side, StdoutReader, count, print, printed, table};
use crate::qmail::home::{Home, QMAIL_HOME};
use crate::qmail::remote_status::RemoteStatus;
use domain::DomainStatus;
use rates::Readings;

/// Arguments of `qpatch gate show`.
#[derive(Debug, Args)]
pub struct Show {
    /// The folder where qmail is installed
    #[arg(value_name = "QMAILHOME", default_value = QMAIL_HOME)]
    home: PathBuf,
    /// Repeat every SECONDS, 1 to 3600; 2 without a number
    #[arg(long, value_name = "SECONDS", num_args = 0..=1, default_missing_value = "2",
        value_parser = interval)]
    watch: Option<u32>,
    /// Show only under which key this domain counts now, and what that key does; may be repeated
    #[arg(long = "domain", value_name = "D", value_parser = domain_argument)]
    domains: Vec<String>,
    /// The output format
    #[arg(long, value_enum, default_value_t = ShowFormat::Table)]
    format: ShowFormat,
    /// The order of the keys, in a table and in JSON
    #[arg(long, value_enum, default_value_t = KeyOrder::Activity)]
    sort: KeyOrder,
    /// With --format prometheus: how many of the busiest keys get series of their own, besides those with a line in
    /// concurrencydomains and those that have been at their limit; the others are added up
    #[arg(long, value_name = "N", default_value_t = 20,
        value_parser = clap::value_parser!(u32).range(..=KEYS_MAX as i64))]
    busiest: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum ShowFormat {
    /// For people
    Table,
    /// For programs; with --watch, one line each time
    Json,
    /// Prometheus' text format
    Prometheus,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum KeyOrder {
    /// The busiest first: by what runs and is held, then by busy answers, then by what was done
    Activity,
    /// By name
    Name,
    /// Those with the most mail that waits first: by what is held, then by what is away
    Held,
    /// The highest limit that is in force first
    Limit,
}

impl KeyOrder {
    /// Compares two keys. Those that are equal stay as they are: the busiest first.
    fn compare(self, a: &KeyStatus, b: &KeyStatus) -> Ordering {
        let limit = |key: &KeyStatus| match key.effective {
            Limit::AtMost(limit) => u64::from(limit),
            Limit::Unlimited => u64::MAX,
        };
        match self {
            Self::Activity => Ordering::Equal,
            Self::Name => key_name(a.kind, &a.name).cmp(&key_name(b.kind, &b.name)),
            Self::Held => (b.held, b.away).cmp(&(a.held, a.away)),
            Self::Limit => limit(b).cmp(&limit(a)),
        }
    }
}

fn interval(value: &str) -> Result<u32, String> {
    match value.parse() {
        Ok(seconds @ 1..=3600) => Ok(seconds),
        Ok(_) => Err("1 to 3600 seconds; the gate writes once a second at most".to_string()),
        Err(_) => Err("not a number of seconds; write QMAILHOME before --watch".to_string()),
    }
}

/// Runs it.
///
/// # Errors
/// There is no status that can be read. With --watch: only if this is so at the start.
pub fn run(args: &Show) -> CommandResult {
    let home = Home::new(&args.home)?;
    let explained = |unread: Unread| explain(&home, &unread);
    if !args.domains.is_empty() && args.format == ShowFormat::Prometheus {
        let help = "leave --domain out, or choose another format";
        return Err(Error::new("--format prometheus", "has all keys", help).into());
    }
    let mut readings = HashMap::new();
    let mut view =
        |spawners| View::new(spawners, RemoteStatus::running(&args.home), &mut readings).of(args);
    let first = view(read(&home).map_err(explained)?)?;
    let Some(seconds) = args.watch else {
        return print(|out| match args.format {
            ShowFormat::Table => first.table(out),
            ShowFormat::Json => first.json(out),
            ShowFormat::Prometheus => out.write_all(first.prometheus(args.busiest).as_bytes()),
        });
    };
    let mut look = || match read(&home) {
        Ok(spawners) => view(spawners),
        Err(unread) => Err(explain(&home, &unread)),
    };
    if args.format == ShowFormat::Table && io::stdout().is_terminal() {
        return first.watch(seconds, look);
    }
    let mut now = Ok(first);
    for frame in 0u64.. {
        let mut text = Vec::new();
        let wrote = match (&now, args.format) {
            (Ok(view), ShowFormat::Table) => view.table(&mut text),
            (Ok(view), ShowFormat::Json) => serde_json::to_writer(&mut text, &view.report())
                .map_err(io::Error::from)
                .and_then(|()| writeln!(text)),
            (Ok(view), ShowFormat::Prometheus) => {
                text.write_all(view.prometheus(args.busiest).as_bytes())
            }
            // qmail is being restarted, or the file was replaced: the next look may succeed.
            (Err(error), _) => {
                eprintln!("qpatch: {error}");
                Ok(())
            }
        };
        wrote.expect("memory can be written");
        let reader = printed(|out| {
            if frame > 0 && args.format != ShowFormat::Json && !text.is_empty() {
                writeln!(out)?;
            }
            out.write_all(&text)
        });
        if reader? == StdoutReader::Gone {
            return Ok(());
        }
        sleep(Duration::from_secs(seconds.into()));
        now = look();
    }
    Ok(())
}

/// What the spawners say, and what a reader adds to it.
#[derive(Debug)]
pub(in crate::gate) struct View {
    pub(in crate::gate) spawners: Vec<SpawnerStatus>,
    /// All of them together.
    pub(in crate::gate) status: Status,
    pub(in crate::gate) now_secs: u64,
    /// Deliveries a second, in the order of the keys.
    pub(in crate::gate) rates: Vec<f64>,
    /// How each spawner starts qmail-remote; none in a tree without the patch fork-server.
    starts: Vec<RemoteStatus>,
    /// The domains of --domain.
    domains: Vec<DomainStatus>,
}

impl View {
    pub(in crate::gate) fn new(
        spawners: Vec<SpawnerStatus>,
        starts: Vec<RemoteStatus>,
        readings: &mut HashMap<u32, Readings>,
    ) -> Self {
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let now_secs = now.map_or(0, |since| since.as_secs());
        let mut status = merged(&spawners);
        status.keys.sort_by(|a, b| {
            let activity =
                |key: &KeyStatus| (key.running.saturating_add(key.held), key.busy, key.done);
            activity(b)
                .cmp(&activity(a))
                .then_with(|| (a.kind.name(), &a.name).cmp(&(b.kind.name(), &b.name)))
        });
        let mut rates = HashMap::new();
        for SpawnerStatus { number, status, .. } in counted(&spawners) {
            let readings = readings.entry(*number).or_default();
            readings.add(status);
            readings.forget(now_secs);
            for key in &status.keys {
                let rate = readings.rate(status, key, now_secs);
                *rates.entry((key.kind, &key.name[..])).or_insert(0.0) += rate;
            }
        }
        let rates = status.keys.iter().map(|key| rates[&(key.kind, &key.name[..])]).collect();
        Self { spawners, status, now_secs, rates, starts, domains: Vec::new() }
    }

    /// Adds the domains of --domain, and puts the keys into the order of --sort.
    fn of(mut self, args: &Show) -> Result<Self, Error> {
        let keys = std::mem::take(&mut self.status.keys).into_iter();
        let mut keys: Vec<_> = keys.zip(std::mem::take(&mut self.rates)).collect();
        keys.sort_by(|(a, _), (b, _)| args.sort.compare(a, b));
        (self.status.keys, self.rates) = keys.into_iter().unzip();
        if !args.domains.is_empty() {
            let rules = domain::rules(&args.home)?;
            let domains = args.domains.iter();
            self.domains =
                domains.map(|domain| DomainStatus::new(domain, &rules, &self.status)).collect();
        }
        Ok(self)
    }

    pub(in crate::gate) fn age_secs(&self) -> u64 {
        self.now_secs.saturating_sub(self.status.written_secs)
    }

    /// How many deliveries may run at once in all spawners.
    pub(in crate::gate) fn slots(&self) -> u64 {
        let status = counted(&self.spawners).map(|one| &one.status);
        status.map(|one| u64::from(one.slots.min(one.concurrency_remote))).sum()
    }

    /// Prints it for programs, as `--format json` does.
    pub(in crate::gate) fn json(&self, out: &mut dyn Write) -> io::Result<()> {
        serde_json::to_writer_pretty(&mut *out, &self.report())?;
        writeln!(out)
    }

    /// Returns it for Prometheus. `busiest` is that of [`Show`].
    pub(in crate::gate) fn prometheus(&self, busiest: u32) -> String {
        prometheus::text(&self.spawners, &self.status, &self.starts, busiest as usize)
    }

    /// Whether the processes with these figures run; either all or none do. None: that cannot be seen from here.
    pub(in crate::gate) fn alive(&self) -> Option<bool> {
        let all: Option<Vec<bool>> =
            counted(&self.spawners).map(|one| one.process.alive()).collect();
        all.map(|all| all.into_iter().all(|alive| alive))
    }

    /// Prints a line or two about each spawner.
    pub(in crate::gate) fn heads(&self, out: &mut dyn Write) -> io::Result<()> {
        for spawner in &self.spawners {
            let Status { pid, state, in_force, .. } = spawner.status;
            let file = match self.spawners.len() {
                1 => String::new(),
                _ => format!(" ({})", spawner.file()),
            };
            let state = match (state, in_force) {
                (State::Limits, InForce::File) => "limits count",
                (State::Limits, InForce::Kept | InForce::None) => {
                    "limits count, but not those of control/concurrencydomains as it is"
                }
                (State::Limits, InForce::Part) => {
                    "only the good lines of control/concurrencydomains count, and a limit of 20 for all other domains"
                }
                (State::Stock, _) => {
                    "no limits: it has no control/concurrencydomains that it can use"
                }
                (State::Failed, _) => {
                    "an internal error, so there are no limits until qmail is restarted"
                }
            };
            writeln!(out, "qmail-rspawn {pid}{file}: {state}")?;
            if spawner.process == ProcessState::Gone {
                let figures = match counted(&self.spawners).any(|one| one.number == spawner.number)
                {
                    true => "these are its last figures",
                    false => "its figures are left out",
                };
                writeln!(out, "this process is gone; {figures}")?;
            }
        }
        if self.spawners.iter().all(|spawner| spawner.process == ProcessState::Gone) {
            let what = "if qmail runs, its qmail-rspawn has made no delivery yet, or has no gate (qpatch revert)";
            writeln!(out, "{what}")?;
        }
        Ok(())
    }

    /// Prints how deliveries were started, if this tree has more than one way.
    pub(in crate::gate) fn starts(&self, out: &mut dyn Write) -> io::Result<()> {
        if self.starts.iter().all(|one| one.most == 0 && one.by_server == 0) {
            return Ok(());
        }
        let sum = |get: fn(&RemoteStatus) -> u64| self.starts.iter().map(get).sum::<u64>();
        let by_exec = sum(RemoteStatus::executed);
        write!(out, "start: {} by the fork server, {by_exec} by exec", sum(|one| one.by_server))?;
        match sum(|one| one.failed) {
            0 => writeln!(out)?,
            failed => writeln!(out, "; {} failed", count(failed, "server"))?,
        }
        for one in self.starts.iter().filter(|one| !one.reason.is_empty()) {
            writeln!(out, "problem: no fork server: {}", printable(&one.reason))?;
        }
        Ok(())
    }

    fn table(&self, out: &mut dyn Write) -> io::Result<()> {
        self.summary(out)?;
        if self.domains.is_empty() {
            self.keys(out)?;
            self.objections(out)?;
        }
        Ok(())
    }

    /// Prints what is said about the spawners and all keys together, or about the domains of --domain.
    fn summary(&self, out: &mut dyn Write) -> io::Result<()> {
        let status = &self.status;
        self.heads(out)?;
        if !self.domains.is_empty() {
            for domain in &self.domains {
                writeln!(out)?;
                domain.write(out, status, self.now_secs)?;
            }
            return Ok(());
        }
        let spawners: Vec<&Status> = counted(&self.spawners).map(|one| &one.status).collect();
        let (slots, running) = (self.slots(), status.running());
        let of = match spawners[..] {
            [one] => {
                format!("conf-spawn {}, concurrencyremote {}", one.slots, one.concurrency_remote)
            }
            _ => format!("{} spawners", spawners.len()),
        };
        writeln!(
            out,
            "now:   {running} running and {} held, of {slots} ({of}); written {} s ago",
            status.held,
            self.age_secs()
        )?;
        let totals = &status.totals;
        writeln!(
            out,
            "ever:  {} asked for, {} done, {} held, {} (for {} the hold was too long)",
            totals.asked,
            totals.done,
            totals.held,
            count(totals.busy, "busy answer"),
            totals.expired
        )?;
        if totals.refused > 0 || totals.suspended > 0 {
            writeln!(
                out,
                "       {} refused as too many at once, {} deferred because no connection succeeded",
                totals.refused, totals.suspended
            )?;
        }
        let loaded = match status.loaded_secs {
            0 => "never read".to_string(),
            secs => format!("read {} s ago", self.now_secs.saturating_sub(secs)),
        };
        let (lines, routes) = (count(status.domains, "line"), count(status.routes, "route"));
        writeln!(out, "rules: {lines}, {routes}; {loaded}")?;
        if status.mapped > 0 || status.seen > 0 {
            let mapped = count(status.mapped, "domain");
            let seen = count(status.seen, "next hop");
            writeln!(out, "sites: {mapped} of concurrencysites, {seen} seen at an address")?;
        }
        if let Some(lease) = status.lease
            && lease.phase == LeasePhase::Valid
        {
            // Otherwise a problem says so.
            writeln!(out, "shares: of limits that this host shares with others")?;
        }
        self.starts(out)?;
        for problem in &status.problems {
            writeln!(out, "problem: {}", printable(problem))?;
        }
        Ok(())
    }

    /// Prints the table of keys.
    fn keys(&self, out: &mut dyn Write) -> io::Result<()> {
        let status = &self.status;
        if status.keys.is_empty() {
            return Ok(());
        }
        writeln!(out)?;
        let columns = [
            ("KEY", Side::Left),
            ("LIMIT", Side::Right),
            ("ALLOWED", Side::Right),
            ("RUNNING", Side::Right),
            ("HELD", Side::Right),
            ("AWAY", Side::Right),
            ("BUSY", Side::Right),
            ("DONE", Side::Right),
            ("PEAK", Side::Right),
            ("PER SEC", Side::Right),
            ("MEAN", Side::Right),
            ("LAST ERROR", Side::Left),
        ];
        let row = |(key, rate): (&KeyStatus, &f64)| {
            let mean = match key.mean_ms {
                0 => "-".to_string(),
                ms => format!("{:.2} s", ms as f64 / 1000.0),
            };
            [
                key_name(key.kind, &key.name),
                cap_text(key.limit, &key.rates),
                self.limit_now(key),
                key.running.to_string(),
                key.held.to_string(),
                key.away.to_string(),
                key.busy.to_string(),
                key.done.to_string(),
                key.peak.to_string(),
                format!("{rate:.1}"),
                mean,
                printable_status(&key.error),
            ]
        };
        let rows: Vec<_> = status.keys.iter().zip(&self.rates).map(row).collect();
        table(out, columns, &rows)?;
        if status.unlisted > 0 {
            writeln!(out, "and {} that did less", count(status.unlisted, "key"))?;
        }
        Ok(())
    }

    /// Prints which servers take less than their limit, and since when: a line of at most 100 columns for each.
    fn objections(&self, out: &mut dyn Write) -> io::Result<()> {
        let is_suspended = |key: &KeyStatus| key.suspended_secs > self.now_secs;
        let keys = self.status.keys.iter();
        let keys = keys.filter(|key| key.objected_secs > 0 || is_suspended(key));
        for (at, key) in keys.enumerate() {
            if at == 0 {
                writeln!(out)?;
            }
            let mut line = format!("{}: ", key_name(key.kind, &key.name));
            if is_suspended(key) {
                let secs = key.suspended_secs - self.now_secs;
                line.push_str(&format!("suspended for {secs} s"));
            } else {
                let (now, limit) = (limit_text(key.effective), limit_text(key.limit));
                line.push_str(&format!("{now} instead of {limit}"));
            }
            if key.objected_secs > 0 {
                let secs = self.now_secs.saturating_sub(key.objected_secs);
                line.push_str(&format!("; objected {secs} s ago"));
            }
            if !key.error.is_empty() {
                line.push_str(&format!("; last error: {}", printable_status(&key.error)));
            }
            writeln!(out, "{}", cut(&line, 100))?;
        }
        Ok(())
    }

    /// What is in force now: `-` if it is what is configured, a lower limit, or for how long nothing starts.
    fn limit_now(&self, key: &KeyStatus) -> String {
        match key.suspended_secs.checked_sub(self.now_secs) {
            Some(secs @ 1..) => format!("0 for {secs} s"),
            _ => {
                let limit = (key.effective != key.limit).then(|| limit_text(key.effective));
                let next = next_start(key.next_start_ms);
                let facts =
                    limit.into_iter().chain(next).chain(starts_left(key.hour_left, key.day_left));
                let facts: Vec<String> = facts.collect();
                if facts.is_empty() { "-".to_string() } else { facts.join(", ") }
            }
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use qpatch_gate::gate::Totals;
    use qpatch_gate::rules::KeyKind;

    pub(in crate::gate::show) fn view_of(status: Status) -> View {
        let spawner = SpawnerStatus { number: 0, status, process: ProcessState::Running };
        View::new(vec![spawner], Vec::new(), &mut HashMap::new())
    }

    pub(in crate::gate::show) fn status(written_secs: u64, done: u64, rate: f64) -> Status {
        Status {
            generation: 1,
            written_secs,
            pid: 7,
            start_ticks: 0,
            program: String::new(),
            namespace: 0,
            state: State::Limits,
            in_force: InForce::File,
            slots: 10,
            concurrency_remote: 10,
            in_use: 0,
            held: 0,
            totals: Totals::default(),
            domains: 1,
            routes: 0,
            mapped: 0,
            seen: 0,
            loaded_secs: 0,
            lease: None,
            problems: Vec::new(),
            keys: vec![KeyStatus {
                kind: KeyKind::Domain,
                name: "a.example".to_string(),
                limit: Limit::AtMost(1),
                running: 0,
                held: 0,
                busy: 0,
                done,
                peak: 1,
                away: 0,
                rate,
                mean_ms: 0,
                effective: Limit::AtMost(1),
                objected_secs: 0,
                suspended_secs: 0,
                error: String::new(),
                named: false,
                held_ever: 0,
                rates: String::new(),
                next_start_ms: 0,
                hour_left: None,
                day_left: None,
                share: None,
            }],
            unlisted: 0,
        }
    }

    #[test]
    fn the_rate_is_that_between_two_readings() {
        let mut readings = Readings::default();
        let mut rate = |status: &Status, now_secs: u64| {
            readings.add(status);
            readings.forget(now_secs);
            readings.rate(status, &status.keys[0], now_secs)
        };
        assert_eq!(rate(&status(1000, 100, 7.5), 1001), 7.5, "one reading: the gate's word");
        assert_eq!(rate(&status(1004, 140, 9.9), 1004), 10.0);
        assert_eq!(rate(&status(1004, 140, 9.9), 1008), 40.0 / 6.0, "nothing since");
        assert_eq!(rate(&status(1020, 200, 9.9), 1020), 9.9, "the others are too old");
        assert_eq!(rate(&status(1022, 4, 9.9), 1022), 2.0, "the key was forgotten in between");
        assert!(rate(&status(1022, 4, 9.9), 2000) < 0.001);
    }

    #[test]
    fn the_largest_numbers_are_numbers() {
        let mut largest = status(u64::MAX, u64::MAX, f64::MAX);
        largest.totals.refused = u64::MAX;
        largest.totals.suspended = u64::MAX;
        (largest.mapped, largest.seen, largest.unlisted) = (u64::MAX, u64::MAX, u64::MAX);
        let key = &mut largest.keys[0];
        (key.running, key.held, key.away, key.busy) = (u32::MAX, u32::MAX, u32::MAX, u64::MAX);
        (key.objected_secs, key.suspended_secs) = (u64::MAX, u64::MAX);
        (key.rates, key.next_start_ms) = ("1/s".to_string(), u64::MAX);
        (key.hour_left, key.day_left) = (Some(u32::MAX), Some(u32::MAX));
        // Two of one spawner, as `--watch` sees them, and another spawner beside it.
        let mut readings = HashMap::new();
        for generation in [1, 2] {
            let spawners = [0, 1].map(|number| SpawnerStatus {
                number,
                status: Status { generation, ..largest.clone() },
                process: ProcessState::Unknown,
            });
            let view = View::new(spawners.into(), Vec::new(), &mut readings);
            let mut text = Vec::new();
            view.table(&mut text).unwrap();
            assert!(String::from_utf8(text).unwrap().contains(&u64::MAX.to_string()));
            assert!(serde_json::to_string(&view.report()).is_ok());
            assert!(
                prometheus::text(&view.spawners, &view.status, &[], 0).contains("1844674407370955")
            );
        }
        let mut readings = Readings::default();
        readings.add(&status(u64::MAX, 1, 1.0));
        readings.add(&status(1, 1, 1.0));
        readings.forget(2);
        assert_eq!(readings.0.len(), 2);
    }

    #[test]
    fn keys_come_in_the_order_that_is_asked_for() {
        let key = |name: &str, limit, running, held| KeyStatus {
            name: name.to_string(),
            effective: limit,
            running,
            held,
            ..status(1, 1, 1.0).keys[0].clone()
        };
        let keys = [
            key("c", Limit::AtMost(5), 9, 1),
            key("b", Limit::Unlimited, 3, 2),
            key("a", Limit::AtMost(7), 1, 2),
        ];
        for (order, expected) in [
            (KeyOrder::Activity, "cba"),
            (KeyOrder::Name, "abc"),
            (KeyOrder::Held, "bac"),
            (KeyOrder::Limit, "bac"),
        ] {
            let mut keys = keys.clone();
            keys.sort_by(|a, b| order.compare(a, b));
            let names: String = keys.iter().map(|key| &key.name[..]).collect();
            assert_eq!(names, expected, "{order:?}");
        }
    }
}
