//! The control files, and the names and addresses in them.

pub mod limit;
pub mod literal;
pub mod name;
pub mod name_map;
pub mod problem;
pub mod route;
pub mod sender;
pub mod site;
pub mod table;
