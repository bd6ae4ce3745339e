//! `qpatch gate init`: it writes once, and follows no link.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::process::{Command, Stdio};

use super::{Home, gate};
use crate::common::run;

#[test]
fn init_writes_a_file_without_problems_and_only_once() {
    for remote in [None, Some("20\n"), Some("100\n"), Some("1000\n")] {
        let home = Home::new();
        if let Some(remote) = remote {
            home.control("concurrencyremote", remote);
        }
        let run = home.gate(&["init", "."]).ok();
        assert_eq!(
            run.out,
            "./control/concurrencydomains written: at most 20 deliveries at once to a domain, fewer to some big \
             providers\na running gate uses it within a second; next: qpatch gate check .\n"
        );
        let run = home.gate(&["check", "."]).ok();
        let comcast = if remote.is_some_and(|text| text.len() > 3) { 299 } else { 298 };
        let expected = format!(
            "./control/concurrencydomains: no problems; {comcast} lines, 8 groups, default 20, "
        );
        assert!(run.out.starts_with(&expected), "{}", run.out);

        // The same servers answer for a provider's national domains.
        for (domain, group) in [
            ("hotmail.fr", "group outlook"),
            ("outlook.fr", "group outlook"),
            ("live.co.uk", "group outlook"),
            ("yahoo.fr", "group yahoo"),
            ("hotmail.co.jp", "group outlook"),
            ("hotmail.gr", "group outlook"),
            ("hotmail.nl", "group outlook"),
            ("live.com.au", "group outlook"),
            ("msn.cn", "group outlook"),
            ("outlook.mx", "group outlook"),
            ("yahoo.com.br", "group yahoo"),
            ("yahoo.co.id", "group yahoo"),
            ("aol.de", "group yahoo"),
            ("gmx.fr", "group gmx"),
            ("yahoo.co.jp", "yahoo.co.jp"),
            ("other.fr", "other.fr"),
        ] {
            let run = home.gate(&["check", ".", "--domain", domain]).ok();
            let row = run.out.lines().last().unwrap();
            assert!(
                row.starts_with(&format!("{domain}  ")) && row.contains(&format!("  {group} ")),
                "{}",
                run.out
            );
        }

        let file = home.path("control/concurrencydomains");
        let before = fs::read(&file).unwrap();
        assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o7777, 0o644);
        let run = home.gate(&["init", "."]);
        assert_eq!(
            (run.code, run.out.as_str(), run.err.as_str()),
            (
                1,
                "",
                "qpatch: ./control/concurrencydomains: exists already, and was not touched\n  \
                 edit it and run qpatch gate check ., or move it away first\n"
            )
        );
        assert_eq!(fs::read(&file).unwrap(), before);
        let names: Vec<_> = fs::read_dir(home.path("control")).unwrap().collect();
        assert_eq!(names.len(), 1 + usize::from(remote.is_some()), "nothing is left over");
    }
}

#[test]
fn init_is_readable_whatever_the_umask() {
    let home = Home::new();
    let script = format!("umask 077; exec {} gate init .", env!("CARGO_BIN_EXE_qpatch"));
    run(Command::new("sh").args(["-c", &script]).current_dir(home.0.path())).ok();
    let mode = fs::metadata(home.path("control/concurrencydomains")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o644);
}

#[test]
fn init_follows_no_link_and_overwrites_nothing() {
    let home = Home::new();
    let file = home.path("control/concurrencydomains");
    symlink("../elsewhere", &file).unwrap();
    assert_eq!(home.gate(&["init", "."]).code, 1);
    assert!(!home.path("elsewhere").exists());
    fs::remove_file(&file).unwrap();
    fs::create_dir(&file).unwrap();
    assert_eq!(home.gate(&["init", "."]).code, 1);
    fs::remove_dir(&file).unwrap();

    // Of many runs at once, one writes the file.
    let children: Vec<_> = (0..8)
        .map(|_| {
            gate(home.0.path(), &["init", "."])
                .stderr(Stdio::null())
                .stdout(Stdio::null())
                .spawn()
                .unwrap()
        })
        .collect();
    let codes: Vec<_> =
        children.into_iter().map(|mut child| child.wait().unwrap().code()).collect();
    assert_eq!(codes.iter().filter(|&&code| code == Some(0)).count(), 1, "{codes:?}");
    home.gate(&["check", "."]).ok();

    fs::remove_file(&file).unwrap();
    fs::set_permissions(home.path("control"), Permissions::from_mode(0o555)).unwrap();
    let run = home.gate_as_user(&["init", "."]);
    fs::set_permissions(home.path("control"), Permissions::from_mode(0o755)).unwrap();
    assert_eq!(run.code, 1);
    assert!(run.err.starts_with("qpatch: ./control: cannot write into it: "), "{}", run.err);
}
