//! A private copy of the tree, as whom its programs run, and within which limits.

pub mod build;
mod configure;
mod copy;
pub mod identity;
pub mod limits;
pub mod makefile;
pub mod process;
mod queue_layout;
pub mod scratch;
mod settings;
pub mod site;
pub mod target;

pub use configure::SiteConfig;
pub use settings::check_tree;
