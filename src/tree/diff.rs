//! Shows a change as a unified diff.

#![forbid(unsafe_code)]

use similar::TextDiff;

use crate::tree::plan::FileChange;

/// Lines of context, as in `diff -u`.
const CONTEXT: usize = 3;

/// Returns the unified diff of `change`, with `a/` and `b/` before the names, as `patch -p1`, `git
/// apply` and quilt expect.
#[must_use]
pub fn unified(change: &FileChange) -> Vec<u8> {
    let old = change.old.as_deref().unwrap_or_default();
    // Only a newline ends a line, as in patch and git. similar's own lines also end at a lone
    // carriage return; patch and git would call such a patch malformed.
    let (old, new) = (lines(old), lines(&change.new));
    let diff = TextDiff::configure().newline_terminated(true).diff_slices(&old, &new);
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

/// Returns the lines of `bytes`, each with its newline; the last line may have none.
fn lines(bytes: &[u8]) -> Vec<&[u8]> {
    bytes.split_inclusive(|&b| b == b'\n').collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_newline_ends_a_line() {
        let change = FileChange {
            name: "a".into(),
            old: Some(b"x\ry\r\r\nz\r\nlast".to_vec()),
            new: b"x\ry\r\r\nZ\r\nlast".to_vec(),
        };
        assert_eq!(
            unified(&change).escape_ascii().to_string(),
            concat!(
                r"--- a/a\n+++ b/a\n@@ -1,3 +1,3 @@\n",
                r" x\ry\r\r\n-z\r\n+Z\r\n last\n\\ No newline at end of file\n"
            )
        );
    }
}
