//! A map from names to numbers, looked up as qmail looks up smtproutes, for files with a million lines.

#![forbid(unsafe_code)]

use crate::control::name::{Hasher, NAME_MAX, mix};
use crate::util::memory::{self, OutOfMemory};
use crate::util::prefetch::prefetch;

/// A name has at most this many suffixes that start with a dot.
const SUFFIX_MAX: usize = NAME_MAX + 1;

/// The highest value that a [`NameMap`] stores with a name.
pub const VALUE_MAX: u32 = (1 << VALUE_BITS) - 1;

const VALUE_BITS: u32 = 21;
const CHECK_BITS: u32 = 64 - VALUE_BITS;

/// Names with a value and a line number each, built once and then only read.
///
/// A look-up among a million names must miss the cache once at most. So the names are not kept: a place has 43 bits of
/// the hash besides the value, and its position stands for some 20 more. The price: once in 10^12 look-ups, a name that
/// is not in the map is taken for one that is. In the mail server the hash has a secret seed, so nobody can provoke
/// this. Comparing the names would cost another cache miss each time, and three times the memory.
///
/// If many names have few different values, [`NameMap::pack`] keeps 32 bits of the hash: a million names need 6.7 MB in
/// place of 10.7. The chance is then once in 5 * 10^8 probes; a host takes one probe, and one more for each of its dots
/// if the map has suffixes. Another 5 MB are for the line numbers, which are apart because they are rarely needed.
#[derive(Debug)]
pub struct NameMap {
    hasher: Hasher,
    places: NameEntries,
    lines: Vec<u32>,
    len: usize,
    default: Option<(u32, u32)>,
    has_suffixes: bool,
}

/// Open addressing, linear probing.
#[derive(Debug)]
enum NameEntries {
    /// The check in the upper bits, the value below. 0 is empty.
    Wide(Vec<u64>),
    /// [`PACKED`] bytes each: the lowest one is the index of the value; above it is the lower half of the check, which
    /// is 0 if the place is empty. [`PADDING`] follows the last place.
    Packed { bytes: Vec<u8>, values: Vec<u32> },
}

/// The length of a packed place, in bytes.
const PACKED: usize = 5;
/// A place is read as eight bytes.
const PADDING: usize = 8 - PACKED;
/// The most values that the index of a packed place can tell apart.
const VALUES_MAX: usize = 256;
/// Packing fewer names is not worth it.
const PACK_MIN: usize = 50_000;

impl NameEntries {
    /// How many places there are.
    #[inline]
    fn len(&self) -> usize {
        match self {
            Self::Wide(places) => places.len(),
            Self::Packed { bytes, .. } => bytes.len() / PACKED,
        }
    }

    #[inline]
    fn value(&self, at: usize) -> u32 {
        match self {
            Self::Wide(places) => places[at] as u32 & VALUE_MAX,
            Self::Packed { bytes, values } => values[usize::from(bytes[at * PACKED])],
        }
    }

    #[inline]
    fn is_empty(&self, at: usize) -> bool {
        match self {
            Self::Wide(places) => places[at] == 0,
            Self::Packed { bytes, .. } => packed_check(bytes, at) == 0,
        }
    }

    /// The place of a hash, or the free one where it would be. At least one place must be free.
    #[inline]
    fn probe(&self, home: usize, hash: u64) -> Result<usize, usize> {
        match self {
            Self::Wide(places) => walk_wide(places, home, hash),
            Self::Packed { bytes, .. } => {
                let check = u64::from(half_check(check(hash)));
                walk(home, self.len(), check, |at| u64::from(packed_check(bytes, at)))
            }
        }
    }
}

/// How far from home most searches end: in a table that is three quarters full a search takes 2.5 places for a name
/// that is there, and 8.5 for one that is not (Knuth, The Art of Computer Programming 3, section 6.4).
const WALK: usize = 8;

/// Prefetches two elements, which may be in two lines of the cache.
#[inline]
fn prefetch_both<T>(elements: &[T], both: [usize; 2]) {
    for at in both {
        if let Some(element) = elements.get(at) {
            prefetch(element);
        }
    }
}

/// Searches from `home` on: the place with this check, or the first one with 0.
#[inline]
fn walk(
    home: usize,
    places: usize,
    wanted: u64,
    check_at: impl Fn(usize) -> u64,
) -> Result<usize, usize> {
    let mut at = home;
    loop {
        match check_at(at) {
            0 => return Err(at),
            check if check == wanted => return Ok(at),
            _ => at = if at + 1 == places { 0 } else { at + 1 },
        }
    }
}

#[inline]
fn walk_wide(places: &[u64], home: usize, hash: u64) -> Result<usize, usize> {
    walk(home, places.len(), check(hash), |at| places[at] >> VALUE_BITS)
}

#[inline]
fn packed_check(bytes: &[u8], at: usize) -> u32 {
    let place = bytes[at * PACKED..].first_chunk();
    debug_assert!(place.is_some());
    (place.map_or(0, |&place| u64::from_le_bytes(place)) >> 8) as u32
}

/// The part of a check that a packed place keeps. Never 0, which means "empty".
#[inline]
fn half_check(check: u64) -> u32 {
    (check as u32).max(1)
}

impl NameMap {
    /// An empty map.
    #[must_use]
    pub fn new(hasher: Hasher) -> Self {
        Self {
            hasher,
            places: NameEntries::Wide(Vec::new()),
            lines: Vec::new(),
            len: 0,
            default: None,
            has_suffixes: false,
        }
    }

    /// How many names it has, including the empty name.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len + usize::from(self.default.is_some())
    }

    /// Whether it has no name at all.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How much memory it occupies, in bytes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        let places = match &self.places {
            NameEntries::Wide(places) => places.capacity() * 8,
            NameEntries::Packed { bytes, values } => bytes.capacity() + values.capacity() * 4,
        };
        places + self.lines.capacity() * 4
    }

    /// An empty map with room for `names` names. It does not grow.
    ///
    /// # Errors
    /// No memory.
    pub fn with_room(hasher: Hasher, names: usize) -> Result<Self, OutOfMemory> {
        // At most three quarters full, and always with a free place.
        let size = names + names / 3 + 2;
        Ok(Self {
            places: NameEntries::Wide(memory::filled(0, size)?),
            lines: memory::filled(0, size)?,
            ..Self::new(hasher)
        })
    }

    /// Inserts a name. As in qmail's constmap the last insert of a name counts. Returns the line of the one before it.
    ///
    /// # Errors
    /// There is no room left: the map is as before.
    ///
    /// # Panics
    /// If the value is above [`VALUE_MAX`].
    pub fn insert(
        &mut self,
        name: &[u8],
        value: u32,
        line: u32,
    ) -> Result<Option<u32>, OutOfMemory> {
        assert!(value <= VALUE_MAX);
        if name.is_empty() {
            return Ok(self.default.replace((value, line)).map(|(_, line)| line));
        }
        let is_suffix = matches!(name[0], b'.' | b'@');
        let hash = if is_suffix { self.hasher.hash_suffix(name) } else { self.hasher.hash(name) };
        let home = self.home(hash);
        // A packed map has no room.
        let NameEntries::Wide(places) = &mut self.places else { return Err(OutOfMemory) };
        if places.is_empty() {
            return Err(OutOfMemory);
        }
        let (at, old) = match walk_wide(places, home, hash) {
            Ok(at) => (at, Some(self.lines[at])),
            Err(_) if self.len + self.len / 3 + 2 > places.len() => return Err(OutOfMemory),
            Err(free) => (free, None),
        };
        places[at] = check(hash) << VALUE_BITS | u64::from(value);
        self.lines[at] = line;
        self.len += usize::from(old.is_none());
        self.has_suffixes |= is_suffix;
        Ok(old)
    }

    /// Looks up a host as qmail-remote does in smtproutes: the exact name, then each suffix that starts with a dot, the
    /// longest first, then the empty name. Returns the value, and a handle for [`NameMap::line`].
    #[must_use]
    pub fn find(&self, host: &[u8]) -> Option<(u32, NameEntry)> {
        self.find_hashed(self.hasher.hash(host), host)
    }

    /// The same for a host whose hash is known.
    #[inline]
    #[must_use]
    pub fn find_hashed(&self, hash: u64, host: &[u8]) -> Option<(u32, NameEntry)> {
        if self.len > 0 {
            if let Ok(at) = self.probe(hash) {
                return Some((self.places.value(at), NameEntry(at)));
            }
            if self.has_suffixes
                && let Some(at) = self.find_suffix(host, |byte| byte == b'.')
            {
                return Some((self.places.value(at), NameEntry(at)));
            }
        }
        self.default()
    }

    /// Looks up a sender as patches for SMTP AUTH make qmail-remote do in authsenders: the whole address, then what
    /// begins with each of its dots and `@`, the longest first, then the empty name.
    #[must_use]
    pub fn find_sender(&self, sender: &[u8]) -> Option<(u32, NameEntry)> {
        if self.len > 0 {
            let whole = (sender.len() <= NAME_MAX).then(|| self.hasher.hash(sender));
            let found = whole.and_then(|hash| self.probe(hash).ok());
            let is_first = |byte| matches!(byte, b'.' | b'@');
            if let Some(at) = found.or_else(|| self.find_suffix(sender, is_first)) {
                return Some((self.places.value(at), NameEntry(at)));
            }
        }
        self.default()
    }

    /// The value of the empty name.
    #[must_use]
    pub fn default(&self) -> Option<(u32, NameEntry)> {
        self.default.map(|(value, _)| (value, NameEntry::DEFAULT))
    }

    /// The value of exactly this name, which must begin neither with a dot nor with an `@`.
    #[must_use]
    pub fn find_own(&self, name: &[u8]) -> Option<(u32, NameEntry)> {
        let at = (self.len > 0).then(|| self.probe(self.hasher.hash(name)))?.ok()?;
        Some((self.places.value(at), NameEntry(at)))
    }

    /// Whether exactly this name is in it.
    #[must_use]
    pub fn has(&self, host: &[u8]) -> bool {
        self.len > 0 && self.probe(self.hasher.hash(host)).is_ok()
    }

    /// Starts to load the place of a hash into the cache, while the caller does something else.
    #[inline]
    pub fn prefetch(&self, hash: u64) {
        let home = self.home(hash);
        match &self.places {
            NameEntries::Wide(places) => prefetch_both(places, [home, home + WALK]),
            NameEntries::Packed { bytes, .. } => {
                prefetch_both(bytes, [home * PACKED, (home + WALK) * PACKED]);
            }
        }
    }

    /// To be called when all names are in: makes the map smaller if possible. Nothing can be inserted afterwards.
    ///
    /// # Errors
    /// No memory: the map is as before.
    pub fn pack(&mut self) -> Result<(), OutOfMemory> {
        let NameEntries::Wide(places) = &self.places else { return Ok(()) };
        if self.len < PACK_MIN {
            return Ok(());
        }
        let value_of = |place: u64| place as u32 & VALUE_MAX;
        let mut values: Vec<u32> = Vec::new();
        for &place in places.iter().filter(|&&place| place != 0) {
            if let Err(at) = values.binary_search(&value_of(place)) {
                if values.len() == VALUES_MAX {
                    return Ok(());
                }
                values.try_reserve(1)?;
                values.insert(at, value_of(place));
            }
        }
        let mut bytes = memory::filled(0, places.len() * PACKED + PADDING)?;
        // Compared with those before it, back to an empty place: it must not be taken for one of them.
        let mut before: Vec<u32> = Vec::new();
        let empty = places.iter().position(|&place| place == 0).unwrap_or(0);
        for at in (empty..places.len()).chain(0..empty) {
            let place = places[at];
            if place == 0 {
                before.clear();
                continue;
            }
            let check = half_check(place >> VALUE_BITS);
            if before.contains(&check) {
                return Ok(());
            }
            memory::push(&mut before, check)?;
            // Each value is among them, and a byte can number all of them.
            bytes[at * PACKED] = values.binary_search(&value_of(place)).unwrap_or(0) as u8;
            bytes[at * PACKED + 1..(at + 1) * PACKED].copy_from_slice(&check.to_le_bytes());
        }
        self.places = NameEntries::Packed { bytes, values };
        Ok(())
    }

    #[inline]
    fn find_suffix(&self, host: &[u8], is_first: impl Fn(u8) -> bool) -> Option<usize> {
        // Names in the map have at most NAME_MAX bytes, so the rest of a longer host does not matter.
        let tail = &host[host.len().saturating_sub(NAME_MAX)..];
        let mut suffixes = [0u64; SUFFIX_MAX];
        let mut count = 0;
        let mut state = !self.hasher.start;
        for &byte in tail.iter().rev() {
            state = self.hasher.step(state, byte);
            if is_first(byte) {
                suffixes[count] = state;
                count += 1;
            }
        }
        suffixes[..count].iter().rev().find_map(|&state| self.probe(mix(state)).ok())
    }

    /// The line of a name that was found.
    #[must_use]
    pub fn line(&self, NameEntry(at): NameEntry) -> u32 {
        self.lines.get(at).copied().or(self.default.map(|(_, line)| line)).unwrap_or(0)
    }

    /// Every value with its line, in no particular order.
    pub fn iter(&self) -> impl Iterator<Item = (u32, u32)> {
        let named = (0..self.places.len()).filter(|&at| !self.places.is_empty(at));
        named.map(|at| (self.places.value(at), self.lines[at])).chain(self.default)
    }

    /// Where a hash belongs. Its high bits say so; its low bits are the check.
    #[inline]
    fn home(&self, hash: u64) -> usize {
        ((u128::from(hash) * self.places.len() as u128) >> 64) as usize
    }

    /// The place of a hash, or the free one where it would be. The map must have room for a name.
    #[inline]
    fn probe(&self, hash: u64) -> Result<usize, usize> {
        self.places.probe(self.home(hash), hash)
    }
}

/// Never 0, which means "empty".
#[inline]
fn check(hash: u64) -> u64 {
    (hash & ((1 << CHECK_BITS) - 1)).max(1)
}

/// Where a [`NameMap`] found a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NameEntry(usize);

impl NameEntry {
    const DEFAULT: Self = Self(usize::MAX);

    /// Whether it is the empty name, which matches when nothing else does.
    #[must_use]
    pub fn is_default(self) -> bool {
        self == Self::DEFAULT
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(names: &[&str]) -> NameMap {
        let mut map = NameMap::with_room(Hasher::new(7), names.len()).unwrap();
        for (i, name) in names.iter().enumerate() {
            map.insert(name.as_bytes(), i as u32, i as u32 + 1).unwrap();
        }
        map
    }

    fn found(map: &NameMap, host: &str) -> Option<u32> {
        map.find(host.as_bytes()).map(|(value, _)| value)
    }

    #[test]
    fn looks_up_as_smtproutes() {
        let map = map(&["yahoo.com", ".yahoo.com", "", ".com", ".uk.yahoo.com"]);
        assert_eq!(found(&map, "YAHOO.com"), Some(0));
        assert_eq!(found(&map, "mail.Yahoo.COM"), Some(1));
        assert_eq!(found(&map, "a.b.yahoo.com"), Some(1));
        assert_eq!(found(&map, "x.uk.yahoo.com"), Some(4));
        assert_eq!(found(&map, "uk.yahoo.com"), Some(1));
        assert_eq!(found(&map, "other.com"), Some(3));
        assert_eq!(found(&map, "com"), Some(2));
        assert_eq!(found(&map, ""), Some(2));
        assert_eq!(found(&map, ".yahoo.com"), Some(1));
        assert_eq!(found(&map, "yahoo.com."), Some(2));
    }

    #[test]
    fn the_last_insert_counts() {
        let mut map = map(&["a.example"]);
        assert_eq!(map.insert(b"A.EXAMPLE", 9, 7), Ok(Some(1)));
        let (value, place) = map.find(b"a.example").unwrap();
        assert_eq!((value, map.line(place)), (9, 7));
        assert_eq!(map.len(), 1);
        assert_eq!(map.insert(b"", 1, 3), Ok(None));
        assert_eq!(map.insert(b"", VALUE_MAX, 4), Ok(Some(3)));
        let (value, place) = map.find(b"b.example").unwrap();
        assert_eq!((value, map.line(place)), (VALUE_MAX, 4));
        assert_eq!(map.len(), 2);
    }

    #[test]
    fn is_full_when_it_is() {
        for room in [0, 1, 2, 10, 10_000u32] {
            let mut map = NameMap::with_room(Hasher::new(1), room as usize).unwrap();
            for i in 0..room {
                assert_eq!(map.insert(format!("d{i}.example").as_bytes(), i, i), Ok(None));
            }
            for i in 0..room {
                assert_eq!(found(&map, &format!("D{i}.EXAMPLE")), Some(i));
            }
            assert_eq!(found(&map, "x.example"), None);
            assert_eq!(map.iter().count(), room as usize);
            assert!((0..4).any(|i| map.insert(format!("x{i}").as_bytes(), 1, 1).is_err()));
            assert_eq!(found(&map, "unknown.example"), None);
        }
        assert_eq!(found(&NameMap::new(Hasher::new(1)), "a"), None);
    }

    #[test]
    fn packed_it_says_the_same() {
        let names = |count: u32| (0..count).map(|i| format!("d{i}.example"));
        let map_of = |count: u32, values: u32| {
            let mut map = NameMap::with_room(Hasher::new(7), count as usize + 2).unwrap();
            for (name, i) in names(count).zip(0..) {
                map.insert(name.as_bytes(), (i % values) * 8191, i).unwrap();
            }
            map.insert(b".suffix.example", VALUE_MAX, 7).unwrap();
            map
        };
        let is_packed = |map: &NameMap| matches!(map.places, NameEntries::Packed { .. });
        let count = 2 * PACK_MIN as u32;
        let (wide, mut packed) = (map_of(count, 200), map_of(count, 200));
        packed.pack().unwrap();
        assert!(is_packed(&packed));
        assert!(packed.bytes() < wide.bytes());
        assert!(packed.iter().eq(wide.iter()));
        for name in names(2 * count) {
            assert_eq!(packed.find(name.as_bytes()), wide.find(name.as_bytes()), "{name}");
        }
        for name in ["a.suffix.example", ".suffix.example", "suffix.example", ""] {
            assert_eq!(packed.find(name.as_bytes()), wide.find(name.as_bytes()), "{name}");
        }
        assert_eq!(packed.insert(b"more.example", 1, 1), Err(OutOfMemory));
        // The most values that fit, with that of the suffix.
        let mut map = map_of(count, 255);
        map.pack().unwrap();
        assert!(is_packed(&map));
        // Too many values, too few names.
        for (count, values) in [(count, 256), (1000, 1)] {
            let mut map = map_of(count, values);
            map.pack().unwrap();
            assert!(!is_packed(&map));
            assert_eq!(found(&map, "D999.EXAMPLE"), Some((999 % values) * 8191));
        }
    }

    #[test]
    fn what_would_be_mistaken_is_not_packed() {
        // Two neighbours whose hashes differ only in what packing leaves out.
        let room = PACK_MIN + 10;
        let mut map = NameMap::with_room(Hasher::new(7), room).unwrap();
        map.len = PACK_MIN;
        let NameEntries::Wide(places) = &mut map.places else { panic!("a new map is wide") };
        places[10] = 5 << VALUE_BITS;
        places[11] = (5 | 1 << 40) << VALUE_BITS;
        map.pack().unwrap();
        assert!(matches!(map.places, NameEntries::Wide(_)));
        // The same across the end.
        let NameEntries::Wide(places) = &mut map.places else { panic!("it is as before") };
        let last = places.len() - 1;
        places.swap(10, last);
        places.swap(11, 0);
        map.pack().unwrap();
        assert!(matches!(map.places, NameEntries::Wide(_)));
        // With a free place between them they cannot be mistaken.
        let NameEntries::Wide(places) = &mut map.places else { panic!("it is as before") };
        places.swap(0, 1);
        map.pack().unwrap();
        assert!(matches!(map.places, NameEntries::Packed { .. }));
    }

    #[test]
    fn long_hosts_are_found_by_their_end() {
        let map = map(&[".a.example"]);
        let mut host = b"a.".repeat(5_000);
        host.extend_from_slice(b"a.example");
        assert_eq!(map.find(&host).unwrap().0, 0);
        assert_eq!(map.find(&b".".repeat(10_000)), None);
    }
}
