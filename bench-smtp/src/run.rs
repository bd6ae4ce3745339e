//! One run: a plan put through one mail server, with the sink at the other end.

use std::collections::{BTreeMap, HashSet};
use std::time::{Duration, Instant};

use crate::error::{Result, check_signals};
use crate::inject::{DueMail, Entrance, INJECTORS, Injection};
use crate::plan::{KnownSites, Plan};
use crate::sink::{Record, Sink};
use crate::usage::{self, MemoryUse};

/// A mail server that can be put through a [`Plan`].
pub trait Subject {
    /// Its name in tables.
    fn name(&self) -> &str;
    /// Whether a plan can be put through it. Some plans need a gate that knows sites.
    fn can_run(&self, plan: &Plan) -> bool {
        plan.known == KnownSites::Nothing
    }
    /// Sets it up with an empty queue, and starts nothing.
    fn prepare(&mut self, plan: &Plan, port: u16) -> Result<()>;
    /// Puts a mail into its queue.
    fn queue(&mut self, plan: &Plan, mail: u32) -> Result<()>;
    /// Puts one message for all of these into its queue.
    fn queue_list(&mut self, plan: &Plan, mails: &[u32]) -> Result<()>;
    /// A client of its front door, for mail that comes in while it runs.
    fn entrance(&self) -> Result<Box<dyn Entrance>>;
    /// The memory of its processes that run now. None: it is not known which these are.
    fn memory(&self) -> Option<MemoryUse>;
    /// The mails that are in its queue, when it has ended. None: that cannot be read.
    fn left(&self) -> Result<Option<HashSet<u32>>>;
    /// Starts it, and returns when it delivers mail.
    fn start(&mut self) -> Result<()>;
    /// Tells it that mail was queued while it ran.
    fn notify(&mut self) -> Result<()>;
    /// How many of the mails that were queued before the start it has read at least once.
    fn passed(&mut self, plan: &Plan) -> Result<usize>;
    /// Fails if it has died.
    fn check(&mut self) -> Result<()>;
    /// Asks it to end, and ends it by force if it runs after `patience`.
    fn stop(&mut self, patience: Duration) -> Result<SelfReport>;
}

/// What a mail server reports about itself: in its log, or by its processor time.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct SelfReport {
    /// Deliveries that it has started, busy answers included.
    pub started: usize,
    /// Of these, those that the gate sent back untried, because the key was at its limit.
    pub busy: usize,
    /// Of these, those that the server refused, and that the gate did not count as a try.
    pub returned: usize,
    /// Of these, those that the gate deferred untried, because their key was suspended.
    pub suspended: usize,
    /// Deliveries that have succeeded: seconds since the start, and the number of the mail.
    pub delivered: Vec<(f64, u32)>,
    /// Deferrals after a try.
    pub deferred: usize,
    /// Their mails, by number.
    pub deferred_mails: Vec<u32>,
    /// Failures for good.
    pub failed: usize,
    /// When it had read the last of the mail that was queued before the start, in seconds from the start.
    pub passed_secs: Option<f64>,
    /// When qmail-send last took a mail out of queue/todo, in seconds from the start.
    pub todo_secs: Option<f64>,
    /// Processor time by program, in milliseconds: of the programs that still run at the end, and of those that they
    /// have waited for.
    pub cpu_ms_of: BTreeMap<String, f64>,
    /// How long it took to end when it was asked to, in seconds. None: it was ended by force.
    pub ended_secs: Option<f64>,
    /// The first lines of its complaints.
    pub complaints: Vec<String>,
}

/// The result of a run.
#[derive(Debug)]
pub struct Run {
    /// What the servers have seen.
    pub record: Record,
    /// When the mail server had been started, on the sink's clock.
    pub start_us: u64,
    /// When the run was over, on the sink's clock.
    pub end_us: u64,
    /// When each mail came into the queue, on the sink's clock; None: before the start, or never.
    pub arrived: Vec<Option<u64>>,
    /// When the mail server had taken each mail at its front door, on the sink's clock.
    pub taken: Vec<Option<u64>>,
    /// The memory of the mail server's processes at the end of the run, and what the machine had less at that time than
    /// before the start, in KiB.
    pub memory: Option<(MemoryUse, f64)>,
    /// The mails that were in its queue after its end.
    pub left: Option<HashSet<u32>>,
    /// Whether all of the wanted mail was accepted in time.
    pub complete: bool,
    /// The mail server's processor time, in milliseconds, including that of its end.
    pub cpu_ms: f64,
    /// How long it took to queue the mail that is there before the start, in seconds.
    pub queued_secs: f64,
    /// What the mail server reports.
    pub self_report: SelfReport,
}

/// The pause between two looks at what there is to do.
const LOOK: Duration = Duration::from_millis(2);

/// Puts `plan` through `subject`.
pub fn run(subject: &mut dyn Subject, plan: &Plan, port: u16) -> Result<Run> {
    usage::reap_all(Duration::from_secs(10))?;
    subject.prepare(plan, port)?;
    let queueing = Instant::now();
    for (index, &mail) in plan.before.iter().enumerate() {
        if index.is_multiple_of(256) {
            check_signals()?;
        }
        subject.queue(plan, mail)?;
    }
    for list in &plan.lists {
        subject.queue_list(plan, list)?;
    }
    let queued_secs = queueing.elapsed().as_secs_f64();
    let classes = plan.mails.iter().map(|mail| u8::try_from(mail.class).unwrap_or(u8::MAX));
    let sink = Sink::start(&plan.servers, port, classes.collect(), plan.classes, plan.starttls)?;
    let available_kib = usage::available_kib();
    let mut run_loop = RunLoop {
        plan,
        subject,
        sink: &sink,
        arrived: vec![None; plan.mails.len()],
        taken: vec![None; plan.mails.len()],
        injection: None,
    };
    run_loop.subject.start()?;
    // Processor time counts from here on, without the shell scripts that start Postfix. The mail server's own processes
    // are waited for at the end.
    let used = usage::of_children()?;
    let started = Instant::now();
    let complete =
        run_loop.open_door(started).and_then(|()| run_loop.until_done(started)).and_then(|done| {
            run_loop.close_door()?;
            Ok(done)
        });
    let RunLoop { arrived, taken, injection, .. } = run_loop;
    drop(injection);
    let end_us = sink.started().elapsed().as_micros() as u64;
    let memory = plan.held.and(subject.memory());
    let lost_kib = available_kib.zip(usage::available_kib()).map(|(before, now)| before - now);
    let stopped = subject.stop(plan.ending);
    let complete = complete?;
    let self_report = stopped?;
    let left = if plan.held.is_some() { subject.left()? } else { None };
    usage::reap_all(Duration::from_secs(20))?;
    let cpu_ms = usage::of_children()? - used;
    let start_us = started.duration_since(sink.started()).as_micros() as u64;
    let record = sink.stop()?;
    Ok(Run {
        record,
        start_us,
        end_us,
        arrived,
        taken,
        memory: memory.zip(lost_kib),
        left,
        complete,
        cpu_ms,
        queued_secs,
        self_report,
    })
}

struct RunLoop<'r> {
    plan: &'r Plan,
    subject: &'r mut dyn Subject,
    sink: &'r Sink,
    arrived: Vec<Option<u64>>,
    taken: Vec<Option<u64>>,
    injection: Option<Injection>,
}

impl RunLoop<'_> {
    /// Begins to put the mail of [`Plan::injected`] into the mail server.
    fn open_door(&mut self, started: Instant) -> Result<()> {
        if self.plan.injected.is_empty() {
            return Ok(());
        }
        let entrances: Result<Vec<_>> = (0..INJECTORS).map(|_| self.subject.entrance()).collect();
        let due = |&(after, mail): &(Duration, u32)| DueMail {
            after,
            mail,
            recipient: self.plan.recipient(mail),
        };
        let due = self.plan.injected.iter().map(due).collect();
        self.injection = Some(Injection::start(entrances?, due, started)?);
        Ok(())
    }

    /// Waits for the mails that are on their way in, and notes when each came.
    fn close_door(&mut self) -> Result<()> {
        let Some(injection) = self.injection.take() else { return Ok(()) };
        let at_us = |at: Instant| at.duration_since(self.sink.started()).as_micros() as u64;
        for entered in injection.finish()? {
            self.arrived[entered.mail as usize] = Some(at_us(entered.begun));
            self.taken[entered.mail as usize] = Some(at_us(entered.taken));
        }
        Ok(())
    }

    /// Runs until all wanted mail is accepted (true), or the time is up (false).
    fn until_done(&mut self, started: Instant) -> Result<bool> {
        let counts: Vec<usize> =
            (0..self.plan.classes).map(|class| self.plan.count(class)).collect();
        let is_done = |class: usize| self.sink.accepted(class) as usize >= counts[class];
        let mut arrivals = self.plan.arrivals.iter().peekable();
        let mut later = self.plan.later.iter().peekable();
        let mut looks = 0_u32;
        loop {
            check_signals()?;
            let mut came = false;
            while let Some((_, mail)) = arrivals.next_if(|(after, _)| *after <= started.elapsed()) {
                self.arrive(*mail)?;
                came = true;
            }
            if let Some(next) = later.peek() {
                let passed = self.subject.passed(self.plan)?;
                if passed as f64 >= next.passed * self.plan.before.len() as f64
                    && next.done.iter().all(|&class| is_done(class))
                {
                    for &mail in &next.mails {
                        self.arrive(mail)?;
                    }
                    later.next();
                    came = true;
                }
            }
            if came {
                self.subject.notify()?;
            }
            if self.plan.held.is_none_or(|held| self.sink.sessions() >= held)
                && self.plan.wanted.iter().all(|&class| is_done(class))
            {
                return Ok(true);
            }
            if started.elapsed() >= self.plan.most {
                return Ok(false);
            }
            if looks.is_multiple_of(128) {
                self.subject.check()?;
                // A mail that was not taken ends the run.
                if self.injection.as_ref().is_some_and(Injection::has_ended) {
                    self.close_door()?;
                }
            }
            looks = looks.wrapping_add(1);
            std::thread::sleep(LOOK);
        }
    }

    fn arrive(&mut self, mail: u32) -> Result<()> {
        self.subject.queue(self.plan, mail)?;
        let at_us = self.sink.started().elapsed().as_micros() as u64;
        self.arrived[mail as usize] = Some(at_us);
        Ok(())
    }
}
