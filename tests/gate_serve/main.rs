//! `qpatch gate serve` over real sockets of the loopback interface.

mod browser;
mod chromium;
#[path = "../common/mod.rs"]
mod common;
mod http;
mod rig;
mod scrape;
mod simulated;
