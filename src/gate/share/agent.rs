//! What an agent knows, and what it does next; without files, network and clock. The caller passes the time in
//! milliseconds since the start of the machine.
//!
//! **What is in force.** The gate confirms which version of the lease it has read. Until then an earlier version may
//! be in force. So the agent tells the store the largest share of all versions that may be, or what runs if that is
//! more. Only what the gate has given up goes to other hosts.
//!
//! **A key that is not listed** has the start-up share. The agent asks the store only about keys that want more, and
//! unlists a key that wants nothing any more.
//!
//! **Stages.** Before an agent takes part, the gate must have confirmed that it reads leases at all. With a new or
//! lost place in the pool, the gate must have confirmed the first list before the agent reports what is in force.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use qpatch_gate::escape::Escaped;
use qpatch_gate::host_share::{LeasePhase, fall_back_share, start_share};
use qpatch_gate::lease::{FILE_MAX, Header, MAGIC, sum};
use qpatch_gate::rules::KeyKind;

use super::config::Terms;

/// A key that lacks places asks again after this time, in milliseconds.
const ASK_AGAIN_MS: u64 = 1000;
/// What a key wanted counts for this time, so that its share does not follow each delivery. In milliseconds. With 2000,
/// mail that moved to another host had its share there 1 to 4 s later; docs/measurements.md has the moves with 200.
const WANT_MS: u64 = 200;
/// What the store knows of a key is told again after this time, in milliseconds: it forgets keys after an hour.
const TELL_AGAIN_MS: u64 = 300_000;
/// So many that the fall-back share, or the start-up share, is as small as it can be.
const UNKNOWN_HOSTS: u32 = 1_000_000;
/// The most bytes for the lines of keys in the lease: the gate reads no larger file. The rest is for its first and last
/// line.
const LINES_MAX: usize = FILE_MAX as usize - 1024;
/// The most keys in one call, so that a call takes the store a few milliseconds.
pub(super) const KEYS_PER_CALL: usize = 200;

/// What the gates of this host say of a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct KeyDemand {
    pub(super) kind: KeyKind,
    pub(super) name: Vec<u8>,
    pub(super) limit: u32,
    pub(super) running: u32,
    /// How many would run if there were places.
    pub(super) want: u32,
}

/// What the gates of this host say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Demand {
    /// Whether a gate runs, as far as is known.
    pub(super) runs: bool,
    /// The version that all of them have in force; 0: none.
    pub(super) confirmed: u64,
    /// Whether one of them has read a whole lease.
    pub(super) has_read: bool,
    /// How far their lease is; the worst of several.
    pub(super) phase: LeasePhase,
    /// The status does not list all keys: the others have no more deliveries than this.
    pub(super) unlisted_running: Option<u32>,
    pub(super) keys: Vec<KeyDemand>,
}

/// A key in a call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Item {
    /// Its kind and name, as the store knows it.
    pub(super) key: Vec<u8>,
    pub(super) what: Report,
}

/// What an agent reports of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Report {
    /// The largest share that may be in force; None: the start-up share.
    pub(super) share: Option<u32>,
    pub(super) running: u32,
    pub(super) want: u32,
    /// 0: not known.
    pub(super) limit: u32,
}

/// The store's answer to a hello.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Welcome {
    pub(super) conn: u64,
    /// The most hosts at once, for the start-up share.
    pub(super) most: u32,
    /// Whether the store counts on the fall-back shares until the agent has reported everything.
    pub(super) is_reset: bool,
    /// Whether the store did not know this host.
    pub(super) is_new: bool,
}

/// The store's answer to a step.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct StepReply {
    /// How many hosts there are.
    pub(super) hosts: u32,
    /// By what this host divides a limit for its fall-back share.
    pub(super) divisor: u32,
    pub(super) most: u32,
    /// For each key of the call; None: the start-up share.
    pub(super) shares: Vec<Option<u32>>,
    /// Keys about which this host should ask.
    pub(super) inbox: Vec<Vec<u8>>,
    /// The names of the hosts that are lost.
    pub(super) lost: Vec<u8>,
}

/// How far an agent is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// Without a place in the pool.
    Out,
    /// It has a place, and the gate has not confirmed the first list.
    Joining,
    /// It takes part.
    In,
}

#[derive(Debug)]
struct KeyState {
    limit: u32,
    running: u32,
    /// What the gates say that it wants.
    wants: u32,
    want: u32,
    want_until_ms: u64,
    /// The share of each version of the lease since the one in force, and from which version on; None: not listed.
    shares: Vec<(u64, Option<u32>)>,
    /// What the next version has.
    next: Option<u32>,
    sent: Option<Report>,
    sent_ms: u64,
    must_send: bool,
    /// How long its line in the lease is, at most.
    line_bytes: usize,
    /// The lease has no room for it: it has the start-up share, and wants no more.
    has_no_room: bool,
}

impl KeyState {
    fn new(key: &[u8]) -> Self {
        Self {
            line_bytes: Escaped(key).to_string().len() + "\t4294967295\n".len(),
            has_no_room: false,
            limit: 0,
            running: 0,
            wants: 0,
            want: 0,
            want_until_ms: 0,
            shares: vec![(0, None)],
            next: None,
            sent: None,
            sent_ms: 0,
            must_send: false,
        }
    }

    fn written(&self) -> Option<u32> {
        self.shares.last().and_then(|last| last.1)
    }

    /// `start_hosts` is the number of hosts for the start-up share that is in force.
    fn report(&self, start_hosts: u32) -> Report {
        // The next version is written whatever becomes of this report.
        let all = || self.shares.iter().map(|share| share.1).chain([self.next]);
        let largest = all().flatten().max();
        let has_unlisted = all().any(|share| share.is_none());
        // The start-up share is one at most.
        let unlisted = match (has_unlisted, self.limit) {
            (false, _) => 0,
            (true, 0) => 1,
            (true, limit) => start_share(limit, start_hosts),
        };
        let share = largest.map(|largest| largest.max(unlisted));
        let want = if self.has_no_room { self.want.min(unlisted) } else { self.want };
        Report { share, running: self.running, want, limit: self.limit }
    }
}

/// An agent.
#[derive(Debug)]
pub(super) struct Agent {
    terms: Terms,
    /// A random number that distinguishes it from another agent with its name.
    pub(super) number: u64,
    boot: u64,
    keys: BTreeMap<Vec<u8>, KeyState>,
    pub(super) stage: Stage,
    pub(super) conn: u64,
    seq: u64,
    /// The end of the lease, as the store has granted it and as the file has it.
    until_ms: u64,
    written_until_ms: u64,
    /// The numbers of hosts since the version in force, and from which version on: for the start-up share, and for the
    /// fall-back share.
    hosts: Vec<(u64, u32, u32)>,
    next_hosts: (u32, u32),
    /// The lease has no room for all keys of which this host has nothing. So those that are not listed have nothing,
    /// in place of the start-up share.
    is_closed: bool,
    /// How many hosts there are.
    count: u32,
    /// Whether it has ever had a lease. Before, its gate has the whole limit, which the store cannot help.
    was_leased: bool,
    /// What the gates said last, and the number of hosts for the start-up share at that time.
    demand: Demand,
    demand_hosts: u32,
    confirmed: u64,
    gate_runs: bool,
    /// Whether a gate has read a lease.
    has_read: bool,
    /// How far the lease of the gate is, as its status says; the worst of several.
    gate_phase: LeasePhase,
    must_write: bool,
    /// The hosts that were lost at the last step.
    lost: Vec<u8>,
    /// Before this time it must not change the lease of a gate that has one: nobody knows what is in force.
    blind_until_ms: u64,
}

/// The name of a key in the store.
pub(super) fn key_name(kind: KeyKind, name: &[u8]) -> Vec<u8> {
    [kind.name().as_bytes(), b":", name].concat()
}

impl Agent {
    /// An agent whose gate has no lease. `seq` is above any version of before.
    pub(super) fn new(terms: Terms, number: u64, boot: u64, seq: u64) -> Self {
        Self {
            terms,
            number,
            boot,
            keys: BTreeMap::new(),
            stage: Stage::Out,
            conn: 0,
            seq,
            until_ms: 0,
            written_until_ms: 0,
            hosts: vec![(0, 1, 1)],
            next_hosts: (1, 1),
            is_closed: false,
            count: 1,
            was_leased: false,
            demand: Demand::default(),
            demand_hosts: 0,
            confirmed: 0,
            gate_runs: false,
            has_read: false,
            gate_phase: LeasePhase::None,
            must_write: true,
            lost: Vec::new(),
            blind_until_ms: 0,
        }
    }

    /// An agent that goes on with the lease of an earlier one.
    pub(super) fn resume(
        terms: Terms,
        boot: u64,
        header: Header,
        keys: impl IntoIterator<Item = (KeyKind, Vec<u8>, u32)>,
    ) -> Self {
        let until_ms = if header.boot == boot { header.until_ms } else { 0 };
        let mut agent = Self {
            seq: header.seq,
            until_ms,
            written_until_ms: until_ms,
            must_write: false,
            was_leased: true,
            ..Self::new(terms, header.agent, boot, header.seq)
        };
        agent.has_hosts_of(header);
        for (kind, name, share) in keys {
            let key = key_name(kind, &name);
            let state = agent.keys.entry(key).or_insert_with_key(|key| KeyState::new(key));
            (state.shares, state.next) = (vec![(0, Some(share))], Some(share));
        }
        agent
    }

    /// An agent whose gate may have a lease, or may have had one, of which at most the first line can be read. `seq` is
    /// above any version of before, but for that of the line.
    pub(super) fn after_damage(
        terms: Terms,
        number: u64,
        boot: u64,
        seq: u64,
        header: Option<Header>,
        now_ms: u64,
    ) -> Self {
        let mut agent = Self::new(terms, number, boot, seq);
        let Some(header) = header else {
            agent.next_hosts = (1, UNKNOWN_HOSTS);
            agent.hosts = vec![(0, 1, UNKNOWN_HOSTS)];
            agent.blind_until_ms = now_ms + terms.lease_ms + terms.gate_settle_ms();
            return agent;
        };
        agent.seq = header.seq.max(seq);
        agent.has_hosts_of(header);
        agent.was_leased = true;
        if header.boot == boot {
            // Until then the gate has what an earlier version said, and then its fall-back shares.
            agent.blind_until_ms = header.until_ms.saturating_add(header.settle_ms);
        }
        agent
    }

    /// Takes the numbers of hosts from a lease that is in force.
    fn has_hosts_of(&mut self, header: Header) {
        let (start, hosts) = (header.start_hosts.max(1), header.hosts.max(1));
        self.is_closed = start >= UNKNOWN_HOSTS;
        self.next_hosts = (if self.is_closed { 1 } else { start }, hosts);
        self.hosts = vec![(0, start, hosts)];
    }

    /// The numbers of hosts for the next version of the lease.
    fn hosts_to_write(&self) -> (u32, u32) {
        let (start, hosts) = self.next_hosts;
        (if self.is_closed { UNKNOWN_HOSTS } else { start }, hosts)
    }

    /// How many bytes the lines of the next version have, at most.
    fn lines_bytes(&self) -> usize {
        let listed = self.keys.values().filter(|state| state.next.is_some());
        listed.map(|state| state.line_bytes).sum()
    }

    /// Whether there are keys for which the lease has no room.
    pub(super) fn lacks_room(&self) -> bool {
        self.is_closed || self.keys.values().any(|state| state.has_no_room)
    }

    /// Whether the gate has everything that was written, or nothing of it counts any more.
    fn is_confirmed(&self) -> bool {
        !self.gate_runs || self.confirmed >= self.seq
    }

    /// Whether the lease that is written runs.
    pub(super) fn is_leased(&self, now_ms: u64) -> bool {
        now_ms < self.written_until_ms && self.gate_phase_allows()
    }

    /// Whether the gate says nothing else than that its lease runs. It may be unable to read the lease.
    fn gate_phase_allows(&self) -> bool {
        !self.gate_runs || matches!(self.gate_phase, LeasePhase::None | LeasePhase::Valid)
    }

    /// How many deliveries of each key run, as far as the agent knows.
    #[cfg(test)]
    pub(super) fn running(&self) -> Vec<u32> {
        self.keys.values().map(|state| state.running).collect()
    }

    /// The end of the lease.
    pub(super) fn until_ms(&self) -> u64 {
        self.until_ms
    }

    /// How many keys have another share than that for the start, or want more.
    pub(super) fn key_count(&self) -> usize {
        self.keys.len()
    }

    /// How many hosts share the limits.
    pub(super) fn hosts(&self) -> u32 {
        self.count
    }

    /// Whether it may say hello.
    pub(super) fn may_join(&self, now_ms: u64) -> bool {
        self.stage == Stage::Out
            && !self.must_write
            && self.is_confirmed()
            && now_ms >= self.blind_until_ms
    }

    /// Whether it may write the lease. After damage it leaves the gate what it has until that is over. A gate that has
    /// read nothing has its whole limits, or those of a lease that is over: then writing one only lowers them.
    fn may_write(&self, now_ms: u64) -> bool {
        now_ms >= self.blind_until_ms || !self.has_read
    }

    /// The number of hosts for the start-up share, for a hello.
    pub(super) fn start_hosts(&self) -> u32 {
        self.next_hosts.0
    }

    /// The numbers of hosts in force, for a step: those with the larger shares.
    pub(super) fn hosts_in_force(&self) -> (u32, u32) {
        if !self.was_leased {
            return (1, UNKNOWN_HOSTS);
        }
        let least = |of: fn(&(u64, u32, u32)) -> u32| self.hosts.iter().map(of).min().unwrap_or(1);
        (least(|hosts| hosts.1), least(|hosts| hosts.2))
    }

    /// Notes what the gates say.
    pub(super) fn observe(&mut self, demand: &Demand, now_ms: u64) {
        self.gate_runs = demand.runs;
        self.has_read = demand.has_read;
        self.gate_phase = demand.phase;
        if self.stage == Stage::In && !self.gate_phase_allows() {
            // Its gate has its fall-back shares, or soon will: the others must leave it these.
            self.lose();
        }
        // If no gate runs, the next one begins with what is written now.
        self.confirmed = if demand.runs { demand.confirmed } else { self.seq };
        let confirmed = self.confirmed;
        for state in self.keys.values_mut() {
            prune(&mut state.shares, |share| share.0, confirmed);
        }
        prune(&mut self.hosts, |hosts| hosts.0, confirmed);
        let hosts = self.hosts_to_write().0;
        if (&self.demand, self.demand_hosts) != (demand, hosts) {
            self.demand.clone_from(demand);
            self.demand_hosts = hosts;
            self.observe_keys(demand);
        }
        for state in self.keys.values_mut() {
            if state.wants >= state.want || now_ms >= state.want_until_ms {
                (state.want, state.want_until_ms) = (state.wants, now_ms + WANT_MS);
            }
        }
        self.keys.retain(|_, state| {
            let is_known =
                state.next.is_some() || state.shares.iter().any(|share| share.1.is_some());
            let has_told = state.sent.is_some_and(|sent| sent.want > 0 || sent.running > 1);
            is_known || state.want > 0 || state.must_send || has_told
        });
        let mut bytes = self.lines_bytes();
        for state in self.keys.values_mut().filter(|state| state.has_no_room) {
            bytes += state.line_bytes;
            // Not up to the last byte, so that a key that comes and goes does not take others with it.
            state.has_no_room = bytes > LINES_MAX / 8 * 7;
        }
    }

    /// There are other keys than before, of which the gates may have said something.
    fn observe_again(&mut self) {
        self.demand_hosts = 0;
    }

    /// Notes what the gates say of keys.
    fn observe_keys(&mut self, demand: &Demand) {
        for state in self.keys.values_mut() {
            // What ran may still run, out of sight.
            state.running = state.running.min(demand.unlisted_running.unwrap_or(0));
            state.wants = 0;
        }
        let start_hosts = self.demand_hosts;
        for key in &demand.keys {
            let name = key_name(key.kind, &key.name);
            // The start-up share is enough, and the store counts it anyway.
            let is_small = key.running.max(key.want) <= 1 && key.limit >= start_hosts;
            let state = match self.keys.entry(name.clone()) {
                Entry::Occupied(entry) => entry.into_mut(),
                Entry::Vacant(_) if is_small => continue,
                Entry::Vacant(entry) => entry.insert(KeyState::new(&name)),
            };
            (state.limit, state.running) = (key.limit, key.running);
            state.wants = key.want.max(key.running).min(key.limit);
        }
    }

    /// The store has answered a hello, and a first step that was sent at `sent_ms`.
    /// Of the keys in `closed` others have shares, and a new host has nothing before it asks.
    pub(super) fn welcome(
        &mut self,
        welcome: Welcome,
        first: &StepReply,
        closed: &[Vec<u8>],
        sent_ms: u64,
        now_ms: u64,
    ) {
        self.conn = welcome.conn;
        self.observe_again();
        let has_lease = self.is_leased(now_ms);
        self.until_ms = sent_ms + self.terms.lease_ms;
        if !self.was_leased {
            self.was_leased = true;
            self.hosts = vec![(self.seq, 1, UNKNOWN_HOSTS)];
        }
        if welcome.is_new && !has_lease {
            // It begins like a host that has never been there: it knows all keys of which others have shares.
            self.is_closed = false;
        }
        self.set_hosts(first);
        for state in self.keys.values_mut() {
            state.sent = None;
        }
        if !welcome.is_reset {
            self.stage = Stage::In;
            return;
        }
        if !has_lease {
            // The gate has its fall-back shares; the store counts on no more. The least is for hosts without contact.
            for state in self.keys.values_mut() {
                let fall_back = fall_back_share(state.limit, self.next_hosts.1, 0);
                state.next = state.next.map(|share| share.min(fall_back));
            }
        }
        let mut bytes = self.lines_bytes();
        for key in closed {
            let state = self.keys.entry(key.clone()).or_insert_with_key(|key| KeyState::new(key));
            if state.next.is_none() {
                bytes += state.line_bytes;
                if bytes > LINES_MAX {
                    bytes -= state.line_bytes;
                    self.is_closed = true;
                    continue;
                }
            }
            if !has_lease || state.next.is_none() {
                state.next = Some(0);
            }
        }
        self.stage = Stage::Joining;
        self.must_write = true;
    }

    /// The store does not know this connection any more, or there is no store.
    pub(super) fn lose(&mut self) {
        self.stage = Stage::Out;
    }

    /// Takes part once the gate has confirmed the first list.
    pub(super) fn join_if_confirmed(&mut self) {
        let is_confirmed = self.is_confirmed() && self.gate_phase_allows();
        if self.stage == Stage::Joining && !self.must_write && is_confirmed {
            self.stage = Stage::In;
            for state in self.keys.values_mut() {
                state.must_send = true;
            }
        }
    }

    /// What to report now: at most [`KEYS_PER_CALL`] keys. Empty while it does not take part.
    pub(super) fn items(&mut self, now_ms: u64) -> Vec<Item> {
        let mut items = Vec::new();
        if self.stage != Stage::In {
            return items;
        }
        let (start_hosts, next_start_hosts) = (self.hosts_in_force().0, self.hosts_to_write().0);
        for (key, state) in &self.keys {
            let what = state.report(start_hosts);
            let share = what.share.unwrap_or_else(|| start_share(state.limit, next_start_hosts));
            let lacks = what.want > share;
            let is_due = state.must_send
                || state.sent != Some(what)
                || (lacks && now_ms.saturating_sub(state.sent_ms) >= ASK_AGAIN_MS)
                || now_ms.saturating_sub(state.sent_ms) >= TELL_AGAIN_MS;
            if is_due {
                items.push(Item { key: key.clone(), what });
                if items.len() == KEYS_PER_CALL {
                    break;
                }
            }
        }
        items
    }

    /// The store has answered a step with these keys that was sent at `sent_ms`.
    pub(super) fn answered(&mut self, items: &[Item], reply: &StepReply, sent_ms: u64) {
        self.until_ms = self.until_ms.max(sent_ms + self.terms.lease_ms);
        self.set_hosts(reply);
        let mut bytes = self.lines_bytes();
        for (item, &share) in items.iter().zip(&reply.shares) {
            let Some(state) = self.keys.get_mut(&item.key) else { continue };
            if share.is_some() && state.next.is_none() && bytes + state.line_bytes > LINES_MAX {
                // What it has in force is what it reports, so the store gives nothing of it away.
                state.has_no_room = true;
            } else {
                bytes += state.line_bytes * usize::from(share.is_some());
                bytes -= state.line_bytes * usize::from(state.next.is_some());
                state.next = share;
            }
            (state.sent, state.sent_ms, state.must_send) = (Some(item.what), sent_ms, false);
        }
        if self.lost != reply.lost {
            // What a lost host may have comes from the others, whether they lack anything or not.
            self.lost.clone_from(&reply.lost);
            for state in self.keys.values_mut() {
                state.must_send = true;
            }
        }
        if self.stage == Stage::In && !reply.inbox.is_empty() {
            self.observe_again();
            for key in &reply.inbox {
                let state = self.keys.entry(key.clone());
                state.or_insert_with_key(|key| KeyState::new(key)).must_send = true;
            }
        }
    }

    fn set_hosts(&mut self, reply: &StepReply) {
        self.count = reply.hosts;
        // The start-up share never grows: the store has given away what it left.
        self.next_hosts = (self.next_hosts.0.max(reply.most), reply.divisor.max(1));
    }

    /// The file's new contents, if it has to be written. They count as written at once.
    pub(super) fn file(&mut self, now_ms: u64) -> Option<Vec<u8>> {
        let is_new = self.must_write
            || self.hosts.last().is_none_or(|last| (last.1, last.2) != self.hosts_to_write())
            || self.keys.values().any(|state| state.written() != state.next);
        let is_old = self.until_ms >= self.written_until_ms + self.terms.lease_ms / 4;
        if !(is_new || is_old) || !self.may_write(now_ms) {
            return None;
        }
        if is_new {
            self.seq += 1;
            let (start, hosts) = self.hosts_to_write();
            self.hosts.push((self.seq, start, hosts));
            for state in self.keys.values_mut().filter(|state| state.written() != state.next) {
                state.shares.push((self.seq, state.next));
            }
        }
        self.must_write = false;
        self.written_until_ms = self.until_ms;
        Some(self.text())
    }

    fn text(&self) -> Vec<u8> {
        use std::io::Write as _;
        let mut text = Vec::new();
        let (start, hosts) = self.hosts_to_write();
        let Terms { least, .. } = self.terms;
        // Writing into memory does not fail.
        let _ = write!(
            text,
            "{MAGIC}\t{}\t{}\t{}\t{}\t{start}\t{hosts}\t{least}\t{}\t",
            self.seq,
            self.boot,
            self.until_ms,
            self.terms.gate_settle_ms(),
            self.number
        );
        let head = sum(&text);
        let _ = writeln!(text, "{head:x}");
        for (key, state) in &self.keys {
            let Some(share) = state.next else { continue };
            let at = key.iter().position(|&byte| byte == b':').unwrap_or(0);
            let kind = String::from_utf8_lossy(&key[..at]);
            let name = Escaped(&key[at + 1..]);
            let _ = writeln!(text, "{kind}\t{name}\t{share}");
        }
        let _ = write!(text, "end\t{}\t", self.seq);
        let all = sum(&text);
        let _ = writeln!(text, "{all:x}");
        text
    }
}

/// Drops what a version that is in force has replaced.
fn prune<T>(versions: &mut Vec<T>, seq: impl Fn(&T) -> u64, confirmed: u64) {
    let in_force = versions.iter().rposition(|version| seq(version) <= confirmed).unwrap_or(0);
    versions.drain(..in_force);
}
