//! The queue of a sandbox, read and written directly: the messages that are left in it, and its limits.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use crate::verify::error::Error;
use crate::verify::sandbox::private_tree::Sandbox;

/// The mark of each recipient in an envelope: `T` still to be tried, `D` done.
type Marks = BTreeMap<String, u8>;

/// Returns the messages that are in queue/info or have recipients in the queue, with the marks of their recipients.
pub(super) fn messages_left(sandbox: &Sandbox) -> Result<BTreeMap<u64, Marks>, Error> {
    let queue = sandbox.home().join("queue");
    let mut left: BTreeMap<u64, Marks> = BTreeMap::new();
    let supplemental = supplemental_names(sandbox);
    for dir in
        ["info", "local", "remote"].into_iter().chain(supplemental.iter().map(String::as_str))
    {
        for path in files_below(&queue.join(dir))? {
            let number =
                path.file_name().and_then(|name| name.to_str()).and_then(|name| name.parse().ok());
            let Some(number) = number else { continue };
            let marks = left.entry(number).or_default();
            if dir == "info" {
                continue;
            }
            let bytes = fs::read(&path).map_err(Error::file("read", &path))?;
            for record in bytes.split(|byte| *byte == 0).filter(|record| !record.is_empty()) {
                marks.insert(String::from_utf8_lossy(&record[1..]).into_owned(), record[0]);
            }
        }
    }
    Ok(left)
}

/// Returns the names that the supplemental channels have in queue/ and in qmail-send's log.
pub(super) fn supplemental_names(sandbox: &Sandbox) -> Vec<String> {
    let channels = sandbox.supplemental();
    (0..channels.count).map(|number| format!("{}{number}", channels.name)).collect()
}

/// Returns the files in `dir` and in the folders in it.
fn files_below(dir: &Path) -> Result<Vec<std::path::PathBuf>, Error> {
    let mut files = Vec::new();
    for part in fs::read_dir(dir).map_err(Error::file("read", dir))? {
        let part = part.map_err(Error::file("read", dir))?.path();
        if part.is_dir() {
            for file in fs::read_dir(&part).map_err(Error::file("read", &part))? {
                files.push(file.map_err(Error::file("read", &part))?.path());
            }
        } else {
            files.push(part);
        }
    }
    Ok(files)
}

/// Removes all messages from the sandbox's queue. No program of the sandbox may run meanwhile.
///
/// # Errors
/// A folder of the queue cannot be read, or a file cannot be removed.
pub fn empty_queue(sandbox: &Sandbox) -> Result<(), Error> {
    let queue = sandbox.home().join("queue");
    let supplemental = supplemental_names(sandbox);
    let stock = ["mess", "info", "local", "remote", "todo", "intd", "bounce", "pid"];
    for dir in stock.into_iter().chain(supplemental.iter().map(String::as_str)) {
        for file in files_below(&queue.join(dir))? {
            fs::remove_file(&file).map_err(Error::file("remove", &file))?;
        }
    }
    Ok(())
}

/// Writes the control files that limit the deliveries at once on each channel.
pub(super) fn set_concurrency(
    sandbox: &Sandbox,
    local: u32,
    remote: u32,
    supplemental: u32,
) -> Result<(), Error> {
    sandbox.set_control("concurrencylocal", &format!("{local}\n"))?;
    for number in 0..sandbox.supplemental().count {
        sandbox.set_control(&format!("concurrencysuppl{number}"), &format!("{supplemental}\n"))?;
    }
    sandbox.set_control("concurrencyremote", &format!("{remote}\n"))
}
