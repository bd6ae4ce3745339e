//! What a proof is to try, and which parts of it.
#![forbid(unsafe_code)]

use std::path::PathBuf;

use super::sandbox::scratch::Keep;

/// The largest conf-spawn: delivery numbers take two bytes, and qpatch leaves the last few alone.
pub const MAX_SPAWN: u32 = 65000;

/// What a proof is to try, and how.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// The conf-spawn to try (1..65000); `None`: what the tree has.
    pub spawn: Option<u32>,
    /// The compiler, in place of the first word of conf-cc and conf-ld.
    pub cc: Option<String>,
    /// Further words for conf-cc.
    pub cflags: Vec<String>,
    /// Whether the scratch directory is kept, to look inside.
    pub keep: Keep,
    /// The seed of everything random; `None`: a new one, which the outcome tells.
    pub seed: Option<u64>,
    /// Only these parts, and what they need; empty: all.
    pub only: Vec<Part>,
    /// A folder whose files the copy gets in its control/, beside those that verify writes itself: for spawners that
    /// want files of their own, as those of forks with LDAP.
    pub control: Option<PathBuf>,
    /// Where the scratch directory is made; `None`: `$TMPDIR`, /tmp or /var/tmp.
    pub scratch_parent: Option<PathBuf>,
}

/// A part of a proof that can be asked for alone. The tree is built for each.
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
    /// qmail-send with every delivery number, the spawners played by the rig.
    Numbers,
    /// Mail through qmail-send and both spawners.
    Mail,
    /// qmail-send stopped and killed with deliveries under way.
    Restart,
    /// The gate's limits.
    Gate,
    /// Deliveries by the fork server.
    ForkServer,
    /// The tree builds with `_FORTIFY_SOURCE=3`, as hardened distributions build.
    FortifyBuild,
    /// qmail-rspawn alone, built so.
    FortifyRspawn,
    /// qmail-lspawn alone, built so.
    FortifyLspawn,
    /// Mail through qmail-send and both spawners, built so.
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

    /// Those of the fortified build, in order.
    pub const FORTIFY: [Part; 4] =
        [Part::FortifyBuild, Part::FortifyRspawn, Part::FortifyLspawn, Part::FortifyMail];

    /// Its name: one word, which a report prints and `--only` takes.
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

    /// The parts of that name: one, or with `fortify` all of the fortified build. None where nothing is called so.
    pub fn named(name: &str) -> Vec<Part> {
        if name == FORTIFY {
            return Part::FORTIFY.to_vec();
        }
        Part::ALL.into_iter().filter(|part| part.name() == name).collect()
    }
}

/// The name of all parts of the fortified build together.
pub const FORTIFY: &str = "fortify";
