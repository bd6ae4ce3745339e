//! The gate with its files: reload, what is wrong with them, and the status file.

use std::cell::Cell;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant, SystemTime};

use qpatch_gate::clock::Clock;
use qpatch_gate::command::Parts;
use qpatch_gate::gate::DeliveryEnd;
use qpatch_gate::host::{self, Ask, Done, Due};
use qpatch_gate::problem::File;
use qpatch_gate::process::Identity;
use qpatch_gate::rules::KeyKind;
use qpatch_gate::sender::Reads;
use qpatch_gate::status::{Escaped, InForce, State, Status, StatusError};
use qpatch_gate::table::Limit;

thread_local! {
    /// How far each test, in a thread of its own, has moved its time.
    static MOVED: Cell<Duration> = const { Cell::new(Duration::ZERO) };
}

/// What the time of files is, so that they age with the test's clock.
#[derive(Clone, Copy, Debug)]
enum Files {
    /// They are written by the test, at its own time.
    OfTheTest,
    /// Somebody else writes them meanwhile, in real time. While the gate waits, its clock goes so many times as fast.
    OfOthers { speed: u32 },
}

/// A clock that stands still but for what [`pass`] adds.
#[derive(Debug)]
struct TestClock {
    opened: Duration,
    files: Files,
}

impl Clock for TestClock {
    fn now_us(&self) -> u64 {
        (MOVED.get() - self.opened).as_micros() as u64
    }

    fn wall(&self) -> SystemTime {
        match self.files {
            Files::OfTheTest => wall(),
            Files::OfOthers { .. } => SystemTime::now(),
        }
    }

    fn pause(&self, time: Duration) {
        if let Files::OfOthers { speed } = self.files {
            sleep(time / speed);
        }
        pass(time);
    }
}

type Host = host::Host<TestClock>;

/// The time goes on by so much.
fn pass(time: Duration) {
    MOVED.set(MOVED.get() + time);
}

fn pass_ms(ms: u64) {
    pass(Duration::from_millis(ms));
}

fn next_second() {
    pass_ms(1050);
}

/// The time of files that the test writes.
fn wall() -> SystemTime {
    SystemTime::now() + MOVED.get()
}

/// Something in this folder was made or removed now.
fn stamp(folder: &Path) {
    fs::File::open(folder).unwrap().set_modified(wall()).unwrap();
}

fn open(
    files: Files,
    slots: u32,
    control: &OsStr,
    status: &OsStr,
    reads: Reads,
) -> Result<Host, qpatch_gate::memory::OutOfMemory> {
    let clock = TestClock { opened: MOVED.get(), files };
    Host::open_with(clock, slots, control, status, reads, 1)
}

/// A qmail home with control and queue/lock, removed in the end.
struct Home {
    path: PathBuf,
}

impl Home {
    fn new() -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("gate-host-{}-{number}", std::process::id()));
        fs::create_dir_all(path.join("control")).unwrap();
        fs::create_dir_all(path.join("lock")).unwrap();
        for file in [File::Status].into_iter().chain(File::KEPT).map(File::name) {
            fs::write(path.join("lock").join(file), "").unwrap();
        }
        Self { path }
    }

    fn control(&self, name: &str) -> PathBuf {
        self.path.join("control").join(name)
    }

    fn write(&self, name: &str, text: impl AsRef<[u8]>) {
        // As one should: a reader sees the old file or the new one.
        let next = self.control("next");
        fs::write(&next, text).unwrap();
        stamp(&next);
        fs::rename(next, self.control(name)).unwrap();
        stamp(&self.path.join("control"));
    }

    fn remove(&self, name: &str) {
        fs::remove_file(self.control(name)).unwrap();
        stamp(&self.path.join("control"));
    }

    fn open(&self, slots: u32) -> Host {
        self.open_with(slots, "", Files::OfTheTest)
    }

    fn open_with(&self, slots: u32, reads: &str, files: Files) -> Host {
        let (control, status) = (self.path.join("control"), self.path.join("lock/gatestatus"));
        let reads = Reads::parse(reads.as_bytes());
        open(files, slots, control.as_os_str(), status.as_os_str(), reads).unwrap()
    }

    /// Beside a qmail-remote that reads more than smtproutes.
    fn open_beside(&self, reads: &str) -> Host {
        self.open_with(100, reads, Files::OfTheTest)
    }

    fn status(&self) -> Result<Status, StatusError> {
        Status::parse(&fs::read(self.path.join("lock/gatestatus")).unwrap())
    }

    fn problem(&self) -> String {
        self.status().unwrap().problems.join("; ")
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.path);
    }
}

fn ask(host: &mut Host, slot: u32, domain: &str) -> Ask {
    let recipient = format!("user@{domain}\0");
    host.ask(slot, &Parts::new(&[b"1/1\0", b"sender\0", recipient.as_bytes()]).unwrap())
}

fn text(host: &Host) -> String {
    let (end, text) = host.text().split_last().unwrap();
    assert_eq!(*end, 0);
    String::from_utf8(text.to_vec()).unwrap()
}

/// As the spawner's loop: lets as much time pass as the gate allows, until something is due; the milliseconds of that.
fn wait_for_due(host: &mut Host) -> (Due, u64) {
    let mut allowed_ms = 0;
    loop {
        let due = host.due();
        if due != Due::Nothing {
            return (due, allowed_ms);
        }
        let wait_ms = host.timeout_ms().expect("something is held");
        allowed_ms += wait_ms;
        assert!(allowed_ms < 10_000, "nothing came");
        pass_ms(wait_ms);
    }
}

/// What this thread has had of a processor, whatever else the machine has to do; Linux tells.
fn processor_time() -> Option<Duration> {
    let text = fs::read_to_string("/proc/thread-self/schedstat").ok()?;
    text.split(' ').next()?.parse().ok().map(Duration::from_nanos)
}

#[test]
fn without_a_file_it_is_stock() {
    let home = Home::new();
    let mut host = home.open(10);
    for slot in 0..10 {
        assert_eq!(ask(&mut host, slot, "a.example"), Ask::Go);
    }
    for slot in 0..9 {
        host.done(slot, DeliveryEnd::Reported(b"r\0Kok\0"));
    }
    // What runs is counted all the same.
    next_second();
    host.due();
    let status = home.status().unwrap();
    assert_eq!((status.state, status.in_use, status.totals.done), (State::Stock, 1, 9));
    assert_eq!((status.keys[0].limit, status.keys[0].running), (Limit::Unlimited, 1));
    assert_eq!(status.problems, [""; 0]);
}

#[test]
fn a_file_that_appears_counts_what_runs_already() {
    let home = Home::new();
    home.write("concurrencyremote", "100\n");
    let mut host = home.open(100);
    for slot in 0..3 {
        assert_eq!(ask(&mut host, slot, "a.example"), Ask::Go);
    }
    home.write("concurrencydomains", ":4\n");
    next_second();
    assert_eq!(ask(&mut host, 3, "a.example"), Ask::Go);
    assert_eq!(ask(&mut host, 4, "a.example"), Ask::Hold);
    home.remove("concurrencydomains");
    let (due, ms) = wait_for_due(&mut host);
    assert!(matches!(due, Due::Go { slot: 4, .. }), "stock again");
    // Not at once: somebody might be putting another one there.
    assert!((2500..5000).contains(&ms), "{ms} ms");
}

#[test]
fn limits_change_within_a_second_both_ways() {
    let home = Home::new();
    home.write("concurrencyremote", "100\n");
    home.write("concurrencydomains", ":2\n");
    let mut host = home.open(100);
    for slot in 0..2 {
        assert_eq!(ask(&mut host, slot, "a.example"), Ask::Go);
    }
    for slot in 2..6 {
        assert_eq!(ask(&mut host, slot, "a.example"), Ask::Hold);
    }
    home.write("concurrencydomains", ":5\n");
    let (due, ms) = wait_for_due(&mut host);
    assert!(matches!(due, Due::Go { slot: 2, .. }));
    assert!(ms < 1200, "{ms} ms");
    assert!(matches!(host.due(), Due::Go { slot: 3, .. }));
    assert!(matches!(host.due(), Due::Go { slot: 4, .. }));
    assert_eq!(host.due(), Due::Nothing);
    home.write("concurrencydomains", ":3\n");
    next_second();
    // Five run; nothing is killed, and nothing starts before it is below three.
    for slot in 0..2 {
        host.done(slot, DeliveryEnd::Reported(b"r\0Kok\0"));
        assert_eq!(host.due(), Due::Nothing);
    }
    host.done(2, DeliveryEnd::Reported(b"r\0Kok\0"));
    assert!(matches!(host.due(), Due::Go { slot: 5, .. }));
}

#[test]
fn busy_reports() {
    let home = Home::new();
    home.write("concurrencyremote", "4\n");
    home.write("concurrencydomains", "a.example:1\nb.example:1:Twins\n");
    let mut host = home.open(100);
    assert_eq!(ask(&mut host, 0, "a.example"), Ask::Go);
    assert_eq!(ask(&mut host, 1, "a.example"), Ask::Hold);
    assert_eq!(ask(&mut host, 2, "a.example"), Ask::Report);
    let report = text(&host);
    let (secs, rest) = report.strip_prefix('B').unwrap().split_once(' ').unwrap();
    assert!((1..=3600).contains(&secs.parse::<u32>().unwrap()));
    assert_eq!(rest, "1 a.example is at its limit of 1 delivery; not tried. (#4.4.5)\n");
    assert_eq!(ask(&mut host, 1, "a.example"), Ask::Report);
    assert_eq!(text(&host), "ZInternal error: delnum in use. (#4.3.5)\n");
    assert_eq!(ask(&mut host, 2, "b.example"), Ask::Go);
    assert_eq!(ask(&mut host, 3, "b.example"), Ask::Report);
    assert!(text(&host).contains(" group twins is at its limit of 1 delivery;"));
}

#[test]
fn bad_files_leave_the_last_good_table() {
    let home = Home::new();
    home.write("concurrencyremote", "100\n");
    home.write("concurrencydomains", "a.example:1\n");
    let mut host = home.open(100);
    assert_eq!(ask(&mut host, 0, "a.example"), Ask::Go);
    let domains = home.control("concurrencydomains");
    let mut slot = 1;
    let mut limited = |host: &mut Host, expected: &str| {
        next_second();
        assert_eq!(ask(host, slot, "a.example"), Ask::Hold, "{expected}");
        slot += 1;
        next_second();
        host.due();
        let earlier = "control/concurrencydomains: the last one that had no errors counts";
        let problem = home.problem();
        assert_eq!(problem.trim_end_matches(earlier).trim_end_matches("; "), expected);
    };

    home.write("concurrencydomains", "a.example:1O\n");
    limited(
        &mut host,
        "control/concurrencydomains:1:12: the limit is not a number (empty means unlimited)",
    );

    home.write(
        "concurrencydomains",
        (0..50_000u32).map(|i| ((i * i) >> 3) as u8).collect::<Vec<u8>>(),
    );
    next_second();
    assert_eq!(ask(&mut host, 20, "a.example"), Ask::Hold);

    fs::remove_file(&domains).unwrap();
    fs::create_dir(&domains).unwrap();
    limited(&mut host, "control/concurrencydomains: not a regular file");

    fs::remove_dir(&domains).unwrap();
    assert!(Command::new("mkfifo").arg(&domains).status().unwrap().success());
    limited(&mut host, "control/concurrencydomains: not a regular file");

    fs::remove_file(&domains).unwrap();
    // Unreadable for root, too: a link to itself.
    std::os::unix::fs::symlink("concurrencydomains", &domains).unwrap();
    let error = fs::metadata(&domains).unwrap_err().raw_os_error().unwrap();
    limited(&mut host, &format!("control/concurrencydomains: cannot be read (error {error})"));

    fs::remove_file(&domains).unwrap();
    // Sparse: it is the size that is looked at, not the contents.
    fs::File::create(&domains).unwrap().set_len(100 << 20).unwrap();
    limited(
        &mut host,
        "control/concurrencydomains: 104857600 bytes are too many, 67108864 is the most",
    );

    home.write("concurrencydomains", "a.example:1\na.example:1\n");
    limited(
        &mut host,
        "control/concurrencydomains:2:1: the domain is in line 1 already; this line counts",
    );

    home.write("concurrencydomains", "a.example:1\r\n# no end of line\n:7");
    limited(&mut host, "");
}

#[test]
fn without_a_good_file_ever_its_good_lines_count_and_twenty_for_all_others() {
    let home = Home::new();
    home.write("concurrencydomains", "a.example\nb.example:2\nfree.example:\n:500\n");
    home.write("concurrencyremote", "many\n");
    home.write("smtproutes", "nonsense\n");
    let mut host = home.open(100);
    assert_eq!(
        ["a.example", "b.example", "free.example", "c.example"].map(|domain| limit(&host, domain)),
        [20, 2, u32::MAX, 20]
    );
    let status = home.status().unwrap();
    assert_eq!(status.state, State::Limits);
    assert_eq!(
        status.problems,
        [
            "control/concurrencydomains:1:10: no colon: a line is domain:limit[:group[:learn|fixed]]",
            "control/concurrencydomains: no earlier one without errors is known: its good lines count, and a limit of 20 for \
             all other domains",
            "control/smtproutes:1: no colon: qmail-remote ignores this line",
            "control/concurrencyremote:1: not a number, so the default of 20 counts",
        ]
    );
    assert_eq!(status.concurrency_remote, 20);
    // It goes with the file, as long as that is not good; a default below 20 stays.
    home.write("concurrencydomains", "a.example:7\nb.example\n:5\n");
    next_second();
    host.due();
    assert_eq!(["a.example", "b.example"].map(|domain| limit(&host, domain)), [7, 5]);
    home.write("concurrencydomains", ":400\n");
    next_second();
    host.due();
    assert_eq!(limit(&host, "a.example"), 400);
}

/// How many deliveries to a domain may run at once.
fn limit(host: &Host, domain: &str) -> u32 {
    match host.gate().rules().resolve(domain.as_bytes()).cap.limit {
        Limit::AtMost(limit) => limit,
        Limit::Unlimited => u32::MAX,
    }
}

/// Makes a control file in the place of another that cannot be used.
type Break = fn(&Home, &str);

const BREAKS: [(&str, Break); 7] = [
    ("a mistake", |home, name| home.write(name, "a.example:1O\n:\n")),
    ("binary", |home, name| {
        home.write(name, (0..50_000u32).map(|i| ((i * i) >> 3) as u8).collect::<Vec<u8>>());
    }),
    ("no right to read it", |home, name| {
        home.write(name, ":\n");
        // As good as that for root, too: a link to itself.
        fs::remove_file(home.control(name)).unwrap();
        std::os::unix::fs::symlink(name, home.control(name)).unwrap();
    }),
    ("a link that leads nowhere", |home, name| {
        let _ = fs::remove_file(home.control(name));
        std::os::unix::fs::symlink("away", home.control(name)).unwrap();
    }),
    ("a folder", |home, name| {
        let _ = fs::remove_file(home.control(name));
        fs::create_dir(home.control(name)).unwrap();
    }),
    ("too large", |home, name| {
        let _ = fs::remove_file(home.control(name));
        fs::File::create(home.control(name)).unwrap().set_len(100 << 20).unwrap();
    }),
    ("control is away", |home, _| {
        fs::rename(home.path.join("control"), home.path.join("gone")).unwrap();
    }),
];

#[test]
fn the_last_good_table_counts_after_a_restart() {
    for (what, make) in BREAKS {
        let home = Home::new();
        home.write("concurrencydomains", "# mine\na.example:3:g:learn\n:30\n");
        drop(home.open(100));
        make(&home, "concurrencydomains");
        for _ in 0..2 {
            let host = home.open(100);
            let limits = ["a.example", "b.example"].map(|domain| limit(&host, domain));
            assert_eq!(limits, [3, 30], "{what}");
            let status = home.status().unwrap();
            assert_eq!((status.state, status.domains), (State::Limits, 2), "{what}");
            assert!(status.loaded_secs > 0, "{what}");
            let [wrong, counts, ..] = &status.problems[..] else { panic!("{what}: {status:?}") };
            assert!(wrong.starts_with("control/concurrencydomains:"), "{what}: {wrong}");
            assert_eq!(
                counts,
                "control/concurrencydomains: the last one that had no errors counts"
            );
        }
    }
}

/// An operator who has removed it wants no limits, and none of an earlier file later.
#[test]
fn without_the_file_there_are_no_limits_whatever_was_kept() {
    let home = Home::new();
    home.write("concurrencydomains", ":3\n");
    drop(home.open(100));
    assert!(fs::metadata(home.path.join("lock/gatekept.domains")).unwrap().len() > 0);
    home.remove("concurrencydomains");
    assert_eq!(limit(&home.open(100), "a.example"), 3, "it may be there again in an instant");
    pass_ms(3100);
    let host = home.open(100);
    assert_eq!(limit(&host, "a.example"), u32::MAX);
    assert_eq!((home.status().unwrap().state, home.problem()), (State::Stock, String::new()));
    assert_eq!(fs::metadata(home.path.join("lock/gatekept.domains")).unwrap().len(), 0);
    drop(host);
    home.write("concurrencydomains", ":x\n");
    assert_eq!(limit(&home.open(100), "a.example"), 20);
}

#[test]
fn routes_and_sites_count_after_a_restart_and_no_secret_is_kept() {
    let home = Home::new();
    home.write("concurrencydomains", ":20\nmx:.outlook.com:2:outlook\n");
    home.write(
        "smtproutes",
        "a.example:relay.example|user|S3cret\nb.example:[2001:DB8::0:1]:26 user S3cret\n.c.example:\n# S3cret\n\
         d.example:user:S3cret@r.example\n:Smart.Example:587|u|S3cret\n",
    );
    home.write("concurrencysites", "a.example:outlook\nrelay.example:outlook\n");
    let domains = ["a.example", "b.example", "x.c.example", "d.example", "e.example"];
    let keys = |host: &Host| {
        domains.map(|domain| {
            let name = host.gate().rules().resolve(domain.as_bytes()).name;
            String::from_utf8(name.to_vec()).unwrap()
        })
    };
    let before = keys(&home.open(100));
    assert_eq!(before, ["outlook", "2001:db8::1", "x.c.example", "d.example", "smart.example"]);
    for file in fs::read_dir(home.path.join("lock")).unwrap() {
        let bytes = fs::read(file.unwrap().path()).unwrap();
        assert!(!bytes.windows(6).any(|window| window == b"S3cret"));
        assert!(!bytes.windows(4).any(|window| window == b"user" || window == b"|u|S"));
    }
    for (what, make) in
        BREAKS.into_iter().filter(|(what, _)| ["a folder", "too large"].contains(what))
    {
        make(&home, "smtproutes");
        make(&home, "concurrencysites");
        let host = home.open(100);
        assert_eq!(keys(&host), before, "{what}");
        let problems = home.status().unwrap().problems;
        assert!(
            problems.contains(
                &"control/smtproutes: the last one that had no errors counts".to_string()
            )
        );
        drop(host);
        for name in ["smtproutes", "concurrencysites"] {
            let _ = fs::remove_dir(home.control(name));
        }
    }
}

/// What a crash, a full disk or somebody else leaves of the copy.
#[test]
fn a_copy_that_is_not_whole_counts_for_nothing() {
    let home = Home::new();
    home.write("concurrencydomains", "a.example:3\n:30\n");
    let kept = home.path.join("lock/gatekept.domains");
    drop(home.open(100));
    let whole = fs::read(&kept).unwrap();
    home.write("concurrencydomains", "nonsense\n");
    let other = [&whole[..whole.len() - 3], b"99\n"].concat();
    for (what, bytes) in [
        ("cut", &whole[..whole.len() - 4]),
        ("cut in the first line", &whole[..20]),
        ("changed", &other),
        ("zeros", &[0; 100]),
        ("noise", b"\xff\xfe\n:::\n"),
    ] {
        fs::write(&kept, bytes).unwrap();
        let host = home.open(100);
        assert_eq!(
            ["a.example", "b.example"].map(|domain| limit(&host, domain)),
            [20, 20],
            "{what}"
        );
        assert!(
            home.problem().contains("; queue/lock/gatekept.domains: not whole, so it is not used"),
            "{what}"
        );
    }
    fs::write(&kept, &whole).unwrap();
    assert_eq!(limit(&home.open(100), "a.example"), 3);
    // The next good file mends it.
    fs::write(&kept, &other).unwrap();
    home.write("concurrencydomains", "a.example:4\n");
    assert_eq!(limit(&home.open(100), "a.example"), 4);
    assert_eq!(home.problem(), "");
    home.write("concurrencydomains", "nonsense\n");
    assert_eq!(limit(&home.open(100), "a.example"), 4);
}

#[test]
fn where_nothing_can_be_kept_it_is_said_and_mail_goes_on() {
    let home = Home::new();
    let kept = home.path.join("lock/gatekept.domains");
    fs::remove_file(&kept).unwrap();
    home.write("concurrencydomains", ":3\n");
    let mut host = home.open(100);
    assert_eq!(ask(&mut host, 0, "a.example"), Ask::Go);
    assert_eq!(limit(&host, "a.example"), 3);
    assert_eq!(home.problem(), "queue/lock/gatekept.domains: cannot be written (error 2)");
    assert!(!kept.exists(), "it is not created");
    fs::create_dir(&kept).unwrap();
    drop(host);
    assert_eq!(limit(&home.open(100), "a.example"), 3);
    assert_eq!(home.problem(), "queue/lock/gatekept.domains: not a regular file");
    fs::remove_dir(&kept).unwrap();
    // A device that is full.
    if fs::metadata("/dev/full").is_ok() {
        std::os::unix::fs::symlink("/dev/full", &kept).unwrap();
        assert_eq!(limit(&home.open(100), "a.example"), 3);
        assert_eq!(home.problem(), "queue/lock/gatekept.domains: not a regular file");
    }
}

/// A file system of so many bytes, unmounted in the end; none where this process may not mount one.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn mount(path: PathBuf, bytes: u32) -> Option<Self> {
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", &format!("size={bytes}"), "tmpfs"]).arg(&path);
        if mount.output().is_ok_and(|output| output.status.success()) {
            return Some(Self(path));
        }
        qpatch_test_support::skip("a small file system cannot be mounted here; root can");
        None
    }

    /// Takes all room that is left.
    fn fill(&self) {
        let mut filler = fs::File::create(self.0.join("filler")).unwrap();
        while std::io::Write::write_all(&mut filler, &[1; 512]).is_ok() {}
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.0).status();
    }
}

/// The disk is full: what was kept is there all the same, mail goes on, and what could not be kept is, once there is
/// room.
#[test]
fn a_full_disk_leaves_the_copy_that_was_there() {
    let home = Home::new();
    let Some(disk) = SmallDisk::mount(home.path.join("lock"), 64 << 10) else { return };
    for file in [File::Status].into_iter().chain(File::KEPT).map(File::name) {
        fs::write(home.path.join("lock").join(file), "").unwrap();
    }
    home.write("concurrencydomains", "a.example:3\n:30\n");
    let mut host = home.open(100);
    disk.fill();
    // Longer than what is there and than the rest of its block.
    let lines: String = (0..1500).map(|i| format!("d{i:05}.example:1\n")).collect();
    home.write("concurrencydomains", format!("{lines}a.example:4\n"));
    next_second();
    assert_eq!(ask(&mut host, 0, "a.example"), Ask::Go);
    assert_eq!(limit(&host, "a.example"), 4);
    drop(host);
    let kept = home.path.join("lock/gatekept.domains");
    assert!(fs::metadata(&kept).unwrap().len() < 4096, "no room is taken for nothing");
    home.write("concurrencydomains", "a.example:5O\n");
    let mut host = home.open(100);
    assert_eq!(limit(&host, "a.example"), 3);
    assert_eq!(limit(&host, "b.example"), 30);
    // What fits where room has been taken before is kept on a full disk, too.
    home.write("concurrencydomains", "a.example:6\n");
    next_second();
    host.due();
    home.write("concurrencydomains", "a.example:7O\n");
    drop(host);
    assert_eq!(limit(&home.open(100), "a.example"), 6);
    // With room again.
    fs::remove_file(disk.0.join("filler")).unwrap();
    home.write("concurrencydomains", format!("{lines}a.example:8\n"));
    drop(home.open(100));
    home.write("concurrencydomains", "a.example:9O\n");
    assert_eq!(limit(&home.open(100), "a.example"), 8);
    assert!(!home.problem().contains("gatekept"), "{}", home.problem());
}

/// Only what has changed is written: the file's times say so.
#[test]
fn a_copy_is_written_when_it_changes_and_only_then() {
    let home = Home::new();
    home.write("concurrencydomains", ":3\n");
    let kept = home.path.join("lock/gatekept.domains");
    drop(home.open(100));
    let old = std::time::SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000);
    let set_old =
        || fs::File::options().write(true).open(&kept).unwrap().set_modified(old).unwrap();
    let is_old = || fs::metadata(&kept).unwrap().modified().unwrap() == old;
    set_old();
    let mut host = home.open(100);
    assert!(is_old());
    home.write("concurrencydomains", ":3\n");
    next_second();
    host.due();
    assert!(is_old(), "another file with the same contents");
    home.write("concurrencydomains", ":4\n");
    next_second();
    host.due();
    assert!(!is_old());
    home.write("concurrencydomains", ":nonsense\n");
    set_old();
    next_second();
    host.due();
    assert!(is_old(), "nothing bad is kept");
}

/// Dropped, also by a test that fails, it ends what another thread does.
struct Stop<'a>(&'a std::sync::atomic::AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Whoever replaces the files all the time while the gate starts, in one way or the other.
fn replacing(write: impl Fn(&Path, &[u8]) + Sync) {
    let home = Home::new();
    // Half of it has no mistake, and says something else: no limit for a domain of the second half.
    let text: String = (0..2000).map(|i| format!("d{i:04}.example:{}\n", 1 + i % 2)).collect();
    home.write("concurrencydomains", &text);
    drop(home.open(100));
    let kept = fs::read(home.path.join("lock/gatekept.domains")).unwrap();
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                write(&home.control("concurrencydomains"), text.as_bytes());
            }
        });
        let _stop = Stop(&stop);
        for _ in 0..5 {
            let mut host = home.open_with(100, "", Files::OfOthers { speed: 10 });
            for domain in ["d0000.example", "d1998.example"] {
                assert_eq!(limit(&host, domain), 1);
            }
            assert_eq!(home.status().unwrap().domains, 2000);
            next_second();
            host.due();
            assert_eq!(limit(&host, "d1998.example"), 1);
        }
    });
    assert_eq!(fs::read(home.path.join("lock/gatekept.domains")).unwrap(), kept);
}

#[test]
fn a_file_that_is_renamed_into_place_all_the_time() {
    replacing(|path, text| {
        fs::write(path.with_extension("new"), text).unwrap();
        fs::rename(path.with_extension("new"), path).unwrap();
    });
}

#[test]
fn a_file_that_is_overwritten_all_the_time() {
    replacing(|path, text| {
        let mut file = fs::File::create(path).unwrap();
        for part in text.chunks(text.len() / 4 + 1) {
            std::io::Write::write_all(&mut file, part).unwrap();
            sleep(Duration::from_millis(1));
        }
    });
}

#[test]
fn a_file_that_is_removed_and_made_anew_all_the_time() {
    replacing(|path, text| {
        fs::remove_file(path).unwrap();
        sleep(Duration::from_millis(1));
        fs::write(path, text).unwrap();
        sleep(Duration::from_millis(1));
    });
}

/// Somebody writes a file slowly, just when the gate starts: what is there at first has no mistake, and is not all.
#[test]
fn a_file_that_is_half_written_at_the_start_is_waited_for() {
    let home = Home::new();
    let path = home.control("concurrencydomains");
    let mut file = fs::File::create(&path).unwrap();
    let slow = std::thread::spawn(move || {
        for line in ["a.example:3\n", "b.example:4\n", ":5\n"] {
            std::io::Write::write_all(&mut file, line.as_bytes()).unwrap();
            sleep(Duration::from_millis(100));
        }
    });
    let host = home.open_with(100, "", Files::OfOthers { speed: 1 });
    slow.join().unwrap();
    let limits = ["a.example", "b.example", "c.example"].map(|domain| limit(&host, domain));
    // On a machine that lets the writer wait for longer than the gate does, all have 20 until it is done.
    assert!([[3, 4, 5], [20, 20, 20]].contains(&limits), "{limits:?}");
}

/// Runs three deliveries at once to a key that learns, and lets the server say this to the first one: the limit that is
/// learned.
fn limit_after(host: &mut Host, sender: &str, reply: &str) -> Limit {
    let recipient = format!("user@{}.example\0", host.gate().totals().asked);
    for slot in 0..3 {
        let parts = [&b"1/1\0"[..], sender.as_bytes(), b"more", recipient.as_bytes()];
        assert_eq!(host.ask(slot, &Parts::new(&parts).unwrap()), Ask::Go);
    }
    let report =
        format!("ZConnected to 192.0.2.1 but sender was rejected.\nRemote host said: {reply}\n\0");
    host.done(0, DeliveryEnd::Reported(report.as_bytes()));
    let domain = recipient.trim_end_matches('\0').trim_start_matches("user@");
    let limit = host.gate().find_key(KeyKind::Domain, domain.as_bytes()).unwrap().limit();
    for slot in 1..3 {
        host.done(slot, DeliveryEnd::NeverStarted);
    }
    limit
}

#[test]
fn what_this_host_sent_is_not_the_servers_word() {
    let home = Home::new();
    home.write("concurrencyremote", "100\n");
    home.write("concurrencydomains", ":9::learn\n");
    home.write("me", "throttle.example\nmore\n");
    let mut host = home.open(100);
    let (fixed, lower) = (Limit::AtMost(9), Limit::AtMost(2));
    let sender = "a@ratelimit.example\0";
    assert_eq!(limit_after(&mut host, sender, "450 4.7.1 throttled"), lower);
    assert_eq!(limit_after(&mut host, sender, "450 ratelimit.example: no"), fixed);
    assert_eq!(limit_after(&mut host, sender, "450 at Throttle.example: no"), fixed);
    assert_eq!(limit_after(&mut host, "a@b.example\0", "450 at ratelimit.example: no"), lower);
    // helohost comes first, and counts within a second.
    home.write("helohost", "busy-throttle.example \n");
    next_second();
    assert_eq!(limit_after(&mut host, sender, "450 no busy-throttle.example"), fixed);
    assert_eq!(limit_after(&mut host, sender, "450 there is no throttle.example"), lower);
    home.remove("helohost");
    next_second();
    assert_eq!(limit_after(&mut host, sender, "450 what is throttle.example?"), fixed);
    assert_eq!(limit_after(&mut host, sender, "450 what's busy-throttle.example?"), lower);
}

#[test]
fn the_operators_words_are_reloaded_and_the_last_good_ones_kept() {
    let home = Home::new();
    home.write("concurrencyremote", "100\n");
    home.write("concurrencydomains", ":9::learn\n");
    home.write("concurrencyreplies", "450 \"slow\" limit\n");
    let mut host = home.open(100);
    let (fixed, lower) = (Limit::AtMost(9), Limit::AtMost(2));
    assert_eq!(limit_after(&mut host, "a@a.example\0", "450 slow"), lower);
    assert_eq!(limit_after(&mut host, "a@a.example\0", "450 sluggish"), fixed);
    home.write("concurrencyreplies", "450 \"sluggish\" limit\n450 /slow(/ limit\n");
    next_second();
    assert_eq!(limit_after(&mut host, "a@a.example\0", "450 slow"), lower, "the last good one");
    assert_eq!(limit_after(&mut host, "a@a.example\0", "450 sluggish"), fixed);
    next_second();
    host.timeout_ms();
    assert_eq!(
        home.problem(),
        "control/concurrencyreplies:2:10: the ( is never closed; \
         control/concurrencyreplies: the last one that had no errors counts"
    );
    home.write("concurrencyreplies", "450 \"sluggish\" pause 7200\n");
    next_second();
    assert_eq!(limit_after(&mut host, "a@a.example\0", "450 slow"), fixed);
    assert_eq!(ask(&mut host, 0, "b.example"), Ask::Go);
    let report =
        "ZConnected to 192.0.2.1 but sender was rejected.\nRemote host said: 450 sluggish\n\0";
    host.done(0, DeliveryEnd::Reported(report.as_bytes()));
    assert_eq!(ask(&mut host, 0, "b.example"), Ask::Report);
    assert_eq!(
        text(&host),
        "Zb.example is paused by control/concurrencyreplies:1 for 7200 s; not tried. (#4.4.5)\n"
    );
    home.remove("concurrencyreplies");
    // It may be there again in an instant.
    pass_ms(3100);
    assert_eq!(ask(&mut host, 0, "b.example"), Ask::Go, "without the file there is no pause");
    next_second();
    host.timeout_ms();
    assert_eq!(home.problem(), "");
}

/// `rate` leaves the limit as it is, and slows the starts: a pause that is doubled as long as it is too fast.
#[test]
fn too_fast_is_not_too_many() {
    let home = Home::new();
    home.write("concurrencyremote", "100\n");
    home.write("concurrencydomains", ":9::learn\nfixed.example:2\n");
    home.write("concurrencyreplies", "450 \"slow down\" rate\n");
    let mut host = home.open(100);
    let refused =
        b"ZConnected to 192.0.2.1 but sender was rejected.\nRemote host said: 450 slow down\n\0";
    for (domain, limit, first) in [("a.example", 9, 0), ("fixed.example", 2, 20)] {
        let key = |host: &Host| {
            let key = host.gate().find_key(KeyKind::Domain, domain.as_bytes()).unwrap();
            (key.limit(), key.suspended_until(0).unwrap())
        };
        assert_eq!(ask(&mut host, first, domain), Ask::Go);
        assert_eq!(ask(&mut host, first + 1, domain), Ask::Go);
        let before = host.gate().find_key(KeyKind::Domain, domain.as_bytes()).unwrap().limit();
        assert_eq!(before, Limit::AtMost(limit));
        assert_eq!(host.done(first, DeliveryEnd::Reported(refused)), Done::Instead, "others run");
        let (after, until_us) = key(&host);
        assert_eq!(after, before);
        // The other one started before: it says nothing new.
        host.done(first + 1, DeliveryEnd::Reported(refused));
        assert_eq!(key(&host), (before, until_us));
        assert_eq!(ask(&mut host, first, domain), Ask::Report, "behind those that went back");
        assert!(text(&host).contains(" is paused by control/concurrencyreplies:1; not tried."));
        next_second();
        assert_eq!(ask(&mut host, first, domain), Ask::Go);
        host.done(first, DeliveryEnd::Reported(refused));
        let (after, again_us) = key(&host);
        assert_eq!(after, before);
        assert!((1_900_000..60_000_000).contains(&(again_us - until_us)), "twice as long");
    }
}

/// What the gate has for qmail-send's log.
fn notices(host: &mut Host) -> Vec<String> {
    let mut all = Vec::new();
    while host.due() == Due::Call {
        all.push(text(host));
    }
    all
}

#[test]
fn the_log_is_told_what_counts_in_place_of_a_file() {
    let home = Home::new();
    home.write("concurrencydomains", ":20\na.example:3\n");
    home.write("smtproutes", ":relay.example|user|S3cret\n");
    let mut host = at_rest(&home, |home| home.open(10));
    assert_eq!(notices(&mut host), [""; 0]);
    drop(host);
    home.write("concurrencydomains", ":20\na.example:3\nb.example:x\n");
    home.remove("smtproutes");
    fs::create_dir(home.control("smtproutes")).unwrap();
    let mut host = at_rest(&home, |home| home.open(10));
    let of_domains = "Nwarning: control/concurrencydomains:3:11: the limit is not a number (empty means unlimited); \
                      the last one that had no errors counts\n";
    let of_routes = "Nwarning: control/smtproutes: not a regular file; the last one that had no errors counts\n";
    assert_eq!(notices(&mut host), [of_domains, of_routes]);
    next_second();
    assert_eq!(notices(&mut host), [""; 0], "once");
    // Without a copy: the good lines.
    fs::write(home.path.join("lock/gatekept.domains"), "").unwrap();
    let mut host = at_rest(&home, |home| home.open(10));
    let said = notices(&mut host);
    assert!(
        said[0].ends_with("its good lines count, and a limit of 20 for all other domains\n"),
        "{said:?}"
    );
}

#[test]
fn an_empty_file_in_the_place_of_limits_opens_nothing() {
    let home = Home::new();
    home.write("concurrencydomains", "a.example:1\n");
    let mut host = at_rest(&home, |home| home.open(10));
    assert_eq!(ask(&mut host, 0, "a.example"), Ask::Go);
    // As a script leaves it that has no room on the disk: written beside it, cut to nothing, renamed.
    home.write("concurrencydomains.new", "");
    fs::rename(home.control("concurrencydomains.new"), home.control("concurrencydomains")).unwrap();
    // Also after a restart.
    for mut host in [host, at_rest(&home, |home| home.open(10))] {
        for _ in 0..20 {
            next_second();
            let _ = notices(&mut host);
        }
        let _ = ask(&mut host, 1, "a.example");
        assert_eq!(ask(&mut host, 2, "a.example"), Ask::Hold);
        assert_eq!(
            home.problem(),
            "control/concurrencydomains: it is empty, and had limits before; control/concurrencydomains: the last one \
             that had no errors counts"
        );
    }
    // Who wants no limits removes the file, or writes a comment.
    home.write("concurrencydomains", "# none\n");
    let mut host = at_rest(&home, |home| home.open(10));
    assert_eq!(ask(&mut host, 1, "a.example"), Ask::Go);
    assert_eq!(ask(&mut host, 2, "a.example"), Ask::Go);
}

#[test]
fn relays_count_together() {
    let home = Home::new();
    home.write("concurrencydomains", "relay.example:2\n");
    home.write("smtproutes", "a.example:relay.example:26\nb.example:[Relay.Example]\n");
    let mut host = home.open(100);
    assert_eq!(ask(&mut host, 0, "a.example"), Ask::Go);
    assert_eq!(ask(&mut host, 1, "b.example"), Ask::Go);
    assert_eq!(ask(&mut host, 2, "A.example."), Ask::Hold);
    assert_eq!(ask(&mut host, 3, "c.example"), Ask::Go);
    home.write("smtproutes", "a.example:relay.example:26\n");
    next_second();
    assert!(
        matches!(host.due(), Due::Go { slot: 2, .. }),
        "b.example does not count there any more"
    );
}

/// Mail of this sender; the answer.
fn ask_from(host: &mut Host, slot: u32, sender: &str, domain: &str) -> Ask {
    let (sender, recipient) = (format!("{sender}\0"), format!("user@{domain}\0"));
    host.ask(slot, &Parts::new(&[b"1/1\0", sender.as_bytes(), recipient.as_bytes()]).unwrap())
}

const SENDERS: &str =
    "@a.example:relay.example:587|user|S3cret\nu@a.example:\n.b.example:[192.0.2.25]|user|S3cret\n";

fn running(host: &Host, kind: KeyKind, name: &str) -> u32 {
    host.gate().find_key(kind, name.as_bytes()).map_or(0, |key| key.running)
}

/// The question for many recipients names their domain and no sender: where the sender chooses the relay, they may
/// count elsewhere.
#[test]
fn what_the_sender_may_decide_is_asked_for_one_by_one() {
    const TOGETHER: u32 = 65535;
    for (reads, answer) in [("", Ask::Report), ("authsenders", Ask::Go)] {
        let home = Home::new();
        home.write("concurrencydomains", "own.example:1\n");
        home.write("authsenders", SENDERS);
        let mut host = home.open_beside(reads);
        assert_eq!(ask_from(&mut host, 0, "s@elsewhere.example", "own.example"), Ask::Go);
        let question = Parts::new(&[b"1/1\0", b"\0", b"7@own.example\0"]).unwrap();
        assert_eq!(host.ask(TOGETHER, &question), answer, "{reads:?}");
        if answer == Ask::Go {
            assert_eq!(ask_from(&mut host, 1, "s@a.example", "own.example"), Ask::Go);
        }
    }
}

#[test]
fn a_relay_by_the_sender_is_the_key_where_qmail_remote_reads_it() {
    let home = Home::new();
    home.write("concurrencyremote", "100\n");
    home.write(
        "concurrencydomains",
        ":20\nrelay.example:2\ngrouped.example:9:group\n192.0.2.0/24:3:site\nown.example:1\n",
    );
    home.write("smtproutes", "x.example:other.example\n!@:bounces.example|user|S3cret\n");
    home.write("authsenders", SENDERS);
    let mut host = home.open_beside("qmail-remote reads: authsenders");
    assert_eq!(ask_from(&mut host, 0, "s@a.example", "x.example"), Ask::Go);
    assert_eq!(ask_from(&mut host, 1, "s@a.example", "own.example"), Ask::Go);
    assert_eq!(ask_from(&mut host, 2, "t@A.EXAMPLE", "y.example"), Ask::Hold, "2 of 2 places");
    assert_eq!(running(&host, KeyKind::Relay, "relay.example"), 2);
    // A domain's own group comes first, as it does before smtproutes; an empty relay means smtproutes; and the rest.
    assert_eq!(ask_from(&mut host, 3, "s@a.example", "grouped.example"), Ask::Go);
    assert_eq!(running(&host, KeyKind::Group, "group"), 1);
    assert_eq!(ask_from(&mut host, 4, "u@a.example", "x.example"), Ask::Go);
    assert_eq!(running(&host, KeyKind::Relay, "other.example"), 1);
    assert_eq!(ask_from(&mut host, 5, "s@elsewhere.example", "own.example"), Ask::Go);
    assert_eq!(ask_from(&mut host, 6, "s@elsewhere.example", "own.example"), Ask::Hold);
    assert_eq!(running(&host, KeyKind::Domain, "own.example"), 1);
    // The address of a relay may be a site's.
    assert_eq!(ask_from(&mut host, 7, "s@sub.b.example", "z.example"), Ask::Go);
    assert_eq!(running(&host, KeyKind::Group, "site"), 1);
    // This qmail-remote does not know the line for bounces.
    assert_eq!(ask_from(&mut host, 8, "", "q.example"), Ask::Go);
    assert_eq!(running(&host, KeyKind::Domain, "q.example"), 1);
    assert_eq!(host.done(0, DeliveryEnd::Reported(b"r\0Kok\0")), Done::AsItIs);
    assert!(matches!(host.due(), Due::Go { slot: 2, .. }));
    // Other limits: what runs is counted on, under the new keys.
    // (A file that has become much shorter would not count so soon.)
    let long = "#".repeat(100) + "\n";
    home.write("concurrencydomains", format!(":20\nrelay.example:5:relays\n{long}"));
    next_second();
    assert_eq!(ask_from(&mut host, 10, "s@a.example", "x.example"), Ask::Go);
    assert_eq!(running(&host, KeyKind::Group, "relays"), 3);
    home.write("concurrencydomains", format!(":20\n{long}"));
    next_second();
    assert_eq!(ask_from(&mut host, 11, "s@a.example", "x.example"), Ask::Go);
    assert_eq!(running(&host, KeyKind::Relay, "relay.example"), 4);
    for slot in [1, 2, 3, 4, 5, 7, 8, 10, 11] {
        host.done(slot, DeliveryEnd::Reported(b"r\0Kok\0"));
    }
    while let Due::Go { slot, .. } = host.due() {
        host.done(slot, DeliveryEnd::Reported(b"r\0Kok\0"));
    }
    assert_eq!(running(&host, KeyKind::Relay, "relay.example"), 0);
    assert_eq!(host.gate().in_use(), 0);
    // Another file.
    home.write("authsenders", format!("@a.example:relay2.example user S3cret\n{long}"));
    next_second();
    assert_eq!(ask_from(&mut host, 12, "s@a.example", "x.example"), Ask::Go);
    assert_eq!(running(&host, KeyKind::Relay, "relay2.example"), 1);
    next_second();
    host.due();
    let written = fs::read_dir(home.path.join("lock")).unwrap();
    for file in written.map(|entry| entry.unwrap().path()) {
        let text = String::from_utf8_lossy(&fs::read(&file).unwrap()).into_owned();
        assert!(!text.contains("S3cret"), "{}: {text}", file.display());
    }
    assert_eq!(
        home.problem(),
        "control/smtproutes:2:1: no host's name has '!': the line does nothing"
    );
}

#[test]
fn bounces_have_a_relay_of_their_own_where_qmail_remote_knows_one() {
    let home = Home::new();
    home.write("concurrencyremote", "100\n");
    home.write("concurrencydomains", ":20\n");
    home.write("smtproutes", "!@:bounces.example|user|S3cret\n:relay.example\n");
    home.write("authsenders", SENDERS);
    let mut host = home.open_beside("!@");
    assert_eq!(ask_from(&mut host, 0, "", "x.example"), Ask::Go);
    assert_eq!(ask_from(&mut host, 1, "s@a.example", "x.example"), Ask::Go);
    assert_eq!(running(&host, KeyKind::Relay, "bounces.example"), 1);
    assert_eq!(running(&host, KeyKind::Relay, "relay.example"), 1, "authsenders is not read");
    home.write("smtproutes", "#".repeat(100));
    next_second();
    assert_eq!(ask_from(&mut host, 2, "", "x.example"), Ask::Go);
    assert_eq!(
        running(&host, KeyKind::Domain, "x.example"),
        2,
        "it and what ran by the other route"
    );
}

/// The words of a server are its own, also where the relay is the key and not the recipient's domain.
#[test]
fn the_recipients_domain_is_no_word_of_a_relay() {
    let home = Home::new();
    home.write("concurrencyremote", "100\n");
    home.write("concurrencydomains", ":20::learn\n");
    home.write("authsenders", ":relay.example\n");
    let mut host = home.open_beside("authsenders");
    let refused = b"s450 4.7.1 throttled.example: try again\0Zrelay does not like recipient.\nRemote host said: \
        450 4.7.1 throttled.example: try again\nGiving up on 192.0.2.1.\n\0";
    for slot in 0..5 {
        assert_eq!(ask_from(&mut host, slot, "s@a.example", "throttled.example"), Ask::Go);
    }
    for slot in 0..5 {
        assert_eq!(
            host.done(slot, DeliveryEnd::Reported(refused)),
            Done::AsItIs,
            "{}",
            text(&host)
        );
    }
    let key = host.gate().find_key(KeyKind::Relay, b"relay.example").unwrap();
    assert_eq!(key.limit(), Limit::AtMost(20));
}

#[test]
fn senders_and_the_operators_words_count_after_a_restart() {
    let home = Home::new();
    home.write("concurrencyremote", "100\n");
    home.write("concurrencydomains", ":20\nrelay.example:1\n");
    home.write("authsenders", SENDERS);
    home.write("concurrencyreplies", "4xx \"overload\" pause 100\n");
    drop(at_rest(&home, |home| home.open_beside("authsenders")));
    let kept = fs::read_to_string(home.path.join("lock/gatekept.senders")).unwrap();
    assert!(kept.contains("@a.example:relay.example\n") && !kept.contains("S3cret"), "{kept}");
    // Both are of no use at the next start.
    home.remove("authsenders");
    fs::create_dir(home.control("authsenders")).unwrap();
    home.write("concurrencyreplies", "4xx \"overload\" pause 100\n4xx \"x\" nonsense\n");
    let mut host = at_rest(&home, |home| home.open_beside("authsenders"));
    assert_eq!(ask_from(&mut host, 0, "s@a.example", "x.example"), Ask::Go);
    assert_eq!(ask_from(&mut host, 1, "s@a.example", "y.example"), Ask::Hold);
    host.done(
        0,
        DeliveryEnd::Reported(
            b"s\0ZConnected to 192.0.2.1 but greeting failed.\nRemote host said: 421 overload\n\0",
        ),
    );
    let key = host.gate().find_key(KeyKind::Relay, b"relay.example").unwrap();
    assert!(key.suspended_until(2_000_000).is_some(), "{key:?}");
    next_second();
    host.due();
    let problems = home.status().unwrap().problems;
    assert_eq!(
        problems,
        [
            "control/concurrencyreplies:2:9: not a meaning: limit, rate, nothing and pause SECONDS are",
            "control/concurrencyreplies: the last one that had no errors counts",
            "control/authsenders: not a regular file",
            "control/authsenders: the last one that had no errors counts",
        ]
    );
}

/// Opens a gate when what has just been written is at rest.
fn at_rest(home: &Home, open: impl Fn(&Home) -> Host) -> Host {
    pass_ms(250);
    open(home)
}

#[test]
fn odd_recipients() {
    let home = Home::new();
    home.write("concurrencydomains", ":1\n[10.0.0.1]:2\n.long.example:1:long\n");
    let mut host = home.open(100);
    let mut slot = 0;
    let mut go = |host: &mut Host, recipient: &[u8]| {
        slot += 1;
        host.ask(slot, &Parts::new(&[b"1/1\0", b"\0", recipient]).unwrap()) == Ask::Go
    };
    for _ in 0..3 {
        assert!(go(&mut host, b"nobody\0"), "without a domain it is docmd's business");
        assert!(go(&mut host, b""));
    }
    assert!(go(&mut host, b"u@[10.0.0.1]\0"));
    assert!(go(&mut host, b"u@[10.0.0.1]\0"));
    assert!(!go(&mut host, b"u@[10.0.0.1]\0"));
    assert!(go(&mut host, b"u@dot.example\0"));
    assert!(!go(&mut host, b"u@DOT.example.\0"));
    assert!(go(&mut host, "u@bücher.example\0".as_bytes()));
    assert!(!go(&mut host, "u@bücher.example\0".as_bytes()));
    assert!(go(&mut host, b"u@\0"));
    assert!(!go(&mut host, b"u@\0"));
    let long = |end: &str| [b"u@", &b"x".repeat(10_000)[..], end.as_bytes(), b"\0"].concat();
    assert!(go(&mut host, &long(".long.example")));
    assert!(!go(&mut host, &long(".other.long.example")), "its suffix has a group");
    assert!(go(&mut host, &long("")));
    assert!(!go(&mut host, &long("")));
    assert!(!go(&mut host, &b"@".repeat(10_000)), "an empty domain again");
}

#[test]
fn the_status_file_tells_what_happens() {
    let home = Home::new();
    home.write("concurrencyremote", "5\n");
    home.write("concurrencydomains", ":20\na%b.example:3\nbusy.example:2:Busy\nfree.example:\n");
    let mut host = home.open(50);
    for slot in 0..4 {
        ask(&mut host, slot, "busy.example");
    }
    ask(&mut host, 4, "free.example");
    ask(&mut host, 5, "a%b.example");
    host.done(4, DeliveryEnd::Reported(b"r\0Kok\0"));
    host.done(
        5,
        DeliveryEnd::Reported(b"sbusy\0Z10.0.0.1 does not\tlike you.\nRemote host said: 421\n\0"),
    );
    next_second();
    host.due();
    let status = home.status().unwrap();
    assert_eq!((status.state, status.slots, status.concurrency_remote), (State::Limits, 50, 5));
    assert_eq!((status.in_use, status.held), (3, 1));
    assert_eq!(
        (status.totals.asked, status.totals.done, status.totals.busy, status.totals.held),
        (6, 2, 1, 1)
    );
    assert_eq!(status.pid, std::process::id());
    let odd = "control/concurrencydomains:2:2: no host's name has '%'";
    assert_eq!((&status.problems[..], status.unlisted), (&[odd.to_string()][..], 0));
    assert_eq!(status.in_force, InForce::File);
    let identity = Identity::of_self();
    assert_eq!(
        (status.start_ticks, status.namespace, status.program),
        (identity.start_ticks, identity.namespace, Escaped(identity.name()).to_string())
    );
    let key = |name: &str| status.keys.iter().find(|key| key.name == name).unwrap();
    let busy = key("busy");
    assert_eq!(
        (busy.kind, busy.limit, busy.running, busy.held),
        (KeyKind::Group, Limit::AtMost(2), 2, 1)
    );
    assert_eq!((busy.busy, busy.peak), (1, 2));
    assert_eq!(busy.away, 1);
    assert_eq!(key("free.example").limit, Limit::Unlimited);
    let failed = key("a%25b.example");
    assert_eq!(failed.done, 1);
    assert_eq!(failed.error, "10.0.0.1 does not%09like you.%0aRemote host said: 421%0a");
    assert_eq!(status.keys.len(), 3);
}

#[test]
fn torn_and_foreign_status_files() {
    let home = Home::new();
    home.write("concurrencydomains", ":1\n");
    let _host = home.open(10);
    let path = home.path.join("lock/gatestatus");
    let whole = fs::read(&path).unwrap();
    assert!(Status::parse(&whole).is_ok());
    for cut in 1..whole.len() - 1 {
        let error = Status::parse(&whole[..cut]).unwrap_err();
        assert!(matches!(error, StatusError::Torn | StatusError::Foreign), "{cut}: {error:?}");
    }
    let old = String::from_utf8(whole.clone()).unwrap().replace("\t1\t1\n", "\t1\t2\n");
    assert_eq!(
        Status::parse(old.as_bytes()),
        Err(StatusError::Torn),
        "the beginning of one, the end of another"
    );
    let longer = [&whole[..], b"key\tleft over from a longer one"].concat();
    assert!(Status::parse(&longer).is_ok());
    assert_eq!(Status::parse(b""), Err(StatusError::Empty));
    assert_eq!(Status::parse(&[0; 1024]), Err(StatusError::Empty));
    assert_eq!(Status::parse(b"something else\n"), Err(StatusError::Foreign));
    assert_eq!(Status::parse(b"qpatch-gate\t2\t1\nend\t1\n"), Err(StatusError::Foreign));
    assert_eq!(Status::parse(b"qpatch-gate\t1\t1\nslots\tx\nend\t1\n"), Err(StatusError::Line(2)));
}

/// What a later version adds an earlier reader passes over, and what an earlier gate did not write is not known.
#[test]
fn versions_of_the_status_file() {
    let home = Home::new();
    home.write("concurrencydomains", ":1\nown.example:2\n");
    let mut host = home.open(10);
    for (slot, domain) in (0..).zip(["own.example", "other.example", "other.example"]) {
        ask(&mut host, slot, domain);
    }
    next_second();
    host.due();
    let text = fs::read_to_string(home.path.join("lock/gatestatus")).unwrap();
    let now = Status::parse(text.as_bytes()).unwrap();
    let named: Vec<_> =
        now.keys.iter().map(|key| (&key.name[..], key.named, key.held_ever)).collect();
    assert!(named.contains(&("own.example", true, 0)), "{named:?}");
    assert!(named.contains(&("other.example", false, 1)), "{named:?}");

    let later = text
        .replace('\n', "\tmore\t\t1\n")
        .replace("state", "weather\tfine\nkey\tplanet\tmars\nstate");
    assert_eq!(Status::parse(later.as_bytes()), Err(StatusError::Line(5)), "a key has its fields");
    let later = later.replace("key\tplanet\tmars\n", "");
    assert_eq!(Status::parse(later.as_bytes()).as_ref(), Ok(&now));
    let planet =
        text.replace("unlisted", "key\tplanet\tm\t1\t0\t0\t0\t0\t0\t0\t0\t0\t1\t0\t0\t\nunlisted");
    assert_eq!(Status::parse(planet.as_bytes()).as_ref(), Ok(&now), "of a kind of a later version");
    let word = text.replace("\tfile\n", "\tpartly\n");
    assert_eq!(Status::parse(word.as_bytes()).unwrap().in_force, InForce::None);
    let next = text.replace("qpatch-gate\t1", "qpatch-gate\t2");
    assert_eq!(Status::parse(next.as_bytes()), Err(StatusError::Foreign));

    // As the first gates wrote it.
    let fields =
        |line: &str, most: usize| line.split('\t').take(most).collect::<Vec<_>>().join("\t");
    let first = text.lines().map(|line| match line.split_once('\t') {
        Some(("pid", _)) => fields(line, 2),
        Some(("table", _)) => fields(line, 4),
        Some(("key", _)) => fields(line, 16),
        _ => line.to_string(),
    });
    let first = first.collect::<Vec<_>>().join("\n") + "\n";
    assert!(first.len() < text.len());
    let mut expected = Status { start_ticks: 0, namespace: 0, program: String::new(), ..now };
    for key in &mut expected.keys {
        (key.named, key.held_ever) = (false, 0);
    }
    assert_eq!(Status::parse(first.as_bytes()), Ok(expected));
    // Fewer fields than ever were are no status.
    for (field, least) in [
        ("written", 2),
        ("pid", 2),
        ("state", 2),
        ("slots", 5),
        ("total", 8),
        ("table", 4),
        ("key", 16),
    ] {
        let short = first.lines().map(|line| match line.starts_with(field) {
            true => fields(line, least - 1),
            false => line.to_string(),
        });
        let short = short.collect::<Vec<_>>().join("\n") + "\n";
        assert!(matches!(Status::parse(short.as_bytes()), Err(StatusError::Line(_))), "{short}");
    }
}

/// Whatever stands in the file, what is printed of it is printable ASCII, and two names stay two.
#[test]
fn names_of_any_bytes() {
    let key = |name: &[u8]| {
        let head = b"qpatch-gate\t1\t1\nstate\tlimits\nproblem\t\x1b\x9b\nkey\tdomain\t";
        let tail = b"\t1\t0\t0\t0\t0\t0\t0\t0\t0\t1\t0\t0\t\xff\x07\nend\t1\n";
        let status = Status::parse(&[&head[..], name, tail].concat()).unwrap();
        assert_eq!((&status.problems[0][..], &status.keys[0].error[..]), ("%1b%9b", "%ff%07"));
        status.keys[0].name.clone()
    };
    let mut names = std::collections::BTreeSet::new();
    for byte in (0..=255u8).filter(|byte| !b"\t\n%".contains(byte)) {
        let name = key(&[byte]);
        assert!(name.bytes().all(|byte| (b' '..=b'~').contains(&byte)), "{name}");
        assert_eq!(name, key(Escaped(&[byte]).to_string().as_bytes()), "escaped or not");
        assert!(names.insert(name));
    }
    assert_eq!((key(b"%"), key(b"%25")), ("%25".to_string(), "%25".to_string()));
    assert_eq!(key("\u{202e}\u{200f}".as_bytes()), "%e2%80%ae%e2%80%8f");
}

#[test]
fn without_a_status_file_mail_goes_on() {
    let home = Home::new();
    let status = home.path.join("lock/gatestatus");
    home.write("concurrencydomains", ":1\n");
    fs::remove_file(&status).unwrap();
    let mut host = home.open(10);
    assert_eq!(ask(&mut host, 0, "a.example"), Ask::Go);
    assert_eq!(ask(&mut host, 1, "a.example"), Ask::Hold);
    next_second();
    assert_eq!(host.due(), Due::Nothing);
    assert!(!status.exists(), "it is not created");
    assert!(Command::new("mkfifo").arg(&status).status().unwrap().success());
    host.done(0, DeliveryEnd::NeverStarted);
    next_second();
    assert!(matches!(host.due(), Due::Go { slot: 1, .. }));
    fs::remove_file(&status).unwrap();
    fs::write(&status, "").unwrap();
    host.done(1, DeliveryEnd::NeverStarted);
    next_second();
    host.due();
    assert_eq!(
        home.problem(),
        "queue/lock/gatestatus: not a regular file",
        "the last write failed"
    );
}

#[test]
fn sleeping_is_right() {
    let home = Home::new();
    home.write("concurrencyremote", "10\n");
    home.write("concurrencydomains", ":1\n");
    // Files at rest: the start waits for nothing.
    next_second();
    let mut host = home.open(10);
    assert_eq!(host.timeout_ms(), Some(60_002), "nothing but the next heartbeat");
    pass_ms(100);
    ask(&mut host, 0, "a.example");
    // A second after it was opened, whenever that is asked.
    assert_eq!(host.timeout_ms(), Some(902));
    pass_ms(300);
    ask(&mut host, 1, "a.example");
    assert_eq!(host.timeout_ms(), Some(602));
    pass_ms(700);
    assert_eq!(host.due(), Due::Nothing);
    host.done(0, DeliveryEnd::NeverStarted);
    assert_eq!(host.timeout_ms(), Some(0), "a held command can start");
    assert!(matches!(host.due(), Due::Go { slot: 1, .. }));
    host.done(1, DeliveryEnd::NeverStarted);
    next_second();
    host.due();
    assert_eq!(host.timeout_ms(), Some(60_002));
}

#[test]
fn held_commands_are_dropped() {
    let home = Home::new();
    home.write("concurrencyremote", "10\n");
    home.write("concurrencydomains", ":1\n");
    let mut host = home.open(10);
    for slot in 0..4 {
        ask(&mut host, slot, "a.example");
    }
    assert_eq!(host.held(), 3);
    host.drop_held();
    assert_eq!(host.held(), 0);
    host.done(0, DeliveryEnd::NeverStarted);
    assert_eq!(host.due(), Due::Nothing);
    host.drop_held();
    let status = home.status().unwrap();
    assert_eq!((status.in_use, status.held, status.totals.held), (0, 0, 3));
}

#[test]
fn a_hundred_thousand_lines_load_quickly() {
    let home = Home::new();
    let text: String = (0..100_000).map(|i| format!("domain{i}.example:{}\n", i % 50)).collect();
    home.write("concurrencydomains", text);
    let start = Instant::now();
    let before = processor_time();
    let mut host = home.open(10);
    println!("100,000 lines loaded in {:?}", start.elapsed());
    if let (Some(before), Some(after)) = (before, processor_time()) {
        assert!(after - before < Duration::from_secs(5), "{:?}", after - before);
    }
    assert_eq!(ask(&mut host, 0, "domain99951.example"), Ask::Go);
    assert_eq!(home.status().unwrap().domains, 100_000);
}

#[test]
fn paths_are_bytes() {
    let odd = OsStr::from_bytes(b"no/such/\xff/place");
    let open = |slots| open(Files::OfTheTest, slots, odd, odd, Reads::default());
    let mut host = open(3).unwrap();
    assert_eq!(ask(&mut host, 0, "a.example"), Ask::Go);
    assert!(open(0).is_err());
    assert!(open(65536).is_err());
    assert!(!Path::new(odd).exists());
}

/// The keys that deliveries to these domains count under.
fn keys(host: &Host, domains: [&str; 2]) -> [String; 2] {
    domains.map(|domain| {
        let name = host.gate().rules().resolve(domain.as_bytes()).name;
        String::from_utf8(name.to_vec()).unwrap()
    })
}

#[test]
fn the_map_of_sites_is_reloaded_and_the_last_good_one_kept() {
    let home = Home::new();
    home.write("concurrencydomains", ":20\nmx:.outlook.com:2:outlook\n");
    let mut host = home.open(50);
    let domains = ["a.example", "b.example"];
    assert_eq!(keys(&host, domains), domains);
    home.write("concurrencysites", "a.example:outlook\nnonsense\n");
    next_second();
    for slot in 0..3 {
        ask(&mut host, slot, "a.example");
    }
    assert_eq!(keys(&host, domains), ["outlook", "b.example"]);
    assert_eq!((host.gate().in_use(), host.held()), (3, 1));
    next_second();
    host.due();
    assert_eq!(
        home.problem(),
        "control/concurrencysites:2: not domain:group, so this line is ignored"
    );
    assert_eq!((home.status().unwrap().mapped, home.status().unwrap().seen), (1, 0));
    home.remove("concurrencysites");
    fs::create_dir(home.control("concurrencysites")).unwrap();
    next_second();
    host.due();
    assert_eq!(keys(&host, domains), ["outlook", "b.example"], "the last good one");
    fs::remove_dir(home.control("concurrencysites")).unwrap();
    pass_ms(3100);
    host.due();
    assert_eq!(keys(&host, domains), domains);
}

#[test]
fn where_mail_was_seen_to_go_is_known_after_a_restart() {
    let home = Home::new();
    home.write("concurrencydomains", ":20\n192.0.2.0/24:2:site\n");
    let domains = ["a.example", "b.example"];
    let deliver = |host: &mut Host| {
        for (slot, domain) in domains.iter().enumerate() {
            ask(host, slot as u32, domain);
            let report = b"r\0K192.0.2.7 accepted message.\nRemote host said: 250 ok\n\0";
            host.done(slot as u32, DeliveryEnd::Reported(report));
        }
    };
    let seen = home.path.join("lock/gatesites");
    {
        let mut host = home.open(50);
        deliver(&mut host);
        host.drop_held();
        assert!(!seen.exists(), "the spawner may create no files there");
        next_second();
        host.due();
        assert_eq!(home.problem(), "queue/lock/gatesites: cannot be read (error 2)");
    }
    fs::write(&seen, "").unwrap();
    {
        let mut host = home.open(50);
        assert_eq!(keys(&host, domains), domains);
        deliver(&mut host);
        host.drop_held();
    }
    assert_eq!(
        fs::read_to_string(&seen).unwrap(),
        "qpatch-sites\t1\na.example\t192.0.2.7\nb.example\t192.0.2.7\nend\n"
    );
    let mut host = home.open(50);
    assert_eq!(keys(&host, domains), ["site", "site"]);
    ask(&mut host, 0, "a.example");
    next_second();
    host.due();
    assert_eq!(home.status().unwrap().seen, 2);
}

const SECRET: &str = "s3cretpass";

/// What files of the gate say, a name at a time.
fn told(home: &Home) -> String {
    let read = |name: &str| fs::read_to_string(home.path.join("lock").join(name)).unwrap();
    read("gatestatus") + &read("gatesites")
}

#[test]
fn no_credentials_of_a_relay_are_told() {
    for route in [
        "Relay.example|Mailuser|S3cretPass",
        "Relay.example:26|Mailuser|S3cretPass",
        "Relay.example Mailuser S3cretPass",
        "Relay.example:26\tMailuser\tS3cretPass",
        "[192.0.2.7]:26|Mailuser|S3cretPass",
        "[2001:db8::7]:26|Mailuser|S3cretPass",
        "|Mailuser|S3cretPass",
        "Mailuser:S3cretPass@Relay.example",
        "[Relay.example|Mailuser|S3cretPass",
        "Relay.example\x01Mailuser\x01S3cretPass",
    ] {
        let home = Home::new();
        home.write("concurrencyremote", "100\n");
        home.write(
            "concurrencydomains",
            ":1::learn\n192.0.2.0/24:1:site:learn\n[2001:db8::]/64:1:site6\n",
        );
        // With and without a colon.
        home.write("smtproutes", format!(":{route}\n{route}\na.example{route}\n"));
        fs::write(home.path.join("lock/gatesites"), "").unwrap();
        let mut host = home.open(100);
        let mut said = String::new();
        for (slot, domain) in (0..40).zip(["a.example", "b.example"].into_iter().cycle()) {
            if ask(&mut host, slot, domain) == Ask::Report {
                said += &text(&host);
            }
        }
        // qmail-remote itself repeats a name that it does not find, and the server is at an address of a site.
        for report in [
            format!("r\0DSorry, I couldn't find any host named {route}. (#5.1.2)\n\0"),
            "r\0ZConnected to 192.0.2.7 but greeting failed.\nRemote host said: 421 too many\n\0"
                .to_string(),
        ] {
            for slot in 0..40 {
                if host.done(slot, DeliveryEnd::Reported(report.as_bytes())) == Done::Instead {
                    said += &text(&host);
                }
                while host.due() != Due::Nothing {
                    said += &String::from_utf8_lossy(host.text());
                }
            }
        }
        said += &format!("{host:?}");
        host.drop_held();
        drop(host);
        said += &told(&home);
        said += &format!("{:?}", home.status().unwrap());
        let said = said.to_ascii_lowercase();
        assert!(said.contains("b.example") || said.contains("site"), "{said}");
        for secret in [SECRET, "mailuser"] {
            assert!(!said.contains(secret), "{route}: {said}");
        }
    }
}

#[test]
fn what_an_earlier_build_wrote_of_relays_is_gone_at_once() {
    let sites = format!(
        "qpatch-sites\t1\na.example\t192.0.2.7\nrelay.example|u|{SECRET}\t192.0.2.7\nrelay.example u {SECRET}\t192.0.2.7\nend\n"
    );
    let status = format!(
        "qpatch-gate\t1\t3\nkey\trelay\trelay.example|u|{SECRET}\t20\t0\t0\t0\t0\t0\t0\t0.0\t0\t20\t0\t0\t\nend\t3\n"
    );
    // While that build still runs, its status is read without it.
    let parsed = Status::parse(status.as_bytes()).unwrap();
    assert_eq!(parsed.keys[0].name, "relay.example");
    // Also where nothing is limited, and where the files are torn or of something else.
    for limits in [Some(":20\n192.0.2.0/24:2:site\n"), None] {
        for (sites, known) in [
            (&sites[..], "a.example\t192.0.2.7\n"),
            (&sites[..sites.len() - 8], "a.example\t192.0.2.7\n"),
            (&sites[1..], ""),
            (&format!("{sites}relay.example|u|{SECRET}\n"), "a.example\t192.0.2.7\n"),
        ] {
            let home = Home::new();
            if let Some(limits) = limits {
                home.write("concurrencydomains", limits);
            }
            fs::write(home.path.join("lock/gatesites"), sites).unwrap();
            fs::write(home.path.join("lock/gatestatus"), &status).unwrap();
            let host = home.open(50);
            let told = told(&home);
            assert!(!told.contains(SECRET), "{told}");
            assert!(told.ends_with(&format!("qpatch-sites\t1\n{known}end\n")), "{told}");
            let state = if limits.is_some() { State::Limits } else { State::Stock };
            assert_eq!(home.status().unwrap().state, state);
            drop(host);
            // What is as it should be is not written again.
            let file = home.path.join("lock/gatesites");
            let written = fs::metadata(&file).unwrap().modified().unwrap();
            drop(home.open(50));
            assert_eq!(fs::metadata(&file).unwrap().modified().unwrap(), written);
        }
    }
}

/// What [`Host::done`] makes of a report, and the text that goes with it.
fn done(host: &mut Host, slot: u32, report: &[u8]) -> (Done, String) {
    let done = host.done(slot, DeliveryEnd::Reported(report));
    (done, if done == Done::AsItIs { String::new() } else { text(host) })
}

#[test]
fn the_log_is_told_how_long_a_delivery_was_held() {
    const ACCEPTED: &[u8] = b"r\0K192.0.2.1 accepted message.\n\0";
    const REFUSED: &[u8] =
        b"ZConnected to 192.0.2.1 but greeting failed.\nRemote host said: 421 too many\n\0";
    let home = Home::new();
    home.write("concurrencydomains", ":2::learn\n");
    let mut host = home.open(100);
    let starts = |host: &mut Host, held: u32, ended: u32, report: &[u8]| {
        assert_eq!(ask(host, held, "a.example"), Ask::Hold);
        pass_ms(20);
        let ended = done(host, ended, report);
        assert!(matches!(host.due(), Due::Go { slot, .. } if slot == held));
        ended
    };
    for slot in 0..2 {
        assert_eq!(ask(&mut host, slot, "a.example"), Ask::Go);
    }
    // Those that were not held have no such line.
    assert_eq!(starts(&mut host, 2, 0, ACCEPTED), (Done::AsItIs, String::new()));
    pass_ms(30);
    let (is, line) = starts(&mut host, 3, 2, ACCEPTED);
    assert_eq!(is, Done::WithLine);
    assert_eq!(line, "Held 0.020 s, ran 0.050 s.\n");
    // What fails for good goes to the sender, and what could not be run has no report.
    assert_eq!(starts(&mut host, 4, 3, b"DSorry. (#5.1.2)\n\0").0, Done::AsItIs);
    assert_eq!(starts(&mut host, 5, 4, b"").0, Done::AsItIs);
    // One that goes back because it was refused was held, too.
    let (is, text) = done(&mut host, 5, REFUSED);
    assert_eq!(is, Done::Instead);
    let (refused, line) = text.split_once('\n').unwrap();
    assert!(refused.starts_with('B') && refused.ends_with(" (#4.4.5)"), "{text:?}");
    assert_eq!(line, "Held 0.020 s, ran 0.000 s.\n");
}
