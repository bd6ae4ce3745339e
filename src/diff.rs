//! A change as a unified diff.

#![forbid(unsafe_code)]

use similar::TextDiff;

use crate::tree::plan::Change;

/// Lines of context, as `diff -u` has them.
const CONTEXT: usize = 3;

/// The unified diff of `change`, with `a/` and `b/` before the names, so that `patch -p1`,
/// `git apply` and quilt take it.
#[must_use]
pub fn unified(change: &Change) -> Vec<u8> {
    let old = change.old.as_deref().unwrap_or_default();
    let diff = TextDiff::from_lines(old, change.new.as_slice());
    let mut out = Vec::new();
    let from = match change.old {
        Some(_) => format!("a/{}", change.name),
        None => "/dev/null".to_string(),
    };
    let to = format!("b/{}", change.name);
    diff.unified_diff()
        .context_radius(CONTEXT)
        .header(&from, &to)
        .to_writer(&mut out)
        .expect("a Vec takes all that is written");
    out
}
