//! What the fork server of a patched tree must do: a delivery by the server sees the same as an executed
//! qmail-remote, and many of them run at once.
#![forbid(unsafe_code)]

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use super::spawner_trials::{self, OnProgress};
use crate::qmail::remote_status::RemoteStatus;
use crate::verify::build;
use crate::verify::error::Error;
use crate::verify::rig::numbers::Random;
use crate::verify::rig::protocol::Command;
use crate::verify::rig::spawner::{Channel, Spawner};
use crate::verify::rig::stub::Stubs;
use crate::verify::sandbox::private_tree::{MessageId, Sandbox};

const VIEW_C: &str = include_str!("../rig/view.c");
/// The longest time until qmail-rspawn uses the fork server.
const PATIENCE: Duration = Duration::from_secs(120);

/// More deliveries than this at once show nothing new.
const CROWD: u32 = 500;

/// Returns whether a tree has the fork server.
pub fn is_in(tree: &Path) -> bool {
    tree.join("remote_start.h").is_file() && tree.join("remote_serve.c").is_file()
}

/// The result of the proof.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ForkServerTrial {
    /// It works.
    Works {
        /// Facts that are the same in a delivery by the server and in one by exec.
        facts: usize,
        /// Deliveries that ran at the same time.
        at_once: usize,
        /// How many of them the server made.
        by_server: u64,
    },
    /// There is none on this machine; the reason.
    Unavailable(String),
}

/// Compares a delivery by exec with one by the server, and then runs up to 500 at the same time, as `room` allows.
///
/// # Errors
/// A fact differs between the two deliveries, or most deliveries were not made by the server.
pub fn prove(
    sandbox: &Sandbox,
    stubs: &mut Stubs,
    room: u32,
    random: &mut Random,
    on_progress: OnProgress<'_>,
) -> Result<ForkServerTrial, Error> {
    // The trials with qmail-send empty the queue, so the message is added after them.
    let message = sandbox.add_message(b"Subject: fork server\n\nhello\n")?;
    sandbox.set_control("remoteserver", "1000\n")?;
    let path = sandbox.home().join("control/remoteserver");
    let shown = compared(sandbox, stubs, message).and_then(|compared| match compared {
        Comparison::Unavailable(why) => Ok(ForkServerTrial::Unavailable(why)),
        Comparison::Same(facts) => {
            let (at_once, by_server) = crowd(sandbox, stubs, message, room, random, on_progress)?;
            Ok(ForkServerTrial::Works { facts, at_once, by_server })
        }
    });
    fs::remove_file(&path).map_err(Error::file("remove", &path))?;
    shown
}

/// The result of the comparison.
enum Comparison {
    /// Both saw the same facts; their number.
    Same(usize),
    /// There is no fork server on this machine; the reason.
    Unavailable(String),
}

/// Installs view.c as qmail-remote, compares, and puts the stub back.
fn compared(sandbox: &Sandbox, stubs: &mut Stubs, message: MessageId) -> Result<Comparison, Error> {
    let program = sandbox.home().join("bin/qmail-remote");
    let stub = fs::read_link(&program).map_err(Error::file("read the link", &program))?;
    build::compile_own(sandbox, "view.c", VIEW_C, "view", &build::fork_server_options(sandbox))?;
    link(sandbox, &sandbox.rig().join("view"), &program)?;
    let compared = compare(sandbox, stubs, message);
    link(sandbox, &stub, &program)?;
    compared
}

/// Makes `link` a symbolic link to `to`.
fn link(sandbox: &Sandbox, to: &Path, link: &Path) -> Result<(), Error> {
    fs::remove_file(link).map_err(Error::file("remove", link))?;
    std::os::unix::fs::symlink(to, link).map_err(Error::file("make", link))?;
    sandbox.identity().chown(link)
}

/// Compares what a delivery by exec sees with what a delivery by the server sees.
fn compare(sandbox: &Sandbox, stubs: &mut Stubs, message: MessageId) -> Result<Comparison, Error> {
    let mut spawner = Spawner::start(sandbox, stubs, Channel::Remote)?;
    let executed = view(&mut spawner, stubs, message)?;
    let end = Instant::now() + PATIENCE;
    let served = loop {
        let seen = view(&mut spawner, stubs, message)?;
        if let Some(status) = RemoteStatus::read(sandbox.home()).into_iter().next() {
            if !status.reason.is_empty() {
                return Ok(Comparison::Unavailable(status.reason));
            }
            // The delivery before this status may still have been by exec, so look at the next one.
            if status.server != 0 {
                break view(&mut spawner, stubs, message)?;
            }
        }
        if Instant::now() > end {
            return Err(Error::disproved(
                "qmail-rspawn with control/remoteserver",
                "a fork server after a few deliveries",
                format!(
                    "none after {} s; the last delivery saw {} facts",
                    PATIENCE.as_secs(),
                    seen.len()
                ),
                "",
            ));
        }
    };
    spawner.close_input();
    spawner.wait_exit(stubs)?;
    // An executed program inherits the descriptors that verify was started with; a server closes them.
    let is_other = |line: &&String| {
        let number = line.strip_prefix("fd ").and_then(|rest| rest.split(' ').next());
        number.and_then(|number| number.parse::<u32>().ok()).is_some_and(|number| number > 2)
    };
    let wanted: BTreeSet<&String> = executed.iter().filter(|line| !is_other(line)).collect();
    let found: BTreeSet<&String> = served.iter().collect();
    let shown = |lines: Vec<&&String>| match lines.first() {
        Some(line) => format!("{line:?}"),
        None => "nothing of the kind".to_owned(),
    };
    if wanted == found && wanted.len() > 3 {
        return Ok(Comparison::Same(wanted.len()));
    }
    Err(Error::disproved(
        "what qmail-remote sees when the fork server makes a delivery",
        shown(wanted.difference(&found).collect()),
        shown(found.difference(&wanted).collect()),
        "without control/remoteserver every delivery is executed; please report this with the tree's name",
    ))
}

/// Runs one delivery, and returns the lines that view.c reports.
fn view(
    spawner: &mut Spawner,
    stubs: &mut Stubs,
    message: MessageId,
) -> Result<Vec<String>, Error> {
    spawner.send(&Command {
        number: 0,
        message: message.relative(),
        sender: "sender@sender.example".to_owned(),
        recipient: "recipient@remote.example".to_owned(),
    });
    spawner.wait(stubs, "the report of a delivery", |seen| seen.reports >= 1)?;
    let reports = spawner.take_reports();
    let report = &reports[0];
    if report.letter != b'K' {
        return Err(Error::disproved("a delivery with the fork server", "K", report.shown(), ""));
    }
    Ok(report.text.lines().map(str::to_owned).collect())
}

/// Runs many deliveries at once. Returns how many, and how many deliveries the server made in all.
fn crowd(
    sandbox: &Sandbox,
    stubs: &mut Stubs,
    message: MessageId,
    room: u32,
    random: &mut Random,
    on_progress: OnProgress<'_>,
) -> Result<(usize, u64), Error> {
    let mut spawner = Spawner::start(sandbox, stubs, Channel::Remote)?;
    let numbers: Vec<u32> = (0..room.min(CROWD).min(sandbox.spawn()).max(1)).collect();
    // The first deliveries are by exec, until the server runs.
    spawner_trials::each_letter(&mut spawner, stubs, message, &numbers[..1])?;
    let at_once =
        spawner_trials::at_once(&mut spawner, stubs, message, &numbers, random, on_progress)?;
    // qmail-rspawn writes its status at a delivery, at most once a second.
    let end = Instant::now() + PATIENCE;
    loop {
        spawner_trials::each_letter(&mut spawner, stubs, message, &numbers[..1])?;
        let status = RemoteStatus::read(sandbox.home()).into_iter().next();
        let by_server = status.as_ref().map_or(0, |status| status.by_server);
        if by_server * 2 > at_once as u64 {
            spawner.close_input();
            spawner.wait_exit(stubs)?;
            return Ok((at_once, by_server));
        }
        if Instant::now() > end {
            return Err(Error::disproved(
                format!("qmail-rspawn with control/remoteserver, {at_once} deliveries"),
                "most of them made by the fork server",
                match status {
                    Some(status) => format!("{by_server}; {}", status.reason),
                    None => "no word of qmail-rspawn in queue/lock/remotestatus".to_owned(),
                },
                "",
            ));
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}
