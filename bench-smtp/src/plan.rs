//! The mail of a run: which mail goes to which servers, when it is queued, and when the run ends.

use std::net::Ipv4Addr;
use std::time::Duration;

use crate::sink::{Server, local_part};
use crate::tls::StartTls;

/// How a mail server finds the server of a domain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Route {
    /// control/smtproutes or a transport map names the address.
    Table,
    /// By MX records, from the bench's own name server.
    Mx,
}

/// What the gate knows at the start about domains with the same server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KnownSites {
    /// Nothing.
    Nothing,
    /// What it saw in the run before, with the same domains.
    Seen,
    /// What `qpatch gate sites` found in DNS.
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

/// The address of server `number`, 0..=62499. All are in 127.1.0.0/16, so that none is an address that the machine
/// itself uses.
pub fn address(number: usize) -> Ipv4Addr {
    let low = u8::try_from(number % 250 + 1).unwrap_or(u8::MAX);
    Ipv4Addr::new(127, 1, u8::try_from(number / 250).unwrap_or(u8::MAX), low)
}

/// One mail. Its number is its index in [`Plan::mails`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mail {
    /// An index into [`Plan::domains`].
    pub domain: usize,
    /// The class that it is counted under.
    pub class: usize,
}

/// Mail that arrives when part of the mail that was queued before the start has been read once.
#[derive(Debug, Clone)]
pub struct LaterMail {
    /// 0..=1.
    pub passed: f64,
    /// It does not arrive before all mail of these classes has been accepted.
    pub done: Vec<usize>,
    /// The numbers of the mails.
    pub mails: Vec<u32>,
}

/// A whole plan.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Destinations.
    pub domains: Vec<Domain>,
    /// The servers of the destinations.
    pub servers: Vec<Server>,
    /// How a mail server finds the server of a destination.
    pub route: Route,
    /// What the gate knows about sites at the start. If it knows some, only the gate runs the plan.
    pub known: KnownSites,
    /// The mail.
    pub mails: Vec<Mail>,
    /// How many classes there are.
    pub classes: usize,
    /// What is queued before the start, in this order.
    pub before: Vec<u32>,
    /// Messages with several recipients, which are queued before the start, too; each recipient counts as a mail.
    /// Postfix does not run such a plan: it delivers to several recipients in one session, or counts each as a
    /// destination.
    pub lists: Vec<Vec<u32>>,
    /// The mail that arrives this long after the start.
    pub arrivals: Vec<(Duration, u32)>,
    /// The mail that comes in by the mail server's own front door this long after the start, while it runs.
    pub injected: Vec<(Duration, u32)>,
    /// The mail that arrives when the mail server has come this far.
    pub later: Vec<LaterMail>,
    /// The run ends when all mail of these classes has been accepted.
    pub wanted: Vec<usize>,
    /// The run ends when the servers have had this number of sessions, too.
    pub held: Option<u32>,
    /// The run ends after this time at the latest.
    pub most: Duration,
    /// How long the mail server has to end by itself.
    pub ending: Duration,
    /// control/concurrencydomains.
    pub table: String,
    /// Postfix's limit for each destination.
    pub cap: u32,
    /// qmail's concurrencyremote, and Postfix's limit on smtp processes.
    pub concurrency: u32,
    /// control/timeoutremote, and Postfix's smtp_helo_timeout and similar settings.
    pub patience: Duration,
    /// Whether the servers offer STARTTLS.
    pub starttls: StartTls,
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

    /// The same plan without the mail of one class.
    pub fn without(&self, class: usize) -> Plan {
        let keeps = |mail: &u32| self.mails[*mail as usize].class != class;
        let mut plan = self.clone();
        plan.before.retain(keeps);
        plan.lists.iter_mut().for_each(|list| list.retain(keeps));
        plan.lists.retain(|list| !list.is_empty());
        plan.arrivals.retain(|(_, mail)| keeps(mail));
        plan.injected.retain(|(_, mail)| keeps(mail));
        for later in &mut plan.later {
            later.mails.retain(keeps);
            later.done.retain(|done| *done != class);
        }
        plan.wanted.retain(|wanted| *wanted != class);
        plan
    }
}

/// A generator of pseudo-random numbers: the same seed, the same order.
#[derive(Debug, Clone)]
pub struct Random(qpatch_gate::random::Random);

impl Random {
    /// Starts at `seed`.
    pub fn new(seed: u64) -> Random {
        Random(qpatch_gate::random::Random::new(seed))
    }

    /// Puts `items` into a random order.
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            let other = self.0.next() % (last as u64 + 1);
            items.swap(last, other as usize);
        }
    }
}

impl Plan {
    /// How many classes have any mail.
    pub fn classes_used(&self) -> usize {
        let numbers = self.before.iter().chain(self.arrivals.iter().map(|(_, mail)| mail));
        let numbers = numbers.chain(self.injected.iter().map(|(_, mail)| mail));
        let numbers = numbers.chain(self.later.iter().flat_map(|later| &later.mails));
        let numbers = numbers.chain(self.lists.iter().flatten());
        let classes: std::collections::HashSet<usize> =
            numbers.map(|mail| self.mails[*mail as usize].class).collect();
        classes.len()
    }
}
