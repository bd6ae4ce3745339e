//! A proxy before the store that holds each answer back for a while.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::{sleep, spawn};
use std::time::Duration;

pub(crate) struct Proxy {
    pub(crate) port: u16,
    delay_ms: Arc<AtomicU64>,
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
    /// Without a delay at first.
    pub(crate) fn start(store: u16) -> Self {
        let socket = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = socket.local_addr().unwrap().port();
        let delay_ms = Arc::new(AtomicU64::new(0));
        let delay = Arc::clone(&delay_ms);
        spawn(move || {
            for client in socket.incoming().map_while(Result::ok) {
                let Ok(server) = TcpStream::connect(("127.0.0.1", store)) else { continue };
                let (from, to) = (client.try_clone().unwrap(), server.try_clone().unwrap());
                spawn(move || pass(from, to, None));
                let delay = Arc::clone(&delay);
                spawn(move || pass(server, client, Some(delay)));
            }
        });
        Self { port, delay_ms }
    }

    pub(crate) fn delay(&self, time: Duration) {
        self.delay_ms.store(time.as_millis() as u64, Ordering::Relaxed);
    }
}
