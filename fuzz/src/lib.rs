//! What holds of every reader of foreign bytes, whatever the bytes are. [`READERS`] lists them.
//!
//! Each property is a function that panics if it does not hold. `tests/fuzz.rs` calls it with drawn bytes in every run
//! of the tests; the programs in `fuzz_targets/` call it with the bytes that libFuzzer tries. A reader of foreign bytes
//! that is new belongs here.

use std::net::Ipv6Addr;

use qpatch::engine::edit::{self, Examined};
use qpatch::engine::function::functions;
use qpatch::engine::lex::{Lang, Source};
use qpatch::engine::rule::{self, Parameters};
use qpatch::gate::import::{ForeignFile, MailServer, table_of};
use qpatch::qmail::log::{event, line};
use qpatch_gate::name::Hasher;
use qpatch_gate::problem::Problems;
use qpatch_gate::report;
use qpatch_gate::route::Routes;
use qpatch_gate::table::Table;
use qpatch_gate_status::Status;

/// A property by its name.
pub type Reader = (&'static str, fn(&[u8]));

/// All of them.
pub const READERS: [Reader; 9] = [
    ("lexer", lexer),
    ("rule", rule),
    ("lease", lease),
    ("table", table),
    ("routes", routes),
    ("status", status),
    ("classify", classify),
    ("log", log),
    ("import", import),
];

/// Tokens are in order and within the bytes, in either language, and functions are found in them.
pub fn lexer(bytes: &[u8]) {
    for lang in [Lang::C, Lang::Text] {
        let source = Source::new(lang, bytes);
        let mut at = 0;
        for token in &source.tokens {
            assert!(token.span.start >= at, "{:?} begins before {at}", token.span);
            assert!(token.span.end >= token.span.start && token.span.end <= bytes.len());
            at = token.span.end;
        }
        let _ = functions(&source);
    }
}

/// A small source that rules are tried on.
const SOURCE: &[u8] =
    b"#include \"a.h\"\nint f(x) int x;\n{\n  if (x) return g(x,\"s\");\n  return 0;\n}\n";

/// A rule file is refused with a place in it, or its rules can be tried on a source. What they change is there
/// afterwards: a rule that fits does not fit a second time and give something else for ever.
pub fn rule(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    match rule::parse("x", "x.rule", &text, &Parameters::new(), &[]) {
        Ok(patch) => {
            for section in &patch.sections {
                let lang = section.lang();
                for rule in section.rules() {
                    if let Examined::Fits { edits } =
                        edit::examine(rule, lang, &Source::new(lang, SOURCE))
                    {
                        let _ = edit::apply(SOURCE, &edits);
                    }
                }
            }
        }
        Err(error) => {
            assert!(error.line >= 1 && error.column >= 1 && !error.message.is_empty(), "{error}");
            assert!(error.line <= text.lines().count().max(1) + 1, "{error}");
        }
    }
}

/// Problems have a line of the file, and texts that fit a terminal.
fn look_at(problems: &Problems, bytes: &[u8]) {
    let lines = bytes.split(|&byte| byte == b'\n').count();
    for problem in problems.iter() {
        assert!(problem.line as usize <= lines, "{problem:?} of {lines} lines");
        let text = problem.to_string();
        assert!(text.bytes().all(|byte| (b' '..=b'~').contains(&byte)), "{text:?}");
    }
}

/// The first fields of a file's lines: what is looked up in it.
fn names(bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    let lines = bytes.split(|&byte| byte == b'\n');
    lines.map(|line| line.split(|&byte| byte == b':').next().unwrap_or_default())
}

/// control/concurrencydomains: its lines are found by their names, with the number of a line that is there.
pub fn table(bytes: &[u8]) {
    let (table, problems) = Table::parse(bytes, Hasher::new(1)).expect("memory");
    look_at(&problems, bytes);
    let lines = bytes.split(|&byte| byte == b'\n').count();
    assert!(table.len() + table.ranges() + table.exchangers() <= lines);
    for name in names(bytes) {
        if let Some(line) = table.find(name) {
            assert!((1..=lines).contains(&(table.number(&line) as usize)));
        }
        let _ = (table.find_relay(name), table.find_exchanger(name), table.group(name));
    }
    let _ = table.above(100).count();
}

/// queue/lock/gatelease: keys come only out of a file whose sums are right.
pub fn lease(bytes: &[u8]) {
    use qpatch_gate::lease::{MAGIC, Parsed, parse, sum};
    let (mut copy, mut keys) = (bytes.to_vec(), 0);
    let parsed = parse(&mut copy, |_, _, _| keys += 1);
    assert!(keys == 0 || matches!(parsed, Parsed::Whole(_)), "{parsed:?}");
    // Random bytes have no right sums, so here they are the lines of a file that has.
    let mut file = format!("{MAGIC}\t1\t2\t3\t4\t5\t6\t1\t7\t").into_bytes();
    for end in ["", "end\t1\t"] {
        file.extend_from_slice(end.as_bytes());
        let all = sum(&file);
        file.extend_from_slice(format!("{all:x}\n").as_bytes());
        if end.is_empty() {
            file.extend(bytes.iter().copied().filter(|&byte| byte != b'e'));
            file.push(b'\n');
        }
    }
    assert!(matches!(parse(&mut file, |_, _, _| ()), Parsed::Whole(_)));
}

/// control/smtproutes: a route that is found has a name that stands in the file.
pub fn routes(bytes: &[u8]) {
    let (routes, problems) = Routes::parse(bytes, Hasher::new(1)).expect("memory");
    look_at(&problems, bytes);
    let lines = bytes.split(|&byte| byte == b'\n').count();
    assert!(routes.len() <= lines);
    for name in names(bytes) {
        if let Some((relay, place)) = routes.find(name) {
            assert!((1..=lines).contains(&(routes.number(place) as usize)));
            let is_there =
                bytes.windows(relay.len().max(1)).any(|at| at.eq_ignore_ascii_case(relay));
            // An address is spelled the shortest way, however the file spells it.
            let text = String::from_utf8_lossy(relay);
            let is_address =
                text.parse::<Ipv6Addr>().is_ok_and(|address| address.to_string() == text);
            assert!(relay.is_empty() || is_there || is_address, "{relay:?}");
        }
    }
}

/// queue/lock/gatestatus: what a text says can be shown, and has no more keys than lines.
pub fn status(bytes: &[u8]) {
    match Status::parse(bytes) {
        Ok(status) => {
            let lines = bytes.split(|&byte| byte == b'\n').count();
            assert!(status.keys.len() + status.problems.len() <= lines);
            for text in status.keys.iter().map(|key| &key.name).chain(&status.problems) {
                assert!(!text.chars().any(char::is_control), "{text:?}");
            }
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}

/// A delivery's report: a success is never taken for a server's refusal, and what was refused at the door is not called
/// accepted by the whole report. The words of a success may say nothing: they may be cut off, or not qmail-remote's.
pub fn classify(bytes: &[u8]) {
    use report::DeliveryVerdict::{Accepted, ConnectFailed, Died, Nothing, TooMany};
    let seen = report::classify(bytes).seen;
    let door = report::at_the_door(bytes);
    if bytes.starts_with(b"r\0K") {
        assert_eq!(door, Accepted);
        assert!(matches!(seen, Accepted | Nothing), "{seen:?}");
    }
    if matches!(door, TooMany(_) | ConnectFailed | Died(_)) {
        assert_ne!(seen, Accepted);
    }
    let _ = report::takes_a_line(bytes);
}

/// qmail-send's log: what a line gives is a part of it.
pub fn log(bytes: &[u8]) {
    let is_part =
        |line: &[u8], part: &[u8]| part.is_empty() || line.as_ptr_range().contains(&part.as_ptr());
    for text in bytes.split(|&byte| byte == b'\n') {
        if let Ok(line) = line::read(text, None, 0) {
            assert!(is_part(text, line.tag), "{line:?}");
            if let event::Event::Start { recipient, .. } = line.event {
                assert!(is_part(text, recipient), "{line:?}");
            }
        }
        if let Some(said) = event::parse(text)
            && let event::Event::End { text: report, .. } = said.event
        {
            assert!(is_part(text, report));
            let _ = (event::refused(report), event::held(report), event::without_times(report));
        }
        let _ = event::is_meant_as_delivery(text);
    }
}

/// Whatever the files of other mail servers say, the table that is made of them has no error, and nothing in it that
/// controls a terminal. A file that is refused is named with a place.
pub fn import(bytes: &[u8]) {
    let file =
        |name: &str, text: &[u8]| ForeignFile { name: name.to_string(), text: text.to_vec() };
    let main_cf: &[u8] = b"transport_maps = hash:/etc/postfix/transport\n";
    for (server, files) in [
        (MailServer::Kumomta, vec![file("own.toml", bytes)]),
        (MailServer::Kumomta, vec![file("own.json", bytes)]),
        (MailServer::Powermta, vec![file("config", bytes)]),
        (MailServer::Powermta, vec![file("config", b"include more\n"), file("more", bytes)]),
        (MailServer::Postfix, vec![file("main.cf", bytes)]),
        (MailServer::Postfix, vec![file("main.cf", main_cf), file("transport", bytes)]),
    ] {
        match table_of(server, &files) {
            Ok(text) => {
                assert!(text.iter().all(|byte| matches!(byte, b'\n' | b' '..=b'~')), "{text:?}");
                let (_, problems) = Table::parse(&text, Hasher::new(1)).expect("there is memory");
                assert_eq!(problems.errors(), 0, "{}", String::from_utf8_lossy(&text));
            }
            Err(error) => {
                let place =
                    files.iter().any(|file| error.place.starts_with(&format!("{}:", file.name)));
                assert!(place && !error.what.is_empty() && !error.help.is_empty(), "{error}");
            }
        }
    }
}
