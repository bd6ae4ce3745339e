//! What a line of qmail-send's log tells of a report.
//!
//! qmail-send writes the report's text with `_` for spaces and for what cannot be printed, and `/` for line feeds; so
//! which of these a server itself had written is not known. It does not matter to the gate, which reads digits and
//! words. What qmail-rspawn does before is undone here: it puts the text of the recipient's line before that of the
//! message's.

use std::net::IpAddr;

use qpatch_gate::report::{self, Report, Seen, Sent};

use crate::qmail::log::event::{self, End};

/// What the log says of a delivery's server. Nothing, where it says nothing.
pub(super) fn of_log(end: End, text: &[u8]) -> Report {
    let nothing = Report { seen: Seen::Nothing, peer: None, rule: None };
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
        End::Success => report::classify(&[b"r\0K", &plain(text)[..], b"\0"].concat()),
        End::Failure => report::classify(&lines(&plain(text), [b'h', b'D'])),
        End::Deferral => report::classify(&lines(&plain(text), [b's', b'Z'])),
        End::Refused => {
            let said = event::refused(text).unwrap_or_default();
            match report::classify(&lines(&plain(said), [b's', b'Z'])) {
                said @ Report { seen: Seen::TooMany(_) | Seen::ConnectFailed, .. } => said,
                // The gate cuts texts, and it knew.
                cut => Report { seen: Seen::TooMany(Sent::No), ..cut },
            }
        }
        End::Mangled | End::Busy | End::Suspended => nothing,
    }
}

/// The report of a delivery that failed. If qmail-remote gave up because of the recipient, that has a line of its own.
fn lines(text: &[u8], [of_recipient, of_message]: [u8; 2]) -> Vec<u8> {
    const GAVE_UP: &[u8] = b"\nGiving up on ";
    // The last one: the server's words are before it.
    let at = text.windows(GAVE_UP.len()).rposition(|window| window == GAVE_UP);
    match at {
        Some(at) => [&[of_recipient][..], &text[..=at], b"\0D", &text[at + 1..], b"\0"].concat(),
        None => [&[of_message][..], text, b"\0"].concat(),
    }
}

/// A report that says the same, in few words: what a simulation keeps until the delivery ends.
pub(super) fn report(said: &Report) -> Vec<u8> {
    let peer = said.peer.map_or_else(|| "somebody".to_string(), |peer: IpAddr| peer.to_string());
    let text = match said.seen {
        Seen::Accepted => format!("r\0K{peer} accepted message.\n\0"),
        Seen::TooMany(Sent::No) => {
            format!(
                "ZConnected to {peer} but greeting failed.\nRemote host said: 421 too many connections\n\0"
            )
        }
        Seen::TooMany(Sent::Envelope) => {
            format!(
                "ZConnected to {peer} but sender was rejected.\nRemote host said: 421 too many connections\n\0"
            )
        }
        Seen::TooMany(Sent::Yes) => {
            format!(
                "Z{peer} failed after I sent the message.\nRemote host said: 421 too many connections\n\0"
            )
        }
        Seen::ConnectFailed => {
            "ZSorry, I wasn't able to establish an SMTP connection. (#4.4.1)\n\0".to_string()
        }
        Seen::Died(Sent::No | Sent::Envelope) => {
            format!("ZConnected to {peer} but connection died. (#4.4.2)\n\0")
        }
        Seen::Died(Sent::Yes) => {
            format!("ZConnected to {peer} but connection died. Possible duplicate! (#4.4.2)\n\0")
        }
        Seen::Deferred => {
            format!(
                "ZConnected to {peer} but sender was rejected.\nRemote host said: 450 later\n\0"
            )
        }
        Seen::Failed => format!("DGiving up on {peer}.\n\0"),
        Seen::Nothing => "Znothing\n\0".to_string(),
    };
    text.into_bytes()
}

/// Whether it is what limits learn from: too many, or nobody there.
pub(super) fn is_objection(seen: Seen) -> bool {
    matches!(seen, Seen::TooMany(_) | Seen::ConnectFailed | Seen::Died(_))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As qmail-send's logsafe does it, behind what qmail-rspawn makes of a report.
    fn logged(text: &str) -> Vec<u8> {
        let bytes = text.bytes().map(|byte| match byte {
            b'\n' => b'/',
            b' ' => b'_',
            byte @ 33..=126 => byte,
            _ => b'_',
        });
        bytes.collect()
    }

    #[track_caller]
    fn check(end: End, text: &str, seen: Seen, peer: &str) {
        let found = of_log(end, &logged(text));
        let peer = (!peer.is_empty()).then(|| peer.parse().unwrap());
        assert_eq!(found, Report { seen, peer, rule: None }, "{text:?}");
        assert_eq!(report::classify(&report(&found)), found, "{text:?}");
    }

    #[test]
    fn reports_come_back_from_the_log() {
        let ip = "192.0.2.1";
        check(
            End::Success,
            "192.0.2.1 accepted message.\nRemote host said: 250 2.0.0 ok a/b_c\n",
            Seen::Accepted,
            ip,
        );
        check(End::Success, "2001:db8::1 accepted message.\n", Seen::Accepted, "2001:db8::1");
        check(
            End::Deferral,
            "Connected to 192.0.2.1 but greeting failed.\nRemote host said: 421 4.7.0 see https://x.example/421\n",
            Seen::TooMany(Sent::No),
            ip,
        );
        check(
            End::Deferral,
            "192.0.2.1 does not like recipient.\nRemote host said: 421 4.3.2 too many connections\nGiving up on 192.0.2.1.\n",
            Seen::TooMany(Sent::Envelope),
            ip,
        );
        check(
            End::Deferral,
            "192.0.2.1 does not like recipient.\nRemote host said: 450 4.2.0 Greylisted, /Giving up on 10.0.0.1.\n\
             Giving up on 192.0.2.1.\n",
            Seen::Deferred,
            ip,
        );
        check(
            End::Failure,
            "192.0.2.1 does not like recipient.\nRemote host said: 550 421 no\nGiving up on 192.0.2.1.\n",
            Seen::Failed,
            ip,
        );
        check(
            End::Deferral,
            "192.0.2.1 failed after I sent the message.\nRemote host said: 451 4.7.500 Server busy\n",
            Seen::TooMany(Sent::Yes),
            ip,
        );
        check(
            End::Deferral,
            "Connected to 192.0.2.1 but connection died. (#4.4.2)\n",
            Seen::Died(Sent::No),
            ip,
        );
        check(
            End::Deferral,
            "Connected to 192.0.2.1 but connection died. Possible duplicate! (#4.4.2)\n",
            Seen::Died(Sent::Yes),
            ip,
        );
        check(
            End::Deferral,
            "Sorry, I wasn't able to establish an SMTP connection. (#4.4.1)\n",
            Seen::ConnectFailed,
            "",
        );
        check(
            End::Failure,
            "Sorry, I couldn't find any host named x. (#5.1.2)\n",
            Seen::Nothing,
            "",
        );
        check(End::Success, "421 I am a server\n", Seen::Nothing, "");
        check(End::Mangled, "", Seen::Nothing, "");
        check(
            End::Busy,
            "b.example is at its limit of 2 deliveries; not tried. (#4.4.5)\n",
            Seen::Nothing,
            "",
        );
        check(
            End::Refused,
            "b.example refused this one beside 11 (limit 20); to be tried again: Connected to 192.0.2.1 but greeting \
             failed./Remote host said: 4 (#4.4.5)\n",
            Seen::TooMany(Sent::No),
            ip,
        );
    }

    #[test]
    fn no_text_is_too_odd() {
        for text in
            ["", "/", "_", "/Giving_up_on_", "Giving_up_on_./", "/Giving_up_on_/Giving_up_on_"]
        {
            for end in [End::Success, End::Failure, End::Deferral, End::Refused] {
                let found = of_log(end, text.as_bytes());
                assert_eq!(report::classify(&report(&found)), found, "{end:?} {text}");
            }
        }
    }
}
