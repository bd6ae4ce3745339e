//! Measures what the gate costs: `cargo bench -p qpatch-gate`. Prints figures and ratios, with the bars of the design.

use std::hint::black_box;

use qpatch_gate::command::Parts;
use qpatch_gate::ffi;
use qpatch_gate::gate::{Answer, DeliveryEnd, Gate, NextAction};
use qpatch_gate::name::Hasher;
use qpatch_gate::other_spawners::{Announcement, Demand, OtherSpawners};
use qpatch_gate::random::Random;
use qpatch_gate::rules::{KeyKind, Rules};
use qpatch_gate::site::Map;
use qpatch_gate::spawner_columns::Shared;
use qpatch_gate::table::Table;

/// The processor time of this thread. On a shared machine, the time of other processes does not count.
struct Running {
    start_ns: u64,
}

impl Running {
    fn now() -> Self {
        Self { start_ns: thread_cpu_ns() }
    }

    fn elapsed_ns(&self) -> f64 {
        (thread_cpu_ns() - self.start_ns) as f64
    }
}

#[cfg(all(target_os = "linux", target_pointer_width = "64"))]
fn thread_cpu_ns() -> u64 {
    #[repr(C)]
    struct Timespec {
        secs: i64,
        nanos: i64,
    }
    unsafe extern "C" {
        fn clock_gettime(clock: i32, time: *mut Timespec) -> i32;
    }
    const CLOCK_THREAD_CPUTIME_ID: i32 = 3;
    let mut time = Timespec { secs: 0, nanos: 0 };
    // SAFETY: time is what 64-bit Linux calls a timespec, and may be written.
    assert_eq!(unsafe { clock_gettime(CLOCK_THREAD_CPUTIME_ID, &mut time) }, 0);
    time.secs as u64 * 1_000_000_000 + time.nanos as u64
}

#[cfg(not(all(target_os = "linux", target_pointer_width = "64")))]
fn thread_cpu_ns() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_nanos() as u64
}

const REPORT: &[u8] = b"r\0Kaccepted\0";
const BAR_NS: f64 = 200.0;
/// The bytes that a packed table of a million names needs for them, without the lines' numbers.
const PLACES_BYTES: u32 = 6_700_000;

fn domain(i: u32) -> String {
    // 7 to 27 bytes, as domains are.
    const WORDS: [&str; 8] =
        ["mail", "example", "the-company", "a", "university", "shop", "news.letter", "post"];
    const ENDS: [&str; 4] = ["com", "example", "co.uk", "de"];
    format!("{}{i}.{}", WORDS[i as usize % 8], ENDS[i as usize / 8 % 4])
}

fn table_of(domains: u32) -> String {
    (0..domains).map(|i| format!("{}:20\n", domain(i))).collect()
}

fn gate_with(domains: u32) -> Gate {
    let mut gate = Gate::new(1000, 1000, 1).unwrap();
    let (table, problems) = Table::parse(table_of(domains).as_bytes(), gate.hasher()).unwrap();
    assert!(problems.is_empty());
    gate.set_table(Some(table), 0).unwrap();
    gate
}

/// Each domain is as likely as the others, which is the worst case.
fn evenly(domains: u32) -> impl Fn(&mut Random) -> u32 {
    move |random| (random.next() % u64::from(domains)) as u32
}

/// Domains as in real mail: the nth domain has an nth of the first one's mail (Zipf's law).
fn as_mail_is_spread(domains: u32) -> impl Fn(&mut Random) -> u32 {
    let log = f64::from(domains + 1).ln();
    move |random| (((random.fraction() * log).exp() as u32).clamp(1, domains)) - 1
}

/// Nanoseconds for an ask and its done, with the domains in random order and some deliveries running all the time. The
/// best of several rounds counts, so that other load does not.
fn ask_and_done(
    gate: &mut Gate,
    pick: impl Fn(&mut Random) -> u32,
    recipient: impl Fn(u32) -> String,
) -> f64 {
    const ROUNDS: usize = 12;
    const BATCHES: usize = 400;
    const BATCH: usize = 500;
    let mut random = Random::new(9);
    let mut best = f64::MAX;
    let mut now_us = 0;
    for _ in 0..ROUNDS {
        let mut ns = 0.0;
        for _ in 0..BATCHES {
            // The commands are in a small buffer that is filled before the clock starts, as the spawner's is from the
            // pipe. So neither the bench's own memory nor its use of the cache is measured.
            let text: String = (0..BATCH).map(|_| recipient(pick(&mut random))).collect();
            let parts: Vec<Parts<'_>> = text
                .split_inclusive('\0')
                .map(|recipient| {
                    Parts::new(&[b"12/3456\0", b"sender@example\0", recipient.as_bytes()]).unwrap()
                })
                .collect();
            let start = Running::now();
            for (at, parts) in parts.iter().enumerate() {
                now_us += 50;
                let slot = at as u32 % 20;
                black_box(gate.ask(now_us, slot, parts));
                gate.done(now_us + 40, slot, DeliveryEnd::Reported(REPORT));
            }
            ns += start.elapsed_ns();
        }
        best = best.min(ns / (BATCHES * BATCH) as f64);
    }
    best
}

fn recipient(i: u32) -> String {
    format!("somebody@{}\0", domain(i))
}

fn recipients(domains: u32) -> Vec<String> {
    (0..domains).map(recipient).collect()
}

fn asks() {
    println!("ask + done (bar: {BAR_NS} ns, flat)");
    let mut first = None;
    for domains in [1u32, 1000, 1_000_000] {
        let mut gate = gate_with(domains);
        let ns = ask_and_done(&mut gate, evenly(domains), recipient);
        let base = *first.get_or_insert(ns);
        println!("  {domains:>9} known domains  {ns:7.1} ns  x{:.2}", ns / base);
    }
    let mut gate = gate_with(1_000_000);
    let ns = ask_and_done(&mut gate, as_mail_is_spread(1_000_000), recipient);
    println!("       as mail is spread  {ns:7.1} ns");
    let mut gate = gate_with(1_000_000);
    let unknown = |i| format!("u@mx{i}.unknown.example.org\0");
    println!(
        "    1000000 unknown ones  {:7.1} ns",
        ask_and_done(&mut gate, evenly(1_000_000), unknown)
    );
    let mut gate = Gate::new(1000, 1000, 1).unwrap();
    println!(
        "         no control file  {:7.1} ns",
        ask_and_done(&mut gate, evenly(1000), recipient)
    );
}

/// The same through the C interface, which adds the clock and the lock, and once a second the files.
fn through_c() {
    let directory = std::env::temp_dir().join(format!("gate-bench-{}", std::process::id()));
    std::fs::create_dir_all(&directory).unwrap();
    std::fs::write(directory.join("concurrencydomains"), table_of(1000)).unwrap();
    std::fs::write(directory.join("status"), "").unwrap();
    let string = |path: &std::path::Path| std::ffi::CString::new(path.to_str().unwrap()).unwrap();
    let (control, status) = (string(&directory), string(&directory.join("status")));
    let (control, status, reads) = (control.as_ptr(), status.as_ptr(), std::ptr::null());
    // SAFETY: both strings live on, and end with a zero byte.
    assert_eq!(unsafe { ffi::gate_open(1000, control, status, reads) }, 1);
    let recipients = recipients(1000);
    const CALLS: usize = 500_000;
    let start = Running::now();
    for at in 0..CALLS {
        let recipient = recipients[at % 1000].as_bytes();
        let parts = [part(b"12/3456\0"), part(b"sender@example\0"), part(recipient)];
        let mut text = std::ptr::null();
        let slot = at as u32 % 20;
        // SAFETY: the parts have their bytes, and text may be written; so has the report its bytes.
        unsafe {
            black_box(ffi::gate_ask(slot, parts.as_ptr().cast(), 3, &mut text));
            ffi::gate_done(slot, REPORT.as_ptr().cast(), REPORT.len() as u32, &mut text);
        }
    }
    println!(
        "  through the C interface, 1000 domains {:7.1} ns",
        start.elapsed_ns() / CALLS as f64
    );
    ffi::close();
    let _ = std::fs::remove_dir_all(directory);
}

/// The same with several spawners of a queue, which share in a file what they run.
fn shared() {
    let path = std::env::temp_dir().join(format!("gate-bench-shared-{}", std::process::id()));
    println!("ask + done beside other spawners, 1000 domains");
    for spawners in [2u32, 4, 22] {
        std::fs::write(&path, "").unwrap();
        let open = |seed: u32| {
            Shared::open(path.as_os_str(), 1000, spawners, seed.into()).unwrap().unwrap()
        };
        let mut others: Vec<Shared> = (1..spawners).map(open).collect();
        for i in 0..1000 {
            let name = domain(i);
            others[0].announce(
                KeyKind::Domain,
                name.as_bytes(),
                Announcement { running: 1, demand: Demand::Nothing },
            );
        }
        let mut gate = gate_with(1000);
        gate.share(Box::new(open(0)));
        let ns = ask_and_done(&mut gate, evenly(1000), recipient);
        println!("  {spawners:>9} spawners        {ns:9.1} ns");
    }
    let _ = std::fs::remove_file(path);
}

/// gate.h's struct gate_text.
#[repr(C)]
struct Part {
    s: *const std::ffi::c_char,
    len: std::ffi::c_uint,
}

fn part(bytes: &[u8]) -> Part {
    Part { s: bytes.as_ptr().cast(), len: bytes.len() as u32 }
}

/// A busy domain: hold, take the next one, and send away.
fn holds() {
    let mut gate = Gate::new(1000, 1000, 1).unwrap();
    let (table, _) = Table::parse(b":20\n", gate.hasher()).unwrap();
    gate.set_table(Some(table), 0).unwrap();
    let parts =
        Parts::new(&[b"12/3456\0", b"sender@example\0", b"somebody@busy.example\0"]).unwrap();
    let mut slot = 0;
    while gate.ask(0, slot, &parts) != Answer::Hold || gate.held() < 400 {
        slot += 1;
    }
    const CALLS: u32 = 500_000;
    let mut running: std::collections::VecDeque<u32> = (0..20).collect();
    let start = Running::now();
    for at in 0..CALLS {
        let now_us = u64::from(at) * 10_000;
        let ended = running.pop_front().unwrap();
        gate.done(now_us, ended, DeliveryEnd::Reported(REPORT));
        let NextAction::Go { slot, .. } = gate.next(now_us) else { panic!("a place is free") };
        running.push_back(slot);
        assert_eq!(gate.ask(now_us, ended, &parts), Answer::Hold);
    }
    let hold_ns = start.elapsed_ns() / f64::from(CALLS);
    let mut busy = 0u32;
    for slot in 0..1000 {
        if matches!(gate.ask(0, slot, &parts), Answer::Busy(_)) {
            busy = slot;
            break;
        }
    }
    let start = Running::now();
    let mut now_us = u64::from(CALLS) * 10_000;
    for _ in 0..CALLS {
        now_us += 2_000;
        black_box(gate.ask(now_us, busy, &parts));
    }
    let busy_ns = start.elapsed_ns() / f64::from(CALLS);
    println!(
        "a busy domain\n  done + next + hold {hold_ns:7.1} ns\n  sent away          {busy_ns:7.1} ns"
    );
}

fn tables() {
    println!("tables");
    for domains in [1000u32, 100_000, 1_000_000] {
        let text = table_of(domains);
        let hasher = Hasher::new(1);
        let start = Running::now();
        let (table, _) = Table::parse(text.as_bytes(), hasher).unwrap();
        let parse_ms = start.elapsed_ns() / 1e6;
        let bytes = table.bytes() as f64 / f64::from(domains);
        let name_bytes =
            (0..domains).map(|i| domain(i).len()).sum::<usize>() as f64 / f64::from(domains);
        println!(
            "  {domains:>9} lines, {:5.1} MB  parsed in {parse_ms:7.2} ms  {bytes:5.1} bytes a domain ({name_bytes:.1} of them its name)",
            text.len() as f64 / 1e6
        );
    }
    let mut gate = gate_with(100_000);
    let recipients = recipients(500);
    for (slot, recipient) in (0..500).zip(&recipients) {
        let parts = Parts::new(&[b"1/1\0", b"s\0", recipient.as_bytes()]).unwrap();
        gate.ask(0, slot, &parts);
    }
    let text = table_of(100_000);
    let start = Running::now();
    let (table, _) = Table::parse(text.as_bytes(), gate.hasher()).unwrap();
    gate.set_table(Some(table), 1).unwrap();
    println!(
        "  reload of 100000 lines with 500 deliveries running: {:.2} ms",
        start.elapsed_ns() / 1e6
    );
    println!("  the gate besides its table, 500 deliveries to 500 domains: {} bytes", gate.bytes());
}

fn rules() {
    let hasher = Hasher::new(1);
    let rules = Rules {
        table: Some(Table::parse(table_of(1_000_000).as_bytes(), hasher).unwrap().0),
        ..Rules::stock(hasher)
    };
    let mut random = Random::new(2);
    let names: Vec<String> =
        (0..200_000).map(|_| domain((random.next() % 1_000_000) as u32)).collect();
    let start = Running::now();
    for name in &names {
        black_box(rules.resolve(name.as_bytes()));
    }
    println!("  one look-up among a million: {:.1} ns", start.elapsed_ns() / names.len() as f64);
    // An array as large as the table, each element of which is read once, in random order (Sattolo's algorithm).
    let mut next: Vec<u32> = (0..PLACES_BYTES / 4).collect();
    for at in (1..next.len()).rev() {
        next.swap(at, (random.next() % at as u64) as usize);
    }
    let start = Running::now();
    let mut at = 0;
    for _ in 0..names.len() {
        at = next[at as usize];
    }
    black_box(at);
    println!("  one load from as much memory: {:.1} ns", start.elapsed_ns() / names.len() as f64);
}

/// Measures what a new site costs: all keys are rebuilt. The bar is the one at RESITE_US in gate.rs.
fn sites() {
    for (slots, domains) in [(1000, 100), (1000, 1000), (65_000, 100), (65_000, 60_000)] {
        let mut gate = Gate::new(slots, slots, 1).unwrap();
        let (table, _) = Table::parse(b":20\n192.0.2.0/24:20:site\n", gate.hasher()).unwrap();
        gate.set_table(Some(table), 0).unwrap();
        for (slot, recipient) in recipients(domains).iter().enumerate() {
            gate.ask(
                1,
                slot as u32,
                &Parts::new(&[b"1/1\0", b"s\0", recipient.as_bytes()]).unwrap(),
            );
        }
        let best = (0..10)
            .map(|round| {
                let map = Map::new(gate.hasher());
                let start = Running::now();
                gate.set_map(map, 2 + round).unwrap();
                start.elapsed_ns()
            })
            .fold(f64::MAX, f64::min);
        let share = best / 1000.0 / (f64::from(domains + slots / 8) * 20.0);
        println!(
            "{slots:6} slots, {domains:6} domains: keys made anew in {:8.1} us, {:4.1} % of the time until the next time (bar 2 %)",
            best / 1000.0,
            share * 100.0
        );
    }
}

fn main() {
    asks();
    through_c();
    shared();
    holds();
    tables();
    sites();
    rules();
}
