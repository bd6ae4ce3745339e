//! `free_slots.c` beside a driver that plays qmail-send: what is found is free, and found wherever it is.

mod common;

use std::process::Command;

#[test]
fn what_is_found_is_free_and_what_is_free_is_found() {
    let dir = tempfile::tempdir().unwrap();
    let program = common::sanitized_driver(&dir, "free_driver", "free-slots");
    // How many numbers a loop looks at.
    let looks = |seed: u32, fails: i32, forgets: u32| {
        let args = [seed.to_string(), "200000".into(), fails.to_string(), forgets.to_string()];
        let run = Command::new(&program).args(&args).output().unwrap();
        let error = String::from_utf8_lossy(&run.stderr);
        assert!(run.status.success(), "{args:?}: {error}");
        let out = String::from_utf8(run.stdout).unwrap();
        let (looks, finds) = out.trim().split_once(' ').unwrap();
        looks.parse::<f64>().unwrap() / finds.parse::<f64>().unwrap()
    };
    for seed in 1..=8 {
        let most = looks(seed, -1, 0);
        assert!(most < 1.5, "{most} numbers for one that is free");
        for fails in [0, 1, 3] {
            looks(seed, fails, 0);
            looks(seed, fails, 3);
        }
        looks(seed, -1, 1);
        looks(seed, -1, 10);
    }
}
