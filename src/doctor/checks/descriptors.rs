//! Checks whether the spawners can open enough descriptors: if started from this shell, as they run now, and after the
//! next start.
#![forbid(unsafe_code)]

use super::super::facts::Facts;
use super::super::finding::{CheckVerdict, Finding, Fix};
use super::super::launch::limits::{LimitPair, LimitSource, LimitValue, Limited};
use super::super::launch::{KERNEL_FILES, Start};
use super::super::process::Daemon;
use super::common::{
    OTHER_PROCESSES, enough, files_for, finding, limit_text, names, running, unknown,
};

pub(super) fn shell_files(facts: &Facts, deliveries: u64) -> Finding {
    const NAME: &str = "descriptors, shell";
    let limits = match &facts.shell {
        Ok(limits) => limits,
        Err(why) => return unknown(NAME, why.clone()),
    };
    let needed = files_for(facts, deliveries);
    let found = format!(
        "{} soft, {} hard; {needed} needed",
        limit_text(limits.files),
        limit_text(limits.files_hard)
    );
    if enough(limits.files, needed) {
        finding(NAME, CheckVerdict::Ok, found)
    } else if enough(limits.files_hard, needed) {
        // This matters only for programs that are started from this shell, which can raise the limit.
        finding(
            NAME,
            CheckVerdict::Ok,
            format!("{found} (for qmail started from this shell: ulimit -n {needed})"),
        )
    } else {
        finding(NAME, CheckVerdict::Warn, found)
            .fix("/etc/security/limits.d/qmail.conf", format!("* - nofile {needed}"))
    }
}

pub(super) fn daemon_files(facts: &Facts, deliveries: u64) -> Finding {
    const NAME: &str = "descriptors, qmail";
    let daemons = match running(facts) {
        Ok(daemons) => daemons,
        Err(why) => return unknown(NAME, why),
    };
    let needed = files_for(facts, deliveries);
    let mut least: Option<(Option<u64>, &Daemon)> = None;
    for daemon in daemons {
        let limits = match &daemon.limits {
            Ok(limits) => limits,
            Err(why) => return unknown(NAME, why.clone()),
        };
        let lower = |(files, _): (Option<u64>, _)| match (limits.files, files) {
            (Some(this), Some(other)) => this < other,
            (this, other) => this.is_some() && other.is_none(),
        };
        if least.is_none_or(lower) {
            least = Some((limits.files, daemon));
        }
    }
    let Some((files, daemon)) = least else { return unknown(NAME, "no limits to be seen") };
    let found = format!(
        "the running {} (process {}) may open {}; {needed} needed",
        daemon.name,
        daemon.pid,
        limit_text(files)
    );
    if enough(files, needed) {
        return finding(NAME, CheckVerdict::Ok, found);
    }
    let all = files.map_or(0, |files| files.saturating_sub(5) / facts.files_each);
    let warned =
        finding(NAME, CheckVerdict::Warn, format!("{found}, as it is {all} deliveries find room"));
    raise_files(facts, needed, warned)
}

pub(super) fn replaced(facts: &Facts) -> Finding {
    const NAME: &str = "running programs";
    let daemons = match running(facts) {
        Ok(daemons) => daemons,
        Err(why) => return unknown(NAME, why),
    };
    if let Some(old) = daemons.iter().find(|daemon| daemon.replaced == Some(true)) {
        return finding(
            NAME,
            CheckVerdict::Warn,
            format!(
                "a new {} was installed, but the old program still runs (process {})",
                old.name, old.pid
            ),
        )
        .fix("as root", "restart qmail");
    }
    if daemons.iter().any(|daemon| daemon.replaced.is_none()) {
        return unknown(
            NAME,
            "whether the installed programs are those that run can only be seen by root",
        );
    }
    finding(NAME, CheckVerdict::Ok, "the installed programs are those that run")
}

/// Adds the fixes for a limit of descriptors: the lines that set a limit that is too low, or else the place where
/// qmail is started.
fn raise_files(facts: &Facts, needed: u64, mut to: Finding) -> Finding {
    for judged in judge(facts, Limited::OpenFiles, needed) {
        if judged.allows == Some(false) {
            to = judged.raise(needed, to);
        }
    }
    if !to.fixes.is_empty() {
        return to;
    }
    match facts.launch.starts.first() {
        Some(start) => to.fix(start.raise.0.as_str(), format!("{}{needed}", start.raise.1)),
        None => to.fix("where qmail is started, before it", format!("ulimit -n {needed}")),
    }
}

/// One way in which qmail may be started, and whether it allows enough.
struct Judged<'f> {
    start: &'f Start,
    pair: &'f LimitPair,
    what: Limited,
    allows: Option<bool>,
    /// Another way through the same script has another limit.
    is_one_of_several: bool,
}

fn judge(facts: &Facts, what: Limited, needed: u64) -> Vec<Judged<'_>> {
    let mut all = Vec::new();
    for start in &facts.launch.starts {
        for state in &start.states {
            let pairs = state.of(what);
            let mut answers = pairs.iter().map(|pair| pair.soft.value.allows(needed));
            let first = answers.next().flatten();
            let is_one_of_several = answers.any(|answer| answer != first);
            let judged = pairs.iter().map(|pair| Judged {
                start,
                pair,
                what,
                allows: pair.soft.value.allows(needed),
                is_one_of_several,
            });
            all.extend(judged);
        }
    }
    all
}

impl Judged<'_> {
    /// Returns whether the limit is certainly too low: not only probably, and not only under a condition.
    fn is_low(&self) -> bool {
        let is_certain = match &self.pair.soft.source {
            LimitSource::Inherited(given) => given.certain,
            LimitSource::Set(_) | LimitSource::Unseen(_) | LimitSource::NotFound => true,
        };
        self.allows == Some(false) && !self.is_one_of_several && is_certain
    }

    /// Returns what was found, and the lines that seem to set the limit but have no effect.
    fn detail(&self, needed: u64) -> String {
        let detail = self.what(needed);
        match &self.pair.soft.source {
            LimitSource::Set(_) | LimitSource::Unseen(_) => detail,
            LimitSource::Inherited(_) | LimitSource::NotFound => match self.start.idle.as_slice() {
                [] => detail,
                idle => format!("{detail}; the soft limit is not set by {}", names(idle)),
            },
        }
    }

    fn what(&self, needed: u64) -> String {
        let file = &self.start.file;
        match &self.pair.soft.source {
            LimitSource::Set(setting) => {
                let place = setting.place();
                match (self.pair.soft.value, self.allows) {
                    _ if self.is_low() => {
                        format!("{place} sets a limit that is too low: {}", setting.text)
                    }
                    (LimitValue::Unknown, _) => {
                        format!(
                            "{place} sets a limit that cannot be known from here: {}",
                            setting.text
                        )
                    }
                    (LimitValue::AtMost(_), None) => format!(
                        "{place} takes no more than the hard limit that it is started with, which could not be seen: {}",
                        setting.text
                    ),
                    _ => format!(
                        "{place} sets its limit only under a condition that cannot be known from here: {}",
                        setting.text
                    ),
                }
            }
            LimitSource::Inherited(given) => {
                let value = match self.pair.soft.value {
                    LimitValue::Number(value) | LimitValue::AtMost(value) => value.to_string(),
                    LimitValue::Unlimited => "no limit".to_owned(),
                    LimitValue::Unknown => "an unknown limit".to_owned(),
                };
                let by = &given.by;
                if self.is_one_of_several {
                    format!("{file} sets a limit only under a condition; else {by} gives {value}")
                } else if given.certain {
                    format!("{file}: {by} gives {value}; {needed} needed")
                } else {
                    format!(
                        "{file} sets no limit; if {by} starts it, it has {value}; {needed} needed"
                    )
                }
            }
            LimitSource::Unseen(line) => line.to_string(),
            LimitSource::NotFound if self.is_one_of_several => {
                format!("{file} sets a limit only under a condition that cannot be known from here")
            }
            LimitSource::NotFound => format!(
                "{file} sets no limit, and that of what starts it could not be seen (the kernel's own is {KERNEL_FILES}); \
                 {needed} needed"
            ),
        }
    }

    fn raise(&self, needed: u64, to: Finding) -> Finding {
        let fix = match &self.pair.soft.source {
            LimitSource::Set(setting) => match self.pair.soft.value {
                // The number in the line is high enough; the hard limit is not.
                LimitValue::AtMost(most) if most >= needed => return to,
                _ => Fix { place: setting.place(), line: setting.with(needed) },
            },
            LimitSource::Inherited(given) => match &given.raise {
                Some((place, line)) => {
                    Fix { place: place.clone(), line: format!("{line}{needed}") }
                }
                // A script can raise it. A unit cannot exceed the limit of process 1.
                None if self.what == Limited::OpenFiles && self.start.unit.is_none() => {
                    self.insert(needed)
                }
                None => return to,
            },
            LimitSource::Unseen(_) => return to,
            LimitSource::NotFound => self.insert(needed),
        };
        let is_same =
            matches!(&self.pair.soft.source, LimitSource::Set(setting) if fix.line == setting.text);
        if is_same || to.fixes.contains(&fix) { to } else { to.fix(fix.place, fix.line) }
    }

    fn insert(&self, needed: u64) -> Fix {
        Fix { place: self.start.raise.0.clone(), line: format!("{}{needed}", self.start.raise.1) }
    }
}

pub(super) fn launch_files(facts: &Facts, deliveries: u64) -> Finding {
    const NAME: &str = "start scripts";
    let needed = files_for(facts, deliveries);
    let processes = deliveries + OTHER_PROCESSES;
    let files = judge(facts, Limited::OpenFiles, needed);
    // If nothing limits the processes of a user, the kernel's limit is half of threads-max, which has its own check.
    let set = |judged: &Judged<'_>| judged.pair.soft.source != LimitSource::NotFound;
    let users: Vec<_> =
        judge(facts, Limited::Processes, processes).into_iter().filter(set).collect();
    let all =
        || files.iter().map(|one| (one, needed)).chain(users.iter().map(|one| (one, processes)));
    if let Some((first, needed)) = all().find(|(judged, _)| judged.is_low()) {
        let mut low = finding(NAME, CheckVerdict::Warn, first.detail(needed));
        for (judged, needed) in all().filter(|(judged, _)| judged.is_low()) {
            low = judged.raise(needed, low);
        }
        return low;
    }
    // If the running daemons have enough, what starts them gives enough, even if it could not be seen.
    let runs = running(facts).is_ok_and(|daemons| {
        daemons
            .iter()
            .all(|daemon| daemon.limits.as_ref().is_ok_and(|limits| enough(limits.files, needed)))
    });
    let is_open = |judged: &Judged<'_>, needed: u64| match &judged.pair.soft.source {
        LimitSource::NotFound if !judged.is_one_of_several => !runs && needed > KERNEL_FILES,
        LimitSource::Unseen(_) => !runs,
        LimitSource::Inherited(given) if !given.certain && !judged.is_one_of_several => {
            !runs && judged.allows != Some(true)
        }
        _ => judged.allows != Some(true),
    };
    if let Some((judged, needed)) = all().find(|(judged, needed)| is_open(judged, *needed)) {
        let open = unknown(NAME, judged.detail(needed));
        return match judged.pair.soft.source {
            LimitSource::NotFound | LimitSource::Inherited(_) => judged.raise(needed, open),
            LimitSource::Set(_) | LimitSource::Unseen(_) => open,
        };
    }
    if let Some(why) = facts.launch.unread.first() {
        return unknown(NAME, format!("could not read all that may set a limit: {why}"));
    }
    if facts.launch.starts.is_empty() {
        return unknown(
            NAME,
            "found nothing that starts qmail (rc in qmail's home, supervise folders, init scripts, systemd units): look at `ulimit -n` \
             and `ulimit -u` (in dash -p) where it is started",
        );
    }
    let starters: Vec<&str> = facts.launch.starts.iter().map(|start| start.file.as_str()).collect();
    let starters = names(&starters);
    let numbers = files.iter().filter_map(|judged| match judged.pair.soft.value {
        LimitValue::Number(number) => Some(number),
        _ => None,
    });
    let detail = if files.iter().all(|judged| judged.pair.soft.source == LimitSource::NotFound) {
        format!("{starters}: no limit is set")
    } else if let Some(least) = numbers.min() {
        format!("{starters}: qmail gets {least} descriptors; {needed} needed")
    } else {
        format!("{starters}: the limits are high enough")
    };
    // A program that is started from outside the container is not bound by the limits of its process 1.
    let is_script = |judged: &Judged<'_>| {
        matches!(judged.pair.soft.source, LimitSource::Set(_)) && judged.start.unit.is_none()
    };
    if facts.launch.raises_are_refused && files.iter().any(is_script) {
        let why =
            "below this machine's process 1 a script may lower a hard limit, but not raise it";
        return finding(NAME, CheckVerdict::Ok, format!("{detail} ({why})"));
    }
    finding(NAME, CheckVerdict::Ok, detail)
}
