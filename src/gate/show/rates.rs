//! Deliveries a second of each key, from the statuses that were read in the last seconds.

use std::collections::{HashMap, VecDeque};

use qpatch_gate::rules::KeyKind;
use qpatch_gate_status::{KeyStatus, Status};

/// How many deliveries each key had done when a status was written, in seconds since 1970.
#[derive(Debug)]
pub(super) struct Reading {
    written_secs: u64,
    pid: u32,
    done: HashMap<(KeyKind, String), u64>,
}

/// The readings of the last seconds.
#[derive(Debug, Default)]
pub(in crate::gate) struct Readings(pub(super) VecDeque<Reading>);

/// The rate is the mean over this many seconds.
const RATE_SECS: u64 = 10;

impl Readings {
    pub(super) fn add(&mut self, status: &Status) {
        if self.0.back().is_some_and(|last| last.pid != status.pid) {
            self.0.clear();
        }
        if self.0.back().is_some_and(|last| last.written_secs == status.written_secs) {
            return;
        }
        let done = status.keys.iter().map(|key| ((key.kind, key.name.clone()), key.done)).collect();
        let Status { written_secs, pid, .. } = *status;
        self.0.push_back(Reading { written_secs, pid, done });
    }

    /// Deliveries of a key a second: computed from two readings, or the gate's own rate if there is only one.
    pub(super) fn rate(&self, status: &Status, key: &KeyStatus, now_secs: u64) -> f64 {
        // A status that is one or two seconds old is current. The gate writes while something happens, so nothing has
        // happened since an older one.
        let idle_secs = now_secs.saturating_sub(status.written_secs.saturating_add(2));
        let end_secs = status.written_secs + idle_secs;
        let name = (key.kind, key.name.clone());
        let old = self.0.iter().find_map(|reading| {
            let old_secs = end_secs.saturating_sub(reading.written_secs);
            let done = *reading.done.get(&name)?;
            ((1..=RATE_SECS).contains(&old_secs)).then_some((old_secs, done))
        });
        match old {
            Some((secs, done)) if self.0.len() > 1 => {
                // The gate may have forgotten the key since, which then began at 0 again.
                key.done.checked_sub(done).unwrap_or(key.done) as f64 / secs as f64
            }
            _ => {
                let keep = 1.0 - 1.0 / RATE_SECS as f64;
                key.rate * keep.powi(i32::try_from(idle_secs).unwrap_or(i32::MAX))
            }
        }
    }

    pub(super) fn forget(&mut self, now_secs: u64) {
        while self.0.len() > 1 && self.0[0].written_secs.saturating_add(2 * RATE_SECS) < now_secs {
            self.0.pop_front();
        }
    }
}
