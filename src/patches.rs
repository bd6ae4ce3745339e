//! The patches that are part of qpatch.

#![forbid(unsafe_code)]

use include_dir::{Dir, include_dir};

use crate::engine::rule::{self, Parameters, Patch, RuleError};

/// A patch of the folder `patches/`.
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

/// All patches, in the order in which they are applied.
pub const ALL: [Shipped; 9] = [
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
    shipped!("spawn-events", "a spawner waits at a cost that does not grow with its deliveries"),
    shipped!("free-slots", "qmail-send finds a free delivery number without a search"),
];

/// The id of the patch with the two-byte delivery numbers, which sets conf-spawn.
pub const BIG_CONCURRENCY: &str = "big-concurrency";

/// The id of the patch with the gate, a limit of deliveries per domain.
pub const GATE: &str = "domain-gate";

/// The id of the patch that starts qmail-remote in other ways than fork and exec.
pub const FORK_SERVER: &str = "fork-server";

/// The id of the patch that writes qmail-send's log line by line.
pub const LOG_LINES: &str = "log-lines";

/// The id of the patch with which a spawner waits for events.
pub const SPAWN_EVENTS: &str = "spawn-events";

/// The id of the patch with which qmail-send finds free numbers.
pub const FREE_SLOTS: &str = "free-slots";

/// A patch that is left out of trees that it does not fit.
#[derive(Clone, Copy, Debug)]
pub struct Optional {
    /// Its id.
    pub id: &'static str,
    /// The warning: what a tree without it lacks.
    pub without: &'static str,
    /// The options that make it an error, or leave it out without a warning.
    pub choice: &'static str,
}

/// The patches that are left out where they do not fit a tree, unless they are asked for by name.
pub const OPTIONAL: [Optional; 5] = [
    Optional {
        id: LOG_LINES,
        without: "qmail-send writes its log as before: log-lines does not fit this tree and is left out",
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
    Optional {
        id: SPAWN_EVENTS,
        without: "a spawner waits as before: spawn-events does not fit this tree and is left out",
        choice: "--skip spawn-events leaves it out without this warning",
    },
    Optional {
        id: FREE_SLOTS,
        without: "qmail-send searches for free numbers as before: free-slots does not fit this tree and is left out",
        choice: "--skip free-slots leaves it out without this warning",
    },
];

/// The folders of the patches, with all of their files.
static FOLDERS: Dir<'_> = include_dir!("$CARGO_MANIFEST_DIR/patches");

const GATE_LIBRARY: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/gate.a"));

/// Files for `create NAME from FILE` that are in no patch's folder: the gate's library as the build made it, and the C
/// of c-shim.
const BUILT_FILES: [(&str, &[u8]); 12] = [
    ("gate.a", GATE_LIBRARY),
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
];

/// Returns the files that a rule can write with `create NAME from FILE`, with their names: those in the folder of a
/// patch, beside its `rule` and README.md, and the built ones.
pub(crate) fn attachments() -> Vec<(&'static str, &'static [u8])> {
    let in_folders = FOLDERS.dirs().flat_map(Dir::files).filter_map(|file| {
        let name = file.path().file_name()?.to_str()?;
        (!matches!(name, "rule" | "README.md")).then_some((name, file.contents()))
    });
    BUILT_FILES.into_iter().chain(in_folders).collect()
}

/// A text in bind_noport.h, and so in each program that was built with it.
pub(crate) const BIND_NOPORT_MARK: &[u8] = b"qpatch: IP_BIND_ADDRESS_NO_PORT";

/// A text in spawn_events.c, and so in each spawner that was built with it where it works.
const BY_NUMBER_MARK: &[u8] = b"qpatch: one descriptor a delivery";

/// Returns how many descriptors this qmail-rspawn or qmail-lspawn has for each delivery under way: one if it waits for
/// processes by number (the patch spawn-events, on Linux), else two.
pub(crate) fn descriptors_each(spawner: &[u8]) -> u64 {
    if memchr::memmem::find(spawner, BY_NUMBER_MARK).is_some() { 1 } else { 2 }
}

/// Returns the gate's static library, gate.a.
#[must_use]
pub fn gate_library() -> &'static [u8] {
    GATE_LIBRARY
}

impl Shipped {
    /// Returns its rule file.
    #[must_use]
    pub fn text(&self) -> &'static str {
        self.text
    }

    /// Returns the name of its rule file, as messages write it.
    #[must_use]
    pub fn file(&self) -> String {
        format!("patches/{}/rule", self.id)
    }

    /// Reads its rules.
    ///
    /// # Errors
    /// Never, because a test reads the rules of all patches.
    pub fn patch(&self, parameters: &Parameters) -> Result<Patch, RuleError> {
        rule::parse(self.id, &self.file(), self.text, parameters, &attachments())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_marks_are_in_the_files() {
        let file = |wanted| attachments().into_iter().find(|(name, _)| *name == wanted).unwrap().1;
        assert!(memchr::memmem::find(file("bind_noport.h"), BIND_NOPORT_MARK).is_some());
        assert_eq!(descriptors_each(file("spawn_events.c")), 1);
        assert_eq!(descriptors_each(file("gate_glue.c")), 2);
    }

    #[test]
    fn every_folder_is_a_patch_and_every_patch_is_in_the_tables_of_the_documents() {
        let mut folders: Vec<_> = FOLDERS.dirs().map(|dir| dir.path().to_str().unwrap()).collect();
        let mut ids = ALL.map(|patch| patch.id);
        for (document, link) in [
            (include_str!("../patches/README.md"), ""),
            (include_str!("../docs/going-live.md"), "../patches/"),
        ] {
            let rows = ids.map(|id| format!("\n| [{id}]({link}{id}/README.md) |"));
            let at = rows.each_ref().map(|row| {
                document.find(row).unwrap_or_else(|| panic!("no table has the row {row:?}"))
            });
            assert!(at.is_sorted(), "a table of the patches has another order than ALL");
        }
        let manifest = include_str!("../Cargo.toml");
        for id in ids {
            let asset = format!("\n  [\"patches/{id}/README.md\", ");
            assert!(manifest.contains(&asset), "the Debian package (Cargo.toml) lacks {asset:?}");
        }
        folders.sort_unstable();
        ids.sort_unstable();
        assert_eq!(folders, ids);
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
