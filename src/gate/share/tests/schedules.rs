//! Random schedules: whatever happens in whatever order, the sum of what is in force is at most the limit.

use super::*;

/// One schedule: turns in a random order, with calls and answers that are lost, late or slow, agents that are killed or
/// stopped for several leases, gates that read late or start again, leases that are damaged, hosts that come late, and a
/// store that forgets everything.
fn schedule(seed: u64, least: u32) {
    const ROUNDS: u32 = 300;
    let limits = [("a", 20), ("b", 5), ("c", 2), ("d", 1)];
    let Some(mut pool) = Pool::with(&limits, 3, Terms { least, ..terms() }) else { return };
    let limits = pool.limits.clone();
    let mut random = Random::new(seed);
    let mut below = |of: u64| random.next() % of;
    pool.all_in();
    let mut stopped_until_ms = [0; 5];
    for round in 0..ROUNDS {
        let when = format!("seed {seed}, round {round}");
        if below(u64::from(ROUNDS) / 3) == 0 && pool.hosts.len() < 5 {
            pool.add();
        }
        match below(150) {
            0 => pool.replace_store(),
            1 | 2 => pool.empty_store(),
            _ => {}
        }
        for (at, stopped_until_ms) in stopped_until_ms.iter_mut().enumerate().take(pool.hosts.len())
        {
            pool.clock.pass(below(TURN_MS / 2));
            pool.check(&when);
            let now_ms = pool.clock.now_ms.get();
            let host = &mut pool.hosts[at];
            if below(60) == 0 {
                // Up to the end of the lease, and of settling, and long after.
                *stopped_until_ms = now_ms + below(4 * LEASE_MS);
            }
            for key in limits.keys() {
                if below(20) == 0 {
                    host.mail.insert(key.clone(), below(2) as u32 * 50);
                }
            }
            if below(12) == 0 {
                let slow = Fault::Slow(below(LEASE_MS / 4));
                let fault = [Fault::Lost, Fault::ReplyLost, Fault::Late, slow][below(4) as usize];
                host.store.faults = vec![fault];
                host.store.faults.resize(1 + below(3) as usize, Fault::None);
            }
            if below(300) == 0 {
                host.store.deaf_until_ms = now_ms + below(5 * LEASE_MS);
            }
            // A gate that cannot read its leases.
            if below(300) == 0 {
                host.blind_until_ms = now_ms + below(8 * LEASE_MS);
            }
            match below(100) {
                0 | 1 => host.restart(),
                2 if host.file.len() > 1 => {
                    // A gate that starts with a damaged first line has its whole limits: so this one does not start.
                    let length = 1 + below(host.file.len() as u64 - 1) as usize;
                    host.file.truncate(length);
                    host.restart();
                }
                3 if !matches!(parse(&mut host.file.clone(), |_, _, _| {}), Parsed::Torn) => {
                    host.lease = None;
                    host.read();
                }
                _ => {}
            }
            if now_ms >= *stopped_until_ms {
                host.turn(&limits);
            }
            // A gate looks ten times a second.
            if below(4) == 0 || host.now_ms() >= host.read_ms + GATE_LATE_MS {
                host.read();
            }
            pool.check(&when);
            pool.hosts[at].run(&limits, &mut Random::new(u64::from(round)));
        }
    }
    // All come back, and divide as before.
    for host in &mut pool.hosts {
        (host.store.deaf_until_ms, host.blind_until_ms) = (0, 0);
        host.store.faults.clear();
        host.running.clear();
    }
    pool.wants("a", &[1000; 5]);
    pool.until("equal parts", |pool| {
        let of = &pool.shares()[0];
        of.iter().sum::<u32>() == 20
            && of.iter().all(|&share| share.abs_diff(20 / of.len() as u32) <= 1)
    });
}

#[test]
fn the_sum_is_never_above_the_limit() {
    let seeds = std::env::var("QPATCH_SHARE_SEEDS").ok().and_then(|seeds| seeds.parse().ok());
    for seed in 1..=seeds.unwrap_or(3) {
        schedule(seed, (seed % 2) as u32);
    }
}
