//! The text of a busy answer: what the operator finds in the log.

#![forbid(unsafe_code)]

use std::fmt::Write as _;

use crate::control::problem;
use crate::control::table::Limit;
use crate::core::gate::{Busy, BusyReason, Key, PauseCause};
use crate::core::rules::KeyKind;
use crate::host::status::Escaped;
use crate::util::memory::Text;

/// How much of a key's name a report shows, in bytes.
pub(super) const SHOWN_NAME: usize = 100;

/// What qmail-send is told of a delivery that is not made now:
///
/// ```text
/// B73 5 gmail.com is at its limit of 20 deliveries; not tried. (#4.4.5)
/// B73 5 gmail.com is at 12 deliveries, its server takes no more (limit 20); not tried. (#4.4.5)
/// B73 5 gmail.com refused this one beside 11 (limit 20); to be tried again: REPORT (#4.4.5) [or without "beside 11"]
/// B73 5 a.example has its part of its site's places, 15; not tried. (#4.4.5)
/// B73 5 gmail.com: no connection to its server succeeds, one at a time is tried; not tried. (#4.4.1)
/// Zgmail.com: no connection to its server succeeds, none is tried for 73 s; not tried. (#4.4.1)
/// B73 5 gmail.com is paused by control/concurrencyreplies:7; not tried. (#4.4.5)
/// Zgmail.com is paused by control/concurrencyreplies:7 for 1730 s; not tried. (#4.4.5)
/// ```
pub(super) fn write_busy(out: &mut Text, key: &Key, busy: Busy) -> std::fmt::Result {
    match busy.why {
        BusyReason::AtLimit
        | BusyReason::Refused
        | BusyReason::Paused(_)
        | BusyReason::AtDomainShare(_) => {
            write!(out, "B{} {} ", busy.secs, key.number)?;
        }
        BusyReason::Suspended(_) => out.write_str("Z")?,
    }
    match key.kind {
        KeyKind::Domain => {}
        KeyKind::Relay => out.write_str("relay ")?,
        KeyKind::Group => out.write_str("group ")?,
        KeyKind::Candidates => out.write_str("candidates of ")?,
    }
    if key.name.is_empty() {
        out.write_str("(no domain)")?;
    }
    for &byte in &key.name[..key.name.len().min(SHOWN_NAME)] {
        // As `qpatch gate show` prints it; but a name is one word here.
        match byte {
            b' ' => out.write_str("%20")?,
            byte => write!(out, "{}", Escaped(&[byte]))?,
        }
    }
    if key.name.len() > SHOWN_NAME {
        out.write_str("...")?;
    }
    let of_table = |out: &mut Text| match key.cap.limit {
        Limit::AtMost(limit) => write!(out, " (limit {limit})"),
        Limit::Unlimited => Ok(()),
    };
    match (busy.why, key.limit()) {
        (BusyReason::Suspended(PauseCause::Rule(line)), _) => {
            return writeln!(
                out,
                " is paused by {}:{line} for {} s; not tried. (#4.4.5)",
                problem::File::Replies,
                busy.secs
            );
        }
        (BusyReason::Paused(PauseCause::Rule(line)), _) => {
            return writeln!(
                out,
                " is paused by {}:{line}; not tried. (#4.4.5)",
                problem::File::Replies
            );
        }
        (BusyReason::Suspended(PauseCause::NoConnection), _) => {
            return writeln!(
                out,
                ": no connection to its server succeeds, none is tried for {} s; not tried. (#4.4.1)",
                busy.secs
            );
        }
        (BusyReason::Paused(PauseCause::NoConnection), _) => {
            return out.write_str(
                ": no connection to its server succeeds, one at a time is tried; not tried. (#4.4.1)\n",
            );
        }
        (BusyReason::AtDomainShare(part), _) => {
            return writeln!(
                out,
                " has its part of its site's places, {part}; not tried. (#4.4.5)"
            );
        }
        (BusyReason::Refused, _) => {
            out.write_str(" refused this one")?;
            if key.running > 0 {
                write!(out, " beside {}", key.running)?;
            }
            of_table(out)?;
            out.write_str("; to be tried again: ")?;
            for &byte in &key.error {
                out.write_char(match byte {
                    b'\n' => '/',
                    b' '..=b'~' => char::from(byte),
                    _ => '?',
                })?;
            }
            return out.write_str(" (#4.4.5)\n");
        }
        (BusyReason::AtLimit, Limit::AtMost(0)) => out.write_str(" is closed (limit 0)")?,
        (BusyReason::AtLimit, Limit::AtMost(limit)) if key.cap.limit != Limit::AtMost(limit) => {
            write!(out, " is at {limit} deliver{}, its server takes no more", ending(limit))?;
            of_table(out)?;
        }
        (BusyReason::AtLimit, Limit::AtMost(limit)) => {
            write!(out, " is at its limit of {limit} deliver{}", ending(limit))?;
        }
        (BusyReason::AtLimit, Limit::Unlimited) => out.write_str(" was at its limit")?,
    }
    out.write_str("; not tried. (#4.4.5)\n")
}

pub(super) fn ending(deliveries: u32) -> &'static str {
    if deliveries == 1 { "y" } else { "ies" }
}
