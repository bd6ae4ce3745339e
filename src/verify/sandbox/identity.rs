//! The user that a proof runs as.
#![forbid(unsafe_code)]

use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use crate::sys;
use crate::verify::error::Error;

/// The user and group of everything in the scratch copy: make, the compiler, the tree's programs,
/// the stubs.
///
/// An ordinary user stays the same. Root becomes an unprivileged user for every program that is
/// started: qmail-lspawn refuses deliveries as root, limits on processes do not bind root, and a
/// tree's Makefile should not run as root.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity {
    uid: u32,
    gid: u32,
    changes: bool,
}

/// The user and group that root becomes if the tree belongs to root: "nobody" on Linux. They need
/// no passwd entry.
const UNPRIVILEGED: u32 = 65534;

impl Identity {
    /// Returns the present user. For root, returns the owner of `tree`, or 65534 if root owns that,
    /// too.
    pub fn for_tree(tree: &Path) -> Result<Identity, Error> {
        let (uid, gid) = (sys::effective_uid(), sys::effective_gid());
        if uid != 0 {
            return Ok(Identity { uid, gid, changes: false });
        }
        let owner = std::fs::metadata(tree).map_err(Error::file("look at", tree))?;
        let (uid, gid) = if owner.uid() == 0 || owner.gid() == 0 {
            (UNPRIVILEGED, UNPRIVILEGED)
        } else {
            (owner.uid(), owner.gid())
        };
        Ok(Identity { uid, gid, changes: true })
    }

    /// Returns the user's number.
    pub fn uid(&self) -> u32 {
        self.uid
    }

    /// Returns the group's number.
    pub fn gid(&self) -> u32 {
        self.gid
    }

    /// Returns whether programs run as another user than this process.
    pub fn changes(&self) -> bool {
        self.changes
    }

    /// Returns a command that will run as this user.
    pub(crate) fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new(program);
        if self.changes {
            command.uid(self.uid).gid(self.gid);
        }
        command
    }

    /// Gives a file that this process has made to the user of the proof.
    pub(crate) fn chown(&self, path: &Path) -> Result<(), Error> {
        if self.changes {
            std::os::unix::fs::lchown(path, Some(self.uid), Some(self.gid))
                .map_err(Error::file("change the owner of", path))?;
        }
        Ok(())
    }
}
