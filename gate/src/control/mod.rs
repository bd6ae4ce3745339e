//! The control files, and the names and addresses in them.
//!
//! [`table`] is concurrencydomains, [`route`] smtproutes, [`sender`] authsenders, [`site`] concurrencysites and what
//! deliveries show of sites. They share [`name`], [`name_map`], [`literal`], [`limit`] and [`rates`], and report their
//! mistakes as [`problem`]s. [`words`] is one field of concurrencydomains. concurrencyreplies is in
//! [`crate::report::replies`].

pub mod limit;
pub mod literal;
pub mod name;
pub mod name_map;
pub mod problem;
pub mod rates;
pub mod route;
pub mod sender;
pub mod site;
pub mod table;
pub(crate) mod words;
