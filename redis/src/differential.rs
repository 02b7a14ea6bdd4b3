//! Compares the replies of commands with those of a real redis-server, for random sequences of commands. `KV_TEST_SEED`
//! repeats a run.
//!
//! ```text
//!   command --+--> perform -> store in memory -> reply --\
//!             +--> redis-server ---------------> reply ----- equal, as far as Redis promises?
//! ```

#![allow(clippy::disallowed_methods, clippy::disallowed_macros)] // The crate does no I/O, but this test does.

mod commands;
mod compare;
#[allow(dead_code)] // Other tests need more of it.
#[path = "../../core/tests/redis/mod.rs"]
mod redis;

use std::collections::BTreeSet;
use std::io::Write as _;
use std::time::{SystemTime, UNIX_EPOCH};

use kv_protocol::RedisMulti;
use kv_protocol::ids::WallTime;
use kv_protocol::placement::Placement;
use kv_testkit::random::Random;

use crate::testing::Door;
use commands::Commands;
use compare::{Comparison, is_refused, keys_by_scan, read_reply};
use redis::{Redis, push_request};

/// The number of commands of a sequence.
const COMMANDS: usize = 100_000;

#[test]
#[ignore = "needs redis-server; `make sim` runs it"]
fn a_store_of_one_shard_replies_as_redis() -> anyhow::Result<()> {
    compare(Placement::new(1, 1), RedisMulti::Refuse)
}

#[test]
#[ignore = "needs redis-server; `make sim` runs it"]
fn a_store_of_many_shards_replies_as_redis() -> anyhow::Result<()> {
    compare(Placement::new(3, 2).with_hash_tags(true), RedisMulti::Refuse)
}

#[test]
#[ignore = "needs redis-server; `make sim` runs it"]
fn a_store_of_many_shards_with_transactions_in_order_replies_as_redis() -> anyhow::Result<()> {
    compare(Placement::new(3, 2).with_hash_tags(true), RedisMulti::Ordered)
}

#[test]
fn every_command_has_exactly_one_reply() -> anyhow::Result<()> {
    let mut random = Random::new(1);
    let mut door = Door::with(Placement::new(3, 2));
    for _ in 0..20_000 {
        let words = match random.per_mille(200) {
            true => commands::random_of_own(&mut random),
            false => commands::random(&mut random),
        };
        let args: Vec<&[u8]> = words.iter().map(Vec::as_slice).collect();
        let ours = door.run(&args);
        let (mut rest, mut reply) = (&ours[..], Vec::new());
        read_reply(&mut rest, &mut reply)?;
        let command = args.join(&b' ');
        anyhow::ensure!(rest.is_empty(), "{}: {}", command.escape_ascii(), ours.escape_ascii());
    }
    Ok(())
}

fn compare(placement: Placement, multi: RedisMulti) -> anyhow::Result<()> {
    let mut random = Random::announced();
    let mut redis = Redis::start()?;
    // On a busy machine, any command may be slow.
    ask(&mut redis, &[b"config", b"set", b"slowlog-log-slower-than", b"-1"])?;
    let mut door = Door::with(placement);
    door.store.multi = multi;
    let (mut commands, mut comparison) = (Commands::default(), Comparison::default());
    let (mut errors, mut refused) = (0, 0);
    let mut names = BTreeSet::new();
    for count in 0..COMMANDS {
        let words = commands.next(&mut random);
        let args: Vec<&[u8]> = words.iter().map(Vec::as_slice).collect();
        let millis = SystemTime::now().duration_since(UNIX_EPOCH)?.as_millis();
        door.store.wall = WallTime::from_millis(u64::try_from(millis)?);
        let ours = door.run(&args);
        if is_refused(&ours) {
            refused += 1;
            let is_exec = args[0] == b"exec";
            match comparison.is_in_transaction() {
                true if is_exec => {
                    comparison.end();
                    ask(&mut redis, &[b"discard"])?;
                }
                true => commands.discard(),
                false => {}
            }
            continue;
        }
        let theirs = ask(&mut redis, &args)?;
        anyhow::ensure!(
            comparison.is_same(&args, &ours, &theirs),
            "command {count}, {}: {} here, {} in Redis",
            comparison.shown(&args),
            ours.escape_ascii(),
            theirs.escape_ascii()
        );
        names.insert(args[0].to_ascii_lowercase());
        errors += usize::from(ours.starts_with(b"-"));
    }
    if comparison.is_in_transaction() {
        door.run(&[b"discard"]);
        ask(&mut redis, &[b"discard"])?;
    }
    let scanned = keys_by_scan(&mut |args| Ok(door.run(args)))?;
    anyhow::ensure!(scanned == keys_by_scan(&mut |args| ask(&mut redis, args))?);
    eprintln!(
        "{COMMANDS} commands with {} names, {} transactions: {errors} equal errors, {refused} refused by the store",
        names.len(),
        comparison.executed
    );
    assert!(errors > COMMANDS / 50 && errors < COMMANDS / 2, "the commands are varied");
    assert!(comparison.executed > COMMANDS / 200, "transactions are executed");
    Ok(())
}

fn ask(redis: &mut Redis, args: &[&[u8]]) -> anyhow::Result<Vec<u8>> {
    let mut request = Vec::new();
    push_request(&mut request, args);
    redis.stream.get_mut().write_all(&request)?;
    let mut reply = Vec::new();
    read_reply(&mut redis.stream, &mut reply)?;
    Ok(reply)
}
