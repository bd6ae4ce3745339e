//! A gate over minutes: the status that shows that it runs, and the copies that it looks after.

use std::cell::Cell;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::Write as _;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

use qpatch_gate::clock::Clock;
use qpatch_gate::host::Host;
use qpatch_gate::kept;
use qpatch_gate::sender::Reads;
use qpatch_gate::status::{InForce, State};
use qpatch_gate_status::{Status, StatusError};

thread_local! {
    /// How far the test, in a thread of its own, has moved its time.
    static MOVED: Cell<Duration> = const { Cell::new(Duration::ZERO) };
}

/// The system's clock, and what [`pass`] adds to it.
#[derive(Debug)]
struct MovedClock {
    start: Instant,
    moved: Duration,
}

impl Clock for MovedClock {
    fn now_us(&self) -> u64 {
        (self.start.elapsed() + MOVED.get() - self.moved).as_micros() as u64
    }

    fn wall(&self) -> SystemTime {
        SystemTime::now()
    }

    fn pause(&self, time: Duration) {
        std::thread::sleep(time);
    }
}

/// Lets this many seconds pass.
fn pass(secs: u64) {
    MOVED.set(MOVED.get() + Duration::from_secs(secs));
}

fn open(home: &OsStr) -> Host<MovedClock> {
    let clock = MovedClock { start: Instant::now(), moved: MOVED.get() };
    let status = Path::new(home).join("status");
    Host::open_with(clock, 10, home, status.as_os_str(), Reads::default(), 1).unwrap()
}

/// A home whose status has been written by an earlier process, if `old` says so.
fn home(name: &str, old: &str, domains: Option<&str>) -> OsString {
    let path = std::env::temp_dir().join(format!("gate-beat-{name}-{}", std::process::id()));
    let _ = std::fs::remove_dir_all(&path);
    std::fs::create_dir_all(&path).unwrap();
    std::fs::write(path.join("status"), old).unwrap();
    std::fs::write(path.join("gatekept.domains"), "").unwrap();
    if let Some(domains) = domains {
        put(path.as_os_str(), domains);
    }
    path.into_os_string()
}

/// Changes concurrencydomains, with a time of an hour ago: the clock of the file system does not follow [`pass`].
fn put(home: &OsStr, domains: &str) {
    let mut file = File::create(Path::new(home).join("concurrencydomains")).unwrap();
    file.write_all(domains.as_bytes()).unwrap();
    file.set_modified(SystemTime::now() - Duration::from_secs(3600)).unwrap();
}

fn read(home: &OsStr) -> Result<Status, StatusError> {
    Status::parse(&std::fs::read(Path::new(home).join("status")).unwrap())
}

#[test]
fn an_idle_gate_writes_once_a_minute() {
    let home = home("idle", "", Some(":1\n"));
    let mut host = open(&home);
    assert_eq!(read(&home).unwrap().generation, 1);
    pass(30);
    assert!((10_000..=30_010).contains(&host.timeout_ms().unwrap()));
    assert_eq!(read(&home).unwrap().generation, 1);
    for minute in 2..5 {
        pass(60);
        assert!((30_000..=60_010).contains(&host.timeout_ms().unwrap()));
        let status = read(&home).unwrap();
        assert_eq!((status.generation, status.in_force), (minute, InForce::File));
    }
    // It reads its files then, although no delivery is asked for.
    put(&home, ":2O\n");
    pass(60);
    host.timeout_ms();
    let status = read(&home).unwrap();
    assert_eq!(
        (status.in_force, status.state, status.problems.len()),
        (InForce::Kept, State::Limits, 2)
    );
    put(&home, ":2\n# now\n");
    pass(60);
    host.timeout_ms();
    assert_eq!(read(&home).unwrap().in_force, InForce::File);
    std::fs::remove_file(Path::new(&home).join("concurrencydomains")).unwrap();
    let long_ago = SystemTime::now() - Duration::from_secs(3600);
    File::open(Path::new(&home)).unwrap().set_modified(long_ago).unwrap();
    pass(60);
    host.timeout_ms();
    let status = read(&home).unwrap();
    assert_eq!((status.in_force, status.state), (InForce::None, State::Stock));
    let generation = status.generation;
    pass(60);
    host.timeout_ms();
    assert_eq!(read(&home).unwrap().generation, generation + 1, "also without limits");
    host.fail();
    assert_eq!(read(&home).unwrap().in_force, InForce::None);
    let _ = std::fs::remove_dir_all(&home);
}

/// The gate looks at the copy once a minute, also while the control file cannot be used and the copy is all there is.
#[test]
fn a_copy_that_somebody_has_changed_is_written_again() {
    let other = {
        let home = home("other", "", Some("c.example:9\n"));
        open(&home);
        let other = std::fs::read(Path::new(&home).join("gatekept.domains")).unwrap();
        let _ = std::fs::remove_dir_all(&home);
        other
    };
    let whole = "a.example:3\n:30\n";
    for now in [whole, "a.example:3O\n"] {
        let home = home("changed", "", Some(whole));
        let kept = Path::new(&home).join("gatekept.domains");
        let read_kept =
            || kept::read(&File::open(&kept).unwrap(), 1000).map(|(contents, _)| contents);
        let mut host = open(&home);
        put(&home, now);
        pass(60);
        host.timeout_ms();
        assert_eq!(read_kept(), Ok(whole.as_bytes().to_vec()));
        let torn = &other[..other.len() - 1];
        for (what, bytes) in [("empty", &b""[..]), ("torn", torn), ("other", &other)] {
            std::fs::write(&kept, bytes).unwrap();
            pass(60);
            host.timeout_ms();
            assert_eq!(read_kept(), Ok(whole.as_bytes().to_vec()), "{now:?}: {what}");
        }
        // The gate cannot create a copy that was removed. It writes it when it is there again.
        std::fs::remove_file(&kept).unwrap();
        pass(60);
        host.timeout_ms();
        let problems = read(&home).unwrap().problems;
        let what = "queue/lock/gatekept.domains: cannot be written (error 2)";
        assert!(problems.iter().any(|problem| problem == what), "{problems:?}");
        std::fs::write(&kept, "").unwrap();
        pass(60);
        host.timeout_ms();
        assert_eq!(read_kept(), Ok(whole.as_bytes().to_vec()), "{now:?}: removed");
        let problems = read(&home).unwrap().problems;
        assert!(!problems.iter().any(|problem| problem.contains("gatekept")), "{problems:?}");
        let _ = std::fs::remove_dir_all(&home);
    }
    // Without a control file the copy does not count: an operator who has removed that file wants no limits.
    let home = home("none", "", None);
    let mut host = open(&home);
    let kept = Path::new(&home).join("gatekept.domains");
    std::fs::write(&kept, &other).unwrap();
    let long_ago = SystemTime::now() - Duration::from_secs(3600);
    File::open(Path::new(&home)).unwrap().set_modified(long_ago).unwrap();
    pass(60);
    host.timeout_ms();
    assert_eq!(std::fs::read(&kept).unwrap(), b"");
    let _ = std::fs::remove_dir_all(&home);
}

#[test]
fn a_gate_without_limits_writes_too() {
    let home = home("stock", "qpatch-gate\t1\t7\nstate\tlimits\nend\t7\n", None);
    let mut host = open(&home);
    let now = read(&home).unwrap();
    assert_eq!(
        (now.state, now.in_force, now.pid),
        (State::Stock, InForce::None, std::process::id())
    );
    pass(60);
    host.timeout_ms();
    assert_eq!(read(&home).unwrap().generation, 2);
    let _ = std::fs::remove_dir_all(&home);
}
