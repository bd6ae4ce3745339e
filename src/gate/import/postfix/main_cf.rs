//! main.cf: its parameters, and what holds for a transport.

use std::collections::HashMap;

use qpatch_gate::limit::LIMIT_MAX;
use qpatch_gate::rates::Rates;

use super::syntax::{Expanded, expand, logical_lines};
use crate::error::Error;
use crate::gate::import::draft::DraftLine;
use crate::gate::import::foreign::ForeignFile;
use crate::gate::import::ledger::{Ledger, Place, SettingId};
use crate::gate::import::rate::ForeignRate;
use crate::gate::text::printable;

/// default_destination_concurrency_limit where main.cf does not set it.
const CONCURRENCY_LIMIT: u64 = 20;

/// Values of Postfix's own that others name. A relative name is below the folder of main.cf.
const OWN_VALUES: [(&str, &str); 8] = [
    ("config_directory", "."),
    ("default_destination_concurrency_limit", "20"),
    ("default_destination_rate_delay", "0s"),
    ("default_destination_recipient_limit", "50"),
    ("default_process_limit", "100"),
    ("default_transport", "smtp"),
    ("initial_destination_concurrency", "5"),
    ("relay_transport", "relay"),
];

pub(super) const LIMIT: &str = "_destination_concurrency_limit";
pub(super) const DELAY: &str = "_destination_rate_delay";
pub(super) const TRANSPORT_DELAY: &str = "_transport_rate_delay";
const RECIPIENTS: &str = "_destination_recipient_limit";

pub(super) struct MainCfParameter {
    pub(super) name: String,
    pub(super) id: SettingId,
}

/// The value of a parameter.
pub(super) struct Value {
    pub(super) text: String,
    /// The parameter, and those that its value names.
    pub(super) ids: Vec<SettingId>,
}

/// The file.
pub(super) struct MainCf {
    pub(super) parameters: Vec<MainCfParameter>,
    at: HashMap<String, usize>,
    values: HashMap<String, String>,
}

impl MainCf {
    pub(super) fn read(
        source: &ForeignFile,
        file: usize,
        ledger: &mut Ledger,
    ) -> Result<Self, Error> {
        let mut main = Self { parameters: Vec::new(), at: HashMap::new(), values: HashMap::new() };
        for line in logical_lines(&String::from_utf8_lossy(&source.text)) {
            let place = Place { file, line: line.number };
            let found = line.text.split_once('=').map(|(name, value)| (name.trim(), value.trim()));
            let Some((name, value)) = found.filter(|(name, _)| !name.is_empty()) else {
                let what = format!("expected NAME = VALUE, found {}", printable(&line.text));
                let help = "name main.cf first and the transport tables after it; postconf -n says what Postfix reads";
                return Err(Error::new(ledger.place_text(place), what, help));
            };
            let id = ledger.add(place, "", name, value);
            if let Some(&at) = main.at.get(name) {
                let why = "a later line for the same parameter takes its place";
                ledger.leave(std::mem::replace(&mut main.parameters[at].id, id), why);
            } else {
                main.at.insert(name.to_string(), main.parameters.len());
                main.parameters.push(MainCfParameter { name: name.to_string(), id });
            }
            main.values.insert(name.to_string(), value.to_string());
        }
        for (name, value) in OWN_VALUES {
            main.values.entry(name.to_string()).or_insert_with(|| value.to_string());
        }
        Ok(main)
    }

    pub(super) fn id(&self, name: &str) -> Option<SettingId> {
        self.at.get(name).map(|&at| self.parameters[at].id)
    }

    /// The value of a parameter; None: the file does not set it, or its value is not known. The reason is then noted.
    pub(super) fn value(&self, name: &str, ledger: &mut Ledger) -> Option<Value> {
        let id = self.id(name)?;
        match expand(&self.values[name], &self.values) {
            Ok(Expanded { text, names }) => {
                let ids = names.iter().filter_map(|name| self.id(name));
                let ids = std::iter::once(id).chain(ids).collect();
                Some(Value { text: text.trim().to_string(), ids })
            }
            Err(unknown) => {
                ledger.leave(id, unknown.reason());
                None
            }
        }
    }

    /// The text of a list, whether the file sets it or Postfix has it. None: its value is not known.
    pub(super) fn text(&self, name: &str) -> Option<String> {
        Some(expand(self.values.get(name)?, &self.values).ok()?.text)
    }

    /// The value of a transport's parameter: its own, else the default's. A value that cannot be read counts as not
    /// set; that is noted at the line.
    fn of_transport<T>(
        &self,
        transport: &str,
        end: &str,
        read: impl Fn(&str) -> Result<T, String>,
        line: &mut DraftLine,
        ledger: &mut Ledger,
    ) -> Option<T> {
        for name in [format!("{transport}{end}"), format!("default{end}")] {
            let Some(id) = self.id(&name) else { continue };
            match self.value(&name, ledger).map(|value| (read(&value.text), value)) {
                Some((Ok(read), value)) => {
                    line.from.extend(value.ids);
                    return Some(read);
                }
                Some((Err(why), _)) => ledger.leave(id, why),
                None => {}
            }
            line.notes.push(format!(
                "{} ({}) cannot be said, so it counts as not set",
                printable(&name),
                ledger.place_text(ledger.place(id))
            ));
        }
        None
    }

    /// The limit and the rate of a transport, for each of its destinations.
    pub(super) fn transport_line(
        &self,
        transport: &str,
        group: Option<String>,
        ledger: &mut Ledger,
    ) -> DraftLine {
        let mut line = DraftLine {
            subjects: Vec::new(),
            limit: Some(CONCURRENCY_LIMIT),
            group,
            rates: Rates::NONE,
            from: Vec::new(),
            notes: Vec::new(),
        };
        match self.of_transport(transport, LIMIT, limit, &mut line, ledger) {
            None => line.notes.push(format!(
                "Postfix's own default_destination_concurrency_limit is {CONCURRENCY_LIMIT}"
            )),
            // 0 is no limit.
            Some(0) => line.limit = None,
            Some(number) => {
                line.limit = Some(number.min(u64::from(LIMIT_MAX)));
                if number > u64::from(LIMIT_MAX) {
                    line.notes.push(format!("{number} is said as {LIMIT_MAX}, which is stricter"));
                }
            }
        }
        let delay = self.of_transport(transport, DELAY, seconds, &mut line, ledger);
        if let Some(secs @ 1..) = delay {
            line.limit = Some(1);
            add_pause(&mut line, secs);
            line.notes.push(
                "a rate delay means one delivery at a time and a pause after its end; a rate counts from start to \
                 start, so it is looser by the length of a delivery"
                    .to_string(),
            );
        }
        let pause = self.of_transport(transport, TRANSPORT_DELAY, seconds, &mut line, ledger);
        if let Some(secs @ 1..) = pause {
            add_pause(&mut line, secs);
            line.notes.push(
                "in Postfix a transport's rate delay is for all its destinations together; here each destination has \
                 it for itself"
                    .to_string(),
            );
        }
        let name = |start: &str| format!("{start}{RECIPIENTS}");
        let recipients = [name(transport), name("default")];
        let recipients = recipients.iter().find(|name| self.id(name).is_some());
        if recipients.and_then(|name| self.text(name)).is_some_and(|text| text.trim() == "1") {
            line.notes.push(
                "with a recipient limit of 1 Postfix counts each recipient by itself; here the domain counts, which is \
                 stricter"
                    .to_string(),
            );
        }
        line
    }
}

/// At most one start within a pause.
fn add_pause(line: &mut DraftLine, secs: u64) {
    let rate = ForeignRate { starts: 1, scale: secs, unit_secs: 1 }.in_table();
    line.rates = line.rates.lowest(rate.rates);
    line.notes.extend(rate.note(&format!("a pause of {secs} s")));
}

fn limit(text: &str) -> Result<u64, String> {
    text.parse().map_err(|_| format!("expected a number, found {}", printable(text)))
}

/// A time in seconds: a number, and s, m, h, d or w.
fn seconds(text: &str) -> Result<u64, String> {
    let digits = text.trim_end_matches(|sign: char| sign.is_ascii_alphabetic());
    let unit_secs = match &text[digits.len()..] {
        "" | "s" | "S" => Some(1),
        "m" | "M" => Some(60),
        "h" | "H" => Some(3600),
        "d" | "D" => Some(86400),
        "w" | "W" => Some(7 * 86400),
        _ => None,
    };
    let number = digits.parse::<u64>().ok();
    number
        .zip(unit_secs)
        .and_then(|(number, unit_secs)| number.checked_mul(unit_secs))
        .ok_or_else(|| format!("expected a number and s, m, h, d or w, found {}", printable(text)))
}
