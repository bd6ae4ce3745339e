//! Models of the kinds of servers that were measured (docs/measurements.md): what a session too many costs with
//! `:20::learn` and with a fixed limit. `--nocapture --test-threads 1` shows the figures.

#[path = "model/server.rs"]
mod server;

use qpatch_gate::learn::Learned;
use qpatch_gate::report::{DeliveryVerdict, Sent};
use qpatch_gate::returns::RETURNS_MAX;
use server::{
    Does, FixedLimit, Outcome, Server, Setup, at_random, cap, closing, late, rate, replacing, run,
    silent, wordless,
};

const TOO_MANY: DeliveryVerdict = DeliveryVerdict::TooMany(Sent::No);

/// Makes a server of a kind, which takes this many sessions at once; each run has a new one.
type Kind = fn(u32, &Setup) -> Server;

/// This many mails are held in the spawner: a refused mail comes back behind them.
const HELD: usize = 100;

fn shown(name: &str, setup: &Setup, ideal_secs: f64, outcome: &Outcome) {
    println!(
        "{name:<40} {:3} {:6} x {:4} s, sigma {}: {:6.2} times the ideal, refused {:5}, tries {:5}, limit {:?} of late, {} pauses, by 120 s {}",
        setup.limit,
        setup.mails,
        setup.service_secs,
        setup.sigma,
        outcome.makespan_secs() / ideal_secs,
        outcome.refused,
        outcome.deferred,
        outcome.range(outcome.last_accepted_us / 2),
        outcome.suspensions,
        outcome.accepted_by(120.0),
    );
}

fn learning(name: &str, kind: Kind, most: u32, setup: &Setup, ideal_secs: f64) -> Outcome {
    let outcome = run(setup, &mut Learned::default(), &mut kind(most, setup));
    shown(&format!("{name}, learn"), setup, ideal_secs, &outcome);
    outcome
}

fn fixed(name: &str, kind: Kind, most: u32, setup: &Setup, ideal_secs: f64) -> Outcome {
    let outcome = run(setup, &mut FixedLimit::default(), &mut kind(most, setup));
    shown(&format!("{name}, fixed"), setup, ideal_secs, &outcome);
    outcome
}

/// Limit, cap and mails: of the loop that was measured, with more places, and with more mail.
const LOOPS: [(u32, u32, u32); 3] = [(20, 5, 200), (200, 50, 2000), (20, 5, 10_000)];

fn setup(limit: u32, mails: u32, sigma: f64) -> Setup {
    let until_secs = 20_000.0;
    let return_behind = HELD;
    Setup { limit, mails, service_secs: 1.0, sigma, until_secs, return_behind, ..Setup::default() }
}

/// A server with a limit of sessions: no mail is deferred, and the places are full.
#[test]
fn a_limit_of_sessions_at_once() {
    let kinds: [(&str, Kind, f64); 5] = [
        ("421 at the greeting", |most, _| cap(most), 0.02),
        ("421 after 3 s", |most, _| late(most, 3.0), 0.11),
        ("closed without a word", |most, _| wordless(most), 0.02),
        ("older ones are thrown out", |most, _| replacing(most), 0.02),
        ("silent", |most, setup| silent(most as usize, setup.service_secs), 0.0),
    ];
    for (limit, most, mails) in LOOPS {
        for sigma in [0.0, 0.3] {
            for (name, kind, refused_part) in kinds {
                let setup = setup(limit, mails, sigma);
                let ideal_secs = f64::from(mails) / f64::from(most);
                let outcome = learning(name, kind, most, &setup, ideal_secs);
                assert_eq!((outcome.accepted, outcome.deferred), (mails, 0));
                assert!(outcome.makespan_secs() <= ideal_secs * 1.1);
                let refused = f64::from(limit - most) * 1.1 + f64::from(mails) * refused_part + 3.0;
                assert!(f64::from(outcome.refused) <= refused, "{}", outcome.refused);
            }
        }
    }
}

/// The server counts a child for 20 ms after its session has ended. A free place waits for that, so all places are
/// used. If many places become free together, half of them stay empty for the sessions that end: there a wait costs
/// more than it gains.
#[test]
fn children_that_linger() {
    for (limit, most, mails) in LOOPS {
        for (sigma, times) in [(0.3, 1.12), (0.0, if most > 5 { 2.6 } else { 1.2 })] {
            let setup = Setup { linger_secs: 0.02, ..setup(limit, mails, sigma) };
            let ideal_secs = f64::from(mails) / f64::from(most);
            let outcome =
                learning("a child lingers", |most, _| cap(most), most, &setup, ideal_secs);
            assert_eq!((outcome.accepted, outcome.deferred), (mails, 0));
            assert!(outcome.makespan_secs() <= ideal_secs * times);
            assert!(
                f64::from(outcome.refused)
                    <= f64::from(limit - most) * 2.0 + f64::from(mails) * 0.07
            );
        }
    }
}

/// A fixed limit does not change. A delivery that is refused at the door beside others does not count as an attempt,
/// and its mail comes again when the server may take it.
#[test]
fn fixed_limits() {
    let kinds: [(&str, Kind); 2] = [
        ("421 at the greeting", |most, _| cap(most)),
        ("closed without a word", |most, _| wordless(most)),
    ];
    for (name, kind) in kinds {
        for (limit, most, mails) in [(5, 5, 200), (50, 50, 2000), (20, 5, 200), (5, 5, 10_000)] {
            for (sigma, linger_secs) in [(0.0, 0.02), (0.3, 0.02), (0.3, 0.0), (0.3, 0.1)] {
                let setup = Setup { linger_secs, ..setup(limit, mails, sigma) };
                let ideal_secs = f64::from(mails) / f64::from(most);
                let name = format!("{name}, a child lingers {linger_secs} s");
                let outcome = fixed(&name, kind, most, &setup, ideal_secs);
                assert_eq!(outcome.accepted, mails);
                // A limit above the cap is tried again from time to time, and each mail may go back three times.
                assert_eq!(outcome.deferred, 0);
                let times = if limit > most { 1.5 } else { 1.1 + linger_secs * 2.5 };
                assert!(outcome.makespan_secs() <= ideal_secs * times);
            }
        }
    }
}

/// Mail that is always refused counts as tried in the end, although others ran within the last minute.
#[test]
fn fixed_limits_and_a_server_that_takes_nothing_any_more() {
    for seen in [TOO_MANY, DeliveryVerdict::Died(Sent::No), DeliveryVerdict::ConnectFailed] {
        let setup = Setup { until_secs: 390.0, ..setup(5, 50, 0.3) };
        let mut server: Server =
            Box::new(
                move |now_us, _, _, _| {
                    if now_us < 500_000 { Does::Accept } else { Does::Refuse(seen) }
                },
            );
        let outcome = run(&setup, &mut FixedLimit::default(), &mut server);
        shown(&format!("nothing after half a second, {seen:?}"), &setup, 10.0, &outcome);
        assert_eq!(outcome.accepted, 5);
        assert_eq!(outcome.deferred, 45);
        assert!(outcome.returned_most <= u32::from(RETURNS_MAX));
        assert!(outcome.started <= 250, "they are not tried in a hurry");
    }
}

/// sendmail's MaxDaemonChildren: the limit settles one below, and the wall is not tried again soon.
#[test]
fn a_socket_that_is_closed_at_the_limit() {
    let kind: Kind = |most, setup| closing(most, 15, &setup.ends);
    for (limit, most, mails) in [(20, 5, 200), (5, 5, 200), (200, 50, 2000), (20, 5, 10_000)] {
        for sigma in [0.0, 0.3] {
            let setup = setup(limit, mails, sigma);
            let secs = f64::from(mails) / f64::from(most - 1);
            let outcome = learning("the socket is closed", kind, most, &setup, secs);
            assert_eq!((outcome.accepted, outcome.deferred), (mails, 0));
            // An outage costs 20 s; there is one, and one more after 600 s, 1200 s and so on.
            assert!(outcome.makespan_secs() <= secs * 1.12 + 25.0);
        }
    }
    // With children that linger the socket would close one below as well, at a handover: each place waits a little.
    for sigma in [0.0, 0.3] {
        let setup = Setup { linger_secs: 0.02, ..setup(20, 200, sigma) };
        let outcome = learning("closed, a child lingers", kind, 5, &setup, 50.0);
        assert_eq!((outcome.accepted, outcome.deferred), (200, 0));
        assert!(outcome.makespan_secs() <= 80.0);
    }
    // A fixed limit does not change, although each round closes the socket: then there are pauses and few attempts.
    for limit in [4, 5, 20] {
        for sigma in [0.0, 0.3] {
            let setup = setup(limit, 200, sigma);
            let outcome = fixed("the socket is closed", kind, 5, &setup, 40.0);
            assert_eq!(outcome.accepted, 200);
            assert!(outcome.deferred <= if limit == 20 { 150 } else { 40 });
            assert!(outcome.accepted_by(120.0) >= 25);
        }
    }
}

/// A server with a limit a minute, whatever the number at once: no worse than a minute for each portion.
#[test]
fn a_limit_of_sessions_a_minute() {
    for (limit, mails) in [(20, 200), (20, 2000), (200, 2000)] {
        for sigma in [0.0, 0.3] {
            let setup = setup(limit, mails, sigma);
            let ideal_secs = f64::from(mails);
            let outcome = learning("60 a minute", |most, _| rate(most), 60, &setup, ideal_secs);
            assert_eq!(outcome.accepted, mails);
            assert!(outcome.deferred <= mails / 100);
            assert!(outcome.refused <= mails / 2);
            assert!(outcome.makespan_secs() <= ideal_secs * 1.5 + 60.0);
        }
    }
}

/// A milter that always refuses some recipients, however few sessions there are: its server takes all others as if it
/// were not there, and each of the refused is tried and deferred, or goes back three times at most.
#[test]
fn a_milter_that_refuses_some() {
    for (limit, mails) in [(20, 200), (200, 2000), (20, 10_000), (200, 10_000)] {
        for (round_trip_secs, sigma) in [(0.002, 0.0), (0.002, 0.3), (1.0, 0.3)] {
            for bad in [0, 2, 5, 10] {
                let setup = Setup { bad, round_trip_secs, ..setup(limit, mails, sigma) };
                let bads = mails.checked_div(bad).unwrap_or(0);
                let work_secs = f64::from(mails - bads) + f64::from(bads) * round_trip_secs;
                let ideal_secs = work_secs / f64::from(limit);
                let name = format!("1 of {bad} is refused after {round_trip_secs} s");
                let outcome = learning(&name, |_, _| cap(u32::MAX), 0, &setup, ideal_secs);
                assert_eq!(outcome.accepted, mails - bads);
                assert_eq!(outcome.suspensions, 0);
                // Some seconds until the background is noticed, and the last mail.
                assert!(outcome.makespan_secs() <= ideal_secs * 1.06 + 9.0);
                assert!(outcome.makespan_secs() <= 20.0 || mails > 2000);
                if bad == 2 {
                    assert!(outcome.refused - outcome.deferred <= 8 * limit);
                }
            }
        }
    }
}

/// The mail that a milter refuses comes first, in a row: the good mail behind it does not wait for pauses of minutes.
#[test]
fn a_run_of_mail_that_a_milter_refuses() {
    for bad_first in [20, 100, 500] {
        for round_trip_secs in [0.002, 0.02, 0.2] {
            let setup = Setup { bad_first, round_trip_secs, ..setup(20, bad_first + 100, 0.3) };
            let name = format!("{bad_first} come first and are refused after {round_trip_secs} s");
            let outcome = learning(&name, |_, _| cap(u32::MAX), 0, &setup, 5.0);
            assert_eq!(outcome.accepted, 100);
            // One at a time, with a pause of 2 s at most after three, of 4 after four more, of 8 and 16 after 16 and
            // 64. After each further 64 a pause that is twice as long. And the limit grows from one.
            let paused_secs = match bad_first {
                20 => 2.0,
                100 => 30.0,
                _ => 1000.0,
            };
            let tried_secs = f64::from(bad_first) * round_trip_secs * 1.6;
            assert!(outcome.makespan_secs() <= 25.0 + tried_secs + paused_secs);
        }
    }
}

/// The same at random: a second refusal of the same mail is rare, so more mail goes back at once and less is deferred.
#[test]
fn refused_at_random() {
    let kinds: [(f64, DeliveryVerdict, Kind); 5] = [
        (0.01, TOO_MANY, |_, _| at_random(0.01, TOO_MANY)),
        (0.02, TOO_MANY, |_, _| at_random(0.02, TOO_MANY)),
        (0.05, TOO_MANY, |_, _| at_random(0.05, TOO_MANY)),
        (0.05, DeliveryVerdict::ConnectFailed, |_, _| {
            at_random(0.05, DeliveryVerdict::ConnectFailed)
        }),
        (0.05, DeliveryVerdict::Died(Sent::No), |_, _| {
            at_random(0.05, DeliveryVerdict::Died(Sent::No))
        }),
    ];
    for (part, seen, kind) in kinds {
        for (limit, mails) in [(20, 200), (20, 10_000), (200, 10_000)] {
            for seed in 1..=5 {
                let setup = Setup {
                    limit,
                    mails,
                    service_secs: 0.2,
                    sigma: 0.5,
                    seed,
                    return_behind: HELD,
                    ..Setup::default()
                };
                let ideal_secs = f64::from(mails) * 0.2 / f64::from(limit);
                let name = format!("{part} at random, {seen:?}");
                let outcome = learning(&name, kind, 0, &setup, ideal_secs);
                let none = learning("none", |_, _| cap(u32::MAX), 0, &setup, ideal_secs);
                assert_eq!(outcome.accepted, mails);
                // One in some thousands is refused four times in a row: that is an attempt.
                assert!(outcome.deferred <= mails / 2000);
                let at = mails as usize - 1 - outcome.deferred as usize;
                let (us, none_us) = (outcome.accepted_us[at], none.accepted_us[at]);
                assert!(us as f64 <= none_us as f64 * 1.1 + 0.3e6, "{us} us, {none_us} us");
            }
        }
    }
}
