//! How many stubs ran at once over time, as a chart of text.
#![forbid(unsafe_code)]

use super::stub::{StubEvent, StubEventKind};

/// How many parts the time has: characters of a line.
const COLUMNS: usize = 60;
/// How many lines a chart has.
const LINES: u32 = 4;

/// The most stubs at once in each part of a time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AtOnce {
    /// What ran.
    pub name: String,
    /// The most at once in each part.
    pub peaks: Vec<u32>,
    /// The end of the last one, in seconds since the first event of all.
    pub end_ms: u64,
}

/// The curves of some events, each with its name and those that it counts. All have the same time: that of the events.
pub fn curves<'e>(
    events: &'e [StubEvent],
    of: &[(String, &dyn Fn(&'e StubEvent) -> bool)],
) -> Vec<AtOnce> {
    let times = || events.iter().map(|event| event.at_ns);
    let (Some(first), Some(last)) = (times().min(), times().max()) else { return Vec::new() };
    let column = |at_ns: u64| {
        let part = u128::from(at_ns - first) * COLUMNS as u128 / u128::from((last - first).max(1));
        (part as usize).min(COLUMNS - 1)
    };
    let curve = |(name, counts): &(String, &dyn Fn(&'e StubEvent) -> bool)| {
        // As in `stub::peak`: at the same nanosecond the end comes first.
        let mut steps: Vec<(u64, i64)> = events
            .iter()
            .filter(|event| counts(event))
            .map(|event| (event.at_ns, if event.kind == StubEventKind::Start { 1 } else { -1 }))
            .collect();
        steps.sort_unstable();
        let mut peaks = vec![0; COLUMNS];
        let (mut running, mut at) = (0i64, 0);
        for &(at_ns, step) in &steps {
            let to = column(at_ns);
            let now = u32::try_from(running).unwrap_or(0);
            peaks[at..=to].iter_mut().for_each(|peak: &mut u32| *peak = (*peak).max(now));
            (running, at) = (running + step, to);
            peaks[at] = peaks[at].max(u32::try_from(running).unwrap_or(0));
        }
        let end_ns = steps.last().map_or(first, |&(at_ns, _)| at_ns);
        AtOnce { name: name.clone(), peaks, end_ms: (end_ns - first) / 1_000_000 }
    };
    of.iter().map(curve).collect()
}

/// The curves below each other, as lines of ASCII.
pub fn chart(curves: &[AtOnce]) -> Vec<String> {
    let end_ms = curves.iter().map(|curve| curve.end_ms).max().unwrap_or(0);
    let mut lines = Vec::new();
    for AtOnce { name, peaks, end_ms } in curves {
        let top = peaks.iter().copied().max().unwrap_or(0).max(1);
        lines.push(format!("{name}: at most {top} at once, all done after {}", secs(*end_ms)));
        for line in (1..=LINES).rev() {
            // Something that runs is seen, however few they are.
            let shows = |peak: &u32| {
                u64::from(*peak) * u64::from(LINES) > u64::from(line - 1) * u64::from(top)
            };
            let row: String =
                peaks.iter().map(|peak| if shows(peak) { '#' } else { ' ' }).collect();
            let title = if line == LINES { top.to_string() } else { String::new() };
            lines.push(format!("{title:>6} |{row}").trim_end().to_string());
        }
        lines.push(format!("{:>6} +{}", 0, "-".repeat(COLUMNS)));
    }
    let end = secs(end_ms);
    lines.push(format!("        0 s{end:>width$}", width = COLUMNS - 3));
    lines
}

fn secs(ms: u64) -> String {
    format!("{:.1} s", ms as f64 / 1000.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_runs_at_once_is_drawn() {
        let event = |kind, at_ms: u64, domain: &str| StubEvent {
            kind,
            pid: 1,
            at_ns: 5_000_000_000 + at_ms * 1_000_000,
            program: "remote".to_string(),
            recipient: format!("k-none-1@{domain}"),
        };
        use StubEventKind::{End, Start};
        let mut events = Vec::new();
        // Four at once for the first half, then one; the other domain has two at the beginning.
        for number in 0..4 {
            events.push(event(Start, 0, "a"));
            events.push(event(End, if number == 0 { 6000 } else { 3000 }, "a"));
        }
        events.extend([event(Start, 500, "b"), event(Start, 500, "b")]);
        events.extend([event(End, 1000, "b"), event(End, 1000, "b")]);
        let is = |domain: &'static str| move |event: &StubEvent| event.domain() == domain;
        let (a, b) = (is("a"), is("b"));
        let curves = curves(&events, &[("a".to_string(), &a), ("b".to_string(), &b)]);
        let expected = format!(
            "\
a: at most 4 at once, all done after 6.0 s
     4 |{four}
       |{four}
       |{four}
       |{all}
     0 +{axis}
b: at most 2 at once, all done after 1.0 s
     2 |     ######
       |     ######
       |     ######
       |     ######
     0 +{axis}
        0 s                                                    6.0 s",
            four = "#".repeat(31),
            all = "#".repeat(60),
            axis = "-".repeat(60),
        );
        assert_eq!(chart(&curves).join("\n"), expected);
        assert_eq!(super::curves(&[], &[]), []);
    }
}
