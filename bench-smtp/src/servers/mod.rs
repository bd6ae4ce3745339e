//! S7: the gate in front of real servers, each of which takes five sessions or has a mail filter that defers.
//!
//! This measures what the sink's 421 cannot show: a server that closes its listening socket, that hangs up without a
//! reply, that lets a client wait until a place is free, that counts a session for longer than it lasts, or that defers
//! mail for reasons of its own.

mod kinds;
mod process;

use std::collections::HashSet;
use std::fmt::Write as _;
use std::net::SocketAddrV4;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::unistd::geteuid;
use serde::Serialize;

use crate::error::{Error, Result, check_signals};
use crate::milter::{Milter, Takes, is_taken};
use crate::plan::{Domain, KnownSites, Mail, Plan, Route, address, domain_name};
use crate::qmail::Qmail;
use crate::run::Subject as _;
use crate::sink::{Behaviour, Server as Address, Service};
use crate::tls::StartTls;
use crate::usage;
use kinds::Filter;
pub use kinds::{SERVER_KINDS, SESSION, ServerKind};
use process::{find, start};

/// How many sessions a server with a limit has.
pub const PLACES: u32 = 5;
/// The limit in the table with `learn`.
pub const LIMIT: u32 = 20;
/// How long a server takes to accept a mail.
pub const HOLD: Duration = Duration::from_secs(1);
/// How many mails there are, at `--scale 1`.
pub const MAILS: usize = 200;
/// A run ends after this time, or when all mail that is left was deferred as a try: that is tried again after 400 s.
const MOST: Duration = Duration::from_secs(120);
/// How long the mail server has to end by itself then.
const ENDING: Duration = Duration::from_secs(3);
/// When a filter that is down at first starts; the second half of the mail arrives then.
const DOWN: Duration = Duration::from_secs(10);

const MILTER_PORT: u16 = 25027;

/// The result of a run with a real server.
#[derive(Debug, Serialize)]
pub struct ServerOutcome {
    /// [`ServerKind::name`].
    pub server: &'static str,
    /// control/concurrencydomains.
    pub table: String,
    /// How many mails the server would take.
    pub wanted: usize,
    /// How many of them it took within 120 s.
    pub delivered: usize,
    /// From the arrival of the first of them to the delivery of the last, in seconds; None: not all were delivered.
    pub secs: Option<f64>,
    /// The same for a client that always has as many sessions as both the server and the table allow.
    pub ideal_secs: f64,
    /// Deliveries that the server refused, and that the gate did not count as a try.
    pub returned: usize,
    /// Deliveries that were deferred as a try. In `postfix-milter` and `-milter-down` half of the mail should be.
    pub deferred: usize,
    /// Deliveries that were deferred without a try because the key was suspended.
    pub suspended: usize,
    /// The effective limit over time: seconds since the start, and the limit from then on.
    pub limits: Vec<(f64, u32)>,
}

/// The settings of all runs with real servers.
#[derive(Debug)]
pub struct LoopSettings<'l> {
    /// The folder with the unpacked packages.
    pub servers: &'l Path,
    /// Where temporary directories can be made.
    pub parent: &'l Path,
    /// The servers' port.
    pub port: u16,
    /// How many mails.
    pub mails: usize,
    /// concurrencyremote.
    pub concurrency: u32,
}

/// The users that the servers of `kinds` need in /etc/passwd.
pub fn users<'k>(kinds: &[&'k ServerKind]) -> Vec<&'k str> {
    kinds.iter().filter_map(|kind| kind.user).collect::<HashSet<_>>().into_iter().collect()
}

/// The mail, in two classes: what the server would take, and the rest. If the filter is down at first, half of the mail
/// arrives after [`DOWN`].
fn plan(kind: &ServerKind, table: &str, setting: &LoopSettings) -> Plan {
    let down = kind.filter == Filter::Down;
    let takes = |mail: usize| match kind.filter {
        Filter::None | Filter::Holds => true,
        Filter::EverySecond => is_taken(mail as u32),
        Filter::Down => mail >= setting.mails / 2,
    };
    let class_of = |mail| Mail { domain: 0, class: usize::from(!takes(mail)) };
    let (later, before): (Vec<u32>, Vec<u32>) =
        (0..setting.mails as u32).partition(|mail| down && takes(*mail as usize));
    Plan {
        domains: vec![Domain { name: domain_name(0), server: 0 }],
        servers: vec![Address {
            address: address(0),
            behaviour: Behaviour::Serve(Service::holding(HOLD)),
        }],
        route: Route::Table,
        known: KnownSites::Nothing,
        mails: (0..setting.mails).map(class_of).collect(),
        classes: 2,
        before,
        lists: Vec::new(),
        arrivals: later.into_iter().map(|mail| (DOWN, mail)).collect(),
        injected: Vec::new(),
        later: Vec::new(),
        wanted: vec![0],
        held: None,
        most: MOST,
        ending: ENDING,
        table: table.to_owned(),
        cap: LIMIT,
        concurrency: setting.concurrency,
        patience: Duration::from_secs(60),
        starttls: StartTls::Unknown,
    }
}

/// Runs one server with one table; Ok(Err(why)) if that server cannot be run here.
pub fn run(
    kind: &ServerKind,
    table: &str,
    qmail: &mut Qmail,
    setting: &LoopSettings,
) -> Result<std::result::Result<ServerOutcome, String>> {
    if kind.user.is_some() && !geteuid().is_root() {
        return Ok(Err("skipped: it can only be started by root".to_owned()));
    }
    let root = match find(kind, setting.servers) {
        Ok(root) => root,
        Err(why) => return Ok(Err(why)),
    };
    let plan = plan(kind, table, setting);
    let takes = if kind.filter == Filter::EverySecond { Takes::EverySecond } else { Takes::All };
    let milter = || Milter::start(MILTER_PORT, takes, HOLD);
    let mut filter = match kind.filter {
        Filter::Holds | Filter::EverySecond => Some(milter()?),
        Filter::None | Filter::Down => None,
    };
    let at = SocketAddrV4::new(address(0), setting.port);
    let server = start(kind, &root, at, setting.parent)?;
    qmail.set_sender("bench@bench.example");
    qmail.prepare(&plan, setting.port)?;
    for &mail in &plan.before {
        qmail.queue(&plan, mail)?;
    }
    qmail.start()?;
    let started = Instant::now();
    let wanted = plan.count(0);
    let is_wanted = |mail: &u32| plan.mails[*mail as usize].class == 0;
    // How many mails are delivered, and how many more can be delivered in time.
    let state = |qmail: &Qmail| -> Result<(usize, usize)> {
        let self_report = qmail.self_report()?;
        if self_report.failed > 0 {
            let what = format!("{} refuses mail for good: {:?}", kind.name, self_report.complaints);
            return Err(Error::new(what, ""));
        }
        let taken: HashSet<u32> =
            self_report.delivered.into_iter().map(|(_, mail)| mail).filter(is_wanted).collect();
        let waiting: HashSet<u32> = self_report
            .deferred_mails
            .into_iter()
            .filter(|mail| is_wanted(mail) && !taken.contains(mail))
            .collect();
        Ok((taken.len(), wanted - taken.len() - waiting.len()))
    };
    let mut limits: Vec<(f64, u32)> = Vec::new();
    let mut ceiling = LIMIT;
    let mut waiting = plan.arrivals.clone();
    let complete = loop {
        check_signals()?;
        let secs = started.elapsed().as_secs_f64();
        if let Some((configured, limit)) = qmail.limits() {
            ceiling = configured;
            if limits.last().is_none_or(|(_, last)| *last != limit) {
                limits.push((secs, limit));
            }
        }
        if !waiting.is_empty() && started.elapsed() >= DOWN {
            filter = Some(milter()?);
            for (_, mail) in waiting.drain(..) {
                qmail.queue(&plan, mail)?;
            }
            qmail.notify()?;
        }
        let (taken, left) = state(qmail)?;
        if left == 0 || started.elapsed() >= plan.most {
            break taken == wanted;
        }
        qmail.check()?;
        std::thread::sleep(Duration::from_millis(50));
    };
    let self_report = qmail.stop(ENDING)?;
    drop(server);
    drop(filter);
    usage::reap_all(Duration::from_secs(20))?;
    let taken: Vec<f64> = self_report
        .delivered
        .iter()
        .filter(|(_, mail)| is_wanted(mail))
        .map(|(secs, _)| *secs)
        .collect();
    let from = if kind.filter == Filter::Down { DOWN.as_secs_f64() } else { 0.0 };
    let last = taken.iter().copied().fold(0.0, f64::max);
    let places = match kind.filter {
        Filter::EverySecond | Filter::Down => ceiling,
        _ if kind.name == "no-limit" => ceiling,
        Filter::None | Filter::Holds => ceiling.min(PLACES),
    };
    Ok(Ok(ServerOutcome {
        server: kind.name,
        table: table.to_owned(),
        wanted,
        delivered: taken.len(),
        secs: complete.then_some(last - from),
        ideal_secs: wanted as f64 * HOLD.as_secs_f64() / f64::from(places.max(1)),
        returned: self_report.returned,
        deferred: self_report.deferred,
        suspended: self_report.suspended,
        limits,
    }))
}

/// A table in Markdown.
pub fn to_table(outcomes: &[ServerOutcome]) -> String {
    let mut text = String::from(
        "| server | table | delivered | s | ideal, s | refused, no try | deferred as a try | suspended | the limit |\n\
         | --- | --- | --- | --- | --- | --- | --- | --- | --- |\n",
    );
    for outcome in outcomes {
        let secs = outcome.secs.map_or_else(|| "-".to_owned(), |secs| format!("{secs:.1}"));
        let _ = writeln!(
            text,
            "| {} | {} | {} of {} | {secs} | {:.0} | {} | {} | {} | {} |",
            outcome.server,
            outcome.table.trim_end().replace('\n', "; "),
            outcome.delivered,
            outcome.wanted,
            outcome.ideal_secs,
            outcome.returned,
            outcome.deferred,
            outcome.suspended,
            over_time(&outcome.limits),
        );
    }
    text
}

/// `20 at 0 s, 5 at 1 s, 6 at 20 s`; of many changes only the first and the last ones.
fn over_time(limits: &[(f64, u32)]) -> String {
    const SHOWN: usize = 4;
    let one = |(secs, limit): &(f64, u32)| format!("{limit} at {secs:.0} s");
    let all: Vec<String> = limits.iter().map(one).collect();
    if all.len() <= 2 * SHOWN {
        return all.join(", ");
    }
    let least = limits.iter().map(|(_, limit)| limit).min().copied().unwrap_or(0);
    let (head, tail) = (all[..SHOWN].join(", "), all[all.len() - SHOWN..].join(", "));
    format!("{head}, ... {tail} ({} changes, lowest {least})", all.len() - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mail_that_counts_is_what_the_filter_lets_through() {
        let setting = LoopSettings {
            servers: Path::new("/"),
            parent: Path::new("/"),
            port: 25,
            mails: 10,
            concurrency: 100,
        };
        let of = |name| SERVER_KINDS.iter().find(|kind| kind.name == name).expect("it is there");
        let figures = |name| {
            let plan = plan(of(name), ":20\n", &setting);
            (plan.count(0), plan.before.len(), plan.arrivals.len())
        };
        assert_eq!(figures("exim-max"), (10, 10, 0));
        assert_eq!(figures("postfix-milter"), (5, 10, 0));
        assert_eq!(figures("postfix-milter-down"), (5, 5, 5));
    }

    #[test]
    fn a_limit_that_changes_often_is_printed_by_its_first_and_last_values() {
        let few = [(0.4, 20), (1.2, 5)];
        assert_eq!(over_time(&few), "20 at 0 s, 5 at 1 s");
        let many: Vec<(f64, u32)> =
            (0..30).map(|number| (f64::from(number), 30 - number)).collect();
        assert_eq!(
            over_time(&many),
            "30 at 0 s, 29 at 1 s, 28 at 2 s, 27 at 3 s, ... \
             4 at 26 s, 3 at 27 s, 2 at 28 s, 1 at 29 s (29 changes, lowest 1)"
        );
    }
}
