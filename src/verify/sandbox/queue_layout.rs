//! Reads the layout of a tree's queue: the folders that its installer makes, and its remote
//! channels.
#![forbid(unsafe_code)]

use std::collections::BTreeSet;
use std::fs;

use super::makefile::targets;
use super::private_tree::{Sandbox, Supplemental};
use super::process::{PATIENCE, run_captured};
use crate::engine::edit::{self, Edit};
use crate::engine::include::{Include, includes};
use crate::engine::lex::{Lang, Source};
use crate::verify::error::Error;

/// The directories that the tree's own installer makes below queue/. They are read from hier.c as
/// it is compiled; a tree without that file has those of stock qmail.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct QueueLayout {
    pub(super) flat: BTreeSet<String>,
    pub(super) split: BTreeSet<String>,
    /// The installer makes the file through which several qmail-rspawn count together.
    pub(super) has_shared: bool,
}

impl QueueLayout {
    pub(super) fn of_sandbox(sandbox: &Sandbox) -> Result<QueueLayout, Error> {
        let path = sandbox.tree().join("hier.c");
        let source = match fs::read(&path) {
            Ok(source) => source,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Vec::new(),
            Err(error) => return Err(Error::file("read", &path)(error)),
        };
        // Only compiled code counts. Leave out headers that are not built yet. If the compiler
        // still fails, use all of the source.
        let compiled = preprocessed(sandbox, &without_missing_headers(sandbox, &source));
        let text = String::from_utf8_lossy(&source);
        Ok(Self::of_hier(&compiled.map_or(text, |compiled| compiled.into())))
    }

    fn of_hier(source: &str) -> QueueLayout {
        let set =
            |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<BTreeSet<_>>();
        let mut layout = QueueLayout {
            flat: set(&["pid", "intd", "todo", "bounce"]),
            split: set(&["mess", "info", "local", "remote"]),
            has_shared: source.contains("\"queue/lock/gateshared\""),
        };
        let squeezed: String = source.chars().filter(|c| !c.is_whitespace()).collect();
        // Both functions may have the home as an argument, under any name:
        // dsplit("queue/todo",...), dsplit(auto_qmail,"queue/todo",...).
        for (call, names) in [("dsplit(", &mut layout.split), ("d(", &mut layout.flat)] {
            for (at, _) in squeezed.match_indices(call) {
                let before = squeezed[..at].bytes().next_back();
                if before.is_some_and(|byte| byte.is_ascii_alphanumeric() || byte == b'_') {
                    continue;
                }
                let arguments = squeezed[at + call.len()..].split(')').next().unwrap_or_default();
                let Some((_, name)) = arguments.split_once("\"queue/") else { continue };
                let name = name.split('"').next().unwrap_or_default();
                let plain = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
                if !name.is_empty() && plain {
                    names.insert(name.to_owned());
                }
            }
        }
        layout
    }
}

/// Returns `source` without the `#include` lines of headers that the tree does not have.
fn without_missing_headers(sandbox: &Sandbox, source: &[u8]) -> Vec<u8> {
    let c = Source::new(Lang::C, source);
    let is_missing = |include: &Include| {
        include
            .header
            .as_ref()
            .is_some_and(|header| header.quoted && !sandbox.tree().join(&header.name).exists())
    };
    let missing = includes(&c).into_iter().filter(is_missing).map(|include| {
        let range =
            c.tokens[include.tokens.start].span.start..c.tokens[include.tokens.end - 1].span.end;
        Edit { range, text: Vec::new() }
    });
    edit::apply(source, &missing.collect::<Vec<_>>())
}

/// Returns the code that the tree's compiler sees in a source; `None` if the compiler fails.
fn preprocessed(sandbox: &Sandbox, source: &[u8]) -> Option<String> {
    let path = sandbox.rig().join("preprocess.c");
    sandbox.write(&path, source).ok()?;
    let output = sandbox.compiler().args(["-E", "-P", "-I."]).arg(&path).output();
    let output = output.ok().filter(|output| output.status.success())?;
    Some(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Prints the definitions of channels.h in one line.
const CHANNELS_C: &str = "#include \"channels.h\"\n#include <stdio.h>\n#ifndef QDIR_BASENAME\n#define QDIR_BASENAME \"suppl\"\n\
    #endif\nint main(void) { printf(\"%d %s\\n\",(int) (SUPPL_CHANNELS),QDIR_BASENAME); return 0; }\n";

/// Returns the supplemental channels. There are none if the tree has no channels.h, or if that file
/// does not define them.
pub(super) fn supplemental(sandbox: &Sandbox) -> Supplemental {
    defined_channels(sandbox).unwrap_or_default()
}

fn defined_channels(sandbox: &Sandbox) -> Option<Supplemental> {
    let name = "channels.h";
    if !sandbox.tree().join(name).exists() {
        targets(sandbox.tree()).ok()?.contains(name).then_some(())?;
        // If this fails, the build fails at the same place and reports why.
        let mut command = sandbox.command("make");
        command.arg(name);
        let (status, _) = run_captured(command, "make", PATIENCE).ok()?;
        status.success().then_some(())?;
    }
    let (source, program) = (sandbox.rig().join("channels.c"), sandbox.rig().join("channels"));
    sandbox.write(&source, CHANNELS_C.as_bytes()).ok()?;
    let mut command = sandbox.compiler();
    command.args(["-w", "-I."]).arg("-o").arg(&program).arg(&source);
    command.output().ok().filter(|output| output.status.success())?;
    let output = sandbox.command(&program).output().ok()?;
    let said = String::from_utf8(output.stdout).ok()?;
    let (count, name) = said.trim_end().split_once(' ')?;
    Some(Supplemental { count: count.parse().ok()?, name: name.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queue_layout_is_stocks_where_hier_says_nothing() {
        let layout = QueueLayout::of_hier("");
        assert!(layout.flat.contains("todo"));
        assert!(layout.split.contains("remote"));
    }

    #[test]
    fn queue_layout_follows_hier() {
        let layout = QueueLayout::of_hier(
            "dsplit( \"queue/todo\" ,u,0750);\n d (auto_qmail,\n\"queue/extra\",1);",
        );
        assert!(layout.split.contains("todo"));
        assert!(layout.flat.contains("extra"));
        // Some trees give dsplit() the home, too. A name that is not the first directory does not
        // count.
        let layout = QueueLayout::of_hier(
            "void dsplit(home,base) {} dsplit(auto_qmail, \"queue/intd\",u,0700); d(home,\"queue/pid\",1); \
             end(\"queue/none\"); d(\"queue\",\"x\");",
        );
        assert!(layout.split.contains("intd") && !layout.split.contains("none"));
        assert!(layout.flat.contains("pid") && !layout.flat.contains("none"));
    }
}
