//! Under which key a domain counts: `qpatch gate check --domain`.

use qpatch_gate::learn::Learning;
use qpatch_gate::rules::{KeyKind, RelayLine};
use serde::Serialize;

use crate::gate::source::LoadedRules;
use crate::gate::text::{
    cap_text, domain_bytes, escaped, key_name, limit_value, origin_text, site_text,
};

/// The key and the limit of a domain.
#[derive(Debug, Serialize)]
pub(super) struct DomainKey {
    domain: String,
    kind: &'static str,
    key: String,
    /// null is unlimited.
    limit: Option<u32>,
    /// The line of concurrencydomains; 0 for none.
    line: u32,
    /// The line of smtproutes; 0 for none.
    route: u32,
    /// The line of authsenders, if the sender chooses the relay.
    #[serde(skip_serializing_if = "Option::is_none")]
    authsenders: Option<u32>,
    /// Whether the limit follows the server.
    learns: bool,
    /// Its rates; left out if there are none.
    #[serde(skip_serializing_if = "String::is_empty")]
    rates: String,
    /// Why it counts under a site, if it does.
    #[serde(skip_serializing_if = "Option::is_none")]
    site: Option<String>,
    #[serde(skip)]
    pub(super) row: [String; 4],
}

/// No sender has this address, so it finds the relay of senders without a line of their own.
const NO_SENDER: &str = "\0";

pub(super) fn domain_keys(
    loaded: &LoadedRules,
    domains: &[String],
    sender: Option<&str>,
) -> Vec<DomainKey> {
    let Some(rules) = &loaded.rules else { return Vec::new() };
    let relay = rules.by_sender(sender.unwrap_or(NO_SENDER).as_bytes());
    let answer = |domain: &String| {
        let asked = domain_bytes(domain);
        let found = rules.resolve_for(&asked, relay);
        let (line, route) = rules.lines(&found);
        let (route, authsenders) = match found.route {
            Some(RelayLine::Authsenders(_)) => (0, Some(route)),
            Some(RelayLine::Smtproutes(_)) | None => (route, None),
        };
        let (domain, key) = (escaped(&asked), escaped(found.name.to_ascii_lowercase()));
        let rates = found.cap.rates.to_string();
        let row = [
            key_name(KeyKind::Domain, &domain),
            key_name(found.kind, &key),
            cap_text(found.cap.limit, &rates),
            origin_text(rules, &found),
        ];
        let limit = limit_value(found.cap.limit);
        DomainKey {
            domain,
            kind: found.kind.name(),
            key,
            limit,
            line,
            route,
            authsenders,
            learns: found.cap.learning == Learning::On,
            rates,
            site: found.site.map(site_text),
            row,
        }
    };
    domains.iter().map(answer).collect()
}
