//! control/concurrencysites: reading it as the gate does, and replacing it.

use std::collections::BTreeMap;
use std::fs::{self, File, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use qpatch_gate::name::{Hasher, NAME_MAX, without_root};
use qpatch_gate::site::Map;
use qpatch_gate::table::content_lines;

use crate::date;
use crate::error::Error;

/// How the comment begins that has the day on which the domains below it were last seen.
const SEEN_PREFIX: &str = "# seen ";
/// The file name of the new map until it is renamed.
const NEW_MAP_NAME: &str = ".concurrencysites.qpatch-new";

/// The first line of the file.
const FILE_HEADER: &str =
    "# Written by qpatch gate sites, which overwrites it: what is changed here is lost.\n";

/// What the map says about a domain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct MapEntry {
    pub(super) group: String,
    /// The day when it was last seen, in days since 1970-01-01.
    pub(super) seen: i64,
}

/// The lines of control/concurrencysites that the gate uses; of two lines for a domain, the later one. Domains with no
/// [`SEEN_PREFIX`] comment above them count as seen `today`.
pub(super) fn mapped(text: &[u8], today: i64) -> BTreeMap<String, MapEntry> {
    let mut seen = today;
    let mut map = BTreeMap::new();
    for line in text.split(|&byte| byte == b'\n') {
        if let Some(day) = line.strip_prefix(SEEN_PREFIX.as_bytes()) {
            let day = std::str::from_utf8(day).ok().and_then(|day| date::from_iso(day.trim_end()));
            seen = day.unwrap_or(today).min(today);
            continue;
        }
        let Some((_, line)) = content_lines(line).next() else { continue };
        let Some(colon) = line.iter().position(|&byte| byte == b':') else { continue };
        let fits = |name: &[u8]| {
            !name.is_empty() && name.len() <= NAME_MAX && name.iter().all(u8::is_ascii_graphic)
        };
        let (domain, group) = (&line[..colon], &line[colon + 1..]);
        if fits(domain) && domain[0] != b'.' && fits(group) {
            let domain = String::from_utf8_lossy(without_root(domain)).to_ascii_lowercase();
            let group = String::from_utf8_lossy(group).into_owned();
            map.insert(domain, MapEntry { group, seen });
        }
    }
    map
}

/// Waits until no other run writes the map, and keeps other runs from writing until it is dropped. None if the file
/// system cannot lock folders; then, of two runs that end at the same moment, the later one counts.
pub(super) fn lock(path: &Path) -> Option<File> {
    let folder = File::open(path.parent()?).ok()?;
    folder.lock().ok()?;
    Some(folder)
}

/// Writes the map into a new file, and renames it over the old one. A symbolic link there is replaced, not followed.
/// The caller holds [`lock`].
pub(super) fn write(path: &Path, map: &BTreeMap<String, MapEntry>) -> Result<(), Error> {
    let mut text = FILE_HEADER.to_string();
    let mut days: BTreeMap<i64, Vec<(&String, &String)>> = BTreeMap::new();
    for (domain, MapEntry { group, seen }) in map {
        days.entry(*seen).or_default().push((domain, group));
    }
    for (day, domains) in days.iter().rev() {
        text.push_str(&format!("{SEEN_PREFIX}{}\n", date::iso(*day)));
        for (domain, group) in domains {
            text.push_str(&format!("{domain}:{group}\n"));
        }
    }
    let read = Map::parse(text.as_bytes(), Hasher::new(1)).ok();
    if read.is_none_or(|(read, problems)| read.len() != map.len() || !problems.is_empty()) {
        let what = "not written: the gate would not read it as it is meant";
        return Err(Error::new(path.display(), what, "report it"));
    }
    let control = path.parent().unwrap_or(Path::new("."));
    let refused = |error: io::Error| Error::io(control, "write into it", &error);
    // The name is always the same, so a run that is killed leaves at most one file, which the next run removes.
    match fs::remove_file(control.join(NEW_MAP_NAME)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(refused(error)),
        _ => {}
    }
    let beside = tempfile::Builder::new().prefix(NEW_MAP_NAME).rand_bytes(0).tempfile_in(control);
    let mut file = beside.map_err(refused)?;
    file.write_all(text.as_bytes()).map_err(refused)?;
    // qmail-rspawn reads it as qmailr, whatever the umask here.
    file.as_file().set_permissions(Permissions::from_mode(0o644)).map_err(refused)?;
    file.as_file().sync_all().map_err(refused)?;
    file.persist(path).map_err(|error| refused(error.error))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_of_the_map() {
        let today = date::from_iso("2026-11-28").unwrap();
        let text = b"# by hand\na.example:x\n# seen 2026-10-01\nb.example:x\n# seen tomorrow\nc.example:x\n\
                     # seen 2030-01-01\nd.example:x\n";
        let days: Vec<_> = mapped(text, today).into_values().map(|mapped| mapped.seen).collect();
        assert_eq!(days, [today, date::from_iso("2026-10-01").unwrap(), today, today]);
    }
}
