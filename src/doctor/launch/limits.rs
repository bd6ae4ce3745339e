//! The limits of a process: which line sets them, and what is in force after several commands.
#![forbid(unsafe_code)]

use std::rc::Rc;

/// What is limited.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Limited {
    /// Open descriptors of a process.
    OpenFiles,
    /// Processes of a user.
    Processes,
    /// Processes of a systemd unit, or of a slice.
    UnitProcesses,
}

/// A limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LimitValue {
    /// This number.
    Number(u64),
    /// No limit.
    Unlimited,
    /// This number or less: the program takes at most the hard limit, which could not be seen.
    AtMost(u64),
    /// Cannot be known from the files.
    Unknown,
}

impl LimitValue {
    /// Returns whether it is enough; `None` if that cannot be known.
    pub fn allows(self, needed: u64) -> Option<bool> {
        match self {
            LimitValue::Unlimited => Some(true),
            LimitValue::Number(most) => Some(most >= needed),
            LimitValue::AtMost(most) if most < needed => Some(false),
            LimitValue::AtMost(_) | LimitValue::Unknown => None,
        }
    }

    fn is_above(self, hard: LimitValue) -> bool {
        match (self, hard) {
            (LimitValue::Number(this), LimitValue::Number(hard)) => this > hard,
            (LimitValue::Unlimited, LimitValue::Number(_)) => true,
            _ => false,
        }
    }
}

/// A line that sets a limit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Setting {
    /// What is limited.
    pub what: Limited,
    /// The limit that it sets.
    pub value: LimitValue,
    /// The file.
    pub file: String,
    /// The line in it, from 1.
    pub line: usize,
    /// The line's text.
    pub text: String,
    /// The part of the text that is the number.
    pub(super) number: String,
    /// Where in the text to search for that part.
    pub(super) from: usize,
}

impl Setting {
    /// Returns a line; its number is searched from the beginning.
    pub fn new(
        what: Limited,
        value: LimitValue,
        file: &str,
        line: usize,
        text: &str,
        number: &str,
    ) -> Setting {
        let (file, text, number) = (file.to_owned(), text.to_owned(), number.to_owned());
        Setting { what, value, file, line, text, number, from: 0 }
    }

    /// Returns the line with `value` in place of the number.
    pub fn with(&self, value: u64) -> String {
        // In "1024:4096" the second one is the hard limit.
        let new = match self.number.split_once(':') {
            Some((_, hard)) if hard.parse().is_ok_and(|hard: u64| hard < value) => {
                value.to_string()
            }
            Some((_, hard)) => format!("{value}:{hard}"),
            None => value.to_string(),
        };
        let (before, rest) = match self.text.split_at_checked(self.from) {
            Some((before, rest)) if rest.contains(&self.number) => (before, rest),
            _ => ("", self.text.as_str()),
        };
        format!("{before}{}", rest.replacen(&self.number, &new, 1))
    }

    /// Returns the file and the line.
    pub fn place(&self) -> String {
        format!("{} line {}", self.file, self.line)
    }
}

/// A limit that a program inherits from what starts it. No line that was read sets it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InheritedLimit {
    /// What the program inherits it from, as in "WHAT gives 1024".
    pub by: String,
    /// Whether the program certainly inherits it, not only probably.
    pub certain: bool,
    /// Where a line can raise it, and the text of that line before the number.
    pub raise: Option<(String, String)>,
}

/// Where a limit comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LimitSource {
    /// A line sets it.
    Set(Rc<Setting>),
    /// The program inherits it.
    Inherited(Rc<InheritedLimit>),
    /// A line may set it, by commands that cannot be read: the line, and why.
    Unseen(Rc<str>),
    /// Nothing that sets it was found.
    NotFound,
}

/// A limit, and where it comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourcedLimit {
    /// The limit.
    pub value: LimitValue,
    /// Where it comes from.
    pub source: LimitSource,
}

impl SourcedLimit {
    /// A limit of which nothing is known.
    pub const NOT_FOUND: SourcedLimit =
        SourcedLimit { value: LimitValue::Unknown, source: LimitSource::NotFound };
}

/// The soft limit, which counts, and the hard limit, up to which programs can raise it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LimitPair {
    /// The soft limit.
    pub soft: SourcedLimit,
    /// The hard limit.
    pub hard: SourcedLimit,
}

impl LimitPair {
    /// Limits of which nothing is known.
    pub const NOT_FOUND: LimitPair =
        LimitPair { soft: SourcedLimit::NOT_FOUND, hard: SourcedLimit::NOT_FOUND };

    /// Returns limits that a program inherits.
    pub fn inherited(soft: LimitValue, hard: LimitValue, by: &Rc<InheritedLimit>) -> LimitPair {
        let bound = |value| SourcedLimit { value, source: LimitSource::Inherited(Rc::clone(by)) };
        LimitPair { soft: bound(soft), hard: bound(hard) }
    }
}

/// Which of the two limits a command sets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LimitPart {
    /// The soft one.
    Soft,
    /// The hard one.
    Hard,
    /// Both.
    Both,
}

/// What a command does if the soft limit would be above the hard one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Above {
    /// It fails, and nothing changes.
    Fails,
    /// It takes the hard limit.
    Capped,
}

/// What a limit is set to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Amount {
    /// A value.
    Value(LimitValue),
    /// The present soft limit.
    Soft,
    /// The present hard limit.
    Hard,
}

/// A command that sets a limit.
#[derive(Debug, Clone)]
pub struct LimitChange {
    /// Which of the two.
    pub part: LimitPart,
    /// The new limit.
    pub amount: Amount,
    /// What happens if that is too much.
    pub above: Above,
    /// The line.
    pub setting: Rc<Setting>,
}

/// What the kernel allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KernelLimits {
    /// fs.nr_open: the most descriptors of a process, also of root's.
    pub nr_open: Option<u64>,
    /// Whether root may raise a hard limit. In most containers it may not.
    pub may_raise: bool,
}

impl Default for KernelLimits {
    fn default() -> KernelLimits {
        KernelLimits { nr_open: None, may_raise: true }
    }
}

/// The most different limits that one place may have. Beyond that, the limit counts as unknown.
const WAYS_MAX: usize = 16;

/// The limits that may be in force at one place of a script. There are several if they depend on something that only
/// the running script knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LimitState {
    /// Descriptors.
    pub files: Vec<LimitPair>,
    /// Processes of the user.
    pub processes: Vec<LimitPair>,
}

impl LimitState {
    /// Returns the limits with which a program starts.
    pub fn new(files: LimitPair, processes: LimitPair) -> LimitState {
        LimitState { files: vec![files], processes: vec![processes] }
    }

    /// Returns limits of which nothing is known.
    pub fn not_found() -> LimitState {
        LimitState::new(LimitPair::NOT_FOUND, LimitPair::NOT_FOUND)
    }

    /// Returns the limits of one kind that may be in force.
    pub fn of(&self, what: Limited) -> &[LimitPair] {
        match what {
            Limited::OpenFiles => &self.files,
            Limited::Processes | Limited::UnitProcesses => &self.processes,
        }
    }

    /// Returns whether what a command sets is in force.
    pub fn is(&self, change: &LimitChange) -> bool {
        let set =
            |bound: &SourcedLimit| bound.source == LimitSource::Set(Rc::clone(&change.setting));
        self.of(change.setting.what).iter().all(|pair| set(&pair.soft) || set(&pair.hard))
    }

    /// Carries out a command.
    pub fn apply(&mut self, change: &LimitChange, machine: KernelLimits) {
        let is_files = change.setting.what == Limited::OpenFiles;
        let pairs = match change.setting.what {
            Limited::OpenFiles => &mut self.files,
            Limited::Processes | Limited::UnitProcesses => &mut self.processes,
        };
        for pair in pairs.iter_mut() {
            let value = match change.amount {
                Amount::Value(value) => value,
                Amount::Soft => pair.soft.value,
                Amount::Hard => pair.hard.value,
            };
            let new = SourcedLimit { value, source: LimitSource::Set(Rc::clone(&change.setting)) };
            // No process may have more than the kernel's own limit, and some may not exceed the hard limit.
            let most = machine
                .nr_open
                .filter(|_| is_files)
                .map_or(LimitValue::Unlimited, LimitValue::Number);
            let is_refused =
                value.is_above(most) || (!machine.may_raise && value.is_above(pair.hard.value));
            match change.part {
                LimitPart::Both | LimitPart::Hard if is_refused => {
                    if change.above == Above::Capped {
                        pair.soft = pair.hard.clone();
                    }
                }
                LimitPart::Both => *pair = LimitPair { soft: new.clone(), hard: new },
                LimitPart::Hard
                    if pair.soft.value.is_above(value) && change.above == Above::Fails => {}
                LimitPart::Hard => {
                    if pair.soft.value.is_above(value) {
                        pair.soft = new.clone();
                    }
                    pair.hard = new;
                }
                LimitPart::Soft if value.is_above(pair.hard.value) => {
                    if change.above == Above::Capped {
                        pair.soft = pair.hard.clone();
                    }
                }
                LimitPart::Soft => {
                    // If the hard limit is unknown, the result is at most the number.
                    let value = match (value, pair.hard.value, change.above) {
                        (
                            LimitValue::Number(most),
                            LimitValue::Unknown | LimitValue::AtMost(_),
                            Above::Capped,
                        ) => LimitValue::AtMost(most),
                        (value, ..) => value,
                    };
                    pair.soft = SourcedLimit { value, ..new };
                }
            }
        }
    }

    /// The limit of descriptors may be anything from now on: `line` may set it.
    pub fn unsee_files(&mut self, line: String) {
        let source = LimitSource::Unseen(line.into());
        let bound = SourcedLimit { value: LimitValue::Unknown, source };
        self.files = vec![LimitPair { soft: bound.clone(), hard: bound }];
    }

    /// Adds the limits of `other`: either this state or the other is in force.
    pub fn join(&mut self, other: &LimitState) {
        for (pairs, others) in
            [(&mut self.files, &other.files), (&mut self.processes, &other.processes)]
        {
            for pair in others {
                if !pairs.contains(pair) {
                    pairs.push(pair.clone());
                }
            }
            if pairs.len() > WAYS_MAX {
                *pairs = vec![LimitPair::NOT_FOUND];
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn change(part: LimitPart, amount: Amount, above: Above) -> LimitChange {
        let setting = Setting {
            what: Limited::OpenFiles,
            value: LimitValue::Unknown,
            file: "run".to_owned(),
            line: 1,
            text: String::new(),
            number: String::new(),
            from: 0,
        };
        LimitChange { part, amount, above, setting: Rc::new(setting) }
    }

    fn after(
        soft: LimitValue,
        hard: LimitValue,
        changes: &[(LimitPart, Amount, Above)],
    ) -> (LimitValue, LimitValue) {
        let by = Rc::new(InheritedLimit { by: String::new(), certain: true, raise: None });
        let mut state =
            LimitState::new(LimitPair::inherited(soft, hard, &by), LimitPair::NOT_FOUND);
        for &(part, amount, above) in changes {
            state.apply(
                &change(part, amount, above),
                KernelLimits { nr_open: Some(10_000), may_raise: true },
            );
        }
        (state.files[0].soft.value, state.files[0].hard.value)
    }

    #[test]
    fn a_hard_limit_is_a_ceiling_or_a_failure() {
        use LimitValue::{AtMost, Number, Unknown, Unlimited};
        let soft = |value, above| (LimitPart::Soft, Amount::Value(value), above);
        let (start, hard) = (Number(1024), Number(4096));
        let capped = soft(Number(9999), Above::Capped);
        assert_eq!(after(start, hard, &[capped]), (Number(4096), Number(4096)));
        let fails = soft(Number(9999), Above::Fails);
        assert_eq!(after(start, hard, &[fails]), (Number(1024), Number(4096)));
        let both = (LimitPart::Both, Amount::Value(Number(9999)), Above::Fails);
        assert_eq!(after(start, hard, &[both]), (Number(9999), Number(9999)));
        assert_eq!(after(start, Unknown, &[capped]), (AtMost(9999), Unknown));
        assert_eq!(after(start, Unlimited, &[capped]), (Number(9999), Unlimited));
        let to_hard = (LimitPart::Soft, Amount::Hard, Above::Fails);
        assert_eq!(after(start, hard, &[to_hard]), (hard, hard));
        // "ulimit -n unlimited" never works: fs.nr_open is always less.
        let all = (LimitPart::Both, Amount::Value(Unlimited), Above::Fails);
        assert_eq!(after(start, hard, &[all]), (start, hard));
        let lower = (LimitPart::Hard, Amount::Value(Number(100)), Above::Fails);
        assert_eq!(after(start, hard, &[lower]), (start, hard));
        let lower = (LimitPart::Hard, Amount::Value(Number(100)), Above::Capped);
        assert_eq!(after(start, hard, &[lower]), (Number(100), Number(100)));
    }

    #[test]
    fn the_line_to_write_differs_in_the_number_alone() {
        let line = |text: &str, number: &str, from| Setting {
            text: text.to_owned(),
            number: number.to_owned(),
            from,
            ..(*change(LimitPart::Soft, Amount::Hard, Above::Fails).setting).clone()
        };
        let same = line("softlimit -m 1024 -o 1024 qmail-start", "1024", 21);
        assert_eq!(same.with(2005), "softlimit -m 1024 -o 2005 qmail-start");
        assert_eq!(
            line("LimitNOFILE=1024:4096", "1024:4096", 0).with(2005),
            "LimitNOFILE=2005:4096"
        );
        assert_eq!(line("LimitNOFILE=1024:2000", "1024:2000", 0).with(2005), "LimitNOFILE=2005");
        assert_eq!(line("ulimit -n 7", "7", 99).with(8), "ulimit -n 8");
    }
}
