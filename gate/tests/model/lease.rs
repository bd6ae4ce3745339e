//! queue/lock/gatelease as an agent writes it, for tests.

use qpatch_gate::lease::{MAGIC, sum};
use qpatch_gate::process::boot;

/// A lease of 8 hosts with these lines of keys. It ends at this time since the start of the machine, in milliseconds,
/// and settles a second later.
pub(crate) fn lease(seq: u64, until_ms: u64, keys: &str) -> String {
    let mut text = format!("{MAGIC}\t{seq}\t{}\t{until_ms}\t1000\t8\t8\t1\t77\t", boot());
    text += &format!("{:x}\n{keys}end\t{seq}\t", sum(text.as_bytes()));
    text += &format!("{:x}\n", sum(text.as_bytes()));
    text
}
