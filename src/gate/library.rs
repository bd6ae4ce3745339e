//! `qpatch gate library`: gate.a, for trees that are patched with `qpatch diff`, and its sources, for other machines.

use std::fs;
use std::io::{self, IsTerminal};
use std::path::{Path, PathBuf};

use clap::Args;
use include_dir::{Dir, DirEntry, include_dir};

use crate::error::Error;
use crate::output::{CommandResult, print};
use crate::patches;

/// Arguments of `qpatch gate library`.
#[derive(Debug, Args)]
pub struct Library {
    /// Write the sources of gate.a and a Makefile into this new folder instead; the Makefile needs only rustc
    #[arg(long, value_name = "DIR")]
    source: Option<PathBuf>,
    /// With --source: the target that the Makefile builds for, for example i686-unknown-linux-gnu; without it, the
    /// machine that runs rustc
    #[arg(long, value_name = "TRIPLE", requires = "source", value_parser = triple)]
    target: Option<String>,
}

/// The sources of gate.a, as the build script has copied them.
static SOURCES: Dir<'_> = include_dir!("$OUT_DIR/gate-source");

const MAKEFILE: &str = include_str!("library.mk");

/// A target is pasted into a Makefile.
fn triple(value: &str) -> Result<String, String> {
    let good = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    if value.is_empty() || !value.bytes().all(good) {
        return Err("not the name of a target; `rustc --print target-list` has them".to_owned());
    }
    Ok(value.to_owned())
}

/// Writes the library, or its sources.
///
/// # Errors
/// Standard output is a terminal, or cannot be written. With --source: the folder exists, or cannot be written.
pub fn run(args: &Library) -> CommandResult {
    if let Some(dir) = &args.source {
        return Ok(write_sources(dir, args.target.as_deref().unwrap_or_default())?);
    }
    if io::stdout().is_terminal() {
        return Err(Error::new(
            "standard output",
            "is a terminal, and a static library is binary",
            "write it into a file: qpatch gate library > TREE/gate.a",
        )
        .into());
    }
    print(|out| out.write_all(patches::gate_library()))
}

fn write_sources(dir: &Path, target: &str) -> Result<(), Error> {
    if dir.symlink_metadata().is_ok() {
        return Err(Error::new(dir.display(), "exists", "name a new folder after --source"));
    }
    let makefile = MAKEFILE
        .replace("@TARGET@", target)
        .replace("@RUST@", env!("CARGO_PKG_RUST_VERSION"))
        .replace("@FLAGS@", qpatch_gate_library::FLAGS)
        .replace("TARGET = \n", "TARGET =\n");
    let written = fs::create_dir_all(dir)
        .and_then(|()| write_folder(&SOURCES, dir))
        .and_then(|()| fs::write(dir.join("Makefile"), makefile));
    written.map_err(|error| {
        // It is new, so all that is in it is ours.
        let _ = fs::remove_dir_all(dir);
        Error::io(dir, "write the sources of gate.a", &error)
    })
}

fn write_folder(folder: &Dir<'_>, to: &Path) -> io::Result<()> {
    for entry in folder.entries() {
        let path = to.join(entry.path());
        match entry {
            DirEntry::Dir(folder) => {
                fs::create_dir(path)?;
                write_folder(folder, to)?;
            }
            DirEntry::File(file) => fs::write(path, file.contents())?,
        }
    }
    Ok(())
}
