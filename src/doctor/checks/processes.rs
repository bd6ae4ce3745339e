//! Checks whether enough processes can run: of the user qmailr, in qmail's unit and control group, and on the machine.
#![forbid(unsafe_code)]

use super::super::facts::Facts;
use super::super::finding::{CheckVerdict, Finding};
use super::super::launch::Ceiling;
use super::super::launch::limits::Limited;
use super::common::{
    OTHER_PROCESSES, SYSCTL, enough, finding, limit_text, names, running, unknown,
};

pub(super) fn user_processes(facts: &Facts, remote: u64) -> Finding {
    const NAME: &str = "processes, qmailr";
    let needed = remote + 10;
    let conf = facts.limits_conf.iter().find(|setting| {
        setting.what == Limited::Processes && setting.value.allows(needed) == Some(false)
    });
    let with_conf = |mut found: Finding| {
        if let Some(setting) = conf {
            found = found.fix(setting.place(), setting.with(needed));
        }
        found
    };
    let daemons = match running(facts) {
        Ok(daemons) => daemons,
        Err(why) => {
            return match conf {
                // These limits apply to daemons that are started from a login shell, not to those of a supervisor.
                Some(setting) => with_conf(finding(
                    NAME,
                    CheckVerdict::Warn,
                    format!("{} limits qmailr: {}", setting.place(), setting.text),
                )),
                None => unknown(NAME, why),
            };
        }
    };
    let Some(rspawn) = daemons.iter().find(|daemon| daemon.name == "qmail-rspawn") else {
        return unknown(NAME, "no qmail-rspawn is running that can be seen");
    };
    match &rspawn.limits {
        Err(why) => unknown(NAME, why.clone()),
        Ok(limits) if enough(limits.processes, needed) => finding(
            NAME,
            CheckVerdict::Ok,
            format!(
                "the running qmail-rspawn may have {}; {needed} needed",
                limit_text(limits.processes)
            ),
        ),
        Ok(limits) => with_conf(
            finding(
                NAME,
                CheckVerdict::Warn,
                format!(
                    "the running qmail-rspawn may have {}; {needed} needed",
                    limit_text(limits.processes)
                ),
            )
            // In dash the letter is p.
            .fix(
                "where qmail is started, before it",
                format!("ulimit -u {needed} || ulimit -p {needed}"),
            ),
        ),
    }
}

/// Checks the units that start qmail for settings that stop mail.
pub(super) fn unit_settings(facts: &Facts) -> Finding {
    const NAME: &str = "unit settings";
    let services = &facts.launch.services;
    let mut obstacles = services.iter().flat_map(|service| &service.obstacles).peekable();
    let Some(first) = obstacles.peek() else {
        let detail = match services.as_slice() {
            [] => "no systemd unit starts qmail".to_owned(),
            _ => {
                let units: Vec<&str> =
                    services.iter().map(|service| service.name.as_str()).collect();
                format!("none of {} stops mail", names(&units))
            }
        };
        return finding(NAME, CheckVerdict::Ok, detail);
    };
    let detail = format!("{} ({}): {}", first.place, first.text, first.why);
    obstacles.fold(finding(NAME, CheckVerdict::Warn, detail), |found, obstacle| {
        found.fix(obstacle.fix.0.as_str(), obstacle.fix.1.as_str())
    })
}

/// Adds the fix that raises a ceiling of a unit: in the line that sets it, or in a new line.
pub(super) fn raise(found: Finding, ceiling: &Ceiling, value: &str, number: u64) -> Finding {
    match &ceiling.setting {
        Some(setting) if value.bytes().all(|byte| byte.is_ascii_digit()) => {
            found.fix(setting.place(), setting.with(number))
        }
        Some(setting) => found.fix(setting.place(), format!("{}{value}", ceiling.raise.1)),
        None => found.fix(ceiling.raise.0.as_str(), format!("{}{value}", ceiling.raise.1)),
    }
}

pub(super) fn unit_processes(facts: &Facts, deliveries: u64) -> Finding {
    const NAME: &str = "processes, unit";
    let needed = deliveries + 50;
    let ceilings: Vec<&Ceiling> =
        facts.launch.services.iter().flat_map(|service| &service.tasks).collect();
    let mut low = ceilings.iter().filter(|ceiling| ceiling.most < needed).peekable();
    if let Some(first) = low.peek() {
        let detail =
            format!("{} may have {}, by {}; {needed} needed", first.unit, first.most, first.by);
        return low.fold(finding(NAME, CheckVerdict::Warn, detail), |found, ceiling| {
            raise(found, ceiling, &needed.to_string(), needed)
        });
    }
    let daemons = match running(facts) {
        Ok(daemons) => daemons,
        Err(why) => match ceilings.iter().min_by_key(|ceiling| ceiling.most) {
            Some(least) => {
                let detail = format!(
                    "{} may have {}, by {}; {needed} needed",
                    least.unit, least.most, least.by
                );
                return finding(NAME, CheckVerdict::Ok, detail);
            }
            None => return unknown(NAME, why),
        },
    };
    let Some(group) = daemons
        .iter()
        .filter_map(|daemon| daemon.group.as_ref())
        .min_by_key(|group| group.most.saturating_sub(group.others))
    else {
        return finding(NAME, CheckVerdict::Ok, "no control group limits the processes of qmail");
    };
    let needed = needed + group.others;
    let detail = format!(
        "the control group {} may have {}, has {}; {needed} needed",
        group.path, group.most, group.now
    );
    if group.most >= needed {
        return finding(NAME, CheckVerdict::Ok, detail);
    }
    let found = finding(NAME, CheckVerdict::Warn, detail);
    match group
        .path
        .rsplit('/')
        .next()
        .filter(|name| name.ends_with(".service") || name.ends_with(".slice"))
    {
        Some(name) => {
            let section = if name.ends_with(".slice") { "Slice" } else { "Service" };
            let place = format!("/etc/systemd/system/{name}.d/limits.conf, in [{section}]");
            found.fix(place, format!("TasksMax={needed}"))
        }
        None => found.fix("qmail's systemd unit, in [Service]", format!("TasksMax={needed}")),
    }
}

/// The pid_max that systemd sets on 64 bits.
const PID_MAX: u64 = 4_194_304;

/// The default pid_max of the kernel, which is also the most on 32 bits.
const PID_MAX_KERNEL: u64 = 32_768;

pub(super) fn kernel_processes(facts: &Facts, deliveries: u64) -> Finding {
    const NAME: &str = "processes, kernel";
    let (pid_max, threads_max) = match (&facts.pid_max, &facts.threads_max) {
        (Ok(pid_max), Ok(threads_max)) => (*pid_max, *threads_max),
        (Err(why), _) | (_, Err(why)) => return unknown(NAME, why.clone()),
    };
    let threads = facts.threads.as_ref().copied().unwrap_or(OTHER_PROCESSES);
    let needed = deliveries + threads + OTHER_PROCESSES;
    let detail = format!(
        "pid_max {pid_max}, threads-max {threads_max}; {threads} threads run now, {needed} needed"
    );
    let mut found = finding(NAME, CheckVerdict::Ok, detail);
    if pid_max < needed {
        found.verdict = CheckVerdict::Warn;
        found.detail.push_str(&format!(
            " (a bare kernel has a pid_max of {PID_MAX_KERNEL}; systemd sets {PID_MAX} on 64 bits)"
        ));
        let wanted = if needed > PID_MAX_KERNEL { PID_MAX } else { PID_MAX_KERNEL };
        found = found.fix(SYSCTL, format!("kernel.pid_max = {wanted}"));
    }
    if threads_max < needed {
        found.verdict = CheckVerdict::Warn;
        found = found.fix(SYSCTL, format!("kernel.threads-max = {}", needed.next_power_of_two()));
    }
    found
}
