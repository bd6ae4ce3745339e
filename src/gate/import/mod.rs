//! `qpatch gate import`: makes a concurrencydomains of what another mail server's files say about limits and rates.
//!
//! Each line of the table has its origin before it, as file:line. What cannot be expressed is listed behind the table
//! with the reason: nothing is lost silently ([`ledger`]). What the table cannot say exactly is said more strictly where
//! that is possible, and a note says so; a line that may allow more than its source has a note, too. The gate's own
//! parser has the last word, so `gate check` finds nothing in the result ([`draft`]).

mod draft;
mod foreign;
mod kumomta;
mod ledger;
mod postfix;
mod powermta;
mod rate;
mod subject;

use std::collections::HashSet;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use qpatch_gate::name::Hasher;
use qpatch_gate::problem::Kind;
use qpatch_gate::table::{FILE_MAX, Table};
use serde::Serialize;

use crate::error::Error;
use crate::gate::advice::{meaning, unusable};
use crate::output::{CommandResult, Format, print, written};
use crate::qmail::control;
use draft::{Draft, counts_text};
pub use foreign::ForeignFile;
use ledger::Ledger;

/// Arguments of `qpatch gate import`.
#[derive(Debug, Args)]
pub struct Import {
    /// Which mail server the files are of
    #[arg(value_name = "SERVER", value_enum)]
    server: MailServer,
    /// Its files, in the order in which it reads them; for Postfix also the folder that has main.cf
    #[arg(value_name = "FILE", required = true)]
    files: Vec<PathBuf>,
    /// The output format
    #[arg(long, value_enum, default_value_t = Format::Table)]
    format: Format,
}

/// A mail server whose files can be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum MailServer {
    /// Shaping files: the default one, the community's, your own
    Kumomta,
    /// The configuration, with its <domain> blocks, domain macros and rollups
    Powermta,
    /// main.cf and the transport tables
    Postfix,
}

impl MailServer {
    fn name(self) -> &'static str {
        match self {
            MailServer::Kumomta => "kumomta",
            MailServer::Powermta => "powermta",
            MailServer::Postfix => "postfix",
        }
    }
}

/// Makes a table of files, and returns its text.
///
/// # Errors
/// A file is not what its mail server reads: the place, and what was expected.
pub fn table_of(server: MailServer, files: &[ForeignFile]) -> Result<Vec<u8>, Error> {
    let (draft, ledger) = imported(server, files)?;
    text_of(server, &draft, &ledger)
}

fn imported(server: MailServer, files: &[ForeignFile]) -> Result<(Draft, Ledger), Error> {
    files.iter().try_for_each(check_text)?;
    let mut ledger = Ledger::default();
    let draft = match server {
        MailServer::Kumomta => kumomta::import(files, &mut ledger)?,
        MailServer::Powermta => powermta::import(files, &mut ledger)?,
        MailServer::Postfix => postfix::import(files, &mut ledger)?,
    };
    Ok((draft, ledger))
}

/// Refuses a file that is no text: a picture, something compressed, UTF-16.
fn check_text(file: &ForeignFile) -> Result<(), Error> {
    let is_of_text = |byte: u8| byte >= b' ' || matches!(byte, b'\t'..=b'\r' | 0x1b);
    let Some(at) = file.text.iter().position(|&byte| !is_of_text(byte)) else { return Ok(()) };
    let line = file.text[..at].iter().filter(|&&byte| byte == b'\n').count() + 1;
    Err(Error::new(
        format!("{}:{line}", file.name),
        format!("expected text, found the byte {:02x}", file.text[at]),
        "name a file of the mail server's configuration; unpack or convert it first",
    ))
}

fn text_of(server: MailServer, draft: &Draft, ledger: &Ledger) -> Result<Vec<u8>, Error> {
    let files = ledger.files().join(" ");
    let made_by = format!(
        "Made by qpatch gate import {} {}",
        server.name(),
        crate::gate::text::printable(files)
    );
    let text = written(|out| draft.write(out, ledger, &made_by));
    // The gate's parser has the last word. What it says here has no remedy in the files.
    let problem = match Table::parse(&text, Hasher::new(1)) {
        Ok((_, problems)) => problems.worst().map(|found| (found.line, meaning(found.kind))),
        Err(_) => Some((0, "there is not enough memory".to_string())),
    };
    match problem {
        None => Ok(text),
        Some((line, why)) => {
            let line = text.split(|&byte| byte == b'\n').nth((line as usize).saturating_sub(1));
            let line = crate::gate::text::printable(line.unwrap_or_default());
            Err(Error::new(
                "the table that was made",
                format!("{line}: {why}"),
                "this is a fault of qpatch gate import; report it with the files",
            ))
        }
    }
}

/// What is printed as JSON.
#[derive(Serialize)]
struct Imported {
    lines: u64,
    settings: u64,
    expressed: u64,
    not_expressed: u64,
    about_something_else: u64,
    left: Vec<JsonLeft>,
    table: String,
}

#[derive(Serialize)]
struct JsonLeft {
    file: String,
    line: u32,
    setting: String,
    reason: String,
}

/// Runs it.
///
/// # Errors
/// A file cannot be read or understood.
pub fn run(args: &Import) -> CommandResult {
    let files = match args.server {
        MailServer::Postfix => postfix_files(&args.files)?,
        MailServer::Powermta => powermta_files(&args.files)?,
        MailServer::Kumomta => {
            args.files.iter().map(|path| read(path)).collect::<Result<_, _>>()?
        }
    };
    let (draft, ledger) = imported(args.server, &files)?;
    let counts = ledger.counts();
    if counts.settings == 0 {
        let name = crate::gate::text::printable(ledger.files().join(" "));
        let what = format!("expected settings of {}, found none", args.server.name());
        return Err(Error::new(name, what, "name a file that has limits or rates").into());
    }
    let text = text_of(args.server, &draft, &ledger)?;
    match args.format {
        Format::Table => {
            print(|out| out.write_all(&text))?;
            eprintln!("qpatch: {}", counts_text(counts));
            if counts.left > 0 {
                eprintln!("  the table ends with what is not expressed, and why");
            }
            Ok(())
        }
        Format::Json => {
            let left = ledger.left().into_iter().map(|left| JsonLeft {
                file: ledger.files()[left.place.file].clone(),
                line: left.place.line,
                setting: left.what,
                reason: left.why,
            });
            let imported = Imported {
                lines: counts.lines,
                settings: counts.settings,
                expressed: counts.expressed,
                not_expressed: counts.left,
                about_something_else: counts.unrelated,
                left: left.collect(),
                table: String::from_utf8_lossy(&text).into_owned(),
            };
            print(|out| {
                serde_json::to_writer_pretty(&mut *out, &imported)?;
                writeln!(out)
            })
        }
    }
}

fn read(path: &Path) -> Result<ForeignFile, Error> {
    let missing = || {
        Error::new(path.display(), "no such file", "name a file of the mail server's configuration")
    };
    match control::read_file(path, FILE_MAX) {
        Ok(Some((_, text))) => Ok(ForeignFile { name: path.display().to_string(), text }),
        Ok(None) => Err(missing()),
        Err(kind @ Kind::NotRegular) => {
            Err(Error { help: "name a file, not a folder".to_string(), ..unusable(path, kind) })
        }
        Err(kind) => Err(unusable(path, kind)),
    }
}

/// main.cf, and the transport tables: those that are named, else those that main.cf names and that are there.
fn postfix_files(paths: &[PathBuf]) -> Result<Vec<ForeignFile>, Error> {
    let (first, others) = paths.split_first().expect("clap wants one");
    let main_cf = if first.is_dir() { first.join("main.cf") } else { first.clone() };
    let mut files = vec![read(&main_cf)?];
    for path in others {
        files.push(read(path)?);
    }
    if others.is_empty() {
        let folder = main_cf.parent().unwrap_or(Path::new("."));
        for name in postfix::transport_tables(&files[0]) {
            if let Some(path) = beside(folder, &name) {
                files.push(read(&path)?);
            }
        }
    }
    Ok(files)
}

/// The files that are named, and those that they include and that are there.
fn powermta_files(paths: &[PathBuf]) -> Result<Vec<ForeignFile>, Error> {
    let mut files = paths.iter().map(|path| read(path)).collect::<Result<Vec<_>, _>>()?;
    let named = files.len();
    let mut known: HashSet<String> = files.iter().map(|file| file.name.clone()).collect();
    let ends: Vec<Option<OsString>> =
        paths.iter().map(|path| path.file_name().map(OsString::from)).collect();
    let mut next = 0;
    while next < files.len() {
        let folder = Path::new(&files[next].name).parent().unwrap_or(Path::new(".")).to_path_buf();
        for name in powermta::includes(&files[next]) {
            let end = Path::new(&name).file_name();
            // A file that is named takes the place of the one that is included.
            if end.is_some() && ends[..named].iter().any(|own| own.as_deref() == end) {
                continue;
            }
            let path = beside(&folder, &name);
            if let Some(path) = path.filter(|path| known.insert(path.display().to_string())) {
                files.push(read(&path)?);
            }
        }
        next += 1;
    }
    Ok(files)
}

/// A file that a configuration names. In a copy of the folder it is beside the configuration, or in a folder there,
/// whatever that says: of `/etc/pmta/conf.d/x` first `x`, then `conf.d/x`, and so on.
fn beside(folder: &Path, name: &str) -> Option<PathBuf> {
    let parts: Vec<_> = Path::new(name).components().collect();
    let ends =
        (0..parts.len()).rev().map(|from| folder.join(parts[from..].iter().collect::<PathBuf>()));
    let is_there = |path: &PathBuf| fs::metadata(path).is_ok_and(|found| found.is_file());
    ends.into_iter().find(is_there)
}
