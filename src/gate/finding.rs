//! What is wrong with a control file, and where: a problem that the gate's parser reports, or a warning of `qpatch gate
//! check`.

use std::path::Path;

use qpatch_gate::name::{Hasher, is_of_host, is_word_for_all};
use qpatch_gate::problem::{File, Kind, Problem, Severity};
use qpatch_gate::route::Routes;
use qpatch_gate::table;
use serde::Serialize;

use super::advice::{advice, meaning};
use super::text::{host_of, printable, relay_text};

/// One thing that is wrong, and what to do about it.
#[derive(Clone, Debug, Serialize)]
pub(super) struct FileFinding {
    pub(super) file: String,
    /// From 1; 0 when it is about the whole file.
    pub(super) line: u32,
    /// In bytes, from 1; 0 when it is about the whole file.
    pub(super) column: u32,
    #[serde(serialize_with = "severity_name")]
    pub(super) severity: Severity,
    pub(super) message: String,
    pub(super) help: String,
}

fn severity_name<S: serde::Serializer>(severity: &Severity, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_str(match severity {
        Severity::Warning => "warning",
        Severity::Error => "error",
    })
}

impl FileFinding {
    pub(super) fn new(
        severity: Severity,
        place: (&Path, u32, u32),
        message: impl Into<String>,
        help: impl Into<String>,
    ) -> Self {
        let (path, line, column) = place;
        let (file, message, help) = (path.display().to_string(), message.into(), help.into());
        Self { file, line, column, severity, message, help }
    }

    pub(super) fn warning(
        place: (&Path, u32, u32),
        message: impl Into<String>,
        help: impl Into<String>,
    ) -> Self {
        Self::new(Severity::Warning, place, message, help)
    }

    pub(super) fn of_problem(problem: &Problem, path: &Path, text: &[u8]) -> Self {
        let column = match problem.column {
            0 if problem.line > 0 => column_of(problem, text),
            column => column,
        };
        let place = (path, problem.line, column);
        let help = match problem.kind {
            // Each of these searches the text for its line; there are at most a thousand.
            Kind::DomainAll | Kind::DomainStar | Kind::RouteAll | Kind::RouteStar => {
                let line =
                    (problem.line as usize).checked_sub(1).and_then(|at| lines(text).nth(at));
                line.and_then(|line| instead(problem.kind, line))
            }
            _ => None,
        };
        let help = help.unwrap_or_else(|| advice(problem.kind));
        let help = match problem.file {
            File::Senders => help.replace("host:", "sender:"),
            _ => help,
        };
        Self::new(problem.severity(), place, meaning(problem.kind), help)
    }

    pub(super) fn place(&self) -> String {
        match self.line {
            0 => self.file.clone(),
            line => format!("{}:{line}:{}", self.file, self.column),
        }
    }

    pub(super) fn is_error(&self) -> bool {
        self.severity == Severity::Error
    }
}

/// The column of a problem for which the gate knows only the line: the limit's, if the problem is about the limit.
fn column_of(problem: &Problem, text: &[u8]) -> u32 {
    match problem.kind {
        Kind::AboveConcurrencyRemote(_) | Kind::GroupDisagrees(_) | Kind::LearningDisagrees(_) => {
            let line = text.split(|&byte| byte == b'\n').nth(problem.line as usize - 1);
            let colon = line.and_then(table::subject_len);
            colon.map_or(1, |at| at as u32 + 2)
        }
        _ => 1,
    }
}

fn lines(text: &[u8]) -> impl Iterator<Item = &[u8]> {
    text.split(|&byte| byte == b'\n').map(<[u8]>::trim_ascii_end)
}

/// What to write instead of a line that is meant for all domains, or for all below one.
fn instead(kind: Kind, line: &[u8]) -> Option<String> {
    let below = |name: &[u8]| {
        let domain = name.strip_prefix(b"*.")?;
        let is_name = !domain.is_empty() && domain.iter().all(|&byte| is_of_host(byte));
        is_name.then(|| format!(".{}", String::from_utf8_lossy(domain)))
    };
    let (name, rest, what) = match kind {
        Kind::DomainAll | Kind::DomainStar => {
            let (mx, line) = match line.split_at_checked(3) {
                Some((mx, line)) if mx.eq_ignore_ascii_case(b"mx:") && line.contains(&b':') => {
                    ("mx:", line)
                }
                _ => ("", line),
            };
            let colon = line.iter().position(|&byte| byte == b':')?;
            let (name, rest) = (&line[..colon], printable(&line[colon..]));
            if !mx.is_empty() {
                return Some(format!("write {mx}{}{rest}", below(name)?));
            }
            (name, rest, "domains")
        }
        Kind::RouteAll | Kind::RouteStar => {
            let host = host_of(line)?;
            // Only the relay's name may be printed.
            let value = [b"x", &line[host.len()..]].concat();
            let routes = Routes::parse(&value, Hasher::new(1)).ok()?.0;
            let relay = routes.find(b"x").map_or(&b""[..], |(name, _)| name);
            (host, format!(":{}", relay_text(relay)), "hosts")
        }
        _ => return None,
    };
    if is_word_for_all(name) {
        return Some(format!("write {rest} for all other {what}"));
    }
    if let Some(start) =
        name.strip_suffix(b".*").filter(|start| start.iter().all(|&b| is_of_host(b)))
    {
        let start = String::from_utf8_lossy(start);
        return Some(format!(
            "write a line for each that is meant, as in {start}.com{rest}; nothing stands for the end of a name"
        ));
    }
    let below = below(name)?;
    Some(format!("write {below}{rest} for all {what} below {}", &below[1..]))
}
