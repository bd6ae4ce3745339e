//! What a spawner must do. Each trial takes a running [`Spawner`], and returns figures or an error that says what was
//! wrong:
//!
//! - [`at_once`]: many deliveries at once, each with a report of its own.
//! - [`each_letter`]: K, Z and D for chosen numbers.
//! - [`refusals`]: bad commands are refused.
//! - [`failures`]: a delivery that cannot be started is refused, and its slot is free again.
//! - [`end_of_input`]: after the end of its input, a spawner reports what runs, and exits.
#![forbid(unsafe_code)]

use std::collections::HashMap;

use crate::sys::Resource;
use crate::verify::error::Error;
use crate::verify::rig::numbers::Random;
use crate::verify::rig::protocol::{Command, Report, Width};
use crate::verify::rig::spawner::{Channel, Spawner};
use crate::verify::rig::stub::{self, Mode, Stubs};
use crate::verify::sandbox::private_tree::{MessageId, Sandbox};

/// The envelope sender of every delivery.
const SENDER: &str = "sender@sender.example";

/// What the report of a delivery must say.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Expected {
    mode: Mode,
    recipient: String,
}

impl Expected {
    fn shown(&self) -> String {
        let letter = char::from(self.mode.report());
        if self.mode.names_recipient() {
            format!("{letter} naming {}", self.recipient)
        } else {
            letter.to_string()
        }
    }

    fn is_met_by(&self, report: &Report) -> bool {
        let is_said = if self.mode.names_recipient() {
            report.text.contains(&self.recipient)
        } else {
            // A stub that crashes says nothing. Do not take the spawner's message that it never started the delivery
            // for the end of that stub.
            !report.text.starts_with("Internal error: ")
        };
        report.letter == self.mode.report() && is_said
    }
}

fn domain(channel: Channel) -> &'static str {
    match channel {
        Channel::Local => "local.example",
        Channel::Remote => "remote.example",
    }
}

/// Returns the usual cause of a wrong or missing report for `number`; empty if unknown.
fn likely_cause(number: u32, found: &str) -> String {
    if number >= 32768 && found.contains("negative") {
        "the high byte of a delivery number is read as a signed char, as in the classic patch: every number from 32768 \
         on is lost; qpatch apply (big-concurrency) repairs it"
            .to_owned()
    } else if found.contains("in use") {
        "a slot was not freed, or two delivery numbers are taken for one".to_owned()
    } else if found.contains("unable to fork") || found.contains("unable to create pipe") {
        "this machine's limits are lower than they looked; try a smaller --spawn".to_owned()
    } else {
        String::new()
    }
}

/// Checks that each delivery has one report, with its own number, letter and recipient.
fn compare(
    channel: Channel,
    expected: &HashMap<u32, Expected>,
    reports: &[Report],
) -> Result<(), Error> {
    let mut first: HashMap<u32, &Report> = HashMap::new();
    let mut wrong: Vec<(u32, String, String)> = Vec::new();
    for report in reports {
        match (expected.get(&report.number), first.insert(report.number, report)) {
            (None, _) => wrong.push((
                report.number,
                "no report: nothing was sent".to_owned(),
                report.shown(),
            )),
            (Some(wanted), Some(before)) => {
                wrong.push((
                    report.number,
                    format!("{} once", wanted.shown()),
                    format!("{} and {}", before.shown(), report.shown()),
                ));
            }
            (Some(wanted), None) if !wanted.is_met_by(report) => {
                wrong.push((report.number, wanted.shown(), report.shown()));
            }
            (Some(_), None) => {}
        }
    }
    for (number, wanted) in expected {
        if !first.contains_key(number) {
            wrong.push((*number, wanted.shown(), "no report".to_owned()));
        }
    }
    wrong.sort();
    let count = wrong.len();
    let Some((number, wanted, found)) = wrong.into_iter().next() else { return Ok(()) };
    let mut next = likely_cause(number, &found);
    if count > 1 {
        let more = format!("{count} mistakes in all, among {} deliveries", expected.len());
        next = if next.is_empty() { more } else { format!("{more}; {next}") };
    }
    Err(Error::disproved(format!("{channel}, delivery number {number}"), wanted, found, next))
}

/// Receives the progress of a trial: how much is done, and how much there is.
pub(crate) type OnProgress<'t> = &'t mut dyn FnMut(u64, u64);

/// The command that starts a delivery of `message` under `number`.
fn command(number: u32, message: MessageId, recipient: String) -> Command {
    Command { number, message: message.relative(), sender: SENDER.to_owned(), recipient }
}

/// Starts a delivery for each of `numbers`, waits until all run at the same time, releases them, and compares the
/// reports. Each delivery has a random mode of the stub.
///
/// Returns how many ran at the same time, which is `numbers.len()`.
///
/// # Errors
/// Fewer ran at the same time, or a report was wrong or missing.
pub fn at_once(
    spawner: &mut Spawner,
    stubs: &mut Stubs,
    message: MessageId,
    numbers: &[u32],
    random: &mut Random,
    on_progress: OnProgress<'_>,
) -> Result<usize, Error> {
    let channel = spawner.channel();
    stubs.forget();
    stubs.hold("all")?;
    let mut expected = HashMap::new();
    for number in numbers {
        // Two of three deliveries are plain K, Z or D; the rest have any mode.
        let modes = if random.below(3) == 0 { &Mode::ALL[..] } else { &Mode::ALL[..3] };
        let mode = modes[random.below(modes.len() as u32) as usize];
        let recipient = stub::recipient(mode, Some("all"), number, domain(channel));
        spawner.send(&command(*number, message, recipient.clone()));
        expected.insert(*number, Expected { mode, recipient });
    }
    let total = numbers.len();
    let goal = 2 * total as u64;
    spawner.wait(stubs, &format!("{total} deliveries to start"), |seen| {
        on_progress(seen.started as u64, goal);
        // A delivery that is refused at once has a report and never starts.
        seen.started + seen.reports >= total
    })?;
    let running = stubs.counts().0 - stubs.counts().1;
    stubs.release("all")?;
    spawner.wait(stubs, &format!("{total} reports"), |seen| {
        on_progress((total + seen.reports) as u64, goal);
        seen.reports >= total
    })?;
    let reports = spawner.take_reports();
    compare(channel, &expected, &reports)?;
    if running < total {
        return Err(Error::disproved(
            format!("{channel}, deliveries at the same time"),
            total.to_string(),
            running.to_string(),
            "",
        ));
    }
    Ok(running)
}

/// Runs a delivery with K, then with Z, then with D for each of `numbers`. Returns the number of deliveries.
///
/// # Errors
/// A report was wrong or missing.
pub fn each_letter(
    spawner: &mut Spawner,
    stubs: &mut Stubs,
    message: MessageId,
    numbers: &[u32],
) -> Result<usize, Error> {
    let channel = spawner.channel();
    let mut done = 0;
    for mode in [Mode::Accept, Mode::Defer, Mode::Bounce] {
        stubs.forget();
        let mut expected = HashMap::new();
        for number in numbers {
            let recipient = stub::recipient(mode, None, number, domain(channel));
            spawner.send(&command(*number, message, recipient.clone()));
            expected.insert(*number, Expected { mode, recipient });
        }
        spawner.wait(stubs, &format!("{} reports", numbers.len()), |seen| {
            seen.reports >= numbers.len()
        })?;
        let reports = spawner.take_reports();
        compare(channel, &expected, &reports)?;
        done += numbers.len();
    }
    Ok(done)
}

/// What [`refusals`] found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Refusals {
    /// How many bad commands were refused under their own number.
    pub answered: usize,
    /// Faults that do no harm at this conf-spawn.
    pub notes: Vec<String>,
}

/// Sends commands that must be refused, for each of `numbers`, and commands with numbers that do not exist.
///
/// # Errors
/// A command was not refused once, under its own number.
pub fn refusals(
    spawner: &mut Spawner,
    stubs: &mut Stubs,
    sandbox: &Sandbox,
    message: MessageId,
    numbers: &[u32],
) -> Result<Refusals, Error> {
    let channel = spawner.channel();
    let domain = domain(channel);
    let mut found = Refusals::default();
    stubs.forget();

    let good = stub::recipient(Mode::Accept, None, "good", domain);
    let long = "1".repeat(120);
    let bad: [(&str, &str, &str); 5] = [
        ("a message name with letters", "x/1", &good),
        ("a message name that is too long", &long, &good),
        ("an empty message name", "", &good),
        ("a recipient without @", &message.relative(), "nobody"),
        ("a message that is not there", "0/999999999999", &good),
    ];
    for number in numbers {
        for (_, message, recipient) in bad {
            spawner.send(&Command {
                number: *number,
                message: message.to_owned(),
                sender: SENDER.to_owned(),
                recipient: recipient.to_owned(),
            });
        }
    }
    let total = numbers.len() * bad.len();
    spawner.wait(stubs, &format!("{total} refusals"), |seen| seen.reports >= total)?;
    // The spawner refuses a command when it reads it, so the reports have the order of the commands.
    let reports = spawner.take_reports();
    let sent =
        numbers.iter().flat_map(|number| bad.iter().map(move |(what, _, _)| (*number, *what)));
    for ((number, what), report) in sent.zip(&reports) {
        if report.number != number || !matches!(report.letter, b'Z' | b'D') {
            return Err(Error::disproved(
                format!("{channel}, {what}, delivery number {number}"),
                format!("Z or D for number {number}"),
                format!("{} for number {}", report.shown(), report.number),
                likely_cause(number, &report.text),
            ));
        }
    }
    found.answered += total;

    found.answered += in_use(spawner, stubs, message, numbers)?;
    too_big(spawner, stubs, sandbox, message, &mut found)?;
    Ok(found)
}

/// Sends a second command for each of `numbers` while its delivery runs: the command is refused, and the delivery
/// goes on.
fn in_use(
    spawner: &mut Spawner,
    stubs: &mut Stubs,
    message: MessageId,
    numbers: &[u32],
) -> Result<usize, Error> {
    let channel = spawner.channel();
    stubs.forget();
    stubs.hold("used")?;
    let mut expected = HashMap::new();
    for number in numbers {
        let recipient = stub::recipient(Mode::Accept, Some("used"), number, domain(channel));
        spawner.send(&command(*number, message, recipient.clone()));
        expected.insert(*number, Expected { mode: Mode::Accept, recipient });
    }
    spawner.wait(stubs, &format!("{} deliveries to start", numbers.len()), |seen| {
        seen.started + seen.reports >= numbers.len()
    })?;
    let early = spawner.take_reports();
    if !early.is_empty() {
        return compare(channel, &expected, &early).map(|()| 0);
    }
    for number in numbers {
        spawner.send(&command(
            *number,
            message,
            stub::recipient(Mode::Accept, None, "intruder", domain(channel)),
        ));
    }
    spawner.wait(stubs, &format!("{} refusals", numbers.len()), |seen| {
        seen.reports >= numbers.len()
    })?;
    for (number, report) in numbers.iter().zip(spawner.take_reports()) {
        if report.number != *number || report.letter != b'Z' {
            return Err(Error::disproved(
                format!("{channel}, delivery number {number} used twice"),
                format!("Z for number {number}"),
                format!("{} for number {}", report.shown(), report.number),
                "",
            ));
        }
    }
    stubs.release("used")?;
    spawner
        .wait(stubs, &format!("{} reports", numbers.len()), |seen| seen.reports >= numbers.len())?;
    let reports = spawner.take_reports();
    compare(channel, &expected, &reports)?;
    Ok(2 * numbers.len())
}

/// Sends commands with numbers from conf-spawn on: each is refused under its own number.
fn too_big(
    spawner: &mut Spawner,
    stubs: &mut Stubs,
    sandbox: &Sandbox,
    message: MessageId,
    found: &mut Refusals,
) -> Result<(), Error> {
    let channel = spawner.channel();
    let top = match spawner.width() {
        Width::One => 255,
        Width::Two => 65535,
    };
    let numbers: Vec<u32> =
        [sandbox.spawn(), sandbox.spawn() + 1, 255, 256, 32767, 32768, 33023, 65534, 65535]
            .into_iter()
            .filter(|number| (sandbox.spawn()..=top).contains(number))
            .collect();
    for number in &numbers {
        spawner.send(&command(
            *number,
            message,
            stub::recipient(Mode::Accept, None, "toobig", domain(channel)),
        ));
    }
    spawner.wait(stubs, &format!("{} refusals", numbers.len()), |seen| {
        seen.reports >= numbers.len()
    })?;
    let mut signed = None;
    for (number, report) in numbers.iter().zip(spawner.take_reports()) {
        if report.number != *number || !matches!(report.letter, b'Z' | b'D') {
            return Err(Error::disproved(
                format!(
                    "{channel}, delivery number {number}, which does not exist at conf-spawn {}",
                    sandbox.spawn()
                ),
                format!("Z or D for number {number}"),
                format!("{} for number {}", report.shown(), report.number),
                likely_cause(*number, &report.text),
            ));
        }
        if report.text.contains("negative") {
            signed.get_or_insert(*number);
        }
    }
    if let Some(number) = signed {
        found.notes.push(format!(
            "{channel} takes delivery number {number} for a negative one (the classic patch's sign bug): harmless at \
             conf-spawn {}, fatal from 32769 on; qpatch apply (big-concurrency) repairs it",
            sandbox.spawn()
        ));
    }
    found.answered += numbers.len();
    Ok(())
}

/// What [`failures`] found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FailedStarts {
    /// The number of deliveries that could not be started. They were refused, and their slots were free again.
    Answered(usize),
    /// This machine offers no way to cause the failures; the reason.
    NotTried(String),
}

/// Makes fork fail for the spawner, and then makes it run out of descriptors. Each delivery must be refused under its
/// own number, and its slot must be free afterwards.
///
/// # Errors
/// A delivery was not refused, or its slot stayed in use.
pub fn failures(
    spawner: &mut Spawner,
    stubs: &mut Stubs,
    sandbox: &Sandbox,
    message: MessageId,
    numbers: &[u32],
) -> Result<FailedStarts, Error> {
    let mut tried = 0;
    let mut reasons = Vec::new();
    for (resource, what) in
        [(Resource::Processes, "fork fails"), (Resource::OpenFiles, "no descriptor is left")]
    {
        match failing(spawner, stubs, sandbox, message, numbers, resource, what)? {
            FailedStarts::Answered(count) => tried += count,
            FailedStarts::NotTried(reason) => reasons.push(reason),
        }
    }
    Ok(if tried == 0 {
        FailedStarts::NotTried(reasons.join("; "))
    } else {
        FailedStarts::Answered(tried)
    })
}

fn failing(
    spawner: &mut Spawner,
    stubs: &mut Stubs,
    sandbox: &Sandbox,
    message: MessageId,
    numbers: &[u32],
    resource: Resource,
    what: &str,
) -> Result<FailedStarts, Error> {
    let channel = spawner.channel();
    stubs.forget();
    let pid = spawner.process().id();
    let Some(before) = stubs.set_soft_limit(sandbox, pid, resource, 0)? else {
        return Ok(FailedStarts::NotTried(format!(
            "this system offers no way to let a running process see that {what}"
        )));
    };
    let mut recipients = HashMap::new();
    for number in numbers {
        let recipient = stub::recipient(Mode::Accept, None, number, domain(channel));
        spawner.send(&command(*number, message, recipient.clone()));
        recipients.insert(*number, recipient);
    }
    let waited = spawner.wait(stubs, &format!("{} refusals while {what}", numbers.len()), |seen| {
        seen.reports >= numbers.len()
    });
    stubs.set_soft_limit(sandbox, pid, resource, before)?;
    waited?;
    let reports = spawner.take_reports();
    if reports.iter().all(|report| report.letter == b'K') {
        return Ok(FailedStarts::NotTried(format!(
            "this system does not enforce the limit so that {what}"
        )));
    }
    let mut answered = HashMap::new();
    for report in &reports {
        answered.insert(report.number, report);
    }
    for number in numbers {
        match answered.get(number) {
            Some(report) if matches!(report.letter, b'Z' | b'D') => {}
            other => {
                return Err(Error::disproved(
                    format!("{channel}, delivery number {number} when {what}"),
                    format!("Z for number {number}"),
                    other.map_or("no report for it".to_owned(), |report| report.shown()),
                    "",
                ));
            }
        }
    }
    // The same numbers again: a slot that was not freed is "in use" now.
    for number in numbers {
        spawner.send(&command(
            *number,
            message,
            recipients.get(number).cloned().unwrap_or_default(),
        ));
    }
    let waited = spawner
        .wait(stubs, &format!("{} reports", numbers.len()), |seen| seen.reports >= numbers.len());
    let slot_not_freed = |number: u32, found: String| {
        Error::disproved(
            format!("{channel}, delivery number {number}, again after {what}"),
            "K",
            found,
            "the slot of a delivery that could not be started is not freed: after as many such failures as \
             conf-spawn, nothing is delivered until a restart",
        )
    };
    let reports = spawner.take_reports();
    for report in &reports {
        if report.letter != b'K' {
            return Err(slot_not_freed(report.number, report.shown()));
        }
    }
    match waited {
        Err(Error::Timeout { seconds, .. }) => {
            let silent = numbers
                .iter()
                .find(|number| reports.iter().all(|report| report.number != **number));
            let found = format!("no answer within {seconds} s");
            Err(slot_not_freed(silent.copied().unwrap_or(0), found))
        }
        other => other.map(|()| FailedStarts::Answered(numbers.len())),
    }
}

/// Closes the spawner's input while `count` deliveries run. The spawner must finish and report them, and then exit 0.
///
/// # Errors
/// A report was wrong or missing, or the exit code was not 0.
pub fn end_of_input(
    mut spawner: Spawner,
    stubs: &mut Stubs,
    message: MessageId,
    count: u32,
) -> Result<(), Error> {
    let channel = spawner.channel();
    stubs.forget();
    stubs.hold("last")?;
    let mut expected = HashMap::new();
    for number in 0..count {
        let recipient = stub::recipient(Mode::Accept, Some("last"), number, domain(channel));
        spawner.send(&command(number, message, recipient.clone()));
        expected.insert(number, Expected { mode: Mode::Accept, recipient });
    }
    let total = count as usize;
    spawner.wait(stubs, &format!("{total} deliveries to start"), |seen| {
        seen.started + seen.reports >= total
    })?;
    spawner.close_input();
    stubs.release("last")?;
    let status = spawner.wait_exit(stubs)?;
    let reports = spawner.take_reports();
    compare(channel, &expected, &reports)?;
    if status.code() != Some(0) {
        return Err(Error::disproved(
            format!("{channel} after the end of its input"),
            "exit code 0",
            crate::verify::sandbox::process::describe(status),
            "",
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A stub that crashes writes nothing. So any Z passed for its end, even one that says that it never ran.
    #[test]
    fn a_spawner_s_own_error_is_no_crash_of_a_delivery() {
        let expected =
            HashMap::from([(32768, Expected { mode: Mode::Crash, recipient: String::new() })]);
        let compared = |text: &str| {
            let report =
                Report { number: 32768, letter: Mode::Crash.report(), text: text.to_owned() };
            compare(Channel::Remote, &expected, &[report])
        };
        compared("qmail-remote crashed.\n").unwrap();
        let error = compared("Internal error: delnum negative. (#4.3.5)\n").unwrap_err();
        assert!(error.to_string().contains("delivery number 32768"), "{error}");
    }
}
