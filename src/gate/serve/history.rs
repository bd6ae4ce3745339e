//! The last hour, for the page to draw: how many deliveries ran, were held and were away, every ten seconds.
//!
//! Memory is bounded, whatever names the senders of mail choose: [`KEYS`] keys with [`SAMPLES`] samples each, less than
//! half a megabyte with the longest names. A key that comes in takes the place of the one that was least busy over the
//! last minutes, if it is busier now than that one was. So a busy key stays through an idle minute.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use qpatch_gate::rules::KeyKind;
use qpatch_gate_status::{KeyStatus, Status};
use serde::Serialize;

use crate::gate::text::{key_name, limit_value};

/// The time between two samples.
pub(super) const EVERY: Duration = Duration::from_secs(10);
/// The most samples: an hour.
const SAMPLES: usize = 360;
/// The most keys that are followed.
const KEYS: usize = 40;
/// The mean over the last samples changes by this part of the difference with each sample: half of what is older than
/// four minutes is forgotten.
const MEAN_PART: f64 = 1.0 / 32.0;

/// What a key did at one time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Sample {
    running: u32,
    held: u32,
    away: u32,
    /// The limit that was in force; None is unlimited.
    limit: Option<u32>,
}

impl Sample {
    fn of(key: &KeyStatus) -> Self {
        let limit = limit_value(key.effective);
        Self { running: key.running, held: key.held, away: key.away, limit }
    }

    fn activity(self) -> f64 {
        f64::from(self.running) + f64::from(self.held) + f64::from(self.away)
    }
}

/// What is known of one key. The samples are as many as those of [`History`], or fewer if it came later. None: there
/// was no status at that time.
#[derive(Debug, Default)]
struct Track {
    samples: VecDeque<Option<Sample>>,
    /// The mean of its activity over the last minutes.
    mean: f64,
}

impl Track {
    fn add(&mut self, sample: Option<Sample>) {
        if self.samples.len() == SAMPLES {
            self.samples.pop_front();
        }
        self.samples.push_back(sample);
        let activity = sample.map_or(0.0, Sample::activity);
        self.mean = match self.samples.len() {
            1 => activity,
            _ => self.mean + (activity - self.mean) * MEAN_PART,
        };
    }

    fn report<'a>(&self, kind: Option<KeyKind>, key: &'a str) -> TrackReport<'a> {
        let figures = |get: fn(Sample) -> Option<u32>| {
            self.samples.iter().map(|sample| sample.and_then(get)).collect()
        };
        TrackReport {
            kind: kind.map(KeyKind::name),
            key,
            title: kind.map_or_else(|| "all keys".to_string(), |kind| key_name(kind, key)),
            running: figures(|sample| Some(sample.running)),
            held: figures(|sample| Some(sample.held)),
            away: figures(|sample| Some(sample.away)),
            limit: figures(|sample| sample.limit),
        }
    }
}

/// The samples of the last hour.
#[derive(Debug, Default)]
pub(super) struct History {
    all: Track,
    keys: HashMap<(KeyKind, String), Track>,
}

impl History {
    /// Adds a sample. `None`: there is no status now. Figures of a process that is gone are no sample either.
    pub(super) fn add(&mut self, look: Option<(&Status, Option<bool>)>) {
        let Some((status, None | Some(true))) = look else {
            self.all.add(None);
            self.keys.values_mut().for_each(|track| track.add(None));
            return;
        };
        let away = status.keys.iter().fold(0u32, |sum, key| sum.saturating_add(key.away));
        self.all.add(Some(Sample {
            running: status.running(),
            held: status.held,
            away,
            limit: Some(status.slots.min(status.concurrency_remote)),
        }));
        let keys = &status.keys;
        let places: HashMap<_, _> =
            keys.iter().zip(0..).map(|(key, at)| ((key.kind, key.name.as_str()), at)).collect();
        let mut is_known = vec![false; keys.len()];
        for ((kind, name), track) in &mut self.keys {
            let place = places.get(&(*kind, name.as_str()));
            // A key that is not listed does nothing, or less than those that are.
            track.add(Some(place.map_or_else(Sample::default, |&at: &usize| {
                is_known[at] = true;
                Sample::of(&keys[at])
            })));
        }
        let new = keys.iter().zip(is_known).filter(|(_, is_known)| !is_known);
        let mut new: Vec<_> = new
            .map(|(key, _)| ((key.kind, key.name.as_str()), Sample::of(key)))
            .filter(|(_, now)| now.activity() > 0.0)
            .collect();
        new.sort_by(|(a, x), (b, y)| {
            y.activity().total_cmp(&x.activity()).then_with(|| a.1.cmp(b.1))
        });
        for ((kind, name), sample) in new.into_iter().take(KEYS) {
            if self.keys.len() == KEYS {
                let least = self
                    .keys
                    .iter()
                    .min_by(|(a, x), (b, y)| x.mean.total_cmp(&y.mean).then_with(|| a.1.cmp(&b.1)));
                let Some((least, track)) = least else { return };
                if track.mean >= sample.activity() {
                    return;
                }
                let least = least.clone();
                self.keys.remove(&least);
            }
            let mut track = Track::default();
            track.add(Some(sample));
            self.keys.insert((kind, name.to_string()), track);
        }
    }

    /// What is served as JSON: the busiest keys first.
    pub(super) fn report(&self) -> HistoryReport<'_> {
        let mut keys: Vec<_> = self.keys.iter().collect();
        keys.sort_by(|(a, x), (b, y)| y.mean.total_cmp(&x.mean).then_with(|| a.1.cmp(&b.1)));
        HistoryReport {
            every_secs: EVERY.as_secs(),
            samples_max: SAMPLES,
            all: self.all.report(None, ""),
            keys: keys
                .into_iter()
                .map(|((kind, name), track)| track.report(Some(*kind), name))
                .collect(),
        }
    }
}

/// The history as JSON. The last figures are of the same time everywhere.
#[derive(Debug, Serialize)]
pub(super) struct HistoryReport<'a> {
    every_secs: u64,
    samples_max: usize,
    /// All keys together; the limit is the number of slots.
    all: TrackReport<'a>,
    keys: Vec<TrackReport<'a>>,
}

#[derive(Debug, Serialize)]
struct TrackReport<'a> {
    /// null: all keys together.
    kind: Option<&'static str>,
    key: &'a str,
    /// The key as the page names it.
    title: String,
    /// null: there was no status at that time.
    running: Vec<Option<u32>>,
    held: Vec<Option<u32>>,
    away: Vec<Option<u32>>,
    /// null is unlimited.
    limit: Vec<Option<u32>>,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A status with these keys, of which so many run.
    fn status(keys: &[(&str, u32)]) -> Status {
        let mut text = "qpatch-gate\t1\t1\nslots\t100\t90\t50\t10\n".to_string();
        for (name, running) in keys {
            text.push_str(&format!(
                "key\tdomain\t{name}\t20\t{running}\t0\t0\t0\t0\t0\t0\t0\t20\t0\t0\t-\n"
            ));
        }
        text.push_str("end\t1\n");
        Status::parse(text.as_bytes()).expect("a status")
    }

    #[test]
    fn an_hour_is_kept_with_its_gaps() {
        let mut history = History::default();
        history.add(None);
        history.add(Some((&status(&[("a.example", 3)]), Some(true))));
        history.add(Some((&status(&[]), None)));
        history.add(Some((&status(&[("a.example", 3)]), Some(false))));
        let report = history.report();
        let all = [None, Some(40), Some(40), None];
        assert_eq!((&report.all.running[..], report.all.limit[1]), (&all[..], Some(90)));
        assert_eq!(report.keys[0].running, [Some(3), Some(0), None], "it came later");
        assert_eq!(report.keys[0].limit, [Some(20), None, None]);
        for _ in 0..2 * SAMPLES {
            history.add(None);
        }
        let report = history.report();
        assert_eq!((report.all.held.len(), report.keys[0].away.len()), (SAMPLES, SAMPLES));
    }

    #[test]
    fn the_busiest_keys_are_kept() {
        let names: Vec<String> = (0..4000).map(|n| format!("d{n:04}.example")).collect();
        let many: Vec<_> = names.iter().zip(1u32..).map(|(name, n)| (&name[..], n)).collect();
        let mut history = History::default();
        history.add(Some((&status(&many), None)));
        let busiest = |history: &History| history.report().keys[0].key.to_string();
        assert_eq!((history.keys.len(), busiest(&history).as_str()), (KEYS, "d3999.example"));
        // One that is less busy does not come in, one that is busier does, and the idle ones stay.
        history.add(Some((&status(&[("less.example", 3800), ("more.example", 3999)]), None)));
        let has = |name: &str| history.keys.contains_key(&(KeyKind::Domain, name.to_string()));
        assert!(!has("less.example") && has("more.example") && has("d3999.example"));
        assert_eq!(history.keys.len(), KEYS);
        // When they have long been idle, it does.
        for _ in 0..20 {
            history.add(Some((&status(&[]), None)));
        }
        history.add(Some((&status(&[("less.example", 3800)]), None)));
        assert!(history.keys.contains_key(&(KeyKind::Domain, "less.example".to_string())));
        assert!(serde_json::to_string(&history.report()).is_ok());
    }
}
