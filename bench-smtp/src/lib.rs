//! The patched qmail on real SMTP over loopback: beside itself without the gate, and beside Postfix.
//!
//! A [`plan::Plan`] says which mail goes where and when; a [`run::Subject`] is a mail server ([`qmail`], [`postfix`]);
//! the [`sink`] is the servers at the other end; [`measure`] makes figures of what they have seen; [`scenario`] says
//! which of them have to reach what.

#![deny(unsafe_code)]

pub mod dns;
pub mod error;
pub mod measure;
pub mod milter;
pub mod plan;
pub mod plot;
pub mod postfix;
pub mod qmail;
pub mod report;
pub mod run;
pub mod sandbox;
pub mod scenario;
pub mod servers;
pub mod session;
pub mod sink;
#[allow(unsafe_code)]
mod sys;
pub mod usage;
