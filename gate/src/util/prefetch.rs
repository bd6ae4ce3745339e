//! One instruction that safe Rust does not have.

/// Asks the processor to load an element into its cache, without waiting. An ordinary load that misses the cache stops
/// the processor as soon as its reorder buffer is full. (In a profile of `Gate::ask` with a million domains, 47 % of
/// the samples were at such a load.)
#[inline]
pub(crate) fn prefetch<T>(element: &T) {
    let address: *const T = element;
    // SAFETY: the instruction has no effect that the program could see, and the address is valid.
    #[cfg(target_arch = "x86_64")]
    unsafe {
        std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T0 }>(address.cast());
    }
    // SAFETY: as above.
    #[cfg(target_arch = "aarch64")]
    unsafe {
        std::arch::asm!("prfm pldl1keep, [{}]", in(reg) address, options(nostack, preserves_flags, readonly));
    }
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    let _ = address;
}
