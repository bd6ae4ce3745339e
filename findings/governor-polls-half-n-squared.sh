#!/bin/bash
# The crate governor 0.10.4 (with tokio 1.54.1), a rate limiter, beside leaky-bucket 1.1.2: n tasks wait for one limiter of 200 a second.
#
# Guess: each waiting task is polled a few times (once when it comes, once when its turn has come), with both crates.
# Seen:  with governor's until_ready every waiting task wakes up at every turn, only one of them goes on, and the others set a new alarm: n(n+1)/2
#        polls, to the last one. leaky-bucket keeps a queue:
#        100 tasks: governor 5050 polls, leaky-bucket 394
#        400 tasks: governor 80200 polls, leaky-bucket 1594
#        With 65000 tasks waiting, as for a large queue of mail, that would be two thousand million polls.
#
# Needs cargo. Nothing is installed outside the temporary folder.
set -euo pipefail
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT
cd "$dir"; mkdir src
cat > Cargo.toml <<'END'
[package]
name = "polls"
version = "0.1.0"
edition = "2021"
[dependencies]
governor = "=0.10.4"
leaky-bucket = "=1.1.2"
tokio = { version = "=1.54.1", features = ["rt", "time", "macros"] }
[workspace]
END
cat > src/main.rs <<'END'
use governor::{Quota, RateLimiter};
use std::{future::Future, num::NonZeroU32, pin::Pin, sync::atomic::{AtomicU64, Ordering::Relaxed}, sync::Arc, time::Duration};

/// How often `waiting` has to be polled, for `tasks` tasks together.
async fn polls<F, W>(tasks: u64, wait: F) -> u64 where F: Fn() -> W, W: Future<Output = ()> + Send + 'static {
    let polls = Arc::new(AtomicU64::new(0));
    let all: Vec<_> = (0..tasks).map(|_| {
        let (polls, mut waiting): (_, Pin<Box<_>>) = (polls.clone(), Box::pin(wait()));
        tokio::spawn(std::future::poll_fn(move |context| { polls.fetch_add(1, Relaxed); waiting.as_mut().poll(context) }))
    }).collect();
    for one in all { one.await.unwrap() }
    polls.load(Relaxed)
}

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let each = |n| NonZeroU32::new(n).unwrap();
    for tasks in [100, 400] {
        let governor = Arc::new(RateLimiter::direct(Quota::per_second(each(200)).allow_burst(each(1))));
        let leaky = Arc::new(leaky_bucket::RateLimiter::builder().max(1).initial(1).interval(Duration::from_millis(5)).build());
        let governor = polls(tasks, || { let limiter = governor.clone(); async move { limiter.until_ready().await } }).await;
        let leaky = polls(tasks, || { let limiter = leaky.clone(); async move { limiter.acquire_one().await } }).await;
        println!("{tasks} tasks: governor {governor} polls, leaky-bucket {leaky}");
        // A busy machine lets several turns pass before anything wakes up, which saves polls: half of them is far more than a few each.
        if governor < tasks * tasks / 4 || leaky > tasks * 8 { println!("this has changed"); std::process::exit(1) }
    }
}
END
cargo run --quiet
