//! Parses what qmail-send says in a line, without the time and other words that a logger puts before it.
//!
//! The format was read in the sources of qmail-1.01, qmail-1.03, netqmail, notqmail, trees with supplemental
//! channels, and IndiMail. IndiMail's qmail-send serves one of several queues, and ends its lines with the name of
//! the queue; a dot and a name of the instance (QIDENT) may follow a delivery's number. In addresses and reports,
//! qmail-send writes `_` for spaces, `%` and bytes that are not printable, and `/` for a line feed. So the first
//! space ends them.

/// What a line says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event<'a> {
    /// A delivery has been handed to a spawner.
    Start {
        /// Its number. It counts from 1 since qmail-send started.
        number: u64,
        /// The message's number in the queue.
        message: u64,
        /// `local`, `remote`, or the name of a supplemental channel, which goes to a qmail-rspawn, too.
        channel: &'a [u8],
        /// The address.
        recipient: &'a [u8],
    },
    /// A delivery has been reported.
    End {
        /// Its number.
        number: u64,
        /// How.
        end: End,
        /// What the report says.
        text: &'a [u8],
    },
    /// How many deliveries run, and how many may.
    Status(Status<'a>),
    /// A message has been found in queue/todo.
    NewMessage {
        /// Its number.
        message: u64,
    },
    /// A message is done.
    EndMessage {
        /// Its number.
        message: u64,
    },
    /// A bounce has been queued.
    Bounce,
    /// Something is wrong: a warning or an alert.
    Complaint,
    /// qmail-send has exited.
    Exiting,
    /// Another line of qmail-send.
    Other,
}

/// The figures of a status line: for each channel how many run, and how many may.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Status<'a> {
    figures: &'a [u8],
}

impl<'a> Status<'a> {
    /// Returns the channels, each with how many deliveries run on it and how many may.
    pub fn channels(self) -> impl Iterator<Item = (&'a [u8], u32, u32)> {
        let words = self.figures.split(|&byte| byte == b' ').filter(|word| !word.is_empty());
        let pairs = words.clone().zip(words.skip(1));
        pairs.filter_map(|(channel, figures)| {
            let (running, rest) = number(figures)?;
            let (limit, rest) = number(rest.strip_prefix(b"/")?)?;
            let small = |value| u32::try_from(value).ok();
            rest.is_empty().then_some((channel, small(running)?, small(limit)?))
        })
    }

    /// Returns how many may run on this channel.
    #[must_use]
    pub fn limit(self, channel: &[u8]) -> Option<u32> {
        self.channels().find(|&(name, ..)| name == channel).map(|(_, _, limit)| limit)
    }
}

/// How a delivery ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The mail was taken.
    Success,
    /// It bounces.
    Failure,
    /// It is retried.
    Deferral,
    /// qmail-send did not understand the report.
    Mangled,
    /// A gate answered that it was not tried. It starts again when the gate calls it.
    Busy,
    /// A gate answered that it was not tried, because its server does not answer or by the operator's rule. It is
    /// retried at its own time.
    Suspended,
    /// A gate answered that the server refused it because there were too many. It starts again when the gate calls it.
    Refused,
}

/// How long a gate held a delivery, and how long it ran then, as the gate says; in microseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HoldTimes {
    /// Before it started.
    pub held_us: u64,
    /// From its start to its end.
    pub ran_us: u64,
}

/// An event, and the qmail-send that it is from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LoggedEvent<'a> {
    /// What happened.
    pub event: Event<'a>,
    /// The names of the queue and of the instance; empty if the line has none. The numbers of deliveries and messages
    /// are unique within them.
    pub queue: [&'a [u8]; 2],
}

/// Lines of qmail-send that are not about deliveries begin with one of these.
const OTHERS: [&[u8]; 14] = [
    b"info msg ",
    b"double bounce",
    b"triple bounce",
    b"bounce processor ",
    b"number of ",
    b"running",
    b"cannot start",
    b"local deliveries ",
    b"remote deliveries ",
    b"info: qmail-send",
    b"info: slowq-send",
    b"info: todo-proc",
    b"info: qmta-send",
    b"end of rereading",
];
const COMPLAINTS: [&[u8]; 3] = [b"warning:", b"alert:", b"warn:"];

/// Parses a line; `None` if it is not from qmail-send.
#[must_use]
pub fn parse(text: &[u8]) -> Option<LoggedEvent<'_>> {
    let plain = |event| Some(LoggedEvent { event, queue: [b"", b""] });
    if let Some(rest) = text.strip_prefix(b"starting delivery ") {
        let (number, instance, rest) = delivery(rest)?;
        let (message, rest) = self::number(rest.strip_prefix(b": msg ")?)?;
        let (channel, rest) = word(rest.strip_prefix(b" to ")?);
        let (recipient, queue) = word(rest);
        let is_channel = channel.first().is_some_and(u8::is_ascii_alphabetic);
        let event = Event::Start { number, message, channel, recipient };
        return is_channel.then_some(LoggedEvent { event, queue: [name(queue), instance] });
    }
    if let Some(rest) = text.strip_prefix(b"delivery ") {
        let (number, instance, rest) = delivery(rest)?;
        let (end, text, queue) = end(rest.strip_prefix(b": ")?)?;
        let event = Event::End { number, end, text };
        return Some(LoggedEvent { event, queue: [name(queue), instance] });
    }
    if let Some(rest) = text.strip_prefix(b"status:") {
        let figures = rest.trim_ascii();
        let first = figures.split(|&byte| byte == b' ').next().unwrap_or_default();
        if first == b"exiting" {
            return plain(Event::Exiting);
        }
        let status = Status { figures };
        status.channels().next()?;
        // IndiMail's "... remote 3/20 delayed jobs=5 queue1 exitasap".
        let mut words = figures.rsplit(|&byte| byte == b' ').filter(|&word| word != b"exitasap");
        let is_name = |word: &&[u8]| !word.iter().any(|byte| matches!(byte, b'/' | b'=' | b'('));
        let queue = words.next().filter(is_name).unwrap_or_default();
        return Some(LoggedEvent { event: Event::Status(status), queue: [queue, b""] });
    }
    for (begin, is_new) in [(&b"new msg "[..], true), (b"end msg ", false)] {
        if let Some(rest) = text.strip_prefix(begin) {
            let (message, queue) = self::number(rest)?;
            let event =
                if is_new { Event::NewMessage { message } } else { Event::EndMessage { message } };
            // IndiMail's "end msg 7 qmail-send: queue1".
            return Some(LoggedEvent { event, queue: [name(queue), b""] });
        }
    }
    if text.starts_with(b"bounce msg ") {
        return plain(Event::Bounce);
    }
    if COMPLAINTS.iter().any(|complaint| text.starts_with(complaint)) {
        return plain(Event::Complaint);
    }
    // qmail-1.01. Later versions write a status line.
    if text == b"exiting" {
        return plain(Event::Exiting);
    }
    OTHERS.iter().any(|other| text.starts_with(other)).then(|| plain(Event::Other))?
}

/// Returns whether the first words of a line say that it is about a delivery, so that [`parse`] should understand it.
#[must_use]
pub fn is_meant_as_delivery(text: &[u8]) -> bool {
    text.strip_prefix(b"starting ")
        .unwrap_or(text)
        .strip_prefix(b"delivery ")
        .and_then(|rest| rest.first())
        .is_some_and(u8::is_ascii_digit)
}

/// Returns the decimal number at the start, and the rest.
pub(super) fn number(text: &[u8]) -> Option<(u64, &[u8])> {
    let end = text.iter().position(|byte| !byte.is_ascii_digit()).unwrap_or(text.len());
    let digits = std::str::from_utf8(&text[..end]).ok()?;
    Some((digits.parse().ok()?, &text[end..]))
}

/// Returns the number of a delivery, the name of the instance, if there is one, and the rest.
fn delivery(text: &[u8]) -> Option<(u64, &[u8], &[u8])> {
    let (number, rest) = number(text)?;
    let Some(named) = rest.strip_prefix(b".") else { return Some((number, b"", rest)) };
    let end = named.iter().position(|&byte| byte == b':').unwrap_or(named.len());
    Some((number, &named[..end], &named[end..]))
}

/// Returns the text before the first space, and the text behind it.
fn word(text: &[u8]) -> (&[u8], &[u8]) {
    let end = text.iter().position(|&byte| byte == b' ').unwrap_or(text.len());
    (&text[..end], text.get(end + 1..).unwrap_or_default())
}

/// Returns the last word: the name of a queue, if there is one.
fn name(text: &[u8]) -> &[u8] {
    text.trim_ascii().rsplit(|&byte| byte == b' ').next().unwrap_or_default()
}

fn end(text: &[u8]) -> Option<(End, &[u8], &[u8])> {
    const ENDS: [(&[u8], End); 3] = [
        (b"success: ", End::Success),
        (b"failure: ", End::Failure),
        (b"deferral: ", End::Deferral),
    ];
    if let Some(rest) = text.strip_prefix(b"report mangled") {
        let queue = rest.strip_prefix(b", will defer: ").unwrap_or_default();
        return Some((End::Mangled, b"", queue));
    }
    let (word, end) = ENDS.iter().find(|(word, _)| text.starts_with(word))?;
    let (said, queue) = self::word(&text[word.len()..]);
    let whole = without_end(without_times(said));
    // The gate ends its texts so; see gate/src/host/.
    let not_tried = [&b";_not_tried._(#4.4.5)"[..], b";_not_tried._(#4.4.1)"]
        .iter()
        .find_map(|ending| whole.strip_suffix(*ending));
    let end = match (end, not_tried) {
        (End::Deferral, Some(why)) if is_for_a_time(why) => End::Suspended,
        (End::Deferral, Some(_)) => End::Busy,
        (End::Deferral, None) if refused(said).is_some() => End::Refused,
        (end, _) => *end,
    };
    Some((end, said, queue))
}

/// Returns a report without its last line feed, which some forks do not log.
fn without_end(text: &[u8]) -> &[u8] {
    let text = text.trim_ascii_end();
    text.strip_suffix(b"/").unwrap_or(text)
}

/// Returns whether a text ends as `..._for_73_s`.
fn is_for_a_time(why: &[u8]) -> bool {
    let Some(rest) = why.strip_suffix(b"_s") else { return false };
    let digits = rest.iter().rev().take_while(|byte| byte.is_ascii_digit()).count();
    digits > 0 && rest[..rest.len() - digits].ends_with(b"_for_")
}

/// Returns the server's reply that a gate quotes if the server refused a delivery because there were too many.
#[must_use]
pub fn refused(text: &[u8]) -> Option<&[u8]> {
    const WORDS: &[u8] = b";_to_be_tried_again:_";
    let rest = without_end(without_times(text)).strip_suffix(b"_(#4.4.5)")?;
    // The key stands before it, and has no such word.
    const REFUSED: &[u8] = b"_refused_this_one";
    let start = rest.windows(REFUSED.len()).position(|window| window == REFUSED)?;
    let at = start + rest[start..].windows(WORDS.len()).position(|window| window == WORDS)?;
    rest.get(at + WORDS.len()..)
}

/// The last line of the report of a delivery that a gate held: `Held_3.214_s,_ran_2.001_s./`.
const HELD: &[u8] = b"Held_";

/// Returns how long a delivery was held, if the last line of its report says so.
#[must_use]
pub fn held(text: &[u8]) -> Option<HoldTimes> {
    let (_, line) = times_line(text)?;
    let (held_us, rest) = millis(line.strip_prefix(HELD)?)?;
    let (ran_us, rest) = millis(rest.strip_prefix(b"_s,_ran_")?)?;
    (rest == b"_s.").then_some(HoldTimes { held_us, ran_us })
}

/// Returns the report without the gate's line about how long it was held.
#[must_use]
pub fn without_times(text: &[u8]) -> &[u8] {
    match (held(text), times_line(text)) {
        (Some(_), Some((before, _))) => before,
        _ => text,
    }
}

/// Returns what comes before the last line of a report, and that line without its end.
fn times_line(text: &[u8]) -> Option<(&[u8], &[u8])> {
    let whole = without_end(text);
    let at = whole.iter().rposition(|&byte| byte == b'/').map_or(0, |at| at + 1);
    Some((&text[..at], &whole[at..]))
}

/// Returns a number such as `3.214`, in microseconds, and the rest.
fn millis(text: &[u8]) -> Option<(u64, &[u8])> {
    let (secs, rest) = number(text)?;
    let digits = rest.strip_prefix(b".")?;
    let (millis, rest) = number(digits.get(..3)?)?;
    let us = secs.checked_mul(1000)?.checked_add(millis)?.checked_mul(1000)?;
    rest.is_empty().then(|| (us, &digits[3..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(line: &str) -> Option<Event<'_>> {
        parse(line.as_bytes()).map(|said| said.event)
    }

    fn start<'a>(number: u64, channel: &'a str, recipient: &'a str) -> Event<'a> {
        let (channel, recipient) = (channel.as_bytes(), recipient.as_bytes());
        Event::Start { number, message: 345, channel, recipient }
    }

    #[track_caller]
    fn ended(line: &str) -> (u64, End, &str) {
        match event(line) {
            Some(Event::End { number, end, text }) => {
                (number, end, std::str::from_utf8(text).unwrap())
            }
            other => panic!("{line}: {other:?}"),
        }
    }

    #[test]
    fn lines_of_qmail_send() {
        for (line, event) in [
            (
                "starting delivery 12: msg 345 to remote u@a@b.example",
                start(12, "remote", "u@a@b.example"),
            ),
            ("starting delivery 12: msg 345 to local u@b", start(12, "local", "u@b")),
            ("starting delivery 12: msg 345 to sup3 u@b", start(12, "sup3", "u@b")),
            ("starting delivery 12: msg 345 to remote ", start(12, "remote", "")),
        ] {
            assert_eq!(
                parse(line.as_bytes()),
                Some(LoggedEvent { event, queue: [b"", b""] }),
                "{line}"
            );
        }
        assert_eq!(
            ended("delivery 1: success: 10.0.0.1_accepted_message./"),
            (1, End::Success, "10.0.0.1_accepted_message./")
        );
        assert_eq!(ended("delivery 2: failure: no/"), (2, End::Failure, "no/"));
        assert_eq!(ended("delivery 3: deferral: later/"), (3, End::Deferral, "later/"));
        assert_eq!(ended("delivery 4: report mangled, will defer"), (4, End::Mangled, ""));
        let Some(Event::Status(status)) = event("status: local 0/10 remote 3/255 exitasap") else {
            panic!("no status")
        };
        let channels: Vec<_> = status.channels().collect();
        assert_eq!(channels, [(&b"local"[..], 0, 10), (&b"remote"[..], 3, 255)]);
        assert_eq!((status.limit(b"remote"), status.limit(b"sup0")), (Some(255), None));
        assert_eq!(event("new msg 7"), Some(Event::NewMessage { message: 7 }));
        assert_eq!(event("end msg 7"), Some(Event::EndMessage { message: 7 }));
        assert_eq!(event("bounce msg 7 qp 8"), Some(Event::Bounce));
        assert_eq!(event("status: exiting"), Some(Event::Exiting));
        assert_eq!(event("exiting"), Some(Event::Exiting));
        for complaint in ["alert: oops", "warning: trouble opening remote/7; will try again later"]
        {
            assert_eq!(event(complaint), Some(Event::Complaint));
        }
        assert_eq!(event("info msg 1: bytes 2 from <> qp 3 uid 4"), Some(Event::Other));
        for foreign in [
            "",
            "delivery x: success: ",
            "starting delivery 1: msg 2",
            "starting delivery 1: msg 2 to ",
            "delivery 1: what",
            "status: fine",
            "new msg x",
        ] {
            assert_eq!(event(foreign), None, "{foreign}");
        }
    }

    #[test]
    fn lines_of_one_of_several_queues() {
        for (line, queue, instance) in [
            ("starting delivery 12: msg 345 to remote u@b.example queue1", "queue1", ""),
            ("starting delivery 12.mx: msg 345 to remote u@b.example queue1", "queue1", "mx"),
            ("delivery 12: success: ok/ queue1", "queue1", ""),
            ("delivery 12.mx: deferral: ok/ slowq", "slowq", "mx"),
            ("delivery 12: report mangled, will defer: queue1", "queue1", ""),
            ("new msg 345 queue1", "queue1", ""),
            ("end msg 345 qmail-send: queue1", "queue1", ""),
        ] {
            let said = parse(line.as_bytes()).unwrap();
            assert_eq!(said.queue, [queue.as_bytes(), instance.as_bytes()], "{line}");
            match said.event {
                Event::Start { recipient, .. } => assert_eq!(recipient, b"u@b.example"),
                Event::End { text, end: End::Success | End::Deferral, .. } => {
                    assert_eq!(text, b"ok/");
                }
                _ => {}
            }
        }
        let line = "status: local 1/10 (held) remote 2/20 (held) delayed jobs=5 queue1 exitasap";
        let Some(Event::Status(status)) = event(line) else { panic!("no status") };
        assert_eq!((status.limit(b"local"), status.limit(b"remote")), (Some(10), Some(20)));
        for line in [line, "status: local 1/10 remote 2/20 queue1"] {
            assert_eq!(parse(line.as_bytes()).unwrap().queue[0], b"queue1");
        }
        for line in ["status: local 1/10 remote 2/20 exitasap", "status: local 1/10 remote 2/20"] {
            assert_eq!(parse(line.as_bytes()).unwrap().queue[0], b"");
        }
    }

    #[test]
    fn answers_of_a_gate() {
        for (text, expected) in [
            ("b.example_is_at_its_limit_of_2_deliveries;_not_tried._(#4.4.5)/", End::Busy),
            ("group_g_is_closed_(limit_0);_not_tried._(#4.4.5)/", End::Busy),
            ("x_for_2_s.example_is_at_its_limit_of_1_delivery;_not_tried._(#4.4.5)/", End::Busy),
            (
                "b.example:_no_connection_to_its_server_succeeds,_none_is_tried_for_61_s;_not_tried._(#4.4.1)/",
                End::Suspended,
            ),
            (
                "b.example:_no_connection_to_its_server_succeeds,_one_at_a_time_is_tried;_not_tried._(#4.4.1)/",
                End::Busy,
            ),
            (
                "b.example_is_paused_by_control/concurrencyreplies:7;_not_tried._(#4.4.5)/",
                End::Busy,
            ),
            ("b.example_is_at_its_limit_of_2_deliveries;_not_tried._(#4.4.5)", End::Busy),
            (
                "b.example_is_paused_by_control/concurrencyreplies:7_for_1730_s;_not_tried._(#4.4.5)/",
                End::Suspended,
            ),
        ] {
            assert_eq!(ended(&format!("delivery 5: deferral: {text}")), (5, expected, text));
            let line = format!("delivery 5: deferral: {text} queue2");
            assert_eq!(ended(&line), (5, expected, text));
        }
        for how in ["_beside_11_(limit_20)", "_beside_11", "_(limit_20)", ""] {
            for times in ["", "Held_0.001_s,_ran_12.345_s./"] {
                let line = format!(
                    "delivery 6: deferral: b.example_refused_this_one{how};_to_be_tried_again:_Connected_to_\
                     10.0.0.1_but_greeting_failed./Remote_host_said:_421_x/_(#4.4.5)/{times}"
                );
                let (_, end, text) = ended(&line);
                assert_eq!(end, End::Refused, "{line}");
                let report =
                    &b"Connected_to_10.0.0.1_but_greeting_failed./Remote_host_said:_421_x/"[..];
                assert_eq!(refused(text.as_bytes()), Some(report));
                assert_eq!(held(text.as_bytes()).is_some(), !times.is_empty());
            }
        }
    }

    #[test]
    fn how_long_it_was_held() {
        let times = HoldTimes { held_us: 3_214_000, ran_us: 2_001_000 };
        for (text, report) in [
            ("ok/Held_3.214_s,_ran_2.001_s./", "ok/"),
            ("Held_3.214_s,_ran_2.001_s./", ""),
            // A fork that does not log the last line feed.
            ("ok/Held_3.214_s,_ran_2.001_s.", "ok/"),
            (
                "a/Held_9.999_s,_ran_9.999_s./Held_3.214_s,_ran_2.001_s./",
                "a/Held_9.999_s,_ran_9.999_s./",
            ),
        ] {
            assert_eq!(held(text.as_bytes()), Some(times), "{text}");
            assert_eq!(without_times(text.as_bytes()), report.as_bytes(), "{text}");
        }
        for text in [
            "",
            "/",
            "ok/",
            "ok/Held_3.214_s,_ran_2.001_s",
            "ok/Held_3.214_s,_ran_2.001_s./more/",
            "ok/Held_3.21_s,_ran_2.001_s./",
            "ok/Held_3.2145_s,_ran_2.001_s./",
            "ok/Held_3_s,_ran_2_s./",
            "ok/Held_99999999999999999999.000_s,_ran_2.001_s./",
            "ok/Held_18446744073709551615.000_s,_ran_2.001_s./",
        ] {
            assert_eq!(held(text.as_bytes()), None, "{text}");
            assert_eq!(without_times(text.as_bytes()), text.as_bytes());
        }
    }

    #[test]
    fn lines_that_should_be_about_deliveries() {
        for line in ["starting delivery 1: msg", "delivery 1: what", "delivery 1"] {
            assert!(is_meant_as_delivery(line.as_bytes()) && event(line).is_none(), "{line}");
        }
        for line in ["delivery of mail", "starting up", ""] {
            assert!(!is_meant_as_delivery(line.as_bytes()), "{line}");
        }
    }
}
