//! Measures the patched qmail on real SMTP over loopback, compared with the same tree without the gate, and with
//! Postfix.
//!
//! A [`plan::Plan`] says which mail goes where and when. A [`run::Subject`] is a mail server ([`qmail`], [`postfix`]).
//! The [`sink`] is the servers at the other end. [`measure`] computes figures from what the sink has recorded, and
//! [`figures`] says which of them have to reach which bar in each [`scenario`].

#![deny(unsafe_code)]

pub mod dns;
pub mod error;
pub mod figures;
pub mod inject;
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
pub mod shares;
pub mod sink;
#[allow(unsafe_code)]
mod sys;
pub mod tls;
pub mod usage;
