//! Trees with supplemental channels: a qmail-rspawn for each, and one limit over all of them.

#[path = "common/channels.rs"]
mod channels;
mod common;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use channels::with_channels;
use common::{Fixture, run};
use qpatch::verify::{self, Options, Part, ProofOutcome, Silent, Step, StepVerdict};
use qpatch_test_support::has;

fn applied(supplemental: u32) -> Fixture {
    let fixture = with_channels(supplemental);
    fixture.qpatch(&["apply", "--spawn", "1000", "--gate"]).ok();
    fixture
}

fn proof(fixture: &Fixture, only: &[Part]) -> ProofOutcome {
    let options =
        Options { spawn: Some(300), seed: Some(1), only: only.to_vec(), ..Options::default() };
    verify::run(fixture.path(), &options, &mut Silent).unwrap()
}

fn step<'o>(outcome: &'o ProofOutcome, name: &str) -> &'o Step {
    let all = outcome.steps.iter().map(|step| format!("{step}\n")).collect::<String>();
    outcome.steps.iter().find(|step| step.name == name).unwrap_or_else(|| panic!("{all}"))
}

fn holds(outcome: &ProofOutcome, name: &str, says: &str) {
    let step = step(outcome, name);
    assert_eq!(step.verdict, StepVerdict::Pass, "{step}");
    assert!(step.detail.contains(says), "{step}");
}

#[test]
fn mail_goes_over_every_channel_and_a_group_keeps_its_limit() {
    let fixture = applied(3);
    let outcome = proof(&fixture, &[Part::Numbers, Part::Mail, Part::Gate]);
    holds(&outcome, "qmail-send-numbers", "300 at once on each of 3 supplemental channels");
    holds(&outcome, "mail", "360 remote and 300 local deliveries at once");
    holds(&outcome, "mail", "20 at once on each of 3 supplemental channels");
    holds(
        &outcome,
        "gate",
        "a group with mail over all 4 remote channels: never more than 5 at once",
    );
}

#[test]
fn as_many_channels_as_the_patch_ships() {
    let outcome = proof(&applied(21), &[Part::Numbers, Part::Gate]);
    holds(&outcome, "qmail-send-numbers", "300 at once on each of 21 supplemental channels");
    holds(
        &outcome,
        "gate",
        "a group with mail over all 22 remote channels: never more than 5 at once",
    );
}

#[test]
fn a_tree_whose_spawners_cannot_count_together_is_found_out() {
    let fixture = applied(3);
    fixture.replace("hier.c", "queue/lock/gateshared", "queue/lock/gatealone");
    let outcome = proof(&fixture, &[Part::Gate]);
    let step = step(&outcome, "gate");
    assert_eq!(step.verdict, StepVerdict::Fail, "{step}");
    assert!(step.detail.contains("at the same time: expected 5, found "), "{step}");
}

#[test]
fn a_second_apply_changes_nothing() {
    let fixture = applied(3);
    let (hier, send) = (fixture.read("hier.c"), fixture.read("qmail-send.c"));
    let status = fixture.qpatch(&["status"]);
    assert!(status.out.contains("\ndomain-gate     applied"), "{}", status.out);
    fixture.qpatch(&["apply", "--gate"]).ok();
    assert_eq!((fixture.read("hier.c"), fixture.read("qmail-send.c")), (hier, send));
}

#[test]
fn the_files_of_each_spawner_are_installed() {
    if !has("make") || !has("cc") {
        return;
    }
    let fixture = applied(3);
    let home = tempfile::tempdir().unwrap();
    let script = "set -e; echo \"$1\" > conf-qmail; make auto-uid auto-gid; \
                  { for u in a d l o p q r s; do echo \"int auto_uid$u = `id -u`;\"; done; \
                  for g in q n; do echo \"int auto_gid$g = `id -g`;\"; done; } > auto_uids.c; make setup check";
    let mut command = Command::new("sh");
    command.args(["-c", script, "sh"]).arg(home.path()).current_dir(fixture.path());
    run(&mut command).ok();
    // Once more, while something is kept: it is there afterwards, and what else is wrong with it is put right.
    let kept = home.path().join("queue/lock/gatekept.domains");
    let seen = home.path().join("queue/lock/gatesites.2");
    for path in [&kept, &seen] {
        fs::write(path, "kept\n").unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(0o666)).unwrap();
    }
    let tcpto = home.path().join("queue/lock/tcpto");
    fs::write(&tcpto, "x").unwrap();
    run(Command::new("make").args(["setup", "check"]).current_dir(fixture.path())).ok();
    for path in [&kept, &seen] {
        assert_eq!(fs::read_to_string(path).unwrap(), "kept\n");
        assert_eq!(fs::metadata(path).unwrap().permissions().mode() & 0o777, 0o644);
    }
    assert_eq!(fs::read(&tcpto).unwrap(), [0; 1024], "of others nothing is kept");
    let mut names: Vec<String> = fs::read_dir(home.path().join("queue/lock"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.starts_with("gate"))
        .collect();
    names.sort();
    assert_eq!(
        names,
        [
            "gatekept.domains",
            "gatekept.rates",
            "gatekept.rates.1",
            "gatekept.rates.2",
            "gatekept.rates.3",
            "gatekept.replies",
            "gatekept.routes",
            "gatekept.senders",
            "gatekept.sites",
            "gatelease",
            "gateshared",
            "gatesites",
            "gatesites.1",
            "gatesites.2",
            "gatesites.3",
            "gatestatus",
            "gatestatus.1",
            "gatestatus.2",
            "gatestatus.3"
        ]
    );
    // And away again, like everything else.
    fixture.qpatch(&["revert"]).ok();
    assert!(!fixture.read("hier.c").contains("gate"));
}
