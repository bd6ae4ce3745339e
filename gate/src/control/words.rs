//! The fourth field of a line of concurrencydomains: words, separated by commas.
//!
//! A word is `learn`, `fixed`, or a rate ([`crate::control::rates`]). A line has at most one of `learn` and `fixed`,
//! and at most one rate of each unit. Upper and lower case are the same. There are no spaces.

#![forbid(unsafe_code)]

use crate::control::limit::Learning;
use crate::control::problem::{Kind, Problems};
use crate::control::rates::{PacedRate, RATE_MAX, RATE_SECS_MAX, Rates};

/// The words of a line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Words {
    /// None: the line does not say whether its limit learns.
    pub(crate) learning: Option<Learning>,
    /// Its rates.
    pub(crate) rates: Rates,
}

impl Words {
    /// Reads the field, which begins in this column, from 1. If there are problems, the words must not be used.
    pub(crate) fn parse(field: &[u8], line: u32, column: usize, problems: &mut Problems) -> Self {
        let mut words = Self::default();
        let mut column = column;
        for word in field.split(|&byte| byte == b',') {
            if let Err((at, kind)) = words.add(word) {
                problems.add(line, column + at, kind);
            }
            column += word.len() + 1;
        }
        words
    }

    /// Adds a word. A problem has its place in the word, from 0.
    fn add(&mut self, word: &[u8]) -> Result<(), (usize, Kind)> {
        let learning = match word {
            _ if word.eq_ignore_ascii_case(b"learn") => Learning::On,
            _ if word.eq_ignore_ascii_case(b"fixed") => Learning::Fixed,
            _ => return self.add_rate(word),
        };
        match self.learning.replace(learning) {
            Some(_) => Err((0, Kind::LearningTwice)),
            None => Ok(()),
        }
    }

    fn add_rate(&mut self, word: &[u8]) -> Result<(), (usize, Kind)> {
        let Some(slash) = word.iter().position(|&byte| byte == b'/') else {
            return Err((0, Kind::UnknownWord));
        };
        let behind = slash + 1;
        let starts = number(&word[..slash], 0)?;
        let window = match &word[behind..] {
            b"h" | b"H" => Some((3600, &mut self.rates.hour)),
            b"d" | b"D" => Some((24 * 3600, &mut self.rates.day)),
            _ => None,
        };
        if let Some((secs, rate)) = window {
            check(starts, secs)?;
            return rate.replace(starts).map_or(Ok(()), |_| Err((0, Kind::RateTwice)));
        }
        let Some((unit, multiple)) = word[behind..].split_last() else {
            return Err((behind, Kind::RateUnit));
        };
        let (unit_secs, rate) = match unit {
            b's' | b'S' => (1, &mut self.rates.seconds),
            b'm' | b'M' => (60, &mut self.rates.minutes),
            _ => return Err((behind, Kind::RateUnit)),
        };
        let multiple = match multiple {
            [] => 1,
            _ if !multiple.iter().all(u8::is_ascii_digit) => return Err((behind, Kind::RateUnit)),
            digits => number(digits, behind).map_err(|(at, _)| (at, Kind::RateTime))?,
        };
        let secs = multiple
            .checked_mul(unit_secs)
            .filter(|secs| (1..=RATE_SECS_MAX).contains(secs))
            .ok_or((behind, Kind::RateTime))?;
        check(starts, secs)?;
        match rate.replace(PacedRate { starts, secs }) {
            Some(_) => Err((0, Kind::RateTwice)),
            None => Ok(()),
        }
    }
}

/// Whether so many starts in these seconds are a rate.
fn check(starts: u32, secs: u32) -> Result<(), (usize, Kind)> {
    match starts {
        0 => Err((0, Kind::RateZero)),
        starts if u64::from(starts) > u64::from(RATE_MAX) * u64::from(secs) => {
            Err((0, Kind::RateTooHigh))
        }
        _ => Ok(()),
    }
}

/// A number that begins at this place of its word. One that is too large for 32 bits is too high for any rate.
fn number(digits: &[u8], place: usize) -> Result<u32, (usize, Kind)> {
    match digits.iter().position(|byte| !byte.is_ascii_digit()) {
        Some(at) => return Err((place + at, Kind::RateNumber)),
        None if digits.is_empty() => return Err((place, Kind::RateNumber)),
        None => {}
    }
    let add = |value: u32, digit: &u8| value.checked_mul(10)?.checked_add(u32::from(digit - b'0'));
    digits.iter().try_fold(0, add).ok_or((place, Kind::RateTooHigh))
}
