//! Benchmarks of the parser of Redis commands.
#![allow(missing_docs)] // `criterion_group!` generates undocumented items.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use kv_redis::resp::{CommandParser, MAX_COMMAND_BYTES, Parsed};
use std::hint::black_box;

/// The number of commands in a pipeline.
const DEPTH: u64 = 16;

fn encode(args: &[&[u8]]) -> Vec<u8> {
    let mut bytes = format!("*{}\r\n", args.len()).into_bytes();
    for arg in args {
        bytes.extend_from_slice(format!("${}\r\n", arg.len()).as_bytes());
        bytes.extend_from_slice(arg);
        bytes.extend_from_slice(b"\r\n");
    }
    bytes
}

/// Parses all commands, reads their arguments, and returns the number of commands.
fn parse_all(parser: &mut CommandParser, mut bytes: &[u8]) -> u64 {
    let mut commands = 0;
    while let Ok(Parsed::Command { args, consumed }) = parser.parse(bytes) {
        args.iter().for_each(|arg| {
            black_box(arg);
        });
        bytes = &bytes[consumed..];
        commands += 1;
    }
    commands
}

fn pipelines(c: &mut Criterion) {
    let mut group = c.benchmark_group("commands in a pipeline of 16");
    group.throughput(Throughput::Elements(DEPTH));
    let many: Vec<&[u8]> =
        std::iter::once(&b"MGET"[..]).chain([&b"key:000000000001"[..]; 100]).collect();
    let cases: [(&str, Vec<u8>); 4] = [
        ("SET of 64 B", encode(&[b"SET", b"key:000000000001", &[b'v'; 64]])),
        ("GET", encode(&[b"GET", b"key:000000000001"])),
        ("MGET of 100 keys", encode(&many)),
        ("inline GET", b"GET key:000000000001\r\n".to_vec()),
    ];
    for (name, command) in cases {
        let bytes = command.repeat(16);
        let mut parser = CommandParser::new(MAX_COMMAND_BYTES);
        assert_eq!(parse_all(&mut parser, &bytes), DEPTH);
        group.bench_function(name, |b| b.iter(|| parse_all(&mut parser, black_box(&bytes))));
    }
    group.finish();
}

criterion_group!(benches, pipelines);
criterion_main!(benches);
