//! The gate with its files and its clock, as a spawner has it.

mod answers;
mod home;
mod kept;
mod lease;
#[path = "../model/lease.rs"]
mod lease_text;
mod rates;
mod relays;
mod reload;
mod status;
