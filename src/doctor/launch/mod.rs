//! What starts qmail, and under which limits: systemd's units, run scripts of supervisors, init scripts, qmail's rc.
//!
//! Each place where qmail is started is followed from its beginning: a unit to the script that it runs, a script to
//! the one that it calls. What is in force when qmail-start runs is what counts, not what some line on the way sets.
#![forbid(unsafe_code)]

pub mod conf;
pub mod field;
mod finder;
mod first_process;
mod host_scripts;
pub mod limits;
mod programs;
mod sandbox;
pub mod script;
pub mod shell;
mod start;
pub mod unit;

pub use finder::{KERNEL_FILES, find};
pub use sandbox::Obstacle;
pub use start::{Ceiling, Launch, Service, Start};
