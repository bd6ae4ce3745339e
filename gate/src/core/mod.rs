//! The decision whether a delivery may start, without I/O and clock.
//!
//! [`gate`] is the state machine. It uses: [`rules`] (which key a domain counts under), [`keys`] and [`key`] (what is
//! counted), [`slots`] and [`command`] (the deliveries that run and that are held), [`learn`], [`returns`] and
//! [`linger`] (what a server takes), [`pace`] (how fast it is), [`rate`], [`window`] and [`start_log`] (when a delivery
//! may start), [`recall`] (mail that is away), [`share`] (other spawners), [`host_share`] (other hosts), [`shortage`]
//! (a fault of this machine) and [`answer`] (what the caller is told).

pub(crate) mod answer;
pub mod command;
pub mod gate;
pub mod host_share;
pub(crate) mod key;
pub(crate) mod keys;
pub mod learn;
pub mod linger;
pub mod other_spawners;
pub mod pace;
pub mod rate;
pub mod recall;
pub mod returns;
pub mod rules;
pub mod shortage;
pub(crate) mod slots;
pub mod start_log;
pub mod window;
