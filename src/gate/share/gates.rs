//! What the gates of this host do, from their status files; and the lease that they read.

use std::fs::{File, OpenOptions};
use std::io::ErrorKind;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::PathBuf;
use std::thread::sleep;
use std::time::{Duration, SystemTime};

use qpatch_gate::host_share::LeasePhase;
use qpatch_gate::lease::{FILE_MAX, Header, Parsed, parse};
use qpatch_gate::problem::File as GateFile;
use qpatch_gate::rules::KeyKind;
use qpatch_gate::table::Limit;
use qpatch_gate_status::{KeyStatus, StatusError};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::inotify::{self, CreateFlags, WatchFlags};

use super::agent::{Demand, KeyDemand};
use crate::error::{Error, Result};
use crate::gate::advice::unusable;
use crate::gate::status_file::{
    ProcessState, SpawnerStatus, Unread, UnreadReason, counted, explain, merged, name_bytes, read,
};
use crate::qmail::control::read_file;
use crate::qmail::home::Home;

/// How often it is seen whether the gates run while their files do not change, in milliseconds.
const CHECK_MS: u64 = 250;

/// The status files of a qmail.
pub(super) struct Gates {
    home: Home,
    seen: Option<(u64, SystemTime)>,
    spawners: Vec<SpawnerStatus>,
    /// What they say.
    demand: Demand,
    /// When it was last seen whether they run, in milliseconds.
    checked_ms: u64,
    /// Tells when a status file has been written. None: the system has none left, and the files are only looked at.
    events: Option<OwnedFd>,
}

impl Gates {
    pub(super) fn new(home: Home) -> Self {
        let events = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK).ok();
        let demand = Demand::default();
        Self { home, seen: None, spawners: Vec::new(), demand, checked_ms: 0, events }
    }

    /// Waits for this long, or until a gate has written its status.
    pub(super) fn wait(&mut self, time: Duration) {
        let Some(events) = &self.events else { return sleep(time) };
        let names = self.spawners.iter().map(SpawnerStatus::file);
        for name in names.chain([GateFile::Status.name().to_string()]) {
            // The same file again costs nothing, and a file that is missing is looked for the next time.
            let _ = inotify::add_watch(events, self.home.lock(&name), WatchFlags::CLOSE_WRITE);
        }
        let Ok(limit) = time.try_into() else { return sleep(time) };
        if poll(&mut [PollFd::new(events, PollFlags::IN)], Some(&limit)).is_err() {
            sleep(time);
        }
        let mut buffer = [0; 4096];
        while rustix::io::read(events, &mut buffer).is_ok_and(|count| count > 0) {}
    }

    /// What they do. The files are read if the first one has changed, or if there are several.
    ///
    /// # Errors
    /// A file cannot be read. One that is empty or is being written is no error.
    pub(super) fn look(&mut self, now_ms: u64) -> Result<&Demand> {
        let metadata = std::fs::metadata(self.home.lock("gatestatus"));
        let now = metadata.ok().and_then(|file| Some((file.ino(), file.modified().ok()?)));
        if now.is_none() || now != self.seen || self.spawners.len() > 1 {
            match read(&self.home) {
                Ok(spawners) => (self.spawners, self.seen) = (spawners, now),
                Err(Unread { why: UnreadReason::Status(StatusError::Empty), .. }) => {
                    self.spawners.clear();
                }
                Err(Unread { why: UnreadReason::Status(StatusError::Torn), .. }) => {}
                Err(unread) => return Err(explain(&self.home, &unread)),
            }
        } else if now_ms >= self.checked_ms + CHECK_MS {
            for spawner in &mut self.spawners {
                spawner.look_again();
            }
        } else {
            return Ok(&self.demand);
        }
        self.checked_ms = now_ms;
        self.demand = demand(&self.spawners);
        Ok(&self.demand)
    }
}

/// What the gates of a host say together.
fn demand(spawners: &[SpawnerStatus]) -> Demand {
    let runs = |spawner: &&SpawnerStatus| spawner.process != ProcessState::Gone;
    if !spawners.iter().any(|spawner| runs(&spawner)) {
        return Demand::default();
    }
    let seqs =
        || counted(spawners).map(|spawner| spawner.status.lease.map_or(0, |lease| lease.seq));
    let status = merged(spawners);
    let now_secs = status.written_secs;
    let phases = counted(spawners).filter_map(|spawner| Some(spawner.status.lease?.phase));
    let phase = phases.max().unwrap_or_default();
    let is_over = phase > LeasePhase::Valid;
    let keys = status.keys.iter().filter_map(|key| {
        let Limit::AtMost(limit @ 1..) = key.limit else { return None };
        let want = want(key, limit, now_secs, is_over);
        Some(KeyDemand { kind: key.kind, name: name_bytes(key), limit, running: key.running, want })
    });
    // The status lists the busiest keys of each gate.
    let is_cut = |spawner: &&SpawnerStatus| spawner.status.unlisted > 0;
    let unlisted_running = counted(spawners).filter(is_cut).map(|spawner| {
        let active = spawner.status.keys.iter().map(|key| key.running.saturating_add(key.held));
        active.min().unwrap_or(0)
    });
    Demand {
        runs: true,
        confirmed: seqs().min().unwrap_or(0),
        has_read: seqs().any(|seq| seq > 0),
        phase,
        unlisted_running: unlisted_running.reduce(u32::saturating_add),
        keys: one_for_each_site(keys.collect()),
    }
}

/// The members and the candidates of a site have one share.
fn one_for_each_site(mut keys: Vec<KeyDemand>) -> Vec<KeyDemand> {
    let is_candidates = |key: &mut KeyDemand| key.kind == KeyKind::Candidates;
    let candidates: Vec<KeyDemand> = keys.extract_if(.., is_candidates).collect();
    for key in candidates {
        let is_its_site =
            |site: &&mut KeyDemand| site.kind == KeyKind::Group && site.name == key.name;
        if let Some(site) = keys.iter_mut().find(is_its_site) {
            site.running = site.running.saturating_add(key.running);
            site.want = site.want.saturating_add(key.want).min(site.limit);
        } else {
            // Their limit is half of the site's, rounded up.
            let limit = key.limit.saturating_mul(2) - 1;
            keys.push(KeyDemand { kind: KeyKind::Group, limit, ..key });
        }
    }
    keys
}

/// How many would run if there were places.
fn want(key: &KeyStatus, limit: u32, now_secs: u64, is_over: bool) -> u32 {
    if key.suspended_secs > now_secs {
        return key.running;
    }
    let waiting = key.held.saturating_add(key.away);
    let mut want = key.running.saturating_add(waiting).min(limit);
    // What a rate holds back needs no places.
    if key.next_start_ms > 0 {
        want = want.min(key.running + 1);
    }
    // The server takes no more: a limit that was learned is below the share.
    if let (Limit::AtMost(effective), Some(share)) = (key.effective, key.share)
        && effective < share
        && !is_over
    {
        want = want.min(effective);
    }
    want
}

/// queue/lock/gatelease, for the one agent of a qmail.
pub(super) struct LeaseFile {
    path: PathBuf,
    file: File,
}

/// The lease that an earlier agent has left.
pub(super) enum Left {
    /// None.
    Nothing,
    /// A whole one.
    Whole(Header, Vec<(KeyKind, Vec<u8>, u32)>),
    /// One whose keys are not known, and when it ends; None: that is not known either.
    Torn(Option<Header>),
}

impl LeaseFile {
    /// Opens the file, and keeps other agents away from it.
    ///
    /// # Errors
    /// It cannot be opened, or another agent has it.
    pub(super) fn open(home: &Home) -> Result<Self> {
        let path = home.lock(GateFile::Lease.name());
        let opened = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o644)
            .custom_flags(libc::O_NONBLOCK | libc::O_NOFOLLOW)
            .open(&path);
        let file = match opened {
            Ok(file) => file,
            Err(error) if error.kind() == ErrorKind::PermissionDenied => {
                return Err(Error::new(
                    path.display(),
                    "permission denied",
                    "run the agent as the user of qmail-rspawn (qmailr) or as root; if there is no such file, make \
                     setup makes it in a tree that this qpatch has patched",
                ));
            }
            Err(error) => return Err(Error::io(&path, "open it", &error)),
        };
        if !file.metadata().is_ok_and(|metadata| metadata.is_file()) {
            return Err(Error::new(path.display(), "not a regular file", ""));
        }
        if file.try_lock().is_err() {
            return Err(Error::new(
                path.display(),
                "another qpatch gate share has this file",
                "run one for each qmail",
            ));
        }
        Ok(Self { path, file })
    }

    /// Reads what an earlier agent has left.
    ///
    /// # Errors
    /// It cannot be read.
    pub(super) fn left(&self) -> Result<Left> {
        let read = read_file(&self.path, FILE_MAX).map_err(|kind| unusable(&self.path, kind))?;
        let mut bytes = read.map(|(_, bytes)| bytes).unwrap_or_default();
        if bytes.is_empty() {
            return Ok(Left::Nothing);
        }
        let mut keys = Vec::new();
        Ok(match parse(&mut bytes, |kind, name, share| keys.push((kind, name.to_vec(), share))) {
            Parsed::Whole(header) => Left::Whole(header, keys),
            Parsed::HeaderOnly(header) => Left::Torn(Some(header)),
            Parsed::Torn => Left::Torn(None),
        })
    }

    /// Writes it over the old contents. A reader that sees a part of it keeps the old contents.
    ///
    /// # Errors
    /// It cannot be written, or another file has its name.
    pub(super) fn write(&self, bytes: &[u8]) -> Result<()> {
        if bytes.len() as u64 > FILE_MAX {
            let what = "too many keys for the gate, which reads no more than a megabyte";
            return Err(Error::new(self.path.display(), what, ""));
        }
        let failed = |error: std::io::Error| Error::io(&self.path, "write it", &error);
        let here = std::fs::metadata(&self.path).map_err(failed)?;
        let own = self.file.metadata().map_err(failed)?;
        if (here.dev(), here.ino()) != (own.dev(), own.ino()) {
            return Err(Error::new(
                self.path.display(),
                "somebody has replaced this file",
                "start the agent again",
            ));
        }
        self.file.write_all_at(bytes, 0).map_err(failed)?;
        self.file.set_len(bytes.len() as u64).map_err(failed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(kind: KeyKind, name: &str, limit: u32, running: u32, want: u32) -> KeyDemand {
        KeyDemand { kind, name: name.as_bytes().to_vec(), limit, running, want }
    }

    #[test]
    fn a_site_is_one_key() {
        let keys = vec![
            key(KeyKind::Candidates, "one", 10, 3, 5),
            key(KeyKind::Domain, "one", 4, 1, 1),
            key(KeyKind::Group, "one", 20, 12, 18),
            key(KeyKind::Candidates, "other", 10, 2, 10),
        ];
        let expected = [
            key(KeyKind::Domain, "one", 4, 1, 1),
            // Together they want no more than the site's limit.
            key(KeyKind::Group, "one", 20, 15, 20),
            // Half of 19 is rounded up to 10, and so is half of 20.
            key(KeyKind::Group, "other", 19, 2, 10),
        ];
        assert_eq!(one_for_each_site(keys), expected);
    }
}
