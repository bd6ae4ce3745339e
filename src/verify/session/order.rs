//! The order of the steps, and which steps need which.
#![forbid(unsafe_code)]

use super::steps::{Build, Session};
use crate::verify::error::Error;
use crate::verify::options::Part;
use crate::verify::proofs::{fork_server, gate};

impl Session<'_> {
    /// Runs all steps that are asked for, in order.
    ///
    /// # Errors
    /// A stop signal, or no sandbox can be made. A step that fails is not an error here.
    pub(in crate::verify) fn run(&mut self) -> Result<(), Error> {
        let Some(mut plain) = self.build_plain()? else { return Ok(()) };
        let passed = self.spawners(Build::Plain, &mut plain)?;
        let spawners = passed.both();
        // The rig plays both spawners, so this step does not need a qmail-lspawn that can run here.
        let numbers = self.part(Part::Numbers, passed.remote, |session, name| {
            session.step(name, |session| session.every_number(&mut plain))
        })?;
        let mail = self.part(Part::Mail, spawners && numbers, |session, name| {
            session.step(name, |session| session.mail(&mut plain))
        })?;
        self.part(Part::Restart, spawners && mail, |session, name| {
            session.step(name, |session| session.restart(&mut plain))
        })?;
        if gate::is_in(self.tree) {
            self.part(Part::Gate, spawners && mail, |session, name| {
                session.step(name, |session| session.gate(&mut plain))
            })?;
        } else if self.options.only.contains(&Part::Gate) {
            self.step::<()>(Part::Gate.name(), |_| {
                let next = "qpatch apply (domain-gate) puts it in";
                Err(Error::disproved("the tree", "a gate, as --only asks for it", "none", next))
            })?;
        } else {
            self.part(Part::Gate, true, |session, name| {
                session.skip(name, "the tree has no gate (domain-gate is not applied)");
                Ok(None)
            })?;
        }
        if fork_server::is_in(self.tree) {
            self.part(Part::ForkServer, passed.remote, |session, name| {
                session.step(name, |session| session.fork_server(&mut plain))
            })?;
        } else {
            self.part(Part::ForkServer, true, |session, name| {
                session.skip(name, "the tree has no fork server (fork-server is not applied)");
                Ok(None)
            })?;
        }
        drop(plain);
        self.fortified(spawners && mail)
    }
}
