//! Finds what starts qmail, and with which limits: systemd's units, run scripts of supervisors, init scripts, qmail's
//! rc.
//!
//! `finder` looks where these usually are, and follows each start from its beginning: a unit to the script that it
//! runs, a script to the one that it calls ([`script`]). The limits that count are those in force when qmail-start
//! runs, not those that some line on the way sets. [`unit`] reads units as systemd does, [`shell`] parses scripts,
//! `programs` knows the programs that set limits, and [`limits`] what is in force after several of them.
#![forbid(unsafe_code)]

pub mod conf;
mod confinement;
pub mod field;
mod finder;
mod first_process;
mod host_scripts;
pub mod limits;
mod programs;
pub mod script;
pub mod shell;
mod start;
pub mod unit;

pub use confinement::Obstacle;
pub use finder::{KERNEL_FILES, find};
pub use start::{Ceiling, Launch, Service, Start};
