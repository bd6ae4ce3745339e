//! `qpatch gate`: the control file of the gate, its status, and what its limits would do.
//!
//! One module for each subcommand. All of them use the gate's own code (the crate `qpatch_gate`), so what they say is
//! what will run.

#![forbid(unsafe_code)]

mod advice;
pub mod check;
mod finding;
pub mod init;
pub mod library;
pub mod show;
pub mod simulate;
pub mod sites;
mod source;
mod status_file;
mod text;

use clap::{Args, Subcommand};

use crate::output::CommandResult;

/// `qpatch gate` and what follows it.
#[derive(Debug, Args)]
pub struct Gate {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Tell everything that is wrong with control/concurrencydomains, and the limit of a domain
    ///
    /// Reads the file as the gate does, and prints every problem with file, line, column and
    /// meaning. In a QMAILHOME it also looks at smtproutes, concurrencyremote, and what the
    /// running gate says. Exits with 1 if there is an error: the gate does not use such a file.
    Check(check::Check),
    /// Write a commented control/concurrencydomains to start from
    ///
    /// 20 for every domain, as Postfix does, and the figures that other mail servers ship for
    /// the big providers, each with its source. An existing file is not touched.
    Init(init::Init),
    /// Show what the running gate does, from its status file
    ///
    /// Each key with its limit, what its server makes of it now (NOW), and what runs, is held, and
    /// is away. With --domain: under which key a domain counts now, and why.
    Show(show::Show),
    /// Tell what limits would have done to the deliveries in qmail-send's log
    ///
    /// Runs the gate itself over the log: which domains would have been limited, how long their
    /// mail would have waited, how many busy answers there would have been. Limits that learn are
    /// told what servers said in the log; what they would have said to fewer deliveries at once
    /// nobody knows, so such limits fall lower here than they would.
    ///
    /// Where the server has a gate already, its log says how long each delivery was held, and mail
    /// that was sent away as busy counts as one that waited: so the log tells what a higher limit
    /// would do, too. Times are read as these write them: multilog, svlogd (-t, -tt, -ttt), s6-log
    /// (t, T), tai64nlocal, splogger, syslogd, rsyslog and syslog-ng, journalctl (each -o but cat),
    /// docker logs -t, docker compose logs -t, and kubectl logs --timestamps. Files that gzip, xz,
    /// zstd or bzip2 have packed are unpacked by these programs. Several queues in one log (IndiMail)
    /// count together. A log in local time without a zone is followed through the change to daylight
    /// saving time and back where an hour is missing or comes twice. Exits with 1 if there is no
    /// delivery in the log that can be read.
    Simulate(simulate::Simulate),
    /// Look up whose mail exchangers are at a site, and write control/concurrencysites
    ///
    /// For cron. Asks DNS for the mail exchangers of the domains that the running gate has seen,
    /// and those of --log and --domain, matches them with the lines of concurrencydomains that
    /// begin with mx:, and writes which domain belongs to which of their groups. The gate takes it
    /// over within a second. What DNS does not answer stays as it was. Exits with 1, and changes
    /// nothing, if DNS answers nothing at all.
    Sites(sites::Sites),
    /// Write the gate's static library, gate.a, to standard output
    ///
    /// It is the one file of the gate that `qpatch diff` cannot show.
    Library,
}

/// Runs a subcommand.
///
/// # Errors
/// What could not be done.
pub fn run(gate: &Gate) -> CommandResult {
    match &gate.command {
        Command::Check(args) => check::run(args),
        Command::Init(args) => init::run(args),
        Command::Show(args) => show::run(args),
        Command::Simulate(args) => simulate::run(args),
        Command::Sites(args) => sites::run(args),
        Command::Library => library::run(),
    }
}
