//! `qpatch gate`: the control file of the gate, its status, and what its limits would do.
//!
//! One module for each subcommand. All of them use the gate's own code (the crate `qpatch_gate`), so what they say is
//! what will run. qmail-send's half is C; `simulate` uses its twin in Rust (`qpatch_gate_model`), which a test compares
//! with the C call by call.

#![forbid(unsafe_code)]

mod advice;
pub mod check;
mod escaped_html;
mod finding;
pub mod import;
pub mod init;
pub mod library;
pub mod serve;
pub mod share;
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
    /// Check control/concurrencydomains for errors, and look up the limit of a domain
    ///
    /// Reads the file as the gate does, and prints every problem with file, line, column and
    /// meaning. In a QMAILHOME it also looks at smtproutes, concurrencyremote, and what the
    /// running gate says. Exits with 1 if there is an error: the gate does not use such a file.
    Check(check::Check),
    /// Write a commented control/concurrencydomains to start from
    ///
    /// The file has a limit of 20 for every domain, which is Postfix's default, and the figures
    /// that other mail servers ship for the big providers, each with its source. An existing file
    /// is not touched.
    Init(init::Init),
    /// Make a table of limits from the files of KumoMTA, PowerMTA or Postfix
    ///
    /// Prints a concurrencydomains. Before each line stands where it comes from, as file:line. What
    /// the table cannot express is listed at its end, with the reason. What it cannot say exactly it
    /// says more strictly where that is possible; a note at the line says so, and also where a line
    /// may allow more than its source. Nothing is written to a file, and nothing is asked of DNS.
    ///
    /// kumomta: shaping files in TOML or JSON; with several files a later one takes precedence, as in
    /// KumoMTA. powermta: <domain> blocks with limits and rates of connections and messages, also those
    /// of virtual MTAs, domain-macro, queue-to, mx lines for rollups, and included files. postfix:
    /// destination concurrency limits and rate delays of main.cf, for the domains of the transport
    /// tables and of relay_domains.
    Import(import::Import),
    /// Show what the running gate does, from its status file
    ///
    /// Lists each key with its limit, how many of it are allowed now if that is not the limit
    /// (ALLOWED), and how many deliveries run, are held, and are away. With --watch on a terminal, also
    /// how full it is, how long what waits will take at the present rate (EMPTY IN), and what ran in
    /// the last minute; q quits. With --domain: under which key a domain counts now, and why.
    Show(show::Show),
    /// Serve a web page that shows what the running gate does, and its metrics for Prometheus
    ///
    /// Runs in the foreground until SIGTERM or SIGINT, and only reads. The page lists each key with
    /// its limit, what runs, is held and is away, draws the last hour, and has the servers' own
    /// words when they refused. It follows by itself. /metrics and /status.json are what `gate show`
    /// prints with --format prometheus and --format json.
    ///
    /// By default it listens on a loopback address, which every user of this machine can reach. From
    /// elsewhere: ssh -L 9188:127.0.0.1:9188 SERVER. A request must name an address, localhost, or a
    /// name of --host.
    Serve(serve::Serve),
    /// Share the limits with other hosts, through Valkey or Redis
    ///
    /// Runs in the foreground, one beside each qmail. control/concurrencyshare says where the store
    /// is. Each host gets a share of each limit, which follows where the mail is, and all shares
    /// together are never above the limit. Without contact to the store, a host has the limit
    /// divided by the number of hosts.
    Share(share::Share),
    /// Show what limits would have done to the deliveries in qmail-send's log
    ///
    /// Runs the gate itself over the log, and prints which domains would have been limited, how
    /// long their mail would have waited, and how many busy answers there would have been. Limits
    /// that learn follow the servers' replies in the log. How a server would have replied to fewer
    /// deliveries at once is not known, so such limits fall lower here than on a real server.
    /// A fixed limit stays, but for some seconds after a refusal the gate starts less than it
    /// allows. So mail may wait although its limit is never reached; a note counts that mail.
    ///
    /// Where the server has a gate already, its log says how long each delivery was held, and a
    /// delivery that got a busy answer counts as one that waited. So such a log also shows what a
    /// higher limit would do. Times can be those of multilog, svlogd (-t, -tt, -ttt), s6-log
    /// (t, T), tai64nlocal, splogger, syslogd, rsyslog and syslog-ng, journalctl (each -o but cat),
    /// docker logs -t, docker compose logs -t, and kubectl logs --timestamps. Files that gzip, xz,
    /// zstd or bzip2 have packed are unpacked by these programs. Several queues in one log (IndiMail)
    /// count together. In a log in local time without a zone, an hour that is missing or comes twice
    /// is taken for the change to daylight saving time or back. Exits with 1 if the log has no
    /// delivery that can be read.
    Simulate(simulate::Simulate),
    /// Look up which domains have their mail exchangers at a site, and write control/concurrencysites
    ///
    /// For cron. Asks DNS for the mail exchangers of the domains that the running gate has seen, and
    /// of those of --log and --domain. Matches them with the lines of concurrencydomains that begin
    /// with mx:, and writes which domain belongs to which of their groups. The gate reads the new
    /// file within a second. A domain for which DNS gives no answer stays as it was. Exits with 1,
    /// and changes nothing, if DNS gives no answer at all.
    Sites(sites::Sites),
    /// Write the gate's static library, gate.a, to standard output
    ///
    /// It is binary, so `qpatch diff` cannot show it. With --source, write its sources instead, to
    /// build it for another machine or C library.
    Library(library::Library),
}

/// Runs a subcommand.
///
/// # Errors
/// Those of the subcommand.
pub fn run(gate: &Gate) -> CommandResult {
    match &gate.command {
        Command::Check(args) => check::run(args),
        Command::Import(args) => import::run(args),
        Command::Init(args) => init::run(args),
        Command::Show(args) => show::run(args),
        Command::Serve(args) => serve::run(args),
        Command::Share(args) => share::run(args),
        Command::Simulate(args) => simulate::run(args),
        Command::Sites(args) => sites::run(args),
        Command::Library(args) => library::run(args),
    }
}
