//! gate_retry.c beside gate-model's `retry`: the same calls, the same answers, as often asked for memory.

use proptest::prelude::*;
use qpatch_gate_model::retry::{CALL_DELNUM, Closed, Job, Memory, Retry, SECONDS_MAX, Told};
use qpatch_gate_retry_test::{Retry as C, Shortage};

/// The clock at the beginning.
const START: i64 = 1_700_000_000;

/// Short of memory as the C is.
#[derive(Default)]
struct Scheduled {
    shortage: Shortage,
    requests: u64,
}

impl Memory for Scheduled {
    fn is_there(&mut self) -> bool {
        let number = self.requests;
        self.requests += 1;
        !self.shortage.fails(number)
    }
}

/// Both of them.
struct Twins {
    c: C,
    rust: Retry<Scheduled>,
    now: i64,
}

impl Twins {
    fn start() -> Self {
        let mut twins = Self { c: C::start(), rust: Retry::new(Scheduled::default()), now: START };
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

    #[track_caller]
    fn same<T: PartialEq + std::fmt::Debug>(&mut self, c: T, rust: T) -> T {
        assert_eq!(c, rust, "gate_retry.c is on the left");
        assert_eq!(self.c.requests(), self.rust.memory().requests, "requests for memory");
        rust
    }

    fn open(&mut self, j: usize, job: Job, due: i64) {
        self.c.open(j as i32, job.channel as i32, job.id, due);
        self.rust.open(j, job, due);
        self.same((), ());
    }

    fn from(&mut self, j: usize) -> Option<u64> {
        let c = self.c.from(j as i32);
        let rust = self.rust.from(j);
        self.same(c, rust)
    }

    fn stop(&mut self, j: usize, position: u64) -> bool {
        let c = self.c.stop(j as i32, position);
        let rust = self.rust.stop(j, position);
        self.same(c, rust)
    }

    fn skip(&mut self, j: usize, job: Job, position: u64) -> bool {
        let c = self.c.skip(j as i32, job.channel as i32, job.id, position, self.now);
        let rust = self.rust.skip(j, job, position, self.now);
        self.same(c, rust)
    }

    /// The report as it is after the call.
    fn report(
        &mut self,
        j: usize,
        job: Job,
        position: u64,
        natural: i64,
        report: &[u8],
    ) -> Vec<u8> {
        let (mut c, mut rust) = (report.to_vec(), report.to_vec());
        self.c.report(j as i32, job.channel as i32, job.id, position, natural, &mut c);
        let told = Told::read(&mut rust);
        self.rust.report(j, job, position, natural, told, self.now);
        self.same(c, rust)
    }

    /// None if it waits.
    fn close(&mut self, j: usize, job: Job, natural: i64) -> Option<i64> {
        let c = self.c.close(j as i32, job.channel as i32, job.id, natural);
        let rust = match self.rust.close(j, job, natural, self.now) {
            Closed::Waits => None,
            Closed::Due(at) => Some(at),
        };
        self.same(c, rust)
    }

    fn call(&mut self, channel: usize, delivery: u64, report: &[u8]) -> bool {
        let c = self.c.call(channel as i32, delivery, report);
        let rust = self.rust.call_report(channel, delivery, report);
        self.same(c, rust)
    }

    fn due(&mut self, channel: usize) -> Option<(u64, i64)> {
        let c = self.c.due(channel as i32);
        let rust = self.rust.due(channel, self.now);
        self.same(c, rust)
    }

    fn wakeup(&mut self, wakeup: i64) -> i64 {
        let c = self.c.wakeup(wakeup);
        let rust = self.rust.wakeup(wakeup);
        self.same(c, rust)
    }

    /// All of them, in no order; and with memory, for that would go to the first ones.
    fn alarm(&mut self, channel: usize) -> Vec<(u64, i64)> {
        self.set_shortage(Shortage::None);
        let mut c = Vec::new();
        while let Some(message) = self.c.alarm(channel as i32) {
            c.push(message);
        }
        let mut rust = self.rust.alarm(channel, self.now);
        c.sort_unstable();
        rust.sort_unstable();
        self.same(c, rust)
    }

    fn flush(&mut self, channel: usize) -> Option<(u64, i64)> {
        let c = self.c.flush(channel as i32);
        let rust = self.rust.flush(channel, self.now);
        self.same(c, rust)
    }
}

/// Whatever may be called, in whatever order.
#[derive(Clone, Debug)]
enum Step {
    Open { j: usize, job: Job, ago: i64 },
    From { j: usize },
    Stop { j: usize, position: u64 },
    Skip { j: usize, job: Job, position: u64 },
    Report { j: usize, job: Job, position: u64, natural: i64, report: Vec<u8> },
    Close { j: usize, job: Job, natural: i64 },
    Call { channel: usize, delivery: u64, report: Vec<u8> },
    Due { channel: usize },
    DueAll,
    Wakeup { after: i64 },
    Alarm { channel: usize },
    Flush { channel: usize },
    Clock { by: i64 },
    Shortage(Shortage),
}

impl Step {
    fn take(self, on: &mut Twins) {
        match self {
            Self::Open { j, job, ago } => on.open(j, job, on.now - ago),
            Self::From { j } => drop(on.from(j)),
            Self::Stop { j, position } => drop(on.stop(j, position)),
            Self::Skip { j, job, position } => drop(on.skip(j, job, position)),
            Self::Report { j, job, position, natural, report } => {
                on.report(j, job, position, on.now + natural, &report);
            }
            Self::Close { j, job, natural } => drop(on.close(j, job, on.now + natural)),
            Self::Call { channel, delivery, report } => drop(on.call(channel, delivery, &report)),
            Self::Due { channel } => drop(on.due(channel)),
            Self::DueAll => (0..CHANNELS).for_each(|channel| while on.due(channel).is_some() {}),
            Self::Wakeup { after } => drop(on.wakeup(on.now + after)),
            Self::Alarm { channel } => drop(on.alarm(channel)),
            Self::Flush { channel } => drop(on.flush(channel)),
            Self::Clock { by } => on.set_clock((on.now + by).max(START / 2)),
            Self::Shortage(shortage) => on.set_shortage(shortage),
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

fn calls() -> impl Strategy<Value = Step> {
    let numbers = (0..5_u32, prop_oneof![9 => 0..6_u32, 1 => Just(u32::MAX)]);
    let right = numbers.prop_map(|(queue, most)| format!("R{queue} {most}\n").into_bytes());
    let garbage = prop::collection::vec(prop::sample::select(b"R0123 5\nx-".to_vec()), 0..9);
    let delivery = prop_oneof![9 => Just(CALL_DELNUM), 1 => any::<u64>()];
    (channels(), delivery, prop_oneof![9 => right, 1 => garbage])
        .prop_map(|(channel, delivery, report)| Step::Call { channel, delivery, report })
}

fn steps() -> impl Strategy<Value = Step> {
    let positions = || prop_oneof![0..6_u64, 0..200_u64];
    let natural = || prop_oneof![1..30_i64, 1..5000_i64];
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
        12 => (indices(), jobs(), 0..50_i64).prop_map(|(j, job, ago)| Step::Open { j, job, ago }),
        3 => indices().prop_map(|j| Step::From { j }),
        6 => (indices(), positions()).prop_map(|(j, position)| Step::Stop { j, position }),
        20 => (indices(), jobs(), positions()).prop_map(|(j, job, position)| Step::Skip { j, job, position }),
        40 => (indices(), jobs(), positions(), natural(), reports()).prop_map(
            |(j, job, position, natural, report)| Step::Report { j, job, position, natural, report }
        ),
        14 => (indices(), jobs(), natural()).prop_map(|(j, job, natural)| Step::Close { j, job, natural }),
        14 => calls(),
        10 => channels().prop_map(|channel| Step::Due { channel }),
        2 => Just(Step::DueAll),
        4 => natural().prop_map(|after| Step::Wakeup { after }),
        1 => channels().prop_map(|channel| Step::Alarm { channel }),
        1 => channels().prop_map(|channel| Step::Flush { channel }),
        8 => by.prop_map(|by| Step::Clock { by }),
        3 => shortages.prop_map(Step::Shortage),
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
    fn answers_alike(steps in prop::collection::vec(steps(), 1..400)) {
        let mut twins = Twins::start();
        for step in steps {
            step.take(&mut twins);
        }
    }
}

/// What the header says of memory, on a machine with 8-byte pointers.
#[test]
fn sizes_are_as_stated() {
    let [channel, waiting, queue, message, deferred, running] = C::start().sizes();
    assert!(channel <= 8208, "{channel}");
    let stated = [96, 16, 64, 32, 80];
    assert_eq!([waiting, queue, message, deferred, running], stated);
}

/// What the file of a message says of a recipient.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mark {
    Todo,
    Done,
}

/// A message in a qmail-send that does what HOOKS.md says.
struct Mail {
    file: Vec<Mark>,
    in_flight: Vec<bool>,
    due: Option<i64>,
    is_unlinked: bool,
}

/// qmail-send with one channel, whose pass and deliveries go in any order that it might.
struct Send {
    twins: Twins,
    mails: Vec<Mail>,
    /// struct job: message, references, numtodo, whether the pass has come to the end of the file.
    jobs: Vec<Option<(u64, u32, u32, bool)>>,
    /// Job and position.
    pass: Option<(usize, u64)>,
    /// Job and position of each delivery.
    deliveries: Vec<(usize, u64)>,
    tries: u64,
    busy: u64,
}

const NATURAL: i64 = 400;

impl Send {
    fn new(recipients: &[usize]) -> Self {
        let mail = |&recipients: &usize| Mail {
            file: vec![Mark::Todo; recipients],
            in_flight: vec![false; recipients],
            due: Some(START),
            is_unlinked: false,
        };
        Self {
            twins: Twins::start(),
            mails: recipients.iter().map(mail).collect(),
            jobs: Vec::new(),
            pass: None,
            deliveries: Vec::new(),
            tries: 0,
            busy: 0,
        }
    }

    fn job(id: u64) -> Job {
        Job { channel: 1, id }
    }

    fn is_done(&self) -> bool {
        self.mails.iter().all(|mail| mail.is_unlinked)
    }

    fn selprep(&mut self) {
        while let Some((id, due)) = self.twins.due(1) {
            let mail = &mut self.mails[id as usize];
            assert_eq!(mail.due, None, "it is in pqchan already");
            mail.due = Some(due);
        }
    }

    /// pass_dochan(); false if there was nothing to do.
    fn pass(&mut self, slots: usize) -> bool {
        let (j, position) = match self.pass {
            Some(pass) => pass,
            None => {
                let due = |mail: &Mail| mail.due.filter(|&due| due <= self.twins.now);
                let first = (0..self.mails.len()).filter(|&at| due(&self.mails[at]).is_some());
                let Some(at) = first.min_by_key(|&at| self.mails[at].due) else { return false };
                let due = self.mails[at].due.take().unwrap_or_default();
                let free = self.jobs.iter().position(Option::is_none);
                let j = free.unwrap_or_else(|| {
                    self.jobs.push(None);
                    self.jobs.len() - 1
                });
                assert!(self.mails[at].in_flight.iter().all(|&is| !is), "two jobs of a message");
                self.twins.open(j, Self::job(at as u64), due);
                let from = self.twins.from(j);
                self.jobs[j] = Some((at as u64, 1, u32::from(from.is_some()), false));
                (j, from.unwrap_or(0))
            }
        };
        self.pass = Some((j, position));
        let Some((id, refs, todo, _)) = self.jobs[j] else { panic!("no job") };
        if self.twins.stop(j, position) {
            self.pass = None;
            self.leave(j);
            return true;
        }
        if self.deliveries.len() >= slots {
            return false;
        }
        let Some(&mark) = self.mails[id as usize].file.get(position as usize) else {
            self.jobs[j] = Some((id, refs, todo, true));
            self.pass = None;
            self.leave(j);
            return true;
        };
        self.pass = Some((j, position + 1));
        if mark == Mark::Todo {
            self.jobs[j] = Some((id, refs, todo + 1, false));
            if !self.twins.skip(j, Self::job(id), position) {
                self.jobs[j] = Some((id, refs + 1, todo + 1, false));
                let in_flight = &mut self.mails[id as usize].in_flight[position as usize];
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
        let said = self.twins.report(j, Self::job(id), position, natural, report);
        let mail = &mut self.mails[id as usize];
        mail.in_flight[position as usize] = false;
        if said[0] == b'K' {
            mail.file[position as usize] = Mark::Done;
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
            mail.is_unlinked = true;
            return;
        }
        let natural = self.twins.now + NATURAL;
        if let Some(due) = self.twins.close(j, Self::job(id), natural) {
            self.mails[id as usize].due = Some(due);
        }
    }
}

proptest! {
    #![proptest_config(config())]

    /// Whatever the servers and the gate say, and whenever: each recipient is tried until it is done, never twice at once, and
    /// no file goes before.
    #[test]
    fn no_recipient_is_lost(
        recipients in prop::collection::vec(prop_oneof![1..4_usize, 1..60_usize], 1..4),
        slots in 1..30_usize,
        acts in prop::collection::vec((0..8_u8, any::<u16>(), any::<u8>()), 1..300),
        shortages in prop::collection::vec((0..300_usize, 0..3_u64), 0..4),
    ) {
        let mut send = Send::new(&recipients);
        for (at, (act, number, what)) in acts.into_iter().enumerate() {
            let fails = shortages.iter().find(|&&(when, _)| when == at);
            send.twins.set_shortage(fails.map_or(Shortage::None, |&(_, request)| Shortage::At(request)));
            send.selprep();
            match act {
                0..3 => {
                    send.pass(slots);
                }
                3 => while send.pass(slots) {},
                4..6 if !send.deliveries.is_empty() => {
                    let at = usize::from(number) % send.deliveries.len();
                    let busy = format!("B{} {} busy\n", 1 + number % 3600, 1 + what % 3);
                    let report: &[u8] = match what % 8 {
                        0..4 => busy.as_bytes(),
                        4..6 => b"Kok\n",
                        _ => b"Zlater\n",
                    };
                    send.report(at, report);
                }
                6 => {
                    let call = format!("R{} {}\n", 1 + what % 3, 1 + number % 20);
                    send.twins.call(1, CALL_DELNUM, call.as_bytes());
                }
                _ if what < 8 => {
                    for (id, due) in send.twins.alarm(1) {
                        send.mails[id as usize].due = Some(due);
                    }
                }
                _ => send.twins.set_clock(send.twins.now + i64::from(number % 50)),
            }
        }
        // And then there is room for all.
        send.twins.set_shortage(Shortage::None);
        for _ in 0..20 {
            send.selprep();
            while send.pass(slots) || !send.deliveries.is_empty() {
                if !send.deliveries.is_empty() {
                    send.report(0, b"Kok\n");
                }
                send.selprep();
            }
            send.twins.set_clock(send.twins.now + SECONDS_MAX);
        }
        prop_assert!(send.is_done(), "mail is left");
    }
}

/// 65000 recipients of one message, called 20 at a time: each is answered once as busy, and each call is the work of those who
/// were called.
#[test]
fn a_long_list() {
    const RECIPIENTS: usize = 65_000;
    let mut send = Send::new(&[RECIPIENTS]);
    let mut calls = 0_u64;
    let mut steps = 0_u64;
    while !send.is_done() {
        let is_first = send.busy < RECIPIENTS as u64;
        send.selprep();
        while send.pass(100) {
            steps += 1;
        }
        while !send.deliveries.is_empty() {
            send.report(0, if is_first { b"B3600 5 busy\n" } else { b"Kok\n" });
        }
        if !is_first && send.mails[0].due.is_none() && send.pass.is_none() {
            calls += 1;
            send.twins.call(1, CALL_DELNUM, b"R5 20\n");
        }
    }
    assert_eq!(send.tries, 2 * RECIPIENTS as u64);
    // The first and the last pass, and those between.
    assert!(steps < 4 * RECIPIENTS as u64 + 10 * calls, "{steps}");
    assert!(calls <= RECIPIENTS as u64 / 20 + 2, "{calls}");
}
