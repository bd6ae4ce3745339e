//! Eight hosts that share a limit of 200 through `qpatch gate share`, and beside it what an operator has without it: a
//! limit of 25 on each. Prints how much of the limit was used, the most that ran, and how fast a share moves.
//!
//! Each host is a gate in this process with an agent of its own; a delivery takes 0.1 to 0.3 s. The mail wanders: every
//! thirty seconds another one to four hosts have all of it. After a third of the time two hosts die; after two thirds
//! the store is replaced by an empty one. `cargo bench --bench share` takes ten minutes, or as long as
//! `QPATCH_SHARE_SECS` says, in seconds for each of the two ways.

#[path = "../tests/gate_share/rig.rs"]
#[allow(dead_code)]
mod rig;

use std::thread::sleep;
use std::time::{Duration, Instant};

use qpatch_gate::random::Random;
use qpatch_test_support::redis::Redis;
use rig::{Node, SLOTS};

const LIMIT: u32 = 200;
const HOSTS: usize = 8;
const SPELL: Duration = Duration::from_secs(30);
/// How many parts of the time have a figure of their own.
const PARTS: usize = 20;
const DOMAIN: &str = "a.example";

struct Load {
    node: Node,
    has_mail: bool,
    is_dead: bool,
    /// When each delivery that runs ends.
    ends: Vec<(Instant, u32)>,
    /// Slots with nothing in them.
    free: Vec<u32>,
}

impl Load {
    /// How many mails wait.
    fn waiting(&self) -> usize {
        if self.is_dead { 0 } else { SLOTS as usize - self.free.len() - self.ends.len() }
    }

    fn work(&mut self, random: &mut Random) {
        if self.is_dead {
            return;
        }
        let now = Instant::now();
        let (over, ends): (Vec<_>, Vec<_>) = self.ends.drain(..).partition(|end| end.0 <= now);
        self.ends = ends;
        for (_, slot) in over {
            self.node.end(slot..slot + 1);
            self.free.push(slot);
        }
        if self.has_mail {
            for slot in std::mem::take(&mut self.free) {
                self.node.mail(slot..slot + 1, DOMAIN);
            }
        }
        self.node.pump();
        for slot in std::mem::take(&mut self.node.started) {
            self.ends.push((now + Duration::from_millis(100 + random.next() % 200), slot));
        }
    }
}

fn main() {
    for shared in [true, false] {
        let Some(mut redis) = Redis::start(&[]) else { return };
        let limit = if shared { LIMIT } else { LIMIT / HOSTS as u32 };
        let config = format!("store redis://127.0.0.1:{}\nlease 3\nforget 6\n", redis.port);
        let mut hosts: Vec<Load> = (0..HOSTS)
            .map(|number| Load {
                node: Node::with(&format!("h{number}"), &format!(":{limit}\n"), &config),
                has_mail: false,
                is_dead: false,
                ends: Vec::new(),
                free: (0..SLOTS).collect(),
            })
            .collect();
        let mut random = Random::new(3);
        if shared {
            hosts.iter_mut().for_each(|host| host.node.start());
            while hosts.iter().any(|host| host.node.phase() != "valid") {
                hosts.iter_mut().for_each(|host| host.work(&mut random));
                sleep(Duration::from_millis(20));
            }
        }
        run(&mut hosts, &mut redis, &mut random, shared);
    }
}

/// For how long each way runs.
fn duration() -> Duration {
    let secs = std::env::var("QPATCH_SHARE_SECS").ok().and_then(|secs| secs.parse().ok());
    Duration::from_secs(secs.unwrap_or(300))
}

fn run(hosts: &mut [Load], redis: &mut Redis, random: &mut Random, shared: bool) {
    let length = duration();
    let (start, mut spell) = (Instant::now(), 0);
    let (mut used, mut span, mut peak) = (0.0, 0.0, 0);
    let (mut last, mut settled, mut moves) = (Instant::now(), true, Vec::new());
    let (mut began, mut has_died, mut is_replaced) = (start, false, false);
    // Since when nothing waits on the hosts that have no mail any more.
    let mut moved = None;
    let mut parts = [(0.0, 0.0); PARTS];
    while start.elapsed() < length {
        if start.elapsed() >= SPELL * spell {
            spell += 1;
            (began, settled, moved) = (Instant::now(), false, None);
            let count = 1 + random.next() % 4;
            // What is there already is still delivered.
            hosts.iter_mut().for_each(|host| host.has_mail = false);
            for _ in 0..count {
                let alive = if has_died { HOSTS - 2 } else { HOSTS };
                hosts[random.next() as usize % alive].has_mail = true;
            }
        }
        if !has_died && start.elapsed() >= length / 3 {
            has_died = true;
            for host in &mut hosts[HOSTS - 2..] {
                host.node.kill();
                (host.is_dead, host.has_mail) = (true, false);
                host.ends.clear();
            }
        }
        if !is_replaced && start.elapsed() >= length * 2 / 3 {
            is_replaced = true;
            redis.restart();
        }
        hosts.iter_mut().for_each(|host| host.work(random));
        let running: u32 = hosts.iter().map(|host| host.ends.len() as u32).sum();
        peak = peak.max(running);
        let of_mail = hosts.iter().filter(|host| host.has_mail).map(|host| host.ends.len() as u32);
        if hosts.iter().all(|host| host.has_mail || host.waiting() == 0) {
            moved = moved.or(Some(Instant::now()));
        }
        if !settled && of_mail.sum::<u32>() * 100 >= LIMIT * 97 {
            settled = true;
            let secs = |from: Instant| from.elapsed().as_secs_f64();
            moves.push((moved.map_or(0.0, secs), secs(began)));
        }
        let secs = last.elapsed().as_secs_f64();
        last = Instant::now();
        used += secs * f64::from(running) / f64::from(LIMIT);
        span += secs;
        let done = start.elapsed().as_secs_f64() / length.as_secs_f64();
        let part = ((done * PARTS as f64) as usize).min(PARTS - 1);
        parts[part].0 += secs * f64::from(running) / f64::from(LIMIT);
        parts[part].1 += secs;
        sleep(Duration::from_millis(2));
    }
    moves.sort_by(|one, other| one.0.total_cmp(&other.0));
    let way = if shared { "shared" } else { "25 on each host" };
    let of_parts: Vec<String> =
        parts.iter().map(|part| format!("{:.0}", 100.0 * part.0 / part.1)).collect();
    println!("{way}: {:.1} % of the limit used, {peak} ran at most", 100.0 * used / span);
    println!("  each twentieth of the time: {} %", of_parts.join(" "));
    println!(
        "  until the hosts with mail used 97 %, of {spell} moves, since nothing waited where it was,"
    );
    println!("  and since mail began there: {moves:.2?} s");
    for host in hosts.iter().take(1).filter(|_| shared) {
        println!("  CPU of an agent: {:.2} ms a second", host.node.agent_cpu_ms() / span);
    }
}
