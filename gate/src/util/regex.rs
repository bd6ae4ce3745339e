//! Regular expressions for the replies of servers: the part of Perl's that operators use for them, in linear time.
//!
//! The operator writes the pattern, but a hostile server may write the text; so the search never backtracks. A pattern
//! becomes a program for Thompson's machine ("Regular Expression Search Algorithm", Communications of the ACM 11(6),
//! 1968; R. Cox, "Regular Expression Matching Can Be Simple And Fast", 2007), which is in a set of places at once. The
//! work is at most the length of the text times [`PROGRAM_MAX`], and matching allocates nothing.
//!
//! Elsewhere one would use the crate `regex`. The gate is linked into qmail-rspawn and has no dependencies;
//! gate/tests/replies.rs compares the two. This file has more than 700 lines because compiler and matcher share the
//! form of the program.
//!
//! ```text
//! pattern     branch ('|' branch)*
//! branch      (atom quantifier?)*
//! quantifier  '*' | '+' | '?' | '{' n '}' | '{' n ',' '}' | '{' n ',' m '}', and '?' behind each, which changes nothing
//! atom        a character | '.' | class | '(' pattern ')' | '(?:' pattern ')' | '^' | '$' | escape
//! escape      '\' and: d D s S w W (digit, blank, letter or digit or _), b B (at the edge of a word, or not), punctuation
//! class       '[' '^'? (character | character '-' character | escape but b B)+ ']'
//! ```
//!
//! Case never matters; the text must be in lower case. `^` and `$` are the ends of the text. The text has only ASCII,
//! with blanks instead of tabs and line feeds. There are no back references and no look-around, which cannot be done in
//! linear time, or not in so few lines.

#![forbid(unsafe_code)]

use std::fmt;

use crate::util::memory::{self, OutOfMemory};

/// The longest program of one pattern, in steps. That is about its number of characters, each counted as often as it is
/// repeated.
pub const PROGRAM_MAX: usize = 1024;
/// How deep groups may be nested.
const DEPTH_MAX: u32 = 32;
/// The highest number in braces.
pub const REPEAT_MAX: u16 = 255;

/// What is wrong with a pattern.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// It has no characters.
    Empty,
    /// A parenthesis that is never closed.
    GroupOpen,
    /// A closing parenthesis too many.
    GroupNotOpen,
    /// A bracket that is never closed.
    ClassOpen,
    /// A range of characters from a higher to a lower one, or with an end that is not a character.
    ClassRange,
    /// A bracket in brackets.
    ClassInClass,
    /// A quantifier behind nothing, or behind another one.
    NothingToRepeat,
    /// Braces that hold no numbers.
    Braces,
    /// More than [`REPEAT_MAX`] times.
    RepeatTooLarge,
    /// The minimum is above the maximum.
    RepeatOrder,
    /// A backslash with nothing behind it.
    Backslash,
    /// A backslash before a character with which it has no meaning.
    Escape(u8),
    /// A back reference or look-around.
    NotSupported,
    /// A character that is not printable ASCII.
    Character(u8),
    /// More than [`PROGRAM_MAX`] steps.
    TooLong,
    /// Groups are nested more than 32 deep.
    TooDeep,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Empty => f.write_str("the pattern is empty"),
            Self::GroupOpen => f.write_str("the ( is never closed"),
            Self::GroupNotOpen => f.write_str("the ) closes nothing"),
            Self::ClassOpen => f.write_str("the [ is never closed"),
            Self::ClassRange => f.write_str("not a range of characters"),
            Self::ClassInClass => f.write_str("a [ in brackets"),
            Self::NothingToRepeat => f.write_str("nothing that can be repeated is before it"),
            Self::Braces => f.write_str("not {N}, {N,} or {N,M}"),
            Self::RepeatTooLarge => write!(f, "more than {REPEAT_MAX} times"),
            Self::RepeatOrder => f.write_str("the first number is above the second one"),
            Self::Backslash => f.write_str("the backslash has nothing behind it"),
            Self::Escape(byte) => write!(f, "\\{} has no meaning here", char::from(byte)),
            Self::NotSupported => f.write_str("back references and look-around are not supported"),
            Self::Character(byte) => write!(f, "a byte {byte:#04x}: replies are plain ASCII here"),
            Self::TooLong => write!(f, "the pattern has more than {PROGRAM_MAX} steps"),
            Self::TooDeep => write!(f, "groups are in more than {DEPTH_MAX} groups"),
        }
    }
}

/// Why there is no program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RegexError {
    /// At this byte of the pattern, from 0.
    At(usize, Fault),
    /// No memory.
    OutOfMemory,
}

impl From<OutOfMemory> for RegexError {
    fn from(_: OutOfMemory) -> Self {
        Self::OutOfMemory
    }
}

/// One step of a program. Jumps are relative, so that a part can be moved and repeated as it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Instruction {
    /// This byte.
    Byte(u8),
    /// A byte of this class.
    Class(u16),
    /// No byte; the condition must hold here.
    Look(Look),
    /// Goes on there.
    Jump(i16),
    /// Goes on at the next step, and there.
    Split(i16),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Look {
    Start,
    End,
    Edge,
    NoEdge,
}

/// A set of ASCII characters, a bit for each.
type Class = u128;

const DIGITS: Class = range(b'0', b'9');
const WORD: Class = range(b'a', b'z') | range(b'A', b'Z') | DIGITS | bit(b'_');
const BLANK: Class = bit(b' ') | range(0x09, 0x0d);

const fn bit(byte: u8) -> Class {
    1 << byte
}

/// The characters from `from` to `to`, both included; `from` is not above `to`.
const fn range(from: u8, to: u8) -> Class {
    (u128::MAX >> (127 - to)) & (u128::MAX << from)
}

/// A pattern.
#[derive(Debug)]
pub struct Regex {
    steps: Vec<Instruction>,
    classes: Vec<Class>,
    /// Text that every match has. Most replies do not have it, and that is quick to find out.
    needle: Vec<u8>,
}

impl Regex {
    /// Reads a pattern.
    ///
    /// # Errors
    /// What is wrong with it, and where; or no memory.
    pub fn new(pattern: &[u8]) -> Result<Self, RegexError> {
        let mut compiler = Compiler {
            pattern,
            at: 0,
            steps: Vec::new(),
            classes: Vec::new(),
            run: Vec::new(),
            needle: Vec::new(),
        };
        if pattern.is_empty() {
            return Err(RegexError::At(0, Fault::Empty));
        }
        compiler.branches(0)?;
        if compiler.at < pattern.len() {
            return Err(RegexError::At(compiler.at, Fault::GroupNotOpen));
        }
        compiler.end_run();
        let Compiler { steps, classes, needle, .. } = compiler;
        Ok(Self { steps, classes, needle })
    }

    /// How many steps its program has, or how many different classes if there are more of these.
    #[must_use]
    pub fn len(&self) -> usize {
        self.steps.len().max(self.classes.len())
    }

    /// Whether it has no steps and no classes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether it matches somewhere in this text, which must be in lower case.
    #[must_use]
    pub fn is_match(&self, text: &[u8]) -> bool {
        contains(text, &self.needle) && self.runs(text)
    }

    fn runs(&self, text: &[u8]) -> bool {
        let mut machine = Machine { regex: self, text, todo: [0; PROGRAM_MAX + 1] };
        let (mut here, mut next) = (Places::default(), Places::default());
        for at in 0..=text.len() {
            if machine.arrive(0, at, &mut here) {
                return true;
            }
            let Some(&byte) = text.get(at) else { return false };
            for place in here.iter() {
                let takes = match self.steps[place] {
                    Instruction::Byte(wanted) => byte == wanted,
                    Instruction::Class(index) => {
                        byte < 128 && self.classes[usize::from(index)] >> byte & 1 == 1
                    }
                    Instruction::Look(_) | Instruction::Jump(_) | Instruction::Split(_) => false,
                };
                if takes && machine.arrive(place + 1, at + 1, &mut next) {
                    return true;
                }
            }
            std::mem::swap(&mut here, &mut next);
            next = Places::default();
        }
        false
    }
}

/// Whether the text has these bytes.
pub(crate) fn contains(text: &[u8], needle: &[u8]) -> bool {
    let Some((&first, rest)) = needle.split_first() else { return true };
    let mut text = text;
    while let Some(at) = text.iter().position(|&byte| byte == first) {
        text = &text[at + 1..];
        if text.starts_with(rest) {
            return true;
        }
    }
    false
}

/// A set of places in a program.
#[derive(Clone, Copy, Default)]
struct Places {
    bits: [u64; PROGRAM_MAX / 64],
}

impl Places {
    /// Adds a place. True if it is new.
    fn insert(&mut self, place: usize) -> bool {
        let (word, bit) = (&mut self.bits[place / 64], 1 << (place % 64));
        let is_new = *word & bit == 0;
        *word |= bit;
        is_new
    }

    fn iter(&self) -> impl Iterator<Item = usize> {
        self.bits.iter().enumerate().flat_map(|(index, &word)| {
            let mut word = word;
            std::iter::from_fn(move || {
                let bit = (word != 0).then(|| word.trailing_zeros() as usize)?;
                word &= word - 1;
                Some(index * 64 + bit)
            })
        })
    }
}

struct Machine<'a> {
    regex: &'a Regex,
    text: &'a [u8],
    /// Places that are still to be followed; each is here once at most.
    todo: [u16; PROGRAM_MAX + 1],
}

impl Machine<'_> {
    /// Adds a place, and all places that it leads to without a byte. True if the end of the program is among them.
    fn arrive(&mut self, place: usize, at: usize, places: &mut Places) -> bool {
        let steps = &self.regex.steps;
        let mut count = 0;
        let mut go = |todo: &mut [u16], count: &mut usize, place: usize| {
            if place == steps.len() {
                return true;
            }
            if places.insert(place) {
                todo[*count] = place as u16;
                *count += 1;
            }
            false
        };
        if go(&mut self.todo, &mut count, place) {
            return true;
        }
        while count > 0 {
            count -= 1;
            let place = usize::from(self.todo[count]);
            let ends = match steps[place] {
                Instruction::Byte(_) | Instruction::Class(_) => false,
                Instruction::Look(look) => {
                    is_there(look, self.text, at) && go(&mut self.todo, &mut count, place + 1)
                }
                Instruction::Jump(way) => go(&mut self.todo, &mut count, there(place, way)),
                Instruction::Split(way) => {
                    go(&mut self.todo, &mut count, place + 1)
                        || go(&mut self.todo, &mut count, there(place, way))
                }
            };
            if ends {
                return true;
            }
        }
        false
    }
}

fn there(place: usize, way: i16) -> usize {
    place.wrapping_add_signed(isize::from(way))
}

fn is_there(look: Look, text: &[u8], at: usize) -> bool {
    let is_word = |at: usize| text.get(at).is_some_and(|&byte| byte < 128 && WORD >> byte & 1 == 1);
    let is_edge = || (at > 0 && is_word(at - 1)) != is_word(at);
    match look {
        Look::Start => at == 0,
        Look::End => at == text.len(),
        Look::Edge => is_edge(),
        Look::NoEdge => !is_edge(),
    }
}

struct Compiler<'a> {
    pattern: &'a [u8],
    at: usize,
    steps: Vec<Instruction>,
    classes: Vec<Class>,
    /// The bytes outside of groups that follow each other directly, up to here.
    run: Vec<u8>,
    needle: Vec<u8>,
}

/// An atom.
enum Atom {
    Byte(u8),
    Class(Class),
    Look(Look),
    Group,
}

impl Compiler<'_> {
    fn fault<T>(&self, at: usize, fault: Fault) -> Result<T, RegexError> {
        debug_assert!(at <= self.pattern.len());
        Err(RegexError::At(at, fault))
    }

    fn peek(&self) -> Option<u8> {
        self.pattern.get(self.at).copied()
    }

    fn eat(&mut self, byte: u8) -> bool {
        let is_it = self.peek() == Some(byte);
        self.at += usize::from(is_it);
        is_it
    }

    fn push(&mut self, step: Instruction) -> Result<(), RegexError> {
        self.insert(self.steps.len(), step)
    }

    fn insert(&mut self, at: usize, step: Instruction) -> Result<(), RegexError> {
        if self.steps.len() >= PROGRAM_MAX {
            return self.fault(self.at.min(self.pattern.len()), Fault::TooLong);
        }
        self.steps.try_reserve(1).map_err(|_| RegexError::OutOfMemory)?;
        self.steps.insert(at, step);
        Ok(())
    }

    /// The way from a place to another.
    fn way(from: usize, to: usize) -> i16 {
        // Both are at most PROGRAM_MAX.
        (to as isize - from as isize) as i16
    }

    fn branches(&mut self, depth: u32) -> Result<(), RegexError> {
        let mut start = self.steps.len();
        // Each branch but the last one ends with a jump to the end, which is not known yet; until then it leads to the
        // jump before.
        let mut last: Option<usize> = None;
        self.branch(depth)?;
        while self.eat(b'|') {
            let behind = self.steps.len() + 2;
            self.insert(start, Instruction::Split(Self::way(start, behind)))?;
            let jump = self.steps.len();
            self.push(Instruction::Jump(last.map_or(0, |last| Self::way(jump, last))))?;
            last = Some(jump);
            start = self.steps.len();
            self.branch(depth)?;
        }
        if last.is_some() && depth == 0 {
            // No branch's text is in every match.
            self.needle.clear();
            self.run.clear();
        }
        while let Some(jump) = last {
            let before = match self.steps[jump] {
                Instruction::Jump(way) if way != 0 => Some(there(jump, way)),
                _ => None,
            };
            self.steps[jump] = Instruction::Jump(Self::way(jump, self.steps.len()));
            last = before;
        }
        Ok(())
    }

    fn branch(&mut self, depth: u32) -> Result<(), RegexError> {
        while !matches!(self.peek(), None | Some(b'|' | b')')) {
            let (start, at) = (self.steps.len(), self.at);
            let atom = self.atom(depth)?;
            match atom {
                Atom::Byte(byte) => self.push(Instruction::Byte(byte))?,
                Atom::Class(class) => {
                    let index = self.classes.iter().position(|&known| known == class);
                    let index = match index {
                        Some(index) => index,
                        // A class that is repeated zero times counts, too: each search goes through all classes.
                        None if self.classes.len() >= PROGRAM_MAX => {
                            return self.fault(at, Fault::TooLong);
                        }
                        None => {
                            memory::push(&mut self.classes, class)?;
                            self.classes.len() - 1
                        }
                    };
                    // No more than there are steps.
                    self.push(Instruction::Class(index as u16))?;
                }
                Atom::Look(look) => self.push(Instruction::Look(look))?,
                Atom::Group => {}
            }
            let times = self.quantifier()?;
            if depth == 0 {
                match (atom, times) {
                    (Atom::Byte(byte), None) => memory::push(&mut self.run, byte)?,
                    _ => self.end_run(),
                }
            }
            if let Some((least, most)) = times {
                self.repeat(start, least, most)?;
            }
        }
        if depth == 0 {
            self.end_run();
        }
        Ok(())
    }

    /// Keeps the run if it is the longest so far: it is searched for first.
    fn end_run(&mut self) {
        if self.run.len() > self.needle.len() {
            std::mem::swap(&mut self.run, &mut self.needle);
        }
        self.run.clear();
    }

    fn atom(&mut self, depth: u32) -> Result<Atom, RegexError> {
        let at = self.at;
        let Some(byte) = self.peek() else { return self.fault(at, Fault::Backslash) };
        self.at += 1;
        Ok(match byte {
            b'.' => Atom::Class(Class::MAX),
            b'^' => Atom::Look(Look::Start),
            b'$' => Atom::Look(Look::End),
            b'*' | b'+' | b'?' => return self.fault(at, Fault::NothingToRepeat),
            b'{' => return self.fault(at, Fault::Braces),
            b'[' => Atom::Class(self.class(at)?),
            b'(' => {
                if self.eat(b'?') && !self.eat(b':') {
                    return self.fault(at, Fault::NotSupported);
                }
                if depth == DEPTH_MAX {
                    return self.fault(at, Fault::TooDeep);
                }
                self.branches(depth + 1)?;
                if !self.eat(b')') {
                    return self.fault(at, Fault::GroupOpen);
                }
                Atom::Group
            }
            b'\\' => self.escape(at)?,
            b' '..=b'~' => Atom::Byte(byte.to_ascii_lowercase()),
            _ => return self.fault(at, Fault::Character(byte)),
        })
    }

    /// Reads what follows a backslash.
    fn escape(&mut self, at: usize) -> Result<Atom, RegexError> {
        let Some(byte) = self.peek() else { return self.fault(at, Fault::Backslash) };
        self.at += 1;
        Ok(match byte {
            b'd' => Atom::Class(DIGITS),
            b'D' => Atom::Class(!DIGITS),
            b's' => Atom::Class(BLANK),
            b'S' => Atom::Class(!BLANK),
            b'w' => Atom::Class(WORD),
            b'W' => Atom::Class(!WORD),
            b'b' => Atom::Look(Look::Edge),
            b'B' => Atom::Look(Look::NoEdge),
            b'1'..=b'9' => return self.fault(at, Fault::NotSupported),
            byte if byte.is_ascii_punctuation() || byte == b' ' => Atom::Byte(byte),
            byte if byte.is_ascii_alphanumeric() => return self.fault(at, Fault::Escape(byte)),
            byte => return self.fault(at + 1, Fault::Character(byte)),
        })
    }

    /// Reads what follows an opening bracket at `open`.
    fn class(&mut self, open: usize) -> Result<Class, RegexError> {
        let negated = self.eat(b'^');
        let mut class = 0;
        let mut is_first = true;
        while is_first || self.peek() != Some(b']') {
            is_first = false;
            let at = self.at;
            let from = match self.member(open)? {
                Atom::Byte(byte) => byte,
                Atom::Class(more) => {
                    class |= more;
                    continue;
                }
                Atom::Look(_) | Atom::Group => return self.fault(at, Fault::Escape(b'b')),
            };
            let is_range = self.peek() == Some(b'-')
                && self.pattern.get(self.at + 1).is_some_and(|&byte| byte != b']');
            if !is_range {
                class |= bit(from);
                continue;
            }
            self.at += 1;
            match self.member(open)? {
                Atom::Byte(to) if from <= to => class |= range(from, to),
                _ => return self.fault(at, Fault::ClassRange),
            }
        }
        self.at += 1;
        // Upper case means lower case, because the text has only that.
        class |= (class & range(b'A', b'Z')) << (b'a' - b'A');
        Ok(if negated { !class } else { class })
    }

    fn member(&mut self, open: usize) -> Result<Atom, RegexError> {
        let at = self.at;
        let Some(byte) = self.peek() else { return self.fault(open, Fault::ClassOpen) };
        self.at += 1;
        match byte {
            b'[' => self.fault(at, Fault::ClassInClass),
            b'\\' => match self.escape(at)? {
                Atom::Look(_) => self.fault(at, Fault::Escape(self.pattern[at + 1])),
                atom => Ok(atom),
            },
            b' '..=b'~' => Ok(Atom::Byte(byte)),
            _ => self.fault(at, Fault::Character(byte)),
        }
    }

    /// Reads how often, at least and at most; None: once.
    fn quantifier(&mut self) -> Result<Option<(u16, Option<u16>)>, RegexError> {
        let at = self.at;
        let times = match self.peek() {
            Some(b'*') => (0, None),
            Some(b'+') => (1, None),
            Some(b'?') => (0, Some(1)),
            Some(b'{') => {
                self.at += 1;
                let least = self.number(at)?;
                let most = match self.eat(b',') {
                    false => Some(least),
                    true if self.peek() == Some(b'}') => None,
                    true => Some(self.number(at)?),
                };
                if self.peek() != Some(b'}') {
                    return self.fault(at, Fault::Braces);
                }
                if most.is_some_and(|most| most < least) {
                    return self.fault(at, Fault::RepeatOrder);
                }
                (least, most)
            }
            _ => return Ok(None),
        };
        self.at += 1;
        // Lazy or greedy makes no difference to whether there is a match.
        self.eat(b'?');
        match self.peek() {
            Some(b'*' | b'+' | b'?') => self.fault(self.at, Fault::NothingToRepeat),
            _ => Ok(Some(times)),
        }
    }

    fn number(&mut self, open: usize) -> Result<u16, RegexError> {
        let digits = self.pattern[self.at..].iter().take_while(|byte| byte.is_ascii_digit());
        let (count, number) = digits.fold((0, 0u16), |(count, number), digit| {
            (count + 1, number.saturating_mul(10).saturating_add(u16::from(digit - b'0')))
        });
        self.at += count;
        match number {
            _ if count == 0 => self.fault(open, Fault::Braces),
            0..=REPEAT_MAX => Ok(number),
            _ => self.fault(open, Fault::RepeatTooLarge),
        }
    }

    /// Repeats the steps from `start` on.
    fn repeat(&mut self, start: usize, least: u16, most: Option<u16>) -> Result<(), RegexError> {
        let length = self.steps.len() - start;
        if most == Some(0) || length == 0 {
            self.steps.truncate(start);
            return Ok(());
        }
        let mut original = start;
        if least == 0 {
            // Around it.
            let behind = start + length + 1 + usize::from(most.is_none());
            self.insert(start, Instruction::Split(Self::way(start, behind)))?;
            original += 1;
        }
        if least == 0 && most.is_none() {
            let end = self.steps.len();
            return self.push(Instruction::Jump(Self::way(end, start)));
        }
        for _ in 1..least {
            self.copy(original, length)?;
        }
        let Some(most) = most else {
            let end = self.steps.len();
            return self.push(Instruction::Split(Self::way(end, end - length)));
        };
        for _ in least.max(1)..most {
            let split = self.steps.len();
            self.push(Instruction::Split(Self::way(split, split + length + 1)))?;
            self.copy(original, length)?;
        }
        Ok(())
    }

    fn copy(&mut self, from: usize, length: usize) -> Result<(), RegexError> {
        for at in from..from + length {
            self.push(self.steps[at])?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_match(pattern: &str, text: &str) -> bool {
        Regex::new(pattern.as_bytes())
            .unwrap_or_else(|e| panic!("{pattern}: {e:?}"))
            .is_match(text.as_bytes())
    }

    #[test]
    fn what_operators_write() {
        // From PowerMTA's lists, and from KumoMTA's shaping rules.
        let yes = [
            (
                r"generating high volumes of.* complaints from AOL",
                "421 generating high volumes of some complaints from aol",
            ),
            (r"^421 .* too many errors", "421 4.7.0 mx too many errors"),
            (r"\bU\.?C\.?E\.?\b", "550 no u.c.e here"),
            (r"mailbox +(is +)?full", "452 mailbox is full"),
            (
                r"sender ((verify|verification) failed|could not be verified|address rejected)",
                "450 sender verification failed",
            ),
            (r"^[45]\.4\.4", "4.4.4 x"),
            (r"no(t)? DNS\/MX entries", "450 your domain has not dns/mx entries"),
            (
                r"Messages from \d+\.\d+\.\d+\.\d+ temporarily deferred",
                "421 messages from 192.0.2.1 temporarily deferred",
            ),
            (
                r"Messages from \d{1,3}(\.\d{1,3}){3} temporarily",
                "421 messages from 192.0.2.1 temporarily deferred",
            ),
            (r"\[TSS?0[45]\]", "421 4.7.0 [ts04] messages"),
            (r"weren.t sent", "messages from 192.0.2.1 weren't sent"),
            (
                r"The mail server.*has exceeded the maximum number of connections",
                "451 4.7.652 the mail server [192.0.2.9] has exceeded the maximum number of connections.",
            ),
            (r"550 Sender frequency limited.*", "550 sender frequency limited"),
            (r"^(?:4\d\d) .*(?:busy|load)$", "450 4.3.2 high load"),
            (r"[^a-z]rate\b", "450 rate"),
            ("too many (connections|sessions)", "421 too many sessions opened"),
        ];
        for (pattern, text) in yes {
            assert!(is_match(pattern, text), "{pattern}");
        }
        let no = [
            (r"^421 .* too many errors", "450 421 x too many errors"),
            (r"\brate\b", "450 grate rates"),
            (r"too many (connections|sessions)", "421 too many recipients"),
            (r"\[TSS?0[45]\]", "421 ts04"),
            (r"x{3}", "xx"),
            (r"^$", "x"),
        ];
        for (pattern, text) in no {
            assert!(!is_match(pattern, text), "{pattern}");
        }
    }

    #[test]
    fn faults_have_a_place() {
        let faults: &[(&str, usize, Fault)] = &[
            ("", 0, Fault::Empty),
            ("a(b", 1, Fault::GroupOpen),
            ("a(b(c)", 1, Fault::GroupOpen),
            ("ab)c", 2, Fault::GroupNotOpen),
            ("a[b", 1, Fault::ClassOpen),
            ("a[]", 1, Fault::ClassOpen),
            ("a[^]", 1, Fault::ClassOpen),
            ("[z-a]", 1, Fault::ClassRange),
            (r"[a-\d]", 1, Fault::ClassRange),
            ("[a[b]", 2, Fault::ClassInClass),
            (r"[\b]", 1, Fault::Escape(b'b')),
            ("*a", 0, Fault::NothingToRepeat),
            ("a|+", 2, Fault::NothingToRepeat),
            ("a**", 2, Fault::NothingToRepeat),
            ("a+++", 2, Fault::NothingToRepeat),
            ("a{x}", 1, Fault::Braces),
            ("a{2", 1, Fault::Braces),
            ("{2}", 0, Fault::Braces),
            ("a{256}", 1, Fault::RepeatTooLarge),
            ("a{99999999999999999999}", 1, Fault::RepeatTooLarge),
            ("a{3,2}", 1, Fault::RepeatOrder),
            ("ab\\", 2, Fault::Backslash),
            (r"a\x41", 1, Fault::Escape(b'x')),
            (r"(a)\1", 3, Fault::NotSupported),
            ("a(?!b)", 1, Fault::NotSupported),
            ("a(?<=b)", 1, Fault::NotSupported),
            ("a\tb", 1, Fault::Character(9)),
            ("a\u{e9}", 1, Fault::Character(0xc3)),
            ("(a{255}){9}", 11, Fault::TooLong),
        ];
        for &(pattern, at, fault) in faults {
            let found = Regex::new(pattern.as_bytes()).unwrap_err();
            assert_eq!(found, RegexError::At(at, fault), "{pattern}");
        }
        let deep = ["(".repeat(40), ")".repeat(40)].concat();
        assert_eq!(Regex::new(deep.as_bytes()).unwrap_err(), RegexError::At(32, Fault::TooDeep));
    }

    /// Pairs of 95 characters make 4465 classes. More classes than a program may have steps are an error, however they
    /// are repeated.
    #[test]
    fn classes_are_bounded_as_steps_are() {
        let all = (b' '..=b'~').filter(|byte| byte.is_ascii_digit() || byte.is_ascii_lowercase());
        let all: Vec<char> = all.map(char::from).collect();
        let pairs =
            all.iter().enumerate().flat_map(|(at, a)| all[at + 1..].iter().map(move |b| (a, b)));
        let triples =
            pairs.flat_map(|(a, b)| ["!", "#", "%", ",", "~"].map(|c| format!("[{a}{b}{c}]{{0}}")));
        let most: String = triples.clone().take(PROGRAM_MAX).collect();
        assert_eq!(Regex::new(most.as_bytes()).unwrap().len(), PROGRAM_MAX);
        let more: String = triples.take(PROGRAM_MAX + 1).collect();
        assert_eq!(
            Regex::new(more.as_bytes()).unwrap_err(),
            RegexError::At(most.len(), Fault::TooLong)
        );
    }

    #[test]
    fn needles_are_in_every_match() {
        let needle = |pattern: &str| Regex::new(pattern.as_bytes()).unwrap().needle;
        assert_eq!(needle("too many (connections|sessions)"), b"too many ");
        assert_eq!(needle("^421 .*Too Many errors?"), b"too many error");
        assert_eq!(needle("a|bc"), b"");
        assert_eq!(needle("(ab|c)"), b"");
        assert_eq!(needle("ab+c"), b"a");
        assert_eq!(needle(r"\[TS04\]"), b"[ts04]");
    }

    #[test]
    fn hard_patterns_take_no_longer() {
        let text = "a".repeat(1024);
        for pattern in
            ["(a*)*b", "(a|aa)+$b", "(.*a.*){20}x", "((a?){30}){10}b", "(a|a|a|a|a)*[^a]"]
        {
            assert!(!is_match(pattern, &text), "{pattern}");
        }
    }
}
