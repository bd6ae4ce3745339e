//! Follows a start script from its first line to the programs that it starts, with the limits that it sets on the way.
//!
//! Nothing is run. If the way depends on something that only the running script knows (a condition, a variable from
//! outside), all ways are followed, and a limit that comes from outside is unknown. A script that is too long, or calls
//! itself, is not followed to the end, and the result says so.
//!
//! `walk` follows the order of commands, `command` one command, `openrc` a service script of OpenRC. `expand` gives the
//! variables their values, `set_limits` applies a command that sets a limit. What the machine has is behind
//! [`ScriptHost`].
#![forbid(unsafe_code)]

mod command;
mod expand;
mod host;
mod openrc;
mod set_limits;
mod walk;

pub use host::{PathContent, ScriptHost};
pub use walk::{StartPoint, Walk, WalkResult, is_chain};
