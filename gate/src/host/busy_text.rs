//! The text of a busy answer, as the operator finds it in the log.

#![forbid(unsafe_code)]

use std::fmt::Write as _;

use crate::control::problem;
use crate::control::table::Limit;
use crate::core::gate::{Busy, BusyReason, Key, PauseCause};
use crate::core::rate::RateKind;
use crate::core::rules::KeyKind;
use crate::util::escape::Escaped;
use crate::util::memory::Text;

/// How much of a key's name a report shows, in bytes.
pub(super) const SHOWN_NAME: usize = 100;

/// The report to qmail-send of a delivery that is not made now:
///
/// ```text
/// B73 5 gmail.com is at its limit of 20 deliveries; not tried. (#4.4.5)
/// B73 5 gmail.com is at its rate of 600/m; not tried. (#4.4.5)
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
        | BusyReason::AtRate
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
        // As `qpatch gate show` prints it, but without a blank: here a name is one word.
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
        (BusyReason::AtRate, _) => {
            out.write_str(" is at its rate")?;
            let rates = &key.cap.rates;
            match (key.start_rate.waits_for(), rates.hour, rates.day, rates.slowest()) {
                (RateKind::Hour, Some(starts), ..) => write!(out, " of {starts}/h")?,
                (RateKind::Day, _, Some(starts), _) => write!(out, " of {starts}/d")?,
                (.., Some(rate)) => write!(out, " of {rate}")?,
                _ => {}
            }
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
        (BusyReason::AtLimit, Limit::AtMost(_)) if key.waits_for_share() => {
            write!(out, " is at this host's share, {} deliver{}", key.share, ending(key.share))?;
            of_table(out)?;
        }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::limit::{Cap, Learning, Limit};
    use crate::control::rates::{PacedRate, Rates};
    use crate::core::gate::{BusyReason, Key, PauseCause};
    use crate::core::learn::{Coverage, EndedDelivery, StartedIn};
    use crate::core::rules::KeyKind;
    use crate::util::random::Random;

    fn busy(kind: KeyKind, name: &[u8], limit: u32, secs: u32) -> String {
        let cap = Cap { limit: Limit::AtMost(limit), learning: Learning::On, ..Cap::NONE };
        let mut key = Key::new(kind, name.to_vec(), cap);
        key.number = 7;
        text(&key, BusyReason::AtLimit, secs)
    }

    fn text(key: &Key, why: BusyReason, secs: u32) -> String {
        let mut out = Text::default();
        write_busy(&mut out, key, Busy { key: 0, secs, why }).unwrap();
        String::from_utf8(out.bytes).unwrap()
    }

    #[test]
    fn the_texts_of_what_the_server_does_not_take() {
        let cap = Cap { limit: Limit::AtMost(20), learning: Learning::On, ..Cap::NONE };
        let mut key = Key::new(KeyKind::Domain, b"gmail.com".to_vec(), cap);
        (key.number, key.running) = (7, 11);
        key.error =
            b"Connected to 10.0.0.1 but greeting failed.\nRemote host said: 421 \x1b[2J\n".to_vec();
        assert_eq!(
            text(&key, BusyReason::Refused, 61),
            "B61 7 gmail.com refused this one beside 11 (limit 20); to be tried again: Connected to 10.0.0.1 but \
             greeting failed./Remote host said: 421 ?[2J/ (#4.4.5)\n"
        );
        assert_eq!(
            text(&key, BusyReason::Paused(PauseCause::NoConnection), 61),
            "B61 7 gmail.com: no connection to its server succeeds, one at a time is tried; not tried. (#4.4.1)\n"
        );
        assert_eq!(
            text(&key, BusyReason::Suspended(PauseCause::NoConnection), 61),
            "Zgmail.com: no connection to its server succeeds, none is tried for 61 s; not tried. (#4.4.1)\n"
        );
        assert_eq!(
            text(&key, BusyReason::Paused(PauseCause::Rule(12)), 61),
            "B61 7 gmail.com is paused by control/concurrencyreplies:12; not tried. (#4.4.5)\n"
        );
        assert_eq!(
            text(&key, BusyReason::Suspended(PauseCause::Rule(12)), 7200),
            "Zgmail.com is paused by control/concurrencyreplies:12 for 7200 s; not tried. (#4.4.5)\n"
        );
        let refused = EndedDelivery {
            now_us: 2,
            started_us: 1,
            running: 11,
            beside: 11,
            limit: 20,
            learning: Learning::On,
            seen: crate::report::DeliveryVerdict::TooMany(crate::report::Sent::No),
            coverage: Coverage::AllDeliveries,
            started_in: StartedIn::FreePlace,
        };
        key.learned.delivery_ended(&refused, &mut Random::new(1));
        assert_eq!(
            text(&key, BusyReason::AtLimit, 61),
            "B61 7 gmail.com is at 11 deliveries, its server takes no more (limit 20); not tried. (#4.4.5)\n"
        );
    }

    #[test]
    fn the_text_of_a_rate_names_the_lowest() {
        let rates = Rates {
            seconds: Some(PacedRate { starts: 20, secs: 1 }),
            minutes: Some(PacedRate { starts: 600, secs: 60 }),
            ..Rates::NONE
        };
        let cap = Cap { rates, ..Cap::NONE };
        let mut key = Key::new(KeyKind::Group, b"google".to_vec(), cap);
        key.number = 7;
        assert_eq!(
            text(&key, BusyReason::AtRate, 61),
            "B61 7 group google is at its rate of 600/m; not tried. (#4.4.5)\n"
        );
    }

    #[test]
    fn the_text_of_a_busy_report() {
        assert_eq!(
            busy(KeyKind::Domain, b"gmail.com", 20, 73),
            "B73 7 gmail.com is at its limit of 20 deliveries; not tried. (#4.4.5)\n"
        );
        assert_eq!(
            busy(KeyKind::Group, b"yahoo", 1, 3600),
            "B3600 7 group yahoo is at its limit of 1 delivery; not tried. (#4.4.5)\n"
        );
        assert_eq!(
            busy(KeyKind::Relay, b"mx.example", 0, 1),
            "B1 7 relay mx.example is closed (limit 0); not tried. (#4.4.5)\n"
        );
        assert_eq!(
            busy(KeyKind::Domain, b"a\nb\0\xff c%", 2, 5),
            "B5 7 a%0ab%00%ff%20c%25 is at its limit of 2 deliveries; not tried. (#4.4.5)\n"
        );
        assert!(busy(KeyKind::Domain, &[b'x'; 255], 2, 5).len() < 200);
    }
}
