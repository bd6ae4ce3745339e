//! HalfSipHash-2-4 with a result of 32 bits (Aumasson and Bernstein), as gate_retry.c computes it for the domains whose
//! queue it remembers. The mail server draws the key at random; a simulation has a fixed one, so that it can be
//! repeated.

/// The key of a simulation, and of the tests that compare gate_retry.c with [`crate::retry`].
pub const KEY: [u32; 2] = [0x0302_0100, 0x0706_0504];

/// The hash of some bytes.
#[must_use]
pub(crate) fn half_sip(key: [u32; 2], bytes: impl ExactSizeIterator<Item = u8>) -> u32 {
    let mut v = [key[0], key[1], 0x6c79_6765 ^ key[0], 0x7465_6462 ^ key[1]];
    let mut add = |word: u32| {
        v[3] ^= word;
        round(&mut v);
        round(&mut v);
        v[0] ^= word;
    };
    let (length, mut word) = (bytes.len(), 0);
    for (at, byte) in bytes.enumerate() {
        word |= u32::from(byte) << (8 * (at % 4));
        if at % 4 == 3 {
            add(word);
            word = 0;
        }
    }
    add(word | (length as u32) << 24);
    v[2] ^= 0xff;
    (0..4).for_each(|_| round(&mut v));
    v[1] ^ v[3]
}

fn round(v: &mut [u32; 4]) {
    v[0] = v[0].wrapping_add(v[1]);
    v[1] = v[1].rotate_left(5) ^ v[0];
    v[0] = v[0].rotate_left(16);
    v[2] = v[2].wrapping_add(v[3]);
    v[3] = v[3].rotate_left(8) ^ v[2];
    v[0] = v[0].wrapping_add(v[3]);
    v[3] = v[3].rotate_left(7) ^ v[0];
    v[2] = v[2].wrapping_add(v[1]);
    v[1] = v[1].rotate_left(13) ^ v[2];
    v[2] = v[2].rotate_left(16);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hashes_are_those_of_the_authors() {
        // vectors_hsip32 of their reference implementation, little-endian: 0, 1, ... 9 bytes that count from 0.
        let expected = [
            0x5b9f_35a9,
            0xb85a_4727,
            0x03a6_62fa,
            0x04e7_fe8a,
            0x8946_6e2a,
            0x69b6_fac5,
            0x23fc_6358,
            0xc563_cf8b,
            0x8f84_b8d0,
            0x79e7_06f8,
        ];
        for (length, hash) in (0_u8..).zip(expected) {
            let bytes: Vec<u8> = (0..length).collect();
            assert_eq!(half_sip(KEY, bytes.into_iter()), hash, "{length} bytes");
        }
    }
}
