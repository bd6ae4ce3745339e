//! `qpatch diff`: prints what apply would change, for patch, git apply and quilt.

#![forbid(unsafe_code)]

use super::choice::PatchChoice;
use crate::output::{CommandResult, print, warn};
use crate::tree::Tree;
use crate::tree::diff::unified;

/// Prints the diff.
///
/// # Errors
/// If the patches do not fit the tree.
pub fn run(choice: &PatchChoice) -> CommandResult {
    let tree = Tree::open(&choice.tree)?;
    let plan = choice.plan(&tree)?;
    let (above, inside): (Vec<_>, Vec<_>) =
        plan.changes.iter().partition(|c| tree.is_above(&c.name));
    let (binary, text): (Vec<_>, Vec<_>) = inside.into_iter().partition(|c| c.new.contains(&0));
    print(|out| {
        for change in &text {
            out.write_all(&unified(change))?;
        }
        Ok(())
    })?;
    for change in above {
        let first = change.new.split(|&byte| byte == b'\n').next().unwrap_or_default();
        warn(&format!(
            "{} lies one folder up, where patch does not go, and is not in the diff; put this into its \
             first line: {}",
            tree.shown(&change.name),
            String::from_utf8_lossy(first)
        ));
    }
    for change in binary {
        warn(&format!(
            "{} is no text and not in the diff; `qpatch gate library > TREE/{}` makes it",
            change.name, change.name
        ));
    }
    Ok(())
}
