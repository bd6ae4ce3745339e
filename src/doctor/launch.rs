//! What starts qmail, and which limits that sets: run scripts, rc files, systemd units, limits.conf. Pure: text in,
//! settings out.
#![forbid(unsafe_code)]

/// A limit that a daemon may run under.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Limited {
    /// Open descriptors of a process.
    OpenFiles,
    /// Processes of a user.
    Processes,
    /// Processes of a systemd unit.
    UnitProcesses,
}

/// Where such a limit is set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Setting {
    /// What is limited.
    pub what: Limited,
    /// To how much; `None`: unlimited.
    pub value: Option<u64>,
    /// The file.
    pub file: String,
    /// The line in it, from 1.
    pub line: usize,
    /// The line's text.
    pub text: String,
    /// The part of the text that is the number.
    number: String,
}

impl Setting {
    /// The line as it should be, with `value` in place of the number.
    pub fn with(&self, value: u64) -> String {
        self.text.replacen(&self.number, &value.to_string(), 1)
    }

    /// The file and the line.
    pub fn place(&self) -> String {
        format!("{} line {}", self.file, self.line)
    }
}

/// Whether a script or unit starts qmail's queue daemons (and not only, say, qmail-smtpd, whose limits are another
/// matter).
pub fn starts_qmail(text: &str, home: &str) -> bool {
    let code = text.lines().filter(|line| !line.trim_start().starts_with('#'));
    let rc = format!("{home}/rc");
    code.into_iter().any(|line| {
        ["qmail-start", "qmail-send", "qmail-rspawn", "/qmail/rc"]
            .iter()
            .any(|word| line.contains(word))
            || line.contains(&rc)
    })
}

/// The limits that a shell script sets: `softlimit`, `ulimit`, `chpst`.
pub fn in_script(file: &str, text: &str) -> Vec<Setting> {
    let mut settings = Vec::new();
    for (line, text) in numbered(text) {
        let words: Vec<&str> = text.split_whitespace().collect();
        for (at, word) in words.iter().enumerate() {
            let program = word.rsplit('/').next().unwrap_or_default();
            let options: &[(&str, Limited)] = match program {
                "softlimit" | "chpst" => &[("-o", Limited::OpenFiles), ("-p", Limited::Processes)],
                "ulimit" => &[
                    ("-n", Limited::OpenFiles),
                    ("-Sn", Limited::OpenFiles),
                    ("-Hn", Limited::OpenFiles),
                    ("-u", Limited::Processes),
                    ("-Su", Limited::Processes),
                    ("-Hu", Limited::Processes),
                ],
                _ => continue,
            };
            // Up to the program that is started: its options are its own.
            for (index, option) in words.iter().enumerate().skip(at + 1) {
                let given = options.iter().find_map(|(name, what)| {
                    let rest = option.strip_prefix(name)?;
                    let number =
                        if rest.is_empty() { words.get(index + 1).copied()? } else { rest };
                    Some((*what, number.trim_end_matches([';', '\\', '&']).to_owned()))
                });
                if let Some((what, number)) = given {
                    settings.extend(setting(what, &number, file, line, text));
                }
            }
        }
    }
    settings
}

/// The limits that a systemd unit, or a file in its `.d` directory, sets.
pub fn in_unit(file: &str, text: &str) -> Vec<Setting> {
    let mut settings = Vec::new();
    for (line, text) in numbered(text) {
        let Some((key, value)) = text.split_once('=') else { continue };
        let what = match key.trim() {
            "LimitNOFILE" => Limited::OpenFiles,
            "LimitNPROC" => Limited::Processes,
            "TasksMax" => Limited::UnitProcesses,
            _ => continue,
        };
        // "soft:hard": qmail is not going to raise its own soft limit.
        let soft = value.trim().split(':').next().unwrap_or_default();
        settings.extend(setting(what, soft, file, line, text));
    }
    settings
}

/// The limits that limits.conf, or a file in limits.d, sets for `user`.
pub fn in_limits_conf(file: &str, text: &str, user: &str) -> Vec<Setting> {
    let mut settings = Vec::new();
    for (line, text) in numbered(text) {
        let words: Vec<&str> = text.split_whitespace().collect();
        let [who, _, item, value] = words.as_slice() else { continue };
        if *who != user && *who != "*" {
            continue;
        }
        let what = match *item {
            "nofile" => Limited::OpenFiles,
            "nproc" => Limited::Processes,
            _ => continue,
        };
        settings.extend(setting(what, value, file, line, text));
    }
    settings
}

/// Lines with their numbers, without comments and the white space around them.
fn numbered(text: &str) -> impl Iterator<Item = (usize, &str)> {
    text.lines()
        .enumerate()
        .map(|(index, line)| (index + 1, line.trim()))
        .filter(|(_, line)| !line.is_empty() && !line.starts_with(['#', ';']))
}

fn setting(what: Limited, number: &str, file: &str, line: usize, text: &str) -> Option<Setting> {
    let value = match number {
        "unlimited" | "infinity" | "-" | "-1" => None,
        // A percentage (TasksMax) depends on the machine and is not judged.
        digits => Some(digits.parse().ok()?),
    };
    Some(Setting {
        what,
        value,
        file: file.to_owned(),
        line,
        text: text.to_owned(),
        number: number.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scripts_are_read() {
        let text = "#!/bin/sh\n# softlimit -o 10\nulimit -n 1024\nexec softlimit -m 2000000 -o512 -p 100 \\\n /var/qmail/rc -o 7\n";
        let found: Vec<(usize, Limited, Option<u64>)> =
            in_script("run", text).into_iter().map(|one| (one.line, one.what, one.value)).collect();
        assert_eq!(
            found,
            [
                (3, Limited::OpenFiles, Some(1024)),
                (4, Limited::OpenFiles, Some(512)),
                (4, Limited::Processes, Some(100)),
            ]
        );
    }

    #[test]
    fn the_line_to_write_differs_in_the_number_alone() {
        let settings = in_script("run", "exec softlimit -o 1024 qmail-start");
        assert_eq!(settings[0].with(2005), "exec softlimit -o 2005 qmail-start");
        assert_eq!(settings[0].place(), "run line 1");
    }

    #[test]
    fn units_are_read() {
        let text = "[Service]\nLimitNOFILE=1024:4096\nTasksMax=15%\nLimitNPROC=infinity\n";
        let found: Vec<(Limited, Option<u64>)> =
            in_unit("qmail.service", text).into_iter().map(|one| (one.what, one.value)).collect();
        assert_eq!(found, [(Limited::OpenFiles, Some(1024)), (Limited::Processes, None)]);
    }

    #[test]
    fn limits_conf_is_read_for_the_user_and_for_all() {
        let text =
            "* soft nofile 1024\nqmailr hard nproc 100\nalice hard nproc 5\n@mail - nproc 7\n";
        let found: Vec<(Limited, Option<u64>)> = in_limits_conf("limits.conf", text, "qmailr")
            .into_iter()
            .map(|one| (one.what, one.value))
            .collect();
        assert_eq!(found, [(Limited::OpenFiles, Some(1024)), (Limited::Processes, Some(100))]);
    }

    #[test]
    fn what_starts_only_other_daemons_does_not_count() {
        assert!(starts_qmail("exec qmail-start ./Mailbox", "/var/qmail"));
        assert!(starts_qmail("exec /opt/q/rc", "/opt/q"));
        assert!(!starts_qmail("exec softlimit -m 2000000 qmail-smtpd", "/var/qmail"));
        assert!(!starts_qmail("# qmail-start", "/var/qmail"));
    }
}
