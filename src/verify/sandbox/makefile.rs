//! The Makefile of a tree to be built.
#![forbid(unsafe_code)]

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use crate::engine::makefile::rules_of;
use crate::verify::error::Error;

/// Returns the targets of the tree's Makefile.
///
/// # Errors It cannot be read.
pub fn targets(tree: &Path) -> Result<BTreeSet<String>, Error> {
    let path = tree.join("Makefile");
    let text = fs::read(&path).map_err(Error::file("read", &path))?;
    Ok(rules_of(&text).into_iter().flat_map(|rule| rule.targets).collect())
}
