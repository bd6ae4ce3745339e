//! With qmail-send: it stops soon, loses nothing, and a busy domain holds up no other.

use std::collections::{BTreeSet, HashMap};
use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use qpatch::verify::proofs::mail::Watchdog;
use qpatch::verify::rig::log::{Log, logged};
use qpatch::verify::rig::numbers::Random;
use qpatch::verify::rig::sendrig::{self, SendRig, Spawners, pull_trigger};
use qpatch::verify::rig::stub::{self, Mode, StubEvent, StubEventKind, Stubs, peak};
use qpatch::verify::sandbox::private_tree::Sandbox;
use qpatch_test_support::tell;

use super::{BODY, BUSY, SENDER, gated, status};
use crate::rig::Rig;

/// A mail in the queue.
fn queue(sandbox: &Sandbox, recipient: &str) {
    sandbox.queue_message(BODY, SENDER, &[recipient.to_owned()]).unwrap();
}

/// The names of files below some folders of the queue.
fn left_in(sandbox: &Sandbox, folders: &[&str]) -> Vec<PathBuf> {
    let mut open: Vec<PathBuf> =
        folders.iter().map(|folder| sandbox.home().join("queue").join(folder)).collect();
    let mut files = Vec::new();
    while let Some(path) = open.pop() {
        if path.is_dir() {
            open.extend(fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path()));
        } else {
            files.push(path);
        }
    }
    files
}

/// The recipients that are still to be tried, by queue/remote.
fn waiting(sandbox: &Sandbox) -> BTreeSet<String> {
    let mut waiting = BTreeSet::new();
    for file in left_in(sandbox, &["remote"]) {
        for record in fs::read(file).unwrap().split(|byte| *byte == 0) {
            if let Some((b'T', address)) = record.split_first() {
                waiting.insert(String::from_utf8(address.to_vec()).unwrap());
            }
        }
    }
    waiting
}

fn ended(stubs: &Stubs, wanted: impl Fn(&StubEvent) -> bool) -> usize {
    stubs.events().iter().filter(|event| event.kind == StubEventKind::End && wanted(event)).count()
}

#[test]
fn qmail_send_stops_soon_with_held_deliveries_and_loses_nothing() {
    const LIMIT: usize = 5;
    let mut rig = gated(&sendrig::PROGRAMS, &format!("{BUSY}:{LIMIT}\n"), 60);
    let Rig { sandbox, stubs, .. } = &mut rig;
    stubs.forget();
    stubs.hold("stop").unwrap();
    let mut all = BTreeSet::new();
    for number in 0..100 {
        let recipient = stub::recipient(Mode::Accept, Some("stop"), number, BUSY);
        queue(sandbox, &recipient);
        all.insert(recipient);
    }
    for number in 0..20 {
        let domain = format!("other{number}.example");
        let recipient = stub::recipient(Mode::Accept, None, number, &domain);
        queue(sandbox, &recipient);
        all.insert(recipient);
    }
    let mut send = SendRig::start(sandbox, Spawners::Own).unwrap();
    send.wait(stubs, "all mail to be tried", |send, stubs| {
        Ok(ended(stubs, |event| event.domain() != BUSY) == 20 && send.log().deliveries.len() >= 120)
    })
    .unwrap();
    // Each of the 100 runs, is held, or is away.
    let status = status(sandbox, "all 100 to be accounted for", |status| {
        let key = status.keys.iter().find(|key| key.name == BUSY);
        key.is_some_and(|key| key.running == 5 && key.held + key.away == 95 && key.held > 5)
    });
    let held = status.held as usize;
    send.terminate().unwrap();
    stubs.release("stop").unwrap();
    let stopped = Instant::now();
    // Held deliveries run when the places become free. If they waited for the time limit of a hold, nothing would
    // happen for nearly a minute.
    send.set_idle(Duration::from_secs(45));
    let log = send.wait_exit(stubs).unwrap();
    let seconds = stopped.elapsed().as_secs_f64();
    let delivered: BTreeSet<String> = stubs
        .events()
        .iter()
        .filter(|event| event.kind == StubEventKind::End)
        .map(|event| event.recipient.clone())
        .collect();
    assert!(delivered.len() >= 20 + LIMIT + held, "{} delivered, {held} held", delivered.len());
    let left = waiting(sandbox);
    assert!(left.is_disjoint(&delivered));
    assert_eq!(&left | &delivered, all);
    assert_eq!(log.ended, log.deliveries.len());
    assert!(left.len() >= LIMIT, "{} left", left.len());

    // Mail that was away is tried after the restart; at once with SIGALRM. (Messages that are done may still be in the
    // queue: qmail-send stopped before it had removed them.)
    let messages = left_in(sandbox, &["info"]).len();
    assert!(messages >= left.len());
    let mut send = SendRig::start(sandbox, Spawners::Own).unwrap();
    send.set_idle(Duration::from_secs(150));
    send.wait(stubs, "the rest of the mail", |send, _| {
        // Its first status line comes when it has set up its signals; and one at a time is enough.
        let log = send.log();
        if log.limit("remote") > 0 && log.deliveries.len() == log.ended {
            send.process().signal(libc::SIGALRM)?;
        }
        Ok(send.log().ended_messages >= messages)
    })
    .unwrap();
    send.terminate().unwrap();
    send.wait_exit(stubs).unwrap();
    assert_eq!(ended(stubs, |_| true), all.len());
    assert_eq!(peak(stubs.events(), |event| event.domain() == BUSY), LIMIT);
    assert_eq!(
        left_in(sandbox, &["info", "remote", "local", "bounce", "todo"]),
        [] as [PathBuf; 0]
    );
    tell(format_args!(
        "SIGTERM with {LIMIT} running, {held} held and {} away: exit after {seconds:.2} s",
        left.len()
    ));
}

/// What the heavy test measures about the mail to other domains.
struct Others {
    /// From qmail-send's start to the end of the last mail that was queued with the busy domain's.
    batch: Took,
    /// From queueing to the end of the delivery, for mails that came later, one by one; the median.
    single: Took,
}

/// How long something took.
#[derive(Clone, Copy, PartialEq, PartialOrd)]
struct Took {
    /// In deliveries to the busy domain that ended in the meantime: this does not depend on other load.
    busy: usize,
    seconds: f64,
}

/// With 50 ms for each and 20 at a time it takes 13 s, or what two processors need to start so many: 25 s.
const TO_BUSY: usize = 5000;

const TO_OTHERS: usize = 500;

const LIMIT: usize = 20;

/// How many mails to other domains come one by one while the busy domain's are delivered.
const SINGLES: usize = 100;

/// How long a delivery takes, in milliseconds.
const SERVICE_MS: u32 = 50;

fn to_busy(number: usize) -> String {
    format!("k-{SERVICE_MS}-{number}@{BUSY}")
}

fn to_other(number: usize) -> String {
    format!("k-{SERVICE_MS}-{number}@other{}.example", number % 50)
}

/// Delivers `busy` mails to the busy domain, and all those to others.
fn deliver(sandbox: &Sandbox, stubs: &mut Stubs, busy: usize, others: usize) -> (Others, Log) {
    stubs.forget();
    let mut recipients: Vec<String> = (0..busy).map(to_busy).collect();
    recipients.extend((0..others - SINGLES).map(to_other));
    Random::new(7).shuffle(&mut recipients);
    for recipient in &recipients {
        queue(sandbox, recipient);
    }
    // qmail-send reads all new messages first, so that this is not measured.
    sandbox.set_control("concurrencyremote", "0\n").unwrap();
    let mut send = SendRig::start(sandbox, Spawners::Own).unwrap();
    send.wait(stubs, "the queue to be read", |send, _| {
        Ok(send.log().new_messages >= recipients.len())
    })
    .unwrap();
    send.terminate().unwrap();
    send.wait_exit(stubs).unwrap();

    sandbox.set_control("concurrencyremote", "500\n").unwrap();
    let total = busy + others;
    let mut seen = 0;
    let mut ends: HashMap<String, u64> = HashMap::new();
    let mut queued: HashMap<String, (Instant, usize)> = HashMap::new();
    let mut times: Vec<Took> = Vec::new();
    let mut next = others - SINGLES;
    let mut others_done = 0;
    let started = Instant::now();
    let mut batch = Took { busy: 0, seconds: 0.0 };
    let mut progress = Watchdog::default();
    let mut send = SendRig::start(sandbox, Spawners::Own).unwrap();
    send.set_idle(Duration::from_secs(150));
    send.wait(stubs, "all mail", |send, stubs| {
        // A deadline: mail that goes away again and again would look like progress.
        progress.check(ends.len(), || "deliveries that have ended".to_owned())?;
        for event in &stubs.events()[seen..] {
            if event.kind == StubEventKind::Start {
                continue;
            }
            assert!(
                ends.insert(event.recipient.clone(), event.at_ns).is_none(),
                "{event:?}: twice"
            );
            if event.domain() == BUSY {
                continue;
            }
            others_done += 1;
            let busy_done = ends.len() - others_done;
            match queued.remove(&event.recipient) {
                Some((queued, before)) => times.push(Took {
                    busy: busy_done - before,
                    seconds: queued.elapsed().as_secs_f64(),
                }),
                None => batch = Took { busy: busy_done, seconds: started.elapsed().as_secs_f64() },
            }
        }
        seen = stubs.events().len();
        // The next mail comes alone, when all mails before it are done.
        if next < others && others_done == next {
            let recipient = to_other(next);
            next += 1;
            queued.insert(recipient.clone(), (Instant::now(), ends.len() - others_done));
            queue(sandbox, &recipient);
            pull_trigger(sandbox)?;
        }
        Ok(send.log().ended_messages >= total)
    })
    .unwrap();
    send.terminate().unwrap();
    let log = send.wait_exit(stubs).unwrap();
    assert_eq!(ends.len(), total);
    times.sort_by(|a, b| a.partial_cmp(b).unwrap());
    (Others { batch, single: times[times.len() / 2] }, log)
}

#[test]
fn a_busy_domain_stays_below_its_limit_and_holds_up_no_other() {
    let mut rig = gated(&sendrig::PROGRAMS, &format!(":{LIMIT}\n"), 500);
    let Rig { sandbox, stubs, .. } = &mut rig;
    let (alone, _) = deliver(sandbox, stubs, 0, TO_OTHERS);
    assert_eq!(
        left_in(sandbox, &["info", "remote", "local", "bounce", "todo"]),
        [] as [PathBuf; 0]
    );

    let started = Instant::now();
    let (mixed, log) = deliver(sandbox, stubs, TO_BUSY, TO_OTHERS);
    let seconds = started.elapsed().as_secs_f64();
    assert_eq!(
        left_in(sandbox, &["info", "remote", "local", "bounce", "todo"]),
        [] as [PathBuf; 0]
    );
    let most = peak(stubs.events(), |event| event.domain() == BUSY);
    assert_eq!(most, LIMIT);

    // In qmail-send's log, too: one success for each, and otherwise only busy answers.
    let mut successes: HashMap<&str, usize> = HashMap::new();
    let mut busy_answers = 0;
    for delivery in log.deliveries.values() {
        let outcome = delivery.outcome.as_ref().unwrap();
        match outcome.letter {
            b'K' => *successes.entry(delivery.recipient.as_str()).or_default() += 1,
            b'Z' if outcome.text.starts_with("busy.example_is_at_its_limit_of_20_deliveries;") => {
                busy_answers += 1;
            }
            _ => panic!("{delivery:?}"),
        }
    }
    for recipient in (0..TO_BUSY).map(to_busy).chain((0..TO_OTHERS).map(to_other)) {
        assert_eq!(successes.get(logged(&recipient).as_str()), Some(&1), "{recipient}");
    }
    assert_eq!(successes.len(), TO_BUSY + TO_OTHERS);

    tell(format_args!(
        "{TO_BUSY} deliveries to one domain with a limit of {LIMIT}, {TO_OTHERS} to fifty others: {seconds:.0} s, peak \
         {most}, {:.2} busy answers a mail; others: in the same queue {:.2} s instead of {:.2} s, while {} of the busy \
         domain's ended; one by one {:.0} ms instead of {:.0} ms, while {} ended",
        busy_answers as f64 / TO_BUSY as f64,
        mixed.batch.seconds,
        alone.batch.seconds,
        mixed.batch.busy,
        mixed.single.seconds * 1000.0,
        alone.single.seconds * 1000.0,
        mixed.single.busy,
    ));
    // The busy domain's deliveries share the two processors, so this tests only the order of magnitude: if the gate did
    // not keep slots for other domains, their mail would wait for all of the busy domain's.
    let (batch, single) = (mixed.batch.busy, mixed.single.busy);
    assert!(batch < TO_BUSY / 2, "the batch was done after {batch} of the busy domain's");
    assert!(single < 10 * LIMIT, "a single mail took as long as {single} of the busy domain's");
}

/// qmail-send's log says so if something else than the control file counts.
#[test]
fn the_log_says_at_the_start_that_only_the_good_lines_count() {
    let mut rig = gated(&sendrig::PROGRAMS, ":20\nx.example:nonsense\n", 100);
    let Rig { sandbox, stubs, .. } = &mut rig;
    stubs.forget();
    let mut send = SendRig::start(sandbox, Spawners::Own).unwrap();
    send.wait(stubs, "a line in the log", |send, _| Ok(!send.log().complaints.is_empty())).unwrap();
    send.terminate().unwrap();
    let log = send.wait_exit(stubs).unwrap();
    assert_eq!(
        log.complaints,
        [
            "warning: control/concurrencydomains:2:11: the limit is not a number (empty means unlimited); no earlier one \
          without errors is known: its good lines count, and a limit of 20 for all other domains"
        ]
    );
}
