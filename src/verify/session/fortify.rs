//! The steps with a hardened build: the tree builds with `_FORTIFY_SOURCE`, and its spawners and its mail work.
#![forbid(unsafe_code)]

use std::collections::BTreeSet;
use std::fs;
use std::time::Instant;

use super::steps::{Build, EARLIER_FAILED, NOT_ASKED, Session, StepDetail};
use crate::tree::{Tree, journal};
use crate::verify::build;
use crate::verify::error::Error;
use crate::verify::options::Part;
use crate::verify::report::StepVerdict;
use crate::verify::rig::sendrig;
use crate::verify::sandbox::private_tree::Sandbox;

/// The flags of hardened builds. The compilers of Ubuntu and others define the macro already, and a
/// second definition would be a warning.
const FORTIFY_FLAGS: [&str; 3] = ["-O2", "-U_FORTIFY_SOURCE", "-D_FORTIFY_SOURCE=3"];

impl Session<'_> {
    /// Repeats the spawner and mail steps with a hardened build. Each of them needs that build.
    pub(super) fn fortified(&mut self, possible: bool) -> Result<(), Error> {
        let name = Part::FortifyBuild.name();
        if !Part::FORTIFY.into_iter().any(|part| self.wants(part)) {
            self.skip(name, NOT_ASKED);
            return Ok(());
        }
        if !possible {
            self.skip(name, EARLIER_FAILED);
            return Ok(());
        }
        let Some(sandbox) = self.fortified_build(name)? else { return Ok(()) };
        let (mut ready, _) = self.install(sandbox)?;
        let passed = self.spawners(Build::Fortified, &mut ready)?;
        self.part(Part::FortifyMail, passed.both(), |session, name| {
            session.step(name, |session| session.mail(&mut ready))
        })?;
        Ok(())
    }

    /// Builds the tree with `FORTIFY_FLAGS`. A failure counts against the patches only if the
    /// unpatched tree does not have the same errors.
    fn fortified_build(&mut self, name: &str) -> Result<Option<Sandbox>, Error> {
        let cc = self.cc.clone();
        self.progress.begin(name);
        let started = Instant::now();
        let sandbox = self.scratch.sandbox(self.tree, "fortify", &self.config(&FORTIFY_FLAGS))?;
        let (sandbox, verdict, shown) = match self.compile_in(&sandbox) {
            Ok(shown) => (Some(sandbox), StepVerdict::Pass, shown),
            Err(error @ Error::Interrupted(_)) => return Err(error),
            Err(Error::Build(failure)) => match self.errors_of_the_patches(&sandbox)? {
                Some(errors) if errors.is_empty() => {
                    let flags = FORTIFY_FLAGS.join(" ");
                    let detail = format!(
                        "the unpatched tree fails in the same way with {flags}: {}",
                        failure.command
                    );
                    let shown = StepDetail { notes: failure.lines, ..StepDetail::new(detail) };
                    (None, StepVerdict::Skipped, shown)
                }
                errors => {
                    let mut shown = StepDetail::new(failure.to_string());
                    let notes = errors.into_iter().flatten().take(5);
                    shown
                        .notes
                        .extend(notes.map(|error| format!("not in the unpatched tree: {error}")));
                    (None, StepVerdict::Fail, shown)
                }
            },
            Err(error) => (None, StepVerdict::Fail, StepDetail::new(error.to_string())),
        };
        self.cc = cc;
        self.end(name, verdict, shown, started.elapsed().as_secs_f64());
        Ok(sandbox)
    }

    /// Returns the errors that `sandbox` has and the unpatched tree does not, with the same conf-cc
    /// and flags. `None` if that cannot be determined.
    fn errors_of_the_patches(
        &mut self,
        sandbox: &Sandbox,
    ) -> Result<Option<BTreeSet<String>>, Error> {
        let errors = build::errors_of_all(sandbox, &sendrig::PROGRAMS)?;
        let tree = Tree::open(self.tree).map_err(Error::Tree)?;
        let originals = journal::originals(&tree).map_err(Error::Tree)?;
        if errors.is_empty() || originals.is_empty() {
            return Ok(None);
        }
        let copy = self.scratch.copy(self.tree, "unpatched")?;
        let copied = Tree::open(&copy).map_err(Error::Tree)?;
        for (name, bytes) in originals.into_iter().filter(|(name, _)| name != "conf-cc") {
            let path = copied.path(&name);
            let done = match bytes {
                Some(bytes) => fs::write(&path, bytes),
                None if path.exists() => fs::remove_file(&path),
                None => Ok(()),
            };
            done.map_err(Error::file("put back", &path))?;
        }
        let mut config = self.config(&FORTIFY_FLAGS);
        config.spawn = None;
        let sandbox = match self.scratch.sandbox(&copy, "fortify-unpatched", &config) {
            Ok(sandbox) => sandbox,
            // For example, because only qpatch had set conf-spawn.
            Err(Error::Disproved(_)) => return Ok(None),
            Err(error) => return Err(error),
        };
        let unpatched = build::errors_of_all(&sandbox, &sendrig::PROGRAMS)?;
        Ok(Some(errors.difference(&unpatched).cloned().collect()))
    }
}
