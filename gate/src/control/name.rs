//! Domain names as the gate sees them: bytes, in which the case of ASCII letters does not matter. What is a domain,
//! what can be a host's name, and the hashes by which names are looked up.
//!
//! There are two hashes: one of whole names, which takes eight bytes at a time; and one of `.suffixes`, and of senders'
//! `@suffixes`, which runs from the end to the beginning, so that one pass over a name gives the hashes of all its
//! suffixes. Both have a seed that is drawn when the gate starts: strangers choose the recipients, and must not be able
//! to choose names with the same hash.

#![forbid(unsafe_code)]

/// The longest name that is looked up or counted by itself, in bytes. DNS ends at 253.
pub const NAME_MAX: usize = 255;

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

/// The name without one dot at its end: `example.com.` is the same host as `example.com`, and must not have limits of
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

/// Whether this may be the name of a host, or an address with or without brackets. Anything else never had mail, and
/// may be more than a name: earlier builds took the password of a relay as a part of its name.
#[must_use]
pub fn is_host(name: &[u8]) -> bool {
    let is_name = !name.is_empty() && name.iter().all(|&byte| is_of_host(byte));
    is_name || crate::control::literal::of_name(name).is_some()
}

/// Whether people write this name to mean all domains, as other software has it. Here, as in qmail, the empty name
/// means that.
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

/// The position of a printable character that no host's name has: no mail goes to such a host. Stars do not count,
/// because there is more to say about them; nor does a name that begins as an address in brackets.
#[must_use]
pub fn not_of_host(name: &[u8]) -> Option<usize> {
    let is_odd = |&byte: &u8| byte.is_ascii_graphic() && !is_of_host(byte) && byte != b'*';
    if name.starts_with(b"[") { None } else { name.iter().position(is_odd) }
}

/// The beginning of a text that may be the name of a host, up to the first byte that no host's name has.
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
    pub(super) start: u64,
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
                // Takes some bytes twice: that is quicker than to copy a length that is not known.
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

    /// Adds one byte in front of a suffix.
    #[inline]
    pub(super) fn step(&self, state: u64, byte: u8) -> u64 {
        (state ^ u64::from(byte.to_ascii_lowercase())).wrapping_mul(self.factor)
    }

    /// The hash of a suffix that begins with a dot or an `@`, as a map of names looks it up.
    pub(super) fn hash_suffix(&self, suffix: &[u8]) -> u64 {
        mix(suffix.iter().rev().fold(!self.start, |state, &byte| self.step(state, byte)))
    }
}

/// Eight bytes with the value 1.
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

/// Multiplication carries upwards only: this brings the high bits down.
#[inline]
pub(super) fn mix(mut state: u64) -> u64 {
    state ^= state >> 32;
    state = state.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    // Never 0, which means "no name".
    (state ^ (state >> 29)).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_domain_is_what_follows_the_last_at() {
        assert_eq!(domain_of(b"a@b"), Some(&b"b"[..]));
        assert_eq!(domain_of(b"a@b@c.example\0"), Some(&b"c.example"[..]));
        assert_eq!(domain_of(b"a@\0\0"), Some(&b""[..]));
        assert_eq!(domain_of(b"nobody\0"), None);
        assert_eq!(domain_of(b""), None);
        assert_eq!(domain_of(b"\0\0"), None);
        // At every position of a word, and beside bytes that differ in one bit only.
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
}
