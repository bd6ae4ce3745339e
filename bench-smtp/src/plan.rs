//! What is put through a mail server: which mail to which servers, when, and until when.

use std::net::Ipv4Addr;
use std::time::Duration;

use crate::sink::{Server, local_part};

/// How a mail server finds the way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Route {
    /// control/smtproutes or a transport map names the address.
    Table,
    /// By MX records, from the bench's own name server.
    Mx,
}

/// What the gate knows at the start of whose mail goes to one server by its MX records.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Known {
    /// Nothing.
    Nothing,
    /// What it has seen in the run before, with the same domains.
    Seen,
    /// What `qpatch gate sites` has asked DNS.
    Asked,
}

/// A destination domain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Domain {
    /// Its name.
    pub name: String,
    /// The server that takes its mail: an index into [`Plan::servers`].
    pub server: usize,
}

/// The name of domain `number`; always the same length.
pub fn domain_name(number: usize) -> String {
    format!("d{number:03}.bench.example")
}

/// The address of server `number`, 0..=62499. Below 127.1.0.0/16, so that no address of the machine's own is among
/// them.
pub fn address(number: usize) -> Ipv4Addr {
    let low = u8::try_from(number % 250 + 1).unwrap_or(u8::MAX);
    Ipv4Addr::new(127, 1, u8::try_from(number / 250).unwrap_or(u8::MAX), low)
}

/// One mail. Its number is its index in [`Plan::mails`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mail {
    /// An index into [`Plan::domains`].
    pub domain: usize,
    /// What it is counted under.
    pub class: usize,
}

/// Mail that comes when a part of the mail that was queued before has been taken up once.
#[derive(Debug, Clone)]
pub struct Later {
    /// 0..=1.
    pub passed: f64,
    /// And not before all mail of these classes has been accepted.
    pub done: Vec<usize>,
    /// The numbers of the mails.
    pub mails: Vec<u32>,
}

/// All of it.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Destinations.
    pub domains: Vec<Domain>,
    /// Where they are served.
    pub servers: Vec<Server>,
    /// How a mail server finds out.
    pub route: Route,
    /// What the gate knows of that at the start. Only the gate is put through a plan where that is something.
    pub known: Known,
    /// The mail.
    pub mails: Vec<Mail>,
    /// How many classes there are.
    pub classes: usize,
    /// What is queued before the start, in this order.
    pub before: Vec<u32>,
    /// And messages with several recipients, each of which counts as a mail of its own. Postfix is not put through a
    /// plan that has some: it delivers to as many in one session, or counts each recipient as a destination.
    pub lists: Vec<Vec<u32>>,
    /// What comes so long after the start.
    pub arrivals: Vec<(Duration, u32)>,
    /// What comes when the server has got on.
    pub later: Vec<Later>,
    /// The run ends when all mail of these classes has been accepted,
    pub wanted: Vec<usize>,
    /// or after this time.
    pub most: Duration,
    /// control/concurrencydomains.
    pub table: String,
    /// Postfix's limit for each destination.
    pub cap: u32,
    /// qmail's concurrencyremote, and Postfix's limit on smtp processes.
    pub concurrency: u32,
    /// control/timeoutremote and smtp_helo_timeout and its like.
    pub patience: Duration,
}

impl Plan {
    /// The address of a mail's recipient.
    pub fn recipient(&self, mail: u32) -> String {
        let domain = &self.domains[self.mails[mail as usize].domain].name;
        format!("{}@{domain}", local_part(mail))
    }

    /// A line for each domain, of its name and the address of its server.
    pub fn routes(&self, line: impl Fn(&str, Ipv4Addr) -> String) -> String {
        let routes = self.domains.iter();
        routes.map(|domain| line(&domain.name, self.servers[domain.server].address)).collect()
    }

    /// How many mails of a class there are.
    pub fn count(&self, class: usize) -> usize {
        self.mails.iter().filter(|mail| mail.class == class).count()
    }

    /// The same mail without that of one class.
    pub fn without(&self, class: usize) -> Plan {
        let keeps = |mail: &u32| self.mails[*mail as usize].class != class;
        let mut plan = self.clone();
        plan.before.retain(keeps);
        plan.lists.iter_mut().for_each(|list| list.retain(keeps));
        plan.lists.retain(|list| !list.is_empty());
        plan.arrivals.retain(|(_, mail)| keeps(mail));
        for later in &mut plan.later {
            later.mails.retain(keeps);
            later.done.retain(|done| *done != class);
        }
        plan.wanted.retain(|wanted| *wanted != class);
        plan
    }
}

/// A generator of pseudo-random numbers (SplitMix64): the same seed, the same order.
#[derive(Debug, Clone)]
pub struct Random(u64);

impl Random {
    /// Starts at `seed`.
    pub fn new(seed: u64) -> Random {
        Random(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// Puts `items` into a random order.
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            let other = self.next() % (last as u64 + 1);
            items.swap(last, other as usize);
        }
    }
}

impl Plan {
    /// How many classes have mail that is put through at all.
    pub fn classes_used(&self) -> usize {
        let numbers = self.before.iter().chain(self.arrivals.iter().map(|(_, mail)| mail));
        let numbers = numbers.chain(self.later.iter().flat_map(|later| &later.mails));
        let numbers = numbers.chain(self.lists.iter().flatten());
        let classes: std::collections::HashSet<usize> =
            numbers.map(|mail| self.mails[*mail as usize].class).collect();
        classes.len()
    }
}
