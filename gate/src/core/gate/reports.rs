//! What the report of a delivery changes: the key's limit and pauses, and whether its mail goes back as busy.

#![forbid(unsafe_code)]

use super::Gate;
use super::sites::DeliverySite;
use crate::core::key::{ReplyPause, most, note_error};
use crate::core::keys::Entry;
use crate::core::learn::{Attempt, Coverage, EndedDelivery, RECENT_US};
use crate::core::rules::KeyKind;
use crate::core::shortage::{WITNESS_US, Witness};
use crate::core::slots::{Slot, SlotState};
use crate::report::echo::Own;
use crate::report::replies::{MatchedLine, Meaning};
use crate::report::{self, ReportReader};

impl Gate {
    /// Reads the report of a delivery of this key, which no longer counts as running.
    pub(super) fn read_report(
        &mut self,
        at: u32,
        slot: u32,
        report: &[u8],
        now_us: u64,
    ) -> Attempt {
        let Slot { since_us, mail, envelope, domain, .. } = self.slots[slot as usize];
        let looks_at_addresses = self.rules.looks_at_addresses();
        let key = &mut self.keys.all[at as usize].key;
        note_error(&mut key.error, report);
        if self.rules.reads_reports(key.cap) {
            let own = Own {
                hasher: self.rules.hasher,
                envelope,
                names: [&self.keys.all[domain as usize].key.name, &self.rules.helo],
            };
            let reader = ReportReader { own, replies: &self.rules.replies };
            let said = reader.classify(report);
            let site = if looks_at_addresses {
                self.note_site(domain, &said)
            } else {
                DeliverySite::NoSite
            };
            // A rate is not a number at once: no level is learned from it.
            let is_too_fast = matches!(said.rule, Some(MatchedLine { meaning: Meaning::Rate, .. }))
                && matches!(said.seen, report::DeliveryVerdict::TooMany(_));
            let of_server = if is_too_fast { report::DeliveryVerdict::Deferred } else { said.seen };
            // A fixed limit reads only the connection, unless the operator's rules say something.
            let of_server = match self.key(at).is_fixed() && said.rule.is_none() {
                true => report::at_the_door(report),
                false => of_server,
            };
            let seen = match site {
                DeliverySite::OtherAddress | DeliverySite::NoAddress => {
                    report::DeliveryVerdict::Nothing
                }
                _ => of_server,
            };
            let coverage = if site == DeliverySite::Own {
                Coverage::KnownDomains
            } else {
                Coverage::AllDeliveries
            };
            let ended = self.ended_delivery(at, slot, seen, coverage, now_us);
            let is_candidate = self.key(at).kind == KeyKind::Candidates;
            let mut tried = self.learn_for_key(at, &ended);
            match site {
                DeliverySite::NoAddress => {
                    let running = self.running_of(domain);
                    let alone =
                        EndedDelivery { seen: of_server, running, beside: running, ..ended };
                    // Where no server can be reached, the domain is a witness for itself.
                    let alone = EndedDelivery { coverage: Coverage::AllDeliveries, ..alone };
                    tried = self.learn_for_key(domain, &alone);
                    self.make_ready(at);
                }
                // A refusal at an address of the site concerns the site, not the domain.
                DeliverySite::Own if !matches!(said.seen, report::DeliveryVerdict::TooMany(_)) => {
                    self.learn_for_domain(domain, ended);
                }
                _ => {}
            }
            let paused = match site {
                DeliverySite::OtherAddress => None,
                DeliverySite::NoAddress => Some(domain),
                _ => Some(at),
            };
            if let (Some(MatchedLine { line, meaning }), Some(paused)) = (said.rule, paused) {
                let key = &mut self.keys.all[paused as usize].key;
                let until_us = match meaning {
                    Meaning::Pause(secs) => {
                        Some(now_us.saturating_add(u64::from(secs) * 1_000_000))
                    }
                    Meaning::Rate if is_too_fast => {
                        Some(key.rate_pauses.slow_down(since_us, now_us))
                    }
                    Meaning::Rate | Meaning::Limit | Meaning::Nothing => None,
                };
                // As with any refusal that is not about the mail: with others running, or one accepted within a minute,
                // it does not count as an attempt.
                let beside = key.running > 0 || key.learned.has_accepted(now_us, RECENT_US);
                if is_too_fast && said.seen.is_too_many_early() && beside {
                    tried = Attempt::DoesNotCount;
                }
                if let Some(until_us) = until_us {
                    let pause = ReplyPause { until_us, line };
                    key.pause(pause);
                    // The site's members and its candidates are at the same servers.
                    if paused == at
                        && let Some(partner) = self.partner(at)
                    {
                        self.keys.all[partner as usize].key.pause(pause);
                    }
                }
            }
            match said.seen {
                // It was alone as far as its own key knows. Only now is it known that its site may have others.
                seen if seen.is_too_many_early() && site == DeliverySite::NotYetCounted => {
                    tried = Attempt::DoesNotCount;
                }
                report::DeliveryVerdict::Accepted
                    if site == DeliverySite::NotYetCounted || is_candidate =>
                {
                    self.note_accepted_at_site(domain, ended);
                }
                _ => {}
            }
            if self.returns_as_busy(mail, tried) {
                return tried;
            }
        } else if key.is_fixed() && !self.is_routine_success(at, report, now_us) {
            let seen = report::at_the_door(report);
            let ended = self.ended_delivery(at, slot, seen, Coverage::AllDeliveries, now_us);
            let tried = self.learn_for_key(at, &ended);
            if self.returns_as_busy(mail, tried) {
                return tried;
            }
        }
        let key = &mut self.keys.all[at as usize].key;
        key.done += 1;
        key.pace.complete(now_us);
        self.rate.count(now_us);
        let service_us = now_us.saturating_sub(since_us) as f64;
        self.typical_us += (service_us - self.typical_us) * TYPICAL_WEIGHT;
        self.totals.done += 1;
        Attempt::Counts
    }

    /// The delivery in this slot, which its key no longer counts as running.
    pub(super) fn ended_delivery(
        &self,
        at: u32,
        slot: u32,
        seen: report::DeliveryVerdict,
        coverage: Coverage,
        now_us: u64,
    ) -> EndedDelivery {
        let Slot { since_us, beside, started_in, .. } = self.slots[slot as usize];
        let key = self.key(at);
        EndedDelivery {
            now_us,
            started_us: since_us,
            running: key.running,
            beside,
            limit: most(key.cap.limit),
            learning: key.cap.learning,
            seen,
            coverage,
            started_in,
        }
    }

    /// Learns what a delivery says of its server, unless the fault is in this machine.
    pub(super) fn learn_for_key(&mut self, at: u32, ended: &EndedDelivery) -> Attempt {
        let key = &mut self.keys.all[at as usize].key;
        match ended.seen {
            report::DeliveryVerdict::ConnectFailed => {}
            report::DeliveryVerdict::Nothing => {
                return key.learned.delivery_ended(ended, &mut self.random);
            }
            _ => {
                self.shortage.connected(ended.started_us);
                return key.learned.delivery_ended(ended, &mut self.random);
            }
        }
        let before = Witness { at, number: key.number, learned: key.learned };
        let took = key.learned.has_accepted(ended.now_us, WITNESS_US);
        let slots = &self.slots;
        let pending = |since_us: u64| {
            let is_new =
                |slot: &&Slot| slot.state == SlotState::Running && slot.since_us >= since_us;
            // The delivery itself is among them until its slot is free.
            (slots.iter().filter(is_new).count() as u32).saturating_sub(1)
        };
        if self.shortage.failed(ended.now_us, took.then_some(before), pending) {
            while let Some(Witness { at, number, learned }) = self.shortage.take() {
                if let Some(Entry { key, .. }) = self.keys.all.get_mut(at as usize)
                    && key.number == number
                {
                    key.learned = learned;
                    self.make_ready(at);
                }
            }
        }
        if self.shortage.is_on(ended.now_us) {
            return Attempt::DoesNotCount;
        }
        self.keys.all[at as usize].key.learned.delivery_ended(ended, &mut self.random)
    }

    /// Whether a delivery of a key with a fixed limit was accepted, and nothing was wrong before. Nearly all are.
    #[inline]
    pub(super) fn is_routine_success(&mut self, at: u32, report: &[u8], now_us: u64) -> bool {
        matches!(report, [b'r', 0, b'K', ..])
            && self.shortage.is_quiet(now_us)
            && self.keys.all[at as usize].key.learned.note_routine_success(now_us)
    }

    /// Whether the mail of a delivery that ended goes back as busy.
    pub(super) fn returns_as_busy(&mut self, mail: u64, tried: Attempt) -> bool {
        let returns = match tried {
            Attempt::Counts => false,
            Attempt::DoesNotCount => self.returns.may_return(mail),
            Attempt::RefusedAtYoungSite => true,
        };
        if !returns {
            self.returns.note_attempt(mail);
        }
        returns
    }
}

/// How much one delivery counts in the guess for a new key's service time: the mean is of about the last 64. An
/// assumption, as [`crate::core::pace`] has it.
const TYPICAL_WEIGHT: f64 = 1.0 / 64.0;
