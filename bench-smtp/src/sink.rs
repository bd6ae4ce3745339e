//! The servers at the far end: one thread that answers SMTP on any number of loopback addresses, and counts the
//! sessions on each.
//!
//! **Sessions.** A session lasts from the moment when the server has accepted a connection until it has read QUIT or
//! the end of the connection. A connection that is refused with 421 is closed at once. It is not a session, and is
//! counted separately.
//!
//! **Order.** When a session ends, the next one takes its place microseconds later, and the sink reads several such
//! events in one turn. To avoid counting two sessions at once where one followed the other, a new connection counts
//! only after the sink has looked once more for ends that came before it. So an overlap shorter than a turn of the sink
//! (tens of microseconds) may be missed; a longer one is counted.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashSet};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, SockaddrIn, bind, listen, setsockopt, socket,
    sockopt,
};
use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};

use crate::error::{Error, Result};
use crate::tls::{StartTls, TlsSession, TlsSettings};

/// How a server treats its clients.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Behaviour {
    /// It serves.
    Serve(Service),
    /// It accepts connections and never replies.
    Hang,
    /// It refuses connections.
    Refuse,
}

/// How a server serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Service {
    /// How long it takes to accept each mail.
    pub hold: Duration,
    /// The most sessions at once; any further one is greeted with 421.
    pub sessions: Option<u32>,
    /// Whether it defers each recipient once.
    pub greylist: Greylist,
}

/// Whether the first RCPT of each recipient is answered with 451.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Greylist {
    /// It is.
    On,
    /// It is not.
    Off,
}

impl Service {
    /// Holds each mail for `hold`, and has no limit of sessions.
    pub fn holding(hold: Duration) -> Service {
        Service { hold, sessions: None, greylist: Greylist::Off }
    }
}

/// A server.
#[derive(Debug, Clone, Copy)]
pub struct Server {
    /// The address that it listens on, at the sink's port.
    pub address: Ipv4Addr,
    /// What it does.
    pub behaviour: Behaviour,
}

/// The number of sessions from `at_us` on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Step {
    /// Microseconds since the sink started.
    pub at_us: u64,
    /// The number of sessions.
    pub sessions: u32,
}

/// The record of one server.
#[derive(Debug, Clone, Default)]
pub struct ServerRecord {
    /// The number of sessions over time.
    pub steps: Vec<Step>,
    /// Connections greeted with 421.
    pub refused: u32,
    /// Recipients answered with 451.
    pub greylisted: u32,
}

/// A mail that was accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Accepted {
    /// Its number: that of its recipient.
    pub mail: u32,
    /// Microseconds since the sink started.
    pub at_us: u64,
}

/// The record of all servers.
#[derive(Debug, Default)]
pub struct Record {
    /// In the order in which the servers were given.
    pub servers: Vec<ServerRecord>,
    /// For each class: the sessions that have named a mail of it, over time.
    pub classes: Vec<Vec<Step>>,
    /// In the order of time; a mail that came twice is in it twice.
    pub accepted: Vec<Accepted>,
    /// Of these, how many came over TLS.
    pub encrypted: u32,
    /// Recipients that are not the bench's.
    pub strangers: u32,
    /// The processor time of the sink's thread, in milliseconds.
    pub cpu_ms: f64,
}

/// A running sink.
#[derive(Debug)]
pub struct Sink {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<Result<Record>>>,
    started: Instant,
}

#[derive(Debug)]
struct Shared {
    /// For each class: how many different mails were accepted.
    accepted: Vec<AtomicU32>,
    sessions: AtomicU32,
    stop: AtomicBool,
    wake: EventFd,
}

/// The local part of the recipient of mail number `mail`; always seven bytes.
pub fn local_part(mail: u32) -> String {
    format!("m{mail:06}")
}

/// The number of the mail in `RCPT TO:<m000001@...>`.
pub(crate) fn mail_of(line: &[u8]) -> Option<u32> {
    let start = line.iter().position(|&byte| byte == b'<')? + 1;
    mail_of_local_part(std::str::from_utf8(line.get(start..)?).ok()?)
}

/// The number of the mail in `m000001@...`.
pub(crate) fn mail_of_local_part(address: &str) -> Option<u32> {
    let (digits, rest) = address.strip_prefix('m')?.split_at_checked(6)?;
    if rest.starts_with('@') { digits.parse().ok() } else { None }
}

impl Sink {
    /// Listens on `port` of the address of each server. `classes` has the class of each mail by its number, each below
    /// `class_count`.
    pub fn start(
        servers: &[Server],
        port: u16,
        classes: Vec<u8>,
        class_count: usize,
        starttls: StartTls,
    ) -> Result<Sink> {
        let wake = EventFd::from_value_and_flags(0, EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)
            .map_err(Error::doing("make an event descriptor"))?;
        let shared = Arc::new(Shared {
            accepted: (0..class_count).map(|_| AtomicU32::new(0)).collect(),
            sessions: AtomicU32::new(0),
            stop: AtomicBool::new(false),
            wake,
        });
        let started = Instant::now();
        let mut turn = Turn::new(servers, port, classes, Arc::clone(&shared), started)?;
        if starttls == StartTls::Offered {
            turn.tls = Some(TlsSettings::new("sink.bench.example")?);
        }
        let thread = std::thread::Builder::new()
            .name("sink".to_owned())
            .spawn(move || turn.run())
            .map_err(Error::doing("start the sink's thread"))?;
        Ok(Sink { shared, thread: Some(thread), started })
    }

    /// When the sink's clock began.
    pub fn started(&self) -> Instant {
        self.started
    }

    /// How many different mails of a class were accepted until now.
    pub fn accepted(&self, class: usize) -> u32 {
        self.shared.accepted[class].load(Ordering::Acquire)
    }

    /// How many sessions there have been until now.
    pub fn sessions(&self) -> u32 {
        self.shared.sessions.load(Ordering::Acquire)
    }

    /// Closes all connections and returns the record.
    pub fn stop(mut self) -> Result<Record> {
        self.end();
        match self.thread.take().map(JoinHandle::join) {
            Some(Ok(record)) => record,
            _ => Err(Error::new("the sink's thread has panicked", "this is a bug of the bench")),
        }
    }

    fn end(&self) {
        self.shared.stop.store(true, Ordering::Release);
        let _ = self.shared.wake.write(1);
    }
}

impl Drop for Sink {
    fn drop(&mut self) {
        self.end();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

const WAKE: u64 = u64::MAX;
const TIMER: u64 = u64::MAX - 1;
/// The number of the first listener; connections are numbered from 0 on.
const LISTENERS: u64 = 1 << 32;

/// The most connections that are accepted in one turn, so that those that are open do not have to wait.
const ACCEPTS: usize = 64;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Commands,
    Message,
    Thinking,
    Silent,
}

#[derive(Debug)]
struct Connection {
    stream: TcpStream,
    /// Set once the client has said STARTTLS.
    tls: Option<TlsSession>,
    server: usize,
    stage: Stage,
    input: Vec<u8>,
    mail: Option<u32>,
    /// The class of its first mail.
    class: Option<usize>,
    /// Distinguishes this connection from an earlier one with the same number.
    serial: u64,
}

enum After {
    Goes,
    Ends,
}

struct Turn {
    epoll: Epoll,
    timer: TimerFd,
    timer_at: Option<Instant>,
    listeners: Vec<Option<TcpListener>>,
    servers: Vec<Server>,
    records: Vec<ServerRecord>,
    active: Vec<u32>,
    connections: Vec<Option<Connection>>,
    free: Vec<usize>,
    serial: u64,
    thinking: BinaryHeap<Reverse<(Instant, usize, u64)>>,
    classes: Vec<u8>,
    seen: Vec<u8>,
    greeted: HashSet<u32>,
    record: Record,
    /// None: STARTTLS is unknown.
    tls: Option<TlsSettings>,
    shared: Arc<Shared>,
    started: Instant,
}

impl Turn {
    fn new(
        servers: &[Server],
        port: u16,
        classes: Vec<u8>,
        shared: Arc<Shared>,
        started: Instant,
    ) -> Result<Turn> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)
            .map_err(Error::doing("make an epoll descriptor"))?;
        let timer = TimerFd::new(
            ClockId::CLOCK_MONOTONIC,
            TimerFlags::TFD_CLOEXEC | TimerFlags::TFD_NONBLOCK,
        )
        .map_err(Error::doing("make a timer"))?;
        let readable = |number| EpollEvent::new(EpollFlags::EPOLLIN, number);
        epoll.add(&shared.wake, readable(WAKE)).map_err(Error::doing("watch a descriptor"))?;
        epoll.add(&timer, readable(TIMER)).map_err(Error::doing("watch a timer"))?;
        let mut listeners = Vec::new();
        for (number, server) in (0..).zip(servers) {
            if server.behaviour == Behaviour::Refuse {
                listeners.push(None);
                continue;
            }
            let listener = open(server.address, port)?;
            epoll
                .add(&listener, readable(LISTENERS + number))
                .map_err(Error::doing("watch a listener"))?;
            listeners.push(Some(listener));
        }
        let seen = vec![0; classes.len()];
        Ok(Turn {
            epoll,
            timer,
            timer_at: None,
            listeners,
            servers: servers.to_vec(),
            records: vec![ServerRecord::default(); servers.len()],
            active: vec![0; servers.len()],
            connections: Vec::new(),
            free: Vec::new(),
            serial: 0,
            thinking: BinaryHeap::new(),
            classes,
            seen,
            greeted: HashSet::new(),
            record: Record {
                classes: vec![Vec::new(); shared.accepted.len()],
                ..Record::default()
            },
            tls: None,
            shared,
            started,
        })
    }

    fn run(mut self) -> Result<Record> {
        let mut events = vec![EpollEvent::empty(); 512];
        let mut ready = Vec::new();
        let mut fresh = Vec::new();
        while !self.shared.stop.load(Ordering::Acquire) {
            let found = match self.epoll.wait(&mut events, EpollTimeout::NONE) {
                Ok(found) => found,
                Err(nix::Error::EINTR) => continue,
                Err(error) => return Err(Error::doing("wait for connections")(error)),
            };
            ready.clear();
            self.take(&events[..found], &mut ready);
            self.think();
            if !ready.is_empty() {
                self.accept(&ready, &mut fresh);
                // Sessions that ended before these connections came, and after the wait above.
                let found = self.epoll.wait(&mut events, EpollTimeout::ZERO).unwrap_or(0);
                ready.clear();
                self.take(&events[..found], &mut ready);
                for (stream, server) in fresh.drain(..) {
                    self.admit(stream, server)?;
                }
            }
            self.set_timer()?;
        }
        let usage = getrusage(UsageWho::RUSAGE_THREAD).map_err(Error::doing("read the usage"))?;
        self.record.cpu_ms = crate::usage::milliseconds(&usage);
        self.record.servers = self.records;
        Ok(self.record)
    }

    /// Serves the connections that have events; adds the listeners that have new connections to `ready`.
    fn take(&mut self, events: &[EpollEvent], ready: &mut Vec<usize>) {
        for event in events {
            match event.data() {
                WAKE => {}
                TIMER => {
                    let _ = self.timer.wait();
                    self.timer_at = None;
                }
                number if number >= LISTENERS => ready.push((number - LISTENERS) as usize),
                number => self.read(number as usize),
            }
        }
    }

    fn accept(&mut self, ready: &[usize], fresh: &mut Vec<(TcpStream, usize)>) {
        for &server in ready {
            let Some(listener) = &self.listeners[server] else { continue };
            while fresh.len() < ACCEPTS {
                match listener.accept() {
                    Ok((stream, _)) => fresh.push((stream, server)),
                    Err(error) if error.kind() == std::io::ErrorKind::ConnectionAborted => {}
                    // No connection is left; or there is no free descriptor, and the client waits until there is one.
                    Err(_) => break,
                }
            }
        }
    }

    fn now_us(&self) -> u64 {
        self.started.elapsed().as_micros() as u64
    }

    fn count(&mut self, server: usize, change: i32) {
        self.active[server] = self.active[server].saturating_add_signed(change);
        let step = Step { at_us: self.now_us(), sessions: self.active[server] };
        self.records[server].steps.push(step);
    }

    fn count_class(&mut self, class: usize, change: i32) {
        let at_us = self.now_us();
        let steps = &mut self.record.classes[class];
        let before = steps.last().map_or(0, |step| step.sessions);
        steps.push(Step { at_us, sessions: before.saturating_add_signed(change) });
    }

    fn admit(&mut self, stream: TcpStream, server: usize) -> Result<()> {
        let behaviour = self.servers[server].behaviour;
        if let Behaviour::Serve(Service { sessions: Some(most), .. }) = behaviour
            && self.active[server] >= most
        {
            self.records[server].refused += 1;
            let _ = (&stream).write_all(b"421 4.7.0 Too many connections, try again later\r\n");
            return Ok(());
        }
        let _ = stream.set_nonblocking(true);
        let _ = stream.set_nodelay(true);
        let at = self.free.pop().unwrap_or_else(|| {
            self.connections.push(None);
            self.connections.len() - 1
        });
        self.epoll
            .add(&stream, EpollEvent::new(EpollFlags::EPOLLIN, at as u64))
            .map_err(Error::doing("watch a connection"))?;
        let stage = match behaviour {
            Behaviour::Serve(_) => Stage::Commands,
            Behaviour::Hang | Behaviour::Refuse => Stage::Silent,
        };
        self.count(server, 1);
        self.shared.sessions.fetch_add(1, Ordering::AcqRel);
        let greets = stage == Stage::Commands;
        self.serial += 1;
        let serial = self.serial;
        self.connections[at] = Some(Connection {
            stream,
            tls: None,
            server,
            stage,
            input: Vec::new(),
            mail: None,
            class: None,
            serial,
        });
        if greets && !self.reply(at, b"220 sink.bench.example ESMTP\r\n") {
            self.end(at);
        }
        Ok(())
    }

    fn end(&mut self, at: usize) {
        if let Some(mut connection) = self.connections[at].take() {
            if let Some(tls) = &mut connection.tls {
                tls.close(&mut connection.stream);
            }
            // Closing takes it out of the epoll set.
            self.count(connection.server, -1);
            if let Some(class) = connection.class {
                self.count_class(class, -1);
            }
            self.free.push(at);
        }
    }

    /// Whether the client is still there.
    fn reply(&mut self, at: usize, text: &[u8]) -> bool {
        // So few bytes always fit; a client that does not read them has gone.
        self.connections[at].as_mut().is_some_and(|connection| match &mut connection.tls {
            None => connection.stream.write_all(text).is_ok(),
            Some(tls) => tls.write(&mut connection.stream, text).is_ok(),
        })
    }

    fn read(&mut self, at: usize) {
        let mut buffer = [0_u8; 4096];
        let Some(connection) = self.connections[at].as_mut() else { return };
        let Connection { stream, tls, input, .. } = connection;
        let is_there = match tls {
            None => stream.read(&mut buffer).map(|n| {
                input.extend_from_slice(&buffer[..n]);
                n > 0
            }),
            Some(tls) => tls.read(stream, input),
        };
        match is_there {
            Ok(false) => return self.end(at),
            Ok(true) => {}
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return,
            Err(_) => return self.end(at),
        }
        if let After::Ends = self.lines(at) {
            self.end(at);
        }
    }

    /// Answers every whole line that has been read, until one of them has to wait.
    fn lines(&mut self, at: usize) -> After {
        let mut taken = 0;
        loop {
            let Some(connection) = self.connections[at].as_mut() else { return After::Goes };
            let rest = &connection.input[taken..];
            let next = match connection.stage {
                Stage::Commands | Stage::Message => rest.iter().position(|&byte| byte == b'\n'),
                Stage::Thinking | Stage::Silent => None,
            };
            let Some(end) = next else {
                connection.input.drain(..taken);
                return After::Goes;
            };
            let line = rest[..end].trim_ascii_end().to_vec();
            taken += end + 1;
            let was_plain = self.is_plain(at);
            if let After::Ends = self.line(at, &line) {
                return After::Ends;
            }
            if was_plain
                && let Some(connection) = self.connections[at].as_mut()
                && connection.tls.is_some()
            {
                // What came behind STARTTLS in plain text does not count (RFC 3207, section 4.2).
                connection.input.clear();
                return After::Goes;
            }
        }
    }

    fn is_plain(&self, at: usize) -> bool {
        self.connections[at].as_ref().is_some_and(|connection| connection.tls.is_none())
    }

    /// Answers STARTTLS; what comes next is the handshake.
    fn start_tls(&mut self, at: usize) -> After {
        let Some(Ok(session)) = self.tls.as_ref().map(TlsSettings::accept) else {
            return After::Ends;
        };
        if !self.reply(at, b"220 2.0.0 go ahead\r\n") {
            return After::Ends;
        }
        if let Some(connection) = self.connections[at].as_mut() {
            connection.tls = Some(session);
            connection.mail = None;
        }
        After::Goes
    }

    fn line(&mut self, at: usize, line: &[u8]) -> After {
        let Some(connection) = self.connections[at].as_mut() else { return After::Ends };
        let server = connection.server;
        let Behaviour::Serve(service) = self.servers[server].behaviour else { return After::Ends };
        if connection.stage == Stage::Message {
            if line != b"." {
                return After::Goes;
            }
            connection.stage = Stage::Thinking;
            if service.hold.is_zero() {
                return self.accept_mail(at);
            }
            let until = Instant::now() + service.hold;
            self.thinking.push(Reverse((until, at, connection.serial)));
            return After::Goes;
        }
        let offers_tls = self.tls.is_some() && connection.tls.is_none();
        if offers_tls && line.eq_ignore_ascii_case(b"STARTTLS") {
            return self.start_tls(at);
        }
        let verb = line.get(..4).unwrap_or(line).to_ascii_uppercase();
        let text: &[u8] = match verb.as_slice() {
            b"EHLO" if offers_tls => {
                b"250-sink.bench.example\r\n250-PIPELINING\r\n250 STARTTLS\r\n"
            }
            b"EHLO" => b"250-sink.bench.example\r\n250 PIPELINING\r\n",
            b"HELO" | b"MAIL" | b"RSET" | b"NOOP" => b"250 ok\r\n",
            b"RCPT" => match mail_of(line).filter(|mail| (*mail as usize) < self.classes.len()) {
                None => {
                    self.record.strangers += 1;
                    b"550 5.1.1 no such mail\r\n"
                }
                Some(mail) if service.greylist == Greylist::On && self.greeted.insert(mail) => {
                    self.records[server].greylisted += 1;
                    b"451 4.7.1 Greylisted, try again later\r\n"
                }
                Some(mail) => {
                    connection.mail = Some(mail);
                    b"250 ok\r\n"
                }
            },
            b"DATA" if connection.mail.is_some() => {
                connection.stage = Stage::Message;
                b"354 go ahead\r\n"
            }
            b"DATA" => b"503 5.5.1 RCPT first\r\n",
            b"QUIT" => {
                self.reply(at, b"221 bye\r\n");
                return After::Ends;
            }
            _ => b"500 5.5.2 what?\r\n",
        };
        if let Some(connection) = self.connections[at].as_mut()
            && let (Some(mail), None) = (connection.mail, connection.class)
        {
            let class = self.classes[mail as usize] as usize;
            connection.class = Some(class);
            self.count_class(class, 1);
        }
        if self.reply(at, text) { After::Goes } else { After::Ends }
    }

    fn accept_mail(&mut self, at: usize) -> After {
        let at_us = self.now_us();
        let Some(connection) = self.connections[at].as_mut() else { return After::Ends };
        connection.stage = Stage::Commands;
        let mail = connection.mail.take();
        let is_encrypted = connection.tls.is_some();
        if !self.reply(at, b"250 ok\r\n") {
            return After::Ends;
        }
        if let Some(mail) = mail {
            self.record.accepted.push(Accepted { mail, at_us });
            self.record.encrypted += u32::from(is_encrypted);
            let times = &mut self.seen[mail as usize];
            *times = times.saturating_add(1);
            if *times == 1 {
                let class = self.classes[mail as usize] as usize;
                self.shared.accepted[class].fetch_add(1, Ordering::AcqRel);
            }
        }
        After::Goes
    }

    /// Answers the connections whose mail has been held long enough.
    fn think(&mut self) {
        let now = Instant::now();
        while let Some(&Reverse((until, at, serial))) = self.thinking.peek()
            && until <= now
        {
            self.thinking.pop();
            let is_there = self.connections[at].as_ref().is_some_and(|c| c.serial == serial);
            if !is_there {
                continue;
            }
            let mut after = self.accept_mail(at);
            if let After::Goes = after {
                // A client that pipelines may have sent more in the meantime.
                after = self.lines(at);
            }
            if let After::Ends = after {
                self.end(at);
            }
        }
    }

    fn set_timer(&mut self) -> Result<()> {
        let Some(&Reverse((until, ..))) = self.thinking.peek() else { return Ok(()) };
        if self.timer_at.is_some_and(|at| at <= until) {
            return Ok(());
        }
        // Zero would switch the timer off.
        let left = until.saturating_duration_since(Instant::now()).max(Duration::from_nanos(1));
        self.timer
            .set(Expiration::OneShot(TimeSpec::from_duration(left)), TimerSetTimeFlags::empty())
            .map_err(Error::doing("set the sink's timer"))?;
        self.timer_at = Some(until);
        Ok(())
    }
}

/// A listener with a long queue. The standard library's has 128 places, and a client that finds it full tries again
/// only after a second.
fn open(address: Ipv4Addr, port: u16) -> Result<TcpListener> {
    let at = SocketAddrV4::new(address, port);
    let listener = || -> nix::Result<OwnedFd> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let fd = socket(AddressFamily::Inet, SockType::Stream, flags, None)?;
        setsockopt(&fd, sockopt::ReuseAddr, &true)?;
        bind(std::os::fd::AsRawFd::as_raw_fd(&fd.as_fd()), &SockaddrIn::from(at))?;
        listen(&fd, Backlog::new(4096).unwrap_or(Backlog::MAXCONN))?;
        Ok(fd)
    };
    listener().map(TcpListener::from).map_err(|error| {
        Error::new(
            format!("cannot listen on {at}: {error}"),
            "the bench needs loopback addresses 127.x.y.z and this port for itself; name another with --port",
        )
    })
}
