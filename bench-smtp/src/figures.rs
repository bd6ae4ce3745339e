//! The figures of each scenario, and the bars that the gate has to reach.

use std::collections::BTreeMap;
use std::fmt;

use serde::Serialize;

use crate::measure;
use crate::plan::Plan;
use crate::run::Run;
use crate::scenario::{
    BIG, CAP, EARLY, HOLD, INJECTED_A_SECOND, OTHERS, RATE, RATE_WINDOW, SERVER_CAP, Scenario,
};

impl Scenario {
    /// The figures of the runs, in the same order for every mail server.
    pub fn measures(self, runs: &BTreeMap<&'static str, (Plan, Run)>) -> Vec<Measure> {
        let mut measures = Measures { runs, all: Vec::new() };
        match self {
            Scenario::S1 => measures.s1(),
            Scenario::S2 => measures.s2(),
            Scenario::S3 => measures.refusals("all", ""),
            Scenario::S4 => measures.s4(),
            Scenario::S5 => {
                measures.refusals("mx", "MX: ");
                measures.refusals("mx seen", "MX, seen before: ");
                measures.refusals("mx asked", "MX, gate sites: ");
                measures.refusals("relay", "relay: ");
            }
            Scenario::S6 => measures.s6(),
            Scenario::S8 => measures.s8(),
            Scenario::S9 => measures.s9(),
            Scenario::S10 => measures.s10(),
            Scenario::S11 => measures.s11(),
        }
        measures.twice();
        measures.all
    }
}

/// The value that the gate has to reach.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Bar {
    /// At most this value.
    AtMost(f64),
    /// At least this value.
    AtLeast(f64),
    /// At least this many times the value of the same tree without the gate.
    AtLeastOfNoGate(f64),
    /// At most this many times the value of the same tree without the gate in the row below.
    AtMostOfNoGateBelow(f64),
}

impl fmt::Display for Bar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Bar::AtMost(value) => write!(f, "<= {value}"),
            Bar::AtLeast(value) => write!(f, ">= {value}"),
            Bar::AtLeastOfNoGate(share) => write!(f, ">= {share} of no gate"),
            Bar::AtMostOfNoGateBelow(times) => write!(f, "<= {times} of no gate below"),
        }
    }
}

/// A figure.
#[derive(Debug, Clone, PartialEq)]
pub struct Measure {
    /// What it is, with its unit.
    pub name: String,
    /// None: it could not be measured, because the mail was not delivered in time, or the mail server does not report
    /// it.
    pub value: Option<f64>,
    /// The value that the gate has to reach.
    pub bar: Option<Bar>,
}

struct Measures<'r> {
    runs: &'r BTreeMap<&'static str, (Plan, Run)>,
    all: Vec<Measure>,
}

impl Measures<'_> {
    fn add(&mut self, name: impl Into<String>, value: Option<f64>, bar: Option<Bar>) {
        self.all.push(Measure { name: name.into(), value, bar });
    }

    fn of<T>(&self, run: &str, what: impl Fn(&Plan, &Run) -> Option<T>) -> Option<T> {
        self.runs.get(run).and_then(|(plan, run)| what(plan, run))
    }

    fn cpu(&mut self, run: &'static str) {
        let value = self.of(run, |_, run| {
            (!run.record.accepted.is_empty()).then(|| run.cpu_ms / run.record.accepted.len() as f64)
        });
        self.add("CPU ms a message", value, None);
    }

    /// Adds the figures of one run for a server with a limit.
    fn capped(&mut self, run: &'static str, at_least: f64) {
        let peak = self.of(run, |_, run| Some(measure::peak(&run.record.servers[0].steps)));
        self.add(
            "sessions at the big domain, most",
            peak.map(f64::from),
            Some(Bar::AtMost(f64::from(CAP))),
        );
        let above =
            self.of(run, |_, run| Some(measure::above(&run.record.servers[0].steps, CAP).1));
        self.add("longest time above 20 sessions, ms", above, None);
        let mean = self.of(run, |_, run| measure::busy_mean(&run.record.servers[0].steps, CAP));
        self.add("mean sessions while it is busy", mean, Some(Bar::AtLeast(at_least)));
        let lull = self.of(run, |_, run| measure::longest_lull(&run.record.servers[0].steps, CAP));
        self.add("longest time below 10 while it is busy, ms", lull, None);
    }

    fn s1(&mut self) {
        // 98.7 % of 20.
        self.capped("burst", 19.74);
        let until = |plan: &Plan, run: &Run, class| {
            measure::until_last(plan, run, class, measure::first_session(run)?)
        };
        let done = self.of("burst", |plan, run| until(plan, run, BIG));
        self.add("big domain done, s", done, None);
        let with = self.of("burst", |plan, run| until(plan, run, OTHERS));
        let alone = self.of("burst alone", |plan, run| until(plan, run, OTHERS));
        self.add("others done, all queued before, s", with, None);
        self.add("others done alone, s", alone, None);
        let todo = self.of("burst", |_, run| run.self_report.todo_secs);
        self.add("qmail-send reads queue/todo, s", todo, None);
        self.add("others, times as long as alone", ratio(with, alone), Some(Bar::AtMost(1.05)));
        // One of the others is among the last mails that are read, and then takes its time at the server.
        let least = self.of("burst", |_, run| {
            let first_secs = measure::first_session(run)?.saturating_sub(run.start_us) as f64 / 1e6;
            Some(run.self_report.todo_secs? - first_secs + HOLD.as_secs_f64())
        });
        self.add("others, times as long at the very least", ratio(least, alone), None);
        let with = self.of("paced", |plan, run| measure::sojourn(plan, run, OTHERS));
        let alone = self.of("paced alone", |plan, run| measure::sojourn(plan, run, OTHERS));
        self.add("others arriving over 20 s, mean time, s", with.map(|(mean, _)| mean), None);
        self.add("others arriving alone, mean time, s", alone.map(|(mean, _)| mean), None);
        let ratio_of = |pick: fn((f64, f64)) -> f64| ratio(with.map(pick), alone.map(pick));
        self.add(
            "others arriving, times as long as alone",
            ratio_of(|(mean, _)| mean),
            Some(Bar::AtMost(1.05)),
        );
        self.add("others arriving, 95 %, times", ratio_of(|(_, most)| most), None);
        self.cpu("burst");
        self.busy_answers("burst", None);
    }

    fn s2(&mut self) {
        let rate = self.of("all", |plan, run| {
            let secs = measure::until_last(plan, run, OTHERS, measure::first_session(run)?)?;
            Some(plan.count(OTHERS) as f64 / secs)
        });
        self.add("messages a second", rate, Some(Bar::AtLeastOfNoGate(0.98)));
        let peak = self.of("all", |_, run| {
            run.record.servers.iter().map(|server| measure::peak(&server.steps)).max()
        });
        self.add(
            "sessions at one domain, most",
            peak.map(f64::from),
            Some(Bar::AtMost(f64::from(CAP))),
        );
        self.cpu("all");
        let sink = self
            .of("all", |_, run| Some(run.record.cpu_ms / run.record.accepted.len().max(1) as f64));
        self.add("the sink's CPU ms a message", sink, None);
    }

    fn refusals(&mut self, run: &'static str, prefix: &str) {
        if !self.runs.contains_key(run) {
            return;
        }
        let refused = self.of(run, |_, run| Some(f64::from(run.record.servers[0].refused)));
        self.add(format!("{prefix}refused with 421"), refused, Some(Bar::AtMost(20.0)));
        let done = self
            .of(run, |plan, run| measure::until_last(plan, run, BIG, measure::first_session(run)?));
        self.add(format!("{prefix}done, s"), done, Some(Bar::AtMost(13.0)));
        let accepted = self.of(run, |_, run| Some(run.record.accepted.len() as f64));
        self.add(format!("{prefix}accepted within 90 s"), accepted, None);
        let mean =
            self.of(run, |_, run| measure::busy_mean(&run.record.servers[0].steps, SERVER_CAP));
        self.add(format!("{prefix}mean sessions of 10"), mean, None);
    }

    fn s4(&mut self) {
        self.capped("queue", 19.7);
        let done = self.of("queue", |plan, run| {
            measure::until_last(plan, run, BIG, measure::first_session(run)?)
        });
        self.add("big domain done, s", done, None);
        self.busy_answers("queue", Some(Bar::AtMost(3.0)));
        let passed = self.of("queue", |_, run| run.self_report.passed_secs);
        self.add("first pass over the queue, s", passed, None);
        let since_arrival = |plan: &Plan, run: &Run, class| {
            measure::until_last(plan, run, class, measure::first_arrival(plan, run, class)?)
        };
        let alone = self.of("alone", |plan, run| since_arrival(plan, run, OTHERS));
        self.add("300 others alone, s", alone, None);
        let after = self.of("queue", |plan, run| since_arrival(plan, run, OTHERS));
        self.add("300 others after the first pass, s", after, None);
        self.add("the same, times as long as alone", ratio(after, alone), Some(Bar::AtMost(1.2)));
        let during = self.of("queue", |plan, run| since_arrival(plan, run, EARLY));
        self.add("300 others during the first pass, s", during, None);
        self.cpu("queue");
        let queued = self.of("queue", |_, run| Some(run.queued_secs));
        self.add("queueing by the bench, s", queued, None);
    }

    fn s6(&mut self) {
        let alone = self.of("alone", |plan, run| measure::sojourn(plan, run, OTHERS));
        self.add("others alone, mean time, s", alone.map(|(mean, _)| mean), None);
        for run in ["hang", "refuse"] {
            let with = self.of(run, |plan, run| measure::sojourn(plan, run, OTHERS));
            self.add(format!("{run}: others, mean time, s"), with.map(|(mean, _)| mean), None);
            let times = ratio(with.map(|(mean, _)| mean), alone.map(|(mean, _)| mean));
            self.add(
                format!("{run}: others, times as long as alone"),
                times,
                Some(Bar::AtMost(1.05)),
            );
            let accepted = self.of(run, |_, run| Some(run.record.accepted.len() as f64));
            self.add(format!("{run}: others done within 60 s"), accepted, None);
            // Postfix defers a destination's whole queue at once: how often it has tried is not in its log.
            let tried = self.of(run, |_, run| {
                let tried = run.self_report.deferred + run.self_report.returned;
                (run.self_report.started > 0).then_some(tried as f64)
            });
            self.add(format!("{run}: deliveries tried in vain"), tried, None);
        }
        let lost = self.of("hang", |_, run| {
            let half = u64::midpoint(run.start_us, run.end_us);
            Some(measure::mean(&run.record.servers[0].steps, half, run.end_us))
        });
        self.add("hang: mean places lost, second half", lost, Some(Bar::AtMost(3.0)));
        let peak = self.of("hang", |_, run| Some(measure::peak(&run.record.servers[0].steps)));
        self.add("hang: places lost, most", peak.map(f64::from), None);
    }

    /// How late the last of the other mail started: without the big domain's mail, and in this run with it.
    fn latest_others(&mut self, with: &str) {
        let most = |plan: &Plan, run: &Run| {
            measure::sojourns(plan, run, OTHERS)?.last().map(|secs| secs - HOLD.as_secs_f64())
        };
        let alone = self.of("alone", most);
        self.add("others alone, the latest, s after its arrival", alone, None);
        let latest = self.of(with, most);
        self.add("others, the latest, s after its arrival", latest, Some(Bar::AtMost(1.0)));
    }

    fn s8(&mut self) {
        // 98.5 % of 20.
        self.capped("list", 19.7);
        let done = self.of("list", |plan, run| {
            measure::until_last(plan, run, BIG, measure::first_session(run)?)
        });
        self.add("list done, s", done, None);
        self.latest_others("list");
        let cpu = |plan: &Plan, run: &Run| {
            let all_ms = run.self_report.cpu_ms_of.get("qmail-send")?;
            Some(all_ms * 1000.0 / plan.count(BIG).max(1) as f64)
        };
        let others =
            self.of("alone", |_, run| run.self_report.cpu_ms_of.get("qmail-send").copied());
        let with = self.of("list", |plan, run| {
            let all_ms = run.self_report.cpu_ms_of.get("qmail-send")? - others?;
            Some(all_ms * 1000.0 / plan.count(BIG).max(1) as f64)
        });
        // A list without any limit is no measure: hundreds of its deliveries share what one wake-up costs. See
        // README.md.
        let bar = Bar::AtMostOfNoGateBelow(1.3);
        self.add("qmail-send's CPU us a recipient, without the others", with, Some(bar));
        let same_pace = self.of("twenty at once", cpu);
        self.add("the same, the list alone and concurrencyremote 20", same_pace, None);
        self.cpu("list");
        self.busy_answers("list", None);
    }

    fn s9(&mut self) {
        let starts = |pick: fn(Option<(u32, u32)>) -> Option<u32>| {
            move |_: &Plan, run: &Run| {
                let steps = &run.record.servers[0].steps;
                pick(measure::starts_within(steps, RATE_WINDOW)).map(f64::from)
            }
        };
        let most = self.of("rate", starts(|range| Some(range?.1)));
        self.add("sessions begun in any 60 s, most", most, Some(Bar::AtMost(f64::from(RATE))));
        let least = self.of("rate", starts(|range| Some(range?.0)));
        // 99 % of the rate.
        let bar = Bar::AtLeast(f64::from(RATE) * 0.99);
        self.add("the same while mail waits, least", least, Some(bar));
        let peak = self.of("rate", |_, run| Some(measure::peak(&run.record.servers[0].steps)));
        self.add(
            "sessions at the big domain, most",
            peak.map(f64::from),
            Some(Bar::AtMost(f64::from(CAP))),
        );
        let done = self.of("rate", |plan, run| {
            measure::until_last(plan, run, BIG, measure::first_session(run)?)
        });
        self.add("big domain done, s", done, None);
        self.latest_others("rate");
        self.cpu("rate");
        self.busy_answers("rate", None);
    }

    fn s10(&mut self) {
        // From the first mail on, to a time of each mail.
        let a_second = |at: fn(&Plan, &Run) -> Vec<Option<u64>>| {
            move |plan: &Plan, run: &Run| {
                let first = run.arrived.iter().flatten().min()?;
                let all: Option<Vec<u64>> = at(plan, run).into_iter().collect();
                let secs = all?.into_iter().max()?.saturating_sub(*first) as f64 / 1e6;
                Some(plan.count(OTHERS) as f64 / secs)
            }
        };
        let taken = self.of("all", a_second(|_, run| run.taken.clone()));
        self.add(
            format!("taken at the door, messages a second (offered: {INJECTED_A_SECOND})"),
            taken,
            None,
        );
        let send = self
            .of("all", |plan, run| Some(plan.count(OTHERS) as f64 / run.self_report.todo_secs?));
        self.add("read from queue/todo, messages a second", send, None);
        let rate = self.of("all", a_second(measure::accepted_at));
        self.add("delivered, messages a second", rate, None);
        for (name, share) in [("half of them", 0.5), ("99 %", 0.99)] {
            let secs = self.of("all", |plan, run| {
                measure::share_of(&measure::sojourns(plan, run, OTHERS)?, share)
            });
            self.add(format!("{name} were accepted within, s"), secs, None);
        }
        let door = self.of("all", |_, run| {
            let pairs = run.taken.iter().zip(&run.arrived);
            let times: Option<Vec<f64>> = pairs
                .map(|(taken, begun)| Some((*taken)?.saturating_sub((*begun)?) as f64 / 1e6))
                .collect();
            let mut times = times?;
            times.sort_by(f64::total_cmp);
            measure::share_of(&times, 0.99)
        });
        self.add("99 % were taken at the door within, s", door, None);
        self.cpu("all");
        let sink = self
            .of("all", |_, run| Some(run.record.cpu_ms / run.record.accepted.len().max(1) as f64));
        self.add("the sink's CPU ms a message", sink, None);
    }

    fn s11(&mut self) {
        let wanted = self.of("all", |plan, _| plan.held).map_or(0.0, f64::from);
        let peak = self.of("all", |_, run| Some(measure::peak(&run.record.servers[0].steps)));
        self.add("sessions held, most", peak.map(f64::from), Some(Bar::AtLeast(wanted)));
        let opened = self.of("all", |_, run| {
            run.complete.then(|| {
                run.end_us.saturating_sub(measure::first_session(run).unwrap_or(run.end_us)) as f64
                    / 1e6
            })
        });
        self.add("until all are open, s", opened, None);
        let a_session = |of: fn(&Run) -> Option<f64>| {
            move |_: &Plan, run: &Run| {
                let sessions = run.record.servers[0]
                    .steps
                    .last()
                    .map(|_| f64::from(measure::peak(&run.record.servers[0].steps)))?;
                Some(of(run)? / sessions)
            }
        };
        let pss = self.of("all", a_session(|run| Some(run.memory?.0.pss_kib)));
        self.add("memory a session (Pss), KiB", pss, Some(Bar::AtMost(100.0)));
        let tables = self.of("all", a_session(|run| Some(run.memory?.0.page_tables_kib)));
        self.add("page tables a session, KiB", tables, None);
        let lost = self.of("all", a_session(|run| Some(run.memory?.1)));
        self.add("the machine's memory a session, with the sink's, KiB", lost, None);
        let ended = self.of("all", |_, run| run.self_report.ended_secs);
        self.add("from SIGTERM to the end, s", ended, None);
        let gone = self.of("all", |plan, run| {
            let left = run.left.as_ref()?;
            let accepted = run.record.accepted.iter().map(|accepted| accepted.mail);
            let kept: std::collections::HashSet<u32> =
                left.iter().copied().chain(accepted).collect();
            Some((plan.mails.len() - kept.len()) as f64)
        });
        self.add("neither accepted nor in the queue afterwards", gone, Some(Bar::AtMost(0.0)));
    }

    fn busy_answers(&mut self, run: &'static str, bar: Option<Bar>) {
        let value = self.of(run, |plan, run| {
            // Postfix does not log how many deliveries it has started.
            (run.self_report.started > 0).then(|| {
                (run.self_report.busy + run.self_report.returned) as f64
                    / plan.count(BIG).max(1) as f64
            })
        });
        self.add("busy answers a mail of the big domain", value, bar);
    }

    /// Over all runs of the scenario.
    fn twice(&mut self) {
        let (mut twice, mut lost) = (0, 0);
        for (plan, run) in self.runs.values() {
            let (more, none) = measure::twice_and_lost(plan, run);
            twice += more;
            if run.complete && plan.wanted.len() == plan.classes_used() {
                lost += none;
            }
        }
        self.add("accepted twice", Some(twice as f64), Some(Bar::AtMost(0.0)));
        self.add("lost", Some(lost as f64), Some(Bar::AtMost(0.0)));
    }
}

fn ratio(of: Option<f64>, to: Option<f64>) -> Option<f64> {
    of.zip(to).filter(|(_, to)| *to > 0.0).map(|(of, to)| of / to)
}
