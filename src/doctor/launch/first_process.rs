//! Process 1: its limits are those of the processes that come from it, and it shows what starts them.
#![forbid(unsafe_code)]

use std::rc::Rc;

use super::limits::{InheritedLimit, LimitPair, LimitState, LimitValue};
use crate::doctor::host::Host;
use crate::doctor::process::{self, ProcessLimits};

/// What is known of process 1.
pub(super) struct FirstProcess {
    pub(super) name: String,
    pub(super) limits: Option<ProcessLimits>,
    pub(super) may_raise: bool,
}

impl FirstProcess {
    pub(super) fn of(host: &Host<'_>) -> FirstProcess {
        let name = host.read("/proc/1/comm").map(|name| name.trim().to_owned()).unwrap_or_default();
        let limits = host.read("/proc/1/limits").ok().map(|text| process::limits(&text));
        let status = host.read("/proc/1/status").unwrap_or_default();
        let bounding = status.lines().find_map(|line| line.strip_prefix("CapBnd:"));
        let bounding = bounding.and_then(|set| u64::from_str_radix(set.trim(), 16).ok());
        // CAP_SYS_RESOURCE.
        FirstProcess { name, limits, may_raise: bounding.is_none_or(|set| set & (1 << 24) != 0) }
    }

    pub(super) fn is_systemd(&self) -> bool {
        self.name == "systemd"
    }

    /// Returns the limits of a process that systemd did not start.
    pub(super) fn state(&self) -> LimitState {
        match self.limits {
            Some(limits) if !self.is_systemd() => {
                let by = Rc::new(InheritedLimit {
                    by: format!("process 1 ({})", self.name),
                    certain: false,
                    raise: None,
                });
                LimitState::new(
                    LimitPair::inherited(value(limits.files), value(limits.files_hard), &by),
                    LimitPair::NOT_FOUND,
                )
            }
            _ => LimitState::not_found(),
        }
    }
}

pub(super) fn value(limit: Option<u64>) -> LimitValue {
    limit.map_or(LimitValue::Unlimited, LimitValue::Number)
}
