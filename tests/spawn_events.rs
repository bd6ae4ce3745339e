//! `spawn_events.c` beside a driver that plays spawn.c: what it reports is what there is, also when epoll fails. And the
//! spawners of a patched tree beside those of one without it, with programs that end in another way than most.

mod common;
#[path = "common/rig.rs"]
mod rig;

use std::collections::BTreeMap;
use std::fs::{self, File, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use common::{Fixture, run};
use qpatch::fixture::Dialect;
use qpatch::qmail::remote_status::RemoteStatus;
use qpatch::verify::rig::protocol;
use qpatch::verify::rig::spawner::{Channel, Spawner};
use rig::{Rig, config};

/// The most that anything here may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

#[test]
fn what_is_reported_is_what_there_is() {
    let dir = tempfile::tempdir().unwrap();
    let program = common::sanitized_driver(&dir, "events_driver", "spawn-events");
    let run = |seed: u32, fails: i32| {
        let run = Command::new(&program)
            .args([seed.to_string(), "20000".to_owned(), fails.to_string()])
            .output()
            .unwrap();
        let error = String::from_utf8_lossy(&run.stderr);
        assert!(run.status.success(), "seed {seed}, call {fails} fails: {error}");
        String::from_utf8(run.stdout).unwrap()
    };
    // The driver waits half of its time.
    std::thread::scope(|scope| {
        for seed in 1..=5 {
            let run = &run;
            scope.spawn(move || {
                let calls = run(seed, -1);
                assert!(calls.starts_with("epoll, "), "{calls}");
                assert_eq!(run(seed, -2), "any, 0 calls\n");
                // At the first calls, and now and then, epoll is given up; nothing is lost on the way.
                for fails in (0..8).chain((100..6000).step_by(977)) {
                    assert_eq!(run(seed, fails), format!("select, {} calls\n", fails + 1));
                }
            });
        }
    });
}

/// `events_select()` looks at no set but the first. A loop with another one would take it for the answer.
#[test]
fn a_main_loop_that_waits_for_more_goes_without() {
    let fixture = Fixture::new(Dialect::StockKr);
    let call = "select(nfds,&rfds,(fd_set *) 0,(fd_set *) 0,(struct timeval *) 0)";
    let writes = "select(nfds,&rfds,&wfds,(fd_set *) 0,(struct timeval *) 0)";
    fixture.replace("spawn.c", call, writes);
    let run = fixture.qpatch(&["apply", "--no-gate"]).ok();
    assert!(run.err.contains("spawn-events does not fit this tree and is left out"), "{}", run.err);
    let text = fixture.read("spawn.c");
    assert!(text.contains(writes) && !text.contains("events_"), "{text}");

    for none in ["NULL", "0"] {
        let fixture = Fixture::new(Dialect::StockKr);
        fixture.replace("spawn.c", call, &format!("select(nfds,&rfds,{none},{none},{none})"));
        fixture.qpatch(&["apply", "--only", "spawn-events"]).ok();
        let text = fixture.read("spawn.c");
        assert!(
            text.contains(&format!("events_select(nfds,&rfds,{none},{none},{none})")),
            "{text}"
        );
    }
}

/// The handler of SIGCHLD no longer hears which process has ended. One that does more with that would stop doing it.
#[test]
fn a_handler_that_does_more_goes_without() {
    let place = "d[i].wstat = gone;";
    let none = "if (child <= 0) return;";
    for (old, new) in [
        (none, format!("{none}\n    if (child == helper) {{ start_helper(); continue; }}")),
        (place, format!("{place}\n          --running;")),
    ] {
        let fixture = Fixture::new(Dialect::StockKr);
        fixture.replace("spawn.c", old, &new);
        let run = fixture.qpatch(&["apply", "--no-gate"]).ok();
        let warning = "spawn-events does not fit this tree and is left out";
        assert!(run.err.contains(warning), "{new}: {}", run.err);
        assert!(!fixture.read("spawn.c").contains("events_"), "{new}");
    }
}

/// What an earlier qpatch has made is no way of the tree's own to write it: nobody has to write a variant of a rule.
#[test]
fn a_tree_of_an_earlier_qpatch_is_told_to_revert() {
    let fixture = Fixture::new(Dialect::StockKr);
    fixture.qpatch(&["apply", "--no-gate"]).ok();
    fixture.write("spawn_events.h", "/* of an earlier qpatch */\n");
    let run = fixture.qpatch(&["apply", "--no-gate"]).ok();
    assert_eq!(
        run.err,
        "qpatch: warning: a spawner waits as before: spawn-events does not fit this tree and is left out\n  \
         spawn_events.h: spawn-events: a file of the patch: the tree has another file of this name (of an earlier \
         qpatch: qpatch revert, then apply)\n  \
         what an earlier qpatch has made stays until then; if the file is the tree's own, --skip spawn-events leaves \
         this patch out\n  \
         --skip spawn-events leaves it out without this warning\n"
    );
    assert_eq!(fixture.read("spawn_events.h"), "/* of an earlier qpatch */\n");
}

/// How a tree's spawner is run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Local,
    Exec,
    Server,
}

/// A spawner with `tests/c/odd_delivery.c` in place of qmail-remote or qmail-local.
struct Odd {
    spawner: Spawner,
    rig: Rig,
    way: Way,
    next: u32,
    /// By delivery number.
    reports: BTreeMap<u32, (u8, String)>,
}

impl Odd {
    fn start(fixture: &Fixture, way: Way) -> Odd {
        let programs = ["qmail-rspawn", "qmail-lspawn"];
        let mut rig = Rig::of(fixture.path(), &config(1000, &[]), &programs).unwrap();
        let home = rig.sandbox.home().to_owned();
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let (name, channel) = match way {
            Way::Local => ("qmail-local", Channel::Local),
            Way::Exec | Way::Server => ("qmail-remote", Channel::Remote),
        };
        let mut compile = Command::new("cc");
        compile
            .args(["-O1", "-Wall", "-Werror", "-o"])
            .arg(rig.sandbox.rig().join("odd"))
            .arg(format!("-DRIG=\"{}\"", rig.sandbox.rig().display()))
            .arg(root.join("tests/c/odd_delivery.c"));
        if way != Way::Local {
            let shim = root.join("c-shim");
            compile.args(["-DREMOTE", "-I"]).args([&shim, &shim.join("remote_serve.c")]);
        }
        run(&mut compile).ok();
        fs::remove_file(home.join("bin").join(name)).unwrap();
        fs::copy(rig.sandbox.rig().join("odd"), home.join("bin").join(name)).unwrap();
        if way == Way::Server {
            rig.sandbox.set_control("remoteserver", "1000000\n").unwrap();
        }
        let spawner = Spawner::start(&rig.sandbox, &mut rig.stubs, channel).unwrap();
        let mut odd = Odd { spawner, rig, way, next: 0, reports: BTreeMap::new() };
        if way == Way::Server {
            let end = Instant::now() + PATIENCE;
            while odd.server().is_none() {
                assert!(Instant::now() < end, "no fork server");
                odd.round_trip();
            }
        }
        odd
    }

    /// The process of the fork server.
    fn server(&self) -> Option<u32> {
        let all = RemoteStatus::read(self.rig.sandbox.home());
        all.iter().map(|status| status.server).find(|pid| *pid > 0)
    }

    fn fifo(&self, tag: &str) -> PathBuf {
        self.rig.sandbox.rig().join(tag)
    }

    /// Makes what a delivery waits at.
    fn hold(&self, tag: &str) {
        let fifo = self.fifo(tag);
        run(Command::new("mkfifo").arg(&fifo)).ok();
        fs::set_permissions(fifo, Permissions::from_mode(0o666)).unwrap();
    }

    fn send(&mut self, mode: &str, status: i32, tag: &str) -> u32 {
        let number = self.next;
        self.next += 1;
        self.send_as(number, mode, status, tag);
        number
    }

    fn send_as(&mut self, number: u32, mode: &str, status: i32, tag: &str) {
        self.spawner.send(&protocol::Command {
            number,
            message: self.rig.message.relative(),
            sender: "sender@sender.example".to_owned(),
            recipient: format!("odd-{mode}-{status}-{tag}@host.example"),
        });
    }

    /// Makes sure that all commands are written: the rig writes them when it has an answer to wait for.
    fn round_trip(&mut self) {
        let number = self.send("now", 0, "0");
        self.report(number);
    }

    /// Returns once a delivery waits at `tag`; it ends when what is returned is dropped.
    fn waits(&self, tag: &str) -> File {
        let fifo = self.fifo(tag);
        let (to, from) = mpsc::channel();
        thread::spawn(move || to.send(File::options().write(true).open(fifo)));
        from.recv_timeout(PATIENCE).expect("a delivery waits").unwrap()
    }

    fn report(&mut self, number: u32) -> (u8, String) {
        loop {
            for report in self.spawner.take_reports() {
                let twice = self.reports.insert(report.number, (report.letter, report.text));
                assert_eq!(twice, None, "two reports");
            }
            if let Some(report) = self.reports.get(&number) {
                return report.clone();
            }
            self.spawner
                .wait(&mut self.rig.stubs, "a report", |seen| seen.reports > 0)
                .unwrap_or_else(|error| panic!("{:?}, {number}: {error}", self.way));
        }
    }

    /// Others are delivered, and `number` is not over.
    fn nobody_waits_for(&mut self, number: u32) {
        for status in [0, 0, 111, 100, 0] {
            let other = self.send("now", status, "0");
            self.report(other);
        }
        assert!(!self.reports.contains_key(&number), "{:?}: over too early", self.way);
    }

    /// The spawner's children: processes and states.
    fn children(&self) -> BTreeMap<u32, char> {
        let spawner = self.spawner.process().id().to_string();
        let processes = fs::read_dir("/proc").unwrap().flatten();
        processes
            .filter_map(|process| {
                let pid = process.file_name().to_str()?.parse().ok()?;
                let stat = fs::read_to_string(process.path().join("stat")).ok()?;
                let mut words = stat.rsplit_once(')')?.1.split_whitespace();
                let state = words.next()?.chars().next()?;
                (words.next()? == spawner).then_some((pid, state))
            })
            .collect()
    }

    /// Waits until the spawner, which has nothing to do, has only `count` children. There is no event for that.
    fn has_children(&self, count: usize) {
        let end = Instant::now() + PATIENCE;
        loop {
            let children = self.children();
            if children.len() == count {
                return;
            }
            assert!(Instant::now() < end, "{:?}: {children:?}", self.way);
            thread::sleep(Duration::from_millis(10));
        }
    }

    fn descriptors(&mut self) -> usize {
        // Refused, so it starts nothing; and what was reported before is closed by then.
        let number = 2000 + self.next;
        self.next += 1;
        self.send_as(number, "now", 0, "0");
        assert_eq!(self.report(number).0, b'Z');
        let folder = format!("/proc/{}/fd", self.spawner.process().id());
        fs::read_dir(folder).unwrap().count()
    }

    fn end(mut self) {
        self.spawner.close_input();
        assert!(self.spawner.wait_exit(&mut self.rig.stubs).unwrap().success());
    }
}

/// What stock qmail does: a delivery is over when its process has ended and its output is closed, whichever comes first,
/// and its report says how it has ended.
#[test]
fn an_output_that_ends_early_or_late_holds_up_nobody() {
    for (by_number, flags, ways) in [
        (true, &["--no-gate"][..], &[Way::Local, Way::Exec, Way::Server][..]),
        (false, &["--no-gate", "--skip", "spawn-events"], &[Way::Local, Way::Exec]),
    ] {
        let fixture = Fixture::new(Dialect::StockKr);
        fixture.qpatch(&[&["apply", "--spawn", "1000"], flags].concat()).ok();
        for way in ways {
            odd_outputs(Odd::start(&fixture, *way), by_number);
        }
    }
}

fn odd_outputs(mut odd: Odd, by_number: bool) {
    let way = odd.way;
    let servers = usize::from(way == Way::Server);
    odd.hold("one");
    for (status, letter) in [(0, b'K'), (111, b'Z'), (100, b'D'), (-9, b'Z')] {
        let early = odd.send("early", status, "one");
        odd.round_trip();
        let held = odd.waits("one");
        odd.nobody_waits_for(early);
        odd.has_children(servers + 1);
        drop(held);
        let report = odd.report(early);
        assert_eq!(report.0, letter, "{way:?}, early, {status}: {report:?}");
        odd.has_children(servers);

        let behind = odd.send("behind", status, "one");
        odd.round_trip();
        let held = odd.waits("one");
        odd.nobody_waits_for(behind);
        // Its process is gone, and no zombie, while the other one has the output open.
        odd.has_children(servers);
        odd.nobody_waits_for(behind);
        drop(held);
        let report = odd.report(behind);
        assert_eq!(report.0, letter, "{way:?}, behind, {status}: {report:?}");
    }

    // More than are asked for one by one.
    let idle = odd.descriptors();
    let tags: Vec<String> = (0..100).map(|tag| format!("many{tag}")).collect();
    let mut many = Vec::new();
    for tag in &tags {
        odd.hold(tag);
        many.push(odd.send("early", 111, tag));
    }
    odd.round_trip();
    let held: Vec<File> = tags.iter().map(|tag| odd.waits(tag)).collect();
    odd.nobody_waits_for(many[0]);
    odd.has_children(servers + many.len());
    let each = if by_number { 1 } else { 2 };
    assert_eq!(odd.descriptors(), idle + each * many.len(), "{way:?}");
    drop(held);
    for number in many {
        assert_eq!(odd.report(number).0, b'Z', "{way:?}");
    }
    odd.has_children(servers);
    assert_eq!(odd.descriptors(), idle, "{way:?}");

    if let Some(server) = odd.server() {
        run(Command::new("kill").args(["-9", &server.to_string()])).ok();
        odd.has_children(0);
    }
    // What is under way at the end of the input is still reported.
    let last = odd.send("early", 100, "one");
    odd.round_trip();
    let held = odd.waits("one");
    odd.spawner.close_input();
    drop(held);
    assert_eq!(odd.report(last).0, b'D');
    odd.end();
}
