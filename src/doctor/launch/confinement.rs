//! Settings of a unit that stop qmail's mail. Most of them are meant to confine a daemon that needs neither root nor
//! the network.
#![forbid(unsafe_code)]

use std::path::Path;

use super::unit::{Unit, UnitEntry, drop_in};

/// A setting that stops mail.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Obstacle {
    /// The file, and the line in it.
    pub place: String,
    /// The line.
    pub text: String,
    /// What it does to qmail.
    pub why: String,
    /// Where to set it otherwise, and the line to write there.
    pub fix: (String, String),
}

/// Returns the settings of a unit that stop the mail of the qmail in `home`.
pub(super) fn obstacles(unit: &Unit, home: &Path) -> Vec<Obstacle> {
    let mut found = Vec::new();
    let mut add = |entry: &UnitEntry, line: &str, why: &str| {
        found.push(Obstacle {
            place: format!("{} line {}", entry.file, entry.line),
            text: entry.text.clone(),
            why: why.to_owned(),
            fix: (drop_in(&unit.name, "Service", Some(entry)), line.to_owned()),
        });
    };
    const ROOT: &str = "qmail-start must be root to give each daemon its own user";
    if let Some(entry) = unit.last("Service", "User")
        && !matches!(entry.value.as_str(), "" | "root" | "0")
    {
        add(entry, "User=root", ROOT);
    }
    if let Some(entry) = unit.is_on("DynamicUser") {
        add(entry, "DynamicUser=no", ROOT);
    }
    let private = unit.last("Service", "PrivateUsers");
    if let Some(entry) =
        unit.is_on("PrivateUsers").or(private.filter(|entry| entry.value == "self"))
    {
        add(
            entry,
            "PrivateUsers=no",
            "qmail's own users do not exist in it, so that qmail-start fails",
        );
    }
    if let Some(entry) = unit.is_on("NoNewPrivileges") {
        let why =
            "qmail-queue cannot become its user, so that no bounce and no forwarded mail is queued";
        add(entry, "NoNewPrivileges=no", why);
    }
    if let Some(entry) = unit.is_on("PrivateNetwork") {
        add(entry, "PrivateNetwork=no", "qmail-remote has no network");
    }
    if let Some((entry, false)) = allowed(unit, "RestrictAddressFamilies", "AF_INET") {
        add(
            entry,
            "RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6",
            "qmail-remote can open no connection",
        );
    }
    for capability in ["CAP_SETUID", "CAP_SETGID"] {
        if let Some((entry, false)) = allowed(unit, "CapabilityBoundingSet", capability) {
            add(entry, &format!("CapabilityBoundingSet={capability}"), ROOT);
        }
    }
    // systemd's sets that contain setuid(), and the calls themselves.
    let calls = ["@setuid", "@privileged", "@system-service", "@known", "setuid", "setresuid"];
    if let Some((entry, false)) = allowed_any(unit, "SystemCallFilter", &calls) {
        let why = "the kernel kills qmail-start when it gives a daemon its own user";
        add(entry, "SystemCallFilter=@setuid", why);
    }
    let denied = unit.list("Service", "IPAddressDeny");
    let all = |entries: &[&UnitEntry]| {
        let mut words = entries.iter().flat_map(|entry| entry.value.split_whitespace());
        words.any(|word| matches!(word, "any" | "0.0.0.0/0"))
    };
    if let (Some(entry), true, false) =
        (denied.last(), all(&denied), all(&unit.list("Service", "IPAddressAllow")))
    {
        add(entry, "IPAddressDeny=", "qmail-remote reaches only the addresses of IPAddressAllow");
    }
    let queue = home.join("queue");
    let covers = |key: &str| {
        let entries = unit.list("Service", key);
        let covered = entries.iter().rev().find(|entry| {
            let mut paths =
                entry.value.split_whitespace().map(|path| path.trim_start_matches(['-', '+']));
            paths.any(|path| queue.starts_with(path))
        });
        covered.copied()
    };
    let read_only = unit.last("Service", "ProtectSystem").filter(|entry| entry.value == "strict");
    if let Some(entry) =
        read_only.or_else(|| covers("ReadOnlyPaths")).or_else(|| covers("ReadOnlyDirectories"))
        && covers("ReadWritePaths").or_else(|| covers("ReadWriteDirectories")).is_none()
    {
        add(entry, &format!("ReadWritePaths={}", home.display()), "the queue cannot be written");
    }
    if let Some(entry) = covers("InaccessiblePaths").or_else(|| covers("InaccessibleDirectories")) {
        add(entry, "InaccessiblePaths=", "the queue cannot be reached");
    }
    if let Some(entry) = unit.last("Service", "RuntimeMaxSec")
        && !matches!(entry.value.as_str(), "" | "infinity")
    {
        add(entry, "RuntimeMaxSec=infinity", "systemd ends qmail after that time");
    }
    if let Some(entry) = unit.all("Service", "LimitCPU").rev().find(|entry| !entry.value.is_empty())
        && !entry.value.ends_with("infinity")
    {
        add(
            entry,
            "LimitCPU=infinity",
            "the kernel ends qmail-send and the spawners after so much CPU time",
        );
    }
    found
}

fn allowed<'u>(unit: &'u Unit, key: &str, word: &str) -> Option<(&'u UnitEntry, bool)> {
    allowed_any(unit, key, &[word])
}

/// Returns the last line of a list of what is allowed (or, with `~`, of what is not), and whether the list allows one
/// of `words`. `None`: there is no list.
fn allowed_any<'u>(unit: &'u Unit, key: &str, words: &[&str]) -> Option<(&'u UnitEntry, bool)> {
    let mut last = None;
    let mut allowed = true;
    let mut is_first = true;
    for entry in unit.all("Service", key) {
        if entry.value.is_empty() {
            (last, allowed, is_first) = (None, true, true);
            // An empty list of capabilities removes all.
            if key == "CapabilityBoundingSet" {
                (last, allowed, is_first) = (Some(entry), false, false);
            }
            continue;
        }
        let (list, denies) = match entry.value.strip_prefix('~') {
            Some(list) => (list, true),
            None => (entry.value.as_str(), false),
        };
        let has = list.split_whitespace().any(|one| {
            // An error number may follow a call.
            let name = one.split(':').next().unwrap_or_default();
            words.contains(&name)
        });
        if is_first {
            // The first line decides about everything that no line names.
            allowed = denies;
        }
        if list.trim().is_empty() {
            allowed = true;
        } else if list.trim() == "none" {
            allowed = denies;
        } else if has {
            allowed = !denies;
        }
        is_first = false;
        last = Some(entry);
    }
    last.map(|entry| (entry, allowed))
}
