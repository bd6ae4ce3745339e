//! Prometheus itself, which scrapes the server.

use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddrV4, TcpStream};
use std::process::{Command, Stdio};

use qpatch_test_support::has;
use qpatch_test_support::port::HeldPort;

use crate::rig::{Home, Server, key, status, until};

#[test]
fn prometheus_scrapes_the_metrics_and_sees_when_there_is_no_status() {
    if !has("prometheus") {
        return;
    }
    let home = Home::new();
    home.write(status(&key(b"\"a\\\xff.example", [20, 3, 1, 5, 20], 0, b"")));
    let server = Server::start(home.path());
    let dir = tempfile::tempdir().unwrap();
    let config = format!(
        "global:\n  scrape_interval: 200ms\n  scrape_timeout: 200ms\nscrape_configs:\n  - job_name: gate\n    \
         static_configs:\n      - targets: ['{}']\n",
        server.address
    );
    fs::write(dir.path().join("prometheus.yml"), config).unwrap();
    // It does not say which port it has taken, so it gets one.
    let held = HeldPort::of(Ipv4Addr::LOCALHOST);
    let address = held.address();
    let mut prometheus = Command::new("prometheus")
        .arg("--config.file=prometheus.yml")
        .arg("--storage.tsdb.path=data")
        .arg(format!("--web.listen-address={address}"))
        .current_dir(dir.path())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let asked = std::panic::catch_unwind(|| {
        let value = |query: &str, expected: &str| {
            until(query, || query_of(address, query).filter(|answer| answer.contains(expected)))
        };
        value("up", "\"1\"]");
        value("qmail_gate_up", "\"1\"]");
        value("qmail_gate_key_running", "\"key\":\"\\\"a\\\\%ff.example\"");
        home.remove_status();
        value("up", "\"0\"]");
    });
    prometheus.kill().unwrap();
    prometheus.wait().unwrap();
    asked.unwrap();
}

/// What Prometheus' API answers.
fn query_of(address: SocketAddrV4, query: &str) -> Option<String> {
    let mut stream = TcpStream::connect(address).ok()?;
    let request = format!("GET /api/v1/query?query={query} HTTP/1.0\r\nHost: localhost\r\n\r\n");
    stream.write_all(request.as_bytes()).ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    Some(answer)
}
