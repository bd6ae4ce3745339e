//! Puts the server together: the address, the signals that end it, and what there is at each path.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hyper::StatusCode;
use hyper::header::HeaderValue;
use tokio::net::TcpListener;
use tokio::runtime::Builder;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{MissedTickBehavior, interval};

use super::feed::{Feed, Reading, error_json};
use super::history;
use super::http::{self, Handler, Hosts, Limits, Reply, TEXT};
use super::page::Page;
use crate::error::Error;
use crate::output::{CommandResult, warn, written};
use crate::qmail::home::Home;

const LIMITS: Limits = Limits {
    connections: 64,
    header_time: Duration::from_secs(5),
    connection_time: Duration::from_secs(20),
};
/// How many requests are answered at the same time. All of them need the same lock most of the time.
const THREADS: usize = 2;

/// Runs it until SIGTERM or SIGINT.
///
/// # Errors
/// The address cannot be listened on.
pub(super) fn run(home: Home, listen: SocketAddr, hosts: &[String], busiest: u32) -> CommandResult {
    let runtime = Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(THREADS)
        .build()
        .map_err(|error| Error::new("gate serve", format!("cannot start: {error}"), ""))?;
    let served = runtime.block_on(serve(home, listen, hosts, busiest));
    // A thread that reads a status that a gate never completes takes a second.
    runtime.shutdown_timeout(Duration::from_secs(2));
    Ok(served?)
}

async fn serve(
    home: Home,
    listen: SocketAddr,
    hosts: &[String],
    busiest: u32,
) -> Result<(), Error> {
    let signals = |error: io::Error| {
        Error::new("gate serve", format!("cannot wait for signals: {error}"), "")
    };
    let mut terminate = signal(SignalKind::terminate()).map_err(signals)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(signals)?;
    let listener = TcpListener::bind(listen).await.map_err(|error| refused(listen, &error))?;
    let address = listener.local_addr().map_err(|error| refused(listen, &error))?;
    let shown = home.path().display().to_string();
    let page = Page::new(home.path());
    let routes = Arc::new(Routes { feed: Feed::new(home, busiest), page });
    if let Err(error) = &routes.feed.latest().look {
        warn(&format!("{error}\n  the page says so until there is a status"));
    }
    if let Some(warning) = exposure(address) {
        warn(&warning);
    }
    eprintln!("qpatch: http://{address}/ shows the gate of {shown}");
    let stop = async {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    };
    let hosts = Hosts(hosts.to_vec());
    tokio::select! {
        () = http::serve(listener, LIMITS, hosts, routes.clone(), stop) => {}
        () = sample(routes) => {}
    }
    Ok(())
}

/// The warning about an address that other machines reach.
fn exposure(address: SocketAddr) -> Option<String> {
    (!address.ip().is_loopback()).then(|| {
        format!(
            "{address} is not a loopback address: all who reach it can read to which domains this server sends mail, \
             without a password and without encryption"
        )
    })
}

/// Adds to the history for ever.
async fn sample(routes: Arc<Routes>) {
    let mut ticks = interval(history::EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let routes = routes.clone();
        // It fails only if it panics, which is reported on standard error.
        let _ = tokio::task::spawn_blocking(move || routes.feed.sample()).await;
    }
}

/// Why an address cannot be listened on.
fn refused(address: SocketAddr, error: &io::Error) -> Error {
    let help = match error.kind() {
        io::ErrorKind::AddrInUse => {
            "another program listens there (ss -ltnp shows which); name another port with --listen"
        }
        io::ErrorKind::PermissionDenied => {
            "a port below 1024 needs root; name a higher one with --listen"
        }
        io::ErrorKind::AddrNotAvailable => {
            "this machine has no such address; name one that it has (ip addr) with --listen"
        }
        _ => "name another address with --listen",
    };
    Error::new(address, format!("cannot listen: {error}"), help)
}

/// What there is at each path.
struct Routes {
    feed: Feed,
    page: Page,
}

impl Handler for Routes {
    fn policy(&self) -> &HeaderValue {
        self.page.policy()
    }

    fn answer(&self, path: &str, query: &str) -> Reply {
        let reading = match path {
            "/" | "/metrics" | "/status.json" => self.feed.latest(),
            "/history.json" => {
                let body = self.feed.history();
                return Reply { status: StatusCode::OK, content_type: JSON, body };
            }
            _ => return Reply::not_found(),
        };
        let Reading { look, .. } = &*reading;
        let status = match look {
            Ok(_) => StatusCode::OK,
            Err(_) => StatusCode::SERVICE_UNAVAILABLE,
        };
        let (content_type, body) = match (path, look) {
            ("/", look) => (HTML, self.page.html(look, query).into_bytes()),
            ("/metrics", Ok(view)) => (METRICS, self.feed.metrics(view).into_bytes()),
            ("/metrics", Err(error)) => (TEXT, format!("{error}\n").into_bytes()),
            (_, Ok(view)) => (JSON, written(|out| view.json(out))),
            (_, Err(error)) => (JSON, error_json(error)),
        };
        Reply { status, content_type, body }
    }
}

const HTML: &str = "text/html; charset=utf-8";
const JSON: &str = "application/json";
/// The version that Prometheus asks for.
const METRICS: &str = "text/plain; version=0.0.4; charset=utf-8";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_that_others_reach_is_warned_about() {
        let warning = |text: &str| exposure(text.parse().expect("an address"));
        for quiet in ["127.0.0.1:9188", "127.9.9.9:1", "[::1]:9188"] {
            assert_eq!(warning(quiet), None);
        }
        for loud in ["0.0.0.0:9188", "192.0.2.1:9188", "[::]:9188"] {
            let text = warning(loud).expect("a warning");
            assert!(text.starts_with(&format!("{loud} is not a loopback address: ")), "{text}");
        }
    }

    #[test]
    fn each_reason_has_a_next_step() {
        let address = "127.0.0.1:80".parse().expect("an address");
        let text = refused(address, &io::ErrorKind::PermissionDenied.into()).to_string();
        assert_eq!(
            text,
            "127.0.0.1:80: cannot listen: permission denied\n  a port below 1024 needs root; name a higher one with \
             --listen"
        );
    }
}
