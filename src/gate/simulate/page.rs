//! `--html`: one page with pictures of a simulation, without anything from elsewhere and without scripts.
//!
//! Names of keys and texts of servers come from strangers. They are printable ASCII here (`gate::text`), and
//! [`EscapedHtml`] writes them, so none is ever a tag or the end of an attribute. If one were, the page's policy still
//! lets the browser run no script and load nothing.

use std::fmt::Write as _;

use qpatch_gate::table::Limit;

use super::curves::{Curve, KeyCurves, WAIT_CLASSES_SECS};
use super::keys::SimulatedKey;
use super::outcome::{SimulationOutcome, ranked};
use super::replay::Replay;
use super::tried::TriesOutcome;
use crate::gate::escaped_html::EscapedHtml;
use crate::gate::text::{cap_text, escaped, key_name, printable};
use crate::output::count;

const STYLE: &str = include_str!("page.css");

/// The most keys with a picture.
const CHARTS_MAX: usize = 24;
/// So many at once make a key worth a picture although nothing of it waits.
const BUSY: u32 = 5;
/// The most rows of a table.
const ROWS_MAX: usize = 200;

/// How many values a picture has over its time.
const COLUMNS: usize = 240;
/// Where the areas of a picture are, in its own units: left, right, and for each area its top and its height.
const LEFT: f64 = 30.0;
const RIGHT: f64 = 396.0;
const RUNNING: (f64, f64) = (8.0, 104.0);
const WAITING: (f64, f64) = (136.0, 26.0);
const HEIGHT: u32 = 168;

/// Writes into a string.
macro_rules! put {
    ($html:expr, $($text:tt)*) => {
        write!($html, $($text)*).expect("memory can be written")
    };
}

/// The page about a run. The run must have recorded its curves.
pub(super) fn page(
    outcome: &SimulationOutcome,
    run: &Replay,
    tries: Option<&TriesOutcome>,
) -> String {
    let mut html = String::with_capacity(1 << 16);
    html.push_str(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'; \
         img-src data:; base-uri 'none'; form-action 'none'\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <meta name=\"color-scheme\" content=\"light dark\">\n<title>What the limits would have done</title>\n\
         <link rel=\"icon\" href=\"data:,\">\n<style>\n",
    );
    html.push_str(STYLE);
    html.push_str("</style>\n</head>\n<body>\n<h1>What the limits would have done</h1>\n");
    let (limits, log) = outcome.heads();
    put!(
        html,
        "<p class=\"dim\">limits: {}<br>log: {}</p>\n",
        EscapedHtml(&limits),
        EscapedHtml(&log)
    );
    figures(&mut html, outcome);
    charts(&mut html, run);
    if let Some(tries) = tries {
        tried(&mut html, tries);
    }
    waits(&mut html, run);
    refusals(&mut html, run);
    let notes = outcome.notes();
    if !notes.is_empty() {
        html.push_str("<h2>How far this can be trusted</h2>\n<ul>\n");
        for note in notes {
            put!(html, "<li>{}</li>\n", EscapedHtml(&printable(note)));
        }
        html.push_str("</ul>\n");
    }
    html.push_str("<p class=\"dim\">Made by qpatch gate simulate.</p>\n</body>\n</html>\n");
    html
}

fn figures(html: &mut String, outcome: &SimulationOutcome) {
    html.push_str("<dl>\n");
    for (name, value) in outcome.figures() {
        put!(html, "<div><dt>{name}</dt><dd>{}</dd></div>\n", EscapedHtml(&value));
    }
    html.push_str("</dl>\n");
}

/// `15 s`, `12 min`, `5.2 h`.
pub(super) fn span(secs: f64) -> String {
    match secs {
        ..0.05 => "0 s".to_string(),
        ..10.0 => format!("{secs:.1} s"),
        ..120.0 => format!("{secs:.0} s"),
        ..600.0 => format!("{:.1} min", secs / 60.0).replace(".0 ", " "),
        ..7200.0 => format!("{:.0} min", secs / 60.0),
        ..172_800.0 => format!("{:.1} h", secs / 3600.0),
        _ => format!("{:.1} d", secs / 86400.0),
    }
}

fn secs(us: u64) -> f64 {
    us as f64 / 1e6
}

fn name_of(key: &SimulatedKey) -> String {
    key_name(key.kind, &escaped(&key.name))
}

fn charts(html: &mut String, run: &Replay) {
    let machine = &run.machine;
    html.push_str(
        "<h2>Deliveries at once</h2>\n<p class=\"legend\"><span><i class=\"before\"></i>as in the log</span> \
         <span><i class=\"running\"></i>with the limits</span> <span><i class=\"limit\"></i>limit</span> \
         <span><i class=\"waiting\"></i>waiting</span></p>\n<div id=\"charts\">\n",
    );
    let ends = (machine.last_end_us.max(run.last_end_us), run.last_end_us);
    if let Some(curves) = &machine.curves {
        figure(
            html,
            "all",
            "All destinations",
            "",
            &Chart { curves, limit: Limit::Unlimited, ends },
        );
    }
    let worth = |key: &&SimulatedKey| key.waited + key.never > 0 || key.open_peak >= BUSY;
    let mut left_out = 0;
    for (number, key) in (1..).zip(ranked(machine).into_iter().filter(worth)) {
        let Some(curves) = key.curves.as_ref().filter(|_| number <= CHARTS_MAX) else {
            left_out += 1;
            continue;
        };
        let limit = cap_text(key.cap.limit, &key.cap.rates.to_string());
        let limit = format!("limit {limit}");
        figure(
            html,
            &format!("key-{number}"),
            &name_of(key),
            &limit,
            &Chart { curves, limit: key.cap.limit, ends },
        );
    }
    html.push_str("</div>\n");
    if left_out > 0 {
        put!(
            html,
            "<p class=\"dim\">{} with less waiting have no picture.</p>\n",
            count(left_out, "key")
        );
    }
}

/// What a picture shows.
struct Chart<'a> {
    curves: &'a KeyCurves,
    limit: Limit,
    /// When the last delivery ends: of both, and in the log.
    ends: (u64, u64),
}

fn figure(html: &mut String, id: &str, name: &str, what: &str, chart: &Chart<'_>) {
    let curves = chart.curves;
    let (before, with) = (curves.before.peak(), curves.running.peak());
    put!(
        html,
        "<figure>\n<figcaption><b>{}</b> {}<span>at most {before} at once in the log, {with} with the limits; {}\
         </span></figcaption>\n",
        EscapedHtml(name),
        EscapedHtml(what),
        match curves.waiting.peak() {
            0 => "nothing waits".to_string(),
            waiting => format!("up to {waiting} wait"),
        }
    );
    svg(html, id, chart);
    html.push_str("</figure>\n");
}

/// Writes the picture of a key.
fn svg(html: &mut String, id: &str, chart: &Chart<'_>) {
    let Chart { curves, limit, ends: (end_us, log_end_us) } = chart;
    let (end_us, log_end_us) = ((*end_us).max(1), *log_end_us);
    let peak = curves.before.peak().max(curves.running.peak()).max(1);
    let limit = match limit {
        Limit::AtMost(limit) if *limit <= peak.saturating_mul(2) => Some(*limit),
        _ => None,
    };
    let top = peak.max(limit.unwrap_or(0));
    put!(
        html,
        "<svg id=\"{id}\" class=\"chart\" viewBox=\"0 0 400 {HEIGHT}\" role=\"img\" \
         aria-label=\"deliveries at once over \
         time: at most {} in the log, {} with the limits\">\n<rect class=\"paper\" x=\"{LEFT}\" y=\"{}\" width=\"{}\" \
         height=\"{}\"/>\n",
        curves.before.peak(),
        curves.running.peak(),
        RUNNING.0,
        RIGHT - LEFT,
        RUNNING.1
    );
    let columns = |curve: &Curve| curve.columns(end_us, COLUMNS);
    area(html, "before", RUNNING, &columns(&curves.before), top);
    area(html, "running", RUNNING, &columns(&curves.running), top);
    let (base, height) = (RUNNING.0 + RUNNING.1, RUNNING.1);
    let y = |value: u32| base - height * f64::from(value) / f64::from(top);
    if let Some(limit) = limit {
        line(html, "limit", (LEFT, y(limit)), (RIGHT, y(limit)));
    }
    let x = |us: u64| LEFT + (RIGHT - LEFT) * (us as f64 / end_us as f64).min(1.0);
    if log_end_us < end_us {
        line(html, "end", (x(log_end_us), RUNNING.0), (x(log_end_us), base));
    }
    line(html, "axis", (LEFT, base), (RIGHT, base));
    text(html, (LEFT - 4.0, RUNNING.0 + 8.0), "end", &top.to_string());
    if let Some(limit) =
        limit.filter(|&limit| y(limit) > RUNNING.0 + 18.0 && y(limit) < base - 14.0)
    {
        text(html, (LEFT - 4.0, y(limit) + 4.0), "end", &limit.to_string());
    }
    text(html, (LEFT - 4.0, base), "end", "0");
    text(html, (LEFT, base + 13.0), "start", "0");
    text(html, ((LEFT + RIGHT) / 2.0, base + 13.0), "middle", &span(secs(end_us / 2)));
    text(html, (RIGHT, base + 13.0), "end", &span(secs(end_us)));
    let waiting = curves.waiting.peak();
    if waiting > 0 {
        area(html, "waiting", WAITING, &columns(&curves.waiting), waiting);
        line(html, "axis", (LEFT, WAITING.0 + WAITING.1), (RIGHT, WAITING.0 + WAITING.1));
        text(html, (LEFT - 4.0, WAITING.0 + 8.0), "end", &waiting.to_string());
    }
    html.push_str("</svg>\n");
}

fn line(html: &mut String, class: &str, from: (f64, f64), to: (f64, f64)) {
    put!(
        html,
        "<line class=\"{class}\" x1=\"{:.1}\" y1=\"{:.1}\" x2=\"{:.1}\" y2=\"{:.1}\"/>\n",
        from.0,
        from.1,
        to.0,
        to.1
    );
}

fn text(html: &mut String, (x, y): (f64, f64), anchor: &str, text: &str) {
    put!(html, "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\">{text}</text>\n");
}

/// Writes values as an area of steps.
fn area(html: &mut String, class: &str, (at, height): (f64, f64), values: &[u32], top: u32) {
    let base = at + height;
    let x = |column: usize| LEFT + (RIGHT - LEFT) * column as f64 / values.len() as f64;
    put!(html, "<path class=\"{class}\" d=\"M{LEFT} {base}");
    for (column, &value) in values.iter().enumerate() {
        if column == 0 || values[column - 1] != value {
            let y = base - height * f64::from(value) / f64::from(top);
            put!(html, "H{:.1}V{y:.1}", x(column));
        }
    }
    put!(html, "H{RIGHT}V{base}Z\"/>\n");
}

fn head(html: &mut String, class: &str, columns: &[(&str, bool)]) {
    put!(html, "<table class=\"{class}\">\n<thead><tr>");
    for (name, is_number) in columns {
        let class = if *is_number { " class=\"number\"" } else { "" };
        put!(html, "<th{class}>{name}</th>");
    }
    html.push_str("</tr></thead>\n<tbody>\n");
}

fn cell(html: &mut String, name: &str, value: &str) {
    put!(html, "<td class=\"number\" data-name=\"{name}\">{}</td>", EscapedHtml(value));
}

fn tried(html: &mut String, tries: &TriesOutcome) {
    put!(html, "<h2>{} with other limits</h2>\n", EscapedHtml(&tries.key));
    let names = ["limit", "at once", "waited", "mean wait", "longest wait", "last end"];
    head(html, "narrow", &names.map(|name| (name, true)));
    let (first, others) = tries.limits.split_first().expect("one run is that of the file");
    for one in others.iter().chain([first]) {
        html.push_str(if one.is_in_file { "<tr class=\"now\">" } else { "<tr>" });
        let limit = one.limit.map_or_else(|| "none".to_string(), |limit| limit.to_string());
        let file = if one.is_in_file { " (in the file)" } else { "" };
        let later = if one.last_end_later < 0.0 { "-" } else { "+" };
        let values = [
            format!("{limit}{file}"),
            one.peak.to_string(),
            one.waited.to_string(),
            span(one.mean_wait),
            span(one.max_wait),
            match one.never_started {
                0 => format!("{later}{}", span(one.last_end_later.abs())),
                _ => "never".to_string(),
            },
        ];
        for (name, value) in names.iter().zip(values) {
            cell(html, name, &value);
        }
        html.push_str("</tr>\n");
    }
    html.push_str("</tbody>\n</table>\n");
}

/// The names of the classes of waits.
fn wait_class(class: usize) -> String {
    match WAIT_CLASSES_SECS.get(class) {
        Some(&end) => format!("under {}", span(end as f64)),
        None => format!("{} and more", span(WAIT_CLASSES_SECS[WAIT_CLASSES_SECS.len() - 1] as f64)),
    }
}

fn waits(html: &mut String, run: &Replay) {
    html.push_str("<h2>Who waits how long</h2>\n");
    let keys = ranked(&run.machine);
    let waited: Vec<_> = keys.iter().filter(|key| key.waited + key.never > 0).collect();
    if waited.is_empty() {
        return html.push_str("<p>Nothing waits.</p>\n");
    }
    html.push_str("<p class=\"legend\">");
    for class in 0..=WAIT_CLASSES_SECS.len() {
        put!(html, "<span><i class=\"w{class}\"></i>{}</span> ", wait_class(class));
    }
    html.push_str("</p>\n");
    let names = ["limit", "deliveries", "waited", "mean wait", "longest wait"];
    let mut columns = vec![("key", false)];
    columns.extend(names.map(|name| (name, true)));
    columns.push(("of those that waited", false));
    head(html, "wide", &columns);
    for key in waited.iter().take(ROWS_MAX) {
        put!(html, "<tr><th scope=\"row\">{}</th>", EscapedHtml(&name_of(key)));
        let mean = if key.waited == 0 { 0.0 } else { secs(key.waited_us) / key.waited as f64 };
        let values = [
            cap_text(key.cap.limit, &key.cap.rates.to_string()),
            key.deliveries.to_string(),
            key.waited.to_string(),
            span(mean),
            if key.never > 0 { "never starts".to_string() } else { span(secs(key.waited_max_us)) },
        ];
        for (name, value) in names.iter().zip(values) {
            cell(html, name, &value);
        }
        html.push_str("<td class=\"bar\">");
        if let Some(curves) = &key.curves {
            wait_bar(html, &curves.waits);
        }
        html.push_str("</td></tr>\n");
    }
    html.push_str("</tbody>\n</table>\n");
    left_out(html, waited.len());
}

fn left_out(html: &mut String, rows: usize) {
    if let Some(more @ 1..) = rows.checked_sub(ROWS_MAX) {
        put!(html, "<p class=\"dim\">{} left out.</p>\n", count(more as u64, "row"));
    }
}

fn wait_bar(html: &mut String, waits: &[u64]) {
    let all = waits.iter().sum::<u64>().max(1) as f64;
    let words: Vec<_> = (0..)
        .zip(waits)
        .filter(|(_, number)| **number > 0)
        .map(|(class, number)| format!("{}: {number}", wait_class(class)))
        .collect();
    let words = words.join(", ");
    put!(
        html,
        "<svg class=\"waits\" viewBox=\"0 0 100 10\" preserveAspectRatio=\"none\" role=\"img\" aria-label=\"{words}\">\
         <title>{words}</title>"
    );
    let mut x = 0.0;
    for (class, &number) in waits.iter().enumerate().filter(|(_, number)| **number > 0) {
        let width = 100.0 * number as f64 / all;
        put!(
            html,
            "<rect class=\"w{class}\" x=\"{x:.2}\" y=\"0\" width=\"{width:.2}\" height=\"10\"/>"
        );
        x += width;
    }
    html.push_str("</svg>");
}

fn refusals(html: &mut String, run: &Replay) {
    let keys = ranked(&run.machine);
    let mut rows: Vec<(&SimulatedKey, &[u8], u64)> = Vec::new();
    for key in &keys {
        let Some(curves) = &key.curves else { continue };
        rows.extend(curves.words.iter().map(|words| (*key, &words.text[..], words.times)));
    }
    if rows.is_empty() {
        return;
    }
    rows.sort_by_key(|&(.., times)| std::cmp::Reverse(times));
    html.push_str("<h2>What servers said when they refused</h2>\n");
    head(html, "wide", &[("key", false), ("times", true), ("words", false)]);
    for (key, words, times) in rows.iter().take(ROWS_MAX) {
        put!(html, "<tr><th scope=\"row\">{}</th>", EscapedHtml(&name_of(key)));
        cell(html, "times", &times.to_string());
        let words = String::from_utf8_lossy(words).replace('_', " ");
        put!(
            html,
            "<td class=\"words\">{}</td></tr>\n",
            EscapedHtml(&printable(words.trim_end_matches('/')))
        );
    }
    html.push_str("</tbody>\n</table>\n");
    left_out(html, rows.len());
    let others: u64 =
        keys.iter().filter_map(|key| key.curves.as_ref()).map(|curves| curves.other_words).sum();
    if others > 0 {
        put!(html, "<p class=\"dim\">{} in other words.</p>\n", count(others, "refusal"));
    }
}
