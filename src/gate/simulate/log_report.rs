//! Recovers a delivery's report from a line of qmail-send's log.
//!
//! qmail-send logs the report's text with `_` for spaces and unprintable bytes, and `/` for line feeds. A server may
//! write `_` and `/` itself, and the log does not show the difference. The gate reads only digits and words, so it does
//! not need it. qmail-rspawn puts the text of the recipient's line before that of the message's; this module separates
//! them again.

use std::net::IpAddr;

use qpatch_gate::echo::Own;
use qpatch_gate::memory::OutOfMemory;
use qpatch_gate::replies::{MatchedLine, Meaning, Replies};
use qpatch_gate::report::{DeliveryReport, DeliveryVerdict, ReportReader, Sent};

use crate::qmail::log::event::{self, End};

/// What the log says of a delivery's server, as concurrencyreplies reads it; [`DeliveryVerdict::Nothing`] if it says
/// nothing.
pub(super) fn of_log(end: End, text: &[u8], replies: &Replies) -> DeliveryReport {
    let reader = ReportReader { own: Own::unknown(), replies };
    let nothing = DeliveryReport { seen: DeliveryVerdict::Nothing, peer: None, rule: None };
    let text = event::without_times(text);
    let plain = |text: &[u8]| -> Vec<u8> {
        let bytes = text.iter().map(|&byte| match byte {
            b'_' => b' ',
            b'/' => b'\n',
            byte => byte,
        });
        bytes.collect()
    };
    match end {
        End::Success => reader.classify(&[b"r\0K", &plain(text)[..], b"\0"].concat()),
        End::Failure => reader.classify(&lines(&plain(text), [b'h', b'D'])),
        End::Deferral => reader.classify(&lines(&plain(text), [b's', b'Z'])),
        End::Refused => {
            let said = event::refused(text).unwrap_or_default();
            match reader.classify(&lines(&plain(said), [b's', b'Z'])) {
                said @ DeliveryReport {
                    seen: DeliveryVerdict::TooMany(_) | DeliveryVerdict::ConnectFailed,
                    ..
                } => said,
                // The gate logs long texts cut. It saw the whole text when it took this for a refusal.
                cut => DeliveryReport { seen: DeliveryVerdict::TooMany(Sent::No), ..cut },
            }
        }
        End::Mangled | End::Busy | End::Suspended => nothing,
    }
}

/// The report of a delivery that failed. If qmail-remote gave up because of the recipient, the report has a line for
/// the recipient.
fn lines(text: &[u8], [of_recipient, of_message]: [u8; 2]) -> Vec<u8> {
    const GAVE_UP: &[u8] = b"\nGiving up on ";
    // The last match counts: the server's words stand before it.
    let at = text.windows(GAVE_UP.len()).rposition(|window| window == GAVE_UP);
    match at {
        Some(at) => [&[of_recipient][..], &text[..=at], b"\0D", &text[at + 1..], b"\0"].concat(),
        None => [&[of_message][..], text, b"\0"].concat(),
    }
}

/// A short report that classifies as `said`. A simulation keeps `said`, and makes the report when the delivery ends.
/// Its gate reads the report with the lines of [`short`].
pub(super) fn report(said: &DeliveryReport) -> Vec<u8> {
    let peer = said.peer.map_or_else(|| "somebody".to_string(), |peer: IpAddr| peer.to_string());
    let refused = |words: &str, code: u32, reply: &str| {
        let reply = said.rule.map_or_else(|| reply.to_string(), |rule| short_reply(rule.line));
        format!("{words}.\nRemote host said: {code} {reply}\n\0")
    };
    let connected = |words: &str, code, reply| {
        refused(&format!("Connected to {peer} but {words}"), code, reply)
    };
    let text = match said.seen {
        DeliveryVerdict::Accepted => format!("r\0K{peer} accepted message.\n\0"),
        DeliveryVerdict::TooMany(Sent::No) => {
            format!("Z{}", connected("greeting failed", 421, "too many connections"))
        }
        DeliveryVerdict::TooMany(Sent::Envelope) => {
            format!("Z{}", connected("sender was rejected", 421, "too many connections"))
        }
        DeliveryVerdict::TooMany(Sent::Yes) => {
            let words = format!("{peer} failed after I sent the message");
            format!("Z{}", refused(&words, 421, "too many connections"))
        }
        DeliveryVerdict::ConnectFailed => {
            "ZSorry, I wasn't able to establish an SMTP connection. (#4.4.1)\n\0".to_string()
        }
        DeliveryVerdict::Died(Sent::No | Sent::Envelope) => {
            format!("ZConnected to {peer} but connection died. (#4.4.2)\n\0")
        }
        DeliveryVerdict::Died(Sent::Yes) => {
            format!("ZConnected to {peer} but connection died. Possible duplicate! (#4.4.2)\n\0")
        }
        DeliveryVerdict::Deferred => format!("Z{}", connected("sender was rejected", 450, "later")),
        DeliveryVerdict::Failed if said.rule.is_some() => {
            format!("D{}", connected("sender was rejected", 550, "no"))
        }
        DeliveryVerdict::Failed => format!("DGiving up on {peer}.\n\0"),
        DeliveryVerdict::Nothing => "Znothing\n\0".to_string(),
    };
    text.into_bytes()
}

/// The server's words in a short report that this line of concurrencyreplies matches.
fn short_reply(line: u32) -> String {
    format!("by line {line} of the operator")
}

/// Lines with the meanings and line numbers of `replies`, which match the texts of [`report`].
///
/// # Errors
/// No memory.
pub(super) fn short(replies: &Replies) -> Result<Replies, OutOfMemory> {
    let mut text = String::new();
    let mut at = 1;
    for MatchedLine { line, meaning } in replies.lines() {
        text.extend(std::iter::repeat_n('\n', line.saturating_sub(at) as usize));
        at = line + 1;
        let meaning = match meaning {
            Meaning::Limit => "limit".to_string(),
            Meaning::Rate => "rate".to_string(),
            Meaning::Nothing => "nothing".to_string(),
            Meaning::Pause(secs) => format!("pause {secs}"),
        };
        text.push_str(&format!("* \"{}\" {meaning}\n", short_reply(line)));
    }
    Ok(Replies::parse(text.as_bytes())?.0)
}

/// Whether a limit learns from this verdict: too many at once, no connection, or a connection that died.
pub(super) fn is_objection(seen: DeliveryVerdict) -> bool {
    matches!(
        seen,
        DeliveryVerdict::TooMany(_) | DeliveryVerdict::ConnectFailed | DeliveryVerdict::Died(_)
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use qpatch_gate::report;

    /// The text as qmail-send's logsafe writes it, after qmail-rspawn.
    fn logged(text: &str) -> Vec<u8> {
        let bytes = text.bytes().map(|byte| match byte {
            b'\n' => b'/',
            b' ' => b'_',
            byte @ 33..=126 => byte,
            _ => b'_',
        });
        bytes.collect()
    }

    /// The short report means by the short lines what the operator's line means.
    #[test]
    fn short_reports_mean_what_the_operator_said() {
        let text = b"# lines\n450 \"slow down\" rate\n\n451 * limit\n4.7.9 * pause 60\n452 * nothing\n550 \"blocked\" pause 99\n";
        let (replies, problems) = Replies::parse(text).unwrap();
        assert!(problems.is_empty(), "{problems:?}");
        let short = short(&replies).unwrap();
        assert!(short.lines().eq(replies.lines()));
        let reader = ReportReader { own: Own::unknown(), replies: &short };
        for (line, end, reply) in [
            (2, End::Deferral, "450 Slow down"),
            (4, End::Deferral, "451 x"),
            (5, End::Deferral, "421 4.7.9 x"),
            (6, End::Deferral, "452 too many connections"),
            (7, End::Failure, "550 you are blocked"),
        ] {
            for words in [
                "Connected to 192.0.2.1 but greeting failed.",
                "192.0.2.1 failed after I sent the message.",
            ] {
                let text = logged(&format!("{words}\nRemote host said: {reply}\n"));
                let found = of_log(end, &text, &replies);
                assert_eq!(found.rule.map(|rule| rule.line), Some(line), "{reply}");
                assert_eq!(reader.classify(&report(&found)), found, "{reply}");
            }
        }
    }

    #[track_caller]
    fn check(end: End, text: &str, seen: DeliveryVerdict, peer: &str) {
        let found = of_log(end, &logged(text), &Replies::default());
        let peer = (!peer.is_empty()).then(|| peer.parse().unwrap());
        assert_eq!(found, DeliveryReport { seen, peer, rule: None }, "{text:?}");
        assert_eq!(report::classify(&report(&found)), found, "{text:?}");
    }

    #[test]
    fn reports_come_back_from_the_log() {
        let ip = "192.0.2.1";
        check(
            End::Success,
            "192.0.2.1 accepted message.\nRemote host said: 250 2.0.0 ok a/b_c\n",
            DeliveryVerdict::Accepted,
            ip,
        );
        check(
            End::Success,
            "2001:db8::1 accepted message.\n",
            DeliveryVerdict::Accepted,
            "2001:db8::1",
        );
        check(
            End::Deferral,
            "Connected to 192.0.2.1 but greeting failed.\nRemote host said: 421 4.7.0 see https://x.example/421\n",
            DeliveryVerdict::TooMany(Sent::No),
            ip,
        );
        check(
            End::Deferral,
            "192.0.2.1 does not like recipient.\nRemote host said: 421 4.3.2 too many connections\nGiving up on 192.0.2.1.\n",
            DeliveryVerdict::TooMany(Sent::Envelope),
            ip,
        );
        check(
            End::Deferral,
            "192.0.2.1 does not like recipient.\nRemote host said: 450 4.2.0 Greylisted, /Giving up on 10.0.0.1.\n\
             Giving up on 192.0.2.1.\n",
            DeliveryVerdict::Deferred,
            ip,
        );
        check(
            End::Failure,
            "192.0.2.1 does not like recipient.\nRemote host said: 550 421 no\nGiving up on 192.0.2.1.\n",
            DeliveryVerdict::Failed,
            ip,
        );
        check(
            End::Deferral,
            "192.0.2.1 failed after I sent the message.\nRemote host said: 451 4.7.500 Server busy\n",
            DeliveryVerdict::TooMany(Sent::Yes),
            ip,
        );
        check(
            End::Deferral,
            "Connected to 192.0.2.1 but connection died. (#4.4.2)\n",
            DeliveryVerdict::Died(Sent::No),
            ip,
        );
        check(
            End::Deferral,
            "Connected to 192.0.2.1 but connection died. Possible duplicate! (#4.4.2)\n",
            DeliveryVerdict::Died(Sent::Yes),
            ip,
        );
        check(
            End::Deferral,
            "Sorry, I wasn't able to establish an SMTP connection. (#4.4.1)\n",
            DeliveryVerdict::ConnectFailed,
            "",
        );
        check(
            End::Failure,
            "Sorry, I couldn't find any host named x. (#5.1.2)\n",
            DeliveryVerdict::Nothing,
            "",
        );
        check(End::Success, "421 I am a server\n", DeliveryVerdict::Nothing, "");
        check(End::Mangled, "", DeliveryVerdict::Nothing, "");
        check(
            End::Busy,
            "b.example is at its limit of 2 deliveries; not tried. (#4.4.5)\n",
            DeliveryVerdict::Nothing,
            "",
        );
        check(
            End::Refused,
            "b.example refused this one beside 11 (limit 20); to be tried again: Connected to 192.0.2.1 but greeting \
             failed./Remote host said: 4 (#4.4.5)\n",
            DeliveryVerdict::TooMany(Sent::No),
            ip,
        );
    }

    #[test]
    fn odd_texts_are_read_without_a_panic() {
        for text in
            ["", "/", "_", "/Giving_up_on_", "Giving_up_on_./", "/Giving_up_on_/Giving_up_on_"]
        {
            for end in [End::Success, End::Failure, End::Deferral, End::Refused] {
                let found = of_log(end, text.as_bytes(), &Replies::default());
                assert_eq!(report::classify(&report(&found)), found, "{end:?} {text}");
            }
        }
    }
}
