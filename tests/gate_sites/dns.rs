//! A name server on loopback, UDP and TCP on one port, that says what a test wants.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use hickory_resolver::proto::op::{Message, OpCode, ResponseCode};
use hickory_resolver::proto::rr::rdata::{CNAME, MX, SOA};
use hickory_resolver::proto::rr::{Name, RData, Record, RecordType};

/// What the server does when it is asked for a name.
#[derive(Clone, Debug)]
pub(crate) enum Says {
    /// These mail exchangers, and nothing of other types.
    Mx(Vec<(u16, Name)>),
    /// It is an alias, whose target is to be asked for.
    Alias(&'static str),
    /// The name exists, without any record.
    NoData,
    /// This code. NXDomain is also said of every name that is not in the zone.
    Code(ResponseCode),
    /// Nothing at all.
    Silence,
    /// Bytes that are no message.
    Noise,
    /// The truncation flag by UDP; by TCP these exchangers.
    Truncated(Vec<(u16, Name)>),
    /// A referral to other servers.
    Referral,
    /// The mail exchangers of another name.
    Other(u16, &'static str),
    /// The truncation flag by UDP; by TCP nothing, until [`Dns::let_go`].
    Hangs,
    /// The truncation flag by UDP; by TCP a long answer, one byte at a time with this pause between them.
    Drips(Duration),
    /// By UDP this many answers to other questions. None has the right number.
    WrongIds(u32),
    /// The right head and question, and behind them these bytes, which are said to be so many answers.
    Bytes(u16, Vec<u8>),
    /// `n.REST` is an alias of `n+1.REST`, without end; this many of them are in each answer.
    Chain(u32),
}

pub(crate) fn name(text: &str) -> Name {
    Name::from_ascii(text).unwrap()
}

pub(crate) fn mx(list: &[(u16, &str)]) -> Says {
    Says::Mx(list.iter().map(|&(preference, target)| (preference, name(target))).collect())
}

type Zone = HashMap<String, Says>;

struct Shared {
    zone: Mutex<Zone>,
    stop: AtomicBool,
    let_go: Mutex<bool>,
    freed: Condvar,
    asked: AtomicU32,
    by_tcp: AtomicU32,
}

pub(crate) struct Dns {
    shared: Arc<Shared>,
    pub address: SocketAddr,
    threads: Vec<JoinHandle<()>>,
}

impl Dns {
    pub(crate) fn new() -> Self {
        // The port of one may be taken by somebody else for the other.
        let (udp, tcp) = (0..100)
            .find_map(|_| {
                let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
                let tcp = TcpListener::bind(udp.local_addr().unwrap()).ok()?;
                Some((udp, tcp))
            })
            .expect("a port");
        let address = udp.local_addr().unwrap();
        udp.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
        tcp.set_nonblocking(true).unwrap();
        let shared = Arc::new(Shared {
            zone: Mutex::default(),
            stop: AtomicBool::new(false),
            let_go: Mutex::new(false),
            freed: Condvar::new(),
            asked: AtomicU32::new(0),
            by_tcp: AtomicU32::new(0),
        });
        let (for_udp, for_tcp) = (shared.clone(), shared.clone());
        let threads = vec![
            thread::spawn(move || serve_udp(&for_udp, &udp)),
            thread::spawn(move || serve_tcp(&for_tcp, &tcp)),
        ];
        Self { shared, address, threads }
    }

    /// From now on.
    pub(crate) fn says(&self, of: &str, says: Says) {
        self.shared.zone.lock().unwrap().insert(of.to_string(), says);
    }

    /// Answers what hangs, with what the zone says of it now.
    pub(crate) fn let_go(&self) {
        *self.shared.let_go.lock().unwrap() = true;
        self.shared.freed.notify_all();
    }

    /// How many questions there were, and how many of them by TCP.
    pub(crate) fn asked(&self) -> (u32, u32) {
        (self.shared.asked.load(Ordering::SeqCst), self.shared.by_tcp.load(Ordering::SeqCst))
    }
}

impl Drop for Dns {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        self.let_go();
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

fn serve_udp(shared: &Shared, socket: &UdpSocket) {
    let mut buffer = [0; 4096];
    while !shared.stop.load(Ordering::SeqCst) {
        if let Ok((len, from)) = socket.recv_from(&mut buffer)
            && let Some(Answer { bytes, copies, .. }) = answer(shared, &buffer[..len], false)
        {
            for copy in 0..copies {
                // With one copy the number is the right one.
                let id = u16::from_be_bytes([bytes[0], bytes[1]]).wrapping_add(copy as u16);
                let copy = [&id.to_be_bytes()[..], &bytes[2..]].concat();
                let _ = socket.send_to(&copy, from);
            }
        }
    }
}

fn serve_tcp(shared: &Arc<Shared>, listener: &TcpListener) {
    while !shared.stop.load(Ordering::SeqCst) {
        let Ok((stream, _)) = listener.accept() else {
            thread::sleep(Duration::from_millis(5));
            continue;
        };
        stream.set_nonblocking(false).unwrap();
        let shared = shared.clone();
        // It ends with who asks, whenever that is.
        thread::spawn(move || serve_stream(&shared, stream));
    }
}

fn serve_stream(shared: &Shared, mut stream: TcpStream) {
    let mut len = [0; 2];
    while stream.read_exact(&mut len).is_ok() {
        let mut question = vec![0; usize::from(u16::from_be_bytes(len))];
        if stream.read_exact(&mut question).is_err() {
            break;
        }
        let Some(Answer { bytes, pause, .. }) = answer(shared, &question, true) else { break };
        let framed = [&(bytes.len() as u16).to_be_bytes()[..], &bytes].concat();
        let written = match pause {
            None => stream.write_all(&framed),
            Some(pause) => framed.iter().try_for_each(|byte| {
                thread::sleep(pause);
                stream.write_all(&[*byte])
            }),
        };
        if written.is_err() {
            break;
        }
    }
}

struct Answer {
    bytes: Vec<u8>,
    /// How often it is sent by UDP; the first time with this number, then with the next ones.
    copies: u32,
    /// Before each byte by TCP.
    pause: Option<Duration>,
}

fn answer(shared: &Shared, question: &[u8], tcp: bool) -> Option<Answer> {
    let asked_bytes = question.to_vec();
    let question = Message::from_vec(question).ok()?;
    let query = question.queries.first()?.clone();
    shared.asked.fetch_add(1, Ordering::SeqCst);
    shared.by_tcp.fetch_add(u32::from(tcp), Ordering::SeqCst);
    let asked = query.name().clone();
    let of = asked.to_ascii().to_ascii_lowercase();
    let of = of.trim_end_matches('.');
    let says = {
        let zone = shared.zone.lock().unwrap();
        // What is said of *.REST is said of all names one label below REST that have no entry.
        let below = of.split_once('.').and_then(|(_, rest)| zone.get(&format!("*.{rest}")));
        zone.get(of).or(below).cloned()
    };
    let (mut copies, mut pause) = (1, None);

    let mut message = Message::response(question.metadata.id, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.metadata.recursion_available = true;
    message.add_query(query.clone());
    let record = |owner: &Name, data| Record::from_rdata(owner.clone(), 300, data);
    let no_data = |message: &mut Message| {
        let soa = SOA::new(name("ns.example."), name("root.example."), 1, 60, 60, 60, 60);
        message.add_authority(record(&name("example."), RData::SOA(soa)));
    };
    let exchangers = |message: &mut Message, list: &[(u16, Name)]| {
        for (preference, target) in list {
            message.add_answer(record(&asked, RData::MX(MX::new(*preference, target.clone()))));
        }
    };
    match says.unwrap_or(Says::Code(ResponseCode::NXDomain)) {
        Says::Mx(list) if query.query_type() == RecordType::MX => exchangers(&mut message, &list),
        Says::Truncated(list) if tcp => exchangers(&mut message, &list),
        Says::Truncated(_) => message.metadata.truncation = true,
        Says::Alias(target) => {
            message.add_answer(record(&asked, RData::CNAME(CNAME(name(target)))));
        }
        Says::Mx(_) | Says::NoData => no_data(&mut message),
        Says::Code(code) => {
            message.metadata.response_code = code;
            no_data(&mut message);
        }
        Says::Silence => return None,
        Says::Noise => {
            return Some(Answer { bytes: b"\xff".repeat(100), copies: 1, pause: None });
        }
        Says::Hangs | Says::Drips(_) if !tcp => message.metadata.truncation = true,
        Says::Hangs => {
            let held = shared.let_go.lock().unwrap();
            let free = shared.freed.wait_while(held, |let_go| !*let_go).unwrap();
            drop(free);
            // What the zone says now.
            if matches!(shared.zone.lock().unwrap().get(of), Some(Says::Hangs)) {
                return None;
            }
            return self::answer(shared, &asked_bytes, tcp);
        }
        Says::Drips(each) => {
            pause = Some(each);
            exchangers(&mut message, &[(1, name("x.outlook.com."))]);
        }
        Says::WrongIds(count) => {
            exchangers(&mut message, &[(1, name("x.outlook.com."))]);
            message.metadata.id = message.metadata.id.wrapping_add(1);
            copies = count.min(60_000);
        }
        Says::Bytes(count, bytes) => {
            let mut all = message.to_vec().unwrap();
            all[6..8].copy_from_slice(&count.to_be_bytes());
            all.extend(bytes);
            return Some(Answer { bytes: all, copies, pause });
        }
        Says::Chain(count) => {
            let (number, rest) = of.split_once('.')?;
            let number: u32 = number.parse().ok()?;
            for at in number..number + count {
                let [owner, target] = [at, at + 1].map(|at| name(&format!("{at}.{rest}.")));
                message.add_answer(record(&owner, RData::CNAME(CNAME(target))));
            }
        }
        Says::Referral => {
            let ns = hickory_resolver::proto::rr::rdata::NS(name("ns.elsewhere.example."));
            message.metadata.recursion_available = false;
            message.add_authority(record(&name("example."), RData::NS(ns)));
        }
        Says::Other(preference, target) => {
            let data = RData::MX(MX::new(preference, name(target)));
            message.add_answer(record(&name("victim.example."), data));
        }
    }
    let bytes = message.to_vec().unwrap();
    if !tcp && bytes.len() > 4096 {
        message.metadata.truncation = true;
        message.answers.clear();
        return Some(Answer { bytes: message.to_vec().unwrap(), copies, pause });
    }
    Some(Answer { bytes, copies, pause })
}
