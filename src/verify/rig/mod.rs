//! The rig: it drives the spawners and qmail-send over their own pipes, and stands in for the programs at the far end
//! of a delivery (the stubs).

pub mod at_once;
pub mod log;
pub mod numbers;
mod pipes;
pub mod protocol;
pub mod sendrig;
pub mod spawner;
pub mod stub;
