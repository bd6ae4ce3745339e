//! One instruction that safe Rust does not have.

/// Asks the processor to bring an element into its cache. Unlike a load it holds up nothing that comes after it: a load
/// that misses the cache stops the processor as soon as its reorder buffer is full. (In a profile of `Gate::ask` among
/// a million domains, 47 % of the samples were at a load in its place.)
#[inline]
pub(crate) fn prefetch<T>(element: &T) {
    let address: *const T = element;
    // SAFETY: the instruction reads nothing that the program could see, and the address is valid besides.
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
