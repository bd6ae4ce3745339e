//! control/concurrencyshare: where the store is, and under what name this host shares its limits.
//!
//! A line is a word and a value; `#` begins a comment line. The password is never in this file, in a URL or in an
//! argument, where other users could read it: `password-file` names a file that only its owner and group may read.

use std::fmt::Write as _;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use redis::IntoConnectionInfo as _;

use crate::error::{Error, Result};
use crate::gate::advice::unusable;
use crate::qmail::control::read_file;
use crate::qmail::home::Home;

/// The name of the file in control.
pub(super) const NAME: &str = "concurrencyshare";
/// The largest file that is read, in bytes.
const FILE_MAX: u64 = 64 << 10;

/// What the file says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Config {
    /// `redis://` or `rediss://`, without user and password.
    pub(super) store: String,
    /// Hosts with the same pool share their limits.
    pub(super) pool: String,
    /// The name of this host in the pool.
    pub(super) host: String,
    pub(super) user: Option<String>,
    pub(super) password_file: Option<PathBuf>,
    /// Certificates of the authority that has signed the store's.
    pub(super) ca_file: Option<PathBuf>,
    pub(super) terms: Terms,
}

/// How long what holds, and how much without contact.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Terms {
    /// How long shares hold without a word of the store, in milliseconds.
    pub(super) lease_ms: u64,
    /// After how long without contact a host is taken for gone, in milliseconds; counted from the end of settling.
    pub(super) forget_ms: u64,
    /// The least fall-back share: 0 or 1.
    pub(super) least: u32,
}

impl Terms {
    /// How long after the end of a lease the store keeps the host's shares for it, because deliveries may still run, in
    /// milliseconds.
    pub(super) fn settle_ms(&self) -> u64 {
        self.lease_ms
    }

    /// How long after the end of a lease the gate keeps to the lower of share and fall-back share, in milliseconds. For
    /// the store the lease ends up to a lease later, if its last answers were lost; then a slow host may need another
    /// one to hear of it and to give back.
    pub(super) fn gate_settle_ms(&self) -> u64 {
        3 * self.lease_ms
    }
}

const LEASE_SECS: u64 = 10;
const FORGET_SECS: u64 = 300;
const WORDS: &str = "store, pool, host, user, password-file, ca-file, lease, forget, least";

impl Config {
    /// Reads the file of a qmail.
    ///
    /// # Errors
    /// It is missing, cannot be read, or has a line that is not understood.
    pub(super) fn read(home: &Home) -> Result<Self> {
        let path = home.control(NAME);
        let Some((_, bytes)) = read_file(&path, FILE_MAX).map_err(|kind| unusable(&path, kind))?
        else {
            return Err(Error::new(
                path.display(),
                "no such file",
                "write it, with a line such as: store redis://store.example:6379",
            ));
        };
        let me = match read_file(&home.control("me"), FILE_MAX) {
            Ok(Some((_, bytes))) => {
                String::from_utf8_lossy(bytes.split(|&b| b == b'\n').next().unwrap_or_default())
                    .trim()
                    .to_string()
            }
            _ => String::new(),
        };
        Self::parse(&path, &String::from_utf8_lossy(&bytes), me)
    }

    fn parse(path: &Path, text: &str, me: String) -> Result<Self> {
        let mut config = Self {
            store: String::new(),
            pool: "qmail".to_string(),
            host: me,
            user: None,
            password_file: None,
            ca_file: None,
            terms: Terms { lease_ms: LEASE_SECS * 1000, forget_ms: FORGET_SECS * 1000, least: 1 },
        };
        let mut seen = Vec::new();
        for (number, line) in (1..).zip(text.lines()) {
            let line = line.trim_start_matches('\u{feff}').trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let (word, value) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
            let value = value.trim();
            let wrong = |what: String, help: &str| {
                Error::new(format!("{}:{number}", path.display()), what, help)
            };
            if seen.contains(&word) {
                return Err(wrong("this word is in an earlier line".into(), "write it once"));
            }
            seen.push(word);
            if value.is_empty() {
                return Err(wrong(
                    "a word without a value".into(),
                    "write a word and a value in each line",
                ));
            }
            let secs = |max: u64| -> Result<u64> {
                let number: Option<f64> = value.parse().ok();
                match number {
                    Some(secs) if secs >= 1.0 && secs <= max as f64 => Ok((secs * 1000.0) as u64),
                    _ => {
                        Err(wrong(format!("{word} is not a number of seconds from 1 to {max}"), ""))
                    }
                }
            };
            match word {
                "store" => {
                    config.store = store(value)
                        .map_err(|help| wrong("the store is no address".into(), help))?;
                }
                "pool" | "host" => {
                    if !is_name(value) {
                        return Err(wrong(
                            format!(
                                "the name of the {word} has other characters than letters, digits and . - _"
                            ),
                            "choose a name of at most 100 of these",
                        ));
                    }
                    *(if word == "pool" { &mut config.pool } else { &mut config.host }) =
                        value.to_string();
                }
                "user" => config.user = Some(value.to_string()),
                "password-file" => config.password_file = Some(PathBuf::from(value)),
                "ca-file" => config.ca_file = Some(PathBuf::from(value)),
                "lease" => config.terms.lease_ms = secs(3600)?,
                "forget" => config.terms.forget_ms = secs(30 * 86400)?,
                "least" => {
                    config.terms.least = match value {
                        "0" => 0,
                        "1" => 1,
                        _ => return Err(wrong("least is neither 0 nor 1".into(), "")),
                    }
                }
                // The word may be a password that somebody wrote here, so it is not repeated.
                _ => {
                    return Err(wrong(
                        "a word that is not known".into(),
                        &format!("the words are {WORDS}"),
                    ));
                }
            }
        }
        let missing = |what: &str, help: &str| Err(Error::new(path.display(), what, help));
        if config.store.is_empty() {
            return missing("no store", "add a line such as: store redis://store.example:6379");
        }
        if config.user.is_some() && config.password_file.is_none() {
            return missing(
                "a user without a password",
                "add a line such as: password-file /etc/qpatch/share.password",
            );
        }
        if !is_name(&config.host) {
            return missing("no name for this host", "add a line such as: host mx1");
        }
        Ok(config)
    }

    /// Reads the password.
    ///
    /// # Errors
    /// The file cannot be read, or others than its owner and group may read it.
    pub(super) fn password(&self) -> Result<Option<String>> {
        let Some(path) = &self.password_file else { return Ok(None) };
        let Some((metadata, bytes)) =
            read_file(path, FILE_MAX).map_err(|kind| unusable(path, kind))?
        else {
            return Err(Error::new(path.display(), "no such file", ""));
        };
        if metadata.mode() & 0o007 != 0 {
            let mut mode = String::new();
            let _ = write!(mode, "{:o}", metadata.mode() & 0o777);
            let what = format!(
                "everybody may read or write this file (mode {mode}), so it keeps no secret"
            );
            return Err(Error::new(path.display(), what, format!("chmod o= {}", path.display())));
        }
        let text = String::from_utf8(bytes)
            .map_err(|_| Error::new(path.display(), "the password is not UTF-8", ""))?;
        Ok(Some(text.lines().next().unwrap_or_default().to_string()))
    }
}

fn is_name(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= 100
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b".-_".contains(&byte))
}

/// Checks the address of the store.
fn store(value: &str) -> std::result::Result<String, &'static str> {
    let rest = ["redis://", "rediss://"].iter().find_map(|scheme| value.strip_prefix(scheme));
    match rest {
        Some(rest) if rest.contains('@') => {
            Err("a password does not belong here: use password-file, and user")
        }
        // The client takes a port and a database that are no numbers for an error without a place.
        Some(rest)
            if !rest.is_empty()
                && !rest.starts_with('/')
                && !rest.contains(['?', '#'])
                && value.into_connection_info().is_ok() =>
        {
            Ok(value.to_string())
        }
        _ => Err(
            "write redis://HOST:PORT, or rediss://HOST:PORT for TLS; /N behind it is the database",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> std::result::Result<Config, String> {
        Config::parse(Path::new("f"), text, "mx.example".to_string())
            .map_err(|error| error.to_string())
    }

    #[test]
    fn what_the_file_says() {
        let config = parse(
            "# a comment\n\nstore rediss://s.example:6380/2\npool mail\nlease 1.5\nleast 0\n",
        )
        .unwrap();
        assert_eq!((&config.store[..], &config.pool[..]), ("rediss://s.example:6380/2", "mail"));
        assert_eq!(config.host, "mx.example");
        assert_eq!(config.terms, Terms { lease_ms: 1500, forget_ms: 300_000, least: 0 });
    }

    #[test]
    fn mistakes_have_a_line_and_no_secret_is_repeated() {
        let cases = [
            ("", "f: no store"),
            ("store redis://a\nhost a b\n", "f:2: the name of the host has other"),
            ("store http://a\n", "f:1: the store is no address"),
            ("store redis://:S3cret@a\n", "f:1: the store is no address"),
            ("store redis://a\npassword S3cret\n", "f:2: a word that is not known"),
            ("store redis://a\nS3cret\n", "f:2: a word without a value"),
            (
                "store redis://a\nlease 0.9\n",
                "f:2: lease is not a number of seconds from 1 to 3600",
            ),
            ("store redis://a\nlease NaN\n", "f:2: lease is not a number"),
            ("store redis://a\nleast 2\n", "f:2: least is neither"),
            ("store redis://a:99999\n", "f:1: the store is no address"),
            ("\nstore redis://a:6379/x\n", "f:2: the store is no address"),
            ("store redis:///tmp/socket\n", "f:1: the store is no address"),
            ("store redis://a\nuser x\n", "f: a user without a password"),
            ("store redis://a\nstore redis://b\n", "f:2: this word is in an earlier line"),
        ];
        for (text, expected) in cases {
            let error = parse(text).unwrap_err();
            assert!(error.starts_with(expected), "{text}: {error}");
            assert!(!error.contains("S3cret"), "{error}");
        }
    }
}
