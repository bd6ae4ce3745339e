//! Files that send mail to a relay before control/smtproutes is asked, in trees whose qmail-remote reads them.
//!
//! The gate does not look relays up there: qmail-remote is not readable by qmailr (its mode is 0711), so that the gate cannot
//! tell whether this one reads such a file, and a file that is not read must not count. Whoever runs `gate check` or `doctor`
//! is mostly root, can tell, and is told what is not counted. What is in these files is never shown: there are passwords.

use std::fs;
use std::path::Path;

/// Such a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Elsewhere {
    /// Its name in control.
    pub(crate) name: &'static str,
    /// What chooses the relay there.
    chosen_by: &'static str,
    /// Whether this qmail-remote reads it.
    pub(crate) read: Read,
}

/// Whether qmail-remote reads a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Read {
    /// The program has the file's name.
    Yes,
    /// There is no program, it may not be read, or it is a script.
    Unknown,
}

/// All that are known: authsenders of the SMTP AUTH patches by Erwin Hoffmann, which sagredo's, s/qmail's and other trees have;
/// qmtproutes of the QMTP patches; moresmtproutes.cdb of IndiMail. Files that choose the machine's own address (outgoingip,
/// domainips, domainbindings) send mail nowhere else.
const FILES: [(&str, &str); 3] = [
    ("authsenders", "the sender"),
    ("qmtproutes", "the recipient"),
    ("moresmtproutes.cdb", "the recipient"),
];

/// A control file that is larger has no routes that somebody wrote; a program that is larger is none of qmail's.
const MAX: u64 = 64 << 20;

/// The files that `home` has and that its qmail-remote reads, or may read.
pub(crate) fn find(home: &Path) -> Vec<Elsewhere> {
    let there = FILES.into_iter().filter(|(name, _)| has_content(&home.join("control").join(name)));
    let there: Vec<_> = there.collect();
    if there.is_empty() {
        return Vec::new();
    }
    let programs = programs(&home.join("bin"));
    let found = there.into_iter().filter_map(|(name, chosen_by)| {
        Some(Elsewhere { name, chosen_by, read: reads(&programs, name)? })
    });
    found.collect()
}

impl Elsewhere {
    /// What is the matter with it.
    pub(crate) fn message(&self) -> String {
        let Self { name, chosen_by, read } = self;
        let whether = match read {
            Read::Yes => "",
            Read::Unknown => ", if this qmail-remote reads it",
        };
        format!(
            "{name} chooses a relay by {chosen_by} before smtproutes does{whether}, and the gate does not follow it: such mail \
             counts by its domains, and limits of these relays do not count"
        )
    }

    /// What can be done.
    pub(crate) fn help(&self) -> String {
        format!(
            "write a relay for all mail into smtproutes, in the same form; nothing limits all that goes to another one of {}",
            self.name
        )
    }
}

fn is_regular(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|file| file.is_file() && file.len() <= MAX)
}

/// Whether it is there and says something. What cannot be read may.
fn has_content(path: &Path) -> bool {
    if !is_regular(path) {
        return false;
    }
    let Ok(text) = fs::read(path) else { return true };
    // A cdb begins with its table; in the others a line without a colon does nothing.
    let is_cdb = path.extension().is_some_and(|end| end == "cdb");
    match is_cdb {
        true => text.len() > 2048,
        false => super::content_lines(&text).any(|(_, line)| line.contains(&b':')),
    }
}

/// What there is of qmail-remote, which a package or a wrapper may have renamed. None: it cannot be told.
fn programs(bin: &Path) -> Option<Vec<Vec<u8>>> {
    let mut programs = Vec::new();
    for entry in fs::read_dir(bin).ok()?.flatten() {
        if entry.file_name().to_string_lossy().starts_with("qmail-remote")
            && is_regular(&entry.path())
        {
            programs.push(fs::read(entry.path()).ok()?);
        }
    }
    // A script runs something else.
    let is_program = |bytes: &Vec<u8>| !bytes.starts_with(b"#!");
    (!programs.is_empty() && programs.iter().all(is_program)).then_some(programs)
}

/// None: it does not.
fn reads(programs: &Option<Vec<Vec<u8>>>, name: &str) -> Option<Read> {
    let Some(programs) = programs else { return Some(Read::Unknown) };
    let has = |bytes: &Vec<u8>| bytes.windows(name.len()).any(|window| window == name.as_bytes());
    programs.iter().any(has).then_some(Read::Yes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_qmail_remote_reads_is_told() {
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
        assert_eq!(found(), [("authsenders", Read::Unknown)], "no program");
        write("bin/qmail-remote", b"\x7fELF\0control/smtproutes\0");
        assert_eq!(found(), [], "a qmail-remote without the patch");
        write("bin/qmail-remote", b"\x7fELF\0control/smtproutes\0control/authsenders\0");
        assert_eq!(found(), [("authsenders", Read::Yes)]);
        write("bin/qmail-remote.orig", b"\x7fELF\0control/smtproutes\0");
        assert_eq!(found(), [("authsenders", Read::Yes)]);
        write("bin/qmail-remote", b"#!/bin/sh\nexec qmail-remote.orig \"$@\"\n");
        assert_eq!(found(), [("authsenders", Read::Unknown)], "a script may run anything");
        write("control/qmtproutes", b"b.example:qmtp.example\n");
        write("control/moresmtproutes.cdb", &[0; 2048]);
        assert_eq!(found(), [("authsenders", Read::Unknown), ("qmtproutes", Read::Unknown)]);
        for file in find(home.path()) {
            let said = file.message() + &file.help() + &format!("{file:?}");
            assert!(!said.contains("S3cretPass") && !said.contains("relay.example"), "{said}");
        }
    }
}
