//! What the patch log-lines does to qmail-send's log: the same bytes, and one write a line.

mod common;

use std::io::Read;
use std::os::fd::{FromRawFd, OwnedFd};
use std::path::Path;
use std::process::{Command, Stdio};

use common::Fixture;
use qpatch::fixture::Dialect;

/// What `tests/c/log_lines.c` writes to descriptor 0, one element for each write.
fn writes(fixture: &Fixture) -> Vec<String> {
    writes_of(fixture, &Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/c/log_lines.c"))
}

/// What the program `source`, linked with the tree's qsutil.o, writes to descriptor 0.
fn writes_of(fixture: &Fixture, source: &Path) -> Vec<String> {
    let tree = fixture.path();
    let made =
        Command::new("make").arg("qsutil.o").arg("base.a").current_dir(tree).output().unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let program = tree.join("log-lines-test");
    let compiled = Command::new("cc")
        .args(["-Wall", "-Werror", "-I"])
        .arg(tree)
        .arg("-o")
        .arg(&program)
        .arg(source)
        .args([tree.join("qsutil.o"), tree.join("base.a")])
        .output()
        .unwrap();
    assert!(compiled.status.success(), "{}", String::from_utf8_lossy(&compiled.stderr));

    // With O_DIRECT each read of a pipe gets what one write has put into it, up to PIPE_BUF bytes.
    let (mut reader, writer) = packet_pipe();
    let mut child = Command::new(&program).stdin(Stdio::from(writer)).spawn().unwrap();
    let mut all = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        match reader.read(&mut buffer).unwrap() {
            0 => break,
            len => all.push(String::from_utf8(buffer[..len].to_vec()).unwrap()),
        }
    }
    assert!(child.wait().unwrap().success());
    all
}

fn packet_pipe() -> (std::fs::File, OwnedFd) {
    let mut ends = [0; 2];
    // SAFETY: `ends` has room for the two descriptors, which nobody else owns.
    unsafe {
        assert_eq!(libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC | libc::O_DIRECT), 0);
        (std::fs::File::from_raw_fd(ends[0]), OwnedFd::from_raw_fd(ends[1]))
    }
}

#[test]
fn each_line_is_one_write_of_the_same_bytes() {
    for dialect in [Dialect::StockKr, Dialect::StockAnsi] {
        let fixture = Fixture::new(dialect);
        fixture.qpatch(&["apply", "--only", "toolchain"]).ok();
        let before = writes(&fixture);
        assert!(before.len() > 20, "{before:?}");
        assert_eq!(before[0], "status:");

        fixture.qpatch(&["apply", "--only", "log-lines"]).ok();
        let after = writes(&fixture);
        assert_eq!(after.concat(), before.concat());
        assert_eq!(after[0], "status: local 0/20 exitasap\n");
        assert_eq!(after[1], "delivery 7: success: two_lines/in_one\n");
        assert_eq!(after[2], "\n");
        // Only a line that is longer than the buffer, 1024 bytes, goes in pieces.
        assert_eq!(after[3], "longer than the buffer: ");
        assert_eq!(after[4].len(), 3000);
        assert_eq!(after[5], "\n");
        assert_eq!(after[6].len(), 1023);
        let rest = ["two\n", "lines\n", "and the start of a third, which ends\n"];
        assert_eq!(after[7..], rest);
    }
}

/// The writes of a program of these statements, in a tree whose qsutil.c has this function `say` more.
fn writes_with(say: &str, declaration: &str, statements: &str) -> Vec<String> {
    let fixture = Fixture::new(Dialect::StockKr);
    fixture.qpatch(&["apply", "--only", "toolchain"]).ok();
    fixture.replace("qsutil.c", "void log1(s)", &format!("{say}\n\nvoid log1(s)"));
    let main = format!("int main(void) {{ {statements} return 0; }}");
    fixture.write("say.c", &format!("#include \"qsutil.h\"\n{declaration}\n{main}\n"));
    fixture.qpatch(&["apply", "--only", "log-lines"]).ok();
    writes_of(&fixture, &fixture.path().join("say.c"))
}

/// Only the log waits for the end of its line: what a tree writes to another buffer goes out at once, as before.
#[test]
fn another_buffer_is_flushed_at_once() {
    let writes = writes_with(
        "static char other[100];\n\
         static substdio ssother = SUBSTDIO_FDBUF(subwrite,0,other,sizeof other);\n\
         void say(const char *s) { substdio_putsflush(&ssother,s); }",
        "extern void say(const char *s);",
        "log1(\"a \"); say(\"one \"); say(\"two\"); log1(\"line\\n\");",
    );
    assert_eq!(writes, ["one ", "two", "a line\n"]);
}

/// What was one statement stays one.
#[test]
fn a_call_may_stand_between_if_and_else() {
    let writes = writes_with(
        "void say(yes) int yes;\n{\n if (yes) substdio_putsflush(&sslog,\"yes\\n\");\n\
         \x20else substdio_putflush(&sslog,\"no\\n\",3);\n}",
        "extern void say(int yes);",
        "say(1); say(0); log1(\"line\\n\");",
    );
    assert_eq!(writes, ["yes\n", "no\n", "line\n"]);
}

/// The functions are called `buffer_...` in some trees; some write their log in lines already.
#[test]
fn other_trees_are_understood_or_left_alone() {
    let fixture = Fixture::new(Dialect::StockKr);
    fixture.write(
        "qsutil.c",
        "#include \"buffer.h\"\nstatic char b[1];\nstatic struct buffer out = BUFFER_INIT(write,0,b,1);\n\
         void qslog(char *m) { buffer_putsflush(&out,m); }\n",
    );
    fixture.qpatch(&["apply", "--only", "log-lines"]).ok();
    let text = fixture.read("qsutil.c");
    assert!(text.contains("{ buffer_puts(&out,m), log_endline(&out); }"), "{text}");
    assert!(text.contains("static void log_endline(struct buffer *s)"), "{text}");
    assert!(
        text.contains("if ((s != &out) || (s->p && (s->x[s->p - 1] == '\\n'))) buffer_flush(s);"),
        "{text}"
    );

    let fixture = Fixture::new(Dialect::TwoByte);
    let before = fixture.snapshot();
    let run = fixture.qpatch(&["apply", "--only", "log-lines"]).ok();
    assert!(run.out.contains("nothing to change"), "{}", run.out);
    assert_eq!(fixture.snapshot(), before);

    // A buffer that the rule does not know: the patch is left out, and all others go in.
    let fixture = Fixture::new(Dialect::StockKr);
    fixture.replace("qsutil.c", "static char atonce[1];", "extern char atonce[];");
    let run = fixture.qpatch(&["apply", "--no-gate"]).ok();
    // Such a tree may write whole lines already, as IndiMail does: the warning does not say that it writes pieces.
    let warning =
        "qmail-send writes its log as before: log-lines does not fit this tree and is left out";
    assert!(run.err.contains(warning), "{}", run.err);
    assert!(fixture.read("qsutil.c").contains("substdio_putsflush(&sslog,s);"));
    assert!(fixture.read("qsutil.c").contains("extern char atonce[];"));
}
