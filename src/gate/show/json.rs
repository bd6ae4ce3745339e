//! The status as JSON.

use qpatch_gate_status::Status;
use serde::Serialize;

use super::View;
use super::domain::DomainStatus;
use super::start_rates::StartRates;
use crate::gate::status_file::SpawnerStatus;
use crate::gate::text::limit_value;
use crate::qmail::remote_status::RemoteStatus;

impl View {
    /// What is printed as JSON.
    pub(super) fn report(&self) -> ShowReport<'_> {
        let status = &self.status;
        let keys = status.keys.iter().zip(&self.rates).map(|(key, &rate)| KeyReport {
            kind: key.kind.name(),
            key: &key.name,
            limit: limit_value(key.limit),
            effective_limit: limit_value(key.effective),
            share: key.share,
            objected: (key.objected_secs > 0).then_some(key.objected_secs),
            suspended_until: (key.suspended_secs > 0).then_some(key.suspended_secs),
            rates: StartRates::of(key.rates.clone(), Some(key)),
            running: key.running,
            held: key.held,
            away: key.away,
            busy: key.busy,
            done: key.done,
            peak: key.peak,
            per_second: (rate * 1000.0).round() / 1000.0,
            mean_ms: (key.mean_ms > 0).then_some(key.mean_ms),
            last_error: &key.error,
        });
        ShowReport {
            figures: SpawnerFigures::new(status, self.alive()),
            asked_total: status.totals.asked,
            done_total: status.totals.done,
            held_total: status.totals.held,
            busy_total: status.totals.busy,
            expired_total: status.totals.expired,
            refused_total: status.totals.refused,
            suspended_total: status.totals.suspended,
            lines: status.domains,
            routes: status.routes,
            loaded: (status.loaded_secs > 0).then_some(status.loaded_secs),
            mapped_domains: status.mapped,
            seen_next_hops: status.seen,
            lease: status
                .lease
                .map(|lease| LeaseReport { phase: lease.phase.name(), hosts: lease.hosts }),
            problems: &status.problems,
            spawners: match self.spawners.len() {
                1 => Vec::new(),
                _ => self.spawners.iter().map(SpawnerReport::new).collect(),
            },
            starts: &self.starts,
            domains: &self.domains,
            keys: if self.domains.is_empty() { keys.collect() } else { Vec::new() },
            unlisted: status.unlisted,
        }
    }
}

/// What is printed as JSON. Times are in seconds since 1970.
#[derive(Serialize)]
pub(super) struct ShowReport<'a> {
    #[serde(flatten)]
    figures: SpawnerFigures,
    asked_total: u64,
    done_total: u64,
    held_total: u64,
    busy_total: u64,
    expired_total: u64,
    refused_total: u64,
    suspended_total: u64,
    lines: u64,
    routes: u64,
    loaded: Option<u64>,
    mapped_domains: u64,
    seen_next_hops: u64,
    /// The shares of this host, if several hosts share the limits.
    #[serde(skip_serializing_if = "Option::is_none")]
    lease: Option<LeaseReport>,
    problems: &'a [String],
    /// Each spawner, if there are several. The other figures are of all of them together.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    spawners: Vec<SpawnerReport>,
    /// How each spawner starts qmail-remote.
    #[serde(skip_serializing_if = "<[RemoteStatus]>::is_empty")]
    starts: &'a [RemoteStatus],
    /// The domains of --domain; `keys` is empty then.
    #[serde(skip_serializing_if = "<[DomainStatus]>::is_empty")]
    domains: &'a [DomainStatus],
    keys: Vec<KeyReport<'a>>,
    unlisted: u64,
}

/// The figures of one spawner, or of all together.
#[derive(Serialize)]
struct SpawnerFigures {
    state: &'static str,
    /// Which limits are in force.
    in_force: &'static str,
    pid: u32,
    alive: Option<bool>,
    written: u64,
    conf_spawn: u32,
    concurrencyremote: u32,
    running: u32,
    held: u32,
}

impl SpawnerFigures {
    fn new(status: &Status, alive: Option<bool>) -> Self {
        Self {
            state: status.state.name(),
            in_force: status.in_force.name(),
            pid: status.pid,
            alive,
            written: status.written_secs,
            conf_spawn: status.slots,
            concurrencyremote: status.concurrency_remote,
            running: status.running(),
            held: status.held,
        }
    }
}

#[derive(Serialize)]
struct SpawnerReport {
    spawner: u32,
    #[serde(flatten)]
    figures: SpawnerFigures,
}

impl SpawnerReport {
    fn new(SpawnerStatus { number, status, process, .. }: &SpawnerStatus) -> Self {
        Self { spawner: *number, figures: SpawnerFigures::new(status, process.alive()) }
    }
}

#[derive(Serialize)]
struct LeaseReport {
    phase: &'static str,
    /// By what the gate divides a limit when the lease is over.
    hosts: u32,
}

#[derive(Serialize)]
struct KeyReport<'a> {
    kind: &'static str,
    key: &'a str,
    /// null is unlimited.
    limit: Option<u32>,
    effective_limit: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    share: Option<u32>,
    objected: Option<u64>,
    suspended_until: Option<u64>,
    #[serde(flatten)]
    rates: StartRates,
    running: u32,
    held: u32,
    away: u32,
    busy: u64,
    done: u64,
    peak: u32,
    per_second: f64,
    mean_ms: Option<u64>,
    last_error: &'a str,
}
