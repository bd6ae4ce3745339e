//! Checks qmail's own settings: conf-spawn, the limits per domain, relays, and the fork server.
#![forbid(unsafe_code)]

use qpatch_gate::status::InForce;
use qpatch_gate::table;

use super::super::facts::{DomainLimits, Facts};
use super::super::finding::{CheckVerdict, Finding};
use super::common::{finding, unknown};
use crate::output::count;
use crate::qmail::remote_status::RemoteStatus;

pub(super) fn conf_spawn(facts: &Facts, concurrency: u32) -> Finding {
    const NAME: &str = "conf-spawn";
    let control = facts.home.join("control/concurrencyremote");
    let remote = match &facts.remote {
        Ok(remote) => *remote,
        Err(why) => return unknown(NAME, why.clone()),
    };
    match &facts.spawn {
        Err(why) => unknown(NAME, format!("{why}; concurrencyremote is {remote}")),
        Ok(spawn) if concurrency > *spawn || remote > *spawn => {
            let wanted = concurrency.max(remote);
            finding(
                NAME,
                CheckVerdict::Warn,
                format!("the installed qmail runs at most {spawn} deliveries of each kind, whatever is set: {wanted} are wanted"),
            )
            .fix("in the source tree", format!("qpatch apply . --spawn {wanted} && make setup check"))
        }
        Ok(spawn) if remote < concurrency => finding(
            NAME,
            CheckVerdict::Warn,
            format!("concurrencyremote is {remote}, {concurrency} are wanted; the installed qmail can run {spawn}"),
        )
        .fix(control.display().to_string(), concurrency.to_string()),
        Ok(spawn) => {
            finding(NAME, CheckVerdict::Ok, format!("concurrencyremote is {remote}; the installed qmail can run {spawn}"))
        }
    }
}

pub(super) fn domain_limits(facts: &Facts, concurrency: u32) -> Finding {
    const NAME: &str = "domain limits";
    let file = facts.home.join("control/concurrencydomains");
    let caps = match &facts.caps {
        Err(why) => return unknown(NAME, why.clone()),
        Ok(None) => {
            return finding(
                NAME,
                CheckVerdict::Note,
                format!(
                    "none: one domain may take all {concurrency} deliveries (there is no control/concurrencydomains)"
                ),
            )
            .fix("a file to start from", format!("qpatch gate init {}", facts.home.display()));
        }
        Ok(Some(caps)) => caps,
    };
    let DomainLimits { table, problems, text } = caps;
    let check = format!("qpatch gate check {}", facts.home.display());
    let instead = match facts.in_force {
        Some(InForce::Kept) => "; the last one without errors counts, also after a restart",
        Some(InForce::Part) => {
            "; its good lines count, and a limit of 20 for all other domains, since no good copy was kept"
        }
        Some(InForce::None | InForce::File) | None => "",
    };
    if let (errors @ 1.., Some(first)) = (problems.errors(), problems.worst()) {
        let errors = if errors == 1 { "an error".to_owned() } else { format!("{errors} errors") };
        return finding(
            NAME,
            CheckVerdict::Warn,
            format!(
                "control/concurrencydomains has {errors}, and the gate does not use it: {first}{instead}"
            ),
        )
        .fix("to see all of them", check);
    }
    if !instead.is_empty() {
        return finding(
            NAME,
            CheckVerdict::Warn,
            format!("the running gate has not used control/concurrencydomains{instead}"),
        )
        .fix("to see why", check);
    }
    let lines = table.len() + table.ranges() + table.exchangers();
    let warnings = match problems.iter().count() {
        0 => String::new(),
        1 => format!("; a warning, see {check}"),
        warnings => format!("; {warnings} warnings, see {check}"),
    };
    let mut never: Vec<u32> = table.above(concurrency).map(|problem| problem.line).collect();
    never.sort_unstable();
    let Some(&first) = never.first() else {
        return finding(
            NAME,
            CheckVerdict::Ok,
            format!(
                "{}, none above concurrencyremote {concurrency}{warnings}",
                count(lines as u64, "line")
            ),
        );
    };
    let numbered = (1..).zip(text.split(|&byte| byte == b'\n'));
    let above: Vec<_> = numbered
        .filter(|(number, _)| never.binary_search(number).is_ok())
        .filter_map(|(_, line)| parts(line))
        .collect();
    let wanted =
        above.iter().filter_map(|(_, limit, _)| limit.parse().ok()).max().unwrap_or(concurrency);
    let (subject, _, rest) = above.first().cloned().unwrap_or_default();
    let domain = if subject.is_empty() { "the default" } else { &subject };
    finding(
        NAME,
        CheckVerdict::Warn,
        format!(
            "{} of {lines} limits can never be reached with concurrencyremote {concurrency}: {domain} in line {first}, for \
             one{warnings}",
            never.len(),
        ),
    )
    .fix(facts.home.join("control/concurrencyremote").display().to_string(), (2 * wanted).to_string())
    .fix(format!("or {} line {first}", file.display()), format!("{subject}:{concurrency}{rest}"))
}

/// Returns what a line is for, its limit, and the rest. Leaves out what may be a password.
fn parts(line: &[u8]) -> Option<(String, String, String)> {
    let line = line.trim_ascii_end();
    let (subject, rest) = line.split_at(table::subject_len(line)?);
    let end = rest[1..].iter().position(|&byte| byte == b':').map_or(rest.len(), |at| at + 1);
    let limit_text =
        subject.split(|&byte| matches!(byte, b'|' | b';' | b',')).next().unwrap_or_default();
    let text = |bytes: &[u8]| bytes.escape_ascii().to_string();
    Some((text(limit_text), text(&rest[1..end]), text(&rest[end..])))
}

/// Checks how qmail-remote is started, if control/remoteserver asks for a fork server.
pub(super) fn starts(facts: &Facts) -> Option<Finding> {
    const NAME: &str = "fork server";
    let wanted = facts.remote_server.as_deref()?;
    let reason = facts.starts.iter().find(|one| !one.reason.is_empty());
    let sum = |get: fn(&RemoteStatus) -> u64| facts.starts.iter().map(get).sum::<u64>();
    let by_exec = sum(RemoteStatus::executed);
    Some(if let Some(one) = reason {
        finding(NAME, CheckVerdict::Warn, format!("each delivery is executed: {}", one.reason))
    } else if facts.starts.is_empty() {
        finding(
            NAME,
            CheckVerdict::Note,
            format!(
                "control/remoteserver is {wanted}; no qmail-rspawn that runs has made a delivery yet, or it is from a tree \
                 without the patch fork-server"
            ),
        )
    } else if facts.starts.iter().any(|one| one.most == 0) {
        let what = "when qmail-rspawn started, control/remoteserver had no number";
        finding(NAME, CheckVerdict::Warn, what).fix("a restart of qmail-send", "reads it again")
    } else {
        let by_server = sum(|one| one.by_server);
        let failed = sum(|one| one.failed);
        let detail = format!(
            "{by_server} deliveries by the fork server, {by_exec} by exec; {failed} servers have failed"
        );
        finding(NAME, CheckVerdict::Ok, detail)
    })
}

/// Checks for relays that the gate does not follow.
pub(super) fn relays(facts: &Facts) -> Finding {
    const NAME: &str = "relays";
    let Some((message, _)) = facts.relay_warnings.first() else {
        return finding(NAME, CheckVerdict::Ok, "none but those of control/smtproutes");
    };
    let verdict = match &facts.caps {
        // Without limits, nothing can be counted wrongly.
        Ok(None) => CheckVerdict::Ok,
        _ => CheckVerdict::Note,
    };
    let messages = facts
        .relay_warnings
        .iter()
        .skip(1)
        .fold(message.clone(), |all, (message, _)| all + "; " + message);
    facts.relay_warnings.iter().fold(finding(NAME, verdict, messages), |found, (_, help)| {
        match verdict {
            CheckVerdict::Note => found.fix("to be considered", help.as_str()),
            _ => found,
        }
    })
}
