//! queue/lock/remotestatus: how qmail-rspawn starts qmail-remote. `c-shim/remote_start.c` writes it.
//!
//! Each spawner of a queue has a record of 512 bytes: lines `KEY VALUE`, and newlines up to the end.

#![forbid(unsafe_code)]

use std::collections::HashMap;
use std::path::Path;

use serde::Serialize;

use super::control::read_file;

/// The length of a record, in bytes.
pub const RECORD: usize = 512;

/// The most records of a file.
const RECORDS_MAX: usize = 64;

/// What one qmail-rspawn says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RemoteStatus {
    /// The process of qmail-rspawn.
    pub pid: u32,
    /// When it wrote this, in seconds since 1970.
    pub written_secs: u64,
    /// The number in control/remoteserver: the deliveries that one server makes. 0: no server is wanted.
    pub most: u64,
    /// The process of the server. 0: there is none now.
    pub server: u32,
    /// Deliveries that the server made.
    pub by_server: u64,
    /// Deliveries by exec, without a copy of the descriptors.
    pub by_exec: u64,
    /// Deliveries by fork and exec, as the tree does it by itself.
    pub by_spawn: u64,
    /// The number of servers that failed.
    pub failed: u64,
    /// The reason why there is no server; empty if there may be one.
    pub reason: String,
}

impl RemoteStatus {
    /// Returns the records of a file, without those that cannot be read.
    pub fn parse(bytes: &[u8]) -> Vec<RemoteStatus> {
        bytes.chunks(RECORD).take(RECORDS_MAX).filter_map(Self::record).collect()
    }

    fn record(bytes: &[u8]) -> Option<RemoteStatus> {
        let text = String::from_utf8_lossy(bytes);
        let mut lines = text.lines();
        if lines.next()? != "qpatch-remote 1" {
            return None;
        }
        let values: HashMap<&str, &str> = lines.filter_map(|line| line.split_once(' ')).collect();
        let number = |key: &str| values.get(key)?.parse::<u64>().ok();
        Some(RemoteStatus {
            pid: u32::try_from(number("pid")?).ok()?,
            written_secs: number("written")?,
            most: number("most")?,
            server: u32::try_from(number("server")?).ok()?,
            by_server: number("by-server")?,
            by_exec: number("by-exec")?,
            by_spawn: number("by-spawn")?,
            failed: number("failed")?,
            reason: (*values.get("reason")?).to_owned(),
        })
    }

    /// Returns the records in the queue below `home`. qmailr may write that file, so it is read with care: there are no
    /// records if the file is missing, is not a regular file, cannot be read, or has more than 64 records.
    pub fn read(home: &Path) -> Vec<RemoteStatus> {
        let most = (RECORDS_MAX * RECORD) as u64;
        match read_file(&home.join("queue/lock/remotestatus"), most) {
            Ok(Some((_, bytes))) => Self::parse(&bytes),
            Ok(None) | Err(_) => Vec::new(),
        }
    }

    /// Returns the records of the qmail-rspawns that still run.
    pub fn running(home: &Path) -> Vec<RemoteStatus> {
        let mut all = Self::read(home);
        all.retain(|status| Path::new(&format!("/proc/{}", status.pid)).exists());
        all
    }

    /// Returns the number of deliveries for which qmail-remote was executed, both ways together.
    pub fn executed(&self) -> u64 {
        self.by_exec.saturating_add(self.by_spawn)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(text: &str) -> Vec<u8> {
        let mut bytes = text.as_bytes().to_vec();
        bytes.resize(RECORD, b'\n');
        bytes
    }

    const ONE: &str = "qpatch-remote 1\npid 12\nwritten 1700000000\nmost 10000\nserver 13\nby-server 7\nby-exec 2\nby-spawn 0\n\
                       failed 1\nreason \n";

    #[test]
    fn each_spawner_has_a_record() {
        let other = ONE.replace("pid 12", "pid 99").replace("reason ", "reason it is a wrapper");
        let all = RemoteStatus::parse(&[record(ONE), record(&other)].concat());
        assert_eq!(all.len(), 2);
        assert_eq!((all[0].pid, all[0].server, all[0].by_server, all[0].by_exec), (12, 13, 7, 2));
        assert_eq!((all[0].most, all[0].failed, all[0].reason.as_str()), (10_000, 1, ""));
        assert_eq!((all[1].pid, all[1].reason.as_str()), (99, "it is a wrapper"));
    }

    #[test]
    fn what_is_no_record_is_left_out() {
        for text in [
            "",
            "qpatch-remote 2\npid 1\n",
            "qpatch-remote 1\npid x\n",
            &ONE.replace("most 10000\n", ""),
        ] {
            assert_eq!(RemoteStatus::parse(&record(text)), [], "{text:?}");
        }
        assert_eq!(RemoteStatus::parse(b""), []);
        assert_eq!(RemoteStatus::parse(&[0xff; 5000]), []);
    }

    #[test]
    fn only_a_regular_file_of_a_fair_size_is_read() {
        let home = tempfile::tempdir().unwrap();
        let lock = home.path().join("queue/lock");
        let file = lock.join("remotestatus");
        std::fs::create_dir_all(&lock).unwrap();
        assert_eq!(RemoteStatus::read(home.path()), []);

        std::fs::write(&file, record(ONE)).unwrap();
        assert_eq!(RemoteStatus::read(home.path()).len(), 1);

        std::fs::write(&file, record(ONE).repeat(RECORDS_MAX + 1)).unwrap();
        assert_eq!(RemoteStatus::read(home.path()), []);

        // The owner of the file can put a FIFO in its place; reading it would wait for ever.
        std::fs::remove_file(&file).unwrap();
        assert!(std::process::Command::new("mkfifo").arg(&file).status().unwrap().success());
        assert_eq!(RemoteStatus::read(home.path()), []);
    }
}
