//! In the steady state a delivery allocates nothing, whether it starts, is held, or is sent away. The only allocations
//! left are those of memory that was idle, given back once a second, and is needed again. Without memory, a new list of
//! shares counts for nothing.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::collections::VecDeque;
use std::fmt::Write as _;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use qpatch_gate::command::Parts;
use qpatch_gate::gate::{Answer, DeliveryEnd, Gate, NextAction};
use qpatch_gate::host::Host;
use qpatch_gate::process::since_boot_ms;
use qpatch_gate::random::Random;
use qpatch_gate::replies::Replies;
use qpatch_gate::table::Table;

#[path = "model/lease.rs"]
mod lease_text;

struct Counting;

static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);

thread_local! {
    /// Larger allocations of this thread fail, in bytes.
    static MOST: Cell<usize> = const { Cell::new(usize::MAX) };
    /// How many have failed.
    static FAILED: Cell<u64> = const { Cell::new(0) };
}

fn must_fail(size: usize) -> bool {
    let must = size > MOST.get();
    FAILED.set(FAILED.get() + u64::from(must));
    must
}

// SAFETY: each call goes to the system's allocator unchanged, or returns null.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        if must_fail(layout.size()) {
            return std::ptr::null_mut();
        }
        // SAFETY: the caller keeps the contract of alloc.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the pointer came from the same allocator.
        unsafe { System.dealloc(pointer, layout) };
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        if must_fail(size) {
            return std::ptr::null_mut();
        }
        // SAFETY: the pointer came from the same allocator.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Without rates, and with rates of each unit.
#[test]
fn none_for_a_delivery() {
    none_with(b":2\nbusy.example:20::learn\n");
    none_with(b":2::100/s\nbusy.example:20::learn,80/s,100000/h,900000/d\n");
}

fn none_with(table: &[u8]) {
    let mut gate = Gate::new(1000, 1000, 1).unwrap();
    let table = Table::parse(table, gate.hasher()).unwrap().0;
    gate.set_table(Some(table), 0).unwrap();
    let words =
        b"450 /no+ (such|thing)/ limit\n4xx \"is full\" nothing\n4.1.8 /[^x]{3,9}: (.*b)+/ rate\n";
    gate.set_replies(Replies::parse(words).unwrap().0, 0);
    let recipients: Vec<String> =
        (0..3000).map(|i| format!("user{i}@{}{i}.example\0", "x".repeat(i % 7))).collect();
    let mut free: Vec<u32> = (0..1000).collect();
    let mut running: VecDeque<u32> = VecDeque::with_capacity(1000);
    let mut is_busy = [false; 1000];
    let mut random = Random::new(5);
    let mut now_us = 0;
    let (mut held, mut busy) = (0, 0);
    let mut deliveries = |count: u32, held: &mut u32, busy: &mut u32| {
        for _ in 0..count {
            now_us += 2000;
            let recipient = match random.next() % 2 {
                0 => &b"user@busy.example\0"[..],
                _ => recipients[(random.next() % 3000) as usize].as_bytes(),
            };
            let slot = free.pop().unwrap();
            is_busy[slot as usize] = recipient.starts_with(b"user@busy");
            match gate.ask(
                now_us,
                slot,
                &Parts::new(&[b"12/345\0", b"s@a.example\0", recipient]).unwrap(),
            ) {
                Answer::Go => running.push_back(slot),
                Answer::Hold => *held += 1,
                _ => {
                    *busy += 1;
                    free.push(slot);
                }
            }
            // About 100 deliveries run, each for 0.2 s or more.
            if running.len() > 100 {
                let slot = running.pop_front().unwrap();
                // When a key is forgotten, its error text is freed.
                let report = match random.next() % 8 {
                    0 if is_busy[slot as usize] => &b"ZConnected to 10.0.0.1 but sender was rejected.\nRemote host said: 450 4.1.8 <s@a.example>: a.example\n\0"[..],
                    _ => b"r\0K10.0.0.1 accepted message.\n\0",
                };
                gate.done(now_us, slot, DeliveryEnd::Reported(report));
                free.push(slot);
            }
            while let NextAction::Go { slot, .. } = gate.next(now_us) {
                running.push_back(slot);
            }
            if now_us % 1_000_000 == 0 {
                gate.tidy(now_us).unwrap();
            }
        }
    };
    deliveries(100_000, &mut held, &mut busy);
    (held, busy) = (0, 0);
    let before = ALLOCATIONS.load(Ordering::Relaxed);
    deliveries(100_000, &mut held, &mut busy);
    let made = ALLOCATIONS.load(Ordering::Relaxed) - before;
    println!("100,000 deliveries, {held} held, {busy} sent away: {made} allocations");
    assert!(held > 1000 && busy > 1000);
    // In 200 seconds: about one a second, for what the gate gives back in quiet moments.
    assert!(made < 300, "{made} allocations");
}

/// The agent gives away what a version of the lease does not list, once the gate confirms that version. So it counts as
/// a whole, or not at all.
#[test]
fn a_lease_without_memory_is_not_confirmed() {
    let dir = std::env::temp_dir().join(format!("qpatch-allocation-{}", std::process::id()));
    let (control, lock) = (dir.join("control"), dir.join("queue/lock"));
    for folder in [&control, &lock] {
        std::fs::create_dir_all(folder).unwrap();
    }
    std::fs::write(control.join("concurrencydomains"), ":20\n").unwrap();
    let status = lock.join("gatestatus");
    let write = |seq: u64, keys: &str| {
        let until_ms = since_boot_ms().unwrap() + 600_000;
        let mut text = lease_text::lease(seq, until_ms, keys);
        // What follows makes the gate's buffer large enough for all files of this test.
        text += &"x".repeat(20_000 - text.len());
        std::fs::write(lock.join("gatelease"), text).unwrap();
    };
    write(1, "domain\ta.example\t3\n");
    let mut host = Host::open(40, control.as_os_str(), status.as_os_str(), 1).unwrap();
    let parts = [&b"1/1\0"[..], b"s\0", b"u@a.example\0"];
    host.ask(0, &Parts::new(&parts).unwrap());
    let in_force = |host: &Host| {
        let key = host.gate().keys().find(|key| key.name == b"a.example").unwrap();
        (host.gate().host_shares().len(), key.share)
    };
    assert_eq!(in_force(&host), (1, 3));
    let mut keys = "domain\ta.example\t0\n".to_string();
    for number in 0..500 {
        writeln!(keys, "domain\t{number}.example\t1").unwrap();
    }
    write(2, &keys);
    let until = |host: &mut Host, holds: &dyn Fn(&Host) -> bool| {
        let end = Instant::now() + Duration::from_secs(20);
        while !holds(host) {
            assert!(Instant::now() < end, "the gate does not look at the lease");
            host.due();
            std::thread::sleep(Duration::from_millis(10));
        }
    };
    // The list of 501 keys has 8 KB; the gate must still read the file.
    MOST.set(4000);
    until(&mut host, &|_| FAILED.get() > 0);
    assert_eq!(in_force(&host), (1, 3));
    MOST.set(usize::MAX);
    until(&mut host, &|host| in_force(host) == (501, 0));
    std::fs::remove_dir_all(&dir).unwrap();
}
