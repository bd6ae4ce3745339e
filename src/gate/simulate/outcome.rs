//! The result of a simulation, as a table and as JSON.

use std::io::{self, Write};
use std::path::Path;

use qpatch_gate::learn::Learning;
use qpatch_gate::rules::KeyKind;
use qpatch_gate::table::Limit;
use serde::Serialize;

use super::account::{LineCounts, LogAccount};
use super::keys::{ForgottenKeys, SimulatedKey};
use super::machine::{MailSystem, WAITING_MAX};
use super::replay::{Replay, SlotSource};
use super::tried::TriesOutcome;
use crate::gate::text::{cap_text, escaped, key_name, limit_text, limit_value};
use crate::output::{Side, count, table};

/// The most keys in the table.
const ROWS_MAX: usize = 40;

/// What a table is, in short.
#[derive(Clone, Copy, Debug)]
pub(super) struct TableFigures {
    pub(super) lines: u64,
    pub(super) default: Limit,
}

/// The result. Times are in seconds.
#[derive(Debug, Serialize)]
pub(super) struct SimulationOutcome {
    file: String,
    #[serde(skip)]
    rules: u64,
    #[serde(skip)]
    default: Limit,
    concurrencyremote: u32,
    #[serde(skip)]
    slots: SlotSource,
    lines: LineCounts,
    deliveries: u64,
    seconds: f64,
    /// The most at once, of all domains.
    peak_before: u32,
    /// The most that ran or were held at once, with limits.
    slots_with_limits: u32,
    held_peak: u32,
    waited: u64,
    mean_wait: f64,
    max_wait: f64,
    /// Over all deliveries.
    added_delay: f64,
    busy_answers: u64,
    never_started: u64,
    /// Deliveries that were refused as too many at once, or reached no server.
    objections: u64,
    /// How much later the last one ends; below 0, how much earlier.
    last_end_later: f64,
    keys: Vec<KeyOutcome>,
    others: ForgottenKeys,
    /// What --try asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) tries: Option<TriesOutcome>,
}

#[derive(Debug, Serialize)]
struct KeyOutcome {
    #[serde(skip)]
    key_kind: KeyKind,
    kind: &'static str,
    key: String,
    #[serde(skip)]
    at_most: Limit,
    /// null is unlimited.
    limit: Option<u32>,
    /// Its rates; left out if there are none.
    #[serde(skip_serializing_if = "String::is_empty")]
    rates: String,
    deliveries: u64,
    peak_before: u32,
    peak_with_limits: u32,
    waited: u64,
    mean_wait: f64,
    max_wait: f64,
    added_delay: f64,
    busy_answers: u64,
    never_started: u64,
    learns: bool,
    objections: u64,
    /// Of the objections, those that would have gone back as busy.
    refused: u64,
    /// Deferred because no connection succeeded.
    suspended: u64,
    /// Of those that waited, those whose fixed limit was not reached: the gate pauses after a refusal.
    waited_after_refusal: u64,
    #[serde(skip)]
    lowest: Limit,
    /// null is unlimited.
    lowest_limit: Option<u32>,
}

/// The keys that had mail, those with most waiting first.
pub(super) fn ranked(machine: &MailSystem) -> Vec<&SimulatedKey> {
    let mut keys: Vec<&SimulatedKey> =
        machine.keys.iter().filter(|key| key.deliveries > 0).collect();
    keys.sort_by(|a, b| {
        let rank = |key: &SimulatedKey| (key.never, key.waited_us, key.open_peak, key.deliveries);
        rank(b).cmp(&rank(a)).then_with(|| (a.kind.name(), &a.name).cmp(&(b.kind.name(), &b.name)))
    });
    keys
}

fn secs(us: u64) -> f64 {
    us as f64 / 1e6
}

fn mean(us: u64, of: u64) -> f64 {
    if of == 0 { 0.0 } else { secs(us) / of as f64 }
}

impl SimulationOutcome {
    pub(super) fn new(
        path: &Path,
        TableFigures { lines: rules, default }: TableFigures,
        run: &Replay,
        account: &LogAccount,
    ) -> Self {
        let machine = &run.machine;
        let keys = ranked(machine);
        let sum = |get: fn(&SimulatedKey) -> u64| keys.iter().map(|key| get(key)).sum::<u64>();
        let waited_us = sum(|key| key.waited_us);
        let row = |key: &&SimulatedKey| KeyOutcome {
            key_kind: key.kind,
            kind: key.kind.name(),
            key: escaped(&key.name),
            at_most: key.cap.limit,
            limit: limit_value(key.cap.limit),
            rates: key.cap.rates.to_string(),
            deliveries: key.deliveries,
            peak_before: key.open_peak,
            peak_with_limits: key.peak,
            waited: key.waited,
            mean_wait: mean(key.waited_us, key.waited),
            max_wait: secs(key.waited_max_us),
            added_delay: mean(key.waited_us, key.deliveries - key.never),
            busy_answers: key.busy,
            never_started: key.never,
            learns: key.cap.learning == Learning::On,
            objections: key.objections,
            refused: key.refused,
            suspended: key.suspended,
            waited_after_refusal: key.waited_after_refusal,
            lowest: key.lowest,
            lowest_limit: limit_value(key.lowest),
        };
        let waited = sum(|key| key.waited);
        let never = sum(|key| key.never);
        Self {
            file: path.display().to_string(),
            rules,
            default,
            concurrencyremote: machine.slots.len() as u32,
            slots: run.slots,
            lines: account.lines.clone(),
            deliveries: run.deliveries,
            seconds: secs(account.clock.now_us),
            peak_before: run.running_peak,
            slots_with_limits: machine.in_use_peak,
            held_peak: machine.held_peak,
            waited,
            mean_wait: mean(waited_us, waited),
            max_wait: secs(keys.iter().map(|key| key.waited_max_us).max().unwrap_or(0)),
            added_delay: mean(waited_us, run.deliveries - never),
            busy_answers: sum(|key| key.busy),
            never_started: never,
            objections: sum(|key| key.objections),
            last_end_later: (machine.last_end_us as i64 - run.last_end_us as i64) as f64 / 1e6,
            keys: keys.iter().map(row).collect(),
            others: machine.key_index.forgotten,
            tries: None,
        }
    }

    /// What is simulated: the limits and the log.
    pub(super) fn heads(&self) -> (String, String) {
        let from = match self.slots {
            SlotSource::Given => "",
            SlotSource::Status => " (as the log says)",
            SlotSource::Used => " (the log has no status lines)",
        };
        let limits = format!(
            "{}: {}, default {}; concurrencyremote {}{from}",
            self.file,
            count(self.rules, "line"),
            limit_text(self.default),
            self.concurrencyremote
        );
        let log = format!(
            "{} to remote recipients in {}, {} at once at most",
            deliveries(self.deliveries),
            time(self.seconds),
            self.peak_before
        );
        (limits, log)
    }

    /// The figures of the whole: their names and values.
    pub(super) fn figures(&self) -> Vec<(&'static str, String)> {
        let end =
            if self.last_end_later < 0.0 { "last end earlier by" } else { "last end later by" };
        let mut figures = vec![
            ("deliveries", self.deliveries.to_string()),
            ("at once in the log", self.peak_before.to_string()),
            ("wait", self.waited.to_string()),
            ("mean wait", time(self.mean_wait)),
            ("longest wait", time(self.max_wait)),
            (end, time(self.last_end_later.abs())),
        ];
        if self.objections > 0 {
            figures.push(("refused, or no connection", self.objections.to_string()));
        }
        if self.never_started > 0 {
            figures.push(("never start", self.never_started.to_string()));
        }
        figures
    }

    pub(super) fn table(&self, out: &mut dyn Write) -> io::Result<()> {
        let (limits, log) = self.heads();
        writeln!(out, "limits: {limits}")?;
        writeln!(out, "log:    {log}")?;
        writeln!(
            out,
            "result: {} would have waited, {} in the mean and {} at most; {}; the last one ends {} {}",
            self.waited,
            time(self.mean_wait),
            time(self.max_wait),
            count(self.busy_answers, "busy answer"),
            time(self.last_end_later.abs()),
            if self.last_end_later < 0.0 { "earlier" } else { "later" }
        )?;
        for note in self.notes() {
            writeln!(out, "note:   {note}")?;
        }
        writeln!(out)?;
        let columns = [
            ("KEY", Side::Left),
            ("LIMIT", Side::Right),
            ("DELIVERIES", Side::Right),
            ("PEAK", Side::Right),
            ("WITH LIMIT", Side::Right),
            ("WAITED", Side::Right),
            ("MEAN WAIT", Side::Right),
            ("MAX WAIT", Side::Right),
            ("ADDED DELAY", Side::Right),
            ("BUSY", Side::Right),
        ];
        let row = |row: &KeyOutcome| {
            [
                key_name(row.key_kind, &row.key),
                cap_text(row.at_most, &row.rates),
                row.deliveries.to_string(),
                row.peak_before.to_string(),
                row.peak_with_limits.to_string(),
                row.waited.to_string(),
                time(row.mean_wait),
                time(row.max_wait),
                time(row.added_delay),
                row.busy_answers.to_string(),
            ]
        };
        let mut rows: Vec<_> = self.keys.iter().take(ROWS_MAX).map(row).collect();
        rows.push([
            "all".to_string(),
            String::new(),
            self.deliveries.to_string(),
            self.peak_before.to_string(),
            String::new(),
            self.waited.to_string(),
            time(self.mean_wait),
            time(self.max_wait),
            time(self.added_delay),
            self.busy_answers.to_string(),
        ]);
        table(out, columns, &rows)?;
        let more = self.keys.len().saturating_sub(ROWS_MAX) as u64 + self.others.keys;
        if more > 0 {
            writeln!(
                out,
                "{} of less interest left out; --format json has more",
                count(more, "key")
            )?;
        }
        self.learned(out)?;
        self.tries.as_ref().map_or(Ok(()), |tries| tries.table(out))
    }

    /// Prints the keys that learn and whose servers objected.
    fn learned(&self, out: &mut dyn Write) -> io::Result<()> {
        let columns = [
            ("LEARNS", Side::Left),
            ("LIMIT", Side::Right),
            ("LOWEST", Side::Right),
            ("OBJECTIONS", Side::Right),
            ("BACK AS BUSY", Side::Right),
            ("SUSPENDED", Side::Right),
        ];
        let rows: Vec<_> = self
            .learning()
            .take(ROWS_MAX)
            .map(|row| {
                [
                    key_name(row.key_kind, &row.key),
                    limit_text(row.at_most),
                    limit_text(row.lowest),
                    row.objections.to_string(),
                    row.refused.to_string(),
                    row.suspended.to_string(),
                ]
            })
            .collect();
        if rows.is_empty() {
            return Ok(());
        }
        writeln!(out)?;
        table(out, columns, &rows)
    }

    fn learning(&self) -> impl Iterator<Item = &KeyOutcome> {
        self.keys.iter().filter(|row| row.learns && row.objections > 0)
    }

    /// Notes about how far the figures can be trusted.
    pub(super) fn notes(&self) -> Vec<String> {
        let lines = &self.lines;
        let mut notes = Vec::new();
        let mut note = |number: u64, text: String| {
            if number > 0 {
                notes.push(text);
            }
        };
        let unusable = lines.no_stamp + lines.foreign;
        note(
            unusable,
            format!(
                "{} of {} not used: {} without a time stamp, {} not of qmail-send; the first is {}",
                unusable,
                count(lines.read, "line"),
                lines.no_stamp,
                lines.foreign,
                lines.first_unusable
            ),
        );
        note(
            lines.others,
            format!(
                "{} of other programs: {}",
                count(lines.others, "line"),
                lines.other_programs.join(", ")
            ),
        );
        for cut in &lines.cut {
            note(1, format!("ends too early, and is used as far as it goes: {cut}"));
        }
        for repeated in &lines.repeated {
            note(1, format!("{repeated}, and is read once"));
        }
        for copies in &lines.copies {
            note(1, format!("{copies}, so what it has counts twice: leave it out"));
        }
        note(
            lines.reordered.into(),
            "the files are read in the order of their first times, not as they were named"
                .to_string(),
        );
        note(
            lines.queues.saturating_sub(1),
            format!(
                "{} queues or hosts have numbers of their own; what they deliver counts together here",
                lines.queues
            ),
        );
        note(
            lines.ends_only,
            format!("{} that began before the log", count(lines.ends_only, "end")),
        );
        note(
            lines.starts_only,
            format!(
                "{} whose end is not in the log, taken as ended with it or at a restart",
                count(lines.starts_only, "beginning")
            ),
        );
        note(
            lines.restarts,
            format!("the numbers of deliveries started over {}", times(lines.restarts)),
        );
        note(lines.set_back, format!("the clock was set back {}", times(lines.set_back)));
        note(
            lines.clock_changes,
            format!(
                "daylight saving time began or ended {}: an hour is missing or comes twice",
                times(lines.clock_changes)
            ),
        );
        note(
            lines.gaps,
            format!("no line for more than a day {}, each taken as one day", times(lines.gaps)),
        );
        note(
            lines.whole_seconds.into(),
            "the time stamps have whole seconds, so times and peaks are accurate to one second only"
                .to_string(),
        );
        let learned = self.learning().count() as u64;
        let back: u64 = self.keys.iter().map(|row| row.refused).sum();
        note(
            learned,
            "deliveries that were refused in the log are refused here, too, even with fewer at once; so limits fall \
             lower and rise later than they would"
                .to_string(),
        );
        note(
            back,
            format!(
                "gone back as busy: {back}; not tried again here, because their next tries are in the log"
            ),
        );
        note(
            u64::from(learned == 0) * self.objections,
            format!(
                "{} refused as too many at once, or reached no server; no line for them learns",
                deliveries(self.objections)
            ),
        );
        let paused: u64 = self.keys.iter().map(|row| row.waited_after_refusal).sum();
        note(
            paused,
            format!(
                "{paused} of those that would have waited found fewer running than their limit: for some seconds after \
                 a refusal the gate starts less than a limit allows; what was refused in the log is refused here, \
                 too, even with fewer at once, so these waits may be too long"
            ),
        );
        let has_times = lines.held_already > 0;
        note(
            lines.held_already,
            format!(
                "this server has a gate: {} held and {} in the log; both count as deliveries that waited",
                deliveries(lines.held_already),
                count(lines.busy_already, "busy answer")
            ),
        );
        note(
            u64::from(!has_times) * lines.busy_already,
            format!(
                "the log has {}, but does not say what was held (an older qpatch): held deliveries count as running",
                count(lines.busy_already, "busy answer")
            ),
        );
        note(
            lines.suspended_already,
            format!(
                "{} in the log that a server is not tried for some time: left out",
                count(lines.suspended_already, "answer")
            ),
        );
        note(
            lines.still_away,
            format!("{} still away at the end of the log: left out", deliveries(lines.still_away)),
        );
        note(
            lines.left_out,
            format!(
                "{} left out because {WAITING_MAX} waited: the limits are far below what was sent",
                lines.left_out
            ),
        );
        note(
            self.never_started,
            format!("{} would not have started: their limit is 0", self.never_started),
        );
        notes
    }
}

fn deliveries(number: u64) -> String {
    if number == 1 { "1 delivery".to_string() } else { format!("{number} deliveries") }
}

fn times(number: u64) -> String {
    if number == 1 { "once".to_string() } else { format!("{number} times") }
}

fn time(seconds: f64) -> String {
    format!("{seconds:.1} s")
}
