//! A redis-server of a test: on loopback, without files that stay, ended with the test.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use crate::port::HeldPort;

/// A server that runs.
#[derive(Debug)]
pub struct Redis {
    child: Child,
    dir: PathBuf,
    args: Vec<String>,
    /// Nobody else takes the port while the server is down.
    _held: HeldPort,
    /// Its port on 127.0.0.1.
    pub port: u16,
}

fn start(port: u16, dir: &Path, args: &[String]) -> Option<Child> {
    let mut child = Command::new("redis-server")
        .args([
            "--bind",
            "127.0.0.1",
            "--save",
            "",
            "--appendonly",
            "no",
            "--port",
            &port.to_string(),
            "--dir",
        ])
        .arg(dir)
        .args(args)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("redis-server");
    let stdout = child.stdout.take().expect("its output");
    let mut lines = BufReader::new(stdout).lines().map_while(Result::ok);
    if lines.any(|line| line.contains("eady to accept connections") || line.contains("MASTER MODE"))
    {
        // What it writes later must not block it.
        std::thread::spawn(move || lines.for_each(drop));
        return Some(child);
    }
    let _ = child.wait();
    None
}

impl Redis {
    /// Starts a server with these arguments and waits until it takes connections. None: there is no redis-server here,
    /// and the test is skipped.
    ///
    /// # Panics
    /// It does not start; or as [`crate::skip`].
    #[track_caller]
    pub fn start(args: &[&str]) -> Option<Self> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        if !crate::has("redis-server") {
            return None;
        }
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let dir =
            std::env::temp_dir().join(format!("qpatch-redis-{}-{number}", std::process::id()));
        fs::create_dir_all(&dir).expect("a folder");
        let args: Vec<String> = args.iter().map(ToString::to_string).collect();
        let held = HeldPort::of(Ipv4Addr::LOCALHOST);
        let port = held.port();
        let child = start(port, &dir, &args).expect("redis-server does not start");
        Some(Self { child, dir, args, _held: held, port })
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Ends it, and starts an empty one at the same port.
    ///
    /// # Panics
    /// It does not start.
    pub fn restart(&mut self) {
        self.stop();
        self.child = start(self.port, &self.dir, &self.args).expect("redis-server starts again");
    }

    /// Ends it.
    pub fn stop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        self.stop();
        let _ = fs::remove_dir_all(&self.dir);
    }
}
