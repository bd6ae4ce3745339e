//! A [`MailPlan`]: the messages of a trial, with the expected result for each recipient, and the comparison of that
//! plan with qmail-send's log and with the queue.
#![forbid(unsafe_code)]

use std::collections::HashMap;

use super::queue::messages_left;
use crate::verify::error::Error;
use crate::verify::rig::log::{Log, logged};
use crate::verify::rig::numbers::Random;
use crate::verify::rig::spawner::Channel;
use crate::verify::rig::stub::{self, Mode};
use crate::verify::sandbox::private_tree::{MessageId, Sandbox};

/// The message that every trial sends.
pub(super) const BODY: &[u8] = b"Subject: a message of the rig\n\nhello\n";

/// One message of a [`MailPlan`]: its sender, its recipients and what the stub does with each. `id` is set once the
/// message is queued by the rig itself.
#[derive(Debug, Clone)]
pub(super) struct PlannedMessage {
    pub(super) sender: String,
    pub(super) recipients: Vec<(String, Mode)>,
    pub(super) id: Option<MessageId>,
}

impl PlannedMessage {
    pub(super) fn is_finished(&self) -> bool {
        self.recipients.iter().all(|(_, mode)| mode.report() != b'Z')
    }

    pub(super) fn bounces(&self) -> bool {
        self.is_finished() && self.recipients.iter().any(|(_, mode)| mode.report() == b'D')
    }

    pub(super) fn addresses(&self) -> Vec<String> {
        self.recipients.iter().map(|(address, _)| address.clone()).collect()
    }
}

/// The messages of one trial, and the expected result for each recipient. Each sender is an address of the rig, too, so
/// that bounces are delivered to the stubs.
#[derive(Debug, Default)]
pub(super) struct MailPlan {
    pub(super) mails: Vec<PlannedMessage>,
}

impl MailPlan {
    /// Returns a message without recipients; `sender` makes its sender unique.
    pub(super) fn message_from(sender: usize) -> PlannedMessage {
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

    /// Adds `count` recipients of `channel`, spread over `messages` new messages. Their deliveries wait for `hold`.
    pub(super) fn add(
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

    /// Adds `each` recipients for every supplemental channel, one in each message.
    pub(super) fn add_supplemental(
        &mut self,
        sandbox: &Sandbox,
        each: u32,
        hold: Option<&str>,
        random: &mut Random,
    ) {
        for number in 0..sandbox.supplemental().count {
            self.add_to(&sandbox.supplemental_domain(number), each, each, hold, random);
        }
    }

    pub(super) fn add_to(
        &mut self,
        domain: &str,
        messages: u32,
        count: u32,
        hold: Option<&str>,
        random: &mut Random,
    ) {
        let first = self.mails.len();
        let messages = messages.clamp(1, count.max(1)) as usize;
        self.mails.extend((first..first + messages).map(MailPlan::message_from));
        for number in 0..count {
            let mode = Mode::of_mail(random);
            let address = stub::recipient(mode, hold, format_args!("{first}x{number}"), domain);
            self.mails[first + number as usize % messages].recipients.push((address, mode));
        }
    }

    pub(super) fn recipients(&self) -> usize {
        self.mails.iter().map(|mail| mail.recipients.len()).sum()
    }

    pub(super) fn finished(&self) -> usize {
        self.mails.iter().filter(|mail| mail.is_finished()).count()
    }

    pub(super) fn bounces(&self) -> usize {
        self.mails.iter().filter(|mail| mail.bounces()).count()
    }

    /// Queues the messages of the range `which`.
    ///
    /// # Errors
    /// A file cannot be written, or a signal asked this process to stop.
    pub(super) fn queue(
        &mut self,
        sandbox: &Sandbox,
        which: std::ops::Range<usize>,
    ) -> Result<(), Error> {
        for mail in &mut self.mails[which] {
            if crate::sys::stop_signal().is_some() {
                return Err(crate::verify::sandbox::process::interrupted());
            }
            mail.id = Some(sandbox.queue_message(BODY, &mail.sender, &mail.addresses())?);
        }
        Ok(())
    }

    /// Compares the logs of one or more runs of qmail-send with the plan: each recipient and each bounce has the
    /// expected report, and just one unless it was deferred. `twice` returns whether a recipient may have had several
    /// deliveries.
    pub(super) fn check(&self, logs: &[&Log], twice: impl Fn(&str) -> bool) -> Result<(), Error> {
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
            // No report: it was under way when qmail-send was killed.
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

    /// Compares the queue with the plan: just the messages with a deferred recipient are left, and in them just those
    /// recipients are still to be tried.
    pub(super) fn check_queue(&self, sandbox: &Sandbox) -> Result<(), Error> {
        let left = messages_left(sandbox)?;
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
        // The rig does not know the numbers of messages that qmail-queue has queued.
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
