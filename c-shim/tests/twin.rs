//! Compares gate_retry.c with gate-model's `retry`: the same calls must give the same answers and as many requests for
//! memory. This file has about 700 lines because calls in any order and a whole qmail-send drive the same pair.

use proptest::prelude::*;
use qpatch_c_shim::retry::{File, Retry as C, Shortage};
use qpatch_gate_model::retry::{
    CALL_DELNUM, ClosedJob, FileState, Job, MemorySupply, PassEnd, PassStep, ReportedResult, Retry,
    SECONDS_MAX, TURN,
};

/// The clock at the beginning.
const START: i64 = 1_700_000_000;

/// Memory that fails when that of the C does.
#[derive(Default)]
struct Scheduled {
    shortage: Shortage,
    requests: u64,
}

impl MemorySupply for Scheduled {
    fn is_there(&mut self) -> bool {
        let number = self.requests;
        self.requests += 1;
        !self.shortage.fails(number)
    }
}

/// The C and the model.
struct Twins {
    c: C,
    rust: Retry<Scheduled>,
    now: i64,
    file: FileState,
}

impl Twins {
    fn start() -> Self {
        let mut twins = Self {
            c: C::start(),
            rust: Retry::new(Scheduled::default()),
            now: START,
            file: FileState::Same,
        };
        twins.c.set_clock(START);
        twins
    }

    fn set_clock(&mut self, now: i64) {
        self.now = now;
        self.c.set_clock(now);
    }

    fn set_shortage(&mut self, shortage: Shortage) {
        self.c.set_shortage(shortage);
        *self.rust.memory() = Scheduled { shortage, requests: 0 };
    }

    fn set_file(&mut self, file: File) {
        self.c.set_file(file);
        self.file = match file {
            File::Same => FileState::Same,
            File::Other | File::Shorter => FileState::Other,
            File::Unreadable => FileState::Unreadable,
        };
    }

    #[track_caller]
    fn same<T: PartialEq + std::fmt::Debug>(&mut self, c: T, rust: T) -> T {
        assert_eq!(c, rust, "gate_retry.c is on the left");
        assert_eq!(self.c.requests(), self.rust.memory().requests, "requests for memory");
        rust
    }

    fn open(&mut self, j: usize, job: Job, due: i64) -> bool {
        let c = self.c.open(j as i32, job.channel as i32, job.id, due);
        let rust = self.rust.open(j, job, due);
        self.same(c, rust)
    }

    fn next(&mut self, j: usize, position: u64) -> PassStep {
        let c = match self.c.next(j as i32, position) {
            (0, at) if at == position => PassStep::Here,
            (1, at) => PassStep::At(at),
            (2, _) => PassStep::End,
            other => panic!("{other:?}"),
        };
        let rust = self.rust.next_in(self.file, j, position);
        self.same(c, rust)
    }

    fn skip(&mut self, j: usize, position: u64, recipient: &[u8]) -> bool {
        let c = self.c.skip(j as i32, position, recipient);
        let rust = self.rust.skip(j, position, recipient);
        self.same(c, rust)
    }

    /// The recipient of the command, which is a number and a domain.
    fn ask(&mut self, channel: usize) -> Option<(u64, Vec<u8>)> {
        let c = self.c.ask(channel as i32);
        let rust = self.rust.ask(channel).map(|(id, number, domain)| {
            (id, [number.to_string().as_bytes(), b"@", &domain[..]].concat())
        });
        self.same(c, rust)
    }

    /// The report as it is after the call.
    fn report(
        &mut self,
        j: usize,
        job: Job,
        position: u64,
        natural: i64,
        recipient: &[u8],
        report: &[u8],
    ) -> Vec<u8> {
        let (mut c, mut rust) = (report.to_vec(), report.to_vec());
        let channel = job.channel as i32;
        self.c.report(j as i32, channel, job.id, position, natural, recipient, &mut c);
        let told = ReportedResult::read(&mut rust);
        self.rust.report(j, job, position, natural, recipient, told, self.now);
        self.same(c, rust)
    }

    /// None if it waits.
    fn close(&mut self, j: usize, end: PassEnd, natural: i64) -> Option<i64> {
        let c = self.c.close(j as i32, end == PassEnd::EndOfFile, natural);
        let rust = match self.rust.close(j, end, natural, self.now) {
            ClosedJob::Waits => None,
            ClosedJob::Due(at) => Some(at),
        };
        self.same(c, rust)
    }

    fn call(&mut self, channel: usize, delivery: u64, report: &[u8]) -> bool {
        let c = self.c.call(channel as i32, delivery, report);
        let rust = self.rust.call_report(channel, delivery, report, self.now);
        self.same(c, rust)
    }

    fn due(&mut self, channel: usize) -> Option<(u64, i64)> {
        let c = self.c.due(channel as i32);
        let rust = self.rust.due(channel, self.now);
        self.same(c, rust)
    }

    fn due_all(&mut self, channel: usize) -> Vec<(u64, i64)> {
        std::iter::from_fn(|| self.due(channel)).collect()
    }

    fn wakeup(&mut self, wakeup: i64) -> i64 {
        let c = self.c.wakeup(wakeup);
        let rust = self.rust.wakeup(wakeup);
        self.same(c, rust)
    }

    /// All messages, in no particular order. None may be called.
    fn alarm(&mut self, channel: usize) -> Vec<(u64, i64)> {
        let mut c = Vec::new();
        while let Some(message) = self.c.alarm(channel as i32) {
            c.push(message);
        }
        let mut rust = self.rust.alarm(channel, self.now);
        c.sort_unstable();
        rust.sort_unstable();
        self.same(c, rust)
    }

    /// The same.
    fn flush(&mut self, channel: usize) -> Vec<(u64, i64)> {
        let mut c: Vec<_> = std::iter::from_fn(|| self.c.flush(channel as i32)).collect();
        let now = self.now;
        let mut rust: Vec<_> = std::iter::from_fn(|| self.rust.flush(channel, now)).collect();
        c.sort_unstable();
        rust.sort_unstable();
        self.same(c, rust)
    }
}

/// Any call, in any order.
#[derive(Clone, Debug)]
enum Act {
    Open { j: usize, job: Job, ago: i64 },
    Next { j: usize, position: u64 },
    Skip { j: usize, position: u64, recipient: Vec<u8> },
    Ask { channel: usize },
    Report { j: usize, job: Job, position: u64, natural: i64, recipient: Vec<u8>, report: Vec<u8> },
    Close { j: usize, end: PassEnd, natural: i64 },
    Call { channel: usize, delivery: u64, report: Vec<u8> },
    Due { channel: usize },
    DueAll,
    Wakeup { after: i64 },
    Alarm { channel: usize },
    Flush { channel: usize },
    Clock { by: i64 },
    Shortage(Shortage),
    File(File),
}

impl Act {
    fn take(self, on: &mut Twins) {
        match self {
            Self::Open { j, job, ago } => drop(on.open(j, job, on.now - ago)),
            Self::Next { j, position } => drop(on.next(j, position)),
            Self::Skip { j, position, recipient } => drop(on.skip(j, position, &recipient)),
            Self::Ask { channel } => drop(on.ask(channel)),
            Self::Report { j, job, position, natural, recipient, report } => {
                on.report(j, job, position, on.now + natural, &recipient, &report);
            }
            Self::Close { j, end, natural } => drop(on.close(j, end, on.now + natural)),
            Self::Call { channel, delivery, report } => drop(on.call(channel, delivery, &report)),
            Self::Due { channel } => drop(on.due(channel)),
            Self::DueAll => (0..CHANNELS).for_each(|channel| drop(on.due_all(channel))),
            Self::Wakeup { after } => drop(on.wakeup(on.now + after)),
            Self::Alarm { channel } => {
                on.due_all(channel);
                on.alarm(channel);
            }
            Self::Flush { channel } => drop(on.flush(channel)),
            Self::Clock { by } => on.set_clock((on.now + by).max(START / 2)),
            Self::Shortage(shortage) => on.set_shortage(shortage),
            Self::File(file) => on.set_file(file),
        }
    }
}

/// Sagredo's tree has four, others up to 24.
const CHANNELS: usize = 24;

fn channels() -> impl Strategy<Value = usize> {
    prop_oneof![8 => Just(1_usize), 2 => Just(0_usize), 2 => 0..CHANNELS]
}

fn jobs() -> impl Strategy<Value = Job> {
    (channels(), 1..8_u64).prop_map(|(channel, id)| Job { channel, id })
}

fn indices() -> impl Strategy<Value = usize> {
    prop_oneof![20 => 0..6_usize, 1 => 0..300_usize]
}

fn reports() -> impl Strategy<Value = Vec<u8>> {
    let busy = (prop_oneof![1..20_i64, 0..SECONDS_MAX + 2], 0..5_u32)
        .prop_map(|(secs, queue)| format!("B{secs} {queue} a.example is at its limit\n").into());
    let garbage = prop::collection::vec(prop::sample::select(b"BZKD0123 5\nx-".to_vec()), 0..12);
    let one_of = |texts: &[&str]| {
        let texts: Vec<Vec<u8>> = texts.iter().map(|text| text.as_bytes().to_vec()).collect();
        prop::sample::select(texts)
    };
    prop_oneof![
        12 => busy,
        4 => one_of(&["Kok\n", "Dno\n", "Zlater\n"]),
        1 => one_of(&["B18446744073709551616 1 x", "B1 4294967296 x", "B1 4294967295 x", "B01 02 x", "B1 2 "]),
        1 => garbage,
    ]
}

fn recipients() -> impl Strategy<Value = Vec<u8>> {
    let few = (0..6_u32, 0..3_u32).prop_map(|(user, domain)| format!("u{user}@d{domain}.example"));
    let odd = prop::sample::select(vec![
        "nobody".to_owned(),
        "x@".to_owned(),
        "x@y@D1.EXAMPLE".to_owned(),
        format!("x@{}", "a".repeat(255)),
        format!("x@{}", "a".repeat(256)),
    ]);
    prop_oneof![9 => few, 1 => odd].prop_map(String::into_bytes)
}

fn calls() -> impl Strategy<Value = Act> {
    let numbers = (0..5_u32, prop_oneof![9 => 0..6_u32, 1 => Just(u32::MAX)]);
    let right = numbers.prop_map(|(queue, most)| format!("R{queue} {most}\n").into_bytes());
    let garbage = prop::collection::vec(prop::sample::select(b"R0123 5\nx-".to_vec()), 0..9);
    let delivery = prop_oneof![9 => Just(CALL_DELNUM), 1 => any::<u64>()];
    (channels(), delivery, prop_oneof![9 => right, 1 => garbage, 5 => reports()])
        .prop_map(|(channel, delivery, report)| Act::Call { channel, delivery, report })
}

fn acts() -> impl Strategy<Value = Act> {
    let positions = || prop_oneof![9 => 0..6_u64, 9 => 0..200_u64, 1 => any::<u64>()];
    let natural = || prop_oneof![10 => 1..30_i64, 10 => 1..5000_i64, 1 => 0..1_000_000_i64];
    let ends = prop_oneof![4 => Just(PassEnd::EndOfFile), 1 => Just(PassEnd::Before)];
    let files = prop_oneof![
        3 => Just(File::Same),
        1 => Just(File::Other),
        1 => Just(File::Shorter),
        1 => Just(File::Unreadable),
    ];
    let by = prop_oneof![
        6 => 1..4_i64,
        2 => 1..100_i64,
        1 => -100..0_i64,
        1 => -100_000..100_000_i64
    ];
    let shortages = prop_oneof![
        4 => Just(Shortage::None),
        1 => Just(Shortage::All),
        2 => (0..4_u64).prop_map(Shortage::At),
        1 => any::<u64>().prop_map(Shortage::Bits),
    ];
    prop_oneof![
        12 => (indices(), jobs(), 0..50_i64).prop_map(|(j, job, ago)| Act::Open { j, job, ago }),
        12 => (indices(), positions()).prop_map(|(j, position)| Act::Next { j, position }),
        20 => (indices(), positions(), recipients()).prop_map(|(j, position, recipient)| Act::Skip { j, position, recipient }),
        6 => channels().prop_map(|channel| Act::Ask { channel }),
        40 => (indices(), jobs(), positions(), natural(), recipients(), reports()).prop_map(
            |(j, job, position, natural, recipient, report)| Act::Report { j, job, position, natural, recipient, report }
        ),
        14 => (indices(), ends, natural()).prop_map(|(j, end, natural)| Act::Close { j, end, natural }),
        16 => calls(),
        10 => channels().prop_map(|channel| Act::Due { channel }),
        2 => Just(Act::DueAll),
        4 => natural().prop_map(|after| Act::Wakeup { after }),
        1 => channels().prop_map(|channel| Act::Alarm { channel }),
        1 => channels().prop_map(|channel| Act::Flush { channel }),
        8 => by.prop_map(|by| Act::Clock { by }),
        3 => shortages.prop_map(Act::Shortage),
        3 => files.prop_map(Act::File),
    ]
}

/// PROPTEST_CASES asks for more.
fn config() -> ProptestConfig {
    let cases = if std::env::var_os("PROPTEST_CASES").is_some() {
        ProptestConfig::default().cases
    } else {
        120
    };
    ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn answers_alike(acts in prop::collection::vec(acts(), 1..400)) {
        let mut twins = Twins::start();
        for act in acts {
            act.take(&mut twins);
        }
    }
}

/// The sizes that the header gives, on a machine with 8-byte pointers.
#[test]
fn sizes_are_as_stated() {
    let [channel, part, queue, message, place, running, domains] = C::start().sizes();
    assert!(channel <= 8232, "{channel}");
    assert_eq!([part, queue, message, place, running, domains], [120, 16, 64, 8, 96, 128 << 10]);
}

/// A recipient in the file of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mark {
    Todo,
    Done,
}

/// The length of a recipient, in bytes.
const LENGTH: u64 = 7;

/// A message in a qmail-send that does what HOOKS.md says.
struct Mail {
    file: Vec<Mark>,
    in_flight: Vec<bool>,
    is_unlinked: bool,
}

/// qmail-send with one channel, whose pass and deliveries happen in any possible order.
struct Send {
    twins: Twins,
    mails: Vec<Mail>,
    /// How many domains the recipients have.
    domains: usize,
    /// pqchan: when it is due, and the message.
    due: Vec<(i64, usize)>,
    /// struct job: message, references, numtodo, whether the pass has come to the end of the file.
    jobs: Vec<Option<(u64, u32, u32, bool)>>,
    /// Job and position.
    pass: Option<(usize, u64)>,
    /// Job and position of each delivery.
    deliveries: Vec<(usize, u64)>,
    /// Recipients for which the gate has been asked together, and has not answered.
    asked: u32,
    tries: u64,
    busy: u64,
    jobs_most: usize,
}

const NATURAL: i64 = 400;

impl Send {
    fn new(recipients: &[usize], domains: usize) -> Self {
        let mail = |&recipients: &usize| Mail {
            file: vec![Mark::Todo; recipients],
            in_flight: vec![false; recipients],
            is_unlinked: false,
        };
        Self {
            twins: Twins::start(),
            mails: recipients.iter().map(mail).collect(),
            domains,
            due: (0..recipients.len()).map(|at| (START, at)).collect(),
            jobs: Vec::new(),
            pass: None,
            deliveries: Vec::new(),
            asked: 0,
            tries: 0,
            busy: 0,
            jobs_most: 0,
        }
    }

    fn job(id: u64) -> Job {
        Job { channel: 1, id }
    }

    fn recipient(&self, index: usize) -> Vec<u8> {
        format!("u{index}@d{}.example", index % self.domains).into_bytes()
    }

    fn is_done(&self) -> bool {
        self.mails.iter().all(|mail| mail.is_unlinked)
    }

    fn selprep(&mut self) {
        while let Some((id, due)) = self.twins.due(1) {
            self.due.push((due, id as usize));
        }
    }

    /// pass_dochan(); false if there was nothing to do.
    fn pass(&mut self, slots: usize) -> bool {
        let (j, mut position) = match self.pass {
            Some(pass) => pass,
            None => {
                let now = self.twins.now;
                let first = (0..self.due.len()).filter(|&at| self.due[at].0 <= now);
                let Some(at) = first.min_by_key(|&at| self.due[at]) else { return false };
                let (due, at) = self.due.swap_remove(at);
                let free = self.jobs.iter().position(Option::is_none);
                let j = free.unwrap_or_else(|| {
                    self.jobs.push(None);
                    self.jobs.len() - 1
                });
                assert!(!self.mails[at].is_unlinked, "its file is gone");
                let is_part = self.twins.open(j, Self::job(at as u64), due);
                if !is_part {
                    let is_in_flight = self.mails[at].in_flight.iter().any(|&is| is);
                    assert!(!is_in_flight, "a pass from the beginning beside others");
                }
                self.jobs[j] = Some((at as u64, 1, u32::from(is_part), false));
                let open = self.jobs.iter().filter(|job| job.is_some()).count();
                self.jobs_most = self.jobs_most.max(open);
                (j, 0)
            }
        };
        let Some((id, refs, todo, _)) = self.jobs[j] else { panic!("no job") };
        match self.twins.next(j, position) {
            PassStep::Here => {}
            PassStep::At(at) => position = at,
            PassStep::End => {
                self.pass = None;
                self.leave(j);
                return true;
            }
        }
        self.pass = Some((j, position));
        if self.deliveries.len() >= slots {
            return false;
        }
        assert_eq!(position % LENGTH, 0, "in the midst of a recipient");
        let index = (position / LENGTH) as usize;
        let Some(&mark) = self.mails[id as usize].file.get(index) else {
            self.jobs[j] = Some((id, refs, todo, true));
            self.pass = None;
            self.leave(j);
            return true;
        };
        self.pass = Some((j, position + LENGTH));
        if mark == Mark::Todo {
            self.jobs[j] = Some((id, refs, todo + 1, false));
            let recipient = self.recipient(index);
            if !self.twins.skip(j, position, &recipient) {
                self.jobs[j] = Some((id, refs + 1, todo + 1, false));
                let in_flight = &mut self.mails[id as usize].in_flight[index];
                assert!(!*in_flight, "tried twice at once");
                *in_flight = true;
                self.tries += 1;
                self.deliveries.push((j, position));
            }
        }
        true
    }

    /// del_dochan()
    fn report(&mut self, at: usize, report: &[u8]) {
        let (j, position) = self.deliveries.swap_remove(at);
        let Some((id, refs, todo, at_end)) = self.jobs[j] else { panic!("no job") };
        let natural = self.twins.now + NATURAL;
        let index = (position / LENGTH) as usize;
        let recipient = self.recipient(index);
        let said = self.twins.report(j, Self::job(id), position, natural, &recipient, report);
        let mail = &mut self.mails[id as usize];
        mail.in_flight[index] = false;
        if said[0] == b'K' {
            assert_eq!(mail.file[index], Mark::Todo, "delivered twice");
            mail.file[index] = Mark::Done;
            self.jobs[j] = Some((id, refs, todo - 1, at_end));
        }
        self.busy += u64::from(report[0] == b'B');
        self.leave(j);
    }

    /// job_close()
    fn leave(&mut self, j: usize) {
        let Some((id, refs, todo, at_end)) = self.jobs[j] else { panic!("no job") };
        self.jobs[j] = Some((id, refs - 1, todo, at_end));
        if refs > 1 {
            return;
        }
        self.jobs[j] = None;
        let mail = &mut self.mails[id as usize];
        if at_end && todo == 0 {
            assert!(mail.file.iter().all(|&mark| mark == Mark::Done), "mail is lost");
            assert!(self.due.iter().all(|&(_, at)| at != id as usize), "it comes again");
            mail.is_unlinked = true;
            return;
        }
        let natural = self.twins.now + NATURAL;
        let end = if at_end { PassEnd::EndOfFile } else { PassEnd::Before };
        if let Some(due) = self.twins.close(j, end, natural) {
            self.due.push((due, id as usize));
        }
    }

    /// Asks the gate about several recipients together. False: there is nothing to ask, or it has not answered yet.
    fn ask(&mut self) -> bool {
        let Some((_, recipient)) = self.twins.ask(1) else { return false };
        let text = String::from_utf8(recipient).expect("ASCII");
        let (number, domain) = text.split_once('@').expect("an address");
        self.asked = number.parse().expect("a number");
        assert!(self.asked > 0 && domain.ends_with(".example"), "{text}");
        true
    }

    fn answer(&mut self, report: &[u8]) {
        if std::mem::take(&mut self.asked) > 0 {
            assert!(self.twins.call(1, CALL_DELNUM, report));
        }
    }
}

proptest! {
    #![proptest_config(config())]

    /// With any answers of servers and gate, at any time: each recipient is tried until it is done, never twice at
    /// once, and no file is removed before.
    #[test]
    fn no_recipient_is_lost(
        recipients in prop::collection::vec(prop_oneof![3 => 1..4_usize, 3 => 1..60_usize, 1 => 1..900_usize], 1..4),
        domains in 1..5_usize,
        slots in 1..30_usize,
        acts in prop::collection::vec((0..10_u8, any::<u16>(), any::<u8>()), 1..400),
        shortages in prop::collection::vec((0..400_usize, 0..3_u64), 0..4),
        mostly_busy in any::<bool>(),
    ) {
        let mut send = Send::new(&recipients, domains);
        for (at, (act, number, what)) in acts.into_iter().enumerate() {
            let fails = shortages.iter().find(|&&(when, _)| when == at);
            send.twins.set_shortage(fails.map_or(Shortage::None, |&(_, request)| Shortage::At(request)));
            send.selprep();
            let busy = format!("B{} {} busy\n", 1 + number % 3600, 1 + what % 3);
            match act {
                0..3 => {
                    send.pass(slots);
                }
                3 => while send.pass(slots) {},
                4..6 if !send.deliveries.is_empty() => {
                    let at = usize::from(number) % send.deliveries.len();
                    let report: &[u8] = match what % 8 {
                        0..4 => busy.as_bytes(),
                        4..6 if !mostly_busy => b"Kok\n",
                        _ if mostly_busy => busy.as_bytes(),
                        _ => b"Zlater\n",
                    };
                    send.report(at, report);
                }
                6 => {
                    let call = format!("R{} {}\n", 1 + what % 3, 1 + number % 20);
                    send.twins.call(1, CALL_DELNUM, call.as_bytes());
                }
                7 => {
                    send.ask();
                }
                8 => send.answer(if what < 200 { busy.as_bytes() } else { b"Zno such slot\n" }),
                _ if what < 8 => {
                    for (id, due) in send.twins.alarm(1) {
                        send.due.push((due, id as usize));
                    }
                }
                _ => send.twins.set_clock(send.twins.now + i64::from(number % 50)),
            }
        }
        // Then there is room for all.
        send.twins.set_shortage(Shortage::None);
        for _ in 0..20 {
            send.selprep();
            send.answer(b"Z\n");
            while send.pass(slots) || !send.deliveries.is_empty() {
                if !send.deliveries.is_empty() {
                    send.report(0, b"Kok\n");
                }
                send.selprep();
                send.answer(b"Z\n");
                send.ask();
            }
            send.twins.set_clock(send.twins.now + SECONDS_MAX);
        }
        prop_assert!(send.is_done(), "mail is left");
        prop_assert_eq!(send.twins.c.used(), [0; 3], "something is remembered of mail that is gone");
    }
}

/// 65000 recipients of one message at one domain: a few dozen are refused one by one, the others wait together, and
/// called ones are handed out while deliveries of earlier calls still run.
#[test]
fn a_long_list() {
    const RECIPIENTS: usize = 65_000;
    for domains in [1, 3] {
        let mut send = Send::new(&[RECIPIENTS], domains);
        let mut steps = 0_u64;
        let mut waiting = 0_u64;
        // 20 run, and none ends.
        while send.pass(1000) {
            steps += 1;
            while send.deliveries.len() > 20 {
                let domain = (send.deliveries[20].1 / LENGTH) as usize % domains;
                let busy = format!("B3600 {} busy\n", 5 + domain);
                send.report(20, busy.as_bytes());
                waiting += 1;
            }
            if send.ask() {
                waiting += u64::from(send.asked);
                // Which domain it was does not matter here.
                send.answer(b"B3600 5 busy\n");
            }
        }
        assert_eq!(waiting, RECIPIENTS as u64 - 20);
        assert!(send.busy <= 3 * domains as u64, "{}", send.busy);
        // Each was read once, and then the end.
        assert_eq!(steps, RECIPIENTS as u64 + 1);
        // Two calls are always being carried out, and one delivery takes as long as the whole test.
        let mut calls = 0_u64;
        while !send.is_done() {
            send.selprep();
            while send.pass(1000) {
                steps += 1;
            }
            if send.deliveries.len() <= 21 && send.twins.rust.waiting() > 0 {
                for queue in 5..5 + domains {
                    send.twins.call(1, CALL_DELNUM, format!("R{queue} 20\n").as_bytes());
                }
                calls += 1;
                continue;
            }
            if let Some(last) = send.deliveries.len().min(2).checked_sub(1) {
                send.report(last, b"Kok\n");
            }
        }
        assert_eq!(send.tries, RECIPIENTS as u64 + send.busy);
        assert!(send.jobs_most >= 3, "{}", send.jobs_most);
        // Read once more when they are called, and once to see that all is done.
        assert!(steps < 3 * RECIPIENTS as u64 + 3 * calls + 100, "{steps}");
        assert_eq!(send.twins.c.used(), [0; 3]);
    }
}

/// Calls for a message whose file is gone, which no pass opens, join the entry that is in pqchan already. (Before, each
/// call was an entry of its own, and qmail-send logged that it cannot open the file for each of them.)
#[test]
fn a_removed_message_has_one_entry() {
    const QUEUES: u32 = 40;
    let mut twins = Twins::start();
    let job = Job { channel: 1, id: 7 };
    twins.open(0, job, START);
    for position in 0..u64::from(QUEUES) * 5 {
        let queue = 1 + position % u64::from(QUEUES);
        twins.skip(0, position, b"u@d.example");
        twins.report(
            0,
            job,
            position,
            START + 400,
            b"u@d.example",
            format!("B60 {queue} busy\n").as_bytes(),
        );
    }
    assert_eq!(twins.close(0, PassEnd::EndOfFile, START + 400), None);
    let mut entries = Vec::new();
    for _ in 0..5 {
        for queue in 1..=QUEUES {
            assert!(twins.call(1, CALL_DELNUM, format!("R{queue} 1\n").as_bytes()));
        }
        entries.extend(twins.due_all(1));
    }
    assert_eq!(entries, [(7, START)]);
    // If the file is there after all, one pass tries them all.
    assert!(twins.open(1, job, START));
    let mut position = 1000;
    for _ in 0..u64::from(QUEUES) * 5 {
        if let PassStep::At(at) = twins.next(1, position) {
            position = at;
        }
        twins.skip(1, position, b"u@d.example");
        position += 1;
    }
    assert_eq!(twins.next(1, position), PassStep::End);
    assert_eq!(twins.due_all(1), []);
}

/// SIGALRM with a backlog tries what servers have deferred, and none of what is busy. (An earlier gate tried
/// everything: 159,548 busy answers for 3000 mails.)
#[test]
fn alarms_with_a_backlog() {
    const MAILS: usize = 5000;
    const DEFERRED: usize = 10;
    let mut send = Send::new(&[1; MAILS], 1);
    while send.pass(1000) {
        while !send.deliveries.is_empty() {
            let report: &[u8] =
                if send.tries <= DEFERRED as u64 { b"Zlater\n" } else { b"B3600 5 busy\n" };
            send.report(0, report);
        }
    }
    assert_eq!((send.tries, send.busy), (MAILS as u64, (MAILS - DEFERRED) as u64));
    for _ in 0..200 {
        assert_eq!(send.twins.alarm(1), []);
        send.selprep();
        // As pqrun() does with what is in pqchan.
        send.due.iter_mut().for_each(|entry| entry.0 = send.twins.now);
        assert_eq!(send.due.len(), DEFERRED);
        while send.pass(1000) {
            while !send.deliveries.is_empty() {
                send.report(0, b"Zlater\n");
            }
        }
    }
    assert_eq!(send.busy, (MAILS - DEFERRED) as u64);
    assert_eq!(send.tries, (MAILS + 200 * DEFERRED) as u64);
}

/// A pass that hands out many lets other messages go first, and goes on after them.
#[test]
fn others_go_first() {
    const RECIPIENTS: usize = 3000;
    // Every recipient is at a domain of its own.
    let mut send = Send::new(&[RECIPIENTS, 1], RECIPIENTS);
    send.due = vec![(START, 0), (START + 1, 1)];
    send.twins.set_clock(START + 2);
    let mut before_other = 0;
    while send.pass(10) || !send.deliveries.is_empty() {
        while let Some(&(j, _)) = send.deliveries.first() {
            match send.jobs[j] {
                Some((0, ..)) => send.report(0, b"B3600 5 busy\n"),
                _ => send.report(0, b"Kok\n"),
            }
        }
        if !send.mails[1].is_unlinked {
            before_other = send.tries;
        }
        send.selprep();
        send.ask();
        send.answer(b"B3600 5 busy\n");
    }
    assert!((TURN..2 * TURN).contains(&(before_other as u32)), "{before_other}");
    assert_eq!(send.tries, RECIPIENTS as u64 + 1);
}
