//! Reads limits.conf of PAM. It applies to programs that are started from a login shell or by su, not to daemons that a
//! supervisor or systemd starts.
#![forbid(unsafe_code)]

use super::limits::{LimitValue, Limited, Setting};

/// Returns the limits that limits.conf, or a file in limits.d, sets for `user`.
pub fn limits(file: &str, text: &str, user: &str) -> Vec<Setting> {
    let mut settings = Vec::new();
    for (index, text) in text.lines().enumerate() {
        let text = text.trim();
        let code = text.split('#').next().unwrap_or_default();
        let words: Vec<&str> = code.split_whitespace().collect();
        let [who, kind, item, number] = words.as_slice() else { continue };
        if (*who != user && *who != "*") || !matches!(*kind, "soft" | "hard" | "-") {
            continue;
        }
        let what = match *item {
            "nofile" => Limited::OpenFiles,
            "nproc" => Limited::Processes,
            _ => continue,
        };
        let value = match *number {
            "unlimited" | "infinity" | "-1" => LimitValue::Unlimited,
            digits => match digits.parse() {
                Ok(number) => LimitValue::Number(number),
                Err(_) => continue,
            },
        };
        settings.push(Setting {
            what,
            value,
            file: file.to_owned(),
            line: index + 1,
            text: text.to_owned(),
            number: (*number).to_owned(),
            from: text.find(item).unwrap_or(0),
        });
    }
    settings
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_for_the_user_and_for_all_count() {
        let text = "* soft nofile 1024\nqmailr hard nproc 100 # few\nalice hard nproc 5\n@mail - nproc 7\nqmailr - nofile -1\n";
        let found: Vec<(usize, Limited, LimitValue)> = limits("limits.conf", text, "qmailr")
            .into_iter()
            .map(|one| (one.line, one.what, one.value))
            .collect();
        assert_eq!(
            found,
            [
                (1, Limited::OpenFiles, LimitValue::Number(1024)),
                (2, Limited::Processes, LimitValue::Number(100)),
                (5, Limited::OpenFiles, LimitValue::Unlimited),
            ]
        );
    }
}
