//! `qpatch gate`: what goldens cannot have (FIFOs, huge files, a gate that runs, a terminal). The goldens are in
//! `cargo test --test cases`.

#[path = "../common/mod.rs"]
mod common;

mod check;
mod init;
mod prometheus;
mod show;
mod simulate;
mod watch;

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use common::{Run, run};
use qpatch_gate::command::Parts;
use qpatch_gate::gate::DeliveryEnd;
use qpatch_gate::host::{Ask, Host};
use qpatch_gate::problem;
use qpatch_test_support::{has, skip};
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

/// A status file of this process, with what may follow its number on the line, and these keys.
fn status_of(process: &str, running: u32, keys: &str) -> String {
    let text = status_with(keys);
    let slots = format!("slots\t100\t50\t{running}\t0");
    let pid = format!("pid\t{}\n", std::process::id());
    text.replace(&pid, &format!("pid\t{process}\n")).replace("slots\t100\t100\t14\t2", &slots)
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
