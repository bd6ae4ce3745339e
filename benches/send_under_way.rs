//! What a delivery costs qmail-send while others are under way: `cargo bench --bench send_under_way [-- TREE]`.
//!
//! The same tree (without TREE the fixture) with the patch free-slots and without, conf-spawn 65000, in turn. The bench
//! plays the spawners: HELD deliveries, each of a message of its own, get no answer, and all others succeed at once.
//! Printed is the processor time of qmail-send for one report, with the next delivery that it starts, and its ratio to
//! that with the fewest held.

mod rig;

use std::path::Path;

use qpatch::verify::build;
use qpatch::verify::proofs::mail::empty_queue;
use qpatch::verify::rig::protocol::{Report, Width};
use qpatch::verify::rig::sendrig::{PROGRAMS, SendRig, Spawners};
use qpatch::verify::rig::spawner::Channel;
use qpatch::verify::rig::stub::Stubs;
use qpatch::verify::sandbox::limits::Raised;
use qpatch::verify::sandbox::private_tree::Sandbox;
use qpatch::verify::sandbox::scratch::Scratch;
use rig::used_us;

const SPAWN: u32 = 65000;
const HELD: [u32; 4] = [100, 1000, 9900, 30_000];
/// Free while the others are held.
const AT_ONCE: usize = 10;
const REPORTS: usize = 2000;
const ROUNDS: usize = 3;

struct Subject {
    sandbox: Sandbox,
    stubs: Stubs,
}

impl Subject {
    fn build(scratch: &Scratch, tree: &Path, name: &str, flags: &[&str]) -> Subject {
        let sandbox = rig::patched(scratch, tree, name, SPAWN, flags);
        build::make(&sandbox, &PROGRAMS).expect("the tree builds");
        for program in PROGRAMS {
            build::install(&sandbox, program).expect("a program");
        }
        let stubs = Stubs::install(&sandbox).expect("the stubs");
        Subject { sandbox, stubs }
    }

    /// Returns microseconds a report beside `held` deliveries without one.
    fn round(&mut self, held: u32) -> f64 {
        let held = held as usize;
        let all = held + AT_ONCE + REPORTS;
        empty_queue(&self.sandbox).expect("an empty queue");
        self.sandbox.set_control("concurrencylocal", "10\n").expect("a control file");
        let limit = format!("{}\n", held + AT_ONCE);
        self.sandbox.set_control("concurrencyremote", &limit).expect("a control file");
        for number in 0..all {
            let recipients = [format!("r{number}@remote.example")];
            self.sandbox
                .queue_message(b"Subject: bench\n\nx\n", "sender@sender.example", &recipients)
                .expect("a message");
        }
        let stubs = &mut self.stubs;
        let played = Spawners::Played { width: Width::Two, spawn: SPAWN };
        let mut send = SendRig::start(&self.sandbox, played).expect("qmail-send starts");
        let mut waiting = Vec::new();
        send.wait(stubs, "all messages", |send, _| {
            waiting.extend(commands(send));
            Ok(waiting.len() >= held + AT_ONCE && send.log().new_messages >= all)
        })
        .expect("they are read");
        // Those that came last: the numbers below theirs are in use.
        let mut free = waiting.split_off(held);
        let process = send.process().id();
        let before = used_us(process);
        let mut reported = 0;
        send.wait(stubs, "the reports", |send, _| {
            free.extend(commands(send));
            for number in free.drain(..) {
                report(send, number);
                reported += 1;
            }
            Ok(send.log().ended >= REPORTS)
        })
        .expect("they are taken");
        let us = (used_us(process) - before) / send.log().ended as f64;
        for number in waiting {
            report(&mut send, number);
        }
        send.wait(stubs, "the held deliveries", |send, _| {
            for number in commands(send) {
                report(send, number);
            }
            Ok(send.log().ended >= all)
        })
        .expect("they end");
        send.terminate().expect("a signal");
        send.wait_exit(stubs).expect("qmail-send ends");
        us
    }
}

fn remote(send: &mut SendRig) -> usize {
    let relays = send.relays();
    relays.iter().position(|relay| relay.channel() == Channel::Remote).expect("a remote channel")
}

fn commands(send: &mut SendRig) -> Vec<u32> {
    let at = remote(send);
    send.relays()[at].take_commands().iter().map(|command| command.number).collect()
}

fn report(send: &mut SendRig, number: u32) {
    let at = remote(send);
    send.relays()[at].report(&Report { number, letter: b'K', text: "ok\n".to_owned() });
}

fn main() {
    let (tree, _folder) = rig::tree();
    let _limits = Raised::raise();
    let scratch = rig::scratch(&tree);
    let ways: [(&str, &[&str]); 2] = [("free-slots", &[]), ("search", &["--skip", "free-slots"])];
    let mut subjects =
        ways.map(|(name, flags)| (name, Subject::build(&scratch, &tree, name, flags)));
    println!("qmail-send at conf-spawn {SPAWN}, us a report, medians of {ROUNDS} rounds");
    rig::under_way(ROUNDS, &HELD, &mut subjects, Subject::round);
}
