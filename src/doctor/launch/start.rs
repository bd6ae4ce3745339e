//! What starts qmail, as far as it was found.
#![forbid(unsafe_code)]

use std::rc::Rc;

use super::limits::{LimitState, Setting};
use super::sandbox::Obstacle;

/// A unit or script that starts qmail.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Start {
    /// The file.
    pub file: String,
    /// The unit's name, if it is one.
    pub unit: Option<String>,
    /// What is in force, for each place that starts qmail.
    pub states: Vec<LimitState>,
    /// Lines that look as if they set the limit of descriptors, and do not.
    pub idle: Vec<String>,
    /// Where a limit of descriptors can be set that has no line yet, and what stands before the number there.
    pub raise: (String, String),
}

/// What a unit or a slice limits for all its processes together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ceiling {
    /// The unit or slice.
    pub unit: String,
    /// How much: processes, or bytes.
    pub most: u64,
    /// What sets it, as in "WHAT gives 512".
    pub by: String,
    /// The line to change, if there is one that may be changed.
    pub setting: Option<Rc<Setting>>,
    /// Where it is set anew: a file and section, and what stands before the number.
    pub raise: (String, String),
}

/// What a systemd unit that starts qmail, itself or through a supervisor, says besides.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Service {
    /// The unit's name.
    pub name: String,
    /// Limits of the number of its processes: its own and those of its slices.
    pub tasks: Vec<Ceiling>,
    /// Limits of its memory in bytes.
    pub memory: Vec<Ceiling>,
    /// What systemd does when the kernel has ended a process for lack of memory.
    pub ends_on_lack_of_memory: bool,
    /// Settings that stop mail.
    pub obstacles: Vec<Obstacle>,
}

/// What starts qmail.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Launch {
    /// The places.
    pub starts: Vec<Start>,
    /// The units among them, and those of a supervisor.
    pub services: Vec<Service>,
    /// What could hold a limit and could not be read.
    pub unread: Vec<String>,
    /// Not even root may raise a hard limit below process 1, as in most containers. What starts qmail may be outside.
    pub raises_are_refused: bool,
}
