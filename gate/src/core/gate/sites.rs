//! The domains of a site: which share of its places each may have, and what their reports say of the site.

#![forbid(unsafe_code)]

use super::{Gate, KeysState, NONE};
use crate::control::limit::{Learning, Limit};
use crate::control::site::{Evidence, SiteReason, Standing};
use crate::core::key::{Key, most};
use crate::core::keys::{Domain, Keys};
use crate::core::learn::{Admission, Coverage, EndedDelivery};
use crate::core::rules::KeyKind;
use crate::core::slots::Slot;
use crate::report::{self, DeliveryReport};

/// What a delivery has to do with a site.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum DeliverySite {
    /// Nothing that matters.
    NoSite,
    /// Its domain counts under the site, but the delivery was at another address.
    OtherAddress,
    /// Its domain counts under the site, but the report has no address: it says something of the domain alone.
    NoAddress,
    /// Its domain counts under the site, and the delivery was at an address of it.
    Own,
    /// Its domain will count under a site that learns, as soon as the keys are rebuilt.
    NotYetCounted,
}

/// When domains were seen at another site, the keys are rebuilt. The least time between two such rebuilds is 20 us for
/// each key. A rebuild takes less than a fiftieth of that (gate/benches/gate.rs). In microseconds.
const APPLY_SITES_US_PER_KEY: u64 = 20;

/// This many slots add as much to that time as one key.
const SLOTS_PER_KEY: usize = 8;

impl Gate {
    /// How many slots, running and held, one domain of a site may have. A member may have three quarters of the
    /// members' places, so that a domain whose server hangs leaves some to the others (a line of its own takes a domain
    /// out of the site). A candidate may have one, until the site has taken its mail. Other domains may have all.
    pub(super) fn domain_share(&self, domain: u32) -> u32 {
        let entry = &self.keys.all[domain as usize];
        let whole = self.keys.all[entry.domain.key as usize].key.limit();
        match (entry.domain.standing, whole) {
            (None, _) | (_, Limit::AtMost(0)) => u32::MAX,
            (Some(Standing::Candidate), _) => 1,
            (Some(Standing::Member), Limit::Unlimited) => u32::MAX,
            (Some(Standing::Member), Limit::AtMost(limit)) => (limit - limit / 4).max(1),
        }
    }

    /// Why a domain of a site must wait although the site has room: it has its share, or it is suspended because no
    /// connection to it succeeds. None: it need not wait.
    pub(super) fn domain_waits(&self, domain: u32, now_us: u64) -> Option<Admission> {
        let entry = &self.keys.all[domain as usize];
        entry.domain.standing?;
        if let Some(until_us) = entry.key.suspended_until(now_us) {
            return Some(Admission::Suspended(until_us));
        }
        (entry.domain.slots >= self.domain_share(domain)).then_some(Admission::Wait)
    }

    /// The other key of a site: for the members' key the candidates', and the other way round; if it has deliveries or
    /// is remembered.
    pub(super) fn partner(&self, at: u32) -> Option<u32> {
        let entry = &self.keys.all[at as usize];
        if entry.key.kind == KeyKind::Group && !self.rules.looks_at_addresses() {
            return None;
        }
        self.keys.find(Keys::partner_hash(entry.key.kind, entry.hash)?)
    }

    /// How many of this key may run beside the other key of its site. Only candidates have such a limit; they take no
    /// places from the members. While no member waits, candidates have the places that the members leave. They always
    /// have a quarter as many as the site has, or one, so that they can become members however busy the site is.
    pub(super) fn most_beside_partner(&self, at: u32) -> u32 {
        if self.key(at).kind != KeyKind::Candidates {
            return u32::MAX;
        }
        let Some(members) = self.partner(at) else { return u32::MAX };
        let members = self.key(members);
        let limit = most(members.limit());
        let least = (limit / 4).max(1);
        if members.held > 0 || members.recall.away() > 0 {
            return least;
        }
        limit.saturating_sub(members.running).max(least)
    }

    /// A delivery of a site's member has ended: the candidates may have room.
    pub(super) fn queue_candidates_for_room(&mut self, at: u32) {
        if self.key(at).kind == KeyKind::Group
            && let Some(candidates) = self.partner(at)
        {
            self.queue_for_room(candidates);
        }
    }

    /// Microseconds until the keys may be rebuilt for sites.
    pub(super) fn us_until_sites_apply(&self, now_us: u64) -> u64 {
        let keys = self.keys.all.len() + self.slots.len() / SLOTS_PER_KEY;
        let since_us = now_us.max(self.now_us).saturating_sub(self.sites_applied_us);
        (keys as u64 * APPLY_SITES_US_PER_KEY).saturating_sub(since_us)
    }

    /// Notes the address that a delivery was connected to: it may say to which site its next hop belongs.
    pub(super) fn note_site(&mut self, domain: u32, said: &DeliveryReport) -> DeliverySite {
        let evidence = match said.seen {
            report::DeliveryVerdict::Accepted => Evidence::Took,
            _ => Evidence::Answered,
        };
        let Key { kind, ref name, .. } = self.keys.all[domain as usize].key;
        // Without memory the address is not noted.
        if let Some(peer) = said.peer
            && self.rules.note(kind, name, peer, evidence) == Ok(true)
        {
            self.keys_state = KeysState::Stale;
        }
        let entry = &self.keys.all[domain as usize];
        if entry.domain.standing.is_some() {
            let key = self.key(entry.domain.key);
            return match said.peer {
                Some(peer) if self.rules.group_at(peer) == Some(&key.name) => DeliverySite::Own,
                Some(_) => DeliverySite::OtherAddress,
                None => match said.seen {
                    report::DeliveryVerdict::TooMany(_)
                    | report::DeliveryVerdict::ConnectFailed
                    | report::DeliveryVerdict::Died(_) => DeliverySite::NoAddress,
                    _ => DeliverySite::Own,
                },
            };
        }
        if self.keys_state == KeysState::Current && !said.seen.is_too_many_early() {
            return DeliverySite::NoSite;
        }
        let hash = self.rules.hasher.hash(&entry.key.name);
        let now = self.rules.resolve_entry(entry.key.kind, hash, &entry.key.name);
        let by_address =
            matches!(now.site, Some(SiteReason::Address(..) | SiteReason::Refused(..)));
        if by_address && now.cap.learning == Learning::On {
            DeliverySite::NotYetCounted
        } else {
            DeliverySite::NoSite
        }
    }

    /// How many deliveries of a domain run beside the one whose slot is not free yet. It goes through all held commands
    /// of the key, so it is for failures only.
    pub(super) fn running_of(&self, domain: u32) -> u32 {
        let Domain { key, slots, .. } = self.keys.all[domain as usize].domain;
        let mut held = 0;
        let mut at = self.key(key).held_slots.first;
        while at != NONE {
            let Slot { domain: of, of_key, .. } = self.slots[at as usize];
            held += u32::from(of == domain);
            at = of_key.next;
        }
        slots.saturating_sub(held + 1)
    }

    /// Learns for a domain of a site from a report with an address of the site: an answer ends the failures that the
    /// domain has met alone.
    pub(super) fn learn_for_domain(&mut self, domain: u32, ended: EndedDelivery) {
        let entry = &mut self.keys.all[domain as usize];
        // Its slot is not free yet. Held commands count as well: to count them apart at each delivery takes too long.
        let running = entry.domain.slots.saturating_sub(1);
        entry.key.learned.delivery_ended(
            &EndedDelivery { running, beside: running, coverage: Coverage::AllDeliveries, ..ended },
            &mut self.random,
        );
    }

    /// A site's server has taken mail for a domain that does not count under the site yet. This shows to the site's
    /// keys that the server takes mail.
    pub(super) fn note_accepted_at_site(&mut self, domain: u32, ended: EndedDelivery) {
        let Key { kind, ref name, .. } = self.keys.all[domain as usize].key;
        let site = self.rules.resolve_entry(kind, self.rules.hasher.hash(name), name);
        let name_hash = self.rules.hasher.hash(site.name);
        let of = self.keys.all[domain as usize].domain.key;
        for kind in [KeyKind::Group, KeyKind::Candidates] {
            let Some(at) = self.keys.find(Keys::hash(kind, name_hash)).filter(|&at| at != of)
            else {
                continue;
            };
            let key = &mut self.keys.all[at as usize].key;
            let (running, limit) = (key.running, most(key.cap.limit));
            let ended = EndedDelivery { running, limit, learning: key.cap.learning, ..ended };
            key.learned.delivery_ended(&ended, &mut self.random);
            self.make_ready(at);
            self.queue_for_room(at);
        }
    }
}
