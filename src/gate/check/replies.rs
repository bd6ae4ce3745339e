//! `qpatch gate check --reply`: how the gate would take a reply of a server.

use std::io::{self, Write};

use qpatch_gate::echo::Own;
use qpatch_gate::replies::{MatchedLine, Meaning, Replies};
use qpatch_gate::report::{DeliveryVerdict, ReportReader, Stage};
use serde::Serialize;

use crate::gate::text::printable;

/// Parses the argument of --reply: a reply, or a line of qmail-send's log that has one.
pub(super) fn reply_argument(value: &str) -> Result<String, String> {
    let reply = if let Some((_, reply)) = value.split_once("Remote_host_said:_") {
        of_log(reply)
    } else if let Some((_, reply)) = value.split_once("Remote host said: ") {
        reply.to_string()
    } else {
        value.to_string()
    };
    let code: String = reply.chars().take(3).collect();
    let is_refusal = matches!(code.parse(), Ok(400u16..=599)) && code.len() == 3;
    let ends = matches!(reply.as_bytes().get(3), None | Some(b' ' | b'-' | b'\n'));
    if is_refusal && ends {
        return Ok(reply.trim_end().to_string());
    }
    Err("this is not a refusal: a refusal begins with a code from 400 to 599, as in \
         421 4.7.0 Too many connections"
        .to_string())
}

/// The reply as the server sent it. qmail-send writes `_` for a space and `/` for a line feed, and qmail-remote adds a
/// line of its own after a recipient's.
fn of_log(reply: &str) -> String {
    let reply = reply.split("/Giving_up_on_").next().unwrap_or_default();
    reply.replace('_', " ").replace('/', "\n")
}

/// What one reply means.
#[derive(Debug, Serialize)]
pub(super) struct ReplyReading {
    reply: String,
    /// The text that the patterns are matched with.
    read_as: String,
    meanings: Vec<StageReading>,
}

/// What a reply means in these stages of a session.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct StageReading {
    at: Vec<&'static str>,
    #[serde(flatten)]
    means: ReplyEffect,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct ReplyEffect {
    /// `too many`, `too fast`, `deferral`, or `permanent`.
    meaning: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pause_secs: Option<u16>,
    /// The line of concurrencyreplies that says so; 0: none does.
    line: u32,
}

/// Reads each of `texts` as the gate would.
pub(super) fn read_replies(replies: &Replies, texts: &[String]) -> Vec<ReplyReading> {
    let reader = ReportReader { own: Own::unknown(), replies };
    texts.iter().map(|text| read_reply(&reader, text)).collect()
}

fn read_reply(reader: &ReportReader<'_>, reply: &str) -> ReplyReading {
    let bytes = reply.as_bytes();
    let stages =
        [("greeting", Stage::Start), ("envelope", Stage::Envelope), ("message", Stage::Message)];
    let mut meanings: Vec<StageReading> = Vec::new();
    for (name, stage) in stages {
        let means = match bytes[0] {
            b'5' => means("permanent", reader.permanent(bytes)),
            _ => match reader.temporary(stage, bytes) {
                (
                    DeliveryVerdict::TooMany(_),
                    rule @ Some(MatchedLine { meaning: Meaning::Rate, .. }),
                ) => means("too fast", rule),
                (DeliveryVerdict::TooMany(_), rule) => means("too many", rule),
                (_, rule) => means("deferral", rule),
            },
        };
        match meanings.iter_mut().find(|part| part.means == means) {
            Some(part) => part.at.push(name),
            None => meanings.push(StageReading { at: vec![name], means }),
        }
    }
    let read_as = reader.read_as(bytes).unwrap_or_default();
    let read_as = String::from_utf8_lossy(&read_as).into_owned();
    ReplyReading { reply: reply.to_string(), read_as, meanings }
}

fn means(meaning: &'static str, rule: Option<MatchedLine>) -> ReplyEffect {
    let pause_secs = match rule {
        Some(MatchedLine { meaning: Meaning::Pause(secs), .. }) => Some(secs),
        _ => None,
    };
    ReplyEffect { meaning, pause_secs, line: rule.map_or(0, |rule| rule.line) }
}

/// Prints the readings as text.
pub(super) fn print(out: &mut dyn Write, readings: &[ReplyReading]) -> io::Result<()> {
    for ReplyReading { read_as, meanings, .. } in readings {
        writeln!(out, "\n{}", printable(read_as))?;
        for StageReading { at, means } in meanings {
            let place = match at[..] {
                [_, _, _] => "anywhere",
                ["greeting"] => "at the greeting",
                ["envelope", "message"] => "later",
                _ => "at other times",
            };
            let text = match means.meaning {
                "too many" => "too many or too fast: a limit that learns goes down",
                "too fast" => {
                    "too fast: no limit changes, and starts are slowed by pauses of 1 to 32 s"
                }
                "permanent" => "refused for good: no limit changes",
                _ => "deferred: no limit changes",
            };
            write!(out, "  {place}: {text}")?;
            if let Some(secs) = means.pause_secs {
                write!(out, ", and nothing more is started for {secs} s")?;
            }
            match means.line {
                0 => writeln!(out, " (the gate's own reading)")?,
                line => writeln!(out, " (concurrencyreplies:{line})")?,
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reply_can_be_given_as_a_line_of_the_log() {
        let taken = |text: &str| reply_argument(text).unwrap();
        assert_eq!(taken("421 4.7.0 Too many\n"), "421 4.7.0 Too many");
        assert_eq!(taken("421"), "421");
        assert_eq!(
            taken("Connected_to_192.0.2.1_but_greeting_failed./Remote_host_said:_421_Too_many/"),
            "421 Too many"
        );
        assert_eq!(
            taken(
                "192.0.2.1_does_not_like_recipient./Remote_host_said:_450-4.2.0_a/450_4.2.0_b/Giving_up_on_192.0.2.1./"
            ),
            "450-4.2.0 a\n450 4.2.0 b"
        );
        assert_eq!(taken("Remote host said: 450 a_b"), "450 a_b");
        for wrong in ["", "42", "250 ok", "too many", "4211", "421x", "\u{e9}21", "42\u{e9}"] {
            assert!(reply_argument(wrong).is_err(), "{wrong}");
        }
    }
}
