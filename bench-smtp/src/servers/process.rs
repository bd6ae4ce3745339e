//! Finds, starts and ends a real server.

use std::fs::{self, Permissions};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddrV4, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use tempfile::TempDir;

use super::kinds::{ServerKind, ServerSetup};
use crate::error::{Error, Result, check_signals};

/// A running server. Dropping it ends the server and all processes of its group.
#[derive(Debug)]
pub(super) struct RunningServer {
    child: Child,
    /// Its files.
    _dir: TempDir,
}

impl Drop for RunningServer {
    fn drop(&mut self) {
        let group = Pid::from_raw(self.child.id().cast_signed());
        // The child has not been waited for yet, so the number is still its own.
        let _ = killpg(group, Signal::SIGTERM);
        let until = Instant::now() + Duration::from_secs(2);
        while matches!(self.child.try_wait(), Ok(None)) && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(5));
        }
        let _ = killpg(group, Signal::SIGKILL);
        let _ = self.child.wait();
    }
}

/// The folder that has the program of `kind`: one of those in `servers`, or / for the system's.
pub(super) fn find(kind: &ServerKind, servers: &Path) -> std::result::Result<PathBuf, String> {
    let mut folders: Vec<PathBuf> =
        fs::read_dir(servers).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
    folders.sort();
    folders.push(PathBuf::from("/"));
    folders
        .into_iter()
        .find(|folder| folder.join(kind.program).is_file())
        .ok_or_else(|| format!("skipped: no {}", kind.program))
}

/// The folders below `root` that have shared libraries, up to two levels deep: lib, lib/TRIPLET, lib/TRIPLET/PACKAGE.
fn libraries(root: &Path) -> String {
    if root == Path::new("/") {
        return String::new();
    }
    let subfolders = |dir: &PathBuf| -> Vec<PathBuf> {
        let entries = fs::read_dir(dir).into_iter().flatten().flatten();
        entries.map(|entry| entry.path()).filter(|path| path.is_dir()).collect()
    };
    let tops: Vec<PathBuf> = ["usr/lib", "lib"].map(|top| root.join(top)).to_vec();
    let first: Vec<PathBuf> = tops.iter().flat_map(subfolders).collect();
    let second: Vec<PathBuf> = first.iter().flat_map(subfolders).collect();
    let has_library = |dir: &PathBuf| {
        let mut entries = fs::read_dir(dir).into_iter().flatten().flatten();
        entries.any(|entry| entry.file_name().to_string_lossy().contains(".so"))
    };
    let all = tops.into_iter().chain(first).chain(second).filter(has_library);
    all.map(|dir| dir.display().to_string()).collect::<Vec<_>>().join(":")
}

/// Starts a server and returns when it greets a client.
pub(super) fn start(
    kind: &ServerKind,
    root: &Path,
    at: SocketAddrV4,
    parent: &Path,
) -> Result<RunningServer> {
    let dir = tempfile::Builder::new()
        .prefix("qpatch-bench-server.")
        .tempdir_in(parent)
        .map_err(Error::doing("make a directory for a server"))?;
    fs::set_permissions(dir.path(), Permissions::from_mode(0o755))
        .map_err(Error::doing("set the mode of a server's directory"))?;
    let setup = ServerSetup {
        dir: dir.path(),
        root,
        program: root.join(kind.program),
        libraries: libraries(root),
        at,
        session: std::env::current_exe().map_err(Error::doing("find this program"))?,
    };
    let mut command = (kind.set_up)(&setup)?;
    let said = fs::File::create(dir.path().join("said")).map_err(Error::doing("make a file"))?;
    let said_too = said.try_clone().map_err(Error::doing("make a file"))?;
    command.stdin(Stdio::null()).stdout(said).stderr(said_too).process_group(0);
    let child = command.spawn().map_err(Error::doing(format!("start {}", kind.program)))?;
    let mut running = RunningServer { child, _dir: dir };
    let until = Instant::now() + Duration::from_secs(20);
    while !greets(at) {
        check_signals()?;
        let ended = running.child.try_wait().map_err(Error::doing("wait for a server"))?;
        if ended.is_some() || Instant::now() > until {
            return Err(Error::new(
                format!("{} does not greet: {}", kind.name, last_words(running._dir.path())),
                "",
            ));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(running)
}

/// The last lines of each of a server's log files.
fn last_words(dir: &Path) -> String {
    let mut all = Vec::new();
    for name in ["said", "log", "spool/mainlog", "spool/paniclog"] {
        let text = fs::read(dir.join(name)).unwrap_or_default();
        let text = String::from_utf8_lossy(&text).into_owned();
        let lines: Vec<&str> = text.lines().rev().take(3).collect();
        all.extend(lines.into_iter().rev().map(str::to_owned));
    }
    all.join(" / ")
}

/// Whether a server greets there. Ends the session and waits for its end.
fn greets(at: SocketAddrV4) -> bool {
    let Ok(stream) = TcpStream::connect(at) else { return false };
    let _ = stream.set_read_timeout(Some(Duration::from_secs(10)));
    let mut reader = BufReader::new(&stream);
    let mut line = String::new();
    if reader.read_line(&mut line).is_err() || !line.starts_with("220") {
        return false;
    }
    (&stream).write_all(b"QUIT\r\n").is_ok() && reader.read_to_end(&mut Vec::new()).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::servers::kinds::SERVER_KINDS;

    #[test]
    fn a_program_is_found_in_any_folder_with_its_libraries_and_missed_by_name() {
        let servers = tempfile::tempdir().expect("a directory");
        let kind =
            SERVER_KINDS.iter().find(|kind| kind.name == "courier-per-ip").expect("it is there");
        let nowhere = ServerKind { program: "usr/sbin/no-such-program", ..*kind };
        assert_eq!(
            find(&nowhere, servers.path()),
            Err("skipped: no usr/sbin/no-such-program".to_owned())
        );
        for (folder, file) in [
            ("a", "usr/bin/something"),
            ("b", "usr/sbin/no-such-program"),
            ("b", "usr/lib/some-triplet/libone.so.1"),
            ("b", "usr/lib/some-triplet/private/libtwo.so"),
            ("b", "usr/lib/text/file"),
        ] {
            let path = servers.path().join(folder).join(file);
            fs::create_dir_all(path.parent().expect("a parent")).expect("directories");
            fs::write(path, "").expect("a file");
        }
        let root = find(&nowhere, servers.path()).expect("it is in b");
        assert_eq!(root, servers.path().join("b"));
        let triplet = root.join("usr/lib/some-triplet");
        let expected = format!("{}:{}", triplet.display(), triplet.join("private").display());
        assert_eq!(libraries(&root), expected);
        assert_eq!(libraries(Path::new("/")), "");
    }
}
