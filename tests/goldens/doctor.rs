//! What doctor says of whole machines: each file of `doctor_cases` is a machine, as a list of files, and after
//! `== doctor` what doctor says of it.

use std::fs;
use std::path::Path;

use qpatch::doctor::host::Host;
use qpatch::doctor::{Options, examine_host};
use qpatch_test_support::golden;

/// What the cases are about; the rest of a report has tests of its own.
const NAMES: [&str; 4] = ["start scripts", "unit settings", "processes, unit", "memory"];

/// Every machine has these.
const BASE: [(&str, &str); 8] = [
    ("proc/meminfo", "MemTotal: 8000000 kB\nMemAvailable: 4000000 kB\n"),
    ("proc/sys/kernel/pid_max", "4194304\n"),
    ("proc/sys/kernel/threads-max", "62000\n"),
    ("proc/sys/fs/nr_open", "1048576\n"),
    ("var/qmail/control/concurrencyremote", "1000\n"),
    ("var/qmail/bin/qmail-start", "\x7fELF\0"),
    ("usr/bin/dash", "\x7fELF\0"),
    ("bin/busybox", "\x7fELF\0"),
];

/// Writes a machine. A line `-- PATH` begins a file, `-- PATH -> TARGET` is a link, `-- PATH/` a folder.
fn machine(text: &str, root: &Path) {
    let write = |path: &str, text: &str| {
        let path = root.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    };
    let link = |path: &str, target: &str| {
        let path = root.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::os::unix::fs::symlink(target, path).unwrap();
    };
    for (path, text) in BASE {
        write(path, text);
    }
    if !text.contains("\n-- bin/sh ") {
        link("bin/sh", "/usr/bin/dash");
    }
    for file in text.split("\n-- ").skip(1) {
        let (head, body) = file.split_once('\n').unwrap_or((file, ""));
        let body = if body.is_empty() { String::new() } else { format!("{body}\n") };
        match head.split_once(" -> ") {
            Some((path, target)) => link(path, target),
            None => write(head, &body),
        }
    }
}

fn said(text: &str) -> String {
    let root = tempfile::tempdir().unwrap();
    machine(text, root.path());
    let run = |_: &Path, _: &[&str], _: &str| Err("nothing runs here".to_owned());
    let host = Host { root: root.path().to_path_buf(), run: &run };
    let report = examine_host(&host, &Options::default());
    let findings = report.findings.iter().filter(|finding| NAMES.contains(&finding.name));
    // Only what differs from case to case.
    let findings = findings.filter(|finding| {
        let usual = finding.detail.starts_with("3906 MiB free, 195 MiB needed")
            || finding.detail == "no systemd unit starts qmail"
            || finding.detail.starts_with("no qmail-send is running that can be seen")
            || finding.detail.starts_with("none of qmail.service stops mail")
            || finding.detail.starts_with(
                "qmail.service may have 9300, by systemd's own DefaultTasksMax of 15%",
            );
        !usual
    });
    findings.map(|finding| format!("{finding}\n")).collect()
}

pub(crate) fn check(case: &Path) -> Result<(), String> {
    let text = fs::read_to_string(case).map_err(|e| format!("{}: {e}", case.display()))?;
    let given = text.split_once("\n== doctor\n").map_or(text.as_str(), |(given, _)| given);
    golden(case, format!("{given}\n== doctor\n{}", said(given)).as_bytes())
}
