//! The functions for C, called from Rust: in the wrong order, with wrong arguments, and with panics. A process has one
//! gate, so the tests run one after the other.

use std::ffi::{CString, c_char, c_int, c_long, c_uint};
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::ptr::null;
use std::sync::{Mutex, MutexGuard};

use qpatch_gate::ffi::{
    close, gate_ask, gate_done, gate_drop_held, gate_held, gate_next, gate_open, gate_timeout_ms,
};
use qpatch_gate::panic_injection;
use qpatch_gate::status::State;
use qpatch_gate_status::Status;

const NONE: c_int = 0;
const GO: c_int = 1;
const HOLD: c_int = 2;
const CALL: c_int = 4;
const BUSY: c_int = 3;

/// The structures of gate.h, as a C program lays them out.
#[repr(C)]
#[derive(Clone, Copy)]
struct Text {
    s: *const c_char,
    len: c_uint,
}

#[repr(C)]
struct NextAction {
    slot: c_uint,
    parts: c_uint,
    part: [Text; 8],
    text: *const c_char,
}

struct Home {
    path: PathBuf,
    _alone: MutexGuard<'static, ()>,
}

impl Home {
    fn new() -> Self {
        static ALONE: Mutex<()> = Mutex::new(());
        let alone = ALONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        close();
        let path = std::env::temp_dir().join(format!("gate-ffi-{}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        fs::create_dir_all(&path).unwrap();
        fs::write(path.join("concurrencyremote"), "100\n").unwrap();
        fs::write(path.join("concurrencydomains"), ":1\n").unwrap();
        fs::write(path.join("status"), "").unwrap();
        Self { path, _alone: alone }
    }

    fn open(&self, slots: c_uint) -> c_int {
        let control = string(&self.path);
        let status = string(&self.path.join("status"));
        // SAFETY: both are strings that end with a zero byte.
        let opened = unsafe { gate_open(slots, control.as_ptr(), status.as_ptr(), c"".as_ptr()) };
        // The gate silences panics; the test must show them.
        drop(std::panic::take_hook());
        opened
    }

    fn status(&self) -> Status {
        Status::parse(&fs::read(self.path.join("status")).unwrap()).unwrap()
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        close();
        let _ = fs::remove_dir_all(&self.path);
    }
}

fn string(path: &Path) -> CString {
    CString::new(path.as_os_str().as_bytes()).unwrap()
}

fn text(bytes: &[u8]) -> Text {
    Text { s: bytes.as_ptr().cast(), len: bytes.len() as c_uint }
}

fn ask_parts(slot: c_uint, parts: &[Text]) -> (c_int, Option<String>) {
    let mut report = std::ptr::dangling::<c_char>();
    // SAFETY: parts has as many elements, each of which has its bytes; report may be written.
    let answer =
        unsafe { gate_ask(slot, parts.as_ptr().cast(), parts.len() as c_uint, &mut report) };
    // SAFETY: a report ends with a zero byte and stays until the next call.
    let report = (!report.is_null()).then(|| unsafe { std::ffi::CStr::from_ptr(report) });
    (answer, report.map(|report| report.to_str().unwrap().to_string()))
}

fn ask(slot: c_uint, domain: &str) -> c_int {
    let recipient = format!("user@{domain}\0");
    let (answer, report) =
        ask_parts(slot, &[text(b"1/23\0"), text(b"\0"), text(recipient.as_bytes())]);
    assert_eq!(report.is_some(), answer == BUSY);
    answer
}

fn next() -> Option<(c_int, c_uint, Vec<Vec<u8>>)> {
    let nothing = Text { s: null(), len: 0 };
    let mut out = NextAction { slot: 0, parts: 0, part: [nothing; 8], text: null() };
    // SAFETY: out may be written.
    let answer = unsafe { gate_next((&raw mut out).cast()) };
    if answer == NONE {
        return None;
    }
    assert_eq!(out.text.is_null(), answer == GO);
    let parts = out.part[..out.parts as usize].iter().map(|part| {
        // SAFETY: a part has len bytes and stays until the next call.
        unsafe { std::slice::from_raw_parts(part.s.cast::<u8>(), part.len as usize) }.to_vec()
    });
    Some((answer, out.slot, parts.collect()))
}

fn done(slot: c_uint) {
    let (answer, line) = done_with(slot, b"r\0Kaccepted\0");
    assert_eq!(answer, GO);
    if let Some(line) = line {
        assert!(line.starts_with("Held ") && line.ends_with(" s.\n"), "{line:?}");
    }
}

/// The answer of gate_done, and its text.
fn done_with(slot: c_uint, report: &[u8]) -> (c_int, Option<String>) {
    let mut text = null();
    // SAFETY: report has as many bytes, and text may be written.
    let answer =
        unsafe { gate_done(slot, report.as_ptr().cast(), report.len() as c_uint, &mut text) };
    // SAFETY: a text ends with a zero byte and stays until the next call.
    let text = (!text.is_null()).then(|| unsafe { std::ffi::CStr::from_ptr(text) });
    (answer, text.map(|text| text.to_str().unwrap().to_owned()))
}

fn held() -> c_uint {
    // SAFETY: it needs nothing.
    unsafe { gate_held() }
}

fn timeout_ms() -> c_long {
    // SAFETY: it needs nothing.
    unsafe { gate_timeout_ms() }
}

#[test]
fn before_it_is_open_everything_goes() {
    let _home = Home::new();
    assert_eq!(ask(0, "a.example"), GO);
    assert_eq!(ask(0, "a.example"), GO);
    assert_eq!(next(), None);
    assert_eq!((held(), timeout_ms()), (0, -1));
    done(0);
    // SAFETY: it needs nothing.
    unsafe { gate_drop_held() };
}

#[test]
fn it_opens_once() {
    let home = Home::new();
    assert_eq!(home.open(0), 0);
    assert_eq!(home.open(65536), 0);
    assert_eq!(home.open(u32::MAX), 0);
    assert_eq!(ask(0, "a.example"), GO);
    assert_eq!(home.open(10), 1);
    assert_eq!(home.open(10), 0);
    assert_eq!(ask(0, "a.example"), GO);
    assert_eq!(ask(1, "a.example"), HOLD);
}

#[test]
fn a_command_comes_back_as_it_was() {
    let home = Home::new();
    assert_eq!(home.open(10), 1);
    assert_eq!(ask(0, "a.example"), GO);
    let parts =
        [text(b"12/3456\0"), text(b"sender@x\0"), text(b""), text(b"a\0b"), text(b"u@a.example\0")];
    assert_eq!(ask_parts(7, &parts), (HOLD, None));
    assert_eq!((held(), next()), (1, None));
    assert!(timeout_ms() > 0);
    done(0);
    assert_eq!(timeout_ms(), 0);
    let parts = [&b"12/3456\0"[..], b"sender@x\0", b"", b"a\0b", b"u@a.example\0"]
        .map(<[u8]>::to_vec)
        .to_vec();
    assert_eq!(next(), Some((GO, 7, parts)));
    assert_eq!((held(), next()), (0, None));
    let (answer, line) = done_with(7, b"r\0Kaccepted\0");
    assert_eq!(answer, GO);
    assert!(line.is_some_and(|line| line.starts_with("Held 0.0") && line.contains(" s, ran 0.0")));
    assert_eq!(ask(7, "a.example"), GO);
    assert_eq!(done_with(7, b"r\0Kaccepted\0"), (GO, None), "it was not held");
}

#[test]
fn wrong_arguments_go() {
    let home = Home::new();
    assert_eq!(home.open(10), 1);
    assert_eq!(ask(0, "a.example"), GO);
    let recipient = text(b"u@a.example\0");
    let mut report = null();
    // SAFETY: NULL is allowed, or said to be answered.
    unsafe {
        assert_eq!(gate_ask(1, null(), 3, &mut report), GO);
        assert_eq!(gate_ask(1, (&raw const recipient).cast(), 1, std::ptr::null_mut()), GO);
        assert_eq!(gate_next(std::ptr::null_mut()), NONE);
        assert_eq!(gate_done(1, null(), 5, &mut report), GO);
        assert!(report.is_null());
        assert_eq!(gate_done(1, null(), 0, std::ptr::null_mut()), GO);
    }
    assert_eq!(ask_parts(1, &[]), (GO, None));
    assert_eq!(ask_parts(1, &[recipient; 9]), (GO, None));
    assert_eq!(ask_parts(1, &[Text { s: null(), len: 7 }, recipient]), (GO, None));
    let huge = vec![b'x'; 65537];
    assert_eq!(ask_parts(1, &[text(&huge), recipient]), (GO, None));
    assert_eq!(ask_parts(1, &[Text { s: null(), len: 0 }]), (GO, None));
    // The last one took the slot, as a recipient without a domain: docmd will report it.
    done(1);
    for slot in [10, 11, 65535, 65536, u32::MAX, c_int::MIN as c_uint] {
        assert_eq!(ask(slot, "a.example"), GO);
        done(slot);
    }
    assert_eq!(ask_parts(1, &[text(&huge[1..]), recipient]), (HOLD, None));
    assert_eq!(held(), 1);
}

/// Several recipients of a domain at its limit are asked about together, and called like any others.
#[test]
fn recipients_are_asked_for_together() {
    const ALL: c_uint = 65535;
    let home = Home::new();
    fs::write(home.path.join("concurrencydomains"), "a.example:1\nclosed.example:0\n").unwrap();
    assert_eq!(home.open(10), 1);
    let together = |recipient: &str| {
        let recipient = format!("{recipient}\0");
        ask_parts(ALL, &[text(b"1/23\0"), text(b"\0"), text(recipient.as_bytes())])
    };
    for wrong in [
        "user@a.example",
        "@a.example",
        "0@a.example",
        "-1@a.example",
        "4294967296@a.example",
        "5",
        "",
    ] {
        assert_eq!(together(wrong), (GO, None), "{wrong}");
    }
    // No limit: each of them has to be asked about.
    assert_eq!(together("5@b.example"), (GO, None));
    assert_eq!(ask(0, "a.example"), GO);
    let (answer, report) = together("7@A.example");
    let report = report.unwrap();
    assert_eq!(answer, BUSY);
    assert!(
        report.starts_with('B') && report.contains(" a.example is at its limit of 1 "),
        "{report}"
    );
    let (answer, report) = together("9@closed.example");
    assert!(answer == BUSY && report.unwrap().starts_with('B'));
    // As many of the seven are called as may be held, and no more after these have come.
    assert_eq!((held(), next()), (0, Some((CALL, ALL, Vec::new()))));
    assert_eq!((next(), ask(1, "a.example"), held()), (None, HOLD, 1));
    done(0);
    assert_eq!(next().map(|(answer, slot, _)| (answer, slot)), Some((GO, 1)));
}

#[test]
fn wrong_order_loses_no_place() {
    let home = Home::new();
    assert_eq!(home.open(10), 1);
    for slot in 0..10 {
        done(slot);
    }
    assert_eq!(ask(0, "a.example"), GO);
    assert_eq!(ask(0, "b.example"), GO, "running: spawn.c says so");
    assert_eq!(ask(1, "a.example"), HOLD);
    assert_eq!(ask(1, "b.example"), BUSY, "held: the gate says so");
    let (_, report) = ask_parts(1, &[text(b"u@a.example\0")]);
    assert_eq!(report.as_deref(), Some("ZInternal error: delnum in use. (#4.3.5)\n"));
    done(1);
    assert_eq!(held(), 0);
    done(0);
    done(0);
    assert_eq!(ask(2, "a.example"), GO);
    assert_eq!(ask(3, "a.example"), HOLD, "one place, and it is taken once");
    // SAFETY: it needs nothing.
    unsafe { gate_drop_held() };
    done(2);
    assert_eq!(next(), None);
}

#[test]
fn after_a_panic_mail_goes_on() {
    let home = Home::new();
    assert_eq!(home.open(10), 1);
    assert_eq!(ask(0, "a.example"), GO);
    for slot in 1..4 {
        assert_eq!(ask(slot, "a.example"), HOLD);
    }
    std::panic::set_hook(Box::new(|_| {}));
    panic_injection::panics(1);
    assert_eq!(ask(4, "a.example"), GO);
    assert_eq!(home.status().state, State::Failed);
    assert_eq!(ask(5, "a.example"), GO);
    assert_eq!(timeout_ms(), 0);
    for slot in 1..4 {
        let (answer, given, parts) = next().unwrap();
        assert_eq!((answer, given), (GO, slot));
        assert_eq!(parts[2], b"user@a.example\0");
    }
    assert_eq!((next(), timeout_ms(), held()), (None, -1, 0));
    done(0);
    drop(std::panic::take_hook());
}

/// A spawner with commands for two domains, each with a limit of one. It counts what happens to each command.
struct Spawner {
    /// For each slot, the number of the command that runs there.
    running: Vec<Option<u32>>,
    /// For each slot, the number of the command that is held for it.
    held: Vec<Option<u32>>,
    /// For each command, how often it was started or reported.
    outcomes: Vec<u32>,
}

impl Spawner {
    const SLOTS: usize = 12;

    fn new() -> Self {
        Self {
            running: vec![None; Self::SLOTS],
            held: vec![None; Self::SLOTS],
            outcomes: Vec::new(),
        }
    }

    fn command(&mut self) {
        let is_free = |slot: &usize| self.running[*slot].is_none() && self.held[*slot].is_none();
        let Some(slot) = (0..Self::SLOTS).find(is_free) else { return };
        let number = self.outcomes.len() as u32;
        self.outcomes.push(0);
        let (message, recipient) =
            (format!("{number}/1\0"), format!("u@d{}.example\0", number % 2));
        let parts = [text(message.as_bytes()), text(b"s\0"), text(recipient.as_bytes())];
        match ask_parts(slot as c_uint, &parts).0 {
            GO => self.start(slot, number),
            HOLD => self.held[slot] = Some(number),
            BUSY => self.outcomes[number as usize] += 1,
            answer => panic!("{answer}"),
        }
    }

    fn start(&mut self, slot: usize, number: u32) {
        assert_eq!(self.running[slot], None, "delnum in use");
        self.running[slot] = Some(number);
        self.outcomes[number as usize] += 1;
    }

    /// Ends the oldest delivery, and then starts what the gate gives back.
    fn turn(&mut self) {
        let first = (0..Self::SLOTS).filter(|&slot| self.running[slot].is_some());
        if let Some(slot) = first.min_by_key(|&slot| self.running[slot]) {
            let number = self.running[slot].take().unwrap();
            let report: &[u8] = match number % 8 {
                0 => b"ZConnected to 192.0.2.7 but greeting failed.\nRemote host said: 421 too many\n\0",
                _ => b"r\0K192.0.2.7 accepted message.\nRemote host said: 250 ok\n\0",
            };
            done_with(slot as c_uint, report);
        }
        while let Some((answer, slot, parts)) = next() {
            let slot = slot as usize;
            if slot >= Self::SLOTS {
                continue;
            }
            let number = self.held[slot].take().expect("a command is held for it");
            match answer {
                GO => {
                    assert_eq!(parts[0], format!("{number}/1\0").into_bytes());
                    self.start(slot, number);
                }
                _ => self.outcomes[number as usize] += 1,
            }
        }
    }
}

/// A panic at any point where a place is taken or returned: each command still starts once, or is reported once.
#[test]
fn a_panic_at_any_place_loses_no_command() {
    let home = Home::new();
    fs::write(home.path.join("concurrencydomains"), ":1::learn\n").unwrap();
    let mut place = 0;
    loop {
        place += 1;
        // The same home each time: the start would wait for a new file.
        close();
        fs::write(home.path.join("status"), "").unwrap();
        assert_eq!(home.open(Spawner::SLOTS as c_uint), 1);
        std::panic::set_hook(Box::new(|_| {}));
        panic_injection::panics_at(place);
        let mut spawner = Spawner::new();
        for _ in 0..9 {
            for _ in 0..3 {
                spawner.command();
            }
            spawner.turn();
        }
        for _ in 0..2 * Spawner::SLOTS {
            spawner.turn();
        }
        drop(std::panic::take_hook());
        assert!(spawner.held.iter().all(Option::is_none), "place {place}: {:?}", spawner.held);
        assert!(
            spawner.outcomes.iter().all(|&outcomes| outcomes == 1),
            "place {place}: {:?}",
            spawner.outcomes
        );
        if !panic_injection::has_panicked() {
            panic_injection::panics_at(0);
            break;
        }
        assert_eq!(home.status().state, State::Failed, "place {place}");
    }
    assert!(place > 100, "there are more places than {place}");
}

#[test]
fn every_function_survives_a_panic() {
    let home = Home::new();
    assert_eq!(home.open(10), 1);
    std::panic::set_hook(Box::new(|_| {}));
    panic_injection::panics(6);
    assert_eq!(ask(0, "a.example"), GO);
    assert_eq!(next(), None);
    done(0);
    assert_eq!(timeout_ms(), -1);
    assert_eq!(held(), 0);
    // SAFETY: it needs nothing.
    unsafe { gate_drop_held() };
    assert_eq!(ask(0, "a.example"), GO);
    drop(std::panic::take_hook());
    drop(home);
    let home = Home::new();
    panic_injection::panics(1);
    assert_eq!(home.open(10), 0);
    assert_eq!(home.open(10), 1);
}

#[test]
fn other_threads_break_nothing() {
    let home = Home::new();
    assert_eq!(home.open(1000), 1);
    std::thread::scope(|scope| {
        for thread in 0..4u32 {
            scope.spawn(move || {
                for i in 0..5000 {
                    let slot = thread * 250 + i % 250;
                    let recipient = text(b"u@a.example\0");
                    let mut report = null();
                    let nothing = Text { s: null(), len: 0 };
                    let mut out =
                        NextAction { slot: 0, parts: 0, part: [nothing; 8], text: null() };
                    // No returned text is read: a call of another thread may change it at any time. SAFETY: the part
                    // and the report have their bytes, and all results may be written.
                    unsafe {
                        gate_ask(slot, (&raw const recipient).cast(), 1, &mut report);
                        gate_next((&raw mut out).cast());
                        gate_done(slot, c"r".as_ptr(), 1, &mut report);
                    }
                    timeout_ms();
                }
            });
        }
    });
    assert!(held() < 1000);
}
