//! The sandbox of a proof: a private copy of the tree, the user that its programs run as, and the
//! limits of this machine.

mod configure;
mod copy;
pub mod identity;
pub mod limits;
pub mod makefile;
pub mod private_tree;
pub mod process;
mod queue_layout;
pub mod scratch;
mod settings;
pub mod target;

pub use configure::SandboxConfig;
pub use private_tree::Fsync;
pub use settings::check_tree;
