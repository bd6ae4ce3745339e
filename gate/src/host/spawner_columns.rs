//! queue/lock/gateshared: the spawners of one queue share how many deliveries of each key they run.
//! [`crate::core::other_spawners`] says why.
//!
//! Each spawner has a column of the file, which it alone writes. It has an entry of 16 bytes for each key of which it
//! runs deliveries or wants more. The hash of the key gives the bucket, where the columns of all spawners lie side by
//! side. So publishing a number is one write of 16 bytes, and asking for those of the others is one read.
//!
//! ```text
//! 0      MAGIC  BOOT  SEED  COLUMNS  BUCKETS     8 bytes each
//! 1024   PID  START  NONCE  0                    8 bytes each, an owner for each column (64 at most)
//! 4096   for each bucket, for each column: 8 entries of HASH (8 bytes)  VALUE (4)  TAG (4); all 0: free
//! ```
//!
//! Numbers have the machine's byte order. VALUE is twice the number of deliveries that run, plus 1 if more are wanted.
//!
//! **An entry is whole or does not count.** TAG is a hash of the entry and of the column's NONCE, which each owner
//! draws at random. An entry that does not match its tag is half written, or belongs to an owner that is not known yet:
//! the owners are read again, then the entry. Nothing depends on how much of a write a reader sees at once.
//!
//! **The dead do not count.** An owner is alive while a process with its number and start time exists (/proc/PID/stat),
//! even a stopped one. A zombie is dead. All spawners run as the same user. A spawner takes over a column under a lock
//! (flock), which is held for some microseconds. Only the start waits for it, for a fifth of a second at most. After a
//! reboot, which changes BOOT, the hash of the kernel's boot number, all owners are dead.
//!
//! **Why the file is read and written, and not mapped.** `make setup` cuts it to length 0, and a process that has
//! mapped it would die of SIGBUS. A read only finds less. This costs 2 to 3 microseconds a delivery
//! (gate/benches/gate.rs), where qmail-remote takes a thousand to start, and needs no unsafe code. Taking a place needs
//! an order: first publish, then look. That is the order of the system calls of one thread, with a fence between them:
//! the kernel's writes to and reads from the page cache for a thread are stores and loads of that processor.
//!
//! If anything fails here, each spawner counts for itself, as without the file, and the status says so. The gate tries
//! again every second.

#![forbid(unsafe_code)]

use std::ffi::{OsStr, OsString};
use std::fs::{File, OpenOptions, TryLockError};
use std::io::ErrorKind;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::sync::atomic::{Ordering, fence};
use std::time::Duration;

use crate::control::name::Hasher;
use crate::control::problem::{self, Kind, Problem};
use crate::core::other_spawners::{Announcement, Demand, OtherSpawners, PeerCheck, PeerTotals};
use crate::core::rules::KeyKind;
use crate::util::memory::{self, OutOfMemory};
use crate::util::random::Random;

/// `qgshare1`, in the machine's byte order: the file of a machine with another order does not count.
const MAGIC: u64 = u64::from_be_bytes(*b"qgshare1");
const HEADER: usize = 4096;
const OWNERS: usize = 1024;
const OWNER: usize = 32;
/// The most spawners that share a queue. Public trees have 22 remote channels at most; after a crash of qmail-send the
/// old spawners still exist for a while.
pub const COLUMNS_MAX: usize = 64;
const ENTRY: usize = 16;
/// There are as many buckets as slots, so at most one key a bucket on average, if each slot has a different key. Then
/// one bucket in a million has more than eight keys.
const BUCKET: usize = 8;
const BUCKETS: std::ops::RangeInclusive<u32> = 256..=8192;
/// How long the start waits for the lock: how often it tries, and how long it waits between.
const LOCK_TRIES: u32 = 200;
const LOCK_WAIT: Duration = Duration::from_millis(1);
/// How often an entry is read that does not match its tag.
const READS: u32 = 4;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Entry {
    hash: u64,
    value: u32,
}

impl Entry {
    fn own(self) -> Announcement {
        let demand = if self.value & 1 == 1 { Demand::More } else { Demand::Nothing };
        Announcement { running: self.value >> 1, demand }
    }

    fn bytes(self, nonce: u64) -> [u8; ENTRY] {
        let mut bytes = [0; ENTRY];
        if self.value > 0 {
            bytes[..8].copy_from_slice(&self.hash.to_ne_bytes());
            bytes[8..12].copy_from_slice(&self.value.to_ne_bytes());
            bytes[12..].copy_from_slice(&self.tag(nonce).to_ne_bytes());
        }
        bytes
    }

    fn tag(self, nonce: u64) -> u32 {
        let seed = nonce ^ self.hash.rotate_left(17) ^ (u64::from(self.value) << 24);
        (Random::new(seed).next() >> 32) as u32
    }
}

/// The owner of a column.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Owner {
    pid: u64,
    start: u64,
    nonce: u64,
}

/// Another spawner, as of the last look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Other {
    owner: Owner,
    is_alive: bool,
}

/// How the file is divided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Shape {
    seed: u64,
    columns: usize,
    buckets: usize,
}

impl Shape {
    fn offset(self, bucket: usize, column: usize) -> u64 {
        (HEADER + (bucket * self.columns + column) * BUCKET * ENTRY) as u64
    }
}

/// A column of the file that is this spawner's.
#[derive(Debug)]
struct Joined {
    file: File,
    inode: (u64, u64),
    shape: Shape,
    index: usize,
    nonce: u64,
    hasher: Hasher,
    /// The contents of its column, bucket by bucket.
    told: Vec<Entry>,
    /// One bucket of all columns, as it was read.
    row: Vec<u8>,
    others: [Other; COLUMNS_MAX],
}

/// The other spawners, as the file shows them.
#[derive(Debug)]
pub struct Shared {
    path: OsString,
    slots: u32,
    /// How many status files, and so spawners, the queue is made for.
    expected: u32,
    random: Random,
    joined: Option<Joined>,
    index: u32,
    problem: Option<Kind>,
}

/// A number of 8 bytes.
fn number(bytes: &[u8], at: usize) -> u64 {
    let word = bytes.get(at..).and_then(|rest| rest.first_chunk());
    word.map_or(0, |word| u64::from_ne_bytes(*word))
}

fn unusable(error: &std::io::Error) -> Kind {
    Kind::CountsAlone(error.raw_os_error().unwrap_or(0))
}

/// Reads as much as there is; the rest is 0.
fn read(file: &File, bytes: &mut [u8], offset: u64) -> Result<(), Kind> {
    let mut filled = 0;
    while filled < bytes.len() {
        match file.read_at(&mut bytes[filled..], offset + filled as u64) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(unusable(&error)),
        }
    }
    bytes[filled..].fill(0);
    Ok(())
}

fn write(file: &File, bytes: &[u8], offset: u64) -> Result<(), Kind> {
    file.write_all_at(bytes, offset).map_err(|error| unusable(&error))
}

/// When a process started, in the kernel's ticks since boot; None if there is no such process, or only a zombie.
fn started(pid: &str) -> std::io::Result<Option<u64>> {
    let path = ["/proc/", pid, "/stat"].concat();
    let text = match std::fs::read(path) {
        // The second: it has ended between two steps of the read (ESRCH).
        Err(error) if error.kind() == ErrorKind::NotFound || error.raw_os_error() == Some(3) => {
            return Ok(None);
        }
        read => read?,
    };
    // The name, in brackets, may have anything in it. Behind it: the state, and 18 numbers later the time.
    let rest = text.iter().rposition(|&byte| byte == b')').map_or(&[][..], |at| &text[at + 1..]);
    let mut words = rest.split(|&byte| byte == b' ').filter(|word| !word.is_empty());
    let state = words.next();
    if state.is_none_or(|state| matches!(state, b"Z" | b"X")) {
        return Ok(None);
    }
    let start = words.nth(18).and_then(|word| std::str::from_utf8(word).ok()?.parse().ok());
    start.map(Some).ok_or_else(|| ErrorKind::InvalidData.into())
}

/// Whether an owner is alive. If that cannot be found out, it counts as alive.
fn is_alive(owner: Owner) -> bool {
    let mut text = memory::Text::default();
    if owner == Owner::default()
        || std::fmt::Write::write_fmt(&mut text, format_args!("{}", owner.pid)).is_err()
    {
        return false;
    }
    let pid = std::str::from_utf8(&text.bytes).unwrap_or_default();
    started(pid).map_or(true, |start| start == Some(owner.start))
}

/// Whether /proc shows other processes of the same user. With the option hidepid it does not: the user may not read the
/// file of qmail-rspawn, and such processes are hidden from each other.
fn shows_others() -> bool {
    let Ok(mounts) = std::fs::read("/proc/self/mounts") else { return false };
    !mounts.split(|&byte| byte == b'\n').any(|line| {
        let mut words = line.split(|&byte| byte == b' ');
        let is_proc = words.nth(1) == Some(b"/proc");
        let options = words.nth(1).unwrap_or_default();
        is_proc
            && options.split(|&byte| byte == b',').any(|option| {
                option
                    .strip_prefix(b"hidepid=")
                    .is_some_and(|value| !matches!(value, b"0" | b"off"))
            })
    })
}

/// A number that differs after each boot.
fn boot() -> u64 {
    let text = std::fs::read("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    Hasher::new(MAGIC).hash(&text)
}

impl Joined {
    fn position(&self, hash: u64) -> (usize, std::ops::Range<usize>) {
        let bucket = (hash >> 32) as usize & (self.shape.buckets - 1);
        (bucket, bucket * BUCKET..(bucket + 1) * BUCKET)
    }

    /// Where a column has what is at this position of [`Joined::told`].
    fn offset_of(&self, at: usize, column: usize) -> u64 {
        self.shape.offset(at / BUCKET, column) + (at % BUCKET * ENTRY) as u64
    }

    /// Writes an entry of the own column, if it has changed.
    fn publish(&mut self, new: Entry) -> Result<(), Kind> {
        let (_, range) = self.position(new.hash);
        let start = range.start;
        let entries = &mut self.told[range];
        let Some(at) = entries
            .iter()
            .position(|old| old.value > 0 && old.hash == new.hash)
            .or_else(|| entries.iter().position(|old| old.value == 0))
        else {
            return Err(Kind::SharedCrowded);
        };
        if entries[at].value == new.value {
            return Ok(());
        }
        entries[at] = new;
        write(&self.file, &new.bytes(self.nonce), self.offset_of(start + at, self.index))
    }

    /// What the others have published about a key.
    fn others(&mut self, hash: u64) -> Result<PeerTotals, Kind> {
        let (bucket, _) = self.position(hash);
        let offset = self.shape.offset(bucket, 0);
        for turn in 1..=READS {
            fence(Ordering::SeqCst);
            read(&self.file, &mut self.row, offset)?;
            let (sum, fits) = self.sum(hash);
            if fits || turn == READS {
                return Ok(sum);
            }
            fence(Ordering::SeqCst);
            self.read_owners()?;
        }
        Ok(PeerTotals::default())
    }

    /// The sum of what is in [`Joined::row`], and whether each entry fits its tag.
    fn sum(&self, hash: u64) -> (PeerTotals, bool) {
        let mut sum = PeerTotals::default();
        let mut all_fit = true;
        for (column, (entries, other)) in
            self.row.chunks_exact(BUCKET * ENTRY).zip(&self.others).enumerate()
        {
            if column == self.index {
                continue;
            }
            for bytes in entries.chunks_exact(ENTRY) {
                if number(bytes, 0) != hash {
                    continue;
                }
                let last = number(bytes, 8).to_ne_bytes();
                let [v0, v1, v2, v3, tag @ ..] = last;
                let entry = Entry { hash, value: u32::from_ne_bytes([v0, v1, v2, v3]) };
                if entry.value == 0 {
                    continue;
                }
                let fits = entry.tag(other.owner.nonce) == u32::from_ne_bytes(tag);
                all_fit &= fits;
                if fits && other.is_alive {
                    sum.add(entry.own());
                }
            }
        }
        (sum, all_fit)
    }

    /// Reads the owners of the other columns, and finds out whether new ones are alive.
    fn read_owners(&mut self) -> Result<Owners, Kind> {
        let owners = Owners::read(&self.file)?;
        for (column, other) in self.others.iter_mut().enumerate().take(self.shape.columns) {
            let owner = owners.all[column];
            if other.owner != owner {
                *other = Other { owner, is_alive: is_alive(owner) };
            }
        }
        Ok(owners)
    }

    /// Empties a column and makes it this spawner's. To be called under the lock.
    fn take(&mut self, index: usize, own: Owner) -> Result<(), Kind> {
        let end = self.file.metadata().map_err(|error| unusable(&error))?.len();
        for bucket in 0..self.shape.buckets {
            let offset = self.shape.offset(bucket, index);
            if offset < end {
                write(&self.file, &[0; BUCKET * ENTRY], offset)?;
            }
        }
        fence(Ordering::SeqCst);
        write(&self.file, &own.bytes(), (OWNERS + index * OWNER) as u64)?;
        fence(Ordering::SeqCst);
        for (at, entry) in self.told.iter().enumerate().filter(|(_, entry)| entry.value > 0) {
            write(&self.file, &entry.bytes(own.nonce), self.offset_of(at, index))?;
        }
        (self.index, self.nonce) = (index, own.nonce);
        Ok(())
    }

    /// Moves to the first free column, if that is before its own and the lock is free.
    fn move_down(&mut self, random: &mut Random) -> Result<(), Kind> {
        let Ok(()) = self.file.try_lock() else { return Ok(()) };
        let moved = self.moved_down(random);
        let _ = self.file.unlock();
        moved
    }

    fn moved_down(&mut self, random: &mut Random) -> Result<(), Kind> {
        let owners = self.read_owners()?;
        let free = (0..self.index).find(|&column| !is_alive(owners.all[column]));
        let Some(index) = free else { return Ok(()) };
        let (old, own) = (self.index, owners.all[self.index]);
        // For a moment its deliveries count twice.
        self.take(index, Owner { nonce: random.next() | 1, ..own })?;
        write(&self.file, &[0; OWNER], (OWNERS + old * OWNER) as u64)?;
        self.read_owners().map(|_| ())
    }
}

impl Owner {
    fn bytes(self) -> [u8; OWNER] {
        let mut bytes = [0; OWNER];
        for (to, from) in bytes.chunks_exact_mut(8).zip([self.pid, self.start, self.nonce]) {
            to.copy_from_slice(&from.to_ne_bytes());
        }
        bytes
    }
}

/// The beginning of the file.
struct Owners {
    magic: u64,
    boot: u64,
    shape: Shape,
    all: [Owner; COLUMNS_MAX],
}

impl Owners {
    fn read(file: &File) -> Result<Self, Kind> {
        let mut bytes = [0; HEADER];
        read(file, &mut bytes, 0)?;
        let mut all = [Owner::default(); COLUMNS_MAX];
        for (owner, bytes) in all.iter_mut().zip(bytes[OWNERS..].chunks_exact(OWNER)) {
            *owner =
                Owner { pid: number(bytes, 0), start: number(bytes, 8), nonce: number(bytes, 16) };
        }
        let shape = Shape {
            seed: number(&bytes, 16),
            columns: number(&bytes, 24) as usize,
            buckets: number(&bytes, 32) as usize,
        };
        Ok(Self { magic: number(&bytes, 0), boot: number(&bytes, 8), shape, all })
    }

    fn is_usable(&self, boot: u64) -> bool {
        let Shape { columns, buckets, .. } = self.shape;
        self.magic == MAGIC
            && self.boot == boot
            && (1..=COLUMNS_MAX).contains(&columns)
            && buckets.is_power_of_two()
            && BUCKETS.contains(&u32::try_from(buckets).unwrap_or(0))
    }
}

impl Shared {
    /// Joins the others, if this queue is meant for more than one spawner: then `expected`, how many status files there
    /// are, is above 1, or there is the file. slots: conf-spawn.
    ///
    /// # Errors
    /// No memory.
    pub fn open(
        path: &OsStr,
        slots: u32,
        expected: u32,
        seed: u64,
    ) -> Result<Option<Self>, OutOfMemory> {
        if expected < 2 && std::fs::metadata(Path::new(path)).is_err() {
            return Ok(None);
        }
        let mut own = OsString::new();
        own.try_reserve_exact(path.len())?;
        own.push(path);
        let mut shared = Self {
            path: own,
            slots,
            expected: expected.max(1),
            random: Random::new(seed),
            joined: None,
            index: 0,
            problem: None,
        };
        shared.problem = shared.try_join(LOCK_TRIES).err();
        shared.index = shared.joined.as_ref().map_or(0, |joined| joined.index as u32);
        Ok(Some(shared))
    }

    /// Opens the file and keeps it open, but not as descriptor 0, 1 or 2: what the C library writes to descriptor 2 in
    /// an emergency must not get here.
    fn open_file(&self) -> Result<File, Kind> {
        let open = || OpenOptions::new().read(true).write(true).open(Path::new(&self.path));
        let metadata =
            std::fs::metadata(Path::new(&self.path)).map_err(|error| unusable(&error))?;
        if !metadata.is_file() {
            return Err(Kind::NotRegular);
        }
        let mut low: [Option<File>; 3] = [None, None, None];
        loop {
            let file = open().map_err(|error| unusable(&error))?;
            match low.iter_mut().find(|kept| kept.is_none()) {
                Some(kept) if file.as_raw_fd() < 3 => *kept = Some(file),
                _ => return Ok(file),
            }
        }
    }

    fn try_join(&mut self, tries: u32) -> Result<(), Kind> {
        self.joined = None;
        let start = match started("self") {
            Ok(Some(start)) if shows_others() => start,
            _ => return Err(Kind::ProcessesHidden),
        };
        let own = Owner { pid: std::process::id().into(), start, nonce: self.random.next() | 1 };
        let file = self.open_file()?;
        for turn in 1.. {
            match file.try_lock() {
                Ok(()) => break,
                Err(TryLockError::Error(error)) if error.kind() != ErrorKind::Interrupted => {
                    return Err(unusable(&error));
                }
                Err(_) if turn >= tries => return Err(Kind::CountsAlone(0)),
                Err(_) => std::thread::sleep(LOCK_WAIT),
            }
        }
        let joined = self.join_locked(file, own);
        if let Ok(joined) = &joined {
            let _ = joined.file.unlock();
        }
        self.joined = Some(joined?);
        Ok(())
    }

    /// Takes a column of the file, and writes a new file if the old one is of no use. If this fails, the file is
    /// closed, which releases the lock.
    fn join_locked(&mut self, file: File, own: Owner) -> Result<Joined, Kind> {
        let boot = boot();
        let mut owners = Owners::read(&file)?;
        let wanted = Shape {
            seed: self.random.next(),
            // The old spawners may still exist when the new ones start.
            columns: (2 * self.expected as usize).next_power_of_two().clamp(4, COLUMNS_MAX),
            buckets: self.slots.next_power_of_two().clamp(*BUCKETS.start(), *BUCKETS.end())
                as usize,
        };
        let is_right = owners.shape == Shape { seed: owners.shape.seed, ..wanted };
        let in_use = || owners.all.iter().any(|&owner| is_alive(owner));
        if !owners.is_usable(boot) || !(is_right || in_use()) {
            file.set_len(0).map_err(|error| unusable(&error))?;
            let mut header = [0; HEADER];
            let Shape { seed, columns, buckets } = wanted;
            let numbers = [MAGIC, boot, seed, columns as u64, buckets as u64];
            for (to, from) in header.chunks_exact_mut(8).zip(numbers) {
                to.copy_from_slice(&from.to_ne_bytes());
            }
            write(&file, &header, 0)?;
            owners = Owners::read(&file)?;
        }
        let shape = owners.shape;
        let taken = &owners.all[..shape.columns];
        let Some(index) = taken.iter().position(|&owner| !is_alive(owner)) else {
            return Err(Kind::SharedFull);
        };
        let metadata = file.metadata().map_err(|error| unusable(&error))?;
        let filled = |len: usize| memory::filled(Entry::default(), len);
        let mut joined = Joined {
            inode: (metadata.dev(), metadata.ino()),
            file,
            shape,
            index,
            nonce: own.nonce,
            hasher: Hasher::new(shape.seed),
            told: filled(shape.buckets * BUCKET).map_err(|_| Kind::OutOfMemory)?,
            row: memory::filled(0, shape.columns * BUCKET * ENTRY)
                .map_err(|_| Kind::OutOfMemory)?,
            others: [Other::default(); COLUMNS_MAX],
        };
        joined.take(index, own)?;
        joined.read_owners()?;
        Ok(joined)
    }

    /// The hash of a key in the file.
    fn hash(joined: &Joined, kind: KeyKind, name: &[u8]) -> u64 {
        joined.hasher.hash(name).wrapping_add((kind as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15))
    }

    /// Notes what went wrong, and gives up the column, if that is still possible. The next check joins again.
    fn failed(&mut self, kind: Kind) {
        self.problem = Some(kind);
        if kind != Kind::SharedCrowded {
            self.leave();
        }
    }

    /// Whether the file is still the one that was joined, and the column this spawner's.
    fn is_mine(joined: &mut Joined) -> Result<bool, Kind> {
        let owners = joined.read_owners()?;
        Ok(owners.is_usable(boot())
            && owners.shape == joined.shape
            && owners.all[joined.index].nonce == joined.nonce)
    }

    fn try_look(&mut self) -> Result<PeerCheck, Kind> {
        if let Some(joined) = &mut self.joined {
            let metadata = std::fs::metadata(Path::new(&self.path));
            let metadata = metadata.map_err(|error| unusable(&error))?;
            if (metadata.dev(), metadata.ino()) == joined.inode && Self::is_mine(joined)? {
                for (column, other) in joined.others.iter_mut().enumerate() {
                    if column != joined.index {
                        other.is_alive = is_alive(other.owner);
                    }
                }
                if joined.index >= self.expected as usize {
                    joined.move_down(&mut self.random)?;
                    self.index = joined.index as u32;
                }
                self.problem = None;
                return Ok(PeerCheck::Unchanged);
            }
        }
        self.try_join(1)?;
        self.index = self.joined.as_ref().map_or(0, |joined| joined.index as u32);
        self.problem = None;
        Ok(PeerCheck::AnnounceAgain)
    }
}

impl OtherSpawners for Shared {
    fn announce(&mut self, kind: KeyKind, name: &[u8], own: Announcement) {
        let Some(joined) = &mut self.joined else { return };
        let value = own.running.min(u32::MAX >> 1) << 1 | u32::from(own.demand == Demand::More);
        let hash = Self::hash(joined, kind, name);
        let told = joined.publish(Entry { hash, value });
        if let Err(kind) = told {
            self.failed(kind);
        }
    }

    fn totals(&mut self, kind: KeyKind, name: &[u8]) -> PeerTotals {
        let Some(joined) = &mut self.joined else { return PeerTotals::default() };
        let hash = Self::hash(joined, kind, name);
        joined.others(hash).unwrap_or_else(|kind| {
            self.failed(kind);
            PeerTotals::default()
        })
    }

    fn check(&mut self) -> PeerCheck {
        self.try_look().unwrap_or_else(|kind| {
            self.failed(kind);
            PeerCheck::Unchanged
        })
    }

    fn index(&self) -> u32 {
        self.index
    }

    fn problem(&self) -> Option<Problem> {
        self.problem.map(|kind| Problem::of_file(problem::File::Shared, kind))
    }

    fn alive_count(&self) -> u32 {
        let others = self.joined.iter().flat_map(|joined| {
            joined.others.iter().enumerate().filter(|&(column, _)| column != joined.index)
        });
        others.filter(|(_, other)| other.is_alive).count() as u32
    }

    fn leave(&mut self) {
        let Some(joined) = self.joined.take() else { return };
        let told = joined.told.iter().enumerate().filter(|(_, entry)| entry.value > 0);
        for (at, _) in told {
            let _ = write(&joined.file, &[0; ENTRY], joined.offset_of(at, joined.index));
        }
        // Without an owner nothing in the column counts. The others notice at their next check.
        let _ = write(&joined.file, &[0; OWNER], (OWNERS + joined.index * OWNER) as u64);
    }
}
