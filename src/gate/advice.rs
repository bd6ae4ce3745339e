//! What a problem of a control file means, and what can be done about it.

use std::io;
use std::path::Path;

use qpatch_gate::problem::Kind;
use qpatch_gate::regex::Fault;
use qpatch_gate::table;

use crate::error::Error;

/// What a problem means. For an error of the operating system: its message.
pub(super) fn meaning(kind: Kind) -> String {
    match kind {
        Kind::Unreadable(number @ 1..) => {
            format!("cannot be read: {}", io::Error::from_raw_os_error(number))
        }
        kind => kind.to_string(),
    }
}

/// The error about a file that cannot be used, with advice.
pub(super) fn unusable(path: &Path, kind: Kind) -> Error {
    Error::new(path.display(), meaning(kind), advice(kind))
}

/// What can be done about a problem.
pub(super) fn advice(kind: Kind) -> String {
    let text = match kind {
        Kind::NoLimit => "write domain:limit; a comment begins with # in a line of its own",
        Kind::LimitNotNumber => {
            "write digits only, without spaces; a comment needs a line of its own"
        }
        Kind::LimitTooLarge => {
            return format!(
                "write nothing behind the colon for no limit, or a number up to {}",
                table::LIMIT_MAX
            );
        }
        Kind::GroupEmpty => "write the group's name, or leave out the second colon",
        Kind::GroupCharacter(_) => "a group's name has letters, digits and punctuation",
        Kind::GroupTooLong => "give the group a shorter name",
        Kind::TooManyGroups => "let more domains share a group",
        Kind::TooManyFields => {
            "a limit counts for one domain; an IPv6 address needs brackets: [2001:db8::25]:20"
        }
        Kind::UnknownWord => "write learn, fixed or a rate, or leave out the third colon",
        Kind::LearningTwice => "write one of learn and fixed",
        Kind::RateNumber | Kind::RateUnit => {
            "write a number, a slash and a unit: 20/s, 600/m, 5000/h, 50000/d, or 1/10s for one in ten seconds"
        }
        Kind::RateTime => "write a time of at most an hour; for longer ones there are /h and /d",
        Kind::RateZero => "write the limit 0 to hold everything, or leave the rate out",
        Kind::RateTooHigh => "leave the rate out: qmail-send does not start as many",
        Kind::RateTwice => "write one rate of each unit: all of them hold",
        Kind::TooManyRates => "let the domains share a group, or one suffix such as .example.com",
        Kind::RangeAddress => "write an address, a slash and the number of bits; IPv6 in brackets",
        Kind::RangeLength(_) => "write how many bits all addresses of the range have in common",
        Kind::RangeHostBits => "write the lowest address of the range",
        Kind::SiteLine => "qpatch gate sites writes this file: run it again",
        Kind::TooManySites => "let fewer domains match lines with mx:",
        Kind::ReplyFields => {
            "write a code, a pattern and a meaning, as in: 421 /too many (connections|sessions)/ limit"
        }
        Kind::ReplyCode => "write the code of the replies that are meant, with x for any number",
        Kind::PatternStart => "put the text in quotes, or a regular expression between slashes",
        Kind::PatternOpen => {
            "a quote or slash that is part of the pattern has a backslash before it"
        }
        Kind::PatternEnd => {
            "a slash in a pattern is written \\/; case never matters, so there are no flags"
        }
        Kind::Pattern(fault) => fault_advice(fault),
        Kind::ReplyMeaning => {
            "limit: too many at once; rate: too fast; nothing: a plain deferral; pause 600: start nothing for 600 s"
        }
        Kind::PauseSeconds => "write whole seconds",
        Kind::ReplyTail => "write one meaning in a line",
        Kind::TooManyReplies => "let fewer lines, or shorter patterns, say the same",
        Kind::ReplyNeverReached(_) => "the first line that fits counts: move it up, or remove it",
        Kind::ReplyPermanent => "write a code that begins with 4, or a pause",
        Kind::DomainTooLong => "no name server has such a name: remove the line",
        Kind::DomainCharacter(b'@') => "write the domain only, without a user and an @",
        Kind::DomainCharacter(_) => "write the domain only, from the first column on",
        Kind::DomainNotAscii => "write the domain's xn-- form, which mail carries",
        Kind::DomainStar => {
            "write .example.com:LIMIT for all below example.com; nothing stands for a part of a name"
        }
        Kind::DomainAll => "write :LIMIT for all other domains",
        Kind::DomainLiteral => {
            "write an address, as in [192.0.2.1]:20 and [2001:db8::25]:20, or no brackets"
        }
        Kind::ExchangerAll => {
            "write its name, as in mx:mx.example.com:LIMIT, or mx:.example.com:LIMIT for all below example.com"
        }
        Kind::DomainMark => "remove it: files that were put together had one each",
        Kind::DomainNotHost(byte) if !matches!(byte, b'|' | b';' | b',') => {
            "write the name only, as mail carries it"
        }
        Kind::DomainNotHost(_) => {
            "write the name only: what a route has behind it does not belong here, where others can read it"
        }
        Kind::Utf16 => "save it as plain text, or as UTF-8",
        Kind::DomainRoot => "leave out the dot",
        Kind::DomainEmptyLabel => {
            "leave out one of the dots; a dot before a domain means all below it"
        }
        Kind::Duplicate(_) => "remove one of the two lines",
        Kind::GroupDisagrees(_) => "write the same limit in all lines of the group",
        Kind::LearningDisagrees(_) | Kind::RatesDisagree(_) => {
            "write the same fourth field in all lines of the group"
        }
        Kind::AboveConcurrencyRemote(_) => {
            "raise control/concurrencyremote and restart qmail-send, or lower the limit"
        }
        Kind::NotRegular => "put a regular file there",
        Kind::TooBig(..) => "is it the right file? A million domains need about 25 MB",
        Kind::Unreadable(libc::EACCES | libc::EPERM) => "run qpatch as root, or let it be read",
        Kind::RouteNoColon => "write host:relay, host:relay:port or host:",
        Kind::RouteTooLong => "no name server has such a name: remove the line",
        Kind::RouteStar | Kind::RouteAll | Kind::RouteNotHost(_) => {
            "write :RELAY for all other hosts, .example.com:RELAY for those below example.com"
        }
        Kind::RouteMark => "save the file without it, as plain text",
        Kind::RouteUnclear => {
            "write host:relay, host:relay:port or host:; an IPv6 address in brackets"
        }
        Kind::TooManyRoutes => "the domains of these routes count by themselves",
        Kind::NotNumber => "write a number into control/concurrencyremote",
        Kind::CountsAlone(_) => "make setup check in the patched tree, while qmail is stopped",
        Kind::SharedFull => "end the qmail-rspawn of a qmail-send that is gone",
        Kind::LeaseOver(_) => "see whether qpatch gate share runs, and what it says",
        Kind::ProcessesHidden => "mount /proc without hidepid",
        Kind::SharedCrowded => "raise limits that are far below what the servers take",
        Kind::OutOfMemory => "make room, then run it again",
        Kind::Unwritable(_) => "make it writable for qmailr, and room on its disk",
        Kind::Changing => "end what writes it all the time",
        Kind::Empty => {
            "to have no limits, remove it; a comment line makes a table without limits, too"
        }
        Kind::EarlierCounts | Kind::PartCounts(_) => "correct the file",
        Kind::KeptNotWhole => "the gate rewrites it with the next good control file",
        Kind::More(_) => "correct the others first",
        Kind::Unreadable(_) => "",
    };
    text.to_string()
}

fn fault_advice(fault: Fault) -> &'static str {
    match fault {
        Fault::Empty => "write * for any text",
        Fault::GroupOpen | Fault::GroupNotOpen => {
            "a parenthesis that is meant as such is written \\( or \\)"
        }
        Fault::ClassOpen | Fault::ClassInClass => "a bracket that is meant as such is written \\[",
        Fault::ClassRange => "a hyphen that is meant as such is written \\-",
        Fault::NothingToRepeat => {
            "a character that is meant as such has a backslash before it: \\* \\+ \\?"
        }
        Fault::Braces => "a brace that is meant as such is written \\{",
        Fault::Backslash => "a backslash that is meant as such is written \\\\",
        Fault::Escape(_) => {
            "\\d \\s \\w \\b and their capitals have a meaning, and punctuation behind a backslash means itself"
        }
        Fault::NotSupported => "say it in several lines: the first one that fits counts",
        Fault::Character(_) => "write a dot for any character",
        Fault::RepeatTooLarge | Fault::RepeatOrder | Fault::TooLong | Fault::TooDeep => {
            "write a shorter pattern"
        }
    }
}
