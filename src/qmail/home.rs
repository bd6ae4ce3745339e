//! The folder in which a qmail is installed.

#![forbid(unsafe_code)]

use std::path::{Path, PathBuf};

use crate::error::Error;

/// The folder in which qmail is installed by default.
pub(crate) const QMAIL_HOME: &str = "/var/qmail";

/// A folder in which qmail is installed.
#[derive(Clone, Debug)]
pub(crate) struct Home {
    path: PathBuf,
}

impl Home {
    /// Returns the home in the folder `path`.
    ///
    /// # Errors
    /// It is not a folder, or may not be looked into.
    pub(crate) fn new(path: &Path) -> Result<Self, Error> {
        let help = "name the folder that has qmail's control and queue";
        match std::fs::metadata(path) {
            Err(error) => {
                Err(Error { help: help.to_string(), ..Error::io(path, "look into it", &error) })
            }
            Ok(metadata) if !metadata.is_dir() => {
                Err(Error::new(path.display(), "not a folder", help))
            }
            Ok(_) => Ok(Self { path: path.to_path_buf() }),
        }
    }

    /// Returns the home in the folder `path`, which must have a folder for control files.
    ///
    /// # Errors
    /// As [`Home::new`], or it has no control.
    pub(crate) fn with_control(path: &Path) -> Result<Self, Error> {
        let home = Self::new(path)?;
        if home.path.join("control").is_dir() {
            return Ok(home);
        }
        let help = "name the folder that has qmail's control and queue";
        Err(Error::new(path.display(), "no qmail is installed here: it has no control", help))
    }

    pub(crate) fn control(&self, name: &str) -> PathBuf {
        self.path.join("control").join(name)
    }

    pub(crate) fn lock(&self, name: &str) -> PathBuf {
        self.path.join("queue/lock").join(name)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}
