//! What a key learns of its server: how many it takes at once, and whether it is there at all. The configured limit is
//! the ceiling; what is learned lies in 1..=limit. Time comes in, as everywhere. docs/measurements.md has the figures.
//!
//! **A refusal** is a reply that there are too many or they come too fast, a connection that failed, or one that broke.
//! It is an objection if it is about how many were running. The question of this module is whether it is.
//!
//! **Down.** The first refusal at a level that is not known to work is believed. Then the limit becomes what still runs
//! without it. A server with ten places to which twenty are started refuses ten; as their reports come in, one place is
//! taken away for each of them and none is filled again, so what is left is what it accepted. Deliveries that were
//! started before the first of these reports belong to the same objection. They take away the place that they had, no
//! more; nothing is halved.
//!
//! **Up.** By one, once as many have been accepted as the limit is, and only those count that ended while all places
//! were taken (as RFC 7661 has it for TCP): a server that was not asked for more has not said that it would take more.
//!
//! **The wall.** The level at which it was refused is remembered, as TCP CUBIC (RFC 9438) remembers its last maximum:
//! below it the limit grows as ever, but the wall itself is tried only after 4 cohorts, then 8, 16, 32 and 64 if it
//! holds, or after five minutes and one cohort. That is for refusals that come at once when a level has been reached.
//! One that comes later is rather a chance or a server with other cares: one place less, until the next cohort.
//!
//! **Chance.** At a level that has been accepted, a single refusal changes nothing. Refusals are added up, and each
//! answer of another kind takes away twice what chance would make of it (the CUSUM test of E. S. Page, "Continuous
//! Inspection Schemes", Biometrika 41, 1954). Four more than that are an objection. A server that has become less
//! generous refuses four in a row at once. A server that refuses slowly has accepted a level only after four times as
//! long as a refusal takes.
//!
//! **The background.** Some servers refuse however few there are: a milter that is down, greylisting in words that are
//! listed for a limit, one bad machine of several. What is refused at a level, and in at least half of the same part
//! further below, is not about the level. So below what was left of the limit after the first objection, refusals and
//! acceptances of what started since are counted. Three refusals there, with two accepted among them, and the limit
//! goes back to where it was. From then on refusals are weighed against that part of all, as against chance before, and
//! it follows what is refused. Where the part is an eighth or more each refusal is a try: it would be the same when it
//! comes again. If many more are refused after all, the limit falls as at first, and it takes twice the evidence the
//! next time.
//!
//! A server that refuses everything is something else: then there is nothing accepted among the refusals.
//!
//! **Suspended.** An objection to a delivery that was alone is a failure. After three in a row, with no answer of any
//! other kind between, nothing is started for 1 to 2 s; then one delivery at a time, each failure doubling the pause up
//! to 150 to 300 s. Drawn at random from the upper half, so that keys that fail together do not come back together. Any
//! answer ends it, greylisting and a refusal for good as well; the limit begins at one. A refusal at the sender or the
//! recipient may be about the mail alone, and the next one be accepted. So after such a pause not one is tried, but
//! four, then 16 and 64. Mail that is asked for during a pause must not be sent away as busy for ever: what
//! [`Admission::Suspended`] says lies further away than the hold may last should go back as an ordinary deferral, as it does
//! from qmail-remote's own table of time-outs (tcpto), so that it ages and bounces.
//!
//! **A handover.** A server that counts a session for some time after its end refuses the next one, though no more run
//! than it takes. So an objection at a level that it has accepted, to a delivery that took the place of one that had
//! just ended, also makes places wait ([`crate::core::linger`]), for less than one place is worth, and the level is
//! tried again after one cohort.
//!
//! **A socket that is closed.** sendmail with MaxDaemonChildren closes its listening socket when the last place is
//! taken, until 15 s after places are free again; xinetd does so for 10 s. Nobody can connect then, though mail was
//! taken just before. The pauses are 3 and 14.5 s there, long enough that no mail uses up its three returns. How many
//! ran when it began and were accepted is the wall, and it survives the suspension. When it is open again, the limit is
//! one below at once, and each place waits for a sixteenth of a delivery's length. The wall is tried again after ten
//! minutes, then 20, 40 and 80, for each time costs all places for 20 s. If the socket closes below that level, it was
//! at a handover: places wait for twice as long, and the limit is halved for a while.
//!
//! **A fixed limit** stays what it is. But it has the same pauses at a closed socket, and places wait after a refusal
//! at a handover. After any other refusal beside others no more are started than ran beside it, for 4 s, then 8, up to
//! 64.
//!
//! **Not a try.** Refused before the message was sent, not connected, or cut off within a minute with nothing sent,
//! while others of the key run or have been accepted within the last minute: [`Attempt::DoesNotCount`]. A key at which nothing
//! succeeds is down to one place after the first such round, and from then on each of its refusals is a try. And no
//! mail goes back more than three times between two tries ([`Returns`]): what a server refuses with 421 because of its
//! sender ages, too. Where the server may have the message, it is always a try.
//!
//! **Young.** A site that was found by addresses ([`crate::control::site`]) begins with refusals: whom its server took
//! instead is of domains that are not known to go there yet, and says nothing before it is done. So there the first
//! refusal of a delivery that was alone begins a pause, and is no try ([`Attempt::RefusedAtYoungSite`]), until the server has answered
//! anything else or has been suspended five times. What it accepts from a domain that does not count there yet ends the
//! pause, too.
//!
//! **This machine.** When connections to many keys fail together it is not the servers: see [`crate::core::shortage`].
//!
//! **Stated.** With caps of 1..=200, 20 to 200 configured, 0.05 to 60 s a delivery and refusals that take less than a
//! quarter of that, the limit is within one of the cap from five service times on. When the objection ends, the
//! configured limit counts again after at most 65 + 1.3 for each place, in service times of a key that has enough mail.
//! A server that is suspended is seen to be back after 300 s at most.
//!
//! **What it costs.** Where deliveries of equal length are handed over in step, a server that counts sessions for some
//! time after their end has room for half as many. Of many places, each waits no longer than one of them is worth: such
//! a key gets half. What a server allows a minute, whatever their number at once, is not learned: the limit rises until
//! it is refused, and pauses begin.

#![forbid(unsafe_code)]

pub use crate::control::limit::Learning;
use crate::core::linger::{LINGER_MAX_CLOSED_US, LINGER_MAX_US, LINGER_MIN_US, Linger};
use crate::report::{Seen, Sent};
use crate::util::random::Random;

/// What starts so soon after another one of its key was accepted takes its place, as far as anybody knows: if it is
/// refused, the server may still count the one that has ended. In microseconds.
pub const HANDOVER_US: u64 = 200_000;
/// A server that closes its socket at its limit gets a place that has become free only after this part of a delivery's
/// length, but after [`LINGER_MIN_US`] at least, and [`HANDOVER_US`] at most: a place that is asked for too soon would
/// cost 15 s.
const CLOSED_LINGER_PART: u64 = 16;
/// What places wait for becomes less by this part with each cohort that is accepted.
const COHORTS_TO_FADE: u32 = 256;
/// A fixed limit that is held down is looked at so often, in microseconds, while mail waits for it.
const HELD_DOWN_LOOK_US: u64 = 50_000;
/// So often a closed socket is taken for one of a handover, and the limit halved for a while.
const CLOSES_MAX: u8 = 4;

/// So many deliveries in a row, each alone, must find nothing that works before the key is suspended.
pub const FAILURES: u8 = 3;
/// The first pause lasts half of this to all of it; each further one twice as long.
pub const PAUSE_MIN_US: u64 = 2_000_000;
/// What is refused alone at its sender or recipient may be refused for itself. So after the first pause so many are
/// tried before the next one, one at a time; after each further pause four times as many, up to [`ENVELOPES_MAX`].
pub const ENVELOPES: u8 = 4;
/// See [`ENVELOPES`].
pub const ENVELOPES_MAX: u8 = 64;
/// The longest pause lasts half of this to all of it.
pub const PAUSE_MAX_US: u64 = 300_000_000;
/// A refusal is not a try if something was accepted within this time, or if others were still running. (Or at a young
/// site.)
pub const RECENT_US: u64 = 60_000_000;
/// A site is young until its server has answered anything else, or it has been suspended so often: for 31 s at least,
/// and 62 s at most.
pub const YOUNG_PAUSES: u8 = 5;
/// The level at which the server refused is tried again after so many cohorts; twice as many each time that it refuses
/// there again, up to the second figure.
pub const PROBE_COHORTS: u16 = 4;
/// See [`PROBE_COHORTS`].
pub const PROBE_COHORTS_MAX: u16 = 64;
/// Or after this time, and one cohort.
pub const PROBE_US: u64 = 300_000_000;

/// A server that lets nobody connect for a while after its last place was taken is asked for that place again after so
/// many times [`PROBE_US`]; twice as many each time that it does so again, up to the second figure.
pub const CLOSING_PROBES: u64 = 2;
/// See [`CLOSING_PROBES`].
pub const CLOSING_PROBES_MAX: u64 = 16;
/// The first pauses after which a server is tried that let itself be connected to within [`RECENT_US`]. Together 16.4
/// to 17.5 s after the last session: so a mail which may go back [`RETURNS_MAX`] times outlasts the 15 s for which
/// sendmail closes its socket, which are 16 if its clock has just begun a second when it closes.
pub const CLOSED_PAUSES_US: [u64; 2] = [3_000_000, 14_500_000];
/// They are shorter by this part at most.
const CLOSED_PAUSES_SPREAD: u64 = 16;
/// A connection that breaks later than this was not refused for being one too many: the mail has been tried.
pub const AT_ONCE_US: u64 = 60_000_000;

/// So many refusals more than chance explains, at a level that has been accepted, are an objection.
const OBJECTION: f32 = 4.0;
/// But not at a level that was accepted no longer ago than so many times what the refusal took.
const SLOW: u64 = 4;
/// The part of refusals that is taken for chance before anything is known.
const CHANCE: f32 = 0.02;
/// Refusals are weighed against this many times the part that is expected.
const WEIGHT: f32 = 2.0;
/// So many refusals below a level that was refused say that the level does not matter.
const BELOW: f32 = 3.0;
/// With so many accepted among them.
const BELOW_ACCEPTED: f32 = 2.0;
/// And if their share is at least this part of the share that was refused at first.
const BELOW_PART: f32 = 0.5;
/// These counts are of about the last so many deliveries.
const BELOW_DELIVERIES: f32 = 64.0;
/// The background is the mean of about the last so many deliveries.
const BACKGROUND_DELIVERIES: f32 = 128.0;
const BACKGROUND_MIN: f32 = 0.02;
const BACKGROUND_MAX: f32 = 0.9;
/// Where a greater part is refused, whatever the number, each refusal is a try.
const BACKGROUND_TRIES: f32 = 0.125;
/// But not before so many answers have come since the background was noticed: that may have been a mistake.
const BACKGROUND_TESTED: u8 = 20;
/// How often the required evidence for a background is doubled when it has been wrong.
const DOUBTS_MAX: u8 = 3;

/// No limit has been learned.
const FREE: u16 = u16::MAX;

/// What is known of the server behind a key.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Learned {
    /// When the limit went down the last time because of a delivery that started later than the time before.
    cut_us: u64,
    /// When it accepted something the last time, plus one; 0: never.
    accepted_us: u64,
    /// Until when nothing starts; 0: not suspended since the last answer.
    suspended_us: u64,
    /// When the first of the refusals in a row came; what started before has nothing to do with it.
    run_us: u64,
    /// When `proved` was reached.
    proved_us: u64,
    /// When the limit went down first since it was what is in `top`; 0: it is.
    trial_us: u64,
    /// Refusals beyond what chance or the background explains.
    score: f32,
    /// The part that is refused however few are running; 0: none that matters.
    background: f32,
    /// Refused below the level that was refused, of the deliveries that started since `trial_us`; older ones count
    /// less.
    below: f32,
    /// And accepted.
    below_accepted: f32,
    /// The effective limit, or [`FREE`].
    level: u16,
    /// The lowest level that was refused, or 0.
    wall: u16,
    /// The highest level at which a whole cohort was accepted since the last refusal at or below it.
    proved: u16,
    /// Accepted at this level, of the cohort that is not complete.
    accepted: u16,
    /// Cohorts completed below the wall.
    cohorts: u16,
    /// Cohorts until the wall is tried.
    wait: u16,
    /// The level to go back to when it turns out that it did not matter.
    top: u16,
    /// What was left of it after the first refusals.
    left: u16,
    /// How many ran when the first of the refusals in a row came, and were accepted.
    closers: u16,
    /// Refusals in a row.
    failures: u8,
    /// Pauses in a row.
    pauses: u8,
    /// Refused at the envelope, alone, since the last pause.
    envelopes: u8,
    /// How often nobody could connect for a while after the wall had been reached.
    closings: u8,
    /// How often there were more refusals than the background explained.
    doubts: u8,
    /// Answers since the background was noticed, up to [`BACKGROUND_TESTED`].
    tested: u8,
    /// Whether the server has ever answered anything but that there are too many.
    has_answered: bool,
    /// Whether the level has been reached from below, and not a quarter of a cohort accepted since.
    level_age: LevelAge,
    /// Whether those are counted as they end; else their number was known, as that of a level that was reached step by
    /// step.
    counts_closers: bool,
    /// Whether the level was a new one when the refusals in a row began.
    was_new: bool,
    /// The most that the server had taken when it closed its socket; 0: it has not.
    closed_at: u16,
    /// How often it has closed it at a lower level since: at a handover.
    closes: u8,
    /// Places that have just become free.
    linger: Linger,
    /// The highest level at which refusals were taken to be about handovers; 0: there were none.
    handover_level: u16,
    /// How long those took that were accepted: of about the last eight, in microseconds.
    took_us: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum LevelAge {
    New,
    Known,
}

/// What a refusal says of how many run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum RefusalMeaning {
    /// There are too many.
    Objection,
    /// Nothing yet.
    Chance,
    /// Nothing: as many are refused when fewer run.
    Background,
}

/// A delivery that ended.
#[derive(Clone, Copy, Debug)]
pub struct EndedDelivery {
    /// Now, in microseconds.
    pub now_us: u64,
    /// When it was started.
    pub started_us: u64,
    /// How many of the key still run, without it.
    pub running: u32,
    /// How many of the key were running when it was started, without it.
    pub beside: u32,
    /// The configured limit; what is unlimited has the number of slots.
    pub limit: u32,
    /// Whether the key learns.
    pub learning: Learning,
    /// What it saw.
    pub seen: Seen,
    /// How many of the deliveries to its server the key counts.
    pub coverage: Coverage,
    /// In whose place it was started.
    pub started_in: StartedIn,
}

/// In whose place a delivery was started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StartedIn {
    /// In that of one that had ended within [`HANDOVER_US`], as far as anybody knows.
    JustFreedPlace,
    /// In one that was free.
    FreePlace,
}

/// Whether a key counts all deliveries to its server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Coverage {
    /// As far as anybody knows.
    AllDeliveries,
    /// Those to domains that are known to go there: a site, found by addresses.
    KnownDomains,
}

/// Whether a delivery was a try.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attempt {
    /// It was: its report goes to qmail-send.
    Counts,
    /// It was refused only because too many were running, as far as is known: it may go back as busy, if
    /// [`Returns::may_return`] agrees.
    DoesNotCount,
    /// It was refused at a young site. It goes back as busy; that happens [`YOUNG_PAUSES`] times at most, but for
    /// deliveries that were under way when a pause began.
    RefusedAtYoungSite,
}

/// Whether one more may start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admission {
    /// Yes.
    Start,
    /// When a place becomes free.
    Wait,
    /// Not before this time, in microseconds.
    Suspended(u64),
    /// Not before this time, in microseconds: the server may still count one that has just ended
    /// ([`crate::core::linger`]), or it has refused one beside as many. Perhaps not even then, if more have ended.
    Later(u64),
}

impl Default for Learned {
    fn default() -> Self {
        Self::NEW
    }
}

impl Learned {
    /// Nothing is known: the configured limit counts.
    pub const NEW: Self = Self {
        cut_us: 0,
        accepted_us: 0,
        suspended_us: 0,
        run_us: 0,
        proved_us: 0,
        trial_us: 0,
        score: 0.0,
        background: 0.0,
        below: 0.0,
        below_accepted: 0.0,
        level: FREE,
        wall: 0,
        proved: 0,
        accepted: 0,
        cohorts: 0,
        wait: PROBE_COHORTS,
        top: FREE,
        left: 0,
        closers: 0,
        failures: 0,
        pauses: 0,
        envelopes: 0,
        closings: 0,
        doubts: 0,
        tested: 0,
        has_answered: false,
        level_age: LevelAge::New,
        counts_closers: false,
        was_new: false,
        closed_at: 0,
        closes: 0,
        linger: Linger::NONE,
        handover_level: 0,
        took_us: 0,
    };

    /// How many may run: 1..=`limit`, or 0 if that is 0.
    #[inline]
    #[must_use]
    pub fn effective(&self, limit: u32, learning: Learning) -> u32 {
        if self.level == FREE || learning == Learning::Fixed {
            return limit;
        }
        limit.min(u32::from(self.level))
    }

    /// How many may run now: with a fixed limit that may be less than is shown, for a while.
    #[inline]
    #[must_use]
    pub fn most(&self, now_us: u64, limit: u32, learning: Learning) -> u32 {
        match learning {
            Learning::On => self.effective(limit, learning),
            // No more than what ran beside the last one that was refused.
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
                // A place may become free sooner, and wait for less.
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

    /// In whose place a delivery is that starts now.
    #[inline]
    #[must_use]
    pub fn started_in(&self, now_us: u64) -> StartedIn {
        if self.has_accepted(now_us, HANDOVER_US) {
            StartedIn::JustFreedPlace
        } else {
            StartedIn::FreePlace
        }
    }

    /// Whether it accepted something within this time.
    #[must_use]
    pub fn has_accepted(&self, now_us: u64, within_us: u64) -> bool {
        self.accepted_us > 0 && now_us.saturating_sub(self.accepted_us - 1) <= within_us
    }

    /// Until when it is suspended, if it is.
    #[inline]
    #[must_use]
    pub fn suspended_until(&self, now_us: u64) -> Option<u64> {
        (self.suspended_us > now_us).then_some(self.suspended_us)
    }

    /// When the server objected the last time to how many there were; None: never, or it does not matter any more.
    #[must_use]
    pub fn objected_us(&self) -> Option<u64> {
        (self.level != FREE).then_some(self.cut_us)
    }

    /// A delivery ended.
    pub fn end(&mut self, ended: &EndedDelivery, random: &mut Random) -> Attempt {
        self.linger.clock(ended.now_us);
        if !matches!(ended.seen, Seen::ConnectFailed | Seen::Nothing) && !self.is_early(ended) {
            self.linger.ended(ended.now_us);
        }
        if ended.learning == Learning::Fixed {
            return self.end_of_fixed(ended, random);
        }
        match ended.seen {
            Seen::Accepted => self.accept(ended),
            Seen::TooMany(_) | Seen::ConnectFailed | Seen::Died(_) => {
                return self.refuse(ended, random);
            }
            Seen::Deferred | Seen::Failed => self.answered(ended),
            Seen::Nothing => {}
        }
        Attempt::Counts
    }

    /// A delivery of a key with a fixed limit was accepted. False if there is more to do: [`Learned::end`].
    #[inline]
    pub fn note_routine_success(&mut self, now_us: u64) -> bool {
        let is_as_ever = self.failures == 0
            && self.level == FREE
            && self.trial_us == 0
            && self.proved == 0
            && self.linger.is_none();
        if is_as_ever {
            self.accepted_us = now_us.saturating_add(1);
        }
        is_as_ever
    }

    /// The limit stays what it is. But what was refused at the door while others ran, or soon after, was not a try; it
    /// waits for a place, and while a server that has just taken mail takes none, there are pauses.
    fn end_of_fixed(&mut self, ended: &EndedDelivery, random: &mut Random) -> Attempt {
        if self.trial_us > 0 || self.proved > 0 || self.wall > 0 {
            // It has learned until now.
            *self = Self { accepted_us: self.accepted_us, ..Self::NEW };
        }
        let others = ended.running > 0;
        if !self.is_early(ended) {
            if matches!(ended.seen, Seen::Accepted | Seen::Deferred | Seen::Failed) {
                self.accepted_us = ended.now_us.saturating_add(1);
                self.answered_fixed(ended);
            }
            return Attempt::Counts;
        }
        if !others && !self.took_recently(ended.now_us) {
            return Attempt::Counts;
        }
        let cannot_connect = ended.seen == Seen::ConnectFailed;
        if cannot_connect || !others {
            self.in_a_row(ended);
            if self.failures >= FAILURES {
                self.pause(ended, random);
                // Until it answers; or for as long as it counts that it answered the last time.
                (self.level, self.cut_us) = (
                    self.accepted_beside(ended).max(1),
                    self.suspended_us.saturating_add(RECENT_US),
                );
            }
        }
        // Beside more than the server is known to take it was one too many.
        let is_handover = others
            && ended.started_in == StartedIn::JustFreedPlace
            && (self.level == FREE || self.accepted_beside(ended) < self.level);
        if is_handover && self.linger.too_short(ended.now_us, ended.started_us, LINGER_MAX_US) {
            // The place that it came for is still taken.
            self.linger.ended(ended.now_us);
        } else if !cannot_connect {
            self.hold_down(ended);
        }
        Attempt::DoesNotCount
    }

    /// A server behind a fixed limit has answered.
    fn answered_fixed(&mut self, ended: &EndedDelivery) {
        self.linger.fade(COHORTS_TO_FADE.saturating_mul(ended.limit));
        if self.failures > 0 && ended.started_us >= self.run_us {
            if self.pauses > 0 {
                (self.level, self.cut_us) = (FREE, 0);
            }
            self.failures = 0;
            self.pauses = 0;
            self.suspended_us = 0;
        }
        if self.level == FREE || ended.now_us < self.cut_us {
            return;
        }
        if ended.beside >= u32::from(self.level) && ended.started_us >= self.cut_us {
            // It takes more again.
            (self.level, self.cut_us, self.wait) = (FREE, 0, PROBE_COHORTS);
        }
    }

    /// For some seconds no more than what ran beside one that was refused; for twice as long if that has been tried
    /// again since.
    fn hold_down(&mut self, ended: &EndedDelivery) {
        let ran = self.accepted_beside(ended).max(1);
        if ended.now_us < self.cut_us {
            self.level = self.level.min(ran);
            return;
        }
        self.wait = match self.level {
            FREE => PROBE_COHORTS,
            _ => (self.wait * 2).min(PROBE_COHORTS_MAX),
        };
        self.level = ran;
        self.cut_us = ended.now_us.saturating_add(u64::from(self.wait) * 1_000_000);
    }

    /// Whether it was refused before it cost the server or the mail anything.
    fn is_early(&self, ended: &EndedDelivery) -> bool {
        match ended.seen {
            Seen::ConnectFailed => true,
            Seen::Died(Sent::No) => ended.now_us.saturating_sub(ended.started_us) < AT_ONCE_US,
            seen => seen.is_too_many_early(),
        }
    }

    fn took_recently(&self, now_us: u64) -> bool {
        self.has_accepted(now_us, RECENT_US)
    }

    /// One more refusal, with no answer between of a delivery that started after the first one.
    fn in_a_row(&mut self, ended: &EndedDelivery) {
        if self.failures == 0 {
            let level = self.effective(ended.limit, ended.learning);
            self.run_us = ended.now_us;
            let is_at_wall = self.wall > 0 && level >= u32::from(self.wall);
            self.counts_closers = !is_at_wall && level > u32::from(self.proved);
            self.closers = match self.counts_closers {
                // The one that had just ended.
                true => u16::from(ended.started_in == StartedIn::JustFreedPlace),
                false if is_at_wall => self.wall,
                false => level.min(u32::from(FREE)) as u16,
            };
            self.was_new = level > u32::from(self.proved)
                || self.level_age == LevelAge::New
                || self.cohorts <= 1;
        }
        self.failures = self.failures.saturating_add(1);
    }

    fn answered(&mut self, ended: &EndedDelivery) {
        self.has_answered = true;
        self.suspended_us = 0;
        self.pauses = 0;
        if ended.started_us >= self.run_us {
            self.failures = 0;
        }
        let background = if self.background > 0.0 { self.background } else { CHANCE };
        self.score = (self.score - WEIGHT * background / (1.0 - background)).max(0.0);
        self.tested = self.tested.saturating_add(1).min(BACKGROUND_TESTED);
        if self.background > 0.0 {
            self.background -= self.background / BACKGROUND_DELIVERIES;
            if self.background < BACKGROUND_MIN {
                self.background = 0.0;
            }
        }
        if self.trial_us > 0 && ended.started_us > self.trial_us {
            self.below -= self.below / BELOW_DELIVERIES;
            self.below_accepted += 1.0 - self.below_accepted / BELOW_DELIVERIES;
        }
    }

    fn accept(&mut self, ended: &EndedDelivery) {
        if self.failures > 0 && self.counts_closers && ended.started_us < self.run_us {
            self.closers = self.closers.saturating_add(1);
        }
        let was_closed =
            self.pauses > 0 && self.level == 1 && self.closed_at > 0 && self.wall == self.closed_at;
        self.answered(ended);
        self.accepted_us = ended.now_us.saturating_add(1);
        let took_us = ended.now_us.saturating_sub(ended.started_us).min(u64::from(u32::MAX)) as u32;
        self.took_us =
            if self.took_us == 0 { took_us } else { self.took_us - self.took_us / 8 + took_us / 8 };
        if was_closed {
            self.opened_again(ended);
            return;
        }
        let level = self.effective(ended.limit, Learning::On);
        // What is accepted while places are free says nothing about one more (RFC 7661 says it of TCP).
        // What has just ended is counted by the server, too, with this one among them.
        let taken = ended.running.saturating_add(self.linger.places(ended.now_us).max(1));
        if taken < level {
            return;
        }
        self.accepted = self.accepted.saturating_add(1);
        if u32::from(self.accepted) > level / 4 {
            self.level_age = LevelAge::Known;
        }
        if u32::from(self.accepted) < level {
            return;
        }
        self.accepted = 0;
        self.cohorts = self.cohorts.saturating_add(1);
        let level_now = level.min(u32::from(FREE)) as u16;
        if level_now > self.proved {
            self.proved = level_now;
            self.proved_us = ended.now_us;
        }
        if self.closed_at == 0 {
            self.linger.fade(COHORTS_TO_FADE);
        }
        if self.level == FREE || self.stays_below_the_wall(ended.now_us) {
            return;
        }
        if self.wall > 0 && self.level > self.wall.saturating_add(1) {
            // The server has become more generous.
            self.wall = 0;
            self.wait = PROBE_COHORTS;
            self.closings = 0;
            self.forget_handovers();
        }
        self.level = self.level.saturating_add(1);
        self.level_age = LevelAge::New;
        self.cohorts = 0;
        if u32::from(self.level) >= ended.limit {
            // What has been refused at the ceiling is tried no more often than any other level.
            if self.wall == 0 {
                self.level = FREE;
                self.forget_handovers();
            }
        }
        if self.level >= self.top {
            self.trial_us = 0;
        }
    }

    fn forget_handovers(&mut self) {
        (self.closed_at, self.closes, self.handover_level) = (0, 0, 0);
        self.linger = Linger::NONE;
    }

    /// The socket is open again: the server takes what it took before, but for the last one. Fewer if it closed at a
    /// handover.
    fn opened_again(&mut self, ended: &EndedDelivery) {
        let part_us = ended.now_us.saturating_sub(ended.started_us) / CLOSED_LINGER_PART;
        let least_us = part_us.clamp(u64::from(LINGER_MIN_US), HANDOVER_US);
        self.linger.at_least(least_us as u32);
        self.linger.ended(ended.now_us);
        self.level = (self.wall.saturating_sub(1) >> self.closes).max(1);
        self.proved = self.level;
        self.proved_us = ended.now_us;
    }

    /// Whether the next level is the one that was refused, and it is not yet time to try it.
    fn stays_below_the_wall(&self, now_us: u64) -> bool {
        if self.level.saturating_add(1) != self.wall {
            return false;
        }
        let since_us = now_us.saturating_sub(self.cut_us);
        if self.closings > 0 {
            // It would cost some seconds in which nobody can connect.
            let times = CLOSING_PROBES << (self.closings - 1).min(16);
            return since_us < PROBE_US * times.min(CLOSING_PROBES_MAX);
        }
        self.cohorts < self.wait && since_us < PROBE_US
    }

    fn refuse(&mut self, ended: &EndedDelivery, random: &mut Random) -> Attempt {
        let recently = self.took_recently(ended.now_us);
        let others = ended.running > 0;
        // Whom the server took instead may be of domains that are not known to go there, and says nothing before it is
        // done.
        let is_young = ended.coverage == Coverage::KnownDomains
            && ended.seen.is_too_many_early()
            && !self.has_answered
            && self.pauses < YOUNG_PAUSES;
        let known = self.proved.max(self.left);
        let weighed = self.weigh(ended);
        if weighed == RefusalMeaning::Background
            && self.background >= BACKGROUND_TRIES
            && self.tested >= BACKGROUND_TESTED
        {
            return Attempt::Counts;
        }
        if weighed != RefusalMeaning::Background {
            self.in_a_row(ended);
            // Alone, it was not one of too many, unless the server says so.
            if weighed == RefusalMeaning::Objection
                && (others || matches!(ended.seen, Seen::TooMany(_)))
            {
                let was_handover = self.was_handover(ended, known);
                self.lower(ended);
                if was_handover {
                    // Places wait longer now, so the level may be right: it is tried again soon.
                    self.wait = 1;
                    // The place that it came for is still taken.
                    self.linger.ended(ended.now_us);
                }
            }
            if !others {
                self.fail(ended, if is_young { 1 } else { FAILURES }, random);
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

    /// Whether an objection may be about the place of one that has just ended. Then places wait longer from now on.
    /// `known`: the level up to which it has accepted all.
    fn was_handover(&mut self, ended: &EndedDelivery, known: u16) -> bool {
        let is_level_known = match self.level_age {
            LevelAge::Known => self.level <= known && ended.running < u32::from(self.level),
            // Of a new level nobody knows what it was about, unless there were such objections before.
            LevelAge::New => self.level <= self.handover_level,
        };
        let is_early = match ended.seen {
            // Of several in a row all but the first say that the socket is closed.
            Seen::ConnectFailed => self.failures <= 1,
            _ => self.is_early(ended),
        };
        // What takes longer is not about what ended just before it.
        let took_us = ended.now_us.saturating_sub(ended.started_us);
        let is_quick = took_us <= u64::from(self.took_us) / 2;
        if !(is_level_known
            && self.doubts == 0
            && is_early
            && is_quick
            && ended.running > 0
            && ended.started_in == StartedIn::JustFreedPlace)
        {
            return false;
        }
        // It must cost less than one place.
        let most_us = (self.took_us / u32::from(self.level).max(1)).min(LINGER_MAX_US);
        let is_longer = self.linger.too_short(ended.now_us, ended.started_us, most_us);
        if !is_longer && self.closed_at == 0 {
            // It was not that.
            (self.linger, self.handover_level) = (Linger::NONE, 0);
        }
        if is_longer {
            self.handover_level = self.handover_level.max(self.level);
        }
        is_longer
    }

    /// Whether a refusal is about how many run.
    fn weigh(&mut self, ended: &EndedDelivery) -> RefusalMeaning {
        let level = self.effective(ended.limit, Learning::On).min(u32::from(FREE - 1));
        let beside = u32::from(self.accepted_beside(ended)).max(ended.beside);
        let refused = beside.saturating_add(1);
        if self.background > 0.0 {
            let part = self.background;
            self.score += 1.0;
            // While the places are filled, refusals come at once, and what is accepted later.
            let odds = part / (1.0 - part);
            let enough = OBJECTION / (1.0 - part) + WEIGHT * odds * level as f32;
            if self.score < enough / 2.0 {
                // What may be about a limit is not part of the background.
                self.background = (part + (1.0 - part) / BACKGROUND_DELIVERIES).min(BACKGROUND_MAX);
            }
            if self.score < enough {
                return RefusalMeaning::Background;
            }
            self.score = 0.0;
            self.background = 0.0;
            self.trial_us = 0;
            self.doubts = (self.doubts + 1).min(DOUBTS_MAX);
            return RefusalMeaning::Objection;
        }
        if self.trial_us > 0 && ended.started_us > self.trial_us && refused < u32::from(self.left) {
            self.below += 1.0;
            let part = self.below / (self.below + self.below_accepted);
            let part_above = 1.0 - f32::from(self.left) / f32::from(self.top);
            if self.below >= BELOW * f32::from(1u16 << self.doubts)
                && self.below_accepted >= BELOW_ACCEPTED
                && part >= part_above * BELOW_PART
            {
                self.believe(ended);
                return RefusalMeaning::Background;
            }
        }
        // A server that refuses slowly may still refuse what started when the level was new.
        let took_us = ended.now_us.saturating_sub(ended.started_us);
        let proved_us = self.proved_us.saturating_add(took_us.saturating_mul(SLOW));
        if refused <= u32::from(self.proved)
            && self.level_age == LevelAge::Known
            && ended.started_us > proved_us
        {
            self.score += 1.0;
            if self.score < OBJECTION {
                return RefusalMeaning::Chance;
            }
            self.score = 0.0;
            // It has become less generous, and may go on with that: from now on the first one counts.
            self.proved = 0;
        }
        RefusalMeaning::Objection
    }

    /// As many are refused when fewer run: the limit goes back to where it was.
    fn believe(&mut self, ended: &EndedDelivery) {
        // What still runs was not refused either.
        let accepted = self.below_accepted + ended.running as f32;
        let part = self.below / (self.below + accepted);
        self.background = part.clamp(BACKGROUND_MIN, BACKGROUND_MAX);
        self.level = if u32::from(self.top) >= ended.limit { FREE } else { self.top };
        self.proved = self.top;
        self.wall = if self.level == FREE { 0 } else { self.level + 1 };
        self.wait = PROBE_COHORTS;
        self.tested = 0;
        self.level_age = LevelAge::Known;
        self.accepted = 0;
        self.cohorts = 0;
        self.score = 0.0;
        self.failures = 0;
        self.trial_us = 0;
        self.forget_handovers();
    }

    fn lower(&mut self, ended: &EndedDelivery) {
        let level = self.effective(ended.limit, Learning::On).min(u32::from(FREE - 1)) as u16;
        let running = ended.running.min(u32::from(FREE - 1)) as u16;
        if self.level != FREE && running >= level {
            // It is lower already than when this one was started, and no place is filled before that is reached.
            return;
        }
        if self.level == FREE || ended.started_us > self.cut_us {
            // A new objection. What still runs was accepted, or is about to be refused and will come here, too.
            let begins = self.trial_us == 0;
            if begins {
                self.trial_us = ended.now_us;
                self.top = level;
                self.below = 0.0;
                self.below_accepted = 0.0;
            }
            let accepted = self.accepted_beside(ended);
            self.level = accepted.min(level.saturating_sub(1)).max(1);
            if begins {
                self.left = self.level;
            }
            let refused = accepted.saturating_add(1);
            if refused > self.proved || self.level_age == LevelAge::New {
                let near = self.wall > 0 && refused.abs_diff(self.wall) <= 1 + self.wall / 16;
                self.wait = match self.level_age {
                    LevelAge::New if near => {
                        (self.wait * 2).clamp(PROBE_COHORTS, PROBE_COHORTS_MAX)
                    }
                    LevelAge::New => PROBE_COHORTS,
                    // It took its time to refuse, or it refuses at random.
                    LevelAge::Known => 1,
                };
                self.wall = refused;
                self.cohorts = 0;
            } else {
                // It has accepted as many before. Either it refuses at random, or it has become less generous: then it
                // will refuse again before a cohort is complete.
                self.proved = self.level;
            }
            self.cut_us = ended.now_us;
        } else {
            // The same objection: each place that was refused is taken away, and no accepted one.
            self.level = (level - 1).max(1);
            if self.cut_us == self.trial_us {
                self.left = self.level;
            }
            self.wall = self.wall.min(level);
            self.proved = self.proved.min(self.level);
        }
        if self.doubts > 0 && self.cut_us == self.trial_us {
            // That more were refused at that level has been seen.
            self.top = self.left;
        }
        self.level_age = LevelAge::Known;
        self.accepted = 0;
    }

    /// How many the server takes beside one that was refused: those that run, and those that may start when places wait
    /// no more.
    fn accepted_beside(&self, ended: &EndedDelivery) -> u16 {
        let waiting = self.linger.places(ended.now_us);
        ended.running.saturating_add(waiting).min(u32::from(FREE - 1)) as u16
    }

    /// It is suspended after so many failures.
    fn fail(&mut self, ended: &EndedDelivery, most: u8, random: &mut Random) {
        if self.failures < most && self.suspended_us == 0 {
            return;
        }
        if ended.seen == Seen::TooMany(Sent::Envelope) && self.pauses > 0 {
            let tries = ENVELOPES
                .checked_pow(u32::from(self.pauses))
                .map_or(ENVELOPES_MAX, |tries| tries.min(ENVELOPES_MAX));
            self.envelopes += 1;
            if self.envelopes < tries {
                return;
            }
        }
        self.envelopes = 0;
        let is_first = self.pauses == 0;
        if !self.pause(ended, random) {
            return;
        }
        self.level = 1;
        self.proved = 0;
        self.accepted = 0;
        self.cohorts = 0;
        self.level_age = LevelAge::Known;
        self.score = 0.0;
        self.background = 0.0;
        self.trial_us = 0;
        if !is_first {
            return;
        }
        self.wait = PROBE_COHORTS;
        self.wall = 0;
        if ended.seen == Seen::ConnectFailed && self.took_recently(ended.now_us) && self.closers > 0
        {
            self.closed(ended.now_us);
        }
    }

    /// Nobody can connect since so many were running: the server has closed its socket, or it is down. Then that is
    /// tried soon.
    fn closed(&mut self, now_us: u64) {
        let ran = self.closers.max(2);
        if ran >= self.closed_at || self.closes >= CLOSES_MAX {
            self.closed_at = ran;
            self.closes = 0;
            self.closings = if self.was_new { (self.closings + 1).min(16) } else { 0 };
        } else {
            // Not so many were too many, but one that came in the place of another that had just ended.
            self.closes += 1;
            self.closings = self.closings.max(1);
            self.linger.double(now_us, LINGER_MAX_CLOSED_US);
        }
        self.wall = self.closed_at;
    }

    /// Nothing starts for a while. False if the delivery was under way when the last pause began.
    fn pause(&mut self, ended: &EndedDelivery, random: &mut Random) -> bool {
        if ended.started_us < self.suspended_us {
            return false;
        }
        let closed = CLOSED_PAUSES_US
            .get(usize::from(self.pauses))
            .filter(|_| ended.seen == Seen::ConnectFailed && self.took_recently(ended.now_us));
        let doublings = match ended.learning {
            Learning::On => 32,
            // What waits is always held, or comes back: none is deferred.
            Learning::Fixed => 4,
        };
        let longest = PAUSE_MIN_US
            .checked_shl(u32::from(self.pauses.min(doublings)))
            .map_or(PAUSE_MAX_US, |us| us.min(PAUSE_MAX_US));
        let (longest, spread) =
            closed.map_or((longest, longest / 2), |&us| (us, us / CLOSED_PAUSES_SPREAD));
        let pause = longest - (random.fraction() * spread as f64) as u64;
        self.pauses = self.pauses.saturating_add(1);
        self.suspended_us = ended.now_us.saturating_add(pause);
        true
    }
}

/// How often a mail may go back as busy between two real tries.
pub const RETURNS_MAX: u8 = 3;

const RETURNS: usize = 1024;

/// Which mails went back as busy, so that none does for ever: a server that refuses one sender with 421, and accepts
/// all others, must see that mail age.
#[derive(Clone, Debug)]
pub struct Returns {
    /// Of the mails with this low end of their hash: the high end, and how often in the lowest two bits.
    marks: [u32; RETURNS],
}

impl Default for Returns {
    fn default() -> Self {
        Self { marks: [0; RETURNS] }
    }
}

impl Returns {
    /// Whether a mail that was not really tried may go back as busy once more. `mail`: a hash of its queue number and
    /// its recipient.
    pub fn may_return(&mut self, mail: u64) -> bool {
        let mark = &mut self.marks[mail as usize % RETURNS];
        let count = (*mark & 3) as u8;
        if count >= RETURNS_MAX {
            *mark = 0;
            return false;
        }
        if count == 0 {
            *mark = (mail >> 32) as u32 & !3;
        }
        // Of another mail, too: where there are more mails than marks, one of four is tried all the same.
        *mark += 1;
        true
    }

    /// A mail was really tried: it may go back as often as ever.
    pub fn tried(&mut self, mail: u64) {
        let mark = &mut self.marks[mail as usize % RETURNS];
        if *mark & !3 == (mail >> 32) as u32 & !3 {
            *mark = 0;
        }
    }
}
