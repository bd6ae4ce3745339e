//! A name server on loopback for the bench's own names: it has the MX records of the domains and the addresses of the
//! servers, and nothing else.

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use hickory_proto::op::{Message, OpCode, ResponseCode};
use hickory_proto::rr::rdata::{A, MX};
use hickory_proto::rr::{Name, RData, Record, RecordType};

use crate::error::{Error, Result};
use crate::plan::Plan;

/// Seconds that an answer may be remembered.
const TTL: u32 = 60;

/// The records of the name server.
#[derive(Debug, Default, Clone)]
pub struct Zone {
    /// The mail exchanger of each domain, in lower case without a dot at the end.
    pub exchangers: HashMap<String, String>,
    /// The address of each host.
    pub hosts: HashMap<String, Ipv4Addr>,
}

impl Zone {
    /// One host for each server of `plan`.
    pub fn of(plan: &Plan) -> Zone {
        let host = |server: usize| format!("mx{server}.bench.example");
        let mut zone = Zone::default();
        for domain in &plan.domains {
            zone.exchangers.insert(domain.name.clone(), host(domain.server));
        }
        for (number, server) in plan.servers.iter().enumerate() {
            zone.hosts.insert(host(number), server.address);
        }
        zone
    }

    fn answer(&self, query: &[u8]) -> Option<Vec<u8>> {
        let query = Message::from_vec(query).ok()?;
        let question = query.queries.first()?;
        let mut answer = Message::response(query.metadata.id, OpCode::Query);
        answer.metadata.authoritative = true;
        answer.metadata.recursion_desired = query.metadata.recursion_desired;
        answer.metadata.recursion_available = true;
        answer.add_query(question.clone());
        let name = question.name().to_ascii().to_ascii_lowercase();
        let name = name.trim_end_matches('.');
        let (exchanger, host) = (self.exchangers.get(name), self.hosts.get(name));
        let wants =
            |kind| question.query_type() == kind || question.query_type() == RecordType::ANY;
        if let Some(exchanger) = exchanger
            && wants(RecordType::MX)
        {
            let data = RData::MX(MX::new(10, Name::from_ascii(format!("{exchanger}.")).ok()?));
            answer.add_answer(Record::from_rdata(question.name().clone(), TTL, data));
        }
        if let Some(host) = host
            && wants(RecordType::A)
        {
            let data = RData::A(A(*host));
            answer.add_answer(Record::from_rdata(question.name().clone(), TTL, data));
        }
        if exchanger.is_none() && host.is_none() {
            answer.metadata.response_code = ResponseCode::NXDomain;
        }
        answer.to_vec().ok()
    }
}

/// A running name server; it ends when dropped.
#[derive(Debug)]
pub struct NameServer {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
    at: SocketAddrV4,
}

impl NameServer {
    /// Answers for `zone` at `at`; port 0 takes any free one.
    pub fn start(at: SocketAddrV4, zone: Zone) -> Result<NameServer> {
        let socket =
            UdpSocket::bind(at).map_err(Error::doing(format!("answer DNS queries at {at}")))?;
        socket
            .set_read_timeout(Some(Duration::from_millis(50)))
            .map_err(Error::doing("set up a socket"))?;
        let at = match socket.local_addr().map_err(Error::doing("look at a socket"))? {
            std::net::SocketAddr::V4(at) => at,
            std::net::SocketAddr::V6(_) => at,
        };
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::Builder::new()
            .name("dns".to_owned())
            .spawn(move || {
                let mut buffer = [0_u8; 4096];
                while !stopped.load(Ordering::Acquire) {
                    let Ok((count, from)) = socket.recv_from(&mut buffer) else { continue };
                    if let Some(answer) = zone.answer(&buffer[..count]) {
                        let _ = socket.send_to(&answer, from);
                    }
                }
            })
            .map_err(Error::doing("start the name server's thread"))?;
        Ok(NameServer { stop, thread: Some(thread), at })
    }

    /// The address that it listens on.
    pub fn at(&self) -> SocketAddrV4 {
        self.at
    }
}

impl Drop for NameServer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
