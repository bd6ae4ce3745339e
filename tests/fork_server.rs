//! `remote_start.c` and `remote_serve.c`: a driver plays qmail-rspawn, a probe qmail-remote.

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use qpatch_test_support::{copy_program, is_root, skip, write_script};
use tempfile::TempDir;

/// The most that anything here may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

fn programs() -> &'static Path {
    static DIR: OnceLock<TempDir> = OnceLock::new();
    DIR.get_or_init(|| {
        let dir = tempfile::tempdir().unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        for (program, ours, theirs) in [
            ("driver", "tests/c/start_driver.c", "c-shim/remote_start.c"),
            ("probe", "tests/c/start_probe.c", "c-shim/remote_serve.c"),
        ] {
            let root = Path::new(env!("CARGO_MANIFEST_DIR"));
            let status = Command::new(std::env::var("CC").unwrap_or_else(|_| "cc".into()))
                .args(["-std=gnu89", "-Wall", "-Wextra", "-Werror", "-O2"])
                .args([
                    "-DREMOTE_ANSWER_MS=500",
                    "-DREMOTE_LATER_SECS=2",
                    "-DREMOTE_HELLO_SECS=1",
                    "-o",
                ])
                .arg(dir.path().join(program))
                .arg("-I")
                .arg(root.join("c-shim"))
                .args([root.join(ours), root.join(theirs)])
                .status()
                .unwrap();
            assert!(status.success());
        }
        dir
    })
    .path()
}

/// A queue with a driver in it, as qmail-rspawn would be.
struct Rig {
    home: TempDir,
    driver: Child,
    to: ChildStdin,
    from: BufReader<ChildStdout>,
}

impl Rig {
    fn new(server: &str) -> Rig {
        Rig::with(server, |_| {})
    }

    fn with(server: &str, change: impl FnOnce(&mut Command)) -> Rig {
        let home = tempfile::tempdir().unwrap();
        let at = home.path();
        fs::set_permissions(at, fs::Permissions::from_mode(0o777)).unwrap();
        for dir in ["control", "queue/mess", "queue/lock", "bin"] {
            fs::create_dir_all(at.join(dir)).unwrap();
        }
        fs::write(at.join("queue/mess/message"), "a message\n").unwrap();
        let status = at.join("queue/lock/remotestatus");
        fs::write(&status, "").unwrap();
        fs::set_permissions(&status, fs::Permissions::from_mode(0o666)).unwrap();
        if !server.is_empty() {
            fs::write(at.join("control/remoteserver"), server).unwrap();
        }
        install(&at.join("bin/qmail-remote"));
        let mut command = Command::new(programs().join("driver"));
        command
            .current_dir(at.join("queue/mess"))
            .env_clear()
            .env("PATH", format!("/nonexistent:{}:/bin:/usr/bin", at.join("bin").display()))
            .env("EMPTY", "")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        change(&mut command);
        let mut driver = command.spawn().unwrap();
        let (to, from) = (driver.stdin.take().unwrap(), driver.stdout.take().unwrap());
        Rig { home, driver, to, from: BufReader::new(from) }
    }

    fn program(&self) -> PathBuf {
        self.home.path().join("bin/qmail-remote")
    }

    /// What the driver answers to a command.
    fn say(&mut self, words: &[&str]) -> String {
        self.tell(words);
        self.answer()
    }

    fn tell(&mut self, words: &[&str]) {
        writeln!(self.to, "{}", words.join("\t")).unwrap();
    }

    fn answer(&mut self) -> String {
        let mut all = String::new();
        loop {
            let before = all.len();
            assert_ne!(self.from.read_line(&mut all).unwrap(), 0, "the driver is gone: {all}");
            if &all[before..] == "ok\n" {
                all.truncate(before);
                return all;
            }
        }
    }

    fn run(&mut self, words: &[&str]) -> String {
        self.say(&[&["run", "qmail-remote"], words].concat())
    }

    /// A line of the status file.
    fn status(&self, key: &str) -> String {
        let text = fs::read_to_string(self.home.path().join("queue/lock/remotestatus")).unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' '));
        line.unwrap_or_else(|| panic!("no {key} in {text:?}")).to_string()
    }

    /// Delivers until a server does it, and returns its pid.
    fn served(&mut self) -> i32 {
        let end = Instant::now() + PATIENCE;
        loop {
            assert_eq!(self.run(&["length", "x"]), "length 1\nend 0\n");
            match self.status("server").parse().unwrap() {
                0 => assert!(Instant::now() < end, "no server: {}", self.status("reason")),
                pid => return pid,
            }
        }
    }

    /// The status file has figures that are up to ten seconds old; a change of the way writes new ones.
    fn counts(&mut self) -> [u64; 4] {
        drop(std::mem::replace(&mut self.to, dummy()));
        ["by-server", "by-exec", "by-spawn", "failed"].map(|key| self.status(key).parse().unwrap())
    }
}

// The status is written once a second at most: one more delivery after that time writes it.
impl Rig {
    fn counts_after(&mut self, pause: Duration) -> [u64; 4] {
        std::thread::sleep(pause);
        assert_eq!(self.run(&["length", "x"]), "length 1\nend 0\n");
        self.counts()
    }
}

fn dummy() -> ChildStdin {
    Command::new("true").stdin(Stdio::piped()).spawn().unwrap().stdin.take().unwrap()
}

impl Drop for Rig {
    fn drop(&mut self) {
        let _ = self.driver.kill();
        let _ = self.driver.wait();
    }
}

/// A new file under the name, as `install` does.
fn install(to: &Path) {
    let new = to.with_extension("new");
    copy_program(&programs().join("probe"), &new);
    fs::rename(new, to).unwrap();
}

fn kill(pid: i32, signal: &str) {
    assert!(pid > 1);
    let status = Command::new("kill").args([signal, &pid.to_string()]).status().unwrap();
    assert!(status.success());
}

/// Without descriptors that the test itself was started with: an executed program has them, too.
fn comparable(output: &str) -> String {
    let lines = output.lines().filter(|line| {
        let number = line.strip_prefix("fd ").and_then(|rest| rest.split(' ').next());
        number.is_none_or(|number| number.parse::<u32>().unwrap() < 3)
    });
    lines.collect::<Vec<_>>().join("\n")
}

#[test]
fn a_child_of_the_server_sees_what_an_executed_one_sees() {
    let mut rig = Rig::new("1000\n");
    let by_exec = rig.run(&["view", "host.example", "", "a|b", "c d"]);
    assert_eq!(rig.status("server"), "0");
    rig.served();
    let by_server = rig.run(&["view", "host.example", "", "a|b", "c d"]);
    assert!(by_exec.contains("argv 2 host.example\n"), "{by_exec}");
    assert!(by_exec.contains("env EMPTY=\n"), "{by_exec}");
    assert!(by_exec.contains("SigBlk:\t0000000000010000\n"), "{by_exec}");
    assert_eq!(by_server.matches("\nfd ").count(), 3, "{by_server}");
    assert!(by_exec.ends_with("message a message\nend 0\n"), "{by_exec}");
    assert_eq!(comparable(&by_exec), comparable(&by_server));

    // What qmail-rspawn changes of its own later reaches the next delivery, too.
    rig.say(&["set", "LATER", "yes"]);
    let later = rig.run(&["view", "x"]);
    assert!(later.contains("env LATER=yes\n"), "{later}");
    // And one delivery leaves nothing to the next.
    let again = rig.run(&["view", "host.example", "", "a|b", "c d"]);
    assert_eq!(comparable(&again).replace("env LATER=yes\n", ""), comparable(&by_server));
}

#[test]
fn without_a_number_there_is_no_server() {
    for (control, reason) in [
        ("", "control/remoteserver does not exist"),
        ("0\n", "control/remoteserver is 0"),
        ("yes\n", "control/remoteserver has no number from 0 to 1000000"),
        ("1000001\n", "control/remoteserver has no number from 0 to 1000000"),
        ("99999999999999999999\n", "control/remoteserver has no number from 0 to 1000000"),
        ("-1\n", "control/remoteserver has no number from 0 to 1000000"),
        ("10x\n", "control/remoteserver has no number from 0 to 1000000"),
    ] {
        let mut rig = Rig::new(control);
        assert_eq!(rig.run(&["length", "four"]), "length 4\nend 0\n");
        assert_eq!(rig.status("reason"), reason, "{control:?}");
        assert_eq!(rig.status("by-exec"), "1");
        assert_eq!(rig.status("most"), "0");
    }
}

#[test]
fn a_wrapper_is_executed_each_time() {
    let wrappers: [(&str, &str); 4] = [
        ("exec", "#!/bin/sh\nWRAPPED=yes exec REAL \"$@\"\n"),
        ("pipe", "#!/bin/sh\ncat | REAL \"$@\"\n"),
        (
            "usage",
            "#!/bin/sh\n[ $# -gt 3 ] || { echo 'Dwrong usage'; exit 100; }\nexec REAL \"$@\"\n",
        ),
        ("silent", "#!/bin/sh\n[ $# -gt 3 ] || { exit 0; }\nexec REAL \"$@\"\n"),
    ];
    for (name, script) in wrappers {
        let mut rig = Rig::new("1000\n");
        let real = rig.home.path().join("real-remote");
        install(&real);
        fs::remove_file(rig.program()).unwrap();
        write_script(&rig.program(), &script.replace("REAL", real.to_str().unwrap()));
        let end = Instant::now() + PATIENCE;
        loop {
            let out = rig.run(&["view", "a", "b", "c"]);
            assert!(out.contains("argv 4 c\n"), "{name}: {out}");
            assert_eq!(out.contains("env WRAPPED=yes\n"), name == "exec", "{out}");
            if !rig.status("reason").is_empty() {
                break;
            }
            assert!(Instant::now() < end, "{name}: not noticed");
        }
        assert!(rig.status("reason").contains("wrapper"), "{name}: {}", rig.status("reason"));
        // The real one in its place is taken up.
        install(&rig.program());
        rig.served();
        assert_eq!(rig.status("reason"), "");
    }
}

#[test]
fn a_link_to_the_program_is_no_wrapper() {
    let mut rig = Rig::new("1000\n");
    let real = rig.home.path().join("real-remote");
    install(&real);
    fs::remove_file(rig.program()).unwrap();
    symlink(&real, rig.program()).unwrap();
    rig.served();
}

#[test]
fn another_program_is_taken_up_at_the_next_delivery() {
    let mut rig = Rig::new("1000\n");
    let old = rig.served();
    install(&rig.program());
    let new = rig.served();
    assert_ne!(old, new);
    // A program that is gone is what it always was.
    fs::remove_file(rig.program()).unwrap();
    assert_eq!(rig.run(&["length", "x"]), "end 25600\n");
    assert_eq!(rig.say(&["run", "/nonexistent/qmail-remote", "x"]), "end 25600\n");
}

#[test]
fn a_program_that_is_still_being_written_is_no_wrapper() {
    let mut rig = Rig::new("1000\n");
    // Another process has it open: a child of another test would keep a file of this process open.
    let mut writer = Command::new("sh")
        .args(["-c", r#"exec 3>>"$0"; echo open; read line"#])
        .arg(rig.program())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(writer.stdout.take().unwrap()).read_line(&mut line).unwrap();
    // ETXTBSY: as it always was.
    assert_eq!(rig.run(&["length", "x"]), "end 28416\n");
    drop(writer.stdin.take());
    writer.wait().unwrap();
    rig.served();
    assert_eq!(rig.status("reason"), "");
    assert_eq!(rig.status("failed"), "1");
}

#[test]
fn a_server_that_ends_or_hangs_before_it_is_there_is_tried_once_more() {
    for hang in [false, true] {
        let once = tempfile::tempdir().unwrap();
        let mut rig = Rig::with("1000\n", |command| {
            command.env("FALTER", once.path().join("faltered"));
            if hang {
                command.env("HANG", "yes");
            }
        });
        rig.served();
        assert!(once.path().join("faltered").exists());
        assert_eq!((rig.status("reason"), rig.status("failed")), (String::new(), "1".to_owned()));
    }
}

#[test]
fn a_server_is_replaced_after_as_many_deliveries_as_said() {
    let mut rig = Rig::new("50\n");
    let mut servers = BTreeSet::new();
    while servers.len() < 4 {
        servers.insert(rig.served());
    }
    let [by_server, by_exec, by_spawn, failed] = rig.counts();
    assert!(by_server > 150, "{by_server}");
    assert!(by_exec >= 4 && by_spawn == 0 && failed == 0, "{by_exec} {by_spawn} {failed}");
}

#[test]
fn a_server_that_is_killed_is_replaced_and_loses_nothing() {
    let mut rig = Rig::new("100000\n");
    let log = rig.home.path().join("delivered");
    let to = log.to_str().unwrap().to_string();
    let mut server = rig.served();
    for number in 0..300 {
        // In flight: the command is on its way while the server is killed.
        let number = number.to_string();
        rig.tell(&["run", "qmail-remote", "deliver", &to, &number]);
        if number.ends_with('7') && server > 1 {
            let _ = Command::new("kill")
                .args(["-KILL", &server.to_string()])
                .stderr(Stdio::null())
                .status();
        }
        assert_eq!(rig.answer(), format!("delivered {number}\nend 0\n"));
        if number.ends_with("50") {
            // A second to wait after one failure; thirty after a server that had done little.
            server = rig.status("server").parse().unwrap();
        }
    }
    let delivered = fs::read_to_string(&log).unwrap();
    let lines: Vec<&str> = delivered.lines().collect();
    assert_eq!(lines.len(), 300);
    assert_eq!(lines.iter().collect::<BTreeSet<_>>().len(), 300);
}

#[test]
fn deliveries_under_way_outlive_their_server() {
    let mut rig = Rig::new("1000\n");
    let server = rig.served();
    let begun = rig.say(&["begin", "qmail-remote", "sleep"]);
    let pid: i32 = begun.trim_start_matches("pid ").trim().parse().unwrap();
    kill(server, "-KILL");
    assert_eq!(rig.run(&["length", "after"]), "length 5\nend 0\n");
    kill(pid, "-TERM");
    // It is the driver's own child: its end and its signal arrive there.
    assert_eq!(rig.say(&["await"]), "end 15\n");
}

#[test]
fn a_server_that_hangs_is_given_up_and_its_delivery_is_made_once() {
    let mut rig = Rig::new("1000\n");
    let log = rig.home.path().join("delivered");
    let server = rig.served();
    kill(server, "-STOP");
    let out = rig.run(&["deliver", log.to_str().unwrap(), "one"]);
    assert_eq!(out, "delivered one\nend 0\n");
    assert_eq!(fs::read_to_string(&log).unwrap(), "one\n");
    assert!(!Path::new(&format!("/proc/{server}/exe")).exists());
}

#[test]
fn what_does_not_fit_into_a_packet_goes_by_exec() {
    let mut rig = Rig::new("1000\n");
    let server = rig.served();
    let long = "x".repeat(100_000);
    assert_eq!(rig.run(&["length", &long]), "length 100000\nend 0\n");
    let many = vec!["y"; 3000];
    assert_eq!(rig.run(&[&["length", "z"][..], &many].concat()), "length 1\nend 0\n");
    // ps shows as much of the arguments as there is room for; the program has all of them.
    let title = "t".repeat(5000);
    assert!(rig.run(&["view", &title]).contains(&format!("argv 2 {title}\n")));
    assert_eq!(rig.served(), server);
}

#[test]
fn a_packet_that_no_qmail_rspawn_sends_ends_the_server() {
    let mut rig = Rig::new("");
    let program = rig.program();
    let mut poke =
        |words: [&str; 3]| rig.say(&[&["poke", program.to_str().unwrap()][..], &words].concat());
    assert_eq!(poke(["4", "2", "60"]), "child 1\n");
    assert_eq!(poke(["2000", "0", "20000"]), "child 1\n");
    for words in [
        ["4", "2", "59"],
        ["4", "2", "50"],
        ["4", "2", "70"],
        ["0", "6", "60"],
        ["0", "0", "60"],
        ["4", "4294967294", "20"],
        ["2001", "0", "20010"],
        ["1", "2000", "20010"],
        ["4294967295", "2001", "20000"],
        ["100000", "0", "60000"],
    ] {
        assert_eq!(poke(words), "child 0\n", "{words:?}");
    }
}

#[test]
fn without_pidfd_open_no_server_is_started_for_each_delivery() {
    let mut rig = Rig::new("1000\n");
    if rig.say(&["deny", "434"]) != "denied 1\n" {
        skip("no system call can be denied here");
        return;
    }
    let begun = Instant::now();
    for _ in 0..30 {
        assert_eq!(rig.run(&["length", "x"]), "length 1\nend 0\n");
    }
    let seconds = begun.elapsed().as_secs();
    let [by_server, by_exec, by_spawn, failed] = rig.counts_after(Duration::from_millis(1100));
    assert_eq!((by_server, by_exec, by_spawn), (0, 31, 0));
    assert!((1..=seconds + 3).contains(&failed), "{failed} in {seconds} s");
}

#[test]
fn without_descriptors_a_delivery_fails_as_it_always_did_and_the_next_goes() {
    let mut rig = Rig::new("1000\n");
    let server = rig.served();
    rig.say(&["nofile", "104"]);
    for _ in 0..40 {
        assert_eq!(rig.run(&["length", "x"]), "length 1\nend 0\n");
    }
    assert_eq!(rig.served(), server);
}

#[test]
fn a_shortage_at_the_first_delivery_is_forgotten() {
    for server in ["1000\n", ""] {
        let mut rig = Rig::new(server);
        // Taken: 0 and 1, the message, and the pipe. From none to all that the two ways want is missing.
        for limit in 5..10 {
            rig.say(&["nofile", &limit.to_string()]);
            assert_eq!(rig.run(&["length", "x"]), "length 1\nend 0\n");
        }
        rig.say(&["nofile", "1000"]);
        if server.is_empty() {
            let [_, by_exec, by_spawn, _] = rig.counts_after(Duration::from_millis(1100));
            assert!(by_exec > 0 && by_spawn > 0, "{by_exec} {by_spawn}");
        } else {
            rig.served();
        }
    }
}

#[test]
fn without_processes_a_delivery_fails_as_it_always_did_and_the_next_goes() {
    if !is_root() {
        skip("only root can take a user id of its own for this");
        return;
    }
    // A user that has no other process, so that the limit means these.
    let id = 200_000 + std::process::id();
    let mut rig = Rig::with("1000\n", |command| {
        command.uid(id).gid(id);
    });
    // The driver, the server, and one delivery.
    rig.say(&["nproc", "3"]);
    let server = rig.served();
    let begun = rig.say(&["begin", "qmail-remote", "sleep"]);
    assert_eq!(rig.run(&["length", "x"]), "no fork\n");
    kill(begun.trim_start_matches("pid ").trim().parse().unwrap(), "-TERM");
    assert_eq!(rig.say(&["await"]), "end 15\n");
    assert_eq!(rig.run(&["length", "x"]), "length 1\nend 0\n");
    assert_eq!(rig.served(), server);
}

#[test]
fn memory_and_descriptors_do_not_grow() {
    let mut rig = Rig::new("1000000\n");
    let server = rig.served();
    let look = |rig: &Rig| {
        let of = |pid: u32| {
            let memory = fs::read_to_string(format!("/proc/{pid}/statm")).unwrap();
            let pages: u64 = memory.split(' ').next().unwrap().parse().unwrap();
            (pages, fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count())
        };
        (of(u32::try_from(server).unwrap()), of(rig.driver.id()))
    };
    assert_eq!(rig.say(&["many", "100", "qmail-remote", "quiet"]), "bad 0\n");
    let before = look(&rig);
    assert_eq!(rig.say(&["many", "5000", "qmail-remote", "quiet"]), "bad 0\n");
    assert_eq!(look(&rig), before);
    assert_eq!(rig.served(), server);
}

#[test]
fn several_spawners_have_a_record_each() {
    let mut first = Rig::new("1000\n");
    let home = first.home.path().to_path_buf();
    first.served();
    let mut second = Rig::with("", |command| {
        command.current_dir(home.join("queue/mess"));
    });
    assert_eq!(second.run(&["length", "x"]), "length 1\nend 0\n");
    let text = fs::read(home.join("queue/lock/remotestatus")).unwrap();
    assert_eq!(text.len(), 1024);
    for (record, rig) in text.chunks(512).zip([&first, &second]) {
        let record = String::from_utf8(record.to_vec()).unwrap();
        assert!(
            record.starts_with(&format!("qpatch-remote 1\npid {}\n", rig.driver.id())),
            "{record}"
        );
    }
}
