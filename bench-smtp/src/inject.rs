//! Puts mail into a mail server by its own front door while it runs: at a pace, whether or not the server keeps up.
//!
//! Each of [`INJECTORS`] threads takes the next mail, waits until it is due, and gives it to its own [`Entrance`]. A
//! thread returns only when the server has taken the mail. So there are at most as many at the door as tcpserver(1)
//! lets in by default, and a server that is slower than the pace is offered the next mail when it has taken one.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::error::{Error, Result};

/// How many mails are at the front door at the same time at most: tcpserver's limit without the option -c.
pub const INJECTORS: usize = 40;

/// One client of a mail server's front door.
pub trait Entrance: Send {
    /// Gives it a mail for `recipient`. Returns when the server has taken it.
    fn put(&mut self, recipient: &str) -> Result<()>;
}

/// A mail that came in by the front door.
#[derive(Debug, Clone, Copy)]
pub struct Entered {
    /// Its number.
    pub mail: u32,
    /// When the client began.
    pub begun: Instant,
    /// When the server had taken it.
    pub taken: Instant,
}

/// Mail on its way in.
#[derive(Debug)]
pub struct Injection {
    threads: Vec<JoinHandle<Result<Vec<Entered>>>>,
    stop: Arc<AtomicBool>,
}

/// A mail that is to come in.
#[derive(Debug, Clone)]
pub struct DueMail {
    /// When, from the start on.
    pub after: Duration,
    /// Its number.
    pub mail: u32,
    /// Its recipient.
    pub recipient: String,
}

impl Injection {
    /// Starts a thread for each of `entrances`. The mails are due in their order, counted from `started` on.
    pub fn start(
        entrances: Vec<Box<dyn Entrance>>,
        mails: Vec<DueMail>,
        started: Instant,
    ) -> Result<Injection> {
        let (mails, next) = (Arc::new(mails), Arc::new(AtomicUsize::new(0)));
        let mut injection =
            Injection { threads: Vec::new(), stop: Arc::new(AtomicBool::new(false)) };
        for mut entrance in entrances {
            let (mails, next, stop) =
                (Arc::clone(&mails), Arc::clone(&next), Arc::clone(&injection.stop));
            let thread = std::thread::Builder::new()
                .name("injector".to_owned())
                .spawn(move || {
                    let mut entered = Vec::new();
                    while !stop.load(Ordering::Acquire) {
                        let Some(due) = mails.get(next.fetch_add(1, Ordering::AcqRel)) else {
                            break;
                        };
                        std::thread::sleep(due.after.saturating_sub(started.elapsed()));
                        let begun = Instant::now();
                        entrance.put(&due.recipient)?;
                        entered.push(Entered { mail: due.mail, begun, taken: Instant::now() });
                    }
                    Ok(entered)
                })
                .map_err(Error::doing("start a thread"))?;
            injection.threads.push(thread);
        }
        Ok(injection)
    }

    /// Whether all threads have ended: all mail was taken, or a server did not take one.
    pub fn has_ended(&self) -> bool {
        self.threads.iter().all(JoinHandle::is_finished)
    }

    /// Begins no more mail, and returns what was taken, in the order of its beginning.
    ///
    /// # Errors
    /// The server did not take a mail.
    pub fn finish(mut self) -> Result<Vec<Entered>> {
        self.stop.store(true, Ordering::Release);
        let mut all = Vec::new();
        for thread in self.threads.drain(..) {
            let entered = thread.join().map_err(|_| {
                Error::new("an injector has panicked", "this is a bug of the bench")
            })?;
            all.extend(entered?);
        }
        all.sort_by_key(|entered| entered.begun);
        Ok(all)
    }
}

impl Drop for Injection {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        for thread in self.threads.drain(..) {
            // Whatever it says, something else has failed before.
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;

    struct Notes(Arc<Mutex<Vec<String>>>, Option<&'static str>);

    impl Entrance for Notes {
        fn put(&mut self, recipient: &str) -> Result<()> {
            if self.1 == Some(recipient) {
                return Err(Error::new("refused", ""));
            }
            self.0.lock().expect("notes").push(recipient.to_owned());
            Ok(())
        }
    }

    fn due(count: u32) -> Vec<DueMail> {
        let due = |mail: u32| DueMail {
            after: Duration::from_micros(u64::from(mail) * 100),
            mail,
            recipient: mail.to_string(),
        };
        (0..count).map(due).collect()
    }

    fn entrances(
        notes: &Arc<Mutex<Vec<String>>>,
        refused: Option<&'static str>,
    ) -> Vec<Box<dyn Entrance>> {
        let one = || Box::new(Notes(Arc::clone(notes), refused)) as Box<dyn Entrance>;
        (0..5).map(|_| one()).collect()
    }

    #[test]
    fn each_mail_enters_once_and_not_before_it_is_due() {
        let notes = Arc::new(Mutex::new(Vec::new()));
        let started = Instant::now();
        let injection =
            Injection::start(entrances(&notes, None), due(200), started).expect("threads");
        while !injection.has_ended() {
            std::thread::yield_now();
        }
        let entered = injection.finish().expect("all taken");
        let mut mails: Vec<u32> = entered.iter().map(|entered| entered.mail).collect();
        assert!(entered.iter().all(|entered| {
            entered.begun - started >= Duration::from_micros(u64::from(entered.mail) * 100)
                && entered.taken >= entered.begun
        }));
        mails.sort_unstable();
        assert_eq!(mails, (0..200).collect::<Vec<_>>());
        assert_eq!(notes.lock().expect("notes").len(), 200);
    }

    #[test]
    fn a_mail_that_is_not_taken_is_an_error() {
        let notes = Arc::new(Mutex::new(Vec::new()));
        let injection = Injection::start(entrances(&notes, Some("7")), due(20), Instant::now());
        let injection = injection.expect("threads");
        while !injection.has_ended() {
            std::thread::yield_now();
        }
        assert!(injection.finish().is_err());
    }
}
