//! A proxy before a server: it holds each answer back for a while, or goes to another server from now on.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, AtomicU64, Ordering};
use std::thread::{sleep, spawn};
use std::time::Duration;

/// A proxy that runs until the end of the process.
#[derive(Debug)]
pub struct Proxy {
    /// Its port on 127.0.0.1.
    pub port: u16,
    delay_ms: Arc<AtomicU64>,
    server: Arc<AtomicU16>,
}

fn pass(mut from: TcpStream, mut to: TcpStream, delay_ms: Option<Arc<AtomicU64>>) {
    let mut bytes = [0; 65536];
    while let Ok(count @ 1..) = from.read(&mut bytes) {
        if let Some(delay_ms) = &delay_ms {
            sleep(Duration::from_millis(delay_ms.load(Ordering::Relaxed)));
        }
        if to.write_all(&bytes[..count]).is_err() {
            break;
        }
    }
    let _ = (from.shutdown(Shutdown::Both), to.shutdown(Shutdown::Both));
}

impl Proxy {
    /// A proxy before the server at this port of 127.0.0.1. Without a delay at first.
    ///
    /// # Panics
    /// No port can be had.
    #[must_use]
    pub fn start(server: u16) -> Self {
        let socket = TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = socket.local_addr().expect("its address").port();
        let delay_ms = Arc::new(AtomicU64::new(0));
        let server = Arc::new(AtomicU16::new(server));
        let (delay, at) = (Arc::clone(&delay_ms), Arc::clone(&server));
        spawn(move || {
            for client in socket.incoming().map_while(Result::ok) {
                let address = ("127.0.0.1", at.load(Ordering::Relaxed));
                let Ok(server) = TcpStream::connect(address) else { continue };
                let (Ok(from), Ok(to)) = (client.try_clone(), server.try_clone()) else { continue };
                spawn(move || pass(from, to, None));
                let delay = Arc::clone(&delay);
                spawn(move || pass(server, client, Some(delay)));
            }
        });
        Self { port, delay_ms, server }
    }

    /// New connections go to this port.
    pub fn go_to(&self, server: u16) {
        self.server.store(server, Ordering::Relaxed);
    }

    /// From now on each answer comes this much later.
    pub fn delay(&self, time: Duration) {
        self.delay_ms.store(time.as_millis() as u64, Ordering::Relaxed);
    }
}
