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
        let rust = match self.rust.close(j, job, natural) {
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
    Skip { j: usize, job: Job, position: u64 },
    Report { j: usize, job: Job, position: u64, natural: i64, report: Vec<u8> },
    Close { j: usize, job: Job, natural: i64 },
    Call { channel: usize, delivery: u64, report: Vec<u8> },
    Due { channel: usize },
    DueAll,
    Wakeup { after: i64 },
    Flush { channel: usize },
    Clock { by: i64 },
    Shortage(Shortage),
}

impl Step {
    fn take(self, on: &mut Twins) {
        match self {
            Self::Open { j, job, ago } => on.open(j, job, on.now - ago),
            Self::Skip { j, job, position } => drop(on.skip(j, job, position)),
            Self::Report { j, job, position, natural, report } => {
                on.report(j, job, position, on.now + natural, &report);
            }
            Self::Close { j, job, natural } => drop(on.close(j, job, on.now + natural)),
            Self::Call { channel, delivery, report } => drop(on.call(channel, delivery, &report)),
            Self::Due { channel } => drop(on.due(channel)),
            Self::DueAll => (0..CHANNELS).for_each(|channel| while on.due(channel).is_some() {}),
            Self::Wakeup { after } => drop(on.wakeup(on.now + after)),
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
        20 => (indices(), jobs(), positions()).prop_map(|(j, job, position)| Step::Skip { j, job, position }),
        40 => (indices(), jobs(), positions(), natural(), reports()).prop_map(
            |(j, job, position, natural, report)| Step::Report { j, job, position, natural, report }
        ),
        14 => (indices(), jobs(), natural()).prop_map(|(j, job, natural)| Step::Close { j, job, natural }),
        14 => calls(),
        10 => channels().prop_map(|channel| Step::Due { channel }),
        2 => Just(Step::DueAll),
        4 => natural().prop_map(|after| Step::Wakeup { after }),
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
