//! What the patches' headers do once they are compiled, with each compiler and C library that there is.
//!
//! select_set.h beside the system's own fd_set: the same random descriptors, told alike, also with sanitizers.
//! bind_noport.h: connections from one address to two destinations.

#[path = "common/mod.rs"]
mod common;

use std::path::Path;
use std::process::Command;

use common::Fixture;
use qpatch::fixture::Dialect;
use qpatch_test_support::{has, skip};

fn agrees(compiler: &str, flags: &[&str]) {
    if !has(compiler) {
        return;
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let dir = tempfile::tempdir().unwrap();
    let program = dir.path().join("select_set");
    let ran = |command: &mut Command| {
        let output = command.output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{compiler} {flags:?}: {}: {said}", output.status);
    };
    ran(Command::new(compiler)
        .args(flags)
        .args(["-g", "-Wall", "-Wextra", "-Werror", "-I"])
        .arg(root.join("patches/fd-setsize"))
        .arg(root.join("tests/c/select_set.c"))
        .arg("-o")
        .arg(&program));
    ran(&mut Command::new(&program));
}

#[test]
fn with_sanitizers() {
    agrees("gcc", &["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]);
}

#[test]
fn as_old_c_and_fortified() {
    agrees("gcc", &["-std=gnu89", "-O2", "-U_FORTIFY_SOURCE", "-D_FORTIFY_SOURCE=3"]);
}

#[test]
fn with_clang() {
    agrees("clang", &["-O2"]);
}

#[test]
fn with_musl() {
    agrees("musl-gcc", &["-O2"]);
}

/// With four ephemeral ports, one address of this host has four connections in all, and with the header four to each of
/// two destinations; with IPv4 and with IPv6.
#[test]
fn connections_from_one_address_share_no_ports_between_destinations() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let dir = tempfile::tempdir().unwrap();
    for (compiler, flags) in [
        ("gcc", &["-Wall", "-Wextra", "-Werror"][..]),
        ("gcc", &["-std=gnu89"]),
        ("musl-gcc", &[]),
        ("clang", &[]),
    ] {
        if !has(compiler) {
            continue;
        }
        let program = dir.path().join("bind_noport");
        let built = Command::new(compiler)
            .args(flags)
            .arg("-I")
            .arg(root.join("patches/outgoing-ports"))
            .arg(root.join("tests/c/bind_noport.c"))
            .arg("-o")
            .arg(&program)
            .output()
            .unwrap();
        assert!(built.status.success(), "{compiler}: {}", String::from_utf8_lossy(&built.stderr));
        let bytes = std::fs::read(&program).unwrap();
        assert!(
            bytes.windows(31).any(|found| found == b"qpatch: IP_BIND_ADDRESS_NO_PORT"),
            "{compiler}"
        );
        let ran = Command::new(&program).output().unwrap();
        if ran.status.code() == Some(77) {
            skip(format_args!("no network of its own: {}", String::from_utf8_lossy(&ran.stderr)));
            return;
        }
        let counts = String::from_utf8_lossy(&ran.stdout).into_owned();
        let expected = ["4 8 4 8", "4 8 none none"];
        assert!(expected.contains(&counts.trim_end()), "{compiler}: {counts:?}");
    }
}

/// The patch, on a tree that binds as public patches for outgoing addresses do: calls in several styles, IPv6 among
/// them.
#[test]
fn a_tree_that_binds_an_outgoing_address() {
    let fixture = Fixture::new(Dialect::StockKr);
    let tree = |fixture: &Fixture| {
        let connect = "  if (connect(s,";
        let binds = "  /* bind(s) */\n  if (-1 == bind(s,(struct sockaddr *) &to,sizeof(to))) return -1;\n\
                     #ifdef INET6\n  if ( bind ( s , &to , sizeof(to) ) ) return errno;\n#endif\n";
        fixture.replace("timeoutconn.c", connect, &format!("{binds}{connect}"));
        let before = fixture.snapshot();
        let run = fixture.qpatch(&["apply", "--only", "outgoing-ports"]).ok();
        assert!(
            run.out.starts_with("outgoing-ports  applied  3 made\n3 files changed"),
            "{}",
            run.out
        );
        let wanted =
            binds.replace("bind(s,(", "bind_noport(s,(").replace("bind ( s ,", "bind_noport ( s ,");
        let now = fixture.read("timeoutconn.c");
        assert!(now.contains(&wanted), "{now}");
        assert!(now.contains("#include \"timeoutconn.h\"\n#include \"bind_noport.h\"\n"), "{now}");
        before
    };
    let before = tree(&fixture);
    let status = fixture.qpatch(&["status"]).ok().out;
    assert!(status.contains("outgoing-ports  applied  2 there\n"), "{status}");
    let again = fixture.qpatch(&["apply", "--only", "outgoing-ports"]).ok().out;
    assert!(again.ends_with("nothing to change\n"), "{again}");
    let made =
        Command::new("make").arg("timeoutconn.o").current_dir(fixture.path()).output().unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    std::fs::remove_file(fixture.path().join("timeoutconn.o")).unwrap();
    fixture.qpatch(&["revert"]).ok();
    let is_there = |name: &str| fixture.path().join(name).exists();
    assert!(!is_there("bind_noport.h"));
    assert_eq!(
        common::bytes(&before).get(Path::new("timeoutconn.c")),
        Some(&fixture.read("timeoutconn.c").as_bytes())
    );
    // A tree that binds nothing has no need of it.
    let stock = Fixture::new(Dialect::StockKr);
    assert!(!stock.qpatch(&["status"]).ok().out.contains("outgoing-ports"));
    assert!(!stock.qpatch(&["apply"]).ok().out.contains("outgoing-ports"));
    assert!(!stock.path().join("bind_noport.h").exists());
}
