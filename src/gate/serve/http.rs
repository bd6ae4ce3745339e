//! The HTTP side: connections, what a request may be, and the headers of every answer.
//!
//! What it guarantees, whatever a client sends:
//!
//! - At most [`Limits::connections`] are open. More wait in the kernel's queue until one ends.
//! - A connection serves one request. It ends after [`Limits::connection_time`], or after [`Limits::header_time`] if
//!   the request has not arrived by then. A request has at most [`HEADER_BYTES`] bytes and [`HEADERS_MAX`] header
//!   lines.
//! - Only GET and HEAD get an answer. Nothing that a request says changes anything.
//! - The name in the Host header must be an address, localhost, or one of --host. A web page of a stranger can make a
//!   browser ask a name of its own that leads here (DNS rebinding), and could then read the answer.
//! - Every answer forbids a browser to keep it, to guess its type, to show it in a frame, or to give it to another
//!   site.

use std::convert::Infallible;
use std::future::Future;
use std::net::IpAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{self, HeaderName, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinSet, spawn_blocking};
use tokio::time::{sleep, timeout};

/// The most bytes of a request's first line and headers.
const HEADER_BYTES: usize = 16 << 10;
/// The most header lines of a request.
const HEADERS_MAX: usize = 64;
/// The pause after accept(2) has failed: most likely there are no descriptors, and the next try would fail as well.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// How long the answers that are on their way may take after the server has been told to stop.
const STOP_TIME: Duration = Duration::from_secs(1);

/// The type of a message for people.
pub(super) const TEXT: &str = "text/plain; charset=utf-8";

/// The bounds of a server.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// The most open connections.
    pub(super) connections: usize,
    /// How long a client may take to send its request.
    pub(super) header_time: Duration,
    /// How long a connection may take as a whole.
    pub(super) connection_time: Duration,
}

/// What the server answers.
#[derive(Clone, Debug)]
pub(super) struct Reply {
    pub(super) status: StatusCode,
    pub(super) content_type: &'static str,
    pub(super) body: Vec<u8>,
}

impl Reply {
    /// A message for people, which begins with what the status means.
    fn text(status: StatusCode, what: &str) -> Self {
        let body = format!("{status}: {what}\n").into_bytes();
        Self { status, content_type: TEXT, body }
    }

    /// There is nothing at this path.
    pub(super) fn not_found() -> Self {
        Self::text(StatusCode::NOT_FOUND, "there are /, /metrics, /status.json and /history.json")
    }
}

/// Answers the requests for a path, with its query. It may block.
pub(super) trait Handler: Send + Sync + 'static {
    /// The value of the header Content-Security-Policy, which all answers have.
    fn policy(&self) -> &HeaderValue;
    fn answer(&self, path: &str, query: &str) -> Reply;
}

/// The names of this server that a request may ask for, besides localhost and all addresses.
#[derive(Clone, Debug, Default)]
pub(super) struct Hosts(pub(super) Vec<String>);

impl Hosts {
    /// Whether a browser that asks for this host means this server. Addresses do: no stranger can make one lead here
    /// that does not do so anyway.
    fn allow(&self, authority: &str) -> bool {
        let Some(host) = host_of(authority) else { return false };
        let host = host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase();
        host.parse::<IpAddr>().is_ok()
            || host == "localhost"
            || self.0.iter().any(|name| name.eq_ignore_ascii_case(&host))
    }
}

/// The host of `HOST` or `HOST:PORT`, without the brackets of an IPv6 address.
fn host_of(authority: &str) -> Option<&str> {
    let (host, port) = match authority.strip_prefix('[') {
        Some(rest) => rest.split_once(']')?,
        None => authority.split_at(authority.find(':').unwrap_or(authority.len())),
    };
    let is_port = |port: &str| port.bytes().all(|byte| byte.is_ascii_digit());
    (port.is_empty() || port.strip_prefix(':').is_some_and(is_port)).then_some(host)
}

/// Serves until `stop` is ready, and then ends what is open.
pub(super) async fn serve(
    listener: TcpListener,
    limits: Limits,
    hosts: Hosts,
    handler: Arc<impl Handler>,
    stop: impl Future<Output = ()>,
) {
    let hosts = Arc::new(hosts);
    let mut open = JoinSet::new();
    let mut stop = pin!(stop);
    loop {
        tokio::select! {
            () = &mut stop => break,
            Some(_) = open.join_next() => {}
            accepted = listener.accept(), if open.len() < limits.connections => match accepted {
                Ok((stream, _)) => {
                    open.spawn(connection(stream, limits, hosts.clone(), handler.clone()));
                }
                Err(_) => sleep(ACCEPT_PAUSE).await,
            },
        }
    }
    drop(listener);
    let _ = timeout(STOP_TIME, async { while open.join_next().await.is_some() {} }).await;
}

/// Serves one request. An error is the client's and is not reported: it could fill the log.
async fn connection(
    stream: TcpStream,
    limits: Limits,
    hosts: Arc<Hosts>,
    handler: Arc<impl Handler>,
) {
    let service = service_fn(|request| {
        let (hosts, handler) = (hosts.clone(), handler.clone());
        async move { Ok::<_, Infallible>(response(&request, &hosts, handler).await) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .keep_alive(false)
        .header_read_timeout(limits.header_time)
        .max_buf_size(2 * HEADER_BYTES)
        .max_header_size(HEADER_BYTES)
        .max_headers(HEADERS_MAX)
        .serve_connection(TokioIo::new(stream), service);
    let _ = timeout(limits.connection_time, connection).await;
}

async fn response(
    request: &Request<Incoming>,
    hosts: &Hosts,
    handler: Arc<impl Handler>,
) -> Response<Full<Bytes>> {
    let policy = handler.policy().clone();
    let reply = match refusal(request, hosts) {
        Some(refusal) => refusal,
        None => {
            let (path, query) = (request.uri().path(), request.uri().query().unwrap_or_default());
            let (path, query) = (path.to_string(), query.to_string());
            // It fails only if the handler panics, which has been reported on standard error then.
            spawn_blocking(move || handler.answer(&path, &query)).await.unwrap_or_else(|_| {
                Reply::text(
                    StatusCode::INTERNAL_SERVER_ERROR,
                    "see the standard error of qpatch gate serve",
                )
            })
        }
    };
    let not_allowed = reply.status == StatusCode::METHOD_NOT_ALLOWED;
    let mut response = Response::new(Full::new(Bytes::from(reply.body)));
    *response.status_mut() = reply.status;
    let headers = response.headers_mut();
    let mut set = |name: HeaderName, value: &'static str| {
        headers.insert(name, HeaderValue::from_static(value));
    };
    set(header::CONTENT_TYPE, reply.content_type);
    set(header::CACHE_CONTROL, "no-store");
    set(header::X_CONTENT_TYPE_OPTIONS, "nosniff");
    set(header::X_FRAME_OPTIONS, "DENY");
    set(header::REFERRER_POLICY, "no-referrer");
    set(HeaderName::from_static("cross-origin-resource-policy"), "same-origin");
    set(HeaderName::from_static("cross-origin-opener-policy"), "same-origin");
    if not_allowed {
        set(header::ALLOW, "GET, HEAD");
    }
    headers.insert(header::CONTENT_SECURITY_POLICY, policy);
    response
}

/// Why a request is not answered.
fn refusal(request: &Request<Incoming>, hosts: &Hosts) -> Option<Reply> {
    let mut named = request.headers().get_all(header::HOST).iter();
    let (Some(host), None) = (named.next(), named.next()) else {
        return Some(Reply::text(StatusCode::BAD_REQUEST, "a request has one Host header"));
    };
    let host = host.to_str().unwrap_or_default();
    let authority = request.uri().authority().map_or(host, |authority| authority.as_str());
    if !hosts.allow(host) || !hosts.allow(authority) {
        return Some(Reply::text(
            StatusCode::MISDIRECTED_REQUEST,
            "this is not a name of this server; ask for its address, or start it with --host NAME",
        ));
    }
    if ![Method::GET, Method::HEAD].contains(request.method()) {
        return Some(Reply::text(StatusCode::METHOD_NOT_ALLOWED, "only GET and HEAD"));
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::net::{SocketAddr, TcpStream as Client};
    use std::thread::{JoinHandle, spawn};

    use tokio::sync::oneshot;

    #[test]
    fn only_names_of_this_server_are_allowed() {
        let hosts = Hosts(vec!["Mail.example".to_string()]);
        for good in [
            "localhost",
            "LOCALHOST:9188",
            "localhost.:1",
            "127.0.0.1",
            "127.0.0.1:9188",
            "192.0.2.7:80",
            "[::1]",
            "[::1]:9188",
            "mail.example:443",
        ] {
            assert!(hosts.allow(good), "{good}");
        }
        for bad in [
            "",
            ":9188",
            "evil.example",
            "evil.example:9188",
            "127.0.0.1.evil.example",
            "localhost.evil.example",
            "xlocalhost",
            "127.0.0.1:9188@evil.example",
            "localhost:x",
            "[::1",
            "[::1]x",
            "::1",
            "a.mail.example",
        ] {
            assert!(!hosts.allow(bad), "{bad}");
        }
    }

    /// Answers with eight megabytes, or panics.
    struct Test(HeaderValue);

    impl Handler for Test {
        fn policy(&self) -> &HeaderValue {
            &self.0
        }

        fn answer(&self, path: &str, _: &str) -> Reply {
            assert_ne!(path, "/panic", "this is the test's");
            let body = vec![b'a'; 8 << 20];
            Reply { status: StatusCode::OK, content_type: "text/plain", body }
        }
    }

    /// A server in a thread of its own. What it returns ends it when it is dropped.
    fn server(limits: Limits) -> (SocketAddr, oneshot::Sender<()>, JoinHandle<()>) {
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).expect("a port");
        let address = listener.local_addr().expect("its address");
        let (ends, end) = oneshot::channel();
        let thread = spawn(move || {
            let handler = Arc::new(Test(HeaderValue::from_static("default-src 'none'")));
            let stop = async {
                let _ = end.await;
            };
            runtime.block_on(serve(listener, limits, Hosts::default(), handler, stop));
        });
        (address, ends, thread)
    }

    fn client(address: SocketAddr, sends: &str) -> Client {
        let mut client = Client::connect(address).expect("a connection");
        client.write_all(sends.as_bytes()).expect("the request is sent");
        client
    }

    const LONG: Duration = Duration::from_secs(3600);

    #[test]
    fn a_client_that_sends_no_request_is_cut_off() {
        let short = Duration::from_millis(50);
        let limits = Limits { connections: 2, header_time: short, connection_time: LONG };
        let (address, ends, thread) = server(limits);
        for sends in ["", "GET", "GET / HTTP/1.1\r\nHost: localhost\r\nX-"] {
            let mut answer = Vec::new();
            // It ends; with which answer does not matter.
            let _ = client(address, sends).read_to_end(&mut answer);
            assert!(!answer.starts_with(b"HTTP/1.1 200"), "{sends}");
        }
        drop(ends);
        thread.join().expect("it ends");
    }

    #[test]
    fn a_client_that_does_not_read_is_cut_off() {
        let limits =
            Limits { connections: 1, header_time: LONG, connection_time: Duration::from_secs(1) };
        let (address, ends, thread) = server(limits);
        let request = "GET / HTTP/1.1\r\nHost: localhost\r\n\r\n";
        let first = client(address, request);
        // There is room for this one only when the first one has been cut off.
        let mut answer = Vec::new();
        let _ = client(address, request).read_to_end(&mut answer);
        assert!(answer.starts_with(b"HTTP/1.1 200 OK\r\n"), "{}", answer.len());
        drop((first, ends));
        thread.join().expect("it ends");
    }

    #[test]
    fn more_clients_than_there_is_room_for_wait() {
        let limits = Limits { connections: 3, header_time: LONG, connection_time: LONG };
        let (address, ends, thread) = server(limits);
        let mut slow: Vec<_> = (0..3).map(|_| client(address, "GET /panic")).collect();
        let mut next = client(address, "HEAD / HTTP/1.1\r\nHost: localhost\r\n\r\n");
        next.set_nonblocking(true).expect("a socket");
        let nothing = next.read(&mut [0]).expect_err("no answer yet");
        assert_eq!(nothing.kind(), std::io::ErrorKind::WouldBlock);
        next.set_nonblocking(false).expect("a socket");
        // A panic of the handler ends one request and not the server.
        let mut first = slow.remove(0);
        first.write_all(b" HTTP/1.1\r\nHost: localhost\r\n\r\n").expect("the rest is sent");
        let mut answer = String::new();
        first.read_to_string(&mut answer).expect("an answer");
        assert!(answer.starts_with("HTTP/1.1 500 Internal Server Error\r\n"), "{answer}");
        let mut answer = String::new();
        next.read_to_string(&mut answer).expect("an answer");
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
        assert!(answer.contains("content-length: 8388608\r\n") && answer.ends_with("\r\n\r\n"));
        // Slow clients do not keep the server from ending.
        drop(ends);
        thread.join().expect("it ends");
        drop(slow);
    }
}
