//! The results of the search for what starts qmail.
#![forbid(unsafe_code)]

use std::rc::Rc;

use super::confinement::Obstacle;
use super::limits::{LimitState, Setting};

/// A unit or script that starts qmail.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Start {
    /// The file.
    pub file: String,
    /// The unit's name, if it is a unit.
    pub unit: Option<String>,
    /// The limits in force, for each place in it that starts qmail.
    pub states: Vec<LimitState>,
    /// Lines that seem to set the limit of descriptors but have no effect.
    pub idle: Vec<String>,
    /// Where a new line can set the limit of descriptors, and the text of that line before the number.
    pub raise: (String, String),
}

/// A limit of a unit or slice on all its processes together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ceiling {
    /// The unit or slice.
    pub unit: String,
    /// The limit: processes, or bytes.
    pub most: u64,
    /// What sets it, as in "WHAT gives 512".
    pub by: String,
    /// The line to change, if there is one that may be changed.
    pub setting: Option<Rc<Setting>>,
    /// Where a new line can set it: the file and section, and the text of that line before the number.
    pub raise: (String, String),
}

/// The other settings of a systemd unit that starts qmail, itself or through a supervisor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Service {
    /// The unit's name.
    pub name: String,
    /// The limits on the number of its processes: its own, and those of its slices.
    pub tasks: Vec<Ceiling>,
    /// The limits on its memory, in bytes.
    pub memory: Vec<Ceiling>,
    /// Whether systemd ends the whole unit after the kernel killed a process for lack of memory.
    pub ends_on_lack_of_memory: bool,
    /// Settings that stop mail.
    pub obstacles: Vec<Obstacle>,
}

/// What starts qmail.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Launch {
    /// The units and scripts.
    pub starts: Vec<Start>,
    /// The units among them, and those of a supervisor.
    pub services: Vec<Service>,
    /// Files that could set a limit and could not be read, or not followed to the end; with the reason.
    pub unread: Vec<String>,
    /// Whether not even root may raise a hard limit below process 1, as in most containers. But qmail may be started
    /// from outside the container.
    pub raises_are_refused: bool,
}
