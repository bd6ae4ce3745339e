//! `qpatch gate check`: files that are not regular, huge, or closed to the gate.

use std::fs::{self, File, Permissions};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::process::Command;

use qpatch_test_support::{is_root, skip};

use super::Home;
use crate::common::Run;

#[test]
fn control_files_that_are_not_regular_files() {
    let home = Home::new();
    let file = home.path("control/concurrencydomains");
    let says = |run: Run, what: &str, help: &str| {
        let expected = format!(
            "./control/concurrencydomains: error: {what}\n  {help}\n\
             ./control/concurrencydomains: 1 error; the gate goes on with the last file that had no errors, or, where there was none, \
             with the good lines and a limit of 20 for all other domains\n"
        );
        assert_eq!((run.code, run.out, run.err), (1, expected, String::new()));
    };
    let refused = |what: &str, help: &str| {
        // A process that opens a FIFO for reading waits for a writer.
        says(home.gate_in_shell("exec timeout 60", &["check", "."]), what, help);
        assert_eq!(home.gate(&["check", "control/concurrencydomains"]).code, 1);
    };
    fs::create_dir(&file).unwrap();
    let run = home.gate(&["check", "."]);
    assert_eq!(run.code, 1);
    assert!(run.out.contains("concurrencydomains: error: not a regular file\n"), "{}", run.out);
    fs::remove_dir(&file).unwrap();

    assert!(Command::new("mkfifo").arg(&file).status().unwrap().success());
    refused("not a regular file", "put a regular file there");
    fs::remove_file(&file).unwrap();

    symlink("/dev/zero", &file).unwrap();
    refused("not a regular file", "put a regular file there");
    fs::remove_file(&file).unwrap();

    File::create(&file).unwrap().set_len(100 << 20).unwrap();
    refused(
        "104857600 bytes are too many, 67108864 is the most",
        "is it the right file? A million domains need about 25 MB",
    );
    fs::remove_file(&file).unwrap();

    fs::write(&file, ":20\n").unwrap();
    fs::set_permissions(&file, Permissions::from_mode(0o0)).unwrap();
    let run = home.gate_as_user(&["check", "."]);
    let what = "cannot be read: Permission denied (os error 13)";
    says(run, what, "run qpatch as root, or let it be read");
}

#[test]
fn the_problems_of_a_binary_file_are_cut_off() {
    let home = Home::new();
    let noise: Vec<u8> =
        (0..2_000_000u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    fs::write(home.path("noise"), noise).unwrap();
    let run = home.gate(&["check", "noise"]);
    assert_eq!(run.code, 1);
    let lines: Vec<&str> = run.out.lines().collect();
    assert!((1000..1100).contains(&lines.len()), "{}", lines.len());
    assert!(lines.iter().any(|line| line.ends_with("more problems")), "{}", lines[0]);
    let printable = |char: char| char == '\n' || (' '..='~').contains(&char);
    assert!(run.out.chars().all(printable), "nothing talks to the terminal");
}

#[test]
fn a_hundred_thousand_lines_are_checked_quickly() {
    let home = Home::new();
    let lines = (0..100_000).map(|i| format!("d{i}.example:{}\n", i % 50 + 1)).collect::<String>();
    home.control("concurrencydomains", &lines);
    home.control("smtproutes", ":smart.example\n");
    // The limit is on processor time, so other load does not count. It takes a few seconds; a quadratic search would
    // take hours.
    let run = home.gate_in_shell("ulimit -t 60; exec", &["check", "."]).ok();
    // Two sorts of warnings for most lines; a thousand of each are listed.
    assert!(
        run.out.contains(" (and 59000 more lines like this)\n"),
        "{}",
        run.out.lines().last().unwrap()
    );
    assert!(run.out.contains(" (and 99000 more lines like this)\n"));
}

#[test]
fn check_finds_files_that_the_gate_cannot_read_or_write() {
    let home = Home::new();
    home.control("concurrencydomains", ":20\n");
    home.control("concurrencyremote", "100\n");
    fs::write(home.path("queue/lock/tcpto"), "").unwrap();
    assert!(home.gate(&["check", "."]).ok().out.contains(": no problems; 1 line, default 20, "));
    if !is_root() {
        skip("only root gives files away");
        return;
    }
    let chown = |owner: &str, name: &str| {
        let status = Command::new("chown").arg(owner).arg(home.path(name)).status().unwrap();
        assert!(status.success());
    };
    chown("12345:12345", "queue/lock/tcpto");
    fs::set_permissions(home.path("control/concurrencydomains"), Permissions::from_mode(0o600))
        .unwrap();
    for kept in ["domains", "routes", "replies"] {
        chown("12345", &format!("queue/lock/gatekept.{kept}"));
    }
    fs::remove_file(home.path("queue/lock/gatekept.routes")).unwrap();
    let run = home.gate(&["check", "."]);
    let not_writable = |file: &str| {
        format!(
            "./queue/lock/{file}: warning: the gate cannot write it: it belongs to user 0, and qmail-rspawn runs as user \
             12345\n  chown 12345 ./queue/lock/{file}\n"
        )
    };
    assert_eq!(
        (run.code, run.out),
        (
            1,
            format!(
                "./control/concurrencydomains: error: the gate cannot read it: its mode is 0600, and qmail-rspawn runs as \
                 qmailr\n  chmod 644 ./control/concurrencydomains\n\
                 ./queue/lock/gatekept.routes: warning: no such file: no copy of the control file is kept, so after a \
                 restart a mistake in it takes effect at once\n  make setup check in the patched tree, while qmail is stopped\n\
                 {}{}./control/concurrencydomains: 1 error, 3 warnings; the gate goes on with the last file that had no \
                 errors, or, where there was none, with the good lines and a limit of 20 for all other domains\n",
                not_writable("gatestatus"),
                not_writable("gatekept.sites")
            )
        )
    );
    fs::write(home.path("queue/lock/gatekept.routes"), "").unwrap();
    for kept in ["routes", "sites"] {
        chown("12345", &format!("queue/lock/gatekept.{kept}"));
    }
    let run = home.gate(&["show", "."]);
    assert_eq!(
        (run.code, run.err.as_str()),
        (
            1,
            "qpatch: ./queue/lock/gatestatus: empty: no gate has written it yet\n  \
             it belongs to user 0, and qmail-rspawn runs as user 12345: chown 12345 ./queue/lock/gatestatus\n"
        )
    );
    chown("0:12345", "control/concurrencydomains");
    chown("12345", "queue/lock/gatestatus");
    fs::set_permissions(home.path("control/concurrencydomains"), Permissions::from_mode(0o640))
        .unwrap();
    assert!(home.gate(&["check", "."]).ok().out.contains(": no problems; "), "the group can");

    // A tree with supplemental channels: each qmail-rspawn has a file of its own, and one they share.
    fs::write(home.path("queue/lock/gatestatus.1"), "").unwrap();
    assert_eq!(
        home.gate(&["check", "."]).ok().out,
        "./queue/lock/gateshared: warning: no such file: each limit holds per qmail-rspawn, not for all of them \
         together\n  make setup check in the patched tree, while qmail is stopped\n\
         ./queue/lock/gatestatus.1: warning: the gate cannot write it: it belongs to user 0, and qmail-rspawn runs as \
         user 12345\n  chown 12345 ./queue/lock/gatestatus.1\n\
         ./control/concurrencydomains: 2 warnings; 1 line, default 20, concurrencyremote 100\n"
    );
    fs::write(home.path("queue/lock/gateshared"), "").unwrap();
    chown("12345", "queue/lock/gatestatus.1");
    chown("12345", "queue/lock/gateshared");
    assert!(home.gate(&["check", "."]).ok().out.contains(": no problems; "));
}

#[test]
fn check_prints_each_problem_of_the_running_gate_once() {
    let home = Home::new();
    home.control("concurrencyremote", "100\n");
    home.control("concurrencydomains", ":2O\n");
    let _host = home.host(10);
    let run = home.gate(&["check", "."]);
    assert_eq!(run.code, 1);
    assert_eq!(run.out.matches("the limit is not a number").count(), 1, "{}", run.out);
    home.control("concurrencydomains", ":20\n");
    let run = home.gate(&["check", "."]).ok();
    assert!(
        run.out.starts_with(
            "./queue/lock/gatestatus: warning: the gate says: control/concurrencydomains:1:3: the limit is not a \
             number (empty means unlimited)\n  if it has been corrected, the gate sees it with its next delivery\n"
        ),
        "{}",
        run.out
    );
}
