//! control/smtproutes as qmail-remote reads it: `domain:relay[:port]`, looked up by exact name, each `.suffix`, then the
//! empty name. A matching line with an empty relay means that there is no relay. Lines without a colon are ignored.
//!
//! The gate counts by the relay's name and ignores the port: it is the machine behind the name that has had enough.

#![forbid(unsafe_code)]

use crate::memory::{self, OutOfMemory};
use crate::name::{Hasher, NAME_MAX, NameMap, Place, VALUE_MAX};
use crate::problem::{File, Kind, Problems};
use crate::table::{is_content, lines_of, trimmed};

/// The parsed file.
#[derive(Debug)]
pub struct Routes {
    lines: NameMap,
    /// Where each relay's name ends in `names`; it begins where the one before ends.
    ends: Vec<u32>,
    names: Vec<u8>,
}

impl Routes {
    /// No routes.
    #[must_use]
    pub fn new(hasher: Hasher) -> Self {
        Self { lines: NameMap::new(hasher), ends: Vec::new(), names: Vec::new() }
    }

    /// Parses a file. It has no errors, only warnings about lines that do nothing.
    ///
    /// # Errors
    /// No memory.
    pub fn parse(text: &[u8], hasher: Hasher) -> Result<(Self, Problems), OutOfMemory> {
        let mut routes = Self::new(hasher);
        let mut problems = Problems::new(File::Routes);
        routes.lines = NameMap::with_room(
            hasher,
            lines_of(text).filter(|(_, line)| is_content(line)).count(),
        )?;
        for (number, line) in lines_of(text) {
            if !is_content(line) {
                continue;
            }
            let content = trimmed(line);
            let Some(colon) = content.iter().position(|&byte| byte == b':') else {
                problems.add(number, 0, Kind::RouteNoColon);
                continue;
            };
            let relay = relay_name(&content[colon + 1..]);
            if colon > NAME_MAX || relay.len() > NAME_MAX {
                problems.add(number, 0, Kind::RouteTooLong);
                continue;
            }
            let at = routes.ends.len() as u32;
            if at > VALUE_MAX {
                problems.add(number, 0, Kind::TooManyRoutes);
                continue;
            }
            routes.names.try_reserve(relay.len())?;
            routes.names.extend(relay.iter().map(u8::to_ascii_lowercase));
            memory::push(&mut routes.ends, routes.names.len() as u32)?;
            routes.lines.insert(&content[..colon], at, number)?;
        }
        Ok((routes, problems))
    }

    /// The name of the relay, in lower case, and where the line is that sends this host there, for [`Routes::number`].
    #[must_use]
    pub fn find(&self, host: &[u8]) -> Option<(&[u8], Place)> {
        self.lines.find(host).and_then(|found| self.relay(found))
    }

    /// The same for a host whose hash is known.
    #[inline]
    #[must_use]
    pub fn find_hashed(&self, hash: u64, host: &[u8]) -> Option<(&[u8], Place)> {
        self.lines.find_hashed(hash, host).and_then(|found| self.relay(found))
    }

    fn relay(&self, (at, place): (u32, Place)) -> Option<(&[u8], Place)> {
        let at = at as usize;
        let start = if at == 0 { 0 } else { self.ends[at - 1] as usize };
        let name = &self.names[start..self.ends[at] as usize];
        (!name.is_empty()).then_some((name, place))
    }

    /// The number of a line that was found, from 1.
    #[must_use]
    pub fn number(&self, place: Place) -> u32 {
        self.lines.line(place)
    }

    /// How many routes it has.
    #[must_use]
    pub fn len(&self) -> usize {
        self.lines.len()
    }

    /// Whether it has no route.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.lines.is_empty()
    }
}

/// `[Relay.Example]:26` is `Relay.Example`.
fn relay_name(field: &[u8]) -> &[u8] {
    let (bracketed, rest) = match field {
        [b'[', rest @ ..] => (true, rest),
        _ => (false, field),
    };
    let end = if bracketed { b']' } else { b':' };
    let name = &rest[..rest.iter().position(|&byte| byte == end).unwrap_or(rest.len())];
    crate::name::without_root(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn relay(routes: &Routes, host: &str) -> Option<String> {
        routes.find(host.as_bytes()).map(|(name, _)| String::from_utf8(name.to_vec()).unwrap())
    }

    #[test]
    fn the_example_of_the_manual() {
        let (routes, problems) = Routes::parse(
            b"inside.af.mil:firewall.af.mil:26\n.af.mil:\n:heaven.af.mil\n",
            Hasher::new(1),
        )
        .unwrap();
        assert!(problems.is_empty());
        assert_eq!(relay(&routes, "inside.af.mil").as_deref(), Some("firewall.af.mil"));
        assert_eq!(relay(&routes, "x.af.mil"), None);
        assert_eq!(relay(&routes, "af.mil").as_deref(), Some("heaven.af.mil"));
    }

    #[test]
    fn relays_are_names() {
        let text =
            b"a:[10.0.0.1]:26\nb:[Mx.Example]\nc:Mx.Example.:587\nd: \ne\n# f:g\nh:[::1]\r\n";
        let (routes, problems) = Routes::parse(text, Hasher::new(1)).unwrap();
        assert_eq!(relay(&routes, "a").as_deref(), Some("10.0.0.1"));
        assert_eq!(relay(&routes, "b").as_deref(), Some("mx.example"));
        assert_eq!(relay(&routes, "c").as_deref(), Some("mx.example"));
        assert_eq!(relay(&routes, "d"), None);
        assert_eq!(relay(&routes, "h").as_deref(), Some("::1"));
        let kinds: Vec<_> = problems.iter().map(|problem| (problem.line, problem.kind)).collect();
        assert_eq!(kinds, [(5, Kind::RouteNoColon)]);
    }

    #[test]
    fn too_long_is_not_followed() {
        let text = [&b"a:"[..], &b"x".repeat(300), b"\n", &b"y".repeat(300), b":b\nc:d\n"].concat();
        let (routes, problems) = Routes::parse(&text, Hasher::new(1)).unwrap();
        assert_eq!(routes.len(), 1);
        assert_eq!(problems.iter().count(), 2);
    }
}
