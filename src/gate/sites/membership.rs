//! Whether a domain belongs to a site, by its mail exchangers.

use qpatch_gate::table::Table;

use super::exchangers::{DnsAnswer, Exchanger};

/// An exchanger that matches a line of concurrencydomains: the most preferred one, and its group and line.
fn matching<'a>(exchangers: &'a [Exchanger], table: &Table) -> Option<(&'a Exchanger, u32, u32)> {
    let matches = exchangers.iter().filter_map(|exchanger| {
        let (group, line) = table.find_exchanger(exchanger.name.as_ref()?.as_bytes())?;
        Some((exchanger, group, line))
    });
    matches.min_by_key(|&(exchanger, _, line)| (exchanger.preference, line))
}

/// The site of a domain with these exchangers: the index of its group (None: it is not a member), and the reason.
///
/// With `is_one` the exchangers are names of one host, of which one match is enough.
fn site_of(exchangers: &[Exchanger], is_one: bool, table: &Table) -> (Option<u32>, String) {
    let Some(first) = exchangers.first() else {
        return (None, "it has no exchangers".to_string());
    };
    let description = |Exchanger { preference, name }: &Exchanger| {
        let name = name.as_deref().unwrap_or("an exchanger without a usable name");
        format!("{name} ({preference})")
    };
    let at_no_site = |exchanger: &&Exchanger| match &exchanger.name {
        Some(name) => table.find_exchanger(name.as_bytes()).is_none(),
        None => true,
    };
    let elsewhere = exchangers
        .iter()
        .take_while(|exchanger| !is_one && exchanger.preference == first.preference)
        .find(at_no_site);
    match (matching(exchangers, table), elsewhere) {
        (Some((matched, group, line)), None) => {
            (Some(group), format!("{}, concurrencydomains:{line}", description(matched)))
        }
        (Some((matched, _, line)), Some(elsewhere)) => {
            let order = match matched.preference == first.preference {
                true => "is tried as early as",
                false => "is tried first, before",
            };
            let matched = format!("{}, concurrencydomains:{line}", description(matched));
            (None, format!("{} {order} {matched}", description(elsewhere)))
        }
        (None, _) => (None, format!("{} matches no line", description(first))),
    }
}

/// Whether a name belongs to a site, by the answer of DNS. Each has its reason.
#[derive(Clone, Debug)]
pub(super) enum Membership {
    /// At the site of the group with this name.
    At(String, String),
    /// At no site.
    Elsewhere(String),
    /// Unknown: there is no reliable answer.
    Unanswered(String),
}

impl Membership {
    pub(super) fn of(said: &DnsAnswer, table: &Table) -> Self {
        let (exchangers, is_one) = match said {
            DnsAnswer::NoAnswer(why) => return Self::Unanswered(why.clone()),
            DnsAnswer::NoDomain => return Self::Elsewhere("no such domain".to_string()),
            DnsAnswer::NoMail => return Self::Elsewhere("it takes no mail (null MX)".to_string()),
            DnsAnswer::Exchangers(exchangers) => (exchangers, false),
            DnsAnswer::Host(names) => (names, true),
        };
        match site_of(exchangers, is_one, table) {
            (None, because) => Self::Elsewhere(because),
            (Some(group), because) => {
                let name = &table.groups()[group as usize].name;
                Self::At(String::from_utf8_lossy(name).into_owned(), because)
            }
        }
    }
}
