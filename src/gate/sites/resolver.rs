//! Asks DNS for mail exchangers.
//!
//! The answers are not trusted. A target counts only if its labels consist of letters, digits, `-` and `_`, so no label
//! has a dot, a colon or a line feed in it. A record counts only if it belongs to the name that was asked for.

use std::collections::HashMap;

use hickory_resolver::TokioResolver;
use hickory_resolver::config::{
    ConnectionConfig, NameServerConfig, ResolveHosts, ResolverConfig, ResolverOpts,
};
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::net::{DnsError, NetError, NoRecords};
use hickory_resolver::proto::op::ResponseCode;
use hickory_resolver::proto::rr::{Name, RData, Record, RecordType};
use hickory_resolver::system_conf::read_system_conf;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout, timeout_at};

use super::exchangers::{Asked, DnsAnswer, Exchanger, Order, Query, Resolver, is_host_label};
use crate::error::Error;

/// How many names are looked up at the same time, without those that have no answer within [`Resolver::patience`].
const PARALLEL_QUERIES: usize = 20;
/// The same, with those: each has one or two descriptors.
const PARALLEL_QUERIES_MAX: usize = 256;
/// After this many failures without an answer, the server is asked for the root. If that has no answer either, the
/// other names are not asked.
const GIVE_UP_AFTER_FAILURES: usize = 2 * PARALLEL_QUERIES;
/// A look-up with all its aliases and attempts ends after this many times the time for one answer.
const TIMEOUTS_PER_NAME: u32 = 4;
/// The most aliases that are followed, one after the other.
const ALIASES_MAX: usize = 8;
/// The most preferred exchangers of a domain that are kept. An answer has room for 4000 names of 255 bytes, and the
/// owner of the domain chooses them.
const EXCHANGERS_MAX: usize = 16;

/// A name of DNS as text; None if it is not a host name.
fn text(name: &Name) -> Option<String> {
    let mut text = String::new();
    for label in name.iter() {
        if !is_host_label(label) {
            return None;
        }
        if !text.is_empty() {
            text.push('.');
        }
        text.extend(label.iter().map(|&byte| char::from(byte.to_ascii_lowercase())));
    }
    (!text.is_empty()).then_some(text)
}

impl Resolver {
    /// Asks for each of the names, for which [`is_name`] holds, and returns `judge` of the answers, in the order of the
    /// names. Names of the map are asked for first, so strangers whose servers are slow cannot use up their time. An
    /// answer is judged and dropped when it arrives: 100,000 answers with 16 names of 255 bytes each would take half a
    /// gigabyte.
    ///
    /// # Errors
    /// There is no server to ask.
    pub(super) fn ask<T: Clone>(
        &self,
        names: &[Asked],
        judge: impl Fn(DnsAnswer) -> T,
    ) -> Result<Vec<T>, Error> {
        if names.is_empty() {
            return Ok(Vec::new());
        }
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|error| Error::new("DNS", format!("cannot be asked: {error}"), ""))?;
        let settings = self.settings()?;
        runtime.block_on(self.ask_all(&settings, names, judge))
    }

    fn settings(&self) -> Result<ResolverSettings, Error> {
        let (mut config, mut options) = match self.servers.is_empty() {
            true => read_system_conf().map_err(|error| {
                let help = "name a server with --server";
                Error::new("/etc/resolv.conf", format!("cannot be used: {error}"), help)
            })?,
            false => (ResolverConfig::from_name_servers(Vec::new()), ResolverOpts::default()),
        };
        for server in &self.servers {
            let mut both = [ConnectionConfig::udp(), ConnectionConfig::tcp()];
            both.iter_mut().for_each(|connection| connection.port = server.port());
            config.add_name_server(NameServerConfig::new(server.ip(), true, both.into()));
        }
        options.timeout = self.answer;
        options.attempts = 1;
        // No name is asked for twice, and an answer may take a megabyte.
        options.cache_size = 0;
        options.use_hosts_file = ResolveHosts::Never;
        Ok(ResolverSettings { config, options })
    }

    async fn ask_all<T: Clone>(
        &self,
        settings: &ResolverSettings,
        names: &[Asked],
        judge: impl Fn(DnsAnswer) -> T,
    ) -> Result<Vec<T>, Error> {
        let deadline = Instant::now() + self.total;
        let late = DnsAnswer::NoAnswer(format!("not asked: {} s were over", self.total.as_secs()));
        let mut judged = vec![judge(late); names.len()];
        let mut asking = JoinSet::new();
        let mut order = shuffled(names).into_iter();
        let mut started: HashMap<usize, Instant> = HashMap::new();
        let (mut answered, mut failed) = (0, 0);
        let mut server = ServerHealth::NotProbed;
        loop {
            if server == ServerHealth::NotProbed
                && answered == 0
                && failed >= GIVE_UP_AFTER_FAILURES
            {
                let probed = timeout_at(deadline, self.probe(&settings.resolver()?)).await;
                server = probed.unwrap_or(ServerHealth::Silent);
            }
            let now = Instant::now();
            let mut young: Vec<Instant> = started
                .values()
                .map(|&start| start + self.patience)
                .filter(|&old| old > now)
                .collect();
            while server != ServerHealth::Silent
                && young.len() < PARALLEL_QUERIES
                && asking.len() < PARALLEL_QUERIES_MAX
                && let Some(next) = order.next()
            {
                let (at, resolver, Asked { name, query, .. }) =
                    (next, settings.resolver()?, names[next].clone());
                started.insert(at, now);
                young.push(now + self.patience);
                let whole = self.answer * TIMEOUTS_PER_NAME;
                asking.spawn(async move {
                    let asked = timeout(whole, ask_one(&resolver, &name, query)).await;
                    (at, asked.unwrap_or_else(|_| no_answer("no answer in time")))
                });
            }
            // While as many as may be are under way, only the end of one makes room.
            let room_at = young.iter().min().filter(|_| asking.len() < PARALLEL_QUERIES_MAX);
            let until = room_at.map_or(deadline, |&room| room.min(deadline));
            let ended = match timeout_at(until, asking.join_next()).await {
                Err(_) if until < deadline => continue,
                Ok(Some(ended)) => ended,
                Err(_) | Ok(None) => break,
            };
            // Otherwise the resolver has panicked, and this name counts as not asked.
            if let Ok((at, answer)) = ended {
                started.remove(&at);
                match answer {
                    DnsAnswer::NoAnswer(_) => failed += 1,
                    _ => answered += 1,
                }
                judged[at] = judge(answer);
            } else {
                failed += 1;
            }
        }
        if server == ServerHealth::Silent {
            let given_up =
                judge(DnsAnswer::NoAnswer(format!("not asked: {failed} others had no answer")));
            order.for_each(|at| judged[at] = given_up.clone());
        }
        Ok(judged)
    }

    /// Asks for the name servers of the root, which every resolver knows. The other names come from strangers, who may
    /// own many without an answer.
    async fn probe(&self, resolver: &TokioResolver) -> ServerHealth {
        let root = resolver.lookup(Name::root(), RecordType::NS);
        match timeout(self.answer * TIMEOUTS_PER_NAME, root).await {
            Ok(Ok(_) | Err(NetError::Dns(_))) => ServerHealth::Answers,
            Ok(Err(_)) | Err(_) => ServerHealth::Silent,
        }
    }
}

/// The configuration of the resolvers.
#[derive(Debug)]
struct ResolverSettings {
    config: ResolverConfig,
    options: ResolverOpts,
}

impl ResolverSettings {
    /// A resolver for one name. If names shared a resolver, they would share its TCP connection. Many servers answer
    /// the queries of a connection one after the other, so one slow answer of a stranger would delay the others.
    fn resolver(&self) -> Result<TokioResolver, Error> {
        let provider = TokioRuntimeProvider::default();
        TokioResolver::builder_with_config(self.config.clone(), provider)
            .with_options(self.options.clone())
            .build()
            .map_err(|error| Error::new("DNS", format!("cannot be asked: {error}"), ""))
    }
}

/// Whether the name servers answer at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ServerHealth {
    NotProbed,
    Answers,
    Silent,
}

/// The indices of the names: first those of the map, then the strangers. Each in random order, so that many names
/// without an answer in a row do not use up the time of the others.
fn shuffled(names: &[Asked]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..names.len()).collect();
    fastrand::shuffle(&mut order);
    order.sort_by_key(|&at| names[at].order == Order::Stranger);
    order
}

fn no_answer(why: &str) -> DnsAnswer {
    DnsAnswer::NoAnswer(why.to_string())
}

async fn ask_one(resolver: &TokioResolver, name: &str, query: Query) -> DnsAnswer {
    // With the dot at its end no search list applies.
    let Ok(host) = Name::from_ascii(format!("{name}.")) else { return no_answer("not a name") };
    if query == Query::Domain {
        match resolver.lookup(host.clone(), RecordType::MX).await {
            // If the server gives only an alias, the resolver has asked for its target, which is then the query's name.
            Ok(found) => return exchangers(found.query().name(), found.answers()),
            // No MX record: the name is its own exchanger (RFC 5321, 5.1), and so are the names that it is an alias of.
            Err(error) if is_no_data(&error) => {}
            Err(error) => return failure(&error),
        }
    }
    let mut found = Vec::new();
    let mut host = host;
    loop {
        found.push(Exchanger { preference: 0, name: text(&host) });
        if found.len() > ALIASES_MAX {
            return no_answer("too many aliases, or a loop of them");
        }
        match resolver.lookup(host.clone(), RecordType::CNAME).await {
            Err(error) if is_no_data(&error) => return DnsAnswer::Host(found),
            Err(error) => return failure(&error),
            Ok(answer) => match alias(&host, answer.answers()) {
                Some(target) if text(target).is_some() => host = target.clone(),
                _ => return no_answer("an alias that is no name"),
            },
        }
    }
}

/// The target of a name that is an alias.
fn alias<'a>(name: &Name, answers: &'a [Record]) -> Option<&'a Name> {
    answers.iter().find_map(|record| match &record.data {
        RData::CNAME(target) if record.name == *name => Some(&target.0),
        _ => None,
    })
}

/// The mail exchangers among the answers: those of the name, or of what it is an alias of.
fn exchangers(name: &Name, answers: &[Record]) -> DnsAnswer {
    let mut owner = name;
    for _ in 0..ALIASES_MAX {
        let Some(target) = alias(owner, answers) else { break };
        owner = target;
    }
    let mut records = 0u32;
    let mut found = Vec::new();
    for record in answers {
        if let RData::MX(mx) = &record.data
            && record.name == *owner
        {
            records += 1;
            if !mx.exchange.is_root() {
                found.push((mx.preference, text(&mx.exchange)));
            }
        }
    }
    if records == 0 {
        return no_answer("an answer to something else");
    }
    if found.is_empty() {
        return DnsAnswer::NoMail;
    }
    found.sort();
    found.dedup();
    // If there are more equally preferred exchangers than are kept, the others count as one without a name.
    if let [.., (last, _), (more, _)] = found[..found.len().min(EXCHANGERS_MAX + 1)]
        && found.len() > EXCHANGERS_MAX
    {
        found.truncate(EXCHANGERS_MAX);
        if last == more {
            found.push((more, None));
        }
    }
    let exchanger = |(preference, name)| Exchanger { preference, name };
    DnsAnswer::Exchangers(found.into_iter().map(exchanger).collect())
}

/// Whether the name exists, but has no records of this type. A referral to other servers is not such an answer.
fn is_no_data(error: &NetError) -> bool {
    matches!(
        error,
        NetError::Dns(DnsError::NoRecordsFound(NoRecords {
            response_code: ResponseCode::NoError,
            soa,
            ns,
            ..
        })) if soa.is_some() || ns.is_none()
    )
}

fn failure(error: &NetError) -> DnsAnswer {
    if error.is_nx_domain() {
        return DnsAnswer::NoDomain;
    }
    no_answer(&match error {
        NetError::Timeout => "no answer in time".to_string(),
        NetError::Dns(DnsError::ResponseCode(ResponseCode::ServFail)) => "SERVFAIL".to_string(),
        NetError::Dns(DnsError::ResponseCode(ResponseCode::Refused)) => "REFUSED".to_string(),
        NetError::Dns(DnsError::ResponseCode(code)) => code.to_string(),
        NetError::Dns(DnsError::NoRecordsFound(_)) => "the server does not ask others".to_string(),
        NetError::Truncated => "a truncated answer".to_string(),
        NetError::Proto(_) => "a malformed answer".to_string(),
        NetError::Io(error) => error.to_string(),
        other => other.to_string(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    use hickory_resolver::proto::rr::rdata::{CNAME, MX};

    fn name(text: &str) -> Name {
        Name::from_ascii(text).unwrap()
    }

    fn mx(owner: &str, preference: u16, target: Name) -> Record {
        Record::from_rdata(name(owner), 60, RData::MX(MX::new(preference, target)))
    }

    fn found(answers: &[Record]) -> Vec<(u16, Option<String>)> {
        match exchangers(&name("a.example."), answers) {
            DnsAnswer::Exchangers(list) => {
                list.into_iter().map(|found| (found.preference, found.name)).collect()
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn only_records_of_the_name_asked_for_count() {
        let answers = [
            mx("a.example.", 20, name("Second.example.")),
            mx("a.example.", 10, name("first.example.")),
            mx("b.example.", 1, name("other.example.")),
        ];
        let some = |name: &str| Some(name.to_string());
        let expected = [(10, some("first.example")), (20, some("second.example"))];
        assert_eq!(found(&answers), expected);
        let other = exchangers(&name("c.example."), &answers);
        assert!(matches!(other, DnsAnswer::NoAnswer(_)), "{other:?}");
        let aliases = [
            Record::from_rdata(name("a.example."), 60, RData::CNAME(CNAME(name("b.example.")))),
            Record::from_rdata(name("b.example."), 60, RData::CNAME(CNAME(name("a.example.")))),
            mx("b.example.", 1, name("other.example.")),
        ];
        assert!(matches!(exchangers(&name("z.example."), &aliases), DnsAnswer::NoAnswer(_)));
        // A loop within an answer ends somewhere.
        let _ = exchangers(&name("a.example."), &aliases);
        assert_eq!(found(&[aliases[0].clone(), aliases[2].clone()])[0].1, some("other.example"));
    }

    #[test]
    fn labels_that_pretend_to_be_more_count_for_nothing() {
        let odd = |labels: &[&[u8]]| Name::from_labels(labels.iter().copied()).unwrap();
        for target in [
            odd(&[b"mx.outlook", b"com"]),
            odd(&[b"a\nb", b"example"]),
            odd(&[b"a:outlook", b"example"]),
            odd(&[b"\x1b[2J", b"example"]),
            odd(&[b"\xff", b"example"]),
        ] {
            assert_eq!(found(&[mx("a.example.", 1, target)]), [(1, None)]);
        }
        assert_eq!(
            exchangers(&name("a.example."), &[mx("a.example.", 0, Name::root())]),
            DnsAnswer::NoMail
        );
    }

    #[test]
    fn of_very_many_the_most_preferred_are_kept() {
        let many = |preference: fn(u16) -> u16| -> Vec<Record> {
            let one = |at| mx("a.example.", preference(at), name(&format!("h{at:04}.example.")));
            (0..4000).map(one).collect()
        };
        let kept = found(&many(|at| 4000 - at));
        assert_eq!(kept.len(), EXCHANGERS_MAX);
        assert_eq!(kept[0], (1, Some("h3999.example".to_string())));
        let kept = found(&many(|_| 7));
        assert_eq!((kept.len(), kept.last().unwrap()), (EXCHANGERS_MAX + 1, &(7, None)));
    }

    fn stranger(name: &str) -> Asked {
        Asked { name: name.to_string(), query: Query::Domain, order: Order::Stranger }
    }

    /// A server that never answers, and the names that it was asked for, in the order in which they came.
    fn deaf() -> (std::net::SocketAddr, std::sync::mpsc::Receiver<Vec<u8>>) {
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let address = socket.local_addr().unwrap();
        let (asked, names) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            let mut query = [0; 512];
            while let Ok(length) = socket.recv(&mut query) {
                // The question begins behind the header; its first label is enough.
                let label = 13..13 + usize::from(query[12]).min(length.saturating_sub(13));
                if asked.send(query[label].to_vec()).is_err() {
                    break;
                }
            }
        });
        (address, names)
    }

    /// Strangers own as many names as they like, whose servers never answer.
    #[test]
    fn slow_strangers_use_up_neither_the_time_of_the_map_nor_all_places() {
        let mut names: Vec<_> = (0..100).map(|n| stranger(&format!("slow{n}.example"))).collect();
        for n in 0..PARALLEL_QUERIES {
            names.push(Asked { order: Order::Known, ..stranger(&format!("known{n}.example")) });
        }
        let (address, asked) = deaf();
        let resolver = Resolver {
            servers: vec![address],
            answer: Duration::from_secs(60),
            total: Duration::from_secs(3),
            patience: Duration::from_millis(10),
        };
        resolver.ask(&names, |said| said).unwrap();
        let mut asked: Vec<Vec<u8>> = asked.try_iter().collect();
        let first = &asked[..PARALLEL_QUERIES];
        assert!(first.iter().all(|name| name.starts_with(b"known")), "{first:?}");
        asked.sort();
        asked.dedup();
        assert_eq!(
            asked.len(),
            names.len(),
            "a name without an answer keeps no other from being asked for"
        );
    }

    #[test]
    fn the_time_for_everything_is_bounded() {
        // A server that never answers.
        let deaf = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let resolver = |answer_ms, total_ms| Resolver {
            servers: vec![deaf.local_addr().unwrap()],
            answer: Duration::from_millis(answer_ms),
            total: Duration::from_millis(total_ms),
            patience: Duration::from_secs(1),
        };
        let names: Vec<_> = (0..500).map(|n| stranger(&format!("d{n}.example"))).collect();
        let start = std::time::Instant::now();
        let said = resolver(60_000, 300).ask(&names, |said| said).unwrap();
        assert!(start.elapsed() < Duration::from_secs(10));
        assert_eq!(said.len(), 500);
        assert!(said.iter().all(|said| matches!(said, DnsAnswer::NoAnswer(_))), "{said:?}");
        let said = resolver(50, 60_000).ask(&names, |said| said).unwrap();
        assert!(start.elapsed() < Duration::from_secs(20), "it gives up");
        // In whatever order: some were asked, and for all others it was given up.
        let asked = said.iter().filter(|&said| *said == no_answer("no answer in time")).count();
        assert!((GIVE_UP_AFTER_FAILURES..100).contains(&asked), "{asked}: {said:?}");
        let given_up = said.iter().filter(
            |said| matches!(said, DnsAnswer::NoAnswer(why) if why.ends_with("others had no answer")),
        );
        assert_eq!(given_up.count(), said.len() - asked, "{said:?}");
    }
}
