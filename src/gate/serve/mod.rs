//! `qpatch gate serve`: a page that shows what the gate does, and the same for programs, over HTTP.
//!
//! It only reads. `/` is the page, `/metrics` and `/status.json` are what `gate show` prints, and `/history.json` is
//! what the page draws. The status is read when somebody asks, at most four times a second, and every ten seconds for
//! the history. If there is none, the first three say why, with status 503, so that Prometheus sees it too.
//!
//! `http` has the connections and their bounds, `page` the HTML, `history` the last hour, `feed` the reading of the
//! status; `server` puts them together.

#[cfg(feature = "serve")]
mod feed;
#[cfg(feature = "serve")]
mod history;
#[cfg(feature = "serve")]
mod http;
#[cfg(feature = "serve")]
mod page;
#[cfg(feature = "serve")]
mod server;

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::Args;
use qpatch_gate::status::KEYS_MAX;

use crate::output::CommandResult;
use crate::qmail::home::QMAIL_HOME;

/// Arguments of `qpatch gate serve`.
#[derive(Debug, Args)]
#[cfg_attr(not(feature = "serve"), allow(dead_code))]
pub struct Serve {
    /// The folder where qmail is installed
    #[arg(value_name = "QMAILHOME", default_value = QMAIL_HOME)]
    home: PathBuf,
    /// The address and port to listen on; port 0 takes a free one. There is no password: whatever reaches this address
    /// can read the page
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "127.0.0.1:9188", value_parser = address)]
    listen: SocketAddr,
    /// A name under which a browser reaches this server, besides localhost and its addresses; may be repeated
    #[arg(long = "host", value_name = "NAME", value_parser = host)]
    hosts: Vec<String>,
    /// As in `gate show`: how many of the busiest keys get series of their own in /metrics
    #[arg(long, value_name = "N", default_value_t = 20,
        value_parser = clap::value_parser!(u32).range(..=KEYS_MAX as i64))]
    busiest: u32,
}

fn address(value: &str) -> Result<SocketAddr, String> {
    let help = "write an address and a port, such as 127.0.0.1:9188 or [::1]:9188";
    value.parse().map_err(|_| help.to_string())
}

fn host(value: &str) -> Result<String, String> {
    match value.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._".contains(&byte)) {
        true if !value.is_empty() => Ok(value.trim_end_matches('.').to_string()),
        _ => Err("write a name alone, such as mail.example.com: no scheme and no port".to_string()),
    }
}

/// Runs it until SIGTERM or SIGINT.
///
/// # Errors
/// The address cannot be listened on, or there is no such folder. That there is no status is only a warning.
#[cfg(feature = "serve")]
pub fn run(args: &Serve) -> CommandResult {
    let home = crate::qmail::home::Home::new(&args.home)?;
    server::run(home, args.listen, &args.hosts, args.busiest)
}

/// Runs it.
///
/// # Errors
/// This build has no HTTP server.
#[cfg(not(feature = "serve"))]
pub fn run(_: &Serve) -> CommandResult {
    Err(crate::error::Error::new(
        "gate serve",
        "this qpatch was built without an HTTP server",
        "build it with the cargo feature `serve`, which is on by default; `qpatch gate show --watch` shows the same",
    )
    .into())
}

#[cfg(test)]
mod tests {
    #[cfg(not(feature = "serve"))]
    #[test]
    fn a_build_without_a_server_says_so() {
        use clap::Parser;

        #[derive(Parser)]
        struct CommandLine {
            #[command(flatten)]
            serve: super::Serve,
        }

        let args = CommandLine::parse_from(["serve", "/nonexistent"]).serve;
        let refused = format!("{:?}", super::run(&args));
        assert!(refused.contains("built without an HTTP server"), "{refused}");
    }
}
