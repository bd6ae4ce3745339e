//! `qpatch gate`: what goldens cannot have (FIFOs, huge files, a gate that runs, a terminal). The goldens are in
//! `cargo test --test cases`.

mod common;

use std::collections::BTreeSet;
use std::fs::{self, File, Permissions};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use common::{Run, run};
use qpatch_gate::command::Parts;
use qpatch_gate::gate::DeliveryEnd;
use qpatch_gate::host::{Ask, Host};
use qpatch_gate::problem;
use qpatch_test_support::{has, is_root, skip};
use serde_json::Value;
use tempfile::TempDir;

fn gate(dir: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_qpatch"));
    command.current_dir(dir).arg("gate").args(args);
    command
}

/// A qmail home with control and queue/lock.
struct Home(TempDir);

impl Home {
    fn new() -> Self {
        let home = Self(tempfile::tempdir().unwrap());
        fs::create_dir_all(home.path("control")).unwrap();
        fs::create_dir_all(home.path("queue/lock")).unwrap();
        for file in
            [problem::File::Status].into_iter().chain(problem::File::KEPT).map(problem::File::name)
        {
            fs::write(home.path("queue/lock").join(file), "").unwrap();
        }
        home
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn control(&self, name: &str, text: &str) {
        fs::write(self.path("control").join(name), text).unwrap();
    }

    /// The gate, opened as qmail-rspawn opens it.
    fn host(&self, slots: u32) -> Host {
        let (control, status) = (self.path("control"), self.path("queue/lock/gatestatus"));
        Host::open(slots, control.as_os_str(), status.as_os_str(), 1).unwrap()
    }

    /// Runs it in a shell; `before` comes before the program on the command line.
    fn gate_in_shell(&self, before: &str, args: &[&str]) -> Run {
        let script = format!("{before} \"$@\"");
        let mut command = Command::new("sh");
        command.args(["-c", &script, "sh", env!("CARGO_BIN_EXE_qpatch"), "gate"]).args(args);
        run(command.current_dir(self.0.path()))
    }

    fn gate(&self, args: &[&str]) -> Run {
        run(&mut gate(self.0.path(), args))
    }

    /// As a user whom permissions stop, which root is not.
    fn gate_as_user(&self, args: &[&str]) -> Run {
        common::run_as_user(&mut gate(self.0.path(), args), self.0.path())
    }
}

fn ask(host: &mut Host, slot: u32, domain: &str) -> Ask {
    let recipient = format!("user@{domain}\0");
    host.ask(slot, &Parts::new(&[b"1/1\0", b"sender\0", recipient.as_bytes()]).unwrap())
}

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|e| panic!("{e}: {text}"))
}

// check

#[test]
fn control_files_that_are_not_regular_files() {
    let home = Home::new();
    let file = home.path("control/concurrencydomains");
    let says = |run: Run, what: &str, help: &str| {
        let expected = format!(
            "./control/concurrencydomains: error: {what}\n  {help}\n\
             ./control/concurrencydomains: 1 error; the gate goes on with the last file that had no errors, or, where there was none, \
             with the good lines and a limit of 20 for all other domains\n"
        );
        assert_eq!((run.code, run.out, run.err), (1, expected, String::new()));
    };
    let refused = |what: &str, help: &str| {
        // A process that opens a FIFO for reading waits for a writer.
        says(home.gate_in_shell("exec timeout 60", &["check", "."]), what, help);
        assert_eq!(home.gate(&["check", "control/concurrencydomains"]).code, 1);
    };
    fs::create_dir(&file).unwrap();
    let run = home.gate(&["check", "."]);
    assert_eq!(run.code, 1);
    assert!(run.out.contains("concurrencydomains: error: not a regular file\n"), "{}", run.out);
    fs::remove_dir(&file).unwrap();

    assert!(Command::new("mkfifo").arg(&file).status().unwrap().success());
    refused("not a regular file", "put a regular file there");
    fs::remove_file(&file).unwrap();

    symlink("/dev/zero", &file).unwrap();
    refused("not a regular file", "put a regular file there");
    fs::remove_file(&file).unwrap();

    File::create(&file).unwrap().set_len(100 << 20).unwrap();
    refused(
        "104857600 bytes are too many, 67108864 is the most",
        "is it the right file? A million domains need about 25 MB",
    );
    fs::remove_file(&file).unwrap();

    fs::write(&file, ":20\n").unwrap();
    fs::set_permissions(&file, Permissions::from_mode(0o0)).unwrap();
    let run = home.gate_as_user(&["check", "."]);
    let what = "cannot be read: Permission denied (os error 13)";
    says(run, what, "run qpatch as root, or let it be read");
}

#[test]
fn the_problems_of_a_binary_file_are_cut_off() {
    let home = Home::new();
    let noise: Vec<u8> =
        (0..2_000_000u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    fs::write(home.path("noise"), noise).unwrap();
    let run = home.gate(&["check", "noise"]);
    assert_eq!(run.code, 1);
    let lines: Vec<&str> = run.out.lines().collect();
    assert!((1000..1100).contains(&lines.len()), "{}", lines.len());
    assert!(lines.iter().any(|line| line.ends_with("more problems")), "{}", lines[0]);
    let printable = |char: char| char == '\n' || (' '..='~').contains(&char);
    assert!(run.out.chars().all(printable), "nothing talks to the terminal");
}

#[test]
fn a_hundred_thousand_lines_are_checked_quickly() {
    let home = Home::new();
    let lines = (0..100_000).map(|i| format!("d{i}.example:{}\n", i % 50 + 1)).collect::<String>();
    home.control("concurrencydomains", &lines);
    home.control("smtproutes", ":smart.example\n");
    // The limit is on processor time, so other load does not count. It takes a few seconds; a quadratic search would
    // take hours.
    let run = home.gate_in_shell("ulimit -t 60; exec", &["check", "."]).ok();
    // Two sorts of warnings for most lines; a thousand of each are listed.
    assert!(
        run.out.contains(" (and 59000 more lines like this)\n"),
        "{}",
        run.out.lines().last().unwrap()
    );
    assert!(run.out.contains(" (and 99000 more lines like this)\n"));
}

#[test]
fn check_finds_files_that_the_gate_cannot_read_or_write() {
    let home = Home::new();
    home.control("concurrencydomains", ":20\n");
    home.control("concurrencyremote", "100\n");
    fs::write(home.path("queue/lock/tcpto"), "").unwrap();
    assert!(home.gate(&["check", "."]).ok().out.contains(": no problems; 1 line, default 20, "));
    if !is_root() {
        skip("only root gives files away");
        return;
    }
    let chown = |owner: &str, name: &str| {
        let status = Command::new("chown").arg(owner).arg(home.path(name)).status().unwrap();
        assert!(status.success());
    };
    chown("12345:12345", "queue/lock/tcpto");
    fs::set_permissions(home.path("control/concurrencydomains"), Permissions::from_mode(0o600))
        .unwrap();
    for kept in ["domains", "routes", "replies"] {
        chown("12345", &format!("queue/lock/gatekept.{kept}"));
    }
    fs::remove_file(home.path("queue/lock/gatekept.routes")).unwrap();
    let run = home.gate(&["check", "."]);
    let not_writable = |file: &str| {
        format!(
            "./queue/lock/{file}: warning: the gate cannot write it: it belongs to user 0, and qmail-rspawn runs as user \
             12345\n  chown 12345 ./queue/lock/{file}\n"
        )
    };
    assert_eq!(
        (run.code, run.out),
        (
            1,
            format!(
                "./control/concurrencydomains: error: the gate cannot read it: its mode is 0600, and qmail-rspawn runs as \
                 qmailr\n  chmod 644 ./control/concurrencydomains\n\
                 ./queue/lock/gatekept.routes: warning: no such file: no copy of the control file is kept, so after a \
                 restart a mistake in it takes effect at once\n  make setup check in the patched tree, while qmail is stopped\n\
                 {}{}./control/concurrencydomains: 1 error, 3 warnings; the gate goes on with the last file that had no \
                 errors, or, where there was none, with the good lines and a limit of 20 for all other domains\n",
                not_writable("gatestatus"),
                not_writable("gatekept.sites")
            )
        )
    );
    fs::write(home.path("queue/lock/gatekept.routes"), "").unwrap();
    for kept in ["routes", "sites"] {
        chown("12345", &format!("queue/lock/gatekept.{kept}"));
    }
    let run = home.gate(&["show", "."]);
    assert_eq!(
        (run.code, run.err.as_str()),
        (
            1,
            "qpatch: ./queue/lock/gatestatus: empty: no gate has written it yet\n  \
             it belongs to user 0, and qmail-rspawn runs as user 12345: chown 12345 ./queue/lock/gatestatus\n"
        )
    );
    chown("0:12345", "control/concurrencydomains");
    chown("12345", "queue/lock/gatestatus");
    fs::set_permissions(home.path("control/concurrencydomains"), Permissions::from_mode(0o640))
        .unwrap();
    assert!(home.gate(&["check", "."]).ok().out.contains(": no problems; "), "the group can");

    // A tree with supplemental channels: each qmail-rspawn has a file of its own, and one they share.
    fs::write(home.path("queue/lock/gatestatus.1"), "").unwrap();
    assert_eq!(
        home.gate(&["check", "."]).ok().out,
        "./queue/lock/gateshared: warning: no such file: each limit holds per qmail-rspawn, not for all of them \
         together\n  make setup check in the patched tree, while qmail is stopped\n\
         ./queue/lock/gatestatus.1: warning: the gate cannot write it: it belongs to user 0, and qmail-rspawn runs as \
         user 12345\n  chown 12345 ./queue/lock/gatestatus.1\n\
         ./control/concurrencydomains: 2 warnings; 1 line, default 20, concurrencyremote 100\n"
    );
    fs::write(home.path("queue/lock/gateshared"), "").unwrap();
    chown("12345", "queue/lock/gatestatus.1");
    chown("12345", "queue/lock/gateshared");
    assert!(home.gate(&["check", "."]).ok().out.contains(": no problems; "));
}

#[test]
fn check_prints_each_problem_of_the_running_gate_once() {
    let home = Home::new();
    home.control("concurrencyremote", "100\n");
    home.control("concurrencydomains", ":2O\n");
    let _host = home.host(10);
    let run = home.gate(&["check", "."]);
    assert_eq!(run.code, 1);
    assert_eq!(run.out.matches("the limit is not a number").count(), 1, "{}", run.out);
    home.control("concurrencydomains", ":20\n");
    let run = home.gate(&["check", "."]).ok();
    assert!(
        run.out.starts_with(
            "./queue/lock/gatestatus: warning: the gate says: control/concurrencydomains:1:3: the limit is not a \
             number (empty means unlimited)\n  if it has been corrected, the gate sees it with its next delivery\n"
        ),
        "{}",
        run.out
    );
}

// init

#[test]
fn init_writes_a_file_without_problems_and_only_once() {
    for remote in [None, Some("20\n"), Some("100\n"), Some("1000\n")] {
        let home = Home::new();
        if let Some(remote) = remote {
            home.control("concurrencyremote", remote);
        }
        let run = home.gate(&["init", "."]).ok();
        assert_eq!(
            run.out,
            "./control/concurrencydomains written: at most 20 deliveries at once to a domain, fewer to some big \
             providers\na running gate uses it within a second; next: qpatch gate check .\n"
        );
        let run = home.gate(&["check", "."]).ok();
        let comcast = if remote.is_some_and(|text| text.len() > 3) { 112 } else { 111 };
        let expected = format!(
            "./control/concurrencydomains: no problems; {comcast} lines, 8 groups, default 20, "
        );
        assert!(run.out.starts_with(&expected), "{}", run.out);

        // The same servers answer for a provider's national domains.
        for (domain, group) in [
            ("hotmail.fr", "group outlook"),
            ("outlook.fr", "group outlook"),
            ("live.co.uk", "group outlook"),
            ("yahoo.fr", "group yahoo"),
            ("yahoo.co.jp", "yahoo.co.jp"),
            ("other.fr", "other.fr"),
        ] {
            let run = home.gate(&["check", ".", "--domain", domain]).ok();
            let row = run.out.lines().last().unwrap();
            assert!(
                row.starts_with(&format!("{domain}  ")) && row.contains(&format!("  {group} ")),
                "{}",
                run.out
            );
        }

        let file = home.path("control/concurrencydomains");
        let before = fs::read(&file).unwrap();
        assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o7777, 0o644);
        let run = home.gate(&["init", "."]);
        assert_eq!(
            (run.code, run.out.as_str(), run.err.as_str()),
            (
                1,
                "",
                "qpatch: ./control/concurrencydomains: exists already, and was not touched\n  \
                 edit it and run qpatch gate check ., or move it away first\n"
            )
        );
        assert_eq!(fs::read(&file).unwrap(), before);
        let names: Vec<_> = fs::read_dir(home.path("control")).unwrap().collect();
        assert_eq!(names.len(), 1 + usize::from(remote.is_some()), "nothing is left over");
    }
}

#[test]
fn init_is_readable_whatever_the_umask() {
    let home = Home::new();
    let script = format!("umask 077; exec {} gate init .", env!("CARGO_BIN_EXE_qpatch"));
    run(Command::new("sh").args(["-c", &script]).current_dir(home.0.path())).ok();
    let mode = fs::metadata(home.path("control/concurrencydomains")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o644);
}

#[test]
fn init_follows_no_link_and_overwrites_nothing() {
    let home = Home::new();
    let file = home.path("control/concurrencydomains");
    symlink("../elsewhere", &file).unwrap();
    assert_eq!(home.gate(&["init", "."]).code, 1);
    assert!(!home.path("elsewhere").exists());
    fs::remove_file(&file).unwrap();
    fs::create_dir(&file).unwrap();
    assert_eq!(home.gate(&["init", "."]).code, 1);
    fs::remove_dir(&file).unwrap();

    // Of many runs at once, one writes the file.
    let children: Vec<_> = (0..8)
        .map(|_| {
            gate(home.0.path(), &["init", "."])
                .stderr(Stdio::null())
                .stdout(Stdio::null())
                .spawn()
                .unwrap()
        })
        .collect();
    let codes: Vec<_> =
        children.into_iter().map(|mut child| child.wait().unwrap().code()).collect();
    assert_eq!(codes.iter().filter(|&&code| code == Some(0)).count(), 1, "{codes:?}");
    home.gate(&["check", "."]).ok();

    fs::remove_file(&file).unwrap();
    fs::set_permissions(home.path("control"), Permissions::from_mode(0o555)).unwrap();
    let run = home.gate_as_user(&["init", "."]);
    fs::set_permissions(home.path("control"), Permissions::from_mode(0o755)).unwrap();
    assert_eq!(run.code, 1);
    assert!(run.err.starts_with("qpatch: ./control: cannot write into it: "), "{}", run.err);
}

// show

/// A gate with a busy group, an unlimited domain, and one that failed.
fn busy_gate(home: &Home) -> Host {
    home.control("concurrencyremote", "5\n");
    home.control("concurrencydomains", ":20\nbusy.example:2:Busy\nfree.example:\n");
    let mut host = home.host(50);
    for slot in 0..4 {
        ask(&mut host, slot, "busy.example");
    }
    assert_eq!(ask(&mut host, 4, "free.example"), Ask::Go);
    assert_eq!(ask(&mut host, 5, "down.example"), Ask::Go);
    host.done(4, DeliveryEnd::Reported(b"r\0Kok\0"));
    host.done(
        5,
        DeliveryEnd::Reported(
            b"sno\0Z192.0.2.1 does not like you.\nRemote host said: 421 \x1b[2J\n\0",
        ),
    );
    thread::sleep(Duration::from_millis(1050));
    host.due();
    host
}

#[test]
fn show_prints_what_the_gate_wrote() {
    let home = Home::new();
    let _host = busy_gate(&home);
    let run = home.gate(&["show", "."]).ok();
    let mut lines = run.out.lines();
    let mut next = || lines.next().unwrap_or_default();
    assert_eq!(next(), format!("qmail-rspawn {}: limits count", std::process::id()));
    let now = next();
    assert!(
        now.starts_with(
            "now:   2 running and 1 held, of 5 (conf-spawn 50, concurrencyremote 5); written "
        ),
        "{now}"
    );
    assert_eq!(
        next(),
        "ever:  6 asked for, 2 done, 1 held, 1 busy answer (for 0 the hold was too long)"
    );
    assert!(next().starts_with("rules: 3 lines, 0 routes; read "));
    assert_eq!(next(), "");
    let words = |line: &str| line.split_whitespace().map(str::to_string).collect::<Vec<_>>();
    assert_eq!(
        next(),
        "KEY           LIMIT  NOW  RUNNING  HELD  AWAY  BUSY  DONE  PEAK  PER SEC  MEAN  LAST ERROR"
    );
    let busy = words(next());
    assert_eq!(busy[..6], ["group", "busy", "2", "-", "2", "1"], "{busy:?}");
    assert_eq!(busy[7..10], ["1", "0", "2"], "busy, done, peak: {busy:?}");
    let down = next();
    assert!(
        down.starts_with("down.example     20    -        0     0     0     0     1     1  "),
        "{down}"
    );
    assert!(
        down.ends_with("  192.0.2.1 does not like you. Remote host said: 421 %1b[2J"),
        "{down}"
    );
    assert!(
        next().starts_with("free.example   none    -        0     0     0     0     1     1  ")
    );
    assert_eq!(next(), "");

    let report = json(&home.gate(&["show", ".", "--format", "json"]).ok().out);
    assert_eq!(report["state"], "limits");
    assert_eq!(report["alive"], true);
    assert_eq!(report["held"], 1);
    assert_eq!(report["busy_total"], 1);
    assert_eq!(report["keys"][0]["kind"], "group");
    assert_eq!(report["keys"][0]["running"], 2);
    assert_eq!(
        report["keys"][1]["last_error"],
        "192.0.2.1 does not like you.%0aRemote host said: 421 %1b[2J%0a"
    );
    assert_eq!(report["keys"][2]["limit"], Value::Null);

    let metrics = home.gate(&["show", ".", "--format", "prometheus"]).ok().out;
    assert!(
        metrics.contains("\nqmail_gate_key_running{kind=\"group\",key=\"busy\"} 2\n"),
        "{metrics}"
    );
}

#[test]
fn show_looks_again_while_the_file_is_being_written() {
    let home = Home::new();
    let _host = busy_gate(&home);
    let file = home.path("queue/lock/gatestatus");
    let whole = fs::read(&file).unwrap();
    fs::write(&file, &whole[..whole.len() / 2]).unwrap();
    let late = thread::spawn(move || {
        thread::sleep(Duration::from_millis(200));
        // The gate writes the file in the same way: it is never empty in between.
        let mut file = fs::OpenOptions::new().write(true).open(file).unwrap();
        file.write_all(&whole).unwrap();
    });
    home.gate(&["show", "."]).ok();
    late.join().unwrap();
}

/// A status as the gate writes it. `@N` becomes the time N seconds from now.
fn status_with(keys: &str) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() as i64;
    let mut text = format!(
        "qpatch-gate\t1\t7\nwritten\t{now}\npid\t{}\nstate\tlimits\nslots\t100\t100\t14\t2\n\
         total\t90\t4\t2\t0\t70\t3\t9\ntable\t4\t1\t{now}\nsites\t12\t1\n",
        std::process::id()
    );
    for line in keys.lines() {
        let time = |field: &str| match field.strip_prefix('@') {
            Some(offset) => (now + offset.parse::<i64>().unwrap()).to_string(),
            None => field.to_string(),
        };
        text.push_str(&line.split('|').map(time).collect::<Vec<_>>().join("\t"));
        text.push('\n');
    }
    text + "unlisted\t0\nend\t7\n"
}

/// The text with `N` for each number of seconds.
fn without_seconds(text: &str) -> String {
    let words = text.split_inclusive([' ', '\n']).collect::<Vec<_>>();
    let is_time = |at: usize| {
        words.get(at + 1).is_some_and(|unit| unit.trim_end_matches([' ', '\n', ';', ':']) == "s")
    };
    let number = |word: &str| word.trim_end().bytes().all(|byte| byte.is_ascii_digit());
    let words = words.iter().enumerate().map(|(at, word)| {
        if is_time(at) && number(word) { "N ".to_string() } else { (*word).to_string() }
    });
    words.collect()
}

const LEARNED: &str = "key|group|outlook|10|8|2|4|60|10|4|12.5|200|8|@-30|0|192.0.2.7 failed after I sent the \
message.%0aRemote host said: 421 4.3.2 too many %1b[31mconnections from your address, and so on, for long\n\
key|domain|down.example|20|0|0|0|3|1|0|0.0|0|1|@-50|@700|Sorry, I wasn't able to establish an SMTP connection. (#4.4.1)\n\
key|domain|fine.example|-|4|0|0|7|4|0|1.0|90|-|0|0|\n";

#[test]
fn show_lists_the_servers_that_objected() {
    let home = Home::new();
    fs::write(home.path("queue/lock/gatestatus"), status_with(LEARNED)).unwrap();
    let out = home.gate(&["show", "."]).ok().out;
    assert!(
        out.contains("\nsites: 12 domains of concurrencysites, 1 next hop seen at an address\n"),
        "{out}"
    );
    let (_, objections) = out.rsplit_once("\n\n").unwrap();
    assert_eq!(
        without_seconds(objections),
        "group outlook: 8 instead of 10; objected N s ago; last error: 192.0.2.7 failed after I sent the ...\n\
         down.example: suspended for N s; objected N s ago; last error: Sorry, I wasn't able to establi...\n"
    );
    assert!(objections.lines().all(|line| line.len() <= 100));
}

#[test]
fn show_domain_prints_the_key_of_a_domain() {
    let home = Home::new();
    fs::write(home.path("queue/lock/gatestatus"), status_with(LEARNED)).unwrap();
    fs::write(home.path("queue/lock/gatesites"), "qpatch-sites\t1\nseen.example\t192.0.2.7\nend\n")
        .unwrap();
    home.control(
        "concurrencydomains",
        ":20::learn\nmx:.outlook.com:10:outlook:learn\n192.0.2.0/24:10:outlook\nfine.example:\n",
    );
    home.control("concurrencysites", "mapped.example:outlook\n");
    home.control("smtproutes", "far.example:relay.example\n");
    let run = home.gate(&[
        "show",
        ".",
        "--domain",
        "mapped.example",
        "--domain",
        "seen.example",
        "--domain",
        "down.example",
        "--domain",
        "far.example",
    ]);
    let out = run.ok().out;
    let group = "  limit      10, follows the server; now 8\n  now        8 running, 2 held, 4 away\n  objected   N s ago\n  \
                 error      192.0.2.7 failed after I sent the message. Remote host said: 421 4.3.2 too many %1b[...\n";
    let (_, out) = out.split_once("\n\n").unwrap();
    assert_eq!(
        without_seconds(out),
        format!(
            "mapped.example: counts as group outlook\n  from       concurrencysites:1\n{group}\n\
             seen.example: counts as group outlook\n  from       concurrencydomains:3, its mail goes to 192.0.2.7\n{group}\n\
             down.example: counts as down.example\n  from       concurrencydomains:1 (the default)\n  \
             limit      20, follows the server; now 1\n  now        0 running, 0 held, 0 away\n  objected   N s ago\n  \
             suspended  for N s: nothing is started\n  \
             error      Sorry, I wasn't able to establish an SMTP connection. (#4.4.1)\n\n\
             far.example: counts as relay relay.example\n  from       concurrencydomains:1 (the default), by smtproutes:1\n  \
             limit      20, follows the server\n  now        nothing runs, waits or is remembered\n"
        )
    );
    home.control("concurrencydomains", ":2O\n");
    let run = home.gate(&["show", ".", "--domain", "a.example"]);
    assert_eq!(run.code, 1);
    assert!(run.err.starts_with("qpatch: ./control/concurrencydomains:1:3: "), "{}", run.err);
}

/// Metrics that no panel of monitoring/grafana.json has, on purpose.
const IN_NO_PANEL: [&str; 2] = [
    // Grafana makes its own rate of key_done_total.
    "qmail_gate_key_rate",
    // The panels of the keys have these keys as one series.
    "qmail_gate_keys_other",
];

/// Every `expr` and every query of a variable.
fn queries(value: &Value, found: &mut Vec<String>) {
    match value {
        Value::Object(fields) => {
            for (name, value) in fields {
                match value {
                    Value::String(text) if name == "expr" || name == "definition" => {
                        found.push(text.clone());
                    }
                    value => queries(value, found),
                }
            }
        }
        Value::Array(list) => list.iter().for_each(|value| queries(value, found)),
        _ => {}
    }
}

/// The names of metrics in a text.
fn metrics_in(text: &str) -> BTreeSet<String> {
    let words = text.split(|char: char| !char.is_ascii_alphanumeric() && char != '_');
    words.filter(|word| word.starts_with("qmail_gate_")).map(str::to_string).collect()
}

#[test]
fn the_dashboard_has_all_metrics() {
    let home = Home::new();
    let _host = busy_gate(&home);
    let text = home.gate(&["show", ".", "--format", "prometheus"]).ok().out;
    let told: BTreeSet<String> = text
        .lines()
        .filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next().map(str::to_string))
        .collect();
    assert_eq!(metrics_in(&text), told, "each has a type");
    // A counter is read by its rate, and a gauge is not.
    let counters: BTreeSet<&str> = text
        .lines()
        .filter_map(|line| line.strip_prefix("# TYPE ")?.strip_suffix(" counter"))
        .collect();

    let dashboard = json(include_str!("../monitoring/grafana.json"));
    let mut exprs = Vec::new();
    queries(&dashboard, &mut exprs);
    let panels = dashboard["panels"].as_array().unwrap();
    assert!(exprs.len() > panels.len() && panels.len() >= 10);
    let mut used = BTreeSet::new();
    for expr in &exprs {
        let metrics = metrics_in(expr);
        assert!(!metrics.is_empty(), "{expr}");
        for (open, close) in ["()", "{}", "[]"].map(|pair| pair.split_at(1)) {
            assert_eq!(expr.matches(open).count(), expr.matches(close).count(), "{expr}");
        }
        for metric in &metrics {
            let is_rate = expr.contains(&format!("rate({metric}{{"));
            assert_eq!(is_rate, counters.contains(metric.as_str()), "{expr}");
            // Only metrics of keys have the labels of keys.
            let of_key = metric.starts_with("qmail_gate_key_");
            assert!(of_key || !expr.contains("key=~"), "{expr}");
        }
        used.extend(metrics);
    }
    let unknown: Vec<_> = used.difference(&told).collect();
    assert!(unknown.is_empty(), "the gate does not tell {unknown:?}");
    let unused: Vec<_> = told.difference(&used).map(String::as_str).collect();
    assert_eq!(unused, IN_NO_PANEL, "neither in a panel nor left out on purpose");

    let mut ids = BTreeSet::new();
    let mut places = BTreeSet::new();
    for panel in panels {
        assert!(ids.insert(panel["id"].as_u64().unwrap()), "{panel}");
        let at = |name: &str| panel["gridPos"][name].as_u64().unwrap();
        assert!(at("x") + at("w") <= 24, "{panel}");
        for (x, y) in (at("x")..at("x") + at("w"))
            .flat_map(|x| (at("y")..at("y") + at("h")).map(move |y| (x, y)))
        {
            assert!(places.insert((x, y)), "two panels are in one place: {panel}");
        }
    }
}

/// A status file of this process, with what may follow its number on the line, and these keys.
fn status_of(process: &str, running: u32, keys: &str) -> String {
    let text = status_with(keys);
    let slots = format!("slots\t100\t50\t{running}\t0");
    let pid = format!("pid\t{}\n", std::process::id());
    text.replace(&pid, &format!("pid\t{process}\n")).replace("slots\t100\t100\t14\t2", &slots)
}

/// When a process started, and its name, once it is in this state; `?` for any.
fn wait_for_state(pid: u32, state: char) -> (u64, String) {
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        let text = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        let (name, rest) = text.split_once('(').unwrap().1.rsplit_once(')').unwrap();
        let fields: Vec<&str> = rest.split_whitespace().collect();
        if state == '?' || fields[0].starts_with(state) {
            return (fields[19].parse().unwrap(), name.to_string());
        }
        assert!(Instant::now() < deadline, "{pid} is not {state}: {text}");
        thread::yield_now();
    }
}

/// The words of `up` and `alive`.
fn is_up(home: &Home) -> (String, Value) {
    let text = home.gate(&["show", ".", "--format", "prometheus"]).ok().out;
    let up = text.lines().find_map(|line| line.strip_prefix("qmail_gate_up ")).unwrap();
    let report = json(&home.gate(&["show", ".", "--format", "json"]).ok().out);
    (up.to_string(), report["alive"].clone())
}

#[test]
fn up_is_about_the_very_process_that_wrote_the_status() {
    if !Path::new("/proc/self/stat").exists() {
        skip("no /proc");
        return;
    }
    let home = Home::new();
    let namespace = fs::metadata("/proc/self/ns/pid").unwrap().ino();
    let told = |process: &str| {
        fs::write(home.path("queue/lock/gatestatus"), status_of(process, 1, "")).unwrap();
        is_up(&home)
    };
    let up = ("1".to_string(), Value::Bool(true));
    let down = ("0".to_string(), Value::Bool(false));
    let mut child = Command::new("sleep").arg("1000").spawn().unwrap();
    let pid = child.id();
    let (start, name) = loop {
        // Between fork and exec it has our name.
        let found = wait_for_state(pid, 'S');
        if found.1 == "sleep" {
            break found;
        }
    };
    let very = format!("{pid}\t{start}\t{name}\t{namespace}");
    assert_eq!(told(&very), up);
    assert_eq!(told(&format!("{pid}")), up, "an earlier gate says no more");
    assert_eq!(told(&format!("{pid}\t{start}\t{name}\t0")), up);
    assert_eq!(told(&format!("{pid}\t{}\t{name}\t{namespace}", start + 1)), down, "a later one");
    assert_eq!(
        told(&format!("{pid}\t{start}\tqmail-rspawn\t{namespace}")),
        down,
        "another program"
    );
    for no_process in ["0", "4194305", "4294967295"] {
        assert_eq!(told(no_process), down, "{no_process}");
    }
    assert_eq!(told(&format!("{pid}")).0, "1");
    let failed = status_of(&very, 1, "").replace("state\tlimits", "state\tfailed");
    fs::write(home.path("queue/lock/gatestatus"), failed).unwrap();
    assert_eq!(is_up(&home), ("0".to_string(), Value::Bool(true)), "it runs without limits");

    let first = wait_for_state(1, '?');
    assert_eq!(told(&format!("1\t{}\t{}\t{namespace}", first.0, first.1)), up, "whoever's it is");

    // SIGKILL, and no process waits for it: it stays a zombie.
    let killed = Command::new("kill").args(["-KILL", &pid.to_string()]).status().unwrap();
    assert!(killed.success());
    wait_for_state(pid, 'Z');
    assert_eq!(told(&very), down, "a zombie");
    assert_eq!(told(&format!("{pid}")), down, "a zombie");
    child.wait().unwrap();
    assert_eq!(told(&very), down);
    let out = home.gate(&["show", "."]).ok().out;
    let gone = "\nthis process is gone; these are its last figures\n\
                if qmail runs, its qmail-rspawn has made no delivery yet, or has no gate (qpatch revert)\n";
    assert!(out.contains(gone), "{out}");
}

#[test]
fn up_of_a_qmail_in_a_container() {
    if !is_root() {
        skip("namespaces take root");
        return;
    }
    if !has("unshare") {
        return;
    }
    // /proc is that of our namespace there, so it has our number of the shell, which becomes sleep.
    let script = "read stat < /proc/self/stat; echo \"$$ $stat\"; exec sleep 1000";
    let mut child = Command::new("unshare")
        .args(["--pid", "--fork", "--kill-child", "sh", "-c", script])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let words: Vec<&str> = line.split_whitespace().collect();
    if words.is_empty() {
        child.wait().unwrap();
        skip("no namespaces here");
        return;
    }
    let (inside, outside) = (words[0], words[1].parse().unwrap());
    assert_eq!(inside, "1");
    let start = loop {
        let (start, name) = wait_for_state(outside, 'S');
        if name == "sleep" {
            break start;
        }
    };
    let home = Home::new();
    let told = |process: &str| {
        fs::write(home.path("queue/lock/gatestatus"), status_of(process, 1, "")).unwrap();
        is_up(&home)
    };
    let up = ("1".to_string(), Value::Bool(true));
    let very = format!("1\t{start}\tsleep\t77");
    assert_eq!(told(&very), up, "the 1 of there is not the 1 of here");
    assert_ne!(told(&format!("1\t{start}\tqmail-rspawn\t77")), up);
    assert_ne!(told(&format!("2\t{start}\tsleep\t77")), up);
    assert_ne!(told(&format!("1\t{}\tsleep\t77", start + 1)), up);
    child.kill().unwrap();
    child.wait().unwrap();
    let deadline = Instant::now() + Duration::from_secs(30);
    while Path::new(&format!("/proc/{outside}/stat")).exists() {
        assert!(Instant::now() < deadline);
        thread::yield_now();
    }
    assert_ne!(told(&very), up);
}

/// The series of a page that are of keys, and those that are counters.
fn series(page: &str) -> (Vec<&str>, Vec<(&str, f64)>) {
    let lines = page.lines().filter_map(|line| line.rsplit_once(' '));
    let lines: Vec<_> = lines.filter(|(name, _)| !name.starts_with('#')).collect();
    let keys = lines.iter().map(|&(name, _)| name).filter(|name| name.contains("key="));
    let counters =
        lines.iter().filter(|(name, _)| name.split('{').next().unwrap().ends_with("_total"));
    let counters = counters.map(|&(name, value)| (name, value.parse().unwrap()));
    (keys.collect(), counters.collect())
}

#[test]
fn keys_of_strangers_have_few_series_and_no_counter_falls() {
    let home = Home::new();
    home.control("concurrencyremote", "400\n");
    home.control("concurrencydomains", ":20\nzz-own.example:3\n.suffix.example:4\n");
    let mut host = home.host(500);
    let mut deliver = |domain: &str, times: u32| {
        for slot in 0..times {
            ask(&mut host, slot, domain);
        }
        for slot in 0..times {
            host.done(slot, DeliveryEnd::Reported(b"r\0Kok\0"));
        }
        thread::sleep(Duration::from_millis(1));
        host.due();
    };
    for number in 0..600 {
        deliver(&format!("s{number}.example"), 1);
        deliver(&format!("s{number}.suffix.example"), 1);
    }
    deliver("zz-own.example", 1);
    deliver("zz-hot.example", 21);
    deliver("zz-busy.example", 15);
    let page = |host_wrote: &mut dyn FnMut()| {
        host_wrote();
        home.gate(&["show", ".", "--format", "prometheus"]).ok().out
    };
    let first = page(&mut || {
        thread::sleep(Duration::from_millis(1050));
        deliver("zz-busy.example", 1);
    });
    let (keys, counters) = series(&first);
    assert!(keys.len() < 11 * 30, "{}\n{first}", keys.len());
    for key in ["own", "hot", "busy"] {
        let name = format!("key=\"zz-{key}.example\"");
        assert!(keys.iter().any(|series| series.contains(&name)), "{name}\n{first}");
    }
    let others = keys.iter().filter(|series| series.contains("other")).count();
    assert_eq!(others, 4, "running, held, away, rate\n{first}");
    let others = first.lines().find_map(|line| line.strip_prefix("qmail_gate_keys_other "));
    let others: u32 = others.unwrap().parse().unwrap();
    assert!(others > 100, "{others}\n{first}");
    let total = |counters: &[(&str, f64)], what: &str| {
        let of = counters.iter().filter(|(name, _)| name.split('{').next() == Some(what));
        of.map(|(_, value)| value).sum::<f64>()
    };
    let left =
        total(&counters, "qmail_gate_done_total") - total(&counters, "qmail_gate_key_done_total");
    assert_eq!(left, 1200.0 - 19.0, "19 of the strangers are among the busiest");

    // One of the strangers comes to its limit, and one becomes the busiest of all.
    let second = page(&mut || {
        deliver("s599.example", 25);
        deliver("s598.example", 19);
        deliver("s597.suffix.example", 3);
        thread::sleep(Duration::from_millis(1050));
        deliver("zz-own.example", 1);
    });
    let (keys, later) = series(&second);
    for key in ["s599", "s598", "s597.suffix"] {
        let name = format!("key=\"{key}.example\"");
        assert!(keys.iter().any(|series| series.contains(&name)), "{name}\n{second}");
        assert!(!first.contains(&name), "{name}\n{first}");
    }
    for (name, value) in &counters {
        let now = later.iter().find(|(later, _)| later == name);
        assert!(now.is_none_or(|(_, now)| now >= value), "{name} fell from {value}");
    }

    let none = home.gate(&["show", ".", "--format", "prometheus", "--busiest", "0"]).ok().out;
    assert!(none.contains("zz-own.example") && none.contains("zz-hot.example"), "{none}");
    assert!(!none.contains("zz-busy.example") && !none.contains("s598.example"), "{none}");
    let run = home.gate(&["show", ".", "--busiest", "1001"]);
    assert_eq!(run.code, 2);
}

#[test]
fn several_spawners_are_merged() {
    let home = Home::new();
    home.control("concurrencydomains", ":20\nbig.example:9:big\n");
    let put = |file: &str, process: &str, running: u32, keys: &str| {
        fs::write(home.path("queue/lock").join(file), status_of(process, running, keys)).unwrap();
    };
    let me = std::process::id().to_string();
    let first = "key|group|big|9|5|0|1|10|5|1|1.0|100|9|0|0||named|0\n\
                 key|domain|only.example|20|1|0|0|1|1|0|0.0|0|20|0|0||-|0\n";
    put("gatestatus", &me, 6, first);
    let alone = home.gate(&["show", ".", "--format", "prometheus"]).ok().out;
    fs::write(home.path("queue/lock/gatestatus.1"), "").unwrap();
    let empty = home.gate(&["show", ".", "--format", "prometheus"]).ok().out;
    assert_eq!(alone, empty, "an empty file has never been written");
    assert!(alone.contains("\nqmail_gate_up 1\n"), "{alone}");

    let second = "key|group|big|9|2|3|4|30|6|2|2.5|200|4|@-9|0|no|named|3\n";
    put("gatestatus.2", &me, 5, second);
    let text = home.gate(&["show", "."]).ok().out;
    let mut lines = text.lines();
    assert_eq!(lines.next().unwrap(), format!("qmail-rspawn {me} (gatestatus): limits count"));
    assert_eq!(lines.next().unwrap(), format!("qmail-rspawn {me} (gatestatus.2): limits count"));
    let now = lines.next().unwrap();
    assert!(
        now.starts_with("now:   11 running and 0 held, of 100 (2 spawners); written "),
        "{now}"
    );
    assert!(text.contains("\never:  180 asked for, 140 done, 4 held, 8 busy answers"), "{text}");
    assert_eq!(text.matches("big").count(), 2, "{text}");
    let row = text.lines().find(|line| line.starts_with("group big")).unwrap();
    let row: Vec<&str> = row.split_whitespace().collect();
    assert_eq!(row[2..10], ["9", "4", "7", "3", "3", "5", "40", "7"], "{text}");
    let report = json(&home.gate(&["show", ".", "--format", "json"]).ok().out);
    assert_eq!(report["spawners"].as_array().unwrap().len(), 2);
    assert_eq!((&report["keys"][0]["mean_ms"], &report["alive"]), (&175.into(), &true.into()));
    let text = home.gate(&["show", ".", "--domain", "big.example"]).ok().out;
    assert!(text.contains("\n  now        7 running, 3 held, 3 away\n"), "{text}");
    let metrics = home.gate(&["show", ".", "--format", "prometheus"]).ok().out;
    for line in [
        "qmail_gate_up{spawner=\"0\"} 1",
        "qmail_gate_up{spawner=\"2\"} 1",
        "qmail_gate_slots 200",
        "qmail_gate_slots_in_use 11",
        "qmail_gate_done_total 140",
        "qmail_gate_key_limit{kind=\"group\",key=\"big\"} 9",
        "qmail_gate_key_running{kind=\"group\",key=\"big\"} 7",
        "qmail_gate_key_done_total{kind=\"group\",key=\"big\",spawner=\"0\"} 10",
        "qmail_gate_key_done_total{kind=\"group\",key=\"big\",spawner=\"2\"} 30",
        "qmail_gate_key_busy_total{kind=\"group\",key=\"big\",spawner=\"2\"} 4",
    ] {
        assert_eq!(metrics.lines().filter(|&found| found == line).count(), 1, "{line}\n{metrics}");
    }

    // A spawner that is gone belongs to an earlier run: qmail-send ends when one of its spawners ends.
    put("gatestatus.2", "4000000000", 5, second);
    let text = home.gate(&["show", "."]).ok().out;
    assert!(
        text.contains("(gatestatus.2): limits count\nthis process is gone; its figures are left out\nnow:   6 running"),
        "{text}"
    );
    let metrics = home.gate(&["show", ".", "--format", "prometheus"]).ok().out;
    for line in [
        "qmail_gate_up{spawner=\"0\"} 1",
        "qmail_gate_up{spawner=\"2\"} 0",
        "qmail_gate_slots 100",
        "qmail_gate_key_running{kind=\"group\",key=\"big\"} 5",
    ] {
        assert!(metrics.lines().any(|found| found == line), "{line}\n{metrics}");
    }
    put("gatestatus", "4000000000", 6, first);
    let metrics = home.gate(&["show", ".", "--format", "prometheus"]).ok().out;
    let line = "qmail_gate_key_running{kind=\"group\",key=\"big\"} 7";
    assert!(metrics.lines().any(|found| found == line), "the last figures of all\n{metrics}");

    // A spawner that has another file since.
    let identity = format!("{me}\t12\tqmail-rspawn\t0");
    put("gatestatus", &identity, 6, first);
    put("gatestatus.2", &identity, 5, second);
    let later = fs::read_to_string(home.path("queue/lock/gatestatus.2")).unwrap();
    let later = later.replace("gate\t1\t7\n", "gate\t1\t8\n").replace("end\t7", "end\t8");
    fs::write(home.path("queue/lock/gatestatus.2"), later).unwrap();
    let metrics = home.gate(&["show", ".", "--format", "prometheus"]).ok().out;
    for line in ["qmail_gate_up 0", "qmail_gate_key_running{kind=\"group\",key=\"big\"} 2"] {
        assert!(metrics.lines().any(|found| found == line), "{line}\n{metrics}");
    }
    put("gatestatus.2", "4000000000", 5, second);

    // The first file may be missing, and an error names the file.
    fs::write(home.path("queue/lock/gatestatus"), "").unwrap();
    assert_eq!(json(&home.gate(&["show", ".", "--format", "json"]).ok().out)["running"], 5);
    fs::write(home.path("queue/lock/gatestatus.63"), "what\n").unwrap();
    let run = home.gate(&["show", "."]);
    assert_eq!(run.code, 1);
    let expected = "qpatch: ./queue/lock/gatestatus.63: not a status file of this version\n";
    assert!(run.err.starts_with(expected), "{}", run.err);
}

#[test]
fn show_refuses_a_status_that_is_not_a_regular_file() {
    let home = Home::new();
    let file = home.path("queue/lock/gatestatus");
    let said = "qpatch: ./queue/lock/gatestatus: not a regular file\n  put a regular file there\n";
    fs::remove_file(&file).unwrap();
    fs::create_dir(&file).unwrap();
    let run = home.gate(&["show", "."]);
    assert_eq!((run.code, run.err.as_str()), (1, said));
    fs::remove_dir(&file).unwrap();
    assert!(Command::new("mkfifo").arg(&file).status().unwrap().success());
    let run = home.gate(&["show", "."]);
    assert_eq!((run.code, run.err.as_str()), (1, said));

    let lock = home.path("queue/lock");
    fs::set_permissions(&lock, Permissions::from_mode(0o0)).unwrap();
    let run = home.gate_as_user(&["show", "."]);
    fs::set_permissions(&lock, Permissions::from_mode(0o755)).unwrap();
    assert_eq!(
        (run.code, run.err.as_str()),
        (
            1,
            "qpatch: ./queue/lock/gatestatus: permission denied\n  run qpatch as root, or as a user of the group that \
             queue/lock belongs to\n"
        )
    );
}

#[test]
fn watch_prints_the_rate_between_two_readings_and_ends_with_its_reader() {
    let home = Home::new();
    home.control("concurrencydomains", ":20\n");
    let mut host = home.host(50);
    let mut deliver = |count: u32| {
        for _ in 0..count {
            assert_eq!(ask(&mut host, 0, "a.example"), Ask::Go);
            host.done(0, DeliveryEnd::Reported(b"r\0Kok\0"));
        }
        thread::sleep(Duration::from_millis(1100));
        host.due();
    };
    deliver(10);
    let mut child = gate(home.0.path(), &["show", ".", "--watch", "1", "--format", "json"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut out = BufReader::new(child.stdout.take().unwrap());
    let mut next = || {
        let mut line = String::new();
        out.read_line(&mut line).unwrap();
        json(&line)
    };
    let first = next();
    assert_eq!(first["keys"][0]["done"], 10);
    deliver(40);
    deliver(0);
    let last = (0..10).map(|_| next()).find(|report| report["keys"][0]["done"] == 50).unwrap();
    let seconds = last["written"].as_u64().unwrap() - first["written"].as_u64().unwrap();
    let rate = last["keys"][0]["per_second"].as_f64().unwrap();
    // Two readings at most ten seconds apart; on a busy machine it is the gate's own rate.
    let least = if seconds <= 4 { 40.0 / (seconds + 4) as f64 } else { 0.1 };
    assert!((least..=40.0).contains(&rate), "{rate} in {seconds} s");
    drop(out);
    assert_eq!(child.wait().unwrap().code(), Some(0), "a reader that goes is no error");
}

#[test]
fn watch_goes_on_when_the_file_goes_and_comes() {
    let home = Home::new();
    let _host = busy_gate(&home);
    let file = home.path("queue/lock/gatestatus");
    let whole = fs::read(&file).unwrap();
    let mut child = gate(home.0.path(), &["show", ".", "--watch", "1"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut out = BufReader::new(child.stdout.take().unwrap());
    let mut err = BufReader::new(child.stderr.take().unwrap());
    let mut said = String::new();
    let mut heads = 0;
    let mut line = String::new();
    while heads < 3 {
        line.clear();
        assert!(out.read_line(&mut line).unwrap() > 0);
        assert!(!line.contains('\x1b'), "no redrawing without a terminal");
        heads += usize::from(line.starts_with("qmail-rspawn "));
        if line.starts_with("KEY ") && heads == 1 {
            fs::remove_file(&file).unwrap();
            err.read_line(&mut said).unwrap();
            fs::write(&file, &whole).unwrap();
        }
    }
    let pid = child.id().to_string();
    assert!(Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
    assert!(!child.wait().unwrap().success(), "ended by the signal");
    assert_eq!(said, "qpatch: ./queue/lock/gatestatus: no such file: this qmail has no gate\n");
}

/// Runs the command in a terminal of its own until it ends or has printed enough, and returns what it printed.
fn on_a_terminal(dir: &Path, args: &str, enough: impl Fn(&str) -> bool) -> String {
    // The time limit is for a command that neither prints nor ends.
    let command = format!("exec timeout 120 {} gate {args}", env!("CARGO_BIN_EXE_qpatch"));
    let mut script = Command::new("script")
        .args(["-qec", &command, "/dev/null"])
        .current_dir(dir)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut out = script.stdout.take().unwrap();
    let mut shown = Vec::new();
    let mut buffer = [0; 4096];
    while !enough(&String::from_utf8_lossy(&shown)) {
        match out.read(&mut buffer).unwrap() {
            0 => break,
            count => shown.extend_from_slice(&buffer[..count]),
        }
    }
    // When the terminal closes, the command in it ends.
    let _ = script.kill();
    script.wait().unwrap();
    String::from_utf8_lossy(&shown).into_owned()
}

#[test]
fn on_a_terminal_it_redraws() {
    if !has("script") || !has("timeout") {
        return;
    }
    let home = Home::new();
    let _host = busy_gate(&home);
    let redrawn = |shown: &str| shown.matches("\x1b[H").count() >= 2;
    let shown = on_a_terminal(home.0.path(), "show . --watch 1", redrawn);
    assert!(redrawn(&shown), "{shown:?}");
    assert!(!shown.contains("\x1b[2J"), "what a server said stays text: {shown:?}");
    let shown = on_a_terminal(home.0.path(), "show .", |_| false);
    assert!(!shown.contains('\x1b') && shown.contains("group busy"), "{shown:?}");
}

// simulate

fn simulate(dir: &Path, log: &[u8]) -> Value {
    let mut child = gate(dir, &["simulate", "limits", "--log", "-", "--format", "json"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let log = log.to_vec();
    let writer = thread::spawn(move || stdin.write_all(&log));
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap().unwrap();
    assert!(output.status.success());
    json(&String::from_utf8(output.stdout).unwrap())
}

#[test]
fn simulate_keeps_every_limit_and_loses_nothing() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("limits"), ":3\na.example:5\n").unwrap();
    // Ten at once for a.example, for 100 s; each takes a second.
    let mut log = String::from("1000.0 status: local 0/10 remote 0/40\n");
    let mut number = 0;
    for second in 0..100 {
        if second > 0 {
            for done in number - 11..number {
                log.push_str(&format!("{}.0 delivery {}: success: ok/\n", 1000 + second, done + 1));
            }
        }
        for at in 0..11 {
            number += 1;
            let domain = if at == 10 { "b.example" } else { "a.example" };
            let start = format!(
                "{}.0 starting delivery {number}: msg 1 to remote u@{domain}\n",
                1000 + second
            );
            log.push_str(&start);
        }
    }
    let report = simulate(dir.path(), log.as_bytes());
    let key = |name: &str| {
        let keys = report["keys"].as_array().unwrap();
        keys.iter().find(|key| key["key"] == name).unwrap().clone()
    };
    let (a, b) = (key("a.example"), key("b.example"));
    assert_eq!((&a["deliveries"], &a["peak_before"]), (&1000.into(), &10.into()));
    assert_eq!(a["peak_with_limits"], 5);
    // For 99 s, twice as much arrives as the limit takes. The rest needs another 99 s, and the time for calling it
    // back.
    let later = report["last_end_later"].as_f64().unwrap();
    assert!((99.0..110.0).contains(&later), "{later}");
    assert!(a["waited"].as_u64().unwrap() >= 990);
    assert!(a["busy_answers"].as_u64().unwrap() > 0, "40 slots do not hold it all");
    assert_eq!(
        (&b["waited"], &b["peak_with_limits"]),
        (&0.into(), &1.into()),
        "the others go on as before"
    );
}

#[test]
fn simulate_reads_every_sort_of_line() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("limits"), ":1\n").unwrap();
    let mut log = b"1.0 starting delivery 1: msg 1 to remote u@a.example\r\n".to_vec();
    for recipient in
        [&b""[..], b"@", b"nobody", b"u@", b"u@[192.0.2.1]", b"u@A.example.", b"\xff@\xff\x00"]
    {
        let number = log.iter().filter(|&&byte| byte == b'\n').count() + 1;
        log.extend_from_slice(
            format!("2.0 starting delivery {number}: msg 1 to remote ").as_bytes(),
        );
        log.extend_from_slice(recipient);
        log.push(b'\n');
    }
    log.extend_from_slice(b"3.0 starting delivery 9: msg 1 to remote u@");
    log.extend_from_slice(&b"x".repeat(10_000));
    log.extend_from_slice(b".example\n4.0 starting delivery 10: msg 1 to remote u@");
    log.extend_from_slice(&b"y".repeat(1_000_000));
    log.extend_from_slice(b"\n5.0 starting delivery 99999999999999999999: msg 1 to remote u@b\n");
    log.extend_from_slice(b"18446744073709551615.0 delivery 1: success: ok/\n");
    log.extend_from_slice(b"9223372036854.0 delivery 2: success: ok/\n6.0 no end of line");
    let report = simulate(dir.path(), &log);
    assert_eq!(report["deliveries"], 10);
    assert_eq!(report["lines"]["starts_only"], 9);
    assert_eq!(report["lines"]["foreign"], 2);
    assert_eq!(report["lines"]["no_stamp"], 1);
    let never_over =
        |key: &Value| key["peak_with_limits"].as_u64().unwrap() <= 1 || key["key"] == "(no @)";
    assert!(report["keys"].as_array().unwrap().iter().all(never_over), "{report}");
}

// library

#[test]
fn the_library_is_what_apply_writes() {
    let dir = tempfile::tempdir().unwrap();
    let output = gate(dir.path(), &["library"]).output().unwrap();
    assert!(output.status.success());
    assert!(output.stdout.starts_with(b"!<arch>\n"), "it is an archive");
    assert!(output.stdout.len() > 100_000);
    assert_eq!(output.stdout, qpatch::patches::gate_library());
    let says = |text: &[u8]| output.stdout.windows(text.len()).any(|window| window == text);
    assert!(says(b"gate_ask") && !says(b"inject"), "c-shim/tests/c.rs says more of that");
    if has("script") && has("timeout") {
        let shown = on_a_terminal(dir.path(), "library", |_| false);
        assert_eq!(
            shown.replace('\r', ""),
            "qpatch: standard output: is a terminal, and a static library is binary\n  \
             write it into a file: qpatch gate library > TREE/gate.a\n"
        );
    }
}

#[test]
fn a_full_disk_is_an_error() {
    let Ok(full) = File::options().write(true).open("/dev/full") else {
        skip("no /dev/full on this machine");
        return;
    };
    let mut command = gate(Path::new("/"), &["library"]);
    let output =
        command.stdout(full).stderr(Stdio::piped()).spawn().unwrap().wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let err = String::from_utf8(output.stderr).unwrap();
    assert!(err.starts_with("qpatch: standard output: No space left on device"), "{err}");
}

#[test]
fn names_of_files_are_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let odd = std::ffi::OsStr::from_bytes(b"\xff\xfe");
    fs::write(dir.path().join(odd), ":20\na.example:1:\n").unwrap();
    let run = run(gate(dir.path(), &["check"]).arg(odd));
    assert_eq!(run.code, 1);
    assert!(run.out.contains(":2:13: error: the group's name is empty\n"), "{}", run.out);
}
