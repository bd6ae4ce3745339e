//! What drives the spawners and qmail-send over their own pipes, and the stubs at the far end.

pub mod log;
pub mod numbers;
mod pipes;
pub mod protocol;
pub mod sendrig;
pub mod spawner;
pub mod stub;
