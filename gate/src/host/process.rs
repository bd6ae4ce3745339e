//! Identifies the process that writes the status, so that a reader can tell whether it still runs. Its number alone
//! does not suffice: another process may have got it.
//!
//! The rest comes from Linux's /proc. If that is missing or cannot be read, the rest is not known, and nothing else
//! changes.

#![forbid(unsafe_code)]

use std::fs::{self, File};
use std::io::{ErrorKind, Read};
use std::os::unix::fs::MetadataExt;

use crate::util::fnv;

/// Linux cuts the name of a process to this, in bytes.
const NAME_MAX: usize = 15;

/// The fields of /proc/PID/stat that matter here; see proc(5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stat<'a> {
    /// The name of its program, as far as Linux keeps it.
    pub name: &'a [u8],
    /// A letter: `Z` and `X` are dead.
    pub state: u8,
    /// When it started, in clock ticks since the machine did.
    pub start_ticks: u64,
}

impl<'a> Stat<'a> {
    /// Reads the text of /proc/PID/stat.
    #[must_use]
    pub fn parse(text: &'a [u8]) -> Option<Self> {
        // A name may have blanks and parentheses of its own.
        let open = text.iter().position(|&byte| byte == b'(')?;
        let close = text.iter().rposition(|&byte| byte == b')')?;
        let name = text.get(open + 1..close)?;
        let mut fields = text[close + 1..].split(|byte| byte.is_ascii_whitespace());
        // Behind the name is a blank; the state is the third field, the start the 22nd.
        let state = *fields.nth(1)?.first()?;
        let start_ticks = std::str::from_utf8(fields.nth(18)?).ok()?.parse().ok()?;
        Some(Self { name, state, start_ticks })
    }
}

/// What distinguishes this process from another one with its number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Identity {
    /// When it started, in clock ticks since the machine did; 0: not known.
    pub start_ticks: u64,
    /// The number of its PID namespace: a container has other process numbers than its host. 0: not known.
    pub namespace: u64,
    name: [u8; NAME_MAX],
    name_len: u8,
}

impl Identity {
    /// This process.
    #[must_use]
    pub fn of_self() -> Self {
        let mut text = [0; 1024];
        let read = read("/proc/self/stat", &mut text).unwrap_or(0);
        let Some(stat) = Stat::parse(&text[..read]) else { return Self::default() };
        let namespace = fs::metadata("/proc/self/ns/pid").map_or(0, |metadata| metadata.ino());
        Self { namespace, ..Self::new(&stat) }
    }

    fn new(stat: &Stat<'_>) -> Self {
        let len = stat.name.len().min(NAME_MAX);
        let mut name = [0; NAME_MAX];
        name[..len].copy_from_slice(&stat.name[..len]);
        Self { start_ticks: stat.start_ticks, namespace: 0, name, name_len: len as u8 }
    }

    /// The name of its program; empty: not known.
    #[must_use]
    pub fn name(&self) -> &[u8] {
        &self.name[..usize::from(self.name_len)]
    }
}

/// Tells one start of the machine from another: a hash of what Linux says. 0: not known.
#[must_use]
pub fn boot() -> u64 {
    let mut text = [0; 64];
    let read = read("/proc/sys/kernel/random/boot_id", &mut text).unwrap_or(0);
    match read {
        0 => 0,
        read => fnv::add(fnv::BASIS, text[..read].iter().copied()).max(1),
    }
}

/// Milliseconds since the start of the machine, as Linux counts them in hundredths of a second: time of sleep included.
#[must_use]
pub fn since_boot_ms() -> Option<u64> {
    let mut text = [0; 64];
    let read = read("/proc/uptime", &mut text)?;
    uptime_ms(&text[..read])
}

/// Milliseconds since the start of the machine, out of the contents of /proc/uptime.
#[must_use]
pub fn uptime_ms(text: &[u8]) -> Option<u64> {
    let mut numbers = text.split(|byte| matches!(byte, b'.' | b' '));
    let number = |text: Option<&[u8]>| std::str::from_utf8(text?).ok()?.parse::<u64>().ok();
    let (secs, hundredths) = (number(numbers.next())?, number(numbers.next())?);
    secs.checked_mul(1000)?.checked_add(hundredths.checked_mul(10)?)
}

/// Reads the beginning of a file of /proc; such a file does not report its size.
fn read(path: &str, into: &mut [u8]) -> Option<usize> {
    let mut file = File::open(path).ok()?;
    let mut filled = 0;
    while filled < into.len() {
        match file.read(&mut into[filled..]) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(_) => return None,
        }
    }
    Some(filled)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_proc_tells() {
        let line = |name: &str, state: &str| {
            format!(
                "77 ({name}) {state} 1 77 77 0 -1 4194560 1 0 0 0 3 4 0 0 20 0 1 0 8123 1 2 3\n"
            )
        };
        for name in ["qmail-rspawn", "", "a b", "a) Z 1 (b", "()"] {
            let text = line(name, "S");
            let stat = Stat::parse(text.as_bytes());
            let expected = Stat { name: name.as_bytes(), state: b'S', start_ticks: 8123 };
            assert_eq!(stat, Some(expected), "{text}");
        }
        assert_eq!(Stat::parse(line("x", "Z").as_bytes()).unwrap().state, b'Z');
        let whole = line("x", "S");
        let enough = whole.find("8123").unwrap() + 1;
        for cut in 0..enough {
            assert_eq!(Stat::parse(&whole.as_bytes()[..cut]), None, "{cut}");
        }
        for odd in ["", ")(", "1 () S", "1 (x) S 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 x 1"] {
            assert_eq!(Stat::parse(odd.as_bytes()), None, "{odd}");
        }
    }

    #[test]
    fn names_are_cut_as_linux_does() {
        let stat = Stat { name: b"twenty bytes are more", state: b'S', start_ticks: 1 };
        assert_eq!(Identity::new(&stat).name(), b"twenty bytes ar");
        assert_eq!(Identity::default().name(), b"");
    }

    #[test]
    fn this_process() {
        if !std::path::Path::new("/proc/self/stat").exists() {
            qpatch_test_support::skip("no /proc");
            return;
        }
        let identity = Identity::of_self();
        assert!(identity.start_ticks > 0 && identity.namespace > 0 && !identity.name().is_empty());
        assert_eq!(identity, Identity::of_self());
        let text = fs::read(format!("/proc/{}/stat", std::process::id())).unwrap();
        let stat = Stat::parse(&text).unwrap();
        assert_eq!((stat.start_ticks, stat.name), (identity.start_ticks, identity.name()));
    }
}
