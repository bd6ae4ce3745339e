//! `spawn_events.c` beside a driver that plays spawn.c: what it reports is what there is, also when epoll fails.

mod common;

use std::path::Path;
use std::process::Command;

use common::Fixture;
use qpatch::fixture::Dialect;

#[test]
fn what_is_reported_is_what_there_is() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let dir = tempfile::tempdir().unwrap();
    let program = dir.path().join("driver");
    let compiled = Command::new(std::env::var("CC").unwrap_or_else(|_| "cc".into()))
        .args(["-std=gnu89", "-O1", "-Wall", "-Wextra", "-Werror", "-g"])
        .args(["-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-I"])
        .args([root.join("tests/c"), root.join("tests/c/events_driver.c")])
        .arg("-I")
        .arg(root.join("patches/spawn-events"))
        .arg("-o")
        .arg(&program)
        .output()
        .unwrap();
    assert!(compiled.status.success(), "{}", String::from_utf8_lossy(&compiled.stderr));
    let run = |seed: u32, fails: i32| {
        let run = Command::new(&program)
            .args([seed.to_string(), "20000".to_owned(), fails.to_string()])
            .output()
            .unwrap();
        let error = String::from_utf8_lossy(&run.stderr);
        assert!(run.status.success(), "seed {seed}, call {fails} fails: {error}");
        String::from_utf8(run.stdout).unwrap()
    };
    // The driver waits half of its time.
    std::thread::scope(|scope| {
        for seed in 1..=5 {
            let run = &run;
            scope.spawn(move || {
                let calls = run(seed, -1);
                assert!(calls.starts_with("epoll, "), "{calls}");
                // At the first calls, and now and then, epoll is given up; nothing is lost on the way.
                for fails in (0..8).chain((100..6000).step_by(977)) {
                    assert_eq!(run(seed, fails), format!("select, {} calls\n", fails + 1));
                }
            });
        }
    });
}

/// `events_select()` looks at no set but the first. A loop with another one would take it for the answer.
#[test]
fn a_main_loop_that_waits_for_more_goes_without() {
    let fixture = Fixture::new(Dialect::StockKr);
    let call = "select(nfds,&rfds,(fd_set *) 0,(fd_set *) 0,(struct timeval *) 0)";
    let writes = "select(nfds,&rfds,&wfds,(fd_set *) 0,(struct timeval *) 0)";
    fixture.replace("spawn.c", call, writes);
    let run = fixture.qpatch(&["apply", "--no-gate"]).ok();
    assert!(run.err.contains("spawn-events does not fit this tree and is left out"), "{}", run.err);
    let text = fixture.read("spawn.c");
    assert!(text.contains(writes) && !text.contains("events_"), "{text}");

    for none in ["NULL", "0"] {
        let fixture = Fixture::new(Dialect::StockKr);
        fixture.replace("spawn.c", call, &format!("select(nfds,&rfds,{none},{none},{none})"));
        fixture.qpatch(&["apply", "--only", "spawn-events"]).ok();
        let text = fixture.read("spawn.c");
        assert!(
            text.contains(&format!("events_select(nfds,&rfds,{none},{none},{none})")),
            "{text}"
        );
    }
}
