//! The control files, and the names and addresses in them.
//!
//! [`table`] is concurrencydomains, [`route`] smtproutes, [`sender`] authsenders, [`site`] concurrencysites and what
//! deliveries show of sites. They share [`name`], [`name_map`], [`literal`] and [`limit`], and report their mistakes as
//! [`problem`]s. concurrencyreplies is in [`crate::report::replies`].

pub mod limit;
pub mod literal;
pub mod name;
pub mod name_map;
pub mod problem;
pub mod route;
pub mod sender;
pub mod site;
pub mod table;
