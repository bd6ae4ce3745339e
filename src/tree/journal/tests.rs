//! Tests of the journal: it is killed at every step.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::UNIX_EPOCH;

use super::files::interrupt::STEPS;
use super::*;

/// Runs `work`, killed before step number `steps`. Returns whether it reached its end.
fn killed_at(steps: usize, work: impl FnOnce()) -> bool {
    STEPS.with(|s| s.set(steps));
    let done = catch_unwind(AssertUnwindSafe(work)).is_ok();
    STEPS.with(|s| s.set(usize::MAX));
    done
}

struct Fixture {
    dir: tempfile::TempDir,
}

type Snapshot = BTreeMap<String, (Vec<u8>, u32, i64, i64)>;

impl Fixture {
    fn new() -> Fixture {
        let dir = tempfile::tempdir().unwrap();
        for name in ["Makefile", "spawn.c", "qmail-send.c", "qmail-rspawn.c", "conf-spawn"] {
            let path = dir.path().join(name);
            fs::write(&path, format!("old {name}\n")).unwrap();
            fs::set_permissions(&path, Permissions::from_mode(0o640)).unwrap();
            let time = UNIX_EPOCH + Duration::new(900_000_000, 123_456_789);
            File::open(&path).unwrap().set_modified(time).unwrap();
        }
        Fixture { dir }
    }

    fn tree(&self) -> Tree {
        Tree::open(self.dir.path()).unwrap()
    }

    fn snapshot(&self) -> Snapshot {
        fs::read_dir(self.dir.path())
            .unwrap()
            .map(|e| e.unwrap().path())
            .filter(|p| p.is_file())
            .map(|p| {
                let meta = fs::metadata(&p).unwrap();
                let name = p.file_name().unwrap().to_str().unwrap().to_string();
                let mode = meta.permissions().mode();
                (name, (fs::read(&p).unwrap(), mode, meta.mtime(), meta.mtime_nsec()))
            })
            .collect()
    }

    fn text(&self, name: &str) -> String {
        fs::read_to_string(self.dir.path().join(name)).unwrap()
    }
}

fn changes(from: &str, to: &str) -> Vec<FileChange> {
    let mut changes: Vec<_> = ["Makefile", "spawn.c", "qmail-send.c"]
        .iter()
        .map(|name| FileChange {
            name: (*name).to_string(),
            old: Some(format!("{from} {name}\n").into_bytes()),
            new: format!("{to} {name}\n").into_bytes(),
        })
        .collect();
    let old = (from != "old").then(|| format!("{from} made.c\n").into_bytes());
    let new = format!("{to} made.c\n").into_bytes();
    changes.push(FileChange { name: "made.c".to_string(), old, new });
    changes
}

#[test]
fn apply_and_revert_give_back_bytes_modes_and_times() {
    let fixture = Fixture::new();
    let before = fixture.snapshot();
    let tree = fixture.tree();
    LockedTree::lock(&tree).unwrap().apply(&changes("old", "new")).unwrap();
    assert_eq!(fixture.text("spawn.c"), "new spawn.c\n");
    let mode = fs::metadata(fixture.dir.path().join("spawn.c")).unwrap().permissions().mode();
    assert_eq!(mode & 0o7777, 0o640);
    LockedTree::lock(&tree).unwrap().apply(&changes("new", "newer")).unwrap();
    assert_eq!(fixture.text("made.c"), "newer made.c\n");
    assert_eq!(
        LockedTree::lock(&tree).unwrap().revert(LaterChanges::Keep).unwrap(),
        Reverted { put_back: 3, removed: 1 }
    );
    assert_eq!(fixture.snapshot(), before);
    assert!(!fixture.dir.path().join(STATE_DIR).exists());
}

/// Kills an apply at every step, then completes it with `finish`.
fn every_interruption(
    second: bool,
    work: impl Fn(&LockedTree<'_>),
    finish: impl Fn(&Fixture, &Snapshot),
) {
    for steps in 0.. {
        assert!(steps < 1000, "no end of steps");
        let fixture = Fixture::new();
        let before = fixture.snapshot();
        let tree = fixture.tree();
        if second {
            LockedTree::lock(&tree).unwrap().apply(&changes("old", "mid")).unwrap();
            fs::write(fixture.dir.path().join("made.o"), "built").unwrap();
        }
        let done = killed_at(steps, || work(&LockedTree::lock(&tree).unwrap()));
        finish(&fixture, &before);
        if done {
            assert!(steps > 8, "the steps are not counted: {steps}");
            return;
        }
    }
}

fn complete_apply(fixture: &Fixture, from: &[&str]) {
    let tree_to_lock = fixture.tree();
    let locked = LockedTree::lock(&tree_to_lock).unwrap();
    locked.recover().unwrap();
    let now = fixture.text("spawn.c");
    let now = now.split(' ').next().unwrap();
    if now != "new" {
        assert!(from.contains(&now), "spawn.c is {now}");
        locked.apply(&changes(now, "new")).unwrap();
    }
    for name in ["Makefile", "spawn.c", "qmail-send.c", "made.c"] {
        assert_eq!(fixture.text(name), format!("new {name}\n"));
    }
    assert_eq!(fixture.text("conf-spawn"), "old conf-spawn\n");
}

fn complete_revert(fixture: &Fixture, before: &Snapshot) {
    let tree = fixture.tree();
    // If nothing was committed, or the revert was complete, there is nothing to revert.
    let _ = LockedTree::lock(&tree).unwrap().revert(LaterChanges::Keep);
    assert_eq!(fixture.snapshot(), *before);
    assert!(!fixture.dir.path().join(STATE_DIR).exists());
}

#[test]
fn an_apply_killed_anywhere_is_completed_by_apply() {
    let apply = |locked: &LockedTree<'_>| locked.apply(&changes("old", "new")).unwrap();
    every_interruption(false, apply, |fixture, _| complete_apply(fixture, &["old"]));
}

#[test]
fn an_apply_killed_anywhere_is_taken_back_by_revert() {
    let apply = |locked: &LockedTree<'_>| locked.apply(&changes("old", "new")).unwrap();
    every_interruption(false, apply, complete_revert);
}

#[test]
fn a_second_apply_killed_anywhere_is_completed_or_taken_back() {
    let apply = |locked: &LockedTree<'_>| locked.apply(&changes("mid", "new")).unwrap();
    every_interruption(true, apply, |fixture, _| complete_apply(fixture, &["mid"]));
    every_interruption(true, apply, complete_revert);
}

#[test]
fn a_revert_killed_anywhere_is_completed_by_either() {
    let revert = |locked: &LockedTree<'_>| {
        locked.revert(LaterChanges::Keep).unwrap();
    };
    every_interruption(true, revert, complete_revert);
    every_interruption(true, revert, |fixture, _| complete_apply(fixture, &["old", "mid"]));
    every_interruption(true, revert, |fixture, before| {
        let tree = fixture.tree();
        if LockedTree::lock(&tree).unwrap().recover().unwrap() == Recovered::Reverted {
            assert_eq!(fixture.snapshot(), *before);
        }
    });
}

#[test]
fn objects_built_from_patched_sources_are_built_again_after_a_revert() {
    let fixture = Fixture::new();
    let tree = fixture.tree();
    LockedTree::lock(&tree).unwrap().apply(&changes("old", "new")).unwrap();
    let object = fixture.dir.path().join("spawn.o");
    fs::write(&object, "object").unwrap();
    LockedTree::lock(&tree).unwrap().revert(LaterChanges::Keep).unwrap();
    let time =
        |name: &str| fs::metadata(fixture.dir.path().join(name)).unwrap().modified().unwrap();
    assert_eq!(fixture.text("spawn.c"), "old spawn.c\n");
    assert!(time("spawn.c") >= time("spawn.o"));
}

#[test]
fn a_file_that_changes_after_it_was_read_is_kept() {
    let fixture = Fixture::new();
    let tree = fixture.tree();
    let plan = changes("old", "new");
    fs::write(fixture.dir.path().join("qmail-send.c"), "by hand\n").unwrap();
    let before = fixture.snapshot();
    let error = LockedTree::lock(&tree).unwrap().apply(&plan).unwrap_err();
    assert!(error.to_string().contains("qmail-send.c: changed by someone else"), "{error}");
    assert_eq!(fixture.snapshot(), before);
    assert!(!fixture.dir.path().join(STATE_DIR).exists());
}

#[test]
fn a_change_after_the_apply_is_not_thrown_away() {
    let fixture = Fixture::new();
    let before = fixture.snapshot();
    let tree = fixture.tree();
    LockedTree::lock(&tree).unwrap().apply(&changes("old", "new")).unwrap();
    fs::write(fixture.dir.path().join("spawn.c"), "by hand\n").unwrap();
    let locked = LockedTree::lock(&tree).unwrap();
    let error = locked.revert(LaterChanges::Keep).unwrap_err();
    assert!(error.to_string().contains("changed after qpatch applied its patches: spawn.c"));
    assert_eq!(fixture.text("spawn.c"), "by hand\n");
    assert_eq!(fixture.text("made.c"), "new made.c\n");
    fs::write(fixture.dir.path().join("made.c"), "by hand\n").unwrap();
    locked.revert(LaterChanges::Discard).unwrap();
    assert!(!fixture.dir.path().join("made.c").exists());
    assert_eq!(fixture.snapshot().keys().collect::<Vec<_>>(), before.keys().collect::<Vec<_>>());
    assert_eq!(fixture.text("spawn.c"), "old spawn.c\n");
}

#[test]
fn a_change_between_two_applies_is_not_thrown_away() {
    let fixture = Fixture::new();
    let tree = fixture.tree();
    LockedTree::lock(&tree).unwrap().apply(&changes("old", "new")).unwrap();
    fs::write(fixture.dir.path().join("spawn.c"), "by hand\n").unwrap();
    let mut again = changes("new", "newer");
    again[1].old = Some(b"by hand\n".to_vec());
    LockedTree::lock(&tree).unwrap().apply(&again).unwrap();
    let error = LockedTree::lock(&tree).unwrap().revert(LaterChanges::Keep).unwrap_err();
    assert!(error.to_string().contains("patches: spawn.c"), "{error}");
    LockedTree::lock(&tree).unwrap().revert(LaterChanges::Discard).unwrap();
}

#[test]
fn a_lost_original_stops_a_revert_before_it_begins() {
    let fixture = Fixture::new();
    let tree = fixture.tree();
    LockedTree::lock(&tree).unwrap().apply(&changes("old", "new")).unwrap();
    let before = fixture.snapshot();
    fs::remove_file(fixture.dir.path().join(STATE_DIR).join("orig/qmail-send.c")).unwrap();
    let error = LockedTree::lock(&tree).unwrap().revert(LaterChanges::Keep).unwrap_err();
    assert!(error.to_string().contains("the kept original is missing"), "{error}");
    assert_eq!(fixture.snapshot(), before);
}

#[test]
fn a_link_put_in_after_the_apply_is_not_followed_out_of_the_tree() {
    let fixture = Fixture::new();
    let tree = fixture.tree();
    LockedTree::lock(&tree).unwrap().apply(&changes("old", "new")).unwrap();
    let outside = tempfile::tempdir().unwrap();
    let target = outside.path().join("spawn.c");
    fs::write(&target, "new spawn.c\n").unwrap();
    let path = fixture.dir.path().join("spawn.c");
    fs::remove_file(&path).unwrap();
    std::os::unix::fs::symlink(&target, &path).unwrap();
    let error = LockedTree::lock(&tree).unwrap().revert(LaterChanges::Keep).unwrap_err();
    assert!(error.to_string().contains("leads out of the tree"), "{error}");
    assert_eq!(fs::read_to_string(target).unwrap(), "new spawn.c\n");
}

#[test]
fn a_journal_that_names_a_file_outside_is_refused() {
    let fixture = Fixture::new();
    let tree = fixture.tree();
    LockedTree::lock(&tree).unwrap().apply(&changes("old", "new")).unwrap();
    let path = fixture.dir.path().join(STATE_DIR).join("journal.json");
    let text = fs::read_to_string(&path).unwrap().replace("\"spawn.c\"", "\"../spawn.c\"");
    fs::write(&path, text).unwrap();
    let error = LockedTree::lock(&tree).unwrap().revert(LaterChanges::Discard).unwrap_err();
    assert!(error.to_string().contains("it names \"../spawn.c\""), "{error}");
}

#[test]
fn a_hostile_state_folder_is_refused_at_once() {
    for name in ["lock", "journal.json", "orig", "new"] {
        let fixture = Fixture::new();
        let state = fixture.dir.path().join(STATE_DIR);
        fs::create_dir(&state).unwrap();
        std::os::unix::fs::symlink("/dev/zero", state.join(name)).unwrap();
        let error = LockedTree::lock(&fixture.tree()).unwrap_err().to_string();
        assert!(error.contains(name) && error.contains("move it away"), "{error}");
    }
    let fixture = Fixture::new();
    let state = fixture.dir.path().join(STATE_DIR);
    fs::create_dir(&state).unwrap();
    let journal = r#"{"version":1,"state":"reverting","applied_at":0,"files":
        [{"name":"spawn.c","original":null,"before":null,"after":""}]}"#;
    fs::write(state.join("journal.json"), journal).unwrap();
    LockedTree::lock(&fixture.tree()).unwrap().recover().unwrap();
    assert_eq!(fixture.text("spawn.c"), "old spawn.c\n");
}

#[test]
fn one_process_at_a_time() {
    let fixture = Fixture::new();
    let tree = fixture.tree();
    let first = LockedTree::lock(&tree).unwrap();
    let error = LockedTree::lock(&tree).unwrap_err();
    assert!(error.to_string().contains("another qpatch is at work in this tree"));
    drop(first);
    LockedTree::lock(&tree).unwrap();
}
