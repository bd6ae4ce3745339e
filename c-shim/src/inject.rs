//! Panics on demand, to see that mail goes on after one. Only with the feature `panic-injection`, which tests ask for:
//! the library that goes into the mail server is built without it and has nothing of this (c-shim/tests/c.rs looks).

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
