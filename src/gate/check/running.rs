//! What `check` looks at besides the control files: concurrencyremote, files that name relays, permissions, and the
//! status of the running gate.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use qpatch_gate::gate::CONCURRENCY_REMOTE;
use qpatch_gate::problem::{File, Kind, Problem, Severity};
use qpatch_gate::sender::Asked;
use qpatch_gate::status::State;
use qpatch_gate::table::Table;
use qpatch_gate_status::StatusError;

use crate::gate::advice::advice;
use crate::gate::finding::FileFinding;
use crate::gate::source::{LoadedRules, Source};
use crate::gate::status_file::{self, UnreadReason};
use crate::gate::text::printable;
use crate::qmail::control::{leading_number, read_file};
use crate::qmail::home::Home;
use crate::qmail::relay_files;

/// The value of concurrencyremote that qmail-send reads when it starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ConcurrencyRemote {
    pub(super) limit: u32,
    /// Whether control/concurrencyremote says so.
    pub(super) from: ConcurrencyRemoteSource,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ConcurrencyRemoteSource {
    File,
    Default,
}

pub(super) fn concurrency_remote(
    source: &Source,
    loaded: &mut LoadedRules,
) -> Option<ConcurrencyRemote> {
    let path = source.home.as_ref()?.control("concurrencyremote");
    let default =
        ConcurrencyRemote { limit: CONCURRENCY_REMOTE, from: ConcurrencyRemoteSource::Default };
    let kind = match read_file(&path, 4096) {
        Ok(None) => return Some(default),
        Ok(Some((_, text))) => match leading_number(&text) {
            Some(limit) => {
                return Some(ConcurrencyRemote { limit, from: ConcurrencyRemoteSource::File });
            }
            None => Kind::NotNumber,
        },
        Err(kind) => kind,
    };
    let line = u32::from(kind == Kind::NotNumber);
    let problem = Problem { line, ..Problem::of_file(File::ConcurrencyRemote, kind) };
    loaded.gate_messages.insert(problem.to_string());
    // A wrong concurrencyremote does not make the limits invalid, so this is only a warning.
    let finding = FileFinding::of_problem(&problem, &path, &[]);
    loaded.findings.push(FileFinding { severity: Severity::Warning, ..finding });
    Some(default)
}

/// Warns of files other than smtproutes that name relays.
pub(super) fn check_relay_files(home: &Home, loaded: &mut LoadedRules) {
    if loaded.domains.is_none() {
        return;
    }
    for file in relay_files::find(home.path()) {
        let path = home.control(file.name);
        loaded.findings.push(FileFinding::warning((&path, 0, 0), file.message(), file.help()));
    }
}

/// Checks that qmail-rspawn can read and write its files. It runs as qmailr, the owner of queue/lock/tcpto.
pub(super) fn check_permissions(home: &Home, source: &Source, loaded: &mut LoadedRules) {
    let tcpto = std::fs::metadata(home.lock("tcpto")).ok();
    if let Some((metadata, _)) = &loaded.domains {
        let mode = metadata.mode();
        let readable = mode & 0o004 != 0
            || tcpto.as_ref().is_some_and(|tcpto| {
                (metadata.uid() == tcpto.uid() && mode & 0o400 != 0)
                    || (metadata.gid() == tcpto.gid() && mode & 0o040 != 0)
            });
        if !readable {
            let path = &source.domains;
            let message = format!(
                "the gate cannot read it: its mode is {:04o}, and qmail-rspawn runs as qmailr",
                mode & 0o7777
            );
            let help = format!("chmod 644 {}", path.display());
            loaded.findings.push(FileFinding::new(Severity::Error, (path, 0, 0), message, help));
            // The gate does not use it, either.
            loaded.rules = None;
        }
    }
    let Some(tcpto) = tcpto else { return };
    // Each qmail-rspawn has one. In a tree with supplemental channels they share one more file.
    let numbered = (1..).map(|number| format!("gatestatus.{number}"));
    let others = numbered.take_while(|name| home.lock(name).exists()).collect::<Vec<_>>();
    if !others.is_empty() && !home.lock("gateshared").exists() {
        let message =
            "no such file: each limit holds per qmail-rspawn, not for all of them together";
        let help = advice(Kind::CountsAlone(0));
        loaded.findings.push(FileFinding::warning((&home.lock("gateshared"), 0, 0), message, help));
    }
    let follows_senders = relay_files::followed(home.path()).senders == Asked::Yes;
    let table = loaded.rules.as_ref().and_then(|rules| rules.table.as_ref());
    let has_long_rates = table.is_some_and(Table::has_long_rates);
    let kept = File::KEPT.into_iter().filter(|&file| match file {
        File::KeptSenders => follows_senders,
        File::KeptRates => has_long_rates,
        _ => true,
    });
    let kept = kept.map(File::name);
    let kept: Vec<_> = kept.collect();
    if home.lock("gatestatus").exists() {
        for path in kept.iter().map(|name| home.lock(name)).filter(|path| !path.exists()) {
            let message = match path.ends_with(File::KeptRates.name()) {
                true => {
                    "no such file: after a restart the rates for an hour and a day begin at zero"
                }
                false => {
                    "no such file: no copy of the control file is kept, so after a restart a mistake in it takes \
                     effect at once"
                }
            };
            let help = "make setup check in the patched tree, while qmail is stopped";
            loaded.findings.push(FileFinding::warning((&path, 0, 0), message, help));
        }
    }
    let names = ["gatestatus", "gateshared"].into_iter().chain(kept);
    let names = names.chain(others.iter().map(String::as_str));
    for path in names.map(|name| home.lock(name)) {
        let Ok(file) = std::fs::metadata(&path) else { continue };
        if file.is_file() && file.uid() != tcpto.uid() {
            let message = format!(
                "the gate cannot write it: it belongs to user {}, and qmail-rspawn runs as user {}",
                file.uid(),
                tcpto.uid()
            );
            let help = format!("chown {} {}", tcpto.uid(), path.display());
            loaded.findings.push(FileFinding::warning((&path, 0, 0), message, help));
        }
    }
}

/// Adds the problems that the running gate reports; what several spawners report is added once.
pub(super) fn check_status(home: &Home, loaded: &mut LoadedRules) {
    let mut warn = |path: &Path, message: String, help: &str| {
        loaded.findings.push(FileFinding::warning((path, 0, 0), message, help));
    };
    let path = home.lock("gatestatus");
    match status_file::read(home) {
        Ok(spawners) => {
            let status = status_file::merged(&spawners);
            if status.state == State::Failed {
                let message = "the gate had an internal error: since then there are no limits";
                warn(&path, message.to_string(), "restart qmail, and report it");
                return;
            }
            for problem in &status.problems {
                if !loaded.gate_messages.contains(problem) {
                    let message = format!("the gate says: {}", printable(problem));
                    let help = "if it has been corrected, the gate sees it with its next delivery";
                    warn(&path, message, help);
                }
            }
        }
        Err(unread) => match unread.why {
            // Without a queue there is no gate to ask, and a gate without limits writes no status.
            UnreadReason::Missing if home.lock("").is_dir() => warn(
                &path,
                "no such file: this qmail has no gate".to_string(),
                "qpatch apply TREE, make setup check, restart qmail",
            ),
            UnreadReason::Missing
            | UnreadReason::Denied
            | UnreadReason::Status(StatusError::Empty) => {}
            UnreadReason::File(_) | UnreadReason::Status(_) => {
                let error = status_file::explain(home, &unread);
                warn(&unread.path, error.what, &error.help);
            }
        },
    }
}
