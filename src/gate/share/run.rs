//! The loop of the agent: looks at the gates, calls the store, writes the lease.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::sleep;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use qpatch_gate::process::{boot, since_boot_ms, uptime_ms};

use super::agent::{Agent, KEYS_PER_CALL, Stage};
use super::config::Config;
use super::gates::{Gates, LeaseFile, Left};
use super::store::{CallError, Calls, Store};
use crate::error::{Error, Result};
use crate::output::warn;
use crate::qmail::home::Home;

/// The time between two calls, in milliseconds: with few keys that have shares or want them; with a thousand, which
/// take longer; and with none. A status that is written meanwhile ends it at once.
const LOOK_MS: u64 = 50;
const LONG_LOOK_MS: u64 = 100;
const IDLE_LOOK_MS: u64 = 100;
/// A gate that reads leases has read one by then, in milliseconds.
const GATE_READS_MS: u64 = 5000;
/// The most calls of a turn: the gate must not wait longer for its lease.
const CALLS_MAX: u32 = 100;
/// A call that takes longer than this, in milliseconds and leases, hangs where no time-out reaches: the agent ends, and
/// whoever started it starts it again.
const HANGS_MS: u64 = 30_000;

/// What was printed last of each kind, so that nothing is printed twice in a row.
#[derive(Default)]
struct Said {
    store: String,
    gate: String,
    room: String,
    is_in: bool,
}

impl Said {
    fn say(last: &mut String, now: String) {
        if *last != now {
            if !now.is_empty() {
                warn(&now);
            }
            *last = now;
        }
    }
}

/// /proc/uptime, as the gate reads it. It stays open: the agent asks for the time a hundred times a second.
struct Uptime(File);

impl Uptime {
    fn open() -> Result<Self> {
        let path = Path::new("/proc/uptime");
        File::open(path).map(Self).map_err(|error| Error::io(path, "read", &error))
    }

    fn now_ms(&self) -> Result<u64> {
        let mut text = [0; 64];
        let read = self.0.read_at(&mut text, 0).ok();
        read.and_then(|read| uptime_ms(&text[..read]))
            .ok_or_else(|| Error::new("/proc/uptime", "cannot be read", "mount /proc"))
    }
}

/// Runs until it is killed.
///
/// # Errors
/// The files cannot be read or written, or the store's address or password cannot be used.
pub(super) fn run(home: Home) -> Result<()> {
    let config = Config::read(&home)?;
    let mut store = Store::new(&config)?;
    let lease = LeaseFile::open(&home)?;
    let uptime = Uptime::open()?;
    let now_ms = || uptime.now_ms();
    let mut agent = begin(&config, &lease, now_ms()?)?;
    let mut gates = Gates::new(home);
    let beat = Arc::new(AtomicU64::new(now_ms()?));
    watch(Arc::clone(&beat), HANGS_MS.max(3 * config.terms.lease_ms));
    let (started_ms, mut said) = (now_ms()?, Said::default());
    loop {
        let look_ms = now_ms()?;
        beat.store(look_ms, Ordering::Relaxed);
        // Without the status nothing is known of what runs, and the lease ends.
        match gates.look(look_ms) {
            Ok(demand) => {
                agent.observe(demand, look_ms);
                let is_old =
                    demand.runs && demand.confirmed == 0 && look_ms > started_ms + GATE_READS_MS;
                Said::say(&mut said.gate, if is_old { WAITS.to_string() } else { String::new() });
                let why = turn(&mut agent, &mut store, &now_ms, &mut |text| lease.write(text))?;
                report(&mut said, &agent, &config, why, now_ms()?);
            }
            Err(error) => Said::say(&mut said.gate, error.to_string()),
        }
        let pause_ms = match agent.key_count() as u64 {
            0 => IDLE_LOOK_MS,
            keys => (LOOK_MS + keys / 20).min(LONG_LOOK_MS),
        };
        gates.wait(Duration::from_millis(pause_ms));
    }
}

const WAITS: &str = "waiting until the running gate has read queue/lock/gatelease; a gate that an earlier qpatch has \
                     built does not read it";

const NO_ROOM: &str = "there are more keys than queue/lock/gatelease has room for (a megabyte); those that are not in it \
                       have one place on this host at most, and none where the limit is lower than the number of hosts";

/// The agent as it begins: it goes on with the lease that an earlier one has left.
fn begin(config: &Config, lease: &LeaseFile, now_ms: u64) -> Result<Agent> {
    let boot = boot();
    let unix_ms =
        SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64);
    let number = u64::from(std::process::id()) << 40 ^ unix_ms ^ boot >> 8;
    let terms = config.terms;
    Ok(match lease.left()? {
        Left::Nothing => Agent::new(terms, number, boot, unix_ms),
        Left::Whole(header, keys) => Agent::resume(terms, boot, header, keys),
        Left::Torn(header) => Agent::after_damage(terms, number, boot, unix_ms, header, now_ms),
    })
}

/// Ends the process if the loop hangs.
fn watch(beat: Arc<AtomicU64>, hangs_ms: u64) {
    std::thread::spawn(move || {
        loop {
            sleep(Duration::from_secs(1));
            if since_boot_ms().is_some_and(|now_ms| {
                now_ms.saturating_sub(beat.load(Ordering::Relaxed)) > hangs_ms
            }) {
                warn("a call to the store hangs; ending");
                std::process::exit(1);
            }
        }
    });
}

/// One turn: calls the store, and writes the lease. Returns what is wrong with the store.
///
/// # Errors
/// The lease cannot be written.
pub(super) fn turn(
    agent: &mut Agent,
    store: &mut dyn Calls,
    clock: &dyn Fn() -> Result<u64>,
    write: &mut dyn FnMut(&[u8]) -> Result<()>,
) -> Result<Option<CallError>> {
    let why = talk(agent, store, clock).err();
    if why.is_some() {
        store.disconnect();
        agent.lose();
    }
    if let Some(text) = agent.file(clock()?) {
        write(&text)?;
    }
    Ok(why)
}

fn talk(
    agent: &mut Agent,
    store: &mut dyn Calls,
    clock: &dyn Fn() -> Result<u64>,
) -> std::result::Result<(), CallError> {
    let now = || clock().map_err(|error| CallError::Failed(error.to_string()));
    let sent_ms = now()?;
    if agent.stage == Stage::Out {
        if !agent.may_join(sent_ms) {
            return Ok(());
        }
        let hosts = (agent.start_hosts(), agent.hosts_in_force().1);
        let welcome = store.hello(agent.number, hosts, agent.is_leased(sent_ms))?;
        // The first step begins the lease. If the host is new, it says of which keys others have shares.
        let mut closed = Vec::new();
        let (first, sent_ms) = loop {
            let sent_ms = now()?;
            let hosts = agent.hosts_in_force();
            let reply = store.step(agent.number, welcome.conn, hosts, false, &[])?;
            if reply.inbox.is_empty() || !welcome.is_new {
                break (reply, sent_ms);
            }
            closed.extend(reply.inbox);
        };
        agent.welcome(welcome, &first, &closed, sent_ms, now()?);
        if agent.stage == Stage::Joining {
            return Ok(());
        }
    }
    agent.join_if_confirmed();
    let mut calls = 0;
    loop {
        let sent_ms = now()?;
        let items = agent.items(sent_ms);
        if (calls > 0 && items.is_empty()) || calls == CALLS_MAX {
            return Ok(());
        }
        // All that may be in force has been told only with the last of them.
        let is_in = agent.stage == Stage::In && items.len() < KEYS_PER_CALL;
        let reply = store.step(agent.number, agent.conn, agent.hosts_in_force(), is_in, &items)?;
        agent.answered(&items, &reply, sent_ms);
        calls += 1;
    }
}

fn report(said: &mut Said, agent: &Agent, config: &Config, why: Option<CallError>, now_ms: u64) {
    let until = match agent.until_ms().saturating_sub(now_ms) {
        0 => "no shares are in force".to_string(),
        _ => "the shares hold until the lease ends".to_string(),
    };
    let text = match why {
        None => String::new(),
        // It says hello again at once.
        Some(CallError::Gone) => return,
        Some(CallError::Taken) => format!(
            "another agent has the name {} in the pool {}; give each qmail a name of its own: host NAME in \
             control/concurrencyshare",
            config.host, config.pool
        ),
        Some(CallError::Wait) => {
            "the store has just begun; waiting for the hosts that it does not know yet".to_string()
        }
        Some(CallError::Failed(why)) => format!("{}: {why}; {until}", config.store),
    };
    let is_in = agent.stage == Stage::In;
    Said::say(&mut said.store, text);
    if agent.lacks_room() {
        Said::say(&mut said.room, NO_ROOM.to_string());
    }
    if is_in && !said.is_in {
        let hosts = crate::output::count(agent.hosts().into(), "host");
        eprintln!(
            "qpatch: {} shares the limits of the pool {} with {hosts} in all",
            config.host, config.pool
        );
        notify();
    }
    said.is_in = is_in;
}

/// Tells systemd that the agent takes part, if systemd wants to know it.
fn notify() {
    let Some(name) = std::env::var_os("NOTIFY_SOCKET") else { return };
    let Ok(socket) = UnixDatagram::unbound() else { return };
    let message = b"READY=1\nSTATUS=shares limits";
    // Without systemd nobody waits for it.
    let _ = match name.to_str().and_then(|name| name.strip_prefix('@')) {
        Some(name) => {
            use std::os::linux::net::SocketAddrExt as _;
            std::os::unix::net::SocketAddr::from_abstract_name(name)
                .and_then(|address| socket.send_to_addr(message, &address))
        }
        None => socket.send_to(message, name),
    };
}
