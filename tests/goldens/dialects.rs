//! What the patches make of each fixture dialect, and of forks: `dialects/NAME.diff` without the gate, and
//! `dialects/NAME.gate.diff` with what the gate adds.

use std::path::Path;

use qpatch::fixture::Dialect;
use qpatch_test_support::golden;

use crate::common::Fixture;

/// The trees, by the names of their goldens.
pub(crate) const NAMES: [&str; 4] = ["stock-kr", "stock-ansi", "two-byte", "fork"];

/// Compares a dialect's diffs with those in `dir`.
pub(crate) fn check(dir: &Path, name: &str) -> Result<(), String> {
    let dialect = Dialect::ALL.into_iter().find(|dialect| dialect.name() == name);
    let fixture = dialect.map_or_else(fork, Fixture::new);
    if dialect.is_some() {
        let diff = fixture.qpatch(&["diff", "--spawn", "1000", "--no-gate"]).ok().out;
        golden(&dir.join(format!("{name}.diff")), diff.as_bytes())?;
    }
    fixture.qpatch(&["apply", "--spawn", "1000", "--no-gate"]).ok();
    let gate = fixture.qpatch(&["diff", "--only", "domain-gate"]).ok();
    assert!(gate.err.contains("gate.a is no text and not in the diff"), "{}", gate.err);
    golden(&dir.join(format!("{name}.gate.diff")), hooks(&gate.out).as_bytes())?;
    if dialect.is_none() {
        fixture.qpatch(&["apply", "--gate"]).ok();
        let proof = fixture.qpatch(&["verify", "--only", "gate", "--spawn", "40"]).ok().out;
        assert!(proof.contains("\nok    gate "), "{proof}");
    }
    Ok(())
}

/// A diff without the files that it makes: those stand under c-shim/.
fn hooks(diff: &str) -> String {
    let mut keep = true;
    let mut out = String::new();
    for line in diff.lines() {
        if line.starts_with("--- ") {
            keep = line != "--- /dev/null";
        }
        if keep {
            out.push_str(line);
            out.push('\n');
        }
    }
    out
}

/// Forks that write the gate's places another way, each in one tree: the shapes of IndiMail, eQmail, aQmail and
/// notqmail's send-jobs.
fn fork() -> Fixture {
    let fixture = Fixture::new(Dialect::StockAnsi);
    // The end of a delivery has a report function with a name of its own.
    for name in ["spawn.c", "spawn.h", "qmail-lspawn.c", "qmail-rspawn.c"] {
        if fixture.path().join(name).exists() && fixture.read(name).contains(" report(") {
            fixture.replace(name, " report(", " tell_outcome(");
        }
        if fixture.read(name).contains("\treport(") {
            fixture.replace(name, "\treport(", "\ttell_outcome(");
        }
    }
    // A queue may be sorted either way, so an insertion says how.
    fixture.replace(
        "prioq.h",
        "extern int prioq_insert(",
        "enum order { EARLY_FIRST, LATE_FIRST };\nextern int prioq_insert(enum order, ",
    );
    fixture.replace("prioq.c", "int prioq_insert(", "int prioq_insert(enum order order, ");
    fixture.replace(
        "prioq.c",
        "  if (!room(pq)) return 0;",
        "  if (order != EARLY_FIRST || !room(pq)) return 0;",
    );
    fixture.replace("qmail-send.c", "prioq_insert(", "prioq_insert(EARLY_FIRST,");
    // A report for no delivery is logged in other words, by a macro, and in braces.
    fixture.replace(
        "qmail-send.c",
        "log1(\"warning: internal error: delivery report out of range\\n\");",
        "{\n\t\t\t\tlog1(WARNING(\"a report for a slot that runs nothing\\n\"));\n\t\t\t}",
    );
    fixture.replace(
        "qmail-send.c",
        "prioq pqchan",
        "#define WARNING(text) \"warning: \" text\n\nprioq pqchan",
    );
    // The job is in a variable.
    fixture.replace("qmail-send.c", "jo[pass[c].j].retry = nextretry", "jo[j].retry = nextretry");
    // Comments between the prerequisites and the recipe, which make allows.
    fixture.replace(
        "Makefile",
        "\t./load qmail-send ",
        "# with qmail-send's own objects \\\n# and the archives\n\n\t./load qmail-send ",
    );
    fixture
}
