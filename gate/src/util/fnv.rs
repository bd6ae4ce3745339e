//! 64-bit FNV-1a, for sums and names that are the same in every process. It is no guard against names that somebody
//! chooses.

#![forbid(unsafe_code)]

/// The hash of no bytes.
pub(crate) const BASIS: u64 = 0xcbf2_9ce4_8422_2325;

/// The hash of the bytes that have this hash, and of more behind them.
pub(crate) fn add(hash: u64, more: impl IntoIterator<Item = u8>) -> u64 {
    more.into_iter()
        .fold(hash, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}
