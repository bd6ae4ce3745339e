//! A mail filter for Postfix and sendmail. It holds each mail for a while and then lets the server discard it, so that
//! a local server takes as long as a distant one and keeps no queue. It can also defer every second recipient.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::error::{Error, Result};
use crate::sink::mail_of;

/// Which recipients the filter accepts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Takes {
    /// All.
    All,
    /// Those whose mail [`is_taken`]. The others get the mail server's own reply for a filter that defers.
    EverySecond,
}

/// Whether a mail is in the half that is accepted: one of 2n and 2n + 1, by the Thue-Morse sequence. The half cannot be
/// the even numbers: qmail-send reads its queue directory by directory, and each has only even or only odd numbers.
pub fn is_taken(mail: u32) -> bool {
    mail.count_ones().is_multiple_of(2)
}

/// Commands and answers of the milter protocol, version 6, from libmilter's mfdef.h and Postfix's milter8.c.
mod code {
    pub(super) const OPTIONS: u8 = b'O';
    pub(super) const MACROS: u8 = b'D';
    pub(super) const ABORT: u8 = b'A';
    pub(super) const QUIT: u8 = b'Q';
    pub(super) const QUIT_NEW_CONNECTION: u8 = b'K';
    pub(super) const RECIPIENT: u8 = b'R';
    pub(super) const END_OF_MESSAGE: u8 = b'E';
    pub(super) const CONTINUE: u8 = b'c';
    pub(super) const NOT_NOW: u8 = b't';
    pub(super) const DISCARD: u8 = b'd';
}

/// What the server need not send to the filter: the connection, HELO, the sender, the body, header lines, their end,
/// unknown commands, DATA.
const NOT_WANTED: u32 = 0x1 | 0x2 | 0x4 | 0x10 | 0x20 | 0x40 | 0x100 | 0x200;
const VERSION: u32 = 6;
/// The protocol's largest packet is a body chunk of 65,535 bytes.
const PACKET_MAX: usize = 1 << 17;

/// A running filter. Dropping it closes its listener; its connections end when the mail server closes them.
#[derive(Debug)]
pub struct Milter {
    at: SocketAddrV4,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Milter {
    /// Listens on a loopback port.
    pub fn start(port: u16, takes: Takes, hold: Duration) -> Result<Milter> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port))
            .map_err(Error::doing("listen as a milter"))?;
        let port = listener.local_addr().map_err(Error::doing("listen as a milter"))?.port();
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            for stream in listener.incoming() {
                if stopped.load(Ordering::Acquire) {
                    return;
                }
                let Ok(stream) = stream else { continue };
                // Its end is the mail server's; what went wrong is seen there.
                std::thread::spawn(move || drop(converse(stream, takes, hold)));
            }
        });
        let at = SocketAddrV4::new(Ipv4Addr::LOCALHOST, port);
        Ok(Milter { at, stop, thread: Some(thread) })
    }

    /// The address that it listens on.
    pub fn at(&self) -> SocketAddrV4 {
        self.at
    }
}

impl Drop for Milter {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        // It wakes the listener.
        if TcpStream::connect(self.at).is_ok()
            && let Some(thread) = self.thread.take()
        {
            let _ = thread.join();
        }
    }
}

fn converse(mut stream: TcpStream, takes: Takes, hold: Duration) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut packet = Vec::new();
    loop {
        let mut length = [0; 4];
        stream.read_exact(&mut length)?;
        let length = u32::from_be_bytes(length) as usize;
        if !(1..=PACKET_MAX).contains(&length) {
            return Err(io::ErrorKind::InvalidData.into());
        }
        packet.resize(length, 0);
        stream.read_exact(&mut packet)?;
        let answer = match packet[0] {
            code::OPTIONS => {
                let offered = packet.get(9..13).and_then(|bytes| bytes.try_into().ok());
                let offered = offered.map_or(0, u32::from_be_bytes);
                let mut answer = vec![code::OPTIONS];
                for word in [VERSION, 0, offered & NOT_WANTED] {
                    answer.extend_from_slice(&word.to_be_bytes());
                }
                answer
            }
            code::MACROS | code::ABORT | code::QUIT_NEW_CONNECTION => continue,
            code::QUIT => return Ok(()),
            code::RECIPIENT
                if takes == Takes::EverySecond
                    && mail_of(&packet).is_some_and(|mail| !is_taken(mail)) =>
            {
                vec![code::NOT_NOW]
            }
            code::END_OF_MESSAGE => {
                std::thread::sleep(hold);
                vec![code::DISCARD]
            }
            _ => vec![code::CONTINUE],
        };
        stream.write_all(&(answer.len() as u32).to_be_bytes())?;
        stream.write_all(&answer)?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sends a packet and returns the answer's packet.
    fn ask(stream: &mut TcpStream, packet: &[u8]) -> Vec<u8> {
        stream.write_all(&(packet.len() as u32).to_be_bytes()).expect("it reads");
        stream.write_all(packet).expect("it reads");
        let mut length = [0; 4];
        stream.read_exact(&mut length).expect("an answer");
        let mut answer = vec![0; u32::from_be_bytes(length) as usize];
        stream.read_exact(&mut answer).expect("an answer");
        answer
    }

    #[test]
    fn it_declines_what_was_offered_only_and_defers_half_of_the_mail() {
        let milter = Milter::start(0, Takes::EverySecond, Duration::ZERO).expect("it starts");
        let mut stream = TcpStream::connect(milter.at()).expect("a connection");
        // Version 6, no actions, and only the steps up to "no body".
        let answer = ask(&mut stream, b"O\0\0\0\x06\0\0\x01\xff\0\0\0\x1f");
        assert_eq!(answer, b"O\0\0\0\x06\0\0\0\0\0\0\0\x17");
        assert_eq!(ask(&mut stream, b"R<m000003@d000.bench.example>\0"), b"c");
        assert_eq!(ask(&mut stream, b"R<m000002@d000.bench.example>\0"), b"t");
        assert_eq!(ask(&mut stream, b"R<postmaster@d000.bench.example>\0"), b"c");
        assert_eq!(ask(&mut stream, b"E"), b"d");
        stream.write_all(b"\0\0\0\x01Q").expect("it reads");
        assert_eq!(stream.read(&mut [0]).expect("the end"), 0);
    }

    #[test]
    fn half_of_the_mail_is_taken_of_the_even_and_of_the_odd_numbers() {
        for first in [0, 1] {
            let mails = (0..100).map(|number| first + 2 * number);
            assert_eq!(mails.filter(|mail| is_taken(*mail)).count(), 50);
        }
    }
}
