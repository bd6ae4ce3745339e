//! queue/lock/gatelease: the shares of the limits that this host may use. `qpatch gate share` writes it, and the gate
//! looks at it twenty times a second; [`crate::core::host_share`] says what it means.
//!
//! ```text
//! qpatch-lease  1  SEQ  BOOT  UNTIL-MS  SETTLE-MS  START-HOSTS  HOSTS  LEAST  AGENT  SUM
//! KIND  NAME  SHARE
//! end  SEQ  SUM
//! ```
//!
//! Fields are separated by tabs. Each SUM is the 64-bit FNV-1a of all bytes before it, in hexadecimal. What follows the
//! last line is left over from before and means nothing. An empty file, or none, means that nothing is shared.
//!
//! The lease ends at UNTIL-MS: milliseconds since the start of the machine with this BOOT ([`process::boot`]), time of
//! sleep included. So no clock that somebody sets matters, and a restart of the machine ends the lease. SETTLE-MS
//! later, or after that start, the gate takes its fall-back share. A lease whose time cannot be known is over.
//!
//! The agent overwrites the file in place, because it may not be allowed to create files in queue/lock. A file whose
//! sums are wrong is read again a moment later, and what was read before counts until its own end. If the gate has
//! read nothing before, the first line still says how many hosts there are, so the fall-back shares count.
//!
//! The status file says which SEQ is in force: only then may the agent give away what this host no longer uses.

#![forbid(unsafe_code)]

use std::ffi::{OsStr, OsString};
use std::io::Read as _;

use crate::control::problem::{self, Kind, Problem};
use crate::core::gate::Gate;
use crate::core::host_share::LeasePhase;
use crate::core::rules::KeyKind;
use crate::host::clock::Clock;
use crate::host::watched::{FileVersion, join, open_if};
use crate::util::fnv;
use crate::util::memory::OutOfMemory;

/// The largest file that is read, in bytes: 10,000 keys with names of 100 bytes.
pub const FILE_MAX: u64 = 1 << 20;
/// The first word.
pub const MAGIC: &str = "qpatch-lease\t1";
/// How often the gate looks at it, in microseconds.
pub(super) const LOOK_US: u64 = 50_000;

/// The first line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Header {
    /// Counts the versions that the gate must confirm. Higher than any before.
    pub seq: u64,
    /// Of which start of the machine [`Header::until_ms`] counts.
    pub boot: u64,
    /// The end of the lease.
    pub until_ms: u64,
    /// How long after that the gate takes its fall-back share.
    pub settle_ms: u64,
    /// The number of hosts for the start-up share.
    pub start_hosts: u32,
    /// The number of hosts for the fall-back share.
    pub hosts: u32,
    /// The least fall-back share: 0 or 1.
    pub least: u32,
    /// A random number of the agent.
    pub agent: u64,
}

impl Header {
    /// How far the lease is, at this time of the machine with this boot; None: the time is not known.
    #[must_use]
    pub fn phase(&self, boot: u64, now_ms: Option<u64>) -> LeasePhase {
        match now_ms {
            Some(now_ms) if boot == self.boot && boot != 0 => match now_ms {
                _ if now_ms < self.until_ms => LeasePhase::Valid,
                _ if now_ms < self.until_ms.saturating_add(self.settle_ms) => LeasePhase::Settling,
                _ => LeasePhase::Over,
            },
            // The machine has started again, and the others may not know yet that this host was lost.
            Some(now_ms) if boot != 0 && self.boot != 0 && now_ms < self.settle_ms => {
                LeasePhase::Settling
            }
            _ => LeasePhase::Over,
        }
    }
}

/// The sum that is written behind these bytes.
#[must_use]
pub fn sum(bytes: &[u8]) -> u64 {
    fnv::add(fnv::BASIS, bytes.iter().copied())
}

/// What a file has.
#[derive(Debug, PartialEq, Eq)]
pub enum Parsed {
    /// All of it.
    Whole(Header),
    /// Only the first line.
    HeaderOnly(Header),
    /// Nothing.
    Torn,
}

fn text_number<T: std::str::FromStr>(field: Option<&[u8]>) -> Option<T> {
    std::str::from_utf8(field?).ok()?.parse().ok()
}

/// Whether the last field of a line, which ends before `end`, is the sum of all before it.
fn has_sum(bytes: &[u8], end: usize) -> Option<()> {
    let tab = bytes[..end].iter().rposition(|&byte| byte == b'\t')?;
    let digits = std::str::from_utf8(&bytes[tab + 1..end]).ok()?;
    let written = u64::from_str_radix(digits, 16).ok()?;
    (written == sum(&bytes[..=tab])).then_some(())
}

fn header(bytes: &[u8]) -> Option<(Header, usize)> {
    let end = bytes.iter().position(|&byte| byte == b'\n')?;
    has_sum(bytes, end)?;
    let rest = bytes[..end].strip_prefix(MAGIC.as_bytes())?.strip_prefix(b"\t")?;
    let mut fields = rest.split(|&byte| byte == b'\t');
    let mut next = || text_number::<u64>(fields.next());
    let small = |number: u64| u32::try_from(number).ok();
    let header = Header {
        seq: next()?,
        boot: next()?,
        until_ms: next()?,
        settle_ms: next()?,
        start_hosts: small(next()?)?,
        hosts: small(next()?)?,
        least: small(next()?)?,
        agent: next()?,
    };
    Some((header, end + 1))
}

/// Replaces `%` and two digits by the byte that they stand for. Returns the new length.
fn unescape(name: &mut [u8]) -> usize {
    let (mut from, mut to) = (0, 0);
    while from < name.len() {
        let digits =
            name.get(from + 1..from + 3).and_then(|digits| std::str::from_utf8(digits).ok());
        let code = digits
            .filter(|_| name[from] == b'%')
            .and_then(|digits| u8::from_str_radix(digits, 16).ok());
        name[to] = code.unwrap_or(name[from]);
        from += if code.is_some() { 3 } else { 1 };
        to += 1;
    }
    to
}

/// Reads a file, and calls `key` with the kind, name and share of each key if it is whole. The names in `bytes` are
/// unescaped in place.
pub fn parse(bytes: &mut [u8], mut key: impl FnMut(KeyKind, &[u8], u32)) -> Parsed {
    let Some((header, start)) = header(bytes) else { return Parsed::Torn };
    let mut at = start;
    // The sums come first: names are only read, and changed, in a file that is whole.
    let end = loop {
        let Some(length) = bytes[at..].iter().position(|&byte| byte == b'\n') else {
            return Parsed::HeaderOnly(header);
        };
        if bytes[at..].starts_with(b"end\t") {
            let seq =
                text_number::<u64>(bytes[at + 4..at + length].split(|&byte| byte == b'\t').next());
            if seq != Some(header.seq) || has_sum(bytes, at + length).is_none() {
                return Parsed::HeaderOnly(header);
            }
            break at;
        }
        at += length + 1;
    };
    for line in bytes[start..end].split_mut(|&byte| byte == b'\n') {
        let mut fields = line.splitn_mut(3, |&byte| byte == b'\t');
        let (Some(kind), Some(name), Some(share)) = (fields.next(), fields.next(), fields.next())
        else {
            continue;
        };
        // A later version may add fields.
        let share = text_number(share.split(|&byte| byte == b'\t').next());
        let kind = std::str::from_utf8(kind).ok().and_then(KeyKind::parse);
        if let (Some(kind), Some(share)) = (kind, share) {
            let length = unescape(name);
            key(kind, &name[..length], share);
        }
    }
    Parsed::Whole(header)
}

/// The file, and what of it is in force.
#[derive(Debug)]
pub(super) struct LeaseFile {
    path: OsString,
    seen: FileVersion,
    bytes: Vec<u8>,
    header: Option<Header>,
    pub(super) looked_us: u64,
    pub(super) problem: Option<Problem>,
    /// The status does not have what is in force yet.
    pub(super) is_unconfirmed: bool,
}

impl LeaseFile {
    pub(super) fn new(lock: &OsStr) -> Result<Self, OutOfMemory> {
        Ok(Self {
            path: join(lock, problem::File::Lease.name())?,
            seen: FileVersion::Nothing,
            bytes: Vec::new(),
            header: None,
            looked_us: 0,
            problem: None,
            is_unconfirmed: false,
        })
    }

    /// Whether limits are shared.
    pub(super) fn is_shared(&self) -> bool {
        self.header.is_some()
    }

    /// The number of the version that is in force; 0: none.
    pub(super) fn seq(&self) -> u64 {
        self.header.map_or(0, |header| header.seq)
    }

    /// Reads the file if it has changed, and puts into force what it says at this time. Returns whether the status has
    /// to be written.
    pub(super) fn look(
        &mut self,
        gate: &mut Gate,
        boot: u64,
        clock: &dyn Clock,
        now_us: u64,
    ) -> bool {
        self.looked_us = now_us;
        let seq = self.seq();
        let read = self.read(gate);
        let phase = match self.header {
            None => LeasePhase::None,
            Some(header) => header.phase(boot, clock.since_boot_ms()),
        };
        let shares = gate.host_shares_mut();
        let is_new = read.is_ok_and(|is_new| is_new) || phase != shares.phase;
        shares.phase = phase;
        let problem = match (read, phase) {
            (Err(kind), _) => Some(Problem::of_file(problem::File::Lease, kind)),
            (Ok(_), LeasePhase::Settling | LeasePhase::Over) => {
                Some(Problem::of_file(problem::File::Lease, Kind::LeaseOver(shares.hosts)))
            }
            (Ok(_), LeasePhase::None | LeasePhase::Valid) => None,
        };
        if is_new {
            gate.apply_host_shares(now_us);
        }
        let must_confirm =
            self.seq() != seq || problem != self.problem || (is_new && phase != LeasePhase::Valid);
        self.problem = problem;
        self.is_unconfirmed |= must_confirm;
        must_confirm
    }

    /// Reads the file if it has changed, and whether it says something new.
    fn read(&mut self, gate: &mut Gate) -> Result<bool, Kind> {
        let (seen, file) = open_if(&self.path, self.seen)?;
        let (FileVersion::File { size: 1.., .. }, Some(mut file)) = (seen, file) else {
            if seen == self.seen {
                // Another error than that of a file that is not whole cannot last without a change.
                return Ok(false);
            }
            self.seen = seen;
            gate.host_shares_mut().clear();
            return Ok(self.header.take().is_some());
        };
        let FileVersion::File { size, .. } = seen else { return Ok(false) };
        if size > FILE_MAX {
            return Err(Kind::TooBig(size, FILE_MAX));
        }
        self.bytes.clear();
        self.bytes.try_reserve(size as usize).map_err(|_| Kind::OutOfMemory)?;
        self.bytes.resize(size as usize, 0);
        let mut filled = 0;
        while filled < self.bytes.len() {
            match file.read(&mut self.bytes[filled..]) {
                Ok(0) => break,
                Ok(count) => filled += count,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => return Err(Kind::Unreadable(error.raw_os_error().unwrap_or(0))),
            }
        }
        self.bytes.truncate(filled);
        self.take(seen, gate)
    }

    fn take(&mut self, seen: FileVersion, gate: &mut Gate) -> Result<bool, Kind> {
        let mut bytes = std::mem::take(&mut self.bytes);
        let lines = bytes.iter().filter(|&&byte| byte == b'\n').count();
        let mut room = Ok(());
        let mut is_first = true;
        let parsed = parse(&mut bytes, |kind, name, share| {
            if std::mem::take(&mut is_first) {
                room = gate.host_shares_mut().start(lines);
            }
            if room.is_ok() {
                gate.list_host_share(kind, name, share);
            }
        });
        self.bytes = bytes;
        // All of it counts, or nothing: the agent gives away what a version that is confirmed does not list.
        room.map_err(|OutOfMemory| Kind::OutOfMemory)?;
        let shares = gate.host_shares_mut();
        let header = match (parsed, self.header) {
            (Parsed::Whole(header), _) => {
                if is_first {
                    shares.clear();
                }
                shares.sort();
                self.seen = seen;
                header
            }
            // It has no end of its own that could count.
            (Parsed::HeaderOnly(header), None) => {
                Header { until_ms: 0, settle_ms: 0, seq: 0, ..header }
            }
            (Parsed::HeaderOnly(_) | Parsed::Torn, _) => return Err(Kind::KeptNotWhole),
        };
        (shares.start_hosts, shares.hosts, shares.least) =
            (header.start_hosts, header.hosts, header.least);
        self.header = Some(header);
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(seq: u64, keys: &str) -> Vec<u8> {
        let mut text = format!("{MAGIC}\t{seq}\t9\t5000\t1000\t8\t9\t1\t77\t");
        text += &format!("{:x}\n{keys}end\t{seq}\t", sum(text.as_bytes()));
        text += &format!("{:x}\n", sum(text.as_bytes()));
        text.into_bytes()
    }

    fn read(bytes: &[u8]) -> (Parsed, Vec<(KeyKind, Vec<u8>, u32)>) {
        let mut keys = Vec::new();
        let parsed =
            parse(&mut bytes.to_vec(), |kind, name, share| keys.push((kind, name.to_vec(), share)));
        (parsed, keys)
    }

    const HEADER: Header = Header {
        seq: 3,
        boot: 9,
        until_ms: 5000,
        settle_ms: 1000,
        start_hosts: 8,
        hosts: 9,
        least: 1,
        agent: 77,
    };

    #[test]
    fn a_file_counts_when_it_is_whole() {
        let keys = "domain\ta%09b%zz%\t4\ngroup\t\t0\tmore\nlater\tx\t1\nnothing\n";
        let mut whole = file(3, keys);
        let expected =
            vec![(KeyKind::Domain, b"a\tb%zz%".to_vec(), 4), (KeyKind::Group, b"".to_vec(), 0)];
        assert_eq!(read(&whole), (Parsed::Whole(HEADER), expected.clone()));
        let first_line = whole.iter().position(|&byte| byte == b'\n').unwrap();
        for cut in 0..whole.len() {
            let (parsed, keys) = read(&whole[..cut]);
            let is_header = cut > first_line;
            assert_eq!(
                parsed,
                if is_header { Parsed::HeaderOnly(HEADER) } else { Parsed::Torn },
                "{cut}"
            );
            assert_eq!(keys, []);
        }
        for at in 0..whole.len() {
            whole[at] ^= 1;
            let (parsed, keys) = read(&whole);
            assert!(
                !matches!(parsed, Parsed::Whole(_)) || at == whole.len() - 1,
                "{at} {parsed:?}"
            );
            assert_eq!(keys, []);
            whole[at] ^= 1;
        }
        // The end of an older, longer file.
        whole.extend_from_slice(b"domain\tx\t4\nend\t2\t0\n");
        assert_eq!(read(&whole), (Parsed::Whole(HEADER), expected));
        assert_eq!(read(b"").0, Parsed::Torn);
    }

    #[test]
    fn phases_of_a_lease() {
        let phase = |boot, now_ms| HEADER.phase(boot, now_ms);
        assert_eq!(phase(9, Some(4999)), LeasePhase::Valid);
        assert_eq!(phase(9, Some(5000)), LeasePhase::Settling);
        assert_eq!(phase(9, Some(5999)), LeasePhase::Settling);
        assert_eq!(phase(9, Some(6000)), LeasePhase::Over);
        // Another start of the machine, or no time.
        assert_eq!(phase(8, Some(999)), LeasePhase::Settling);
        assert_eq!(phase(8, Some(1000)), LeasePhase::Over);
        assert_eq!(phase(9, None), LeasePhase::Over);
        assert_eq!(Header { boot: 0, ..HEADER }.phase(0, Some(10)), LeasePhase::Over);
    }
}
