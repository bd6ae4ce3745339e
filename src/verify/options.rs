//! The options of a proof, and its parts.
#![forbid(unsafe_code)]

use std::path::PathBuf;

use super::sandbox::scratch::Keep;

/// The largest conf-spawn. Delivery numbers take two bytes, and qpatch does not use the last few.
pub const MAX_SPAWN: u32 = 65000;

/// What a proof tries, and how.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// The conf-spawn to try (1..65000); `None`: the tree's own.
    pub spawn: Option<u32>,
    /// The compiler, in place of the first word of conf-cc and conf-ld.
    pub cc: Option<String>,
    /// Further words for conf-cc.
    pub cflags: Vec<String>,
    /// Whether the scratch directory is kept, to look inside.
    pub keep: Keep,
    /// The seed of all random choices; `None`: a new one, which the outcome reports.
    pub seed: Option<u64>,
    /// Try only these parts, and what they need; empty: all parts.
    pub only: Vec<Part>,
    /// A folder whose files are copied into the control/ of the copy, beside the files that verify
    /// writes itself. Some spawners need files of their own, such as those of forks with LDAP.
    pub control: Option<PathBuf>,
    /// The parent of the scratch directory; `None`: `$TMPDIR`, /tmp or /var/tmp.
    pub scratch_parent: Option<PathBuf>,
    /// How long each delivery takes in the trial of a domain's limit, in ms, so that its chart shows the limit at work.
    pub capped_delivery_ms: u32,
}

/// A part of a proof that can be asked for alone. Each part needs the build.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// The tree builds.
    Build,
    /// Its chkspawn accepts conf-spawn.
    Chkspawn,
    /// Its fd_set has room.
    FdSet,
    /// The machine has room; the rig is made ready.
    Machine,
    /// qmail-rspawn alone.
    Rspawn,
    /// qmail-lspawn alone.
    Lspawn,
    /// qmail-send with every delivery number; the rig plays the spawners.
    Numbers,
    /// Mail through qmail-send and both spawners.
    Mail,
    /// qmail-send stopped and killed with deliveries under way.
    Restart,
    /// The gate's limits.
    Gate,
    /// Deliveries by the fork server.
    ForkServer,
    /// The tree builds with `_FORTIFY_SOURCE=3`, as hardened distributions build it.
    FortifyBuild,
    /// qmail-rspawn alone, in the fortified build.
    FortifyRspawn,
    /// qmail-lspawn alone, in the fortified build.
    FortifyLspawn,
    /// Mail through qmail-send and both spawners, in the fortified build.
    FortifyMail,
}

impl Part {
    /// Every part, in order.
    pub const ALL: [Part; 15] = [
        Part::Build,
        Part::Chkspawn,
        Part::FdSet,
        Part::Machine,
        Part::Rspawn,
        Part::Lspawn,
        Part::Numbers,
        Part::Mail,
        Part::Restart,
        Part::Gate,
        Part::ForkServer,
        Part::FortifyBuild,
        Part::FortifyRspawn,
        Part::FortifyLspawn,
        Part::FortifyMail,
    ];

    /// The parts of the fortified build, in order.
    pub const FORTIFY: [Part; 4] =
        [Part::FortifyBuild, Part::FortifyRspawn, Part::FortifyLspawn, Part::FortifyMail];

    /// Returns its name: one word, which reports print and `--only` accepts.
    pub fn name(self) -> &'static str {
        match self {
            Part::Build => "build",
            Part::Chkspawn => "chkspawn",
            Part::FdSet => "fd_set",
            Part::Machine => "machine",
            Part::Rspawn => "qmail-rspawn",
            Part::Lspawn => "qmail-lspawn",
            Part::Numbers => "qmail-send-numbers",
            Part::Mail => "mail",
            Part::Restart => "restart",
            Part::Gate => "gate",
            Part::ForkServer => "fork-server",
            Part::FortifyBuild => "fortify-build",
            Part::FortifyRspawn => "fortify-qmail-rspawn",
            Part::FortifyLspawn => "fortify-qmail-lspawn",
            Part::FortifyMail => "fortify-mail",
        }
    }

    /// Returns the parts with that name: one part, or all of the fortified build for `fortify`.
    /// Empty for an unknown name.
    pub fn named(name: &str) -> Vec<Part> {
        if name == FORTIFY {
            return Part::FORTIFY.to_vec();
        }
        Part::ALL.into_iter().filter(|part| part.name() == name).collect()
    }
}

/// The name for all parts of the fortified build.
pub const FORTIFY: &str = "fortify";
