//! The values of flags: how they are parsed and checked.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

use clap::builder::{PossibleValuesParser, TypedValueParser};
use kv_protocol::cluster_file::Host;
use kv_protocol::failure_timeout::FAILURE_TIMEOUT_SECONDS;
use kv_protocol::limits::{
    CONNECTION_MEMORY_MIN, MAX_DUMP_DIRECTORY_BYTES, ORPHAN_SECONDS, REDIS_DEADLINE_SECONDS,
};
use kv_protocol::size;
use kv_protocol::{Eviction, RedisMulti};

/// The minimum interval between two requests of `coord status --watch`.
const MIN_INTERVAL_SECONDS: f64 = 0.1;
/// The maximum interval between two requests of `coord status --watch`.
const MAX_INTERVAL_SECONDS: f64 = 86_400.0;

/// The minimum of `--memory-limit` in bytes. A smaller limit has no room for a value of the maximum size.
const MEMORY_LIMIT_MIN: u64 = 16 << 20;

/// Checks a host, and returns its text.
pub(super) fn parse_host(text: &str) -> Result<String, String> {
    Host::parse(text).map(|_| text.to_owned())
}

/// Checks that the directory of `coord stop --dump-dir` is an absolute path that is not too long, and returns it.
pub(super) fn parse_dump_dir(text: &str) -> Result<String, String> {
    if !text.starts_with('/') {
        return Err(
            "not an absolute path; give the absolute path of a directory on each server's host"
                .to_owned(),
        );
    }
    if text.len() > MAX_DUMP_DIRECTORY_BYTES {
        return Err(format!(
            "the length of the path is {} bytes; give a path of at most {MAX_DUMP_DIRECTORY_BYTES}",
            text.len()
        ));
    }
    Ok(text.to_owned())
}

/// Returns the absolute path, because the path is stored and used from another working directory.
pub(super) fn parse_ssh_config(text: &str) -> Result<PathBuf, String> {
    std::path::absolute(text).map_err(|error| error.to_string())
}

/// Returns the directory with a leading `~` resolved to a path relative to the home directory. The remote shell does
/// not expand `~`, because the path is quoted.
pub(super) fn parse_remote_dir(text: &str) -> Result<String, String> {
    match text.strip_prefix('~') {
        None if text.is_empty() => {
            Err("empty path; write . for the home directory of the login".to_owned())
        }
        None => Ok(text.to_owned()),
        Some("" | "/") => Ok(".".to_owned()),
        Some(rest) => match rest.strip_prefix('/') {
            Some(rest) => Ok(rest.trim_start_matches('/').to_owned()),
            None => Err("~USER is not supported; write the absolute path".to_owned()),
        },
    }
}

/// Parses `--failure-timeout`.
pub(super) fn parse_failure_timeout(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.parse().map_err(|_| format!("`{text}` is not a number of seconds"))?;
    if !FAILURE_TIMEOUT_SECONDS.contains(&seconds) {
        let (least, most) = (FAILURE_TIMEOUT_SECONDS.start(), FAILURE_TIMEOUT_SECONDS.end());
        return Err(format!(
            "{text} s is out of range; heartbeats are sent every 0.1 s, so write {least} to \
                            {most}"
        ));
    }
    Ok(Duration::from_secs_f64(seconds))
}

/// Parses `--interval`.
pub(super) fn parse_interval(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.parse().map_err(|_| format!("`{text}` is not a number of seconds"))?;
    if !(MIN_INTERVAL_SECONDS..=MAX_INTERVAL_SECONDS).contains(&seconds) {
        return Err(format!(
            "{text} s is out of range; write {MIN_INTERVAL_SECONDS} to \
                            {MAX_INTERVAL_SECONDS}"
        ));
    }
    Ok(Duration::from_secs_f64(seconds))
}

/// Parses `--redis-deadline`.
pub(super) fn parse_redis_deadline(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.parse().map_err(|_| format!("`{text}` is not a number of seconds"))?;
    if !REDIS_DEADLINE_SECONDS.contains(&seconds) {
        let (least, most) = (REDIS_DEADLINE_SECONDS.start(), REDIS_DEADLINE_SECONDS.end());
        return Err(format!("{text} s is out of range; write {least} to {most}"));
    }
    Ok(Duration::from_secs_f64(seconds))
}

/// Checks the form of `--redis-port`: `none`, 0, or ports that differ.
pub(super) fn parse_redis_ports(text: &str) -> Result<String, String> {
    if matches!(text, "none" | "0") {
        return Ok(text.to_owned());
    }
    let mut seen = BTreeSet::new();
    for port in text.split(',') {
        match port.parse::<u16>() {
            Ok(0) | Err(_) => {
                return Err(format!(
                    "`{port}` is not a port; write one for each server, such as 6379,6380,6381, or 0, or none"
                ));
            }
            Ok(number) if !seen.insert(number) => {
                return Err(format!("port {number} is given twice"));
            }
            Ok(_) => {}
        }
    }
    Ok(text.to_owned())
}

/// Checks the form of `--unix`: `none`, or an absolute path, because the directory is on the host of each server.
pub(super) fn parse_unix_dir(text: &str) -> Result<String, String> {
    match text {
        "none" => Ok(text.to_owned()),
        _ if text.starts_with('/') => Ok(text.to_owned()),
        _ => Err(format!(
            "`{text}` is not an absolute path; the directory is on the host of each server, so begin it with /"
        )),
    }
}

/// Parses `--orphan-timeout`; zero means never.
pub(super) fn parse_orphan_timeout(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.parse().map_err(|_| format!("`{text}` is not a number of seconds"))?;
    if seconds != 0.0 && !ORPHAN_SECONDS.contains(&seconds) {
        let (least, most) = (ORPHAN_SECONDS.start(), ORPHAN_SECONDS.end());
        return Err(format!(
            "{text} s is out of range; write 0 for no timeout, or {least} to {most}"
        ));
    }
    Ok(Duration::from_secs_f64(seconds))
}

/// Returns the parser of `--eviction`.
pub(super) fn eviction_policy() -> impl TypedValueParser<Value = Eviction> {
    let names = Eviction::ALL.map(Eviction::name);
    PossibleValuesParser::new(names).try_map(|name| name.parse::<Eviction>())
}

/// Returns the parser of `--redis-multi`.
pub(super) fn redis_multi() -> impl TypedValueParser<Value = RedisMulti> {
    let names = RedisMulti::ALL.map(RedisMulti::name);
    PossibleValuesParser::new(names).try_map(|name| name.parse::<RedisMulti>())
}

/// Checks a memory limit of the tables, a size or `none`, and returns its text. The servers parse it themselves.
pub(super) fn parse_memory_limit(text: &str) -> Result<String, String> {
    match text {
        "none" => Ok(text.to_owned()),
        _ => parse_size(text, MEMORY_LIMIT_MIN, "16M, or none for no limit"),
    }
}

/// Checks a memory limit of the connections, and returns its text.
pub(super) fn parse_connection_memory(text: &str) -> Result<String, String> {
    parse_size(text, CONNECTION_MEMORY_MIN, "40M, so that the longest request fits")
}

/// Checks that a size is at least `least` bytes, and returns its text.
fn parse_size(text: &str, least: u64, at_least: &str) -> Result<String, String> {
    match size::parse(text)? {
        bytes if bytes < least => {
            Err(format!("{text} is {bytes} bytes, which is too small; give at least {at_least}"))
        }
        _ => Ok(text.to_owned()),
    }
}
