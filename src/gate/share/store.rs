//! The calls to the store: a connection to Valkey or Redis, and the script that makes each step atomic.
//!
//! A call whose answer does not come in time ends the connection. The next one has another number, and the store
//! refuses whatever of the old one is still on its way. So a step that comes late changes nothing.

use std::sync::Once;
use std::time::{Duration, Instant};

use redis::{
    Client, Connection, ConnectionLike as _, IntoConnectionInfo as _, RedisError, Script,
    TlsCertificates, Value,
};

use super::agent::{Item, StepReply, Welcome};
use super::config::{Config, Terms};
use crate::error::{Error, Result};

/// Why a call failed.
#[derive(Debug)]
pub(super) enum CallError {
    /// The store says that this host has to say hello again.
    Gone,
    /// Another agent has this host's name.
    Taken,
    /// The store has just begun, and may have forgotten shares.
    Wait,
    /// There is no answer that can be used.
    Failed(String),
}

/// What an agent asks of the store.
pub(super) trait Calls {
    /// Ends the connection.
    fn disconnect(&mut self);

    /// Takes a place in the pool, or takes it again.
    ///
    /// # Errors
    /// See [`CallError`].
    fn hello(
        &mut self,
        agent: u64,
        hosts: (u32, u32),
        is_leased: bool,
    ) -> std::result::Result<Welcome, CallError>;

    /// Reports, and gets shares. Renews the lease.
    ///
    /// # Errors
    /// See [`CallError`].
    fn step(
        &mut self,
        agent: u64,
        conn: u64,
        hosts: (u32, u32),
        is_complete: bool,
        items: &[Item],
    ) -> std::result::Result<StepReply, CallError>;
}

/// The store.
pub(super) struct Store {
    client: Client,
    script: Script,
    prefix: String,
    host: String,
    terms: Terms,
    timeout: Duration,
    /// How often it looks whether the store drops keys.
    look_every: Duration,
    connection: Option<Link>,
}

/// A connection, the server's run, and when its INFO was read.
struct Link {
    connection: Connection,
    run: String,
    looked: Instant,
}

/// The longest time that a call may take, in milliseconds.
const CALL_MAX_MS: u64 = 3000;
/// Somebody may change the store's settings while the agent has its connection.
const LOOK_EVERY: Duration = Duration::from_secs(60);
/// What step.lua calls.
const COMMANDS: &str =
    "TIME EXISTS DEL PEXPIRE HMGET HGETALL HSET HDEL HLEN SMEMBERS SADD SREM SPOP";

impl Store {
    /// Prepares the connection.
    ///
    /// # Errors
    /// The address, the password or the certificates cannot be used.
    pub(super) fn new(config: &Config) -> Result<Self> {
        static PROVIDER: Once = Once::new();
        PROVIDER.call_once(|| {
            // If another one is installed, that one serves.
            let _ = rustls::crypto::ring::default_provider().install_default();
        });
        let wrong = |error: RedisError| Error::new(&config.store, explain(&error), "");
        let info = config.store.as_str().into_connection_info().map_err(wrong)?;
        let mut settings = info.redis_settings().clone();
        if let Some(user) = &config.user {
            settings = settings.set_username(user);
        }
        if let Some(password) = config.password()? {
            settings = settings.set_password(password);
        }
        let info = info.set_redis_settings(settings.set_skip_set_lib_name());
        let client = match &config.ca_file {
            None => Client::open(info).map_err(wrong),
            Some(path) => {
                let root_cert =
                    std::fs::read(path).map_err(|error| Error::io(path, "read", &error))?;
                let certificates = TlsCertificates { client_tls: None, root_cert: Some(root_cert) };
                let unusable = "no certificate in PEM form that can be used";
                Client::build_with_tls(info, certificates)
                    .map_err(|_| Error::new(path.display(), unusable, "see ca-file in share.md"))
            }
        };
        Ok(Self {
            client: client?,
            script: Script::new(include_str!("step.lua")),
            prefix: format!("qpatch:{{{}}}:", config.pool),
            host: config.host.clone(),
            terms: config.terms,
            timeout: Duration::from_millis((config.terms.lease_ms / 3).min(CALL_MAX_MS)),
            look_every: LOOK_EVERY,
            connection: None,
        })
    }

    /// A test does not wait for a minute.
    #[cfg(test)]
    pub(super) fn looking_each_time(mut self) -> Self {
        self.look_every = Duration::ZERO;
        self
    }

    /// The key of the hash that is the store's clock in tests.
    #[cfg(test)]
    pub(super) const TEST_CLOCK: &str = "test-clock";

    /// A test sets the time of the store.
    #[cfg(test)]
    pub(super) fn with_test_clock(mut self) -> Self {
        let (time, text) = ("redis.call('TIME')", include_str!("step.lua"));
        assert_eq!(text.matches(time).count(), 1);
        let test = format!("redis.call('HMGET', '{}', 'secs', 'us')", Self::TEST_CLOCK);
        self.script = Script::new(&text.replace(time, &test));
        self
    }

    fn connect(&mut self) -> std::result::Result<(), CallError> {
        if let Some(link) = &mut self.connection {
            if link.looked.elapsed() >= self.look_every {
                link.looked = Instant::now();
                self.look("memory")?;
            }
            return Ok(());
        }
        let failed = |error: RedisError| CallError::Failed(self.explain(&error));
        let connection = self.client.get_connection_with_timeout(self.timeout).map_err(failed)?;
        connection.set_read_timeout(Some(self.timeout)).map_err(failed)?;
        connection.set_write_timeout(Some(self.timeout)).map_err(failed)?;
        let link = Link { connection, run: "?".to_string(), looked: Instant::now() };
        self.connection = Some(link);
        let info = self.look("default")?;
        let run = info.lines().find_map(|line| line.strip_prefix("run_id:"));
        if let (Some(link), Some(run)) = (&mut self.connection, run) {
            link.run = run.trim().to_string();
        }
        Ok(())
    }

    /// Reads the INFO of the store. It ends the connection to a store that drops keys.
    fn look(&mut self, section: &str) -> std::result::Result<String, CallError> {
        let Some(link) = &mut self.connection else { return Err(CallError::Gone) };
        // A user without the right to ask for it loses only one sign of a failover, and one of a store that drops keys.
        let info: String =
            redis::cmd("INFO").arg(section).query(&mut link.connection).unwrap_or_default();
        let why = if !link.connection.is_open() {
            "the connection was closed".to_string()
        } else if let Some(policy) = evicts(&info) {
            format!(
                "it drops keys when it is full (maxmemory-policy {policy}), and so could give places away twice; set \
                 maxmemory-policy noeviction"
            )
        } else {
            return Ok(info);
        };
        self.connection = None;
        Err(CallError::Failed(why))
    }

    /// What is wrong, and what the ACL of the user must allow.
    fn explain(&self, error: &RedisError) -> String {
        match error.code() {
            Some("NOPERM") => format!(
                "it does not allow this: {}; the agent calls INFO, SCRIPT LOAD and EVALSHA, and its keys begin with {}",
                detail(error),
                self.prefix
            ),
            Some("ERR") if detail(error).starts_with("The user executing the script can't run") => {
                format!("the script may not call what it needs: {COMMANDS}")
            }
            _ => explain(error),
        }
    }

    fn call(
        &mut self,
        command: &str,
        agent: u64,
        args: &[Vec<u8>],
    ) -> std::result::Result<Vec<Value>, CallError> {
        self.connect()?;
        let Some(Link { connection, run, .. }) = &mut self.connection else {
            return Err(CallError::Gone);
        };
        let Terms { lease_ms, forget_ms, least, .. } = self.terms;
        let mut call = self.script.prepare_invoke();
        for name in ["pool", "hosts", "keys"] {
            call.key(format!("{}{name}", self.prefix));
        }
        call.key(format!("{}in:{}", self.prefix, self.host));
        call.arg(&self.prefix).arg(command).arg(&self.host).arg(agent).arg(run.as_str());
        call.arg(lease_ms).arg(self.terms.settle_ms()).arg(forget_ms).arg(least);
        for arg in args {
            call.arg(arg);
        }
        match call.invoke::<Vec<Value>>(connection) {
            Ok(reply) => Ok(reply),
            Err(error) => {
                self.connection = None;
                Err(CallError::Failed(self.explain(&error)))
            }
        }
    }
}

impl Calls for Store {
    fn disconnect(&mut self) {
        self.connection = None;
    }

    fn hello(
        &mut self,
        agent: u64,
        (start_hosts, hosts): (u32, u32),
        is_leased: bool,
    ) -> std::result::Result<Welcome, CallError> {
        let text = |number: u32| number.to_string().into_bytes();
        let args = [text(start_hosts), text(hosts), vec![b'0' + u8::from(is_leased)]];
        let reply = self.call("hello", agent, &args)?;
        let number = |at: usize| int(reply.get(at));
        match word(&reply)? {
            b"ok" => Ok(Welcome {
                conn: number(1),
                most: clamp(number(3)),
                is_reset: number(4) == 1,
                is_new: number(5) == 1,
            }),
            b"taken" => Err(CallError::Taken),
            b"wait" => Err(CallError::Wait),
            _ => Err(CallError::Gone),
        }
    }

    fn step(
        &mut self,
        agent: u64,
        conn: u64,
        (start_hosts, hosts): (u32, u32),
        is_complete: bool,
        items: &[Item],
    ) -> std::result::Result<StepReply, CallError> {
        let text = |number: u64| number.to_string().into_bytes();
        let mut args = vec![
            text(conn),
            text(start_hosts.into()),
            text(hosts.into()),
            vec![b'0' + u8::from(is_complete)],
        ];
        for Item { key, what } in items {
            args.push(key.clone());
            args.push(what.share.map_or_else(|| b"-1".to_vec(), |share| text(share.into())));
            args.extend([what.running, what.want, what.limit].map(|number| text(number.into())));
        }
        let reply = self.call("step", agent, &args)?;
        if word(&reply)? != b"ok" {
            return Err(CallError::Gone);
        }
        let list = |at: usize| match reply.get(at) {
            Some(Value::Array(list)) => &list[..],
            _ => &[],
        };
        let shares = list(3).iter().map(|share| match share {
            Value::Int(share) => u32::try_from(*share).ok(),
            _ => None,
        });
        let shares: Vec<Option<u32>> = shares.collect();
        if shares.len() != items.len() {
            return Err(CallError::Failed("an answer that is not understood".to_string()));
        }
        let inbox = list(4).iter().filter_map(|key| match key {
            Value::BulkString(key) => Some(key.clone()),
            _ => None,
        });
        let lost = match reply.get(5) {
            Some(Value::BulkString(lost)) => lost.clone(),
            _ => Vec::new(),
        };
        Ok(StepReply {
            hosts: clamp(int(reply.get(1))),
            divisor: clamp(int(reply.get(6))),
            most: clamp(int(reply.get(2))),
            shares,
            inbox: inbox.collect(),
            lost,
        })
    }
}

/// By which policy a store with this INFO drops keys.
fn evicts(info: &str) -> Option<&str> {
    let of = |name: &str| info.lines().find_map(|line| line.trim().strip_prefix(name));
    let policy = of("maxmemory_policy:").filter(|&policy| policy != "noeviction")?;
    of("maxmemory:").is_some_and(|bytes| bytes != "0").then_some(policy)
}

fn word(reply: &[Value]) -> std::result::Result<&[u8], CallError> {
    match reply.first() {
        Some(Value::BulkString(word)) => Ok(word),
        _ => Err(CallError::Failed("an answer that is not understood".to_string())),
    }
}

fn int(value: Option<&Value>) -> u64 {
    match value {
        Some(Value::Int(number)) => u64::try_from(*number).unwrap_or(0),
        _ => 0,
    }
}

fn clamp(number: u64) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

/// The store's words behind the code, without what a terminal would not print.
fn detail(error: &RedisError) -> String {
    let words = error.detail().unwrap_or("no reason given").chars();
    words.filter(|letter| !letter.is_control()).take(200).collect()
}

/// What is wrong, without anything that was sent: it may have been a password.
fn explain(error: &RedisError) -> String {
    match error.code() {
        Some("READONLY") => "it is a replica, which takes no writes: name the primary".to_string(),
        Some("NOAUTH") => "it wants a password: set password-file".to_string(),
        Some("WRONGPASS") => "it refuses this user or password".to_string(),
        Some("MOVED" | "CROSSSLOT") => {
            "it is a node of a cluster that does not have this pool".to_string()
        }
        Some("LOADING") => "it is loading its data".to_string(),
        Some(code) => format!("it answers {code}"),
        None if error.is_timeout() => "no answer in time".to_string(),
        None if error.is_connection_refusal() => "the connection is refused".to_string(),
        None if error.is_io_error() => format!("no connection: {error}"),
        None => match error.kind() {
            redis::ErrorKind::AuthenticationFailed => {
                "it refuses this user or password".to_string()
            }
            kind => format!("{kind:?}"),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_store_that_drops_keys_is_known() {
        let info = |bytes, policy| {
            format!("# Memory\r\nmaxmemory:{bytes}\r\nmaxmemory_policy:{policy}\r\n")
        };
        assert_eq!(evicts(&info("100000", "allkeys-lru")), Some("allkeys-lru"));
        assert_eq!(evicts(&info("100000", "volatile-ttl")), Some("volatile-ttl"));
        assert_eq!(evicts(&info("100000", "noeviction")), None);
        // Without a limit it is never full.
        assert_eq!(evicts(&info("0", "allkeys-lru")), None);
        assert_eq!(evicts(""), None);
    }
}
