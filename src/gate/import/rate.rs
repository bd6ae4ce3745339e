//! Rates of other mail servers, and how the table says them.
//!
//! A rate is a number of starts within a time. What the table cannot say exactly is said more strictly. Only a rate of
//! less than one start an hour over more than an hour may be exceeded for a while; its note says so.

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

/// How the table's rate compares with the one that was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fit {
    Exact,
    Stricter,
    /// As many starts in a day, but more of them may be close together.
    Looser,
}

/// How the table says a rate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct TableRate {
    pub(super) rates: Rates,
    pub(super) fit: Fit,
}

impl TableRate {
    /// What a reader of the table should know, if it does not say the rate exactly. `text` is the rate as it was read.
    pub(super) fn note(&self, text: &str) -> Option<String> {
        let rates = self.rates;
        match self.fit {
            Fit::Exact => None,
            Fit::Stricter => Some(format!("{text} is said as {rates}, which is stricter")),
            Fit::Looser => Some(format!(
                "{text} is said as {rates}, which is looser: the table has no time between an hour and a day, and none \
                 above a day"
            )),
        }
    }
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
    pub(super) fn in_table(self) -> TableRate {
        let secs = self.scale.saturating_mul(self.unit_secs);
        let highest = u64::from(RATE_MAX).saturating_mul(secs).min(u64::from(u32::MAX));
        let starts = self.starts.min(highest) as u32;
        let fit = if u64::from(starts) < self.starts { Fit::Stricter } else { Fit::Exact };
        let said = |rates| TableRate { rates, fit };
        match (self.unit_secs, self.scale) {
            (HOUR, 1) => return said(Rates { hour: Some(starts), ..Rates::NONE }),
            (DAY, 1) => return said(Rates { day: Some(starts), ..Rates::NONE }),
            _ => {}
        }
        if secs <= u64::from(RATE_SECS_MAX) {
            let paced = Some(PacedRate { starts, secs: secs as u32 });
            let is_of_minutes = self.unit_secs == 60;
            let (seconds, minutes) = if is_of_minutes { (None, paced) } else { (paced, None) };
            return said(Rates { seconds, minutes, ..Rates::NONE });
        }
        // N in 90 minutes: with N/2 in each hour there are at most N in any two, so in any 90 minutes.
        let unit = if secs < DAY { HOUR } else { DAY };
        let each = (u64::from(starts) / secs.div_ceil(unit)) as u32;
        let (rates, fit) = match (each, unit) {
            (0, HOUR) => {
                // 1 in 2 hours: with 1/d there would be a twelfth of the mail.
                let hourly = Some(PacedRate { starts: 1, secs: RATE_SECS_MAX });
                let day = Some((u64::from(starts) * DAY / secs) as u32);
                (Rates { minutes: hourly, day, ..Rates::NONE }, Fit::Looser)
            }
            (0, _) => (Rates { day: Some(1), ..Rates::NONE }, Fit::Looser),
            (each, HOUR) => (Rates { hour: Some(each), ..Rates::NONE }, Fit::Stricter),
            (each, _) => (Rates { day: Some(each), ..Rates::NONE }, Fit::Stricter),
        };
        TableRate { rates, fit }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(text: &str) -> String {
        match ForeignRate::parse(text, &[',', '_']).map(ForeignRate::in_table) {
            Ok(TableRate { rates, fit: Fit::Exact }) => rates.to_string(),
            Ok(TableRate { rates, fit: Fit::Stricter }) => format!("stricter: {rates}"),
            Ok(TableRate { rates, fit: Fit::Looser }) => format!("looser: {rates}"),
            Err(why) => why.to_string(),
        }
    }

    #[test]
    fn rates_are_said_exactly_or_with_a_word_about_the_difference() {
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
            ("1/2h", "looser: 1/60m,12/d"),
            ("5/8h", "looser: 1/60m,15/d"),
            ("1/3d", "looser: 1/d"),
            ("20000/s", "stricter: 10000/s"),
            ("5000000000/d", "stricter: 864000000/d"),
            ("0/s", "expected a number above 0"),
            ("1/0s", "expected a number above 0"),
            ("/s", "expected a number"),
            ("1/", "expected a unit"),
            ("1/week", "expected the unit s, m, h or d"),
            ("10", "expected N/UNIT"),
            ("1/18446744073709551615d", "looser: 1/d"),
            ("1/99999999999999999999d", "expected a number"),
        ] {
            assert_eq!(said(text), expected, "{text}");
        }
    }
}
