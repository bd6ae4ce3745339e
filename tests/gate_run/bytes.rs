//! qmail-rspawn's pipes, byte by byte.

use std::io::{Read, Write};
use std::os::unix::process::CommandExt;
use std::process::{self, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};

use qpatch::fixture::Dialect;
use qpatch::verify::rig::protocol::{Command, Report, Width};
use qpatch::verify::rig::spawner::IDLE;
use qpatch::verify::rig::stub::{self, Mode};
use qpatch::verify::sandbox::private_tree::Sandbox;

use super::{BUSY, SENDER, gated};
use crate::common::run;
use crate::rig::{Rig, config};
use crate::trees::{Gate, patched};

/// qmail-rspawn without the rig: bytes in, bytes out.
struct Raw {
    child: process::Child,
    input: Option<process::ChildStdin>,
    output: process::ChildStdout,
    bytes: Vec<u8>,
    read: usize,
    /// Gets a message for all output, and is dropped at the end: a watchdog kills a qmail-rspawn that does not answer.
    alive: mpsc::Sender<()>,
}

impl Raw {
    /// Starts it, and reads the two bytes that it writes first.
    fn start(sandbox: &Sandbox) -> Raw {
        let mut command = process::Command::new(sandbox.home().join("bin/qmail-rspawn"));
        if sandbox.identity().changes() {
            command.uid(sandbox.identity().uid()).gid(sandbox.identity().gid());
        }
        let mut child = command
            .env("PATH", sandbox.home().join("bin"))
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let input = child.stdin.take();
        let output = child.stdout.take().unwrap();
        let pid = child.id().to_string();
        let (alive, watched) = mpsc::channel();
        std::thread::spawn(move || {
            while match watched.recv_timeout(IDLE) {
                Ok(()) => true,
                Err(RecvTimeoutError::Disconnected) => false,
                Err(RecvTimeoutError::Timeout) => {
                    run(process::Command::new("sh").args(["-c", "kill -KILL $0", &pid]));
                    false
                }
            } {
                // It goes on.
            }
        });
        let mut raw = Raw { child, input, output, bytes: vec![0; 2], read: 2, alive };
        raw.output.read_exact(&mut raw.bytes).unwrap();
        raw
    }

    fn write(&mut self, bytes: &[u8]) {
        self.input.as_mut().unwrap().write_all(bytes).unwrap();
    }

    /// The next report.
    fn report(&mut self) -> Report {
        loop {
            if let Some((report, len)) = Report::decode(&self.bytes[self.read..], Width::Two) {
                self.read += len;
                self.alive.send(()).unwrap();
                return report;
            }
            let mut byte = [0];
            self.output.read_exact(&mut byte).unwrap_or_else(|e| panic!("no report: {e}"));
            self.bytes.push(byte[0]);
        }
    }

    /// Ends its input, and returns all that it has written.
    fn end(mut self) -> Vec<u8> {
        self.input = None;
        self.output.read_to_end(&mut self.bytes).unwrap();
        assert_eq!(self.child.wait().unwrap().code(), Some(0));
        self.bytes
    }
}

#[test]
fn a_held_delivery_does_not_start_in_the_middle_of_a_command() {
    let mut rig = gated(&["qmail-rspawn"], &format!("{BUSY}:1\n"), 200);
    rig.stubs.forget();
    rig.stubs.hold("first").unwrap();
    let message = rig.message.relative();
    let command = |number, recipient: String| {
        let sender = SENDER.to_owned();
        Command { number, message: message.clone(), sender, recipient }.encode(Width::Two)
    };
    let mut raw = Raw::start(&rig.sandbox);
    raw.write(&command(1, stub::recipient(Mode::Accept, Some("first"), "first", BUSY)));
    raw.write(&command(2, stub::recipient(Mode::Defer, None, "second", BUSY)));
    let third = command(3, stub::recipient(Mode::Bounce, None, "third", "elsewhere.example"));
    // Cut in its number, in its message, in its sender and in its recipient.
    for cut in [1, 4, third.len() / 2, third.len() - 5] {
        raw.write(&third[..cut]);
        rig.stubs.release("first").unwrap();
        let report = raw.report();
        assert_eq!((report.number, report.letter), (1, b'K'), "{report:?}");
        raw.write(&third[cut..]);
        // In either order: the third is started before the second, but they run at the same time.
        let mut reports = [raw.report(), raw.report()];
        reports.sort_by_key(|report| report.number);
        let [second, third_report] = &reports;
        assert_eq!((second.number, second.letter), (2, b'Z'), "{reports:?}");
        assert!(second.text.contains("z-none-second@busy.example"), "{reports:?}");
        assert_eq!((third_report.number, third_report.letter), (3, b'D'), "{reports:?}");
        assert!(third_report.text.contains("d-none-third@elsewhere.example"), "{reports:?}");
        // Once more.
        rig.stubs.hold("first").unwrap();
        raw.write(&command(1, stub::recipient(Mode::Accept, Some("first"), "first", BUSY)));
        raw.write(&command(2, stub::recipient(Mode::Defer, None, "second", BUSY)));
    }
    rig.stubs.release("first").unwrap();
    raw.report();
    raw.report();
    raw.end();
}

#[test]
fn without_limits_the_pipes_carry_the_same_bytes_as_without_the_gate() {
    for dialect in Dialect::ALL {
        let mut seen = Vec::new();
        for gate in [Gate::Out, Gate::In] {
            let fixture = patched(dialect, gate);
            let rig = Rig::of(fixture.path(), &config(1000, &[]), &["qmail-rspawn"]).unwrap();
            rig.sandbox.write(&rig.sandbox.home().join("queue/lock/gatestatus"), b"").unwrap();
            rig.sandbox
                .set_control("smtproutes", "busy.example:relay.example\n:other.example\n")
                .unwrap();
            let message = rig.message.relative();
            let mut commands = Vec::new();
            let mut push = |number, message: &str, recipient: String| {
                commands.push(Command {
                    number,
                    message: message.to_owned(),
                    sender: SENDER.to_owned(),
                    recipient,
                });
            };
            for (at, mode) in Mode::ALL.into_iter().enumerate() {
                for number in [at as u32, 255, 256, 999] {
                    push(number, &message, stub::recipient(mode, None, number, BUSY));
                }
            }
            let good = || stub::recipient(Mode::Accept, None, 1, BUSY);
            for number in [0, 999, 1000, 32768, 65535] {
                push(number, &message, good());
                push(number, "x/1", good());
                push(number, "", good());
                push(number, &"1".repeat(120), good());
                push(number, "0/999999999999", good());
                push(number, &message, "nobody".to_owned());
                push(number, &message, String::new());
                push(number, &message, "k-none-1@[127.0.0.1]".to_owned());
                push(number, &message, format!("k-none-1@{}.example.", "x".repeat(1000)));
                push(number, &message, "k-none-1@".to_owned());
            }
            // One at a time, because deliveries that run at the same time end in any order.
            let mut raw = Raw::start(&rig.sandbox);
            for command in &commands {
                raw.write(&command.encode(Width::Two));
                let report = raw.report();
                assert_eq!(report.number, command.number, "{command:?}: {report:?}");
            }
            seen.push(raw.end());
        }
        assert!(seen[0] == seen[1], "{}", dialect.name());
    }
}
