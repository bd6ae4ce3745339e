//! What a key learns of its server: how many deliveries it takes at once, and whether it answers at all.
//!
//! The configured limit is the ceiling; the learned limit, the *level*, lies in 1..=limit. The caller passes the time.
//!
//! **A refusal** is a reply that there are too many deliveries or that they come too fast, a connection that failed,
//! or one that broke. A refusal is an *objection* if the cause is the number of deliveries that ran. This module
//! decides whether it is:
//!
//! - [`evidence`]: is it an objection, or chance, or a server that refuses whatever the number is?
//! - [`level`]: how the limit goes down after an objection, and up again.
//! - [`suspension`]: pauses, when nothing gets through or the server has closed its socket.
//! - [`fixed`]: what a limit that does not learn does instead.
//!
//! **What does not count as an attempt.** The delivery was refused before the message was sent, or did not connect, or
//! was cut off within a minute with nothing sent; and other deliveries of the key run, or one was accepted within the
//! last minute. That is [`Attempt::DoesNotCount`]. When nothing succeeds, the key is down to one place after the first
//! such round, and from then on each refusal counts. No mail goes back more than three times between two attempts
//! ([`crate::core::returns`]), so mail that a server refuses with 421 because of its sender ages as well. Where the
//! server may have the message, the delivery always counts.
//!
//! **Young sites.** A site that was found by addresses ([`crate::control::site`]) begins with refusals: the deliveries
//! that its server took instead are to domains that are not known to go there yet, and say nothing before they end. So
//! at such a site the first refusal of a delivery that was alone begins a pause and does not count
//! ([`Attempt::RefusedAtYoungSite`]), until the server has answered anything else or has been suspended five times. An
//! acceptance for a domain that does not count there yet ends the pause, too.
//!
//! **This machine.** If connections to many keys fail together, the servers are not the cause: see
//! [`crate::core::shortage`].
//!
//! **Guarantees.** With a server that takes 1..=200 deliveries, a configured limit of 20 to 200, 0.05 to 60 s for a
//! delivery and refusals that take less than a quarter of that, the learned limit is within one of the server's own
//! after five service times. When the server stops objecting, the configured limit is in force again after at most 65 +
//! 1.3 for each place, in service times of a key that has enough mail. A suspended server that comes back is noticed
//! after 300 s at most. gate/tests/learning.rs and gate/tests/servers.rs check this; docs/measurements.md has figures.
//!
//! **Limitations.** When deliveries of equal length end in step, a server that counts sessions for some time after
//! their end has room for half as many. With many places each waits no longer than one of them is worth; such a key
//! gets half. A server's limit per minute is not learned: the level rises until the server refuses, and pauses begin.

#![forbid(unsafe_code)]

mod evidence;
mod fixed;
mod level;
mod suspension;

pub use crate::control::limit::Learning;
use crate::core::linger::Linger;
use crate::report::{DeliveryVerdict, Sent};
use crate::util::random::Random;

/// A delivery that starts within this time after another one of its key was accepted is taken to have its place: if
/// the server refuses it, the server may still count the one that has ended. In microseconds. Well
/// above the 2 to 10 ms for which Exim and sendmail were seen to count a session after its end (docs/measurements.md).
pub const HANDOVER_US: u64 = 200_000;
/// How often a fixed limit that is held down is checked while mail waits for it, in microseconds.
const HELD_DOWN_LOOK_US: u64 = 50_000;
/// This many deliveries in a row, each alone, must fail before the key is suspended.
pub const FAILURES: u8 = 3;
/// The first pause lasts half of this to all of it, in microseconds; each further one twice as long.
pub const PAUSE_MIN_US: u64 = 2_000_000;
/// A delivery that is refused alone at its sender or recipient may be refused because of its own mail. So after the
/// first pause this many are tried, one at a time, before the next pause; after each further pause four times as many,
/// up to [`ENVELOPES_MAX`].
pub const ENVELOPES: u8 = 4;
/// See [`ENVELOPES`].
pub const ENVELOPES_MAX: u8 = 64;
/// The longest pause lasts half of this to all of it, in microseconds.
pub const PAUSE_MAX_US: u64 = 300_000_000;
/// A refusal does not count as an attempt if a delivery was accepted within this time, or if others were still running
/// (or at a young site). In microseconds.
pub const RECENT_US: u64 = 60_000_000;
/// A site is young until its server has answered anything but a refusal, or it has been suspended this many times: 31 s
/// at least, 62 s at most.
pub const YOUNG_PAUSES: u8 = 5;
/// The level that the server refused is tried again after this many cohorts; twice as many each time that the server
/// refuses there again, up to [`PROBE_COHORTS_MAX`].
pub const PROBE_COHORTS: u16 = 4;
/// See [`PROBE_COHORTS`].
pub const PROBE_COHORTS_MAX: u16 = 64;
/// The level that the server refused is tried again after this time as well, and one cohort. In microseconds.
pub const PROBE_US: u64 = 300_000_000;
/// A server that closes its socket when its last place is taken is asked for that place again after this many times
/// [`PROBE_US`]; twice as many each time that it does so again, up to [`CLOSING_PROBES_MAX`].
pub const CLOSING_PROBES: u64 = 2;
/// See [`CLOSING_PROBES`].
pub const CLOSING_PROBES_MAX: u64 = 16;
/// The first pauses of a server that accepted a delivery within [`RECENT_US`] and takes no connection now, in
/// microseconds. Together they end 16.4 to 17.5 s after the last session. So mail that may go back
/// [`crate::core::returns::RETURNS_MAX`] times outlasts the 15 s for which sendmail closes its socket; they are 16 s if
/// its clock has just begun a second when it closes.
pub const CLOSED_PAUSES_US: [u64; 2] = [3_000_000, 14_500_000];
/// A connection that breaks later than this, in microseconds, was not refused for being one too many: the delivery was
/// an attempt.
pub const AT_ONCE_US: u64 = 60_000_000;
/// From this share of refusals on, whatever the number of deliveries, each refusal counts as an attempt: the next one
/// would be the same. An assumption, not measured.
const BACKGROUND_ATTEMPT_SHARE: f32 = 0.125;
/// But not before this many answers since the background was noticed, which may have been a mistake.
const BACKGROUND_ANSWERS_MIN: u8 = 20;

/// No limit has been learned.
const NO_LEVEL: u16 = u16::MAX;

/// What is known of the server behind a key.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Learned {
    /// When a delivery that started after the last cut made the limit go down.
    cut_us: u64,
    /// When the server last accepted a delivery, plus one; 0: never.
    accepted_us: u64,
    /// Nothing starts before this time; 0: not suspended since the last answer.
    suspended_us: u64,
    /// When the first of the refusals in a row came. Deliveries that started before are not part of them.
    failures_since_us: u64,
    /// When `proven_level` was reached.
    proven_us: u64,
    /// When the limit first went down from `level_before_cut`; 0: it has not.
    first_cut_us: u64,
    /// Refusals beyond what chance or the background explains.
    score: f32,
    /// The share that the server refuses whatever the number of deliveries is; 0: none that matters.
    background: f32,
    /// Refusals below the level that was refused, of the deliveries that started since `first_cut_us`; older ones
    /// weigh less.
    refused_below: f32,
    /// Acceptances among the same deliveries.
    accepted_below: f32,
    /// The learned limit, or [`NO_LEVEL`].
    level: u16,
    /// The lowest level that was refused, or 0.
    wall: u16,
    /// The highest level at which a whole cohort was accepted since the last refusal at or below it.
    proven_level: u16,
    /// Deliveries accepted at this level, of the cohort that is not complete.
    accepted: u16,
    /// Cohorts completed below the wall.
    cohorts: u16,
    /// Cohorts until the wall is tried.
    cohorts_to_wait: u16,
    /// The level to go back to if it turns out that it was not the cause.
    level_before_cut: u16,
    /// The level after the first refusals.
    level_after_cut: u16,
    /// How many deliveries ran when the first of the refusals in a row came, and were accepted.
    taken_at_closing: u16,
    /// Refusals in a row.
    failures: u8,
    /// Pauses in a row.
    pauses: u8,
    /// Deliveries refused at the envelope, alone, since the last pause.
    envelopes: u8,
    /// How often the socket was closed for a while after the wall had been reached.
    closings: u8,
    /// How often there were more refusals than the background explained.
    doubts: u8,
    /// Answers since the background was noticed, up to [`BACKGROUND_ANSWERS_MIN`].
    answers_with_background: u8,
    /// Whether the server has ever answered anything but that there are too many.
    has_answered: bool,
    /// Whether the level has been reached from below, and less than a quarter of a cohort accepted since.
    level_age: LevelAge,
    /// Whether `taken_at_closing` is counted as deliveries end. Otherwise it was known, from a level that was reached
    /// step by step.
    counts_taken: bool,
    /// Whether the level was a new one when the refusals in a row began.
    was_new_level: bool,
    /// The most that the server had taken when it closed its socket; 0: it has not.
    closed_at: u16,
    /// How often it has closed it at a lower level since: at a handover.
    handover_closings: u8,
    /// Places that have just become free.
    linger: Linger,
    /// The highest level at which refusals were taken to be about handovers; 0: there were none.
    handover_level: u16,
    /// How long accepted deliveries took: the mean of about the last eight, in microseconds.
    mean_accepted_us: u32,
}

/// Whether the level is new, as `Learned::level_age` says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum LevelAge {
    New,
    Known,
}

/// What a refusal says of the number of deliveries that run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum RefusalMeaning {
    /// There are too many.
    Objection,
    /// Nothing yet.
    Chance,
    /// Nothing: the server refuses as many when fewer run.
    Background,
}

/// A delivery that ended.
#[derive(Clone, Copy, Debug)]
pub struct EndedDelivery {
    /// Now, in microseconds.
    pub now_us: u64,
    /// When it started, in microseconds.
    pub started_us: u64,
    /// How many of the key still run, without it.
    pub running: u32,
    /// How many of the key were running when it started, without it.
    pub beside: u32,
    /// The configured limit; the number of slots if there is none.
    pub limit: u32,
    /// Whether the key learns.
    pub learning: Learning,
    /// What its report says of the server.
    pub seen: DeliveryVerdict,
    /// How many of the deliveries to its server the key counts.
    pub coverage: Coverage,
    /// In which place it started.
    pub started_in: StartedIn,
}

/// In which place a delivery started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StartedIn {
    /// In the place of one that ended within [`HANDOVER_US`], as far as is known.
    JustFreedPlace,
    /// In a place that was free for longer.
    FreePlace,
}

/// Whether a key counts all deliveries to its server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Coverage {
    /// All, as far as is known.
    AllDeliveries,
    /// Those to domains that are known to go there: the key is a site, found by addresses.
    KnownDomains,
}

/// Whether a delivery counts as an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attempt {
    /// Yes: its report goes to qmail-send.
    Counts,
    /// No: as far as is known, it was refused only because too many were running. The mail may go back as busy, if
    /// [`Returns::may_return`](crate::core::returns::Returns::may_return) agrees.
    DoesNotCount,
    /// No: it was refused at a young site. The mail goes back as busy. That happens [`YOUNG_PAUSES`] times at most, and
    /// to deliveries that were under way when a pause began.
    RefusedAtYoungSite,
}

/// Whether one more delivery may start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admission {
    /// Yes.
    Start,
    /// When a place becomes free.
    Wait,
    /// Not before this time, in microseconds: nothing gets through to the server. If the time lies further away than
    /// a hold may last, mail should go back as an ordinary deferral, so that it ages and bounces, as it does from
    /// qmail-remote's own table of time-outs (tcpto).
    Suspended(u64),
    /// Not before this time, in microseconds: the server may still count a delivery that has just ended
    /// ([`crate::core::linger`]), or it has refused one beside as many as run. It may be later if more end until then.
    Later(u64),
}

impl Default for Learned {
    fn default() -> Self {
        Self::NEW
    }
}

impl Learned {
    /// Nothing is known: the configured limit is in force.
    pub const NEW: Self = Self {
        cut_us: 0,
        accepted_us: 0,
        suspended_us: 0,
        failures_since_us: 0,
        proven_us: 0,
        first_cut_us: 0,
        score: 0.0,
        background: 0.0,
        refused_below: 0.0,
        accepted_below: 0.0,
        level: NO_LEVEL,
        wall: 0,
        proven_level: 0,
        accepted: 0,
        cohorts: 0,
        cohorts_to_wait: PROBE_COHORTS,
        level_before_cut: NO_LEVEL,
        level_after_cut: 0,
        taken_at_closing: 0,
        failures: 0,
        pauses: 0,
        envelopes: 0,
        closings: 0,
        doubts: 0,
        answers_with_background: 0,
        has_answered: false,
        level_age: LevelAge::New,
        counts_taken: false,
        was_new_level: false,
        closed_at: 0,
        handover_closings: 0,
        linger: Linger::NONE,
        handover_level: 0,
        mean_accepted_us: 0,
    };

    /// The limit with what was learned: 1..=`limit`, or 0 if that is 0.
    #[inline]
    #[must_use]
    pub fn effective(&self, limit: u32, learning: Learning) -> u32 {
        if self.level == NO_LEVEL || learning == Learning::Fixed {
            return limit;
        }
        limit.min(u32::from(self.level))
    }

    /// How many may run now. With a fixed limit this may be less than is shown, for a while.
    #[inline]
    #[must_use]
    pub fn most(&self, now_us: u64, limit: u32, learning: Learning) -> u32 {
        match learning {
            Learning::On => self.effective(limit, learning),
            // As many as ran beside the last delivery that was refused.
            Learning::Fixed if now_us < self.cut_us => limit.min(u32::from(self.level)),
            Learning::Fixed => limit,
        }
    }

    /// Whether one more may start beside `running`.
    #[inline]
    #[must_use]
    pub fn may_start(
        &self,
        now_us: u64,
        running: u32,
        limit: u32,
        learning: Learning,
    ) -> Admission {
        if let Some(until_us) = self.suspended_until(now_us) {
            return Admission::Suspended(until_us);
        }
        let most = self.most(now_us, limit, learning);
        if running >= most {
            return if running < limit && learning == Learning::Fixed {
                // A place may become free sooner, so the key is checked again before the end.
                Admission::Later(self.cut_us.min(now_us.saturating_add(HELD_DOWN_LOOK_US)))
            } else {
                Admission::Wait
            };
        }
        match self.linger.until(now_us) {
            Some(until_us) if running.saturating_add(self.linger.places(now_us)) >= most => {
                Admission::Later(until_us)
            }
            _ => Admission::Start,
        }
    }

    /// In which place a delivery starts that starts now.
    #[inline]
    #[must_use]
    pub fn started_in(&self, now_us: u64) -> StartedIn {
        if self.has_accepted(now_us, HANDOVER_US) {
            StartedIn::JustFreedPlace
        } else {
            StartedIn::FreePlace
        }
    }

    /// Whether the server accepted a delivery within this time.
    #[must_use]
    pub fn has_accepted(&self, now_us: u64, within_us: u64) -> bool {
        self.accepted_us > 0 && now_us.saturating_sub(self.accepted_us - 1) <= within_us
    }

    /// The end of the suspension, if the key is suspended.
    #[inline]
    #[must_use]
    pub fn suspended_until(&self, now_us: u64) -> Option<u64> {
        (self.suspended_us > now_us).then_some(self.suspended_us)
    }

    /// When the server last objected to the number of deliveries; None: never, or it no longer matters.
    #[must_use]
    pub fn objected_us(&self) -> Option<u64> {
        (self.level != NO_LEVEL).then_some(self.cut_us)
    }

    /// Learns from a delivery that ended, and says whether it counts as an attempt.
    pub fn delivery_ended(&mut self, ended: &EndedDelivery, random: &mut Random) -> Attempt {
        self.linger.clock(ended.now_us);
        if !matches!(ended.seen, DeliveryVerdict::ConnectFailed | DeliveryVerdict::Nothing)
            && !self.is_early(ended)
        {
            self.linger.ended(ended.now_us);
        }
        if ended.learning == Learning::Fixed {
            return self.delivery_ended_fixed(ended, random);
        }
        match ended.seen {
            DeliveryVerdict::Accepted => self.note_acceptance(ended),
            DeliveryVerdict::TooMany(_)
            | DeliveryVerdict::ConnectFailed
            | DeliveryVerdict::Died(_) => {
                return self.note_refusal(ended, random);
            }
            DeliveryVerdict::Deferred | DeliveryVerdict::Failed => self.note_answer(ended),
            DeliveryVerdict::Nothing => {}
        }
        Attempt::Counts
    }

    /// Notes that a delivery of a key with a fixed limit was accepted. False if there is more to do: then call
    /// [`Learned::delivery_ended`].
    #[inline]
    pub fn note_routine_success(&mut self, now_us: u64) -> bool {
        let is_routine = self.failures == 0
            && self.level == NO_LEVEL
            && self.first_cut_us == 0
            && self.proven_level == 0
            && self.linger.is_none();
        if is_routine {
            self.accepted_us = now_us.saturating_add(1);
        }
        is_routine
    }

    /// Whether the delivery was refused before it cost the server or the mail anything.
    fn is_early(&self, ended: &EndedDelivery) -> bool {
        match ended.seen {
            DeliveryVerdict::ConnectFailed => true,
            DeliveryVerdict::Died(Sent::No) => {
                ended.now_us.saturating_sub(ended.started_us) < AT_ONCE_US
            }
            seen => seen.is_too_many_early(),
        }
    }

    fn has_accepted_recently(&self, now_us: u64) -> bool {
        self.has_accepted(now_us, RECENT_US)
    }

    fn note_refusal(&mut self, ended: &EndedDelivery, random: &mut Random) -> Attempt {
        let recently = self.has_accepted_recently(ended.now_us);
        let others = ended.running > 0;
        // The deliveries that the server took instead may be to domains that are not known to go there yet, and say
        // nothing before they end.
        let is_young = ended.coverage == Coverage::KnownDomains
            && ended.seen.is_too_many_early()
            && !self.has_answered
            && self.pauses < YOUNG_PAUSES;
        let known = self.proven_level.max(self.level_after_cut);
        let weighed = self.weigh_refusal(ended);
        if weighed == RefusalMeaning::Background
            && self.background >= BACKGROUND_ATTEMPT_SHARE
            && self.answers_with_background >= BACKGROUND_ANSWERS_MIN
        {
            return Attempt::Counts;
        }
        if weighed != RefusalMeaning::Background {
            self.count_failure(ended);
            // A delivery that was alone was not one of too many, unless the server says so.
            if weighed == RefusalMeaning::Objection
                && (others || matches!(ended.seen, DeliveryVerdict::TooMany(_)))
            {
                let was_handover = self.is_handover_refusal(ended, known);
                self.lower_level(ended);
                if was_handover {
                    // Places wait longer now, so the level may be right: it is tried again soon.
                    self.cohorts_to_wait = 1;
                    // The server still counts the delivery whose place this one had.
                    self.linger.ended(ended.now_us);
                }
            }
            if !others {
                self.note_failure(ended, if is_young { 1 } else { FAILURES }, random);
            }
        }
        if self.is_early(ended) && (others || recently) {
            Attempt::DoesNotCount
        } else if is_young {
            Attempt::RefusedAtYoungSite
        } else {
            Attempt::Counts
        }
    }

    /// How many deliveries the server takes beside one that was refused: those that run, and those that may start when
    /// places no longer wait.
    fn accepted_beside(&self, ended: &EndedDelivery) -> u16 {
        let waiting = self.linger.places(ended.now_us);
        ended.running.saturating_add(waiting).min(u32::from(NO_LEVEL - 1)) as u16
    }
}
