//! The functions that C calls. `gate.h` is the contract, and `bindings.rs` is what bindgen made of it. The compiler
//! compares the types of the functions here with it.
//!
//! The macro `export!` makes every function, and it is the boundary: no panic gets out, and nothing is printed. If
//! something fails, C gets this answer:
//!
//! | function | answer when it fails |
//! | --- | --- |
//! | gate_open | 0: no gate |
//! | gate_ask | GATE_GO |
//! | gate_next | GATE_NONE |
//! | gate_done | GATE_GO |
//! | gate_drop_held | - |
//! | gate_timeout_ms | -1 |
//! | gate_held | 0 |
//!
//! A lock guards the state, and no call waits for it: the contract allows one thread, and a second one gets the answer
//! above.

use std::ffi::{CStr, OsStr, c_char, c_int, c_long, c_uint};
use std::hash::{BuildHasher, RandomState};
use std::os::unix::ffi::OsStrExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Mutex, TryLockError};

use crate::bindings::{self, gate_next as NextOut, gate_text as PartIn};
use crate::control::sender::Reads;
use crate::core::command::{PARTS, Parts};
use crate::core::gate::DeliveryEnd;
use crate::host::{Ask, Done, Due, Host};

const NONE: c_int = bindings::GATE_NONE as c_int;
const GO: c_int = bindings::GATE_GO as c_int;
const HOLD: c_int = bindings::GATE_HOLD as c_int;
const BUSY: c_int = bindings::GATE_BUSY as c_int;
const CALL: c_int = bindings::GATE_CALL as c_int;
const _: () = assert!(PARTS == bindings::GATE_PARTS as usize);
const _: () = assert!(crate::core::command::PART_MAX == bindings::GATE_PART_MAX as usize);

static HOST: Mutex<Option<Host>> = Mutex::new(None);

/// [`crate::panic_injection::panics`] for tests in C.
#[cfg(feature = "panic-injection")]
#[unsafe(no_mangle)]
pub extern "C" fn gate_inject_panics(calls: c_uint) {
    crate::panic_injection::panics(calls);
}

/// Closes the gate, so that a test can open another. C cannot call it.
#[doc(hidden)]
pub fn close() {
    *HOST.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = None;
}

/// Runs a body inside the boundary, with the host if the gate is open. The answer when anything fails is `fallback`.
fn guarded<R>(fallback: R, body: impl FnOnce(&mut Option<Host>) -> Option<R>) -> R {
    let mut host = match HOST.try_lock() {
        Ok(host) => host,
        Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
        Err(TryLockError::WouldBlock) => return fallback,
    };
    let outcome = catch_unwind(AssertUnwindSafe(|| {
        #[cfg(feature = "panic-injection")]
        crate::panic_injection::called();
        body(&mut host)
    }));
    match outcome {
        Ok(answer) => answer.unwrap_or(fallback),
        Err(payload) => {
            // Dropping the payload may panic as well.
            let _ = catch_unwind(AssertUnwindSafe(|| drop(payload)));
            let _ = catch_unwind(AssertUnwindSafe(|| host.as_mut().map(Host::fail)));
            fallback
        }
    }
}

/// Exports a function to C inside the boundary, and compares its type with that in gate.h. The types in brackets are
/// those of the parameters once more, for the comparison. The block `first` runs outside the boundary, before the body,
/// so it takes effect even if the body fails.
macro_rules! export {
    (
        $(#[$meta:meta])*
        fn $name:ident($host:ident $(, $parameter:ident: $type:ty)*) $(-> $return:ty)? = $fallback:expr;
        [$($hole:ty),*] $(first $first:block)? $body:block
    ) => {
        $(#[$meta])*
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn $name($($parameter: $type),*) $(-> $return)? {
            $($first)?
            guarded($fallback, |$host| $body)
        }
        const _: [unsafe extern "C" fn($($hole),*) $(-> $return)?; 2] = [$name, bindings::$name];
    };
}

/// The bytes at `text`; None if it is NULL and `length` is not 0.
///
/// # Safety
/// `text` is NULL or points to `length` bytes that stay as they are for `'a`.
unsafe fn bytes<'a>(text: *const c_char, length: c_uint) -> Option<&'a [u8]> {
    if length == 0 {
        return Some(&[]);
    }
    if text.is_null() {
        return None;
    }
    // SAFETY: not NULL, and the caller vouches for the length.
    Some(unsafe { std::slice::from_raw_parts(text.cast(), length as usize) })
}

/// A file name from C, or `default` when it is NULL.
///
/// # Safety
/// `name` is NULL or a string that ends with a zero byte and does not change while the result is used.
unsafe fn path(name: *const c_char, default: &str) -> &OsStr {
    if name.is_null() {
        return OsStr::new(default);
    }
    // SAFETY: not NULL, and the caller vouches for the zero byte.
    OsStr::from_bytes(unsafe { CStr::from_ptr(name) }.to_bytes())
}

export! {
    /// See gate.h.
    ///
    /// # Safety
    /// `control`, `status` and `reads` are NULL or strings that end with a zero byte.
    fn gate_open(
        host,
        slots: c_uint,
        control: *const c_char,
        status: *const c_char,
        reads: *const c_char
    ) -> c_int = 0;
    [c_uint, *const c_char, *const c_char, *const c_char] {
        if host.is_some() {
            return None;
        }
        // A panic prints nothing: descriptor 2 may be the pipe of a delivery.
        std::panic::set_hook(Box::new(|_| {}));
        let seed = RandomState::new().hash_one(slots);
        // SAFETY: the caller passes NULL or strings.
        let (control, status, reads) = unsafe {
            (path(control, "../../control"), path(status, "../lock/gatestatus"), path(reads, ""))
        };
        let reads = Reads::parse(reads.as_bytes());
        *host = Some(Host::open_beside(slots, control, status, reads, seed).ok()?);
        Some(1)
    }
}

export! {
    /// See gate.h.
    ///
    /// # Safety
    /// `part` is NULL or points to `parts` elements, each of which is NULL or points to its `len` bytes. `text` is NULL
    /// or may be written.
    fn gate_ask(host, slot: c_uint, part: *const PartIn, parts: c_uint, text: *mut *const c_char) -> c_int = GO;
    [c_uint, *const PartIn, c_uint, *mut *const c_char]
    first {
        if !text.is_null() {
            // SAFETY: not NULL, so it may be written.
            unsafe { *text = std::ptr::null() };
        }
    }
    {
        let host = host.as_mut()?;
        let count = parts as usize;
        if text.is_null() || part.is_null() || count == 0 || count > PARTS {
            return None;
        }
        let mut slices: [&[u8]; PARTS] = [&[]; PARTS];
        for (at, slice) in slices[..count].iter_mut().enumerate() {
            // SAFETY: at is below parts.
            let PartIn { s, len } = unsafe { *part.add(at) };
            // SAFETY: the caller vouches for each part; it is read during this call only.
            *slice = unsafe { bytes(s, len) }?;
        }
        let parts = Parts::new(&slices[..count])?;
        match host.ask(slot, &parts) {
            Ask::Go => Some(GO),
            Ask::Hold => Some(HOLD),
            Ask::Report => {
                // SAFETY: not NULL. The text stays until the next call changes it.
                unsafe { *text = host.text().as_ptr().cast() };
                Some(BUSY)
            }
        }
    }
}

export! {
    /// See gate.h.
    ///
    /// # Safety
    /// `out` is NULL or may be written.
    fn gate_next(host, out: *mut NextOut) -> c_int = NONE;
    [*mut NextOut] {
        let host = host.as_mut()?;
        if out.is_null() {
            return None;
        }
        let (answer, slot, command) = match host.due() {
            Due::Nothing => return Some(NONE),
            Due::Go { slot, command } => (GO, slot, Some(command)),
            Due::Report { slot, command } => (BUSY, slot, Some(command)),
            Due::Call => (CALL, bindings::GATE_CALL_SLOT, None),
        };
        let command = command.map(|command| host.command(command));
        let parts = command.as_ref().map_or(&[][..], Parts::as_slice);
        let empty = PartIn { s: std::ptr::null(), len: 0 };
        let mut next = NextOut {
            slot,
            parts: parts.len() as c_uint,
            part: [empty; PARTS],
            text: std::ptr::null(),
        };
        for (to, from) in next.part.iter_mut().zip(parts) {
            *to = PartIn { s: from.as_ptr().cast(), len: from.len() as c_uint };
        }
        if answer != GO {
            next.text = host.text().as_ptr().cast();
        }
        // SAFETY: not NULL, so it may be written.
        unsafe { out.write(next) };
        Some(answer)
    }
}

export! {
    /// See gate.h.
    ///
    /// # Safety
    /// `report` is NULL or points to `len` bytes. `text` is NULL or may be written.
    fn gate_done(host, slot: c_uint, report: *const c_char, len: c_uint, text: *mut *const c_char) -> c_int = GO;
    [c_uint, *const c_char, c_uint, *mut *const c_char]
    first {
        if !text.is_null() {
            // SAFETY: not NULL, so it may be written.
            unsafe { *text = std::ptr::null() };
        }
    }
    {
        let host = host.as_mut()?;
        let ran = if report.is_null() || text.is_null() {
            DeliveryEnd::NeverStarted
        } else {
            // SAFETY: not NULL, and the caller vouches for the length.
            DeliveryEnd::Reported(unsafe { bytes(report, len) }?)
        };
        match host.done(slot, ran) {
            Done::AsItIs => Some(GO),
            Done::WithLine => {
                // SAFETY: as below.
                unsafe { *text = host.text().as_ptr().cast() };
                Some(GO)
            }
            Done::Instead => {
                // SAFETY: a delivery that has not run is never reported instead, so text is not NULL. The text stays
                // until the next call changes it.
                unsafe { *text = host.text().as_ptr().cast() };
                Some(BUSY)
            }
        }
    }
}

export! {
    /// See gate.h.
    ///
    /// # Safety
    /// None needed.
    fn gate_timeout_ms(host) -> c_long = -1;
    [] {
        let wait_ms = host.as_mut()?.timeout_ms()?;
        Some(wait_ms.min(60_000) as c_long)
    }
}

export! {
    /// See gate.h.
    ///
    /// # Safety
    /// None needed.
    fn gate_held(host) -> c_uint = 0;
    [] { Some(host.as_ref()?.held()) }
}

export! {
    /// See gate.h.
    ///
    /// # Safety
    /// None needed.
    fn gate_drop_held(host) = ();
    [] {
        host.as_mut()?.drop_held();
        Some(())
    }
}
