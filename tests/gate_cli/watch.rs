//! `qpatch gate show --watch`, in a pipe and on a terminal.

use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread;
use std::time::Duration;

use qpatch_gate::gate::DeliveryEnd;
use qpatch_gate::host::Ask;
use qpatch_test_support::has;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open, pidfd_send_signal};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::tcgetattr;

use super::{Home, ask, busy_gate, gate, json, on_a_terminal};

/// How long a child may run; the same time as in [`on_a_terminal`].
const PATIENCE: Duration = Duration::from_secs(120);

/// Ends a child after [`PATIENCE`], so that nothing waits for ever for what it prints; unless the sender is dropped.
fn watchdog(child: &Child) -> Sender<()> {
    let process = pidfd_open(Pid::from_child(child), PidfdFlags::empty()).unwrap();
    let (dropped, is_dropped) = mpsc::channel();
    thread::spawn(move || {
        if is_dropped.recv_timeout(PATIENCE) == Err(RecvTimeoutError::Timeout) {
            let _ = pidfd_send_signal(process, Signal::KILL);
        }
    });
    dropped
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
    let _watchdog = watchdog(&child);
    let mut out = BufReader::new(child.stdout.take().unwrap());
    let mut next = || {
        let mut line = String::new();
        assert!(out.read_line(&mut line).unwrap() > 0, "it has ended");
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
    let _watchdog = watchdog(&child);
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

/// What the program writes before it leaves the terminal.
const LEFT: &[u8] = b"\x1b[0m\x1b[?25h\x1b[?1049l";

#[test]
fn q_and_signals_end_it_and_leave_the_terminal_as_it_was() {
    let home = Home::new();
    let _host = busy_gate(&home);
    for signal in [None, Some(Signal::INT), Some(Signal::TERM)] {
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
        grantpt(&master).unwrap();
        unlockpt(&master).unwrap();
        let path = ptsname(&master, Vec::new()).unwrap();
        let terminal =
            OpenOptions::new().read(true).write(true).open(path.to_str().unwrap()).unwrap();
        let settings = || format!("{:?}", tcgetattr(&terminal).unwrap());
        let before = settings();
        // A program that a shell starts in the background ignores SIGINT by default.
        let mut child = Command::new("env")
            .args(["--default-signal=INT", env!("CARGO_BIN_EXE_qpatch"), "gate"])
            .args(["show", ".", "--watch", "3600"])
            .current_dir(home.0.path())
            .env("LC_ALL", "C")
            .env("TERM", "xterm")
            .env_remove("NO_COLOR")
            .stdin(terminal.try_clone().unwrap())
            .stdout(terminal.try_clone().unwrap())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let _watchdog = watchdog(&child);
        let mut master = File::from(master);
        let mut keyboard = master.try_clone().unwrap();
        let mut shown = Vec::new();
        let mut until = |end: &[u8]| {
            let mut buffer = [0; 4096];
            while !shown.windows(end.len()).any(|window| window == end) {
                let mut readable = [PollFd::new(&master, PollFlags::IN)];
                let patience = Timespec::try_from(PATIENCE).unwrap();
                let ready = poll(&mut readable, Some(&patience)).unwrap();
                assert!(ready > 0, "no {:?} in {:?}", end.escape_ascii(), shown.escape_ascii());
                let length = master.read(&mut buffer).unwrap();
                shown.extend_from_slice(&buffer[..length]);
            }
            String::from_utf8_lossy(&shown).into_owned()
        };
        let text = until(b"q quits");
        assert!(text.starts_with("\x1b[?1049h\x1b[?25l\x1b[H"), "{text:?}");
        assert!(
            text.contains("ALLOWED") && text.contains("group busy") && text.contains("########")
        );
        assert!(text.contains("\x1b[33mfull"), "{text:?}");
        assert_ne!(settings(), before, "keys come at once");
        match signal {
            // Other keys do nothing.
            None => keyboard.write_all(b"x\x1b[Aq").unwrap(),
            Some(signal) => kill_process(Pid::from_child(&child), signal).unwrap(),
        }
        let status = child.wait().unwrap();
        assert_eq!(status.signal(), signal.map(Signal::as_raw), "{status}");
        assert_eq!(status.success(), signal.is_none());
        until(LEFT);
        assert_eq!(settings(), before);
    }
}
