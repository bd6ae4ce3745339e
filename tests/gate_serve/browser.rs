//! The page in a real browser: hostile names, what follows by itself, colours, small windows, and many keys.

use std::fs;
use std::path::Path;

use qpatch_test_support::has;
use serde_json::{Value, json};

use crate::chromium::Chromium;
use crate::rig::{Home, Server, key, now_secs, status};

/// Names that try to become HTML, attributes, scripts or styles, and how they must be shown.
const HOSTILE: [(&[u8], &str); 8] = [
    (b"<script>hit()</script>", "<script>hit()</script>"),
    (b"<img src=x onerror=hit()>", "<img src=x onerror=hit()>"),
    (b"\"><svg onload=hit()>", "\"><svg onload=hit()>"),
    (b"' onmouseover='hit()", "' onmouseover='hit()"),
    (b"</title></style><b>&amp;&lt;", "</title></style><b>&amp;&lt;"),
    (b"javascript:hit()", "javascript:hit()"),
    (b"\xff\xc0\xafa\xe2\x80\xae\x1b[2J", "%ff%c0%afa%e2%80%ae%1b[2J"),
    (b"<!--live-->-->]]>{{7*7}}${7*7}", "<!--live-->-->]]>{{7*7}}${7*7}"),
];

/// The texts of the first cells of the table of keys.
const NAMES: &str =
    "[...document.querySelectorAll('#keys tbody th')].map((cell) => cell.textContent)";
const ROWS: &str = "document.querySelectorAll('#keys tbody tr').length";
/// How much wider the page is than its window.
pub(crate) const TOO_WIDE: &str = "document.documentElement.scrollWidth - document.documentElement.clientWidth + ' ' +
    [...document.querySelectorAll('*')].filter((one) => one.getBoundingClientRect().right > innerWidth)
    .map((one) => one.tagName + '.' + one.className).slice(0, 9).join(' ')";

fn hostile_keys(running: u32) -> Vec<u8> {
    let long = [b'W'; 255];
    let names = HOSTILE.iter().map(|(name, _)| *name).chain([&long[..], &[0xff; 255]]);
    names.flat_map(|name| key(name, [20, running, 2, 9, 7], now_secs() - 5, name)).collect()
}

#[test]
fn a_browser_shows_it() {
    if !has("chromium") {
        return;
    }
    let home = Home::new();
    home.write(status(&hostile_keys(3)));
    let server = Server::start(home.path());
    let url = format!("http://{}/", server.address);
    let dir = tempfile::tempdir().unwrap();
    let mut browser = Chromium::start();
    browser.looks(1280, 900, "light");
    // What a name would call if it became a script.
    let hit = "window.hits = 0; window.hit = () => { window.hits += 1; };";
    browser.call("Page.addScriptToEvaluateOnNewDocument", json!({"source": hit}));

    hostile_names_are_text(&mut browser, &url);
    it_follows(&mut browser, &home);
    it_is_light_or_dark(&mut browser, dir.path());
    it_fits_a_small_window(&mut browser, dir.path());
    many_keys_are_readable(&mut browser, &home, &url);
    a_status_that_goes_is_reported(&mut browser, &home);
    assert_eq!(browser.value("window.hits"), 0);
    assert_eq!(browser.complaints, [""; 0]);
    the_policy_stops_what_escaping_would_miss(&mut browser);
    drop(server);
    follows(&mut browser, "!document.getElementById('lost').hidden");
    let lost = browser.value("document.getElementById('lost').textContent");
    assert!(
        lost.as_str().unwrap().starts_with("No answer from qpatch gate serve since "),
        "{lost}"
    );
}

fn hostile_names_are_text(browser: &mut Chromium, url: &str) {
    browser.open(url);
    browser.wait_for("document.querySelectorAll('#charts figure').length === 8");
    let names = browser.value(NAMES);
    let captions = "[...document.querySelectorAll('#charts figcaption')].map((cell) => cell.lastChild.textContent)";
    let captions = browser.value(captions);
    let words =
        browser.value("[...document.querySelectorAll('.words')].map((cell) => cell.textContent)");
    let has = |list: &Value, text: &str| list.as_array().unwrap().iter().any(|one| one == text);
    for (_, shown) in HOSTILE {
        assert!(has(&names, shown), "{shown}: {names}");
        // In a text `%25` is shown as `%`; in these names there is none.
        assert!(has(&words, shown), "{shown}: {words}");
    }
    // All keys together, and the busiest of them.
    let captions = captions.as_array().unwrap();
    let known = |caption: &Value| has(&names, caption.as_str().unwrap());
    assert!(captions[0] == "all keys" && captions[1..].iter().all(known), "{captions:?}");
    assert!(has(&names, &"W".repeat(255)) && has(&names, &"%ff".repeat(255)));
    let foreign =
        "document.querySelectorAll('.live :is(script, img, svg, b, style), [onmouseover]').length";
    assert_eq!(browser.value(foreign), 0);
    assert_eq!(browser.value("document.scripts.length"), 1);
    let shown = browser.value("document.querySelectorAll('#charts svg path[d^=M]').length");
    assert!(shown.as_u64().unwrap() >= 8, "there are lines: {shown}");
    assert_eq!(browser.value(TOO_WIDE), "0 ");
}

fn it_follows(browser: &mut Chromium, home: &Home) {
    // By itself, and not because somebody asks for it.
    browser.value(
        "window.here = true; getSelection().selectAllChildren(document.querySelector('h1'))",
    );
    home.write(status(&[hostile_keys(4), key(b"new.example", [50, 8, 0, 0, 50], 0, b"")].concat()));
    browser.wait_for("document.querySelector('#keys').textContent.includes('new.example')");
    let running =
        browser.value("document.querySelector('#keys td[data-name=running]').textContent");
    assert_eq!(running, "88 of 50", "the busiest is first, with its bar");
    // The page has not been loaded again.
    assert_eq!(
        browser.value("window.here && getSelection().toString().startsWith('Gate of')"),
        true
    );
    // What the script made of the page is what the server writes.
    let same = "fetch(location.href).then((answer) => answer.text()).then((text) => {
        const fresh = new DOMParser().parseFromString(text, 'text/html');
        return fresh.querySelector('#keys').isEqualNode(document.querySelector('#keys'));
    })";
    assert_eq!(browser.value(same), true);
    browser.value("getSelection().removeAllRanges()");
}

/// Waits until an expression is true; makes the page ask for the status at once.
fn follows(browser: &mut Chromium, script: &str) {
    browser.wait_for(&format!("live().then(() => {script})"));
}

fn it_is_light_or_dark(browser: &mut Chromium, dir: &Path) {
    let back = "getComputedStyle(document.body).backgroundColor";
    assert_eq!(browser.value(back), "rgb(255, 255, 255)");
    browser.looks(1280, 900, "dark");
    assert_eq!(browser.value(back), "rgb(22, 24, 27)");
    // Texts can be told from what is behind them: WCAG asks for 4.5.
    for scheme in ["light", "dark"] {
        browser.looks(1280, 900, scheme);
        let contrast = browser.value(CONTRAST);
        assert!(contrast.as_f64().unwrap() >= 4.5, "{scheme}: {contrast}");
        picture(browser, dir, &format!("{scheme}.png"), 1280);
    }
    browser.looks(1280, 900, "light");
}

/// The lowest contrast between the colour of a text and the nearest background behind it.
pub(crate) const CONTRAST: &str = "(() => {
    const light = (colour) => {
        const parts = colour.match(/[0-9.]+/g).slice(0, 3).map((part) => {
            const value = part / 255;
            return value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4;
        });
        return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2];
    };
    const behind = (element) => {
        for (; element; element = element.parentElement) {
            const colour = getComputedStyle(element).backgroundColor;
            if (colour !== 'rgba(0, 0, 0, 0)') return colour;
        }
        return 'rgb(255, 255, 255)';
    };
    const texts = document.querySelectorAll('p, dt, dd, th, td, h1, h2, a, figcaption, figure span');
    return Math.min(...[...texts].map((element) => {
        const both = [light(getComputedStyle(element).color), light(behind(element))].sort((a, b) => b - a);
        return (both[0] + 0.05) / (both[1] + 0.05);
    }));
})()";

fn it_fits_a_small_window(browser: &mut Chromium, dir: &Path) {
    for width in [400, 320] {
        browser.looks(width, 800, "light");
        assert_eq!(browser.value("innerWidth"), width);
        assert_eq!(browser.value(TOO_WIDE), "0 ", "{width}");
        let cut = "[...document.querySelectorAll('main th, main td, main p, main dd')]
            .filter((element) => element.getBoundingClientRect().right > innerWidth).length";
        assert_eq!(browser.value(cut), 0, "{width}");
    }
    browser.looks(400, 800, "light");
    picture(browser, dir, "narrow.png", 400);
    browser.looks(1280, 900, "light");
}

/// Takes a picture, which is as wide as the window. With QPATCH_PICTURES=DIR it stays there for people to look at.
pub(crate) fn picture(browser: &mut Chromium, dir: &Path, name: &str, width: u32) {
    let file = dir.join(name);
    browser.picture(&file);
    let bytes = fs::read(&file).unwrap();
    assert!(bytes.starts_with(b"\x89PNG\r\n\x1a\n") && bytes.len() > 5000, "{}", bytes.len());
    assert_eq!(bytes[16..20], width.to_be_bytes());
    if let Some(to) = std::env::var_os("QPATCH_PICTURES") {
        fs::copy(&file, Path::new(&to).join(name)).unwrap();
    }
}

fn many_keys_are_readable(browser: &mut Chromium, home: &Home, url: &str) {
    let keys = (0..4000u32).flat_map(|number| {
        key(format!("d{number:04}.example").as_bytes(), [20, number % 20, 1, 0, 20], 0, b"")
    });
    home.write(status(&keys.collect::<Vec<u8>>()));
    follows(browser, "document.querySelector('#keys').textContent.includes('and 3800 more keys')");
    assert_eq!(browser.value(ROWS), 200);
    // A search finds the others, while the page goes on to follow.
    let search = "const box = document.querySelector('input'); box.value = 'D398';
        box.dispatchEvent(new Event('input')); location.search";
    assert_eq!(browser.value(search), "?key=D398");
    follows(browser, &format!("{ROWS} === 10"));
    let names = browser.value(NAMES).to_string();
    assert!(names.contains("d3980.example") && names.contains("d3989.example"), "{names}");
    browser.open(&format!("{url}?rows=all"));
    assert_eq!(browser.value(ROWS), 4000);
    // Without a script the table is the same, and the page loads itself again.
    browser.call("Emulation.setScriptExecutionDisabled", json!({"value": true}));
    browser.open(url);
    assert_eq!(browser.value(ROWS), 200);
    assert_eq!(browser.value("document.querySelector('#hour').hidden"), true);
    let reload = "document.querySelector('meta[http-equiv=refresh]').content";
    assert_eq!(browser.value(reload), "10");
    browser.call("Emulation.setScriptExecutionDisabled", json!({"value": false}));
    browser.open(url);
}

fn a_status_that_goes_is_reported(browser: &mut Chromium, home: &Home) {
    home.remove_status();
    follows(browser, "document.querySelector('main').textContent.includes('There is no status.')");
    assert_eq!(browser.value(ROWS), 0);
    home.write("qpatch-gate\t9\t7\nend\t7\n");
    follows(
        browser,
        "document.querySelector('main').textContent.includes('of different versions')",
    );
    home.write(status(&hostile_keys(3)));
    follows(browser, &format!("{ROWS} === 10"));
    assert_eq!(browser.value("document.getElementById('lost').hidden"), true);
}

/// The browser refuses what a page without escaping would contain.
fn the_policy_stops_what_escaping_would_miss(browser: &mut Chromium) {
    let inject = "document.querySelector('h2').innerHTML = '<img src=/x onerror=hit()><b onclick=hit()>x</b>';
        document.querySelector('h2 b').click();
        const script = document.createElement('script'); script.textContent = 'hit()';
        document.body.append(script); script.remove();
        new Promise((done) => { const image = document.querySelector('h2 img');
            if (image.complete) done(); image.onload = image.onerror = () => done(); }).then(() => hits)";
    assert_eq!(browser.value(inject), 0);
    assert!(browser.complaints.len() >= 3, "{:?}", browser.complaints);
}
