//! `qpatch gate show --domain`: under which key a domain counts now, and what that key does.
//!
//! The key comes from the control files as they are now, the figures from the status file. A gate that has not read
//! these files yet, or cannot use them, may count the domain under another key.

use std::io::{self, Write};
use std::path::Path;

use qpatch_gate::learn::Learning;
use qpatch_gate::name::Hasher;
use qpatch_gate::rules::{KeyKind, Rules};
use qpatch_gate::table::Limit;
use qpatch_gate_status::{KeyStatus, Status};
use serde::Serialize;

use super::start_rates::StartRates;
use crate::error::Error;
use crate::gate::source::{self, Source};
use crate::gate::text::{
    cut, domain_bytes, escaped, key_name, limit_text, limit_value, next_start, origin_text,
    printable_status, starts_left,
};
use crate::output::count;

/// The key of a domain and the key's figures. Times are in seconds since 1970.
#[derive(Debug, Serialize)]
pub(super) struct DomainStatus {
    domain: String,
    kind: &'static str,
    key: String,
    /// Why it counts under this key.
    from: String,
    /// null is unlimited.
    limit: Option<u32>,
    learns: bool,
    #[serde(flatten)]
    rates: StartRates,
    /// Whether the status has the key. It has none for a key that does nothing, or less than those that are listed.
    listed: bool,
    effective_limit: Option<u32>,
    running: u32,
    held: u32,
    away: u32,
    objected: Option<u64>,
    suspended_until: Option<u64>,
    last_error: String,
    #[serde(skip)]
    key_kind: KeyKind,
    #[serde(skip)]
    at_most: Limit,
    #[serde(skip)]
    effective: Limit,
}

/// Reads the rules of a qmail home.
pub(super) fn rules(home: &Path) -> Result<Rules, Error> {
    source::load(&Source::of(home)?, Hasher::new(1))?.into_rules(home)
}

impl DomainStatus {
    pub(super) fn new(domain: &str, rules: &Rules, status: &Status) -> Self {
        let asked = domain_bytes(domain);
        let found = rules.resolve(&asked);
        let key = escaped(found.name.to_ascii_lowercase());
        let known = status.keys.iter().find(|known| known.kind == found.kind && known.name == key);
        let (at_most, effective) =
            known.map_or((found.cap.limit, found.cap.limit), |key| (key.limit, key.effective));
        let number = |get: fn(&KeyStatus) -> u32| known.map_or(0, get);
        let time = |get: fn(&KeyStatus) -> u64| known.map(get).filter(|&secs| secs > 0);
        Self {
            domain: escaped(&asked),
            kind: found.kind.name(),
            from: origin_text(rules, &found),
            limit: limit_value(at_most),
            learns: found.cap.learning == Learning::On,
            rates: StartRates::of(found.cap.rates.to_string(), known),
            listed: known.is_some(),
            effective_limit: limit_value(effective),
            running: number(|key| key.running),
            held: number(|key| key.held),
            away: number(|key| key.away),
            objected: time(|key| key.objected_secs),
            suspended_until: time(|key| key.suspended_secs),
            last_error: known.map(|key| key.error.clone()).unwrap_or_default(),
            key,
            key_kind: found.kind,
            at_most,
            effective,
        }
    }

    /// Prints one line or more for each fact.
    pub(super) fn write(
        &self,
        out: &mut dyn Write,
        status: &Status,
        now_secs: u64,
    ) -> io::Result<()> {
        let domain = key_name(KeyKind::Domain, &self.domain);
        let key = key_name(self.key_kind, &self.key);
        writeln!(out, "{domain}: counts as {key}\n  from       {}", self.from)?;
        let learns = if self.learns { "follows the server" } else { "fixed" };
        let mut limit = format!("{}, {learns}", limit_text(self.at_most));
        if self.effective != self.at_most {
            limit.push_str(&format!("; now {}", limit_text(self.effective)));
        }
        writeln!(out, "  limit      {limit}")?;
        let StartRates { rates, next_start_ms, hour_left, day_left } = &self.rates;
        if !rates.is_empty() {
            let next = next_start_ms.and_then(next_start);
            let facts = next.into_iter().chain(starts_left(*hour_left, *day_left));
            let facts: String = facts.map(|fact| format!("; {fact}")).collect();
            writeln!(out, "  rate       {rates}{facts}")?;
        }
        if self.listed {
            let Self { running, held, away, .. } = self;
            writeln!(out, "  now        {running} running, {held} held, {away} away")?;
        } else if status.unlisted == 0 {
            writeln!(out, "  now        nothing runs, waits or is remembered")?;
        } else {
            let others = count(status.unlisted, "key");
            writeln!(out, "  now        not known: it may be among the {others} that did least")?;
        }
        if let Some(secs) = self.objected {
            writeln!(out, "  objected   {} s ago", now_secs.saturating_sub(secs))?;
        }
        if let Some(left @ 1..) = self.suspended_until.map(|secs| secs.saturating_sub(now_secs)) {
            writeln!(out, "  suspended  for {left} s: nothing is started")?;
        }
        if !self.last_error.is_empty() {
            writeln!(out, "  error      {}", cut(&printable_status(&self.last_error), 87))?;
        }
        Ok(())
    }
}
