//! The status in Prometheus' text format.
//!
//! **Which keys have series.** The senders of mail choose the names of domains, and Prometheus keeps each series for
//! months. So a key has series of its own only if the operator has named it (a group, a relay, a domain with a line of
//! its own), if it is or was at its limit, or if it is one of the busiest of the rest. The gauges of all other keys are
//! added up under `kind="other"`.
//!
//! **The counters of the other keys** are left out. When a key gets series of its own, its past would have to leave the
//! others' sum. rate() takes a counter that falls for one that was reset, and would count all of the others' past as
//! new. What the other keys did is the difference from the counters of all deliveries, which never fall:
//! rate(qmail_gate_done_total[5m]) less sum(rate(qmail_gate_key_done_total[5m])).
//!
//! **The counters of several spawners** have a label `spawner` each, for the same reason. Each gate forgets keys at a
//! time of its own and counts them from 0 again. If the counters were added up, rate() would count the parts of the
//! other spawners as new when one part is reset.

use std::collections::{HashMap, HashSet};
use std::fmt::Write as _;

use qpatch_gate::host_share::LeasePhase;
use qpatch_gate::status::{InForce, State};
use qpatch_gate::table::Limit;
use qpatch_gate_status::{KeyStatus, Status};

use crate::gate::status_file::{SpawnerStatus, counted, merged};
use crate::qmail::remote_status::RemoteStatus;

/// A metric: its name after `qmail_gate_`, its type, its help text.
type Metric = (&'static str, &'static str, &'static str);

/// A metric of a spawner, or of all together, and its value.
type Figure<T> = (Metric, fn(&T) -> u64);
/// A metric of keys: its value for one key (None: there is none), and the sum over the keys without series.
type KeyFigure = (Metric, fn(&KeyStatus) -> Option<f64>, OthersSum);

/// Once for each spawner: with a label `spawner` where there are several.
const OF_SPAWNER: [Figure<SpawnerStatus>; 4] = [
    (
        (
            "up",
            "gauge",
            "1: this qmail-rspawn runs, and its gate works. 0: the process that wrote the status is gone, or its gate \
             had an internal error.",
        ),
        |spawner| spawner.is_up().into(),
    ),
    (
        (
            "failed",
            "gauge",
            "1: the gate had an internal error, so there are no limits until qmail is restarted.",
        ),
        |spawner| (spawner.status.state == State::Failed).into(),
    ),
    (
        (
            "limits_in_force",
            "gauge",
            "1: the limits of control/concurrencydomains as it is now. 0: no limits, those of an earlier file, or only \
             its good lines.",
        ),
        |spawner| (spawner.status.in_force == InForce::File).into(),
    ),
    (
        (
            "written_timestamp_seconds",
            "gauge",
            "When the status was written. A running gate writes it at least once a minute.",
        ),
        |spawner| spawner.status.written_secs,
    ),
];

const OF_ALL: [Figure<Status>; 14] = [
    (("slots", "gauge", "Delivery slots: conf-spawn."), |status| status.slots.into()),
    (("slots_in_use", "gauge", "Delivery slots that are running or held."), |status| {
        status.in_use.into()
    }),
    (("slots_held", "gauge", "Delivery slots that are held."), |status| status.held.into()),
    (("asked_total", "counter", "Deliveries that were asked for."), |status| status.totals.asked),
    (
        ("busy_total", "counter", "Deliveries that got a busy answer, and wait in qmail-send."),
        |status| status.totals.busy,
    ),
    (("held_total", "counter", "Deliveries that were held for some time."), |status| {
        status.totals.held
    }),
    (
        (
            "expired_total",
            "counter",
            "Deliveries that were held for too long and then got a busy answer.",
        ),
        |status| status.totals.expired,
    ),
    (("done_total", "counter", "Deliveries that ran and ended."), |status| status.totals.done),
    (
        (
            "refused_total",
            "counter",
            "Deliveries that the server refused while others ran, and that went away as busy.",
        ),
        |status| status.totals.refused,
    ),
    (
        (
            "suspended_total",
            "counter",
            "Deliveries that were deferred because no connection succeeded.",
        ),
        |status| status.totals.suspended,
    ),
    (("mapped_domains", "gauge", "Domains in concurrencysites."), |status| status.mapped),
    (
        ("seen_next_hops", "gauge", "Next hops whose servers were seen at an address of a site."),
        |status| status.seen,
    ),
    (("problems", "gauge", "Problems with the control files."), |status| {
        status.problems.len() as u64
    }),
    (
        (
            "lease_over",
            "gauge",
            "1: this host shares its limits with others, and its lease is over. 0: the lease runs, or nothing is shared.",
        ),
        |status| status.lease.is_some_and(|lease| lease.phase != LeasePhase::Valid).into(),
    ),
];

/// The sum over the keys without series of their own; None: the metric cannot be added up.
type OthersSum = Option<fn(&OtherKeys) -> f64>;

const OF_KEY: [KeyFigure; 14] = [
    (
        ("key_limit", "gauge", "Deliveries that may run at once; absent when unlimited."),
        |key| limit_value(key.limit),
        None,
    ),
    (
        (
            "key_effective_limit",
            "gauge",
            "The limit in force now: lower than key_limit while the server takes less.",
        ),
        |key| limit_value(key.effective),
        None,
    ),
    (
        (
            "key_objected_timestamp_seconds",
            "gauge",
            "When the server last objected; absent when the limit has recovered.",
        ),
        |key| (key.objected_secs > 0).then_some(key.objected_secs as f64),
        None,
    ),
    (
        (
            "key_suspended_until_timestamp_seconds",
            "gauge",
            "Until when nothing starts; absent when it is not suspended.",
        ),
        |key| (key.suspended_secs > 0).then_some(key.suspended_secs as f64),
        None,
    ),
    (
        (
            "key_next_start_seconds",
            "gauge",
            "Time until its rates allow the next start, from the writing of the status on; 0: now. Absent without rates.",
        ),
        |key| (!key.rates.is_empty()).then_some(key.next_start_ms as f64 / 1000.0),
        None,
    ),
    (
        (
            "key_hour_starts_left",
            "gauge",
            "Starts that its rate for an hour has left; absent without one.",
        ),
        |key| key.hour_left.map(f64::from),
        None,
    ),
    (
        (
            "key_day_starts_left",
            "gauge",
            "Starts that its rate for a day has left; absent without one.",
        ),
        |key| key.day_left.map(f64::from),
        None,
    ),
    (
        ("key_running", "gauge", "Deliveries that run."),
        |key| Some(key.running.into()),
        Some(|others| others.running),
    ),
    (
        ("key_held", "gauge", "Deliveries that are held."),
        |key| Some(key.held.into()),
        Some(|others| others.held),
    ),
    (
        ("key_away", "gauge", "Deliveries that got a busy answer and wait in qmail-send."),
        |key| Some(key.away.into()),
        Some(|others| others.away),
    ),
    (
        ("key_busy_total", "counter", "Deliveries that got a busy answer."),
        |key| Some(key.busy as f64),
        None,
    ),
    (
        ("key_done_total", "counter", "Deliveries that ran and ended."),
        |key| Some(key.done as f64),
        None,
    ),
    (
        ("key_rate", "gauge", "Deliveries a second, over about ten seconds."),
        |key| Some(tenths(key.rate)),
        Some(|others| tenths(others.rate)),
    ),
    (
        ("key_service_seconds", "gauge", "Mean time of a delivery."),
        |key| Some(key.mean_ms as f64 / 1000.0),
        None,
    ),
];

const STARTS: Metric = (
    "starts_total",
    "counter",
    "Starts of qmail-remote. way: server, exec, or spawn (fork and exec as the unpatched tree does).",
);

const START_SERVER: Metric =
    ("start_server", "gauge", "1: a fork server of qmail-remote runs. 0: none runs now.");

const START_FAILURES: Metric =
    ("start_server_failures_total", "counter", "Fork servers that have failed.");

const KEYS_OTHER: Metric = (
    "keys_other",
    "gauge",
    "Keys that have no series of their own; their sums have kind=\"other\".",
);

/// All metrics: full name, type, help text. For the manual page.
pub(crate) fn metrics() -> impl Iterator<Item = (String, &'static str, &'static str)> {
    let heads = OF_SPAWNER.iter().map(|(head, _)| head);
    let heads = heads.chain(OF_ALL.iter().map(|(head, _)| head)).chain([&KEYS_OTHER]);
    let heads = heads.chain([&STARTS, &START_SERVER, &START_FAILURES]);
    let heads = heads.chain(OF_KEY.iter().map(|(head, ..)| head));
    heads.map(|&(name, kind, help)| (format!("qmail_gate_{name}"), kind, help))
}

/// The sums of the keys without series of their own.
#[derive(Debug, Default)]
struct OtherKeys {
    keys: u64,
    running: f64,
    held: f64,
    away: f64,
    rate: f64,
}

/// Rounded to tenths.
fn tenths(rate: f64) -> f64 {
    (rate * 10.0).round() / 10.0
}

fn limit_value(limit: Limit) -> Option<f64> {
    match limit {
        Limit::AtMost(limit) => Some(f64::from(limit)),
        Limit::Unlimited => None,
    }
}

/// The whole text. `status` is the merged status of `spawners`. Of the keys that have no other reason for series of
/// their own, the `busiest` first ones get them.
pub(super) fn text(
    spawners: &[SpawnerStatus],
    status: &Status,
    starts: &[RemoteStatus],
    busiest: usize,
) -> String {
    let mut out = String::new();
    for (head, get) in OF_SPAWNER {
        begin(&mut out, head);
        for spawner in spawners {
            let number = spawner.number.to_string();
            let labels = match spawners.len() {
                1 => &[][..],
                _ => &[("spawner", &number[..])][..],
            };
            line(&mut out, head, labels, get(spawner));
        }
    }
    for (head, get) in OF_ALL {
        begin(&mut out, head);
        line(&mut out, head, &[], get(status));
    }
    write_starts(&mut out, starts);
    let (own, others) = divided(status, busiest);
    begin(&mut out, KEYS_OTHER);
    line(&mut out, KEYS_OTHER, &[], others.keys);
    let alone: Vec<_> = counted(spawners)
        .map(|spawner| (spawner.number.to_string(), merged(std::slice::from_ref(spawner))))
        .collect();
    let each: Vec<_> = alone
        .iter()
        .map(|(number, status)| {
            let keys = status.keys.iter().map(|key| ((key.kind, &key.name[..]), key));
            (&number[..], keys.collect::<HashMap<_, _>>())
        })
        .collect();
    for (head, get, sum) in OF_KEY {
        begin(&mut out, head);
        for key in &own {
            let labels = [("kind", key.kind.name()), ("key", &key.name[..])];
            if head.1 == "counter" && each.len() > 1 {
                for (number, keys) in &each {
                    if let Some(value) =
                        keys.get(&(key.kind, &key.name[..])).and_then(|&key| get(key))
                    {
                        let [kind, key] = labels;
                        line(&mut out, head, &[kind, key, ("spawner", number)], value);
                    }
                }
            } else if let Some(value) = get(key) {
                line(&mut out, head, &labels, value);
            }
        }
        if let Some(sum) = sum.filter(|_| others.keys > 0) {
            line(&mut out, head, &[("kind", "other"), ("key", "")], sum(&others));
        }
    }
    out
}

/// How qmail-remote is started: for each spawner, which its process tells apart.
fn write_starts(out: &mut String, starts: &[RemoteStatus]) {
    if starts.is_empty() {
        return;
    }
    let pids: Vec<String> = starts.iter().map(|one| one.pid.to_string()).collect();
    let each = || starts.iter().zip(&pids);
    begin(out, STARTS);
    for (one, pid) in each() {
        for (way, value) in
            [("server", one.by_server), ("exec", one.by_exec), ("spawn", one.by_spawn)]
        {
            line(out, STARTS, &[("way", way), ("pid", pid)], value);
        }
    }
    begin(out, START_SERVER);
    for (one, pid) in each() {
        line(out, START_SERVER, &[("pid", pid)], u8::from(one.server != 0));
    }
    begin(out, START_FAILURES);
    for (one, pid) in each() {
        line(out, START_FAILURES, &[("pid", pid)], one.failed);
    }
}

/// The keys with series of their own, in the order of the status, and the sums of the others.
fn divided(status: &Status, busiest: usize) -> (Vec<&KeyStatus>, OtherKeys) {
    let has_reason = |key: &&KeyStatus| {
        key.named || key.held > 0 || key.away > 0 || key.held_ever > 0 || key.busy > 0
    };
    let mut rest: Vec<_> = status.keys.iter().filter(|key| !has_reason(key)).collect();
    // By what it did as long as it is known, not by what it does now, so that it is the same ones each time.
    rest.sort_by(|a, b| (b.done, &a.name).cmp(&(a.done, &b.name)));
    let rest: HashSet<_> = rest.iter().skip(busiest).map(|key| (key.kind, &key.name)).collect();
    let is_own = |key: &&KeyStatus| !rest.contains(&(key.kind, &key.name));
    let (own, others): (Vec<_>, Vec<_>) = status.keys.iter().partition(is_own);
    let mut sum = OtherKeys {
        keys: status.unlisted.saturating_add(others.len() as u64),
        ..OtherKeys::default()
    };
    for key in others {
        sum.running += f64::from(key.running);
        sum.held += f64::from(key.held);
        sum.away += f64::from(key.away);
        sum.rate += key.rate;
    }
    if status.unlisted > 0 {
        // What runs and belongs to no key of the file.
        let of_own =
            |get: fn(&KeyStatus) -> u32| own.iter().map(|key| f64::from(get(key))).sum::<f64>();
        let running = f64::from(status.running());
        sum.running = sum.running.max(running - of_own(|key| key.running));
        sum.held = sum.held.max(f64::from(status.held) - of_own(|key| key.held));
    }
    (own, sum)
}

fn begin(out: &mut String, (name, kind, help): Metric) {
    let help = help.replace('\\', "\\\\");
    writeln!(out, "# HELP qmail_gate_{name} {help}\n# TYPE qmail_gate_{name} {kind}")
        .expect("memory can be written");
}

fn line(
    out: &mut String,
    (name, ..): Metric,
    labels: &[(&str, &str)],
    value: impl std::fmt::Display,
) {
    let quoted = |text: &str| text.replace('\\', "\\\\").replace('"', "\\\"");
    let labels: Vec<_> =
        labels.iter().map(|(name, text)| format!("{name}=\"{}\"", quoted(text))).collect();
    let labels = match labels[..] {
        [] => String::new(),
        _ => format!("{{{}}}", labels.join(",")),
    };
    writeln!(out, "qmail_gate_{name}{labels} {value}").expect("memory can be written");
}
