//! The keys of a simulation, with their figures. When there are too many, those that were never limited are added up.

use std::collections::HashMap;

use qpatch_gate::name::{NAME_MAX, domain_of, without_root};
use qpatch_gate::rules::{KeyKind, Rules};
use qpatch_gate::table::{Cap, Limit};
use serde::Serialize;

use super::curves::KeyCurves;

/// When there are more keys than this, those that were never limited are added up in one.
pub(super) const KEYS_MAX: usize = 100_000;

/// A key, with its figures in the log and under the limits.
#[derive(Debug)]
pub(super) struct SimulatedKey {
    pub(super) kind: KeyKind,
    pub(super) name: Vec<u8>,
    /// An address that counts under this key.
    pub(super) recipient: Vec<u8>,
    pub(super) cap: Cap,
    /// How many the log has that are not over by [`super::replay`]'s account.
    pub(super) open: u32,
    /// How many run in the log.
    pub(super) open_now: u32,
    pub(super) open_peak: u32,
    pub(super) running: u32,
    pub(super) peak: u32,
    /// Waiting or running.
    pub(super) live: u32,
    pub(super) deliveries: u64,
    pub(super) waited: u64,
    pub(super) waited_us: u64,
    pub(super) waited_max_us: u64,
    pub(super) busy: u64,
    /// Deliveries that would never have started, because the limit is 0.
    pub(super) never: u64,
    /// Deliveries that were refused as too many at once, or reached no server.
    pub(super) objections: u64,
    /// Of these, those that would have gone back as busy.
    pub(super) refused: u64,
    /// Deferred because no connection succeeded.
    pub(super) suspended: u64,
    /// Of those that waited: fewer ran than the limit, but the server had refused one shortly before.
    pub(super) waited_after_refusal: u64,
    /// The lowest limit that was learned.
    pub(super) lowest: Limit,
    /// When its last delivery ended with limits,
    pub(super) last_end_us: u64,
    /// and in the log.
    pub(super) log_end_us: u64,
    /// For a picture; None: there will be none.
    pub(super) curves: Option<Box<KeyCurves>>,
}

impl SimulatedKey {
    /// Writes down how many run and wait now.
    pub(super) fn draw(&mut self, now_us: u64) {
        if let Some(curves) = &mut self.curves {
            curves.running.set(now_us, self.running);
            curves.waiting.set(now_us, self.live - self.running);
        }
    }

    fn is_forgettable(&self) -> bool {
        let did_nothing = self.waited == 0 && self.busy == 0 && self.never == 0;
        self.open == 0 && self.live == 0 && did_nothing && self.objections == 0
    }
}

/// The sum of the keys that have been forgotten.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub(super) struct ForgottenKeys {
    pub(super) keys: u64,
    pub(super) deliveries: u64,
    pub(super) peak_before: u32,
}

/// The numbers of the keys.
#[derive(Debug)]
pub(super) struct KeyIndex {
    /// By name and kind.
    index: HashMap<Vec<u8>, u32>,
    free: Vec<u32>,
    name: Vec<u8>,
    sweep_at: usize,
    pub(super) forgotten: ForgottenKeys,
    /// Whether new keys have curves.
    pub(super) records: bool,
}

impl KeyIndex {
    pub(super) fn new() -> Self {
        Self {
            index: HashMap::new(),
            free: Vec::new(),
            name: Vec::new(),
            sweep_at: KEYS_MAX,
            forgotten: ForgottenKeys::default(),
            records: false,
        }
    }

    /// The number of the key of a recipient in `keys`; a new key is added to them.
    pub(super) fn key(
        &mut self,
        keys: &mut Vec<SimulatedKey>,
        rules: &Rules,
        recipient: &[u8],
    ) -> u32 {
        let domain = domain_of(recipient);
        let (kind, cap) = match domain {
            // Without an @ there is no domain, and the gate lets it pass.
            None => {
                self.name.clear();
                self.name.extend_from_slice(b"(no @)");
                (KeyKind::Domain, Cap::NONE)
            }
            Some(domain) => {
                let domain = without_root(domain);
                let domain = &domain[domain.len().saturating_sub(NAME_MAX)..];
                let found = rules.resolve(domain);
                self.name.clear();
                self.name.extend_from_slice(found.name);
                self.name.make_ascii_lowercase();
                (found.kind, found.cap)
            }
        };
        self.name.push(kind as u8);
        if let Some(&at) = self.index.get(&self.name) {
            return at;
        }
        if self.index.len() >= self.sweep_at {
            self.sweep(keys);
        }
        let address = domain.map_or(b"x".to_vec(), |domain| {
            let domain = &domain[domain.len().saturating_sub(NAME_MAX + 1)..];
            [b"@", domain].concat()
        });
        let key = SimulatedKey {
            kind,
            name: self.name[..self.name.len() - 1].to_vec(),
            recipient: address,
            cap,
            open: 0,
            open_now: 0,
            open_peak: 0,
            running: 0,
            peak: 0,
            live: 0,
            deliveries: 0,
            waited: 0,
            waited_us: 0,
            waited_max_us: 0,
            busy: 0,
            never: 0,
            objections: 0,
            refused: 0,
            suspended: 0,
            waited_after_refusal: 0,
            lowest: cap.limit,
            last_end_us: 0,
            log_end_us: 0,
            curves: self.records.then(Box::default),
        };
        let at = match self.free.pop() {
            Some(at) => {
                keys[at as usize] = key;
                at
            }
            None => {
                keys.push(key);
                keys.len() as u32 - 1
            }
        };
        self.index.insert(self.name.clone(), at);
        at
    }

    /// Forgets the keys that were never limited, and adds their figures to `forgotten`.
    fn sweep(&mut self, keys: &mut [SimulatedKey]) {
        let Self { index, free, forgotten, .. } = self;
        index.retain(|_, &mut at| {
            let key = &mut keys[at as usize];
            let forget = key.is_forgettable();
            if forget {
                key.curves = None;
                forgotten.keys += 1;
                forgotten.deliveries += key.deliveries;
                forgotten.peak_before = forgotten.peak_before.max(key.open_peak);
                key.deliveries = 0;
                free.push(at);
            }
            !forget
        });
        self.sweep_at = KEYS_MAX.max(2 * self.index.len());
    }
}
