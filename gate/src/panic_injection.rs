//! Panics on demand, for tests that mail goes on after a panic. It exists only with the feature `panic-injection`: the
//! library for the mail server is built without it, and c-shim/tests/c.rs checks that it has nothing of this.

#![forbid(unsafe_code)]

use std::sync::atomic::{AtomicU32, Ordering};

static PANICS: AtomicU32 = AtomicU32::new(0);

/// Makes the next `calls` calls of exported functions panic.
pub fn panics(calls: u32) {
    PANICS.store(calls, Ordering::Relaxed);
}

/// An exported function has been called.
pub(crate) fn called() {
    let left = PANICS.load(Ordering::Relaxed);
    if left > 0 {
        PANICS.store(left - 1, Ordering::Relaxed);
        panic!("injected");
    }
}

/// The call of [`fault`], counted from 1, that panics next; 0: none.
static PLACE: AtomicU32 = AtomicU32::new(0);

/// Makes the `place`th call of [`fault`] from now on panic. These calls are where the gate takes or returns a place of
/// a key or a slot.
pub fn panics_at(place: u32) {
    PLACE.store(place, Ordering::Relaxed);
}

/// Whether the panic of [`panics_at`] has happened.
#[must_use]
pub fn has_panicked() -> bool {
    PLACE.load(Ordering::Relaxed) == 0
}

/// Called where the gate is in the middle of taking or returning a place.
pub(crate) fn fault() {
    let left = PLACE.load(Ordering::Relaxed);
    if left > 0 {
        PLACE.store(left - 1, Ordering::Relaxed);
        assert!(left > 1, "injected");
    }
}
