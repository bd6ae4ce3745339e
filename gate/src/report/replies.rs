//! control/concurrencyreplies: the operator's own rules for what replies mean. The first line that matches counts,
//! before the gate's own reading ([`crate::report`]).
//!
//! ```text
//! line     code blank+ pattern blank+ meaning (blank+ '#' anything)?
//! code     three of 0 to 9 and x, the first one 4 or 5 | class '.' subject '.' detail, each a number or x | '*'
//! pattern  '/' regular expression '/' | '"' literal '"' | '*'
//! meaning  'limit' | 'rate' | 'pause' blank+ seconds | 'nothing'
//! ```
//!
//! A pattern is searched for in the reply as [`crate::report::echo`] rewrites it: `421 4.7.0 too many connections from
//! <>`, in lower case and in one line. With any patterns, a reply costs at most its length times [`PROGRAMS_MAX`]
//! steps.

#![forbid(unsafe_code)]

pub use crate::control::limit::{PAUSE_MAX_SECS, PROGRAMS_MAX, RULES_MAX};
use crate::control::problem::{File, Kind, Problems};
use crate::control::table::{content_lines, is_utf16, without_mark};
use crate::report::echo::Words;
use crate::util::memory::{self, OutOfMemory};
use crate::util::regex::{self, Regex, contains};

/// The longest file in bytes: two kilobytes for each of [`RULES_MAX`] lines. The file is parsed between two deliveries,
/// and lines with [`PROGRAMS_MAX`] steps in all do not need more.
pub const FILE_MAX: u64 = 1 << 20;

/// What a reply means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Meaning {
    /// Too many at once: a limit that learns goes down.
    Limit,
    /// Too fast: nothing starts for 1 s, and for longer each time that the server repeats it, up to 32 s. No limit
    /// changes.
    Rate,
    /// Nothing starts for this many seconds, 1..=[`PAUSE_MAX_SECS`].
    Pause(u16),
    /// Nothing about how many or how fast.
    Nothing,
}

/// An enhanced status code (RFC 3463) without its class: subject and detail.
pub type Enhanced = (u16, u16);

/// The codes that a line is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Codes {
    Any,
    /// A number of three digits; None: any digit.
    Reply([Option<u8>; 3]),
    /// Class, subject, detail; None: any.
    Enhanced([Option<u16>; 3]),
}

impl Codes {
    fn parse(text: &[u8]) -> Option<Self> {
        if text == b"*" {
            return Some(Self::Any);
        }
        if let [a, b, c] = *text {
            let digit = |byte: u8| match byte {
                b'0'..=b'9' => Some(Some(byte - b'0')),
                b'x' | b'X' => Some(None),
                _ => None,
            };
            let code = [digit(a)?, digit(b)?, digit(c)?];
            return matches!(code[0], Some(4 | 5)).then_some(Self::Reply(code));
        }
        let mut parts = text.split(|&byte| byte == b'.').map(|part| match part {
            b"x" | b"X" => Some(None),
            [] => None,
            digits if digits.len() <= 3 && digits.iter().all(u8::is_ascii_digit) => {
                let number = |number: u16, digit: &u8| number * 10 + u16::from(digit - b'0');
                Some(Some(digits.iter().fold(0, number)))
            }
            _ => None,
        });
        let codes = [parts.next()??, parts.next()??, parts.next()??];
        let is_refusal = matches!(codes[0], Some(4 | 5) | None);
        (parts.next().is_none() && is_refusal).then_some(Self::Enhanced(codes))
    }

    fn has(self, code: u16, enhanced: Option<Enhanced>) -> bool {
        match self {
            Self::Any => true,
            Self::Reply(wanted) => {
                let digits = [code / 100, code / 10 % 10, code % 10];
                wanted
                    .iter()
                    .zip(digits)
                    .all(|(wanted, digit)| wanted.is_none_or(|wanted| u16::from(wanted) == digit))
            }
            Self::Enhanced(wanted) => enhanced.is_some_and(|(subject, detail)| {
                // RFC 2034: both codes are of one class.
                let parts = [code / 100, subject, detail];
                let same = |(wanted, part): (&Option<u16>, u16)| wanted.is_none_or(|w| w == part);
                wanted.iter().zip(parts).all(same)
            }),
        }
    }

    /// Whether it has all codes of the other one, as far as that is easy to find out.
    fn covers(self, other: Self) -> bool {
        match (self, other) {
            (Self::Any, _) => true,
            (Self::Reply(these), Self::Reply(those)) => {
                these.iter().zip(those).all(|(this, that)| this.is_none() || *this == that)
            }
            (Self::Enhanced(these), Self::Enhanced(those)) => {
                these.iter().zip(those).all(|(this, that)| this.is_none() || *this == that)
            }
            (Self::Reply(_) | Self::Enhanced(_), _) => false,
        }
    }

    /// Whether it is only for permanent refusals.
    fn is_permanent(self) -> bool {
        match self {
            Self::Any => false,
            Self::Reply(code) => code[0] == Some(5),
            Self::Enhanced(code) => code[0] == Some(5),
        }
    }
}

#[derive(Debug)]
enum ReplyPattern {
    Any,
    Literal(Vec<u8>),
    Regex(Regex),
}

impl ReplyPattern {
    fn is_in(&self, text: &[u8]) -> bool {
        match self {
            Self::Any => true,
            Self::Literal(literal) => contains(text, literal),
            Self::Regex(regex) => regex.is_match(text),
        }
    }
}

#[derive(Debug)]
struct ReplyRule {
    line: u32,
    codes: Codes,
    pattern: ReplyPattern,
    /// The pattern as it is in the file.
    source: Vec<u8>,
    meaning: Meaning,
}

/// A line that matched a reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MatchedLine {
    /// The line, from 1.
    pub line: u32,
    /// What it says.
    pub meaning: Meaning,
}

/// The file, parsed.
#[derive(Debug, Default)]
pub struct Replies {
    rules: Vec<ReplyRule>,
}

impl Replies {
    /// Reads the file. If there are errors among the problems, it must not be used.
    ///
    /// # Errors
    /// No memory.
    pub fn parse(text: &[u8]) -> Result<(Self, Problems), OutOfMemory> {
        let mut problems = Problems::new(File::Replies);
        let mut this = Self::default();
        let mut steps = 0;
        if is_utf16(text) {
            problems.add(0, 0, Kind::Utf16);
            return Ok((this, problems));
        }
        let text = without_mark(text);
        for (number, line) in content_lines(text) {
            let rule = match ReplyRule::parse(number, line) {
                Ok(rule) => rule,
                Err(Wrong::At(column, kind)) => {
                    problems.add(number, column, kind);
                    continue;
                }
                Err(Wrong::OutOfMemory) => return Err(OutOfMemory),
            };
            if let ReplyPattern::Regex(regex) = &rule.pattern {
                steps += regex.len();
            }
            if this.rules.len() >= RULES_MAX || steps > PROGRAMS_MAX {
                problems.add(number, 0, Kind::TooManyReplies);
                return Ok((this, problems));
            }
            let covers = |earlier: &&ReplyRule| {
                earlier.codes.covers(rule.codes)
                    && (matches!(earlier.pattern, ReplyPattern::Any)
                        || earlier.source == rule.source)
            };
            if let Some(earlier) = this.rules.iter().find(covers) {
                problems.add(number, 1, Kind::ReplyNeverReached(earlier.line));
            } else if rule.codes.is_permanent() && !matches!(rule.meaning, Meaning::Pause(_)) {
                problems.add(number, 1, Kind::ReplyPermanent);
            }
            memory::push(&mut this.rules, rule)?;
        }
        Ok((this, problems))
    }

    /// Whether it has no line with a meaning.
    #[inline]
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.rules.is_empty()
    }

    /// How many lines with a meaning it has.
    #[must_use]
    pub fn len(&self) -> usize {
        self.rules.len()
    }

    /// What each line says, whatever reply it is about.
    pub fn lines(&self) -> impl Iterator<Item = MatchedLine> + '_ {
        self.rules.iter().map(|rule| MatchedLine { line: rule.line, meaning: rule.meaning })
    }

    /// The first line that matches.
    pub(crate) fn find(
        &self,
        code: u16,
        enhanced: Option<Enhanced>,
        words: &Words,
    ) -> Option<MatchedLine> {
        let text = words.text();
        let fits = |rule: &&ReplyRule| rule.codes.has(code, enhanced) && rule.pattern.is_in(text);
        let rule = self.rules.iter().find(fits)?;
        Some(MatchedLine { line: rule.line, meaning: rule.meaning })
    }
}

/// Why a line has no meaning.
enum Wrong {
    /// The column, from 1.
    At(usize, Kind),
    OutOfMemory,
}

impl From<OutOfMemory> for Wrong {
    fn from(_: OutOfMemory) -> Self {
        Self::OutOfMemory
    }
}

/// What is left of a line, and how long it was.
struct Rest<'a> {
    text: &'a [u8],
    length: usize,
}

impl<'a> Rest<'a> {
    fn column(&self) -> usize {
        self.length - self.text.len() + 1
    }

    fn wrong<T>(&self, kind: Kind) -> Result<T, Wrong> {
        Err(Wrong::At(self.column(), kind))
    }

    fn skip_blanks(&mut self) {
        let blanks = self.text.iter().take_while(|byte| matches!(byte, b' ' | b'\t')).count();
        self.text = &self.text[blanks..];
    }

    fn take(&mut self, length: usize) -> &'a [u8] {
        let (taken, text) = self.text.split_at(length);
        self.text = text;
        taken
    }

    fn word(&mut self) -> &'a [u8] {
        self.skip_blanks();
        let is_blank = |byte: &u8| matches!(byte, b' ' | b'\t');
        self.take(self.text.iter().position(is_blank).unwrap_or(self.text.len()))
    }

    /// The text up to a delimiter without a backslash before it. A blank must follow the delimiter.
    fn delimited(&mut self, delimiter: u8) -> Result<&'a [u8], Wrong> {
        let column = self.column();
        self.take(1);
        let mut escaped = false;
        let end = self.text.iter().position(|&byte| {
            let ends = byte == delimiter && !escaped;
            escaped = byte == b'\\' && !escaped;
            ends
        });
        let Some(end) = end else { return Err(Wrong::At(column, Kind::PatternOpen)) };
        let inner = self.take(end);
        self.take(1);
        match self.text.first() {
            None | Some(b' ' | b'\t') => Ok(inner),
            Some(_) => self.wrong(Kind::PatternEnd),
        }
    }
}

impl ReplyRule {
    fn parse(line: u32, text: &[u8]) -> Result<Self, Wrong> {
        let mut rest = Rest { text, length: text.len() };
        rest.skip_blanks();
        let column = rest.column();
        let Some(codes) = Codes::parse(rest.word()) else {
            return Err(Wrong::At(column, Kind::ReplyCode));
        };
        rest.skip_blanks();
        let column = rest.column();
        let before = rest.text;
        let pattern = match rest.text.first() {
            Some(b'/') => {
                let inner = rest.delimited(b'/')?;
                let regex = Regex::new(inner).map_err(|error| match error {
                    regex::RegexError::At(at, fault) => {
                        Wrong::At(column + 1 + at, Kind::Pattern(fault))
                    }
                    regex::RegexError::OutOfMemory => Wrong::OutOfMemory,
                })?;
                ReplyPattern::Regex(regex)
            }
            Some(b'"') => ReplyPattern::Literal(literal(rest.delimited(b'"')?, column + 1)?),
            Some(b'*') if matches!(rest.text.get(1), None | Some(b' ' | b'\t')) => {
                rest.take(1);
                ReplyPattern::Any
            }
            Some(_) => return rest.wrong(Kind::PatternStart),
            None => return rest.wrong(Kind::ReplyFields),
        };
        let mut source = Vec::new();
        let from = &before[..before.len() - rest.text.len()];
        source.try_reserve_exact(from.len()).map_err(|_| OutOfMemory)?;
        source.extend_from_slice(from);
        rest.skip_blanks();
        let column = rest.column();
        let word = rest.word();
        let is = |name: &str| word.eq_ignore_ascii_case(name.as_bytes());
        let meaning = if is("limit") {
            Meaning::Limit
        } else if is("rate") {
            Meaning::Rate
        } else if is("nothing") {
            Meaning::Nothing
        } else if is("pause") {
            rest.skip_blanks();
            let column = rest.column();
            match seconds(rest.word()) {
                Some(seconds) => Meaning::Pause(seconds),
                None => return Err(Wrong::At(column, Kind::PauseSeconds)),
            }
        } else if word.is_empty() {
            return Err(Wrong::At(column, Kind::ReplyFields));
        } else {
            return Err(Wrong::At(column, Kind::ReplyMeaning));
        };
        rest.skip_blanks();
        if !matches!(rest.text.first(), None | Some(b'#')) {
            return rest.wrong(Kind::ReplyTail);
        }
        Ok(Self { line, codes, pattern, source, meaning })
    }
}

fn seconds(text: &[u8]) -> Option<u16> {
    let seconds = std::str::from_utf8(text).ok()?;
    let is_number = seconds.bytes().all(|byte| byte.is_ascii_digit());
    let seconds = seconds.parse().ok().filter(|_| is_number)?;
    (1..=PAUSE_MAX_SECS).contains(&seconds).then_some(seconds)
}

/// A literal as it appears in replies: in lower case, and with one blank in place of several.
fn literal(text: &[u8], column: usize) -> Result<Vec<u8>, Wrong> {
    let mut literal = Vec::new();
    literal.try_reserve_exact(text.len()).map_err(|_| OutOfMemory)?;
    let mut bytes = text.iter().enumerate();
    while let Some((at, &byte)) = bytes.next() {
        let byte = match byte {
            b'\\' => match bytes.next() {
                Some((_, &byte @ (b'"' | b'\\'))) => byte,
                other => {
                    let fault = other
                        .map_or(regex::Fault::Backslash, |(_, &byte)| regex::Fault::Escape(byte));
                    return Err(Wrong::At(column + at, Kind::Pattern(fault)));
                }
            },
            b' '..=b'~' => byte.to_ascii_lowercase(),
            _ => return Err(Wrong::At(column + at, Kind::Pattern(regex::Fault::Character(byte)))),
        };
        if byte != b' ' || literal.last() != Some(&b' ') {
            literal.push(byte);
        }
    }
    match literal.is_empty() {
        true => Err(Wrong::At(column, Kind::Pattern(regex::Fault::Empty))),
        false => Ok(literal),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::echo::Own;

    fn parse(text: &str) -> (Replies, Vec<String>) {
        let (replies, problems) = Replies::parse(text.as_bytes()).unwrap();
        (replies, problems.iter().map(|problem| problem.to_string()).collect())
    }

    /// The line that matches, and what it means.
    fn found(replies: &Replies, reply: &str) -> Option<(u32, Meaning)> {
        let reply = crate::report::Reply::read(reply.as_bytes(), &Own::unknown()).unwrap();
        let verdict = replies.find(reply.code, reply.enhanced, &reply.words)?;
        Some((verdict.line, verdict.meaning))
    }

    #[test]
    fn a_byte_order_mark_is_no_part_of_a_line() {
        let (replies, problems) = parse("\u{feff}421 \"full\" limit\r\n");
        assert_eq!(problems, [""; 0]);
        assert_eq!(found(&replies, "421 full"), Some((1, Meaning::Limit)));
        let (replies, problems) = Replies::parse(b"\xff\xfe4\x002\x001\x00\n\x00").unwrap();
        assert_eq!(replies.len(), 0);
        assert_eq!(problems.worst().map(|problem| problem.kind), Some(Kind::Utf16));
    }

    #[test]
    fn the_first_line_that_fits_counts() {
        let (replies, problems) = parse(
            "# what they say\n\n\
             421 /too many (connections|sessions)/ limit\n\
             \t4.7.28   *  rate # Gmail\r\n\
             421  \"[TSS04]\"  pause 7200\n\
             4xx \"Over  \\\"Quota\\\"\" nothing\n\
             45x /^45\\d 4\\.3\\.\\d+ slow/ Rate\n\
             x.7.1 /blocked$/ PAUSE 60\n\
             * \"blocked\" nothing",
        );
        assert_eq!(problems, [""; 0]);
        assert_eq!(replies.len(), 7);
        let says = |reply: &str| found(&replies, reply);
        assert_eq!(says("421 Too many connections"), Some((3, Meaning::Limit)));
        assert_eq!(says("421-4.7.0 Too many\n421 4.7.0 sessions"), Some((3, Meaning::Limit)));
        assert_eq!(says("450 Too many connections"), None);
        assert_eq!(says("421 4.7.28 x"), Some((4, Meaning::Rate)));
        assert_eq!(says("550 5.7.28 x"), None);
        assert_eq!(says("421 4.7.0 [TSS04] x"), Some((5, Meaning::Pause(7200))));
        assert_eq!(says("452 4.2.2 over   \"quota\""), Some((6, Meaning::Nothing)));
        assert_eq!(says("451 4.3.2 SLOW"), Some((7, Meaning::Rate)));
        assert_eq!(says("421 4.3.2 not 451 4.3.2 slow"), None);
        assert_eq!(says("550 5.7.1 you are blocked\n"), Some((8, Meaning::Pause(60))));
        assert_eq!(says("550 5.7.1 you are blocked by x"), Some((9, Meaning::Nothing)));
        assert_eq!(says("421 <[TSS04]@a.example> \"[TSS04]\"@b"), None, "addresses say nothing");
        assert_eq!(says("450 4.2.2 <a> over \"quota\""), Some((6, Meaning::Nothing)));
    }

    #[test]
    fn problems_have_a_place() {
        let cases = [
            ("421", "1:4: a line is CODE PATTERN MEANING"),
            ("421 *", "1:6: a line is CODE PATTERN MEANING"),
            ("  421 * ", "1:8: a line is CODE PATTERN MEANING"),
            ("220 * limit", "1:1: not a code of refusals: 421, 4xx, 4.7.28, 4.7.x and * are"),
            ("42 * limit", "1:1: not a code of refusals: 421, 4xx, 4.7.28, 4.7.x and * are"),
            ("4.7 * limit", "1:1: not a code of refusals: 421, 4xx, 4.7.28, 4.7.x and * are"),
            ("4.7.1.2 * limit", "1:1: not a code of refusals: 421, 4xx, 4.7.28, 4.7.x and * are"),
            ("2.7.1 * limit", "1:1: not a code of refusals: 421, 4xx, 4.7.28, 4.7.x and * are"),
            ("4.7.1000 * limit", "1:1: not a code of refusals: 421, 4xx, 4.7.28, 4.7.x and * are"),
            ("421 too limit", "1:5: not a pattern: /regular expression/, \"text\" and * are"),
            ("421 ** limit", "1:5: not a pattern: /regular expression/, \"text\" and * are"),
            ("421 /too limit", "1:5: the pattern has no end"),
            ("421 /too\\/ limit", "1:5: the pattern has no end"),
            ("421 \"too limit", "1:5: the pattern has no end"),
            ("421 /too/i limit", "1:10: no blank behind the pattern"),
            ("421 // limit", "1:6: the pattern is empty"),
            ("421 \"\" limit", "1:6: the pattern is empty"),
            ("421 \"a\\n\" limit", "1:7: \\n has no meaning here"),
            ("421 \"\u{e9}\" limit", "1:6: a byte 0xc3: replies are plain ASCII here"),
            ("421 /a(b/ limit", "1:7: the ( is never closed"),
            ("421 /a(?=b)/ limit", "1:7: back references and look-around are not supported"),
            ("421 * lower", "1:7: not a meaning: limit, rate, nothing and pause SECONDS are"),
            ("421 * pause", "1:12: not seconds from 1 to 7200"),
            ("421 * pause 0", "1:13: not seconds from 1 to 7200"),
            ("421 * pause 7201", "1:13: not seconds from 1 to 7200"),
            ("421 * pause +60", "1:13: not seconds from 1 to 7200"),
            ("421 * pause 60s", "1:13: not seconds from 1 to 7200"),
            ("421 * limit 60", "1:13: more behind the meaning; a comment begins with #"),
            (
                "421 * limit\n4xx * limit\n421 /a/ rate",
                "3:1: line 1 says it for all of these; this line never counts",
            ),
            (
                "4xx /a/ limit\n421 /a/ rate",
                "2:1: line 1 says it for all of these; this line never counts",
            ),
            (
                "* * limit\n4.7.1 /a/ rate",
                "2:1: line 1 says it for all of these; this line never counts",
            ),
            (
                "550 * limit",
                "1:1: a refusal for good is no deferral: only pause does something here",
            ),
        ];
        for (text, problem) in cases {
            let (_, problems) = parse(text);
            assert_eq!(problems, [format!("control/concurrencyreplies:{problem}")], "{text}");
        }
    }

    #[test]
    fn the_example_of_the_manual() {
        let page = include_str!("../../../man/concurrencyreplies.5");
        let examples = page.split_once(".SH EXAMPLES\n.nf\n").unwrap().1;
        let example =
            examples.split_once(".fi").unwrap().0.replace("\\e", "\\").replace("\\-", "-");
        let (replies, problems) = parse(&example);
        assert_eq!((replies.len(), problems), (5, Vec::new()), "{example}");
        let says = |reply: &str| found(&replies, reply).map(|(_, meaning)| meaning);
        assert_eq!(says("421 4.7.0 [TSS04] Messages"), Some(Meaning::Pause(7200)));
        assert_eq!(says("450 4.3.2 system overloaded"), Some(Meaning::Limit));
        assert_eq!(says("451 4.7.1 Service unavailable - try again later"), Some(Meaning::Nothing));
        assert_eq!(says("550 5.7.1 Blocked by spamhaus"), Some(Meaning::Pause(1800)));
    }

    #[test]
    fn too_much_is_an_error() {
        let many: String = (0..=RULES_MAX).map(|i| format!("421 \"{i}\" limit\n")).collect();
        let (_, problems) = parse(&many);
        assert_eq!(
            problems,
            ["control/concurrencyreplies:501: more than 500 lines, or patterns of 16384 steps"]
        );
        let long: String = (0..20).map(|i| format!("421 /{i}(a{{250}}){{4}}/ limit\n")).collect();
        let (_, problems) = parse(&long);
        assert_eq!(
            problems,
            ["control/concurrencyreplies:17: more than 500 lines, or patterns of 16384 steps"]
        );
    }
}
