//! Draws sessions over time as SVG. Pure functions: steps in, text out.

use std::fmt::Write as _;

use crate::sink::Step;

/// One line of a panel.
#[derive(Debug, Clone)]
pub struct Series {
    /// What it is.
    pub label: String,
    /// Its colour, as SVG has it.
    pub colour: &'static str,
    /// The number of sessions over time; the time counts from the left edge.
    pub steps: Vec<Step>,
}

/// One diagram of a picture; all diagrams have the same time axis.
#[derive(Debug, Clone)]
pub struct Panel {
    /// The text above the diagram.
    pub title: String,
    /// Its lines, the last one on top.
    pub series: Vec<Series>,
    /// A level that is drawn as a line, and its name.
    pub cap: Option<(u32, String)>,
}

const WIDTH: f64 = 900.0;
const LEFT: f64 = 64.0;
const RIGHT: f64 = 24.0;
const HEAD: f64 = 92.0;
const PANEL: f64 = 190.0;
const GAP: f64 = 52.0;
const FOOT: f64 = 52.0;

/// The sessions of several servers together.
pub fn sum<'s>(servers: impl IntoIterator<Item = &'s [Step]>) -> Vec<Step> {
    let mut changes: Vec<(u64, i64)> = Vec::new();
    for steps in servers {
        let mut before = 0;
        for step in steps {
            changes.push((step.at_us, i64::from(step.sessions) - before));
            before = i64::from(step.sessions);
        }
    }
    // Ends before starts, as the sink has it.
    changes.sort_unstable();
    let mut now = 0;
    changes
        .into_iter()
        .map(|(at_us, change)| {
            now += change;
            Step { at_us, sessions: u32::try_from(now).unwrap_or(0) }
        })
        .collect()
}

/// Shifts the steps so that time begins at `from_us`.
pub fn shifted(steps: &[Step], from_us: u64) -> Vec<Step> {
    let shift =
        |step: &Step| Step { at_us: step.at_us.saturating_sub(from_us), sessions: step.sessions };
    steps.iter().map(shift).collect()
}

/// The distance between about `count` round values up to `most`.
fn tick(most: f64, count: f64) -> f64 {
    let rough = (most / count).max(f64::MIN_POSITIVE);
    let size = 10_f64.powf(rough.log10().floor());
    let times = [1.0, 2.0, 5.0, 10.0].into_iter().find(|times| times * size >= rough);
    times.unwrap_or(10.0) * size
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

struct Scale {
    x: f64,
    y: f64,
    base: f64,
}

/// A staircase, thinned to what can be seen: per column of pixels its first, lowest, highest and last value.
fn path(steps: &[Step], scale: &Scale) -> String {
    let x = |at_us: u64| LEFT + at_us as f64 * scale.x;
    let y = |sessions: u32| scale.base - f64::from(sessions) * scale.y;
    let mut path = String::new();
    let mut last = 0_u32;
    let mut index = 0;
    let _ = write!(path, "M{:.1} {:.1}", x(steps.first().map_or(0, |step| step.at_us)), y(0));
    while index < steps.len() {
        let column = (x(steps[index].at_us) * 2.0).floor();
        let at = x(steps[index].at_us);
        let mut values = vec![last];
        while index < steps.len() && (x(steps[index].at_us) * 2.0).floor() == column {
            values.push(steps[index].sessions);
            index += 1;
        }
        let _ = write!(path, "H{at:.1}");
        let (least, most) = (values.iter().min(), values.iter().max());
        last = values.last().copied().unwrap_or(last);
        for value in [least, most].into_iter().flatten().chain([&last]) {
            let _ = write!(path, "V{:.1}", y(*value));
        }
    }
    path
}

/// The picture.
pub fn draw(title: &str, subtitle: &str, panels: &[Panel]) -> String {
    let height = HEAD + panels.len() as f64 * (PANEL + GAP) - GAP + FOOT;
    let all = || panels.iter().flat_map(|panel| &panel.series);
    let end_us = all().filter_map(|series| Some(series.steps.last()?.at_us)).max().unwrap_or(1);
    let distance = tick(end_us as f64 / 1e6, 8.0);
    let end_secs = (end_us as f64 / 1e6 / distance).ceil().max(1.0) * distance;
    let across = (WIDTH - LEFT - RIGHT) / (end_secs * 1e6);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" width=\"{WIDTH}\" height=\"{height}\" \
         font-family=\"system-ui, -apple-system, 'Segoe UI', 'DejaVu Sans', sans-serif\" font-size=\"13\" fill=\"#333\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>\n\
         <text x=\"{LEFT}\" y=\"28\" font-size=\"18\" font-weight=\"600\" fill=\"#111\">{}</text>\n\
         <text x=\"{LEFT}\" y=\"48\" fill=\"#666\">{}</text>\n",
        escaped(title),
        escaped(subtitle)
    );
    for (number, panel) in panels.iter().enumerate() {
        let top = HEAD + number as f64 * (PANEL + GAP);
        let is_last = number + 1 == panels.len();
        draw_panel(&mut svg, panel, top, across, (distance, end_secs), is_last);
    }
    let _ = writeln!(
        svg,
        "<text x=\"{}\" y=\"{}\" text-anchor=\"middle\">seconds since the first session</text>\n</svg>",
        LEFT + (WIDTH - LEFT - RIGHT) / 2.0,
        height - 12.0
    );
    svg
}

fn draw_panel(
    svg: &mut String,
    panel: &Panel,
    top: f64,
    across: f64,
    (distance, end_secs): (f64, f64),
    is_last: bool,
) {
    let base = top + PANEL;
    let right = WIDTH - RIGHT;
    let peaks = panel.series.iter().flat_map(|series| &series.steps).map(|step| step.sessions);
    let most = peaks.chain(panel.cap.iter().map(|(cap, _)| *cap)).max().unwrap_or(0).max(1);
    let up = tick(f64::from(most) * 1.05, 4.0).max(1.0);
    let ceiling = (f64::from(most) * 1.05 / up).ceil() * up;
    let scale = Scale { x: across, y: PANEL / ceiling, base };
    let mut legend = right;
    for series in &panel.series {
        // About as wide as the letters are; from the right, so that the title has the left.
        let width = series.label.chars().count() as f64 * 7.2;
        let y = top - 10.0;
        let _ = writeln!(
            svg,
            "<text x=\"{legend:.1}\" y=\"{y:.1}\" text-anchor=\"end\">{}</text>\n\
             <line x1=\"{:.1}\" y1=\"{:.1}\" x2=\"{:.1}\" y2=\"{:.1}\" stroke=\"{}\" stroke-width=\"3\"/>",
            escaped(&series.label),
            legend - width - 26.0,
            y - 4.0,
            legend - width - 6.0,
            y - 4.0,
            series.colour
        );
        legend -= width + 46.0;
    }
    let _ = writeln!(
        svg,
        "<text x=\"{LEFT}\" y=\"{:.1}\" font-weight=\"600\">{}</text>",
        top - 10.0,
        escaped(&panel.title)
    );
    let mut value = 0.0;
    while value <= ceiling + up / 2.0 {
        let y = base - value * scale.y;
        let _ = writeln!(
            svg,
            "<line x1=\"{LEFT}\" y1=\"{y:.1}\" x2=\"{right}\" y2=\"{y:.1}\" stroke=\"#e4e4e4\"/>\n\
             <text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{value:.0}</text>",
            LEFT - 8.0,
            y + 4.5
        );
        value += up;
    }
    let _ = writeln!(
        svg,
        "<text transform=\"translate(18 {:.1}) rotate(-90)\" text-anchor=\"middle\">sessions</text>",
        top + PANEL / 2.0
    );
    let mut secs = 0.0;
    while secs <= end_secs + distance / 2.0 {
        let x = LEFT + secs * 1e6 * across;
        let _ = writeln!(
            svg,
            "<line x1=\"{x:.1}\" y1=\"{base:.1}\" x2=\"{x:.1}\" y2=\"{:.1}\" stroke=\"#999\"/>",
            base + 5.0
        );
        if is_last {
            let places = if distance < 1.0 { 1 } else { 0 };
            let _ = writeln!(
                svg,
                "<text x=\"{x:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{secs:.places$}</text>",
                base + 20.0
            );
        }
        secs += distance;
    }
    let _ = writeln!(
        svg,
        "<line x1=\"{LEFT}\" y1=\"{base:.1}\" x2=\"{right}\" y2=\"{base:.1}\" stroke=\"#999\"/>"
    );
    if let Some((cap, label)) = &panel.cap {
        let y = base - f64::from(*cap) * scale.y;
        let _ = writeln!(
            svg,
            "<line x1=\"{LEFT}\" y1=\"{y:.1}\" x2=\"{right}\" y2=\"{y:.1}\" stroke=\"#111\" stroke-dasharray=\"5 4\"/>\n\
             <text x=\"{right}\" y=\"{:.1}\" text-anchor=\"end\" fill=\"#111\">{}</text>",
            y - 6.0,
            escaped(label)
        );
    }
    for series in &panel.series {
        let _ = writeln!(
            svg,
            "<path d=\"{}\" fill=\"none\" stroke=\"{}\" stroke-width=\"1.6\" stroke-linejoin=\"round\"/>",
            path(&series.steps, &scale),
            series.colour
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step(at_us: u64, sessions: u32) -> Step {
        Step { at_us, sessions }
    }

    #[test]
    fn ticks_are_round() {
        for (most, distance) in [(28.0, 5.0), (200.0, 50.0), (1.0, 0.2), (600.0, 100.0)] {
            let found = tick(most, if most > 100.0 && most < 300.0 { 4.0 } else { 6.0 });
            assert!((found - distance).abs() < 1e-9, "{most}: {found}");
        }
    }

    #[test]
    fn sums_go_through_every_change() {
        let (one, two) = ([step(10, 1), step(30, 0)], [step(20, 2), step(30, 1), step(40, 0)]);
        let both = sum([&one[..], &two[..]]);
        let sessions: Vec<u32> = both.iter().map(|step| step.sessions).collect();
        assert_eq!(sessions, [1, 3, 2, 1, 0]);
    }

    #[test]
    fn a_picture_has_its_labels_and_stays_small() {
        let steps: Vec<Step> =
            (0..200_000).map(|n| step(n * 100, if n % 2 == 0 { 20 } else { 19 })).collect();
        let series = Series { label: "a < b".to_owned(), colour: "#123456", steps };
        let panel = Panel {
            title: "the big domain".to_owned(),
            series: vec![series],
            cap: Some((20, "cap 20".to_owned())),
        };
        let svg = draw("S1 & co", "0.2 s each", &[panel]);
        assert!(svg.starts_with("<svg ") && svg.ends_with("</svg>\n"));
        for text in ["S1 &amp; co", "a &lt; b", "cap 20", "seconds since", ">sessions<"] {
            assert!(svg.contains(text), "{text}");
        }
        assert!(svg.len() < 200_000, "{}", svg.len());
    }
}
