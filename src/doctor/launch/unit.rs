//! Reads systemd's units as systemd does: which file counts, which drop-ins change it, what its values mean, and which
//! defaults apply. All of this was tried with systemd 252 and 257 as the first process of a container.
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet};

use super::super::host::Host;

/// The folders in which systemd looks for units, in this order. On most systems /lib is a link to /usr/lib.
const UNIT_DIRS: [&str; 12] = [
    "/etc/systemd/system.control",
    "/run/systemd/system.control",
    "/run/systemd/transient",
    "/run/systemd/generator.early",
    "/etc/systemd/system",
    "/etc/systemd/system.attached",
    "/run/systemd/system",
    "/run/systemd/system.attached",
    "/run/systemd/generator",
    "/usr/local/lib/systemd/system",
    "/usr/lib/systemd/system",
    "/lib/systemd/system",
];

/// The folder with units that are generated from /etc/init.d. It comes last.
const LATE_DIR: &str = "/run/systemd/generator.late";

/// The folders in which systemd looks for its own configuration.
const CONF_DIRS: [&str; 5] =
    ["/etc/systemd", "/run/systemd", "/usr/local/lib/systemd", "/usr/lib/systemd", "/lib/systemd"];

/// A line of a unit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnitEntry {
    /// The section.
    pub section: String,
    /// The name of the setting.
    pub key: String,
    /// Its value.
    pub value: String,
    /// The file.
    pub file: String,
    /// The line, from 1.
    pub line: usize,
    /// The line's text.
    pub text: String,
}

/// A unit with its drop-ins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unit {
    /// Its name.
    pub name: String,
    /// Its file.
    pub file: Option<String>,
    /// Its lines, in the order in which systemd reads them: those of the drop-ins come last.
    pub entries: Vec<UnitEntry>,
    /// Files that could not be read.
    pub unread: Vec<String>,
}

impl Unit {
    /// Returns the lines of a section that set `key`.
    pub fn all<'u, 'k>(
        &'u self,
        section: &'k str,
        key: &'k str,
    ) -> impl DoubleEndedIterator<Item = &'u UnitEntry> {
        self.entries.iter().filter(move |entry| entry.section == section && entry.key == key)
    }

    /// Returns the last line of a section that sets `key`.
    pub fn last<'u>(&'u self, section: &str, key: &str) -> Option<&'u UnitEntry> {
        self.all(section, key).next_back()
    }

    /// Returns the lines of a setting that may have several values. An empty value removes those before it.
    pub fn list<'u>(&'u self, section: &str, key: &str) -> Vec<&'u UnitEntry> {
        let mut entries = Vec::new();
        for entry in self.all(section, key) {
            if entry.value.is_empty() {
                entries.clear();
            } else {
                entries.push(entry);
            }
        }
        entries
    }

    /// Returns the line that switches a setting on; `None` if it is off.
    pub fn is_on(&self, key: &str) -> Option<&UnitEntry> {
        let on = |entry: &&UnitEntry| {
            matches!(
                entry.value.to_ascii_lowercase().as_str(),
                "1" | "yes" | "y" | "true" | "t" | "on"
            )
        };
        self.last("Service", key).filter(on)
    }
}

/// The units of a machine.
#[derive(Debug)]
pub struct Units<'h> {
    host: &'h Host<'h>,
    dirs: Vec<&'static str>,
    /// The other names of a unit.
    aliases: BTreeMap<String, BTreeSet<String>>,
}

impl<'h> Units<'h> {
    /// Returns the units of a machine.
    pub fn new(host: &'h Host<'h>) -> Units<'h> {
        let mut seen = BTreeSet::new();
        let mut dirs: Vec<&'static str> = Vec::new();
        for dir in UNIT_DIRS.into_iter().chain([LATE_DIR]) {
            if host.path(dir).is_dir() && seen.insert(host.real(dir.as_ref())) {
                dirs.push(dir);
            }
        }
        let mut units = Units { host, dirs, aliases: BTreeMap::new() };
        for name in units.names(".service") {
            if let Some(target) = units.alias_of(&name) {
                units.aliases.entry(target).or_default().insert(name);
            }
        }
        units
    }

    /// Returns the names of all units of a kind that have a file.
    fn names(&self, suffix: &str) -> BTreeSet<String> {
        let all = self.dirs.iter().flat_map(|dir| self.host.names(dir));
        all.filter(|name| name.ends_with(suffix) && name.len() > suffix.len()).collect()
    }

    /// Returns the names of all services. For a template, these are the instances that another unit wants or that have
    /// drop-ins; if there are none, the template itself.
    pub fn services(&self) -> Vec<String> {
        const SUFFIX: &str = ".service";
        let names = self.names(SUFFIX);
        let mut all: BTreeSet<String> = names
            .iter()
            .filter(|name| !name.contains('@') && self.alias_of(name).is_none())
            .cloned()
            .collect();
        let mut instances = BTreeSet::new();
        for dir in &self.dirs {
            for folder in self.host.names(dir) {
                if let Some(name) = folder.strip_suffix(".d").filter(|name| name.ends_with(SUFFIX))
                {
                    instances.insert(name.to_owned());
                } else if folder.ends_with(".wants") || folder.ends_with(".requires") {
                    instances.extend(self.host.names(&format!("{dir}/{folder}")));
                }
            }
        }
        let instances = instances.into_iter().chain(names.iter().cloned());
        let instances: BTreeSet<String> = instances
            .filter(|name| {
                name.ends_with(SUFFIX) && template(name).is_some_and(|template| *name != template)
            })
            .collect();
        for name in names.iter().filter(|name| name.contains("@.")) {
            if !instances.iter().any(|instance| template(instance).as_ref() == Some(name)) {
                all.insert(name.clone());
            }
        }
        all.extend(instances);
        all.into_iter().collect()
    }

    fn find(&self, name: &str) -> Option<String> {
        let mut paths = self.dirs.iter().map(|dir| format!("{dir}/{name}"));
        paths.find(|path| self.host.link(path).is_some() || self.host.path(path).exists())
    }

    /// Returns the unit that a name is a link to.
    fn alias_of(&self, name: &str) -> Option<String> {
        let path = self.find(name)?;
        self.host.link(&path)?;
        let real = self.host.real(path.as_ref())?;
        let target = real.file_name()?.to_string_lossy().into_owned();
        let suffix = name.rsplit('.').next()?;
        let is_unit =
            self.dirs.iter().any(|dir| self.host.real(dir.as_ref()).as_deref() == real.parent());
        (is_unit && target != name && target.ends_with(&format!(".{suffix}"))).then_some(target)
    }

    /// Returns whether a file masks its unit: it is empty, or a link to /dev/null.
    fn is_mask(&self, path: &str) -> bool {
        self.host.real(path.as_ref()).is_some_and(|real| real == std::path::Path::new("/dev/null"))
            || std::fs::metadata(self.host.path(path))
                .is_ok_and(|file| file.is_file() && file.len() == 0)
    }

    /// Reads a unit; `None` if there is no such unit or it is masked. A slice needs no file.
    pub fn load(&self, name: &str) -> Option<Unit> {
        let name = self.alias_of(name).unwrap_or_else(|| name.to_owned());
        let file = self.find(&name).or_else(|| self.find(&template(&name)?));
        if file.is_none() && !name.ends_with(".slice")
            || file.as_ref().is_some_and(|file| self.is_mask(file))
        {
            return None;
        }
        let mut unit = Unit { name, file, entries: Vec::new(), unread: Vec::new() };
        let files: Vec<String> =
            unit.file.iter().cloned().chain(self.drop_ins(&unit.name)).collect();
        for file in files {
            match self.host.read(&file) {
                Ok(text) => unit.entries.extend(entries(&file, &text)),
                Err(why) => unit.unread.push(why),
            }
        }
        Some(unit)
    }

    /// Returns the drop-ins of a unit, in the order of their names. Of several with the same name, the one in the first
    /// folder counts. A folder of /etc comes before one of /usr/lib, even if the latter names the unit more closely.
    fn drop_ins(&self, name: &str) -> Vec<String> {
        let mut names = vec![name.to_owned()];
        names.extend(self.aliases.get(name).into_iter().flatten().cloned());
        let mut folders: Vec<String> = Vec::new();
        for name in &names {
            for dir in &self.dirs {
                folders.extend(close_names(name).iter().map(|name| format!("{dir}/{name}.d")));
            }
        }
        let kind = name.rsplit('.').next().unwrap_or_default();
        folders.extend(self.dirs.iter().map(|dir| format!("{dir}/{kind}.d")));
        self.by_name(&folders)
    }

    fn by_name(&self, folders: &[String]) -> Vec<String> {
        let mut files: BTreeMap<String, String> = BTreeMap::new();
        for folder in folders {
            for name in self.host.names(folder) {
                if name.ends_with(".conf") && !name.starts_with('.') {
                    files.entry(name.clone()).or_insert_with(|| format!("{folder}/{name}"));
                }
            }
        }
        files.into_values().filter(|file| !self.is_mask(file)).collect()
    }

    /// Reads system.conf and its drop-ins, as a unit.
    pub fn manager(&self) -> Unit {
        let main = CONF_DIRS
            .iter()
            .map(|dir| format!("{dir}/system.conf"))
            .find(|file| self.host.is_file(file));
        let folders = CONF_DIRS.map(|dir| format!("{dir}/system.conf.d"));
        let mut unit = Unit {
            name: "system.conf".to_owned(),
            file: main.clone(),
            entries: Vec::new(),
            unread: Vec::new(),
        };
        for file in main.into_iter().chain(self.by_name(&folders)) {
            match self.host.read(&file) {
                Ok(text) => unit.entries.extend(entries(&file, &text)),
                Err(why) => unit.unread.push(why),
            }
        }
        unit
    }

    /// Returns the slices that a service is in, the innermost first.
    pub fn slices(&self, unit: &Unit) -> Vec<Unit> {
        let set = unit
            .last("Service", "Slice")
            .map(|entry| entry.value.clone())
            .filter(|slice| !slice.is_empty());
        let slice = set.unwrap_or_else(|| match template(&unit.name) {
            Some(template) => {
                let prefix = template.split('@').next().unwrap_or_default();
                // In the name of a slice, a dash separates it from the slice above.
                format!("system-{}.slice", prefix.replace('-', "\\x2d"))
            }
            None => "system.slice".to_owned(),
        });
        let mut names = vec![slice.clone()];
        let mut prefix = slice.trim_end_matches(".slice");
        while let Some((above, _)) = prefix.rsplit_once('-').filter(|(above, _)| !above.is_empty())
        {
            names.push(format!("{above}.slice"));
            prefix = above;
        }
        names.push("-.slice".to_owned());
        names.iter().filter_map(|name| self.load(name)).collect()
    }
}

/// Returns the template of an instance.
fn template(name: &str) -> Option<String> {
    let (prefix, rest) = name.split_once('@')?;
    let suffix = rest.rsplit('.').next()?;
    Some(format!("{prefix}@.{suffix}"))
}

/// Returns the part of a name that names the instance.
pub fn instance(name: &str) -> &str {
    let rest = name.split_once('@').map_or("", |(_, rest)| rest);
    rest.rsplit_once('.').map_or("", |(instance, _)| instance)
}

/// Returns the names whose drop-ins count for a unit: a@b.service, a@.service; a-b.service, a-.service.
fn close_names(name: &str) -> Vec<String> {
    let mut names = vec![name.to_owned()];
    if let Some(template) = template(name)
        && template != name
    {
        names.push(template);
    }
    let (prefix, suffix) = name.rsplit_once('.').unwrap_or((name, ""));
    let (prefix, instance) = match prefix.split_once('@') {
        Some((prefix, instance)) => (prefix, format!("@{instance}")),
        None => (prefix, String::new()),
    };
    let mut prefix = prefix.trim_end_matches('-');
    while let Some(dash) = prefix.rfind('-').filter(|dash| *dash > 0) {
        names.push(format!("{}-{instance}.{suffix}", &prefix[..dash]));
        prefix = prefix[..dash].trim_end_matches('-');
    }
    names
}

/// Returns the lines of a file. A line that ends in a backslash continues in the next one that is not a comment.
pub fn entries(file: &str, text: &str) -> Vec<UnitEntry> {
    let mut found: Vec<UnitEntry> = Vec::new();
    let mut section = String::new();
    let mut open: Option<(usize, String)> = None;
    for (index, raw) in text.lines().enumerate() {
        let line = raw.trim();
        if line.starts_with(['#', ';']) {
            continue;
        }
        let (start, so_far) = open.take().unwrap_or((index, String::new()));
        let is_continued = line.ends_with('\\');
        let whole = format!(
            "{so_far}{}",
            line.strip_suffix('\\').map_or(line.to_owned(), |line| format!("{line} "))
        );
        if is_continued {
            open = Some((start, whole));
            continue;
        }
        let whole = whole.trim();
        if let Some(name) = whole.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            section = name.to_owned();
        } else if let Some((key, value)) = whole.split_once('=') {
            let number = if start == index { index } else { number_line(text, start, index) };
            found.push(UnitEntry {
                section: section.clone(),
                key: key.trim().to_owned(),
                value: value.trim().to_owned(),
                file: file.to_owned(),
                line: number + 1,
                text: text.lines().nth(number).unwrap_or_default().trim().to_owned(),
            });
        }
    }
    found
}

/// Returns the first line of an entry that has a part of its value.
fn number_line(text: &str, first: usize, last: usize) -> usize {
    let head = text.lines().nth(first).unwrap_or_default();
    let has_value = head
        .split_once('=')
        .is_some_and(|(_, value)| !value.trim().trim_end_matches('\\').trim().is_empty());
    if has_value {
        return first;
    }
    let is_comment = |line: &str| line.trim_start().starts_with(['#', ';']);
    (first + 1..=last)
        .find(|line| text.lines().nth(*line).is_some_and(|line| !is_comment(line)))
        .unwrap_or(first)
}

/// Parses the soft and the hard limit of `LimitNOFILE=`, `LimitNPROC=` or their defaults; `u64::MAX` is infinity.
/// `None`: systemd ignores the line. It ignores an empty value, too: unlike others, these settings cannot be reset.
pub fn limit(value: &str) -> Option<(u64, u64)> {
    let number = |text: &str| match text {
        "infinity" => Some(u64::MAX),
        text => unsigned(text),
    };
    let (soft, hard) = match value.split_once(':') {
        Some((soft, hard)) => (number(soft)?, number(hard)?),
        None => (number(value)?, number(value)?),
    };
    (soft <= hard).then_some((soft, hard))
}

/// Parses a number as C writes it: 0x1000, 010000; without a suffix.
fn unsigned(text: &str) -> Option<u64> {
    let text = text.trim_start();
    let digits = text.strip_prefix('+').unwrap_or(text);
    let all = |digits: &str, radix| {
        digits
            .chars()
            .all(|c| c.is_digit(radix))
            .then(|| u64::from_str_radix(digits, radix).ok())
            .flatten()
    };
    match digits.get(..2) {
        Some("0x" | "0X") => all(&digits[2..], 16),
        Some("0b" | "0B") => all(&digits[2..], 2),
        Some("0o" | "0O") => all(&digits[2..], 8),
        _ if digits.len() > 1 && digits.starts_with('0') => all(&digits[1..], 8),
        _ => all(digits, 10),
    }
}

/// The value of a `TasksMax=`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tasks {
    /// This number.
    Number(u64),
    /// No limit.
    Infinity,
    /// The value of DefaultTasksMax.
    Default,
}

/// Parses a `TasksMax=`; `of` is what 100 % are. `None`: systemd ignores the line.
pub fn tasks(value: &str, of: Option<u64>) -> Option<Tasks> {
    match value {
        "" => Some(Tasks::Default),
        "infinity" => Some(Tasks::Infinity),
        value => match per_myriad(value) {
            Some(part) => {
                let tasks = u128::from(of?) * u128::from(part) / 10_000;
                Some(Tasks::Number(u64::try_from(tasks).ok()?)).filter(|_| part > 0)
            }
            None => unsigned(value).filter(|tasks| *tasks > 0).map(Tasks::Number),
        },
    }
}

/// Parses a percentage of at most 100 with up to two decimal places, as parts of ten thousand.
fn per_myriad(text: &str) -> Option<u64> {
    let number = text.strip_suffix('%')?;
    let (whole, places) = number.split_once('.').unwrap_or((number, "0"));
    if whole.is_empty()
        || places.is_empty()
        || places.len() > 2
        || !number.chars().all(|c| c.is_ascii_digit() || c == '.')
    {
        return None;
    }
    let places: u64 =
        if places.len() == 1 { places.parse::<u64>().ok()? * 10 } else { places.parse().ok()? };
    Some(whole.parse::<u64>().ok()?.checked_mul(100)? + places).filter(|part| *part <= 10_000)
}

/// Parses the bytes of a `MemoryMax=`; `u64::MAX` is infinity, also for an empty value. `of` is what 100 % are.
pub fn memory(value: &str, of: Option<u64>) -> Option<u64> {
    if matches!(value, "" | "infinity") {
        return Some(u64::MAX);
    }
    if let Some(part) = per_myriad(value) {
        return u64::try_from(u128::from(of?) * u128::from(part) / 10_000).ok();
    }
    let digits = value.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit: u64 = match value[digits.len()..].trim() {
        "" | "B" => 1,
        "K" => 1 << 10,
        "M" => 1 << 20,
        "G" => 1 << 30,
        "T" => 1 << 40,
        "P" => 1 << 50,
        _ => return None,
    };
    let (whole, places) = digits.trim().split_once('.').unwrap_or((digits.trim(), ""));
    let whole = whole.parse::<u64>().ok()?.checked_mul(unit)?;
    if places.is_empty() {
        return Some(whole);
    }
    let scale = 10u64.checked_pow(u32::try_from(places.len()).ok()?)?;
    let part = u128::from(places.parse::<u64>().ok()?) * u128::from(unit) / u128::from(scale);
    Some(whole + u64::try_from(part).ok()?)
}

/// Returns the words of the command lines in a value, without quotes. A `;` as a word of its own separates command
/// lines.
pub fn words(line: &str) -> Vec<Vec<String>> {
    let mut commands = vec![Vec::new()];
    let mut chars = line.chars().peekable();
    loop {
        while chars.peek().is_some_and(|c| c.is_whitespace()) {
            chars.next();
        }
        if chars.peek().is_none() {
            break;
        }
        let mut word = String::new();
        let mut quote = None;
        let mut was_quoted = false;
        while let Some(&c) = chars.peek() {
            if quote.is_none() && c.is_whitespace() {
                break;
            }
            chars.next();
            match (quote, c) {
                (Some(open), c) if c == open => quote = None,
                (None, '\'' | '"') => {
                    quote = Some(c);
                    was_quoted = true;
                }
                (_, '\\') => match chars.next() {
                    Some('n') => word.push('\n'),
                    Some('t') => word.push('\t'),
                    Some('s') => word.push(' '),
                    Some(';') => {
                        was_quoted = true;
                        word.push(';');
                    }
                    Some(other @ ('\\' | '"' | '\'' | ' ')) => word.push(other),
                    other => {
                        word.push('\\');
                        word.extend(other);
                    }
                },
                (_, c) => word.push(c),
            }
        }
        if word == ";" && !was_quoted {
            commands.push(Vec::new());
        } else if let Some(command) = commands.last_mut() {
            command.push(word);
        }
    }
    commands.retain(|command| !command.is_empty());
    commands
}

/// Returns the drop-in in which the operator can set something. It comes after the drop-in that sets it now.
pub(super) fn drop_in(name: &str, section: &str, now: Option<&UnitEntry>) -> String {
    let now = now
        .filter(|entry| entry.file.contains(".d/"))
        .and_then(|entry| entry.file.rsplit('/').next());
    let file =
        if now.is_some_and(|now| now > "limits.conf") { "zz-limits.conf" } else { "limits.conf" };
    format!("/etc/systemd/system/{name}.d/{file}, in [{section}]")
}

/// Returns `word` with the values of its specifiers (`%n`).
pub(super) fn specifiers(unit: &Unit, word: &str) -> String {
    if !word.contains('%') {
        return word.to_owned();
    }
    let name = unit.name.as_str();
    let prefix = name.split(['@']).next().unwrap_or_default();
    let prefix = prefix.strip_suffix(".service").unwrap_or(prefix);
    let mut text = String::new();
    let mut chars = word.chars();
    while let Some(c) = chars.next() {
        if c != '%' {
            text.push(c);
            continue;
        }
        match chars.next() {
            Some('%') => text.push('%'),
            Some('i' | 'I') => text.push_str(instance(name)),
            Some('n') => text.push_str(name),
            Some('N') => text.push_str(name.strip_suffix(".service").unwrap_or(name)),
            Some('p' | 'P') => text.push_str(prefix),
            other => {
                text.push('%');
                text.extend(other);
            }
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_parsed_as_systemd_does() {
        for (value, meant) in [
            ("4096", Some((4096, 4096))),
            ("4096:8192", Some((4096, 8192))),
            ("4096:infinity", Some((4096, u64::MAX))),
            ("infinity", Some((u64::MAX, u64::MAX))),
            ("0x1000", Some((4096, 4096))),
            ("010000", Some((4096, 4096))),
            ("+4096", Some((4096, 4096))),
            // No suffix, no word of another system, no reset, no half, no comment, no quotes.
            ("64K", None),
            ("unlimited", None),
            ("", None),
            ("8192:4096", None),
            ("4096:", None),
            (":4096", None),
            ("\"4096\"", None),
            ("4096 # more", None),
            ("-1", None),
            ("5%", None),
        ] {
            assert_eq!(limit(value), meant, "{value:?}");
        }
    }

    #[test]
    fn tasks_and_memory_are_parsed_as_systemd_does() {
        for (value, meant) in [
            ("512", Some(Tasks::Number(512))),
            ("5%", Some(Tasks::Number(9636))),
            ("1.5%", Some(Tasks::Number(2890))),
            ("infinity", Some(Tasks::Infinity)),
            ("", Some(Tasks::Default)),
            ("0", None),
            ("4K", None),
            ("150%", None),
        ] {
            assert_eq!(tasks(value, Some(192_731)), meant, "{value:?}");
        }
        for (value, meant) in [
            ("1.5G", Some(1_610_612_736)),
            ("1024", Some(1024)),
            ("10%", Some(100)),
            ("infinity", Some(u64::MAX)),
            ("", Some(u64::MAX)),
            ("2 M", Some(2 << 20)),
            ("some", None),
        ] {
            assert_eq!(memory(value, Some(1000)), meant, "{value:?}");
        }
    }

    #[test]
    fn lines_continue_over_comments_and_belong_to_a_section() {
        let text = "[Service]\nLimitNOFILE = \\\n# no\n  4096\n;x\n[Unit]\nLimitNOFILE=1\n";
        let entries = entries("f", text);
        let lines: Vec<_> = entries
            .iter()
            .map(|one| (one.section.as_str(), one.key.as_str(), one.value.as_str(), one.line))
            .collect();
        assert_eq!(lines, [("Service", "LimitNOFILE", "4096", 4), ("Unit", "LimitNOFILE", "1", 7)]);
    }

    #[test]
    fn command_lines_are_cut_into_words() {
        let line = r#"/bin/sh -c "ulimit -n 512; exec 'a b'" ; /bin/true \; x\x20y"#;
        assert_eq!(
            words(line),
            [vec!["/bin/sh", "-c", "ulimit -n 512; exec 'a b'"], vec!["/bin/true", ";", r"x\x20y"]]
        );
    }

    #[test]
    fn drop_ins_of_closer_names_come_first() {
        assert_eq!(close_names("a-b-c.service"), ["a-b-c.service", "a-b-.service", "a-.service"]);
        assert_eq!(close_names("q@in.service"), ["q@in.service", "q@.service"]);
        assert_eq!(close_names("q.service"), ["q.service"]);
    }
}
