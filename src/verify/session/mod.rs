//! Runs the steps of one proof in order, and records the result of each.
//!
//! `order` has the order of the steps, `steps` runs and records one. What a step does is in `building` (build,
//! chkspawn, fd_set, machine), `spawners`, `mail` (qmail-send, the gate, the fork server) and `fortify`.
//!
//! A step that fails does not end the proof. Steps that need it are skipped, and say so; the others run. Only a stop
//! signal, or a sandbox that cannot be made, ends the proof with an error.
#![forbid(unsafe_code)]

mod building;
mod fortify;
mod mail;
mod order;
mod spawners;
mod steps;

pub(super) use steps::Session;
