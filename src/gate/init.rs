//! `qpatch gate init`: writes a commented control/concurrencydomains to start from.

use std::fs::Permissions;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use clap::Args;
use qpatch_gate::gate::CONCURRENCY_REMOTE;

use crate::error::Error;
use crate::output::{CommandResult, print};
use crate::qmail::control::{leading_number, read_file};
use crate::qmail::home::Home;

/// Arguments of `qpatch gate init`.
#[derive(Debug, Args)]
pub struct Init {
    /// The folder where qmail is installed
    #[arg(value_name = "QMAILHOME")]
    home: PathBuf,
}

/// The file, for a server with any concurrencyremote.
const STARTER: &str = include_str!("concurrencydomains");

/// How the default's line begins. It is never made a comment.
const DEFAULT: &str = ":";

/// The file for a server with this concurrencyremote. Limits that the server cannot reach become comments.
fn starter(concurrency_remote: u32) -> String {
    let mut text = String::with_capacity(STARTER.len() + 100);
    for line in STARTER.lines() {
        let limit = line.split(':').nth(1).and_then(|limit| limit.parse::<u32>().ok());
        let is_rule = !line.starts_with('#') && !line.starts_with(DEFAULT);
        if is_rule && limit.is_some_and(|limit| limit > concurrency_remote) {
            text.push_str(&format!(
                "# never reached while concurrencyremote is {concurrency_remote}:\n#"
            ));
        }
        text.push_str(line);
        text.push('\n');
    }
    text
}

/// Runs it.
///
/// # Errors
/// The file exists already, or cannot be written. Nothing has changed then.
pub fn run(args: &Init) -> CommandResult {
    let written = Home::with_control(&args.home).and_then(|home| {
        let path = home.control("concurrencydomains");
        write(&home, &path).map(|()| path)
    });
    let path = written?;
    print(|out| {
        writeln!(
            out,
            "{} written: at most 20 deliveries at once to a domain, fewer to some big providers",
            path.display()
        )?;
        writeln!(
            out,
            "a running gate uses it within a second; next: qpatch gate check {}",
            args.home.display()
        )
    })
}

fn write(home: &Home, path: &Path) -> Result<(), Error> {
    let exists = || {
        Error::new(
            path.display(),
            "exists already, and was not touched",
            format!(
                "edit it and run qpatch gate check {}, or move it away first",
                home.path().display()
            ),
        )
    };
    // This is only for the message: the last step makes sure that nothing is overwritten.
    if path.symlink_metadata().is_ok() {
        return Err(exists());
    }
    let remote = read_file(&home.control("concurrencyremote"), 4096)
        .ok()
        .flatten()
        .and_then(|(_, text)| leading_number(&text))
        .unwrap_or(CONCURRENCY_REMOTE);
    let control = home.path().join("control");
    let refused = |error: std::io::Error| Error::io(&control, "write into it", &error);
    let mut file = tempfile::Builder::new()
        .prefix(".concurrencydomains.")
        .tempfile_in(&control)
        .map_err(refused)?;
    file.write_all(starter(remote).as_bytes()).map_err(refused)?;
    // qmail-rspawn reads it as qmailr, whatever the umask here.
    file.as_file().set_permissions(Permissions::from_mode(0o644)).map_err(refused)?;
    file.as_file().sync_all().map_err(refused)?;
    match file.persist_noclobber(path) {
        Ok(_) => Ok(()),
        Err(error) if error.error.kind() == std::io::ErrorKind::AlreadyExists => Err(exists()),
        Err(error) => Err(refused(error.error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use qpatch_gate::name::Hasher;
    use qpatch_gate::table::{Limit, Table};

    #[test]
    fn a_limit_that_cannot_be_reached_becomes_a_comment() {
        for (remote, comcast) in [(1000, 25), (25, 25), (24, 20), (20, 20)] {
            let text = starter(remote);
            let (table, problems) = Table::parse(text.as_bytes(), Hasher::new(1)).unwrap();
            assert!(problems.is_empty());
            assert_eq!(table.above(remote).count(), 0, "{remote}");
            assert_eq!(table.find(b"comcast.net").unwrap().cap.limit, Limit::AtMost(comcast));
            assert_eq!(table.find(b"any.example").unwrap().cap.limit, Limit::AtMost(20));
        }
        assert_eq!(starter(25), STARTER);
    }
}
