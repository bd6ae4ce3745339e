//! Computes figures from the sink's record. Pure functions.

use std::time::Duration;

use crate::plan::Plan;
use crate::run::Run;
use crate::sink::Step;

/// The most sessions at once.
pub fn peak(steps: &[Step]) -> u32 {
    steps.iter().map(|step| step.sessions).max().unwrap_or(0)
}

/// How long there were more than `cap` sessions, in milliseconds: all such times together, and the longest of them.
pub fn above(steps: &[Step], cap: u32) -> (f64, f64) {
    let (mut total, mut longest) = (0, 0);
    let mut since = None;
    for step in steps {
        match (since, step.sessions > cap) {
            (None, true) => since = Some(step.at_us),
            (Some(start), false) => {
                total += step.at_us - start;
                longest = longest.max(step.at_us - start);
                since = None;
            }
            _ => {}
        }
    }
    (total as f64 / 1000.0, longest as f64 / 1000.0)
}

/// The mean number of sessions between two times.
pub fn mean(steps: &[Step], from_us: u64, to_us: u64) -> f64 {
    if to_us <= from_us {
        return 0.0;
    }
    let mut area = 0_u64;
    let mut last = Step { at_us: 0, sessions: 0 };
    let end = Step { at_us: u64::MAX, sessions: 0 };
    for step in steps.iter().copied().chain([end]) {
        let (start, stop) = (last.at_us.max(from_us), step.at_us.min(to_us));
        area += stop.saturating_sub(start) * u64::from(last.sessions);
        last = step;
    }
    area as f64 / (to_us - from_us) as f64
}

/// When a server was busy: from the first time that it had `cap` sessions (if it never had: from its first session) to
/// the start of its last session. After that there was no mail to fill a free place with.
pub fn busy(steps: &[Step], cap: u32) -> Option<(u64, u64)> {
    let first = steps.iter().find(|step| step.sessions >= cap).or(steps.first())?;
    let rises = steps.windows(2).filter(|pair| pair[1].sessions > pair[0].sessions);
    let last = rises.map(|pair| pair[1].at_us).next_back()?;
    (last > first.at_us).then_some((first.at_us, last))
}

/// While a server was busy: the longest time that it had fewer than half of `cap` sessions, in milliseconds.
pub fn longest_lull(steps: &[Step], cap: u32) -> Option<f64> {
    let (from, to) = busy(steps, cap)?;
    let mut longest = 0;
    let mut since = None;
    for step in steps.iter().filter(|step| (from..=to).contains(&step.at_us)) {
        match (since, step.sessions < cap.div_ceil(2)) {
            (None, true) => since = Some(step.at_us),
            (Some(start), false) => {
                longest = longest.max(step.at_us - start);
                since = None;
            }
            _ => {}
        }
    }
    if let Some(start) = since {
        longest = longest.max(to - start);
    }
    Some(longest as f64 / 1000.0)
}

/// The mean number of sessions while a server was busy.
pub fn busy_mean(steps: &[Step], cap: u32) -> Option<f64> {
    busy(steps, cap).map(|(from, to)| mean(steps, from, to))
}

/// How many sessions began within a time, at least and at most: over all intervals `[t, t + within)`, wherever they
/// begin. The least is that of the intervals that end before the last session began: while mail waited. None: there is
/// no such interval.
pub fn starts_within(steps: &[Step], within: Duration) -> Option<(u32, u32)> {
    let mut starts = Vec::new();
    let mut sessions = 0;
    for step in steps {
        starts.extend((sessions..step.sessions).map(|_| step.at_us));
        sessions = step.sessions;
    }
    let within_us = u64::try_from(within.as_micros()).ok()?;
    let last = *starts.last()?;
    let (mut least, mut most) = (None, 0);
    let mut end = 0;
    for (first, &from_us) in starts.iter().enumerate() {
        while starts.get(end).is_some_and(|&at| at < from_us + within_us) {
            end += 1;
        }
        most = most.max(end - first);
        // The interval that begins just after this start has one less.
        if from_us + within_us < last {
            let later = starts[first..].partition_point(|&at| at <= from_us + within_us);
            least = Some(least.map_or(later - 1, |least: usize| least.min(later - 1)));
        }
    }
    Some((u32::try_from(least?).ok()?, u32::try_from(most).ok()?))
}

/// When the first session of any server began, in microseconds of the sink's clock.
pub fn first_session(run: &Run) -> Option<u64> {
    run.record.servers.iter().filter_map(|server| Some(server.steps.first()?.at_us)).min()
}

/// When each mail was accepted for the first time, in microseconds of the sink's clock.
pub fn accepted_at(plan: &Plan, run: &Run) -> Vec<Option<u64>> {
    let mut at = vec![None; plan.mails.len()];
    for accepted in run.record.accepted.iter().rev() {
        at[accepted.mail as usize] = Some(accepted.at_us);
    }
    at
}

/// From `from_us` to the acceptance of the last mail of a class, in seconds. None: not all of it was accepted.
pub fn until_last(plan: &Plan, run: &Run, class: usize, from_us: u64) -> Option<f64> {
    let at = accepted_at(plan, run);
    let mut last = 0;
    for (mail, at) in plan.mails.iter().zip(&at) {
        if mail.class == class {
            last = last.max((*at)?);
        }
    }
    Some(last.saturating_sub(from_us) as f64 / 1e6)
}

/// How long the mails of a class took, each from its arrival to its acceptance, in seconds: the mean, and what 95 of
/// 100 stay below. None: not all of it was accepted, or it did not arrive while the server ran.
pub fn sojourn(plan: &Plan, run: &Run, class: usize) -> Option<(f64, f64)> {
    let times = sojourns(plan, run, class)?;
    let share = times.len() * 95 / 100;
    Some((times.iter().sum::<f64>() / times.len().max(1) as f64, *times.get(share)?))
}

/// The same for each mail, the shortest time first.
pub fn sojourns(plan: &Plan, run: &Run, class: usize) -> Option<Vec<f64>> {
    let at = accepted_at(plan, run);
    let mut times = Vec::new();
    for (number, _) in plan.mails.iter().enumerate().filter(|(_, mail)| mail.class == class) {
        times.push(at[number]?.saturating_sub(run.arrived[number]?) as f64 / 1e6);
    }
    times.sort_by(f64::total_cmp);
    Some(times)
}

/// The value that `share` (0..=1) of `sorted` stay at or below.
pub fn share_of(sorted: &[f64], share: f64) -> Option<f64> {
    let rank = (sorted.len() as f64 * share).ceil() as usize;
    sorted.get(rank.saturating_sub(1)).copied()
}

/// When the first mail of a class arrived.
pub fn first_arrival(plan: &Plan, run: &Run, class: usize) -> Option<u64> {
    let arrived = plan.mails.iter().zip(&run.arrived).filter(|(mail, _)| mail.class == class);
    arrived.filter_map(|(_, at)| *at).min()
}

/// How many mails were accepted more than once, and how many not at all.
pub fn twice_and_lost(plan: &Plan, run: &Run) -> (usize, usize) {
    let mut times = vec![0_u32; plan.mails.len()];
    for accepted in &run.record.accepted {
        times[accepted.mail as usize] += 1;
    }
    let before = plan.before.iter().chain(plan.lists.iter().flatten());
    let before: std::collections::HashSet<u32> = before.copied().collect();
    let offered = |mail: usize| before.contains(&(mail as u32)) || run.arrived[mail].is_some();
    let twice = times.iter().filter(|times| **times > 1).count();
    let lost = (0..times.len()).filter(|&mail| times[mail] == 0 && offered(mail)).count();
    (twice, lost)
}

/// The median.
pub fn median(values: &[f64]) -> Option<f64> {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    match values.len() {
        0 => None,
        len if len % 2 == 1 => Some(values[len / 2]),
        len => Some(f64::midpoint(values[len / 2 - 1], values[len / 2])),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn steps(pairs: &[(u64, u32)]) -> Vec<Step> {
        pairs.iter().map(|&(at_us, sessions)| Step { at_us, sessions }).collect()
    }

    #[test]
    fn areas_and_peaks() {
        let steps = steps(&[(100, 1), (200, 2), (300, 3), (310, 2), (400, 1), (500, 0)]);
        assert_eq!(peak(&steps), 3);
        assert_eq!(above(&steps, 2), (0.01, 0.01));
        assert!((mean(&steps, 100, 300) - 1.5).abs() < 1e-9);
        assert!((mean(&steps, 0, 1000) - 0.61).abs() < 1e-9);
        assert_eq!(busy(&steps, 2), Some((200, 300)));
    }

    #[test]
    fn starts_are_counted_over_every_interval() {
        // At 0, 10, 20, 20, 50, 55, 100.
        let steps =
            steps(&[(0, 1), (10, 2), (15, 1), (20, 3), (30, 0), (50, 1), (55, 2), (100, 3)]);
        assert_eq!(starts_within(&steps, Duration::from_micros(11)), Some((0, 3)));
        assert_eq!(starts_within(&steps, Duration::from_micros(21)), Some((0, 4)));
        assert_eq!(starts_within(&steps, Duration::from_micros(50)), Some((2, 5)));
        assert_eq!(starts_within(&steps, Duration::from_micros(100)), None);
        assert_eq!(starts_within(&[], Duration::from_micros(1)), None);
    }

    #[test]
    fn shares_are_those_of_the_nearest_rank() {
        let hundred: Vec<f64> = (1..=100).map(f64::from).collect();
        assert_eq!(share_of(&hundred, 0.5), Some(50.0));
        assert_eq!(share_of(&hundred, 0.99), Some(99.0));
        assert_eq!(share_of(&hundred[..7], 0.99), Some(7.0));
        assert_eq!(share_of(&[], 0.5), None);
    }

    #[test]
    fn medians() {
        assert_eq!(median(&[]), None);
        assert_eq!(median(&[3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), Some(2.5));
    }
}
