//! A running `qpatch gate serve`, a client for it, and status files that it shows.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread::spawn;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

/// Longer than anything takes on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// Calls `look` until it returns something.
///
/// # Panics
/// After [`PATIENCE`].
pub(crate) fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < end, "never: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// An installed qmail with a status file, or without one.
pub(crate) struct Home(TempDir);

impl Home {
    pub(crate) fn new() -> Home {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("queue/lock")).unwrap();
        fs::create_dir(dir.path().join("control")).unwrap();
        Home(dir)
    }

    pub(crate) fn path(&self) -> &Path {
        self.0.path()
    }

    fn status_file(&self) -> PathBuf {
        self.0.path().join("queue/lock/gatestatus")
    }

    /// Writes the status as a whole, as another process would see it.
    pub(crate) fn write(&self, status: impl AsRef<[u8]>) {
        let new = self.0.path().join("new");
        fs::write(&new, status).unwrap();
        fs::rename(new, self.status_file()).unwrap();
    }

    pub(crate) fn remove_status(&self) {
        fs::remove_file(self.status_file()).unwrap();
    }
}

/// A home of tests/gate_cases.
pub(crate) fn case(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/gate_cases").join(name).join("qmail")
}

/// The seconds since 1970.
pub(crate) fn now_secs() -> u64 {
    std::time::UNIX_EPOCH.elapsed().unwrap().as_secs()
}

/// A status that this process could have written just now: so its writer runs.
pub(crate) fn status(keys: &[u8]) -> Vec<u8> {
    let (now, pid) = (now_secs(), std::process::id());
    let head = format!(
        "qpatch-gate\t1\t7\nwritten\t{now}\npid\t{pid}\nstate\tlimits\nslots\t100\t90\t50\t10\n\
         total\t1000\t7\t30\t2\t900\t5\t0\ntable\t3\t1\t{now}\tfile\n"
    );
    [head.as_bytes(), keys, b"end\t7\n"].concat()
}

/// A key's line: its name, limit, running, held, away, the limit in force, when it objected, and its error.
pub(crate) fn key(name: &[u8], figures: [u32; 5], objected_secs: u64, error: &[u8]) -> Vec<u8> {
    let [limit, running, held, away, effective] = figures;
    let numbers =
        format!("\t{limit}\t{running}\t{held}\t4\t300\t9\t{away}\t0\t1500\t{effective}\t");
    let times = format!("{objected_secs}\t0\t");
    [b"key\tdomain\t", name, numbers.as_bytes(), times.as_bytes(), error, b"\t-\t1\n"].concat()
}

/// A server, which is killed when this is dropped.
pub(crate) struct Server {
    child: Child,
    pub(crate) address: SocketAddr,
    /// What it wrote to standard error before it listened.
    pub(crate) warnings: String,
    lines: Receiver<String>,
}

impl Server {
    pub(crate) fn start(home: &Path) -> Server {
        Server::with(home, &[])
    }

    pub(crate) fn with(home: &Path, args: &[&str]) -> Server {
        let mut child = Command::new(env!("CARGO_BIN_EXE_qpatch"))
            .args(["gate", "serve", "--listen", "127.0.0.1:0"])
            .args(args)
            .arg(home)
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let (line, lines) = channel();
        let stderr = BufReader::new(child.stderr.take().unwrap());
        spawn(move || {
            for text in stderr.lines().map_while(Result::ok) {
                if line.send(text).is_err() {
                    break;
                }
            }
        });
        let mut warnings = String::new();
        let address = loop {
            let text =
                lines.recv_timeout(PATIENCE).unwrap_or_else(|_| panic!("no address: {warnings}"));
            if let Some(rest) = text.strip_prefix("qpatch: http://") {
                let (address, rest) = rest.split_once('/').unwrap();
                assert_eq!(rest, format!(" shows the gate of {}", home.display()));
                break address.parse().unwrap();
            }
            warnings.push_str(&text);
            warnings.push('\n');
        };
        Server { child, address, warnings, lines }
    }

    pub(crate) fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream
    }

    /// Sends these bytes and returns the whole answer. A reset ends it too.
    pub(crate) fn send(&self, bytes: impl AsRef<[u8]>) -> Vec<u8> {
        let mut stream = self.connect();
        // The server may have answered and closed before it has read everything.
        let _ = stream.write_all(bytes.as_ref());
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        answer
    }

    pub(crate) fn ask(&self, method: &str, path: &str, host: &str) -> Answer {
        Answer::parse(&self.send(format!("{method} {path} HTTP/1.1\r\nHost: {host}\r\n\r\n")))
    }

    pub(crate) fn get(&self, path: &str) -> Answer {
        self.ask("GET", path, &self.address.to_string())
    }

    /// Sends a signal, and returns the exit code and what else came on standard error.
    pub(crate) fn end(mut self, signal: Signal) -> (Option<i32>, Vec<String>) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
        let code = until("it ends", || self.child.try_wait().unwrap()).code();
        (code, self.lines.iter().collect())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// An answer, with the names of its headers in lower case.
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) head: String,
    pub(crate) body: String,
}

impl Answer {
    pub(crate) fn parse(bytes: &[u8]) -> Answer {
        let text = String::from_utf8(bytes.to_vec()).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("{text:?}"));
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        Answer { status, head: format!("{head}\r\n"), body: body.to_string() }
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let lines = self.head.lines().filter_map(|line| line.split_once(": "));
        lines.filter(|(found, _)| *found == name).map(|(_, value)| value).next()
    }
}
