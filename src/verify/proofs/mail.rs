//! What the tree's qmail-send has to get right: trials that queue mail, let it be delivered, and account for every
//! recipient.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use super::spawner_trials::OnProgress;
use crate::verify::error::Error;
use crate::verify::rig::log::{Log, logged};
use crate::verify::rig::numbers::Random;
use crate::verify::rig::protocol::{Report, Width};
use crate::verify::rig::sendrig::{SendRig, Spawners, pull_trigger, run_qmail_queue};
use crate::verify::rig::spawner::Channel;
use crate::verify::rig::stub::{self, Mode, StubEventKind, Stubs, peak};
use crate::verify::sandbox::site::{MessageId, Site};

const BODY: &[u8] = b"Subject: a message of the rig\n\nhello\n";

/// Up to this many messages carry the recipients of one trial.
pub const MESSAGES: u32 = 2000;

/// So many deliveries go over each supplemental channel when the rig plays the spawners: more than 255, to see both
/// bytes.
const SUPPLEMENTAL: u32 = 300;

/// qmail-send tries a deferred recipient again after 100 s (local) at the earliest.
const EARLIEST_RETRY_NS: u64 = 90_000_000_000;

/// How long a trial of the gate goes on while no mail is done: longer than the minute of a hold, and than the pauses
/// after which the gate calls mail that it has sent away. Not a limit on the whole, as with
/// [`crate::verify::rig::spawner::IDLE`].
const NO_PROGRESS: Duration = Duration::from_secs(150);

/// Whether mail gets done: a gate that sends it away for ever shows signs of life for ever.
#[derive(Debug)]
pub struct Watchdog {
    done: usize,
    since: Instant,
}

impl Default for Watchdog {
    fn default() -> Watchdog {
        Watchdog { done: 0, since: Instant::now() }
    }
}

impl Watchdog {
    /// Notes how much is done; `what` says what that is.
    ///
    /// # Errors
    /// It has been as much for too long.
    pub fn check(&mut self, done: usize, what: impl FnOnce() -> String) -> Result<(), Error> {
        if done != self.done {
            *self = Watchdog { done, since: Instant::now() };
        }
        if self.since.elapsed() < NO_PROGRESS {
            return Ok(());
        }
        Err(Error::disproved(
            what(),
            format!("one more within {} s", NO_PROGRESS.as_secs()),
            format!("{done}, and no more"),
            "",
        ))
    }
}

/// One message of a [`MailPlan`].
#[derive(Debug, Clone)]
struct PlannedMessage {
    sender: String,
    recipients: Vec<(String, Mode)>,
    id: Option<MessageId>,
}

impl PlannedMessage {
    fn is_finished(&self) -> bool {
        self.recipients.iter().all(|(_, mode)| mode.report() != b'Z')
    }

    fn bounces(&self) -> bool {
        self.is_finished() && self.recipients.iter().any(|(_, mode)| mode.report() == b'D')
    }

    fn addresses(&self) -> Vec<String> {
        self.recipients.iter().map(|(address, _)| address.clone()).collect()
    }
}

/// Messages with what has to become of each recipient. The sender of each is an address of the rig too, to which a
/// bounce is delivered.
#[derive(Debug, Default)]
struct MailPlan {
    mails: Vec<PlannedMessage>,
}

impl MailPlan {
    fn mail(sender: usize) -> PlannedMessage {
        PlannedMessage {
            sender: stub::recipient(
                Mode::Accept,
                None,
                format_args!("s{sender}"),
                "sender.example",
            ),
            recipients: Vec::new(),
            id: None,
        }
    }

    /// `count` recipients of `channel`, spread over `messages` new messages.
    fn add(
        &mut self,
        channel: Channel,
        messages: u32,
        count: u32,
        hold: Option<&str>,
        random: &mut Random,
    ) {
        let domain = match channel {
            Channel::Local => "local.example",
            Channel::Remote => "remote.example",
        };
        self.add_to(domain, messages, count, hold, random);
    }

    /// `each` recipients of every supplemental channel, one a message.
    fn add_supplemental(
        &mut self,
        site: &Site,
        each: u32,
        hold: Option<&str>,
        random: &mut Random,
    ) {
        for number in 0..site.supplemental().count {
            self.add_to(&site.supplemental_domain(number), each, each, hold, random);
        }
    }

    fn add_to(
        &mut self,
        domain: &str,
        messages: u32,
        count: u32,
        hold: Option<&str>,
        random: &mut Random,
    ) {
        let first = self.mails.len();
        let messages = messages.clamp(1, count.max(1)) as usize;
        self.mails.extend((first..first + messages).map(MailPlan::mail));
        for number in 0..count {
            let mode = Mode::of_mail(random);
            let address = stub::recipient(mode, hold, format_args!("{first}x{number}"), domain);
            self.mails[first + number as usize % messages].recipients.push((address, mode));
        }
    }

    fn recipients(&self) -> usize {
        self.mails.iter().map(|mail| mail.recipients.len()).sum()
    }

    fn finished(&self) -> usize {
        self.mails.iter().filter(|mail| mail.is_finished()).count()
    }

    fn bounces(&self) -> usize {
        self.mails.iter().filter(|mail| mail.bounces()).count()
    }

    fn queue(&mut self, site: &Site, which: std::ops::Range<usize>) -> Result<(), Error> {
        for mail in &mut self.mails[which] {
            if crate::sys::stop_signal().is_some() {
                return Err(crate::verify::sandbox::process::interrupted());
            }
            mail.id = Some(site.queue_message(BODY, &mail.sender, &mail.addresses())?);
        }
        Ok(())
    }

    /// Compares what qmail-send has logged, over one or more runs, with what had to happen. `twice` says of a
    /// recipient whether it may have been delivered to more than once.
    fn check(&self, logs: &[&Log], twice: impl Fn(&str) -> bool) -> Result<(), Error> {
        let mut wanted: HashMap<String, (Mode, usize)> = HashMap::new();
        for (address, mode) in self.mails.iter().flat_map(|mail| &mail.recipients) {
            wanted.insert(logged(address), (*mode, 0));
        }
        for mail in self.mails.iter().filter(|mail| mail.bounces()) {
            wanted.insert(logged(&mail.sender), (Mode::Accept, 0));
        }
        for delivery in logs.iter().flat_map(|log| log.deliveries.values()) {
            let Some((mode, seen)) = wanted.get_mut(&delivery.recipient) else {
                return Err(Error::disproved(
                    "qmail-send, a delivery",
                    "to one of the recipients that were queued",
                    format!("to {}", delivery.recipient),
                    "",
                ));
            };
            // No outcome: it was under way when qmail-send was killed.
            let Some(outcome) = &delivery.outcome else { continue };
            *seen += 1;
            if outcome.letter != mode.report()
                || (mode.names_recipient() && !outcome.text.contains(&delivery.recipient))
            {
                return Err(Error::disproved(
                    format!("qmail-send, the report of the delivery to {}", delivery.recipient),
                    format!("{} naming it", char::from(mode.report())),
                    format!("{} {:?}", char::from(outcome.letter), outcome.text),
                    "reports go to the wrong delivery",
                ));
            }
        }
        let mut wrong: Vec<(&String, usize)> = wanted
            .iter()
            .filter(|(address, (mode, seen))| {
                *seen == 0 || (*seen > 1 && mode.report() != b'Z' && !twice(address))
            })
            .map(|(address, (_, seen))| (address, *seen))
            .collect();
        wrong.sort();
        match wrong.first() {
            None => Ok(()),
            Some((address, seen)) => Err(Error::disproved(
                format!("qmail-send, deliveries to {address}"),
                "one report",
                seen.to_string(),
                format!("{} recipients like this", wrong.len()),
            )),
        }
    }

    /// Compares what is left in the queue with what has to be: each message with a deferred recipient, and of its
    /// recipients exactly those still to be tried.
    fn check_queue(&self, site: &Site) -> Result<(), Error> {
        let left = messages_left(site)?;
        let mut unknown = left.clone();
        for mail in &self.mails {
            let Some(id) = mail.id else { continue };
            let found = unknown.remove(&id.number);
            if found.is_some() == mail.is_finished() {
                return Err(Error::disproved(
                    format!("the queue, message {} to {}", id.number, mail.addresses().join(", ")),
                    if mail.is_finished() {
                        "done and gone"
                    } else {
                        "kept, because a recipient was deferred"
                    },
                    if found.is_some() { "it is still there" } else { "it is gone" },
                    "",
                ));
            }
            let Some(found) = found else { continue };
            for (address, mode) in &mail.recipients {
                let mark = if mode.report() == b'Z' { b'T' } else { b'D' };
                if found.get(address) != Some(&mark) {
                    return Err(Error::disproved(
                        format!("the queue, message {}, recipient {address}", id.number),
                        if mark == b'T' { "to be tried again" } else { "marked as done" },
                        found.get(address).map_or("missing".to_owned(), |mark| {
                            format!("marked {}", char::from(*mark))
                        }),
                        "",
                    ));
                }
            }
        }
        // Messages that went in through qmail-queue have numbers that the rig does not know.
        let expected =
            self.mails.iter().filter(|mail| mail.id.is_none() && !mail.is_finished()).count();
        if unknown.len() == expected {
            return Ok(());
        }
        Err(Error::disproved(
            "the queue, messages left",
            (left.len() - unknown.len() + expected).to_string(),
            left.len().to_string(),
            "",
        ))
    }
}

type Marks = BTreeMap<String, u8>;

/// The messages that have an envelope in queue/info, with each recipient's mark: `T` to do, `D` done.
fn messages_left(site: &Site) -> Result<BTreeMap<u64, Marks>, Error> {
    let queue = site.home().join("queue");
    let mut left: BTreeMap<u64, Marks> = BTreeMap::new();
    let supplemental = supplemental_names(site);
    for dir in
        ["info", "local", "remote"].into_iter().chain(supplemental.iter().map(String::as_str))
    {
        for path in files_below(&queue.join(dir))? {
            let number =
                path.file_name().and_then(|name| name.to_str()).and_then(|name| name.parse().ok());
            let Some(number) = number else { continue };
            let marks = left.entry(number).or_default();
            if dir == "info" {
                continue;
            }
            let bytes = fs::read(&path).map_err(Error::file("read", &path))?;
            for record in bytes.split(|byte| *byte == 0).filter(|record| !record.is_empty()) {
                marks.insert(String::from_utf8_lossy(&record[1..]).into_owned(), record[0]);
            }
        }
    }
    Ok(left)
}

/// What the supplemental channels are called, in queue/ and in qmail-send's log.
fn supplemental_names(site: &Site) -> Vec<String> {
    let channels = site.supplemental();
    (0..channels.count).map(|number| format!("{}{number}", channels.name)).collect()
}

fn files_below(dir: &Path) -> Result<Vec<std::path::PathBuf>, Error> {
    let mut files = Vec::new();
    for part in fs::read_dir(dir).map_err(Error::file("read", dir))? {
        let part = part.map_err(Error::file("read", dir))?.path();
        if part.is_dir() {
            for file in fs::read_dir(&part).map_err(Error::file("read", &part))? {
                files.push(file.map_err(Error::file("read", &part))?.path());
            }
        } else {
            files.push(part);
        }
    }
    Ok(files)
}

/// Empties the site's queue. Nothing of the site may be running.
pub fn empty_queue(site: &Site) -> Result<(), Error> {
    let queue = site.home().join("queue");
    let supplemental = supplemental_names(site);
    let stock = ["mess", "info", "local", "remote", "todo", "intd", "bounce", "pid"];
    for dir in stock.into_iter().chain(supplemental.iter().map(String::as_str)) {
        for file in files_below(&queue.join(dir))? {
            fs::remove_file(&file).map_err(Error::file("remove", &file))?;
        }
    }
    Ok(())
}

fn set_concurrency(site: &Site, local: u32, remote: u32, supplemental: u32) -> Result<(), Error> {
    site.set_control("concurrencylocal", &format!("{local}\n"))?;
    for number in 0..site.supplemental().count {
        site.set_control(&format!("concurrencysuppl{number}"), &format!("{supplemental}\n"))?;
    }
    site.set_control("concurrencyremote", &format!("{remote}\n"))
}

/// Complaints of qmail-send that mean that a delivery or a report went wrong; others are only told.
fn check_complaints(log: &Log) -> Result<Vec<String>, Error> {
    match log.complaints.iter().find(|line| is_grave(line)) {
        Some(line) => {
            Err(Error::disproved("qmail-send's log", "no complaint", format!("{line:?}"), ""))
        }
        None => Ok(log.complaints.clone()),
    }
}

fn is_grave(line: &str) -> bool {
    ["alert:", "unexpected:", "mangled", "report out of range", "delivered twice"]
        .iter()
        .any(|word| line.contains(word))
}

/// What a trial of qmail-send has shown.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MailFigures {
    /// Messages queued.
    pub messages: usize,
    /// Recipients of these messages.
    pub recipients: usize,
    /// Bounces that qmail-send has made and delivered.
    pub bounces: usize,
    /// The most remote deliveries at the same time.
    pub peak_remote: usize,
    /// The most local deliveries at the same time.
    pub peak_local: usize,
    /// The most deliveries at the same time on each supplemental channel.
    pub peak_supplemental: usize,
    /// What qmail-send has warned of besides.
    pub notes: Vec<String>,
}

/// Runs qmail-send against spawners that the rig plays: `spawn` remote deliveries at the same time, so that every
/// delivery number is in use, and up to 1000 local ones; then K, Z or D for each, in random order.
pub fn every_number(
    site: &Site,
    stubs: &mut Stubs,
    width: Width,
    random: &mut Random,
    on_progress: OnProgress<'_>,
) -> Result<MailFigures, Error> {
    let spawn = site.spawn();
    let local = spawn.min(1000);
    let mut plan = MailPlan::default();
    plan.add(Channel::Remote, MESSAGES / 2, spawn, None, random);
    plan.add(Channel::Local, MESSAGES / 2, local, None, random);
    plan.add_supplemental(site, spawn.min(SUPPLEMENTAL), None, random);
    empty_queue(site)?;
    set_concurrency(site, local, spawn, spawn)?;
    let all = plan.mails.len();
    plan.queue(site, 0..all)?;

    let mut modes_of: HashMap<String, Mode> = HashMap::new();
    for (address, mode) in plan.mails.iter().flat_map(|mail| &mail.recipients) {
        modes_of.insert(address.clone(), *mode);
    }
    let total = plan.recipients();
    let goal = 2 * total as u64;
    stubs.forget();
    let mut rig = SendRig::start(site, Spawners::Played { width, spawn })?;

    // All commands first, none answered: only then is every number in use.
    let mut held: HashMap<(usize, u32), String> = HashMap::new();
    rig.wait(stubs, &format!("{total} deliveries from qmail-send"), |rig, _| {
        for (index, relay) in rig.relays().iter_mut().enumerate() {
            for command in relay.take_commands() {
                if command.number >= spawn {
                    return Err(number_error(
                        relay.channel(),
                        command.number,
                        &format!("below {spawn}"),
                    ));
                }
                if held.insert((index, command.number), command.recipient).is_some() {
                    return Err(number_error(
                        relay.channel(),
                        command.number,
                        "free, as long as it is not answered",
                    ));
                }
            }
        }
        on_progress(held.len() as u64, goal);
        Ok(held.len() >= total)
    })?;
    // Range by range, so that a mistake can be put down to one: what fits into a byte, what needs a second one, and
    // what a signed 16-bit number cannot hold.
    let mut answered = 0;
    let mut taken = ReportedRecipients::default();
    for range in [0..256, 256..32768, 32768..u32::MAX] {
        let mut answers: Vec<(&(usize, u32), &String)> =
            held.iter().filter(|((_, number), _)| range.contains(number)).collect();
        answers.sort();
        random.shuffle(&mut answers);
        answered += answers.len();
        for ((index, number), recipient) in answers {
            let letter = modes_of.get(recipient).map_or(b'K', |mode| mode.report());
            let text = format!("{recipient} answered\n");
            rig.relays()[*index].report(&Report { number: *number, letter, text });
        }
        rig.wait(
            stubs,
            &format!("qmail-send to take the reports of {answered} deliveries"),
            |rig, _| {
                answer_again(rig, &modes_of);
                on_progress((total + rig.log().ended) as u64, goal);
                if let Some(line) = rig.log().complaints.iter().find(|line| is_grave(line)) {
                    return Err(taken_wrongly(line, range.start, spawn));
                }
                Ok(taken.look(rig.log()).recipients >= answered)
            },
        )?;
    }
    let (bounces, finished) = (plan.bounces(), plan.finished());
    rig.wait(stubs, "qmail-send to deliver the bounces", |rig, _| {
        answer_again(rig, &modes_of);
        on_progress((total + rig.log().ended) as u64, goal);
        Ok(taken.look(rig.log()).bounces >= bounces
            && rig.log().ended_messages >= finished + bounces)
    })?;
    rig.terminate()?;
    let log = rig.wait_exit(stubs)?;
    let notes = check_complaints(&log)?;
    plan.check(&[&log], |_| false)?;
    plan.check_queue(site)?;
    Ok(MailFigures {
        messages: plan.mails.len(),
        recipients: total,
        bounces,
        peak_remote: log.peak("remote") as usize,
        peak_local: log.peak("local") as usize,
        peak_supplemental: peak_supplemental(site, &log, spawn.min(SUPPLEMENTAL))?,
        notes,
    })
}

/// Whether qmail-send has had so many deliveries at the same time on each supplemental channel.
fn peak_supplemental(site: &Site, log: &Log, wanted: u32) -> Result<usize, Error> {
    let names = supplemental_names(site);
    match names.iter().find(|name| log.peak(name) != wanted) {
        Some(name) => Err(Error::disproved(
            format!("qmail-send, deliveries at the same time on channel {name}"),
            wanted.to_string(),
            log.peak(name).to_string(),
            format!("control/suppls* name one domain for each of {} channels", names.len()),
        )),
        None if names.is_empty() => Ok(0),
        None => Ok(wanted as usize),
    }
}

/// Answers what comes through a relay when every recipient has been answered once: bounces, and recipients that are
/// tried again because all this takes longer than qmail-send's retry time.
fn answer_again(rig: &mut SendRig, modes_of: &HashMap<String, Mode>) {
    for relay in rig.relays() {
        for command in relay.take_commands() {
            let letter = modes_of.get(&command.recipient).map_or(b'K', |mode| mode.report());
            let text = format!("{} answered\n", command.recipient);
            relay.report(&Report { number: command.number, letter, text });
        }
    }
}

/// Who has had a report, each counted once however often it was tried.
#[derive(Debug, Default)]
struct ReportedRecipients {
    seen: HashSet<String>,
    looked_at: usize,
    recipients: usize,
    bounces: usize,
}

impl ReportedRecipients {
    /// Counts what has come since the last look.
    fn look(&mut self, log: &Log) -> &ReportedRecipients {
        for id in &log.order[self.looked_at..] {
            let Some(delivery) = log.deliveries.get(id) else { continue };
            if self.seen.insert(delivery.recipient.clone()) {
                match is_bounce(&delivery.recipient) {
                    true => self.bounces += 1,
                    false => self.recipients += 1,
                }
            }
        }
        self.looked_at = log.order.len();
        self
    }
}

fn is_bounce(recipient: &str) -> bool {
    recipient.ends_with("@sender.example")
}

fn taken_wrongly(line: &str, from: u32, spawn: u32) -> Error {
    let next = match from {
        0 => "",
        256 => {
            "del_dochan does not put both bytes of a delivery number together; qpatch apply (big-concurrency) repairs it"
        }
        _ => {
            "del_dochan reads the high byte of a delivery number as a signed char, as in the classic patch; qpatch apply \
             (big-concurrency) repairs it"
        }
    };
    Error::disproved(
        format!(
            "qmail-send, the reports of delivery numbers {from} to {}",
            spawn.saturating_sub(1)
        ),
        "each taken for its own delivery",
        format!("{line:?}"),
        next,
    )
}

fn number_error(channel: Channel, number: u32, expected: &str) -> Error {
    Error::disproved(
        format!("qmail-send, delivery number {number} to {channel}"),
        expected,
        "not so",
        "delivery numbers are cut off or reused while a delivery runs",
    )
}

/// How many deliveries of each kind [`through`] is to have at the same time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Concurrency {
    /// Through qmail-rspawn.
    pub remote: u32,
    /// Through qmail-lspawn.
    pub local: u32,
    /// Through each further qmail-rspawn.
    pub supplemental: u32,
}

/// Sends `messages` messages through the tree's qmail-send, both its spawners and the stubs, with `crowd` deliveries
/// at the same time, and accounts for each recipient.
pub fn through(
    site: &Site,
    stubs: &mut Stubs,
    messages: u32,
    crowd: Concurrency,
    random: &mut Random,
    on_progress: OnProgress<'_>,
) -> Result<MailFigures, Error> {
    let mut plan = MailPlan::default();
    let half = messages / 2;
    plan.add(Channel::Remote, half, crowd.remote.max(half), Some("crowd"), random);
    plan.add(
        Channel::Local,
        messages - half,
        crowd.local.max(messages - half),
        Some("crowd"),
        random,
    );
    plan.add_supplemental(site, crowd.supplemental, Some("crowd"), random);
    empty_queue(site)?;
    set_concurrency(site, crowd.local, crowd.remote, crowd.supplemental)?;
    stubs.forget();
    stubs.hold("crowd")?;
    let last = plan.mails.len();
    // A few go in through the tree's own qmail-queue, with its trigger; all of them would take longer than the rest.
    let by_hand = last - last.min(20);
    plan.queue(site, 0..by_hand)?;
    let total = plan.recipients();
    let all_remote = crowd.remote + crowd.supplemental * site.supplemental().count;
    let together = (all_remote + crowd.local) as usize;
    let goal = (together + total) as u64;
    let mut rig = SendRig::start(site, Spawners::Own)?;
    for mail in &plan.mails[by_hand..] {
        run_qmail_queue(site, BODY, &mail.sender, &mail.addresses())?;
        rig.attend(stubs)?;
    }
    rig.wait(stubs, &format!("{together} deliveries at the same time"), |rig, stubs| {
        on_progress(stubs.counts().0 as u64, goal);
        if rig.log().ended > 0 {
            return Err(early(rig.log()));
        }
        Ok(stubs.counts().0 >= together)
    })?;
    stubs.release("crowd")?;
    let mut taken = ReportedRecipients::default();
    let (bounces, finished) = (plan.bounces(), plan.finished());
    rig.wait(
        stubs,
        &format!("the reports of {total} deliveries and {bounces} bounces"),
        |rig, _| {
            on_progress((together + rig.log().ended) as u64, goal);
            let taken = taken.look(rig.log());
            Ok(taken.recipients >= total
                && taken.bounces >= bounces
                && rig.log().ended_messages >= finished + bounces)
        },
    )?;
    rig.terminate()?;
    let log = rig.wait_exit(stubs)?;
    let notes = check_complaints(&log)?;
    plan.check(&[&log], |_| false)?;
    plan.check_queue(site)?;
    check_stubs(&plan, stubs, Deferred::AfterRetryTime, |_| 1)?;
    let peak_of = |channel: Channel| peak(stubs.events(), |event| event.program == channel.stub());
    let sent = MailFigures {
        messages: plan.mails.len(),
        recipients: total,
        bounces,
        peak_remote: peak_of(Channel::Remote),
        peak_local: peak_of(Channel::Local),
        peak_supplemental: peak_supplemental(site, &log, crowd.supplemental)?,
        notes,
    };
    for (channel, found, limit) in [
        (Channel::Remote, sent.peak_remote, all_remote),
        (Channel::Local, sent.peak_local, crowd.local),
    ] {
        if found != limit as usize {
            return Err(Error::disproved(
                format!("deliveries at the same time through {channel}"),
                limit.to_string(),
                found.to_string(),
                "",
            ));
        }
    }
    Ok(sent)
}

/// A report came although every stub waits: the delivery was refused.
fn early(log: &Log) -> Error {
    let first =
        log.deliveries.values().find_map(|delivery| Some((delivery, delivery.outcome.as_ref()?)));
    let found = first.map_or("a report".to_owned(), |(delivery, outcome)| {
        format!("{} {:?} for {}", char::from(outcome.letter), outcome.text, delivery.recipient)
    });
    Error::disproved(
        "qmail-send, a delivery that is under way",
        "no report before it ends",
        found,
        "the spawner refuses it, or its report went to the wrong delivery",
    )
}

/// When a deferred recipient may be tried again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Deferred {
    /// Not before qmail-send's retry time.
    AfterRetryTime,
    /// At any time. A message that qmail-send still has open when it is stopped is tried at once after the restart: its
    /// retry time is written down when the message is closed.
    AtAnyTime,
}

/// Checks by the stubs' own account that each recipient was delivered to as often as `times` says; a deferred one more
/// often only when `deferred` says so.
fn check_stubs(
    plan: &MailPlan,
    stubs: &Stubs,
    deferred: Deferred,
    times: impl Fn(&str) -> usize,
) -> Result<(), Error> {
    let mut starts: HashMap<&str, Vec<u64>> = HashMap::new();
    for event in stubs.events().iter().filter(|event| event.kind == StubEventKind::Start) {
        starts.entry(event.recipient.as_str()).or_default().push(event.at_ns);
    }
    for (address, mode) in plan.mails.iter().flat_map(|mail| &mail.recipients) {
        let found = starts.get(address.as_str()).map_or(&[][..], Vec::as_slice);
        let retries = match (mode.report(), deferred) {
            (b'Z', Deferred::AtAnyTime) => found.len().saturating_sub(times(address)),
            (b'Z', Deferred::AfterRetryTime) => {
                found.windows(2).filter(|pair| pair[1] - pair[0] >= EARLIEST_RETRY_NS).count()
            }
            _ => 0,
        };
        if found.len() - retries != times(address) {
            return Err(Error::disproved(
                format!("deliveries to {address}"),
                times(address).to_string(),
                found.len().to_string(),
                "mail was lost or sent twice",
            ));
        }
    }
    Ok(())
}

/// What [`capped`] has shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CappedFigures {
    /// Deliveries to the capped domain.
    pub capped: usize,
    /// Deliveries to other domains.
    pub others: usize,
    /// The most deliveries to the capped domain at the same time.
    pub peak: usize,
    /// What qmail-send has warned of besides.
    pub notes: Vec<String>,
}

/// Queues 100 mails to `domains`, which together have a limit of `limit`, mixed with 200 to twenty others. While
/// `limit` deliveries to them wait, all others have to be done; then they get their mail too, never more than `limit`
/// at the same time. The machine has room for `room` deliveries of one spawner.
pub fn capped(
    site: &Site,
    stubs: &mut Stubs,
    domains: &[String],
    limit: u32,
    room: u32,
    random: &mut Random,
    on_progress: OnProgress<'_>,
) -> Result<CappedFigures, Error> {
    let (to_capped, to_others) = (100_usize.max(8 * domains.len()), 200_usize);
    let domain = &domains.join(", ");
    let mut plan = MailPlan::default();
    for number in 0..to_capped + to_others {
        let mut mail = MailPlan::mail(number);
        let address = if number < to_capped {
            stub::recipient(Mode::Accept, Some("capped"), number, &domains[number % domains.len()])
        } else {
            stub::recipient(Mode::Accept, None, number, &format!("other{}.example", number % 20))
        };
        mail.recipients.push((address, Mode::Accept));
        plan.mails.push(mail);
    }
    random.shuffle(&mut plan.mails);
    empty_queue(site)?;
    // So few that not all can be held: the rest is sent away, and has to be called back.
    let few = to_capped.div_ceil(2 * domains.len());
    let most = site.spawn().min(room);
    set_concurrency(site, 1, most.min(60), most.min(few as u32))?;
    stubs.forget();
    stubs.hold("capped")?;
    let total = plan.mails.len();
    plan.queue(site, 0..total)?;
    let mut rig = SendRig::start(site, Spawners::Own)?;
    let is_capped = |event: &stub::StubEvent| domains.iter().any(|domain| event.domain() == domain);
    let places = (limit as usize).min(site.spawn() as usize);
    let others = format!("all mail to other domains while {domain} is full");
    let mut progress = Watchdog::default();
    rig.wait(stubs, &others, |rig, stubs| {
        on_progress(stubs.counts().1 as u64, total as u64);
        check_progress(rig.log(), stubs, &mut progress, &others)?;
        let started = stubs
            .events()
            .iter()
            .filter(|event| is_capped(event) && event.kind == StubEventKind::Start)
            .count();
        if started > places {
            return Err(over_limit(domains, places, started));
        }
        let delivered = rig.log().deliveries.values().filter(|delivery| {
            delivery.outcome.as_ref().is_some_and(|outcome| outcome.letter == b'K')
        });
        Ok(started == places && delivered.count() >= to_others)
    })?;
    stubs.release("capped")?;
    let all = format!("all mail to {domain}");
    let mut progress = Watchdog::default();
    rig.wait(stubs, &all, |rig, stubs| {
        on_progress(stubs.counts().1 as u64, total as u64);
        check_progress(rig.log(), stubs, &mut progress, &all)?;
        Ok(rig.log().ended_messages >= total)
    })?;
    rig.terminate()?;
    let log = rig.wait_exit(stubs)?;
    let notes = check_complaints(&log)?;
    plan.check_queue(site)?;
    check_stubs(&plan, stubs, Deferred::AfterRetryTime, |_| 1)?;
    let peak = peak(stubs.events(), is_capped);
    if peak > places {
        return Err(over_limit(domains, places, peak));
    }
    Ok(CappedFigures { capped: to_capped, others: to_others, peak, notes })
}

/// Fails at once when qmail-send has complained, for a broken gate goes on complaining, and when no mail gets done.
fn check_progress(
    log: &Log,
    stubs: &Stubs,
    progress: &mut Watchdog,
    waiting_for: &str,
) -> Result<(), Error> {
    check_complaints(log)?;
    progress.check(stubs.counts().1, || {
        let outcomes = log.deliveries.values().filter_map(|delivery| delivery.outcome.as_ref());
        let sent_away = outcomes.filter(|outcome| outcome.letter == b'Z').count();
        format!(
            "qmail-send, {waiting_for} ({} messages done, {sent_away} deliveries deferred or sent away as busy), stubs \
             that have ended",
            log.ended_messages
        )
    })
}

fn over_limit(domains: &[String], limit: usize, found: usize) -> Error {
    let why = if domains.len() > 1 {
        "each qmail-rspawn counts for itself: hier.c has to make queue/lock/gateshared and a gatestatus for each of them, as \
         qpatch apply (domain-gate) writes it"
    } else {
        "the gate is not asked before each delivery, or its account of what runs is wrong"
    };
    Error::disproved(
        format!("deliveries to {} at the same time", domains.join(", ")),
        limit.to_string(),
        found.to_string(),
        why,
    )
}

/// How qmail-send is stopped in [`restart`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stop {
    /// SIGTERM, as `svc -d` does: it waits for the deliveries that are under way.
    Terminate,
    /// SIGKILL, as in a crash: what is under way is done again.
    Kill,
}

/// Stops qmail-send with `running` deliveries under way and as many again waiting, and starts it again: nothing may be
/// lost, and only what was under way when it was killed may be delivered twice.
pub fn restart(
    site: &Site,
    stubs: &mut Stubs,
    stop: Stop,
    running: u32,
    random: &mut Random,
) -> Result<MailFigures, Error> {
    let mut plan = MailPlan::default();
    plan.add(Channel::Remote, running * 2, running * 2, Some("stop"), random);
    empty_queue(site)?;
    set_concurrency(site, 1, running, running)?;
    stubs.forget();
    stubs.hold("stop")?;
    let all = plan.mails.len();
    plan.queue(site, 0..all)?;
    let total = plan.recipients();
    let under_way = running as usize;

    let mut rig = SendRig::start(site, Spawners::Own)?;
    // Until all are in queue/remote: what a kill finds in queue/todo is a different matter.
    rig.wait(stubs, &format!("{under_way} deliveries at the same time"), |rig, stubs| {
        Ok(stubs.counts().0 >= under_way && rig.log().new_messages >= all)
    })?;
    let interrupted: HashSet<String> = match stop {
        Stop::Terminate => HashSet::new(),
        Stop::Kill => stubs.events().iter().map(|event| event.recipient.clone()).collect(),
    };
    let first = match stop {
        Stop::Terminate => {
            rig.terminate()?;
            stubs.release("stop")?;
            let log = rig.wait_exit(stubs)?;
            if log.ended != under_way {
                return Err(Error::disproved(
                    "qmail-send after SIGTERM with deliveries under way",
                    format!("{under_way} reports and no new delivery"),
                    format!("{} reports", log.ended),
                    "",
                ));
            }
            log
        }
        Stop::Kill => {
            rig.crash(stubs)?;
            stubs.release("stop")?;
            // The orphaned spawners finish what runs; their reports have nowhere to go.
            while stubs.counts().1 < under_way {
                await_stubs(stubs)?;
            }
            let log = std::mem::take(rig.log_mut());
            drop(rig);
            log
        }
    };

    let (bounces, finished) = (plan.bounces(), plan.finished());
    let gone_before = first.ended_messages;
    let mut rig = SendRig::start(site, Spawners::Own)?;
    pull_trigger(site)?;
    rig.wait(stubs, "the rest of the deliveries after the restart", |rig, _| {
        Ok(gone_before + rig.log().ended_messages >= finished + bounces
            && answered(&[&first, rig.log()]).len() >= total + bounces)
    })?;
    rig.terminate()?;
    let second = rig.wait_exit(stubs)?;
    let mut notes = check_complaints(&first)?;
    notes.extend(check_complaints(&second)?);
    let interrupted_logged: HashSet<String> =
        interrupted.iter().map(|address| logged(address)).collect();
    plan.check(&[&first, &second], |address| interrupted_logged.contains(address))?;
    plan.check_queue(site)?;
    check_stubs(&plan, stubs, Deferred::AtAnyTime, |address| {
        if interrupted.contains(address) { 2 } else { 1 }
    })?;
    Ok(MailFigures {
        messages: all,
        recipients: total,
        bounces,
        peak_remote: under_way,
        peak_local: 0,
        peak_supplemental: 0,
        notes,
    })
}

/// The recipients that have had a report.
fn answered<'l>(logs: &[&'l Log]) -> HashSet<&'l str> {
    let deliveries = logs.iter().flat_map(|log| log.deliveries.values());
    deliveries
        .filter(|delivery| delivery.outcome.is_some())
        .map(|delivery| delivery.recipient.as_str())
        .collect()
}

/// Waits for the next event of a stub.
fn await_stubs(stubs: &mut Stubs) -> Result<(), Error> {
    use crate::sys::{self, Interest, Polled, Watch};
    let idle = crate::verify::rig::spawner::IDLE;
    let mut watches = [Watch::new(stubs.fd(), Interest::Read)];
    match sys::poll(&mut watches, std::time::Instant::now() + idle)
        .map_err(Error::system("wait for stubs"))?
    {
        Polled::Interrupted => return Err(crate::verify::sandbox::process::interrupted()),
        Polled::TimedOut => {
            return Err(Error::Timeout {
                waited_for: "the deliveries that were under way when qmail-send was killed"
                    .to_owned(),
                seconds: idle.as_secs(),
                seen: format!("{} of them had ended", stubs.counts().1),
            });
        }
        Polled::Ready => {}
    }
    stubs.read().map(|_| ())
}
