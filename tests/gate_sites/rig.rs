//! A qmail home for `qpatch gate sites`, and the name server that it asks.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use qpatch_gate::host::Host;
use serde_json::Value;
use tempfile::TempDir;

use crate::common::{Run, run};
use crate::dns::Dns;

pub(crate) const HEAD: &str =
    "# Written by qpatch gate sites, which overwrites it: what is changed here is lost.\n";

pub(crate) const LIMITS: &str = ":20\nown.example:3\nmx:.outlook.com:2:outlook\nmx:.google.com:5:google\n\
                                 mx:mx.alone.example:1\n";

/// A qmail home, and the name server that it asks.
pub(crate) struct Rig {
    pub home: TempDir,
    pub dns: Dns,
    /// How long an answer may take, in seconds: longer than any machine does, where one comes.
    pub timeout: &'static str,
}

impl Rig {
    pub(crate) fn new(limits: &str) -> Self {
        let rig = Self { home: tempfile::tempdir().unwrap(), dns: Dns::new(), timeout: "60" };
        fs::create_dir_all(rig.path("control")).unwrap();
        fs::create_dir_all(rig.path("queue/lock")).unwrap();
        let kept = ["gatekept.domains", "gatekept.routes", "gatekept.sites", "gatekept.replies"];
        for file in ["gatestatus", "gatesites"].into_iter().chain(kept) {
            fs::write(rig.path("queue/lock").join(file), "").unwrap();
        }
        rig.control("concurrencydomains", limits);
        rig
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.home.path().join(name)
    }

    pub(crate) fn control(&self, name: &str, text: &str) {
        fs::write(self.path("control").join(name), text).unwrap();
    }

    /// The map without the days when its domains were seen.
    pub(crate) fn map(&self) -> String {
        let text = fs::read_to_string(self.path("control/concurrencysites")).unwrap_or_default();
        text.split_inclusive('\n').filter(|line| !line.starts_with("# seen ")).collect()
    }

    pub(crate) fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_qpatch"));
        command.current_dir(self.home.path()).args([
            "gate",
            "sites",
            ".",
            "--timeout",
            self.timeout,
        ]);
        command.args(["--server", &self.dns.address.to_string()]).args(args);
        command
    }

    pub(crate) fn sites(&self, args: &[&str]) -> Run {
        run(&mut self.command(args))
    }

    pub(crate) fn json(&self, args: &[&str]) -> Value {
        let out = self.sites(&[args, &["--format", "json"]].concat()).ok().out;
        serde_json::from_str(&out).unwrap_or_else(|error| panic!("{error}: {out}"))
    }

    pub(crate) fn host(&self, slots: u32) -> Host {
        let (control, status) = (self.path("control"), self.path("queue/lock/gatestatus"));
        Host::open(slots, control.as_os_str(), status.as_os_str(), 1).unwrap()
    }
}

pub(crate) fn domains(list: &Value) -> Vec<&str> {
    list.as_array().unwrap().iter().map(|change| change["domain"].as_str().unwrap()).collect()
}
