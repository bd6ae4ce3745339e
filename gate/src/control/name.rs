//! Domain names as the gate sees them: bytes, ASCII case-insensitive, looked up as qmail looks up smtproutes.
//!
//! Two hashes: one of whole names, eight bytes at a time; and one of `.suffixes`, and of senders' `@suffixes`, from the
//! end to the beginning, so that one pass over a name gives the hashes of all of them. Both are seeded: whoever chooses
//! recipients must not be able to choose collisions.

#![forbid(unsafe_code)]

use crate::util::memory::{self, OutOfMemory};
use crate::util::prefetch::prefetch;

/// The longest name that is looked up or counted by itself, in bytes. DNS ends at 253.
pub const NAME_MAX: usize = 255;

/// A name may have this many suffixes that start with a dot.
const SUFFIX_MAX: usize = NAME_MAX + 1;

/// The domain of a recipient address: what follows its last `@`, with zero bytes at the end of the address removed.
/// None without an `@`.
#[must_use]
pub fn domain_of(recipient: &[u8]) -> Option<&[u8]> {
    let mut address = recipient;
    while let [head @ .., 0] = address {
        address = head;
    }
    let (first, words) = address.as_rchunks::<8>();
    for (at, &word) in words.iter().enumerate().rev() {
        if let Some(last) = last_equal(u64::from_le_bytes(word), b'@') {
            return Some(&address[first.len() + at * 8 + last + 1..]);
        }
    }
    let at = first.iter().rposition(|&byte| byte == b'@')?;
    Some(&address[at + 1..])
}

/// The name without one dot at its end: `example.com.` is the same place as `example.com`, and must not have limits of
/// its own.
#[must_use]
pub fn without_root(name: &[u8]) -> &[u8] {
    match name {
        [head @ .., b'.'] if !head.is_empty() => head,
        _ => name,
    }
}

/// Whether a byte can be part of a host's name: letters, digits, `-`, `.`, `_`, and what UTF-8 has beyond ASCII.
#[must_use]
pub fn is_of_host(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_') || !byte.is_ascii()
}

/// Whether this may be the name of a host, or an address with or without brackets. What is none of these never had
/// mail, and may be more than a name: earlier builds took the password of a relay for a part of its name.
#[must_use]
pub fn is_host(name: &[u8]) -> bool {
    let is_name = !name.is_empty() && name.iter().all(|&byte| is_of_host(byte));
    is_name || crate::control::literal::of_name(name).is_some()
}

/// Whether the name is what people write for all domains, and what other software takes for it: here, as in qmail, that
/// is an empty name.
#[must_use]
pub fn is_word_for_all(name: &[u8]) -> bool {
    const WORDS: [&[u8]; 3] = [b"all", b"any", b"default"];
    let is_pattern = |name: &[u8]| {
        name.iter()
            .all(|byte| matches!(byte, b'*' | b'.' | b'?' | b'%' | b'"' | b'\'' | b'<' | b'>'))
    };
    !name.is_empty()
        && (is_pattern(name) || WORDS.iter().any(|word| name.eq_ignore_ascii_case(word)))
}

/// Where a name has a printable character that no host's name has: no mail goes to such a host. Not for stars, about
/// which there is more to say, and not for what begins as an address in brackets.
#[must_use]
pub fn not_of_host(name: &[u8]) -> Option<usize> {
    let is_odd = |&byte: &u8| byte.is_ascii_graphic() && !is_of_host(byte) && byte != b'*';
    if name.starts_with(b"[") { None } else { name.iter().position(is_odd) }
}

/// What of a text may be the name of a host: the beginning of it, up to what no host's name has.
#[must_use]
pub fn host_part(text: &[u8]) -> &[u8] {
    if is_host(text) {
        return text;
    }
    &text[..text.iter().position(|&byte| !is_of_host(byte)).unwrap_or(text.len())]
}

/// Whether there is an upper-case ASCII letter. Looks at all bytes, which is quicker than a stop at the first one.
pub(crate) fn has_upper(name: &[u8]) -> bool {
    name.iter().fold(false, |found, byte| found | byte.is_ascii_uppercase())
}

/// Hashes names; two hashers with the same seed agree.
#[derive(Clone, Copy, Debug)]
pub struct Hasher {
    start: u64,
    factor: u64,
}

impl Hasher {
    /// A hasher for any seed.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        let mut random = crate::util::random::Random::new(seed);
        Self { start: random.next(), factor: random.next() | 1 }
    }

    /// The hash of a name, whatever the case of its ASCII letters. Never 0.
    #[inline]
    #[must_use]
    pub fn hash(&self, name: &[u8]) -> u64 {
        let mut state = self.start.wrapping_add((name.len() as u64).wrapping_mul(self.factor));
        let (words, rest) = name.as_chunks::<8>();
        for word in words {
            state = self.fold(state, u64::from_le_bytes(*word));
        }
        if !rest.is_empty() {
            let last = match name.last_chunk::<8>() {
                // Some bytes twice: that is quicker than a copy of a length that is not known.
                Some(last) => u64::from_le_bytes(*last),
                None => rest.iter().fold(0, |word, &byte| word << 8 | u64::from(byte)),
            };
            state = self.fold(state, last);
        }
        mix(state)
    }

    #[inline]
    fn fold(&self, state: u64, word: u64) -> u64 {
        let product = u128::from(state ^ lower(word)) * u128::from(self.factor);
        (product >> 64) as u64 ^ product as u64
    }

    /// One more byte in front of a suffix.
    #[inline]
    fn step(&self, state: u64, byte: u8) -> u64 {
        (state ^ u64::from(byte.to_ascii_lowercase())).wrapping_mul(self.factor)
    }

    /// The hash of a suffix that begins with a dot or an `@`, as [`NameMap::find`] makes it.
    fn hash_suffix(&self, suffix: &[u8]) -> u64 {
        mix(suffix.iter().rev().fold(!self.start, |state, &byte| self.step(state, byte)))
    }
}

/// Eight bytes that are 1 each.
const ONES: u64 = u64::MAX / 0xff;

/// Which of eight bytes, counted from the lowest, is the last one with this value.
#[inline]
fn last_equal(word: u64, wanted: u8) -> Option<usize> {
    let other = word ^ (u64::from(wanted) * ONES);
    // The high bit of each byte that is not 0; nothing carries from one to the next.
    let differs = ((other & (0x7f * ONES)) + 0x7f * ONES) | other;
    let equal = !differs & (0x80 * ONES);
    (equal != 0).then(|| 7 - equal.leading_zeros() as usize / 8)
}

/// Eight bytes with their ASCII letters in lower case.
#[inline]
fn lower(word: u64) -> u64 {
    let heptets = word & (0x7f * ONES);
    let above_z = heptets + (0x7f - u64::from(b'Z')) * ONES;
    let from_a = heptets + (0x80 - u64::from(b'A')) * ONES;
    let upper = !word & (from_a ^ above_z) & (0x80 * ONES);
    word | (upper >> 2)
}

/// The multiplications carry upwards only: bring the high bits down.
#[inline]
fn mix(mut state: u64) -> u64 {
    state ^= state >> 32;
    state = state.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    // Never 0, which is no name.
    (state ^ (state >> 29)).max(1)
}

/// The highest value that a [`NameMap`] stores with a name.
pub const VALUE_MAX: u32 = (1 << VALUE_BITS) - 1;

const VALUE_BITS: u32 = 21;
const CHECK_BITS: u32 = 64 - VALUE_BITS;

/// Names with a value and a line number each, built once and then only read.
///
/// What matters is that a look-up among a million names finds its place in the cache, or misses it once. So the names
/// are not kept: a place has 43 bits of the hash besides the value, and its position stands for some 20 more. The price
/// is that a name which is not among them is taken for one of them once in 10^12 look-ups. In the mail server the hash
/// has a seed that nobody knows, so this cannot be brought about. Comparing the names would cost another cache miss
/// each time, and three times the memory.
///
/// Of many names with few different values, [`NameMap::pack`] keeps 32 bits of the hash, and the chance is once in 5 *
/// 10^8 probes, of which a host takes one, and where there are suffixes one more for each of its dots: a million names
/// need 6.7 MB in place of 10.7. Another 5 MB are for the line numbers, which are apart because they are rarely asked
/// for.
#[derive(Debug)]
pub struct NameMap {
    hasher: Hasher,
    places: Places,
    lines: Vec<u32>,
    len: usize,
    default: Option<(u32, u32)>,
    has_suffixes: bool,
}

/// Open addressing, linear probing.
#[derive(Debug)]
enum Places {
    /// The check in the upper bits, the value below. 0 is empty.
    Wide(Vec<u64>),
    /// [`PACKED`] bytes each: the index of the value in the lowest one, and above it the lower half of the check, which
    /// is 0 if the place is empty. After the last one there is [`PADDING`].
    Packed { bytes: Vec<u8>, values: Vec<u32> },
}

/// The bytes of a place that is packed.
const PACKED: usize = 5;
/// A place is read as eight bytes.
const PADDING: usize = 8 - PACKED;
/// The most values that the index of a packed place can tell apart.
const VALUES_MAX: usize = 256;
/// Fewer names are not worth it.
const PACK_MIN: usize = 50_000;

impl Places {
    /// How many there are.
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

    /// The place of a hash, or the free one where it would be. There is a free one.
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

/// So far from home is what is looked at mostly: at three quarters full a name that is there is found after 2.5 places,
/// and one that is not there is missed after 8.5 (Knuth, The Art of Computer Programming 3, section 6.4).
const WALK: usize = 8;

/// These elements may be in two lines of the cache.
#[inline]
fn prefetch_both<T>(elements: &[T], both: [usize; 2]) {
    for at in both {
        if let Some(element) = elements.get(at) {
            prefetch(element);
        }
    }
}

/// From `home` on to the place with this check, or to the first one with 0.
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

/// What a packed place keeps of a check. Never 0, which is an empty place.
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
            places: Places::Wide(Vec::new()),
            lines: Vec::new(),
            len: 0,
            default: None,
            has_suffixes: false,
        }
    }

    /// How many names it has; the empty name counts.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len + usize::from(self.default.is_some())
    }

    /// Whether it has no name at all.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The bytes that it occupies.
    #[must_use]
    pub fn bytes(&self) -> usize {
        let places = match &self.places {
            Places::Wide(places) => places.capacity() * 8,
            Places::Packed { bytes, values } => bytes.capacity() + values.capacity() * 4,
        };
        places + self.lines.capacity() * 4
    }

    /// An empty map with room for so many names. It does not grow.
    ///
    /// # Errors
    /// No memory.
    pub fn with_room(hasher: Hasher, names: usize) -> Result<Self, OutOfMemory> {
        // At most three quarters full, and never quite.
        let size = names + names / 3 + 2;
        Ok(Self {
            places: Places::Wide(memory::filled(0, size)?),
            lines: memory::filled(0, size)?,
            ..Self::new(hasher)
        })
    }

    /// Inserts a name. As in qmail's constmap the last insert of a name counts; the line of the one before is returned.
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
        // Packed, or without a place.
        let Places::Wide(places) = &mut self.places else { return Err(OutOfMemory) };
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

    /// Looks a host up as qmail-remote looks it up in smtproutes: the exact name, then each suffix that starts with a
    /// dot, the longest first, then the empty name. The value, and a handle for [`NameMap::line`].
    #[must_use]
    pub fn find(&self, host: &[u8]) -> Option<(u32, Place)> {
        self.find_hashed(self.hasher.hash(host), host)
    }

    /// The same for a host whose hash is known.
    #[inline]
    #[must_use]
    pub fn find_hashed(&self, hash: u64, host: &[u8]) -> Option<(u32, Place)> {
        if self.len > 0 {
            if let Ok(at) = self.probe(hash) {
                return Some((self.places.value(at), Place(at)));
            }
            if self.has_suffixes
                && let Some(at) = self.find_suffix(host, |byte| byte == b'.')
            {
                return Some((self.places.value(at), Place(at)));
            }
        }
        self.default()
    }

    /// Looks a sender up as qmail-remote's patches for SMTP AUTH look it up in authsenders: the whole address, then
    /// what begins with each of its dots and `@`, the longest first, then the empty name.
    #[must_use]
    pub fn find_sender(&self, sender: &[u8]) -> Option<(u32, Place)> {
        if self.len > 0 {
            let whole = (sender.len() <= NAME_MAX).then(|| self.hasher.hash(sender));
            let found = whole.and_then(|hash| self.probe(hash).ok());
            let is_first = |byte| matches!(byte, b'.' | b'@');
            if let Some(at) = found.or_else(|| self.find_suffix(sender, is_first)) {
                return Some((self.places.value(at), Place(at)));
            }
        }
        self.default()
    }

    /// What the empty name has.
    #[must_use]
    pub fn default(&self) -> Option<(u32, Place)> {
        self.default.map(|(value, _)| (value, Place::DEFAULT))
    }

    /// What this very name has, which begins neither with a dot nor with an `@`.
    #[must_use]
    pub fn find_own(&self, name: &[u8]) -> Option<(u32, Place)> {
        let at = (self.len > 0).then(|| self.probe(self.hasher.hash(name)))?.ok()?;
        Some((self.places.value(at), Place(at)))
    }

    /// Whether this very name is in it.
    #[must_use]
    pub fn has(&self, host: &[u8]) -> bool {
        self.len > 0 && self.probe(self.hasher.hash(host)).is_ok()
    }

    /// Brings the place of a hash into the cache, while the caller does something else.
    #[inline]
    pub fn prefetch(&self, hash: u64) {
        let home = self.home(hash);
        match &self.places {
            Places::Wide(places) => prefetch_both(places, [home, home + WALK]),
            Places::Packed { bytes, .. } => {
                prefetch_both(bytes, [home * PACKED, (home + WALK) * PACKED]);
            }
        }
    }

    /// For when all names are in: makes the map smaller if that can be done. No more can be inserted then.
    ///
    /// # Errors
    /// No memory: the map is as before.
    pub fn pack(&mut self) -> Result<(), OutOfMemory> {
        let Places::Wide(places) = &self.places else { return Ok(()) };
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
        // Those before it, back to an empty place: it must not be taken for one of them.
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
            // Each value is among them, and there are no more than a byte can tell apart.
            bytes[at * PACKED] = values.binary_search(&value_of(place)).unwrap_or(0) as u8;
            bytes[at * PACKED + 1..(at + 1) * PACKED].copy_from_slice(&check.to_le_bytes());
        }
        self.places = Places::Packed { bytes, values };
        Ok(())
    }

    #[inline]
    fn find_suffix(&self, host: &[u8], is_first: impl Fn(u8) -> bool) -> Option<usize> {
        // Names in the map are at most NAME_MAX long, so the rest of a longer host need not be looked at.
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
    pub fn line(&self, Place(at): Place) -> u32 {
        self.lines.get(at).copied().or(self.default.map(|(_, line)| line)).unwrap_or(0)
    }

    /// Every value with its line, in no order.
    pub fn iter(&self) -> impl Iterator<Item = (u32, u32)> {
        let named = (0..self.places.len()).filter(|&at| !self.places.is_empty(at));
        named.map(|at| (self.places.value(at), self.lines[at])).chain(self.default)
    }

    /// Where a hash belongs: its high bits say so, its low bits are the check.
    #[inline]
    fn home(&self, hash: u64) -> usize {
        ((u128::from(hash) * self.places.len() as u128) >> 64) as usize
    }

    /// The place of a hash, or the free one where it would be. The map has places.
    #[inline]
    fn probe(&self, hash: u64) -> Result<usize, usize> {
        self.places.probe(self.home(hash), hash)
    }
}

/// Never 0, which is an empty place.
#[inline]
fn check(hash: u64) -> u64 {
    (hash & ((1 << CHECK_BITS) - 1)).max(1)
}

/// Where a [`NameMap`] found a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place(usize);

impl Place {
    const DEFAULT: Self = Self(usize::MAX);

    /// Whether it is that of the empty name, which matches whatever nothing else matches.
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
    fn the_domain_is_what_follows_the_last_at() {
        assert_eq!(domain_of(b"a@b"), Some(&b"b"[..]));
        assert_eq!(domain_of(b"a@b@c.example\0"), Some(&b"c.example"[..]));
        assert_eq!(domain_of(b"a@\0\0"), Some(&b""[..]));
        assert_eq!(domain_of(b"nobody\0"), None);
        assert_eq!(domain_of(b""), None);
        assert_eq!(domain_of(b"\0\0"), None);
        // In every place of a word, and bytes that differ in one bit only.
        for len in 0..20 {
            for at in 0..len {
                for other in [b'a', b'@' ^ 0x80, b'@' ^ 1, 0xff, 0] {
                    let mut address = vec![other; len];
                    address[at] = b'@';
                    address.push(b'z');
                    assert_eq!(domain_of(&address), Some(&address[at + 1..]));
                    address[..at].fill(b'@');
                    assert_eq!(domain_of(&address), Some(&address[at + 1..]));
                }
            }
        }
    }

    #[test]
    fn one_dot_at_the_end_is_the_root() {
        assert_eq!(without_root(b"example.com."), b"example.com");
        assert_eq!(without_root(b"example.com"), b"example.com");
        assert_eq!(without_root(b"."), b".");
        assert_eq!(without_root(b""), b"");
    }

    #[test]
    fn hosts_have_names_of_few_characters() {
        for name in [
            "a.example",
            "a_b",
            "b\u{fc}cher.example",
            "192.0.2.1",
            "[192.0.2.1]",
            "2001:db8::1",
            "[IPv6:::1]",
        ] {
            assert!(is_host(name.as_bytes()), "{name}");
            assert_eq!(host_part(name.as_bytes()), name.as_bytes());
        }
        for (name, part) in [
            ("", ""),
            ("r|u|p", "r"),
            ("r u", "r"),
            ("u@r", "u"),
            ("r:26", "r"),
            ("[r]", ""),
            ("a/b", "a"),
        ] {
            assert!(!is_host(name.as_bytes()), "{name}");
            assert_eq!(host_part(name.as_bytes()), part.as_bytes(), "{name}");
        }
    }

    #[test]
    fn hashes_do_not_see_case_but_everything_else() {
        let hasher = Hasher::new(3);
        for byte in 0..=255u8 {
            let name = [b'a', byte, b'.', b'e', b'x', b'a', b'm', b'p', byte, b'e'];
            let other = name.map(|byte| byte.to_ascii_uppercase());
            assert_eq!(hasher.hash(&name), hasher.hash(&other));
            assert_eq!(hasher.hash_suffix(&name), hasher.hash_suffix(&other));
            assert_eq!(
                lower(u64::from_le_bytes([byte; 8])),
                u64::from_le_bytes([byte.to_ascii_lowercase(); 8])
            );
        }
        let names: Vec<Vec<u8>> = (0..40).map(|len| vec![0; len]).collect();
        let mut hashes: Vec<u64> = names.iter().map(|name| hasher.hash(name)).collect();
        hashes.extend(
            (0..=255u8)
                .filter(|byte| !byte.is_ascii_uppercase() && *byte != 0)
                .map(|byte| hasher.hash(&[byte])),
        );
        let count = hashes.len();
        hashes.sort_unstable();
        hashes.dedup();
        assert_eq!(hashes.len(), count);
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
        let is_packed = |map: &NameMap| matches!(map.places, Places::Packed { .. });
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
        // As many values as there may be, with that of the suffix.
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
        // Two neighbours whose hashes differ in what is left out only.
        let room = PACK_MIN + 10;
        let mut map = NameMap::with_room(Hasher::new(7), room).unwrap();
        map.len = PACK_MIN;
        let Places::Wide(places) = &mut map.places else { panic!("a new map is wide") };
        places[10] = 5 << VALUE_BITS;
        places[11] = (5 | 1 << 40) << VALUE_BITS;
        map.pack().unwrap();
        assert!(matches!(map.places, Places::Wide(_)));
        // The same over the end.
        let Places::Wide(places) = &mut map.places else { panic!("it is as before") };
        let last = places.len() - 1;
        places.swap(10, last);
        places.swap(11, 0);
        map.pack().unwrap();
        assert!(matches!(map.places, Places::Wide(_)));
        // They may be told apart where a free place is between them.
        let Places::Wide(places) = &mut map.places else { panic!("it is as before") };
        places.swap(0, 1);
        map.pack().unwrap();
        assert!(matches!(map.places, Places::Packed { .. }));
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
