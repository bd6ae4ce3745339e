//! Days of the Gregorian calendar, for log lines and for the dates in files that qpatch writes.
//!
//! The functions are exact for the years 1 to 9999. They stay in place of a crate: they are 30 lines, and a test goes
//! through every day.

/// Returns the days from 1970-01-01 to this day; `None` if the year is not in 1..=9999, the month not in 1..=12 or the
/// day not in 1..=31. Day 31 of a shorter month counts into the next month. Years are counted from March on, so that a
/// leap day is the last day of its year.
pub(crate) fn days_since_1970(year: u64, month: u64, day: u64) -> Option<i64> {
    if !(1..=9999).contains(&year) || !(1..=12).contains(&month) || !(1..=31).contains(&day) {
        return None;
    }
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let days = year * 365 + year / 4 - year / 100 + year / 400 + (month * 153 + 2) / 5 + day - 1;
    Some(days as i64 - 719_468)
}

/// Returns the day `days` after 1970-01-01 as `2009-02-13`. The year is in 0..=9999.
pub(crate) fn iso(days: i64) -> String {
    // Howard Hinnant, "chrono-Compatible Low-Level Date Algorithms", civil_from_days.
    let days = days + 719_468;
    let era = days.div_euclid(146_097);
    let of_era = days.rem_euclid(146_097);
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let from_march = (5 * of_year + 2) / 153;
    let day = of_year - (153 * from_march + 2) / 5 + 1;
    let month = if from_march < 10 { from_march + 3 } else { from_march - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02}")
}

/// Reads a day as [`iso`] writes it; `None` for anything else.
pub(crate) fn from_iso(text: &str) -> Option<i64> {
    let mut numbers = text.split('-').map(|number| number.parse::<u64>().ok());
    let (year, month, day) = (numbers.next()??, numbers.next()??, numbers.next()??);
    let days = days_since_1970(year, month, day)?;
    (numbers.next().is_none() && iso(days) == text).then_some(days)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_and_dates() {
        assert_eq!(iso(0), "1970-01-01");
        assert_eq!(iso(19_782), "2024-02-29");
        for days in -700_000..2_900_000 {
            assert_eq!(from_iso(&iso(days)), Some(days));
        }
        for text in
            ["", "2024-02-30", "2024-2-03", "2024-02", "2024-02-03-04", "x-02-03", "0000-01-01"]
        {
            assert_eq!(from_iso(text), None, "{text}");
        }
    }
}
