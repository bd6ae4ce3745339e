//! Reads logs that do not have one line for each record: JSON of journalctl, docker and others, also over several
//! lines, and journalctl's export and verbose formats.

use serde_json::{Map, Value};

use super::line::mixed;
use super::stamp::{Basis, Numbers, Precision, Stamp, stamp};

/// The longest record of several lines, in bytes. A longer one is not read.
const RECORD_MAX: usize = 1 << 20;

/// A record of a logger.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Record {
    /// Its time.
    pub(super) stamp: Option<Stamp>,
    /// A hash of the host and the program.
    pub(super) source: u64,
    /// The program.
    pub(super) tag: Vec<u8>,
    /// The line.
    pub(super) text: Vec<u8>,
}

/// What a line of a file is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Unit {
    /// The line itself.
    Line,
    /// The last line of a record.
    Record(Record),
    /// Part of a record, or a record without text.
    Part,
}

/// A file, line by line.
#[derive(Debug, Default)]
pub(super) struct Records {
    state: State,
}

#[derive(Debug, Default)]
enum State {
    #[default]
    Lines,
    /// JSON over several lines.
    Json(Vec<u8>),
    /// journalctl -o export: NAME=value, up to an empty line.
    Export(Record, Names),
    /// journalctl -o verbose: a time, and then NAME=value behind spaces.
    Verbose(Record, Names),
}

/// The program's and the host's names, which may come in any order.
#[derive(Debug, Default)]
struct Names {
    host: Vec<u8>,
    program: Vec<u8>,
}

impl Names {
    fn set_in(self, record: &mut Record) {
        record.source = mixed(mixed(0, &self.host), &self.program);
        record.tag = self.program;
    }
}

impl Records {
    /// Returns what this line is.
    pub(super) fn line(&mut self, line: &[u8]) -> Unit {
        match std::mem::take(&mut self.state) {
            State::Lines => self.first(line),
            State::Json(mut all) => {
                all.extend_from_slice(line);
                all.push(b'\n');
                let is_over = line.first() == Some(&b'}') || all.len() > RECORD_MAX;
                if !is_over {
                    self.state = State::Json(all);
                    return Unit::Part;
                }
                serde_json::from_slice(&all).map_or(Unit::Part, |fields| unit(&fields))
            }
            State::Export(mut record, mut names) => {
                if line.is_empty() {
                    return over(record, names);
                }
                field(line, &mut record, &mut names);
                self.state = State::Export(record, names);
                Unit::Part
            }
            State::Verbose(mut record, mut names) => {
                if let Some(text) = line.strip_prefix(b"    ") {
                    field(text.trim_ascii_start(), &mut record, &mut names);
                    self.state = State::Verbose(record, names);
                    return Unit::Part;
                }
                // This line begins the next record, which has no text yet.
                match (over(record, names), self.first(line)) {
                    (Unit::Part, next) => next,
                    (record, _) => record,
                }
            }
        }
    }

    /// Returns the last record, if it ends with the file.
    pub(super) fn end(&mut self) -> Unit {
        match std::mem::take(&mut self.state) {
            State::Lines | State::Json(_) => Unit::Part,
            State::Export(record, names) | State::Verbose(record, names) => over(record, names),
        }
    }

    /// Returns what a line outside of a record is.
    fn first(&mut self, line: &[u8]) -> Unit {
        let text = line.strip_prefix(b"data: ").unwrap_or(line);
        let text = text.strip_prefix(b"\x1e").unwrap_or(text);
        match text {
            b"{" => {
                self.state = State::Json(b"{\n".to_vec());
                Unit::Part
            }
            [b'{', ..] => serde_json::from_slice(text).map_or(Unit::Line, |fields| unit(&fields)),
            // journalctl's own: -- Boot ..., -- Journal begins at ..., -- No entries --
            _ if text.starts_with(b"-- ") => Unit::Part,
            _ if text.starts_with(b"__") && is_field(text) => {
                let (mut record, mut names) = <(Record, Names)>::default();
                field(text, &mut record, &mut names);
                self.state = State::Export(record, names);
                Unit::Part
            }
            _ => match stamp(text, Numbers::Short) {
                Some((stamp, b)) if b.starts_with(b"[s=") && b.ends_with(b"]") => {
                    let record = Record { stamp: Some(stamp), ..Record::default() };
                    self.state = State::Verbose(record, Names::default());
                    Unit::Part
                }
                _ => Unit::Line,
            },
        }
    }
}

/// Returns the finished record.
fn over(mut record: Record, names: Names) -> Unit {
    if record.text.is_empty() {
        return Unit::Part;
    }
    names.set_in(&mut record);
    Unit::Record(record)
}

/// Returns whether a line begins with `NAME=`.
fn is_field(line: &[u8]) -> bool {
    let name = line.split(|&byte| byte == b'=').next().unwrap_or_default();
    let is_name = |byte: &u8| byte.is_ascii_uppercase() || byte.is_ascii_digit() || *byte == b'_';
    name.len() < line.len() && name.iter().all(is_name)
}

fn field(line: &[u8], record: &mut Record, names: &mut Names) {
    let Some(equals) = line.iter().position(|&byte| byte == b'=') else { return };
    let (name, value) = (&line[..equals], &line[equals + 1..]);
    match name {
        b"__REALTIME_TIMESTAMP" => record.stamp = micros(value).or(record.stamp),
        b"_HOSTNAME" => names.host = value.to_vec(),
        b"SYSLOG_IDENTIFIER" => names.program = value.to_vec(),
        b"MESSAGE" => record.text = value.to_vec(),
        _ => {}
    }
}

fn micros(digits: &[u8]) -> Option<Stamp> {
    let us = std::str::from_utf8(digits).ok()?.parse().ok()?;
    Some(Stamp { us, precision: Precision::Fine, basis: Basis::Universal })
}

/// Returns the record of a JSON object. Its fields may have the names of journald, of docker (`log`, `time`), or of
/// syslog daemons and log shippers.
fn unit(fields: &Map<String, Value>) -> Unit {
    let get = |names: &[&str]| names.iter().find_map(|&name| fields.get(name));
    let text = get(&["MESSAGE", "message", "msg", "log"]).map(bytes).unwrap_or_default();
    let text = text.strip_suffix(b"\n").unwrap_or(&text);
    let text = text.strip_suffix(b"\r").unwrap_or(text);
    if text.is_empty() {
        return Unit::Part;
    }
    let journal = fields.get("__REALTIME_TIMESTAMP").and_then(|time| micros(&bytes(time)));
    let stamp = journal.or_else(|| time(get(&["time", "timestamp", "@timestamp", "ts"])?));
    let names = Names {
        host: get(&["_HOSTNAME", "host", "hostname"]).map(bytes).unwrap_or_default(),
        program: get(&["SYSLOG_IDENTIFIER", "program", "tag"]).map(bytes).unwrap_or_default(),
    };
    let mut record = Record { stamp, text: text.to_vec(), ..Record::default() };
    names.set_in(&mut record);
    Unit::Record(record)
}

/// Returns the bytes of a string; of a list of numbers, which journalctl writes if a text is not UTF-8; or of the
/// first of several strings.
fn bytes(value: &Value) -> Vec<u8> {
    match value {
        Value::String(text) => text.as_bytes().to_vec(),
        Value::Array(items) => match items.first() {
            Some(first @ Value::String(_)) => bytes(first),
            _ => {
                let byte = |item: &Value| item.as_u64().and_then(|byte| u8::try_from(byte).ok());
                items.iter().map(byte).collect::<Option<_>>().unwrap_or_default()
            }
        },
        _ => Vec::new(),
    }
}

/// Parses a date, or a number of seconds, milliseconds, microseconds or nanoseconds. The size of the number shows
/// which.
fn time(value: &Value) -> Option<Stamp> {
    if let Value::String(text) = value {
        let (stamp, rest) = stamp(text.as_bytes(), Numbers::Short)?;
        return rest.is_empty().then_some(stamp);
    }
    let mut secs = value.as_f64()?;
    while secs >= 1e11 {
        secs /= 1e3;
    }
    let precision = if secs.fract() == 0.0 { Precision::Seconds } else { Precision::Fine };
    Some(Stamp { us: (secs * 1e6).round() as i64, precision, basis: Basis::Universal })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn records(file: &str) -> Vec<(Option<i64>, String)> {
        let mut records = Records::default();
        let mut found = Vec::new();
        let mut add = |unit| {
            if let Unit::Record(Record { stamp, text, .. }) = unit {
                found.push((stamp.map(|stamp| stamp.us), String::from_utf8(text).unwrap()));
            }
        };
        for line in file.lines() {
            add(records.line(line.as_bytes()));
        }
        add(records.end());
        found
    }

    #[test]
    fn json() {
        const US: i64 = 1_700_000_000_250_123;
        let journal = "{\"PRIORITY\":\"6\",\"MESSAGE\":\"new msg 7\",\"__REALTIME_TIMESTAMP\":\"1700000000250123\"}";
        let one = [(Some(US), "new msg 7".to_string())];
        assert_eq!(records(journal), one);
        assert_eq!(records(&format!("data: {journal}\n\n")), one);
        assert_eq!(records(&format!("\x1e{journal}\n")), one);
        assert_eq!(
            records(&journal.replace(",", ",\n\t").replace('{', "{\n\t").replace('}', "\n}")),
            one
        );
        let bytes = journal.replace("\"new msg 7\"", "[110,101,119,32,109,115,103,32,55]");
        assert_eq!(records(&bytes), one);
        let docker = "{\"log\":\"new msg 7\\n\",\"stream\":\"stderr\",\"time\":\"2023-11-14T22:13:20.250123456Z\"}";
        assert_eq!(records(docker), one);
        for time in ["1700000000.250123", "1700000000250.123", "1700000000250123"] {
            assert_eq!(
                records(&format!("{{\"message\":\"new msg 7\",\"@timestamp\":{time}}}")),
                one
            );
        }
        assert_eq!(records("{\"message\":\"x\"}"), [(None, "x".to_string())]);
        for nothing in ["{}", "{\"MESSAGE\":null}", "{\"MESSAGE\":[700]}", "{", "{\n}", "{\nx\n}"] {
            assert_eq!(records(nothing), [], "{nothing}");
        }
    }

    #[test]
    fn journalctls_other_formats() {
        let export = "__CURSOR=s=1\n__REALTIME_TIMESTAMP=1700000000250123\n_HOSTNAME=mx1\nMESSAGE=new msg 7\n\n\
                      __CURSOR=s=2\n__REALTIME_TIMESTAMP=1700000001000000\nMESSAGE=end msg 7\n";
        let both = [
            (Some(1_700_000_000_250_123), "new msg 7".to_string()),
            (Some(1_700_000_001_000_000), "end msg 7".to_string()),
        ];
        assert_eq!(records(export), both);
        let verbose = "Tue 2023-11-14 22:13:20.250123 UTC [s=f576;i=1]\n    _HOSTNAME=mx1\n    MESSAGE=new msg 7\n\
                       Tue 2023-11-14 22:13:21 UTC [s=f576;i=2]\n    MESSAGE=end msg 7\n    _PID=7\n";
        assert_eq!(records(verbose), both);
        assert_eq!(records("-- Boot 0123 --\n-- No entries --\n"), []);
    }
}
