//! Compares the replies of a real cluster with those of a real redis-server, for random sequences of commands.
//! `KV_TEST_SEED` repeats a run.
//!
//! The commands and the permitted differences are those of the tests in `redis/src/differential`, which compare without
//! processes.

#[path = "../../redis/src/differential/commands.rs"]
#[allow(dead_code)] // Other tests need more of it.
mod commands;
#[path = "../../redis/src/differential/compare.rs"]
#[allow(dead_code)] // Other tests need more of it.
mod compare;
#[allow(dead_code)] // Other tests need more of it.
#[path = "../../core/tests/redis/mod.rs"]
mod redis;

use std::io::{BufReader, Write as _};
use std::net::TcpStream;

use kv_testkit::random::Random;

use crate::common::{Cluster, TIMEOUT};
use crate::resp::servers;
use commands::Commands;
use compare::{Comparison, is_refused, keys_by_scan, read_reply};
use redis::{Redis, push_request};

#[test]
fn a_cluster_replies_as_redis() -> anyhow::Result<()> {
    compare(2_000)
}

#[test]
#[ignore = "takes longer; `make sim` runs it"]
fn a_cluster_replies_as_redis_to_100_000_commands() -> anyhow::Result<()> {
    compare(100_000)
}

fn compare(count: usize) -> anyhow::Result<()> {
    let builder = Cluster::builder().shards(2).flag("--hash-tags");
    let cluster = builder.flag("--redis-multi").flag("ordered").start();
    let stream = TcpStream::connect(servers(&cluster)[0])?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.set_nodelay(true)?;
    let mut stream = BufReader::new(stream);
    let mut redis = Redis::start()?;
    redis.stream.get_ref().set_nodelay(true)?;
    // On a busy machine, any command may be slow.
    ask(&mut redis.stream, &[b"config", b"set", b"slowlog-log-slower-than", b"-1"])?;
    let mut random = Random::announced();
    let (mut commands, mut comparison) = (Commands::default(), Comparison::default());
    let (mut errors, mut refused) = (0, 0);
    for count in 0..count {
        let words = commands.next(&mut random);
        let args: Vec<&[u8]> = words.iter().map(Vec::as_slice).collect();
        let ours = ask(&mut stream, &args)?;
        if is_refused(&ours) {
            refused += 1;
            if comparison.is_in_transaction() {
                commands.discard();
            }
            continue;
        }
        let theirs = ask(&mut redis.stream, &args)?;
        anyhow::ensure!(
            comparison.is_same(&args, &ours, &theirs),
            "command {count}, {}: {} here, {} in Redis",
            comparison.shown(&args),
            ours.escape_ascii(),
            theirs.escape_ascii()
        );
        errors += usize::from(ours.starts_with(b"-"));
    }
    if comparison.is_in_transaction() {
        ask(&mut stream, &[b"discard"])?;
        ask(&mut redis.stream, &[b"discard"])?;
    }
    let here = keys_by_scan(&mut |args| ask(&mut stream, args))?;
    anyhow::ensure!(here == keys_by_scan(&mut |args| ask(&mut redis.stream, args))?);
    let executed = comparison.executed;
    eprintln!(
        "{count} commands, {executed} transactions: {errors} equal errors, {refused} refused by the store"
    );
    assert!(executed > count / 200, "transactions are executed");
    assert!(errors > count / 50 && errors < count / 2, "the commands are varied");
    cluster.stop();
    Ok(())
}

fn ask(stream: &mut BufReader<TcpStream>, args: &[&[u8]]) -> anyhow::Result<Vec<u8>> {
    let mut request = Vec::new();
    push_request(&mut request, args);
    stream.get_mut().write_all(&request)?;
    let mut reply = Vec::new();
    read_reply(stream, &mut reply)?;
    Ok(reply)
}
