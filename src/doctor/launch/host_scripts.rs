//! The scripts and programs of a machine, for the walk that follows them: [`HostScripts`] is the [`ScriptHost`] that
//! reads a [`Host`].
#![forbid(unsafe_code)]

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io;
use std::path::Path;

use super::limits::KernelLimits;
use super::script::{PathContent, ScriptHost};
use super::shell::Shell;
use crate::doctor::host::Host;

/// The scripts and programs of a machine.
pub(super) struct HostScripts<'h> {
    host: &'h Host<'h>,
    home: String,
    shell: Shell,
    machine: KernelLimits,
    texts: RefCell<BTreeMap<String, PathContent>>,
}

/// The largest start script, in bytes. A larger file is not taken for one.
const SCRIPT_MAX: u64 = 1 << 20;

impl<'h> HostScripts<'h> {
    /// Returns the scripts of `host`, whose qmail is in `home`.
    pub(super) fn of(host: &'h Host<'h>, home: &Path) -> HostScripts<'h> {
        HostScripts {
            host,
            home: home.display().to_string(),
            shell: shell(host),
            machine: KernelLimits {
                nr_open: host.number("/proc/sys/fs/nr_open").ok(),
                may_raise: true,
            },
            texts: RefCell::default(),
        }
    }

    pub(super) fn home(&self) -> &str {
        &self.home
    }
}

impl ScriptHost for HostScripts<'_> {
    fn content_of(&self, path: &str) -> PathContent {
        if let Some(known) = self.texts.borrow().get(path) {
            return known.clone();
        }
        let place = self.host.path(path);
        let called = match std::fs::metadata(&place) {
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                PathContent::Unreadable(format!("{path}: {error}"))
            }
            Err(_) => PathContent::Missing,
            Ok(file) if !file.is_file() || file.len() > SCRIPT_MAX => PathContent::Other,
            Ok(_) => match self.host.read_bytes(path) {
                Err(why) => PathContent::Unreadable(why),
                // A binary program.
                Ok(bytes) if bytes.contains(&0) => PathContent::Other,
                Ok(bytes) => PathContent::Script(String::from_utf8_lossy(&bytes).into_owned()),
            },
        };
        self.texts.borrow_mut().insert(path.to_owned(), called.clone());
        called
    }

    fn shell(&self) -> Shell {
        self.shell
    }

    fn kernel_limits(&self) -> KernelLimits {
        self.machine
    }

    fn is_rc(&self, path: &str) -> bool {
        path == format!("{}/rc", self.home) || path.ends_with("/qmail/rc")
    }

    fn is_known(&self, path: &str) -> bool {
        self.is_rc(path)
            || path.starts_with("/etc/init.d/")
            || path.ends_with("/run")
            || path.rsplit('/').next().is_some_and(|name| name.contains("qmail"))
    }
}

fn shell(host: &Host<'_>) -> Shell {
    let real = host.real(Path::new("/bin/sh")).filter(|real| host.is_file(real));
    real.and_then(|real| Shell::named(real.file_name()?.to_str()?)).unwrap_or(Shell::Unknown)
}
