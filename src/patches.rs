//! The patches that qpatch brings along.

#![forbid(unsafe_code)]

use crate::engine::rule::{self, Parameters, Patch, RuleError};

/// A patch as it stands under `patches/`.
#[derive(Clone, Copy, Debug)]
pub struct Shipped {
    /// The name of its folder.
    pub id: &'static str,
    /// What it makes true, in one line.
    pub summary: &'static str,
    text: &'static str,
}

macro_rules! shipped {
    ($id:literal, $summary:literal) => {
        Shipped {
            id: $id,
            summary: $summary,
            text: include_str!(concat!("../patches/", $id, "/rule")),
        }
    };
}

/// All of them, in the order in which they are applied.
pub const ALL: [Shipped; 7] = [
    shipped!("toolchain", "builds with today's compilers and C libraries"),
    shipped!("big-concurrency", "two-byte delivery numbers: up to 65000 deliveries at once"),
    shipped!("fd-setsize", "select() takes 131072 descriptors instead of 1024"),
    shipped!("log-lines", "qmail-send writes each line of its log at once"),
    shipped!("outgoing-ports", "outgoing addresses share no ports between destinations"),
    shipped!("domain-gate", "a limit of simultaneous deliveries per destination domain"),
    shipped!(
        "fork-server",
        "qmail-remote is started at a cost that does not grow, and without exec if wanted"
    ),
];

/// The id of the patch with the two-byte delivery numbers, which sets conf-spawn.
pub const BIG_CONCURRENCY: &str = "big-concurrency";

/// The id of the patch with the gate, a limit of deliveries per domain.
pub const GATE: &str = "domain-gate";

/// The id of the patch that starts qmail-remote in another way.
pub const FORK_SERVER: &str = "fork-server";

/// The id of the patch that writes qmail-send's log line by line.
pub const LOG_LINES: &str = "log-lines";

/// A patch that a tree may go without.
#[derive(Clone, Copy, Debug)]
pub struct Optional {
    /// Its id.
    pub id: &'static str,
    /// What a tree without it lacks.
    pub without: &'static str,
    /// How to choose.
    pub choice: &'static str,
}

/// The patches that are left out where they do not fit a tree, unless they are asked for by name.
pub const OPTIONAL: [Optional; 3] = [
    Optional {
        id: LOG_LINES,
        without: "qmail-send writes its log in pieces, as before: log-lines does not fit this tree and is left out",
        choice: "--skip log-lines leaves it out without this warning",
    },
    Optional {
        id: GATE,
        without: "no limits per domain: the gate does not fit this tree and is left out",
        choice: "--gate makes this an error, --no-gate leaves it out without this warning",
    },
    Optional {
        id: FORK_SERVER,
        without: "qmail-remote is started as before: the fork server does not fit this tree and is left out",
        choice: "--skip fork-server leaves it out without this warning",
    },
];

/// Files that rules write with `create NAME from FILE`: of the gate its C files as they stand in its source, and its
/// library as the build made it; of fd-setsize and outgoing-ports their header.
pub(crate) const ATTACHMENTS: [(&str, &[u8]); 14] = [
    ("gate.a", include_bytes!(concat!(env!("OUT_DIR"), "/gate.a"))),
    ("gate.lib", include_bytes!(concat!(env!("OUT_DIR"), "/gate.lib"))),
    ("gate.h", include_bytes!(concat!(env!("OUT_DIR"), "/gate.h"))),
    ("gate_glue.h", qpatch_c_shim::GLUE_H),
    ("gate_glue.c", qpatch_c_shim::GLUE_C),
    ("gate_stub.c", qpatch_c_shim::STUB_C),
    ("gate_retry.h", qpatch_c_shim::RETRY_H),
    ("gate_retry.c", qpatch_c_shim::RETRY_C),
    ("remote_start.h", qpatch_c_shim::REMOTE_START_H),
    ("remote_start.c", qpatch_c_shim::REMOTE_START_C),
    ("remote_packet.h", qpatch_c_shim::REMOTE_PACKET_H),
    ("remote_serve.c", qpatch_c_shim::REMOTE_SERVE_C),
    ("select_set.h", include_bytes!("../patches/fd-setsize/select_set.h")),
    ("bind_noport.h", include_bytes!("../patches/outgoing-ports/bind_noport.h")),
];

/// The text in bind_noport.h, and so in a program that was built with it.
pub(crate) const BIND_NOPORT_MARK: &[u8] = b"qpatch: IP_BIND_ADDRESS_NO_PORT";

/// The gate's static library, gate.a.
#[must_use]
pub fn gate_library() -> &'static [u8] {
    ATTACHMENTS[0].1
}

impl Shipped {
    /// Its rule file, as it stands under `patches/`.
    #[must_use]
    pub fn text(&self) -> &'static str {
        self.text
    }

    /// What its rule file is called in messages.
    #[must_use]
    pub fn file(&self) -> String {
        format!("patches/{}/rule", self.id)
    }

    /// Its rules.
    ///
    /// # Errors
    /// Never for a shipped patch: a test reads them all.
    pub fn patch(&self, parameters: &Parameters) -> Result<Patch, RuleError> {
        rule::parse(self.id, &self.file(), self.text, parameters, &ATTACHMENTS)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mark_is_in_the_header() {
        let (_, header) = ATTACHMENTS.iter().find(|(name, _)| *name == "bind_noport.h").unwrap();
        assert!(memchr::memmem::find(header, BIND_NOPORT_MARK).is_some());
    }

    #[test]
    fn all_shipped_rules_can_be_read() {
        let parameters = Parameters::from([
            ("spawn".to_string(), "1000".to_string()),
            ("old-style".to_string(), String::new()),
        ]);
        for shipped in ALL {
            let patch = shipped.patch(&parameters).unwrap_or_else(|e| panic!("{e}"));
            assert!(!patch.sections.is_empty());
        }
    }
}
