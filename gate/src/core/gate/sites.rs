//! A site's domains: which part of its places each may have, and what their reports say of it.

#![forbid(unsafe_code)]

use super::{Gate, KeysState, NONE};
use crate::control::limit::{Learning, Limit};
use crate::control::site::{Evidence, SiteReason, Standing};
use crate::core::key::{Key, most};
use crate::core::keys::{Domain, Keys};
use crate::core::learn::{Admission, Coverage, EndedDelivery};
use crate::core::rules::KeyKind;
use crate::core::slots::Slot;
use crate::report::{self, Report};

/// Which site a domain that a report came from belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum DeliverySite {
    /// None that matters.
    NoSite,
    /// One under which it counts, but the delivery was at an address that is not of it.
    OtherAddress,
    /// One under which it counts, but the delivery was at no address: it says something of the domain alone.
    NoAddress,
    /// One under which it counts.
    Own,
    /// One that learns, and under which it counts as soon as the keys are made anew.
    NotYetCounted,
}

/// Domains that have been seen at another site come under its key so soon, in microseconds for each key. Not at once:
/// all keys are made anew for that, which takes less than a fiftieth of this (benches/gate.rs).
const APPLY_SITES_US_PER_KEY: u64 = 20;

/// And for so many slots as much as for one key.
const SLOTS_PER_KEY: usize = 8;

impl Gate {
    /// How many slots, running and held, a domain may have that counts under a site by its address. A member has three
    /// quarters of the members' places, so that one domain whose server hangs leaves some to the others (a line of its
    /// own takes the domain out of this). A candidate has one, until the site has taken its mail. Other domains have
    /// all.
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

    /// Why no more of a site's domain may start though the site has room: the domain has its part, or it is suspended
    /// because no connection to it succeeds. None: it may.
    pub(super) fn domain_waits(&self, domain: u32, now_us: u64) -> Option<Admission> {
        let entry = &self.keys.all[domain as usize];
        entry.domain.standing?;
        if let Some(until_us) = entry.key.suspended_until(now_us) {
            return Some(Admission::Suspended(until_us));
        }
        (entry.domain.slots >= self.domain_share(domain)).then_some(Admission::Wait)
    }

    /// The other key of a site: of its members that of its candidates, and the other way round; if it has deliveries or
    /// is remembered.
    pub(super) fn partner(&self, at: u32) -> Option<u32> {
        let entry = &self.keys.all[at as usize];
        let kind = match entry.key.kind {
            KeyKind::Candidates => KeyKind::Group,
            KeyKind::Group if self.rules.looks_at_addresses() => KeyKind::Candidates,
            _ => return None,
        };
        self.keys.find(Keys::same_name(entry, kind))
    }

    /// How many of this key may run beside the other key of its site. There is no such limit for a key without another
    /// one, nor for a site's members: candidates take none of their places. Candidates have the places that the members
    /// leave while no member waits. They always have a quarter as many as the site has, or one, so that they become
    /// members however busy it is.
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

    /// A site's member has ended: its candidates may have room.
    pub(super) fn queue_candidates_for_room(&mut self, at: u32) {
        if self.key(at).kind == KeyKind::Group
            && let Some(candidates) = self.partner(at)
        {
            self.queue_for_room(candidates);
        }
    }

    /// Microseconds until the keys may be made anew for sites.
    pub(super) fn us_until_sites_apply(&self, now_us: u64) -> u64 {
        let keys = self.keys.all.len() + self.slots.len() / SLOTS_PER_KEY;
        let since_us = now_us.max(self.now_us).saturating_sub(self.sites_applied_us);
        (keys as u64 * APPLY_SITES_US_PER_KEY).saturating_sub(since_us)
    }

    /// The address that a delivery was connected to may say to which site its next hop belongs.
    pub(super) fn note_site(&mut self, domain: u32, said: &Report) -> DeliverySite {
        let evidence = match said.seen {
            report::Seen::Accepted => Evidence::Took,
            _ => Evidence::Answered,
        };
        let Key { kind, ref name, .. } = self.keys.all[domain as usize].key;
        // Without memory it is not known.
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
                    report::Seen::TooMany(_)
                    | report::Seen::ConnectFailed
                    | report::Seen::Died(_) => DeliverySite::NoAddress,
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
        // Its slot is not free yet. What is held counts as well: to look for it takes too long at each delivery.
        let running = entry.domain.slots.saturating_sub(1);
        entry.key.learned.end(
            &EndedDelivery { running, beside: running, coverage: Coverage::AllDeliveries, ..ended },
            &mut self.random,
        );
    }

    /// What the server took from a domain that does not count under its site yet says of the site, and of its
    /// candidates, that it takes mail.
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
            key.learned.end(&ended, &mut self.random);
            self.make_ready(at);
            self.queue_for_room(at);
        }
    }
}
