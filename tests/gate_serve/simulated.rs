//! The page of `qpatch gate simulate --html` in a real browser: hostile names, colours, and small windows.

use std::fs;
use std::process::Command;

use qpatch_test_support::has;
use serde_json::json;

use crate::browser::{CONTRAST, TOO_WIDE, picture};
use crate::chromium::Chromium;
use crate::common::run;

/// Domains as a log has them, and how they must be shown. qmail logs `_` for what it does not print.
const HOSTILE: [&str; 6] = [
    "<script>hit()</script>",
    "<img/src=x/onerror=hit()>",
    "\"><svg/onload=hit()>",
    "'/onmouseover='hit()",
    "</title></style><b>&amp;&lt;",
    "<!--live-->-->]]>{{7*7}}${7*7}",
];

#[test]
fn a_browser_shows_the_simulation() {
    if !has("chromium") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let long = "w".repeat(250);
    let mut log = String::new();
    for (number, domain) in
        (1..).zip(HOSTILE.iter().chain([&long.as_str()]).flat_map(|name| [name; 9]))
    {
        log.push_str(&format!(
            "{}.0 starting delivery {number}: msg 7 to remote u@{domain}\n",
            1000 + number / 9
        ));
        let words =
            format!("Connected_to_192.0.2.1_but_greeting_failed./Remote_host_said:_421_{domain}/");
        log.push_str(&format!("{}.9 delivery {number}: deferral: {words}\n", 1003 + number / 9));
    }
    let mut lines: Vec<&str> = log.lines().collect();
    lines.sort_by_key(|line| line.split(' ').next().map(|time| time.replace('.', "")));
    fs::write(dir.path().join("log"), lines.join("\n") + "\n").unwrap();
    fs::write(dir.path().join("limits"), ":2\n").unwrap();
    let args = [
        "simulate",
        "limits",
        "--log",
        "log",
        "--html",
        "page.html",
        "--try",
        "<!--live-->-->]]>{{7*7}}${7*7}:1,9",
    ];
    let mut qpatch = Command::new(env!("CARGO_BIN_EXE_qpatch"));
    let done = run(qpatch.current_dir(dir.path()).arg("gate").args(args));
    assert_eq!((done.code, done.err.as_str()), (0, ""), "{}", done.out);

    let mut browser = Chromium::start();
    browser.looks(1280, 900, "light");
    let hit = "window.hits = 0; window.hit = () => { window.hits += 1; };";
    browser.call("Page.addScriptToEvaluateOnNewDocument", json!({"source": hit}));
    browser.open(&format!("file://{}", dir.path().join("page.html").display()));

    // Names and words are texts, and the only elements are those of the page.
    let texts = |what: &str| {
        format!("[...document.querySelectorAll('{what}')].map((one) => one.textContent)")
    };
    let captions = browser.value(&texts("figcaption b"));
    let words = browser.value(&texts("td.words"));
    let rows = browser.value(&texts("tbody th"));
    for name in HOSTILE.iter().chain([&long.as_str()]) {
        let has = |list: &serde_json::Value| list.as_array().unwrap().iter().any(|one| one == name);
        assert!(has(&captions) && has(&rows), "{name}: {captions} {rows}");
        let said = words.as_array().unwrap().iter().any(|one| one.as_str().unwrap().contains(name));
        assert!(said, "{name}: {words}");
    }
    let foreign =
        "document.querySelectorAll('script, img, [onload], [onmouseover], [onerror]').length";
    assert_eq!(browser.value(foreign), 0);
    assert_eq!(browser.value("document.scripts.length + document.images.length"), 0);
    assert_eq!(browser.value("performance.getEntriesByType('resource').length"), 0);
    assert_eq!(browser.value("window.hits"), 0);
    assert_eq!(browser.complaints, [""; 0]);

    for (width, scheme) in [(1280, "light"), (1280, "dark"), (400, "dark"), (400, "light")] {
        browser.looks(width, 900, scheme);
        let contrast = browser.value(CONTRAST);
        assert!(contrast.as_f64().unwrap() >= 4.5, "{scheme}: {contrast}");
        assert_eq!(browser.value(TOO_WIDE), "0 ", "{width}");
        picture(&mut browser, dir.path(), &format!("simulated-{width}-{scheme}.png"), width);
    }
    let small = "Math.min(...[...document.querySelectorAll('svg text')]
        .map((text) => text.getBoundingClientRect().height))";
    let height = browser.value(small);
    assert!(height.as_f64().unwrap() >= 10.0, "the texts of a picture are {height} pixels high");
}
