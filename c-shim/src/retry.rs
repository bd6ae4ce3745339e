//! gate_retry.c for tests: its calls as methods, with a clock that the test sets, and an allocator that fails on
//! demand, moves every block that grows, and checks that nothing was written beyond a block.
//!
//! gate_retry.c has one state for the process, so there is one [`Retry`] at a time.

use std::cell::{Cell, RefCell};
use std::ffi::{CStr, c_char, c_int, c_long, c_uint, c_ulong, c_void};
use std::sync::{Mutex, MutexGuard, PoisonError};

unsafe extern "C" {
    fn gate_retry_open(j: c_int, c: c_int, id: c_ulong, dt: c_long) -> c_int;
    fn gate_retry_next(j: c_int, fd: c_int, mpos: *mut c_ulong) -> c_int;
    fn gate_retry_skip(j: c_int, mpos: c_ulong, recip: *mut c_char) -> c_int;
    fn gate_retry_again() -> c_int;
    fn gate_retry_ask(c: c_int, id: *mut c_ulong, recip: *mut *mut c_char) -> c_int;
    fn gate_retry_report(
        j: c_int,
        c: c_int,
        id: c_ulong,
        mpos: c_ulong,
        natural: c_long,
        recip: *mut c_char,
        report: *mut c_char,
    );
    fn gate_retry_close(j: c_int, flaghiteof: c_int, dt: *mut c_long) -> c_int;
    fn gate_retry_call(c: c_int, delnum: c_ulong, report: *mut c_char) -> c_int;
    fn gate_retry_due(c: c_int, id: *mut c_ulong, dt: *mut c_long) -> c_int;
    fn gate_retry_wakeup(wakeup: c_long) -> c_long;
    fn gate_retry_alarm(c: c_int, id: *mut c_ulong, dt: *mut c_long) -> c_int;
    fn gate_retry_flush(c: c_int, id: *mut c_ulong, dt: *mut c_long) -> c_int;
    fn gate_test_reset();
    fn gate_test_set_file(file: c_int);
    fn gate_test_set_key(first: c_uint, second: c_uint);
    fn gate_test_sizes(which: c_int) -> c_uint;
    fn gate_test_used(which: c_int) -> c_uint;
}

thread_local! {
    static CLOCK: Cell<i64> = const { Cell::new(0) };
    static HEAP: RefCell<Heap> = RefCell::new(Heap::default());
}

/// When memory is short.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Shortage {
    /// Never.
    #[default]
    None,
    /// All the time.
    All,
    /// Once: the request with this number, from 0, since this was set.
    At(u64),
    /// By these bits, from the lowest: a request whose bit is set fails. The 65th request has the first bit again.
    Bits(u64),
}

impl Shortage {
    /// Whether the request with this number fails.
    #[must_use]
    pub fn fails(self, request: u64) -> bool {
        match self {
            Self::None => false,
            Self::All => true,
            Self::At(at) => at == request,
            Self::Bits(bits) => bits >> (request % 64) & 1 == 1,
        }
    }
}

#[derive(Default)]
struct Heap {
    shortage: Shortage,
    requests: u64,
    blocks: Vec<Block>,
}

/// With [`MARGIN`] bytes behind it.
struct Block {
    bytes: Box<[u8]>,
    size: usize,
}

const MARGIN: usize = 64;
const MARGIN_BYTE: u8 = 0xa5;
/// Fresh memory is filled with this byte.
const FRESH_BYTE: u8 = 0xe7;

impl Heap {
    fn request(&mut self, size: usize) -> *mut u8 {
        let number = self.requests;
        self.requests += 1;
        if self.shortage.fails(number) {
            return std::ptr::null_mut();
        }
        let mut bytes = vec![FRESH_BYTE; size + MARGIN].into_boxed_slice();
        bytes[size..].fill(MARGIN_BYTE);
        self.blocks.push(Block { bytes, size });
        self.blocks.last_mut().map_or(std::ptr::null_mut(), |block| block.bytes.as_mut_ptr())
    }

    /// Frees a block, and returns it. Aborts if the address is not that of a block.
    fn release(&mut self, address: *const u8) -> Block {
        let at = self.blocks.iter().position(|block| block.bytes.as_ptr() == address);
        let Some(at) = at else { die("free of what is no block") };
        let mut block = self.blocks.swap_remove(at);
        if block.bytes[block.size..].iter().any(|&byte| byte != MARGIN_BYTE) {
            die("written beyond the end of a block");
        }
        block.bytes[block.size..].fill(0);
        block
    }
}

/// A panic cannot pass through C.
fn die(what: &str) -> ! {
    eprintln!("gate_retry.c: {what}");
    std::process::abort()
}

#[unsafe(no_mangle)]
extern "C" fn gate_test_time(to: *mut c_long) -> c_long {
    if !to.is_null() {
        die("it asks time for more than its result");
    }
    CLOCK.get()
}

#[unsafe(no_mangle)]
extern "C" fn gate_test_malloc(size: usize) -> *mut c_void {
    HEAP.with_borrow_mut(|heap| heap.request(size)).cast()
}

#[unsafe(no_mangle)]
extern "C" fn gate_test_realloc(address: *mut c_void, size: usize) -> *mut c_void {
    HEAP.with_borrow_mut(|heap| {
        let to = heap.request(size);
        if !to.is_null() && !address.is_null() {
            let old = heap.release(address.cast_const().cast());
            let Some(new) =
                heap.blocks.iter_mut().find(|block| block.bytes.as_ptr() == to.cast_const())
            else {
                die("the block is gone")
            };
            let both = old.size.min(new.size);
            new.bytes[..both].copy_from_slice(&old.bytes[..both]);
        }
        to.cast()
    })
}

#[unsafe(no_mangle)]
extern "C" fn gate_test_free(address: *mut c_void) {
    if !address.is_null() {
        HEAP.with_borrow_mut(|heap| drop(heap.release(address.cast_const().cast())));
    }
}

/// What a seek to a recipient finds. At the beginning of a file it always finds one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum File {
    /// A recipient.
    #[default]
    Same = 0,
    /// The middle of something.
    Other = 1,
    /// The end of the file, or beyond.
    Shorter = 2,
    /// An error.
    Unreadable = 3,
}

/// gate_retry.c, as it is at the start of qmail-send.
pub struct Retry {
    _alone: MutexGuard<'static, ()>,
}

impl Retry {
    /// Starts one. Waits until no other test has it.
    pub fn start() -> Self {
        static ALONE: Mutex<()> = Mutex::new(());
        let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        HEAP.set(Heap::default());
        let [first, second] = qpatch_gate_model::DOMAIN_KEY;
        // SAFETY: gate_retry.c runs in one thread at a time: this one has the lock.
        unsafe { gate_test_set_key(first, second) }
        Self { _alone: alone }
    }

    /// Sets the clock.
    pub fn set_clock(&mut self, seconds: i64) {
        CLOCK.set(seconds);
    }

    /// From now on.
    pub fn set_shortage(&mut self, shortage: Shortage) {
        HEAP.with_borrow_mut(|heap| (heap.shortage, heap.requests) = (shortage, 0));
    }

    /// How often it has requested memory since the shortage was set.
    pub fn requests(&self) -> u64 {
        HEAP.with_borrow(|heap| heap.requests)
    }

    /// How much memory it has, in bytes.
    pub fn memory(&self) -> usize {
        HEAP.with_borrow(|heap| heap.blocks.iter().map(|block| block.size).sum())
    }

    /// The sizes in bytes of a channel, a part of a message, a queue, a message, a recipient, a running job, and the
    /// queues of domains.
    pub fn sizes(&self) -> [u32; 7] {
        // SAFETY: it reads constants.
        [0, 1, 2, 3, 4, 5, 6].map(|which| unsafe { gate_test_sizes(which) })
    }

    /// How many messages, parts of them and recipients it knows.
    pub fn used(&self) -> [u32; 3] {
        // SAFETY: as in `open`.
        [0, 1, 2].map(|which| unsafe { gate_test_used(which) })
    }

    /// gate_retry_open
    pub fn open(&mut self, j: i32, c: i32, id: u64, dt: i64) -> bool {
        // SAFETY: gate_retry.c runs in one thread at a time: this one has the lock.
        unsafe { gate_retry_open(j, c, id, dt) != 0 }
    }

    /// From now on.
    pub fn set_file(&mut self, file: File) {
        // SAFETY: as in `open`.
        unsafe { gate_test_set_file(file as c_int) }
    }

    /// gate_retry_next: its answer, and the position afterwards.
    pub fn next(&mut self, j: i32, mut mpos: u64) -> (i32, u64) {
        // SAFETY: as in `open`, and mpos lives longer than the call.
        let answer = unsafe { gate_retry_next(j, -1, &raw mut mpos) };
        (answer, mpos)
    }

    /// gate_retry_skip
    pub fn skip(&mut self, j: i32, mpos: u64, recipient: &[u8]) -> bool {
        let mut recipient = [recipient, b"\0"].concat();
        // SAFETY: as in `open`, and the address ends with a zero byte.
        unsafe { gate_retry_skip(j, mpos, recipient.as_mut_ptr().cast()) != 0 }
    }

    /// gate_retry_again
    pub fn again(&mut self) -> bool {
        // SAFETY: as in `open`.
        unsafe { gate_retry_again() != 0 }
    }

    /// gate_retry_ask
    pub fn ask(&mut self, c: i32) -> Option<(u64, Vec<u8>)> {
        let (mut id, mut recipient) = (0, std::ptr::null_mut());
        // SAFETY: as in `open`, and both live longer than the call. What it points to then ends with a zero byte, and
        // stays until the next call.
        unsafe {
            let is = gate_retry_ask(c, &raw mut id, &raw mut recipient);
            (is != 0).then(|| (id, CStr::from_ptr(recipient).to_bytes().to_vec()))
        }
    }

    /// gate_retry_report. The zero bytes are added and removed here.
    #[expect(clippy::too_many_arguments, reason = "as many as the C has")]
    pub fn report(
        &mut self,
        j: i32,
        c: i32,
        id: u64,
        mpos: u64,
        natural: i64,
        recipient: &[u8],
        report: &mut Vec<u8>,
    ) {
        let mut recipient = [recipient, b"\0"].concat();
        report.push(0);
        // SAFETY: as in `open`, and both end with a zero byte.
        unsafe {
            let recipient = recipient.as_mut_ptr().cast();
            gate_retry_report(j, c, id, mpos, natural, recipient, report.as_mut_ptr().cast());
        }
        report.truncate(report.iter().position(|&byte| byte == 0).unwrap_or(report.len()));
    }

    /// gate_retry_close: None if the message waits.
    pub fn close(&mut self, j: i32, at_end: bool, natural: i64) -> Option<i64> {
        let mut dt = natural;
        // SAFETY: as in `open`, and dt lives longer than the call.
        let waits = unsafe { gate_retry_close(j, c_int::from(at_end), &raw mut dt) };
        (waits == 0).then_some(dt)
    }

    /// gate_retry_call
    pub fn call(&mut self, c: i32, delnum: u64, report: &[u8]) -> bool {
        let mut report = [report, b"\0"].concat();
        // SAFETY: as in `report`.
        unsafe { gate_retry_call(c, delnum, report.as_mut_ptr().cast()) != 0 }
    }

    /// gate_retry_due
    pub fn due(&mut self, c: i32) -> Option<(u64, i64)> {
        let (mut id, mut dt) = (0, 0);
        // SAFETY: as in `close`.
        let is = unsafe { gate_retry_due(c, &raw mut id, &raw mut dt) };
        (is != 0).then_some((id, dt))
    }

    /// gate_retry_wakeup
    pub fn wakeup(&mut self, wakeup: i64) -> i64 {
        // SAFETY: as in `open`.
        unsafe { gate_retry_wakeup(wakeup) }
    }

    /// gate_retry_alarm
    pub fn alarm(&mut self, c: i32) -> Option<(u64, i64)> {
        let (mut id, mut dt) = (0, 0);
        // SAFETY: as in `close`.
        let is = unsafe { gate_retry_alarm(c, &raw mut id, &raw mut dt) };
        (is != 0).then_some((id, dt))
    }

    /// gate_retry_flush
    pub fn flush(&mut self, c: i32) -> Option<(u64, i64)> {
        let (mut id, mut dt) = (0, 0);
        // SAFETY: as in `close`.
        let is = unsafe { gate_retry_flush(c, &raw mut id, &raw mut dt) };
        (is != 0).then_some((id, dt))
    }
}

impl Drop for Retry {
    fn drop(&mut self) {
        // SAFETY: as in `open`.
        unsafe { gate_test_reset() }
        let left = self.memory();
        if left > 0 && !std::thread::panicking() {
            panic!("{left} bytes are not freed");
        }
    }
}
