//! gate_retry.c in Rust: how qmail-send keeps mail that the gate sent away. For simulations; the mail server has the C.

#![forbid(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};

use crate::gate::Call;

/// When a mail was due, in seconds, and in which order those of one second came.
type Due = (u64, u64);

#[derive(Clone, Copy, Debug)]
struct Waits {
    queue: u32,
    due: Due,
    latest_us: u64,
}

/// Mail that waits to be called, each known by a number that the caller chose.
#[derive(Debug, Default)]
pub struct Retry {
    mails: HashMap<u32, Waits>,
    queues: BTreeMap<u32, BTreeSet<(Due, u32)>>,
    clock: BTreeSet<(u64, u32)>,
    called: VecDeque<u32>,
    serial: u64,
}

impl Retry {
    /// A mail that was due first at `due_us` waits in a queue, until `latest_us` at the latest.
    pub fn wait(&mut self, mail: u32, queue: u32, due_us: u64, latest_us: u64) {
        self.serial += 1;
        let due = (due_us / 1_000_000, self.serial);
        self.queues.entry(queue).or_default().insert((due, mail));
        self.clock.insert((latest_us, mail));
        self.mails.insert(mail, Waits { queue, due, latest_us });
    }

    /// The gate calls.
    pub fn call(&mut self, call: Call) {
        for _ in 0..call.most {
            let Some(queue) = self.queues.get(&call.number) else { break };
            let Some(&(_, mail)) = queue.first() else { break };
            self.take(mail);
            self.called.push_back(mail);
        }
    }

    /// A mail that waits no more.
    pub fn due(&mut self, now_us: u64) -> Option<u32> {
        if let Some(mail) = self.called.pop_front() {
            return Some(mail);
        }
        let &(latest_us, mail) = self.clock.first()?;
        (latest_us <= now_us).then(|| {
            self.take(mail);
            mail
        })
    }

    /// When [`Retry::due`] has something, if nothing is called before.
    #[must_use]
    pub fn next_us(&self) -> Option<u64> {
        if !self.called.is_empty() {
            return Some(0);
        }
        self.clock.first().map(|&(latest_us, _)| latest_us)
    }

    fn take(&mut self, mail: u32) {
        let Some(Waits { queue, due, latest_us }) = self.mails.remove(&mail) else { return };
        self.clock.remove(&(latest_us, mail));
        if let Some(waiting) = self.queues.get_mut(&queue) {
            waiting.remove(&(due, mail));
            if waiting.is_empty() {
                self.queues.remove(&queue);
            }
        }
    }
}
