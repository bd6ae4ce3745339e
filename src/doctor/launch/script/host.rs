//! What a [`super::Walk`] asks of the machine: a test answers in its place.
#![forbid(unsafe_code)]

use crate::doctor::launch::limits::KernelLimits;
use crate::doctor::launch::shell::Shell;

/// What is at a path that a script names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PathContent {
    /// A script, with its text.
    Script(String),
    /// Something else.
    Other,
    /// Nothing.
    Missing,
    /// A file that cannot be read; the reason.
    Unreadable(String),
}

/// The machine that a script runs on.
pub trait ScriptHost {
    /// Returns what is at a path.
    fn content_of(&self, path: &str) -> PathContent;
    /// Returns which shell /bin/sh is.
    fn shell(&self) -> Shell;
    /// Returns the limits of the kernel.
    fn kernel_limits(&self) -> KernelLimits;
    /// Returns whether this is qmail's rc.
    fn is_rc(&self, path: &str) -> bool;
    /// Returns whether a script is followed if another script names it among the words of a command.
    fn is_known(&self, path: &str) -> bool;
}
