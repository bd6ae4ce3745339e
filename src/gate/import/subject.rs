//! What a line of the table is for: a domain, the names below one, or all others.

/// The first field of a line.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Subject {
    /// All domains without a line.
    All,
    Name(String),
    /// The names below it.
    Below(String),
}

impl Subject {
    /// `example.com`, or `.example.com`.
    pub(super) fn of(text: &str) -> Self {
        match text.strip_prefix('.') {
            Some(parent) => Subject::Below(parent.to_ascii_lowercase()),
            None => Subject::Name(text.to_ascii_lowercase()),
        }
    }

    pub(super) fn text(&self) -> String {
        match self {
            Subject::All => String::new(),
            Subject::Name(name) => name.clone(),
            Subject::Below(parent) => format!(".{parent}"),
        }
    }

    /// Itself, then what it lies below, the closest first; not [`Subject::All`].
    pub(super) fn and_parents(&self) -> impl Iterator<Item = Subject> {
        let mut rest = match self {
            Subject::All => None,
            Subject::Name(name) | Subject::Below(name) => Some(name.clone()),
        };
        let parents = std::iter::from_fn(move || {
            rest = rest.as_ref()?.split_once('.').map(|(_, parent)| parent.to_string());
            rest.clone().map(Subject::Below)
        });
        Some(self.clone()).filter(|own| *own != Subject::All).into_iter().chain(parents)
    }
}
