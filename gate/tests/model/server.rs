//! One key, its backlog, and a server that objects: a discrete-event model of what learns.

#![allow(dead_code, reason = "each test uses its part of the model")]

use std::cell::Cell;
use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashSet, VecDeque};
use std::rc::Rc;

use qpatch_gate::learn::{
    Admission, Attempt, Coverage, EndedDelivery, Learned, Learning, StartedIn,
};
use qpatch_gate::random::Random;
use qpatch_gate::report::{DeliveryVerdict, Sent};
use qpatch_gate::returns::Returns;

pub(crate) const SEC: u64 = 1_000_000;

/// What decides how many may run.
pub(crate) trait Control {
    fn may_start(&mut self, now_us: u64, running: u32, limit: u32) -> Admission;
    fn end(&mut self, ended: &EndedDelivery, random: &mut Random) -> Attempt;
    /// In whose place a delivery is that starts now.
    fn started_in(&self, _now_us: u64) -> StartedIn {
        StartedIn::FreePlace
    }
    fn level(&self, limit: u32) -> u32;
}

impl Control for Learned {
    fn may_start(&mut self, now_us: u64, running: u32, limit: u32) -> Admission {
        Learned::may_start(self, now_us, running, limit, Learning::On)
    }

    fn end(&mut self, ended: &EndedDelivery, random: &mut Random) -> Attempt {
        Learned::delivery_ended(self, ended, random)
    }

    fn started_in(&self, now_us: u64) -> StartedIn {
        Learned::started_in(self, now_us)
    }

    fn level(&self, limit: u32) -> u32 {
        self.effective(limit, Learning::On)
    }
}

/// What a key with a fixed limit keeps of its server.
#[derive(Default)]
pub(crate) struct FixedLimit(pub(crate) Learned);

impl Control for FixedLimit {
    fn may_start(&mut self, now_us: u64, running: u32, limit: u32) -> Admission {
        self.0.may_start(now_us, running, limit, Learning::Fixed)
    }

    fn end(&mut self, ended: &EndedDelivery, random: &mut Random) -> Attempt {
        self.0.delivery_ended(&EndedDelivery { learning: Learning::Fixed, ..*ended }, random)
    }

    fn started_in(&self, now_us: u64) -> StartedIn {
        self.0.started_in(now_us)
    }

    fn level(&self, limit: u32) -> u32 {
        limit
    }
}

/// How a server answers a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Does {
    Accept,
    /// It is accepted, and answered after so many microseconds more than it takes.
    AcceptLate(u64),
    /// It is accepted, and the oldest other session is refused in its place.
    Replace(DeliveryVerdict),
    /// After [`Setup::round_trip_secs`].
    Refuse(DeliveryVerdict),
    /// After so many microseconds.
    RefuseLate(DeliveryVerdict, u64),
    /// Nothing, until the time-out.
    Hang,
}

/// `(now_us, sessions before this one, its number, random) -> answer`
pub(crate) type Server = Box<dyn FnMut(u64, u32, u64, &mut Random) -> Does>;

pub(crate) fn cap(most: u32) -> Server {
    Box::new(move |_, sessions, _, _| {
        if sessions < most {
            Does::Accept
        } else {
            Does::Refuse(DeliveryVerdict::TooMany(Sent::No))
        }
    })
}

/// It answers beyond so many sessions after so long.
pub(crate) fn late(most: u32, secs: f64) -> Server {
    Box::new(move |_, sessions, _, _| {
        if sessions < most {
            Does::Accept
        } else {
            Does::RefuseLate(DeliveryVerdict::TooMany(Sent::No), (secs * SEC as f64) as u64)
        }
    })
}

/// It closes each further connection without a word.
pub(crate) fn wordless(most: u32) -> Server {
    Box::new(move |_, sessions, _, _| {
        if sessions < most { Does::Accept } else { Does::Refuse(DeliveryVerdict::Died(Sent::No)) }
    })
}

/// When sessions ended.
#[derive(Debug, Default)]
pub(crate) struct Ends {
    /// The first one since the server asked.
    first_us: Cell<Option<u64>>,
    last_us: Cell<u64>,
}

impl Ends {
    fn add(&self, now_us: u64) {
        self.first_us.set(self.first_us.get().or(Some(now_us)));
        self.last_us.set(now_us);
    }

    fn forget(&self) {
        self.first_us.set(None);
    }
}

/// So many wait in the kernel when the socket is closed, sendmail's default; they are cut off.
const WAIT_IN_KERNEL: u32 = 10;
/// And others have not been answered yet. They ask again after a second, and are refused then.
const ASKS_AGAIN_US: u64 = 1_000_000;
/// For so long connections come faster than they are taken.
const FLOOD_US: u64 = 20_000;
/// sendmail looks whether it may listen again when a session ends, and so long after it looked the last time.
const LOOKS_US: u64 = 5_000_000;

/// sendmail's MaxDaemonChildren: it closes its listening socket when the last place is taken. So many seconds later it
/// looks whether one is free, and opens it again, or closes it for as long once more.
pub(crate) fn closing(most: u32, secs: u64, ends: &Rc<Ends>) -> Server {
    let ends = Rc::clone(ends);
    let (mut closed_us, mut opens_us, mut refused) = (None, 0, 0);
    Box::new(move |now_us, sessions, _, _| {
        while let Some(_) = closed_us
            && now_us >= opens_us
        {
            // It wakes up for that with the last end, or in steps from then on.
            let last_us = ends.last_us.get();
            let woken_us =
                last_us + (opens_us.saturating_sub(last_us)).div_ceil(LOOKS_US) * LOOKS_US;
            if now_us < woken_us {
                break;
            }
            match ends.first_us.get() {
                Some(first_us) if first_us <= woken_us => closed_us = None,
                _ => opens_us = woken_us + secs * SEC,
            }
        }
        if let Some(since_us) = closed_us {
            refused += 1;
            return match () {
                () if now_us >= since_us + FLOOD_US => Does::Refuse(DeliveryVerdict::ConnectFailed),
                () if refused <= WAIT_IN_KERNEL => Does::Refuse(DeliveryVerdict::Died(Sent::No)),
                () => Does::RefuseLate(DeliveryVerdict::ConnectFailed, ASKS_AGAIN_US),
            };
        }
        if sessions + 1 >= most {
            (closed_us, opens_us, refused) = (Some(now_us), now_us + secs * SEC, 0);
            ends.forget();
        }
        Does::Accept
    })
}

/// It accepts all connections, and serves so many at once, each in this time; the others wait.
pub(crate) fn silent(most: usize, service_secs: f64) -> Server {
    let mut free: BinaryHeap<Reverse<u64>> = (0..most).map(|_| Reverse(0)).collect();
    Box::new(move |now_us, _, _, _| {
        let from_us = free.pop().map_or(0, |Reverse(us)| us).max(now_us);
        free.push(Reverse(from_us + (service_secs * SEC as f64) as u64));
        Does::AcceptLate(from_us - now_us)
    })
}

/// It throws out the oldest session for each one too many.
pub(crate) fn replacing(most: u32) -> Server {
    Box::new(move |_, sessions, _, _| {
        if sessions < most {
            Does::Accept
        } else {
            Does::Replace(DeliveryVerdict::TooMany(Sent::No))
        }
    })
}

/// It takes so many a minute, whatever their number at once.
pub(crate) fn rate(most: u32) -> Server {
    let (mut minute, mut taken) = (0, 0);
    Box::new(move |now_us, _, _, _| {
        if now_us / (60 * SEC) != minute {
            (minute, taken) = (now_us / (60 * SEC), 0);
        }
        taken += 1;
        if taken <= most { Does::Accept } else { Does::Refuse(DeliveryVerdict::TooMany(Sent::No)) }
    })
}

/// It refuses this part of the sessions, however many there are; 0..=1.
pub(crate) fn at_random(part: f64, seen: DeliveryVerdict) -> Server {
    Box::new(
        move |_, _, _, random| {
            if random.fraction() < part { Does::Refuse(seen) } else { Does::Accept }
        },
    )
}

pub(crate) struct Setup {
    pub(crate) limit: u32,
    pub(crate) mails: u32,
    /// Of so many mails the first is refused, always, by a milter; 0: none.
    pub(crate) bad: u32,
    /// And so many of the first mails.
    pub(crate) bad_first: u32,
    pub(crate) ends: Rc<Ends>,
    pub(crate) service_secs: f64,
    /// Of the log-normal service time; 0: constant.
    pub(crate) sigma: f64,
    pub(crate) round_trip_secs: f64,
    /// The server sees a session for so long after its delivery has ended.
    pub(crate) linger_secs: f64,
    pub(crate) timeout_secs: f64,
    /// A mail that was really tried comes back after so long, as often as needed.
    pub(crate) retry_secs: f64,
    /// One that was not comes back after so long; 0: it is the first again, but for those that are held.
    pub(crate) return_secs: f64,
    /// How many are held.
    pub(crate) return_behind: usize,
    pub(crate) seed: u64,
    pub(crate) until_secs: f64,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            limit: 20,
            mails: 500,
            bad: 0,
            bad_first: 0,
            ends: Rc::default(),
            service_secs: 0.2,
            sigma: 0.0,
            round_trip_secs: 0.002,
            linger_secs: 0.0,
            timeout_secs: 60.0,
            retry_secs: 400.0,
            return_secs: 0.0,
            return_behind: 0,
            seed: 1,
            until_secs: 1e6,
        }
    }
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Outcome {
    pub(crate) started: u64,
    pub(crate) accepted: u32,
    pub(crate) refused: u32,
    /// Of those: how many went back as busy.
    pub(crate) returned: u32,
    pub(crate) returned_most: u32,
    pub(crate) suspensions: u32,
    /// Those that did not: real tries.
    pub(crate) deferred: u32,
    pub(crate) accepted_us: Vec<u64>,
    pub(crate) last_accepted_us: u64,
    pub(crate) sessions_most: u32,
    /// (time, level), whenever it changed.
    pub(crate) levels: Vec<(u64, u32)>,
    pub(crate) pauses_us: Vec<u64>,
}

impl Outcome {
    pub(crate) fn makespan_secs(&self) -> f64 {
        self.last_accepted_us as f64 / SEC as f64
    }

    pub(crate) fn accepted_by(&self, secs: f64) -> usize {
        self.accepted_us.iter().filter(|&&us| us as f64 <= secs * SEC as f64).count()
    }

    /// Lowest and highest level from some time on.
    pub(crate) fn range(&self, from_us: u64) -> (u32, u32) {
        let mut range = (u32::MAX, 0);
        for (at, &(_, level)) in self.levels.iter().enumerate() {
            let ends_us = self.levels.get(at + 1).map_or(u64::MAX, |next| next.0);
            if ends_us > from_us {
                range = (range.0.min(level), range.1.max(level));
            }
        }
        range
    }

    /// When the level was this for the first time from `from_us` on.
    pub(crate) fn reached(&self, level: u32, from_us: u64) -> Option<u64> {
        let mut now = None;
        for &(us, at) in &self.levels {
            if us <= from_us {
                now = (at >= level).then_some(from_us);
            } else if now.is_none() && at >= level {
                now = Some(us);
            }
        }
        now
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    End { mail: u32, started_us: u64, how: u8, id: u64, beside: u32, is_handover: bool },
    Back(u32),
    Gone,
    Wake,
}

pub(crate) fn run(setup: &Setup, control: &mut dyn Control, server: &mut Server) -> Outcome {
    let mut random = Random::new(setup.seed);
    let mut returns = Returns::default();
    let mut queue: VecDeque<u32> = (0..setup.mails).collect();
    let mut back = vec![0u32; setup.mails as usize];
    let mut events: BinaryHeap<Reverse<(u64, u64, Event)>> = BinaryHeap::new();
    let mut sequence = 0u64;
    let (mut now_us, mut running, mut sessions) = (0u64, 0u32, 0u32);
    let mut kinds: Vec<DeliveryVerdict> = Vec::new();
    let mut out = Outcome { levels: vec![(0, control.level(setup.limit))], ..Outcome::default() };
    let mut suspended = 0;
    // Sessions of the server, the oldest first; and those that it threw out before their time.
    let mut open: VecDeque<(u64, u32, u64, u32, bool)> = VecDeque::new();
    let mut thrown: HashSet<u64> = HashSet::new();
    let is_bad =
        |mail: u32| mail < setup.bad_first || setup.bad > 0 && mail.is_multiple_of(setup.bad);
    let good = (0..setup.mails).filter(|&mail| !is_bad(mail)).count() as u32;
    let gone = |sessions: &mut u32, now_us: u64| {
        *sessions -= 1;
        setup.ends.add(now_us);
    };
    loop {
        while !queue.is_empty() {
            match control.may_start(now_us, running, setup.limit) {
                Admission::Start => {}
                Admission::Wait => break,
                Admission::Later(until_us) => {
                    sequence += 1;
                    events.push(Reverse((until_us, sequence, Event::Wake)));
                    break;
                }
                Admission::Suspended(until_us) => {
                    if suspended != until_us {
                        suspended = until_us;
                        out.suspensions += 1;
                        out.pauses_us.push(until_us - now_us);
                        sequence += 1;
                        events.push(Reverse((until_us, sequence, Event::Wake)));
                    }
                    break;
                }
            }
            let Some(mail) = queue.pop_front() else { break };
            out.started += 1;
            let does = match is_bad(mail) {
                true => Does::Refuse(DeliveryVerdict::TooMany(Sent::Envelope)),
                false => server(now_us, sessions, out.started, &mut random),
            };
            let refused_secs = setup.round_trip_secs * (0.5 + random.fraction());
            let (secs, seen) = match does {
                Does::Accept | Does::AcceptLate(_) | Does::Replace(_) => {
                    sessions += 1;
                    out.sessions_most = out.sessions_most.max(sessions);
                    let radius = (-2.0 * (1.0 - random.fraction()).ln()).sqrt();
                    let normal = radius * (std::f64::consts::TAU * random.fraction()).cos();
                    let spread = (setup.sigma * normal - setup.sigma * setup.sigma / 2.0).exp();
                    let late_us = if let Does::AcceptLate(us) = does { us } else { 0 };
                    (
                        setup.service_secs * spread + late_us as f64 / SEC as f64,
                        DeliveryVerdict::Accepted,
                    )
                }
                Does::Refuse(seen) => (refused_secs, seen),
                Does::RefuseLate(seen, us) => (us as f64 / SEC as f64, seen),
                Does::Hang => (setup.timeout_secs, DeliveryVerdict::Died(Sent::No)),
            };
            let mut how = |seen: DeliveryVerdict| {
                kinds.iter().position(|&kind| kind == seen).unwrap_or_else(|| {
                    kinds.push(seen);
                    kinds.len() - 1
                }) as u8
            };
            running += 1;
            sequence += 1;
            let (id, how_ended) = (sequence, how(seen));
            let ends_us = now_us + (secs * SEC as f64) as u64;
            let beside = running - 1;
            let is_handover = control.started_in(now_us) == StartedIn::JustFreedPlace;
            let end =
                Event::End { mail, started_us: now_us, how: how_ended, id, beside, is_handover };
            events.push(Reverse((ends_us, sequence, end)));
            if seen == DeliveryVerdict::Accepted {
                open.push_back((id, mail, now_us, beside, is_handover));
            }
            if let Does::Replace(seen) = does
                && let Some((id, mail, started_us, beside, is_handover)) = open.pop_front()
            {
                thrown.insert(id);
                sessions -= 1;
                sequence += 1;
                let how = how(seen);
                let end = Event::End { mail, started_us, how, id: 0, beside, is_handover };
                events.push(Reverse((now_us + 1000, sequence, end)));
            }
        }
        let Some(Reverse((at_us, _, event))) = events.pop() else { break };
        now_us = at_us;
        if now_us as f64 > setup.until_secs * SEC as f64 {
            break;
        }
        let Event::End { mail, started_us, how, id, beside, is_handover } = event else {
            match event {
                Event::Back(mail) => queue.push_back(mail),
                Event::Gone => gone(&mut sessions, now_us),
                Event::End { .. } | Event::Wake => {}
            }
            continue;
        };
        if thrown.remove(&id) {
            continue;
        }
        if let Some(at) = open.iter().position(|session| session.0 == id) {
            open.remove(at);
        }
        let seen = kinds[how as usize];
        running -= 1;
        let hash = (u64::from(mail) + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let tried = control.end(
            &EndedDelivery {
                now_us,
                started_us,
                running,
                beside,
                limit: setup.limit,
                learning: Learning::On,
                seen,
                coverage: Coverage::AllDeliveries,
                started_in: if is_handover {
                    StartedIn::JustFreedPlace
                } else {
                    StartedIn::FreePlace
                },
            },
            &mut random,
        );
        let level = control.level(setup.limit);
        assert!((1..=setup.limit).contains(&level), "level {level} of {}", setup.limit);
        if out.levels.last().is_some_and(|last| last.1 != level) {
            out.levels.push((now_us, level));
        }
        if seen == DeliveryVerdict::Accepted {
            if setup.linger_secs > 0.0 {
                sequence += 1;
                let gone_us = now_us + (setup.linger_secs * SEC as f64) as u64;
                events.push(Reverse((gone_us, sequence, Event::Gone)));
            } else {
                gone(&mut sessions, now_us);
            }
            out.accepted += 1;
            out.accepted_us.push(now_us);
            returns.note_attempt(hash);
            out.last_accepted_us = now_us;
            if out.accepted == good {
                break;
            }
            continue;
        }
        out.refused += 1;
        if tried == Attempt::DoesNotCount && returns.may_return(hash) {
            out.returned += 1;
            back[mail as usize] += 1;
            out.returned_most = out.returned_most.max(back[mail as usize]);
            if setup.return_secs > 0.0 {
                sequence += 1;
                let back_us = now_us + (setup.return_secs * SEC as f64) as u64;
                events.push(Reverse((back_us, sequence, Event::Back(mail))));
            } else {
                queue.insert(queue.len().min(setup.return_behind), mail);
            }
        } else {
            out.deferred += 1;
            returns.note_attempt(hash);
            back[mail as usize] = 0;
            sequence += 1;
            let back_us = now_us + (setup.retry_secs * SEC as f64) as u64;
            events.push(Reverse((back_us, sequence, Event::Back(mail))));
        }
    }
    out
}
