//! The rates of a key as `gate show --format json` prints them, for a key and for a domain.

use qpatch_gate_status::KeyStatus;
use serde::Serialize;

/// The rates of a key, and what they allow. What there is not is left out.
#[derive(Debug, Serialize)]
pub(super) struct StartRates {
    /// As in concurrencydomains.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(super) rates: String,
    /// Milliseconds from the writing of the status until the rates allow the next start.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) next_start_ms: Option<u64>,
    /// Starts that the rate for an hour has left.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) hour_left: Option<u32>,
    /// The same for a day.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) day_left: Option<u32>,
}

impl StartRates {
    /// These rates, and what the status says of their key.
    pub(super) fn of(rates: String, key: Option<&KeyStatus>) -> Self {
        Self {
            rates,
            next_start_ms: key.filter(|key| !key.rates.is_empty()).map(|key| key.next_start_ms),
            hour_left: key.and_then(|key| key.hour_left),
            day_left: key.and_then(|key| key.day_left),
        }
    }
}
