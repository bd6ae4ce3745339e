//! The fixture trees: small qmail-like sources, written for this project, that build and run.

#![forbid(unsafe_code)]

use std::fs;
use std::path::Path;

use include_dir::{Dir, include_dir};

use crate::error::{Error, Result};

static FIXTURES: Dir<'_> = include_dir!("$CARGO_MANIFEST_DIR/fixtures");

/// A kind of fixture tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dialect {
    /// qmail-1.03: K&R C, one-byte delivery numbers, a plain `errno`, no declaration of `alloc`.
    StockKr,
    /// notqmail: ANSI C, one-byte delivery numbers, headers before `select.h`.
    StockAnsi,
    /// A fork with the classic big-concurrency patch, its sign bug included.
    TwoByte,
}

impl Dialect {
    /// All kinds.
    pub const ALL: [Dialect; 3] = [Dialect::StockKr, Dialect::StockAnsi, Dialect::TwoByte];

    /// Returns the folder under `fixtures/` with the files that only this kind has.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Dialect::StockKr => "stock-kr",
            Dialect::StockAnsi => "stock-ansi",
            Dialect::TwoByte => "two-byte",
        }
    }

    /// Writes the tree into the folder `to`, and makes that folder if it does not exist.
    ///
    /// # Errors
    /// If a file cannot be written.
    pub fn write(self, to: &Path) -> Result<()> {
        fs::create_dir_all(to).map_err(|e| Error::io(to, "make the folder", &e))?;
        for folder in ["common", self.name()] {
            let dir = FIXTURES.get_dir(folder).expect("the fixtures are part of the program");
            for file in dir.files() {
                let name = file.path().file_name().expect("a file has a name");
                let path = to.join(name);
                fs::write(&path, file.contents()).map_err(|e| Error::io(&path, "write", &e))?;
            }
        }
        Ok(())
    }
}
