//! Several spawners at one queue, whose gates count together. Each is a whole [`Host`] on real files, in a thread of
//! its own, with the part of qmail-send that it needs.

use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicI32, AtomicU32, Ordering};
use std::thread::{scope, sleep};
use std::time::{Duration, Instant};

use qpatch_gate::command::Parts;
use qpatch_gate::gate::{Answer, DeliveryEnd, Gate, NextAction};
use qpatch_gate::host::{Ask, Due, Host};
use qpatch_gate::other_spawners::{Announcement, Demand, OtherSpawners, PeerCheck, PeerTotals};
use qpatch_gate::problem::Problem;
use qpatch_gate::random::Random;
use qpatch_gate::rules::KeyKind;
use qpatch_gate::spawner_columns::Shared;
use qpatch_gate::table::Table;
use qpatch_gate_status::{Status, StatusError};

/// A qmail home for several spawners, removed at the end.
struct Home {
    path: PathBuf,
}

impl Home {
    fn new(spawners: u32, table: &str) -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("gate-share-{}-{number}", std::process::id()));
        fs::create_dir_all(path.join("control")).unwrap();
        fs::create_dir_all(path.join("lock")).unwrap();
        fs::write(path.join("control/concurrencyremote"), "60\n").unwrap();
        fs::write(path.join("control/concurrencydomains"), table).unwrap();
        for index in 0..spawners {
            let dot = if index == 0 { String::new() } else { format!(".{index}") };
            fs::write(path.join(format!("lock/gatestatus{dot}")), "").unwrap();
            fs::write(path.join(format!("lock/gatesites{dot}")), "").unwrap();
        }
        for name in [
            "gateshared",
            "gatekept.domains",
            "gatekept.routes",
            "gatekept.sites",
            "gatekept.replies",
        ] {
            fs::write(path.join("lock").join(name), "").unwrap();
        }
        Self { path }
    }

    fn lock(&self, name: &str) -> PathBuf {
        self.path.join("lock").join(name)
    }

    fn open(&self) -> Host {
        let (control, status) = (self.path.join("control"), self.lock("gatestatus"));
        Host::open(60, control.as_os_str(), status.as_os_str(), seed()).unwrap()
    }

    fn shared(&self) -> Shared {
        Shared::open(self.lock("gateshared").as_os_str(), 60, 2, seed()).unwrap().unwrap()
    }

    fn status(&self, index: u32) -> Result<Status, StatusError> {
        let dot = if index == 0 { String::new() } else { format!(".{index}") };
        Status::parse(&fs::read(self.lock(&format!("gatestatus{dot}"))).unwrap())
    }
}

/// A different one for each spawner, as in reality.
fn seed() -> u64 {
    static NEXT: AtomicU32 = AtomicU32::new(1);
    NEXT.fetch_add(1, Ordering::Relaxed).into()
}

impl Drop for Home {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.path);
    }
}

/// How many deliveries of a key really run, over all spawners.
#[derive(Default)]
struct Server {
    running: AtomicI32,
    peak: AtomicI32,
}

impl Server {
    fn start(&self) {
        let running = self.running.fetch_add(1, Ordering::SeqCst) + 1;
        self.peak.fetch_max(running, Ordering::SeqCst);
    }

    fn end(&self) {
        self.running.fetch_sub(1, Ordering::SeqCst);
    }
}

/// qmail-send and spawn.c around one gate.
struct Channel<'a> {
    host: Host,
    server: &'a Server,
    domain: String,
    free: Vec<u32>,
    running: Vec<(Instant, u32)>,
    queued: u32,
    away: u32,
    done: u32,
    random: Random,
    takes_ms: u64,
}

impl<'a> Channel<'a> {
    fn new(home: &Home, server: &'a Server, number: u32, mails: u32, takes_ms: u64) -> Self {
        Self {
            host: home.open(),
            server,
            domain: format!("d{number}.example"),
            free: (0..40).collect(),
            running: Vec::new(),
            queued: mails,
            away: 0,
            done: 0,
            random: Random::new(number.into()),
            takes_ms,
        }
    }

    fn start(&mut self, slot: u32) {
        self.server.start();
        let takes_ms = self.takes_ms / 2 + self.random.next() % (self.takes_ms + 1);
        self.running.push((Instant::now() + Duration::from_millis(takes_ms), slot));
    }

    fn send_away(&mut self, slot: u32) {
        assert_eq!(self.host.text().first(), Some(&b'B'));
        self.away += 1;
        self.free.push(slot);
    }

    /// One turn of spawn.c's loop. False: all mail is done.
    fn turn(&mut self) -> bool {
        while self.queued > 0
            && let Some(slot) = self.free.pop()
        {
            self.queued -= 1;
            let recipient = format!("user@{}\0", self.domain);
            let parts = [&b"1/1\0"[..], b"sender\0", recipient.as_bytes()];
            match self.host.ask(slot, &Parts::new(&parts).unwrap()) {
                Ask::Go => self.start(slot),
                Ask::Hold => {}
                Ask::Report => self.send_away(slot),
            }
        }
        loop {
            match self.host.due() {
                Due::Nothing => break,
                Due::Go { slot, .. } => self.start(slot),
                Due::Report { slot, .. } => self.send_away(slot),
                Due::Call => {
                    let text = String::from_utf8(self.host.text().to_vec()).unwrap();
                    let most = text.trim_end_matches(['\n', '\0']).rsplit(' ').next().unwrap();
                    let called = most.parse::<u32>().unwrap().min(self.away);
                    self.away -= called;
                    self.queued += called;
                }
            }
        }
        let now = Instant::now();
        let (over, running): (Vec<_>, Vec<_>) =
            self.running.iter().copied().partition(|&(until, _)| until <= now);
        self.running = running;
        for (_, slot) in over {
            self.server.end();
            self.host.done(slot, DeliveryEnd::Reported(b"r\0Kok\0"));
            self.free.push(slot);
            self.done += 1;
        }
        self.queued + self.away > 0 || !self.running.is_empty() || self.host.held() > 0
    }

    fn wait(&mut self) {
        let next_ms = self.host.timeout_ms().unwrap_or(1000);
        let end = self
            .running
            .iter()
            .map(|(until, _)| until.saturating_duration_since(Instant::now()))
            .min();
        let wait = end.unwrap_or(Duration::MAX).min(Duration::from_millis(next_ms));
        sleep(wait.min(Duration::from_millis(50)));
    }
}

/// Gives each channel all its mail at once. Returns how much each had done when the first was finished, and the most
/// that ran at once.
fn race(table: &str, mails: &[u32], takes_ms: u64) -> (Vec<u32>, i32) {
    let home = Home::new(mails.len() as u32, table);
    let server = Server::default();
    let first = AtomicU32::new(u32::MAX);
    let done: Vec<AtomicU32> = mails.iter().map(|_| AtomicU32::new(0)).collect();
    let at_end: Vec<AtomicU32> = mails.iter().map(|_| AtomicU32::new(0)).collect();
    scope(|threads| {
        for (number, &mails) in (0..).zip(mails) {
            let mut channel = Channel::new(&home, &server, number, mails, takes_ms);
            let (first, done, at_end) = (&first, &done, &at_end);
            threads.spawn(move || {
                while channel.turn() {
                    channel.wait();
                    done[number as usize].store(channel.done, Ordering::SeqCst);
                }
                assert_eq!(channel.done, mails);
                done[number as usize].store(mails, Ordering::SeqCst);
                if first
                    .compare_exchange(u32::MAX, number, Ordering::SeqCst, Ordering::SeqCst)
                    .is_ok()
                {
                    for (to, from) in at_end.iter().zip(done) {
                        to.store(from.load(Ordering::SeqCst), Ordering::SeqCst);
                    }
                }
            });
        }
    });
    (
        at_end.iter().map(|done| done.load(Ordering::SeqCst)).collect(),
        server.peak.load(Ordering::SeqCst),
    )
}

#[test]
fn a_limit_holds_over_all_spawners() {
    let table = "d0.example:5:g\nd1.example:5:g\nd2.example:5:g\nd3.example:5:g\n";
    let (_, peak) = race(table, &[300, 300, 300, 300], 2);
    assert_eq!(peak, 5);
}

#[test]
fn as_many_as_public_trees_have() {
    let table = (0..22).map(|n| format!("d{n}.example:7:g\n")).collect::<String>();
    let (_, peak) = race(&table, &[25; 22], 3);
    assert_eq!(peak, 7);
}

#[test]
fn a_limit_of_one_is_shared_in_turns() {
    let (done, peak) = race("d0.example:1:g\nd1.example:1:g\n", &[60, 60], 20);
    assert_eq!(peak, 1);
    // The first to finish has had at most one turn more, plus what a busy machine adds.
    assert!(done.iter().all(|&done| done >= 20), "{done:?}");
}

#[test]
fn one_busy_channel_has_all_places() {
    let table = "d0.example:4:g\nd1.example:4:g\nd2.example:4:g\n";
    let (_, peak) = race(table, &[100, 0, 0], 20);
    assert_eq!(peak, 4);
}

fn sum(of: &mut Shared) -> PeerTotals {
    of.totals(KeyKind::Group, b"g")
}

fn told(running: u32) -> Announcement {
    Announcement { running, demand: Demand::More }
}

/// Makes the owner of a column look like another process.
fn give_column_to(home: &Home, index: u64, child: &Child) {
    let stat = fs::read_to_string(format!("/proc/{}/stat", child.id())).unwrap();
    let start: u64 =
        stat.rsplit(')').next().unwrap().split_whitespace().nth(19).unwrap().parse().unwrap();
    let file = fs::OpenOptions::new().write(true).open(home.lock("gateshared")).unwrap();
    file.write_all_at(&u64::from(child.id()).to_ne_bytes(), 1024 + 32 * index).unwrap();
    file.write_all_at(&start.to_ne_bytes(), 1024 + 32 * index + 8).unwrap();
}

#[test]
fn a_dead_spawner_does_not_count_and_a_stopped_one_does() {
    let home = Home::new(2, ":5\n");
    let (mut one, mut other) = (home.shared(), home.shared());
    assert_eq!((one.index(), other.index(), one.problem()), (0, 1, None));
    other.announce(KeyKind::Group, b"g", told(3));
    one.announce(KeyKind::Group, b"g", told(1));
    let three = PeerTotals { running: 3, resting: 0, wanting: 1, least: 3 };
    assert_eq!(sum(&mut one), three);
    assert_eq!(sum(&mut other).running, 1);
    assert_eq!(other.totals(KeyKind::Domain, b"g"), PeerTotals::default());

    let mut child = Command::new("sleep").arg("1000").stdin(Stdio::null()).spawn().unwrap();
    give_column_to(&home, 1, &child);
    one.check();
    assert_eq!(sum(&mut one), three);
    let kill = |signal: &str| {
        let status = Command::new("kill").args([signal, &child.id().to_string()]).status().unwrap();
        assert!(status.success());
    };
    kill("-STOP");
    one.check();
    assert_eq!(sum(&mut one), three);
    kill("-KILL");
    // A zombie until it is waited for.
    let until = Instant::now() + Duration::from_secs(20);
    while sum(&mut one) == three && Instant::now() < until {
        one.check();
    }
    assert_eq!(sum(&mut one), PeerTotals::default());
    child.wait().unwrap();

    // The next spawner gets its column, which is empty.
    let third = home.shared();
    assert_eq!(third.index(), 1);
    assert_eq!(sum(&mut one), PeerTotals::default());
    // A spawner that has lost its column finds another one, and publishes everything again.
    assert_eq!(other.check(), qpatch_gate::other_spawners::PeerCheck::AnnounceAgain);
    assert_eq!(other.index(), 2);
}

#[test]
fn a_new_spawner_counts_before_the_others_have_looked() {
    let home = Home::new(2, ":5\n");
    let mut one = home.shared();
    assert_eq!(sum(&mut one), PeerTotals::default());
    let mut late = home.shared();
    late.announce(KeyKind::Group, b"g", told(2));
    assert_eq!(sum(&mut one).running, 2);
    late.leave();
    assert_eq!(sum(&mut one), PeerTotals::default());
}

#[test]
fn a_file_that_is_cut_or_replaced_is_joined_again() {
    let home = Home::new(2, ":5\n");
    let (mut one, mut other) = (home.shared(), home.shared());
    let path = home.lock("gateshared");
    for step in 0..2 {
        if step == 0 {
            // As `make setup` does.
            fs::write(&path, "").unwrap();
        } else {
            fs::rename(&path, home.lock("old")).unwrap();
            fs::write(&path, "").unwrap();
        }
        for spawner in [&mut one, &mut other] {
            assert_eq!(spawner.check(), qpatch_gate::other_spawners::PeerCheck::AnnounceAgain);
            assert_eq!(spawner.problem(), None);
        }
        assert_ne!(one.index(), other.index());
        other.announce(KeyKind::Group, b"g", told(4));
        assert_eq!(sum(&mut one).running, 4);
        other.announce(KeyKind::Group, b"g", Announcement::default());
    }
    assert!(fs::metadata(&path).unwrap().size() < 4 << 20);
}

#[test]
fn what_is_wrong_with_the_file_is_said_and_mail_goes_on() {
    let home = Home::new(2, "d0.example:2\n");
    let path = home.lock("gateshared");
    fs::remove_file(&path).unwrap();
    let mut host = home.open();
    let said =
        "queue/lock/gateshared: cannot be used (error 2), so each limit holds per qmail-rspawn";
    assert_eq!(home.status(0).unwrap().problems, [said]);
    let parts = [&b"1/1\0"[..], b"sender\0", b"user@d0.example\0"];
    let parts = Parts::new(&parts).unwrap();
    assert_eq!([0, 1].map(|slot| host.ask(slot, &parts)), [Ask::Go; 2]);
    assert_eq!(host.ask(2, &parts), Ask::Hold);

    // A file that exists from now on counts a second later, and includes running deliveries.
    fs::write(&path, "").unwrap();
    let mut other = home.shared();
    let until = Instant::now() + Duration::from_secs(20);
    while other.totals(KeyKind::Domain, b"d0.example").running < 2 {
        assert!(Instant::now() < until);
        host.due();
        sleep(Duration::from_millis(10));
        other.check();
    }
    host.done(0, DeliveryEnd::NeverStarted);
    assert_eq!(host.due(), Due::Go { slot: 2, command: 0 });
    host.done(1, DeliveryEnd::NeverStarted);
    host.done(2, DeliveryEnd::NeverStarted);
    assert_eq!(other.totals(KeyKind::Domain, b"d0.example"), PeerTotals::default());
}

#[test]
fn a_channel_with_few_deliveries_is_not_filled_with_what_is_held() {
    let home = Home::new(2, "d0.example:1\n");
    fs::write(home.path.join("control/concurrencysuppl0"), "10\n").unwrap();
    // It does not know which of the two channels it has: 60 or 10.
    let mut host = home.open();
    assert_eq!(host.gate().capacity(), 10);
    let parts = [&b"1/1\0"[..], b"sender\0", b"user@d0.example\0"];
    let parts = Parts::new(&parts).unwrap();
    let asks: Vec<Ask> = (0..10).map(|slot| host.ask(slot, &parts)).collect();
    assert!(asks.contains(&Ask::Report), "{asks:?}");
    // No file gives a number for the second channel, so it has 20, as every channel.
    fs::remove_file(home.path.join("control/concurrencysuppl0")).unwrap();
    assert_eq!(home.open().gate().capacity(), 20);
}

#[test]
fn a_queue_with_one_spawner_has_no_part_in_this() {
    let home = Home::new(1, "d0.example:2\n");
    fs::remove_file(home.lock("gateshared")).unwrap();
    let host = home.open();
    assert!(host.gate().other_spawners().is_none());
    assert_eq!(home.status(0).unwrap().problems, Vec::<String>::new());
}

#[test]
fn each_has_a_status_of_its_own_and_moves_to_one_that_is_left() {
    let home = Home::new(2, "d0.example:2\n");
    let (first, second, mut third) = (home.open(), home.open(), home.open());
    assert!(home.status(0).is_ok() && home.status(1).is_ok());
    assert!(!Path::new(&home.lock("gatestatus.2")).exists());
    assert_eq!(third.gate().other_spawners().unwrap().index(), 2);
    // The old qmail-send's spawners are gone.
    drop(first);
    let file = fs::OpenOptions::new().write(true).open(home.lock("gateshared")).unwrap();
    file.write_all_at(&[0; 32], 1024).unwrap();
    let until = Instant::now() + Duration::from_secs(20);
    while third.gate().other_spawners().unwrap().index() != 0 {
        assert!(Instant::now() < until);
        sleep(Duration::from_millis(10));
        third.due();
    }
    drop(second);
}

/// Other spawners that always have all places.
#[derive(Debug)]
struct AllTaken;

impl OtherSpawners for AllTaken {
    fn announce(&mut self, _: KeyKind, _: &[u8], _: Announcement) {}

    fn totals(&mut self, _: KeyKind, _: &[u8]) -> PeerTotals {
        PeerTotals { running: 1, resting: 1, ..PeerTotals::default() }
    }

    fn check(&mut self) -> PeerCheck {
        PeerCheck::Unchanged
    }

    fn index(&self) -> u32 {
        0
    }

    fn problem(&self) -> Option<Problem> {
        None
    }

    fn alive_count(&self) -> u32 {
        1
    }

    fn leave(&mut self) {}
}

#[test]
fn a_spawner_that_was_stopped_for_hours_looks_at_no_key_that_is_gone() {
    let mut gate = Gate::new(10, 10, 1).unwrap();
    gate.share(Box::new(AllTaken));
    let (table, _) = Table::parse(b":1\n", gate.hasher()).unwrap();
    gate.set_table(Some(table), 0).unwrap();
    let command: [&[u8]; 3] = [b"1", b"s@x.example", b"u@d.example"];
    assert_eq!(gate.ask(1, 0, &Parts::new(&command).unwrap()), Answer::Hold);
    gate.drop_held();
    // The spawner was stopped before it looked for a place again; then all keys are too old at once.
    let now_us = 3 * 3600 * 1_000_000;
    gate.tidy(now_us).unwrap();
    assert_eq!(gate.keys().count(), 0);
    assert_eq!(gate.next(now_us), NextAction::None);
    assert_eq!(gate.timeout_us(now_us), None);
}
