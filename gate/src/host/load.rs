//! How the control files other than concurrencydomains come into force: all in the same way.

#![forbid(unsafe_code)]

use crate::control::name::Hasher;
use crate::control::problem::{Kind, Problem, Problems};
use crate::control::route::{self, Routes};
use crate::control::sender::Senders;
use crate::control::site::Map;
use crate::control::table;
use crate::core::gate::Gate;
use crate::host::clock::Clock;
use crate::host::control_file::{ContentsSource, Control};
use crate::host::watched::Contents;
use crate::report::replies::{self, Replies};
use crate::util::memory::{OutOfMemory, Text};

/// A control file that counts as a whole, or not at all if it has an error. Its copy has only what every user may read.
pub(super) trait Plain: Sized {
    /// The largest file that is read, in bytes.
    const MAX: u64 = table::FILE_MAX;

    fn none(hasher: Hasher) -> Self;
    fn parse(text: &[u8], hasher: Hasher) -> Result<(Self, Problems), OutOfMemory>;
    fn set(self, gate: &mut Gate, now_us: u64) -> Result<(), OutOfMemory>;
    fn keep(text: Vec<u8>) -> Result<Vec<u8>, OutOfMemory>;
}

impl Plain for Routes {
    fn none(hasher: Hasher) -> Self {
        Self::new(hasher)
    }

    fn parse(text: &[u8], hasher: Hasher) -> Result<(Self, Problems), OutOfMemory> {
        Self::parse(text, hasher)
    }

    fn set(self, gate: &mut Gate, now_us: u64) -> Result<(), OutOfMemory> {
        gate.set_routes(self, now_us)
    }

    fn keep(text: Vec<u8>) -> Result<Vec<u8>, OutOfMemory> {
        let mut kept = Text::default();
        route::without_secrets(&text, &mut kept)?;
        Ok(kept.bytes)
    }
}

impl Plain for Senders {
    fn none(hasher: Hasher) -> Self {
        Self::new(hasher)
    }

    fn parse(text: &[u8], hasher: Hasher) -> Result<(Self, Problems), OutOfMemory> {
        Self::parse(text, hasher)
    }

    fn set(self, gate: &mut Gate, _now_us: u64) -> Result<(), OutOfMemory> {
        gate.set_senders(self);
        Ok(())
    }

    fn keep(text: Vec<u8>) -> Result<Vec<u8>, OutOfMemory> {
        <Routes as Plain>::keep(text)
    }
}

impl Plain for Replies {
    const MAX: u64 = replies::FILE_MAX;

    fn none(_hasher: Hasher) -> Self {
        Self::default()
    }

    fn parse(text: &[u8], _hasher: Hasher) -> Result<(Self, Problems), OutOfMemory> {
        Self::parse(text)
    }

    fn set(self, gate: &mut Gate, now_us: u64) -> Result<(), OutOfMemory> {
        gate.set_replies(self, now_us);
        Ok(())
    }

    fn keep(text: Vec<u8>) -> Result<Vec<u8>, OutOfMemory> {
        Ok(text)
    }
}

impl Plain for Map {
    fn none(hasher: Hasher) -> Self {
        Self::new(hasher)
    }

    fn parse(text: &[u8], hasher: Hasher) -> Result<(Self, Problems), OutOfMemory> {
        Self::parse(text, hasher)
    }

    fn set(self, gate: &mut Gate, now_us: u64) -> Result<(), OutOfMemory> {
        gate.set_map(self, now_us)
    }

    fn keep(text: Vec<u8>) -> Result<Vec<u8>, OutOfMemory> {
        Ok(text)
    }
}

/// What happened to the contents of a file.
pub(super) enum Loaded {
    /// They count. There may be a warning.
    Good(Option<Problem>),
    /// They have an error, and do not count.
    Bad(Problem),
}

pub(super) fn load<T: Plain>(
    gate: &mut Gate,
    text: &[u8],
    now_us: u64,
) -> Result<Loaded, OutOfMemory> {
    let (value, problems) = T::parse(text, gate.hasher())?;
    match problems.worst() {
        Some(worst) if problems.errors() > 0 => Ok(Loaded::Bad(worst)),
        worst => value.set(gate, now_us).map(|()| Loaded::Good(worst)),
    }
}

/// Checks a file, and puts changes in force. True if there are any.
pub(super) fn follow<T: Plain>(
    file: &mut Control,
    gate: &mut Gate,
    clock: &dyn Clock,
    now_us: u64,
) -> bool {
    file.keep_again(now_us);
    let set = match file.look(T::MAX, clock) {
        Contents::Same => return false,
        Contents::Missing => {
            file.source = ContentsSource::File;
            file.kept.keep(None, now_us);
            T::none(gate.hasher()).set(gate, now_us).map(|()| None).map_err(|_| Kind::OutOfMemory)
        }
        Contents::Unusable(kind) => {
            fall_back::<T>(file, gate, now_us);
            Err(kind)
        }
        Contents::Read(text) => match load::<T>(gate, &text, now_us) {
            Ok(Loaded::Good(warning)) => {
                file.source = ContentsSource::File;
                if let Ok(kept) = T::keep(text) {
                    file.kept.keep(Some(&kept), now_us);
                }
                Ok(warning)
            }
            Ok(Loaded::Bad(error)) => {
                fall_back::<T>(file, gate, now_us);
                Ok(Some(error))
            }
            Err(OutOfMemory) => Err(Kind::OutOfMemory),
        },
    };
    file.settle(set);
    true
}

/// The file cannot be used. What is in force stays in force; at the start, the copy of the last good file counts.
pub(super) fn fall_back<T: Plain>(file: &mut Control, gate: &mut Gate, now_us: u64) {
    let something_counts = match file.source {
        ContentsSource::Nothing => file
            .kept
            .read()
            .is_some_and(|(text, _)| matches!(load::<T>(gate, &text, now_us), Ok(Loaded::Good(_)))),
        ContentsSource::File | ContentsSource::Earlier | ContentsSource::Part => true,
    };
    if something_counts {
        file.source = ContentsSource::Earlier;
        file.kept.hold();
    }
}
