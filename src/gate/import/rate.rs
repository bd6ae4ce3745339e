//! Rates of other mail servers, and how the table says them.
//!
//! A rate is a number of starts within a time. What the table cannot say exactly is said more strictly, never more
//! loosely, or not at all.

use qpatch_gate::rates::{PacedRate, RATE_MAX, RATE_SECS_MAX, Rates};

const HOUR: u64 = 3600;
const DAY: u64 = 24 * HOUR;

/// At most `starts` within `scale` times `unit_secs`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ForeignRate {
    pub(super) starts: u64,
    pub(super) scale: u64,
    /// 1, 60, 3600 or 86400.
    pub(super) unit_secs: u64,
}

/// How the table says a rate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct TableRate {
    pub(super) rates: Rates,
    /// Whether the table's rate is lower than the one that was read.
    pub(super) is_stricter: bool,
}

impl ForeignRate {
    /// Reads `quantity/[scale]unit`, as KumoMTA and PowerMTA write it. `digits` says which characters may stand between
    /// the digits of the quantity.
    ///
    /// # Errors
    /// What was expected.
    pub(super) fn parse(text: &str, separators: &[char]) -> Result<Self, &'static str> {
        let (quantity, time) = text.split_once('/').ok_or("expected N/UNIT")?;
        let quantity: String =
            quantity.trim().chars().filter(|sign| !separators.contains(sign)).collect();
        let time = time.trim();
        let unit_at = time.find(|sign: char| !sign.is_ascii_digit()).ok_or("expected a unit")?;
        let (scale, unit) = time.split_at(unit_at);
        let unit_secs = match unit.to_ascii_lowercase().as_str() {
            "s" | "sec" | "second" => 1,
            "m" | "min" | "minute" => 60,
            "h" | "hr" | "hour" => HOUR,
            "d" | "day" => DAY,
            _ => return Err("expected the unit s, m, h or d"),
        };
        let number = |digits: &str| {
            let is_number = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
            is_number.then(|| digits.parse::<u64>().ok()).flatten().ok_or("expected a number")
        };
        let scale = if scale.is_empty() { 1 } else { number(scale)? };
        match (number(&quantity)?, scale) {
            (0, _) | (_, 0) => Err("expected a number above 0"),
            (starts, scale) => Ok(Self { starts, scale, unit_secs }),
        }
    }

    /// How the table says it.
    ///
    /// # Errors
    /// Why it cannot.
    pub(super) fn in_table(self) -> Result<TableRate, String> {
        let secs = self.scale.checked_mul(self.unit_secs).ok_or("its time is too long")?;
        let highest = u64::from(RATE_MAX).saturating_mul(secs);
        if self.starts > highest.min(u64::from(u32::MAX)) {
            return Err(format!("a rate of the table is at most {RATE_MAX} a second"));
        }
        let starts = self.starts as u32;
        let exactly = |rates| Ok(TableRate { rates, is_stricter: false });
        match (self.unit_secs, self.scale) {
            (HOUR, 1) => return exactly(Rates { hour: Some(starts), ..Rates::NONE }),
            (DAY, 1) => return exactly(Rates { day: Some(starts), ..Rates::NONE }),
            _ => {}
        }
        if secs <= u64::from(RATE_SECS_MAX) {
            let paced = Some(PacedRate { starts, secs: secs as u32 });
            let is_of_minutes = self.unit_secs == 60;
            let (seconds, minutes) = if is_of_minutes { (None, paced) } else { (paced, None) };
            return exactly(Rates { seconds, minutes, ..Rates::NONE });
        }
        // N in 90 minutes: with N/2 in each hour there are at most N in any two, so in any 90 minutes.
        let (unit, name) = if secs < DAY { (HOUR, "hour") } else { (DAY, "day") };
        let units = secs.div_ceil(unit);
        let each = u64::from(starts) / units;
        if each == 0 {
            return Err(format!("the table has no time between one {name} and {units}"));
        }
        let each = Some(each as u32);
        let (hour, day) = if unit == HOUR { (each, None) } else { (None, each) };
        Ok(TableRate { rates: Rates { hour, day, ..Rates::NONE }, is_stricter: true })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(text: &str) -> String {
        match ForeignRate::parse(text, &[',', '_']).map(ForeignRate::in_table) {
            Ok(Ok(TableRate { rates, is_stricter: false })) => rates.to_string(),
            Ok(Ok(TableRate { rates, is_stricter: true })) => format!("stricter: {rates}"),
            Ok(Err(why)) => why,
            Err(why) => why.to_string(),
        }
    }

    #[test]
    fn rates_are_said_exactly_or_more_strictly() {
        for (text, expected) in [
            ("100/min", "100/m"),
            ("100/s", "100/s"),
            ("3/5m", "3/5m"),
            ("1/minute", "1/m"),
            ("1,000/hr", "1000/h"),
            ("10_000/day", "10000/d"),
            ("7/30sec", "7/30s"),
            ("60/60m", "60/60m"),
            ("10/90m", "stricter: 5/h"),
            ("10/2h", "stricter: 5/h"),
            ("10/3d", "stricter: 3/d"),
            ("1/2h", "the table has no time between one hour and 2"),
            ("20000/s", "a rate of the table is at most 10000 a second"),
            ("5000000000/d", "a rate of the table is at most 10000 a second"),
            ("0/s", "expected a number above 0"),
            ("1/0s", "expected a number above 0"),
            ("/s", "expected a number"),
            ("1/", "expected a unit"),
            ("1/week", "expected the unit s, m, h or d"),
            ("10", "expected N/UNIT"),
            ("1/18446744073709551615d", "its time is too long"),
            ("1/99999999999999999999d", "expected a number"),
        ] {
            assert_eq!(said(text), expected, "{text}");
        }
    }
}
