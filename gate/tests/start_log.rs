//! Rates for an hour and a day: no hour and no day has more starts than they allow, whatever happens to the process,
//! its file and the clocks; and nearly all of a rate is used.

use proptest::collection::vec;
use proptest::prelude::*;
use qpatch_gate::memory::Text;
use qpatch_gate::random::Random;
use qpatch_gate::rate::StartRate;
use qpatch_gate::rates::Rates;
use qpatch_gate::start_log::{LogState, Stamp, StartLog};
use qpatch_gate::window::{DAY_US, HOUR_US};

const SEC: u64 = 1_000_000;
const IDS: [u64; 3] = [7, 8, u64::MAX];

/// A spawner as far as the log is concerned, and the file.
struct Process {
    log: StartLog,
    rates: Rates,
    /// Each key as the gate has it; None: it is forgotten.
    keys: [Option<StartRate>; 3],
    /// Real time, and when the process started.
    real_us: u64,
    began_us: u64,
    /// The time of day, in seconds: it may jump.
    wall_ahead_secs: i64,
    boot: u64,
    file: Vec<u8>,
    starts: [Vec<u64>; 3],
}

impl Process {
    fn new(rates: Rates) -> Self {
        let real_us = 100 * DAY_US;
        Self {
            log: StartLog::default(),
            rates,
            keys: [None; 3],
            real_us,
            began_us: real_us,
            wall_ahead_secs: 1_700_000_000,
            boot: 1,
            file: Vec::new(),
            starts: Default::default(),
        }
    }

    fn now_us(&self) -> u64 {
        self.real_us - self.began_us
    }

    fn stamp(&self) -> Stamp {
        let wall_secs = (self.real_us / SEC) as i64 + self.wall_ahead_secs;
        Stamp { wall_secs: wall_secs.max(0) as u64, boot_us: self.real_us, boot: self.boot }
    }

    fn write(&mut self, state: LogState) {
        let mut text = Text::default();
        self.log.write(&mut text, state, &self.stamp(), self.now_us()).unwrap();
        self.file = text.bytes;
        self.log.note_written(state, self.now_us());
    }

    fn attempt(&mut self, which: usize) {
        let (id, now_us) = (IDS[which], self.now_us());
        let key = match &mut self.keys[which] {
            Some(key) => key,
            none => {
                let mut rate = StartRate::new(&self.rates, 0);
                self.log.attach(&mut rate, id, &self.rates, now_us);
                none.insert(rate)
            }
        };
        if !key.is_due(now_us) {
            return;
        }
        key.started(now_us);
        self.log.started(key, id, &self.rates, now_us);
        if self.log.must_write() {
            self.write(LogState::Open);
        }
        self.starts[which].push(self.real_us);
    }

    fn tick(&mut self) {
        if let Some(state) = self.log.due(self.now_us()) {
            self.write(state);
        }
    }

    /// Another process begins, with what is in the file.
    fn begin(&mut self) {
        self.began_us = self.real_us;
        (self.log, self.keys) = (StartLog::default(), [None; 3]);
        if !self.file.is_empty() {
            self.log.restore(&self.file, &self.stamp(), 0).unwrap();
            self.write(LogState::Closed);
        }
    }

    fn check(&self) {
        for starts in &self.starts {
            for (allowed, us) in [(self.rates.hour, HOUR_US), (self.rates.day, DAY_US)] {
                let Some(allowed) = allowed else { continue };
                let mut first = 0;
                for (last, &at_us) in starts.iter().enumerate() {
                    while at_us - starts[first] > us {
                        first += 1;
                    }
                    assert!(
                        last + 1 - first <= allowed as usize,
                        "{} in {us} us",
                        last + 1 - first
                    );
                }
            }
        }
    }
}

#[derive(Clone, Debug)]
enum Step {
    Attempts {
        which: usize,
        number: u32,
        step_us: u64,
    },
    Jump {
        us: u64,
    },
    Tick,
    Forget {
        which: usize,
    },
    Killed,
    Restarted,
    /// The time of day jumps. The machine runs on.
    WallJump {
        secs: i64,
    },
    /// The machine is started again; its clock may have gone back.
    Booted {
        back_secs: i64,
    },
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        10 => (0usize..3, 1u32..300, prop_oneof![Just(1u64), 1..SEC, 1..600 * SEC])
            .prop_map(|(which, number, step_us)| Step::Attempts { which, number, step_us }),
        3 => prop_oneof![1..60 * SEC, 1..4 * HOUR_US, 1..2 * DAY_US].prop_map(|us| Step::Jump { us }),
        4 => Just(Step::Tick),
        2 => (0usize..3).prop_map(|which| Step::Forget { which }),
        3 => Just(Step::Killed),
        2 => Just(Step::Restarted),
        1 => (-200_000i64..200_000).prop_map(|secs| Step::WallJump { secs }),
        1 => (0i64..200_000).prop_map(|back_secs| Step::Booted { back_secs }),
    ]
}

fn rates() -> impl Strategy<Value = Rates> {
    let some = || prop_oneof![1u32..5, 5u32..200, 200u32..3000];
    prop_oneof![
        some().prop_map(|hour| Rates { hour: Some(hour), ..Rates::NONE }),
        some().prop_map(|day| Rates { day: Some(day), ..Rates::NONE }),
        (some(), some()).prop_map(|(hour, day)| Rates {
            hour: Some(hour),
            day: Some(day),
            ..Rates::NONE
        }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn no_hour_and_no_day_has_more(rates in rates(), steps in vec(step(), 1..80), seed in any::<u64>()) {
        let mut random = Random::new(seed);
        let mut process = Process::new(rates);
        for step in steps {
            match step {
                Step::Attempts { which, number, step_us } => {
                    for _ in 0..number {
                        process.real_us += random.next() % step_us;
                        process.attempt(which);
                    }
                }
                Step::Jump { us } => process.real_us += us,
                Step::Tick => process.tick(),
                Step::Forget { which } => process.keys[which] = None,
                Step::Killed => process.begin(),
                Step::Restarted => {
                    if !process.log.is_closed() {
                        process.write(LogState::Closed);
                    }
                    process.begin();
                }
                Step::WallJump { secs } => {
                    process.wall_ahead_secs += secs;
                    // The file is written once a minute.
                    process.real_us += 60 * SEC;
                    process.tick();
                }
                Step::Booted { back_secs } => {
                    process.boot += 1;
                    process.wall_ahead_secs -= back_secs;
                    process.begin();
                }
            }
        }
        process.check();
    }
}

/// With mail always there, over ten days and a clean restart each night: 99 % of the rate.
#[test]
fn nearly_all_of_a_day_is_used() {
    let mut process = Process::new(Rates { day: Some(2000), hour: Some(500), ..Rates::NONE });
    let began_us = process.real_us;
    for day in 1..=10 {
        while process.real_us < began_us + day * DAY_US {
            process.attempt(0);
            process.real_us += 5 * SEC;
        }
        process.tick();
        process.write(LogState::Closed);
        process.begin();
    }
    process.check();
    let used = process.starts[0].len() as f64;
    // The first day has used all of its rate at once; each of the others comes a 240th of a day later.
    assert!(used >= 9.0 * 2000.0 / 1.01, "{used}");
}

/// A process that is killed while it starts counts too much, by a sixteenth of the rate at most each time; one that is
/// killed after ten quiet seconds counts exactly.
#[test]
fn a_kill_costs_a_sixteenth_at_most() {
    let rates = Rates { hour: Some(1600), ..Rates::NONE };
    let mut process = Process::new(rates);
    process.real_us += SEC;
    (0..400).for_each(|_| process.attempt(0));
    let left = |process: &Process| process.log.left(IDS[0], &rates, process.now_us())[0].unwrap();
    assert_eq!(left(&process), 1200);
    process.begin();
    process.attempt(0);
    assert!((1100..=1199).contains(&left(&process)), "{}", left(&process));
    process.real_us += 20 * SEC;
    process.tick();
    let before = left(&process);
    process.begin();
    process.attempt(0);
    assert_eq!(left(&process), before - 1);
    process.check();
}

#[test]
fn what_is_no_log_changes_nothing() {
    let stamp = Stamp { wall_secs: 5, boot_us: 5, boot: 1 };
    let mut process = Process::new(Rates { hour: Some(5), ..Rates::NONE });
    process.attempt(0);
    let whole = process.file.clone();
    for cut in 0..whole.len() - 1 {
        assert!(process.log.restore(&whole[..cut], &stamp, 0).is_err(), "{cut}");
    }
    for odd in [
        &b"\xff"[..],
        b"qpatch-rates\t2\t1\n",
        b"end\n",
        b"qpatch-rates\t1\t1\t1\tx\t1\t1\t1\topen\nend\n",
    ] {
        assert!(process.log.restore(odd, &stamp, 0).is_err());
    }
    let rates = process.rates;
    assert_eq!(process.log.left(IDS[0], &rates, 0), [Some(4), None]);
    let huge = b"qpatch-rates\t1\t0\t0\t0\t18446744073709551615\t0\t4294967295\topen\nh\t1\t9\t18446744073709551615:4294967295\td\nend\n";
    let _ = process.log.restore(huge, &stamp, 0);
}
