//! Control files that send mail to a relay before control/smtproutes does, if qmail-remote reads them.
//!
//! The gate cannot find out at run time whether qmail-remote reads such a file: qmailr may not read the program (its
//! mode is 0711). So the Makefile of a patched tree looks into qmail-remote.c, and puts the answer into qmail-rspawn.
//! This module reports the files that the gate does not follow: `gate check` and `doctor` mostly run as root, and can
//! read both programs. It never shows the contents of these files, because they have passwords.

use std::fs;
use std::path::Path;

use qpatch_gate::sender::{Asked, BOUNCES, Reads};

/// A control file whose relays the gate and qmail-remote treat differently.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RelayFile {
    /// Its name in control/.
    pub(crate) name: &'static str,
    /// What chooses the relay there.
    chosen_by: &'static str,
    /// Whether this qmail-remote reads it.
    pub(crate) read: ReadByRemote,
    /// Whether this qmail-rspawn follows it.
    followed: FollowedByGate,
}

/// Whether the gate in a qmail-rspawn follows a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum FollowedByGate {
    /// The gate cannot follow this file.
    Never,
    /// It could. But this program was built from a tree whose qmail-remote.c does not read the file, or by an earlier
    /// qpatch.
    No,
    /// It follows the file.
    Yes,
}

/// Whether qmail-remote reads a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ReadByRemote {
    /// The program contains the file's name.
    Yes,
    /// There is no program, it cannot be read, or it is a script.
    Unknown,
    /// The program does not contain the file's name.
    No,
}

/// All such files that are known, each with what chooses the relay: authsenders of the SMTP AUTH patches by Erwin
/// Hoffmann, which sagredo's, s/qmail's and other trees have; qmtproutes of the QMTP patches; moresmtproutes.cdb of
/// IndiMail. Files that choose the machine's own address (outgoingip, domainips, domainbindings) do not send mail to a
/// relay.
const FILES: [(&str, &str); 3] = [
    ("authsenders", "the sender"),
    ("qmtproutes", "the recipient"),
    ("moresmtproutes.cdb", "the recipient"),
];

/// In qmail-rspawn, the names of the files that qmail-remote reads stand behind this; see gate_glue.c.
const MARK: &[u8] = b"qmail-remote reads:";

/// The largest file that is read, in bytes. No control file with routes and no program of qmail is larger.
const MAX: u64 = 64 << 20;

/// Returns the files in `home` that qmail-remote reads, or may read, and the gate does not follow; and those that the
/// gate follows and qmail-remote does not read.
pub(crate) fn find(home: &Path) -> Vec<RelayFile> {
    let there = FILES.into_iter().filter(|(name, _)| has_content(&home.join("control").join(name)));
    let there: Vec<_> = there.collect();
    if there.is_empty() {
        return Vec::new();
    }
    let programs = programs(&home.join("bin"));
    let follows = followed(home);
    let found = there.into_iter().map(|(name, chosen_by)| {
        let followed = match (name, follows.senders) {
            ("authsenders", Asked::Yes) => FollowedByGate::Yes,
            ("authsenders", Asked::No) => FollowedByGate::No,
            _ => FollowedByGate::Never,
        };
        RelayFile { name, chosen_by, read: reads(&programs, name), followed }
    });
    let is_wrong = |file: &RelayFile| match (file.read, file.followed) {
        (ReadByRemote::Yes | ReadByRemote::Unknown, FollowedByGate::Yes) => false,
        (ReadByRemote::No, FollowedByGate::No | FollowedByGate::Never) => false,
        (ReadByRemote::Yes | ReadByRemote::Unknown, _)
        | (ReadByRemote::No, FollowedByGate::Yes) => true,
    };
    found.filter(is_wrong).collect()
}

/// Returns what the gate in this home's qmail-rspawn asks for relays beside smtproutes; nothing if the program cannot
/// be read.
pub(crate) fn followed(home: &Path) -> Reads {
    let path = home.join("bin/qmail-rspawn");
    let program = if is_regular(&path) { fs::read(path).ok() } else { None };
    let Some(program) = program else { return Reads::default() };
    let Some(at) = program.windows(MARK.len()).position(|window| window == MARK) else {
        return Reads::default();
    };
    let words = program[at..].split(|&byte| byte == 0).next().unwrap_or_default();
    Reads::parse(words)
}

/// Returns whether a line of smtproutes is for mail without a sender, and this home's gate follows it.
pub(crate) fn is_for_bounces(host: &[u8], reads: Reads) -> bool {
    host == BOUNCES && reads.bounces == Asked::Yes
}

/// Returns the control files among `names` that exist and that the qmail-remote of `home` reads, or may read.
pub(crate) fn read_by_remote<'n>(home: &Path, names: &[&'n str]) -> Vec<(&'n str, ReadByRemote)> {
    let has_bytes = |name: &str| {
        fs::metadata(home.join("control").join(name))
            .is_ok_and(|file| file.is_file() && file.len() > 0)
    };
    let there: Vec<&str> = names.iter().copied().filter(|name| has_bytes(name)).collect();
    if there.is_empty() {
        return Vec::new();
    }
    let programs = programs(&home.join("bin"));
    let all = there.into_iter().map(|name| (name, reads(&programs, name)));
    all.filter(|(_, read)| *read != ReadByRemote::No).collect()
}

impl RelayFile {
    /// Returns a message that says what is wrong.
    pub(crate) fn message(&self) -> String {
        let Self { name, chosen_by, read, followed } = self;
        if *followed == FollowedByGate::Yes {
            return format!(
                "the gate counts mail by the relays of {name}, and this qmail-remote does not read it: such mail \
                 counts wrongly"
            );
        }
        let whether = match read {
            ReadByRemote::Yes | ReadByRemote::No => "",
            ReadByRemote::Unknown => ", if this qmail-remote reads it",
        };
        format!(
            "{name} chooses a relay by {chosen_by} before smtproutes does{whether}, and the gate does not follow it: \
             such mail counts by its domains, and limits of these relays do not count"
        )
    }

    /// Returns what to do about it.
    pub(crate) fn help(&self) -> String {
        match self.followed {
            FollowedByGate::Never => format!(
                "write a relay for all mail into smtproutes, in the same form; no limit covers all mail to another relay \
                 of {}",
                self.name
            ),
            FollowedByGate::No | FollowedByGate::Yes => {
                "make setup check in the tree of this qmail-remote, patched by this qpatch: its qmail-rspawn then \
                 knows"
                    .to_string()
            }
        }
    }
}

fn is_regular(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|file| file.is_file() && file.len() <= MAX)
}

/// Returns whether the file exists and has an effect. A file that cannot be read counts.
fn has_content(path: &Path) -> bool {
    if !is_regular(path) {
        return false;
    }
    let Ok(text) = fs::read(path) else { return true };
    // A cdb begins with its table; in the others a line without a colon does nothing.
    let is_cdb = path.extension().is_some_and(|end| end == "cdb");
    match is_cdb {
        true => text.len() > 2048,
        false => qpatch_gate::table::content_lines(&text).any(|(_, line)| line.contains(&b':')),
    }
}

/// Returns the contents of qmail-remote, and of programs whose names begin with it, because a package or a wrapper
/// may have renamed the program. `None`: there is none, one cannot be read, or one is a script.
fn programs(bin: &Path) -> Option<Vec<Vec<u8>>> {
    let mut programs = Vec::new();
    for entry in fs::read_dir(bin).ok()?.flatten() {
        if entry.file_name().to_string_lossy().starts_with("qmail-remote")
            && is_regular(&entry.path())
        {
            programs.push(fs::read(entry.path()).ok()?);
        }
    }
    // A script may run any program.
    let is_program = |bytes: &Vec<u8>| !bytes.starts_with(b"#!");
    (!programs.is_empty() && programs.iter().all(is_program)).then_some(programs)
}

fn reads(programs: &Option<Vec<Vec<u8>>>, name: &str) -> ReadByRemote {
    let Some(programs) = programs else { return ReadByRemote::Unknown };
    let has = |bytes: &Vec<u8>| bytes.windows(name.len()).any(|window| window == name.as_bytes());
    if programs.iter().any(has) { ReadByRemote::Yes } else { ReadByRemote::No }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_files_that_qmail_remote_reads_are_reported() {
        let home = tempfile::tempdir().unwrap();
        let write = |name: &str, bytes: &[u8]| {
            let path = home.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, bytes).unwrap();
        };
        let found =
            || find(home.path()).iter().map(|file| (file.name, file.read)).collect::<Vec<_>>();
        assert_eq!(found(), []);
        write("control/authsenders", b"# nothing\n\nwithout a colon\n");
        assert_eq!(found(), []);
        write("control/authsenders", b"@a.example:relay.example:587|user|S3cretPass\n");
        assert_eq!(found(), [("authsenders", ReadByRemote::Unknown)], "no program");
        write("bin/qmail-remote", b"\x7fELF\0control/smtproutes\0");
        assert_eq!(found(), [], "a qmail-remote without the patch");
        write("bin/qmail-remote", b"\x7fELF\0control/smtproutes\0control/authsenders\0");
        assert_eq!(found(), [("authsenders", ReadByRemote::Yes)]);
        write("bin/qmail-remote.orig", b"\x7fELF\0control/smtproutes\0");
        assert_eq!(found(), [("authsenders", ReadByRemote::Yes)]);
        write("bin/qmail-remote", b"#!/bin/sh\nexec qmail-remote.orig \"$@\"\n");
        assert_eq!(found(), [("authsenders", ReadByRemote::Unknown)], "a script may run anything");
        write("bin/qmail-rspawn", b"\x7fELF\0qmail-remote reads: authsenders\0authsenders\0");
        assert_eq!(found(), [], "the gate follows it");
        write("bin/qmail-remote", b"\x7fELF\0control/smtproutes\0");
        assert_eq!(
            found(),
            [("authsenders", ReadByRemote::No)],
            "another qmail-remote has been installed"
        );
        assert!(find(home.path())[0].message().contains("does not read it"));
        write("bin/qmail-rspawn", b"\x7fELF\0qmail-remote reads:\0authsenders\0");
        assert_eq!(found(), [], "neither does");
        write("bin/qmail-remote", b"#!/bin/sh\nexec qmail-remote.orig \"$@\"\n");
        write("control/qmtproutes", b"b.example:qmtp.example\n");
        write("control/moresmtproutes.cdb", &[0; 2048]);
        assert_eq!(
            found(),
            [("authsenders", ReadByRemote::Unknown), ("qmtproutes", ReadByRemote::Unknown)]
        );
        for file in find(home.path()) {
            let said = file.message() + &file.help() + &format!("{file:?}");
            assert!(!said.contains("S3cretPass") && !said.contains("relay.example"), "{said}");
        }
    }
}
