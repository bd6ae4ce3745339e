//! Every setting that was read, and what has become of it.
//!
//! A reader adds each setting of a file here before it does anything with it. Later the setting is expressed, or left
//! with a reason. What a reader forgets stays [`Fate::Unread`] and is listed, too: so no setting is lost silently.

use crate::gate::text::{cut, printable};

/// The most bytes of a value that a comment shows.
const VALUE_MAX: usize = 100;

/// A line of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Place {
    /// The index of the file.
    pub(super) file: usize,
    /// From 1.
    pub(super) line: u32,
}

/// The index of a setting.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct SettingId(usize);

/// What has become of a setting.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Fate {
    Unread,
    Expressed,
    Left(String),
    /// The same, for settings of which a file has too many to list each.
    Counted(String),
    /// It has nothing to do with how many deliveries run or start.
    Unrelated,
}

/// One setting.
#[derive(Clone, Debug)]
struct ReadSetting {
    place: Place,
    /// What it holds for, as the file says it: `provider google`, `<domain *>`. May be empty.
    scope: String,
    name: String,
    value: String,
    fate: Fate,
}

/// How many settings have come to which end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Counts {
    /// Lines of all files.
    pub(super) lines: u64,
    /// Settings that were read; the sum of the next three.
    pub(super) settings: u64,
    pub(super) expressed: u64,
    pub(super) left: u64,
    pub(super) unrelated: u64,
}

/// A setting that is not expressed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct LeftOut {
    pub(super) place: Place,
    /// Scope, name and value on one line.
    pub(super) what: String,
    pub(super) why: String,
    /// Whether the table only counts such settings.
    pub(super) is_counted: bool,
}

/// All settings of all files.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    files: Vec<String>,
    lines: u64,
    settings: Vec<ReadSetting>,
}

impl Ledger {
    /// Begins a file with this name and text, and returns its index.
    pub(super) fn add_file(&mut self, name: &str, text: &[u8]) -> usize {
        self.files.push(name.to_string());
        let ends = text.iter().filter(|&&byte| byte == b'\n').count();
        self.lines += (ends + usize::from(!text.is_empty() && !text.ends_with(b"\n"))) as u64;
        self.files.len() - 1
    }

    /// The names of the files.
    pub(super) fn files(&self) -> &[String] {
        &self.files
    }

    /// Adds a setting.
    pub(super) fn add(
        &mut self,
        place: Place,
        scope: &str,
        name: &str,
        value: impl AsRef<[u8]>,
    ) -> SettingId {
        self.settings.push(ReadSetting {
            place,
            scope: printable(scope),
            name: printable(name),
            value: cut(&one_line(value.as_ref()), VALUE_MAX),
            fate: Fate::Unread,
        });
        SettingId(self.settings.len() - 1)
    }

    /// The table has it. That it is left out elsewhere does not matter any more.
    pub(super) fn express(&mut self, id: SettingId) {
        self.settings[id.0].fate = Fate::Expressed;
    }

    /// The table does not have it, for this reason. Of several reasons the first one counts.
    pub(super) fn leave(&mut self, id: SettingId, why: impl Into<String>) {
        let fate = &mut self.settings[id.0].fate;
        if *fate == Fate::Unread {
            *fate = Fate::Left(why.into());
        }
    }

    /// The same, and the table does not list it but counts it.
    pub(super) fn leave_counted(&mut self, id: SettingId, why: impl Into<String>) {
        let fate = &mut self.settings[id.0].fate;
        if *fate == Fate::Unread {
            *fate = Fate::Counted(why.into());
        }
    }

    /// Whether nothing has become of it yet.
    pub(super) fn is_unread(&self, id: SettingId) -> bool {
        self.settings[id.0].fate == Fate::Unread
    }

    /// It is not about how many deliveries run or start.
    pub(super) fn leave_unrelated(&mut self, id: SettingId) {
        let fate = &mut self.settings[id.0].fate;
        if *fate == Fate::Unread {
            *fate = Fate::Unrelated;
        }
    }

    pub(super) fn counts(&self) -> Counts {
        let mut counts = Counts { lines: self.lines, ..Counts::default() };
        for setting in &self.settings {
            counts.settings += 1;
            match setting.fate {
                Fate::Expressed => counts.expressed += 1,
                Fate::Left(_) | Fate::Counted(_) | Fate::Unread => counts.left += 1,
                Fate::Unrelated => counts.unrelated += 1,
            }
        }
        counts
    }

    /// `shaping.toml:12`.
    pub(super) fn place_text(&self, place: Place) -> String {
        format!("{}:{}", printable(&self.files[place.file]), place.line)
    }

    /// The place of a setting.
    pub(super) fn place(&self, id: SettingId) -> Place {
        self.settings[id.0].place
    }

    /// `shaping.toml:12: provider google: connection_limit = 5`.
    pub(super) fn text(&self, id: SettingId) -> String {
        let setting = &self.settings[id.0];
        format!("{}: {}", self.place_text(setting.place), setting.what())
    }

    /// What is not expressed, in the order of the files.
    pub(super) fn left(&self) -> Vec<LeftOut> {
        let mut left: Vec<LeftOut> = self
            .settings
            .iter()
            .filter_map(|setting| {
                let why = match &setting.fate {
                    Fate::Left(why) | Fate::Counted(why) => why.clone(),
                    Fate::Unread => "qpatch does not know this setting".to_string(),
                    Fate::Expressed | Fate::Unrelated => return None,
                };
                let is_counted = matches!(setting.fate, Fate::Counted(_));
                Some(LeftOut { place: setting.place, what: setting.what(), why, is_counted })
            })
            .collect();
        left.sort_by_key(|left| left.place);
        left
    }

    /// The names of settings that are about something else, each with the places where it stands, in the order of the
    /// names.
    pub(super) fn unrelated(&self) -> Vec<(String, Vec<Place>)> {
        let mut names = std::collections::BTreeMap::<String, Vec<Place>>::new();
        for setting in self.settings.iter().filter(|setting| setting.fate == Fate::Unrelated) {
            names.entry(setting.name.clone()).or_default().push(setting.place);
        }
        names.into_iter().collect()
    }
}

/// A value on one line. If it had several, white space within it does not matter.
fn one_line(value: &[u8]) -> String {
    let text = printable(value);
    match value.contains(&b'\n') {
        true => text.split_ascii_whitespace().collect::<Vec<_>>().join(" "),
        false => text,
    }
}

impl ReadSetting {
    fn what(&self) -> String {
        let mut what = match self.scope.as_str() {
            "" => self.name.clone(),
            scope => format!("{scope}: {}", self.name),
        };
        if !self.value.is_empty() {
            what.push_str(&format!(" = {}", self.value));
        }
        what
    }
}
