//! The page: one HTML file without anything from elsewhere, which shows the table without JavaScript too.
//!
//! Names of keys and texts of servers come from strangers. They are printable ASCII here (`gate::text`), and
//! [`EscapedHtml`] writes them, so none is ever a tag, an end of an attribute, or a marker of the template. If one
//! were, the header [`Page::policy`] still lets the browser run and apply only the script and the style of this page,
//! by their hashes, and load nothing.

use std::cmp::Reverse;
use std::fmt::Write as _;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use data_encoding::BASE64;
use hyper::header::HeaderValue;
use qpatch_gate::status::{InForce, State};
use qpatch_gate::table::Limit;
use qpatch_gate_status::{KeyStatus, Status};
use sha2::{Digest, Sha256};

use crate::error::Error;
use crate::gate::escaped_html::EscapedHtml;
use crate::gate::show::View;
use crate::gate::text::{
    cap_text, cut, key_name, limit_text, next_start, printable, printable_status,
};
use crate::output::{count, written};

const TEMPLATE: &str = include_str!("page.html");
const STYLE: &str = include_str!("page.css");
const SCRIPT: &str = include_str!("page.js");

/// How many rows a table has; `/?rows=all` has all.
const ROWS: usize = 200;
/// The most characters of a server's words.
const WORDS: usize = 600;
/// A name with more characters than this is long.
const LONG: usize = 60;
/// A running gate writes at least once a minute. A status that is older than this, in seconds, is reported.
const OLD_SECS: u64 = 120;

/// Writes into a string.
macro_rules! put {
    ($html:expr, $($text:tt)*) => {
        write!($html, $($text)*).expect("memory can be written")
    };
}

/// What of a page is the same each time.
#[derive(Debug)]
pub(super) struct Page {
    home: String,
    policy: HeaderValue,
}

/// What a query asks for.
#[derive(Debug, Default, PartialEq, Eq)]
struct Wanted {
    /// Whether the tables have all rows, and not only the first ones.
    all_rows: bool,
    /// Only keys with this in their names, in lower case. Empty: all keys.
    filter: String,
}

impl Wanted {
    fn parse(query: &str) -> Self {
        let mut wanted = Self::default();
        for (name, value) in form_urlencoded::parse(query.as_bytes()) {
            match &*name {
                "rows" => wanted.all_rows = value == "all",
                // What is printed of names is ASCII, so nothing else can match.
                "key" => wanted.filter = value.trim().to_ascii_lowercase(),
                _ => {}
            }
        }
        wanted
    }

    fn rows(&self) -> usize {
        if self.all_rows { usize::MAX } else { ROWS }
    }

    fn matches(&self, key: &KeyStatus) -> bool {
        self.filter.is_empty()
            || key_name(key.kind, &key.name).to_ascii_lowercase().contains(&self.filter)
    }
}

impl Page {
    /// A page for the qmail in the folder `home`.
    pub(super) fn new(home: &Path) -> Self {
        let hash = |text: &str| format!("'sha256-{}'", BASE64.encode(&Sha256::digest(text)));
        let policy = format!(
            "default-src 'none'; script-src {}; style-src {}; connect-src 'self'; img-src data:; form-action 'self'; \
             base-uri 'none'; frame-ancestors 'none'",
            hash(SCRIPT),
            hash(STYLE)
        );
        Self {
            home: printable(home.as_os_str().as_bytes()),
            policy: HeaderValue::from_str(&policy).expect("base64 is ASCII"),
        }
    }

    /// The value of the header Content-Security-Policy.
    pub(super) fn policy(&self) -> &HeaderValue {
        &self.policy
    }

    /// Returns the page about a status, or about why there is none.
    pub(super) fn html(&self, look: &Result<View, Error>, query: &str) -> String {
        let wanted = Wanted::parse(query);
        let mut html = String::new();
        let mut rest = TEMPLATE;
        while let Some((before, (marker, after))) = rest
            .split_once("<!--")
            .and_then(|(before, marker)| Some((before, marker.split_once("-->")?)))
        {
            html.push_str(before);
            match marker {
                "title" => put!(html, "{}", EscapedHtml(&title(look))),
                "style" => html.push_str(STYLE),
                "script" => html.push_str(SCRIPT),
                "home" => put!(html, "{}", EscapedHtml(&self.home)),
                "filter" => put!(html, "{}", EscapedHtml(&wanted.filter)),
                "summary" => summary(&mut html, look),
                "tables" => tables(&mut html, look, &wanted),
                marker => unreachable!("the template has a marker {marker}"),
            }
            rest = after;
        }
        html.push_str(rest);
        html
    }
}

/// The title of the page.
fn title(look: &Result<View, Error>) -> String {
    match look {
        Ok(view) => {
            let status = &view.status;
            format!("{} running, {} held - qpatch gate", status.running(), status.held)
        }
        Err(_) => "no status - qpatch gate".to_string(),
    }
}

/// Writes how the gate is, or why that is not known. The script replaces the sections of a page one by one.
fn summary(html: &mut String, look: &Result<View, Error>) {
    html.push_str("<section id=\"state\">\n");
    match look {
        Ok(view) => {
            state(html, view);
            html.push_str("</section>\n<section id=\"figures\">\n");
            figures(html, view);
        }
        Err(error) => paragraph(html, "bad", &format!("There is no status.\n{error}")),
    }
    html.push_str("</section>\n");
}

/// Writes what is known of each key.
fn tables(html: &mut String, look: &Result<View, Error>, wanted: &Wanted) {
    let Ok(view) = look else { return };
    html.push_str("<section id=\"keys\">\n<h2>Keys</h2>\n");
    keys(html, view, wanted);
    html.push_str("</section>\n<section id=\"refusals\">\n<h2>What servers said</h2>\n");
    refusals(html, view, wanted);
    html.push_str("</section>\n");
}

fn paragraph(html: &mut String, class: &str, text: &str) {
    put!(html, "<p class=\"{class}\">{}</p>\n", EscapedHtml(text.trim_end()));
}

/// Writes what is said about the spawners and their control files.
fn state(html: &mut String, view: &View) {
    let is_gone = view.alive() == Some(false);
    let counts = |one: &Status| one.state == State::Limits && one.in_force == InForce::File;
    let is_good = !is_gone && view.spawners.iter().all(|one| counts(&one.status));
    let heads = written(|out| view.heads(out));
    let heads = String::from_utf8_lossy(&heads);
    let age_secs = view.age_secs();
    let class = if is_good { "dim" } else { "bad" };
    paragraph(html, class, &format!("{heads}written {age_secs} s ago"));
    if age_secs > OLD_SECS && !is_gone {
        paragraph(
            html,
            "bad",
            "This status is old: a running gate writes it at least once a minute. Look whether \
             qmail-rspawn runs, and whether the disk is full.",
        );
    }
    for problem in &view.status.problems {
        paragraph(html, "warn", &format!("problem: {}", printable(problem)));
    }
    let starts = written(|out| view.starts(out));
    if !starts.is_empty() {
        paragraph(html, "dim", &String::from_utf8_lossy(&starts));
    }
}

/// Writes the sums over all keys.
fn figures(html: &mut String, view: &View) {
    let status = &view.status;
    let away: u64 = status.keys.iter().map(|key| u64::from(key.away)).sum();
    html.push_str("<dl>");
    for (name, value) in [
        ("running", status.running().to_string()),
        ("held", status.held.to_string()),
        ("away", away.to_string()),
        ("slots", view.slots().to_string()),
        ("done a second", format!("{:.1}", view.rates.iter().sum::<f64>())),
        ("done", status.totals.done.to_string()),
        ("busy answers", status.totals.busy.to_string()),
        ("refused as too many", status.totals.refused.to_string()),
    ] {
        put!(html, "<div><dt>{name}</dt><dd>{value}</dd></div>");
    }
    html.push_str("</dl>\n");
}

/// Writes the table of keys, the busiest first.
fn keys(html: &mut String, view: &View, wanted: &Wanted) {
    let keys: Vec<_> =
        view.status.keys.iter().zip(&view.rates).filter(|(key, _)| wanted.matches(key)).collect();
    if keys.is_empty() {
        let none = match wanted.filter.is_empty() {
            true => "No key has done anything yet.",
            false => "No key has this in its name.",
        };
        paragraph(html, "dim", none);
        return;
    }
    html.push_str("<table>\n<thead><tr><th scope=\"col\">key</th>");
    for (name, _) in COLUMNS {
        put!(html, "<th scope=\"col\" class=\"number\">{name}</th>");
    }
    html.push_str("</tr></thead>\n<tbody>\n");
    for (key, rate) in keys.iter().take(wanted.rows()) {
        begin_row(html, view, key);
        let mean = match key.mean_ms {
            0 => "-".to_string(),
            ms => format!("{:.2} s", ms as f64 / 1000.0),
        };
        let cells = [
            EscapedHtml(&cap_text(key.limit, &key.rates)).to_string(),
            allowed(view, key),
            key.running.to_string() + &meter(key),
            key.held.to_string(),
            key.away.to_string(),
            format!("{rate:.1}"),
            mean,
            key.done.to_string(),
            key.busy.to_string(),
            key.peak.to_string(),
        ];
        for ((name, more), cell) in COLUMNS.iter().zip(cells) {
            put!(html, "<td class=\"number{more}\" data-name=\"{name}\">{cell}</td>");
        }
        html.push_str("</tr>\n");
    }
    html.push_str("</tbody>\n</table>\n");
    let left = keys.len().saturating_sub(wanted.rows()) as u64;
    if left > 0 {
        let link = "<a href=\"/?rows=all\">show all</a>";
        put!(html, "<p class=\"dim\">and {}; {link}</p>\n", count(left, "more key"));
    }
    if view.status.unlisted > 0 && wanted.filter.is_empty() {
        let text = format!("and {} that did less", count(view.status.unlisted, "key"));
        paragraph(html, "dim", &text);
    }
}

/// The columns of numbers: their names, and the class of those that a narrow window leaves out.
const COLUMNS: [(&str, &str); 10] = [
    ("limit", ""),
    ("allowed", ""),
    ("running", ""),
    ("held", ""),
    ("away", ""),
    ("a second", ""),
    ("mean", " more"),
    ("done", " more"),
    ("busy", " more"),
    ("peak", " more"),
];

fn is_suspended(view: &View, key: &KeyStatus) -> bool {
    key.suspended_secs > view.now_secs
}

fn row_class(view: &View, key: &KeyStatus) -> &'static str {
    match key.effective != key.limit {
        _ if is_suspended(view, key) => " class=\"suspended\"",
        true => " class=\"lowered\"",
        false => "",
    }
}

/// Begins a row with the key's name. Of a long one the style shows two lines; a name may have 765 characters.
fn begin_row(html: &mut String, view: &View, key: &KeyStatus) {
    let name = key_name(key.kind, &key.name);
    let shown = EscapedHtml(&name);
    put!(html, "<tr{}><th scope=\"row\">", row_class(view, key));
    match name.len() > LONG {
        true => put!(html, "<span title=\"{shown}\">{shown}</span></th>"),
        false => put!(html, "{shown}</th>"),
    }
}

/// How many may run now, and when the rates allow the next start.
fn allowed(view: &View, key: &KeyStatus) -> String {
    if is_suspended(view, key) {
        return format!("0 for {} s", key.suspended_secs - view.now_secs);
    }
    let now = limit_text(key.effective);
    next_start(key.next_start_ms).map_or(now.clone(), |next| format!("{now}, {next}"))
}

/// A bar that shows how much of what is allowed runs.
fn meter(key: &KeyStatus) -> String {
    match key.effective {
        Limit::AtMost(limit @ 1..) => {
            let value = key.running.min(limit);
            format!("<meter max=\"{limit}\" value=\"{value}\">{value} of {limit}</meter>")
        }
        Limit::AtMost(0) | Limit::Unlimited => String::new(),
    }
}

/// Writes which servers take less than their limit, and what servers said last; the newest objections first.
fn refusals(html: &mut String, view: &View, wanted: &Wanted) {
    let mut keys: Vec<_> = view
        .status
        .keys
        .iter()
        .filter(|key| !key.error.is_empty() || key.objected_secs > 0 || is_suspended(view, key))
        .filter(|key| wanted.matches(key))
        .collect();
    keys.sort_by_key(|key| Reverse((is_suspended(view, key), key.objected_secs)));
    if keys.is_empty() {
        paragraph(html, "dim", "No delivery has failed.");
        return;
    }
    html.push_str(
        "<table>\n<thead><tr><th scope=\"col\">key</th><th scope=\"col\">takes</th>\
         <th scope=\"col\">objected</th><th scope=\"col\">last error</th></tr></thead>\n<tbody>\n",
    );
    for key in keys.iter().take(wanted.rows()) {
        begin_row(html, view, key);
        let takes = if is_suspended(view, key) {
            format!("nothing for {} s", key.suspended_secs - view.now_secs)
        } else if key.effective != key.limit {
            format!("{} instead of {}", limit_text(key.effective), limit_text(key.limit))
        } else {
            String::new()
        };
        let objected = match key.objected_secs {
            0 => String::new(),
            secs => format!("{} s ago", view.now_secs.saturating_sub(secs)),
        };
        put!(
            html,
            "<td>{takes}</td><td>{objected}</td><td class=\"words\">{}</td></tr>\n",
            EscapedHtml(&cut(&printable_status(&key.error), WORDS))
        );
    }
    html.push_str("</tbody>\n</table>\n");
    let left = keys.len().saturating_sub(wanted.rows()) as u64;
    if left > 0 {
        paragraph(html, "dim", &format!("and {}", count(left, "more key")));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hash_is_written_in_the_base64_of_the_rfc() {
        for (bytes, text) in
            [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foobar", "Zm9vYmFy")]
        {
            assert_eq!(BASE64.encode(bytes.as_bytes()), text);
        }
    }

    #[test]
    fn a_query_is_read_as_a_form_writes_it() {
        let wanted = |all_rows, filter: &str| Wanted { all_rows, filter: filter.to_string() };
        for (query, expected) in [
            ("", wanted(false, "")),
            ("rows=all", wanted(true, "")),
            ("key=+Group+a%25ff%3C&rows=all&x", wanted(true, "group a%ff<")),
            ("key=%&key=%4&rows=1", wanted(false, "%4")),
            ("key=%zz%ff=&&==", wanted(false, "%zz\u{fffd}=")),
        ] {
            assert_eq!(Wanted::parse(query), expected, "{query}");
        }
    }

    #[test]
    fn a_page_is_the_template_and_its_parts() {
        let page = Page::new(Path::new("/a<b>\u{e9}&\"'"));
        let error = Error::new("<!--style-->", "<script>", "'\"");
        let html = page.html(&Err(error), "key=\"><script>");
        assert!(html.contains("<h1>Gate of /a&lt;b&gt;%c3%a9&amp;&quot;&#39;</h1>"), "{html}");
        assert!(html.contains("value=\"&quot;&gt;&lt;script&gt;\""), "{html}");
        assert!(html.contains("&lt;!--style--&gt;: &lt;script&gt;\n  &#39;&quot;</p>"), "{html}");
        assert_eq!((html.matches("<script").count(), html.matches("<style").count()), (1, 1));
        assert!(html.contains(STYLE) && html.contains(SCRIPT) && !html.contains("<!--"));
        // Else the parts would end too early.
        assert!(!STYLE.contains("</") && !SCRIPT.contains("</") && !SCRIPT.contains("<!--"));
    }
}
