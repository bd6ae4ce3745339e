//! The keys that have deliveries, or are remembered, by name. Memory is bounded: idle keys beyond [`RECENT_KEYS`] and
//! [`CONTENDED_KEYS`] are forgotten, the oldest first.

#![forbid(unsafe_code)]

use crate::control::limit::Cap;
use crate::control::name::{NAME_MAX, has_upper, without_root};
use crate::control::site::{SiteReason, Standing};
use crate::core::host_share::HostShares;
use crate::core::key::{Key, RatePauses};
use crate::core::learn::Learned;
use crate::core::other_spawners::PlaceTurn;
use crate::core::pace::Pace;
use crate::core::rate::{ForgottenStarts, StartRate};
use crate::core::recall::Recall;
use crate::core::rules::{KeyKind, Rules};
use crate::core::start_log::{StartLog, key_id};
use crate::util::index::Index;
use crate::util::list::{EMPTY, Link, List, NONE, UNLINKED, append, unlink};
use crate::util::memory::{self, OutOfMemory};

/// How many idle keys are remembered that never reached their limit. They keep their figures.
pub(super) const RECENT_KEYS: usize = 256;

/// How many idle keys are remembered that reached their limit, for their pace and what was learned.
pub(super) const CONTENDED_KEYS: usize = 4096;

/// How long an idle key is remembered, in microseconds: an hour.
pub(super) const REMEMBERED_US: u64 = 3600 * 1_000_000;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum EntryState {
    /// The key has slots, or domains that count under it.
    Active,
    /// In `Keys::recent`.
    IdleRecent,
    /// In `Keys::contended`.
    IdleContended,
    /// The entry is free.
    Free,
}

/// A domain, or the relay of a sender: the destination of a delivery.
#[derive(Debug)]
pub(super) struct Domain {
    /// The key that its deliveries count under: the one in its own entry, unless it is in a group, behind a relay or of
    /// a site.
    pub(super) key: u32,
    /// Its standing at a site, if it counts there because of an address. Then it has at most a share of the site's
    /// places, and the rest of its mail is away under its own number. Failures without an address count for the domain
    /// alone.
    pub(super) standing: Option<Standing>,
    /// Slots in use by its deliveries.
    pub(super) slots: u32,
}

/// A name, as a domain and as a key.
///
/// Nearly every domain is its own key. So both are in one entry, and a delivery needs one look-up and one place in
/// memory. A group and a relay use only the key. A domain that counts under another key uses its own key for its name;
/// a domain of a site also for its number, its mail away and its pauses.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) domain: Domain,
    pub(super) key: Key,
    /// The hash of the key's kind and name.
    pub(super) hash: u64,
    /// Other domains that count under the key.
    pub(super) members: u32,
    pub(super) state: EntryState,
    pub(super) idle_since_us: u64,
    /// It is in `Gate::keys_away`.
    pub(super) in_away_list: bool,
    /// It is in `Gate::room_queue`.
    pub(super) in_room_queue: bool,
}

impl Entry {
    fn free() -> Self {
        Self {
            domain: Domain { key: NONE, standing: None, slots: 0 },
            key: Key::new(KeyKind::Domain, Vec::new(), Cap::NONE),
            hash: 0,
            members: 0,
            state: EntryState::Free,
            idle_since_us: 0,
            in_away_list: false,
            in_room_queue: false,
        }
    }

    pub(super) fn is_idle(&self) -> bool {
        self.domain.slots == 0 && self.members == 0 && !self.in_away_list
    }
}

#[derive(Debug)]
pub(super) struct Keys {
    pub(super) all: Vec<Entry>,
    /// The link of each entry: in a list of idle entries, or in that of the ready ones (which are active). They are
    /// apart from the entries because a change of a list touches the neighbours as well.
    pub(super) links: Vec<Link>,
    pub(super) free: Vec<u32>,
    pub(super) index: Index,
    pub(super) recent: List,
    pub(super) recent_len: usize,
    pub(super) contended: List,
    pub(super) contended_len: usize,
    pub(super) last_number: u32,
    /// The starts of keys with rates that are not in memory.
    pub(super) forgotten: ForgottenStarts,
    /// The starts within the last hour and day. None while the keys are rebuilt.
    pub(super) start_log: Option<StartLog>,
    /// The shares of this host.
    pub(super) shares: HostShares,
}

impl Keys {
    pub(super) fn new(last_number: u32) -> Self {
        Self {
            last_number,
            forgotten: ForgottenStarts::default(),
            start_log: None,
            shares: HostShares::default(),
            all: Vec::new(),
            links: Vec::new(),
            free: Vec::new(),
            index: Index::default(),
            recent: EMPTY,
            recent_len: 0,
            contended: EMPTY,
            contended_len: 0,
        }
    }

    pub(super) fn hash(kind: KeyKind, name_hash: u64) -> u64 {
        name_hash.wrapping_add(Self::of_kind(kind))
    }

    pub(super) fn of_kind(kind: KeyKind) -> u64 {
        (kind as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15)
    }

    /// As in a [`crate::control::name_map::NameMap`], two names with the same 64 bits of hash are taken for the same.
    #[inline]
    pub(super) fn find(&self, hash: u64) -> Option<u32> {
        self.index.find(hash, |at| self.all[at as usize].hash == hash)
    }

    /// Returns an active entry: a new one, or one of the idle ones.
    pub(super) fn activate(
        &mut self,
        kind: KeyKind,
        name_hash: u64,
        name: &[u8],
        cap: Cap,
        now_us: u64,
        guess_secs: Option<f64>,
    ) -> Result<u32, OutOfMemory> {
        let hash = Self::hash(kind, name_hash);
        if let Some(at) = self.find(hash) {
            self.make_active(at);
            return Ok(at);
        }
        self.add(kind, hash, name, cap, now_us, guess_secs)
    }

    /// Makes a new active entry that counts under itself. No entry may have this hash.
    pub(super) fn add(
        &mut self,
        kind: KeyKind,
        hash: u64,
        name: &[u8],
        cap: Cap,
        now_us: u64,
        guess_secs: Option<f64>,
    ) -> Result<u32, OutOfMemory> {
        debug_assert!(self.find(hash).is_none());
        // One entry arrives, so one may go. `Keys::forget_old` removes the rest later.
        if self.recent_len > RECENT_KEYS {
            self.forget(self.recent.first);
        }
        if self.contended_len > CONTENDED_KEYS {
            self.forget(self.contended.first);
        }
        let at = match self.free.last() {
            Some(&at) => at,
            None => {
                self.free.try_reserve(self.all.len() + 1)?;
                self.links.try_reserve(1)?;
                memory::push(&mut self.all, Entry::free())?;
                self.links.push(UNLINKED);
                let at = self.all.len() as u32 - 1;
                self.free.push(at);
                at
            }
        };
        let entry = &mut self.all[at as usize];
        let key = &mut entry.key;
        key.name.clear();
        key.name.try_reserve(name.len())?;
        self.index.insert(hash, at)?;
        let start_rate = self.unknown_starts(kind, hash, name, &cap, now_us);
        let entry = &mut self.all[at as usize];
        let key = &mut entry.key;
        key.start_rate = start_rate;
        key.share = self.shares.of(Self::hash_of_share(kind, hash), cap.limit);
        key.name.extend_from_slice(name);
        if has_upper(name) {
            key.name.make_ascii_lowercase();
        }
        key.kind = kind;
        key.cap = cap;
        key.away_by_domain = 0;
        key.called_by_domain = 0;
        key.learned = Learned::NEW;
        key.pace = Pace::new(now_us, guess_secs);
        key.recall = Recall::default();
        // Entries of `Gate::pause_queue` and `Gate::poll_queue` may still belong to the key that was here before.
        key.queued_us = u64::MAX;
        key.in_waiting_candidates = false;
        key.in_poll_queue = false;
        key.blocked = false;
        key.announced = false;
        key.running_elsewhere = 0;
        key.place_turn = PlaceTurn::default();
        key.pause = None;
        key.rate_pauses = RatePauses::default();
        self.last_number = self.last_number.checked_add(1).unwrap_or(1);
        key.number = self.last_number;
        entry.hash = hash;
        (entry.domain.key, entry.domain.standing) = (at, None);
        entry.state = EntryState::Active;
        self.free.pop();
        Ok(at)
    }

    /// The hash of the key that has its starts in common with this one, if this is the key of a site's members or of
    /// its candidates. For a group that is no site, no key has this hash.
    pub(super) fn partner_hash(kind: KeyKind, hash: u64) -> Option<u64> {
        let partner = match kind {
            KeyKind::Group => KeyKind::Candidates,
            KeyKind::Candidates => KeyKind::Group,
            KeyKind::Domain | KeyKind::Relay => return None,
        };
        Some(Self::hash(partner, hash.wrapping_sub(Self::of_kind(kind))))
    }

    /// The hash under which a key's share is listed: the candidates of a site have that of its members.
    fn hash_of_share(kind: KeyKind, hash: u64) -> u64 {
        match kind {
            KeyKind::Candidates => Self::partner_hash(kind, hash).unwrap_or(hash),
            KeyKind::Domain | KeyKind::Relay | KeyKind::Group => hash,
        }
    }

    /// A time that is not before the last start of a key that is not in memory, nor of the one that has its starts in
    /// common with it.
    fn forgotten_start_us(&self, kind: KeyKind, hash: u64) -> u64 {
        let partner_us =
            Self::partner_hash(kind, hash).map_or(0, |hash| self.forgotten.last_us(hash));
        partner_us.max(self.forgotten.last_us(hash))
    }

    /// The rates of a key that is not in memory. A site's members and its candidates have their starts in common.
    fn unknown_starts(
        &mut self,
        kind: KeyKind,
        hash: u64,
        name: &[u8],
        cap: &Cap,
        now_us: u64,
    ) -> StartRate {
        if cap.rates.is_none() {
            return StartRate::NONE;
        }
        match Self::partner_hash(kind, hash).and_then(|partner| self.find(partner)) {
            Some(at) => self.all[at as usize].key.start_rate,
            None => {
                let mut start_rate =
                    StartRate::new(&cap.rates, self.forgotten_start_us(kind, hash));
                if let Some(log) = &mut self.start_log {
                    log.attach(&mut start_rate, key_id(kind, name), &cap.rates, now_us);
                }
                start_rate
            }
        }
    }

    /// Gives the keys with rates for an hour or a day what the log has of them, after a rebuild.
    pub(super) fn attach_starts(&mut self, now_us: u64) {
        let Some(log) = &mut self.start_log else { return };
        for (at, Entry { domain, key, state, .. }) in (0u32..).zip(&mut self.all) {
            let Key { kind, name, cap, start_rate, .. } = key;
            let is_key = *state != EntryState::Free && domain.key == at;
            if is_key && cap.rates.has_long() {
                log.attach(start_rate, key_id(*kind, name), &cap.rates, now_us);
            }
        }
    }

    /// Of the starts of all keys with rates only what was remembered of forgotten ones is known.
    pub(super) fn forget_starts(&mut self) {
        for at in 0..self.all.len() {
            let Entry { key, hash, .. } = &self.all[at];
            if key.start_rate.is_some() {
                let last_us = self.forgotten_start_us(key.kind, *hash);
                self.all[at].key.start_rate = StartRate::new(&key.cap.rates, last_us);
            }
        }
    }

    /// Gives the keys of each site, that of its members and that of its candidates, the starts of both.
    pub(super) fn join_starts(&mut self) {
        for at in 0..self.all.len() {
            let entry = &self.all[at];
            if entry.key.kind == KeyKind::Candidates
                && entry.key.start_rate.is_some()
                && let Some(members) = Self::partner_hash(entry.key.kind, entry.hash)
                && let Some(members) = self.find(members)
            {
                let both = entry.key.start_rate;
                let both = both.later(self.all[members as usize].key.start_rate);
                self.all[at].key.start_rate = both;
                self.all[members as usize].key.start_rate = both;
            }
        }
    }

    /// Takes an idle entry out of its list.
    pub(super) fn make_active(&mut self, at: u32) {
        match self.all[at as usize].state {
            EntryState::IdleRecent => {
                unlink(&mut self.recent, at, &mut self.links, |link| link);
                self.recent_len -= 1;
            }
            EntryState::IdleContended => {
                unlink(&mut self.contended, at, &mut self.links, |link| link);
                self.contended_len -= 1;
            }
            EntryState::Active | EntryState::Free => {}
        }
        self.all[at as usize].state = EntryState::Active;
    }

    /// Moves an unused entry to the idle ones; the next new entry may replace it.
    pub(super) fn make_idle(&mut self, at: u32, now_us: u64) {
        let entry = &mut self.all[at as usize];
        entry.idle_since_us = now_us;
        if entry.key.is_contended() {
            entry.state = EntryState::IdleContended;
            append(&mut self.contended, at, &mut self.links, |link| link);
            self.contended_len += 1;
        } else {
            entry.state = EntryState::IdleRecent;
            append(&mut self.recent, at, &mut self.links, |link| link);
            self.recent_len += 1;
        }
    }

    /// Forgets an idle entry. The key under which it counted may become idle as well.
    pub(super) fn forget(&mut self, at: u32) {
        self.make_active(at);
        let entry = &mut self.all[at as usize];
        entry.state = EntryState::Free;
        let (of, hash) = (entry.domain.key, entry.hash);
        let key = &mut entry.key;
        key.busy = 0;
        key.done = 0;
        key.held_ever = 0;
        key.peak = 0;
        key.recall = Recall::default();
        self.forgotten.forget(hash, &key.start_rate);
        if key.error.capacity() > 0 {
            key.error = Vec::new();
        }
        self.index.remove(hash, at);
        self.free.push(at);
        if of != at {
            let idle_since_us = self.all[at as usize].idle_since_us;
            let of_key = &mut self.all[of as usize];
            of_key.members -= 1;
            if of_key.is_idle() {
                self.make_idle(of, idle_since_us);
            }
        }
    }

    /// Forgets idle entries that are too many or too old.
    pub(super) fn forget_old(&mut self, now_us: u64) {
        while self.recent_len > RECENT_KEYS {
            self.forget(self.recent.first);
        }
        while self.contended_len > CONTENDED_KEYS {
            self.forget(self.contended.first);
        }
        let old = |keys: &Self, at: u32| {
            at != NONE && now_us.saturating_sub(keys.all[at as usize].idle_since_us) > REMEMBERED_US
        };
        while old(self, self.contended.first) {
            let at = self.contended.first;
            if self.all[at as usize].key.pause_at(now_us).is_some() {
                // A pause may last longer than the key would be remembered.
                self.make_active(at);
                self.make_idle(at, now_us);
            } else {
                self.forget(at);
            }
        }
        while old(self, self.recent.first) {
            self.forget(self.recent.first);
        }
    }

    /// Gives each key its share.
    pub(super) fn apply_shares(&mut self) {
        for Entry { key, hash, .. } in &mut self.all {
            key.share = self.shares.of(Self::hash_of_share(key.kind, *hash), key.cap.limit);
        }
    }

    /// The entries of a list, the oldest first.
    pub(super) fn idle(&self, list: List) -> impl Iterator<Item = u32> {
        let mut at = list.first;
        std::iter::from_fn(move || {
            let this = at;
            if this == NONE {
                return None;
            }
            at = self.links[this as usize].next;
            Some(this)
        })
    }
}

/// The part of a domain that is looked up: its last [`NAME_MAX`] bytes, without a dot at the end.
pub(super) fn known_part(domain: &[u8]) -> &[u8] {
    let domain = without_root(domain);
    &domain[domain.len().saturating_sub(NAME_MAX)..]
}

/// Returns the entry of a domain or of a sender's relay: kind, hash of the name, name.
pub(super) fn add_entry(
    keys: &mut Keys,
    rules: &Rules,
    entry: (KeyKind, u64, &[u8]),
    now_us: u64,
    guess_secs: Option<f64>,
) -> Result<u32, OutOfMemory> {
    if let Some(at) = keys.find(Keys::hash(entry.0, entry.1)) {
        keys.make_active(at);
        return Ok(at);
    }
    add_new(keys, rules, entry, now_us, guess_secs)
}

/// Makes an entry if there is none, and one for the key under which it counts, if that is another.
pub(super) fn add_new(
    keys: &mut Keys,
    rules: &Rules,
    (kind, hash, name): (KeyKind, u64, &[u8]),
    now_us: u64,
    guess_secs: Option<f64>,
) -> Result<u32, OutOfMemory> {
    // The entry comes first: meanwhile the data of the rules arrives in the cache.
    let at = keys.add(kind, Keys::hash(kind, hash), name, Cap::NONE, now_us, guess_secs)?;
    let found = rules.resolve_entry(kind, hash, name);
    let share = keys.shares.of(keys.all[at as usize].hash, found.cap.limit);
    let key = &mut keys.all[at as usize].key;
    (key.cap, key.share) = (found.cap, share);
    keys.all[at as usize].domain.standing = match found.site {
        Some(SiteReason::Address(..)) => Some(Standing::Member),
        Some(SiteReason::Refused(..)) => Some(Standing::Candidate),
        Some(SiteReason::Map(_) | SiteReason::Literal(..)) | None => None,
    };
    if found.kind == kind {
        let hash = Keys::hash(kind, hash);
        let start_rate = keys.unknown_starts(kind, hash, name, &found.cap, now_us);
        keys.all[at as usize].key.start_rate = start_rate;
        return Ok(at);
    }
    let of = keys.activate(
        found.kind,
        rules.hasher.hash(found.name),
        found.name,
        found.cap,
        now_us,
        guess_secs,
    );
    match of {
        Ok(of) => {
            keys.all[of as usize].members += 1;
            keys.all[at as usize].domain.key = of;
            Ok(at)
        }
        Err(OutOfMemory) => {
            keys.forget(at);
            Err(OutOfMemory)
        }
    }
}
